//! Readers of LIBERO demonstrations as other projects store them: the benchmark's own HDF5 files and LeRobot sets.
//!
//! Both become a [`Recording`] with one set of conventions, those of the usual evaluators:
//! - pictures are rotated by 180 degrees against the simulator's own array, whose first row is the bottom. HDF5 files
//!   hold the simulator's array, LeRobot sets hold it rotated already;
//! - proprioception is the hand's position, its orientation as axis-angle (0 to 2 pi), the two finger joints;
//! - a negative gripper command opens, a positive one closes.

mod hdf5;
mod lerobot;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;

use crate::episode::{ACTION_DIM, Episode, EpisodeMeta, PROPRIO_DIM, Source, States};
use crate::robomimic::{ImportError, Result};

pub use hdf5::LiberoFile;
pub use lerobot::LeRobotSet;

/// Our names of the two cameras: over the table, in the hand (the simulator's `robot0_eye_in_hand`).
pub const CAMERAS: [&str; 2] = ["agentview", "wrist"];

/// A translation and rotation command shorter than this moves nothing (the threshold of the public "no no-op" sets).
const IDLE_NORM: f64 = 1e-4;

/// What a gripper number means in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gripper {
    /// Found out: numbers below 0 mean -1 opens, +1 closes; with 0 and 1 the motion of the fingers tells.
    #[default]
    Auto,
    /// -1 opens, +1 closes: the simulator's own.
    NegativeOpens,
    /// 1 opens, 0 closes, as some converted sets have it.
    OneOpens,
}

/// How recordings become episodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordingOptions {
    /// Drop steps that neither move the hand nor change the gripper command.
    pub drop_idle: bool,
    /// What gripper numbers mean.
    pub gripper: Gripper,
}

/// One demonstration of T control steps, not yet brought to our conventions for actions.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Its name in the file, e.g. `demo_3` or `episode 12`.
    pub name: String,
    /// The task's name.
    pub task: String,
    /// What the policy is told.
    pub instruction: String,
    /// Control steps per second.
    pub control_hz: f64,
    /// As stored, \[T, 7\].
    pub actions: Vec<[f32; ACTION_DIM]>,
    /// \[T, 8\], see [`PROPRIO_DIM`].
    pub proprio: Vec<[f32; PROPRIO_DIM]>,
    /// \[T\].
    pub rewards: Vec<f32>,
    /// \[T, S\], where they were kept.
    pub states: Option<States>,
    /// By our camera names, \[T\] each, as policies see them.
    pub cameras: BTreeMap<String, Vec<RgbImage>>,
}

impl Recording {
    /// The episode: gripper command -1 or +1, actions clipped to what the controller executes, idle steps dropped where
    /// asked for. `file` is named in errors and in the episode.
    ///
    /// # Errors
    /// [`ImportError::Gripper`] when nothing tells what the gripper numbers mean, [`ImportError::OnlyIdle`].
    pub fn into_episode(mut self, file: &Path, options: RecordingOptions) -> Result<Episode> {
        let one_opens = match options.gripper {
            Gripper::NegativeOpens => false,
            Gripper::OneOpens => true,
            Gripper::Auto => self.one_opens().map_err(|problem| ImportError::Gripper {
                path: file.into(),
                at: self.name.clone(),
                problem: problem.into(),
            })?,
        };
        for action in &mut self.actions {
            for value in &mut action[..6] {
                *value = value.clamp(-1.0, 1.0);
            }
            let g = action[6];
            action[6] = if one_opens { (1.0 - 2.0 * g).clamp(-1.0, 1.0) } else { g.clamp(-1.0, 1.0) };
        }
        let kept = if options.drop_idle { self.moving_steps() } else { (0..self.actions.len()).collect() };
        if kept.is_empty() {
            return Err(ImportError::OnlyIdle { path: file.into(), at: self.name });
        }
        let dropped = self.actions.len() - kept.len();
        // What a dropped step earned belongs to the step before it.
        let mut rewards = vec![0.0_f32; kept.len()];
        for (t, &reward) in self.rewards.iter().enumerate() {
            let at = kept.partition_point(|&k| k <= t).saturating_sub(1);
            rewards[at] = rewards[at].max(reward);
        }
        let pick = |pictures: Vec<RgbImage>| {
            let mut all: Vec<Option<RgbImage>> = pictures.into_iter().map(Some).collect();
            kept.iter().filter_map(|&t| all.get_mut(t).and_then(Option::take)).collect()
        };
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Episode {
            meta: EpisodeMeta {
                task: self.task,
                instruction: self.instruction,
                seed: 0,
                success: rewards.iter().any(|&r| r > 0.0),
                source: Source::Human,
                mujoco_version: "unknown".into(),
                control_hz: self.control_hz,
                extra: BTreeMap::from([
                    ("file".into(), name),
                    ("demo".into(), self.name),
                    ("idle_steps_dropped".into(), dropped.to_string()),
                    ("image_orientation".into(), "rotated_180".into()),
                ]),
            },
            cameras: self.cameras.into_iter().map(|(camera, all)| (camera, pick(all))).collect(),
            frame_steps: (0..kept.len() as u32).collect(),
            proprio: kept.iter().map(|&t| self.proprio[t]).collect(),
            actions: kept.iter().map(|&t| self.actions[t]).collect(),
            rewards,
            states: self.states.map(|states| States {
                width: states.width,
                values: kept.iter().flat_map(|&t| states.row(t).unwrap_or_default()).copied().collect(),
            }),
        })
    }

    /// Steps that move the hand or change the gripper command.
    fn moving_steps(&self) -> Vec<usize> {
        let moves = |t: &usize| {
            let action = &self.actions[*t];
            let length: f64 = action[..6].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            length >= IDLE_NORM || (*t > 0 && action[6] != self.actions[*t - 1][6])
        };
        (0..self.actions.len()).filter(moves).collect()
    }

    /// Whether 1 opens and 0 closes.
    fn one_opens(&self) -> std::result::Result<bool, &'static str> {
        let commands = || self.actions.iter().map(|a| a[6]);
        if commands().any(|g| g < -0.01) {
            return Ok(false);
        }
        // Fingers follow the command over several steps: compare how far apart they are some steps later.
        let opening = |t: usize| self.proprio[t][6] - self.proprio[t][7];
        let (mut with_high, mut with_low) = (0.0_f64, 0.0_f64);
        for t in 0..self.actions.len().saturating_sub(1) {
            let change = f64::from(opening(t + 1) - opening(t));
            *(if self.actions[t][6] > 0.5 { &mut with_high } else { &mut with_low }) += change;
        }
        let difference = with_high - with_low;
        if difference.abs() < 0.005 {
            return Err(
                "the gripper numbers lie in 0 to 1 and the fingers do not move enough to tell what they mean",
            );
        }
        Ok(difference > 0.0)
    }
}

