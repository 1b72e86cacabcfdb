//! `AliasLayer` over a scripted provider, and the tables that it resolves by.

use llm_layers::{
    ChatBody, LlmRequest, ModelName, RequestContext,
    alias::{AliasError, AliasLayer, AliasProblem, AliasTable, AliasTableBuilder, Aliases},
    providers::ProviderNames,
    testing::{Reply, Scripted},
};
use proptest::prelude::*;
use std::collections::HashMap;
use tower::{Layer, Service, ServiceExt};

fn table() -> AliasTableBuilder {
    AliasTable::builder()
}

fn resolve(table: &AliasTable, name: &str) -> String {
    table.resolve(&name.into(), None, None).to_string()
}

fn problems(builder: AliasTableBuilder) -> Vec<AliasProblem> {
    let error: AliasError = builder.build().expect_err("something is wrong with it");
    assert!(!error.problems().is_empty() && !error.to_string().is_empty());
    error.problems().to_vec()
}

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Hi").build().unwrap())
}

// ===== the layer =====

#[tokio::test]
async fn seed_02_an_alias_reaches_the_provider_by_its_target_and_requested_is_kept() {
    let provider = Scripted::new();
    let table = table().alias("fast", "mini").alias("mini", "openai/gpt-4o-mini").build().unwrap();
    let mut service = AliasLayer::new(table).layer(provider.clone());
    for name in ["fast", "mini", "openai/gpt-4o-mini", "unheard/of"] {
        service.ready().await.unwrap().call(request(name)).await.unwrap();
    }
    let asked: Vec<_> = provider.requests().iter().map(|r| (r.requested.clone(), r.model.clone())).collect();
    let mini = "openai/gpt-4o-mini";
    let expected = [("fast", mini), ("mini", mini), (mini, mini), ("unheard/of", "unheard/of")];
    assert_eq!(asked, expected.map(|(a, b)| (ModelName::from(a), ModelName::from(b))));
}

#[tokio::test]
async fn seed_02_tenant_and_user_come_from_the_context() {
    let provider = Scripted::new();
    let split = [("acme/a", 1), ("acme/b", 1)];
    let table = table()
        .alias("fast", "acme/everybody")
        .sticky_split("sticky", split)
        .for_tenant("bank")
        .alias("fast", "acme/bank")
        .build()
        .unwrap();
    let mut service = AliasLayer::new(table.clone()).layer(provider.clone());
    let contexts = [
        RequestContext::new(),
        RequestContext::new().with_tenant_id("bank"),
        RequestContext::new().with_tenant_id("shop"),
        // A user or a department of that name is no tenant.
        RequestContext::new().with_user_id("bank").with_departments(["bank"]),
    ];
    for context in contexts {
        service.ready().await.unwrap().call(request("fast").with_context(context)).await.unwrap();
    }
    let asked: Vec<_> = provider.requests().iter().map(|r| r.model.to_string()).collect();
    assert_eq!(asked, ["acme/everybody", "acme/bank", "acme/everybody", "acme/everybody"]);

    for user in (0..50).map(|n| format!("user {n}")) {
        let context = RequestContext::new().with_user_id(&*user);
        service.ready().await.unwrap().call(request("sticky").with_context(context)).await.unwrap();
        let expected = table.resolve(&"sticky".into(), None, Some(&user));
        assert_eq!(provider.requests().last().unwrap().model, expected, "{user}");
    }
}

#[tokio::test]
async fn seed_02_a_new_table_is_seen_by_the_next_call_and_not_by_one_in_flight() {
    let provider = Scripted::new().reply(Reply::text("hi").after([llm_layers::testing::Step::Gate]));
    let aliases = Aliases::new(table().alias("fast", "acme/old").build().unwrap());
    let mut service = AliasLayer::new(aliases.clone()).layer(provider.clone());
    let mut clone = service.clone();

    let mut first = tokio_test::task::spawn(service.ready().await.unwrap().call(request("fast")));
    tokio_test::assert_pending!(first.poll());
    aliases.store(table().alias("fast", "acme/new").build().unwrap());
    assert_eq!(resolve(&aliases.load(), "fast"), "acme/new");
    provider.open();
    assert_eq!(first.await.unwrap().model, "acme/old");

    for service in [&mut service, &mut clone] {
        assert_eq!(service.ready().await.unwrap().call(request("fast")).await.unwrap().model, "acme/new");
    }
}

