//! Kernels that begin while those before them end give what they give when each is waited for.

use super::op::elementwise::gated;
use super::op::matmul::{gated_matmul, grouped_gated_matmul, grouped_matmul, grouped_matmul_next, matmul};
use super::op::moe::{
    MoeBuffers, Onto, Placement, Router, Routing, combine, product_route_and_sort, route_and_sort,
};
use super::op::random::random_matrix;
use super::op::residual::add_and_norm;
use super::testing::{Random, devices};
use super::{ActType, Acts, Buffer, Device, DeviceError, DeviceMatrix, Gpu, MatrixTable, WeightKind};
use crate::op::gated::GatedActivation;

const ROWS: usize = 2;
const EXPERTS: usize = 6;
const TOP_K: usize = 2;

/// A stack of layers, all with the same buffers: what the next layer writes is what this one may still be reading.
struct Stack {
    device: Device,
    layers: Vec<Layer>,
    hidden: usize,
    width: usize,
    x: Buffer<f32>,
    partial: Buffer<f32>,
    normed: Acts,
    both: Buffer<f32>,
    inner: Acts,
    logits: Buffer<f32>,
    results: Buffer<f32>,
    moe: MoeBuffers,
    counts: Buffer<u64>,
    local: Buffer<u32>,
    norm: Buffer<f32>,
    /// Every kernel is waited for.
    one_by_one: bool,
}

struct Layer {
    up: DeviceMatrix,
    down: DeviceMatrix,
    router: DeviceMatrix,
    experts_up: MatrixTable,
    experts_down: MatrixTable,
}

impl Stack {
    fn new(device: &Device, layers: usize, hidden: usize, width: usize) -> Result<Self, DeviceError> {
        let mut seed = 0;
        let mut matrix = |n: usize, k: usize| {
            seed += 1;
            random_matrix(device, WeightKind::Bf16, n, k, seed, 1.0 / (k as f32).sqrt())
        };
        let mut layer = || {
            let mut table = |n, k| {
                let matrices = (0..EXPERTS).map(|_| matrix(n, k)).collect::<Result<_, _>>()?;
                MatrixTable::new(matrices)
            };
            let (experts_up, experts_down) = (table(2 * width, hidden)?, table(hidden, width)?);
            let (up, down) = (matrix(2 * width, hidden)?, matrix(hidden, width)?);
            Ok(Layer { up, down, router: matrix(EXPERTS, hidden)?, experts_up, experts_down })
        };
        let layers = (0..layers).map(|_| layer()).collect::<Result<_, DeviceError>>()?;
        let sorted = ROWS * TOP_K;
        let local: Vec<u32> = (0..EXPERTS as u32).collect();
        Ok(Self {
            device: device.clone(),
            layers,
            hidden,
            width,
            x: device.alloc(ROWS * hidden)?,
            partial: device.alloc(ROWS * hidden)?,
            normed: Acts::alloc(device, ActType::Bf16, ROWS * hidden)?,
            both: device.alloc(sorted * 2 * width)?,
            inner: Acts::alloc(device, ActType::Bf16, sorted * width)?,
            logits: device.alloc(ROWS * EXPERTS)?,
            results: device.alloc(sorted * hidden)?,
            moe: MoeBuffers::new(device, ROWS, TOP_K, EXPERTS, EXPERTS)?,
            counts: device.zeros(EXPERTS)?,
            local: device.upload(&local)?,
            norm: device.upload(&vec![1.0; hidden])?,
            one_by_one: false,
        })
    }

    /// Every second layer takes products and activations apart.
    fn run(&mut self) -> Result<(), DeviceError> {
        let layers = std::mem::take(&mut self.layers);
        let done = layers.iter().enumerate().try_for_each(|(i, layer)| self.run_layer(layer, i % 2 == 1));
        self.layers = layers;
        done
    }

    fn waited(&self) -> Result<(), DeviceError> {
        if self.one_by_one { self.device.synchronize() } else { Ok(()) }
    }

