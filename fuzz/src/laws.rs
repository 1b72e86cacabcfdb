//! What holds of any bytes, wherever they come from. Each law is a fuzz target in `fuzz/fuzz_targets`, and a test of
//! `tests/laws.rs`, which also goes through what fuzzing has found worth keeping.
#![allow(missing_docs, unreachable_pub, reason = "included by two crates, and public in neither")]

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http_body::{Body, Frame};
use llm_layers::{
    BodyLimits, BoxError, ChatBody, Completion, Error, ErrorKind, InvalidReason, LlmRequest, LlmResponse,
    RequestContext, ResponseBody, StreamChunk, TokenUsage,
    cache::{ByteStore, CacheKey, CacheLayer, CachePolicy, CacheSecret, CacheStore as _, Fetch, SealedStore},
    config::{Config, ConfigError},
    http::{FillIn, anthropic, into_chunks},
    price::{PriceBook, ServiceTier},
    provider::{Echo, openai::OpenAiCompatible},
    stack::StackBuilder,
    usage::{Durability, LogPosition, Outbox, OutboxOptions, UsageEvent, UsageStore},
};
use serde::de::IgnoredAny;
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::VecDeque,
    convert::Infallible,
    fmt::Debug,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// A chat request is refused by name, or it is one JSON object whose members all survive.
pub fn chat_request(bytes: &[u8]) {
    let body = match ChatBody::parse(bytes.to_vec()) {
        Ok(body) => body,
        Err(error) => {
            refused(&error, bytes);
            return not_an_object(&error, bytes);
        }
    };
    let told = json(bytes);
    let names: Vec<_> = body.names().collect();
    if let Some(told) = &told {
        assert_eq!(
            names.len(),
            told.as_object().expect("an object").len(),
            "no member is lost or stands twice"
        );
    }
    let _ = (
        body.temperature(),
        body.max_output_tokens(),
        body.n(),
        body.is_streaming(),
        body.wants_stream_usage(),
    );
    let _ = (body.model(), body.attached(), body.input_bytes(), body.response_format());
    for message in body.messages() {
        let _ = (message.role(), message.text());
    }
    body.tools().for_each(|tool| _ = json(tool));
    let sent = json(&body.to_json("p/m"));
    if let Some(mut told) = told {
        told["model"] = "p/m".into();
        assert_eq!(sent, Some(told), "only the model is another one");
    }
    match LlmRequest::parse(bytes.to_vec()) {
        Ok(request) => assert_eq!(Some(request.model), body.model()),
        Err(error) => refused(&error, bytes),
    }
}

/// What must be JSON; `None` where numbers or escapes in it are beyond what `Value` holds: `1e807`, or half of a surrogate pair,
/// as texts have that were cut by clients in JavaScript. Both are JSON by its grammar, and passed on.
fn json(bytes: &[u8]) -> Option<Value> {
    let _: IgnoredAny = serde_json::from_slice(bytes).expect("JSON");
    let value = serde_json::from_slice(bytes);
    if let Err(error) = &value {
        let why = error.to_string();
        assert!(why.starts_with("number out of range") || why.contains("hex escape"), "{why}");
    }
    value.ok()
}

/// What is said to be no object is none for serde either.
fn not_an_object(error: &Error, bytes: &[u8]) {
    if let ErrorKind::InvalidRequest {
        reason: InvalidReason::Mistyped { expected: "a JSON object" }, ..
    } = error.kind()
    {
        assert!(!serde_json::from_slice::<Value>(bytes).is_ok_and(|value| value.is_object()), "{error}");
    }
}

/// A request of Anthropic's dialect is refused by name, or becomes a chat request.
pub fn messages_request(bytes: &[u8]) {
    match anthropic::chat_request(bytes.to_vec(), &BodyLimits::default()) {
        Ok(request) => {
            let sent = request.body.to_json("p/m");
            LlmRequest::parse(sent).expect("what it becomes is a chat request");
        }
        Err(error) => refused(&error, bytes),
    }
}

/// Refusals are the caller's fault, fit on a screen, and stay on one line of a log.
fn refused(error: &Error, bytes: &[u8]) {
    assert!(llm_layers::http::status(error).is_client_error(), "{error}");
    let shown = error.to_string();
    assert!(shown.len() < 400, "{} bytes for {}: {shown}", shown.len(), bytes.len());
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    serde_json::from_slice::<Value>(&llm_layers::http::error_body(error)).expect("JSON");
}

