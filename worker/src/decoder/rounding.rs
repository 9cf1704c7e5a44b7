//! For tests: inputs of products rounded as devices round them, in the thread that asks for it.

use std::cell::RefCell;

use foggara_kernels::cuda::{activations_to_f8, from_f8};
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::panels::WeightMatrix;
use half::bf16;

/// What inputs become.
#[derive(Clone)]
pub(super) struct Rounding {
    /// E4M3, with a scale for each row; else bf16.
    pub(super) to_f8: bool,
    /// But for matrices of so many rows: the router's and the output's.
    pub(super) except: Vec<usize>,
}

thread_local! {
    static ROUNDING: RefCell<Option<Rounding>> = const { RefCell::new(None) };
}

/// From here on, products of this thread round their inputs so.
pub(super) fn round(rounding: Rounding) {
    ROUNDING.set(Some(rounding));
}

/// What the products of `w` take of `x`, if it is rounded here. `by_norm`: a norm has just made it, which rounds once.
pub(super) fn rounded(w: &WeightMatrix, x: &Activations, by_norm: bool) -> Option<Activations> {
    let Rounding { to_f8, except } = ROUNDING.with_borrow(Clone::clone)?;
    let to_f8 = to_f8 && !except.contains(&w.rows());
    let mut rounded = Activations::new(x.rows(), x.cols());
    for (to, from) in
        rounded.f32_rows_mut().chunks_exact_mut(x.cols()).zip(x.f32_rows().chunks_exact(x.cols()))
    {
        to.copy_from_slice(from);
        if !(to_f8 && by_norm) {
            to.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        }
        if to_f8 {
            let mut codes = Vec::new();
            let scale = activations_to_f8(to, &mut codes);
            to.iter_mut().zip(codes).for_each(|(value, code)| *value = from_f8(code) * scale);
        }
    }
    Some(rounded)
}
