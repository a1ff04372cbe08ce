//! Cases of `tspo.json`.

use candle_core::{Tensor, Var};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, LOG_PROBS, REWARDS};
use crate::objective::Objective;
use crate::papers::tspo::agent::{
    Linear, Position, TemporalAgent, log_softmax, positional_encoding, window_mask,
};
use crate::papers::tspo::frames::{AdaptiveKeyframes, SetLogProb, bin_max, gumbel_top_k, haystack, top_k};
use crate::papers::tspo::{
    AnswerAndLocation, LetterRule, OnPolicyRatio, answer_reward, located_share, score_temperature,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "positional_encoding" => {
            let pe = positional_encoding(case.param("T")?, case.param("C")?, Position::Fraction);
            Ok(Outputs::from([("pe", pe.values)]))
        }
        "window_mask" => {
            let mask = window_mask(case.param("T")?, case.param("window")?);
            Ok(Outputs::from([("mask", mask.values)]))
        }
        "agent_forward" => agent(case),
        "sample" => sample(case),
        "reward" => reward(case),
        "loss" => loss(case),
        "schedule" => schedule(case),
        "select" => select(case),
        "build_haystack" => build_haystack(case),
        "ordered_log_prob" => ordered_log_prob(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of tspo"))),
    }
}

/// The authors' names of the layers, and the layers.
fn agent(case: &Case) -> Outcome {
    const NAMES: [[&str; 4]; 5] = [
        [
            "temporal.Self_q.weight",
            "temporal.Self_q.bias",
            "grad_temporal.Self_q.weight",
            "grad_temporal.Self_q.bias",
        ],
        [
            "temporal.Self_k.weight",
            "temporal.Self_k.bias",
            "grad_temporal.Self_k.weight",
            "grad_temporal.Self_k.bias",
        ],
        [
            "temporal.Self_v.weight",
            "temporal.Self_v.bias",
            "grad_temporal.Self_v.weight",
            "grad_temporal.Self_v.bias",
        ],
        ["mlp.0.weight", "mlp.0.bias", "grad_mlp.0.weight", "grad_mlp.0.bias"],
        ["mlp.2.weight", "mlp.2.bias", "grad_mlp.2.weight", "grad_mlp.2.bias"],
    ];
    let mut vars: Vec<(Var, Var)> = Vec::new();
    for [weight, bias, ..] in NAMES {
        vars.push((case.var(weight)?, case.var(bias)?));
    }
    let layer = |i: usize| -> Linear {
        let (weight, bias) = &vars[i];
        Linear { weight: weight.as_tensor().clone(), bias: bias.as_tensor().clone() }
    };
    let agent = TemporalAgent {
        query: layer(0),
        key: layer(1),
        value: layer(2),
        hidden: layer(3),
        output: layer(4),
        heads: case.param("heads")?,
        window: case.param("window")?,
        position: Position::Fraction,
    };
    let (frames, question) = (case.tensor("image_features")?, case.tensor("text_feature")?);
    let scores = agent.scores(&frames, &question, &case.tensor("clip_scores")?, case.param("score_tau")?)?;
    let selected: Vec<usize> = case.param("selected")?;
    let loss = SetLogProb::Marginal.log_probs(&scores, &[selected])?.sum_all()?;
    let mut out =
        Outputs::from([("scores", values(&scores)?), ("log_probs", values(&log_softmax(&scores)?)?)]);
    for ([.., grad_weight, grad_bias], (weight, bias)) in NAMES.iter().zip(&vars) {
        out.insert(grad_weight, gradient(&loss, weight)?);
        out.insert(grad_bias, gradient(&loss, bias)?);
    }
    Ok(out)
}

fn sample(case: &Case) -> Outcome {
    let scores = case.numbers("logits")?;
    let chosen =
        gumbel_top_k(&scores, &case.numbers("gumbel")?, case.param("k")?, case.param("gumbel_tau")?)?;
    let log_probs = log_softmax(&case.tensor("logits")?)?;
    Ok(Outputs::from([("indices", whole(&chosen)), ("log_probs", values(&log_probs)?)]))
}

fn whole(indices: &[usize]) -> Vec<f64> {
    indices.iter().map(|&i| i as f64).collect()
}

fn selected(case: &Case) -> Result<Vec<Vec<usize>>, Failure> {
    Ok(case.table("selected")?.iter().map(|row| row.iter().map(|&x| x as usize).collect()).collect())
}

