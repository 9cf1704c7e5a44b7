//! What processes of a cluster show each other with every call: the cluster token, and what they are.

use std::sync::Arc;

use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::version::{Build, HEADER};

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

    /// The same of processes of the cluster, which must speak a protocol that is spoken here: for servers that only these call.
    pub fn required_of_peers(&self) -> impl Interceptor + Clone + use<> {
        let (mut token, own) = (self.required(), Build::own());
        move |request: Request<()>| {
            let request = token.call(request)?;
            let header = request.metadata().get(HEADER).and_then(|header| header.to_str().ok());
            match fits(&own, header) {
                Ok(()) => Ok(request),
                Err(reason) => Err(Status::unimplemented(reason)),
            }
        }
    }

    /// Shows the token, and what this program is, with every call: for clients.
    pub fn shown(&self) -> impl Interceptor + Clone + use<> {
        let (header, build) = (self.header(), Build::own().to_string());
        move |mut request: Request<()>| {
            // A version is visible ASCII.
            if let Ok(build) = build.parse() {
                request.metadata_mut().insert(HEADER, build);
            }
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

/// Whether what a caller says it is goes together with `own`.
fn fits(own: &Build, header: Option<&str>) -> Result<(), String> {
    let Some(other) = header.and_then(Build::parse) else {
        let Build { version, protocols, .. } = own;
        return Err(format!(
            "the caller does not say what it is, as releases before protocol 3 did not; foggara {version} here speaks protocol {protocols}"
        ));
    };
    own.speaks_with(&other.version, other.protocols).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_another_protocol_are_refused_with_what_both_speak() {
        let own = Build::own();
        let said = |protocols| format!("version=9.0.0 protocols={protocols} formats=1-1");
        let newest = own.protocols.newest;
        for (header, refused) in [
            (Some(own.to_string()), None),
            (Some(said(format!("{newest}-{}", newest + 7))), None),
            (Some(said(format!("{}-{}", newest + 1, newest + 7))), Some("foggara 9.0.0 speaks protocol")),
            (Some("nonsense".into()), Some("does not say what it is")),
            (None, Some("does not say what it is")),
        ] {
            let mut request = Request::new(());
            if let Some(header) = &header {
                request.metadata_mut().insert(HEADER, header.parse().expect("ASCII"));
            }
            let answer = ClusterToken::new(None).required_of_peers().call(request);
            let text = answer.as_ref().err().map(Status::message);
            match refused {
                None => assert_eq!(text, None, "{header:?}"),
                Some(begin) => {
                    let text = text.expect("refused");
                    assert!(text.contains(begin) && text.contains(&own.version), "{text}");
                }
            }
        }
    }

    #[test]
    fn what_is_shown_is_taken() {
        let token = ClusterToken::new(Some("secret"));
        let shown = token.shown().call(Request::new(())).expect("visible");
        assert!(token.required_of_peers().call(shown).is_ok());
    }

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
