//! The end of a stack, by as many as ask for it.

use super::*;
use llm_layers::stack::ShutdownReport;
use rusqlite::Connection;
use std::path::Path;

const ENOUGH: Duration = Duration::from_secs(20);

/// While it lives nobody else writes into the file.
fn locked(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

/// A stack of which a call has ended, and is settled and recorded, but for what goes into `file`.
async fn with_work_left(folder: &Path, file: &str) -> (Handle, Connection) {
    let cloud = Scripted::new();
    cloud.push(Reply::text("Hello").after([Step::Gate]));
    let text = format!(
        "identity = \"host\"\nproviders.cloud.kind = \"own\"\ndepartments.a.day_requests = 9\n\
         quota.path = {:?}\nusage.path = {:?}\n",
        folder.join("quota.db"),
        folder.join("usage.db")
    );
    let builder = StackBuilder::new(Config::parse(&text).unwrap()).with_provider("cloud", cloud.clone());
    let (service, handle) = builder.build().await.unwrap();
    let call = tokio::spawn(service.oneshot(of(request("cloud/a"), "ada", &["a"])));
    while cloud.alive() == 0 {
        tokio::task::yield_now().await;
    }
    let lock = locked(&folder.join(file));
    cloud.open();
    call.await.unwrap().unwrap();
    // All that can be done is.
    let is_done = async || match file {
        "quota.db" => handle.usage_queue().unwrap().pending() == 0,
        _ => handle.quota("a").await.unwrap().unwrap().standing.in_day.settled.requests == 1,
    };
    while !is_done().await {
        tokio::task::yield_now().await;
    }
    (handle, lock)
}

fn left(report: &ShutdownReport) -> (u64, u64) {
    let (quota, usage) = (report.quota.as_ref().unwrap(), report.usage.as_ref().unwrap());
    (quota.left, usage.left)
}

#[tokio::test]
async fn what_a_dropped_shutdown_has_left_is_waited_for_by_the_next() {
    for file in ["quota.db", "usage.db"] {
        let folder = folder(&format!("dropped-{file}"));
        let (handle, lock) = with_work_left(&folder, file).await;
        let dropped = tokio::time::timeout(Duration::from_millis(100), handle.shutdown(ENOUGH)).await;
        assert!(dropped.is_err());
        let mut next = Box::pin(handle.shutdown(ENOUGH));
        assert!((&mut next).now_or_never().is_none(), "{file}");
        drop(lock);
        let report = next.await;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!((report.quota.as_ref().unwrap().settled, report.usage.as_ref().unwrap().written), (1, 1));
        // As anybody will hear who asks later.
        assert_eq!(format!("{:?}", handle.shutdown(Duration::ZERO).await), format!("{report:?}"));
        assert!(!folder.join("quota.db-wal").exists(), "the file was closed");
        fs::remove_dir_all(folder).unwrap();
    }
}

#[tokio::test]
async fn what_is_left_is_told_to_each_who_shuts_down() {
    for (file, expected) in [("quota.db", (1, 0)), ("usage.db", (0, 1))] {
        let folder = folder(&format!("told-{file}"));
        let (handle, _lock) = with_work_left(&folder, file).await;
        let other = handle.clone();
        let (patient, hasty) = tokio::join!(handle.shutdown(ENOUGH), other.shutdown(Duration::ZERO));
        for report in [patient, hasty, handle.shutdown(Duration::ZERO).await] {
            assert!(left(&report) == expected && !report.is_clean(), "{file}: {report:?}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_shared_call_that_was_cut_off_is_told_to_each_who_shuts_down() {
    let cloud = Scripted::new().reply(Reply::stall());
    let text = "providers.cloud.kind = \"own\"\ncache.coalesce = true\n";
    let builder = StackBuilder::new(config(text)).with_provider("cloud", cloud.clone());
    let (service, handle) = builder.build().await.unwrap();
    let call = tokio::spawn(service.oneshot(of(request("cloud/a"), "ada", &[])));
    while cloud.alive() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(handle.shutdown(ENOUGH).now_or_never().is_none());
    let other = handle.clone();
    let (patient, hasty) = tokio::join!(handle.shutdown(ENOUGH), other.shutdown(Duration::ZERO));
    for report in [patient, hasty, handle.shutdown(Duration::ZERO).await] {
        assert!(report.cut_flights == 1 && !report.is_clean(), "{report:?}");
    }
    call.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_record_that_was_damaged_in_the_outbox_is_told_and_no_clean_end() {
    let test = "a_record_that_was_damaged_in_the_outbox";
    if !redis_server::is_installed(test) {
        return;
    }
    let (folder, mut server) = (folder(test), RedisServer::with_options(&[]));
    let (outbox, path) = (folder.join("outbox"), folder.join("usage.db"));
    let text = format!(
        "identity = \"host\"\nproviders.echo.kind = \"echo\"\nusage.redis = {:?}\nusage.outbox = {outbox:?}\nusage.path = {path:?}\n",
        server.url()
    );
    server.kill();
    let (service, handle) = stack(Config::parse(&text).unwrap()).await.unwrap();
    for _ in 0..3 {
        service.clone().oneshot(of(request("echo/a"), "ada", &["a"])).await.unwrap();
    }
    let report = handle.shutdown(Duration::from_millis(500)).await;
    let usage = report.usage.as_ref().unwrap();
    assert_eq!((usage.kept, usage.damaged, report.is_clean()), (3, 0, true), "{report:?}");

    let log = outbox.join("00000000000000000001.log");
    let mut bytes = fs::read(&log).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    fs::write(&log, bytes).unwrap();
    server.restart();
    // The process before this one has the lock until its thread has noticed that it is over.
    let started = async {
        loop {
            if let Ok(stack) = stack(Config::parse(&text).unwrap()).await {
                break stack;
            }
        }
    };
    let (_service, handle) = tokio::time::timeout(ENOUGH, started).await.unwrap();
    assert_eq!(handle.usage_outbox().unwrap().status().damages, 1);
    let report = handle.shutdown(ENOUGH).await;
    let usage = report.usage.as_ref().unwrap();
    assert_eq!((usage.written, usage.kept, usage.damaged, usage.set_aside), (2, 0, 1, 0), "{report:?}");
    assert!(!report.is_clean());
    fs::remove_dir_all(folder).unwrap();
}
