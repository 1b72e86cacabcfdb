//! What a provider can do wrong.

use faults::{
    Act, Event, Gateway, Script, Upstream, chat, events,
    matrix::{Row, Verdict},
    nowhere, until,
};
use serde_json::json;
use std::{fmt::Write as _, time::Duration};

/// One fault, and what must come of it.
struct Fault {
    /// The model that it befalls.
    name: &'static str,
    event: &'static str,
    script: Script,
    /// What the caller gets, what is recorded, what is charged; nothing may stay reserved.
    expected: [&'static str; 3],
    /// Whether the next model is asked where there is one.
    falls_back: bool,
}

fn fault(
    name: &'static str,
    event: &'static str,
    script: Script,
    expected: [&'static str; 3],
    falls_back: bool,
) -> Fault {
    Fault { name, event, script, expected, falls_back }
}

pub(crate) const LIMITS: &str = r#"
[timeouts]
head = "4s"
first_content = "5s"
idle = "4s"
total = "10s"
[departments."*"]
day_requests = 1000000
day_tokens = 1000000000
[quota]
max_output_tokens = 100
# A busy machine is no fault.
timeout = "5s"
"#;

/// A gateway's file: [`LIMITS`], what is more in its last table and behind it, a provider `up`, and ada, who asks.
pub(crate) fn file(more: &str, upstream: &Upstream) -> String {
    format!(
        r#"
        {LIMITS}
        {more}
        [providers.up]
        base_url = "{}"
        [[keys]]
        key = "ada"
        user = "ada"
        departments = ["ops"]
        "#,
        upstream.url
    )
}

/// A prompt of [`chat`] as it is reserved.
pub(crate) const PROMPT: u64 = 47;

fn head(extra: &str) -> Act {
    Act::Raw(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{extra}\r\n").into_bytes())
}

fn with_usage(usage: &serde_json::Value) -> Act {
    let choices = json!([{ "index": 0, "message": { "content": "Yes." }, "finish_reason": "stop" }]);
    Act::Whole(200, json!({ "choices": choices, "usage": usage }).to_string())
}

const PROMPT_ONLY: &str = "the prompt";
const SAID: &str = "the prompt, and what was said";
const REFUSED: &str = "one request, no tokens";
const REPORTED: &str = "what was reported";

/// The beginning of something compressed.
const fn gzip() -> &'static [u8] {
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xabV\x00\x00"
}

pub(crate) async fn answers() -> Vec<Verdict> {
    let error =
        |code: &str| Act::Whole(400, json!({ "error": { "message": "no", "code": code } }).to_string());
    let status = |status| Act::Whole(status, json!({ "error": { "message": "no" } }).to_string());
    let bad = "502 upstream_error";
    // As bytes, for what HTTP is between.
    let raw = |before: &str, said: &[u8]| Act::Raw([before.as_bytes(), said].concat());
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let good = json!({
        "choices": [{ "index": 0, "message": { "content": "Well." }, "finish_reason": "stop" }],
        "usage": Upstream::usage(),
    });
    let good = good.to_string();
    let sized = |said: &str| format!("{json}content-length: {}\r\n\r\n{said}", said.len());
    let gzip = gzip();
    let faults = vec![
        fault("refuse", "nobody listens", vec![], [bad, "nothing", "nothing"], true),
        fault("close", "it hangs up without a word", vec![Act::Cut], [bad, "1 error", PROMPT_ONLY], true),
        fault("reset", "it resets the connection", vec![Act::Reset], [bad, "1 error", PROMPT_ONLY], true),
        fault(
            "stall",
            "it stalls before the head",
            vec![Act::Stall],
            ["504 timeout", "1 error", PROMPT_ONLY],
            true,
        ),
        fault("500", "it answers 500", vec![status(500)], [bad, "1 error", REFUSED], true),
        fault(
            "429",
            "it answers 429",
            vec![status(429)],
            ["429 rate_limit_exceeded", "1 error", REFUSED],
            true,
        ),
        fault(
            "401",
            "it does not take the gateway's key",
            vec![status(401)],
            [bad, "1 error", REFUSED],
            true,
        ),
        fault(
            "400",
            "it finds the prompt too long",
            vec![error("context_length_exceeded")],
            ["400 context_length_exceeded", "1 error", REFUSED],
            true,
        ),
        fault(
            "no-http",
            "what it says is not HTTP",
            vec![Act::Raw(b"220 mail.example.org ESMTP\r\n".to_vec()), Act::Cut],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "long-head",
            "its head does not end",
            vec![head(&format!("x-long: {}", "a".repeat(1 << 20))), Act::Stall],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "malformed",
            "its answer is no JSON",
            vec![Act::Whole(200, "<html>All is well.</html>".to_owned())],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "half",
            "its answer is cut in the middle",
            vec![head("content-length: 500\r\n"), Act::Raw(b"{\"choices\":[".to_vec()), Act::Cut],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "half-stall",
            "its answer stops in the middle",
            vec![head("content-length: 500\r\n"), Act::Raw(b"{\"choices\":[".to_vec()), Act::Stall],
            ["504 timeout", "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "huge",
            "its answer says that it has a terabyte",
            vec![head("content-length: 1099511627776\r\n"), Act::Raw(vec![b' '; 1 << 16]), Act::Stall],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "bomb",
            "its answer nests a hundred thousand arrays",
            vec![Act::Whole(200, format!("{{\"choices\":{}", "[".repeat(100_000)))],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "early",
            "it says first that it goes on, and what else is to be loaded",
            vec![raw(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
                sized(&good).as_bytes(),
            )],
            ["a whole answer", "1 ok", REPORTED],
            false,
        ),
        fault(
            "old",
            "it speaks HTTP/1.0, and ends by hanging up",
            vec![raw("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n", good.as_bytes()), Act::Cut],
            ["a whole answer", "1 ok", REPORTED],
            false,
        ),
        fault(
            "trailers",
            "its answer has trailers",
            vec![raw(
                &format!("{json}transfer-encoding: chunked\r\ntrailer: x\r\n\r\n{:x};a=b\r\n", good.len()),
                format!("{good}\r\n0\r\nx: 1\r\n\r\n").as_bytes(),
            )],
            ["a whole answer", "1 ok", REPORTED],
            false,
        ),
        fault(
            "longer",
            "it says more than it has announced",
            vec![raw(&sized(&good), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Act::Stall],
            ["a whole answer", "1 ok", REPORTED],
            false,
        ),
        fault(
            "empty",
            "it answers 204",
            vec![raw("HTTP/1.1 204 No Content\r\n\r\n", b"")],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "unchanged",
            "it answers 304",
            vec![raw("HTTP/1.1 304 Not Modified\r\n\r\n", b"")],
            [bad, "1 error", REFUSED],
            true,
        ),
        fault(
            "elsewhere",
            "it answers that it is elsewhere",
            vec![raw(
                "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
                b"",
            )],
            [bad, "1 error", REFUSED],
            true,
        ),
        fault(
            "upgrade",
            "it answers in another protocol",
            vec![
                raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", b"\0\0"),
                Act::Stall,
            ],
            [bad, "1 error", REFUSED],
            true,
        ),
        fault(
            "gzip",
            "its answer is compressed, which nobody asked for",
            vec![raw(
                &format!("{json}content-encoding: gzip\r\ncontent-length: {}\r\n\r\n", gzip.len()),
                gzip,
            )],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "page",
            "its answer is a page",
            vec![raw(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n",
                b"<html></html>",
            )],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "ok-error",
            "it reports an error with 200",
            vec![Act::Whole(200, json!({ "error": { "message": "no", "code": 500 } }).to_string())],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "blank",
            "its answer says nothing",
            vec![Upstream::whole("  \n ")],
            [bad, "1 empty", REPORTED],
            true,
        ),
        fault(
            "no-usage",
            "it does not say what was used",
            vec![with_usage(&json!(null))],
            ["a whole answer", "1 ok, estimated", SAID],
            false,
        ),
        fault(
            "negative",
            "it reports usage below zero",
            vec![with_usage(&json!({ "prompt_tokens": -7, "completion_tokens": -5 }))],
            ["a whole answer", "1 ok, estimated", SAID],
            false,
        ),
        fault(
            "absurd",
            "it reports more tokens than there are atoms",
            vec![with_usage(&json!({ "prompt_tokens": 1e80, "completion_tokens": 1e80 }))],
            ["a whole answer", "1 ok, estimated", SAID],
            false,
        ),
        fault(
            "words",
            "it reports usage in words",
            vec![with_usage(&json!({ "prompt_tokens": "seven", "completion_tokens": [5] }))],
            ["a whole answer", "1 ok, estimated", SAID],
            false,
        ),
    ];
    run("The provider, asked for a whole answer", false, faults).await
}

pub(crate) async fn streams() -> Vec<Verdict> {
    let content = || vec![Act::Head, Act::say("All"), Act::say(" is")];
    let then = |acts: Vec<Act>| [content(), acts].concat();
    let (bad, broken) = ("502 upstream_error", "content, then an event `upstream_error`");
    let silent = "content, then an event `timeout`";
    let event = |text: &str| Act::Event(text.to_owned());
    let stream = |head: &str, said: &str| Act::Raw(format!("{head}\r\n{said}").into_bytes());
    let closed = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n";
    let word = |text: &str| format!("{{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text:?}}}}}]}}");
    let stopped = "{\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}";
    let used = format!("{{\"choices\":[],\"usage\":{}}}", Upstream::usage());
    // However lines end and whatever stands beside the data.
    let dressed = |line: &str| {
        let (first, second) = used.split_at(used.find(',').expect("two members") + 1);
        let lines = [
            "\u{feff}: a comment".to_owned(),
            "retry: 10".to_owned(),
            "id: 1".to_owned(),
            "event: message".to_owned(),
            format!("data:{}", word("All is well.")),
            "".to_owned(),
            "".to_owned(),
            "data".to_owned(),
            "".to_owned(),
            format!("data: {stopped}"),
            "".to_owned(),
            format!("data: {first}"),
            format!("data: {second}"),
            "".to_owned(),
            "data: [DONE]".to_owned(),
            "".to_owned(),
        ];
        lines.iter().fold(String::new(), |all, text| all + text + line)
    };
    let negative = event(r#"{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":-1}}"#);
    let faults = vec![
        fault(
            "s-close",
            "it hangs up after the head",
            vec![Act::Head, Act::Cut],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "s-stall",
            "it stalls before the first content",
            vec![Act::Head, Act::Stall],
            ["504 timeout", "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "s-empty",
            "it ends without content",
            vec![Act::Head, Act::stop(), Act::done(), Act::End],
            [bad, "1 empty, estimated", PROMPT_ONLY],
            true,
        ),
        fault(
            "s-early-error",
            "it reports an error before the first content",
            vec![Act::Head, event(r#"{"error":{"message":"no"}}"#), Act::End],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "s-comments",
            "it sends nothing but comments",
            vec![Act::Head, Act::Comments(Duration::from_millis(100), 600), Act::Stall],
            ["504 timeout", "1 error", PROMPT_ONLY],
            true,
        ),
        fault("s-cut", "it hangs up in the middle", then(vec![Act::Cut]), [broken, "1 error", SAID], false),
        fault("s-reset", "it resets in the middle", then(vec![Act::Reset]), [broken, "1 error", SAID], false),
        fault(
            "s-clean",
            "it ends in the middle, as if that were all",
            then(vec![Act::End]),
            [broken, "1 error", SAID],
            false,
        ),
        fault("s-idle", "it stalls in the middle", then(vec![Act::Stall]), [silent, "1 error", SAID], false),
        fault(
            "s-malformed",
            "an event in the middle is no JSON",
            then(vec![event("{\"choices\":[}"), Act::End]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-bytes",
            "an event in the middle is no text",
            then(vec![Act::Raw(b"9\r\ndata: \xff\n\n\r\n".to_vec()), Act::Stall]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-huge",
            "an event in the middle has nine megabytes",
            then(vec![event(&"x".repeat(9 << 20)), Act::Stall]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-endless",
            "an event in the middle does not end",
            then(vec![Act::Raw(b"fffffff\r\ndata: ".to_vec()), Act::Raw(vec![b'x'; 9 << 20]), Act::Stall]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-error",
            "it reports an error in the middle",
            then(vec![event(r#"{"error":{"message":"no","code":500}}"#), Act::done(), Act::End]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-hours",
            "it goes on for hours, a word at a time",
            vec![
                Act::Head,
                Act::Drip(
                    json!({ "choices": [{ "index": 0, "delta": { "content": "and " } }] }).to_string(),
                    Duration::from_millis(100),
                    600,
                ),
            ],
            [silent, "1 error", SAID],
            false,
        ),
        fault(
            "s-twice",
            "it says everything twice",
            [
                content(),
                content()[1..].to_vec(),
                vec![
                    Act::stop(),
                    Act::stop(),
                    Act::usage(),
                    Act::usage(),
                    Act::done(),
                    Act::done(),
                    Act::End,
                ],
            ]
            .concat(),
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-late",
            "it goes on after its end",
            then(vec![
                Act::stop(),
                Act::usage(),
                Act::done(),
                Act::say(" not"),
                negative.clone(),
                Act::Stall,
            ]),
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-no-usage",
            "its stream does not say what was used",
            then(vec![Act::stop(), Act::done(), Act::End]),
            ["a whole stream", "1 ok, estimated", SAID],
            false,
        ),
        fault(
            "s-negative",
            "its stream reports usage below zero",
            then(vec![Act::stop(), negative, Act::done(), Act::End]),
            ["a whole stream", "1 ok, estimated", SAID],
            false,
        ),
        fault(
            "s-lf",
            "its stream has comments, other fields, and data on several lines",
            vec![stream(closed, &dressed("\n")), Act::Cut],
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-crlf",
            "its lines end as in HTTP",
            vec![stream(closed, &dressed("\r\n")), Act::Cut],
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-cr",
            "its lines end as they did long ago",
            vec![stream(closed, &dressed("\r")), Act::Cut],
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-done-less",
            "it does not say that it is done, but why it stops",
            then(vec![Act::stop(), Act::usage(), Act::End]),
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-unended",
            "its last line does not end",
            vec![
                stream(
                    closed,
                    &format!("data: {}\n\ndata: {stopped}\n\ndata: {used}\n\ndata: [DONE]", word("Well.")),
                ),
                Act::Cut,
            ],
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-plain",
            "its stream is said to be plain text",
            vec![stream(&closed.replace("event-stream", "plain"), &dressed("\n")), Act::Cut],
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
        fault(
            "s-gzip",
            "its stream is compressed, which nobody asked for",
            vec![
                stream(&format!("{closed}content-encoding: gzip\r\n"), ""),
                Act::Raw(gzip().to_vec()),
                Act::Cut,
            ],
            [bad, "1 error", PROMPT_ONLY],
            true,
        ),
        fault(
            "s-error-kept-on",
            "it reports an error in the middle, and goes on",
            then(vec![
                event(r#"{"error":{"message":"no","code":500}}"#),
                Act::say(" well."),
                Act::stop(),
                Act::usage(),
                Act::done(),
                Act::End,
            ]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-named-error",
            "it reports an error by the name of an event",
            then(vec![
                Act::Raw(b"1c\r\nevent: error\ndata: \"overload\"\r\n2\r\n\n\n\r\n".to_vec()),
                Act::End,
            ]),
            [broken, "1 error", SAID],
            false,
        ),
        fault(
            "s-whole",
            "it answers whole",
            vec![Upstream::whole("All is well.")],
            ["a whole stream", "1 ok", REPORTED],
            false,
        ),
    ];
    run("The provider, asked for a stream", true, faults).await
}

async fn run(section: &'static str, is_stream: bool, faults: Vec<Fault>) -> Vec<Verdict> {
    let scripts = faults.iter().flat_map(|fault| {
        [fault.name.to_owned(), format!("{}-with", fault.name)].map(|model| (model, fault.script.clone()))
    });
    let upstream = Upstream::start(scripts).await;
    let mut config = format!(
        "{LIMITS}\n[providers.up]\nbase_url = {:?}\n[providers.refuse]\nbase_url = {:?}\n[providers.spare]\nbase_url = {0:?}\n",
        upstream.url,
        nowhere().await
    );
    config += "[fallbacks]\n";
    for fault in &faults {
        let _ = writeln!(config, "\"{}/{}-with\" = [\"spare/good\"]", provider(fault), fault.name);
    }
    for fault in &faults {
        for name in [fault.name.to_owned(), format!("{}-with", fault.name)] {
            let _ = write!(config, "[[keys]]\nkey = {name:?}\nuser = {name:?}\ndepartments = [{name:?}]\n");
        }
    }
    let gateway = &Gateway::start(&config).await;
    let upstream = &upstream;
    let mut running = tokio::task::JoinSet::new();
    let mut verdicts = Vec::new();
    for (number, fault) in faults.into_iter().enumerate() {
        let case = Case { address: gateway.address.clone(), fault, section, is_stream };
        running.spawn(async move { (number, case.calls().await) });
    }
    while let Some(done) = running.join_next().await {
        let (number, asked) = done.expect("no panic");
        verdicts.push((number, asked.judged(gateway, upstream).await));
    }
    verdicts.sort_by_key(|(number, _)| *number);
    verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

fn provider(fault: &Fault) -> &'static str {
    if fault.name == "refuse" { "refuse" } else { "up" }
}

struct Case {
    address: String,
    fault: Fault,
    section: &'static str,
    is_stream: bool,
}

struct Asked {
    case: Case,
    alone: String,
    with_another: String,
}

impl Case {
    async fn calls(self) -> Asked {
        let ask = async |name: String| {
            let body = chat(&format!("{}/{name}", provider(&self.fault)), self.is_stream);
            let mut client = faults::Client::connect(&self.address).await.expect("it listens");
            client.write(&faults::Client::chat_request(&name, &body)).await.expect("it listens");
            client.reply().await.map_or_else(|error| format!("NOTHING: {error}"), |reply| reply.shown())
        };
        let name = self.fault.name.to_owned();
        let (alone, with_another) = tokio::join!(ask(name.clone()), ask(format!("{name}-with")));
        Asked { case: self, alone, with_another }
    }
}

impl Asked {
    async fn judged(self, gateway: &Gateway, upstream: &Upstream) -> Verdict {
        let Self { case, alone, with_another } = self;
        let Fault { name, event, expected, falls_back, .. } = case.fault;
        let provider = provider(&case.fault);
        // The fault is over.
        let good = if case.is_stream { Upstream::stream(&["Well."]) } else { vec![Upstream::whole("Well.")] };
        upstream.set(name, good);
        let is_settled = gateway.is_settled(name, name, Duration::from_secs(10)).await;
        let standing = gateway.standing(name, name).await;
        let calls = if expected[1] == "nothing" { 0 } else { 1 };
        let recorded = async || {
            let own: Vec<_> = of(gateway, name);
            (own.len() >= calls).then_some(own)
        };
        let own = until(Duration::from_secs(10), recorded).await.unwrap_or_default();
        let reserved = if is_settled { "nothing" } else { "SOMETHING FOR EVER" };
        let row = Row {
            section: case.section,
            event,
            caller: alone,
            recorded: shown(&own),
            charged: charged(standing.settled, &own),
            reserved: reserved.to_owned(),
            recovery: if provider == "refuse" { "–" } else { "3 s" },
        };
        let verdict = row.judge([expected[0], expected[1], expected[2], "nothing"]);

        let whole = if case.is_stream { "a whole stream" } else { "a whole answer" };
        let other = if falls_back { whole } else { expected[0] };
        let (spare, with_name) = (usize::from(falls_back), format!("{name}-with"));
        let both = async || {
            let all = of(gateway, &with_name);
            (all.iter().filter(|event| event.model == "spare/good").count() == spare
                && all.len() == calls + spare)
                .then_some(())
        };
        let is_recorded = until(Duration::from_secs(10), both).await.is_some();
        let since = tokio::time::Instant::now();
        let is_over = match provider {
            "refuse" => true,
            _ => gateway
                .ask(name, &chat(&format!("up/{name}"), case.is_stream))
                .await
                .is_ok_and(|r| r.status == 200),
        };
        let took = since.elapsed();
        let agrees =
            own.iter().all(|event| upstream.log().iter().any(|seen| seen.request_id == event.request_id));
        verdict
            .and(with_another == other, format!("with a fallback: {with_another}, and not: {other}"))
            .and(is_recorded, format!("with a fallback is recorded: {:?}", of(gateway, &with_name)))
            .and(agrees, "the upstream does not know of what is recorded")
            .and(is_over && took < Duration::from_secs(3), format!("the next call: {is_over} after {took:?}"))
    }
}

/// What this user is recorded with.
pub(crate) fn of(gateway: &Gateway, user: &str) -> Vec<Event> {
    let all = events(&gateway.room.join("usage.db"));
    all.into_iter().filter(|event| event.user.as_deref() == Some(user)).collect()
}

/// Records in a few words. What failed is always estimated, so that it is not said.
pub(crate) fn shown(events: &[Event]) -> String {
    let mut words: Vec<(String, usize)> = Vec::new();
    for event in events {
        let is_estimate = event.certainty != "exact" && event.outcome != "error";
        let word = if is_estimate {
            format!("{}, {}", event.outcome, event.certainty)
        } else {
            event.outcome.clone()
        };
        match words.iter_mut().find(|(other, _)| *other == word) {
            Some((_, count)) => *count += 1,
            None => words.push((word, 1)),
        }
    }
    match words.as_slice() {
        [] => "nothing".to_owned(),
        words => {
            words.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(" and ")
        }
    }
}

/// What was charged, in words.
pub(crate) fn charged((requests, tokens): (u64, u64), events: &[Event]) -> String {
    let reported = (Upstream::TOKENS.0 + Upstream::TOKENS.1) as u64;
    let told = match (requests, tokens) {
        (0, 0) => "nothing",
        (1, 0) => REFUSED,
        (0, _) => "TOKENS WITHOUT A CALL",
        (n, tokens) if tokens == n * reported => REPORTED,
        (n, tokens) if tokens == n * PROMPT => PROMPT_ONLY,
        (n, tokens) if tokens > n * PROMPT => SAID,
        _ => return format!("{tokens} TOKENS OF {requests} CALLS"),
    };
    match requests == events.len() as u64 {
        true => told.to_owned(),
        false => format!("{told}, FOR {requests} CALLS"),
    }
}
