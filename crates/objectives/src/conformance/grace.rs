//! Cases of `grace.json`.

use super::arpo_agentic::{clip, group, policy_loss};
use super::case::{Case, Failure, Outcome, Outputs};
use crate::batch::{Batch, EMBEDDINGS, GROUP_IDS, REWARDS, Signals, TRUNCATED};
use crate::block::{Advantage, Reward};
use crate::papers::grace::{Contrastive, QUERY_EMBEDDINGS, Supervision, pool};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "embedding" => embedding(case),
        "reward" if case.inputs.contains_key("neg_emb") => supervised(case),
        "reward" => unsupervised(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of grace"))),
    }
}

/// Rows of a [B, E] input.
fn rows(case: &Case, name: &str) -> Result<Vec<Vec<f64>>, Failure> {
    Ok(case.table(name)?.iter().map(<[f64]>::to_vec).collect())
}

fn pooled(case: &Case, hidden: &str, mask: &str, skip: usize) -> Result<Vec<Vec<f64>>, Failure> {
    let shape = case.shape(hidden)?;
    let [_, length, width] = shape[..] else { return Err(Failure::Missing(format!("{hidden} [B, S, D]"))) };
    let (hidden, mask) = (case.numbers(hidden)?, case.table(mask)?);
    let sequences = hidden.chunks(length * width).zip(mask.iter());
    let pooled = sequences.map(|(states, mask)| {
        let states: Vec<Vec<f64>> = states.chunks(width).map(<[f64]>::to_vec).collect();
        pool(&states, mask, skip)
    });
    Ok(pooled.collect::<Result<_, _>>()?)
}

fn embedding(case: &Case) -> Outcome {
    let of = |skip| pooled(case, "hidden_states", "attention_mask", skip);
    Ok(Outputs::from([
        ("pooled_excluding_system", of(case.param("system_prompt_tokens")?)?.concat()),
        ("pooled_all", of(0)?.concat()),
    ]))
}

fn settings(case: &Case, supervision: Supervision) -> Result<Contrastive, Failure> {
    let standard = Contrastive::default();
    Ok(Contrastive {
        supervision,
        temperature: case.param("temperature")?,
        consistency_weight: case.param("clustering_weight")?,
        cross_weight: case.param("cross_group_weight")?,
        length_penalty: case.param::<Option<f64>>("length_penalty")?.unwrap_or(standard.length_penalty),
        ..standard
    })
}

fn supervised(case: &Case) -> Outcome {
    let settings = settings(case, Supervision::Supervised)?;
    let (main, query, negative) = (rows(case, "main_emb")?, rows(case, "query_emb")?, rows(case, "neg_emb")?);
    let out = settings.rewards(&main, &query, &negative, &case.whole("group_ids")?)?;
    Ok(Outputs::from([
        ("reward_unscaled", out.reward.iter().map(|r| r * settings.temperature).collect()),
        ("reward", out.reward),
        ("positive", out.positive),
        ("negative", out.negative),
        ("consistency", out.consistency),
        ("hard_negative", out.cross),
    ]))
}

fn unsupervised(case: &Case) -> Outcome {
    let settings = settings(case, Supervision::Unsupervised)?;
    let main = pooled(case, "main_hidden_states", "attention_mask", 0)?;
    let query = pooled(case, "query_hidden_states", "query_attention_mask", 0)?;
    // Equal prompts are one group, in order of appearance.
    let prompts = case.table("prompts")?;
    let same = |a: &[f64]| prompts.iter().position(|b| a == b).unwrap_or_default() as u64;
    let first: Vec<u64> = prompts.iter().map(same).collect();
    let mut known = first.clone();
    known.sort_unstable();
    known.dedup();
    let groups: Vec<u64> =
        first.iter().map(|g| known.iter().position(|k| k == g).unwrap_or_default() as u64).collect();
    let (responses, attention) = (case.table("responses")?, case.table("attention_mask")?);
    let window = responses.cols;
    let valid = |i: usize| &attention.row(i)[attention.cols.saturating_sub(window)..];
    let end = case.param::<f64>("eos_token_id")?;
    let last = |i: usize| valid(i).iter().rposition(|&m| m != 0.0);
    let cut = |i: usize| last(i).is_some_and(|t| t + 1 == window && responses.row(i)[t] != end);
    let truncated: Vec<f64> = (0..responses.rows).map(|i| f64::from(u8::from(cut(i)))).collect();
    let mut batch = Batch::new(responses.filled(1.0))
        .with(EMBEDDINGS, main.clone())?
        .with(QUERY_EMBEDDINGS, query.clone())?
        .with(GROUP_IDS, groups.clone())?
        .with(TRUNCATED, truncated)?;
    settings.shape(&mut batch, &mut State::default())?;
    let mut placed = responses.filled(0.0);
    for (i, reward) in batch.numbers(REWARDS)?.into_iter().enumerate() {
        if let Some(t) = last(i) {
            placed.values[i * window + t] = reward;
        }
    }
    let out = settings.rewards(&main, &query, &[], &groups)?;
    Ok(Outputs::from([
        ("token_level_rewards", placed.values),
        ("total_before_length_rule", out.reward),
        ("positive", out.positive),
        ("consistency", out.consistency),
        ("other_group_similarity", out.cross),
        ("group_ids", groups.iter().map(|&g| g as f64).collect()),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mut batch, _) = case.policy_batch()?;
    batch.set(REWARDS, case.numbers("rewards")?)?;
    batch.set(GROUP_IDS, case.whole("group_ids")?)?;
    let advantages: Table = group(case)?.advantages(&batch, &mut State::default())?;
    let mut out = policy_loss(case, clip(case)?, &log_probs, &batch, &Signals::new(advantages.clone()))?;
    out.insert("advantages", advantages.values);
    Ok(out)
}
