//! The tables of a configuration.

use super::value::{BaseUrl, Dollars, PerMillion, Secret, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// By what it is told who asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Identity {
    /// By the keys in `[[keys]]`. Without any, everybody is anonymous.
    #[default]
    Keys,
    /// By the program around the stack, which sets the `RequestContext` of each call.
    Host,
}

/// The server, and what a request may ask of it.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Server {
    /// How large the body of a request may be.
    #[schemars(range(min = 1))]
    pub max_body_bytes: usize,
    /// How many bytes of bodies may be in memory at once, of all requests whose answer has not begun: no fewer than `max_body_bytes`.
    /// Beyond, requests are refused.
    #[schemars(range(min = 1))]
    pub max_buffered_bytes: usize,
    /// How large the head of a request may be, all its headers together.
    #[schemars(range(min = 8192, max = 1048576))]
    pub max_header_bytes: usize,
    /// How many headers a request may have.
    #[schemars(range(min = 1, max = 1000))]
    pub max_headers: usize,
    /// How deep arrays and objects may lie within each other in a body.
    #[schemars(range(min = 4, max = 1000))]
    pub max_depth: usize,
    /// How many messages a request may have.
    #[schemars(range(min = 1))]
    pub max_messages: usize,
    /// How many tools a request may offer.
    #[schemars(range(min = 0))]
    pub max_tools: usize,
    /// How many calls may be made whose answer has not ended.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
    /// How many of them may be of one key, unless its entry says otherwise.
    #[schemars(range(min = 1))]
    pub max_in_flight_per_key: usize,
    /// How many calls may wait for a place.
    #[schemars(range(min = 0))]
    pub max_waiting: usize,
    /// How long a call may wait for a place.
    pub max_wait: Time,
    /// How long the body of a request may take to come.
    pub body_timeout: Time,
    /// How long answers may go on, until all is sent, after the server was told to end.
    pub shutdown_grace: Time,
    /// After how much silence of the provider a comment is sent to the client of a stream.
    pub keep_alive: Time,
    /// How long a client may take nothing of what it is sent, until it is hung up on.
    pub write_timeout: Time,
    /// How long a connection is kept without a request after the last answer. Longer than a proxy in front keeps it, or that one
    /// asks on a connection that is about to be closed.
    pub idle_timeout: Time,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_buffered_bytes: 256 << 20,
            max_header_bytes: 64 << 10,
            max_headers: 100,
            max_depth: 128,
            max_messages: 10_000,
            max_tools: 512,
            max_in_flight: 256,
            max_in_flight_per_key: 128,
            max_waiting: 256,
            max_wait: Time::secs(1),
            body_timeout: Time::secs(60),
            shutdown_grace: Time::secs(30),
            keep_alive: Time::secs(15),
            write_timeout: Time::secs(60),
            idle_timeout: Time::secs(75),
        }
    }
}

/// A key, and who has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Key {
    /// The key, as it is sent as `Authorization: Bearer KEY` or `x-api-key: KEY`.
    pub key: Option<Secret>,
    /// In place of the key its BLAKE3 hash in hexadecimal digits, so that the file tells nobody the key.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub hash: Option<String>,
    /// The user that its calls are of.
    #[schemars(length(min = 1))]
    pub user: String,
    /// The user's tenant.
    #[schemars(length(min = 1))]
    pub tenant: Option<String>,
    /// The departments that its calls are charged to.
    #[serde(default)]
    #[schemars(inner(length(min = 1)))]
    pub departments: Vec<String>,
    /// The agent that its calls are recorded as.
    #[schemars(length(min = 1))]
    pub agent: Option<String>,
    /// Whether it may ask what everybody has used and has left, and make cached answers invalid.
    #[serde(default)]
    pub admin: bool,
    /// Whether it belongs to an application that speaks for its own end users: it may then say in headers who they are, which of
    /// the key's departments is charged, and which knowledge bases the prompt draws on.
    #[serde(default)]
    pub trusted: bool,
    /// How many of its calls may be made whose answer has not ended; `server.max_in_flight_per_key` unless told.
    #[schemars(range(min = 1))]
    pub max_in_flight: Option<usize>,
}

