//! What a stack says of itself.

use super::*;

#[test]
fn a_stack_says_what_it_is_and_shows_no_secret() {
    let text = "usage.enabled = false\nquota.store = \"memory\"\ncache = { secret = \"0123456789abcdef0123456789abcdef\" }\n\
         aliases.fast = [{ model = \"cloud/a\", weight = 3 }, { model = \"echo/b\" }]\n\
         fallbacks.\"cloud/a\" = [\"echo/b\"]\n\
         [[keys]]\nkey = \"sk-client\"\nuser = \"ada\"\n\
         [providers.cloud]\nbase_url = \"https://llm.example/v1?key=sk-query\"\napi_key = \"sk-upstream\"\nheaders = { x-own = \"sk-header\" }\n\
         models = [{ name = \"a\", price = { input = \"0.15\", output = \"0.60\" } }]\n\
         [providers.echo]\nkind = \"echo\"\n\
         [departments.r]\nmodels = [\"echo/*\"]\nday_cost = \"5\"\n";
    let config = Config::parse(text).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("https://llm.example/v1"), "{shown}");
    let description = StackBuilder::new(config).describe().unwrap();
    let said = description.to_string();
    let at = |word: &str| said.find(word).unwrap_or_else(|| panic!("{word}: {said}"));
    let order = [
        "concurrency",
        "alias",
        "fallback",
        "access",
        "cache",
        "quota",
        "providers",
        "https://llm.example/v1, with a key",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{said}");
    let explained = description.explain("fast").unwrap();
    for line in [
        "fast\n  -> cloud/a (3 of 4)\n  -> echo/b (1 of 4)",
        "cloud/a: asked of cloud at https://llm.example/v1 as a",
        "  price: input 0.15, output 0.6 dollars per million tokens, from configuration",
        "  after a failure: echo/b",
        "  not for: r",
        "echo/b: asked of echo, which echoes as b",
        "  price: none",
    ] {
        assert!(explained.contains(line), "{line}\n{explained}");
    }
    assert!(description.explain("gone/x").is_none());
    let limits =
        "head within 30s, content within 1m, silence up to 30s, a whole answer within 5m, 10m in all";
    assert!(said.contains(limits), "{said}");
    assert!(said.contains("at most 8 attempts within 2m, or 10m for a whole answer"), "{said}");
    for text in [said, explained, shown, format!("{description:?}")] {
        assert!(!text.contains("sk-") && !text.contains("0123456789abcdef"), "{text}");
    }
}

#[test]
fn what_the_program_gives_is_told_in_place_of_what_it_replaces() {
    let text = "identity = \"host\"\nusage = { path = \"u.db\", hold_last_byte = \"2s\" }\nquota.path = \"q.db\"\n\
         departments.a.day_requests = 1\ncache.knowledge_bases.open.cache = true\n\
         providers.cloud = { base_url = \"https://llm.example/v1\", api_key = \"sk-upstream\" }\n";
    let builder = StackBuilder::new(Config::parse(text).unwrap());
    let said = builder.describe().unwrap().to_string();
    for configured in
        ["u.db", "q.db", "bytes in memory", "knowledge bases open", "https://llm.example/v1, with a key"]
    {
        assert!(said.contains(configured), "{configured}: {said}");
    }
    let builder = builder
        .with_usage_sink(MemorySink::new(1))
        .with_quota_store(MemoryStore::new())
        .with_cache_store(MokaStore::new(1 << 20))
        .with_kb_settings(|_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed))
        .with_provider("cloud", Echo::new());
    let description = builder.describe().unwrap();
    let said = description.to_string();
    for replaced in ["u.db", "q.db", "in memory", "knowledge bases open", "llm.example", "with a key"] {
        assert!(!said.contains(replaced), "{replaced}: {said}");
    }
    for own in [
        "usage          into a sink of the program's own, the last byte waits for its record, up to 2s",
        "1 departments are limited, counted in a store of the program's own",
        "cache          in a store of the program's own, for 1h",
        ", knowledge bases as the program says",
        "    cloud, the program's own; head within",
    ] {
        assert!(said.contains(own), "{own}: {said}");
    }
    assert!(description.explain("cloud/a").unwrap().contains("asked of cloud, the program's own as a"));
}

#[test]
fn what_becomes_of_a_model_without_a_price_is_told() {
    let told = |model: &str, config: &str| {
        let text = format!(
            "usage.enabled = false\nquota.store = \"memory\"\nkeys = [{{ key = \"k\", user = \"u\", departments = [\"r\", \"s\"] }}]\n\
             providers.echo = {{ kind = \"echo\", prices.half.input = \"1\" }}\n{config}"
        );
        let text = match config.contains("recorded") {
            true => text.replace("usage.enabled = false\n", ""),
            false => text,
        };
        let description = StackBuilder::new(Config::parse(&text).unwrap()).describe().unwrap();
        let explained = description.explain(model).unwrap();
        let line = explained.lines().find_map(|line| line.strip_prefix("  price: "));
        line.unwrap_or_else(|| panic!("{explained}")).to_owned()
    };
    let costly = "departments.r.day_cost = \"5\"\ndepartments.s.day_tokens = 5\n";
    let all = "departments.\"*\".month_cost = \"5\"\n";
    let free = "quota.unpriced = \"free\"\n";
    let assumed =
        "quota.unpriced = \"assume\"\nquota.assume_input_cost = \"1\"\nquota.assume_output_cost = \"2\"\n";
    for (config, line) in [
        (String::new(), "none"),
        ("# recorded".to_owned(), "none, it is recorded as unpriced"),
        (costly.to_owned(), "none, and where money is limited (r) it is refused"),
        (
            format!("{costly}# recorded"),
            "none, it is recorded as unpriced, and where money is limited (r) it is refused",
        ),
        (format!("{costly}{all}"), "none, and where money is limited (r, all others) it is refused"),
        (format!("{costly}departments.r.models = [\"echo/x\"]\n"), "none"),
        (format!("{costly}{free}"), "none, and where money is limited (r) it is free"),
        (format!("{costly}{assumed}"), "none, and where money is limited (r) it is priced as assumed"),
        (format!("{costly}quota.mode = \"shadow\"\n"), "none"),
        ("quota.policies = \"p.db\"\n".to_owned(), "none, and where money is limited it is refused"),
    ] {
        assert_eq!(told("echo/m", &config), line, "{config}");
    }
    assert_eq!(
        told("echo/half", costly),
        "input 1 dollars per million tokens, from configuration; of the rest none, and where money is limited (r) it is refused"
    );
}

#[test]
fn aliases_of_tenants_and_patterns_are_told_too() {
    let text =
        "usage.enabled = false\nproviders.echo.kind = \"echo\"\ntenants.bank.aliases.fast = \"echo/b\"\n";
    let description = |text: &str| StackBuilder::new(Config::parse(text).unwrap()).describe().unwrap();
    let said = description(text).to_string();
    assert!(said.ends_with("aliases:\n  for tenant bank:\n    fast\n      -> echo/b\n"), "{said}");
    let said = description(&format!("{text}aliases.\"gpt-*\" = \"echo/g\"\n"));
    assert!(said.to_string().contains("aliases:\n  gpt-*\n    -> echo/g\n  for tenant bank:\n"), "{said}");
    assert!(
        said.explain_to("fast", Some("bank"))
            .unwrap()
            .starts_with("fast\n  -> echo/b\necho/b: asked of echo")
    );
}

#[test]
fn handles_and_callers_show_nobody() {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Handle>();
    is_shared::<BoxService>();
    is_shared::<llm_layers::stack::Caller>();
}
