//! For tests of your own layers and leaves: a provider that does as it is told, and the contract that every
//! layer of this crate keeps.
//!
//! ```
//! use llm_layers::{peek::PeekLayer, testing::Contract};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! Contract::layer(PeekLayer::new()).check().await;
//! # }
//! ```

mod clock;
mod contract;
mod leaf;
pub mod quota;
mod scripted;
mod task;

pub use self::{
    clock::ManualClock,
    contract::{Contract, Probe},
    leaf::check_leaf,
    quota::StoreCheck,
    scripted::{Reply, Scripted, Step},
};
