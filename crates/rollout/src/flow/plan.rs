//! Which grasp lets this arm carry the object along a flow.

use efference_geometry::{Isometry3, Vector3, interpolate_isometry};
use nalgebra::Translation3;
use serde::{Deserialize, Serialize};

use super::{Error, Grasp, Kinematics, Result, grasp_candidates};

/// Distance between the poses of the approach that are examined, metres.
const APPROACH_STEP_M: f64 = 0.01;

/// How grasps are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanOptions {
    /// Candidates that are examined at most, the most promising first.
    pub candidates: usize,
    /// How far the gripper starts from the grasp, and goes back after a release, metres.
    pub stand_off_m: f64,
    /// Distance and angle (metres, radians) that inverse kinematics may leave.
    pub reach_m: f64,
    /// See `reach_m`.
    pub reach_rad: f64,
    /// Poses examined between two frames of the flow, at least 1.
    pub between: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { candidates: 400, stand_off_m: 0.08, reach_m: 0.004, reach_rad: 0.04, between: 3 }
    }
}

impl PlanOptions {
    /// # Errors
    /// [`Error::Setting`] names what is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |setting, value: String, range| Err(Error::Setting { setting, value, range });
        if self.candidates == 0 || self.between == 0 {
            return bad("candidates and between", "0".into(), "at least 1");
        }
        for (name, x) in
            [("stand_off_m", self.stand_off_m), ("reach_m", self.reach_m), ("reach_rad", self.reach_rad)]
        {
            if !(x > 0.0 && x < 1.0) {
                return bad(name, x.to_string(), "between 0 and 1");
            }
        }
        Ok(())
    }
}

/// What an examination of a grasp found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum GraspCheck {
    /// It serves.
    Good,
    /// The gripper cannot get there before the object moves.
    StartUnreachable,
    /// Something is in the way before the object moves.
    StartCollision {
        /// What touches what.
        pair: String,
    },
    /// The gripper cannot follow the object to this frame.
    PathUnreachable {
        /// Frame of the flow.
        frame: usize,
    },
    /// The arm would touch something while the object is at this frame.
    PathCollision {
        /// Frame of the flow.
        frame: usize,
        /// What touches what.
        pair: String,
    },
    /// After letting go it cannot back out.
    ExitBlocked,
}

/// A grasp that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Examined {
    /// World from gripper when it holds the object at frame 0.
    pub grip: Isometry3<f64>,
    /// How promising it looked: the smaller the better.
    pub cost: f64,
    /// What was found.
    pub check: GraspCheck,
}

/// A grasp and the way of the gripper.
#[derive(Clone, Debug, PartialEq)]
pub struct GraspPlan {
    /// The grasp.
    pub grasp: Grasp,
    /// World from gripper before the approach.
    pub before: Isometry3<f64>,
    /// World from gripper at every frame of the flow, the grasp first.
    pub path: Vec<Isometry3<f64>>,
    /// All that were looked at, the chosen one last.
    pub examined: Vec<Examined>,
}

/// No grasp serves.
#[derive(Clone, Debug, PartialEq)]
pub struct NoGrasp {
    /// How many candidates there are at all.
    pub candidates: usize,
    /// All that were looked at.
    pub examined: Vec<Examined>,
}

impl std::fmt::Display for NoGrasp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.candidates == 0 {
            return write!(f, "no part of the object fits between the fingers");
        }
        let count = |is: fn(&GraspCheck) -> bool| self.examined.iter().filter(|e| is(&e.check)).count();
        write!(
            f,
            "none of {} grasps serves (start: {} out of reach, {} in collision; on the way: {} out of reach, {} in \
             collision; {} cannot let go)",
            self.examined.len(),
            count(|c| matches!(c, GraspCheck::StartUnreachable)),
            count(|c| matches!(c, GraspCheck::StartCollision { .. })),
            count(|c| matches!(c, GraspCheck::PathUnreachable { .. })),
            count(|c| matches!(c, GraspCheck::PathCollision { .. })),
            count(|c| matches!(c, GraspCheck::ExitBlocked)),
        )
    }
}

