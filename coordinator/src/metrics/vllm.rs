//! The same numbers under the names of vLLM (`vllm/v1/metrics/loggers.py`), for dashboards and autoscalers that know those.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::proto::{Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::cluster::state::adapters::MAX_ADAPTERS;

/// Ours, and theirs. What vLLM splits into several families is chosen by the value of a label.
type Names = (&'static str, Option<(&'static str, &'static str)>, &'static str);

const NAMES: [Names; 16] = [
    ("foggara_sequences", Some(("state", "running")), "vllm:num_requests_running"),
    ("foggara_sequences", Some(("state", "waiting")), "vllm:num_requests_waiting"),
    ("foggara_prefix_cache_query_tokens_total", None, "vllm:prefix_cache_queries_total"),
    ("foggara_prefix_cache_hit_tokens_total", None, "vllm:prefix_cache_hits_total"),
    ("foggara_preemptions_total", None, "vllm:num_preemptions_total"),
    ("foggara_prompt_tokens_total", None, "vllm:prompt_tokens_total"),
    ("foggara_generated_tokens_total", None, "vllm:generation_tokens_total"),
    ("foggara_request_prompt_tokens", None, "vllm:request_prompt_tokens"),
    ("foggara_request_generated_tokens", None, "vllm:request_generation_tokens"),
    ("foggara_step_rows", None, "vllm:iteration_tokens_total"),
    ("foggara_draft_tokens_total", None, "vllm:spec_decode_num_draft_tokens_total"),
    ("foggara_accepted_draft_tokens_total", None, "vllm:spec_decode_num_accepted_tokens_total"),
    ("foggara_time_to_first_token_seconds", None, "vllm:time_to_first_token_seconds"),
    ("foggara_inter_token_latency_seconds", None, "vllm:inter_token_latency_seconds"),
    ("foggara_request_duration_seconds", None, "vllm:e2e_request_latency_seconds"),
    ("foggara_queue_wait_seconds", None, "vllm:request_queue_time_seconds"),
];

/// vLLM's families, made of ours.
pub(super) fn translate(ours: &[MetricFamily]) -> Vec<MetricFamily> {
    let find = |name: &str| ours.iter().find(|family| family.name() == name);
    let mut theirs: Vec<_> = NAMES
        .iter()
        .filter_map(|(from, only, to)| {
            let family = find(from)?;
            let metrics =
                family.get_metric().iter().filter(|metric| only.is_none_or(|only| has(metric, only)));
            some_of(to, family.help(), family.get_field_type(), metrics.map(|m| with(m.clone(), m, None)))
        })
        .collect();
    theirs.extend(find("foggara_kv_blocks").and_then(kv_cache_use));
    theirs.extend(find("foggara_requests_total").and_then(finished));
    if find("foggara_adapter_ready_replicas").is_some() {
        theirs.extend(adapters(find("foggara_adapter_sequences")));
    }
    theirs
}

fn some_of(
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: impl Iterator<Item = Metric>,
) -> Option<MetricFamily> {
    let metrics: Vec<_> = metrics.collect();
    let mut family = MetricFamily::default();
    family.set_name(name.into());
    family.set_help(help.into());
    family.set_field_type(kind);
    let any = !metrics.is_empty();
    family.set_metric(metrics);
    any.then_some(family)
}

fn has(metric: &Metric, (label, value): (&str, &str)) -> bool {
    metric.get_label().iter().any(|pair| pair.name() == label && pair.value() == value)
}

fn label_of<'a>(metric: &'a Metric, label: &str) -> &'a str {
    metric.get_label().iter().find(|pair| pair.name() == label).map_or("", LabelPair::value)
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

/// `metric` with vLLM's labels: the model and the engine, of which there is one, and `more`.
fn with(mut metric: Metric, of: &Metric, more: Option<LabelPair>) -> Metric {
    let mut labels = vec![label("engine", "0")];
    labels.extend(more);
    labels.push(label("model_name", label_of(of, "model")));
    metric.set_label(labels);
    metric
}

