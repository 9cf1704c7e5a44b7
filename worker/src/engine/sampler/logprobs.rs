//! Log-probabilities.

use foggara_kernels::op::softmax::log_sum_exp;
use foggara_proto::sequence::TokenOutput;

use crate::best::best_of;

/// The output for `token`, with its log-probability and the `top` likeliest if asked for.
pub fn describe(logits: &[f32], token: usize, top: Option<u32>) -> TokenOutput {
    let id = |index: usize| u32::try_from(index).expect("vocabularies are smaller than 2^32");
    let Some(count) = top else { return TokenOutput { token: id(token), logprob: None, top: Vec::new() } };
    let total = log_sum_exp(logits);
    let top =
        best_of(logits, count as usize).into_iter().map(|id| (id, logits[id as usize] - total)).collect();
    TokenOutput { token: id(token), logprob: logits.get(token).map(|logit| logit - total), top }
}
