//! Line charts as SVG: several series, Wilson bands, legend; for reports and for pictures in the docs.

use crate::error::{Error, Result};
use crate::stats::Tally;
use crate::theme::{self, Rgb};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::{Deserialize, Serialize};

/// One chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chart {
    /// Heading; also its name in errors.
    pub title: String,
    /// Quantity and unit of the x axis.
    pub x_label: String,
    /// Quantity and unit of the y axis.
    pub y_label: String,
    /// Scale of the y axis.
    pub y_axis: YAxis,
    /// Lines, drawn in order.
    pub series: Vec<Series>,
    /// Width and height in pixels (user units of the SVG).
    pub size: (u32, u32),
}

/// Scale of a chart's y axis.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YAxis {
    /// From the data, with a little room.
    #[default]
    Auto,
    /// From the data, zero included.
    FromZero,
    /// 0 to 1 written as 0% to 100%.
    Percent,
}

/// One line of a chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name in the legend; empty for none.
    pub name: String,
    /// Points from left to right; those that are not finite are left out.
    pub points: Vec<Point>,
    /// Dashed, for references and controls.
    #[serde(default)]
    pub dashed: bool,
    /// Place in the palette; by default the position of the series.
    #[serde(default)]
    pub color: Option<usize>,
}

/// One point of a line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Position.
    pub x: f64,
    /// Value.
    pub y: f64,
    /// Lower and upper end of its interval.
    #[serde(default)]
    pub band: Option<(f64, f64)>,
}

/// Where legends begin, pixels.
const LEGEND_LEFT: i32 = 18;

impl Chart {
    /// A chart of 640 x 320 pixels without lines yet.
    #[must_use]
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Self {
        let [title, x_label, y_label] = [title, x_label, y_label].map(String::from);
        Self { title, x_label, y_label, y_axis: YAxis::Auto, series: Vec::new(), size: (640, 320) }
    }

    /// With this y axis.
    #[must_use]
    pub fn y_axis(mut self, y_axis: YAxis) -> Self {
        self.y_axis = y_axis;
        self
    }

