//! Real servers of Redis for tests: one alone, a cluster, and a proxy that loses replies. Included by
//! `#[path = "support/redis.rs"] mod redis_server;`; needs nothing but std.
//!
//! A server stops when it is dropped, also by a panic. Ports are free ones of loopback; files are in a directory of the
//! system's for such, and are gone with the server.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Whether there is a `redis-server` to start; if not, a line says that the test `name` did not run.
pub fn is_installed(name: &str) -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    // Not by `println!`, which is shown of failed tests only.
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: redis-server is not installed, run scripts/peers");
    false
}

/// One server.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    directory: PathBuf,
    options: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts a server that keeps nothing on the disk; none, and a line that says so, if Redis is not installed.
    pub fn start(test: &str) -> Option<Self> {
        is_installed(test).then(|| Self::with_options(&["--appendonly", "no"]))
    }

    /// Starts a server that brings each write to the disk before it answers, so that a kill loses nothing.
    pub fn start_durable(test: &str) -> Option<Self> {
        is_installed(test).then(|| Self::with_options(&["--appendonly", "yes", "--appendfsync", "always"]))
    }

    /// Starts a server with these options of its command line; Redis must be installed.
    pub fn with_options(options: &[&str]) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("llm-layers-redis-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the server");
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { port: 0, directory, options, child: None };
        // Somebody else may take the port before the server does.
        for _ in 0..20 {
            server.port = free_port();
            if server.run() {
                return server;
            }
        }
        panic!("redis-server does not start: {}", server.log());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `redis://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What the server has written into its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends it as by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again at the same port, with what it had on the disk. Kills it first if it runs.
    pub fn restart(&mut self) {
        self.kill();
        self.mend();
        // Connections of the one before may still hold the port for a moment.
        for _ in 0..100 {
            if self.run() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("redis-server does not start again: {}", self.log());
    }

    /// Starts it again at the same port, empty.
    pub fn restart_empty(&mut self) {
        self.kill();
        for name in ["dump.rdb", "appendonlydir"] {
            let path = self.directory.join(name);
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        self.restart();
    }

    /// Stops it without ending it: connections stay open, and nothing is answered.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Asks it by itself, on a connection of its own: the words of a command, and what comes back, one line for each
    /// element.
    pub fn ask(&self, command: &[&str]) -> String {
        ask(self.port, command).expect("an answer")
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("a running server");
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Whether it runs then.
    /// Cuts off what a kill has left of a transaction at the end of its log. The server itself cuts off half of a command
    /// and leaves the transaction open; what is written next becomes part of it, and both are done at the next start.
    fn mend(&self) {
        let manifest = self.directory.join("appendonlydir/appendonly.aof.manifest");
        if manifest.exists() {
            let mut check = Command::new("redis-check-aof")
                .arg("--fix")
                .arg(manifest)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("redis-check-aof runs");
            // Not taken if there is nothing to mend.
            let _ = check.stdin.take().expect("piped").write_all(b"y\n");
            let _ = check.wait();
        }
    }

    fn run(&mut self) -> bool {
        let mut child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--dir", &self.directory.display().to_string(), "--logfile", "log"])
            .args(["--cluster-config-file", "nodes.conf"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server runs");
        for _ in 0..1000 {
            if child.try_wait().expect("its state").is_some() {
                return false;
            }
            // Its own process, not somebody else's who took the port.
            let info = ask(self.port, &["INFO", "server"]).unwrap_or_default();
            if info.lines().any(|line| line == format!("process_id:{}", child.id())) {
                self.child = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Three servers that share the slots, with or without a replica for each.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters first, then their replicas in the same order.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    const MASTERS: usize = 3;

    /// Starts three masters.
    pub fn start(test: &str) -> Option<Self> {
        is_installed(test).then(|| Self::of(0))
    }

    /// Starts three masters with a replica each, which take over about two seconds after a master was killed or frozen.
    pub fn start_with_replicas(test: &str) -> Option<Self> {
        is_installed(test).then(|| Self::of(Self::MASTERS))
    }

    fn of(replicas: usize) -> Self {
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--appendonly",
            "no",
            "--cluster-replica-validity-factor",
            "0",
            "--repl-diskless-sync-delay",
            "0",
        ];
        let nodes: Vec<_> =
            (0..Self::MASTERS + replicas).map(|_| RedisServer::with_options(&options)).collect();
        let first = nodes[0].port.to_string();
        for (number, node) in nodes.iter().enumerate() {
            if number > 0 {
                node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
                node.ask(&["CLUSTER", "MEET", "127.0.0.1", &first]);
            }
            if number < Self::MASTERS {
                let start = 16384 * number / Self::MASTERS;
                let end = 16384 * (number + 1) / Self::MASTERS - 1;
                node.ask(&["CLUSTER", "ADDSLOTSRANGE", &start.to_string(), &end.to_string()]);
            }
        }
        let cluster = Self { nodes };
        let known = |node: &RedisServer| {
            node.ask(&["CLUSTER", "NODES"]).lines().filter(|line| line.contains("connected")).count()
        };
        cluster.wait("know each other", |cluster| {
            cluster.nodes.iter().all(|node| known(node) == cluster.nodes.len())
        });
        for replica in Self::MASTERS..cluster.nodes.len() {
            let master = cluster.nodes[replica - Self::MASTERS].ask(&["CLUSTER", "MYID"]);
            cluster.nodes[replica].ask(&["CLUSTER", "REPLICATE", master.trim()]);
        }
        cluster.wait_until_ready();
        cluster
    }

    /// Waits until each running node says that all slots are served, and each replica follows its master.
    pub fn wait_until_ready(&self) {
        self.wait("are ready", |cluster| {
            cluster.nodes.iter().filter(|node| node.child.is_some()).all(|node| {
                ask(node.port, &["CLUSTER", "INFO"]).is_some_and(|info| info.contains("cluster_state:ok"))
                    && ask(node.port, &["INFO", "replication"])
                        .is_some_and(|info| info.contains("role:master") || info.contains("link_status:up"))
            })
        });
    }

    /// Which node serves this slot, as the node `asked` knows it.
    pub fn owner(&self, slot: u16, asked: usize) -> Option<usize> {
        let nodes = ask(self.nodes[asked].port, &["CLUSTER", "NODES"])?;
        let line = nodes.lines().find(|line| {
            line.contains("master")
                && !line.contains("fail")
                && line.split(' ').skip(8).any(|range| {
                    let (start, end) = range.split_once('-').unwrap_or((range, range));
                    start.parse().is_ok_and(|start: u16| start <= slot)
                        && end.parse().is_ok_and(|end: u16| slot <= end)
                })
        })?;
        self.nodes.iter().position(|node| line.contains(&format!(":{}@", node.port)))
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    fn wait(&self, what: &str, is_done: impl Fn(&Self) -> bool) {
        for _ in 0..600 {
            if is_done(self) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the nodes do not {what}: {}", self.nodes[0].ask(&["CLUSTER", "NODES"]));
    }
}

/// What a [`Proxy`] does with what goes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes all on.
    Pass,
    /// Passes requests on; replies vanish, and the connection stays.
    Swallow,
    /// Passes requests on; at the next reply, both sides are closed instead.
    Cut,
    /// As `Cut`, but of this many replies only each last one.
    CutEvery(u64),
    /// Holds each reply back for so long.
    Delay(Duration),
    /// Passes requests on, and says this instead of each reply.
    Lie(&'static str),
    /// Says this instead of each reply, to requests that the server has never heard of.
    Deny(&'static str),
    /// Closes what is open, and new connections at once.
    Refuse,
}

/// Stands between a client and a server, and can lose the replies to requests that the server has executed.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: AtomicU16,
    mode: Mutex<Mode>,
    replies: AtomicU64,
    cuts: AtomicU64,
    is_over: AtomicBool,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
}

impl Proxy {
    /// In front of a server at this port of loopback.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            upstream: AtomicU16::new(upstream),
            mode: Mutex::new(Mode::Pass),
            replies: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.is_over.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(client) = client {
                    accepting.join(client);
                }
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Does so from now on, also with the connections that are open.
    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
        if mode == Mode::Refuse {
            self.shared.close_all();
        }
    }

    /// Leads connections that are made from now on to another server, as a name does that follows a master.
    pub fn lead_to(&self, upstream: u16) {
        self.shared.upstream.store(upstream, Ordering::Release);
    }

    /// How many pieces of replies have come so far, lost ones included.
    pub fn replies(&self) -> u64 {
        self.shared.replies.load(Ordering::Acquire)
    }

    /// How often a connection was closed instead of a reply.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.close_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap()
    }

    fn close_all(&self) {
        for (client, server) in self.open.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    fn join(self: &Arc<Self>, client: TcpStream) {
        if self.mode() == Mode::Refuse {
            return;
        }
        let upstream = self.upstream.load(Ordering::Acquire);
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) else { return };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let pair = || (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
        self.open.lock().unwrap().push(pair());
        let (from_client, to_server) = pair();
        let asked = Arc::clone(self);
        thread::spawn(move || {
            pass(&from_client, &to_server, || match asked.mode() {
                Mode::Deny(_) => Fate::Replaced("*1\r\n$4\r\nPING\r\n"),
                _ => Fate::Passed,
            });
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let mut has_lost = false;
            pass(&server, &client, || shared.fate(&mut has_lost));
        });
    }

    fn fate(&self, has_lost: &mut bool) -> Fate {
        let number = self.replies.fetch_add(1, Ordering::AcqRel) + 1;
        match self.mode() {
            Mode::Swallow => {
                *has_lost = true;
                Fate::Lost
            }
            // What was lost is missing: the rest would be taken for the answer to something else.
            _ if *has_lost => Fate::Closed,
            Mode::Lie(said) | Mode::Deny(said) => Fate::Replaced(said),
            Mode::CutEvery(every) if !number.is_multiple_of(every) => Fate::Passed,
            Mode::Pass => Fate::Passed,
            Mode::Delay(time) => {
                thread::sleep(time);
                Fate::Passed
            }
            Mode::Cut | Mode::CutEvery(_) | Mode::Refuse => {
                self.cuts.fetch_add(1, Ordering::AcqRel);
                Fate::Closed
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Passed,
    Lost,
    Replaced(&'static str),
    Closed,
}

/// Copies from one to the other, and closes both at the end.
fn pass(mut from: &TcpStream, mut to: &TcpStream, mut fate: impl FnMut() -> Fate) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 {
            break;
        }
        match fate() {
            Fate::Passed if to.write_all(&buffer[..read]).is_ok() => {}
            Fate::Lost => {}
            Fate::Replaced(said) if to.write_all(said.as_bytes()).is_ok() => {}
            _ => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// One that nobody listens at now; with a cluster's bus, which is 10,000 higher.
pub fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        if port < 55_000 && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 10_000)).is_ok() {
            return port;
        }
    }
}

/// Sends one command and reads its answer; `None` if there is no server, or it does not answer within seconds.
pub fn ask(port: u16, command: &[&str]) -> Option<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut packed = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        packed.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    (&stream).write_all(&packed).ok()?;
    let mut lines = Vec::new();
    read_reply(&mut BufReader::new(stream), &mut lines)?;
    Some(lines.join("\n"))
}

fn read_reply(reader: &mut BufReader<TcpStream>, lines: &mut Vec<String>) -> Option<()> {
    let mut head = String::new();
    reader.read_line(&mut head).ok()?;
    let (kind, rest) = head.trim_end().split_at_checked(1)?;
    match kind {
        "$" => {
            let Ok(length) = rest.parse::<usize>() else {
                lines.push(String::new());
                return Some(());
            };
            let mut text = vec![0; length + 2];
            reader.read_exact(&mut text).ok()?;
            text.truncate(length);
            lines.push(String::from_utf8_lossy(&text).into_owned());
        }
        "*" => {
            for _ in 0..rest.parse().unwrap_or(0) {
                read_reply(reader, lines)?;
            }
        }
        _ => lines.push(rest.to_owned()),
    }
    Some(())
}
