//! Estimates of log pi(response | prompt).

use candle_core::{D, DType, Tensor};
use efference_ops::token_scores;
use serde::{Deserialize, Serialize};

use super::{inverse, keep, same_dims, same_len};
use crate::error::{Error, Result};

/// Log-probability of the targets, [B, .., L], differentiable in `logits` [B, .., L, V]. `targets` [B * L], row after
/// row; the dimensions between B and L are masks of the same response.
///
/// # Errors
/// Shapes that do not fit, an id outside the vocabulary.
pub fn token_log_probs(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let dims = logits.dims().to_vec();
    let (&[b, ref middle @ .., l, v], true) = (&dims[..], dims.len() >= 3) else {
        return Err(Error::Shape { name: "logits", got: dims, expected: "[B, .., L, V]".into() });
    };
    same_len("targets", targets.len(), b * l)?;
    let samples: usize = middle.iter().product();
    let ids: Vec<u32> = targets.chunks(l.max(1)).flat_map(|row| row.repeat(samples)).collect();
    let n = b * samples * l;
    let ids = Tensor::from_vec(ids, n, logits.device())?;
    let scores = token_scores(&logits.contiguous()?.reshape((n, v))?, &ids, 1.0)?;
    Ok(scores.log_probs.reshape(&dims[..dims.len() - 1])?)
}

/// -sum_v p_v ln(p_v + epsilon) of every position, nats, without gradient: `logits` [.., V] to [..].
///
/// # Errors
/// No vocabulary dimension.
pub fn mean_field_entropy(logits: &Tensor, epsilon: f64) -> Result<Tensor> {
    let logits = logits.detach();
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let p = shifted.exp()?;
    let p = p.broadcast_div(&p.sum_keepdim(D::Minus1)?)?;
    let plogp = (&p * (&p + epsilon)?.log()?)?;
    // 0 ln 0 is 0, also without an epsilon.
    let plogp = p.gt(0.0)?.where_cond(&plogp, &p.zeros_like()?)?;
    Ok(plogp.sum(D::Minus1)?.neg()?)
}

/// Logits of a model whose output at i - 1 predicts token i (Dream, DiffuCoder), moved to the tokens that they predict:
/// [l_0, l_0, l_1, .., l_{T-2}]. `logits` [B, T, V].
///
/// # Errors
/// Another rank.
pub fn shift_logits(logits: &Tensor) -> Result<Tensor> {
    let (_, t, _) = logits.dims3()?;
    if t < 2 {
        return Ok(logits.clone());
    }
    Ok(Tensor::cat(&[&logits.narrow(1, 0, 1)?, &logits.narrow(1, 0, t - 1)?], 1)?)
}

/// One term of the ELBO per mask, sum over masked tokens of logp / p_mask: `log_probs` and `masks` [B, N, L], `p_mask`
/// [B, N] = masked count / valid length (or the probability t of independent masks). Result [B, N] in nats; its mean
/// over N is the estimate. A mask without tokens gives 0.
///
/// # Errors
/// Shapes that differ.
pub fn elbo_samples(log_probs: &Tensor, masks: &Tensor, p_mask: &Tensor) -> Result<Tensor> {
    let (b, n, _) = log_probs.dims3()?;
    same_dims("p_mask", p_mask, &[b, n])?;
    Ok((keep(log_probs, masks)?.sum(D::Minus1)? * inverse(p_mask)?)?)
}

/// ESPO's antithetic estimate: k ~ U{0..L} tokens masked at random, p = k / (L + 1), and the complement of the mask.
///
/// ```text
/// 1/2 [ sum_{i in S} logp_i(S) / p + sum_{i not in S} logp_i(not S) / (L/(L+1) - p) ]
/// ```
///
/// Its expectation is the ELBO exactly. `log_probs`, `masks` [B, L], `p_mask` [B]; without `complement` [B, L] the first
/// sum alone, not halved. Result [B].
///
/// # Errors
/// Shapes that differ.
pub fn complementary_elbo(
    log_probs: &Tensor,
    complement: Option<&Tensor>,
    masks: &Tensor,
    p_mask: &Tensor,
) -> Result<Tensor> {
    let (b, l) = log_probs.dims2()?;
    same_dims("p_mask", p_mask, &[b])?;
    let masked = (keep(log_probs, masks)?.sum(1)? * inverse(p_mask)?)?;
    let Some(complement) = complement else { return Ok(masked) };
    same_dims("complement", complement, &[b, l])?;
    let rest = masks.eq(0u8)?;
    let q = (p_mask.detach().neg()? + l as f64 / (l as f64 + 1.0))?;
    Ok(((masked + (keep(complement, &rest)?.sum(1)? * inverse(&q)?)?)? * 0.5)?)
}

