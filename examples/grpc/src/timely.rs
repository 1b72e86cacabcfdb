//! Messages that have to come in time.

use crate::chat::full;
use http_body::{Frame, SizeHint};
use llm_layers::{Error, ErrorKind};
use std::{
    iter::successors,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{
    Status,
    codegen::{Bytes, StdError},
    service::AxumBody,
};

/// The body of a request, all of which is there by its time or fails.
pub(crate) struct Timely {
    body: AxumBody,
    by: Instant,
    /// Registered when something has to be waited for.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    /// `within` is a time of the configuration, which is no longer than a year.
    pub(crate) fn new(body: AxumBody, within: Duration) -> Self {
        Self { body, by: Instant::now() + within, sleep: None }
    }
}

impl http_body::Body for Timely {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(frame) = polled {
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| status(error.into_inner()))));
        }
        let by = this.by;
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(sleep_until(by)));
        sleep
            .as_mut()
            .poll(cx)
            .map(|()| Some(Err(Status::deadline_exceeded("the message did not come in time"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a message does not come. That there is no room for more of it is said by an error of ours.
fn status(error: StdError) -> Status {
    let first: &(dyn std::error::Error + 'static) = &*error;
    let mut causes = successors(Some(first), |&cause| cause.source());
    let own = causes.find_map(|cause| cause.downcast_ref::<Error>());
    match own.map(Error::kind) {
        Some(ErrorKind::Overloaded) => full(),
        _ => Status::from_error(error),
    }
}
