use crate::{LlmRequest, json};
use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

/// The names of a request's tools that are too long for many providers, each by the one that stands for it in the body.
///
/// Anthropic takes 128 characters, and tools of MCP have them; OpenAI takes 64. What is longer goes on as its first 47, `_`
/// and 16 hexadecimal digits of its BLAKE3 hash, wherever it stands, and is put back in answers.
///
/// ```
/// use llm_layers::{BodyLimits, http::anthropic::{self, ToolNames}};
///
/// let long = "mcp__".repeat(20);
/// let asked = format!(
///     r#"{{"model":"fast","max_tokens":9,"messages":[{{"role":"user","content":"Hi"}}],"tools":[{{"name":"{long}","input_schema":{{}}}}]}}"#
/// );
/// let request = anthropic::chat_request(asked, &BodyLimits::default())?;
/// let sent = request.body.tools().next().expect("a tool");
/// assert!(!sent.windows(65).any(|name| name == &long.as_bytes()[..65]));
/// let names = ToolNames::of(&request); // for `message_naming` and `MessageEvents`
/// # let _ = names;
/// # Ok::<(), llm_layers::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ToolNames(Option<Arc<BTreeMap<Box<str>, Box<str>>>>);

const MOST: usize = 64;

impl ToolNames {
    /// Those of a request that [`chat_request`](super::chat_request) has read; none of any other.
    pub fn of(request: &LlmRequest) -> Self {
        request.body.translated().map(|translated| translated.tool_names.clone()).unwrap_or_default()
    }

    /// A name, as JSON, that is not too long, in the place of this one.
    pub(super) fn shortened<'a>(&mut self, raw: &'a [u8]) -> Cow<'a, [u8]> {
        let long = Some(raw).filter(|raw| raw.len() > MOST + 2).and_then(json::string);
        let Some(long) = long.filter(|name| name.chars().nth(MOST).is_some()) else {
            return Cow::Borrowed(raw);
        };
        let hash = blake3::hash(long.as_bytes()).to_hex();
        let short: String = long.chars().take(MOST - 17).chain(['_']).chain(hash.chars().take(16)).collect();
        let json = json::quoted(&short);
        Arc::make_mut(self.0.get_or_insert_default()).insert(short.into(), long.into());
        Cow::Owned(json)
    }

    /// The name that an answer's stands for.
    pub(super) fn restored<'a>(&'a self, name: Cow<'a, str>) -> Cow<'a, str> {
        let long = self.0.as_ref().and_then(|names| names.get(&*name));
        long.map_or(name, |long| Cow::Borrowed(long))
    }
}

impl fmt::Debug for ToolNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let long = self.0.as_ref().map_or(0, |names| names.len());
        f.debug_struct("ToolNames").field("long", &long).finish()
    }
}
