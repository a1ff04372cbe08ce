//! Several tasks on one sheet, for a README or a paper.

use image::RgbImage;

use super::look::RADIUS;
use super::page::{AZIMUTH, capitalised};
use super::relief::Relief;
use super::space::{self, SpaceOptions};
use super::{FlowScene, PREDICTED, look, picture};
use crate::draw::{Align, Canvas, Stroke, Weight, fit_picture, shortened, text_width};
use crate::error::Result;
use crate::theme::{self, PAPER};

/// Side of a picture, gap, room for the names of the rows and for the texts above and below, pixels.
const SIDE: u32 = 320;
const GAP: u32 = 16;
const LEFT: u32 = 52;
const ABOVE: u32 = 84;
const BELOW: u32 = 92;

/// A column per scene: the instruction; the predicted flow; the true flow; the judged final picture, or the scene from
/// beside with the object where the flow leaves it; the verdict and the error.
///
/// # Errors
/// [`crate::Error::Shape`] if the parts of a scene do not fit together.
pub fn sheet(scenes: &[FlowScene]) -> Result<RgbImage> {
    for scene in scenes {
        scene.validate()?;
    }
    let columns = scenes.len().max(1) as u32;
    let has_pictures = scenes.iter().all(|s| s.shown().is_some_and(|p| p.final_picture.is_some()));
    let rows = ["predicted", "true", "from beside", "final state"];
    let rows = if has_pictures { &rows[..] } else { &rows[..3] };
    let width = LEFT + columns * (SIDE + GAP) + GAP;
    let height = ABOVE + rows.len() as u32 * (SIDE + GAP) + BELOW;
    let mut canvas = Canvas::new(width, height, PAPER);
    for (row, name) in rows.iter().enumerate() {
        let y = ABOVE + row as u32 * (SIDE + GAP);
        canvas.text_upwards([34.0, (y + SIDE / 2) as f32], name, 20.0, theme::MUTED);
    }
    for (column, scene) in scenes.iter().enumerate() {
        let x = LEFT + column as u32 * (SIDE + GAP);
        let last = (scene.frames() - 1) as f64;
        let middle = (x + SIDE / 2) as f32;
        title(&mut canvas, [middle, ABOVE as f32 - 20.0], &capitalised(&scene.instruction));
        let shown = scene.shown();
        let predicted = picture::draw(scene, shown.map(|p| &p.flow), PREDICTED, last, SIDE);
        let truth = picture::draw(scene, scene.truth.as_ref(), 1.0, last, SIDE);
        let options = SpaceOptions { size: [SIDE, SIDE], until: last, moving: false, azimuth: AZIMUTH };
        let beside = space::draw(scene, Relief::of(scene).as_ref(), options);
        let judged = shown.and_then(|p| p.final_picture.as_ref()).filter(|p| p.width() > 0 && p.height() > 0);
        let pictures = [Some(predicted), Some(truth), Some(beside), judged.map(|p| judged_cut(scene, p))];
        for (row, picture) in pictures.iter().take(rows.len()).enumerate() {
            if let Some(picture) = picture {
                canvas.picture([x, ABOVE + row as u32 * (SIDE + GAP)], picture, RADIUS);
            }
        }
        verdict(&mut canvas, scene, [middle, (height - BELOW) as f32]);
    }
    Ok(canvas.into_image())
}

/// The same part of the judged picture as of the camera's, if it is one of the same size.
fn judged_cut(scene: &FlowScene, picture: &RgbImage) -> RgbImage {
    if picture.dimensions() == scene.picture.dimensions() {
        picture::Window::of(scene).cut(picture, SIDE)
    } else {
        fit_picture(picture, SIDE, SIDE)
    }
}

/// On one line where it fits, else on two; `y` is the lower base line.
fn title(canvas: &mut Canvas, [middle, y]: [f32; 2], text: &str) {
    const SIZE: f32 = 20.0;
    let width = |text: &str| text_width(text, SIZE, Weight::SemiBold);
    let room = SIDE as f32;
    let mut lines = vec![text.to_owned()];
    if width(text) > room {
        // The break that makes the longer of both lines shortest.
        let breaks = text.match_indices(' ').map(|(i, _)| (&text[..i], &text[i + 1..]));
        let best = breaks.min_by(|a, b| width(a.0).max(width(a.1)).total_cmp(&width(b.0).max(width(b.1))));
        if let Some((first, second)) = best {
            lines = vec![first.to_owned(), second.to_owned()];
        }
    }
    for (i, line) in lines.iter().rev().enumerate() {
        let line = shortened(line, room, SIZE, Weight::SemiBold);
        let at = [middle, y - 26.0 * i as f32];
        canvas.text(at, &line, SIZE, Weight::SemiBold, theme::INK, Align::Centre);
    }
}

fn verdict(canvas: &mut Canvas, scene: &FlowScene, [middle, y]: [f32; 2]) {
    let shown = scene.shown();
    let said = scene.success.or(shown.and_then(super::Prediction::accepted));
    if let Some(good) = said {
        let text = match (scene.success, good) {
            (Some(_), true) => "done by the arm",
            (Some(_), false) => "not done",
            (None, true) => "accepted",
            (None, false) => "rejected",
        };
        let width = text_width(text, 19.0, Weight::SemiBold) + 28.0;
        let left = middle - 0.5 * width;
        let color = look::verdict(good);
        canvas.mark([left + 8.0, y + 20.0], 15.0, good, Stroke::new(color, 3.0));
        canvas.text([left + 28.0, y + 27.0], text, 19.0, Weight::SemiBold, color, Align::Left);
    }
    if let Some(errors) = scene.errors(scene.chosen.unwrap_or(0)) {
        let text = format!("mean error {:.1} cm", errors.ade_cm());
        let y = if said.is_some() { y + 56.0 } else { y + 27.0 };
        canvas.text([middle, y], &text, 17.0, Weight::Regular, theme::MUTED, Align::Centre);
    }
}
