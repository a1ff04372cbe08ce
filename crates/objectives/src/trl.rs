//! TRL's forms of the group objectives (`GRPOTrainer`), where they differ from verl's: unclamped log-ratio, KL inside
//! the per-token loss, other denominators, several reward functions at once.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::advantage::members;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::surrogate::smaller;
use crate::table::Table;

/// What centred rewards are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleRewards {
    /// The group's unbiased deviation.
    Group,
    /// The batch's unbiased deviation.
    Batch,
    /// Nothing.
    None,
}

/// How several reward functions become one advantage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiReward {
    /// Weighted sum first.
    SumThenNormalize,
    /// Each reward normalised inside its group, weighted sum, then normalised over the batch.
    NormalizeThenSum,
}

/// Advantages [B] from `rewards` [B][functions]; `None` means the function returned nothing. A row without any reward
/// is left out of every statistic and gets 0.
///
/// # Errors
/// Lengths differ.
pub fn advantages(
    rewards: &[Vec<Option<f64>>],
    weights: &[f64],
    group_ids: &[u64],
    scale: ScaleRewards,
    multi: MultiReward,
    epsilon: f64,
) -> Result<Vec<f64>> {
    if rewards.len() != group_ids.len() || rewards.iter().any(|r| r.len() != weights.len()) {
        let got = vec![rewards.len(), rewards.first().map_or(0, Vec::len)];
        let expected = format!("[{}, {}]", group_ids.len(), weights.len());
        return Err(Error::Shape { name: "rewards", got, expected });
    }
    let weighted_sum = |row: &[Option<f64>]| {
        let terms: Vec<f64> = row.iter().zip(weights).filter_map(|(r, w)| Some((*r)? * w)).collect();
        (!terms.is_empty()).then(|| terms.iter().sum::<f64>())
    };
    let everything = vec![0; rewards.len()];
    let centred = match multi {
        MultiReward::SumThenNormalize => {
            let total: Vec<Option<f64>> = rewards.iter().map(|r| weighted_sum(r)).collect();
            match scale {
                ScaleRewards::Group => standardise(&total, group_ids, group_ids, Some(epsilon)),
                ScaleRewards::Batch => standardise(&total, group_ids, &everything, Some(epsilon)),
                ScaleRewards::None => standardise(&total, group_ids, group_ids, None),
            }
        }
        MultiReward::NormalizeThenSum => {
            let mut normal: Vec<Vec<Option<f64>>> = vec![Vec::new(); rewards.len()];
            for f in 0..weights.len() {
                let column: Vec<Option<f64>> = rewards.iter().map(|r| r[f]).collect();
                let column = standardise(&column, group_ids, group_ids, Some(epsilon));
                normal.iter_mut().zip(column).for_each(|(row, x)| row.push(x));
            }
            let total: Vec<Option<f64>> = normal.iter().map(|r| weighted_sum(r)).collect();
            standardise(&total, &everything, &everything, Some(epsilon))
        }
    };
    Ok(centred.into_iter().map(|a| a.unwrap_or(0.0)).collect())
}

/// (x - mean inside `centre`) / (unbiased deviation inside `spread` + epsilon), over the values that are there.
fn standardise(x: &[Option<f64>], centre: &[u64], spread: &[u64], epsilon: Option<f64>) -> Vec<Option<f64>> {
    let statistics = |index: &[usize]| {
        let there: Vec<f64> = index.iter().filter_map(|&i| x[i]).collect();
        let n = there.len() as f64;
        // In exact arithmetic equal values have no spread and no distance from their mean.
        if there.len() < 2 || there.windows(2).all(|w| w[0] == w[1]) {
            return (there.first().copied().unwrap_or(0.0), 0.0);
        }
        let mean = there.iter().sum::<f64>() / n;
        let biased = there.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        // n / (n - 1) is a quotient of integer tensors in TRL, hence f32.
        (mean, (biased * f64::from((n / (n - 1.0)) as f32)).sqrt())
    };
    let mut out = vec![None; x.len()];
    let mut deviations = vec![0.0; x.len()];
    for index in members(spread).values() {
        let (_, std) = statistics(index);
        index.iter().for_each(|&i| deviations[i] = std);
    }
    for index in members(centre).values() {
        let (mean, _) = statistics(index);
        let scaled = |i: usize, x: f64| epsilon.map_or(x - mean, |eps| (x - mean) / (deviations[i] + eps));
        index.iter().for_each(|&i| out[i] = x[i].map(|x| scaled(i, x)));
    }
    out
}

/// Loss types of `GRPOTrainer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean inside a sequence, mean over sequences.
    Grpo,
    /// Mean over the tokens of the local batch.
    Bnpo,
    /// Sum over B times `max_completion_length`.
    DrGrpo,
    /// Sum over the tokens of the accumulated batch.
    Dapo,
    /// Detached capped ratio times log-probability; aggregated as DAPO. `epsilon_high` is the absolute cap.
    Cispo,
    /// Soft gate; aggregated as GRPO.
    Sapo,
    /// Sequence ratio, each sequence weighted by its length.
    Luspo,
    /// Gamma-shaped sequence weight; aggregated as DAPO.
    Vespo,
}

