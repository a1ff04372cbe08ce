//! RiskPO: Risk-based Policy Optimization (arXiv 2510.00911).
//!
//! Base: PPO's clipped ratio without KL. New: instead of the mean reward a mixture of the lower tail (CVaR) and of a
//! middle band (RVaR) of the reward's distribution. Rewards of 0 and 1 are too coarse for quantiles, so a few
//! questions are bundled, and the number that is solved is the variable; its quantiles are tracked over iterations.
//!
//! ```text
//! bundle: runs of `bundle_size` prompts; "paper" j takes answer j of each question (as many papers as the question
//!         with the fewest answers has);  R_j = sum of its rewards
//! thresholds qd, qu at levels a, b: of the bundle's papers (batch), tracked, or the mean of both (mix)
//! x = relu(R - qd) - relu(R - qu) + (qd - qu)                     the last term if `natural_baseline`
//! x = x/(b - a + eps)
//! c = -relu(qd - R)/(a + eps),  x = (w c + x)/(w + 1)              if `tail` is `averse`
//! x = (u relu(R - qu)/(1 - b + eps) + x)/(u + 1)                 if `tail` is `seeking` (ablation: entropy collapses)
//! x = x/(std of the bundle's papers + eps)                         if `norm_by_std`
//! credit to the paper's answers:
//!   uniform x;  score 0.5 x where right, 1.5 x where wrong
//!   std x/(std of the question + eps), with 1 for a std up to 1e-3
//!   sum_mean x d_k/sum d with d_k = r_k - mean of the question, x/K where |sum d| <= 1e-6
//! tracker, once after the advantages:
//!   first: q_l = quantile of all papers;  then q_l += lr (level_l - share of papers < q_l)
//! ```
//!
//! With `mean_baseline` the integrals over tracked quantiles of the band term and of the tail term are subtracted
//! before the divisions. Answers beyond the smallest group get 0. `rewards` [B], `group_ids` [B] (question);
//! consecutive questions form a bundle, so shuffle prompts. Loss: clip 0.2, dual clip 3, token mean; the paper
//! writes a ratio per sequence, `sequence_ratio`.
//!
//! Source: the authors' code (RTkenny/RiskPO), with the settings of its maths script. Where we differ: the released
//! trainer writes tracked quantiles where no later step can read them, so "track" and "mix" act like "batch" there;
//! here they are remembered. With tracking, a bundle whose papers are all equal divides by eps alone: deviations
//! below `min_std` count as 1, and advantages are limited to `max_advantage` (0 turns either off). The paper weights
//! the two pieces of the objective without dividing by their intervals, `normalise_by_interval = false`.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::members;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, LOG_PROBS, OLD_LOG_PROBS, OUTCOMES, Signals};
use crate::block::{Advantage, Block, BlockKind, Kind, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

mod tracker;
pub use tracker::{QuantileTracker, quantile};

/// Bundles of questions, where they are not runs of prompts.
pub const BUNDLE_IDS: Input = Input::new("bundle_ids", "[B]", "which questions are scored together");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "riskpo",
    title: "RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
    arxiv: "2510.00911",
    summary: "Advantages from the lower tail and the middle band of bundled rewards.",
    blocks: &[BlockKind::advantage::<MixedValueAtRisk>(), BlockKind::surrogate::<SequenceRatio>()],
    recipe,
    vectors: Some(("riskpo.json", 11)),
    end_to_end: None,
};

/// Mixed value-at-risk with tracked quantiles, clip 0.2 with dual clip 3, token mean.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean).advantage(&MixedValueAtRisk::default())
}

/// Where thresholds come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thresholds {
    /// The bundle's own papers.
    Batch,
    /// Tracked quantiles, once there are any.
    #[default]
    Track,
    /// The mean of both.
    Mix,
}

/// What stands beside the band.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// The lower tail, weight `tail_weight`.
    #[default]
    Averse,
    /// The upper tail, weight `upper_weight` (ablation).
    Seeking,
    /// Nothing.
    None,
}

/// How a paper's advantage reaches its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credit {
    /// The same for all.
    Uniform,
    /// Half for right answers, one and a half for wrong ones.
    Score,
    /// Over the question's deviation.
    #[default]
    Std,
    /// In proportion to the answer's distance from its question's mean: signs flip where the distances sum to little.
    #[serde(alias = "sum-mean")]
    SumMean,
}

/// What happens to a bundle with fewer than `bundle_size` questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Incomplete {
    /// It counts as it is: the authors' code.
    #[default]
    Keep,
    /// Its answers get 0 and its papers are not tracked.
    Drop,
    /// Its scores are scaled to a full bundle's.
    Rescale,
}

