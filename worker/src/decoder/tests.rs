//! The decoder against transformers, at several degrees of parallelism and over both collectives.

use foggara_kernels::op::softmax::{argmax, log_sum_exp};
use foggara_models::testing::{GgufFile, tiny_config, tiny_gguf, tiny_safetensors, tiny_tensors};
use foggara_models::{Checkpoint, DType, TensorRole};

use super::*;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group, numbers, tokens};

/// Sequences that go through the model side by side, `chunk` positions of each in a step, and the logits of every row.
/// Returns rank 0's, by sequence and position.
fn logits(
    model: &Checkpoint,
    sequences: &[Vec<u32>],
    tp: usize,
    kind: Kind,
    ty: KvType,
    chunk: usize,
) -> Vec<Vec<Vec<f32>>> {
    let each = BLOCKS / sequences.len();
    assert!(sequences.iter().all(|tokens| tokens.len() <= each * BLOCK_SIZE), "the blocks are enough");
    let results = group(model, tp, kind, ty, |mut engine| {
        let mut rows = vec![Vec::new(); sequences.len()];
        let longest = sequences.iter().map(Vec::len).max().expect("at least one sequence");
        for (step, start) in (0..longest).step_by(chunk).enumerate() {
            let mut input = StepInput::default();
            let mut whose = Vec::new();
            for (slot, tokens) in sequences.iter().enumerate() {
                if step == 0 {
                    // Backwards and interleaved, as a busy cache has them.
                    let blocks =
                        (0..each).map(|i| ((each - 1 - i) * sequences.len() + slot) as u32).collect();
                    input.grants.push((slot as u32, blocks));
                }
                let part = &tokens[start.min(tokens.len())..(start + chunk).min(tokens.len())];
                if !part.is_empty() {
                    let (start, len) = (start as u32, part.len() as u32);
                    input.segments.push(Segment { slot: slot as u32, start, len, logits_from: 0 });
                    input.tokens.extend_from_slice(part);
                    whose.extend(std::iter::repeat_n(slot, part.len()));
                }
            }
            engine.tables.apply(&input, BLOCKS).expect("blocks exist");
            input.check(&engine.tables, model.spec().vocab, BLOCK_SIZE, 10_000).expect("a step that fits");
            let mut keep = |row: usize, logits: &[f32]| rows[whose[row]].push(logits.to_vec());
            engine
                .decoder
                .forward(&input, &engine.tables, &mut *engine.collective, &mut keep)
                .expect("all ranks are there");
        }
        rows
    });
    results.into_iter().next().expect("rank 0")
}

/// One sequence, in one chunk.
fn alone(model: &Checkpoint, tokens: &[u32], tp: usize) -> Vec<Vec<f32>> {
    logits(model, &[tokens.to_vec()], tp, Kind::Shm, KvType::F32, 512).remove(0)
}

/// Compares with every number of a fixture: the last logits, each prompt token's probability, and 24 greedy tokens.
fn agrees(name: &str, model: &Checkpoint, expected: &serde_json::Value, tp: usize) {
    for case in expected["cases"].as_array().expect("cases") {
        let (prompt, greedy) = (tokens(&case["prompt"]), tokens(&case["greedy"]));
        let rows = alone(model, &[&prompt[..], &greedy[..]].concat(), tp);
        let last = prompt.len() - 1;
        for (got, reference) in rows[last].iter().zip(numbers(&case["logits_last"])) {
            // The fixture has five decimals.
            let error = (f64::from(*got) - reference).abs();
            assert!(error <= 2e-5 * (1.0 + reference.abs()), "{name} tp {tp}: {got} for {reference}");
        }
        for (i, reference) in numbers(&case["prompt_logprobs"]).into_iter().enumerate() {
            let got = rows[i][prompt[i + 1] as usize] - log_sum_exp(&rows[i]);
            assert!((f64::from(got) - reference).abs() <= 5e-5, "{name} tp {tp}: {got} for {reference}");
        }
        for (i, token) in greedy.iter().enumerate() {
            assert_eq!(argmax(&rows[last + i]), *token as usize, "{name} tp {tp}, greedy token {i}");
        }
    }
}

