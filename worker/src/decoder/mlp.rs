//! The gated MLP: of a layer, of the shared expert, of an expert.

use foggara_kernels::ThreadPool;
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::gated::{GatedActivation, gated};
use foggara_models::spec::Activation;

use super::adapted::AdapterRunner;
use super::project::{add_bias, product, project};
use crate::weights::{MlpAdapter, MlpWeights};

/// What adapters add in an MLP, each to some rows.
pub(super) struct Adapting<'a> {
    pub(super) runner: &'a mut AdapterRunner,
    pub(super) adapted: &'a [(&'a MlpAdapter, &'a [usize])],
}

/// Working memory of MLPs of several widths.
pub(super) struct MlpRunner {
    activation: GatedActivation,
    gate_up: Vec<f32>,
    /// One for each width met.
    gated: Vec<Activations>,
}

/// The kernels' name of an activation.
pub(super) fn gated_activation(activation: Activation) -> GatedActivation {
    match activation {
        Activation::Silu => GatedActivation::Silu,
        Activation::GeluTanh => GatedActivation::GeluTanh,
        Activation::ClampedSwiglu { alpha, limit } => GatedActivation::ClampedSwiglu { alpha, limit },
    }
}

impl MlpRunner {
    pub(super) fn new(activation: Activation) -> Self {
        Self { activation: gated_activation(activation), gate_up: Vec::new(), gated: Vec::new() }
    }

    /// out = this rank's columns' part of the MLP of `x`.
    pub(super) fn run(
        &mut self,
        pool: &ThreadPool,
        w: &MlpWeights,
        x: &mut Activations,
        out: &mut [f32],
        adapting: &mut Adapting<'_>,
    ) {
        let (rows, width) = (x.rows(), w.down.cols());
        if width == 0 {
            out.fill(0.0);
            return;
        }
        let gated_rows = match self.gated.iter().position(|buffer| buffer.cols() == width) {
            Some(known) => &mut self.gated[known],
            None => {
                self.gated.push(Activations::new(0, width));
                self.gated.last_mut().expect("just pushed")
            }
        };
        gated_rows.set_rows(rows);
        self.gate_up.resize(rows * 2 * width, 0.0);
        project(pool, &w.gate_up, x, &mut self.gate_up, 2 * width);
        add_bias(&mut self.gate_up, &w.gate_up_bias);
        for (adapter, rows) in adapting.adapted {
            adapting.runner.add(pool, &adapter.gate_up, rows, x, &mut self.gate_up, 2 * width);
        }
        let (activation, gate_up) = (self.activation, &self.gate_up);
        gated_rows.fill(pool, w.down.is_quantized(), |t, out| {
            let (gate, up) = gate_up[t * 2 * width..][..2 * width].split_at(width);
            gated(activation, gate, up, out);
        });
        product(pool, &w.down, gated_rows, out);
        add_bias(out, &w.down_bias);
        for (adapter, rows) in adapting.adapted {
            adapting.runner.add(pool, &adapter.down, rows, gated_rows, out, w.down.rows());
        }
    }
}
