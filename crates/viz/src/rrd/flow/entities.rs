//! A scene of flow as entities: one column call per entity for all frames.

use std::collections::HashSet;

use efference_geometry::{Camera, Flow3d, Isometry3, Point3, Vector3};
use rerun::archetypes::StateChange;
use rerun::external::re_sdk_types::SerializedComponentColumn;
use rerun::{
    Arrows3D, AsComponents, ChannelDatatype, Clear, Color, DepthImage, EncodedImage, LineStrip2D,
    LineStrip3D, LineStrips2D, LineStrips3D, Pinhole, Points2D, Points3D, Quaternion, Radius,
    RecordingStream, Scalars, TextDocument, TextLog, TimeColumn, Transform3D, TransformAxes3D,
    ViewCoordinates, components,
};

use super::super::entities::{jpeg, log_curve_style, rgb};
use super::super::layout::part;
use super::super::{FRAME, OrEncode, SIM_TIME};
use super::{DENOISE, ROUND};
use crate::error::Result;
use crate::flow::{
    BAD_M, FlowScene, Grasp, GraspState, PREDICTED, Prediction, TimedPose, error_color, finger_lines,
    point_colors, spread, verdict_color,
};
use crate::theme::{self, Rgb};

/// Points of which trails are recorded, and longest trail in frames: the size of a trail is the square of its frames.
const TRAILS: usize = 64;
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

struct Logger<'a> {
    rec: &'a RecordingStream,
    scene: &'a FlowScene,
}

