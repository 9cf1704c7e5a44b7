//! Configurations with the fields that released models have: understood, or refused by what they have that is not served.

use serde_json::{Value, json};

use crate::footprint::spec_of_config;
use crate::spec::{Activation, ArchSpec, Attention, Grouped, Latent, Mlp, Routing};

fn read(config: &Value) -> Result<ArchSpec, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    spec_of_config(&path).map(|(spec, _)| spec).map_err(|error| error.to_string())
}

fn understood(config: &Value) -> ArchSpec {
    read(config).unwrap_or_else(|error| panic!("{error}: {config}"))
}

/// The fields of `base`, with those of `change` instead or besides.
fn with(base: &Value, change: Value) -> Value {
    let (mut config, Value::Object(change)) = (base.clone(), change) else { panic!("an object") };
    config.as_object_mut().expect("an object").extend(change);
    config
}

fn heads(spec: &ArchSpec) -> (usize, usize, usize) {
    match spec.attention {
        Attention::Grouped(Grouped { kv_heads, head_dim, .. }) => (spec.heads, kv_heads, head_dim),
        Attention::Latent(_) => panic!("grouped attention"),
    }
}

fn windows(spec: &ArchSpec) -> Vec<Option<usize>> {
    spec.layers.iter().map(|layer| layer.window).collect()
}

fn llama2() -> Value {
    json!({
        "_name_or_path": "somewhere", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
        "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_scaling": null,
        "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0",
        "use_cache": true, "vocab_size": 32000
    })
}

fn llama3() -> Value {
    let scaling = json!({ "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3" });
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009], "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": scaling, "rope_theta": 500_000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 128_256
    })
}

#[test]
fn llamas() {
    let spec = understood(&llama2());
    assert_eq!((spec.layers.len(), spec.vocab, spec.context), (32, 32_000, 4096));
    assert_eq!(heads(&spec), (32, 32, 128));
    assert_eq!((spec.ropes[0].inv_freq.len(), spec.ropes[0].inv_freq[0]), (64, 1.0));
    // The first of them said less, and something of its own.
    let mut first = with(&llama2(), json!({ "max_sequence_length": 2048, "pad_token_id": -1 }));
    first.as_object_mut().expect("an object").shift_remove("num_key_value_heads");
    assert_eq!(understood(&first), spec);
    let everything =
        json!({ "temperature": 1.0, "top_k": 50, "max_length": 20, "num_beams": 1, "pruned_heads": {} });
    assert_eq!(understood(&with(&llama2(), everything)), understood(&llama2()));
    let third = understood(&llama3());
    assert_eq!(heads(&third), (32, 8, 128));
    let slowest = |spec: &ArchSpec| f64::from(*spec.ropes[0].inv_freq.last().expect("frequencies"));
    let plain = 500_000f64.powf(-126.0 / 128.0);
    assert!((slowest(&third) * 8.0 / plain - 1.0).abs() < 1e-6, "slow frequencies are divided");
    let small = json!({ "head_dim": 64, "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
        "tie_word_embeddings": true });
    let small = understood(&with(&llama3(), small));
    assert_eq!((heads(&small), small.tied_output), ((32, 8, 64), true));
}

fn mistral() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000
    })
}

#[test]
fn mistral_and_mixtral() {
    assert_eq!(windows(&understood(&mistral())), [Some(4096); 32]);
    let later =
        json!({ "attention_dropout": 0.0, "sliding_window": null, "rope_theta": 1e6, "vocab_size": 32768 });
    assert_eq!(windows(&understood(&with(&mistral(), later))), [None; 32]);
    let mut silent = mistral();
    silent.as_object_mut().expect("an object").shift_remove("sliding_window");
    assert_eq!(windows(&understood(&silent)), [Some(4096); 32], "as the class has it");
    let mixtral = with(
        &mistral(),
        json!({
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "attention_dropout": 0.0,
            "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": false, "rope_theta": 1e6,
            "router_aux_loss_coef": 0.02, "sliding_window": null
        }),
    );
    let spec = understood(&mixtral);
    let Mlp::Experts(experts) = spec.layers[31].mlp else { panic!("experts everywhere") };
    assert_eq!((experts.count, experts.top_k, experts.width, experts.shared_width), (8, 2, 14336, 0));
    assert_eq!(experts.routing, Routing::Softmax { renormalize: true });
    let larger = json!({ "hidden_size": 6144, "intermediate_size": 16384, "max_position_embeddings": 65536,
        "num_attention_heads": 48, "num_hidden_layers": 56, "router_jitter_noise": 0.0 });
    assert_eq!(heads(&understood(&with(&mixtral, larger))), (48, 8, 128));
}

fn qwen2() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
        "eos_token_id": 151_643, "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 18944, "max_position_embeddings": 131_072, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "sliding_window": 131_072, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true, "use_mrope": false,
        "use_sliding_window": false, "vocab_size": 152_064
    })
}

