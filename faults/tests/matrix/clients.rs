//! Clients that vanish.

use crate::upstream::{LIMITS, charged, of, shown};
use faults::{
    Act, Client, Gateway, Script, Upstream, chat,
    matrix::{Row, Verdict},
    until,
};
use std::{fmt::Write as _, time::Duration};

/// When a client goes, and how.
#[derive(Clone, Copy)]
enum Leave {
    InTheBody,
    /// After it has asked and the provider was asked.
    Waiting,
    /// After so many pieces of a stream.
    After(usize),
    Resetting(usize),
    /// It stays, and reads nothing.
    Deaf,
}

struct Fault {
    name: &'static str,
    event: &'static str,
    leave: Leave,
    script: Script,
    expected: [&'static str; 2],
}

pub(crate) async fn leave() -> Vec<Verdict> {
    let content = vec![Act::Head, Act::say("All"), Act::say(" is"), Act::Stall];
    let flood = Act::Drip(
        serde_json::json!({ "choices": [{ "index": 0, "delta": { "content": "x".repeat(64 << 10) } }] })
            .to_string(),
        Duration::from_millis(5),
        100_000,
    );
    let (prompt, said) = ("the prompt", "the prompt, and what was said");
    let faults = vec![
        Fault {
            name: "in-the-body",
            event: "it leaves in the middle of its request",
            leave: Leave::InTheBody,
            script: vec![],
            expected: ["nothing", "nothing"],
        },
        Fault {
            name: "before-the-head",
            event: "it leaves before the head",
            leave: Leave::Waiting,
            script: vec![Act::Stall],
            expected: ["1 aborted, estimated", prompt],
        },
        Fault {
            name: "before-content",
            event: "it leaves before the first content",
            leave: Leave::Waiting,
            script: vec![Act::Head, Act::Stall],
            expected: ["1 aborted, estimated", prompt],
        },
        Fault {
            name: "after-content",
            event: "it leaves in the middle of a stream",
            leave: Leave::After(2),
            script: content.clone(),
            expected: ["1 aborted, estimated", said],
        },
        Fault {
            name: "reset",
            event: "it resets in the middle of a stream",
            leave: Leave::Resetting(2),
            script: content,
            expected: ["1 aborted, estimated", said],
        },
        Fault {
            name: "deaf",
            event: "it stays, and reads nothing",
            leave: Leave::Deaf,
            script: vec![Act::Head, flood],
            expected: ["1 aborted, estimated", said],
        },
    ];
    let scripts = faults.iter().map(|fault| (fault.name.to_owned(), fault.script.clone()));
    let upstream = Upstream::start(scripts).await;
    let mut config = format!(
        "{LIMITS}\n[server]\nwrite_timeout = \"2s\"\n[providers.up]\nbase_url = {:?}\n",
        upstream.url
    );
    for fault in &faults {
        let name = fault.name;
        let _ = write!(config, "[[keys]]\nkey = {name:?}\nuser = {name:?}\ndepartments = [{name:?}]\n");
    }
    let gateway = Gateway::start(&config).await;
    let mut verdicts = Vec::new();
    for fault in faults {
        verdicts.push(judge(&gateway, &upstream, fault).await);
    }
    verdicts
}

async fn judge(gateway: &Gateway, upstream: &Upstream, fault: Fault) -> Verdict {
    let Fault { name, event, leave, expected, .. } = fault;
    let request = Client::chat_request(name, &chat(&format!("up/{name}"), true));
    let asked = async || (upstream.asked(name) > 0).then_some(());
    let mut kept = None;
    match leave {
        Leave::InTheBody => {
            let mut client = gateway.connect().await;
            client.write(&request[..request.len() - 10]).await.expect("it listens");
        }
        Leave::Deaf => {
            let mut client = Client::connect_narrow(&gateway.address).await.expect("it listens");
            client.write(&request).await.expect("it listens");
            kept = Some(client);
        }
        Leave::Waiting => {
            let mut client = gateway.connect().await;
            client.write(&request).await.expect("it listens");
            assert!(until(Duration::from_secs(5), asked).await.is_some());
        }
        Leave::After(pieces) | Leave::Resetting(pieces) => {
            let mut client = gateway.connect().await;
            client.write(&request).await.expect("it listens");
            let head = client.head().await.expect("a head");
            assert_eq!(head.status, 200);
            let mut text = String::new();
            while text.matches("content\"").count() < pieces {
                text += &client.piece().await.expect("a piece").expect("not the end");
            }
            if let Leave::Resetting(_) = leave {
                client.reset();
            }
        }
    }
    let calls = usize::from(expected[0] != "nothing");
    let own =
        until(Duration::from_secs(10), async || Some(of(gateway, name)).filter(|own| own.len() >= calls))
            .await;
    let own = own.unwrap_or_default();
    let hung_up = async || {
        let log = upstream.log();
        (log.iter().filter(|seen| seen.model == name && seen.hung_up).count() == calls).then_some(())
    };
    let hung_up = until(Duration::from_secs(2), hung_up).await.is_some();
    let is_settled = gateway.is_settled(name, name, Duration::from_secs(10)).await;
    let is_let_go = match &mut kept {
        Some(client) => client.is_hung_up_on(Duration::from_secs(5)).await,
        None => true,
    };
    let standing = gateway.standing(name, name).await;
    let row = Row {
        section: "The client",
        event,
        caller: "–".to_owned(),
        recorded: shown(&own),
        charged: charged(standing.settled, &own),
        reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
        recovery: "–",
    };
    let good = gateway.ask(name, &chat("up/good", true)).await;
    row.judge(["–", expected[0], expected[1], "nothing"])
        .and(hung_up, "the provider is not hung up on")
        .and(is_let_go, "the connection is kept")
        .and(good.is_ok_and(|reply| reply.shown() == "a whole stream"), "the next call fails")
}
