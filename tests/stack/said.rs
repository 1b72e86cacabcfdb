//! What a stack says of itself.

use super::*;

#[test]
fn a_stack_says_what_it_is_and_shows_no_secret() {
    let text = "usage.enabled = false\nquota.store = \"memory\"\ncache = { secret = \"0123456789abcdef0123456789abcdef\" }\n\
         aliases.fast = [{ model = \"cloud/a\", weight = 3 }, { model = \"echo/b\" }]\n\
         fallbacks.\"cloud/a\" = [\"echo/b\"]\n\
         [[keys]]\nkey = \"sk-client\"\nuser = \"ada\"\n\
         [providers.cloud]\nbase_url = \"https://llm.example/v1\"\napi_key = \"sk-upstream\"\nheaders = { x-own = \"sk-header\" }\n\
         models = [{ name = \"a\", price = { input = \"0.15\", output = \"0.60\" } }]\n\
         [providers.echo]\nkind = \"echo\"\n\
         [departments.r]\nmodels = [\"echo/*\"]\nday_cost = \"5\"\n";
    let description = StackBuilder::new(Config::parse(text).unwrap()).describe().unwrap();
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
    for text in [said, explained, format!("{description:?}")] {
        assert!(!text.contains("sk-") && !text.contains("0123456789abcdef"), "{text}");
    }
}

#[test]
fn handles_and_callers_show_nobody() {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Handle>();
    is_shared::<BoxService>();
    is_shared::<llm_layers::stack::Caller>();
}
