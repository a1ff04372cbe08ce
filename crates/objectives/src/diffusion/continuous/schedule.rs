//! How much noise there is at each timestep, which timesteps a sampler visits, and two schedules around the network.

use std::f64::consts::FRAC_PI_2;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::table::Table;

/// Shape of beta over the timesteps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// From `beta_start` to `beta_end` in equal steps (DDPM).
    #[default]
    Linear,
    /// The square root of beta in equal steps (Stable Diffusion).
    ScaledLinear,
    /// beta_t = min(1 - g((t + 1) / T) / g(t / T), 0.999) with g(s) = cos^2((s + 0.008) / 1.008 pi / 2); the two ends
    /// are not used (2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCos,
}

/// Number format of the schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 betas and alphas, products in f64 and stored in f32: what the common libraries train and sample with. Where
    /// beta is 1e-4, the ratio of signal to noise differs from f64 by 2e-4.
    #[default]
    Single,
    /// f64 throughout.
    Double,
}

impl Precision {
    fn round(self, x: f64) -> f64 {
        match self {
            Self::Single => f64::from(x as f32),
            Self::Double => x,
        }
    }
}

/// Settings of the forward process. Default: 3DFlowAction's world model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoiseSchedule {
    /// T, at least 1.
    pub timesteps: usize,
    /// beta at timestep 0, between 0 and 1.
    pub beta_start: f64,
    /// beta at timestep T - 1, between 0 and 1.
    pub beta_end: f64,
    /// What lies between.
    pub shape: BetaSchedule,
    /// Number format.
    pub precision: Precision,
}

impl Default for NoiseSchedule {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            beta_start: 8.5e-4,
            beta_end: 1.2e-2,
            shape: BetaSchedule::Linear,
            precision: Precision::Single,
        }
    }
}

impl NoiseSchedule {
    /// Refuses settings without a schedule.
    ///
    /// # Errors
    /// No timesteps, a beta outside (0, 1).
    pub fn validate(&self) -> Result<()> {
        if self.timesteps == 0 {
            return Err(Error::Setting { name: "timesteps", got: 0.0, expected: "at least 1" });
        }
        for (name, got) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(got > 0.0 && got < 1.0) {
                return Err(Error::Setting { name, got, expected: "between 0 and 1" });
            }
        }
        Ok(())
    }

    /// beta and alpha_bar of every timestep.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn table(&self) -> Result<NoiseTable> {
        self.validate()?;
        let round = |x| self.precision.round(x);
        let betas: Vec<f64> = match self.shape {
            BetaSchedule::Linear => self.evenly(self.beta_start, self.beta_end),
            BetaSchedule::ScaledLinear => {
                let roots = self.evenly(self.beta_start.sqrt(), self.beta_end.sqrt());
                roots.into_iter().map(|x| round(x * x)).collect()
            }
            BetaSchedule::SquaredCos => {
                let signal = |s: f64| ((s + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
                let share = |t: usize| t as f64 / self.timesteps as f64;
                let beta = |t| (1.0 - signal(share(t + 1)) / signal(share(t))).min(0.999);
                (0..self.timesteps).map(|t| round(beta(t))).collect()
            }
        };
        let mut product = 1.0;
        let kept = |beta: &f64| {
            product *= round(1.0 - beta);
            round(product)
        };
        let alpha_bar = betas.iter().map(kept).collect();
        Ok(NoiseTable { betas, alpha_bar })
    }

    /// T numbers from `first` to `last`, laid from both ends as PyTorch does.
    fn evenly(&self, first: f64, last: f64) -> Vec<f64> {
        let round = |x| self.precision.round(x);
        let (first, last) = (round(first), round(last));
        let n = self.timesteps;
        if n == 1 {
            return vec![first];
        }
        let step = round(round(last - first) / (n - 1) as f64);
        let at = |i: usize| {
            if i < n / 2 {
                round(first + round(step * i as f64))
            } else {
                round(last - round(step * (n - 1 - i) as f64))
            }
        };
        (0..n).map(at).collect()
    }
}

/// A computed schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseTable {
    /// [T] share of noise added at each timestep.
    betas: Vec<f64>,
    /// [T] share of signal variance that is left.
    alpha_bar: Vec<f64>,
}

impl NoiseTable {
    /// T.
    pub fn timesteps(&self) -> usize {
        self.betas.len()
    }

    /// beta_t.
    ///
    /// # Errors
    /// A timestep outside 0 .. T.
    pub fn beta(&self, t: usize) -> Result<f64> {
        self.at(&self.betas, t)
    }

    /// alpha_bar_t, in (0, 1).
    ///
    /// # Errors
    /// A timestep outside 0 .. T.
    pub fn alpha_bar(&self, t: usize) -> Result<f64> {
        self.at(&self.alpha_bar, t)
    }

    /// alpha_bar of the timestep that a sampler goes to; 1, no noise at all, after the last one (`None`).
    ///
    /// # Errors
    /// A timestep outside 0 .. T.
    pub fn alpha_bar_or_clean(&self, t: Option<usize>) -> Result<f64> {
        t.map_or(Ok(1.0), |t| self.alpha_bar(t))
    }

    /// Ratio of signal to noise, alpha_bar / (1 - alpha_bar).
    ///
    /// # Errors
    /// A timestep outside 0 .. T.
    pub fn snr(&self, t: usize) -> Result<f64> {
        let signal = self.alpha_bar(t)?;
        Ok(signal / (1.0 - signal))
    }

