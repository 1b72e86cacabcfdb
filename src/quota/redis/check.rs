use super::RedisQuotaStore;
use crate::{
    Error, ErrorKind,
    store::{RedisError, redis::slot},
};
use std::{fmt, sync::Arc};

/// Why a server must not be trusted with counters.
#[derive(Debug)]
#[non_exhaustive]
pub enum RedisUnfit {
    /// It could not be asked.
    Unavailable(RedisError),
    /// It is older than Redis 7.0, or something else.
    TooOld {
        /// Which server.
        server: Arc<str>,
        /// The version of Redis that it says it is.
        version: Box<str>,
    },
    /// It throws away keys when its memory is full, counters and leases among them.
    Evicts {
        /// Which server.
        server: Arc<str>,
        /// Its `maxmemory-policy`, which has to be `noeviction`.
        policy: Box<str>,
    },
    /// It is a replica: nothing can be written there.
    Replica {
        /// Which server.
        server: Arc<str>,
    },
    /// It is a node of a cluster, and used as if it were alone: see [`Redis::cluster`](crate::store::Redis::cluster).
    InCluster {
        /// Which server.
        server: Arc<str>,
    },
    /// It does not let this user run a command that counting takes, on the keys of this [prefix](RedisQuotaStore::with_prefix).
    LacksRight {
        /// Which server.
        server: Arc<str>,
        /// The command.
        command: Box<str>,
    },
    /// With this [prefix](RedisQuotaStore::with_prefix) the keys of a department are in several slots of the cluster: its
    /// first braces have nothing between them.
    Scattered,
}

/// Asks which command of the scripts this user lacks.
const RIGHTS: &str = include_str!("lua/rights.lua");

impl RedisQuotaStore {
    /// Whether counters are safe there: for a gateway to be ready, or to start. In a cluster, each node that serves slots is
    /// asked.
    ///
    /// All that the scripts run has to be allowed to this user, also what is only needed in a cluster.
    /// What a server keeps on its disk is not asked: see `docs/operations-redis-quota.md`.
    ///
    /// # Errors
    ///
    /// The first server that they are not safe with, or cannot be asked.
    pub async fn check(&self) -> Result<(), RedisUnfit> {
        let [counters, leases, expiries] = self.keys("").map(|key| slot(key.as_bytes()));
        if self.redis.is_cluster() && (counters != leases || leases != expiries) {
            return Err(RedisUnfit::Scattered);
        }
        let servers = self.redis.clone().with_deadline(self.deadline);
        for (server, info) in servers.ask_each(&redis::cmd("INFO")).await.map_err(RedisUnfit::Unavailable)? {
            let info: String = redis::from_redis_value(info)
                .map_err(|_| RedisUnfit::Unavailable(RedisError::unexpected()))?;
            self.check_one(server, &Info(&info))?;
        }
        let mut rights = redis::cmd("EVAL");
        rights.arg(RIGHTS).arg(0).arg(&self.keys("")[..]);
        for (server, lacks) in servers.ask_each(&rights).await.map_err(RedisUnfit::Unavailable)? {
            let command: String = redis::from_redis_value(lacks)
                .map_err(|_| RedisUnfit::Unavailable(RedisError::unexpected()))?;
            if !command.is_empty() {
                return Err(RedisUnfit::LacksRight { server, command: command.into() });
            }
        }
        Ok(())
    }

    fn check_one(&self, server: Arc<str>, info: &Info<'_>) -> Result<(), RedisUnfit> {
        let version = info.get("redis_version");
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < 7) {
            return Err(RedisUnfit::TooOld { server, version: version.into() });
        }
        if info.get("role") != "master" {
            // Nobody writes as long as it is not fit, so that nobody would hear of it by a write that is refused.
            self.redis.leave();
            return Err(RedisUnfit::Replica { server });
        }
        let policy = info.get("maxmemory_policy");
        if policy != "noeviction" {
            return Err(RedisUnfit::Evicts { server, policy: policy.into() });
        }
        if info.get("cluster_enabled") == "1" && !self.redis.is_cluster() {
            return Err(RedisUnfit::InCluster { server });
        }
        Ok(())
    }
}

/// `name:value`, line by line.
struct Info<'a>(&'a str);

impl Info<'_> {
    /// Nothing if it is not said.
    fn get(&self, name: &str) -> &str {
        let lines = self.0.lines();
        lines
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| *found == name)
            .map_or("", |(_, value)| value)
    }
}

impl fmt::Display for RedisUnfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(_) => f.write_str("redis cannot be asked whether it is fit for counters"),
            Self::TooOld { server, version } => {
                write!(f, "redis {server} is of version {version:?}, and 7.0 is needed")
            }
            Self::Evicts { server, policy } => {
                write!(f, "redis {server} has maxmemory-policy {policy:?}, and counters need noeviction")
            }
            Self::Replica { server } => write!(f, "redis {server} is a replica, and counters are written"),
            Self::InCluster { server } => {
                write!(f, "redis {server} is a node of a cluster, and is used as if it were alone")
            }
            Self::LacksRight { server, command } => {
                write!(f, "redis {server} does not let this user run {command} on the keys of the counters")
            }
            Self::Scattered => {
                f.write_str("the prefix of the keys scatters those of a department over the cluster")
            }
        }
    }
}

impl std::error::Error for RedisUnfit {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unavailable(error) => Some(error),
            _ => None,
        }
    }
}

impl From<RedisUnfit> for Error {
    fn from(unfit: RedisUnfit) -> Self {
        Self::new(ErrorKind::StoreUnavailable { store: "redis".into() }).with_source(unfit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Redis, RedisOptions};

    fn check(version: &str) -> Result<(), RedisUnfit> {
        let redis = Redis::new("redis://127.0.0.1:1", RedisOptions::default()).unwrap();
        let info = format!(
            "# Server\r\nredis_version:{version}\r\n# Memory\r\nmaxmemory_policy:noeviction\r\n\
             # Replication\r\nrole:master\r\n# Cluster\r\ncluster_enabled:0\r\n"
        );
        RedisQuotaStore::new(redis).check_one("here".into(), &Info(&info))
    }

    #[test]
    fn servers_before_seven_are_too_old() {
        for version in ["7.0.0", "7.2.4", "8.0.1", "10.0"] {
            check(version).unwrap();
        }
        for old in ["6.2.14", "5.0.3", "", "unstable"] {
            let unfit = check(old).unwrap_err();
            assert!(matches!(&unfit, RedisUnfit::TooOld { version, .. } if **version == *old), "{unfit}");
        }
    }
}
