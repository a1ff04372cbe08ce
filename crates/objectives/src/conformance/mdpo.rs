//! Cases of `mdpo.json`: on-policy and off-policy losses, GAE of a stream, the schedule.

use candle_core::{Tensor, Var};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{EPISODE_STARTS, NEXT_VALUES, StreamGae, StreamReturns, standardise};
use crate::aggregation::Aggregation;
use crate::batch::{
    Batch, LOG_PROBS, OLD_LOG_PROBS, RETURNS, Signals, TOKEN_REWARDS, VALUE_PREDICTIONS, VALUES,
};
use crate::block::Regularizer;
use crate::critic::ClippedValue;
use crate::objective::{LossParts, Objective};
use crate::papers::mdpo::off_policy::{
    ACTION_VALUES, POLICY_LOG_STDS, POLICY_MEANS, Pairing, SoftMirror, Squash, SquashPenalty,
    half_squared_error, q_target, soft_value_loss, squashed_log_prob, v_target,
};
use crate::papers::mdpo::{
    Anneal, ImportanceRatio, MirrorKl, POLICY_KL, categorical_kl, categorical_log_prob, gaussian_kl,
    gaussian_log_prob, log_q, step_size,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "on_policy_loss" => gaussian(case),
        "on_policy_loss_categorical" => categorical(case),
        "value_loss" => value_loss(case),
        "advantages" => advantages(case),
        "schedule" => schedule(case),
        "off_policy_loss" => off_policy(case),
        "log_q" => tsallis_log(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of mdpo"))),
    }
}

/// One decision per row.
fn ones(rows: usize) -> Table {
    Table { rows, cols: 1, values: vec![1.0; rows] }
}

fn column(x: &Tensor) -> Result<Tensor, Failure> {
    Ok(x.unsqueeze(1)?)
}

/// The on-policy loss of [B] log-probabilities and KLs, and the mean divergence.
fn on_policy(case: &Case, now: &Tensor, old: &Tensor, kl: &Tensor) -> Result<(LossParts, f64), Failure> {
    let raw = case.numbers("raw_advantages")?;
    let mask = ones(raw.len());
    let signals = Signals::new(Table { values: standardise(&raw, 0.0), ..mask });
    let batch = Batch::new(mask)
        .with(LOG_PROBS, column(now)?)?
        .with(OLD_LOG_PROBS, column(old)?)?
        .with(POLICY_KL, column(kl)?)?;
    let mirror = MirrorKl {
        step_size: case.param("step_size")?,
        anneal: Anneal::Constant,
        iterations: 1,
        tsallis_q: case.param::<Option<f64>>("tsallis_q")?.unwrap_or(1.0),
    };
    let objective = Objective {
        regularizers: vec![Box::new(mirror)],
        ..Objective::new(ImportanceRatio::default(), Aggregation::TokenMean)
    };
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    let share: f64 = parts.regularizers.iter().map(|(_, x)| x).sum();
    Ok((parts, share * mirror.step_size))
}

fn gaussian(case: &Case) -> Outcome {
    let (mean, log_std) = (case.var("mean")?, case.var("log_std")?);
    let (old_mean, old_log_std) = (case.tensor("old_mean")?, case.tensor("old_log_std")?);
    let actions = case.tensor("actions")?;
    let now = gaussian_log_prob(mean.as_tensor(), log_std.as_tensor(), &actions)?;
    let old = gaussian_log_prob(&old_mean, &old_log_std, &actions)?;
    let kl = gaussian_kl(mean.as_tensor(), log_std.as_tensor(), &old_mean, &old_log_std)?;
    let (parts, mean_kl) = on_policy(case, &now, &old, &kl)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("mean_kl", vec![mean_kl]),
        ("grad_mean", gradient(&parts.loss, &mean)?),
        ("grad_log_std", gradient(&parts.loss, &log_std)?),
    ]))
}

fn categorical(case: &Case) -> Outcome {
    let (logits, old) = (case.var("logits")?, case.tensor("old_logits")?);
    let actions = case.whole("actions")?;
    let now = categorical_log_prob(logits.as_tensor(), &actions)?;
    let kl = categorical_kl(logits.as_tensor(), &old)?;
    let (parts, mean_kl) = on_policy(case, &now, &categorical_log_prob(&old, &actions)?, &kl)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("mean_kl", vec![mean_kl]),
        ("grad_logits", gradient(&parts.loss, &logits)?),
    ]))
}

/// The authors' value loss has no 0.5.
fn value_loss(case: &Case) -> Outcome {
    let critic = case.var("values")?;
    let rows = critic.elem_count();
    let block = ClippedValue {
        coef: 2.0,
        clip: case.param("cliprange_value")?,
        aggregation: Some(Aggregation::TokenMean),
    };
    let batch = Batch::new(ones(rows))
        .with(VALUE_PREDICTIONS, column(critic.as_tensor())?)?
        .with(VALUES, column(&case.tensor("old_values")?)?)?
        .with(RETURNS, column(&case.tensor("returns")?)?)?;
    let signals = Signals::new(batch.mask().filled(0.0));
    let crate::block::Terms::Tokens(terms) = block.terms(&batch, &signals, &State::default())? else {
        return Err(Failure::NotComputed("loss".into()));
    };
    let loss = Aggregation::TokenMean.apply(&terms, batch.mask(), &batch.normaliser())?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_values", gradient(&loss, &critic)?)]))
}

