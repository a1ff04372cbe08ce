//! Cases of `inpo.json`: the loss, exact steps of the game, the tournament.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::PAIR_IDS;
use crate::objective::Objective;
use crate::pairs::{Pairs, halves};
use crate::papers::inpo::{NashPairs, PreferenceGame, select_pair};
use crate::state::State;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        "omd_iterates" => iterates(case),
        "population_loss" => population_loss(case),
        "select_pair" => selection(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of inpo"))),
    }
}

fn loss(case: &Case) -> Outcome {
    let block = NashPairs { eta: case.param("eta")?, tau_over_eta: case.param("tau_over_eta")? };
    let (log_probs, mut batch, signals) = case.policy_batch()?;
    batch.set(PAIR_IDS, halves(batch.rows() / 2))?;
    let margins = block.margins(&batch, &Pairs::of(&batch)?)?;
    let per_pair = block.squared_error(&margins)?;
    let objective = Objective::new(block, Aggregation::TokenMean);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("per_pair_loss", values(&per_pair)?),
        ("h", values(&margins)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
    ]))
}

fn game(case: &Case) -> Result<PreferenceGame, Failure> {
    let beats = case.table("preference_matrix")?;
    Ok(PreferenceGame::new(beats, case.numbers("ref_probs")?, case.param("tau")?)?)
}

fn iterates(case: &Case) -> Outcome {
    let game = game(case)?;
    let mut policy = game.reference.clone();
    let (mut policies, mut gaps) = (policy.clone(), vec![game.duality_gap(&policy)?]);
    for _ in 0..case.param::<usize>("iterations")? {
        policy = game.mirror_step(&policy, case.param("eta")?)?;
        policies.extend(&policy);
        gaps.push(game.duality_gap(&policy)?);
    }
    Ok(Outputs::from([("policies", policies), ("duality_gap", gaps)]))
}

fn population_loss(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let loss =
        game(case)?.population_loss(logits.as_tensor(), &case.numbers("old_probs")?, case.param("eta")?)?;
    Ok(Outputs::from([("loss", values(&loss)?), ("grad_logits", gradient(&loss, &logits)?)]))
}

fn selection(case: &Case) -> Outcome {
    let (k, beats) = (case.param("k")?, case.table("preference_matrix")?);
    if (beats.rows, beats.cols) != (k, k) {
        return Err(Failure::Missing("inputs.preference_matrix of size [k, k]".into()));
    }
    let chosen = select_pair(k, &|a, b| beats.values[a * k + b])?;
    Ok(Outputs::from([
        ("winner", vec![chosen.winner as f64]),
        ("loser", vec![chosen.loser as f64]),
        ("queries", chosen.queries.iter().flat_map(|&(a, b)| [a as f64, b as f64]).collect()),
        ("kept", vec![f64::from(u8::from(chosen.kept))]),
    ]))
}
