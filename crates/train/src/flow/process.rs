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
    FlowMatching,
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
            return Ok(Self::FlowMatching);
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
    /// sigmoid(z), which visits the middle more often.
    pub fn pair(&self, clean: &Tensor, noise: &Tensor, random: &mut Gaussian) -> Result<Pair> {
        let samples = clean.dims()[0];
        match self {
            Self::FlowMatching => {
                let t: Vec<f64> = (0..samples).map(|_| 1.0 / (1.0 + (-random.normal()).exp())).collect();
                let pair = flow_matching_pair(clean, noise, &t)?;
                let times = t.iter().map(|t| 1000.0 * t).collect();
                Ok(Pair { noisy: pair.x_t, target: pair.target, times })
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
            Self::FlowMatching => (0..steps)
                .map(|i| 1.0 - i as f64 / steps as f64)
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
            Self::FlowMatching => Ok(((noisy - (answer * at.sigma)?)?, (noisy + (answer * at.alpha)?)?)),
            Self::Diffusion { prediction, .. } => {
                let parts = prediction.split(noisy, answer, at.alpha * at.alpha)?;
                Ok((parts.clean, parts.noise))
            }
        }
    }
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
        let processes =
            [Process::FlowMatching, diffusion("epsilon"), diffusion("v_prediction"), diffusion("sample")];
        for process in processes {
            for at in &process.path(5).unwrap()[1..5] {
                let noisy = ((&clean * at.alpha).unwrap() + (&noise * at.sigma).unwrap()).unwrap();
                let answer = match &process {
                    Process::FlowMatching => (&noise - &clean).unwrap(),
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
    fn paths_run_from_noise_to_clean_and_fresh_noise_is_ddims() {
        for process in [Process::FlowMatching, diffusion("epsilon")] {
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
