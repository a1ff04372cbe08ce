//! Cases of `riskpo.json`.

use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs};
use super::verl_loss::LossCase;
use crate::papers::riskpo::{MixedValueAtRisk, QuantileTracker, Tail, Thresholds, Tracked};
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "quantile_tracker" => tracker(case),
        "loss" => {
            let surrogate = ClippedRatio {
                clip_low: case.param("clip_low")?,
                clip_high: case.param("clip_high")?,
                dual_clip: Some(case.param("clip_ratio_c")?),
            };
            LossCase::read(case)?.run(surrogate, None)
        }
        other => Err(Failure::NotImplemented(format!("function `{other}` of riskpo"))),
    }
}

fn advantages(case: &Case) -> Outcome {
    let (mixing, seeking): (bool, bool) =
        (case.param("use_mixing_risk_measure")?, case.param("risk_seeking_upper_tail")?);
    let settings = MixedValueAtRisk {
        quantile_down: case.param("quantile_down")?,
        quantile_up: case.param("quantile_up")?,
        thresholds: case.param::<Thresholds>("use_q_track_mode")?,
        tail: match (mixing, seeking) {
            (true, _) => Tail::Averse,
            (false, true) => Tail::Seeking,
            (false, false) => Tail::None,
        },
        tail_weight: case.param("w_mix")?,
        upper_weight: case.param("upper_weight")?,
        natural_baseline: case.param("natural_baseline_adv")?,
        mean_baseline: case.param("use_mean_as_baseline")?,
        norm_by_std: case.param("norm_adv_by_std_in_grpo")?,
        credit: case.param("credit_assign_mode")?,
        epsilon: case.param("epsilon")?,
        // As the authors' code.
        min_std: 0.0,
        max_advantage: 0.0,
        ..MixedValueAtRisk::default()
    };
    let thresholds = case.param::<Option<f64>>("q_track_down")?.zip(case.param("q_track_up")?);
    let tracked = Tracked { thresholds, band: case.param("g_rvar_avg")?, tail: case.param("g_cvar_avg")? };
    let (groups, bundles) = (case.whole("group_ids")?, case.whole("bundle_ids")?);
    let out = settings.bundled(&case.numbers("rewards")?, &groups, &bundles, &tracked)?;
    let advantages = Table::broadcast(&out.advantages, &case.table("response_mask")?)?;
    Ok(Outputs::from([("advantages", advantages.values), ("bundle_scores", out.scores.concat())]))
}

/// Steps as records in the order g_cvar_avg, g_rvar_avg, q, q_down, q_up.
fn tracker(case: &Case) -> Outcome {
    let missing = |name: &str| Failure::Missing(name.into());
    let levels: Vec<f64> = case
        .params
        .get("levels")
        .and_then(|levels| levels.get("data").unwrap_or(levels).as_array())
        .and_then(|levels| levels.iter().map(Value::as_f64).collect())
        .ok_or_else(|| missing("params.levels"))?;
    let settings = MixedValueAtRisk {
        quantile_down: case.param("quantile_down")?,
        quantile_up: case.param("quantile_up")?,
        natural_baseline_tracked: case.param("natural_baseline_base")?,
        lr_q: case.param("lr_q")?,
        levels: levels.len(),
        ..MixedValueAtRisk::default()
    };
    let batches = case.inputs.get("bundle_scores_per_step").and_then(Value::as_array);
    let lengths: Option<Vec<usize>> =
        batches.and_then(|b| b.iter().map(|b| Some(b.get("data").unwrap_or(b).as_array()?.len())).collect());
    let lengths = lengths.ok_or_else(|| missing("inputs.bundle_scores_per_step"))?;
    let all = case.numbers("bundle_scores_per_step")?;
    let mut tracker = QuantileTracker { levels, ..QuantileTracker::default() };
    let (mut steps, mut start) = (Vec::new(), 0);
    for n in lengths {
        tracker.step(&all[start..start + n], &settings)?;
        start += n;
        let (down, up) = tracker.tracked(&settings).thresholds.ok_or_else(|| missing("quantiles"))?;
        steps.extend([tracker.tail, tracker.band]);
        steps.extend(&tracker.quantiles);
        steps.extend([down, up]);
    }
    Ok(Outputs::from([("steps", steps)]))
}
