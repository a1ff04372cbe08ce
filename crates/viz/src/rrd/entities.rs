//! An episode as entities: one column call per entity for all frames.

use super::layout::part;
use super::shapes::{self, KINDS};
use super::{FRAME, OrEncode, SIM_TIME};
use crate::episode::{CameraAxes, CameraRecord, EpisodeRecord, Pose, SceneGeom};
use crate::error::{Error, Result};
use crate::recorder::RecorderOptions;
use crate::theme::{self, Rgb};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use rerun::external::re_sdk_types::SerializedComponentColumn;
use rerun::{
    AsComponents, Color, EncodedImage, LineStrip3D, LineStrips3D, Pinhole, Points3D, Quaternion, Radius,
    RecordingStream, RecordingStreamResult, Scalars, SeriesLines, TextDocument, TimeColumn, Transform3D,
    TransformAxes3D, ViewCoordinates, components,
};

/// Most points of a drawn path. A growing strip is stored anew for each of them, so its size is their square.
const MAX_PATH_POINTS: usize = 100;

/// Logs `e` below the entity `root`:
/// `world/{path,plan,plan/points,gripper,scene/*,cameras/*}`, `plot/{reward,progress_score}`, `signals/*`, `card`.
pub(super) fn log_episode(
    rec: &RecordingStream,
    root: &str,
    e: &EpisodeRecord,
    options: &RecorderOptions,
) -> Result<()> {
    let log = Logger { rec, root, control_hz: e.control_hz };
    log.fixed("world", &[&ViewCoordinates::RIGHT_HAND_Z_UP()])?;
    log.path(e)?;
    log.plans(e)?;
    log.poses("world/gripper", &e.gripper)?;
    log.fixed("world/gripper", &[&TransformAxes3D::new(0.04)])?;
    log.scene(&e.scene, e.frames())?;
    for camera in &e.cameras {
        log.camera(camera, options)?;
    }
    log.plots(e)?;
    log.fixed("card", &[&TextDocument::from_markdown(card(e))])
}

/// Name, colour and width of a curve.
pub(super) fn log_curve_style(
    rec: &RecordingStream,
    path: &str,
    name: &str,
    color: usize,
) -> RecordingStreamResult<()> {
    let style =
        SeriesLines::new().with_names([name]).with_colors([rgb(theme::series(color))]).with_widths([2.0]);
    rec.log_static(path, &style)
}

struct Logger<'a> {
    rec: &'a RecordingStream,
    root: &'a str,
    control_hz: f64,
}

