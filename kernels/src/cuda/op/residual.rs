//! The residual stream: what layers add to it, and its norms.

use super::moe::{Onto, Results, combine};
use crate::cuda::{ActType, ActsViewMut, Arg, DeviceError, F8ViewMut, Launch, View, ViewMut};

/// Adds to `rows` rows of `width` of `x`, and normalises them: `x += added` (each row of it first normalised and multiplied by
/// `post_norm`, where there is one), then `out = x / √(mean(x²) + eps) · weight`. Where `out` is nothing, only the addition is done.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// If the lengths do not fit `rows` and `width`.
#[allow(clippy::too_many_arguments)]
pub fn add_and_norm<'a>(
    out: impl Into<Normed<'a>>,
    x: ViewMut<'a, f32>,
    added: Option<View<'a, f32>>,
    post_norm: Option<View<'a, f32>>,
    weight: View<'a, f32>,
    rows: usize,
    width: usize,
    eps: f32,
) -> Result<(), DeviceError> {
    let norm = Norm { out: out.into(), x, added, post_norm, weight, rows, width, eps };
    norm.check();
    let len = rows * width;
    if len == 0 || (norm.out.is_nothing() && added.is_none()) {
        return Ok(());
    }
    let (kernel, form) = match (norm.floats_of_a_thread(), norm.out.kind()) {
        (Some((4, form)), Kind::F32) => ("add_and_norm_4_f32", form),
        (Some((4, form)), Kind::Bf16) => ("add_and_norm_4_bf16", form),
        (Some((4, form)), Kind::F8) => ("add_and_norm_4_f8", form),
        (Some((_, form)), Kind::F32) => ("add_and_norm_8_f32", form),
        (Some((_, form)), Kind::Bf16) => ("add_and_norm_8_bf16", form),
        (Some((_, form)), Kind::F8) => ("add_and_norm_8_f8", form),
        (None, kind) => {
            // A few elements for each thread: more threads would only wait for each other at the sum.
            let threads = (width.div_ceil(4).next_multiple_of(32)).clamp(32, 1024) as u32;
            let kernel = match kind {
                Kind::F32 => "add_and_norm_f32",
                Kind::Bf16 => "add_and_norm_bf16",
                Kind::F8 => "add_and_norm_f8",
            };
            (kernel, Form { threads, width })
        }
    };
    // SAFETY: the kernel's parameters, and as many elements behind each as it reads and writes: checked above.
    unsafe { norm.launch(kernel, form, &[]) }
}

/// [`combine`] of experts' results into `partial`, and [`add_and_norm`] of what is in it then; in one launch where rows have such
/// a width, which leaves `partial` as it is.
///
/// # Errors
/// If the device fails.
///
/// # Panics
/// As those two.
pub fn combine_add_and_norm(
    results: &Results<'_>,
    onto: Onto,
    partial: ViewMut<'_, f32>,
    norm: Norm<'_>,
) -> Result<(), DeviceError> {
    let Norm { rows, width, .. } = norm;
    let Results { y, stride, bias, buffers } = *results;
    let whole = stride.is_multiple_of(4)
        && [y.address(), bias.map_or(0, |bias| bias.address()), partial.address()]
            .iter()
            .all(|address| address.is_multiple_of(16));
    let form = norm.floats_of_a_thread().filter(|_| whole && rows > 0);
    let (kernel, form) = match form.map(|(floats, form)| (floats, norm.out.kind(), form)) {
        Some((4, Kind::F32, form)) => ("combine_add_and_norm_4_f32", form),
        Some((4, Kind::Bf16, form)) => ("combine_add_and_norm_4_bf16", form),
        Some((4, Kind::F8, form)) => ("combine_add_and_norm_4_f8", form),
        Some((_, Kind::F32, form)) => ("combine_add_and_norm_8_f32", form),
        Some((_, Kind::Bf16, form)) => ("combine_add_and_norm_8_bf16", form),
        Some((_, Kind::F8, form)) => ("combine_add_and_norm_8_f8", form),
        None => {
            let mut partial = partial;
            combine(partial.reborrow(), onto, y, stride, bias, buffers, rows, width)?;
            let Norm { out, x, post_norm, weight, eps, .. } = norm;
            return add_and_norm(out, x, Some(partial.as_view()), post_norm, weight, rows, width, eps);
        }
    };
    results.check(rows, width);
    assert_eq!(partial.len(), rows * width, "partial: {rows} rows of {width}");
    let added = Some(partial.as_view()).filter(|_| onto == Onto::Sum);
    let norm = Norm { added, ..norm };
    norm.check();
    let more = [
        Arg::Ptr(y.address()),
        Arg::Ptr(bias.map_or(0, |bias| bias.address())),
        Arg::Ptr(buffers.positions.view().address()),
        Arg::Ptr(buffers.weights.view().address()),
        Arg::Ptr(buffers.groups.group_of_row.view().address()),
        Arg::U32((stride / 4) as u32),
        Arg::U32(buffers.top_k() as u32),
    ];
    // SAFETY: the kernel's parameters; lengths were looked at, and positions are of sorted rows or of none.
    unsafe { norm.launch(kernel, form, &more) }
}

/// Where a norm's rows go, `[rows][width]`: nowhere, to one of these, or to both.
#[derive(Debug, Default)]
pub struct Normed<'a> {
    /// In f32 or bf16; beside `codes` in bf16.
    pub plain: Option<ActsViewMut<'a>>,
    /// In E4M3, rounded once as [`activations_to_f8`](crate::cuda::activations_to_f8) says.
    pub codes: Option<F8ViewMut<'a>>,
}

