//! One arm, one workbench, one family of tasks.

use std::sync::Arc;

use efference_geometry::{Camera, Intrinsics, Isometry3, Point3};
use efference_mujoco::{Data, Error as SimError};
use nalgebra::Rotation3;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::goal::{self, Fit};
use super::motion;
use super::probe::{collision, place_object};
use super::scene::{Scene, Variant};
use super::surface::{self, Part, body_pose};
use super::wear::{self, wxyz};
use super::{ArmKind, CAMERAS, FlowTask, Layout, Motion, camera, draw};
use crate::arm::{FINGER_OPEN_M, axis_angle};
use crate::shapes::{camera_view, geom_shapes, pose_of};
use crate::tabletop::Quality;
use crate::{
    ACTION_DIM, Action, Env, EnvSpec, Error, NamedPose, Observation, Outcome, Pose, Result, SceneState,
    Snapshot,
};

/// Control steps per second, as in LIBERO.
const CONTROL_HZ: u32 = 20;
/// Physics steps per control step: 10 of 5 ms.
const SUBSTEPS: usize = 10;
/// m/s or rad/s beyond which the simulation counts as unstable.
const MAX_SPEED: f64 = 300.0;
/// Cameras that a seed may try until one sees the object.
const CAMERA_ATTEMPTS: u64 = 24;
/// Motions that are drawn until one touches nothing.
const MOTION_ATTEMPTS: usize = 40;
/// How deep a motion may go into something, metres: contacts at rest are not exactly 0.
const TOUCH_M: f64 = 0.0025;
/// How near a pad must be to what it grasps, metres: what is held by its own friction may leave one pad for a moment.
const GRASP_M: f64 = 0.0008;
/// How much nearer than a point a ray may end and still see it, metres.
const SEEN_M: f64 = 0.002;

/// How a workbench is set up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowOptions {
    /// Side of the square images in pixels, 16 to 1024.
    pub image_size: usize,
    /// Control steps until an episode ends, 1 to 10000.
    pub max_steps: usize,
    /// What to spend on pictures.
    pub quality: Quality,
}

impl Default for FlowOptions {
    fn default() -> Self {
        Self { image_size: 128, max_steps: 400, quality: Quality::Fast }
    }
}

/// The environment. The compiled scene is shared; each environment has its own simulation.
pub struct FlowEnv {
    pub(crate) scene: Arc<Scene>,
    pub(crate) data: Data,
    pub(crate) layout: Layout,
    pub(crate) parts: Vec<Part>,
    pub(crate) options: FlowOptions,
    /// The simulator's state after the last reset, step or restore.
    state: Vec<f64>,
    spec: EnvSpec,
    cameras: [usize; CAMERAS.len()],
    steps: usize,
    held: usize,
    running: bool,
    /// Seed of sizes and looks.
    look: Option<u64>,
}

impl FlowEnv {
    /// A workbench for a family of tasks with an arm, in the start of training scene 0; call `reset` before `step`.
    ///
    /// # Errors
    /// [`Error::Option`] for a setting out of range, or MuJoCo refused the scene.
    pub fn new(task: FlowTask, arm: ArmKind, options: &FlowOptions) -> Result<Self> {
        check("image_size", "between 16 and 1024 pixels", options.image_size, 16..=1024)?;
        check("max_steps", "between 1 and 10000 control steps", options.max_steps, 1..=10_000)?;
        let scene = Scene::get(Variant { task, arm, quality: options.quality })?;
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
        let mut env = Self {
            layout: Layout::sample(task, 0),
            parts: Vec::new(),
            options: options.clone(),
            state: vec![0.0; scene.model.state_len()],
            scene,
            data,
            spec,
            cameras,
            steps: 0,
            held: 0,
            running: false,
            look: None,
        };
        env.arrange(0)?;
        env.refresh()?;
        Ok(env)
    }

    /// Family of the task.
    #[must_use]
    pub fn task(&self) -> FlowTask {
        self.scene.variant.task
    }

