//! xAI's chat contract, over gRPC, in front of the layers: `xai-sdk` and every other client of it can be pointed here.
//!
//! ```text
//! grpc [--config FILE] [--listen ADDR]      without a file, an echo to anybody
//! ```
//!
//! Beside it are the standard services that operators expect, for anybody: `grpc.health.v1.Health`, which says of the whole and of `xai_api.Chat`
//! whether calls can be made, and server reflection.

#![forbid(unsafe_code)]

mod answer;
mod chat;
mod request;

/// The contract.
#[allow(unreachable_pub, clippy::all, clippy::clone_on_ref_ptr, reason = "made by a machine")]
mod xai {
    tonic::include_proto!("xai_api");
}

use self::{chat::Service, xai::chat_server::ChatServer};
use llm_layers::{
    BodyLimits,
    config::Config,
    stack::{Handle, Readiness, Watch, stack},
};
use std::{error::Error, io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::{
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

const WITHOUT_FILE: &str = r#"
usage.enabled = false
providers.echo.kind = "echo"
aliases.fast = "echo/echo"
"#;

const CONTRACT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chat.bin"));

/// What health is told of: the whole, and the one service that it comes down to.
const WATCHED: [&str; 2] = ["", ChatServer::<Service>::NAME];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (file, listen) = arguments()?;
    let config = match &file {
        Some(file) => Config::read(file),
        None => Config::parse(WITHOUT_FILE),
    };
    let config = config.map_err(|error| error.to_string())?;
    let watch = file.map(|file| Watch::new(file, &config));
    let limits = BodyLimits::default().with_max_bytes(config.server.max_body_bytes);
    let grace = config.server.shutdown_grace.0;
    let (stack, handle) = stack(config).await?;
    if let Some(watch) = watch {
        tokio::spawn(reload(watch, handle.clone()));
    }

    let max_bytes = limits.max_bytes;
    let service = ChatServer::new(Service { stack, handle: handle.clone(), limits });
    let service = service.max_decoding_message_size(max_bytes);
    let (mut health, health_service) = tonic_health::server::health_reporter();
    let telling = tokio::spawn(tell_health(health.clone(), handle.clone()));
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        builder.register_encoded_file_descriptor_set(CONTRACT)
    };
    let (reflection, former_reflection) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let listener = TcpListener::bind(listen).await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    let mut terminated = signal(SignalKind::terminate())?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stopping = async move {
        tokio::select! { _ = terminated.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
        telling.abort();
        for service in WATCHED {
            health.set_service_status(service, ServingStatus::NotServing).await;
            // Whoever watches is told so, and waited for no longer.
            health.clear_service_status(service).await;
        }
        let _ = stop.send(());
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().http2_keepalive_interval(Some(Duration::from_secs(30)));
    let routes = { server }
        .add_service(service)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(former_reflection);
    let mut server = std::pin::pin!(routes.serve_with_incoming_shutdown(incoming, stopping));
    // To the end of all answers, but not for ever.
    tokio::select! {
        served = &mut server => served?,
        _ = stopped => timeout(grace, server).await.unwrap_or(Ok(()))?,
    }
    let report = handle.shutdown(Duration::from_secs(20)).await;
    if !report.is_clean() {
        eprintln!("grpc: {report:?}");
    }
    Ok(())
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

async fn reload(mut watch: Watch, handle: Handle) {
    loop {
        let changed = watch.changed(Duration::from_secs(1)).await;
        if let Err(error) = changed.and_then(|config| handle.reload(config)) {
            eprintln!("grpc: the configuration stays as it was:\n{error}");
        }
    }
}

fn arguments() -> Result<(Option<PathBuf>, SocketAddr), Box<dyn Error>> {
    let (mut file, mut listen) = (None, SocketAddr::from(([127, 0, 0, 1], 50051)));
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or("usage: grpc [--config FILE] [--listen ADDR]")?;
        match name.as_str() {
            "--config" => file = Some(value.into()),
            "--listen" => listen = value.parse()?,
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    Ok((file, listen))
}
