//! What is given of rows is what they want, and the best few are those of the whole row.

use foggara_kernels::cuda::Device;
use foggara_kernels::op::draw::Rule;
use foggara_kernels::op::kv_cache::KvType;
use foggara_models::Quantize;
use foggara_models::testing::GOLDEN_WITH_EXPERTS;

use super::super::tests::{Score, scores_on};
use super::*;
use crate::testing::{Kind, golden};

/// Sequences of a model that want this and that, each row beside what it gets where all want everything.
pub(in crate::decoder) fn wants_are_met(
    name: &str,
    shape: Shape,
    kind: Kind,
    chunk: usize,
    device: &(dyn Fn(usize) -> Option<Device> + Sync),
) {
    use Want::{Best, Drawn, Whole};
    let (model, _) = golden(name);
    let (drawn, cut) = (Drawn(Rule::new(0.9, 1.0, 0.0, 5)), Drawn(Rule::new(1.2, 0.8, 0.01, 6)));
    let vocab = model.spec().vocab as u32;
    let sequence = |i: u32| (0..9 + i).map(|j| (i * 31 + j * j * 17 + 3) % vocab).collect::<Vec<u32>>();
    for wants in [
        &[Best(1), Best(1), Best(1), Best(1)][..],
        &[Best(40), Best(1), Best(3), Best(64)],
        &[Whole, Best(1), drawn, Whole, Best(1)],
        &[Best(256), cut, drawn, Best(100)],
    ] {
        let sequences: Vec<Vec<u32>> = (0..wants.len() as u32).map(sequence).collect();
        let run = |wants| {
            let how = (shape, Quantize::None);
            scores_on(&model, &sequences, wants, how, (kind, KvType::F32), chunk, device)
        };
        for ((got, whole), want) in run(wants).into_iter().zip(run(&[])).zip(wants) {
            assert_eq!(got.len(), whole.len());
            for (row, (got, whole)) in got.into_iter().zip(whole).enumerate() {
                let Score::Whole(logits) = whole else { panic!("all were wanted") };
                let expected = match want {
                    Whole => Score::Whole(logits),
                    Best(count) => {
                        let best = best_of(&logits, *count as usize);
                        Score::Best(best.into_iter().map(|id| (id, logits[id as usize])).collect())
                    }
                    // Where parts of a row are on several ranks, none of them could draw.
                    Drawn(_) if shape.tp > 1 => Score::Whole(logits),
                    Drawn(rule) => {
                        let scratch = &mut draw::Scratch::default();
                        Score::Drawn(draw_any(&logits, &rule.at(row + 1), scratch) as u32)
                    }
                };
                assert!(got == expected, "{name} {shape}, chunks of {chunk}, row {row}: {want:?}");
            }
        }
    }
}

#[test]
fn every_row_is_given_what_it_wants() {
    let shape = |tp, dp, pp| Shape { tp, dp, pp, ep: 1 };
    for shape in
        [shape(1, 1, 1), shape(2, 1, 1), shape(3, 1, 1), shape(2, 1, 2), shape(2, 2, 1), shape(1, 2, 2)]
    {
        for chunk in [1, 5, 512] {
            wants_are_met("llama-odd-heads", shape, Kind::Shm, chunk, &|_| None);
        }
    }
    wants_are_met("gemma2", shape(2, 1, 1), Kind::Tcp, 7, &|_| None);
    wants_are_met(GOLDEN_WITH_EXPERTS[0], shape(1, 2, 1), Kind::Tcp, 7, &|_| None);
}

#[test]
fn a_message_has_so_many_words_and_no_more() {
    let scores: Vec<f32> = (0..21).map(|i| ((i * 5) % 7) as f32).collect();
    let wants = [Want::Whole, Want::Best(2), Want::Best(9)];
    let wanted = [0, 1, 2].map(|row| Wanted { number: row, row, next: 1, want: wants[row] });
    let (mut message, mut scratch) = (Vec::new(), draw::Scratch::default());
    tell(&scores, &wanted, &mut scratch, &mut message);
    assert_eq!(message.len(), wants.iter().map(|want| words(*want, 7)).sum::<usize>());
    assert_eq!(message[..7], scores[..7]);
    let bits: Vec<u32> = message[7..11].iter().map(|word| word.to_bits()).collect();
    // 0, 5, 3, 1, 6, 4, 2
    assert_eq!(bits, [4, 6f32.to_bits(), 1, 5f32.to_bits()]);
    message.clear();
    tell(&[], &wanted, &mut scratch, &mut message);
    assert!(message.is_empty(), "a rank without tokens");
    let drawn = Wanted { want: Want::Drawn(Rule::new(1.0, 0.0, 0.0, 1)), ..wanted[1] };
    tell(&scores[7..14], &[drawn], &mut scratch, &mut message);
    assert_eq!((message.len(), message[0].to_bits()), (words(drawn.want, 7), 4), "the likeliest");
}

#[test]
fn a_message_has_few_whole_rows_and_many_of_which_the_best_are_wanted() {
    use Want::{Best, Whole};
    let lens = |wants: Vec<Want>| {
        let wanted: Vec<Wanted> = wants
            .into_iter()
            .enumerate()
            .map(|(row, want)| Wanted { number: row, row, next: row, want })
            .collect();
        let tiles = tiles(&wanted);
        let rows: Vec<usize> = tiles.iter().flat_map(|tile| tile.iter().map(|wanted| wanted.row)).collect();
        assert!(rows.into_iter().eq(0..wanted.len()), "each once, in order");
        tiles.into_iter().map(<[Wanted]>::len).collect::<Vec<_>>()
    };
    assert_eq!(lens(vec![]), [0; 0]);
    assert_eq!(lens(vec![Best(1); 256]), [256]);
    assert_eq!(lens(vec![Best(1); 513]), [256, 256, 1]);
    assert_eq!(lens(vec![Whole; 70]), [32, 32, 6]);
    assert_eq!(lens([Best(9), Whole].repeat(40)), [65, 15]);
    assert_eq!(lens([vec![Whole; 32], vec![Best(1); 230]].concat()), [256, 6]);
}
