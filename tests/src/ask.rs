//! Requests, in few words.

use foggara_proto::wire::inference::{
    GenerateRequest, OutputOptions, SamplingParams, TokenIds, generate_request,
};

/// A request being written. Greedy unless said otherwise.
#[derive(Debug, Clone)]
pub struct Ask(GenerateRequest);

impl Ask {
    fn new(model: &str, prompt: generate_request::Prompt) -> Self {
        let sampling = SamplingParams { temperature: Some(0.0), ..SamplingParams::default() };
        Self(GenerateRequest {
            model: model.into(),
            prompt: Some(prompt),
            sampling: Some(sampling),
            output: Some(OutputOptions::default()),
            ..GenerateRequest::default()
        })
    }

    /// Continues token ids.
    pub fn tokens(model: &str, ids: &[u32]) -> Self {
        Self::new(model, generate_request::Prompt::Tokens(TokenIds { ids: ids.to_vec() }))
    }

    /// Continues a text.
    pub fn text(model: &str, text: &str) -> Self {
        Self::new(model, generate_request::Prompt::Text(text.into()))
    }

    /// Changes how tokens are chosen.
    #[must_use]
    pub fn sampling(mut self, change: impl FnOnce(&mut SamplingParams)) -> Self {
        change(self.0.sampling.get_or_insert_default());
        self
    }

    fn output(mut self, change: impl FnOnce(&mut OutputOptions)) -> Self {
        change(self.0.output.get_or_insert_default());
        self
    }

    /// At most this many tokens.
    #[must_use]
    pub fn max_tokens(self, count: u32) -> Self {
        self.sampling(|sampling| sampling.max_tokens = Some(count))
    }

    /// Exactly this many tokens: end tokens are ignored.
    #[must_use]
    pub fn exactly(self, count: u32) -> Self {
        self.max_tokens(count).sampling(|sampling| sampling.ignore_eos = true)
    }

    /// Sampled rather than greedy.
    #[must_use]
    pub fn sampled(self, temperature: f32, top_p: f32, seed: u64) -> Self {
        self.sampling(|sampling| {
            sampling.temperature = Some(temperature);
            sampling.top_p = Some(top_p);
            sampling.seed = Some(seed);
        })
    }

    /// With this many alternatives for each token.
    #[must_use]
    pub fn logprobs(self, count: u32) -> Self {
        self.output(|output| output.logprobs = Some(count))
    }

    /// With the prompt first.
    #[must_use]
    pub fn echo(self) -> Self {
        self.output(|output| output.echo = true)
    }

    /// Under this id.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        self.0.request_id = id.into();
        self
    }

    /// The message.
    pub fn build(self) -> GenerateRequest {
        self.0
    }
}
