//! What the placement decides on: workers, the links between them, models.

use foggara_models::{KvFormat, Quantize};
use foggara_proto::shape::Shape;

/// What a worker computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Processor cores; workers of one host share its memory.
    Cpu,
    /// A GPU with memory of its own.
    Gpu,
}

impl Kind {
    /// In the order in which they are tried.
    pub(super) const ALL: [Self; 2] = [Self::Gpu, Self::Cpu];

    /// Several of them, for people.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Cpu => "CPUs",
            Self::Gpu => "GPUs",
        }
    }
}

/// What may be asked of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takes {
    /// Precisions of the KV cache.
    pub kv: Vec<KvFormat>,
    /// What weights are quantized to.
    pub quantize: Vec<Quantize>,
    /// Whether it takes part in data-parallel attention.
    pub data_parallel: bool,
}

impl Takes {
    /// What workers of this version take.
    pub fn usual(kind: Kind) -> Self {
        let gpu = kind == Kind::Gpu;
        Self {
            kv: KvFormat::ALL
                .into_iter()
                .filter(|format| if gpu { format.on_gpus() } else { format.on_cpus() })
                .collect(),
            quantize: Quantize::ALL.into_iter().filter(|quantize| gpu || !quantize.needs_gpu()).collect(),
            data_parallel: !gpu,
        }
    }
}

/// How fast a worker is, as it measured when it started. 0: not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speeds {
    /// Memory bandwidth: of what no cache holds.
    pub bytes_per_second: u64,
    /// Floating-point operations per second.
    pub flops: u64,
    /// Bytes of the last-level caches of its host, which its workers share.
    pub cache_bytes: u64,
    /// Bandwidth of what these hold.
    pub cache_bytes_per_second: u64,
    /// Operations per second on bytes.
    pub int8_ops_per_second: u64,
}

impl Speeds {
    /// Of memory and floats alone, as of a GPU.
    pub const fn of_memory(bytes_per_second: u64, flops: u64) -> Self {
        Self { bytes_per_second, flops, cache_bytes: 0, cache_bytes_per_second: 0, int8_ops_per_second: 0 }
    }

    /// The higher of each.
    #[must_use]
    pub(super) fn higher(self, other: Self) -> Self {
        Self {
            bytes_per_second: self.bytes_per_second.max(other.bytes_per_second),
            flops: self.flops.max(other.flops),
            cache_bytes: self.cache_bytes.max(other.cache_bytes),
            cache_bytes_per_second: self.cache_bytes_per_second.max(other.cache_bytes_per_second),
            int8_ops_per_second: self.int8_ops_per_second.max(other.int8_ops_per_second),
        }
    }
}

/// A worker that may be given a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerFacts {
    /// Its id.
    pub id: u64,
    /// Workers of one host have the quick links.
    pub host: String,
    /// What it computes on.
    pub kind: Kind,
    /// Of its program: other versions may round differently.
    pub version: String,
    /// What may be asked of it.
    pub takes: Takes,
    /// Bytes that a rank may take, nothing subtracted but what others hold already.
    pub memory_bytes: u64,
    /// How fast it is.
    pub speeds: Speeds,
}

/// A way between two workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// In one direction.
    pub bytes_per_second: u64,
    /// From the sender's call to the receiver's, in nanoseconds.
    pub latency_ns: u64,
}

impl Link {
    /// Seconds for `bytes` in `steps` messages that wait for each other.
    pub(super) fn seconds(self, bytes: f64, steps: f64) -> f64 {
        bytes / self.bytes_per_second.max(1) as f64 + steps * self.latency_ns as f64 * 1e-9
    }
}

/// The ways there are. What has not been measured is assumed as in [`Links::ASSUMED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Links {
    /// Shared memory of one host.
    pub shared_memory: Link,
    /// TCP from a host to itself: processors of a group that spans hosts.
    pub loopback: Link,
    /// Between GPUs of one host.
    pub accelerators: Link,
    /// Between hosts.
    pub network: Link,
}

