//! HAPO: Heterogeneous Adaptive Policy Optimization (arXiv 2509.16591).
//!
//! Base: DAPO-style GRPO (token mean, dual clip, no KL). New: one signal per token, the normalised log-entropy
//! h, drives the sampling temperature (A), a group advantage over tokens (B), a redistribution of advantages (C)
//! and clip bounds (D).
//!
//! ```text
//! l = ln max(H, 1e-8);  Q = rho-quantile of l over valid tokens (nearest);  sigma^2 = max(mean (l-Q)^2, 1e-8)
//! z = (l - Q)/sigma;    h = z / max z for z > 0;    h = -z / min z for z <= 0        h in [-1, 1]   ("signed")
//! A  T = T_base (1 + tau h), statistics of the previous step, h cut to [-1, 1]
//! B  A_it = (R_i - mu)/(sd + eps) over all valid tokens of the group; GRPO for a group with some |A| >= 5
//! D  low = eps_L (1 - alpha h) for h <= 0, else eps_L;    high = eps_R (1 + alpha h) for h > 0, else eps_R
//! C  neutral = 1 - low/2 < ratio < 1 + high/2
//!    h > 0:  A' = A if neutral, else A (1 + beta h);      h <= 0: A' = A (1 + beta h) if neutral, else A
//! loss = token mean of the clipped ratio with A', bounds [1 - low, 1 + high], dual clip 10
//! ```
//!
//! `signal = "code"` keeps the released sign, h = z/min z for z <= 0, so that h lies in [0, 1] and low-entropy
//! tokens are treated as high-entropy ones; text and figures say the opposite, hence `signed` is the default.
//! eps_R is 0.2 in the code and 0.28 in the paper. The released statistics of the loss are those of a
//! micro-batch, so results depend on the split.
//!
//! In B the code lets padded positions, (0 - mu)/(sd + eps), take part in the test for 5; `fallback_on_padding`
//! keeps that. Our padded advantages are 0, and a group whose rewards are all equal gets exactly 0. The
//! temperature (A) is a decision of the rollout: [`AdaptiveTemperature`], fed by the statistics that
//! `entropy_adaptive` remembers of every batch.
//!
//! Source: starriver030515/HAPO `core_algos.py`, `sampler.py`.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread, group_norm, members};
use crate::aggregation::Aggregation;
use crate::batch::{
    Batch, ENTROPY, GROUP_IDS, Input, LOG_PROBS, OLD_ENTROPY, OLD_LOG_PROBS, OUTCOMES, Signals,
};
use crate::block::{Advantage, Block, BlockKind, Kind, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "hapo",
    title: "HAPO: Heterogeneous Adaptive Policy Optimization",
    arxiv: "2509.16591",
    summary: "A token's normalised entropy sets its advantage, its clip bounds and the sampling temperature.",
    blocks: &[BlockKind::advantage::<TokenGroupNorm>(), BlockKind::bounds::<EntropyAdaptive>()],
    recipe,
    vectors: Some(("hapo.json", 12)),
    end_to_end: None,
};

/// Token-level group advantage, entropy-adaptive advantages and bounds, clipped ratio, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { dual_clip: Some(10.0), ..ClippedRatio::default() };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .advantage(&TokenGroupNorm::default())
        .bounds(&EntropyAdaptive::default())
}

/// The sign of h on tokens below the pivot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalForm {
    /// Negative: h in [-1, 1].
    #[default]
    Signed,
    /// Positive, as released: h in [0, 1].
    Code,
}

/// What makes h of a log-entropy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyStats {
    /// Pivot Q, a log-entropy.
    pub quantile: f64,
    /// Root mean square distance to the pivot.
    pub std: f64,
    /// 1 / largest z.
    pub scale_pos: f64,
    /// 1 / smallest z, negative.
    pub scale_neg: f64,
}

