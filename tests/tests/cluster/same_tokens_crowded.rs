//! Identity where most things happen to a sequence at once: it is preempted, its prompt is shared by several choices, and part
//! of it lies in the cache; for every precision of the KV cache, on one rank and on two, with leases of plans and without.

use foggara_proto::wire::inference::generate_response::Event;
use foggara_tests::ask::Ask;
use foggara_tests::choice::Choice;
use foggara_tests::client::Client;
use foggara_tests::setup::Setup;
use foggara_tests::{machine, paths, wait};

use crate::probe::{self, Bits};

/// Precision of the KV cache, ranks, and how long the leader may go on by itself (milliseconds).
const ROWS: [(&str, u32, u32); 5] =
    [("f16", 1, 2000), ("f16", 2, 2000), ("f16", 2, 0), ("q8_0", 1, 0), ("q8_0", 2, 2000)];
/// The whole KV cache: two sequences at their full length and some.
const KV_TOKENS: usize = 512;
const TOKENS: u32 = 150;
/// Answers to one prompt.
const CHOICES: u32 = 4;
const SEED: u64 = 70;

/// Requests of which no two begin alike.
fn asks() -> Vec<Ask> {
    let mut choice = Choice::seeded(5);
    let mut ask = |i: u64| {
        let prompt = choice.tiny_prompt(20 + 9 * i as usize);
        Ask::tokens("tiny", &prompt).exactly(TOKENS).logprobs(2).sampled(0.8, 0.95, i)
    };
    (0..6).map(&mut ask).collect()
}

/// What choice `k` of the one with several is asked for.
fn choice(k: u64) -> Ask {
    let prompt = Choice::seeded(6).tiny_prompt(53);
    Ask::tokens("tiny", &prompt).exactly(TOKENS).logprobs(2).sampled(0.8, 0.95, SEED + k)
}

/// All choices of one request, each as the bits of a whole answer.
async fn choices(client: &Client) -> Vec<Bits> {
    let request = choice(0).sampling(|sampling| sampling.n = Some(CHOICES)).build();
    let mut stream = client.stream(request).await.unwrap();
    let mut all = vec![Bits::default(); CHOICES as usize];
    let mut ended = 0;
    while let Some(message) = stream.message().await.unwrap() {
        match message.event.unwrap() {
            Event::Started(_) => {}
            Event::Delta(delta) => {
                let (tokens, logprobs) = &mut all[delta.index as usize];
                tokens.extend(delta.token_ids);
                logprobs.extend(delta.logprobs.iter().map(foggara_tests::answer::bits));
            }
            Event::Finished(_) => ended += 1,
        }
    }
    assert_eq!(ended, CHOICES);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn preempted_shared_and_cached_as_alone() {
    let _machine = machine::shared().await;
    let mut before: Option<((&str, u32), Vec<Bits>)> = None;
    for row in ROWS {
        let (kv_dtype, tp, lease_ms) = row;
        let setup = Setup::new("crowded").model("tiny", &paths::golden("llama")).coordinators(1);
        let setup = setup.workers(tp as usize).option("tp", tp).option("kv-dtype", kv_dtype);
        let setup = setup.option("lease-ms", lease_ms).option("kv-tokens", KV_TOKENS);
        let cluster = setup.start().await;
        let client = cluster.client(0);
        let asks = asks();
        let alone = probe::one_by_one(&client, &asks).await;
        if let Some((like, told)) = before.replace(((kv_dtype, tp), alone.clone())) {
            assert!(
                like != (kv_dtype, tp) || told == alone,
                "{row:?}: as on the cluster before, but for leases"
            );
        }
        let choices_alone =
            probe::one_by_one(&client, &(0..u64::from(CHOICES)).map(choice).collect::<Vec<_>>()).await;
        let sum = async |name: &str| cluster.sum(name, &[("model", "tiny")]).await;
        assert_eq!(sum("foggara_preemptions_total").await, 0.0, "{row:?}: one at a time fits");

        let found = sum("foggara_prefix_cache_hit_tokens_total").await;
        for round in 0..2 {
            let crowd = futures::future::join(probe::together(&client, &asks), choices(&client));
            let (beside, chosen) = wait::for_end("the crowd", crowd).await;
            for (number, (alone, beside)) in alone.iter().zip(&beside).enumerate() {
                assert!(*alone == beside.bits(), "{row:?}, round {round}: sequence {number}");
            }
            assert!(choices_alone == chosen, "{row:?}, round {round}: choices");
        }
        let preempted = sum("foggara_preemptions_total").await;
        let found = sum("foggara_prefix_cache_hit_tokens_total").await - found;
        eprintln!("{row:?}: {preempted} preemptions, {found} tokens found in the cache");
        assert!(preempted > 0.0, "{row:?}: {} sequences do not fit {KV_TOKENS}", asks.len() as u32 + CHOICES);
        assert!(found > 0.0, "{row:?}: choices share their prompt");
        cluster.wait_idle("tiny").await;
    }
}
