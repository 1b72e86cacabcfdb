//! What is asked, and how.

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What the upstream answers with.
    pub(crate) model: &'static str,
    /// How many pieces of text a stream has; 0 for whole answers.
    pub(crate) chunks: usize,
    pub(crate) prompt: usize,
    pub(crate) dialect: Dialect,
    pub(crate) asked: Asked,
    pub(crate) in_flight: usize,
    /// How many in a round.
    pub(crate) requests: usize,
    /// What is aimed at: CPU of the gateway, as a multiple of the floor's.
    pub(crate) goal: Option<f64>,
}

/// In whose words it is asked, and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
}

/// Whether a question was asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Anew,
    Again,
    /// So many in a second, whether or not the earlier ones are answered.
    AtRate(u32),
}

pub(crate) const SMALL: &str = "small";

pub(crate) const CASES: [Case; 11] = [
    Case {
        name: "one",
        model: "whole",
        chunks: 0,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::Anew,
        in_flight: 1,
        requests: 4_000,
        goal: None,
    },
    Case {
        name: SMALL,
        model: "whole",
        chunks: 0,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::Anew,
        in_flight: 16,
        requests: 12_000,
        goal: Some(2.0),
    },
    Case {
        name: "rate",
        model: "whole",
        chunks: 0,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::AtRate(2_000),
        in_flight: 64,
        requests: 3_000,
        goal: None,
    },
    Case {
        name: "large",
        model: "whole",
        chunks: 0,
        prompt: 100_000,
        dialect: Dialect::OpenAi,
        asked: Asked::Anew,
        in_flight: 16,
        requests: 4_000,
        goal: Some(1.5),
    },
    Case {
        name: "hit",
        model: "whole",
        chunks: 0,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::Again,
        in_flight: 16,
        requests: 16_000,
        goal: Some(1.0),
    },
    Case {
        name: "hit-large",
        model: "whole",
        chunks: 0,
        prompt: 100_000,
        dialect: Dialect::OpenAi,
        asked: Asked::Again,
        in_flight: 16,
        requests: 4_000,
        goal: Some(1.0),
    },
    Case {
        name: "stream",
        model: "stream-100",
        chunks: 100,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::Anew,
        in_flight: 16,
        requests: 800,
        goal: Some(1.3),
    },
    Case {
        name: "burst",
        model: "burst-100",
        chunks: 100,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::Anew,
        in_flight: 16,
        requests: 1_500,
        goal: Some(1.3),
    },
    Case {
        name: "paced",
        model: "paced-100",
        chunks: 100,
        prompt: 100,
        dialect: Dialect::OpenAi,
        asked: Asked::Anew,
        in_flight: 64,
        requests: 640,
        goal: Some(1.3),
    },
    Case {
        name: "messages",
        model: "whole",
        chunks: 0,
        prompt: 100,
        dialect: Dialect::Anthropic,
        asked: Asked::Anew,
        in_flight: 16,
        requests: 8_000,
        goal: None,
    },
    Case {
        name: "messages-stream",
        model: "stream-100",
        chunks: 100,
        prompt: 100,
        dialect: Dialect::Anthropic,
        asked: Asked::Anew,
        in_flight: 16,
        requests: 800,
        goal: None,
    },
];

/// Where the number of a question stands: each is another one.
pub(crate) const NUMBER: &[u8] = b"0000000000000000";

/// The key that the gateway asks for; the floor passes it on.
pub(crate) const KEY: &str = "sk-bench-0123456789abcdef0123456789abcdef";

const SYSTEM: &str = r#"{"role":"system","content":"Be brief."},"#;

impl Case {
    /// The whole HTTP request, with a place for its number.
    pub(crate) fn request(&self) -> Vec<u8> {
        let (path, system, stream) = match (self.dialect, self.chunks) {
            (Dialect::OpenAi, 0) => ("chat/completions", SYSTEM, ""),
            (Dialect::OpenAi, _) => {
                ("chat/completions", SYSTEM, r#""stream":true,"stream_options":{"include_usage":true},"#)
            }
            (Dialect::Anthropic, 0) => ("messages", "", r#""system":"Be brief.","#),
            (Dialect::Anthropic, _) => ("messages", "", r#""system":"Be brief.","stream":true,"#),
        };
        let number = String::from_utf8_lossy(NUMBER);
        let (model, words) =
            (self.model, "Say in a few words what this costs. ".repeat(self.prompt / 36 + 1));
        let prompt = &words[..self.prompt];
        let body = format!(
            r#"{{"model":"{model}",{stream}"temperature":0.2,"max_tokens":256,"messages":[{system}{{"role":"user","content":"{number} {prompt}"}}]}}"#
        );
        let length = body.len();
        let head = [
            &format!("POST /v1/{path} HTTP/1.1"),
            "host: gateway.local",
            "accept: application/json",
            "accept-encoding: gzip, deflate",
            "content-type: application/json",
            &format!("authorization: Bearer {KEY}"),
            "user-agent: OpenAI/Python 2.0.0",
            "x-stainless-lang: python",
            "x-stainless-runtime: CPython",
            &format!("content-length: {length}"),
        ];
        format!("{}\r\n\r\n{body}", head.join("\r\n")).into_bytes()
    }

    /// How many server-sent events a whole answer has: role, finish, usage and `[DONE]` besides the text.
    pub(crate) const fn events(&self) -> usize {
        match self.chunks {
            0 => 0,
            chunks => chunks + 4,
        }
    }

    /// What a round of CPU time is divided by.
    pub(crate) const fn unit(&self) -> &'static str {
        match self.chunks {
            0 => "request",
            _ => "chunk",
        }
    }
}
