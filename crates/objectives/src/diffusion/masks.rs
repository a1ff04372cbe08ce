//! Which tokens are masked, given the random draws; noise schedules.

use super::same_len;
use crate::error::{Error, Result};
use crate::table::Table;

/// How many tokens each of `samples` masks hides, 1..=`len`, spread evenly by one draw (LLaDA):
///
/// ```text
/// count_i = ((round(first + i len / samples) - 1) mod len) + 1,   i = 0 .. samples - 1,   first ~ U{1..len}
/// ```
///
/// Rounded half to even on a single-precision grid, as the authors do: on a tie the last bit decides.
///
/// # Errors
/// No tokens, no samples, a draw outside 1..=`len`.
pub fn mask_counts(len: usize, samples: usize, first: usize) -> Result<Vec<usize>> {
    if samples == 0 || !(1..=len).contains(&first) {
        let reason = format!("{samples} masks of {len} tokens from a first count of {first}");
        return Err(Error::Invalid { what: "mask counts", reason });
    }
    let spacing = len as f64 / samples as f64;
    let start = first as f32;
    let end = (first as f64 + (samples - 1) as f64 * spacing) as f32;
    let step = if samples > 1 { (end - start) / (samples - 1) as f32 } else { 0.0 };
    // The grid is laid from both ends, as PyTorch does.
    let at = |i: usize| {
        if i < samples / 2 || samples == 1 {
            start + step * i as f32
        } else {
            end - step * (samples - 1 - i) as f32
        }
    };
    Ok((0..samples).map(|i| (at(i).round_ties_even() as usize + len - 1) % len + 1).collect())
}

/// d1's input of the mean-field estimate: all response tokens masked, prompt tokens where `uniform` < `probability`.
/// `ids` and `uniform` [B, T], the first `prompt_len` columns are the prompt.
///
/// # Errors
/// Shapes that differ.
pub fn mask_prompt(
    ids: &Table,
    uniform: &Table,
    prompt_len: usize,
    probability: f64,
    mask_id: f64,
) -> Result<Table> {
    replace(ids, uniform, mask_id, |column, u| column >= prompt_len || u < probability)
}

/// Response tokens masked where `uniform` < `ratio` (UniGRPO's and IGPO's partial masks); the prompt stays. `ids` and
/// `uniform` [B, T]. Returns the noisy ids and the probability of every position, 0 in the prompt.
///
/// # Errors
/// Shapes that differ.
pub fn mask_at_ratio(
    ids: &Table,
    uniform: &Table,
    prompt_len: usize,
    ratio: f64,
    mask_id: f64,
) -> Result<(Table, Table)> {
    let noisy = replace(ids, uniform, mask_id, |column, u| column >= prompt_len && u < ratio)?;
    let p = (0..ids.values.len()).map(|i| if i % ids.cols.max(1) >= prompt_len { ratio } else { 0.0 });
    Ok((noisy, Table { values: p.collect(), ..*ids }))
}

/// coupled-GRPO's three inputs: all of the response masked, the tokens with `uniform` < `ratio`, and all the others.
/// `ids` and `uniform` [B, T].
///
/// # Errors
/// Shapes that differ.
pub fn coupled_masks(
    ids: &Table,
    uniform: &Table,
    prompt_len: usize,
    ratio: f64,
    mask_id: f64,
) -> Result<[Table; 3]> {
    Ok([
        replace(ids, uniform, mask_id, |column, _| column >= prompt_len)?,
        replace(ids, uniform, mask_id, |column, u| column >= prompt_len && u < ratio)?,
        replace(ids, uniform, mask_id, |column, u| column >= prompt_len && u >= ratio)?,
    ])
}

fn replace(ids: &Table, uniform: &Table, mask_id: f64, masked: impl Fn(usize, f64) -> bool) -> Result<Table> {
    uniform.same_shape("uniform", ids)?;
    let pairs = ids.values.iter().zip(&uniform.values).enumerate();
    let noisy = pairs.map(|(i, (&id, &u))| if masked(i % ids.cols.max(1), u) { mask_id } else { id });
    Ok(Table { values: noisy.collect(), ..*ids })
}

/// Independent masks of training: probability p = (1 - `epsilon`) t + `epsilon` per row, masked where `uniform` < p and
/// the position is not of the prompt (`prompt_lens` [B]; absent: no prompt). `t` [B] ~ U(0, 1), `uniform` [B, T].
/// Returns p [B] and the masks, 0 or 1.
///
/// # Errors
/// Lengths that differ.
pub fn bernoulli_masks(
    t: &[f64],
    uniform: &Table,
    prompt_lens: Option<&[usize]>,
    epsilon: f64,
) -> Result<(Vec<f64>, Table)> {
    same_len("t", t.len(), uniform.rows)?;
    if let Some(lens) = prompt_lens {
        same_len("prompt_lens", lens.len(), uniform.rows)?;
    }
    let p: Vec<f64> = t.iter().map(|t| (1.0 - epsilon) * t + epsilon).collect();
    let start = |row: usize| prompt_lens.map_or(0, |lens| lens[row]);
    let mut values = Vec::with_capacity(uniform.values.len());
    for (row, p) in p.iter().enumerate() {
        let masked = |(column, u): (usize, &f64)| f64::from(u8::from(column >= start(row) && u < p));
        values.extend(uniform.row(row).iter().enumerate().map(masked));
    }
    Ok((p, Table { values, ..*uniform }))
}

