//! What the file and the command line say is what the real server does, and what it cannot do it says.

mod common;

use common::{Client, Server, asking, soon, xai};
use std::{path::Path, process::Command, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use xai::content::Content;

const ECHO: &str = "usage.enabled = false\nproviders.echo.kind = \"echo\"\n";

/// A question of so many messages of so many bytes.
fn question(messages: usize, bytes: usize) -> tonic::Request<xai::GetCompletionsRequest> {
    let mut request = asking("echo/echo");
    let message = &mut request.get_mut().messages[0];
    message.content[0].content = Some(Content::Text("a".repeat(bytes)));
    let message = message.clone();
    request.get_mut().messages = vec![message; messages];
    request
}

/// Asked whole and as a stream.
async fn ask(client: &mut Client, messages: usize, bytes: usize) -> Result<(), Status> {
    let whole = client.get_completion(question(messages, bytes)).await.map(drop);
    let streamed = client.get_completion_chunk(question(messages, bytes)).await.map(drop);
    assert_eq!(whole.as_ref().err().map(Status::code), streamed.as_ref().err().map(Status::code));
    whole
}

fn refused(result: Result<(), Status>, code: Code) -> Status {
    let status = result.expect_err("refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(status.get_details_error_info().expect("a reason").reason, "INVALID_REQUEST");
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").expect("no further try"), "-1");
    assert!(status.metadata().contains_key("x-request-id"), "{status:?}");
    status
}

#[tokio::test]
async fn limits_of_requests_hold_and_are_those_of_the_file_as_it_is_now() {
    let server = Server::start(&format!("{ECHO}[server]\nmax_messages = 3\nmax_body_bytes = 3000\n"));
    let mut client = server.client().await;
    ask(&mut client, 3, 500).await.unwrap();
    refused(ask(&mut client, 4, 500).await, Code::InvalidArgument);
    let too_large = refused(ask(&mut client, 1, 5000).await, Code::ResourceExhausted);
    assert!(too_large.message().contains("3000 bytes"), "{too_large:?}");

    server.rewrite(&format!("{ECHO}[server]\nmax_messages = 4\nmax_body_bytes = 6000\n"));
    server.signal("-HUP");
    server.tells("was read again", 1).await;
    ask(&mut client, 4, 500).await.unwrap();
    ask(&mut client, 1, 5000).await.unwrap();
    refused(ask(&mut client, 5, 500).await, Code::InvalidArgument);
    refused(ask(&mut client, 1, 7000).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn tools_and_depth_are_limited_too() {
    let server = Server::start(&format!("{ECHO}[server]\nmax_tools = 1\nmax_depth = 9\n"));
    let mut client = server.client().await;
    let request = |tools: usize, depth: usize| {
        let parameters = format!("{}{}", "{\"a\":".repeat(depth), "1") + &"}".repeat(depth);
        let function = xai::Function { name: "f".to_owned(), parameters, ..Default::default() };
        let tool = xai::Tool { tool: Some(xai::tool::Tool::Function(function)) };
        let mut request = asking("echo/echo");
        request.get_mut().tools = vec![tool; tools];
        let mut client = client.clone();
        async move { client.get_completion(request).await.map(drop) }
    };
    request(1, 2).await.unwrap();
    refused(request(2, 2).await, Code::InvalidArgument);
    refused(request(1, 9).await, Code::InvalidArgument);
    ask(&mut client, 1, 10).await.unwrap();
}

#[tokio::test]
async fn headers_may_be_as_large_as_the_file_says() {
    for (limit, fits) in [(8192, false), (65536, true)] {
        let server = Server::start(&format!("{ECHO}server.max_header_bytes = {limit}\n"));
        let mut request = asking("echo/echo");
        request.metadata_mut().insert("x-large", "a".repeat(20_000).parse().unwrap());
        assert_eq!(server.client().await.get_completion(request).await.is_ok(), fits, "{limit}");
    }
}

#[tokio::test]
async fn it_listens_where_the_file_says_unless_the_command_line_does() {
    let free = async || TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let (said, other) = (free().await, free().await);
    let config = format!("listen = \"{said}\"\n{ECHO}");
    let server = Server::start_with(&config, &[]);
    assert_eq!(server.address, said);
    ask(&mut server.client().await, 1, 1).await.unwrap();
    drop(server);

    let server = Server::start_with(&config, &["--listen", &other]);
    assert_eq!(server.address, other);
    // And it goes on to be so: another address in the file is no reason to refuse what else is new there.
    server.rewrite(&format!("listen = \"127.0.0.1:1\"\n{ECHO}server.max_messages = 1\n"));
    server.signal("-HUP");
    server.tells("was read again", 1).await;
    refused(ask(&mut server.client().await, 2, 1).await, Code::InvalidArgument);
}

#[tokio::test]
async fn a_signal_reads_the_file_again_and_a_bad_one_is_told_each_time_and_ends_nothing() {
    let server = Server::start(&format!("{ECHO}aliases.one = \"echo/x\"\n"));
    let mut client = server.client().await;
    server.rewrite(&format!("{ECHO}aliases.two = \"gone/x\"\n"));
    server.tells("aliases.two", 1).await;
    // It is as it was, so that only a signal is a reason to look.
    server.signal("-HUP");
    server.tells("aliases.two", 2).await;
    client.get_completion(asking("one")).await.unwrap();

    let mut without_file = Server::start("");
    without_file.signal("-HUP");
    without_file.client().await.get_completion(asking("fast")).await.unwrap();
    without_file.terminate().await;
    assert_eq!(soon(without_file.ended()).await, Some(0));
}

#[tokio::test]
async fn entries_that_are_for_another_server_are_named_at_the_start_and_no_others() {
    let server = Server::start(&format!(
        "{ECHO}server.max_messages = 5\nserver.keep_alive = \"5s\"\nserver.max_headers = 50\ntelemetry.metrics = true\n"
    ));
    ask(&mut server.client().await, 1, 1).await.unwrap();
    let told = server.tells("warning", 3).await;
    let named: Vec<_> = told.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(named, ["server.max_headers", "server.keep_alive", "telemetry.metrics"], "{told}");
}

#[tokio::test]
async fn what_cannot_work_is_told_line_by_line_and_by_the_exit_code() {
    let name = format!("wrong-{:016x}.toml", fastrand::u64(..));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, "listn = 1\n[providers.echo]\nkind = \"echo\"\napi_key = { env = \"UNSET\" }\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let (unknown, unset) = (
        format!("grpc: {file}:1: listn: is unknown; did you mean \"listen\"?\n"),
        format!("grpc: {file}:4: providers.echo.api_key: "),
    );
    let busy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    let usage = "usage: grpc [--config FILE] [--listen ADDR]\n";
    for (arguments, code, told) in [
        (&["--help"][..], 0, &[usage][..]),
        (&["--version"], 0, &["grpc 0.1.0\n"]),
        (&["--config"], 2, &["grpc: --config needs a value\n", usage]),
        (&["serve"], 2, &["grpc: unknown argument serve\n", usage]),
        (&["--listen", "here"], 2, &["grpc: --listen needs an address such as 127.0.0.1:50051\n"]),
        (&["--config", "no/such.toml"], 2, &["grpc: no/such.toml: No such file"]),
        (&["--config", file], 2, &[&unknown, &unset]),
        (&["--listen", &taken], 1, &[&format!("grpc: {taken}: Address already in use")]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_grpc")).args(arguments).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(told.iter().all(|line| said.contains(line)), "{arguments:?}: {said}");
    }
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_configuration_out_of_a_pipe_is_read_once_and_served() {
    let pipe = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pipe-{:016x}", fastrand::u64(..)));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let config = format!("{ECHO}server.max_messages = 1\n");
    let writing = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, config)
    });
    let arguments = ["--listen", "127.0.0.1:0", "--config", pipe.to_str().unwrap()].map(str::to_owned);
    let (send, started) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        send.send(Server::start_with("", &arguments.each_ref().map(String::as_str))).ok()
    });
    let server = soon(started).await.unwrap();
    writing.join().unwrap().unwrap();
    ask(&mut server.client().await, 1, 1).await.unwrap();
    refused(ask(&mut server.client().await, 2, 1).await, Code::InvalidArgument);
    std::fs::remove_file(pipe).unwrap();
}