/// coupled-GRPO's log-probability of every token, [B, L]: `full` with everything masked, `masked` with the mask of
/// `ratio`, `complement` with its complement; all [B, L].
///
/// ```text
/// ( full_i + (masked_i / r if i in S, else complement_i / (1 - r)) ) / 2
/// ```
///
/// Its expected weight is 1.5, not 1, as in the authors' code; `normalised` divides by 1.5.
///
/// # Errors
/// Shapes that differ, a ratio outside (0, 1).
pub fn coupled_log_probs(
    full: &Tensor,
    masked: &Tensor,
    complement: &Tensor,
    mask: &Tensor,
    ratio: f64,
    normalised: bool,
) -> Result<Tensor> {
    if !(ratio > 0.0 && ratio < 1.0) {
        return Err(Error::Setting { name: "mask_ratio", got: ratio, expected: "between 0 and 1" });
    }
    for (name, x) in [("masked", masked), ("complement", complement), ("mask", mask)] {
        same_dims(name, x, full.dims())?;
    }
    let part = mask.where_cond(&(masked * (1.0 / ratio))?, &(complement * (1.0 / (1.0 - ratio)))?)?;
    Ok(((full + part)? * if normalised { 1.0 / 3.0 } else { 0.5 })?)
}

/// What stands for the log-likelihood of a response with a negative advantage (SPG).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Negative {
    /// The lower bound, as for positive advantages.
    Elbo,
    /// The upper bound.
    Eubo,
    /// weight * EUBO + (1 - weight) * ELBO.
    #[default]
    Mix,
    /// Nothing: negative responses do not count.
    Zero,
}

/// Settings of SPG's sandwiched likelihood.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandwich {
    /// For negative advantages.
    pub negative: Negative,
    /// Power of the upper bound, above 0.
    pub beta: f64,
    /// Share of the upper bound in the mix.
    pub weight: f64,
}

impl Default for Sandwich {
    fn default() -> Self {
        Self { negative: Negative::Mix, beta: 1.5, weight: 0.5 }
    }
}

