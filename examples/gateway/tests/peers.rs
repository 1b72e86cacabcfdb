//! Real clients talk to the real gateway, and the gateway to a real mock upstream. `scripts/peers` installs them;
//! without them these tests say `SKIPPED`, and `scripts/test` then fails.

mod common;
#[path = "../../../tests/support/redis.rs"]
mod redis_server;

use redis_server::RedisServer;
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
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
    let there = ["py/bin/python", "instructor/bin/python", "node/node_modules/.bin/llmock"]
        .iter()
        .all(|file| peers.join(file).exists());
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
        departments = ["all"]
        [[keys]]
        key = "blocked-key"
        user = "bob"
        departments = ["blocked"]
        [[keys]]
        key = "spent-key"
        user = "eve"
        departments = ["spent"]
        [departments.all]
        day_requests = 100000
        [departments.blocked]
        models = ["aimock/another"]
        [departments.spent]
        day_requests = 1
        [providers.aimock]
        kind = "openai"
        base_url = "{url}/v1"
        api_key = "upstream-key"
        models = ["gpt-4o-mini", "cut", "busy", "busy-once"]
        [providers.quiet]
        base_url = "{url}/v1"
        api_key = "upstream-key"
        timeouts.head = "1s"
        [providers.echo]
        kind = "echo"
        models = ["echo"]
        {rest}
        "#
    )
}

/// Counters of this gateway alone.
const ALONE: &str = "[quota]\nstore = \"memory\"\n[server]\nmax_body_bytes = 1_000_000\n";

// ===== the SDKs =====

const CASES: [&str; 12] = [
    "whole",
    "streamed",
    "tools",
    "structured",
    "midstream",
    "rate_limited",
    "errors",
    "denied",
    "quota",
    "upstream",
    "timeout",
    "store_down",
];

/// What SDKs are told by a status and a code of its own.
const REFUSALS: [&str; 4] = ["overloaded", "too_long", "too_large", "empty"];

/// Runs all cases in one process of a client, which says what each has seen.
fn converse(client: &mut Command, script: &str, arguments: &[&str]) {
    let output = client.arg(root().join("tests/peers").join(script)).args(arguments).output().expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {err}\n{out}");
    let said = out.lines().filter(|line| line.contains(": ")).count();
    assert_eq!(said, arguments.len() - 1, "{script}: a line for each case: {out}");
}

fn python(peers: &Path) -> Command {
    Command::new(peers.join("py/bin/python"))
}

/// In an environment of its own: it wants an older SDK.
fn instructor(peers: &Path) -> Command {
    Command::new(peers.join("instructor/bin/python"))
}

fn node(peers: &Path) -> Command {
    let mut node = Command::new("node");
    node.env("LLM_LAYERS_PEERS", peers);
    node
}

/// A gateway whose one place is taken as long as the call is kept that has it.
fn full(aimock: &Server) -> (Server, [TcpStream; 2]) {
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = deaf.local_addr().expect("an address");
    let gateway = Server::gateway(&config(
        aimock,
        &format!(
            "[quota]\nstore = \"memory\"\n[server]\nmax_in_flight = 1\nmax_waiting = 0\n\
             [providers.deaf]\nbase_url = \"http://{address}/v1\"\ntimeouts.head = \"10m\"\n"
        ),
    ));
    let mut caller =
        TcpStream::connect(gateway.url.strip_prefix("http://").expect("plain HTTP")).expect("listens");
    let body = common::asking("deaf/m");
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer peer-key\r\ncontent-type: application/json\r\n",
        common::CHAT
    );
    write!(caller, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("writes");
    let (call, _) = deaf.accept().expect("a call");
    (gateway, [caller, call])
}

/// A client passes `CASES`, and more, of a gateway of its own, of one whose store of quotas is down, and of one that has no place left.
fn passes(test: &str, script: &str, client: fn(&Path) -> Command, path: &str, more: &[&str]) {
    let Some(peers) = peers(test) else { return };
    let Some(mut redis) = RedisServer::start(test) else { return };
    let aimock = Server::aimock(&peers);
    let gateway = Server::gateway(&config(&aimock, ALONE));
    let shared = format!("[quota]\nstore = \"redis\"\nredis = {:?}\n", redis.url());
    let orphan = Server::gateway(&config(&aimock, &shared));
    redis.kill();
    let (full, _call) = full(&aimock);
    let url = format!("{}{path}", gateway.url);
    let arguments: Vec<&str> = std::iter::once(&*url).chain(CASES).chain(more.iter().copied()).collect();
    let mut client = client(&peers);
    client.env("PEER_ORPHAN_URL", &orphan.url).env("PEER_FULL_URL", &full.url);
    converse(&mut client, script, &arguments);
}

#[test]
fn the_openai_sdk_for_python_talks_to_the_gateway() {
    let test = "the_openai_sdk_for_python_talks_to_the_gateway";
    passes(test, "openai_client.py", python, "/v1", &[&REFUSALS[..], &["request_id", "models"]].concat());
}

#[test]
fn the_openai_sdk_for_node_talks_to_the_gateway() {
    let test = "the_openai_sdk_for_node_talks_to_the_gateway";
    passes(test, "openai_client.mjs", node, "/v1", &[&REFUSALS[..], &["request_id", "models"]].concat());
}

#[test]
fn the_anthropic_sdk_for_python_talks_to_the_gateway() {
    let test = "the_anthropic_sdk_for_python_talks_to_the_gateway";
    let more = ["request_id", "models", "counted", "elsewhere"];
    passes(test, "anthropic_client.py", python, "", &[&REFUSALS[..], &more].concat());
}

