//! Where the points of an object are, frame by frame.

use nalgebra::{Isometry3, Point3};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// In which frame coordinates are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The scene's: z up.
    World,
    /// The camera's: x right, y down, z forward.
    Camera,
}

/// Points in metres over frames. Frame 0 is the present; the frames after it are the flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow3d {
    /// Of the positions.
    frame: Frame,
    /// Points per frame.
    points: usize,
    /// [frames, points], frame by frame.
    positions: Vec<Point3<f64>>,
    /// [frames, points]: 0 to 1, the probability that the camera sees the point.
    visibility: Vec<f32>,
}

impl Flow3d {
    /// From positions [frames, points] and visibilities of the same shape, frame by frame.
    ///
    /// # Errors
    /// The lengths disagree or are no multiple of `points`; there are no points or no frames; a number is not finite; a
    /// visibility lies outside 0 to 1.
    pub fn new(
        frame: Frame,
        points: usize,
        positions: Vec<Point3<f64>>,
        visibility: Vec<f32>,
    ) -> Result<Self> {
        if points == 0 || positions.is_empty() {
            return Err(Error::Range { what: "points and frames", value: 0.0, range: "at least 1" });
        }
        if !positions.len().is_multiple_of(points) {
            let want = positions.len().next_multiple_of(points);
            return Err(Error::Length { what: "positions", got: positions.len(), want });
        }
        if visibility.len() != positions.len() {
            return Err(Error::Length { what: "visibility", got: visibility.len(), want: positions.len() });
        }
        if let Some(index) = positions.iter().position(|p| !p.coords.iter().all(|x| x.is_finite())) {
            return Err(Error::NotFinite { what: "positions", index });
        }
        if let Some(v) = visibility.iter().find(|v| !(0.0..=1.0).contains(*v)) {
            return Err(Error::Range { what: "visibility", value: f64::from(*v), range: "within 0 and 1" });
        }
        Ok(Self { frame, points, positions, visibility })
    }

    /// The flow of a rigid body: `poses[t]` maps the object's frame to `frame`.
    ///
    /// # Errors
    /// As [`Flow3d::new`].
    pub fn rigid(
        frame: Frame,
        object_points: &[Point3<f64>],
        poses: &[Isometry3<f64>],
        visibility: Vec<f32>,
    ) -> Result<Self> {
        let positions = poses.iter().flat_map(|pose| object_points.iter().map(move |p| pose * p)).collect();
        Self::new(frame, object_points.len(), positions, visibility)
    }

    /// In which frame the positions are.
    #[must_use]
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Points per frame, at least 1.
    #[must_use]
    pub fn points(&self) -> usize {
        self.points
    }

    /// Frames including the present one, at least 1.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.positions.len() / self.points
    }

    /// Positions at frame `t`, one per point.
    ///
    /// # Panics
    /// `t` is past the end.
    #[must_use]
    pub fn at(&self, t: usize) -> &[Point3<f64>] {
        &self.positions[t * self.points..][..self.points]
    }

    /// Visibilities at frame `t`, one per point.
    ///
    /// # Panics
    /// `t` is past the end.
    #[must_use]
    pub fn visibility_at(&self, t: usize) -> &[f32] {
        &self.visibility[t * self.points..][..self.points]
    }

    /// The same flow seen from another frame, `target_from_self`.
    #[must_use]
    pub fn transformed(&self, target: Frame, target_from_self: &Isometry3<f64>) -> Self {
        let positions = self.positions.iter().map(|p| target_from_self * p).collect();
        Self { frame: target, positions, points: self.points, visibility: self.visibility.clone() }
    }

    /// Only some of the points, in this order.
    ///
    /// # Errors
    /// An index is past the end, or there is none.
    pub fn select(&self, points: &[usize]) -> Result<Self> {
        if let Some(bad) = points.iter().find(|i| **i >= self.points) {
            return Err(Error::Range { what: "point index", value: *bad as f64, range: "below the points" });
        }
        let all = |t: usize| points.iter().map(move |i| t * self.points + i);
        let positions = (0..self.frames()).flat_map(all).map(|i| self.positions[i]).collect();
        let visibility = (0..self.frames()).flat_map(all).map(|i| self.visibility[i]).collect();
        Self::new(self.frame, points.len(), positions, visibility)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_rigid_flow_moves_all_points_alike_and_can_be_seen_from_elsewhere() {
        let object = [Point3::origin(), Point3::new(0.1, 0.0, 0.0)];
        let poses = [Isometry3::identity(), Isometry3::translation(0.0, 0.2, 0.0)];
        let flow = Flow3d::rigid(Frame::World, &object, &poses, vec![1.0, 1.0, 0.0, 1.0]).unwrap();
        assert_eq!((flow.frames(), flow.points()), (2, 2));
        assert_eq!(flow.at(1), [Point3::new(0.0, 0.2, 0.0), Point3::new(0.1, 0.2, 0.0)]);
        let moved = flow.transformed(Frame::Camera, &Isometry3::translation(0.0, 0.0, 1.0));
        assert_eq!((moved.frame(), moved.at(0)[0].z), (Frame::Camera, 1.0));
        let second = flow.select(&[1]).unwrap();
        assert_eq!((second.points(), second.visibility_at(1)), (1, &[1.0][..]));
        assert!(flow.select(&[2]).is_err());
    }

    #[test]
    fn what_is_no_flow_is_refused() {
        let one = vec![Point3::origin()];
        assert!(matches!(Flow3d::new(Frame::World, 0, vec![], vec![]), Err(Error::Range { .. })));
        assert!(matches!(Flow3d::new(Frame::World, 2, one.clone(), vec![1.0]), Err(Error::Length { .. })));
        assert!(matches!(Flow3d::new(Frame::World, 1, one.clone(), vec![]), Err(Error::Length { .. })));
        assert!(matches!(Flow3d::new(Frame::World, 1, one, vec![1.5]), Err(Error::Range { .. })));
        let nan = vec![Point3::new(f64::NAN, 0.0, 0.0)];
        assert!(matches!(Flow3d::new(Frame::World, 1, nan, vec![1.0]), Err(Error::NotFinite { .. })));
    }
}
