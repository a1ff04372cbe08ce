//! The contract between a simulator and everything that learns in it.

use efference_data::RgbImage;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Numbers in an action: three of translation, three of rotation, one for the gripper.
pub const ACTION_DIM: usize = 7;

/// Numbers of proprioception.
pub const PROPRIO_DIM: usize = 8;

/// One command for one control step, LIBERO's convention, each number in -1..=1:
/// translation x y z in units of 0.05 m, rotation as axis-angle in units of 0.5 rad (both in world axes, relative to
/// the pose at this moment), gripper (negative opens, positive closes).
pub type Action = [f32; ACTION_DIM];

/// What stays the same over an environment's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvSpec {
    /// Task id.
    pub task: String,
    /// Cameras that can be drawn.
    pub cameras: Vec<String>,
    /// Side of the square images in pixels.
    pub image_size: usize,
    /// Numbers in an action.
    pub action_dim: usize,
    /// Control steps per second.
    pub control_hz: u32,
    /// An episode ends after so many control steps.
    pub max_steps: usize,
}

/// What the robot feels; images are drawn on demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Gripper position (world frame, metres), orientation (axis-angle, radians), the two finger positions (metres;
    /// the second negative, as in LIBERO).
    pub proprio: [f32; PROPRIO_DIM],
}

/// What one control step led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// After the step.
    pub observation: Observation,
    /// 1 at the step that completes the task, else 0.
    pub reward: f32,
    /// Whether the task is completed.
    pub success: bool,
    /// Whether the episode is over: success, step limit, or `aborted`.
    pub done: bool,
    /// Control steps since the reset.
    pub steps: usize,
    /// Why the episode had to end (the simulation became unstable), if it had to.
    pub aborted: Option<String>,
}

/// Everything that an episode's future depends on, and its looks. A few kilobytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The simulator's state.
    pub state: Vec<f64>,
    /// Control steps since the reset.
    pub steps: usize,
    /// For how many steps in a row the goal has been held.
    pub held: usize,
    /// Whether the episode is running.
    pub running: bool,
    /// Seed of the randomised looks; `None` for the scene's own.
    pub look: Option<u64>,
}

impl Snapshot {
    /// The simulator's state, for example to store it with an episode.
    pub fn state(&self) -> &[f64] {
        &self.state
    }
}

/// A place and an orientation in the world.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pose {
    /// Metres.
    pub position_m: [f64; 3],
    /// Unit quaternion, wxyz.
    pub quat_wxyz: [f64; 4],
}

/// A named thing and where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedPose {
    /// Its name in the scene.
    pub name: String,
    /// World from thing.
    pub pose: Pose,
}

/// Kinds of primitive shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapeKind {
    /// Half-lengths x, y, z.
    Box,
    /// Radius; the other sizes are 0.
    Sphere,
    /// Radius and half-length (without the caps) along z.
    Capsule,
    /// Radius and half-length along z.
    Cylinder,
}

/// A visible shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeomShape {
    /// `BODY/INDEX`, unique and the same in every state.
    pub name: String,
    /// What `size_m` means.
    pub kind: ShapeKind,
    /// Metres.
    pub size_m: [f64; 3],
    /// Each in 0..=1.
    pub rgba: [f32; 4],
    /// World from shape.
    pub pose: Pose,
}

/// A pinhole camera.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CameraView {
    /// Its name.
    pub name: String,
    /// Image size in pixels: width, height.
    pub size_px: [usize; 2],
    /// fx, fy, cx, cy in pixels.
    pub intrinsics_px: [f64; 4],
    /// World from camera; the camera looks along its -z with +x right and +y up.
    pub pose: Pose,
}

/// What a viewer needs to draw a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SceneState {
    /// Simulated time since the reset.
    pub time_secs: f64,
    /// The point between the fingertips; identity when the gripper points down.
    pub gripper: Pose,
    /// Distance between the fingers.
    pub finger_opening_m: f64,
    /// Things and parts that tasks talk about.
    pub things: Vec<NamedPose>,
    /// All visible shapes.
    pub geoms: Vec<GeomShape>,
    /// The cameras.
    pub cameras: Vec<CameraView>,
}

