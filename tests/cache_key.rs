//! What a cache's key says: everything that can change the answer, and whose it is.

use llm_layers::{
    BodyLimits, ChatBody, KbScope, LlmRequest, RequestContext,
    cache::{BypassReason, CacheKey, CacheScope, CacheSecret, MEMBERS_LEFT_OUT},
    http::anthropic,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

fn secret() -> CacheSecret {
    CacheSecret::new([7; 32])
}

fn ada() -> RequestContext {
    RequestContext::new().with_user_id("ada")
}

fn key_of(model: &str, body: &str, context: &RequestContext) -> CacheKey {
    let request = LlmRequest::new(model, ChatBody::parse(body.to_owned()).unwrap());
    CacheKey::new(&secret(), &CacheScope::of(context).unwrap(), &request)
}

fn key(body: &str) -> CacheKey {
    key_of("acme/one", body, &ada())
}

const HELLO: &str = r#"{"messages":[{"role":"user","content":"Hello"}]}"#;

/// A change of any of these makes all that deployments have kept unfindable: raise the version then.
#[test]
fn golden_vectors() {
    let long = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "x".repeat(5000));
    let rights = ada()
        .with_tenant_id("acme")
        .with_kb(KbScope::new("handbook").with_acl_hash("5f2c").with_version("12"))
        .with_kb(KbScope::new("atlas").with_acl_hash("77"));
    let full = r#"{"model":"fast","temperature":0.20,"messages":[{"role":"user","content":"Grüße, \"Welt\""}],"tools":[],"top_k":3.0,"stream":true}"#;
    let cases = [
        (key(HELLO), "52182de9537c50ae2cbbffa5ed522ae60b411f43501ce3291818f0b4515db27c"),
        (key(&long), "3dd3910dfd40b2ad129d2503ed9d146f9a12e1ef5b2427c5d7a34f62b771a4d4"),
        (
            key_of("acme/one", full, &rights),
            "1a98591de72f8b4f260a108466febae97272a230590e65de543e52c5d2862177",
        ),
        (key_of("other", HELLO, &rights), "108452b27f73d0a2222ed95bf8a27ee5f34e70a2cb2998ade5bd0d81141aa749"),
    ];
    let (keys, golden): (Vec<_>, Vec<_>) =
        cases.iter().map(|(k, g)| (k.to_string(), (*g).to_owned())).unzip();
    assert_eq!(keys, golden);
}

#[test]
fn equal_bodies_of_which_one_may_be_sent_with_less_have_keys_of_their_own() {
    let said = r#"{"model":"acme/one","max_tokens":9,"messages":[{"role":"user","content":"Hello"}],"thinking":{"type":"disabled"}}"#;
    let translated = anthropic::chat_request(said, &BodyLimits::default()).unwrap();
    let own = LlmRequest::parse(translated.body.to_json("acme/one")).unwrap();
    let key = |request| CacheKey::new(&secret(), &CacheScope::of(&ada()).unwrap(), request);
    assert_ne!(key(&translated), key(&own));
    assert_eq!(key(&translated), key(&anthropic::chat_request(said, &BodyLimits::default()).unwrap()));
}

/// The first of them by hand: what is hashed is this, and nothing else.
#[test]
fn the_encoding_is_tag_length_bytes() {
    let messages = br#"[{"role":"user","content":"Hello"}]"#;
    let said: &[&[u8]] = &[
        // Version, operation, model.
        &[2, 1, 8],
        b"acme/one",
        // No tenant, a user, no knowledge bases.
        &[0, 1, 3],
        b"ada",
        &[0],
        // A short body of one member.
        &[0, 1, 8],
        b"messages",
        &[u8::try_from(messages.len()).unwrap()],
        messages,
    ];
    let derived = blake3::derive_key("llm-layers 2026 cache v1: key", &[7; 32]);
    assert_eq!(key(HELLO).as_bytes(), blake3::keyed_hash(&derived, &said.concat()).as_bytes());
}