#[test]
fn every_golden_model_agrees_with_transformers_at_every_tp() {
    // 8 heads over 4 key heads and 9 over 3: uneven cuts, shared key heads, ranks without any head.
    for (name, most) in [("llama", 8), ("llama3-rope", 3), ("llama-odd-heads", 8)] {
        let (model, expected) = golden(name);
        for tp in 1..=most {
            agrees(name, &model, &expected, tp);
        }
    }
    let (model, expected) = golden("llama-odd-heads");
    agrees("more ranks than heads", &model, &expected, 11);
}

#[test]
fn the_same_model_in_a_gguf_file_agrees_too() {
    let (model, expected) = golden("llama3-rope");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, as_gguf(&model).bytes()).expect("written");
    let gguf = Checkpoint::open(&path).expect("a valid file");
    assert_ne!(gguf.spec().rope.style, model.spec().rope.style, "pairs lie elsewhere");
    for tp in [1, 2] {
        agrees("gguf", &gguf, &expected, tp);
    }
}

/// The model as a converter would write it: query and key rows in pairs, frequencies as divisors of the plain ones.
fn as_gguf(model: &Checkpoint) -> GgufFile {
    let s = model.spec();
    let values = |role: TensorRole| {
        let tensor = model.tensor(role).expect("there");
        model.slice(role, 0..tensor.rows, 0..tensor.cols).expect("the whole").to_f32().expect("floats")
    };
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let theta = 500_000.0f32;
    let factors: Vec<f32> = s
        .rope
        .inv_freq
        .iter()
        .enumerate()
        .map(|(i, frequency)| {
            let plain = f64::from(theta).powf(-((2 * i) as f64) / s.head_dim as f64);
            (plain / f64::from(*frequency)) as f32
        })
        .collect();
    let mut file = GgufFile::default()
        .text("general.architecture", "llama")
        .u32("llama.block_count", s.layers as u32)
        .u32("llama.context_length", s.context as u32)
        .u32("llama.embedding_length", s.hidden as u32)
        .u32("llama.feed_forward_length", s.ffn as u32)
        .u32("llama.attention.head_count", s.heads as u32)
        .u32("llama.attention.head_count_kv", s.kv_heads as u32)
        .u32("llama.rope.dimension_count", s.head_dim as u32)
        .f32("llama.attention.layer_norm_rms_epsilon", s.norm_eps)
        .f32("llama.rope.freq_base", theta)
        .tensor("rope_freqs.weight", DType::F32, &[factors.len() as u64], bytes(&factors));
    let mut add = |name: String, role: TensorRole, heads: Option<usize>| {
        let tensor = model.tensor(role).expect("there");
        let mut all = values(role);
        if let Some(heads) = heads {
            let half = tensor.rows / heads / 2;
            let row = |r: usize| &all[r * tensor.cols..][..tensor.cols];
            // Of each head: rows 0, half, 1, half + 1 …
            all = (0..tensor.rows)
                .flat_map(|r| {
                    let (head, i) = (r / (2 * half), r % (2 * half));
                    row(head * 2 * half + i / 2 + i % 2 * half).to_vec()
                })
                .collect();
        }
        let shape = [tensor.rows as u64, tensor.cols as u64];
        let shape = if tensor.rows == 1 { &shape[1..] } else { &shape[..] };
        file = std::mem::take(&mut file).tensor(&name, DType::F32, shape, bytes(&all));
    };
    add("token_embd.weight".into(), TensorRole::Embedding, None);
    add("output.weight".into(), TensorRole::Output, None);
    add("output_norm.weight".into(), TensorRole::FinalNorm, None);
    for l in 0..s.layers {
        for (name, role, heads) in [
            ("attn_norm", TensorRole::AttnNorm(l), None),
            ("attn_q", TensorRole::Q(l), Some(s.heads)),
            ("attn_k", TensorRole::K(l), Some(s.kv_heads)),
            ("attn_v", TensorRole::V(l), None),
            ("attn_output", TensorRole::O(l), None),
            ("ffn_norm", TensorRole::MlpNorm(l), None),
            ("ffn_gate", TensorRole::Gate(l), None),
            ("ffn_up", TensorRole::Up(l), None),
            ("ffn_down", TensorRole::Down(l), None),
        ] {
            add(format!("blk.{l}.{name}.weight"), role, heads);
        }
    }
    file
}