#[test]
fn langchain_talks_to_the_gateway() {
    passes("langchain_talks_to_the_gateway", "langchain_client.py", python, "/v1", &REFUSALS);
}

#[test]
fn instructor_talks_to_the_gateway() {
    let Some(peers) = peers("instructor_talks_to_the_gateway") else { return };
    let aimock = Server::aimock(&peers);
    let gateway = Server::gateway(&config(&aimock, ALONE));
    let arguments = [&*format!("{}/v1", gateway.url), "structured", "tools", "errors", "quota"];
    converse(&mut instructor(&peers), "instructor_client.py", &arguments);
}

#[test]
fn pydantic_ai_talks_to_the_gateway() {
    passes("pydantic_ai_talks_to_the_gateway", "pydantic_ai_client.py", python, "/v1", &[]);
}

#[test]
fn the_ai_sdk_talks_to_the_gateway() {
    passes("the_ai_sdk_talks_to_the_gateway", "ai_sdk_client.mjs", node, "/v1", &[]);
}

/// Twice: the second time, what can be is answered from the cache, and no client can tell.
#[test]
fn the_openai_sdk_cannot_tell_a_cached_answer_but_by_its_headers() {
    let Some(peers) = peers("the_openai_sdk_cannot_tell_a_cached_answer_but_by_its_headers") else { return };
    let aimock = Server::aimock(&peers);
    let rest = "[quota]\nstore = \"memory\"\n[cache]\nenabled = true\ntool_calls = true\n";
    let gateway = Server::gateway(&config(&aimock, rest));
    let url = format!("{}/v1", gateway.url);
    let twice = ["whole", "streamed", "tools", "structured"];
    let cases = [&["cached"][..], &twice, &twice, &["midstream", "errors"]].concat();
    let arguments: Vec<&str> = std::iter::once(&*url).chain(cases).collect();
    converse(python(&peers).env("PEER_CACHED", "yes"), "openai_client.py", &arguments);
}

/// Behind the gateway each provider has its own dialect; in front of it none can be told from another.
#[test]
fn the_sdks_talk_to_providers_in_their_own_dialects() {
    let Some(peers) = peers("the_sdks_talk_to_providers_in_their_own_dialects") else { return };
    let aimock = Server::aimock(&peers);
    let url = &aimock.url;
    let all = [
        ("anthropic", url.clone(), "claude-sonnet-4-5"),
        ("gemini", url.clone(), "gemini-2.5-flash"),
        ("vertex", format!("{url}/v1/projects/p/locations/l"), "gemini-2.5-flash"),
        ("bedrock", url.clone(), "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ];
    let mut config = String::from("[[keys]]\nkey = \"peer-key\"\nuser = \"ada\"\n");
    for (kind, url, model) in &all {
        config += &format!(
            "[providers.{kind}]\nkind = \"{kind}\"\nbase_url = \"{url}\"\napi_key = \"upstream-key\"\nmodels = [\"{model}\"]\n"
        );
    }
    let gateway = Server::gateway(&config);
    for (kind, _, model) in &all {
        for (script, url) in [
            ("openai_client.py", format!("{}/v1", gateway.url)),
            ("anthropic_client.py", gateway.url.clone()),
        ] {
            for case in ["whole", "streamed", "tools"] {
                let mut command = Command::new(peers.join("py/bin/python"));
                command.arg(root().join("tests/peers").join(script)).args([&url, case]);
                command.env("PEER_MODEL", format!("{kind}/{model}")).env("LLM_LAYERS_PEERS", &peers);
                if model.starts_with("gemini") {
                    command.env("PEER_WHOLE_CALLS", "yes");
                }
                if *kind != "anthropic" {
                    command.env("PEER_NO_SERIAL_CALLS", "yes");
                }
                let output = command.output().expect("runs");
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{kind} {script} {case}: {said}");
            }
        }
    }
}

// ===== an upstream that fails =====

async fn post(server: &Server, path: &str, key: &str, body: &Value) -> (u16, String) {
    let bearer = format!("Bearer {key}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let address = server.url.strip_prefix("http://").expect("plain HTTP");
    let mut client = common::Client::connect(address).await;
    client.ask("POST", path, &headers, body.to_string().as_bytes()).await;
    let reply = client.reply().await;
    (reply.status, reply.body)
}

async fn ask(gateway: &Server, model: &str, streaming: bool) -> (u16, String) {
    let body = json!({
        "model": model,
        "stream": streaming,
        "messages": [{ "role": "user", "content": "Say hello to the echo" }],
    });
    post(gateway, common::CHAT, "peer-key", &body).await
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
    let rest = format!(
        "[quota]\nstore = \"memory\"\n[timeouts]\nhead = \"2s\"\nfirst_content = \"2s\"\n[fallbacks]\n{chains}"
    );
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
    let rest = "[quota]\nstore = \"memory\"\n[fallbacks]\n\"aimock/gpt-4o-mini\" = [\"echo/echo\"]\n";
    let gateway = Server::gateway(&config(&aimock, rest));
    let chaos = json!({ "dropRate": 0.2, "malformedRate": 0.2, "rateLimitRate": 0.2, "disconnectRate": 0.2 });
    assert_eq!(post(&aimock, "/__aimock/chaos", "upstream-key", &chaos).await.0, 200);

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