// ===== what wins =====

#[test]
fn seed_02_an_exact_name_wins_over_any_glob_and_the_longest_literal_over_other_globs() {
    let table = table()
        .alias("*", "acme/any")
        .alias("gpt-*", "acme/short")
        .alias("gpt-4*", "acme/longer")
        .alias("*-4o-mini", "acme/longest")
        .alias("gpt-4o-mini", "acme/exact");
    let table = table.build().unwrap();
    for (name, expected) in [
        ("claude", "acme/any"),
        ("", "acme/any"),
        ("gpt-", "acme/short"),
        ("gpt-5", "acme/short"),
        ("gpt-4", "acme/longer"),
        ("gpt-4o", "acme/longer"),
        ("o-4o-mini", "acme/longest"),
        ("gpt-4.1-4o-mini", "acme/longest"),
        ("gpt-4o-mini", "acme/exact"),
        ("acme/any", "acme/any"),
    ] {
        assert_eq!(resolve(&table, name), expected, "{name}");
    }
}

#[test]
fn globs_of_the_same_length_win_in_an_order_that_does_not_depend_on_how_they_were_added() {
    let globs = [("a*", "x/1"), ("*b", "x/2"), ("ab*", "x/3"), ("*ab", "x/4"), ("a*b", "x/5")];
    let build = |order: &[usize]| {
        let table = order.iter().fold(table(), |t, at| t.alias(globs[*at].0, globs[*at].1));
        table.build().unwrap()
    };
    let (forth, back) = (build(&[0, 1, 2, 3, 4]), build(&[4, 3, 2, 1, 0]));
    for name in ["ab", "aab", "abb", "abab", "b", "a", "axb"] {
        assert_eq!(resolve(&forth, name), resolve(&back, name), "{name}");
    }
}

#[test]
fn seed_02_a_tenants_entries_go_before_everybodys_even_where_they_are_wider() {
    let table = table()
        .alias("gpt-4o", "acme/everybody")
        .alias("plain", "acme/plain")
        .for_tenant("bank")
        .alias("gpt-*", "bank/private")
        .alias("bank/private", "bank/private-2")
        .for_everybody()
        .alias("late", "acme/late")
        .build()
        .unwrap();
    let of = |name: &str, tenant| table.resolve(&name.into(), tenant, None).to_string();
    assert_eq!(of("gpt-4o", None), "acme/everybody");
    assert_eq!(of("gpt-4o", Some("bank")), "bank/private-2");
    assert_eq!(of("gpt-4o", Some("shop")), "acme/everybody");
    assert_eq!(of("plain", Some("bank")), "acme/plain");
    assert_eq!((of("late", None), of("late", Some("bank"))), ("acme/late".into(), "acme/late".into()));
    // What is a tenant's own does not exist for others.
    assert_eq!(of("gpt-5", None), "gpt-5");
    assert_eq!(table.names(), ["gpt-4o", "late", "plain"]);
}

#[test]
fn a_name_that_means_itself_is_an_end_even_under_a_catch_all() {
    let table = table()
        .alias("*", "acme/default")
        .alias("fast", "acme/fast")
        .alias("acme/fast", "acme/fast")
        .build()
        .unwrap();
    assert_eq!(resolve(&table, "fast"), "acme/fast");
    assert_eq!(resolve(&table, "acme/fast"), "acme/fast");
    assert_eq!(resolve(&table, "acme/default"), "acme/default");
    assert_eq!(resolve(&table, "anything/else"), "acme/default");

    let half = self::table().split("gpt", [("gpt", 1), ("acme/new", 1)]).build().unwrap();
    fastrand::seed(7);
    let ends: std::collections::HashSet<_> = (0..100).map(|_| resolve(&half, "gpt")).collect();
    assert_eq!(ends, ["gpt".to_owned(), "acme/new".to_owned()].into());
}

#[test]
fn targets_end_in_a_canonical_name_if_the_providers_are_known() {
    let one = || ProviderNames::new(["openai"]);
    let alone = table().alias("fast", "gpt-4o-mini").providers(one()).build().unwrap();
    assert_eq!(resolve(&alone, "fast"), "openai/gpt-4o-mini");
    assert_eq!(resolve(&alone, "gpt-5"), "openai/gpt-5");
    assert_eq!(resolve(&alone, "meta/llama/3"), "meta/llama/3");

    let two = ProviderNames::new(["openai", "acme"]);
    let several = table().alias("fast", "acme/meta/llama").providers(two).build().unwrap();
    assert_eq!(resolve(&several, "fast"), "acme/meta/llama");
    assert_eq!(resolve(&several, "gpt-5"), "gpt-5");
    let untold = table().alias("fast", "gpt-4o-mini").build().unwrap();
    assert_eq!(resolve(&untold, "fast"), "gpt-4o-mini");
}

