//! Cases of `model_dllm.json` that are functions of given logits, masks and draws. What runs a network is not computed
//! here.

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::bgpo;
use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::diffusion::{
    Clip, MdpoLoss, Negative, Sandwich, Wd1, bernoulli_masks, complementary_elbo, coupled_log_probs,
    coupled_masks, denoising_loss, elbo_samples, espo_loss, gumbel_argmax, gumbel_scores,
    leave_one_out_scaled, log_linear, mask_prompt, mdpo_loss, population_norm, sandwich, sandwich_loss,
    select_by_factor, select_by_threshold, select_fixed, shift_logits, step_advantages, steps_to_train,
    token_log_probs, token_ratio_loss, trace_loss, trajectory_slices, transfer_counts, uni_grpo_loss,
    vrpo_loss, wd1_loss,
};
use crate::kl::KlEstimator;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    let has = |name: &str| case.params.contains_key(name) || case.inputs.contains_key(name);
    match case.function.as_str() {
        function @ ("generate" | "generate_fast" | "generate_inpaint" | "elbo_exact") => {
            Err(Failure::NotHere(format!("`{function}` of model_dllm needs the network, not yet supported")))
        }
        "transfer_counts" => counts(case),
        "gumbel_scores" => gumbel(case),
        "select_tokens" => select(case),
        "select_tokens_factor" => factor(case),
        "mask" => prompt_mask(case),
        "mask_counts" => mask_counts(case),
        "coupled_masks" => coupled(case),
        "trajectory_slices" => slices(case),
        "schedule" => schedule(case),
        "elbo" if has("complement_logits") => espo_elbo(case),
        "elbo" => elbo(case),
        "coupled_logprob" => coupled_logprob(case),
        "logprob" => shifted(case),
        "advantages" => advantages(case),
        "step_advantages" => steps(case),
        "loss" if has("chosen_elbo") => vrpo(case),
        "loss" if has("elbo") => espo(case),
        "loss" if has("noisy_ids") => mdpo(case),
        "loss" if has("masked") => uni_grpo(case),
        "loss" if has("old_log_probs") => token_ratio(case),
        "loss" => wd1(case),
        "loss_from_logits" if has("negative_estimator") => spg(case),
        "loss_from_logits" if has("loss_mask") => trace(case),
        "loss_from_logits" if has("t") => denoising(case),
        "loss_from_logits" => d1(case),
        "bgpo_from_logits" => bgpo_from_logits(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of model_dllm"))),
    }
}

/// Flags as a `u8` tensor.
pub(super) fn flags(case: &Case, name: &str) -> Result<Tensor, Failure> {
    let flags: Vec<u8> = case.numbers(name)?.iter().map(|&x| u8::from(x != 0.0)).collect();
    Ok(Tensor::from_vec(flags, case.shape(name)?, &Device::Cpu)?)
}

/// Token ids.
pub(super) fn targets(case: &Case, name: &str) -> Result<Vec<u32>, Failure> {
    Ok(case.whole(name)?.into_iter().map(|id| id as u32).collect())
}

/// Counts and places.
pub(super) fn sizes(case: &Case, name: &str) -> Result<Vec<usize>, Failure> {
    Ok(case.whole(name)?.into_iter().map(|x| x as usize).collect())
}

fn estimator(case: &Case) -> Result<KlEstimator, Failure> {
    // The diffusion trainers do not cut k3.
    let estimator = case.param::<Option<KlEstimator>>("kl")?.unwrap_or(KlEstimator::K3);
    Ok(if estimator == KlEstimator::K3 { KlEstimator::K3Unclamped } else { estimator })
}

fn counts(case: &Case) -> Outcome {
    let counts = transfer_counts(&case.table("mask")?, case.param("steps")?)?;
    Ok(Outputs::from([("counts", counts.concat().into_iter().map(|c| c as f64).collect())]))
}

