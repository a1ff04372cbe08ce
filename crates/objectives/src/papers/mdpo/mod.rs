//! MDPO: Mirror Descent Policy Optimization (arXiv 2005.09814).
//!
//! Base: PPO without its clip (on-policy), SAC (off-policy, [`off_policy`]). New: policy optimisation as approximate
//! mirror descent. Iteration k takes several gradient steps on the plain surrogate with a proximity term and then sets
//! pi_k to the result:
//!
//! ```text
//! loss = -[ mean(ratio A) - mean KL(pi || pi_k) / t_k ]        ratio = exp(log pi - log pi_k), unclipped
//! t_k  = 1 - (k - 1)/K in the authors' code, 1 - k/K in the paper, k from 0, K iterations              [`step_size`]
//! A    = GAE, standardised with the population deviation and no epsilon
//! q != 1 (Tsallis): the KL becomes mean[ log_q'(pi(a)) - log_q'(pi_k(a)) ] at the actions taken, q' = 2 - q
//!        log_q(x) = (max(x, 1e-6)^(1-q) - 1)/(1-q), the natural logarithm at q = 1                         [`log_q`]
//! value: mean max((V - R)^2, (V_old + clip(V - V_old, +-0.2) - R)^2), no 0.5
//! ```
//!
//! The KL is of the NEW policy from the old one, exact, per decision; the policy's side computes it
//! ([`gaussian_kl`], [`categorical_kl`]) and hands it over as [`POLICY_KL`] with gradient. At the first step pi = pi_k,
//! its gradient is 0 and the step is a plain policy gradient: several steps per batch are essential (10). Classic
//! control has one decision per row, T = 1; with token rows the same blocks work per token.
//!
//! `anneal = "code"` follows the authors' code; t_k never falls below 1/K. Advantages that are all equal are 0 where the
//! code divides by 0. Not to be confused with multimodal DPO, also "mDPO".

pub mod off_policy;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{StreamGae, StreamReturns};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::block::{Block, BlockKind, Kind, Regularizer, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::critic::ClippedValue;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::state::State;
use crate::table::Table;

/// KL of every decision's distribution from the one that sampled.
pub const POLICY_KL: Input = Input::new(
    "policy_kl",
    "[B, T]",
    "KL(policy || old policy) of every decision's distribution, with gradient",
);

/// The paper, on-policy.
pub const PAPER: Paper = Paper {
    id: "mdpo",
    title: "Mirror Descent Policy Optimization",
    arxiv: "2005.09814",
    summary: "Several steps on the unclipped surrogate with an annealed KL to the policy that sampled.",
    blocks: &[
        BlockKind::surrogate::<ImportanceRatio>(),
        BlockKind::regularizer::<MirrorKl>(),
        BlockKind::surrogate::<off_policy::SoftMirror>(),
        BlockKind::regularizer::<off_policy::SquashPenalty>(),
    ],
    recipe,
    vectors: Some(("mdpo.json", 14)),
    end_to_end: None,
};

/// The paper, off-policy.
pub const OFF_POLICY: Paper = Paper {
    id: "mdpo_off",
    summary: "Soft actor-critic with a KL to a policy snapshot; equal weights of KL and entropy are SAC.",
    blocks: &[],
    recipe: off_policy::recipe,
    ..PAPER
};

/// GAE 0.99 / 0.95, unclipped ratio, annealed KL, clipped value loss.
pub fn recipe() -> Composition {
    Composition::new(&ImportanceRatio::default(), Aggregation::TokenMean)
        .reward(&StreamReturns::default())
        .advantage(&StreamGae::default())
        .regularizer(&MirrorKl::default())
        .regularizer(&ClippedValue { coef: 2.0, clip: 0.2, aggregation: Some(Aggregation::TokenMean) })
}

/// -A exp(log p - log p_old), nothing clipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImportanceRatio {}

impl Block for ImportanceRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn describe(&self) -> String {
        "importance ratio, unclipped".into()
    }
}

impl Kind for ImportanceRatio {
    const KIND: &'static str = "importance_ratio";
}

