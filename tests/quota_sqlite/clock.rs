//! The machine's clock is wrong for a while.

use super::*;
use llm_layers::ErrorKind;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// As whoever knows that it was ahead by mistake.
fn reset(path: &Path) {
    Connection::open(path).unwrap().execute("UPDATE clock SET now = 0", ()).unwrap();
}

async fn settle(store: &SqliteStore, department: &str, now: SystemTime) {
    let id = reserve(store, department, 100, now).await;
    let settlement = Settlement::new(id, one(department, Limits::new()), tokens(70));
    assert_eq!(store.settle(&settlement).await.unwrap(), Applied::First);
}

async fn is_refused_after(jump: Duration) {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let store = SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_month_requests(3)));
    let (layer, worker) =
        QuotaLayer::pair(store.clone(), policies, PriceBook::default(), WorkerOptions::default());
    let layer = layer.with_clock(clock.clone()).with_deadline(Duration::from_secs(20));
    let service = layer.layer(service_fn(|request: LlmRequest| async move {
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(40, 30))))
    }));
    let call = async || {
        let body = ChatBody::builder().user("Hello").set("max_tokens", 50).build().unwrap();
        let request = LlmRequest::new("acme/one", body);
        let context = RequestContext::new().with_departments(["research"]);
        service.clone().oneshot(request.with_context(context)).await
    };
    call().await.unwrap();
    clock.advance(jump);
    call().await.unwrap();
    clock.set(noon());
    for _ in 0..5 {
        let error = call().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "{jump:?}: {error}");
        let cause = error.source().and_then(|cause| cause.downcast_ref()).map(kind);
        assert_eq!(cause, Some(QuotaFileErrorKind::Ahead), "{jump:?}");
    }
    assert!(!layer.is_available(), "nobody is told");
    // What a department has used up can be read all the same, and not by the wrong clock.
    let error = store.usage(&"research".into(), &days(noon())).await.unwrap_err();
    assert_eq!(kind(&error), QuotaFileErrorKind::Ahead);
    let day = Days::only(Calendar::utc().day(noon()));
    assert_eq!(store.usage(&"research".into(), &day).await.unwrap().in_day.settled.requests, 1);

    reset(&directory.db());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    call().await.unwrap();
    assert!(layer.is_available());
    drop((service, layer));
    assert_eq!(worker.shutdown(Duration::from_secs(20)).await.left, 0);
    let settled = store.usage(&"research".into(), &days(noon())).await.unwrap().in_day.settled;
    assert_eq!(settled.requests, 2, "the one that was made in the future is not of this day");
}

#[tokio::test]
async fn after_a_clock_that_was_far_ahead_calls_are_refused_until_somebody_resets_it() {
    for days in [3, 30, 400] {
        is_refused_after(days * DAY).await;
    }
}

#[tokio::test]
async fn a_clock_that_is_put_right_within_a_day_refuses_nobody() {
    for jump in [Duration::from_secs(2), HOUR, DAY] {
        // A second before midnight.
        let before = noon() + 12 * HOUR - Duration::from_secs(1);
        let directory = Directory::new();
        let clock = ManualClock::new(before);
        let store = SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
        clock.advance(jump);
        settle(&store, "a", clock.now()).await;
        clock.set(before);
        settle(&store, "a", before).await;
        let standing = standing(&store, "a", before).await;
        assert_eq!((standing.day.date, standing.in_day.settled.requests), (20_261_124, 2), "{jump:?}");
    }
}

#[tokio::test]
async fn a_clock_that_was_far_ahead_has_forgotten_nothing_that_is_in_force() {
    for (days_ahead, is_restarted) in [(80, false), (80, true), (400, false)] {
        let directory = Directory::new();
        let clock = ManualClock::new(noon());
        let open = || SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
        let mut store = open();
        for department in ["in use", "idle"] {
            settle(&store, department, noon()).await;
        }
        clock.advance(days_ahead * DAY);
        if is_restarted {
            assert!(store.shutdown(HOUR).await);
            store = open();
        }
        for _ in 0..70 {
            settle(&store, "in use", clock.now()).await;
        }
        clock.set(noon());
        reset(&directory.db());
        for _ in 0..70 {
            settle(&store, "another", noon()).await;
        }
        for department in ["in use", "idle"] {
            let standing = standing(&store, department, noon()).await;
            let settled = (standing.is_known, standing.in_day.settled, standing.in_month.settled);
            assert_eq!(settled, (true, tokens(70), tokens(70)), "{department}, {days_ahead} days");
        }
    }
}

#[tokio::test]
async fn counters_of_a_file_of_version_1_are_still_there() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let open = || SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    let store = open();
    settle(&store, "a", noon()).await;
    assert!(store.shutdown(HOUR).await);
    let file = Connection::open(directory.db()).unwrap();
    file.execute_batch("ALTER TABLE clock DROP COLUMN month_before; PRAGMA user_version = 1").unwrap();
    drop(file);

    clock.advance(80 * DAY);
    let store = open();
    for _ in 0..70 {
        settle(&store, "a", clock.now()).await;
    }
    let day = Days::only(Calendar::utc().day(noon()));
    let settled = store.usage(&"a".into(), &day).await.unwrap().in_month.settled;
    assert_eq!(settled, tokens(70));
}