/// Settings of a TRL loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrlLoss {
    /// Which loss.
    pub loss_type: LossType,
    /// Lower clip range.
    pub epsilon_low: f64,
    /// Upper clip range (absolute cap for CISPO).
    pub epsilon_high: f64,
    /// KL weight; 0 needs no reference.
    pub beta: f64,
    /// Cap on the unclipped ratio.
    pub delta: Option<f64>,
    /// One ratio per sequence, exp(mean_t d), instead of per token.
    pub sequence_level: bool,
    /// Multiply the KL by the ratio.
    pub use_bias_correction_kl: bool,
    /// Keep only this share of tokens with the highest entropy.
    pub top_entropy_quantile: Option<f64>,
    /// Drop bad sequences whose mean old - new log-probability exceeds this.
    pub off_policy_mask_threshold: Option<f64>,
    /// Denominator of `DrGrpo`; T when absent.
    pub max_completion_length: Option<f64>,
    /// Tokens of the accumulated batch; the local count when absent.
    pub num_items_in_batch: Option<f64>,
    /// SAPO temperatures for positive and other advantages.
    pub sapo_temperature: (f64, f64),
}

impl Default for TrlLoss {
    fn default() -> Self {
        Self {
            loss_type: LossType::Dapo,
            epsilon_low: 0.2,
            epsilon_high: 0.2,
            beta: 0.0,
            delta: None,
            sequence_level: false,
            use_bias_correction_kl: false,
            top_entropy_quantile: None,
            off_policy_mask_threshold: None,
            max_completion_length: None,
            num_items_in_batch: None,
            sapo_temperature: (1.0, 1.05),
        }
    }
}

/// What a TRL loss reads; tensors [B, T], `advantages` [B].
pub struct TrlBatch<'a> {
    /// With gradient.
    pub log_probs: &'a Tensor,
    /// Absent: the policy that sampled is the one that is trained.
    pub old_log_probs: Option<&'a Tensor>,
    /// Needed with `beta`.
    pub ref_log_probs: Option<&'a Tensor>,
    /// Needed with `top_entropy_quantile`.
    pub entropies: Option<&'a Table>,
    /// One per sequence.
    pub advantages: &'a [f64],
    /// Valid tokens.
    pub mask: &'a Table,
}

impl TrlLoss {
    /// The scalar loss.
    ///
    /// # Errors
    /// A needed input is missing, shapes that differ.
    pub fn loss(&self, batch: &TrlBatch<'_>) -> Result<Tensor> {
        let (mask, p) = (batch.mask, batch.log_probs);
        if batch.advantages.len() != mask.rows {
            let expected = format!("[{}]", mask.rows);
            return Err(Error::Shape { name: "advantages", got: vec![batch.advantages.len()], expected });
        }
        let m = mask.to_tensor(p)?;
        let old = batch.old_log_probs.unwrap_or(p).detach();
        let a = Tensor::from_slice(batch.advantages, (mask.rows, 1), p.device())?.to_dtype(p.dtype())?;
        let a = a.broadcast_as(p.shape())?.contiguous()?;
        let d = (p - &old)?;
        let lengths: Vec<f64> = mask.row_sums().iter().map(|l| l.max(1.0)).collect();
        let lengths = Tensor::from_slice(&lengths, (mask.rows, 1), p.device())?.to_dtype(p.dtype())?;
        let d = if self.sequence_level {
            let mean = ((&d * &m)?.sum_keepdim(1)? / &lengths)?;
            mean.broadcast_as(p.shape())?.contiguous()?
        } else {
            d
        };
        let ratio = d.exp()?;
        let mut x = self.per_token(batch, &ratio, &a)?;
        let mut kept = mask.clone();
        self.drop_tokens(batch, &old, &mut kept)?;
        if kept != *mask {
            x = (x * kept.to_tensor(p)?)?;
        }
        if self.beta != 0.0 {
            let reference = batch.ref_log_probs.ok_or(Error::Missing { name: "ref_log_probs" })?;
            let gap = (reference - p)?;
            let mut k3 = ((gap.exp()? - &gap)? - 1.0)?;
            if self.use_bias_correction_kl {
                k3 = (k3 * &ratio)?;
            }
            x = (x + (k3 * self.beta)?)?;
        }
        let x = (x * &m)?;
        let rows = mask.rows as f64;
        let tokens: f64 = mask.values.iter().sum();
        Ok(match self.loss_type {
            LossType::Grpo | LossType::Sapo => (x.sum_keepdim(1)? / &lengths)?.mean_all()?,
            LossType::Bnpo => (x.sum_all()? / tokens.max(1.0))?,
            LossType::DrGrpo => {
                (x.sum_all()? / (rows * self.max_completion_length.unwrap_or(mask.cols as f64)))?
            }
            // the per-sequence loss times its length is the masked sum of its copies
            LossType::Luspo => (x.sum_all()? / rows)?,
            LossType::Dapo | LossType::Cispo | LossType::Vespo => {
                (x.sum_all()? / self.num_items_in_batch.unwrap_or(tokens).max(1.0))?
            }
        })
    }

