//! The cluster token: what coordinators and workers show each other.

use std::sync::Arc;

use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Shown with every call between processes of a cluster, and asked for; without one, everything is let through (which is
/// why processes then listen on loopback only).
#[derive(Clone, Default)]
pub struct ClusterToken(Option<Arc<str>>);

impl std::fmt::Debug for ClusterToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "ClusterToken(set)" } else { "ClusterToken(none)" })
    }
}

impl ClusterToken {
    /// The token `text`, or none.
    pub fn new(text: Option<&str>) -> Self {
        Self(text.filter(|text| !text.is_empty()).map(Arc::from))
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// The value of an `authorization` header.
    pub fn header(&self) -> Option<String> {
        self.0.as_ref().map(|token| format!("Bearer {token}"))
    }

    /// Whether an `authorization` header's value shows this token. Takes the same time wherever they differ.
    pub fn admits(&self, header: Option<&[u8]>) -> bool {
        let Some(expected) = self.header() else { return true };
        let shown = header.unwrap_or_default();
        let mut difference = expected.len() ^ shown.len();
        for (i, byte) in expected.bytes().enumerate() {
            difference |= usize::from(byte ^ shown.get(i).copied().unwrap_or_default());
        }
        difference == 0
    }

    /// Lets calls through that show the token: for servers.
    pub fn required(&self) -> impl Interceptor + Clone + use<> {
        let token = self.clone();
        move |request: Request<()>| {
            let shown = request.metadata().get("authorization").map(|value| value.as_bytes());
            if token.admits(shown) {
                return Ok(request);
            }
            Err(Status::unauthenticated("this call needs the cluster token (`authorization: Bearer …`)"))
        }
    }

    /// Shows the token with every call: for clients.
    pub fn shown(&self) -> impl Interceptor + Clone + use<> {
        let header = self.header();
        move |mut request: Request<()>| {
            if let Some(header) = &header {
                let value = header
                    .parse()
                    .map_err(|_| Status::internal("the cluster token must be visible ASCII"))?;
                request.metadata_mut().insert("authorization", value);
            }
            Ok(request)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_admitted() {
        let token = ClusterToken::new(Some("secret"));
        for (header, admitted) in [
            (Some("Bearer secret"), true),
            (Some("Bearer secre"), false),
            (Some("Bearer secrets"), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(token.admits(header.map(str::as_bytes)), admitted, "{header:?}");
        }
        assert!(ClusterToken::new(None).admits(None));
        assert!(!format!("{token:?}").contains("secret"));
    }
}
