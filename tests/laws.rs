//! The laws that fuzzing tries to break, over bytes of chance near what is right, and over what fuzzing has kept.

#[path = "../fuzz/src/laws.rs"]
mod laws;

use llm_layers::{ChatBody, Completion, LlmRequest, http::anthropic, price::PriceBook};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

/// What fuzzing has found worth keeping is held to its law.
#[test]
fn what_fuzzing_has_kept_breaks_no_law() {
    type Law = fn(&[u8]);
    let laws: [(&str, Law); 8] = [
        ("chat_request", laws::chat_request),
        ("messages_request", laws::messages_request),
        ("answer", laws::answer),
        ("events", laws::events),
        ("config", laws::config),
        ("prices", laws::prices),
        ("segment", laws::segment),
        ("entry", laws::entry),
    ];
    for (name, law) in laws {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files: Vec<_> =
            std::fs::read_dir(&corpus).expect("a corpus").map(|file| file.unwrap().path()).collect();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            law(&std::fs::read(&file).unwrap());
        }
    }
}

/// Texts that are nearly right: pieces of the grammar, and now and then anything.
fn nearly(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        20 => prop::sample::select(pieces).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

const REQUEST: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\u0000",
    "null",
    "1e999",
    "-0",
    "\"model\"",
    "\"messages\"",
    "\"role\"",
    "\"user\"",
    "\"content\"",
    "\"text\"",
    "\"type\"",
    "\"tools\"",
    "\"stream\"",
    "true",
    "\"n\"",
    "\"max_tokens\"",
    "\"system\"",
    "[[[[",
    "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]",
    "\"temperature\":0.5,",
    "\"mo\\u0064el\"",
    "{\"type\":\"tool_result\",\"tool_use_id\":\"1\"}",
    "\"max_tokens\":9",
];

const ANSWER: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"choices\"",
    "\"index\"",
    "\"message\"",
    "\"delta\"",
    "\"content\"",
    "\"hi\"",
    "\"usage\"",
    "\"prompt_tokens\"",
    "\"completion_tokens\"",
    "-1",
    "1e80",
    "7",
    "\"tool_calls\"",
    "\"function\"",
    "\"arguments\"",
    "null",
    "{\"choices\":[{\"index\":0,\"message\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]",
    "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]",
    "\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}",
    "\"prompt_tokens_details\":{\"cached_tokens\":9}",
    "\"finish_reason\":\"length\"",
    "\"id\":\"\\ud800\"",
];

const EVENTS: &[&str] = &[
    "data: ",
    "data:",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    ": ping",
    "event: error\n",
    "id: 1\n",
    "[DONE]",
    "{\"error\":{\"message\":\"no\"}}",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\n",
    "data: [DONE]\n\n",
    "\u{feff}",
    "ü",
];

const PRICES: &[&str] = &[
    "{",
    "}",
    ":",
    ",",
    "\"gpt-4o\"",
    "\"input_cost_per_token\"",
    "\"output_cost_per_token\"",
    "1e-6",
    "-1",
    "1e400",
    "\"1.5e-7\"",
    "\"litellm_provider\":\"openai\"",
    "\"mode\":\"chat\"",
    "\"input_cost_per_token_above_200k_tokens\"",
    "null",
    "\"sample_spec\"",
    "{\"m\":{\"input_cost_per_token\":1e-6,\"output_cost_per_token\":2e-6}",
    "[models.\"p/m\"]\n",
    "input = \"0.15\"\n",
    "per = \"1k\"\n",
];

