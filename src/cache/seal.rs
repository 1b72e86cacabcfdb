use super::{
    ByteStore, CacheKey, CacheSecret, CacheStore, Entry, Fetch,
    entry::{Answer, Bond},
    epoch::{EpochStore, Stamp},
};
use crate::{BoxError, Completion, StreamChunk};
use bytes::{Buf, BufMut, Bytes};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

/// Keeps entries in a [`ByteStore`], each with a seal over the key that it is for and everything that it says.
///
/// What comes back is an entry only if its seal is right: an entry of another key, of another deployment, cut off, or
/// with a single bit changed is [`Unreadable`], and so a miss. Sealing runs off the path of calls.
#[derive(Clone)]
pub struct SealedStore<B> {
    bytes: Arc<B>,
    secret: CacheSecret,
    #[cfg(feature = "encrypt")]
    encrypts: bool,
}

/// What a store fails with where there is something under a key, and it is not what was put there. The call is a miss, and the
/// store is asked again for the next: it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store has answered with something else than was kept")
    }
}

impl std::error::Error for Unreadable {}

/// The first byte: how the rest is to be read.
const SEALED: u8 = 1;
#[cfg(feature = "encrypt")]
const ENCRYPTED: u8 = 2;

const SEAL: usize = 32;

impl<B: ByteStore> SealedStore<B> {
    /// Keeps entries in `bytes`, for those who have `secret`: the one of the policy, or another.
    pub fn new(bytes: B, secret: CacheSecret) -> Self {
        Self {
            bytes: Arc::new(bytes),
            secret,
            #[cfg(feature = "encrypt")]
            encrypts: false,
        }
    }

    /// Encrypts entries too, by XChaCha20-Poly1305: who reads the store learns sizes and times, and nothing else.
    #[cfg(feature = "encrypt")]
    #[must_use]
    pub fn encrypted(mut self) -> Self {
        self.encrypts = true;
        self
    }

    /// The store of bytes.
    pub fn get_ref(&self) -> &B {
        &self.bytes
    }

    fn seal(&self, entry: &Entry) -> Bytes {
        let plain = write(entry);
        #[cfg(feature = "encrypt")]
        if self.encrypts {
            return encrypted::seal(&self.secret, entry.key(), &plain);
        }
        let mut out = Vec::with_capacity(1 + plain.len() + SEAL);
        out.push(SEALED);
        out.extend_from_slice(&plain);
        let seal = *tag(&self.secret, entry.key(), &out).as_bytes();
        out.extend_from_slice(&seal);
        out.into()
    }

    fn open(&self, key: &CacheKey, sealed: &Bytes) -> Option<Entry> {
        let plain = match (sealed.first()?, sealed.len().checked_sub(SEAL)?) {
            #[cfg(feature = "encrypt")]
            (&ENCRYPTED, _) if self.encrypts => encrypted::open(&self.secret, key, sealed)?,
            #[cfg(feature = "encrypt")]
            _ if self.encrypts => return None,
            (&SEALED, end @ 1..) => {
                let (said, seal) = (sealed.slice(..end), <[u8; SEAL]>::try_from(&sealed[end..]).ok()?);
                // Compares in constant time.
                (tag(&self.secret, key, &said) == blake3::Hash::from_bytes(seal)).then(|| said.slice(1..))?
            }
            _ => return None,
        };
        read(plain).filter(|entry| entry.key() == key)
    }
}

fn tag(secret: &CacheSecret, key: &CacheKey, said: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret.seal());
    hasher.update(key.as_bytes()).update(said).finalize()
}

impl<B: ByteStore> CacheStore for SealedStore<B> {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        let opened = {
            let (store, key) = (self.clone_ref(), *key);
            move |sealed: Option<Bytes>| -> Result<Option<Arc<Entry>>, BoxError> {
                let Some(sealed) = sealed else { return Ok(None) };
                let entry = store.open(&key, &sealed).ok_or(Unreadable)?;
                Ok(Some(Arc::new(entry)))
            }
        };
        let found = self.bytes.get(key);
        Fetch::pending(async move { opened(found.wait().await?) })
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        let store = self.clone_ref();
        Fetch::pending(async move {
            let sealed = store.seal(&entry);
            store.bytes.put(entry.key(), sealed, entry.ttl()).wait().await
        })
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        self.bytes.epochs()
    }
}

impl<B> SealedStore<B> {
    fn clone_ref(&self) -> Self {
        Self {
            bytes: Arc::clone(&self.bytes),
            secret: self.secret.clone(),
            #[cfg(feature = "encrypt")]
            encrypts: self.encrypts,
        }
    }
}

impl<B> fmt::Debug for SealedStore<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedStore").finish_non_exhaustive()
    }
}

// ===== an entry as bytes =====

const WHOLE: u8 = 0;
const STREAM: u8 = 1;

