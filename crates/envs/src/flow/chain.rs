//! The arm of a workbench for inverse kinematics.

use std::cell::RefCell;

use efference_geometry::ik::Chain;
use efference_geometry::{Isometry3, Vector3};
use nalgebra::Matrix6xX;

use super::Probe;

/// The arm of a [`Probe`] as [`efference_geometry::ik::solve_ik`] takes it: what moves is the gripper (see
/// [`Probe::grip_pose`]), the fingers stay as they are. It leaves the arm where it was asked for last.
pub struct ProbeChain<'a> {
    probe: RefCell<&'a mut Probe>,
    limits: Vec<[f64; 2]>,
    finger_m: f64,
}

impl Probe {
    /// Its arm as a chain.
    pub fn chain(&mut self) -> ProbeChain<'_> {
        let limits = self.limits().to_vec();
        let finger_m = self.data.qpos()[limits.len()];
        ProbeChain { probe: RefCell::new(self), limits, finger_m }
    }
}

impl Chain for ProbeChain<'_> {
    fn joints(&self) -> usize {
        self.limits.len()
    }

    fn limits(&self) -> Vec<[f64; 2]> {
        self.limits.clone()
    }

    fn forward(&self, q: &[f64]) -> (Isometry3<f64>, Matrix6xX<f64>) {
        let mut probe = self.probe.borrow_mut();
        let found = probe.place_arm(q, self.finger_m).and_then(|()| {
            let pose = probe.grip_pose()?;
            let jacobian = probe.jacobian()?;
            Ok((pose, Matrix6xX::from_fn(jacobian.ncols(), |i, j| jacobian[(i, j)])))
        });
        // A simulator that refuses has no pose; the solver takes that for out of reach.
        found.unwrap_or_else(|_| {
            let nowhere = Isometry3::new(Vector3::repeat(f64::NAN), Vector3::zeros());
            (nowhere, Matrix6xX::zeros(q.len()))
        })
    }
}