/// What LIBERO tells a policy about a task, from the name of its task file: underscores are spaces; names with a capital
/// start after `SCENE3_`.
pub fn language_of(name: &str) -> String {
    let after_scene = || {
        let rest = name.split_once("SCENE")?.1.trim_start_matches(|c: char| c.is_ascii_digit());
        rest.strip_prefix('_')
    };
    let spoken = match name.chars().next() {
        Some(c) if c.is_uppercase() => after_scene().unwrap_or(name),
        _ => name,
    };
    spoken.replace('_', " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recording(grippers: &[f32], openings: &[f32]) -> Recording {
        let steps = grippers.len();
        Recording {
            name: "demo_0".into(),
            task: "t".into(),
            instruction: "do it".into(),
            control_hz: 20.0,
            actions: grippers.iter().map(|&g| [0.5, 0.0, 2.0, 0.0, 0.0, 0.0, g]).collect(),
            proprio: openings.iter().map(|&o| [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, o / 2.0, -o / 2.0]).collect(),
            rewards: (0..steps).map(|t| (t + 1 == steps) as u8 as f32).collect(),
            states: Some(States { width: 2, values: (0..2 * steps).map(|i| i as f64).collect() }),
            cameras: BTreeMap::from([(
                "agentview".into(),
                (0..steps).map(|t| RgbImage::from_pixel(2, 2, image::Rgb([t as u8; 3]))).collect(),
            )]),
        }
    }

    #[test]
    fn the_gripper_convention_is_found_or_asked_for() {
        let file = Path::new("x.hdf5");
        let grip = |r: Recording, gripper| {
            let options = RecordingOptions { gripper, ..Default::default() };
            r.into_episode(file, options).map(|e| e.actions.iter().map(|a| a[6]).collect::<Vec<_>>())
        };
        let open_close = [0.04, 0.06, 0.08, 0.05, 0.02];
        let r = recording(&[-1.0, -1.0, 1.0, 1.0, 1.0], &open_close);
        assert_eq!(grip(r, Gripper::Auto).unwrap(), [-1.0, -1.0, 1.0, 1.0, 1.0]);
        let r = recording(&[1.0, 1.0, 0.0, 0.0, 0.0], &open_close);
        assert_eq!(grip(r, Gripper::Auto).unwrap(), [-1.0, -1.0, 1.0, 1.0, 1.0]);
        let r = recording(&[0.0, 0.0, 1.0, 1.0, 1.0], &open_close);
        assert_eq!(grip(r, Gripper::Auto).unwrap(), [0.0, 0.0, 1.0, 1.0, 1.0], "0 holds, 1 closes");
        let still = || recording(&[1.0, 0.0, 1.0], &[0.04; 3]);
        assert!(matches!(grip(still(), Gripper::Auto), Err(ImportError::Gripper { .. })));
        assert_eq!(grip(still(), Gripper::OneOpens).unwrap(), [-1.0, 1.0, -1.0]);
    }

    #[test]
    fn idle_steps_go_and_their_rewards_stay() {
        let mut r = recording(&[-1.0, -1.0, -1.0, 1.0, 1.0], &[0.04; 5]);
        for t in [0, 1, 3, 4] {
            r.actions[t][..6].fill(0.0);
        }
        let options = RecordingOptions { drop_idle: true, gripper: Gripper::NegativeOpens };
        let kept = r.clone().into_episode(Path::new("f"), options).unwrap();
        kept.validate().unwrap();
        // Step 2 moves, step 3 changes the gripper; the reward of step 4 goes to step 3.
        assert_eq!(kept.rewards, [0.0, 1.0]);
        assert_eq!(kept.actions[0], [0.5, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0]);
        assert_eq!(kept.states.unwrap().values, [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(kept.cameras["agentview"][1].get_pixel(0, 0).0, [3; 3]);
        assert_eq!(kept.meta.extra["idle_steps_dropped"], "3");
        r.actions.iter_mut().for_each(|a| *a = [0.0; 7]);
        assert!(matches!(r.into_episode(Path::new("f"), options), Err(ImportError::OnlyIdle { .. })));
    }

    #[test]
    fn language_comes_from_the_name() {
        assert_eq!(language_of("pick_up_the_black_bowl"), "pick up the black bowl");
        assert_eq!(language_of("KITCHEN_SCENE10_close_the_top_drawer"), "close the top drawer");
        assert_eq!(language_of("STUDY"), "STUDY");
    }
}
