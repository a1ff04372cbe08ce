//! Decisions of the sampler: how many tokens to reveal, which words, which positions. All in f64.

use super::same_len;
use crate::error::{Error, Result};
use crate::table::Table;

/// How many of the masked tokens of every row are revealed in each of `steps` steps, [B][steps]: equal parts, the first
/// steps take the rest. `mask` [B, T], not 0 where masked.
///
/// # Errors
/// No step.
pub fn transfer_counts(mask: &Table, steps: usize) -> Result<Vec<Vec<usize>>> {
    if steps == 0 {
        return Err(Error::Setting { name: "steps", got: 0.0, expected: "1 or more" });
    }
    let row = |i: usize| {
        let masked = mask.row(i).iter().filter(|&&m| m != 0.0).count();
        (0..steps).map(|s| masked / steps + usize::from(s < masked % steps)).collect()
    };
    Ok((0..mask.rows).map(row).collect())
}

/// exp(logit) / (-ln u)^temperature, the score whose largest entry is a sample of the tempered distribution; at
/// temperature 0 the logits. `uniform` are draws from (0, 1), one per logit.
///
/// # Errors
/// Lengths that differ.
pub fn gumbel_scores(logits: &[f64], uniform: &[f64], temperature: f64) -> Result<Vec<f64>> {
    same_len("uniform", uniform.len(), logits.len())?;
    if temperature == 0.0 {
        return Ok(logits.to_vec());
    }
    Ok(logits.iter().zip(uniform).map(|(x, u)| x.exp() / (-u.ln()).powf(temperature)).collect())
}

/// Place of the largest of [`gumbel_scores`], compared as logit - temperature ln(-ln u), which does not overflow.
///
/// # Errors
/// Lengths that differ.
pub fn gumbel_argmax(logits: &[f64], uniform: &[f64], temperature: f64) -> Result<usize> {
    same_len("uniform", uniform.len(), logits.len())?;
    if temperature == 0.0 {
        return Ok(argmax(logits));
    }
    let noisy: Vec<f64> = logits.iter().zip(uniform).map(|(x, u)| x - temperature * (-u.ln()).ln()).collect();
    Ok(argmax(&noisy))
}

/// The first largest.
fn argmax(x: &[f64]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// What is revealed in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// [B, T] the likeliest word at masked positions, what stands there elsewhere.
    pub words: Table,
    /// [B, T] 1 where the word is put in.
    pub transfer: Table,
}

/// The `counts` [B] most confident masked positions of every row. `logits` [B * T * V], `mask` and `ids` [B, T]; the
/// confidence is the likeliest word's probability.
///
/// # Errors
/// Lengths that differ.
pub fn select_fixed(logits: &[f64], mask: &Table, ids: &Table, counts: &[usize]) -> Result<Choice> {
    same_len("counts", counts.len(), mask.rows)?;
    select(logits, mask, ids, |row, _| counts[row])
}

/// The most confident masked position of every row and all others whose confidence is at least `threshold`
/// (Fast-dLLM). Inputs as in [`select_fixed`].
///
/// # Errors
/// Lengths that differ.
pub fn select_by_threshold(logits: &[f64], mask: &Table, ids: &Table, threshold: f64) -> Result<Choice> {
    select(logits, mask, ids, |_, sorted| sorted.iter().filter(|&&c| c >= threshold).count().max(1))
}

/// Fast-dLLM's factor rule: with confidences c_1 >= c_2 >= .. the n-th (n >= 2) goes in while c_n >= 1 - factor/(n + 1),
/// up to the first that fails. As in the authors' code the last one follows whenever all before it went in. Inputs as in
/// [`select_fixed`].
///
/// # Errors
/// Lengths that differ.
pub fn select_by_factor(logits: &[f64], mask: &Table, ids: &Table, factor: f64) -> Result<Choice> {
    select(logits, mask, ids, |_, sorted| {
        let fails = |i: usize| i > 0 && sorted[i] < 1.0 - factor / (i as f64 + 2.0);
        let last = sorted.len().saturating_sub(1);
        let stop = (0..sorted.len()).find(|&i| fails(i)).unwrap_or(last);
        if stop == 0 || stop == last { stop + 1 } else { stop }
    })
}

