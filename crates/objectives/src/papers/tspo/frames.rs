//! Which frames: sampling for training, selection for inference, and videos hidden among other videos.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::agent::{log_softmax, score_values};
use crate::error::{Error, Result};

/// Gumbel(0, 1) noise from samples of Exp(1).
pub fn gumbel(exponential: f64) -> f64 {
    -exponential.ln()
}

/// An exact draw of k frames without replacement with probabilities softmax(scores): the k largest of scores +
/// noise, in order of TIME. `temperature` does not change the order; it is the authors' softmax temperature, above
/// 0.
///
/// # Errors
/// Lengths differ, or the temperature is not above 0.
pub fn gumbel_top_k(scores: &[f64], noise: &[f64], k: usize, temperature: f64) -> Result<Vec<usize>> {
    if noise.len() != scores.len() {
        let expected = format!("[{}], like `scores`", scores.len());
        return Err(Error::Shape { name: "noise", got: vec![noise.len()], expected });
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::Setting { name: "gumbel temperature", got: temperature, expected: "above 0" });
    }
    let perturbed: Vec<f64> = scores.iter().zip(noise).map(|(s, g)| (s + g) / temperature).collect();
    Ok(top_k(&perturbed, k))
}

/// The k highest scores in order of time; the earlier frame at a tie. All frames when there are at most k.
pub fn top_k(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(k);
    order.sort_unstable();
    order
}

/// How a drawn set of frames is scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetLogProb {
    /// Each frame by its probability of being drawn first: the authors' way. [G, k].
    #[default]
    Marginal,
    /// The probability of the ordered draw (Plackett-Luce). [G, 1].
    PlackettLuce,
}

impl SetLogProb {
    /// Log-probabilities of chosen frames, with gradient in `scores` [T]. `chosen`: G lists of k frames, in the
    /// order in which they were drawn (which only Plackett-Luce reads).
    ///
    /// # Errors
    /// Lists of different lengths, no list, a frame that there is not or that is chosen twice.
    pub fn log_probs(self, scores: &Tensor, chosen: &[Vec<usize>]) -> Result<Tensor> {
        let t = scores.dims1()?;
        let k = chosen.first().map_or(0, Vec::len);
        for list in chosen {
            if list.len() != k {
                let expected = format!("{k} frames, like the first rollout");
                return Err(Error::Shape { name: "chosen", got: vec![list.len()], expected });
            }
            let odd = list.iter().enumerate().find(|(i, f)| **f >= t || list[..*i].contains(f));
            if let Some((_, frame)) = odd {
                let reason = format!("{frame} is chosen twice or is not among {t} frames");
                return Err(Error::Invalid { what: "chosen frame", reason });
            }
        }
        if k == 0 {
            return Err(Error::Invalid { what: "chosen frames", reason: "there are none".into() });
        }
        match self {
            Self::Marginal => {
                let flat: Vec<u32> = chosen.iter().flatten().map(|&f| f as u32).collect();
                let flat = Tensor::from_vec(flat, chosen.len() * k, scores.device())?;
                Ok(log_softmax(scores)?.index_select(&flat, 0)?.reshape((chosen.len(), k))?)
            }
            Self::PlackettLuce => {
                let each = chosen
                    .iter()
                    .map(|order| plackett_luce(scores, order)?.reshape((1, 1)).map_err(Error::from));
                Ok(Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?)
            }
        }
    }
}

