//! Bytes of which no two meanings share a spelling: a tag, a length, then the bytes themselves.

/// Hashes what is written to it, on the stack as long as that is short.
pub(super) struct Encoder<'a, const SHORT: usize> {
    key: &'a [u8; 32],
    short: [u8; SHORT],
    len: usize,
    long: Option<Box<blake3::Hasher>>,
}

impl<'a, const SHORT: usize> Encoder<'a, SHORT> {
    pub(super) const fn new(key: &'a [u8; 32]) -> Self {
        Self { key, short: [0; SHORT], len: 0, long: None }
    }

    fn raw(&mut self, bytes: &[u8]) {
        if let Some(room) = self.short.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
            return;
        }
        let long = self.long.get_or_insert_with(|| Box::new(blake3::Hasher::new_keyed(self.key)));
        long.update(&self.short[..self.len]);
        self.len = 0;
        match self.short.get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.len = bytes.len();
            }
            None => drop(long.update(bytes)),
        }
    }

    /// One byte that says what comes.
    pub(super) fn tag(&mut self, tag: u8) {
        self.raw(&[tag]);
    }

    /// How many things come: seven bits a byte, the last one with its highest bit unset.
    pub(super) fn count(&mut self, count: usize) {
        let mut rest = count;
        while rest > 0x7f {
            self.tag(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.tag(rest as u8);
    }

    /// Bytes of any length.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    /// Text that may be absent, which is not the same as empty.
    pub(super) fn option(&mut self, text: Option<&str>) {
        match text {
            None => self.tag(0),
            Some(text) => {
                self.tag(1);
                self.bytes(text.as_bytes());
            }
        }
    }

    /// Bytes whose length is always the same.
    pub(super) fn fixed(&mut self, bytes: &[u8; 32]) {
        self.raw(bytes);
    }

    pub(super) fn finish(self) -> [u8; 32] {
        match self.long {
            None => *blake3::keyed_hash(self.key, &self.short[..self.len]).as_bytes(),
            Some(mut long) => *long.update(&self.short[..self.len]).finalize().as_bytes(),
        }
    }
}
