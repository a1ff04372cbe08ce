//! One episode: what a policy saw, what it did, what came of it.
//!
//! Time: row `t` of `proprio`, `states` and a frame with `frame_steps[f] == t` are what was there BEFORE
//! action `t`; `rewards[t]` is what action `t` brought.

use std::collections::BTreeMap;

use image::RgbImage;
use serde::{Deserialize, Serialize};

/// Numbers in one proprioception row: end-effector position (m, world frame) 3, orientation as axis-angle
/// (rad) 3, finger joint positions (m) 2. The convention of LIBERO.
pub const PROPRIO_DIM: usize = 8;

/// Numbers in one action: translation 3, rotation (axis-angle) 3, gripper 1; each in \[-1, 1\], scaled by the
/// controller. Gripper -1 opens, +1 closes.
pub const ACTION_DIM: usize = 7;

/// Who chose the actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A scripted expert that knows the simulator's state.
    Scripted,
    /// A person at the controls.
    Human,
    /// A learned policy.
    Policy,
    /// Random or exploratory motion ("play").
    Play,
}

/// What is known about an episode besides its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeMeta {
    /// The task's name in its environment, e.g. `pick_red_cube`.
    pub task: String,
    /// What the policy is told, e.g. `pick up the red cube`.
    pub instruction: String,
    /// The seed the environment was reset with; 0 for recordings that have none.
    pub seed: u64,
    /// Whether the environment (or the recorder) called it a success.
    pub success: bool,
    /// Who chose the actions.
    pub source: Source,
    /// The simulator version it ran on (`3.3.2`): results of different versions differ.
    pub mujoco_version: String,
    /// Control steps per second, > 0.
    pub control_hz: f64,
    /// Anything else worth keeping, e.g. the file and demonstration an import came from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, String>,
}

/// Full simulator states, one row per control step.
#[derive(Clone, Debug, PartialEq)]
pub struct States {
    /// Numbers per row, S.
    pub width: usize,
    /// Row after row, \[T, S\].
    pub values: Vec<f64>,
}

impl States {
    /// The state before action `t`, \[S\]; `None` past the end.
    pub fn row(&self, t: usize) -> Option<&[f64]> {
        self.values.get(t.checked_mul(self.width)?..)?.get(..self.width)
    }
}

/// One episode of T control steps and F stored frames per camera (F = T, or only the steps at which the
/// policy looked).
#[derive(Clone, Debug, PartialEq)]
pub struct Episode {
    /// What is known besides the numbers.
    pub meta: EpisodeMeta,
    /// Frames by camera name, \[F\] each; all frames of one camera have one size.
    pub cameras: BTreeMap<String, Vec<RgbImage>>,
    /// The control step each stored frame belongs to, \[F\], strictly increasing, < T; empty without cameras.
    pub frame_steps: Vec<u32>,
    /// \[T, 8\], see [`PROPRIO_DIM`].
    pub proprio: Vec<[f32; PROPRIO_DIM]>,
    /// \[T, 7\], see [`ACTION_DIM`].
    pub actions: Vec<[f32; ACTION_DIM]>,
    /// \[T\].
    pub rewards: Vec<f32>,
    /// Full simulator states \[T, S\], where they were kept.
    pub states: Option<States>,
}

/// How an episode contradicts itself.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// No control step at all.
    #[error("the episode has no control step")]
    Empty,
    /// Two fields disagree about their length.
    #[error("`{field}` has {got} rows, but {expected} are needed to match `{other}`")]
    Length {
        /// The field that is wrong.
        field: String,
        /// Its rows.
        got: usize,
        /// The rows it should have.
        expected: usize,
        /// The field that says so.
        other: &'static str,
    },
    /// A NaN or infinity.
    #[error("`{field}` holds {value} at row {row}; only finite numbers can be stored")]
    NotFinite {
        /// The field.
        field: &'static str,
        /// Its row.
        row: usize,
        /// NaN, inf or -inf.
        value: f64,
    },
    /// `frame_steps` is not a strictly increasing list of steps.
    #[error(
        "`frame_steps[{frame}]` is {step}; steps must increase and stay below the {steps} of the episode"
    )]
    FrameStep {
        /// Which frame.
        frame: usize,
        /// Its step.
        step: u32,
        /// T.
        steps: usize,
    },
    /// A frame whose size differs from the camera's first frame, or is zero.
    #[error("camera `{camera}`, frame {frame}: {}x{} px, expected {}x{} px", got.0, got.1, expected.0, expected.1)]
    FrameSize {
        /// The camera.
        camera: String,
        /// Which frame.
        frame: usize,
        /// (width, height) in pixels.
        got: (u32, u32),
        /// (width, height) in pixels.
        expected: (u32, u32),
    },
    /// A camera name that cannot be a tensor name.
    #[error("camera name `{camera}`: use letters, digits, `_` and `-` only")]
    CameraName {
        /// The name.
        camera: String,
    },
    /// A control rate that is no rate.
    #[error("`control_hz` is {control_hz}; it must be a positive number of steps per second")]
    ControlRate {
        /// The rate.
        control_hz: f64,
    },
}