#[test]
fn a_model_that_leads_elsewhere_does_so_under_its_bare_name_too() {
    let one = || table().providers(ProviderNames::new(["openai"]));
    let rerouted = one()
        .alias("openai/gpt-4o", "openai/gpt-4o-mini")
        .alias("fast", "gpt-4o")
        .alias("gpt-4o-2024-*", "gpt-4o")
        .build()
        .unwrap();
    for name in ["openai/gpt-4o", "gpt-4o", "fast", "gpt-4o-2024-05-13"] {
        assert_eq!(resolve(&rerouted, name), "openai/gpt-4o-mini", "{name}");
        assert_eq!(rerouted.ends(&name.into()), ["openai/gpt-4o-mini"], "{name}");
    }
    assert_eq!(rerouted.explain("gpt-4o"), "gpt-4o\n  -> openai/gpt-4o\n    -> openai/gpt-4o-mini");
    assert_eq!(
        rerouted.explain("fast"),
        "fast\n  -> gpt-4o\n    -> openai/gpt-4o\n      -> openai/gpt-4o-mini"
    );
    // A name that means itself does so as the model of the only provider.
    let own =
        one().split("gpt-4o", [("gpt-4o", 1), ("mini", 1)]).alias("openai/mini", "openai/small").build();
    assert_eq!(own.unwrap().ends(&"gpt-4o".into()), ["openai/gpt-4o", "openai/small"]);

    for builder in [
        one().alias("openai/a", "a"),
        one().alias("openai/a", "b").alias("openai/b", "a"),
        one().alias("openai/a", "a").alias("a", "a"),
        one().alias("x-*", "a").alias("openai/a", "b").alias("b", "openai/a"),
    ] {
        let found = problems(builder);
        assert!(!found.is_empty());
        assert!(found.iter().all(|problem| matches!(problem, AliasProblem::Cycle { .. })), "{found:?}");
    }
    // Where there are several, a bare name stands for none of them.
    let two = table().providers(ProviderNames::new(["openai", "acme"])).alias("openai/a", "acme/a").build();
    assert_eq!(resolve(&two.unwrap(), "a"), "a");
}

// ===== chance =====

fn shares(table: &AliasTable, name: &str, user: impl Fn(usize) -> Option<String>) -> HashMap<String, usize> {
    let mut shares = HashMap::new();
    for n in 0..100_000 {
        let model = table.resolve(&name.into(), None, user(n).as_deref());
        *shares.entry(model.to_string()).or_default() += 1;
    }
    shares
}

#[test]
fn seed_02_a_split_keeps_its_weights_by_chance_and_by_user() {
    fastrand::seed(4711);
    let targets = [("acme/a", 70), ("acme/never", 0), ("acme/b", 25), ("acme/c", 5)];
    let table = table().split("chance", targets).sticky_split("sticky", targets).build().unwrap();
    let all = [
        shares(&table, "chance", |_| None),
        // Without `sticky` a user has no influence.
        shares(&table, "chance", |_| Some("ada".into())),
        // And nobody in particular is not one user.
        shares(&table, "sticky", |_| None),
        shares(&table, "sticky", |n| Some(format!("user-{n}"))),
        shares(&table, "sticky", |n| Some(format!("{n:032x}"))),
    ];
    for shares in all {
        assert_eq!(shares.len(), 3, "{shares:?}");
        for (model, weight) in [("acme/a", 70_000), ("acme/b", 25_000), ("acme/c", 5_000)] {
            // Ten standard deviations.
            assert!(shares[model].abs_diff(weight) < 1_500, "{model}: {shares:?}");
        }
    }
}