const CONFIG: &[&str] = &[
    "[usage]\nenabled = false\n",
    "[providers.echo]\nkind = \"echo\"\n",
    "[providers.up]\nbase_url = \"http://h/v1\"\n",
    "[providers.claude]\nkind = \"anthropic\"\n",
    "[providers.up]\n",
    "[[providers.many.deployments]]\nbase_url = \"http://h/v1\"\n",
    "[[providers.many.deployments]]\n",
    "[[keys]]\nuser = \"ada\"\n",
    "[[keys]]\nuser = \"bob\"\ndepartments = [\"ops\"]\n",
    "[departments.ops]\nday_requests = 5\n",
    "[departments.\"*\"]\nmonth_cost = \"1.5\"\n",
    "[aliases]\n",
    "[tenants.t.aliases]\n",
    "[fallbacks]\n",
    "[quota]\n",
    "[cache]\n",
    "[cache.semantic]\n",
    "[cache.knowledge_bases.b]\ncache = true\n",
    "[prices]\n",
    "[retry]\n",
    "[timeouts]\n",
    "[server]\n",
    "[telemetry]\n",
    "[gone.away]\n",
    "key = \"sk-canary-0123456789-0123456789-0123456789\"\n",
    "api_key = \"sk-canary-0123456789-0123456789-0123456789\"\n",
    "secret = \"sk-canary-0123456789-0123456789-0123456789\"\n",
    "headers = { x = \"sk-canary-0123456789-0123456789-0123456789\" }\n",
    "redis = \"redis://:sk-canary-0123456789-0123456789-0123456789@h:1\"\n",
    "redis = \"redis://h:1,sk-canary-0123456789-0123456789-0123456789\"\n",
    "key = { env = \"SECRET\" }\n",
    "api_key = { env = \"UNSET\" }\n",
    "secret = { env = \"SECRET\" }\n",
    "secret = { file = \"/nowhere\" }\n",
    "api_key = { evn = \"SECRET\" }\n",
    "fast = \"echo/small\"\n",
    "slow = \"fast\"\n",
    "fast = \"slow\"\n",
    "\"gpt-*\" = \"up/gpt\"\n",
    "split = [{ model = \"fast\", weight = 1 }, { model = \"up/x\", weight = 0 }]\n",
    "\"up/x\" = [\"echo/y\", \"up/x\", \"fast\"]\n",
    "store = \"redis\"\n",
    "ttl = \"1h\"\n",
    "ttl = \"1 h\"\n",
    "total = \"1ms\"\n",
    "head = \"9s\"\n",
    "base_url = \"ftp://h\"\n",
    "model = \"m\"\n",
    "prices = { gpt = { input = \"0.15\", output = \"-1\" } }\n",
    "models = [\"gpt\", { name = \"x\" }]\n",
    "identity = \"host\"\n",
    "listen = \"127.0.0.1:1\"\n",
    "max_attempts = 99999999999\n",
    "day_tokens = -1\n",
    "enabled = 1979-05-27\n",
    "\"\u{202e}\\u0000\\n\" = 1\n",
    "a = nan\n",
    "= 1\n",
    "[[",
    "\"\"\"",
    "# ",
];

// ===== what is right, but for a slip =====

/// Bytes of which up to two are another, lost, or stand twice.
fn with_slips(right: impl Strategy<Value = Value>) -> impl Strategy<Value = Vec<u8>> {
    let slip = (any::<prop::sample::Index>(), 0..3, any::<u8>());
    (right, prop::collection::vec(slip, 0..3)).prop_map(|(value, slips)| {
        let mut bytes = value.to_string().into_bytes();
        for (at, kind, byte) in slips {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        bytes
    })
}

/// An object of some of these members, and of a few of any name.
fn object(members: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let members: Vec<_> = members
        .into_iter()
        .map(|(name, value)| prop::option::of(value).prop_map(move |value| Some((name.to_owned(), value?))))
        .collect();
    let strange = prop::collection::vec(("[a-z_\"\\\\é]{1,6}", anything()), 0..2);
    (members, strange)
        .prop_map(|(members, strange)| {
            Value::Object(members.into_iter().flatten().chain(strange).collect::<Map<_, _>>())
        })
        .boxed()
}

fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9_f64).prop_map(Value::from),
        text(),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{0,3}", inner, 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
    .boxed()
}

fn text() -> BoxedStrategy<Value> {
    prop_oneof!["[ -~]{0,12}", ".{0,6}"].prop_map(Value::from).boxed()
}

