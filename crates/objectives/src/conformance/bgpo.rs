//! Cases of `bgpo.json`.

use candle_core::{Tensor, Var};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use super::model_dllm::{flags, mask_counts, targets};
use crate::advantage::{GroupNorm, group_norm};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Signals};
use crate::diffusion::{elbo_samples, token_log_probs};
use crate::objective::{LossParts, Objective};
use crate::papers::bgpo::{
    Average, ELBO_SAMPLES, ElboKlEstimator, ElboNorm, ElboRatio, OLD_ELBO_SAMPLES, RatioForm,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "mask_counts" => mask_counts(case),
        "elbo" => elbo(case),
        "loss" if case.params.get("clip").is_some_and(serde_json::Value::is_null) => unclipped(case),
        "loss" => loss(case),
        "kl" => kl(case),
        "loss_from_logits" => from_logits(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of bgpo"))),
    }
}

fn advantages(case: &Case) -> Outcome {
    let (std, outside): (String, bool) = (case.param("std")?, case.param("outside")?);
    if std != "unbiased" || !outside {
        return Err(Failure::NotImplemented(format!("advantages with std `{std}`, outside {outside}")));
    }
    let settings = GroupNorm { epsilon: case.param("eps")?, ..GroupNorm::default() };
    let a = group_norm(&case.numbers("rewards")?, &case.whole("group_ids")?, &settings)?;
    Ok(Outputs::from([("advantages", a)]))
}

/// ELBO terms [B, N] from `logits` [B, N, L, V] of a case with `targets`, `masks` and `p_mask`.
pub(super) fn samples(case: &Case, logits: &Tensor) -> Result<Tensor, Failure> {
    let log_probs = token_log_probs(logits, &targets(case, "targets")?)?;
    Ok(elbo_samples(&log_probs, &flags(case, "masks")?, &case.tensor("p_mask")?)?)
}

fn elbo(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let raw = samples(case, logits.as_tensor())?;
    let norm: Option<String> = case.param("normalise_by")?;
    let length = match norm.as_deref() {
        Some("none") => 1.0,
        _ => case.param::<f64>("response_len")?,
    };
    let normalised = (&raw / length)?;
    let total = (&normalised * case.tensor("upstream")?)?.sum_all()?;
    Ok(Outputs::from([
        ("l_theta", values(&normalised)?),
        ("elbo", values(&raw.mean(1)?)?),
        ("grad_logits", gradient(&total, &logits)?),
    ]))
}

/// Runs a block whose inputs are already normalised.
pub(super) fn parts(
    new: &Tensor,
    old: &Tensor,
    advantages: &[f64],
    mask: Table,
    block: ElboRatio,
    aggregation: Aggregation,
) -> Result<LossParts, Failure> {
    let block = ElboRatio { norm: ElboNorm::None, ..block };
    let signals = Signals::new(Table::broadcast(advantages, &mask)?);
    let batch = Batch::new(mask).with(ELBO_SAMPLES, new.clone())?.with(OLD_ELBO_SAMPLES, old.clone())?;
    let objective = Objective::new(block, aggregation);
    Ok(objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?)
}

/// The code's clipped loss. The mean over responses needs no epsilon in a length: every token has the same loss.
fn clipped(case: &Case) -> Result<(ElboRatio, Aggregation), Failure> {
    let aggregation = case.param("aggregation")?;
    let average =
        if aggregation == Aggregation::SeqMeanTokenMean { Average::Responses } else { Average::Tokens };
    let branch = |name: &str| -> Result<Option<bool>, Failure> {
        Ok(case.param::<Option<String>>(name)?.map(|text| text.starts_with("exp")))
    };
    let form = match (branch("positive_branch")?, branch("other_branch")?) {
        (Some(true), Some(true)) => RatioForm::Jensen,
        (Some(false), Some(false)) => RatioForm::Tangent,
        (None, None) | (Some(false), Some(true)) => RatioForm::Bound,
        _ => return Err(Failure::NotImplemented("this pair of branches of bgpo".into())),
    };
    let block = ElboRatio {
        form,
        average,
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: case.param::<Option<f64>>("clip_c")?.unwrap_or(0.0),
        ..ElboRatio::default()
    };
    Ok((block, aggregation))
}