impl Logger<'_> {
    fn at(&self, entity: &str) -> String {
        format!("{}/{entity}", self.root)
    }

    fn fixed(&self, entity: &str, parts: &[&dyn AsComponents]) -> Result<()> {
        let path = self.at(entity);
        parts.iter().try_for_each(|part| self.rec.log_static(path.as_str(), *part)).encode(&path)
    }

    /// One row per entry of `frames`.
    fn columns<E: std::fmt::Display>(
        &self,
        entity: &str,
        frames: &[usize],
        columns: std::result::Result<impl Iterator<Item = SerializedComponentColumn>, E>,
    ) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        let path = self.at(entity);
        let times = [
            TimeColumn::new_sequence(FRAME, frames.iter().map(|&f| f as i64)),
            TimeColumn::new_duration_secs(SIM_TIME, frames.iter().map(|&f| f as f64 / self.control_hz)),
        ];
        self.rec.send_columns(path.as_str(), times, columns.encode(&path)?).encode(&path)
    }

    /// A pose that never changes, or one per frame.
    fn poses(&self, entity: &str, poses: &[Pose]) -> Result<()> {
        if let [pose] = poses {
            return self
                .fixed(entity, &[&Transform3D::from_translation_rotation(position(pose), rotation(pose))]);
        }
        let columns = Transform3D::update_fields()
            .with_many_translation(poses.iter().map(position))
            .with_many_quaternion(poses.iter().map(rotation))
            .columns_of_unit_batches();
        self.columns(entity, &Vec::from_iter(0..poses.len()), columns)
    }

    /// The way of the gripper so far, at every frame that adds a point, in the colour of the verdict.
    fn path(&self, e: &EpisodeRecord) -> Result<()> {
        let stride = e.frames().div_ceil(MAX_PATH_POINTS).max(1);
        let mut frames: Vec<usize> = (0..e.frames()).step_by(stride).collect();
        if frames.last() != Some(&(e.frames() - 1)) {
            frames.push(e.frames() - 1);
        }
        let points: Vec<[f32; 3]> = frames.iter().map(|&f| position(&e.gripper[f])).collect();
        let strips = (1..=points.len()).map(|n| LineStrip3D::from_iter(points[..n].iter().copied()));
        let columns = LineStrips3D::update_fields().with_strips(strips).columns_of_unit_batches();
        self.columns("world/path", &frames, columns)?;
        let color = if e.success { theme::SUCCESS } else { theme::FAILURE };
        let style =
            LineStrips3D::update_fields().with_colors([rgb(color)]).with_radii([Radius::new_ui_points(1.8)]);
        self.fixed("world/path", &[&style])
    }

    /// The chunk the policy was following at each frame.
    fn plans(&self, e: &EpisodeRecord) -> Result<()> {
        if e.plans.is_empty() {
            return Ok(());
        }
        let frames: Vec<usize> = e.plans.iter().map(|p| p.frame).collect();
        let strips = e.plans.iter().map(|p| LineStrip3D::from_iter(p.points.iter().copied()));
        let columns = LineStrips3D::update_fields().with_strips(strips).columns_of_unit_batches();
        self.columns("world/plan", &frames, columns)?;
        let style = LineStrips3D::update_fields()
            .with_colors([rgb(theme::PLAN)])
            .with_radii([Radius::new_ui_points(2.2)]);
        self.fixed("world/plan", &[&style])?;

        let lengths: Vec<usize> = e.plans.iter().map(|p| p.points.len()).collect();
        let points = e.plans.iter().flat_map(|p| p.points.iter().copied());
        let columns = Points3D::update_fields().with_positions(points).columns(lengths);
        self.columns("world/plan/points", &frames, columns)?;
        let style = Points3D::update_fields()
            .with_colors([rgb(theme::PLAN)])
            .with_radii([Radius::new_ui_points(3.2)]);
        self.fixed("world/plan/points", &[&style])
    }

    /// `world/scene/{moving,fixed}/KIND`.
    fn scene(&self, geoms: &[SceneGeom], frames: usize) -> Result<()> {
        for (kind, name) in KINDS {
            for (group, is_fixed) in [("fixed", true), ("moving", false)] {
                let batch: Vec<&SceneGeom> =
                    geoms.iter().filter(|g| g.kind == kind && (g.poses.len() == 1) == is_fixed).collect();
                if batch.is_empty() {
                    continue;
                }
                let entity = format!("world/scene/{group}/{name}");
                self.fixed(&entity, &[&*shapes::looks(kind, &batch)])?;
                if is_fixed {
                    let path = self.at(&entity);
                    let columns = shapes::places(kind, &batch, 1).encode(&path)?;
                    self.rec.send_columns(path.as_str(), [], columns).encode(&path)?;
                } else {
                    let columns = shapes::places(kind, &batch, frames).map(Vec::into_iter);
                    self.columns(&entity, &Vec::from_iter(0..frames), columns)?;
                }
            }
        }
        Ok(())
    }

    fn camera(&self, camera: &CameraRecord, options: &RecorderOptions) -> Result<()> {
        let entity = format!("world/cameras/{}", part(&camera.name));
        let k = camera.intrinsics;
        let axes = match camera.axes {
            CameraAxes::OpenGl => components::ViewCoordinates::RUB,
            CameraAxes::OpenCv => components::ViewCoordinates::RDF,
        };
        let pinhole =
            Pinhole::from_focal_length_and_resolution([k.fx, k.fy], [k.width as f32, k.height as f32])
                .with_principal_point([k.cx, k.cy])
                .with_camera_xyz(axes)
                .with_image_plane_distance(0.12);
        self.fixed(&entity, &[&pinhole])?;
        self.poses(&entity, &camera.poses)?;

        let shown = crate::sheet::spread(&Vec::from_iter(0..camera.frames.len()), options.max_images);
        let frames: Vec<usize> = shown.iter().map(|&i| camera.frames[i].0).collect();
        let files = shown
            .iter()
            .map(|&i| jpeg(&camera.frames[i].1, options.jpeg_quality, &camera.name))
            .collect::<Result<Vec<_>>>()?;
        let blobs = files.into_iter().map(components::Blob::from);
        let columns = EncodedImage::update_fields().with_many_blob(blobs).columns_of_unit_batches();
        let entity = format!("{entity}/rgb");
        self.columns(&entity, &frames, columns)?;
        let style = EncodedImage::update_fields()
            .with_media_type("image/jpeg")
            .with_magnification_filter(components::MagnificationFilter::Linear);
        self.fixed(&entity, &[&style])
    }

    /// Reward and score share a plot because both lie between 0 and 1; signals are metres.
    fn plots(&self, e: &EpisodeRecord) -> Result<()> {
        let rewards = e.rewards.iter().enumerate().map(|(t, &r)| (t + 1, r));
        self.plot(2, "plot", "reward", rewards)?;
        if let Some(progress) = e.progress {
            // One number for the whole episode: a level line.
            self.plot(1, "plot", "progress score", (0..e.frames()).map(|t| (t, progress)))?;
        }
        for (i, signal) in e.signals.iter().enumerate() {
            self.plot(i, "signals", &signal.name, signal.values.iter().copied().enumerate())?;
        }
        Ok(())
    }

    fn plot(
        &self,
        color: usize,
        group: &str,
        name: &str,
        values: impl Iterator<Item = (usize, f32)>,
    ) -> Result<()> {
        let entity = format!("{group}/{}", part(name));
        let (frames, values): (Vec<usize>, Vec<f32>) = values.filter(|(_, v)| v.is_finite()).unzip();
        let columns = Scalars::update_fields().with_scalars(values.into_iter().map(f64::from));
        self.columns(&entity, &frames, columns.columns_of_unit_batches())?;
        let path = self.at(&entity);
        log_curve_style(self.rec, &path, name, color).encode(&path)
    }
}

