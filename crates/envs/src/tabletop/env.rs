//! One robot, one table, one task.

use std::sync::Arc;

use efference_data::RgbImage;
use efference_mujoco::{Data, Error as SimError};
use nalgebra::Rotation3;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, Place, Thing};
use super::scene::{Handle, Scene, Variant};
use super::world::{self, Touches, World};
use super::{CAMERAS, Quality, Task, arm, draw, look};
use crate::env::image_of;
use crate::shapes::{camera_view, geom_shapes, pose_of};
use crate::{
    ACTION_DIM, Action, Env, EnvSpec, Error, NamedPose, Observation, Outcome, Pose, Result, SceneState,
    Snapshot,
};

/// Control steps per second, as in LIBERO.
const CONTROL_HZ: u32 = 20;
/// Physics steps per control step: 10 of 5 ms.
const SUBSTEPS: usize = 10;
/// m/s or rad/s beyond which the simulation counts as unstable. The arm's fastest is about 20; a cube that slips out
/// between gripper and table has been seen spinning at 50.
const MAX_SPEED: f64 = 300.0;

/// How a tabletop is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TabletopOptions {
    /// Side of the square images in pixels, 16 to 1024.
    pub image_size: usize,
    /// Control steps until an episode ends, 1 to 10000.
    pub max_steps: usize,
    /// Draw light directions, strengths and tints anew in each episode.
    pub randomize_lighting: bool,
    /// Put three things on the table that no task asks for, with places and colours drawn anew in each episode.
    pub distractors: bool,
    /// What to spend on pictures.
    pub quality: Quality,
}

impl Default for TabletopOptions {
    fn default() -> Self {
        Self {
            image_size: 64,
            max_steps: 80,
            randomize_lighting: false,
            distractors: false,
            quality: Quality::Fast,
        }
    }
}

/// What only the simulator knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Privileged {
    /// As [`Env::remaining`], metres.
    pub remaining_m: f64,
    /// Whether the goal holds in this state (it counts as success after [`Task::HOLD_STEPS`] in a row).
    pub goal_holds: bool,
    /// Centre of each thing, world frame, metres, in the order of [`Thing::ALL`].
    pub things: Vec<(&'static str, [f64; 3])>,
    /// Middle of the drawer's handle, world frame, metres.
    pub handle_m: [f64; 3],
    /// How far the drawer is open, metres.
    pub drawer_m: f64,
    /// How deep the button is pressed, metres.
    pub button_m: f64,
}

/// The environment. The compiled scene is shared; each environment has its own simulation.
pub struct TabletopEnv {
    scene: Arc<Scene>,
    data: Data,
    touches: Touches,
    /// The simulator's state after the last reset, step or restore.
    state: Vec<f64>,
    task: Task,
    options: TabletopOptions,
    spec: EnvSpec,
    cameras: [usize; CAMERAS.len()],
    steps: usize,
    held: usize,
    running: bool,
    look: Option<u64>,
}

impl TabletopEnv {
    /// An environment for the task of this id.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], [`Error::Option`] for a setting out of range, or MuJoCo refused the scene.
    pub fn new(task: &str, options: &TabletopOptions) -> Result<Self> {
        Self::with_task(Task::from_id(task)?, options)
    }

    /// As [`TabletopEnv::new`].
    ///
    /// # Errors
    /// [`Error::Option`] for a setting out of range, or MuJoCo refused the scene.
    pub fn with_task(task: Task, options: &TabletopOptions) -> Result<Self> {
        check("image_size", "between 16 and 1024 pixels", options.image_size, 16..=1024)?;
        check("max_steps", "between 1 and 10000 control steps", options.max_steps, 1..=10_000)?;
        let scene = Scene::get(Variant { quality: options.quality, distractors: options.distractors })?;
        let mut cameras = [0; CAMERAS.len()];
        for (id, name) in cameras.iter_mut().zip(CAMERAS) {
            *id = scene.model.camera_id(name)?;
        }
        let data = Data::new(&scene.model)?;
        let spec = EnvSpec {
            task: task.id().to_owned(),
            cameras: CAMERAS.map(str::to_owned).to_vec(),
            image_size: options.image_size,
            action_dim: ACTION_DIM,
            control_hz: CONTROL_HZ,
            max_steps: options.max_steps,
        };
        let state = vec![0.0; scene.model.state_len()];
        let mut env = Self {
            scene,
            data,
            touches: Touches::new(),
            state,
            task,
            options: options.clone(),
            spec,
            cameras,
            steps: 0,
            held: 0,
            running: false,
            look: None,
        };
        env.data.forward()?;
        env.data.state_get(&mut env.state)?;
        Ok(env)
    }

    /// What it is asked to do.
    pub fn task(&self) -> Task {
        self.task
    }

