//! Server-sent events as chunks.

use crate::canned::*;
use bytes::Bytes;
use http_body_util::Full;
use llm_layers::{LlmRequest, LlmResponse, ResponseBody, provider::openai::OpenAiCompatible};
use proptest::prelude::*;
use std::time::Duration;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt};
use tower_test::mock;

async fn data(response: LlmResponse) -> Vec<Bytes> {
    let (chunks, error) = chunks(response).await;
    assert!(error.is_none(), "{error:?}");
    assert!(chunks.last().is_some_and(|chunk| chunk.is_final()));
    chunks.iter().map(|chunk| chunk.data().clone()).collect()
}

/// The same four chunks, in all the ways that a stream may spell them.
fn spellings() -> Vec<Vec<u8>> {
    let plain = sse(&[HELLO, MULTI_JOINED, STOP, USAGE, "[DONE]"]);
    let multi = format!("data: {HELLO}\n\n{MULTI}data: {STOP}\n\ndata: {USAGE}\n\ndata: [DONE]\n\n");
    let noisy = format!(
        "\u{feff}: OPENROUTER PROCESSING\n\nevent: message\nid: 7\nretry: 10\ndata:{HELLO}\n\n:\n\n{MULTI}\
         data:\n\nunknown: field\ndata: {STOP}\n\n: ping\ndata: {USAGE}\n\n\n\ndata: [DONE] \n\ndata: late\n\n"
    );
    [plain, multi, noisy]
        .into_iter()
        .flat_map(|text| [text.clone(), text.replace('\n', "\r\n"), text.replace('\n', "\r")])
        .map(String::into_bytes)
        .collect()
}

const MULTI: &str =
    "data: {\"choices\":\ndata: [{\"index\":0,\"delta\":{\"content\":\" grün \\u00e9\"}}]}\n\n";
const MULTI_JOINED: &str = "{\"choices\":\ndata: [{\"index\":0,\"delta\":{\"content\":\" grün \\u00e9\"}}]}";

fn expected() -> [Bytes; 5] {
    let joined = MULTI_JOINED.replace("\ndata: ", "\n").into();
    [HELLO.into(), joined, STOP.into(), USAGE.into(), Bytes::new()]
}

proptest! {
    #[test]
    fn splitting_the_bytes_anywhere_changes_nothing(
        which in 0..spellings().len(),
        mut cuts in prop::collection::vec(0..700_usize, 0..40),
        empties in any::<bool>(),
    ) {
        let text = &spellings()[which];
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().map(|cut| cut.min(text.len())).chain([text.len()]) {
            pieces.push(Piece::Data(Bytes::copy_from_slice(&text[from..cut])));
            if empties {
                pieces.extend([Piece::Data(Bytes::new()), Piece::Trailers]);
            }
            from = cut;
        }
        let provider = answering(200, SSE, Pieces::new(pieces));
        let seen = tokio_test::block_on(async { data(provider.oneshot(streaming()).await.unwrap()).await });
        prop_assert_eq!(seen, expected());
    }
}

#[tokio::test]
async fn one_byte_at_a_time_changes_nothing() {
    for text in spellings() {
        let pieces = Pieces::data(text.iter().map(|byte| vec![*byte]).collect::<Vec<_>>());
        let response = answering(200, SSE, pieces).oneshot(streaming()).await.unwrap();
        assert_eq!(data(response).await, expected());
    }
}

#[tokio::test]
async fn unknown_members_of_answers_survive_byte_for_byte_and_big_integers_too() {
    let odd = r#"{"created":1731657600123456789012, "choices":[{"index":0,"delta":{"content":"a","x_new":[ 1.00 ]},"finish_reason":"abort"}],"service_tier":"on_demand"}"#;
    let response = answering(200, SSE, text(sse(&[odd]))).oneshot(streaming()).await.unwrap();
    assert_eq!(data(response).await, [odd, ""]);
    let odd = format!(" {} ", odd.replace("delta", "message"));
    let answer = answering(200, JSON, text(odd.clone())).oneshot(whole()).await.unwrap();
    let ResponseBody::Complete(completion) = answer.body else { panic!() };
    assert_eq!(completion.data(), odd.as_bytes());
}

#[tokio::test]
async fn usage_may_follow_the_finish_reason_and_ids_come_from_the_headers() {
    for (header, id) in [("x-request-id", "a"), ("request-id", "b"), ("apim-request-id", "c")] {
        let headers = [("content-type", "text/event-stream"), (header, id)];
        let body = text(sse(&[HELLO, STOP, USAGE, "[DONE]"]));
        let response = answering(200, &headers, body).oneshot(streaming()).await.unwrap();
        assert_eq!(response.provider_request_id.as_deref(), Some(id));
        let (chunks, _) = chunks(response).await;
        let usage = chunks[2].usage().unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (Some(3), Some(1)));
        assert!(chunks[3].is_final());
    }
    let silly = "x".repeat(1000);
    let answer = answering(200, &[("x-request-id", silly.as_str())], text(ANSWER)).oneshot(whole()).await;
    assert_eq!(answer.unwrap().provider_request_id, None);
}