/// SPG's log-likelihood per token of every response, [B]: bounded from below where the advantage is positive, from
/// above elsewhere. `log_probs`, `masks` [B, N, L]; `completion` [B, L] (`u8`) marks tokens up to the end token, the
/// only ones that count; `advantages` [B].
///
/// ```text
/// ELBO = mean_j of the mean of logp over the masked tokens of S_j
/// EUBO = mean over tokens with w_i > 0 of ln(w_i) / beta,  w_i = mean_j [i in S_j] p_i^beta / t_j,  t_j = |S_j| / length
/// ```
///
/// # Errors
/// Shapes that differ, a beta that is not positive.
pub fn sandwich(
    log_probs: &Tensor,
    masks: &Tensor,
    completion: &Tensor,
    advantages: &[f64],
    settings: &Sandwich,
) -> Result<Tensor> {
    let (b, n, l) = log_probs.dims3()?;
    same_dims("completion_mask", completion, &[b, l])?;
    same_dims("masks", masks, &[b, n, l])?;
    same_len("advantages", advantages.len(), b)?;
    if !(settings.beta > 0.0 && settings.beta.is_finite()) {
        return Err(Error::Setting { name: "beta", got: settings.beta, expected: "greater than 0" });
    }
    let dtype = log_probs.dtype();
    let completion = completion.unsqueeze(1)?.broadcast_as((b, n, l))?.contiguous()?;
    let valid = masks.ne(0u8)?.mul(&completion.ne(0u8)?)?;
    let as_number = |x: &Tensor| -> Result<Tensor> { Ok(x.to_dtype(dtype)?) };
    let count = as_number(&valid)?.sum(2)?; // [B, N]
    let elbo = (keep(log_probs, &valid)?.sum(2)? * inverse(&count)?)?.mean(1)?;
    let eubo = || -> Result<Tensor> {
        let share = (&count * inverse(&as_number(&completion.ne(0u8)?)?.sum(2)?)?)?; // t_j
        let share = share.gt(0.0)?.where_cond(&share, &share.ones_like()?)?;
        let x = (log_probs * settings.beta)?.broadcast_sub(&share.log()?.unsqueeze(2)?)?;
        let lowest = (x.ones_like()?.detach() * -1e30)?;
        let x = valid.where_cond(&x, &lowest)?;
        let peak = x.detach().max_keepdim(1)?; // [B, 1, L]
        let weight = (x.broadcast_sub(&peak)?.exp()?.sum_keepdim(1)? * (1.0 / n.max(1) as f64))?;
        let log_weight = ((weight.log()? + peak)?.squeeze(1)? * (1.0 / settings.beta))?; // [B, L]
        let seen = valid.to_dtype(DType::F64)?.sum(1)?.gt(0.0)?;
        let tokens = as_number(&seen)?.sum(1)?;
        Ok((keep(&log_weight, &seen)?.sum(1)? * inverse(&tokens)?)?)
    };
    let negative = match settings.negative {
        Negative::Elbo => return Ok(elbo),
        Negative::Eubo => eubo()?,
        Negative::Mix => ((eubo()? * settings.weight)? + (&elbo * (1.0 - settings.weight))?)?,
        Negative::Zero => elbo.zeros_like()?,
    };
    let positive: Vec<u8> = advantages.iter().map(|&a| u8::from(a > 0.0)).collect();
    Ok(Tensor::from_vec(positive, b, log_probs.device())?.where_cond(&elbo, &negative)?)
}