fn gumbel(case: &Case) -> Outcome {
    let (logits, uniform) = (case.numbers("logits")?, case.numbers("uniform")?);
    let temperature = case.param("temperature")?;
    let v = case.shape("logits")?.last().copied().unwrap_or(1).max(1);
    let rows = logits.chunks(v).zip(uniform.chunks(v));
    let best: Result<Vec<f64>, Failure> =
        rows.map(|(x, u)| Ok(gumbel_argmax(x, u, temperature)? as f64)).collect();
    Ok(Outputs::from([("scores", gumbel_scores(&logits, &uniform, temperature)?), ("argmax", best?)]))
}

fn select(case: &Case) -> Outcome {
    let (logits, mask, ids) = (case.numbers("logits")?, case.table("mask")?, case.table("ids")?);
    let choice = match case.param::<Option<f64>>("threshold")? {
        Some(threshold) => select_by_threshold(&logits, &mask, &ids, threshold)?,
        None => select_fixed(&logits, &mask, &ids, &case.param::<Vec<usize>>("counts")?)?,
    };
    Ok(Outputs::from([("x0", choice.words.values), ("transfer", choice.transfer.values)]))
}

fn factor(case: &Case) -> Outcome {
    let (logits, mask, ids) = (case.numbers("logits")?, case.table("mask")?, case.table("ids")?);
    let choice = select_by_factor(&logits, &mask, &ids, case.param("factor")?)?;
    Ok(Outputs::from([("x0", choice.words.values), ("transfer", choice.transfer.values)]))
}

fn prompt_mask(case: &Case) -> Outcome {
    let (ids, uniform) = (case.table("input_ids")?, case.table("uniform")?);
    let (len, p) = (case.param("prompt_len")?, case.param("p_mask_prompt")?);
    Ok(Outputs::from([("noisy_ids", mask_prompt(&ids, &uniform, len, p, case.param("mask_id")?)?.values)]))
}

pub(super) fn mask_counts(case: &Case) -> Outcome {
    let len: usize = case.param("response_len")?;
    let counts = crate::diffusion::mask_counts(len, case.param("n_samples")?, case.param("first_draw")?)?;
    Ok(Outputs::from([
        ("p_mask", counts.iter().map(|&c| c as f64 / len as f64).collect()),
        ("counts", counts.into_iter().map(|c| c as f64).collect()),
    ]))
}

fn coupled(case: &Case) -> Outcome {
    let (ids, uniform) = (case.table("input_ids")?, case.table("uniform")?);
    let ratio: f64 = case.param("mask_ratio")?;
    let [full, masked, complement] =
        coupled_masks(&ids, &uniform, case.param("prompt_len")?, ratio, case.param("mask_id")?)?;
    Ok(Outputs::from([
        ("full", full.values),
        ("masked", masked.values),
        ("complement", complement.values),
        ("weights", vec![1.0, 1.0 / ratio, 1.0 / (1.0 - ratio)]),
    ]))
}

fn slices(case: &Case) -> Outcome {
    let (steps, response) = (case.whole("step_of_token")?, case.whole("response")?);
    let slices = trajectory_slices(&steps, &response, case.param("shrink")?, case.param("mask_id")?, None)?;
    Ok(Outputs::from([
        ("collapsed_steps", slices.steps.iter().map(|&s| s as f64).collect()),
        ("noisy", slices.noisy.values),
        ("targets", slices.targets.values),
    ]))
}

fn schedule(case: &Case) -> Outcome {
    let epsilon = case.param("eps")?;
    let noise: Vec<_> = case.numbers("t")?.into_iter().map(|t| log_linear(t, epsilon)).collect();
    Ok(Outputs::from([
        ("sigma", noise.iter().map(|n| n.sigma).collect()),
        ("dsigma", noise.iter().map(|n| n.rate).collect()),
        ("mask_prob", noise.iter().map(|n| n.mask_prob).collect()),
        ("loss_weight", noise.iter().map(|n| n.loss_weight).collect()),
    ]))
}

/// One response, masks as rows of the batch: logits [N, L, V].
fn elbo(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let log_probs = token_log_probs(&logits.as_tensor().unsqueeze(0)?, &targets(case, "targets")?)?;
    let (masks, p) = (flags(case, "masks")?.unsqueeze(0)?, case.tensor("p_mask")?.unsqueeze(0)?);
    let elbo = elbo_samples(&log_probs, &masks, &p)?.mean_all()?;
    Ok(Outputs::from([("elbo", values(&elbo)?), ("grad_logits", gradient(&elbo, &logits)?)]))
}

