//! A grid of signed distances to obstacles.

use nalgebra::{Point3, Vector3};
use serde::{Deserialize, Serialize};

use crate::solid::Solid;
use crate::{Error, Result};

/// Most nodes of a grid: 512 MiB.
const MAX_NODES: usize = 1 << 26;

/// Signed distances at the nodes of a regular grid, **positive inside obstacles** (as in ReKep), metres; between the nodes
/// they are interpolated trilinearly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SdfGrid {
    low: [f64; 3],
    high: [f64; 3],
    shape: [usize; 3],
    /// [x, y, z], row-major.
    values: Vec<f64>,
    outside: f64,
}

impl SdfGrid {
    /// From values [x, y, z] at the nodes; the first node lies at `low`, the last at `high`. Points outside have the value
    /// `outside`: ReKep has 0 there, which punishes every point outside as soon as a margin is kept; a negative number as
    /// large as the margin does not.
    ///
    /// # Errors
    /// An empty range, fewer than 2 nodes along an axis, another number of values, or a value that is not finite.
    pub fn new(
        low: [f64; 3],
        high: [f64; 3],
        shape: [usize; 3],
        values: Vec<f64>,
        outside: f64,
    ) -> Result<Self> {
        let nodes = checked_nodes(low, high, shape)?;
        if values.len() != nodes {
            return Err(Error::Length { what: "values", got: values.len(), want: nodes });
        }
        match values.iter().position(|x| !x.is_finite()) {
            Some(index) => Err(Error::NotFinite { what: "values", index }),
            None if !outside.is_finite() => Err(Error::NotFinite { what: "outside", index: 0 }),
            None => Ok(Self { low, high, shape, values, outside }),
        }
    }

    /// The distances to a set of solids.
    ///
    /// # Errors
    /// As [`SdfGrid::new`]; no solids.
    pub fn from_solids(
        low: [f64; 3],
        high: [f64; 3],
        shape: [usize; 3],
        solids: &[Solid],
        outside: f64,
    ) -> Result<Self> {
        let nodes = checked_nodes(low, high, shape)?;
        if solids.is_empty() {
            return Err(Error::Range { what: "solids", value: 0.0, range: "at least 1" });
        }
        let at = |node: usize| {
            let index = [node / (shape[1] * shape[2]), node / shape[2] % shape[1], node % shape[2]];
            let x = |a: usize| low[a] + (high[a] - low[a]) * index[a] as f64 / (shape[a] - 1) as f64;
            let p = Point3::new(x(0), x(1), x(2));
            solids.iter().map(|solid| -solid.distance(&p)).fold(f64::NEG_INFINITY, f64::max)
        };
        Self::new(low, high, shape, (0..nodes).map(at).collect(), outside)
    }

    /// The signed distance at a point, positive inside obstacles.
    #[must_use]
    pub fn at(&self, p: &Point3<f64>) -> f64 {
        self.with_gradient(p).0
    }

    /// The signed distance at a point, and its gradient (0 outside the grid).
    #[must_use]
    pub fn with_gradient(&self, p: &Point3<f64>) -> (f64, Vector3<f64>) {
        let (mut cell, mut share, mut scale) = ([0usize; 3], [0.0; 3], Vector3::zeros());
        for a in 0..3 {
            // Also refuses NaN.
            if !(p[a] >= self.low[a] && p[a] <= self.high[a]) {
                return (self.outside, Vector3::zeros());
            }
            scale[a] = (self.shape[a] - 1) as f64 / (self.high[a] - self.low[a]);
            let place = (p[a] - self.low[a]) * scale[a];
            cell[a] = (place as usize).min(self.shape[a] - 2);
            share[a] = place - cell[a] as f64;
        }
        let [_, ny, nz] = self.shape;
        let node = (cell[0] * ny + cell[1]) * nz + cell[2];
        let v = |dx: usize, dy: usize| {
            let k = node + (dx * ny + dy) * nz;
            let (a, b) = (self.values[k], self.values[k + 1]);
            (a + (b - a) * share[2], b - a)
        };
        let ((v00, z00), (v01, z01), (v10, z10), (v11, z11)) = (v(0, 0), v(0, 1), v(1, 0), v(1, 1));
        let mix = |a: f64, b: f64, s: f64| a + (b - a) * s;
        let (y0, y1) = (mix(v00, v01, share[1]), mix(v10, v11, share[1]));
        let gradient = Vector3::new(
            y1 - y0,
            mix(v01 - v00, v11 - v10, share[0]),
            mix(mix(z00, z01, share[1]), mix(z10, z11, share[1]), share[0]),
        );
        (mix(y0, y1, share[0]), gradient.component_mul(&scale))
    }

