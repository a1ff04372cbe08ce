//! The benchmark behind the trait of all environments.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::scene::CAMERAS;
use super::{
    Error, IDLE_ACTION, LiberoSim, LiberoSnapshot, Pack, Profile, Result, SimOptions, SubstepOrder,
    axis_angle,
};
use crate::{ACTION_DIM, Action, Env, EnvSpec, Observation, Outcome, SceneState, Snapshot};

/// Evaluation seeds have this bit, training seeds do not.
const EVAL_BIT: u64 = 1 << 40;

/// Seed of evaluation episode `i`: saved initial state `i` and entry `i` of the table of fixture poses, both modulo
/// their number. `i` is taken modulo 2^40.
pub const fn eval_seed(i: usize) -> u64 {
    EVAL_BIT | (i as u64 & (EVAL_BIT - 1))
}

/// Seed of training episode `i`, never an evaluation seed: initial state and fixture poses are drawn independently of
/// each other from the same saved ones. `i` is taken modulo 2^40.
pub const fn train_seed(i: u64) -> u64 {
    i & (EVAL_BIT - 1)
}

/// How an environment is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LiberoOptions {
    /// Order of the passes in a physics step.
    pub order: SubstepOrder,
    /// Quality of pictures.
    pub profile: Profile,
    /// Side of the square pictures in pixels, 16 to 2048.
    pub image_size: usize,
    /// Control steps until an episode ends, without the idle ones; with them at most the benchmark's horizon of 1000.
    pub max_steps: usize,
    /// Idle steps after a reset, in which objects settle.
    pub idle_steps: usize,
    /// Whether pictures are mirrored left to right, as the usual evaluators give them to policies.
    pub mirror: bool,
}

impl Default for LiberoOptions {
    fn default() -> Self {
        Self {
            order: SubstepOrder::Fused,
            profile: Profile::Faithful,
            image_size: 128,
            max_steps: 300,
            idle_steps: super::IDLE_STEPS,
            mirror: true,
        }
    }
}

/// One task as an environment. Cameras: `agentview` and `wrist` (the scene's `robot0_eye_in_hand`); the scene's own names
/// work too.
pub struct LiberoEnv {
    sim: LiberoSim,
    options: LiberoOptions,
    spec: EnvSpec,
    running: bool,
    /// Whether an episode was started.
    started: bool,
}

impl LiberoEnv {
    /// An environment of the task.
    ///
    /// # Errors
    /// [`Error::Option`] for settings out of range, and those of [`LiberoSim::new`].
    pub fn new(pack: &Arc<Pack>, options: &LiberoOptions) -> Result<Self> {
        let horizon = pack.meta.horizon;
        let most = horizon.saturating_sub(options.idle_steps);
        if !(1..=most).contains(&options.max_steps) {
            let got = format!("{} after {} idle steps", options.max_steps, options.idle_steps);
            return Err(Error::Option {
                field: "max_steps",
                expected: "at least 1, and with the idle steps at most the pack's `horizon` (1000)",
                got,
            });
        }
        let (order, profile, image_size) = (options.order, options.profile, options.image_size);
        let sim = LiberoSim::new(pack, &SimOptions { order, profile, image_size })?;
        let spec = EnvSpec {
            task: pack.id(),
            cameras: CAMERAS.iter().take(pack.meta.obs_cameras.len()).map(|&name| name.to_owned()).collect(),
            image_size,
            action_dim: ACTION_DIM,
            control_hz: pack.meta.control_freq.round() as u32,
            max_steps: options.max_steps,
        };
        Ok(Self { sim, options: options.clone(), spec, running: false, started: false })
    }

    /// The simulation.
    pub fn sim(&self) -> &LiberoSim {
        &self.sim
    }

    /// The simulation, for what the trait has no method for. Its steps do not count as the environment's.
    pub fn sim_mut(&mut self) -> &mut LiberoSim {
        &mut self.sim
    }

    /// How it was set up.
    pub fn options(&self) -> &LiberoOptions {
        &self.options
    }