fn espo_elbo(case: &Case) -> Outcome {
    let (logits, other) = (case.var("logits")?, case.var("complement_logits")?);
    let ids = targets(case, "targets")?;
    let log_probs = token_log_probs(logits.as_tensor(), &ids)?;
    let complement =
        if case.param("coupled")? { Some(token_log_probs(other.as_tensor(), &ids)?) } else { None };
    let elbo =
        complementary_elbo(&log_probs, complement.as_ref(), &flags(case, "masks")?, &case.tensor("p_mask")?)?;
    let total = (&elbo * case.tensor("upstream")?)?.sum_all()?;
    Ok(Outputs::from([
        ("elbo", values(&elbo)?),
        ("grad_logits", gradient(&total, &logits)?),
        ("grad_complement_logits", gradient(&total, &other)?),
    ]))
}

/// Logits of three batches one after the other: everything masked, the mask, its complement.
fn coupled_logprob(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let b = logits.dims3()?.0 / 3;
    let ids = targets(case, "targets")?;
    let part = |i: usize| -> Result<Tensor, Failure> {
        Ok(token_log_probs(&logits.as_tensor().narrow(0, i * b, b)?, &ids)?)
    };
    let ratio = case.param("mask_ratio")?;
    let log_probs = coupled_log_probs(&part(0)?, &part(1)?, &part(2)?, &flags(case, "mask")?, ratio, false)?;
    let total = (&log_probs * case.tensor("upstream")?)?.sum_all()?;
    Ok(Outputs::from([("log_probs", values(&log_probs)?), ("grad_logits", gradient(&total, &logits)?)]))
}

fn shifted(case: &Case) -> Outcome {
    let logits = case.tensor("logits")?;
    let logits = if case.param("shift")? { shift_logits(&logits)? } else { logits };
    let log_probs = token_log_probs(&logits, &targets(case, "targets")?)?;
    Ok(Outputs::from([("shifted_logits", values(&logits)?), ("log_probs", values(&log_probs)?)]))
}

fn advantages(case: &Case) -> Outcome {
    let rewards = case.numbers("rewards")?;
    let per_group = case.param::<usize>("group_size")?.max(1);
    let groups: Vec<u64> = (0..rewards.len()).map(|i| (i / per_group) as u64).collect();
    let a = match case.param::<Option<String>>("std")?.as_deref() {
        None => leave_one_out_scaled(&rewards, &groups, case.param("divide_by_std")?)?,
        Some("population") => population_norm(&rewards, &groups)?,
        Some(other) => return Err(Failure::NotImplemented(format!("advantages with std `{other}`"))),
    };
    Ok(Outputs::from([("advantages", a)]))
}

fn steps(case: &Case) -> Outcome {
    let (raw, advantages) = step_advantages(&case.table("step_rewards")?, case.param("eps")?);
    let mut outputs = Outputs::new();
    let names = ["top1_steps", "top2_steps", "top3_steps", "top4_steps", "top5_steps", "top6_steps"];
    for (i, name) in names.into_iter().enumerate() {
        outputs.insert(name, steps_to_train(&advantages, i + 1).into_iter().map(|t| t as f64).collect());
    }
    outputs.extend([("raw", raw.values), ("advantages", advantages.values)]);
    Ok(outputs)
}

fn vrpo(case: &Case) -> Outcome {
    let (chosen, rejected) = (case.var("chosen_elbo")?, case.var("rejected_elbo")?);
    let (c, r) = (case.tensor("ref_chosen_elbo")?, case.tensor("ref_rejected_elbo")?);
    let loss = vrpo_loss(chosen.as_tensor(), rejected.as_tensor(), &c, &r, case.param("beta")?)?;
    Ok(Outputs::from([
        ("loss", values(&loss)?),
        ("grad_chosen", gradient(&loss, &chosen)?),
        ("grad_rejected", gradient(&loss, &rejected)?),
    ]))
}