impl Surrogate for ImportanceRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let d = (batch.tensor(LOG_PROBS)? - batch.tensor(OLD_LOG_PROBS)?.detach())?;
        let negative = signals.advantages.to_tensor(&d)?.neg()?;
        let stats = vec![("approx_kl", Table::from_tensor(&d.detach().neg()?)?)];
        Ok(SurrogateLoss { terms: Terms::Tokens((negative * d.exp()?)?), stats })
    }
}

/// How the step size falls over the iterations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// t_k = 1 - (k - 1)/K: the authors' code.
    #[default]
    Code,
    /// t_k = 1 - k/K: the paper.
    Paper,
    /// Stays at 1.
    Constant,
}

/// Step size of iteration `k` (from 0) of `iterations`; never below 1/K.
pub fn step_size(k: u64, iterations: u64, anneal: Anneal) -> f64 {
    let (k, total) = (k as f64, iterations.max(1) as f64);
    let t = match anneal {
        Anneal::Code => 1.0 - (k - 1.0) / total,
        Anneal::Paper => 1.0 - k / total,
        Anneal::Constant => 1.0,
    };
    t.max(1.0 / total)
}

/// (1/t_k) KL(policy || policy that sampled): the proximity term of mirror descent. Remembers the iteration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MirrorKl {
    /// Factor on t_k, greater than 0.
    pub step_size: f64,
    /// How t_k falls.
    pub anneal: Anneal,
    /// K, the number of iterations (total steps / 2048 in the authors' setting), 1 or more.
    pub iterations: u64,
    /// Tsallis order; 1 is the KL.
    pub tsallis_q: f64,
}

impl Default for MirrorKl {
    fn default() -> Self {
        Self { step_size: 1.0, anneal: Anneal::Code, iterations: 4882, tsallis_q: 1.0 }
    }
}

/// Batches that were prepared so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Iteration {
    prepared: u64,
}

impl MirrorKl {
    /// t_k times its factor for the iteration that `state` is in.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn current_step(&self, state: &State) -> Result<f64> {
        let now: Iteration = state.get(Self::KIND)?;
        Ok(self.step_size * step_size(now.prepared.saturating_sub(1), self.iterations, self.anneal))
    }
}

impl Block for MirrorKl {
    fn needs(&self) -> Vec<Input> {
        if self.tsallis_q == 1.0 { vec![POLICY_KL] } else { vec![LOG_PROBS, OLD_LOG_PROBS] }
    }

    fn validate(&self) -> Result<()> {
        if !(self.step_size > 0.0 && self.step_size.is_finite()) {
            return Err(Error::Setting {
                name: "step_size",
                got: self.step_size,
                expected: "greater than 0",
            });
        }
        if self.iterations == 0 {
            return Err(Error::Setting { name: "iterations", got: 0.0, expected: "1 or more" });
        }
        if !self.tsallis_q.is_finite() {
            return Err(Error::Setting {
                name: "tsallis_q",
                got: self.tsallis_q,
                expected: "a finite number",
            });
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let what = if self.tsallis_q == 1.0 { "KL" } else { "Tsallis divergence" };
        format!("{what} to the policy that sampled over an annealed step of {}", self.step_size)
    }
}

impl Kind for MirrorKl {
    const KIND: &'static str = "mirror_kl";
}

impl Regularizer for MirrorKl {
    fn prepare(&self, _batch: &Batch, _signals: &Signals, state: &mut State) -> Result<()> {
        let now: Iteration = state.get(Self::KIND)?;
        state.set(Self::KIND, &Iteration { prepared: now.prepared + 1 })
    }

    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let divergence = if self.tsallis_q == 1.0 {
            batch.tensor(POLICY_KL)?
        } else {
            let order = 2.0 - self.tsallis_q;
            let now = log_q(&batch.tensor(LOG_PROBS)?.exp()?, order, DENSITY_FLOOR)?;
            (now - log_q(&batch.tensor(OLD_LOG_PROBS)?.detach().exp()?, order, DENSITY_FLOOR)?)?
        };
        Ok(Terms::Tokens((divergence / self.current_step(state)?)?))
    }
}

