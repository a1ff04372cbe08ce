//! Cases of `igpo_inpaint.json`.

use serde_json::json;

use super::case::{Case, Failure, Outcome, Outputs, code, gradient, values};
use super::model_dllm::sizes;
use crate::advantage::{GroupNorm, Spread, group_norm};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::diffusion::{mask_at_ratio, mean_field_entropy, timesteps, token_log_probs};
use crate::objective::Objective;
use crate::papers::igpo_inpaint::rollout::{
    FormatReward, HintLayout, first_boxed, place_chunks, replacements,
};
use crate::papers::igpo_inpaint::{KeptKl, MeanFieldRatio, Over, entropy_filter, keep_tokens};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "logprob" => log_probs(case),
        "mask" => mask(case),
        "timesteps" => steps(case),
        "hint_layout" => hint_layout(case),
        "chunk_scale" => chunk_scale(case),
        "replacement" => replacement(case),
        "entropy_filter" => filter(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        "reward" => rewards(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of igpo_inpaint"))),
    }
}

/// Logits [iterations * B, T, V]; the ids [B, T] are the same in every iteration.
fn log_probs(case: &Case) -> Outcome {
    let (logits, ids) = (case.tensor("logits")?, case.whole("completion_ids")?);
    let (rows, t, _) = logits.dims3()?;
    if !case.param::<bool>("full_mask")? {
        return Err(Failure::NotImplemented("partial masks without their draws".into()));
    }
    let iterations = rows * t / ids.len().max(1);
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    let entropy = mean_field_entropy(&logits, case.param("entropy_eps")?)?;
    Ok(Outputs::from([
        ("log_probs", values(&token_log_probs(&logits, &ids.repeat(iterations))?)?),
        ("entropy", values(&entropy)?),
        ("masked_token_mask", vec![1.0; rows * t]),
    ]))
}

fn mask(case: &Case) -> Outcome {
    let ratio = case.param::<f64>("timestep")? / case.param::<f64>("diffusion_steps")?;
    let (ids, uniform) = (case.table("input_ids")?, case.table("uniform")?);
    let (noisy, p) = mask_at_ratio(&ids, &uniform, case.param("prompt_len")?, ratio, case.param("mask_id")?)?;
    Ok(Outputs::from([("noisy_ids", noisy.values), ("p_mask", p.values)]))
}

fn steps(case: &Case) -> Outcome {
    let (updates, total) = (case.param("num_iterations")?, case.param("diffusion_steps")?);
    let steps = timesteps(updates, total, case.param("full_masking")?, case.param("t0")?);
    Ok(Outputs::from([("timesteps", steps.into_iter().map(|t| t as f64).collect())]))
}

fn hint_layout(case: &Case) -> Outcome {
    let layout = HintLayout {
        min_chunk: case.param("min_chunk")?,
        max_chunk: case.param("max_chunk")?,
        max_spacing: case.param("max_spacing")?,
        free_tail: case.param("free_tail")?,
        min_scale: case.param("min_scale")?,
        max_scale: case.param("max_scale")?,
        reveal_last: case.param("reveal_last_chunk")?,
    };
    let draws = sizes(case, "chunk_size_draws")?;
    let hidden = sizes(case, "masked_chunk_indices")?;
    let (response, generate) = layout.lay_out(
        &case.whole("reference_tokens")?,
        case.param("gen_length")?,
        &draws,
        &hidden,
        case.param("mask_id")?,
    )?;
    let prompt = case.numbers("prompt_ids")?;
    let mut free = vec![0.0; prompt.len()];
    free.extend(generate.iter().map(|&g| f64::from(u8::from(g))));
    let mut sequence = prompt;
    sequence.extend(response.iter().map(|&id| id as f64));
    Ok(Outputs::from([("sequence", sequence), ("generate_mask", free)]))
}

