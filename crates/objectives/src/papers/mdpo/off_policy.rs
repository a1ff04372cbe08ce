//! Off-policy MDPO: soft actor-critic with a KL to a snapshot of the policy, by reparameterised actions.
//!
//! ```text
//! a = tanh(u), u = mu + sigma noise
//! log pi(a|s)  = sum_d log_q'( N(u_d; mu_d, sigma_d) / (1 - a_d^2 + 1e-6) ), q' = 2 - tsallis_q    [`squashed_log_prob`]
//! policy loss  = mean[ kl log pi + tsallis_q (lambda - kl) log pi_old - Q1(s, a) ]
//!                + 1e-3 mean(mu^2) + 1e-3 mean(log_std^2)
//! q target     = r + gamma (1 - terminal) V_target(s')
//! v target     = min(Q1, Q2)(s, a) - lambda log pi(a|s)
//! value losses = 0.5 mean (Q1 - q target)^2 + 0.5 mean (Q2 - q target)^2 + 0.5 mean (V - v target)^2
//! ```
//!
//! The gradient goes through the action into log pi, log pi_old and Q1. kl = lambda is SAC. The authors' code pairs every
//! state's V with every state's log pi (a broadcast of [B, 1] and [B]); [`Pairing::PerState`] is what is meant and the
//! default, [`Pairing::Broadcast`] is for parity. The snapshot is renewed every 1000 steps, V_target with 0.005.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{DENSITY_FLOOR, log_q};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, Kind, Regularizer, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::smaller;

/// Q1 of the sampled action.
pub const ACTION_VALUES: Input =
    Input::new("action_values", "[B, T]", "critic's value of the reparameterised action, with gradient");
/// Means before the squashing.
pub const POLICY_MEANS: Input =
    Input::new("policy_means", "[B, D]", "policy's means before tanh, with gradient");
/// Logarithms of standard deviations.
pub const POLICY_LOG_STDS: Input =
    Input::new("policy_log_stds", "[B, D]", "logarithms of the policy's deviations, with gradient");

/// KL 1, entropy 0.2, penalties 1e-3.
pub fn recipe() -> Composition {
    Composition::new(&SoftMirror::default(), Aggregation::TokenMean).regularizer(&SquashPenalty::default())
}

/// kl log pi + q (lambda - kl) log pi_old - Q1 per decision; all three with gradient through the action.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SoftMirror {
    /// 1/t_k, weight of the KL to the snapshot.
    pub kl_coef: f64,
    /// Weight of the entropy.
    pub lambda: f64,
    /// Tsallis order; 1 is the ordinary logarithm.
    pub tsallis_q: f64,
}

impl Default for SoftMirror {
    fn default() -> Self {
        Self { kl_coef: 1.0, lambda: 0.2, tsallis_q: 1.0 }
    }
}

impl Block for SoftMirror {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS, ACTION_VALUES]
    }

    fn validate(&self) -> Result<()> {
        let all = [("kl_coef", self.kl_coef), ("lambda", self.lambda), ("tsallis_q", self.tsallis_q)];
        match all.into_iter().find(|(_, x)| !x.is_finite()) {
            Some((name, got)) => Err(Error::Setting { name, got, expected: "a finite number" }),
            None => Ok(()),
        }
    }

    fn describe(&self) -> String {
        format!("action value, KL {} to the snapshot, entropy {}", self.kl_coef, self.lambda)
    }
}

impl Kind for SoftMirror {
    const KIND: &'static str = "soft_mirror";
}

impl Surrogate for SoftMirror {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        let (now, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(OLD_LOG_PROBS)?);
        let prior = (old * (self.tsallis_q * (self.lambda - self.kl_coef)))?;
        Ok(Terms::Tokens((((now * self.kl_coef)? + prior)? - batch.tensor(ACTION_VALUES)?)?).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// mean_coef mean(mu^2) + log_std_coef mean(log_std^2) over rows and dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SquashPenalty {
    /// Weight of the means, 0 or more.
    pub mean_coef: f64,
    /// Weight of the log deviations, 0 or more.
    pub log_std_coef: f64,
}

impl Default for SquashPenalty {
    fn default() -> Self {
        Self { mean_coef: 1e-3, log_std_coef: 1e-3 }
    }
}

impl Block for SquashPenalty {
    fn needs(&self) -> Vec<Input> {
        vec![POLICY_MEANS, POLICY_LOG_STDS]
    }

