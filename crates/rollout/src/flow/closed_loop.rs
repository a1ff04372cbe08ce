//! Predict, check, judge, choose: which of several predicted flows may be executed, and why the others may not.

use efference_data::flow::FlowQuery;
use efference_geometry::rigid::{
    FlowFit, FlowFitOptions, RansacOptions, Slide, SlideOptions, fit_flow, fit_slide,
};
use efference_geometry::{Flow3d, Frame, Point3, Vector3};
use serde::{Deserialize, Serialize};

use super::predictor::check_query;
use super::{Error, Judge, JudgeQuestion, Predictor, Result, Verdict, draw_final};

/// A box in the world that nothing of the object may leave, metres.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workspace {
    /// Lowest x, y, z.
    pub low_m: [f64; 3],
    /// Highest x, y, z.
    pub high_m: [f64; 3],
}

impl Default for Workspace {
    /// Above the table (its top is z = 0), within reach of both arms; 2 cm of slack below.
    fn default() -> Self {
        Self { low_m: [-0.55, -0.65, -0.02], high_m: [0.60, 0.65, 0.80] }
    }
}

impl Workspace {
    fn holds(&self, p: &Point3<f64>) -> bool {
        (0..3).all(|i| (self.low_m[i]..=self.high_m[i]).contains(&p[i]))
    }
}

/// How predictions are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoopOptions {
    /// Predictions per question, K: 1 to 64.
    pub samples: usize,
    /// A flow whose points leave their best rigid motion by more (rms over all points, metres) in any frame is rejected
    /// before any judge is asked; `None` rejects none.
    pub rigid_limit_m: Option<f64>,
    /// Robust fits: points that do not follow the others do not count. Without, every point counts alike.
    pub robust: bool,
    /// Objects that move less than this (mean over the points, metres) do not move.
    pub least_motion_m: f64,
    /// Where the object may be.
    pub workspace: Workspace,
    /// What nearly moves along a line does, see [`fit_slide`], and what nearly moves along a level one stays level.
    pub slides: bool,
    /// Ask the judge about all predictions and take the best; else take the first that is accepted.
    pub best: bool,
    /// Where the judge refuses all, execute what it refuses least, as the loop of 3DFlowAction goes on with its last
    /// prediction. Never what is no rigid motion, and nothing where the judge failed.
    pub insist: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self {
            samples: 4,
            rigid_limit_m: Some(0.01),
            robust: true,
            least_motion_m: 0.005,
            workspace: Workspace::default(),
            slides: true,
            best: true,
            insist: false,
        }
    }
}

impl LoopOptions {
    /// # Errors
    /// [`Error::Setting`] names what is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |setting, value: String, range| Err(Error::Setting { setting, value, range });
        if !(1..=64).contains(&self.samples) {
            return bad("samples", self.samples.to_string(), "1 to 64");
        }
        if let Some(limit) = self.rigid_limit_m.filter(|l| !(*l > 0.0 && l.is_finite())) {
            return bad("rigid_limit_m", limit.to_string(), "above 0");
        }
        if !(self.least_motion_m >= 0.0 && self.least_motion_m.is_finite()) {
            return bad("least_motion_m", self.least_motion_m.to_string(), "0 or more");
        }
        let Workspace { low_m, high_m } = self.workspace;
        if !low_m.iter().zip(high_m).all(|(l, h)| *l < h) {
            return bad("workspace", format!("{low_m:?} to {high_m:?}"), "low below high");
        }
        Ok(())
    }
}

