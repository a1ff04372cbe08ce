//! OORL with GEPO: Group Equivalent Preference Optimization beside on-policy RL (arXiv 2505.12723).
//!
//! Bases: REINFORCE++ with a binary unit-test reward, and DPO. New: a preference loss over GROUPS of texts that do
//! the same (winners) against texts that do not (losers), with a penalty on the spread of the implicit rewards of
//! the winners: what is equivalent should be equally likely. One winner and one loser is DPO.
//!
//! ```text
//! rhat_j  = sum_t mask (logp - logp_ref)                                            per text, [M]
//! pref_g  = -log sigmoid(beta (mean over winners rhat - mean over losers rhat))     per group
//! var_g   = (1/n_g) sum over winners (rhat - their mean)^2                     beta^2 times that: `scaled_reward`
//! L_GEPO  = mean_g [pref_g + lambda var_g]              groups without a winner or without a loser are left out
//! A       = (G - mean) / sqrt(var + 1e-8)               G: return-to-go, gamma 1; over all valid tokens, population
//! L       = w_rl tokmean(-min(r A, clip(r, 1 - eps, 1 + eps) A)) + w_gepo L_GEPO
//! ```
//!
//! Both streams are rows of ONE batch: a row of the on-policy stream has an empty `pref_response_mask`, a row of
//! the preference stream an empty response mask, so that it enters neither whitening nor token mean
//! ([`join_streams`]). All texts of a group must be in one micro-batch. Groups are averaged over the whole prepared
//! batch: over the updates of a batch their shares add up to one L_GEPO.
//!
//! The paper's formulas are reconstructed from its words: the variance is of the log-ratios without beta and
//! divides by n, groups are averaged; beta, eps and the details of REINFORCE++ are not given, DPO's 0.1, PPO's 0.2
//! and the latter's own paper are used. Over long texts the variance can be hundreds of nats squared: 0.01 for
//! `w_gepo` keeps it tame, and `per_token` divides rhat by the length.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OUTCOMES, Signals, keep_where};
use crate::block::{Advantage, Block, BlockKind, Kind, Regularizer, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::surrogate::log_sigmoid;
use crate::table::Table;

/// Log-probability of the preference texts' tokens, with gradient.
pub const PREF_LOG_PROBS: Input =
    Input::new("pref_log_probs", "[B, L]", "log-probability of the preference texts' tokens, with gradient");
/// The same under the reference.
pub const PREF_REF_LOG_PROBS: Input =
    Input::new("pref_ref_log_probs", "[B, L]", "reference log-probability of the preference texts' tokens");
/// Which tokens of the preference texts count.
pub const PREF_MASK: Input = Input::new(
    "pref_response_mask",
    "[B, L]",
    "1 on tokens of preference texts; 0 in rows of the other stream",
);
/// Which texts are compared.
pub const PREF_GROUP_IDS: Input = Input::new("pref_group_ids", "[B]", "group of every preference text");
/// Whether a text is equivalent to its source.
pub const PREF_IS_WINNER: Input =
    Input::new("pref_is_winner", "[B]", "1 where the text is equivalent to its source, else 0");
/// Whether a row is a preference text.
pub const PREF_ROWS: Input =
    Input::new("pref_rows", "[B]", "1 where the row is of the preference stream, else 0");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "oorl_gepo",
    title: "On-Policy Optimization with Group Equivalent Preference for Multi-Programming Language Understanding",
    arxiv: "2505.12723",
    summary: "Equivalent programs should be equally likely, and likelier than broken ones.",
    blocks: &[
        BlockKind::advantage::<WhitenedReturns>(),
        BlockKind::weight::<LossScale>(),
        BlockKind::regularizer::<Gepo>(),
    ],
    recipe,
    vectors: Some(("oorl_gepo.json", 7)),
    end_to_end: None,
};

/// REINFORCE++ with a symmetric clip of 0.2, plus 0.01 GEPO.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.2, dual_clip: None };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .advantage(&WhitenedReturns::default())
        .weight(&LossScale::default())
        .regularizer(&Gepo::default())
}

