//! Cases of `pref_base.json`: preference losses with and without a reference.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::PAIR_IDS;
use crate::objective::Objective;
use crate::pairs::{Pairs, halves, numbers};
use crate::state::State;
use crate::surrogate::{FreeLoss, PairLoss, Preference, ReferenceFree};

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of pref_base"))),
    }
}

fn loss(case: &Case) -> Outcome {
    let name: String = case.param("loss_type")?;
    let (log_probs, mut batch, signals) = case.policy_batch()?;
    batch.set(PAIR_IDS, halves(batch.rows() / 2))?;
    let pairs = Pairs::of(&batch)?;
    let (objective, per_pair, (chosen, rejected)) = if let Some(name) = name.strip_prefix("cpo_") {
        let free = reference_free(case, name)?;
        let (chosen, rejected) = free.scores(&batch, &pairs)?;
        let rewards = (numbers(&(&chosen * free.beta)?)?, numbers(&(&rejected * free.beta)?)?);
        let per_pair = free.per_pair(&chosen, &rejected)?;
        (Objective::new(free, Aggregation::TokenMean), per_pair, rewards)
    } else {
        let preference = preference(case, &name)?;
        let sums = preference.log_probs(&batch, &pairs)?;
        let (per_pair, rewards) = (preference.per_pair(&sums)?, preference.implicit_rewards(&sums)?);
        (Objective::new(preference, Aggregation::TokenMean), per_pair, rewards)
    };
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("per_pair_loss", values(&per_pair)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        ("chosen_rewards", chosen),
        ("rejected_rewards", rejected),
    ]))
}

fn named<T: serde::de::DeserializeOwned>(name: &str) -> Result<T, Failure> {
    serde_json::from_value(name.into()).map_err(|_| Failure::NotImplemented(format!("loss type `{name}`")))
}

fn preference(case: &Case, name: &str) -> Result<Preference, Failure> {
    let loss: PairLoss = named(name)?;
    let default = Preference::default();
    let or = |name: &str, default: f64| Ok::<_, Failure>(case.param::<Option<f64>>(name)?.unwrap_or(default));
    Ok(Preference {
        loss,
        beta: case.param("beta")?,
        // The authors' code reads it only where the loss has it.
        label_smoothing: if loss.smooths() { or("label_smoothing", 0.0)? } else { 0.0 },
        f_divergence: case.param::<Option<_>>("f_divergence")?.unwrap_or_default(),
        divergence_alpha: or("f_alpha_divergence_coef", or("alpha", default.divergence_alpha)?)?,
        ld_alpha: or("ld_alpha", 1.0)?,
        discopop_tau: or("discopop_tau", default.discopop_tau)?,
        weighted: false,
    })
}

fn reference_free(case: &Case, name: &str) -> Result<ReferenceFree, Failure> {
    Ok(ReferenceFree {
        loss: named::<FreeLoss>(name)?,
        beta: case.param("beta")?,
        gamma: case.param("simpo_gamma")?,
        label_smoothing: case.param("label_smoothing")?,
        alpha: case.param("alpha")?,
        length_normalised: case.param("length_normalised")?,
    })
}
