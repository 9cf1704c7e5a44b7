//! The product that gives queries, keys and values, of which queries and keys are rotated and keys and values go into the cache in the
//! same launch (`kernels/cu/matmul_f8_cached.cu`).

use super::f8::{EIGHT_ROWS, F8Form};
use super::{Product, Which, check_lengths};
use crate::cuda::op::apart::{CACHED, is_apart};
use crate::cuda::op::kv_cache::{DeviceKv, u32_of};
use crate::cuda::op::rope::{DeviceAngles, Grouped, rope_and_write};
use crate::cuda::op::step_rows::StepRows;
use crate::cuda::{ActType, ActsView, Arg, DeviceError, DeviceMatrix, ViewMut, WeightKind};
use crate::op::kv_cache::Values;

/// Where rows of queries, keys and values come from and go.
#[derive(Debug)]
pub struct CachedRows<'a> {
    /// Inputs of the product.
    pub x: ActsView<'a>,
    /// Its matrix: (heads + 2 · kv_heads) · dim outputs.
    pub w: &'a DeviceMatrix,
    /// rows × so many: the product itself, where it is made.
    pub qkv: ViewMut<'a, f32>,
    /// rows × (heads · dim): rotated queries.
    pub q: ViewMut<'a, f32>,
}

/// [`matmul`](super::matmul) of `r.x` and `r.w` into `r.qkv`, then [`rope_and_write`] of that. In one launch, which leaves `r.qkv` as it
/// is, where up to eight rows in E4M3 meet weights in it, heads are not normalised and have an even number of elements, and these fill
/// whole 16 bytes of a cache in f16 or E4M3.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
pub fn matmul_into_cache(
    r: CachedRows<'_>,
    kv: &mut DeviceKv,
    layer: usize,
    rows: &StepRows,
    heads: &Grouped<'_>,
    angles: &DeviceAngles,
) -> Result<(), DeviceError> {
    let CachedRows { x, w, mut qkv, q } = r;
    let width = w.rows();
    if let Some(form) = form(&x, w, kv, rows, heads) {
        heads.check(&q, kv, rows, angles);
        check_lengths(&qkv, rows.rows() * width, &x, rows.rows() * w.cols());
        let all = (heads.heads + 2 * kv.sizes().kv_heads) * kv.sizes().key_dim;
        assert_eq!(width, all, "outputs that are queries, keys and values");
        let product = Product {
            out: qkv.address(),
            device: qkv.device(),
            out_stride: width,
            out_batch: 0,
            x,
            x_stride: w.cols(),
            x_batch: 0,
            kind: w.kind(),
            n: width,
            k: w.cols(),
            rows: rows.rows(),
            which: Which::One(w),
            known: false,
            gate: None,
            own: false,
        };
        product.check_f8();
        let launch = form.launch(&product.sizes());
        return product.start_with(&launch, &args(&q, kv, layer, rows, heads, angles));
    }
    super::matmul(qkv.reborrow(), width, x, w, rows.rows())?;
    rope_and_write(q, kv, layer, rows, qkv.as_view(), heads, angles)
}

/// The kernel that does both, if there is one.
fn form(
    x: &ActsView<'_>,
    w: &DeviceMatrix,
    kv: &DeviceKv,
    rows: &StepRows,
    heads: &Grouped<'_>,
) -> Option<&'static F8Form> {
    let dim = kv.sizes().key_dim;
    let fits = !is_apart(CACHED)
        && w.kind() == WeightKind::F8
        && x.ty() == ActType::F8
        && (1..=EIGHT_ROWS).contains(&rows.rows())
        && heads.q_norm.is_none()
        && heads.k_norm.is_none()
        && kv.sizes().values == Values::Own(dim)
        && dim.is_multiple_of(2)
        && (kv.key_stride, kv.value_stride) == (dim, dim);
    F8Form::cached(kv.kind()).filter(|_| fits)
}

/// What the kernel takes besides the product.
fn args(
    q: &ViewMut<'_, f32>,
    kv: &DeviceKv,
    layer: usize,
    rows: &StepRows,
    heads: &Grouped<'_>,
    angles: &DeviceAngles,
) -> [Arg; 12] {
    let [keys, values] = kv.layer(layer);
    let [turns, pairs, half] = angles.args();
    let sizes = kv.sizes();
    [
        Arg::Ptr(q.address()),
        keys,
        values,
        rows.address(),
        Arg::Ptr(heads.bias.map_or(0, |bias| bias.address())),
        turns,
        pairs,
        half,
        Arg::U32(u32_of(heads.heads)),
        Arg::U32(u32_of(sizes.kv_heads)),
        Arg::U32(u32_of(sizes.key_dim)),
        Arg::U32(u32_of(sizes.block_size)),
    ]
}

#[cfg(test)]
#[path = "cached_tests.rs"]
mod tests;