/// Advantages from the mixed value-at-risk of bundle scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixedValueAtRisk {
    /// Lower level a, 0 to `quantile_up`.
    pub quantile_down: f64,
    /// Upper level b, up to 1.
    pub quantile_up: f64,
    /// Questions of a bundle; 0 reads `bundle_ids` instead.
    pub bundle_size: usize,
    /// Bundles with fewer questions.
    pub incomplete: Incomplete,
    /// Where thresholds come from.
    pub thresholds: Thresholds,
    /// Which tail.
    pub tail: Tail,
    /// Weight of the lower tail, w.
    pub tail_weight: f64,
    /// Weight of the upper tail, u.
    pub upper_weight: f64,
    /// Add qd - qu to the band term, which makes every advantage negative or 0.
    pub natural_baseline: bool,
    /// The same in the tracked baseline.
    pub natural_baseline_tracked: bool,
    /// Subtract tracked means of band and tail.
    pub mean_baseline: bool,
    /// Divide band and tail by their intervals (code) or not (paper).
    pub normalise_by_interval: bool,
    /// Divide by the deviation of the bundle's papers.
    pub norm_by_std: bool,
    /// How answers share.
    pub credit: Credit,
    /// Added to every divisor.
    pub epsilon: f64,
    /// Deviations of papers below this count as 1; 0 as in the code.
    pub min_std: f64,
    /// Largest |advantage|; 0 for no limit, as in the code.
    pub max_advantage: f64,
    /// Step of the tracked quantiles.
    pub lr_q: f64,
    /// How many levels are tracked, evenly between 0 and 1 (19: 0.05 to 0.95).
    pub levels: usize,
}

impl Default for MixedValueAtRisk {
    fn default() -> Self {
        Self {
            quantile_down: 0.2,
            quantile_up: 0.9,
            bundle_size: 5,
            incomplete: Incomplete::Keep,
            thresholds: Thresholds::Track,
            tail: Tail::Averse,
            tail_weight: 1.5,
            upper_weight: 1.5,
            natural_baseline: true,
            natural_baseline_tracked: true,
            mean_baseline: false,
            normalise_by_interval: true,
            norm_by_std: true,
            credit: Credit::Std,
            epsilon: 1e-6,
            min_std: 1e-6,
            max_advantage: 10.0,
            lr_q: 0.1,
            levels: 19,
        }
    }
}

/// What earlier iterations say about the distribution of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tracked {
    /// Quantiles at the lower and upper level, once there are any.
    pub thresholds: Option<(f64, f64)>,
    /// Mean of the band term.
    pub band: f64,
    /// Mean of the tail term.
    pub tail: f64,
}

/// Advantages and the scores behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct BundleAdvantages {
    /// [B].
    pub advantages: Vec<f64>,
    /// Scores of every counted bundle's papers, in order of bundle id.
    pub scores: Vec<Vec<f64>>,
}

/// Bundles by runs of `size` questions, in the order in which they first appear in `group_ids` [B].
pub fn consecutive_bundles(group_ids: &[u64], size: usize) -> Vec<u64> {
    let mut places: BTreeMap<u64, usize> = BTreeMap::new();
    let mut place = |id: &u64| {
        let next = places.len();
        *places.entry(*id).or_insert(next)
    };
    group_ids.iter().map(|id| (place(id) / size.max(1)) as u64).collect()
}

/// Mean and unbiased deviation, 0 for equal values.
fn mean_std(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    if x.iter().all(|v| *v == x[0]) {
        return (mean, 0.0);
    }
    (mean, (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)).sqrt())
}