/// Densities below this count as this.
pub const DENSITY_FLOOR: f64 = 1e-6;

/// Tsallis logarithm (max(x, floor)^(1-q) - 1)/(1-q), elementwise; the natural one at q = 1. No gradient below the floor.
///
/// # Errors
/// No memory on the device.
pub fn log_q(x: &Tensor, q: f64, floor: f64) -> Result<Tensor> {
    let log = clamp(x, floor, f64::INFINITY)?.log()?;
    if q == 1.0 {
        return Ok(log);
    }
    Ok((((log * (1.0 - q))?.exp()? - 1.0)? / (1.0 - q))?)
}

/// Log-density of diagonal Gaussians, [B]. `mean`, `actions` [B, D]; `log_std` [D] or [B, D].
///
/// # Errors
/// Shapes that do not fit.
pub fn gaussian_log_prob(mean: &Tensor, log_std: &Tensor, actions: &Tensor) -> Result<Tensor> {
    let z = (actions - mean)?.broadcast_div(&log_std.exp()?)?;
    let per_dimension = (z.sqr()?.broadcast_add(&(log_std * 2.0)?)? + (2.0 * std::f64::consts::PI).ln())?;
    Ok((per_dimension.sum(1)? * -0.5)?)
}

/// KL(new || old) of diagonal Gaussians, [B]:
/// sum_d [log s_o - log s_n + (s_n^2 + (m_n - m_o)^2)/(2 s_o^2) - 1/2]. No gradient to the old one.
///
/// # Errors
/// Shapes that do not fit.
pub fn gaussian_kl(
    mean: &Tensor,
    log_std: &Tensor,
    old_mean: &Tensor,
    old_log_std: &Tensor,
) -> Result<Tensor> {
    let (old_mean, old_log_std) = (old_mean.detach(), old_log_std.detach());
    let precision = (&old_log_std * -2.0)?.exp()?;
    let spread = (mean - old_mean)?.sqr()?.broadcast_add(&(log_std * 2.0)?.exp()?)?;
    let quadratic = (spread.broadcast_mul(&precision)? * 0.5)?;
    let logs = (old_log_std - log_std)?;
    Ok((quadratic.broadcast_add(&logs)? - 0.5)?.sum(1)?)
}

/// log softmax over the last dimension of [B, V].
///
/// # Errors
/// No memory on the device.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(1)?)?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?)
}

/// Log-probability of the actions taken, [B], for `logits` [B, V].
///
/// # Errors
/// [`Error::Shape`]: not one action per row; [`Error::Invalid`]: an action that is not there.
pub fn categorical_log_prob(logits: &Tensor, actions: &[u64]) -> Result<Tensor> {
    let (rows, choices) = logits.dims2()?;
    if actions.len() != rows {
        let expected = format!("[{rows}], one per row of the logits");
        return Err(Error::Shape { name: "actions", got: vec![actions.len()], expected });
    }
    let mut chosen = Table { rows, cols: choices, values: vec![0.0; rows * choices] };
    for (row, &action) in actions.iter().enumerate() {
        if action >= choices as u64 {
            let reason = format!("{action} in row {row}, there are {choices}");
            return Err(Error::Invalid { what: "action", reason });
        }
        chosen.values[row * choices + action as usize] = 1.0;
    }
    // Selected: an impossible action elsewhere has an infinite logarithm.
    let log_probs = log_softmax(logits)?;
    Ok(crate::batch::keep_where(&log_probs, &chosen)?.sum(1)?)
}

