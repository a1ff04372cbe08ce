//! Cases of `lspo.json`.

use candle_core::Tensor;
use serde_json::Value;

use super::arpo_agentic::input;
use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, Signals};
use crate::objective::Objective;
use crate::papers::lspo::{
    LatentDpo, MatrixCfr, RegretWeighting, k_means, preference, regret_loss, regret_matching,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "latent_space" => latent_space(case),
        "policy" => {
            let policies = case.table("regrets")?.iter().flat_map(regret_matching).collect();
            Ok(Outputs::from([("policy", policies)]))
        }
        "cfr" => cfr(case),
        "loss" if case.inputs.contains_key("features") => regression(case),
        "loss" => dpo(case),
        "data" => data(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of lspo"))),
    }
}

fn rows(case: &Case, name: &str) -> Result<Vec<Vec<f64>>, Failure> {
    Ok(case.table(name)?.iter().map(<[f64]>::to_vec).collect())
}

fn latent_space(case: &Case) -> Outcome {
    let space = k_means(&rows(case, "embeddings")?, &rows(case, "initial_centers")?, usize::MAX)?;
    Ok(Outputs::from([
        ("centers", space.centres.concat()),
        ("labels", space.labels.iter().map(|&l| l as f64).collect()),
        ("inertia", vec![space.inertia]),
        ("iterations", vec![space.iterations as f64]),
    ]))
}

fn cfr(case: &Case) -> Outcome {
    let payoffs = case.table("payoff_player1")?;
    let start = |actions: usize, at: usize, name: &str| -> Result<Vec<f64>, Failure> {
        let mut regrets = vec![0.0; actions];
        if let Some(regret) = regrets.get_mut(at) {
            *regret = case.param::<Option<f64>>(name)?.unwrap_or(0.0);
        }
        Ok(regrets)
    };
    let regrets = [
        start(payoffs.rows, 0, "init_regret_player1_action0")?,
        start(payoffs.cols, 1, "init_regret_player2_action1")?,
    ];
    let mut cfr = MatrixCfr::new(rows(case, "payoff_player1")?, regrets)?;
    (0..case.param::<usize>("iterations")?).for_each(|_| cfr.step());
    let average = cfr.average_policies();
    let exploitability = cfr.exploitability(&average);
    let ([first, second], [regrets1, regrets2]) = (average, cfr.regrets);
    Ok(Outputs::from([
        ("regrets1", regrets1),
        ("regrets2", regrets2),
        ("average_policy1", first),
        ("average_policy2", second),
        ("exploitability_sum", vec![exploitability]),
    ]))
}

fn regression(case: &Case) -> Outcome {
    let (features, weight, bias) = (case.tensor("features")?, case.var("weight")?, case.var("bias")?);
    let (targets, legal) = (case.table("regret_targets")?, case.table("legal_mask")?);
    let iterations = case.numbers("iteration_index")?;
    let mut out = Outputs::new();
    for (weighting, names) in [
        (RegretWeighting::Uniform, ["loss_uniform", "grad_weight_uniform", "grad_bias_uniform"]),
        (RegretWeighting::Linear, ["loss_linear", "grad_weight_linear", "grad_bias_linear"]),
    ] {
        let predictions = features.matmul(weight.as_tensor())?.broadcast_add(bias.as_tensor())?;
        let loss = regret_loss(&predictions, &targets, &legal, &iterations, weighting)?;
        out.insert(names[0], values(&loss)?);
        out.insert(names[1], gradient(&loss, &weight)?);
        out.insert(names[2], gradient(&loss, &bias)?);
    }
    Ok(out)
}

fn data(case: &Case) -> Outcome {
    let nodes: Vec<Value> = input(case, "nodes")?;
    let number = |x: &Value| x.as_f64().or_else(|| x.as_str()?.parse().ok());
    let list = |node: &Value, name: &str| -> Option<Vec<f64>> {
        node.get(name)?.as_array()?.iter().map(number).collect()
    };
    let mut out = Vec::new();
    for node in &nodes {
        let missing = || Failure::Missing("inputs.nodes".into());
        let ids = list(node, "candidate_latent_ids").ok_or_else(missing)?;
        let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let pair = preference(&ids, &list(node, "regrets").ok_or_else(missing)?, 0.0)?;
        out.extend(pair.into_iter().flat_map(|(chosen, rejected)| [chosen as f64, rejected as f64]));
    }
    Ok(Outputs::from([("chosen_rejected", out)]))
}

fn dpo(case: &Case) -> Outcome {
    let (chosen, rejected) = (case.var("chosen_log_probs")?, case.var("rejected_log_probs")?);
    let (good, bad) = (case.table("chosen_mask")?, case.table("rejected_mask")?);
    let pairs = good.rows as u64;
    let mask = Table { rows: 2 * good.rows, cols: good.cols, values: [good.values, bad.values].concat() };
    let reference =
        Tensor::cat(&[case.tensor("ref_chosen_log_probs")?, case.tensor("ref_rejected_log_probs")?], 0)?;
    let batch = Batch::new(mask)
        .with(LOG_PROBS, Tensor::cat(&[chosen.as_tensor(), rejected.as_tensor()], 0)?)?
        .with(REF_LOG_PROBS, reference)?
        .with(PAIR_IDS, (0..pairs).chain(0..pairs).collect::<Vec<u64>>())?;
    let smoothing = case.param::<Option<f64>>("label_smoothing")?.unwrap_or(0.0);
    let dpo = LatentDpo { beta: case.param("beta")?, label_smoothing: smoothing };
    let objective = Objective::new(dpo, Aggregation::TokenMean);
    let signals = Signals::new(batch.mask().filled(0.0));
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    let outcome = dpo.pairs(&batch)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("per_pair_loss", values(&outcome.loss)?),
        ("chosen_rewards", outcome.chosen_rewards),
        ("rejected_rewards", outcome.rejected_rewards),
        ("grad_chosen_log_probs", gradient(&parts.loss, &chosen)?),
        ("grad_rejected_log_probs", gradient(&parts.loss, &rejected)?),
    ]))
}
