use super::openai::ConfigError;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri, uri::Scheme};
use percent_encoding::percent_decode_str;
use std::fmt;

/// A proxy by which providers are reached, from where nothing else is: asked by `CONNECT` to pass on what it cannot read.
///
/// Variables of the environment such as `HTTPS_PROXY` are not obeyed: whom a provider is reached by is said where the provider is.
/// `Debug` shows no user and no password.
///
/// ```
/// use llm_layers::provider::Proxy;
///
/// # fn main() -> Result<(), llm_layers::provider::openai::ConfigError> {
/// let proxy = Proxy::new("http://gateway:s%40cret@proxy.example:3128")?;
/// assert!(!format!("{proxy:?}").contains("cret"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    uri: Uri,
    credentials: Option<HeaderValue>,
}

impl Proxy {
    /// At `url`: `http://[USER:PASSWORD@]HOST:PORT`, with escapes such as `%40` in user and password where need be.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Proxy`]: it is not that.
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        let invalid = |reason| ConfigError::Proxy { reason };
        let url: Uri = url.as_ref().trim().parse().map_err(|_| invalid("it is not a URL"))?;
        if url.scheme() != Some(&Scheme::HTTP) {
            return Err(invalid("it must begin with http://"));
        }
        let authority = url.authority().ok_or(invalid("it names no host"))?;
        if authority.host().is_empty() {
            return Err(invalid("it names no host"));
        }
        if authority.port_u16().is_none() {
            return Err(invalid("it must end with a port"));
        }
        if !matches!(url.path_and_query().map(|rest| rest.as_str()), None | Some("/")) {
            return Err(invalid("it must end with its port"));
        }
        let (credentials, address) = match authority.as_str().rsplit_once('@') {
            Some((told, address)) => {
                let told: Vec<u8> = percent_decode_str(told).collect();
                let basic = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(told)));
                let mut basic = basic.map_err(|_| invalid("its user or password cannot be sent"))?;
                basic.set_sensitive(true);
                (Some(basic), address)
            }
            None => (None, authority.as_str()),
        };
        let uri = format!("http://{address}/").parse().map_err(|_| invalid("it is not a URL"))?;
        Ok(Self { uri, credentials })
    }

    pub(in crate::provider) const fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(in crate::provider) const fn credentials(&self) -> Option<&HeaderValue> {
        self.credentials.as_ref()
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("uri", &self.uri).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_out_of_the_url_and_shown_to_nobody() {
        for (url, uri, credentials) in [
            ("http://proxy:3128", "http://proxy:3128/", None),
            (" http://proxy:3128/\n", "http://proxy:3128/", None),
            ("http://[::1]:3128", "http://[::1]:3128/", None),
            ("http://ada:secret@proxy:1", "http://proxy:1/", Some("ada:secret")),
            ("http://ada:s%40c%3Aret@proxy:1", "http://proxy:1/", Some("ada:s@c:ret")),
            ("http://ada@proxy:1", "http://proxy:1/", Some("ada")),
        ] {
            let proxy = Proxy::new(url).unwrap();
            let basic = credentials.map(|told| format!("Basic {}", BASE64_STANDARD.encode(told)));
            assert_eq!(
                (proxy.uri.to_string(), proxy.credentials.as_ref().map(|it| it.to_str().unwrap())),
                (uri.to_owned(), basic.as_deref())
            );
            assert!(!format!("{proxy:?}").contains("ada"), "{proxy:?}");
        }
        for url in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://secret@proxy:1",
            "http://secret@:1",
            "http://secret@proxy",
            "http://secret@proxy:1/x",
            "http://secret@proxy:1?x",
            "http://a secret@proxy:1",
        ] {
            let error = Proxy::new(url).unwrap_err();
            assert!(
                matches!(error, ConfigError::Proxy { .. })
                    && !format!("{error} {error:?}").contains("secret"),
                "{error:?}"
            );
        }
    }
}