/// KL(new || old) of categorical distributions [B, V], [B]; a choice of probability 0 counts nothing. No gradient to the
/// old one.
///
/// # Errors
/// Shapes that differ.
pub fn categorical_kl(logits: &Tensor, old_logits: &Tensor) -> Result<Tensor> {
    let (now, old) = (log_softmax(logits)?, log_softmax(&old_logits.detach())?);
    let p = now.exp()?;
    let possible = p.gt(0.0)?;
    let ratio = (&now - old)?;
    let ratio = possible.where_cond(&ratio, &ratio.zeros_like()?.detach())?;
    Ok((p * ratio)?.sum(1)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_step_falls_once_per_batch_also_after_a_reload() {
        let block = MirrorKl { iterations: 4, anneal: Anneal::Paper, ..MirrorKl::default() };
        let batch = Batch::new(Table { rows: 1, cols: 1, values: vec![1.0] });
        let signals = Signals::new(batch.mask().filled(0.0));
        let mut state = State::default();
        let mut steps = Vec::new();
        for _ in 0..6 {
            block.prepare(&batch, &signals, &mut state).unwrap();
            state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            steps.push(block.current_step(&state).unwrap());
        }
        assert_eq!(steps, [1.0, 0.75, 0.5, 0.25, 0.25, 0.25]);
        assert_eq!(step_size(0, 4, Anneal::Code), 1.25);
    }

    /// The closed form of a mirror descent step, p' ~ p exp(t A), is where the loss has no gradient.
    #[test]
    fn many_steps_reach_the_closed_form() {
        let old = Tensor::new(&[[0.2f64, -0.4, 0.9]], &Device::Cpu).unwrap();
        let gains = Tensor::new(&[[1.0f64, -0.5, 0.3]], &Device::Cpu).unwrap();
        let t = 0.7;
        let target = (&old + (&gains * t).unwrap()).unwrap();
        let logits = Var::from_tensor(&target).unwrap();
        let expected =
            (log_softmax(logits.as_tensor()).unwrap().exp().unwrap() * gains).unwrap().sum_all().unwrap();
        let kl = (categorical_kl(logits.as_tensor(), &old).unwrap().sum_all().unwrap() / t).unwrap();
        let grads = (kl - expected).unwrap().backward().unwrap();
        let grad: Vec<f64> = grads.get(logits.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert!(grad.iter().all(|g| g.abs() < 1e-12), "{grad:?}");
    }

    #[test]
    fn impossible_choices_stay_finite_and_bad_actions_are_refused() {
        let logits = Tensor::new(&[[0.0f64, f64::NEG_INFINITY, 1.0]], &Device::Cpu).unwrap();
        let var = Var::from_tensor(&logits).unwrap();
        let kl = categorical_kl(var.as_tensor(), &logits).unwrap().sum_all().unwrap();
        assert_eq!(kl.to_scalar::<f64>().unwrap(), 0.0);
        assert!(categorical_log_prob(&logits, &[3]).is_err());
        assert!(categorical_log_prob(&logits, &[]).is_err());
        let taken = categorical_log_prob(var.as_tensor(), &[2]).unwrap().sum_all().unwrap();
        assert!((taken.to_scalar::<f64>().unwrap() + (1.0 + (-1f64).exp()).ln()).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn a_policy_is_no_distance_from_itself_with_no_gradient(
            mean in proptest::collection::vec(-2.0f64..2.0, 6),
            log_std in proptest::collection::vec(-1.0f64..1.0, 3),
            other in proptest::collection::vec(-2.0f64..2.0, 6),
        ) {
            let var = |x: &[f64], shape: &[usize]| {
                Var::from_tensor(&Tensor::from_slice(x, shape, &Device::Cpu).unwrap()).unwrap()
            };
            let (m, s) = (var(&mean, &[2, 3]), var(&log_std, &[3]));
            let same = gaussian_kl(m.as_tensor(), s.as_tensor(), m.as_tensor(), s.as_tensor()).unwrap();
            let grads = same.sum_all().unwrap().backward().unwrap();
            for v in [&m, &s] {
                let grad = grads.get(v.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                prop_assert!(grad.iter().all(|g| g.abs() < 1e-12));
            }
            let o = var(&other, &[2, 3]);
            let kl = gaussian_kl(o.as_tensor(), s.as_tensor(), m.as_tensor(), s.as_tensor()).unwrap();
            prop_assert!(kl.to_vec1::<f64>().unwrap().iter().all(|kl| *kl >= -1e-12));
        }
    }
}
