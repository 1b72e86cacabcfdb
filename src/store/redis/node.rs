//! One server and the connection to it.

use super::{RedisError, RedisErrorKind, options::Settings};
use futures_util::future::{FutureExt as _, Shared};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, Pipeline, PushInfo, PushKind, Value,
    aio::MultiplexedConnection,
};
use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// A server, connected to when it is first asked, and again when the connection is gone.
pub(super) struct Node {
    client: Client,
    name: Arc<str>,
    connect_timeout: Duration,
    pub(super) connections: watch::Sender<u64>,
    state: Mutex<State>,
}

enum State {
    Idle,
    Connecting(Attempt),
    Connected(Arc<Link>),
}

/// An attempt goes on by itself, so that callers with less time than it takes do not each begin anew.
type Attempt = Shared<Pin<Box<dyn Future<Output = Result<Arc<Link>, RedisError>> + Send>>>;

/// What a server said to a command: a value, or that it refuses.
pub(super) type Reply = Result<Value, RedisError>;

/// A connection that many ask on at once.
pub(super) struct Link {
    connection: MultiplexedConnection,
    node: Arc<str>,
    is_closed: Arc<AtomicBool>,
    since: Instant,
    /// Milliseconds from `since` to when the first was asked that has not been answered, plus one; zero if all were.
    silent_since: AtomicU64,
    patience: Duration,
}

/// Notes that nobody has waited for the end of it.
struct Waiting<'a> {
    link: &'a Link,
    is_answered: bool,
}

/// Pauses before it is tried again to connect, while there is time.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(50)];

// ===== impl Node =====

impl Node {
    pub(super) fn new(info: ConnectionInfo, settings: &Settings) -> Result<Self, RedisError> {
        let name: Arc<str> = info.addr().to_string().into();
        let client = settings.client(info).map_err(|error| RedisError::connecting(&error).at(&name))?;
        let state = Mutex::new(State::Idle);
        let connections = settings.connections.clone();
        Ok(Self { client, name, connect_timeout: settings.connect_timeout, connections, state })
    }

    pub(super) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn host(&self) -> &str {
        self.name.rsplit_once(':').map_or("", |(host, _)| host)
    }

    /// The connection, made if there is none.
    pub(super) async fn link(self: &Arc<Self>) -> Result<Arc<Link>, RedisError> {
        let attempt = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match &*state {
                State::Connected(link) if !link.is_closed() => return Ok(Arc::clone(link)),
                State::Connecting(attempt) => attempt.clone(),
                _ => {
                    let attempt = self.connect();
                    *state = State::Connecting(attempt.clone());
                    attempt
                }
            }
        };
        attempt.await
    }

    /// Gives the connection up: the next who asks connects anew.
    pub(super) fn leave(&self) {
        if let State::Connected(link) = &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            link.is_closed.store(true, Ordering::Release);
        }
    }

    fn connect(self: &Arc<Self>) -> Attempt {
        let node = Arc::clone(self);
        let task = tokio::spawn(async move {
            let result = match tokio::time::timeout(node.connect_timeout, node.try_to_connect()).await {
                Ok(result) => result.map(Arc::new),
                Err(_) => Err(RedisError::definite(RedisErrorKind::Unreachable)),
            };
            let result = result.map_err(|error| error.at(&node.name));
            node.set(result.as_ref().map_or(State::Idle, |link| State::Connected(Arc::clone(link))));
            if result.is_ok() {
                node.connections.send_modify(|made| *made = made.wrapping_add(1));
            }
            result
        });
        let node = Arc::clone(self);
        let attempt = task.map(move |result| {
            // Only if its runtime is shut down.
            result.unwrap_or_else(|_| {
                node.set(State::Idle);
                Err(RedisError::definite(RedisErrorKind::Unreachable).at(&node.name))
            })
        });
        (Box::pin(attempt) as Pin<Box<dyn Future<Output = _> + Send>>).shared()
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    async fn try_to_connect(&self) -> Result<Link, RedisError> {
        let mut pauses = PAUSES.into_iter();
        loop {
            let is_closed = Arc::new(AtomicBool::new(false));
            let closed = Arc::clone(&is_closed);
            let config = AsyncConnectionConfig::new()
                // Both are bounded here.
                .set_connection_timeout(None)
                .set_response_timeout(None)
                .set_pipeline_buffer_size(512)
                .set_push_sender(move |push: PushInfo| {
                    if push.kind == PushKind::Disconnection {
                        closed.store(true, Ordering::Release);
                    }
                    Ok::<_, Infallible>(())
                });
            let error = match self.client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(connection) => {
                    return Ok(Link {
                        connection,
                        node: Arc::clone(&self.name),
                        is_closed,
                        since: Instant::now(),
                        silent_since: AtomicU64::new(0),
                        patience: self.connect_timeout,
                    });
                }
                Err(error) => RedisError::connecting(&error),
            };
            match pauses.next() {
                Some(pause) if *error.kind() == RedisErrorKind::Unreachable => {
                    tokio::time::sleep(pause).await
                }
                _ => return Err(error),
            }
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Node").field(&self.name).finish()
    }
}

// ===== impl Link =====

impl Link {
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Asks, and waits for what comes back as long as the caller does.
    ///
    /// # Errors
    ///
    /// The connection broke: ambiguous.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Reply, RedisError> {
        let mut connection = self.connection.clone();
        self.waited_for(connection.send_packed_command(command)).await
    }

    /// As [`ask`](Self::ask), for a key that is just being moved to this node.
    pub(super) async fn ask_while_moving(&self, command: &Cmd) -> Result<Reply, RedisError> {
        let mut both = Pipeline::new();
        both.cmd("ASKING").add_command(command.clone());
        let mut connection = self.connection.clone();
        self.waited_for(async {
            let mut values = connection.send_packed_commands(&both, 0, 2).await?;
            Ok(values.pop().unwrap_or(Value::Nil))
        })
        .await
    }

    async fn waited_for(
        &self,
        reply: impl Future<Output = redis::RedisResult<Value>>,
    ) -> Result<Reply, RedisError> {
        let mut waiting = Waiting::new(self);
        let reply = reply.await;
        waiting.is_answered = true;
        match reply.and_then(Value::extract_error) {
            Ok(value) => Ok(Ok(value)),
            Err(error) => {
                let error = RedisError::answered(error).at(&self.node);
                if let Some(code) = error.code() {
                    // A replica now: whoever took over may be behind the same address.
                    if code == "READONLY" {
                        self.is_closed.store(true, Ordering::Release);
                    }
                    return Ok(Err(error));
                }
                self.is_closed.store(true, Ordering::Release);
                Err(error)
            }
        }
    }
}

impl<'a> Waiting<'a> {
    fn new(link: &'a Link) -> Self {
        let now = u64::try_from(link.since.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        // Somebody else may have waited for longer.
        let _ = link.silent_since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        Self { link, is_answered: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_answered {
            self.link.silent_since.store(0, Ordering::Release);
            return;
        }
        // The other side may be gone without a word. What others wait for can still come.
        let silent_since = Duration::from_millis(self.link.silent_since.load(Ordering::Acquire));
        if !silent_since.is_zero() && self.link.since.elapsed() >= silent_since + self.link.patience {
            self.link.is_closed.store(true, Ordering::Release);
        }
    }
}