/// Why a prediction is not executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rejection {
    /// The points do not stay together.
    NotRigid {
        /// The worst frame.
        frame: usize,
        /// Its rms over all points, metres.
        rms_m: f64,
    },
    /// The points do not say how the object turns.
    Undetermined {
        /// The first such frame.
        frame: usize,
    },
    /// There is nothing to do.
    NoMotion {
        /// Mean way of the points, metres.
        moved_m: f64,
    },
    /// It leads out of the workspace: off the table or through it.
    OutOfWorkspace {
        /// The first such frame.
        frame: usize,
        /// Where, metres.
        at_m: [f64; 3],
    },
    /// The judge refused.
    Judged {
        /// Its score, 0 to 1.
        score: f64,
        /// Its reason.
        reason: String,
    },
    /// The judge gave no verdict, which is never taken for a yes.
    NoVerdict {
        /// What went wrong.
        error: String,
    },
    /// The robot cannot do it.
    Infeasible {
        /// What is in the way.
        reason: String,
    },
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRigid { frame, rms_m } => {
                write!(f, "not rigid: {:.1} cm rms at frame {frame}", 100.0 * rms_m)
            }
            Self::Undetermined { frame } => write!(f, "the points of frame {frame} determine no rotation"),
            Self::NoMotion { moved_m } => write!(f, "no motion: the points move {:.1} mm", 1000.0 * moved_m),
            Self::OutOfWorkspace { frame, at_m: [x, y, z] } => {
                write!(f, "out of the workspace at frame {frame}: ({x:.2}, {y:.2}, {z:.2}) m")
            }
            Self::Judged { reason, .. } => write!(f, "judge: {reason}"),
            Self::NoVerdict { error } => write!(f, "no verdict: {error}"),
            Self::Infeasible { reason } => write!(f, "infeasible: {reason}"),
        }
    }
}

/// One prediction and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// What was predicted, world frame.
    pub flow: Flow3d,
    /// Its rigid motion.
    pub fit: FlowFit,
    /// What the judge said, if it was asked and answered.
    pub verdict: Option<Verdict>,
    /// `None`: may be executed, or was not needed. With [`LoopOptions::insist`] what the judge refused may be, too.
    pub rejection: Option<Rejection>,
}

/// All predictions for a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// In the order of prediction.
    pub attempts: Vec<Attempt>,
    /// Indices of those that may be executed, the best first. Empty: refused.
    pub accepted: Vec<usize>,
}

impl Proposal {
    /// The best prediction.
    #[must_use]
    pub fn best(&self) -> Option<&Attempt> {
        self.accepted.first().map(|&i| &self.attempts[i])
    }

    /// Why nothing may be executed, one entry per prediction; empty if something may.
    #[must_use]
    pub fn refusals(&self) -> Vec<&Rejection> {
        if !self.accepted.is_empty() {
            return Vec::new();
        }
        self.attempts.iter().filter_map(|a| a.rejection.as_ref()).collect()
    }
}

