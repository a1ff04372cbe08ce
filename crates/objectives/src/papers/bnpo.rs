//! BNPO: Beta Normalization Policy Optimization (arXiv 2506.02864).
//!
//! Base: REINFORCE with the group's mean as baseline. New: the advantage is divided by a Beta density at the group's
//! success rate, and the density is fitted to the batch's success rates in every step. (The `bnpo` loss type of a
//! popular trainer is something else: a token mean.)
//!
//! ```text
//! s_i = (R_i - min)/(max - min),  p_g = mean of s in group g                       0 for a lone answer
//! mu, v = mean and unbiased variance of p over groups                              0 and 1 for a single group
//! k = mu (1 - mu)/v - 1,  a = k mu,  b = k (1 - mu)                                Beta(a, b) by its moments
//! alpha = max(1, 1 + a/3),  beta = max(1, 1 + b/3)
//! f_g = p^(alpha-1) (1-p)^(beta-1) / B(alpha, beta),  w_g = clamp(1/f_g, 0, weight_max)
//! A_i = w_g (s_i - p_g)
//! ```
//!
//! alpha = beta = 1 is REINFORCE with baseline, alpha = beta = 3/2 is GRPO times pi/8. Groups that are all right or
//! all wrong get exactly 0, whatever their weight. `rewards` [B], `group_ids` [B]; statistics are those of the whole
//! batch, so compute them before it is split. Loss: clip 0.2 / 0.28, dual clip 10, tokens summed inside a sequence.
//!
//! Source: the authors' code (changyi7231/BNPO). Where we differ: when all groups have the same success rate (v at
//! most 1e-12) the code divides by 0; here alpha = beta = 1. With several rewards (`decompose`) the estimator runs
//! on every component and the advantages are averaged; the code also counts components that are switched off.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupBaseline, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES};
use crate::block::{Advantage, Block, BlockKind, Kind};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Several rewards of a sequence, all in the range of the settings.
pub const REWARD_COMPONENTS: Input =
    Input::new("reward_components", "[B][K]", "the same K rewards of every sequence, one by one");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "bnpo",
    title: "BNPO: Beta Normalization Policy Optimization",
    arxiv: "2506.02864",
    summary: "Centred rewards over a Beta density that is fitted to the batch's success rates.",
    blocks: &[BlockKind::advantage::<BetaNorm>()],
    recipe,
    vectors: Some(("bnpo.json", 9)),
    end_to_end: None,
};

/// Beta-normalised advantages, clip-higher with dual clip 10, no length normalisation.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(10.0) };
    Composition::new(&surrogate, Aggregation::SeqMeanTokenSum).advantage(&BetaNorm::default())
}

/// Settings of the Beta normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BetaNorm {
    /// Reward that counts as 0.
    pub min_value: f64,
    /// Reward that counts as 1.
    pub max_value: f64,
    /// What a and b are divided by, from minimising the gradient's variance.
    pub divisor: f64,
    /// Largest weight. The code's 1e6 hardly limits: at p = 1/16 and alpha = 3 a weight is 10 to 100; 5 to 10 is
    /// safer.
    pub weight_max: f64,
    /// A variance of success rates up to this gives alpha = beta = 1.
    pub min_variance: f64,
    /// What a lone answer gets: `keeps_reward` is the authors' code (p = 0, and it takes part in the fit), `zero`
    /// leaves it out.
    pub alone: GroupBaseline,
    /// Average over the advantages of `reward_components` instead of one advantage of the outcome.
    pub decompose: bool,
}

impl Default for BetaNorm {
    fn default() -> Self {
        Self {
            min_value: 0.0,
            max_value: 1.0,
            divisor: 3.0,
            weight_max: 1e6,
            min_variance: 1e-12,
            alone: GroupBaseline::KeepsReward,
            decompose: false,
        }
    }
}

/// The density of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BetaFit {
    /// Mean success rate; 0 for a single group.
    pub mean: f64,
    /// Its unbiased variance over groups; 1 for a single group.
    pub variance: f64,
    /// First parameter of the distribution of success rates.
    pub a: f64,
    /// Second parameter.
    pub b: f64,
    /// First parameter of the density that divides, at least 1.
    pub alpha: f64,
    /// Second parameter, at least 1.
    pub beta: f64,
}

/// Advantages and what they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct BetaNormalised {
    /// [B].
    pub advantages: Vec<f64>,
    /// Success rate of every group, in order of group id.
    pub success: Vec<f64>,
    /// Weight of every group.
    pub weights: Vec<f64>,
    /// The density.
    pub fit: BetaFit,
}

impl BetaNorm {
    /// The density from the groups' success rates.
    pub fn fit(&self, success: &[f64]) -> BetaFit {
        let n = success.len() as f64;
        let (mean, variance) = if success.len() > 1 {
            let mean = success.iter().sum::<f64>() / n;
            (mean, success.iter().map(|p| (p - mean) * (p - mean)).sum::<f64>() / (n - 1.0))
        } else {
            (0.0, 1.0)
        };
        let (a, b) = if variance <= self.min_variance {
            (0.0, 0.0)
        } else {
            let k = mean * (1.0 - mean) / variance - 1.0;
            (k * mean, k * (1.0 - mean))
        };
        let at_least_one = |x: f64| (1.0 + x / self.divisor).max(1.0);
        BetaFit { mean, variance, a, b, alpha: at_least_one(a), beta: at_least_one(b) }
    }

