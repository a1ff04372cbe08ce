//! From a tracker's pixel tracks to the tracks of the object that moves (3DFlowAction, section on ManiFlow): functions on
//! given tracks, whatever made them.
//!
//! Tracks are positions [frames, points] in pixels, frame by frame.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Pixel tracks [frames, points], frame by frame.
#[derive(Clone, Copy, Debug)]
pub struct PixelTracks<'a> {
    positions: &'a [[f64; 2]],
    frames: usize,
}

impl<'a> PixelTracks<'a> {
    /// Of `frames` frames with the same points.
    ///
    /// # Errors
    /// No frames or points, a length that is no multiple of `frames`, or a position that is not finite.
    pub fn new(positions: &'a [[f64; 2]], frames: usize) -> Result<Self> {
        if frames == 0 || positions.is_empty() {
            return Err(Error::Range { what: "frames and points", value: 0.0, range: "at least 1" });
        }
        if !positions.len().is_multiple_of(frames) {
            let want = positions.len().next_multiple_of(frames);
            return Err(Error::Length { what: "positions", got: positions.len(), want });
        }
        if let Some(index) = positions.iter().position(|p| !p.iter().all(|x| x.is_finite())) {
            return Err(Error::NotFinite { what: "positions", index });
        }
        Ok(Self { positions, frames })
    }

    /// Frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// Points per frame.
    #[must_use]
    pub fn points(&self) -> usize {
        self.positions.len() / self.frames
    }

    /// Pixel of point `i` in frame `t`.
    ///
    /// # Panics
    /// Past the end.
    #[must_use]
    pub fn at(&self, t: usize, i: usize) -> [f64; 2] {
        self.positions[t * self.points() + i]
    }

    fn moved(&self, i: usize, from: usize, to: usize) -> f64 {
        let ([a, b], [c, d]) = (self.at(from, i), self.at(to, i));
        (c - a).hypot(d - b)
    }
}

/// Limits of [`moving_object`]; pixels of the tracked picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovingObjectOptions {
    /// Points that have moved by this frame are the gripper's.
    pub early_frame: usize,
    /// How far they have moved at least.
    pub early_px: f64,
    /// An episode in which nothing moves as far is rejected.
    pub min_max_move_px: f64,
    /// Points of the object move more than this share of the range of motions.
    pub move_fraction: f64,
    /// An object whose box takes more than this share of the picture is rejected.
    pub max_area_fraction: f64,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Default for MovingObjectOptions {
    /// The authors' numbers, for 256x256.
    fn default() -> Self {
        Self {
            early_frame: 5,
            early_px: 1.0,
            min_max_move_px: 10.0,
            move_fraction: 0.25,
            max_area_fraction: 0.25,
            width: 256,
            height: 256,
        }
    }
}

/// What moves in an episode.
#[derive(Clone, Debug, PartialEq)]
pub struct MovingObject {
    /// For each point: whether it stands still at first (the others are taken for the gripper).
    pub early_static: Vec<bool>,
    /// For each point: whether it belongs to the moving object.
    pub moving: Vec<bool>,
    /// Bounds of the object's points in the first frame: left, top, right, bottom; `None` without points.
    pub box_xyxy: Option<[f64; 4]>,
    /// Nothing moves far enough.
    pub too_still: bool,
    /// The box is too large.
    pub too_large: bool,
}

impl MovingObject {
    /// Whether the episode is to be used.
    #[must_use]
    pub fn accepted(&self) -> bool {
        !self.too_still && !self.too_large && self.box_xyxy.is_some()
    }
}