    /// Which arm.
    #[must_use]
    pub fn arm(&self) -> ArmKind {
        self.scene.variant.arm
    }

    /// How it was set up.
    #[must_use]
    pub fn options(&self) -> &FlowOptions {
        &self.options
    }

    /// Sizes, colours and places at the start of this episode.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// World from object, now. A cup's, peg's and block's frame is in its middle (z along the axis), a ring's in the
    /// middle of its hole (z along the hole, x to the tab), a drawer's in the middle of its cabinet when closed.
    #[must_use]
    pub fn object_pose(&self) -> Isometry3<f64> {
        body_pose(&self.data, self.scene.object)
    }

    /// World from gripper, now: the point between the fingertips; identity when it points down, y the way of the fingers.
    #[must_use]
    pub fn grip_pose(&self) -> Isometry3<f64> {
        self.scene.arm.grip_pose(&self.data)
    }

    /// Joints of the arm, radians, now.
    #[must_use]
    pub fn joints(&self) -> &[f64] {
        &self.data.qpos()[..self.scene.arm.joints()]
    }

    /// Distance of each finger from the middle, metres; 0.045 when open.
    #[must_use]
    pub fn fingers_m(&self) -> [f64; 2] {
        let n = self.scene.arm.joints();
        [self.data.qpos()[n], self.data.qpos()[n + 1]]
    }

    /// The object's shapes in its own frame, for grasps.
    #[must_use]
    pub fn object_parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether both fingers touch the object, to a millimetre.
    #[must_use]
    pub fn grasped(&self) -> bool {
        let touches = |pad: &usize| {
            let object = |geom: usize| self.data.model().geom_body(geom) == self.scene.object;
            self.data.contacts().any(|c| c.dist_m < GRASP_M && c.other(*pad).is_some_and(object))
        };
        self.scene.robot[..2].iter().all(touches)
    }

    /// Poses of the object that solve the task: all of them where they are few (the equal ends and sides of a peg), a
    /// fair choice where they are many (all round a bowl). Not all are in reach.
    #[must_use]
    pub fn goals(&self) -> Vec<Isometry3<f64>> {
        goal::goals(&self.layout, &self.object_pose())
    }

    /// Whether the object would have reached the goal at this pose; a centimetre of slack where the scene forgives it.
    #[must_use]
    pub fn goal_reached(&self, world_from_object: &Isometry3<f64>) -> bool {
        goal::reached(&self.layout, world_from_object, Fit::Wished)
    }

    /// Whether the task is done in the present state. It counts after [`FlowTask::HOLD_STEPS`] in a row.
    #[must_use]
    pub fn solved(&self) -> bool {
        let held = !goal::ends_in_hand(self.task()) || self.grasped();
        held && goal::reached(&self.layout, &self.object_pose(), Fit::Real)
    }