/// And the second: a long value stands there by its length and its hash, and a long body by a hash of its own.
#[test]
fn long_values_and_long_bodies_are_hashed_by_themselves() {
    let messages = format!(r#"[{{"role":"user","content":"{}"}}]"#, "x".repeat(5000));
    let derive = |purpose| blake3::derive_key(purpose, &[7; 32]);
    let (of_body, of_key) =
        (derive("llm-layers 2026 cache v1: body"), derive("llm-layers 2026 cache v1: key"));
    let value = blake3::keyed_hash(&of_body, messages.as_bytes());
    // 5030 bytes: seven bits a byte.
    let body: &[&[u8]] = &[&[1, 8], b"messages", &[0xa6, 0x27], value.as_bytes()];
    let body = blake3::keyed_hash(&of_body, &body.concat());
    let said: &[&[u8]] = &[&[2, 1, 8], b"acme/one", &[0, 1, 3], b"ada", &[0], &[1], body.as_bytes()];
    let long = format!(r#"{{"messages":{messages}}}"#);
    assert_eq!(messages.len(), 5030);
    assert_eq!(key(&long).as_bytes(), blake3::keyed_hash(&of_key, &said.concat()).as_bytes());
}

#[test]
fn what_is_left_out_does_not_matter_for_bodies_of_any_length() {
    for len in (500..700).chain([10_000]) {
        let text = "x".repeat(len);
        let plain = format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#);
        let more = format!(r#"{{"stream":true,"metadata":{{"a":"{text}"}},{}"#, &plain[1..]);
        assert_eq!(key(&plain), key(&more), "{len}");
    }
}

#[test]
fn seed_15_absent_is_not_the_default() {
    let hot = r#"{"messages":[{"role":"user","content":"Hello"}],"temperature":0.7}"#;
    let long = r#"{"messages":[{"role":"user","content":"Hello"}],"max_tokens":2000}"#;
    let keys = [key(HELLO), key(hot), key(long)];
    assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2]);
    let null = r#"{"messages":[{"role":"user","content":"Hello"}],"temperature":null}"#;
    assert_ne!(key(HELLO), key(null));
}

#[test]
fn seed_15_what_cannot_change_the_answer_is_not_in_it() {
    assert_eq!(MEMBERS_LEFT_OUT, ["metadata", "model", "stream", "stream_options"]);
    let more = r#"{"stream":true,"stream_options":{"include_usage":true},"model":"fast","metadata":{"a":"b"},"messages":[{"role":"user","content":"Hello"}]}"#;
    assert_eq!(key(HELLO), key(more));
    for labels in ["{}", "null", r#"{"a":"x","b":""}"#, r#"{"user_id":"u"}"#] {
        let body = format!(r#"{{"metadata":{labels},"store":false,{}"#, &STORED[14..]);
        assert_eq!(key(&body), key(&format!(r#"{{"store":false,{}"#, &STORED[14..])), "{labels}");
    }
    let escaped = r#"{"str\u0065am":true,"messages":[{"role":"user","content":"Hello"}]}"#;
    assert_eq!(key(HELLO), key(escaped));
    let labels =
        ada().with_agent_name("bot").with_task_type("t").with_departments(["r&d"]).with_request_id("r");
    assert_eq!(key(HELLO), key_of("acme/one", HELLO, &labels));
    // What nobody here knows may well change the answer.
    for name in ["user", "x", "metadatas", "Stream", "stream_option", "timeout"] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"Hello"}}],"{name}":"1"}}"#);
        assert_ne!(key(HELLO), key(&body), "{name}");
    }
}

const STORED: &str = r#"{"store":true,"messages":[{"role":"user","content":"Hello"}]}"#;