    /// The deepest of some points: positive if one of them lies in an obstacle.
    #[must_use]
    pub fn deepest<'a>(&self, points: impl IntoIterator<Item = &'a Point3<f64>>) -> f64 {
        points.into_iter().map(|p| self.at(p)).fold(f64::NEG_INFINITY, f64::max)
    }
}

fn checked_nodes(low: [f64; 3], high: [f64; 3], shape: [usize; 3]) -> Result<usize> {
    for a in 0..3 {
        let length = high[a] - low[a];
        if !(length > 0.0 && length.is_finite()) {
            return Err(Error::Range { what: "side of the grid", value: length, range: "above 0, finite" });
        }
        if shape[a] < 2 {
            return Err(Error::Range {
                what: "nodes along an axis",
                value: shape[a] as f64,
                range: "at least 2",
            });
        }
    }
    let nodes = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).filter(|n| *n <= MAX_NODES);
    let value = shape.iter().map(|side| *side as f64).product();
    nodes.ok_or(Error::Range { what: "nodes", value, range: "at most 2^26" })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nalgebra::Isometry3;
    use proptest::prelude::*;

    use super::*;
    use crate::solid::Shape;

    proptest! {
        #[test]
        fn a_linear_field_is_exact_and_the_gradient_is_its_slope(
            slope in prop::array::uniform3(-2.0..2.0f64), p in prop::array::uniform3(0.0..1.0f64),
        ) {
            let (low, high, shape) = ([-0.5, 0.0, 1.0], [0.5, 2.0, 1.5], [3, 4, 5]);
            let value = |x: [f64; 3]| 0.3 + slope[0] * x[0] + slope[1] * x[1] + slope[2] * x[2];
            let node = |a: usize, i: usize| low[a] + (high[a] - low[a]) * i as f64 / (shape[a] - 1) as f64;
            let values = (0..60).map(|k| value([node(0, k / 20), node(1, k / 5 % 4), node(2, k % 5)])).collect();
            let grid = SdfGrid::new(low, high, shape, values, -9.0).unwrap();
            let at: [f64; 3] = std::array::from_fn(|a| low[a] + (high[a] - low[a]) * p[a]);
            let (distance, gradient) = grid.with_gradient(&Point3::from(at));
            prop_assert!((distance - value(at)).abs() < 1e-12 && (gradient - Vector3::from(slope)).norm() < 1e-11);
            prop_assert_eq!(grid.at(&Point3::new(at[0] + 1.1, at[1], at[2])), -9.0);
        }
    }

    #[test]
    fn solids_are_positive_inside_and_bad_grids_are_refused() {
        let block = Solid { shape: Shape::Box([0.1, 0.1, 0.1]), pose: Isometry3::translation(0.0, 0.0, 0.1) };
        let (low, high) = ([-0.5; 3], [0.5; 3]);
        let grid = SdfGrid::from_solids(low, high, [21; 3], &[block], -1.0).unwrap();
        assert!((grid.at(&Point3::new(0.0, 0.0, 0.1)) - 0.1).abs() < 1e-9);
        assert!((grid.at(&Point3::new(0.3, 0.0, 0.1)) + 0.2).abs() < 1e-9);
        assert!(grid.deepest(&[Point3::new(0.3, 0.0, 0.1), Point3::new(0.05, 0.0, 0.1)]) > 0.04);
        assert_eq!(grid.at(&Point3::new(f64::NAN, 0.0, 0.0)), -1.0);
        assert!(SdfGrid::from_solids(low, high, [21; 3], &[], 0.0).is_err());
        assert!(SdfGrid::new(low, low, [2; 3], vec![0.0; 8], 0.0).is_err());
        assert!(SdfGrid::new(low, high, [1, 2, 2], vec![0.0; 4], 0.0).is_err());
        assert!(SdfGrid::new(low, high, [2; 3], vec![0.0; 7], 0.0).is_err());
        assert!(SdfGrid::new(low, high, [2; 3], vec![f64::NAN; 8], 0.0).is_err());
        assert!(SdfGrid::new(low, high, [usize::MAX; 3], vec![], 0.0).is_err());
    }
}
