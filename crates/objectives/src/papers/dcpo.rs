//! DCPO: Dynamic Clipping Policy Optimization (arXiv 2509.02333).
//!
//! Base: GRPO without KL and without dynamic sampling. Three replacements:
//!
//! ```text
//! SAS   smooth advantage standardisation: a prompt's rewards are standardised by this visit and by all its visits,
//!       and the two are blended. History (M0, S0, n) of the prompt, this visit's rewards x:
//!         mu = mean(x), sd = std(x)                                     unbiased
//!         M  = (M0 n + mu)/(n+1)                                        M = mu, S = sd on the first visit
//!         S  = sqrt((n S0^2 + sd^2 + n/(n+1) (mu - M0)^2)/(n+1))
//!         a_new = (x - mu)/sd, a_tot = (x - M)/S                        0 where the deviation is 0; no epsilon
//!         s1 = a_tot/v + (1 - 1/v) a_new,  s2 = a_new/v + (1 - 1/v) a_tot,  v = n + 1
//!         A  = s1 if |s1| < |s2| else s2
//! DAC   dynamic-adaptive clipping: bounds of |(r - 1) r q| <= eps, q = the token's probability when it was sampled
//!         low  = 0.5 + 0.5 sqrt(max(1 - 4 eps_low/q, 0))
//!         high = min(0.5 + 0.5 sqrt(1 + 4 eps_high/q), max(c, 10))
//! OTM   only-token mean: tokens are averaged inside a response, responses are summed:  sum_i (sum_t l_it / L_i)
//! ```
//!
//! A prompt whose answers are all equally good still teaches from its second visit on, through its history. Rewards
//! [B] are 1 (right), 0 (wrong), -1 (no answer); histories are kept by the stable `prompt_ids` [B].
//!
//! Source: the paper and the authors' code (lime-RL/DCPO). Where they differ: the code's later aggregation averages
//! over all tokens (`token-mean`); the paper's is the default here, divided by the number of responses
//! (`seq-mean-token-mean`) so that the learning rate does not depend on the batch. The constants are the paper's
//! (0.16 / 0.2; the released script has 0.2 / 0.28). The released script also never stores the histories, which
//! leaves GRPO without epsilon; here they are stored. The log-ratio is not limited to 20.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::members;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, LOG_PROBS, OLD_LOG_PROBS, OUTCOMES, PROMPT_IDS, Signals};
use crate::block::{Advantage, Block, BlockKind, Kind, Surrogate, SurrogateLoss, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "dcpo",
    title: "DCPO: Dynamic Clipping Policy Optimization",
    arxiv: "2509.02333",
    summary: "Clip bounds follow the token's probability; advantages remember the prompt's earlier visits.",
    blocks: &[
        BlockKind::advantage::<SmoothStandardised>(),
        BlockKind::bounds::<DynamicAdaptiveClip>(),
        BlockKind::surrogate::<RatioUnlimited>(),
    ],
    recipe,
    vectors: Some(("dcpo.json", 13)),
    end_to_end: None,
};

/// Smooth advantages, adaptive bounds, dual clip 10, the mean over responses of token means.
pub fn recipe() -> Composition {
    Composition::new(&RatioUnlimited::default(), Aggregation::SeqMeanTokenMean)
        .advantage(&SmoothStandardised::default())
        .bounds(&DynamicAdaptiveClip::default())
}

/// The paper's outcome reward: 1 for a right answer, 0 for a wrong one, -1 where no answer can be found.
pub fn outcome_reward(correct: Option<bool>) -> f64 {
    correct.map_or(-1.0, |right| f64::from(u8::from(right)))
}

/// Rewards of a prompt over all its visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Pooled mean.
    pub mean: f64,
    /// Pooled standard deviation.
    pub std: f64,
    /// How many visits.
    pub visits: u32,
}

