//! EPO: Explicit Policy Optimization for strategic reasoning (arXiv 2502.12486).
//!
//! A small strategy model is trained; a frozen agent reads its strategies and acts. Base: REINFORCE on logged
//! episodes with process rewards. No ratio, no clip, no KL: likelihood of the logged strategies, weighted per
//! turn.
//!
//! ```text
//! r_k = 1 if a judge calls turn k critical; else score / divisor on the last turn; else 0
//! R_k = r_k + gamma R_{k+1};   w_k = R_k / max_k |R_k|            (0 when all are 0)
//! L_i = -(1/K) sum_k w_k (1/n_k) sum_{tokens of turn k} log p     loss = sum_i L_i
//! ```
//!
//! One row is one whole episode; K is its number of turns, n_k the tokens of turn k. Turns are `turn_ids` [B, T]
//! (0 .. K-1, -1 elsewhere); `turn_scores` holds K weights per row.
//!
//! `reduction = "sum"` is the authors' code (batch losses are summed), `"mean"` divides by the episodes. The
//! weights are never negative without `baseline = "batch_mean"`, which is ours and off. The authors normalise by
//! the episode's own maximum, so a failed episode with one critical turn weighs as much as a success.
//! `first_turn_critical` is a rule that their code has commented out. Source: DAMO-ConvAI `EPO`, `prm.py`,
//! `preprocessing.py`, `reward_weighted_loss`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OUTCOMES, Signals, TURN_IDS, keep_where};
use crate::block::{Block, BlockKind, Kind, Reward, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// Which turns a judge calls critical: 1 or 0 for every turn of a sequence.
pub const CRITICAL_TURNS: Input =
    Input::new("critical_turns", "[B][K]", "1 on the turns that a judge calls critical");
/// Weight of every turn of a sequence.
pub const TURN_SCORES: Input = Input::new("turn_scores", "[B][K]", "weight of every turn of a sequence");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "epo_explicit",
    title: "EPO: Explicit Policy Optimization for Strategic Reasoning",
    arxiv: "2502.12486",
    summary: "Likelihood of logged strategies, every turn weighted by its discounted process reward.",
    blocks: &[BlockKind::reward::<ProcessRewards>(), BlockKind::surrogate::<TurnLikelihood>()],
    recipe,
    vectors: Some(("epo_explicit.json", 3)),
    end_to_end: None,
};

/// Process rewards, weighted likelihood, summed over episodes.
pub fn recipe() -> Composition {
    Composition::new(&TurnLikelihood::default(), Aggregation::SeqMeanTokenMean)
        .reward(&ProcessRewards::default())
}

/// What is subtracted from the weights of the turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnBaseline {
    /// Nothing: the paper.
    #[default]
    None,
    /// The mean weight over all turns of the batch: ours.
    BatchMean,
}

/// From critical turns and the outcome to a weight per turn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessRewards {
    /// Discount per turn, 0 to 1.
    pub gamma: f64,
    /// The episode's reward is divided by this on the last turn: 10 for a score of 0 to 10, 1 for a score of 0
    /// to 1.
    pub divisor: f64,
    /// Count the first turn as critical whatever the judge says.
    pub first_turn_critical: bool,
    /// What is subtracted in the end.
    pub baseline: TurnBaseline,
}

impl Default for ProcessRewards {
    fn default() -> Self {
        Self { gamma: 0.99, divisor: 10.0, first_turn_critical: false, baseline: TurnBaseline::None }
    }
}

/// 1 on critical turns; `score / divisor` on the last turn if that is not critical; else 0. [K].
pub fn process_rewards(critical: &[bool], score: f64, divisor: f64) -> Vec<f64> {
    let last = critical.len().saturating_sub(1);
    let reward = |(k, &critical): (usize, &bool)| match critical {
        true => 1.0,
        false if k == last => score / divisor,
        false => 0.0,
    };
    critical.iter().enumerate().map(reward).collect()
}

/// R_k = r_k + gamma R_{k+1}, [K].
pub fn discounted(rewards: &[f64], gamma: f64) -> Vec<f64> {
    let mut out = rewards.to_vec();
    for k in (0..out.len().saturating_sub(1)).rev() {
        out[k] += gamma * out[k + 1];
    }
    out
}

/// Divided by the largest absolute value; zeros stay zeros.
pub fn max_abs_normalised(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    x.iter().map(|v| if largest > 0.0 { v / largest } else { 0.0 }).collect()
}

