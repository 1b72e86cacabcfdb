//! The body of an answer, and the two places that know how one ends.
//!
//! A [`ChunkStream`] is read to its terminal chunk; whoever wants to know how an answer ends [observes](Observe) it, from the
//! call on by a [`Watch`], or from its head on by [`LlmResponse::observe`](crate::LlmResponse::observe). Whole or streamed, left by
//! its caller or broken: it ends once.
//!
//! ```
//! use llm_layers::{ChatBody, End, LlmRequest, Observe, provider::Echo};
//! use std::sync::mpsc;
//! use tower::ServiceExt;
//!
//! struct Told(mpsc::Sender<&'static str>);
//!
//! impl Observe for Told {
//!     fn on_end(self, end: End<'_>) {
//!         let _ = self.0.send(match end {
//!             End::Whole(_) | End::StreamEnded(_) => "ended",
//!             End::Failed(..) => "failed",
//!             _ => "abandoned",
//!         });
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::Error> {
//! let (send, told) = mpsc::channel();
//! let request = LlmRequest::new("any", ChatBody::builder().user("One two three").streaming().build()?);
//! let answer = Echo::new().oneshot(request.clone()).await?.observe(Told(send.clone()));
//! assert!(told.try_recv().is_err(), "a head is not an end");
//! assert_eq!(answer.text().await?, "One two three");
//! assert_eq!(told.recv(), Ok("ended"));
//!
//! drop(Echo::new().oneshot(request).await?.observe(Told(send)));
//! assert_eq!(told.recv(), Ok("abandoned"));
//! # Ok(())
//! # }
//! ```

mod clock;
mod kept;
mod observe;
mod stream;
mod watch;

pub(crate) use self::{
    clock::BodyClock,
    kept::{Keeper, Kept},
    stream::ReadAhead,
};
pub use self::{
    observe::{Arrival, End, Observe, Summary},
    stream::ChunkStream,
    watch::{Watch, Watched},
};
