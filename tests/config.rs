//! A configuration is read as a whole, checked as a whole, and all that is wrong with it is told at once.

use llm_layers::config::{Alias, Config, ConfigError, Dollars, Kind, Secret, Time, schema};
use proptest::prelude::*;
use serde_json::Value;
use std::{fs, time::Duration};

fn env(name: &str) -> Option<String> {
    match name {
        "SET" => Some("value".into()),
        "REDIS" => Some("redis://:horse@h:1,redis://h:2".into()),
        "CACHE_SECRET" => Some("0123456789abcdef0123456789abcdef".into()),
        "TEAM_A_KEY" | "OPENAI_API_KEY" | "OPENAI_PROJECT" | "ANTHROPIC_API_KEY" | "APP_KEY" => {
            Some(name.to_owned())
        }
        _ => None,
    }
}

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::parse_with(text, &env)
}

/// `entry: what` of each problem.
fn problems(text: &str) -> Vec<String> {
    let error = read(text).expect_err(text);
    error.problems().iter().map(|problem| format!("{}: {}", problem.entry, problem.what)).collect()
}

/// What is wrong with these lines, which stand before a provider that is right.
fn wrong(text: &str) -> Vec<String> {
    problems(&format!("{text}\n{ECHO}"))
}

const ECHO: &str = "[providers.echo]\nkind = \"echo\"\n";
const KEY: &str = "[[keys]]\nkey = \"k\"\nuser = \"ada\"\n";

#[test]
fn seed_27_the_sample_with_every_entry_is_right() {
    let config =
        read(include_str!("../examples/gateway/gateway.toml")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.keys.as_ref().unwrap()[0].key, Some(Secret::Env("TEAM_A_KEY".into())));
    assert_eq!(config.providers["many"].deployments.as_ref().unwrap().len(), 2);
    assert_eq!(config.providers["echo"].kind, Kind::Echo);
    assert_eq!(config.departments["r-and-d"].month_cost, Some(Dollars("500.50".parse().unwrap())));
    assert_eq!(config.aliases["fast"], Alias::Model("openai/gpt-4o-mini".into()));
    assert!(!format!("{config:?}").contains("literal"));
}

#[test]
fn the_schema_that_is_checked_in_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json");
    let current = schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(path, serde_json::to_string_pretty(&current).unwrap() + "\n").unwrap();
    }
    let stored: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(stored == current, "UPDATE_SCHEMA=1 cargo test --all-features --test config writes it anew");
}

/// The entries as a page for people: each table of the file with its fields.
fn reference(schema: &Value) -> String {
    let mut page = String::new();
    let mut todo = vec![("the file itself".to_owned(), schema)];
    let mut told = Vec::new();
    while !todo.is_empty() {
        let (title, table) = todo.remove(0);
        let about = table["description"].as_str().unwrap_or_default().replace('\n', " ");
        page += &format!(
            "\n### {title}\n\n{}",
            if title == "the file itself" { String::new() } else { about + "\n\n" }
        );
        page += "| entry | | unless told |\n|---|---|---|\n";
        for (name, field) in table["properties"].as_object().into_iter().flatten() {
            let about = field["description"].as_str().unwrap_or_default().replace('\n', " ");
            let required =
                table["required"].as_array().is_some_and(|all| all.contains(&name.as_str().into()));
            let default = match &field["default"] {
                Value::Null if required => "must be told".to_owned(),
                Value::Null | Value::Object(_) | Value::Array(_) => String::new(),
                value => format!("`{value}`"),
            };
            let words = words(schema, field);
            page += &format!("| `{name}` | {about}{words} | {default} |\n");
            for (path, within) in tables(schema, field) {
                let key = within as *const Value;
                let title = match title.as_str() {
                    "the file itself" => format!("{name}{path}"),
                    title => format!("{title}.{name}{path}"),
                };
                if !told.contains(&key) {
                    told.push(key);
                    todo.push((title, within));
                }
            }
        }
    }
    page
}

