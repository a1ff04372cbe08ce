//! Training curves as a drawing of lines. A time series view follows the active timeline, which is the frames of
//! the episodes; a drawing can stand beside an episode all the same, so that the first thing one sees has both.

use super::OrEncode;
use super::layout::Layout;
use crate::error::Result;
use crate::theme::{self, Rgb};
use rerun::{Color, LineStrip2D, LineStrips2D, Points2D, Radius, RecordingStream};
use serde::{Deserialize, Serialize};

/// Root entity of the drawing.
pub(super) const DRAWING: &str = "training";

/// Most points kept of a curve: the drawing is small.
const MAX_POINTS: usize = 128;
/// Plots in the drawing, at most.
const MAX_PLOTS: usize = 4;
const COLUMNS: usize = 2;
/// Size of a plot, and its place in the grid, in units of the drawing.
const PLOT: [f32; 2] = [100.0, 44.0];
const CELL: [f32; 2] = [112.0, 76.0];

/// What of the drawing to show, x and y, captions and a margin included.
pub(super) const BOUNDS: [[f64; 2]; 2] = [[-8.0, 220.0], [-34.0, 126.0]];

/// A curve thinned out evenly: means over `stride` neighbouring points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct History {
    stride: usize,
    /// Update and value; single precision keeps the saved layout small.
    points: Vec<[f32; 2]>,
    /// Sum of the points that do not make a mean yet, and how many.
    rest: [f64; 2],
    count: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { stride: 1, points: Vec::new(), rest: [0.0; 2], count: 0 }
    }
}

impl History {
    pub(super) fn push(&mut self, update: u64, value: f64) {
        // A resumed run does some updates again that were drawn before it was killed.
        if self.points.last().is_some_and(|p| p[0] >= update as f32) {
            self.points.retain(|p| p[0] < update as f32);
            (self.rest, self.count) = ([0.0; 2], 0);
        }
        self.rest = [self.rest[0] + update as f64, self.rest[1] + value];
        self.count += 1;
        if self.count < self.stride {
            return;
        }
        let n = std::mem::take(&mut self.count) as f64;
        self.points.push(std::mem::take(&mut self.rest).map(|sum| (sum / n) as f32));
        if self.points.len() >= MAX_POINTS {
            let halves = |pair: &[[f32; 2]]| [0, 1].map(|i| 0.5 * (pair[0][i] + pair[1][i]));
            self.points = self.points.chunks_exact(2).map(halves).collect();
            self.stride *= 2;
        }
    }
}

/// Draws the curves of the most important plots, over what was drawn before.
pub(super) fn draw(rec: &RecordingStream, layout: &Layout) -> Result<()> {
    let (mut strips, mut colors) = (Vec::new(), Vec::new());
    let (mut places, mut labels, mut inks) = (Vec::new(), Vec::new(), Vec::new());
    let plots = layout.plots();
    let drawn = plots.iter().filter(|(title, _)| layout.curves_of(title).next().is_some());
    for (i, (title, _)) in drawn.take(MAX_PLOTS).enumerate() {
        let at = [(i % COLUMNS) as f32 * CELL[0], (i / COLUMNS) as f32 * CELL[1]];
        let curves: Vec<(&str, &History)> = layout.curves_of(title).collect();
        let points = || curves.iter().flat_map(|(_, history)| &history.points);
        let x = span(points().map(|p| p[0]));
        let y = if title == "Success" { [0.0, 1.0] } else { span(points().map(|p| p[1])) };
        let place = |p: &[f32; 2]| {
            let share =
                |v: f32, [low, high]: [f32; 2]| if high > low { (v - low) / (high - low) } else { 0.5 };
            [at[0] + PLOT[0] * share(p[0], x), at[1] + PLOT[1] * (1.0 - share(p[1], y).clamp(0.0, 1.0))]
        };
        let [w, h] = PLOT;
        let frame = [[0.0, 0.0], [0.0, h], [w, h]].map(|[x, y]| [at[0] + x, at[1] + y]);
        strips.push(LineStrip2D::from_iter(frame));
        colors.push(theme::MUTED);
        for (k, (_, history)) in curves.iter().enumerate() {
            strips.push(LineStrip2D::from_iter(history.points.iter().map(place)));
            colors.push(theme::series(k));
        }
        places.push([at[0] + 0.5 * w, at[1] - 22.0]);
        labels.push(caption(title, &curves));
        inks.push([0xE6, 0xEA, 0xEF]);
    }
    let color = |[r, g, b]: Rgb| Color::from_rgb(r, g, b);
    let lines = LineStrips2D::new(strips)
        .with_colors(colors.into_iter().map(color))
        .with_radii([Radius::new_ui_points(1.2)]);
    let path = format!("{DRAWING}/curves");
    rec.log_static(path.as_str(), &lines).encode(&path)?;
    let texts = Points2D::new(places)
        .with_labels(labels)
        .with_colors(inks.into_iter().map(color))
        .with_radii([Radius::new_ui_points(0.0)])
        .with_show_labels(true);
    let path = format!("{DRAWING}/captions");
    rec.log_static(path.as_str(), &texts).encode(&path)
}

/// `Success 0.34 → 0.95`; of several curves, the one that the plot is named after, or the first.
fn caption(title: &str, curves: &[(&str, &History)]) -> String {
    let word = title.to_lowercase();
    let named = curves.iter().find(|(name, _)| name.split('/').any(|part| part == word));
    let ends = named.or(curves.first()).and_then(|(_, h)| Some((h.points.first()?, h.points.last()?)));
    ends.map_or(title.into(), |(first, last)| format!("{title} {} → {}", short(first[1]), short(last[1])))
}

fn short(x: f32) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if size >= 1000.0 => format!("{x:.0}"),
        size if size >= 0.01 => format!("{x:.2}"),
        _ => format!("{x:.0e}"),
    }
}

fn span(values: impl Iterator<Item = f32>) -> [f32; 2] {
    values.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_thinned_to_means() {
        let mut history = History::default();
        for update in 1..=1000 {
            history.push(update, 2.0 * update as f64);
        }
        assert!((60..MAX_POINTS).contains(&history.points.len()), "{}", history.points.len());
        assert!(history.points.iter().all(|p| (p[1] - 2.0 * p[0]).abs() < 1e-3));
        assert!(history.points[0][0] < 10.0 && history.points.last().is_some_and(|p| p[0] > 980.0));
        history.push(500, 0.0);
        assert!(history.points.iter().all(|p| p[0] < 500.0), "done again after a resume");
    }

    #[test]
    fn captions_say_where_it_went() {
        let mut history = History::default();
        history.push(1, 0.341);
        history.push(2, 0.95);
        assert_eq!(caption("Success", &[("success", &history)]), "Success 0.34 → 0.95");
        let other = History::default();
        let two = [("rl/progress", &other), ("rl/reward", &history)];
        assert_eq!(caption("Reward", &two), "Reward 0.34 → 0.95");
        assert_eq!(caption("KL", &[]), "KL");
    }
}