    /// A_i = w_g (s_i - p_g) for `rewards` [B] in `group_ids` [B].
    ///
    /// # Errors
    /// Lengths that differ, a reward that is not finite, a success rate outside of [0, 1].
    pub fn normalise(&self, rewards: &[f64], group_ids: &[u64]) -> Result<BetaNormalised> {
        if rewards.len() != group_ids.len() {
            let expected = format!("[{}], like `group_ids`", group_ids.len());
            return Err(Error::Shape { name: "rewards", got: vec![rewards.len()], expected });
        }
        if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
            return Err(Error::NotFinite { name: "rewards", index, got: rewards[index] });
        }
        let s: Vec<f64> =
            rewards.iter().map(|r| (r - self.min_value) / (self.max_value - self.min_value)).collect();
        let groups = members(group_ids);
        let success: Vec<f64> = groups.values().map(|index| success_rate(&s, index)).collect();
        if let Some(p) = success.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            let reason = format!(
                "a group's success rate is {p}; set `min_value` and `max_value` to the rewards' range"
            );
            return Err(Error::Invalid { what: "rewards", reason });
        }
        let left_out = |index: &[usize]| index.len() == 1 && self.alone == GroupBaseline::Zero;
        let counted: Vec<f64> =
            groups.values().zip(&success).filter(|(index, _)| !left_out(index)).map(|(_, p)| *p).collect();
        let fit = self.fit(&counted);
        let weights: Vec<f64> =
            success.iter().map(|&p| beta_weight(p, fit.alpha, fit.beta, self.weight_max)).collect();
        let mut advantages = vec![0.0; s.len()];
        for ((index, p), w) in groups.values().zip(&success).zip(&weights) {
            if !left_out(index) {
                index.iter().for_each(|&i| advantages[i] = w * (s[i] - p));
            }
        }
        Ok(BetaNormalised { advantages, success, weights, fit })
    }

    /// The mean over the advantages of K rewards, `components` [B][K].
    ///
    /// # Errors
    /// As [`BetaNorm::normalise`]; sequences with different numbers of rewards, or none.
    pub fn decomposed(&self, components: &[Vec<f64>], group_ids: &[u64]) -> Result<Vec<f64>> {
        let k = components.first().map_or(0, Vec::len);
        if let Some(odd) = components.iter().find(|row| row.len() != k || k == 0) {
            let expected = format!("{} rewards per sequence", k.max(1));
            return Err(Error::Shape { name: REWARD_COMPONENTS.name, got: vec![odd.len()], expected });
        }
        let mut mean = vec![0.0; components.len()];
        for j in 0..k {
            let rewards: Vec<f64> = components.iter().map(|row| row[j]).collect();
            let one = self.normalise(&rewards, group_ids)?;
            mean.iter_mut().zip(one.advantages).for_each(|(mean, a)| *mean += a / k as f64);
        }
        Ok(mean)
    }
}

/// Mean of a group, exact when all are equal; 0 for a lone answer.
fn success_rate(s: &[f64], index: &[usize]) -> f64 {
    match index {
        [] | [_] => 0.0,
        [first, ..] if index.iter().all(|&i| s[i] == s[*first]) => s[*first],
        _ => index.iter().map(|&i| s[i]).sum::<f64>() / index.len() as f64,
    }
}

/// 1 / f(p) of the Beta(alpha, beta) density, within [0, `max`]; 0 ln 0 is 0.
pub fn beta_weight(p: f64, alpha: f64, beta: f64, max: f64) -> f64 {
    let term = |exponent: f64, x: f64| if exponent == 0.0 { 0.0 } else { exponent * x.ln() };
    let log_f = term(alpha - 1.0, p) + term(beta - 1.0, 1.0 - p) - ln_beta(alpha, beta);
    (-log_f).exp().clamp(0.0, max)
}

/// ln of the beta function, exact where a parameter is 1: B(a, 1) = 1/a.
fn ln_beta(a: f64, b: f64) -> f64 {
    match (a == 1.0, b == 1.0) {
        (true, _) => -b.ln(),
        (_, true) => -a.ln(),
        _ => ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b),
    }
}

/// ln of the gamma function for x > 0: Stirling's series after shifting x above 10, good to about 1e-15.
fn ln_gamma(x: f64) -> f64 {
    let (mut shift, mut x) = (1.0f64, x);
    while x < 10.0 {
        shift *= x;
        x += 1.0;
    }
    let z = 1.0 / (x * x);
    // Bernoulli numbers over 2k (2k - 1).
    let series = (1.0 / 12.0
        - z * (1.0 / 360.0
            - z * (1.0 / 1260.0
                - z * (1.0 / 1680.0 - z * (1.0 / 1188.0 - z * (691.0 / 360_360.0 - z / 156.0))))))
        / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - shift.ln()
}

