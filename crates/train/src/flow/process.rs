//! Between a clean flow and noise: flow matching, or diffusion with any of its targets.
//!
//! Both are Gaussian paths x_t = alpha x_0 + sigma eps. Flow matching has alpha = 1 - t, sigma = t; diffusion
//! alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar). A sampler that knows alpha and sigma serves both.

use candle_core::{Device, Tensor};
use efference_objectives::diffusion::continuous::{
    NoiseSchedule, NoiseTable, Precision, Prediction, Spacing, add_noise, flow_matching_pair,
    timestep_embedding,
};
use rand::Rng;

use super::config::ProcessConfig;
use super::random::Gaussian;
use crate::error::Result;

/// A way to noise, ready to use.
#[derive(Clone, Debug)]
pub(super) enum Process {
    FlowMatching { shift: f64 },
    Diffusion { table: NoiseTable, prediction: Prediction },
}

/// A place on the path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moment {
    /// What the network is told, 0 clean to 1000 noise.
    pub time: f64,
    /// Share of the clean sample.
    pub alpha: f64,
    /// Share of the noise.
    pub sigma: f64,
}

/// Spread of displacements that the scales below assume, in the network's units.
const SPREAD: f64 = 0.7;

/// How a network of flow matching answers: x_0 = skip x_t + out F (EDM, arXiv 2206.00364, table 1, on this path). A
/// velocity would have to repeat the noise that it is shown to four digits where there is little else; F is nearly x_0
/// there and nearly the noise at the other end, and always of unit spread.
struct Scale {
    skip: f64,
    out: f64,
}

impl Scale {
    fn at(alpha: f64, sigma: f64) -> Self {
        let total = alpha * alpha * SPREAD * SPREAD + sigma * sigma;
        Self { skip: alpha * SPREAD * SPREAD / total, out: (sigma * SPREAD / total.sqrt()).max(1e-6) }
    }
}

/// What the network is trained on.
pub(super) struct Pair {
    /// Noisy trajectories, as the clean ones [B, N, 3 T].
    pub noisy: Tensor,
    /// What the network should say.
    pub target: Tensor,
    /// Times of the B samples, as the network is told.
    pub times: Vec<f64>,
}

impl Process {
    pub fn new(config: &ProcessConfig) -> Result<Self> {
        if config.kind == "flow_matching" {
            return Ok(Self::FlowMatching { shift: config.shift });
        }
        let schedule = NoiseSchedule {
            timesteps: config.timesteps,
            beta_start: config.beta_start,
            beta_end: config.beta_end,
            shape: config.beta_shape(),
            precision: Precision::Single,
        };
        Ok(Self::Diffusion { table: schedule.table()?, prediction: config.predicted() })
    }

    /// Noise and target for clean trajectories [B, N, 3 T]; times are drawn from `random`, for flow matching as
    /// sigmoid(z), which visits the middle more often, shifted.
    pub fn pair(&self, clean: &Tensor, noise: &Tensor, random: &mut Gaussian) -> Result<Pair> {
        let samples = clean.dims()[0];
        match self {
            Self::FlowMatching { shift } => {
                let mut draw = || shifted(1.0 / (1.0 + (-random.normal()).exp()), *shift);
                let t: Vec<f64> = (0..samples).map(|_| draw()).collect();
                let noisy = flow_matching_pair(clean, noise, &t)?.x_t;
                let scalar = |of: &dyn Fn(&Scale) -> f64| -> Result<Tensor> {
                    let values: Vec<f32> = t.iter().map(|&t| of(&Scale::at(1.0 - t, t)) as f32).collect();
                    Ok(Tensor::from_vec(values, (samples, 1, 1), clean.device())?)
                };
                // What is left of the clean sample when the share of the noisy one is taken away, with unit spread.
                let rest = (clean - noisy.broadcast_mul(&scalar(&|scale| scale.skip)?)?)?;
                let target = rest.broadcast_mul(&scalar(&|scale| scale.out.recip())?)?;
                let times = t.iter().map(|t| 1000.0 * t).collect();
                Ok(Pair { noisy, target, times })
            }
            Self::Diffusion { table, prediction } => {
                let total = table.timesteps();
                let steps: Vec<usize> = (0..samples).map(|_| random.0.random_range(0..total)).collect();
                let noisy = add_noise(table, clean, noise, &steps)?;
                let target = prediction.target(table, clean, noise, &steps)?;
                let times = steps.iter().map(|&t| told(t, total)).collect();
                Ok(Pair { noisy, target, times })
            }
        }
    }