/// What a provider speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// OpenAI's chat completions, as most servers do.
    #[default]
    Openai,
    /// Anthropic's Messages API. This and the next need the feature `genai`.
    Anthropic,
    /// Google's Gemini API.
    Gemini,
    /// Google's Vertex AI, with an access token as the key.
    Vertex,
    /// Amazon Bedrock's Converse API.
    Bedrock,
    /// Cohere's Chat API.
    Cohere,
    /// Ollama's own API.
    Ollama,
    /// Nothing: it says again what the user said last, and needs no network.
    Echo,
    /// Whatever the program around the stack gives for it.
    Own,
}

/// A member that bounds an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutputMember {
    /// The older name, which most servers know.
    MaxTokens,
    /// The newer one, which OpenAI's reasoning models want.
    MaxCompletionTokens,
}

#[cfg(feature = "hyper-client")]
impl OutputMember {
    /// The name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

impl Kind {
    /// What is spoken that is not OpenAI's.
    #[cfg(feature = "genai")]
    pub(crate) const fn dialect(self) -> Option<crate::provider::genai::Dialect> {
        use crate::provider::genai::Dialect;
        match self {
            Self::Anthropic => Some(Dialect::Anthropic),
            Self::Gemini => Some(Dialect::Gemini),
            Self::Vertex => Some(Dialect::Vertex),
            Self::Bedrock => Some(Dialect::Bedrock),
            Self::Cohere => Some(Dialect::Cohere),
            Self::Ollama => Some(Dialect::Ollama),
            Self::Openai | Self::Echo | Self::Own => None,
        }
    }
}

/// A provider of models, `NAME/…`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Provider {
    /// What it speaks.
    pub kind: Kind,
    /// Where it is, such as `https://api.openai.com/v1`; of `anthropic`, `gemini`, `cohere` and `ollama` their own address unless told.
    pub base_url: Option<BaseUrl>,
    /// The key that it is asked with.
    pub api_key: Option<Secret>,
    /// Further headers that it is sent, but for those that the client writes itself, such as `accept` and `content-type`.
    pub headers: BTreeMap<String, Secret>,
    /// Whether it is sent `traceparent` and `tracestate`: for providers of your own.
    pub trace_headers: bool,
    /// Under which member its models want the bound of an answer: one that a request has under the other name is sent under
    /// this one. Where OpenAI's models are, at OpenAI and Azure, it is `max_completion_tokens` unless told, for the newer ones
    /// refuse the other; to all else a bound is sent as it comes, as it is to Azure's `/models` and to an `api-version` of
    /// Azure's from before September 2024.
    pub output_member: Option<OutputMember>,
    /// Whether a stream is asked for its usage, by `stream_options.include_usage`, where the caller does not ask. It is unless
    /// told, but at Mistral's own API, which tells usage unasked. A server that refuses to be asked is sent the request once
    /// more without it; `false` spares it the first one. Usage that is not told is estimated.
    pub stream_usage: Option<bool>,
    /// Whether thoughts of earlier turns go back to it, as `reasoning_content` of their messages, from callers of Anthropic's
    /// dialect, who have them from here: at DeepSeek, Moonshot, Z.ai, Xiaomi and OpenRouter unless told, whose models go on from
    /// them or refuse to go on without, and nowhere else, for many refuse the member. For a server of yours, or a proxy, with such
    /// models.
    pub returned_thoughts: Option<bool>,
    /// The proxy that it is reached through, `http://user:password@host:port`, asked by `CONNECT`; user and password, with escapes
    /// such as `%40` where need be, may be left out. Unless told there is none: what `HTTPS_PROXY` says is not obeyed.
    pub proxy: Option<Secret>,
    /// Several servers of one provider, in place of `base_url` and what goes with it: the one with fewer calls in flight is
    /// asked.
    #[schemars(length(min = 1))]
    pub deployments: Option<Vec<Deployment>>,
    /// The models that are listed, each by its name or with more about it. Any other may be asked for too.
    pub models: Vec<Model>,
    /// What models cost, by the name that they have at this provider.
    pub prices: BTreeMap<String, ModelPrice>,
    /// Time limits that differ from those in `[timeouts]`.
    pub timeouts: Option<TimeoutOverrides>,
}

