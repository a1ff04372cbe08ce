//! PointFlow-DiT: a diffusion transformer whose tokens are the query points of an object.
//!
//! ```text
//! point token   Linear(noisy trajectory, 3 T numbers) + MLP(Fourier features of where the point is) + picture at (u, v)
//!               + MLP(sums of all noisy trajectories, times 1 and times the points' coordinates)
//! scene tokens  a convolutional map of the first RGB-D picture, 8 x 8 with a 2D code, and what 16 queries find in a finer
//!               one, with its place in metres
//! condition     MLP(timestep) + mean of the words' vectors + camera (up direction, scale, where the object is)
//! blocks        adaLN-zero transformer over [points, scene]; no position code on points: their order means nothing
//! heads         3 T numbers per point (velocity, noise or clean sample) and T visibility logits; and an affine motion of
//!               all points, from the mean of their tokens
//! ```
//!
//! [`QueryCode`] turns what is known of a scene into numbers and back: points, camera, picture and depth go in, metres
//! of the world frame come out. [`PointFlowNet`] is the network. Sizes: [`FlowNetConfig`].
//!
//! Sources: DiT (arXiv 2212.09748) as used for tracks by Track2Act (2405.01527); 3DFlowAction (2506.06199) for what is
//! predicted. In which coordinates: [`Representation`].

mod block;
mod code;
mod config;
pub mod conformance;
mod eyes;
mod modulation;
mod net;
mod picture;
mod text;

pub use block::{DitBlock, FinalLayer};
pub use code::{CAMERA_NUMBERS, POINT_NUMBERS, QueryCode, QueryInput};
pub use config::{FLOW_NET_PRESETS, FlowNetConfig, Representation};
pub use modulation::{gated_add, modulated_norm};
pub use net::{Context, FlowBatch, FlowOutput, PointFlowNet};
pub use picture::{SCENE_CHANNELS, small_depth, small_picture};
pub use text::{NO_TEXT, text_ids};