impl EntropyStats {
    /// Statistics of the valid tokens, `None` without any. `entropy` in nats and `mask` [B, T]; `pivot` rho in
    /// [0, 1]; `eps` floors entropy, variance and scales.
    ///
    /// # Errors
    /// Shapes that differ, an entropy that is not finite.
    pub fn of(entropy: &Table, mask: &Table, pivot: f64, eps: f64) -> Result<Option<Self>> {
        entropy.same_shape("entropy", mask)?;
        let tokens = entropy.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0);
        let mut logs: Vec<f64> = tokens.map(|(h, _)| if h.is_nan() { *h } else { h.max(eps).ln() }).collect();
        if let Some(index) = logs.iter().position(|l| !l.is_finite()) {
            return Err(Error::NotFinite { name: "entropy", index, got: logs[index] });
        }
        logs.sort_by(f64::total_cmp);
        let n = logs.len();
        let place = (pivot * n.saturating_sub(1) as f64).round_ties_even() as usize;
        let Some(&quantile) = logs.get(place) else { return Ok(None) };
        let second = logs.iter().map(|l| (l - quantile) * (l - quantile)).sum::<f64>() / n as f64;
        let std = second.max(eps).sqrt();
        let z = |l: &f64| (l - quantile) / std;
        let largest = logs.iter().map(z).fold(eps, f64::max);
        let smallest = logs.iter().map(z).fold(-eps, f64::min);
        Ok(Some(Self { quantile, std, scale_pos: 1.0 / largest, scale_neg: 1.0 / smallest }))
    }

    /// h of z.
    fn scaled(&self, z: f64, form: SignalForm) -> f64 {
        match (z > 0.0, form) {
            (true, _) => z * self.scale_pos,
            (false, SignalForm::Code) => z * self.scale_neg,
            (false, SignalForm::Signed) => z * self.scale_neg.abs(),
        }
    }

    /// h of every position, [B, T]; on padding it may leave [-1, 1].
    pub fn signal(&self, entropy: &Table, form: SignalForm, eps: f64) -> Table {
        let h = |e: &f64| self.scaled((e.max(eps).ln() - self.quantile) / self.std, form);
        Table { values: entropy.values.iter().map(h).collect(), ..*entropy }
    }
}

/// Sampling temperature of the next token (A); for training only, never for validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveTemperature {
    /// Temperature where h = 0, above 0.
    pub base: f64,
    /// Largest relative change, 0 to 1; the code has 0.05, the paper 0.1.
    pub tau: f64,
    /// Sign of h.
    pub signal: SignalForm,
    /// Floors the entropy, and is added to the spread.
    pub eps: f64,
}

impl Default for AdaptiveTemperature {
    fn default() -> Self {
        Self { base: 1.0, tau: 0.05, signal: SignalForm::Signed, eps: 1e-6 }
    }
}

impl AdaptiveTemperature {
    /// Temperature for a token whose distribution has this entropy (nats, at temperature 1). Without statistics
    /// (in the first step) it is the base.
    pub fn temperature(&self, entropy: f64, previous: Option<&EntropyStats>) -> f64 {
        let Some(stats) = previous else { return self.base };
        let z = (entropy.max(self.eps).ln() - stats.quantile) / (stats.std + self.eps);
        self.base * (1.0 + self.tau * stats.scaled(z, self.signal).clamp(-1.0, 1.0))
    }
}

/// Entropy in nats of softmax(`logits`), for [`AdaptiveTemperature`].
pub fn softmax_entropy(logits: &[f64]) -> f64 {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|z| (z - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    // p ln p is 0 for p = 0, also where the logit is -inf.
    let term = |(e, z): (&f64, &f64)| if *e > 0.0 { e / sum * (z - top - sum.ln()) } else { 0.0 };
    -exp.iter().zip(logits).map(term).sum::<f64>()
}

/// Group advantage over tokens (B).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenGroupNorm {
    /// Divide by the spread.
    pub by_std: bool,
    /// Added to the spread.
    pub epsilon: f64,
    /// A group with an advantage of this size falls back to GRPO.
    pub fallback: f64,
    /// Padded positions take part in that test, as in the authors' code.
    pub fallback_on_padding: bool,
}

impl Default for TokenGroupNorm {
    fn default() -> Self {
        Self { by_std: true, epsilon: 1e-6, fallback: 5.0, fallback_on_padding: true }
    }
}