/// The text beside an episode.
fn card(e: &EpisodeRecord) -> String {
    let steps = e.rewards.len();
    let secs = steps as f64 / e.control_hz;
    let verdict = if e.success { "✓ success" } else { "✗ failure" };
    let mut rows = vec![
        ("stage".to_owned(), e.stage.clone()),
        ("training step".into(), e.update.to_string()),
        ("seed".into(), e.seed.to_string()),
        ("total reward".into(), format!("{:.3}", e.total_reward())),
    ];
    rows.extend(e.progress.map(|p| ("progress score".into(), format!("{p:.3}"))));
    rows.extend(e.notes.iter().cloned());
    // Running text: a table would not fit into the corner that the card has.
    let rows: Vec<String> =
        rows.iter().map(|(what, value)| format!("{what} **{}**", value.replace('\n', " "))).collect();
    format!("## {}\n\n**{verdict}** · {steps} steps · {secs:.1} s\n\n{}", e.instruction, rows.join(" · "))
}

pub(super) fn jpeg(image: &RgbImage, quality: u8, camera: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoded = JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100)).encode_image(image);
    encoded.map_err(|source| Error::Image { what: camera.into(), source })?;
    Ok(bytes)
}

pub(super) fn position(pose: &Pose) -> [f32; 3] {
    pose.translation.vector.into()
}

pub(super) fn rotation(pose: &Pose) -> Quaternion {
    let q = pose.rotation.quaternion();
    Quaternion::from_xyzw([q.i, q.j, q.k, q.w])
}

pub(super) fn rgb([r, g, b]: Rgb) -> Color {
    Color::from_rgb(r, g, b)
}

pub(super) fn rgba(rgba: [f32; 4]) -> Color {
    let [r, g, b, a] = rgba.map(|c| (255.0 * c.clamp(0.0, 1.0)).round() as u8);
    Color::from_unmultiplied_rgba(r, g, b, a)
}
