//! xAI's chat contract, over gRPC, in front of the layers: `xai-sdk` and every other client of it can be pointed here.
//!
//! ```text
//! grpc [--config FILE] [--listen ADDR]      without a file, an echo to anybody
//! ```

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
    stack::{Handle, Watch, stack},
};
use std::{error::Error, io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::transport::{Server, server::TcpIncoming};

const WITHOUT_FILE: &str = r#"
usage.enabled = false
providers.echo.kind = "echo"
aliases.fast = "echo/echo"
"#;

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
    let listener = TcpListener::bind(listen).await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    let mut terminated = signal(SignalKind::terminate())?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stopping = async move {
        tokio::select! { _ = terminated.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
        let _ = stop.send(());
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder().http2_keepalive_interval(Some(Duration::from_secs(30)));
    let mut server =
        std::pin::pin!({ server }.add_service(service).serve_with_incoming_shutdown(incoming, stopping));
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