#[test]
fn the_same_user_gets_the_same_target_in_every_process() {
    let table = table().sticky_split("sticky", [("acme/a", 1), ("acme/b", 1)]).build().unwrap();
    let of = |user: &str| table.resolve(&"sticky".into(), None, Some(user)).to_string();
    for user in ["ada", "bob", "eve", ""] {
        fastrand::seed(1);
        let first = of(user);
        fastrand::seed(2);
        assert!((0..50).all(|_| of(user) == first), "{user}");
    }
    // Written down once: a release that changes these moves users between models.
    let all: String =
        (0..32).map(|n| if of(&format!("user-{n}")).ends_with('a') { 'a' } else { 'b' }).collect();
    assert_eq!(all, "abbabbbabbbbabaaabbbabababbbaaab");
}

#[test]
fn sticky_splits_of_different_names_are_independent() {
    let halves = [("acme/a", 1), ("acme/b", 1)];
    let table = table().sticky_split("one", halves).sticky_split("two", halves).build().unwrap();
    let of = |name: &str, user: &str| table.resolve(&name.into(), None, Some(user));
    let users = (0..10_000).map(|n| format!("user-{n}"));
    let same = users.filter(|user| of("one", user) == of("two", user)).count();
    assert!(same.abs_diff(5_000) < 500, "{same} of 10000");
}

// ===== what is wrong =====

#[test]
fn seed_02_cycles_are_found_wherever_they_lie() {
    let cyclic = [
        table().alias("a", "b").alias("b", "a"),
        table().alias("start", "a").alias("a", "b").alias("b", "c").alias("c", "a"),
        table().split("a", [("ok/x", 99), ("b", 1)]).alias("b", "a"),
        table().alias("g*", "h1").alias("h1", "h2").alias("h2", "h1"),
        table().alias("a", "b").for_tenant("bank").alias("b", "a"),
        table().for_tenant("bank").alias("b", "c").alias("c", "b").for_everybody().alias("b", "ok/x"),
    ];
    for builder in cyclic {
        let problems = problems(builder.clone());
        let cycle = problems.iter().find_map(|p| match p {
            AliasProblem::Cycle { path } => Some(path),
            _ => None,
        });
        let path = cycle.unwrap_or_else(|| panic!("{builder:?}: {problems:?}"));
        assert!(path.len() > 2 && path.first() == path.last(), "{path:?}");
    }
    // What is never chosen leads nowhere.
    table().split("a", [("ok/x", 1), ("b", 0)]).alias("b", "a").build().unwrap();
    // One that only others have is none for a tenant with another meaning, and the other way round.
    let tenants =
        table().alias("a", "b").for_tenant("bank").alias("b", "ok/x").for_tenant("shop").alias("a", "ok/y");
    tenants.build().unwrap();
}

#[test]
fn a_name_defined_twice_is_shadowed_and_a_tenants_own_is_not() {
    let twice = table().alias("a", "ok/x").alias("a", "ok/y");
    assert_eq!(problems(twice), [AliasProblem::Shadowed { name: "a".into() }]);
    let globs = table().alias("a*b", "ok/x").alias("a**b", "ok/y");
    assert_eq!(problems(globs), [AliasProblem::Shadowed { name: "a**b".into() }]);
    let own = table().for_tenant("t").alias("a", "ok/x").split("a", [("ok/y", 1)]);
    assert_eq!(problems(own), [AliasProblem::Shadowed { name: "a".into() }]);
    let apart =
        table().alias("a", "ok/x").for_tenant("t").alias("a", "ok/x").for_tenant("u").alias("a", "ok/x");
    apart.build().unwrap();
}

#[test]
fn empty_names_targets_and_weights_are_refused() {
    for (builder, name) in [
        (table().alias("", "ok/x"), ""),
        (table().alias(" \t", "ok/x"), " \t"),
        (table().alias("a", ""), "a"),
        (table().alias("a", "  "), "a"),
        (table().split::<&str>("a", []), "a"),
        (table().split("a", [("ok/x", 0), ("ok/y", 0)]), "a"),
        (table().sticky_split("a", [("ok/x", 1), ("", 1)]), "a"),
    ] {
        assert_eq!(problems(builder), [AliasProblem::Empty { name: name.into() }]);
    }
}

