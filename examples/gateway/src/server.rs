//! Takes connections, until it is told to stop and all answers have ended; and another configuration, whenever there is one.

use crate::{
    Arguments,
    access::{self, Accounts},
    again::Again,
    idle::{Idle, Never, Requests},
    routes::{self, Stopping},
    telemetry::Telemetry,
    under_way::UnderWay,
};
use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use llm_layers::{
    config::{self, Config},
    http::axum::WriteTimeout,
    stack::{Handle, ShutdownReport, StackBuilder, Watch},
};
use std::{convert::Infallible, error::Error, future::poll_fn, io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinSet, block_in_place},
    time::timeout,
};

/// How much of a body is read at once at most: a long prompt that comes in one piece is not copied into one.
const READ_AT_ONCE: usize = 256 << 10;

/// How long idle connections may take to close once all answers are sent.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the workers may take to finish when the server ends.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) struct Server {
    listener: TcpListener,
    limits: config::Server,
    router: Router,
    accounts: Arc<Accounts>,
    stopping: Stopping,
    under_way: UnderWay,
    handle: Handle,
    telemetry: Telemetry,
    reload: Option<Reload>,
}

impl Server {
    /// All that can fail: afterwards it serves until a signal comes.
    pub(crate) async fn new(
        listener: TcpListener,
        config: Config,
        arguments: Arguments,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (stopping, under_way, limits) = (Stopping::default(), UnderWay::default(), config.server.clone());
        let watch = arguments.file().map(|path| Watch::new(path, &config));
        let hangup = signal(SignalKind::hangup())?;
        let telemetry = Telemetry::start(&config.telemetry)?;
        let (stack, handle) = StackBuilder::new(config)
            .with_observer(telemetry.observer())
            .with_content(telemetry.capture())
            .map_quota(telemetry.watch_quota())
            .on_bad_policies(|error| tracing::error!(%error, "the policies stay as they were"))
            .build()
            .await?;
        telemetry.watch(&handle);
        telemetry.watch_log();
        telemetry.watch_cache(&handle);
        warn(&handle);
        warn_of_proxy(&handle.config());
        let router = routes::router(stack, &handle, &stopping, &telemetry);
        let accounts = Arc::new(Accounts::new(telemetry.tracer(), stopping.clone(), handle.clone()));
        let reload = watch.map(|watch| Reload { watch, hangup, arguments, handle: handle.clone() });
        Ok(Self { listener, limits, router, accounts, stopping, under_way, handle, telemetry, reload })
    }

    pub(crate) async fn run(self, mut signals: Signals) {
        let Self { listener, limits, router, accounts, stopping, under_way, .. } = self;
        let Self { handle, telemetry, reload, .. } = self;
        let reloading = reload.map(|reload| tokio::spawn(aside(reload.run())));
        let (connections, mut tasks) = (GracefulShutdown::new(), JoinSet::new());
        let stop = async {
            signals.next().await;
            tracing::info!(under_way = under_way.count(), "stopping");
            stopping.begin();
            let grace = handle.config().server.shutdown_grace.0;
            tokio::select! {
                finished = timeout(grace, under_way.none()) => if finished.is_err() {
                    tracing::warn!(under_way = under_way.count(), "stopped before all answers had ended");
                },
                () = signals.next() => {}
            }
        };
        // Connections are taken to the end: whoever asks is told that the server is going.
        tokio::select! {
            () = take(&listener, &limits, &router, &accounts, &under_way, &connections, &mut tasks) => {}
            () = stop => {}
        }
        drop(listener);
        if let Some(reloading) = reloading {
            reloading.abort();
        }
        let _ = timeout(CLOSE_TIMEOUT, connections.shutdown()).await;
        // What is left is hung up on, and thereby recorded and charged, while there is somebody to do it.
        tasks.shutdown().await;
        tell(&handle.shutdown(FINISH_TIMEOUT).await);
        // Last, so that it tells of all that went before.
        telemetry.close().await;
    }
}

/// Lets others have this thread meanwhile: to read a large file, and to make something of it, takes seconds.
pub(crate) async fn aside<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| block_in_place(|| future.as_mut().poll(cx))).await
}

