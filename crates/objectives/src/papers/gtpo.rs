//! GTPO: Group-relative Trajectory-based Policy Optimization (arXiv 2508.03772).
//!
//! Base: GRPO without standard deviation, clip and reference KL, strictly on policy (one update per rollout).
//! New: tokens that a rewarded and a penalised completion share position by position, from the start or from the
//! end, are never pushed down; completions of high entropy are dropped; entropy lowers the advantage of the
//! others.
//!
//! ```text
//! a_i = r_i - mean
//! conflict at t: completions with a > 0 and with a < 0 have this token at t (also counted from the end)
//! f_i, b_i = length of the run of conflicts from the start, from the end
//! w_it = F on the first f_i tokens, times F on the last b_i;  F = W if a_i > 0, 0 if a_i < 0;   1 elsewhere
//! c_i  = max(1, max(f_i, b_i));   a_i = 0: w = 1, c = 0
//! H_i  = mean entropy of i;   A_i = a_i - gamma H_i if H_i <= h_max, else 0
//! loss = - sum_i mean_t( A_i w_it exp(log p - sg(log p)) ) / max(c_i, 1)
//! ```
//!
//! | choice | default | other |
//! |---|---|---|
//! | `conflict_weights.divide_by_conflicts` | false: the paper | true: the code; shrinks rows that share much |
//! | `group_reduction.reduction` | `sum` over a group's completions: the code | `mean`: the paper |
//! | `entropy_gate.gate` | `constant`: the code's 0.7 | `initial`: the paper; keeps all if training began above |
//!
//! With several prompts in a batch, groups are summed inside and averaged over. Positive rows that are shared as
//! a whole weigh W^2. The entropy penalty also acts where a_i = 0: a group of equal rewards is pushed down.
//! h_max is in nats and depends on the model: a fresh small model is above it everywhere and learns nothing.
//!
//! Entropy comes from `entropy`; the code floors probabilities inside the logarithm at 1e-6
//! ([`floored_entropy`]), which makes a difference below 1e-6 nats per unlikely token. Source:
//! winstonsmith1897/GTPO `gtpo_training.py`, `reward_math.py`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, ENTROPY, GROUP_IDS, Input, LOG_PROBS, OLD_ENTROPY, Signals};
use crate::block::{Block, BlockKind, Kind, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// Token ids of the completions.
pub const RESPONSE_IDS: Input = Input::new("response_ids", "[B, T]", "token ids of the sampled sequences");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "gtpo",
    title: "GTPO: Group-relative Trajectory-based Policy Optimization",
    arxiv: "2508.03772",
    summary: "Tokens that good and bad answers share are never pushed down; uncertain answers are dropped.",
    blocks: &[
        BlockKind::weight::<ConflictWeights>(),
        BlockKind::weight::<EntropyGate>(),
        BlockKind::weight::<GroupReduction>(),
        BlockKind::surrogate::<UnitRatio>(),
    ],
    recipe,
    vectors: Some(("gtpo.json", 8)),
    end_to_end: None,
};

/// Centred rewards, conflict weights, entropy gate, ratio of value 1.
pub fn recipe() -> Composition {
    Composition::new(&UnitRatio::default(), Aggregation::SeqMeanTokenMean)
        .advantage(&GroupNorm { spread: Spread::None, ..GroupNorm::default() })
        .weight(&ConflictWeights::default())
        .weight(&EntropyGate::default())
        .weight(&GroupReduction::default())
}

/// Protects tokens that completions of both signs share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConflictWeights {
    /// Weight W of shared tokens in rewarded completions, 0 or more.
    pub positive: f64,
    /// Divide a completion's loss by its number of conflicts.
    pub divide_by_conflicts: bool,
}

impl Default for ConflictWeights {
    fn default() -> Self {
        Self { positive: 2.0, divide_by_conflicts: false }
    }
}