/// Proxies choose who answers, and what is filtered, by it.
#[test]
fn metadata_that_is_more_than_labels_is_in_it() {
    for more in [r#"{"tags":["a"]}"#, r#"{"a":"b","guardrails":{"x":1}}"#, r#"{"a":1}"#, r#"{"a":null}"#] {
        let body = format!(r#"{{"metadata":{more},{}"#, &HELLO[1..]);
        assert_ne!(key(&body), key(HELLO), "{more}");
    }
    // What is stored there is found there by its labels.
    let labelled = format!(r#"{{"metadata":{{"a":"b"}},{}"#, &STORED[1..]);
    assert_ne!(key(&labelled), key(STORED));
    // However long it is.
    let long = |tag: &str| format!(r#"{{"metadata":{{"tags":["{tag}{}"]}},{}"#, "x".repeat(900), &HELLO[1..]);
    assert_ne!(key(&long("a")), key(&long("b")));
}

#[test]
fn seed_17_nobody_has_no_scope() {
    let of = |context: RequestContext| CacheScope::of(&context).map(drop);
    assert_eq!(of(RequestContext::new()), Err(BypassReason::NoUser));
    assert_eq!(of(RequestContext::new().with_user_id("")), Err(BypassReason::NoUser));
    assert_eq!(of(ada()), Ok(()));
    assert_eq!(of(ada().with_kb(KbScope::new("kb"))), Err(BypassReason::NoAclHash));
    assert_eq!(of(ada().with_kb(KbScope::new("kb").with_acl_hash(""))), Err(BypassReason::NoAclHash));
    let nobody = RequestContext::new();
    assert!(CacheScope::or_public(&nobody).is_ok());
    assert!(!format!("{:?}", CacheScope::of(&ada()).unwrap()).contains("ada"));
}

#[test]
fn each_part_of_the_scope_and_the_model_is_in_it() {
    let kb = |id: &str, acl: &str| KbScope::new(id).with_acl_hash(acl);
    let contexts = [
        ada(),
        RequestContext::new().with_user_id("eve"),
        ada().with_tenant_id("acme"),
        ada().with_tenant_id(""),
        RequestContext::new().with_user_id("adaacme"),
        ada().with_kb(kb("a", "1")),
        ada().with_kb(kb("a", "2")),
        ada().with_kb(kb("b", "1")),
        ada().with_kb(kb("a", "1").with_version("1")),
        ada().with_kb(kb("a", "1").with_version("")),
        ada().with_kb(kb("a", "1")).with_kb(kb("b", "1")),
        ada().with_kb(kb("a", "1")).with_kb(kb("a", "2")),
    ];
    let mut seen = HashMap::new();
    for (at, context) in contexts.iter().enumerate() {
        for model in ["acme/one", "acme/two", "one"] {
            let twin = seen.insert(key_of(model, HELLO, context), (at, model));
            assert_eq!(twin, None, "{at} {model}");
        }
    }
    let one_way = ada().with_kb(kb("a", "1")).with_kb(kb("b", "2"));
    let other_way = ada().with_kb(kb("b", "2")).with_kb(kb("a", "1")).with_kb(kb("b", "2"));
    assert_eq!(key_of("m", HELLO, &one_way), key_of("m", HELLO, &other_way));
}

#[test]
fn another_secret_makes_other_keys_and_none_shows_in_debug() {
    let context = ada();
    let (scope, long) = (CacheScope::of(&context).unwrap(), "x".repeat(4000));
    let body = ChatBody::builder().user(long).build().unwrap();
    let request = LlmRequest::new("acme/one", body);
    let (one, two) = (CacheSecret::new([1; 32]), CacheSecret::new([2; 32]));
    // The digest that is kept with the body is the first one's.
    let keys = [&one, &two, &one, &two].map(|secret| CacheKey::new(secret, &scope, &request));
    assert_eq!((keys[0], keys[1]), (keys[2], keys[3]));
    assert_ne!(keys[0], keys[1]);
    // Whoever asked before changes nothing.
    let alone = LlmRequest::new("acme/one", ChatBody::builder().user("x".repeat(4000)).build().unwrap());
    assert_eq!(CacheKey::new(&two, &scope, &alone), keys[1]);
    assert_eq!(format!("{one:?}"), "CacheSecret(..)");
    let random = [CacheSecret::random(), CacheSecret::random()];
    assert_ne!(CacheKey::new(&random[0], &scope, &request), CacheKey::new(&random[1], &scope, &request));
}

/// Bytes that move from one member to its neighbour are another request.
#[test]
fn bytes_that_move_between_neighbours_change_it() {
    let body = |a: &str, b: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"Hello"}}],"a{a}":"{b}","b":"c"}}"#)
    };
    let text = "0123456789";
    let keys: std::collections::HashSet<_> =
        (0..=text.len()).map(|at| key(&body(&text[..at], &text[at..]))).collect();
    assert_eq!(keys.len(), text.len() + 1);
    let context = |tenant: &str, user: &str| RequestContext::new().with_tenant_id(tenant).with_user_id(user);
    let keys: std::collections::HashSet<_> =
        (0..text.len()).map(|at| key_of("m", HELLO, &context(&text[..at], &text[at..]))).collect();
    assert_eq!(keys.len(), text.len());
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-1000..1000_i64).prop_map(Value::from),
        "[a-c\"\\\\é]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A path to each value in it, itself included.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| places(item, &format!("{at}/{i}"), found));
        }
        Value::Object(members) => {
            members.iter().for_each(|(name, item)| places(item, &format!("{at}/{name}"), found));
        }
        _ => {}
    }
}