/// Advantages as the authors' code has them, [B, T]: where no fallback happened, padded positions hold (0 -
/// mu)/(sd + eps). `rewards` and `group_ids` [B].
///
/// # Errors
/// Lengths that differ, a reward that is not finite.
pub fn token_group_norm(
    rewards: &[f64],
    group_ids: &[u64],
    mask: &Table,
    s: &TokenGroupNorm,
) -> Result<Table> {
    let settings = GroupNorm { epsilon: s.epsilon, spread: Spread::Unbiased, ..GroupNorm::default() };
    let grpo = group_norm(rewards, group_ids, &settings)?;
    if mask.rows != rewards.len() {
        let expected = format!("[{}], one row per reward", rewards.len());
        return Err(Error::Shape { name: "response_mask", got: vec![mask.rows], expected });
    }
    let lengths = mask.row_sums();
    let mut out = mask.filled(0.0);
    for index in members(group_ids).values() {
        let tokens: f64 = index.iter().map(|&i| lengths[i]).sum();
        if tokens == 0.0 {
            continue;
        }
        let equal = index.iter().all(|&i| rewards[i] == rewards[index[0]]);
        let mean = if equal {
            rewards[index[0]]
        } else {
            index.iter().map(|&i| lengths[i] * rewards[i]).sum::<f64>() / tokens
        };
        let squares = index.iter().map(|&i| lengths[i] * (rewards[i] - mean) * (rewards[i] - mean));
        let by = if s.by_std { (squares.sum::<f64>() / tokens).sqrt() + s.epsilon } else { 1.0 };
        let over = |x: f64| if x == 0.0 { 0.0 } else { x / by };
        let (of, padded) = (|i: usize| over(rewards[i] - mean), over(0.0 - mean));
        let large = |a: f64| a.abs() >= s.fallback;
        let valid_large = index.iter().any(|&i| lengths[i] > 0.0 && large(of(i)));
        let has_padding = index.iter().any(|&i| mask.row(i).contains(&0.0));
        let falls_back = valid_large || (s.fallback_on_padding && has_padding && large(padded));
        for &i in index {
            let target = &mut out.values[i * mask.cols..(i + 1) * mask.cols];
            for (a, m) in target.iter_mut().zip(mask.row(i)) {
                *a = match (falls_back, *m != 0.0) {
                    (true, _) if equal => 0.0,
                    (true, valid) => {
                        if valid {
                            grpo[i]
                        } else {
                            0.0
                        }
                    }
                    (false, true) => of(i),
                    (false, false) => padded,
                };
            }
        }
    }
    Ok(out)
}

impl Block for TokenGroupNorm {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.epsilon >= 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" });
        }
        if self.fallback > 0.0 {
            return Ok(());
        }
        Err(Error::Setting { name: "fallback", got: self.fallback, expected: "greater than 0" })
    }

    fn describe(&self) -> String {
        let by = if self.by_std { " / (std + eps)" } else { "" };
        format!("tokens of a group: (R - mean){by}, GRPO from {} on", self.fallback)
    }
}

impl Kind for TokenGroupNorm {
    const KIND: &'static str = "token_group_norm";
}

impl Advantage for TokenGroupNorm {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let mask = batch.mask();
        let mut a = token_group_norm(&batch.outcomes()?, batch.ids(GROUP_IDS)?, mask, self)?;
        a.values.iter_mut().zip(&mask.values).for_each(|(a, m)| *a = if *m == 0.0 { 0.0 } else { *a });
        Ok(a)
    }
}

/// Clip bounds (D) and advantages (C) by the entropy signal of the update's own tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyAdaptive {
    /// Base of the lower bound; the surrogate's own `clip_low` is not used.
    pub clip_low: f64,
    /// Base of the upper bound; the surrogate's own `clip_high` is not used.
    pub clip_high: f64,
    /// D: adapt the bounds.
    pub adaptive_clip: bool,
    /// How far.
    pub clip_alpha: f64,
    /// C: redistribute advantages.
    pub adaptive_advantage: bool,
    /// How far.
    pub adv_beta: f64,
    /// Share of tokens below the pivot, rho.
    pub entropy_pivot: f64,
    /// Sign of h.
    pub signal: SignalForm,
    /// Floor of entropy, variance and scales.
    pub eps: f64,
    /// Remember every batch's statistics for the next rollout's temperature (A); reads `old_entropy`.
    pub carry: bool,
}

impl Default for EntropyAdaptive {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            adaptive_clip: true,
            clip_alpha: 1.0,
            adaptive_advantage: true,
            adv_beta: 1.0,
            entropy_pivot: 0.8,
            signal: SignalForm::Signed,
            eps: 1e-8,
            carry: true,
        }
    }
}

/// Statistics of the last batch's entropies when they were sampled, as [`EntropyAdaptive`] remembers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// `None` before the first batch.
    pub stats: Option<EntropyStats>,
}

impl EntropyAdaptive {
    /// Distances of both bounds from 1 for a signal h: (low, high).
    pub fn widths(&self, h: f64) -> (f64, f64) {
        match (self.adaptive_clip, h > 0.0) {
            (false, _) => (self.clip_low, self.clip_high),
            (true, true) => (self.clip_low, self.clip_high * (1.0 + self.clip_alpha * h)),
            (true, false) => (self.clip_low * (1.0 - self.clip_alpha * h), self.clip_high),
        }
    }

    /// Advantage of a token with signal h and this importance ratio; `widths` of its bounds.
    pub fn redistributed(&self, advantage: f64, h: f64, ratio: f64, (low, high): (f64, f64)) -> f64 {
        let neutral = ratio > 1.0 - low / 2.0 && ratio < 1.0 + high / 2.0;
        let changes = self.adaptive_advantage && (neutral != (h > 0.0));
        if changes { advantage * (1.0 + self.adv_beta * h) } else { advantage }
    }

