//! Cases of `spo_single.json`.

use super::case::{Case, Failure, Outcome, Outputs};
use super::verl_loss::LossCase;
use crate::batch::{Batch, PROMPT_IDS, REWARDS};
use crate::block::Advantage;
use crate::papers::dcpo::RatioUnlimited;
use crate::papers::spo_single::{
    Forgetting, Memory, SingleStream, Tracker, drift, priorities, probabilities,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "tracker_init_and_priority" => start(case),
        "advantages" => {
            let table = advantages(case)?;
            let values = trackers(case)?.iter().map(Tracker::value).collect();
            Ok(Outputs::from([("advantages", table.values), ("v_hat", values)]))
        }
        "tracker_update" => update(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of spo_single"))),
    }
}

fn trackers(case: &Case) -> Result<Vec<Tracker>, Failure> {
    let pairs = case.numbers("alpha")?.into_iter().zip(case.numbers("beta")?);
    Ok(pairs.map(|(alpha, beta)| Tracker { alpha, beta }).collect())
}

fn columns(trackers: &[Tracker]) -> [Vec<f64>; 3] {
    [
        trackers.iter().map(|t| t.alpha).collect(),
        trackers.iter().map(|t| t.beta).collect(),
        trackers.iter().map(Tracker::value).collect(),
    ]
}

fn start(case: &Case) -> Outcome {
    let (n, rho_min) = (case.param("offline_n")?, case.param("rho_min")?);
    let counts = case.whole("offline_success_counts")?;
    let start = |s: u64| Ok(Tracker::offline(s, n, rho_min)?);
    let trackers = counts.into_iter().map(start).collect::<Result<Vec<_>, Failure>>()?;
    let [alpha, beta, values] = columns(&trackers);
    let weights = priorities(&values, case.param("exploration_epsilon")?);
    Ok(Outputs::from([
        ("alpha", alpha),
        ("beta", beta),
        ("v_hat", values),
        ("sampling_prob", probabilities(&weights)),
        ("sampling_weight", weights),
    ]))
}

/// Every row is a prompt of its own with the tracker of the case.
fn advantages(case: &Case) -> Result<Table, Failure> {
    let trackers = trackers(case)?;
    let ids: Vec<u64> = (0..trackers.len() as u64).collect();
    let memory = Memory { trackers: ids.iter().copied().zip(trackers).collect(), ..Memory::default() };
    let mut state = State::default();
    SingleStream::set_memory(&mut state, &memory)?;
    let batch = Batch::new(case.table("response_mask")?)
        .with(REWARDS, case.numbers("rewards")?)?
        .with(PROMPT_IDS, ids)?;
    let epsilon = case.param::<Option<f64>>("eps")?.unwrap_or(SingleStream::default().epsilon);
    Ok(SingleStream { epsilon, ..SingleStream::default() }.advantages(&batch, &mut state)?)
}

fn update(case: &Case) -> Outcome {
    let (before, rewards) = (trackers(case)?, case.numbers("rewards")?);
    let (block, drifts) = if case.params.contains_key("rho") {
        let rho = case.param("rho")?;
        let forgetting = Forgetting::Constant;
        (SingleStream { rho_min: rho, forgetting, ..SingleStream::default() }, vec![0.0; before.len()])
    } else {
        let block = SingleStream {
            rho_min: case.param("rho_min")?,
            rho_max: case.param("rho_max")?,
            drift_half: case.param("d_half")?,
            ..SingleStream::default()
        };
        let (stored, current) = (case.table("prev_stored_log_probs")?, case.table("prev_current_log_probs")?);
        let mask = case.table("prev_response_mask")?;
        let measured = drift(&stored, &current, &mask, case.param("masked_mean_eps")?)?;
        let first = case.numbers("first_visit")?;
        (block, measured.iter().zip(first).map(|(d, first)| if first != 0.0 { 0.0 } else { *d }).collect())
    };
    // Through the block's memory, as a trainer does it.
    let ids = 0u64..before.len() as u64;
    let memory = Memory {
        trackers: ids.clone().zip(before).collect(),
        visited: ids.clone().collect(),
        pending: ids.clone().zip(rewards).collect(),
    };
    let mut state = State::default();
    SingleStream::set_memory(&mut state, &memory)?;
    block.settle(&mut state, &ids.zip(drifts.iter().copied()).collect())?;
    let after: Vec<Tracker> = SingleStream::memory(&state)?.trackers.into_values().collect();
    let [alpha, beta, values] = columns(&after);
    Ok(Outputs::from([
        ("rho", drifts.iter().map(|&d| block.rho(d)).collect()),
        ("divergence", drifts),
        ("alpha_new", alpha),
        ("beta_new", beta),
        ("v_hat_new", values),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let mut loss = LossCase::read(case)?;
    loss.whole = loss.batch.normaliser(); // this verl has no epsilon in a token mean
    let advantages = advantages(case)?;
    loss.signals.advantages = advantages.clone();
    let surrogate = RatioUnlimited {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: case.param("clip_ratio_c")?,
        log_ratio_limit: case.param("log_ratio_clamp")?,
    };
    let mut outputs = loss.run(surrogate, None)?;
    outputs.insert("advantages", advantages.values);
    Ok(outputs)
}
