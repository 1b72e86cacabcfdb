//! Copies what all gateways have recorded into a file, from which questions are answered.

use llm_layers::{
    store::Redis,
    usage::{Durability, SqliteLedger, StreamReader},
};
use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
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

/// A thread that copies for as long as it is not stopped.
pub(crate) struct Collector {
    is_over: Arc<AtomicBool>,
}

struct Copying {
    reader: StreamReader,
    ledger: SqliteLedger,
    /// Where it is kept how far was copied.
    cursor: PathBuf,
    runtime: Runtime,
}

impl Collector {
    pub(crate) fn start(redis: &Redis, name: &str, path: &Path) -> Result<Self, Box<dyn Error>> {
        // What is lost by a power failure is copied again.
        let ledger = SqliteLedger::open(path, Durability::Kill)?;
        let mut cursor = ledger.path().as_os_str().to_owned();
        cursor.push("-cursor");
        let cursor = PathBuf::from(cursor);
        let mut reader = StreamReader::new(redis.apart(), name);
        match fs::read_to_string(&cursor) {
            Ok(text) if is_cursor(text.trim()) => reader = reader.after(text.trim()),
            // Nobody knows how far: all is copied again, and is there once.
            Ok(_) => tracing::warn!(path = %cursor.display(), "not a place in a stream"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", cursor.display()).into()),
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut copying = Copying { reader, ledger, cursor, runtime };
        let over = Arc::clone(&is_over);
        thread::Builder::new().name("usage-copy".into()).spawn(move || copying.run(&over))?;
        Ok(Self { is_over })
    }

    /// It ends soon afterwards.
    pub(crate) fn stop(&self) {
        self.is_over.store(true, Ordering::Release);
    }
}

fn is_cursor(text: &str) -> bool {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    text.split_once('-').is_some_and(|(time, number)| is_number(time) && is_number(number))
}

impl Copying {
    fn run(&mut self, is_over: &AtomicBool) {
        let mut is_failing = false;
        while !is_over.load(Ordering::Acquire) {
            let pause = match self.copy() {
                Ok(0) => PAUSE,
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    if !is_failing {
                        let cause = error.source().map(ToString::to_string);
                        tracing::error!(%error, cause, "usage cannot be copied from redis");
                    }
                    is_failing = true;
                    thread::sleep(LONG_PAUSE);
                    continue;
                }
            };
            if std::mem::take(&mut is_failing) {
                tracing::info!("usage is copied from redis again");
            }
            thread::sleep(pause);
        }
    }

    fn copy(&mut self) -> Result<usize, Box<dyn Error>> {
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