fn clip(case: &Case) -> Result<Clip, Failure> {
    match case.param::<Option<f64>>("eps")? {
        Some(epsilon) => Ok(Clip::both(epsilon)),
        None => Ok(Clip { low: case.param("eps_low")?, high: case.param("eps_high")? }),
    }
}

fn espo(case: &Case) -> Outcome {
    let (elbo, a) = (case.var("elbo")?, case.numbers("advantages")?);
    let (old, reference) = (case.tensor("old_elbo")?, case.tensor("ref_elbo")?);
    let (len, beta) = (case.param("response_len")?, case.param("beta")?);
    let loss = espo_loss(elbo.as_tensor(), &old, &reference, &a, len, clip(case)?, beta)?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_elbo", gradient(&loss, &elbo)?)]))
}

fn mdpo(case: &Case) -> Outcome {
    if case.param::<String>("kl")? != "k2" {
        return Err(Failure::NotImplemented("MDPO with another KL than k2".into()));
    }
    let log_probs = case.var("log_probs")?;
    let (old, reference) = (case.tensor("old_log_probs")?, case.tensor("ref_log_probs")?);
    let (mut masked, mask_id) = (case.table("noisy_ids")?, case.param::<f64>("mask_id")?);
    masked.values.iter_mut().for_each(|id| *id = f64::from(u8::from(*id == mask_id)));
    let (a, confidence) = (case.numbers("advantages")?, case.table("confidence")?);
    let length = case.param("max_completion_len")?;
    let settings = MdpoLoss { clip: clip(case)?, beta: case.param("beta")?, length };
    let loss = mdpo_loss(log_probs.as_tensor(), &old, &reference, &a, &masked, &confidence, &settings)?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", gradient(&loss, &log_probs)?)]))
}

fn uni_grpo(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let (old, reference) = (case.tensor("old_log_probs")?, case.tensor("ref_log_probs")?);
    let (a, masked) = (case.numbers("advantages")?, case.table("masked")?);
    let p = log_probs.as_tensor();
    let loss = uni_grpo_loss(p, &old, &reference, &a, &masked, clip(case)?, case.param("beta")?)?;
    // The value of a sequence is the mean over its masked tokens.
    let table = Table::from_tensor(&p.detach())?;
    let mean = |row: usize| {
        let pairs = table.row(row).iter().zip(masked.row(row));
        let sum: f64 = pairs.filter(|(_, m)| **m != 0.0).map(|(p, _)| p).sum();
        sum / masked.row(row).iter().sum::<f64>().max(1.0)
    };
    Ok(Outputs::from([
        ("loss", values(&loss)?),
        ("sequence_log_prob", (0..table.rows).map(mean).collect()),
        ("grad_log_probs", gradient(&loss, &log_probs)?),
    ]))
}

/// The per-token loss of d1 and coupled-GRPO from log-probabilities.
fn ratio_loss(case: &Case, log_probs: &Tensor) -> Result<Tensor, Failure> {
    let (old, reference) = (case.tensor("old_log_probs")?, case.tensor("ref_log_probs")?);
    let kl = Some((&reference, estimator(case)?, case.param("beta")?));
    let (a, mask) = (case.numbers("advantages")?, case.table("completion_mask")?);
    Ok(token_ratio_loss(log_probs, &old, kl, &a, &mask, clip(case)?)?)
}

fn token_ratio(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let loss = ratio_loss(case, log_probs.as_tensor())?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", gradient(&loss, &log_probs)?)]))
}

fn d1(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let log_probs = token_log_probs(logits.as_tensor(), &targets(case, "targets")?)?;
    let loss = ratio_loss(case, &log_probs)?;
    Ok(Outputs::from([
        ("log_probs", values(&log_probs)?),
        ("loss", values(&loss)?),
        ("grad_logits", gradient(&loss, &logits)?),
    ]))
}

/// Both forms have the same inputs; only the case's name tells them apart.
fn wd1(case: &Case) -> Outcome {
    let (log_probs, mask) = (case.var("log_probs")?, case.table("completion_mask")?);
    let form = match case.params.get("positive_only").and_then(Value::as_bool) {
        Some(true) => Wd1::PositiveOnly,
        Some(false) => Wd1::PositiveAndNegative,
        None if case.name.ends_with("pos_only") => Wd1::PositiveOnly,
        None if case.name.ends_with("pos_neg") => Wd1::PositiveAndNegative,
        None => return Err(Failure::Missing("params.positive_only".into())),
    };
    let a = case.numbers("advantages")?;
    let loss = wd1_loss(log_probs.as_tensor(), &a, &vec![0; a.len()], &mask, form)?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_log_probs", gradient(&loss, &log_probs)?)]))
}