#[tokio::test]
async fn done_is_the_end_with_or_without_a_finish_reason() {
    for events in [&[HELLO, "[DONE]"][..], &["[DONE]"], &[HELLO, STOP, "[DONE]", "garbage"]] {
        let response = answering(200, SSE, text(sse(events))).oneshot(streaming()).await.unwrap();
        let seen = data(response).await;
        assert_eq!(seen.len(), events.iter().position(|e| *e == "[DONE]").unwrap() + 1);
    }
}

#[tokio::test]
async fn after_done_the_body_is_polled_once_more_and_never_waited_for() {
    for end in [None, Some(Piece::Stall), Some(Piece::Break)] {
        let done = Piece::Data(sse(&[HELLO, STOP, "[DONE]"]).into());
        let pieces = Pieces::new([done].into_iter().chain(end));
        let polls = pieces.polls();
        let response = answering(200, SSE, pieces).oneshot(streaming()).await.unwrap();
        assert_eq!(data(response).await.len(), 3);
        assert_eq!(polls(), 2);
    }
}

#[tokio::test]
async fn chunks_are_given_out_as_they_come_and_nothing_is_read_ahead() {
    let pieces =
        Pieces::new([Piece::Data(sse(&[HELLO]).into()), Piece::Data(sse(&[STOP]).into()), Piece::Stall]);
    let polls = pieces.polls();
    let response = answering(200, SSE, pieces).oneshot(streaming()).await.unwrap();
    assert_eq!(polls(), 0);
    let ResponseBody::Stream(mut stream) = response.body else { panic!() };
    assert_eq!(
        task::spawn(stream.next()).poll().map(|item| item.unwrap().unwrap().data().clone()),
        std::task::Poll::Ready(HELLO.into())
    );
    assert_eq!(polls(), 1);
    stream.next().await.unwrap().unwrap();
    assert_eq!(polls(), 2);
    assert_pending!(task::spawn(stream.next()).poll());
}

type Http = http::Request<Full<Bytes>>;

#[tokio::test]
async fn backpressure_passes_and_the_instance_that_was_ready_is_called() {
    let (http, mut handle) = mock::pair::<Http, http::Response<Full<Bytes>>>();
    let mut provider = task::spawn(OpenAiCompatible::new(http, URL).unwrap());
    handle.allow(0);
    assert_pending!(provider.enter(|cx, mut service| service.poll_ready(cx)));
    handle.allow(1);
    assert!(provider.is_woken());
    assert_ready_ok!(provider.enter(|cx, mut service| service.poll_ready(cx)));
    // The mock panics if a clone that was not polled ready is called.
    let mut answer = task::spawn(provider.call(whole()));
    assert_pending!(provider.enter(|cx, mut service| service.poll_ready(cx)));
    assert_pending!(answer.poll());
    let (_, respond) = handle.next_request().await.unwrap();
    respond.send_response(http::Response::new(text(ANSWER)));
    assert_eq!(&*assert_ready_ok!(answer.poll()).model, "m-1");

    // Gone for good.
    drop(handle);
    assert_ready_err!(provider.enter(|cx, mut service| service.poll_ready(cx)));
}

#[tokio::test]
async fn a_future_dropped_at_any_point_gives_its_slot_back() {
    let slow = tower::service_fn(|_: Http| {
        std::future::pending::<Result<http::Response<Full<Bytes>>, std::io::Error>>()
    });
    let limited = tower::limit::ConcurrencyLimit::new(slow, 1);
    let mut provider = task::spawn(OpenAiCompatible::new(limited, URL).unwrap());
    for polled in [false, true] {
        assert_ready_ok!(provider.enter(|cx, mut service| service.poll_ready(cx)));
        let mut answer = task::spawn(provider.call(whole()));
        if polled {
            assert_pending!(answer.poll());
        }
        assert_pending!(provider.enter(|cx, mut service| service.poll_ready(cx)));
        drop(answer);
    }
    assert_ready_ok!(provider.enter(|cx, mut service| service.poll_ready(cx)));
}

#[tokio::test(start_paused = true)]
async fn towers_layers_stack_above_and_below() {
    let http = tower::service_fn(|_: Http| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(text(ANSWER)))
    });
    let http = tower::ServiceBuilder::new()
        .buffer::<Http>(4)
        .concurrency_limit(2)
        .timeout(Duration::from_secs(1))
        .service(http);
    let provider = OpenAiCompatible::new(http, URL).unwrap();
    let stack =
        tower::ServiceBuilder::new().concurrency_limit(1).timeout(Duration::from_secs(2)).service(provider);
    let boxed = tower::util::BoxCloneSyncService::<LlmRequest, LlmResponse, _>::new(stack);
    for _ in 0..3 {
        assert_eq!(boxed.clone().oneshot(whole()).await.unwrap().text().await.unwrap(), "Hello");
    }
}