/// What a group's completions share.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflicts {
    /// [B, T], 0 on padding.
    pub weights: Table,
    /// c_i, [B].
    pub counts: Vec<f64>,
}

impl ConflictWeights {
    /// Conflicts inside every group. `ids` [B, T] token ids, `mask` [B, T], `advantages` [B] before any shaping,
    /// `group_ids` [B]. Places are counted over valid tokens.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn conflicts(
        &self,
        ids: &Table,
        mask: &Table,
        advantages: &[f64],
        group_ids: &[u64],
    ) -> Result<Conflicts> {
        ids.same_shape("response_ids", mask)?;
        for (name, got) in [("advantages", advantages.len()), ("group_ids", group_ids.len())] {
            if got != mask.rows {
                return Err(Error::Shape { name, got: vec![got], expected: format!("[{}]", mask.rows) });
            }
        }
        let valid = |m: &f64| f64::from(u8::from(*m != 0.0));
        let mut weights = Table { values: mask.values.iter().map(valid).collect(), ..*mask };
        let mut counts = vec![0.0; mask.rows];
        // Columns of the valid tokens, and those tokens.
        let rows: Vec<Vec<(usize, i64)>> = (0..mask.rows)
            .map(|i| {
                let tokens = ids.row(i).iter().zip(mask.row(i)).enumerate();
                tokens.filter(|(_, (_, m))| **m != 0.0).map(|(t, (id, _))| (t, *id as i64)).collect()
            })
            .collect();
        for index in members(group_ids).values() {
            let tokens = |i: usize| rows[i].iter().map(|(_, id)| *id);
            let ahead = runs(index, advantages, |i| tokens(i).collect());
            let back = runs(index, advantages, |i| tokens(i).rev().collect());
            for ((&i, first), last) in
                index.iter().zip(ahead).zip(back).filter(|((i, _), _)| advantages[**i] != 0.0)
            {
                let factor = if advantages[i] > 0.0 { self.positive } else { 0.0 };
                let n = rows[i].len();
                for (place, (t, _)) in rows[i].iter().enumerate() {
                    let weight = &mut weights.values[i * mask.cols + t];
                    *weight *= if place < first { factor } else { 1.0 };
                    *weight *= if place >= n - last { factor } else { 1.0 };
                }
                counts[i] = first.max(last).max(1) as f64;
            }
        }
        Ok(Conflicts { weights, counts })
    }
}

/// Length of every member's leading run of tokens that members of both signs have at the same place.
fn runs(index: &[usize], advantages: &[f64], tokens: impl Fn(usize) -> Vec<i64>) -> Vec<usize> {
    let all: Vec<Vec<i64>> = index.iter().map(|&i| tokens(i)).collect();
    let mut seen: [BTreeSet<(usize, i64)>; 2] = Default::default();
    for (&i, tokens) in index.iter().zip(&all).filter(|(i, _)| advantages[**i] != 0.0) {
        seen[usize::from(advantages[i] > 0.0)].extend(tokens.iter().copied().enumerate());
    }
    let shared = |place: (usize, &i64)| seen.iter().all(|side| side.contains(&(place.0, *place.1)));
    all.iter().map(|tokens| tokens.iter().enumerate().take_while(|place| shared(*place)).count()).collect()
}

/// The advantage of a row: that of its first valid token.
fn of_row(advantages: &Table, mask: &Table, i: usize) -> f64 {
    let tokens = advantages.row(i).iter().zip(mask.row(i));
    tokens.filter(|(_, m)| **m != 0.0).map(|(a, _)| *a).next().unwrap_or(0.0)
}

impl Block for ConflictWeights {
    fn needs(&self) -> Vec<Input> {
        vec![RESPONSE_IDS, GROUP_IDS]
    }

    fn validate(&self) -> Result<()> {
        if self.positive >= 0.0 && self.positive.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "positive", got: self.positive, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("shared tokens: {} in good answers, 0 in bad ones", self.positive)
    }
}

