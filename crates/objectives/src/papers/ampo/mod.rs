//! AMPO: Adaptive Multi-Guidance Policy Optimization, "More Than One Teacher" (arXiv 2510.02227).
//!
//! Base: Dr.GRPO-style GRPO in the mixed-policy line of LUFFY. New: a pool holds right answers of several teachers
//! per question. Only where ALL on-policy answers fail, k of them are replaced by teachers' answers: those that the
//! student understands best, i.e. after whose reasoning it gives the true answer the highest probability.
//!
//! ```text
//! reward       (1 - c) correct + c format, c = 0.1; success is a reward above c + 0.5; a teacher's is raised to 1
//! comprehension S_j = mean over the true answer's tokens of p;   score_j = (1 - c) max(S_j, 0) + c format_j
//! injection    best k scores; k random rows of the failing group, each takes a teacher (see `guidance`)
//! advantage    a_i = r_i - mean of the group, teachers included                 (no division; [`MixedGroup`])
//! own tokens   max(-A rho, -A clip(rho, 1 - 0.2, 1 + 0.2)); where A < 0 at most -10 A; log-ratio within +-20
//! teachers'    -A f(p), p = exp(log_prob), f(p) = p / (p + 0.1)                 (no ratio, no clipping)
//! loss         sum over all tokens / T  - 0.001 token-mean entropy
//! ```
//!
//! f's gradient with respect to the log-probability is 0.1 p / (p + 0.1)^2: it vanishes at p near 1, is largest
//! (0.25) at p = 0.1 and never explodes. `teacher_mask` [B, T] is 1 on all response tokens of injected rows,
//! `old_log_probs` come from the current model for the mixed batch. Groups without teachers stay all-failed, A = 0.
//!
//! Source: SII-Enigma/AMPO. The code is followed: sum over T without the number of sequences (so the step grows with
//! the batch; [`Aggregation::SeqMeanTokenSumNorm`] under one normaliser for all micro-batches, where the authors
//! rescale per micro-batch). Options of the code that are off by default: statistics of on-policy rows only
//! (`grpo_split`), division by the spread, other shapes f, bounds of f, a teacher's own probability as denominator.
//! The authors' two implementations of the teachers' loss ("seq", "token") differ in logged numbers only.

mod guidance;

pub use guidance::{
    Comprehension, Guidance, Injection, Rounding, Strategy, best_k, comprehension, injected_rows,
    selection_score,
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::members;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, LOG_PROBS, OLD_LOG_PROBS, OUTCOMES, Signals};
use crate::block::{Advantage, Block, BlockKind, Kind, Surrogate, SurrogateLoss};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::regularizer::EntropyBonus;
use crate::state::State;
use crate::surrogate::{ClipOutcome, ClippedRatio};
use crate::table::Table;

/// 1 on the response tokens that a teacher wrote.
pub const TEACHER_MASK: Input = Input::new("teacher_mask", "[B, T]", "1 on tokens that a teacher wrote");
/// Probability of every token under the teacher that wrote it.
pub const TEACHER_PROBS: Input =
    Input::new("teacher_probs", "[B, T]", "probability of the tokens under the teacher that wrote them");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "ampo",
    title: "More Than One Teacher: Adaptive Multi-Guidance Policy Optimization for Diverse Exploration",
    arxiv: "2510.02227",
    summary: "Groups that fail as a whole learn from the teachers whose reasoning the student understands best.",
    blocks: &[BlockKind::advantage::<MixedGroup>(), BlockKind::surrogate::<MixedPolicy>()],
    recipe,
    vectors: Some(("ampo.json", 9)),
    end_to_end: None,
};

/// Centred rewards of mixed groups, clipped own tokens and shaped teachers' tokens, sum over T, entropy bonus.
pub fn recipe() -> Composition {
    Composition::new(&MixedPolicy::default(), Aggregation::SeqMeanTokenSumNorm)
        .advantage(&MixedGroup::default())
        .regularizer(&EntropyBonus { coef: 0.001, aggregation: Some(Aggregation::TokenMean) })
}

/// Whose rewards make a group's baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Everybody's, teachers included: the published runs.
    #[default]
    All,
    /// The on-policy rows' (`grpo_split`).
    OnPolicy,
}

/// Group advantages of batches that hold teachers' answers. A row is a teacher's if any of its tokens is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixedGroup {
    /// Whose rewards make mean and spread.
    pub baseline: Baseline,
    /// Divide by the unbiased standard deviation plus epsilon.
    pub by_spread: bool,
    /// Added to the spread, 0 or more.
    pub epsilon: f64,
    /// Factor on teachers' advantages.
    pub teacher_weight: f64,
    /// Factor on all others.
    pub own_weight: f64,
}

