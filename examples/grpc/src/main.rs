//! xAI's chat contract, over gRPC, in front of the layers: `xai-sdk` and every other client of it can be pointed here.
//!
//!     grpc [--config FILE] [--listen ADDR]

mod answer;
mod chat;
mod config;
mod request;

/// The contract.
#[allow(unreachable_pub, clippy::all, clippy::clone_on_ref_ptr, reason = "made by a machine")]
mod xai {
    tonic::include_proto!("xai_api");
}

use self::{chat::Service, config::Config, xai::chat_server::ChatServer};
use llm_layers::BodyLimits;
use std::{error::Error, io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tonic::transport::{Server, server::TcpIncoming};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (file, listen) = arguments()?;
    let config = Config::read(file.as_deref())?;
    let limits = BodyLimits::default();
    let service = Service { stack: config.stack()?, keys: config.keys(), limits: limits.clone() };
    let service = ChatServer::new(service).max_decoding_message_size(limits.max_bytes);

    let listener = TcpListener::bind(listen).await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", listener.local_addr()?)?;
    stdout.flush()?;
    let mut terminated = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! { _ = terminated.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    Ok(())
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