/// A whole answer of a provider is refused, or can be passed on in every form.
pub fn answer(bytes: &[u8]) {
    if let Ok(completion) = Completion::parse(bytes.to_vec()) {
        assert_eq!(completion.data(), bytes, "an answer keeps its bytes");
        let _ = (completion.id(), completion.model(), completion.has_content(), completion.finish_reasons());
        let _ = completion.content();
        completion.usage().into_iter().for_each(believable);
        let filled = FillIn::new("p/m").completion(&completion);
        json(&filled);
        json(&anthropic::message(&completion, "p/m"));
        // The terminal chunk has no JSON.
        for chunk in into_chunks(&completion).iter().filter(|chunk| !chunk.is_final()) {
            json(&FillIn::new("p/m").chunk(chunk));
        }
    }
    if let Ok(chunk) = StreamChunk::parse(bytes.to_vec()) {
        let _ = (chunk.id(), chunk.model(), chunk.content(), chunk.is_usage_only(), chunk.finish_reasons());
        chunk.usage().into_iter().for_each(believable);
        json(&FillIn::new("p/m").chunk(&chunk));
        let (mut events, mut out) = (anthropic::MessageEvents::new("p/m"), BytesMut::new());
        events.write(&chunk, &mut out);
        events.write(&StreamChunk::end(), &mut out);
        assert!(std::str::from_utf8(&out).is_ok());
    }
}

/// Parts are no more than their whole, and nothing is beyond what one call can use.
fn believable(usage: &TokenUsage) {
    let TokenUsage { input_tokens, output_tokens, cache_read_tokens, reasoning_tokens, .. } = *usage;
    for (part, whole) in [(cache_read_tokens, input_tokens), (reasoning_tokens, output_tokens)] {
        if let (Some(part), Some(whole)) = (part, whole) {
            assert!(part <= whole, "{usage:?}");
        }
    }
    assert!(input_tokens.max(output_tokens).unwrap_or(0) <= 1 << 32, "{usage:?}");
}

/// A stream is the same however the network cuts it, ends once, and never looks whole without its end.
///
/// The first bytes say where it is cut.
pub fn events(bytes: &[u8]) {
    let (cuts, text) = bytes.split_at(bytes.len().min(8));
    let whole = read(vec![Bytes::copy_from_slice(text)]);
    let mut pieces = Vec::new();
    let mut rest = text;
    for step in cuts.iter().cycle().take(text.len()) {
        let (piece, behind) = rest.split_at(rest.len().min(1 + usize::from(*step % 13)));
        if piece.is_empty() {
            break;
        }
        pieces.push(Bytes::copy_from_slice(piece));
        rest = behind;
    }
    pieces.push(Bytes::copy_from_slice(rest));
    assert_eq!(read(pieces), whole, "it depends on where it is cut");
}

fn facts(chunk: &StreamChunk) -> impl PartialEq + Debug {
    let names = [chunk.id(), chunk.model()].map(|name| name.map(Cow::into_owned));
    (
        names,
        chunk.has_content(),
        chunk.finish_reasons().to_vec(),
        chunk.usage().copied(),
        chunk.is_usage_only(),
    )
}