impl Links {
    /// - Shared memory: on a quiet machine a step of SmolLM2, of 61 collectives of two messages each, spends a twentieth of its 3 ms
    ///   in them (`step_rate`), 1 to 3 µs a message while both ranks look out for it; the bandwidth is half of one core's copy speed.
    /// - Loopback TCP: two system calls of some 10 µs, and waking who waits.
    /// - GPUs of one host: NVLink of the H100 and H200, 900 GB/s both ways together (NVIDIA H100 data sheet); a collective call
    ///   is a kernel launch and a round of flags, assumed 8 µs. Never measured; where there is only PCIe, it is slower.
    /// - Network: 10 Gbit/s Ethernet, assumed 50 µs through both kernels. Also between GPUs of different hosts.
    pub const ASSUMED: Self = Self {
        shared_memory: Link { bytes_per_second: 5_000_000_000, latency_ns: 3_000 },
        loopback: Link { bytes_per_second: 2_000_000_000, latency_ns: 50_000 },
        accelerators: Link { bytes_per_second: 450_000_000_000, latency_ns: 8_000 },
        network: Link { bytes_per_second: 1_250_000_000, latency_ns: 50_000 },
    };

    /// The slowest way among `workers`. `one_host`: the whole group is on one host, so shared memory can be used.
    pub(super) fn among(&self, workers: &[&WorkerFacts], one_host: bool) -> Link {
        let Some(first) = workers.first() else { return self.shared_memory };
        if workers.iter().any(|worker| worker.host != first.host) {
            return self.network;
        }
        match (workers.iter().all(|worker| worker.kind == Kind::Gpu), one_host) {
            (true, _) => self.accelerators,
            (false, true) => self.shared_memory,
            (false, false) => self.loopback,
        }
    }
}

/// Bits that one parameter takes, scales included, on one kind of device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bits {
    /// In the layers.
    pub layers: f64,
    /// In embedding and output.
    pub embedding: f64,
}

impl Bits {
    /// 34 bytes for 32 parameters.
    const Q8_0: f64 = 8.5;
    const BF16: f64 = 16.0;
    /// q4_0 takes 18 bytes for 32 parameters, q4_k 144 for 256, and on GPUs 148.
    const Q4: f64 = 4.5;
    const Q4_K_ON_GPU: f64 = 4.625;
    /// A byte, and four for each row: rows are of some thousand parameters.
    const FP8: f64 = 8.02;

    /// After quantization at load, on `kind`, as it is offered: CPUs know no fp8. (What is asked for is counted matrix by matrix.) Embedding and output of four-bit models are kept at q8_0, those of fp8 as they are
    /// stored. What takes less already stays as it is.
    pub fn quantized(self, quantize: Quantize, kind: Kind) -> Self {
        let (layers, embedding) = match (kind, quantize) {
            (_, Quantize::Bf16) => (Self::BF16, Self::BF16),
            (_, Quantize::Q8_0) => (Self::Q8_0, Self::Q8_0),
            (Kind::Gpu, Quantize::Q4_K) => (Self::Q4_K_ON_GPU, Self::Q8_0),
            (_, Quantize::Q4_0 | Quantize::Q4_K) => (Self::Q4, Self::Q8_0),
            (Kind::Gpu, Quantize::Fp8) => (Self::FP8, self.embedding),
            _ => return self,
        };
        Self { layers: layers.min(self.layers), embedding: embedding.min(self.embedding) }
    }
}

/// Bits of a parameter as each kind of device holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldBits {
    /// As stored, or quantized.
    pub cpu: Bits,
    /// The same, but that blocks take some more there, and small matrices with blocks are in bf16.
    pub gpu: Bits,
}

impl HeldBits {
    /// Those of a kind.
    pub fn on(self, kind: Kind) -> Bits {
        match kind {
            Kind::Cpu => self.cpu,
            Kind::Gpu => self.gpu,
        }
    }
}

