//! The benchmark itself, bit for bit.

use std::sync::Arc;

use efference_data::RgbImage;
use efference_mujoco::Model;
use serde::{Deserialize, Serialize};

use super::{LiberoObservation, LiberoSnapshot, Pack, Result};
use crate::Pose;

/// Steps that evaluators idle after restoring an initial state, while objects fall and settle.
pub const IDLE_STEPS: usize = 10;
/// The action of an idle step: stand still, open the gripper.
pub const IDLE_ACTION: [f64; 7] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0];

/// How often physics are computed in a physics step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubstepOrder {
    /// As Python LIBERO does: two forward passes before the one of the step. Before MuJoCo 3.3.6 they move the solver's
    /// starting point, so whole runs agree with Python's. For tests and published evaluations.
    #[default]
    Exact,
    /// One pass. Held objects drift from Python's by up to a centimetre; everything else agrees. For training.
    Fused,
}

/// What pictures cost and show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// As LIBERO draws: shadows, reflections, four samples per pixel, the pack's own meshes.
    #[default]
    Faithful,
    /// No effects, one sample per pixel, and the reduced meshes and textures of `model_fast.xml` if the pack has it.
    Fast,
}

/// How a simulation is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimOptions {
    /// Order of the passes in a physics step.
    pub order: SubstepOrder,
    /// Quality of pictures; physics are the same.
    pub profile: Profile,
    /// Side of the square pictures in pixels, 16 to 2048; LIBERO's data sets have 128 or 256.
    pub image_size: usize,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { order: SubstepOrder::Exact, profile: Profile::Faithful, image_size: 128 }
    }
}

/// What one control step led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// 1 when the goal holds now, else 0.
    pub reward: f64,
    /// Whether all facts of the goal hold at this instant.
    pub success: bool,
    /// `success`, or the simulation had to stop.
    pub done: bool,
    /// Control steps since the reset.
    pub steps: usize,
    /// Why the simulation had to stop (it became unstable), if it had to.
    pub aborted: Option<String>,
}

/// One simulation of a task.
pub struct LiberoSim {
    pack: Arc<Pack>,
}

#[expect(unused_variables, clippy::todo, missing_docs)]
impl LiberoSim {
    pub fn new(pack: &Arc<Pack>, options: &SimOptions) -> Result<Self> {
        todo!()
    }
    pub fn options(&self) -> &SimOptions {
        todo!()
    }
    pub fn pack(&self) -> &Arc<Pack> {
        &self.pack
    }
    pub fn model(&self) -> &Arc<Model> {
        todo!()
    }
    /// Light copy of the model: change looks, cameras, lights; pictures and physics follow.
    pub fn model_mut(&mut self) -> Result<&mut Model> {
        todo!()
    }
    pub fn reset(&mut self, k: usize) -> Result<()> {
        todo!()
    }
    pub fn set_init_state(&mut self, state: &[f64]) -> Result<()> {
        todo!()
    }
    pub fn step(&mut self, action: &[f64; 7]) -> Result<Step> {
        todo!()
    }
    pub fn steps(&self) -> usize {
        todo!()
    }
    pub fn observation(&self) -> &LiberoObservation {
        todo!()
    }
    pub fn success(&self) -> bool {
        todo!()
    }
    pub fn predicate(&self, fact: &[String]) -> Result<bool> {
        todo!()
    }
    /// Upright, as sampled.
    pub fn render(&mut self, camera: &str) -> Result<RgbImage> {
        todo!()
    }
    /// [S, S, 3] bytes, upright.
    pub fn render_into(&mut self, camera: &str, out: &mut [u8]) -> Result<()> {
        todo!()
    }
    /// [S, S] metres along the camera's axis, upright.
    pub fn render_depth(&mut self, camera: &str, out: &mut [f32]) -> Result<()> {
        todo!()
    }
    /// [S, S] geom indices (-1 background, -2 no geom), upright.
    pub fn render_segmentation(&mut self, camera: &str, out: &mut [i32]) -> Result<()> {
        todo!()
    }
    pub fn snapshot(&self) -> LiberoSnapshot {
        todo!()
    }
    pub fn restore(&mut self, snapshot: &LiberoSnapshot) -> Result<()> {
        todo!()
    }
    pub fn time_secs(&self) -> f64 {
        todo!()
    }
    pub fn qpos(&self) -> &[f64] {
        todo!()
    }
    pub fn qvel(&self) -> &[f64] {
        todo!()
    }
    /// World pose of a body (name as in the scene), wxyz. As of the last physics step's start, like predicates.
    pub fn body_pose(&self, body: &str) -> Result<Pose> {
        todo!()
    }
    /// World pose of an object or fixture by its name in `meta.objects` (its root body).
    pub fn object_pose(&self, object: &str) -> Result<Pose> {
        todo!()
    }
    /// World pose of a site (name as in `meta.sites` or the scene).
    pub fn site_pose(&self, site: &str) -> Result<Pose> {
        todo!()
    }
    /// Positions of all joints of an object or fixture, one number per hinge or slide, in the order of `meta`.
    pub fn joint_positions(&self, object: &str) -> Result<Vec<f64>> {
        todo!()
    }
    /// The grip site: position, orientation.
    pub fn eef_pose(&self) -> Pose {
        todo!()
    }
    /// Whether the two things (names of `meta.objects`) touch.
    pub fn touching(&self, a: &str, b: &str) -> Result<bool> {
        todo!()
    }
    /// Whether each finger's pad touches the object: left, right.
    pub fn fingers_touch(&self, object: &str) -> Result<[bool; 2]> {
        todo!()
    }
}