/// One server of a provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Deployment {
    /// Where it is.
    pub base_url: BaseUrl,
    /// The key that it is asked with.
    pub api_key: Option<Secret>,
    /// Further headers that it is sent, but for those that the client writes itself, such as `accept` and `content-type`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Whether it is sent `traceparent` and `tracestate`.
    #[serde(default)]
    pub trace_headers: bool,
}

/// A model that is listed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Model {
    /// Its name at the provider.
    Name(#[schemars(length(min = 1))] String),
    /// Its name, and more.
    Details(ModelDetails),
}

/// A model that is listed, with more about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelDetails {
    /// Its name at the provider.
    #[schemars(length(min = 1))]
    pub name: String,
    /// What it costs.
    pub price: Option<ModelPrice>,
    /// How many tokens it answers with at most, whatever it is asked for.
    #[schemars(range(min = 1))]
    pub max_output_tokens: Option<u64>,
}

/// What a model costs: dollars for a million tokens, as text. Goes before the price lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ModelPrice {
    /// Input.
    pub input: Option<PerMillion>,
    /// Output.
    pub output: Option<PerMillion>,
    /// Input that is read from the provider's cache; as input unless told.
    pub cache_read: Option<PerMillion>,
    /// Input that is written to the provider's cache; as input unless told.
    pub cache_write: Option<PerMillion>,
    /// Output that is thought and not said; as output unless told.
    pub reasoning: Option<PerMillion>,
    /// Dollars for each request, whatever its length; alone, all that it costs.
    pub request: Option<Dollars>,
}

/// What a name of a model stands for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Alias {
    /// One model, or another alias.
    Model(#[schemars(length(min = 1))] String),
    /// One of several, by chance, in proportion to their weights.
    Split(#[schemars(length(min = 1))] Vec<Share>),
    /// One of several, always the same for one user.
    Sticky(StickySplit),
}

/// One of several models that an alias stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Share {
    /// The model, or another alias.
    #[schemars(length(min = 1))]
    pub model: String,
    /// How often it is chosen, compared with the others.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 4294967295u64))]
    pub weight: u32,
}

const fn one() -> u32 {
    1
}

/// Several models, of which one user always gets the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StickySplit {
    /// The models, with their weights.
    #[schemars(length(min = 1))]
    pub sticky: Vec<Share>,
}

/// What is different for one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Tenant {
    /// Aliases that go before everybody's.
    pub aliases: BTreeMap<String, Alias>,
}

/// What is asked after a model has failed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Fallback {
    /// These models, or aliases, one after another.
    Models(#[schemars(inner(length(min = 1)))] Vec<String>),
    /// Others for other causes.
    ByCause(Box<FallbackByCause>),
}

macro_rules! causes {
    ($($(#[doc = $doc:literal])+ $name:ident => $cause:ident, $action:literal;)*) => {
        /// What is asked after a model has failed, by the cause of its failure.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct FallbackByCause {
            /// After all failures that are not named, but not in a call that
            /// has been led to others by `context_window` or `content_filter`.
            #[schemars(inner(length(min = 1)))]
            pub otherwise: Vec<String>,
            $(
                $(#[doc = $doc])+
                #[schemars(inner(length(min = 1)))]
                pub $name: Option<Vec<String>>,
            )*
        }

        impl FallbackByCause {
            /// What is named, by cause.
            pub(crate) fn named(&self) -> Vec<(&'static str, crate::fallback::Cause, &Vec<String>)> {
                let all = [$((stringify!($name), crate::fallback::Cause::$cause, self.$name.as_ref()),)*];
                all.into_iter().filter_map(|(name, cause, models)| Some((name, cause, models?))).collect()
            }
        }

        /// What to do about failures of one cause, before another model is tried.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct Actions {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("Unless told: `", $action, "`.")]
                pub $name: Option<Action>,
            )*
        }

        impl Actions {
            /// What is named, by cause.
            pub(crate) fn named(&self) -> Vec<(crate::fallback::Cause, Action)> {
                let all = [$((crate::fallback::Cause::$cause, self.$name),)*];
                all.into_iter().filter_map(|(cause, action)| Some((cause, action?))).collect()
            }
        }
    };
}

