//! AEPO: Agentic Entropy-Balanced Policy Optimization (arXiv 2510.14545). Not the Arbitrary Entropy Policy
//! Optimization of the same letters.
//!
//! Base: ARPO (see [`arpo_agentic`](super::arpo_agentic)). New: the split between roots and branches follows
//! measured entropies ([`Budget`]), repeated branching is damped
//! ([`BranchRule::Damped`](super::arpo_agentic::BranchRule)), the upper clip keeps a bounded gradient
//! (`entropy_balanced_clip`), and advantages grow with a token's entropy (`entropy_scaled`).
//!
//! ```text
//! roots        m = clamp(floor(n sigmoid(beta (H_root - mean H_steps))) + 1, 1, n)
//! branching    (u + w (H_now - H_first)) max(0, 1 - 0.05 c) >= p,  c iterations in a row with a new rollout
//! advantage    A' = A (1 + a (H - mean H) / std H),  std unbiased, 1 where it is 0; no gradient through H
//! loss         l1 = -A' r;  l2 = -A' clamp(r, 1 - low, U),  U = (1 + high) r / stopgrad(r)
//!              l = max(l1, l2);  A' < 0: min(l, -A' c)
//! gradient     A' > 0 and r > 1 + high: -A' (1 + high) instead of 0; everything else as in GRPO
//! ```
//!
//! Shapes: `entropy` and `old_entropy` [B, T] in nats over the full vocabulary; the rest as in ARPO.
//!
//! Code against paper: the released code standardises H over each MICRO-batch with the entropies of the current
//! policy, so its result depends on the micro-batch's size (`scope = "micro_batch"`). Default here: once over the
//! whole batch, with the entropies at sampling time (`scope = "batch"`); on the first update both entropies are
//! the same. The paper's budget is n sigmoid(..) over tool steps only; the code adds one, floors, and counts the
//! segment before the first tool call ([`BudgetForm`]). A spread below 1e-8 counts as 0 (the code tests for
//! exactly 0, so a constant 0.7 gets a spurious factor), and so does the spread of a single token. Source: the
//! authors' AEPO folder as kept in two forks.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, ENTROPY, Input, LOG_PROBS, OLD_ENTROPY, OLD_LOG_PROBS, Signals};
use crate::block::{Block, BlockKind, Kind, Surrogate, SurrogateLoss, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::{ClippedRatio, log_ratio};
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "aepo_agentic",
    title: "Agentic Entropy-Balanced Policy Optimization",
    arxiv: "2510.14545",
    summary: "Entropy splits the rollout budget, scales advantages, and clipped tokens keep a gradient.",
    blocks: &[BlockKind::weight::<EntropyScaled>(), BlockKind::surrogate::<BalancedClip>()],
    recipe,
    vectors: Some(("aepo_agentic.json", 9)),
    end_to_end: None,
};

/// GRPO's advantage scaled by entropy, the clip that keeps a gradient, token mean.
pub fn recipe() -> Composition {
    Composition::new(&BalancedClip::default(), Aggregation::TokenMean)
        .advantage(&GroupNorm::default())
        .weight(&EntropyScaled::default())
}

/// Over what the entropies are standardised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Once over the whole batch, entropies at sampling time.
    #[default]
    Batch,
    /// In every update over its own (micro-)batch, entropies of the current policy: the authors' code.
    MicroBatch,
}

/// A' = A (1 + coef z), z the token's standardised entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyScaled {
    /// a; 0 turns it off.
    pub coef: f64,
    /// Over what.
    pub scope: Scope,
    /// Keep the factor at 0 or more, so that a very certain token's advantage cannot change its sign. Off in the
    /// paper.
    pub nonnegative: bool,
}

impl Default for EntropyScaled {
    fn default() -> Self {
        Self { coef: 0.2, scope: Scope::Batch, nonnegative: false }
    }
}

/// A standard deviation below this is one of equal numbers.
const NO_SPREAD: f64 = 1e-8;

