//! A critic: how much reward an episode will bring, read from what the policy has just thought.
//!
//! A small MLP on the policy's own features of each decision (without gradient into the policy, as the value heads of
//! PPO-trained VLAs have it on the action tokens' hidden state), the proprioception, the share of the time limit that is
//! used up and the task. It is fitted to the outcomes of the rollouts after their advantages were taken, so that an
//! advantage never knows its own outcome; only the very first batch is fitted before.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use efference_nets::{Init, ParamStore};
use efference_ops::{
    Activation, AdamW, AdamWConfig, Grads, ParamGroup, clip_grad_norm, linear, linear_act, value_and_grad,
};
use efference_rollout::{Purpose, Trajectory, seed_for};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::checkpoint::Tensors;
use crate::config::CriticConfig;
use crate::error::{Error, Result};

/// Prefix of everything of the critic in a checkpoint's optimiser file.
const PREFIX: &str = "critic/";

/// Network and optimiser.
pub(crate) struct Critic {
    config: CriticConfig,
    net: ParamStore,
    layers: [(Var, Var); 2],
    adamw: AdamW,
    tasks: BTreeMap<String, usize>,
    /// Control steps of the time limit.
    max_steps: f64,
    fits: u64,
}

impl Critic {
    /// An untrained critic, which values everything at 0. `features` is the width of the policy's features.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(
        config: &CriticConfig,
        features: usize,
        tasks: impl Iterator<Item = String>,
        max_steps: usize,
        seed: u64,
    ) -> Result<Self> {
        let tasks: BTreeMap<String, usize> = tasks.zip(0..).collect();
        let width = features + 8 + 1 + tasks.len();
        let mut net = ParamStore::new(seed_for(seed, Purpose::Weights, &[1]), Device::Cpu);
        let mut root = net.root();
        let mut layer = |name: &str, dims: [usize; 2], init| -> Result<()> {
            root.pp(name).get("weight", &dims, init)?;
            root.pp(name).get("bias", &dims[..1], Init::Constant(0.0))?;
            Ok(())
        };
        layer("hidden", [config.hidden, width], Init::Normal((width as f32).powf(-0.5)))?;
        layer("value", [1, config.hidden], Init::Constant(0.0))?;
        let var = |name: &str| net.vars()[name].clone();
        let layers = [(var("hidden.weight"), var("hidden.bias")), (var("value.weight"), var("value.bias"))];
        let adamw =
            AdamW::new(ParamGroup::split(net.trainable(), 0.0, |_, _| false), AdamWConfig::default())?;
        Ok(Self {
            config: config.clone(),
            layers,
            adamw,
            tasks,
            max_steps: max_steps.max(1) as f64,
            net,
            fits: 0,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [(w1, b1), (w2, b2)] = &self.layers;
        let hidden = linear_act(x, w1, Some(b1), Activation::GeluTanh)?;
        Ok(linear(&hidden, w2, Some(b2))?.squeeze(1)?)
    }

    /// Rows of inputs, one per decision of `trajectories`.
    fn inputs(&self, trajectories: &[Trajectory]) -> Result<Tensor> {
        let (mut values, mut rows) = (Vec::new(), 0);
        for t in trajectories {
            let looks = t.decisions.len().max(1) as f64;
            let task = self.tasks.get(&t.plan.task);
            for (i, d) in t.decisions.iter().enumerate() {
                let square = d.features.iter().map(|x| x * x).sum::<f32>() / d.features.len().max(1) as f32;
                let scale = 1.0 / (square + 1e-6).sqrt();
                values.extend(d.features.iter().map(|x| x * scale));
                values.extend(d.proprio);
                values.push((i as f64 / looks * t.finish_steps as f64 / self.max_steps) as f32);
                values.extend((0..self.tasks.len()).map(|i| f32::from(u8::from(task == Some(&i)))));
                rows += 1;
            }
        }
        let width = values.len().checked_div(rows).unwrap_or(0);
        Ok(Tensor::from_vec(values, (rows, width), &Device::Cpu)?)
    }

    /// Expected reward before every decision, in the order of the trajectories.
    ///
    /// # Errors
    /// Decisions without features.
    pub(crate) fn values(&self, trajectories: &[Trajectory]) -> Result<Vec<f64>> {
        let values = self.forward(&self.inputs(trajectories)?)?.detach().to_vec1::<f32>()?;
        Ok(values.into_iter().map(f64::from).collect())
    }

    /// Fits the outcomes `rewards`, one per trajectory. Returns the share of their variance over decisions that the
    /// critic had explained before.
    ///
    /// # Errors
    /// Decisions without features.
    pub(crate) fn fit(&mut self, trajectories: &[Trajectory], rewards: &[f64], seed: u64) -> Result<f64> {
        let x = self.inputs(trajectories)?;
        let y: Vec<f32> = trajectories
            .iter()
            .zip(rewards)
            .flat_map(|(t, &r)| std::iter::repeat_n(r as f32, t.decisions.len()))
            .collect();
        let explained = explained_variance(&self.values(trajectories)?, &y);
        let mut order: Vec<u32> = (0..y.len() as u32).collect();
        let y = Tensor::from_vec(y, order.len(), &Device::Cpu)?;
        for epoch in 0..self.config.epochs as u64 {
            let place = [self.fits, epoch, 7];
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed_for(seed, Purpose::MiniBatches, &place)));
            for part in order.chunks(self.config.batch) {
                let ids = Tensor::new(part, &Device::Cpu)?;
                let (_, found) = value_and_grad(|| {
                    let gap = (self.forward(&x.index_select(&ids, 0)?)? - y.index_select(&ids, 0)?)?;
                    Ok::<_, Error>(gap.sqr()?.mean_all()?)
                })?;
                let mut grads = Grads::from_store(found, self.net.trainable())?;
                if clip_grad_norm(&mut grads, 1.0)?.finite {
                    self.adamw.step(&grads, self.config.lr)?;
                }
            }
        }
        self.fits += 1;
        Ok(explained)
    }

    /// Whether it has seen outcomes.
    pub(crate) fn fitted(&self) -> bool {
        self.fits > 0
    }

    /// Weights and moments, for a checkpoint.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn state(&self) -> Result<Tensors> {
        let weights =
            self.net.vars().iter().map(|(name, var)| Ok((format!("weight/{name}"), var.as_tensor().copy()?)));
        let mut all: Tensors = weights.collect::<Result<_>>()?;
        all.extend(self.adamw.state()?.into_iter().map(|(name, x)| (format!("moment/{name}"), x)));
        all.insert("fits".into(), Tensor::new(&[self.fits as f32], &Device::Cpu)?);
        Ok(all.into_iter().map(|(name, x)| (format!("{PREFIX}{name}"), x)).collect())
    }

    /// Takes what [`Critic::state`] gave out of `tensors`, whether or not there is a critic.
    ///
    /// # Errors
    /// Tensors that do not belong to this critic.
    pub(crate) fn restore(critic: Option<&mut Self>, tensors: &mut Tensors) -> Result<()> {
        let (mine, others) =
            std::mem::take(tensors).into_iter().partition(|(name, _)| name.starts_with(PREFIX));
        *tensors = others;
        let mine: Tensors = mine;
        let Some(critic) = critic.filter(|_| !mine.is_empty()) else { return Ok(()) };
        let part = |prefix: &str| -> Tensors {
            let prefix = format!("{PREFIX}{prefix}/");
            mine.iter()
                .filter_map(|(name, x)| Some((name.strip_prefix(&prefix)?.to_string(), x.clone())))
                .collect()
        };
        for (name, x) in part("weight") {
            if let Some(var) = critic.net.vars().get(&name) {
                var.set(&x)?;
            }
        }
        critic.adamw.load_state(&part("moment"))?;
        if let Some(fits) = mine.get(&format!("{PREFIX}fits")) {
            critic.fits = fits.to_vec1::<f32>()?.first().map_or(0, |&x| x as u64);
        }
        Ok(())
    }
}

