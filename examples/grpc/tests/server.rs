//! The real server as a process, real clients, and upstreams real and scripted.

mod common;
#[path = "../../../tests/support/redis.rs"]
mod redis_server;

use common::{
    Client, Server, Upstream, asking, peers, soon,
    xai::{self, GetCompletionsRequest, chat_client::ChatClient, content::Content},
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioExecutor};
use llm_layers::{
    config::Config,
    stack::stack,
    usage::{GroupBy, Outcome, UsageQuery},
};
use redis_server::RedisServer;
use std::{path::Path, process::Command};
use tonic::{
    Code, Request, Response, Status,
    codegen::http::uri::{PathAndQuery, Uri},
    metadata::MetadataMap,
};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

type HttpClient = hyper_util::client::legacy::Client<HttpConnector, tonic::body::Body>;

fn metadata<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).map(|value| value.to_str().unwrap())
}

async fn over(upstream: &Upstream) -> (Server, Client) {
    let server =
        Server::start(&format!("usage.enabled = false\n[providers.up]\nbase_url = \"{}\"\n", upstream.url));
    let client = server.client().await;
    (server, client)
}

/// Not tonic's own transport, which keeps the time itself: what the server does is to be seen.
fn plain_http() -> HttpClient {
    hyper_util::client::legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

/// A call whose message comes when the stream says so, after its headers.
async fn completion<S>(
    origin: Uri,
    request: Request<S>,
) -> Result<Response<xai::GetChatCompletionResponse>, Status>
where
    S: tokio_stream::Stream<Item = GetCompletionsRequest> + Send + 'static,
{
    let mut grpc = tonic::client::Grpc::with_origin(plain_http(), origin);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/xai_api.Chat/GetCompletion");
    grpc.client_streaming(request, path, ProstCodec::default()).await
}

#[tokio::test]
async fn operators_find_health_and_reflection() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let server = Server::start("");
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "xai_api.Chat"] {
        // It is told right after it listens.
        let status = loop {
            match health.check(of(service)).await {
                Ok(answer) => break answer.into_inner().status(),
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
        };
        assert_eq!(status, ServingStatus::Serving);
    }
    assert_eq!(health.check(of("other.Service")).await.unwrap_err().code(), Code::NotFound);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let asked = tokio_stream::iter([ask]);
    let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(listed) = answer else { panic!("{answer:?}") };
    assert!(listed.service.iter().any(|service| service.name == "xai_api.Chat"), "{listed:?}");

    // What counts is away: no calls, and it says so; but it goes on.
    let server = Server::start(
        "usage.enabled = false\nproviders.echo.kind = \"echo\"\nquota.redis = \"redis://127.0.0.1:1\"\n\
         keys = [{ key = \"k\", user = \"u\", departments = [\"d\"] }]\ndepartments.d.day_requests = 1\n",
    );
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.address)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let mut watched = health.watch(of("")).await.unwrap().into_inner();
    while watched.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
}

#[tokio::test]
async fn without_a_configuration_an_echo_answers() {
    let server = Server::start("");
    let mut client = server.client().await;
    let answer = client.get_completion(asking("fast")).await.unwrap();
    assert!(metadata(answer.metadata(), "x-request-id").is_some());
    assert_eq!(answer.get_ref().outputs[0].message.as_ref().unwrap().content, "Hi");
    let mut chunks = client.get_completion_chunk(asking("fast")).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        text.extend(chunk.outputs.into_iter().filter_map(|output| Some(output.delta?.content)));
    }
    assert_eq!(text, "Hi");
}

#[tokio::test]
async fn a_client_that_cancels_hangs_up_on_the_provider_before_and_within_the_answer() {
    let mut upstream = Upstream::start().await;
    let (_server, mut client) = over(&upstream).await;

    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.get_completion(asking("up/m")).await });
    let mut call = upstream.call().await;
    waiting.abort();
    assert!(call.hung_up().await);

    let asked = tokio::spawn(async move { client.get_completion_chunk(asking("up/m")).await });
    let mut call = upstream.call().await;
    call.begin().await;
    call.say("one").await;
    let mut chunks = asked.await.unwrap().unwrap().into_inner();
    assert!(chunks.message().await.unwrap().is_some());
    drop(chunks);
    assert!(call.hung_up().await);
}

