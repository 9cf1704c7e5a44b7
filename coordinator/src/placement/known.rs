//! Models whose sizes are public, for tests and the table of docs/placement.md. Numbers are of their `config.json`.

use super::facts::{Bits, ExpertFacts, HeldBits, Kind, LayerFacts, ModelFacts};

/// As these are published, and a KV cache in f16.
const BF16: HeldBits =
    HeldBits { cpu: Bits { layers: 16.0, embedding: 16.0 }, gpu: Bits { layers: 16.0, embedding: 16.0 } };
const KV_ELEMENT: u64 = 2;

struct Grouped {
    hidden: u64,
    layers: usize,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    width: u64,
    experts: u64,
    vocab: u64,
    context: u64,
}

fn grouped(c: &Grouped) -> ModelFacts {
    let mlp = 3 * c.hidden * c.width;
    let layer = LayerFacts {
        attention: 2 * c.hidden * c.head_dim * (c.heads + c.kv_heads),
        dense: if c.experts == 0 { mlp } else { 0 },
        experts: (c.experts > 0).then_some(ExpertFacts { count: c.experts, top_k: 2, parameters: mlp }),
    };
    ModelFacts {
        hidden: c.hidden,
        heads: c.heads,
        kv_heads: c.kv_heads,
        kv_bytes: 2 * c.kv_heads * c.head_dim * KV_ELEMENT,
        layers: vec![layer; c.layers],
        embedding: c.hidden * c.vocab,
        tied: false,
        vocab: c.vocab,
        context: c.context,
        bits: BF16,
        adapters: 0,
    }
}

/// mistralai/Mixtral-8x7B-v0.1.
pub(super) fn mixtral_8x7b() -> ModelFacts {
    grouped(&Grouped {
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        width: 14_336,
        experts: 8,
        vocab: 32_000,
        context: 32_768,
    })
}

/// meta-llama/Meta-Llama-3-8B.
pub(super) fn llama_3_8b() -> ModelFacts {
    grouped(&Grouped {
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        width: 14_336,
        experts: 0,
        vocab: 128_256,
        context: 8_192,
    })
}

/// mistralai/Mixtral-8x22B-v0.1.
pub(super) fn mixtral_8x22b() -> ModelFacts {
    grouped(&Grouped {
        hidden: 6144,
        layers: 56,
        heads: 48,
        kv_heads: 8,
        head_dim: 128,
        width: 16_384,
        experts: 8,
        vocab: 32_000,
        context: 65_536,
    })
}

/// meta-llama/Meta-Llama-3-70B.
pub(super) fn llama_3_70b() -> ModelFacts {
    grouped(&Grouped {
        hidden: 8192,
        layers: 80,
        heads: 64,
        kv_heads: 8,
        head_dim: 128,
        width: 28_672,
        experts: 0,
        vocab: 128_256,
        context: 8192,
    })
}

/// HuggingFaceTB/SmolLM2-135M, or the mixture of as many `experts` that is made of it for tests (0: none), in so many bits.
pub(super) fn smollm2_135m(experts: u64, bits: Bits) -> ModelFacts {
    let bf16 = grouped(&Grouped {
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        width: 1536,
        experts,
        vocab: 49_152,
        context: 8_192,
    });
    ModelFacts { tied: true, bits: HeldBits { cpu: bits, ..BF16 }, ..bf16 }
}

/// deepseek-ai/DeepSeek-V3: latent attention, three dense layers, then a shared expert beside 256 routed ones.
pub(super) fn deepseek_v3() -> ModelFacts {
    let (hidden, heads, q_rank, kv_rank, nope, rope, value) = (7168, 128, 1536, 512, 128, 64, 128);
    let attention = hidden * q_rank
        + q_rank * heads * (nope + rope)
        + hidden * (kv_rank + rope)
        + kv_rank * heads * (nope + value)
        + heads * value * hidden;
    let mlp = |width: u64| 3 * hidden * width;
    let experts = ExpertFacts { count: 256, top_k: 8, parameters: mlp(2048) };
    let layer = |i: usize| match i {
        0..3 => LayerFacts { attention, dense: mlp(18_432), experts: None },
        _ => LayerFacts { attention, dense: mlp(2048), experts: Some(experts) },
    };
    ModelFacts {
        hidden,
        heads,
        kv_heads: 1,
        // The compressed vector and the rotated part of keys; values are made from the vector, too.
        kv_bytes: (kv_rank + rope) * KV_ELEMENT,
        layers: (0..61).map(layer).collect(),
        embedding: hidden * 129_280,
        tied: false,
        vocab: 129_280,
        context: 163_840,
        bits: BF16,
        adapters: 0,
    }
}

#[test]
fn they_have_as_many_parameters_as_their_names_say() {
    // Parameters as published, in billions.
    for (model, billions) in [
        (mixtral_8x7b(), 46.7),
        (mixtral_8x22b(), 140.6),
        (llama_3_8b(), 8.03),
        (llama_3_70b(), 70.6),
        (smollm2_135m(0, BF16.cpu), 0.1345),
        (deepseek_v3(), 671.0),
    ] {
        let got = model.weight_bytes(Kind::Gpu) as f64 / 2e9;
        assert!((got / billions - 1.0).abs() < 0.005, "{got} of {billions}");
    }
}
