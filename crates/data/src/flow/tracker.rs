//! Episodes from the tracks of real videos (3DFlowAction's pipeline): find the object that moves among a tracker's points
//! (CoTracker's arrays, for example), lift its tracks by a depth video (a sensor's or a network's), keep evenly spaced
//! frames.

use efference_geometry::cloud::{is_depth, pixel_at};
use efference_geometry::tracks::{MovingObjectOptions, PixelTracks, moving_object};
use efference_geometry::{Camera, Flow3d, Frame, Point3, farthest_points, uniform_frames};

use super::{FlowEpisode, FlowSource};
use crate::RgbImage;

/// What a tracker and a depth camera (or networks in their place) give of one video.
#[derive(Clone, Debug)]
pub struct Clip<'a> {
    /// What was done, in words.
    pub instruction: &'a str,
    /// Family of the task, for tables.
    pub task: &'a str,
    /// Calibrated for the pictures; where its place is unknown, the world is whatever frame it is given in.
    pub camera: Camera,
    /// First picture.
    pub image: &'a RgbImage,
    /// [frames, points] pixel x, y, frame by frame.
    pub tracks_px: &'a [[f64; 2]],
    /// [frames, points]: whether the tracker sees the point.
    pub visible: &'a [bool],
    /// [frames, height, width]: metres along the optical axis; holes are 0, NaN or infinite.
    pub depth_m: &'a [f32],
    /// Frames.
    pub frames: usize,
}

/// How a clip becomes an episode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackerOptions {
    /// Frames of the episode, the present included; at least 2.
    pub frames: usize,
    /// Points of the episode at most.
    pub points: usize,
    /// Limits for finding the object; width and height are the clip's.
    pub object: MovingObjectOptions,
}

impl Default for TrackerOptions {
    /// 9 frames, 128 points, the authors' limits.
    fn default() -> Self {
        Self { frames: 9, points: 128, object: MovingObjectOptions::default() }
    }
}

