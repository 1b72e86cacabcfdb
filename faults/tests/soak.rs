//! A gateway at saturation, with faults mixed in: nothing is lost, leaked or held back.
//!
//! `SOAK_SECONDS` says for how long; ten unless told. `scripts/soak MINUTES` runs it against a release build.

use faults::{
    Act, Client, Gateway, Reply, Upstream, chat, events,
    redis::{RedisServer, is_installed},
    until,
};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// As many calls as may be in flight, and as many as may wait; there are twice as many callers.
const IN_FLIGHT: usize = 16;
const WAITING: usize = 8;
const MAX_WAIT: Duration = Duration::from_millis(250);
const CALLERS: usize = 48;

/// How long Redis is waited for before a call is made; beyond, it is refused.
const COUNTED_WITHIN: Duration = Duration::from_millis(250);

/// How much longer an accepted call may take than the same call where there are just as many as may be in flight, besides what
/// it may have to wait: for a place, and where Redis is frozen for its counters. It is answered by the same machine as those
/// that are refused, and as who asks, the provider and Redis: all of them have three times as much to do. Whoever let waiting
/// calls pile up would be beyond it by seconds.
const SLACK: u32 = 3;

/// How much more may be there at the end of the load than after its first third: by a line through all that was seen in
/// between. In half an hour, 8 MiB are eight bytes for each call, and a task or a file that stays in one of a thousand
/// calls would be hundreds.
const GROWTH: [(&str, f64); 4] =
    [("KiB of memory", 8192.0), ("threads", 1.0), ("files", 24.0), ("tasks", 48.0)];

fn config(upstream: &Upstream, redis: &RedisServer) -> String {
    format!(
        r#"
        [server]
        max_in_flight = {IN_FLIGHT}
        max_waiting = {WAITING}
        max_wait = "250ms"
        [timeouts]
        head = "500ms"
        first_content = "1s"
        idle = "500ms"
        total = "3s"
        [departments."*"]
        day_requests = 1000000000
        day_tokens = 1000000000000
        [quota]
        store = "redis"
        redis = "{}"
        max_output_tokens = 100
        timeout = "250ms"
        [providers.up]
        base_url = "{url}"
        [providers.spare]
        base_url = "{url}"
        [fallbacks]
        "up/refused" = ["spare/whole"]
        "up/silent" = ["spare/whole"]
        "up/blank" = ["spare/whole"]
        [[keys]]
        key = "ada"
        user = "ada"
        departments = ["ops"]
        [[keys]]
        key = "bob"
        user = "bob"
        departments = ["ops", "sales"]
        "#,
        redis.url(),
        url = upstream.url
    )
}

fn scripts() -> Vec<(String, Vec<Act>)> {
    let pause = |ms| Act::Wait(Duration::from_millis(ms));
    let words =
        [vec![Act::Head, Act::say("All")], vec![pause(20), Act::say(" is")], vec![pause(20)]].concat();
    let end = vec![Act::say(" well."), Act::stop(), Act::usage(), Act::done(), Act::End];
    let flood = Act::Drip(
        serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": "x".repeat(16 << 10) } }] })
            .to_string(),
        Duration::from_millis(2),
        100_000,
    );
    [
        ("whole", vec![pause(30), Upstream::whole("All is well.")]),
        ("stream", [words.clone(), end].concat()),
        ("cut", [words.clone(), vec![Act::Cut]].concat()),
        ("refused", vec![Act::Whole(500, "{}".to_owned())]),
        ("silent", vec![Act::Stall]),
        ("blank", vec![Upstream::whole(" ")]),
        ("endless", [words, vec![Act::Stall]].concat()),
        ("flood", vec![Act::Head, flood]),
    ]
    .map(|(name, script)| (name.to_owned(), script))
    .to_vec()
}

