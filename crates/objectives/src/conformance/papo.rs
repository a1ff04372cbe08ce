//! Cases of `papo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::{Aggregation, Normaliser};
use crate::batch::{Batch, LOG_PROBS, SUCCESS};
use crate::block::{Kind, Regularizer};
use crate::kl::KlEstimator;
use crate::objective::Objective;
use crate::papers::papo::rollout::{blacken, format_score, overall_score, random_patches};
use crate::papers::papo::{
    AUG_LOG_PROBS, CorrectNll, GroupMeanWithin, PERCEPTION_WEIGHTS, PerceptionKl, PerceptionMemory,
    SampledNll, annealed, entropy_discount, single_precision_group_norm,
};
use crate::regularizer::Kl;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        "kl" => kl(case),
        "advantages" => advantages(case),
        "schedule" => schedule(case),
        "augment" => augment(case),
        "reward" => reward(case),
        "filter" => filter(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of papo"))),
    }
}

fn flag(case: &Case, name: &str) -> Result<bool, Failure> {
    Ok(case.param::<Option<bool>>(name)?.unwrap_or(false))
}

/// A coefficient whose switch may be off or absent.
fn switched(case: &Case, switch: &str, name: &str) -> Result<f64, Failure> {
    if flag(case, switch)? { case.param(name) } else { Ok(0.0) }
}

/// The authors average over all samples, those without a token included.
fn normaliser(batch: &Batch) -> Normaliser {
    Normaliser { sequences: batch.rows() as f64, ..batch.normaliser() }
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mut batch, signals) = case.policy_batch()?;
    let aug = case.var("aug_log_probs")?;
    batch.set(AUG_LOG_PROBS, aug.as_tensor().clone())?;
    if case.inputs.contains_key("kl_prcp_weighting") {
        batch.set(PERCEPTION_WEIGHTS, case.numbers("kl_prcp_weighting")?)?;
    }
    if case.inputs.contains_key("correct_mask") {
        batch.set(SUCCESS, case.numbers("correct_mask")?)?;
    }
    let mode: String = case.param("loss_avg_mode")?;
    let aggregation = match mode.as_str() {
        "token" => Aggregation::TokenMean,
        "seq" => Aggregation::SeqMeanTokenMean,
        other => return Err(Failure::NotImplemented(format!("loss_avg_mode `{other}`"))),
    };
    let recompute = flag(case, "recompute_aug_log_probs")?;
    let perception = PerceptionKl {
        coef: case.param("kl_prcp_coef")?,
        token_top_p: match flag(case, "use_kl_prcp_token_level_mask")? {
            true => case.param("kl_prcp_token_level_mask_top_p")?,
            false => 1.0,
        },
        clip: switched(case, "use_kl_prcp_clipping", "kl_prcp_clipping")?,
        recompute,
        ..PerceptionKl::default()
    };
    let nll = SampledNll {
        true_coef: switched(case, "use_ori_entropy_loss", "ori_entropy_loss_coef")?,
        masked_coef: switched(case, "use_aug_entropy_loss", "aug_entropy_loss_coef")?,
        recompute,
    };
    let mut regularizers: Vec<Box<dyn Regularizer>> = vec![Box::new(perception), Box::new(nll)];
    let with_reference = case.inputs.contains_key("ref_log_probs");
    if with_reference {
        regularizers.push(Box::new(Kl { coef: case.param("kl_coef")?, ..Kl::default() }));
    }
    let sft = flag(case, "use_sft_loss")?;
    if sft {
        regularizers
            .push(Box::new(CorrectNll { coef: case.param("sft_loss_coef")?, ..CorrectNll::default() }));
    }
    let ratio = ClippedRatio {
        clip_low: case.param("clip_ratio_low")?,
        clip_high: case.param("clip_ratio_high")?,
        dual_clip: Some(case.param("clip_ratio_dual")?),
    };
    let objective = Objective { regularizers, ..Objective::new(ratio, aggregation) };
    let current: f64 = case.param("current_kl_prcp_coef")?;
    let discount = entropy_discount(current, perception.coef);
    let mut state = State::default();
    let memory = PerceptionMemory { batches: 1, coef: Some(current), discount: Some(discount) };
    state.set(PerceptionKl::KIND, &memory)?;

    if let Some(size) = case.param::<Option<usize>>("micro_batch_size")? {
        // The authors' form: every micro-batch is averaged by itself, then all count the same.
        let rows: Vec<usize> = (0..batch.rows()).collect();
        let parts = rows.chunks(size.max(1));
        let n = parts.len() as f64;
        let mut each = Vec::new();
        let mut total = None;
        for part in parts {
            let micro = batch.select(part)?;
            let loss = objective.loss(&micro, &signals.select(part), &normaliser(&micro), &state)?.loss;
            each.extend(values(&loss)?);
            let share = (loss / n)?;
            total = Some(match total {
                None => share,
                Some(sum) => (sum + share)?,
            });
        }
        let total = total.ok_or_else(|| Failure::Missing("inputs.log_probs with a row".into()))?;
        let grad = gradient(&total, &log_probs)?;
        return Ok(Outputs::from([("loss_per_micro_batch", each), ("grad_log_probs", grad)]));
    }

    let whole = normaliser(&batch);
    let loss = objective.loss(&batch, &signals, &whole, &state)?.loss;
    let mask = batch.mask();
    let mean = |x: &candle_core::Tensor, how: Aggregation| -> Result<Vec<f64>, Failure> {
        values(&how.apply(x, mask, &whole)?)
    };
    let tokens = Aggregation::TokenMean;
    let mut outputs = Outputs::from([
        ("loss", values(&loss)?),
        ("grad_log_probs", gradient(&loss, &log_probs)?),
        ("grad_aug_log_probs", gradient(&loss, &aug)?),
        ("kl_prcp", mean(&perception.per_token(&batch)?, aggregation)?),
        ("entropy_discount", vec![discount]),
        ("entropy", mean(&batch.tensor(LOG_PROBS)?.neg()?, tokens)?),
        ("aug_entropy", mean(&batch.tensor(AUG_LOG_PROBS)?.neg()?, tokens)?),
    ]);
    if with_reference {
        let k3 = KlEstimator::K3.estimate(&batch.tensor(LOG_PROBS)?, &case.tensor("ref_log_probs")?)?;
        outputs.insert("kl_ref_loss", mean(&k3, aggregation)?);
    }
    if sft {
        let one = Objective {
            regularizers: vec![Box::new(CorrectNll { coef: 1.0, ..CorrectNll::default() })],
            ..objective
        };
        let parts = one.loss(&batch, &signals, &whole, &state)?;
        outputs.insert("sft_loss", parts.regularizers.iter().map(|(_, x)| *x).collect());
    }
    Ok(outputs)
}

