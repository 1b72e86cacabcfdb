//! From other people's errors, so that our layers stand above tower's without an adapter.

use super::{BoxError, Error, ErrorKind, TimeoutPhase};
use std::{convert::Infallible, io};

/// Finds our own error wherever a foreign layer has wrapped it, and knows tower's own.
///
/// `Buffer` hides the inner service's error behind its own and shows it as a source only; `Timeout` and
/// `LoadShed` have errors of their own. Anything else becomes [`ErrorKind::Other`] and keeps its source.
///
/// Where [`BoxError`] is part of a service's type, as it is of a closure's or a box's, the compiler refuses a task that awaits
/// a stack around it: "implementation of `From` is not general enough". Box the stack before you move it there:
///
/// ```
/// use llm_layers::{BoxError, ChatBody, Error, LlmRequest, LlmResponse, peek::PeekLayer};
/// use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let leaf = service_fn(|_: LlmRequest| async { Err::<LlmResponse, _>(BoxError::from("out of memory")) });
/// let stack = BoxCloneSyncService::new(PeekLayer::new().layer(leaf));
///
/// let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
/// let call = tokio::spawn(async move { stack.oneshot(request).await?.text().await });
/// let error: Error = call.await?.unwrap_err();
/// assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "out of memory");
/// # Ok(())
/// # }
/// ```
impl From<BoxError> for Error {
    fn from(error: BoxError) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(error) => return *error,
            Err(error) => error,
        };
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
        let mut known = None;
        while let Some(cause) = next {
            if let Some(ours) = cause.downcast_ref::<Self>() {
                return ours.clone();
            }
            if cause.is::<tower::timeout::error::Elapsed>() {
                known = Some(ErrorKind::Timeout { phase: TimeoutPhase::Head });
            } else if cause.is::<tower::load_shed::error::Overloaded>() {
                known = Some(ErrorKind::Overloaded);
            }
            // `io::Error` passes over what it wraps when it is asked for its source.
            next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => cause.source(),
            };
        }
        Self::new(known.unwrap_or(ErrorKind::Other)).with_source(error)
    }
}

impl From<Infallible> for Error {
    fn from(error: Infallible) -> Self {
        match error {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::load_shed::error::Overloaded;

    #[derive(Debug)]
    struct Wrapped(BoxError);
    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("wrapped")
        }
    }
    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&*self.0)
        }
    }

    #[test]
    fn ours_is_found_behind_any_number_of_wrappers() {
        let inner = Error::new(ErrorKind::NotCached);
        let error = Error::from(BoxError::from(Wrapped(Wrapped(inner.into()).into())));
        assert!(matches!(error.kind(), ErrorKind::NotCached));
        let inner = Error::new(ErrorKind::NotCached);
        let error = Error::from(BoxError::from(Wrapped(io::Error::other(inner).into())));
        assert!(matches!(error.kind(), ErrorKind::NotCached));
    }

    #[test]
    fn towers_errors_have_a_kind_and_stay_as_source() {
        let error = Error::from(BoxError::from(Wrapped(Overloaded::new().into())));
        assert!(matches!(error.kind(), ErrorKind::Overloaded));
        assert!(std::error::Error::source(&error).is_some_and(|s| s.is::<Wrapped>()));
    }

    #[test]
    fn one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Option<Error>>(), size_of::<usize>());
    }
}