impl MixedValueAtRisk {
    /// Advantages of `rewards` [B] of questions `group_ids` [B] in bundles `bundle_ids` [B].
    ///
    /// # Errors
    /// Lengths that differ, a reward that is not finite.
    pub fn bundled(
        &self,
        rewards: &[f64],
        group_ids: &[u64],
        bundle_ids: &[u64],
        tracked: &Tracked,
    ) -> Result<BundleAdvantages> {
        for (name, got) in [("group_ids", group_ids.len()), ("bundle_ids", bundle_ids.len())] {
            if got != rewards.len() {
                let expected = format!("[{}], like `rewards`", rewards.len());
                return Err(Error::Shape { name, got: vec![got], expected });
            }
        }
        if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
            return Err(Error::NotFinite { name: "rewards", index, got: rewards[index] });
        }
        let mut out = BundleAdvantages { advantages: vec![0.0; rewards.len()], scores: Vec::new() };
        for rows in members(bundle_ids).into_values() {
            let mut questions: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
            for i in rows {
                questions.entry(group_ids[i]).or_default().push(i);
            }
            let questions: Vec<Vec<usize>> = questions.into_values().collect();
            let scale = match self.incomplete {
                _ if questions.len() >= self.bundle_size => 1.0,
                Incomplete::Keep => 1.0,
                Incomplete::Drop => continue,
                Incomplete::Rescale => self.bundle_size as f64 / questions.len() as f64,
            };
            let papers = questions.iter().map(Vec::len).min().unwrap_or(0);
            let score = |j: usize| scale * questions.iter().map(|q| rewards[q[j]]).sum::<f64>();
            let scores: Vec<f64> = (0..papers).map(score).collect();
            let values = self.paper_advantages(&scores, tracked);
            for (j, x) in values.into_iter().enumerate() {
                self.assign(x, j, &questions, rewards, &mut out.advantages);
            }
            out.scores.push(scores);
        }
        Ok(out)
    }

    /// x of every paper of a bundle.
    fn paper_advantages(&self, scores: &[f64], tracked: &Tracked) -> Vec<f64> {
        let own = (quantile(scores, self.quantile_down), quantile(scores, self.quantile_up));
        let (down, up) = match (self.thresholds, tracked.thresholds) {
            (Thresholds::Batch, _) | (_, None) => own,
            (Thresholds::Track, Some(tracked)) => tracked,
            (Thresholds::Mix, Some((down, up))) => ((down + own.0) / 2.0, (up + own.1) / 2.0),
        };
        let std = if scores.len() == 1 { 1.0 } else { mean_std(scores).1 };
        let std = if std < self.min_std { 1.0 } else { std };
        let over = |x: f64, interval: f64| {
            if self.normalise_by_interval { x / (interval + self.epsilon) } else { x }
        };
        let one = |&r: &f64| {
            let mut x = band(r, down, up, self.natural_baseline);
            if self.mean_baseline {
                x -= tracked.band;
            }
            x = over(x, self.quantile_up - self.quantile_down);
            match self.tail {
                Tail::Averse => {
                    let mut c = -(down - r).max(0.0);
                    if self.mean_baseline {
                        c -= tracked.tail;
                    }
                    let w = self.tail_weight;
                    x = (w * over(c, self.quantile_down) + x) / (w + 1.0);
                }
                Tail::Seeking => {
                    let (u, c) = (self.upper_weight, over((r - up).max(0.0), 1.0 - self.quantile_up));
                    x = (u * c + x) / (u + 1.0);
                }
                Tail::None => {}
            }
            if self.norm_by_std { x / (std + self.epsilon) } else { x }
        };
        scores.iter().map(one).collect()
    }

    /// The share of every answer of paper `j`.
    fn assign(&self, x: f64, j: usize, questions: &[Vec<usize>], rewards: &[f64], out: &mut [f64]) {
        let of = |question: &[usize]| mean_std(&question.iter().map(|&i| rewards[i]).collect::<Vec<_>>());
        let distances: f64 = match self.credit {
            Credit::SumMean => questions.iter().map(|q| rewards[q[j]] - of(q).0).sum(),
            _ => 0.0,
        };
        for question in questions {
            let i = question[j];
            let a = match self.credit {
                Credit::Uniform => x,
                Credit::Score => x * if rewards[i] > 0.0 { 0.5 } else { 1.5 },
                Credit::Std => {
                    let std = of(question).1;
                    x / (if std > 1e-3 { std } else { 1.0 } + self.epsilon)
                }
                Credit::SumMean if distances.abs() > 1e-6 => x * ((rewards[i] - of(question).0) / distances),
                Credit::SumMean => x / questions.len() as f64,
            };
            out[i] =
                if self.max_advantage > 0.0 { a.clamp(-self.max_advantage, self.max_advantage) } else { a };
        }
    }

    /// The tracker.
    ///
    /// # Errors
    /// [`Error::State`]: written by another version.
    pub fn tracker(state: &State) -> Result<QuantileTracker> {
        state.get(Self::KIND)
    }
}

/// relu(r - down) - relu(r - up), plus down - up with the natural baseline.
fn band(r: f64, down: f64, up: f64, natural: bool) -> f64 {
    let x = (r - down).max(0.0) - (r - up).max(0.0);
    if natural { x + down - up } else { x }
}

