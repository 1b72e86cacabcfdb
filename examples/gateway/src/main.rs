//! A gateway for language models: an OpenAI-compatible server in front of any number of providers.
//!
//! ```text
//! gateway [--config FILE] [--listen ADDR]      serves; without a file, an echo to anybody
//! gateway check FILE [--model NAME]            says what FILE comes to, or what NAME does;
//!               [--tenant TENANT]              for a tenant with aliases of its own
//! gateway convert litellm|seed FILE            makes a configuration of another gateway's
//! gateway --help | --version
//! ```
//!
//! It ends with 0 if all is well, 1 if it cannot go on (or NAME leads nowhere), and 2 if the command line or the file is wrong.

#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr, reason = "they panic where nobody reads")]

mod access;
mod again;
mod convert;
mod head;
mod idle;
mod log;
mod routes;
mod server;
mod telemetry;
mod under_way;

use self::server::{Server, Signals, aside};
use llm_layers::{
    config::{Config, Identity},
    stack::{StackBuilder, StackError},
};
use std::{
    ffi::{OsStr, OsString},
    fmt::Display,
    io::Write,
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
};

/// Half of what a small request allocates is freed on another thread: the system's allocator takes a lock for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code of a command line or configuration that cannot work.
const MISUSED: u8 = 2;

/// How long threads may take to end when all else has ended.
const THREADS_TIMEOUT: Duration = Duration::from_secs(1);

const USAGE: &str = "usage: gateway [--config FILE] [--listen ADDR]\n       gateway check FILE [--model NAME [--tenant TENANT]]\n       gateway convert litellm|seed FILE";

/// What runs without a file: a provider that echoes.
const WITHOUT_FILE: &str = r#"
[providers.echo]
kind = "echo"
models = ["echo"]
[aliases]
fast = "echo/echo"
"#;

/// What the command line says.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    config: Option<PathBuf>,
    /// Goes before the file's, now and whenever it is read again.
    listen: Option<SocketAddr>,
    model: Option<String>,
    tenant: Option<String>,
    is_check: bool,
}

fn main() -> ExitCode {
    let mut convert = std::env::args_os().skip(1).peekable();
    if convert.next_if(|first| first == "convert").is_some() {
        return self::convert(convert);
    }
    match std::env::args_os().nth(1).and_then(|first| first.into_string().ok()).as_deref() {
        Some("--help" | "-h") => return say(format_args!("{USAGE}\n")),
        Some("--version" | "-V") => return say(concat!("gateway ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {}
    }
    let arguments = match Arguments::read(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => return misused(&format!("{problem}\n{USAGE}")),
    };
    if arguments.is_check {
        return match arguments.configuration() {
            Ok(config) => check(config, arguments.model.as_deref(), arguments.tenant.as_deref()),
            Err(problems) => misused(&problems),
        };
    }
    // Before files are read, which may take a while.
    let (runtime, signals) = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell(&error);
            return ExitCode::FAILURE;
        }
    };
    let config = match arguments.configuration() {
        Ok(config) => config,
        Err(problems) => return misused(&problems),
    };
    let log = match log::init(config.telemetry.log) {
        Ok(log) => log,
        Err(error) => {
            tell(&error);
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(serve(config, arguments, signals));
    // A thread that reads a pipe may wait for ever.
    runtime.shutdown_timeout(THREADS_TIMEOUT);
    drop(log);
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

/// Says what was asked for.
fn say(text: impl Display) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says a line on stderr, if anybody takes it.
fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "gateway: {line}");
}

fn misused(problems: &str) -> ExitCode {
    for line in problems.lines() {
        tell(line);
    }
    ExitCode::from(MISUSED)
}

impl Arguments {
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        self.config.as_ref()
    }

    fn read(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut read = Self::default();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{} needs a value", name.display()));
            match name.to_str() {
                Some("check") if !read.is_check && read.config.is_none() => {
                    read.is_check = true;
                    read.config = Some(value()?.into());
                }
                Some("--model") if read.is_check => {
                    read.model = Some(value()?.to_string_lossy().into_owned())
                }
                Some("--tenant") if read.is_check => {
                    read.tenant = Some(value()?.to_string_lossy().into_owned())
                }
                Some("--config") if !read.is_check => read.config = Some(value()?.into()),
                Some("--listen") if !read.is_check => {
                    let address = value()?;
                    let parsed = address.to_str().and_then(|address| address.parse().ok());
                    read.listen = Some(parsed.ok_or("--listen needs an address such as 127.0.0.1:8080")?);
                }
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        if read.tenant.is_some() && read.model.is_none() {
            return Err("--tenant is for --model NAME".to_owned());
        }
        Ok(read)
    }

    fn configuration(&self) -> Result<Config, String> {
        let config = match &self.config {
            None => Config::parse(WITHOUT_FILE).map_err(|error| error.to_string())?,
            Some(path) => Config::read(path).map_err(|error| error.to_string())?,
        };
        let config = self.applied_to(config);
        match config.identity {
            Identity::Keys => Ok(config),
            _ => Err("identity: this server is not told who asks but by keys".to_owned()),
        }
    }

    /// The file as the command line changes it.
    pub(crate) fn applied_to(&self, mut config: Config) -> Config {
        if let Some(listen) = self.listen {
            config.listen.0 = listen;
        }
        config
    }
}

fn convert(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let from = arguments.next().and_then(|name| convert::From::named(name.to_str()?));
    let (Some(from), Some(path), None) = (from, arguments.next(), arguments.next()) else {
        return misused(USAGE);
    };
    let converted = match convert::file(from, path.as_ref()) {
        Ok(converted) => converted,
        Err(problem) => return misused(&problem),
    };
    let said = say(converted.toml);
    for note in &converted.notes {
        tell(note);
    }
    match converted.problems {
        None => said,
        Some(problems) => {
            tell("the result cannot be used yet");
            misused(&problems.to_string());
            ExitCode::FAILURE
        }
    }
}

fn check(config: Config, model: Option<&str>, tenant: Option<&str>) -> ExitCode {
    let description = match StackBuilder::new(config).describe() {
        Ok(description) => description,
        Err(error) => return misused(&error.to_string()),
    };
    for warning in description.warnings() {
        tell(format_args!("warning: {warning}"));
    }
    let Some(model) = model else {
        return say(description);
    };
    match description.explain_to(model, tenant) {
        Some(text) => say(format_args!("{text}\n")),
        None => {
            let whom = tenant.map(|tenant| format!(" for the tenant {tenant:?}")).unwrap_or_default();
            tell(format_args!("no provider serves {model:?}{whom}"));
            ExitCode::FAILURE
        }
    }
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

async fn serve(
    config: Config,
    arguments: Arguments,
    mut signals: Signals,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let listen = config.listen.0;
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    let address = listener.local_addr()?;
    let building = tokio::spawn(aside(Server::new(listener, config, arguments)));
    let server = tokio::select! {
        built = building => built??,
        () = signals.next() => return Ok(()),
    };
    let mut stdout = std::io::stdout();
    let told = writeln!(stdout, "listening on http://{address}").and_then(|()| stdout.flush());
    told.map_err(|error| format!("standard output: {error}"))?;
    server.run(signals).await;
    Ok(())
}
