//! How long a step takes: a model of four costs, fitted to the group's own reports.
//!
//! A step costs a fixed time (launching it, reading the weights once, the collectives' latencies), so much for each row,
//! for each row that is sampled, and for each position that a row attends to. Which of these weighs how much differs by
//! orders of magnitude between engines, so nothing is assumed but rough proportions: the first report sets the scale, the
//! next ones the proportions, and every later one keeps them up to date.
//!
//! The fit is recursive least squares in information form, on relative errors. What is new replaces what was known in its
//! own direction only: a night of decodes does not make the model forget what prefill costs. With prefill, all that is known fades a
//! little: what an attended position costs differs with how many there are and how many rows share it, and what was learned of the
//! beginning of a long prompt would be held against its end. A report far off the
//! prediction (the machine paused) counts for no more than one moderately off. When all predictions come to be wrong by the
//! same factor (the machine is shared, or throttled), all costs change by it; not when only those of steps with prefill are, since
//! what an attended position costs differs with how many there are. Costs are never negative.

/// The model's costs: fixed, row, sampled row, attended position.
const COSTS: usize = 4;
type Vector = [f64; COSTS];

/// Units of the costs, so that their numbers are of one magnitude.
const UNITS: Vector = [1.0, 64.0, 16.0, 65_536.0];
/// Microseconds of a unit before anything is known. Only their proportions matter.
const PRIOR: Vector = [4_000.0, 64_000.0, 4_800.0, 32_768.0];
/// The prior counts as much as this part of one report.
const PRIOR_WEIGHT: f64 = 1e-4;
/// How much of what was known in its direction a report replaces.
const FORGETTING: f64 = 0.04;
/// How much of all that was known a report with prefill takes away, and how much of that is replaced by the costs as they are.
const FADING: f64 = 0.02;
const KEPT: f64 = 0.1;
/// Errors beyond so many usual ones count no more than that many.
const OUTLIER: f64 = 3.0;
/// The usual relative error: before anything is known, and at the least.
const FIRST_SPREAD: f64 = 0.25;
const LEAST_SPREAD: f64 = 0.01;
/// How fast the usual error follows errors.
const SPREAD_RATE: f64 = 0.05;
/// How fast the common error follows errors, how much one of them may say, and how large it must be for all costs to be
/// changed by it.
const BIAS_RATE: f64 = 0.1;
const MOST_BIAS: f64 = 0.3;
const PACE_CHANGED: f64 = 0.1;
/// A report of decodes counts as one for each with prefill since the last, up to so many: what decodes take is known however long
/// prompts are read beside them.
const MOST_TIMES: i32 = 32;
/// Before so many reports errors come from wrong proportions.
const FIRST_OBSERVATIONS: u64 = 50;
/// Rounds of the solver for each report; it goes on from where it was.
const SWEEPS: usize = 40;

/// What a step has to do, as far as its time is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Work {
    /// Tokens that go through the model.
    pub(super) rows: usize,
    /// Of them, rows whose successor is sampled.
    pub(super) sampled: usize,
    /// Positions attended to, summed over rows.
    pub(super) attended: usize,
    /// Of the rows, those of sequences that decode.
    pub(super) decodes: usize,
}

impl Work {
    /// One more token of a sequence that has `context` positions with it.
    pub(super) fn add_decode(&mut self, context: usize) {
        self.rows += 1;
        self.sampled += 1;
        self.decodes += 1;
        self.attended += context;
    }

    /// With `rows` more of a prompt, after `start` positions; `last` if they complete it.
    #[must_use]
    pub(super) fn with_chunk(self, start: usize, rows: usize, last: bool) -> Self {
        Self {
            rows: self.rows + rows,
            sampled: self.sampled + usize::from(last && rows > 0),
            attended: self.attended + rows * start + rows * (rows + 1) / 2,
            decodes: self.decodes,
        }
    }

    /// What was really done when only `rows` of the rows ran: those that did not were decodes of sequences that had ended.
    #[must_use]
    pub(super) fn done(self, rows: usize) -> Self {
        let missing = self.rows.saturating_sub(rows).min(self.decodes);
        let share = self.attended / self.rows.max(1);
        Self {
            rows: self.rows - missing,
            sampled: self.sampled - missing,
            attended: self.attended - share * missing,
            decodes: self.decodes - missing,
        }
    }

    /// With so many tokens drafted behind those of sequences that decode.
    #[must_use]
    pub(super) fn with_drafts(mut self, drafted: usize) -> Self {
        let context = self.attended / self.rows.max(1);
        (0..drafted).for_each(|_| self.add_decode(context));
        self
    }

    #[allow(clippy::cast_precision_loss)]
    fn features(self) -> Vector {
        let [_, rows, sampled, attended] = UNITS;
        [1.0, self.rows as f64 / rows, self.sampled as f64 / sampled, self.attended as f64 / attended]
    }
}

/// The fitted costs of one group's steps.
#[derive(Debug, Clone)]
pub(super) struct CostModel {
    /// Microseconds of a unit.
    costs: Vector,
    /// Of what magnitude they are: the prior, at the scale of the first report.
    magnitudes: Vector,
    /// Sum of the outer products of what was observed, weighted.
    information: [Vector; COSTS],
    /// Sum of what was observed times how long it took, weighted.
    moments: Vector,
    /// The usual relative error.
    spread: f64,
    /// The mean logarithm of how far predictions are off: all, and those of decodes without prefill.
    bias: f64,
    decode_bias: f64,
    /// Reports with prefill since the last one without.
    with_prefill: i32,
    observed: u64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self::starting_from(PRIOR)
    }
}

