//! `model_list`: groups of deployments, as providers and aliases.

use super::{
    super::{
        draft::{self, Draft, Fallback, Place, Price, Provider, Secret},
        read::{number, price, table, text, texts, whole},
    },
    LEFT_OUT, secret,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

/// What speaks OpenAI's dialect: its name, where it is, and the variable that LiteLLM reads its key from.
const COMPATIBLE: &[(&str, &str, &str)] = &[
    ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
    ("ai21", "https://api.ai21.com/studio/v1", "AI21_API_KEY"),
    ("ai21_chat", "https://api.ai21.com/studio/v1", "AI21_API_KEY"),
    ("aiml", "https://api.aimlapi.com/v1", "AIML_API_KEY"),
    ("amazon_nova", "https://api.nova.amazon.com/v1", "AMAZON_NOVA_API_KEY"),
    ("apertis", "https://api.stima.tech/v1", "STIMA_API_KEY"),
    ("assemblyai", "https://llm-gateway.assemblyai.com/v1", "ASSEMBLYAI_API_KEY"),
    ("baseten", "https://inference.baseten.co/v1", "BASETEN_API_KEY"),
    ("bedrock_mantle", "https://bedrock-mantle.us-east-1.api.aws/v1", "AWS_BEARER_TOKEN_BEDROCK"),
    ("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    (
        "charity_engine",
        "https://api.charityengine.services/remotejobs/v2/inference",
        "CHARITY_ENGINE_API_KEY",
    ),
    ("chutes", "https://llm.chutes.ai/v1", "CHUTES_API_KEY"),
    ("clarifai", "https://api.clarifai.com/v2/ext/openai/v1", "CLARIFAI_API_KEY"),
    ("codestral", "https://codestral.mistral.ai/v1", "CODESTRAL_API_KEY"),
    ("cognition", "https://api.cognition.ai/v1", "COGNITION_API_KEY"),
    ("cometapi", "https://api.cometapi.com/v1", "COMETAPI_KEY"),
    ("cortecs", "https://api.cortecs.ai/v1", "CORTECS_API_KEY"),
    ("darkbloom", "https://api.darkbloom.dev/v1", "DARKBLOOM_API_KEY"),
    ("dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    ("deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    ("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    ("edenai", "https://api.edenai.run/v3", "EDENAI_API_KEY"),
    ("empower", "https://app.empower.dev/api/v1", "EMPOWER_API_KEY"),
    ("featherless_ai", "https://api.featherless.ai/v1", "FEATHERLESS_AI_API_KEY"),
    ("fireworks_ai", "https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    ("friendliai", "https://api.friendli.ai/serverless/v1", "FRIENDLIAI_API_KEY"),
    ("galadriel", "https://api.galadriel.com/v1", "GALADRIEL_API_KEY"),
    ("github", "https://models.inference.ai.azure.com", "GITHUB_API_KEY"),
    ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    ("helicone", "https://ai-gateway.helicone.ai", "HELICONE_API_KEY"),
    ("hyperbolic", "https://api.hyperbolic.xyz/v1", "HYPERBOLIC_API_KEY"),
    ("inception", "https://api.inceptionlabs.ai/v1", "INCEPTION_API_KEY"),
    ("lambda_ai", "https://api.lambda.ai/v1", "LAMBDA_API_KEY"),
    ("libertai", "https://api.libertai.io/v1", "LIBERTAI_API_KEY"),
    ("meta", "https://api.meta.ai/v1", "META_API_KEY"),
    ("meta_llama", "https://api.llama.com/compat/v1", "LLAMA_API_KEY"),
    ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    ("modelscope", "https://api-inference.modelscope.cn/v1", "MODELSCOPE_API_KEY"),
    ("moonshot", "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    ("morph", "https://api.morphllm.com/v1", "MORPH_API_KEY"),
    ("nadir", "https://api.getnadir.com/v1", "NADIR_API_KEY"),
    ("nano-gpt", "https://nano-gpt.com/api/v1", "NANOGPT_API_KEY"),
    ("nebius", "https://api.studio.nebius.ai/v1", "NEBIUS_API_KEY"),
    ("neosantara", "https://api.neosantara.xyz/v1", "NEOSANTARA_API_KEY"),
    ("novita", "https://api.novita.ai/v3/openai", "NOVITA_API_KEY"),
    ("nscale", "https://inference.api.nscale.com/v1", "NSCALE_API_KEY"),
    ("nvidia_nim", "https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    ("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    ("parasail", "https://api.parasail.io/v1", "PARASAIL_API_KEY"),
    ("perplexity", "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    ("pinstripes", "https://pinstripes.io/v1", "PINSTRIPES_API_KEY"),
    ("poe", "https://api.poe.com/v1", "POE_API_KEY"),
    ("prism", "https://api.prisminference.com/v1", "PRISM_API_KEY"),
    ("publicai", "https://api.publicai.co/v1", "PUBLICAI_API_KEY"),
    ("qwen_ai_platform", "https://dashscope.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    ("qwencloud", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", "DASHSCOPE_API_KEY"),
    ("reka", "https://api.reka.ai/v1", "REKA_API_KEY"),
    ("sail", "https://api.sailresearch.com/v1", "SAIL_API_KEY"),
    ("sambanova", "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    ("scaleway", "https://api.scaleway.ai/v1", "SCW_SECRET_KEY"),
    ("scx-ai", "https://api.scx.ai/v1", "SCX_API_KEY"),
    ("synthetic", "https://api.synthetic.new/openai/v1", "SYNTHETIC_API_KEY"),
    ("tencent", "https://tokenhub-intl.tencentcloudmaas.com/v1", "TENCENT_API_KEY"),
    ("tensormesh", "https://serverless.tensormesh.ai/v1", "TENSORMESH_INFERENCE_API_KEY"),
    ("together_ai", "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    ("v0", "https://api.v0.dev/v1", "V0_API_KEY"),
    ("vercel_ai_gateway", "https://ai-gateway.vercel.sh/v1", "VERCEL_AI_GATEWAY_API_KEY"),
    ("volcengine", "https://ark.cn-beijing.volces.com/api/v3", "VOLCENGINE_API_KEY"),
    ("wandb", "https://api.inference.wandb.ai/v1", "WANDB_API_KEY"),
    ("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
    ("xiaomi_mimo", "https://api.xiaomimimo.com/v1", "XIAOMI_MIMO_API_KEY"),
    ("zai", "https://api.z.ai/api/paas/v4", "ZAI_API_KEY"),
];

/// The same, wherever they are told to be: what LiteLLM adds to that address, and the variable of the key.
const SELF_HOSTED: &[(&str, &str, &str)] = &[
    ("aiohttp_openai", "", ""),
    ("cloudflare", "", "CLOUDFLARE_API_KEY"),
    ("compactifai", "", "COMPACTIFAI_API_KEY"),
    ("custom_openai", "", ""),
    ("databricks", "", "DATABRICKS_API_KEY"),
    ("docker_model_runner", "/v1", ""),
    ("gradient_ai", "/api/v1", "GRADIENT_AI_API_KEY"),
    ("heroku", "/v1", "HEROKU_API_KEY"),
    ("hosted_vllm", "", ""),
    ("huggingface", "/v1", "HF_TOKEN"),
    ("lemonade", "", ""),
    ("litellm_proxy", "", ""),
    ("llamafile", "", ""),
    ("lm_studio", "", ""),
    ("maritalk", "", "MARITALK_API_KEY"),
    ("minimax", "/v1", "MINIMAX_API_KEY"),
    ("openai_like", "", ""),
    ("ovhcloud", "", "OVHCLOUD_API_KEY"),
    ("vllm", "", ""),
    ("xinference", "", ""),
];

/// Dialects of their own.
const DIALECTS: &[(&str, &str, &str)] = &[
    ("anthropic", "anthropic", "ANTHROPIC_API_KEY"),
    ("gemini", "gemini", "GEMINI_API_KEY"),
    ("cohere", "cohere", "COHERE_API_KEY"),
    ("cohere_chat", "cohere", "COHERE_API_KEY"),
    ("vertex_ai", "vertex", "VERTEX_ACCESS_TOKEN"),
    ("vertex_ai_beta", "vertex", "VERTEX_ACCESS_TOKEN"),
    ("bedrock", "bedrock", "AWS_BEARER_TOKEN_BEDROCK"),
    ("bedrock_converse", "bedrock", "AWS_BEARER_TOKEN_BEDROCK"),
    ("ollama", "ollama", ""),
    ("ollama_chat", "ollama", ""),
];

/// What LiteLLM speaks besides, and nobody here.
const NOT_SPOKEN: &[&str] = &[
    "a2a",
    "anthropic_text",
    "auto_router",
    "azure_ai",
    "bytez",
    "chatgpt",
    "datarobot",
    "fal_ai",
    "gdc",
    "gigachat",
    "github_copilot",
    "langflow",
    "langgraph",
    "litellm_agent",
    "manus",
    "nlp_cloud",
    "oci",
    "oobabooga",
    "petals",
    "predibase",
    "ragflow",
    "replicate",
    "sagemaker",
    "sagemaker_chat",
    "sagemaker_nova",
    "sap",
    "snowflake",
    "text-completion-codestral",
    "text-completion-inception",
    "text-completion-openai",
    "triton",
    "watsonx",
    "watsonx_text",
];

struct Deployment {
    kind: &'static str,
    /// What LiteLLM calls the provider.
    name: String,
    model: String,
    place: Place,
    weight: u64,
    price: Price,
    timeout: Option<Duration>,
}

pub(super) fn list(list: Option<&Value>, draft: &mut Draft) {
    let mut groups: BTreeMap<String, Vec<Deployment>> = BTreeMap::new();
    for (at, entry) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = format!("model_list[{at}]");
        let Some(entry) = table(Some(entry)) else {
            draft.note(&path, "is not a model");
            continue;
        };
        let Some(group) = text(entry.get("model_name")) else {
            draft.note(&path, "has no model_name, and is left out");
            continue;
        };
        let path = format!("{path} ({group})");
        for name in entry
            .keys()
            .filter(|name| !["model_name", "litellm_params", "model_info"].contains(&name.as_str()))
        {
            draft.note(&format!("{path}.{name}"), LEFT_OUT);
        }
        if let Some(deployment) = deployment(&path, entry, draft) {
            groups.entry(group).or_default().push(deployment);
        }
    }
    let mut known: BTreeMap<(&'static str, Place, Option<Duration>), String> = BTreeMap::new();
    for (group, deployments) in groups {
        let ends = match one_provider(&group, &deployments, draft) {
            Some(end) => vec![(end, 1)],
            None => {
                let each = deployments.into_iter().map(|one| (one.weight, place(one, &mut known, draft)));
                each.map(|(weight, end)| (end, weight)).collect::<Vec<_>>()
            }
        };
        name_group(&group, ends, draft);
    }
    draft.drop_aliases_of_models();
    if draft.providers.is_empty() {
        draft.note("model_list", "has nothing that could be carried over; an echo stands in for it");
        let echo = Provider { kind: "echo", ..Provider::default() };
        draft.providers.insert("echo".to_owned(), echo);
    }
}

/// A group whose deployments have the same model, and so can take each other's place.
fn one_provider(group: &str, deployments: &[Deployment], draft: &mut Draft) -> Option<String> {
    let [first, rest @ ..] = deployments else { return None };
    let alike = |one: &Deployment| {
        let Deployment { kind, model, weight, timeout, .. } = one;
        (*kind, model.as_str(), *weight, *timeout)
            == (first.kind, first.model.as_str(), first.weight, first.timeout)
    };
    if rest.is_empty() || !rest.iter().all(alike) || first.model.contains('*') {
        return None;
    }
    let mut places: Vec<Place> = deployments.iter().map(|one| one.place.clone()).collect();
    let default = draft::dialect(first.kind).and_then(|dialect| dialect.default_base_url());
    for place in &mut places {
        place.base_url = place.base_url.take().or_else(|| default.map(ToOwned::to_owned));
    }
    places.sort();
    places.dedup();
    if places.len() < 2 {
        return None;
    }
    let name = draft.free_name(group);
    let models = BTreeMap::from([(first.model.clone(), first.price.clone())]);
    draft.providers.insert(name.clone(), Provider { kind: first.kind, places, models, total: first.timeout });
    Some(format!("{name}/{}", first.model))
}

/// The model of a deployment that is a provider, or one more model of one that is there already.
fn place(
    one: Deployment,
    known: &mut BTreeMap<(&'static str, Place, Option<Duration>), String>,
    draft: &mut Draft,
) -> String {
    let Deployment { kind, name, model, place, weight: _, price, timeout } = one;
    let identity = (kind, place.clone(), timeout);
    let name = known.entry(identity).or_insert_with(|| {
        let name = draft.free_name(&name);
        let provider = Provider { kind, places: vec![place], models: BTreeMap::new(), total: timeout };
        draft.providers.insert(name.clone(), provider);
        name
    });
    let provider = draft.providers.get_mut(name).expect("was put there");
    if !model.contains('*') {
        let known = provider.models.entry(model.clone()).or_default();
        if *known == Price::default() {
            *known = price;
        }
    }
    format!("{name}/{model}")
}

fn name_group(group: &str, ends: Vec<(String, u64)>, draft: &mut Draft) {
    let path = format!("model_list ({group})");
    if group.contains('*') || ends.iter().any(|(end, _)| end.contains('*')) {
        // Any model of a provider can be asked for by `provider/model`.
        let is_served = ends.iter().all(|(end, _)| end == group && end.ends_with("/*"));
        if !is_served {
            let ends: Vec<_> = ends.iter().map(|(end, _)| end.as_str()).collect();
            draft
                .note(&path, format_args!("patterns do not carry names over; ask for {}", ends.join(" or ")));
        }
        return;
    }
    let mut shares: Vec<(String, u64)> = Vec::new();
    for (end, weight) in ends {
        match shares.iter_mut().find(|(known, _)| *known == end) {
            Some((_, known)) => *known += weight,
            None => shares.push((end, weight)),
        }
    }
    if shares.len() > 1 {
        draft.note(
            &path,
            "is split by chance among models of different providers, each the fallback of the others",
        );
        let all: Vec<String> = shares.iter().map(|(end, _)| end.clone()).collect();
        for end in &all {
            draft.fallbacks.entry(end.clone()).or_default().otherwise.extend(all.iter().cloned());
        }
    }
    if shares.len() != 1 || shares[0].0 != group {
        draft.aliases.insert(group.to_owned(), shares);
    }
}

fn deployment(path: &str, entry: &Map<String, Value>, draft: &mut Draft) -> Option<Deployment> {
    let empty = Map::new();
    let params = table(entry.get("litellm_params")).unwrap_or(&empty);
    let info = table(entry.get("model_info")).unwrap_or(&empty);
    let mode = text(info.get("mode"));
    if mode.as_deref().is_some_and(|mode| !matches!(mode, "chat" | "completion" | "responses")) {
        draft.note(path, "is not for chat, and is left out");
        return None;
    }
    let Some(asked) = text(params.get("model")) else {
        draft.note(path, "has no litellm_params.model, and is left out");
        return None;
    };
    let params_path = format!("{path}.litellm_params");
    let told = text(params.get("api_base")).or_else(|| text(params.get("base_url")));
    let (name, model) = split(path, &asked, text(params.get("custom_llm_provider")), told.as_deref(), draft);
    let own_base = |draft: &mut Draft| base(&params_path, params, draft);
    let mut headers = BTreeMap::new();
    let (kind, base_url, variable, model): (&'static str, Option<String>, &str, String) = match name.as_str()
    {
        "azure" | "azure_text" => {
            let base = own_base(draft)?;
            let version = text(params.get("api_version")).unwrap_or_else(|| "2025-02-01-preview".to_owned());
            let base = base.trim_end_matches('/');
            let url = match base.contains("/openai/v1") {
                true => base.to_owned(),
                false => format!("{base}/openai/deployments/{model}?api-version={version}"),
            };
            ("openai", Some(url), "AZURE_API_KEY", model)
        }
        name if NOT_SPOKEN.contains(&name) => {
            draft.note(
                path,
                format_args!("{name:?} has a dialect that is not spoken here; the model is left out"),
            );
            return None;
        }
        name => {
            let self_hosted = SELF_HOSTED.iter().find(|(known, ..)| *known == name);
            let compatible = COMPATIBLE.iter().find(|(known, ..)| *known == name);
            let dialect = DIALECTS.iter().find(|(known, ..)| *known == name);
            match (self_hosted, compatible, dialect) {
                (Some((_, ending, variable)), ..) => {
                    let base = own_base(draft)?;
                    let base = base.trim_end_matches('/');
                    let base = base.strip_suffix(ending).unwrap_or(base);
                    ("openai", Some(format!("{base}{ending}")), variable, model)
                }
                (_, Some((_, url, variable)), _) => {
                    let url = if told.is_some() { own_base(draft)? } else { (*url).to_owned() };
                    ("openai", Some(url), variable, model)
                }
                (.., Some((_, kind, variable))) => {
                    let (base_url, model) = native(&params_path, kind, params, model, draft)?;
                    (kind, base_url, variable, model)
                }
                (None, None, None) => {
                    draft.note(
                        path,
                        format_args!("{name:?} is no provider that is known here; the model is left out"),
                    );
                    return None;
                }
            }
        }
    };
    if model.trim().is_empty() || !Draft::can_be_asked(kind, base_url.as_deref()) {
        draft.note(path, "its address or its model cannot be used, and it is left out");
        return None;
    }
    let mut api_key = match text(params.get("api_key")) {
        Some(key) => secret(&format!("{params_path}.api_key"), &key, draft),
        None => (!variable.is_empty()).then(|| Secret::Env(variable.to_owned())),
    };
    if name.starts_with("azure")
        && let Some(key) = api_key.take()
    {
        headers.insert("api-key".to_owned(), key);
    }
    if let Some(organization) = text(params.get("organization")).and_then(|text| Secret::read(&text)) {
        headers.insert("openai-organization".to_owned(), organization);
    }
    for (header, value) in table(params.get("extra_headers")).into_iter().flatten() {
        let header_path = format!("{params_path}.extra_headers");
        match text(Some(value)).and_then(|value| Secret::read(&value)).filter(|_| may_be_told(header)) {
            Some(value) => drop(headers.insert(header.to_ascii_lowercase(), value)),
            None => draft.note(&header_path, "one of them cannot be told to a provider, and is left out"),
        }
    }
    for name in params.keys() {
        match name.as_str() {
            "model"
            | "api_key"
            | "api_base"
            | "base_url"
            | "api_version"
            | "custom_llm_provider"
            | "organization"
            | "extra_headers"
            | "timeout"
            | "weight"
            | "vertex_project"
            | "vertex_location"
            | "aws_region_name"
            | "input_cost_per_token"
            | "output_cost_per_token" => {}
            "rpm" | "tpm" | "max_parallel_requests" => draft.note(
                &format!("{params_path}.{name}"),
                "limits are of departments, in a day or a month; a provider's own limit is met by fallbacks",
            ),
            _ => draft.note(&format!("{params_path}.{name}"), LEFT_OUT),
        }
    }
    let known = [
        "id",
        "mode",
        "base_model",
        "input_cost_per_token",
        "output_cost_per_token",
        "cache_read_input_token_cost",
        "cache_creation_input_token_cost",
    ];
    for name in info.keys().filter(|name| !known.contains(&name.as_str())) {
        draft.note(&format!("{path}.model_info.{name}"), LEFT_OUT);
    }
    let rate = |name| price(info.get(name).or_else(|| params.get(name)), 6);
    Some(Deployment {
        kind,
        name,
        model,
        place: Place { base_url, api_key, headers },
        weight: whole(params.get("weight")).filter(|weight| (1..=1_000_000).contains(weight)).unwrap_or(1),
        price: Price {
            input: rate("input_cost_per_token"),
            output: rate("output_cost_per_token"),
            cache_read: rate("cache_read_input_token_cost"),
            cache_write: rate("cache_creation_input_token_cost"),
        },
        timeout: seconds(params.get("timeout")),
    })
}

/// Provider and model: as they are written, or by what LiteLLM makes of a bare name. What it knows as a provider's name is no
/// part of the model's, wherever that is asked.
fn split(
    path: &str,
    asked: &str,
    provider: Option<String>,
    base: Option<&str>,
    draft: &mut Draft,
) -> (String, String) {
    let known = |name: &str| {
        name.starts_with("azure")
            || NOT_SPOKEN.contains(&name)
            || SELF_HOSTED.iter().chain(COMPATIBLE).chain(DIALECTS).any(|(known, ..)| *known == name)
    };
    match (provider, asked.split_once('/')) {
        (Some(provider), Some((prefix, model))) if prefix == provider => (provider, model.to_owned()),
        (Some(provider), _) => (provider, asked.to_owned()),
        (None, Some((prefix, model))) if known(prefix) || base.is_none() => {
            (prefix.to_owned(), model.to_owned())
        }
        (None, slash) => {
            let begins = |with: &[&str]| with.iter().any(|with| asked.starts_with(with));
            let is_there = |url| {
                let rest = base.and_then(|base| base.strip_prefix(url));
                // No longer name of a host, which may be anybody's.
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let there = COMPATIBLE.iter().find(|(_, url, _)| is_there(*url));
            let provider = match there {
                Some((name, ..)) => name,
                // LiteLLM asks nobody, and no key of another provider's is for whoever that is.
                None if slash.is_some() => "openai_like",
                _ if begins(&["claude"]) => "anthropic",
                _ if begins(&["command"]) => "cohere",
                _ if begins(&["gemini"]) => "vertex_ai",
                _ => "openai",
            };
            if let (Some((prefix, _)), None) = (slash, there) {
                draft.note(
                    path,
                    format_args!(
                        "{prefix:?} is no provider that is known here; the model is called {asked:?}"
                    ),
                );
            }
            (provider.to_owned(), asked.to_owned())
        }
    }
}

/// Where a provider with a dialect of its own is; `None` for where it always is.
fn native(
    path: &str,
    kind: &str,
    params: &Map<String, Value>,
    model: String,
    draft: &mut Draft,
) -> Option<(Option<String>, String)> {
    let told = params.contains_key("api_base") || params.contains_key("base_url");
    match kind {
        "bedrock" => {
            let model = ["converse/", "invoke/", "converse_like/"]
                .iter()
                .find_map(|route| model.strip_prefix(route))
                .unwrap_or(&model)
                .to_owned();
            let is_region = |text: &str| text.split('-').count() >= 3 && !text.contains('.');
            let (in_name, model) = match model.split_once('/') {
                Some((region, model)) if is_region(region) => (Some(region.to_owned()), model.to_owned()),
                _ => (None, model),
            };
            let region =
                match text(params.get("aws_region_name")).filter(|text| !text.starts_with("os.environ/")) {
                    Some(region) => region,
                    None => in_name.unwrap_or_else(|| {
                        draft.note(path, "names no region; us-east-1 is written");
                        "us-east-1".to_owned()
                    }),
                };
            draft.note(path, "is asked with an API key of Bedrock; AWS's own signatures are not made");
            let url = match told {
                true => base(path, params, draft)?,
                false => format!("https://bedrock-runtime.{region}.amazonaws.com"),
            };
            Some((Some(url), model))
        }
        "vertex" => {
            let plain = |name| text(params.get(name)).filter(|text| !text.starts_with("os.environ/"));
            let location = plain("vertex_location").unwrap_or_else(|| "us-central1".to_owned());
            let project = plain("vertex_project").unwrap_or_else(|| {
                draft.note(path, "its project is not in the file; write it into base_url");
                "PROJECT".to_owned()
            });
            draft.note(path, "is asked with an access token, which must be renewed within the hour");
            let host = match location.as_str() {
                "global" => "aiplatform.googleapis.com".to_owned(),
                location => format!("{location}-aiplatform.googleapis.com"),
            };
            Some((Some(format!("https://{host}/v1/projects/{project}/locations/{location}")), model))
        }
        "anthropic" if told => {
            let base = base(path, params, draft)?;
            let base = base.trim_end_matches('/').trim_end_matches("/messages");
            let url = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
            Some((Some(url), model))
        }
        _ if told => Some((Some(base(path, params, draft)?), model)),
        _ => Some((None, model)),
    }
}

/// The address that is told. One that only the environment knows is marked, for it is no secret here.
fn base(path: &str, params: &Map<String, Value>, draft: &mut Draft) -> Option<String> {
    let Some(base) = text(params.get("api_base")).or_else(|| text(params.get("base_url"))) else {
        draft.note(path, "has no api_base, and is left out");
        return None;
    };
    match base.strip_prefix("os.environ/") {
        None => Some(base),
        Some(variable) => {
            let variable: String = variable
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                .collect();
            let variable = variable.trim_matches('-');
            draft.note(
                &format!("{path}.api_base"),
                "is in the environment; write it where base_url ends in .invalid",
            );
            Some(format!("https://{variable}.invalid"))
        }
    }
}

fn may_be_told(header: &str) -> bool {
    const OURS: [&str; 10] = [
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "x-request-id",
    ];
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !header.is_empty() && header.bytes().all(plain) && !OURS.contains(&header.to_ascii_lowercase().as_str())
}

pub(super) fn seconds(value: Option<&Value>) -> Option<Duration> {
    number(value)
        .filter(|seconds| *seconds > 0.0)
        .map(|seconds| Duration::from_secs_f64(seconds.min(31_536_000.0)))
}

/// `model_group_alias` and `model_alias_map`.
pub(super) fn aliases(path: &str, settings: &Map<String, Value>, draft: &mut Draft) {
    for table_name in ["model_group_alias", "model_alias_map"] {
        for (name, target) in table(settings.get(table_name)).into_iter().flatten() {
            let path = format!("{path}.{table_name}.{name}");
            let told = table(Some(target)).map_or(Some(target), |table| table.get("model"));
            let target = text(told).unwrap_or_default();
            let ends = draft.aliases.get(&target).cloned();
            let ends = ends.or_else(|| draft.is_served(&target).then(|| vec![(target.clone(), 1)]));
            match ends {
                _ if name.trim().is_empty()
                    || name.contains('*')
                    || draft.is_served(name)
                    || draft.aliases.contains_key(name) =>
                {
                    draft.note(&path, "its name is taken or cannot be used, and it is left out");
                }
                Some(ends) => drop(draft.aliases.insert(name.clone(), ends)),
                None => draft.note(&path, "leads to no model, and is left out"),
            }
        }
    }
}

pub(super) fn fallbacks(path: &str, settings: &Map<String, Value>, draft: &mut Draft) {
    type Pick = fn(&mut Fallback) -> &mut Vec<String>;
    let all: [(&str, Pick); 3] = [
        ("fallbacks", |fallback| &mut fallback.otherwise),
        ("context_window_fallbacks", |fallback| &mut fallback.context_window),
        ("content_policy_fallbacks", |fallback| &mut fallback.content_filter),
    ];
    for (name, pick) in all {
        let path = format!("{path}.{name}");
        let entries = match settings.get(name) {
            Some(Value::Array(entries)) => entries.iter().filter_map(Value::as_object).flatten().collect(),
            Some(Value::Object(entries)) => entries.iter().collect(),
            _ => Vec::new(),
        };
        for (model, targets) in entries {
            let targets = ends_of(&path, targets, draft);
            let models = match model.as_str() {
                "*" => all_models(draft),
                model => draft.ends(model),
            };
            if models.is_empty() {
                draft.note(&format!("{path}.{model}"), "is of no model, and is left out");
            }
            for model in models {
                pick(draft.fallbacks.entry(model).or_default()).extend(targets.iter().cloned());
            }
        }
    }
    let targets = settings
        .get("default_fallbacks")
        .map(|all| ends_of(&format!("{path}.default_fallbacks"), all, draft));
    if let Some(targets) = targets.filter(|targets| !targets.is_empty()) {
        for model in all_models(draft) {
            let fallback = draft.fallbacks.entry(model).or_default();
            if fallback.otherwise.is_empty() {
                fallback.otherwise.extend(targets.iter().cloned());
            }
        }
    }
}

fn all_models(draft: &Draft) -> Vec<String> {
    let providers = draft.providers.iter();
    providers
        .flat_map(|(name, provider)| provider.models.keys().map(move |model| format!("{name}/{model}")))
        .collect()
}

fn ends_of(path: &str, targets: &Value, draft: &mut Draft) -> Vec<String> {
    let mut all = Vec::new();
    for target in texts(Some(targets)) {
        let ends = draft.ends(&target);
        if ends.is_empty() {
            draft.note(path, format_args!("{target:?} leads to no model, and is left out"));
        }
        all.extend(ends);
    }
    all
}