fn resolve<'a>(schema: &'a Value, field: &'a Value) -> &'a Value {
    let name = field["$ref"].as_str().map(|name| name.trim_start_matches('#'));
    name.and_then(|name| schema.pointer(name)).unwrap_or(field)
}

/// The words that a field may be told, with what they mean.
fn words(schema: &Value, field: &Value) -> String {
    let all = resolve(schema, field)["oneOf"].as_array().into_iter().flatten();
    let all: Vec<_> = all
        .filter_map(|one| {
            Some(format!("`{}`: {}", one["const"], one["description"].as_str()?.replace('\n', " ")))
        })
        .collect();
    if all.is_empty() { String::new() } else { format!(" {}", all.join(" ")) }
}

/// The tables within a field, and how one comes to them.
fn tables<'a>(schema: &'a Value, field: &'a Value) -> Vec<(String, &'a Value)> {
    let field = resolve(schema, field);
    if field["properties"].as_object().is_some_and(|fields| !fields.contains_key("env")) {
        return vec![(String::new(), field)];
    }
    let mut all = Vec::new();
    for any in field["anyOf"].as_array().into_iter().flatten() {
        all.extend(tables(schema, any));
    }
    if field["items"].is_object() {
        all.extend(
            tables(schema, &field["items"]).into_iter().map(|(path, table)| (format!("[]{path}"), table)),
        );
    }
    if field["additionalProperties"].is_object() {
        let within = tables(schema, &field["additionalProperties"]);
        all.extend(within.into_iter().map(|(path, table)| (format!(".NAME{path}"), table)));
    }
    all
}

#[test]
fn the_page_about_every_entry_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = fs::read_to_string(path).unwrap();
    let (head, entries) = page.split_once("<!-- entries -->\n").unwrap();
    let current = reference(&schema());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(path, format!("{head}<!-- entries -->\n{current}")).unwrap();
    } else {
        // Another crate of a program may change the order of members.
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert!(
            sorted(entries) == sorted(&current),
            "UPDATE_SCHEMA=1 cargo test --all-features --test config writes it anew"
        );
    }
}