impl EntropyScaled {
    /// `advantages` scaled, [B, T]; `entropy` and `mask` [B, T]. Without a valid token nothing changes.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn scale(&self, advantages: &Table, entropy: &Table, mask: &Table) -> Result<Table> {
        entropy.same_shape("entropy", mask)?;
        advantages.same_shape("advantages", mask)?;
        let valid: Vec<f64> =
            entropy.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0).map(|(h, _)| *h).collect();
        if let Some(index) = valid.iter().position(|h| !h.is_finite()) {
            return Err(Error::NotFinite { name: "entropy", index, got: valid[index] });
        }
        let n = valid.len() as f64;
        let mean = valid.iter().sum::<f64>() / n.max(1.0);
        let squares: f64 = valid.iter().map(|h| (h - mean) * (h - mean)).sum();
        let spread = (squares / (n - 1.0).max(1.0)).sqrt();
        let by = if spread < NO_SPREAD { 1.0 } else { spread };
        let factor = |h: f64| {
            let factor = 1.0 + self.coef * (h - mean) / by;
            if self.nonnegative { factor.max(0.0) } else { factor }
        };
        let tokens = advantages.values.iter().zip(&entropy.values).zip(&mask.values);
        let values = tokens.map(|((&a, &h), &m)| if m == 0.0 { a } else { a * factor(h) }).collect();
        Ok(Table { values, ..*mask })
    }

    fn input(&self) -> Input {
        match self.scope {
            Scope::Batch => OLD_ENTROPY,
            Scope::MicroBatch => ENTROPY,
        }
    }

    fn apply(&self, batch: &Batch, signals: &mut Signals) -> Result<()> {
        signals.advantages = self.scale(&signals.advantages, &batch.table(self.input())?, batch.mask())?;
        Ok(())
    }
}

impl Block for EntropyScaled {
    fn needs(&self) -> Vec<Input> {
        vec![self.input()]
    }

    fn batch_wide(&self) -> Option<&'static str> {
        (self.scope == Scope::MicroBatch).then_some("entropies are standardised over the update")
    }

    fn validate(&self) -> Result<()> {
        if self.coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "coef", got: self.coef, expected: "a finite number" })
    }

    fn describe(&self) -> String {
        format!("advantages times 1 + {} z of the token's entropy", self.coef)
    }
}

impl Kind for EntropyScaled {
    const KIND: &'static str = "entropy_scaled";
}

impl TokenRule for EntropyScaled {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        if self.scope == Scope::Batch { self.apply(batch, signals) } else { Ok(()) }
    }

    fn update(&self, batch: &Batch, signals: &mut Signals, _state: &State) -> Result<()> {
        if self.scope == Scope::MicroBatch { self.apply(batch, signals) } else { Ok(()) }
    }
}

/// The clipped ratio whose upper bound passes a gradient: a good token above the range keeps that of its edge.
/// Every such token does, not only those of high entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalancedClip {
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high have the loss and the gradient of 1 + high. At least 0.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; 0 turns dual clip off.
    pub dual_clip: f64,
}

impl Default for BalancedClip {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, dual_clip: 3.0 }
    }
}

impl BalancedClip {
    fn plain(&self) -> ClippedRatio {
        let dual_clip = Some(self.dual_clip).filter(|&c| c != 0.0);
        ClippedRatio { clip_low: self.clip_low, clip_high: self.clip_high, dual_clip }
    }
}

impl Block for BalancedClip {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        self.plain().validate()
    }

    fn describe(&self) -> String {
        format!("{}, gradient kept above", self.plain().describe())
    }
}

impl Kind for BalancedClip {
    const KIND: &'static str = "entropy_balanced_clip";
}

impl Surrogate for BalancedClip {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let (log_probs, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let advantages = signals.advantages.to_tensor(&log_probs)?;
        let mut outcome = self.plain().loss(&log_probs, &old, &advantages)?;
        let d = log_ratio(&log_probs, &old)?;
        let edge = 1.0 + self.clip_high;
        let above = d.detach().exp()?.gt(edge)?.mul(&advantages.gt(0.0)?)?;
        // exp(d - stopgrad(d)) is 1 with the gradient of d.
        let kept = ((&d - d.detach())?.exp()? * (advantages * -edge)?)?;
        outcome.per_token = above.where_cond(&kept, &outcome.per_token)?;
        outcome.into_loss()
    }
}

/// How the number of roots follows from entropies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetForm {
    /// floor(n sigmoid) + 1 with the mean over all segments, the one before the first tool call included.
    #[default]
    Code,
    /// n sigmoid, to the nearest whole number, with the mean over the segments after the first.
    Paper,
}

/// Split of a prompt's rollouts into roots and branches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Slope. The authors have 0.5.
    pub beta: f64,
    /// Which form.
    pub form: BudgetForm,
}

impl Default for Budget {
    fn default() -> Self {
        Self { beta: 0.5, form: BudgetForm::Code }
    }
}

