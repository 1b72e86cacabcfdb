//! The OpenAI-compatible leaf, over real connections where bytes matter and over canned answers elsewhere.

#[path = "openai/canned.rs"]
mod canned;
#[path = "openai/classes.rs"]
mod classes;
#[path = "openai/connections.rs"]
mod connections;
#[path = "openai/outcomes.rs"]
mod outcomes;
#[path = "openai/requests.rs"]
mod requests;
#[path = "openai/server.rs"]
mod server;
#[path = "openai/streams.rs"]
mod streams;
#[path = "openai/tls.rs"]
mod tls;
#[path = "openai/usage.rs"]
mod usage;
