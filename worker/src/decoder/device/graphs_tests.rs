//! Steps that are recorded for more rows than there are give the numbers of those that are recorded for just as many.

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, Solo};
use foggara_kernels::cuda::testing::host_twin;
use foggara_kernels::op::draw::Rule;
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::{Checkpoint, Cut, Quantize, Shape};

use super::super::DeviceDecoder;
use super::*;
use crate::decoder::tests::Score;
use crate::decoder::{BlockTables, CacheConfig, Comms, Forward, Scores, Segment, Want};
use crate::testing::golden;
use crate::weights::{OnDevice, RankWeights};

const BLOCK_SIZE: usize = 4;
/// Blocks of a sequence.
const EACH: usize = 6;

/// A decoder with `count` sequences, of which the blocks lie backwards and interleaved.
struct Sequences {
    decoder: DeviceDecoder,
    comms: Comms,
    tables: BlockTables,
    tokens: Vec<Vec<u32>>,
    vocab: u32,
    /// Whether steps are recorded for just as many rows as there are.
    exact: bool,
    /// What was given so far, by step and row.
    given: Vec<Vec<Score>>,
}

impl Sequences {
    fn new(model: &Checkpoint, count: usize, exact: bool) -> Self {
        let device = host_twin();
        let plan = model.slices(&Cut::even(Shape::default()), Quantize::None).expect("can be cut");
        let (store, pool) = (OnDevice(device.clone()), ThreadPool::with_spin(1, false));
        let weights = RankWeights::load_to(&store, model, &plan, 0, Quantize::None, &pool, &mut |_, _| true)
            .expect("loads");
        let blocks = count * EACH;
        let cache = CacheConfig { blocks, block_size: BLOCK_SIZE, ty: KvType::F32 };
        let decoder = DeviceDecoder::new(&device, model.spec(), &plan, 0, weights, cache, 4 * count);
        let comms =
            Comms::join(Shape::default(), Box::<Solo>::default(), |_| Err::<Box<dyn Collective>, _>(()));
        let mut tables = BlockTables::new(1, blocks);
        let of = |i: usize| (i as u32, (0..EACH).map(|b| ((EACH - 1 - b) * count + i) as u32).collect());
        let grants = (0..count).map(of).collect();
        tables.apply(&StepInput { grants, ..StepInput::default() }).expect("blocks exist");
        let mut sequences = Self {
            decoder: decoder.expect("fits on the device"),
            comms: comms.expect("alone"),
            tables,
            tokens: vec![Vec::new(); count],
            vocab: model.spec().vocab as u32,
            exact,
            given: Vec::new(),
        };
        // Prompts of different lengths.
        let prompts: Vec<(usize, usize)> = (0..count).map(|i| (i, 1 + i % 3)).collect();
        sequences.step(&prompts, &[]);
        sequences
    }

    /// So many more tokens of each of these sequences. Without wants, no logits are wanted.
    fn step(&mut self, rows: &[(usize, usize)], wants: &[Want]) {
        let mut input = StepInput { wants: wants.to_vec(), ..StepInput::default() };
        for (slot, len) in rows {
            let tokens = &mut self.tokens[*slot];
            let start = tokens.len();
            tokens.extend((start..start + len).map(|at| (slot * 31 + at * at * 7 + 5) as u32 % self.vocab));
            input.tokens.extend_from_slice(&tokens[start..]);
            let [len, start] = [*len, start].map(|n| n as u32);
            let logits_from = if wants.is_empty() { len } else { 0 };
            input.segments.push(Segment { slot: *slot as u32, start, len, logits_from });
        }
        let mut given = Vec::new();
        let mut keep = |row: usize, scores: Scores<'_>| {
            assert_eq!(row, given.len(), "in order");
            given.push(match scores {
                Scores::Whole(logits) => Score::Whole(logits.to_vec()),
                Scores::Best(best) => Score::Best(best.to_vec()),
                Scores::Drawn(token) => Score::Drawn(token),
            });
        };
        self.decoder.forward(&input, &self.tables, &mut self.comms, &mut keep).expect("it is alone");
        self.given.push(given);
    }

    /// A token more of each of the sequences from `first` on, `times` times: the second time it is recorded and replayed.
    fn decode(&mut self, first: usize, times: usize, wants: &[Want]) {
        let rows: Vec<(usize, usize)> = (first..first + wants.len()).map(|slot| (slot, 1)).collect();
        if self.exact {
            self.decoder.graphs.most_rows = wants.len();
        }
        (0..times).for_each(|_| self.step(&rows, wants));
    }

    /// The numbers of rows that were recorded.
    fn recorded(&self) -> Vec<usize> {
        let known = self.decoder.graphs.known.iter();
        let mut rows: Vec<_> =
            known.filter(|(_, known)| known.recording.is_some()).map(|(sizes, _)| sizes.rows).collect();
        rows.sort_unstable();
        rows
    }
}

