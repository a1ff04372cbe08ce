//! A scene of flow as entities: one column call per entity for all frames.

use std::collections::HashSet;

use efference_geometry::{Camera, Flow3d, Isometry3, Point3};
use rerun::external::re_sdk_types::SerializedComponentColumn;
use rerun::{
    AsComponents, ChannelDatatype, Clear, Color, DepthImage, EncodedImage, LineStrip2D, LineStrip3D,
    LineStrips2D, LineStrips3D, Pinhole, Points2D, Points3D, Quaternion, Radius, RecordingStream, TimeColumn,
    Transform3D, ViewCoordinates, components,
};

use super::super::entities::{jpeg, rgb};
use super::super::{FRAME, OrEncode, SIM_TIME};
use super::ROUND;
use crate::error::Result;
use crate::flow::{
    BAD_M, FlowScene, PREDICTED, Prediction, error_color, point_colors, spread, verdict_color,
};
use crate::theme::{self, Rgb};

/// Points of which trails are recorded, and longest trail in frames: the size of a trail is the square of its frames.
pub(super) const TRAILS: usize = 64;
const TRAIL_FRAMES: usize = 64;
/// Points of the scene's cloud are at least this far apart, metres.
const VOXEL_M: f64 = 0.005;
/// Opacity of points that the camera does not see.
const HIDDEN: u8 = 60;
const JPEG_QUALITY: u8 = 80;

/// What never changes: axes, the camera, names and colours of curves.
pub(super) fn log_fixed(rec: &RecordingStream, scene: &FlowScene) -> Result<()> {
    let log = Logger { rec, scene };
    log.fixed("/", &[&ViewCoordinates::RIGHT_HAND_Z_UP()])?;
    log.camera(&scene.camera)
}

/// Everything about a scene; `before`: how many samples an earlier round left on the screen.
pub(super) fn log(rec: &RecordingStream, scene: &FlowScene, before: usize) -> Result<()> {
    let log = Logger { rec, scene };
    log.pictures()?;
    log.clouds()?;
    if let Some(truth) = &scene.truth {
        log.flow("world/flow/truth", truth, 1.0)?;
        log.tracks("world/cam/tracks/truth", truth, 1.0)?;
    }
    for (k, prediction) in scene.predictions.iter().enumerate() {
        log.flow(&format!("world/flow/pred/{k}"), &prediction.flow, PREDICTED)?;
        if let Some(picture) = &prediction.final_picture {
            log.picture(&format!("judged/{k}"), picture)?;
        }
    }
    for k in scene.predictions.len()..before {
        log.clear(&format!("world/flow/pred/{k}"))?;
    }
    if let Some(shown) = scene.shown() {
        log.tracks("world/cam/tracks/pred", &shown.flow, PREDICTED)?;
        log.fit(shown)?;
        log.chain(shown)?;
        if let Some(truth) = &scene.truth {
            log.error(truth, &shown.flow)?;
        }
    }
    log.gripper()?;
    log.plots()?;
    log.words()
}

/// Writes the parts of one scene.
pub(super) struct Logger<'a> {
    pub(super) rec: &'a RecordingStream,
    pub(super) scene: &'a FlowScene,
}