    /// The statistics that the next rollout's temperature needs.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn carried(state: &State) -> Result<Option<EntropyStats>> {
        Ok(state.get::<Carried>(Self::KIND)?.stats)
    }
}

impl Block for EntropyAdaptive {
    fn batch_wide(&self) -> Option<&'static str> {
        Some("entropies are measured against those of the update")
    }

    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![LOG_PROBS, OLD_LOG_PROBS, ENTROPY];
        needs.extend(self.carry.then_some(OLD_ENTROPY));
        needs
    }

    fn validate(&self) -> Result<()> {
        let within = |name, got: f64, high: f64, expected| {
            if (0.0..=high).contains(&got) { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
        };
        within("clip_low", self.clip_low, 1.0, "0 to 1")?;
        within("clip_high", self.clip_high, f64::MAX, "0 or more")?;
        within("clip_alpha", self.clip_alpha, f64::MAX, "0 or more")?;
        within("adv_beta", self.adv_beta, f64::MAX, "0 or more")?;
        within("entropy_pivot", self.entropy_pivot, 1.0, "0 to 1")?;
        if self.eps > 0.0 && self.eps.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "eps", got: self.eps, expected: "greater than 0" })
    }

    fn describe(&self) -> String {
        let bounds = if self.adaptive_clip { "bounds" } else { "" };
        let advantages = if self.adaptive_advantage { "advantages" } else { "" };
        let both = if self.adaptive_clip && self.adaptive_advantage { " and " } else { "" };
        format!("{bounds}{both}{advantages} by entropy, from [1 - {}, 1 + {}]", self.clip_low, self.clip_high)
    }
}

impl Kind for EntropyAdaptive {
    const KIND: &'static str = "entropy_adaptive";
}

impl TokenRule for EntropyAdaptive {
    fn prepare(&self, batch: &Batch, _signals: &mut Signals, state: &mut State) -> Result<()> {
        if !self.carry {
            return Ok(());
        }
        let stats = EntropyStats::of(&batch.table(OLD_ENTROPY)?, batch.mask(), self.entropy_pivot, self.eps)?;
        state.set(Self::KIND, &Carried { stats })
    }