/// `how_many(row, confidences in falling order)` of every row's masked positions.
fn select(
    logits: &[f64],
    mask: &Table,
    ids: &Table,
    how_many: impl Fn(usize, &[f64]) -> usize,
) -> Result<Choice> {
    ids.same_shape("ids", mask)?;
    let places = mask.values.len();
    let v = logits.len() / places.max(1);
    same_len("logits", logits.len(), places * v)?;
    if places > 0 && v == 0 {
        return Err(Error::Shape { name: "logits", got: vec![0], expected: "[B, T, V]".into() });
    }
    let (mut words, mut transfer) = (ids.clone(), ids.filled(0.0));
    for row in 0..mask.rows {
        let mut open: Vec<(usize, f64)> = Vec::new();
        for at in (row * mask.cols..(row + 1) * mask.cols).filter(|&at| mask.values[at] != 0.0) {
            let x = &logits[at * v..(at + 1) * v];
            let word = argmax(x);
            words.values[at] = word as f64;
            open.push((at, 1.0 / x.iter().map(|y| (y - x[word]).exp()).sum::<f64>()));
        }
        open.sort_by(|a, b| b.1.total_cmp(&a.1));
        let sorted: Vec<f64> = open.iter().map(|&(_, c)| c).collect();
        let count = if open.is_empty() { 0 } else { how_many(row, &sorted) };
        open.iter().take(count).for_each(|&(at, _)| transfer.values[at] = 1.0);
    }
    Ok(Choice { words, transfer })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn counts_add_up() {
        let mask = Table { rows: 2, cols: 5, values: vec![1., 1., 0., 1., 1., 0., 0., 0., 0., 0.] };
        for steps in 1..8 {
            let counts = transfer_counts(&mask, steps).unwrap();
            assert_eq!(counts.iter().map(|c| c.iter().sum()).collect::<Vec<usize>>(), [4, 0]);
            assert!(counts[0].windows(2).all(|w| w[0] >= w[1] && w[0] - w[1] <= 1));
        }
    }

    #[test]
    fn scores_and_noisy_logits_choose_alike_where_scores_do_not_overflow() {
        let (logits, uniform) = ([0.3, -1.0, 2.0], [0.9, 0.999, 0.2]);
        for temperature in [0.0, 0.4, 1.0, 3.0] {
            let scores = gumbel_scores(&logits, &uniform, temperature).unwrap();
            assert_eq!(gumbel_argmax(&logits, &uniform, temperature).unwrap(), argmax(&scores));
        }
        assert_eq!(gumbel_argmax(&[900.0, 1000.0], &[0.5, 0.5], 1.0).unwrap(), 1);
    }

    #[test]
    fn nothing_is_put_where_nothing_is_masked() {
        let mask = Table { rows: 2, cols: 2, values: vec![0., 0., 1., 0.] };
        let ids = Table { rows: 2, cols: 2, values: vec![1., 1., 0., 1.] };
        let logits = [0.0, 1.0, 0.0, 1.0, 5.0, 1.0, 0.0, 1.0];
        for choice in [
            select_fixed(&logits, &mask, &ids, &[3, 3]).unwrap(),
            select_by_threshold(&logits, &mask, &ids, 0.999).unwrap(),
            select_by_factor(&logits, &mask, &ids, 1.0).unwrap(),
        ] {
            assert_eq!(choice.transfer.values, [0.0, 0.0, 1.0, 0.0]);
            assert_eq!(choice.words.values, [1.0, 1.0, 0.0, 1.0]);
        }
    }
}
