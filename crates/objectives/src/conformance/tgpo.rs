//! Cases of `tgpo.json`. +-1e30 stands for an infinity.

use candle_core::Tensor;

use serde_json::json;

use super::case::{Case, Failure, Outcome, Outputs, code, gradient, values};
use super::model_dllm::sizes;
use crate::papers::tgpo::dynamics::{Speed, linear, unicycle};
use crate::papers::tgpo::ground::best_allocation;
use crate::papers::tgpo::sampler::{Proposal, metropolis_hastings};
use crate::papers::tgpo::staged::{Goal, Obstacle, StagedReward};
use crate::papers::tgpo::stl::{Formula, Trace, UntilLeft};
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "robustness" => robustness(case),
        "soft_robustness" => soft(case),
        "grounding" => grounding(case),
        "staged_reward" => staged(case),
        "metropolis_hastings" => metropolis(case),
        "dynamics" => dynamics(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of tgpo"))),
    }
}

fn flag(x: bool) -> f64 {
    f64::from(u8::from(x))
}

fn finite(x: f64) -> f64 {
    x.clamp(-1e30, 1e30)
}

/// Every input is a signal.
fn trace(case: &Case) -> Result<Trace, Failure> {
    let signals = case.inputs.keys().map(|name| Ok((name.clone(), case.numbers(name)?)));
    Ok(Trace::new(signals.collect::<Result<Vec<_>, Failure>>()?)?)
}

fn left(case: &Case) -> Result<UntilLeft, Failure> {
    Ok(case.param::<Option<UntilLeft>>("until_left")?.unwrap_or_default())
}

fn robustness(case: &Case) -> Outcome {
    let formula: Formula = case.param("formula")?;
    let rho = formula.robustness(&trace(case)?, left(case)?)?;
    let valid: usize = case.param("valid_steps")?;
    Ok(Outputs::from([
        ("satisfied", rho.iter().take(valid).map(|&x| flag(x >= 0.0)).collect()),
        ("robustness", rho.into_iter().map(finite).collect()),
    ]))
}

fn soft(case: &Case) -> Outcome {
    let formula: Formula = case.param("formula")?;
    let (signals, names) = (case.var("signals")?, case.texts("signal_names")?);
    let left = left(case)?;
    let rho = formula.soft_robustness(signals.as_tensor(), &names, case.param("temperature")?, left)?;
    let table: Table = case.table("signals")?;
    let columns = names.iter().enumerate().map(|(i, name)| {
        (name.clone(), table.iter().filter_map(|row| row.get(i).copied()).collect::<Vec<_>>())
    });
    let hard = formula.robustness(&Trace::new(columns)?, left)?;
    Ok(Outputs::from([
        ("robustness_t0", values(&rho)?),
        ("hard_robustness_t0", hard.into_iter().take(1).map(finite).collect()),
        ("grad_signals", gradient(&rho, &signals)?),
    ]))
}

fn grounding(case: &Case) -> Outcome {
    let formula: Formula = case.param("formula")?;
    let (trace, left) = (trace(case)?, left(case)?);
    let best = best_allocation(&formula, &trace, left)?;
    let rho = formula.robustness(&trace, left)?;
    let subgoals = best.grounding.subgoals.iter().map(|goal| json!([goal.formula.text(), goal.time]));
    let reach = code(&subgoals.collect());
    let kept = best.grounding.invariances.iter();
    let invariance = code(&kept.map(|inv| json!([inv.formula.text(), inv.start, inv.end])).collect());
    Ok(Outputs::from([
        ("allocations", vec![best.allocations as f64]),
        ("best_value", vec![finite(best.value)]),
        ("robustness_t0", rho.into_iter().take(1).map(finite).collect()),
        ("best_assignment", best.allocation.iter().map(|&x| x as f64).collect()),
        ("best_reach", reach),
        ("best_invariance", invariance),
    ]))
}