    /// The places that a sampler of `steps` steps visits, noise first, the clean end last.
    pub fn path(&self, steps: usize) -> Result<Vec<Moment>> {
        let mut path = match self {
            Self::FlowMatching { shift } => (0..steps)
                .map(|i| shifted(1.0 - i as f64 / steps as f64, *shift))
                .map(|t| Moment { time: 1000.0 * t, alpha: 1.0 - t, sigma: t })
                .collect::<Vec<_>>(),
            Self::Diffusion { table, .. } => {
                let total = table.timesteps();
                let visited = Spacing::Trailing.timesteps(steps.min(total), total, 0)?;
                let moment = |t: usize| -> Result<Moment> {
                    let kept = table.alpha_bar(t)?;
                    Ok(Moment { time: told(t, total), alpha: kept.sqrt(), sigma: (1.0 - kept).sqrt() })
                };
                visited.into_iter().map(moment).collect::<Result<_>>()?
            }
        };
        path.push(Moment { time: 0.0, alpha: 1.0, sigma: 0.0 });
        Ok(path)
    }

    /// (x_0, eps) of the noisy sample at `at`, from the network's answer.
    pub fn split(&self, noisy: &Tensor, answer: &Tensor, at: &Moment) -> Result<(Tensor, Tensor)> {
        match self {
            Self::FlowMatching { .. } => {
                let scale = Scale::at(at.alpha, at.sigma);
                let clean = ((noisy * scale.skip)? + (answer * scale.out)?)?;
                let noise = ((noisy - (&clean * at.alpha)?)? / at.sigma)?;
                Ok((clean, noise))
            }
            Self::Diffusion { prediction, .. } => {
                let parts = prediction.split(noisy, answer, at.alpha * at.alpha)?;
                Ok((parts.clean, parts.noise))
            }
        }
    }
}

/// A time moved towards the noise. By s = sqrt(n), n noisy copies of one number leave at it as much doubt about that number
/// as one copy does at t (Stable Diffusion 3, arXiv 2403.03206, section 5.3.2).
fn shifted(t: f64, s: f64) -> f64 {
    s * t / (1.0 + (s - 1.0) * t)
}

fn told(t: usize, total: usize) -> f64 {
    1000.0 * (t + 1) as f64 / total as f64
}

/// Standard deviation of the fresh noise of a step: `eta` times that of the posterior q(x_next | x_now, x_0), which is
/// DDPM's; for diffusion the same number as DDIM's eta gives.
pub(super) fn fresh(eta: f64, now: &Moment, next: &Moment) -> f64 {
    let ratio = (now.alpha * next.sigma) / (next.alpha * now.sigma);
    eta * next.sigma * (1.0 - ratio * ratio).max(0.0).sqrt()
}

