//! A thin, safe layer over one chosen version of MuJoCo, with headless rendering by EGL.
//!
//! - [`Model`]: a compiled scene, immutable and shared between threads as `Arc<Model>`.
//! - [`Data`]: one simulation of it. `Send`, so that environments can move between threads.
//! - [`Renderer`]: an offscreen OpenGL context for one model, bound to the thread that made it.
//!
//! ```no_run
//! # fn main() -> efference_mujoco::Result<()> {
//! use efference_mujoco::{Data, Model, RenderQuality, Renderer};
//! use std::sync::Arc;
//!
//! let model = Arc::new(Model::from_xml_file("scene.xml")?);
//! let mut data = Data::new(&model)?;
//! data.ctrl_mut()[0] = 0.5;
//! data.step(25)?;
//!
//! let camera = model.camera_id("front")?;
//! let mut renderer = Renderer::new(&model, 64, 64, RenderQuality::FULL)?;
//! let mut rgb = vec![0; 64 * 64 * 3];
//! renderer.render_rgb(&data, camera, &mut rgb)?;
//! # Ok(())
//! # }
//! ```
//!
//! Conventions are MuJoCo's: metres, seconds, radians, newtons; quaternions are `[w, x, y, z]`; rotation matrices are
//! nine numbers, row-major, that take local to world; cameras look along their -z axis with +y up.
//!
//! # Indices
//! Bodies, geoms, sites, … are plain `usize` found by name ([`Model::body_id`], …) or counted from zero. As with
//! slices, the accessors that take such an index panic when it is past the end.

// The only crate that talks to C; each block says why it is sound.
#![allow(unsafe_code)]

mod data;
mod edit;
mod error;
mod ffi;
mod kinematics;
mod looks;
mod model;
mod names;
mod render;

pub use data::Data;
pub use error::{Error, Result};
pub use kinematics::Contact;
pub use model::{JointKind, Model};
pub use names::Kind;
pub use render::{Camera, RenderQuality, Renderer};

/// The version of the MuJoCo library in use, for example `3.3.2`. Simulation results depend on it: store it with them.
pub fn version() -> String {
    // SAFETY: returns a static string.
    unsafe { ffi::text(ffi::mj_versionString()) }
}

/// The folder of `libmujoco.so` that this crate was linked against.
pub const LIBRARY_DIR: &str = env!("EFFERENCE_MUJOCO_LIB_DIR");