#[test]
fn every_entry_of_the_schema_says_what_it_does() {
    fn look(schema: &serde_json::Value, path: &str, silent: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if field["description"].as_str().is_none_or(str::is_empty) {
                silent.push(path.clone());
            }
            look(field, &path, silent);
        }
        for (name, part) in schema["$defs"].as_object().into_iter().flatten() {
            look(part, name, silent);
        }
    }
    let mut silent = Vec::new();
    look(&schema(), "", &mut silent);
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn a_key_that_stands_among_names_of_models_is_not_shown() {
    for table in ["aliases", "tenants.t.aliases", "fallbacks"] {
        let value = if table == "fallbacks" { "[\"sk-0123456789\"]" } else { "\"sk-0123456789\"" };
        let two =
            "[providers.up]\nbase_url = \"http://h/v1\"\n[providers.other]\nbase_url = \"http://h/v1\"\n";
        let error = read(&format!("{two}[{table}]\n\"up/a\" = {value}\n")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sk-0"), "{error}");
        assert!(error.to_string().contains("up/a"), "{error}");
    }
}

#[test]
fn all_bodies_together_have_room_for_the_largest() {
    let server = |all: u64| {
        format!(
            "[server]\nmax_body_bytes = 1000\nmax_buffered_bytes = {all}\n[providers.a]\nkind = \"echo\"\n"
        )
    };
    assert!(read(&server(1000)).is_ok());
    let shown = read(&server(999)).unwrap_err().to_string();
    assert!(shown.contains("line 3: server.max_buffered_bytes: is less than max_body_bytes"), "{shown}");
}

#[test]
fn seed_27_all_problems_are_told_at_once_each_with_its_entry_and_its_line() {
    let text = r#"lisen = "x"
listen = 80
[server]
max_body_bytes = 0
max_wait = "1 s"
keepalive = "1s"
[[keys]]
key = "same"
user = "a"
[[keys]]
key = "same"
[[keys]]
key = { env = "UNSET" }
user = "c"
role = "x"
[providers.a]
kind = "coehre"
base_url = ""
[providers.b]
kind = "echo"
base_url = "http://x"
[providers.c]
api_key = 123456789
deployments = [{ base_url = "ftp://x", "base-url" = "y" }]
[providers."d/e"]
kind = "echo"
[providers.f]
base_url = "http://u:p@x/"
[aliases]
gone = "nowhere/x"
loop = "loop2"
loop2 = "loop"
split = [{ weight = 1 }]
[fallbacks]
"nowhere/x" = ["b/x"]
"b/x" = 7
"b/y" = ["gone/z"]
[retry]
retries = -1
[timeouts]
head = "0s"
tail = "1s"
[quota]
redis = "http://x"
"#;
    let error = read(text).unwrap_err();
    let shown = error.to_string();
    for line in [
        "line 1: lisen: is unknown",
        "line 2: listen: must be an address such as",
        "line 4: server.max_body_bytes: must be a whole number, at least 1",
        "line 5: server.max_wait: must be a time such as",
        "line 6: server.keepalive: is unknown; did you mean \"keep_alive\"?",
        "line 10: keys[1].user: is missing",
        "line 11: keys[1].key: is the same as that of keys[0]",
        "line 13: keys[2].key: the environment variable \"UNSET\" is not set",
        "line 15: keys[2].role: is unknown",
        "line 17: providers.a.kind: must be \"openai\", \"anthropic\", \"gemini\"",
        "line 18: providers.a.base_url: must be a text that is not empty",
        "line 21: providers.b.base_url: is for a provider that is a server",
        "line 23: providers.c.api_key: must be a text that is not empty or { env = … } or { file = … }",
        "line 24: providers.c.deployments[0].base-url: is unknown",
        "line 24: providers.c.deployments[0].base_url: the base URL cannot be used",
        "line 25: providers.\"d/e\": the name must not be empty or have a slash in it",
        "line 28: providers.f.base_url: the base URL cannot be used",
        "line 30: aliases.gone: leads to nowhere/x, which no provider serves",
        "line 31: aliases.loop: leads in a circle: loop -> loop2 -> loop",
        "line 33: aliases.split[0].model: is missing",
        "line 35: fallbacks.\"nowhere/x\": no provider serves it",
        "line 36: fallbacks.\"b/x\": must be a list",
        "line 37: fallbacks.\"b/y\": gone/z leads to no provider",
        "line 39: retry.retries: must be a whole number from 0 to 100",
        "line 41: timeouts.head: must be a time such as",
        "line 42: timeouts.tail: is unknown",
        "line 44: quota.redis: ",
    ] {
        assert!(shown.lines().any(|shown| shown.starts_with(line)), "{line}\n{shown}");
    }
    assert_eq!(shown.lines().count(), 27, "{shown}");
    assert!(!shown.contains("123456789") && !shown.contains("u:p"), "{shown}");
}

#[test]
fn what_follows_from_a_problem_is_no_problem_of_its_own() {
    // The alias leads nowhere; that the chain leads to the alias is right.
    let told = wrong("[aliases]\na = \"gone/x\"\n[fallbacks]\n\"echo/x\" = [\"a\"]\n");
    assert_eq!(told, ["aliases.a: leads to gone/x, which no provider serves"]);
    // The provider is wrong, and it is one.
    let told = problems("[providers.a]\nbase_url = 7\n[aliases]\nx = \"a/x\"\n");
    assert_eq!(told, ["providers.a.base_url: must be a text that is not empty"]);
}

#[test]
fn what_only_openais_dialect_has_is_for_its_providers() {
    let own = "output_member = \"max_tokens\"\nstream_usage = false\nreturned_thoughts = true\n";
    for kind in ["anthropic", "echo"] {
        let told = wrong(&format!("[providers.a]\nkind = {kind:?}\n{own}"));
        let expected = ["output_member", "stream_usage", "returned_thoughts"];
        assert_eq!(told, expected.map(|name| format!("providers.a.{name}: is for kind = \"openai\"")));
    }
    read(&format!("{ECHO}[providers.a]\nbase_url = \"http://x\"\n{own}")).unwrap();
}

#[test]
fn a_file_has_a_name() {
    for (text, entry) in [
        ("[usage]\npath = \"\"\n", "usage.path"),
        ("[usage]\nredis = \"redis://h\"\noutbox = \" \"\n", "usage.outbox"),
        ("[quota]\npath = \"\"\n[departments.a]\nday_requests = 1\n", "quota.path"),
        ("[quota]\npolicies = \"\\t\"\n", "quota.policies"),
    ] {
        assert_eq!(wrong(&format!("{KEY}{text}")), [format!("{entry}: must be a text that is not empty")]);
    }
}

#[test]
fn names_that_are_nearly_right_are_offered() {
    for (text, meant) in [
        ("[tiemouts]\n", "timeouts"),
        ("[timeouts]\nfrist_content = \"1s\"\n", "first_content"),
        ("[usage]\ndurability = \"kil\"\n", "kill"),
        ("[aliases]\na = \"ecoh/x\"\n", "echo/x"),
        ("[aliases]\nfast = \"echo/x\"\nb = \"fats\"\n[providers.two]\nkind = \"echo\"\n", "fast"),
        (
            "[[keys]]\nkey = \"k\"\nuser = \"u\"\ndepartments = [\"resarch\"]\n[departments.research]\nday_requests = 1\n",
            "research",
        ),
    ] {
        let told = wrong(text);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].ends_with(&format!("did you mean {meant:?}?")), "{told:?}");
    }
    let told = wrong("[server]\nquux = 1\n");
    assert_eq!(told, ["server.quux: is unknown"]);
}