/// Smooth advantage standardisation: see the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmoothStandardised {
    /// Whether deviations divide; otherwise both advantages are differences from the mean.
    pub norm_by_std: bool,
    /// Factor on the history's mean and deviation before pooling.
    pub history_coeff: f64,
    /// Deviations up to this count as 0. The paper has 0, which is safe for discrete rewards; use 1e-8 for others.
    pub min_std: f64,
}

impl Default for SmoothStandardised {
    fn default() -> Self {
        Self { norm_by_std: true, history_coeff: 1.0, min_std: 0.0 }
    }
}

impl SmoothStandardised {
    /// Advantages of one prompt's rewards [G] and its history after this visit. A lone answer has deviation 0 (an
    /// error in the authors' code).
    ///
    /// # Errors
    /// [`Error::TooFew`] without a reward.
    pub fn visit(&self, rewards: &[f64], before: &History) -> Result<(Vec<f64>, History)> {
        if rewards.is_empty() {
            return Err(Error::TooFew { what: "a visit", got: 0, needed: 1 });
        }
        let (mu, sd) = mean_std(rewards);
        let n = f64::from(before.visits);
        let v = n + 1.0;
        let (mean, std) = if before.visits == 0 {
            (mu, sd)
        } else {
            let (m0, s0) = (before.mean * self.history_coeff, before.std * self.history_coeff);
            let gap = mu - m0;
            // In this form equal means stay exactly equal.
            (m0 + gap / v, ((n * s0 * s0 + sd * sd + n / v * gap * gap) / v).sqrt())
        };
        let standardise = |x: f64, mean: f64, std: f64| match self.norm_by_std {
            false => x - mean,
            true if std > self.min_std => (x - mean) / std,
            true => 0.0,
        };
        let blend = |&x: &f64| {
            let (new, total) = (standardise(x, mu, sd), standardise(x, mean, std));
            let s1 = total / v + (1.0 - 1.0 / v) * new;
            let s2 = new / v + (1.0 - 1.0 / v) * total;
            if s1.abs() < s2.abs() { s1 } else { s2 }
        };
        let after = History { mean, std, visits: before.visits.saturating_add(1) };
        Ok((rewards.iter().map(blend).collect(), after))
    }

    /// The histories of all prompts, by prompt id.
    ///
    /// # Errors
    /// [`Error::State`]: written by another version.
    pub fn histories(state: &State) -> Result<BTreeMap<u64, History>> {
        state.get(Self::KIND)
    }

    /// Replaces the histories.
    ///
    /// # Errors
    /// [`Error::State`]: a number that is not finite.
    pub fn set_histories(state: &mut State, histories: &BTreeMap<u64, History>) -> Result<()> {
        state.set(Self::KIND, histories)
    }
}

/// Mean and unbiased deviation; exact for equal values, deviation 0 for a single one.
fn mean_std(x: &[f64]) -> (f64, f64) {
    if x.iter().all(|v| *v == x[0]) {
        return (x[0], 0.0);
    }
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    (mean, (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0)).sqrt())
}

impl Block for SmoothStandardised {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS, PROMPT_IDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(self.history_coeff >= 0.0 && self.history_coeff.is_finite()) {
            return wrong("history_coeff", self.history_coeff, "0 or more");
        }
        if !(self.min_std >= 0.0 && self.min_std.is_finite()) {
            return wrong("min_std", self.min_std, "0 or more");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let form = if self.norm_by_std { "(R - mean) / std" } else { "R - mean" };
        format!("group: {form}, blended with the prompt's history")
    }
}

impl Kind for SmoothStandardised {
    const KIND: &'static str = "smooth_standardised";
}