/// Returns-to-go of the outcome, whitened over all valid tokens of the batch (REINFORCE++).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhitenedReturns {
    /// Discount per token, 0 to 1. 1 puts the outcome on every token.
    pub gamma: f64,
    /// Added to the variance, 0 or more.
    pub epsilon: f64,
    /// Whether the variance divides by N - 1 instead of N.
    pub unbiased: bool,
}

impl Default for WhitenedReturns {
    fn default() -> Self {
        Self { gamma: 1.0, epsilon: 1e-8, unbiased: false }
    }
}

impl Block for WhitenedReturns {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.gamma) {
            return Err(Error::Setting { name: "gamma", got: self.gamma, expected: "0 to 1" });
        }
        if self.epsilon >= 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("returns (gamma {}), whitened over the batch's tokens", self.gamma)
    }
}

impl Kind for WhitenedReturns {
    const KIND: &'static str = "whitened_returns";
}

impl Advantage for WhitenedReturns {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let mask = batch.mask();
        let mut out = mask.filled(0.0);
        for (row, outcome) in batch.outcomes()?.into_iter().enumerate() {
            let mut running = outcome;
            for t in (row * mask.cols..(row + 1) * mask.cols).rev().filter(|&t| mask.values[t] != 0.0) {
                out.values[t] = running;
                running *= self.gamma;
            }
        }
        let valid: Vec<usize> = (0..out.values.len()).filter(|&t| mask.values[t] != 0.0).collect();
        let n = valid.len() as f64;
        let first = valid.first().map_or(0.0, |&t| out.values[t]);
        let equal = valid.iter().all(|&t| out.values[t] == first);
        let mean = valid.iter().map(|&t| out.values[t]).sum::<f64>() / n.max(1.0);
        let squares: f64 = valid.iter().map(|&t| (out.values[t] - mean) * (out.values[t] - mean)).sum();
        let variance = squares / if self.unbiased { (n - 1.0).max(1.0) } else { n.max(1.0) };
        let scale = 1.0 / (variance + self.epsilon).sqrt();
        valid.iter().for_each(|&t| out.values[t] = if equal { 0.0 } else { (out.values[t] - mean) * scale });
        Ok(out)
    }
}

/// A constant factor on the surrogate's token and sequence terms: the share of this stream in a mixture of losses. Pair
/// losses do not see it; regularisers only where they read the weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossScale {
    /// The factor, 0 or more.
    pub factor: f64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: 1.0 }
    }
}

impl Block for LossScale {
    fn validate(&self) -> Result<()> {
        if self.factor >= 0.0 && self.factor.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "factor", got: self.factor, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("surrogate times {}", self.factor)
    }
}

impl Kind for LossScale {
    const KIND: &'static str = "loss_scale";
}

impl TokenRule for LossScale {
    fn prepare(&self, _batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        signals.weights.values.iter_mut().for_each(|w| *w *= self.factor);
        signals.row_weights.iter_mut().for_each(|w| *w *= self.factor);
        Ok(())
    }
}

/// Of what the variance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceOf {
    /// rhat.
    #[default]
    LogRatio,
    /// beta rhat.
    ScaledReward,
}

/// The preference loss over groups of equivalent and inequivalent texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gepo {
    /// w_gepo, 0 or more.
    pub coef: f64,
    /// Scale of the implicit reward, above 0.
    pub beta: f64,
    /// Weight of the variance, 0 or more.
    pub lambda: f64,
    /// Of what the variance is.
    pub variance_of: VarianceOf,
    /// Divide rhat by the number of tokens.
    pub per_token: bool,
}

impl Default for Gepo {
    fn default() -> Self {
        Self { coef: 0.01, beta: 0.1, lambda: 1.0, variance_of: VarianceOf::LogRatio, per_token: false }
    }
}

/// Preference texts: tensors [M, L], the rest [M].
pub struct PreferenceTexts<'a> {
    /// With gradient.
    pub log_probs: &'a Tensor,
    /// Under the reference.
    pub ref_log_probs: &'a Tensor,
    /// Which tokens count.
    pub mask: &'a Table,
    /// Which are compared.
    pub group_ids: &'a [u64],
    /// Which are equivalent.
    pub is_winner: &'a [bool],
}

