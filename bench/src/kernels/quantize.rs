//! Quantizing: activations, at every product of quantized weights, and weights, when a model is loaded so.

use anyhow::{Context, Result};
use foggara_kernels::WeightType;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::quantize_weights::quantize_row;

use super::{BEYOND_CACHES, Bench, rate};
use crate::bound::Work;
use crate::report::{Measure, Unit};

const COLUMNS: usize = 4096;
/// What weights may become.
const TYPES: [WeightType; 3] = [WeightType::Q8_0, WeightType::Q4_0, WeightType::Q4_K];
/// Weights of each thread at a time.
const WEIGHTS: usize = 1 << 17;

pub(super) fn run(bench: &Bench) -> Result<Vec<Measure>> {
    let mut measures = vec![activations(bench)?];
    for ty in TYPES {
        measures.push(weights(bench, ty)?);
    }
    Ok(measures)
}

fn activations(bench: &Bench) -> Result<Measure> {
    let mut x = Activations::new(BEYOND_CACHES / 4 / COLUMNS, COLUMNS);
    for (i, value) in x.f32_rows_mut().iter_mut().enumerate() {
        *value = (i % 251) as f32 * 0.01 - 1.25;
    }
    let seconds = bench.seconds(|| {
        // Rows that may have changed: else what was made is still right, and nothing is done.
        std::hint::black_box(x.f32_rows_mut());
        x.quantize(&bench.pool);
    });
    let bytes = (x.f32_rows().len() * 4) as f64;
    let work = Work { bytes, ..Work::default() };
    let measure =
        rate("quantize-activations", "quantize activations", Unit::Gigabytes, bytes / 1e9, work, &seconds)?;
    Ok(measure.note("of f32 read, from memory; what is written is not counted"))
}

fn weights(bench: &Bench, ty: WeightType) -> Result<Measure> {
    let row: Vec<f32> = (0..WEIGHTS).map(|i| (i * 37 % 1009) as f32 * 1e-4 - 0.05).collect();
    // Tried once for its errors: within the pool there is nobody to tell.
    quantize_row(ty, &row, &mut Vec::new()).with_context(|| format!("quantizing to {ty}"))?;
    let threads = bench.pool.threads();
    let seconds = bench.seconds(|| {
        bench.pool.run(threads, |_| {
            let mut out = Vec::with_capacity(ty.row_bytes(WEIGHTS));
            quantize_row(ty, &row, &mut out).ok();
            std::hint::black_box(out);
        });
    });
    let bytes = (threads * WEIGHTS * 4) as f64;
    let work = Work { bytes, ..Work::default() };
    let key = format!("quantize-weights-{}", ty.name().to_lowercase());
    let measure =
        rate(&key, &format!("quantize weights to {ty}"), Unit::Gigabytes, bytes / 1e9, work, &seconds)?;
    Ok(measure.note("of f32 read"))
}
