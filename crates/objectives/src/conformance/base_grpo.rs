//! Cases of `base_grpo.json`: verl's and TRL's advantages, losses, regularisers.

use candle_core::{Tensor, Var};
use efference_ops::{TokenScores, token_scores};
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{
    Gae, GroupBaseline, GroupNorm, Spread, Whiten, gae, gpg, group_norm, leave_one_out, masked_whiten, opo,
    pass_at_k, reinforce_plus_plus, remax,
};
use crate::aggregation::{Aggregation, Normaliser};
use crate::filter::varying_groups;
use crate::kl::{AdaptiveKl, KlEstimator};
use crate::batch::{Batch, ENTROPY, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::objective::Objective;
use crate::regularizer::{EntropyBonus, Kl};
use crate::state::State;
use crate::shaping::{dapo_overlong, kl_in_reward, soft_overlong};
use crate::surrogate::{self, ClippedRatio, clipped_value_loss};
use crate::table::Table;
use crate::trl::{self, LossType, MultiReward, ScaleRewards, TrlBatch, TrlLoss};

pub(super) fn run(case: &Case) -> Outcome {
    let has = |name: &str| case.params.contains_key(name);
    match case.function.as_str() {
        "advantages" if has("estimator") => advantages(case),
        "advantages" => trl_advantages(case),
        "whiten" => whiten(case),
        "kl" => kl(case),
        "reward" => reward(case),
        "aggregate" => aggregate(case),
        "loss" if has("loss_type") => trl_loss(case),
        "loss" if case.inputs.contains_key("logits") => actor_loss(case),
        "loss" if case.inputs.contains_key("vpreds") => value_loss(case),
        "loss" if has("loss") => named_loss(case),
        "loss" => clipped_loss(case),
        "schedule" => schedule(case),
        "filter" => filter(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of base_grpo"))),
    }
}

fn advantages(case: &Case) -> Outcome {
    let rewards = case.table("token_level_rewards")?;
    let mask = case.table("response_mask")?;
    let estimator: String = case.param("estimator")?;
    let with_returns =
        |(a, r): (Table, Table)| Outputs::from([("advantages", a.values), ("returns", r.values)]);
    match estimator.as_str() {
        "gae" => {
            let (gamma, lambda) = (case.param("gamma")?, case.param("lam")?);
            let settings = Gae { gamma, lambda, whiten: case.param("whiten")? };
            return Ok(with_returns(gae(&rewards, &case.table("values")?, &mask, &settings)?));
        }
        "reinforce_plus_plus" => {
            return Ok(with_returns(reinforce_plus_plus(&rewards, &mask, case.param("gamma")?)?));
        }
        "remax" => return Ok(with_returns(remax(&rewards, &case.numbers("reward_baselines")?, &mask)?)),
        _ => {}
    }
    let (r, groups) = (rewards.row_sums(), case.whole("group_ids")?);
    let norm = |spread| -> Result<Vec<f64>, Failure> {
        Ok(group_norm(
            &r,
            &groups,
            &GroupNorm { epsilon: case.param("epsilon")?, spread, lone_spread_f32: true },
        )?)
    };
    let per_row = match estimator.as_str() {
        "grpo" => norm(Spread::Unbiased)?,
        "dr_grpo" => norm(Spread::None)?,
        "rloo" => leave_one_out(&r, &groups, GroupBaseline::KeepsReward)?,
        "rloo_vectorized" => leave_one_out(&r, &groups, GroupBaseline::Zero)?,
        "opo" => opo(&r, &mask.row_sums(), &groups)?,
        "gpg" => gpg(&r, &groups, case.param("f_norm")?)?,
        "grpo_passk" => pass_at_k(&r, &groups, case.param("norm_by_std")?, case.param("epsilon")?)?,
        "reinforce_plus_plus_baseline" => {
            let centred = group_norm(
                &r,
                &groups,
                &GroupNorm { epsilon: 0.0, spread: Spread::None, ..GroupNorm::default() },
            )?;
            let spread = Table::broadcast(&centred, &mask)?;
            let white = masked_whiten(&spread, &mask, &Whiten::default())?;
            let masked = white.values.iter().zip(&mask.values).map(|(a, m)| a * m).collect();
            return Ok(Outputs::from([("advantages", masked)]));
        }
        other => return Err(Failure::NotImplemented(format!("advantage estimator `{other}`"))),
    };
    Ok(Outputs::from([("advantages", Table::broadcast(&per_row, &mask)?.values)]))
}

fn trl_advantages(case: &Case) -> Outcome {
    let per_group: usize = case.param("num_generations")?;
    let multi: Option<MultiReward> = case.param("multi_objective_aggregation")?;
    let (rewards, weights): (Vec<Vec<Option<f64>>>, Vec<f64>) = match multi {
        None => (case.numbers("rewards")?.into_iter().map(|r| vec![Some(r)]).collect(), vec![1.0]),
        Some(_) => {
            let table = case.table("rewards_per_func")?;
            let there = |&x: &f64| (!x.is_nan()).then_some(x);
            (table.iter().map(|row| row.iter().map(there).collect()).collect(), case.param("reward_weights")?)
        }
    };
    let groups: Vec<u64> = (0..rewards.len()).map(|i| (i / per_group) as u64).collect();
    let scale: ScaleRewards = case.param("scale_rewards")?;
    let multi = multi.unwrap_or(MultiReward::SumThenNormalize);
    let a = trl::advantages(&rewards, &weights, &groups, scale, multi, case.param("epsilon")?)?;
    Ok(Outputs::from([("advantages_per_sample", a)]))
}

fn whiten(case: &Case) -> Outcome {
    let settings = Whiten {
        shift_mean: case.param("shift_mean")?,
        epsilon: case.param("eps")?,
        unbiased: case.param("unbiased")?,
    };
    let white = masked_whiten(&case.table("values")?, &case.table("response_mask")?, &settings)?;
    Ok(Outputs::from([("whitened", white.values)]))
}

fn kl(case: &Case) -> Outcome {
    let estimator: KlEstimator = case.param("estimator")?;
    let log_probs = case.var("log_probs")?;
    let kl = estimator.estimate(log_probs.as_tensor(), &case.tensor("ref_log_probs")?)?;
    let kl = (kl * case.tensor("response_mask")?)?;
    Ok(Outputs::from([("kl", values(&kl)?), ("grad_log_probs", gradient(&kl.sum_all()?, &log_probs)?)]))
}

fn reward(case: &Case) -> Outcome {
    if case.params.contains_key("kl_coef") {
        let (old, reference) = (case.tensor("old_log_probs")?, case.tensor("ref_log_probs")?);
        let scores = case.tensor("token_level_scores")?;
        let shaped = kl_in_reward(&scores, &old, &reference, KlEstimator::K1, case.param("kl_coef")?)?;
        return Ok(Outputs::from([("token_level_rewards", values(&shaped)?)]));
    }
    let lengths = case.numbers("response_lengths")?;
    let penalty: Box<dyn Fn(f64) -> f64> = if case.params.contains_key("penalty_factor") {
        let (max, buffer, factor) =
            (case.param("max_resp_len")?, case.param("overlong_buffer_len")?, case.param("penalty_factor")?);
        Box::new(move |len| dapo_overlong(len, max, buffer, factor))
    } else {
        let (max, cache) = (case.param("max_completion_len")?, case.param("soft_punish_cache")?);
        Box::new(move |len| soft_overlong(len, max, cache))
    };
    Ok(Outputs::from([("penalty", lengths.into_iter().map(penalty).collect())]))
}

/// verl's mode; "(forced)" marks losses that allow one mode only.
fn mode(case: &Case) -> Result<Aggregation, Failure> {
    let name: String = case.param("loss_agg_mode")?;
    let name = name.split_whitespace().next().unwrap_or_default().to_string();
    serde_json::from_value(Value::String(name))
        .map_err(|e| Failure::Missing(format!("params.loss_agg_mode: {e}")))
}

fn aggregate(case: &Case) -> Outcome {
    let (matrix, mask) = (case.var("loss_mat")?, case.table("response_mask")?);
    let mut whole = Normaliser::of(&mask);
    let mut times = 1.0;
    if let Some(tokens) = case.param::<Option<f64>>("batch_num_tokens")? {
        // verl divides by the numbers of the global batch and multiplies by the ranks that will average
        whole = Normaliser { tokens, sequences: case.param("global_batch_size")?, ..whole };
        times = case.param("dp_size")?;
    }
    let factor: Option<f64> = case.param("loss_scale_factor")?;
    whole.scale = factor.unwrap_or(whole.scale);
    let aggregation = mode(case)?;
    if aggregation == Aggregation::SeqMeanTokenSumNorm {
        times = 1.0; // this mode has no batch division to undo
    }
    let loss = (aggregation.apply(matrix.as_tensor(), &mask, &whole)? * times)?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_loss_mat", gradient(&loss, &matrix)?)]))
}

/// Everything a loss case holds.
struct LossCase {
    log_probs: Var,
    old: Tensor,
    advantages: Table,
    mask: Table,
}

impl LossCase {
    fn read(case: &Case) -> Result<Self, Failure> {
        Ok(Self {
            log_probs: case.var("log_probs")?,
            old: case.tensor("old_log_probs")?,
            advantages: case.table("advantages")?,
            mask: case.table("response_mask")?,
        })
    }
}

fn ratio(case: &Case) -> Result<ClippedRatio, Failure> {
    Ok(ClippedRatio {
        clip_low: case.param("clip_ratio_low")?,
        clip_high: case.param("clip_ratio_high")?,
        dual_clip: case.param("clip_ratio_c")?,
    })
}

fn clipped_loss(case: &Case) -> Outcome {
    let (log_probs, batch, signals) = case.policy_batch()?;
    let objective = Objective::new(ratio(case)?, mode(case)?);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        ("clipfrac", vec![parts.stat("clip_frac")]),
        ("clipfrac_lower", vec![parts.stat("clip_frac_lower")]),
        ("ppo_kl", vec![parts.stat("approx_kl")]),
    ]))
}

