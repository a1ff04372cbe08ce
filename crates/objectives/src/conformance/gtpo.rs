//! Cases of `gtpo.json`.

use candle_core::{Tensor, Var};
use efference_ops::{TokenScores, token_scores};
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, ENTROPY, GROUP_IDS, LOG_PROBS, REWARDS};
use crate::objective::Objective;
use crate::papers::gtpo::{
    ConflictWeights, EntropyGate, GateRule, GroupReduction, RESPONSE_IDS, UnitRatio, correctness_reward,
    floored_entropy, format_reward, mean_entropies,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "conflict_mask" => conflict_mask(case),
        "loss" => loss(case),
        "entropy_gate_paper" => entropy_gate(case),
        "reward" => reward(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of gtpo"))),
    }
}

fn conflict_weights(case: &Case) -> Result<ConflictWeights, Failure> {
    let divide = case.param::<Option<bool>>("divide_by_conflicts")?.unwrap_or(true);
    Ok(ConflictWeights { positive: case.param("conflict_weight")?, divide_by_conflicts: divide })
}

fn conflict_mask(case: &Case) -> Outcome {
    let (ids, mask) = (case.table("response_ids")?, case.table("response_mask")?);
    let one_group = vec![0; mask.rows];
    let found = conflict_weights(case)?.conflicts(&ids, &mask, &case.numbers("advantages")?, &one_group)?;
    Ok(Outputs::from([("token_weight", found.weights.values), ("n_conflict", found.counts)]))
}

fn loss(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let (b, t, v) = logits.dims3()?;
    let (ids, mask, rewards) =
        (case.table("response_ids")?, case.table("response_mask")?, case.numbers("rewards")?);
    let tokens: Vec<u32> = ids.values.iter().map(|&id| id as u32).collect();
    let tokens = Tensor::from_vec(tokens, b * t, logits.device())?;
    let TokenScores { log_probs, .. } = token_scores(&logits.as_tensor().reshape((b * t, v))?, &tokens, 1.0)?;
    let log_probs = log_probs.reshape((b, t))?;
    let floor = case.param("entropy_prob_floor")?;
    let entropy = case.numbers("logits")?.chunks(v).map(|row| floored_entropy(row, floor)).collect();
    let entropy = Table { values: entropy, ..mask };
    let (conflicts, gate) = (
        conflict_weights(case)?,
        EntropyGate {
            threshold: case.param("entropy_threshold")?,
            scale: case.param("entropy_scale")?,
            gate: GateRule::Constant,
        },
    );
    let objective = Objective {
        advantage: Some(Box::new(GroupNorm { spread: Spread::None, ..GroupNorm::default() })),
        weights: vec![
            Box::new(conflicts),
            Box::new(gate),
            Box::new(GroupReduction { reduction: case.param::<Option<_>>("reduction")?.unwrap_or_default() }),
        ],
        ..Objective::new(UnitRatio::default(), Aggregation::SeqMeanTokenMean)
    };
    let groups = vec![0u64; b];
    let mut signals = None;
    let mut total = |log_probs: &Tensor| -> Result<Tensor, Failure> {
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, log_probs.clone())?
            .with(ENTROPY, entropy.clone())?
            .with(RESPONSE_IDS, ids.clone())?
            .with(REWARDS, rewards.clone())?
            .with(GROUP_IDS, groups.clone())?;
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state)?;
        let loss = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state)?.loss;
        signals = Some(ready.signals);
        Ok(loss)
    };
    let loss = total(&log_probs)?;
    let free = Var::from_tensor(&log_probs.detach())?;
    let free_loss = total(free.as_tensor())?;

    let signals = signals.ok_or_else(|| Failure::Missing("signals".into()))?;
    let raw: Vec<f64> = signals.advantages.iter().map(|row| row.first().copied().unwrap_or(0.0)).collect();
    let found = conflicts.conflicts(&ids, &mask, &raw, &groups)?;
    let means = mean_entropies(&entropy, &mask)?;
    let shaped = raw.iter().zip(&means).map(|(&a, &h)| gate.shaped(a, h, None)).collect();
    Ok(Outputs::from([
        ("log_probs", values(&log_probs)?),
        ("entropy", means),
        ("raw_advantages", raw),
        ("advantages", shaped),
        ("token_weight", found.weights.values),
        ("n_conflict", found.counts),
        ("loss", values(&loss)?),
        ("completion_tokens_sum", vec![mask.values.iter().sum()]),
        ("grad_logits", gradient(&loss, &logits)?),
        ("grad_log_probs", gradient(&free_loss, &free)?),
    ]))
}

fn entropy_gate(case: &Case) -> Outcome {
    let gate = EntropyGate {
        threshold: case.param("threshold")?,
        gate: GateRule::Initial,
        ..EntropyGate::default()
    };
    let pairs = case.numbers("initial_entropy")?.into_iter().zip(case.numbers("entropy")?);
    let delta = pairs.map(|(initial, h)| f64::from(u8::from(gate.keeps(h, Some(initial))))).collect();
    Ok(Outputs::from([("delta", delta)]))
}

fn reward(case: &Case) -> Outcome {
    let text = |value: &Value| {
        value.as_str().map(String::from).ok_or_else(|| Failure::Missing("inputs.completions as texts".into()))
    };
    let missing = || Failure::Missing("inputs.completions".into());
    let completions = case.inputs.get("completions").and_then(Value::as_array).ok_or_else(missing)?;
    let completions = completions.iter().map(text).collect::<Result<Vec<String>, Failure>>()?;
    let reference = case.inputs.get("reference").map(text).ok_or_else(missing)??;
    let atol = case.param("atol")?;
    let format: Vec<f64> = completions.iter().map(|x| format_reward(x)).collect();
    let correct: Vec<f64> = completions.iter().map(|x| correctness_reward(x, &reference, atol)).collect();
    let total = format.iter().zip(&correct).map(|(f, c)| f + c).collect();
    Ok(Outputs::from([("format", format), ("correctness", correct), ("total", total)]))
}