/// The ELBO by enumeration, for checks: `log_probs(mask)` gives the log-probability of every one of `len` tokens when
/// the tokens with `true` are masked (2^len - 1 calls). Returns the mean over masks of every size 1..=len of (len/size)
/// sum of masked log-probabilities; their mean is the ELBO, the last one the mean-field estimate.
///
/// # Errors
/// More than 16 tokens, none, or what `log_probs` refuses.
pub fn exact_elbo(len: usize, mut log_probs: impl FnMut(&[bool]) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    if len == 0 || len > 16 {
        let reason = format!("{len} tokens: enumeration takes 1 to 16");
        return Err(Error::Invalid { what: "exact ELBO", reason });
    }
    let (mut sums, mut masks) = (vec![0.0; len], vec![0usize; len]);
    for bits in 1u32..1 << len {
        let mask: Vec<bool> = (0..len).map(|i| bits >> i & 1 == 1).collect();
        let logp = log_probs(&mask)?;
        same_len("log_probs", logp.len(), len)?;
        let size = bits.count_ones() as usize;
        let sum: f64 = logp.iter().zip(&mask).filter(|(_, masked)| **masked).map(|(p, _)| p).sum();
        sums[size - 1] += len as f64 / size as f64 * sum;
        masks[size - 1] += 1;
    }
    Ok(sums.iter().zip(masks).map(|(sum, n)| sum / n as f64).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;

    fn tensor(x: &[f64], dims: &[usize]) -> Tensor {
        Tensor::from_slice(x, dims, &Device::Cpu).unwrap()
    }

    /// logp of token i falls with the number of masked others, in a way that no order is like another.
    fn toy(mask: &[bool]) -> Vec<f64> {
        let others = |i: usize| -> f64 {
            mask.iter().enumerate().map(|(j, &m)| if m && j != i { (i * 3 + j) as f64 } else { 0.0 }).sum()
        };
        (0..mask.len()).map(|i| -1.0 - 0.1 * others(i)).collect()
    }

    #[test]
    fn the_elbo_is_the_mean_over_all_orders() {
        fn orders(left: &[bool]) -> (f64, f64) {
            // Sum over all orders of the rest, and how many there are.
            if left.iter().all(|m| !m) {
                return (0.0, 1.0);
            }
            let logp = toy(left);
            let (mut sum, mut count) = (0.0, 0.0);
            for i in (0..left.len()).filter(|&i| left[i]) {
                let mut rest = left.to_vec();
                rest[i] = false;
                let (s, n) = orders(&rest);
                sum += s + n * logp[i];
                count += n;
            }
            (sum, count)
        }
        let by_size = exact_elbo(4, |mask| Ok(toy(mask))).unwrap();
        let (sum, count) = orders(&[true; 4]);
        let elbo = by_size.iter().sum::<f64>() / 4.0;
        assert!((elbo - sum / count).abs() < 1e-12, "{elbo} {}", sum / count);
        assert!(exact_elbo(0, |m| Ok(toy(m))).is_err() && exact_elbo(17, |m| Ok(toy(m))).is_err());
    }

    /// ESPO's estimate over all k and masks has the ELBO as its mean.
    #[test]
    fn complementary_masks_estimate_the_elbo_without_bias() {
        let l = 3usize;
        let elbo = exact_elbo(l, |mask| Ok(toy(mask))).unwrap().iter().sum::<f64>() / l as f64;
        let (mut mean, binomial) = (0.0, [1.0, 3.0, 3.0, 1.0]);
        for bits in 0u32..8 {
            let mask: Vec<bool> = (0..l).map(|i| bits >> i & 1 == 1).collect();
            let rest: Vec<bool> = mask.iter().map(|m| !m).collect();
            let k = bits.count_ones() as usize;
            let flags: Vec<u8> = mask.iter().map(|&m| u8::from(m)).collect();
            let estimate = complementary_elbo(
                &tensor(&toy(&mask), &[1, l]),
                Some(&tensor(&toy(&rest), &[1, l])),
                &Tensor::from_vec(flags, (1, l), &Device::Cpu).unwrap(),
                &tensor(&[k as f64 / 4.0], &[1]),
            );
            mean += estimate.unwrap().to_vec1::<f64>().unwrap()[0] / 4.0 / binomial[k];
        }
        assert!((mean - elbo).abs() < 1e-12, "{mean} {elbo}");
    }

    #[test]
    fn infinite_log_probs_of_unmasked_tokens_reach_nothing() {
        let logp = Var::from_tensor(&tensor(&[-1.0, f64::NEG_INFINITY, -2.0, -3.0], &[1, 2, 2])).unwrap();
        let masks = Tensor::from_vec(vec![1u8, 0, 0, 0], (1, 2, 2), &Device::Cpu).unwrap();
        let samples = elbo_samples(&logp, &masks, &tensor(&[0.5, 0.0], &[1, 2])).unwrap();
        assert_eq!(samples.to_vec2::<f64>().unwrap(), [[-2.0, 0.0]]);
        let grads = samples.sum_all().unwrap().backward().unwrap();
        let grad: Vec<f64> = grads.get(&logp).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(grad, [2.0, 0.0, 0.0, 0.0]);
        let completion = Tensor::from_vec(vec![1u8, 1], (1, 2), &Device::Cpu).unwrap();
        for negative in [Negative::Elbo, Negative::Eubo, Negative::Mix, Negative::Zero] {
            let settings = Sandwich { negative, ..Sandwich::default() };
            let value = sandwich(&logp, &masks, &completion, &[-1.0], &settings).unwrap();
            assert!(value.to_vec1::<f64>().unwrap()[0].is_finite(), "{negative:?}");
        }
    }

    #[test]
    fn the_upper_bound_lies_above_the_lower_bound() {
        let logp = tensor(&[-1.0, -0.2, -2.5, -0.7, -0.4, -1.9], &[1, 2, 3]);
        let masks = Tensor::from_vec(vec![1u8; 6], (1, 2, 3), &Device::Cpu).unwrap();
        let completion = Tensor::from_vec(vec![1u8; 3], (1, 3), &Device::Cpu).unwrap();
        let bound = |negative, a: f64| {
            let settings = Sandwich { negative, ..Sandwich::default() };
            sandwich(&logp, &masks, &completion, &[a], &settings).unwrap().to_vec1::<f64>().unwrap()[0]
        };
        let (low, high) = (bound(Negative::Elbo, -1.0), bound(Negative::Eubo, -1.0));
        assert!(high > low, "{high} {low}");
        assert!((bound(Negative::Mix, -1.0) - (low + high) / 2.0).abs() < 1e-12);
        assert_eq!(bound(Negative::Eubo, 1.0), low);
    }
}
