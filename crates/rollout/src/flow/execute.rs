//! Grasps the object and moves it along a flow, step by step, looking again all the time.

use efference_envs::{Action, Outcome};
use efference_geometry::rigid::{FlowFit, fit_rigid};
use efference_geometry::{Isometry3, Point3, interpolate_isometry};
use serde::{Deserialize, Serialize};

use super::plan::backed_out;
use super::servo::{Pace, apart, densify, pose_at, servo};
use super::{Error, GraspPlan, Result, Robot};

/// How a plan is executed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecuteOptions {
    /// Without the object.
    pub free: Pace,
    /// With the object, along the flow.
    pub carry: Pace,
    /// Control steps between two looks at the points, at least 1: the horizon that recedes.
    pub chunk: usize,
    /// Observed points that are farther from the flow (mean, metres) make it plan again.
    pub replan_m: f64,
    /// Control steps for closing and opening the fingers.
    pub finger_steps: usize,
    /// Control steps at most to arrive at a pose exactly.
    pub settle_steps: usize,
    /// Control steps that are waited at the end for the task to be called done.
    pub wait_steps: usize,
    /// How far the gripper goes back after letting go, metres.
    pub retreat_m: f64,
}

impl Default for ExecuteOptions {
    fn default() -> Self {
        Self {
            free: Pace { step_m: 0.045, step_rad: 0.35 },
            carry: Pace { step_m: 0.015, step_rad: 0.12 },
            chunk: 5,
            replan_m: 0.03,
            finger_steps: 8,
            settle_steps: 15,
            wait_steps: 12,
            retreat_m: 0.08,
        }
    }
}

impl ExecuteOptions {
    /// # Errors
    /// [`Error::Setting`] names what is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |setting, value: String, range| Err(Error::Setting { setting, value, range });
        for (name, pace) in [("free", self.free), ("carry", self.carry)] {
            let fine = |x: f64, most: f64| x > 1e-4 && x <= most;
            if !fine(pace.step_m, 0.05) || !fine(pace.step_rad, 0.5) {
                return bad(name, format!("{pace:?}"), "above 0, up to 0.05 m and 0.5 rad a step");
            }
        }
        if self.chunk == 0 {
            return bad("chunk", "0".into(), "at least 1");
        }
        if self.replan_m.is_nan() || self.replan_m <= 0.0 {
            return bad("replan_m", self.replan_m.to_string(), "above 0");
        }
        Ok(())
    }
}

/// What happened, for whoever watches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Before the approach.
    AtStandOff,
    /// Where the fingers are to close.
    AtGrasp {
        /// Distance from the planned place, metres.
        left_m: f64,
        /// Angle from it, radians.
        left_rad: f64,
    },
    /// The fingers are closed.
    Closed {
        /// Distance between them, metres.
        opening_m: f64,
    },
    /// There is nothing between the fingers.
    Missed,
    /// A look at the points: the mean distance from the flow at the nearest moment.
    Looked {
        /// Share of the way done, 0 to 1.
        progress: f64,
        /// Metres.
        deviation_m: f64,
    },
    /// The points had left the flow: the rest was planned again from where they are.
    Replanned {
        /// Metres.
        deviation_m: f64,
    },
    /// The object does not follow the gripper any more.
    Lost,
    /// At the end of the flow.
    Arrived {
        /// Mean distance of the points from the flow's last frame, metres.
        left_m: f64,
    },
    /// The fingers were opened.
    Released,
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The environment ended the episode: done, out of time, or unstable.
    Over,
    /// The whole plan was executed.
    Finished,
    /// The gripper closed on nothing.
    Missed,
    /// The object slipped out on the way.
    Lost,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Events with the control step they belong to.
    pub events: Vec<(usize, Event)>,
    /// World from gripper before every control step.
    pub grips: Vec<Isometry3<f64>>,
    /// The actions.
    pub actions: Vec<Action>,
    /// The last outcome.
    pub last: Option<Outcome>,
    /// How often the rest was planned again.
    pub replans: usize,
}