#[test]
fn rows_that_do_not_exist_change_nothing() {
    for name in ["mixtral", "deepseek-v3"] {
        let (model, _) = golden(name);
        let drawn = Want::Drawn(Rule::new(1.0, 0.9, 0.0, 3));
        let wants = [Want::Best(1), Want::Whole, drawn].repeat(3);
        let run = |exact: bool| {
            let mut all = Sequences::new(&model, 7, exact);
            all.decode(0, 2, &wants[..5]);
            // Others have their places, and then everyone is asked for what is in the cache.
            all.decode(4, 1, &wants[..3]);
            all.decode(0, 1, &wants[..7]);
            let counts = all.decoder.take_expert_counts().expect("counted");
            (all.recorded(), all.given, counts)
        };
        let ((recorded, given, counts), (exact, expected, of_exact)) = (run(false), run(true));
        assert_eq!((&recorded[..], &exact[..]), (&[6][..], &[5][..]), "{name}");
        for (step, (given, expected)) in given.iter().zip(&expected).enumerate() {
            assert!(given == expected, "{name}, step {step}");
        }
        assert_eq!(counts, of_exact, "{name}");
    }
}

#[test]
fn many_sequences_are_one_recording() {
    let (model, _) = golden("llama");
    let wants = [vec![Want::Best(1); 15], vec![Want::Whole; 34], vec![Want::Best(1); 18]].concat();
    let run = |exact: bool| {
        let mut all = Sequences::new(&model, wants.len(), exact);
        all.decode(0, 2, &wants);
        (all.recorded(), all.given)
    };
    let ((recorded, given), (exact, expected)) = (run(false), run(true));
    assert_eq!((recorded, exact), (vec![96], vec![67]));
    assert!(given[2].len() == 67 && given == expected);
}

#[test]
fn some_numbers_of_rows_are_recorded() {
    let all: std::collections::BTreeSet<usize> = (1..=256).map(padded).collect();
    assert!(all.into_iter().eq([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]));
    for rows in 1..=256 {
        assert!((rows..=rows * 3 / 2).contains(&padded(rows)), "{rows}");
    }
}

#[test]
fn what_has_no_room_is_not_recorded() {
    let device = host_twin();
    let mut graphs = Graphs::new(&device, 5, 2000, 16).expect("there is memory");
    let run = |blocks, position| Run { blocks, position, rows: 1 };
    let mut rows = |runs: &[Run<'_>]| {
        let taken = graphs.take(runs, Sought::default()).expect("the device does not fail");
        taken.map(|recorded| {
            let sizes = (recorded.sizes.rows, recorded.sizes.context);
            graphs.put(recorded);
            sizes
        })
    };
    assert_eq!(rows(&[run(&[1], 9); 3]), Some((3, 1024)));
    assert_eq!(rows(&[run(&[1], 9); 5]), Some((5, 1024)), "6 are more than a step has");
    assert_eq!(rows(&[run(&[1], 9); 6]), None);
    assert_eq!(rows(&[run(&[1; 125], 1999)]), Some((1, 2000)));
    assert_eq!(rows(&[run(&[1; 126], 2000)]), None, "further than contexts are");
    assert_eq!(rows(&[run(&[1; 126], 1999); 5]), None, "more blocks than there is room for");
}

#[test]
fn what_was_not_run_for_longest_is_forgotten() {
    let device = host_twin();
    let mut graphs = Graphs::new(&device, 64, 4096, 16).expect("there is memory");
    let blocks = [1; 9];
    let mut run = |depth: usize| {
        let runs = [Run { blocks: &blocks, position: 100, rows: 1 }];
        let sought = Sought { best: depth, ..Sought::default() };
        let mut recorded = graphs.take(&runs, sought).expect("the device does not fail").expect("it fits");
        let known = recorded.recording.is_some();
        recorded.recording = Some(device.record(|| Ok::<_, DeviceError>(())).expect("nothing is recorded"));
        graphs.put(recorded);
        (known, graphs.known.len())
    };
    for depth in 0..KEPT {
        assert_eq!(run(depth), (false, depth + 1));
    }
    assert_eq!(run(0), (true, KEPT));
    assert_eq!(run(KEPT), (false, KEPT), "in place of 1");
    assert_eq!((run(0), run(2)), ((true, KEPT), (true, KEPT)));
    assert_eq!(run(1), (false, KEPT));
}
