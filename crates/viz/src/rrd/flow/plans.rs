//! What was made of the shown sample: its rigid motion, grasps, the way of the gripper.

use efference_geometry::{Flow3d, Isometry3, Vector3};
use rerun::{Arrows3D, LineStrip3D, LineStrips3D, Points3D, Radius, TimeColumn, TransformAxes3D};

use super::super::OrEncode;
use super::super::entities::rgb;
use super::DENOISE;
use super::entities::{Logger, TRAILS, position};
use crate::error::Result;
use crate::flow::{
    Grasp, GraspState, PREDICTED, Prediction, TimedPose, finger_lines, point_colors, spread, verdict_color,
};
use crate::theme::{self, Rgb};

impl Logger<'_> {
    /// The rigid motion of the shown sample as axes in the object's middle, the points that do not follow it, and how far
    /// points are from it.
    pub(super) fn fit(&self, shown: &Prediction) -> Result<()> {
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
    pub(super) fn chain(&self, shown: &Prediction) -> Result<()> {
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
    pub(super) fn gripper(&self) -> Result<()> {
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
}