impl<'a> From<ActsViewMut<'a>> for Normed<'a> {
    fn from(out: ActsViewMut<'a>) -> Self {
        match out {
            ActsViewMut::F8(codes) => Self { plain: None, codes: Some(codes) },
            plain => Self { plain: Some(plain), codes: None },
        }
    }
}

impl<'a> From<Option<ActsViewMut<'a>>> for Normed<'a> {
    fn from(out: Option<ActsViewMut<'a>>) -> Self {
        out.map_or_else(Self::default, Self::from)
    }
}

/// Which kernels there are.
#[derive(Clone, Copy)]
enum Kind {
    F32,
    Bf16,
    /// And, unless there is no such place, bf16.
    F8,
}

impl Normed<'_> {
    fn is_nothing(&self) -> bool {
        self.plain.is_none() && self.codes.is_none()
    }

    fn kind(&self) -> Kind {
        match (&self.codes, self.plain.as_ref().map(ActsViewMut::ty)) {
            (Some(_), None | Some(ActType::Bf16)) => Kind::F8,
            (None, Some(ActType::Bf16)) => Kind::Bf16,
            (None, None | Some(ActType::F32)) => Kind::F32,
            (_, Some(ty)) => panic!("rows in {ty:?} beside codes, or for them"),
        }
    }

    fn check(&self, rows: usize, width: usize) {
        let len = rows * width;
        assert!(self.plain.as_ref().is_none_or(|out| out.len() == len), "out: {rows} rows of {width}");
        let fits = |codes: &F8ViewMut<'_>| codes.len() == len && codes.width() == width;
        assert!(self.codes.as_ref().is_none_or(fits), "codes: {rows} rows of {width}");
    }
}

/// What [`add_and_norm`] takes.
#[derive(Debug)]
pub struct Norm<'a> {
    /// Where the rows go.
    pub out: Normed<'a>,
    /// `[rows][width]`.
    pub x: ViewMut<'a, f32>,
    /// `[rows][width]`; where experts' results are added, these take its place.
    pub added: Option<View<'a, f32>>,
    /// Of what is added: `width` weights.
    pub post_norm: Option<View<'a, f32>>,
    /// `width` weights.
    pub weight: View<'a, f32>,
    /// How many.
    pub rows: usize,
    /// Of a row.
    pub width: usize,
    /// Added to mean squares.
    pub eps: f32,
}

/// Threads of a block, and what they count a row's width in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) threads: u32,
    pub(super) width: usize,
}

impl Norm<'_> {
    pub(super) fn check(&self) {
        let (rows, width) = (self.rows, self.width);
        let len = rows * width;
        assert_eq!(self.x.len(), len, "x: {rows} rows of {width}");
        assert!(self.added.is_none_or(|added| added.len() == len), "added: {rows} rows of {width}");
        assert!(self.post_norm.is_none_or(|norm| norm.len() == width), "post_norm: {width} wide");
        assert!(self.out.is_nothing() || self.weight.len() == width, "weight: {width} wide");
        self.out.check(rows, width);
    }

    /// How many floats each thread keeps in registers, 4 or 8, where rows are such that it can.
    pub(super) fn floats_of_a_thread(&self) -> Option<(usize, Form)> {
        let of = |view: Option<View<'_, f32>>| view.map_or(0, |view| view.address());
        let out = self.out.plain.as_ref().map_or(0, ActsViewMut::address);
        let aligned = [out, self.x.address(), of(self.added), of(self.post_norm), self.weight.address()]
            .iter()
            .all(|address| address.is_multiple_of(16));
        if !aligned || !self.width.is_multiple_of(4) || self.width > 8 * 1024 {
            return None;
        }
        let floats = if self.width > 4 * 1024 { 8 } else { 4 };
        let threads = self.width.div_ceil(floats).next_multiple_of(32).max(32) as u32;
        Some((floats, Form { threads, width: self.width / 4 }))
    }

    /// What all kernels of norms take first; they count a row's width so.
    pub(super) fn args(&self, width: usize) -> [Arg; 7] {
        [
            Arg::Ptr(self.out.plain.as_ref().map_or(0, ActsViewMut::address)),
            Arg::Ptr(self.x.address()),
            Arg::Ptr(self.added.map_or(0, |added| added.address())),
            Arg::Ptr(self.post_norm.map_or(0, |norm| norm.address())),
            Arg::Ptr(self.weight.address()),
            Arg::U32(width as u32),
            Arg::F32(self.eps),
        ]
    }

    /// # Safety
    /// `kernel` takes the arguments of a norm and then `more`.
    unsafe fn launch(&self, kernel: &'static str, form: Form, more: &[Arg]) -> Result<(), DeviceError> {
        let launch = Launch { kernel, grid: [self.rows as u32, 1, 1], threads: form.threads, shared: 0 };
        let mut args = self.args(form.width).to_vec();
        if let Some(codes) = &self.out.codes {
            let stride = Arg::U32(codes.stride() as u32);
            args.extend([Arg::Ptr(codes.address()), Arg::Ptr(codes.scales_address()), stride]);
        }
        args.extend_from_slice(more);
        // SAFETY: the caller's.
        unsafe { self.x.device().launch(&launch, &args) }
    }
}

#[cfg(test)]
#[path = "residual_tests.rs"]
mod tests;