fn spg(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let log_probs = token_log_probs(logits.as_tensor(), &targets(case, "targets")?)?;
    let settings = Sandwich {
        negative: case.param::<Negative>("negative_estimator")?,
        beta: case.param("eubo_beta")?,
        weight: case.param("mix_weight")?,
    };
    let a = case.numbers("advantages")?;
    let value =
        sandwich(&log_probs, &flags(case, "masks")?, &flags(case, "completion_mask")?, &a, &settings)?;
    let loss = sandwich_loss(&value, &a, &case.table("completion_mask")?.row_sums())?;
    Ok(Outputs::from([
        ("sequence_log_prob", values(&value)?),
        ("loss", values(&loss)?),
        ("grad_logits", gradient(&loss, &logits)?),
    ]))
}

fn trace(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let log_probs = token_log_probs(logits.as_tensor(), &targets(case, "targets")?)?;
    let (old, a) = (case.tensor("old_log_probs")?, case.numbers("advantages")?);
    let (mask, beta) = (case.table("loss_mask")?, case.param("beta")?);
    let loss = trace_loss(&log_probs, &old, &a, &mask, clip(case)?, estimator(case)?, beta)?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_logits", gradient(&loss, &logits)?)]))
}

fn denoising(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let log_probs = token_log_probs(logits.as_tensor(), &targets(case, "targets")?)?;
    let (t, uniform) = (case.numbers("t")?, case.table("uniform")?);
    let prompts =
        if case.inputs.contains_key("prompt_lens") { Some(sizes(case, "prompt_lens")?) } else { None };
    let (p, masks) = bernoulli_masks(&t, &uniform, prompts.as_deref(), case.param("eps")?)?;
    let prompts = prompts.unwrap_or_else(|| vec![0; t.len()]);
    let lengths: Vec<f64> = prompts.iter().map(|&n| uniform.cols.saturating_sub(n) as f64).collect();
    let loss = denoising_loss(&log_probs, &masks, &p, &lengths)?;
    Ok(Outputs::from([
        ("p_mask", p),
        ("masks", masks.values),
        ("loss", values(&loss)?),
        ("grad_logits", gradient(&loss, &logits)?),
    ]))
}

fn bgpo_from_logits(case: &Case) -> Outcome {
    if case.params.get("clip").is_some_and(|clip| !clip.is_null()) {
        return Err(Failure::NotImplemented("bgpo_from_logits with a clip".into()));
    }
    let logits = case.var("logits")?;
    let (_, _, l, _) = logits.dims4()?;
    let norm = match case.param::<String>("elbo_norm")?.as_str() {
        "none" => 1.0,
        "padded_len" => l as f64,
        other => return Err(Failure::NotImplemented(format!("elbo_norm `{other}`"))),
    };
    let new = (bgpo::samples(case, logits.as_tensor())? / norm)?;
    let old = (bgpo::samples(case, &case.tensor("old_logits")?)? / norm)?;
    bgpo::bound_and_elbo(&new, &old, &case.numbers("advantages")?, &logits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::super::{CaseResult, Verdict, run};

    /// No paper claims this file: everything that needs no network passes, the rest is skipped and not failed.
    #[test]
    fn what_needs_no_network_passes_and_the_rest_is_skipped() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/model_dllm.json");
        let results = run(&file).unwrap();
        let failed: Vec<&CaseResult> = results.iter().filter(|r| r.failed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(results.iter().filter(|r| r.passed()).count(), 47);
        let skipped = results.iter().filter(|r| matches!(r.verdict, Verdict::Skipped { .. }));
        assert!(skipped.clone().all(|r| r.case.starts_with("generate") || r.case.starts_with("elbo_")));
        assert_eq!(skipped.count(), 12);
    }
}
