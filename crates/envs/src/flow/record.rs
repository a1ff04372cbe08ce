//! Pictures with depth and mask, points on what they show, and whole episodes.

use efference_data::RgbImage;
use efference_data::flow::{FlowEpisode, FlowQuery, FlowSource};
use efference_geometry::{Camera, Flow3d, Frame, Isometry3, Point3};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::env::sees;
use super::surface::body_pose;
use super::{FlowEnv, Motion, POINTS, SCENE_CAMERA, draw, surface};
use crate::env::image_of;
use crate::{Env, Error, Result};

/// How far the depth picture may be from a point that counts as seen in it, metres.
const DEPTH_M: f64 = 0.004;
/// Rounds of points that are thrown at the surface until enough of them are seen.
const ROUNDS: usize = 64;

/// What the calibrated camera sees.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Calibrated for the pictures.
    pub camera: Camera,
    /// The picture.
    pub image: RgbImage,
    /// [height, width]: metres along the optical axis, 0 where nothing is.
    pub depth_m: Vec<f32>,
    /// [height, width]: 255 on the object, else 0.
    pub mask: Vec<u8>,
}

impl View {
    /// Whether the pixel of this point (world frame) shows the object at the point's depth.
    #[must_use]
    pub fn shows(&self, point: &Point3<f64>) -> bool {
        let Some([u, v, depth]) = self.camera.project(point) else { return false };
        let (width, height) = (self.camera.intrinsics.width, self.camera.intrinsics.height);
        if !(0.0..width as f64).contains(&u) || !(0.0..height as f64).contains(&v) {
            return false;
        }
        let pixel = v as usize * width + u as usize;
        self.mask[pixel] != 0 && (f64::from(self.depth_m[pixel]) - depth).abs() < DEPTH_M
    }
}

impl FlowEnv {
    /// What the calibrated camera sees now.
    ///
    /// # Errors
    /// No offscreen rendering.
    pub fn view(&mut self) -> Result<View> {
        let side = self.options.image_size;
        let image = self.render(SCENE_CAMERA)?;
        let (mut depth_m, mut ids) = (vec![0.0; side * side], vec![0; side * side]);
        let camera = self.scene.camera;
        draw::with(&self.scene, side, |renderer| {
            renderer.render_depth(&self.data, camera, &mut depth_m)?;
            renderer.render_segmentation(&self.data, camera, &mut ids)
        })?;
        let model = self.data.model();
        let mut mask = vec![0; side * side];
        for ((mask, depth), id) in mask.iter_mut().zip(&mut depth_m).zip(&ids) {
            match usize::try_from(*id) {
                Ok(geom) if model.geom_body(geom) == self.scene.object => *mask = 255,
                Ok(_) => {}
                // The sky has no depth.
                Err(_) => *depth = 0.0,
            }
        }
        Ok(View { camera: self.camera()?, image, depth_m, mask })
    }

    /// `n` points on the object that the camera sees in this view, evenly over the surface, in the object's frame.
    ///
    /// # Errors
    /// [`Error::Hidden`] when the camera sees too little of the object.
    pub fn seen_points(&self, view: &View, n: usize, seed: u64) -> Result<Vec<Point3<f64>>> {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(0x2000);
        let object = self.object_pose();
        let eye = Point3::from(view.camera.world_from_camera.translation.vector);
        let mut seen = Vec::with_capacity(n);
        for _ in 0..ROUNDS {
            for point in surface::sample(&self.parts, 8 * n, rng) {
                let there = object * point;
                // The ray tells the near side of a thin wall from the far one, the picture what a pixel's middle shows.
                if seen.len() < n && view.shows(&there) && sees(&self.data, &eye, &there)? {
                    seen.push(point);
                }
            }
            if seen.len() == n {
                return Ok(seen);
            }
        }
        Err(Error::Hidden { task: self.task().id(), seed: self.layout.seed, seen: seen.len(), wanted: n })
    }

    /// What a predictor may know now, with [`POINTS`] points, and those points in the object's frame: where they are later
    /// is [`FlowEnv::object_pose`] times them.
    ///
    /// # Errors
    /// As [`FlowEnv::view`] and [`FlowEnv::seen_points`].
    pub fn query(&mut self, seed: u64) -> Result<(FlowQuery, Vec<Point3<f64>>)> {
        let view = self.view()?;
        let points = self.seen_points(&view, POINTS, seed)?;
        let object = self.object_pose();
        let query = FlowQuery {
            instruction: self.instruction().to_owned(),
            camera: view.camera,
            image: view.image,
            depth_m: view.depth_m,
            points: points.iter().map(|p| object * p).collect(),
        };
        Ok((query, points))
    }

    /// The flow of points (object's frame) when the object moves like this, with what the camera sees of them; the arm
    /// stays where it is.
    ///
    /// # Errors
    /// The simulator refused.
    pub fn flow_of(&self, points: &[Point3<f64>], motion: &Motion) -> Result<Flow3d> {
        let mut probe = self.probe()?;
        let eye = Point3::from(self.camera()?.world_from_camera.translation.vector);
        let mut positions = Vec::with_capacity(points.len() * motion.poses.len());
        let mut visibility = Vec::with_capacity(positions.capacity());
        for pose in &motion.poses {
            let pose = probe.put_for_rays(pose)?;
            for point in points {
                let point = pose * point;
                visibility.push(f32::from(u8::from(probe.sees(&eye, &point)?)));
                positions.push(point);
            }
        }
        Ok(Flow3d::new(Frame::World, points.len(), positions, visibility)?)
    }

    /// An episode from the present state: picture, depth, mask, and the exact tracks of [`POINTS`] points along a motion
    /// of this seed.
    ///
    /// # Errors
    /// [`Error::NoMotion`], [`Error::Hidden`], or no offscreen rendering.
    pub fn record(&mut self, seed: u64) -> Result<FlowEpisode> {
        let motion = self.motion(seed)?;
        let view = self.view()?;
        let points = self.seen_points(&view, POINTS, seed)?;
        let flow = self.flow_of(&points, &motion)?;
        Ok(FlowEpisode {
            instruction: self.instruction().to_owned(),
            task: self.task().id().to_owned(),
            source: FlowSource::Tabletop,
            seed: self.layout.seed,
            camera: view.camera,
            image: view.image,
            depth_m: view.depth_m,
            mask: view.mask,
            flow,
            poses: motion.poses,
        })
    }

    /// A picture of another size from the calibrated camera, for people.
    ///
    /// # Errors
    /// As [`Env::render`].
    pub fn portrait(&mut self, side: usize) -> Result<RgbImage> {
        let mut rgb = vec![0; side * side * 3];
        draw::rgb(&self.scene, &self.data, self.scene.camera, side, &mut rgb)?;
        image_of(side, rgb)
    }
}

impl super::Probe {
    /// Puts the object somewhere and brings poses up to date; world from object as it is then.
    fn put_for_rays(&mut self, pose: &Isometry3<f64>) -> Result<Isometry3<f64>> {
        self.place_object(pose)?;
        self.data.kinematics()?;
        Ok(body_pose(&self.data, self.scene.object))
    }

    fn sees(&self, eye: &Point3<f64>, point: &Point3<f64>) -> Result<bool> {
        sees(&self.data, eye, point)
    }
}
