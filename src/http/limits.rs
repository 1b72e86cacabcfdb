use crate::{BodyLimits, config::Server};

/// What a configuration says of how much a request may ask.
///
/// Of the configuration of a [`Handle`](crate::stack::Handle), ask anew for each call: it may be another one by then.
///
/// ```
/// use llm_layers::{config::Config, http::body_limits};
///
/// let config = Config::parse("usage.enabled = false\nproviders.echo.kind = \"echo\"\nserver.max_messages = 20\n")?;
/// assert_eq!(body_limits(&config.server).max_messages, 20);
/// # Ok::<(), llm_layers::config::ConfigError>(())
/// ```
pub fn body_limits(server: &Server) -> BodyLimits {
    BodyLimits::default()
        .with_max_bytes(server.max_body_bytes)
        .with_max_depth(server.max_depth)
        .with_max_messages(server.max_messages)
        .with_max_tools(server.max_tools)
}
