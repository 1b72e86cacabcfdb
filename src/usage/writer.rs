//! Writes what a queue hands over: a group at a time, and one by one where an event spoils its group.

use super::{Done, LogPosition, UsageEvent, UsageStore, queue::Inbox, queue::Letter};
use crate::{BoxError, caught::caught, fallback::Backoff};
use std::{fmt, mem, slice, sync::Arc};

/// Of a group of events: one of them will be refused however often it is offered, and the store is not to blame.
///
/// What a [`UsageStore`] fails with where it knows that: one event too large to be kept, a text that it has no form for.
#[derive(Debug)]
pub struct Refused(BoxError);

/// An event that a store refuses for ever.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SetAside {
    /// The event.
    pub event: UsageEvent,
    /// What the store says.
    pub cause: Arc<str>,
}

/// A store whose panics are errors, for they must not end the thread that writes for all.
pub(super) struct Caught<S>(pub(super) S);

pub(super) struct Writer<'a, S> {
    store: S,
    most: usize,
    backoff: Backoff,
    inbox: &'a Inbox,
    group: Vec<UsageEvent>,
    /// One for each event of the group.
    fates: Vec<Fate>,
    /// The one that was written last: a store that works takes it again.
    control: Option<UsageEvent>,
}

/// What becomes of one event.
struct Fate {
    /// Who waits for it.
    done: Option<Done>,
    /// How often it was refused while others were written.
    strikes: u32,
}

/// How often a group fails before one of its events is suspected.
pub(super) const PATIENCE: u32 = 3;
/// How often an event is refused, while others are written, before it is set aside.
pub(super) const STRIKES: u32 = 3;
/// How many events are refused in a row before it is the store that is suspected.
const IN_A_ROW: usize = 16;

impl Refused {
    /// For this reason.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        Self(cause.into())
    }

    pub(super) fn is(error: &BoxError) -> bool {
        error.is::<Self>()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event cannot be kept there")
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

impl SetAside {
    fn new(event: UsageEvent, error: &BoxError) -> Self {
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Self { event, cause: cause.into() }
    }
}

const WHO: &str = "the store";

#[deny(clippy::missing_trait_methods)]
impl<S: UsageStore> UsageStore for Caught<S> {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        caught(WHO, || self.0.write(group))?
    }

    fn knows_refusals(&self) -> bool {
        caught(WHO, || self.0.knows_refusals()).unwrap_or(false)
    }

    fn write_from(&mut self, position: LogPosition<'_>, group: &[UsageEvent]) -> Result<(), BoxError> {
        caught(WHO, || self.0.write_from(position, group))?
    }
}

impl<S> Extend<Letter> for Writer<'_, S> {
    fn extend<I: IntoIterator<Item = Letter>>(&mut self, letters: I) {
        for (event, done) in letters {
            self.group.push(event);
            self.fates.push(Fate { done, strikes: 0 });
        }
    }
}

impl<'a, S: UsageStore> Writer<'a, S> {
    pub(super) const fn new(store: S, most: usize, backoff: Backoff, inbox: &'a Inbox) -> Self {
        Self { store, most, backoff, inbox, group: Vec::new(), fates: Vec::new(), control: None }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.group.is_empty()
    }

    /// Writes the group, whatever it takes; `false` if there is no time left.
    pub(super) fn write(&mut self) -> bool {
        for tries in 0_u32.. {
            if !self.inbox.offers(self.group.len()) {
                return false;
            }
            let Err(error) = self.store.write(&self.group) else {
                self.inbox.works();
                self.inbox.wrote(self.group.len());
                self.control = self.group.pop();
                self.group.clear();
                self.fates.drain(..).for_each(Fate::written);
                break;
            };
            self.inbox.failed(&error);
            let is_refused = Refused::is(&error);
            let may_guess = tries >= PATIENCE && !self.store.knows_refusals();
            if is_refused || (may_guess && self.store_works(tries as usize)) {
                self.write_apart(!is_refused);
            }
            if self.is_empty() {
                self.inbox.works();
                break;
            }
            if !self.inbox.wait_to_retry(self.backoff.after(tries)) {
                return false;
            }
            if tries >= PATIENCE && self.group.len() < self.most {
                // Others, to see by them whether it is the store.
                let room = self.most - self.group.len();
                let mut newcomers = Vec::new();
                self.inbox.more(room, &mut newcomers);
                self.extend(newcomers);
            }
        }
        self.inbox.offers(0)
    }

    /// Whether the store takes another event of the group, a new one each time; if it has taken all others, whether it
    /// takes one of those again.
    fn store_works(&mut self, tries: usize) -> bool {
        if !self.inbox.offers(self.group.len()) {
            return false;
        }
        let are_suspects = self.fates.iter().all(|fate| fate.strikes > 0);
        if let (true, Some(control)) = (are_suspects, &self.control) {
            return self.store.write(slice::from_ref(control)).is_ok();
        }
        let at = tries % self.group.len();
        // Alone it was refused just now.
        let is_written = self.group.len() > 1 && self.store.write(slice::from_ref(&self.group[at])).is_ok();
        if is_written {
            self.control = Some(self.group.swap_remove(at));
            self.fates.swap_remove(at).written();
            self.inbox.wrote(1);
        }
        is_written
    }

    /// Writes each event by itself, and sets those aside that are to blame. `works`: the store has just written another.
    fn write_apart(&mut self, mut works: bool) {
        let events = mem::take(&mut self.group).into_iter().zip(mem::take(&mut self.fates));
        let (mut left, mut in_a_row) = (events.len(), 0);
        for (event, mut fate) in events {
            if in_a_row < IN_A_ROW && self.inbox.offers(left) {
                let Err(error) = self.store.write(slice::from_ref(&event)) else {
                    self.inbox.wrote(1);
                    fate.written();
                    self.control = Some(event);
                    (left, in_a_row, works) = (left - 1, 0, true);
                    continue;
                };
                fate.strikes += u32::from(works);
                if Refused::is(&error) || fate.strikes >= STRIKES {
                    // With its ticket: whoever waits learns that it is in vain.
                    self.inbox.put_aside(SetAside::new(event, &error));
                    left -= 1;
                    continue;
                }
                in_a_row += 1;
            }
            self.group.push(event);
            self.fates.push(fate);
        }
    }
}

impl Fate {
    fn written(self) {
        if let Some(done) = self.done {
            done.tell();
        }
    }
}
