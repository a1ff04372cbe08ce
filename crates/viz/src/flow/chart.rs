//! The thin panel of errors over time.

use super::FlowErrors;
use crate::draw::{Align, Canvas, Stroke, Weight};
use crate::theme;

/// Where a panel lies on its page: left, top, width, height in pixels.
pub(crate) type Area = [f32; 4];

/// Draws the errors of the shown prediction with the band from a tenth to nine tenths of the points; other predictions
/// as thin lines. `until` (in frames) ends the lines.
pub(crate) fn draw(
    canvas: &mut Canvas,
    area: Area,
    shown: &FlowErrors,
    others: &[FlowErrors],
    until: Option<f64>,
) {
    let [x, y, w, h] = area;
    let (left, right, top, low) = (x + 64.0, x + w - 26.0, y + 26.0, y + h - 40.0);
    let frames = shown.mean_cm.len().max(2) - 1;
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let own = most(&shown.p90_cm).max(most(&shown.mean_cm));
    // Samples that went far astray must not press the shown one flat: their lines leave the panel.
    let highest = others.iter().map(|e| most(&e.mean_cm)).fold(own, f64::max).min(2.5 * own);
    let (step, end) = ticks(highest);
    let at = |t: f64, cm: f64| {
        let px = left + (right - left) * (t / frames as f64) as f32;
        [px, low - (low - top) * (cm / end).min(1.0) as f32]
    };
    let mut tick = 0.0;
    while tick <= end + 1e-9 {
        let [_, py] = at(0.0, tick);
        canvas.polyline(&[[left, py], [right, py]], Stroke::new(theme::GRID, 1.0));
        canvas.text(
            [left - 10.0, py + 5.0],
            &label(tick, step),
            14.0,
            Weight::Regular,
            theme::MUTED,
            Align::Right,
        );
        tick += step;
    }
    let every = frames.div_ceil(10).max(1);
    for t in (0..=frames).step_by(every) {
        let [px, _] = at(t as f64, 0.0);
        let text = if t == 0 { "now".to_owned() } else { t.to_string() };
        canvas.text([px, low + 22.0], &text, 14.0, Weight::Regular, theme::MUTED, Align::Centre);
    }
    let cut = until.unwrap_or(frames as f64);
    let line = |values: &[f64]| -> Vec<[f32; 2]> { cut_at(values, cut).map(|(t, v)| at(t, v)).collect() };
    let color = theme::series(0);
    let mut band = line(&shown.p90_cm);
    band.extend(line(&shown.p10_cm).into_iter().rev());
    canvas.polygon(&band, color, 0.16);
    for other in others {
        let inside: Vec<f64> = other.mean_cm.iter().copied().take_while(|cm| *cm <= end).collect();
        canvas.polyline(&line(&inside), Stroke::new(theme::MUTED, 1.2).alpha(0.55));
    }
    let mean = line(&shown.mean_cm);
    canvas.polyline(&mean, Stroke::new(color, 3.0));
    if let Some(head) = mean.last() {
        canvas.dot(*head, 5.0, color, 1.0);
    }
}

/// The curve up to `time`, with the point at that time between frames.
fn cut_at(values: &[f64], time: f64) -> impl Iterator<Item = (f64, f64)> {
    let whole = values.iter().copied().enumerate().map(|(t, v)| (t as f64, v));
    let t = time.max(0.0) as usize;
    let between = (time.fract() > 1e-9).then_some(()).and_then(|()| {
        let (a, b) = (values.get(t)?, values.get(t + 1)?);
        Some((time, a + (b - a) * time.fract()))
    });
    whole.take_while(move |(t, _)| *t <= time).chain(between)
}

/// Distance of the ticks (1, 2 or 5 times a power of ten) and the end of the axis, for values from 0.
fn ticks(highest: f64) -> (f64, f64) {
    let highest = if highest.is_finite() && highest > 1e-6 { highest } else { 1.0 };
    let rough = highest / 3.0;
    let power = 10.0_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
    (step, step * (highest / step).ceil())
}

fn label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 4.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        for (highest, step, end) in [(2.9, 1.0, 3.0), (0.07, 0.05, 0.1), (13.0, 5.0, 15.0), (0.0, 0.5, 1.0)] {
            let got = ticks(highest);
            assert!((got.0 - step).abs() < 1e-9 && (got.1 - end).abs() < 1e-9, "{highest}: {got:?}");
        }
        assert_eq!((label(1.0, 1.0), label(0.05, 0.05)), ("1".into(), "0.05".into()));
    }

    #[test]
    fn a_cut_curve_ends_between_frames() {
        let cut: Vec<_> = cut_at(&[0.0, 1.0, 4.0], 1.5).collect();
        assert_eq!(cut, [(0.0, 0.0), (1.0, 1.0), (1.5, 2.5)]);
        assert_eq!(cut_at(&[0.0, 1.0], 1.0).count(), 2);
        assert_eq!(cut_at(&[], 3.0).count(), 0);
    }
}