impl Block for MixedValueAtRisk {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![GROUP_IDS];
        needs.extend((self.bundle_size == 0).then_some(BUNDLE_IDS));
        needs
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(0.0..=1.0).contains(&self.quantile_up) {
            return wrong("quantile_up", self.quantile_up, "0 to 1");
        }
        if !(0.0..self.quantile_up).contains(&self.quantile_down) {
            return wrong("quantile_down", self.quantile_down, "0 or more and less than `quantile_up`");
        }
        for (name, got) in [
            ("tail_weight", self.tail_weight),
            ("upper_weight", self.upper_weight),
            ("min_std", self.min_std),
            ("max_advantage", self.max_advantage),
            ("lr_q", self.lr_q),
        ] {
            if !(got >= 0.0 && got.is_finite()) {
                return wrong(name, got, "0 or more");
            }
        }
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return wrong("epsilon", self.epsilon, "greater than 0");
        }
        if self.levels == 0 {
            return wrong("levels", 0.0, "1 or more");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let (a, b) = (self.quantile_down, self.quantile_up);
        let bundles = match self.bundle_size {
            0 => "given bundles".into(),
            n => format!("bundles of {n}"),
        };
        let tail = match self.tail {
            Tail::Averse => format!(" and {} times its lower tail", self.tail_weight),
            Tail::Seeking => format!(" and {} times its upper tail", self.upper_weight),
            Tail::None => String::new(),
        };
        format!("band [{a}, {b}] of scores of {bundles}{tail}")
    }
}

impl Kind for MixedValueAtRisk {
    const KIND: &'static str = "mixed_value_at_risk";
}

impl Advantage for MixedValueAtRisk {
    fn advantages(&self, batch: &Batch, state: &mut State) -> Result<Table> {
        let groups = batch.ids(GROUP_IDS)?;
        let bundles = match self.bundle_size {
            0 => batch.ids(BUNDLE_IDS)?.to_vec(),
            size => consecutive_bundles(groups, size),
        };
        let mut tracker = Self::tracker(state)?;
        let tracked = tracker.tracked(self);
        let out = self.bundled(&batch.outcomes()?, groups, &bundles, &tracked)?;
        tracker.step(&out.scores.concat(), self)?;
        state.set(Self::KIND, &tracker)?;
        Table::broadcast(&out.advantages, batch.mask())
    }
}

/// The clipped ratio of whole sequences: s = exp(sum of log-ratios), one loss per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SequenceRatio {
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; 0 turns dual clip off.
    pub dual_clip: f64,
    /// Divide the log-ratio by the sequence's length; the paper does not say.
    pub length_normalise: bool,
}

impl Default for SequenceRatio {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, dual_clip: 3.0, length_normalise: false }
    }
}

impl SequenceRatio {
    fn clip(&self) -> ClippedRatio {
        let dual_clip = Some(self.dual_clip).filter(|&c| c != 0.0);
        ClippedRatio { clip_low: self.clip_low, clip_high: self.clip_high, dual_clip }
    }
}

impl Block for SequenceRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        self.clip().validate()
    }

    fn describe(&self) -> String {
        let mean = if self.length_normalise { " per token" } else { "" };
        format!("{} of sequences{mean}", self.clip().describe())
    }
}

impl Kind for SequenceRatio {
    const KIND: &'static str = "sequence_ratio";
}

impl Surrogate for SequenceRatio {
    /// A sequence's advantage is the mean over its valid tokens; bounds of single tokens are not read.
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let mask = batch.mask();
        let log_probs = batch.tensor(LOG_PROBS)?;
        let lengths = mask.row_sums();
        let d = (&log_probs - batch.tensor(OLD_LOG_PROBS)?.detach())?;
        let d = (d * mask.to_tensor(&log_probs)?)?.sum(1)?;
        let rows = |x: &[f64]| -> Result<Tensor> {
            Ok(Tensor::from_slice(x, x.len(), log_probs.device())?.to_dtype(log_probs.dtype())?)
        };
        let d = if self.length_normalise {
            (d / rows(&lengths.iter().map(|l| l.max(1.0)).collect::<Vec<_>>())?)?
        } else {
            d
        };
        let mean = |i: usize| {
            let pairs = signals.advantages.row(i).iter().zip(mask.row(i));
            pairs.map(|(a, m)| a * m).sum::<f64>() / lengths[i].max(1.0)
        };
        let advantages = rows(&(0..mask.rows).map(mean).collect::<Vec<_>>())?;
        let edge = |x: f64| rows(&vec![x; mask.rows]);
        let (low, high) = (edge(1.0 - self.clip_low)?, edge(1.0 + self.clip_high)?);
        let out = self.clip().loss_of_log_ratio(&clamp(&d, -20.0, 20.0)?, &advantages, &low, &high)?;
        let spread = |x: &Tensor| -> Result<Table> {
            Table::broadcast(&x.to_dtype(candle_core::DType::F64)?.to_vec1()?, mask)
        };
        let stats = vec![
            ("clip_frac", spread(&out.clipped)?),
            ("clip_frac_lower", spread(&out.dual_clipped)?),
            ("approx_kl", spread(&out.neg_log_ratio)?),
        ];
        Ok(SurrogateLoss { terms: Terms::Sequences(out.per_token), stats })
    }
}

#[cfg(test)]
mod tests;
