//! How far a predicted flow is from the true one, frame by frame.

use efference_geometry::Flow3d;

/// Distances of points from where they should be, in centimetres, per frame [T + 1].
#[derive(Clone, Debug, PartialEq)]
pub struct FlowErrors {
    /// Mean over the points.
    pub mean_cm: Vec<f64>,
    /// A tenth of the points are nearer than this.
    pub p10_cm: Vec<f64>,
    /// A tenth of the points are farther than this.
    pub p90_cm: Vec<f64>,
}

impl FlowErrors {
    /// Of two flows of the same points; frames that only one of them has do not count.
    #[must_use]
    pub fn between(truth: &Flow3d, predicted: &Flow3d) -> Self {
        let mut errors = Self { mean_cm: Vec::new(), p10_cm: Vec::new(), p90_cm: Vec::new() };
        for t in 0..truth.frames().min(predicted.frames()) {
            let pairs = truth.at(t).iter().zip(predicted.at(t));
            let mut distances: Vec<f64> = pairs.map(|(a, b)| 100.0 * (a - b).norm()).collect();
            distances.sort_by(f64::total_cmp);
            // Points are at least one.
            let last = distances.len().saturating_sub(1);
            let at =
                |share: f64| distances.get((share * last as f64).round() as usize).copied().unwrap_or(0.0);
            errors.mean_cm.push(distances.iter().sum::<f64>() / distances.len().max(1) as f64);
            errors.p10_cm.push(at(0.1));
            errors.p90_cm.push(at(0.9));
        }
        errors
    }

    /// Average distance over the frames after the present one; 0 where there are none.
    #[must_use]
    pub fn ade_cm(&self) -> f64 {
        let future = self.mean_cm.get(1..).unwrap_or_default();
        if future.is_empty() { 0.0 } else { future.iter().sum::<f64>() / future.len() as f64 }
    }

    /// Distance at the last frame.
    #[must_use]
    pub fn fde_cm(&self) -> f64 {
        self.mean_cm.last().copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_geometry::{Frame, Point3};

    #[test]
    fn errors_are_distances_in_centimetres() {
        let flow = |shift: f64| {
            let at = move |t: usize| (0..11).map(move |i| Point3::new(i as f64, shift * (t * i) as f64, 0.0));
            Flow3d::new(Frame::World, 11, (0..3).flat_map(at).collect(), vec![1.0; 33]).unwrap()
        };
        let errors = FlowErrors::between(&flow(0.0), &flow(0.001));
        // At frame t point i is off by t i millimetres.
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} {want}");
        near(errors.mean_cm[0], 0.0);
        near(errors.mean_cm[2], 1.0);
        near(errors.p10_cm[2], 0.2);
        near(errors.p90_cm[2], 1.8);
        near(errors.ade_cm(), 0.75);
        near(errors.fde_cm(), 1.0);
    }
}
