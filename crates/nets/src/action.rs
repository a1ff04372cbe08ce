//! Continuous actions as tokens, and the statistics that bring them into range (OpenVLA `action_tokenizer.py`,
//! OpenVLA-OFT `modeling_prismatic.py` and `openvla_utils.py`).

use serde::{Deserialize, Serialize};

use crate::config::ACTION_BINS;
use crate::error::{Error, Result};

/// Edge `i` of 0..256: 256 edges from -1 to 1, so 255 bins. Rounded as in numpy's `linspace`, because an action that
/// lies on an edge must fall on the same side.
fn edge(i: usize) -> f64 {
    let last = ACTION_BINS - 1;
    if i == last { 1.0 } else { i as f64 * (2.0 / last as f64) - 1.0 }
}

/// Number of edges at or below `x`, numpy's `digitize`: 1..=256 for `x` in [-1, 1].
fn digitize(x: f64) -> usize {
    // The division can land one off; the edges themselves decide.
    let guess = (((x + 1.0) / 2.0 * (ACTION_BINS - 1) as f64) as usize).min(ACTION_BINS - 1);
    if edge(guess) > x {
        guess
    } else if guess + 1 < ACTION_BINS && edge(guess + 1) <= x {
        guess + 2
    } else {
        guess + 1
    }
}

/// Index 0..256 of `action` among the action tokens, which is its column in the logits of [`Vla`](crate::Vla). In
/// OpenVLA's vocabulary of 32000 it is the id `31744 + index`. Ids run against the action: 1 is index 0, -1 is 255.
///
/// Values outside [-1, 1] are clipped; NaN becomes -1.
pub fn encode_action(action: f64) -> u32 {
    let x = if action.is_nan() { -1.0 } else { action.clamp(-1.0, 1.0) };
    (ACTION_BINS - digitize(x)) as u32
}

/// Centre of the bin `index` stands for. There are 256 indices and 255 bins: 0 and 1 share one. Larger indices than 255
/// decode like 255.
pub fn decode_action(index: u32) -> f64 {
    let i = (ACTION_BINS - 1).saturating_sub(index as usize).min(ACTION_BINS - 2);
    (edge(i) + edge(i + 1)) / 2.0
}

/// OpenVLA's gripper number, 0 closed to 1 open, as the environments want it: -1 opens, +1 closes. Exactly one half is 0.
pub fn gripper_to_env(openness: f64) -> f64 {
    let x = 2.0 * openness - 1.0;
    if x == 0.0 { 0.0 } else { -x.signum() }
}

/// Quantiles of one vector-valued signal, as published with OpenVLA checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    /// 1% quantile per dimension.
    pub q01: Vec<f64>,
    /// 99% quantile per dimension.
    pub q99: Vec<f64>,
    /// Dimensions that are normalised; the others (the gripper) pass unchanged.
    pub mask: Vec<bool>,
}

/// OpenVLA adds this to the range, so that a constant dimension divides by something.
const RANGE_EPS: f64 = 1e-8;

impl Quantiles {
    /// The range [-1, 1] in every dimension: for signals that are already normalised.
    pub fn unit(dims: usize) -> Self {
        Self { q01: vec![-1.0; dims], q99: vec![1.0; dims], mask: vec![true; dims] }
    }

    /// Quantiles of `rows` by linear interpolation (numpy's default), all dimensions normalised.
    ///
    /// # Errors
    /// No rows, a row of another length than the first, or a number that is not finite.
    pub fn from_rows(rows: &[Vec<f64>]) -> Result<Self> {
        let dims = rows.first().map_or(0, Vec::len);
        if dims == 0 || rows.iter().any(|r| r.len() != dims || !r.iter().all(|x| x.is_finite())) {
            let expected = "at least one row, all of one length, finite numbers".into();
            return Err(Error::Input { name: "rows", got: vec![rows.len(), dims], expected });
        }
        let quantile = |d: usize, q: f64| {
            let mut column: Vec<f64> = rows.iter().map(|r| r[d]).collect();
            column.sort_by(f64::total_cmp);
            let at = q * (column.len() - 1) as f64;
            let (low, high) = (at.floor() as usize, at.ceil() as usize);
            column[low] + (column[high] - column[low]) * (at - low as f64)
        };
        Ok(Self {
            q01: (0..dims).map(|d| quantile(d, 0.01)).collect(),
            q99: (0..dims).map(|d| quantile(d, 0.99)).collect(),
            mask: vec![true; dims],
        })
    }

