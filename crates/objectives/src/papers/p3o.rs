//! P3O: Pairwise Proximal Policy Optimization (arXiv 2310.00212), "Pairwise Proximal Policy Optimization: Harnessing
//! Relative Feedback for LLM Alignment".
//!
//! Base: PPO on whole sequences. New: two answers per prompt, and only the DIFFERENCE of their rewards is used, so a
//! reward that is shifted per prompt trains the same policy. No critic. Against GRPO with two answers: the raw
//! difference, importance weights of whole sequences, and a clip on the difference of log-ratios:
//!
//! ```text
//! lr_i = sum_t (log p - log p_ref) of answer i [P]; old_lr_i likewise under the policy that sampled (constant)
//! q    = r1 - r2 - kl_coef (lr1 - lr2)              constant; CURRENT lr, so it changes between updates
//! w    = clamp(exp((lr1 - old_lr1) + (lr2 - old_lr2)), 1/cr, cr)                              constant
//! d    = lr1 - lr2,  d_old = old_lr1 - old_lr2
//! joint:           mean over pairs of max(-q w d, -q w clamp(d, d_old - eps, d_old + eps)) / 2
//! joint_per_token: the sum of the same maxima over the number of tokens of both answers, no / 2
//! token_wise:      W = -q w;  sum max(W lp1, W clamp(lp1, old1 +- eps)) + max(-W lp2, -W clamp(lp2, old2 +- eps))
//!                  over the number of tokens, per token and without the reference
//! separate:        rho_i = exp(lr_i - old_lr_i), c_i = clamp(rho_i, 1/cr, cr) constant;
//!                  mean [max(-q c2 rho1, -q c2 clamp(rho1, 1 +- eps)) + max(q c1 rho2, q c1 clamp(rho2, 1 +- eps))] / 2
//! ```
//!
//! Source: the first author's trlx forks. The paper's V2 is `joint`, its V1 `separate`; the released code also has the
//! two token forms, and its class default averages over tokens where its configurations and the paper do not: `joint`
//! is followed. A pair's reward difference is found by [`crate::pairs`]; rewards are divided by their running standard
//! deviation first ([`RunningScale`]).
//!
//! Degenerate: equal rewards and equal log-ratios give q = 0 and no gradient. `scale_q` divides by the deviation of q
//! over the pairs of the update (the micro-batch, as in the code); where there is none, q is 0. `joint_per_token` and
//! `token_wise` are token terms and want `token-mean`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, REWARDS, Signals};
use crate::block::{Block, BlockKind, Kind, Reward, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::pairs::{Pairs, row_sum_numbers, row_sums, tensor_like};
use crate::state::State;
use crate::surrogate::{clamp_between, larger};
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "p3o",
    title: "Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
    arxiv: "2310.00212",
    summary: "Two answers per prompt; the difference of their rewards moves the difference of their log-ratios.",
    blocks: &[BlockKind::surrogate::<PairwiseProximal>(), BlockKind::reward::<RunningScale>()],
    recipe,
    vectors: Some(("p3o.json", 12)),
    end_to_end: None,
};

/// Running reward scale, joint clipping.
pub fn recipe() -> Composition {
    Composition::new(&PairwiseProximal::default(), Aggregation::TokenMean).reward(&RunningScale::default())
}

/// Where the clip works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairClip {
    /// On the difference of log-ratios, mean over pairs: the paper's V2.
    #[default]
    Joint,
    /// The same, divided by the number of tokens.
    JointPerToken,
    /// On every token's log-probability.
    TokenWise,
    /// On each answer's ratio: the paper's V1.
    Separate,
}

/// P3O's loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairwiseProximal {
    /// Where the clip works.
    pub clip: PairClip,
    /// Penalty on the log-ratio to the reference inside q. HH 0.05, chat 0.01.
    pub kl_coef: f64,
    /// Half width of the clip: nats for log-ratios and log-probabilities, ratio for `separate`.
    pub clip_range: f64,
    /// Importance weights stay in 1/this..=this; 1 or more.
    pub clip_ratio: f64,
    /// Divide q by its standard deviation (n - 1) over the update's pairs.
    pub scale_q: bool,
}

