//! A server of Redis or a cluster, shared by all that keep something there.

mod cluster;
mod error;
mod node;
mod options;
mod script;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    cluster::slot,
    script::{Run, Script},
};
pub use self::{
    error::{RedisError, RedisErrorKind},
    options::RedisOptions,
};

use self::{
    cluster::Cluster,
    node::{Node, Reply},
};
use futures_util::future::join_all;
use redis::{Cmd, ConnectionInfo, Value};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A server of Redis, or a cluster. Cheap to clone; clones share their connections.
///
/// Made without asking anybody: it connects when it is first used, and again whenever a connection is gone, however that
/// came about. Each call ends within its [deadline](RedisOptions::deadline), with an answer or with an error that
/// says whether it may have been done all the same; it is sent a second time only if it surely was not.
///
/// Needs Redis 7.0 or newer, or Valkey. `rediss://` is TLS, by rustls. Where the process has not chosen a provider of
/// cryptography for it, ring becomes the one.
///
/// Its connections belong to the runtime that it is first used on. For another runtime, take it [apart](Self::apart).
///
/// ```no_run
/// use llm_layers::store::{Redis, RedisOptions};
///
/// # async fn example() -> Result<(), llm_layers::store::RedisError> {
/// let redis = Redis::new("redis://:secret@127.0.0.1:6379", RedisOptions::default())?;
/// redis.ping().await?;
///
/// let nodes = ["rediss://10.0.0.1:6379", "rediss://10.0.0.2:6379"];
/// let cluster = Redis::cluster(nodes, RedisOptions::default())?;
/// cluster.ping().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// A call that is dropped may have been done, as one whose time was up.
#[derive(Clone)]
pub struct Redis {
    servers: Servers,
    origin: Arc<Origin>,
    deadline: Duration,
}

#[derive(Clone)]
enum Servers {
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
}

/// By which the same can be made once more.
struct Origin {
    seeds: Vec<ConnectionInfo>,
    is_cluster: bool,
    options: RedisOptions,
}

impl Redis {
    /// One server: `redis://[user][:password@]host[:port][/database]`, or `rediss://` for TLS.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`](RedisErrorKind::InvalidUrl).
    pub fn new(url: &str, options: RedisOptions) -> Result<Self, RedisError> {
        Self::of(Origin { seeds: vec![options::parse(url)?], is_cluster: false, options })
    }