fn named_loss(case: &Case) -> Outcome {
    let c = LossCase::read(case)?;
    let (p, old, mask) = (c.log_probs.as_tensor(), &c.old, &c.mask);
    let a = c.advantages.to_tensor(p)?;
    let clip = || Ok::<_, Failure>((case.param("clip_ratio_low")?, case.param("clip_ratio_high")?));
    let name: String = case.param("loss")?;
    let per_token = match name.as_str() {
        "geo_mean" => {
            let loss = surrogate::geo_mean(p, old, &a, mask, clip()?)?;
            let grad = gradient(&loss, &c.log_probs)?;
            return Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", grad)]));
        }
        "gspo" => surrogate::gspo(p, old, &a, mask, clip()?)?,
        "cispo" => surrogate::cispo(p, old, &a, clip()?)?,
        "sapo" => surrogate::sapo(p, old, &a, (case.param("tau_pos")?, case.param("tau_neg")?))?,
        "gpg" => surrogate::gpg(p, &a)?,
        "kl_cov" => {
            surrogate::kl_cov(p, old, &a, mask, case.param("kl_cov_ratio")?, case.param("ppo_kl_coef")?)?
        }
        other => return Err(Failure::NotImplemented(format!("loss `{other}`"))),
    };
    let loss = mode(case)?.apply(&per_token, mask, &Normaliser::of(mask))?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", gradient(&loss, &c.log_probs)?)]))
}

