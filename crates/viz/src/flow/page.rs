//! One episode on one page.

use image::RgbImage;

use super::look::{self, PANEL, RADIUS};
use super::relief::Relief;
use super::space::{self, SpaceOptions};
use super::{FlowErrors, FlowScene, PREDICTED, chart, picture};
use crate::draw::{Align, Canvas, Stroke, Weight, fit_picture, text_width};
use crate::error::Result;
use crate::theme::{self, PAPER, Rgb};

/// Page width, margin and gap, pixels.
const WIDTH: u32 = 1600;
const MARGIN: u32 = 40;
const GAP: u32 = 20;
/// Side of a camera panel and height of the 3D view.
const SIDE: u32 = 440;
const HEADER: u32 = 120;
const LOWER: u32 = 220;
/// How far the spectator of the 3D view stands beside the camera, radians.
pub(crate) const AZIMUTH: f64 = 0.5;

/// The page of one episode, 1600 pixels wide: what was asked, the camera's picture with true and predicted trails, the
/// scene from beside with the object where the flow leaves it, errors, the judged final picture, numbers.
///
/// # Errors
/// [`crate::Error::Shape`] if the parts of the scene do not fit together.
pub fn page(scene: &FlowScene) -> Result<RgbImage> {
    scene.validate()?;
    let last = (scene.frames() - 1) as f64;
    // Without a prediction there is nothing to say below the pictures.
    let below = if scene.predictions.is_empty() { 0 } else { 44 + LOWER };
    let mut canvas = Canvas::new(WIDTH, MARGIN + HEADER + SIDE + below + MARGIN, PAPER);
    header(&mut canvas, scene);

    let top = MARGIN + HEADER;
    let mut x = MARGIN;
    for (caption, flow, share) in cameras(scene) {
        let panel = picture::draw(scene, flow, share, last, SIDE);
        canvas.picture([x, top], &panel, RADIUS);
        canvas.text([x as f32, top as f32 - 14.0], caption, 17.0, Weight::SemiBold, theme::INK, Align::Left);
        x += SIDE + GAP;
    }
    let relief = Relief::of(scene);
    let size = [WIDTH - MARGIN - x, SIDE];
    let options = SpaceOptions { size, until: last, moving: false, azimuth: AZIMUTH };
    let view = space::draw(scene, relief.as_ref(), options);
    canvas.picture([x, top], &view, RADIUS);
    let caption = "from beside: flow, and where it leaves the object";
    canvas.text([x as f32, top as f32 - 14.0], caption, 17.0, Weight::SemiBold, theme::INK, Align::Left);
    if below > 0 {
        lower(&mut canvas, scene, top + SIDE + 44);
    }
    Ok(canvas.into_image())
}