    fn at(&self, values: &[f64], t: usize) -> Result<f64> {
        let reason = || format!("{t} of {} timesteps", self.timesteps());
        values.get(t).copied().ok_or_else(|| Error::Invalid { what: "timestep", reason: reason() })
    }
}

/// Which n of T timesteps a sampler visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// i floor(T / n) + offset. Never reaches T - 1 unless the offset says so.
    #[default]
    Leading,
    /// round(T - i T / n) - 1: starts at T - 1.
    Trailing,
    /// n equally spaced numbers from 0 to T - 1, rounded: both ends.
    Linspace,
}

impl Spacing {
    /// `n` of `total` timesteps, the noisiest first; `offset` is added by [`Spacing::Leading`] only. Halves are rounded
    /// to even.
    ///
    /// # Errors
    /// No timesteps, more than there are, an offset that leaves the schedule.
    pub fn timesteps(self, n: usize, total: usize, offset: usize) -> Result<Vec<usize>> {
        if n == 0 || n > total {
            let reason = format!("{n} timesteps of {total}");
            return Err(Error::Invalid { what: "timesteps of a sampler", reason });
        }
        let (count, all) = (n as f64, total as f64);
        let at = |i: usize| match self {
            Self::Leading => (n - 1 - i) * (total / n) + offset,
            Self::Trailing => ((all - i as f64 * (all / count)).round_ties_even() as usize).saturating_sub(1),
            Self::Linspace if n == 1 => 0,
            Self::Linspace => ((n - 1 - i) as f64 * ((all - 1.0) / (count - 1.0))).round_ties_even() as usize,
        };
        let steps: Vec<usize> = (0..n).map(at).collect();
        match steps.iter().find(|t| **t >= total) {
            None => Ok(steps),
            Some(t) => {
                let reason = format!("timestep {t} of {total} with an offset of {offset}");
                Err(Error::Invalid { what: "timesteps of a sampler", reason })
            }
        }
    }
}

/// Where a sampler of `n` steps goes from `t`: t - floor(total / n), `None` when that is before the first timestep.
pub fn previous_timestep(t: usize, n: usize, total: usize) -> Option<usize> {
    t.checked_sub(total / n.max(1))
}

/// Sinusoids of the timestep, [N, dim]: cosines of t f_i in the first half, sines in the second, with frequencies
/// f_i = max_period^(-i / (dim / 2)); an odd `dim` ends with a 0. Angles are rounded as `precision` says: in f32 an angle
/// of 1000 is off by 3e-5.
///
/// # Errors
/// A period of 0 or less.
pub fn timestep_embedding(t: &[f64], dim: usize, max_period: f64, precision: Precision) -> Result<Table> {
    if !(max_period > 0.0 && max_period.is_finite()) {
        return Err(Error::Setting { name: "max_period", got: max_period, expected: "greater than 0" });
    }
    let (half, round) = (dim / 2, |x| precision.round(x));
    let exponent = |i: usize| round(round(round(-max_period.ln()) * i as f64) / half as f64);
    let frequencies: Vec<f64> = (0..half).map(|i| round(exponent(i).exp())).collect();
    let mut values = Vec::with_capacity(t.len() * dim);
    for &t in t {
        let angles: Vec<f64> = frequencies.iter().map(|f| round(round(t) * f)).collect();
        values.extend(angles.iter().map(|a| a.cos()));
        values.extend(angles.iter().map(|a| a.sin()));
        values.extend((2 * half..dim).map(|_| 0.0));
    }
    Ok(Table { rows: t.len(), cols: dim, values })
}

/// Decay of the moving average of the weights, which warms up:
///
/// ```text
/// s = max(0, n - update_after - 1);   0 if s = 0, else clip(1 - (1 + s / inv_gamma)^-power, min, max)
/// ```
///
/// (im2Flow2Act, after diffusers.) Power 2/3 suits a million steps, 3/4 fewer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaDecay {
    /// Optimiser steps before averaging starts.
    pub update_after: u64,
    /// Steps until the decay is 1 - 2^-power, greater than 0.
    pub inv_gamma: f64,
    /// How fast the decay nears 1, greater than 0.
    pub power: f64,
    /// Smallest decay, 0 to `max`.
    pub min: f64,
    /// Largest decay, up to 1.
    pub max: f64,
}

impl Default for EmaDecay {
    fn default() -> Self {
        Self { update_after: 0, inv_gamma: 1.0, power: 2.0 / 3.0, min: 0.0, max: 0.9999 }
    }
}

impl EmaDecay {
    /// Refuses settings out of range.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        for (name, got) in [("inv_gamma", self.inv_gamma), ("power", self.power)] {
            if !(got > 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "greater than 0" });
            }
        }
        if !(self.min >= 0.0 && self.min <= 1.0) {
            return Err(Error::Setting { name: "min", got: self.min, expected: "0 to 1" });
        }
        if !(self.max >= self.min && self.max <= 1.0) {
            return Err(Error::Setting { name: "max", got: self.max, expected: "`min` to 1" });
        }
        Ok(())
    }

    /// Share of the old average at optimiser step `n`.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn at(&self, n: u64) -> Result<f64> {
        self.validate()?;
        match n.saturating_sub(self.update_after).saturating_sub(1) {
            0 => Ok(0.0),
            s => Ok((1.0 - (1.0 + s as f64 / self.inv_gamma).powf(-self.power)).clamp(self.min, self.max)),
        }
    }
}
