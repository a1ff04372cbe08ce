//! Cases of `base_grpo.json`: verl's and TRL's advantages, losses, regularisers.

use candle_core::Tensor;
use efference_ops::{TokenScores, token_scores};
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{
    Gae, Gpg, GroupBaseline, GroupNorm, LeaveOneOut, Opo, PassAtK, ReinforcePlusPlusBaseline, Spread, Whiten,
    gae, masked_whiten, reinforce_plus_plus, remax,
};
use crate::aggregation::{Aggregation, Normaliser};
use crate::batch::{
    Batch, ENTROPY, GROUP_IDS, LOG_PROBS, OLD_ENTROPY, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, Signals,
    TOKEN_REWARDS,
};
use crate::block::Advantage;
use crate::filter::varying_groups;
use crate::kl::{AdaptiveKl, KlEstimator};
use crate::objective::Objective;
use crate::regularizer::{EntropyBonus, Kl};
use crate::shaping::{dapo_overlong, kl_in_reward, soft_overlong};
use crate::state::State;
use crate::surrogate::{Cispo, ClippedRatio, GeoMean, Gspo, KlCov, PolicyGradient, Sapo, clipped_value_loss};
use crate::table::Table;
use crate::trl::{LossType, MultiReward, REWARD_TERMS, TrlConfig, TrlNorm};

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
    let block: Box<dyn Advantage> = match estimator.as_str() {
        "grpo" | "dr_grpo" => {
            let spread = if estimator == "grpo" { Spread::Unbiased } else { Spread::None };
            Box::new(GroupNorm { epsilon: case.param("epsilon")?, spread, lone_spread_f32: true })
        }
        "rloo" => Box::new(LeaveOneOut { alone: GroupBaseline::KeepsReward }),
        "grpo_vectorized" => Box::new(GroupNorm {
            epsilon: case.param("epsilon")?,
            spread: Spread::FlooredVariance,
            lone_spread_f32: false,
        }),
        "rloo_vectorized" => Box::new(LeaveOneOut { alone: GroupBaseline::Zero }),
        "opo" => Box::new(Opo {}),
        "gpg" => Box::new(Gpg { f_norm: case.param("f_norm")? }),
        "grpo_passk" => {
            Box::new(PassAtK { by_spread: case.param("norm_by_std")?, epsilon: case.param("epsilon")? })
        }
        "reinforce_plus_plus_baseline" => Box::new(ReinforcePlusPlusBaseline {}),
        other => return Err(Failure::NotImplemented(format!("advantage estimator `{other}`"))),
    };
    let batch = Batch::new(mask).with(TOKEN_REWARDS, rewards)?.with(GROUP_IDS, case.whole("group_ids")?)?;
    Ok(Outputs::from([("advantages", block.advantages(&batch, &mut State::default())?.values)]))
}

fn trl_advantages(case: &Case) -> Outcome {
    let per_group = case.param::<usize>("num_generations")?.max(1);
    let combine: Option<MultiReward> = case.param("multi_objective_aggregation")?;
    let rows =
        if combine.is_some() { case.table("rewards_per_func")?.rows } else { case.numbers("rewards")?.len() };
    let groups: Vec<u64> = (0..rows).map(|i| (i / per_group) as u64).collect();
    // One token per sequence: its advantage is the sequence's.
    let mask = Table { rows, cols: 1, values: vec![1.0; rows] };
    let mut batch = Batch::new(mask).with(GROUP_IDS, groups)?;
    let (scale, epsilon) = (case.param("scale_rewards")?, case.param("epsilon")?);
    let mut block = TrlNorm { scale, epsilon, ..TrlNorm::default() };
    if let Some(combine) = combine {
        block = TrlNorm { weights: case.param("reward_weights")?, combine, ..block };
        let terms: Vec<Vec<f64>> = case.table("rewards_per_func")?.iter().map(<[f64]>::to_vec).collect();
        batch.set(REWARD_TERMS, terms)?;
    } else {
        batch.set(REWARDS, case.numbers("rewards")?)?;
    }
    let advantages = block.advantages(&batch, &mut State::default())?.values;
    Ok(Outputs::from([("advantages_per_sample", advantages)]))
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
    for (name, fixed) in [("clamp_log_ratio", 20.0), ("clamp_value", 10.0)] {
        if case.param::<Option<f64>>(name)?.is_some_and(|x| x != fixed) {
            return Err(Failure::NotImplemented(format!("`{name}` other than {fixed}")));
        }
    }
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
    let (log_probs, batch, signals) = case.policy_batch()?;
    let clip = || Ok::<(f64, f64), Failure>((case.param("clip_ratio_low")?, case.param("clip_ratio_high")?));
    let name: String = case.param("loss")?;
    let mut whole = batch.normaliser();
    let objective = match name.as_str() {
        "gspo" => {
            let (clip_low, clip_high) = clip()?;
            Objective::new(Gspo { clip_low, clip_high }, mode(case)?)
        }
        "cispo" => {
            let (clip_low, clip_high) = clip()?;
            Objective::new(Cispo { clip_low, clip_high }, mode(case)?)
        }
        "sapo" => {
            let (tau_pos, tau_neg) = (case.param("tau_pos")?, case.param("tau_neg")?);
            Objective::new(Sapo { tau_pos, tau_neg }, mode(case)?)
        }
        "geo_mean" => {
            let (clip_low, clip_high) = clip()?;
            whole.sequences = batch.rows() as f64; // verl counts sequences without a valid token
            Objective::new(GeoMean { clip_low, clip_high }, Aggregation::SeqMeanTokenMean)
        }
        "gpg" => Objective::new(PolicyGradient {}, mode(case)?),
        "kl_cov" => {
            let (share, kl_coef) = (case.param("kl_cov_ratio")?, case.param("ppo_kl_coef")?);
            Objective::new(KlCov { share, kl_coef }, mode(case)?)
        }
        other => return Err(Failure::NotImplemented(format!("loss `{other}`"))),
    };
    let loss = objective.loss(&batch, &signals, &whole, &State::default())?.loss;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", gradient(&loss, &log_probs)?)]))
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
        regularizers: vec![
            Box::new(kl),
            Box::new(EntropyBonus { coef: case.param("entropy_coeff")?, aggregation: None }),
        ],
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
    let (log_probs, mut batch, _) = case.policy_batch()?;
    if !batch.has(OLD_LOG_PROBS) {
        // The policy that sampled is the one that is trained.
        batch.set(OLD_LOG_PROBS, log_probs.as_tensor().detach())?;
    }
    if case.inputs.contains_key("entropies") {
        batch.set(OLD_ENTROPY, case.table("entropies")?)?;
    }
    let level: Option<String> = case.param("importance_sampling_level")?;
    if !matches!(level.as_deref(), None | Some("token" | "sequence")) {
        return Err(Failure::NotImplemented(format!("`importance_sampling_level` {level:?}")));
    }
    let config = TrlConfig {
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
        ..TrlConfig::default()
    };
    let objective = config.composition().build()?;
    let advantages = Table::broadcast(&case.numbers("advantages_per_sample")?, batch.mask())?;
    let (mut signals, mut state) = (Signals::new(advantages), State::default());
    for rule in &objective.weights {
        rule.prepare(&batch, &mut signals, &mut state)?;
    }
    let whole = config.normaliser(batch.mask());
    let loss = objective.loss(&batch, &signals, &whole, &state)?.loss;
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
