//! Cases of `ampo.json`.

use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::objective::Objective;
use crate::papers::ampo::{
    Baseline, Comprehension, MixedGroup, MixedPolicy, Rounding, TEACHER_MASK, best_k, comprehension,
    injected_rows, own_loss_logged, selection_score,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "comprehension_score" => scores(case),
        "injection" => injection(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of ampo"))),
    }
}

fn scores(case: &Case) -> Outcome {
    let (log_probs, mask) = (case.table("answer_token_log_probs")?, case.table("answer_mask")?);
    let rounding: Rounding = case.param::<Option<Rounding>>("rounding")?.unwrap_or_default();
    let of = |kind| comprehension(&log_probs, &mask, kind, rounding);
    let (c, format): (f64, f64) = (case.param("format_coefficient")?, case.param("format_score")?);
    let chosen = of(case.param::<Comprehension>("default")?)?;
    let selection: Vec<f64> = chosen.iter().map(|&s| selection_score(s, format, c)).collect();
    let whole = |x: Vec<usize>| x.into_iter().map(|i| i as f64).collect();
    Ok(Outputs::from([
        ("mean_exp_log_softmax", of(Comprehension::MeanExpLogSoftmax)?),
        ("exp_mean_log_softmax", of(Comprehension::ExpMeanLogSoftmax)?),
        ("exp_sum_log_softmax", of(Comprehension::ExpSumLogSoftmax)?),
        ("mean_log_softmax", of(Comprehension::MeanLogSoftmax)?),
        ("ranked", whole(best_k(&selection, selection.len()))),
        ("selected", whole(best_k(&selection, case.param("top_k")?))),
        ("selection_score", selection),
    ]))
}

fn injection(case: &Case) -> Outcome {
    let chosen: Vec<Vec<usize>> = case.input("chosen_positions")?;
    let k = case.param("top_k")?;
    let ranks = chosen.iter().flat_map(|rows| injected_rows(rows, k)).map(|i| i.teacher as f64);
    Ok(Outputs::from([("teacher_rank_at_position", ranks.collect())]))
}

fn advantages(case: &Case) -> Outcome {
    let (rewards, groups) = (case.numbers("rewards")?, case.whole("group_ids")?);
    let (mask, is_teacher) = (case.table("response_mask")?, case.numbers("is_teacher")?);
    let teachers: Vec<bool> = is_teacher.iter().map(|&x| x != 0.0).collect();
    let with = |baseline| -> Result<Vec<f64>, Failure> {
        let settings = MixedGroup {
            baseline,
            by_spread: case.param("norm_by_std")?,
            epsilon: case.param("eps")?,
            ..MixedGroup::default()
        };
        Ok(Table::broadcast(&settings.per_row(&rewards, &groups, &teachers)?, &mask)?.values)
    };
    Ok(Outputs::from([
        ("advantages_mixed", with(Baseline::All)?),
        ("advantages_on_policy_stats", with(Baseline::OnPolicy)?),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let policy = MixedPolicy {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: case.param("clip_ratio_c")?,
        log_ratio_clamp: case.param::<f64>("log_ratio_clamp")?.min(20.0),
        reshape: case.param("off_policy_reshape")?,
        reshape_weight: case.param::<Option<f64>>("off_policy_reshape_weight")?.unwrap_or(1.0),
        reshape_power: case.param::<Option<f64>>("off_policy_reshape_pow_exp")?.unwrap_or(0.5),
        max_clip: case.param("off_policy_max_clip")?,
        min_clip: case.param("off_policy_min_clip")?,
        teacher_probs: false,
    };
    let name: String = case.param("aggregation")?;
    // The published sum over T logs its own tokens by the token mean.
    let (aggregation, logged) = if name == "sum_over_tokens_div_max_len" {
        (Aggregation::SeqMeanTokenSumNorm, Aggregation::TokenMean)
    } else {
        let mode: Aggregation = serde_json::from_value(Value::String(name))
            .map_err(|e| Failure::Missing(format!("params.aggregation: {e}")))?;
        (mode, mode)
    };
    let (log_probs, mut batch, signals) = case.policy_batch()?;
    let teacher = case.table("teacher_mask")?;
    batch.set(TEACHER_MASK, teacher.clone())?;
    let objective = Objective::new(policy, aggregation);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    let advantages = signals.advantages.to_tensor(log_probs.as_tensor())?;
    let own = policy.own(log_probs.as_tensor(), &case.tensor("old_log_probs")?, &advantages)?;
    let own = Table::from_tensor(&own.per_token.detach())?;
    let pairs = batch.mask().values.iter().zip(&teacher.values);
    let own_mask = Table { values: pairs.map(|(m, t)| m * (1.0 - t)).collect(), ..teacher };
    Ok(Outputs::from([
        ("on_policy_loss", vec![own_loss_logged(&own, &own_mask, logged)]),
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}
