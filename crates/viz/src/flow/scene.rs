//! The plain types of a flow that is to be looked at.

use efference_geometry::rigid::{FlowFit, FlowFitOptions, fit_flow};
use efference_geometry::{Camera, Flow3d, Frame, Isometry3, Point3};
use image::RgbImage;

use super::FlowErrors;
use crate::error::{Error, Result};

/// One object, one instruction: what the camera saw, how the object moved, how it was predicted to move, what was
/// planned and done. World frame (z up, metres) throughout; `T + 1` frames, frame 0 is the present.
///
/// [`FlowScene::new`] makes one with nothing but the present; everything else is optional and public. What is there is
/// shown, what is missing leaves no gap.
#[derive(Clone, Debug)]
pub struct FlowScene {
    /// Short name, for files and titles; for example the family of the task.
    pub name: String,
    /// What was asked.
    pub instruction: String,
    /// Seed of the scene.
    pub seed: u64,
    /// Calibrated for `picture`.
    pub camera: Camera,
    /// The first picture.
    pub picture: RgbImage,
    /// Depth of the first picture [height, width]: metres along the optical axis, 0 (or not finite) where unknown; empty
    /// for none.
    pub depth_m: Vec<f32>,
    /// The object in the first picture [height, width]: 255 on it, else 0; empty for none.
    pub mask: Vec<u8>,
    /// The query points at frame 0, [N].
    pub points: Vec<Point3<f64>>,
    /// How the points really moved, [T + 1, N].
    pub truth: Option<Flow3d>,
    /// The rigid motion in the truth.
    pub truth_fit: Option<FlowFit>,
    /// Samples of the world model, each [T + 1, N].
    pub predictions: Vec<Prediction>,
    /// The sample that was acted upon, or that is shown first.
    pub chosen: Option<usize>,
    /// Candidates for the grasp.
    pub grasps: Vec<Grasp>,
    /// Planned poses of the end effector.
    pub plan: Vec<TimedPose>,
    /// Poses of the end effector as they came to be.
    pub executed: Vec<TimedPose>,
    /// Further curves over the frames, such as the cost of the plan.
    pub curves: Vec<Curve>,
    /// When which part of the work began.
    pub phases: Vec<Phase>,
    /// Whether the task was done in the end, if that is known.
    pub success: Option<bool>,
    /// Number of frame 0 on the recording's timeline: a later round of planning starts where the earlier one was left.
    pub first_frame: usize,
    /// Round of planning, from 0.
    pub round: usize,
    /// Seconds between two frames, > 0.
    pub frame_s: f64,
    /// Further lines for the card: what and value.
    pub notes: Vec<(String, String)>,
}

/// One sample of the world model and what was made of it.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// [T + 1, N], world frame.
    pub flow: Flow3d,
    /// The rigid motion in it.
    pub fit: Option<FlowFit>,
    /// The scene drawn with the object where the flow leaves it.
    pub final_picture: Option<RgbImage>,
    /// What the judges said, in the order in which they were asked.
    pub verdicts: Vec<Verdict>,
    /// The sample on its way out of the noise, first to last step of the sampler; each as large as `flow`.
    pub chain: Vec<Flow3d>,
}

/// What a judge said.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Who; for example `rigidity` or `predicate`.
    pub judge: String,
    /// Whether the prediction may be acted upon.
    pub accepted: bool,
    /// Its score, in the judge's own scale.
    pub score: Option<f64>,
    /// Why, in words; may be empty.
    pub reason: String,
}

/// A candidate for the grasp.
#[derive(Clone, Debug, PartialEq)]
pub struct Grasp {
    /// World from gripper: it moves along its -z to the object and closes its fingers along y.
    pub pose: Isometry3<f64>,
    /// Distance between the open fingers, metres.
    pub opening_m: f64,
    /// How far the finger tips stand out beyond the frame's origin, metres.
    pub tip_m: f64,
    /// What became of it.
    pub state: GraspState,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraspState {
    /// The arm cannot go there, or cannot follow the flow from there.
    Rejected,
    /// Possible.
    Possible,
    /// The one that is used.
    Chosen,
}

/// A pose and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedPose {
    /// In frames of this scene, fractions allowed, 0 for the present; from earlier to later.
    pub frame: f64,
    /// World from end effector.
    pub pose: Isometry3<f64>,
}

