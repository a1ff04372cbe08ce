//! Cases of `apo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, REWARDS, Signals, keep_where};
use crate::block::TokenRule;
use crate::kl::KlEstimator;
use crate::objective::Objective;
use crate::papers::apo::{
    AdvantageClip, ComplexityScale, DIFFICULTY, RESPONSE_LENGTHS, ShapedKl, Shaping, complexity_weights,
    difficulty, format_reward, unclamped,
};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "kl_weight" => kl_weight(case),
        "loss" => loss(case),
        "kl" => kl(case),
        "reward" => reward(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of apo"))),
    }
}

fn ratio(clip: f64) -> ClippedRatio {
    ClippedRatio { clip_low: clip, clip_high: clip, dual_clip: None }
}

fn advantages(case: &Case) -> Outcome {
    let (rewards, groups) = (case.numbers("rewards")?, case.whole("group_ids")?);
    let (lengths, base) = (case.numbers("response_length_tokens")?, case.param("stcr_base")?);
    let d = difficulty(&rewards, &groups)?;
    let stcr = complexity_weights(&rewards, &lengths, &groups, base)?;
    let unbiased = case.param::<Option<bool>>("unbiased_std")?.unwrap_or(true);
    if !unbiased {
        return Err(Failure::NotImplemented("a biased deviation".into()));
    }
    let norm =
        GroupNorm { epsilon: case.param("std_epsilon")?, spread: Spread::Unbiased, ..GroupNorm::default() };
    let mut weights: Vec<Box<dyn TokenRule>> = vec![Box::new(AdvantageClip::default())];
    if case.param("use_stcr")? {
        weights.push(Box::new(ComplexityScale { base, ..ComplexityScale::default() }));
    }
    let objective = Objective {
        advantage: Some(Box::new(norm)),
        weights,
        ..Objective::new(ratio(0.2), Aggregation::TokenMean)
    };
    let batch = Batch::new(case.table("response_mask")?)
        .with(REWARDS, rewards)?
        .with(GROUP_IDS, groups)?
        .with(RESPONSE_LENGTHS, lengths)?;
    let ready = objective.prepare(batch, &mut State::default())?;
    Ok(Outputs::from([
        ("advantages", ready.signals.advantages.values),
        ("difficulty", d),
        ("stcr_weight", stcr),
    ]))
}

fn kl_weight(case: &Case) -> Outcome {
    let weights = case.numbers("difficulty")?.into_iter().map(|d| Shaping::Saturating.weight(d)).collect();
    Ok(Outputs::from([("weight", weights)]))
}

fn estimator(case: &Case, name: &str) -> Result<KlEstimator, Failure> {
    case.param(name)
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, batch, mut signals) = case.policy_batch()?;
    let d = Table::broadcast(&case.numbers("difficulty")?, batch.mask())?;
    signals.extra.insert(DIFFICULTY.name.into(), d);
    let shaping = if case.param("use_dads")? { Shaping::Saturating } else { Shaping::None };
    let kl = ShapedKl { coef: case.param("kl_coef")?, estimator: estimator(case, "kl_estimator")?, shaping };
    let with = |kl: ShapedKl| -> Result<Objective, Failure> {
        let base = Objective::new(ratio(case.param("eps_clip")?), Aggregation::TokenMean);
        Ok(Objective { regularizers: vec![Box::new(kl)], ..base })
    };
    let whole = batch.normaliser();
    let run = |kl: ShapedKl, signals: &Signals| -> Result<_, Failure> {
        Ok(with(kl)?.loss(&batch, signals, &whole, &State::default())?)
    };
    let parts = run(kl, &signals)?;
    let weighted = run(ShapedKl { coef: 1.0, ..kl }, &signals)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("weighted_kl", weighted.regularizers.iter().map(|(_, x)| *x).collect()),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn kl(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let mask = case.table("response_mask")?;
    let (kind, reference) = (estimator(case, "estimator")?, case.tensor("ref_log_probs")?);
    let k = match case.param::<Option<bool>>("clamped")?.unwrap_or(false) {
        true => kind.estimate(log_probs.as_tensor(), &reference)?,
        false => unclamped(kind, log_probs.as_tensor(), &reference)?,
    };
    let k = keep_where(&k, &mask)?;
    let sum = k.sum_all()?;
    Ok(Outputs::from([("kl", values(&k)?), ("grad_log_probs", gradient(&sum, &log_probs)?)]))
}

fn reward(case: &Case) -> Outcome {
    let responses: Vec<String> = case.input("responses")?;
    let value = case.param("value")?;
    Ok(Outputs::from([("format", responses.iter().map(|r| format_reward(r, value)).collect())]))
}
