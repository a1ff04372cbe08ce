//! From a tracker's pixel tracks and a depth video to the 3D flow of the object that moves.
//!
//! The steps of 3DFlowAction's data pipeline, with what its authors leave out: points that are hidden take no depth from
//! what hides them, and a camera that moves is undone by the background's motion.

use nalgebra::{Isometry3, Point3};

use crate::cloud::{PixelRounding, lift_tracks};
use crate::rigid::{RansacOptions, ransac_rigid};
use crate::tracks::PixelTracks;
use crate::{Error, Flow3d, Frame, Intrinsics, Result, uniform_frames};

/// A video, seen by a tracker and a depth camera or network.
#[derive(Clone, Copy, Debug)]
pub struct TrackedVideo<'a, D> {
    /// Of the tracked and of the depth pictures.
    pub intrinsics: Intrinsics,
    /// [frames, points], pixels.
    pub tracks: PixelTracks<'a>,
    /// [frames, points]: 0 to 1, from the tracker.
    pub visibility: &'a [f32],
    /// [frames, height, width]: metres along the optical axis; 0, NaN and infinity are holes.
    pub depth_m: &'a [D],
}

/// How a flow is made of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoFlowOptions {
    /// Frames after the first, evenly spread to the last one.
    pub future_frames: usize,
    /// Points that are less visible count as hidden.
    pub min_visibility: f32,
    /// Points that are seen in a smaller share of the frames are left out.
    pub min_seen: f64,
    /// For the motion of the background.
    pub ransac: RansacOptions,
}

impl Default for VideoFlowOptions {
    /// 8 frames, visible from one half on, seen in half of the frames; the background within 2 cm.
    fn default() -> Self {
        Self {
            future_frames: 8,
            min_visibility: 0.5,
            min_seen: 0.5,
            ransac: RansacOptions { threshold_m: 0.02, ..RansacOptions::default() },
        }
    }
}

/// A flow and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoFlow {
    /// In the frame of the first picture's camera. Positions of hidden points are interpolated in time and have
    /// visibility 0.
    pub flow: Flow3d,
    /// Indices of the flow's points among the tracks.
    pub points: Vec<usize>,
    /// Indices of the flow's frames in the video.
    pub frames: Vec<usize>,
    /// Camera at frame 0 from the camera at each frame of the flow; identities without a background.
    pub camera_motion: Vec<Isometry3<f64>>,
}

/// Lifts the tracks `object` (indices) to a flow. With `background` tracks the motion of the camera is taken out: it is
/// the rigid motion of most of them. Points without depth or visibility in the first frame are left out.
///
/// # Errors
/// Lengths that disagree, an index past the tracks, no point of the object that can be used, or a background whose motion
/// cannot be told in some frame (fewer than three points that agree).
pub fn flow_of_video<D: Copy + Into<f64>>(
    video: &TrackedVideo<D>,
    object: &[usize],
    background: Option<&[usize]>,
    options: &VideoFlowOptions,
) -> Result<VideoFlow> {
    let (frames, n) = (video.tracks.frames(), video.tracks.points());
    if video.visibility.len() != frames * n {
        return Err(Error::Length { what: "visibility", got: video.visibility.len(), want: frames * n });
    }
    if let Some(bad) = object.iter().chain(background.unwrap_or_default()).find(|i| **i >= n) {
        return Err(Error::Range { what: "track", value: *bad as f64, range: "below the tracks" });
    }
    let uv: Vec<[f64; 2]> = (0..frames * n).map(|k| video.tracks.at(k / n, k % n)).collect();
    let lifted = lift_tracks(&video.intrinsics, video.depth_m, &uv, frames, PixelRounding::Exact)?;
    let seen = |t: usize, i: usize| {
        let k = t * n + i;
        lifted[k].filter(|_| video.visibility[k] >= options.min_visibility)
    };
    let chosen = uniform_frames(frames, options.future_frames + 1)?;
    let camera_motion = match background {
        Some(background) => {
            let motion = |t: &usize| camera_motion(*t, background, &seen, options);
            chosen.iter().map(motion).collect::<Result<Vec<_>>>()?
        }
        None => vec![Isometry3::identity(); chosen.len()],
    };
    let usable = |i: &&usize| {
        let count = (0..frames).filter(|t| seen(*t, **i).is_some()).count();
        seen(0, **i).is_some() && count as f64 >= options.min_seen * frames as f64
    };
    let points: Vec<usize> = object.iter().filter(usable).copied().collect();
    let (mut positions, mut visibility) = (Vec::new(), Vec::new());
    for (t, camera) in chosen.iter().zip(&camera_motion) {
        for &i in &points {
            let here = seen(*t, i);
            let point = here.or_else(|| between(*t, frames, &|t| seen(t, i)));
            positions.push(camera * point.unwrap_or_else(Point3::origin));
            visibility.push(if here.is_some() { 1.0 } else { 0.0 });
        }
    }
    let flow = Flow3d::new(Frame::Camera, points.len(), positions, visibility)?;
    Ok(VideoFlow { flow, points, frames: chosen, camera_motion })
}