impl CostModel {
    fn starting_from(costs: Vector) -> Self {
        let mut information = [[0.0; COSTS]; COSTS];
        let mut moments = [0.0; COSTS];
        for (i, cost) in costs.into_iter().enumerate() {
            information[i][i] = PRIOR_WEIGHT / (cost * cost);
            moments[i] = PRIOR_WEIGHT / cost;
        }
        Self {
            costs,
            magnitudes: costs,
            information,
            moments,
            spread: FIRST_SPREAD,
            bias: 0.0,
            decode_bias: 0.0,
            with_prefill: 0,
            observed: 0,
        }
    }

    /// Microseconds that `work` is expected to take.
    pub(super) fn predict(&self, work: Work) -> f64 {
        dot(&self.costs, &work.features()).max(1.0)
    }

    /// Takes in that `work` took `micros`.
    pub(super) fn observe(&mut self, work: Work, micros: f64) {
        if work.rows == 0 || micros <= 0.0 {
            return;
        }
        if self.observed == 0 {
            let scale = micros / self.predict(work);
            *self = Self::starting_from(PRIOR.map(|cost| cost * scale));
        }
        self.observed += 1;
        let decodes = work.rows == work.decodes;
        if self.observed > FIRST_OBSERVATIONS {
            self.keep_pace(micros / self.predict(work), decodes);
        }
        // One in between stands for as many as it is in between.
        let times = if decodes { std::mem::take(&mut self.with_prefill).clamp(1, MOST_TIMES) } else { 1 };
        self.with_prefill += i32::from(!decodes);
        let predicted = self.predict(work);
        let seen = work.features().map(|feature| feature / predicted);
        let took = micros / predicted;
        let error = (took - 1.0).abs();
        let most = OUTLIER * self.spread;
        let weight = if error > most { most / error } else { 1.0 };
        self.spread += SPREAD_RATE * (error.min(most) - self.spread);
        self.spread = self.spread.max(LEAST_SPREAD);
        if !decodes && self.observed > FIRST_OBSERVATIONS {
            self.fade(FADING * weight);
        }
        self.forget(&seen, 1.0 - (1.0 - FORGETTING * weight).powi(times));
        let weight = weight * f64::from(times);
        for i in 0..COSTS {
            for j in 0..COSTS {
                self.information[i][j] += weight * seen[i] * seen[j];
            }
            self.moments[i] += weight * seen[i] * took;
        }
        self.solve();
    }

    /// Changes all costs by one factor if predictions have been off by one, those of decodes among them.
    fn keep_pace(&mut self, took: f64, decodes: bool) {
        let error = took.ln().clamp(-MOST_BIAS, MOST_BIAS);
        self.bias += BIAS_RATE * (error - self.bias);
        if decodes {
            self.decode_bias += BIAS_RATE * (error - self.decode_bias);
        }
        let common = self.decode_bias * self.bias.signum();
        if self.bias.abs() < PACE_CHANGED || common < PACE_CHANGED / 2.0 {
            // What most steps say is not an outlier.
            self.spread = self.spread.max(self.bias.abs());
            return;
        }
        let factor = self.bias.exp();
        (self.bias, self.decode_bias) = (0.0, 0.0);
        for i in 0..COSTS {
            self.costs[i] *= factor;
            self.moments[i] /= factor;
            self.information[i].iter_mut().for_each(|element| *element /= factor * factor);
        }
    }

    /// Takes away `part` of what is known in the direction of `seen`; what the rest says stays the same.
    fn forget(&mut self, seen: &Vector, part: f64) {
        let known: Vector = std::array::from_fn(|i| dot(&self.information[i], seen));
        let strength = dot(&known, seen);
        if strength <= f64::MIN_POSITIVE {
            return;
        }
        let moment = dot(&self.moments, seen);
        for i in 0..COSTS {
            for j in 0..COSTS {
                self.information[i][j] -= part * known[i] * known[j] / strength;
            }
            self.moments[i] -= part * known[i] * moment / strength;
        }
    }

    /// Takes away `part` of all that is known. Instead, the costs are known a little for what they are: what no report tells apart any
    /// more stays as it is.
    fn fade(&mut self, part: f64) {
        for i in 0..COSTS {
            self.information[i].iter_mut().for_each(|element| *element *= 1.0 - part);
            let strength = KEPT * part / self.costs[i].max(self.magnitudes[i]).powi(2);
            self.information[i][i] += strength;
            self.moments[i] = self.moments[i] * (1.0 - part) + strength * self.costs[i];
        }
    }

    /// Least squares without negative costs, one cost at a time.
    fn solve(&mut self) {
        for _ in 0..SWEEPS {
            for i in 0..COSTS {
                let row = &self.information[i];
                let others = dot(row, &self.costs) - row[i] * self.costs[i];
                if row[i] > f64::MIN_POSITIVE {
                    self.costs[i] = ((self.moments[i] - others) / row[i]).max(0.0);
                }
            }
        }
    }
}

fn dot(a: &Vector, b: &Vector) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
#[path = "cost_tests.rs"]
mod tests;
