//! A body up to a bound, and never more.

use crate::BoxError;
use bytes::{Bytes, BytesMut};
use http_body::Body;
use pin_project::pin_project;
use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

#[pin_project]
pub(super) struct Collect<B> {
    #[pin]
    body: B,
    limit: usize,
    first: Bytes,
    more: BytesMut,
}

/// At most `limit` bytes, and whether that was all.
pub(super) struct Collected {
    pub(super) data: Bytes,
    pub(super) end: CollectEnd,
}

pub(super) enum CollectEnd {
    Whole,
    OverLimit,
    Broken(BoxError),
}

impl<B> Collect<B> {
    pub(super) fn new(body: B, limit: usize) -> Self {
        Self { body, limit, first: Bytes::new(), more: BytesMut::new() }
    }
}

impl<B> Collect<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(super) fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Collected> {
        let end = ready!(self.as_mut().poll_end(cx));
        Poll::Ready(Collected { data: self.take(), end })
    }

    /// What there is so far.
    pub(super) fn take(self: Pin<&mut Self>) -> Bytes {
        let this = self.project();
        let more = mem::take(this.more).freeze();
        if more.is_empty() { mem::take(this.first) } else { more }
    }

    fn poll_end(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CollectEnd> {
        let mut this = self.project();
        loop {
            match ready!(this.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(CollectEnd::Whole),
                Some(Err(error)) => return Poll::Ready(CollectEnd::Broken(error.into())),
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    let room = *this.limit - this.first.len() - this.more.len();
                    let over = data.len() > room;
                    data.truncate(room);
                    if this.first.is_empty() && this.more.is_empty() {
                        // The only piece of most answers: kept as it is.
                        *this.first = data;
                    } else {
                        if this.more.is_empty() {
                            *this.more = mem::take(this.first).into();
                        }
                        this.more.extend_from_slice(&data);
                    }
                    if over {
                        return Poll::Ready(CollectEnd::OverLimit);
                    }
                }
            }
        }
    }
}
