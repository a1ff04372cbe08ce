//! A scripted expert for LIBERO tasks: knows the simulator's state, acts through the same seven numbers as a policy.
//!
//! The goal of a task becomes stages (open, pick, place, turn, close). For each stage there are several ways; which one
//! works is found by trying them in the simulation itself, from snapshots, so that a grasp that slips or an approach that
//! hits a neighbour costs a second and not the episode. What was found is a script that reacts to the state at every
//! step: it also works when noise is added to its actions.

mod geometry;
mod moves;
mod skills;
mod stages;

use std::collections::BTreeMap;

use nalgebra::Vector3;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{LiberoSim, LiberoSnapshot, Result};
use moves::Script;
use skills::Way;
use stages::Stage;

/// How the expert plays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpertOptions {
    /// Standard deviation of the noise on the six motion commands of executed actions (a tenth of it on rotations).
    pub noise: f64,
    /// How far waypoints that need no precision are moved at random, in metres.
    pub jitter: f64,
    /// The most control steps that a plan may cost in trials.
    pub budget: usize,
    /// The most control steps of the episode itself.
    pub max_steps: usize,
}

impl Default for ExpertOptions {
    fn default() -> Self {
        Self { noise: 0.0, jitter: 0.0, budget: 8_000, max_steps: 600 }
    }
}

/// An episode as it was played in the trial; the simulation is back where it was.
#[derive(Clone, Debug)]
pub struct ExpertEpisode {
    /// What the expert wanted, \[T, 7\].
    pub labels: Vec<[f64; 7]>,
    /// What was executed, \[T, 7\]: with noise. From the same state the same actions lead to the same states.
    pub executed: Vec<[f64; 7]>,
    /// The state before each action, \[T\].
    pub states: Vec<LiberoSnapshot>,
    /// Whether the goal holds at the end.
    pub success: bool,
    /// The ways that were taken, stage by stage.
    pub ways: Vec<String>,
    /// Control steps that were simulated, failed trials included.
    pub simulated: usize,
}

/// The expert. Remembers which ways worked, so that the next plan tries them first; a new one plans without memory.
#[derive(Clone, Debug)]
pub struct Expert {
    options: ExpertOptions,
    script: Script,
    /// Per stage, the ways that worked and how often.
    memory: BTreeMap<String, BTreeMap<String, usize>>,
}

/// A trial as it grows.
struct Trial<'a> {
    sim: &'a mut LiberoSim,
    options: ExpertOptions,
    rng: ChaCha8Rng,
    jitter: [f64; 2],
    labels: Vec<[f64; 7]>,
    executed: Vec<[f64; 7]>,
    states: Vec<LiberoSnapshot>,
    chosen: Vec<(String, String, Script)>,
    simulated: usize,
}

impl Expert {
    /// An expert without experience.
    pub fn new(options: ExpertOptions) -> Self {
        Self { options, script: Script::default(), memory: BTreeMap::new() }
    }

    /// Finds a script that solves the task from the present state (idle steps done: objects lie still), by trials in
    /// `sim`, which is put back to the present state. `seed` chooses noise, jitter and the order of equivalent ways; the
    /// same state and seed give the same episode. Without a solution the best attempt is returned, `success` false.
    ///
    /// # Errors
    /// The simulator refused, or the goal names things that the scene does not have.
    pub fn plan(&mut self, sim: &mut LiberoSim, seed: u64) -> Result<ExpertEpisode> {
        let start = sim.snapshot();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let jitter = self.options.jitter;
        let jitter = std::array::from_fn(|_| if jitter > 0.0 { rng.random_range(-jitter..=jitter) } else { 0.0 });
        let mut trial = Trial {
            sim,
            options: self.options,
            rng,
            jitter,
            labels: Vec::new(),
            executed: Vec::new(),
            states: Vec::new(),
            chosen: Vec::new(),
            simulated: 0,
        };
        let plans = stages::plans(trial.sim)?;
        let mut success = false;
        for (i, plan) in plans.iter().enumerate() {
            let limit = self.options.budget * (i + 1) / plans.len();
            success = self.solve(&mut trial, plan, 0, limit)?;
            if success || i + 1 == plans.len() {
                break;
            }
            trial.sim.restore(&start)?;
        }
        let Trial { labels, executed, states, chosen, simulated, sim, .. } = trial;
        sim.restore(&start)?;
        self.script = Script::default();
        for (stage, way, script) in &chosen {
            self.script.extend(script);
            if success {
                *self.memory.entry(stage.clone()).or_default().entry(way.clone()).or_default() += 1;
            }
        }
        let ways = chosen.into_iter().map(|(stage, way, _)| format!("{stage}: {way}")).collect();
        Ok(ExpertEpisode { labels, executed, states, success, ways, simulated })
    }

