//! The laws that fuzzing tries to break, over bytes of chance near what is right, and over what fuzzing has kept.

#[path = "../fuzz/src/laws.rs"]
mod laws;

use proptest::prelude::*;
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_chat_request_is_refused_or_survives(bytes in nearly(REQUEST)) {
        laws::chat_request(&bytes);
    }

    #[test]
    fn a_request_of_anthropics_is_refused_or_becomes_one(bytes in nearly(REQUEST)) {
        laws::messages_request(&bytes);
    }

    #[test]
    fn an_answer_is_refused_or_can_be_passed_on(bytes in nearly(ANSWER)) {
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
    fn prices_are_refused_or_never_below_zero(bytes in nearly(PRICES)) {
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
    fn a_log_of_usage_is_refused_or_passed_on_once(from in 0..300_usize, rest in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut changed = std::fs::read(corpus("segment").join("two-events")).unwrap();
        changed.truncate(from.max(32));
        changed.extend(rest);
        laws::segment(&changed);
    }
}
