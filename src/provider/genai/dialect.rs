use ::genai::adapter::AdapterKind;

/// The way a provider is spoken to.
///
/// What speaks OpenAI's dialect is [`OpenAiCompatible`](crate::provider::openai::OpenAiCompatible)'s, which
/// passes requests on byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// Anthropic's Messages API, keys in `x-api-key`.
    Anthropic,
    /// Google's Gemini API, keys in `x-goog-api-key`.
    Gemini,
    /// Google's Vertex AI: models that begin with `gemini` or `claude`. The key is an access token of OAuth, which
    /// expires within the hour: whoever runs this exchanges the leaf.
    Vertex,
    /// Amazon Bedrock's Converse API, with an API key of Bedrock.
    Bedrock,
    /// Cohere's Chat API, version 1: text only.
    Cohere,
    /// Ollama's own API; a key, if there is one, is sent as a bearer token.
    Ollama,
}

/// What goes over the wire to one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Anthropic,
    /// Claude at Vertex, of which genai carries less.
    VertexClaude,
    /// At Vertex as well.
    Gemini,
    Bedrock,
    Cohere,
    Ollama,
}

impl Dialect {
    /// Its name in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Vertex => "vertex",
            Self::Bedrock => "bedrock",
            Self::Cohere => "cohere",
            Self::Ollama => "ollama",
        }
    }

    /// Where it is spoken, if that is not for each customer, or region, to say.
    pub const fn default_base_url(self) -> Option<&'static str> {
        match self {
            Self::Anthropic => Some("https://api.anthropic.com/v1"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com/v1beta"),
            Self::Cohere => Some("https://api.cohere.com/v1"),
            Self::Ollama => Some("http://localhost:11434"),
            Self::Vertex | Self::Bedrock => None,
        }
    }

    /// What a base URL without a path is missing.
    pub(super) const fn default_path(self) -> &'static str {
        match self {
            Self::Anthropic | Self::Cohere => "/v1/",
            Self::Gemini => "/v1beta/",
            Self::Vertex | Self::Bedrock | Self::Ollama => "/",
        }
    }

    pub(super) const fn adapter(self) -> AdapterKind {
        match self {
            Self::Anthropic => AdapterKind::Anthropic,
            Self::Gemini => AdapterKind::Gemini,
            Self::Vertex => AdapterKind::Vertex,
            Self::Bedrock => AdapterKind::BedrockApi,
            Self::Cohere => AdapterKind::Cohere,
            Self::Ollama => AdapterKind::Ollama,
        }
    }

    /// How `model` is asked, if it is a name that can be asked for: genai reads namespaces and efforts from names and
    /// puts names into paths, and a name comes from whoever asks.
    pub(super) fn wire(self, model: &str) -> Option<Wire> {
        let plain = |also: &[u8]| {
            model.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
                && model
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b) || also.contains(&b))
        };
        // `::` would be taken for a namespace, and left out.
        let named = plain(b":/@+") && !model.contains("::");
        match self {
            Self::Anthropic => (named && !ends_in_effort(model)).then_some(Wire::Anthropic),
            Self::Gemini => plain(b"").then_some(Wire::Gemini),
            Self::Vertex if model.starts_with("gemini") => plain(b"@").then_some(Wire::Gemini),
            Self::Vertex if model.starts_with("claude") => plain(b"@").then_some(Wire::VertexClaude),
            Self::Vertex => None,
            Self::Bedrock => named.then_some(Wire::Bedrock),
            Self::Cohere => named.then_some(Wire::Cohere),
            Self::Ollama => named.then_some(Wire::Ollama),
        }
    }
}

/// genai would ask for the model of the name before, with that effort.
fn ends_in_effort(model: &str) -> bool {
    let last = model.rsplit_once('-').map(|(_, last)| last);
    matches!(last, Some("zero" | "none" | "minimal" | "low" | "medium" | "high" | "xhigh" | "max"))
}

impl Wire {
    /// Whether turns of one side must be one message, results of tools among the user's.
    pub(super) const fn joins_turns(self) -> bool {
        matches!(self, Self::Anthropic | Self::VertexClaude | Self::Bedrock)
    }

    /// Whether genai makes up the end of a stream that has none.
    pub(super) const fn end_is_made_up(self) -> bool {
        matches!(self, Self::Gemini | Self::Bedrock | Self::Ollama)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_chooses_a_model_and_nothing_else() {
        for (dialect, name) in [
            (Dialect::Anthropic, "claude-sonnet-4-5"),
            (Dialect::Gemini, "gemini-2.5-flash"),
            (Dialect::Gemini, "gemini-2.5-flash-high"),
            (Dialect::Vertex, "claude-sonnet-4-5@20250929"),
            (Dialect::Bedrock, "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
            (Dialect::Bedrock, "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-lite-v1:0"),
            (Dialect::Ollama, "hf.co/bartowski/Llama-3.2-3B:Q4_K_M"),
        ] {
            assert!(dialect.wire(name).is_some(), "{name}");
        }
        for (dialect, name) in [
            (Dialect::Anthropic, "gemini::gemini-2.5-flash"),
            (Dialect::Anthropic, "claude-sonnet-4-5-high"),
            (Dialect::Anthropic, ""),
            (Dialect::Gemini, "gemini-2.5-pro:streamGenerateContent?x="),
            (Dialect::Gemini, "../../v1beta/files"),
            (Dialect::Gemini, "a/b"),
            (Dialect::Gemini, "a%2e"),
            (Dialect::Gemini, "a#"),
            (Dialect::Gemini, "a?key=x"),
            (Dialect::Vertex, "llama-3"),
            (Dialect::Vertex, "gemini/../../x"),
            (Dialect::Bedrock, ".."),
            (Dialect::Ollama, "openai::gpt-4"),
        ] {
            assert!(dialect.wire(name).is_none(), "{name}");
        }
    }
}
