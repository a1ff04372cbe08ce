//! A finished trajectory as an episode to look at: every kept state is restored, measured and drawn.

use efference_envs::{Action, CameraView, Env, GeomShape, RgbImage, SceneState, ShapeKind};
use efference_rollout::{Trajectory, VlaPolicy};
use efference_viz::sheet::{self, Style};
use efference_viz::{
    CameraAxes, CameraRecord, EpisodeRecord, GeomKind, Intrinsics, Plan, Pose, SceneGeom, Signal, Strip,
    pose_from_mujoco,
};

use super::{Error, Result, task_title};

/// Where in the run an episode was played.
#[derive(Clone, Copy, Debug)]
pub struct Label<'a> {
    /// Part of the run, one tab each in the viewer: `before RL`, `during RL`, `after RL`.
    pub stage: &'a str,
    /// Update within the run.
    pub update: u64,
    /// Progress score of the whole episode (SRPO), if it was computed.
    pub progress: Option<f64>,
}

/// Metres per unit of a translation command (the action convention of [`Action`]).
const TRANSLATION_M: f32 = 0.05;
/// Share of a commanded displacement that the tabletop's arm makes in one control step (measured, see `play.rs`
/// of the tabletop). Without it the drawn chunk would run ahead of where the gripper can get.
const TRACKING: f32 = 0.72;
/// Pictures per camera and episode, about: every second frame of the tabletop's 80 steps.
const PICTURES: usize = 40;
/// Frames in a filmstrip.
const STRIP_FRAMES: usize = 8;
/// A body that moves less than this counts as fixed: it could not be seen to move.
const STILL_M: f32 = 1e-4;
/// As [`STILL_M`], for turning, radians.
const STILL_RAD: f32 = 2e-3;

/// Replays a trajectory that kept its snapshots.
///
/// `env` may be any environment of the same scene and task; its image size is the one that is recorded, so it may
/// draw larger pictures than the policy saw. It is left in the state in which it came. Both cameras are drawn at every
/// look of the policy, at the end, and in between so that the film runs smoothly.
///
/// # Errors
/// [`Error::Snapshots`] if the trajectory did not keep its states, [`Error::Env`] if `env` is of another scene or
/// cannot draw.
pub fn episode_record(
    env: &mut dyn Env,
    policy: &VlaPolicy,
    trajectory: &Trajectory,
    label: &Label<'_>,
) -> Result<EpisodeRecord> {
    let (got, expected) = (trajectory.snapshots.len(), trajectory.finish_steps + 1);
    let plan = &trajectory.plan;
    if got != expected {
        return Err(Error::Snapshots { task: plan.task.clone(), env_seed: plan.env_seed, expected, got });
    }
    let failed =
        |source| Error::Env { task: plan.task.clone(), env_seed: plan.env_seed, source: Box::new(source) };
    let before = env.snapshot();
    let film = replay(env, policy.chunk(), trajectory);
    // Also after a failed replay the caller gets its state back; the first error is the one to tell.
    let restored = env.restore(&before);
    let film = film.map_err(failed)?;
    restored.map_err(failed)?;

    let gripper: Vec<Pose> = film.states.iter().map(|s| pose(&s.gripper)).collect();
    let mut rewards = vec![0.0; trajectory.finish_steps];
    if let (true, Some(last)) = (trajectory.success, rewards.last_mut()) {
        *last = 1.0;
    }
    let opening = film.states.iter().map(|s| s.finger_opening_m as f32).collect();
    Ok(EpisodeRecord {
        stage: label.stage.into(),
        name: task_title(&plan.task),
        instruction: trajectory.prompt.instruction.clone(),
        seed: plan.env_seed,
        update: label.update,
        control_hz: f64::from(env.spec().control_hz),
        success: trajectory.success,
        plans: plans(policy, trajectory, &gripper),
        gripper,
        rewards,
        progress: label.progress.map(|p| p as f32),
        signals: vec![
            Signal { name: "remaining_m".into(), values: film.remaining },
            Signal { name: "gripper_opening_m".into(), values: opening },
        ],
        scene: scene(&film.states),
        cameras: cameras(&film.states, film.pictures),
        notes: notes(trajectory),
    })
}