    /// With this width and height in pixels.
    #[must_use]
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = (width, height);
        self
    }

    /// With one more line.
    #[must_use]
    pub fn line(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Whether there is anything to draw.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| s.finite().next().is_none())
    }

    /// A stand-alone SVG document on white.
    ///
    /// # Errors
    /// [`Error::Chart`] if the size is too small to draw in.
    pub fn to_svg(&self) -> Result<String> {
        self.draw(Some(theme::PAPER), true)
    }

    /// An SVG element for a page: no ground, no title (the page has its own heading), and text and grid in the
    /// CSS variables `--ink`, `--muted` and `--grid`, so that it fits light and dark pages.
    ///
    /// # Errors
    /// As [`Chart::to_svg`].
    pub fn to_inline_svg(&self) -> Result<String> {
        // Pages show charts about this wide; drawn for it, text keeps its size.
        let (width, height) = self.size;
        let inline = Self { size: (520, (520 * height / width.max(1)).max(270)), ..self.clone() };
        let mut svg = inline.draw(None, false)?;
        for (color, variable) in
            [(theme::INK, "var(--ink)"), (theme::MUTED, "var(--muted)"), (theme::GRID, "var(--grid)")]
        {
            svg = svg.replace(&theme::hex(color), variable);
        }
        Ok(svg)
    }

    fn draw(&self, ground: Option<Rgb>, with_title: bool) -> Result<String> {
        let (width, height) = self.size;
        let fail = |reason: String| Error::Chart { chart: self.title.clone(), reason };
        if width < 160 || height < 120 {
            return Err(fail(format!("{width}x{height} pixels are too few, at least 160x120")));
        }
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, self.size).into_drawing_area();
            self.draw_on(&root, ground, with_title).map_err(|e| fail(e.to_string()))?;
            root.present().map_err(|e| fail(e.to_string()))?;
        }
        // Scales with its place in a page, and speaks its title to screen readers.
        let open = format!("<svg width=\"{width}\" height=\"{height}\"");
        let label = escape(&self.title);
        Ok(svg.replacen(&open, &format!("{open} role=\"img\" aria-label=\"{label}\""), 1))
    }

    fn draw_on<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        ground: Option<Rgb>,
        with_title: bool,
    ) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let (ink, muted, grid) = (rgb(theme::INK), rgb(theme::MUTED), rgb(theme::GRID));
        let anchored = |style: TextStyle<'static>, h, v| style.pos(Pos::new(h, v));
        if let Some(ground) = ground {
            root.fill(&rgb(ground))?;
        }
        let mut top = 8;
        if with_title {
            let style = text(16.0, ink, FontStyle::Bold);
            root.draw_text(&self.title, &anchored(style, HPos::Left, VPos::Top), (16, top + 4))?;
            top += 30;
        }
        if self.series.iter().any(|s| !s.name.is_empty()) {
            top += self.draw_legend(root, top)?;
        }

        let (x_range, y_range) = self.ranges();
        let percent = self.y_axis == YAxis::Percent;
        let label = text(12.0, muted, FontStyle::Normal);
        let mut chart = ChartBuilder::on(root)
            .margin_top(top)
            .margin_right(20)
            .margin_left(8)
            .margin_bottom(4)
            .x_label_area_size(38)
            .y_label_area_size(62)
            .build_cartesian_2d(x_range, y_range.clone())?;
        let y_format = |y: &f64| if percent { format!("{:.0}%", 100.0 * y) } else { short(*y, &y_range) };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(grid.stroke_width(1))
            .light_line_style(TRANSPARENT)
            .axis_style(grid.stroke_width(1))
            .set_all_tick_mark_size(3)
            .x_labels(7)
            .y_labels(6)
            .x_label_formatter(&|x| short(*x, &(0.0..10.0)))
            .y_label_formatter(&y_format)
            .label_style(label.clone())
            .axis_desc_style(label)
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .draw()?;

        for (i, series) in self.series.iter().enumerate() {
            let color = rgb(series.rgb(i));
            for run in series.bands() {
                let lower = run.iter().map(|&(x, lo, _)| (x, lo));
                let upper = run.iter().rev().map(|&(x, _, hi)| (x, hi));
                let outline: Vec<(f64, f64)> = lower.chain(upper).collect();
                chart.draw_series([Polygon::new(outline, color.mix(0.16).filled())])?;
            }
        }
        for (i, series) in self.series.iter().enumerate() {
            let color = rgb(series.rgb(i));
            let points: Vec<(f64, f64)> = series.finite().map(|p| (p.x, p.y)).collect();
            if series.dashed {
                chart.draw_series(DashedLineSeries::new(points.clone(), 6, 4, color.stroke_width(2)))?;
            } else {
                chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
            }
            // Few points were measured one by one (evaluations): show where.
            if points.len() <= 24 && !series.dashed {
                let radius = if points.len() == 1 { 4 } else { 3 };
                chart.draw_series(points.into_iter().map(|p| Circle::new(p, radius, color.filled())))?;
            }
        }
        Ok(())
    }

    /// Gives its height in pixels.
    fn draw_legend<DB: DrawingBackend>(
        &self,
        root: &DrawingArea<DB, Shift>,
        mut top: i32,
    ) -> std::result::Result<i32, DrawingAreaErrorKind<DB::ErrorType>> {
        const ROW: i32 = 20;
        let (mut x, above) = (LEGEND_LEFT, top);
        for (i, series) in self.series.iter().enumerate().filter(|(_, s)| !s.name.is_empty()) {
            let color = rgb(series.rgb(i));
            // No font is measured here: 6.6 px is a wide guess for a letter of 12 px.
            let width = 22 + (6.6 * series.name.chars().count() as f64) as i32;
            if x > LEGEND_LEFT && x + width > self.size.0 as i32 {
                (x, top) = (LEGEND_LEFT, top + ROW);
            }
            let y = top + 8;
            if series.dashed {
                for dash in [0, 10] {
                    root.draw(&PathElement::new([(x + dash, y), (x + dash + 6, y)], color.stroke_width(3)))?;
                }
            } else {
                root.draw(&PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)))?;
            }
            let style =
                text(12.0, rgb(theme::INK), FontStyle::Normal).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw_text(&series.name, &style, (x + 22, y))?;
            x += width + 18;
        }
        Ok(top + ROW + 4 - above)
    }

    fn ranges(&self) -> (std::ops::Range<f64>, std::ops::Range<f64>) {
        let points = || self.series.iter().flat_map(Series::finite);
        let x = span(points().map(|p| p.x));
        let ends = |p: &Point| p.band.map_or([p.y; 3], |(lo, hi)| [p.y, lo, hi]);
        let y = span(points().flat_map(ends).filter(|y| y.is_finite()));
        let x = if x.start == x.end { x.start - 0.5..x.end + 0.5 } else { x };
        let y = match self.y_axis {
            // The line's own width must fit at 0% and 100%.
            YAxis::Percent => -0.005..1.01,
            YAxis::FromZero => padded(y.start.min(0.0)..y.end.max(0.0), false),
            YAxis::Auto => padded(y, true),
        };
        (x, y)
    }
}

