//! Where the calibrated camera stands.

use efference_geometry::{Isometry3, Vector3};
use nalgebra::{Matrix3, Rotation3, Translation3, UnitQuaternion};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{FlowTask, Layout};

/// A place to look from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// World from camera; it looks along its -z with y up.
    pub pose: Isometry3<f64>,
    pub fovy_deg: f64,
}

impl Place {
    /// In front of the workbench: where it sees what matters in the family.
    pub fn sample(layout: &Layout, rng: &mut ChaCha8Rng) -> Self {
        let azimuth_deg: f64 = match layout.task {
            // On the side to which the drawer opens.
            FlowTask::Drawer => -layout.target.translation.y.signum() * rng.random_range(12.0..=62.0),
            // From the side, or the pole hides the peg.
            FlowTask::Hang => rng.random_range(25.0..=72.0) * if rng.random_bool(0.5) { 1.0 } else { -1.0 },
            _ => rng.random_range(-60.0..=60.0),
        };
        let elevation_deg: f64 = rng.random_range(24.0..=50.0);
        let distance_m: f64 = rng.random_range(0.56..=0.80);
        let fovy_deg = rng.random_range(38.0..=48.0);
        // Between object and target.
        let middle = 0.5 * (layout.object.translation.vector + layout.target.translation.vector);
        let mut shake = || rng.random_range(-0.03..=0.03);
        let lookat = Vector3::new(0.85 * middle.x + shake(), 0.85 * middle.y + shake(), 0.07 + shake());
        let (azimuth, elevation) = (azimuth_deg.to_radians(), elevation_deg.to_radians());
        let back =
            Vector3::new(elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin());
        let right = Vector3::z().cross(&back).normalize();
        let up = back.cross(&right);
        let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_columns(&[right, up, back]));
        let place = lookat + back * distance_m;
        let rotation = UnitQuaternion::from_rotation_matrix(&rotation);
        Self { pose: Isometry3::from_parts(Translation3::from(place), rotation), fovy_deg }
    }
}
