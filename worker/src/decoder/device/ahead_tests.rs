//! Steps that are begun before the one before is finished give what they give one after the other.

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{Collective, Solo};
use foggara_kernels::cuda::testing::devices;
use foggara_kernels::op::draw::Rule;
use foggara_models::{Cut, Quantize};

use super::*;
use crate::decoder::{Scores, Want};
use crate::testing::golden;
use crate::weights::OnDevice;

const BLOCK_SIZE: usize = 4;
/// Blocks of a sequence.
const EACH: usize = 6;

/// A decoder with some sequences, each with blocks of its own.
struct Alone {
    decoder: DeviceDecoder,
    comms: Comms,
    tables: BlockTables,
    /// What each has in the cache.
    cached: Vec<u32>,
}

impl Alone {
    fn new(name: &str, device: &Device, count: usize) -> Self {
        let (model, _) = golden(name);
        let plan = model.slices(&Cut::even(Shape::default()), Quantize::None).expect("can be cut");
        let (store, pool) = (OnDevice(device.clone()), ThreadPool::with_spin(1, false));
        let weights = RankWeights::load_to(&store, &model, &plan, 0, Quantize::None, &pool, &mut |_, _| true);
        let cache = CacheConfig { blocks: count * EACH, block_size: BLOCK_SIZE, ty: KvType::F32 };
        let weights = weights.expect("loads");
        let decoder = DeviceDecoder::new(device, model.spec(), &plan, 0, weights, cache, 4 * count);
        let comms =
            Comms::join(Shape::default(), Box::<Solo>::default(), |_| Err::<Box<dyn Collective>, _>(()));
        let mut tables = BlockTables::new(1, count * EACH);
        let blocks = |i: usize| (i * EACH..(i + 1) * EACH).map(|block| block as u32).collect();
        let grants = (0..count).map(|i| (i as u32, blocks(i))).collect();
        tables.apply(&StepInput { grants, ..StepInput::default() }).expect("blocks exist");
        let (decoder, comms) = (decoder.expect("fits on the device"), comms.expect("alone"));
        Self { decoder, comms, tables, cached: vec![0; count] }
    }

    /// A row for each of these sequences, which want this, with this token.
    fn rows(&mut self, of: &[usize], wants: &[Want], tokens: &[u32]) -> StepInput {
        let mut input = StepInput { tokens: tokens.to_vec(), ..StepInput::default() };
        for &slot in of {
            let start = self.cached[slot];
            self.cached[slot] += 1;
            input.segments.push(Segment { slot: slot as u32, start, len: 1, logits_from: 0 });
            input.wants.push(wants[slot]);
        }
        input
    }

    fn forward(&mut self, input: &StepInput) -> Vec<Given> {
        let mut given = Vec::new();
        let mut keep = |_: usize, scores: Scores<'_>| given.push(Given::of(scores));
        self.decoder.forward(input, &self.tables, &mut self.comms, &mut keep).expect("the device works");
        given
    }

    fn begin(&mut self, input: &StepInput, fed: &[Option<usize>]) {
        assert!(self.decoder.can_begin(input, &self.comms));
        self.decoder.begin(input, &self.tables, fed, &mut self.comms).expect("the device works");
    }

    fn finish(&mut self) -> Vec<Given> {
        let mut given = Vec::new();
        let mut keep = |row: usize, scores: Scores<'_>| {
            assert_eq!(row, given.len(), "in order");
            given.push(Given::of(scores));
        };
        self.decoder.finish(&mut keep).expect("the device works");
        given
    }
}

/// A token, and the bits of its logit where that is told, too.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Given {
    token: u32,
    logit: Option<u32>,
}

impl Given {
    fn of(scores: Scores<'_>) -> Self {
        match scores {
            Scores::Best(best) => Self { token: best[0].0, logit: Some(best[0].1.to_bits()) },
            Scores::Drawn(token) => Self { token, logit: None },
            Scores::Whole(_) => panic!("more than was wanted"),
        }
    }
}