/// Captions, flows and colourfulness of the two camera panels.
pub(crate) fn cameras(scene: &FlowScene) -> [(&'static str, Option<&efference_geometry::Flow3d>, f64); 2] {
    let truth = scene.truth.as_ref();
    let predicted = scene.shown().map(|p| &p.flow);
    match (truth, predicted) {
        (Some(_), Some(_)) => [("true flow", truth, 1.0), ("predicted flow", predicted, PREDICTED)],
        (None, Some(_)) => [("the points asked for", None, 1.0), ("predicted flow", predicted, PREDICTED)],
        _ => [("the points", None, 1.0), ("true flow", truth, 1.0)],
    }
}

fn header(canvas: &mut Canvas, scene: &FlowScene) {
    let mut right = (WIDTH - MARGIN) as f32;
    let y = MARGIN as f32;
    if let Some(done) = scene.success {
        right = chip(canvas, [right, y], if done { "done" } else { "not done" }, done) - 12.0;
    }
    if let Some(accepted) = scene.shown().and_then(super::Prediction::accepted) {
        right = chip(canvas, [right, y], if accepted { "accepted" } else { "rejected" }, accepted) - 12.0;
    }
    let left = MARGIN as f32;
    let title = capitalised(&scene.instruction);
    canvas.text_in([left, y + 30.0], right - left - 20.0, &title, 34.0, Weight::SemiBold, theme::INK);
    let mut parts = vec![scene.name.clone(), format!("seed {}", scene.seed)];
    let frames = scene.frames();
    parts.push(format!("{} points, {} frames", scene.points.len(), frames));
    if scene.predictions.len() > 1 {
        parts.push(format!("{} samples", scene.predictions.len()));
    }
    parts.extend(scene.notes.iter().map(|(what, value)| format!("{what} {value}")));
    let line = parts.join("  ·  ");
    canvas.text_in([left, y + 60.0], right - left, &line, 18.0, Weight::Regular, theme::MUTED);
}

/// A verdict in its colour; `at` is its upper right corner. Gives its left edge.
pub(crate) fn chip(canvas: &mut Canvas, at: [f32; 2], text: &str, good: bool) -> f32 {
    let (height, color) = (34.0, look::verdict(good));
    let width = text_width(text, 18.0, Weight::SemiBold) + 58.0;
    let left = at[0] - width;
    canvas.round_rect([left, at[1]], [width, height], 0.5 * height, color, 1.0);
    canvas.mark([left + 24.0, at[1] + 17.0], 16.0, good, Stroke::new(PAPER, 2.6));
    canvas.text([left + 40.0, at[1] + 23.5], text, 18.0, Weight::SemiBold, PAPER, Align::Left);
    left
}

/// Errors on the left, the judged picture and the numbers on the right.
fn lower(canvas: &mut Canvas, scene: &FlowScene, top: u32) {
    let errors: Vec<FlowErrors> = (0..scene.predictions.len()).filter_map(|k| scene.errors(k)).collect();
    let at_shown = scene.chosen.unwrap_or(0);
    let y = top as f32;
    let cameras_end = MARGIN + 2 * SIDE + GAP;
    let chart_width = (cameras_end - MARGIN) as f32;
    canvas.round_rect([MARGIN as f32, y], [chart_width, LOWER as f32], RADIUS, PANEL, 1.0);
    match errors.get(at_shown) {
        Some(shown) => {
            let caption = "distance to the true flow, cm (band: 80% of the points)";
            canvas.text([MARGIN as f32, y - 12.0], caption, 17.0, Weight::SemiBold, theme::INK, Align::Left);
            let others: Vec<FlowErrors> =
                errors.iter().enumerate().filter(|(k, _)| *k != at_shown).map(|(_, e)| e.clone()).collect();
            chart::draw(canvas, [MARGIN as f32, y, chart_width, LOWER as f32], shown, &others, None);
        }
        None => {
            let middle = [MARGIN as f32 + 0.5 * chart_width, y + 0.5 * LOWER as f32];
            let text = if scene.truth.is_some() { "no prediction" } else { "no true flow to compare with" };
            canvas.text(middle, text, 18.0, Weight::Regular, theme::MUTED, Align::Centre);
        }
    }
    let mut x = cameras_end + GAP;
    if let Some(last) =
        scene.shown().and_then(|p| p.final_picture.as_ref()).filter(|p| p.width() > 0 && p.height() > 0)
    {
        canvas.picture([x, top], &fit_picture(last, LOWER, LOWER), RADIUS);
        canvas.text([x as f32, y - 12.0], "as judged", 17.0, Weight::SemiBold, theme::INK, Align::Left);
        x += LOWER + GAP;
    }
    let width = (WIDTH - MARGIN - x) as f32;
    canvas.round_rect([x as f32, y], [width, LOWER as f32], RADIUS, PANEL, 1.0);
    let mut line_y = y + 36.0;
    for (what, value, color) in numbers(scene, errors.get(at_shown)).into_iter().take(6) {
        canvas.text([x as f32 + 22.0, line_y], &what, 17.0, Weight::Regular, theme::MUTED, Align::Left);
        let room = width - 60.0 - text_width(&what, 17.0, Weight::Regular);
        let value = crate::draw::shortened(&value, room, 17.0, Weight::SemiBold);
        canvas.text([x as f32 + width - 22.0, line_y], &value, 17.0, Weight::SemiBold, color, Align::Right);
        line_y += 32.0;
    }
}

/// What is known in numbers: name, value, colour.
fn numbers(scene: &FlowScene, errors: Option<&FlowErrors>) -> Vec<(String, String, Rgb)> {
    let ink = theme::INK;
    let mut lines = Vec::new();
    if let Some(e) = errors {
        lines.push(("mean error (ADE)".to_owned(), format!("{:.1} cm", e.ade_cm()), ink));
        lines.push(("final error (FDE)".to_owned(), format!("{:.1} cm", e.fde_cm()), ink));
    }
    if let Some(prediction) = scene.shown() {
        if let Some(fit) = &prediction.fit {
            let last = fit.inliers.last().map_or(&[][..], Vec::as_slice);
            let inliers = last.iter().filter(|x| **x).count();
            lines.push((
                "off a rigid motion".to_owned(),
                format!("{:.1} mm rms", 1e3 * fit.worst_rms_m()),
                ink,
            ));
            lines.push(("points that follow it".to_owned(), format!("{inliers} of {}", last.len()), ink));
        }
        for verdict in &prediction.verdicts {
            let score = verdict.score.map(|s| format!(" {s:.2}")).unwrap_or_default();
            let why = if verdict.reason.is_empty() { String::new() } else { format!(": {}", verdict.reason) };
            let word = if verdict.accepted { "accepts" } else { "rejects" };
            let text = format!("{word}{score}{why}");
            lines.push((verdict.judge.clone(), text, look::verdict(verdict.accepted)));
        }
    }
    lines
}

/// With a capital letter.
pub(crate) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
