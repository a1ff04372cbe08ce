//! The ways of points as smooth lines.

use efference_geometry::{Flow3d, Isometry3, Point3, Vector3, farthest_points, interpolate_isometry};

use crate::draw::{Canvas, Stroke};
use crate::theme::Rgb;

/// Pieces that a line has per frame.
const PIECES: usize = 6;

/// Where the points are at a time between frames: a cubic through the frames. `time` in frames, brought into
/// the flow's range.
pub(crate) fn position(flow: &Flow3d, point: usize, time: f64) -> Point3<f64> {
    let last = flow.frames() - 1;
    let time = time.clamp(0.0, last as f64);
    let t = (time as usize).min(last.saturating_sub(1));
    let s = time - t as f64;
    let at = |i: usize| flow.at(i.min(last))[point].coords;
    let (p0, p1, p2, p3) = (at(t.saturating_sub(1)), at(t), at(t + 1), at(t + 2));
    // Speeds no larger than the shorter of the two steps allows: after a long step the line does not overshoot.
    let speed = |a: Vector3<f64>, b: Vector3<f64>, c: Vector3<f64>| {
        let middle = (c - a) * 0.5;
        let most = (b - a).norm().min((c - b).norm());
        middle * (most / middle.norm().max(1e-12)).min(1.0)
    };
    let (v1, v2) = (speed(p0, p1, p2), speed(p1, p2, p3));
    let (s2, s3) = (s * s, s * s * s);
    let from = p1 * (2.0 * s3 - 3.0 * s2 + 1.0) + v1 * (s3 - 2.0 * s2 + s);
    let to = p2 * (3.0 * s2 - 2.0 * s3) + v2 * (s3 - s2);
    Point3::from(from + to)
}

/// The motion at a time between frames.
pub(crate) fn motion(frames: &[Isometry3<f64>], time: f64) -> Option<Isometry3<f64>> {
    let last = frames.len().checked_sub(1)?;
    let time = time.clamp(0.0, last as f64);
    let t = (time as usize).min(last.saturating_sub(1));
    Some(interpolate_isometry(frames.get(t)?, frames.get((t + 1).min(last))?, time - t as f64))
}

/// The places of one point from frame 0 to `until` (in frames), and whether the camera sees it there.
pub(crate) fn way(flow: &Flow3d, point: usize, until: f64) -> Vec<(Point3<f64>, bool)> {
    let until = until.clamp(0.0, (flow.frames() - 1) as f64);
    let steps = (until * PIECES as f64).ceil() as usize;
    let place = |i: usize| {
        let time = (i as f64 / PIECES as f64).min(until);
        let frame = (time.round() as usize).min(flow.frames() - 1);
        (position(flow, point, time), flow.visibility_at(frame)[point] >= 0.5)
    };
    (0..=steps).map(place).collect()
}

/// Up to `n` points spread over the object.
pub(crate) fn spread(points: &[Point3<f64>], n: usize) -> Vec<usize> {
    // Points that are shown are finite, so there is an answer.
    farthest_points(points, n, 0).unwrap_or_default()
}

/// A line on the canvas.
pub(crate) struct Trail {
    /// Pixels, and whether that place is in full view.
    pub(crate) places: Vec<([f32; 2], bool)>,
    /// Distance of its head from the eye: far ones are drawn first.
    pub(crate) depth: f64,
    pub(crate) color: Rgb,
    /// What it becomes towards its tail.
    pub(crate) tail: Rgb,
}

/// Draws trails with a rim that sets them off from any ground, thin at the tail, with a dot for a head. What is hidden is
/// faint. `width` is that of the head end in pixels.
pub(crate) fn draw(canvas: &mut Canvas, mut trails: Vec<Trail>, width: f32, rim: Rgb) {
    trails.sort_by(|a, b| b.depth.total_cmp(&a.depth));
    for trail in &trails {
        let Some((head, in_view)) = trail.places.last().copied() else { continue };
        let pieces = trail.places.len().saturating_sub(1).max(1) as f32;
        let thickness = |i: usize| width * (0.35 + 0.65 * i as f32 / pieces);
        for run in runs(&trail.places) {
            let points: Vec<[f32; 2]> = trail.places[run.clone()].iter().map(|p| p.0).collect();
            let middle = thickness((run.start + run.end) / 2);
            let alpha = if trail.places[run.end - 1].1 { 0.38 } else { 0.08 };
            canvas.polyline(&points, Stroke { round: false, ..Stroke::new(rim, middle + 1.4).alpha(alpha) });
        }
        for (i, pair) in trail.places.windows(2).enumerate() {
            let color = crate::flow::mix(trail.tail, trail.color, (i as f64 + 1.0) / f64::from(pieces));
            let stroke = Stroke::new(color, thickness(i));
            let stroke = if pair[1].1 { stroke } else { Stroke { round: false, ..stroke.alpha(0.35) } };
            canvas.polyline(&[pair[0].0, pair[1].0], stroke);
        }
        let alpha = if in_view { 1.0 } else { 0.4 };
        canvas.dot(head, 1.15 * width + 0.9, rim, 0.6 * alpha);
        canvas.dot(head, 1.15 * width, trail.color, alpha);
    }
}

/// Longest stretches that are all in view or all hidden, as ranges of places that share their ends.
fn runs(places: &[([f32; 2], bool)]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for i in 1..places.len() {
        match runs.last_mut() {
            Some(run) if places[run.end - 1].1 == places[i].1 => run.end = i + 1,
            _ => runs.push(i - 1..i + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_geometry::Frame;

    fn flow() -> Flow3d {
        let at =
            |t: usize| [Point3::new(0.1 * t as f64, 0.0, 0.0), Point3::new(0.0, 0.05 * (t * t) as f64, 1.0)];
        Flow3d::new(Frame::World, 2, (0..5).flat_map(at).collect(), vec![1.0; 10]).unwrap()
    }

    #[test]
    fn a_way_goes_through_its_frames_and_ends_where_it_is_told() {
        let flow = flow();
        for t in 0..5 {
            assert!((position(&flow, 1, t as f64) - flow.at(t)[1]).norm() < 1e-12);
        }
        assert!((position(&flow, 0, 1.5).x - 0.15).abs() < 1e-12, "a straight line stays straight");
        for until in [0.0, 0.3, 2.5, 4.0, 9.0] {
            let way = way(&flow, 1, until);
            assert!((way.last().unwrap().0 - position(&flow, 1, until)).norm() < 1e-12);
            assert!((way[0].0 - flow.at(0)[1]).norm() < 1e-12);
        }
        let alone = Flow3d::new(Frame::World, 1, vec![Point3::origin()], vec![1.0]).unwrap();
        assert_eq!(way(&alone, 0, 3.0).len(), 1);
    }

    #[test]
    fn stretches_change_where_the_view_changes() {
        let places = [true, true, false, false, true].map(|seen| ([0.0, 0.0], seen));
        assert_eq!(runs(&places), [0..2, 1..4, 3..5]);
        assert!(runs(&places[..1]).is_empty());
    }
}
