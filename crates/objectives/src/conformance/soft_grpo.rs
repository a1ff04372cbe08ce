//! Cases of `soft_grpo.json`.

use candle_core::{Device, Tensor};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use super::fapo::group_settings;
use crate::advantage::group_norm;
use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::kl::KlEstimator;
use crate::objective::Objective;
use crate::papers::soft_grpo::{
    GumbelNoise, Noise, SoftLikelihood, SoftTokens, looks_discrete, mixture_weights, perturb, soft_embeddings,
};
use crate::regularizer::Kl;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "gumbel_rollout" => rollout(case),
        "soft_token_log_prob" => log_prob(case),
        "soft_embedding" => embedding(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        "loss_from_logits" => end_to_end(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of soft_grpo"))),
    }
}

fn rollout(case: &Case) -> Outcome {
    let settings = GumbelNoise {
        tau: case.param("tau")?,
        noise_factor: case.param("noise_factor")?,
        clamp_low: case.param("clamp_low")?,
        clamp_high: case.param("clamp_high")?,
        prob_eps: case.param("prob_eps")?,
        mask_log_threshold: case.param("mask_log_threshold")?,
    };
    let (probs, ids, noise) =
        (case.table("topk_probs")?, case.table("topk_ids")?, case.table("exponential")?);
    let mut outputs = Outputs::new();
    for i in 0..probs.rows {
        let out = perturb(probs.row(i), noise.row(i), &settings)?;
        let sorted = out.order.iter().map(|&j| ids.row(i)[j]).collect();
        for (name, values) in [
            ("weights", out.weights),
            ("topk_ids", sorted),
            ("perturbed", out.perturbed),
            ("rollout_log_prob", vec![out.log_prob]),
            ("gumbels", out.gumbels),
        ] {
            outputs.entry(name).or_default().extend(values);
        }
    }
    Ok(outputs)
}

/// [.., K] ids as [N, K], and which rows are discrete by the authors' rule.
fn stored(case: &Case, name: &str) -> Result<(Tensor, Vec<bool>), Failure> {
    let shape = case.shape(name)?;
    let k = shape.last().copied().unwrap_or(1);
    let values = case.numbers(name)?;
    let table = Table { rows: values.len() / k.max(1), cols: k, values };
    let ids: Vec<u32> = table.values.iter().map(|&id| id as u32).collect();
    Ok((Tensor::from_vec(ids, (table.rows, k), &Device::Cpu)?, looks_discrete(&table)))
}

fn labels(case: &Case) -> Result<Tensor, Failure> {
    let labels: Vec<u32> = case.whole("labels")?.into_iter().map(|id| id as u32).collect();
    let n = labels.len();
    Ok(Tensor::from_vec(labels, n, &Device::Cpu)?)
}

fn log_prob(case: &Case) -> Outcome {
    let kind: String = case.param("kind")?;
    let noise = match kind.as_str() {
        "gumbel" => Noise::Gumbel {
            clamp_low: case.param("clamp_low")?,
            clamp_high: case.param("clamp_high")?,
            prob_eps: case.param("prob_eps")?,
            mask_log_threshold: case.param("mask_log_threshold")?,
        },
        "dirichlet" => Noise::Dirichlet {
            alpha: case.param("alpha")?,
            clamp_low: case.param("clamp_low")?,
            clamp_high: case.param("clamp_high")?,
            prob_threshold: case.param("prob_threshold")?,
        },
        "normal" => Noise::Normal {
            std: case.param("std")?,
            clamp: case.param("clamp")?,
            prob_threshold: case.param("prob_threshold")?,
        },
        other => return Err(Failure::NotImplemented(format!("noise `{other}`"))),
    };
    let logits = case.var("logits")?;
    let (ids, discrete) = stored(case, "rollout_topk_ids")?;
    let (perturbed, labels) = (case.tensor("rollout_perturbed")?, labels(case)?);
    let tokens = SoftTokens { ids: &ids, perturbed: &perturbed, labels: &labels, discrete: &discrete };
    let log_probs = SoftLikelihood { noise }.log_probs(logits.as_tensor(), tokens)?;
    let sum = (&log_probs * case.tensor("upstream")?)?.sum_all()?;
    Ok(Outputs::from([("log_probs", values(&log_probs)?), ("grad_logits", gradient(&sum, &logits)?)]))
}

fn embedding(case: &Case) -> Outcome {
    let (ids, discrete) = stored(case, "topk_ids")?;
    let weights = mixture_weights(&case.table("perturbed")?, &discrete, case.param("tau")?)?;
    let embeddings = soft_embeddings(&case.tensor("embedding_table")?, &ids, &weights)?;
    Ok(Outputs::from([("embeddings", values(&embeddings)?), ("weights", weights.values)]))
}

fn advantages(case: &Case) -> Outcome {
    let per_row = group_norm(&case.numbers("rewards")?, &case.whole("group_ids")?, &group_settings(case)?)?;
    Ok(Outputs::from([("advantages", per_row)]))
}

fn objective(case: &Case) -> Result<Objective, Failure> {
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: case.param("clip_c")?,
    };
    let estimator = case.param::<Option<KlEstimator>>("kl_kind")?.unwrap_or(KlEstimator::K3);
    let kl = Kl { coef: case.param("kl_coef")?, estimator, ..Kl::default() };
    Ok(Objective { regularizers: vec![Box::new(kl)], ..Objective::new(ratio, case.param("aggregation")?) })
}

fn loss(case: &Case) -> Outcome {
    let mask = case.table("response_mask")?;
    let log_probs = case.var("log_probs")?;
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?
        .with(REF_LOG_PROBS, case.tensor("ref_log_probs")?)?;
    let signals = Signals::new(Table::broadcast(&case.numbers("advantages")?, batch.mask())?);
    let parts = objective(case)?.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("pg_loss", vec![parts.pg_loss]),
        ("clip_frac", vec![parts.stat("clip_frac")]),
        ("ppo_kl", vec![parts.stat("approx_kl")]),
        ("clip_frac_lower", vec![parts.stat("clip_frac_lower")]),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn end_to_end(case: &Case) -> Outcome {
    let mask = case.table("response_mask")?;
    let (b, t) = (mask.rows, mask.cols);
    let (ids, discrete) = stored(case, "topk_ids")?;
    let (perturbed, labels) = (case.tensor("perturbed")?.reshape(ids.dims())?, labels(case)?);
    let tokens = SoftTokens { ids: &ids, perturbed: &perturbed, labels: &labels, discrete: &discrete };
    let score = |logits: &Tensor| -> Result<Tensor, Failure> {
        let flat = logits.flatten(0, 1)?;
        Ok(SoftLikelihood::default().log_probs(&flat, tokens)?.reshape((b, t))?)
    };
    let logits = case.var("logits")?;
    let (new, old) = (score(logits.as_tensor())?, score(&case.tensor("old_logits")?)?);
    let batch = Batch::new(mask)
        .with(LOG_PROBS, new.clone())?
        .with(OLD_LOG_PROBS, old.clone())?
        .with(REF_LOG_PROBS, score(&case.tensor("ref_logits")?)?)?;
    let signals = Signals::new(Table::broadcast(&case.numbers("advantages")?, batch.mask())?);
    let parts = objective(case)?.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("log_probs", values(&new)?),
        ("old_log_probs", values(&old)?),
        ("grad_logits", gradient(&parts.loss, &logits)?),
    ]))
}