impl Advantage for SmoothStandardised {
    fn advantages(&self, batch: &Batch, state: &mut State) -> Result<Table> {
        let rewards = batch.outcomes()?;
        let (groups, prompts) = (batch.ids(GROUP_IDS)?, batch.ids(PROMPT_IDS)?);
        let mut histories = Self::histories(state)?;
        let mut out = vec![0.0; rewards.len()];
        for (group, index) in members(groups) {
            let prompt = prompts[index[0]];
            if let Some(&i) = index.iter().find(|&&i| prompts[i] != prompt) {
                let reason = format!("group {group} holds prompts {prompt} and {}", prompts[i]);
                return Err(Error::Invalid { what: "prompt_ids", reason });
            }
            let x: Vec<f64> = index.iter().map(|&i| rewards[i]).collect();
            let history = histories.entry(prompt).or_default();
            let (a, after) = self.visit(&x, history)?;
            *history = after;
            index.iter().zip(a).for_each(|(&i, a)| out[i] = a);
        }
        Self::set_histories(state, &histories)?;
        Table::broadcast(&out, batch.mask())
    }
}

/// Dynamic-adaptive clipping: bounds of the ratio from the token's old probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DynamicAdaptiveClip {
    /// Room below. 0 or more.
    pub eps_low: f64,
    /// Room above. 0 or more.
    pub eps_high: f64,
    /// The dual clip c: the upper bound never exceeds max(c, 10).
    pub clip_ratio_c: f64,
}

/// The upper bound may always reach this, however small c is.
const LEAST_CAP: f64 = 10.0;

impl Default for DynamicAdaptiveClip {
    fn default() -> Self {
        Self { eps_low: 0.16, eps_high: 0.2, clip_ratio_c: 10.0 }
    }
}

impl DynamicAdaptiveClip {
    /// Smallest and largest ratio of every token, [B, T] each, from `old_log_probs` [B, T]. A token of probability 0
    /// has the widest bounds: 0.5 and the cap.
    pub fn bounds(&self, old_log_probs: &Table) -> (Table, Table) {
        let cap = self.clip_ratio_c.max(LEAST_CAP);
        let edge = |f: &dyn Fn(f64) -> f64, impossible: f64| Table {
            values: old_log_probs
                .values
                .iter()
                .map(|log_q| Some(log_q.exp()).filter(|&q| q > 0.0).map_or(impossible, f))
                .collect(),
            ..*old_log_probs
        };
        let low = edge(&|q| 0.5 + 0.5 * (1.0 - 4.0 * self.eps_low / q).max(0.0).sqrt(), 0.5);
        let high = edge(&|q| (0.5 + 0.5 * (1.0 + 4.0 * self.eps_high / q).sqrt()).min(cap), cap);
        (low, high)
    }
}

impl Block for DynamicAdaptiveClip {
    fn needs(&self) -> Vec<Input> {
        vec![OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in
            [("eps_low", self.eps_low), ("eps_high", self.eps_high), ("clip_ratio_c", self.clip_ratio_c)]
        {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let cap = self.clip_ratio_c.max(LEAST_CAP);
        format!("|(r - 1) r q| within {} below and {} above, r at most {cap}", self.eps_low, self.eps_high)
    }
}

impl Kind for DynamicAdaptiveClip {
    const KIND: &'static str = "dynamic_adaptive_clip";
}

impl TokenRule for DynamicAdaptiveClip {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        signals.bounds = Some(self.bounds(&batch.table(OLD_LOG_PROBS)?));
        Ok(())
    }
}

/// The clipped ratio whose log-ratio has a limit of choice, or none, where verl's is 20.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RatioUnlimited {
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; 0 turns dual clip off.
    pub dual_clip: f64,
    /// A token whose |log-ratio| is larger has no gradient; 0 for no limit.
    pub log_ratio_limit: f64,
}

impl Default for RatioUnlimited {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.28, dual_clip: 10.0, log_ratio_limit: 0.0 }
    }
}

impl RatioUnlimited {
    fn clip(&self) -> ClippedRatio {
        let dual_clip = Some(self.dual_clip).filter(|&c| c != 0.0);
        ClippedRatio { clip_low: self.clip_low, clip_high: self.clip_high, dual_clip }
    }
}

