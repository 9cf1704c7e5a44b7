//! Prints how long attention takes for one decoding row and for a chunk of a prompt, at several shapes.
//!
//! `cargo run --release -p foggara-kernels --example attention_rate [threads [part of a line]]`

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use foggara_kernels::ThreadPool;
use foggara_kernels::op::attention::{AttentionParams, AttentionRow, attention};
use foggara_kernels::op::kv_cache::Values::{self, InKey, Own};
use foggara_kernels::op::kv_cache::{KvCache, KvSizes, KvType};

/// Name, query heads, key heads, key width, values.
const SHAPES: [(&str, usize, usize, usize, Values); 7] = [
    ("1 head on 1 of 64", 1, 1, 64, Own(64)),
    ("2 heads on 1 of 64", 2, 1, 64, Own(64)),
    ("3 heads on 1 of 64", 3, 1, 64, Own(64)),
    ("grouped, 32 heads on 8 of 128", 32, 8, 128, Own(128)),
    ("grouped, 9 heads on 3 of 64", 9, 3, 64, Own(64)),
    ("latent, 128 heads on 1 of 576 and 512", 128, 1, 576, InKey(512)),
    ("latent, 16 heads on 1 of 576 and 512", 16, 1, 576, InKey(512)),
];
const CONTEXT: usize = 8192;
/// So many that no cache holds them all.
const LAYERS: usize = 8;
const BLOCK: usize = 16;
/// The best of all counts.
const ROUNDS: usize = 12;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |threads| threads.parse())?;
    let wanted = std::env::args().nth(2).unwrap_or_default();
    let pool = ThreadPool::new(threads);
    println!("{threads} thread(s), {CONTEXT} positions");
    for (name, heads, kv_heads, key_dim, values) in SHAPES {
        for ty in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let blocks = CONTEXT / BLOCK;
            let sizes = KvSizes { layers: LAYERS, blocks, block_size: BLOCK, kv_heads, key_dim, values };
            let mut cache = KvCache::new(sizes, ty)?;
            let value_dim = values.dim();
            let blocks: Vec<u32> = (0..).take(CONTEXT / BLOCK).collect();
            let own = if let Own(dim) = values { kv_heads * dim } else { 0 };
            let (k, v) = (vec![0.25; kv_heads * key_dim], vec![0.5; own]);
            for (layer, position) in (0..LAYERS).flat_map(|layer| (0..CONTEXT).map(move |p| (layer, p))) {
                cache.write(layer, blocks[position / BLOCK], position % BLOCK, &k, &v);
            }
            let kv_head_of: Vec<u32> =
                (0..heads).map(|head| u32::try_from(head * kv_heads / heads)).collect::<Result<_, _>>()?;
            let params = AttentionParams { kv_head_of: &kv_head_of, scale: 0.1, softcap: None, sinks: &[] };
            for rows in [1, 2, 8, 32] {
                let line = format!("{name}, {ty:?}, {rows:2} row(s)");
                if !line.contains(&wanted) {
                    continue;
                }
                let q = vec![0.5; rows * heads * key_dim];
                let mut out = vec![0.0; rows * heads * value_dim];
                let seen = vec![AttentionRow { blocks: &blocks, len: CONTEXT, window_start: 0 }; rows];
                let mut best = Duration::MAX;
                for layer in (0..LAYERS).cycle().take(ROUNDS * LAYERS) {
                    let started = Instant::now();
                    attention(&pool, &cache, layer, &q, &seen, &params, &mut out);
                    best = best.min(started.elapsed());
                }
                let ops = 2 * rows * heads * CONTEXT * (key_dim + value_dim);
                let (millis, rate) = (best.as_secs_f64() * 1e3, ops as f64 / best.as_secs_f64() / 1e9);
                println!("{line}: {millis:8.2} ms, {rate:5.1} GFLOP/s");
            }
        }
    }
    Ok(())
}
