//! Measures the gateway beside a bare reverse proxy: CPU, latency and memory of each server as its own process.
//!
//! `scripts/bench-gateway` builds and runs it; `--help` lists what it can be told.

#![forbid(unsafe_code)]

mod case;
mod load;
mod measure;
mod options;
mod process;
mod proxy;
mod table;
mod upstream;

use self::options::Options;
use std::{error::Error, process::ExitCode};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["upstream"] => serve(upstream),
        ["proxy", upstream] => serve(|listener| proxy::serve(listener, upstream)),
        told => Options::read(told).and_then(|options| match options {
            Some(options) => single_threaded(measure::run(&options)),
            None => Ok(()),
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn upstream(listener: TcpListener) -> Fallible {
    upstream::serve(listener).await
}

/// As `#[tokio::main]` would, like the gateway.
#[tokio::main]
async fn serve<F: Future<Output = Fallible>>(serve: impl FnOnce(TcpListener) -> F) -> Fallible {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    // To its end, as the gateway: what was counted for a profile is written then.
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        served = serve(listener) => served,
        _ = terminated.recv() => Ok(()),
    }
}

/// One thread is enough to send, and takes less of the machine from those who are measured.
#[tokio::main(flavor = "current_thread")]
async fn single_threaded(work: impl Future<Output = Fallible>) -> Fallible {
    work.await
}