/// What [`Gepo::groups`] computed. Groups in order of id, those that are left out absent.
pub struct GepoGroups {
    /// beta rhat of every text, [M], no gradient.
    pub implicit_rewards: Tensor,
    /// pref_g, [G], with gradient; absent when every group is left out.
    pub preference: Option<Tensor>,
    /// var_g, [G], with gradient.
    pub variance: Option<Tensor>,
    /// G.
    pub groups: usize,
    /// Groups that are left out.
    pub skipped: usize,
}

/// Winners and losers of the groups that have both, and how many have not.
fn comparable(group_ids: &[u64], is_winner: &[bool]) -> (Vec<[Vec<usize>; 2]>, usize) {
    let mut groups: BTreeMap<u64, [Vec<usize>; 2]> = BTreeMap::new();
    for (i, (&id, &wins)) in group_ids.iter().zip(is_winner).enumerate() {
        groups.entry(id).or_default()[usize::from(!wins)].push(i);
    }
    let all = groups.len();
    let kept: Vec<_> = groups.into_values().filter(|[w, l]| !w.is_empty() && !l.is_empty()).collect();
    let skipped = all - kept.len();
    (kept, skipped)
}

impl Gepo {
    /// Preference and variance of every group.
    ///
    /// # Errors
    /// Lengths or shapes that differ.
    pub fn groups(&self, texts: &PreferenceTexts) -> Result<GepoGroups> {
        let (m, mask) = (texts.mask.rows, texts.mask);
        for (name, got) in
            [("pref_group_ids", texts.group_ids.len()), ("pref_is_winner", texts.is_winner.len())]
        {
            if got != m {
                return Err(Error::Shape { name, got: vec![got], expected: format!("[{m}], one per text") });
            }
        }
        for (name, x) in [("pref_log_probs", texts.log_probs), ("pref_ref_log_probs", texts.ref_log_probs)] {
            if x.dims() != [m, mask.cols] {
                let expected = format!("[{m}, {}], like the mask", mask.cols);
                return Err(Error::Shape { name, got: x.dims().to_vec(), expected });
            }
        }
        let ratio = (keep_where(texts.log_probs, mask)? - keep_where(&texts.ref_log_probs.detach(), mask)?)?;
        let mut rhat = ratio.sum_keepdim(1)?; // [M, 1]
        if self.per_token {
            let per: Vec<f64> = mask.row_sums().iter().map(|&n| 1.0 / n.max(1.0)).collect();
            rhat = (rhat * matrix(m, 1, per, texts.log_probs)?)?;
        }
        let implicit_rewards = (rhat.detach() * self.beta)?.flatten_all()?;
        let (groups, skipped) = comparable(texts.group_ids, texts.is_winner);
        let n = groups.len();
        if n == 0 {
            return Ok(GepoGroups { implicit_rewards, preference: None, variance: None, groups: 0, skipped });
        }
        // Means as matrices, [G, M]; `spread` gives each winner its group's mean, [M, G].
        let (mut win, mut lose, mut spread) = (vec![0.0; n * m], vec![0.0; n * m], vec![0.0; m * n]);
        for (g, [winners, losers]) in groups.iter().enumerate() {
            winners.iter().for_each(|&i| win[g * m + i] = 1.0 / winners.len() as f64);
            losers.iter().for_each(|&i| lose[g * m + i] = 1.0 / losers.len() as f64);
            winners.iter().for_each(|&i| spread[i * n + g] = 1.0);
        }
        let win = matrix(n, m, win, &rhat)?;
        let mean = win.matmul(&rhat)?;
        let margin = (&mean - matrix(n, m, lose, &rhat)?.matmul(&rhat)?)?;
        let preference = log_sigmoid(&(margin * self.beta)?)?.neg()?.flatten_all()?;
        let away = (&rhat - matrix(m, n, spread, &rhat)?.matmul(&mean)?)?;
        let scale = match self.variance_of {
            VarianceOf::LogRatio => 1.0,
            VarianceOf::ScaledReward => self.beta * self.beta,
        };
        let variance = (win.matmul(&away.sqr()?)? * scale)?.flatten_all()?;
        Ok(GepoGroups {
            implicit_rewards,
            preference: Some(preference),
            variance: Some(variance),
            groups: n,
            skipped,
        })
    }