impl Kind for ConflictWeights {
    const KIND: &'static str = "conflict_weights";
}

impl TokenRule for ConflictWeights {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let mask = batch.mask();
        let raw: Vec<f64> = (0..mask.rows).map(|i| of_row(&signals.advantages, mask, i)).collect();
        let found = self.conflicts(&batch.table(RESPONSE_IDS)?, mask, &raw, batch.ids(GROUP_IDS)?)?;
        for (at, (weight, w)) in signals.weights.values.iter_mut().zip(&found.weights.values).enumerate() {
            let by = if self.divide_by_conflicts { found.counts[at / mask.cols].max(1.0) } else { 1.0 };
            *weight *= w / by;
        }
        Ok(())
    }
}

/// Which completions the entropy gate drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateRule {
    /// Those above the threshold: the code.
    #[default]
    Constant,
    /// Those above the threshold, unless the model's first batch was above it: the paper.
    Initial,
}

/// Drops uncertain completions and lowers the advantage of the others by their entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyGate {
    /// Highest mean entropy of a completion, in nats; the paper has ln 2.
    pub threshold: f64,
    /// gamma, advantage per nat.
    pub scale: f64,
    /// Whom it drops.
    pub gate: GateRule,
}

impl Default for EntropyGate {
    fn default() -> Self {
        Self { threshold: 0.7, scale: 0.1, gate: GateRule::Constant }
    }
}

/// What the gate remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialEntropy {
    /// Token mean of the first batch, in nats.
    pub mean: Option<f64>,
}

impl EntropyGate {
    /// Whether a completion of mean entropy `entropy` stays; `initial` is the model's mean entropy before training.
    pub fn keeps(&self, entropy: f64, initial: Option<f64>) -> bool {
        let began_above = initial.is_some_and(|h| h > self.threshold);
        entropy <= self.threshold || (self.gate == GateRule::Initial && began_above)
    }

    /// a - gamma H, or 0 if it is dropped.
    pub fn shaped(&self, advantage: f64, entropy: f64, initial: Option<f64>) -> f64 {
        if self.keeps(entropy, initial) { advantage - self.scale * entropy } else { 0.0 }
    }
}

/// Mean entropy of every completion's valid tokens, [B]; 0 without any.
///
/// # Errors
/// Shapes that differ, an entropy that is not finite.
pub fn mean_entropies(entropy: &Table, mask: &Table) -> Result<Vec<f64>> {
    entropy.same_shape("entropy", mask)?;
    let mean = |i: usize| {
        let valid = entropy.row(i).iter().zip(mask.row(i)).filter(|(_, m)| **m != 0.0);
        let (sum, n) = valid.fold((0.0, 0.0), |(s, n), (h, _)| (s + h, n + 1.0f64));
        let got = sum / n.max(1.0);
        if got.is_finite() { Ok(got) } else { Err(Error::NotFinite { name: "entropy", index: i, got }) }
    };
    (0..mask.rows).map(mean).collect()
}

/// -sum p ln max(p, floor) of softmax(`logits`), in nats.
pub fn floored_entropy(logits: &[f64], floor: f64) -> f64 {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|z| (z - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let term = |e: &f64| if *e > 0.0 { e / sum * (e / sum).max(floor).ln() } else { 0.0 };
    -exp.iter().map(term).sum::<f64>()
}

impl Block for EntropyGate {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![ENTROPY];
        needs.extend((self.gate == GateRule::Initial).then_some(OLD_ENTROPY));
        needs
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("threshold", self.threshold), ("scale", self.scale)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("answers up to {} nats, advantage less {} times the entropy", self.threshold, self.scale)
    }
}

impl Kind for EntropyGate {
    const KIND: &'static str = "entropy_gate";
}

