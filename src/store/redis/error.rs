use super::node::Node;
use crate::{BoxError, Error, ErrorKind as Kind};
use redis::{ErrorKind, ServerErrorKind};
use std::{fmt, sync::Arc};

/// Why Redis did not do what it was asked, and whether it may have done it all the same.
///
/// Its text names the server and Redis' code for the failure; never a password, a key or a value. What else a server
/// said is the [source](std::error::Error::source), unless it was said while signing in.
#[derive(Debug, Clone)]
pub struct RedisError {
    kind: RedisErrorKind,
    server: Option<Arc<str>>,
    is_ambiguous: bool,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Why Redis did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisErrorKind {
    /// An address is none that can be used.
    InvalidUrl,
    /// There is no connection: refused, not in time, or no secure one.
    Unreachable,
    /// The server does not accept the name or the password.
    Refused,
    /// The time was up.
    Timeout,
    /// The connection broke.
    Disconnected,
    /// The server said no, with this code, such as `OOM` or `READONLY`.
    Server(Box<str>),
    /// No node of the cluster serves the key now.
    NoNode,
    /// An answer of another form than was asked for.
    Unexpected,
}

impl RedisError {
    pub(crate) fn definite(kind: RedisErrorKind) -> Self {
        Self { kind, server: None, is_ambiguous: false, source: None }
    }

    pub(crate) fn ambiguous(kind: RedisErrorKind) -> Self {
        Self { is_ambiguous: true, ..Self::definite(kind) }
    }

    /// An answer that a script of ours does not give.
    pub(crate) fn unexpected() -> Self {
        Self::ambiguous(RedisErrorKind::Unexpected)
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    pub(super) fn at(mut self, server: &Arc<str>) -> Self {
        self.server = Some(Arc::clone(server));
        self
    }

    /// Nothing was sent yet. What a server says then may quote what it was sent, a password included.
    pub(super) fn connecting(error: &redis::RedisError) -> Self {
        let kind = match error.kind() {
            ErrorKind::AuthenticationFailed => RedisErrorKind::Refused,
            ErrorKind::InvalidClientConfig => RedisErrorKind::InvalidUrl,
            _ => match error.code() {
                Some("WRONGPASS" | "NOAUTH" | "NOPERM") => RedisErrorKind::Refused,
                Some(code) => RedisErrorKind::Server(code.into()),
                None => RedisErrorKind::Unreachable,
            },
        };
        let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
        match io {
            Some(io) => Self::definite(kind).with_source(std::io::Error::from(io.kind())),
            None => Self::definite(kind),
        }
    }

    pub(super) fn answered(error: redis::RedisError) -> Self {
        let (kind, is_ambiguous) = match error.kind() {
            ErrorKind::Server(server) => (RedisErrorKind::Server(code(&error)), is_after_the_start(server)),
            ErrorKind::Extension => {
                let code = code(&error);
                let is_ambiguous = !BEFORE_THE_START.contains(&&*code);
                (RedisErrorKind::Server(code), is_ambiguous)
            }
            ErrorKind::AuthenticationFailed => (RedisErrorKind::Refused, false),
            ErrorKind::Client | ErrorKind::InvalidClientConfig => (RedisErrorKind::Unexpected, false),
            ErrorKind::Io => (RedisErrorKind::Disconnected, true),
            _ => (RedisErrorKind::Unexpected, true),
        };
        Self { kind, server: None, is_ambiguous, source: Some(Arc::new(error)) }
    }

    /// Why.
    pub const fn kind(&self) -> &RedisErrorKind {
        &self.kind
    }

    /// Whether it may have been done all the same, or in part. If not, it was surely not done.
    pub const fn is_ambiguous(&self) -> bool {
        self.is_ambiguous
    }

    /// The code that the server gave, if it gave one.
    pub(super) fn code(&self) -> Option<&str> {
        match &self.kind {
            RedisErrorKind::Server(code) => Some(code),
            _ => None,
        }
    }

    /// Where the server says that a key has moved to, or is being moved to.
    pub(super) fn redirect<'a>(&'a self, asked: &'a Node) -> Option<(&'a str, u16)> {
        let (address, _) = self.source.as_ref()?.downcast_ref::<redis::RedisError>()?.redirect_node()?;
        let (host, port) = address.rsplit_once(':')?;
        // A node that does not know its own name is where it was asked.
        Some((if host.is_empty() { asked.host() } else { host }, port.parse().ok()?))
    }
}

fn code(error: &redis::RedisError) -> Box<str> {
    error.code().unwrap_or("ERR").into()
}

/// What servers say before they begin with a command, beyond what the client knows by name. Inside of a script the same
/// holds up to its first write, which ours do after all that can fail.
const BEFORE_THE_START: [&str; 8] =
    ["OOM", "MISCONF", "NOREPLICAS", "BUSY", "NOAUTH", "WRONGPASS", "DENIED", "UNBLOCKED"];

/// Whether something of a command, or of a script, may have been done when the server says so.
const fn is_after_the_start(error: ServerErrorKind) -> bool {
    !matches!(
        error,
        ServerErrorKind::ExecAbort
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::NoScript
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::NoPerm
    )
}

impl fmt::Display for RedisError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some(server) => write!(f, "redis {server}: ")?,
            None => f.write_str("redis: ")?,
        }
        match &self.kind {
            RedisErrorKind::InvalidUrl => f.write_str("no address that can be used"),
            RedisErrorKind::Unreachable => f.write_str("cannot be reached"),
            RedisErrorKind::Refused => f.write_str("does not accept the name or the password"),
            RedisErrorKind::Timeout => f.write_str("no answer in time"),
            RedisErrorKind::Disconnected => f.write_str("the connection broke"),
            RedisErrorKind::Server(code) => write!(f, "refused with {code}"),
            RedisErrorKind::NoNode => f.write_str("no node serves the key"),
            RedisErrorKind::Unexpected => f.write_str("an answer of another form than was asked for"),
        }?;
        if self.is_ambiguous { f.write_str(", it may have been done") } else { Ok(()) }
    }
}

impl std::error::Error for RedisError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::new(Kind::StoreUnavailable { store: "redis".into() }).with_source(error)
    }
}