impl Default for MixedGroup {
    fn default() -> Self {
        Self {
            baseline: Baseline::All,
            by_spread: false,
            epsilon: 1e-6,
            teacher_weight: 1.0,
            own_weight: 1.0,
        }
    }
}

impl MixedGroup {
    /// Advantage of every row, [B]. `rewards`, `group_ids` and `is_teacher` [B]. A single row that makes the baseline
    /// has mean 0 and spread 1, as in GRPO; nobody at all leaves the group at 0.
    ///
    /// # Errors
    /// Lengths differ, a reward that is not finite.
    pub fn per_row(&self, rewards: &[f64], group_ids: &[u64], is_teacher: &[bool]) -> Result<Vec<f64>> {
        for (name, got) in [("group_ids", group_ids.len()), ("is_teacher", is_teacher.len())] {
            if got != rewards.len() {
                let expected = format!("[{}], like `rewards`", rewards.len());
                return Err(Error::Shape { name, got: vec![got], expected });
            }
        }
        if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
            return Err(Error::NotFinite { name: "rewards", index, got: rewards[index] });
        }
        let mut out = vec![0.0; rewards.len()];
        for index in members(group_ids).values() {
            let counts = |i: &&usize| self.baseline == Baseline::All || !is_teacher[**i];
            let base: Vec<f64> = index.iter().filter(counts).map(|&i| rewards[i]).collect();
            let equal = base.iter().all(|x| Some(x) == base.first());
            let n = base.len() as f64;
            let (mean, spread) = match base[..] {
                [] => continue,
                [_] => (0.0, 1.0),
                [first, ..] if equal => (first, 1.0), // a spread of 0 is replaced by 1
                _ => {
                    let mean = base.iter().sum::<f64>() / n;
                    let squares: f64 = base.iter().map(|x| (x - mean) * (x - mean)).sum();
                    (mean, (squares / (n - 1.0)).sqrt())
                }
            };
            let by = if self.by_spread { spread + self.epsilon } else { 1.0 };
            for &i in index {
                let weight = if is_teacher[i] { self.teacher_weight } else { self.own_weight };
                out[i] = (rewards[i] - mean) / by * weight;
            }
        }
        Ok(out)
    }
}

/// Which rows a teacher wrote.
pub fn teacher_rows(teacher_mask: &Table) -> Vec<bool> {
    (0..teacher_mask.rows).map(|i| teacher_mask.row(i).iter().any(|&m| m != 0.0)).collect()
}

impl Block for MixedGroup {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS, TEACHER_MASK]
    }

    fn validate(&self) -> Result<()> {
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" });
        }
        for (name, got) in [("teacher_weight", self.teacher_weight), ("own_weight", self.own_weight)] {
            if !got.is_finite() {
                return Err(Error::Setting { name, got, expected: "a finite number" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let whose = if self.baseline == Baseline::All { "everybody" } else { "on-policy rows" };
        let by = if self.by_spread { ", divided by the spread" } else { "" };
        format!("group: R - mean of {whose}{by}")
    }
}

impl Kind for MixedGroup {
    const KIND: &'static str = "mixed_group";
}

impl Advantage for MixedGroup {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let teachers = teacher_rows(&batch.table(TEACHER_MASK)?);
        Table::broadcast(&self.per_row(&batch.outcomes()?, batch.ids(GROUP_IDS)?, &teachers)?, batch.mask())
    }
}

/// What becomes of a teacher's token's probability p in the loss -A f(p).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reshape {
    /// p
    NoReshape,
    /// p / (p + 0.1)
    #[default]
    #[serde(rename = "p_div_p_0.1")]
    Tenth,
    /// p / (p + 0.3)
    #[serde(rename = "p_div_p_0.3")]
    ThreeTenths,
    /// p / (p + 0.5)
    #[serde(rename = "p_div_p_0.5")]
    Half,
    /// sqrt(p)
    SquareRoot,
    /// p^e
    Pow,
    /// w ln p
    Logp,
    /// w ln p + p
    PLogp,
}

/// The loss of batches that hold teachers' answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixedPolicy {
    /// Own ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Own ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
    /// For negative advantages an own token's loss never exceeds -A times this, > 1; 0 turns dual clip off.
    pub dual_clip: f64,
    /// Own log-ratios are cut to +- this, more than 0 and at most 20.
    pub log_ratio_clamp: f64,
    /// Shape f of teachers' tokens.
    pub reshape: Reshape,
    /// w of the shapes with ln p.
    pub reshape_weight: f64,
    /// e of the shape p^e.
    pub reshape_power: f64,
    /// Largest f; -1 for none.
    pub max_clip: f64,
    /// Smallest f; -1 for none.
    pub min_clip: f64,
    /// Divide p by the teacher's own probability plus 1e-6 in place of the shape.
    pub teacher_probs: bool,
}