impl Block for ProcessRewards {
    fn needs(&self) -> Vec<Input> {
        vec![CRITICAL_TURNS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn gives(&self) -> Vec<Input> {
        vec![TURN_SCORES]
    }

    fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.gamma) {
            return Err(Error::Setting { name: "gamma", got: self.gamma, expected: "0 to 1" });
        }
        if self.divisor > 0.0 && self.divisor.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "divisor", got: self.divisor, expected: "greater than 0" })
    }

    fn describe(&self) -> String {
        format!("process rewards per turn, discount {}, over the episode's maximum", self.gamma)
    }
}

impl Kind for ProcessRewards {
    const KIND: &'static str = "process_rewards";
}

impl Reward for ProcessRewards {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let outcomes = batch.outcomes()?;
        let episode = |(flags, &score): (&Vec<f64>, &f64)| {
            let mut critical: Vec<bool> = flags.iter().map(|&x| x != 0.0).collect();
            if let Some(first) = critical.first_mut() {
                *first |= self.first_turn_critical;
            }
            max_abs_normalised(&discounted(&process_rewards(&critical, score, self.divisor), self.gamma))
        };
        let mut scores: Vec<Vec<f64>> =
            batch.vectors(CRITICAL_TURNS)?.iter().zip(&outcomes).map(episode).collect();
        if self.baseline == TurnBaseline::BatchMean {
            let turns = scores.iter().map(Vec::len).sum::<usize>().max(1) as f64;
            let mean = scores.iter().flatten().sum::<f64>() / turns;
            scores.iter_mut().flatten().for_each(|w| *w -= mean);
        }
        batch.set(TURN_SCORES, scores)
    }
}

/// Over the episodes of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Sum: the authors' code.
    #[default]
    Sum,
    /// Mean over episodes with a valid token.
    Mean,
}

/// -(1/K) sum_k w_k mean over turn k of log p, per episode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TurnLikelihood {
    /// Over episodes.
    pub reduction: Reduction,
}

/// w_k / (K n_k) on every valid token of turn k, 0 elsewhere; [B, T]. `turn_ids` [B, T], `scores` [B][K]: K is
/// the length of a row's scores, also where a turn has lost all its tokens.
///
/// # Errors
/// Shapes that differ, a turn without a score, a score that is not finite.
pub fn token_weights(turn_ids: &Table, mask: &Table, scores: &[Vec<f64>]) -> Result<Table> {
    turn_ids.same_shape("turn_ids", mask)?;
    if scores.len() != mask.rows {
        let expected = format!("[{}], one list per sequence", mask.rows);
        return Err(Error::Shape { name: "turn_scores", got: vec![scores.len()], expected });
    }
    let mut out = mask.filled(0.0);
    for (row, scores) in scores.iter().enumerate() {
        if let Some(&got) = scores.iter().find(|w| !w.is_finite()) {
            return Err(Error::NotFinite { name: "turn_scores", index: row, got });
        }
        let mut counts = vec![0.0; scores.len()];
        let tokens = turn_ids.row(row).iter().zip(mask.row(row)).enumerate();
        let mut of_turn = Vec::new();
        for (t, (&turn, &m)) in tokens {
            if m == 0.0 || turn.is_nan() || turn < 0.0 {
                continue;
            }
            let turn = turn as usize;
            let Some(count) = counts.get_mut(turn) else {
                let reason = format!("sequence {row} has a turn {turn} and {} turn scores", scores.len());
                return Err(Error::Invalid { what: "turn_ids", reason });
            };
            *count += 1.0;
            of_turn.push((t, turn));
        }
        for (t, turn) in of_turn {
            out.values[row * mask.cols + t] = scores[turn] / (scores.len() as f64 * counts[turn]);
        }
    }
    Ok(out)
}

impl Block for TurnLikelihood {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, TURN_IDS, TURN_SCORES]
    }

    fn describe(&self) -> String {
        let over = match self.reduction {
            Reduction::Sum => "summed",
            Reduction::Mean => "averaged",
        };
        format!("likelihood weighted per turn, {over} over episodes")
    }
}

impl Kind for TurnLikelihood {
    const KIND: &'static str = "turn_likelihood";
}

