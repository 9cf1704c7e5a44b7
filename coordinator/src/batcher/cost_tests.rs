//! The model against engines whose costs are known.

use super::*;
use crate::batcher::tests::Lcg;

/// Microseconds: fixed, and of each row, sampled row and attended position.
type Engine = [f64; COSTS];

/// Engines from a few cores to an accelerator.
const ENGINES: [Engine; 4] = [
    [5_000.0, 2_400.0, 150.0, 1.0],
    [20_000.0, 500.0, 200.0, 0.1],
    [8_000.0, 25.0, 10.0, 0.004],
    [150.0, 900.0, 0.0, 0.0],
];

#[allow(clippy::cast_precision_loss)]
fn takes(engine: &Engine, work: Work) -> f64 {
    engine[0]
        + engine[1] * work.rows as f64
        + engine[2] * work.sampled as f64
        + engine[3] * work.attended as f64
}

/// A step of a group that is used: decodes, now and then beside a chunk.
fn some_work(random: &mut Lcg) -> Work {
    let mut draw = |limit| usize::try_from(random.below(limit)).expect("small");
    let mut work = Work::default();
    (0..=draw(12)).for_each(|_| work.add_decode(1 + draw(1_500)));
    if draw(3) == 0 {
        let (start, rows) = (draw(2_000), 1 + draw(200));
        work = work.with_chunk(start, rows, draw(4) == 0);
    }
    work
}

/// Lets a model learn from `steps`, each of which takes `time(its work, a number below 1)`.
fn learn(model: &mut CostModel, random: &mut Lcg, steps: usize, time: impl Fn(Work, f64) -> f64) {
    for _ in 0..steps {
        let work = some_work(random);
        #[allow(clippy::cast_precision_loss)]
        let part = random.below(1_000) as f64 / 1_000.0;
        model.observe(work, time(work, part));
    }
}

/// The largest relative error over a hundred steps, and over a long chunk by itself.
fn error(model: &CostModel, engine: &Engine, random: &mut Lcg) -> f64 {
    let works = (0..100).map(|_| some_work(random)).chain([Work::default().with_chunk(0, 256, false)]);
    works.map(|work| (model.predict(work) / takes(engine, work) - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn the_costs_of_an_engine_are_found() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(1));
        learn(&mut model, &mut random, 200, |work, _| takes(&engine, work));
        let error = error(&model, &engine, &mut random);
        assert!(error < 0.03, "{engine:?}: off by {error:.4}: {model:?}");
    }
}

#[test]
fn a_few_steps_are_enough_to_begin_with() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(2));
        learn(&mut model, &mut random, 30, |work, _| takes(&engine, work));
        let error = error(&model, &engine, &mut random);
        assert!(error < 0.35, "{engine:?}: off by {error:.4}");
    }
}

#[test]
fn noise_is_averaged_out() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(3));
        learn(&mut model, &mut random, 1_000, |work, part| takes(&engine, work) * (0.9 + 0.2 * part));
        let error = error(&model, &engine, &mut random);
        assert!(error < 0.08, "{engine:?}: off by {error:.4}");
    }
}

#[test]
fn outliers_count_for_little() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(4));
        // One step in twenty takes thirty times as long.
        let time = |work, part| takes(&engine, work) * if part < 0.05 { 30.0 } else { 0.95 + 0.1 * part };
        learn(&mut model, &mut random, 1_000, time);
        let error = error(&model, &engine, &mut random);
        assert!(error < 0.15, "{engine:?}: off by {error:.4}");
    }
}

#[test]
fn a_change_is_followed() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(5));
        learn(&mut model, &mut random, 500, |work, part| takes(&engine, work) * (0.97 + 0.06 * part));
        let slower = engine.map(|cost| cost * 2.5);
        // Few of these steps are decodes alone, and the common factor waits for them.
        learn(&mut model, &mut random, 600, |work, part| takes(&slower, work) * (0.97 + 0.06 * part));
        let error = error(&model, &slower, &mut random);
        assert!(error < 0.08, "{engine:?}: off by {error:.4}");
    }
}

#[test]
fn what_is_not_seen_for_long_is_not_forgotten() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(6));
        learn(&mut model, &mut random, 300, |work, _| takes(&engine, work));
        for context in 0..20_000 {
            let mut work = Work::default();
            work.add_decode(100 + context % 50);
            model.observe(work, takes(&engine, work));
        }
        let error = error(&model, &engine, &mut random);
        assert!(error < 0.1, "{engine:?}: off by {error:.4}");
    }
}

