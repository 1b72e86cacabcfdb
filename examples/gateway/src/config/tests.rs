use super::*;

fn problems(text: &str) -> Vec<String> {
    Config::read(text, &|name| (name == "SET").then(|| "value".to_owned())).unwrap_err()
}

const ECHO: &str = "[providers.echo]\nkind = \"echo\"\n";

#[test]
fn what_runs_without_a_file_is_right() {
    let config = Config::without_file();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert!(config.keys.is_none());
    assert_eq!(config.aliases.load().resolve(&"fast".into(), None, None), "echo/echo");
}

#[test]
fn the_example_with_every_field_is_right() {
    let env = |name: &str| ["TEAM_A_KEY", "OPENAI_API_KEY"].contains(&name).then(|| name.to_owned());
    let config = Config::read(include_str!("../../gateway.toml"), &env).unwrap();
    let [(ada, context), (bob, _)] = &config.keys.as_ref().unwrap()[..] else { panic!("two keys") };
    assert_eq!([*ada, *bob], [blake3::hash(b"TEAM_A_KEY"), blake3::hash(b"literal")]);
    let context = &context.context;
    assert_eq!((context.user_id(), context.tenant_id()), (Some("ada"), Some("acme")));
    assert_eq!((context.department_ids().len(), context.agent_name()), (1, Some("support-bot")));
    assert!(matches!(&config.providers["many"].kind, Kind::OpenAi(all) if all.len() == 2));
    assert!(!format!("{config:?}").contains("literal"));
}

#[test]
fn all_problems_are_told_at_once_each_with_its_entry() {
    let problems = problems(
        r#"
lisen = "x"
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
kind = "cohere"
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
[retry]
retries = -1
[timeouts]
head = "0s"
tail = "1s"
"#,
    );
    for entry in [
        "lisen: is unknown",
        "listen: must be an address",
        "server.max_body_bytes: must be",
        "server.max_wait: must be",
        "server.keepalive: is unknown",
        "keys[1].key: is the same",
        "keys[1].user: is missing",
        "keys[2].key: the environment variable \"UNSET\"",
        "keys[2].role: is unknown",
        "providers.a.kind: must be",
        "providers.a.base_url: must be",
        "providers.b.base_url: is unknown",
        "providers.c.api_key: belongs",
        "providers.c.deployments[0].base_url: the base URL",
        "providers.c.deployments[0].base-url: is unknown",
        "providers.\"d/e\": the name",
        "providers.f.base_url: the base URL",
        "aliases: alias gone leads to nowhere/x",
        "aliases: aliases lead in a circle",
        "aliases.split[0].model: is missing",
        "fallbacks.\"nowhere/x\": no provider",
        "fallbacks.\"b/x\": must be a list",
        "retry.retries: must be",
        "timeouts.head: must be",
        "timeouts.tail: is unknown",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(entry)), "{entry}: {problems:#?}");
    }
    assert!(!problems.concat().contains("123456789") && !problems.concat().contains("u:p"));
}

#[test]
fn fallbacks_that_lead_nowhere_are_named() {
    let text = format!("{ECHO}[fallbacks]\n\"echo/a\" = [\"echo/b\", \"gone/c\"]\n");
    let problems = problems(&text);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("fallbacks: ") && problems[0].contains("gone/c"), "{problems:?}");
}

#[test]
fn what_is_told_is_done() {
    let text = "listen = \"[::1]:9\"\n[server]\nmax_body_bytes = 7\nmax_waiting = 0\nkeep_alive = \"250ms\"\n\
                [retry]\nmax_attempts = 3\ndeadline = \"2m\"\n";
    let config = Config::read(&format!("{text}{ECHO}"), &|_| None).unwrap();
    assert_eq!(config.listen.to_string(), "[::1]:9");
    assert_eq!((config.server.max_body_bytes, config.server.max_waiting), (7, 0));
    assert_eq!((config.server.keep_alive.as_millis(), config.server.max_in_flight), (250, 256));
    assert_eq!((config.max_attempts, config.deadline.as_secs()), (3, 120));
}

#[test]
fn what_is_not_toml_is_told_by_its_line_and_shows_no_key() {
    let problems = problems("[[keys]]\nkey = \"sk-secret\nuser = \"a\"");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("line 2: ") && !problems[0].contains("sk-secret"), "{problems:?}");
}

#[test]
fn a_file_without_providers_serves_nobody() {
    assert_eq!(problems(""), ["providers: there must be one"]);
}

#[test]
fn keys_that_nobody_can_have_are_a_problem_and_let_nobody_in() {
    for keys in [
        "keys = []",
        "keys = 7",
        "[[keys]]\nkey = \"\"\nuser = \"a\"",
        "[[keys]]\nkey = \"a b\"\nuser = \"a\"",
    ] {
        let problems = problems(&format!("{keys}\n{ECHO}"));
        assert!(problems.iter().any(|problem| problem.starts_with("keys")), "{problems:?}");
    }
}

#[test]
fn usage_in_redis_is_checked_and_its_password_is_not_shown() {
    let read = |usage: &str| {
        let env = |name: &str| (name == "REDIS").then(|| "redis://:horse@h:1,redis://h:2".to_owned());
        Config::read(&format!("{ECHO}[usage]\n{usage}"), &env)
    };
    let shared = |usage| read(usage).unwrap().usage.unwrap().shared;
    assert!(shared("").is_none());
    let cluster = shared("redis = { env = \"REDIS\" }").unwrap();
    assert!(cluster.redis.is_cluster() && !format!("{cluster:?}").contains("horse"));
    assert_eq!((cluster.keep.as_secs(), cluster.outbox_max_bytes), (90 * 24 * 60 * 60, 1 << 30));
    assert_eq!(cluster.outbox, std::path::Path::new("usage-outbox"));
    assert!(!shared("redis = \"redis://h\"").unwrap().redis.is_cluster());
    assert!(shared("redis = \"redis://h\"\nredis_cluster = true").unwrap().redis.is_cluster());
    let wrong = read("redis = \"http://:horse@h\"\noutbox = 1").unwrap_err();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(
        wrong.iter().any(|problem| problem.starts_with("usage.redis: ")) && !wrong.concat().contains("horse")
    );
    let without = read("redis_keep = \"1h\"\noutbox = \"x\"").unwrap_err();
    assert_eq!(without.len(), 2, "{without:?}");
}
