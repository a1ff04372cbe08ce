//! Cases of `srpo.json`.

use candle_core::{Device, Tensor};
use efference_ops::{TokenScores, token_scores};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread, group_norm};
use crate::aggregation::{Aggregation, Normaliser};
use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, Signals};
use crate::filter::AccuracyFilter;
use crate::objective::Objective;
use crate::papers::srpo::{Progress, ProgressNorm, progress_rewards};
use crate::shaping::place_terminal;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" | "reward_paper" => rewards(case),
        "token_rewards" => placement(case),
        "filter" => filter(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        "loss_sliced" => loss_sliced(case),
        "action_log_probs" => action_log_probs(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of srpo"))),
    }
}

fn rewards(case: &Case) -> Outcome {
    let e = case.table("embeddings")?;
    let embeddings: Vec<Vec<f64>> = e.iter().map(<[f64]>::to_vec).collect();
    let success: Vec<bool> = case.numbers("success")?.iter().map(|&x| x != 0.0).collect();
    let paper = case.function == "reward_paper";
    let tasks = if paper { vec![0; success.len()] } else { case.whole("task_ids")? };
    let settings = if paper {
        let alpha = case.param("alpha")?;
        Progress { norm: ProgressNorm::Zscore, alpha, dbscan_eps: 0.0, ..Progress::default() }
    } else {
        Progress {
            norm: ProgressNorm::Minmax,
            fail_max: case.param("fail_max_reward")?,
            steepness: case.param("sigmoid_steepness")?,
            offset: case.param("sigmoid_offset")?,
            range_epsilon: case.param("range_epsilon")?,
            dbscan_eps: case.param("dbscan_eps")?,
            dbscan_min_samples: case.param("dbscan_min_samples")?,
            missing_success: 0.0, // as the authors' code
            ..Progress::default()
        }
    };
    let out = progress_rewards(&embeddings, &success, &tasks, &settings)?;
    let empty = |row: &[f64]| f64::from(u8::from(row.iter().all(|&x| x == 0.0)));
    Ok(Outputs::from([
        ("rewards", out.rewards),
        ("distance", out.distance),
        ("normalized_distance", out.normalised),
        ("zero_embedding", e.iter().map(empty).collect()),
    ]))
}

fn placement(case: &Case) -> Outcome {
    let steps: Vec<usize> = case.whole("finish_step")?.iter().map(|&x| x as usize).collect();
    let len = case.param("response_len")?;
    let (per_step, coefficient) = (case.param("action_token_len")?, case.param("reward_coef")?);
    let placed = place_terminal(&case.numbers("scores")?, &steps, per_step, coefficient, len);
    let index = |row: &[f64]| row.iter().position(|&x| x != 0.0).map_or(-1.0, |i| i as f64);
    Ok(Outputs::from([("nonzero_index", placed.iter().map(index).collect()), ("row_sum", placed.row_sums())]))
}

fn filter(case: &Case) -> Outcome {
    let accuracy = case.table("acc")?;
    let success: Vec<bool> = accuracy.values.iter().map(|&x| x != 0.0).collect();
    let steps: Vec<usize> = case.whole("finish_step")?.iter().map(|&x| x as usize).collect();
    let groups: Vec<u64> = (0..success.len()).map(|i| (i / accuracy.cols) as u64).collect();
    let keep = |drop_truncated| -> Result<Vec<f64>, Failure> {
        let (lower, upper) = (case.param("lower")?, case.param("upper")?);
        let filter = AccuracyFilter { lower, upper, drop_truncated };
        let kept = filter.keep(&success, &steps, case.param("max_steps")?, &groups)?;
        Ok((0..accuracy.rows as u64).map(|g| f64::from(u8::from(kept.contains(&g)))).collect())
    };
    Ok(Outputs::from([("keep_accuracy_only", keep(false)?), ("keep_accuracy_and_truncation", keep(true)?)]))
}

fn advantages(case: &Case) -> Outcome {
    let mask = case.table("response_mask")?;
    let rewards = case.table("token_rewards")?.row_sums();
    let groups = case.whole("group_ids")?;
    let spread = |spread| -> Result<Vec<f64>, Failure> {
        let settings = GroupNorm { epsilon: case.param("epsilon")?, spread, ..GroupNorm::default() };
        Ok(Table::broadcast(&group_norm(&rewards, &groups, &settings)?, &mask)?.values)
    };
    Ok(Outputs::from([
        ("advantages", spread(Spread::Unbiased)?),
        ("advantages_no_std", spread(Spread::None)?),
    ]))
}