    /// A motion of the object, from where it is now, that does the task and touches nothing on its way (the arm left
    /// out). Another seed may go another way.
    ///
    /// # Errors
    /// [`Error::NoMotion`] when none of the motions drawn is free.
    pub fn motion(&self, seed: u64) -> Result<Motion> {
        let rng = &mut motion::generator(&self.layout, seed);
        let present = self.object_pose();
        let mut probe = self.probe()?;
        'attempt: for _ in 0..MOTION_ATTEMPTS {
            let motion = motion::draw(&self.layout, &present, rng);
            if !goal::reached(&self.layout, &motion.goal(), Fit::Real) {
                continue;
            }
            // Frames and what lies between them; the start is as it is.
            let last = 3 * (motion.poses.len() - 1);
            for i in 1..=if motion::slides(self.task()) { 0 } else { last } {
                if probe.object_depth(&motion.at(i as f64 / 3.0))? > TOUCH_M {
                    continue 'attempt;
                }
            }
            return Ok(motion);
        }
        Err(Error::NoMotion { task: self.task().id(), seed: self.layout.seed })
    }

    /// The calibrated camera, for pictures of `image_size`.
    ///
    /// # Errors
    /// None for a scene that compiled.
    pub fn camera(&self) -> Result<Camera> {
        let (id, side) = (self.scene.camera, self.options.image_size);
        let fovy = self.data.model().camera_fovy_deg(id);
        Ok(Camera::from_mujoco(self.data.camera_pos(id), self.data.camera_mat(id), fovy, side, side)?)
    }

    /// Puts the object somewhere, at rest, as if it had always been there: for looking and for starts of one's own.
    ///
    /// # Errors
    /// [`Error::Option`] for numbers that are not finite.
    pub fn place_object(&mut self, pose: &Isometry3<f64>) -> Result<()> {
        place_object(&self.scene, &mut self.data, pose)?;
        self.refresh()
    }

    /// Sizes, looks and places of a seed.
    fn arrange(&mut self, seed: u64) -> Result<()> {
        let layout = Layout::sample(self.task(), seed);
        let mut model = self.scene.model.try_clone()?;
        wear::apply(&self.scene, &mut model, &layout)?;
        self.data = Data::new(&Arc::new(model))?;
        let mut put = |mocap: usize, pose: &Isometry3<f64>| {
            let at: [f64; 3] = pose.translation.vector.into();
            self.data.mocap_pos_mut()[3 * mocap..3 * mocap + 3].copy_from_slice(&at);
            self.data.mocap_quat_mut()[4 * mocap..4 * mocap + 4].copy_from_slice(&wxyz(&pose.rotation));
        };
        put(self.scene.target, &layout.target);
        for (i, (mocap, _)) in self.scene.bystanders.iter().enumerate() {
            put(*mocap, &layout.bystander_pose(i));
        }
        place_object(&self.scene, &mut self.data, &layout.object)?;
        self.scene.arm.pose(&mut self.data, layout.grip_m, &Rotation3::identity(), FINGER_OPEN_M)?;
        self.data.forward()?;
        self.parts = surface::parts(&self.scene, &self.data);
        self.layout = layout;
        self.look = Some(seed);
        self.aim()
    }

    /// The first of the seed's cameras that sees enough, or the one that sees most.
    fn aim(&mut self) -> Result<()> {
        let rng = &mut ChaCha8Rng::seed_from_u64(self.layout.look);
        rng.set_stream(0x1000);
        let points = surface::sample(&self.parts, 96, rng);
        let object = self.object_pose();
        let points: Vec<_> = points.iter().map(|p| object * p).collect();
        // Much of a drawer's surface is inside.
        let enough = if motion::slides(self.task()) { 0.12 } else { 0.25 };
        let ends: Vec<Point3<f64>> = self.layout.ends();
        let mut best: Option<(f64, camera::Place)> = None;
        for attempt in 0..CAMERA_ATTEMPTS {
            let place = self.layout.camera(attempt);
            let intrinsics = Intrinsics::from_fovy_deg(place.fovy_deg, 100, 100)?;
            let camera = Camera::new(intrinsics, place.pose, efference_geometry::CameraAxes::OpenGl);
            let inside = |p: &Point3<f64>| {
                camera
                    .project(p)
                    .is_some_and(|[u, v, _]| (6.0..94.0).contains(&u) && (6.0..94.0).contains(&v))
            };
            let eye = Point3::from(place.pose.translation.vector);
            let mut seen = 0;
            for point in &points {
                seen += usize::from(inside(point) && sees(&self.data, &eye, point)?);
            }
            let framed = points.iter().all(inside) && ends.iter().all(inside);
            let share = seen as f64 / points.len().max(1) as f64 - if framed { 0.0 } else { 1.0 };
            if best.as_ref().is_none_or(|(most, _)| share > *most) {
                best = Some((share, place));
            }
            if share >= enough {
                break;
            }
        }
        if let Some((_, place)) = best {
            let camera = self.scene.camera;
            let model = self.data.model_mut()?;
            model.set_camera_pos(camera, place.pose.translation.vector.into());
            model.set_camera_quat(camera, wxyz(&place.pose.rotation));
            model.set_camera_fovy_deg(camera, place.fovy_deg)?;
            self.data.forward()?;
        }
        Ok(())
    }

    /// Changes sizes and looks to those of a seed.
    fn wear(&mut self, look: Option<u64>) -> Result<()> {
        match look {
            Some(seed) if self.look != look => self.arrange(seed),
            _ => Ok(()),
        }
    }

    /// After a change of state: poses, contacts and the copy of the state.
    fn refresh(&mut self) -> Result<()> {
        self.data.forward_position()?;
        self.data.state_get(&mut self.state)?;
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

    fn observe(&self) -> Observation {
        let p = self.data.site_pos(self.scene.arm.grip());
        let r = axis_angle(&self.scene.arm.grip_rotation(&self.data));
        let [left, right] = self.fingers_m();
        Observation { proprio: [p[0], p[1], p[2], r.x, r.y, r.z, left, -right].map(|v| v as f32) }
    }

    fn ended(&self) -> Error {
        let why = match self.steps {
            0 => "no episode was started".to_owned(),
            steps => format!("the episode ended after {steps} steps"),
        };
        Error::NotRunning { why }
    }
}