/// The best grasp for a motion. `motions` (from the present to each frame, world frame, the identity first) carry the
/// object; the gripper goes with it. The best is the first in the order of cost that the arm can take, carry along every
/// frame in one continuous sweep of its joints, and leave again if `release` says so, without touching anything.
///
/// # Errors
/// The model refused, or options out of range. That there is no grasp is no error.
pub fn plan_grasp(
    arm: &mut dyn Kinematics,
    motions: &[Isometry3<f64>],
    release: bool,
    options: &PlanOptions,
) -> Result<std::result::Result<GraspPlan, NoGrasp>> {
    options.validate()?;
    let Some(last) = motions.last() else {
        return Err(Error::Query { why: "a motion without frames".into() });
    };
    let object = arm.object();
    let gripper = arm.gripper();
    let parts = arm.parts();
    let now = arm.joints();
    let candidates = grasp_candidates(&parts, &gripper);
    let mut ranked: Vec<(f64, Grasp)> = candidates
        .iter()
        .filter_map(|grasp| Some((cost(&(object * grasp.object_from_grip), last, grasp)?, *grasp)))
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut examined = Vec::new();
    for (cost, grasp) in ranked.into_iter().take(options.candidates) {
        let start = object * grasp.object_from_grip;
        let mut examination = Examination { arm, options, object: &object, opening_m: gripper.opening_m };
        let check = examination.run(&now, &grasp, motions, release)?;
        examined.push(Examined { grip: start, cost, check: check.clone() });
        if check == GraspCheck::Good {
            let before = backed_out(&start, options.stand_off_m);
            let path = motions.iter().map(|motion| motion * start).collect();
            return Ok(Ok(GraspPlan { grasp, before, path, examined }));
        }
    }
    Ok(Err(NoGrasp { candidates: candidates.len(), examined }))
}

/// The gripper, moved back along its approach.
pub(crate) fn backed_out(grip: &Isometry3<f64>, by_m: f64) -> Isometry3<f64> {
    grip * Translation3::new(0.0, 0.0, by_m)
}

/// How promising a grasp looks: from above at the start and, less, at the end; in the middle of a part; without much
/// turning of the hand. `None` for those that come from below.
fn cost(start: &Isometry3<f64>, last: &Isometry3<f64>, grasp: &Grasp) -> Option<f64> {
    let down = |grip: &Isometry3<f64>| (grip.rotation * Vector3::z()).z;
    let at_start = down(start);
    if at_start < -0.3 {
        return None;
    }
    let at_end = down(&(last * start));
    let turn = start.rotation.angle();
    let aside = 10.0 * grasp.shift_m.abs();
    Some((1.0 - at_start) + 0.6 * (1.0 - at_end) + 4.0 * grasp.off_middle_m + 0.15 * turn + aside)
}

struct Examination<'a> {
    arm: &'a mut dyn Kinematics,
    options: &'a PlanOptions,
    object: &'a Isometry3<f64>,
    opening_m: f64,
}

impl Examination<'_> {
    /// Joint angles for a pose, if it is reached.
    fn reach(&mut self, from: &[f64], grip: &Isometry3<f64>) -> Result<Option<Vec<f64>>> {
        let found = self.arm.reach(from, grip)?;
        let there = found.left_m <= self.options.reach_m && found.left_rad <= self.options.reach_rad;
        Ok(there.then_some(found.joints))
    }

    fn run(
        &mut self,
        now: &[f64],
        grasp: &Grasp,
        motions: &[Isometry3<f64>],
        release: bool,
    ) -> Result<GraspCheck> {
        let start = self.object * grasp.object_from_grip;
        let before = backed_out(&start, self.options.stand_off_m);
        let Some(joints) = self.reach(now, &before)? else { return Ok(GraspCheck::StartUnreachable) };
        if let Some(pair) = self.arm.touches(&joints, self.opening_m, self.object, false)? {
            return Ok(GraspCheck::StartCollision { pair });
        }
        // In small steps: a finger right through a thin wall is no contact for the collision engine.
        let mut joints = joints;
        let steps = (self.options.stand_off_m / APPROACH_STEP_M).ceil().max(1.0) as usize;
        for i in 1..=steps {
            let left = self.options.stand_off_m * (1.0 - i as f64 / steps as f64);
            let Some(next) = self.reach(&joints, &backed_out(&start, left))? else {
                return Ok(GraspCheck::StartUnreachable);
            };
            joints = next;
            if let Some(pair) = self.arm.touches(&joints, self.opening_m, self.object, false)? {
                return Ok(GraspCheck::StartCollision { pair });
            }
        }
        for (frame, pair) in motions.windows(2).enumerate() {
            for i in 1..=self.options.between {
                let share = i as f64 / self.options.between as f64;
                let motion = interpolate_isometry(&pair[0], &pair[1], share);
                let Some(next) = self.reach(&joints, &(motion * start))? else {
                    return Ok(GraspCheck::PathUnreachable { frame: frame + 1 });
                };
                joints = next;
                let object = motion * self.object;
                if let Some(pair) = self.arm.touches(&joints, grasp.width_m, &object, true)? {
                    return Ok(GraspCheck::PathCollision { frame: frame + 1, pair });
                }
            }
        }
        if let (true, Some(last)) = (release, motions.last()) {
            let out = backed_out(&(last * start), self.options.stand_off_m);
            if self.reach(&joints, &out)?.is_none() {
                return Ok(GraspCheck::ExitBlocked);
            }
        }
        Ok(GraspCheck::Good)
    }
}