    /// Changes the task; the scene and the state stay. The episode must be started anew.
    pub fn set_task(&mut self, task: Task) {
        self.task = task;
        self.spec.task = task.id().to_owned();
        self.running = false;
    }

    /// How it was set up.
    pub fn options(&self) -> &TabletopOptions {
        &self.options
    }

    /// What only the simulator knows.
    pub fn privileged(&self) -> Privileged {
        let w = self.world();
        Privileged {
            remaining_m: self.task.remaining(&w),
            goal_holds: self.task.holds(&w),
            things: Thing::ALL.map(|thing| (thing.name(), w.pos(thing).into())).to_vec(),
            handle_m: w.handle().into(),
            drawer_m: w.drawer(),
            button_m: w.button(),
        }
    }

    pub(crate) fn world(&self) -> World<'_> {
        World { scene: &self.scene, data: &self.data, touches: &self.touches }
    }

    /// The proprioception of the present state.
    pub fn observe(&self) -> Observation {
        let p = self.data.site_pos(self.scene.grip);
        let r = arm::axis_angle(&arm::grip_rotation(&self.scene, &self.data));
        let q = self.data.qpos();
        Observation { proprio: [p[0], p[1], p[2], r.x, r.y, r.z, q[7], -q[8]].map(|v| v as f32) }
    }

    /// Puts everything where a layout says, at rest. `rotation` and `finger_m` are the gripper's.
    pub(crate) fn arrange(
        &mut self,
        layout: &Layout,
        rotation: &Rotation3<f64>,
        finger_m: f64,
        look: Option<u64>,
    ) -> Result<()> {
        self.wear(look)?;
        self.data.reset()?;
        let up = |yaw: f64| [(0.5 * yaw).cos(), 0.0, 0.0, (0.5 * yaw).sin()];
        for thing in Thing::ALL {
            let Place { xy_m: [x, y], yaw_rad } = layout.places[thing as usize];
            let (pos, quat) = ([x, y, thing.rest_z_m()], up(yaw_rad));
            match self.scene.handles[thing as usize] {
                Handle::Free(joint) => self.data.place_free_joint(joint, pos, quat)?,
                Handle::Mocap(i) => {
                    self.data.mocap_pos_mut()[3 * i..3 * i + 3].copy_from_slice(&pos);
                    self.data.mocap_quat_mut()[4 * i..4 * i + 4].copy_from_slice(&quat);
                }
            }
        }
        for (joint, place) in self.scene.distractors.iter().zip(layout.distractors) {
            let z = self.data.joint_qpos(*joint)[2];
            self.data.place_free_joint(*joint, [place.xy_m[0], place.xy_m[1], z], up(place.yaw_rad))?;
        }
        arm::pose_arm(&self.scene, &mut self.data, layout.grip_m, rotation, finger_m)?;
        Ok(())
    }

    /// Changes the looks to those of a seed.
    fn wear(&mut self, look: Option<u64>) -> Result<()> {
        if look == self.look {
            return Ok(());
        }
        let mut model = self.scene.model.try_clone()?;
        if let Some(seed) = look {
            let what = look::What {
                lighting: self.options.randomize_lighting,
                distractor_colours: self.options.distractors,
            };
            look::apply(&self.scene, &mut model, seed, what);
        }
        self.data = Data::new(&Arc::new(model))?;
        self.look = look;
        Ok(())
    }

    /// Draws looks from a seed if anything is randomised.
    pub(crate) fn draw_look(&self, rng: &mut ChaCha8Rng) -> Option<u64> {
        (self.options.randomize_lighting || self.options.distractors).then(|| rng.random())
    }

    /// After a change of state: poses, contacts and the copy of the state.
    fn refresh(&mut self) -> Result<()> {
        self.data.forward_position()?;
        world::touches(&self.data, &mut self.touches);
        self.data.state_get(&mut self.state)?;
        Ok(())
    }

    /// Brings poses up to date for drawing only; contacts stay stale.
    pub(crate) fn look_only(&mut self) -> Result<()> {
        self.data.kinematics()?;
        Ok(())
    }

    fn set_state(&mut self, state: &[f64]) -> Result<()> {
        let expected = self.state.len();
        if state.len() != expected {
            return Err(Error::Snapshot { expected, got: state.len() });
        }
        self.data.state_set(state)?;
        Ok(())
    }

    fn camera(&self, name: &str) -> Result<usize> {
        let found = CAMERAS.iter().position(|camera| *camera == name).map(|i| self.cameras[i]);
        found.ok_or_else(|| Error::UnknownCamera { name: name.to_owned(), known: CAMERAS.join(", ") })
    }

    fn ended(&self) -> Error {
        let why = match self.steps {
            0 => "no episode was started".to_owned(),
            steps => format!("the episode ended after {steps} steps"),
        };
        Error::NotRunning { why }
    }

    fn fastest(&self) -> f64 {
        self.data.qvel().iter().fold(0.0, |top, v| f64::max(top, v.abs()))
    }
}