fn objective(case: &Case, aggregation: Aggregation) -> Result<Objective, Failure> {
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: Some(case.param("dual_clip_c")?),
    };
    Ok(Objective::new(ratio, aggregation))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, batch, signals) = case.policy_batch()?;
    let batch = super::fapo::cut_log_ratio(case, batch)?;
    let objective = objective(case, case.param("agg")?)?;
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("clip_frac", vec![parts.stat("clip_frac")]),
        ("approx_kl", vec![parts.stat("approx_kl")]),
        ("clip_frac_lower", vec![parts.stat("clip_frac_lower")]),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

/// A trajectory taken apart into slices of queries, each slice a micro-batch of its own: with the trajectory's
/// normaliser their losses add up to the mean over the trajectory.
fn loss_sliced(case: &Case) -> Outcome {
    let (log_probs, old) = (case.var("log_probs")?, case.tensor("old_log_probs")?);
    let (advantages, mask) = (case.table("advantages")?, case.table("response_mask")?);
    let (queries, per_slice): (usize, usize) = (case.param("queries")?, case.param("queries_per_slice")?);
    let accumulation: f64 = case.param("grad_accum")?;
    let objective = objective(case, Aggregation::TokenMean)?;
    let width = mask.cols.checked_div(queries).unwrap_or(0) * per_slice;
    if width == 0 {
        return Err(Failure::Missing("params.queries and queries_per_slice above 0".into()));
    }
    let whole = Normaliser::of(&mask);
    let mut total = Tensor::new(0f64, &Device::Cpu)?;
    for start in (0..mask.cols).step_by(width) {
        let cut = |t: &Tensor| t.narrow(1, start, width.min(mask.cols - start));
        let part = |t: &Table| -> Result<Table, Failure> {
            Ok(Table::from_tensor(&cut(&t.to_tensor(log_probs.as_tensor())?)?.contiguous()?)?)
        };
        let (a, m) = (part(&advantages)?, part(&mask)?);
        let (p, o) = (cut(log_probs.as_tensor())?, cut(&old)?);
        let batch = Batch::new(m).with(LOG_PROBS, p)?.with(OLD_LOG_PROBS, o)?;
        let parts = objective.loss(&batch, &Signals::new(a), &whole, &State::default())?;
        total = (total + (parts.loss / accumulation)?)?;
    }
    Ok(Outputs::from([("loss", values(&total)?), ("grad_log_probs", gradient(&total, &log_probs)?)]))
}

/// The action bins are the last real ids of a padded vocabulary; masked tokens score 0.
fn action_log_probs(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let (vocab, pad, bins): (usize, usize, usize) =
        (case.param("vocab")?, case.param("pad_to_multiple")?, case.param("n_bins")?);
    let executed = case.param::<usize>("finish_step")? * case.param::<usize>("action_dim")?;
    let outside = || Failure::Missing("action bins inside of the vocabulary".into());
    let first = vocab.checked_sub(pad + bins).ok_or_else(outside)?;
    let bin = |&id: &u64| (id as usize).checked_sub(first).map(|id| id as u32).ok_or_else(outside);
    let ids = case.whole("token_ids")?.iter().map(bin).collect::<Result<Vec<u32>, _>>()?;
    let n = ids.len();
    let restricted = logits.as_tensor().reshape((n, vocab))?.narrow(1, first, bins)?;
    let ids = Tensor::from_vec(ids, n, &Device::Cpu)?;
    let TokenScores { log_probs, entropy } = token_scores(&restricted, &ids, case.param("temperature")?)?;
    let mask: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i < executed))).collect();
    let mask = Tensor::from_vec(mask, n, &Device::Cpu)?;
    let (log_probs, entropy) = ((log_probs * &mask)?, (entropy * &mask)?);
    let sum = log_probs.sum_all()?;
    let grad = gradient(&sum, &logits)?;
    Ok(Outputs::from([
        ("log_probs", values(&log_probs)?),
        ("entropy", values(&entropy)?),
        ("grad_logits_of_sum", grad),
    ]))
}
