//! `meta.json` of a task pack: what the scene's numbers mean.
//!
//! Written from the live Python objects by the exporter. Fields that are not described here are kept in the file and
//! ignored by us.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Format of packs that this version reads.
pub const FORMAT: u64 = 1;

/// Everything about a task that its scene does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the pack format: 1.
    pub format: u64,
    /// `libero_spatial`, `libero_object`, `libero_goal`, `libero_10` or `libero_90`, or a variant of one.
    pub suite: String,
    /// Place of the task in its suite, from 0.
    pub task_id: usize,
    /// The task file's name without its ending.
    pub name: String,
    /// What policies are told; comes from the file name.
    pub language: String,
    /// The task file's own language field; differs from `language` in many tasks.
    #[serde(default)]
    pub bddl_language: String,
    /// The scene class, for example `libero_tabletop_manipulation`.
    #[serde(default)]
    pub problem: String,
    /// Facts that must all hold: `[predicate, object]` or `[predicate, object, place]`, lower case.
    pub goal: Vec<Vec<String>>,
    /// Facts that place things at a reset.
    #[serde(default)]
    pub init_predicates: Vec<Vec<String>>,
    /// Names of the things that the task is about.
    #[serde(default)]
    pub obj_of_interest: Vec<String>,
    /// What the pack was written with.
    pub versions: Versions,
    /// Numbers in `qpos`.
    pub nq: usize,
    /// Numbers in `qvel`.
    pub nv: usize,
    /// Actuators.
    pub nu: usize,
    /// Actuator activations: 0.
    #[serde(default)]
    pub na: usize,
    /// Physics step in seconds: 0.002.
    pub timestep: f64,
    /// Physics steps per control step: 25.
    pub substeps: usize,
    /// Control steps per second: 20.
    pub control_freq: f64,
    /// The most control steps of an episode: 1000.
    pub horizon: usize,
    /// The saved initial states.
    pub init_states: InitStatesMeta,
    /// Settings of the arm's controller.
    pub controller: ControllerMeta,
    /// The arm.
    pub robot: RobotMeta,
    /// The gripper.
    pub gripper: GripperMeta,
    /// Movable objects and fixtures by name.
    pub objects: BTreeMap<String, ObjectMeta>,
    /// Places that facts talk about, by name.
    pub sites: BTreeMap<String, SiteMeta>,
    /// Where things are put at random, by name of the region.
    #[serde(default)]
    pub regions: BTreeMap<String, RegionMeta>,
    /// Where the fixtures stood after each recorded reset.
    pub fixture_poses: FixturePoses,
    /// Colours of all sites after a reset, [nsite, 4]; a negative alpha hides a site.
    pub site_rgba_after_reset: Vec<[f32; 4]>,
    /// All cameras of the scene.
    #[serde(default)]
    pub cameras: Vec<String>,
    /// Cameras of the observation, the third-person one first.
    pub obs_cameras: Vec<String>,
    /// How the pack was made: `kind`, `texture_cap`, `mesh_max_faces`, `colorspace`, ...
    #[serde(default)]
    pub pack_info: serde_json::Value,
}

/// Versions of the software that wrote a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// MuJoCo, for example `3.3.2`. Packs do not depend on it; recorded initial states do a little.
    #[serde(default)]
    pub mujoco: String,
    /// robosuite: `1.4.0`.
    #[serde(default)]
    pub robosuite: String,
}

/// Shape of the saved initial states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitStatesMeta {
    /// File name inside the pack.
    pub file: String,
    /// [states, 1 + nq + nv].
    pub shape: [usize; 2],
    /// `time,qpos[nq],qvel[nv]`.
    #[serde(default)]
    pub layout: String,
}

/// Settings of the operational-space controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControllerMeta {
    /// `OSC_POSE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Lowest number of an action.
    pub input_min: f64,
    /// Highest number of an action.
    pub input_max: f64,
    /// What `input_min` means: metres (3), radians (3).
    pub output_min: [f64; 6],
    /// What `input_max` means.
    pub output_max: [f64; 6],
    /// Stiffness.
    pub kp: [f64; 6],
    /// Damping.
    pub kd: [f64; 6],
    /// Stiffness of the posture task in the null space.
    pub nullspace_kp: f64,
    /// Whether position and orientation are decoupled: true.
    pub uncouple_pos_ori: bool,
    /// The controlled site.
    pub eef_site: String,
}