#[test]
fn what_is_no_toml_at_all_is_told_in_one_sentence() {
    for (text, line, what) in [
        ("model_list:\n  - model_name: gpt\n    litellm_params:\n      model: x\n", 1, "YAML"),
        ("---\n\n# a list\n- one\n- two\n", 4, "YAML"),
        ("master-key: sk-secret\n", 1, "YAML"),
        ("{\n  \"listen\": \"127.0.0.1:1\"\n}\n", 1, "JSON"),
    ] {
        let error = read(text).unwrap_err();
        let expected = format!("line {line}: this looks like {what}, and a configuration is TOML");
        assert_eq!(error.to_string(), expected);
    }
    // What is TOML but for a slip is told where that is.
    for text in ["listen = \"127.0.0.1:80\nidentity: \"keys\"\n", "[server\na: b\n", "\"a:b\" =\n"] {
        let error = read(text).unwrap_err().to_string();
        assert!(!error.contains("looks like") && error.contains("line 1"), "{error}");
    }
}

#[test]
fn contradictions_are_problems() {
    let file = "[usage]\npath = \"x.db\"\n";
    for (text, entry) in [
        ("[cache]\n".to_owned(), "cache: nothing would be kept"),
        ("[departments.a]\nday_requests = 1\n".into(), "departments: nobody is in one"),
        ("[quota]\nmode = \"shadow\"\n".into(), "quota: nobody is in one"),
        (format!("{KEY}[cache]\nencrypt = true\n"), "cache.encrypt: is for"),
        (format!("{KEY}[cache]\nmax_flights = 7\n"), "cache.max_flights: is for"),
        (format!("{KEY}[cache]\nredis = \"redis://h\"\n"), "cache.secret: is missing"),
        (format!("{KEY}[cache]\nmax_entry_bytes = 100000\nmax_bytes = 70000\n"), "cache.max_entry_bytes: is more"),
        (format!("{KEY}{file}[quota]\npath = \"x.db\"\n"), "quota.path: is the file of [usage]"),
        (format!("{KEY}[quota]\npath = \"x\"\nstore = \"memory\"\n"), "quota.path: is for counters in sqlite"),
        (format!("{KEY}[quota]\nstore = \"redis\"\n"), "quota.redis: is missing"),
        (format!("{KEY}[quota]\nunpriced = \"assume\"\n"), "quota.unpriced: needs"),
        (format!("{KEY}[quota]\nassume_input_cost = \"1\"\n"), "quota.assume_input_cost: is for"),
        (format!("{KEY}[quota]\npolicies = \"p.db\"\n[departments.a]\n"), "quota.policies: holds the departments"),
        (format!("{KEY}[quota]\nshrink_to = 9\nmax_output_tokens = 8\n"), "quota.shrink_to: is more"),
        (format!("{KEY}[quota]\ntime_zone = \"Europe/Berlni\"\n"), "quota.time_zone: there is no time zone"),
        (format!("{KEY}hash = \"{}\"\n", "0".repeat(64)), "keys[0].hash: stands beside"),
        (format!("identity = \"host\"\n{KEY}"), "keys: are not asked for"),
        (format!("{KEY}departments = [\"*\"]\n"), "keys[0].departments[0]: \"*\" is not the name"),
        ("[usage]\noutbox = \"x\"\n".into(), "usage.outbox: is for"),
        ("[timeouts]\nhead = \"2s\"\ntotal = \"1s\"\n".into(), "timeouts.head: is longer"),
        ("[timeouts]\nwhole = \"2s\"\ntotal = \"1s\"\n".into(), "timeouts.whole: is longer"),
        ("[retry]\nbase = \"9s\"\n".into(), "retry.base: is longer"),
        ("[retry.budget]\nttl = \"999ms\"\n".into(), "retry.budget.ttl: must be from 1s to 60s"),
        ("[retry.budget]\nttl = \"2m\"\n".into(), "retry.budget.ttl: must be from 1s to 60s"),
        ("[retry.budget]\npercent = 10001\n".into(), "retry.budget.percent: must be a whole number from 0 to 10000"),
        ("[aliases]\na = \"echo/x\"\n[fallbacks]\na = [\"echo/y\"]\n".into(), "fallbacks.a: is never used"),
        ("[fallbacks]\n\"echo/y\" = [\"echo/y\"]\n".into(), "fallbacks.\"echo/y\": leads to the model itself"),
        ("[aliases]\na = [{ model = \"echo/x\", weight = 0 }]\n".into(), "aliases.a: the name or the target"),
        ("[tenants.t.aliases]\na = \"gone/x\"\n".into(), "tenants.t.aliases.a: leads to gone/x"),
        (format!("{KEY}[departments.a]\nmodels = [\"gone/*\"]\n"), "departments.a.models[0]: no provider serves it"),
        (
            format!("{KEY}[aliases]\nfast = \"echo/x\"\n[providers.b]\nkind = \"echo\"\n[departments.a]\nmodels = [\"fast\"]\n"),
            "departments.a.models[0]: is an alias; lists are of what aliases stand for: \"echo/x\"",
        ),
        (
            "[providers.p]\nbase_url = \"http://x\"\nmodels = [{ name = \"m\", price = { input = \"1\" } }]\nprices.m = { input = \"2\" }\n".into(),
            "providers.p.prices.m: stands beside",
        ),
        ("[providers.p]\nbase_url = \"http://x\"\nprices.m = {}\n".into(), "providers.p.prices.m: needs input"),
        ("[providers.p]\nbase_url = \"http://x\"\nheaders = { host = \"y\" }\n".into(), "providers.p.headers.host: is a header"),
        ("[providers.p]\nbase_url = \"http://x\"\nheaders = { Accept = \"y\" }\n".into(), "providers.p.headers.Accept: is a header"),
        (
            "[providers.p]\nbase_url = \"http://x\"\nheaders = { Accept-Encoding = \"y\" }\n".into(),
            "providers.p.headers.Accept-Encoding: is a header",
        ),
        (
            "[providers.p]\nbase_url = \"http://x\"\nheaders = { content-encoding = \"y\" }\n".into(),
            "providers.p.headers.content-encoding: is a header",
        ),
        ("[providers.p]\nbase_url = \"http://x\"\nheaders = { expect = \"y\" }\n".into(), "providers.p.headers.expect: is a header"),
        (
            "[providers.p]\nbase_url = \"http://x\"\nheaders = { X-Key = \"a\", x-key = \"b\", x-other = \"c\" }\n".into(),
            "providers.p.headers.x-key: is the same header as X-Key",
        ),
        (
            format!("{KEY}[cache.semantic]\nbase_url = \"http://x\"\nmodel = \"m\"\nheaders = {{ host = \"y\" }}\n"),
            "cache.semantic.headers.host: is a header",
        ),
        ("[providers.p]\nbase_url = \"http://x\"\nmodels = [\"a\", \"a\"]\n".into(), "providers.p.models[1]: is listed twice"),
        ("[prices]\nown = \"no/such.toml\"\n".into(), "prices.own: "),
    ] {
        let told = wrong(&text);
        assert_eq!(told.len(), 1, "{text}\n{told:#?}");
        assert!(told[0].starts_with(entry), "{text}\n{told:#?}");
    }
}