impl TokenRule for EntropyGate {
    fn prepare(&self, batch: &Batch, _signals: &mut Signals, state: &mut State) -> Result<()> {
        let remembered: InitialEntropy = state.get(Self::KIND)?;
        let mask = batch.mask();
        let tokens = mask.row_sums();
        let all: f64 = tokens.iter().sum();
        if self.gate == GateRule::Constant || remembered.mean.is_some() || all == 0.0 {
            return Ok(());
        }
        let means = mean_entropies(&batch.table(OLD_ENTROPY)?, mask)?;
        let sum: f64 = means.iter().zip(&tokens).map(|(h, n)| h * n).sum();
        state.set(Self::KIND, &InitialEntropy { mean: Some(sum / all) })
    }

    fn update(&self, batch: &Batch, signals: &mut Signals, state: &State) -> Result<()> {
        let mask = batch.mask();
        let initial = state.get::<InitialEntropy>(Self::KIND)?.mean;
        for (i, entropy) in mean_entropies(&batch.table(ENTROPY)?, mask)?.into_iter().enumerate() {
            let row = i * mask.cols..(i + 1) * mask.cols;
            for (a, m) in signals.advantages.values[row].iter_mut().zip(mask.row(i)) {
                *a = if *m == 0.0 { 0.0 } else { self.shaped(*a, entropy, initial) };
            }
        }
        Ok(())
    }
}

/// Over the completions of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverGroup {
    /// Sum: the code.
    #[default]
    Sum,
    /// Mean: the paper.
    Mean,
}

/// Turns the mean over sequences into a mean over groups of sums over their completions (or leaves it), for
/// surrogates that work on whole sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupReduction {
    /// Over the completions of a group.
    pub reduction: OverGroup,
}

impl Block for GroupReduction {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn describe(&self) -> String {
        match self.reduction {
            OverGroup::Sum => "sum over a group".into(),
            OverGroup::Mean => "mean over a group".into(),
        }
    }
}

impl Kind for GroupReduction {
    const KIND: &'static str = "group_reduction";
}

impl TokenRule for GroupReduction {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        if self.reduction == OverGroup::Mean {
            return Ok(());
        }
        // The mean divides by the sequences that have a token; what is wanted is the number of groups.
        let groups = members(batch.ids(GROUP_IDS)?).len().max(1) as f64;
        let factor = batch.normaliser().sequences / groups;
        signals.row_weights.iter_mut().for_each(|w| *w *= factor);
        Ok(())
    }
}

/// -mean_t(A w exp(log p - sg(log p))) per sequence: the ratio has the value 1 and the gradient of REINFORCE.
/// Weights w of tokens are inside the mean over the sequence's own tokens, whatever the objective's aggregation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnitRatio {}

impl Block for UnitRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS]
    }

    fn describe(&self) -> String {
        "on-policy ratio of value 1".into()
    }
}

impl Kind for UnitRatio {
    const KIND: &'static str = "unit_ratio";
}

impl Surrogate for UnitRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let mask = batch.mask();
        signals.advantages.same_shape("advantages", mask)?;
        signals.weights.same_shape("weights", mask)?;
        let lengths = mask.row_sums();
        let mut factors = mask.filled(0.0);
        for at in (0..mask.values.len()).filter(|&at| mask.values[at] != 0.0) {
            let share = mask.values[at] / lengths[at / mask.cols];
            factors.values[at] = -signals.advantages.values[at] * signals.weights.values[at] * share;
        }
        // Padded log-probabilities read 0 in a batch: their ratio is 1 and counts nothing.
        let ratio = (&log_probs - log_probs.detach())?.exp()?;
        Ok(Terms::Sequences((ratio * factors.to_tensor(&log_probs)?)?.sum(1)?).into())
    }
}

/// Text of the answer block that ends `text`; whitespace may follow it.
pub fn final_answer(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<answer>")?;
    rest.trim_end().strip_suffix("</answer>").map(str::trim)
}

