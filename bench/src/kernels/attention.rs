//! Attention: of a sequence that decodes, and of a chunk of a prompt.

use anyhow::Result;
use foggara_kernels::op::attention::{AttentionParams, AttentionRow, attention};
use foggara_kernels::op::kv_cache::Values::Own;
use foggara_kernels::op::kv_cache::{KvCache, KvSizes, KvType};

use super::{BEYOND_CACHES, Bench, rate};
use crate::bound::Work;
use crate::report::{Measure, Unit};

/// Name, query heads, key heads, width.
const SHAPES: [(&str, usize, usize, usize); 2] =
    [("9 heads on 3 of 64", 9, 3, 64), ("32 heads on 8 of 128", 32, 8, 128)];
const TYPES: [(&str, KvType); 2] = [("f16", KvType::F16), ("q8_0", KvType::Q8_0)];
/// Positions that the last row sees.
const CONTEXT: usize = 4096;
const BLOCK: usize = 16;
/// Rows of a prompt's chunk.
const CHUNK: usize = 32;
/// Bytes that 32 elements of a key or value take in eight bits: these, and a scale.
const BLOCK_OF_CODES: usize = 34;

pub(super) fn run(bench: &Bench) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    for (name, heads, kv_heads, dim) in SHAPES {
        for (type_name, ty) in TYPES {
            let elements = 2 * CONTEXT * kv_heads * dim;
            let bytes = match ty {
                KvType::F32 => elements * 4,
                KvType::F16 => elements * 2,
                KvType::F8 => elements,
                KvType::Q8_0 => elements / 32 * BLOCK_OF_CODES,
            };
            let layers = BEYOND_CACHES.div_ceil(bytes);
            let blocks: Vec<u32> = (0..).take(CONTEXT / BLOCK).collect();
            let sizes = KvSizes {
                layers,
                blocks: blocks.len(),
                block_size: BLOCK,
                kv_heads,
                key_dim: dim,
                values: Own(dim),
            };
            let mut cache = KvCache::new(sizes, ty)?;
            let (key, value) = (vec![0.25; kv_heads * dim], vec![0.5; kv_heads * dim]);
            for layer in 0..layers {
                for position in 0..CONTEXT {
                    cache.write(layer, blocks[position / BLOCK], position % BLOCK, &key, &value);
                }
            }
            let kv_head_of = (0..heads).map(|head| u32::try_from(head * kv_heads / heads));
            let kv_head_of: Vec<u32> = kv_head_of.collect::<Result<_, _>>()?;
            let params = AttentionParams { kv_head_of: &kv_head_of, scale: 0.1, softcap: None, sinks: &[] };
            let mut layer = (0..layers).cycle();
            for rows in [1, CHUNK] {
                let (q, mut out) = (vec![0.5; rows * heads * dim], vec![0.0; rows * heads * dim]);
                let seen: Vec<AttentionRow<'_>> = (0..rows)
                    .map(|row| AttentionRow {
                        blocks: &blocks,
                        len: CONTEXT - rows + row + 1,
                        window_start: 0,
                    })
                    .collect();
                let seconds = bench.seconds(|| {
                    let layer = layer.next().unwrap_or_default();
                    attention(&bench.pool, &cache, layer, &q, &seen, &params, &mut out);
                });
                let positions: usize = seen.iter().map(|row| row.len).sum();
                // Two for each element of a key, and of a value.
                let flops = (4 * positions * heads * dim) as f64;
                let work = Work { bytes: bytes as f64, int8_ops: 0.0, flops };
                let who = if rows == 1 {
                    "a row that decodes".to_owned()
                } else {
                    format!("{rows} rows of a prompt")
                };
                let key = format!("attention-{heads}-{kv_heads}-{dim}-{type_name}-{rows}");
                let what = format!("attention, {who}, {type_name}, {heads} on {kv_heads}");
                let measure = rate(&key, &what, Unit::GigaOps, flops / 1e9, work, &seconds)?;
                measures.push(measure.note(format!("{name}, {CONTEXT} positions, from memory")));
            }
        }
    }
    Ok(measures)
}