impl Default for MixedPolicy {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 10.0,
            log_ratio_clamp: 20.0,
            reshape: Reshape::Tenth,
            reshape_weight: 1.0,
            reshape_power: 0.5,
            max_clip: -1.0,
            min_clip: -1.0,
            teacher_probs: false,
        }
    }
}

impl MixedPolicy {
    fn ratio(&self) -> ClippedRatio {
        let dual_clip = Some(self.dual_clip).filter(|&c| c != 0.0);
        ClippedRatio { clip_low: self.clip_low, clip_high: self.clip_high, dual_clip }
    }

    /// Clipped loss of every token as if it were the policy's own. All inputs [B, T].
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn own(&self, log_probs: &Tensor, old: &Tensor, advantages: &Tensor) -> Result<ClipOutcome> {
        let old = old.detach();
        let d = clamp(&(log_probs - &old)?, -self.log_ratio_clamp, self.log_ratio_clamp)?;
        self.ratio().loss(&(&old + d)?, &old, advantages)
    }

    /// f(p) of every token as if a teacher had written it, [B, T] with gradient through `log_probs`. `teacher_probs`
    /// takes the place of the shape where it is given.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn shaped(&self, log_probs: &Tensor, teacher_probs: Option<&Tensor>) -> Result<Tensor> {
        let p = log_probs.exp()?;
        let over = |by: f64| -> Result<Tensor> { Ok((&p / (&p + by)?)?) };
        let f = match (teacher_probs, self.reshape) {
            (Some(q), _) => (&p / (q.detach() + 1e-6)?)?,
            (None, Reshape::NoReshape) => p,
            (None, Reshape::Tenth) => over(0.1)?,
            (None, Reshape::ThreeTenths) => over(0.3)?,
            (None, Reshape::Half) => over(0.5)?,
            (None, Reshape::SquareRoot) => (log_probs * 0.5)?.exp()?,
            (None, Reshape::Pow) => (log_probs * self.reshape_power)?.exp()?,
            (None, Reshape::Logp) => (log_probs * self.reshape_weight)?,
            (None, Reshape::PLogp) => ((log_probs * self.reshape_weight)? + p)?,
        };
        let bound = |x: f64, none: f64| if x == -1.0 { none } else { x };
        let f = clamp(&f, f64::NEG_INFINITY, bound(self.max_clip, f64::INFINITY))?;
        clamp(&f, bound(self.min_clip, f64::NEG_INFINITY), f64::INFINITY)
    }
}