#[test]
fn a_list_that_would_forbid_what_it_names_is_a_problem_with_one_provider_too() {
    let listed = |models: &str| {
        format!(
            "{KEY}[aliases]\nfast = \"echo/x\"\n\"echo/old\" = \"echo/new\"\n[departments.a]\nmodels = [{models}]\n{ECHO}"
        )
    };
    for right in ["x", "echo/x", "echo/*", "*", "ec*", "*-mini", "echo/new", "e*/x"] {
        read(&listed(&format!("{right:?}"))).unwrap_or_else(|error| panic!("{right}: {error}"));
    }
    for (wrong, what) in [
        ("fast", "is an alias; lists are of what aliases stand for: \"echo/x\""),
        ("echo/old", "is an alias; lists are of what aliases stand for: \"echo/new\""),
        ("gpt-*", "no model can match it, for names begin with their provider; did you mean \"echo/gpt-*\"?"),
        ("gone/x", "no provider serves it"),
        ("echo/", "no provider serves it"),
    ] {
        let told = problems(&listed(&format!("{wrong:?}")));
        assert_eq!(told, [format!("departments.a.models[0]: {what}")]);
    }
}

#[test]
fn a_chain_may_stand_under_a_bare_name_if_there_is_one_provider() {
    read(&format!("[fallbacks]\nx = [\"y\"]\n{ECHO}")).unwrap();
    for (text, what) in [
        ("x = [\"x\"]", "fallbacks.x: x is the model itself"),
        ("x = [\"echo/x\"]", "fallbacks.x: leads to the model itself"),
        ("\"echo/x\" = [\"y\"]\nx = [\"z\"]", "fallbacks.x: is the same model as \"echo/x\""),
    ] {
        assert_eq!(wrong(&format!("[fallbacks]\n{text}\n")), [what]);
    }
}