/// sum_m [ S[o_m] - logsumexp over the frames that are left of S ], a scalar. `order` holds frames of `scores`,
/// each once.
fn plackett_luce(scores: &Tensor, order: &[usize]) -> Result<Tensor> {
    let (t, k) = (scores.dims1()?, order.len());
    let numbers = score_values(scores)?;
    let mut left = vec![true; t];
    let (mut flags, mut largest) = (Vec::with_capacity(k * t), Vec::with_capacity(k));
    for &frame in order {
        flags.extend(left.iter().map(|&l| u8::from(l)));
        let rest = numbers.iter().zip(&left).filter(|(_, left)| **left);
        largest.push(rest.map(|(s, _)| *s).fold(f64::NEG_INFINITY, f64::max));
        left[frame] = false;
    }
    let largest = Tensor::from_vec(largest, (k, 1), scores.device())?.to_dtype(scores.dtype())?;
    let flags = Tensor::from_vec(flags, (k, t), scores.device())?;
    let all = scores.reshape((1, t))?.broadcast_as((k, t))?.contiguous()?;
    // What is not left is set to the largest before the exponential, so that neither value nor gradient overflows.
    let top = largest.broadcast_as((k, t))?.contiguous()?;
    let shifted = (flags.where_cond(&all, &top)? - &top)?.exp()?;
    let sums = flags.where_cond(&shifted, &shifted.zeros_like()?)?.sum(1)?;
    let drawn: Vec<u32> = order.iter().map(|&f| f as u32).collect();
    let drawn = scores.index_select(&Tensor::from_vec(drawn, k, scores.device())?, 0)?;
    Ok(((drawn.sum_all()? - sums.log()?.sum_all()?)? - largest.sum_all()?)?)
}

/// The best frame of each of k bins: every frame belongs to the nearest of k evenly spaced centres, the earlier one
/// at a tie. All frames when there are at most k.
pub fn bin_max(scores: &[f64], k: usize) -> Vec<usize> {
    let t = scores.len();
    if t <= k {
        return (0..t).collect();
    }
    let step = |i: usize| if k > 1 { i as f64 * (t - 1) as f64 / (k - 1) as f64 } else { 0.0 };
    let centres: Vec<usize> = (0..k).map(|i| step(i).round_ties_even() as usize).collect();
    let mut best: Vec<Option<usize>> = vec![None; k];
    for frame in 0..t {
        let Some(bin) = (0..k).min_by_key(|&i| centres[i].abs_diff(frame)) else { continue };
        if best[bin].is_none_or(|other| scores[frame] > scores[other]) {
            best[bin] = Some(frame);
        }
    }
    let mut chosen: Vec<usize> = best.into_iter().flatten().collect();
    chosen.sort_unstable();
    chosen
}

/// Adaptive keyframe sampling: splits a video in halves until a part has a clear peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveKeyframes {
    /// A part is done when its highest scores exceed its mean by more, in scores scaled to [0, 1]. 0.8 for VideoMME.
    pub peak_above: f64,
    /// And when its deviation exceeds this; -100 never binds.
    pub spread_above: f64,
    /// How often it may be split. 5 for VideoMME.
    pub depth: u32,
}

impl Default for AdaptiveKeyframes {
    fn default() -> Self {
        Self { peak_above: 0.2, spread_above: -100.0, depth: 3 }
    }
}

impl AdaptiveKeyframes {
    /// Chosen frames in order of time, at most k. All frames when there are at most k.
    pub fn select(&self, scores: &[f64], k: usize) -> Vec<usize> {
        let t = scores.len();
        if t <= k {
            return (0..t).collect();
        }
        let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let range = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
        let scaled: Vec<f64> =
            scores.iter().map(|s| if range > 0.0 { (s - low) / range } else { 0.0 }).collect();
        let mut chosen = Vec::with_capacity(k);
        let mut parts = vec![(0, t, 0u32)];
        while let Some((start, end, depth)) = parts.pop() {
            let part = &scaled[start..end];
            if part.is_empty() {
                continue;
            }
            if depth < self.depth && !self.peaked(part, k) {
                let middle = start + part.len() / 2;
                parts.extend([(start, middle, depth + 1), (middle, end, depth + 1)]);
            } else {
                let share = k.checked_shr(depth).unwrap_or(0);
                chosen.extend(top_k(part, share).into_iter().map(|i| start + i));
            }
        }
        chosen.sort_unstable();
        chosen
    }

    fn peaked(&self, part: &[f64], k: usize) -> bool {
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
        let all = mean(part);
        let high: Vec<f64> = top_k(part, k).into_iter().map(|i| part[i]).collect();
        let variance = part.iter().map(|s| (s - all) * (s - all)).sum::<f64>() / part.len() as f64;
        mean(&high) - all > self.peak_above && variance.sqrt() > self.spread_above
    }
}