/// Which sequences have a row, step by step: some leave, and some come back, with the token that they had then.
const STEPS: [&[usize]; 9] =
    [&[0, 1, 2], &[0, 1, 2], &[0, 2], &[0, 2], &[0, 1, 2], &[1], &[1], &[1], &[0, 1, 2]];

/// What each sequence was given, by sequence.
fn answers(name: &str, device: &Device, wants: &[Want], ahead: bool) -> Vec<Vec<Given>> {
    let mut alone = Alone::new(name, device, 3);
    // Of each the last token that is known.
    let mut last = vec![5, 17, 40];
    let mut answers = vec![Vec::new(); 3];
    let mut before: Option<&[usize]> = None;
    let mut take = |of: &[usize], given: Vec<Given>, last: &mut [u32]| {
        assert_eq!(of.len(), given.len());
        for (slot, given) in of.iter().zip(given) {
            last[*slot] = given.token;
            answers[*slot].push(given);
        }
    };
    for of in STEPS {
        let row = |slot: &usize| before.and_then(|before| before.iter().position(|other| other == slot));
        let fed: Vec<Option<usize>> = of.iter().map(|slot| row(slot).filter(|_| ahead)).collect();
        let tokens: Vec<u32> =
            of.iter().zip(&fed).map(|(slot, fed)| if fed.is_some() { 0 } else { last[*slot] }).collect();
        let input = alone.rows(of, wants, &tokens);
        if !ahead {
            take(of, alone.forward(&input), &mut last);
            continue;
        }
        alone.begin(&input, &fed);
        if let Some(before) = before.replace(of) {
            take(before, alone.finish(), &mut last);
        }
    }
    if let Some(before) = before {
        take(before, alone.finish(), &mut last);
        assert!(alone.decoder.is_done().expect("the device works"), "nothing was begun");
    }
    answers
}

#[test]
fn tokens_feed_the_next_step_on_the_device() {
    let drawn = |seed| Want::Drawn(Rule::new(1.3, 0.95, 0.0, seed));
    let mixed = [Want::Best(1), drawn(3), Want::Best(1)];
    for device in devices() {
        for (name, wants) in [
            ("mixtral", mixed),
            ("llama", [Want::Best(1); 3]),
            ("deepseek-v3", [drawn(1), drawn(2), drawn(9)]),
        ] {
            let expected = answers(name, &device, &wants, false);
            let lengths: Vec<usize> = expected.iter().map(Vec::len).collect();
            assert_eq!(lengths, [6, 7, 6], "{name}");
            assert_eq!(answers(name, &device, &wants, true), expected, "{name}");
        }
    }
}

#[test]
fn only_steps_whose_tokens_the_device_finds_are_begun() {
    let device = devices().remove(0);
    let mut alone = Alone::new("llama", &device, 2);
    let drawn = Want::Drawn(Rule::new(1.0, 1.0, 0.0, 1));
    for (wants, can) in [
        ([Want::Best(1), drawn], true),
        ([Want::Best(1), Want::Best(2)], false),
        ([Want::Whole, Want::Best(1)], false),
    ] {
        let input = alone.rows(&[0, 1], &wants, &[1, 2]);
        assert_eq!(alone.decoder.can_begin(&input, &alone.comms), can, "{wants:?}");
    }
    let input = alone.rows(&[0, 1], &[drawn; 2], &[1, 2]);
    let can = |input: &StepInput| alone.decoder.can_begin(input, &alone.comms);
    let mut chunk = input.clone();
    (chunk.segments[1].len, chunk.tokens) = (2, vec![1, 2, 3]);
    let mut copies = input.clone();
    copies.copies.push(foggara_proto::step::BlockCopy { from: 0, to: 1 });
    assert!(can(&input) && !can(&chunk) && !can(&copies) && !can(&StepInput::default()));
}