fn tell(report: &ShutdownReport) {
    if report.cut_flights > 0 {
        tracing::warn!(calls = report.cut_flights, "shared calls were cut off");
    }
    if let Some(quota) = &report.quota {
        match quota.left {
            0 => tracing::info!(settled = quota.settled, "quotas are settled"),
            left => {
                let error = quota.last_error.as_deref();
                tracing::error!(left, error, "quotas are not settled; the leases will run out");
            }
        }
    }
    if report.quota_file_is_busy {
        tracing::error!("the file of quotas is still busy");
    }
    if let Some(usage) = &report.usage {
        let (left, written, error) = (usage.left, usage.written, usage.last_error.as_deref());
        if usage.kept > 0 {
            tracing::warn!(left = usage.kept, error, "usage is left in the outbox for the next start");
        }
        if usage.set_aside > 0 {
            tracing::error!(events = usage.set_aside, "usage that the store refuses for ever");
        }
        if usage.damaged > 0 {
            tracing::error!(records = usage.damaged, "usage was damaged in the outbox, and is lost");
        }
        match left {
            0 => tracing::info!(written, "usage is recorded"),
            left => tracing::error!(left, written, error, "usage is not recorded"),
        }
    }
}

/// Takes another configuration when the file changes, and on SIGHUP.
struct Reload {
    watch: Watch,
    hangup: Signal,
    arguments: Arguments,
    handle: Handle,
}

impl Reload {
    async fn run(mut self) {
        loop {
            let read = tokio::select! {
                read = self.watch.changed(LOOK_EVERY) => read,
                _ = self.hangup.recv() => self.watch.read(),
            };
            match read.and_then(|config| self.handle.reload(self.arguments.applied_to(config))) {
                Ok(()) => {
                    tracing::info!("the configuration was read again");
                    warn(&self.handle);
                }
                Err(error) => {
                    for problem in error.problems() {
                        tracing::error!(%problem, "the configuration stays as it was");
                    }
                }
            }
        }
    }
}

fn warn(handle: &Handle) {
    for warning in handle.warnings() {
        tracing::warn!(%warning, "the configuration is odd");
    }
}

/// Who sets such a variable means it to be obeyed.
fn warn_of_proxy(config: &Config) {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|proxy| !proxy.is_empty());
    let variable = ["HTTPS_PROXY", "https_proxy"].into_iter().find(is_set);
    if let Some(variable) = variable.filter(|_| config.providers.values().all(|one| one.proxy.is_none())) {
        tracing::warn!(variable, "the variable is not obeyed: providers.NAME.proxy is");
    }
}

/// That it is to end. Whoever is the first process of a container is not ended by a signal that he does not wait for.
pub(crate) struct Signals(Signal, Signal);

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

async fn take(
    listener: &TcpListener,
    limits: &config::Server,
    router: &Router,
    accounts: &Arc<Accounts>,
    under_way: &UnderWay,
    connections: &GracefulShutdown,
    tasks: &mut JoinSet<()>,
) {
    let mut http = http1::Builder::new();
    http.timer(Never).max_header_size(limits.max_header_bytes).max_headers(limits.max_headers);
    http.max_buf_size(limits.max_header_bytes.max(READ_AT_ONCE));
    loop {
        let accepted = tokio::select! {
            accepted = accept(listener) => accepted,
            // Nobody else asks what became of it.
            Some(_) = tasks.join_next() => continue,
        };
        let Some(stream) = accepted else { continue };
        let (router, accounts, requests) =
            (router.clone(), Arc::clone(accounts), Requests::new(under_way.clone()));
        let stream = WriteTimeout::new(stream, limits.write_timeout.0);
        let stream = Idle::new(stream, requests.clone(), limits.idle_timeout.0);
        let service = service_fn(move |request: Request<Incoming>| {
            let (accounts, router) = (Arc::clone(&accounts), router.clone());
            let answered = access::account(accounts, router, request.map(Body::new), requests.begin());
            async { Ok::<_, Infallible>(answered.await) }
        });
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        tasks.spawn(Again::new(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        }));
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