/// Embeddings of times, [B, width].
pub(super) fn embed(times: &[f64], width: usize, device: &Device) -> Result<Tensor> {
    let table = timestep_embedding(times, width, 10_000.0, Precision::Single)?;
    let values: Vec<f32> = table.values.iter().map(|&x| x as f32).collect();
    Ok(Tensor::from_vec(values, (table.rows, table.cols), device)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_objectives::diffusion::continuous::Ddim;

    use super::*;

    fn diffusion(prediction: &str) -> Process {
        let config =
            ProcessConfig { kind: "diffusion".into(), prediction: prediction.into(), ..Default::default() };
        Process::new(&config).unwrap()
    }

    #[test]
    fn the_right_answer_gives_the_clean_sample_back() {
        let tensor =
            |seed| Tensor::from_vec(Gaussian::new(seed).normals(2 * 3 * 6), (2, 3, 6), &Device::Cpu).unwrap();
        let (clean, noise) = (tensor(1), tensor(2));
        let processes = [
            Process::FlowMatching { shift: 3.0 },
            diffusion("epsilon"),
            diffusion("v_prediction"),
            diffusion("sample"),
        ];
        for process in processes {
            for at in &process.path(5).unwrap()[1..5] {
                let noisy = ((&clean * at.alpha).unwrap() + (&noise * at.sigma).unwrap()).unwrap();
                let answer = match &process {
                    Process::FlowMatching { .. } => {
                        let scale = Scale::at(at.alpha, at.sigma);
                        ((&clean - (&noisy * scale.skip).unwrap()).unwrap() / scale.out).unwrap()
                    }
                    Process::Diffusion { prediction, .. } => match prediction {
                        Prediction::Epsilon => noise.clone(),
                        Prediction::Sample => clean.clone(),
                        Prediction::VPrediction => {
                            ((&noise * at.alpha).unwrap() - (&clean * at.sigma).unwrap()).unwrap()
                        }
                    },
                };
                let (x0, eps) = process.split(&noisy, &answer, at).unwrap();
                for (a, b) in [(x0, &clean), (eps, &noise)] {
                    let gap = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(gap < 2e-4, "{process:?} {gap}");
                }
            }
        }
    }

    #[test]
    fn what_is_learned_is_what_the_sampler_reads() {
        let tensor =
            |seed| Tensor::from_vec(Gaussian::new(seed).normals(4 * 3 * 6), (4, 3, 6), &Device::Cpu).unwrap();
        let (clean, noise) = (tensor(1), tensor(2));
        for process in [Process::FlowMatching { shift: 3.0 }, diffusion("epsilon"), diffusion("v_prediction")]
        {
            let pair = process.pair(&clean, &noise, &mut Gaussian::new(3)).unwrap();
            for (row, &time) in pair.times.iter().enumerate() {
                let alpha = match &process {
                    Process::FlowMatching { .. } => 1.0 - time / 1000.0,
                    Process::Diffusion { table, .. } => {
                        let step = (time * table.timesteps() as f64 / 1000.0).round() as usize - 1;
                        table.alpha_bar(step).unwrap().sqrt()
                    }
                };
                let sigma = match &process {
                    Process::FlowMatching { .. } => time / 1000.0,
                    Process::Diffusion { .. } => (1.0 - alpha * alpha).sqrt(),
                };
                let of = |x: &Tensor| x.narrow(0, row, 1).unwrap();
                let at = Moment { time, alpha, sigma };
                let (x0, eps) = process.split(&of(&pair.noisy), &of(&pair.target), &at).unwrap();
                for (a, b) in [(x0, of(&clean)), (eps, of(&noise))] {
                    let gap = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(gap < 2e-3, "{process:?} at {time}: {gap}");
                }
            }
        }
    }

    #[test]
    fn paths_run_from_noise_to_clean_and_fresh_noise_is_ddims() {
        for process in [Process::FlowMatching { shift: 3.0 }, diffusion("epsilon")] {
            let path = process.path(10).unwrap();
            assert_eq!(path.len(), 11);
            assert!(path.windows(2).all(|w| w[0].sigma > w[1].sigma && w[0].alpha < w[1].alpha));
            assert_eq!((path[10].alpha, path[10].sigma), (1.0, 0.0));
            assert!((path[0].time - 1000.0).abs() < 1e-9);
        }
        let path = diffusion("epsilon").path(10).unwrap();
        for pair in path.windows(2) {
            let std = Ddim { eta: 0.7, ..Ddim::default() }
                .std(pair[0].alpha.powi(2), pair[1].alpha.powi(2))
                .unwrap();
            assert!((fresh(0.7, &pair[0], &pair[1]) - std).abs() < 1e-9);
        }
    }
}
