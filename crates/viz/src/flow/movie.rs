//! The flow over time, as a short film.

mod encode;

use std::path::Path;

use image::RgbImage;

use super::look::RADIUS;
use super::page::{AZIMUTH, cameras, capitalised};
use super::relief::Relief;
use super::space::{self, SpaceOptions};
use super::{FlowScene, picture};
use crate::draw::{Align, Canvas, Weight};
use crate::error::Result;
use crate::theme::{self, PAPER};

/// Look and speed of a film.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovieOptions {
    /// Pictures per second, 1 to 50.
    pub fps: u32,
    /// Seconds that the motion takes, above 0, at most 60.
    pub motion_s: f64,
    /// Seconds that the last picture stays, 0 to 10.
    pub hold_s: f64,
    /// Height of the pictures in the film; pixels, 64 to 1024.
    pub side: u32,
}

impl Default for MovieOptions {
    /// Three seconds of motion at 15 pictures per second, one second of rest, pictures of 320 pixels.
    fn default() -> Self {
        Self { fps: 15, motion_s: 3.0, hold_s: 1.0, side: 320 }
    }
}

/// Writes a film: both camera panels and the scene from beside, the object moving along with the flow. The ending of
/// `path` chooses the format: `.png` (animated PNG), `.gif`, or `.mp4` (by a program `ffmpeg` on PATH).
///
/// # Errors
/// [`crate::Error::Shape`] if the parts of the scene do not fit together or an option is out of its range,
/// [`crate::Error::Film`] for an unknown ending, where ffmpeg is missing, or if it fails; [`crate::Error::Create`] and
/// [`crate::Error::Write`] for the file.
pub fn movie(scene: &FlowScene, path: &Path, options: &MovieOptions) -> Result<()> {
    scene.validate()?;
    let format = encode::Format::of(path)?;
    let in_range = (1..=50).contains(&options.fps)
        && (options.motion_s > 0.0 && options.motion_s <= 60.0)
        && (0.0..=10.0).contains(&options.hold_s)
        && (64..=1024).contains(&options.side);
    if !in_range {
        return Err(crate::Error::Film {
            path: path.into(),
            reason: format!(
                "{options:?}: 1 to 50 pictures per second, up to 60 s, sides of 64 to 1024 pixels"
            ),
        });
    }
    let steps = (options.motion_s * f64::from(options.fps)).ceil().max(1.0) as usize;
    let last = (scene.frames() - 1) as f64;
    let relief = Relief::of(scene);
    let still = &|i: usize| draw(scene, relief.as_ref(), last * i as f64 / steps as f64, options.side);
    let mut film = encode::Film::start(path, format, still(0), &still(steps), options)?;
    let at_once = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for start in (1..=steps).step_by(at_once) {
        let stills: Vec<RgbImage> = std::thread::scope(|scope| {
            let range = start..(start + at_once).min(steps + 1);
            let threads: Vec<_> = range.map(|i| scope.spawn(move || still(i))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, RgbImage>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        stills.into_iter().try_for_each(|picture| film.add(picture))?;
    }
    film.finish()
}

/// One picture of the film at a time between frames.
fn draw(scene: &FlowScene, relief: Option<&Relief>, until: f64, side: u32) -> RgbImage {
    let (margin, gap, above) = (20, 12, 66);
    // Even sides: MP4 halves the resolution of colours.
    let view = [(side * 3 / 2) & !1, side];
    let width = (2 * margin + 2 * (side + gap) + view[0] + 1) & !1;
    let height = (above + 28 + side + margin + 1) & !1;
    let mut canvas = Canvas::new(width, height, PAPER);
    let title = capitalised(&scene.instruction);
    canvas.text_in(
        [margin as f32, 38.0],
        (width - 2 * margin) as f32,
        &title,
        24.0,
        Weight::SemiBold,
        theme::INK,
    );
    let top = above + 28;
    let caption = |canvas: &mut Canvas, x: u32, text: &str| {
        canvas.text([x as f32, top as f32 - 10.0], text, 15.0, Weight::SemiBold, theme::MUTED, Align::Left);
    };
    let mut x = margin;
    for (name, flow, share) in cameras(scene) {
        canvas.picture([x, top], &picture::draw(scene, flow, share, until, side), RADIUS);
        caption(&mut canvas, x, name);
        x += side + gap;
    }
    let options = SpaceOptions { size: view, until, moving: true, azimuth: AZIMUTH };
    canvas.picture([x, top], &space::draw(scene, relief, options), RADIUS);
    caption(&mut canvas, x, "from beside");
    canvas.into_image()
}
