//! Flow as the paper's network sees it: pixel coordinates and depth, each between -1 and 1.

use nalgebra::Point3;
use serde::{Deserialize, Serialize};

use crate::{Error, Flow3d, Frame, Intrinsics, Result};

/// The code of 3DFlowAction: absolute positions, not displacements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UvdCodec {
    /// Depth that becomes -1, metres.
    pub depth_min_m: f64,
    /// Depth that becomes 1, metres.
    pub depth_max_m: f64,
    /// Whether depths outside the range are moved to its ends.
    pub clip: bool,
}

impl Default for UvdCodec {
    /// 0 to 1.5 m, clipped: the paper's range for BridgeV2.
    fn default() -> Self {
        Self { depth_min_m: 0.0, depth_max_m: 1.5, clip: true }
    }
}

impl UvdCodec {
    /// Checks the range.
    ///
    /// # Errors
    /// The range is empty or not finite.
    pub fn checked(self) -> Result<Self> {
        let length = self.depth_max_m - self.depth_min_m;
        if !(length > 0.0 && length.is_finite()) {
            return Err(Error::Range { what: "depth range", value: length, range: "above 0, finite" });
        }
        Ok(self)
    }

    /// (u / width, v / height, depth in metres) to numbers that are within -1 and 1 for points in the picture and range.
    #[must_use]
    pub fn encode(&self, u01: f64, v01: f64, depth_m: f64) -> [f64; 3] {
        [2.0 * u01 - 1.0, 2.0 * v01 - 1.0, 2.0 * self.depth_01(depth_m) - 1.0]
    }

    /// Back to (u / width, v / height, depth in metres). Numbers beyond -1 and 1 are moved to them first.
    #[must_use]
    pub fn decode(&self, code: [f64; 3]) -> [f64; 3] {
        let [u, v, z] = code.map(|x| (0.5 * x + 0.5).clamp(0.0, 1.0));
        [u, v, z * (self.depth_max_m - self.depth_min_m) + self.depth_min_m]
    }

    /// Depth as one of `levels` steps of the range, not rounded: the third coordinate of the paper's position code (128
    /// levels, kept within 0 and 127).
    #[must_use]
    pub fn depth_level(&self, depth_m: f64, levels: usize) -> f64 {
        let z = (depth_m - self.depth_min_m) / (self.depth_max_m - self.depth_min_m);
        (z * levels as f64).clamp(0.0, levels.saturating_sub(1) as f64)
    }

    fn depth_01(&self, depth_m: f64) -> f64 {
        let z = (depth_m - self.depth_min_m) / (self.depth_max_m - self.depth_min_m);
        if self.clip { z.clamp(0.0, 1.0) } else { z }
    }

    /// Codes of a whole flow [frames, points].
    ///
    /// # Errors
    /// The flow is not in the camera frame, or a point lies behind the camera.
    pub fn encode_flow(&self, flow: &Flow3d, intrinsics: &Intrinsics) -> Result<Vec<[f64; 3]>> {
        let this = self.checked()?;
        if flow.frame() != Frame::Camera {
            return Err(Error::Frames { got: flow.frame(), want: Frame::Camera });
        }
        let (w, h) = (intrinsics.width as f64, intrinsics.height as f64);
        let positions = (0..flow.frames()).flat_map(|t| flow.at(t));
        let code = |p: &Point3<f64>| match intrinsics.project(p) {
            Some([u, v, d]) => Ok(this.encode(u / w, v / h, d)),
            None => Err(Error::Range { what: "depth of a point", value: p.z, range: "above 0" }),
        };
        positions.map(code).collect()
    }

    /// A flow in the camera frame from its codes [frames, points].
    ///
    /// # Errors
    /// As [`Flow3d::new`].
    pub fn decode_flow(
        &self,
        codes: &[[f64; 3]],
        points: usize,
        visibility: Vec<f32>,
        intrinsics: &Intrinsics,
    ) -> Result<Flow3d> {
        let this = self.checked()?;
        let (w, h) = (intrinsics.width as f64, intrinsics.height as f64);
        let lift = |code: &[f64; 3]| {
            let [u, v, d] = this.decode(*code);
            intrinsics.lift(u * w, v * h, d)
        };
        Flow3d::new(Frame::Camera, points, codes.iter().map(lift).collect(), visibility)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_flow_in_view_comes_back(numbers in prop::collection::vec(0.01..0.99f64, 24..25)) {
            let camera = Intrinsics::from_fovy_deg(55.0, 256, 192).unwrap();
            let points: Vec<_> =
                numbers.chunks(3).map(|c| camera.lift(c[0] * 256.0, c[1] * 192.0, 1.5 * c[2])).collect();
            let flow = Flow3d::new(Frame::Camera, 4, points, vec![1.0; 8]).unwrap();
            let codec = UvdCodec::default();
            let codes = codec.encode_flow(&flow, &camera).unwrap();
            prop_assert!(codes.iter().flatten().all(|x| x.abs() <= 1.0));
            let back = codec.decode_flow(&codes, 4, vec![1.0; 8], &camera).unwrap();
            for t in 0..2 {
                for (a, b) in flow.at(t).iter().zip(back.at(t)) {
                    prop_assert!((a - b).norm() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn what_has_no_code_is_refused() {
        let camera = Intrinsics::from_fovy_deg(55.0, 8, 8).unwrap();
        let behind = Flow3d::new(Frame::Camera, 1, vec![Point3::new(0.0, 0.0, -1.0)], vec![1.0]).unwrap();
        assert!(matches!(UvdCodec::default().encode_flow(&behind, &camera), Err(Error::Range { .. })));
        let world = Flow3d::new(Frame::World, 1, vec![Point3::new(0.0, 0.0, 1.0)], vec![1.0]).unwrap();
        assert!(matches!(UvdCodec::default().encode_flow(&world, &camera), Err(Error::Frames { .. })));
        let empty = UvdCodec { depth_max_m: 0.0, ..UvdCodec::default() };
        assert!(empty.checked().is_err() && empty.decode_flow(&[], 1, vec![], &camera).is_err());
    }
}