fn number() -> BoxedStrategy<Value> {
    prop_oneof![0..100_u64, any::<u64>()].prop_map(Value::from).boxed()
}

fn of(values: impl Into<Vec<Value>>) -> BoxedStrategy<Value> {
    prop::sample::select(values.into()).boxed()
}

fn list(of: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop::collection::vec(of, 0..4).prop_map(Value::from).boxed()
}

/// With these members in any case.
fn with(
    required: Vec<(&'static str, BoxedStrategy<Value>)>,
    object: BoxedStrategy<Value>,
) -> BoxedStrategy<Value> {
    let (names, values): (Vec<_>, Vec<_>) = required.into_iter().unzip();
    (object, values)
        .prop_map(move |(mut object, values)| {
            names.iter().zip(values).for_each(|(name, value)| object[*name] = value);
            object
        })
        .boxed()
}

fn request(roles: &[&str], parts: Vec<BoxedStrategy<Value>>, extra: Value) -> BoxedStrategy<Value> {
    let roles = of(roles.iter().copied().map(Value::from).collect::<Vec<_>>());
    let content = prop_oneof![text(), list(prop::strategy::Union::new(parts).boxed())].boxed();
    let message = with(vec![("role", roles), ("content", content)], object(vec![("name", text())]));
    let messages = prop::collection::vec(message, 1..4).prop_map(Value::from).boxed();
    let rest = object(vec![
        ("temperature", (0.0..2.0_f64).prop_map(Value::from).boxed()),
        ("top_p", number()),
        ("stream", any::<bool>().prop_map(Value::from).boxed()),
        ("stop", prop_oneof![text(), list(text())].boxed()),
        ("metadata", object(vec![("user_id", text())])),
        ("tool_choice", of([json!("auto"), json!({ "type": "auto" })])),
    ]);
    let max_tokens = (1..9999_u64).prop_map(Value::from).boxed();
    let required =
        [("model", of([json!("m"), json!("p/m")])), ("messages", messages), ("max_tokens", max_tokens)];
    with(required.into(), rest)
        .prop_map(move |mut request| {
            for (name, value) in extra.as_object().into_iter().flatten() {
                request[name] = value.clone();
            }
            request
        })
        .boxed()
}

fn chat_requests() -> BoxedStrategy<Value> {
    let part = with(vec![("type", of([json!("text")])), ("text", text())], object(vec![]));
    let function = json!([{ "type": "function", "function": { "name": "f", "parameters": { "a": [1e3] } } }]);
    request(&["system", "user", "assistant", "developer"], vec![part], json!({ "tools": function }))
}

fn messages_requests() -> BoxedStrategy<Value> {
    let part =
        with(vec![("type", of([json!("text")])), ("text", text())], object(vec![("cache_control", text())]));
    let tools = json!([{ "name": "f", "input_schema": { "type": "object" } }]);
    request(&["user", "assistant"], vec![part], json!({ "tools": tools, "system": "be kind" }))
}

fn answers() -> BoxedStrategy<Value> {
    let call =
        json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } });
    let message = object(vec![
        ("role", of([json!("assistant")])),
        ("content", prop_oneof![text(), Just(Value::Null)].boxed()),
        ("reasoning_content", text()),
        ("refusal", prop_oneof![text(), Just(Value::Null)].boxed()),
        ("tool_calls", of([json!([]), json!([call])])),
    ]);
    let finish = of([json!("stop"), json!("length"), json!("tool_calls"), json!("odd"), Value::Null]);
    let choice = object(vec![("index", number()), ("message", message), ("finish_reason", finish)]);
    let details = object(vec![("cached_tokens", number()), ("reasoning_tokens", number())]);
    let usage = object(vec![
        ("prompt_tokens", number()),
        ("completion_tokens", number()),
        ("total_tokens", number()),
        ("prompt_tokens_details", details.clone()),
        ("completion_tokens_details", details),
    ]);
    let rest = object(vec![("id", text()), ("model", text()), ("created", number()), ("usage", usage)]);
    with(vec![("choices", list(choice))], rest)
}