impl Default for PairwiseProximal {
    fn default() -> Self {
        Self { clip: PairClip::Joint, kl_coef: 0.05, clip_range: 0.2, clip_ratio: 10.0, scale_q: false }
    }
}

/// The constants of an update, [P] each.
#[derive(Clone, Debug, PartialEq)]
pub struct PairConstants {
    /// Difference of KL-penalised rewards.
    pub q: Vec<f64>,
    /// Product of both importance ratios, before the clamp.
    pub ratio: Vec<f64>,
    /// The ratio of the first and of the second answer alone.
    pub ratios: [Vec<f64>; 2],
    /// Difference of the log-ratios to the reference under the policy that sampled.
    pub old_difference: Vec<f64>,
}

impl PairwiseProximal {
    /// What an update takes as given; no gradient.
    ///
    /// # Errors
    /// A missing input, a torn pair, rewards that are not finite.
    pub fn constants(&self, batch: &Batch, pairs: &Pairs) -> Result<PairConstants> {
        let sums = |input| -> Result<(Vec<f64>, Vec<f64>)> {
            pairs.split_numbers("log_probs", &row_sum_numbers(batch, input)?)
        };
        let ((now1, now2), (old1, old2)) = (sums(LOG_PROBS)?, sums(OLD_LOG_PROBS)?);
        let (ref1, ref2) = sums(REF_LOG_PROBS)?;
        let (r1, r2) = pairs.split_numbers("rewards", &batch.outcomes()?)?;
        let each = |f: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..pairs.len()).map(f).collect() };
        let mut q = each(&|i| r1[i] - r2[i] - self.kl_coef * ((now1[i] - ref1[i]) - (now2[i] - ref2[i])));
        if let Some(index) = q.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { name: "log_probs", index, got: q[index] });
        }
        if self.scale_q {
            let std = mean_std(&q).1;
            q.iter_mut().for_each(|q| *q = if std > 0.0 { *q / std } else { 0.0 });
        }
        Ok(PairConstants {
            q,
            ratio: each(&|i| ((now1[i] - old1[i]) + (now2[i] - old2[i])).exp()),
            ratios: [each(&|i| (now1[i] - old1[i]).exp()), each(&|i| (now2[i] - old2[i]).exp())],
            old_difference: each(&|i| (old1[i] - ref1[i]) - (old2[i] - ref2[i])),
        })
    }

    fn bounded(&self, ratio: &[f64]) -> Vec<f64> {
        ratio.iter().map(|r| r.max(1.0 / self.clip_ratio).min(self.clip_ratio)).collect()
    }

    /// -q w of every pair, [P].
    fn slopes(&self, c: &PairConstants) -> Vec<f64> {
        c.q.iter().zip(self.bounded(&c.ratio)).map(|(q, w)| -q * w).collect()
    }

    /// Maxima of the joint clip [P] with gradient, and where the clipped branch was strictly larger [P].
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn joint(&self, batch: &Batch, pairs: &Pairs, c: &PairConstants) -> Result<(Tensor, Vec<bool>)> {
        let (now1, now2) = pairs.split(&row_sums(batch, LOG_PROBS)?)?;
        let (ref1, ref2) = pairs.split(&row_sums(batch, REF_LOG_PROBS)?.detach())?;
        let d = ((now1 - ref1)? - (now2 - ref2)?)?;
        let old = tensor_like(&c.old_difference, &d)?;
        let slope = tensor_like(&self.slopes(c), &d)?;
        let inside = clamp_between(&d, &(&old - self.clip_range)?, &(&old + self.clip_range)?)?;
        self.worst(&(&slope * d)?, &(&slope * inside)?)
    }

    fn worst(&self, plain: &Tensor, clipped: &Tensor) -> Result<(Tensor, Vec<bool>)> {
        let cut: Vec<u8> = clipped.gt(plain)?.flatten_all()?.to_vec1()?;
        Ok((larger(plain, clipped)?, cut.into_iter().map(|c| c != 0).collect()))
    }

    fn joint_per_token(&self, per_pair: &Tensor, batch: &Batch, pairs: &Pairs) -> Result<Tensor> {
        let mask = batch.mask();
        let lengths = mask.row_sums();
        let share = |p: usize| 1.0 / (lengths[pairs.first[p]] + lengths[pairs.second[p]]).max(1.0);
        let shares: Vec<f64> = (0..pairs.len()).map(share).collect();
        let per_row = pairs.spread(&(per_pair * tensor_like(&shares, per_pair)?)?)?;
        Ok(mask.to_tensor(per_pair)?.broadcast_mul(&per_row.unsqueeze(1)?)?)
    }

    fn token_wise(&self, batch: &Batch, pairs: &Pairs, c: &PairConstants) -> Result<(Tensor, Vec<bool>)> {
        let (now, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?.detach());
        let slopes = self.slopes(c);
        let sign = |row: usize| if pairs.first[pairs.of_row[row]] == row { 1.0 } else { -1.0 };
        let per_row: Vec<f64> = (0..batch.rows()).map(|row| sign(row) * slopes[pairs.of_row[row]]).collect();
        let slope = Table::broadcast(&per_row, batch.mask())?.to_tensor(&now)?;
        let inside = clamp_between(&now, &(&old - self.clip_range)?, &(&old + self.clip_range)?)?;
        self.worst(&(&slope * now)?, &(&slope * inside)?)
    }

    fn separate(&self, batch: &Batch, pairs: &Pairs, c: &PairConstants) -> Result<(Tensor, Vec<bool>)> {
        let (now1, now2) = pairs.split(&row_sums(batch, LOG_PROBS)?)?;
        let (old1, old2) = pairs.split(&row_sums(batch, OLD_LOG_PROBS)?.detach())?;
        let side = |now: Tensor, old: Tensor, other: &[f64], sign: f64| {
            // Beyond exp(80) a ratio has no gradient; below that this changes nothing.
            let rho = clamp(&(now - old)?, -80.0, 80.0)?.exp()?;
            let slope: Vec<f64> = c.q.iter().zip(self.bounded(other)).map(|(q, w)| sign * q * w).collect();
            let slope = tensor_like(&slope, &rho)?;
            let inside = clamp(&rho, 1.0 - self.clip_range, 1.0 + self.clip_range)?;
            self.worst(&(&slope * rho)?, &(&slope * inside)?)
        };
        let (first, cut1) = side(now1, old1, &c.ratios[1], -1.0)?;
        let (second, cut2) = side(now2, old2, &c.ratios[0], 1.0)?;
        Ok(((first + second)?, cut1.iter().zip(&cut2).map(|(a, b)| *a || *b).collect()))
    }
}

