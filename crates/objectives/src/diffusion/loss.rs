//! Losses on top of the estimates, and the advantages that belong to them. Each returns a scalar with gradient.
//!
//! With c(r, A) = -min(r A, clip(r, 1 - low, 1 + high) A).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{same_dims, same_len};
use crate::advantage::{GroupBaseline, leave_one_out, members};
use crate::batch::keep_where;
use crate::error::{Error, Result};
use crate::kl::{KlEstimator, clamp};
use crate::surrogate::larger;
use crate::table::Table;

/// Bounds of a ratio, 1 - low to 1 + high.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Ratios below 1 - low do not profit further.
    pub low: f64,
    /// Ratios above 1 + high do not profit further.
    pub high: f64,
}

impl Clip {
    /// The same distance on both sides.
    pub fn both(epsilon: f64) -> Self {
        Self { low: epsilon, high: epsilon }
    }

    /// c(ratio, A) of tensors of one shape.
    pub(crate) fn loss(self, ratio: &Tensor, advantages: &Tensor) -> Result<Tensor> {
        let negative = advantages.detach().neg()?;
        let plain = (ratio * &negative)?;
        larger(&plain, &(clamp(ratio, 1.0 - self.low, 1.0 + self.high)? * &negative)?)
    }
}

/// sum of x * weights over what has a weight; `x` [B, L].
fn weighted_sum(x: &Tensor, weights: &Table) -> Result<Tensor> {
    same_dims("per_token", x, &[weights.rows, weights.cols])?;
    Ok((keep_where(x, weights)? * weights.to_tensor(x)?)?.sum_all()?)
}

/// `mask` with every row multiplied by `by(row sum)`, 0 for empty rows.
fn scaled_rows(mask: &Table, by: impl Fn(f64) -> f64) -> Table {
    let scale: Vec<f64> = mask.row_sums().into_iter().map(|n| if n > 0.0 { by(n) } else { 0.0 }).collect();
    let values = mask.values.iter().enumerate().map(|(i, m)| m * scale[i / mask.cols.max(1)]).collect();
    Table { values, ..*mask }
}

fn over(n: f64) -> f64 {
    if n > 0.0 { 1.0 / n } else { 0.0 }
}

/// The advantage of every row on all its columns, like `x` [B, L].
fn columns(advantages: &[f64], x: &Tensor) -> Result<Tensor> {
    let (b, l) = x.dims2()?;
    same_len("advantages", advantages.len(), b)?;
    let values = advantages.iter().flat_map(|&a| std::iter::repeat_n(a, l)).collect();
    Table { rows: b, cols: l, values }.to_tensor(x)
}

/// Like `x` [B].
fn vector(values: &[f64], x: &Tensor) -> Result<Tensor> {
    same_len("advantages", values.len(), x.dims1()?)?;
    Ok(Tensor::from_slice(values, values.len(), x.device())?.to_dtype(x.dtype())?)
}

/// d1 (diffu-GRPO) and coupled-GRPO: clipped ratio per token plus `beta` KL to the reference, mean over the tokens of
/// `mask` in the whole batch. All [B, L]; `advantages` [B]. No reference is needed at beta 0.
///
/// # Errors
/// Shapes that differ.
pub fn token_ratio_loss(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    reference: Option<(&Tensor, KlEstimator, f64)>,
    advantages: &[f64],
    mask: &Table,
    clip: Clip,
) -> Result<Tensor> {
    let (log_probs, old) = (keep_where(log_probs, mask)?, keep_where(old_log_probs, mask)?);
    let ratio = (&log_probs - old.detach())?.exp()?;
    let mut terms = clip.loss(&ratio, &columns(advantages, &ratio)?)?;
    if let Some((reference, estimator, beta)) = reference.filter(|(_, _, beta)| *beta != 0.0) {
        let kl = estimator.estimate(&log_probs, &keep_where(reference, mask)?.detach())?;
        terms = (terms + (kl * beta)?)?;
    }
    let tokens: f64 = mask.values.iter().sum();
    weighted_sum(&terms, &Table { values: mask.values.iter().map(|m| m * over(tokens)).collect(), ..*mask })
}