/// An episode that somebody else filmed, one frame per state: pictures of every camera of the scene at every frame.
#[derive(Debug)]
pub struct Filmed<'a> {
    /// Part of the run, one tab in the viewer.
    pub stage: &'a str,
    /// Task id.
    pub task: &'a str,
    /// What the policy was told.
    pub instruction: &'a str,
    /// Number of the episode.
    pub seed: u64,
    /// Frames per second of simulated time.
    pub frames_per_sec: f64,
    /// The environment's verdict.
    pub success: bool,
    /// One per frame.
    pub states: &'a [SceneState],
    /// Per camera, in the order of the states': a picture per frame, upright.
    pub pictures: Vec<Vec<RgbImage>>,
    /// Lines for the card.
    pub notes: Vec<(String, String)>,
}

impl Filmed<'_> {
    /// As the recorder takes it.
    pub fn record(self) -> EpisodeRecord {
        let steps = self.states.len().saturating_sub(1);
        let mut rewards = vec![0.0; steps];
        if let (true, Some(last)) = (self.success, rewards.last_mut()) {
            *last = 1.0;
        }
        let opening = self.states.iter().map(|s| s.finger_opening_m as f32).collect();
        EpisodeRecord {
            stage: self.stage.into(),
            name: task_title(self.task),
            instruction: self.instruction.into(),
            seed: self.seed,
            update: 0,
            control_hz: self.frames_per_sec,
            success: self.success,
            plans: Vec::new(),
            gripper: self.states.iter().map(|s| pose(&s.gripper)).collect(),
            rewards,
            progress: None,
            signals: vec![Signal { name: "gripper_opening_m".into(), values: opening }],
            scene: scene(self.states),
            cameras: cameras(
                self.states,
                self.pictures.into_iter().map(|frames| frames.into_iter().enumerate().collect()).collect(),
            ),
            notes: self.notes,
        }
    }
}

/// A row of frames of the first camera.
///
/// # Errors
/// [`Error::NoImages`]; [`Error::Viz`] if they cannot be encoded.
pub fn strip(record: &EpisodeRecord) -> Result<Strip> {
    let frames: Vec<&RgbImage> =
        record.cameras.first().map(|c| c.frames.iter().map(|(_, image)| image).collect()).unwrap_or_default();
    if frames.is_empty() {
        return Err(Error::NoImages { stage: record.stage.clone(), name: record.name.clone() });
    }
    let frames: Vec<RgbImage> = sheet::spread(&frames, STRIP_FRAMES).into_iter().cloned().collect();
    let sheet = sheet::filmstrip(&frames, STRIP_FRAMES, record.success, Style::default());
    Ok(Strip {
        task: record.name.clone(),
        stage: record.stage.clone(),
        success: record.success,
        png: sheet::png(&sheet)?,
    })
}

/// Everything that only the environment knows.
#[derive(Default)]
struct Film {
    /// One per frame.
    states: Vec<SceneState>,
    /// Distance to the goal, metres, one per frame.
    remaining: Vec<f32>,
    /// Per camera, in the order of the scene's: frame and image.
    pictures: Vec<Vec<(usize, RgbImage)>>,
}

fn replay(env: &mut dyn Env, chunk: usize, trajectory: &Trajectory) -> efference_envs::Result<Film> {
    let last = trajectory.finish_steps;
    let stride = last.div_ceil(PICTURES).max(2);
    let mut film = Film::default();
    for (frame, snapshot) in trajectory.snapshots.iter().enumerate() {
        env.restore(snapshot)?;
        let state = env.scene_state();
        film.remaining.push(env.remaining() as f32);
        film.pictures.resize_with(state.cameras.len(), Vec::new);
        if frame % stride == 0 || frame % chunk == 0 || frame == last {
            for (camera, pictures) in state.cameras.iter().zip(&mut film.pictures) {
                pictures.push((frame, env.render(&camera.name)?));
            }
        }
        film.states.push(state);
    }
    Ok(film)
}

