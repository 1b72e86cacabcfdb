//! What is refused, held and told at the edge, before anybody is asked: the real binary.

mod common;

use common::{CHAT, Gateway, asking};
use serde_json::json;

const JSON: (&str, &str) = ("content-type", "application/json");

const KEYS: &str = r#"
[[keys]]
key = "app-key"
user = "portal"
tenant = "acme"
departments = ["research", "ops"]
trusted = true
[[keys]]
key = "host-key"
user = "host"
trusted = true
[[keys]]
key = "ada-key"
user = "ada"
tenant = "acme"
departments = ["research", "ops"]
max_in_flight = 1
[[keys]]
key = "root-key"
user = "root"
admin = true
"#;

const ECHO: &str = "[providers.echo]\nkind = \"echo\"\n";

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

async fn ask(gateway: &Gateway, key: &str, headers: &[(&str, &str)]) -> common::Reply {
    let bearer = bearer(key);
    let all = [&[JSON, ("authorization", &bearer)], headers].concat();
    gateway.post(&all, asking("echo/x").as_bytes()).await
}

// ===== headers =====

#[tokio::test]
async fn a_header_of_this_family_that_means_nothing_is_refused_by_its_name_whoever_sends_it() {
    let gateway = Gateway::start(&format!("{KEYS}{ECHO}")).await;
    for name in [
        "x-llm-tenants",
        "x-llm-knowledge-base",
        "X-LLM-Department",
        "x-llm-",
        "x-llm-model",
        "x-llm-user-id",
    ] {
        for key in ["app-key", "ada-key", "root-key"] {
            let reply = ask(&gateway, key, &[(name, "a")]).await;
            assert_eq!(reply.status, 400, "{name} {key}: {}", reply.body);
            assert_eq!(reply.error(), ("invalid_request_error".to_owned(), json!("unknown_header")));
            let said = reply.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(said.contains(&name.to_lowercase()), "{name}: {said}");
        }
        let headers = [JSON, ("x-api-key", "ada-key"), (name, "a")];
        let reply = gateway.send("POST", "/v1/messages", &headers, asking("echo/x").as_bytes()).await;
        assert_eq!((reply.status, &reply.json()["type"]), (400, &json!("error")), "{name}");
        let headers = [("authorization", "Bearer ada-key"), (name, "a")];
        assert_eq!(gateway.send("GET", "/v1/models", &headers, b"").await.status, 400, "{name}");
    }
    assert_eq!(ask(&gateway, "ada-key", &[("x-llm-timeout", "5"), ("x-llmother", "a")]).await.status, 200);
    let anonymous = Gateway::start(ECHO).await;
    assert_eq!(anonymous.post(&[JSON, ("x-llm-usr", "a")], asking("echo/x").as_bytes()).await.status, 400);
}

#[tokio::test]
async fn an_application_of_no_tenant_says_whose_its_users_are_and_one_of_a_tenant_its_own_only() {
    let more = "[tenants.bank.aliases]\n\"echo/x\" = \"echo/bank\"\n[cache]\nenabled = true\n";
    let gateway = Gateway::start(&format!("{KEYS}{ECHO}{more}")).await;
    let tenant = |name: &'static str| ("x-llm-tenant", name);
    let user = ("x-llm-user", "eve");
    for (name, model) in [("bank", "bank"), ("acme", "x")] {
        for hit in [false, true] {
            let reply = ask(&gateway, "host-key", &[tenant(name), user]).await;
            assert_eq!((reply.status, &reply.json()["model"]), (200, &json!(model)), "{name}");
            assert_eq!(reply.header("cache-status").unwrap().contains("hit"), hit, "{name}");
        }
    }
    assert!(!ask(&gateway, "host-key", &[user]).await.header("cache-status").unwrap().contains("hit"));
    assert_eq!(ask(&gateway, "app-key", &[tenant("acme"), user]).await.status, 200);
    for (key, headers, code) in [
        ("app-key", &[tenant("bank")][..], "invalid_identity"),
        ("host-key", &[tenant("")], "invalid_identity"),
        ("host-key", &[tenant("bank"), tenant("acme")], "invalid_identity"),
        ("ada-key", &[tenant("acme")], "untrusted_identity"),
        ("root-key", &[tenant("bank")], "untrusted_identity"),
    ] {
        let reply = ask(&gateway, key, headers).await;
        assert_eq!((reply.status, reply.error().1), (400, json!(code)), "{key} {headers:?}");
    }
}

#[tokio::test]
async fn two_keys_in_one_request_are_refused_wherever_they_stand_unless_they_are_the_same() {
    let gateway = Gateway::start(&format!("{KEYS}{ECHO}")).await;
    for (path, authorization, other, status) in [
        (CHAT, "Bearer app-key", "ada-key", 400),
        ("/v1/messages", "Bearer app-key", "ada-key", 400),
        (CHAT, "Bearer app-key", "", 400),
        (CHAT, "bearer wrong", "ada-key", 400),
        (CHAT, "Bearer ada-key", "ada-key", 200),
        (CHAT, "Bearer  ada-key", " ada-key ", 200),
    ] {
        let headers = [JSON, ("authorization", authorization), ("x-api-key", other)];
        let reply = gateway.send("POST", path, &headers, asking("echo/x").as_bytes()).await;
        assert_eq!(reply.status, status, "{path} {authorization} {other}: {}", reply.body);
        if (path, status) == (CHAT, 400) {
            assert_eq!(reply.error().1, json!("ambiguous_request"), "{authorization} {other}");
        }
    }
}