/// UniGRPO (MMaDA): clipped ratio plus `beta` k3, mean over the masked tokens of a row, then over rows. All [B, L];
/// `masked` is 0 or 1. A row without masked tokens adds 0 and counts.
///
/// # Errors
/// Shapes that differ.
pub fn uni_grpo_loss(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    ref_log_probs: &Tensor,
    advantages: &[f64],
    masked: &Table,
    clip: Clip,
    beta: f64,
) -> Result<Tensor> {
    let (log_probs, old) = (keep_where(log_probs, masked)?, keep_where(old_log_probs, masked)?);
    let ratio = (&log_probs - old.detach())?.exp()?;
    let kl = KlEstimator::K3Unclamped.estimate(&log_probs, &keep_where(ref_log_probs, masked)?.detach())?;
    let terms = (clip.loss(&ratio, &columns(advantages, &ratio)?)? + (kl * beta)?)?;
    weighted_sum(&terms, &scaled_rows(masked, |n| 1.0 / (n * masked.rows as f64)))
}

/// ESPO: one ratio per response, exp((elbo - old) / length), clipped; plus `beta` (elbo - ref)^2 / 2 / length; mean over
/// the batch. `elbo`, `old_elbo`, `ref_elbo`, `advantages` [B]; `length` is the padded response length.
///
/// # Errors
/// Shapes that differ, a length of 0.
pub fn espo_loss(
    elbo: &Tensor,
    old_elbo: &Tensor,
    ref_elbo: &Tensor,
    advantages: &[f64],
    length: f64,
    clip: Clip,
    beta: f64,
) -> Result<Tensor> {
    if length <= 0.0 || !length.is_finite() {
        return Err(Error::Setting { name: "response_len", got: length, expected: "greater than 0" });
    }
    let ratio = ((elbo - old_elbo.detach())? / length)?.exp()?;
    let kl = ((elbo - ref_elbo.detach())?.sqr()? * (0.5 * beta / length))?;
    let terms = (clip.loss(&ratio, &vector(advantages, &ratio)?)? + kl)?;
    Ok((terms.sum_all()? * over(advantages.len() as f64))?)
}

/// TraceRL on slices of trajectories: clipped ratio averaged over the targets of a row, plus `beta` KL to the OLD policy
/// summed over them; both divided by the number of rows, rows without targets included. All [B, L]; `targets` 0 or 1.
///
/// # Errors
/// Shapes that differ.
pub fn trace_loss(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    advantages: &[f64],
    targets: &Table,
    clip: Clip,
    estimator: KlEstimator,
    beta: f64,
) -> Result<Tensor> {
    let log_probs = keep_where(log_probs, targets)?;
    let old = keep_where(old_log_probs, targets)?.detach();
    let ratio = (&log_probs - &old)?.exp()?;
    let rows = over(targets.rows as f64);
    let terms = clip.loss(&ratio, &columns(advantages, &ratio)?)?;
    let loss = weighted_sum(&terms, &scaled_rows(targets, |n| rows / n))?;
    if beta == 0.0 {
        return Ok(loss);
    }
    let kl = weighted_sum(&estimator.estimate(&log_probs, &old)?, &scaled_rows(targets, |_| rows))?;
    Ok((loss + (kl * beta)?)?)
}

/// What wd1 does with bad responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wd1 {
    /// They are pushed down, weighted by softmax(-A).
    #[default]
    PositiveAndNegative,
    /// Only softmax(A) is used.
    PositiveOnly,
}

/// wd1: no ratio and no old policy, log-likelihoods weighted by softmaxes of the advantages inside each group.
///
/// ```text
/// loss = -sum_i softmax(A)_i S_i + sum_i softmax(-A)_i S_i,   S_i = sum over the completion of logp
/// ```
///
/// `log_probs` and `mask` [B, L], `advantages` and `group_ids` [B]. The authors take the softmax over the local batch,
/// which is one group there; the mean over groups is taken.
///
/// # Errors
/// Shapes that differ.
pub fn wd1_loss(
    log_probs: &Tensor,
    advantages: &[f64],
    group_ids: &[u64],
    mask: &Table,
    form: Wd1,
) -> Result<Tensor> {
    same_len("advantages", advantages.len(), mask.rows)?;
    same_len("group_ids", group_ids.len(), mask.rows)?;
    let groups = members(group_ids);
    let mut rows = vec![0.0; mask.rows];
    for index in groups.values() {
        let softmax = |sign: f64| -> Vec<f64> {
            let top = index.iter().map(|&i| sign * advantages[i]).fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = index.iter().map(|&i| (sign * advantages[i] - top).exp()).collect();
            let total: f64 = e.iter().sum();
            e.iter().map(|e| e / total / groups.len() as f64).collect()
        };
        index.iter().zip(softmax(1.0)).for_each(|(&i, w)| rows[i] -= w);
        if form == Wd1::PositiveAndNegative {
            index.iter().zip(softmax(-1.0)).for_each(|(&i, w)| rows[i] += w);
        }
    }
    weighted_sum(log_probs, &Table::broadcast(&rows, mask)?)
}