/// What came of the calls.
#[derive(Default)]
struct Told {
    /// By what callers were told.
    counts: Mutex<HashMap<String, usize>>,
    /// How long whole answers of one model took.
    times: Mutex<Vec<Duration>>,
    /// How long it took to be refused for there were too many.
    refusals: Mutex<Vec<Duration>>,
    untold: AtomicUsize,
}

impl Told {
    fn note(&self, model: &str, reply: &Reply, took: Duration) {
        let shown = reply.shown();
        let is_overload = shown == "503 overloaded";
        if is_overload {
            self.refusals.lock().unwrap().push(took);
        }
        if reply.status == 503 && reply.header("retry-after").is_none() {
            self.untold.fetch_add(1, Ordering::Relaxed);
        }
        if model == "whole" && shown == "a whole answer" {
            self.times.lock().unwrap().push(took);
        }
        *self.counts.lock().unwrap().entry(shown).or_default() += 1;
    }

    fn count(&self, shown: &str) -> usize {
        self.counts.lock().unwrap().get(shown).copied().unwrap_or(0)
    }
}

/// Asks again and again, on one connection as long as it holds.
async fn call(address: Arc<str>, told: Arc<Told>, is_over: Arc<AtomicBool>, with_faults: bool) {
    let mut kept: Option<Client> = None;
    while !is_over.load(Ordering::Acquire) {
        let (model, leaves) = match fastrand::u32(..if with_faults { 100 } else { 80 }) {
            0..60 => ("whole", None),
            60..80 => ("stream", None),
            80..85 => ("cut", None),
            85..89 => ("refused", None),
            89..91 => ("silent", None),
            91..94 => ("blank", None),
            94..98 => ("endless", Some(fastrand::usize(..3))),
            _ => ("whole", Some(0)),
        };
        let is_stream = matches!(model, "stream" | "cut" | "endless");
        let key = if fastrand::bool() { "ada" } else { "bob" };
        let client = match kept.take() {
            Some(client) => Ok(client),
            None => Client::connect(&address).await,
        };
        let Ok(mut client) = client else { continue };
        let since = Instant::now();
        if client.write(&Client::chat_request(key, &chat(&format!("up/{model}"), is_stream))).await.is_err() {
            continue;
        }
        if let Some(pieces) = leaves {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..40))).await;
            if pieces > 0 && client.head().await.is_ok_and(|head| head.status == 200) {
                for _ in 0..pieces {
                    let _ = client.piece().await;
                }
            }
            if fastrand::bool() {
                client.reset();
            }
            continue;
        }
        let Ok(reply) = client.reply().await else { continue };
        told.note(model, &reply, since.elapsed());
        if reply.status == 503 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        kept = Some(client);
    }
}

