//! The clipped importance ratio of PPO (1707.06347) with asymmetric bounds (DAPO, 2503.14476) and dual clip
//! (1912.09729).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{check_clip, larger, log_ratio, smaller};
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::error::{Error, Result};
use crate::fused::pointwise;
use crate::table::Table;

/// Bounds of the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClippedRatio {
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. At least 0.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; 0 turns dual clip off.
    #[serde(with = "off_is_zero")]
    pub dual_clip: Option<f64>,
}

impl Default for ClippedRatio {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, dual_clip: Some(3.0) }
    }
}

/// What the clipped surrogate computed.
pub struct ClipOutcome {
    /// Loss per token, [B, T], with gradient.
    pub per_token: Tensor,
    /// 1 where the clipped branch was strictly larger, [B, T].
    pub clipped: Tensor,
    /// 1 where dual clip cut a negative-advantage token, [B, T].
    pub dual_clipped: Tensor,
    /// -d, whose masked mean is the usual estimate of KL(old || new), [B, T].
    pub neg_log_ratio: Tensor,
}

impl ClippedRatio {
    /// l = max(-A r, -A clamp(r, 1 - low, 1 + high)); where A < 0, l = min(l, -A c). All inputs [B, T].
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn loss(
        &self,
        log_probs: &Tensor,
        old_log_probs: &Tensor,
        advantages: &Tensor,
    ) -> Result<ClipOutcome> {
        let edge = |x: f64| Ok::<_, Error>((advantages.ones_like()?.detach() * x)?);
        let (low, high) = (edge(1.0 - self.clip_low)?, edge(1.0 + self.clip_high)?);
        self.loss_between(log_probs, old_log_probs, advantages, &low, &high)
    }

    /// The same with bounds of the ratio for every token, [B, T] each, in place of `clip_low` and `clip_high`.
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn loss_between(
        &self,
        log_probs: &Tensor,
        old_log_probs: &Tensor,
        advantages: &Tensor,
        low: &Tensor,
        high: &Tensor,
    ) -> Result<ClipOutcome> {
        self.loss_of_log_ratio(&log_ratio(log_probs, old_log_probs)?, advantages, low, high)
    }

    /// The same from log-ratios `d` that the caller has limited; all inputs of one shape, [B, T] or [B].
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn loss_of_log_ratio(
        &self,
        d: &Tensor,
        advantages: &Tensor,
        low: &Tensor,
        high: &Tensor,
    ) -> Result<ClipOutcome> {
        self.validate()?;
        let ratio = d.exp()?;
        let negative = advantages.detach().neg()?;
        let plain = (&negative * &ratio)?;
        let bounded = (&negative * clamp_between(&ratio, low, high)?)?;
        let clipped = bounded.gt(&plain)?.to_dtype(plain.dtype())?;
        let worst = larger(&plain, &bounded)?;
        let (per_token, dual_clipped) = match self.dual_clip {
            None => (worst, clipped.zeros_like()?),
            Some(c) => {
                let cap = (&negative * c)?;
                let bad = negative.gt(0.0)?;
                let cut = worst.gt(&cap)?.mul(&bad)?.to_dtype(plain.dtype())?;
                (bad.where_cond(&smaller(&worst, &cap)?, &worst)?, cut)
            }
        };
        Ok(ClipOutcome { per_token, clipped, dual_clipped, neg_log_ratio: d.detach().neg()? })
    }
}

/// `x` inside [low, high], elementwise; the gradient is that of `x` inside (edges included) and 0 outside.
pub(crate) fn clamp_between(x: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
    let bounded = x.lt(low)?.where_cond(&low.detach(), x)?;
    Ok(x.gt(high)?.where_cond(&high.detach(), &bounded)?)
}

impl Block for ClippedRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        check_clip(self.clip_low, self.clip_high)?;
        match self.dual_clip {
            Some(got) if !(got > 1.0 && got.is_finite()) => {
                Err(Error::Setting { name: "dual_clip", got, expected: "greater than 1" })
            }
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let dual = self.dual_clip.map_or(String::new(), |c| format!(", dual clip {c}"));
        format!("clipped ratio [1 - {}, 1 + {}]{dual}", self.clip_low, self.clip_high)
    }
}

impl Kind for ClippedRatio {
    const KIND: &'static str = "clipped_ratio";
}

impl Surrogate for ClippedRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        self.validate()?;
        self.in_one_pass(&batch.tensor(LOG_PROBS)?, &batch.table(OLD_LOG_PROBS)?, batch.mask(), signals)
    }

    fn uses_bounds(&self) -> bool {
        true
    }
}

