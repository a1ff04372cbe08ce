//! Cases of `igpo_info.json`.

use super::arpo_agentic::{clip, input, policy_loss};
use super::case::{Case, Failure, Outcome, Outputs};
use crate::batch::{Batch, GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals, TOKEN_REWARDS};
use crate::block::Advantage;
use crate::papers::igpo_info::{
    GainOf, InformationGain, Metric, SEQUENCE_MASK, TurnReturns, belief, outcome, position_wise,
};
use crate::state::State;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" if case.inputs.contains_key("solutions") => outcomes(case),
        "reward" => gains(case),
        "advantages" if case.params.contains_key("norm_mode") => advantages(case),
        "advantages" => early(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of igpo_info"))),
    }
}

fn gains(case: &Case) -> Outcome {
    let shape = case.shape("gt_token_log_probs")?;
    let [_, turns, width] = shape[..] else {
        return Err(Failure::Missing("gt_token_log_probs [B, K, La]".into()));
    };
    let (log_probs, masks) = (case.numbers("gt_token_log_probs")?, case.table("gt_mask")?);
    let mut out = Outputs::new();
    for (row, log_probs) in log_probs.chunks(turns * width).enumerate() {
        let beliefs = log_probs.chunks(width).map(|turn| belief(turn, masks.row(row)));
        let beliefs = beliefs.collect::<Result<Vec<f64>, _>>()?;
        out.entry("gt_prob").or_default().extend(beliefs.iter().map(|b| b.exp()));
        for (name, of) in [("prob_diff", GainOf::ProbDiff), ("log_prob_diff", GainOf::LogProbDiff)] {
            out.entry(name).or_default().extend(InformationGain { of, clip: 0.0 }.gains(&beliefs));
        }
        out.entry("mean_gt_log_prob").or_default().extend(beliefs);
    }
    Ok(out)
}

fn outcomes(case: &Case) -> Outcome {
    let solutions: Vec<String> = input(case, "solutions")?;
    let references: Vec<String> = input(case, "ground_truths")?;
    let all = |metric| {
        let of = |(solution, references): (&String, &String)| {
            outcome(solution, &references.split("<|answer_split|>").collect::<Vec<_>>(), metric)
        };
        solutions.iter().zip(&references).map(of).collect::<Vec<f64>>()
    };
    Ok(Outputs::from([
        ("f1", all(Metric::F1)),
        ("em", all(Metric::ExactMatch)),
        ("noformatf1", all(Metric::F1WithoutFormat)),
    ]))
}

fn advantages(case: &Case) -> Outcome {
    let settings = TurnReturns {
        norm: case.param("norm_mode")?,
        gamma: case.param("gamma")?,
        epsilon: case.param("epsilon")?,
        variance_floor: case.param("variance_floor")?,
        by_std: case.param("norm_adv_by_std")?,
        outcome_weight: case.param("curriculum_outcome_weight")?,
        gain_weight: case.param("curriculum_ig_weight")?,
        zero_ends_no_turn: true, // as the authors' code
    };
    let mask = case.table("response_mask")?;
    let batch = Batch::new(mask.clone())
        .with(SEQUENCE_MASK, mask)?
        .with(TOKEN_REWARDS, case.table("token_level_rewards")?)?
        .with(GROUP_IDS, case.whole("group_ids")?)?;
    Ok(Outputs::from([("advantages", settings.advantages(&batch, &mut State::default())?.values)]))
}

fn early(case: &Case) -> Outcome {
    let (rewards, mask) = (case.table("token_level_rewards")?, case.table("response_mask")?);
    let out = position_wise(&rewards, &mask, &case.whole("group_ids")?, case.param("gamma")?)?;
    Ok(Outputs::from([("advantages", out.values)]))
}

fn loss(case: &Case) -> Outcome {
    let log_probs = case.var("log_probs")?;
    let batch = Batch::new(case.table("policy_mask")?)
        .with(LOG_PROBS, log_probs.as_tensor().clone())?
        .with(OLD_LOG_PROBS, case.tensor("old_log_probs")?)?
        .with(REF_LOG_PROBS, case.tensor("ref_log_probs")?)?;
    let signals = Signals::new(case.table("advantages")?);
    policy_loss(case, clip(case)?, &log_probs, &batch, &signals)
}