fn reward(case: &Case) -> Outcome {
    let (responses, solutions): (Vec<String>, Vec<String>) =
        (case.input("responses")?, case.input("solutions")?);
    let needle: Vec<bool> = case.numbers("needle_mask")?.iter().map(|&x| x != 0.0).collect();
    let right: Vec<f64> = responses
        .iter()
        .zip(&solutions)
        .map(|(r, s)| answer_reward(r, s, LetterRule::FirstStanding))
        .collect();
    let located =
        selected(case)?.iter().map(|frames| located_share(frames, &needle)).collect::<Result<Vec<_>, _>>()?;
    let total = |specific: bool| {
        let block = AnswerAndLocation::default();
        right.iter().zip(&located).map(|(&a, &l)| block.reward(a, l, specific)).collect()
    };
    Ok(Outputs::from([
        ("total_needle", total(true)),
        ("total_general", total(false)),
        ("accuracy", right.clone()),
        ("locating", located),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let rewards = case.numbers("rewards")?;
    let norm =
        GroupNorm { epsilon: case.param("std_epsilon")?, spread: Spread::Unbiased, ..GroupNorm::default() };
    let objective = Objective {
        advantage: Some(Box::new(norm)),
        ..Objective::new(OnPolicyRatio::default(), Aggregation::SeqMeanTokenMean)
    };
    let run = |log_probs: &Tensor| -> Result<(Tensor, Table), Failure> {
        let (rows, cols) = log_probs.dims2()?;
        let batch = Batch::new(Table { rows, cols, values: vec![1.0; rows * cols] })
            .with(LOG_PROBS, log_probs.clone())?
            .with(REWARDS, rewards.clone())?
            .with(GROUP_IDS, vec![0; rows])?;
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state)?;
        let parts = objective.loss(&ready.batch, &ready.signals, &ready.batch.normaliser(), &state)?;
        Ok((parts.loss, ready.signals.advantages))
    };
    let log_probs = case.var("log_probs")?;
    let (loss, advantages) = run(log_probs.as_tensor())?;
    let logits = case.var("logits")?;
    let (through, _) = run(&SetLogProb::Marginal.log_probs(logits.as_tensor(), &selected(case)?)?)?;
    Ok(Outputs::from([
        ("advantages", advantages.iter().map(|row| row.first().copied().unwrap_or(0.0)).collect()),
        ("loss", values(&loss)?),
        ("grad_log_probs", gradient(&loss, &log_probs)?),
        ("grad_logits", gradient(&through, &logits)?),
    ]))
}

fn schedule(case: &Case) -> Outcome {
    let (start, floor, max_steps) =
        (case.param("score_tau")?, case.param("floor")?, case.param("max_steps")?);
    let steps = case.numbers("steps")?;
    let tau = steps.into_iter().map(|step| score_temperature(step, max_steps, start, floor)).collect();
    Ok(Outputs::from([("tau", tau)]))
}

fn select(case: &Case) -> Outcome {
    let (scores, k) = (case.numbers("scores")?, case.param("k")?);
    let aks = AdaptiveKeyframes {
        peak_above: case.param("aks_t1")?,
        spread_above: case.param("aks_t2")?,
        depth: case.param("aks_depth")?,
    };
    Ok(Outputs::from([
        ("topk", whole(&top_k(&scores, k))),
        ("bin_max", whole(&bin_max(&scores, k))),
        ("aks", whole(&aks.select(&scores, k))),
    ]))
}

fn build_haystack(case: &Case) -> Outcome {
    let slots: Vec<bool> = case.numbers("slot_is_true")?.iter().map(|&x| x != 0.0).collect();
    let (trues, wrongs): (Vec<Vec<f64>>, Vec<Vec<f64>>) =
        (case.input("frame_ids_true")?, case.input("frame_ids_wrong")?);
    let (frames, needle) = haystack(&slots, &trues, &wrongs)?;
    let needle = needle.iter().map(|&n| f64::from(u8::from(n))).collect();
    Ok(Outputs::from([("frame_ids", frames), ("needle_mask", needle)]))
}

fn ordered_log_prob(case: &Case) -> Outcome {
    let logits = case.var("logits")?;
    let order = case.whole("order")?.into_iter().map(|i| i as usize).collect();
    let log_prob = SetLogProb::PlackettLuce.log_probs(logits.as_tensor(), &[order])?.sum_all()?;
    Ok(Outputs::from([("log_prob", values(&log_prob)?), ("grad_logits", gradient(&log_prob, &logits)?)]))
}