/// A joint and where its numbers are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JointMeta {
    /// Its name in the scene.
    pub name: String,
    /// Its index in the scene.
    pub id: usize,
    /// `hinge`, `slide`, `free` or `ball`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// First of its numbers in `qpos`.
    pub qpos_adr: usize,
    /// First of its numbers in `qvel`.
    pub dof_adr: usize,
    /// Limits in radians or metres; zeros for none.
    #[serde(default)]
    pub range: [f64; 2],
}

/// The arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RobotMeta {
    /// Its base.
    #[serde(default)]
    pub root_body: String,
    /// The seven joints from base to hand.
    pub joints: Vec<JointMeta>,
    /// Their motors.
    pub actuators: Vec<usize>,
    /// Lowest torques in N m.
    pub torque_low: [f64; 7],
    /// Highest torques in N m.
    pub torque_high: [f64; 7],
    /// Joint angles at a reset, and the posture that the controller prefers.
    pub init_qpos: [f64; 7],
    /// The body whose orientation is observed.
    pub hand_body: String,
}

/// The gripper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GripperMeta {
    /// The two finger joints.
    pub joints: Vec<JointMeta>,
    /// Their position servos.
    pub actuators: Vec<usize>,
    /// Range of each servo's control in metres.
    pub ctrlrange: [[f64; 2]; 2],
    /// Change of the command per physics step: 0.01.
    pub speed: f64,
    /// Direction of each finger for a positive (closing) action: -1, 1.
    pub sign: [f64; 2],
    /// Geoms of the left finger's pad.
    #[serde(default)]
    pub left_geoms: Vec<usize>,
    /// Geoms of the right finger's pad.
    #[serde(default)]
    pub right_geoms: Vec<usize>,
}

/// Whether a thing can be carried around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Moves freely.
    Object,
    /// Stands where the reset puts it; may have doors, drawers, knobs.
    Fixture,
}

/// A thing of the scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObjectMeta {
    /// Movable or not.
    pub kind: ObjectKind,
    /// Its type, for example `akita_black_bowl`.
    #[serde(default)]
    pub category: String,
    /// The body whose pose is the thing's pose.
    pub root_body: String,
    /// Its joints: a free one for movable things, hinges and slides of fixtures.
    pub joints: Vec<JointMeta>,
    /// Geoms that count as its contacts.
    pub contact_geom_ids: Vec<usize>,
    /// When its joints count as open, closed, turned on, turned off: keys `open`, `close`, `turnon`, `turnoff`.
    #[serde(default)]
    pub predicates: BTreeMap<String, Threshold>,
    /// Sites that are shown or hidden: `burner` of a stove.
    #[serde(default)]
    pub vis_sites: BTreeMap<String, String>,
}

/// How a joint's position is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// Below the threshold.
    Lt,
    /// Above it.
    Gt,
    /// At least the threshold.
    Ge,
    /// At most the threshold.
    Le,
}

/// Of several joints, how many must meet the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantifier {
    /// One is enough.
    Any,
    /// Every one.
    All,
}

/// A condition on joint positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// How to compare.
    pub cmp: Comparison,
    /// With what: radians or metres.
    pub thr: f64,
    /// For how many joints.
    pub quant: Quantifier,
}

/// A place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteMeta {
    /// Its index in the scene.
    pub site_id: usize,
    /// The thing that it is part of; `None` for zones of the table or floor.
    pub parent: Option<String>,
    /// Joints of the body that holds it, for example of the drawer.
    #[serde(default)]
    pub joints: Vec<JointMeta>,
    /// Half sizes in metres, in its own frame.
    pub size: [f64; 3],
    /// `TargetZone` or `SiteObject`.
    #[serde(default)]
    pub kind: String,
    /// The body that holds it.
    #[serde(default)]
    pub body_id: usize,
}

/// A region of the task file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegionMeta {
    /// The thing that it lies on.
    pub target: String,
    /// Rectangles `[x0, y0, x1, y1]` in metres in the target's frame; empty for regions built into a fixture.
    #[serde(default)]
    pub ranges: Vec<[f64; 4]>,
    /// Range of the turn about the vertical in radians.
    #[serde(default)]
    pub yaw: Vec<f64>,
}

/// Where fixtures stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FixturePoses {
    /// Seed of the recorded resets: 0.
    #[serde(default)]
    pub seed: u64,
    /// Entry k: after the (k+1)-th reset, by name of the fixture. May be empty: then fixtures stay as in the scene.
    pub resets: Vec<BTreeMap<String, FixturePose>>,
}

/// Where one fixture stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FixturePose {
    /// Its root body.
    pub body: String,
    /// Metres, in the frame of the body's parent.
    pub pos: [f64; 3],
    /// Unit quaternion, wxyz.
    pub quat: [f64; 4],
}