    fn run_layer(&mut self, layer: &Layer, apart: bool) -> Result<(), DeviceError> {
        let (hidden, width, silu) = (self.hidden, self.width, GatedActivation::Silu);
        self.norm()?;
        let len = ROWS * width;
        if apart {
            let both = self.both.view_mut().slice(0..2 * len);
            matmul(both, 2 * width, self.normed.view(), &layer.up, ROWS)?;
            self.waited()?;
            let both = self.both.view().slice(0..2 * len);
            gated(self.inner.view_mut().slice(0..len), both, None, None, ROWS, width, silu)?;
        } else {
            let out = self.inner.view_mut().slice(0..len);
            assert!(gated_matmul(out, self.normed.view(), &layer.up, ROWS, silu)?);
        }
        self.waited()?;
        let inner = self.inner.view().slice(0..len);
        matmul(self.partial.view_mut(), hidden, inner, &layer.down, ROWS)?;
        self.waited()?;
        self.norm()?;
        let router = Router { routing: Routing::Softmax { renormalize: true }, bias: None, correction: None };
        let placement = Placement { local: self.local.view(), counts: Some(self.counts.view_mut()) };
        let (moe, normed) = (&mut self.moe, self.normed.view());
        if apart {
            matmul(self.logits.view_mut(), EXPERTS, normed, &layer.router, ROWS)?;
            if self.one_by_one {
                self.device.synchronize()?;
            }
            route_and_sort(moe, self.logits.view(), ROWS, &router, placement)?;
        } else {
            let logits = self.logits.view_mut();
            product_route_and_sort(moe, logits, normed, &layer.router, ROWS, &router, placement)?;
        }
        self.waited()?;
        self.experts(layer, apart)?;
        self.waited()?;
        let partial = self.partial.view_mut();
        combine(partial, Onto::Nothing, self.results.view(), hidden, None, &self.moe, ROWS, hidden)?;
        self.waited()
    }

    fn norm(&mut self) -> Result<(), DeviceError> {
        let (out, x) = (self.normed.view_mut(), self.x.view_mut());
        let added = Some(self.partial.view());
        add_and_norm(Some(out), x, added, None, self.norm.view(), ROWS, self.hidden, 1e-5)?;
        self.waited()
    }

    fn experts(&mut self, layer: &Layer, apart: bool) -> Result<(), DeviceError> {
        let (hidden, width, silu) = (self.hidden, self.width, GatedActivation::Silu);
        let (groups, sorted) = (&self.moe.groups, ROWS * TOP_K);
        let tokens = Some(groups.token_of_row.view());
        let x = self.normed.view();
        if apart {
            grouped_matmul(self.both.view_mut(), 2 * width, x, tokens, &layer.experts_up, groups)?;
            self.waited()?;
            let out = self.inner.view_mut();
            gated(out, self.both.view(), None, Some(groups), sorted, width, silu)?;
        } else {
            let out = self.inner.view_mut();
            assert!(grouped_gated_matmul(out, x, tokens, &layer.experts_up, groups, silu)?);
        }
        self.waited()?;
        let (out, x) = (self.results.view_mut(), self.inner.view());
        grouped_matmul_next(out, hidden, x, None, &layer.experts_down, groups)
    }

    /// The residual stream after all layers, from the same beginning.
    fn result(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<Vec<f32>, DeviceError> {
        let start = Random::new(5).floats(ROWS * self.hidden);
        self.x.view_mut().upload(&start)?;
        self.partial.view_mut().fill(0)?;
        run(self)?;
        self.x.download()
    }
}

#[test]
fn kernels_in_a_row_give_what_they_give_one_by_one() {
    for device in devices() {
        // On a GPU so large that every kernel takes some time, and so often that one too early shows.
        let (layers, hidden, width, times) = match Gpu::of(&device) {
            Some(_) => (6, 4096, 2048, 40),
            None => (2, 512, 256, 1),
        };
        let mut stack = Stack::new(&device, layers, hidden, width).expect("stack");
        stack.one_by_one = true;
        let expected = stack.result(Stack::run).expect("one by one");
        assert!(expected.iter().all(|x| x.is_finite()), "no numbers");
        stack.one_by_one = false;
        for time in 0..times {
            let found = stack.result(Stack::run).expect("in a row");
            assert!(found == expected, "in a row, time {time}: other numbers");
        }
        if device.driver().can_capture() {
            let recording = device.record(|| stack.run()).expect("recorded");
            for time in 0..times {
                let found = stack.result(|_| recording.replay()).expect("replayed");
                assert!(found == expected, "recorded, time {time}: other numbers");
            }
        }
    }
}