#[test]
fn every_name_that_leads_to_no_provider_is_told() {
    let providers = || ProviderNames::new(["openai", "acme"]);
    let dangling =
        |name: &str, target: &str| AliasProblem::Dangling { name: name.into(), target: target.into() };
    let builder = table()
        .alias("good", "openai/gpt")
        .alias("bad", "gone/gpt")
        .alias("through", "bad")
        .alias("also", "gone/gpt")
        .alias("bare", "gpt")
        .alias("half", "openai/")
        .split("split", [("acme/x", 1), ("gone/y", 1)])
        .alias("glob-*", "gone/z")
        .for_tenant("bank")
        .alias("own", "bank/x")
        .alias("own-self", "own-self")
        .providers(providers());
    let found = problems(builder);
    for expected in [
        dangling("bad", "gone/gpt"),
        dangling("also", "gone/gpt"),
        dangling("bare", "gpt"),
        dangling("half", "openai/"),
        dangling("split", "gone/y"),
        dangling("glob-*", "gone/z"),
        dangling("own", "bank/x"),
        dangling("own-self", "own-self"),
    ] {
        assert!(found.contains(&expected), "{expected:?} is missing in {found:?}");
    }
    assert!(found.iter().all(|p| !matches!(p, AliasProblem::Dangling { name, .. } if *name == "good")));

    let one = table().alias("bare", "gpt").providers(ProviderNames::new(["openai"]));
    one.build().unwrap();
    let untold = table().alias("bare", "gpt").alias("bad", "gone/gpt");
    untold.build().unwrap();
}

fn chain(length: usize) -> AliasTableBuilder {
    let name = |n: usize| if n == length { "ok/end".to_owned() } else { format!("step-{n}") };
    (0..length).fold(table(), |table, n| table.alias(name(n), name(n + 1)))
}

#[test]
fn the_longest_chain_that_is_allowed_is_followed_to_its_end() {
    let table = chain(32).build().unwrap();
    assert!((0..32).all(|n| resolve(&table, &format!("step-{n}")) == "ok/end"));
    // The order in which names are visited differs from table to table.
    for _ in 0..50 {
        assert_eq!(problems(chain(33)), [AliasProblem::TooLong { name: "step-0".into() }]);
    }
}

#[test]
fn a_chain_too_long_is_found_wherever_the_check_begins() {
    for _ in 0..50 {
        let found = problems(chain(60));
        for n in 0..28 {
            let expected = AliasProblem::TooLong { name: format!("step-{n}").into() };
            assert!(found.contains(&expected), "{expected:?} is missing in {found:?}");
        }
        assert_eq!(found.len(), 28);
    }
}

#[test]
fn the_check_of_the_longest_chain_needs_little_of_the_stack() {
    let check = || problems(chain(5_000)).len();
    let checked = std::thread::Builder::new().stack_size(512 << 10).spawn(check).unwrap().join().unwrap();
    assert!(checked > 0);
}

#[test]
fn all_problems_are_told_at_once_and_in_the_same_order_each_time() {
    let build = || {
        let letters = ["a", "b", "c", "d", "e"];
        let builder = letters.iter().fold(table(), |t, l| t.alias(*l, format!("gone/{l}")));
        builder
            .alias("x", "y")
            .alias("y", "z")
            .alias("z", "x")
            .alias("", "ok/x")
            .for_tenant("one")
            .alias("own", "gone/own")
            .for_tenant("two")
            .alias("own", "gone/own-too")
            .providers(ProviderNames::new(["ok"]))
    };
    let first = build().build().unwrap_err();
    assert_eq!(first.problems().len(), 9, "{first}");
    for _ in 0..20 {
        assert_eq!(build().build().unwrap_err().to_string(), first.to_string());
    }
}

// ===== what people read =====

#[test]
fn explain_prints_each_step() {
    let table = table()
        .alias("fast", "mini")
        .alias("mini", "openai/gpt-4o-mini")
        .split("balanced", [("fast", 9), ("anthropic/haiku", 1)])
        .alias("gpt-*", "fast")
        .for_tenant("bank")
        .alias("mini", "bank/private")
        .alias("g*", "bank/large")
        .build()
        .unwrap();
    assert_eq!(table.explain("fast"), "fast\n  -> mini\n    -> openai/gpt-4o-mini");
    assert_eq!(table.explain_to("fast", Some("bank")), "fast\n  -> mini\n    -> bank/private");
    assert_eq!(
        table.explain("balanced"),
        "balanced\n  -> fast (9 of 10)\n    -> mini\n      -> openai/gpt-4o-mini\n  -> anthropic/haiku (1 of 10)"
    );
    assert_eq!(table.explain("unheard/of"), "unheard/of");
    assert_eq!(
        table.to_string(),
        "balanced\n  -> fast (9 of 10)\n    -> mini\n      -> openai/gpt-4o-mini\n  -> anthropic/haiku (1 of 10)\n\
         fast\n  -> mini\n    -> openai/gpt-4o-mini\n\
         mini\n  -> openai/gpt-4o-mini\n\
         gpt-*\n  -> fast\n    -> mini\n      -> openai/gpt-4o-mini\n\
         for tenant bank:\n  mini\n    -> bank/private\n  g*\n    -> bank/large\n"
    );
}

