use super::{bearer, metadata::read};
use crate::{
    RequestContext,
    http::{StatedError, stated::states_identity_beside, stated_context},
    stack::{Caller, Handle},
};
use tonic::{Status, metadata::MetadataMap};

/// Finds out who asks, by the key in `authorization: Bearer KEY`, and what their metadata says of the call: see [`context`](super::context).
///
/// An application whose key is trusted may say in [metadata](crate::http::STATED) for whom it asks. Of anybody else that
/// is refused, never believed, and never ignored: who sends it is wrong about his rights. So is who sends metadata `x-llm-…` that nobody
/// reads, whoever he is. The caller's
/// [place](Caller::admit) among the calls of his key is yours to take.
///
/// # Errors
///
/// `UNAUTHENTICATED` without a key that is known. `INVALID_ARGUMENT` for two of them; for metadata that says for whom, from somebody who
/// is not trusted; and for such that cannot be read, or that nobody reads.
///
/// ```
/// use llm_layers::{config::Config, http::tonic::identify, stack::stack};
/// use tonic::{Code, metadata::MetadataMap};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_service, handle) = stack(Config::parse(r#"
///     usage.enabled = false
///     providers.echo.kind = "echo"
///     keys = [{ key = "ada-key", user = "ada", departments = ["research"] }]
/// "#)?).await?;
/// let mut metadata = MetadataMap::new();
/// let refused = identify(&handle, &metadata).err().ok_or("there is no key")?;
/// assert_eq!(refused.code(), Code::Unauthenticated);
///
/// metadata.insert("authorization", "Bearer ada-key".parse()?);
/// let (context, caller) = identify(&handle, &metadata)?;
/// assert_eq!(context.user_id(), Some("ada"));
/// assert!(caller.may_ask_about("research") && !caller.is_admin());
/// # Ok(())
/// # }
/// ```
pub fn identify(handle: &Handle, metadata: &MetadataMap) -> Result<(RequestContext, Caller), Status> {
    if metadata.get_all("authorization").iter().nth(1).is_some() {
        return Err(Status::invalid_argument("the API key stands there twice"));
    }
    let caller = handle.caller(bearer(metadata)).ok_or_else(|| {
        Status::unauthenticated("the API key is missing or wrong; send it as `authorization: Bearer KEY`")
    })?;
    let headers = metadata.as_ref();
    let invalid = |error: StatedError| Status::invalid_argument(error.to_string());
    let who = match states_identity_beside(headers, &[]).map_err(invalid)? {
        false => caller.context().clone(),
        true if caller.is_trusted() => stated_context(headers, caller.context()).map_err(invalid)?,
        true => {
            let message = "this key may not say in x-llm metadata for whom it asks";
            return Err(Status::invalid_argument(message));
        }
    };
    Ok((read(metadata, who), caller))
}