#[tokio::test]
async fn the_callers_deadline_ends_a_call_and_a_stream_on_the_server_and_both_are_errors() {
    let mut upstream = Upstream::start().await;
    let usage = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("late-{:016x}.db", fastrand::u64(..)));
    let config = format!("usage.path = {usage:?}\nproviders.up.base_url = {:?}\n", upstream.url);
    let mut server = Server::start(&config);
    // Long enough for a machine with much else to do to have begun the stream by then.
    let timely = |mut request: Request<GetCompletionsRequest>| {
        request.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
        request
    };
    let mut client: ChatClient<HttpClient> = ChatClient::with_origin(plain_http(), server.origin());

    let whole = client.get_completion(timely(asking("up/m")));
    let (answer, mut call) = tokio::join!(whole, upstream.call());
    let late = answer.unwrap_err();
    assert_eq!(
        (late.code(), late.message()),
        (Code::DeadlineExceeded, "timed out waiting for an answer before the deadline")
    );
    assert_eq!(late.get_details_error_info().unwrap().reason, "TIMEOUT");
    assert!(call.hung_up().await);

    let asked = tokio::spawn(async move { client.get_completion_chunk(timely(asking("up/m"))).await });
    let mut call = upstream.call().await;
    call.begin().await;
    call.say("one").await;
    let mut chunks = asked.await.unwrap().unwrap().into_inner();
    assert!(chunks.message().await.unwrap().is_some());
    assert_eq!(chunks.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(call.hung_up().await);

    server.terminate().await;
    assert_eq!(server.ended().await, Some(0));
    let (_stack, handle) = stack(Config::parse(&config).unwrap()).await.unwrap();
    let outcomes = handle.usage().unwrap().totals_by(&UsageQuery::new(), &[GroupBy::Outcome]).await.unwrap();
    let outcomes: Vec<_> =
        outcomes.iter().map(|group| (group.key[0].as_deref(), group.totals.calls)).collect();
    assert_eq!(outcomes, [(Some("error"), 2)]);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", usage.display()));
    }
}