impl Block for BetaNorm {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![GROUP_IDS];
        needs.extend(self.decompose.then_some(REWARD_COMPONENTS));
        needs
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !self.min_value.is_finite() {
            return wrong("min_value", self.min_value, "a finite number");
        }
        if !(self.max_value > self.min_value && self.max_value.is_finite()) {
            return wrong("max_value", self.max_value, "greater than `min_value`");
        }
        if !(self.divisor > 0.0 && self.divisor.is_finite()) {
            return wrong("divisor", self.divisor, "greater than 0");
        }
        if !(self.weight_max > 0.0 && self.weight_max.is_finite()) {
            return wrong("weight_max", self.weight_max, "greater than 0");
        }
        if !(self.min_variance >= 0.0 && self.min_variance.is_finite()) {
            return wrong("min_variance", self.min_variance, "0 or more");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let which = if self.decompose { ", mean over reward components" } else { "" };
        format!(
            "group: (R - mean) / Beta density of the success rate, weight at most {}{which}",
            self.weight_max
        )
    }
}

impl Kind for BetaNorm {
    const KIND: &'static str = "beta_norm";
}

impl Advantage for BetaNorm {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let groups = batch.ids(GROUP_IDS)?;
        let per_row = if self.decompose {
            self.decomposed(batch.vectors(REWARD_COMPONENTS)?, groups)?
        } else {
            self.normalise(&batch.outcomes()?, groups)?.advantages
        };
        Table::broadcast(&per_row, batch.mask())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gamma_by_hand() {
        for (x, expected) in
            [(1.0, 0.0), (2.0, 0.0), (5.0, 24f64.ln()), (0.5, std::f64::consts::PI.sqrt().ln())]
        {
            assert!((ln_gamma(x) - expected).abs() < 1e-14, "{x}: {}", ln_gamma(x));
        }
        assert!((ln_gamma(101.0) - 363.739_375_555_563_5).abs() < 1e-11);
    }

    #[test]
    fn special_densities() {
        assert_eq!(beta_weight(0.0, 1.0, 1.0, 1e6), 1.0);
        assert_eq!(beta_weight(0.0, 1.5, 1.0, 1e6), 1e6);
        let grpo = std::f64::consts::PI / 8.0 / (0.3f64 * 0.7).sqrt();
        assert!((beta_weight(0.3, 1.5, 1.5, 1e6) - grpo).abs() < 1e-12);
    }

    #[test]
    fn equal_success_rates_are_reinforce_and_dead_groups_get_nothing() {
        let norm = BetaNorm::default();
        let out = norm.normalise(&[0.0, 1.0, 0.0, 1.0], &[0, 0, 1, 1]).unwrap();
        assert_eq!(out.advantages, [-0.5, 0.5, -0.5, 0.5]);
        let dead = norm.normalise(&[0.9, 0.9, 0.9, 0.1, 0.0, 0.2], &[0, 0, 0, 1, 1, 1]).unwrap();
        assert_eq!(dead.advantages[..3], [0.0; 3]);
        assert!(norm.normalise(&[2.0, 1.0], &[0, 0]).unwrap_err().to_string().contains("max_value"));
        let alone = BetaNorm { alone: GroupBaseline::Zero, ..norm };
        assert_eq!(alone.normalise(&[1.0, 0.0, 1.0], &[0, 1, 1]).unwrap().advantages, [0.0, -0.5, 0.5]);
        assert!(norm.decomposed(&[vec![1.0], vec![]], &[0, 0]).is_err());
        assert_eq!(norm.normalise(&[], &[]).unwrap().advantages, [0.0; 0]);
    }

    proptest! {
        #[test]
        fn groups_are_centred_and_an_affine_map_of_rewards_changes_nothing(
            rewards in proptest::collection::vec(0u8..2, 24),
            scale in 0.5f64..4.0,
            shift in -2.0f64..2.0,
        ) {
            let ids: Vec<u64> = (0..24).map(|i| i % 4).collect();
            let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
            let a = BetaNorm::default().normalise(&rewards, &ids).unwrap();
            for index in members(&ids).values() {
                let sum: f64 = index.iter().map(|&i| a.advantages[i]).sum();
                prop_assert!(sum.abs() < 1e-9 * a.fit.alpha.max(1.0) * 1e3);
            }
            // Powers of two keep 0 and 1 exact.
            let scale = scale.log2().round().exp2();
            let moved = BetaNorm { min_value: shift, max_value: shift + scale, ..BetaNorm::default() };
            let mapped: Vec<f64> = rewards.iter().map(|r| if *r == 0.0 { shift } else { shift + scale }).collect();
            let b = moved.normalise(&mapped, &ids).unwrap();
            for (x, y) in a.advantages.iter().zip(&b.advantages) {
                prop_assert!((x - y).abs() < 1e-9 * (1.0 + x.abs()));
            }
        }
    }
}