    fn per_token(&self, batch: &TrlBatch<'_>, ratio: &Tensor, a: &Tensor) -> Result<Tensor> {
        let p = batch.log_probs;
        match self.loss_type {
            LossType::Cispo => {
                let weight = ratio.detach().minimum(self.epsilon_high)?;
                Ok(((weight * a)?.neg()? * p)?)
            }
            LossType::Sapo => {
                let (pos, neg) = self.sapo_temperature;
                let ones = a.ones_like()?;
                let tau = a.gt(0.0)?.where_cond(&(&ones * pos)?, &(&ones * neg)?)?;
                let gate = (((ratio - 1.0)? * &tau)?.neg()?.exp()? + 1.0)?.recip()?;
                Ok((a.neg()? * ((gate * 4.0)? / tau)?)?)
            }
            LossType::Vespo => {
                let weights = self.vespo_weights(batch)?;
                let phi = Table::broadcast(&weights, batch.mask)?.to_tensor(p)?;
                Ok(((phi * a)?.neg()? * p)?)
            }
            _ => {
                let bounded = clamp(ratio, 1.0 - self.epsilon_low, 1.0 + self.epsilon_high)?;
                let capped = match self.delta {
                    Some(delta) => clamp(ratio, f64::NEG_INFINITY, delta)?,
                    None => ratio.clone(),
                };
                Ok(smaller(&(capped * a)?, &(bounded * a)?)?.neg()?)
            }
        }
    }

    /// phi = exp(lam + k ln w - lam w), w the sequence's ratio cut to [1e-8, e^20], (k, lam) = (2, 3) for A >= 0, else
    /// (3, 2).
    fn vespo_weights(&self, batch: &TrlBatch<'_>) -> Result<Vec<f64>> {
        let p = batch.log_probs.detach();
        let old = batch.old_log_probs.unwrap_or(batch.log_probs).detach();
        let d = Table::from_tensor(&(p - old)?)?;
        d.same_shape("log_probs", batch.mask)?;
        let weight = |(row, &a): (usize, &f64)| {
            let pairs = d.row(row).iter().zip(batch.mask.row(row));
            let sum: f64 = pairs.map(|(d, m)| d.clamp(-20.0, 20.0) * m).sum();
            let log_w = sum.clamp(1e-8f64.ln(), 20.0);
            let (k, lam) = if a >= 0.0 { (2.0, 3.0) } else { (3.0, 2.0) };
            (lam + k * log_w - lam * log_w.exp()).exp()
        };
        Ok(batch.advantages.iter().enumerate().map(weight).collect())
    }

    /// Zeroes what the entropy and off-policy masks leave out; denominators keep counting it.
    fn drop_tokens(&self, batch: &TrlBatch<'_>, old: &Tensor, kept: &mut Table) -> Result<()> {
        if let Some(q) = self.top_entropy_quantile {
            let entropies = batch.entropies.ok_or(Error::Missing { name: "entropies" })?;
            entropies.same_shape("entropies", batch.mask)?;
            let pairs = entropies.values.iter().zip(&batch.mask.values);
            let mut valid: Vec<f64> = pairs.filter(|(_, m)| **m > 0.0).map(|(e, _)| *e).collect();
            valid.sort_by(f64::total_cmp);
            if let Some(last) = valid.len().checked_sub(1) {
                let at = (1.0 - q) * last as f64;
                let (low, high) = (at.floor() as usize, (at.ceil() as usize).min(last));
                let threshold = valid[low] + (valid[high] - valid[low]) * (at - low as f64);
                let dropped = entropies.values.iter().map(|&e| e < threshold);
                kept.values.iter_mut().zip(dropped).filter(|(_, d)| *d).for_each(|(k, _)| *k = 0.0);
            }
        }
        if let Some(threshold) = self.off_policy_mask_threshold {
            let gap = Table::from_tensor(&(old - batch.log_probs.detach())?)?;
            for (row, &a) in batch.advantages.iter().enumerate() {
                let m = batch.mask.row(row);
                let sum: f64 = gap.row(row).iter().zip(m).map(|(g, m)| g * m).sum();
                if a < 0.0 && sum / m.iter().sum::<f64>().max(1.0) > threshold {
                    kept.values[row * batch.mask.cols..(row + 1) * batch.mask.cols].fill(0.0);
                }
            }
        }
        Ok(())
    }
}