/// Finds the points of the object that is moved: not those that move at once (the gripper), and among the others those
/// that end farthest from where they started.
///
/// # Errors
/// The early frame is past the end.
pub fn moving_object(tracks: &PixelTracks, options: &MovingObjectOptions) -> Result<MovingObject> {
    let (frames, n) = (tracks.frames(), tracks.points());
    if options.early_frame >= frames {
        let value = options.early_frame as f64;
        return Err(Error::Range { what: "early_frame", value, range: "below the frames" });
    }
    let early_static: Vec<bool> =
        (0..n).map(|i| tracks.moved(i, 0, options.early_frame) < options.early_px).collect();
    let end: Vec<f64> = (0..n).map(|i| tracks.moved(i, 0, frames - 1)).collect();
    let still = |i: &usize| early_static[*i];
    let ends = || (0..n).filter(still).map(|i| end[i]);
    let (low, high) = (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
    let limit = (high - low) * options.move_fraction;
    let moving: Vec<bool> = (0..n).map(|i| early_static[i] && end[i] > limit).collect();
    let mut bounds = None;
    for i in (0..n).filter(|i| moving[*i]) {
        let [x, y] = tracks.at(0, i);
        let [left, top, right, bottom] = bounds.unwrap_or([x, y, x, y]);
        bounds = Some([x.min(left), y.min(top), x.max(right), y.max(bottom)]);
    }
    let area = bounds.map_or(0.0, |[l, t, r, b]: [f64; 4]| (r - l) * (b - t));
    let picture = options.width as f64 * options.height as f64;
    Ok(MovingObject {
        // Without any point that stands still at first the range is empty, too.
        too_still: high < options.min_max_move_px,
        too_large: area > picture * options.max_area_fraction,
        early_static,
        moving,
        box_xyxy: bounds,
    })
}

/// First and last frame of the motion: the means over points of the first frame from which a point moves more than
/// `threshold_px` within `interval` frames, and of the last frame at which such a motion ends, both rounded down. `None`
/// where nothing moves so fast.
#[must_use]
pub fn movement_interval(tracks: &PixelTracks, threshold_px: f64, interval: usize) -> Option<(usize, usize)> {
    let (frames, n) = (tracks.frames(), tracks.points());
    let (mut starts, mut ends, mut points) = (0usize, 0usize, 0usize);
    for i in 0..n {
        let fast = |j: &usize| tracks.moved(i, *j, j + interval) > threshold_px;
        let all = || (0..frames.saturating_sub(interval)).filter(fast);
        if let (Some(first), Some(last)) = (all().next(), all().next_back()) {
            starts += first;
            ends += last + interval;
            points += 1;
        }
    }
    (points > 0).then(|| (starts / points, ends / points))
}

/// Indices of the points whose mean step is longer than that of all points together; the last ones are repeated until
/// their number is a square (the network takes a square of points).
#[must_use]
pub fn moving_points(tracks: &PixelTracks) -> Vec<usize> {
    let (frames, n) = (tracks.frames(), tracks.points());
    let steps = frames.saturating_sub(1).max(1) as f64;
    let mean = |i: usize| (1..frames).map(|t| tracks.moved(i, t - 1, t)).sum::<f64>() / steps;
    let means: Vec<f64> = (0..n).map(mean).collect();
    let limit = means.iter().sum::<f64>() / n as f64;
    let mut kept: Vec<usize> = (0..n).filter(|&i| means[i] > limit).collect();
    let side = (kept.len() as f64).sqrt().ceil() as usize;
    let missing = side * side - kept.len();
    kept.extend_from_within(kept.len().saturating_sub(missing)..);
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A gripper that moves at once, an object that moves later, and a background.
    fn scene() -> (Vec<[f64; 2]>, usize) {
        let frames = 12;
        let at = |t: usize, i: usize| {
            let (x, y) = (100.0 + 7.0 * (i % 4) as f64, 80.0 + 5.0 * (i / 4) as f64);
            let t = t as f64;
            match i {
                0..4 => [x + 3.0 * t, y],
                4..10 => [x, y - 6.0 * (t - 6.0).max(0.0)],
                _ => [x + 0.1, y],
            }
        };
        ((0..frames).flat_map(|t| (0..16).map(move |i| at(t, i))).collect(), frames)
    }

    #[test]
    fn the_object_is_told_from_gripper_and_background() {
        let (positions, frames) = scene();
        let tracks = PixelTracks::new(&positions, frames).unwrap();
        let found = moving_object(&tracks, &MovingObjectOptions::default()).unwrap();
        let moving: Vec<usize> = (0..16).filter(|i| found.moving[*i]).collect();
        assert_eq!(moving, [4, 5, 6, 7, 8, 9]);
        assert!(found.accepted() && found.box_xyxy == Some([100.0, 85.0, 121.0, 90.0]));
        let small = MovingObjectOptions { width: 10, height: 10, ..MovingObjectOptions::default() };
        assert!(moving_object(&tracks, &small).unwrap().too_large);
        let still = PixelTracks::new(&positions[..16 * 7], 7).unwrap();
        assert!(moving_object(&still, &MovingObjectOptions::default()).unwrap().too_still);
        assert!(moving_object(&still, &MovingObjectOptions { early_frame: 7, ..small }).is_err());
        let early = MovingObjectOptions { early_px: 0.0, ..small };
        let none = moving_object(&tracks, &early).unwrap();
        assert!(none.too_still && none.box_xyxy.is_none() && !none.accepted());
    }

    #[test]
    fn intervals_and_kept_points() {
        let (positions, frames) = scene();
        let tracks = PixelTracks::new(&positions, frames).unwrap();
        // Only the object moves 20 px in 5 frames: from frame 5 (to 10: 24 px) to frame 6 (to 11: 30 px).
        assert_eq!(movement_interval(&tracks, 20.0, 5), Some((5, 11)));
        assert_eq!(movement_interval(&tracks, 1000.0, 5), None);
        assert_eq!(movement_interval(&tracks, 1.0, 50), None);
        // 3 px per frame of the gripper and 30/11 of the object are above the mean: 10 points, padded to 16.
        assert_eq!(moving_points(&tracks), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 5, 6, 7, 8, 9]);
        assert!(moving_points(&PixelTracks::new(&positions[..16], 1).unwrap()).is_empty());
        assert!(
            PixelTracks::new(&positions, 0).is_err() && PixelTracks::new(&positions[1..], frames).is_err()
        );
        assert!(PixelTracks::new(&[[f64::NAN, 0.0]], 1).is_err());
    }
}