impl Trace {
    fn event(&mut self, event: Event) {
        self.events.push((self.actions.len(), event));
    }

    /// Whether the episode is over.
    #[must_use]
    pub fn over(&self) -> bool {
        self.last.as_ref().is_some_and(|o| o.done)
    }
}

/// Executes a grasp plan along the flow it was made for; goes on from what `trace` holds. `points` are the query's, `fit` the
/// flow's rigid motion, `release`: let go at the end; else the object is held there for a while.
///
/// # Errors
/// Options out of range, or the environment failed. That the grasp missed or the object was lost is an [`End`].
pub fn execute(
    robot: &mut dyn Robot,
    points: &[Point3<f64>],
    fit: &FlowFit,
    plan: &GraspPlan,
    release: bool,
    options: &ExecuteOptions,
    trace: &mut Trace,
) -> Result<End> {
    options.validate()?;
    if fit.poses.len() < 2 || points.len() < 3 {
        let why = format!("{} frames of {} points cannot be followed", fit.poses.len(), points.len());
        return Err(Error::Query { why });
    }
    let mut executor = Executor { robot, options, trace };
    let Some(&grasp) = plan.path.first() else { return Err(Error::Query { why: "an empty plan".into() }) };

    // Over the things on the table, then down.
    let high = executor.robot.grip().translation.z.max(plan.before.translation.z);
    let mut above = plan.before;
    above.translation.z = high;
    for (pose, steps, exact) in [(above, 60, false), (plan.before, 30, false)] {
        if executor.go(&pose, false, &options.free, steps, exact)? {
            return Ok(End::Over);
        }
    }
    executor.trace.event(Event::AtStandOff);
    if executor.go(&grasp, false, &options.carry, 40, true)? {
        return Ok(End::Over);
    }
    let [left_m, left_rad] = apart(&executor.robot.grip(), &grasp);
    executor.trace.event(Event::AtGrasp { left_m, left_rad });
    if executor.stay(&grasp, true, options.finger_steps)? {
        return Ok(End::Over);
    }
    let opening_m = executor.robot.opening_m();
    executor.trace.event(Event::Closed { opening_m });
    if opening_m < 0.4 * plan.grasp.width_m {
        executor.trace.event(Event::Missed);
        return Ok(End::Missed);
    }
    if let Some(end) = executor.follow(points, fit)? {
        return Ok(end);
    }
    let here = executor.robot.grip();
    if !release {
        let over = executor.stay(&here, true, options.wait_steps)?;
        return Ok(if over { End::Over } else { End::Finished });
    }
    if executor.stay(&here, false, options.finger_steps)? {
        return Ok(End::Over);
    }
    executor.trace.event(Event::Released);
    let out = backed_out(&here, options.retreat_m);
    if executor.go(&out, false, &options.carry, 30, false)?
        || executor.stay(&out, false, options.wait_steps)?
    {
        return Ok(End::Over);
    }
    Ok(End::Finished)
}

struct Executor<'a> {
    robot: &'a mut dyn Robot,
    options: &'a ExecuteOptions,
    trace: &'a mut Trace,
}

