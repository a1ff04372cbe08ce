//! Cases of `copo.json`.

use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread, group_norm};
use crate::objective::Objective;
use crate::papers::copo::{BlendMode, BlendedClip, ConsistencyBlend};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of copo"))),
    }
}

fn advantages(case: &Case) -> Outcome {
    let mask = case.table("response_mask")?;
    let (rewards, groups) = (case.numbers("rewards")?, case.whole("group_ids")?);
    let norm_by_std: bool = case.param("norm_by_std")?;
    let fixed = [("std", Value::from("unbiased")), ("entropy_log_base", Value::from(2))];
    for (name, only) in fixed {
        if case.params.get(name).is_some_and(|value| *value != only) {
            return Err(Failure::NotImplemented(format!("`{name}` other than {only}")));
        }
    }
    let block = ConsistencyBlend {
        reward_coef: case.param("reward_coef")?,
        norm_by_std,
        epsilon: case.param("eps")?,
        entropy_epsilon: case.param("entropy_eps")?,
        ..ConsistencyBlend::default()
    };
    let found = block.consistency(&rewards, &groups, &case.whole("answer_ids")?)?;
    let spread = if norm_by_std { Spread::Unbiased } else { Spread::None };
    let settings = GroupNorm { epsilon: block.epsilon, spread, ..GroupNorm::default() };
    let local = group_norm(&rewards, &groups, &settings)?;
    Ok(Outputs::from([
        ("local_advantages", Table::broadcast(&local, &mask)?.values),
        ("global_advantages", Table::broadcast(&found.global_advantages, &mask)?.values),
        ("consistency_entropy", found.entropy),
        ("global_rewards", found.global_rewards),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, batch, mut signals) = case.policy_batch()?;
    let mask = batch.mask().clone();
    let block = ConsistencyBlend {
        mode: case.param("mode")?,
        k: case.param("k")?,
        b: case.param("b")?,
        global_loss_coef: case.param::<Option<f64>>("global_loss_coef")?.unwrap_or(1.0),
        ..ConsistencyBlend::default()
    };
    signals.advantages = case.table("local_advantages")?;
    let first = |x: Table| x.iter().map(|row| row.first().copied().unwrap_or(0.0)).collect::<Vec<f64>>();
    let (local, global) = (first(signals.advantages.clone()), first(case.table("global_advantages")?));
    let (entropy, rewards) = (case.numbers("consistency_entropy")?, case.numbers("rewards")?);
    block.attach(&mut signals, &mask, (&global, &entropy, &rewards))?;
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: Some(case.param("clip_ratio_c")?),
    };
    let objective = Objective::new(BlendedClip(ratio), case.param("loss_agg_mode")?);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    // In the two modes without a blend the reference reports the weight that it does not use.
    let unused = matches!(block.mode, BlendMode::NoGlobal | BlendMode::OnlyGlobal);
    let weight = |i: usize| {
        if unused { block.soft_weight(entropy[i]) } else { block.weights(entropy[i], rewards[i], local[i]).0 }
    };
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("local_weight", (0..mask.rows).map(weight).collect()),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}