    /// Whether these statistics fit a signal of `dims` numbers: refuse statistics of another robot before they act.
    ///
    /// # Errors
    /// Lists of other lengths, bounds that are not finite or in the wrong order.
    pub fn check(&self, name: &'static str, dims: usize) -> Result<()> {
        let got = vec![self.q01.len(), self.q99.len(), self.mask.len()];
        if got != [dims; 3] {
            let expected = format!("{dims} numbers in each of q01, q99 and mask");
            return Err(Error::Input { name, got, expected });
        }
        let bad = |(low, high): (&f64, &f64)| !(low.is_finite() && high.is_finite() && low <= high);
        match self.q01.iter().zip(&self.q99).position(bad) {
            None => Ok(()),
            Some(d) => {
                let expected =
                    format!("finite q01 <= q99 (number {d} is {} and {})", self.q01[d], self.q99[d]);
                Err(Error::Input { name, got, expected })
            }
        }
    }

    /// clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1) where masked, `x` elsewhere.
    pub fn normalise(&self, d: usize, x: f64) -> f64 {
        match (self.q01.get(d), self.q99.get(d), self.mask.get(d)) {
            (Some(q01), Some(q99), Some(true)) => {
                let y = 2.0 * (x - q01) / (q99 - q01 + RANGE_EPS) - 1.0;
                y.clamp(-1.0, 1.0)
            }
            _ => x,
        }
    }

    /// 0.5 (y + 1) (q99 - q01 + 1e-8) + q01 where masked, `y` elsewhere.
    pub fn restore(&self, d: usize, y: f64) -> f64 {
        match (self.q01.get(d), self.q99.get(d), self.mask.get(d)) {
            (Some(q01), Some(q99), Some(true)) => 0.5 * (y + 1.0) * (q99 - q01 + RANGE_EPS) + q01,
            _ => y,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ends_and_middle() {
        assert_eq!([1.0, 9.0, -1.0, -7.0].map(encode_action), [0, 0, 255, 255]);
        assert_eq!(encode_action(0.0), 128); // between the edges -1/255 and 1/255, which are numbers 127 and 128
        assert_eq!(encode_action(f64::NAN), 255);
        assert_eq!(decode_action(0), decode_action(1));
        assert_eq!(decode_action(256), decode_action(255));
        assert!(decode_action(128).abs() < 1e-12);
    }

    #[test]
    fn decoding_is_within_half_a_bin_and_encoding_undoes_it() {
        for index in 1..256 {
            assert_eq!(encode_action(decode_action(index)), index);
            assert_eq!(
                encode_action(edge(255 - index as usize)),
                index,
                "an edge belongs to the bin above it"
            );
        }
        for i in 0..=1000 {
            let x = -1.0 + i as f64 / 500.0;
            assert!((decode_action(encode_action(x)) - x).abs() <= 1.0 / 255.0 + 1e-12);
        }
    }

    #[test]
    fn normalisation_round_trips_inside_the_range_and_skips_the_gripper() {
        let mut q =
            Quantiles::from_rows(&(0..101).map(|i| vec![f64::from(i), 5.0]).collect::<Vec<_>>()).unwrap();
        assert_eq!((q.q01[0], q.q99[0]), (1.0, 99.0));
        for x in [1.0, 30.0, 99.0] {
            assert!((q.restore(0, q.normalise(0, x)) - x).abs() < 1e-9);
        }
        assert_eq!(q.normalise(0, -50.0), -1.0);
        q.mask[1] = false;
        assert_eq!((q.normalise(1, 0.3), q.restore(1, 0.3)), (0.3, 0.3));
        assert!(Quantiles::from_rows(&[]).is_err());
        assert!(Quantiles::from_rows(&[vec![f64::NAN]]).is_err());
    }

    #[test]
    fn statistics_of_another_robot_are_refused() {
        let mut q = Quantiles::unit(7);
        assert!(q.check("action statistics", 7).is_ok());
        assert!(q.check("action statistics", 8).is_err());
        q.q01[3] = 2.0;
        assert!(q.check("action statistics", 7).unwrap_err().to_string().contains("number 3"));
        q.q01[3] = f64::NAN;
        assert!(q.check("action statistics", 7).is_err());
    }

    #[test]
    fn the_gripper_flips() {
        assert_eq!([0.0, 0.2, 0.5, 0.9, 1.0].map(gripper_to_env), [1.0, 1.0, 0.0, -1.0, -1.0]);
    }
}
