//! Cases of `gigpo.json`.

use std::collections::BTreeMap;

use super::arpo_agentic::{clip, input, policy_loss};
use super::case::{Case, Failure, Outcome, Outputs};
use crate::batch::{Batch, GROUP_IDS, REWARDS};
use crate::block::{Advantage, Reward};
use crate::papers::gigpo::{
    ANCHORS, GroupInGroup, INVALID_ACTIONS, STEP_RETURNS, STEP_REWARDS, StepReturns, TRAJ_IDS,
    discounted_returns, similarity, step_groups,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "loss" => {
            let (log_probs, batch, signals) = case.policy_batch()?;
            policy_loss(case, clip(case)?, &log_probs, &batch, &signals)
        }
        "grouping" => grouping(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of gigpo"))),
    }
}

/// Names as numbers, in order of appearance.
fn ids(case: &Case, name: &str) -> Result<Vec<u64>, Failure> {
    let names: Vec<serde_json::Value> = input(case, name)?;
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    Ok(names
        .iter()
        .map(|name| {
            let next = known.len() as u64;
            *known.entry(name.to_string()).or_insert(next)
        })
        .collect())
}

fn advantages(case: &Case) -> Outcome {
    let (groups, trajectories) = (ids(case, "group_ids")?, ids(case, "traj_ids")?);
    // Texts as they are, because similarity counts characters; arrays and records as JSON.
    let text = |x: &serde_json::Value| x.as_str().map_or_else(|| x.to_string(), String::from);
    let anchors: Vec<String> = input::<Vec<serde_json::Value>>(case, "anchors")?.iter().map(text).collect();
    let returns =
        StepReturns { gamma: case.param("gamma")?, invalid_penalty: case.param("invalid_action_penalty")? };
    let mut batch = Batch::new(case.table("response_mask")?)
        .with(REWARDS, case.numbers("episode_rewards")?)?
        .with(STEP_REWARDS, case.numbers("step_env_rewards")?)?
        .with(INVALID_ACTIONS, case.numbers("invalid_action")?)?
        .with(GROUP_IDS, groups.clone())?
        .with(TRAJ_IDS, trajectories.clone())?
        .with(ANCHORS, anchors.clone())?;
    let plain = discounted_returns(&batch.numbers(STEP_REWARDS)?, &trajectories, returns.gamma)?;
    returns.shape(&mut batch, &mut State::default())?;
    // Token rewards hold what is left of the episode's reward after the penalty.
    batch.set(REWARDS, case.table("token_level_rewards")?.row_sums())?;
    let settings = GroupInGroup {
        mode: case.param("mode")?,
        step_weight: case.param("step_advantage_w")?,
        epsilon: case.param("epsilon")?,
        per_trajectory: false,
        similarity: case.param::<Option<f64>>("similarity_thresh")?.unwrap_or(0.0),
    };
    let scores = batch.outcomes()?;
    let spread = |x: &[f64]| Ok::<_, Failure>(Table::broadcast(x, batch.mask())?.values);
    let of_paper = GroupInGroup { per_trajectory: true, ..settings };
    let steps = step_groups(&anchors, &groups, settings.similarity)?;
    let step_returns = batch.numbers(STEP_RETURNS)?;
    Ok(Outputs::from([
        ("discounted_returns", plain),
        ("episode_advantages", spread(&settings.episode(&scores, &groups, &trajectories)?)?),
        (
            "episode_advantages_per_trajectory_stats",
            spread(&of_paper.episode(&scores, &groups, &trajectories)?)?,
        ),
        ("step_advantages", spread(&settings.step(&step_returns, &steps)?)?),
        ("step_group_index", steps.iter().map(|&g| g as f64).collect()),
        ("step_rewards", step_returns),
        ("advantages", settings.advantages(&batch, &mut State::default())?.values),
    ]))
}

fn grouping(case: &Case) -> Outcome {
    let texts: Vec<String> = input(case, "observations")?;
    let groups = step_groups(&texts, &vec![0; texts.len()], case.param("similarity_thresh")?)?;
    let ratios = texts.iter().flat_map(|a| texts.iter().map(|b| similarity(a, b)));
    Ok(Outputs::from([
        ("step_group_index", groups.iter().map(|&g| g as f64).collect()),
        ("ratio_obs_row_rep_col", ratios.collect()),
    ]))
}