fn actor_loss(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let (b, t, v) = logits.dims3()?;
    let ids: Vec<u32> = case.whole("labels")?.iter().map(|&id| id as u32).collect();
    let ids = Tensor::from_vec(ids, b * t, logits.device())?;
    let flat = logits.as_tensor().reshape((b * t, v))?;
    let TokenScores { log_probs, entropy } = token_scores(&flat, &ids, case.param("temperature")?)?;
    let (log_probs, entropy) = (log_probs.reshape((b, t))?, entropy.reshape((b, t))?);
    let (old, reference) = (case.tensor("old_log_probs")?, case.tensor("ref_log_probs")?);
    let (advantages, mask) = (case.table("advantages")?, case.table("response_mask")?);
    let aggregation = mode(case)?;
    let kl = Kl { coef: case.param("kl_loss_coef")?, estimator: case.param("kl")?, ..Kl::default() };
    let objective = Objective {
        regularizers: vec![Box::new(kl), Box::new(EntropyBonus { coef: case.param("entropy_coeff")? })],
        ..Objective::new(ratio(case)?, aggregation)
    };
    let whole = Normaliser::of(&mask);
    let kl_loss = aggregation.apply(&kl.estimator.estimate(&log_probs, &reference)?, &mask, &whole)?;
    let entropy_loss = aggregation.apply(&entropy, &mask, &whole)?;
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.clone())?
        .with(OLD_LOG_PROBS, old)?
        .with(REF_LOG_PROBS, reference)?
        .with(ENTROPY, entropy.clone())?;
    let parts = objective.loss(&batch, &Signals::new(advantages), &whole, &State::default())?;
    Ok(Outputs::from([
        ("log_probs", values(&log_probs)?),
        ("entropy", values(&entropy)?),
        ("pg_loss", vec![parts.pg_loss]),
        ("entropy_loss", values(&entropy_loss)?),
        ("kl_loss", values(&kl_loss)?),
        ("loss", values(&parts.loss)?),
        ("grad_logits", gradient(&parts.loss, &logits)?),
    ]))
}

