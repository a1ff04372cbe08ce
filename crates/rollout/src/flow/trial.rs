//! One trial: look, predict, check, grasp, move, and say what happened.

use std::sync::Arc;
use std::time::Instant;

use efference_data::flow::FlowQuery;
use efference_envs::flow::{FlowEnv, POINTS};
use efference_envs::{Env, Error as EnvError, Outcome};
use efference_geometry::{Isometry3, Point3, UnitQuaternion, Vector3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::plan::backed_out;
use super::servo::servo;
use super::workbench::{Watcher, Workbench, WorkbenchArm, releases};
use super::{
    Attempt, End, Event, ExecuteOptions, FrozenDepth, GraspCheck, GraspPlan, Judge, LearnedJudge,
    LoopOptions, NoGrasp, OracleFlow, PlanOptions, PredicateJudge, Predictor, Proposal, Rejection, Result,
    Robot, Trace, VlmJudge, VlmOptions, execute, plan_grasp, propose,
};
use crate::seeds::{Purpose, seed_for};

/// Where flows come from.
#[derive(Clone)]
pub enum Source {
    /// The environment's own motions: the upper bound.
    Oracle,
    /// The oracle's with errors that grow to this size (each axis uniform, metres and radians) towards the end: what checks
    /// and planner make of flows that are so good.
    Disturbed {
        /// Metres.
        m: f64,
        /// Radians.
        rad: f64,
    },
    /// A predictor.
    Model(Arc<dyn Predictor>),
    /// A predictor without its depths, see [`FrozenDepth`]: the 2D baseline.
    FrozenDepth(Arc<dyn Predictor>),
}

/// Who judges final states.
#[derive(Clone)]
pub enum Checker {
    /// Nobody.
    Nobody,
    /// The simulator's predicate, see [`PredicateJudge`].
    Predicate,
    /// A learned scorer.
    Learned(Arc<LearnedJudge>),
    /// A vision-language model.
    Vlm(VlmOptions),
}

/// A whole system: where flows come from, who checks them, and how they are executed.
#[derive(Clone)]
pub struct System {
    /// Flows.
    pub source: Source,
    /// Judge.
    pub checker: Checker,
    /// Sampling and rejection.
    pub propose: LoopOptions,
    /// Grasps.
    pub plan: PlanOptions,
    /// Execution.
    pub execute: ExecuteOptions,
    /// How often it may start anew when the grasp missed or the object was lost, the first time included; at least 1.
    pub rounds: usize,
}

impl System {
    /// Oracle flow, no check.
    #[must_use]
    pub fn oracle() -> Self {
        Self {
            source: Source::Oracle,
            checker: Checker::Nobody,
            propose: LoopOptions::default(),
            plan: PlanOptions::default(),
            execute: ExecuteOptions::default(),
            rounds: 3,
        }
    }

    /// A predictor with K samples, the rejection of what is not rigid, and a judge.
    #[must_use]
    pub fn full(predictor: Arc<dyn Predictor>, checker: Checker) -> Self {
        Self { source: Source::Model(predictor), checker, ..Self::oracle() }
    }

    /// One sample, executed whatever it is.
    #[must_use]
    pub fn unchecked(predictor: Arc<dyn Predictor>) -> Self {
        let propose = LoopOptions { samples: 1, rigid_limit_m: None, ..LoopOptions::default() };
        Self { source: Source::Model(predictor), propose, ..Self::oracle() }
    }

    /// As [`System::full`] with the depth of frame 0 throughout. Such flows are hardly ever rigid, so none is rejected for
    /// that: the best rigid motion of all points is executed, as the 2D baseline of the paper does.
    #[must_use]
    pub fn frozen_depth(predictor: Arc<dyn Predictor>, checker: Checker) -> Self {
        let propose = LoopOptions { rigid_limit_m: None, robust: false, ..LoopOptions::default() };
        Self { source: Source::FrozenDepth(predictor), checker, propose, ..Self::oracle() }
    }
}

/// What one round of a trial looked at and did; everything a viewer needs.
#[derive(Clone, Debug)]
pub struct Round {
    /// What was known.
    pub query: FlowQuery,
    /// [height, width]: the object in the query's picture.
    pub mask: Vec<bool>,
    /// The predictions and their fates.
    pub proposal: Proposal,
    /// The prediction that was executed.
    pub chosen: Option<usize>,
    /// Its grasp, or why there is none for the last one tried.
    pub grasp: Option<std::result::Result<GraspPlan, NoGrasp>>,
    /// How the execution ended.
    pub end: Option<End>,
}

/// How a trial ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    /// The environment says that the task is done.
    pub success: bool,
    /// Control steps.
    pub steps: usize,
    /// Why nothing (more) was done, if the system refused.
    pub refused: Option<String>,
    /// Rounds: looks, plans, executions.
    pub rounds: usize,
    /// Predictions that were rejected before a judge was asked.
    pub rejected: usize,
    /// Predictions that the judge refused.
    pub judged_bad: usize,
    /// How the last execution ended.
    pub end: Option<End>,
    /// How often the rest of a flow was planned again.
    pub replans: usize,
    /// Worst rms of the executed flow over all points, metres.
    pub rigid_rms_m: f64,
    /// Whether the simulator's predicate holds for the final pose of the executed flow (of the first round).
    pub plan_good: Option<bool>,
    /// Wall-clock seconds; not part of the result.
    pub seconds: f64,
}

