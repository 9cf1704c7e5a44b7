//! What Prometheus reads. Every family is declared in the one table of [`Metrics::new`]; labels are bounded: models by the
//! deployments there are, layers and experts by their models, everything else by this code.

mod adapters;
mod catalogue;
mod cluster;
mod driven;
mod lost_drivers;
mod prefix;
mod process;
mod queue;
mod raft;
mod ranks;
mod steps;
mod table;
mod tls;
mod vllm;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use foggara_proto::step::{ExpertCount, StepReport};
use foggara_proto::version::Build;
use foggara_proto::wire::admin::Loading;
use foggara_tls::Tls;
use prometheus::{
    Encoder, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::batcher::Occupancy;
use crate::cluster::{ClusterState, RaftStatus};

pub use adapters::{AdapterFamilies, AdapterUse};
pub use catalogue::{Family, Kind, reference};
use cluster::ClusterFamilies;
use driven::Shown;
pub use driven::{Driven, DrivenGroups};
use lost_drivers::LostDrivers;
use prefix::PrefixFamilies;
use process::ProcessFamilies;
use queue::QueueFamilies;
use raft::RaftFamilies;
use ranks::{RankFamilies, RankMetrics};
use steps::StepFamilies;
use table::Table;
use tls::TlsFamilies;

/// Label of requests for models that are not served.
pub const UNKNOWN_MODEL: &str = "unknown";

const LATENCY: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const TOKENS: [f64; 12] =
    [1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 16_384.0, 131_072.0];

/// Every metric of a coordinator.
pub struct Metrics {
    registry: Registry,
    families: Vec<Family>,
    vllm_names: bool,
    /// Requests finished.
    pub requests: IntCounterVec,
    /// Seconds from a request's arrival to its end.
    pub request_duration: HistogramVec,
    /// Seconds to the first token.
    pub time_to_first_token: HistogramVec,
    /// Seconds between tokens.
    pub inter_token_latency: HistogramVec,
    /// Prompt tokens of finished requests.
    pub prompt_tokens: IntCounterVec,
    /// Generated tokens of finished requests.
    pub generated_tokens: IntCounterVec,
    /// Prompt tokens of each finished request.
    pub request_prompt_tokens: HistogramVec,
    /// Generated tokens of each finished request.
    pub request_generated_tokens: HistogramVec,
    /// Requests being answered by this front door.
    pub requests_in_progress: IntGaugeVec,
    /// By adapter.
    pub adapters: AdapterFamilies,
    sequences: IntGaugeVec,
    kv_blocks: IntGaugeVec,
    preemptions: IntCounterVec,
    prefix: PrefixFamilies,
    queue: QueueFamilies,
    lost_drivers: LostDrivers,
    steps: StepFamilies,
    expert_tokens: IntCounterVec,
    ranks: RankFamilies,
    driven: DrivenGroups,
    raft: RaftFamilies,
    cluster: ClusterFamilies,
    process: ProcessFamilies,
    tls: TlsFamilies,
}

impl Metrics {
    /// All families, in a registry of their own.
    ///
    /// # Panics
    /// If the table below names a family twice.
    pub fn new() -> Self {
        let registry = Registry::new();
        let table = Table::new(&registry);
        let build = table.gauges("build_info", "Always 1; the label says which version runs.", &["version"]);
        build.with_label_values(&[&Build::own().version]).set(1);
        let mut metrics = Self {
            requests: table.counters(
                "requests_total",
                "Requests finished, by outcome.",
                &["model", "api", "status"],
            ),
            request_duration: table.histograms(
                "request_duration_seconds",
                "From arrival to the last token.",
                &["model"],
                &LATENCY,
            ),
            time_to_first_token: table.histograms(
                "time_to_first_token_seconds",
                "From arrival to the first token.",
                &["model"],
                &LATENCY,
            ),
            inter_token_latency: table.histograms(
                "inter_token_latency_seconds",
                "Between two tokens of a stream.",
                &["model"],
                &LATENCY,
            ),
            prompt_tokens: table.counters(
                "prompt_tokens_total",
                "Prompt tokens of finished requests.",
                &["model"],
            ),
            generated_tokens: table.counters(
                "generated_tokens_total",
                "Tokens generated for finished requests.",
                &["model"],
            ),
            request_prompt_tokens: table.histograms(
                "request_prompt_tokens",
                "Prompt tokens of a finished request.",
                &["model"],
                &TOKENS,
            ),
            request_generated_tokens: table.histograms(
                "request_generated_tokens",
                "Tokens generated for a finished request, all its choices together.",
                &["model"],
                &TOKENS,
            ),
            requests_in_progress: table.gauges(
                "requests_in_progress",
                "Requests this front door is answering.",
                &["model"],
            ),
            adapters: AdapterFamilies::new(&table),
            sequences: table.gauges(
                "sequences",
                "Sequences of groups driven here, by state: running, waiting.",
                &["model", "state"],
            ),
            kv_blocks: table.gauges(
                "kv_blocks",
                "KV blocks of groups driven here, by state: free, live, cached.",
                &["model", "state"],
            ),
            preemptions: table.counters(
                "preemptions_total",
                "Sequences that had to make room for others.",
                &["model"],
            ),
            prefix: PrefixFamilies::new(&table),
            queue: QueueFamilies::new(&table),
            lost_drivers: LostDrivers::new(&table),
            steps: StepFamilies::new(&table),
            expert_tokens: table.counters(
                "expert_tokens_total",
                "Tokens routed to each expert of groups driven here.",
                &["model", "layer", "expert"],
            ),
            ranks: RankFamilies::new(&table),
            driven: DrivenGroups::default(),
            raft: RaftFamilies::new(&table),
            cluster: ClusterFamilies::new(&table),
            process: ProcessFamilies::new(&table),
            tls: TlsFamilies::new(&table),
            families: Vec::new(),
            vllm_names: false,
            registry: registry.clone(),
        };
        metrics.families = table.families();
        metrics
    }

    /// The same, which shows some under vLLM's names, too.
    pub fn with_vllm_names(self, shown: bool) -> Self {
        Self { vllm_names: shown, ..self }
    }

    /// The same, which shows how long a certificate is good.
    pub fn with_tls(mut self, tls: Option<Tls>) -> Self {
        self.tls.follow(tls);
        self
    }

    /// Every family, as it was declared.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// Requests being answered by this front door, of all models.
    pub fn requests_in_progress(&self) -> i64 {
        let family = prometheus::core::Collector::collect(&self.requests_in_progress);
        let gauges = family.iter().flat_map(|family| family.get_metric());
        gauges.map(|metric| metric.get_gauge().get_value() as i64).sum()
    }

    /// What the drivers here show of their groups.
    pub fn driven(&self) -> &DrivenGroups {
        &self.driven
    }

    /// Handles for the holder of lease `epoch` of `group`, which serves `model`.
    pub fn driver(&self, group: u64, epoch: u64, model: &str) -> DriverMetrics {
        DriverMetrics {
            running: self.sequences.with_label_values(&[model, "running"]),
            waiting: self.sequences.with_label_values(&[model, "waiting"]),
            free: self.kv_blocks.with_label_values(&[model, "free"]),
            live: self.kv_blocks.with_label_values(&[model, "live"]),
            cached: self.kv_blocks.with_label_values(&[model, "cached"]),
            preemptions: self.preemptions.with_label_values(&[model]),
            prefix_asked: self.prefix.asked.with_label_values(&[model]),
            prefix_found: self.prefix.found.with_label_values(&[model]),
            queue_wait: self.queue.wait.with_label_values(&[model]),
            shown: Occupancy::default(),
            adopted: self.lost_drivers.adopted.with_label_values(&[model]),
            steps: self.steps.steps.with_label_values(&[model]),
            unplanned_steps: self.lost_drivers.unplanned_steps.with_label_values(&[model]),
            seconds: self.steps.seconds.with_label_values(&[model]),
            collective: self.steps.collective_seconds.with_label_values(&[model]),
            wait: self.steps.wait_seconds.with_label_values(&[model]),
            sample: self.steps.sample_seconds.with_label_values(&[model]),
            rows: self.steps.rows.with_label_values(&[model]),
            drafted: self.steps.drafted.with_label_values(&[model]),
            accepted: self.steps.accepted.with_label_values(&[model]),
            ranks: self.ranks.of(model),
            group: self.driven.show(group, epoch, model),
            expert_tokens: self.expert_tokens.clone(),
            experts: HashMap::new(),
            model: model.to_owned(),
        }
    }

    /// Takes in where Raft stands.
    pub fn raft(&self, status: &RaftStatus) {
        self.raft.set(status);
    }

    /// Takes in what the cluster consists of, and how far workers are that load.
    pub fn cluster(&self, state: &ClusterState, loading: &BTreeMap<u64, Loading>) {
        self.cluster.set(state, loading);
        self.adapters.set(state, &self.driven, Instant::now());
    }

    /// Prometheus's text format, version 0.0.4.
    pub fn render(&self) -> String {
        self.process.read();
        self.tls.read();
        self.queue.read(&self.driven, Instant::now());
        let mut families = self.registry.gather();
        if self.vllm_names {
            families.extend(vllm::translate(&families));
        }
        let mut bytes = Vec::new();
        // Writing to memory fails only for families with invalid names, of which there are none.
        TextEncoder::new().encode(&families, &mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// One driver's handles.
pub struct DriverMetrics {
    running: IntGauge,
    waiting: IntGauge,
    free: IntGauge,
    live: IntGauge,
    cached: IntGauge,
    preemptions: IntCounter,
    prefix_asked: IntCounter,
    prefix_found: IntCounter,
    queue_wait: Histogram,
    /// What the gauges hold of this driver: they sum over the drivers of a model.
    shown: Occupancy,
    adopted: IntCounter,
    steps: IntCounter,
    unplanned_steps: IntCounter,
    seconds: Histogram,
    collective: Histogram,
    wait: Histogram,
    sample: Histogram,
    rows: Histogram,
    drafted: IntCounter,
    accepted: IntCounter,
    ranks: RankMetrics,
    group: Shown,
    expert_tokens: IntCounterVec,
    /// Of the experts seen so far, by layer and expert.
    experts: HashMap<(u32, u32), IntCounter>,
    model: String,
}

impl DriverMetrics {
    /// A step was reported.
    pub fn step(&mut self, report: &StepReport) {
        let timing = &report.timing;
        let seconds = |micros: u32| Duration::from_micros(u64::from(micros)).as_secs_f64();
        self.steps.inc();
        self.unplanned_steps.inc_by(u64::from(report.unplanned));
        self.seconds.observe(seconds(timing.compute_us.saturating_add(timing.sample_us)));
        self.collective.observe(seconds(timing.collective_us));
        self.wait.observe(seconds(timing.wait_us));
        self.sample.observe(seconds(timing.sample_us));
        self.rows.observe(f64::from(timing.rows));
        self.drafted.inc_by(u64::from(report.drafted));
        self.accepted.inc_by(u64::from(report.accepted));
        self.ranks.add(&report.ranks);
        self.group.step(report);
    }

    /// Tokens were routed to experts.
    pub fn experts(&mut self, counts: &[ExpertCount]) {
        for count in counts {
            let counter = self.experts.entry((count.layer, count.expert)).or_insert_with(|| {
                let (layer, expert) = (count.layer.to_string(), count.expert.to_string());
                self.expert_tokens.with_label_values(&[self.model.as_str(), &layer, &expert])
            });
            counter.inc_by(count.tokens);
        }
    }

    /// A sequence was taken over from another driver.
    pub fn adopted(&self) {
        self.adopted.inc();
    }

    /// A sequence has entered the group after so long.
    pub fn queued(&self, waited: Duration) {
        self.queue_wait.observe(waited.as_secs_f64());
    }

    /// So many sequences of an adapter, by its number, are in the group, or wait.
    pub fn adapter(&mut self, id: u64, used: AdapterUse) {
        self.group.adapter(id, used);
    }

    /// The group is this full, and whoever has waited longest has since then.
    pub fn occupancy(&mut self, now: Occupancy, waits_since: Option<Instant>) {
        let before = std::mem::replace(&mut self.shown, now);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.running.add(count(now.running) - count(before.running));
        self.waiting.add(count(now.waiting) - count(before.waiting));
        self.free.add(i64::from(now.free_blocks) - i64::from(before.free_blocks));
        self.live.add(i64::from(now.live_blocks) - i64::from(before.live_blocks));
        self.cached.add(i64::from(now.cached_blocks) - i64::from(before.cached_blocks));
        self.preemptions.inc_by(now.preemptions.saturating_sub(before.preemptions));
        self.group.occupancy(now, waits_since);
        self.prefix_asked.inc_by(now.prefix.asked.saturating_sub(before.prefix.asked));
        self.prefix_found.inc_by(now.prefix.found.saturating_sub(before.prefix.found));
    }
}

impl Drop for DriverMetrics {
    /// What is not driven here is not counted here.
    fn drop(&mut self) {
        self.occupancy(Occupancy::default(), None);
    }
}

#[cfg(test)]
mod tests;