fn value_loss(case: &Case) -> Outcome {
    let (predicted, mask) = (case.var("vpreds")?, case.table("response_mask")?);
    let (old, returns) = (case.tensor("values")?, case.tensor("returns")?);
    let range = case.param("cliprange_value")?;
    let (per_token, cut) = clipped_value_loss(predicted.as_tensor(), &old, &returns, range)?;
    let whole = Normaliser::of(&mask);
    let loss = mode(case)?.apply(&per_token, &mask, &whole)?;
    let share = Aggregation::TokenMean.apply(&cut, &mask, &whole)?;
    Ok(Outputs::from([
        ("loss", values(&loss)?),
        ("clipfrac", values(&share)?),
        ("grad_vpreds", gradient(&loss, &predicted)?),
    ]))
}

fn trl_loss(case: &Case) -> Outcome {
    let (log_probs, mask) = (case.var("log_probs")?, case.table("response_mask")?);
    let optional = |name: &str| case.inputs.contains_key(name).then(|| case.tensor(name)).transpose();
    let (old, reference) = (optional("old_log_probs")?, optional("ref_log_probs")?);
    let entropies = case.inputs.contains_key("entropies").then(|| case.table("entropies")).transpose()?;
    let level: Option<String> = case.param("importance_sampling_level")?;
    let settings = TrlLoss {
        loss_type: case.param::<LossType>("loss_type")?,
        epsilon_low: case.param("epsilon_low")?,
        epsilon_high: case.param("epsilon_high")?,
        beta: case.param::<Option<f64>>("beta")?.unwrap_or(0.0),
        delta: case.param("delta")?,
        sequence_level: level.as_deref() == Some("sequence"),
        use_bias_correction_kl: case.param::<Option<bool>>("use_bias_correction_kl")?.unwrap_or(false),
        top_entropy_quantile: case.param("top_entropy_quantile")?,
        off_policy_mask_threshold: case.param("off_policy_mask_threshold")?,
        max_completion_length: case.param("max_completion_length")?,
        num_items_in_batch: case.param("num_items_in_batch")?,
        ..TrlLoss::default()
    };
    let loss = settings.loss(&TrlBatch {
        log_probs: log_probs.as_tensor(),
        old_log_probs: old.as_ref(),
        ref_log_probs: reference.as_ref(),
        entropies: entropies.as_ref(),
        advantages: &case.numbers("advantages_per_sample")?,
        mask: &mask,
    })?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", gradient(&loss, &log_probs)?)]))
}

fn schedule(case: &Case) -> Outcome {
    let mut controller = AdaptiveKl {
        coefficient: case.param("init_kl_coef")?,
        target: case.param("target_kl")?,
        horizon: case.param("horizon")?,
    };
    let (kl, samples) = (case.numbers("current_kl")?, case.numbers("n_steps")?);
    let after = kl.into_iter().zip(samples).map(|(kl, n)| {
        controller.update(kl, n);
        controller.coefficient
    });
    Ok(Outputs::from([("kl_coef_after_each_update", after.collect())]))
}

fn filter(case: &Case) -> Outcome {
    let (metric, groups) = (case.numbers("metric")?, case.whole("group_ids")?);
    let kept = varying_groups(&metric, &groups)?;
    let indices = (0..groups.len()).filter(|&i| kept.contains(&groups[i])).map(|i| i as f64).collect();
    Ok(Outputs::from([("kept_groups", kept.iter().map(|&g| g as f64).collect()), ("kept_indices", indices)]))
}