fn advantages(case: &Case) -> Outcome {
    let row = |name: &str| -> Result<Table, Failure> {
        let values = case.numbers(name)?;
        Ok(Table { rows: 1, cols: values.len(), values })
    };
    let rewards = row("rewards")?;
    let gae = StreamGae {
        gamma: case.param("gamma")?,
        lambda: case.param("lambda")?,
        streams: true,
        whiten: false,
        epsilon: 0.0,
    };
    let batch = Batch::new(rewards.filled(1.0))
        .with(TOKEN_REWARDS, rewards)?
        .with(VALUES, row("vpred")?)?
        .with(EPISODE_STARTS, row("episode_starts")?)?
        .with(NEXT_VALUES, case.numbers("nextvpred")?)?;
    let returns = StreamReturns { gamma: gae.gamma, lambda: gae.lambda, streams: gae.streams };
    let objective = Objective {
        rewards: vec![Box::new(returns)],
        advantage: Some(Box::new(gae)),
        ..Objective::new(ImportanceRatio::default(), Aggregation::TokenMean)
    };
    let ready = objective.prepare(batch, &mut State::default())?;
    Ok(Outputs::from([
        ("advantages", ready.signals.advantages.values),
        ("returns", ready.batch.table(RETURNS)?.values),
    ]))
}

fn schedule(case: &Case) -> Outcome {
    let total = case.param("iterations")?;
    let steps = case.whole("iteration")?.iter().map(|&k| step_size(k, total, Anneal::Code)).collect();
    Ok(Outputs::from([("step_size", steps)]))
}

fn tsallis_log(case: &Case) -> Outcome {
    let x = case.var("x")?;
    let log = log_q(x.as_tensor(), case.param("q")?, case.param("floor")?)?;
    Ok(Outputs::from([("log_q", values(&log)?), ("grad_x", gradient(&log.sum_all()?, &x)?)]))
}

/// The cases' critics are -sum_d w_d (a_d - c_d)^2, [B].
fn critic(case: &Case, which: &str, action: &Tensor) -> Result<Tensor, Failure> {
    let gap = (action - case.tensor(&format!("{which}_center"))?)?.sqr()?;
    Ok(gap.broadcast_mul(&case.tensor(&format!("{which}_weight"))?)?.sum(1)?.neg()?)
}

fn off_policy(case: &Case) -> Outcome {
    let (mean, log_std) = (case.var("mean")?, case.var("log_std")?);
    let u = (mean.as_tensor() + (log_std.exp()? * case.tensor("noise")?)?)?;
    let action = u.tanh()?;
    let soft = SoftMirror {
        kl_coef: case.param("kl_coef")?,
        lambda: case.param("lambda")?,
        tsallis_q: case.param("tsallis_q")?,
    };
    let squash = Squash {
        tsallis_q: soft.tsallis_q,
        epsilon: case.param("logp_eps")?,
        floor: case.param("prob_floor")?,
    };
    let now = squashed_log_prob(&u, mean.as_tensor(), log_std.as_tensor(), &squash)?;
    let old = squashed_log_prob(&u, &case.tensor("old_mean")?, &case.tensor("old_log_std")?, &squash)?;
    let (q1, q2) = (critic(case, "q1", &action)?, critic(case, "q2", &action)?);
    let batch = Batch::new(ones(now.dims1()?))
        .with(LOG_PROBS, column(&now)?)?
        .with(OLD_LOG_PROBS, column(&old)?)?
        .with(ACTION_VALUES, column(&q1)?)?
        .with(POLICY_MEANS, mean.as_tensor().clone())?
        .with(POLICY_LOG_STDS, log_std.as_tensor().clone())?;
    let penalty = SquashPenalty { mean_coef: case.param("mean_reg")?, log_std_coef: case.param("std_reg")? };
    let objective =
        Objective { regularizers: vec![Box::new(penalty)], ..Objective::new(soft, Aggregation::TokenMean) };
    let signals = Signals::new(batch.mask().filled(0.0));
    let policy = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?.loss;

    let flat = |name: &str| -> Result<Tensor, Failure> { Ok(case.tensor(name)?.flatten_all()?) };
    let var = |name: &str| -> Result<Var, Failure> { Ok(Var::from_tensor(&flat(name)?)?) };
    let (value, q1_data, q2_data) = (var("value")?, var("q1_data")?, var("q2_data")?);
    let next = flat("target_value_next")?;
    let q_backup = q_target(&flat("rewards")?, &flat("terminals")?, &next, case.param("gamma")?)?;
    let regress = |pairing| soft_value_loss(value.as_tensor(), (&q1, &q2), &now, soft.lambda, pairing);
    let critics = (half_squared_error(q1_data.as_tensor(), &q_backup)?
        + half_squared_error(q2_data.as_tensor(), &q_backup)?)?;
    let losses = (critics + regress(Pairing::PerState)?)?;
    Ok(Outputs::from([
        ("action", values(&action)?),
        ("log_prob", values(&now)?),
        ("old_log_prob", values(&old)?),
        ("policy_loss", values(&policy)?),
        ("grad_mean", gradient(&policy, &mean)?),
        ("grad_log_std", gradient(&policy, &log_std)?),
        ("q_backup", values(&q_backup)?),
        ("v_backup", values(&v_target(&q1, &q2, &now, soft.lambda)?)?),
        ("values_losses", values(&losses)?),
        ("grad_value", gradient(&losses, &value)?),
        ("grad_q1", gradient(&losses, &q1_data)?),
        ("grad_q2", gradient(&losses, &q2_data)?),
        ("value_loss_authors_broadcast", values(&regress(Pairing::Broadcast)?)?),
    ]))
}