impl Series {
    /// A solid line through `(x, y)` points.
    #[must_use]
    pub fn new(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().map(|(x, y)| Point { x, y, band: None }).collect();
        Self { name: name.into(), points, dashed: false, color: None }
    }

    /// A line of success rates with their 95% Wilson intervals as a band.
    #[must_use]
    pub fn rates(name: &str, tallies: impl IntoIterator<Item = (f64, Tally)>) -> Self {
        let point = |(x, tally): (f64, Tally)| Point { x, y: tally.rate(), band: Some(tally.interval()) };
        Self {
            name: name.into(),
            points: tallies.into_iter().map(point).collect(),
            dashed: false,
            color: None,
        }
    }

    /// Dashed instead of solid.
    #[must_use]
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }

    /// In the palette's colour `i`.
    #[must_use]
    pub fn color(mut self, i: usize) -> Self {
        self.color = Some(i);
        self
    }

    fn rgb(&self, position: usize) -> Rgb {
        theme::series(self.color.unwrap_or(position))
    }

    fn finite(&self) -> impl Iterator<Item = &Point> {
        self.points.iter().filter(|p| p.x.is_finite() && p.y.is_finite())
    }

    /// Runs of neighbouring points with a band, as `(x, low, high)`.
    fn bands(&self) -> Vec<Vec<(f64, f64, f64)>> {
        let mut runs = vec![Vec::new()];
        for p in self.finite() {
            match (p.band, runs.last_mut()) {
                (Some((lo, hi)), Some(run)) if lo.is_finite() && hi.is_finite() => run.push((p.x, lo, hi)),
                _ => runs.push(Vec::new()),
            }
        }
        runs.retain(|run| run.len() > 1);
        runs
    }
}

fn rgb([r, g, b]: Rgb) -> RGBColor {
    RGBColor(r, g, b)
}

fn text(size: f64, color: RGBColor, style: FontStyle) -> TextStyle<'static> {
    let color = color.to_backend_color();
    // The backend writes a font size of `size / 1.24`.
    TextStyle { color, ..TextStyle::from(("sans-serif", 1.24 * size, style).into_font()) }
}

fn span(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (lo, hi) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    if lo <= hi { lo..hi } else { 0.0..1.0 }
}

fn padded(range: std::ops::Range<f64>, below: bool) -> std::ops::Range<f64> {
    let room = match range.end - range.start {
        0.0 => 0.5 * range.end.abs().max(1e-3),
        width => 0.06 * width,
    };
    let start = if below || range.start < 0.0 { range.start - room } else { range.start };
    start..range.end + room
}

/// A tick label: as many digits as the range needs, no trailing zeros, powers for the very small and large.
fn short(value: f64, range: &std::ops::Range<f64>) -> String {
    let width = (range.end - range.start).abs();
    if value.abs() < 1e-9 * width.max(1e-300) {
        return "0".into();
    }
    if value.abs() >= 1e6 || value.abs() < 1e-3 {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let digits = (2.0 - width.log10().floor()).clamp(0.0, 6.0) as usize;
    let fixed = format!("{value:.digits$}");
    if fixed.contains('.') { fixed.trim_end_matches('0').trim_end_matches('.').into() } else { fixed }
}

/// Text for an XML attribute.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