#[tokio::test]
async fn who_does_not_take_what_it_tells_ends_nothing() {
    let with_messages = |count: usize| format!("{ECHO}[server]\nmax_messages = {count}\n");
    let mut server = Server::start_after("exec 2>/dev/full", &with_messages(1));
    let mut client = server.client().await;
    for count in 2..5 {
        refused(ask(&mut client, count, 1).await, Code::InvalidArgument);
        server.rewrite(&with_messages(count));
        server.signal("-HUP");
        soon(async { while client.get_completion(question(count, 1)).await.is_err() {} }).await;
    }
    server.terminate().await;
    assert_eq!(server.ended().await, Some(0));
}

#[tokio::test]
async fn out_of_descriptors_it_serves_who_is_there_and_tries_once_a_second() {
    let server = Server::start_after("ulimit -n 48", ECHO);
    let mut early = server.client().await;
    ask(&mut early, 1, 1).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..48 {
        // The system takes connections also where nobody accepts them.
        held.push(TcpStream::connect(&server.address).await.unwrap());
    }
    server.tells("cannot accept connections", 1).await;
    let since = Instant::now();
    server.tells("cannot accept connections", 3).await;
    assert!(since.elapsed() > Duration::from_millis(1500), "{:?}", since.elapsed());
    ask(&mut early, 1, 1).await.unwrap();
    drop(held);
    ask(&mut soon(server.client()).await, 1, 1).await.unwrap();
}

