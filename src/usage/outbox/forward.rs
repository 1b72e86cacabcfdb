//! Passes on what is in the log, in its order, and removes it.

use super::{
    error::OutboxError,
    log::{DAMAGED, Lock, Segment, Shared},
    segment::{self, HEAD, Records},
};
use crate::{
    BoxError,
    fallback::Backoff,
    store::Trouble,
    usage::{
        LogPosition, Refused, UsageEvent, UsageStore, record,
        writer::{Caught, PATIENCE, STRIKES},
    },
};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    slice,
    sync::Arc,
};

/// What no store takes.
const REFUSED: &str = "refused.log";

pub(super) struct Forwarder<T> {
    pub(super) shared: Arc<Shared>,
    pub(super) target: Caught<T>,
    pub(super) group: usize,
    pub(super) backoff: Backoff,
    /// How far the first file is passed on.
    at: u64,
    /// Up to where records that cannot be read are counted.
    counted: u64,
    is_damaged: bool,
    /// How often the first group has failed.
    tries: u32,
    /// How often its first event alone was refused, while the store took others.
    strikes: u32,
    lock: Lock,
}

enum Next {
    /// There is more in this file.
    More(Segment),
    /// It is passed on and grows no more.
    Done(Segment),
    Over,
}

/// Tells, whatever happens, that nothing is passed on any more.
struct Over(Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.update(|state| state.is_over = true);
    }
}

impl<T: UsageStore> Forwarder<T> {
    pub(super) fn new(shared: Arc<Shared>, lock: Lock, target: T, group: usize, backoff: Backoff) -> Self {
        Self {
            shared,
            target: Caught(target),
            group: group.max(1),
            backoff,
            at: HEAD as u64,
            counted: 0,
            is_damaged: false,
            tries: 0,
            strikes: 0,
            lock,
        }
    }

    pub(super) fn run(mut self) {
        let (over, trouble) = (Over(Arc::clone(&self.shared)), Trouble::default());
        loop {
            let result = match self.next() {
                Next::More(segment) => self.pass_on(segment),
                Next::Done(segment) => self.remove(segment),
                Next::Over => break,
            };
            let error = match result {
                Ok(()) => {
                    trouble.works("usage is passed on again");
                    self.tries = 0;
                    continue;
                }
                Err(error) => error,
            };
            self.shared.state().last_error = Some(error.to_string().into());
            if self.tries >= PATIENCE {
                trouble.fails("usage is not passed on, and kept in the outbox", &error.to_string());
            }
            self.shared.pause(self.backoff.after(self.tries));
            self.tries = self.tries.saturating_add(1);
        }
        drop(over);
    }

    fn next(&self) -> Next {
        let mut state = self.shared.state();
        loop {
            if state.gives_up {
                return Next::Over;
            }
            match state.segments.front() {
                Some(segment) if self.at < segment.length => return Next::More(*segment),
                Some(segment) if !segment.is_open => return Next::Done(*segment),
                None if state.is_complete => return Next::Over,
                _ => state = self.shared.wait(state),
            }
        }
    }

    fn pass_on(&mut self, segment: Segment) -> Result<(), BoxError> {
        self.shared.check(&self.lock)?;
        let path = self.shared.path(segment.number);
        let bytes = match File::open(&path) {
            Ok(file) => self.rest_of(file, segment)?,
            // As good as cut off at its beginning.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.shared.is_in_place() => Vec::new(),
            Err(error) => return Err(OutboxError::of(&path, error).into()),
        };
        let (mut group, mut ends) = (Vec::with_capacity(self.group), Vec::with_capacity(self.group));
        let start = self.at;
        let mut records = Records::new(&bytes);
        loop {
            let next = records.next();
            if let Some((body, end)) = next {
                match record::decode(body) {
                    Ok(event) => {
                        group.push(event);
                        ends.push(start + end as u64);
                    }
                    // Whole, but not what is written today: kept aside with its file.
                    Err(_) => self.skip(&path, start + end as u64),
                }
            }
            if group.len() >= self.group || (next.is_none() && !group.is_empty()) {
                self.write(segment, &group, &ends)?;
                group.clear();
                ends.clear();
            }
            if next.is_none() {
                break;
            }
        }
        // To its end, also where that is no record.
        self.at = segment.length;
        Ok(())
    }