/// SPG: -sum_i A_i value_i len_i / sum_i len_i with the log-likelihood per token `value` [B] of
/// [`sandwich`](super::sandwich) and the lengths [B].
///
/// # Errors
/// Shapes that differ.
pub fn sandwich_loss(value: &Tensor, advantages: &[f64], lengths: &[f64]) -> Result<Tensor> {
    same_len("lengths", lengths.len(), advantages.len())?;
    let total = over(lengths.iter().sum());
    let weights: Vec<f64> = advantages.iter().zip(lengths).map(|(a, l)| -a * l * total).collect();
    Ok((value * vector(&weights, value)?)?.sum_all()?)
}

/// VRPO: DPO on ELBOs that share their masks, mean over pairs of -ln sigmoid(beta [(w - w_ref) - (l - l_ref)]). All [P].
///
/// # Errors
/// Shapes that differ.
pub fn vrpo_loss(
    chosen: &Tensor,
    rejected: &Tensor,
    ref_chosen: &Tensor,
    ref_rejected: &Tensor,
    beta: f64,
) -> Result<Tensor> {
    let margin = ((chosen - ref_chosen.detach())? - (rejected - ref_rejected.detach())?)?;
    let z = (margin * -beta)?;
    // ln(1 + e^z) = max(z, 0) + ln(1 + e^-|z|); |z| = 2 max(z, 0) - z keeps the gradient right at 0.
    let positive = z.gt(0.0)?.where_cond(&z, &z.zeros_like()?)?;
    let size = ((&positive * 2.0)? - &z)?;
    let loss = (positive + (size.neg()?.exp()? + 1.0)?.log()?)?;
    Ok((loss.sum_all()? * over(z.elem_count() as f64))?)
}

/// Settings of [`mdpo_loss`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MdpoLoss {
    /// Bounds of the ratio.
    pub clip: Clip,
    /// Weight of the k2 KL to the reference.
    pub beta: f64,
    /// Padded response length L.
    pub length: f64,
}

/// MDPO at one denoising step: over the masked tokens of the batch
///
/// ```text
/// sum confidence (lambda c + beta (logp - ref)^2 / 2) / (masked tokens + 1e-4),   lambda = L / (masked in the row + 1e-4)
/// ```
///
/// `log_probs`, `old_log_probs`, `ref_log_probs`, `masked` (0 or 1), `confidence` [B, L]; `advantages` [B].
///
/// # Errors
/// Shapes that differ.
pub fn mdpo_loss(
    log_probs: &Tensor,
    old_log_probs: &Tensor,
    ref_log_probs: &Tensor,
    advantages: &[f64],
    masked: &Table,
    confidence: &Table,
    settings: &MdpoLoss,
) -> Result<Tensor> {
    confidence.same_shape("confidence", masked)?;
    let (log_probs, old) = (keep_where(log_probs, masked)?, keep_where(old_log_probs, masked)?);
    let ratio = (&log_probs - old.detach())?.exp()?;
    let kl = KlEstimator::K2.estimate(&log_probs, &keep_where(ref_log_probs, masked)?.detach())?;
    let count: f64 = masked.values.iter().sum();
    let weigh = |rows: Table| -> Table {
        let values =
            rows.values.iter().zip(&confidence.values).map(|(w, c)| w * c / (count + 1e-4)).collect();
        Table { values, ..rows }
    };
    let surrogate = settings.clip.loss(&ratio, &columns(advantages, &ratio)?)?;
    let surrogate = weighted_sum(&surrogate, &weigh(scaled_rows(masked, |n| settings.length / (n + 1e-4))))?;
    Ok((surrogate + (weighted_sum(&kl, &weigh(masked.clone()))? * settings.beta)?)?)
}

/// LLaDA's training loss from independent masks: sum over masked tokens of -logp / p, divided per row by `lengths` [B]
/// (the padded length T in pre-training, the answer with its padding in fine-tuning) and averaged over rows.
/// `log_probs`, `masks` [B, T]; `p_mask` [B].
///
/// # Errors
/// Shapes that differ.
pub fn denoising_loss(log_probs: &Tensor, masks: &Table, p_mask: &[f64], lengths: &[f64]) -> Result<Tensor> {
    same_len("p_mask", p_mask.len(), masks.rows)?;
    same_len("lengths", lengths.len(), masks.rows)?;
    let rows = over(masks.rows as f64);
    let weights: Vec<f64> = p_mask.iter().zip(lengths).map(|(&p, &l)| -over(p) * over(l) * rows).collect();
    weighted_sum(log_probs, &Table::broadcast(&weights, masks)?)
}

