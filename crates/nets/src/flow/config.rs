//! Sizes of the network and what its numbers mean.

use serde::{Deserialize, Serialize};

use super::eyes::COARSE;
use crate::error::{Error, Result};

/// In which coordinates the network sees and predicts displacements from the present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Representation {
    /// Metres along the axes of a level frame: z up, x horizontally away from the camera, divided by
    /// [`FlowNetConfig::scale_m`]. Lifting is the same direction for every camera.
    #[default]
    Level,
    /// Metres along the camera's axes (x right, y down, z forward), divided by [`FlowNetConfig::scale_m`].
    Camera,
    /// Picture coordinates: u and v from -1 to 1 across the picture, depth from -1 to 1 over 1.5 m, times 4.
    Uvd,
}

/// The shape of a [`PointFlowNet`](super::PointFlowNet), stored beside its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowNetConfig {
    /// Width D of a token.
    pub width: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads, a divisor of the width.
    pub heads: usize,
    /// Predicted frames T after the present.
    pub frames: usize,
    /// Whether the network sees the picture and its depth.
    pub picture: bool,
    /// Side of the square picture the network takes, pixels; a multiple of 16.
    pub image_size: usize,
    /// Queries that look for places in the picture.
    pub looks: usize,
    /// Rows of the table of words (hashed), the empty instruction included.
    pub vocabulary: usize,
    /// Whether a goal point may be given, as a token of its own.
    pub goal: bool,
    /// Coordinates.
    pub representation: Representation,
    /// Length that is 1 for the network, metres: about the spread of displacements.
    pub scale_m: f64,
}

/// Names of [`FlowNetConfig::preset`], smallest first.
pub const FLOW_NET_PRESETS: [&str; 6] = ["xs", "s", "m", "b", "l", "xl"];

/// Largest accepted sizes: a file cannot ask for more memory than a network could sensibly need.
const MOST_WIDTH: usize = 4096;
const MOST_LAYERS: usize = 128;

impl Default for FlowNetConfig {
    fn default() -> Self {
        Self {
            width: 128,
            layers: 4,
            heads: 4,
            frames: 8,
            picture: true,
            image_size: 128,
            looks: 16,
            vocabulary: 512,
            goal: false,
            representation: Representation::default(),
            scale_m: 0.15,
        }
    }
}

impl FlowNetConfig {
    /// A named size: `xs` 1.0M parameters with picture, `s` 1.7M, `m` 5.0M, `b` 11M, `l` 25M, `xl` 411M.
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        let (width, layers, heads) = match name {
            "xs" => (96, 4, 4),
            "s" => (128, 4, 4),
            "m" => (192, 6, 6),
            "b" => (256, 8, 8),
            "l" => (384, 8, 8),
            "xl" => (1152, 16, 16),
            _ => return None,
        };
        Some(Self { width, layers, heads, ..Self::default() })
    }

    /// Refuses sizes that make no network.
    ///
    /// # Errors
    /// [`Error::Config`] names the field.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, field: &'static str, got: String, expected: &str| {
            if ok { Ok(()) } else { Err(Error::Config { field, got, expected: expected.into() }) }
        };
        let width = (8..=MOST_WIDTH).contains(&self.width) && self.width.is_multiple_of(8);
        check(width, "width", self.width.to_string(), "a multiple of 8 from 8 to 4096")?;
        let layers = (1..=MOST_LAYERS).contains(&self.layers);
        check(layers, "layers", self.layers.to_string(), "1 to 128")?;
        let heads = self.heads > 0 && self.width.is_multiple_of(self.heads);
        check(heads, "heads", self.heads.to_string(), &format!("a divisor of the width {}", self.width))?;
        check((1..=256).contains(&self.frames), "frames", self.frames.to_string(), "1 to 256")?;
        let side = (16..=512).contains(&self.image_size) && self.image_size.is_multiple_of(COARSE);
        check(side, "image_size", self.image_size.to_string(), "a multiple of 16 from 16 to 512")?;
        check((1..=256).contains(&self.looks), "looks", self.looks.to_string(), "1 to 256")?;
        let words = (2..=1 << 20).contains(&self.vocabulary);
        check(words, "vocabulary", self.vocabulary.to_string(), "2 to 1048576")?;
        let scale = self.scale_m.is_finite() && self.scale_m > 0.0;
        check(scale, "scale_m", self.scale_m.to_string(), "greater than 0")
    }

    /// Cells along a side of the map of scene tokens.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.image_size / COARSE
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn presets_are_networks_and_bad_sizes_are_named() {
        for name in FLOW_NET_PRESETS {
            FlowNetConfig::preset(name).unwrap().validate().unwrap();
        }
        assert!(FlowNetConfig::preset("tiny").is_none());
        let field = |config: FlowNetConfig| match config.validate().unwrap_err() {
            Error::Config { field, .. } => field,
            other => panic!("{other}"),
        };
        let base = FlowNetConfig::default;
        assert_eq!(field(FlowNetConfig { width: 12, ..base() }), "width");
        assert_eq!(field(FlowNetConfig { heads: 3, ..base() }), "heads");
        assert_eq!(field(FlowNetConfig { layers: 0, ..base() }), "layers");
        assert_eq!(field(FlowNetConfig { frames: 0, ..base() }), "frames");
        assert_eq!(field(FlowNetConfig { image_size: 63, ..base() }), "image_size");
        assert_eq!(field(FlowNetConfig { looks: 0, ..base() }), "looks");
        assert_eq!(field(FlowNetConfig { vocabulary: 1, ..base() }), "vocabulary");
        assert_eq!(field(FlowNetConfig { scale_m: f64::NAN, ..base() }), "scale_m");
    }
}
