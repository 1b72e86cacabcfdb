//! A layer that you have written, tested by the contract that all layers of the crate keep.
//!
//! [`Redact`] keeps what looks like a card's number away from providers. It is a pass-through: the other shapes that a layer can
//! have are in `docs/writing-a-layer.md`.
//!
//! ```sh
//! cargo run --example one_layer
//! cargo test --example one_layer --features testing
//! ```

use futures_util::{
    TryFutureExt as _,
    future::{Either, ErrInto, Ready, err},
};
use llm_layers::{ChatBody, Error, LlmRequest, LlmResponse, provider::Echo};
use serde_json::Value;
use std::task::{Context, Poll};
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};

/// Applies [`Redact`] to a service.
#[derive(Debug, Clone, Copy, Default)]
struct RedactLayer;

/// Puts stars where a message has 13 digits or more in a row, blanks and hyphens between them or not.
///
/// Belongs outside of a cache, so that what is kept does not hold them either, and inside of nothing that has seen the
/// message: what stands further out still knows it.
#[derive(Debug, Clone, Copy)]
struct Redact<S> {
    inner: S,
}

impl<S> Layer<S> for RedactLayer {
    type Service = Redact<S>;

    fn layer(&self, inner: S) -> Redact<S> {
        Redact { inner }
    }
}

impl<S> Service<LlmRequest> for Redact<S>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    // Named, so that nothing is boxed: the service's own future, or a refusal.
    type Future = Either<ErrInto<S::Future, Error>, Ready<Result<LlmResponse, Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        match redacted(&request.body) {
            Ok(None) => {}
            // An overlay: all other members keep the bytes that they came in.
            Ok(Some(body)) => request.body = body,
            Err(error) => return Either::Right(err(error)),
        }
        Either::Left(self.inner.call(request).err_into())
    }
}

/// The body without numbers of cards; `None` if there are none, which is nearly always, and costs no copy.
fn redacted(body: &ChatBody) -> Result<Option<ChatBody>, Error> {
    if !body.messages().any(|message| hide(&message.text()).is_some()) {
        return Ok(None);
    }
    let mut messages: Value = body.get("messages")?.unwrap_or_default();
    each_text(&mut messages, &mut |text| {
        if let Some(hidden) = hide(text) {
            *text = hidden;
        }
    });
    body.with("messages", messages).map(Some)
}

/// The text with stars; `None` if there is nothing to hide.
fn hide(text: &str) -> Option<String> {
    let (mut out, mut run) = (String::new(), String::new());
    let mut found = false;
    for c in text.chars().map(Some).chain([None]) {
        if let Some(c) = c.filter(|c| c.is_ascii_digit() || (matches!(c, ' ' | '-') && !run.is_empty())) {
            run.push(c);
            continue;
        }
        let number = run.trim_end_matches([' ', '-']);
        let digits = number.bytes().filter(u8::is_ascii_digit).count();
        if digits >= 13 {
            found = true;
            out += "****";
            out += &run[number.len()..];
        } else {
            out += &run;
        }
        run.clear();
        out.extend(c);
    }
    found.then_some(out)
}

fn each_text(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if matches!(&**name, "content" | "text") => change(text),
                    Value::Array(_) | Value::Object(_) => each_text(value, change),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let service = ServiceBuilder::new().layer(RedactLayer).service(Echo::new());
    let body = ChatBody::builder().user("Charge 4111 1111 1111 1111, please.").build()?;
    let answer = service.oneshot(LlmRequest::new("echo", body)).await?;
    println!("the provider was told: {}", answer.text().await?);
    Ok(())
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use llm_layers::{Message, Part, testing::Contract};

    #[tokio::test]
    async fn it_keeps_the_contract() {
        Contract::layer(RedactLayer).check().await;
        let body = ChatBody::builder().user("Charge 4111-1111-1111-1111.").build().unwrap();
        Contract::layer(RedactLayer).with_request(LlmRequest::new("probe/model", body)).check().await;
    }

    fn sent(body: ChatBody) -> String {
        let body = redacted(&body).unwrap().unwrap_or(body);
        String::from_utf8(body.to_json("m").to_vec()).unwrap()
    }

    #[test]
    fn numbers_of_cards_are_hidden_wherever_a_message_has_text() {
        let number = "4111 1111 1111 1111";
        let parts = [
            Part::text(format!("It is {number}!")),
            Part::image_url("https://example.com/4111111111111111.png"),
        ];
        let body = ChatBody::builder().system(number).message(Message::user_parts(parts)).set("top_k", 3.0);
        let sent = sent(body.build().unwrap());
        assert!(!sent.contains(number) && sent.contains("It is ****!"), "{sent}");
        assert!(sent.contains("4111111111111111.png") && sent.contains("\"top_k\":3.0"), "{sent}");
    }

    #[test]
    fn what_has_no_such_number_keeps_its_bytes() {
        let json = r#"{"messages":[{"role":"user","content":"Call 555-0199 in 2026, \u00e4 1.0"}],"temperature":1.0}"#;
        let body = ChatBody::parse(json).unwrap();
        assert!(redacted(&body).unwrap().is_none());
    }

    #[test]
    fn only_long_runs_of_digits_are_numbers_of_cards() {
        assert_eq!(hide("4111111111111111"), Some("****".to_owned()));
        assert_eq!(hide("a 4111 1111 1111 1111 b"), Some("a **** b".to_owned()));
        assert_eq!(hide("12 34, 2026-11-27"), None);
    }
}
