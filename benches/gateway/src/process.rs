//! A server as a process of its own, and what the kernel says of it.

use crate::{Fallible, case::KEY};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// A server, which ends with it.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a program that says where it listens.
    async fn start(mut command: Command) -> Fallible<Self> {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let line = timeout(Duration::from_secs(60), lines.next_line()).await??;
        let line = line.ok_or("a server ended before it was one")?;
        let address = line.strip_prefix("listening on http://").ok_or(line.clone())?.parse()?;
        Ok(Self { child, address })
    }

    pub(crate) async fn upstream() -> Fallible<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("upstream");
        Self::start(command).await
    }

    pub(crate) async fn floor(upstream: SocketAddr) -> Fallible<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["proxy", &upstream.to_string()]);
        Self::start(command).await
    }

    /// The gateway with everything on, its files in a folder of its own; by way of another command, if one is named, which leaves
    /// what it writes where it was asked for.
    pub(crate) async fn gateway(upstream: SocketAddr, folder: &Folder, setup: &Setup) -> Fallible<Self> {
        let program = std::env::current_exe()?.with_file_name("gateway");
        fs::write(folder.0.join("prices.toml"), PRICES)?;
        let config = folder.0.join("gateway.toml");
        fs::write(&config, configuration(upstream, folder, setup))?;
        let mut words = setup.under.split_whitespace();
        let mut command = match words.next() {
            None => Command::new(program),
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
        };
        command.arg("--config").arg(config).args(["--listen", "127.0.0.1:0"]);
        if let Some(log) = &setup.log {
            command.env("RUST_LOG", log);
        }
        command.stderr(fs::File::create(folder.0.join("log"))?);
        Self::start(command).await
    }

    /// The time of all its processors so far, user and system.
    pub(crate) fn cpu(&self) -> Fallible<Duration> {
        let stat = fs::read_to_string(self.proc("stat")?)?;
        // The name of the program, in brackets, may have spaces in it.
        let after = stat.rsplit_once(')').ok_or("no stat")?.1;
        let ticks: Vec<u64> =
            after.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        // A hundredth of a second each, on Linux.
        Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
    }

    /// What it has in memory, in KiB.
    pub(crate) fn rss(&self) -> Fallible<u64> {
        let status = fs::read_to_string(self.proc("status")?)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }

    fn proc(&self, file: &str) -> Fallible<PathBuf> {
        let id = self.child.id().ok_or("a server has ended")?;
        Ok(Path::new("/proc").join(id.to_string()).join(file))
    }

    /// Asks it to end, and waits for that.
    pub(crate) async fn stop(mut self) -> Fallible {
        if let Some(id) = self.child.id() {
            Command::new("kill").arg(id.to_string()).status().await?;
        }
        timeout(Duration::from_secs(30), self.child.wait()).await??;
        Ok(())
    }
}

/// What differs between runs of the gateway.
#[derive(Debug, Default, Clone)]
pub(crate) struct Setup {
    pub(crate) cache_bytes: u64,
    pub(crate) quota: String,
    pub(crate) log: Option<String>,
    pub(crate) under: String,
}

const PRICES: &str = r#"
source = "bench"
currency = "USD"
per = "1M"
[models."mock/whole"]
input = "0.15"
cache_read = "0.075"
output = "0.60"
[models."mock/stream-100"]
input = "0.15"
output = "0.60"
[models."mock/burst-100"]
input = "0.15"
output = "0.60"
[models."mock/paced-100"]
input = "0.15"
output = "0.60"
[models."other/whole"]
input = "0.15"
output = "0.60"
"#;

/// Keys, aliases, fallbacks, access, quotas of all kinds, cache, usage in SQLite, metrics; nothing is exported.
fn configuration(upstream: SocketAddr, folder: &Folder, setup: &Setup) -> String {
    let Setup { cache_bytes, quota, .. } = setup;
    let [prices, usage, counters] = ["prices.toml", "usage.db", "quota.db"].map(|name| folder.0.join(name));
    let counters = if quota == "sqlite" { format!("path = {counters:?}") } else { String::new() };
    format!(
        r#"
[[keys]]
key = "{KEY}"
user = "ada"
tenant = "acme"
departments = ["r-and-d"]
agent = "bench"

[[keys]]
key = "another"
user = "bob"
admin = true

[providers.mock]
base_url = "http://{upstream}/v1"
api_key = "sk-upstream"

[providers.other]
base_url = "http://{upstream}/v1"

[aliases]
whole = "mock/whole"
stream-100 = "mock/stream-100"
burst-100 = "mock/burst-100"
paced-100 = "mock/paced-100"

[fallbacks]
"mock/whole" = ["other/whole"]
"mock/stream-100" = ["other/whole"]
"mock/burst-100" = ["other/whole"]
"mock/paced-100" = ["other/whole"]

[retry]
retries = 1

[departments.r-and-d]
models = ["mock/*", "other/whole"]
day_requests = 1000000000
month_requests = 10000000000
day_tokens = 1000000000000
month_tokens = 10000000000000
day_cost = "10000000"
month_cost = "100000000"

[quota]
store = "{quota}"
{counters}
timeout = "10s"

[cache]
max_bytes = {cache_bytes}

[usage]
path = {usage:?}

[prices]
own = {prices:?}
"#
    )
}

/// A folder of its own, which ends with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Fallible<Self> {
        let folder = std::env::temp_dir().join(format!("bench-gateway-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self(folder.canonicalize()?))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
