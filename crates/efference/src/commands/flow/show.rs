//! From episodes, predictions and trials to what `efference_viz::flow` shows.

use std::path::{Path, PathBuf};
use std::time::Instant;

use efference_data::flow::FlowEpisode;
use efference_geometry::rigid::FlowFit;
use efference_geometry::{Flow3d, Frame, Isometry3, Point3};
use efference_rollout::flow::{Event, GraspCheck, Rejection, Round, Trial, draw_final};
use efference_viz::flow::{
    FlowRecorder, FlowScene, Grasp, GraspState, MovieOptions, Phase, Prediction, TimedPose, Verdict, movie,
    page,
};
use serde::Deserialize;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// Where to write what can be seen.
#[derive(Debug, clap::Args)]
pub(super) struct Outputs {
    /// Recording for the rerun viewer
    #[arg(long, value_name = "OUT.rrd")]
    rerun: Option<PathBuf>,
    /// The same record as JSON lines
    #[arg(long, value_name = "OUT.jsonl")]
    jsonl: Option<PathBuf>,
    /// Page with pictures and numbers
    #[arg(long, value_name = "OUT.png")]
    png: Option<PathBuf>,
    /// Film: .gif, animated .png, or .mp4 (by ffmpeg)
    #[arg(long, value_name = "OUT")]
    video: Option<PathBuf>,
}

impl Outputs {
    /// Whether nothing is asked for.
    pub(super) fn is_empty(&self) -> bool {
        [&self.rerun, &self.jsonl, &self.png, &self.video].iter().all(|out| out.is_none())
    }

    /// Writes what is asked for: recordings of all scenes, which follow each other; page and film of the first.
    ///
    /// # Errors
    /// A file cannot be written, or a scene's parts do not fit together.
    pub(super) fn write(&self, scenes: &[FlowScene], ui: &Ui) -> Result<()> {
        let written = |path: &PathBuf, begun: Instant| {
            let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
            let seconds = begun.elapsed().as_secs_f64();
            ui.object(&json!({ "file": path, "bytes": bytes, "seconds": seconds }));
            ui.line(format!("{}: {:.2} MB in {seconds:.1} s", path.display(), bytes as f64 / 1e6));
        };
        for path in [&self.rerun, &self.jsonl].into_iter().flatten() {
            let begun = Instant::now();
            let mut recorder = FlowRecorder::create(path)?;
            scenes.iter().try_for_each(|scene| recorder.scene(scene))?;
            recorder.finish()?;
            written(path, begun);
        }
        let Some(first) = scenes.first() else { return Ok(()) };
        if let Some(path) = &self.png {
            let begun = Instant::now();
            page(first)?.save(path)?;
            written(path, begun);
        }
        if let Some(path) = &self.video {
            let begun = Instant::now();
            movie(first, path, &MovieOptions::default())?;
            written(path, begun);
        }
        Ok(())
    }
}

/// Bytes of a prediction file that are read at most.
const MAX_PREDICTION: u64 = 1 << 30;
/// Points of a prediction may be this far from those of the episode at frame 0, metres.
const SAME_M: f64 = 1e-3;
/// Opening of the grippers and how far their tips stand out, metres: for the drawing only.
const OPENING_M: f64 = 0.09;
const TIP_M: f64 = 0.011;

/// An episode without predictions.
pub(super) fn episode(episode: &FlowEpisode) -> FlowScene {
    let points = episode.flow.at(0).to_vec();
    let mut scene = FlowScene::new(
        episode.task.clone(),
        episode.instruction.clone(),
        episode.camera.clone(),
        episode.image.clone(),
        points,
    );
    scene.seed = episode.seed;
    scene.depth_m.clone_from(&episode.depth_m);
    scene.mask.clone_from(&episode.mask);
    let truth = scene.in_world(&episode.flow);
    scene.points = truth.at(0).to_vec();
    scene.truth = Some(truth);
    scene
}

