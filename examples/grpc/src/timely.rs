//! Messages that have to come in time.

use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body, codegen::Bytes};

/// The body of a request, all of which is there by its time or fails.
pub(crate) struct Timely {
    body: Body,
    by: Instant,
    /// Registered when something has to be waited for.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timely {
    /// `within` is a time of the configuration, which is no longer than a year.
    pub(crate) fn new(body: Body, within: Duration) -> Self {
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
        if polled.is_ready() {
            return polled;
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
