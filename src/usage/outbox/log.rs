//! The log: what is recorded is appended at its end, what is passed on is removed from its beginning.

use super::{
    error::{OutboxError, OutboxErrorKind},
    segment::{self, HEAD, Records, SegmentId},
};
use crate::{
    BoxError,
    store::Told,
    usage::{Durability, UsageEvent, UsageStore},
};
use fs4::{FileExt, TryLockError};
use std::{
    collections::VecDeque,
    fs::{File, Metadata, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// What whoever appends and whoever passes on have in common.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) max_bytes: u64,
    /// Known without a lock, for whoever is about to call.
    has_room: AtomicBool,
    /// Of which files it was told what is lost.
    told: Told,
    state: Mutex<State>,
    changed: Condvar,
}

/// Held by whoever writes, and by whoever passes on and removes.
pub(super) type Lock = Arc<File>;

#[derive(Default)]
pub(super) struct State {
    /// The oldest first.
    pub(super) segments: VecDeque<Segment>,
    pub(super) bytes: u64,
    /// Events in the log that are not passed on.
    pub(super) events: u64,
    pub(super) forwarded: u64,
    pub(super) damages: u64,
    pub(super) torn: u64,
    /// Events that the target refuses for ever.
    pub(super) refused: u64,
    /// Why the latest group was not passed on.
    pub(super) last_error: Option<Arc<str>>,
    /// Nothing will be appended any more.
    pub(super) is_complete: bool,
    /// There is no time left.
    pub(super) gives_up: bool,
    /// Nobody passes on any more.
    pub(super) is_over: bool,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) id: SegmentId,
    /// How far it is written.
    pub(super) length: u64,
    /// Events in it that are not passed on.
    pub(super) events: u64,
    /// Whether it still grows.
    pub(super) is_open: bool,
    /// Whether there is something in it that is no record.
    pub(super) is_damaged: bool,
}

/// Appends what is recorded.
pub(super) struct Log {
    shared: Arc<Shared>,
    durability: Durability,
    segment_bytes: u64,
    next: u64,
    /// The file that grows, and how far it is written.
    open: Option<(File, u64)>,
    buffer: Vec<u8>,
    lock: Lock,
}

impl State {
    /// So many events of the first file are not there any more, or are passed on.
    pub(super) fn less(&mut self, events: u64) {
        self.events = self.events.saturating_sub(events);
        if let Some(first) = self.segments.front_mut() {
            first.events = first.events.saturating_sub(events);
        }
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and tells who waits.
    pub(super) fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state();
        let result = change(&mut state);
        let has_room = state.bytes < self.max_bytes && !state.is_over;
        self.has_room.store(has_room, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        result
    }

    pub(super) fn has_room(&self) -> bool {
        self.has_room.load(Ordering::Acquire)
    }

    /// Waits for a change.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is no time left, or for so long.
    pub(super) fn pause(&self, time: Duration) {
        let wait = self.changed.wait_timeout_while(self.state(), time, |state| !state.gives_up);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        segment::path(&self.directory, number)
    }

    /// Whether the directory is where it was: moved away, it may come back.
    pub(super) fn is_in_place(&self) -> bool {
        self.directory.join(LOCK).exists()
    }

    /// Says in the log, once, that there is something in this file that reaches no store.
    pub(super) fn tell(&self, what: &'static str, path: &Path, error: Option<&str>) {
        let path = path.display().to_string();
        if self.told.is_new(&path) {
            tell(what, &path, error);
        }
    }

    /// Once its lock is removed the directory is anybody's, with all that is in it now.
    pub(super) fn check(&self, lock: &File) -> Result<(), OutboxError> {
        let found = lock.metadata().map_err(|error| OutboxError::of(&self.directory, error))?;
        match is_removed(&found) {
            true => Err(OutboxError::new(&self.directory, OutboxErrorKind::Removed)),
            false => Ok(()),
        }
    }
}

impl Log {
    /// Takes the directory for this process, and looks through what is there.
    pub(super) fn open(
        directory: &Path,
        durability: Durability,
        max_bytes: u64,
        segment_bytes: u64,
    ) -> Result<(Self, Arc<Shared>, Lock), OutboxError> {
        let directory = std::path::absolute(directory).map_err(|error| OutboxError::of(directory, error))?;
        std::fs::create_dir_all(&directory).map_err(|error| OutboxError::of(&directory, error))?;
        let lock = Arc::new(lock(&directory)?);
        let (mut numbers, mut last) = (Vec::new(), 0);
        let entries = std::fs::read_dir(&directory).map_err(|error| OutboxError::of(&directory, error))?;
        for entry in entries {
            let path = entry.map_err(|error| OutboxError::of(&directory, error))?.path();
            numbers.extend(segment::number(&path));
            // What was kept aside keeps its name.
            last = last.max(segment::number(&path.with_extension("")).unwrap_or(0));
        }
        numbers.sort_unstable();
        let mut state = State::default();
        let (mut empty, mut damaged) = (Vec::new(), Vec::new());
        for number in &numbers {
            let path = segment::path(&directory, *number);
            let before = state.damages;
            match look_through(&path, *number, &mut state)? {
                Some(segment) => state.segments.push_back(segment),
                None => empty.push(path),
            }
            if state.damages > before {
                damaged.push(segment::path(&directory, *number));
            }
        }
        // Only when nothing is wrong with any of them.
        for path in empty {
            std::fs::remove_file(&path).map_err(|error| OutboxError::of(&path, error))?;
        }
        let next = numbers.last().map_or(last, |newest| last.max(*newest)) + 1;
        let shared = Arc::new(Shared {
            directory,
            max_bytes,
            has_room: AtomicBool::new(false),
            told: Told::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        damaged.iter().for_each(|path| shared.tell(DAMAGED, path, None));
        let mut log = Self {
            shared: Arc::clone(&shared),
            durability,
            segment_bytes,
            next,
            open: None,
            buffer: Vec::new(),
            lock: Arc::clone(&lock),
        };
        // That it can be written is found out now, not with the first event.
        log.begin()?;
        Ok((log, shared, lock))
    }

    fn append(&mut self, group: &[UsageEvent]) -> Result<(), OutboxError> {
        if !self.shared.has_room() {
            return Err(OutboxError::new(&self.shared.directory, OutboxErrorKind::Full));
        }
        self.shared.check(&self.lock)?;
        self.buffer.clear();
        for event in group {
            segment::append(event, &mut self.buffer)
                .map_err(|error| OutboxError::of(&self.shared.directory, error))?;
        }
        if self
            .open
            .as_ref()
            .is_none_or(|(file, length)| *length >= self.segment_bytes || !is_as_written(file, *length))
        {
            self.close();
            self.begin()?;
        }
        let path = self.shared.path(self.next - 1);
        let (file, length) = self.open.as_mut().expect("it was begun");
        let written = file.write_all(&self.buffer).and_then(|()| match self.durability {
            Durability::PowerLoss => file.sync_data(),
            Durability::Memory | Durability::Kill => Ok(()),
        });
        if let Err(error) = written {
            // What is there in part goes away; if it does not, it is skipped as damage. What could not be brought to the
            // disk may be gone from memory too, so that nothing more is appended to it.
            let _ = file.set_len(*length);
            self.close();
            return Err(OutboxError::of(&path, error));
        }
        *length += self.buffer.len() as u64;
        let (length, more) = (*length, self.buffer.len() as u64);
        self.shared.update(|state| {
            state.bytes += more;
            state.events += group.len() as u64;
            if let Some(segment) = state.segments.back_mut() {
                segment.length = length;
                segment.events += group.len() as u64;
            }
        });
        if !self.shared.has_room() {
            // A file is only removed when it is ended.
            self.close();
        }
        Ok(())
    }

    /// Makes a new file to append to.
    fn begin(&mut self) -> Result<(), OutboxError> {
        let path = self.shared.path(self.next);
        let id = fastrand::u128(..);
        let file = segment::create(&path, id)?;
        if self.durability == Durability::PowerLoss {
            let synced = file.sync_all().and_then(|()| segment::sync_directory(&self.shared.directory));
            if let Err(error) = synced {
                let _ = std::fs::remove_file(&path);
                return Err(OutboxError::of(&path, error));
            }
        }
        let (number, length) = (self.next, HEAD as u64);
        self.shared.update(|state| {
            state.segments.push_back(Segment {
                number,
                id,
                length,
                events: 0,
                is_open: true,
                is_damaged: false,
            });
            state.bytes += length;
        });
        self.next += 1;
        self.open = Some((file, length));
        Ok(())
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            self.shared.update(|state| {
                if let Some(segment) = state.segments.back_mut() {
                    segment.is_open = false;
                }
            });
        }
    }
}

impl UsageStore for Log {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.append(group).map_err(Into::into)
    }

