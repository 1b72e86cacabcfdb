//! The body of an answer, and the two places that know how one ends.

mod clock;
mod observe;
mod stream;
mod watch;

pub(crate) use self::clock::BodyClock;
pub use self::{
    observe::{Arrival, End, Observe, Summary},
    stream::ChunkStream,
    watch::{Watch, Watched},
};