/// What is used of a `prediction.json` of `efference flow predict`.
#[derive(Deserialize)]
struct PredictionFile {
    samples: Vec<SampleRecord>,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
struct SampleRecord {
    /// [frames][points][3], world frame, metres.
    positions_m: Vec<Vec<[f64; 3]>>,
    /// [frames][points].
    visibility: Vec<Vec<f32>>,
}

/// Adds the samples of a file that `efference flow predict` wrote for this scene.
///
/// # Errors
/// The file cannot be read, is none, or belongs to another scene.
pub(super) fn add_predictions(scene: &mut FlowScene, path: &Path) -> Result<()> {
    let path = if path.is_dir() { path.join("prediction.json") } else { path.to_path_buf() };
    let bad = |why: String| Failure::new(format!("{}: {why}", path.display()));
    let length = std::fs::metadata(&path).map_err(|e| bad(e.to_string()))?.len();
    if length > MAX_PREDICTION {
        return Err(bad(format!("{length} bytes are too many for a prediction")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
    let file: PredictionFile = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    for (k, sample) in file.samples.into_iter().enumerate() {
        let points = scene.points.len();
        if sample.positions_m.iter().any(|row| row.len() != points) {
            return Err(bad(format!("sample {k} is not of {points} points, as the scene is")));
        }
        let places = sample.positions_m.into_iter().flatten().map(Point3::from).collect();
        let visibility = sample.visibility.into_iter().flatten().collect();
        let flow = Flow3d::new(Frame::World, points, places, visibility).map_err(|e| bad(e.to_string()))?;
        let off = flow.at(0).iter().zip(&scene.points).map(|(a, b)| (a - b).norm()).fold(0.0, f64::max);
        if off > SAME_M {
            let help = "predict and view the same task, arm and scene";
            return Err(bad(format!(
                "belongs to another scene: its points start {:.1} cm away",
                100.0 * off
            ))
            .help(help));
        }
        scene.predictions.push(Prediction::new(flow));
    }
    if let Some(model) = file.model {
        scene.notes.push(("model".into(), model));
    }
    Ok(())
}

/// Fits the rigid motions, draws the final pictures of all predictions and chooses the one that is nearest to the others
/// to be shown first: the middle of the distribution, chosen without the truth.
pub(super) fn complete(scene: &mut FlowScene, episode: &FlowEpisode) -> Result<()> {
    scene.fit()?;
    let mask: Vec<bool> = episode.mask.iter().map(|m| *m > 127).collect();
    let query = episode.query();
    for prediction in &mut scene.predictions {
        let motion = prediction.fit.as_ref().map_or_else(Isometry3::identity, FlowFit::last);
        // Without depth on the object there is no picture; the rest can be shown all the same.
        prediction.final_picture = draw_final(&query, &mask, &motion).ok().map(|picture| picture.rgb);
    }
    if scene.chosen.is_none() && !scene.predictions.is_empty() {
        scene.chosen = Some(middle(&scene.predictions));
    }
    Ok(())
}

/// The sample whose last frame is nearest, on the average, to those of the others.
fn middle(predictions: &[Prediction]) -> usize {
    let last = |p: &Prediction| p.flow.at(p.flow.frames() - 1).to_vec();
    let ends: Vec<Vec<Point3<f64>>> = predictions.iter().map(last).collect();
    let apart =
        |a: &[Point3<f64>], b: &[Point3<f64>]| a.iter().zip(b).map(|(a, b)| (a - b).norm()).sum::<f64>();
    let cost = |k: usize| ends.iter().map(|other| apart(&ends[k], other)).sum::<f64>();
    (0..predictions.len()).min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(0)
}

/// The rounds of a trial as scenes that follow each other on one timeline. `name`: the family of the task.
pub(super) fn trial(trial: &Trial, name: &str, seed: u64) -> Vec<FlowScene> {
    let mut scenes: Vec<FlowScene> = Vec::new();
    // A round that executes begins with the gripper at the stand-off; what was before belongs to it, too.
    let begins: Vec<usize> = trial
        .trace
        .events
        .iter()
        .filter(|(_, e)| matches!(e, Event::AtStandOff))
        .map(|(step, _)| *step)
        .collect();
    let mut executed = 0;
    for (number, round) in trial.rounds.iter().enumerate() {
        let mut scene = asked(round, name, seed);
        scene.round = number;
        scene.first_frame = scenes.iter().map(FlowScene::frames).sum();
        scene.success = Some(trial.report.success);
        if round.end.is_some() {
            let from = if executed == 0 { 0 } else { begins.get(executed).copied().unwrap_or(usize::MAX) };
            let to = begins.get(executed + 1).copied().unwrap_or(usize::MAX);
            done(&mut scene, trial, from, to);
            executed += 1;
        }
        scenes.push(scene);
    }
    if let (Some(last), Some(why)) = (scenes.last_mut(), &trial.report.refused) {
        last.notes.push(("refused".into(), why.clone()));
    }
    scenes
}

/// What a round looked at, predicted and planned.
fn asked(round: &Round, name: &str, seed: u64) -> FlowScene {
    let query = &round.query;
    let (camera, picture) = (query.camera.clone(), query.image.clone());
    let mut scene = FlowScene::new(name, query.instruction.clone(), camera, picture, query.points.clone());
    scene.seed = seed;
    scene.depth_m.clone_from(&query.depth_m);
    scene.mask = round.mask.iter().map(|m| if *m { 255 } else { 0 }).collect();
    scene.chosen = round.chosen.or_else(|| (!round.proposal.attempts.is_empty()).then_some(0));
    for attempt in &round.proposal.attempts {
        let mut prediction = Prediction::new(scene.in_world(&attempt.flow));
        prediction.final_picture =
            draw_final(query, &round.mask, &attempt.fit.last()).ok().map(|picture| picture.rgb);
        prediction.fit = Some(attempt.fit.clone());
        if let Some(verdict) = &attempt.verdict {
            prediction.verdicts.push(Verdict {
                judge: "judge".into(),
                accepted: verdict.accept,
                score: Some(verdict.score),
                reason: verdict.reason.clone(),
            });
        }
        // A judge's no stands above.
        if let Some(why) = attempt.rejection.as_ref().filter(|r| !matches!(r, Rejection::Judged { .. })) {
            let judge = match why {
                Rejection::NotRigid { .. } | Rejection::Undetermined { .. } => "rigidity",
                Rejection::OutOfWorkspace { .. } | Rejection::NoMotion { .. } => "workspace",
                Rejection::Infeasible { .. } => "planner",
                _ => "judge",
            };
            let reason = why.to_string();
            prediction.verdicts.push(Verdict { judge: judge.into(), accepted: false, score: None, reason });
        } else if attempt.verdict.is_none() {
            let reason = String::new();
            prediction.verdicts.push(Verdict {
                judge: "rigidity".into(),
                accepted: true,
                score: None,
                reason,
            });
        }
        scene.predictions.push(prediction);
    }
    let examined = match &round.grasp {
        Some(Ok(plan)) => {
            let timed = |(t, pose): (usize, &Isometry3<f64>)| TimedPose { frame: t as f64, pose: *pose };
            scene.plan = plan.path.iter().enumerate().map(timed).collect();
            &plan.examined[..]
        }
        Some(Err(none)) => &none.examined[..],
        None => &[],
    };
    let is_planned = matches!(round.grasp, Some(Ok(_)));
    for (i, grasp) in examined.iter().enumerate() {
        let state = match grasp.check {
            GraspCheck::Good if is_planned && i + 1 == examined.len() => GraspState::Chosen,
            GraspCheck::Good => GraspState::Possible,
            _ => GraspState::Rejected,
        };
        scene.grasps.push(Grasp { pose: grasp.grip, opening_m: OPENING_M, tip_m: TIP_M, state });
    }
    scene
}

/// The way of the gripper between two control steps, and the phases. Frames are shares of the flow that was done.
fn done(scene: &mut FlowScene, trial: &Trial, from: usize, to: usize) {
    let last = (scene.frames() - 1) as f64;
    let events: Vec<&(usize, Event)> =
        trial.trace.events.iter().filter(|(s, _)| (from..to).contains(s)).collect();
    // Control steps and the frames of the flow they belong to; between them evenly.
    let mut marks: Vec<(usize, f64)> = Vec::new();
    for (step, event) in &events {
        let frame = match event {
            Event::Closed { .. } => 0.0,
            Event::Looked { progress, .. } => last * progress.clamp(0.0, 1.0),
            Event::Arrived { .. } => last,
            _ => continue,
        };
        // Time does not run backwards, also when the rest is planned again.
        let before = marks.last().map_or(0.0, |m| m.1);
        marks.push((*step, frame.max(before)));
    }
    let frame_of = |step: usize| match marks.iter().position(|m| m.0 > step) {
        Some(0) => 0.0,
        Some(i) => {
            let ((s0, f0), (s1, f1)) = (marks[i - 1], marks[i]);
            f0 + (f1 - f0) * (step - s0) as f64 / (s1 - s0).max(1) as f64
        }
        None => marks.last().map_or(0.0, |m| m.1),
    };
    let steps = trial.trace.grips.iter().enumerate().take(to).skip(from);
    scene.executed = steps.map(|(step, pose)| TimedPose { frame: frame_of(step), pose: *pose }).collect();
    for (step, event) in events {
        let name = match event {
            Event::AtStandOff => "approach",
            Event::AtGrasp { .. } => "grasp",
            Event::Closed { .. } => "follow",
            Event::Replanned { .. } => "replan",
            Event::Missed => "missed",
            Event::Lost => "lost",
            Event::Arrived { .. } => "arrived",
            Event::Released => "release",
            _ => continue,
        };
        let phase = Phase { frame: frame_of(*step).floor() as usize, name: name.into() };
        // One phase per frame: the last one that began in it.
        match scene.phases.last_mut() {
            Some(before) if before.frame == phase.frame => *before = phase,
            _ => scene.phases.push(phase),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_data::flow::FlowSource;
    use efference_geometry::{Camera, CameraAxes, Intrinsics};

    fn made_up() -> FlowEpisode {
        let k = Intrinsics::from_fovy_deg(45.0, 16, 16).unwrap();
        let camera = Camera::new(k, Isometry3::translation(0.0, 0.0, 1.0), CameraAxes::OpenGl);
        let points =
            [[0.0, 0.0, 0.1], [0.05, 0.0, 0.1], [0.0, 0.05, 0.1], [0.05, 0.05, 0.12]].map(Point3::from);
        let poses: Vec<_> = (0..3).map(|t| Isometry3::translation(0.05 * f64::from(t), 0.0, 0.0)).collect();
        FlowEpisode {
            instruction: "push the block".into(),
            task: "push".into(),
            source: FlowSource::Tabletop,
            seed: 3,
            camera,
            image: efference_data::RgbImage::new(16, 16),
            depth_m: vec![0.9; 256],
            mask: (0..256).map(|i| if i / 16 > 6 && i / 16 < 10 { 255 } else { 0 }).collect(),
            flow: Flow3d::rigid(Frame::World, &points, &poses, vec![1.0; 12]).unwrap(),
            poses,
        }
    }

    #[test]
    fn predictions_come_back_from_their_file_and_strangers_are_refused() {
        let episode = made_up();
        let mut scene = super::episode(&episode);
        let positions = |dx: f64, t: usize| -> Vec<[f64; 3]> {
            episode.flow.at(t).iter().map(|p| [p.x + dx, p.y + 0.01 * t as f64, p.z]).collect()
        };
        let json = |dx: f64| {
            let sample = serde_json::json!({
                "positions_m": (0..3).map(|t| positions(dx, t)).collect::<Vec<_>>(),
                "visibility": vec![vec![1.0; 4]; 3], "motion": [], "rigid_rms_m": [],
            });
            serde_json::json!({ "model": "m", "samples": [sample.clone(), sample] }).to_string()
        };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prediction.json");
        std::fs::write(&file, json(0.0)).unwrap();
        add_predictions(&mut scene, dir.path()).unwrap();
        complete(&mut scene, &episode).unwrap();
        assert_eq!((scene.predictions.len(), scene.chosen), (2, Some(0)));
        scene.validate().unwrap();
        let errors = scene.errors(0).unwrap();
        assert!((errors.fde_cm() - 2.0).abs() < 1e-9 && (errors.ade_cm() - 1.5).abs() < 1e-9);
        assert!(scene.predictions[0].final_picture.is_some() && scene.predictions[0].fit.is_some());

        for (text, says) in [
            (json(0.05), "another scene"),
            ("{}".into(), "samples"),
            (r#"{"samples":[{"positions_m":[[[0,0,0]]],"visibility":[[1]]}]}"#.into(), "4 points"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = add_predictions(&mut scene, &file).unwrap_err();
            assert!(format!("{error:?}").contains(says), "{error:?}");
        }
        assert!(add_predictions(&mut scene, &dir.path().join("none.json")).is_err());
    }
}