#[test]
fn biases_are_added_once_however_many_ranks_there_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = tiny_config();
    let mut tensors = tiny_tensors();
    let write = |config: &serde_json::Value, tensors: &[(String, Vec<usize>)]| {
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        // A new file each time: the older one is mapped.
        drop(std::fs::remove_file(folder.path().join("model.safetensors")));
        let bytes = tiny_safetensors(DType::BF16, tensors);
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
        Checkpoint::open(folder.path()).expect("a valid checkpoint")
    };
    let prompt = [5, 3, 8, 13, 21, 34, 1, 1, 2];
    let plain = alone(&write(&config, &tensors), &prompt, 1);
    config["attention_bias"] = true.into();
    // After the others, so that these keep their values.
    for (name, shape) in tiny_tensors().into_iter().filter(|(name, _)| name.contains("self_attn")) {
        tensors.push((name.replace("weight", "bias"), shape[..1].to_vec()));
    }
    let model = write(&config, &tensors);
    let whole = alone(&model, &prompt, 1);
    assert!(whole != plain, "biases change something");
    for tp in [2, 3, 5] {
        for (row, expected) in alone(&model, &prompt, tp).iter().zip(&whole) {
            let size = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            for (got, expected) in row.iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-4 * size, "tp {tp}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn tcp_gives_the_bits_of_shared_memory() {
    let (model, expected) = golden("llama-odd-heads");
    let prompt = tokens(&expected["cases"][2]["prompt"]);
    for tp in [2, 3, 4] {
        let run = |kind| logits(&model, std::slice::from_ref(&prompt), tp, kind, KvType::F16, 20);
        assert!(run(Kind::Shm) == run(Kind::Tcp), "tp {tp}");
    }
}

#[test]
fn the_cut_of_a_prompt_into_chunks_changes_no_bit() {
    let (model, expected) = golden("llama");
    let prompt = tokens(&expected["cases"][2]["prompt"]);
    for tp in [1, 2] {
        for ty in [KvType::F32, KvType::F16] {
            let run = |chunk| logits(&model, std::slice::from_ref(&prompt), tp, Kind::Shm, ty, chunk);
            let whole = run(prompt.len());
            for chunk in [1, 2, 3, 7, 15, 16, 17, 47] {
                assert!(run(chunk) == whole, "tp {tp}, {ty:?}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn the_batch_around_a_sequence_changes_no_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, tiny_gguf(DType::Q4_1).bytes()).expect("written");
    let quantized = Checkpoint::open(&path).expect("a valid file");
    let (floats, _) = golden("llama-odd-heads");
    for model in [&quantized, &floats] {
        let vocab = model.spec().vocab as u32;
        let sequence =
            |i: u32| (0..5 + 7 * i).map(|j| (i * 31 + j * j * 17 + 3) % vocab).collect::<Vec<u32>>();
        let sequences: Vec<Vec<u32>> = (0..8).map(sequence).collect();
        for tp in [1, 3] {
            for chunk in [1, 11] {
                let together = logits(model, &sequences, tp, Kind::Shm, KvType::F16, chunk);
                for (i, tokens) in sequences.iter().enumerate() {
                    let alone =
                        logits(model, std::slice::from_ref(tokens), tp, Kind::Shm, KvType::F16, chunk);
                    assert!(alone[0] == together[i], "tp {tp}, chunks of {chunk}, sequence {i}");
                }
            }
        }
    }
}