impl Episode {
    /// T, the number of control steps.
    pub fn steps(&self) -> usize {
        self.actions.len()
    }

    /// F, the number of stored frames per camera.
    pub fn frames(&self) -> usize {
        self.frame_steps.len()
    }

    /// Sum of the rewards.
    pub fn total_reward(&self) -> f64 {
        self.rewards.iter().map(|&r| f64::from(r)).sum()
    }

    /// Checks that the fields agree with each other and hold only finite numbers.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn validate(&self) -> Result<(), Invalid> {
        let steps = self.steps();
        if steps == 0 {
            return Err(Invalid::Empty);
        }
        let same_steps = |field: &str, got: usize| same_length(field, got, steps, "actions");
        same_steps("proprio", self.proprio.len())?;
        same_steps("rewards", self.rewards.len())?;
        finite("actions", ACTION_DIM, self.actions.as_flattened().iter().map(|&x| f64::from(x)))?;
        finite("proprio", PROPRIO_DIM, self.proprio.as_flattened().iter().map(|&x| f64::from(x)))?;
        finite("rewards", 1, self.rewards.iter().map(|&x| f64::from(x)))?;
        if let Some(states) = &self.states {
            let rows = states.values.len().checked_div(states.width).unwrap_or(0);
            same_steps("states", rows)?;
            same_length("states", states.values.len(), rows * states.width, "states.width")?;
            finite("states", states.width, states.values.iter().copied())?;
        }
        if !(self.meta.control_hz.is_finite() && self.meta.control_hz > 0.0) {
            return Err(Invalid::ControlRate { control_hz: self.meta.control_hz });
        }
        self.validate_frames()
    }

    fn validate_frames(&self) -> Result<(), Invalid> {
        let (steps, frames) = (self.steps(), self.frames());
        for (frame, &step) in self.frame_steps.iter().enumerate() {
            let after_previous = frame == 0 || self.frame_steps[frame - 1] < step;
            if !after_previous || step as usize >= steps {
                return Err(Invalid::FrameStep { frame, step, steps });
            }
        }
        if self.cameras.is_empty() {
            return same_length("frame_steps", frames, 0, "cameras");
        }
        for (camera, images) in &self.cameras {
            if !is_camera_name(camera) {
                return Err(Invalid::CameraName { camera: camera.clone() });
            }
            same_length(&format!("cameras.{camera}"), images.len(), frames, "frame_steps")?;
            let expected = images.first().map_or((0, 0), RgbImage::dimensions);
            let expected = (expected.0.max(1), expected.1.max(1)); // an empty picture is never right
            for (frame, image) in images.iter().enumerate() {
                let got = image.dimensions();
                if got != expected {
                    return Err(Invalid::FrameSize { camera: camera.clone(), frame, got, expected });
                }
            }
        }
        Ok(())
    }
}

/// Letters, digits, `_`, `-`: safe inside a tensor name, where `.` separates.
pub(crate) fn is_camera_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn same_length(field: &str, got: usize, expected: usize, other: &'static str) -> Result<(), Invalid> {
    if got == expected {
        Ok(())
    } else {
        Err(Invalid::Length { field: field.to_string(), got, expected, other })
    }
}