/// Experts of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertFacts {
    /// How many there are.
    pub count: u64,
    /// How many see each token.
    pub top_k: u64,
    /// Parameters of one.
    pub parameters: u64,
}

/// A layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerFacts {
    /// Parameters of the attention.
    pub attention: u64,
    /// Parameters of the MLP that every token goes through: a dense one, or shared experts.
    pub dense: u64,
    /// Experts that tokens are routed to.
    pub experts: Option<ExpertFacts>,
}

/// A model, as far as the placement cares.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key heads: the cache of a rank is at least one of them. 1 for a compressed cache, which every rank keeps whole.
    pub kv_heads: u64,
    /// Bytes of cache that a token takes in one layer, over all key heads, were nothing replicated.
    pub kv_bytes: u64,
    /// The layers, first to last.
    pub layers: Vec<LayerFacts>,
    /// Parameters of the embedding, and of the output if it is another matrix.
    pub embedding: u64,
    /// Whether the output is the embedding.
    pub tied: bool,
    /// Tokens there are.
    pub vocab: u64,
    /// Tokens of the longest sequence.
    pub context: u64,
    /// Bits of a parameter, as served.
    pub bits: HeldBits,
    /// Bytes of the low-rank adapters beside it: a rank holds no more of them.
    pub adapters: u64,
}

impl ModelFacts {
    /// Experts of a layer; 0 for a dense model.
    pub fn experts(&self) -> u64 {
        self.layers.iter().filter_map(|layer| layer.experts.map(|experts| experts.count)).max().unwrap_or(0)
    }

    /// Bytes of all weights on `kind`.
    pub fn weight_bytes(&self, kind: Kind) -> u64 {
        let bits = self.bits.on(kind);
        let experts = |layer: &LayerFacts| layer.experts.map_or(0, |e| e.count * e.parameters);
        let layers: u64 = self.layers.iter().map(|l| l.attention + l.dense + experts(l)).sum();
        let ends = self.embedding * if self.tied { 1 } else { 2 };
        bytes(layers, bits.layers) + bytes(ends, bits.embedding)
    }

    /// The same model, quantized at load.
    #[must_use]
    pub fn quantized(&self, quantize: Quantize) -> Self {
        let on = |kind| self.bits.on(kind).quantized(quantize, kind);
        Self { bits: HeldBits { cpu: on(Kind::Cpu), gpu: on(Kind::Gpu) }, ..self.clone() }
    }
}

/// Bytes of `parameters`.
pub(super) fn bytes(parameters: u64, bits: f64) -> u64 {
    (parameters as f64 * bits / 8.0).ceil() as u64
}

/// How ranks may reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// As is best.
    Auto,
    /// Through shared memory only: on one host.
    SharedMemory,
    /// Over TCP only.
    Tcp,
}

impl Reach {
    /// What a deployment's `collective` says.
    pub fn named(name: &str) -> Self {
        match name {
            "shm" => Self::SharedMemory,
            "tcp" => Self::Tcp,
            _ => Self::Auto,
        }
    }
}

/// What is asked for one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// 0 leaves a number to the placement.
    pub shape: Shape,
    /// Tokens of KV cache of each data-parallel part; 0: as many as are useful and fit.
    pub kv_tokens: u64,
    /// How ranks may reach each other.
    pub reach: Reach,
    /// Precision of the KV cache; `None`: any that is exact enough, which every worker keeps.
    pub kv: Option<KvFormat>,
    /// What weights are quantized to.
    pub quantize: Quantize,
    /// Tokens that a sequence has in the cache while its speed is predicted.
    pub sequence_tokens: u64,
}

impl Wish {
    /// A question and half its answer.
    pub const SEQUENCE_TOKENS: u64 = 1_024;

    /// Anything that works.
    pub const OPEN: Self = Self {
        shape: Shape { tp: 0, dp: 0, pp: 0, ep: 0 },
        kv_tokens: 0,
        reach: Reach::Auto,
        kv: None,
        quantize: Quantize::None,
        sequence_tokens: Self::SEQUENCE_TOKENS,
    };
}
