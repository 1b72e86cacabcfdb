use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Which call it is: 48 bits of milliseconds, then chance, so that ids sort by time.
///
/// Minted by each layer that needs one, once per `call`; never taken from the request, which may be sent twice.
// Two words, the first one first: a `u128` would align all that has one to 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId([u64; 2]);

impl CallId {
    /// A new one.
    pub fn mint(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = since.as_secs() * 1000 + u64::from(since.subsec_millis());
        Self([millis << 16 | u64::from(fastrand::u16(..)), fastrand::u64(..)])
    }

    /// As bytes, the time first.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.to_u128().to_be_bytes()
    }

    /// From bytes, the time first.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let all = u128::from_be_bytes(bytes);
        Self([(all >> 64) as u64, all as u64])
    }

    const fn to_u128(self) -> u128 {
        let [high, low] = self.0;
        (high as u128) << 64 | low as u128
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.to_u128())
    }
}

impl fmt::Debug for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