    /// Sum over groups of pref_g + lambda var_g over `count`, a scalar; `None` without a group.
    ///
    /// # Errors
    /// As [`Gepo::groups`].
    pub fn mean(&self, groups: &GepoGroups, count: usize) -> Result<Option<Tensor>> {
        let (Some(preference), Some(variance)) = (&groups.preference, &groups.variance) else {
            return Ok(None);
        };
        let sum = (preference + (variance * self.lambda)?)?.sum_all()?;
        Ok(Some((sum / count.max(1) as f64)?))
    }
}

fn matrix(rows: usize, cols: usize, values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    Table { rows, cols, values }.to_tensor(like)
}

/// The preference stream's rows of a batch, their ids and which win.
fn preference_rows(batch: &Batch) -> Result<(Vec<u32>, Vec<u64>, Vec<bool>)> {
    let (ids, wins) = (batch.ids(PREF_GROUP_IDS)?, batch.numbers(PREF_IS_WINNER)?);
    let rows: Vec<usize> =
        batch.numbers(PREF_ROWS)?.iter().enumerate().filter(|(_, p)| **p != 0.0).map(|(i, _)| i).collect();
    let chosen = |i: &usize| (ids[*i], wins[*i] != 0.0);
    let (ids, wins) = rows.iter().map(chosen).unzip();
    Ok((rows.iter().map(|&i| i as u32).collect(), ids, wins))
}

impl Block for Gepo {
    fn batch_wide(&self) -> Option<&'static str> {
        Some("all texts of a group must be in one micro-batch")
    }

    fn needs(&self) -> Vec<Input> {
        vec![PREF_LOG_PROBS, PREF_REF_LOG_PROBS, PREF_MASK, PREF_GROUP_IDS, PREF_IS_WINNER, PREF_ROWS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::Setting { name: "beta", got: self.beta, expected: "above 0" });
        }
        for (name, got) in [("coef", self.coef), ("lambda", self.lambda)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!(
            "{} group preference (beta {}, {} variance of the winners)",
            self.coef, self.beta, self.lambda
        )
    }
}

impl Kind for Gepo {
    const KIND: &'static str = "gepo";
}

impl Regularizer for Gepo {
    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let log_probs = batch.tensor(PREF_LOG_PROBS)?;
        let (rows, group_ids, is_winner) = preference_rows(batch)?;
        if rows.is_empty() {
            return Ok(Terms::Total(Tensor::zeros((), log_probs.dtype(), log_probs.device())?));
        }
        let rows = Tensor::from_vec(rows.clone(), rows.len(), log_probs.device())?;
        let pick = |x: Tensor| x.index_select(&rows, 0);
        let mask = Table::from_tensor(&pick(batch.tensor(PREF_MASK)?)?)?;
        let groups = self.groups(&PreferenceTexts {
            log_probs: &pick(log_probs.clone())?,
            ref_log_probs: &pick(batch.tensor(PREF_REF_LOG_PROBS)?)?,
            mask: &mask,
            group_ids: &group_ids,
            is_winner: &is_winner,
        })?;
        // The whole batch's count, where it is known, lets micro-batches add up.
        let count = state.get::<Option<usize>>(Self::KIND)?.unwrap_or(groups.groups);
        Ok(Terms::Total(match self.mean(&groups, count)? {
            Some(mean) => (mean * self.coef)?,
            None => groups.implicit_rewards.zeros_like()?.sum_all()?,
        }))
    }

    fn prepare(&self, batch: &Batch, _signals: &Signals, state: &mut State) -> Result<()> {
        let (_, ids, wins) = preference_rows(batch)?;
        state.set(Self::KIND, &Some(comparable(&ids, &wins).0.len()))
    }
}

/// 1 when a translation has the right format, compiles and passes every test, else 0.
pub fn unit_test_reward(format: bool, compiles: bool, passed: usize, tests: usize) -> f64 {
    f64::from(u8::from(format && compiles && tests > 0 && passed == tests))
}

