//! Cases of `fapo.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread, group_norm};
use crate::batch::{Batch, LOG_PROBS, REWARDS, SUCCESS, Signals};
use crate::block::Reward;
use crate::kl::clamp;
use crate::objective::Objective;
use crate::papers::fapo::{FLAWED, FlawedAware, Verdict, ask_detector, detector_reward, read_verdict};
use crate::shaping::dapo_overlong;
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" if case.inputs.contains_key("verdict") => policy_rewards(case),
        "reward" if case.inputs.contains_key("total_steps") => detector_rewards(case),
        "reward" if case.inputs.contains_key("length") => overlong(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of fapo"))),
    }
}

fn flags(x: impl IntoIterator<Item = bool>) -> Vec<f64> {
    x.into_iter().map(|b| f64::from(u8::from(b))).collect()
}

/// Rewards through the block; `correct` and `flawed` are 0 or 1.
fn shaped(settings: &FlawedAware, correct: Vec<f64>, flawed: Vec<f64>) -> Result<Vec<f64>, Failure> {
    let mask = Table { rows: correct.len(), cols: 1, values: vec![1.0; correct.len()] };
    let mut batch = Batch::new(mask).with(SUCCESS, correct)?.with(FLAWED, flawed)?;
    settings.shape(&mut batch, &mut State::default())?;
    Ok(batch.numbers(REWARDS)?)
}

fn policy_rewards(case: &Case) -> Outcome {
    let settings = FlawedAware {
        penalty: case.param("flawed_penalty")?,
        correct: case.param("correct_reward")?,
        incorrect: case.param("incorrect_reward")?,
    };
    // What the detector wrote, by the number of its verdict; 5 is no answer at all.
    let answers = ["\\boxed{-1}", "\\boxed{0}", "\\boxed{3}", "no index", "\\boxed{the second}", ""];
    let (correct, train) = (case.numbers("correct")?, case.numbers("is_train")?);
    let verdict = |&v: &u64| answers.get(v as usize).map_or(Verdict::Unreadable, |text| read_verdict(text));
    let verdicts: Vec<Verdict> = case.whole("verdict")?.iter().map(verdict).collect();
    let asked = correct.iter().zip(&train).map(|(c, t)| ask_detector(*t != 0.0, *c != 0.0));
    let flawed = flags(asked.zip(&verdicts).map(|(asked, verdict)| asked && verdict.flawed()));
    let score = shaped(&settings, correct, flawed.clone())?;
    Ok(Outputs::from([("score", score), ("is_flawed", flawed)]))
}

fn detector_rewards(case: &Case) -> Outcome {
    let whole = |name| Ok::<_, Failure>(case.numbers(name)?.into_iter().map(|x| x as i64));
    let steps = whole("total_steps")?.map(|n| u64::try_from(n).unwrap_or(0));
    let cases = whole("predicted_step")?.zip(whole("true_error_step")?).zip(steps);
    let (scores, right): (Vec<f64>, Vec<bool>) =
        cases.map(|((p, t), n)| detector_reward(Some(p), t, n)).unzip();
    Ok(Outputs::from([("score", scores), ("acc", flags(right))]))
}

fn overlong(case: &Case) -> Outcome {
    let (max, buffer, factor) =
        (case.param("max_resp_len")?, case.param("buffer_len")?, case.param("penalty_factor")?);
    let penalty = case.numbers("length")?.into_iter().map(|len| dapo_overlong(len, max, buffer, factor));
    Ok(Outputs::from([("penalty", penalty.collect())]))
}

fn advantages(case: &Case) -> Outcome {
    let kind = case.numbers("kind")?;
    let settings = FlawedAware { penalty: case.param("flawed_penalty")?, ..FlawedAware::default() };
    let (correct, flawed) = (flags(kind.iter().map(|&k| k != 0.0)), flags(kind.iter().map(|&k| k == 2.0)));
    let rewards = shaped(&settings, correct, flawed)?;
    let settings = group_settings(case)?;
    let per_row = group_norm(&rewards, &case.whole("group_ids")?, &settings)?;
    let advantages = Table::broadcast(&per_row, &case.table("response_mask")?)?;
    Ok(Outputs::from([("rewards", rewards), ("advantages", advantages.values)]))
}

/// Refuses another deviation than the one with n - 1.
pub(super) fn unbiased(case: &Case) -> Result<(), Failure> {
    match case.param::<Option<String>>("std")?.as_deref() {
        None | Some("unbiased") => Ok(()),
        Some(other) => Err(Failure::NotImplemented(format!("`std` {other}"))),
    }
}

/// Standardisation by `eps` and, where it is given, `norm_by_std`.
pub(super) fn group_settings(case: &Case) -> Result<GroupNorm, Failure> {
    unbiased(case)?;
    let by_std: bool = case.param::<Option<bool>>("norm_by_std")?.unwrap_or(true);
    let spread = if by_std { Spread::Unbiased } else { Spread::None };
    Ok(GroupNorm { epsilon: case.param("eps")?, spread, ..GroupNorm::default() })
}

/// The batch with its log-ratio cut to +-`log_ratio_clamp`, where that is narrower than the surrogate's own 20.
pub(super) fn cut_log_ratio(case: &Case, mut batch: Batch) -> Result<Batch, Failure> {
    let limit: f64 = case.param::<Option<f64>>("log_ratio_clamp")?.unwrap_or(20.0);
    if limit < 20.0 {
        let (new, old) = (batch.tensor(LOG_PROBS)?, batch.tensor(crate::batch::OLD_LOG_PROBS)?);
        batch.set(LOG_PROBS, (&old + clamp(&(new - &old)?, -limit, limit)?)?)?;
    }
    Ok(batch)
}

/// Clipped ratio by `clip_low`, `clip_high`, `clip_ratio_c`, aggregated by `loss_agg_mode`.
pub(super) fn objective(case: &Case) -> Result<Objective, Failure> {
    let ratio = ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: case.param("clip_ratio_c")?,
    };
    Ok(Objective::new(ratio, case.param("loss_agg_mode")?))
}

/// Loss and gradient of a case with log-probabilities and a mask, given its advantages.
pub(super) fn clipped_loss(case: &Case, signals: &Signals) -> Result<Outputs, Failure> {
    let (log_probs, batch, _) = case.policy_batch()?;
    let batch = cut_log_ratio(case, batch)?;
    let parts = objective(case)?.loss(&batch, signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn loss(case: &Case) -> Outcome {
    clipped_loss(case, &Signals::new(case.table("advantages")?))
}