/// Predicts, rejects what cannot be a rigid motion within the workspace, asks the judge about the rest.
///
/// Candidates are asked in the order of their agreement with the others (mean distance of final points to those of the
/// other predictions, the least first): the middle of the distribution is the best guess. With `judge` `None` all of them
/// count as accepted. `mask` [height, width] marks the object in the query's picture.
///
/// # Errors
/// A malformed query, a predictor that fails or answers something that is no answer, options out of range. A judge that
/// fails is no error here: it refuses ([`Rejection::NoVerdict`]), and is not asked again for this question.
pub fn propose(
    query: &FlowQuery,
    mask: &[bool],
    predictor: &dyn Predictor,
    mut judge: Option<&mut dyn Judge>,
    options: &LoopOptions,
    seed: u64,
) -> Result<Proposal> {
    options.validate()?;
    check_query(query)?;
    let flows = predictor.predict(query, options.samples, seed)?;
    if flows.len() != options.samples {
        return Err(Error::Answer { why: format!("{} flows instead of {}", flows.len(), options.samples) });
    }
    let mut attempts =
        flows.into_iter().map(|flow| examine(query, flow, options)).collect::<Result<Vec<Attempt>>>()?;
    let mut accepted = Vec::new();
    let mut broken: Option<String> = None;
    let order = by_agreement(&attempts);
    for &i in &order {
        if let Some(judge) = judge.as_deref_mut() {
            let attempt = &mut attempts[i];
            let verdict = match &broken {
                Some(error) => Err(error.clone()),
                None => {
                    let motion = attempt.fit.last();
                    let picture = draw_final(query, mask, &motion)?;
                    let question = JudgeQuestion {
                        instruction: &query.instruction,
                        picture: &picture,
                        camera: &query.camera,
                        motion: &motion,
                    };
                    judge.judge(&question).map_err(|e| chain(&e))
                }
            };
            match verdict {
                Ok(verdict) => {
                    if !verdict.accept {
                        let Verdict { score, reason, .. } = verdict.clone();
                        attempt.rejection = Some(Rejection::Judged { score, reason });
                    }
                    attempt.verdict = Some(verdict);
                }
                Err(error) => {
                    attempt.rejection = Some(Rejection::NoVerdict { error: error.clone() });
                    broken = Some(error);
                }
            }
        }
        if attempts[i].rejection.is_none() {
            accepted.push(i);
            if !options.best && judge.is_some() {
                break;
            }
        }
    }
    if accepted.is_empty() && options.insist && broken.is_none() {
        accepted = order;
    }
    // Stable: among equal scores agreement decides.
    let score = |i: &usize| attempts[*i].verdict.as_ref().map_or(1.0, |v| v.score);
    accepted.sort_by(|a, b| score(b).total_cmp(&score(a)));
    Ok(Proposal { attempts, accepted })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

/// Everything that can be said without a judge.
fn examine(query: &FlowQuery, flow: Flow3d, options: &LoopOptions) -> Result<Attempt> {
    let wrong = |why: String| Err(Error::Answer { why });
    if flow.frame() != Frame::World {
        return wrong("the flow is not in the world frame".into());
    }
    if flow.points() != query.points.len() {
        return wrong(format!("{} points instead of {}", flow.points(), query.points.len()));
    }
    let ransac = options.robust.then(RansacOptions::default);
    let mut fit = fit_flow(&flow, &FlowFitOptions { ransac, ..FlowFitOptions::default() })?;
    if options.slides {
        let sum = flow.at(0).iter().fold(Point3::origin(), |sum, p| sum + p.coords);
        let slide = fit_slide(&fit.poses, &(sum / flow.points() as f64), &SlideOptions::default());
        fit.poses = slide.map_or(fit.poses, |slide| level(slide).poses());
    }
    let rejection = reject(&flow, &fit, options);
    Ok(Attempt { flow, fit, verdict: None, rejection })
}

/// Largest slope of a slide that is meant to be level, as the sine of its angle: 15 degrees.
const LEVEL: f64 = 0.26;

/// A slide that is nearly level, level: drawers are, and so is what is pushed along a table. World frame, z up.
fn level(mut slide: Slide) -> Slide {
    let flat = Vector3::new(slide.direction.x, slide.direction.y, 0.0);
    if slide.direction.z.abs() < LEVEL {
        slide.direction = flat.normalize();
    }
    slide
}

fn reject(flow: &Flow3d, fit: &FlowFit, options: &LoopOptions) -> Option<Rejection> {
    let last = flow.frames() - 1;
    let ways = flow.at(0).iter().zip(flow.at(last)).map(|(a, b)| (b - a).norm());
    let moved_m = ways.sum::<f64>() / flow.points() as f64;
    if last == 0 || moved_m < options.least_motion_m {
        return Some(Rejection::NoMotion { moved_m });
    }
    if let Some(limit) = options.rigid_limit_m {
        let worst = (0..=last).max_by(|a, b| fit.rms_all_m[*a].total_cmp(&fit.rms_all_m[*b]))?;
        if fit.rms_all_m[worst] > limit {
            return Some(Rejection::NotRigid { frame: worst, rms_m: fit.rms_all_m[worst] });
        }
    }
    if let Some(frame) = fit.degenerate.iter().position(|d| *d) {
        return Some(Rejection::Undetermined { frame });
    }
    // The fitted motion is what would be executed, so it is what must stay inside.
    for (frame, pose) in fit.poses.iter().enumerate() {
        let outside = flow.at(0).iter().map(|p| pose * p).find(|p| !options.workspace.holds(p));
        if let Some(p) = outside {
            return Some(Rejection::OutOfWorkspace { frame, at_m: [p.x, p.y, p.z] });
        }
    }
    None
}

/// Those not rejected, the ones that agree best with all others first.
fn by_agreement(attempts: &[Attempt]) -> Vec<usize> {
    let mut open: Vec<usize> = (0..attempts.len()).filter(|&i| attempts[i].rejection.is_none()).collect();
    let last = |i: usize| attempts[i].flow.at(attempts[i].flow.frames() - 1);
    let apart = |i: usize, j: usize| last(i).iter().zip(last(j)).map(|(a, b)| (a - b).norm()).sum::<f64>();
    let spread: Vec<f64> =
        (0..attempts.len()).map(|i| open.iter().map(|&j| apart(i, j).min(1e9)).sum()).collect();
    open.sort_by(|a, b| spread[*a].total_cmp(&spread[*b]));
    open
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_geometry::Isometry3;

    use super::super::JudgeError;
    use super::super::picture::tests::wall_and_square;
    use super::*;

    /// Sample k shifts the points by its k-th length.
    struct Shifts(Vec<f64>);

    impl Predictor for Shifts {
        fn predict(&self, query: &FlowQuery, _: usize, _: u64) -> Result<Vec<Flow3d>> {
            let flow = |x: &f64| {
                let poses = [Isometry3::identity(), Isometry3::translation(*x, 0.0, 0.0)];
                Ok(Flow3d::rigid(Frame::World, &query.points, &poses, vec![1.0; 2 * query.points.len()])?)
            };
            self.0.iter().map(flow).collect()
        }
    }

    /// Scores by the motion; counts how often it is asked; breaks at a call.
    struct Scorer {
        score: fn(f64) -> f64,
        asked: usize,
        breaks_at: usize,
    }

    impl Judge for Scorer {
        fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict> {
            self.asked += 1;
            if self.asked == self.breaks_at {
                return Err(Error::Judge(JudgeError::Timeout { limit_secs: 1.0, tries: 1 }));
            }
            let score = (self.score)(question.motion.translation.x);
            Ok(Verdict { accept: score >= 0.5, score, reason: format!("score {score}") })
        }
        fn name(&self) -> &'static str {
            "scorer"
        }
    }

    fn ask(shifts: &[f64], judge: &mut Scorer, best: bool) -> Proposal {
        propose_shifts(shifts, judge, LoopOptions { best, ..LoopOptions::default() })
    }

    fn propose_shifts(shifts: &[f64], judge: &mut Scorer, options: LoopOptions) -> Proposal {
        let (mut query, mask) = wall_and_square();
        query.points =
            (0..8).map(|i| Point3::new(0.01 * f64::from(i % 3), 0.01 * f64::from(i / 3), 0.5)).collect();
        let workspace = Workspace { low_m: [-2.0; 3], high_m: [2.0; 3] };
        let options = LoopOptions { samples: shifts.len(), workspace, ..options };
        propose(&query, &mask, &Shifts(shifts.to_vec()), Some(judge), &options, 0).unwrap()
    }

    #[test]
    fn the_best_score_wins_and_what_the_judge_dislikes_is_rejected_with_its_reason() {
        let mut judge = Scorer { score: |x| 10.0 * x, asked: 0, breaks_at: 0 };
        let proposal = ask(&[0.06, 0.02, 0.09, 0.07], &mut judge, true);
        assert_eq!((proposal.accepted, judge.asked), (vec![2, 3, 0], 4));
        let rejected = proposal.attempts[1].rejection.as_ref().unwrap();
        assert!(matches!(rejected, Rejection::Judged { reason, .. } if reason == "score 0.2"), "{rejected}");
    }

    #[test]
    fn the_first_to_be_accepted_is_the_one_that_agrees_best_and_nobody_else_is_asked() {
        let mut judge = Scorer { score: |_| 1.0, asked: 0, breaks_at: 0 };
        let proposal = ask(&[0.30, 0.06, 0.05, 0.07], &mut judge, false);
        assert_eq!((proposal.accepted, judge.asked), (vec![1], 1));
    }

    #[test]
    fn a_judge_that_breaks_is_not_asked_again_and_nothing_it_did_not_see_is_accepted() {
        let mut judge = Scorer { score: |_| 0.0, asked: 0, breaks_at: 2 };
        let proposal = ask(&[0.06, 0.05, 0.07], &mut judge, true);
        assert_eq!(judge.asked, 2);
        assert!(proposal.best().is_none() && proposal.refusals().len() == 3);
        let broken = |r: &&&Rejection| matches!(r, Rejection::NoVerdict { error } if error.contains("no answer within 1 s"));
        assert_eq!(proposal.refusals().iter().filter(broken).count(), 2);
    }

    #[test]
    fn who_insists_takes_what_is_refused_least_but_not_what_nobody_judged_or_what_stands_still() {
        let insist = LoopOptions { insist: true, ..LoopOptions::default() };
        let mut judge = Scorer { score: |x| x, asked: 0, breaks_at: 0 };
        let proposal = propose_shifts(&[0.06, 0.0, 0.09, 0.07], &mut judge, insist);
        assert_eq!(proposal.accepted, [2, 3, 0]);
        assert!(matches!(proposal.best().unwrap().rejection, Some(Rejection::Judged { .. })));
        let mut judge = Scorer { score: |x| 10.0 * x, asked: 0, breaks_at: 0 };
        assert_eq!(propose_shifts(&[0.04, 0.06, 0.045], &mut judge, insist).accepted, [1]);
        let mut judge = Scorer { score: |_| 0.0, asked: 0, breaks_at: 2 };
        assert!(propose_shifts(&[0.06, 0.05, 0.07], &mut judge, insist).accepted.is_empty());
    }

    #[test]
    fn few_points_that_stray_do_not_move_the_fit_but_count_as_not_rigid_when_far() {
        let object: Vec<_> =
            (0..20).map(|i| Point3::new(0.01 * f64::from(i % 5), 0.01 * f64::from(i / 5), 0.5)).collect();
        let stray = |by: f64| {
            let mut later: Vec<_> = object.iter().map(|p| p + Vector3::new(0.0, 0.1, 0.0)).collect();
            later[7].z += by;
            let positions = object.iter().copied().chain(later).collect();
            Flow3d::new(Frame::World, 20, positions, vec![1.0; 40]).unwrap()
        };
        let (mut query, _) = wall_and_square();
        query.points.clone_from(&object);
        let options = LoopOptions {
            workspace: Workspace { low_m: [-2.0; 3], high_m: [2.0; 3] },
            ..LoopOptions::default()
        };
        let near = examine(&query, stray(0.03), &options).unwrap();
        assert_eq!(near.rejection, None);
        assert!((near.fit.last().translation.vector - Vector3::new(0.0, 0.1, 0.0)).norm() < 1e-6);
        let far = examine(&query, stray(0.1), &options).unwrap();
        assert!(
            matches!(far.rejection, Some(Rejection::NotRigid { frame: 1, rms_m }) if (rms_m - 0.0224).abs() < 1e-3)
        );
    }

    #[test]
    fn what_nearly_slides_along_a_level_line_does() {
        let object: Vec<_> =
            (0..20).map(|i| Point3::new(0.01 * f64::from(i % 5), 0.01 * f64::from(i / 5), 0.3)).collect();
        let (mut query, _) = wall_and_square();
        query.points.clone_from(&object);
        let workspace = Workspace { low_m: [-2.0; 3], high_m: [2.0; 3] };
        let options = LoopOptions { workspace, ..LoopOptions::default() };
        let end = |rise: f64, options: &LoopOptions| {
            let way = |t: f64| Vector3::new(0.0, 0.1, rise) * t;
            let positions = [0.0, 0.5, 1.0].iter().flat_map(|t| object.iter().map(|p| p + way(*t))).collect();
            let flow = Flow3d::new(Frame::World, 20, positions, vec![1.0; 60]).unwrap();
            examine(&query, flow, options).unwrap().fit.last().translation.vector
        };
        // 10 degrees up become level, 45 do not.
        assert!(end(0.018, &options).z.abs() < 1e-9 && (end(0.018, &options).y - 0.1016).abs() < 1e-3);
        assert!((end(0.1, &options).z - 0.1).abs() < 1e-6);
        let as_it_is = LoopOptions { slides: false, ..options };
        assert!((end(0.018, &as_it_is).z - 0.018).abs() < 1e-6);
    }

    #[test]
    fn options_out_of_range_are_named() {
        let good = LoopOptions::default();
        for (bad, name) in [
            (LoopOptions { samples: 65, ..good }, "samples"),
            (LoopOptions { rigid_limit_m: Some(f64::NAN), ..good }, "rigid_limit_m"),
            (LoopOptions { least_motion_m: -1.0, ..good }, "least_motion_m"),
            (LoopOptions { workspace: Workspace { low_m: [0.0; 3], high_m: [0.0; 3] }, ..good }, "workspace"),
        ] {
            assert!(matches!(bad.validate(), Err(Error::Setting { setting, .. }) if setting == name));
        }
    }
}