fn price_lists() -> BoxedStrategy<Value> {
    let rate = || {
        prop_oneof![
            (0.0..1.0_f64).prop_map(Value::from),
            "[0-9]{0,3}(\\.[0-9]{1,9})?(e-[0-9])?".prop_map(Value::from)
        ]
        .boxed()
    };
    let entry = object(vec![
        ("input_cost_per_token", rate()),
        ("output_cost_per_token", rate()),
        ("cache_read_input_token_cost", rate()),
        ("input_cost_per_token_above_200k_tokens", rate()),
        ("output_cost_per_reasoning_token", rate()),
        ("litellm_provider", of([json!("openai"), json!("anthropic")])),
        ("mode", of([json!("chat"), json!("embedding")])),
    ]);
    prop::collection::hash_map("[a-z]{1,4}(/[a-z]{1,4})?", entry, 0..4)
        .prop_map(|entries| Value::Object(entries.into_iter().collect()))
        .boxed()
}

/// Most of what is nearly right is right: otherwise the laws say nothing of what is accepted.
#[test]
fn what_is_nearly_right_is_often_taken() {
    fn share(made: impl Strategy<Value = Value>, is_taken: impl Fn(Vec<u8>) -> bool) -> usize {
        let mut runner = TestRunner::deterministic();
        let bytes = with_slips(made);
        (0..256).filter(|_| is_taken(bytes.new_tree(&mut runner).unwrap().current())).count()
    }
    let taken = [
        share(chat_requests(), |bytes| LlmRequest::parse(bytes).is_ok()),
        share(chat_requests(), |bytes| ChatBody::parse(bytes).is_ok()),
        share(messages_requests(), |bytes| anthropic::chat_request(bytes, &Default::default()).is_ok()),
        share(answers(), |bytes| Completion::parse(bytes).is_ok()),
        share(price_lists(), |bytes| PriceBook::from_litellm("list", &bytes).is_ok()),
    ];
    assert!(taken.iter().all(|taken| (64..250).contains(taken)), "of 256: {taken:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_chat_request_is_refused_or_survives(bytes in prop_oneof![nearly(REQUEST), with_slips(chat_requests())]) {
        laws::chat_request(&bytes);
    }

    #[test]
    fn a_request_of_anthropics_is_refused_or_becomes_one(bytes in prop_oneof![nearly(REQUEST), with_slips(messages_requests())]) {
        laws::messages_request(&bytes);
    }

    #[test]
    fn an_answer_is_refused_or_can_be_passed_on(bytes in prop_oneof![nearly(ANSWER), with_slips(answers())]) {
        laws::answer(&bytes);
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut(cuts: [u8; 8], text in nearly(EVENTS)) {
        laws::events(&[&cuts[..], &text].concat());
    }

    #[test]
    fn a_configuration_is_refused_for_all_that_is_wrong_or_described_and_shows_no_secret(bytes in nearly(CONFIG)) {
        laws::config(&bytes);
    }

    #[test]
    fn prices_are_refused_or_never_below_zero(bytes in prop_oneof![nearly(PRICES), with_slips(price_lists())]) {
        laws::prices(&bytes);
    }

    #[test]
    fn a_cached_entry_is_what_was_written_or_none(how: u8, rest in prop::collection::vec(any::<u8>(), 0..64)) {
        laws::entry(&[&[how][..], &rest].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_log_of_usage_is_refused_or_passed_on_once(to in 32..=724_usize, rest in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut changed = std::fs::read(corpus("segment").join("two-events")).unwrap();
        prop_assert_eq!(changed.len(), 724, "a head, and two events of which the first ends at 379");
        changed.truncate(to);
        let is_cut = rest.is_empty();
        changed.extend(rest);
        let passed = laws::passed_on(&changed);
        let whole = usize::from(to >= 379) + usize::from(to >= 724);
        prop_assert!(passed == Some(whole) || passed.is_none() && !is_cut, "{:?} of {}", passed, whole);
    }
}