impl Block for RatioUnlimited {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.log_ratio_limit >= 0.0 && self.log_ratio_limit.is_finite()) {
            let got = self.log_ratio_limit;
            return Err(Error::Setting { name: "log_ratio_limit", got, expected: "0 (none) or more" });
        }
        self.clip().validate()
    }

    fn describe(&self) -> String {
        match self.log_ratio_limit {
            0.0 => format!("{}, log-ratio without limit", self.clip().describe()),
            limit => format!("{}, |log-ratio| at most {limit}", self.clip().describe()),
        }
    }
}

impl Kind for RatioUnlimited {
    const KIND: &'static str = "ratio_unlimited";
}

impl Surrogate for RatioUnlimited {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        self.validate()?;
        let log_probs = batch.tensor(LOG_PROBS)?;
        let d = (&log_probs - batch.tensor(OLD_LOG_PROBS)?.detach())?;
        let d = match self.log_ratio_limit {
            // Beyond, exp overflows and its gradient is 0 times infinity. The clip makes the gradient 0 there anyway.
            0.0 => clamp(&d, f64::NEG_INFINITY, largest_log_ratio(d.dtype()))?,
            limit => clamp(&d, -limit, limit)?,
        };
        let advantages = signals.advantages.to_tensor(&log_probs)?;
        let (low, high) = match &signals.bounds {
            Some((low, high)) => (low.to_tensor(&log_probs)?, high.to_tensor(&log_probs)?),
            None => {
                let edge = |x: f64| -> Result<Tensor> { Ok((advantages.ones_like()? * x)?) };
                (edge(1.0 - self.clip_low)?, edge(1.0 + self.clip_high)?)
            }
        };
        self.clip().loss_of_log_ratio(&d, &advantages, &low, &high)?.into_loss()
    }

    fn uses_bounds(&self) -> bool {
        true
    }
}