#[test]
fn a_pattern_where_names_are_meant_is_a_problem() {
    let mut told = wrong(
        r#"
        [aliases]
        "a-*" = "echo/y"
        "b-*" = "echo/*"
        c = [{ model = "echo/x", weight = 1 }, { model = "echo/x*", weight = 1 }]
        d = "x*"
        [tenants.t.aliases]
        e = "echo/*"
        [fallbacks]
        "*" = ["echo/y"]
        "echo/*" = ["echo/y"]
        "echo/x" = ["echo/y", "p/*"]
        "echo/z" = { otherwise = ["echo/y"], timeout = ["p/a*"] }
        [providers.p]
        base_url = "http://x"
        models = ["m", { name = "a*", price = { input = "1" } }]
        prices."*" = { input = "1" }
        "#,
    );
    let what = "is not a pattern here: name each model";
    let mut expected: Vec<_> = [
        "aliases.\"b-*\": echo/*",
        "aliases.c: echo/x*",
        "aliases.d: a name",
        "fallbacks.\"*\":",
        "fallbacks.\"echo/*\":",
        "fallbacks.\"echo/x\": p/*",
        "fallbacks.\"echo/z\": p/a*",
        "providers.p.models[1].name:",
        "providers.p.prices.\"*\":",
        "tenants.t.aliases.e: echo/*",
    ]
    .map(|entry| format!("{entry} {what}"))
    .into();
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
}