fn chunk_scale(case: &Case) -> Outcome {
    let flat = sizes(case, "chunks")?;
    let chunks: Vec<(usize, usize)> = flat.chunks_exact(2).map(|c| (c[0], c[1])).collect();
    let (length, scale) = (case.param("target_length")?, case.param("scaling_factor")?);
    let placed = place_chunks(&chunks, length, scale, case.param("max_spacing")?);
    let positions = placed.iter().flat_map(|&(a, b)| [a as f64, b as f64]).collect();
    Ok(Outputs::from([("positions", positions)]))
}

fn replacement(case: &Case) -> Outcome {
    let permutation = sizes(case, "permutation")?;
    let (most, correct) = (case.param("max_replacements")?, case.param("correct_score")?);
    let slots = replacements(&case.numbers("inpainted_scores")?, &permutation, most, correct)?;
    let count = slots.iter().flatten().count() as f64;
    let source = slots.iter().map(|slot| slot.map_or(-1.0, |i| i as f64)).collect();
    Ok(Outputs::from([("source_of_slot", source), ("replacement_count", vec![count])]))
}

/// Entropies and masks [iterations, B, T], hints [B, T].
fn filter(case: &Case) -> Outcome {
    let hints = case.table("hint_mask")?;
    let block = hints.values.len().max(1);
    let part = |values: &[f64]| Table { values: values.to_vec(), ..hints };
    let (masked, entropy) = (case.numbers("masked_token_mask")?, case.numbers("entropy")?);
    let mut kept = Vec::new();
    for (masked, entropy) in masked.chunks(block).zip(entropy.chunks(block)) {
        kept.extend(entropy_filter(&part(masked), &hints, &part(entropy), case.param("keep_ratio")?)?.values);
    }
    Ok(Outputs::from([("loss_mask", kept)]))
}

fn advantages(case: &Case) -> Outcome {
    let (format, correct) = (case.numbers("format_reward")?, case.numbers("correct_reward")?);
    let rewards: Vec<f64> = format.iter().zip(&correct).map(|(a, b)| a + b).collect();
    let settings = if case.param("divide_by_std")? {
        GroupNorm { epsilon: 1e-4, ..GroupNorm::default() }
    } else {
        GroupNorm { spread: Spread::None, ..GroupNorm::default() }
    };
    let a = group_norm(&rewards, &case.whole("group_ids")?, &settings)?;
    Ok(Outputs::from([("rewards", rewards), ("advantages", a)]))
}

/// The authors' form: the ratio over all positions, the mean over kept ones.
fn loss(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let kept = case.table("loss_mask")?;
    let mask = kept.filled(1.0);
    let mut signals = Signals::new(Table::broadcast(&case.numbers("advantages")?, &mask)?);
    keep_tokens(&mask, &kept, false, &mut signals.weights)?;
    let surrogate = MeanFieldRatio {
        sequence_ratio: case.param("sequence_ratio")?,
        over: if case.param::<Option<bool>>("ratio_over_loss_mask")?.unwrap_or(false) {
            Over::Kept
        } else {
            Over::All
        },
        clip_low: case.param("eps_low")?,
        clip_high: case.param("eps_high")?,
    };
    let objective = Objective {
        regularizers: vec![Box::new(KeptKl { coef: case.param("beta")? })],
        ..Objective::new(surrogate, Aggregation::TokenMean)
    };
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?
        .with(REF_LOG_PROBS, case.tensor("ref_log_probs")?)?;
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        // The authors' share is a quotient in single precision.
        ("clip_ratio", vec![f64::from(parts.stat("clip_ratio") as f32)]),
        ("mean_ratio", vec![parts.stat("mean_ratio")]),
    ]))
}

fn rewards(case: &Case) -> Outcome {
    let format = FormatReward { tag: case.param("tag_reward")?, boxed: case.param("boxed_reward")? };
    let texts = case.texts("texts")?;
    Ok(Outputs::from([
        ("format_reward", texts.iter().map(|text| format.score(text)).collect()),
        ("first_boxed", code(&texts.iter().map(|text| json!(first_boxed(text).unwrap_or(""))).collect())),
    ]))
}
