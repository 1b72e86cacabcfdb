//! What the command line and the file say, and what the file says anew.

use crate::tell;
use llm_layers::{
    config::{Config, Identity},
    stack::{Handle, Watch},
};
use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::signal::unix::Signal;

const WITHOUT_FILE: &str = r#"
listen = "127.0.0.1:50051"
usage.enabled = false
providers.echo.kind = "echo"
aliases.fast = "echo/echo"
"#;

/// What a file may say to a server of HTTP, and nothing here does.
const NOT_SERVED: [(&str, &[&str]); 2] = [
    ("server", &["max_headers", "keep_alive", "idle_timeout"]),
    ("telemetry", &["metrics", "log", "decision_headers"]),
];

#[derive(Debug, Default)]
pub(crate) struct Settings {
    file: Option<PathBuf>,
    /// Goes before the file's, now and whenever it is read again.
    listen: Option<SocketAddr>,
}

impl Settings {
    pub(crate) fn read(mut arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut read = Self::default();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{} needs a value", name.display()));
            match name.to_str() {
                Some("--config") => read.file = Some(value()?.into()),
                Some("--listen") => {
                    let address = value()?;
                    let parsed = address.to_str().and_then(|address| address.parse().ok());
                    read.listen = Some(parsed.ok_or("--listen needs an address such as 127.0.0.1:50051")?);
                }
                _ => return Err(format!("unknown argument {}", name.display())),
            }
        }
        Ok(read)
    }

    pub(crate) fn configuration(&self) -> Result<Config, String> {
        let config = match &self.file {
            Some(file) => Config::read(file),
            None => Config::parse(WITHOUT_FILE),
        };
        let config = self.applied_to(config.map_err(|error| error.to_string())?);
        match config.identity {
            Identity::Keys => Ok(config),
            _ => Err("identity: this server is not told who asks but by keys".to_owned()),
        }
    }

    /// The entries of the file that change nothing here. A pipe can be read but once.
    pub(crate) fn not_served(&self) -> Vec<String> {
        let file = self.file.as_ref().filter(|file| file.is_file());
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let file: toml::Table = text.parse().unwrap_or_default();
        let is_in = |table: &str, name: &str| file.get(table).is_some_and(|table| table.get(name).is_some());
        let all = NOT_SERVED.iter().flat_map(|(table, names)| names.iter().map(move |name| (*table, *name)));
        all.filter(|(table, name)| is_in(table, name))
            .map(|(table, name)| format!("{table}.{name}"))
            .collect()
    }

    /// Takes another configuration when the file changes, and on SIGHUP.
    pub(crate) async fn reload(self, config: &Config, handle: Handle, mut hangup: Signal) {
        let Some(file) = &self.file else { return };
        let mut watch = Watch::new(file, config);
        loop {
            let read = tokio::select! {
                read = watch.changed(Duration::from_secs(1)) => read,
                _ = hangup.recv() => watch.read(),
            };
            match read.and_then(|config| handle.reload(self.applied_to(config))) {
                Ok(()) => {
                    tell("the configuration was read again");
                    warn(&handle);
                }
                Err(error) => tell(format_args!("the configuration stays as it was:\n{error}")),
            }
        }
    }

    fn applied_to(&self, mut config: Config) -> Config {
        if let Some(listen) = self.listen {
            config.listen.0 = listen;
        }
        config
    }
}

/// Tells what is odd in the configuration that is in force.
pub(crate) fn warn(handle: &Handle) {
    for warning in handle.warnings() {
        tell(format_args!("warning: {warning}"));
    }
}
