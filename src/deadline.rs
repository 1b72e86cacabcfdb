//! Until when an answer is waited for.

use crate::{Error, ErrorKind, LlmRequest, TimeoutPhase};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// When whoever waits has waited for long enough.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Option<Instant>,
    /// Made when something has to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// `None` is never.
    pub(crate) const fn new(at: Option<Instant>) -> Self {
        Self { at, timer: None }
    }

    /// The caller's own.
    pub(crate) fn of(request: &LlmRequest) -> Self {
        Self::new(request.context.deadline().map(Instant::from_std))
    }

    pub(crate) const fn at(&self) -> Option<Instant> {
        self.at
    }

    pub(crate) fn has_passed(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// Waits for it. What an answer that is not there by then has failed with.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let Some(at) = self.at else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        timer.as_mut().poll(cx).map(|()| Self::error())
    }

    pub(crate) fn error() -> Error {
        Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Deadline })
    }
}