#[test]
fn an_error_names_the_entry() {
    let builder = table()
        .alias("a", "b")
        .alias("b", "a")
        .alias("twice", "ok/x")
        .alias("twice", "ok/y")
        .alias("", "ok/z");
    let said = builder.providers(ProviderNames::new(["ok"])).build().unwrap_err().to_string();
    for part in ["a -> b -> a", "twice is defined twice", "alias \"\" has an empty name"] {
        assert!(said.contains(part), "{said}");
    }
    let said =
        table().alias("a", "gone/x").providers(ProviderNames::new(["ok"])).build().unwrap_err().to_string();
    assert!(said.contains("alias a leads to gone/x"), "{said}");
}

#[test]
fn globs_are_for_what_callers_say_and_a_catch_all_for_what_nobody_serves() {
    let table = table()
        .providers(ProviderNames::new(["acme", "other"]))
        .alias("*", "default")
        .alias("default", "acme/y")
        .alias("fast", "acme/x")
        .alias("other/*", "acme/z")
        .build()
        .unwrap();
    assert_eq!(resolve(&table, "unheard-of"), "acme/y");
    assert_eq!(resolve(&table, "fast"), "acme/x", "the target is not led on by the catch-all");
    assert_eq!(resolve(&table, "acme/served"), "acme/served", "nor is a name that somebody serves");
    assert_eq!(resolve(&table, "nobody/served"), "acme/y");
    assert_eq!(resolve(&table, "other/served"), "acme/z", "but a narrower glob has it");
}

// ===== laws =====

proptest! {
    /// Whatever was built can be resolved, exact names lead on from no end, and what was refused has a cycle.
    #[test]
    fn a_table_that_builds_resolves_to_a_fixed_point(
        entries in prop::collection::btree_map("(p/)?[abc]{1,2}\\*?|\\*", prop::collection::vec("(p/)?[abc]{1,2}", 1..3), 0..8),
        name in "(p/)?[abc]{1,2}",
        is_told in any::<bool>(),
        user in prop::option::of("[a-z]{1,3}"),
    ) {
        let begin = if is_told { table().providers(ProviderNames::new(["p"])) } else { table() };
        let builder = entries.iter().fold(begin, |t, (name, targets)| {
            t.sticky_split(&**name, targets.iter().map(|target| (&**target, 1)))
        });
        match builder.build() {
            Ok(table) => {
                let end = table.resolve(&name.as_str().into(), None, user.as_deref());
                let globs = entries.keys().filter_map(|name| name.strip_suffix('*'));
                let glob = globs.into_iter().any(|literal| end.starts_with(literal));
                // Without a user a split is decided anew; with one, and over no self-target, an end is an end.
                if user.is_some() && !glob {
                    prop_assert_eq!(&table.resolve(&end, None, user.as_deref()), &end);
                    let bare = end.strip_prefix("p/").filter(|bare| is_told && !entries.contains_key(*bare));
                    if let Some(bare) = bare.filter(|bare| !entries.keys().any(|name| name.strip_suffix('*').is_some_and(|literal| bare.starts_with(literal)))) {
                        prop_assert_eq!(&table.resolve(&bare.into(), None, user.as_deref()), &end);
                    }
                }
                prop_assert!(table.ends(&name.as_str().into()).contains(&end));
            }
            Err(error) => {
                for problem in error.problems() {
                    let AliasProblem::Cycle { path } = problem else { panic!("{problem}") };
                    for step in path.windows(2) {
                        let leads = |(name, targets): (&String, &Vec<String>)| {
                            let glob = name.strip_suffix('*');
                            let named = step[0] == **name || glob.is_some_and(|literal| step[0].starts_with(literal));
                            named && targets.iter().any(|target| step[1] == **target)
                        };
                        let is_bare = is_told && step[1].strip_prefix("p/") == Some(step[0].as_str());
                        prop_assert!(is_bare || entries.iter().any(leads), "{} in {:?}", problem, entries);
                    }
                }
            }
        }
    }
}
