//! The real gateway as a process of its own.

use crate::{Client, Reply, soon, until};
use serde_json::Value;
use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A process, in a folder of its own unless told.
#[derive(Debug)]
pub struct Gateway {
    /// `host:port`
    pub address: String,
    /// Where its files are.
    pub room: Room,
    child: Child,
    /// Itself, also where it is run by another program.
    id: u32,
    log: Arc<Mutex<String>>,
}

/// A folder that goes when nobody needs it any more.
#[derive(Debug, Clone)]
pub struct Room(Arc<Folder>);

#[derive(Debug)]
struct Folder(PathBuf);

/// How to run it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
    /// Its folder, if another one had it before.
    pub room: Option<Room>,
    /// Bytes on a disk of its own, where `disk/` is.
    pub disk: Option<u64>,
    /// How many files and sockets it may have open; without a disk of its own.
    pub files: Option<u64>,
}

impl Room {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "it is made on the disk")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("faults-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("disk")).expect("a folder");
        Self(Arc::new(Folder(path)))
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where the program is: beside this one, as `cargo test` for the workspace or `cargo build -p gateway` has made it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("GATEWAY") {
            return path.into();
        }
        let own = std::env::current_exe().expect("the path of this test");
        let path = own.ancestors().nth(2).expect("target/debug/deps").join("gateway");
        assert!(path.exists(), "there is no {}: cargo build -p gateway", path.display());
        path
    })
}

impl Gateway {
    /// Runs one with the text of a file.
    pub async fn start(config: &str) -> Self {
        Self::start_with(config, Options::default()).await
    }

    /// Runs one.
    ///
    /// # Panics
    ///
    /// It does not start.
    pub async fn start_with(config: &str, options: Options) -> Self {
        Self::try_start(config, options).await.unwrap_or_else(|log| panic!("it does not start: {log}"))
    }

    /// Runs one, or says what it has said instead.
    ///
    /// # Errors
    ///
    /// It has ended before it listened.
    pub async fn try_start(config: &str, options: Options) -> Result<Self, String> {
        let room = options.room.unwrap_or_else(Room::new);
        std::fs::write(room.join("gateway.toml"), config).expect("a file");
        let mut command = match (options.disk, options.files) {
            (Some(bytes), _) => on_a_disk(bytes),
            (None, Some(files)) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("ulimit -n {files} && exec \"$@\""), "sh"]).arg(program());
                command
            }
            (None, None) => Command::new(program()),
        };
        command.args(["--listen", "127.0.0.1:0", "--config", "gateway.toml"]).env_remove("RUST_LOG");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.envs(options.env).current_dir(room.join(""));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the gateway");
        let log = Arc::new(Mutex::new(String::new()));
        let (mut lines, lines_log) =
            (BufReader::new(child.stderr.take().expect("piped")).lines(), Arc::clone(&log));
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut log = lines_log.lock().unwrap_or_else(PoisonError::into_inner);
                // Of hours of load the end is enough.
                if log.len() > 4 << 20 {
                    log.clear();
                }
                *log += &(line + "\n");
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = soon(stdout.next_line()).await.expect("text");
        let Some(line) = line else {
            let _ = reading.await;
            return Err(log.lock().unwrap_or_else(PoisonError::into_inner).clone());
        };
        let address = line.strip_prefix("listening on http://").expect(&line).to_owned();
        let id = child.id().expect("it runs");
        Ok(Self { address, room, child, id, log })
    }

    /// A connection.
    pub async fn connect(&self) -> Client {
        Client::connect(&self.address).await.expect("it listens")
    }

    /// Asks on a connection of its own.
    ///
    /// # Errors
    ///
    /// It has hung up without an answer.
    pub async fn ask(&self, key: &str, body: &Value) -> io::Result<Reply> {
        let mut client = Client::connect(&self.address).await?;
        client.write(&Client::chat_request(key, body)).await?;
        client.reply().await
    }

    /// Asks for something else with a key.
    pub async fn get(&self, key: &str, path: &str) -> Reply {
        let bearer = format!("Bearer {key}");
        let mut client = self.connect().await;
        let _ = client.write(&Client::request("GET", path, &[("authorization", &bearer)], b"")).await;
        client.reply().await.expect("an answer")
    }

    /// Whether it is ready.
    pub async fn is_ready(&self) -> bool {
        self.get("", "/readyz").await.status == 200
    }

    /// What a department has used up of a day, and what is reserved: requests, tokens.
    ///
    /// # Panics
    ///
    /// It cannot be told.
    pub async fn standing(&self, key: &str, department: &str) -> Standing {
        self.try_standing(key, department).await.expect("a department's standing")
    }

    /// The same, if it can be told now.
    pub async fn try_standing(&self, key: &str, department: &str) -> Option<Standing> {
        let reply = self.get(key, &format!("/v1/quota/{department}")).await;
        let day = (reply.status == 200).then(|| reply.json()["day"].clone())?;
        let of = |kind: &str, part: &str| day[kind][part].as_u64();
        Some(Standing {
            settled: (of("requests", "settled")?, of("tokens", "settled")?),
            reserved: (of("requests", "reserved")?, of("tokens", "reserved")?),
        })
    }

    /// Waits until nothing is reserved, for so long.
    pub async fn is_settled(&self, key: &str, department: &str, limit: Duration) -> bool {
        let ask = async || self.try_standing(key, department).await.filter(|now| now.reserved == (0, 0));
        until(limit, ask).await.is_some()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends it a signal: `TERM`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status =
            std::process::Command::new("kill").args([&format!("-{name}"), &self.id.to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Option<i32> {
        soon(self.child.wait()).await.expect("its end").code()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id)).map_or(0, Iterator::count)
    }

    /// How much memory it uses, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.id)).map_or(0, Iterator::count)
    }

    /// The number at a line of `/metrics` that begins so.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("", "/metrics").await.body;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// A file on its own disk, which nobody else sees.
    pub fn on_its_disk(&self, name: &str) -> PathBuf {
        let folder = self.room.join("disk").join(name);
        PathBuf::from(format!("/proc/{}/root{}", self.id, folder.display()))
    }
}

/// A file system of that size at `disk`, in a space of names that ends with the process.
fn on_a_disk(bytes: u64) -> Command {
    let mut command = Command::new("unshare");
    // Who is not root may be in a space where they are.
    command.args(["--map-root-user", "--mount", "sh", "-c"]);
    command.arg(format!("mount -t tmpfs -o size={bytes} faults disk && exec \"$@\""));
    command.arg("sh").arg(program());
    command
}

/// What a department has used up and what is reserved: requests and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Used up.
    pub settled: (u64, u64),
    /// Reserved.
    pub reserved: (u64, u64),
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(4000);
            eprintln!("the gateway's log ends so:\n{}", log.get(from..).unwrap_or(&log));
        }
    }
}
