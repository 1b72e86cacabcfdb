//! Takes connections, until it is told to stop and all answers have ended.

use crate::{
    access::UnderWay,
    cache::Cache,
    config::Config,
    ledger::Ledger,
    quota::Quotas,
    routes::{self, Stopping},
    telemetry::Telemetry,
};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use std::{error::Error, io, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

/// How long a connection may be open without a whole head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long idle connections may take to close once all answers have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Server {
    listener: TcpListener,
    router: Router,
    signals: Signals,
    stopping: Stopping,
    under_way: UnderWay,
    grace: Duration,
    ledger: Option<Ledger>,
    quotas: Option<Quotas>,
    cache: Option<Cache>,
    telemetry: Telemetry,
}

impl Server {
    /// All that can fail: afterwards it serves until a signal comes.
    pub(crate) async fn new(listener: TcpListener, config: &Config) -> Result<Self, Box<dyn Error>> {
        let (stopping, under_way) = (Stopping::default(), UnderWay::default());
        let ledger = match &config.usage {
            Some(usage) => Some(Ledger::open(usage).await?),
            None => None,
        };
        let telemetry = Telemetry::start(&config.telemetry)?;
        if let Some(ledger) = &ledger {
            telemetry.watch(ledger.queue());
        }
        let quotas = match &config.limits {
            Some(limits) => Some(Quotas::open(limits, config, ledger.as_ref()).await?),
            None => None,
        };
        let cache = config.cache.as_ref().map(Cache::start);
        let parts = routes::Parts {
            ledger: ledger.clone(),
            quotas: quotas.clone(),
            cache: cache.clone(),
            telemetry: telemetry.clone(),
        };
        let router = routes::router(config, &stopping, &under_way, parts)?;
        let (signals, grace) = (Signals::new()?, config.server.shutdown_grace);
        Ok(Self { listener, router, signals, stopping, under_way, grace, ledger, quotas, cache, telemetry })
    }

    pub(crate) async fn run(self) {
        let Self { listener, router, mut signals, stopping, under_way, grace, .. } = self;
        let Self { ledger, quotas, cache, telemetry, .. } = self;
        let connections = GracefulShutdown::new();
        let stop = async {
            signals.next().await;
            tracing::info!(under_way = under_way.count(), "stopping");
            stopping.begin();
            tokio::select! {
                finished = timeout(grace, under_way.none()) => if finished.is_err() {
                    tracing::warn!(under_way = under_way.count(), "stopped before all answers had ended");
                },
                () = signals.next() => {}
            }
        };
        // Connections are taken to the end: whoever asks is told that the server is going.
        tokio::select! {
            () = take(&listener, &router, &connections) => {}
            () = stop => {}
        }
        drop(listener);
        let _ = timeout(CLOSE_TIMEOUT, connections.shutdown()).await;
        // From the outside in: what one leaves to be done is the next one's.
        if let Some(cache) = cache {
            cache.close().await;
        }
        if let Some(quotas) = quotas {
            quotas.close().await;
        }
        if let Some(ledger) = ledger {
            ledger.close().await;
        }
        // Last, so that it tells of all that went before.
        telemetry.close().await;
    }
}

struct Signals(Signal, Signal);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

async fn take(listener: &TcpListener, router: &Router, connections: &GracefulShutdown) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    loop {
        let Some(stream) = accept(listener).await else { continue };
        let service = TowerToHyperService::new(router.clone());
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
}

async fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept().await {
        Ok((stream, _)) => {
            // Chunks are small, and nobody shall wait for the next one to see this one.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection without TCP_NODELAY");
            }
            Some(stream)
        }
        Err(error) if is_of_one_connection(&error) => None,
        Err(error) => {
            // Out of descriptors, most likely: some will be free in a moment.
            tracing::error!(%error, "cannot accept connections");
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