impl Executor<'_> {
    /// One control step; true when the episode is over.
    fn step(&mut self, target: &Isometry3<f64>, close: bool, pace: &Pace) -> Result<bool> {
        let grip = self.robot.grip();
        let action = servo(&grip, target, close, pace);
        self.trace.grips.push(grip);
        let outcome = self.robot.step(&action)?;
        self.trace.actions.push(action);
        let done = outcome.done;
        self.trace.last = Some(outcome);
        Ok(done)
    }

    /// To a pose, for so many steps at most.
    fn go(
        &mut self,
        target: &Isometry3<f64>,
        close: bool,
        pace: &Pace,
        steps: usize,
        exact: bool,
    ) -> Result<bool> {
        let (near_m, near_rad) = if exact { (0.003, 0.03) } else { (0.012, 0.10) };
        for _ in 0..steps {
            let [m, rad] = apart(&self.robot.grip(), target);
            if m < near_m && rad < near_rad {
                return Ok(false);
            }
            if self.step(target, close, pace)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn stay(&mut self, at: &Isometry3<f64>, close: bool, steps: usize) -> Result<bool> {
        for _ in 0..steps {
            if self.step(at, close, &self.options.carry)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Along the flow to its end. `None`: arrived.
    fn follow(&mut self, points: &[Point3<f64>], fit: &FlowFit) -> Result<Option<End>> {
        let pace = self.options.carry;
        // The object's own poses, up to a constant: a frame in the middle of its points.
        let middle = points.iter().fold(Point3::origin(), |sum, p| sum + p.coords / points.len() as f64);
        let frame = Isometry3::translation(middle.x, middle.y, middle.z);
        let poses: Vec<Isometry3<f64>> = fit.poses.iter().map(|motion| motion * frame).collect();
        let places = densify(&poses, &pace);
        let motions: Vec<Isometry3<f64>> =
            places.iter().map(|p| pose_at(&poses, *p) * frame.inverse()).collect();
        let last = motions.len() - 1;
        // Where the gripper would be if the object had not moved; what it holds may slip, so it is looked up again.
        let grasp = self.robot.grip();
        let mut anchor = grasp;
        let (mut at, mut settled) = (0_usize, 0_usize);
        for step in 0_usize.. {
            if step.is_multiple_of(self.options.chunk) {
                let seen = self.robot.observe()?;
                if seen.len() != points.len() {
                    return Err(Error::Query {
                        why: format!("{} points seen of {}", seen.len(), points.len()),
                    });
                }
                let displaced = fit_rigid(points, &seen, None)?.pose;
                let nearest = |k: usize| mean_gap(points, &seen, &motions[k]);
                let deviation_m = (at.saturating_sub(12)..=at).map(nearest).fold(f64::INFINITY, f64::min);
                self.trace.event(Event::Looked { progress: at as f64 / last.max(1) as f64, deviation_m });
                let held = displaced.inverse() * self.robot.grip();
                let [slip_m, slip_rad] = apart(&held, &grasp);
                if slip_m > 0.05 || slip_rad > 1.0 {
                    self.trace.event(Event::Lost);
                    return Ok(Some(End::Lost));
                }
                if deviation_m > self.options.replan_m {
                    self.trace.event(Event::Replanned { deviation_m });
                    self.trace.replans += 1;
                    anchor = held;
                } else {
                    // Half way each time: one look in the middle of a movement is not exact.
                    anchor = interpolate_isometry(&anchor, &held, 0.5);
                }
            }
            let target = motions[at] * anchor;
            let [m, rad] = apart(&self.robot.grip(), &target);
            if at < last {
                if m < 1.5 * pace.step_m && rad < 1.5 * pace.step_rad {
                    at += 1;
                }
            } else {
                settled += 1;
                if (m < 0.002 && rad < 0.02 && settled > 3) || settled > self.options.settle_steps {
                    break;
                }
            }
            // An arm that is stuck must not wait for ever.
            if step > 4 * last + 60 {
                break;
            }
            if self.step(
                &(motions[at] * anchor),
                true,
                &Pace { step_m: 2.0 * pace.step_m, step_rad: 2.0 * pace.step_rad },
            )? {
                return Ok(Some(End::Over));
            }
        }
        let seen = self.robot.observe()?;
        let left_m = mean_gap(points, &seen, &motions[last]);
        self.trace.event(Event::Arrived { left_m });
        Ok(None)
    }
}

/// Mean distance between where points are seen and where a motion puts them.
fn mean_gap(points: &[Point3<f64>], seen: &[Point3<f64>], motion: &Isometry3<f64>) -> f64 {
    points.iter().zip(seen).map(|(p, s)| (motion * p - s).norm()).sum::<f64>() / points.len().max(1) as f64
}
