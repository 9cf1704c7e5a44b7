//! `foggara.inference.v1`: a request as a driver keeps it for front doors.

use super::WireError;
use crate::wire::inference as wire;

impl wire::GenerateRequest {
    /// What goes into [`SequenceRequest::envelope`](crate::sequence::SequenceRequest::envelope). Two envelopes of the same
    /// request may differ in their bytes.
    pub fn to_envelope(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// The reverse of [`to_envelope`](Self::to_envelope).
    ///
    /// # Errors
    /// If it is none.
    pub fn from_envelope(envelope: &[u8]) -> Result<Self, WireError> {
        prost::Message::decode(envelope).map_err(|e| WireError::new("envelope", e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_are_read_as_they_were_written() {
        let sampling =
            wire::SamplingParams { logit_bias: [(1, 2.0), (3, -4.0)].into(), ..Default::default() };
        let request =
            wire::GenerateRequest { model: "m".into(), sampling: Some(sampling), ..Default::default() };
        assert_eq!(wire::GenerateRequest::from_envelope(&request.to_envelope()), Ok(request));
        let error = wire::GenerateRequest::from_envelope(&[255; 9]).expect_err("no message");
        assert_eq!(error.field, "envelope");
    }
}