/// Rows of both streams in one batch: a rollout's row is padded with an empty text and the other way round.
///
/// `rollouts` holds the on-policy inputs of N rows; `pref_*` are those of M texts of up to L tokens. Numbers of the
/// rollouts' inputs are continued with 0.
///
/// # Errors
/// Shapes that differ.
pub fn join_streams(rollouts: Streams, texts: &PreferenceTexts) -> Result<Batch> {
    let (n, m) = (rollouts.mask.rows, texts.mask.rows);
    let grow =
        |x: &Tensor, above: usize, below: usize| -> Result<Tensor> { Ok(x.pad_with_zeros(0, above, below)?) };
    let mut values = rollouts.mask.values.clone();
    values.resize((n + m) * rollouts.mask.cols, 0.0);
    let mask = Table { rows: n + m, cols: rollouts.mask.cols, values };
    let mut rewards = rollouts.rewards.to_vec();
    rewards.resize(n + m, 0.0);
    let behind = |x: Vec<f64>| [vec![0.0; n], x].concat();
    let pref_mask = grow(&texts.mask.to_tensor(texts.log_probs)?, n, 0)?;
    Batch::new(mask)
        .with(LOG_PROBS, grow(rollouts.log_probs, 0, m)?)?
        .with(crate::batch::OLD_LOG_PROBS, grow(rollouts.old_log_probs, 0, m)?)?
        .with(crate::batch::REWARDS, rewards)?
        .with(PREF_LOG_PROBS, grow(texts.log_probs, n, 0)?)?
        .with(PREF_REF_LOG_PROBS, grow(texts.ref_log_probs, n, 0)?)?
        .with(PREF_MASK, pref_mask)?
        .with(PREF_GROUP_IDS, [vec![0; n], texts.group_ids.to_vec()].concat())?
        .with(PREF_IS_WINNER, behind(texts.is_winner.iter().map(|&w| f64::from(u8::from(w))).collect()))?
        .with(PREF_ROWS, behind(vec![1.0; m]))
}

