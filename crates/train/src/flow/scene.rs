//! An episode as the trainer holds it: the picture already small, the frames those that are predicted.

use efference_data::flow::{FlowEpisode, FlowQuery, FlowSource};
use efference_geometry::{Camera, Flow3d, Frame, Point3};
use efference_nets::flow::{FlowNetConfig, QueryCode, QueryInput, small_depth, small_picture};

use super::random::Gaussian;
use crate::error::{Error, Result};

/// A scene with its motion.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What to do.
    pub instruction: String,
    /// Family of the task.
    pub task: String,
    /// Where it comes from.
    pub source: FlowSource,
    /// Seed of the scene, 0 where there is none.
    pub seed: u64,
    /// Whether the simulated workbench makes this scene from its seed.
    pub workbench: bool,
    /// The camera of the picture.
    pub camera: Camera,
    /// Colours and depth in the network's size; empty for a network without picture.
    pub picture: (Vec<u8>, Vec<f32>),
    /// The motion in the world frame: the present and the predicted frames.
    pub flow: Flow3d,
    /// Where the object should go, where that is told.
    pub goal: Option<Point3<f64>>,
}

/// Noise of a first frame, pixels of a picture 256 pixels high and metres.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Jitter {
    pub px: f64,
    pub depth_m: f64,
}

impl Scene {
    /// Of a stored episode, for networks of shape `net`: `net.frames` frames after the present, evenly picked.
    ///
    /// # Errors
    /// An episode without motion, or a picture that does not fit its camera.
    pub fn of(episode: &FlowEpisode, net: &FlowNetConfig) -> Result<Self> {
        let flow = frames_of(&episode.flow, net.frames)?;
        let flow = match flow.frame() {
            Frame::World => flow,
            Frame::Camera => flow.transformed(Frame::World, &episode.camera.world_from_camera),
        };
        Ok(Self {
            instruction: episode.instruction.clone(),
            task: episode.task.clone(),
            source: episode.source,
            seed: episode.seed,
            workbench: episode.source == FlowSource::Tabletop,
            camera: episode.camera.clone(),
            picture: small(net, &episode.image, &episode.depth_m)?,
            flow,
            goal: None,
        })
    }

    /// Whether lengths are metres.
    #[must_use]
    pub fn metric(&self) -> bool {
        self.source != FlowSource::Tracker
    }

    /// The question about `points` of this scene, their first places disturbed by `jitter`.
    pub(super) fn code(
        &self,
        net: &FlowNetConfig,
        points: &[usize],
        jitter: Jitter,
        random: &mut Gaussian,
    ) -> Result<QueryCode> {
        let present = self.flow.at(0);
        let seen: Vec<Point3<f64>> =
            points.iter().map(|&i| disturbed(&self.camera, present[i], jitter, random)).collect();
        let input = QueryInput {
            camera: &self.camera,
            picture: net.picture.then_some((self.picture.0.as_slice(), self.picture.1.as_slice())),
            points: &seen,
            instruction: &self.instruction,
            goal: self.goal,
            metric: self.metric(),
        };
        Ok(QueryCode::new(net, &input)?)
    }

    /// The true motion of `points` in the network's numbers [N, 3 T], and their visibility [N, T].
    pub(super) fn answer(&self, code: &QueryCode, points: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (frames, n) = (self.flow.frames() - 1, points.len());
        let present: Vec<Point3<f64>> = points.iter().map(|&i| self.flow.at(0)[i]).collect();
        let mut future = Vec::with_capacity(frames * n);
        let mut visible = vec![0f32; frames * n];
        for t in 1..=frames {
            future.extend(points.iter().map(|&i| self.flow.at(t)[i]));
            for (j, &i) in points.iter().enumerate() {
                visible[j * frames + t - 1] = self.flow.visibility_at(t)[i];
            }
        }
        Ok((code.encode(&present, &future)?, visible))
    }
}

/// The small picture and depth of an image, empty for a network without picture.
fn small(
    net: &FlowNetConfig,
    image: &efference_data::RgbImage,
    depth: &[f32],
) -> Result<(Vec<u8>, Vec<f32>)> {
    if !net.picture {
        return Ok((Vec::new(), Vec::new()));
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let side = net.image_size;
    Ok((small_picture(image.as_raw(), width, height, side)?, small_depth(depth, width, height, side)?))
}

/// A question as numbers for a network of shape `net`.
pub(super) fn code_of(
    query: &FlowQuery,
    goal: Option<Point3<f64>>,
    net: &FlowNetConfig,
) -> Result<QueryCode> {
    let picture = small(net, &query.image, &query.depth_m)?;
    let input = QueryInput {
        camera: &query.camera,
        picture: net.picture.then_some((picture.0.as_slice(), picture.1.as_slice())),
        points: &query.points,
        instruction: &query.instruction,
        goal,
        metric: true,
    };
    Ok(QueryCode::new(net, &input)?)
}

/// The present and `frames` later frames, floor(linspace(0, last, frames + 1)).
fn frames_of(flow: &Flow3d, frames: usize) -> Result<Flow3d> {
    let last = flow.frames() - 1;
    if last == 0 {
        return Err(Error::Flow { reason: "an episode has no frame after the present".into() });
    }
    if last == frames {
        return Ok(flow.clone());
    }
    let picked = (0..=frames).map(|t| t * last / frames);
    let (mut positions, mut visibility) = (Vec::new(), Vec::new());
    for t in picked {
        positions.extend_from_slice(flow.at(t));
        visibility.extend_from_slice(flow.visibility_at(t));
    }
    Ok(Flow3d::new(flow.frame(), flow.points(), positions, visibility)?)
}

fn disturbed(camera: &Camera, point: Point3<f64>, jitter: Jitter, random: &mut Gaussian) -> Point3<f64> {
    if jitter.px == 0.0 && jitter.depth_m == 0.0 {
        return point;
    }
    // A point behind the camera is refused later, with a reason.
    let Some([u, v, depth]) = camera.project(&point) else { return point };
    let px = jitter.px * camera.intrinsics.height as f64 / 256.0;
    let (u, v) = (u + px * random.normal(), v + px * random.normal());
    camera.lift(u, v, (depth + jitter.depth_m * random.normal()).max(0.5 * depth))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_are_picked_evenly_and_the_last_one_is_kept() {
        let positions = (0..13).map(|t| Point3::new(f64::from(t), 0.0, 1.0)).collect();
        let flow = Flow3d::new(Frame::World, 1, positions, vec![1.0; 13]).unwrap();
        let x = |frames: usize| {
            let flow = frames_of(&flow, frames).unwrap();
            (0..flow.frames()).map(|t| flow.at(t)[0].x as usize).collect::<Vec<_>>()
        };
        assert_eq!(x(4), [0, 3, 6, 9, 12]);
        assert_eq!(x(12), (0..13).collect::<Vec<_>>());
        assert_eq!(*x(24).last().unwrap(), 12);
        let still = flow.select(&[0]).unwrap();
        let present = Flow3d::new(Frame::World, 1, still.at(0).to_vec(), vec![1.0]).unwrap();
        assert!(frames_of(&present, 4).is_err());
    }
}