    /// A cluster, by some of its nodes; the others are found through them. User, password and TLS of the first hold for
    /// all.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`](RedisErrorKind::InvalidUrl), also without any, or with a database, of which a cluster has one.
    pub fn cluster<I>(urls: I, options: RedisOptions) -> Result<Self, RedisError>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let seeds =
            urls.into_iter().map(|url| options::parse(url.as_ref())).collect::<Result<_, RedisError>>()?;
        Self::of(Origin { seeds, is_cluster: true, options })
    }

    fn of(origin: Origin) -> Result<Self, RedisError> {
        let settings = origin.options.settings();
        let servers = match origin.is_cluster {
            true => Servers::Cluster(Arc::new(Cluster::new(origin.seeds.clone(), settings)?)),
            false => {
                let Some(info) = origin.seeds.first() else {
                    return Err(RedisError::definite(RedisErrorKind::InvalidUrl));
                };
                Servers::One(Arc::new(Node::new(info.clone(), &settings)?))
            }
        };
        Ok(Self { servers, deadline: origin.options.deadline, origin: Arc::new(origin) })
    }

    /// The same servers and connections, with another [deadline](RedisOptions::deadline).
    #[must_use]
    pub const fn with_deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// The same servers, with connections of its own: for another runtime, or so that calls with much in them do not
    /// hold up others.
    #[must_use]
    pub fn apart(&self) -> Self {
        let Origin { seeds, is_cluster, options } = &*self.origin;
        let origin = Origin { seeds: seeds.clone(), is_cluster: *is_cluster, options: options.clone() };
        let apart = Self::of(origin).expect("it was made so before");
        apart.with_deadline(self.deadline)
    }

    /// Whether it is a cluster, where all keys of a call must be of one slot.
    pub const fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster(_))
    }

    /// How many connections were made: a new one may lead to another server.
    #[cfg(feature = "config")]
    pub(crate) fn connections(&self) -> tokio::sync::watch::Receiver<u64> {
        match &self.servers {
            Servers::One(node) => node.connections.subscribe(),
            Servers::Cluster(cluster) => cluster.settings.connections.subscribe(),
        }
    }

    /// Gives up the connection to a server that is alone: whoever took over from it may be behind the same address. Of a cluster, the
    /// nodes say themselves who did.
    pub(crate) fn leave(&self) {
        if let Servers::One(node) = &self.servers {
            node.leave();
        }
    }

    /// Asks whether the server is there; of a cluster, each node that serves slots, and whether all slots are served.
    ///
    /// # Errors
    ///
    /// The first that is not.
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.ask_each(&redis::cmd("PING")).await.map(drop)
    }

    /// Asks the server, or each node of a cluster that serves slots, as [`ping`](Self::ping) does. By their names.
    pub(crate) async fn ask_each(&self, command: &Cmd) -> Result<Vec<(Arc<str>, Value)>, RedisError> {
        let ask = async |node: Arc<Node>| {
            let value = node.link().await?.ask(command).await??;
            Ok((Arc::clone(node.name()), value))
        };
        let all = async {
            match &self.servers {
                Servers::One(node) => Ok(vec![ask(Arc::clone(node)).await?]),
                Servers::Cluster(cluster) => {
                    let masters = cluster.masters().await;
                    let answers: Result<Vec<_>, _> =
                        join_all(masters.into_iter().map(ask)).await.into_iter().collect();
                    match answers {
                        Ok(_) if !cluster.is_whole() => Err(RedisError::definite(RedisErrorKind::NoNode)),
                        Ok(answers) => Ok(answers),
                        Err(error) => {
                            cluster.look_soon();
                            Err(error)
                        }
                    }
                }
            }
        };
        let timeout = |_| RedisError::definite(RedisErrorKind::Timeout);
        tokio::time::timeout(self.deadline, all).await.map_err(timeout)?
    }

    /// Runs a command. In a cluster it goes to the node of the key `route`; without one, to any.
    ///
    /// # Errors
    ///
    /// Any.
    pub(crate) async fn command(&self, route: Option<&[u8]>, command: &Cmd) -> Result<Value, RedisError> {
        self.ask(route, command).await?
    }

    async fn ask(&self, route: Option<&[u8]>, command: &Cmd) -> Result<Reply, RedisError> {
        let was_sent = AtomicBool::new(false);
        let reply = async {
            match &self.servers {
                Servers::One(node) => {
                    let link = node.link().await?;
                    was_sent.store(true, Ordering::Release);
                    link.ask(command).await
                }
                Servers::Cluster(cluster) => {
                    cluster.ask(slot(route.unwrap_or(b"")), command, &was_sent).await
                }
            }
        };
        if let Ok(reply) = tokio::time::timeout(self.deadline, reply).await {
            return reply;
        }
        if let Servers::Cluster(cluster) = &self.servers {
            cluster.look_soon();
        }
        let error = match was_sent.load(Ordering::Acquire) {
            true => RedisError::ambiguous(RedisErrorKind::Timeout),
            false => RedisError::definite(RedisErrorKind::Timeout),
        };
        Err(match &self.servers {
            Servers::One(node) => error.at(node.name()),
            Servers::Cluster(_) => error,
        })
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.origin.seeds.iter().map(|seed| seed.addr().to_string()).collect();
        f.debug_struct("Redis")
            .field("servers", &servers)
            .field("is_cluster", &self.is_cluster())
            .field("deadline", &self.deadline)
            .finish()
    }
}