fn body_of(members: &BTreeMap<String, Value>, text: &str) -> Map<String, Value> {
    let mut body: Map<String, Value> =
        members.clone().into_iter().map(|(n, v)| (format!("x_{n}"), v)).collect();
    body.insert("messages".into(), json!([{ "role": "user", "content": text }]));
    body
}

fn spelt<'a>(members: impl Iterator<Item = (&'a String, &'a Value)>) -> String {
    let members: Vec<_> = members.map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    format!("{{{}}}", members.join(","))
}

proptest! {
    #[test]
    fn a_change_at_any_depth_changes_it(
        members in prop::collection::btree_map("[a-d]{1,3}", json_value(), 1..6),
        text in ".{0,20}",
        pick in any::<prop::sample::Index>(),
        value in json_value(),
    ) {
        let body = Value::Object(body_of(&members, &text));
        let mut all = Vec::new();
        places(&body, "", &mut all);
        let values: Vec<_> = all.into_iter().filter(|at| at.starts_with("/x_")).collect();
        let at = &values[pick.index(values.len())];
        let mut changed = body.clone();
        let place = changed.pointer_mut(at).unwrap();
        prop_assume!(*place != value);
        *place = value;
        prop_assert_ne!(key(&body.to_string()), key(&changed.to_string()), "{}", at);
    }

    #[test]
    fn the_order_of_members_does_not(
        members in prop::collection::btree_map("[a-d]{1,3}", json_value(), 1..40),
        text in ".{0,900}",
        order in any::<u64>(),
    ) {
        let body = body_of(&members, &text);
        let mut shuffled: Vec<_> = body.iter().collect();
        fastrand::Rng::with_seed(order).shuffle(&mut shuffled);
        prop_assert_eq!(key(&spelt(body.iter())), key(&spelt(shuffled.into_iter())));
    }

    #[test]
    fn leaving_a_member_out_changes_it(
        members in prop::collection::btree_map("[a-d]{1,3}", json_value(), 1..6),
        pick in any::<prop::sample::Index>(),
    ) {
        let body = body_of(&members, "Hello");
        let mut less = body.clone();
        let name = body.keys().filter(|n| n.starts_with("x_")).nth(pick.index(members.len())).unwrap();
        less.remove(name);
        prop_assert_ne!(key(&Value::Object(body.clone()).to_string()), key(&Value::Object(less).to_string()));
    }
}

/// Ids of few letters, so that neighbours often differ by where a byte belongs.
fn any_scope(random: &mut fastrand::Rng) -> RequestContext {
    fn id(random: &mut fastrand::Rng) -> String {
        (0..random.usize(..4)).map(|_| random.choice(['a', 'b', '\0', '1']).unwrap()).collect()
    }
    let mut context = RequestContext::new().with_user_id(format!("u{}", id(random)));
    if random.bool() {
        context = context.with_tenant_id(id(random));
    }
    for _ in 0..random.usize(..3) {
        let mut kb = KbScope::new(id(random)).with_acl_hash(format!("h{}", id(random)));
        if random.bool() {
            kb = kb.with_version(id(random));
        }
        context = context.with_kb(kb);
    }
    context
}

#[test]
fn different_scopes_never_share_a_key_in_a_million_random_pairs() {
    let mut random = fastrand::Rng::with_seed(4711);
    let (secret, body) = (secret(), ChatBody::parse(HELLO).unwrap());
    let request = LlmRequest::new("acme/one", body);
    let rights = |context: &RequestContext| {
        let mut kbs: Vec<_> = context.kbs().to_vec();
        kbs.sort();
        kbs.dedup();
        (context.tenant_id().map(str::to_owned), context.user_id().map(str::to_owned), kbs)
    };
    let (mut pairs, mut equal) = (0, 0);
    while pairs < 1_000_000 {
        let (one, two) = (any_scope(&mut random), any_scope(&mut random));
        let of = |context| CacheKey::new(&secret, &CacheScope::of(context).unwrap(), &request);
        match rights(&one) == rights(&two) {
            true => {
                equal += 1;
                assert_eq!(of(&one), of(&two));
            }
            false => {
                pairs += 1;
                assert_ne!(of(&one), of(&two), "{:?} {:?}", rights(&one), rights(&two));
            }
        }
    }
    assert!(equal > 100, "some pairs were equal: {equal}");
}
