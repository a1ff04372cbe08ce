//! The simulator as an evaluation uses it: in this process, or in another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use efference_envs::SceneState;
use efference_envs::libero::{LiberoSim, Pack, SimOptions};
use image::RgbImage;
use serde::{Deserialize, Serialize};

/// The two cameras of LIBERO's observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Camera {
    /// `agentview`.
    Scene,
    /// `robot0_eye_in_hand`.
    Hand,
}

impl Camera {
    /// Its name in the scene.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scene => "agentview",
            Self::Hand => "robot0_eye_in_hand",
        }
    }
}

/// What the robot feels, as LIBERO's observation has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Felt {
    /// The grip site in the world, metres.
    pub eef_pos: [f64; 3],
    /// The hand's orientation, xyzw, sign as the simulator gives it.
    pub eef_quat: [f64; 4],
    /// Finger joints, metres, the second negative.
    pub gripper_qpos: [f64; 2],
}

/// What one control step led to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stepped {
    /// Whether the goal holds.
    pub success: bool,
    /// Why the simulation had to end, if it had to.
    pub aborted: Option<String>,
}

/// Why a simulator did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulatorError {
    /// This task cannot be played.
    #[error("task {task}: {why}")]
    Task {
        /// Its number.
        task: usize,
        /// Why.
        why: String,
    },
    /// There are fewer saved initial states.
    #[error(
        "task {task} has {saved} saved initial states; there is no number {episode}\n  hint: `--episodes {saved}` plays them all"
    )]
    NoState {
        /// Task number.
        task: usize,
        /// The state asked for.
        episode: usize,
        /// How many there are.
        saved: usize,
    },
    /// It refused, or failed.
    #[error("the simulator failed: {why}")]
    Failed {
        /// Its words.
        why: String,
    },
    /// It took longer than the time limit.
    #[error("the simulator did not {what} within {limit_s:.1} s")]
    Slow {
        /// What it was doing.
        what: &'static str,
        /// The limit.
        limit_s: f64,
    },
    /// The worker process ended.
    #[error("the simulator's process ended: {why}")]
    Died {
        /// Exit code or signal.
        why: String,
    },
}

/// What plays episodes of a list of tasks.
pub trait Simulator {
    /// Resets to entry `episode` of the table of fixture poses and restores saved initial state `episode`.
    ///
    /// # Errors
    /// [`SimulatorError`].
    fn start(&mut self, task: usize, episode: usize) -> Result<(), SimulatorError>;

    /// One control step.
    ///
    /// # Errors
    /// [`SimulatorError`]; an unstable simulation is none.
    fn step(&mut self, action: &[f64; 7]) -> Result<Stepped, SimulatorError>;

    /// What the robot feels now.
    ///
    /// # Errors
    /// [`SimulatorError`].
    fn felt(&mut self) -> Result<Felt, SimulatorError>;

    /// Poses, shapes and cameras, for recordings.
    ///
    /// # Errors
    /// [`SimulatorError`].
    fn scene(&mut self) -> Result<SceneState, SimulatorError>;

    /// What a camera sees now, upright (row 0 on top), in the size the simulator was made for.
    ///
    /// # Errors
    /// [`SimulatorError`].
    fn render(&mut self, camera: Camera) -> Result<RgbImage, SimulatorError>;

    /// The simulator itself, where it runs in this process: the scripted expert reads poses from it.
    fn native(&mut self) -> Option<&mut LiberoSim> {
        None
    }
}

/// Where the packs of an evaluation are. An open one is shared by all workers that play its task and goes when the last
/// of them moves on: the compiled scenes of a whole suite are gigabytes.
#[derive(Debug, Default)]
pub struct Packs {
    dirs: BTreeMap<usize, PathBuf>,
    open: Mutex<BTreeMap<usize, Weak<Pack>>>,
}

impl Packs {
    /// Folders by task number. Nothing is opened yet.
    pub fn new(dirs: BTreeMap<usize, PathBuf>) -> Self {
        Self { dirs, open: Mutex::default() }
    }

    /// Folders by task number.
    pub fn dirs(&self) -> &BTreeMap<usize, PathBuf> {
        &self.dirs
    }

    /// The pack of a task.
    ///
    /// # Errors
    /// [`SimulatorError::Task`]: there is none, or it cannot be read.
    pub fn get(&self, task: usize) -> Result<Arc<Pack>, SimulatorError> {
        let Some(dir) = self.dirs.get(&task) else {
            return Err(SimulatorError::Task { task, why: "it has no pack".into() });
        };
        // Held while reading: who comes second waits instead of reading too.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = open.get(&task).and_then(Weak::upgrade) {
            return Ok(pack);
        }
        let pack = Pack::open(dir).map_err(|e| SimulatorError::Task { task, why: e.to_string() })?;
        open.insert(task, Arc::downgrade(&pack));
        Ok(pack)
    }
}

/// In this process. Keeps the task it played last.
pub struct Native {
    packs: Arc<Packs>,
    options: SimOptions,
    current: Option<(usize, LiberoSim)>,
}

impl Native {
    /// Nothing is compiled before the first episode.
    pub fn new(packs: Arc<Packs>, options: SimOptions) -> Self {
        Self { packs, options, current: None }
    }

    fn sim(&mut self) -> Result<&mut LiberoSim, SimulatorError> {
        let none = || SimulatorError::Failed { why: "no episode was started".into() };
        self.current.as_mut().map(|(_, sim)| sim).ok_or_else(none)
    }
}

fn failed(error: impl std::fmt::Display) -> SimulatorError {
    SimulatorError::Failed { why: error.to_string() }
}

impl Simulator for Native {
    fn start(&mut self, task: usize, episode: usize) -> Result<(), SimulatorError> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != task) {
            // The old scene goes first: two at once are hundreds of megabytes.
            self.current = None;
            let pack = self.packs.get(task)?;
            let sim = LiberoSim::new(&pack, &self.options)
                .map_err(|e| SimulatorError::Task { task, why: e.to_string() })?;
            self.current = Some((task, sim));
        }
        let pack = Arc::clone(self.sim()?.pack());
        let state = pack.init_state(episode).ok_or_else(|| SimulatorError::NoState {
            task,
            episode,
            saved: pack.init_states(),
        })?;
        let sim = self.sim()?;
        sim.reset(episode).and_then(|()| sim.set_init_state(state)).map_err(failed)
    }

    fn step(&mut self, action: &[f64; 7]) -> Result<Stepped, SimulatorError> {
        let step = self.sim()?.step(action).map_err(failed)?;
        Ok(Stepped { success: step.success, aborted: step.aborted })
    }

    fn felt(&mut self) -> Result<Felt, SimulatorError> {
        let seen = self.sim()?.observation();
        Ok(Felt { eef_pos: seen.eef_pos, eef_quat: seen.eef_quat, gripper_qpos: seen.gripper_qpos })
    }

    fn scene(&mut self) -> Result<SceneState, SimulatorError> {
        Ok(self.sim()?.scene_state())
    }

    fn render(&mut self, camera: Camera) -> Result<RgbImage, SimulatorError> {
        self.sim()?.render(camera.name()).map_err(failed)
    }

    fn native(&mut self) -> Option<&mut LiberoSim> {
        self.sim().ok()
    }
}
