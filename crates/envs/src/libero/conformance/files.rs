//! The recordings' files.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::libero::pack::{MAX_TEXT_BYTES, read};
use crate::libero::{Error, FixturePose, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Trajectory,
    Substeps,
    Predicates,
}

impl Kind {
    /// By the fields that only this kind has.
    pub fn of(path: &Path) -> Option<Self> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(rename = "suite")]
            _suite: String,
            initial: Option<serde::de::IgnoredAny>,
            start: Option<serde::de::IgnoredAny>,
            predicates: Option<serde::de::IgnoredAny>,
        }
        let fields: Fields = serde_json::from_slice(&read(path, MAX_TEXT_BYTES).ok()?).ok()?;
        match fields {
            Fields { initial: Some(_), .. } => Some(Self::Trajectory),
            Fields { start: Some(_), .. } => Some(Self::Substeps),
            Fields { predicates: Some(_), .. } => Some(Self::Predicates),
            _ => None,
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read(path, MAX_TEXT_BYTES)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.into(), source })
}

pub(super) type Poses = BTreeMap<String, FixturePose>;

/// What all kinds have.
#[derive(Deserialize)]
pub(super) struct Head {
    pub suite: String,
    pub task_id: usize,
}

#[derive(Deserialize)]
pub(super) struct Trajectory {
    pub goal: Vec<Vec<String>>,
    pub initial: Initial,
    pub actions: Vec<[f64; 7]>,
    pub qpos: Vec<Vec<f64>>,
    pub qvel: Vec<Vec<f64>>,
    pub warm: Vec<Vec<f64>>,
    pub time: Vec<f64>,
    pub eef_pos: Vec<[f64; 3]>,
    pub preds: Vec<Vec<bool>>,
    pub success: Vec<bool>,
    pub reward: Vec<f64>,
    pub done: Vec<bool>,
    pub gripper_action: Vec<[f64; 2]>,
    pub obs_eef_pos: Vec<[f64; 3]>,
    pub obs_eef_quat: Vec<[f64; 4]>,
    pub obs_gripper_qpos: Vec<[f64; 2]>,
    pub obs_gripper_qvel: Vec<[f64; 2]>,
    pub obs_joint_pos: Vec<[f64; 7]>,
}

impl Trajectory {
    /// The lists that must have one entry per action.
    pub fn lengths(&self) -> [usize; 15] {
        [
            self.qpos.len(),
            self.qvel.len(),
            self.warm.len(),
            self.time.len(),
            self.eef_pos.len(),
            self.preds.len(),
            self.success.len(),
            self.reward.len(),
            self.done.len(),
            self.gripper_action.len(),
            self.obs_eef_pos.len(),
            self.obs_eef_quat.len(),
            self.obs_gripper_qpos.len(),
            self.obs_gripper_qvel.len(),
            self.obs_joint_pos.len(),
        ]
    }
}

#[derive(Deserialize)]
pub(super) struct Initial {
    pub time: f64,
    pub qpos: Vec<f64>,
    pub qvel: Vec<f64>,
    pub warm: Vec<f64>,
    pub pred: Vec<bool>,
    pub success: bool,
    pub obs: Seen,
    pub fixture_poses: Poses,
}

#[derive(Deserialize)]
pub(super) struct Seen {
    pub eef_pos: [f64; 3],
    pub eef_quat: [f64; 4],
    pub gripper_qpos: [f64; 2],
    pub gripper_qvel: [f64; 2],
    pub joint_pos: [f64; 7],
}

#[derive(Deserialize)]
pub(super) struct Substeps {
    pub substeps: usize,
    pub fixture_poses: Poses,
    pub start: Start,
    pub ctrl: Vec<Vec<f64>>,
    pub qpos: Vec<Vec<f64>>,
    pub qvel: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
pub(super) struct Start {
    pub time: f64,
    pub qpos: Vec<f64>,
    pub qvel: Vec<f64>,
    pub warm: Vec<f64>,
    /// Read by the first forward pass; recordings of versions in which that has no effect lack it.
    pub ctrl: Option<Vec<f64>>,
}

#[derive(Deserialize)]
pub(super) struct Predicates {
    pub fixture_poses: Poses,
    pub predicates: Vec<Vec<String>>,
    pub qpos: Vec<Vec<f64>>,
    pub values: Vec<Vec<u8>>,
}
