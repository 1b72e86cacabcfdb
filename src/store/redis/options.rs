use super::{RedisError, RedisErrorKind};
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion, RedisResult,
    TlsCertificates,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How a server is talked to.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisOptions {
    /// How long it may take to connect and to sign in, further tries included; one second unless told. A connection on
    /// which nothing came for so long, while somebody waited, is given up too.
    pub connect_timeout: Duration,
    /// How long a call may take in all, connecting included; one second unless told.
    pub deadline: Duration,
    root_certificate: Option<Arc<[u8]>>,
}

/// What all nodes of a cluster have in common.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) connect_timeout: Duration,
    /// How many connections were made.
    pub(super) connections: watch::Sender<u64>,
    root_certificate: Option<Arc<[u8]>>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { connect_timeout: second, deadline: second, root_certificate: None }
    }
}

impl RedisOptions {
    /// Sets [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub const fn with_connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sets [`deadline`](Self::deadline).
    #[must_use]
    pub const fn with_deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// Trusts, over `rediss://`, the certificates of this authority (PEM) instead of the public ones.
    #[must_use]
    pub fn with_root_certificate(mut self, pem: impl Into<Arc<[u8]>>) -> Self {
        self.root_certificate = Some(pem.into());
        self
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            connect_timeout: self.connect_timeout,
            connections: watch::Sender::new(0),
            root_certificate: self.root_certificate.clone(),
        }
    }
}

impl Settings {
    pub(super) fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::open(info);
        }
        // The client takes the one of the process, and gives up by a panic where there is none.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // Somebody else may have been faster, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        match &self.root_certificate {
            None => Client::open(info),
            Some(root) => {
                let root_cert = Some(root.to_vec());
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
        }
    }
}

/// Reads an address, and adds what all of ours have in common.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo, RedisError> {
    // What the error says may quote the address, and the password in it.
    let info = url.into_connection_info().map_err(|_| RedisError::definite(RedisErrorKind::InvalidUrl))?;
    // By which a connection says at once that it was closed, and not only when it is used.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("connect_timeout", &self.connect_timeout)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
