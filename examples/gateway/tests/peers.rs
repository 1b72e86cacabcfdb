//! Real clients talk to the real gateway, and the gateway to a real mock upstream. `scripts/peers` installs them;
//! without them these tests say `SKIPPED`, and `scripts/test` then fails.

use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A process that is killed with its owner.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    /// Starts `command` and waits for the address that it says it listens on.
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let url = lines.find_map(|line| {
            let line = line.expect("text");
            line.find("http://").map(|at| line[at..].trim().to_owned())
        });
        // Whoever writes must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url: url.expect("says where it listens") }
    }

    fn aimock(peers: &Path) -> Self {
        let fixtures = root().join("tests/peers/aimock");
        let mut command = Command::new(peers.join("node/node_modules/.bin/llmock"));
        Self::start(command.args(["-p", "0", "-f"]).arg(fixtures))
    }

    fn gateway(config: &str) -> Self {
        let file = tempfile(&format!("{config}\n[usage]\nenabled = false\n"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        Self::start(command.args(["--listen", "127.0.0.1:0", "--config"]).arg(&file))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tempfile(text: &str) -> PathBuf {
    let name = format!("{}-{:016x}.toml", std::process::id(), fastrand::u64(..));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("writes");
    path
}

/// Where the peers are, or a line that says that the test `name` did not run.
fn peers(name: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let peers = std::env::var_os("LLM_LAYERS_PEERS").map_or_else(|| target.join("peers"), PathBuf::from);
    let there =
        ["py/bin/python", "node/node_modules/.bin/llmock"].iter().all(|file| peers.join(file).exists());
    if !there {
        // Not by `println!`, which is shown of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: the peers are not installed, run scripts/peers");
    }
    there.then_some(peers)
}

fn config(aimock: &Server, rest: &str) -> String {
    let url = &aimock.url;
    format!(
        r#"
        [[keys]]
        key = "peer-key"
        user = "ada"
        [providers.aimock]
        kind = "openai"
        base_url = "{url}/v1"
        api_key = "upstream-key"
        models = ["gpt-4o-mini", "cut", "busy", "busy-once"]
        [providers.echo]
        kind = "echo"
        models = ["echo"]
        {rest}
        "#
    )
}

// ===== the SDKs =====

const CASES: [&str; 8] =
    ["whole", "streamed", "tools", "midstream", "rate_limited", "request_id", "errors", "models"];

fn converse(peers: &Path, url: &str, client: &Path, script: &str, case: &str) {
    let mut command = Command::new(client);
    // "cached whole" is the case "whole" of a gateway with a cache.
    let case = case.strip_prefix("cached ").map_or(case, |case| {
        command.env("PEER_CACHED", "yes");
        case
    });
    command.arg(root().join("tests/peers").join(script)).arg(url).arg(case);
    let output = command.env("LLM_LAYERS_PEERS", peers).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} {case}: {said}{}", String::from_utf8_lossy(&output.stdout));
    assert!(!output.stdout.is_empty(), "{script} {case} says what it has seen");
}

#[test]
fn the_openai_sdk_for_python_talks_to_the_gateway() {
    let Some(peers) = peers("the_openai_sdk_for_python_talks_to_the_gateway") else { return };
    let aimock = Server::aimock(&peers);
    let gateway = Server::gateway(&config(&aimock, ""));
    for case in CASES {
        converse(
            &peers,
            &format!("{}/v1", gateway.url),
            &peers.join("py/bin/python"),
            "openai_client.py",
            case,
        );
    }
}

/// Twice: the second time, what can be is answered from the cache, and no client can tell.
#[test]
fn the_openai_sdk_cannot_tell_a_cached_answer_but_by_its_headers() {
    let Some(peers) = peers("the_openai_sdk_cannot_tell_a_cached_answer_but_by_its_headers") else { return };
    let aimock = Server::aimock(&peers);
    let gateway = Server::gateway(&config(&aimock, "[cache]\nenabled = true\ntool_calls = true\n"));
    let again = ["whole", "streamed", "tools", "whole", "streamed", "tools", "midstream", "errors"];
    for case in std::iter::once("cached".to_owned()).chain(again.map(|case| format!("cached {case}"))) {
        let url = format!("{}/v1", gateway.url);
        converse(&peers, &url, &peers.join("py/bin/python"), "openai_client.py", &case);
    }
}

#[test]
fn the_openai_sdk_for_node_talks_to_the_gateway() {
    let Some(peers) = peers("the_openai_sdk_for_node_talks_to_the_gateway") else { return };
    let aimock = Server::aimock(&peers);
    let gateway = Server::gateway(&config(&aimock, ""));
    for case in CASES {
        converse(&peers, &format!("{}/v1", gateway.url), Path::new("node"), "openai_client.mjs", case);
    }
}

#[test]
fn the_anthropic_sdk_for_python_talks_to_the_gateway() {
    let Some(peers) = peers("the_anthropic_sdk_for_python_talks_to_the_gateway") else { return };
    let aimock = Server::aimock(&peers);
    let gateway = Server::gateway(&config(&aimock, ""));
    for case in ["whole", "streamed", "tools", "midstream", "rate_limited", "request_id", "errors"] {
        converse(&peers, &gateway.url, &peers.join("py/bin/python"), "anthropic_client.py", case);
    }
}

// ===== an upstream that fails =====

async fn ask(gateway: &Server, model: &str, streaming: bool) -> (u16, String) {
    let body = json!({
        "model": model,
        "stream": streaming,
        "messages": [{ "role": "user", "content": "Say hello to the echo" }],
    });
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.url));
    let answer = request.bearer_auth("peer-key").json(&body).send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a body"))
}

