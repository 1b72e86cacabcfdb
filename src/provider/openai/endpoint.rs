use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
    uri::{PathAndQuery, Scheme},
};
use std::{borrow::Cow, fmt, sync::Arc};

/// Where requests go and with which headers: all that is configured, shared by every call.
#[derive(Clone)]
pub(in crate::provider) struct Endpoint {
    pub(in crate::provider) uri: Uri,
    pub(in crate::provider) headers: HeaderMap,
    pub(in crate::provider) provider: Arc<str>,
    pub(in crate::provider) host: Box<str>,
    pub(in crate::provider) port: u16,
    pub(in crate::provider) max_answer_bytes: usize,
    pub(in crate::provider) max_event_bytes: usize,
    /// Under which member a bound of the answer is sent; as it comes unless told.
    pub(in crate::provider) output_member: Option<Cow<'static, str>>,
    /// Whether streams are asked for their usage where the caller does not ask.
    pub(in crate::provider) stream_usage: bool,
    /// Whether thoughts of earlier turns are sent that are [dispensable](crate::Dispensable).
    pub(in crate::provider) returned_thoughts: bool,
    /// Whether requests say which trace they belong to.
    #[cfg(feature = "otel")]
    pub(in crate::provider) trace_headers: bool,
}

/// A provider that cannot be set up as it was told to be.
///
/// Says what is wrong and never shows it: base URLs and headers carry keys.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The base URL is not one.
    BaseUrl {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The key is empty, or has characters that no header may have, such as the end of a line.
    ApiKey,
    /// The name or the value cannot be a header's.
    Header {
        /// Its name, if that is one.
        name: Option<HeaderName>,
    },
    /// There is no certificate in it, or one that cannot be read.
    Certificate,
    /// The URL of a proxy is not one.
    Proxy {
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Whose models go on from what they thought before; DeepSeek's and Kimi's refuse to go on without after a call of a tool.
const TAKE_THOUGHTS: [&str; 7] = [
    "api.deepseek.com",
    "api.moonshot.ai",
    "api.moonshot.cn",
    "api.z.ai",
    "open.bigmodel.cn",
    "api.xiaomimimo.com",
    "openrouter.ai",
];

/// How a model is told not to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotThinking {
    /// By an effort of `none`.
    Effort,
    /// By `thinking`, as Anthropic has it.
    Thinking,
    /// By nothing that it is sure to know.
    Unknown,
}

impl NotThinking {
    pub(super) fn of(host: &str, model: &str) -> Self {
        let is = |hosts: &[&str]| hosts.iter().any(|known| host.eq_ignore_ascii_case(known));
        let is_fixed = |model: &str| ["codex", "chat", "pro"].iter().any(|kind| model.contains(kind));
        match model {
            _ if is(&["api.deepseek.com", "api.z.ai", "open.bigmodel.cn"]) => Self::Thinking,
            // Those before refuse it, and so do those of one effort.
            model if is(&["api.openai.com"]) && model.starts_with("gpt-5.") && !is_fixed(model) => {
                Self::Effort
            }
            _ => Self::Unknown,
        }
    }
}

impl Endpoint {
    /// Where `path` is, below `base_url`.
    pub(in crate::provider) fn new(base_url: &str, path: &str) -> Result<Self, ConfigError> {
        let invalid = |reason| ConfigError::BaseUrl { reason };
        let base: Uri = base_url.trim().parse().map_err(|_| invalid("it is not a URL"))?;
        let mut parts = base.into_parts();
        let port = match &parts.scheme {
            Some(scheme) if *scheme == Scheme::HTTPS => 443,
            Some(scheme) if *scheme == Scheme::HTTP => 80,
            _ => return Err(invalid("it must begin with http:// or https://")),
        };
        let authority = parts.authority.as_ref().ok_or(invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it must not carry a user or a password"));
        }
        let host: Box<str> = authority.host().trim_matches(['[', ']']).into();
        if host.is_empty() {
            return Err(invalid("it names no host"));
        }
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => port,
            None => return Err(invalid("its port is not one")),
        };
        let (base_path, query) = match &parts.path_and_query {
            Some(both) => (both.path(), both.query()),
            None => ("", None),
        };
        let mut path = format!("{}{path}", base_path.trim_end_matches('/'));
        if let Some(query) = query {
            path.extend(["?", query]);
        }
        let path = PathAndQuery::try_from(path).map_err(|_| invalid("its path is not one"))?;
        parts.path_and_query = Some(path);
        Ok(Self {
            uri: Uri::from_parts(parts).map_err(|_| invalid("it is not a URL"))?,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
            provider: host.as_ref().into(),
            // Tells it unasked, and refuses to be asked.
            stream_usage: !host.eq_ignore_ascii_case("api.mistral.ai"),
            returned_thoughts: TAKE_THOUGHTS.iter().any(|known| host.eq_ignore_ascii_case(known)),
            host,
            port,
            max_answer_bytes: 32 << 20,
            max_event_bytes: 8 << 20,
            output_member: None,
            #[cfg(feature = "otel")]
            trace_headers: false,
        })
    }

    pub(in crate::provider) fn set_api_key(&mut self, key: &str) -> Result<(), ConfigError> {
        if key.is_empty() {
            return Err(ConfigError::ApiKey);
        }
        let bearer = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ConfigError::ApiKey)?;
        self.set_sensitive(AUTHORIZATION, bearer);
        Ok(())
    }

    pub(in crate::provider) fn set_header(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let name = HeaderName::try_from(name).map_err(|_| ConfigError::Header { name: None })?;
        let Ok(value) = HeaderValue::try_from(value) else {
            return Err(ConfigError::Header { name: Some(name) });
        };
        self.set_sensitive(name, value);
        Ok(())
    }

    fn set_sensitive(&mut self, name: HeaderName, mut value: HeaderValue) {
        value.set_sensitive(true);
        self.headers.insert(name, value);
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BaseUrl { reason } => write!(f, "the base URL cannot be used: {reason}"),
            Self::Proxy { reason } => write!(f, "the proxy cannot be used: {reason}"),
            Self::ApiKey => f.write_str("the API key is empty or cannot be sent in a header"),
            Self::Header { name: Some(name) } => write!(f, "the value of the header {name} cannot be sent"),
            Self::Certificate => f.write_str("there is no certificate, or one that cannot be read"),
            Self::Header { name: None } => f.write_str("a header's name is not one"),
        }
    }
}

impl std::error::Error for ConfigError {}
