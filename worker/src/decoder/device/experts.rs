//! MLPs and experts on a device.

use foggara_kernels::cuda::op::elementwise::gated;
use foggara_kernels::cuda::op::matmul::{
    gated_matmul, gather_if_faster, grouped_gated_matmul, grouped_matmul, grouped_matmul_next,
    grouped_matmul_next_of_plain, matmul, matmul_of_plain,
};
use foggara_kernels::cuda::op::moe::{
    self, MoeBuffers, Onto, Placement, Results, Router, combine, norm_route_and_sort, product_route_and_sort,
};
use foggara_kernels::cuda::op::residual::Norm;
use foggara_kernels::cuda::{Buffer, DeviceError};
use foggara_kernels::op::gated::GatedActivation;
use foggara_models::spec::{Experts, Routing};

use super::attention::bias_rows;
use super::buffers::Buffers;
use super::weights::{DeviceExperts, DeviceMlp, HeldExperts};

/// What is left to be added to the residual stream: the next norm takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    Nothing,
    /// What is in `partial`.
    Partial,
    /// What the experts of a layer (of this rank's) made of their rows, and, with [`Onto::Sum`], what is in `partial`.
    Experts(usize, Onto),
}

/// Where experts run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Among the layers of the model.
    pub(super) layer: usize,
    /// This rank is the one that counts these rows.
    pub(super) counted: bool,
    pub(super) hidden: usize,
    pub(super) rows: usize,
}

/// partial = this rank's columns' part of the MLP of `normed`.
pub(super) fn run_mlp(
    b: &mut Buffers,
    w: &DeviceMlp,
    activation: GatedActivation,
    hidden: usize,
    rows: usize,
) -> Result<(), DeviceError> {
    if w.width == 0 {
        return b.partial.view_mut().slice(0..rows * hidden).fill(0);
    }
    let (both, width) = (2 * w.width, w.width);
    let at_once = match &w.gate_up[..] {
        [all] if w.gate_up_bias.is_none() && all.weights.rows() == both => {
            let x = b.normed.of(all.weights.kind(), rows, hidden);
            gated_matmul(b.gated.plain_mut(rows * width), x, &all.weights, rows, activation)?
        }
        _ => false,
    };
    if !at_once {
        for column in &w.gate_up {
            let out = b.gate_up.view_mut().slice(column.at..rows * both);
            let x = b.normed.of(column.weights.kind(), rows, hidden);
            matmul(out, both, x, &column.weights, rows)?;
        }
        let bias = w.gate_up_bias.as_ref().map(Buffer::view);
        let out = b.gated.plain_mut(rows * width);
        gated(out, b.gate_up.view().slice(0..rows * both), bias, None, rows, width, activation)?;
    }
    let partial = b.partial.view_mut().slice(0..rows * hidden);
    match b.gated.both_mut(w.down.kind(), rows, width) {
        (x, Some(codes)) => matmul_of_plain(partial, hidden, x.as_view(), codes, &w.down, rows)?,
        (x, None) => matmul(partial, hidden, x.as_view(), &w.down, rows)?,
    }
    bias_rows(b.partial.view_mut().slice(0..rows * hidden), hidden, rows, &w.down_bias)
}

/// How a layer chooses experts.
fn router_of<'a>(w: &'a DeviceExperts, e: &Experts) -> Router<'a> {
    Router {
        routing: routing(e.routing),
        bias: w.router_bias.as_ref().map(Buffer::view),
        correction: w.correction.as_ref().map(Buffer::view),
    }
}

/// Buffers of experts, those of a layer in them, and what counts its pairs.
fn of_layer<'a>(
    moe: &'a mut Option<MoeBuffers>,
    counts: &'a mut [Option<Buffer<u64>>],
    w: &'a DeviceExperts,
    place: Place,
) -> (&'a mut MoeBuffers, Placement<'a>) {
    let (Some(moe), Some(counts)) = (moe, &mut counts[place.layer]) else {
        unreachable!("a layer with experts has buffers")
    };
    moe.set_held(w.held.as_ref().map_or(0, |held| held.count));
    (moe, Placement { local: w.local.view(), counts: place.counted.then(|| counts.view_mut()) })
}

/// Chooses the experts of the rows of `normed`.
pub(super) fn route(
    b: &mut Buffers,
    w: &DeviceExperts,
    e: &Experts,
    place: Place,
) -> Result<(), DeviceError> {
    let Place { hidden, rows, .. } = place;
    let x = b.normed.of(w.router.kind(), rows, hidden);
    let logits = b.router_logits.view_mut().slice(0..rows * e.count);
    let (moe, placement) = of_layer(&mut b.moe, &mut b.counts, w, place);
    product_route_and_sort(moe, logits, x, &w.router, rows, &router_of(w, e), placement)
}

