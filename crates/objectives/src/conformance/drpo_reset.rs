//! Cases of `drpo_reset.json`: resets, truncation, rewards and GAE, the loss.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{StreamGae, StreamReturns};
use crate::aggregation::Aggregation;
use crate::batch::{
    Batch, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, RETURNS, REWARDS, Signals, TOKEN_REWARDS, TRUNCATED,
    VALUE_PREDICTIONS, VALUES,
};
use crate::block::TokenRule;
use crate::critic::ClippedValue;
use crate::objective::Objective;
use crate::papers::drpo_reset::{
    FORCED, ResetMask, SCORE_INDEX, TerminalScore, forced_tokens, longest_prefix, reference_length, truncate,
};
use crate::state::State;
use crate::surrogate::{ClippedRatio, clipped_value_loss};

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reset_mask" => reset_mask(case),
        "truncate_response" => truncate_response(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of drpo_reset"))),
    }
}

fn rows(case: &Case, name: &str) -> Result<Vec<Vec<u64>>, Failure> {
    Ok(case.table(name)?.iter().map(|row| row.iter().map(|&x| x as u64).collect()).collect())
}

fn flag(x: bool) -> f64 {
    f64::from(u8::from(x))
}

fn reset_mask(case: &Case) -> Outcome {
    let (references, pad) = (rows(case, "reference_tokens")?, case.param("pad_token_id")?);
    let (flags, prefixes) = (case.whole("drawn_reset_flag")?, case.whole("drawn_prefix_length")?);
    let lengths: Vec<usize> = references.iter().map(|r| reference_length(r, pad)).collect();
    let drawn = references.iter().zip(flags.iter().zip(&prefixes));
    let forced = drawn.flat_map(|(r, (&flag, &k))| forced_tokens(r, pad, flag != 0, k as usize));
    Ok(Outputs::from([
        ("reset_mask", forced.map(flag).collect()),
        ("reference_lengths", lengths.iter().map(|&n| n as f64).collect()),
        ("prefix_length_support_max", lengths.iter().map(|&n| longest_prefix(n) as f64).collect()),
    ]))
}

fn truncate_response(case: &Case) -> Outcome {
    let (end, pad) = (case.param("eos_token_id")?, case.param("pad_token_id")?);
    let cut: Vec<_> = rows(case, "tokens")?.iter().map(|row| truncate(row, end, pad)).collect();
    Ok(Outputs::from([
        ("postprocessed", cut.iter().flat_map(|c| c.tokens.iter().map(|&t| t as f64)).collect()),
        ("score_index", cut.iter().map(|c| c.score_index.map_or(-1.0, |i| i as f64)).collect()),
        ("contains_pad", cut.iter().map(|c| flag(c.finished)).collect()),
    ]))
}

fn advantages(case: &Case) -> Outcome {
    let old = case.table("old_log_probs")?;
    let truncated: Vec<f64> = case.numbers("contains_eos")?.iter().map(|&x| flag(x == 0.0)).collect();
    let batch = Batch::new(old.filled(1.0))
        .with(OLD_LOG_PROBS, old)?
        .with(REF_LOG_PROBS, case.table("ref_log_probs")?)?
        .with(VALUES, case.table("values")?)?
        .with(REWARDS, case.numbers("scores")?)?
        .with(TRUNCATED, truncated)?
        .with(SCORE_INDEX, case.whole("score_index")?)?;
    let rewards = TerminalScore {
        kl_coef: case.param("kl_coef")?,
        penalty: case.param("penalty_reward_value")?,
        whiten: case.param("whiten_rewards")?,
        valid_only: false,
    };
    let gae = StreamGae {
        gamma: case.param("gamma")?,
        lambda: case.param("lam")?,
        streams: false,
        whiten: true,
        epsilon: 1e-8,
    };
    let returns = StreamReturns { gamma: gae.gamma, lambda: gae.lambda, streams: gae.streams };
    let objective = Objective {
        rewards: vec![Box::new(rewards), Box::new(returns)],
        advantage: Some(Box::new(gae)),
        ..Objective::new(ClippedRatio::default(), Aggregation::TokenMean)
    };
    let ready = objective.prepare(batch, &mut State::default())?;
    Ok(Outputs::from([
        ("rewards", ready.batch.table(TOKEN_REWARDS)?.values),
        ("advantages", ready.signals.advantages.values),
        ("returns", ready.batch.table(RETURNS)?.values),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, critic) = (case.var("log_probs")?, case.var("values")?);
    let advantages = case.table("advantages")?;
    let batch = Batch::new(advantages.filled(1.0))
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?
        .with(VALUE_PREDICTIONS, critic.as_tensor().clone())?
        .with(VALUES, case.tensor("old_values")?)?
        .with(RETURNS, case.tensor("returns")?)?
        .with(FORCED, case.table("reset_mask")?)?;
    let clip: f64 = case.param("cliprange")?;
    let ratio = ClippedRatio { clip_low: clip, clip_high: clip, dual_clip: None };
    let value = ClippedValue {
        coef: case.param("vf_coef")?,
        clip: case.param("cliprange_value")?,
        aggregation: Some(Aggregation::TokenMean),
    };
    let mut signals = Signals::new(advantages);
    ResetMask::default().prepare(&batch, &mut signals, &mut State::default())?;
    let objective =
        Objective { regularizers: vec![Box::new(value)], ..Objective::new(ratio, Aggregation::TokenMean) };
    let whole = batch.normaliser();
    let parts = objective.loss(&batch, &signals, &whole, &State::default())?;
    let (old, returns) = (batch.tensor(VALUES)?, batch.tensor(RETURNS)?);
    let (per_token, _) = clipped_value_loss(critic.as_tensor(), &old, &returns, value.clip)?;
    let value_loss = Aggregation::TokenMean.apply(&per_token, batch.mask(), &whole)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("pg_loss", vec![parts.pg_loss]),
        ("vf_loss", values(&value_loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        ("grad_values", gradient(&parts.loss, &critic)?),
    ]))
}
