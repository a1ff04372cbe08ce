//! The benchmark behind the trait of all environments.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{LiberoSim, Pack, Profile, Result, SubstepOrder};
use crate::{Action, Env, EnvSpec, Observation, Outcome, SceneState, Snapshot};

/// Evaluation seeds have this bit, training seeds do not.
const EVAL_BIT: u64 = 1 << 40;

/// Seed of evaluation episode `i`: saved initial state `i` and entry `i` of the table of fixture poses, both modulo
/// their number.
pub const fn eval_seed(i: usize) -> u64 {
    EVAL_BIT | (i as u64 & (EVAL_BIT - 1))
}

/// Seed of training episode `i`: initial state and fixture poses are drawn independently of each other.
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
    /// Side of the square pictures in pixels.
    pub image_size: usize,
    /// Control steps until an episode ends, without the idle ones.
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

/// One task as an environment. Cameras: `agentview` and `wrist` (the scene's `robot0_eye_in_hand`).
pub struct LiberoEnv {
    sim: LiberoSim,
}

#[expect(unused_variables, clippy::todo, missing_docs)]
impl LiberoEnv {
    pub fn new(pack: &Arc<Pack>, options: &LiberoOptions) -> Result<Self> {
        todo!()
    }
    pub fn sim(&self) -> &LiberoSim {
        &self.sim
    }
    pub fn sim_mut(&mut self) -> &mut LiberoSim {
        &mut self.sim
    }
}

#[expect(unused_variables, clippy::todo)]
impl Env for LiberoEnv {
    fn spec(&self) -> &EnvSpec {
        todo!()
    }
    fn instruction(&self) -> &str {
        todo!()
    }
    fn reset(&mut self, seed: u64) -> crate::Result<Observation> {
        todo!()
    }
    fn step(&mut self, action: &Action) -> crate::Result<Outcome> {
        todo!()
    }
    fn render_into(&mut self, camera: &str, out: &mut [u8]) -> crate::Result<()> {
        todo!()
    }
    fn snapshot(&self) -> Snapshot {
        todo!()
    }
    fn restore(&mut self, snapshot: &Snapshot) -> crate::Result<()> {
        todo!()
    }
    fn scene_state(&self) -> SceneState {
        todo!()
    }
    fn remaining(&self) -> f64 {
        todo!()
    }
}
