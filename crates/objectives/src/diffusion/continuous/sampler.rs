//! One step back from noise, and whole walks.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::schedule::{NoiseTable, Spacing, previous_timestep};
use super::training::Prediction;
use crate::diffusion::same_dims;
use crate::error::{Error, Result};
use crate::kl::clamp;

/// Refuses a share of signal that leaves no signal or no noise.
pub(super) fn check_signal(alpha_bar: f64) -> Result<()> {
    if alpha_bar > 0.0 && alpha_bar < 1.0 {
        return Ok(());
    }
    Err(Error::Setting { name: "alpha_bar", got: alpha_bar, expected: "between 0 and 1" })
}

/// Result of one step.
#[derive(Clone, Debug)]
pub struct Step {
    /// The less noisy sample.
    pub previous: Tensor,
    /// Its expectation: `previous` without the fresh noise.
    pub mean: Tensor,
    /// Standard deviation of the fresh noise.
    pub std: f64,
    /// The network's x_0, clipped if the sampler clips.
    pub clean: Tensor,
}

impl Step {
    fn new(mean: Tensor, std: f64, clean: Tensor, noise: Option<&Tensor>) -> Result<Self> {
        let previous = match noise {
            _ if std == 0.0 => mean.clone(),
            None => return Err(Error::Missing { name: "noise" }),
            Some(noise) => {
                same_dims("noise", noise, mean.dims())?;
                (&mean + (noise * std)?)?
            }
        };
        Ok(Self { previous, mean, std, clean })
    }
}

fn clipped(clean: Tensor, range: Option<f64>) -> Result<Tensor> {
    match range {
        None => Ok(clean),
        Some(range) if range > 0.0 => clamp(&clean, -range, range),
        Some(got) => Err(Error::Setting { name: "clip", got, expected: "greater than 0" }),
    }
}

/// DDIM (2010.02502): few, mostly deterministic steps.
///
/// ```text
/// std      = eta sqrt((1 - p) / (1 - a) (1 - a / p)),      a = alpha_bar_t, p = alpha_bar of the next timestep
/// x_prev   = sqrt(p) x0_hat + sqrt(1 - p - std^2) eps_hat + std z
/// ```
///
/// Default: 3DFlowAction, no fresh noise and no clipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddim {
    /// What the network predicts.
    pub prediction: Prediction,
    /// Share of DDPM's fresh noise, 0 (deterministic) to 1.
    pub eta: f64,
    /// x0_hat is kept within plus and minus this; eps_hat stays as it was. Absent: not clipped.
    pub clip: Option<f64>,
}

impl Ddim {
    /// Standard deviation of the fresh noise between two shares of signal, `alpha_bar` < `previous` <= 1.
    ///
    /// # Errors
    /// Shares in the wrong order, an eta outside 0 to 1.
    pub fn std(&self, alpha_bar: f64, previous: f64) -> Result<f64> {
        check_signal(alpha_bar)?;
        if !(self.eta >= 0.0 && self.eta <= 1.0) {
            return Err(Error::Setting { name: "eta", got: self.eta, expected: "0 to 1" });
        }
        if !(previous >= alpha_bar && previous <= 1.0) {
            let expected = "at least the share of signal now, at most 1";
            return Err(Error::Setting { name: "previous alpha_bar", got: previous, expected });
        }
        Ok(self.eta * ((1.0 - previous) / (1.0 - alpha_bar) * (1.0 - alpha_bar / previous)).sqrt())
    }

    /// From timestep `t` to `previous` (`None`: to the clean sample). `x_t` and the network's `output` of one shape;
    /// `noise` of that shape is needed where the step is random. The gradient flows through all of them.
    ///
    /// # Errors
    /// Shapes that differ, unknown timesteps, an eta outside 0 to 1, no `noise` for a random step.
    pub fn step(
        &self,
        table: &NoiseTable,
        x_t: &Tensor,
        output: &Tensor,
        t: usize,
        previous: Option<usize>,
        noise: Option<&Tensor>,
    ) -> Result<Step> {
        let (mean, std, clean) = self.mean(table, x_t, output, t, previous)?;
        Step::new(mean, std, clean, noise)
    }

    /// Expectation of the step, its standard deviation, and x0_hat.
    pub(super) fn mean(
        &self,
        table: &NoiseTable,
        x_t: &Tensor,
        output: &Tensor,
        t: usize,
        previous: Option<usize>,
    ) -> Result<(Tensor, f64, Tensor)> {
        let (now, then) = (table.alpha_bar(t)?, table.alpha_bar_or_clean(previous)?);
        let std = self.std(now, then)?;
        // Never negative for an eta up to 1 but by rounding.
        let rest = (1.0 - then - std * std).max(0.0);
        let estimate = self.prediction.split(x_t, output, now)?;
        let clean = clipped(estimate.clean, self.clip)?;
        let mean = ((&clean * then.sqrt())? + (estimate.noise * rest.sqrt())?)?;
        Ok((mean, std, clean))
    }
}