/// Format of a completion: 10 with a reasoning block and a final answer block. With one of the two 1.5 if there
/// is a tag of the other, else 1. Without any 0.
pub fn format_reward(text: &str) -> f64 {
    let reasons = text.split_once("<reasoning>").is_some_and(|(_, rest)| rest.contains("</reasoning>"));
    let any = |name: &str| text.contains(&format!("<{name}>")) || text.contains(&format!("</{name}>"));
    match (reasons, final_answer(text).is_some()) {
        (true, true) => 10.0,
        (true, false) => {
            if any("answer") {
                1.5
            } else {
                1.0
            }
        }
        (false, true) => {
            if any("reasoning") {
                1.5
            } else {
                1.0
            }
        }
        (false, false) => 0.0,
    }
}

/// 10 for the right answer in the full format, else 0: both are numbers within `tolerance` (plus 1e-5 of the
/// reference), or the reference answer is contained in the answer. `reference` is a completion or a bare answer.
pub fn correctness_reward(text: &str, reference: &str, tolerance: f64) -> f64 {
    let wanted = final_answer(reference).unwrap_or(reference).trim();
    let Some(answer) = final_answer(text).filter(|_| format_reward(text) == 10.0) else { return 0.0 };
    let near = match (answer.parse::<f64>(), wanted.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= tolerance + 1e-5 * b.abs(),
        _ => false,
    };
    if near || (!wanted.is_empty() && answer.contains(wanted)) { 10.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::REWARDS;
    use crate::registry::Algorithm;

    /// Gradient with `settings` over the recipe, in micro-batches `parts`; two groups of three.
    fn gradient(settings: &str, ids: &[Vec<f64>], rewards: &[f64], parts: &[&[usize]]) -> Vec<f64> {
        let t = ids[0].len();
        let mut lp = vec![vec![-0.5; t]; 6];
        lp[1][t - 1] = f64::NEG_INFINITY;
        let var = Var::new(lp, &Device::Cpu).unwrap();
        let mut mask = Table::from_rows(&vec![vec![1.0; t]; 6]).unwrap();
        mask.values[2 * t - 1] = 0.0;
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, var.as_tensor().clone())
            .unwrap()
            .with(ENTROPY, mask.filled(0.3))
            .unwrap()
            .with(OLD_ENTROPY, mask.filled(0.9))
            .unwrap()
            .with(RESPONSE_IDS, Table::from_rows(ids).unwrap())
            .unwrap()
            .with(REWARDS, rewards.to_vec())
            .unwrap()
            .with(GROUP_IDS, vec![0u64, 0, 0, 1, 1, 1])
            .unwrap();
        let objective = Algorithm::from_table("gtpo", &settings.parse().unwrap()).unwrap().objective;
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state).unwrap();
        let mut total = vec![0.0; var.elem_count()];
        for rows in parts {
            let (part, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let loss = objective.loss(&part, &signals, &ready.batch.normaliser(), &state).unwrap().loss;
            let grads = loss.backward().unwrap();
            let grad: Vec<f64> =
                grads.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            total.iter_mut().zip(grad).for_each(|(a, b)| *a += b);
        }
        total
    }

    const WHOLE: &[&[usize]] = &[&[0, 1, 2, 3, 4, 5]];

    proptest! {
        #[test]
        fn shared_tokens_are_never_pushed_down_and_splits_add_up(
            ids in proptest::collection::vec(proptest::collection::vec((1u8..3).prop_map(f64::from), 4), 6),
            rewards in proptest::collection::vec((0u8..2).prop_map(f64::from), 6),
        ) {
            let no_penalty = "[weight.entropy_gate]\nscale = 0.0";
            let whole = gradient(no_penalty, &ids, &rewards, WHOLE);
            let split = gradient(no_penalty, &ids, &rewards, &[&[5, 0], &[1, 2, 3], &[4]]);
            for (a, b) in whole.iter().zip(&split) {
                prop_assert!((a - b).abs() < 1e-12);
            }
            prop_assert_eq!(whole[7], 0.0); // padding
            for group in [[0, 1, 2], [3, 4, 5]] {
                for &bad in &group {
                    let same = |good: usize| rewards[good] > rewards[bad] && ids[good][0] == ids[bad][0];
                    let shared = group.iter().any(|&good| same(good));
                    // Raising the loss on a token pushes it down.
                    prop_assert!(!shared || whole[bad * 4] <= 0.0);
                }
                if group.iter().all(|&i| rewards[i] == rewards[group[0]]) {
                    prop_assert!(group.iter().all(|&i| whole[i * 4..i * 4 + 4].iter().all(|g| *g == 0.0)));
                }
            }
        }
    }

    #[test]
    fn the_gate_remembers_where_the_model_began() {
        let gate = EntropyGate { gate: GateRule::Initial, ..EntropyGate::default() };
        assert!(gate.keeps(5.0, Some(0.8)) && !gate.keeps(0.75, Some(0.6)) && !gate.keeps(0.75, None));
        assert!(!EntropyGate::default().keeps(0.75, Some(2.0)));
        let mask = Table::from_rows(&[vec![1.0, 1.0]]).unwrap();
        let batch = Batch::new(mask.clone()).with(OLD_ENTROPY, mask.filled(1.0 / 3.0)).unwrap();
        let mut state = State::default();
        gate.prepare(&batch, &mut Signals::new(mask.clone()), &mut state).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let mut read: State = serde_json::from_str(&text).unwrap();
        let later = Batch::new(mask.clone()).with(OLD_ENTROPY, mask.filled(2.0)).unwrap();
        gate.prepare(&later, &mut Signals::new(mask), &mut read).unwrap();
        assert_eq!(read, state, "the first batch counts");
        assert_eq!(state.get::<InitialEntropy>(EntropyGate::KIND).unwrap().mean, Some(1.0 / 3.0));
    }

    #[test]
    fn sum_is_the_mean_times_the_group_and_division_by_conflicts_shrinks() {
        let ids = vec![
            vec![1.0, 2.0, 3.0, 4.0],
            vec![1.0, 2.0, 5.0, 6.0],
            vec![7.0; 4],
            vec![8.0; 4],
            vec![9.0; 4],
            vec![8.0; 4],
        ];
        let rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        let sum = gradient("", &ids, &rewards, WHOLE);
        let mean = gradient("[weight.group_reduction]\nreduction = \"mean\"", &ids, &rewards, WHOLE);
        assert!(sum.iter().zip(&mean).all(|(s, m)| (s - 3.0 * m).abs() < 1e-12));
        let divided =
            gradient("[weight.conflict_weights]\ndivide_by_conflicts = true", &ids, &rewards, WHOLE);
        assert!((divided[0] - sum[0] / 2.0).abs() < 1e-12, "two shared tokens");
    }

    #[test]
    fn entropy_with_a_floor() {
        assert!((floored_entropy(&[0.0, 0.0], 1e-6) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(floored_entropy(&[0.0, f64::NEG_INFINITY], 1e-6), 0.0);
    }

    #[test]
    fn answers() {
        assert_eq!(final_answer("<answer> 4 </answer>\n"), Some("4"));
        assert_eq!(final_answer("<answer>4</answer>."), None);
        let full = |a: &str| format!("<reasoning>x</reasoning><answer>{a}</answer>");
        assert_eq!(correctness_reward(&full("3.99999"), "4", 0.01), 10.0);
        assert_eq!(correctness_reward(&full("it is 4"), "4", 0.01), 10.0);
        assert_eq!(correctness_reward(&full("5"), "4", 0.01), 0.0);
        assert_eq!(correctness_reward("<answer>4</answer>", "4", 0.01), 0.0, "only in the full format");
        assert_eq!(correctness_reward(&full("5"), "", 0.01), 0.0);
    }
}