#[test]
fn no_problem_shows_a_secret() {
    let secret = "sk-verysecret1";
    let texts = [
        format!("[[keys]]\nkey = \"{secret}\nuser = \"a\""),
        format!("[[keys]]\nkey = {secret}\nuser = \"a\"\n{ECHO}"),
        format!("[[keys]]\nkey = {{ env = \"{secret}\" }}\nuser = \"a\"\n{ECHO}"),
        format!("[[keys]]\nkey = {{ enw = \"{secret}\" }}\nuser = \"a\"\n{ECHO}"),
        format!("[[keys]]\nkey = [\"{secret}\"]\nuser = \"a\"\n{ECHO}"),
        format!("[[keys]]\nkey = \"{secret} \"\nuser = \"a\"\n{ECHO}"),
        format!("[[keys]]\nkey = \"x\"\nhash = \"{secret}\"\nuser = \"a\"\n{ECHO}"),
        format!("[[keys]]\nhash = \"{secret}\"\nuser = \"a\"\n{ECHO}"),
        format!("keys = \"{secret}\"\n{ECHO}"),
        format!("[providers.a]\nbase_url = \"https://user:{secret}@host/v1\""),
        format!("[providers.a]\nbase_url = \"{secret}\""),
        format!("[providers.a]\nkind = \"{secret}\""),
        format!("[providers.a]\nbase_url = \"http://x\"\nheaders = {{ x = \"{secret}\\n\" }}"),
        format!(
            "{KEY}[cache.semantic]\nbase_url = \"http://x\"\nmodel = \"m\"\nheaders = {{ x = \"{secret}\\n\" }}\n{ECHO}"
        ),
        format!("listen = \"{secret}\"\n{ECHO}"),
        format!("[usage]\nredis = \"http://:{secret}@h\"\n{ECHO}"),
        format!("{KEY}[departments.a]\nday_cost = \"{secret}\"\n{ECHO}"),
        format!("{KEY}[quota]\ntime_zone = \"{secret}\"\n{ECHO}"),
        format!("{KEY}[cache]\nsecret = \"{secret}\"\nredis = \"redis://h\"\n{ECHO}"),
    ];
    for text in texts {
        let error = read(&text).expect_err(&text);
        assert!(!error.to_string().contains("verysecret"), "{error}");
        assert!(!format!("{error:?}").contains("verysecret"), "{error:?}");
    }
    let config = read(&format!("[[keys]]\nkey = \"{secret}\"\nuser = \"a\"\n{ECHO}")).unwrap();
    assert!(!format!("{config:?}").contains("verysecret"));
}

