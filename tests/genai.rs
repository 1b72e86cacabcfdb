//! The leaves for dialects other than OpenAI's: over a mock of the providers that others have made, and over scripted
//! bytes where the mock has none.
#![expect(clippy::needless_pass_by_value, reason = "values are written where they are used")]

#[path = "genai/aimock.rs"]
mod aimock;
#[path = "genai/answers.rs"]
mod answers;
#[path = "genai/common.rs"]
mod common;
#[path = "genai/endings.rs"]
mod endings;
#[path = "genai/proxied.rs"]
mod proxied;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "genai/requests.rs"]
mod requests;
#[path = "openai/server.rs"]
mod server;