    /// What cannot be written today can be when there is room.
    fn knows_refusals(&self) -> bool {
        true
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
        self.shared.update(|state| state.is_complete = true);
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
fn tell(what: &'static str, path: &str, error: Option<&str>) {
    #[cfg(feature = "tracing")]
    tracing::error!(path, error, "{what}");
}

pub(super) const DAMAGED: &str = "usage in the outbox is damaged, and left out";
const LOCK: &str = "lock";

/// The process before this one may be just about to end: a second is waited for it.
const LOCK_WAITS: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(20);

fn lock(directory: &Path) -> Result<File, OutboxError> {
    let path = directory.join(LOCK);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(|error| OutboxError::of(&path, error))?;
    for wait in 0..=LOCK_WAITS {
        if wait > 0 {
            thread::sleep(LOCK_WAIT);
        }
        // Not the one of std, which needs a newer Rust.
        match FileExt::try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(OutboxError::of(&path, error)),
        }
    }
    Err(OutboxError::new(directory, OutboxErrorKind::InUse))
}

/// Counts what a file holds; none if it is not even begun.
fn look_through(path: &Path, number: u64, state: &mut State) -> Result<Option<Segment>, OutboxError> {
    let Some(id) = segment::read_head(path)? else { return Ok(None) };
    let bytes = std::fs::read(path).map_err(|error| OutboxError::of(path, error))?;
    let mut records = Records::new(&bytes[HEAD..]);
    let events = records.by_ref().count() as u64;
    state.events += events;
    state.damages += records.damages;
    state.torn += u64::from(records.is_torn);
    state.bytes += bytes.len() as u64;
    let is_damaged = records.damages > 0 || records.is_torn;
    Ok(Some(Segment { number, id, length: bytes.len() as u64, events, is_open: false, is_damaged }))
}

/// Whether what is appended stands behind what was: nobody has removed the file or cut it off.
fn is_as_written(file: &File, length: u64) -> bool {
    file.metadata().is_ok_and(|found| found.len() == length && !is_removed(&found))
}

#[cfg(unix)]
fn is_removed(found: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(found) == 0
}

/// Elsewhere an open file cannot be removed.
#[cfg(not(unix))]
fn is_removed(_: &Metadata) -> bool {
    false
}