/// The share of blocks that are in use, by model.
fn kv_cache_use(blocks: &MetricFamily) -> Option<MetricFamily> {
    let of = |model: &str, state: Option<&str>| -> f64 {
        let those = blocks.get_metric().iter().filter(|metric| label_of(metric, "model") == model);
        those
            .filter(|m| state.is_none_or(|state| label_of(m, "state") == state))
            .map(|m| m.get_gauge().get_value())
            .sum()
    };
    let live = blocks.get_metric().iter().filter(|metric| has(metric, ("state", "live")));
    let shares = live.map(|metric| {
        let model = label_of(metric, "model");
        let mut share = Gauge::default();
        share.set_value(of(model, Some("live")) / of(model, None).max(1.0));
        with(Metric::from_gauge(share), metric, None)
    });
    some_of("vllm:kv_cache_usage_perc", "KV blocks in use, from 0 to 1.", MetricType::GAUGE, shares)
}

/// Requests whose answers are complete, by why they ended; over all ways to ask.
fn finished(requests: &MetricFamily) -> Option<MetricFamily> {
    let mut sums = std::collections::BTreeMap::<_, (f64, &Metric)>::new();
    for metric in requests.get_metric() {
        let reason = match label_of(metric, "status") {
            "stop" => "stop",
            "length" => "length",
            "cancelled" => "abort",
            _ => continue,
        };
        sums.entry((label_of(metric, "model"), reason)).or_insert((0.0, metric)).0 +=
            metric.get_counter().get_value();
    }
    let metrics = sums.into_iter().map(|((_, reason), (sum, metric))| {
        let mut counted = metric.clone();
        counted.set_counter({
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(sum);
            counter
        });
        with(counted, metric, Some(label("finished_reason", reason)))
    });
    some_of("vllm:request_success_total", "Requests finished, by reason.", MetricType::COUNTER, metrics)
}

/// Which adapters are in use, in labels; the number is the time, by which the newest of several such series is known.
fn adapters(sequences: Option<&MetricFamily>) -> Option<MetricFamily> {
    let names = |state: &str| {
        let metrics = sequences.iter().flat_map(|family| family.get_metric());
        let used =
            metrics.filter(|metric| has(metric, ("state", state)) && metric.get_gauge().get_value() > 0.0);
        let names: BTreeSet<&str> = used.map(|metric| label_of(metric, "adapter")).collect();
        names.into_iter().collect::<Vec<_>>().join(",")
    };
    let mut time = Gauge::default();
    time.set_value(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    let mut metric = Metric::from_gauge(time);
    metric.set_label(vec![
        label("max_lora", &MAX_ADAPTERS.to_string()),
        label("running_lora_adapters", &names("running")),
        label("waiting_lora_adapters", &names("waiting")),
    ]);
    let help = "Adapters of running and of waiting requests.";
    some_of("vllm:lora_requests_info", help, MetricType::GAUGE, std::iter::once(metric))
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use crate::batcher::Occupancy;

    #[test]
    fn what_vllm_names_is_there_under_its_names() {
        let metrics = Metrics::new().with_vllm_names(true);
        for (api, status, count) in
            [("grpc", "stop", 2), ("chat", "stop", 1), ("chat", "cancelled", 4), ("chat", "internal", 9)]
        {
            metrics.requests.with_label_values(&["m", api, status]).inc_by(count);
        }
        metrics.time_to_first_token.with_label_values(&["m"]).observe(0.2);
        let mut driver = metrics.driver(1, 1, "m");
        let occupancy = Occupancy {
            running: 3,
            waiting: 2,
            free_blocks: 5,
            live_blocks: 4,
            cached_blocks: 7,
            ..Occupancy::default()
        };
        driver.occupancy(occupancy, None);
        let text = metrics.render();
        for line in [
            r#"vllm:num_requests_running{engine="0",model_name="m"} 3"#,
            r#"vllm:num_requests_waiting{engine="0",model_name="m"} 2"#,
            r#"vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25"#,
            r#"vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 3"#,
            r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 4"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m",le="0.25"} 1"#,
            r#"vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains(r#"finished_reason="internal""#), "what failed is no success");
        assert!(!Metrics::new().render().contains("vllm:"), "only where they are wanted");
    }
}
