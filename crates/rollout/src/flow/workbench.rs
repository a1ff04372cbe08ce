//! The workbench of `efference_envs::flow` as a robot for planner and executor.

use efference_envs::flow::{FlowEnv, FlowTask, Part, Probe, Sizes};
use efference_envs::{Action, Env, Outcome, ShapeKind};
use efference_geometry::ik::{IkOptions, solve_ik};
use efference_geometry::{Isometry3, Point3};

use super::{GraspShape, Gripper, Kinematics, Reached, Result, Robot};

/// Depth from which two things count as touching, metres: what rests on the table does not.
const TOUCH_M: f64 = 0.0015;
/// From the given joints only, in short steps, so that joints change little along a path.
const IK: IkOptions = IkOptions {
    position_m: 5e-4,
    rotation_rad: 5e-3,
    max_iterations: 40,
    restarts: 0,
    max_step: 0.3,
    radius_m: 0.1,
    seed: 0,
};
/// Opening of both grippers, metres, and how far their tips stand out.
const GRIPPER: Gripper = Gripper { opening_m: 0.09, tip_m: 0.011 };

/// Sees every control step of a trial: for recordings.
pub trait Watcher {
    /// This action is about to be executed in this state. Must not change the state.
    ///
    /// # Errors
    /// Whatever the watcher cannot do; it ends the trial.
    fn before(&mut self, env: &mut FlowEnv, action: &Action) -> Result<()>;

    /// This came of it.
    fn after(&mut self, outcome: &Outcome);
}

/// Watches nothing.
impl Watcher for () {
    fn before(&mut self, _: &mut FlowEnv, _: &Action) -> Result<()> {
        Ok(())
    }
    fn after(&mut self, _: &Outcome) {}
}

/// An environment and the points of its object that are observed (object's frame).
pub struct Workbench<'a> {
    env: &'a mut FlowEnv,
    points: Vec<Point3<f64>>,
    watcher: &'a mut dyn Watcher,
}

impl<'a> Workbench<'a> {
    /// Observes these points (object's frame), in this order.
    pub fn new(env: &'a mut FlowEnv, points: Vec<Point3<f64>>, watcher: &'a mut dyn Watcher) -> Self {
        Self { env, points, watcher }
    }
}

impl Robot for Workbench<'_> {
    fn step(&mut self, action: &Action) -> Result<Outcome> {
        self.watcher.before(self.env, action)?;
        let outcome = self.env.step(action)?;
        self.watcher.after(&outcome);
        Ok(outcome)
    }

    fn grip(&self) -> Isometry3<f64> {
        self.env.grip_pose()
    }

    fn opening_m(&self) -> f64 {
        self.env.fingers_m().iter().sum()
    }

    fn observe(&mut self) -> Result<Vec<Point3<f64>>> {
        let object = self.env.object_pose();
        Ok(self.points.iter().map(|p| object * p).collect())
    }
}

/// Whether the task is done only after letting go.
#[must_use]
pub fn releases(task: FlowTask) -> bool {
    matches!(task, FlowTask::Insert | FlowTask::Hang | FlowTask::Push)
}

/// A copy of the workbench for asking where the arm can go.
pub struct WorkbenchArm {
    probe: Probe,
    joints: Vec<f64>,
    object: Isometry3<f64>,
    parts: Vec<(GraspShape, Isometry3<f64>)>,
}

impl WorkbenchArm {
    /// Of the present state.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn new(env: &FlowEnv) -> Result<Self> {
        Ok(Self {
            probe: env.probe()?,
            joints: env.joints().to_vec(),
            object: env.object_pose(),
            parts: holds(&env.layout().sizes, env.object_parts()),
        })
    }
}

/// Where the object may be held. A cup is held as the round thing it is, a drawer by its handle.
fn holds(sizes: &Sizes, parts: &[Part]) -> Vec<(GraspShape, Isometry3<f64>)> {
    let shape = |part: &Part| {
        let [a, b, _] = part.size_m;
        Some(match part.kind {
            ShapeKind::Box => GraspShape::Box { half_m: part.size_m },
            ShapeKind::Capsule | ShapeKind::Cylinder => GraspShape::Cylinder { radius_m: a, half_m: b },
            ShapeKind::Sphere => return None,
        })
    };
    let named = |names: &[&str]| -> Vec<(GraspShape, Isometry3<f64>)> {
        let wanted = |part: &&Part| part.solid && names.iter().any(|n| part.name == *n);
        parts.iter().filter(wanted).filter_map(|part| Some((shape(part)?, part.pose))).collect()
    };
    match *sizes {
        Sizes::Pour { radius_m, height_m, .. } => {
            // Not its lowest part: the hand needs room above the table.
            let body = GraspShape::Barrel { radius_m, half_m: 0.3 * height_m };
            let rim = GraspShape::Rim { radius_m: radius_m - 0.002, wall_m: 0.004, depth_m: 0.8 * height_m };
            let up = |z: f64| Isometry3::translation(0.0, 0.0, z);
            vec![(body, up(0.1 * height_m)), (rim, up(0.5 * height_m))]
        }
        Sizes::Hang { .. } => named(&["tab"]),
        Sizes::Drawer { .. } => named(&["handle"]),
        Sizes::Insert { .. } | Sizes::Push { .. } => {
            parts.iter().filter(|p| p.solid).filter_map(|part| Some((shape(part)?, part.pose))).collect()
        }
    }
}

impl Kinematics for WorkbenchArm {
    fn joints(&self) -> Vec<f64> {
        self.joints.clone()
    }

    fn reach(&mut self, from: &[f64], grip: &Isometry3<f64>) -> Result<Reached> {
        let found = solve_ik(&self.probe.chain(), grip, from, &IK)?;
        Ok(Reached {
            joints: found.joints,
            left_m: found.position_error_m,
            left_rad: found.rotation_error_rad,
        })
    }

    fn touches(
        &mut self,
        joints: &[f64],
        opening_m: f64,
        object: &Isometry3<f64>,
        held: bool,
    ) -> Result<Option<String>> {
        self.probe.place_arm(joints, 0.5 * opening_m)?;
        self.probe.place_object(object)?;
        let depth = self.probe.collision()?;
        if depth.arm_and_scene_m > TOUCH_M {
            return Ok(Some("hand and scene".into()));
        }
        if !held && depth.arm_and_object_m > TOUCH_M {
            return Ok(Some("hand and object".into()));
        }
        Ok(None)
    }

    fn gripper(&self) -> Gripper {
        GRIPPER
    }

    fn parts(&self) -> Vec<(GraspShape, Isometry3<f64>)> {
        self.parts.clone()
    }

    fn object(&self) -> Isometry3<f64> {
        self.object
    }
}