/// Camera at frame 0 from the camera at frame `t`: what carries the background at `t` onto where it was.
fn camera_motion(
    t: usize,
    background: &[usize],
    seen: &impl Fn(usize, usize) -> Option<Point3<f64>>,
    options: &VideoFlowOptions,
) -> Result<Isometry3<f64>> {
    if t == 0 {
        return Ok(Isometry3::identity());
    }
    let pairs = background.iter().filter_map(|&i| Some((seen(t, i)?, seen(0, i)?)));
    let (now, first): (Vec<_>, Vec<_>) = pairs.unzip();
    let lost = |value: usize| Error::Range {
        what: "background points that agree",
        value: value as f64,
        range: "at least 3, not on a line",
    };
    if now.len() < 3 {
        return Err(lost(now.len()));
    }
    let found = ransac_rigid(&now, &first, None, &options.ransac, t as u64)?;
    if found.fit.degenerate {
        return Err(lost(0));
    }
    Ok(found.fit.pose)
}

/// A hidden point, on the line between where it was seen last and where it is seen next; where it is not seen again, where
/// it was last.
fn between(t: usize, frames: usize, seen: &dyn Fn(usize) -> Option<Point3<f64>>) -> Option<Point3<f64>> {
    let (before, a) = (0..t).rev().find_map(|s| Some((s, seen(s)?)))?;
    let Some((after, b)) = (t + 1..frames).find_map(|s| Some((s, seen(s)?))) else { return Some(a) };
    let share = (t - before) as f64 / (after - before) as f64;
    Some(a + (b - a) * share)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nalgebra::Vector3;

    use super::*;

    const SIDE: usize = 128;
    const FRAMES: usize = 17;

    /// A block that slides to the right before a far wall, seen by a camera that moves if it is asked to. Depth is exact at
    /// each track.
    struct Video {
        intrinsics: Intrinsics,
        uv: Vec<[f64; 2]>,
        visibility: Vec<f32>,
        depth: Vec<f64>,
        truth: Vec<Point3<f64>>,
    }

    fn video(moving_camera: bool) -> Video {
        let intrinsics = Intrinsics::from_fovy_deg(60.0, SIDE, SIDE).unwrap();
        let (mut uv, mut depth) = (Vec::new(), vec![0.0; FRAMES * SIDE * SIDE]);
        let mut truth = Vec::new();
        for t in 0..FRAMES {
            let s = t as f64 / (FRAMES - 1) as f64;
            let turn = if moving_camera { 0.05 * s } else { 0.0 };
            let camera = Isometry3::new(Vector3::new(turn, 0.0, -turn), Vector3::new(0.0, turn, 0.5 * turn));
            for i in 0..32 {
                let world = if i < 12 {
                    let (a, b) = (f64::from(i % 4), f64::from(i / 4));
                    Point3::new(-0.15 + 0.08 * a + 0.12 * s, -0.1 + 0.08 * b, 0.8 + 0.01 * a)
                } else {
                    let k = i - 12;
                    let (a, b) = (f64::from(k % 5), f64::from(k / 5));
                    Point3::new(-0.5 + 0.25 * a, -0.5 + 0.3 * b, 1.5 + 0.1 * f64::from(k % 3))
                };
                let [u, v, d] = intrinsics.project(&camera.inverse_transform_point(&world)).unwrap();
                // What is nearer comes first, and hides what shares its pixel.
                let pixel = &mut depth[t * SIDE * SIDE + v as usize * SIDE + u as usize];
                *pixel = if *pixel == 0.0 { d } else { *pixel };
                uv.push([u, v]);
                if i < 12 {
                    truth.push(world);
                }
            }
        }
        Video { intrinsics, uv, visibility: vec![1.0; FRAMES * 32], depth, truth }
    }

    fn flow(video: &Video, background: Option<&[usize]>) -> Result<VideoFlow> {
        let tracks = PixelTracks::new(&video.uv, FRAMES)?;
        let whole = TrackedVideo {
            intrinsics: video.intrinsics,
            tracks,
            visibility: &video.visibility,
            depth_m: &video.depth,
        };
        let object: Vec<usize> = (0..12).collect();
        flow_of_video(&whole, &object, background, &VideoFlowOptions::default())
    }

    fn worst(found: &VideoFlow, truth: &[Point3<f64>]) -> f64 {
        let mut worst = 0.0f64;
        for (t, frame) in found.frames.iter().enumerate() {
            for (j, i) in found.points.iter().enumerate() {
                worst = worst.max((found.flow.at(t)[j] - truth[frame * 12 + i]).norm());
            }
        }
        worst
    }

    #[test]
    fn hidden_points_are_interpolated_and_a_moving_camera_is_undone() {
        let background: Vec<usize> = (12..32).collect();
        let mut still = video(false);
        // Point 3 is hidden in the middle, by something near; point 5 at first; point 7 has no depth for most of the time.
        for t in 5..9 {
            still.visibility[t * 32 + 3] = 0.0;
            let [u, v] = still.uv[t * 32 + 3];
            still.depth[t * SIDE * SIDE + v as usize * SIDE + u as usize] = 0.3;
        }
        still.visibility[5] = 0.0;
        for t in 1..FRAMES {
            let [u, v] = still.uv[t * 32 + 7];
            still.depth[t * SIDE * SIDE + v as usize * SIDE + u as usize] = f64::NAN;
        }
        let found = flow(&still, None).unwrap();
        assert_eq!(found.points, [0, 1, 2, 3, 4, 6, 8, 9, 10, 11]);
        assert_eq!(found.frames, [0, 2, 4, 6, 8, 10, 12, 14, 16]);
        assert!(worst(&found, &still.truth) < 1e-9, "{}", worst(&found, &still.truth));
        assert_eq!((found.flow.visibility_at(3)[3], found.flow.visibility_at(2)[3]), (0.0, 1.0));
        let moving = video(true);
        assert!(worst(&flow(&moving, None).unwrap(), &moving.truth) > 0.02);
        assert!(worst(&flow(&moving, Some(&background)).unwrap(), &moving.truth) < 1e-9);
    }

    #[test]
    fn what_gives_no_flow_is_refused() {
        let mut blind = video(false);
        assert!(matches!(flow(&blind, Some(&[12, 13])), Err(Error::Range { .. })));
        assert!(matches!(flow(&blind, Some(&[99])), Err(Error::Range { .. })));
        blind.visibility[..12].fill(0.0);
        assert!(flow(&blind, None).is_err());
        blind.visibility.pop();
        assert!(matches!(flow(&blind, None), Err(Error::Length { .. })));
        let mut empty = video(false);
        empty.depth.fill(f64::INFINITY);
        assert!(flow(&empty, None).is_err());
    }
}
