use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context, global,
    propagation::{Extractor, Injector},
};

const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// Writes what is current into a request's headers, as the program's global propagator does it, and of that only
/// `traceparent` and `tracestate`: baggage is for nobody else. Without a propagator it writes nothing.
pub fn inject(headers: &mut HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject(&mut OnlyTrace(headers)));
}

/// What a request's headers say of the trace that it belongs to, for the edge of a server.
///
/// ```
/// let headers = http::HeaderMap::new();
/// // Whatever is called while the guard lives belongs to the caller's trace.
/// let _guard = llm_layers::telemetry::otel::extract(&headers).attach();
/// ```
pub fn extract(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)))
}

struct OnlyTrace<'a>(&'a mut HeaderMap);

struct Headers<'a>(&'a HeaderMap);

impl Injector for OnlyTrace<'_> {
    fn set(&mut self, key: &str, value: String) {
        let Some(name) = TRACE.into_iter().find(|name| key.eq_ignore_ascii_case(name)) else { return };
        // An empty tracestate says nothing.
        if let Ok(value) = HeaderValue::try_from(value)
            && !value.is_empty()
        {
            self.0.insert(HeaderName::from_static(name), value);
        }
    }
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