impl Surrogate for TurnLikelihood {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let mask = batch.mask();
        let mut weights = token_weights(&batch.table(TURN_IDS)?, mask, batch.vectors(TURN_SCORES)?)?;
        signals.weights.same_shape("weights", mask)?;
        weights.values.iter_mut().zip(&signals.weights.values).for_each(|(w, x)| *w *= -x);
        let weighted = (keep_where(&log_probs, mask)? * weights.to_tensor(&log_probs)?)?;
        let rows = weighted.sum(1)?;
        let terms = match self.reduction {
            Reduction::Mean => Terms::Sequences(rows),
            Reduction::Sum => {
                // Totals pass by the factors on sequences.
                let factors = Tensor::from_slice(&signals.row_weights, rows.dims1()?, rows.device())?;
                Terms::Total((&rows * factors.to_dtype(rows.dtype())?)?.sum_all()?)
            }
        };
        Ok(terms.into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;
    use crate::batch::REWARDS;
    use crate::registry::Algorithm;

    #[test]
    fn rewards_by_hand() {
        assert_eq!(process_rewards(&[true, false, false], 8.0, 10.0), [1.0, 0.0, 0.8]);
        assert_eq!(process_rewards(&[false, true], 8.0, 10.0), [0.0, 1.0], "critical beats the score");
        assert_eq!(discounted(&[1.0, 0.0, 2.0], 0.5), [1.5, 1.0, 2.0]);
        assert_eq!(max_abs_normalised(&[0.0, 0.0]), [0.0, 0.0]);
        assert!(process_rewards(&[], 1.0, 1.0).is_empty() && discounted(&[], 0.9).is_empty());
    }

    fn gradient(rows: &[usize]) -> Vec<f64> {
        let mask = Table::from_rows(&[vec![1.0, 1.0, 1.0, 0.0], vec![1.0; 4]]).unwrap();
        let turns = Table::from_rows(&[vec![0.0, -1.0, 1.0, 1.0], vec![0.0, 0.0, -1.0, 1.0]]).unwrap();
        let log_probs = Var::new(
            vec![vec![-1.0, -2.0, -0.5, f64::NEG_INFINITY], vec![-0.1, -0.2, -0.3, -0.4]],
            &Device::Cpu,
        )
        .unwrap();
        let batch = Batch::new(mask)
            .with(LOG_PROBS, log_probs.as_tensor().clone())
            .unwrap()
            .with(TURN_IDS, turns)
            .unwrap()
            .with(CRITICAL_TURNS, vec![vec![0.0, 0.0], vec![1.0, 0.0]])
            .unwrap()
            .with(REWARDS, vec![5.0, 0.0])
            .unwrap();
        let objective = Algorithm::from_table("epo_explicit", &toml::Table::new()).unwrap().objective;
        let ready = objective.prepare(batch, &mut State::default()).unwrap();
        let (part, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
        let parts = objective.loss(&part, &signals, &ready.batch.normaliser(), &State::default()).unwrap();
        let grads = parts.loss.backward().unwrap();
        grads.get(log_probs.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_turn_counts_by_its_score_and_episodes_add_up() {
        let both = gradient(&[0, 1]);
        // Row 0: R = [0.99 * 0.5, 0.5], normalised by 0.5; the masked token of turn 1 does not count.
        for (got, expected) in both.iter().zip([-0.99 / 2.0, 0.0, -0.5, 0.0, -0.25, -0.25, 0.0, 0.0]) {
            assert!((got - expected).abs() < 1e-12, "{both:?}");
        }
        let (a, b) = (gradient(&[0]), gradient(&[1]));
        assert_eq!(a.iter().zip(&b).map(|(x, y)| x + y).collect::<Vec<_>>(), both);
    }

    #[test]
    fn a_turn_without_a_score_is_named() {
        let mask = Table::from_rows(&[vec![1.0, 1.0]]).unwrap();
        let turns = Table::from_rows(&[vec![0.0, 1.0]]).unwrap();
        assert!(token_weights(&turns, &mask, &[vec![1.0]]).unwrap_err().to_string().contains("turn 1"));
        assert!(token_weights(&turns, &mask, &[]).unwrap_err().to_string().contains("turn_scores"));
        let lost = Table::from_rows(&[vec![1.0, 1.0]]).unwrap();
        let w = token_weights(&lost, &mask, &[vec![3.0, 1.0]]).unwrap();
        assert_eq!(w.values, [0.25, 0.25], "a turn without tokens still counts in K");
    }
}