fn write(entry: &Entry) -> Vec<u8> {
    let Bond { key, scope, rights: _, stamp, created_at, ttl } = &entry.bond;
    let mut out = Vec::with_capacity(256 + entry.weight());
    out.put_slice(key.as_bytes());
    out.put_slice(scope);
    stamp.own.iter().for_each(|epoch| out.put_u64_le(*epoch));
    out.put_u32_le(stamp.kbs.len() as u32);
    stamp.kbs.iter().for_each(|epoch| out.put_u64_le(*epoch));
    let since = created_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    out.put_u64_le(since.as_millis() as u64);
    out.put_u64_le(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    put(&mut out, entry.model.as_bytes());
    match &entry.provider {
        None => out.put_u8(0),
        Some(provider) => {
            out.put_u8(1);
            put(&mut out, provider.as_bytes());
        }
    }
    match &entry.answer {
        Answer::Whole(completion) => {
            out.put_u8(WHOLE);
            put(&mut out, completion.data());
        }
        Answer::Stream(chunks) => {
            out.put_u8(STREAM);
            let chunks = chunks.iter();
            out.put_u32_le(chunks.len() as u32);
            for chunk in chunks {
                out.put_u8(u8::from(chunk.is_final()));
                put(&mut out, chunk.data());
            }
        }
    }
    out
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Its seal was right, so that it is as it was written, or of a version that only looks like ours.
fn read(mut from: Bytes) -> Option<Entry> {
    let key = CacheKey::from_bytes(array(&mut from)?);
    let scope = array(&mut from)?;
    let mut own = [0; 4];
    for epoch in &mut own {
        *epoch = from.try_get_u64_le().ok()?;
    }
    let count = from.try_get_u32_le().ok()? as usize;
    if count > from.remaining() / 8 {
        return None;
    }
    let kbs = (0..count).map(|_| from.try_get_u64_le().ok()).collect::<Option<_>>()?;
    let created_at = UNIX_EPOCH.checked_add(Duration::from_millis(from.try_get_u64_le().ok()?))?;
    let ttl = Duration::from_millis(from.try_get_u64_le().ok()?);
    let model = take(&mut from)?;
    let model: Arc<str> = text(&model)?.into();
    let provider = match from.try_get_u8().ok()? {
        0 => None,
        _ => Some(Arc::from(text(&take(&mut from)?)?)),
    };
    let answer = match from.try_get_u8().ok()? {
        WHOLE => Answer::Whole(Completion::parse(take(&mut from)?).ok()?),
        STREAM => {
            let count = from.try_get_u32_le().ok()? as usize;
            if count > from.remaining() {
                return None;
            }
            let chunks = (0..count).map(|_| {
                let is_final = from.try_get_u8().ok()? != 0;
                let data = take(&mut from)?;
                Some(match (is_final, data.is_empty()) {
                    (true, true) => StreamChunk::end(),
                    (true, false) => StreamChunk::parse(data).ok()?.into_final(),
                    (false, _) => StreamChunk::parse(data).ok()?,
                })
            });
            Answer::Stream(Arc::new(chunks.collect::<Option<_>>()?))
        }
        _ => return None,
    };
    let stamp = Stamp { own, kbs };
    let is_all = !from.has_remaining();
    let bond = Bond { key, scope, rights: None, stamp, created_at, ttl };
    is_all.then(|| Entry::new(bond, model.into(), provider, answer))
}

fn array(from: &mut Bytes) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    from.try_copy_to_slice(&mut out).ok()?;
    Some(out)
}

fn take(from: &mut Bytes) -> Option<Bytes> {
    let len = from.try_get_u32_le().ok()? as usize;
    (len <= from.remaining()).then(|| from.split_to(len))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(feature = "encrypt")]
mod encrypted {
    use super::{CacheKey, CacheSecret, ENCRYPTED};
    use bytes::Bytes;
    use chacha20poly1305::{
        KeyInit, XChaCha20Poly1305,
        aead::{Aead, Payload},
    };

    const NONCE: usize = 24;

    /// One for each request, so that nothing that was encrypted for one tells of another.
    fn cipher(secret: &CacheSecret, key: &CacheKey) -> XChaCha20Poly1305 {
        let mut hasher = blake3::Hasher::new_keyed(secret.seal());
        let derived = hasher.update(b"encrypt").update(key.as_bytes()).finalize();
        XChaCha20Poly1305::new(derived.as_bytes().into())
    }

    fn header(key: &CacheKey) -> [u8; 33] {
        let mut header = [ENCRYPTED; 33];
        header[1..].copy_from_slice(key.as_bytes());
        header
    }

    pub(super) fn seal(secret: &CacheSecret, key: &CacheKey, plain: &[u8]) -> Bytes {
        // Of what is said, and of the secret: two entries have the same nonce only if they are the same.
        let mut hasher = blake3::Hasher::new_keyed(secret.seal());
        let nonce = hasher.update(b"nonce").update(key.as_bytes()).update(plain).finalize();
        let nonce: [u8; NONCE] = nonce.as_bytes()[..NONCE].try_into().expect("a hash is longer");
        let payload = Payload { msg: plain, aad: &header(key) };
        let hidden = cipher(secret, key).encrypt(&nonce.into(), payload).expect("an entry is no 256 GiB");
        [&[ENCRYPTED], &nonce[..], &hidden].concat().into()
    }

    pub(super) fn open(secret: &CacheSecret, key: &CacheKey, sealed: &[u8]) -> Option<Bytes> {
        let (nonce, hidden) = sealed.get(1..)?.split_at_checked(NONCE)?;
        let nonce: [u8; NONCE] = nonce.try_into().ok()?;
        let payload = Payload { msg: hidden, aad: &header(key) };
        cipher(secret, key).decrypt(&nonce.into(), payload).ok().map(Bytes::from)
    }
}
