//! How long one rank reads and computes in a step, at the speeds that its worker has measured.

use super::facts::{Kind, Speeds};

/// Share of the measured bandwidth that a GPU reads matrices with: one stream of the models of docs/gpu.md on an H200, of what its
/// copies move.
const GPU_BANDWIDTH_SHARE: f64 = 0.8;
/// Share of the measured operations per second: 64 streams of docs/gpu.md reach 6 to 8 % of what large products in bf16 do: that few
/// rows fill the matrix units badly. In fp8, which these do twice as fast, it is twice as much.
const GPU_COMPUTE_SHARE: f64 = 0.07;
const GPU_FP8_SHARE: f64 = 0.14;
/// What some ten kernels of 2 µs each take; as above.
const GPU_LAYER: f64 = 20e-6;

// Of processors: chosen for the shapes of docs/placement.md on two of them, by what a step does there.

/// Share of the measured bandwidth that matrices are read with.
const CPU_BANDWIDTH_SHARE: f64 = 0.85;
/// Weights are read in turn, each step all of them: the last-level cache keeps the less of them the more there are, and nothing
/// where what each rank reads would fill this part of it. Each: a virtual machine is told of the whole of a cache that others use,
/// too, and of such a one who reads twice as much holds twice as much. (Two threads there hold as much each as one alone.)
const CPU_CACHE_FILLED: f64 = 0.6;
/// Reading and computing hardly overlap: of what takes less, this much is added to what takes longer.
const CPU_APART: f64 = 0.75;
/// Float operations for each operation on bytes in products of quantized weights: for a sum of 32 products, which are 64
/// operations, some 45, of scales, minima and what is lost between them.
const CPU_SCALES: f64 = 0.7;
/// The same where the rate on bytes is not known: of that on floats.
const CPU_QUANTIZED_SHARE: f64 = 0.5;
/// Share of the measured float operations that products of other weights reach. Making floats of them takes as long as so many
/// rows more: 0.1 ns for each of bf16 rows as stored, whether they come from memory or from a cache.
const CPU_FLOAT_SHARE: f64 = 0.25;
const CPU_FLOAT_ROWS: f64 = 1.4;
/// The same of attention of short sequences.
const CPU_ATTENTION_SHARE: f64 = 0.2;
/// Seconds that a layer takes whatever its size: barriers, and tasks handed out.
const CPU_LAYER: f64 = 10e-6;
/// Float operations that would take as long as what else there is for each row, layer and number of the residual stream: norms,
/// rotations, eight-bit forms, gates, keys and values.
const CPU_ROW: f64 = 1_000.0;

/// What a rank does in a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankStep {
    /// Its layers.
    pub layers: f64,
    /// Rows that go through them.
    pub rows: f64,
    /// Numbers of a row.
    pub width: f64,
    /// Bytes of weights and cache that it reads.
    pub bytes: f64,
    /// All bytes that may be read on its host, by it and by other ranks.
    pub of: f64,
    /// Ranks that read there at once.
    pub readers: f64,
    /// Parameters that meet a row, counted once for each: multiply-adds.
    pub products: f64,
    /// Parameters that are read.
    pub parameters: f64,
    /// Whether these are of quantized weights.
    pub quantized: bool,
    /// Operations of attention.
    pub attention: f64,
}

/// Seconds for it.
pub(super) fn seconds(kind: Kind, speeds: &Speeds, step: &RankStep) -> f64 {
    let flops = speeds.flops.max(1) as f64;
    match kind {
        Kind::Gpu => {
            let reading = step.bytes / (speeds.bytes_per_second.max(1) as f64 * GPU_BANDWIDTH_SHARE);
            let share = if step.quantized { GPU_FP8_SHARE } else { GPU_COMPUTE_SHARE };
            let computing = 2.0 * step.products / (flops * share);
            reading.max(computing) + GPU_LAYER * step.layers
        }
        Kind::Cpu => {
            let reading = step.bytes / (bandwidth(speeds, step.of, step.readers) * CPU_BANDWIDTH_SHARE);
            let computing = computing(speeds, step);
            let rows = CPU_ROW * step.layers * step.rows * step.width + step.attention / CPU_ATTENTION_SHARE;
            let rest = step.layers * CPU_LAYER + rows / flops;
            reading.max(computing) + CPU_APART * reading.min(computing) + rest
        }
    }
}