#[tokio::test]
async fn who_asks_does_not_wait_for_a_file_that_takes_long_to_read() {
    let server = Server::start_after("export TOKIO_WORKER_THREADS=1", ECHO);
    let path = server.pipe();
    server.signal("-HUP");
    // It can be opened once somebody reads it, and he goes on reading until it is closed.
    let opening = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(path));
    let mut pipe = soon(opening).await.unwrap().unwrap();
    soon(async { ask(&mut server.client().await, 1, 1).await }).await.unwrap();
    std::io::Write::write_all(&mut pipe, ECHO.as_bytes()).unwrap();
    drop(pipe);
    server.tells("was read again", 1).await;
}

#[tokio::test]
async fn a_file_that_is_never_read_to_its_end_does_not_keep_it_from_ending() {
    let mut server = Server::start(ECHO);
    let path = server.pipe();
    server.signal("-HUP");
    let opening = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(path));
    let pipe = soon(opening).await.unwrap().unwrap();
    server.terminate().await;
    assert_eq!(server.ended().await, Some(0));
    drop(pipe);
}

/// A list of prices that does not come is waited for.
#[tokio::test]
async fn a_signal_that_comes_before_it_is_ready_ends_it() {
    let folder =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("early-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (config, pipe) = (folder.join("grpc.toml"), folder.join("pipe.toml"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::write(&config, format!("{ECHO}\n[prices]\nown = {:?}\n", pipe.display().to_string())).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_grpc"));
    command.arg("--config").arg(&config).args(["--listen", "127.0.0.1:0"]).env("TOKIO_WORKER_THREADS", "1");
    let child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    // Bit by bit, the signals that it waits for: 15 is among them.
    let status = format!("/proc/{}/status", child.id().unwrap());
    soon(async {
        loop {
            let status = std::fs::read_to_string(&status).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
            if u64::from_str_radix(caught, 16).unwrap() >> 14 & 1 == 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let id = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    // The list is read when the file is checked, and once more when the stack is built: only the first time it comes.
    let opening = tokio::task::spawn_blocking(move || {
        std::fs::write(pipe, "[models.\"a/m\"]\ninput = \"1\"\noutput = \"2\"\n")
    });
    soon(opening).await.unwrap().unwrap();
    let output = soon(child.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b""[..]), "{output:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for_at_the_end() {
    let mut server = Server::start(ECHO);
    let silent = TcpStream::connect(&server.address).await.unwrap();
    // He is accepted before whoever comes after him is answered.
    ask(&mut server.client().await, 1, 1).await.unwrap();
    server.terminate().await;
    assert_eq!(server.ended().await, Some(0));
    let told = server.tells("", 0).await;
    assert!(!told.contains("stopped before"), "{told}");
    drop(silent);
}

#[test]
fn what_is_no_number_of_threads_is_told_by_a_line_and_the_exit_code() {
    for threads in ["0", "two", ""] {
        let mut server = Command::new(env!("CARGO_BIN_EXE_grpc"));
        let output =
            server.args(["--listen", "127.0.0.1:0"]).env("TOKIO_WORKER_THREADS", threads).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = (Some(1), "grpc: TOKIO_WORKER_THREADS: no number of threads\n");
        assert_eq!((output.status.code(), &*said), expected, "{threads:?}");
    }
}