/// A curve over the frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Name with unit, for instance `cost/collision`; `/` groups.
    pub name: String,
    /// [T + 1]; values that are not finite leave a gap.
    pub values: Vec<f64>,
}

/// The beginning of a part of the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// In frames of this scene.
    pub frame: usize,
    /// For instance `grasp`.
    pub name: String,
}

impl Prediction {
    /// A sample of which nothing is known yet but itself.
    #[must_use]
    pub fn new(flow: Flow3d) -> Self {
        Self { flow, fit: None, final_picture: None, verdicts: Vec::new(), chain: Vec::new() }
    }

    /// Whether all judges accepted it; `None` without a judge.
    #[must_use]
    pub fn accepted(&self) -> Option<bool> {
        (!self.verdicts.is_empty()).then(|| self.verdicts.iter().all(|v| v.accepted))
    }
}

impl FlowScene {
    /// The present: what was asked, what the camera sees, the query points (world frame).
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        instruction: impl Into<String>,
        camera: Camera,
        picture: RgbImage,
        points: Vec<Point3<f64>>,
    ) -> Self {
        Self {
            name: name.into(),
            instruction: instruction.into(),
            seed: 0,
            camera,
            picture,
            depth_m: Vec::new(),
            mask: Vec::new(),
            points,
            truth: None,
            truth_fit: None,
            predictions: Vec::new(),
            chosen: None,
            grasps: Vec::new(),
            plan: Vec::new(),
            executed: Vec::new(),
            curves: Vec::new(),
            phases: Vec::new(),
            success: None,
            first_frame: 0,
            round: 0,
            frame_s: 0.5,
            notes: Vec::new(),
        }
    }

    /// The flow in the world frame, from whichever frame it is in.
    #[must_use]
    pub fn in_world(&self, flow: &Flow3d) -> Flow3d {
        match flow.frame() {
            Frame::World => flow.clone(),
            Frame::Camera => flow.transformed(Frame::World, &self.camera.world_from_camera),
        }
    }

    /// Fits rigid motions to the flows that have none yet, robustly, with the defaults of [`fit_flow`].
    ///
    /// # Errors
    /// None with these options; the signature is that of [`fit_flow`].
    pub fn fit(&mut self) -> efference_geometry::Result<()> {
        let options = FlowFitOptions::default();
        if let (Some(truth), None) = (&self.truth, &self.truth_fit) {
            self.truth_fit = Some(fit_flow(truth, &options)?);
        }
        for prediction in self.predictions.iter_mut().filter(|p| p.fit.is_none()) {
            prediction.fit = Some(fit_flow(&prediction.flow, &options)?);
        }
        Ok(())
    }

    /// The prediction that is shown where there is room for one.
    #[must_use]
    pub fn shown(&self) -> Option<&Prediction> {
        self.predictions.get(self.chosen.unwrap_or(0))
    }

    /// Frames of the flow with the present; 1 where there is none.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.flows().map(Flow3d::frames).max().unwrap_or(1)
    }

    /// How far prediction `k` is from the truth; `None` without one of the two.
    #[must_use]
    pub fn errors(&self, k: usize) -> Option<FlowErrors> {
        Some(FlowErrors::between(self.truth.as_ref()?, &self.predictions.get(k)?.flow))
    }

    /// Truth and predictions.
    pub(crate) fn flows(&self) -> impl Iterator<Item = &Flow3d> {
        self.truth.iter().chain(self.predictions.iter().map(|p| &p.flow))
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// [`Error::Shape`] names the part that does not.
    pub fn validate(&self) -> Result<()> {
        let (points, frames) = (self.points.len(), self.frames());
        let (w, h) = (self.picture.width() as usize, self.picture.height() as usize);
        let k = self.camera.intrinsics;
        self.want("picture", [w, h], [k.width, k.height])?;
        if w == 0 || h == 0 {
            return Err(self.shape("picture", "no pixels", "at least one"));
        }
        if points == 0 || !self.points.iter().all(finite) {
            return Err(self.shape("points", format!("{points} points"), "at least one, all finite"));
        }
        for (field, length) in [("depth_m", self.depth_m.len()), ("mask", self.mask.len())] {
            if length != 0 {
                self.want(field, length, w * h)?;
            }
        }
        let named = self.truth.iter().map(|flow| ("truth".to_owned(), flow));
        let predicted = self.predictions.iter().enumerate();
        let predicted = predicted.flat_map(|(k, p)| {
            std::iter::once(&p.flow).chain(&p.chain).map(move |flow| (format!("predictions[{k}]"), flow))
        });
        for (field, flow) in named.chain(predicted) {
            self.want(&field, [flow.frames(), flow.points()], [frames, points])?;
            if flow.frame() != Frame::World {
                return Err(self.shape(&field, "camera coordinates", "world coordinates (`in_world`)"));
            }
        }
        let predicted = self.predictions.iter().enumerate();
        let predicted =
            predicted.filter_map(|(k, p)| Some((format!("predictions[{k}].fit"), p.fit.as_ref()?)));
        let true_fit = self.truth_fit.iter().map(|fit| ("truth_fit".to_owned(), fit));
        for (field, fit) in true_fit.chain(predicted) {
            let lengths = [fit.poses.len(), fit.rms_m.len(), fit.inliers.len()];
            self.want(&field, lengths, [frames; 3])?;
            self.want(&field, fit.inliers.iter().map(Vec::len).max().unwrap_or(0), points)?;
            self.want(&field, fit.inliers.iter().map(Vec::len).min().unwrap_or(0), points)?;
            if !fit.poses.iter().all(is_pose) {
                return Err(self.shape(&field, "a number that is not finite", "finite poses"));
            }
        }
        if let Some(k) = self.chosen.filter(|k| *k >= self.predictions.len()) {
            let expected = format!("below {}", self.predictions.len());
            return Err(self.shape("chosen", k.to_string(), &expected));
        }
        for curve in &self.curves {
            self.want(&format!("curve `{}`", curve.name), curve.values.len(), frames)?;
        }
        for (field, poses) in [("plan", &self.plan), ("executed", &self.executed)] {
            let in_order = poses.windows(2).all(|w| w[0].frame <= w[1].frame);
            if !in_order || !poses.iter().all(|p| p.frame.is_finite() && is_pose(&p.pose)) {
                return Err(self.shape(field, "other poses", "finite poses from earlier to later"));
            }
        }
        if !self.grasps.iter().all(|g| is_pose(&g.pose) && g.opening_m.is_finite() && g.tip_m.is_finite()) {
            return Err(self.shape("grasps", "a number that is not finite", "finite poses and sizes"));
        }
        if !(self.frame_s > 0.0 && self.frame_s.is_finite()) {
            return Err(self.shape("frame_s", self.frame_s.to_string(), "above 0"));
        }
        Ok(())
    }

    fn want<T: PartialEq + std::fmt::Debug>(&self, field: &str, got: T, want: T) -> Result<()> {
        let text = |x: &T| format!("{x:?}");
        if got == want { Ok(()) } else { Err(self.shape(field, text(&got), &text(&want))) }
    }

    fn shape(&self, field: &str, got: impl Into<String>, expected: &str) -> Error {
        Error::Shape {
            episode: format!("{} {}", self.name, self.seed),
            field: field.into(),
            got: got.into(),
            expected: expected.into(),
        }
    }
}

fn finite(p: &Point3<f64>) -> bool {
    p.coords.iter().all(|x| x.is_finite())
}

fn is_pose(pose: &Isometry3<f64>) -> bool {
    pose.translation.vector.iter().chain(pose.rotation.coords.iter()).all(|x| x.is_finite())
}
