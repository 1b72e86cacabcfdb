//! Many accounts ask the same questions of two servers that share Redis, and no answer, record or count of one ever
//! reaches another's.
//!
//! The provider gives each answer a number of its own, so that it is known for whom it was made. `ISOLATION_SECONDS` says
//! for how long (four unless told), `ISOLATION_SEED` which accounts there are; the seed is printed.

use axum::{Extension, Router, extract::Request, middleware, response::IntoResponse, routing::post};
use faults::{Client, Gateway, Reply, Upstream, chat, events, redis::RedisServer, until};
use llm_layers::{
    Error, KbScope, LlmRequest, LlmResponse, Period, QuotaKind, RequestContext, ServiceBuilderExt as _,
    access::AccessLayer,
    alias::AliasTable,
    cache::{
        CacheLayer, CachePolicy, CacheSecret, CacheWorker, Coalescing, Fetch, KbCaching, MokaStore,
        RedisBytes, SealedStore, TieredStore,
    },
    clock::{Clock as _, SystemClock},
    fallback::Chains,
    http::{
        Asked as AskedFor,
        axum::{ChatAnswer, ChatRequest},
    },
    policies::{DepartmentPolicy, Policies, PolicyTable},
    price::Prices,
    provider::openai::OpenAiCompatible,
    providers::Providers,
    quota::{self, Calendar, Limits, QuotaLayer, QuotaStore as _, RedisQuotaStore, WorkerOptions},
    store::{Redis, RedisOptions},
    usage::{self, Durability, QueueOptions, SqliteLedger, UsageLayer},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::{
    ServiceBuilder, ServiceExt as _,
    util::{BoxCloneSyncService, option_layer},
};

const MODELS: usize = 3;
const QUESTIONS: usize = 2;
const CALLERS: usize = 16;
/// So many calls say something.
const FEWEST: usize = 600;
/// How many calls a day the first department may make.
const TIGHT: u64 = 30;

// ===== who there is =====

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Base {
    id: String,
    /// What of it the account may read.
    acl: Option<String>,
    version: String,
}

#[derive(Debug, Clone)]
struct Account {
    key: String,
    user: String,
    tenant: String,
    departments: Vec<String>,
    bases: Vec<Base>,
}

/// Departments, and which models each may use.
type Departments = BTreeMap<String, Vec<String>>;

fn one<T: Clone>(random: &mut fastrand::Rng, of: &[T]) -> T {
    of[random.usize(..of.len())].clone()
}

fn some<T: Clone>(random: &mut fastrand::Rng, of: &[T], most: usize) -> Vec<T> {
    let count = random.usize(..=most);
    random.choose_multiple(of.iter().cloned(), count)
}

fn departments(random: &mut fastrand::Rng) -> Departments {
    let models: Vec<_> = (0..MODELS).map(|number| format!("up/m{number}")).collect();
    (0..6)
        .map(|number| {
            // One in four has a list that leaves something out.
            let models = if number == 5 || random.u8(..4) == 0 {
                some(random, &models, MODELS - 1)
            } else {
                models.clone()
            };
            (format!("d{number}"), models)
        })
        .collect()
}

/// Few names, so that nearly each is another's in all but one respect.
fn accounts(random: &mut fastrand::Rng, departments: &Departments, with_bases: bool) -> Vec<Account> {
    let names: Vec<_> = departments.keys().cloned().collect();
    let (users, tenants) = (["ada", "bob", "a"], ["acme", "daacme"]);
    (0..24)
        .map(|number| {
            let bases = ["handbook", "closed", "handbook2"].map(|id| Base {
                id: id.to_owned(),
                acl: one(random, &[Some("x".to_owned()), Some("y".to_owned()), None]),
                version: one(random, &["1".to_owned(), "2".to_owned()]),
            });
            Account {
                key: format!("key-{number}"),
                user: one(random, &users).to_owned(),
                tenant: one(random, &tenants).to_owned(),
                departments: some(random, &names, 2),
                bases: if with_bases { some(random, &bases, 2) } else { Vec::new() },
            }
        })
        .collect()
}

impl Account {
    /// Whoever has the same may have the same answers.
    fn scope(&self) -> (&str, &str, BTreeSet<&Base>) {
        (&self.tenant, &self.user, self.bases.iter().collect())
    }

    fn may_be_cached(&self) -> bool {
        self.bases.iter().all(|base| base.acl.is_some() && base.id != "closed")
    }

    fn may_use(&self, departments: &Departments, model: &str) -> bool {
        self.departments
            .iter()
            .all(|department| departments[department].iter().any(|allowed| allowed == model))
    }

    fn context(&self) -> RequestContext {
        let bases = self.bases.iter().map(|base| {
            let scope = KbScope::new(&*base.id).with_version(&*base.version);
            match &base.acl {
                Some(acl) => scope.with_acl_hash(&**acl),
                None => scope,
            }
        });
        let context = RequestContext::new()
            .with_user_id(&*self.user)
            .with_tenant_id(&*self.tenant)
            .with_departments(self.departments.iter().map(|department| &**department));
        bases.fold(context, RequestContext::with_kb)
    }
}

// ===== what is asked =====

#[derive(Debug, Clone)]
struct Asked {
    account: usize,
    question: usize,
    model: String,
    told: Option<Reply>,
}

async fn ask(address: &str, account: &Account, number: usize, asked: &Asked, is_stream: bool) -> Reply {
    let mut body = chat(&asked.model, is_stream);
    body["messages"][0]["content"] = format!("What is question {}?", asked.question).into();
    let (bearer, id) = (format!("Bearer {}", account.key), format!("r{number}"));
    let headers = [("content-type", "application/json"), ("authorization", &*bearer), ("x-request-id", &*id)];
    let mut client = Client::connect(address).await.expect("it listens");
    let request = Client::request("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
    client.write(&request).await.expect("it listens");
    client.reply().await.expect("an answer")
}

/// All that was asked for so long, by many at once.
async fn talk(servers: &[String], accounts: &[Account], seed: u64) -> Vec<Asked> {
    let seconds = std::env::var("ISOLATION_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_u64);
    // Two tests share the time.
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds) / 2;
    let all: Mutex<Vec<Asked>> = Mutex::default();
    let call = async |caller: u64| {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(caller));
        // However slow the machine is.
        while tokio::time::Instant::now() < end || all.lock().unwrap().len() < FEWEST {
            let account = random.usize(..accounts.len());
            let (question, model) = (random.usize(..QUESTIONS), format!("up/m{}", random.usize(..MODELS)));
            let asked = Asked { account, question, model, told: None };
            let number = {
                let mut all = all.lock().unwrap();
                all.push(asked.clone());
                all.len() - 1
            };
            let server = &servers[random.usize(..servers.len())];
            let reply = ask(server, &accounts[account], number, &asked, random.bool()).await;
            all.lock().unwrap()[number].told = Some(reply);
        }
    };
    let callers = (0..CALLERS as u64).map(call);
    futures_util::future::join_all(callers).await;
    all.into_inner().unwrap()
}

/// The number of an answer.
fn number(text: &str) -> Option<usize> {
    text.split("number ").nth(1)?.trim_end_matches('.').parse().ok()
}

fn seed() -> u64 {
    let seed = std::env::var("ISOLATION_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("ISOLATION_SEED={seed}");
    seed
}

/// Compares what was told, recorded and counted with what the provider itself has seen.
async fn judge(
    all: &[Asked],
    accounts: &[Account],
    departments: &Departments,
    upstream: &Upstream,
    ledgers: &[PathBuf],
    settled: impl AsyncFn(&str) -> u64,
) {
    let of = |id: &str| {
        id.strip_prefix('r').and_then(|number| number.parse::<usize>().ok()).expect("an id of ours")
    };
    let log = upstream.log();
    let made: HashMap<usize, usize> = log.iter().map(|seen| (seen.number, of(&seen.request_id))).collect();

    let (mut answers, mut shared, mut refused, mut over) = (0, 0, 0, 0);
    for (at, asked) in all.iter().enumerate() {
        let (account, reply) = (&accounts[asked.account], asked.told.as_ref().expect("a reply"));
        let is_allowed = account.may_use(departments, &asked.model);
        match reply.status {
            403 => {
                assert!(!is_allowed, "{asked:?} of {account:?}");
                refused += 1;
            }
            429 => {
                assert!(
                    account.departments.iter().any(|department| department == "d0"),
                    "{account:?}: {reply:?}"
                );
                over += 1;
            }
            200 => {
                assert!(is_allowed, "{asked:?} of {account:?}");
                let text = reply.text();
                let origin = made[&number(&text).unwrap_or_else(|| panic!("a cut answer: {reply:?}"))];
                let (first, theirs) = (&all[origin], &accounts[all[origin].account]);
                assert_eq!(account.scope(), theirs.scope(), "{asked:?} got what was made for {first:?}");
                assert_eq!((asked.question, &asked.model), (first.question, &first.model));
                assert!(account.may_be_cached() || origin == at, "{account:?} got what was kept");
                answers += 1;
                shared += usize::from(origin != at);
            }
            _ => panic!("{reply:?}"),
        }
    }
    println!(
        "{} calls: {answers} answers, {shared} of them not the first, {refused} forbidden, {over} over a limit",
        all.len()
    );
    assert!(answers > 50 && shared > 10, "it says nothing");
    let across = all.iter().enumerate().filter(|(_, asked)| {
        let twin = |other: &&Asked| (other.question, &other.model) == (asked.question, &asked.model);
        all.iter()
            .filter(twin)
            .any(|other| accounts[other.account].scope() != accounts[asked.account].scope())
    });
    assert!(across.count() > 50, "nobody asked what another has asked");

    let recorded = async || {
        let all: Vec<_> = ledgers.iter().flat_map(|ledger| events(ledger)).collect();
        let made = all.iter().filter(|event| !matches!(&*event.outcome, "cache_hit" | "coalesced")).count();
        (made >= log.len()).then_some(all)
    };
    let recorded = until(Duration::from_secs(20), recorded).await.expect("each call is recorded");
    let ids: BTreeSet<_> = recorded.iter().map(|event| (&*event.request_id, event.attempt)).collect();
    assert_eq!(ids.len(), recorded.len(), "recorded twice");
    assert_eq!(recorded.len(), answers, "an answer, be it a kept one, is a record");
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for event in &recorded {
        let account = &accounts[all[of(&event.request_id)].account];
        assert_eq!(event.user.as_deref(), Some(&*account.user), "{event:?}");
        let theirs: BTreeSet<_> = account.departments.iter().collect();
        assert_eq!(event.departments.iter().collect::<BTreeSet<_>>(), theirs, "{event:?}");
    }
    for seen in &log {
        for department in &accounts[all[of(&seen.request_id)].account].departments {
            *counts.entry(department).or_default() += 1;
        }
    }
    for department in departments.keys() {
        let expected = counts.get(&**department).copied().unwrap_or(0);
        let is_right = async || (settled(department).await == expected).then_some(());
        let is_right = until(Duration::from_secs(20), is_right).await.is_some();
        assert!(is_right, "{department}: {} are counted, {expected} were made", settled(department).await);
    }
    assert!(counts.get("d0").copied().unwrap_or(0) <= TIGHT, "{counts:?}");
}

// ===== the gateway =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_two_gateways_nothing_of_one_account_reaches_another() {
    let Some(redis) = RedisServer::start("through_two_gateways") else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let departments = departments(&mut random);
    let accounts = accounts(&mut random, &departments, false);
    let upstream = Upstream::start([]).await.numbering();
    let url = redis.url();
    let mut config = format!(
        r#"
        [cache]
        enabled = true
        redis = "{url}"
        secret = "a-secret-of-more-than-thirty-two-letters"
        coalesce = true
        [quota]
        store = "redis"
        redis = "{url}"
        timeout = "5s"
        [providers.up]
        base_url = "{}"
        "#,
        upstream.url
    );
    for (name, models) in &departments {
        let limit = if name == "d0" { TIGHT } else { 1_000_000 };
        let _ = writeln!(config, "[departments.{name}]\nmodels = {models:?}\nday_requests = {limit}");
    }
    for Account { key, user, tenant, departments, .. } in &accounts {
        let _ = writeln!(
            config,
            "[[keys]]\nkey = {key:?}\nuser = {user:?}\ntenant = {tenant:?}\ndepartments = {departments:?}"
        );
    }
    config += "[[keys]]\nkey = \"root\"\nuser = \"root\"\nadmin = true\n";
    let (one, other) = tokio::join!(Gateway::start(&config), Gateway::start(&config));
    let all = talk(&[one.address.clone(), other.address.clone()], &accounts, seed).await;
    let ledgers = [one.room.join("usage.db"), other.room.join("usage.db")];
    let settled = async |department: &str| one.standing("root", department).await.settled.0;
    judge(&all, &accounts, &departments, &upstream, &ledgers, settled).await;
}

// ===== the library, with knowledge bases =====

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// One process of those that share Redis.
struct Server {
    address: String,
    store: Arc<RedisQuotaStore>,
    _workers: (quota::Worker, usage::Worker, CacheWorker),
}

async fn serve(
    redis: &str,
    upstream: &Upstream,
    accounts: &[Account],
    policies: Policies,
    ledger: &PathBuf,
) -> Server {
    let redis = Redis::new(redis, RedisOptions::default()).expect("a URL");
    let secret = CacheSecret::new([7; 32]);
    let bytes = RedisBytes::new(&redis, "isolation");
    let policy = CachePolicy::new(secret.clone())
        .with_coalescing(Coalescing::new())
        .with_kb_settings(|base: &KbScope, _: &RequestContext| {
            Fetch::Ready(if &*base.id == "closed" { KbCaching::Disabled } else { KbCaching::Allowed })
        })
        .with_epochs(Arc::new(bytes.clone()));
    let tiers = TieredStore::new(MokaStore::new(1 << 20), SealedStore::new(bytes, secret).encrypted());
    let (cache, cache_worker) = CacheLayer::start(tiers, policy);
    let store = Arc::new(RedisQuotaStore::new(redis.apart()).with_deadline(Duration::from_secs(5)));
    let options = WorkerOptions::default();
    let (quota, quota_worker) =
        QuotaLayer::pair(Arc::clone(&store), policies.clone(), Prices::default(), options);
    let (sink, usage_worker) =
        SqliteLedger::start(ledger, Durability::Memory, QueueOptions::default()).expect("a ledger");
    let leaf = OpenAiCompatible::hyper(&upstream.url).expect("a URL");
    let providers = Providers::builder().provider("up", leaf).build().expect("providers");
    let stack: Stack = BoxCloneSyncService::new(
        ServiceBuilder::new()
            .alias(AliasTable::builder().build().expect("a table"))
            .fallback(Chains::builder().build().expect("chains"))
            .layer(AccessLayer::new(policies))
            .layer(UsageLayer::hits(sink.clone(), Prices::default()))
            .layer(option_layer(Some(cache)))
            .layer(quota.with_deadline(Duration::from_secs(5)))
            .layer(UsageLayer::new(sink, Prices::default()))
            .service(providers),
    );
    let contexts: HashMap<String, RequestContext> =
        accounts.iter().map(|account| (account.key.clone(), account.context())).collect();
    let contexts = Arc::new(contexts);
    let identify = move |mut request: Request, next: middleware::Next| {
        let contexts = Arc::clone(&contexts);
        async move {
            let key = request.headers().get("authorization").and_then(|value| value.to_str().ok());
            let key = key.and_then(|value| value.strip_prefix("Bearer ")).expect("a key").to_owned();
            request.extensions_mut().insert(contexts[&key].clone());
            next.run(request).await
        }
    };
    let complete = |Extension(stack): Extension<Stack>, ChatRequest(request): ChatRequest| async move {
        let asked = AskedFor::by(&request);
        ChatAnswer::new(asked, stack.oneshot(request).await).into_response()
    };
    let router = Router::new()
        .route("/v1/chat/completions", post(complete))
        .layer(Extension(stack))
        .layer(middleware::from_fn(identify));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    Server { address, store, _workers: (quota_worker, usage_worker, cache_worker) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_two_stacks_with_knowledge_bases_nothing_of_one_account_reaches_another() {
    let Some(redis) = RedisServer::start("through_two_stacks") else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let departments = departments(&mut random);
    let accounts = accounts(&mut random, &departments, true);
    let upstream = Upstream::start([]).await.numbering();
    let table = departments.iter().fold(PolicyTable::default(), |table, (name, models)| {
        let limit = if name == "d0" { TIGHT } else { 1_000_000 };
        let limits = Limits::new().with_day_requests(limit);
        table.with(name.as_str(), DepartmentPolicy::new(limits).with_models(models))
    });
    let policies = Policies::new(table);
    let room = faults::Room::new();
    let ledgers = [room.join("one.db"), room.join("other.db")];
    let one = serve(&redis.url(), &upstream, &accounts, policies.clone(), &ledgers[0]).await;
    let other = serve(&redis.url(), &upstream, &accounts, policies, &ledgers[1]).await;
    let all = talk(&[one.address.clone(), other.address.clone()], &accounts, seed).await;
    let settled = async |department: &str| {
        let days = Calendar::utc().days_around(SystemClock.now());
        let standing = one.store.usage(&department.into(), &days).await.expect("it is there");
        standing.over(Period::Day).settled.get(QuotaKind::Requests)
    };
    judge(&all, &accounts, &departments, &upstream, &ledgers, settled).await;
}