/// Mean and standard deviation (n - 1; 0 for fewer than two).
pub fn mean_std(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    if x.is_empty() {
        return (0.0, 0.0);
    }
    let mean = x.iter().sum::<f64>() / n;
    if x.iter().all(|v| *v == x[0]) {
        return (mean, 0.0);
    }
    (mean, (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)).sqrt())
}

impl Block for PairwiseProximal {
    fn batch_wide(&self) -> Option<&'static str> {
        self.scale_q.then_some("q is divided by its deviation over the update's pairs")
    }

    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !self.kl_coef.is_finite() {
            return wrong("kl_coef", self.kl_coef, "a finite number");
        }
        if !(self.clip_range >= 0.0 && self.clip_range.is_finite()) {
            return wrong("clip_range", self.clip_range, "0 or more");
        }
        if !(self.clip_ratio >= 1.0 && self.clip_ratio.is_finite()) {
            return wrong("clip_ratio", self.clip_ratio, "1 or more");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let clip = match self.clip {
            PairClip::Joint => "log-ratio difference",
            PairClip::JointPerToken => "log-ratio difference, per token",
            PairClip::TokenWise => "token log-probabilities",
            PairClip::Separate => "separate ratios",
        };
        format!("pairwise proximal: {clip} within {} (KL {})", self.clip_range, self.kl_coef)
    }
}

impl Kind for PairwiseProximal {
    const KIND: &'static str = "pairwise_proximal";
}