#[test]
fn qwens() {
    let spec = understood(&qwen2());
    assert_eq!((heads(&spec), windows(&spec)), ((28, 4, 128), vec![None; 28]));
    assert!(matches!(spec.attention, Attention::Grouped(Grouped { qkv_bias: true, o_bias: false, .. })));
    let error = read(&with(&qwen2(), json!({ "use_mrope": true }))).expect_err("another rotation");
    assert!(error.contains("use_mrope"), "{error}");
    let none_used = json!({ "layer_types": vec!["sliding_attention"; 28] });
    let error = read(&with(&qwen2(), none_used)).expect_err("contradictory");
    assert!(error.contains("layer_types") && error.contains("use_sliding_window"), "{error}");
    let used = json!({ "use_sliding_window": true, "max_window_layers": 20, "sliding_window": 512 });
    let windows = windows(&understood(&with(&qwen2(), used)));
    assert_eq!((windows[19], windows[20]), (None, Some(512)));
    let moe = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": true,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": false, "rope_scaling": null,
        "router_aux_loss_coef": 0.001, "sliding_window": null, "vocab_size": 151_936
    });
    let spec = understood(&with(&qwen2(), moe));
    assert_eq!(heads(&spec), (32, 4, 128));
    assert_eq!(spec.moe_layers().count(), 48);
    let (_, experts) = spec.moe_layers().next().expect("experts");
    assert_eq!((experts.count, experts.top_k, experts.width), (128, 8, 768));
    let every_other = with(
        &qwen2(),
        json!({ "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4,
        "num_experts_per_tok": 1, "moe_intermediate_size": 64, "decoder_sparse_step": 2, "mlp_only_layers": [3] }),
    );
    let layers: Vec<_> = understood(&every_other).moe_layers().map(|(l, _)| l).take(3).collect();
    assert_eq!(layers, [1, 5, 7]);
}

#[test]
fn deepseek_v3() {
    let scaling = json!({ "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn" });
    let auto_map = json!({ "AutoConfig": "configuration_deepseek.DeepseekV3Config" });
    let most = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": auto_map, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
        "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163_840,
        "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8
    });
    let rest = json!({
        "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1, "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_scaling": scaling, "rope_theta": 10000,
        "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": true, "tie_word_embeddings": false,
        "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
        "use_cache": true, "v_head_dim": 128, "vocab_size": 129_280
    });
    let floats = with(&most, rest);
    let spec = understood(&floats);
    let Attention::Latent(Latent { q_rank, kv_rank, nope_dim, rope_dim, value_dim, bias, .. }) =
        spec.attention
    else {
        panic!("latent attention")
    };
    assert_eq!(
        (q_rank, kv_rank, nope_dim, rope_dim, value_dim, bias),
        (Some(1536), 512, 128, 64, 128, false)
    );
    assert_eq!(spec.ropes[0].scale, 1.0);
    let stretch = 0.1 * 40f64.ln() + 1.0;
    let expected = stretch * stretch / 192f64.sqrt();
    assert!((f64::from(spec.attention_scale) / expected - 1.0).abs() < 1e-6);
    assert_eq!(spec.moe_layers().map(|(l, _)| l).next(), Some(3));
    let fp8 = json!({ "quantization_config": { "activation_scheme": "dynamic", "fmt": "e4m3",
        "quant_method": "fp8", "weight_block_size": [128, 128] } });
    let error = read(&with(&floats, fp8)).expect_err("eight-bit floats");
    assert!(error.contains("quantization_config") && error.contains("FP8"), "{error}");
    for (field, value) in [("scoring_func", json!("softmax")), ("topk_method", json!("greedy"))] {
        let error = read(&with(&floats, json!({ field: value }))).expect_err("another routing");
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn gpt_oss() {
    let types: Vec<_> = (0..24).map(|l| ["sliding_attention", "full_attention"][l % 2]).collect();
    let scaling = json!({ "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
        "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false });
    let floats = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200_002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": types,
        "max_position_embeddings": 131_072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": false, "pad_token_id": 199_999, "rms_norm_eps": 1e-5, "rope_scaling": scaling,
        "rope_theta": 150_000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true,
        "vocab_size": 201_088
    });
    let spec = understood(&floats);
    assert_eq!((heads(&spec), windows(&spec)[..2].to_vec()), ((64, 8, 64), vec![Some(128), None]));
    assert_eq!(spec.activation, Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 });
    assert!((spec.ropes[0].scale - 1.346_573_6).abs() < 1e-6);
    let mut silent = floats.clone();
    ["rope_scaling", "rope_theta", "sliding_window", "layer_types", "head_dim"].into_iter().for_each(
        |field| {
            silent.as_object_mut().expect("an object").shift_remove(field);
        },
    );
    assert_eq!(understood(&silent), spec, "the class has the same");
    let mxfp4 =
        json!({ "quantization_config": { "modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4" } });
    let error = read(&with(&floats, mxfp4)).expect_err("four-bit floats");
    assert!(error.contains("quantization_config") && error.contains("MXFP4"), "{error}");
}