    fn validate(&self) -> Result<()> {
        for (name, got) in [("mean_coef", self.mean_coef), ("log_std_coef", self.log_std_coef)] {
            if !(got >= 0.0 && got.is_finite()) {
                return Err(Error::Setting { name, got, expected: "0 or more" });
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{} squared means, {} squared log deviations", self.mean_coef, self.log_std_coef)
    }
}

impl Kind for SquashPenalty {
    const KIND: &'static str = "squash_penalty";
}

impl Regularizer for SquashPenalty {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        let of = |input: Input, coef: f64| -> Result<Tensor> {
            let x = batch.tensor(input)?;
            if x.rank() != 2 {
                return Err(Error::Shape {
                    name: input.name,
                    got: x.dims().to_vec(),
                    expected: "[B, D]".into(),
                });
            }
            Ok((x.sqr()?.mean(1)? * coef)?)
        };
        let (means, stds) = (of(POLICY_MEANS, self.mean_coef)?, of(POLICY_LOG_STDS, self.log_std_coef)?);
        Ok(Terms::Sequences((means + stds)?))
    }
}

/// How a squashed Gaussian's log-density is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squash {
    /// Tsallis order of the policy; densities go through log of order 2 - this.
    pub tsallis_q: f64,
    /// Added to deviations and to 1 - a^2.
    pub epsilon: f64,
    /// Densities below this count as this.
    pub floor: f64,
}

impl Default for Squash {
    fn default() -> Self {
        Self { tsallis_q: 1.0, epsilon: 1e-6, floor: DENSITY_FLOOR }
    }
}

/// Log-density of a = tanh(u), [B], for `u`, `mean`, `log_std` [B, D]; the gradient goes through all three. 1 - a^2 is
/// kept in 0..=1 in value only.
///
/// # Errors
/// Shapes that differ.
pub fn squashed_log_prob(u: &Tensor, mean: &Tensor, log_std: &Tensor, squash: &Squash) -> Result<Tensor> {
    let z = ((u - mean)? / (log_std.exp()? + squash.epsilon)?)?;
    let log_density = (((z.sqr()? + (log_std * 2.0)?)? + (2.0 * std::f64::consts::PI).ln())? * -0.5)?;
    let slope = (1.0 - u.tanh()?.sqr()?)?;
    let cut = (slope.detach().clamp(0.0, 1.0)? - slope.detach())?;
    let slope = ((slope + cut)? + squash.epsilon)?;
    let density = (log_density.exp()? / slope)?;
    Ok(log_q(&density, 2.0 - squash.tsallis_q, squash.floor)?.sum(1)?)
}

/// r + gamma (1 - terminal) V_target(s'), elementwise; no gradient.
///
/// # Errors
/// Shapes that differ.
pub fn q_target(rewards: &Tensor, terminals: &Tensor, next_values: &Tensor, gamma: f64) -> Result<Tensor> {
    let goes_on = (1.0 - terminals.detach())?;
    Ok((rewards.detach() + (goes_on * (next_values.detach() * gamma)?)?)?)
}

/// min(Q1, Q2) - lambda log pi, elementwise; no gradient.
///
/// # Errors
/// Shapes that differ.
pub fn v_target(q1: &Tensor, q2: &Tensor, log_prob: &Tensor, lambda: f64) -> Result<Tensor> {
    Ok((smaller(&q1.detach(), &q2.detach())? - (log_prob.detach() * lambda)?)?)
}

/// 0.5 mean (prediction - target)^2, a scalar with gradient in the prediction.
///
/// # Errors
/// Shapes that differ.
pub fn half_squared_error(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok(((prediction - target.detach())?.sqr()?.mean_all()? * 0.5)?)
}

/// Which log-probability a state's value is regressed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// Its own.
    #[default]
    PerState,
    /// Those of all states of the batch, as the authors' code does by broadcasting.
    Broadcast,
}

/// 0.5 mean (V - (min(Q1, Q2) - lambda log pi))^2 of [B] values, a scalar with gradient in `values`.
///
/// # Errors
/// Shapes that differ.
pub fn soft_value_loss(
    values: &Tensor,
    (q1, q2): (&Tensor, &Tensor),
    log_prob: &Tensor,
    lambda: f64,
    pairing: Pairing,
) -> Result<Tensor> {
    match pairing {
        Pairing::PerState => half_squared_error(values, &v_target(q1, q2, log_prob, lambda)?),
        Pairing::Broadcast => {
            let worst = smaller(&q1.detach(), &q2.detach())?;
            let gap = (values - worst)?.unsqueeze(1)?;
            let error = gap.broadcast_add(&(log_prob.detach() * lambda)?.unsqueeze(0)?)?;
            Ok((error.sqr()?.mean_all()? * 0.5)?)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::objective::Objective;
    use crate::table::Table;

    #[test]
    fn far_outside_of_the_action_range_everything_is_finite() {
        let u = Var::from_tensor(&Tensor::new(&[[40.0f64, -40.0]], &Device::Cpu).unwrap()).unwrap();
        let zeros = Tensor::zeros((1, 2), candle_core::DType::F64, &Device::Cpu).unwrap();
        for tsallis_q in [1.0, 1.5] {
            let squash = Squash { tsallis_q, ..Squash::default() };
            let log_prob = squashed_log_prob(u.as_tensor(), &zeros, &zeros, &squash).unwrap();
            let grads = log_prob.sum_all().unwrap().backward().unwrap();
            let grad: Vec<f64> = grads.get(u.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(log_prob.to_vec1::<f64>().unwrap()[0].is_finite() && grad.iter().all(|g| g.is_finite()));
        }
    }

    proptest! {
        /// Equal weights of KL and entropy leave no trace of the snapshot: SAC.
        #[test]
        fn equal_weights_are_soft_actor_critic(
            p in proptest::collection::vec(-3.0f64..1.0, 4),
            old in proptest::collection::vec(-3.0f64..1.0, 4),
            q in proptest::collection::vec(-3.0f64..1.0, 4),
            weight in 0.0f64..2.0,
        ) {
            let tensor = |x: &[f64]| Tensor::from_slice(x, (4, 1), &Device::Cpu).unwrap();
            let batch = Batch::new(Table { rows: 4, cols: 1, values: vec![1.0; 4] })
                .with(LOG_PROBS, tensor(&p))
                .and_then(|b| b.with(OLD_LOG_PROBS, tensor(&old)))
                .and_then(|b| b.with(ACTION_VALUES, tensor(&q)))
                .unwrap();
            let block = SoftMirror { kl_coef: weight, lambda: weight, tsallis_q: 1.0 };
            let objective = Objective::new(block, Aggregation::TokenMean);
            let signals = Signals::new(batch.mask().filled(0.0));
            let loss = objective.loss(&batch, &signals, &batch.normaliser(), &State::default()).unwrap().pg_loss;
            let expected = p.iter().zip(&q).map(|(p, q)| weight * p - q).sum::<f64>() / 4.0;
            prop_assert!((loss - expected).abs() < 1e-12);
        }
    }
}
