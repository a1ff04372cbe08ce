//! Cases of `oorl_gepo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::objective::Objective;
use crate::papers::oorl_gepo::{Gepo, LossScale, PreferenceTexts, Streams, WhitenedReturns, join_streams};
use crate::state::State;
use crate::surrogate::ClippedRatio;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "gepo_loss" => gepo_loss(case),
        "oorl_loss" => oorl_loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of oorl_gepo"))),
    }
}

fn settings(case: &Case) -> Result<Gepo, Failure> {
    Ok(Gepo {
        coef: case.param::<Option<f64>>("w_gepo")?.unwrap_or(1.0),
        beta: case.param("beta")?,
        lambda: case.param("lambda")?,
        variance_of: case.param::<Option<_>>("variance_of")?.unwrap_or_default(),
        ..Gepo::default()
    })
}

fn flags(case: &Case, name: &str) -> Result<Vec<bool>, Failure> {
    Ok(case.numbers(name)?.iter().map(|&x| x != 0.0).collect())
}

fn gepo_loss(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let gepo = settings(case)?;
    let groups = gepo.groups(&PreferenceTexts {
        log_probs: log_probs.as_tensor(),
        ref_log_probs: &case.tensor("ref_log_probs")?,
        mask: &case.table("response_mask")?,
        group_ids: &case.whole("group_ids")?,
        is_winner: &flags(case, "is_winner")?,
    })?;
    let mean = gepo.mean(&groups, groups.groups)?;
    let list = |x: &Option<candle_core::Tensor>| x.as_ref().map_or(Ok(Vec::new()), values);
    let (loss, grad) = match &mean {
        Some(mean) => (values(mean)?, gradient(mean, &log_probs)?),
        None => (vec![0.0], vec![0.0; log_probs.elem_count()]),
    };
    Ok(Outputs::from([
        ("loss", loss),
        ("per_group_preference", list(&groups.preference)?),
        ("per_group_variance", list(&groups.variance)?),
        ("implicit_rewards", values(&groups.implicit_rewards)?),
        ("groups_skipped", vec![groups.skipped as f64]),
        ("grad_log_probs", grad),
    ]))
}

fn oorl_loss(case: &Case) -> Outcome {
    let (log_probs, pref) = (case.var("log_probs")?, case.var("pref_log_probs")?);
    let (w_rl, clip, gepo) = (case.param("w_rl")?, case.param("clip")?, settings(case)?);
    let mask = case.table("response_mask")?;
    let rows = mask.values.len();
    let batch = join_streams(
        Streams {
            log_probs: log_probs.as_tensor(),
            old_log_probs: &case.tensor("old_log_probs")?,
            mask: &mask,
            rewards: &case.numbers("rewards")?,
        },
        &PreferenceTexts {
            log_probs: pref.as_tensor(),
            ref_log_probs: &case.tensor("pref_ref_log_probs")?,
            mask: &case.table("pref_response_mask")?,
            group_ids: &case.whole("pref_group_ids")?,
            is_winner: &flags(case, "pref_is_winner")?,
        },
    )?;
    let objective = |scale: f64, gepo: Gepo| -> Result<Objective, Failure> {
        let advantage = WhitenedReturns { epsilon: case.param("whiten_eps")?, ..WhitenedReturns::default() };
        let ratio = ClippedRatio { clip_low: clip, clip_high: clip, dual_clip: None };
        Ok(Objective {
            advantage: Some(Box::new(advantage)),
            weights: vec![Box::new(LossScale { factor: scale })],
            regularizers: vec![Box::new(gepo)],
            ..Objective::new(ratio, Aggregation::TokenMean)
        })
    };
    let run = |objective: &Objective| -> Result<_, Failure> {
        let mut state = State::default();
        let ready = objective.prepare(batch.clone(), &mut state)?;
        let parts = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state)?;
        Ok((parts, ready.signals.advantages))
    };
    let (parts, advantages) = run(&objective(w_rl, gepo)?)?;
    let (alone, _) = run(&objective(1.0, Gepo { coef: 1.0, ..gepo })?)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("rl_loss", vec![alone.pg_loss]),
        ("gepo_loss", alone.regularizers.iter().map(|(_, x)| *x).collect()),
        ("advantages", advantages.values.into_iter().take(rows).collect()),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        ("grad_pref_log_probs", gradient(&parts.loss, &pref)?),
    ]))
}