causes! {
    /// The provider could not be reached, or the connection broke.
    unreachable => Unreachable, "retry";
    /// The provider failed by its own account.
    server_error => ServerError, "retry";
    /// The provider was asked too often.
    rate_limited => RateLimited, "retry";
    /// It took too long.
    timeout => Timeout, "retry";
    /// The answer said nothing. After one that met its bound on tokens, "retry" is "next".
    empty => Empty, "retry";
    /// The answer broke off before its first content.
    broken => Broken, "retry";
    /// The answer is larger than is taken.
    too_large => TooLarge, "next";
    /// The provider refused the credentials.
    auth => Auth, "next";
    /// The provider refused the request.
    bad_request => BadRequest, "next";
    /// The prompt is too long for the model, or larger than what the account may use in a minute: then other deployments are asked first.
    context_window => ContextWindow, "next";
    /// The provider refused the content, or filtered all of the answer.
    content_filter => ContentFilter, "next";
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Action {
    /// Try the same model again, as often as `retries` says; then the next.
    Retry,
    /// Try the next model.
    Next,
    /// Tell the caller.
    Stop,
}

/// How often and how long is tried.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Retry {
    /// Further tries on the same model.
    #[schemars(range(min = 0, max = 100))]
    pub retries: u32,
    /// How long the first of them waits at most; the next twice as long. None waits that goes to another deployment.
    pub base: Time,
    /// How long any of them waits at most.
    pub max: Time,
    /// A provider that asks for a longer wait, or a longer one than there is time, is left for the next model.
    pub max_wait: Time,
    /// Calls on all models together. Further tries on one leave a call for each that is still to be asked.
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u16,
    /// How long all of it may take until an answer has content. Unless told, one that is not streamed may take as long as
    /// `timeouts.total`, or twice as long as `timeouts.whole`, where that is longer,
    /// and where no `head` takes the place of `whole`.
    pub deadline: Time,
    /// How many further tries all calls together have, so that they do not multiply an outage.
    pub budget: RetryBudget,
    /// What to do about single causes of failure.
    pub on: Actions,
}

/// How many further tries on the same model all calls together have. When they are used up, a failure leads to the next model at once, or to the
/// caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RetryBudget {
    /// So many for a hundred calls. Below 100 it is one for a whole number of calls, rounded down: 30 is one for four.
    #[schemars(range(min = 0, max = 10000))]
    pub percent: u32,
    /// And so many for each second of `ttl`, however few calls there are.
    #[schemars(range(min = 0, max = 100000))]
    pub min_per_second: u32,
    /// How long a call, and a further try, counts: from 1s to 60s.
    pub ttl: Time,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10, ttl: Time::secs(10) }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            retries: 0,
            base: Time::millis(100),
            max: Time::secs(2),
            max_wait: Time::secs(10),
            max_attempts: 8,
            deadline: Time::secs(120),
            budget: RetryBudget::default(),
            on: Actions::default(),
        }
    }
}

/// Time limits of each call to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Timeouts {
    /// Until the head of the answer.
    pub head: Time,
    /// Until the first content.
    pub first_content: Time,
    /// Until an answer that is not streamed is there, in the place of `head` and `first_content`; unless told `head` where that
    /// is told, else five minutes.
    pub whole: Option<Time>,
    /// Between two chunks, from the first content on.
    pub idle: Time,
    /// Until the end.
    pub total: Time,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Time::secs(30),
            first_content: Time::secs(60),
            whole: None,
            idle: Time::secs(30),
            total: Time::secs(600),
        }
    }
}

/// Time limits of calls to one provider, where they differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TimeoutOverrides {
    /// Until the head of the answer.
    pub head: Option<Time>,
    /// Until the first content.
    pub first_content: Option<Time>,
    /// Until an answer that is not streamed is there; unless told `head` where that is told here, else as in `[timeouts]`.
    pub whole: Option<Time>,
    /// Between two chunks, from the first content on.
    pub idle: Option<Time>,
    /// Until the end.
    pub total: Option<Time>,
}

/// What a record survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RecordDurability {
    /// The process.
    Memory,
    /// That the process is killed.
    #[default]
    Kill,
    /// A power failure.
    PowerLoss,
}