impl Logger<'_> {
    pub(super) fn fixed(&self, entity: &str, parts: &[&dyn AsComponents]) -> Result<()> {
        parts.iter().try_for_each(|part| self.rec.log_static(entity, *part)).encode(entity)
    }

    fn times(&self, frames: impl Iterator<Item = usize> + Clone) -> [TimeColumn; 3] {
        let at = frames.map(|t| self.scene.first_frame.saturating_add(t));
        let round = i64::try_from(self.scene.round).unwrap_or(i64::MAX);
        [
            TimeColumn::new_sequence(FRAME, at.clone().map(|f| i64::try_from(f).unwrap_or(i64::MAX))),
            TimeColumn::new_duration_secs(SIM_TIME, at.clone().map(|f| f as f64 * self.scene.frame_s)),
            TimeColumn::new_sequence(ROUND, at.map(|_| round)),
        ]
    }

    /// One row for each of `frames`.
    pub(super) fn columns<E: std::fmt::Display>(
        &self,
        entity: &str,
        frames: impl Iterator<Item = usize> + Clone,
        columns: std::result::Result<impl Iterator<Item = SerializedComponentColumn>, E>,
    ) -> Result<()> {
        self.rec.send_columns(entity, self.times(frames), columns.encode(entity)?).encode(entity)
    }

    /// Something that holds from this scene's first frame on.
    pub(super) fn once(&self, entity: &str, part: &dyn AsComponents) -> Result<()> {
        let columns = part.as_serialized_batches().into_iter().map(|batch| {
            let n = batch.array.len();
            batch.partitioned([n])
        });
        let columns: Vec<_> = columns.collect::<std::result::Result<_, _>>().encode(entity)?;
        self.columns(entity, 0..1, Ok::<_, std::convert::Infallible>(columns.into_iter()))
    }

    fn clear(&self, entity: &str) -> Result<()> {
        self.once(entity, &Clear::recursive())
    }

    fn camera(&self, camera: &Camera) -> Result<()> {
        let k = camera.intrinsics;
        let pinhole = Pinhole::from_focal_length_and_resolution(
            [k.fx as f32, k.fy as f32],
            [k.width as f32, k.height as f32],
        )
        .with_principal_point([k.cx as f32, k.cy as f32])
        .with_camera_xyz(components::ViewCoordinates::RDF)
        .with_image_plane_distance(0.12);
        self.fixed("world/cam", &[&transform(&camera.world_from_camera), &pinhole])
    }

    fn picture(&self, entity: &str, picture: &image::RgbImage) -> Result<()> {
        let file = jpeg(picture, JPEG_QUALITY, entity)?;
        let smooth = components::MagnificationFilter::Linear;
        let image = EncodedImage::from_file_contents(file).with_media_type("image/jpeg");
        self.once(entity, &image.with_magnification_filter(smooth))
    }

    fn pictures(&self) -> Result<()> {
        let scene = self.scene;
        self.picture("world/cam/rgb", &scene.picture)?;
        if scene.depth_m.is_empty() {
            return Ok(());
        }
        // Millimetres in 16 bits: half the size, finer than any depth camera.
        let millimetres = |d: &f32| {
            let known = d.is_finite() && *d > 0.0;
            if known { (1000.0 * d).round().min(f32::from(u16::MAX)) as u16 } else { 0 }
        };
        let bytes: Vec<u8> = scene.depth_m.iter().flat_map(|d| millimetres(d).to_le_bytes()).collect();
        let size = [scene.picture.width(), scene.picture.height()];
        let depth =
            DepthImage::from_data_type_and_bytes(bytes, size, ChannelDatatype::U16).with_meter(1000.0);
        self.once("world/cam/depth", &depth)
    }

    /// The scene without the object; the object, moving; the object where the shown sample leaves it.
    fn clouds(&self) -> Result<()> {
        let scene = self.scene;
        let size = Radius::new_scene_units(0.003);
        let (rest, object) = clouds(scene);
        if !rest.0.is_empty() {
            let cloud = Points3D::new(rest.0).with_colors(rest.1.iter().copied().map(rgb)).with_radii([size]);
            self.once("world/scene", &cloud)?;
        }
        let shown = scene.shown().and_then(|p| p.fit.as_ref());
        let Some(fit) = scene.truth_fit.as_ref().or(shown) else { return Ok(()) };
        self.poses("world/object", &fit.poses)?;
        if object.0.is_empty() {
            return Ok(());
        }
        let cloud = Points3D::new(object.0.iter().copied())
            .with_colors(object.1.iter().copied().map(rgb))
            .with_radii([size]);
        self.once("world/object/cloud", &cloud)?;
        if let Some(fit) = shown {
            let tint = scene.shown().and_then(Prediction::accepted).map_or(theme::PLAN, verdict_color);
            let tinted = object.1.iter().map(|c| {
                let [r, g, b] = crate::flow::mix(*c, tint, 0.45);
                Color::from_unmultiplied_rgba(r, g, b, 90)
            });
            let ghost = Points3D::new(object.0.iter().copied()).with_colors(tinted).with_radii([size]);
            self.once("world/goal", &transform(&fit.last()))?;
            self.once("world/goal/ghost", &ghost)?;
        }
        Ok(())
    }

    pub(super) fn poses(&self, entity: &str, poses: &[Isometry3<f64>]) -> Result<()> {
        let columns = Transform3D::update_fields()
            .with_many_translation(poses.iter().map(|p| position(&p.translation.vector.into())))
            .with_many_quaternion(poses.iter().map(rotation))
            .columns_of_unit_batches();
        self.columns(entity, 0..poses.len(), columns)
    }

    /// Points and trails.
    fn flow(&self, entity: &str, flow: &Flow3d, share: f64) -> Result<()> {
        let (frames, n) = (flow.frames(), flow.points());
        let colors = point_colors(&self.scene.points, share);
        let places = (0..frames).flat_map(|t| flow.at(t).iter().map(position));
        let looks = (0..frames).flat_map(|t| seen_colors(&colors, flow.visibility_at(t)));
        let columns =
            Points3D::update_fields().with_positions(places).with_colors(looks).columns(vec![n; frames]);
        self.columns(&format!("{entity}/points"), 0..frames, columns)?;
        self.fixed(
            &format!("{entity}/points"),
            &[&Points3D::update_fields().with_radii([Radius::new_scene_units(0.004)])],
        )?;

        let chosen = spread(&self.scene.points, TRAILS);
        let chosen = &chosen;
        let strip = |t: usize, i: usize| {
            let tail = (t.saturating_sub(TRAIL_FRAMES)..=t).map(|s| position(&flow.at(s)[i]));
            LineStrip3D::from_iter(tail)
        };
        let strips = (0..frames).flat_map(|t| chosen.iter().map(move |i| strip(t, *i)));
        let columns = LineStrips3D::update_fields().with_strips(strips).columns(vec![chosen.len(); frames]);
        self.columns(&format!("{entity}/trail"), 0..frames, columns)?;
        let looks = LineStrips3D::update_fields()
            .with_colors(chosen.iter().map(|i| rgb(colors[*i])))
            .with_radii([Radius::new_ui_points(1.4)]);
        self.fixed(&format!("{entity}/trail"), &[&looks])
    }

    /// Points and trails in the picture, projected by our own camera; points behind it are left out.
    fn tracks(&self, entity: &str, flow: &Flow3d, share: f64) -> Result<()> {
        let frames = flow.frames();
        let colors = point_colors(&self.scene.points, share);
        let project = |p: &Point3<f64>| self.scene.camera.project(p).map(|[u, v, _]| [u as f32, v as f32]);
        let (mut places, mut looks, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for t in 0..frames {
            let before = places.len();
            let look: Vec<Color> = seen_colors(&colors, flow.visibility_at(t)).collect();
            for (at, look) in flow.at(t).iter().zip(look).filter_map(|(p, look)| Some((project(p)?, look))) {
                places.push(at);
                looks.push(look);
            }
            lengths.push(places.len() - before);
        }
        let columns = Points2D::update_fields().with_positions(places).with_colors(looks).columns(lengths);
        self.columns(&format!("{entity}/points"), 0..frames, columns)?;
        let points = format!("{entity}/points");
        self.fixed(&points, &[&Points2D::update_fields().with_radii([Radius::new_ui_points(2.6)])])?;

        // Trails of points that stay in front of the camera, so that every row has the same strips.
        let in_front = |i: &usize| (0..frames).all(|t| project(&flow.at(t)[*i]).is_some());
        let chosen: Vec<usize> = spread(&self.scene.points, TRAILS).into_iter().filter(in_front).collect();
        let chosen = &chosen;
        let strip = |t: usize, i: usize| {
            let tail = (t.saturating_sub(TRAIL_FRAMES)..=t).filter_map(|s| project(&flow.at(s)[i]));
            LineStrip2D::from_iter(tail)
        };
        let strips = (0..frames).flat_map(|t| chosen.iter().map(move |i| strip(t, *i)));
        let columns = LineStrips2D::update_fields().with_strips(strips).columns(vec![chosen.len(); frames]);
        let trail = format!("{entity}/trail");
        self.columns(&trail, 0..frames, columns)?;
        let looks = LineStrips2D::update_fields()
            .with_colors(chosen.iter().map(|i| rgb(colors[*i])))
            .with_radii([Radius::new_ui_points(1.2)]);
        self.fixed(&trail, &[&looks])
    }

    /// Lines from the true to the predicted places.
    fn error(&self, truth: &Flow3d, predicted: &Flow3d) -> Result<()> {
        let (frames, n) = (truth.frames(), truth.points());
        let pairs = || (0..frames).flat_map(|t| truth.at(t).iter().zip(predicted.at(t)));
        let strips = pairs().map(|(a, b)| LineStrip3D::from_iter([position(a), position(b)]));
        let colors = pairs().map(|(a, b)| rgb(error_color((a - b).norm() / BAD_M)));
        let columns =
            LineStrips3D::update_fields().with_strips(strips).with_colors(colors).columns(vec![n; frames]);
        self.columns("world/flow/error", 0..frames, columns)?;
        let width = LineStrips3D::update_fields().with_radii([Radius::new_ui_points(1.0)]);
        self.fixed("world/flow/error", &[&width])
    }
}

