//! Depth of single pictures (Depth Anything, MiDaS, ZoeDepth and the like).

use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::pictures::{common_size, map_to, planes, sensible};
use super::{Array, OnnxModel};
use crate::error::{Error, Result};

/// Means and standard deviations of ImageNet's channels, which these networks are trained with.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Sides are multiples of this where the file leaves them open: the patch of a DINOv2 encoder.
const MULTIPLE: usize = 14;
/// Pictures of one question.
const BATCH: usize = 4;

/// What a depth network's numbers mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DepthMeaning {
    /// Metres, times the scale.
    #[default]
    Metres,
    /// Inverse depth: metres are the scale divided by it.
    Disparity,
}

/// A network from pictures [B, 3, H, W] to maps [B, H, W] or [B, 1, H, W].
#[derive(Debug)]
pub struct DepthNet {
    model: OnnxModel,
    meaning: DepthMeaning,
    scale: f32,
}

impl DepthNet {
    /// Reads a network. `scale`: see [`DepthMeaning`].
    ///
    /// # Errors
    /// [`OnnxModel::load`]'s; [`Error::Onnx`] for a network with other inputs, or a scale that is no positive number.
    pub fn load(path: &Path, meaning: DepthMeaning, scale: f64) -> Result<Self> {
        let model = OnnxModel::load(path, 0)?;
        let [input] = model.inputs() else {
            return Err(
                model.refused(format!("a depth network takes one tensor, not {}", model.inputs().len()))
            );
        };
        if input.rank() != 4 || input.dims[1].is_some_and(|c| c != 3) || !sensible(&input.dims) {
            return Err(model.refused(format!("`{}` is {}, not [B, 3, H, W]", input.name, input.shape())));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(model.refused(format!("a depth scale of {scale} is not above 0")));
        }
        Ok(Self { model, meaning, scale: scale as f32 })
    }

    /// Metres [T, H, W] of T pictures of one size; 0 where the network says nothing that could be a depth.
    ///
    /// # Errors
    /// Pictures of different sizes; [`OnnxModel::run`]'s; an output that is no map.
    pub fn depth(&self, pictures: &[RgbImage]) -> Result<Vec<f32>> {
        let size = common_size(pictures).ok_or_else(|| {
            let expected = "pictures of one size".to_owned();
            Error::Input { name: "pictures", got: vec![pictures.len()], expected }
        })?;
        let ask = self.size_for(size);
        let batch = self.model.inputs()[0].dims[0];
        let mut out = Vec::with_capacity(pictures.len() * size.0 * size.1);
        for part in pictures.chunks(batch.unwrap_or(BATCH).max(1)) {
            let mut values = Vec::with_capacity(part.len() * 3 * ask.0 * ask.1);
            part.iter().for_each(|picture| planes(picture, ask, MEAN, STD, &mut values));
            // A fixed batch is filled up with the last picture.
            let rows = batch.unwrap_or(part.len());
            while values.len() < rows * 3 * ask.0 * ask.1 {
                values.extend_from_within(values.len() - 3 * ask.0 * ask.1..);
            }
            let input = Array { dims: vec![rows, 3, ask.0, ask.1], values };
            let answer = self.model.run(vec![input])?;
            self.read(answer, part.len(), rows, size, &mut out)?;
        }
        Ok(out)
    }

    /// (height, width) to ask for: the file's, or the picture's to the nearest multiple.
    fn size_for(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let dims = &self.model.inputs()[0].dims;
        let near = |side: usize| MULTIPLE * ((side + MULTIPLE / 2) / MULTIPLE).max(1);
        (dims[2].unwrap_or_else(|| near(height)), dims[3].unwrap_or_else(|| near(width)))
    }

    fn read(
        &self,
        answer: Vec<Array>,
        wanted: usize,
        rows: usize,
        size: (usize, usize),
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let odd = |dims: &[usize]| self.model.refused(format!("it gave {dims:?}, not maps [{rows}, H, W]"));
        let Some(Array { dims, values }) = answer.into_iter().next() else { return Err(odd(&[])) };
        let map = match dims[..] {
            [b, h, w] | [b, 1, h, w] if b == rows && h > 0 && w > 0 => (h, w),
            _ => return Err(odd(&dims)),
        };
        for map_values in values.chunks_exact(map.0 * map.1).take(wanted) {
            let whole = map_to(map_values.to_vec(), map, size).ok_or_else(|| odd(&dims))?;
            out.extend(whole.into_iter().map(|x| self.metres(x)));
        }
        Ok(())
    }

    fn metres(&self, x: f32) -> f32 {
        let depth = match self.meaning {
            DepthMeaning::Metres => x * self.scale,
            DepthMeaning::Disparity => self.scale / x,
        };
        if depth.is_finite() && depth > 0.0 { depth } else { 0.0 }
    }
}
