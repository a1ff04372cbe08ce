//! Cameras, rigid motions and 3D flow: the geometry between a picture and a plan.
//!
//! - [`Camera`]: a pinhole camera with a place in the world; conventions of other worlds are converted on the way in.
//! - [`Flow3d`]: where the points of an object are, frame by frame, and whether the camera sees them; [`rigid`] fits how the
//!   object moves as a whole, outliers or not; [`metrics`] says how good a predicted flow is.
//! - [`tracks`], [`video`], [`cloud`]: flows from the tracks and depths of real videos. [`render`]: pictures of point clouds.
//! - [`plan`]: poses of a hand that move an object along a flow, around obstacles ([`sdf`], [`solid`]) and within the reach of
//!   an arm ([`ik`]).
//! - [`conformance`]: replays reference vectors.
//!
//! Metres, radians, pixels; f64; right-handed frames. A pose is an [`nalgebra::Isometry3`] and is named
//! `target_from_source`: it maps coordinates in the source frame to the target frame.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod camera;
pub mod cloud;
pub mod conformance;
mod error;
mod flow;
pub mod ik;
pub mod metrics;
pub mod plan;
mod pose;
pub mod render;
pub mod rigid;
mod sampling;
pub mod sdf;
pub mod solid;
pub mod spline;
pub mod tracks;
mod uvd;
pub mod video;

pub use camera::{Camera, CameraAxes, Intrinsics};
pub use error::{Error, Result};
pub use flow::{Flow3d, Frame};
pub use nalgebra::{Isometry3, Point3, UnitQuaternion, Vector3};
pub use pose::{
    PoseBounds, densify, interpolate_isometry, interpolate_poses, interpolation_steps, pose_distance,
    pose_from_euler, pose_to_euler,
};
pub use sampling::{farthest_points, uniform_frames};
pub use uvd::UvdCodec;
