use crate::{StreamChunk, TokenUsage, answer::Facts};
use bytes::Bytes;

/// A stream that is kept: the JSON of all its chunks in one piece, and what was read of each.
pub(crate) struct Kept {
    json: Bytes,
    pieces: Box<[Piece]>,
}

struct Piece {
    /// Where it ends in the JSON; it begins where the one before it ends.
    end: usize,
    facts: Facts,
    is_final: bool,
}

/// Collects what is to be [`Kept`].
#[derive(Default)]
pub(crate) struct Keeper {
    json: Vec<u8>,
    pieces: Vec<Piece>,
}

impl Keeper {
    pub(crate) fn push(&mut self, chunk: &StreamChunk) {
        if self.pieces.is_empty() {
            // Room for a short answer: lists that start empty double many times until they have it.
            self.json.reserve(8 << 10);
            self.pieces.reserve(64);
        }
        // A copy: what a provider sends may be a small part of a large buffer.
        self.json.extend_from_slice(chunk.data());
        let end = self.json.len();
        self.pieces.push(Piece { end, facts: chunk.facts().clone(), is_final: chunk.is_final() });
    }

    pub(crate) fn finish(self) -> Kept {
        Kept { json: self.json.into_boxed_slice().into(), pieces: self.pieces.into_boxed_slice() }
    }
}

impl Kept {
    /// The chunk of this number, as it came.
    pub(crate) fn get(&self, at: usize) -> Option<StreamChunk> {
        let Piece { end, facts, is_final } = self.pieces.get(at)?;
        Some(StreamChunk::of_parts(self.json.slice(self.start(at)..*end), facts.clone(), *is_final))
    }

    /// The JSON of each chunk.
    pub(crate) fn data(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().enumerate().map(|(at, piece)| &self.json[self.start(at)..piece.end])
    }

    fn start(&self, at: usize) -> usize {
        at.checked_sub(1).map_or(0, |before| self.pieces[before].end)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = StreamChunk> {
        (0..self.pieces.len()).map(|at| self.get(at).expect("it is one of them"))
    }

    /// The last report of what was used up.
    pub(crate) fn usage(&self) -> Option<&TokenUsage> {
        self.pieces.iter().rev().find_map(|piece| piece.facts.usage())
    }

    /// How many bytes of memory it takes.
    pub(crate) fn weight(&self) -> usize {
        self.json.len() + size_of_val(&*self.pieces)
    }
}

impl FromIterator<StreamChunk> for Kept {
    fn from_iter<I: IntoIterator<Item = StreamChunk>>(chunks: I) -> Self {
        let mut keeper = Keeper::default();
        chunks.into_iter().for_each(|chunk| keeper.push(&chunk));
        keeper.finish()
    }
}
