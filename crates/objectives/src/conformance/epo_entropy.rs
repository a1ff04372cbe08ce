//! Cases of `epo_entropy.json`.

use candle_core::{Tensor, Var};
use efference_ops::{TokenScores, token_scores};
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, flat, gradient, values};
use crate::aggregation::{Aggregation, Normaliser};
use crate::batch::{Batch, ENTROPY, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::block::Kind;
use crate::objective::{LossParts, Objective};
use crate::papers::epo_entropy::{
    CorridorMode, EntropyHistory, EntropySmoothing, Gate, HistoryForm, PADDED_ENTROPY, PenaltyForm,
    Positions, ROLLOUT_STEPS, phase_weight,
};
use crate::regularizer::{EntropyBonus, Kl};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "schedule" => schedule(case),
        "history" => history(case),
        "loss" if case.inputs.contains_key("logits") => loss(case),
        "loss" => hinge(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of epo_entropy"))),
    }
}

fn schedule(case: &Case) -> Outcome {
    let (slow, fast) = (case.param("lambda_slow")?, case.param("lambda_fast")?);
    let epochs = case.numbers("epoch")?.into_iter().zip(case.numbers("max_epochs")?);
    let weight = |(e, max): (f64, f64)| phase_weight(e as u64, max as u64, slow, fast); // below 0 counts as 0
    Ok(Outputs::from([("weight", epochs.map(weight).collect())]))
}

fn history(case: &Case) -> Outcome {
    let max_steps = case.param("max_steps")?;
    let missing = || Failure::Missing("inputs.step_entropies_per_epoch".into());
    let epochs = case.inputs.get("step_entropies_per_epoch").and_then(Value::as_array).ok_or_else(missing)?;
    let mut history = EntropyHistory::default();
    for epoch in epochs {
        let steps: Vec<Option<f64>> = flat(epoch).ok_or_else(missing)?.into_iter().map(Some).collect();
        history.push(&steps, max_steps, HistoryForm::LeftZeros)?;
    }
    Ok(Outputs::from([("history_mean", history.means())]))
}

fn smoothing(case: &Case) -> Result<EntropySmoothing, Failure> {
    Ok(EntropySmoothing {
        coef: 1.0,
        mode: case.param::<Option<CorridorMode>>("mask_mode")?.unwrap_or_default(),
        positions: Positions::All,
        low: case.param("min_ratio")?,
        high: case.param("max_ratio")?,
        gate: Gate::Off,
        phase: true,
        ..EntropySmoothing::default()
    })
}

fn loss(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let (b, t, v) = logits.dims3()?;
    let ids: Vec<u32> = case.whole("actions")?.iter().map(|&id| id as u32).collect();
    let ids = Tensor::from_vec(ids, b * t, logits.device())?;
    let TokenScores { log_probs, entropy } =
        token_scores(&logits.as_tensor().reshape((b * t, v))?, &ids, 1.0)?;
    let (log_probs, entropy) = (log_probs.reshape((b, t))?, entropy.reshape((b, t))?);
    let (mask, steps, means) =
        (case.table("response_mask")?, case.whole("rollout_step")?, case.numbers("history_mean")?);
    let (epoch, max_epochs): (u64, u64) = (case.param("epoch")?, case.param("max_epochs")?);
    let coef: f64 = case.param("entropy_coeff")?;
    let block = EntropySmoothing {
        form: PenaltyForm::Indicator,
        coef: coef * case.param::<f64>("entropy_smooth_coeff")?,
        penalty: case.param("out_range_penalty")?,
        max_epochs,
        ..smoothing(case)?
    };
    let kl = Kl { coef: case.param("kl_coef")?, estimator: case.param("kl_type")?, ..Kl::default() };
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: Some(case.param("dual_clip_c")?),
    };
    let aggregation: Aggregation = case.param("agg")?;
    let objective = Objective {
        regularizers: vec![Box::new(EntropyBonus { coef, aggregation: None }), Box::new(block), Box::new(kl)],
        ..Objective::new(ratio, aggregation)
    };
    let counts = vec![1.0; means.len()];
    let history = EntropyHistory { epochs: epoch + 1, sums: means.clone(), counts, active: true };
    let mut state = State::default();
    state.set(EntropySmoothing::KIND, &history)?;
    let signals = Signals::new(case.table("advantages")?);
    let (old, reference) = (case.tensor("old_log_probs")?, case.tensor("ref_log_probs")?);
    let whole = Normaliser::of(&mask);
    let all = |log_probs: &Tensor, entropy: &Tensor| -> Result<LossParts, Failure> {
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, log_probs.clone())?
            .with(OLD_LOG_PROBS, old.clone())?
            .with(REF_LOG_PROBS, reference.clone())?
            .with(ENTROPY, entropy.clone())?
            .with(PADDED_ENTROPY, entropy.clone())?
            .with(ROLLOUT_STEPS, steps.clone())?;
        Ok(objective.loss(&batch, &signals, &whole, &state)?)
    };
    let parts = all(&log_probs, &entropy)?;
    let (free_p, free_h) = (Var::from_tensor(&log_probs.detach())?, Var::from_tensor(&entropy.detach())?);
    let free = all(free_p.as_tensor(), free_h.as_tensor())?.loss;

    let raw = Table::from_tensor(&entropy.detach())?;
    let inside = block.in_range(&raw, &mask, &steps, &means)?;
    let penalty = block.indicator(&raw, &mask, &steps, &means)?;
    let share = inside.values.iter().sum::<f64>() / inside.values.len() as f64;
    let reweight = inside.values.iter().map(|&x| if x == 1.0 { 1.0 } else { block.penalty }).collect();
    let phase = phase_weight(epoch, max_epochs, block.slow, block.fast);
    let smooth = aggregation.apply(&(penalty.to_tensor(&old)? * phase)?, &mask, &whole)?;
    let kl_loss = aggregation.apply(&kl.estimator.estimate(&log_probs, &reference)?, &mask, &whole)?;
    Ok(Outputs::from([
        ("log_probs", values(&log_probs)?),
        ("entropy", values(&entropy)?),
        ("penalty_mask", penalty.values),
        ("in_range_ratio", vec![share]),
        ("reweight_mask_variant", reweight),
        ("phase_weight", vec![phase]),
        ("pg_loss", vec![parts.pg_loss]),
        ("entropy_mean", values(&aggregation.apply(&entropy, &mask, &whole)?)?),
        ("smooth_term", values(&smooth)?),
        ("kl_loss", values(&kl_loss)?),
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&free, &free_p)?),
        ("grad_entropy", gradient(&free, &free_h)?),
        ("grad_logits", gradient(&parts.loss, &logits)?),
    ]))
}

fn hinge(case: &Case) -> Outcome {
    let (entropy, mask) = (case.var("entropy")?, case.table("response_mask")?);
    let (steps, means) = (case.whole("rollout_step")?, case.numbers("history_mean")?);
    let per_token = smoothing(case)?.hinge(entropy.as_tensor(), &mask, &steps, &means)?;
    let aggregation: Aggregation = case.param("agg")?;
    let term = aggregation.apply(&per_token, &mask, &Normaliser::of(&mask))?;
    Ok(Outputs::from([("smooth_term", values(&term)?), ("grad_entropy", gradient(&term, &entropy)?)]))
}