fn staged(case: &Case) -> Outcome {
    let weights: StagedReward = case.param("weights")?;
    let rows = |name: &str| -> Result<Vec<Vec<f64>>, Failure> {
        let table = case.table(name)?;
        Ok((0..table.rows).map(|i| table.row(i).to_vec()).collect())
    };
    let goals: Vec<Goal> = rows("goal_centers")?
        .into_iter()
        .zip(case.numbers("goal_radii")?)
        .zip(sizes(case, "goal_times")?)
        .map(|((center, radius), time)| Goal { center, radius, time })
        .collect();
    let intervals = sizes(case, "obstacle_intervals")?;
    let obstacles: Vec<Obstacle> = rows("obstacle_centers")?
        .into_iter()
        .zip(case.numbers("obstacle_radii")?)
        .zip(intervals.chunks_exact(2))
        .map(|((center, radius), span)| Obstacle { center, radius, start: span[0], end: span[1] })
        .collect();
    let staged = weights.along(&rows("path")?, &goals, &obstacles, case.param("episode_end")?)?;
    let rewards = staged.rewards();
    Ok(Outputs::from([
        ("return", vec![rewards.iter().sum()]),
        ("rewards", rewards),
        ("components_distance_progress_invariance_success", staged.components.concat()),
        ("current_subgoal", staged.current.iter().map(|&k| k as f64).collect()),
        ("achieved_flags", staged.flags.iter().map(|&f| flag(f)).collect()),
        ("violated", vec![flag(staged.violated)]),
    ]))
}

/// The critic is the case's function: a weighted parabola, less 3 where the first two times are closer than 2. Both
/// numbers stand in its text.
fn metropolis(case: &Case) -> Outcome {
    let text: String = case.param("value")?;
    let after = |mark: &str| -> Result<f64, Failure> {
        let rest = text.split(mark).nth(1).unwrap_or("");
        let digits: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        digits.parse().map_err(|_| Failure::NotImplemented(format!("value `{text}`")))
    };
    let (penalty, gap) = (after(" - ")?, after("|<")?);
    let (center, weight) = (case.numbers("center")?, case.numbers("weight")?);
    let value = |tau: &[usize]| {
        let far =
            tau.iter().zip(&center).zip(&weight).map(|((&t, c), w)| w * (t as f64 - c) * (t as f64 - c));
        let close = matches!(tau, [a, b, ..] if (*a as f64 - *b as f64).abs() < gap);
        Ok(-far.sum::<f64>() - if close { penalty } else { 0.0 })
    };
    let proposals: Vec<Proposal> = sizes(case, "coordinate_draws")?
        .into_iter()
        .zip(sizes(case, "proposed_values")?)
        .zip(case.numbers("uniform_draws")?)
        .map(|((slot, value), uniform)| Proposal { slot, value, uniform })
        .collect();
    let chain = metropolis_hastings(&sizes(case, "start")?, &proposals, case.param("temperature")?, value)?;
    Ok(Outputs::from([
        ("acceptance_probability", chain.acceptance),
        ("accepted", chain.accepted.iter().map(|&a| flag(a)).collect()),
        ("chain", chain.states.concat().iter().map(|&x| x as f64).collect()),
        ("best_allocation", chain.best.iter().map(|&x| x as f64).collect()),
        ("best_value", vec![chain.best_value]),
    ]))
}

fn dynamics(case: &Case) -> Outcome {
    let (start, controls): (Table, Tensor) = (case.table("state")?, case.tensor("controls")?);
    let dt = case.param("dt")?;
    let mut path = Vec::new();
    for (i, row) in start.iter().enumerate() {
        let moves: Vec<Vec<f64>> = controls.get(i)?.to_vec2()?;
        path.extend_from_slice(row);
        match *row {
            [x, y] => {
                let mut state = [x, y];
                for u in &moves {
                    let &[a, b] = &u[..] else { return Err(Failure::Missing("two controls".into())) };
                    state = linear(state, [a, b], dt);
                    path.extend(state);
                }
            }
            [x, y, heading, v] => {
                let (mut state, speed) =
                    ([x, y, heading, v], Speed { min: case.param("v_min")?, max: case.param("v_max")? });
                for u in &moves {
                    let &[a, b] = &u[..] else { return Err(Failure::Missing("two controls".into())) };
                    state = unicycle(state, [a, b], dt, speed);
                    path.extend(state);
                }
            }
            _ => return Err(Failure::NotImplemented(format!("dynamics of {} numbers", row.len()))),
        }
    }
    Ok(Outputs::from([("trajectory", path)]))
}