/// The on-policy stream: tensors [N, T], rewards [N].
pub struct Streams<'a> {
    /// With gradient.
    pub log_probs: &'a Tensor,
    /// Under the policy that sampled.
    pub old_log_probs: &'a Tensor,
    /// Which tokens count.
    pub mask: &'a Table,
    /// Outcomes.
    pub rewards: &'a [f64],
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device, Var};
    use proptest::prelude::*;

    use super::*;

    fn numbers(seed: usize, n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f64 / 500.0 - 2.2).collect()
    }

    fn tensor(seed: usize, rows: usize, cols: usize) -> Tensor {
        Tensor::from_vec(numbers(seed, rows * cols), (rows, cols), &Device::Cpu).unwrap()
    }

    fn ones(rows: usize, cols: usize) -> Table {
        Table { rows, cols, values: vec![1.0; rows * cols] }
    }

    #[test]
    fn at_the_reference_the_loss_is_log_two_and_the_gradient_is_right() {
        let p = Var::from_tensor(&tensor(0, 2, 3)).unwrap();
        let texts = PreferenceTexts {
            log_probs: p.as_tensor(),
            ref_log_probs: &tensor(0, 2, 3),
            mask: &ones(2, 3),
            group_ids: &[4, 4],
            is_winner: &[true, false],
        };
        let gepo = Gepo::default();
        let loss = gepo.mean(&gepo.groups(&texts).unwrap(), 1).unwrap().unwrap();
        assert!((loss.to_scalar::<f64>().unwrap() - 2f64.ln()).abs() < 1e-15);
        let grads = loss.backward().unwrap();
        let grad = Table::from_tensor(grads.get(p.as_tensor()).unwrap()).unwrap();
        assert_eq!(grad.values, [-0.05, -0.05, -0.05, 0.05, 0.05, 0.05]);
    }

    #[test]
    fn groups_in_micro_batches_add_up_and_lone_sides_are_left_out() {
        let (p, q) =
            (Var::from_tensor(&tensor(1, 3, 4)).unwrap(), Var::from_tensor(&tensor(2, 6, 5)).unwrap());
        let mut mask = ones(6, 5);
        mask.values[12..15].fill(0.0);
        let mut reference = numbers(3, 30);
        reference[12..15].fill(f64::NEG_INFINITY);
        let reference = Tensor::from_vec(reference, (6, 5), &Device::Cpu).unwrap();
        let batch = join_streams(
            Streams {
                log_probs: p.as_tensor(),
                old_log_probs: &tensor(4, 3, 4),
                mask: &ones(3, 4),
                rewards: &[1.0, 0.0, 1.0],
            },
            &PreferenceTexts {
                log_probs: q.as_tensor(),
                ref_log_probs: &reference,
                mask: &mask,
                group_ids: &[0, 0, 0, 1, 1, 2],
                is_winner: &[true, true, false, false, true, true],
            },
        )
        .unwrap();
        let objective = recipe().build().unwrap();
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state).unwrap();
        let whole = ready.batch.normaliser();
        let gradient = |rows: &[usize]| {
            let (b, s) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let grads = objective.loss(&b, &s, &whole, &state).unwrap().loss.backward().unwrap();
            let of = |v: &Var| {
                let zeros = || v.as_tensor().zeros_like().unwrap();
                Table::from_tensor(&grads.get(v.as_tensor()).cloned().unwrap_or_else(zeros)).unwrap().values
            };
            [of(&p), of(&q)].concat()
        };
        let all = gradient(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(all.iter().all(|g| g.is_finite()));
        assert!(all[..12].iter().any(|g| *g != 0.0) && all[12..].iter().any(|g| *g != 0.0));
        assert_eq!(all[12 + 25..], [0.0; 5], "a winner without losers");
        let (a, b) = (gradient(&[0, 3, 4, 5]), gradient(&[1, 2, 6, 7, 8]));
        let c = gradient(&[0]);
        for (i, all) in all.iter().enumerate() {
            assert!((all - a[i] - b[i]).abs() < 1e-12, "{i}");
            assert!(c[i].is_finite());
        }
    }

    #[test]
    fn equal_rewards_have_no_advantage() {
        for r in [0.7, 1.0, 0.0] {
            let batch = Batch::new(ones(3, 3)).with(crate::batch::REWARDS, vec![r; 3]).unwrap();
            let a = WhitenedReturns::default().advantages(&batch, &mut State::default()).unwrap();
            assert_eq!(a.values, [0.0; 9]);
        }
        let empty = Batch::new(ones(2, 2).filled(0.0)).with(crate::batch::REWARDS, vec![1.0, 0.0]).unwrap();
        let a = WhitenedReturns::default().advantages(&empty, &mut State::default()).unwrap();
        assert_eq!(a.values, [0.0; 4]);
    }

    #[test]
    fn rewards_of_tests() {
        assert_eq!(unit_test_reward(true, true, 3, 3), 1.0);
        assert_eq!(unit_test_reward(true, true, 2, 3), 0.0);
        assert_eq!(unit_test_reward(true, true, 0, 0), 0.0);
        assert_eq!(unit_test_reward(false, true, 3, 3), 0.0);
    }

    proptest! {
        #[test]
        fn only_differences_of_log_ratios_matter(
            shift in -3.0f64..3.0, wins in proptest::collection::vec(any::<bool>(), 6),
        ) {
            let ids = [0, 1, 0, 1, 0, 1];
            let (p, r) = (tensor(1, 6, 1), tensor(2, 6, 1));
            let run = |shift: f64| {
                let moved = (&p + shift).unwrap();
                let texts = PreferenceTexts {
                    log_probs: &moved, ref_log_probs: &r, mask: &ones(6, 1), group_ids: &ids, is_winner: &wins,
                };
                let gepo = Gepo::default();
                let groups = gepo.groups(&texts).unwrap();
                let mean = gepo.mean(&groups, groups.groups).unwrap();
                let mean = mean.map(|x| x.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap());
                (groups.groups + groups.skipped, mean)
            };
            let (a, b) = (run(0.0), run(shift));
            prop_assert_eq!((a.0, b.0), (2, 2));
            prop_assert_eq!(a.1.is_some(), b.1.is_some());
            if let (Some(a), Some(b)) = (a.1, b.1) {
                prop_assert!((a - b).abs() < 1e-9);
            }
        }
    }
}