impl Budget {
    /// Roots among `total` rollouts, 1 to `total`. `root`: segment entropy of a short continuation of the prompt
    /// (at most 50 tokens); `steps`: those of the segments of one complete tool trajectory, taken with a
    /// [`Tree`](super::arpo_agentic::Tree) of one rollout and thrown away. Without steps their mean is `root`.
    pub fn roots(&self, total: usize, root: f64, steps: &[f64]) -> usize {
        let steps = match self.form {
            BudgetForm::Code => steps,
            BudgetForm::Paper => steps.get(1..).unwrap_or_default(),
        };
        let mean = if steps.is_empty() { root } else { steps.iter().sum::<f64>() / steps.len() as f64 };
        let share = total as f64 / (1.0 + (-self.beta * (root - mean)).exp());
        let roots = match self.form {
            BudgetForm::Code => share.floor() + 1.0,
            BudgetForm::Paper => share.round(),
        };
        (roots as usize).min(total).max(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::{GROUP_IDS, REWARDS};
    use candle_core::{Device, Var};

    fn table(rows: &[&[f64]]) -> Table {
        Table::from_rows(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn equal_entropies_and_single_tokens_change_nothing() {
        let a = table(&[&[1.0, -2.0, 3.0]]);
        let scaled = EntropyScaled::default().scale(&a, &a.filled(0.7), &a.filled(1.0)).unwrap();
        for (x, y) in scaled.values.iter().zip(&a.values) {
            assert!((x - y).abs() < 1e-12);
        }
        let one = table(&[&[0.0, 1.0, 0.0]]);
        assert_eq!(EntropyScaled::default().scale(&a, &table(&[&[5.0, 0.3, 9.0]]), &one).unwrap(), a);
        assert_eq!(EntropyScaled::default().scale(&a, &a.filled(f64::NAN), &a.filled(0.0)).unwrap(), a);
        assert!(EntropyScaled::default().scale(&a, &a.filled(f64::NAN), &one).is_err());
    }

    #[test]
    fn a_factor_that_would_change_the_sign_can_be_cut() {
        let mut h = vec![1.0; 99];
        h.push(-9.0);
        let h = table(&[&h]);
        let last = |nonnegative| {
            let rule = EntropyScaled { nonnegative, ..EntropyScaled::default() };
            rule.scale(&h.filled(1.0), &h, &h.filled(1.0)).unwrap().values[99]
        };
        assert!(last(false) < 0.0);
        assert_eq!(last(true), 0.0);
    }

    /// The whole batch's statistics: a split into micro-batches leaves the gradient as it is.
    #[test]
    fn micro_batches_add_up() {
        let p = Var::from_vec(vec![-1.0, -0.5, -2.0, -0.1], (2, 2), &Device::Cpu).unwrap();
        let batch = Batch::new(table(&[&[1.0, 1.0], &[1.0, 0.0]]))
            .with(LOG_PROBS, p.as_tensor().clone())
            .unwrap()
            .with(OLD_LOG_PROBS, table(&[&[-1.4, -0.4], &[-1.0, 0.0]]))
            .unwrap()
            .with(OLD_ENTROPY, table(&[&[0.2, 1.4], &[0.6, 7.0]]))
            .unwrap()
            .with(REWARDS, vec![1.0, 0.0])
            .unwrap()
            .with(GROUP_IDS, vec![0, 0])
            .unwrap();
        let objective = recipe().build().unwrap();
        let prepared = objective.prepare(batch, &mut State::default()).unwrap();
        let whole = prepared.batch.normaliser();
        let grad = |rows: &[usize]| -> Vec<f64> {
            let (batch, signals) = (prepared.batch.select(rows).unwrap(), prepared.signals.select(rows));
            let loss = objective.loss(&batch, &signals, &whole, &State::default()).unwrap().loss;
            loss.backward().unwrap().get(p.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let (all, first, second) = (grad(&[0, 1]), grad(&[0]), grad(&[1]));
        for i in 0..4 {
            assert!((all[i] - first[i] - second[i]).abs() < 1e-12, "{i}");
        }
        assert!(all[0] != 0.0, "ratio e^0.4 is above the range and keeps a gradient");
        assert_eq!(all[3], 0.0);
    }

    #[test]
    fn a_surer_continuation_gets_more_roots() {
        let budget = Budget::default();
        assert_eq!(budget.roots(12, 1.0, &[]), 7);
        assert!(budget.roots(12, 3.0, &[1.0]) > budget.roots(12, 1.0, &[3.0]));
        assert_eq!((budget.roots(8, 99.0, &[0.0]), budget.roots(8, -99.0, &[0.0])), (8, 1));
        let paper = Budget { form: BudgetForm::Paper, ..budget };
        assert_eq!(paper.roots(12, 1.0, &[50.0, 1.0]), 6);
    }
}
