//! A ledger of usage in a file of SQLite.

mod asker;
mod behind;
mod error;
mod ledger;
mod reader;
mod schema;
mod select;

pub use self::{
    error::{LedgerError, LedgerErrorKind},
    ledger::SqliteLedger,
    reader::LedgerReader,
};