/// A simulator with one task.
pub trait Env: Send {
    /// Cameras, sizes, rates, limits.
    fn spec(&self) -> &EnvSpec;

    /// What the robot is asked to do, in words.
    fn instruction(&self) -> &str;

    /// Starts the episode that belongs to this seed. The same seed gives the same bits, on any thread.
    ///
    /// # Errors
    /// The simulator refused.
    fn reset(&mut self, seed: u64) -> Result<Observation>;

    /// One control step. Numbers beyond -1..=1 are clamped.
    ///
    /// # Errors
    /// [`Error::NotRunning`] before a reset or after the end, [`Error::Action`] for numbers that are not finite. An
    /// unstable simulation is not an error: the episode ends and [`Outcome::aborted`] says why.
    fn step(&mut self, action: &Action) -> Result<Outcome>;

    /// Draws what a camera sees now, into `out`: [S, S, 3] bytes, row-major, top row first.
    ///
    /// # Errors
    /// [`Error::UnknownCamera`], [`Error::Length`] when `out` has another size, or no offscreen rendering.
    fn render_into(&mut self, camera: &str, out: &mut [u8]) -> Result<()>;

    /// Draws what a camera sees now.
    ///
    /// # Errors
    /// As [`Env::render_into`].
    fn render(&mut self, camera: &str) -> Result<RgbImage> {
        let side = self.spec().image_size;
        let mut rgb = vec![0; side * side * 3];
        self.render_into(camera, &mut rgb)?;
        image_of(side, rgb)
    }

    /// Draws what a camera saw when the snapshot was taken; the running episode does not notice.
    ///
    /// # Errors
    /// As [`Env::render`] and [`Env::restore`].
    fn render_snapshot(&mut self, snapshot: &Snapshot, camera: &str) -> Result<RgbImage> {
        let now = self.snapshot();
        self.restore(snapshot)?;
        let image = self.render(camera);
        self.restore(&now)?;
        image
    }

    /// The present state.
    fn snapshot(&self) -> Snapshot;

    /// Puts a state back; what follows is bit for bit what followed when it was taken. A snapshot may come from
    /// another environment of the same scene.
    ///
    /// # Errors
    /// [`Error::Snapshot`] when it belongs to another scene.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<()>;

    /// Named poses, shapes and cameras of the present state.
    fn scene_state(&self) -> SceneState;

    /// How far the task is from done, in metres, as the simulator knows it: hand-made progress, for reports and as an
    /// upper bound on what learned progress could give. 0 when done.
    fn remaining(&self) -> f64;
}

/// Wraps bytes [side, side, 3].
pub(crate) fn image_of(side: usize, rgb: Vec<u8>) -> Result<RgbImage> {
    let got = rgb.len();
    RgbImage::from_raw(side as u32, side as u32, rgb).ok_or(Error::Length {
        what: "bytes of an image",
        expected: side * side * 3,
        got,
    })
}

impl<E: Env + ?Sized> Env for Box<E> {
    fn spec(&self) -> &EnvSpec {
        (**self).spec()
    }
    fn instruction(&self) -> &str {
        (**self).instruction()
    }
    fn reset(&mut self, seed: u64) -> Result<Observation> {
        (**self).reset(seed)
    }
    fn step(&mut self, action: &Action) -> Result<Outcome> {
        (**self).step(action)
    }
    fn render_into(&mut self, camera: &str, out: &mut [u8]) -> Result<()> {
        (**self).render_into(camera, out)
    }
    fn render_snapshot(&mut self, snapshot: &Snapshot, camera: &str) -> Result<RgbImage> {
        (**self).render_snapshot(snapshot, camera)
    }
    fn snapshot(&self) -> Snapshot {
        (**self).snapshot()
    }
    fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        (**self).restore(snapshot)
    }
    fn scene_state(&self) -> SceneState {
        (**self).scene_state()
    }
    fn remaining(&self) -> f64 {
        (**self).remaining()
    }
}