/// One record for each call to a provider.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Usage {
    /// Whether calls are recorded.
    pub enabled: bool,
    /// The file of SQLite that they are recorded in; with `redis` a copy of what all have recorded.
    pub path: PathBuf,
    /// What a record survives.
    pub durability: RecordDurability,
    /// The last byte of an answer waits for its record, so long; unless told it does not.
    pub hold_last_byte: Option<Time>,
    /// Where several gateways record together: `redis://:password@host:6379`, or `rediss://` for TLS; of a cluster some of its
    /// nodes, with commas between them.
    pub redis: Option<Secret>,
    /// Whether one address is that of a cluster.
    pub redis_cluster: bool,
    /// How long records stay in Redis: longer than a gateway is ever away.
    pub redis_keep: Time,
    /// A directory of this gateway's own, where records wait for Redis.
    pub outbox: PathBuf,
    /// Calls are refused when so much waits.
    #[schemars(range(min = 65536))]
    pub outbox_max_bytes: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "usage.db".into(),
            durability: RecordDurability::Kill,
            hold_last_byte: None,
            redis: None,
            redis_cluster: false,
            redis_keep: Time::secs(90 * 24 * 60 * 60),
            outbox: "usage-outbox".into(),
            outbox_max_bytes: 1 << 30,
        }
    }
}

/// What a department may do. What is not said is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Department {
    /// The models that it may use, by name or pattern; without a list all, and by an empty one none. With
    /// one, no request may name models beside its own.
    #[schemars(inner(length(min = 1)))]
    pub models: Option<Vec<String>>,
    /// Requests in a day.
    #[schemars(range(min = 0))]
    pub day_requests: Option<u64>,
    /// Requests in a month.
    #[schemars(range(min = 0))]
    pub month_requests: Option<u64>,
    /// Tokens in a day.
    #[schemars(range(min = 0))]
    pub day_tokens: Option<u64>,
    /// Tokens in a month.
    #[schemars(range(min = 0))]
    pub month_tokens: Option<u64>,
    /// Dollars in a day, as text.
    pub day_cost: Option<Dollars>,
    /// Dollars in a month, as text.
    pub month_cost: Option<Dollars>,
}

/// Where it is counted what departments use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum QuotaStoreKind {
    /// In a file of this gateway's own.
    Sqlite,
    /// Where several gateways count together.
    Redis,
    /// In this process, which begins with what `[usage]` has recorded.
    Memory,
}

/// What comes of a call that is over a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum QuotaMode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is only counted.
    Shadow,
}

/// What a model without a price costs a department whose money is limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UnpricedModels {
    /// It must not be used.
    #[default]
    Reject,
    /// Nothing.
    Free,
    /// As `assume_input_cost` and `assume_output_cost` say.
    Assume,
}

/// How limits are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Quota {
    /// Where it is counted; in `redis` if that is told, else in `sqlite`.
    pub store: Option<QuotaStoreKind>,
    /// The file, for `sqlite`; `quota.db` unless told.
    pub path: Option<PathBuf>,
    /// As in `[usage]`, for `redis`: a server that evicts nothing.
    pub redis: Option<Secret>,
    /// Whether one address is that of a cluster.
    pub redis_cluster: bool,
    /// Departments from a table of SQLite that may be edited at any time, in place of `[departments]`.
    pub policies: Option<PathBuf>,
    /// What comes of a call that is over a limit.
    pub mode: QuotaMode,
    /// The bound of an answer that is asked for without one; 4096 unless told.
    #[schemars(range(min = 1))]
    pub max_output_tokens: Option<u64>,
    /// Shorten answers to what fits, down to so many tokens, rather than refuse.
    #[schemars(range(min = 1))]
    pub shrink_to: Option<u64>,
    /// What a model without a price costs.
    pub unpriced: UnpricedModels,
    /// Dollars for a million tokens of input.
    pub assume_input_cost: Option<PerMillion>,
    /// Dollars for a million tokens of output.
    pub assume_output_cost: Option<PerMillion>,
    /// How long the store may take; then the call is refused. 250 ms unless told.
    pub timeout: Option<Time>,
    /// Whose days and months, such as `Europe/Berlin`; UTC unless told. Zones are the system's; where it has none, those of the time of building.
    #[schemars(length(min = 1))]
    pub time_zone: Option<String>,
}

