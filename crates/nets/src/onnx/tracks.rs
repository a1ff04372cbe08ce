//! Point trackers (CoTracker and the like).

use std::path::Path;

use image::RgbImage;

use super::pictures::{common_size, planes, sensible};
use super::{Array, OnnxModel};
use crate::error::{Error, Result};

/// Where points are in each picture of a video.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracks {
    /// Number of points N.
    pub points: usize,
    /// [T, N]: x to the right, y down, pixels.
    pub places: Vec<[f64; 2]>,
    /// [T, N]: 0 to 1.
    pub visibility: Vec<f32>,
}

/// A network from a video [1, T, 3, H, W] (0 to 255) and queries [1, N, 3] (picture, x, y) to tracks [1, T, N, 2] and
/// visibility [1, T, N]: what CoTracker's offline model takes and gives.
#[derive(Debug)]
pub struct TrackNet {
    model: OnnxModel,
    /// Places of video and queries among the inputs, of tracks and visibility among the outputs.
    video: usize,
    queries: usize,
    tracks: usize,
    visibility: usize,
}

impl TrackNet {
    /// Reads a network; its inputs and outputs are told apart by their number of axes.
    ///
    /// # Errors
    /// [`OnnxModel::load`]'s; [`Error::Onnx`] for a network with other inputs or outputs.
    pub fn load(path: &Path) -> Result<Self> {
        let model = OnnxModel::load(path, 0)?;
        let at = |ports: &[super::Port], rank: usize| ports.iter().position(|p| p.rank() == rank);
        let (ins, outs) = (model.inputs(), model.outputs());
        let found = (at(ins, 5), at(ins, 3), at(outs, 4), at(outs, 3));
        let (Some(video), Some(queries), Some(tracks), Some(visibility)) = found else {
            let list = |ports: &[super::Port]| {
                let all: Vec<String> = ports.iter().map(|p| format!("`{}` {}", p.name, p.shape())).collect();
                all.join(", ")
            };
            return Err(model.refused(format!(
                "a tracker takes a video [1, T, 3, H, W] and queries [1, N, 3] and gives tracks [1, T, N, 2] and \
                 visibility [1, T, N]; this takes {} and gives {}",
                list(ins),
                list(outs)
            )));
        };
        if !sensible(&ins[video].dims) {
            return Err(model.refused(format!("`{}` is {}", ins[video].name, ins[video].shape())));
        }
        if ins.len() != 2 {
            return Err(model.refused(format!("a tracker takes two tensors, not {}", ins.len())));
        }
        Ok(Self { model, video, queries, tracks, visibility })
    }

    /// Follows `grid` x `grid` points of the first picture, evenly spread, through pictures of one size.
    ///
    /// # Errors
    /// Pictures of different sizes, no points; [`OnnxModel::run`]'s; outputs of other sizes or that are not finite.
    pub fn follow(&self, pictures: &[RgbImage], grid: usize) -> Result<Tracks> {
        let wrong = |expected: &str| Error::Input {
            name: "pictures",
            got: vec![pictures.len(), grid],
            expected: expected.into(),
        };
        let (height, width) = common_size(pictures).ok_or_else(|| wrong("pictures of one size"))?;
        if !(1..=256).contains(&grid) {
            return Err(wrong("1 to 256 points a side"));
        }
        let dims = &self.model.inputs()[self.video].dims;
        let ask = (dims[3].unwrap_or(height), dims[4].unwrap_or(width));
        let (frames, points) = (pictures.len(), grid * grid);
        let mut values = Vec::with_capacity(frames * 3 * ask.0 * ask.1);
        // (byte / 255) / (1 / 255): the bytes themselves.
        pictures.iter().for_each(|p| planes(p, ask, [0.0; 3], [1.0 / 255.0; 3], &mut values));
        let video = Array { dims: vec![1, frames, 3, ask.0, ask.1], values };
        let at = |i: usize, side: usize| ((i as f64 + 0.5) * side as f64 / grid as f64) as f32;
        let queries = (0..points).flat_map(|i| [0.0, at(i % grid, ask.1), at(i / grid, ask.0)]).collect();
        let queries = Array { dims: vec![1, points, 3], values: queries };
        let inputs = if self.video < self.queries { vec![video, queries] } else { vec![queries, video] };
        let mut answer = self.model.run(inputs)?;
        let mut take = |i: usize| std::mem::replace(&mut answer[i], Array { dims: vec![], values: vec![] });
        let (tracks, seen) = (take(self.tracks), take(self.visibility));
        if tracks.dims != [1, frames, points, 2] || seen.dims != [1, frames, points] {
            let what = format!(
                "it gave tracks {:?} and visibility {:?} for {frames} pictures and {points} points",
                tracks.dims, seen.dims
            );
            return Err(self.model.refused(what));
        }
        if !tracks.values.iter().chain(&seen.values).all(|x| x.is_finite()) {
            return Err(self.model.refused("it gave numbers that are not finite".into()));
        }
        let (sx, sy) = (width as f64 / ask.1 as f64, height as f64 / ask.0 as f64);
        let (pairs, _) = tracks.values.as_chunks::<2>();
        let places = pairs.iter().map(|p| [f64::from(p[0]) * sx, f64::from(p[1]) * sy]).collect();
        let visibility = seen.values.into_iter().map(|x| x.clamp(0.0, 1.0)).collect();
        Ok(Tracks { points, places, visibility })
    }
}