/// Asks for a great deal, and reads little of it.
async fn dawdle(address: Arc<str>, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Acquire) {
        let Ok(mut client) = Client::connect_narrow(&address).await else { continue };
        let _ = client.write(&Client::chat_request("ada", &chat("up/flood", true))).await;
        if !client.head().await.is_ok_and(|head| head.status == 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        for _ in 0..fastrand::usize(..20) {
            if is_over.load(Ordering::Acquire) || client.piece().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn load(gateway: &Gateway, callers: usize, with_faults: bool, time: Duration) -> Arc<Told> {
    let (told, is_over) = (Arc::new(Told::default()), Arc::new(AtomicBool::new(false)));
    let address: Arc<str> = gateway.address.as_str().into();
    let mut running = JoinSet::new();
    for _ in 0..callers {
        running.spawn(call(Arc::clone(&address), Arc::clone(&told), Arc::clone(&is_over), with_faults));
    }
    if with_faults {
        for _ in 0..2 {
            running.spawn(dawdle(Arc::clone(&address), Arc::clone(&is_over)));
        }
    }
    tokio::time::sleep(time).await;
    is_over.store(true, Ordering::Release);
    running.join_all().await;
    told
}

/// The time that so many in a hundred do not exceed.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// By how much samples rise from the first to the last, whatever single ones of them say: the middle of all slopes between
/// two of them.
fn growth(samples: &[f64]) -> f64 {
    let mut slopes: Vec<_> = (0..samples.len())
        .flat_map(|from| (from + 1..samples.len()).map(move |to| (from, to)))
        .map(|(from, to)| (samples[to] - samples[from]) / (to - from) as f64)
        .collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).map_or(0.0, |slope| slope * samples.len() as f64)
}

/// What a gateway holds: memory, threads, files, tasks.
async fn held(gateway: &Gateway) -> [f64; 4] {
    let tasks = gateway.metric("gateway_tasks").await.expect("it counts its tasks");
    [gateway.memory() as f64, gateway.threads() as f64, gateway.open_files() as f64, tasks]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_saturation_and_with_faults_nothing_is_lost_leaked_or_held_back() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_u64);
    if !is_installed("at_saturation") {
        return;
    }
    // Whoever kills a process loses nothing of what it has given to the system.
    let mut redis = RedisServer::with_options(&["--appendonly", "yes", "--appendfsync", "no"]);
    let upstream = Upstream::start(scripts()).await.lean();
    let gateway = Gateway::start(&config(&upstream, &redis)).await;
    let idle = held(&gateway).await;

    // As many as may be in flight, and none more: before, and once more after.
    let at_capacity = || load(&gateway, IN_FLIGHT, false, Duration::from_secs((seconds / 20).clamp(2, 30)));
    let before = at_capacity().await;

    // Redis is frozen for moments, and killed now and then.
    let is_over = Arc::new(AtomicBool::new(false));
    let spoiling = thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            for round in 1_u32.. {
                for _ in 0..30 {
                    if is_over.load(Ordering::Acquire) {
                        return redis;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                if round % 3 == 0 {
                    redis.restart();
                } else {
                    redis.freeze();
                    thread::sleep(Duration::from_millis(fastrand::u64(50..600)));
                    redis.thaw();
                }
            }
            redis
        }
    });
    let sampling = async {
        let mut samples = Vec::new();
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_millis(990)).await;
            samples.push(held(&gateway).await);
        }
        samples
    };
    let (told, samples) = tokio::join!(load(&gateway, CALLERS, true, Duration::from_secs(seconds)), sampling);
    is_over.store(true, Ordering::Release);
    let redis = tokio::task::spawn_blocking(|| spoiling.join().expect("no panic")).await.expect("no panic");

    let counts = told.counts.lock().unwrap().clone();
    let all: usize = counts.values().sum();
    println!("{all} calls in {seconds} s: {counts:?}");

    // Whoever was refused was told so, early, and until when; whoever was not waited no longer than he may.
    let after = at_capacity().await;
    assert_eq!((before.count("503 overloaded"), after.count("503 overloaded")), (0, 0), "there was room");
    let full = [&**before.times.lock().unwrap(), &**after.times.lock().unwrap()].concat();
    let (loaded, refusals) = (told.times.lock().unwrap().clone(), told.refusals.lock().unwrap().clone());
    assert!(!refusals.is_empty(), "there was no overload");
    let of = |times: &[Duration]| [50, 95, 99].map(|percent| percentile(times, percent));
    println!("50, 95, 99 % of whole answers at capacity: {:?}", of(&full));
    println!("50, 95, 99 % of them under overload: {:?}; of refusals: {:?}", of(&loaded), of(&refusals));
    assert_eq!(told.untold.load(Ordering::Relaxed), 0, "refused without Retry-After");
    assert!(told.count("a whole answer") > all / 10 && told.count("a whole stream") > 0, "{counts:?}");
    let known = [
        "a whole answer",
        "a whole stream",
        "content, then an event `upstream_error`",
        "content, then an event `timeout`",
        "503 overloaded",
        "503 usage_store_unavailable",
        "502 upstream_error",
        "504 timeout",
    ];
    let strange: Vec<_> = counts.keys().filter(|shown| !known.contains(&&***shown)).collect();
    assert!(strange.is_empty(), "{strange:?}");

    // Nothing stays reserved, and each call that the provider knows of is recorded once and charged once.
    for department in ["ops", "sales"] {
        let key = if department == "ops" { "ada" } else { "bob" };
        assert!(
            gateway.is_settled(key, department, Duration::from_secs(30)).await,
            "{department} has reservations"
        );
    }
    let mut seen: HashMap<(String, String), usize> = HashMap::new();
    for call in upstream.log() {
        *seen.entry((call.request_id, call.model)).or_default() += 1;
    }
    let calls: usize = seen.values().sum();
    let path = gateway.room.join("usage.db");
    let is_written =
        until(Duration::from_secs(30), async || Some(()).filter(|()| events(&path).len() >= calls)).await;
    let recorded = events(&path);
    assert!(is_written.is_some(), "{} records of {calls} calls", recorded.len());
    let mut unseen = 0;
    let mut attempts = HashSet::new();
    for event in &recorded {
        assert!(attempts.insert((&*event.request_id, event.attempt)), "recorded twice: {event:?}");
        let model = event.model.split_once('/').map_or("", |(_, model)| model).to_owned();
        match seen.get_mut(&(event.request_id.clone(), model)) {
            Some(count) if *count > 0 => *count -= 1,
            // Hung up before the provider had read all of it.
            _ if matches!(&*event.outcome, "aborted" | "error") => unseen += 1,
            _ => panic!("recorded, and never made: {event:?}"),
        }
    }
    let lost: usize = seen.values().sum();
    println!(
        "{calls} calls at the provider, {} records, {unseen} of them of calls that it has not read",
        recorded.len()
    );
    assert_eq!(lost, 0, "calls at the provider that are not recorded");
    for (key, department) in [("ada", "ops"), ("bob", "sales")] {
        let of_it = recorded.iter().filter(|event| event.departments.iter().any(|d| d == department)).count();
        let charged =
            async || gateway.try_standing(key, department).await.filter(|now| now.settled.0 == of_it as u64);
        let standing = until(Duration::from_secs(30), charged).await;
        assert!(
            standing.is_some(),
            "{department}: {:?} and {of_it} records",
            gateway.standing(key, department).await
        );
    }

    // Nothing grows once it has begun, and what the load has taken is given back.
    let settled = &samples[samples.len() / 3..];
    for (at, (what, most)) in GROWTH.into_iter().enumerate() {
        let of_it: Vec<_> = settled.iter().map(|sample| sample[at]).collect();
        let (by, last) = (growth(&of_it), of_it.last().copied().unwrap_or(0.0));
        println!("{what}: {} idle, {last} at the end of the load, risen by {by:.1}", idle[at]);
        assert!(by <= most, "more and more {what}: {by:.1} in {} s", settled.len());
    }
    // Connections to providers may stay for a while, each with a task.
    let most = |at: usize| idle[at] + (IN_FLIGHT * 2) as f64;
    let given_back = async || {
        let now = held(&gateway).await;
        (now[2] <= most(2) && now[3] <= most(3)).then_some(())
    };
    let is_given_back = until(Duration::from_secs(60), given_back).await.is_some();
    assert!(is_given_back, "{:?} is held, {idle:?} before", held(&gateway).await);

    let usual = percentile(&full, 50) * SLACK + MAX_WAIT;
    assert!(percentile(&loaded, 50) < usual, "half of the accepted calls take more than {usual:?}");
    let longest = percentile(&full, 99) * SLACK + MAX_WAIT + COUNTED_WITHIN;
    assert!(percentile(&loaded, 99) < longest, "one of a hundred accepted calls takes more than {longest:?}");
    let early = percentile(&full, 99) * SLACK + MAX_WAIT;
    assert!(percentile(&refusals, 99) < early, "one of a hundred refusals takes more than {early:?}");
    drop(redis);
}
