//! Where a deployment is, and what it speaks there.

use super::{
    super::{draft::Draft, read::text},
    providers::{COMPATIBLE, DIALECTS, NOT_SPOKEN, SELF_HOSTED},
};
use serde_json::{Map, Value};

/// OpenAI's models, but for what follows after a dash or a dot: for others no key of theirs is told to whoever is at an `api_base`.
const OPENAI: &[&str] = &[
    "gpt-3.5-turbo",
    "gpt-4",
    "gpt-4o",
    "gpt-5",
    "chatgpt",
    "o1",
    "o3",
    "o4",
    "codex-mini",
    "davinci-002",
    "babbage-002",
];

pub(super) struct Endpoint {
    pub(super) kind: &'static str,
    /// `None` for where the provider always is.
    pub(super) base_url: Option<String>,
    /// The variable that LiteLLM reads its key from; empty if there is none.
    pub(super) variable: &'static str,
    /// What LiteLLM calls the provider.
    pub(super) name: String,
    pub(super) model: String,
}

impl Endpoint {
    /// `None`, which is told, where nobody here can ask.
    pub(super) fn read(
        path: &str,
        asked: &str,
        params: &Map<String, Value>,
        draft: &mut Draft,
    ) -> Option<Self> {
        let params_path = format!("{path}.litellm_params");
        let told = text(params.get("api_base")).or_else(|| text(params.get("base_url")));
        let (name, model) =
            split(path, asked, text(params.get("custom_llm_provider")), told.as_deref(), draft);
        let model = without_route(path, &name, &model, draft)?;
        let own_base = |draft: &mut Draft| base(&params_path, params, draft);
        let openai = |base_url, variable, model| ("openai", Some(base_url), variable, model);
        let (kind, base_url, variable, model) = match name.as_str() {
            "azure" | "azure_text" => {
                let base = own_base(draft)?;
                let version = in_the_file(&params_path, "api_version", params, draft);
                let url = azure(&base, version.as_deref(), &model);
                openai(url, "AZURE_API_KEY", model)
            }
            "azure_ai" if !model.starts_with("claude") => {
                let base = own_base(draft)?;
                let version = in_the_file(&params_path, "api_version", params, draft);
                let url = foundry(&base, version.as_deref());
                openai(url, "AZURE_AI_API_KEY", model)
            }
            name if name == "azure_ai" || NOT_SPOKEN.contains(&name) => {
                let what = "has a dialect that is not spoken here; the model is left out";
                draft.note(path, format_args!("{name:?} {what}"));
                return None;
            }
            name => {
                let known = |list: &'static [(&str, &'static str, &'static str)]| {
                    list.iter().find(|(known, ..)| *known == name)
                };
                match (known(SELF_HOSTED), known(COMPATIBLE), known(DIALECTS)) {
                    (Some((_, ending, variable)), ..) => {
                        let base = own_base(draft)?;
                        let base = base.trim_end_matches('/');
                        let base = base.strip_suffix(ending).unwrap_or(base);
                        openai(format!("{base}{ending}"), variable, model)
                    }
                    (_, Some((_, url, variable)), _) => {
                        let url = if told.is_some() { own_base(draft)? } else { (*url).to_owned() };
                        openai(url, variable, model)
                    }
                    (.., Some((_, kind, variable))) => {
                        let (base_url, model) = native(&params_path, kind, params, model, draft)?;
                        (*kind, base_url, *variable, model)
                    }
                    (None, None, None) => {
                        let what = "is no provider that is known here; the model is left out";
                        draft.note(path, format_args!("{name:?} {what}"));
                        return None;
                    }
                }
            }
        };
        if model.trim().is_empty() || !Draft::can_be_asked(kind, base_url.as_deref()) {
            draft.note(path, "its address or its model cannot be used, and it is left out");
            return None;
        }
        Some(Self { kind, base_url, variable, name, model })
    }

    /// Whether its key goes into a header of Azure's own.
    pub(super) fn has_own_header(&self) -> bool {
        match self.name.as_str() {
            "azure_ai" => self.base_url.as_deref().is_some_and(is_foundry),
            name => name.starts_with("azure"),
        }
    }
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
                _ if base.is_none() || is_openais(asked) => "openai",
                _ => "openai_like",
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

/// What the provider calls the model, for which LiteLLM may have written how it is asked as well. `None`, which is told,
/// for what nobody here can ask so.
fn without_route(path: &str, provider: &str, model: &str, draft: &mut Draft) -> Option<String> {
    let (routes, not_known): (&[&str], &[&str]) = match provider {
        "azure" | "azure_text" => (&["o_series/", "gpt5_series/"], &[]),
        "bedrock" | "bedrock_converse" => (
            &["converse/", "invoke/", "converse_like/", "nova/", "nova-2/"],
            &[
                "agent/",
                "agentcore/",
                "async_invoke/",
                "chat_completions/",
                "claude_platform/",
                "mantle/",
                "openai/",
            ],
        ),
        _ => (&[], &[]),
    };
    if not_known.iter().any(|route| model.starts_with(route)) {
        draft.note(path, "is asked in a way that is not known here, and is left out");
        return None;
    }
    if let Some(model) = model.strip_prefix("responses/") {
        draft.note(path, "is asked by chat completions now, and no more by responses");
        return Some(model.to_owned());
    }
    let model = routes.iter().find_map(|route| model.strip_prefix(route)).unwrap_or(model);
    Some(model.to_owned())
}

/// Where Azure has a deployment.
fn azure(base: &str, version: Option<&str>, model: &str) -> String {
    let base = base.trim_end_matches('/');
    let version = version.unwrap_or("2025-02-01-preview");
    match base.contains("/openai/v1") {
        true => base.to_owned(),
        false => format!("{base}/openai/deployments/{model}?api-version={version}"),
    }
}

/// Where Azure's foundry has its models.
fn foundry(base: &str, version: Option<&str>) -> String {
    let (base, query) = base.split_once('?').unwrap_or((base, ""));
    let mut url = base.trim_end_matches('/').trim_end_matches("/chat/completions").to_owned();
    if is_foundry(&url) && !url.ends_with("/models") {
        url += "/models";
    }
    match (query, version) {
        ("", None) => url,
        ("", Some(version)) => format!("{url}?api-version={version}"),
        (query, _) => format!("{url}?{query}"),
    }
}

fn is_foundry(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split(['/', '?', ':']).next().unwrap_or_default();
    host.ends_with(".services.ai.azure.com") || host.ends_with(".openai.azure.com")
}

fn is_openais(model: &str) -> bool {
    let model = model.strip_prefix("ft:").unwrap_or(model);
    let ends = |rest: &str| rest.is_empty() || rest.starts_with(['-', '.', ':']);
    OPENAI.iter().any(|name| model.strip_prefix(*name).is_some_and(ends))
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
            let location = in_the_file(path, "vertex_location", params, draft)
                .unwrap_or_else(|| "us-central1".to_owned());
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

/// A part of an address. One that only the environment knows is missed.
fn in_the_file(path: &str, name: &str, params: &Map<String, Value>, draft: &mut Draft) -> Option<String> {
    let told = text(params.get(name))?;
    let is_here = !told.starts_with("os.environ/");
    if !is_here {
        draft.note(&format!("{path}.{name}"), "is in the environment; write it into base_url");
    }
    is_here.then_some(told)
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