/// Whether nothing is more than [`SEEN_M`] before the point.
pub(crate) fn sees(data: &Data, eye: &Point3<f64>, point: &Point3<f64>) -> Result<bool> {
    let along = point - eye;
    let hit = data.ray(eye.coords.into(), along.into())?;
    Ok(hit.is_none_or(|(distance, _)| (1.0 - distance) * along.norm() < SEEN_M))
}

impl Env for FlowEnv {
    fn spec(&self) -> &EnvSpec {
        &self.spec
    }

    fn instruction(&self) -> &str {
        &self.layout.instruction
    }

    fn reset(&mut self, seed: u64) -> Result<Observation> {
        self.arrange(seed)?;
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
        self.scene.arm.command(&mut self.data, action)?;
        let aborted = match self.data.step(SUBSTEPS) {
            Ok(()) => {
                let speed = self.data.qvel().iter().fold(0.0, |top, v| f64::max(top, v.abs()));
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
        let holds = aborted.is_none() && self.solved();
        self.held = if holds { self.held + 1 } else { 0 };
        let success = self.held >= FlowTask::HOLD_STEPS;
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
        let side = self.options.image_size;
        let found = CAMERAS.iter().position(|name| *name == camera).map(|i| self.cameras[i]);
        let id = found
            .ok_or_else(|| Error::UnknownCamera { name: camera.to_owned(), known: CAMERAS.join(", ") })?;
        let expected = side * side * 3;
        if out.len() != expected {
            return Err(Error::Length { what: "bytes of an image", expected, got: out.len() });
        }
        draw::rgb(&self.scene, &self.data, id, side, out)
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
        let named = |name: &str, pose: &Isometry3<f64>| NamedPose {
            name: name.to_owned(),
            pose: Pose { position_m: pose.translation.vector.into(), quat_wxyz: wxyz(&pose.rotation) },
        };
        let side = self.options.image_size;
        let cameras = CAMERAS.iter().zip(self.cameras).map(|(name, id)| camera_view(data, name, id, side));
        let [left, right] = self.fingers_m();
        let grip = self.scene.arm.grip();
        SceneState {
            time_secs: data.time_secs(),
            gripper: pose_of(data.site_pos(grip), data.site_mat(grip)),
            finger_opening_m: left + right,
            things: vec![named("object", &self.object_pose()), named("target", &self.layout.target)],
            geoms: geom_shapes(data),
            cameras: cameras.collect(),
        }
    }

    fn remaining(&self) -> f64 {
        goal::remaining(&self.layout, &self.object_pose())
    }
}

impl FlowEnv {
    /// What is inside what, now.
    #[must_use]
    pub fn collision(&self) -> super::Collision {
        collision(&self.scene, &self.data)
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
