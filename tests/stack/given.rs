//! What the program gives in place of what a configuration says, beside stores and leaves.

use super::*;
use llm_layers::{
    config::Problem,
    policies::{DepartmentPolicy, Policies, PolicyTable},
    price::{Price, PriceBook, Prices, Rates},
    quota::{Amount, HistoryFuture, HistoryQuery, Limits, UsageHistory, Used},
    usage::{GroupBy, UsageQuery, UsageReader},
};

/// Every department has used up so many requests.
#[derive(Clone)]
struct Past(u64);

impl UsageHistory for Past {
    fn used(&self, _: HistoryQuery) -> HistoryFuture {
        let used = Amount::new(self.0, 0, NanoUsd::ZERO);
        Box::pin(async move { Ok(Used { in_day: used, in_month: used }) })
    }
}

#[tokio::test]
async fn a_sink_that_takes_nothing_more_makes_a_stack_unready() {
    let sink = MemorySink::new(1);
    let pointer: Box<dyn UsageSink> = Box::new(Arc::new(sink.clone()));
    let (service, handle) = StackBuilder::new(config("")).with_usage_sink(pointer).build().await.unwrap();
    assert_eq!(handle.readiness(), Readiness::Ready);
    service.clone().oneshot(request("echo/a")).await.unwrap();
    assert_eq!(handle.readiness(), Readiness::UsageUnavailable);
    let refused = service.clone().oneshot(request("echo/a")).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::StoreUnavailable { .. }), "{refused}");
    assert_eq!(sink.take().len(), 1);
    assert_eq!(handle.readiness(), Readiness::Ready);
    service.oneshot(request("echo/a")).await.unwrap();
}

#[tokio::test]
async fn counters_are_made_anew_from_the_history_that_a_program_gives() {
    let text = "departments.a.day_requests = 3\n";
    let builder = StackBuilder::new(config(text))
        .with_usage_sink(MemorySink::new(8))
        .with_usage_history(Past(2))
        .with_quota_store(MemoryStore::new());
    let (service, handle) = builder.build().await.unwrap();
    let ask = || service.clone().oneshot(of(request("echo/a"), "ada", &["a"]));
    let view = handle.quota("a").await.unwrap().unwrap();
    assert_eq!(view.standing.in_day.settled.requests, 2);
    ask().await.unwrap();
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::QuotaExceeded(_)));
}

#[tokio::test]
async fn counters_that_nobody_can_make_good_are_warned_of() {
    let warnings = |builder: StackBuilder| {
        let said = |problem: &Problem| format!("{}: {}", problem.entry, problem.what);
        builder.describe().unwrap().warnings().iter().map(said).collect::<Vec<_>>()
    };
    let limited = |text: &str| StackBuilder::new(config(&format!("departments.a.day_requests = 1\n{text}")));
    let recorded = |text: &str| limited(text).with_usage_sink(MemorySink::new(1));
    let lost = "quota: records go into a sink of the program's own, and it gives no history: counters that are lost begin at nothing";
    assert_eq!(warnings(recorded("quota.path = \"q.db\"\n")), [lost]);
    assert_eq!(warnings(recorded("").with_quota_store(MemoryStore::new())), [lost]);
    let forgotten = "quota.store: without [usage], what was used is forgotten at each start";
    assert_eq!(warnings(limited("quota.store = \"memory\"\n")), [forgotten]);
    let forgotten = "quota.store: records go into a sink of the program's own, and it gives no history: what was used is forgotten at each start";
    assert_eq!(warnings(recorded("quota.store = \"memory\"\n")), [forgotten]);
    for text in ["", "quota.store = \"memory\"\n"] {
        assert_eq!(warnings(recorded(text).with_usage_history(Past(0))), [""; 0], "{text}");
        assert_eq!(warnings(limited(text).with_usage_history(Past(0))), [""; 0], "{text}");
    }
    // Nothing is lost where nothing is counted.
    assert_eq!(warnings(StackBuilder::new(config("")).with_usage_sink(MemorySink::new(1))), [""; 0]);
    let idle = refusal(StackBuilder::new(config("")).with_usage_history(Past(0)).describe());
    assert_eq!(idle, ["quota: the program gives a history, and nothing is limited"]);
}

#[tokio::test]
async fn what_was_used_is_read_from_the_ledger_of_a_program() {
    let ledger = MemorySink::new(8);
    let reader: Box<dyn UsageReader> = Box::new(ledger.clone());
    let builder = StackBuilder::new(config("")).with_usage_sink(ledger).with_usage_reader(reader);
    let (service, handle) = builder.build().await.unwrap();
    for department in ["a", "b", "a"] {
        service.clone().oneshot(of(request("echo/a"), "ada", &[department])).await.unwrap();
    }
    let usage = handle.usage().unwrap();
    assert_eq!(usage.totals(&UsageQuery::new()).await.unwrap().calls, 3);
    let groups = usage.totals_by(&UsageQuery::new().with_department("a"), &[GroupBy::User]).await.unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!((groups[0].key[0].as_deref(), groups[0].totals.calls), (Some("ada"), 2));
    #[cfg(feature = "axum")]
    {
        use llm_layers::http::axum::admin;
        let root = Caller::of(RequestContext::new()).admin();
        let answer = admin::usage(&handle, &root, Some(&admin::UsageQuestion::default())).await;
        assert_eq!(answer.unwrap_or_else(|_| panic!("it is recorded")).status(), http::StatusCode::OK);
    }

    // What goes into a sink without one is known to nobody.
    let (_, handle) =
        StackBuilder::new(config("")).with_usage_sink(MemorySink::new(1)).build().await.unwrap();
    assert!(handle.usage().is_none());
    let idle = refusal(StackBuilder::new(config("")).with_usage_reader(MemorySink::new(1)).describe());
    assert_eq!(idle, ["usage: the program gives a reader, and nothing is recorded"]);
}

