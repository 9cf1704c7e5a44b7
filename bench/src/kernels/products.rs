//! Products of weights with rows of activations: where nearly all time goes.

use anyhow::Result;
use foggara_kernels::WeightType;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::matmul::matmul;
use foggara_kernels::op::panels::WeightMatrix;

use super::{BEYOND_CACHES, Bench, rate};
use crate::bound::Work;
use crate::report::{Measure, Unit};

/// What models are served in.
const TYPES: [WeightType; 7] = {
    use WeightType as T;
    [T::Q4_0, T::Q4_1, T::Q4_K, T::Q6_K, T::Q8_0, T::F16, T::BF16]
};
/// One stream, several, a full batch of a small cluster, a chunk of a prompt.
const ROWS: [usize; 4] = [1, 8, 32, 64];
/// Rows and columns of a matrix: about those of a model of 7 B.
const SIZE: usize = 4096;
/// Whatever a stored weight's type is, bytes like these are scales and floats that are neither tiny nor huge.
const STORED: u8 = 0x21;

pub(super) fn run(bench: &Bench) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    for ty in TYPES {
        measures.extend(of(bench, ty)?);
    }
    Ok(measures)
}

fn of(bench: &Bench, ty: WeightType) -> Result<Vec<Measure>> {
    let row = vec![STORED; ty.row_bytes(SIZE)];
    let matrices = (0..BEYOND_CACHES.div_ceil(SIZE * row.len()))
        .map(|_| {
            let mut packer = WeightMatrix::packer(ty, SIZE, SIZE, 0, SIZE)?;
            packer.push_with(&bench.pool, SIZE, |_| &row)?;
            packer.finish()
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut next = matrices.iter().cycle();
    let mut measures = Vec::new();
    for rows in ROWS {
        let mut x = Activations::new(rows, SIZE);
        x.f32_rows_mut().fill(0.5);
        x.quantize(&bench.pool);
        let mut y = vec![0.0; SIZE * rows];
        let seconds = bench.seconds(|| {
            if let Some(w) = next.next() {
                matmul(&bench.pool, w, &x, &mut y, SIZE);
            }
        });
        let ops = (2 * SIZE * SIZE * rows) as f64;
        let bytes = matrices.first().map_or(0, WeightMatrix::bytes) as f64;
        let work = if ty.is_quantized() {
            Work { bytes, int8_ops: ops, flops: 0.0 }
        } else {
            Work { bytes, int8_ops: 0.0, flops: ops }
        };
        let what = format!("product, {ty}, {rows} row{}", if rows == 1 { "" } else { "s" });
        let key = format!("product-{}-{rows}", ty.name().to_lowercase());
        let measure = rate(&key, &what, Unit::GigaOps, ops / 1e9, work, &seconds)?;
        measures.push(measure.note(format!("{SIZE} × {SIZE}, weights from memory")));
    }
    Ok(measures)
}