    fn update(&self, batch: &Batch, signals: &mut Signals, _state: &State) -> Result<()> {
        let (entropy, mask) = (batch.table(ENTROPY)?, batch.mask());
        let Some(stats) = EntropyStats::of(&entropy, mask, self.entropy_pivot, self.eps)? else {
            return Ok(());
        };
        let h = stats.signal(&entropy, self.signal, self.eps);
        let (new, old) = (batch.table(LOG_PROBS)?, batch.table(OLD_LOG_PROBS)?);
        let (mut low, mut high) = (mask.filled(1.0), mask.filled(1.0));
        for i in (0..mask.values.len()).filter(|&i| mask.values[i] != 0.0) {
            let (h, ratio) = (h.values[i], (new.values[i] - old.values[i]).exp());
            let widths = self.widths(h);
            (low.values[i], high.values[i]) = (1.0 - widths.0, 1.0 + widths.1);
            signals.advantages.values[i] = self.redistributed(signals.advantages.values[i], h, ratio, widths);
        }
        signals.bounds = Some((low, high));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::REWARDS;
    use crate::registry::Algorithm;

    fn table(rows: &[&[f64]]) -> Table {
        Table::from_rows(&rows.iter().map(|r| r.to_vec()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_signed_signal_has_its_zero_at_the_pivot_and_its_ends_at_one() {
        let (entropy, mask) = (table(&[&[0.1, 0.5, 1.0, 2.0, 9.0]]), table(&[&[1.0, 1.0, 1.0, 1.0, 0.0]]));
        let stats = EntropyStats::of(&entropy, &mask, 0.5, 1e-8).unwrap().unwrap();
        assert_eq!(stats.quantile, 0.0, "rank 1.5 goes to the even one, entropy 1");
        let h = stats.signal(&entropy, SignalForm::Signed, 1e-8).values;
        assert!((h[0] + 1.0).abs() < 1e-12 && h[1] < 0.0 && h[2] == 0.0 && (h[3] - 1.0).abs() < 1e-12);
        assert!((stats.signal(&entropy, SignalForm::Code, 1e-8).values[0] - 1.0).abs() < 1e-12);
        assert!(EntropyStats::of(&entropy, &mask.filled(0.0), 0.5, 1e-8).unwrap().is_none());
        let flat = EntropyStats::of(&mask, &mask.filled(1.0), 0.5, 1e-8).unwrap().unwrap();
        assert!(flat.signal(&mask, SignalForm::Signed, 1e-8).values.iter().all(|h| h.is_finite()));
        assert!(EntropyStats::of(&mask.filled(f64::NAN), &mask, 0.5, 1e-8).is_err());
    }

    #[test]
    fn bounds_widen_on_the_side_of_the_signal() {
        let block = EntropyAdaptive::default();
        assert_eq!(block.widths(-1.0), (0.4, 0.2));
        assert_eq!(block.widths(0.5).0, 0.2);
        assert!((block.widths(0.5).1 - 0.3).abs() < 1e-12);
        assert_eq!(block.redistributed(1.0, 0.5, 1.0, (0.2, 0.2)), 1.0);
        assert_eq!(block.redistributed(1.0, 0.5, 1.5, (0.2, 0.2)), 1.5);
        assert_eq!(block.redistributed(1.0, -0.5, 1.0, (0.2, 0.2)), 0.5);
        assert_eq!(block.redistributed(1.0, -0.5, 1.5, (0.2, 0.2)), 1.0);
    }

    #[test]
    fn equal_rewards_are_exactly_zero_whatever_the_padding() {
        let mask = table(&[&[1.0, 0.0], &[1.0, 1.0], &[0.0, 0.0]]);
        for r in [0.0, 0.9, -3.0] {
            let a = token_group_norm(&[r; 3], &[1; 3], &mask, &TokenGroupNorm::default()).unwrap();
            assert_eq!(a.values, [0.0; 6], "{r}");
        }
        let lone =
            token_group_norm(&[2.0], &[1], &table(&[&[1.0, 0.0]]), &TokenGroupNorm::default()).unwrap();
        assert_eq!(lone.values, [0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn advantages_of_a_group_s_tokens_sum_to_zero(
            lengths in proptest::collection::vec(1usize..7, 6),
            rewards in proptest::collection::vec(-1.0f64..1.0, 6),
        ) {
            let rows: Vec<Vec<f64>> =
                lengths.iter().map(|&l| (0..6).map(|t| f64::from(u8::from(t < l))).collect()).collect();
            let mask = Table::from_rows(&rows).unwrap();
            let settings = TokenGroupNorm { fallback: f64::INFINITY, ..TokenGroupNorm::default() };
            let a = token_group_norm(&rewards, &[2; 6], &mask, &settings).unwrap();
            let sum: f64 = a.values.iter().zip(&mask.values).map(|(a, m)| a * m).sum();
            prop_assert!(sum.abs() < 1e-9);
        }
    }

    #[test]
    fn statistics_go_through_json_bit_for_bit_and_set_the_temperature() {
        let lp =
            Tensor::new(&[[-0.3f64, -1.1, f64::NEG_INFINITY], [-0.7, -0.2, -2.0]], &Device::Cpu).unwrap();
        let entropy = table(&[&[0.3, 0.9, 4.0], &[0.05, 1.4, 0.2]]);
        let batch = Batch::new(table(&[&[1.0, 1.0, 0.0], &[1.0, 1.0, 1.0]]))
            .with(LOG_PROBS, lp.clone())
            .unwrap()
            .with(OLD_LOG_PROBS, lp)
            .unwrap()
            .with(ENTROPY, entropy.clone())
            .unwrap()
            .with(OLD_ENTROPY, entropy)
            .unwrap()
            .with(REWARDS, vec![1.0, 0.0])
            .unwrap()
            .with(GROUP_IDS, vec![0u64, 0])
            .unwrap();
        let objective = Algorithm::from_table("hapo", &toml::Table::new()).unwrap().objective;
        let mut state = State::default();
        assert_eq!(EntropyAdaptive::carried(&state).unwrap(), None);
        let ready = objective.prepare(batch.clone(), &mut state).unwrap();
        let loss =
            objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state).unwrap().loss;
        assert!(loss.to_scalar::<f64>().unwrap().is_finite());
        let mut read: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(read, state);
        objective.prepare(batch, &mut read).unwrap();
        assert_eq!(read, state);
        let stats = EntropyAdaptive::carried(&read).unwrap();
        let by = AdaptiveTemperature::default();
        assert_eq!(by.temperature(1.0, None), 1.0);
        assert_eq!(by.temperature(1e9, stats.as_ref()), 1.05);
        assert!(by.temperature(0.0, stats.as_ref()) == 0.95);
        assert_eq!(softmax_entropy(&[0.0, f64::NEG_INFINITY]), 0.0);
    }
}