fn kl(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let mask = case.table("response_mask")?;
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(AUG_LOG_PROBS, case.tensor("aug_log_probs")?)?;
    let k = PerceptionKl::default().per_token(&batch)?;
    let sum = k.sum_all()?;
    Ok(Outputs::from([("kl", values(&k)?), ("grad_log_probs", gradient(&sum, &log_probs)?)]))
}

fn advantages(case: &Case) -> Outcome {
    let (rewards, mask) = (case.table("token_level_rewards")?, case.table("response_mask")?);
    // The authors' statistics are in single precision, which shows in groups of equal rewards.
    let a = single_precision_group_norm(&rewards.row_sums(), &case.whole("group_ids")?, case.param("eps")?)?;
    Ok(Outputs::from([("advantages", Table::broadcast(&a, &mask)?.values)]))
}

fn schedule(case: &Case) -> Outcome {
    let (start, end, total) =
        (case.param("start_value")?, case.param("end_value")?, case.param("total_steps")?);
    let steps = case.whole("steps")?.first().copied().unwrap_or(0);
    let used = (0..steps).map(|step| annealed(start, end, step, total)).collect();
    Ok(Outputs::from([("coef_used_at_step", used)]))
}

fn augment(case: &Case) -> Outcome {
    let (height, width, patch) = (case.param("height")?, case.param("width")?, case.param("patch_size")?);
    let (black_prob, draws) = (case.param("black_prob")?, case.numbers("uniform_draws_row_major")?);
    let (_, _, black) = random_patches((height, width), patch, black_prob, &draws)?;
    let mut image = vec![255; height * width * 3];
    let pixels = blacken(&mut image, (height, width, 3), patch, black_prob, &draws)?;
    Ok(Outputs::from([
        ("patch_is_black", black.iter().map(|&b| f64::from(u8::from(b))).collect()),
        ("black_pixels", vec![pixels as f64]),
    ]))
}

fn reward(case: &Case) -> Outcome {
    let responses: Vec<String> = case.input("responses")?;
    let weight = case.param("format_weight")?;
    let format: Vec<f64> = responses.iter().map(|r| format_score(r)).collect();
    let accuracy = case.numbers("accuracy")?;
    let overall = accuracy.iter().zip(&format).map(|(&a, &f)| overall_score(a, f, weight)).collect();
    Ok(Outputs::from([("overall", overall), ("format", format)]))
}

fn filter(case: &Case) -> Outcome {
    let groups = case.whole("group_ids")?;
    let block = GroupMeanWithin { lower: case.param("filter_low")?, upper: case.param("filter_high")? };
    let keep = block.keep(&case.numbers("metric")?, &groups)?;
    let kept: Vec<usize> = (0..groups.len()).filter(|&i| keep[i]).collect();
    let ids: std::collections::BTreeSet<u64> = kept.iter().map(|&i| groups[i]).collect();
    Ok(Outputs::from([
        ("kept_groups", ids.iter().map(|&g| g as f64).collect()),
        ("kept_indices", kept.iter().map(|&i| i as f64).collect()),
    ]))
}