/// What a leaf makes of a stream of these pieces: the data of its chunks, and how it ended.
fn read(pieces: Vec<Bytes>) -> (Vec<Bytes>, Result<(), String>) {
    let http = service_fn(move |_: http::Request<_>| {
        let mut answer = http::Response::new(Pieces(pieces.clone().into()));
        let kind = http::HeaderValue::from_static("text/event-stream");
        answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let leaf = OpenAiCompatible::new(http, "https://llm.example/v1").expect("a URL");
    let body = ChatBody::builder().user("Hi").streaming().build().expect("a body");
    let answer = leaf.oneshot(LlmRequest::new("m", body)).now_or_never().expect("nothing is waited for");
    let mut data = Vec::new();
    let mut stream = match answer {
        Ok(LlmResponse { body: ResponseBody::Stream(stream), .. }) => stream,
        Ok(_) => panic!("a stream was sent"),
        Err(error) => return (data, Err(error.to_string())),
    };
    loop {
        match stream.next().now_or_never().expect("nothing is waited for") {
            Some(Ok(chunk)) if chunk.is_final() => {
                assert!(
                    stream.next().now_or_never().expect("it is over").is_none(),
                    "nothing follows the end"
                );
                return (data, Ok(()));
            }
            Some(Ok(chunk)) => {
                let alone = StreamChunk::parse(chunk.data().clone()).expect("it was read");
                assert_eq!(facts(&chunk), facts(&alone), "it tells something by the chunk before it");
                data.push(chunk.data().clone());
            }
            Some(Err(error)) => {
                assert!(
                    stream.next().now_or_never().expect("it is over").is_none(),
                    "nothing follows an error"
                );
                return (data, Err(error.to_string()));
            }
            None => panic!("it closed without an end and without an error"),
        }
    }
}

#[derive(Clone)]
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

/// A price list is refused, or what it lists has prices that are never below zero.
pub fn prices(bytes: &[u8]) {
    let books = [
        PriceBook::from_litellm("list", bytes).ok(),
        std::str::from_utf8(bytes).ok().and_then(|text| PriceBook::from_toml("own", text).ok()),
    ];
    for book in books.into_iter().flatten() {
        for problem in book.skipped() {
            assert!(!problem.to_string().is_empty());
        }
        for entry in book.entries() {
            let Some(quote) = book.quote(entry) else { continue };
            for usage in
                [TokenUsage::new(0, 0), TokenUsage::new(1000, 10), TokenUsage::new(u64::MAX, u64::MAX)]
            {
                if let Ok(cost) = quote.cost(ServiceTier::default(), &usage) {
                    assert!(cost.nanos() >= 0, "{entry}: {cost:?}");
                }
            }
        }
    }
}

/// What stands for a secret. Long enough for each of them, and like nothing else.
pub const CANARY: &str = "sk-canary-0123456789-0123456789-0123456789";

/// A configuration is refused with all that is wrong with it, or it can be described; and no secret is in any of that.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let env = |name: &str| name.starts_with('S').then(|| CANARY.to_owned());
    let (document, syntax) = toml::de::DeTable::parse_recoverable(text);
    // A secret in the wrong place is a value as any other; a comment is nobody's.
    let is_secret = text.matches(CANARY).count() == secrets(&document);
    let (problems, shown) = match Config::parse_with(text, &env) {
        Ok(config) => {
            let described = StackBuilder::new(config.clone()).with_env(env).describe();
            let described = described.unwrap_or_else(|error| panic!("it was right: {error}"));
            let warnings = described.warnings().iter().map(ToString::to_string).collect();
            let mut shown: Vec<String> = warnings;
            shown.extend(config.aliases.keys().map(|name| described.explain(name).unwrap_or_default()));
            shown.extend([format!("{config:?}"), format!("{described:?}"), described.to_string()]);
            (Vec::new(), shown)
        }
        Err(error) => (told(&error), vec![error.to_string(), format!("{error:?}")]),
    };
    if is_secret {
        assert!(shown.iter().all(|text| !text.contains(CANARY)), "a secret is shown: {shown:?}");
    }
    let another = format!("zzz = 1\n{}", text.trim_start_matches('\u{feff}'));
    let more = match Config::parse_with(&another, &env) {
        Ok(_) => panic!("an entry that is unknown is taken"),
        Err(error) => told(&error),
    };
    if syntax.is_empty() && !document.get_ref().contains_key("zzz") {
        assert_eq!(more.len(), problems.len() + 1, "one problem hides others: {problems:?} {more:?}");
        assert!(problems.iter().all(|problem| more.contains(problem)), "{problems:?} {more:?}");
    }
}

/// Each problem, a line each.
fn told(error: &ConfigError) -> Vec<(String, String)> {
    assert!(!error.problems().is_empty(), "refused, and nobody knows why");
    for problem in error.problems() {
        let line = problem.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!problem.what.is_empty());
    }
    error.problems().iter().map(|problem| (problem.entry.clone(), problem.what.clone())).collect()
}

/// How often the canary stands where a secret does.
fn secrets(document: &toml::Spanned<toml::de::DeTable<'_>>) -> usize {
    fn count(name: &str, within: &str, value: &toml::de::DeValue<'_>) -> usize {
        use toml::de::DeValue::{Array, String, Table};
        match value {
            String(text) => {
                // Among aliases any name is one.
                let is_field = within != "aliases" && matches!(name, "key" | "api_key" | "redis" | "secret");
                let is_secret = is_field || within == "headers";
                if is_secret { text.matches(CANARY).count() } else { 0 }
            }
            Array(values) => values.iter().map(|value| count("", name, value.get_ref())).sum(),
            Table(table) => {
                table.iter().map(|(field, value)| count(field.get_ref(), name, value.get_ref())).sum()
            }
            _ => 0,
        }
    }
    let table = document.get_ref();
    table.iter().map(|(name, value)| count(name.get_ref(), "", value.get_ref())).sum()
}

/// A file in the log of usage is refused by name and left alone, or what is whole in it is passed on once.
pub fn segment(bytes: &[u8]) {
    let _ = passed_on(bytes);
}