#[test]
fn secrets_come_from_the_environment_and_from_files() {
    let path = std::env::temp_dir().join(format!("llm-layers-secret-{}", std::process::id()));
    fs::write(&path, "from-a-file\n").unwrap();
    let text = format!("[[keys]]\nkey = {{ file = {path:?} }}\nuser = \"a\"\n{ECHO}");
    assert_eq!(read(&text).unwrap().files(), std::slice::from_ref(&path));
    for bad in ["two\nlines\n", "\n", ""] {
        fs::write(&path, bad).unwrap();
        assert_eq!(problems(&text), ["keys[0].key: must be visible ASCII, and not empty"]);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(problems(&text), ["keys[0].key: the file cannot be read: entity not found"]);
}

#[test]
fn a_proxy_is_a_secret_and_one_that_cannot_be_used_is_told_by_its_entry() {
    let provider = |kind: &str, proxy: &str| {
        format!("[providers.a]\nkind = \"{kind}\"\nbase_url = \"https://llm.example/v1\"\nproxy = {proxy}\n")
    };
    for kind in ["openai", "anthropic"] {
        let config = read(&provider(kind, r#""http://ada:hidden@proxy:3128""#)).unwrap();
        let described = llm_layers::stack::StackBuilder::new(config.clone()).describe().unwrap().to_string();
        assert!(described.contains("through a proxy"), "{described}");
        assert!(!format!("{config:?} {described}").contains("hidden"));
        let wrong = problems(&provider(kind, r#""https://ada:hidden@proxy:3128""#));
        assert_eq!(wrong, ["providers.a.proxy: the proxy cannot be used: it must begin with http://"]);
    }
    let path = std::env::temp_dir().join(format!("llm-layers-proxy-{}", std::process::id()));
    fs::write(&path, "http://ada:hidden@proxy:3128\n").unwrap();
    let elsewhere = read(&provider("openai", &format!("{{ file = {path:?} }}"))).unwrap();
    assert_eq!(elsewhere.files(), std::slice::from_ref(&path));
    fs::remove_file(&path).unwrap();
    let echo = "[providers.a]\nkind = \"echo\"\nproxy = \"http://proxy:3128\"\n";
    assert_eq!(problems(echo), ["providers.a.proxy: is for a provider that is a server"]);
}

#[test]
fn what_is_not_toml_is_told_with_every_line() {
    let error = read("[a\nb = 1\nc = = 2\n[d]\ne = \"x").unwrap_err();
    let lines: Vec<_> = error.problems().iter().map(|problem| problem.line.unwrap()).collect();
    assert!(lines.contains(&1) && lines.contains(&3) && lines.contains(&5), "{error}");
}

#[test]
fn what_is_told_is_read() {
    let text = format!(
        "listen = \"[::1]:9\"\n[server]\nmax_body_bytes = 7\nmax_waiting = 0\nkeep_alive = \"250ms\"\n\
         [retry]\nmax_attempts = 3\ndeadline = \"2m\"\non.rate_limited = \"next\"\n{ECHO}\
         models = [\"a\", {{ name = \"b\", max_output_tokens = 5 }}]\ntimeouts.head = \"1d\"\n"
    );
    let config = read(&text).unwrap();
    assert_eq!(config.listen.0.to_string(), "[::1]:9");
    assert_eq!(
        (config.server.max_body_bytes, config.server.max_waiting, config.server.max_in_flight),
        (7, 0, 256)
    );
    assert_eq!(config.server.keep_alive, Time(Duration::from_millis(250)));
    assert_eq!(config.retry.deadline.0.as_secs(), 120);
    assert_eq!(config.providers["echo"].timeouts.unwrap().head, Some(Time(Duration::from_secs(86_400))));
}

#[test]
fn a_configuration_made_in_code_is_checked_too() {
    let mut config = Config::default();
    assert_eq!(config.check().unwrap_err().to_string(), "providers: there must be one");
    config.providers.insert("echo".into(), Default::default());
    assert_eq!(config.check().unwrap_err().to_string(), "providers.echo.base_url: is missing");
    config.providers.get_mut("echo").unwrap().kind = Kind::Echo;
    config.check().unwrap();
    config.keys = Some(Vec::new());
    let nobody = config.check().unwrap_err().to_string();
    assert_eq!(nobody, "keys: there must be one; without the table everybody is anonymous");
}

proptest! {
    /// However a file is wrong, it is told, and nothing panics; whatever is taken can be read.
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z\\[\\]{}=.\"0-9\n #]{0,200}") {
        let _ = read(&text);
    }

    /// What one line of the sample is exchanged for is told or taken, and never panics.
    #[test]
    fn any_change_of_the_sample_is_read_or_refused(line in 0..160_usize, with in "[a-z_]{1,12} = (1|-1|\"x\"|true|\\[\\]|\\{\\}|1979-05-27|1e400)") {
        let sample = include_str!("../examples/gateway/gateway.toml");
        let changed: Vec<&str> = sample.lines().enumerate().map(|(at, old)| if at == line { &*with } else { old }).collect();
        if let Err(error) = read(&changed.join("\n")) {
            prop_assert!(!error.problems().is_empty());
            prop_assert!(error.problems().iter().all(|problem| problem.line.is_some() || problem.entry == "providers"));
        }
    }
}
