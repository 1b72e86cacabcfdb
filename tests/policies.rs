//! What departments may do, as it is written and as it is exchanged.

use llm_layers::{
    BoxError,
    policies::{DepartmentPolicy, Policies, PolicySource, PolicyTable},
    price::NanoUsd,
    quota::Limits,
};
use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

fn read(json: &str) -> Result<DepartmentPolicy, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn a_policy_is_read_from_text_and_refuses_what_it_does_not_know() {
    let policy = read(
        r#"{"day_requests":1,"month_requests":2,"day_tokens":3,"month_tokens":4,"day_cost":"0.5","month_cost":"12","models":["a/*","b/c"]}"#,
    );
    let limits = Limits::new()
        .with_day_requests(1)
        .with_month_requests(2)
        .with_day_tokens(3)
        .with_month_tokens(4)
        .with_day_cost(NanoUsd::new(500_000_000))
        .with_month_cost(NanoUsd::new(12_000_000_000));
    assert_eq!(policy, Ok(DepartmentPolicy::new(limits).with_models(["a/*", "b/c"])));
    assert_eq!(read("{}"), Ok(DepartmentPolicy::default()));
    assert!(read("{}").unwrap().allows("anything"));
    let none = read(r#"{"models":[]}"#).unwrap();
    assert!(!none.allows("anything"), "an empty list is not an absent one");
    for (wrong, says) in [
        (r#"{"dayly_tokens":1}"#, "dayly_tokens"),
        (r#"{"day_tokens":-1}"#, "invalid value"),
        (r#"{"day_tokens":1.5}"#, "invalid type"),
        (r#"{"day_cost":0.1}"#, "invalid type"),
        (r#"{"day_cost":"-1"}"#, "day_cost"),
        (r#"{"models":["a/*"," "]}"#, "models"),
    ] {
        let error = read(wrong).unwrap_err();
        assert!(error.contains(says), "{wrong}: {error}");
    }
}

#[test]
fn seed_14_a_table_tells_what_has_to_be_enforced() {
    let table = PolicyTable::default();
    assert!(!table.has_limits() && !table.has_allow_lists());
    let limited = table.clone().with("a", DepartmentPolicy::new(Limits::new().with_day_requests(1)));
    assert!(limited.has_limits() && !limited.has_allow_lists());
    let listed = PolicyTable::new(DepartmentPolicy::default().with_models(["a/*"]));
    assert!(!listed.has_limits() && listed.has_allow_lists());
}

/// Gives what it is told to, and tells when it was asked.
struct Source {
    next: Arc<Mutex<Result<Option<PolicyTable>, &'static str>>>,
    asked: mpsc::Sender<()>,
}

impl PolicySource for Source {
    fn read(&mut self) -> Result<Option<PolicyTable>, BoxError> {
        let next = self.next.lock().unwrap().clone();
        let _ = self.asked.send(());
        Ok(next?)
    }
}

#[test]
fn a_source_is_followed_and_an_error_keeps_the_last_good_table() {
    let of = |requests| PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_requests(requests)));
    let next = Arc::new(Mutex::new(Ok(Some(of(1)))));
    let (asked, was_asked) = mpsc::channel();
    let (failed, failures) = mpsc::channel();
    let policies = Policies::default();
    let source = Source { next: Arc::clone(&next), asked };
    let on_error = move |error: BoxError| failed.send(error.to_string()).unwrap();
    let follower = policies.follow(source, Duration::from_millis(1), on_error).unwrap();
    assert_eq!(*policies.load(), of(1), "the first table is there at once");

    *next.lock().unwrap() = Err("gone");
    assert_eq!(failures.recv().unwrap(), "gone");
    assert_eq!(*policies.load(), of(1));

    *next.lock().unwrap() = Ok(Some(of(2)));
    while *policies.load() != of(2) {
        was_asked.recv().unwrap();
    }
    *next.lock().unwrap() = Ok(None);
    while was_asked.try_recv().is_ok() {}
    was_asked.recv().unwrap();
    was_asked.recv().unwrap();
    assert_eq!(*policies.load(), of(2));

    drop(follower);
    while was_asked.recv().is_ok() {}
}

/// Gives one table after the other, and panics in the place of the second.
struct Stumbles(u64);

impl PolicySource for Stumbles {
    fn read(&mut self) -> Result<Option<PolicyTable>, BoxError> {
        self.0 += 1;
        assert!(self.0 != 2, "a bug of the source");
        Ok(Some(PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_requests(self.0)))))
    }
}

#[test]
fn a_source_that_panics_is_told_and_followed_on() {
    let policies = Policies::default();
    let (failed, failures) = mpsc::channel();
    let on_error = move |error: BoxError| failed.send(error.to_string()).unwrap();
    let _follower = policies.follow(Stumbles(0), Duration::from_millis(1), on_error).unwrap();
    assert_eq!(failures.recv().as_deref(), Ok("the source of the policies panicked"));
    while policies.load().otherwise().limits.day_requests < Some(3) {
        std::thread::yield_now();
    }

    let followed = Policies::default().follow(Stumbles(1), Duration::from_secs(1), |_| {});
    assert_eq!(followed.unwrap_err().to_string(), "the source of the policies panicked");
}

#[test]
fn a_source_is_followed_on_though_whoever_is_told_of_an_error_panics() {
    let next = Arc::new(Mutex::new(Ok(None)));
    let (asked, _was_asked) = mpsc::channel();
    let source = Source { next: Arc::clone(&next), asked };
    let (told, was_told) = mpsc::channel();
    let on_error = move |_| {
        told.send(()).unwrap();
        panic!("a bug of the hook");
    };
    let _follower = Policies::default().follow(source, Duration::from_millis(1), on_error).unwrap();
    *next.lock().unwrap() = Err("gone");
    was_told.recv().unwrap();
    *next.lock().unwrap() = Err("locked");
    was_told.recv().expect("it is read again");
}

#[test]
fn a_cause_is_told_once_until_the_source_can_be_read_again() {
    let next = Arc::new(Mutex::new(Ok(None)));
    let (asked, was_asked) = mpsc::channel();
    let (failed, failures) = mpsc::channel();
    let source = Source { next: Arc::clone(&next), asked };
    let on_error = move |error: BoxError| failed.send(error.to_string()).unwrap();
    let _follower = Policies::default().follow(source, Duration::from_millis(1), on_error).unwrap();
    let ask = |said| {
        *next.lock().unwrap() = said;
        while was_asked.try_recv().is_ok() {}
        // The last but one has been dealt with by then.
        (0..4).for_each(|_| was_asked.recv().unwrap());
    };
    for said in [Err("gone"), Err("locked"), Ok(None), Err("locked")] {
        ask(said);
    }
    let told: Vec<_> = failures.try_iter().collect();
    assert_eq!(told, ["gone", "locked", "locked"]);
}

#[test]
fn a_source_that_is_wrong_from_the_start_is_an_error() {
    let (asked, _was_asked) = mpsc::channel();
    let source = Source { next: Arc::new(Mutex::new(Err("gone"))), asked };
    let followed = Policies::default().follow(source, Duration::from_secs(1), |_| {});
    assert_eq!(followed.unwrap_err().to_string(), "gone");
}
