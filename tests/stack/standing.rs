//! What departments are told that they have used up.

use super::*;
use rusqlite::Connection;

#[tokio::test]
async fn whoever_asks_for_a_standing_while_usage_cannot_be_written_is_answered_in_time() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let folder = folder("standing");
    let path = folder.join("usage.db");
    let text = format!(
        "identity = \"host\"\nproviders.echo.kind = \"echo\"\ndepartments.a.day_requests = 9\n\
         quota.store = \"memory\"\nquota.timeout = \"2s\"\nusage.path = {path:?}\n"
    );
    let (service, handle) = StackBuilder::new(Config::parse(&text).unwrap()).build().await.unwrap();
    let call = async || service.clone().oneshot(of(request("echo/m"), "ada", &["a"])).await.unwrap();
    call().await;
    let lock = Connection::open(&path).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    call().await;
    tokio::time::pause();
    let since = Instant::now();
    let asked = tokio::time::timeout(TIMEOUT * 10, handle.quota("new")).await.expect("it is answered");
    assert!(asked.is_err(), "what is not written yet may be theirs: {asked:?}");
    assert!(since.elapsed() <= TIMEOUT + Duration::from_millis(10), "{:?}", since.elapsed());
    // Whom the counters know is told.
    assert_eq!(handle.quota("a").await.unwrap().unwrap().standing.in_day.settled.requests, 2);

    tokio::time::resume();
    drop(lock);
    let view = handle.quota("new").await.unwrap().unwrap();
    assert!(!view.standing.is_known && view.standing.in_day.settled.requests == 0);
    assert!(handle.shutdown(Duration::from_secs(20)).await.is_clean());
    fs::remove_dir_all(folder).unwrap();
}