/// How many events of such a log are passed on; `None` if it is refused.
pub fn passed_on(bytes: &[u8]) -> Option<usize> {
    let directory = Scratch::new();
    let file = directory.0.join("00000000000000000001.log");
    std::fs::write(&file, bytes).expect("a file");
    let passed = Passed::default();
    let options = OutboxOptions::default();
    let Ok((sink, worker)) = Outbox::start(&directory.0, Durability::Memory, passed.clone(), options) else {
        assert_eq!(std::fs::read(&file).expect("it is there"), bytes, "what is refused is left alone");
        return None;
    };
    drop(sink);
    let report = block_on(worker.shutdown(Duration::from_secs(10)));
    assert_eq!(report.log.events, 0, "{report:?}");
    let once = passed.0.lock().unwrap().len();
    let (sink, worker) = Outbox::start(&directory.0, Durability::Memory, passed.clone(), options)
        .expect("it was opened before");
    drop(sink);
    block_on(worker.shutdown(Duration::from_secs(10)));
    assert_eq!(passed.0.lock().unwrap().len(), once, "passed on again");
    Some(once)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(future)
}

#[derive(Clone, Default)]
struct Passed(Arc<Mutex<Vec<UsageEvent>>>);

impl UsageStore for Passed {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.0.lock().unwrap().extend_from_slice(group);
        Ok(())
    }

    fn write_from(&mut self, _: LogPosition<'_>, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.write(group)
    }
}

struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("llm-layers-law-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What comes back from a shared cache is an entry only if it is, to the bit, what was written under that key.
///
/// The first byte says how what was written is changed: not at all, replaced by the rest, or by the rest at some place.
pub fn entry(bytes: &[u8]) {
    let Some((how, rest)) = bytes.split_first() else { return };
    for is_encrypted in [false, true] {
        let (key, written) = kept(is_encrypted);
        let changed = match how % 3 {
            0 => rest.to_vec(),
            1 => {
                let mut changed = written.to_vec();
                let start = usize::from(*how) * 7 % changed.len();
                changed.iter_mut().skip(start).zip(rest).for_each(|(byte, other)| *byte ^= other);
                changed
            }
            _ => {
                let cut = usize::from(*how) % written.len();
                [&written[..cut], rest].concat()
            }
        };
        let is_same = changed == written;
        let store = sealed(Shelf(Some(changed.into()), None), is_encrypted);
        let found = match store.get(&key) {
            Fetch::Ready(found) => Ok(found),
            Fetch::Pending(future) => future.now_or_never().expect("nothing is waited for"),
        };
        assert_eq!(found.is_ok_and(|found| found.is_some()), is_same, "only what was written is an entry");
    }
}

fn sealed(shelf: Shelf, is_encrypted: bool) -> SealedStore<Shelf> {
    let store = SealedStore::new(shelf, CacheSecret::new([7; 32]));
    if is_encrypted { store.encrypted() } else { store }
}

/// An entry as it is written, and its key.
fn kept(is_encrypted: bool) -> (CacheKey, Bytes) {
    static KEPT: [std::sync::OnceLock<(CacheKey, Bytes)>; 2] = [const { std::sync::OnceLock::new() }; 2];
    let made = KEPT[usize::from(is_encrypted)].get_or_init(|| {
        block_on(async {
            let put = Arc::new(Mutex::new(None));
            let store = sealed(Shelf(None, Some(Arc::clone(&put))), is_encrypted);
            let (layer, worker) = CacheLayer::start(store, CachePolicy::new(CacheSecret::new([7; 32])));
            let body = ChatBody::builder().user("Is anybody there?").build().expect("a body");
            let context = RequestContext::new().with_user_id("ada");
            let request = LlmRequest::new("p/m", body).with_context(context);
            let answer = layer.layer(Echo::new()).oneshot(request).await.expect("an answer");
            answer.text().await.expect("a text");
            worker.shutdown(Duration::from_secs(5)).await;
            put.lock().unwrap().take().expect("it is kept")
        })
    });
    made.clone()
}

type Put = Arc<Mutex<Option<(CacheKey, Bytes)>>>;

/// Gives what it has, and tells what it was given.
struct Shelf(Option<Bytes>, Option<Put>);

impl ByteStore for Shelf {
    fn get(&self, _: &CacheKey) -> Fetch<Option<Bytes>> {
        Fetch::Ready(self.0.clone())
    }

    fn put(&self, key: &CacheKey, value: Bytes, _: Duration) -> Fetch<()> {
        if let Some(put) = &self.1 {
            *put.lock().unwrap() = Some((*key, value));
        }
        Fetch::Ready(())
    }
}