/// A video hidden among others: slots marked true take the true clips in their order, the other slots the wrong ones.
/// Returns the frames and which of them are true.
///
/// # Errors
/// [`Error::Shape`]: not as many clips as slots.
pub fn haystack<T: Clone>(
    slot_is_true: &[bool],
    true_clips: &[Vec<T>],
    wrong_clips: &[Vec<T>],
) -> Result<(Vec<T>, Vec<bool>)> {
    let trues = slot_is_true.iter().filter(|&&t| t).count();
    let wrongs = slot_is_true.len() - trues;
    if (trues, wrongs) != (true_clips.len(), wrong_clips.len()) {
        let expected = format!("{trues} true and {wrongs} wrong, like the slots");
        return Err(Error::Shape { name: "clips", got: vec![true_clips.len(), wrong_clips.len()], expected });
    }
    let (mut trues, mut wrongs) = (true_clips.iter(), wrong_clips.iter());
    let (mut frames, mut needle) = (Vec::new(), Vec::new());
    for &is_true in slot_is_true {
        let clip = if is_true { trues.next() } else { wrongs.next() };
        let clip = clip.map(Vec::as_slice).unwrap_or_default();
        frames.extend_from_slice(clip);
        needle.extend(std::iter::repeat_n(is_true, clip.len()));
    }
    Ok((frames, needle))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_frames_are_errors() {
        let s = Tensor::zeros(3, candle_core::DType::F64, &Device::Cpu).unwrap();
        for chosen in [vec![vec![3]], vec![vec![1, 1]], vec![vec![0], vec![0, 1]], vec![]] {
            assert!(SetLogProb::Marginal.log_probs(&s, &chosen).is_err());
        }
        assert!(haystack(&[true], &[], &[vec![1]]).is_err());
    }

    #[test]
    fn the_exact_probabilities_of_all_draws_add_up_to_one() {
        let s = Tensor::new(&[0.3f64, -1.0, 2.0, 500.0], &Device::Cpu).unwrap();
        let orders: Vec<Vec<usize>> =
            (0..4).flat_map(|a| (0..4).filter(move |&b| b != a).map(move |b| vec![a, b])).collect();
        let l = SetLogProb::PlackettLuce.log_probs(&s, &orders).unwrap();
        let sum: f64 = l.flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().map(|l| l.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn both_scores_ignore_a_shift_and_agree_on_one_frame(
            scores in proptest::collection::vec(-30.0f64..30.0, 2..8), shift in -9.0f64..9.0, pick in 0usize..8,
        ) {
            let n = scores.len();
            let chosen = vec![vec![pick % n]];
            let run = |which: SetLogProb, shift: f64| {
                let moved: Vec<f64> = scores.iter().map(|s| s + shift).collect();
                let s = Var::from_slice(&moved, n, &Device::Cpu).unwrap();
                let l = which.log_probs(s.as_tensor(), &chosen).unwrap().sum_all().unwrap();
                let grads = l.backward().unwrap();
                let grad = grads.get(s.as_tensor()).unwrap().to_vec1::<f64>().unwrap();
                (l.to_scalar::<f64>().unwrap(), grad)
            };
            let (a, grad) = run(SetLogProb::Marginal, 0.0);
            prop_assert!(grad.iter().sum::<f64>().abs() < 1e-12);
            for (b, other) in [run(SetLogProb::Marginal, shift), run(SetLogProb::PlackettLuce, shift)] {
                prop_assert!((a - b).abs() < 1e-9);
                prop_assert!(grad.iter().zip(other).all(|(x, y)| (x - y).abs() < 1e-9));
            }
        }

        #[test]
        fn selectors_return_frames_in_order_without_repeats(
            scores in proptest::collection::vec(-1.0f64..1.0, 1..60), k in 1usize..20, depth in 0u32..6,
        ) {
            let aks = AdaptiveKeyframes { depth, ..AdaptiveKeyframes::default() };
            for chosen in [top_k(&scores, k), bin_max(&scores, k), aks.select(&scores, k)] {
                prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]));
                prop_assert!(chosen.len() <= k.max(scores.len().min(k)));
                prop_assert!(chosen.iter().all(|&f| f < scores.len()));
            }
            prop_assert_eq!(top_k(&scores, k).len(), k.min(scores.len()));
        }
    }
}