fn priced(dollars: &str) -> PriceBook {
    let price = Price::new(Rates::per_million(dollars, dollars).unwrap());
    PriceBook::of("program", [("echo/a", price)]).unwrap()
}

#[tokio::test]
async fn prices_of_a_program_are_those_of_all_calls_whatever_is_reloaded() {
    let (prices, sink) = (Prices::new(priced("1000000")), MemorySink::new(8));
    let builder = || StackBuilder::new(config("")).with_prices(prices.clone());
    let (service, handle) = builder().with_usage_sink(sink.clone()).build().await.unwrap();
    let cost = async || {
        service.clone().oneshot(request("echo/a")).await.unwrap();
        let event = sink.take().remove(0);
        let tokens = event.usage.input_tokens.unwrap() + event.usage.output_tokens.unwrap();
        event.cost.amount.unwrap().nanos() / i64::try_from(tokens).unwrap()
    };
    assert_eq!(cost().await, 1_000_000_000);
    prices.store(priced("2000000"));
    assert_eq!(cost().await, 2_000_000_000);
    handle.reload(config("aliases.fast = \"echo/a\"\n")).unwrap();
    assert_eq!(cost().await, 2_000_000_000);
    prices.store(priced("3000000"));
    assert_eq!(cost().await, 3_000_000_000);
    let told = builder().describe().unwrap().explain("echo/a").unwrap();
    assert!(told.contains("from program"), "{told}");

    // What the configuration says of prices would say nothing.
    let more = "[providers.echo]\nkind = \"echo\"\nmodels = [{ name = \"a\", price = { input = \"1\", output = \"1\" } }]\n";
    let of_model = Config::parse(&format!("usage.enabled = false\nidentity = \"host\"\n{more}")).unwrap();
    let of_provider = config("providers.echo.prices.a = { input = \"1\", output = \"1\" }\n");
    let mut lists = config("");
    lists.prices.own = Some("prices.toml".into());
    for (entry, config) in [("providers.echo", of_model), ("providers.echo", of_provider), ("prices", lists)]
    {
        let builder = StackBuilder::new(config).with_prices(prices.clone());
        assert_eq!(
            refusal(builder.describe()),
            [format!("{entry}: the program gives the prices of all models")]
        );
    }
}

#[tokio::test]
async fn policies_of_a_program_are_in_force_and_followed_whatever_is_reloaded() {
    let limited = |calls| {
        let mut limits = Limits::new();
        limits.day_requests = Some(calls);
        PolicyTable::default().with("a", DepartmentPolicy::new(limits).with_models(["echo/*"]))
    };
    let policies = Policies::new(limited(1));
    let text = "quota.store = \"memory\"\n";
    let builder = |text: &str| StackBuilder::new(config(text)).with_policies(policies.clone());
    let (service, handle) = builder(text).build().await.unwrap();
    let ask = || service.clone().oneshot(of(request("echo/a"), "ada", &["a"]));
    let is_over = |error: Error| matches!(error.kind(), ErrorKind::QuotaExceeded(_));
    ask().await.unwrap();
    assert!(is_over(ask().await.unwrap_err()));
    policies.store(limited(2));
    ask().await.unwrap();
    handle.reload(config(&format!("{text}aliases.fast = \"echo/a\"\n"))).unwrap();
    assert!(is_over(ask().await.unwrap_err()));
    policies.store(limited(3));
    ask().await.unwrap();
    let view = handle.quota("a").await.unwrap().unwrap();
    assert_eq!((view.policy.limits.day_requests, view.standing.in_day.settled.requests), (Some(3), 3));
    policies.store(PolicyTable::default().with("a", DepartmentPolicy::default().with_models([""; 0])));
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::ModelNotAllowed { .. }));

    // Also where nobody is limited yet.
    let none = Policies::default();
    let (service, _handle) =
        StackBuilder::new(config(text)).with_policies(none.clone()).build().await.unwrap();
    service.clone().oneshot(of(request("echo/a"), "ada", &["a"])).await.unwrap();
    none.store(limited(1));
    assert!(is_over(service.oneshot(of(request("echo/a"), "ada", &["a"])).await.unwrap_err()));

    let told = builder(text).describe().unwrap().to_string();
    assert!(told.contains("policies of the program's own"), "{told}");
    let refused = refusal(builder("departments.b.day_requests = 1\n").describe());
    assert_eq!(refused, ["departments: the program gives the policies of all departments"]);
    let (_, handle) = builder(text).build().await.unwrap();
    let refused =
        said(&handle.reload(config(&format!("{text}departments.b.day_requests = 1\n"))).unwrap_err());
    assert_eq!(refused, ["departments: the program gives the policies of all departments"]);
    for (part, what) in
        [(Part::Quota, "departments may be limited"), (Part::Access, "models may be forbidden")]
    {
        let refused = refusal(builder(text).without(part).describe());
        assert_eq!(refused, [format!("departments: {what}, and the stack was built without {part}")]);
    }
}