fn finite(field: &'static str, width: usize, mut values: impl Iterator<Item = f64>) -> Result<(), Invalid> {
    let mut index = 0;
    let bad = values.find(|x| {
        index += 1;
        !x.is_finite()
    });
    match bad {
        None => Ok(()),
        Some(value) => Err(Invalid::NotFinite { field, row: (index - 1) / width.max(1), value }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A small valid episode with `steps` steps, frames at every second step, two cameras.
    pub(crate) fn episode(steps: u32, seed: u64) -> Episode {
        let frame_steps: Vec<u32> = (0..steps).step_by(2).collect();
        let picture = |w: u32, h: u32, f: u32| {
            RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 7 + f) as u8, (y * 5) as u8, (seed % 251) as u8]))
        };
        let camera = |w, h| frame_steps.iter().map(|&f| picture(w, h, f)).collect();
        Episode {
            meta: EpisodeMeta {
                task: "pick_red_cube".into(),
                instruction: "pick up the red cube".into(),
                seed,
                success: seed.is_multiple_of(2),
                source: Source::Scripted,
                mujoco_version: "3.3.2".into(),
                control_hz: 20.0,
                extra: BTreeMap::from([("note".into(), "test".into())]),
            },
            cameras: BTreeMap::from([("front".into(), camera(16, 12)), ("wrist".into(), camera(8, 8))]),
            proprio: (0..steps).map(|t| [t as f32 * 0.1; PROPRIO_DIM]).collect(),
            actions: (0..steps).map(|t| [(t as f32).sin(); ACTION_DIM]).collect(),
            rewards: (0..steps).map(|t| (t + 1 == steps) as u8 as f32).collect(),
            states: Some(States { width: 3, values: (0..3 * steps).map(|i| f64::from(i) / 3.0).collect() }),
            frame_steps,
        }
    }

    #[test]
    fn a_good_episode_passes() {
        let e = episode(5, 4);
        e.validate().unwrap();
        assert_eq!((e.steps(), e.frames(), e.total_reward()), (5, 3, 1.0));
        assert_eq!(e.states.as_ref().unwrap().row(1).unwrap(), [1.0, 4.0 / 3.0, 5.0 / 3.0]);
        assert_eq!(e.states.unwrap().row(5), None);
        let blind = Episode { cameras: BTreeMap::new(), frame_steps: vec![], states: None, ..episode(1, 0) };
        blind.validate().unwrap();
    }

    #[test]
    fn every_contradiction_is_named() {
        let check = |spoil: fn(&mut Episode), expected: &str| {
            let mut e = episode(4, 0);
            spoil(&mut e);
            let message = e.validate().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(|e| e.actions.clear(), "no control step");
        check(|e| e.rewards.push(0.0), "`rewards` has 5 rows, but 4");
        check(|e| e.proprio.truncate(1), "`proprio` has 1 rows");
        check(|e| e.states.as_mut().unwrap().values.truncate(11), "`states` has 3 rows");
        check(|e| e.states.as_mut().unwrap().values.push(0.0), "`states` has 13 rows, but 12");
        check(|e| e.states.as_mut().unwrap().width = 0, "`states` has 0 rows");
        check(|e| e.actions[2][6] = f32::NAN, "`actions` holds NaN at row 2");
        check(|e| e.states.as_mut().unwrap().values[11] = f64::INFINITY, "`states` holds inf at row 3");
        check(|e| e.meta.control_hz = 0.0, "`control_hz` is 0");
        check(|e| e.frame_steps = vec![2, 2], "`frame_steps[1]` is 2");
        check(|e| e.frame_steps = vec![0, 4], "`frame_steps[1]` is 4");
        check(|e| e.frame_steps = vec![0], "`cameras.front` has 2 rows, but 1");
        check(|e| e.cameras.clear(), "`frame_steps` has 2 rows, but 0");
        check(
            |e| e.cameras.get_mut("wrist").unwrap()[1] = RgbImage::new(8, 9),
            "frame 1: 8x9 px, expected 8x8 px",
        );
        check(|e| e.cameras.get_mut("wrist").unwrap().fill(RgbImage::new(0, 8)), "0x8 px");
        check(
            |e| {
                let frames = e.cameras.remove("front").unwrap();
                e.cameras.insert("a.b".into(), frames);
            },
            "camera name `a.b`",
        );
    }
}