/// The text of an answer, whole or streamed.
fn text(body: &str) -> String {
    if let Ok(whole) = serde_json::from_str::<Value>(body) {
        return whole["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    }
    assert!(body.trim_end().ends_with("data: [DONE]"), "a stream that ends: {body}");
    let events =
        body.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    events.filter_map(|e| Some(e["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn whatever_aimock_does_wrong_the_answer_is_the_fallbacks() {
    let Some(peers) = peers("whatever_aimock_does_wrong_the_answer_is_the_fallbacks") else { return };
    let aimock = Server::aimock(&peers);
    let wrong = [
        "down",
        "broken",
        "busy",
        "locked",
        "no-such-model",
        "too-long",
        "drop",
        "garbled",
        "hang-up",
        "cut-early",
        "empty",
        "blank",
        "mute",
        "silent",
    ];
    let chains: String =
        wrong.iter().map(|model| format!("\"aimock/{model}\" = [\"echo/echo\"]\n")).collect();
    let rest = format!("[timeouts]\nhead = \"2s\"\nfirst_content = \"2s\"\n[fallbacks]\n{chains}");
    let gateway = Server::gateway(&config(&aimock, &rest));
    for model in wrong {
        for streaming in [false, true] {
            // Not streamed these come out complete.
            if !streaming && matches!(model, "cut-early" | "mute") {
                continue;
            }
            let (status, body) = ask(&gateway, &format!("aimock/{model}"), streaming).await;
            assert_eq!(
                (status, &*text(&body)),
                (200, "Say hello to the echo"),
                "{model}, streaming {streaming}"
            );
            assert!(!body.contains("upstream-secret"), "{model}");
        }
    }
}

#[tokio::test]
async fn under_chaos_every_answer_is_aimocks_or_the_fallbacks() {
    let Some(peers) = peers("under_chaos_every_answer_is_aimocks_or_the_fallbacks") else { return };
    let aimock = Server::aimock(&peers);
    let rest = "[fallbacks]\n\"aimock/gpt-4o-mini\" = [\"echo/echo\"]\n";
    let gateway = Server::gateway(&config(&aimock, rest));
    let chaos = json!({ "dropRate": 0.2, "malformedRate": 0.2, "rateLimitRate": 0.2, "disconnectRate": 0.2 });
    let chaos = reqwest::Client::new().post(format!("{}/__aimock/chaos", aimock.url)).json(&chaos);
    assert!(chaos.bearer_auth("upstream-key").send().await.expect("chaos").status().is_success());

    let (mut own, mut fallback) = (0, 0);
    for at in 0..100 {
        let (status, body) = ask(&gateway, "aimock/gpt-4o-mini", at % 2 == 0).await;
        assert_eq!(status, 200, "{body}");
        match &*text(&body) {
            "Hello from the other side of the gateway." => own += 1,
            "Say hello to the echo" => fallback += 1,
            other => panic!("nobody's answer: {other}"),
        }
    }
    assert!(own > 0 && fallback > 0, "{own} answers of aimock, {fallback} of the fallback");
}