#[test]
fn gemmas() {
    let second = json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "torch_dtype": "float32", "transformers_version": "4.42.0.dev0",
        "use_cache": true, "vocab_size": 256_000
    });
    let spec = understood(&second);
    assert_eq!((heads(&spec), windows(&spec)[..2].to_vec()), ((16, 8, 256), vec![Some(4096), None]));
    assert_eq!(
        (spec.attention_softcap, spec.logit_softcap, spec.tied_output),
        (Some(50.0), Some(30.0), true)
    );
    assert_eq!((spec.attention_scale, spec.activation), (1.0 / 16.0, Activation::GeluTanh));
    let mut silent = second.clone();
    for field in
        ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window", "query_pre_attn_scalar"]
    {
        silent.as_object_mut().expect("an object").shift_remove(field);
    }
    assert_eq!(understood(&silent), spec, "the class has the same");
    let off = json!({ "attn_logit_softcapping": null, "final_logit_softcapping": null });
    let spec = understood(&with(&second, off));
    assert_eq!((spec.attention_softcap, spec.logit_softcap), (None, None), "null is not left out");

    let third = with(
        &second,
        json!({
            "architectures": ["Gemma3ForCausalLM"], "attn_logit_softcapping": null, "final_logit_softcapping": null,
            "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
            "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
            "num_key_value_heads": 1, "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1_000_000,
            "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262_144
        }),
    );
    let mut third = third;
    third.as_object_mut().expect("an object").shift_remove("sliding_window_size");
    let spec = understood(&third);
    assert_eq!(heads(&spec), (4, 1, 256));
    assert_eq!(windows(&spec)[..6], [Some(512), Some(512), Some(512), Some(512), Some(512), None]);
    for (rope, theta) in spec.ropes.iter().zip([1e6f32, 1e4]) {
        assert!((rope.inv_freq[1] - theta.powf(-2.0 / 256.0)).abs() < 1e-6);
    }
    // As the text part of the largest is written: much is left to the class.
    let largest = json!({
        "architectures": ["Gemma3ForCausalLM"], "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504,
        "model_type": "gemma3_text", "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168, "rope_scaling": { "factor": 8.0, "rope_type": "linear" },
        "sliding_window": 1024
    });
    let spec = understood(&largest);
    assert_eq!((spec.vocab, spec.context, spec.tied_output), (262_208, 131_072, true));
    assert_eq!((spec.ropes[0].inv_freq[0], spec.ropes[1].inv_freq[0]), (0.125, 1.0), "global layers only");
    assert!((spec.attention_scale - 168f32.sqrt().recip()).abs() < 1e-8);
    let both = |factor: f64| {
        let global = json!({ "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6, "partial_rotary_factor": factor });
        json!({ "rope_scaling": null, "rope_parameters": { "full_attention": global, "sliding_attention": null } })
    };
    assert_eq!(understood(&with(&largest, both(1.0))), spec);
    let error = read(&with(&largest, both(0.5))).expect_err("half of each head");
    assert!(error.contains("partial_rotary_factor"), "{error}");
}

#[test]
fn phi3() {
    let short = json!({
        "architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "auto_map": { "AutoConfig": "configuration_phi3.Phi3Config" }, "bos_token_id": 1, "embd_pdrop": 0.0,
        "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064
    });
    let spec = understood(&short);
    assert_eq!((heads(&spec), spec.context), ((32, 32, 96), 4096));
    assert_eq!(windows(&spec), [Some(2047); 32]);
    let factors = |step: f64| (0..48).map(|i| 1.0 + f64::from(i) * step).collect::<Vec<_>>();
    let scaling = |kind: &str, short: Vec<f64>| {
        json!({ "rope_scaling": { "type": kind, "short_factor": short, "long_factor": factors(1.0) },
            "max_position_embeddings": 131_072, "sliding_window": 262_144 })
    };
    for kind in ["longrope", "su"] {
        let long = understood(&with(&short, scaling(kind, factors(0.5))));
        assert_eq!(long.context, 4096, "up to where the factors change");
        assert!((long.ropes[0].inv_freq[2] - spec.ropes[0].inv_freq[2] / 2.0).abs() < 1e-7);
        assert!((f64::from(long.ropes[0].scale) - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-6);
    }
    for (change, said) in [
        (scaling("yarn", factors(0.5)), "rope type `yarn`"),
        (scaling("longrope", vec![1.0; 47]), "`short_factor` must be a list of 48 numbers"),
        (scaling("longrope", vec![0.0; 48]), "`short_factor` has 0"),
        (json!({ "layer_types": vec!["full_attention"; 32] }), "layer_types"),
        (json!({ "attention_bias": true }), "attention_bias"),
    ] {
        let error = read(&with(&short, change)).expect_err(said);
        assert!(error.contains(said), "{error}");
    }
}
