//! Sizes and colours that the pictures of flows share.

use crate::theme::{self, Rgb};

/// Ground of 3D views, as in the recordings.
pub(crate) const SPACE: Rgb = [22, 26, 32];
/// Dark rim of lines and dots.
pub(crate) const RIM: Rgb = [12, 15, 20];
/// Ground of panels that hold no picture.
pub(crate) const PANEL: Rgb = [0xF6, 0xF8, 0xFA];
/// Corners of panels, pixels.
pub(crate) const RADIUS: f32 = 10.0;
/// Trails that are drawn; all points of an object would cover each other.
pub(crate) const TRAILS: usize = 26;
#[cfg(feature = "rerun")]
/// Errors are drawn green to red up to this many metres.
pub(crate) const BAD_M: f64 = 0.05;

/// Colour of a verdict.
pub(crate) fn verdict(good: bool) -> Rgb {
    if good { theme::SUCCESS } else { theme::FAILURE }
}