#[tokio::test]
async fn a_message_that_comes_after_its_headers_is_late_by_the_same_words() {
    let mut upstream = Upstream::start().await;
    let (server, _) = over(&upstream).await;
    let (message, messages) = tokio::sync::mpsc::channel(1);
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(messages));
    request.metadata_mut().insert("grpc-timeout", "1S".parse().unwrap());
    let asked = tokio::spawn(completion(server.origin(), request));
    // As on a server that has much else to do.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    message.send(asking("up/m").into_inner()).await.unwrap();
    drop(message);
    let _call = upstream.call().await;
    assert_eq!(asked.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_message_that_never_comes_and_a_reader_who_takes_nothing_leave_their_places() {
    let mut upstream = Upstream::start().await;
    let server = Server::start(&format!(
        "usage.enabled = false\nserver.body_timeout = \"200ms\"\nserver.write_timeout = \"200ms\"\n[[keys]]\nkey = \"k\"\nuser = \"ada\"\nmax_in_flight = 1\n[providers.up]\nbase_url = \"{}\"\n",
        upstream.url
    ));
    let with_key = |mut request: Request<GetCompletionsRequest>| {
        request.metadata_mut().insert("authorization", "Bearer k".parse().unwrap());
        request
    };
    let (metadata, extensions, _) = with_key(asking("up/m")).into_parts();
    let never = Request::from_parts(metadata, extensions, tokio_stream::pending::<GetCompletionsRequest>());
    let late = soon(completion(server.origin(), never)).await.unwrap_err();
    assert_eq!((late.code(), late.message()), (Code::DeadlineExceeded, "the message did not come in time"));

    // Room for a few bytes, of which none is made anew.
    let endpoint = tonic::transport::Endpoint::from(server.origin()).initial_stream_window_size(64);
    let mut client = ChatClient::new(endpoint.connect().await.unwrap());
    let asked = tokio::spawn(async move {
        let answer = client.get_completion_chunk(with_key(asking("up/m"))).await;
        (answer.unwrap().into_inner(), client)
    });
    let mut call = upstream.call().await;
    call.begin().await;
    call.say("a word").await;
    let (mut chunks, mut client) = asked.await.unwrap();
    call.insist("a word").await;
    let another = tokio::spawn(async move { client.get_completion(with_key(asking("up/m"))).await });
    upstream.call().await.answer(200, r#"{"choices":[{"message":{"content":"Hello"}}]}"#).await;
    assert!(another.await.unwrap().is_ok(), "the place is free again");
    // No clean end of what he finds when he goes on.
    let cut = soon(async {
        while chunks.message().await?.is_some() {}
        Ok::<_, Status>(())
    })
    .await
    .unwrap_err();
    assert_eq!(
        (cut.code(), cut.message()),
        (Code::DeadlineExceeded, "nothing was taken of the answer for 200ms")
    );
}

#[tokio::test]
async fn who_may_not_ask_is_refused_before_his_message_has_come() {
    let mut upstream = Upstream::start().await;
    let server = Server::start(&format!(
        "usage.enabled = false\n[[keys]]\nkey = \"k\"\nuser = \"ada\"\nmax_in_flight = 1\n[providers.up]\nbase_url = \"{}\"\n",
        upstream.url
    ));
    let asking_as = |key: Option<&'static str>| {
        let (message, messages) = tokio::sync::mpsc::channel(1);
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(messages));
        if let Some(key) = key {
            request.metadata_mut().insert("authorization", key.parse().unwrap());
        }
        (message, tokio::spawn(completion(server.origin(), request)))
    };
    for key in [None, Some("Bearer other")] {
        let (_message, asked) = asking_as(key);
        let refused = soon(asked).await.unwrap().unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(metadata(refused.metadata(), "x-request-id").is_some());
    }
    // A place that is taken is one before the message has come, too.
    let (message, asked) = asking_as(Some("Bearer k"));
    message.send(asking("up/m").into_inner()).await.unwrap();
    drop(message);
    let call = upstream.call().await;
    let (_message, another) = asking_as(Some("Bearer k"));
    let refused = soon(another).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // When to come again, for who reads it and for who does it by himself.
    assert_eq!(metadata(refused.metadata(), "retry-after"), Some("1"));
    assert_eq!(metadata(refused.metadata(), "grpc-retry-pushback-ms"), Some("1000"));
    call.answer(200, r#"{"choices":[{"message":{"content":"Hello"}}]}"#).await;
    assert!(asked.await.unwrap().is_ok());
    let (message, asked) = asking_as(Some("Bearer k"));
    message.send(asking("up/m").into_inner()).await.unwrap();
    drop(message);
    upstream.call().await.answer(200, r#"{"choices":[{"message":{"content":"Hello"}}]}"#).await;
    assert!(asked.await.unwrap().is_ok(), "the place is free again");
}

#[tokio::test]
async fn what_is_asked_reaches_the_provider_and_neither_the_key_nor_the_caller_does() {
    let mut upstream = Upstream::start().await;
    let server = Server::start(&format!(
        "usage.enabled = false\n[[keys]]\nkey = \"secret-key\"\nuser = \"ada\"\n[providers.up]\nbase_url = \"{}\"\n",
        upstream.url
    ));
    let mut client = server.client().await;
    let mut request = asking("up/m");
    request.get_mut().temperature = Some(0.7);
    request.metadata_mut().insert("authorization", "Bearer secret-key".parse().unwrap());
    let asked = tokio::spawn(async move { client.get_completion(request).await });
    let call = upstream.call().await;
    let sent: serde_json::Value = serde_json::from_str(&call.body).unwrap();
    assert_eq!(
        sent,
        serde_json::json!({ "model": "m", "messages": [{ "role": "user", "content": "Hi" }], "temperature": 0.7 })
    );
    assert!(!format!("{}{}", call.head, call.body).contains("secret-key"));
    call.answer(200, r#"{"choices":[{"message":{"content":"Hello"}}]}"#).await;
    assert_eq!(asked.await.unwrap().unwrap().get_ref().outputs[0].message.as_ref().unwrap().content, "Hello");
}

#[tokio::test]
async fn large_requests_are_taken_as_xais_client_sends_them() {
    let server = Server::start("");
    let mut client =
        server.client().await.max_encoding_message_size(64 << 20).max_decoding_message_size(64 << 20);
    let mut request = asking("fast");
    let text = "word ".repeat(3 << 20);
    request.get_mut().messages[0].content[0].content = Some(Content::Text(text.clone()));
    let answer = client.get_completion(request).await.unwrap();
    assert_eq!(answer.get_ref().outputs[0].message.as_ref().unwrap().content.len(), text.len());
}

#[tokio::test]
async fn messages_that_are_held_have_one_bound_and_what_is_beyond_is_refused_until_some_are_gone() {
    let mut upstream = Upstream::start().await;
    let server = Server::start(&format!(
        "usage.enabled = false\n[server]\nmax_body_bytes = 600_000\nmax_buffered_bytes = 1_000_000\n[providers.up]\nbase_url = \"{}\"\n[providers.echo]\nkind = \"echo\"\n",
        upstream.url
    ));
    let large = |model: &str, bytes: usize| {
        let mut request = asking(model);
        request.get_mut().messages[0].content[0].content = Some(Content::Text("x".repeat(bytes)));
        request
    };
    let client = server.client().await;
    let ask = |request| {
        let mut client = client.clone();
        async move { client.get_completion(request).await }
    };
    assert!(ask(large("echo/x", 590_000)).await.is_ok());
    for is_answered in [true, false] {
        let held = tokio::spawn(ask(large("up/m", 500_000)));
        let mut call = upstream.call().await;
        let refused = ask(large("echo/x", 590_000)).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::ResourceExhausted, "too many messages are held in memory")
        );
        assert_eq!(metadata(refused.metadata(), "retry-after"), Some("1"));
        assert_eq!(metadata(refused.metadata(), "grpc-retry-pushback-ms"), Some("1000"));
        assert!(metadata(refused.metadata(), "x-request-id").is_some());
        // Those who ask little are served all the while, and too large is too large.
        assert!(ask(asking("echo/x")).await.is_ok());
        let too_large = ask(large("echo/x", 600_001)).await.unwrap_err();
        assert_eq!(too_large.get_details_error_info().unwrap().reason, "INVALID_REQUEST");
        if is_answered {
            call.answer(200, r#"{"choices":[{"message":{"content":"Hello"}}]}"#).await;
            assert!(held.await.unwrap().is_ok());
        } else {
            held.abort();
            assert!(call.hung_up().await);
        }
        assert!(ask(large("echo/x", 590_000)).await.is_ok(), "{is_answered}");
    }
}

#[tokio::test]
async fn streams_go_on_to_their_end_when_the_server_is_told_to_stop() {
    let mut upstream = Upstream::start().await;
    let (mut server, mut client) = over(&upstream).await;
    let asked = tokio::spawn(async move { client.get_completion_chunk(asking("up/m")).await });
    let mut call = upstream.call().await;
    call.begin().await;
    call.say("one").await;
    let mut chunks = asked.await.unwrap().unwrap().into_inner();
    assert!(chunks.message().await.unwrap().is_some());
    server.terminate().await;
    call.say("two").await;
    call.end().await;
    let mut last = None;
    while let Some(chunk) = chunks.message().await.unwrap() {
        last = chunk.outputs.first().map(|output| output.finish_reason()).or(last);
    }
    assert_eq!(last, Some(xai::FinishReason::ReasonStop));
    assert_eq!(server.ended().await, Some(0));
}

#[tokio::test]
async fn what_is_cut_when_the_grace_is_over_is_recorded_and_charged() {
    // Nor does it matter whether anybody takes what the server tells.
    let (telling, silent) = (":", "exec 2>/dev/full");
    for (reads, is_limited, commands) in
        [(true, true, telling), (false, true, silent), (true, false, silent), (false, false, telling)]
    {
        let mut upstream = Upstream::start().await;
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cut-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&directory).unwrap();
        let mut config = format!(
            "server.shutdown_grace = \"100ms\"\nusage.path = {:?}\nproviders.up.base_url = {:?}\n",
            directory.join("usage.db"),
            upstream.url
        );
        if is_limited {
            config += &format!(
                "quota = {{ store = \"sqlite\", path = {:?} }}\ndepartments.r-and-d.day_tokens = 100000\n\
                 keys = [{{ key = \"one\", user = \"ada\", departments = [\"r-and-d\"] }}]\n",
                directory.join("quota.db")
            );
        }
        let mut server = Server::start_after(commands, &config);
        let channel = tonic::transport::Channel::builder(server.origin());
        let mut client = Client::new(channel.initial_stream_window_size(65_535).connect().await.unwrap());
        let asking = || {
            let mut request = asking("up/m");
            request.metadata_mut().insert("authorization", "Bearer one".parse().unwrap());
            request
        };
        let mut other = client.clone();
        let whole = tokio::spawn(async move { other.get_completion(asking()).await });
        let mut unanswered = upstream.call().await;
        let streamed = tokio::spawn(async move { client.get_completion_chunk(asking()).await });
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("one").await;
        let mut chunks = streamed.await.unwrap().unwrap().into_inner();
        assert!(chunks.message().await.unwrap().is_some());
        if !reads {
            // More than there is room for: the server waits for the client, and for nothing else.
            call.say(&"x".repeat(1 << 20)).await;
        }
        server.terminate().await;
        assert_eq!(server.ended().await, Some(0));
        assert!(call.hung_up().await && unanswered.hung_up().await);
        whole.await.unwrap().unwrap_err();
        if reads {
            chunks.message().await.unwrap_err();
        }

        let (_stack, handle) = stack(Config::parse(&config).unwrap()).await.unwrap();
        let aborted = UsageQuery::new().with_outcome(Outcome::Aborted);
        let aborted = handle.usage().unwrap().totals(&aborted).await.unwrap();
        assert_eq!((aborted.calls, aborted.estimated_calls), (2, 2), "reads: {reads}");
        if is_limited {
            let day = handle.quota("r-and-d").await.unwrap().unwrap().standing.in_day;
            assert_eq!((day.settled.requests, day.reserved.tokens), (2, 0), "reads: {reads}");
            assert!(day.settled.tokens > 0, "reads: {reads}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}

// ===== xAI's own client =====

#[test]
fn the_contract_is_the_one_that_xais_client_has() {
    let Some(peers) = peers("the_contract_is_the_one_that_xais_client_has") else { return };
    let contract = concat!(env!("OUT_DIR"), "/chat.bin");
    let stdin = std::fs::File::open(contract).expect("made by the build");
    common::converse(&peers, &["-", "contract"], |command: &mut Command| {
        command.stdin(stdin);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_xai_sdk_talks_to_the_server() {
    let Some(peers) = peers("the_xai_sdk_talks_to_the_server") else { return };
    let Some(mut redis) = RedisServer::start("the_xai_sdk_talks_to_the_server") else { return };
    let aimock = Server::aimock(&peers);
    let config = |quota: &str| {
        let upstream = &aimock.address;
        format!(
            r#"
            usage.enabled = false
            server.max_body_bytes = 1_000_000
            [providers.aimock]
            base_url = "http://{upstream}/v1"
            api_key = "upstream-key"
            [providers.quiet]
            base_url = "http://{upstream}/v1"
            api_key = "upstream-key"
            timeouts.head = "1s"
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
            [quota]
            {quota}
            "#
        )
    };
    let server = Server::start(&config("store = \"memory\""));
    let orphan = Server::start(&config(&format!("store = \"redis\"\nredis = {:?}", redis.url())));
    redis.kill();
    let mut upstream = Upstream::start().await;
    let full = format!(
        "server.max_in_flight = 1\nserver.max_waiting = 0\nusage.enabled = false\nproviders.up.base_url = {:?}\n",
        upstream.url
    );
    let full = Server::start(&full);
    let mut client = full.client().await;
    tokio::spawn(async move { client.get_completion(asking("up/m")).await });
    let _call = upstream.call().await;
    let cases = [
        "whole",
        "streamed",
        "tools",
        "structured",
        "batch",
        "images",
        "errors",
        "rate_limited",
        "quota",
        "midstream",
        "deadline",
        "metadata",
        "retries",
        "overloaded",
        "too_long",
        "too_large",
        "empty",
    ];
    let arguments: Vec<&str> = std::iter::once(&*server.address).chain(cases).collect();
    common::converse(&peers, &arguments, |command| {
        command.env("PEER_ORPHAN_URL", &orphan.address).env("PEER_FULL_URL", &full.address);
    });
}