impl Surrogate for PairwiseProximal {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        self.validate()?;
        let pairs = Pairs::of(batch)?;
        let c = self.constants(batch, &pairs)?;
        let (terms, cut) = match self.clip {
            PairClip::TokenWise => {
                let (per_token, cut) = self.token_wise(batch, &pairs, &c)?;
                let values = cut.iter().map(|&c| f64::from(u8::from(c))).collect();
                let cut = Table { values, ..*batch.mask() };
                return Ok(SurrogateLoss {
                    terms: Terms::Tokens(per_token),
                    stats: vec![("clip_frac", cut)],
                });
            }
            PairClip::Separate => {
                let (sum, cut) = self.separate(batch, &pairs, &c)?;
                (Terms::Pairs((sum * 0.5)?), cut)
            }
            PairClip::Joint => {
                let (worst, cut) = self.joint(batch, &pairs, &c)?;
                (Terms::Pairs((worst * 0.5)?), cut)
            }
            PairClip::JointPerToken => {
                let (worst, cut) = self.joint(batch, &pairs, &c)?;
                (Terms::Tokens(self.joint_per_token(&worst, batch, &pairs)?), cut)
            }
        };
        let rows: Vec<f64> = pairs.of_row.iter().map(|&p| f64::from(u8::from(cut[p]))).collect();
        Ok(SurrogateLoss { terms, stats: vec![("clip_frac", Table::broadcast(&rows, batch.mask())?)] })
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// Mean and variance of everything seen so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningMoments {
    /// Values seen.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// Their population variance.
    pub variance: f64,
}

impl Default for RunningMoments {
    fn default() -> Self {
        // The authors' beginning: a trace of a standard normal.
        Self { count: 1e-24, mean: 0.0, variance: 1.0 }
    }
}

impl RunningMoments {
    /// Takes in a batch; an empty one changes nothing.
    pub fn update(&mut self, x: &[f64]) {
        if x.is_empty() {
            return;
        }
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let squares: f64 = x.iter().map(|v| (v - mean) * (v - mean)).sum();
        let (gap, total) = (mean - self.mean, self.count + n);
        let sum = squares + self.variance * self.count + gap * gap * self.count * n / total;
        self.mean += gap * n / total;
        self.variance = sum / total;
        self.count = total;
    }

    /// sqrt(variance n / (n - 1)); 1 before there are two values.
    pub fn std(&self) -> f64 {
        if self.count > 1.0 { (self.variance * self.count / (self.count - 1.0)).sqrt() } else { 1.0 }
    }
}

/// Clips rewards and divides them by the standard deviation of all clipped rewards so far; no shift.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunningScale {
    /// Rewards beyond +- this are clipped first; 0 turns clipping off.
    pub clip: f64,
}

impl Default for RunningScale {
    fn default() -> Self {
        Self { clip: 10.0 }
    }
}

impl RunningScale {
    /// Scaled rewards; the moments take the batch in first.
    pub fn scale(&self, rewards: &[f64], moments: &mut RunningMoments) -> Vec<f64> {
        let clipped: Vec<f64> = rewards
            .iter()
            .map(|&r| if self.clip > 0.0 { r.clamp(-self.clip, self.clip) } else { r })
            .collect();
        moments.update(&clipped);
        let std = moments.std();
        clipped.iter().map(|r| if std > 0.0 { r / std } else { *r }).collect()
    }
}

impl Block for RunningScale {
    fn needs(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        if self.clip >= 0.0 && self.clip.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "clip", got: self.clip, expected: "0 (off) or more" })
    }

    fn describe(&self) -> String {
        format!("rewards within {}, divided by their running deviation", self.clip)
    }
}

impl Kind for RunningScale {
    const KIND: &'static str = "running_scale";
}

