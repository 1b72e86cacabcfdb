use super::{Durability, SqliteLedger, StreamReader};
use crate::{BoxError, store::Redis};
use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};

/// How many entries are copied at once.
const ENTRIES: usize = 500;
/// How long to wait at the end of the stream.
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait after a failure.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Copies what all have recorded in a [`RedisStream`](super::RedisStream) into a file of SQLite, out of which questions are answered: on a
/// thread of its own, until it is [stopped](Self::stop) or dropped.
///
/// How far it has come is in a file beside that of the ledger, with `-cursor` after its name. What is copied twice is there once.
#[must_use = "nothing is copied any more once it is dropped"]
pub struct Collector {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    last_error: Mutex<Option<Arc<str>>>,
}

struct Copying {
    reader: StreamReader,
    ledger: SqliteLedger,
    /// Where it is kept how far was copied.
    cursor: PathBuf,
    runtime: Runtime,
}

impl Collector {
    /// Copies the stream `name` into the ledger at `path`, which is made if there is none.
    ///
    /// # Errors
    ///
    /// The ledger cannot be opened, or what is beside it cannot be read.
    pub fn start(redis: &Redis, name: &str, path: impl AsRef<Path>) -> Result<Self, BoxError> {
        // What is lost by a power failure is copied again.
        let ledger = SqliteLedger::open(path, Durability::Kill)?;
        let mut cursor = ledger.path().as_os_str().to_owned();
        cursor.push("-cursor");
        let cursor = PathBuf::from(cursor);
        let mut reader = StreamReader::new(redis.apart(), name);
        match fs::read_to_string(&cursor) {
            Ok(text) if is_cursor(text.trim()) => reader = reader.after(text.trim()),
            // Nobody knows how far: all is copied again, and is there once.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", cursor.display()).into()),
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared::default());
        let mut copying = Copying { reader, ledger, cursor, runtime };
        let of_thread = Arc::clone(&shared);
        thread::Builder::new().name("usage-copy".into()).spawn(move || copying.run(&of_thread))?;
        Ok(Self { shared })
    }

    /// It ends soon afterwards.
    pub fn stop(&self) {
        self.shared.is_over.store(true, Ordering::Release);
    }

    /// Why nothing could be copied the last time; `None` if it could.
    pub fn last_error(&self) -> Option<Arc<str>> {
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("last_error", &self.last_error()).finish_non_exhaustive()
    }
}

fn is_cursor(text: &str) -> bool {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    text.split_once('-').is_some_and(|(time, number)| is_number(time) && is_number(number))
}

impl Copying {
    fn run(&mut self, shared: &Shared) {
        let mut is_failing = false;
        while !shared.is_over.load(Ordering::Acquire) {
            let copied = self.copy();
            let failed = copied.as_ref().err().map(|error| {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                Arc::from(format!("{error}{cause}"))
            });
            if failed.is_some() != is_failing {
                is_failing = failed.is_some();
                report(failed.as_deref());
            }
            *shared.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            match copied {
                Ok(0) => thread::sleep(PAUSE),
                Ok(_) => {}
                Err(_) => thread::sleep(LONG_PAUSE),
            }
        }
    }

    fn copy(&mut self) -> Result<usize, BoxError> {
        let Self { reader, ledger, cursor, runtime } = self;
        let copied = runtime.block_on(reader.copy_to(ledger, ENTRIES))?;
        if copied > 0 {
            // After what it speaks of: what is copied twice is there once.
            let new = cursor.with_extension("new");
            fs::write(&new, reader.cursor())?;
            fs::rename(&new, cursor)?;
        }
        Ok(copied)
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
fn report(failed: Option<&str>) {
    #[cfg(feature = "tracing")]
    match failed {
        Some(error) => tracing::error!(error, "usage cannot be copied from redis"),
        None => tracing::info!("usage is copied from redis again"),
    }
}
