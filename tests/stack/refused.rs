//! What a stack refuses, and what it warns of.

use super::*;
use llm_layers::cache::{Bucket, CacheKey, CacheStore, Entry, EpochStore};

#[tokio::test]
async fn seed_14_a_limit_that_nothing_enforces_is_refused() {
    let text = "[departments.a]\nday_requests = 1\nmodels = [\"echo/a\"]\n";
    let refused = told(StackBuilder::new(config(text)).without(Part::Quota).build().await);
    assert_eq!(refused, "line 4: departments.a: it is limited, and the stack was built without quota");
    let refused = told(StackBuilder::new(config(text)).without(Part::Access).describe());
    let said = "only some models are allowed, and the stack was built without access";
    assert_eq!(refused, format!("line 6: departments.a.models: {said}"));
}

#[cfg(feature = "rusqlite")]
#[tokio::test]
async fn seed_14_lists_in_a_table_that_nothing_enforces_are_refused() {
    let text = "quota = { store = \"memory\", policies = \"p.db\" }\n";
    let expected = "line 4: quota.policies: models may be forbidden, and the stack was built without access";
    assert_eq!(told(StackBuilder::new(config(text)).without(Part::Access).describe()), expected);
    let (_, handle) = StackBuilder::new(config("")).without(Part::Access).build().await.unwrap();
    assert_eq!(handle.reload(config(text)).unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn seed_14_a_bound_of_calls_or_tries_that_nothing_enforces_is_refused() {
    let without = |part, text: &str| told(StackBuilder::new(config(text)).without(part).describe());
    let bound = "it is a bound of calls in flight, and the stack was built without concurrency";
    for entry in ["max_in_flight = 10", "max_waiting = 10", "max_wait = \"10s\"", "max_in_flight = 256"] {
        let name = entry.split_once(' ').unwrap().0;
        let text = format!("[server]\n{entry}\n");
        assert_eq!(without(Part::Concurrency, &text), format!("line 5: server.{name}: {bound}"));
    }
    // What somebody else enforces may be said.
    let others = "server = { max_body_bytes = 10, max_in_flight_per_key = 1 }\n";
    StackBuilder::new(config(others)).without(Part::Concurrency).describe().unwrap();
    assert_eq!(
        without(Part::Fallback, "retry.retries = 2\n"),
        "line 4: retry: it is told how often to try, and the stack was built without fallback"
    );
    // Also where it was not read from a text.
    let mut made = config("");
    made.server.max_wait.0 = Duration::from_millis(1);
    made.retry.max_attempts = 1;
    let builder = StackBuilder::new(made).without(Part::Concurrency).without(Part::Fallback);
    assert_eq!(refusal(builder.describe()).len(), 2);
}

#[tokio::test]
async fn what_is_wrong_with_a_configuration_and_with_a_stack_is_told_at_once() {
    let mut made = config("departments.a.day_requests = 1\n");
    made.aliases.insert("fast".into(), llm_layers::config::Alias::Model("gone/a".into()));
    let builder = StackBuilder::new(made).without(Part::Quota).with_provider("other", Echo::new());
    let refused = refusal(builder.build().await);
    for entry in ["aliases.fast: ", "departments.a: ", "providers.other: "] {
        assert!(refused.iter().any(|problem| problem.starts_with(entry)), "{entry}: {refused:?}");
    }
    assert_eq!(refused.len(), 3, "{refused:?}");

    // And when it is exchanged: what is wrong, and what would need a restart.
    let (_, handle) = stack(config("cache.ttl = \"1h\"\n")).await.unwrap();
    let mut other = config("listen = \"127.0.0.1:1\"\ncache.ttl = \"2h\"\n");
    other.aliases.insert("fast".into(), llm_layers::config::Alias::Model("gone/a".into()));
    let refused = said(&handle.reload(other).unwrap_err());
    for entry in ["aliases.fast: ", "listen: ", "cache.ttl: "] {
        assert!(refused.iter().any(|problem| problem.starts_with(entry)), "{entry}: {refused:?}");
    }
    assert_eq!(refused.len(), 3, "{refused:?}");
}

#[tokio::test]
async fn what_is_odd_and_may_be_meant_is_a_warning_with_its_line() {
    let text = r#"quota = { store = "memory" }
cache = { knowledge_bases = { handbook = { cache = true } } }
usage = { enabled = false }
[providers.echo]
kind = "echo"
[[keys]]
key = "a"
user = "ada"
tenant = "acm"
departments = ["research"]
[[keys]]
key = "b"
user = "bob"
departments = ["other", "reserch"]
[[keys]]
key = "c"
user = "cleo"
[[keys]]
key = "d"
user = "operator"
admin = true
[departments.research]
day_cost = "1"
[departments.resarch]
day_requests = 1
[departments.sales]
models = ["echo/*"]
[departments."*"]
day_requests = 1
[tenants.acme]
aliases = { fast = "echo/fast" }
[tenants.beta]
aliases = { fast = "echo/fast" }
"#;
    let warnings = |text: &str| {
        let description = StackBuilder::new(Config::parse(text).unwrap()).describe().unwrap();
        description.warnings().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let expected = [
        "line 1: quota.store: without [usage], what was used is forgotten at each start",
        "line 2: cache.knowledge_bases: no key is trusted, so nobody can say that a prompt draws on one",
        "line 14: keys[1].departments[1]: has no entry in [departments] but \"*\"; did you mean \"resarch\"?",
        "line 15: keys[2]: is in no department: nothing limits its calls",
        "line 22: departments: money is limited, and no model has a price: calls of those are refused",
        "line 24: departments.resarch: no key is in this department; did you mean \"reserch\"?",
        "line 26: departments.sales: no key is in this department",
        "line 30: tenants.acme: no key is of this tenant; did you mean \"acm\"?",
        "line 32: tenants.beta: no key is of this tenant",
    ];
    assert_eq!(warnings(text), expected);

    let closed = text.replace("[departments.\"*\"]\nday_requests = 1\n", "").replace(", \"reserch\"", "");
    let other = "keys[1].departments[0]: has no entry in [departments], nor has \"*\": it is not limited";
    assert!(warnings(&closed).iter().any(|warning| warning.ends_with(other)), "{:#?}", warnings(&closed));

    // The handle knows them, of what is in force.
    let (_, handle) = stack(Config::parse(text).unwrap()).await.unwrap();
    assert_eq!(handle.warnings().len(), expected.len());
    handle
        .reload(
            Config::parse(&text.replace("[tenants.beta]\naliases = { fast = \"echo/fast\" }\n", "")).unwrap(),
        )
        .unwrap();
    assert_eq!(handle.warnings().len(), expected.len() - 1);
    // Numbers are meant, and who is told apart by the host needs no key.
    let numbered = "departments.team-1.day_requests = 1\ndepartments.\"*\".day_requests = 2\n";
    let head = "usage.enabled = false\nproviders.echo.kind = \"echo\"\nquota.mode = \"shadow\"\n";
    let key = "[[keys]]\nkey = \"a\"\nuser = \"ada\"\ndepartments = [\"team-1\", \"team-2\"]\n";
    assert_eq!(warnings(&format!("{head}{numbered}{key}")), [""; 0]);
    assert_eq!(warnings(&format!("{ECHO}{numbered}tenants.acme.aliases.fast = \"echo/a\"\n")), [""; 0]);
}

#[test]
fn a_model_of_a_provider_under_its_whole_name_is_warned_of() {
    let text = "[providers.cloud]\nbase_url = \"http://x\"\nmodels = [\"a\", \"cloud/a\", \"cloudy/a\"]\nprices.\"cloud/b\" = { input = \"1\" }\n";
    let description = StackBuilder::new(config(text)).describe().unwrap();
    let told: Vec<_> = description.warnings().iter().map(ToString::to_string).collect();
    let what = "here a model has the name that it has at its provider";
    let expected = [
        format!("line 6: providers.cloud.models[1]: means \"cloud/cloud/a\"; {what}"),
        format!("line 7: providers.cloud.prices.\"cloud/b\": means \"cloud/cloud/b\"; {what}"),
    ];
    assert_eq!(told, expected);
}

#[test]
fn calls_that_are_too_few_for_what_is_to_be_tried_are_warned_of() {
    let warnings = |text: &str| {
        let description = StackBuilder::new(config(text)).describe().unwrap();
        description.warnings().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let by_cause =
        "fallbacks.\"echo/a\" = { otherwise = [\"echo/b\"], timeout = [\"echo/b\", \"echo/c\"] }\n";
    assert_eq!(warnings(&format!("retry = {{ retries = 5 }}\n{by_cause}")), [""; 0]);
    assert_eq!(
        warnings(&format!("retry = {{ retries = 6 }}\n{by_cause}")),
        [
            "line 4: retry.retries: are not all made: with the fallbacks they take 9 calls, and max_attempts is 8"
        ]
    );
    assert_eq!(
        warnings("retry.retries = 8\n"),
        [
            "line 4: retry.retries: are not all made: with the fallbacks they take 9 calls, and max_attempts is 8"
        ]
    );
    assert_eq!(
        warnings(&format!("retry.max_attempts = 2\n{by_cause}")),
        ["line 5: fallbacks.\"echo/a\": not all are asked: max_attempts is 2"]
    );
}

#[test]
fn a_deadline_that_one_call_can_use_up_is_warned_of_where_there_is_more_to_try() {
    let warnings = |text: &str| {
        let description = StackBuilder::new(config(text)).describe().unwrap();
        description.warnings().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let more = ["retry.retries = 1\n", "fallbacks.\"echo/a\" = [\"echo/b\"]\n"];
    let no_time = "leaves no time for another try: echo may take";
    for (times, warned) in [
        ("", None),
        ("retry.deadline = \"301s\"\n", None),
        ("retry.deadline = \"300s\"\n", Some("5m for an answer that is not streamed")),
        ("timeouts.total = \"100s\"\nretry.deadline = \"101s\"\n", None),
        (
            "timeouts.head = \"120s\"\ntimeouts.first_content = \"120s\"\n",
            Some("2m for an answer that is not streamed"),
        ),
        (
            "timeouts = { head = \"120s\", first_content = \"120s\", whole = \"60s\" }\n",
            Some("2m for the head of a stream"),
        ),
    ] {
        for more in more {
            let told = warnings(&format!("{times}{more}"));
            let expected = warned.map(|what| format!("retry.deadline: {no_time} {what}"));
            assert!(told.len() == expected.iter().len(), "{times}{more}: {told:?}");
            assert!(expected.is_none_or(|expected| told[0].ends_with(&expected)), "{times}{more}: {told:?}");
        }
        assert_eq!(warnings(times), [""; 0], "{times}");
    }
}

#[tokio::test]
async fn what_a_part_would_do_that_is_left_out_is_refused() {
    let text = "aliases.a = \"echo/a\"\nfallbacks.\"echo/a\" = [\"echo/b\"]\ncache = {}\n";
    let builder =
        StackBuilder::new(config(text)).without(Part::Alias).without(Part::Fallback).without(Part::Cache);
    let refused = refusal(builder.build().await);
    for entry in ["aliases: ", "fallbacks: ", "cache: "] {
        assert!(refused.iter().any(|problem| problem.starts_with(entry)), "{refused:?}");
    }
    assert_eq!(refused.len(), 3, "{refused:?}");
}

#[tokio::test]
async fn orders_that_are_wrong_are_refused_with_the_reason() {
    use Part::{Access, Alias, Cache, Concurrency, Fallback, Hits, Quota, Telemetry, Usage};
    let text = "cache = {}\nquota.store = \"memory\"\ndepartments.a.models = [\"echo/a\"]\ndepartments.a.day_requests = 1\n";
    let build = |order: &[Part]| {
        StackBuilder::new(config(text))
            .with_usage_sink(MemorySink::new(1))
            .with_order(order.iter().copied())
            .describe()
    };
    for (outer, inner, reason) in [
        (Telemetry, Fallback, "one span is for the whole call"),
        (Concurrency, Fallback, "a call would queue again for each attempt"),
        (Alias, Fallback, "chains are looked up by the name that aliases lead to"),
        (Alias, Access, "allow-lists are of the names that aliases lead to"),
        (Alias, Cache, "the key would have the alias"),
        (Alias, Quota, "prices are listed under the names that aliases lead to"),
        (Alias, Hits, "prices are listed"),
        (Alias, Usage, "prices are listed"),
        (Fallback, Access, "a substitute would not be checked"),
        (Fallback, Cache, "answers of substitutes would not be kept"),
        (Fallback, Hits, "only the last attempt would be recorded"),
        (Fallback, Quota, "what discarded attempts cost would not be charged"),
        (Fallback, Usage, "what discarded attempts cost would not be recorded"),
        (Access, Cache, "a model that is forbidden by now"),
        (Hits, Cache, "inside of the cache nobody sees its hits"),
        (Cache, Usage, "a shared call that outlives its caller"),
        (Quota, Usage, "what is settled must be what is recorded"),
    ] {
        // The documented order, but for one part that has slipped outwards.
        let mut order = Part::ORDER.to_vec();
        order.retain(|part| *part != inner);
        order.insert(order.iter().position(|part| *part == outer).unwrap(), inner);
        let rule = format!(": {outer} must stand outside of {inner}: {reason}");
        let refused = refusal(build(&order));
        assert!(refused.iter().any(|problem| problem.starts_with(&rule)), "{rule}: {refused:?}");
    }
    for (order, reason) in [
        (&[Alias, Alias, Access, Cache, Quota][..], "the order has alias twice"),
        (&[Alias, Access, Hits, Quota], "hits are to be recorded, and there is no cache"),
    ] {
        let refused = refusal(build(order));
        assert!(refused.iter().any(|problem| problem.contains(reason)), "{reason}: {refused:?}");
    }
    let order = [Concurrency, Alias, Fallback, Access, Quota, Cache, Usage];
    assert_eq!(build(&order).unwrap().parts(), order, "quota outside of the cache is a choice");
    assert_eq!(build(&Part::ORDER).unwrap().parts(), Part::ORDER);
}

#[tokio::test]
async fn a_part_of_an_order_that_would_do_nothing_is_refused() {
    for part in [Part::Access, Part::Cache, Part::Quota, Part::Usage, Part::Hits] {
        let refused = refusal(StackBuilder::new(config("")).with_order([part]).build().await);
        let reason = format!("{part} is in the order, and there is nothing in the configuration");
        assert!(refused.iter().any(|problem| problem.contains(&reason)), "{refused:?}");
    }
    StackBuilder::new(config("")).with_order([Part::Telemetry, Part::Concurrency]).build().await.unwrap();
}

#[tokio::test]
async fn what_the_program_gives_and_what_it_owes_must_fit() {
    let mine = "providers.mine.kind = \"own\"\n";
    let refused = refusal(stack(config(mine)).await);
    assert!(refused[0].starts_with("providers.mine: kind = \"own\""), "{refused:?}");
    let refused = refusal(StackBuilder::new(config("")).with_provider("other", Echo::new()).build().await);
    assert!(refused[0].starts_with("providers.other: the program gives a leaf"), "{refused:?}");
    let refused = refusal(StackBuilder::new(config("")).with_quota_store(MemoryStore::new()).build().await);
    assert!(refused[0].starts_with("quota: the program gives a store"), "{refused:?}");

    let lists = "quota.store = \"memory\"\ndepartments.a.models = [\"echo/a\"]\n";
    let builder = StackBuilder::new(config(lists)).without(Part::Quota);
    let refused = refusal(builder.with_quota_store(MemoryStore::new()).build().await);
    assert_eq!(refused, ["quota: the program gives a store, and nothing is limited"]);
    let kbs = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
    let refused = refusal(StackBuilder::new(config("")).with_kb_settings(kbs).build().await);
    assert_eq!(refused, ["cache: the program gives settings of knowledge bases, and nothing is to be kept"]);
    let sink = || StackBuilder::new(config("")).with_usage_sink(MemorySink::new(1));
    let expected = ["usage: the program gives a sink, and the stack was built without what records into it"];
    for builder in [sink().without(Part::Usage), sink().with_order([Part::Alias])] {
        assert_eq!(refusal(builder.build().await), expected);
    }
    // Hits have it for themselves, where there may be any.
    let hits = StackBuilder::new(config("cache = {}\n")).with_usage_sink(MemorySink::new(1));
    hits.without(Part::Usage).build().await.unwrap();
}

/// Kept by several, who all go by the same epochs.
struct Shared;

impl CacheStore for Shared {
    fn get(&self, _: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        Fetch::Ready(None)
    }

    fn put(&self, _: Arc<Entry>) -> Fetch<()> {
        Fetch::Ready(())
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        Some(Arc::new(Self))
    }
}

impl EpochStore for Shared {
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
        Fetch::Ready(vec![0; buckets.len() + 1])
    }

    fn raise(&self, _: Bucket) -> Fetch<()> {
        Fetch::Ready(())
    }
}

/// Whose epochs nobody knows.
struct Broken;

impl CacheStore for Broken {
    fn get(&self, _: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        Fetch::Ready(None)
    }

    fn put(&self, _: Arc<Entry>) -> Fetch<()> {
        Fetch::Ready(())
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        panic!("of the store")
    }
}

#[tokio::test]
async fn a_store_of_answers_that_is_shared_needs_a_secret_that_all_have() {
    let secret = format!("cache.secret = \"{}\"\n", "s".repeat(32));
    let shared = |text: &str| StackBuilder::new(config(text)).with_cache_store(Shared);
    let expected = ["cache.secret: is missing; all gateways that share a cache need the same"];
    assert_eq!(refusal(shared("cache = {}\n").describe()), expected);
    assert_eq!(refusal(shared("cache = {}\n").build().await), expected);
    let broken = StackBuilder::new(config("cache = {}\n")).with_cache_store(Broken);
    assert_eq!(refusal(broken.describe()), expected);

    // Of one's own, those of chance will do.
    let own = StackBuilder::new(config("cache = {}\n")).with_cache_store(MokaStore::new(1 << 20));
    own.build().await.unwrap();
    let (_, handle) = shared(&secret).build().await.unwrap();
    let refused = said(&handle.reload(config("cache = {}\n")).unwrap_err());
    assert!(refused.contains(&expected[0].to_owned()), "{refused:?}");
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_named_by_its_entry() {
    let text = "providers.echo.kind = \"echo\"\nusage.path = \"/nowhere/at/all/usage.db\"\n";
    let error = stack(Config::parse(text).unwrap()).await.unwrap_err();
    assert!(matches!(&error, StackError::Store { entry: "usage.path", .. }), "{error:?}");
    assert!(error.to_string().starts_with("usage.path: cannot be opened: "), "{error}");
}