impl Reward for RunningScale {
    fn shape(&self, batch: &mut Batch, state: &mut State) -> Result<()> {
        let mut moments: RunningMoments = state.get(Self::KIND)?;
        let scaled = self.scale(&batch.outcomes()?, &mut moments);
        state.set(Self::KIND, &moments)?;
        batch.set(REWARDS, scaled)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::pairs::halves;

    fn run(block: PairwiseProximal, p: &[f64], rewards: &[f64], per_part: usize) -> (f64, Vec<f64>) {
        let shape = (rewards.len(), p.len() / rewards.len());
        let policy = Var::from_tensor(&Tensor::from_slice(p, shape, &Device::Cpu).unwrap()).unwrap();
        let near =
            |f: f64| Tensor::from_vec(p.iter().map(|x| x * f).collect::<Vec<_>>(), shape, &Device::Cpu);
        let mask = Table { rows: shape.0, cols: shape.1, values: vec![1.0; p.len()] };
        let batch = Batch::new(mask)
            .with(LOG_PROBS, policy.as_tensor().clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, near(0.97).unwrap()))
            .and_then(|b| b.with(REF_LOG_PROBS, near(1.1).unwrap()))
            .and_then(|b| b.with(REWARDS, rewards.to_vec()))
            .and_then(|b| b.with(PAIR_IDS, halves(rewards.len() / 2)))
            .unwrap();
        let objective = crate::Objective::new(block, Aggregation::TokenMean);
        let whole = batch.normaliser();
        let mut total = Tensor::new(0f64, &Device::Cpu).unwrap();
        for rows in Pairs::of(&batch).unwrap().parts(per_part) {
            let part = batch.select(&rows).unwrap();
            let signals = Signals::new(part.mask().filled(0.0));
            total =
                (total + objective.loss(&part, &signals, &whole, &State::default()).unwrap().loss).unwrap();
        }
        let grads = total.backward().unwrap();
        let grad = grads.get(policy.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (total.to_scalar().unwrap(), grad)
    }

    const CLIPS: [PairClip; 4] =
        [PairClip::Joint, PairClip::JointPerToken, PairClip::TokenWise, PairClip::Separate];

    proptest! {
        #[test]
        fn a_reward_shift_per_prompt_changes_nothing_and_neither_do_micro_batches(
            p in proptest::collection::vec(-2.0f64..0.0, 18),
            // Multiples of 1/8, so that shifted rewards have the same differences to the last bit.
            eighths in proptest::collection::vec(-16i32..16, 6),
            shift in proptest::collection::vec(-64i32..64, 3),
        ) {
            let rewards: Vec<f64> = eighths.iter().map(|&x| f64::from(x) / 8.0).collect();
            let moved: Vec<f64> = rewards.iter().enumerate().map(|(i, r)| r + f64::from(shift[i % 3])).collect();
            for clip in CLIPS {
                let block = PairwiseProximal { clip, ..PairwiseProximal::default() };
                let whole = run(block, &p, &rewards, 3);
                prop_assert_eq!(&whole, &run(block, &p, &moved, 3));
                let cut = run(block, &p, &rewards, 1);
                prop_assert!((whole.0 - cut.0).abs() < 1e-12);
                prop_assert!(whole.1.iter().zip(&cut.1).all(|(a, b)| (a - b).abs() < 1e-12));
            }
        }
    }

    #[test]
    fn equal_answers_teach_nothing() {
        let p = [-0.5, -1.0, -0.5, -1.0];
        for clip in CLIPS {
            for scale_q in [false, true] {
                let block = PairwiseProximal { clip, scale_q, ..PairwiseProximal::default() };
                let (loss, grad) = run(block, &p, &[1.0, 1.0], 1);
                assert_eq!(loss, 0.0);
                assert!(grad.iter().all(|&g| g == 0.0), "{clip:?} {grad:?}");
            }
        }
    }

    #[test]
    fn moments_are_those_of_everything_and_survive_json_to_the_bit() {
        let (a, b) = ([1.0, 4.0, 2.5], [0.1, -3.0, 8.0, 0.3]);
        let block = RunningScale { clip: 0.0 };
        let mut moments = RunningMoments::default();
        block.scale(&a, &mut moments);
        let mut state = State::default();
        state.set(RunningScale::KIND, &moments).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let mut back: RunningMoments =
            serde_json::from_str::<State>(&text).unwrap().get(RunningScale::KIND).unwrap();
        assert_eq!(block.scale(&b, &mut moments), block.scale(&b, &mut back));
        let (mean, std) = mean_std(&[a.as_slice(), &b].concat());
        assert!((moments.mean - mean).abs() < 1e-12 && (moments.std() - std).abs() < 1e-12);
    }
}
