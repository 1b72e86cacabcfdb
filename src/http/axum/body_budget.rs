use crate::{Error, ErrorKind};
use axum_core::{body::Body, extract::Request};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

/// How many bytes of requests' bodies may be in memory at once, of all requests together. Clones share it.
///
/// What bounds calls in flight does so inside the stack, once a body was read; this bounds what is read, and what is held until an answer
/// begins.
///
/// ```
/// use axum_core::{body::Body, extract::Request};
/// use llm_layers::http::axum::BodyBudget;
///
/// let budget = BodyBudget::new(1 << 20);
/// let mut request = Request::new(Body::from("Hello"));
/// // Before the extractor; bodies of more than 64 KiB are refused by it.
/// let held = budget.hold(&mut request, 64 << 10)?;
/// // When the answer begins:
/// drop(held);
/// # Ok::<(), llm_layers::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BodyBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    bytes: usize,
    held: AtomicUsize,
}

/// A body's share of a [`BodyBudget`], until it is dropped.
#[derive(Debug)]
#[must_use = "it is given back when it is dropped"]
pub struct HeldBody(Share);

#[derive(Debug)]
enum Share {
    /// Of a small body, whose length was told.
    Told(BodyBudget, usize),
    /// Of one that takes as much as has come.
    Growing(Arc<Growing>),
}

#[derive(Debug)]
struct Growing {
    budget: BodyBudget,
    taken: AtomicUsize,
    /// The request is refused or answered: what still comes of it is thrown away.
    is_over: AtomicBool,
}

/// A body that takes its share as it comes.
struct Counted {
    body: Body,
    share: Arc<Growing>,
    /// Nobody keeps more than this.
    most: usize,
}

/// A body that is announced with no more takes its share at once: it comes in one piece. Who announces more has to send it first, or nobody
/// else could send anything.
const SMALL: usize = 64 << 10;

impl BodyBudget {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Budget { bytes, held: AtomicUsize::new(0) }))
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Sees to it that the body of `request` takes its share when it is read, of which nobody keeps more than `most` bytes. Where there is no
    /// room for more while it comes, it ends in an error, which the extractors pass on.
    ///
    /// # Errors
    ///
    /// [`Overloaded`](ErrorKind::Overloaded) if there is no room for a body of the length that is announced.
    pub fn hold(&self, request: &mut Request, most: usize) -> Result<HeldBody, Error> {
        let length = request.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
        match length {
            Some(bytes) if bytes <= SMALL.min(most) => {
                self.take(bytes)?;
                return Ok(HeldBody(Share::Told(self.clone(), bytes)));
            }
            Some(bytes) if bytes <= most && bytes > self.0.bytes.saturating_sub(self.held()) => {
                return Err(Error::new(ErrorKind::Overloaded));
            }
            _ => {}
        }
        let (taken, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let share = Arc::new(Growing { budget: self.clone(), taken, is_over });
        let body = mem::take(request.body_mut());
        *request.body_mut() = Body::new(Counted { body, share: Arc::clone(&share), most });
        Ok(HeldBody(Share::Growing(share)))
    }

    fn take(&self, bytes: usize) -> Result<(), Error> {
        let Budget { bytes: all, held } = &*self.0;
        let more = |now: usize| now.checked_add(bytes).filter(|then| then <= all);
        let taken = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|_| Error::new(ErrorKind::Overloaded))
    }

    fn give_back(&self, bytes: usize) {
        self.0.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Growing {
    fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.budget.give_back(self.taken.swap(0, Ordering::SeqCst));
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        match &self.0 {
            Share::Told(budget, bytes) => budget.give_back(*bytes),
            Share::Growing(share) => share.end(),
        }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum_core::Error>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(Ok(frame)) = &polled else { return Poll::Ready(polled) };
        let Growing { budget, taken, is_over } = &*self.share;
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if is_over.load(Ordering::Relaxed) || taken.load(Ordering::Relaxed) > self.most {
            return Poll::Ready(polled);
        }
        match budget.take(bytes) {
            Ok(()) => {
                taken.fetch_add(bytes, Ordering::SeqCst);
                // Meanwhile, on another thread: then nobody else gives this back.
                if is_over.load(Ordering::SeqCst) {
                    self.share.end();
                }
                Poll::Ready(polled)
            }
            Err(error) => {
                // What had come is not kept either.
                self.share.end();
                Poll::Ready(Some(Err(axum_core::Error::new(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LlmRequest, http::axum::ChatRequest};
    use axum_core::{extract::FromRequest, response::IntoResponse};
    use futures_util::stream;
    use http::{StatusCode, header};

    fn json(bytes: usize) -> Bytes {
        let filler = "x".repeat(bytes);
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{filler}"}}]}}"#).into()
    }

    /// A request whose length is told, or that comes in pieces of a thousand bytes.
    fn request(body: Bytes, is_told: bool) -> Request {
        let body = match is_told {
            true => Body::from(body),
            false => {
                let pieces: Vec<_> =
                    body.chunks(1_000).map(Bytes::copy_from_slice).map(Ok::<_, Error>).collect();
                Body::new(http_body_util::StreamBody::new(stream::iter(
                    pieces.into_iter().map(|it| it.map(Frame::data)),
                )))
            }
        };
        Request::post("/").header(header::CONTENT_TYPE, "application/json").body(body).unwrap()
    }

    async fn read(budget: &BodyBudget, mut request: Request) -> Result<(LlmRequest, HeldBody), StatusCode> {
        let status = |error| crate::http::status(&error);
        let held = budget.hold(&mut request, 32 << 20).map_err(status)?;
        let read = ChatRequest::from_request(request, &()).await;
        read.map(|ChatRequest(request)| (request, held)).map_err(|refused| refused.into_response().status())
    }

    #[tokio::test]
    async fn what_is_held_is_what_has_come_and_all_of_it_is_given_back() {
        for (bytes, is_told) in [(10, true), (10, false), (100_000, true), (100_000, false)] {
            let (budget, body) = (BodyBudget::new(250_000), json(bytes));
            let first = read(&budget, request(body.clone(), is_told)).await.unwrap();
            assert_eq!(budget.held(), body.len(), "{bytes} {is_told}");
            let second = read(&budget, request(body.clone(), is_told)).await.unwrap();
            assert_eq!(budget.held(), 2 * body.len(), "{bytes} {is_told}");
            if bytes == 100_000 {
                for is_told in [true, false] {
                    let refused = read(&budget, request(body.clone(), is_told)).await.unwrap_err();
                    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
                    assert_eq!(budget.held(), 2 * body.len(), "of what is refused nothing is held");
                }
            }
            drop((first, second));
            assert_eq!(budget.held(), 0, "{bytes} {is_told}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_refused_for_that() {
        for is_told in [true, false] {
            let budget = BodyBudget::new(250_000);
            let mut request = request(json(200_000), is_told);
            request.extensions_mut().insert(crate::BodyLimits { max_bytes: 100_000, ..Default::default() });
            let held = budget.hold(&mut request, 100_000).unwrap();
            let refused = ChatRequest::from_request(request, &()).await.unwrap_err().into_response();
            assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
            drop(held);
            assert_eq!(budget.held(), 0);
        }
    }
}
