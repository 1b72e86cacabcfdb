//! A gateway for language models: an OpenAI-compatible server in front of any number of providers.
//!
//! `gateway [--config FILE] [--listen ADDR]`

mod access;
mod auth;
mod cache;
mod collect;
mod config;
mod ledger;
mod log;
mod quota;
mod routes;
mod server;
mod stack;
mod telemetry;

use self::{config::Config, server::Server};
use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};
use tokio::net::TcpListener;

/// The exit code of a command line or configuration that cannot work.
const MISUSED: u8 = 2;

#[derive(Default)]
struct Arguments {
    config: Option<PathBuf>,
    listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let config = match arguments().map_err(|problem| vec![problem]).and_then(configuration) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                eprintln!("gateway: {problem}");
            }
            return ExitCode::from(MISUSED);
        }
    };
    log::init(config.telemetry.json_log);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments, String> {
    let mut read = Arguments::default();
    let mut arguments = std::env::args_os().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{} needs a value", name.display()));
        match name.to_str() {
            Some("--config") => read.config = Some(value()?.into()),
            Some("--listen") => {
                let address = value()?;
                let parsed = address.to_str().and_then(|address| address.parse().ok());
                read.listen = Some(parsed.ok_or("--listen needs an address such as 127.0.0.1:8080")?);
            }
            _ => {
                let usage = "usage: gateway [--config FILE] [--listen ADDR]";
                return Err(format!("unknown argument {}\n{usage}", name.display()));
            }
        }
    }
    Ok(read)
}

fn configuration(arguments: Arguments) -> Result<Config, Vec<String>> {
    let mut config = match arguments.config {
        None => Config::without_file(),
        Some(path) => {
            let text = std::fs::read_to_string(&path);
            let text = text.map_err(|error| vec![format!("{}: {error}", path.display())])?;
            Config::read(&text, &|name| std::env::var(name).ok())?
        }
    };
    config.listen = arguments.listen.unwrap_or(config.listen);
    Ok(config)
}

#[tokio::main]
async fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(config.listen).await?;
    let address = listener.local_addr()?;
    let server = Server::new(listener, &config).await?;
    drop(config);
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on http://{address}")?;
    stdout.flush()?;
    server.run().await;
    Ok(())
}
