use crate::config::{Config, ConfigError};
use blake3::{Hash, Hasher};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// Looks whether a file of a configuration has changed, or one that it refers to.
///
/// It looks at what is in the file, so that it does not matter how it got there: written over, renamed, or by a symbolic link that points
/// elsewhere. A change counts when it was seen twice, for a file may be read while it is written.
///
/// ```no_run
/// use llm_layers::{config::Config, stack::{Handle, Watch}};
/// use std::time::Duration;
///
/// # async fn example(handle: Handle) {
/// let mut watch = Watch::new("gateway.toml", &handle.config());
/// loop {
///     let changed = watch.changed(Duration::from_secs(1)).await;
///     if let Err(error) = changed.and_then(|config| handle.reload(config)) {
///         eprintln!("the configuration stays as it was:\n{error}");
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    others: Vec<PathBuf>,
    /// What was taken, or refused.
    known: Seen,
    /// What was seen the last time.
    last: Seen,
}

/// `None` in either is a file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    content: Option<Hash>,
    others: Vec<Option<Hash>>,
}

impl Seen {
    fn now(path: &Path, others: &[PathBuf]) -> Self {
        Self { content: content(path), others: others.iter().map(|path| content(path)).collect() }
    }
}

/// What is in a file. A pipe is none: whoever looks into it takes what is in there, or waits for ever.
fn content(path: &Path) -> Option<Hash> {
    let mut hasher = Hasher::new();
    let is_file = fs::metadata(path).ok()?.is_file();
    is_file.then(|| hasher.update_reader(fs::File::open(path)?).map(|hasher| hasher.finalize()))?.ok()
}

impl Watch {
    /// Watches the file at `path`, out of which `config` was read.
    pub fn new(path: impl Into<PathBuf>, config: &Config) -> Self {
        let (path, others) = (path.into(), config.files());
        let last = Seen::now(&path, &others);
        // It may have changed since it was read, unless it is a pipe.
        let content = last.content.map(|content| config.digest().unwrap_or(content));
        let known = Seen { content, ..last.clone() };
        Self { known, last, path, others }
    }

    /// Looks once: what is in the file now, if it is something else than before and was so the last time too.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, once.
    pub fn look(&mut self) -> Option<Result<Config, ConfigError>> {
        let now = Seen::now(&self.path, &self.others);
        let is_settled = now == self.last;
        self.last = now;
        (is_settled && self.last != self.known).then(|| self.read())
    }

    /// Reads the file whether it has changed or not, as on a signal.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn read(&mut self) -> Result<Config, ConfigError> {
        let before = Seen::now(&self.path, &self.others);
        let read = Config::read(&self.path);
        match &read {
            Ok(config) => self.others = config.files(),
            // One that is missing may come.
            Err(error) => {
                self.others.extend_from_slice(error.refers_to());
                self.others.sort();
                self.others.dedup();
            }
        }
        // What was written while it was read is another change.
        self.known = Seen { content: before.content, ..Seen::now(&self.path, &self.others) };
        self.last = self.known.clone();
        read
    }

    /// Waits until the file has changed, and reads it. Looks `every` so often, which is to read all of the files.
    ///
    /// # Errors
    ///
    /// All that is wrong with it; each change is told once.
    ///
    /// # Cancel safety
    ///
    /// No change is missed.
    pub async fn changed(&mut self, every: Duration) -> Result<Config, ConfigError> {
        loop {
            tokio::time::sleep(every).await;
            if let Some(read) = self.look() {
                return read;
            }
        }
    }
}