impl Block for MixedPolicy {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![LOG_PROBS, OLD_LOG_PROBS, TEACHER_MASK];
        needs.extend(self.teacher_probs.then_some(TEACHER_PROBS));
        needs
    }

    fn validate(&self) -> Result<()> {
        self.ratio().validate()?;
        if !(self.log_ratio_clamp > 0.0 && self.log_ratio_clamp <= 20.0) {
            let got = self.log_ratio_clamp;
            return Err(Error::Setting { name: "log_ratio_clamp", got, expected: "more than 0, at most 20" });
        }
        for (name, got) in [
            ("reshape_weight", self.reshape_weight),
            ("reshape_power", self.reshape_power),
            ("max_clip", self.max_clip),
            ("min_clip", self.min_clip),
        ] {
            if !got.is_finite() {
                return Err(Error::Setting { name, got, expected: "a finite number" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let shape = toml::Value::try_from(self.reshape).ok();
        let shape = shape.as_ref().and_then(toml::Value::as_str).unwrap_or("?").to_string();
        let shape = if self.teacher_probs { "p / teacher's p".into() } else { shape };
        format!("own tokens: {}; teachers' tokens: -A f(p), f {shape}", self.ratio().describe())
    }
}

impl Kind for MixedPolicy {
    const KIND: &'static str = "mixed_policy";
}

impl Surrogate for MixedPolicy {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let advantages = signals.advantages.to_tensor(&log_probs)?;
        let own = self.own(&log_probs, &batch.tensor(OLD_LOG_PROBS)?, &advantages)?;
        let probs = self.teacher_probs.then(|| batch.tensor(TEACHER_PROBS)).transpose()?;
        let teachers = (advantages.neg()? * self.shaped(&log_probs, probs.as_ref())?)?;
        let mask = batch.table(TEACHER_MASK)?;
        let flags: Vec<u8> = mask.values.iter().map(|&m| u8::from(m != 0.0)).collect();
        let flags = Tensor::from_vec(flags, (mask.rows, mask.cols), log_probs.device())?;
        let per_token = flags.where_cond(&teachers, &own.per_token)?;
        // A teacher's token is never clipped.
        let quiet = |x: &Tensor| -> Result<Tensor> { Ok(flags.where_cond(&x.zeros_like()?, x)?) };
        let (clipped, dual_clipped) = (quiet(&own.clipped)?, quiet(&own.dual_clipped)?);
        let mut out = ClipOutcome { per_token, clipped, dual_clipped, ..own }.into_loss()?;
        out.stats.push(("teacher_tokens", mask));
        Ok(out)
    }
}

/// The own tokens' loss as the authors log it, from its `per_token` values: the chosen aggregation over tokens that
/// are valid and not a teacher's. Their mean inside a sequence divides 0 by 0 for a row without such a token, and the
/// whole number is then logged as 0.
pub fn own_loss_logged(per_token: &Table, own: &Table, aggregation: Aggregation) -> f64 {
    let over = |sum: f64, n: f64| if n > 0.0 { sum / n } else { 0.0 };
    let sums: Vec<f64> = (0..own.rows)
        .map(|i| per_token.row(i).iter().zip(own.row(i)).filter(|(_, m)| **m != 0.0).map(|(x, _)| x).sum())
        .collect();
    let counts = own.row_sums();
    let total: f64 = sums.iter().sum();
    match aggregation {
        Aggregation::TokenMean => over(total, counts.iter().sum()),
        Aggregation::SeqMeanTokenSum => over(total, own.rows as f64),
        Aggregation::SeqMeanTokenMean if counts.contains(&0.0) => 0.0,
        Aggregation::SeqMeanTokenMean => {
            over(sums.iter().zip(&counts).map(|(s, n)| s / n).sum(), own.rows as f64)
        }
        Aggregation::SeqMeanTokenSumNorm => over(total, own.cols as f64),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::block::Terms;
    use candle_core::{DType, Device, Var};
    use proptest::prelude::*;

    #[test]
    fn two_teachers_in_a_group_of_eight() {
        let rewards = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let teachers = [true, true, false, false, false, false, false, false];
        let a = MixedGroup::default().per_row(&rewards, &[0; 8], &teachers).unwrap();
        assert_eq!((a[0], a[7]), (0.75, -0.25));
        let split = MixedGroup { baseline: Baseline::OnPolicy, by_spread: true, ..MixedGroup::default() };
        let b = split.per_row(&rewards, &[0; 8], &teachers).unwrap();
        assert!((b[0] - 1.0 / (1.0 + 1e-6)).abs() < 1e-15 && b[7] == 0.0, "{b:?}");
        assert_eq!(split.per_row(&[0.3, 0.7], &[0; 2], &[true; 2]).unwrap(), [0.0; 2]);
        assert!(split.per_row(&[0.3], &[0; 2], &[true]).unwrap_err().to_string().contains("group_ids"));
    }

    proptest! {
        /// d(-A f)/d(log p) = -A 0.1 p / (p + 0.1)^2; own tokens do not feel the teachers' shape.
        #[test]
        fn the_gradient_of_a_teachers_token(log_p in -8.0f64..0.0, a in -2.0f64..2.0, own in any::<bool>()) {
            let var = Var::new(&[[log_p, log_p]], &Device::Cpu).unwrap();
            let mask = Table { rows: 1, cols: 2, values: vec![1.0, 1.0] };
            let teacher = Table { values: vec![1.0, f64::from(u8::from(!own))], ..mask };
            let old = Tensor::new(&[[log_p, log_p]], &Device::Cpu).unwrap();
            let batch = Batch::new(mask.clone()).with(LOG_PROBS, var.as_tensor().clone()).unwrap();
            let batch = batch.with(OLD_LOG_PROBS, old).unwrap().with(TEACHER_MASK, teacher).unwrap();
            let signals = Signals::new(mask.filled(a));
            let loss = Surrogate::loss(&MixedPolicy::default(), &batch, &signals).unwrap();
            let Terms::Tokens(x) = loss.terms else { panic!("tokens") };
            let grads = x.sum_all().unwrap().backward().unwrap();
            let grad = grads.get(var.as_tensor()).unwrap().to_dtype(DType::F64).unwrap();
            let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let p = log_p.exp();
            let shaped = -a * 0.1 * p / (p + 0.1).powi(2);
            prop_assert!((grad[0] - shaped).abs() < 1e-12);
            let other = if own { -a } else { shaped };
            prop_assert!((grad[1] - other).abs() < 1e-12);
        }
    }
}