/// The norm before a layer's experts, and their choice, if that can be done at once; else nothing is done, and it is false.
pub(super) fn route_normed(
    moe: &mut Option<MoeBuffers>,
    counts: &mut [Option<Buffer<u64>>],
    norm: &Norm<'_>,
    w: &DeviceExperts,
    e: &Experts,
    place: Place,
) -> Result<bool, DeviceError> {
    let (moe, placement) = of_layer(moe, counts, w, place);
    norm_route_and_sort(moe, norm, &w.router, &router_of(w, e), placement)
}

/// What a layer's experts give the rows of `normed`, whose experts were chosen, before it is added up. `None`: partial = all this
/// rank gives.
pub(super) fn run(
    b: &mut Buffers,
    w: &DeviceExperts,
    activation: GatedActivation,
    place: Place,
) -> Result<Option<Onto>, DeviceError> {
    let Place { hidden, rows, .. } = place;
    let onto = match &w.shared {
        Some(shared) => {
            run_mlp(b, shared, activation, hidden, rows)?;
            Onto::Sum
        }
        None => Onto::Nothing,
    };
    let Some(held) = &w.held else {
        if onto == Onto::Nothing {
            b.partial.view_mut().slice(0..rows * hidden).fill(0)?;
        }
        return Ok(None);
    };
    run_held(b, held, activation, hidden, rows)?;
    Ok(Some(onto))
}

/// partial (+)= what `run` left of those experts.
pub(super) fn add_up(
    b: &mut Buffers,
    held: &HeldExperts,
    onto: Onto,
    hidden: usize,
    rows: usize,
) -> Result<(), DeviceError> {
    let partial = b.partial.view_mut().slice(0..rows * hidden);
    let Results { y, stride, bias, buffers } = results(&b.results, b.moe.as_ref(), held, hidden);
    combine(partial, onto, y, stride, bias, buffers, rows, hidden)
}

/// What `run` left of those experts.
pub(super) fn results<'a>(
    y: &'a Buffer<f32>,
    moe: Option<&'a MoeBuffers>,
    held: &'a HeldExperts,
    hidden: usize,
) -> Results<'a> {
    let Some(buffers) = moe else { unreachable!("a layer with experts has buffers") };
    Results { y: y.view(), stride: hidden, bias: held.down_bias.as_ref().map(Buffer::view), buffers }
}

/// results = what each held expert makes of its rows, sorted by expert.
fn run_held(
    b: &mut Buffers,
    held: &HeldExperts,
    activation: GatedActivation,
    hidden: usize,
    rows: usize,
) -> Result<(), DeviceError> {
    let Some(moe) = &b.moe else { unreachable!("a layer with experts has buffers") };
    let (both, width, sorted) = (2 * held.width, held.width, moe.max_sorted(rows));
    let groups = &moe.groups;
    let tokens = groups.token_of_row.view();
    let at_once = match &held.gate_up[..] {
        [(_, all)] if held.gate_up_bias.is_none() && all.rows() == both => {
            let x = b.normed.of(all.kind(), rows, hidden);
            let out = b.gated.plain_mut(sorted * width);
            // There are no results yet: their place is free.
            let room = b.results.view_mut().slice(0..sorted * hidden);
            match gather_if_faster(room, x, tokens, all, groups)? {
                Some(x) => grouped_gated_matmul(out, x, None, all, groups, activation)?,
                None => grouped_gated_matmul(out, x, Some(tokens), all, groups, activation)?,
            }
        }
        _ => false,
    };
    if !at_once {
        for (at, table) in &held.gate_up {
            let out = b.gate_up.view_mut().slice(*at..sorted * both);
            let x = b.normed.of(table.kind(), rows, hidden);
            grouped_matmul(out, both, x, Some(tokens), table, groups)?;
        }
        let bias = held.gate_up_bias.as_ref().map(Buffer::view);
        let out = b.gated.plain_mut(sorted * width);
        let gate_up = b.gate_up.view().slice(0..sorted * both);
        gated(out, gate_up, bias, Some(groups), sorted, width, activation)?;
    }
    let results = b.results.view_mut().slice(0..sorted * hidden);
    match b.gated.both_mut(held.down.kind(), sorted, width) {
        (x, Some(codes)) => {
            grouped_matmul_next_of_plain(results, hidden, x.as_view(), codes, &held.down, groups)
        }
        (x, None) => grouped_matmul_next(results, hidden, x.as_view(), None, &held.down, groups),
    }
}

/// The kernels' name of a choice of experts.
fn routing(routing: Routing) -> moe::Routing {
    match routing {
        Routing::Softmax { renormalize } => moe::Routing::Softmax { renormalize },
        Routing::GroupedSigmoid { groups, top_groups, renormalize, scale } => {
            moe::Routing::GroupedSigmoid { groups, top_groups, renormalize, scale }
        }
    }
}