/// Variance of DDPM's fresh noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// Posterior variance (1 - p) / (1 - a) b, at least 1e-20.
    #[default]
    FixedSmall,
    /// b itself.
    FixedLarge,
}

/// DDPM (2006.11239): the posterior q(x_prev | x_t, x0_hat).
///
/// ```text
/// b = 1 - a / p,      a = alpha_bar_t, p = alpha_bar of the next timestep
/// mean = sqrt(p) b / (1 - a) x0_hat + sqrt(1 - b) (1 - p) / (1 - a) x_t
/// ```
///
/// No fresh noise at timestep 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddpm {
    /// What the network predicts.
    pub prediction: Prediction,
    /// How much fresh noise.
    pub variance: Variance,
    /// x0_hat is kept within plus and minus this. Absent: not clipped.
    pub clip: Option<f64>,
}

impl Ddpm {
    /// As [`Ddim::step`].
    ///
    /// # Errors
    /// Shapes that differ, unknown timesteps or in the wrong order, no `noise` for a random step.
    pub fn step(
        &self,
        table: &NoiseTable,
        x_t: &Tensor,
        output: &Tensor,
        t: usize,
        previous: Option<usize>,
        noise: Option<&Tensor>,
    ) -> Result<Step> {
        let (now, then) = (table.alpha_bar(t)?, table.alpha_bar_or_clean(previous)?);
        if then < now {
            let reason = format!("from timestep {t} to {previous:?} adds noise");
            return Err(Error::Invalid { what: "DDPM step", reason });
        }
        let added = 1.0 - now / then;
        let clean = clipped(self.prediction.split(x_t, output, now)?.clean, self.clip)?;
        let (of_clean, of_x) =
            (then.sqrt() * added / (1.0 - now), (1.0 - added).sqrt() * (1.0 - then) / (1.0 - now));
        let mean = ((&clean * of_clean)? + (x_t * of_x)?)?;
        let variance = match self.variance {
            _ if t == 0 => 0.0,
            Variance::FixedSmall => ((1.0 - then) / (1.0 - now) * added).max(1e-20),
            Variance::FixedLarge => added,
        };
        Step::new(mean, variance.sqrt(), clean, noise)
    }
}

/// The whole walk of `steps` DDIM steps from `noise`: the sample after each of them. `model` gives the output for a
/// sample at a timestep; `draw` gives fresh noise in the shape of its argument and is called for random steps only.
///
/// # Errors
/// Settings out of range; what `model` and `draw` refuse.
pub fn ddim_sample(
    sampler: &Ddim,
    table: &NoiseTable,
    noise: &Tensor,
    steps: usize,
    (spacing, offset): (Spacing, usize),
    mut model: impl FnMut(&Tensor, usize) -> Result<Tensor>,
    mut draw: impl FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let (mut x, mut walk) = (noise.clone(), Vec::with_capacity(steps));
    for t in spacing.timesteps(steps, table.timesteps(), offset)? {
        let previous = previous_timestep(t, steps, table.timesteps());
        let (mean, std, clean) = sampler.mean(table, &x, &model(&x, t)?, t, previous)?;
        let fresh = if std > 0.0 { Some(draw(&x)?) } else { None };
        x = Step::new(mean, std, clean, fresh.as_ref())?.previous;
        walk.push(x.clone());
    }
    Ok(walk)
}

/// Classifier-free guidance: without + scale (with - without). Scale 1 is the conditional output, 8 is 3DFlowAction's,
/// which leaves out the text alone and keeps image and points in both.
///
/// # Errors
/// Shapes that differ.
pub fn guide(without: &Tensor, with: &Tensor, scale: f64) -> Result<Tensor> {
    same_dims("with", with, without.dims())?;
    Ok((without + ((with - without)? * scale)?)?)
}

/// How a flow is integrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Integrator {
    /// x - h v(x, t).
    #[default]
    Euler,
    /// x - h (v(x, t) + v(x - h v(x, t), t - h)) / 2: two calls of the network per step.
    Heun,
}

/// Follows the velocity from `noise` at t = 1 to t = 0 in `steps` equal steps h = 1 / steps. Returns all steps + 1
/// samples, `noise` first.
///
/// # Errors
/// No steps; what `model` refuses.
pub fn flow_sample(
    integrator: Integrator,
    noise: &Tensor,
    steps: usize,
    mut model: impl FnMut(&Tensor, f64) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    if steps == 0 {
        return Err(Error::Setting { name: "steps", got: 0.0, expected: "at least 1" });
    }
    let (h, time) = (1.0 / steps as f64, |i: usize| 1.0 - i as f64 / steps as f64);
    let (mut x, mut walk) = (noise.clone(), vec![noise.clone()]);
    for i in 0..steps {
        let v = model(&x, time(i))?;
        let there = (&x - (&v * h)?)?;
        x = match integrator {
            Integrator::Euler => there,
            Integrator::Heun => (&x - ((v + model(&there, time(i + 1))?)? * (h / 2.0))?)?,
        };
        walk.push(x.clone());
    }
    Ok(walk)
}