    fn rest_of(&self, mut file: File, segment: Segment) -> io::Result<Vec<u8>> {
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(segment.length - self.at).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a group; if that fails for long, what is in front of the event that is to blame, or sets that one aside.
    fn write(&mut self, segment: Segment, group: &[UsageEvent], ends: &[u64]) -> Result<(), BoxError> {
        let Err(error) = self.target.write_from(LogPosition { log: segment.id, ends }, group) else {
            return self.passed_on(group, ends);
        };
        if !Refused::is(&error) && self.tries < PATIENCE {
            return Err(error);
        }
        for (at, end) in ends.iter().enumerate() {
            let (event, end) = (slice::from_ref(&group[at]), slice::from_ref(end));
            let Err(error) = self.target.write_from(LogPosition { log: segment.id, ends: end }, event) else {
                self.passed_on(event, end)?;
                continue;
            };
            if !Refused::is(&error) {
                if self.target.knows_refusals() {
                    return Err(error);
                }
                self.strikes += u32::from(self.target_works(&group[at + 1..]));
                if self.strikes < STRIKES {
                    return Err(error);
                }
            }
            self.set_aside(&event[0], end[0], &error.to_string())?;
        }
        Ok(())
    }

    /// Whether the target takes one of those behind, another one each time. Without its place, for those before it have yet
    /// to come; then it is known by its id.
    fn target_works(&mut self, behind: &[UsageEvent]) -> bool {
        let other = behind.get(self.tries as usize % behind.len().max(1));
        other.is_some_and(|other| self.target.write(slice::from_ref(other)).is_ok())
    }

    fn passed_on(&mut self, group: &[UsageEvent], ends: &[u64]) -> Result<(), BoxError> {
        self.at = ends.last().copied().unwrap_or(self.at);
        self.strikes = 0;
        self.shared.update(|state| {
            state.less(group.len() as u64);
            state.forwarded += group.len() as u64;
            state.last_error = None;
        });
        // One file may take longer than there is time.
        match self.shared.state().gives_up {
            true => Err("there is no time left".into()),
            false => Ok(()),
        }
    }

    /// Keeps what the target refuses for ever in a file of its own.
    fn set_aside(&mut self, event: &UsageEvent, end: u64, error: &str) -> Result<(), BoxError> {
        let path = self.shared.directory.join(REFUSED);
        segment::append_to(&path, event)?;
        self.shared.tell("usage was refused for ever, and is kept aside", &path, Some(error));
        (self.at, self.strikes) = (end, 0);
        self.shared.update(|state| {
            state.less(1);
            state.refused += 1;
            state.last_error = None;
        });
        Ok(())
    }

    fn skip(&mut self, path: &Path, end: u64) {
        self.is_damaged = true;
        self.shared.tell(DAMAGED, path, None);
        if end > self.counted {
            self.counted = end;
            self.shared.update(|state| {
                state.damages += 1;
                state.less(1);
            });
        }
    }

    fn remove(&mut self, segment: Segment) -> Result<(), BoxError> {
        self.shared.check(&self.lock)?;
        let path = self.shared.path(segment.number);
        let is_damaged = segment.is_damaged || self.is_damaged || segment.events > 0;
        let removed = match is_damaged {
            // Somebody may want to look at it.
            true => std::fs::rename(&path, path.with_extension("log.bad")),
            false => std::fs::remove_file(&path),
        };
        match removed {
            // As good as done.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(|error| OutboxError::of(&path, error))?,
        }
        if segment.events > 0 {
            self.shared.tell(DAMAGED, &path, None);
        }
        self.shared.update(|state| {
            // They were there when they were written.
            state.damages += segment.events;
            state.less(segment.events);
            state.segments.pop_front();
            state.bytes = state.bytes.saturating_sub(segment.length);
        });
        (self.at, self.counted, self.is_damaged) = (HEAD as u64, 0, false);
        Ok(())
    }
}
