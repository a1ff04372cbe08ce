//! Who says how an object will move.

use efference_data::flow::FlowQuery;
use efference_geometry::{Flow3d, Frame, Isometry3, Point3};

use super::{Error, Result};

/// Predicts how the points of a query move.
pub trait Predictor: Send + Sync {
    /// So many predictions as `samples` says, each in the world frame, its points in the query's order, frame 0 at the
    /// query's points. The same `seed` gives the same predictions, on any thread.
    ///
    /// # Errors
    /// [`Error::Query`] for a question that has no answer, [`Error::Predictor`] when the predictor itself failed.
    fn predict(&self, query: &FlowQuery, samples: usize, seed: u64) -> Result<Vec<Flow3d>>;
}

impl<P: Predictor + ?Sized> Predictor for &P {
    fn predict(&self, query: &FlowQuery, samples: usize, seed: u64) -> Result<Vec<Flow3d>> {
        (**self).predict(query, samples, seed)
    }
}

impl<P: Predictor + ?Sized> Predictor for Box<P> {
    fn predict(&self, query: &FlowQuery, samples: usize, seed: u64) -> Result<Vec<Flow3d>> {
        (**self).predict(query, samples, seed)
    }
}

impl<P: Predictor + ?Sized> Predictor for std::sync::Arc<P> {
    fn predict(&self, query: &FlowQuery, samples: usize, seed: u64) -> Result<Vec<Flow3d>> {
        (**self).predict(query, samples, seed)
    }
}

/// Finite points, at least one.
///
/// # Errors
/// [`Error::Query`] otherwise.
pub(crate) fn check_query(query: &FlowQuery) -> Result<()> {
    let refuse = |why: String| Err(Error::Query { why });
    if query.points.is_empty() {
        return refuse("it has no points".into());
    }
    if let Some(i) = query.points.iter().position(|p| !p.coords.iter().all(|x| x.is_finite())) {
        return refuse(format!("point {i} is not finite"));
    }
    let pixels = query.image.width() as usize * query.image.height() as usize;
    if pixels == 0 || query.depth_m.len() != pixels {
        let [w, h] = [query.image.width(), query.image.height()];
        return refuse(format!("{} depths for a picture of {w}x{h}", query.depth_m.len()));
    }
    let k = &query.camera.intrinsics;
    if [k.width, k.height] != [query.image.width() as usize, query.image.height() as usize] {
        return refuse(format!("the camera draws {}x{}, the picture is another size", k.width, k.height));
    }
    if query.points.iter().all(|p| query.camera.project(p).is_none()) {
        return refuse("all points are behind the camera".into());
    }
    Ok(())
}

/// A motion drawn by a seed: world from object at every frame, the present first.
pub type Motion<'a> = dyn Fn(u64) -> Result<Vec<Isometry3<f64>>> + Send + Sync + 'a;

/// The upper bound: the flow of a motion that is known to do the task.
pub struct OracleFlow<'a> {
    motion: Box<Motion<'a>>,
}

impl<'a> OracleFlow<'a> {
    /// `motion(seed)` gives the poses of the object (world from object, the present first, at least two); another seed
    /// may give another way to do the same task.
    pub fn new(motion: impl Fn(u64) -> Result<Vec<Isometry3<f64>>> + Send + Sync + 'a) -> Self {
        Self { motion: Box::new(motion) }
    }
}

impl Predictor for OracleFlow<'_> {
    fn predict(&self, query: &FlowQuery, samples: usize, seed: u64) -> Result<Vec<Flow3d>> {
        check_query(query)?;
        let one = |sample: usize| {
            let poses = (self.motion)(seed.wrapping_add(sample as u64))?;
            let [present, _, ..] = &poses[..] else {
                return Err(Error::Answer { why: format!("a motion of {} poses", poses.len()) });
            };
            let from_present = present.inverse();
            let object: Vec<Point3<f64>> = query.points.iter().map(|p| from_present * p).collect();
            let all = vec![1.0; poses.len() * object.len()];
            Ok(Flow3d::rigid(Frame::World, &object, &poses, all)?)
        };
        (0..samples).map(one).collect()
    }
}

/// The 2D baseline: every point keeps its pixels (u, v) over time as predicted, but the depth of frame 0.
pub struct FrozenDepth<P> {
    inner: P,
}

impl<P: Predictor> FrozenDepth<P> {
    /// Around the predictor whose depths are thrown away.
    pub fn new(inner: P) -> Self {
        Self { inner }
    }
}

impl<P: Predictor> Predictor for FrozenDepth<P> {
    fn predict(&self, query: &FlowQuery, samples: usize, seed: u64) -> Result<Vec<Flow3d>> {
        let flows = self.inner.predict(query, samples, seed)?;
        flows.iter().map(|flow| freeze(query, flow)).collect()
    }
}