/// Why a clip gives no episode.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// Arrays that do not fit together.
    #[error("`{field}` has {got} entries, but {expected} are needed")]
    Length {
        /// Which.
        field: &'static str,
        /// Its length.
        got: usize,
        /// What fits the others.
        expected: usize,
    },
    /// Nothing moves far enough to be the object.
    #[error("nothing moves far enough to be the object")]
    Still,
    /// What moves fills too much of the picture.
    #[error("what moves fills too much of the picture to be an object")]
    TooLarge,
    /// Too few points of the object have a depth.
    #[error(
        "only {points} of the object's points have a depth in the first frame and a later one; 4 are needed"
    )]
    NoDepth {
        /// How many have.
        points: usize,
    },
    /// What the geometry says.
    #[error(transparent)]
    Geometry(#[from] efference_geometry::Error),
    /// The episode contradicts itself.
    #[error(transparent)]
    Invalid(#[from] super::Invalid),
}

/// Fewer points than this do not make a flow.
const FEWEST: usize = 4;

/// The episode of a clip. Where a point is hidden or has no depth, it is on the line between its nearest good frames (an
/// occluder's depth is not the point's), and counts as unseen. The mask is the box of the object's points in the first
/// picture. There are no poses.
///
/// # Errors
/// [`TrackerError`].
pub fn episode(clip: &Clip, options: &TrackerOptions) -> Result<FlowEpisode, TrackerError> {
    let i = clip.camera.intrinsics;
    let tracks = PixelTracks::new(clip.tracks_px, clip.frames)?;
    let (frames, points) = (tracks.frames(), tracks.points());
    let pixels = i.width * i.height;
    let length = |field, got, expected| {
        if got == expected { Ok(()) } else { Err(TrackerError::Length { field, got, expected }) }
    };
    length("visible", clip.visible.len(), frames * points)?;
    length("depth_m", clip.depth_m.len(), frames * pixels)?;
    length("pixels of the image", (clip.image.width() * clip.image.height()) as usize, pixels)?;
    let limits = MovingObjectOptions { width: i.width, height: i.height, ..options.object };
    let found = moving_object(&tracks, &limits)?;
    if found.too_large {
        return Err(TrackerError::TooLarge);
    }
    let Some([left, top, right, bottom]) = found.box_xyxy.filter(|_| found.accepted()) else {
        return Err(TrackerError::Still);
    };
    let chosen = uniform_frames(frames, options.frames)?;
    let mut lifted: Vec<Vec<(Point3<f64>, bool)>> = Vec::new();
    for point in (0..points).filter(|point| found.moving[*point]) {
        let at = |t: &usize| {
            let [u, v] = tracks.at(*t, point);
            let depth = f64::from(clip.depth_m[t * pixels + pixel_at(&i, u, v)?]);
            (clip.visible[t * points + point] && is_depth(depth)).then(|| clip.camera.lift(u, v, depth))
        };
        let places: Vec<Option<Point3<f64>>> = chosen.iter().map(at).collect();
        // Its start is what a predictor is asked about.
        if places[0].is_some() && places[1..].iter().any(Option::is_some) {
            lifted.push(bridge(&places));
        }
    }
    if lifted.len() < FEWEST {
        return Err(TrackerError::NoDepth { points: lifted.len() });
    }
    let starts: Vec<Point3<f64>> = lifted.iter().map(|way| way[0].0).collect();
    let kept = farthest_points(&starts, options.points.min(starts.len()), 0)?;
    let all = || (0..chosen.len()).flat_map(|t| kept.iter().map(move |k| (t, *k)));
    let positions = all().map(|(t, k)| lifted[k][t].0).collect();
    let visibility = all().map(|(t, k)| f32::from(u8::from(lifted[k][t].1))).collect();
    let mut mask = vec![0; pixels];
    for (pixel, mask) in mask.iter_mut().enumerate() {
        let (u, v) = ((pixel % i.width) as f64 + 0.5, (pixel / i.width) as f64 + 0.5);
        let inside = (left - 0.5..=right + 0.5).contains(&u) && (top - 0.5..=bottom + 0.5).contains(&v);
        *mask = if inside { 255 } else { 0 };
    }
    let clean = |depth: &f32| if is_depth(f64::from(*depth)) && *depth <= 32.0 { *depth } else { 0.0 };
    let episode = FlowEpisode {
        instruction: clip.instruction.to_lowercase(),
        task: clip.task.to_owned(),
        source: FlowSource::Tracker,
        seed: 0,
        camera: clip.camera.clone(),
        image: clip.image.clone(),
        depth_m: clip.depth_m[..pixels].iter().map(clean).collect(),
        mask,
        flow: Flow3d::new(Frame::World, kept.len(), positions, visibility)?,
        poses: Vec::new(),
    };
    episode.validate()?;
    Ok(episode)
}

/// Fills gaps on straight lines, ends with what is nearest; `false` marks what was filled. At least one is given.
fn bridge(places: &[Option<Point3<f64>>]) -> Vec<(Point3<f64>, bool)> {
    let given = |t: usize| places[t].map(|p| (t, p));
    let one = |t: usize| {
        let before = (0..=t).rev().find_map(given);
        let after = (t..places.len()).find_map(given);
        match (before, after) {
            (Some((a, p)), Some((b, q))) if b > a => p + (q - p) * ((t - a) as f64 / (b - a) as f64),
            (Some((_, p)), _) | (_, Some((_, p))) => p,
            (None, None) => Point3::origin(),
        }
    };
    (0..places.len()).map(|t| (one(t), places[t].is_some())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_geometry::{Intrinsics, Isometry3};

    const SIDE: usize = 64;
    const FRAMES: usize = 17;

    struct Video {
        camera: Camera,
        image: RgbImage,
        tracks: Vec<[f64; 2]>,
        visible: Vec<bool>,
        depth: Vec<f32>,
        truth: Vec<Point3<f64>>,
    }

    /// A plate 0.8 m away goes 20 cm to the right and 10 cm nearer after frame 6, before a wall at 1.5 m.
    fn video() -> Video {
        let camera = Camera {
            intrinsics: Intrinsics::from_fovy_deg(60.0, SIDE, SIDE).unwrap(),
            world_from_camera: Isometry3::identity(),
        };
        let at = |t: usize, i: usize| {
            let s = (t as f64 - 6.0).max(0.0) / 10.0;
            let (x, y) = ((i % 6) as f64 * 0.03 - 0.25, (i / 6) as f64 * 0.03 - 0.05);
            Point3::new(x + 0.2 * s, y, 0.8 - 0.1 * s)
        };
        let still = |i: usize| camera.lift(4.0 + 9.0 * (i % 7) as f64, 60.0 - 2.0 * (i / 7) as f64, 1.5);
        let (mut tracks, mut truth) = (Vec::new(), Vec::new());
        let mut depth = vec![1.5f32; FRAMES * SIDE * SIDE];
        for t in 0..FRAMES {
            for i in 0..24 {
                let p = at(t, i);
                let [u, v, z] = camera.project(&p).unwrap();
                tracks.push([u, v]);
                truth.push(p);
                // What the depth camera sees around the point.
                depth[(t * SIDE + v as usize) * SIDE + u as usize] = z as f32;
            }
            for i in 0..14 {
                let [u, v, _] = camera.project(&still(i)).unwrap();
                tracks.push([u, v]);
            }
        }
        let visible = vec![true; tracks.len()];
        let image = RgbImage::new(SIDE as u32, SIDE as u32);
        Video { camera, image, tracks, visible, depth, truth }
    }

    fn clip(v: &Video) -> Clip<'_> {
        Clip {
            instruction: "Move the plate",
            task: "move",
            camera: v.camera.clone(),
            image: &v.image,
            tracks_px: &v.tracks,
            visible: &v.visible,
            depth_m: &v.depth,
            frames: FRAMES,
        }
    }

    #[test]
    fn the_plate_is_found_and_its_way_is_the_true_one() {
        let v = video();
        let episode = episode(&clip(&v), &TrackerOptions::default()).unwrap();
        assert_eq!((episode.flow.frames(), episode.flow.points()), (9, 24));
        assert_eq!(episode.instruction, "move the plate");
        let last = &v.truth[24 * (FRAMES - 1)..];
        for p in episode.flow.at(8) {
            let nearest = last.iter().map(|q| (p - q).norm()).fold(f64::INFINITY, f64::min);
            assert!(nearest < 1e-6, "{nearest}");
        }
        assert_eq!(super::super::check(&episode).problems(FlowSource::Tracker), []);
    }

    #[test]
    fn what_is_hidden_is_bridged_and_marked() {
        let mut v = video();
        let all = v.tracks.len() / FRAMES;
        // Point 3 is hidden in the middle of its way, by something near; a hole at another.
        for t in 9..=14 {
            v.visible[t * all + 3] = false;
        }
        let [u, w] = v.tracks[12 * all + 5];
        v.depth[(12 * SIDE + w as usize) * SIDE + u as usize] = f32::NAN;
        let episode = episode(&clip(&v), &TrackerOptions::default()).unwrap();
        let hidden: f32 = (0..9).map(|t| 24.0 - episode.flow.visibility_at(t).iter().sum::<f32>()).sum();
        assert_eq!(hidden, 4.0);
        // Straight at constant speed, so the bridge is the truth.
        let truth: Vec<_> = v.truth[24 * 12..24 * 13].to_vec();
        for p in episode.flow.at(6) {
            let nearest = truth.iter().map(|q| (p - q).norm()).fold(f64::INFINITY, f64::min);
            assert!(nearest < 1e-6, "{nearest}");
        }
    }

    #[test]
    fn clips_without_an_object_are_refused() {
        let v = video();
        let options = TrackerOptions::default();
        let still: Vec<_> = (0..FRAMES).flat_map(|_| v.tracks[..38].to_vec()).collect();
        let none = episode(&Clip { tracks_px: &still, ..clip(&v) }, &options);
        assert_eq!(none, Err(TrackerError::Still));
        let blind = vec![0.0; v.depth.len()];
        let none = episode(&Clip { depth_m: &blind, ..clip(&v) }, &options);
        assert_eq!(none, Err(TrackerError::NoDepth { points: 0 }));
        let short = episode(&Clip { depth_m: &v.depth[1..], ..clip(&v) }, &options);
        assert!(matches!(short, Err(TrackerError::Length { field: "depth_m", .. })));
        let short = episode(&Clip { visible: &v.visible[1..], ..clip(&v) }, &options);
        assert!(matches!(short, Err(TrackerError::Length { field: "visible", .. })));
        let mut bad = v.tracks.clone();
        bad[7][0] = f64::NAN;
        let bad = episode(&Clip { tracks_px: &bad, ..clip(&v) }, &options);
        assert!(matches!(bad, Err(TrackerError::Geometry(_))));
        let none = episode(&Clip { frames: 0, ..clip(&v) }, &options);
        assert!(matches!(none, Err(TrackerError::Geometry(_))));
    }
}
