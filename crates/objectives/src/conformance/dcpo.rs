//! Cases of `dcpo.json`.

use std::collections::BTreeMap;

use super::case::{Case, Failure, Outcome, Outputs};
use super::verl_loss::{COUNT_EPS, LossCase};
use crate::batch::{Batch, GROUP_IDS, PROMPT_IDS, REWARDS};
use crate::block::{Advantage, TokenRule};
use crate::papers::dcpo::{DynamicAdaptiveClip, History, RatioUnlimited, SmoothStandardised};
use crate::state::State;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "clip_bounds" => {
            let (low, high) = adaptive(case)?.bounds(&case.table("old_log_probs")?);
            Ok(Outputs::from([("low", low.values), ("high", high.values)]))
        }
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of dcpo"))),
    }
}

fn advantages(case: &Case) -> Outcome {
    let (mean, std, times) = (case.numbers("old_mean")?, case.numbers("old_std")?, case.whole("old_times")?);
    let before = mean.into_iter().zip(std).zip(times);
    let before = before.map(|((mean, std), visits)| History { mean, std, visits: visits as u32 });
    let before: BTreeMap<u64, History> = (0u64..).zip(before).collect();
    let mut state = State::default();
    SmoothStandardised::set_histories(&mut state, &before)?;
    let block = SmoothStandardised {
        norm_by_std: case.param("norm_by_std")?,
        history_coeff: case.param("history_coeff")?,
        ..SmoothStandardised::default()
    };
    let groups = case.whole("group_ids")?;
    let batch = Batch::new(case.table("response_mask")?)
        .with(REWARDS, case.numbers("rewards")?)?
        .with(GROUP_IDS, groups.clone())?
        .with(PROMPT_IDS, groups)?;
    let advantages = block.advantages(&batch, &mut state)?;
    let after: Vec<History> = SmoothStandardised::histories(&state)?.into_values().collect();
    Ok(Outputs::from([
        ("advantages", advantages.values),
        ("new_mean", after.iter().map(|h| h.mean).collect()),
        ("new_std", after.iter().map(|h| h.std).collect()),
        ("new_times", after.iter().map(|h| f64::from(h.visits)).collect()),
    ]))
}

fn adaptive(case: &Case) -> Result<DynamicAdaptiveClip, Failure> {
    Ok(DynamicAdaptiveClip {
        eps_low: case.param("eps_low")?,
        eps_high: case.param("eps_high")?,
        clip_ratio_c: case.param("clip_ratio_c")?,
    })
}

fn loss(case: &Case) -> Outcome {
    let mut loss = LossCase::read(case)?;
    // A minibatch's token count and row count, where the loss is of a part of it.
    let mode: String = case.param::<Option<String>>("loss_agg_mode")?.unwrap_or_default();
    let tokens = case.param::<Option<f64>>("batch_response_len")?;
    if let Some(tokens) = tokens.filter(|_| mode == "token-mean") {
        loss.whole.tokens = tokens + COUNT_EPS;
    }
    let rows = case.param::<Option<f64>>("batch_size")?;
    if let Some(rows) = rows.filter(|_| mode.starts_with("seq-")) {
        loss.whole.sequences = rows;
    }
    let kind: String = case.param("clip_type")?;
    let dual_clip = if kind == "origin" { 0.0 } else { case.param("clip_ratio_c")? };
    let (clip_low, clip_high, bounds): (f64, f64, Option<Box<dyn TokenRule>>) = match kind.as_str() {
        "dynamic" => (0.0, 0.0, Some(Box::new(adaptive(case)?))),
        "dual" | "origin" => (case.param("eps_low")?, case.param("eps_high")?, None),
        other => return Err(Failure::NotImplemented(format!("clip_type `{other}` of dcpo"))),
    };
    loss.run(RatioUnlimited { clip_low, clip_high, dual_clip, log_ratio_limit: 0.0 }, bounds)
}
