//! xAI's chat contract, over gRPC, in front of the layers: `xai-sdk` and every other client of it can be pointed here.
//!
//! ```text
//! grpc [--config FILE] [--listen ADDR]      without a file, an echo to anybody on 127.0.0.1:50051
//! grpc --help | --version
//! ```
//!
//! It ends with 0 if all is well, 1 if it cannot go on, and 2 if the command line or the file is wrong.
//!
//! It listens where the file says (`127.0.0.1:8080` unless it does) or the command line does, and takes another file without a restart: when it
//! changes, and on SIGHUP. Entries that are for a server of HTTP are named on stderr when it starts.
//!
//! Beside it are the standard services that operators expect, for anybody: `grpc.health.v1.Health`, which says of the whole and of `xai_api.Chat`
//! whether calls can be made, and server reflection.

#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic where nobody reads")]

mod answer;
mod chat;
mod connection;
mod per_call;
mod request;
mod settings;
mod timely;

/// The contract.
#[allow(unreachable_pub, clippy::all, clippy::clone_on_ref_ptr, reason = "made by a machine")]
mod xai {
    tonic::include_proto!("xai_api");
}

use self::{
    chat::Service,
    connection::{Connection, HangUp, Line},
    per_call::PerCall,
    settings::Settings,
};
use llm_layers::{
    config::Config,
    stack::{Handle, Readiness, StackError, stack},
};
use std::{
    error::Error,
    ffi::OsStr,
    fmt,
    future::poll_fn,
    io::{self, Write as _},
    num::NonZeroUsize,
    pin::pin,
    process::ExitCode,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{self, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    task::block_in_place,
    time::{sleep, timeout},
};
use tonic::{
    codegen::tokio_stream::StreamExt as _,
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

const CONTRACT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chat.bin"));

/// What health is told of: the whole, and the one service that it comes down to.
const WATCHED: [&str; 2] = ["", PerCall::NAME];

/// How long calls may take to end once they are hung up on.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long threads may take to end when all else has ended.
const THREADS_TIMEOUT: Duration = Duration::from_secs(1);

/// The exit code of a command line or configuration that cannot work.
const MISUSED: u8 = 2;

const USAGE: &str = "usage: grpc [--config FILE] [--listen ADDR]";

fn main() -> ExitCode {
    match std::env::args_os().nth(1).and_then(|first| first.into_string().ok()).as_deref() {
        Some("--help" | "-h") => return said(USAGE),
        Some("--version" | "-V") => return said(concat!("grpc ", env!("CARGO_PKG_VERSION"))),
        _ => {}
    }
    let settings = match Settings::read(std::env::args_os().skip(1)) {
        Ok(settings) => settings,
        Err(problem) => return misused(&format!("{problem}\n{USAGE}")),
    };
    // Before files are read, which may take a while.
    let (runtime, signals) = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&error);
            return ExitCode::FAILURE;
        }
    };
    let config = match settings.configuration() {
        Ok(config) => config,
        Err(problems) => return misused(&problems),
    };
    let ended = runtime.block_on(serve(settings, config, signals));
    // A thread that reads a pipe may wait for ever.
    runtime.shutdown_timeout(THREADS_TIMEOUT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            match error.downcast_ref() {
                Some(StackError::Config(_)) => ExitCode::from(MISUSED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn said(text: &str) -> ExitCode {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Says a line on stderr, if anybody takes it.
pub(crate) fn tell(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "grpc: {line}");
}

fn misused(problems: &str) -> ExitCode {
    for line in problems.lines() {
        tell(line);
    }
    ExitCode::from(MISUSED)
}

/// Where all of it runs, and what ends it. Tokio panics where the variable is no number of threads.
fn runtime() -> Result<(Runtime, Signals), String> {
    const THREADS: &str = "TOKIO_WORKER_THREADS";
    let is_number = |text: &OsStr| text.to_str().is_some_and(|text| text.parse::<NonZeroUsize>().is_ok());
    if std::env::var_os(THREADS).is_some_and(|text| !is_number(&text)) {
        return Err(format!("{THREADS}: no number of threads"));
    }
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the runtime: {error}"))?;
    let signals = {
        let _runtime = runtime.enter();
        Signals::new().map_err(|error| format!("signals: {error}"))?
    };
    Ok((runtime, signals))
}

async fn serve(settings: Settings, config: Config, mut signals: Signals) -> Result<(), Box<dyn Error>> {
    for entry in settings.not_served() {
        tell(format_args!("warning: {entry} changes nothing here"));
    }
    let hangup = signal(SignalKind::hangup())?;
    let address = config.listen.0;
    let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
    let building = tokio::spawn(aside(stack(config)));
    let (stack, handle) = tokio::select! {
        built = building => built??,
        () = signals.next() => return Ok(()),
    };
    settings::warn(&handle);
    let config = handle.config();
    let limits = config.server.clone();
    tokio::spawn({
        let handle = handle.clone();
        async move { aside(settings.reload(&config, handle, hangup)).await }
    });

    let (hang_up, line) = Line::new();
    let service = PerCall::new(Service::new(stack, handle.clone(), line.clone()));
    let (mut health, health_service) = tonic_health::server::health_reporter();
    let telling = tokio::spawn(tell_health(health.clone(), handle.clone()));
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        builder.register_encoded_file_descriptor_set(CONTRACT)
    };
    let (reflection, former_reflection) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stopping = async move {
        signals.next().await;
        telling.abort();
        for service in WATCHED {
            health.set_service_status(service, ServingStatus::NotServing).await;
            // Whoever watches is told so, and waited for no longer.
            health.clear_service_status(service).await;
        }
        let _ = stop.send(());
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = incoming.then(accepted);
    let incoming = incoming.map(move |stream| Ok::<_, io::Error>(Connection::new(stream?, line.clone())));
    let routes = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_max_header_list_size(u32::try_from(limits.max_header_bytes).ok())
        .add_service(service)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(former_reflection);
    {
        let mut server = pin!(routes.serve_with_incoming_shutdown(incoming, stopping));
        // To the end of all answers, but not for ever.
        tokio::select! {
            served = &mut server => served?,
            _ = stopped => {
                hang_up.send_replace(HangUp::Strangers);
                let (grace, mut again) = (handle.config().server.shutdown_grace.0, Signals::new()?);
                tokio::select! {
                    served = &mut server => served?,
                    () = sleep(grace) => tell("stopped before all answers had ended"),
                    () = again.next() => {}
                }
            }
        }
    }
    // What is left is hung up on, and thereby recorded and charged, while there is somebody to do it.
    hang_up.send_replace(HangUp::Everybody);
    let _ = timeout(HANG_UP_TIMEOUT, hang_up.closed()).await;
    let report = handle.shutdown(Duration::from_secs(20)).await;
    if !report.is_clean() {
        tell(format_args!("{report:?}"));
    }
    Ok(())
}

/// Lets others have this thread meanwhile: to read a large file, and to make something of it, takes seconds.
async fn aside<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| block_in_place(|| future.as_mut().poll(cx))).await
}

/// Tonic asks for the next connection at once, whatever became of this one.
async fn accepted(stream: io::Result<TcpStream>) -> io::Result<TcpStream> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if let Err(error) = &stream
        && !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
    {
        // Out of descriptors, most likely: some will be free in a moment.
        tell(format_args!("cannot accept connections: {error}"));
        sleep(Duration::from_secs(1)).await;
    }
    stream
}

/// That it is to end. Whoever is the first process of a container is not ended by a signal that he does not wait for.
struct Signals(Signal, Signal);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.0.recv() => {}, _ = self.1.recv() => {} }
    }
}

/// Whether calls can be made, as far as it is known without making one.
async fn tell_health(health: HealthReporter, handle: Handle) {
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    loop {
        ticks.tick().await;
        let status = match handle.readiness() {
            Readiness::Ready => ServingStatus::Serving,
            _ => ServingStatus::NotServing,
        };
        for service in WATCHED {
            health.set_service_status(service, status).await;
        }
    }
}
