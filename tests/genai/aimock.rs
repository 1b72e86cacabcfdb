//! The same conversation in each dialect that the mock speaks.

use crate::common::*;
use llm_layers::{
    ErrorClass,
    provider::genai::{Dialect, Genai},
    testing::check_leaf,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tower::ServiceExt as _;

const DIALECTS: [Dialect; 5] =
    [Dialect::Anthropic, Dialect::Gemini, Dialect::Vertex, Dialect::Bedrock, Dialect::Ollama];

struct Aimock {
    process: Child,
    url: String,
}

impl Aimock {
    /// `None`, and a line that says so, where it is not installed.
    fn start(test: &str) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let peers = std::env::var_os("LLM_LAYERS_PEERS").map_or_else(|| target.join("peers"), PathBuf::from);
        let binary = peers.join("node/node_modules/.bin/llmock");
        if !binary.exists() {
            let _ =
                writeln!(std::io::stderr(), "SKIPPED {test}: the peers are not installed, run scripts/peers");
            return None;
        }
        let mut command = Command::new(binary);
        command.args(["-p", "0", "-f"]).arg(root.join("tests/peers/aimock"));
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let url = lines.find_map(|line| {
            let line = line.expect("text");
            line.find("http://").map(|at| line[at..].trim().to_owned())
        });
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, url: url.expect("says where it listens") })
    }

    fn leaf(&self, dialect: Dialect) -> Genai {
        let path = match dialect {
            Dialect::Vertex => "/v1/projects/p/locations/l",
            _ => "",
        };
        let leaf = Genai::new(dialect, format!("{}{path}", self.url)).unwrap();
        leaf.with_provider_name("acme").with_api_key("upstream-key").unwrap()
    }
}

impl Drop for Aimock {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn each_dialect_keeps_the_contract_of_a_leaf() {
    let Some(aimock) = Aimock::start("each_dialect_keeps_the_contract_of_a_leaf") else { return };
    for dialect in DIALECTS {
        check_leaf(aimock.leaf(dialect), hello(model(dialect), false)).await;
    }
}

#[tokio::test]
async fn each_dialect_answers_whole_and_streamed_what_clients_demand() {
    let Some(aimock) = Aimock::start("each_dialect_answers_whole_and_streamed_what_clients_demand") else {
        return;
    };
    for dialect in DIALECTS {
        let model = model(dialect);
        let answer = completion(aimock.leaf(dialect).oneshot(hello(model, false)).await.unwrap());
        assert_eq!(answer["object"], "chat.completion", "{dialect:?}");
        assert!(answer["id"].is_string() && answer["created"].is_u64() && answer["model"].is_string());
        let choice = &answer["choices"][0];
        assert_eq!(choice["index"], 0);
        assert_eq!(choice["message"]["role"], "assistant");
        assert_eq!(choice["message"]["content"], "Hello from the other side of the gateway.");
        assert_eq!(choice["finish_reason"], "stop", "{dialect:?}");

        let request = hello(model, true);
        let progress = request.progress.clone();
        let chunks = chunks(aimock.leaf(dialect).oneshot(request).await.unwrap()).await;
        assert!(progress.is_dispatched());
        check_chunks(&chunks);
        let text: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "Hello from the other side of the gateway.", "{dialect:?}");
        assert!(chunks.len() > 4, "in pieces");

        // The mock gives Ollama's clients zeros, which stand for nothing known.
        if dialect != Dialect::Ollama {
            for usage in [&answer["usage"], &chunks.last().unwrap()["usage"]] {
                let expected = json!({ "prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21 });
                assert_eq!(*usage, expected, "{dialect:?}");
            }
        }
    }
}

fn tools() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!([{ "type": "function", "function": { "name": "get_weather", "parameters": parameters } }])
}

#[tokio::test]
async fn each_dialect_calls_tools_and_takes_their_results() {
    let Some(aimock) = Aimock::start("each_dialect_calls_tools_and_takes_their_results") else { return };
    for dialect in DIALECTS {
        let (leaf, model) = (aimock.leaf(dialect), model(dialect));
        let question = json!({ "role": "user", "content": "What is the weather in Paris?" });
        let body = |streaming: bool, messages: Value| json!({ "messages": messages, "tools": tools(), "stream": streaming });

        let answer =
            completion(leaf.clone().oneshot(ask(model, body(false, json!([question])))).await.unwrap());
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{dialect:?}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("get_weather")));
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(arguments, json!({ "city": "Paris", "unit": "celsius" }));