fn freeze(query: &FlowQuery, flow: &Flow3d) -> Result<Flow3d> {
    let behind = |point: usize, frame: usize| Error::Answer {
        why: format!("point {point} is behind the camera at frame {frame}"),
    };
    let depth = |(i, p)| query.camera.project(p).map(|[_, _, d]| d).ok_or_else(|| behind(i, 0));
    let depths = flow.at(0).iter().enumerate().map(depth).collect::<Result<Vec<f64>>>()?;
    let mut positions = Vec::with_capacity(flow.frames() * flow.points());
    let mut visibility = Vec::with_capacity(positions.capacity());
    for t in 0..flow.frames() {
        for (i, p) in flow.at(t).iter().enumerate() {
            let [u, v, _] = query.camera.project(p).ok_or_else(|| behind(i, t))?;
            positions.push(query.camera.lift(u, v, depths[i]));
        }
        visibility.extend_from_slice(flow.visibility_at(t));
    }
    Ok(Flow3d::new(Frame::World, flow.points(), positions, visibility)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_data::RgbImage;
    use efference_geometry::{Camera, CameraAxes, Intrinsics, Vector3};

    use super::*;

    fn query() -> FlowQuery {
        let intrinsics = Intrinsics::from_fovy_deg(60.0, 32, 32).unwrap();
        FlowQuery {
            instruction: "lift it".into(),
            camera: Camera::new(intrinsics, Isometry3::identity(), CameraAxes::OpenCv),
            image: RgbImage::new(32, 32),
            depth_m: vec![0.8; 32 * 32],
            points: vec![Point3::new(0.0, 0.0, 0.8), Point3::new(0.05, 0.02, 0.85)],
        }
    }

    fn motion(seed: u64) -> Result<Vec<Isometry3<f64>>> {
        let start = Isometry3::new(Vector3::new(0.0, 0.0, 0.8), Vector3::new(0.0, 0.3, 0.0));
        let go =
            Isometry3::new(Vector3::new(0.1 + seed as f64 * 0.01, 0.0, 0.2), Vector3::new(0.0, 0.0, 0.5));
        Ok(vec![start, go * start])
    }

    #[test]
    fn an_oracle_moves_the_points_of_the_query_with_the_object() {
        let flows = OracleFlow::new(motion).predict(&query(), 3, 5).unwrap();
        assert_eq!(flows.len(), 3);
        for (k, flow) in flows.iter().enumerate() {
            for (p, q) in flow.at(0).iter().zip(&query().points) {
                assert!((p - q).norm() < 1e-12);
            }
            let poses = motion(5 + k as u64).unwrap();
            let goal = poses[1] * poses[0].inverse() * query().points[1];
            assert!((flow.at(1)[1] - goal).norm() < 1e-12);
        }
    }

    #[test]
    fn frozen_depth_keeps_pixels_and_the_first_depth() {
        let true_flow = &OracleFlow::new(motion).predict(&query(), 1, 0).unwrap()[0];
        let frozen = &FrozenDepth::new(OracleFlow::new(motion)).predict(&query(), 1, 0).unwrap()[0];
        let camera = query().camera;
        for i in 0..2 {
            let [u, v, d] = camera.project(&true_flow.at(1)[i]).unwrap();
            let [fu, fv, fd] = camera.project(&frozen.at(1)[i]).unwrap();
            assert!((u - fu).abs() < 1e-9 && (v - fv).abs() < 1e-9);
            assert!((fd - query().points[i].z).abs() < 1e-12 && (d - fd).abs() > 0.1);
        }
    }

    #[test]
    fn questions_without_an_answer_are_refused() {
        let oracle = OracleFlow::new(motion);
        let ask = |q: FlowQuery| oracle.predict(&q, 1, 0);
        assert!(matches!(ask(FlowQuery { points: vec![], ..query() }), Err(Error::Query { .. })));
        let nan = vec![Point3::new(f64::NAN, 0.0, 1.0)];
        assert!(matches!(ask(FlowQuery { points: nan, ..query() }), Err(Error::Query { .. })));
        assert!(matches!(ask(FlowQuery { depth_m: vec![1.0; 3], ..query() }), Err(Error::Query { .. })));
        let behind = vec![Point3::new(0.0, 0.0, -1.0)];
        let error = ask(FlowQuery { points: behind, ..query() }).unwrap_err();
        assert!(error.to_string().contains("behind the camera"), "{error}");
        let still = OracleFlow::new(|_| Ok(vec![Isometry3::identity()]));
        assert!(matches!(still.predict(&query(), 1, 0), Err(Error::Answer { .. })));
    }
}