impl Env for TabletopEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn instruction(&self) -> &str {
        self.task.instruction()
    }

    fn reset(&mut self, seed: u64) -> Result<Observation> {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        // Tasks do not share initial states.
        rng.set_stream(1 + self.task as u64);
        let layout = Layout::sample(rng);
        let look = self.draw_look(rng);
        self.arrange(&layout, &Rotation3::identity(), arm::FINGER_OPEN_M, look)?;
        self.refresh()?;
        (self.steps, self.held, self.running) = (0, 0, true);
        Ok(self.observe())
    }

    fn step(&mut self, action: &Action) -> Result<Outcome> {
        if !self.running {
            return Err(self.ended());
        }
        if let Some((index, value)) = action.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::Action { index, value: *value });
        }
        arm::command(&self.scene, &mut self.data, action)?;
        let aborted = match self.data.step(SUBSTEPS) {
            Ok(()) => {
                let speed = self.fastest();
                (speed > MAX_SPEED).then(|| format!("something moves at {speed:.0} m/s or rad/s"))
            }
            Err(error @ SimError::Unstable { .. }) => Some(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        self.steps += 1;
        if aborted.is_some() {
            // The last good state is what an observer gets to see.
            self.data.state_set(&self.state)?;
        }
        self.refresh()?;
        let holds = aborted.is_none() && self.task.holds(&self.world());
        self.held = if holds { self.held + 1 } else { 0 };
        let success = self.held >= Task::HOLD_STEPS;
        let done = success || aborted.is_some() || self.steps >= self.options.max_steps;
        self.running = !done;
        Ok(Outcome {
            observation: self.observe(),
            reward: f32::from(u8::from(success)),
            success,
            done,
            steps: self.steps,
            aborted,
        })
    }

    fn render_into(&mut self, camera: &str, out: &mut [u8]) -> Result<()> {
        let (camera, side) = (self.camera(camera)?, self.options.image_size);
        let expected = side * side * 3;
        if out.len() != expected {
            return Err(Error::Length { what: "bytes of an image", expected, got: out.len() });
        }
        draw::draw(&self.scene, &self.data, camera, side, out)
    }

    fn render_snapshot(&mut self, snapshot: &Snapshot, camera: &str) -> Result<RgbImage> {
        let (camera, side) = (self.camera(camera)?, self.options.image_size);
        let (state, own_look) = (self.state.clone(), self.look);
        // Poses are all that a picture needs.
        self.wear(snapshot.look)?;
        self.set_state(&snapshot.state)?;
        self.data.kinematics()?;
        let mut rgb = vec![0; side * side * 3];
        let drawn = draw::draw(&self.scene, &self.data, camera, side, &mut rgb);
        self.wear(own_look)?;
        self.set_state(&state)?;
        self.data.forward_position()?;
        drawn?;
        image_of(side, rgb)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state.clone(),
            steps: self.steps,
            held: self.held,
            running: self.running,
            look: self.look,
        }
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.wear(snapshot.look)?;
        self.set_state(&snapshot.state)?;
        self.refresh()?;
        (self.steps, self.held, self.running) = (snapshot.steps, snapshot.held, snapshot.running);
        Ok(())
    }

    fn scene_state(&self) -> SceneState {
        let data = &self.data;
        let body = |name: &str, body: usize| NamedPose {
            name: name.to_owned(),
            pose: Pose { position_m: data.body_pos(body), quat_wxyz: data.body_quat(body) },
        };
        let mut things: Vec<_> =
            Thing::ALL.iter().map(|thing| body(thing.name(), self.scene.bodies[*thing as usize])).collect();
        let handle =
            Pose { position_m: data.site_pos(self.scene.handle_site), quat_wxyz: [1.0, 0.0, 0.0, 0.0] };
        things.push(NamedPose { name: "drawer_handle".to_owned(), pose: handle });
        things.push(body("button_cap", self.scene.cap_body));
        let side = self.options.image_size;
        let cameras = CAMERAS.iter().zip(self.cameras).map(|(name, id)| camera_view(data, name, id, side));
        let q = data.qpos();
        SceneState {
            time_secs: data.time_secs(),
            gripper: pose_of(data.site_pos(self.scene.grip), data.site_mat(self.scene.grip)),
            finger_opening_m: q[7] + q[8],
            things,
            geoms: geom_shapes(data),
            cameras: cameras.collect(),
        }
    }

    fn remaining(&self) -> f64 {
        self.task.remaining(&self.world())
    }
}

fn check(
    field: &'static str,
    expected: &'static str,
    got: usize,
    range: std::ops::RangeInclusive<usize>,
) -> Result<()> {
    if range.contains(&got) { Ok(()) } else { Err(Error::Option { field, expected, got: got.to_string() }) }
}