/// Diffusion steps of the inner updates (UniGRPO, IGPO): all `steps` when everything is masked, else from the drawn
/// `first` in equal parts up to `steps`. Step / `steps` is the masked share.
pub fn timesteps(updates: usize, steps: usize, full: bool, first: usize) -> Vec<usize> {
    let between = |n: usize| {
        let share = n as f64 / (updates.max(2) - 1) as f64;
        (share * (steps as f64 - first as f64) + first as f64).floor() as usize
    };
    (0..updates).map(|n| if full { steps } else { between(n) }).collect()
}

/// A recorded decoding taken apart (TraceRL).
#[derive(Clone, Debug, PartialEq)]
pub struct Slices {
    /// [L] step of every token after `shrink` steps were made one: the last step of its group.
    pub steps: Vec<u64>,
    /// [S, L] what the model saw in each slice.
    pub noisy: Table,
    /// [S, L] 1 on the tokens that were revealed there.
    pub targets: Table,
}

/// The slices of a trajectory: `step_of_token` [L] says at which decoding step each token of `response` [L] was
/// revealed; `shrink` successive steps are scored together. In slice s all tokens of later or equal steps are masked and
/// those of the same steps are targets. With `tail = (end_id, keep)` the run of `end_id` at the end is no target beyond
/// its first `keep` tokens.
///
/// # Errors
/// Lengths that differ, or a shrink of 0.
pub fn trajectory_slices(
    step_of_token: &[u64],
    response: &[u64],
    shrink: usize,
    mask_id: u64,
    tail: Option<(u64, usize)>,
) -> Result<Slices> {
    same_len("response", response.len(), step_of_token.len())?;
    if shrink == 0 {
        return Err(Error::Setting { name: "shrink", got: 0.0, expected: "1 or more" });
    }
    let mut order = step_of_token.to_vec();
    order.sort_unstable();
    order.dedup();
    let labels: Vec<u64> = order.chunks(shrink).filter_map(|group| group.last().copied()).collect();
    // The labels are sorted, and every step is at most the last one.
    let label = |step: u64| labels.iter().copied().find(|&l| l >= step).unwrap_or(step);
    let steps: Vec<u64> = step_of_token.iter().map(|&s| label(s)).collect();
    let counted = match tail {
        None => response.len(),
        Some((end, keep)) => {
            let run = response.iter().rev().take_while(|&&id| id == end).count();
            response.len() - run.saturating_sub(keep)
        }
    };
    let (mut noisy, mut targets) = (Vec::new(), Vec::new());
    for &s in &labels {
        noisy.extend(steps.iter().zip(response).map(|(&l, &id)| if l >= s { mask_id } else { id } as f64));
        targets.extend(steps.iter().enumerate().map(|(i, &l)| f64::from(u8::from(l == s && i < counted))));
    }
    let table = |values| Table { rows: labels.len(), cols: response.len(), values };
    Ok(Slices { noisy: table(noisy), targets: table(targets), steps })
}

/// MDLM's log-linear noise at time t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogLinear {
    /// Total noise, -ln(1 - (1 - eps) t).
    pub sigma: f64,
    /// Its rate.
    pub rate: f64,
    /// Probability that a token is masked, (1 - eps) t.
    pub mask_prob: f64,
    /// Factor on -logp of a masked token, 1 / t: LLaDA's weighting.
    pub loss_weight: f64,
}

/// The noise at time `t`, above 0 and at most 1.
pub fn log_linear(t: f64, epsilon: f64) -> LogLinear {
    let sigma = -(-(1.0 - epsilon) * t).ln_1p();
    let rate = (1.0 - epsilon) / (1.0 - (1.0 - epsilon) * t);
    LogLinear { sigma, rate, mask_prob: -(-sigma).exp_m1(), loss_weight: rate / sigma.exp_m1() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_are_in_range_and_all_sizes_are_met_equally_often(len in 1usize..40, first in 0usize..40) {
            let first = first % len + 1;
            let mut counts = mask_counts(len, len, first).unwrap();
            counts.sort_unstable();
            prop_assert_eq!(counts, (1..=len).collect::<Vec<_>>());
            let many = mask_counts(len, 2 * len + 3, first).unwrap();
            prop_assert!(many.iter().all(|c| (1..=len).contains(c)));
        }
    }

    #[test]
    fn no_tokens_cannot_be_masked() {
        assert!(
            mask_counts(0, 4, 1).is_err() && mask_counts(4, 0, 1).is_err() && mask_counts(4, 4, 5).is_err()
        );
    }

    #[test]
    fn every_token_is_a_target_once_but_for_the_tail() {
        let response = [5, 6, 9, 9, 9];
        let slices = trajectory_slices(&[0, 2, 1, 1, 3], &response, 2, 7, None).unwrap();
        let hits = |s: &Slices| -> Vec<f64> {
            (0..5).map(|i| (0..s.targets.rows).map(|r| s.targets.row(r)[i]).sum()).collect()
        };
        assert_eq!(hits(&slices), [1.0; 5]);
        let cut = trajectory_slices(&[0, 2, 1, 1, 3], &response, 2, 7, Some((9, 1))).unwrap();
        assert_eq!(hits(&cut), [1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(cut.noisy, slices.noisy);
    }

    #[test]
    fn a_mask_and_its_complement_share_nothing() {
        let ids = Table { rows: 1, cols: 5, values: vec![1.0, 2.0, 3.0, 4.0, 5.0] };
        let uniform = Table { rows: 1, cols: 5, values: vec![0.1, 0.9, 0.2, 0.8, 0.5] };
        let [full, masked, complement] = coupled_masks(&ids, &uniform, 1, 0.5, 0.0).unwrap();
        assert_eq!(full.values, [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(masked.values, [1.0, 2.0, 0.0, 4.0, 5.0]);
        assert_eq!(complement.values, [1.0, 0.0, 3.0, 0.0, 0.0]);
    }
}
