//! Decisions of trajectories as rows of a batch: which of them an update learns from, and where their tokens stand.

use candle_core::Tensor;
use efference_objectives::Table;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;

/// Decisions of one trajectory that an update learns from.
pub(crate) struct Chosen {
    /// Which trajectory.
    pub(crate) trajectory: usize,
    /// One flag per decision.
    flags: Vec<bool>,
}

impl Chosen {
    /// A random `share` of `decisions` decisions, at least one.
    pub(crate) fn draw(trajectory: usize, decisions: usize, share: f64, seed: u64) -> Self {
        let keep = ((decisions as f64 * share).ceil() as usize).clamp(1.min(decisions), decisions);
        let mut flags: Vec<bool> = (0..decisions).map(|d| d < keep).collect();
        if keep < decisions {
            flags.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        Self { trajectory, flags }
    }

    /// Those of `all`, in order.
    pub(crate) fn of<'a, T>(&'a self, all: &'a [T]) -> impl Iterator<Item = &'a T> {
        all.iter().zip(&self.flags).filter_map(|(x, on)| on.then_some(x))
    }

    fn count(&self) -> usize {
        self.flags.iter().filter(|on| **on).count()
    }
}

/// `mask` [B, T], one row per element of `chosen`, without the tokens of decisions that were not chosen.
pub(crate) fn masked(mut mask: Table, chosen: &[Chosen], per_decision: usize) -> Table {
    let cols = mask.cols;
    for (row, chosen) in mask.values.chunks_mut(cols.max(1)).zip(chosen) {
        for (tokens, on) in row.chunks_mut(per_decision).zip(&chosen.flags) {
            if !on {
                tokens.fill(0.0);
            }
        }
    }
    mask
}

/// Consecutive runs of `mini` with at most `most` decisions each, or one trajectory if that alone has more.
pub(crate) fn micro_batches(mini: &[Chosen], most: usize) -> Vec<&[Chosen]> {
    let mut parts = Vec::new();
    let (mut start, mut count) = (0, 0);
    for (at, chosen) in mini.iter().enumerate() {
        let decisions = chosen.count();
        if count > 0 && count + decisions > most {
            parts.push(&mini[start..at]);
            (start, count) = (at, 0);
        }
        count += decisions;
    }
    parts.push(&mini[start..]);
    parts
}

/// Rows of chosen decisions [D, T] to rows of trajectories [B, longest * T], zeros where nothing was chosen.
pub(crate) fn pack(rows: &Tensor, chosen: &[Chosen], longest: usize) -> Result<Tensor> {
    let (d, t) = rows.dims2()?;
    let mut ids = Vec::with_capacity(chosen.len() * longest);
    let mut next = 0u32;
    for chosen in chosen {
        for &on in &chosen.flags {
            ids.push(if on { next } else { d as u32 });
            next += u32::from(on);
        }
        ids.extend(std::iter::repeat_n(d as u32, longest - chosen.flags.len()));
    }
    let zeros = Tensor::zeros((1, t), rows.dtype(), rows.device())?;
    let ids = Tensor::from_vec(ids, chosen.len() * longest, rows.device())?;
    Ok(Tensor::cat(&[rows, &zeros], 0)?.index_select(&ids, 0)?.reshape((chosen.len(), longest * t))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_is_chosen_stands_where_it_was_and_the_rest_is_masked() {
        let chosen: Vec<Chosen> = (0..20).map(|i| Chosen::draw(i, 5, 0.4, i as u64)).collect();
        assert!(chosen.iter().all(|c| c.count() == 2));
        assert!(chosen.iter().any(|c| c.flags != chosen[0].flags));
        let all: Vec<u32> = (10..15).collect();
        for c in &chosen {
            let rows: Vec<f32> = c.of(&all).flat_map(|&x| [x as f32; 3]).collect();
            let rows = Tensor::from_vec(rows, (2, 3), &Device::Cpu).unwrap();
            let one = std::slice::from_ref(c);
            let packed = pack(&rows, one, 6).unwrap().to_vec2::<f32>().unwrap().remove(0);
            let mask = masked(Table { rows: 1, cols: 18, values: vec![1.0; 18] }, one, 3);
            for (d, &on) in c.flags.iter().enumerate() {
                let tokens = 3 * d..3 * d + 3;
                let expected = if on { all[d] as f32 } else { 0.0 };
                assert!(packed[tokens.clone()].iter().all(|&x| x == expected));
                assert!(mask.values[tokens].iter().all(|&m| m == f64::from(u8::from(on))));
            }
        }
    }

    #[test]
    fn a_share_keeps_at_least_one_and_micro_batches_count_what_is_chosen() {
        assert_eq!(Chosen::draw(0, 7, 1e-9, 1).count(), 1);
        assert_eq!(Chosen::draw(0, 7, 1.0, 1).count(), 7);
        let mini: Vec<Chosen> = (0..4).map(|i| Chosen::draw(i, 10, 0.5, 3)).collect();
        let sizes: Vec<usize> = micro_batches(&mini, 10).iter().map(|m| m.len()).collect();
        assert_eq!(sizes, [2, 2]);
        assert_eq!(micro_batches(&mini, 1).len(), 4);
    }
}