/// 1 - var(y - v) / var(y): 1 is perfect, 0 no better than a constant; 0 when `y` does not vary.
fn explained_variance(v: &[f64], y: &[f32]) -> f64 {
    let variance = |x: &mut dyn Iterator<Item = f64>| {
        let x: Vec<f64> = x.collect();
        let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
        x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>()
    };
    let all = variance(&mut y.iter().map(|&y| f64::from(y)));
    let left = variance(&mut y.iter().zip(v).map(|(&y, v)| f64::from(y) - v));
    if all > 0.0 { 1.0 - left / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use efference_rollout::{Decision, EpisodePlan, Prompt};

    use super::*;

    /// Episodes whose reward is in the first feature of every decision.
    fn episodes(n: usize) -> (Vec<Trajectory>, Vec<f64>) {
        let prompt = Arc::new(Prompt { instruction: String::new(), ids: vec![1] });
        let one = |i: usize| {
            let good = i.is_multiple_of(3);
            let noise = |k: usize| ((i * 7 + k * 13) % 11) as f32 / 11.0 - 0.5;
            let decision = |k: usize| Decision {
                pixels: Vec::new(),
                proprio: [noise(k); 8],
                prompt: prompt.clone(),
                action_ids: Vec::new(),
                log_probs: Vec::new(),
                entropy: Vec::new(),
                features: vec![if good { 1.0 } else { -1.0 }, noise(k + 1), noise(k + 2), 0.5],
            };
            Trajectory {
                plan: EpisodePlan {
                    task: "a".into(),
                    env_seed: 0,
                    action_seed: 0,
                    mirrored: false,
                    group: 0,
                },
                prompt: prompt.clone(),
                decisions: (0..3).map(decision).collect(),
                finish_steps: 24,
                success: good,
                aborted: None,
                snapshots: Vec::new(),
                remaining: 0.0,
            }
        };
        let episodes: Vec<Trajectory> = (0..n).map(one).collect();
        let rewards = episodes.iter().map(|t| f64::from(u8::from(t.success))).collect();
        (episodes, rewards)
    }

    fn critic() -> Critic {
        let config = CriticConfig { hidden: 16, lr: 3e-3, ..CriticConfig::default() };
        Critic::new(&config, 4, ["a".to_string(), "b".to_string()].into_iter(), 100, 1).unwrap()
    }

    #[test]
    fn it_learns_what_features_tell_and_goes_on_bit_for_bit_from_a_checkpoint() {
        let (episodes, rewards) = episodes(60);
        let mut critic = critic();
        assert!(critic.values(&episodes).unwrap().iter().all(|&v| v == 0.0));
        let first = critic.fit(&episodes, &rewards, 5).unwrap();
        for _ in 0..40 {
            critic.fit(&episodes, &rewards, 5).unwrap();
        }
        let mut saved = critic.state().unwrap();
        saved.insert("other".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap());
        let last = critic.fit(&episodes, &rewards, 5).unwrap();
        assert!(first.abs() < 1e-6 && last > 0.9, "{first} {last}");

        let mut again = self::critic();
        Critic::restore(Some(&mut again), &mut saved).unwrap();
        assert_eq!(saved.keys().collect::<Vec<_>>(), ["other"]);
        again.fit(&episodes, &rewards, 5).unwrap();
        assert_eq!(again.values(&episodes).unwrap(), critic.values(&episodes).unwrap());
    }
}