#[test]
fn what_rises_for_prompts_is_not_blamed_on_decodes() {
    for engine in ENGINES {
        let (mut model, mut random) = (CostModel::default(), Lcg(8));
        learn(&mut model, &mut random, 300, |work, _| takes(&engine, work));
        let mut decodes = Work::default();
        (0..8).for_each(|_| decodes.add_decode(150));
        let mut start = 0;
        // A long prompt is read by chunks that are thought to take as long as the decodes, among them decodes alone; its
        // positions cost more and more.
        for step in 0..1_500 {
            let most = 1.8 * model.predict(decodes);
            let fits = |rows: &usize| model.predict(decodes.with_chunk(start, *rows, false)) <= most;
            let rows = (1..200).take_while(fits).last().unwrap_or(1);
            let work = if step % 32 == 31 { decodes } else { decodes.with_chunk(start, rows, false) };
            let [fixed, row, sampled, attended] = engine;
            #[allow(clippy::cast_precision_loss)]
            let attended = attended * (1.0 + (start as f64 / 4_000.0).min(2.0));
            model.observe(
                work,
                takes(&[fixed, row, sampled, attended], work) * (0.95 + 0.1 * (step % 7) as f64 / 6.0),
            );
            start += work.rows - decodes.rows;
            if start > 8_000 {
                break;
            }
            let off = model.predict(decodes) / takes(&engine, decodes);
            assert!((0.8..1.25).contains(&off), "{engine:?}: {off:.2} of what it is after {start} positions");
        }
        assert!(start > 1_000, "{engine:?}: {start}");
    }
}

#[test]
#[allow(clippy::cast_precision_loss)]
fn the_end_of_a_long_prompt_is_not_taken_for_its_beginning() {
    // An attended position costs the more the fewer rows share it.
    let takes = |work: Work| {
        let each = if work.rows - work.decodes > 4 { 0.9 } else { 1.9 };
        15_000.0 + 500.0 * work.rows as f64 + 300.0 * work.sampled as f64 + each * work.attended as f64
    };
    let decodes = |random: &mut Lcg| {
        let mut work = Work::default();
        (0..8).for_each(|_| work.add_decode(50 + random.below(200) as usize));
        work
    };
    let (mut model, mut random) = (CostModel::default(), Lcg(7));
    let mut observe = |work| model.observe(work, takes(work));
    for position in (0..4_000).step_by(10) {
        observe(decodes(&mut random).with_chunk(position, 5 + position % 9, false));
        observe(decodes(&mut random));
    }
    let mut work = Work::default();
    for position in 6_000..6_300 {
        work = decodes(&mut random).with_chunk(
            position,
            if position % 32 == 0 { 0 } else { 1 + position % 2 },
            false,
        );
        observe(work);
    }
    let off = |work: Work| (model.predict(work) / takes(work) - 1.0).abs();
    assert!(off(work) < 0.03, "{}: {model:?}", off(work));
    assert!(off(decodes(&mut random)) < 0.03, "{model:?}");
}

#[test]
fn the_same_reports_give_the_same_model() {
    let fitted = || {
        let (mut model, mut random) = (CostModel::default(), Lcg(7));
        learn(&mut model, &mut random, 300, |work, part| takes(&ENGINES[0], work) * (0.5 + part));
        model.costs.map(f64::to_bits)
    };
    assert_eq!(fitted(), fitted());
}

#[test]
fn work_that_did_not_happen_is_taken_off() {
    let mut work = Work::default();
    (0..4).for_each(|_| work.add_decode(100));
    let work = work.with_chunk(0, 6, true);
    assert_eq!((work.rows, work.sampled, work.attended, work.decodes), (10, 5, 421, 4));
    let done = work.done(7);
    assert_eq!((done.rows, done.sampled, done.attended, done.decodes), (7, 2, 295, 1));
    assert_eq!(work.done(10), work);
    assert_eq!(work.done(2).rows, 6, "only decodes can be missing");
}

proptest::proptest! {
    /// Whatever is reported, costs are finite and not negative, and a step takes some time.
    #[test]
    fn costs_are_never_negative(
        reports in proptest::collection::vec((0usize..300, 0usize..5_000, 0usize..20, 0u32..u32::MAX), 1..200),
    ) {
        let mut model = CostModel::default();
        for (rows, start, decodes, micros) in reports {
            let mut work = Work::default().with_chunk(start, rows, rows % 2 == 0);
            (0..decodes).for_each(|i| work.add_decode(start + i));
            model.observe(work, f64::from(micros));
            proptest::prop_assert!(model.costs.iter().all(|cost| cost.is_finite() && *cost >= 0.0), "{model:?}");
            let predicted = model.predict(work);
            proptest::prop_assert!(predicted.is_finite() && predicted >= 1.0);
        }
    }
}