impl ClippedRatio {
    /// [`ClippedRatio::loss_between`] with its derivative written out, in f64 and once over the batch; masked tokens get
    /// 0.
    fn in_one_pass(
        &self,
        log_probs: &Tensor,
        old: &Table,
        mask: &Table,
        signals: &Signals,
    ) -> Result<SurrogateLoss> {
        let now = Table::from_tensor(&log_probs.detach())?;
        now.same_shape("log_probs", mask)?;
        old.same_shape("old_log_probs", mask)?;
        signals.advantages.same_shape("advantages", mask)?;
        if let Some((low, high)) = &signals.bounds {
            low.same_shape("bounds", mask)?;
            high.same_shape("bounds", mask)?;
        }
        let (same_low, same_high) = (1.0 - self.clip_low, 1.0 + self.clip_high);
        let (mut values, mut slopes, mut gaps) = (mask.filled(0.0), mask.filled(0.0), mask.filled(0.0));
        let (mut clipped, mut dual_clipped) = (mask.filled(0.0), mask.filled(0.0));
        for (i, _) in mask.values.iter().enumerate().filter(|(_, m)| **m != 0.0) {
            let (low, high) = match &signals.bounds {
                Some((low, high)) => (low.values[i], high.values[i]),
                None => (same_low, same_high),
            };
            let raw = now.values[i] - old.values[i];
            let d = raw.clamp(-20.0, 20.0);
            let ratio = d.exp();
            let negative = -signals.advantages.values[i];
            let plain = negative * ratio;
            // What is cut off has no slope; at the edges the ratio's own holds.
            let bounded = if ratio > high {
                negative * high
            } else if ratio < low {
                negative * low
            } else {
                plain
            };
            let mut slope = if d == raw { plain } else { 0.0 };
            let mut value = plain;
            if bounded > plain {
                (value, slope) = (bounded, 0.0);
                clipped.values[i] = 1.0;
            }
            if let Some(c) = self.dual_clip
                && negative > 0.0
                && value > negative * c
            {
                (value, slope) = (negative * c, 0.0);
                dual_clipped.values[i] = 1.0;
            }
            (values.values[i], slopes.values[i], gaps.values[i]) = (value, slope, -d);
        }
        let per_token = pointwise(log_probs, &values.values, &slopes.values)?;
        let stats = vec![("clip_frac", clipped), ("clip_frac_lower", dual_clipped), ("approx_kl", gaps)];
        Ok(SurrogateLoss { terms: Terms::Tokens(per_token), stats })
    }
}

impl ClipOutcome {
    /// For an objective.
    ///
    /// # Errors
    /// Another rank than [B, T].
    pub fn into_loss(self) -> Result<SurrogateLoss> {
        let stats = vec![
            ("clip_frac", Table::from_tensor(&self.clipped)?),
            ("clip_frac_lower", Table::from_tensor(&self.dual_clipped)?),
            ("approx_kl", Table::from_tensor(&self.neg_log_ratio)?),
        ];
        Ok(SurrogateLoss { terms: Terms::Tokens(self.per_token), stats })
    }
}

/// TOML has no null: a number that is absent is written as 0.
pub(crate) mod off_is_zero {
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::ref_option)]
    pub(crate) fn serialize<S: Serializer>(x: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(x.unwrap_or(0.0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
        Ok(Some(f64::deserialize(d)?).filter(|&c| c != 0.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;

    /// Value, gradient and reports of the written-out derivative are those of the graph, edges and ties included.
    #[test]
    fn one_pass_equals_the_graph() {
        let ratios = [0.0f64, 0.1, 0.8f64.ln(), 1.28f64.ln(), 0.3, -0.5, 2.0, 25.0, -25.0, 3f64.ln(), 1.5];
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for a in [1.5, -1.5, 0.0, -0.2] {
            rows.push(vec![a; ratios.len()]);
        }
        let advantages = Table::from_rows(&rows).unwrap();
        let mut mask = advantages.filled(1.0);
        mask.values[5] = 0.0;
        let cells: Vec<f64> = (0..rows.len()).flat_map(|_| ratios).collect();
        let now = Table { values: cells.iter().map(|d| d - 30.0).collect(), ..advantages };
        let old = advantages.filled(-30.0);
        let like = Tensor::zeros(1, candle_core::DType::F64, &Device::Cpu).unwrap();
        let per_token = |x: &[f64]| Table { values: x.iter().copied().cycle().take(44).collect(), ..mask };
        let own = (per_token(&[0.9, 0.5, 1.0]), per_token(&[1.1, 1.0, 2.0, 9.0]));
        for bounds in [None, Some(own)] {
            for dual_clip in [None, Some(3.0)] {
                let block = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip };
                let p = Var::from_tensor(&now.to_tensor(&like).unwrap()).unwrap();
                let (low, high) = bounds.clone().unwrap_or((mask.filled(0.8), mask.filled(1.28)));
                let tensor = |t: &Table| t.to_tensor(&like).unwrap();
                let graph = block
                    .loss_between(&p, &tensor(&old), &tensor(&advantages), &tensor(&low), &tensor(&high))
                    .and_then(ClipOutcome::into_loss)
                    .unwrap();
                let signals = Signals { bounds: bounds.clone(), ..Signals::new(advantages.clone()) };
                let here = block.in_one_pass(&p, &old, &mask, &signals).unwrap();
                let numbers = |loss: &SurrogateLoss| {
                    let Terms::Tokens(x) = &loss.terms else { panic!("not per token") };
                    let kept = crate::batch::keep_where(x, &mask).unwrap();
                    let grads = kept.sum_all().unwrap().backward().unwrap();
                    let grad = Table::from_tensor(grads.get(p.as_tensor()).unwrap()).unwrap();
                    let mut all = vec![Table::from_tensor(&kept.detach()).unwrap(), grad];
                    all.extend(loss.stats.iter().map(|(_, t)| t.clone()));
                    all.iter_mut().for_each(|t| t.values[5] = 0.0);
                    all
                };
                assert_eq!(numbers(&here), numbers(&graph), "{bounds:?} {dual_clip:?}");
            }
        }
    }
}