impl Logger<'_> {
    fn fixed(&self, entity: &str, parts: &[&dyn AsComponents]) -> Result<()> {
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
    fn columns<E: std::fmt::Display>(
        &self,
        entity: &str,
        frames: impl Iterator<Item = usize> + Clone,
        columns: std::result::Result<impl Iterator<Item = SerializedComponentColumn>, E>,
    ) -> Result<()> {
        self.rec.send_columns(entity, self.times(frames), columns.encode(entity)?).encode(entity)
    }

    /// Something that holds from this scene's first frame on.
    fn once(&self, entity: &str, part: &dyn AsComponents) -> Result<()> {
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

    fn poses(&self, entity: &str, poses: &[Isometry3<f64>]) -> Result<()> {
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

    /// The rigid motion of the shown sample as axes in the object's middle, the points that do not follow it, and how far
    /// points are from it.
    fn fit(&self, shown: &Prediction) -> Result<()> {
        let Some(fit) = &shown.fit else { return Ok(()) };
        let flow = &shown.flow;
        let frames = flow.frames();
        let n = flow.points() as f64;
        let middle = flow.at(0).iter().fold(Vector3::zeros(), |sum, p| sum + p.coords / n);
        let axes: Vec<Isometry3<f64>> = fit
            .poses
            .iter()
            .map(|motion| motion * Isometry3::translation(middle.x, middle.y, middle.z))
            .collect();
        self.poses("world/fit/axes", &axes)?;
        self.fixed("world/fit/axes", &[&TransformAxes3D::new(0.05)])?;

        let out = |t: usize| flow.at(t).iter().zip(&fit.inliers[t]).filter(|(_, follows)| !**follows);
        let lengths: Vec<usize> = (0..frames).map(|t| out(t).count()).collect();
        let places = (0..frames).flat_map(|t| out(t).map(|(p, _)| position(p)));
        let columns = Points3D::update_fields().with_positions(places).columns(lengths);
        self.columns("world/fit/outliers", 0..frames, columns)?;
        let looks = Points3D::update_fields()
            .with_colors([rgb(theme::FAILURE)])
            .with_radii([Radius::new_scene_units(0.006)]);
        self.fixed("world/fit/outliers", &[&looks])?;

        let chosen = spread(&self.scene.points, TRAILS);
        let chosen = &chosen;
        let residual = |t: usize, i: usize| {
            LineStrip3D::from_iter([position(&(fit.poses[t] * flow.at(0)[i])), position(&flow.at(t)[i])])
        };
        let strips = (0..frames).flat_map(|t| chosen.iter().map(move |i| residual(t, *i)));
        let columns = LineStrips3D::update_fields().with_strips(strips).columns(vec![chosen.len(); frames]);
        self.columns("world/fit/residual", 0..frames, columns)?;
        let looks = LineStrips3D::update_fields()
            .with_colors([rgb(theme::MUTED)])
            .with_radii([Radius::new_ui_points(1.0)]);
        self.fixed("world/fit/residual", &[&looks])
    }

    /// The sampler's steps on a timeline of their own: all frames of the sample at once.
    fn chain(&self, shown: &Prediction) -> Result<()> {
        if shown.chain.is_empty() {
            return Ok(());
        }
        let flow = &shown.flow;
        let n = flow.frames() * flow.points();
        let colors = point_colors(&self.scene.points, PREDICTED);
        let all = |flow: &Flow3d| -> Vec<[f32; 3]> {
            (0..flow.frames()).flat_map(|t| flow.at(t).iter().map(position)).collect()
        };
        let places = shown.chain.iter().flat_map(all);
        let looks = (0..shown.chain.len() * flow.frames()).flat_map(|_| colors.iter().copied().map(rgb));
        let columns = Points3D::update_fields().with_positions(places).with_colors(looks).columns(vec![
            n;
            shown
                .chain
                .len(
                )
        ]);
        let steps = TimeColumn::new_sequence(DENOISE, 0..shown.chain.len() as i64);
        let entity = "denoise/flow";
        self.rec.send_columns(entity, [steps], columns.encode(entity)?).encode(entity)?;
        self.fixed(entity, &[&Points3D::update_fields().with_radii([Radius::new_scene_units(0.003)])])
    }

    /// Candidates, the planned and the executed way.
    fn gripper(&self) -> Result<()> {
        let scene = self.scene;
        for (name, state, color, width) in [
            ("chosen", GraspState::Chosen, theme::SUCCESS, 2.4),
            ("possible", GraspState::Possible, [200, 206, 214], 1.2),
            ("rejected", GraspState::Rejected, theme::MUTED, 0.8),
        ] {
            let these = || scene.grasps.iter().filter(move |g: &&Grasp| g.state == state);
            if these().next().is_none() {
                continue;
            }
            let strips = these().flat_map(finger_lines);
            let strips = strips.map(|line| LineStrip3D::from_iter(line.iter().map(position)));
            let grasps = LineStrips3D::new(strips)
                .with_colors([rgb(color)])
                .with_radii([Radius::new_ui_points(width)]);
            self.once(&format!("world/grasps/{name}"), &grasps)?;
        }
        let at = |p: &TimedPose| position(&p.pose.translation.vector.into());
        if !scene.plan.is_empty() {
            let way = LineStrips3D::new([LineStrip3D::from_iter(scene.plan.iter().map(at))])
                .with_colors([rgb(theme::PLAN)])
                .with_radii([Radius::new_ui_points(2.2)]);
            self.once("world/ee/plan", &way)?;
            let axis = |pose: &TimedPose, axis: Vector3<f64>| {
                let v = pose.pose.rotation * axis * 0.02;
                [v.x as f32, v.y as f32, v.z as f32]
            };
            let three = [Vector3::x(), Vector3::y(), Vector3::z()];
            let vectors = scene.plan.iter().flat_map(|p| three.map(|a| axis(p, a)));
            let colors: [Rgb; 3] = [[235, 87, 87], [88, 190, 110], [90, 140, 245]];
            let arrows = Arrows3D::from_vectors(vectors)
                .with_origins(scene.plan.iter().flat_map(|p| [at(p); 3]))
                .with_colors(scene.plan.iter().flat_map(|_| colors.map(rgb)))
                .with_radii([Radius::new_ui_points(0.8)]);
            self.once("world/ee/plan/axes", &arrows)?;
        }
        if !scene.executed.is_empty() {
            let frames = scene.frames();
            let way = |t: usize| {
                LineStrip3D::from_iter(scene.executed.iter().filter(move |p| p.frame <= t as f64).map(at))
            };
            let columns =
                LineStrips3D::update_fields().with_strips((0..frames).map(way)).columns_of_unit_batches();
            self.columns("world/ee/executed", 0..frames, columns)?;
            let color = scene.success.map_or([255, 255, 255], verdict_color);
            let looks = LineStrips3D::update_fields()
                .with_colors([rgb(color)])
                .with_radii([Radius::new_ui_points(2.0)]);
            self.fixed("world/ee/executed", &[&looks])?;
        }
        Ok(())
    }

    fn plots(&self) -> Result<()> {
        let scene = self.scene;
        if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
            self.plot("error_cm/mean", 0, &errors.mean_cm)?;
            self.plot("error_cm/p90", 1, &errors.p90_cm)?;
            self.plot("error_cm/p10", 2, &errors.p10_cm)?;
        }
        if let Some(fit) = scene.shown().and_then(|p| p.fit.as_ref()) {
            let all: Vec<f64> = fit.rms_all_m.iter().map(|m| 1e3 * m).collect();
            self.plot("rigid_rms_mm/all_points", 3, &all)?;
            let inliers: Vec<f64> = fit.rms_m.iter().map(|m| 1e3 * m).collect();
            self.plot("rigid_rms_mm/inliers", 4, &inliers)?;
        }
        for (i, curve) in scene.curves.iter().enumerate() {
            let path: Vec<String> = curve.name.split('/').map(part).collect();
            self.plot(&path.join("/"), 5 + i, &curve.values)?;
        }
        Ok(())
    }

    fn plot(&self, name: &str, color: usize, values: &[f64]) -> Result<()> {
        let entity = format!("plot/{name}");
        let finite: Vec<(usize, f64)> =
            values.iter().copied().enumerate().filter(|(_, v)| v.is_finite()).collect();
        if finite.is_empty() {
            return Ok(());
        }
        let columns =
            Scalars::update_fields().with_scalars(finite.iter().map(|(_, v)| *v)).columns_of_unit_batches();
        self.columns(&entity, finite.iter().map(|(t, _)| *t), columns)?;
        log_curve_style(self.rec, &entity, name, color).encode(&entity)
    }

    /// Phases, verdicts, the card.
    fn words(&self) -> Result<()> {
        let scene = self.scene;
        if !scene.phases.is_empty() {
            let names = scene.phases.iter().map(|p| p.name.as_str());
            let columns = StateChange::update_fields().with_state(names).columns_of_unit_batches();
            self.columns("phase", scene.phases.iter().map(|p| p.frame), columns)?;
        }
        for (k, prediction) in scene.predictions.iter().enumerate() {
            for verdict in &prediction.verdicts {
                let word = if verdict.accepted { "accepts" } else { "rejects" };
                let score = verdict.score.map(|s| format!(" ({s:.2})")).unwrap_or_default();
                let text = format!("{} {word} sample {k}{score} {}", verdict.judge, verdict.reason);
                let line =
                    TextLog::new(text.trim_end()).with_level(if verdict.accepted { "INFO" } else { "WARN" });
                let color = rgb(verdict_color(verdict.accepted));
                // An entity per judge and sample: rows of one entity at one time would replace each other.
                let entity = format!("verdict/{k}/{}", part(&verdict.judge));
                self.once(&entity, &line.with_color(color))?;
            }
        }
        self.once("card", &TextDocument::from_markdown(card(scene)))
    }
}

/// The text beside the scene.
fn card(scene: &FlowScene) -> String {
    let mut lines = vec![
        ("task".to_owned(), scene.name.clone()),
        ("seed".into(), scene.seed.to_string()),
        ("points".into(), scene.points.len().to_string()),
        ("samples".into(), scene.predictions.len().to_string()),
    ];
    if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
        lines.push(("mean error (ADE)".into(), format!("{:.2} cm", errors.ade_cm())));
        lines.push(("final error (FDE)".into(), format!("{:.2} cm", errors.fde_cm())));
    }
    if let Some(fit) = scene.shown().and_then(|p| p.fit.as_ref()) {
        lines.push(("off a rigid motion".into(), format!("{:.1} mm", 1e3 * fit.worst_rms_m())));
    }
    lines.extend(scene.notes.iter().cloned());
    let accepted = scene.shown().and_then(Prediction::accepted);
    let words = [
        accepted.map(|a| if a { "✓ accepted" } else { "✗ rejected" }),
        scene.success.map(|s| if s { "✓ done" } else { "✗ not done" }),
    ];
    let words: Vec<String> = words.into_iter().flatten().map(|w| format!("**{w}**")).collect();
    let lines: Vec<String> =
        lines.iter().map(|(what, value)| format!("{what} **{}**", value.replace('\n', " "))).collect();
    format!("## {}\n\n{}\n\n{}", scene.instruction, words.join(" · "), lines.join(" · "))
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

fn position(p: &Point3<f64>) -> [f32; 3] {
    [p.x as f32, p.y as f32, p.z as f32]
}

fn rotation(pose: &Isometry3<f64>) -> Quaternion {
    let q = pose.rotation.quaternion();
    Quaternion::from_xyzw([q.i, q.j, q.k, q.w].map(|x| x as f32))
}

fn transform(pose: &Isometry3<f64>) -> Transform3D {
    Transform3D::from_translation_rotation(position(&pose.translation.vector.into()), rotation(pose))
}
