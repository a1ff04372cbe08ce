//! Learning rate over time.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Result, check};

/// Factor on the learning rate as a function of the number of updates done. Every kind first rises linearly over
/// `warmup_steps` updates: the first update takes 1 / `warmup_steps`, the last of them 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// 1 after the warm-up.
    Constant {
        /// Updates of the warm-up, 0 for none.
        #[serde(default)]
        warmup_steps: u64,
    },
    /// Half a cosine from 1 after the warm-up to `final_factor` at `total_steps`, then flat.
    Cosine {
        /// Updates of the warm-up, 0 for none.
        #[serde(default)]
        warmup_steps: u64,
        /// Updates until `final_factor` is reached, above `warmup_steps`.
        total_steps: u64,
        /// Factor at the end, in [0, 1].
        #[serde(default)]
        final_factor: f64,
    },
    /// A straight line from 1 after the warm-up to `final_factor` at `total_steps`, then flat.
    Linear {
        /// Updates of the warm-up, 0 for none.
        #[serde(default)]
        warmup_steps: u64,
        /// Updates until `final_factor` is reached, above `warmup_steps`.
        total_steps: u64,
        /// Factor at the end, in [0, 1].
        #[serde(default)]
        final_factor: f64,
    },
}

impl Schedule {
    /// The words `kind` may be.
    pub const KINDS: [&'static str; 3] = ["constant", "cosine", "linear"];

    /// Refuses numbers that make no schedule. Values read by serde have not been checked.
    ///
    /// # Errors
    /// `total_steps` not above `warmup_steps`, `final_factor` outside [0, 1].
    pub fn validate(&self) -> Result<()> {
        const OP: &str = "Schedule";
        match *self {
            Schedule::Constant { .. } => Ok(()),
            Schedule::Cosine { warmup_steps, total_steps, final_factor }
            | Schedule::Linear { warmup_steps, total_steps, final_factor } => {
                let longer = total_steps > warmup_steps;
                check::value(OP, "total_steps", total_steps, longer, &format!("above {warmup_steps}"))?;
                let unit = (0.0..=1.0).contains(&final_factor);
                check::value(OP, "final_factor", final_factor, unit, "a number from 0 to 1")
            }
        }
    }

    /// Factor for the update after `step` updates (the first one is step 0).
    pub fn factor(&self, step: u64) -> f64 {
        let (warmup, decay) = match *self {
            Schedule::Constant { warmup_steps } => (warmup_steps, None),
            Schedule::Cosine { warmup_steps, total_steps, final_factor } => {
                let half_cosine = |part: f64| 0.5 * (1.0 + (PI * part).cos());
                (warmup_steps, Some((total_steps, final_factor, half_cosine as fn(f64) -> f64)))
            }
            Schedule::Linear { warmup_steps, total_steps, final_factor } => {
                (warmup_steps, Some((total_steps, final_factor, (|part| 1.0 - part) as fn(f64) -> f64)))
            }
        };
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let Some((total, last, shape)) = decay else { return 1.0 };
        let part = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        last + (1.0 - last) * shape(part.min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn warms_up_then_falls() {
        let cosine = Schedule::Cosine { warmup_steps: 4, total_steps: 14, final_factor: 0.1 };
        let factors: Vec<f64> = [0, 3, 4, 9, 14, 1000].map(|step| cosine.factor(step)).to_vec();
        let expected = [0.25, 1.0, 1.0, 0.55, 0.1, 0.1];
        assert!(factors.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{factors:?}");
        let linear = Schedule::Linear { warmup_steps: 0, total_steps: 10, final_factor: 0.0 };
        assert!((linear.factor(0) - 1.0).abs() < 1e-12 && (linear.factor(5) - 0.5).abs() < 1e-12);
        let constant = Schedule::Constant { warmup_steps: 2 };
        assert_eq!([0, 1, 2, 99].map(|step| constant.factor(step)), [0.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn refuses_what_makes_no_schedule() {
        let short = Schedule::Cosine { warmup_steps: 10, total_steps: 10, final_factor: 0.0 };
        assert!(short.validate().is_err_and(|e| e.to_string().contains("total_steps")));
        let above = Schedule::Linear { warmup_steps: 0, total_steps: 10, final_factor: 1.5 };
        assert!(above.validate().is_err_and(|e| e.to_string().contains("final_factor")));
    }

    #[test]
    fn reads_its_own_words_and_no_others() {
        let read = |text: &str| serde_json::from_str::<Schedule>(text);
        let cosine = read(r#"{"kind": "cosine", "total_steps": 9}"#);
        assert!(
            cosine
                .is_ok_and(|s| s == Schedule::Cosine { warmup_steps: 0, total_steps: 9, final_factor: 0.0 })
        );
        assert!(read(r#"{"kind": "cosine", "total_steps": 9, "warmup": 3}"#).is_err());
        for kind in Schedule::KINDS {
            assert!(
                read(&format!(r#"{{"kind": "{kind}", "total_steps": 9}}"#)).is_ok() || kind == "constant"
            );
        }
    }
}