/// coupled-GRPO's and ESPO's advantage: the reward minus the mean of the others; with `by_std` also divided by the
/// group's unbiased deviation + 1e-4. [B]; a lone member gets 0.
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn leave_one_out_scaled(rewards: &[f64], group_ids: &[u64], by_std: bool) -> Result<Vec<f64>> {
    let mut out = leave_one_out(rewards, group_ids, GroupBaseline::Zero)?;
    for index in members(group_ids).values() {
        if constant(rewards, index) {
            index.iter().for_each(|&i| out[i] = 0.0);
        } else if by_std {
            let (_, squares) = moments(rewards, index);
            let std = (squares / (index.len() as f64 - 1.0)).sqrt();
            index.iter().for_each(|&i| out[i] /= std + 1e-4);
        }
    }
    Ok(out)
}

/// TraceRL's advantage: (R - mean) / population deviation of the group, 0 where that is 0. [B].
///
/// # Errors
/// Lengths differ or a reward is not finite.
pub fn population_norm(rewards: &[f64], group_ids: &[u64]) -> Result<Vec<f64>> {
    same_len("group_ids", group_ids.len(), rewards.len())?;
    if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
        return Err(Error::NotFinite { name: "rewards", index, got: rewards[index] });
    }
    let mut out = vec![0.0; rewards.len()];
    for index in members(group_ids).values().filter(|index| !constant(rewards, index)) {
        let (mean, squares) = moments(rewards, index);
        let std = (squares / index.len() as f64).sqrt();
        index.iter().for_each(|&i| out[i] = (rewards[i] - mean) / std);
    }
    Ok(out)
}

fn constant(x: &[f64], index: &[usize]) -> bool {
    index.iter().all(|&i| x[i] == x[index[0]])
}

/// Mean and sum of squared deviations.
fn moments(x: &[f64], index: &[usize]) -> (f64, f64) {
    let mean = index.iter().map(|&i| x[i]).sum::<f64>() / index.len() as f64;
    (mean, index.iter().map(|&i| (x[i] - mean) * (x[i] - mean)).sum())
}

/// MDPO's advantages of denoising steps from the rewards r_t of the intermediate answers, `rewards` [G, S] of one group:
///
/// ```text
/// raw_t = (r_t - r_{t-1}) + 1 + mean of r_s over s > t      nothing is subtracted first; last the mean is r_t itself
/// A_t   = (raw_t - mean over the group) / (unbiased deviation + epsilon), per step
/// ```
///
/// Returns (raw, advantages). A step on which all raws are equal gets 0.
pub fn step_advantages(rewards: &Table, epsilon: f64) -> (Table, Table) {
    let steps = rewards.cols;
    let mut raw = rewards.clone();
    for row in 0..rewards.rows {
        let r = rewards.row(row);
        for t in 0..steps {
            let before = if t == 0 { 0.0 } else { r[t - 1] };
            let later = match &r[t + 1..] {
                [] => r[t],
                later => later.iter().sum::<f64>() / later.len() as f64,
            };
            raw.values[row * steps + t] = (r[t] - before) + 1.0 + later;
        }
    }
    let mut advantages = raw.filled(0.0);
    for t in 0..steps {
        let column: Vec<f64> = (0..raw.rows).map(|row| raw.row(row)[t]).collect();
        let index: Vec<usize> = (0..column.len()).collect();
        if index.is_empty() || constant(&column, &index) {
            continue;
        }
        let (mean, squares) = moments(&column, &index);
        let std = (squares / (column.len() as f64 - 1.0)).sqrt();
        column.iter().enumerate().for_each(|(row, x)| {
            advantages.values[row * steps + t] = (x - mean) / (std + epsilon);
        });
    }
    (raw, advantages)
}

