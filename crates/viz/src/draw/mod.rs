//! Drawing into pixels without GPU or display: shapes, text, small meshes.

mod canvas;
mod mesh;
mod text;

pub(crate) use canvas::{Canvas, Stroke, fit_picture};
pub(crate) use mesh::{DepthPicture, Mesh, Vertex};
pub(crate) use text::{Align, Weight, shortened, text_width};
