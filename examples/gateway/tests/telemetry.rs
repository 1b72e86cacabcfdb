//! What the real gateway exports: to a collector by OTLP, to Prometheus, and to its log.

mod common;

use common::{CHAT, Gateway, Upstream};
use mock_collector::{MockServer, Protocol, ServerHandle};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    metrics::v1::metric::Data,
    trace::v1::Span,
};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    process::Stdio,
    time::Duration,
};

/// None of these may be in anything that is exported or logged.
const PROMPT: &str = "sesame-prompt-3f81";
const ANSWER: &str = "sesame-answer-90cc";
const KEY: &str = "sesame-key-51aa";
const UPSTREAM_KEY: &str = "sesame-upstream-key-6be2";
const USER: &str = "sesame-user-d0d7";
const SECRETS: [&str; 5] = [PROMPT, ANSWER, KEY, UPSTREAM_KEY, USER];

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn config(url: &str, more: &str) -> String {
    format!(
        r#"
        [[keys]]
        key = "{KEY}"
        user = "{USER}"
        departments = ["r-and-d"]
        [providers.a]
        base_url = "{url}"
        api_key = "{UPSTREAM_KEY}"
        trace_headers = true
        [aliases]
        fast = "a/m"
        [fallbacks]
        "a/m" = ["a/n"]
        [departments.r-and-d]
        day_tokens = 1_000_000
        [quota]
        store = "memory"
        {more}
        "#
    )
}

fn asking(model: &str, streaming: bool) -> String {
    format!(
        r#"{{"model":"{model}","stream":{streaming},"temperature":0.5,"user":"{USER}","messages":[{{"role":"user","content":"{PROMPT}"}}]}}"#
    )
}

const WHOLE: &str = r#"{"id":"chatcmpl-1","model":"m-2026","choices":[{"index":0,"message":{"role":"assistant","content":"sesame-answer-90cc"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1000,"completion_tokens":500,"total_tokens":1500}}"#;

const STREAM: &str = concat!(
    "data: {\"id\":\"chatcmpl-2\",\"model\":\"n-2026\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"sesame-answer-90cc\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":7}}\n\n",
    "data: [DONE]\n\n"
);

/// A whole answer in a caller's trace, a stream after a failure, and a caller who has no key.
async fn three_calls(gateway: &Gateway, upstream: &mut Upstream, is_traced: bool) {
    let bearer = format!("Bearer {KEY}");
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", &*bearer),
        ("traceparent", &*parent),
        ("baggage", "user=sesame-user-d0d7"),
    ];
    let body = asking("a/m", false);
    let (reply, head) = tokio::join!(gateway.post(&headers, body.as_bytes()), async {
        let call = upstream.call().await;
        let head = call.head.clone();
        call.answer(200, WHOLE).await;
        head
    });
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.body.contains(ANSWER));
    let head = head.to_ascii_lowercase();
    assert!(head.contains(&format!("traceparent: 00-{TRACE}-")), "{head}");
    assert_eq!(head.contains(CALLER), !is_traced, "the provider's parent is our own span, if there is one");
    assert!(!head.contains("baggage"), "{head}");

    let body = asking("fast", true);
    let (reply, ()) = tokio::join!(gateway.post(&headers[..2], body.as_bytes()), async {
        upstream.call().await.answer(500, r#"{"error":{"message":"sesame-prompt-3f81"}}"#).await;
        let mut call = upstream.call().await;
        call.begin().await;
        call.write(STREAM).await;
    });
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(reply.body.ends_with("data: [DONE]\n\n"), "{}", reply.body);

    let nobody = [("content-type", "application/json"), ("authorization", "Bearer sesame-key-51aaX")];
    assert_eq!(gateway.post(&nobody, body.as_bytes()).await.status, 401);
}

async fn collector(protocol: Protocol) -> ServerHandle {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    MockServer::builder().protocol(protocol).host(localhost).port(0).start().await.unwrap()
}