fn loss(case: &Case) -> Outcome {
    let (new, old) = (case.var("l_theta")?, case.tensor("old_l_theta")?);
    let (a, mask) = (case.numbers("advantages")?, case.table("response_mask")?);
    let (block, aggregation) = clipped(case)?;
    if new.rank() == 1 {
        // The baseline: the ELBO's own ratio for both signs.
        let block = ElboRatio { form: RatioForm::ElboMean, ..block };
        let new_column = new.as_tensor().unsqueeze(1)?;
        let parts = parts(&new_column, &old.unsqueeze(1)?, &a, mask, block, aggregation)?;
        return Ok(Outputs::from([
            ("loss", values(&parts.loss)?),
            ("grad_l_theta", gradient(&parts.loss, &new)?),
            ("ppo_kl", vec![parts.stat("low_var_kl")]),
        ]));
    }
    let all = parts(new.as_tensor(), &old, &a, mask.clone(), block, aggregation)?;
    let alone = |j: usize| -> Result<f64, Failure> {
        let (new, old) = (new.as_tensor().narrow(1, j, 1)?, old.narrow(1, j, 1)?);
        Ok(parts(&new, &old, &a, mask.clone(), block, aggregation)?.loss.to_scalar()?)
    };
    let (_, n) = old.dims2()?;
    Ok(Outputs::from([
        ("loss", values(&all.loss)?),
        ("loss_per_mc", (0..n).map(alone).collect::<Result<_, _>>()?),
        ("grad_l_theta", gradient(&all.loss, &new)?),
    ]))
}

/// The paper's bound and the ELBO objective itself, without clipping: losses, values per response [B], gradients.
pub(super) fn bound_and_elbo(new: &Tensor, old: &Tensor, a: &[f64], to: &Var) -> Outcome {
    let mask = Table { rows: a.len(), cols: 1, values: vec![1.0; a.len()] };
    let run = |form| -> Result<(Tensor, Vec<f64>), Failure> {
        let block = ElboRatio { form, clip: false, average: Average::Responses, ..ElboRatio::default() };
        let loss = parts(new, old, a, mask.clone(), block, Aggregation::TokenMean)?.loss;
        let column = Table { rows: a.len(), cols: 1, values: a.to_vec() }.to_tensor(new)?;
        let ratio = block.ratio(&(new - old)?, &column)?.mean(1)?;
        Ok((loss, values(&(ratio * column)?)?))
    };
    let ((bound, r_bound), (elbo, r_elbo)) = (run(RatioForm::Bound)?, run(RatioForm::ElboMean)?);
    Ok(Outputs::from([
        ("loss_bgpo", values(&bound)?),
        ("loss_elbo", values(&elbo)?),
        ("r_lower_bound", r_bound),
        ("r_elbo", r_elbo),
        ("grad_bgpo", gradient(&bound, to)?),
        ("grad_elbo", gradient(&elbo, to)?),
    ]))
}

fn unclipped(case: &Case) -> Outcome {
    let (new, old) = (case.var("l_theta")?, case.tensor("old_l_theta")?);
    bound_and_elbo(new.as_tensor(), &old, &case.numbers("advantages")?, &new)
}

fn kl(case: &Case) -> Outcome {
    let (new, reference) = (case.var("l_theta")?, case.tensor("ref_l_theta")?);
    let estimator: ElboKlEstimator = case.param("kind")?;
    let a = case.tensor("advantages")?.unsqueeze(1)?;
    let kl = estimator.estimate(&(new.as_tensor() - reference)?, &a)?;
    Ok(Outputs::from([("kl", values(&kl)?), ("grad_l_theta", gradient(&kl.sum_all()?, &new)?)]))
}

fn from_logits(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let length: f64 = case.param("response_len")?;
    let new = (samples(case, logits.as_tensor())? / length)?;
    let old = (samples(case, &case.tensor("old_logits")?)? / length)?;
    let (block, aggregation) = clipped(case)?;
    let (a, mask) = (case.numbers("advantages")?, case.table("response_mask")?);
    let parts = parts(&new, &old, &a, mask, block, aggregation)?;
    Ok(Outputs::from([("loss", values(&parts.loss)?), ("grad_logits", gradient(&parts.loss, &logits)?)]))
}