/// Bytes per second of what is read again and again, `of` bytes in all by so many readers.
fn bandwidth(speeds: &Speeds, of: f64, readers: f64) -> f64 {
    let memory = speeds.bytes_per_second.max(1) as f64;
    let cache = memory.max(speeds.cache_bytes_per_second as f64);
    let filled = of / speeds.cache_bytes.max(1) as f64;
    // Never more than there is room for.
    let kept = (1.0 - filled / (readers.max(1.0) * CPU_CACHE_FILLED)).min(1.0 / filled).max(0.0);
    1.0 / (kept / cache + (1.0 - kept) / memory)
}

/// Seconds of a processor's products.
fn computing(speeds: &Speeds, step: &RankStep) -> f64 {
    let flops = speeds.flops.max(1) as f64;
    match (step.quantized, speeds.int8_ops_per_second) {
        (false, _) => 2.0 * (step.products + step.parameters * CPU_FLOAT_ROWS) / (flops * CPU_FLOAT_SHARE),
        (true, 0) => 2.0 * step.products / (flops * CPU_QUANTIZED_SHARE),
        (true, bytes) => 2.0 * step.products * (1.0 / bytes as f64 + CPU_SCALES / flops),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEEDS: Speeds = Speeds {
        bytes_per_second: 10_000_000_000,
        flops: 100_000_000_000,
        cache_bytes: 100_000_000,
        cache_bytes_per_second: 30_000_000_000,
        int8_ops_per_second: 500_000_000_000,
    };

    #[test]
    fn what_a_cache_keeps_is_read_faster_and_the_less_the_more_there_is() {
        let gigabytes = |speeds: &Speeds, of, readers| (bandwidth(speeds, of, readers) / 1e8).round() / 10.0;
        for (of, readers, read) in [
            (0.0, 1.0, 30.0),
            (30_000_000.0, 1.0, 15.0),
            (60_000_000.0, 1.0, 10.0),
            (1e12, 1.0, 10.0),
            (60_000_000.0, 2.0, 15.0),
            (200_000_000.0, 1e9, 15.0),
        ] {
            assert_eq!(gigabytes(&SPEEDS, of, readers), read, "{of} by {readers}");
        }
        let none = Speeds { cache_bytes: 0, cache_bytes_per_second: 0, ..SPEEDS };
        assert_eq!(gigabytes(&none, 1.0, 1.0), 10.0, "of workers that know nothing of caches");
        let slow = Speeds { cache_bytes_per_second: 1, ..SPEEDS };
        assert_eq!(gigabytes(&slow, 0.0, 1.0), 10.0, "never slower than memory");
    }

    #[test]
    fn quantized_products_follow_the_rate_on_bytes_where_it_is_known() {
        let step = RankStep {
            layers: 1.0,
            rows: 64.0,
            width: 1.0,
            bytes: 1.0,
            of: 1.0,
            readers: 1.0,
            products: 64e9,
            parameters: 1e9,
            quantized: true,
            attention: 0.0,
        };
        let seconds = |speeds: &Speeds, quantized| computing(speeds, &RankStep { quantized, ..step });
        let (twice, unknown) = (
            Speeds { int8_ops_per_second: 1_000_000_000_000, ..SPEEDS },
            Speeds { int8_ops_per_second: 0, ..SPEEDS },
        );
        assert!(seconds(&twice, true) < seconds(&SPEEDS, true));
        assert_eq!(seconds(&unknown, true), 128e9 / (100e9 * CPU_QUANTIZED_SHARE));
        assert_eq!(seconds(&unknown, false), seconds(&SPEEDS, false), "floats are no bytes");
    }
}