/// Where each chunk would take the gripper.
fn plans(policy: &VlaPolicy, trajectory: &Trajectory, gripper: &[Pose]) -> Vec<Plan> {
    let frames = (0..).step_by(policy.chunk().max(1));
    let plan = |(frame, bins): (usize, &Vec<u32>)| {
        let mut at: [f32; 3] = gripper.get(frame)?.translation.vector.into();
        let mut points = vec![at];
        points.extend(policy.decode_chunk(bins).iter().map(|action: &Action| {
            for (x, command) in at.iter_mut().zip(action) {
                *x += TRANSLATION_M * TRACKING * command.clamp(-1.0, 1.0);
            }
            at
        }));
        Some(Plan { frame, points })
    };
    frames.zip(trajectory.decisions.iter().map(|d| &d.action_ids)).filter_map(plan).collect()
}

/// The shapes of the first state; the names are the same in every state.
fn scene(states: &[SceneState]) -> Vec<SceneGeom> {
    let Some(first) = states.first() else { return Vec::new() };
    let geom = |(i, shape): (usize, &GeomShape)| SceneGeom {
        name: shape.name.clone(),
        kind: match shape.kind {
            ShapeKind::Box => GeomKind::Box,
            ShapeKind::Sphere => GeomKind::Sphere,
            ShapeKind::Capsule => GeomKind::Capsule,
            ShapeKind::Cylinder => GeomKind::Cylinder,
        },
        size: shape.size_m.map(|x| x as f32),
        rgba: shape.rgba,
        poses: one_or_all(states.iter().filter_map(|s| Some(pose(&s.geoms.get(i)?.pose))).collect()),
    };
    first.geoms.iter().enumerate().filter(|(_, shape)| shape.rgba[3] > 0.0).map(geom).collect()
}

fn cameras(states: &[SceneState], pictures: Vec<Vec<(usize, RgbImage)>>) -> Vec<CameraRecord> {
    let Some(first) = states.first() else { return Vec::new() };
    let camera = |((i, view), frames): ((usize, &CameraView), _)| {
        let [fx, fy, cx, cy] = view.intrinsics_px.map(|x| x as f32);
        let [width, height] = view.size_px.map(|n| n as u32);
        CameraRecord {
            name: view.name.clone(),
            intrinsics: Intrinsics { width, height, fx, fy, cx, cy },
            axes: CameraAxes::OpenGl,
            poses: one_or_all(states.iter().filter_map(|s| Some(pose(&s.cameras.get(i)?.pose))).collect()),
            frames,
        }
    };
    first.cameras.iter().enumerate().zip(pictures).map(camera).collect()
}

/// A single pose if it never visibly changes.
fn one_or_all(mut poses: Vec<Pose>) -> Vec<Pose> {
    let still = |a: &Pose, b: &Pose| {
        (a.translation.vector - b.translation.vector).norm() < STILL_M
            && a.rotation.angle_to(&b.rotation) < STILL_RAD
    };
    if let Some(first) = poses.first()
        && poses.iter().all(|pose| still(first, pose))
    {
        poses.truncate(1);
    }
    poses
}

/// Lines for the card.
fn notes(trajectory: &Trajectory) -> Vec<(String, String)> {
    let mut notes = vec![
        ("remaining at the end".into(), format!("{:.1} cm", 100.0 * trajectory.remaining)),
        ("looks of the policy".into(), trajectory.decisions.len().to_string()),
    ];
    notes.extend(trajectory.aborted.iter().map(|why| ("ended early".to_owned(), why.clone())));
    notes
}

fn pose(pose: &efference_envs::Pose) -> Pose {
    pose_from_mujoco(pose.position_m, pose.quat_wxyz)
}