/// Answers that are given again to the same question of the same user with the same rights.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Cache {
    /// Whether there is one; without the table there is none.
    pub enabled: bool,
    /// How long answers are kept.
    pub ttl: Time,
    /// How much is kept in memory.
    #[schemars(range(min = 65536))]
    pub max_bytes: u64,
    /// How large an answer may be that is kept.
    #[schemars(range(min = 1024))]
    pub max_entry_bytes: usize,
    /// Above this temperature nothing is kept.
    #[schemars(range(min = 0.0))]
    pub max_temperature: Option<f64>,
    /// Whether answers that call tools are kept.
    pub tool_calls: bool,
    /// Whether equal calls in flight of the same departments share one, which they pay once.
    pub coalesce: bool,
    /// With `coalesce`, how many calls that the cache has no answer to may be in flight, shared or not; beyond, they are refused as overloaded. As many as `server.max_in_flight`, and at least 1024, unless told.
    #[schemars(range(min = 1))]
    pub max_flights: Option<usize>,
    /// What gateways share, as in `[usage]`: another server than that of `[quota]`, which may evict.
    pub redis: Option<Secret>,
    /// Whether one address is that of a cluster.
    pub redis_cluster: bool,
    /// Needed with `redis`, and with a shared store of the program's, the same for all; 32 characters or more.
    pub secret: Option<Secret>,
    /// Whether what is in Redis is encrypted.
    pub encrypt: bool,
    /// What is said of single knowledge bases. Of those that are not named, nothing is kept.
    pub knowledge_bases: BTreeMap<String, KnowledgeBase>,
    /// Answers to similar questions.
    pub semantic: Option<SemanticCache>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            enabled: true,
            ttl: Time::secs(3600),
            max_bytes: 64 << 20,
            max_entry_bytes: 1 << 20,
            max_temperature: None,
            tool_calls: false,
            coalesce: false,
            max_flights: None,
            redis: None,
            redis_cluster: false,
            secret: None,
            encrypt: false,
            knowledge_bases: BTreeMap::new(),
            semantic: None,
        }
    }
}

/// What is said of a knowledge base.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KnowledgeBase {
    /// Whether answers that draw on it may be kept.
    pub cache: bool,
}

/// What is done with similar questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SemanticMode {
    /// They are counted, and answered by the provider.
    #[default]
    Shadow,
    /// They are answered.
    Answer,
}

/// How similar questions are found: by vectors from an OpenAI-compatible server of embeddings.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SemanticCache {
    /// Where it is, such as `https://api.openai.com/v1`.
    pub base_url: BaseUrl,
    /// The key that it is asked with.
    pub api_key: Option<Secret>,
    /// Further headers that it is sent, such as Azure's `api-key`.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// The model that makes vectors.
    #[schemars(length(min = 1))]
    pub model: String,
    /// What is done with similar questions.
    #[serde(default)]
    pub mode: SemanticMode,
    /// From which cosine on two vectors are alike; 0.95 unless told.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub threshold: Option<f64>,
    /// How long the server may take; 100 ms unless told.
    pub timeout: Option<Time>,
    /// How many vectors are asked for at once; 64 unless told.
    #[schemars(range(min = 1))]
    pub concurrency: Option<usize>,
    /// Longer messages are left alone; 4096 unless told.
    #[schemars(range(min = 1))]
    pub max_text_bytes: Option<usize>,
    /// Lets words differ that are no numbers, negators, quotations or names. Gives wrong answers.
    #[serde(default)]
    pub other_words: bool,
}

/// Where prices are read from, beside those of the providers' models. Without any, calls are recorded as unpriced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PriceLists {
    /// LiteLLM's `model_prices_and_context_window.json`.
    pub litellm: Option<PathBuf>,
    /// Your own list, in TOML, which goes before LiteLLM's.
    pub own: Option<PathBuf>,
}

/// What a line of the log is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Log {
    /// Text.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// What is told of the calls. Where OTLP goes to is said by the standard variables of OpenTelemetry.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Telemetry {
    /// Whether `GET /metrics` answers, to anybody, in Prometheus' format.
    pub metrics: bool,
    /// What a line of the log is.
    pub log: Log,
    /// Whether answers show in headers (`x-llm-…`) how they came to be: for people who debug.
    pub decision_headers: bool,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { metrics: true, log: Log::Text, decision_headers: false }
    }
}