/// A log-ratio whose exponential is safely finite, also times an advantage.
fn largest_log_ratio(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 600.0,
        DType::F16 => 8.0,
        _ => 60.0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch::REWARDS;
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    fn batch(rewards: Vec<f64>, prompt: u64) -> Batch {
        let n = rewards.len();
        Batch::new(Table::from_rows(&vec![vec![1.0]; n]).unwrap())
            .with(REWARDS, rewards)
            .unwrap()
            .with(GROUP_IDS, vec![0u64; n])
            .unwrap()
            .with(PROMPT_IDS, vec![prompt; n])
            .unwrap()
    }

    #[test]
    fn equal_rewards_teach_only_through_the_history() {
        let sas = SmoothStandardised::default();
        let (first, history) = sas.visit(&[0.9; 7], &History::default()).unwrap();
        assert_eq!(first, [0.0; 7]);
        let (again, history) = sas.visit(&[0.9; 7], &history).unwrap();
        assert_eq!(again, [0.0; 7]);
        let (worse, after) = sas.visit(&[0.1; 7], &history).unwrap();
        let a_tot = (0.1 - after.mean) / after.std;
        assert!(worse.iter().all(|a| *a < 0.0 && (a - a_tot / 3.0).abs() < 1e-12), "{worse:?}");
        assert_eq!(sas.visit(&[1.0], &History::default()).unwrap().0, [0.0]);
        assert!(sas.visit(&[], &History::default()).is_err());
    }

    #[test]
    fn a_checkpoint_between_two_visits_changes_no_bit() {
        let block = SmoothStandardised::default();
        let mut state = State::default();
        block.advantages(&batch(vec![0.1, 0.7, 0.3], 12), &mut state).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let mut restored: State = serde_json::from_str(&text).unwrap();
        let next = batch(vec![0.2, 0.2, 0.6], 12);
        let a = block.advantages(&next, &mut state).unwrap();
        let b = block.advantages(&next, &mut restored).unwrap();
        assert_eq!(a, b);
        assert_eq!(state, restored);
        assert_eq!(SmoothStandardised::histories(&state).unwrap()[&12].visits, 2);
    }

    #[test]
    fn a_group_of_two_prompts_is_refused() {
        let mixed = batch(vec![0.0, 1.0], 3).with(PROMPT_IDS, vec![3u64, 4]).unwrap();
        let error = SmoothStandardised::default().advantages(&mixed, &mut State::default()).unwrap_err();
        assert!(error.to_string().contains("prompts 3 and 4"), "{error}");
    }

    #[test]
    fn extreme_ratios_have_finite_losses_and_gradients() {
        let log_probs =
            Var::from_vec(vec![-1.0f32, -1.0, -1.0, f32::NEG_INFINITY], (2, 2), &Device::Cpu).unwrap();
        let old =
            Tensor::from_vec(vec![-500.0f32, f32::NEG_INFINITY, -500.0, -1.0], (2, 2), &Device::Cpu).unwrap();
        let mask = Table::from_rows(&[vec![1.0, 1.0], vec![1.0, 0.0]]).unwrap();
        let advantages = Table::from_rows(&[vec![1.0, 1.0], vec![-1.0, 0.0]]).unwrap();
        let batch = Batch::new(mask)
            .with(LOG_PROBS, log_probs.as_tensor().clone())
            .unwrap()
            .with(OLD_LOG_PROBS, old)
            .unwrap();
        let objective = recipe().build().unwrap();
        let mut signals = Signals::new(advantages);
        DynamicAdaptiveClip::default().prepare(&batch, &mut signals, &mut State::default()).unwrap();
        let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default()).unwrap();
        assert!(parts.pg_loss.is_finite());
        let grads = parts.loss.backward().unwrap();
        let grad: Vec<f32> =
            grads.get(log_probs.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(grad, [0.0; 4]);
    }

    proptest! {
        /// The bounds solve |(r - 1) r q| = eps, and rare tokens get more room.
        #[test]
        fn bounds_are_the_roots(log_q in -6.0f64..0.0, low in 0.01f64..0.3, high in 0.01f64..0.3) {
            let rule = DynamicAdaptiveClip { eps_low: low, eps_high: high, clip_ratio_c: 1e9 };
            let table = Table::from_rows(&[vec![log_q, log_q - 0.5]]).unwrap();
            let (lows, highs) = rule.bounds(&table);
            let q = log_q.exp();
            let (l, h) = (lows.values[0], highs.values[0]);
            prop_assert!(((h - 1.0) * h * q - high).abs() < 1e-9);
            prop_assert!(l == 0.5 || ((1.0 - l) * l * q - low).abs() < 1e-9);
            prop_assert!(lows.values[1] <= l && highs.values[1] > h);
        }

        #[test]
        fn advantages_do_not_depend_on_the_scale_of_rewards(
            x in proptest::collection::vec(-1.0f64..1.0, 2..9),
            y in proptest::collection::vec(-1.0f64..1.0, 2..9),
            scale in 0.1f64..9.0,
            shift in -3.0f64..3.0,
        ) {
            let sas = SmoothStandardised::default();
            let run = |f: &dyn Fn(f64) -> f64| {
                let map = |v: &[f64]| v.iter().map(|&x| f(x)).collect::<Vec<_>>();
                let (_, history) = sas.visit(&map(&x), &History::default()).unwrap();
                sas.visit(&map(&y), &history).unwrap().0
            };
            let (a, b) = (run(&|v| v), run(&|v| scale * v + shift));
            for (a, b) in a.iter().zip(&b) {
                // Where |s1| and |s2| are nearly equal, rounding may choose the other one.
                prop_assert!((a - b).abs() < 1e-6 || (a.abs() - b.abs()).abs() < 1e-6);
            }
        }
    }
}
