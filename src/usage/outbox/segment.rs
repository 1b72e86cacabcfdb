//! One file of the log: a head, and records of `len | crc32 | body` behind it.

use super::error::{OutboxError, OutboxErrorKind};
use crate::usage::{UsageEvent, record};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    ops::Range,
    path::{Path, PathBuf},
};

/// Which file, for as long as there are files: by chance, so that a copy that was put back is known for what it is.
pub(super) type SegmentId = u128;

pub(super) const HEAD: usize = 32;
const MAGIC: &[u8; 8] = b"llmusage";
const PREFIX: usize = 8;
/// No event is as large; a length above it is damage.
const LARGEST: usize = 256 << 20;

/// Makes a new file with its head.
pub(super) fn create(path: &Path, id: SegmentId) -> Result<File, OutboxError> {
    let mut options = OpenOptions::new();
    options.append(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|error| OutboxError::of(path, error))?;
    let mut head = Vec::with_capacity(HEAD);
    head.extend(MAGIC);
    head.extend(record::VERSION.to_le_bytes());
    head.extend(id.to_le_bytes());
    head.extend(crc32fast::hash(&head).to_le_bytes());
    if let Err(error) = file.write_all(&head) {
        // A head in part is no log.
        let _ = std::fs::remove_file(path);
        return Err(OutboxError::of(path, error));
    }
    Ok(file)
}

/// Reads the head; none if there is not even that, as when the process ended just then.
pub(super) fn read_head(path: &Path) -> Result<Option<SegmentId>, OutboxError> {
    let file = File::open(path).map_err(|error| OutboxError::of(path, error))?;
    let mut head = Vec::with_capacity(HEAD);
    file.take(HEAD as u64).read_to_end(&mut head).map_err(|error| OutboxError::of(path, error))?;
    let foreign = || OutboxError::new(path, OutboxErrorKind::Foreign);
    let known = head.len().min(MAGIC.len());
    if head[..known] != MAGIC[..known] {
        return Err(foreign());
    }
    let Ok(head) = <[u8; HEAD]>::try_from(head) else { return Ok(None) };
    let (summed, sum) = head.split_at(HEAD - 4);
    if crc32fast::hash(summed).to_le_bytes() != *sum {
        return Err(foreign());
    }
    let number = |range: Range<usize>| head[range].try_into().expect("as long as it is read");
    let found = u32::from_le_bytes(number(8..12));
    if found != record::VERSION {
        return Err(OutboxError::new(path, OutboxErrorKind::Newer { found, known: record::VERSION }));
    }
    Ok(Some(u128::from_le_bytes(head[12..28].try_into().expect("sixteen bytes"))))
}

/// Appends an event as a record.
pub(super) fn append(event: &UsageEvent, into: &mut Vec<u8>) -> io::Result<()> {
    let start = into.len();
    into.extend([0; PREFIX]);
    record::encode(event, into).map_err(io::Error::from)?;
    let body = &into[start + PREFIX..];
    let Some(length) = u32::try_from(body.len()).ok().filter(|length| *length as usize <= LARGEST) else {
        into.truncate(start);
        return Err(io::Error::other("an event of this size is not kept"));
    };
    let sum = sum(length, body);
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
    into[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Appends an event to a file of its own, which is made if there is none.
pub(super) fn append_to(path: &Path, event: &UsageEvent) -> Result<(), OutboxError> {
    let failed = |error| OutboxError::of(path, error);
    let begin = || {
        let file = create(path, fastrand::u128(..))?;
        // Else a power failure may take the whole file.
        path.parent().map_or(Ok(()), sync_directory).map_err(failed)?;
        Ok(file)
    };
    let mut file = match path.exists() {
        false => begin()?,
        true if read_head(path)?.is_some() => OpenOptions::new().append(true).open(path).map_err(failed)?,
        // Whoever began it was killed just then.
        true => {
            std::fs::remove_file(path).map_err(failed)?;
            begin()?
        }
    };
    let mut record = Vec::new();
    append(event, &mut record).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    file.write_all(&record).and_then(|()| file.sync_data()).map_err(|error| {
        // Else the next one would stand behind half a record.
        let _ = file.set_len(length);
        failed(error)
    })
}

/// Reads the events of a file, as far as they are whole.
pub(super) fn read(path: &Path) -> Result<Vec<UsageEvent>, OutboxError> {
    if read_head(path)?.is_none() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(path).map_err(|error| OutboxError::of(path, error))?;
    Ok(Records::new(&bytes[HEAD..]).filter_map(|(body, _)| record::decode(body).ok()).collect())
}

/// Over the length too, so that a damaged one is not believed.
fn sum(length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Walks over the records of a file, or of its rest.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How often something that is no record was skipped.
    pub(super) damages: u64,
    /// Whether the file ends in the midst of a record.
    pub(super) is_torn: bool,
}

impl<'a> Records<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, damages: 0, is_torn: false }
    }

    fn body(&self, at: usize) -> Option<Range<usize>> {
        let prefix = self.bytes.get(at..at + PREFIX)?;
        let length = u32::from_le_bytes(prefix[..4].try_into().ok()?);
        let start = at + PREFIX;
        let range = start..start.checked_add(length as usize)?;
        let body = self.bytes.get(range.clone())?;
        // What is cheap to see first: damage is looked through byte by byte.
        let is_whole = body.starts_with(record::START)
            && length as usize <= LARGEST
            && sum(length, body).to_le_bytes() == prefix[4..];
        is_whole.then_some(range)
    }

    /// Whether a record seems to begin here whose end is missing.
    fn is_cut(&self, at: usize) -> bool {
        let Some(prefix) = self.bytes.get(at..at + PREFIX) else { return true };
        let length = u32::from_le_bytes(prefix[..4].try_into().expect("four bytes")) as usize;
        length <= LARGEST && at + PREFIX + length > self.bytes.len()
    }
}

impl<'a> Iterator for Records<'a> {
    /// The body, and where the record ends.
    type Item = (&'a [u8], usize);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let found = match self.body(self.at) {
            Some(body) => body,
            None => {
                let next = (self.at + 1..self.bytes.len()).find_map(|at| self.body(at));
                match next {
                    Some(body) => {
                        self.damages += 1;
                        body
                    }
                    None => {
                        match self.is_cut(self.at) {
                            true => self.is_torn = true,
                            false => self.damages += 1,
                        }
                        self.at = self.bytes.len();
                        return None;
                    }
                }
            }
        };
        self.at = found.end;
        Some((&self.bytes[found], self.at))
    }
}

/// `00000000000000000007.log`
pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:020}.log"))
}

/// The number of a file that is named as a log.
pub(super) fn number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

#[cfg(unix)]
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened as a file.
#[cfg(not(unix))]
pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