    /// Which initial state and which fixture poses belong to a seed.
    pub fn start_of(pack: &Pack, seed: u64) -> (usize, usize) {
        let (states, resets) = (pack.init_states(), pack.resets().max(1));
        if seed & EVAL_BIT != 0 {
            let i = (seed & (EVAL_BIT - 1)) as usize;
            return (i % states, i % resets);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (rng.random_range(0..states), rng.random_range(0..resets))
    }

    /// Steps of the episode, without the idle ones.
    fn steps(&self) -> usize {
        self.sim.steps().saturating_sub(self.options.idle_steps)
    }

    fn observe(&self) -> Observation {
        let seen = self.sim.observation();
        let [ax, ay, az] = axis_angle(seen.eef_quat);
        let ([x, y, z], [left, right]) = (seen.eef_pos, seen.gripper_qpos);
        Observation { proprio: [x, y, z, ax, ay, az, left, right].map(|v| v as f32) }
    }

    /// The scene's name of a camera.
    fn camera<'a>(&'a self, name: &'a str) -> &'a str {
        let known = CAMERAS.iter().position(|camera| *camera == name);
        known.and_then(|i| self.sim.pack().meta.obs_cameras.get(i)).map_or(name, String::as_str)
    }
}

impl Env for LiberoEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn instruction(&self) -> &str {
        self.sim.pack().language()
    }

    fn reset(&mut self, seed: u64) -> crate::Result<Observation> {
        let pack = Arc::clone(self.sim.pack());
        let (state, entry) = Self::start_of(&pack, seed);
        self.running = false;
        self.sim.reset(entry)?;
        // `start_of` counts modulo the number of states.
        self.sim.set_init_state(pack.init_state(state).unwrap_or_default())?;
        self.started = true;
        for _ in 0..self.options.idle_steps {
            if let Some(why) = self.sim.step(&IDLE_ACTION)?.aborted {
                return Err(Error::NotRunning {
                    why: format!("the initial state {state} is unstable: {why}"),
                }
                .into());
            }
        }
        self.running = true;
        Ok(self.observe())
    }

    fn step(&mut self, action: &Action) -> crate::Result<Outcome> {
        if !self.running {
            let why = match (self.started, self.steps()) {
                (false, _) => "no episode was started".to_owned(),
                (true, steps) => format!("the episode ended after {steps} steps"),
            };
            return Err(crate::Error::NotRunning { why });
        }
        if let Some((index, value)) = action.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(crate::Error::Action { index, value: *value });
        }
        let step = self.sim.step(&action.map(f64::from))?;
        let steps = self.steps();
        let done = step.done || steps >= self.options.max_steps;
        self.running = !done;
        Ok(Outcome {
            observation: self.observe(),
            reward: step.reward as f32,
            success: step.success,
            done,
            steps,
            aborted: step.aborted,
        })
    }

    fn render_into(&mut self, camera: &str, out: &mut [u8]) -> crate::Result<()> {
        let side = self.options.image_size;
        let expected = side * side * 3;
        if out.len() != expected {
            return Err(crate::Error::Length { what: "bytes of an image", expected, got: out.len() });
        }
        let name = self.camera(camera).to_owned();
        self.sim.render_into(&name, out)?;
        if self.options.mirror {
            mirror(side, out);
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.sim.snapshot().numbers().to_vec(),
            steps: self.steps(),
            held: 0,
            running: self.running,
            look: None,
        }
    }

    fn restore(&mut self, snapshot: &Snapshot) -> crate::Result<()> {
        self.sim.restore(&LiberoSnapshot::from_numbers(snapshot.state.clone()))?;
        (self.running, self.started) = (snapshot.running, true);
        Ok(())
    }

    fn scene_state(&self) -> SceneState {
        self.sim.scene_state()
    }

    fn remaining(&self) -> f64 {
        self.sim.remaining()
    }
}

/// Swaps left and right of a picture, [side, side, 3].
fn mirror(side: usize, rgb: &mut [u8]) {
    for row in rgb.chunks_exact_mut(3 * side) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}
