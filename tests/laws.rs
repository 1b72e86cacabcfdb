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
    let laws: [(&str, Law); 7] = [
        ("chat_request", laws::chat_request),
        ("messages_request", laws::messages_request),
        ("answer", laws::answer),
        ("events", laws::events),
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
