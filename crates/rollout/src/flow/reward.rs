//! A flow as a dense reward for any robot: how far along it the object is.

use efference_geometry::{Flow3d, Point3};
use efference_objectives::papers::flow3d_action::{TrackingReward, tracking_reward};

use super::{Error, Result};

/// Rewards for a control step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowReward {
    /// The frame of the flow that the object's points are nearest to, 0 to T.
    pub frame: usize,
    /// `frame / T`, 0 to 1: the potential.
    pub progress: f64,
    /// Mean distance of the points from that frame, metres.
    pub deviation_m: f64,
    /// 0.75 progress + 0.25 (1 - tanh(10 |gripper - middle of the points|)): the form reported for Dream2Flow
    /// (arXiv 2512.24766).
    pub dense: f64,
    /// Change of the potential since the last step; sums to the progress made (Ng et al. 1999, discount 1).
    pub shaped: f64,
}

/// Tracks the progress of one episode along a reference flow.
#[derive(Clone, Debug)]
pub struct FlowTracker {
    reference: Flow3d,
    /// The same, as the objectives take it.
    frames: Vec<Vec<[f64; 3]>>,
    potential: f64,
}

impl FlowTracker {
    /// Along a flow in the world frame of at least two frames.
    ///
    /// # Errors
    /// [`Error::Query`]: a flow of one frame leads nowhere.
    pub fn new(reference: Flow3d) -> Result<Self> {
        if reference.frames() < 2 {
            return Err(Error::Query { why: "a flow without frames after the present".into() });
        }
        let frame = |t| reference.at(t).iter().map(|p| [p.x, p.y, p.z]).collect();
        let frames = (0..reference.frames()).map(frame).collect();
        Ok(Self { reference, frames, potential: 0.0 })
    }

    /// The rewards when the points are here (world frame, the flow's order) and the gripper there.
    ///
    /// # Errors
    /// [`Error::Query`]: another number of points, or positions that are not finite.
    pub fn step(&mut self, points: &[Point3<f64>], gripper: &Point3<f64>) -> Result<FlowReward> {
        let n = self.reference.points();
        if points.len() != n {
            return Err(Error::Query { why: format!("{} points instead of {n}", points.len()) });
        }
        let finite = |p: &Point3<f64>| p.coords.iter().all(|x| x.is_finite());
        if !points.iter().chain([gripper]).all(finite) {
            return Err(Error::Query { why: "a position is not finite".into() });
        }
        let plain = |points: &[Point3<f64>]| points.iter().map(|p| [p.x, p.y, p.z]).collect::<Vec<_>>();
        let ee = [gripper.x, gripper.y, gripper.z];
        let (frame, _, dense) =
            tracking_reward(&self.frames, &plain(points), &ee, &TrackingReward::default())
                .map_err(|e| Error::Query { why: e.to_string() })?;
        let progress = frame as f64 / (self.reference.frames() - 1) as f64;
        let gaps = points.iter().zip(self.reference.at(frame)).map(|(a, b)| (a - b).norm());
        let deviation_m = gaps.sum::<f64>() / n as f64;
        let shaped = progress - self.potential;
        self.potential = progress;
        Ok(FlowReward { frame, progress, deviation_m, dense, shaped })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_geometry::{Frame, Isometry3, Vector3};

    use super::*;

    fn flow() -> Flow3d {
        let object = [Point3::origin(), Point3::new(0.02, 0.0, 0.0), Point3::new(0.0, 0.03, 0.0)];
        let poses: Vec<_> = (0..5).map(|t| Isometry3::translation(0.1 * f64::from(t), 0.0, 0.2)).collect();
        Flow3d::rigid(Frame::World, &object, &poses, vec![1.0; 15]).unwrap()
    }

    #[test]
    fn progress_is_the_nearest_frame_and_the_shaped_rewards_add_up_to_it() {
        let flow = flow();
        let mut tracker = FlowTracker::new(flow.clone()).unwrap();
        let mut sum = 0.0;
        for t in [0, 1, 1, 3, 2, 4] {
            let reward = tracker.step(flow.at(t), &flow.at(t)[0]).unwrap();
            assert_eq!(reward.frame, t);
            assert!(reward.deviation_m < 1e-12);
            sum += reward.shaped;
        }
        assert!((sum - 1.0).abs() < 1e-12);
        let far = tracker.step(flow.at(4), &Point3::new(9.0, 0.0, 0.0)).unwrap();
        let near = tracker.step(flow.at(4), &Point3::new(0.41, 0.01, 0.2)).unwrap();
        assert!((far.dense - 0.75).abs() < 1e-6 && near.dense > 0.95 && near.dense <= 1.0);
    }

    #[test]
    fn the_dense_reward_is_the_closed_form() {
        let flow = flow();
        let seen: Vec<Point3<f64>> = flow.at(2).iter().map(|p| p + Vector3::new(0.01, 0.02, -0.01)).collect();
        let gripper = Point3::new(0.2, 0.1, 0.3);
        let ours = FlowTracker::new(flow.clone()).unwrap().step(&seen, &gripper).unwrap();
        let all: Vec<f64> = (0..5).flat_map(|t| flow.at(t)).flat_map(|p| [p.x, p.y, p.z]).collect();
        let now: Vec<f64> = seen.iter().flat_map(|p| [p.x, p.y, p.z]).collect();
        let theirs = tracking(&all, &now, [gripper.x, gripper.y, gripper.z]);
        assert!((ours.dense - theirs).abs() < 1e-12, "{} {theirs}", ours.dense);
    }

    /// The closed form of the specification, written out independently.
    fn tracking(reference: &[f64], now: &[f64], ee: [f64; 3]) -> f64 {
        let n = now.len();
        let frames = reference.len() / n;
        let mean = |t: usize| {
            let frame = &reference[t * n..(t + 1) * n];
            frame
                .chunks(3)
                .zip(now.chunks(3))
                .map(|(a, b)| a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt())
                .sum::<f64>()
                / (n / 3) as f64
        };
        let best = (0..frames).min_by(|a, b| mean(*a).total_cmp(&mean(*b))).unwrap();
        let middle: Vec<f64> =
            (0..3).map(|c| now.iter().skip(c).step_by(3).sum::<f64>() / (n / 3) as f64).collect();
        let off = ee.iter().zip(&middle).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        0.75 * best as f64 / (frames - 1) as f64 + 0.25 * (1.0 - (10.0 * off).tanh())
    }

    #[test]
    fn what_cannot_be_tracked_is_refused() {
        let flow = flow();
        let one = flow.at(0).to_vec();
        let still = Flow3d::new(Frame::World, 3, one.clone(), vec![1.0; 3]).unwrap();
        assert!(matches!(FlowTracker::new(still), Err(Error::Query { .. })));
        let mut tracker = FlowTracker::new(flow).unwrap();
        assert!(tracker.step(&one[..2], &Point3::origin()).is_err());
        let nan = Point3::new(f64::NAN, 0.0, 0.0);
        assert!(tracker.step(&[nan; 3], &Point3::origin()).is_err());
        assert!(tracker.step(&one, &nan).is_err());
    }
}