fn attributes(all: &[KeyValue]) -> BTreeMap<&str, &Value> {
    let value =
        |kv: &'_ KeyValue| kv.value.as_ref().and_then(|AnyValue { value }| value.as_ref().map(|_| ()));
    assert!(all.iter().all(|kv| value(kv).is_some()));
    all.iter().map(|kv| (kv.key.as_str(), kv.value.as_ref().unwrap().value.as_ref().unwrap())).collect()
}

fn int(span: &Span, name: &str) -> Option<i64> {
    match attributes(&span.attributes).get(name)? {
        Value::IntValue(number) => Some(*number),
        other => panic!("{name} is {other:?}"),
    }
}

fn text<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    match attributes(&span.attributes).get(name)? {
        Value::StringValue(text) => Some(text),
        other => panic!("{name} is {other:?}"),
    }
}

/// A collector as a process of its own, which sends on what it gets.
struct Rotel {
    process: tokio::process::Child,
    endpoint: String,
}

impl Rotel {
    /// `None` if it is not installed, and says so.
    async fn start(protocol: Protocol, to: &ServerHandle) -> Option<Self> {
        let Some(agent) = common::collector() else {
            let line = "SKIPPED telemetry: rotel is not installed, run scripts/peers";
            let _ = writeln!(std::io::stderr(), "{line}");
            return None;
        };
        let address = |url: String| url.split('/').nth(2).expect("http://ADDRESS/…").to_owned();
        let (grpc, http) = (address(common::nowhere().await), address(common::nowhere().await));
        let process = tokio::process::Command::new(agent)
            .args(["start", "--exporter", "otlp", "--otlp-exporter-protocol", "grpc", "--disable-batching"])
            .args(["--otlp-grpc-endpoint", &grpc, "--otlp-http-endpoint", &http])
            .args(["--otlp-exporter-endpoint", &format!("http://{}", to.addr())])
            .args(["--otlp-exporter-compression", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("rotel starts");
        for address in [&grpc, &http] {
            common::soon(async {
                while tokio::net::TcpStream::connect(address).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        }
        let endpoint = if matches!(protocol, Protocol::Grpc) { grpc } else { http };
        Some(Self { process, endpoint: format!("http://{endpoint}") })
    }
}

/// How a gateway's telemetry gets to where it is looked at.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Straight,
    /// Through a collector that others have made.
    ThroughRotel,
}

async fn a_collector_receives(protocol: Protocol, name: &str, way: Way) {
    let collector = collector(if way == Way::Straight { protocol } else { Protocol::Grpc }).await;
    let mut upstream = Upstream::start().await;
    let mut rotel = None;
    if way == Way::ThroughRotel {
        rotel = Rotel::start(protocol, &collector).await;
        if rotel.is_none() {
            return;
        }
    }
    let straight = format!("http://{}", collector.addr());
    let endpoint = rotel.as_ref().map_or(straight, |rotel| rotel.endpoint.clone());
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", name),
        ("OTEL_SERVICE_NAME", "gateway-under-test"),
    ];
    let json = "[telemetry]\nlog = \"json\"";
    let mut gateway = Gateway::start_with(Some(&config(&upstream.url, json)), &env).await;
    three_calls(&gateway, &mut upstream, true).await;
    let printed = gateway.get("/metrics").await.body;

    // What is left is sent before the process ends.
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    if let Some(rotel) = &mut rotel {
        common::soon(async {
            let is_there = async || {
                collector
                    .with_collector(|all| {
                        all.spans().len() >= 8
                            && !all.logs().is_empty()
                            && all.metrics().iter().any(|m| m.metric().name == "gen_ai.client.token.usage")
                    })
                    .await
            };
            while !is_there().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert!(rotel.process.try_wait().unwrap().is_none(), "the collector is still there");
    }
    let (spans, metrics, records, everything) = collector
        .with_collector(|collector| {
            let spans: Vec<Span> = collector.spans().iter().map(|span| span.span().clone()).collect();
            let metrics: Vec<_> = collector.metrics().iter().map(|metric| metric.metric().clone()).collect();
            let resources: Vec<_> =
                collector.spans().iter().map(|span| format!("{:?}", span.resource_attrs())).collect();
            assert!(resources.iter().all(|resource| resource.contains("gateway-under-test")));
            let records: Vec<_> = collector.logs().iter().map(|record| record.log_record().clone()).collect();
            (spans, metrics, records, collector.dump())
        })
        .await;

    // One span for each request, one for each call of the stack, one for each call to a provider.
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    assert_eq!(spans.len(), 3 + 2 + 3, "{spans:#?}");
    let servers = named("POST /v1/chat/completions");
    let gateways = named("gateway chat");
    let (first, second) = (named("chat m"), named("chat n"));
    assert_eq!((servers.len(), gateways.len(), first.len(), second.len()), (3, 2, 2, 1));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let whole = first.iter().find(|span| hex(&span.trace_id) == TRACE).expect("in the caller's trace");
    let gateway_of = |span: &Span| {
        let parent = gateways.iter().find(|gateway| gateway.span_id == span.parent_span_id);
        (**parent.unwrap_or_else(|| panic!("{span:?} has no gateway"))).clone()
    };
    let server = servers.iter().find(|server| server.span_id == gateway_of(whole).parent_span_id).unwrap();
    assert_eq!(hex(&server.parent_span_id), CALLER);
    assert_eq!(int(server, "http.response.status_code"), Some(200));

    // Kinds as in OTLP: 1 internal, 2 server, 3 client.
    assert!(servers.iter().all(|span| span.kind == 2) && gateways.iter().all(|span| span.kind == 1));
    let streamed = second[0];
    for client in [*whole, streamed] {
        assert_eq!((client.kind, client.status.as_ref().map_or(0, |status| status.code)), (3, 0));
        assert_eq!(text(client, "gen_ai.operation.name"), Some("chat"));
        assert_eq!(text(client, "gen_ai.provider.name"), Some("a"));
        assert_eq!(text(client, "server.address"), Some("127.0.0.1"));
    }
    let usage = |span| (int(span, "gen_ai.usage.input_tokens"), int(span, "gen_ai.usage.output_tokens"));
    assert_eq!(usage(whole), (Some(1000), Some(500)));
    assert_eq!(usage(streamed), (Some(20), Some(7)));
    assert_eq!(text(whole, "gen_ai.response.model"), Some("m-2026"));
    assert_eq!(text(streamed, "gen_ai.response.id"), Some("chatcmpl-2"));
    assert_eq!(attributes(&streamed.attributes)["gen_ai.request.stream"], &Value::BoolValue(true));
    // Nothing is counted twice: usage is on the clients' spans alone.
    let with_usage = spans
        .iter()
        .filter(|span| span.attributes.iter().any(|kv| kv.key.starts_with("gen_ai.usage")))
        .count();
    assert_eq!(with_usage, 2);
    assert!(gateways.iter().all(|span| !span.attributes.iter().any(|kv| kv.key.starts_with("gen_ai."))));

    // The attempt that failed, in the same trace as the one that did not.
    let failed = first.iter().find(|span| span.span_id != whole.span_id).unwrap();
    assert_eq!(failed.trace_id, streamed.trace_id);
    assert_eq!(text(failed, "error.type"), Some("500"));
    assert_eq!(failed.status.as_ref().unwrap().code, 2);
    let gateway_span = gateway_of(streamed);
    assert_eq!(text(&gateway_span, "llm_layers.requested_model"), Some("fast"));
    assert_eq!(int(&gateway_span, "llm_layers.attempts"), Some(2));
    let events: Vec<_> = gateway_span.events.iter().map(|event| event.name.as_str()).collect();
    let twice = ["access", "access", "quota", "quota", "attempt", "attempt"];
    let decided: Vec<_> = ["alias"].iter().chain(&twice).map(|name| format!("llm_layers.{name}")).collect();
    assert_eq!(events, decided);

    let metric = |name: &str| {
        let found = metrics.iter().rev().find(|metric| metric.name == name);
        found.unwrap_or_else(|| panic!("{name} is not there")).clone()
    };
    let Some(Data::Histogram(tokens)) = metric("gen_ai.client.token.usage").data else { panic!() };
    let total: f64 = tokens.data_points.iter().filter_map(|point| point.sum).sum();
    assert_eq!(total, f64::from(1000 + 500 + 20 + 7));
    let Some(Data::Histogram(duration)) = metric("gen_ai.client.operation.duration").data else { panic!() };
    assert_eq!(duration.data_points.iter().map(|point| point.count).sum::<u64>(), 3);
    assert_eq!(duration.data_points[0].explicit_bounds.len(), 14);
    let Some(Data::Gauge(held)) = metric("llm_layers.quota.reservations").data else { panic!() };
    assert_eq!(held.data_points.len(), 1);
    let Some(Data::Histogram(ratio)) = metric("llm_layers.quota.estimate_ratio").data else { panic!() };
    // Two answers; the attempt that failed used nothing up.
    assert_eq!(ratio.data_points.iter().map(|point| point.count).sum::<u64>(), 2);
    let Some(Data::Sum(fallbacks)) = metric("llm_layers.fallbacks").data else { panic!() };
    assert_eq!(fallbacks.data_points.len(), 1);

    // What failed is an event too, of its call's span.
    let [event] = &records[..] else { panic!("{records:#?}") };
    assert_eq!(event.event_name, "gen_ai.client.operation.exception");
    assert_eq!((&event.trace_id, &event.span_id), (&failed.trace_id, &failed.span_id));

    // The log is JSON, and each line of a request has its trace.
    let log = gateway.log_of(4, &["\"request\""]).await;
    let lines: Vec<Json> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let requests: Vec<_> = lines.iter().filter(|line| line["message"] == "request").collect();
    // The look at /metrics is a request too, and no part of a trace.
    let traced = requests.iter().filter(|line| line["trace_id"].is_string()).count();
    assert_eq!((requests.len(), traced), (4, 3), "{log}");
    // Texts are as they are, and not quoted once more.
    let said = |name: &str| requests.iter().map(|line| line[name].as_str()).collect::<Vec<_>>();
    assert_eq!(said("path").last(), Some(&Some("/metrics")), "{log}");
    assert!(said("requested").contains(&Some("fast")), "{log}");
    let warned = lines.iter().find(|line| line["level"] == "WARN").expect("a warning of the failure");
    assert_eq!(warned["trace_id"], hex(&failed.trace_id));
    assert_eq!(warned["exception.type"], "500");

    let exported = format!("{spans:?} {metrics:?} {records:?} {everything}");
    for secret in SECRETS {
        for (what, told) in [("exported", &exported), ("the log", &log), ("/metrics", &printed)] {
            assert!(!told.contains(secret), "{secret} is in {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_named_by_the_template_of_its_route_and_by_nothing_that_its_client_chose() {
    let collector = collector(Protocol::HttpBinary).await;
    let endpoint = format!("http://{}", collector.addr());
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let mut gateway = Gateway::start_with(Some(&config("http://127.0.0.1:1/v1", "")), &env).await;
    let asked = [
        ("POST", "/v1/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/v1/messages", "POST /v1/messages"),
        ("POST", "/v1/messages/count_tokens", "POST /v1/messages/count_tokens"),
        ("GET", "/v1/models", "GET /v1/models"),
        ("GET", "/v1/models/a/m", "GET /v1/models/{*model}"),
        ("GET", "/v1/usage?by=model", "GET /v1/usage"),
        ("GET", "/v1/quota/r-and-d", "GET /v1/quota/{department}"),
        ("POST", "/v1/cache/invalidate", "POST /v1/cache/invalidate"),
        // Another method is another name of the same route; what is no route has none.
        ("GET", "/v1/messages", "GET /v1/messages"),
        ("BREW", "/v1/usage", "HTTP /v1/usage"),
        ("GET", "/v1/quota/r-and-d/secrets", "GET"),
        ("GET", "/v1/models/", "GET"),
        ("POST", "/v1/no/such/path", "POST"),
        ("GET", "/healthz", "none"),
    ];
    for (method, path, _) in asked {
        // Whoever asks, and whatever the answer is.
        gateway.send(method, path, &[], b"").await;
    }
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    let spans = collector
        .with_collector(|all| all.spans().iter().map(|span| span.span().clone()).collect::<Vec<_>>());
    let mut named: Vec<_> = spans
        .await
        .iter()
        .map(|span| (span.name.clone(), text(span, "http.route").map(str::to_owned)))
        .collect();
    let mut expected: Vec<_> = asked
        .iter()
        .filter(|(.., name)| *name != "none")
        .map(|(.., name)| ((*name).to_owned(), name.split_once(' ').map(|(_, route)| route.to_owned())))
        .collect();
    named.sort();
    expected.sort();
    assert_eq!(named, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_spans_and_metrics_by_http() {
    a_collector_receives(Protocol::HttpBinary, "http/protobuf", Way::Straight).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_takes_spans_and_metrics_by_http_and_passes_them_on() {
    a_collector_receives(Protocol::HttpBinary, "http/protobuf", Way::ThroughRotel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_collector_takes_spans_and_metrics_by_grpc_and_passes_them_on() {
    a_collector_receives(Protocol::Grpc, "grpc", Way::ThroughRotel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_spans_and_metrics_by_grpc() {
    a_collector_receives(Protocol::Grpc, "grpc", Way::Straight).await;
}

#[tokio::test]
async fn a_collector_that_is_down_delays_no_answer_and_the_end_only_a_little() {
    let mut upstream = Upstream::start().await;
    let endpoint = common::nowhere().await;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint)];
    let mut gateway = Gateway::start_with(Some(&config(&upstream.url, "")), &env).await;
    three_calls(&gateway, &mut upstream, true).await;
    gateway.terminate();
    assert_eq!(tokio::time::timeout(Duration::from_secs(15), gateway.ended()).await.unwrap(), 0);
}

/// The names of series in Prometheus' text, with the labels of each.
fn series(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let labels = all.entry(name.to_owned()).or_default();
        let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
        labels.extend(
            inside.0.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned()),
        );
    }
    all
}

#[tokio::test]
async fn what_a_cache_finds_of_similar_questions_is_printed() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(&config(&upstream.url, "[cache]\n")).await;
    let reply = gateway.get("/metrics").await;
    let printed = series(&reply.body);
    for what in ["hits", "shadow_hits", "guarded", "embedder_failures"] {
        let name = format!("llm_layers_cache_semantic_{what}_total");
        assert!(printed.contains_key(&*name), "{name}: {printed:#?}");
    }
}

#[tokio::test]
async fn the_dashboard_asks_for_what_is_printed() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&config(&upstream.url, "")).await;
    three_calls(&gateway, &mut upstream, false).await;
    let reply = gateway.get("/metrics").await;
    assert!(reply.header("content-type").unwrap().starts_with("text/plain"));
    let printed = series(&reply.body);
    assert!(printed.contains_key("gen_ai_client_operation_duration_seconds_bucket"), "{printed:#?}");
    for secret in SECRETS {
        assert!(!reply.body.contains(secret), "{secret} is told to anybody");
    }

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/grafana-dashboard.json");
    let dashboard: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries.len() >= 10, "{queries:?}");
    // Printed once there is a cache, or a quota has refused a call.
    let later = [
        "llm_layers_cache_requests_total",
        "llm_layers_cache_semantic_shadow_hits_total",
        "llm_layers_quota_refusals_total",
    ];
    let mut asked = BTreeSet::new();
    for query in &queries {
        // `sum by (labels) (rate(name{labels}[..]))`
        let (labels, rest) = match query.split_once("by (") {
            Some((before, after)) => {
                let (labels, after) = after.split_once(')').unwrap();
                (labels.split(", ").collect(), format!("{before}{after}"))
            }
            None => (Vec::new(), (*query).to_owned()),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name =
            rest.split(['{', '[']).next().unwrap().rsplit(|c| !is_name(c)).find(|word| !word.is_empty());
        let name = name.unwrap();
        if later.contains(&name) {
            continue;
        }
        let known = printed.get(name).unwrap_or_else(|| panic!("{name} of {query} is not printed"));
        let filtered =
            rest.split_once('{').map(|(_, rest)| rest.split_once('}').unwrap().0).unwrap_or_default();
        let filtered = filtered.split(',').filter_map(|label| label.split(['=', '!']).next());
        for label in labels.into_iter().chain(filtered).filter(|label| !label.is_empty()) {
            assert!(known.contains(label), "{label} of {query} is no label of {name}: {known:?}");
        }
        asked.insert(name.to_owned());
    }
    assert!(asked.len() >= 6, "{asked:?}");
    // And each metric that is printed is shown.
    let shown =
        |name: &str| asked.iter().any(|asked| asked.starts_with(name) || name.starts_with(asked.as_str()));
    let families: BTreeSet<_> = printed
        .keys()
        .filter(|name| name.starts_with("gen_ai") || name.starts_with("llm_layers"))
        .map(|name| name.trim_end_matches("_bucket").trim_end_matches("_count").trim_end_matches("_sum"))
        .collect();
    for family in families {
        assert!(shown(family), "{family} is on no panel");
    }
}

#[tokio::test]
async fn a_gateway_that_does_not_trace_passes_the_callers_trace_on_and_logs_it() {
    // Whether anything is counted or not; also where a call may be shared, and is made on a task of its own.
    for more in ["", "[telemetry]\nmetrics = false\n[cache]\ncoalesce = true"] {
        let mut upstream = Upstream::start().await;
        let gateway = Gateway::start(&config(&upstream.url, more)).await;
        let (bearer, parent) = (format!("Bearer {KEY}"), format!("00-{TRACE}-{CALLER}-01"));
        let headers = [
            ("content-type", "application/json"),
            ("authorization", &*bearer),
            ("traceparent", &*parent),
            ("tracestate", "vendor=1"),
        ];
        let mut heads = Vec::new();
        for (model, headers) in [("a/m", &headers[..]), ("a/n", &headers[..2])] {
            let body = asking(model, false);
            let (reply, head) = tokio::join!(gateway.post(headers, body.as_bytes()), async {
                let call = upstream.call().await;
                let head = call.head.to_ascii_lowercase();
                call.answer(200, WHOLE).await;
                head
            });
            assert_eq!(reply.status, 200, "{reply:?}");
            heads.push(head);
        }
        for line in [format!("traceparent: {parent}\r\n"), "tracestate: vendor=1\r\n".to_owned()] {
            assert!(heads[0].contains(&line), "{line} in {}", heads[0]);
        }
        assert!(!heads[1].contains("traceparent"), "no trace is begun: {}", heads[1]);
        let log = gateway.log_of(2, &["/v1/chat/completions"]).await;
        let of =
            |model: &str| log.lines().find(|line| line.contains(&format!("requested=\"{model}\""))).unwrap();
        assert!(of("a/m").contains(&format!("trace_id={TRACE}")), "{log}");
        assert!(!of("a/n").contains("trace_id"), "{log}");
    }
}

#[tokio::test]
async fn metrics_can_be_turned_off_and_decisions_shown() {
    let mut upstream = Upstream::start().await;
    let more = "[telemetry]\nmetrics = false\ndecision_headers = true";
    let gateway = Gateway::start(&config(&upstream.url, more)).await;
    assert_eq!(gateway.get("/metrics").await.status, 404);
    let bearer = format!("Bearer {KEY}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let body = asking("fast", false);
    let (reply, ()) = tokio::join!(gateway.send("POST", CHAT, &headers, body.as_bytes()), async {
        upstream.call().await.answer(500, "{}").await;
        upstream.call().await.answer(200, WHOLE).await;
    });
    assert_eq!(reply.header("x-llm-requested-model"), Some("fast"));
    assert_eq!(reply.header("x-llm-aliases"), Some("a/m"));
    assert_eq!(reply.header("x-llm-model"), Some("a/n"));
    let attempts = reply.header("x-llm-attempts").unwrap();
    assert!(attempts.starts_with("a/m; failure=upstream; wait_ms=0; latency_ms="), "{attempts}");
    assert!(attempts.contains(", a/n; wait_ms=0; latency_ms="), "{attempts}");
    // Nobody traces, the caller neither: nothing is said of traces.
    assert!(reply.headers.iter().all(|(name, _)| name != "traceparent"));
}
