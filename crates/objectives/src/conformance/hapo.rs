//! Cases of `hapo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::batch::ENTROPY;
use crate::objective::Objective;
use crate::papers::hapo::{
    AdaptiveTemperature, EntropyAdaptive, EntropyStats, SignalForm, TokenGroupNorm, softmax_entropy,
    token_group_norm,
};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "entropy_signal" => entropy_signal(case),
        "advantages" => advantages(case),
        "clip_and_redistribute" => clip_and_redistribute(case),
        "loss" => loss(case),
        "adaptive_temperature" => adaptive_temperature(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of hapo"))),
    }
}

fn entropy_signal(case: &Case) -> Outcome {
    let (entropy, mask, eps) = (case.table("entropy")?, case.table("response_mask")?, case.param("eps")?);
    let stats = EntropyStats::of(&entropy, &mask, case.param("entropy_pivot")?, eps)?;
    let stats = stats.ok_or_else(|| Failure::Missing("valid token".into()))?;
    Ok(Outputs::from([
        ("h_hat_code", stats.signal(&entropy, SignalForm::Code, eps).values),
        ("h_hat_signed", stats.signal(&entropy, SignalForm::Signed, eps).values),
        ("quantile", vec![stats.quantile]),
        ("std", vec![stats.std]),
        ("scale_pos", vec![stats.scale_pos]),
        ("scale_neg", vec![stats.scale_neg]),
    ]))
}

fn advantages(case: &Case) -> Outcome {
    let settings = TokenGroupNorm {
        by_std: case.param("norm_by_std")?,
        epsilon: case.param("epsilon")?,
        fallback: case.param("fallback_threshold")?,
        fallback_on_padding: true,
    };
    let mask = case.table("response_mask")?;
    let raw = token_group_norm(&case.numbers("rewards")?, &case.whole("group_ids")?, &mask, &settings)?;
    let masked = raw.values.iter().zip(&mask.values).map(|(a, m)| a * m).collect();
    Ok(Outputs::from([("advantages_masked", masked), ("advantages_raw", raw.values)]))
}

fn clip_and_redistribute(case: &Case) -> Outcome {
    let block = EntropyAdaptive {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        clip_alpha: case.param("clip_alpha")?,
        adv_beta: case.param("adv_beta")?,
        ..EntropyAdaptive::default()
    };
    let (h, ratio, a) = (case.numbers("h_hat")?, case.numbers("ratio")?, case.numbers("advantages")?);
    let widths: Vec<(f64, f64)> = h.iter().map(|&h| block.widths(h)).collect();
    let tokens = h.iter().zip(ratio).zip(a).zip(&widths);
    let changed = tokens.map(|(((h, r), a), w)| block.redistributed(a, *h, r, *w)).collect();
    let (low, high) = widths.into_iter().unzip();
    Ok(Outputs::from([("eps_low", low), ("eps_high", high), ("advantages", changed)]))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, batch, signals) = case.policy_batch()?;
    let batch = batch.with(ENTROPY, case.table("entropy")?)?;
    let (clip_low, clip_high) = (case.param("clip_low")?, case.param("clip_high")?);
    let block = EntropyAdaptive {
        clip_low,
        clip_high,
        adaptive_clip: case.param("adaptive_clip")?,
        clip_alpha: case.param("clip_alpha")?,
        adaptive_advantage: case.param("adaptive_advantage")?,
        adv_beta: case.param("adv_beta")?,
        entropy_pivot: case.param("entropy_pivot")?,
        signal: case.param("h_hat_mode")?,
        ..EntropyAdaptive::default()
    };
    let ratio = ClippedRatio { clip_low, clip_high, dual_clip: Some(case.param("clip_ratio_c")?) };
    let objective =
        Objective { bounds: Some(Box::new(block)), ..Objective::new(ratio, case.param("loss_agg_mode")?) };
    let whole = batch.normaliser();
    let parts = objective.loss(&batch, &signals, &whole, &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("pg_clipfrac", vec![parts.stat("clip_frac")]),
        ("pg_clipfrac_count", vec![parts.stat("clip_frac") * whole.tokens]),
        ("ppo_kl", vec![parts.stat("approx_kl")]),
        ("pg_clipfrac_lower", vec![parts.stat("clip_frac_lower")]),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn adaptive_temperature(case: &Case) -> Outcome {
    let stats = EntropyStats {
        quantile: case.param("quantile")?,
        std: case.param("std")?,
        scale_pos: case.param("scale_pos")?,
        scale_neg: case.param("scale_neg")?,
    };
    let rule = AdaptiveTemperature {
        base: case.param("base_temperature")?,
        tau: case.param("tau")?,
        signal: case.param("h_hat_mode")?,
        eps: case.param("eps")?,
    };
    let logits: Table = case.table("logits")?;
    let temperature = logits.iter().map(|row| rule.temperature(softmax_entropy(row), Some(&stats))).collect();
    Ok(Outputs::from([("temperature", temperature)]))
}