/// A trial with all that happened.
pub struct Trial {
    /// The result.
    pub report: TrialReport,
    /// Round by round.
    pub rounds: Vec<Round>,
    /// All control steps.
    pub trace: Trace,
}

/// Plays the episode of `seed`. Everything is a function of the system, the environment's settings and `seed`.
///
/// # Errors
/// The environment or the predictor failed, or a setting is out of range. A refusal is no error.
pub fn run_trial(env: &mut FlowEnv, system: &System, seed: u64) -> Result<Trial> {
    watch_trial(env, system, seed, &mut ())
}

/// As [`run_trial`], with somebody who sees every control step.
///
/// # Errors
/// As [`run_trial`], and what the watcher reports.
pub fn watch_trial(
    env: &mut FlowEnv,
    system: &System,
    seed: u64,
    watcher: &mut dyn Watcher,
) -> Result<Trial> {
    let begun = Instant::now();
    env.reset(seed)?;
    let mut trial = Trial {
        report: TrialReport {
            success: false,
            steps: 0,
            refused: None,
            rounds: 0,
            rejected: 0,
            judged_bad: 0,
            end: None,
            replans: 0,
            rigid_rms_m: 0.0,
            plan_good: None,
            seconds: 0.0,
        },
        rounds: Vec::new(),
        trace: Trace::default(),
    };
    for round in 0..system.rounds.max(1) {
        let seed = seed_for(seed, Purpose::Flow, &[round as u64]);
        let again = play_round(env, system, seed, &mut trial, watcher)?;
        if !again || trial.trace.over() {
            break;
        }
    }
    let report = &mut trial.report;
    report.success = trial.trace.last.as_ref().is_some_and(|o| o.success);
    report.steps = trial.trace.actions.len();
    report.replans = trial.trace.replans;
    report.rounds = trial.rounds.len();
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(trial)
}