/// Places and colours of a cloud.
type Cloud = (Vec<[f32; 3]>, Vec<Rgb>);

/// What the depth camera saw, at most one point per small cube: the rest of the scene, and the object.
fn clouds(scene: &FlowScene) -> (Cloud, Cloud) {
    let (mut rest, mut object) = (Cloud::default(), Cloud::default());
    if scene.depth_m.is_empty() {
        return (rest, object);
    }
    let width = scene.picture.width() as usize;
    let mut taken: HashSet<(bool, [i64; 3])> = HashSet::new();
    for (i, (depth, pixel)) in scene.depth_m.iter().zip(scene.picture.pixels()).enumerate() {
        if !(depth.is_finite() && *depth > 0.0) {
            continue;
        }
        let (u, v) = ((i % width) as f64 + 0.5, (i / width) as f64 + 0.5);
        let p = scene.camera.lift(u, v, f64::from(*depth));
        let on_object = scene.mask.get(i).is_some_and(|m| *m > 127);
        let cube = [p.x, p.y, p.z].map(|x| (x / VOXEL_M).floor() as i64);
        if taken.insert((on_object, cube)) {
            let cloud = if on_object { &mut object } else { &mut rest };
            cloud.0.push(position(&p));
            cloud.1.push(pixel.0);
        }
    }
    (rest, object)
}

/// The colours of points, faint where the camera does not see them.
fn seen_colors<'a>(colors: &'a [Rgb], visibility: &'a [f32]) -> impl Iterator<Item = Color> + 'a {
    colors.iter().zip(visibility).map(|([r, g, b], seen)| {
        Color::from_unmultiplied_rgba(*r, *g, *b, if *seen >= 0.5 { 255 } else { HIDDEN })
    })
}

pub(super) fn position(p: &Point3<f64>) -> [f32; 3] {
    [p.x as f32, p.y as f32, p.z as f32]
}

fn rotation(pose: &Isometry3<f64>) -> Quaternion {
    let q = pose.rotation.quaternion();
    Quaternion::from_xyzw([q.i, q.j, q.k, q.w].map(|x| x as f32))
}

fn transform(pose: &Isometry3<f64>) -> Transform3D {
    Transform3D::from_translation_rotation(position(&pose.translation.vector.into()), rotation(pose))
}
