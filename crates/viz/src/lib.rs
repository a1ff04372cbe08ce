//! What a person looks at: recordings of episodes, charts, reports, contact sheets.
//!
//! The types others fill in are plain ([`EpisodeRecord`], [`SceneGeom`], [`CameraRecord`], [`ReportData`]);
//! this crate knows nothing of simulators or policies. Frames of reference: the world is right-handed with
//! Z up, metres and radians; a [`Pose`] maps points of the thing to the world (`world_from_thing`).
//!
//! [`flow`] shows 3D flow: how objects move, how they were predicted to move.
//!
//! Three sinks share one face, [`Recorder`]: a `.rrd` file for the rerun viewer, JSON lines, and nothing.

pub mod curves;
mod draw;
pub mod episode;
pub mod error;
pub mod flow;
mod jsonl;
mod output;
pub mod recorder;
pub mod report;
#[cfg(feature = "rerun")]
mod rrd;
pub mod sheet;
pub mod stats;
pub mod theme;
pub mod view;

#[cfg(test)]
extern crate self as efference_viz;
#[cfg(test)]
#[path = "../examples/demo_flow/made_up.rs"]
mod made_up;

pub use curves::{Chart, Point, Series};
pub use episode::{
    CameraAxes, CameraPose, CameraRecord, EpisodeRecord, GeomKind, Intrinsics, Plan, Pose, SceneGeom, Signal,
    pose_from_mujoco, pose_from_mujoco_mat,
};
pub use error::{Error, Result};
pub use recorder::{Contents, Recorder, RecorderOptions, Sink, contents};
pub use report::{ReportData, Strip, TaskRow};
pub use stats::{Tally, wilson};

/// Whether this build can write `.rrd` recordings (cargo feature `rerun`).
pub const HAS_RERUN: bool = cfg!(feature = "rerun");