/// The `count` steps with the largest sum over the group of |A_t|, the largest first.
pub fn steps_to_train(advantages: &Table, count: usize) -> Vec<usize> {
    let size = |t: usize| -> f64 { (0..advantages.rows).map(|row| advantages.row(row)[t].abs()).sum() };
    let mut order: Vec<(usize, f64)> = (0..advantages.cols).map(|t| (t, size(t))).collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    order.into_iter().take(count).map(|(t, _)| t).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;

    fn table(rows: usize, values: &[f64]) -> Table {
        Table { rows, cols: values.len() / rows, values: values.to_vec() }
    }

    fn value(x: &Tensor) -> f64 {
        x.to_scalar().unwrap()
    }

    fn var(rows: usize, values: &[f64]) -> Var {
        Var::from_tensor(&Tensor::from_slice(values, (rows, values.len() / rows), &Device::Cpu).unwrap())
            .unwrap()
    }

    #[test]
    fn equal_rewards_teach_nothing() {
        for r in [0.9, 0.7, 1e-30] {
            assert_eq!(population_norm(&[r; 8], &[1; 8]).unwrap(), [0.0; 8]);
            assert_eq!(leave_one_out_scaled(&[r; 8], &[1; 8], true).unwrap(), [0.0; 8]);
        }
        let (_, advantages) = step_advantages(&table(3, &[0.7; 9]), 1e-4);
        assert_eq!(advantages.values, [0.0; 9]);
    }

    /// Masked tokens may be anything, and a batch without a token has loss 0.
    #[test]
    fn what_is_masked_does_not_count() {
        let mask = table(2, &[1.0, 0.0, 0.0, 0.0]);
        let ninf = f64::NEG_INFINITY;
        let (p, old) = (var(2, &[-1.0, ninf, ninf, ninf]), var(2, &[-1.2, ninf, ninf, -1.0]));
        let (p, old) = (&p, old.as_tensor());
        let (clip, k3) = (Clip::both(0.2), KlEstimator::K3Unclamped);
        let run = |mask: &Table| {
            let confidence = mask.filled(0.5);
            let mdpo = MdpoLoss { clip, beta: 0.1, length: 2.0 };
            [
                token_ratio_loss(p, old, Some((old, k3, 0.1)), &[1.0, 2.0], mask, clip).unwrap(),
                uni_grpo_loss(p, old, old, &[1.0, 2.0], mask, clip, 0.1).unwrap(),
                trace_loss(p, old, &[1.0, 2.0], mask, clip, k3, 0.1).unwrap(),
                wd1_loss(p, &[1.0, 2.0], &[0, 0], mask, Wd1::PositiveAndNegative).unwrap(),
                mdpo_loss(p, old, old, &[1.0, 2.0], mask, &confidence, &mdpo).unwrap(),
                denoising_loss(p, mask, &[0.5, 0.5], &[2.0, 2.0]).unwrap(),
            ]
        };
        for loss in run(&mask) {
            assert!(value(&loss).is_finite() && value(&loss) != 0.0);
            let grads = loss.backward().unwrap();
            let grad: Vec<f64> = grads.get(p).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(grad[0] != 0.0 && grad[1..] == [0.0; 3], "{grad:?}");
        }
        for loss in run(&mask.filled(0.0)) {
            assert_eq!(value(&loss), 0.0);
        }
    }

    #[test]
    fn wd1_groups_do_not_see_each_other() {
        let p = var(4, &[-1.0, -2.0, -0.5, -0.1]);
        let mask = table(4, &[1.0; 4]);
        let loss =
            |a: &[f64]| value(&wd1_loss(&p, a, &[0, 0, 1, 1], &mask, Wd1::PositiveAndNegative).unwrap());
        let a = loss(&[1.0, 0.0, 0.3, -0.3]);
        assert!((a - loss(&[6.0, 5.0, 0.3, -0.3])).abs() < 1e-12, "a shift inside a group changes nothing");
    }

    #[test]
    fn the_preference_loss_is_ln_2_without_a_margin() {
        let z = Tensor::new(&[-3.0f64, -9.0], &Device::Cpu).unwrap();
        assert!((value(&vrpo_loss(&z, &z, &z, &z, 0.2).unwrap()) - 2f64.ln()).abs() < 1e-12);
        let far = (&z - 1e5).unwrap();
        assert!((value(&vrpo_loss(&far, &z, &z, &z, 0.2).unwrap()) - 2e4).abs() < 1e-6);
    }

    #[test]
    fn the_ratio_of_espo_needs_a_length() {
        let z = Tensor::new(&[-3.0f64], &Device::Cpu).unwrap();
        assert!(espo_loss(&z, &z, &z, &[1.0], 0.0, Clip::both(0.2), 0.0).is_err());
        assert_eq!(value(&espo_loss(&z, &z, &z, &[1.5], 4.0, Clip::both(0.2), 0.1).unwrap()), -1.5);
    }
}