/// One look, plan and execution. True when another round may help.
fn play_round(
    env: &mut FlowEnv,
    system: &System,
    seed: u64,
    trial: &mut Trial,
    watcher: &mut dyn Watcher,
) -> Result<bool> {
    let view = env.view()?;
    let points = match env.seen_points(&view, POINTS, seed) {
        Ok(points) => points,
        Err(error @ EnvError::Hidden { .. }) => {
            trial.report.refused = Some(error.to_string());
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let object = env.object_pose();
    let query = FlowQuery {
        instruction: env.instruction().to_owned(),
        camera: view.camera,
        image: view.image,
        depth_m: view.depth_m,
        points: points.iter().map(|p| object * p).collect(),
    };
    let mask: Vec<bool> = view.mask.iter().map(|m| *m != 0).collect();
    let proposal = match ask(env, system, &query, &mask, seed) {
        Ok(proposal) => proposal,
        // There is no way, or it cannot be said in 2D: the system has nothing to execute.
        Err(error @ (super::Error::Env(EnvError::NoMotion { .. }) | super::Error::Answer { .. })) => {
            trial.report.refused = Some(error.to_string());
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    for attempt in &proposal.attempts {
        match &attempt.rejection {
            Some(Rejection::Judged { .. }) => trial.report.judged_bad += 1,
            Some(_) => trial.report.rejected += 1,
            None => {}
        }
    }
    let mut round = Round { query, mask, proposal, chosen: None, grasp: None, end: None };
    let again = carry_out(env, system, &points, &mut round, trial, watcher)?;
    trial.rounds.push(round);
    Ok(again)
}

fn ask(env: &FlowEnv, system: &System, query: &FlowQuery, mask: &[bool], seed: u64) -> Result<Proposal> {
    let object = env.object_pose();
    let holds = |motion: &Isometry3<f64>| env.goal_reached(&(motion * object));
    let mut judge: Option<Box<dyn Judge + '_>> = match &system.checker {
        Checker::Nobody => None,
        Checker::Predicate => Some(Box::new(PredicateJudge::new(holds))),
        Checker::Learned(judge) => Some(Box::new(&**judge)),
        Checker::Vlm(options) => Some(Box::new(VlmJudge::new(options.clone())?)),
    };
    let judge = judge.as_mut().map(|judge| &mut **judge as &mut dyn Judge);
    match &system.source {
        Source::Oracle | Source::Disturbed { .. } => {
            let samples = system.propose.samples as u64;
            let motion = |k: u64| {
                let poses = env.motion(seed.wrapping_add(k))?.poses;
                Ok(match system.source {
                    Source::Disturbed { m, rad } => disturbed(&poses, m, rad, seed.wrapping_add(k)),
                    _ => poses,
                })
            };
            let motions = (0..samples).map(motion).collect::<Result<Vec<_>>>()?;
            let motion = move |s: u64| Ok(motions[s.wrapping_sub(seed) as usize % motions.len()].clone());
            propose(query, mask, &OracleFlow::new(motion), judge, &system.propose, seed)
        }
        Source::Model(predictor) => propose(query, mask, predictor, judge, &system.propose, seed),
        Source::FrozenDepth(predictor) => {
            propose(query, mask, &FrozenDepth::new(predictor), judge, &system.propose, seed)
        }
    }
}

/// Poses with an error that grows from nothing at the present to its full size at the end.
fn disturbed(poses: &[Isometry3<f64>], m: f64, rad: f64, seed: u64) -> Vec<Isometry3<f64>> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |size: f64| Vector3::from_fn(|_, _| rng.random_range(-1.0..=1.0) * size);
    let (shift, turn) = (draw(m), draw(rad));
    let last = poses.len().saturating_sub(1).max(1) as f64;
    let off = |(t, pose): (usize, &Isometry3<f64>)| {
        let share = t as f64 / last;
        let place = pose.translation.vector + shift * share;
        Isometry3::from_parts(place.into(), UnitQuaternion::from_scaled_axis(turn * share) * pose.rotation)
    };
    poses.iter().enumerate().map(off).collect()
}

/// The first accepted prediction that the arm can execute is executed.
fn carry_out(
    env: &mut FlowEnv,
    system: &System,
    points: &[Point3<f64>],
    round: &mut Round,
    trial: &mut Trial,
    watcher: &mut dyn Watcher,
) -> Result<bool> {
    let release = releases(env.task());
    let object = env.object_pose();
    for i in round.proposal.accepted.clone() {
        let motions = round.proposal.attempts[i].fit.poses.clone();
        let mut arm = WorkbenchArm::new(env)?;
        let planned = plan_grasp(&mut arm, &motions, release, &system.plan)?;
        if let Err(none) = &planned {
            round.proposal.attempts[i].rejection = Some(Rejection::Infeasible { reason: none.to_string() });
            round.grasp = Some(planned);
            continue;
        }
        round.chosen = Some(i);
        round.grasp = Some(planned);
        break;
    }
    let (Some(chosen), Some(Ok(plan))) = (round.chosen, &round.grasp) else {
        let mut why: Vec<String> = round
            .proposal
            .attempts
            .iter()
            .filter_map(|a| a.rejection.as_ref())
            .map(ToString::to_string)
            .collect();
        why.dedup();
        trial.report.refused = Some(why.join("; "));
        return Ok(false);
    };
    let Attempt { fit, .. } = &round.proposal.attempts[chosen];
    if trial.report.plan_good.is_none() {
        trial.report.plan_good = Some(env.goal_reached(&(fit.last() * object)));
        trial.report.rigid_rms_m = fit.worst_rms_m();
    }
    let mut bench = Workbench::new(env, points.to_vec(), watcher);
    let end =
        execute(&mut bench, &round.query.points, fit, plan, release, &system.execute, &mut trial.trace)?;
    round.end = Some(end);
    trial.report.end = Some(end);
    // Whoever has executed the whole plan believes that it is done; only a failure that is felt leads to another try.
    if matches!(end, End::Over | End::Finished) {
        return Ok(false);
    }
    // Let go, get out of the way, look again.
    let away = backed_out(&bench.grip(), 0.1);
    let away = Isometry3::translation(0.0, 0.0, 0.05) * away;
    for i in 0..20 {
        let target = if i < 5 { bench.grip() } else { away };
        let grip = bench.grip();
        let action = servo(&grip, &target, false, &system.execute.carry);
        trial.trace.grips.push(grip);
        let outcome: Outcome = bench.step(&action)?;
        trial.trace.actions.push(action);
        let done = outcome.done;
        trial.trace.last = Some(outcome);
        if done {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A trial as lines of text, told step by step.
#[must_use]
pub fn tell(trial: &Trial) -> Vec<String> {
    let mut lines = Vec::new();
    for (n, round) in trial.rounds.iter().enumerate() {
        lines.push(format!("round {}: \"{}\"", n + 1, round.query.instruction));
        for (i, attempt) in round.proposal.attempts.iter().enumerate() {
            let rms = 1000.0 * attempt.fit.worst_rms_m();
            let verdict =
                attempt.verdict.as_ref().map(|v| format!(", judge: {}", v.reason)).unwrap_or_default();
            let fate = match &attempt.rejection {
                Some(why) => format!("rejected, {why}"),
                None if round.chosen == Some(i) => "executed".into(),
                None => "kept in reserve".into(),
            };
            lines.push(format!("  prediction {}: rigid to {rms:.1} mm{verdict}: {fate}", i + 1));
        }
        let overruled = |i: &usize| round.proposal.attempts[*i].rejection.is_some();
        if let Some(i) = round.chosen.filter(overruled) {
            lines.push(format!("  prediction {} is executed all the same: none is refused less", i + 1));
        }
        match &round.grasp {
            Some(Ok(plan)) => {
                let bad = plan.examined.iter().filter(|e| e.check != GraspCheck::Good).count();
                lines.push(format!(
                    "  grasp {} of those examined serves, {:.1} cm wide",
                    bad + 1,
                    100.0 * plan.grasp.width_m
                ));
            }
            Some(Err(none)) => lines.push(format!("  {none}")),
            None => lines.push("  nothing to execute".into()),
        }
    }
    for (step, event) in &trial.trace.events {
        let what = match event {
            Event::AtStandOff => "before the object".into(),
            Event::AtGrasp { left_m, left_rad } => {
                format!(
                    "at the grasp, {:.1} mm and {:.1} degrees off",
                    1000.0 * left_m,
                    left_rad.to_degrees()
                )
            }
            Event::Closed { opening_m } => {
                format!("fingers closed, {:.1} mm between them", 1000.0 * opening_m)
            }
            Event::Missed => "nothing between the fingers".into(),
            Event::Looked { progress, deviation_m } => {
                format!("{:.0}% of the way, {:.1} mm off the flow", 100.0 * progress, 1000.0 * deviation_m)
            }
            Event::Replanned { deviation_m } => {
                format!("{:.1} cm off the flow: the rest is planned again", 100.0 * deviation_m)
            }
            Event::Lost => "the object slipped out".into(),
            Event::Arrived { left_m } => format!("at the end of the flow, {:.1} mm off", 1000.0 * left_m),
            Event::Released => "let go".into(),
        };
        lines.push(format!("  step {step}: {what}"));
    }
    let report = &trial.report;
    let end = match (&report.refused, report.success) {
        (_, true) => "done".into(),
        (Some(why), false) => format!("refused: {why}"),
        (None, false) => "not done".into(),
    };
    lines.push(format!("{end} after {} steps", report.steps));
    lines
}