    /// The next action of the planned script in the present state; standing still when it is done or before
    /// [`Expert::plan`].
    ///
    /// # Errors
    /// The script names things that this scene does not have.
    pub fn next_action(&mut self, sim: &LiberoSim) -> Result<[f64; 7]> {
        Ok(self.script.next(sim)?.unwrap_or([0.0; 7]))
    }

    /// Starts the planned script again, for another run from the same state.
    pub fn rewind(&mut self) {
        self.script.rewind();
    }

    /// Depth first: ways of this stage, and for each that works the stages after it.
    fn solve(&self, trial: &mut Trial<'_>, plan: &[Stage], at: usize, limit: usize) -> Result<bool> {
        let Some(stage) = plan.get(at) else { return Ok(trial.sim.success()) };
        let before = trial.sim.snapshot();
        let length = trial.labels.len();
        let name = format!("{stage:?}");
        let mut ways = skills::ways(trial.sim, stage, plan.get(at + 1), trial.jitter)?;
        if let Some(memory) = self.memory.get(&name) {
            ways.sort_by_key(|way| std::cmp::Reverse(memory.get(&way.name).copied().unwrap_or(0)));
        }
        for Way { name: way, moves } in ways {
            if trial.simulated >= limit {
                return Ok(false);
            }
            trial.sim.restore(&before)?;
            trial.cut(length, at);
            let mut script = Script::new(moves);
            let last = at + 1 == plan.len();
            let worked = trial.run(stage, &mut script, last)?;
            if std::env::var_os("EXPERT_DEBUG").is_some() {
                eprintln!("{at} {name} {way}: {worked} {}", trial.labels.len() - length);
            }
            script.rewind();
            trial.chosen.push((name.clone(), way, script));
            if trial.sim.success() || (worked && self.solve(trial, plan, at + 1, limit)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Trial<'_> {
    fn cut(&mut self, length: usize, stages: usize) {
        self.labels.truncate(length);
        self.executed.truncate(length);
        self.states.truncate(length);
        self.chosen.truncate(stages);
    }

    /// Plays one way; whether the stage was done. The last stage ends when the goal holds.
    fn run(&mut self, stage: &Stage, script: &mut Script, last: bool) -> Result<bool> {
        let height = |sim: &LiberoSim, object: &str| Ok::<_, super::Error>(sim.object_pose(object)?.position_m[2]);
        let low = match stage {
            Stage::Pick(object) => height(self.sim, object)?,
            _ => 0.0,
        };
        while let Some(label) = script.next(self.sim)? {
            if self.labels.len() >= self.options.max_steps {
                return Ok(false);
            }
            let mut action = label;
            if self.options.noise > 0.0 {
                for (i, value) in action[..6].iter_mut().enumerate() {
                    let share = if i < 3 { 1.0 } else { 0.1 };
                    *value += share * self.options.noise * normal(&mut self.rng);
                }
            }
            self.states.push(self.sim.snapshot());
            self.labels.push(label.map(|v| v.clamp(-1.0, 1.0)));
            self.executed.push(action);
            self.simulated += 1;
            let step = self.sim.step(&action)?;
            if step.aborted.is_some() {
                return Ok(false);
            }
            if step.success && last {
                return Ok(true);
            }
        }
        Ok(match stage {
            Stage::Pick(object) => height(self.sim, object)? > low + 0.05,
            Stage::Place { fact, .. } => self.sim.predicate(fact)?,
            Stage::Open(place) => self.sim.predicate(&["open".into(), place.clone()])?,
            Stage::Close(place) => self.sim.predicate(&["close".into(), place.clone()])?,
            Stage::Turn { fixture, on } => {
                self.sim.predicate(&[if *on { "turnon" } else { "turnoff" }.into(), fixture.clone()])?
            }
            Stage::PutAside(object) => {
                let hand = Vector3::from(self.sim.eef_pose().position_m);
                let object = Vector3::from(self.sim.object_pose(object)?.position_m);
                (hand - object).norm() > 0.08
            }
        })
    }
}

/// One normally distributed number.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (a, b): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random_range(0.0..1.0));
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