        let chunks =
            chunks(leaf.clone().oneshot(ask(model, body(true, json!([question])))).await.unwrap()).await;
        check_chunks(&chunks);
        let calls = calls(&chunks);
        assert_eq!(calls.len(), 1, "{dialect:?}");
        assert_eq!(calls[0].1, "get_weather");
        assert_eq!(serde_json::from_str::<Value>(&calls[0].2).unwrap(), arguments, "{dialect:?}");
        let finish = chunks.iter().find_map(|c| c["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish, Some("tool_calls"), "{dialect:?}");

        let result = json!({ "role": "tool", "tool_call_id": call["id"], "content": "18 degrees" });
        let messages = json!([question, choice["message"], result]);
        let answer = leaf.oneshot(ask(model, body(false, messages))).await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "It is 18 degrees in Paris.", "{dialect:?}");
    }
}

#[tokio::test]
async fn an_answer_that_reaches_its_bound_says_so_in_each_dialect() {
    let Some(aimock) = Aimock::start("an_answer_that_reaches_its_bound_says_so_in_each_dialect") else {
        return;
    };
    // The mock's Ollama always says that it stopped.
    for dialect in DIALECTS.into_iter().filter(|dialect| *dialect != Dialect::Ollama) {
        let body = |streaming: bool| json!({ "messages": [{ "role": "user", "content": "Count to ten" }], "stream": streaming });
        let ask = async |streaming| {
            aimock.leaf(dialect).oneshot(ask(model(dialect), body(streaming))).await.unwrap()
        };
        assert_eq!(completion(ask(false).await)["choices"][0]["finish_reason"], "length", "{dialect:?}");
        let chunks = chunks(ask(true).await).await;
        let finish = chunks.iter().find_map(|c| c["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish, Some("length"), "{dialect:?}");
    }
}

#[tokio::test]
async fn each_way_to_fail_has_its_class_in_each_dialect() {
    let Some(aimock) = Aimock::start("each_way_to_fail_has_its_class_in_each_dialect") else { return };
    use ErrorClass::*;
    for dialect in DIALECTS {
        for (model, class, status, wait) in [
            ("busy", RateLimited, Some(429), Some(2)),
            ("down", Unavailable, Some(503), None),
            ("broken", Upstream, Some(500), None),
            ("locked", Auth, Some(401), None),
            ("no-such-model", BadRequest, Some(404), None),
            ("too-long", ContextWindow, Some(400), None),
            ("drop", Upstream, Some(500), None),
            ("hang-up", Transport, None, None),
        ] {
            // Vertex knows its models by their names.
            if dialect == Dialect::Vertex {
                continue;
            }
            for streaming in [false, true] {
                let error = refusal(aimock.leaf(dialect), hello(model, streaming)).await;
                let facts = facts(&error);
                let seen = (facts.class, facts.status.map(|status| status.as_u16()));
                assert_eq!(seen, (class, status), "{dialect:?} {model} {streaming}");
                assert_eq!(
                    error.retry_after(),
                    wait.map(Duration::from_secs),
                    "{dialect:?} {model} {streaming}"
                );
                assert!(error.dispatched());
                assert_eq!((&*facts.provider, &*facts.model), ("acme", model));
                let shown = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
                assert!(!shown.contains("upstream-secret") && !shown.contains("upstream-key"), "{shown}");
            }
        }
        if dialect != Dialect::Vertex {
            let error = failure(aimock.leaf(dialect), hello("garbled", false)).await;
            assert_eq!(error.class(), Some(BadFrame), "{dialect:?}");
            let error = failure(aimock.leaf(dialect), hello("garbled", true)).await;
            assert!(matches!(error.class(), Some(BadFrame | Truncated | Transport)), "{dialect:?} {error:?}");
            let error = failure(aimock.leaf(dialect), hello("cut", true)).await;
            assert!(matches!(error.class(), Some(Transport | Truncated)), "{dialect:?} {error:?}");
        }
    }
}
