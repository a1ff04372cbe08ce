//! Cases of `refuel.json`: the regression, returns, choice of pairs, turn masks.

use candle_core::{Device, Tensor};
use efference_ops::{TokenScores, token_scores};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, REWARDS, Signals, TRUNCATED};
use crate::block::Reward;
use crate::objective::Objective;
use crate::pairs::{Pairs, halves, row_sum_numbers};
use crate::papers::refuel::{
    ChatFormat, OLD_SEQUENCE_LOG_PROBS, RelativeRegression, TurnReturn, compare, turn_ends, turn_tokens,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        "loss_from_logits" => loss_from_logits(case),
        "returns" => returns(case),
        "select_pairs" => select_pairs(case),
        "turn_mask" => turn_masks(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of refuel"))),
    }
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mut batch, signals) = case.policy_batch()?;
    batch.set(REWARDS, case.numbers("returns")?)?;
    batch.set(PAIR_IDS, halves(batch.rows() / 2))?;
    let block = RelativeRegression { eta: case.param("eta")?, presummed: false };
    let errors = block.errors(&batch, &Pairs::of(&batch)?)?;
    let objective = Objective::new(block, Aggregation::TokenMean);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("regression_error", values(&errors)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

/// The columns of a [B, L] table from `start`, `width` of them.
fn columns(table: &Table, start: usize, width: usize) -> Table {
    let rows = table.iter().flat_map(|row| row.iter().skip(start).take(width).copied());
    Table { rows: table.rows, cols: width, values: rows.collect() }
}

/// The log-probability of a token stands where its predecessor does: logits at t are of token t + 1.
fn loss_from_logits(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let (b, length, vocab) = logits.dims3()?;
    let width = length.saturating_sub(1);
    let ids = columns(&case.table("tokens")?, 1, width).values.iter().map(|&x| x as u32).collect();
    let mask = columns(&case.table("turn_mask")?, 1, width);
    let flat = logits.as_tensor().narrow(1, 0, width)?.reshape((b * width, vocab))?;
    let ids: Tensor = Tensor::from_vec::<_, u32>(ids, b * width, &Device::Cpu)?;
    let temperature = case.param::<f64>("temperature")? + case.param::<f64>("temperature_eps")?;
    let TokenScores { log_probs, .. } = token_scores(&flat, &ids, temperature)?;
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.reshape((b, width))?)?
        .with(OLD_SEQUENCE_LOG_PROBS, case.numbers("old_seq_log_probs")?)?
        .with(REWARDS, [case.numbers("chosen_returns")?, case.numbers("rejected_returns")?].concat())?
        .with(PAIR_IDS, halves(b / 2))?;
    let block = RelativeRegression { eta: case.param("eta")?, presummed: true };
    let objective = Objective::new(block, Aggregation::TokenMean);
    let signals = Signals::new(batch.mask().filled(0.0));
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("seq_log_probs", row_sum_numbers(&batch, LOG_PROBS)?),
        ("grad_logits", gradient(&parts.loss, &logits)?),
    ]))
}

fn returns(case: &Case) -> Outcome {
    let (tokens, turn) = (case.table("tokens")?, case.table("turn_mask")?);
    let end = case.param("eos_token_id")?;
    let ids = |row: &[f64]| row.iter().map(|&x| x as u64).collect::<Vec<_>>();
    let ended: Vec<bool> =
        tokens.iter().zip(turn.iter()).map(|(row, mask)| turn_ends(&ids(row), mask, end)).collect();
    let block = TurnReturn {
        kl_coef: case.param("kl_coef")?,
        penalty: case.param("penalty")?,
        whiten: case.param("whiten")?,
        shift_mean: case.param("shift_mean")?,
    };
    let scores = case.numbers("scores")?;
    let mut batch = Batch::new(columns(&turn, 1, turn.cols.saturating_sub(1)))
        .with(OLD_LOG_PROBS, case.tensor("log_probs")?)?
        .with(REF_LOG_PROBS, case.tensor("ref_log_probs")?)?
        .with(REWARDS, scores.clone())?
        .with(TRUNCATED, ended.iter().map(|&e| f64::from(u8::from(!e))).collect::<Vec<_>>())?;
    let old = row_sum_numbers(&batch, OLD_LOG_PROBS)?;
    let kl = old.iter().zip(row_sum_numbers(&batch, REF_LOG_PROBS)?).map(|(o, r)| o - r).collect();
    block.shape(&mut batch, &mut State::default())?;
    Ok(Outputs::from([
        ("scores_after_penalty", block.penalised(&scores, &ended)),
        ("kl", kl),
        ("returns", batch.numbers(REWARDS)?),
    ]))
}

fn select_pairs(case: &Case) -> Outcome {
    let (first, second) = (case.table("rewards_first")?, case.table("rewards_second")?);
    let horizons = case.whole("horizon_turn")?;
    let mut chosen = Vec::new();
    for ((first, second), &horizon) in first.iter().zip(second.iter()).zip(&horizons) {
        chosen.push(compare(first, second, horizon as usize)?);
    }
    Ok(Outputs::from([
        ("chosen_is_second", chosen.iter().map(|c| f64::from(u8::from(c.second))).collect()),
        ("train_turn", case.numbers("branch_turn")?),
        ("chosen_return", chosen.iter().map(|c| c.chosen_return).collect()),
        ("rejected_return", chosen.iter().map(|c| c.rejected_return).collect()),
        ("dialogue_messages_kept", chosen.iter().map(|c| c.messages as f64).collect()),
    ]))
}

/// Names of the outputs of every turn.
const TURNS: [(&str, &str); 8] = [
    ("tokens_turn0", "mask_turn0"),
    ("tokens_turn1", "mask_turn1"),
    ("tokens_turn2", "mask_turn2"),
    ("tokens_turn3", "mask_turn3"),
    ("tokens_turn4", "mask_turn4"),
    ("tokens_turn5", "mask_turn5"),
    ("tokens_turn6", "mask_turn6"),
    ("tokens_turn7", "mask_turn7"),
];

fn turn_masks(case: &Case) -> Outcome {
    let format = ChatFormat {
        user_header: case.param("user_header")?,
        assistant_header: case.param("assistant_header")?,
        end: case.param("end")?,
        pad: case.param("pad")?,
    };
    let messages = case.inputs.get("messages").cloned().unwrap_or_default();
    let messages: Vec<Vec<u64>> =
        serde_json::from_value(messages).map_err(|e| Failure::Missing(format!("inputs.messages: {e}")))?;
    let mut outputs = Outputs::new();
    for (turn, (tokens_name, mask_name)) in TURNS.iter().enumerate().take(messages.len() / 2) {
        let (tokens, mask) = turn_tokens(&messages, turn, &format, case.param("max_len")?)?;
        outputs.insert(tokens_name, tokens.iter().map(|&x| x as f64).collect());
        outputs.insert(mask_name, mask.iter().map(|&x| x as f64).collect());
    }
    Ok(outputs)
}
