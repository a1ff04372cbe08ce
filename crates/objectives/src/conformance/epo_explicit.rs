//! Cases of `epo_explicit.json`.

use candle_core::{Tensor, Var};
use efference_ops::{TokenScores, token_scores};
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, flat, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, LOG_PROBS, Signals, TURN_IDS};
use crate::objective::Objective;
use crate::papers::epo_explicit::{
    TURN_SCORES, TurnLikelihood, discounted, max_abs_normalised, process_rewards, token_weights,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" => rewards(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of epo_explicit"))),
    }
}

fn rewards(case: &Case) -> Outcome {
    let gamma = case.param("gamma")?;
    let missing = || Failure::Missing("inputs.episodes".into());
    let episodes = case.inputs.get("episodes").and_then(Value::as_array).ok_or_else(missing)?;
    let (mut raw, mut returns, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for episode in episodes {
        let field = |name: &str| episode.get(name).and_then(flat).ok_or_else(missing);
        let number = |name: &str| field(name)?.first().copied().ok_or_else(missing);
        // Strategies stand at the odd places of the transcript.
        let turn = |message: f64| (message as usize).saturating_sub(1) / 2;
        let mut critical = vec![false; turn(number("last_turn_index")?) + 1];
        for message in field("critical_turn_message_indexes")? {
            *critical.get_mut(turn(message)).ok_or_else(missing)? = true;
        }
        let rewards = process_rewards(&critical, number("episode_score")?, number("score_divisor")?);
        let back = discounted(&rewards, gamma);
        scores.extend(max_abs_normalised(&back));
        raw.extend(rewards);
        returns.extend(back);
    }
    Ok(Outputs::from([("raw_process_rewards", raw), ("discounted", returns), ("turn_scores", scores)]))
}

/// Position t of the logits predicts label t + 1; a turn is a run of labels, counted before that shift.
fn loss(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let (b, t, v) = logits.dims3()?;
    let ignored: f64 = case.param("ignore_index")?;
    let labels = case.table("labels")?;
    let mut turns = Table { rows: b, cols: t, values: vec![-1.0; b * t] };
    let mut counts = vec![0.0; b];
    for (row, count) in counts.iter_mut().enumerate() {
        for i in 0..t {
            let valid = |i: usize| labels.values[row * t + i] != ignored;
            if valid(i) {
                *count += f64::from(u8::from(i == 0 || !valid(i - 1)));
                turns.values[row * t + i] = *count - 1.0;
            }
        }
    }
    let shifted = |x: &Table| Table {
        rows: b,
        cols: t - 1,
        values: (0..b).flat_map(|row| x.row(row)[1..].to_vec()).collect(),
    };
    let (labels, turns) = (shifted(&labels), shifted(&turns));
    let mask = Table {
        values: labels.values.iter().map(|&l| f64::from(u8::from(l != ignored))).collect(),
        ..labels
    };
    let pad: f64 = -100.0;
    let scores: Vec<Vec<f64>> = case
        .table("turn_scores")?
        .iter()
        .map(|row| row.iter().copied().filter(|&w| w != pad).collect())
        .collect();
    let ids: Vec<u32> = labels.values.iter().map(|&l| if l == ignored { 0 } else { l as u32 }).collect();
    let ids = Tensor::from_vec(ids, b * (t - 1), logits.device())?;
    let flat = logits.as_tensor().narrow(1, 0, t - 1)?.reshape((b * (t - 1), v))?;
    let TokenScores { log_probs, .. } = token_scores(&flat, &ids, 1.0)?;
    let log_probs = log_probs.reshape((b, t - 1))?;
    let weights = token_weights(&turns, &mask, &scores)?;
    let objective = Objective::new(TurnLikelihood::default(), Aggregation::SeqMeanTokenMean);
    let total = |log_probs: &Tensor| -> Result<Tensor, Failure> {
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, log_probs.clone())?
            .with(TURN_IDS, turns.clone())?
            .with(TURN_SCORES, scores.clone())?;
        let signals = Signals::new(mask.filled(0.0));
        Ok(objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?.loss)
    };
    let loss = total(&log_probs)?;
    let free = Var::from_tensor(&log_probs.detach())?;
    Ok(Outputs::from([
        ("num_turns", counts),
        ("shifted_log_probs", values(&log_probs)?),
        ("token_weights", weights.values),
        ("loss", values(&loss)?),
        ("grad_logits", gradient(&loss, &logits)?),
        ("grad_log_probs", gradient(&total(free.as_tensor())?, &free)?),
    ]))
}
