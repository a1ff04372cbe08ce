//! Official scores of grounding benchmarks.
//!
//! Mind what is averaged: ScreenSpot-Pro and OSWorld-G weight by samples, MMBench-GUI L2 averages two levels.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::metrics::share;
use crate::grounding::{RayRule, Rect, polygon_contains};

/// Verdict on one prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Correctness {
    /// A hit, or rightly no target.
    Correct,
    /// A miss.
    Wrong,
    /// No prediction that can be read.
    WrongFormat,
}

/// Whether a point in [0, 1] hits a box in pixels, with the box divided by the image size (ScreenSpot-Pro).
pub fn normalised_hit(bbox: [f64; 4], [width, height]: [f64; 2], point: Option<[f64; 2]>) -> Correctness {
    let [x1, y1, x2, y2] = bbox;
    let target = Rect { x1: x1 / width, y1: y1 / height, x2: x2 / width, y2: y2 / height };
    match point {
        None => Correctness::WrongFormat,
        Some(point) if target.contains(point) => Correctness::Correct,
        Some(_) => Correctness::Wrong,
    }
}

/// As [`normalised_hit`], with inverted corners put in order first (UI-Vision element grounding).
pub fn ui_vision_hit(bbox: [f64; 4], size: [f64; 2], point: Option<[f64; 2]>) -> Correctness {
    let Rect { x1, y1, x2, y2 } = Rect::corners(bbox).ordered();
    normalised_hit([x1, y1, x2, y2], size, point)
}

/// Verdict on a sample without a target: right when the model says so (ScreenSpot-Pro `gt_type` negative).
pub fn negative_hit(result: &str) -> Correctness {
    match result {
        "negative" => Correctness::Correct,
        "wrong_format" => Correctness::WrongFormat,
        _ => Correctness::Wrong,
    }
}

/// Accuracies of a set of samples; 0 of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ScreenSpotPro {
    /// Hits.
    pub num_correct_action: usize,
    /// Samples.
    pub num_total: usize,
    /// Samples without a readable prediction.
    pub wrong_format_num: usize,
    /// Hits over samples.
    pub action_acc: f64,
    /// The same over samples whose target is text.
    pub text_acc: f64,
    /// The same over icons.
    pub icon_acc: f64,
}

impl ScreenSpotPro {
    /// Over verdicts and the kind of each target, `text` or `icon`.
    pub fn of<'a>(samples: impl IntoIterator<Item = (Correctness, &'a str)>) -> Self {
        let mut out = Self::default();
        let mut by_kind: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (verdict, kind) in samples {
            let hit = usize::from(verdict == Correctness::Correct);
            out.num_total += 1;
            out.num_correct_action += hit;
            out.wrong_format_num += usize::from(verdict == Correctness::WrongFormat);
            let counts = by_kind.entry(kind).or_default();
            *counts = [counts[0] + hit, counts[1] + 1];
        }
        let of_kind = |kind| by_kind.get(kind).map_or(0.0, |&[hits, all]| share(hits, all));
        out.action_acc = share(out.num_correct_action, out.num_total);
        (out.text_acc, out.icon_acc) = (of_kind("text"), of_kind("icon"));
        out
    }
}

/// Overlap of a predicted layout box with the true one. The benchmark's own names are swapped and kept: its
/// "precision" divides by the TRUE area, its "recall" by the predicted one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayoutOverlap {
    /// Intersection over union.
    pub iou: f64,
    /// Intersection over the true area.
    pub precision: f64,
    /// Intersection over the predicted area.
    pub recall: f64,
}

/// Overlap; all 0 for a prediction that is missing or inverted.
pub fn layout_overlap(predicted: Option<Rect>, truth: Rect) -> LayoutOverlap {
    let over = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    match predicted {
        Some(p) if p.x1 < p.x2 && p.y1 < p.y2 => {
            let shared = p.intersection(&truth);
            LayoutOverlap {
                iou: over(shared, p.area() + truth.area() - shared),
                precision: over(shared, truth.area()),
                recall: over(shared, p.area()),
            }
        }
        _ => LayoutOverlap::default(),
    }
}

/// Predictions of one cell of MMBench-GUI L2: 1 a hit, 0 a miss, -1 not readable.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct MmbenchCell {
    /// `basic` or `advanced`.
    pub level: String,
    /// `win`, `web`, ...
    pub platform: String,
    /// `icon` or `text`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One per sample.
    pub hits: Vec<i64>,
}

/// Counts and accuracies (in percent) of a platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // the benchmark's own names
pub struct MmbenchPlatform {
    #[serde(rename = "Total num")]
    pub total: usize,
    #[serde(rename = "Icon num")]
    pub icons: usize,
    #[serde(rename = "Text num")]
    pub texts: usize,
    #[serde(rename = "Total accuracy")]
    pub accuracy: f64,
    #[serde(rename = "Icon accuracy")]
    pub icon_accuracy: f64,
    #[serde(rename = "Text accuracy")]
    pub text_accuracy: f64,
    #[serde(rename = "Correct num")]
    pub correct: usize,
    #[serde(rename = "Wrong num")]
    pub wrong: usize,
    #[serde(rename = "Error format num")]
    pub unreadable: usize,
}

/// Scores of MMBench-GUI L2, in percent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mmbench {
    /// By level, then platform.
    pub platforms: BTreeMap<String, BTreeMap<String, MmbenchPlatform>>,
    /// By level: the mean over platforms, weighted by samples.
    pub levels: BTreeMap<String, f64>,
    /// The plain mean of the levels.
    pub average: f64,
}

/// Scores of all cells.
pub fn mmbench(cells: &[MmbenchCell]) -> Mmbench {
    let mut grouped: BTreeMap<&str, BTreeMap<&str, Vec<&MmbenchCell>>> = BTreeMap::new();
    for cell in cells {
        grouped.entry(&cell.level).or_default().entry(&cell.platform).or_default().push(cell);
    }
    let percent = |part: usize, whole: usize| 100.0 * share(part, whole);
    let platform = |cells: &[&MmbenchCell]| {
        let count = |kind: Option<&str>, value: Option<i64>| {
            let of_kind = cells.iter().filter(|cell| kind.is_none_or(|kind| cell.kind == kind));
            of_kind.flat_map(|cell| &cell.hits).filter(|&&hit| value.is_none_or(|value| hit == value)).count()
        };
        let (icons, texts) = (count(Some("icon"), None), count(Some("text"), None));
        MmbenchPlatform {
            total: count(None, None),
            icons,
            texts,
            accuracy: percent(count(None, Some(1)), count(None, None)),
            icon_accuracy: percent(count(Some("icon"), Some(1)), icons),
            text_accuracy: percent(count(Some("text"), Some(1)), texts),
            correct: count(None, Some(1)),
            wrong: count(None, Some(0)),
            unreadable: count(None, Some(-1)),
        }
    };
    let mut out = Mmbench::default();
    for (level, platforms) in grouped {
        let scores: BTreeMap<String, MmbenchPlatform> =
            platforms.iter().map(|(name, cells)| (name.to_string(), platform(cells))).collect();
        let sum = |of: fn(&MmbenchPlatform) -> usize| scores.values().map(of).sum::<usize>();
        out.levels.insert(level.to_string(), percent(sum(|p| p.correct), sum(|p| p.total)));
        out.platforms.insert(level.to_string(), scores);
    }
    out.average = out.levels.values().sum::<f64>() / out.levels.len().max(1) as f64;
    out
}

/// A sample of OSWorld-G.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OsworldTarget {
    /// `bbox` (x, y, width, height), `polygon` (x1, y1, x2, y2, ...) or `refusal`.
    pub box_type: String,
    /// Pixels.
    pub box_coordinates: Vec<f64>,
    /// Width and height in pixels.
    pub image_size: [f64; 2],
}

/// The point that a response names: its first two numbers, or the centre of its first four. Numbers in [0, 1] are
/// fractions of the image. `None` without two numbers.
pub fn named_point(response: &str, [width, height]: [f64; 2]) -> Option<[f64; 2]> {
    let numbers = numbers_in(response);
    let [x, y] = match numbers[..] {
        [x1, y1, x2, y2, ..] => [(x1 + x2) / 2.0, (y1 + y2) / 2.0],
        [x, y, ..] => [x, y],
        _ => return None,
    };
    let fractions = numbers.iter().take(4).all(|n| (0.0..=1.0).contains(n));
    Some(if fractions { [x * width, y * height] } else { [x, y] })
}

/// Numbers in a text, in order.
fn numbers_in(text: &str) -> Vec<f64> {
    let mut numbers = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let mut end = at + digits(&rest[at..]);
        if let Some(fraction) = rest[end..].strip_prefix('.') {
            end += 1 + digits(fraction);
        }
        let start = if rest[..at].ends_with('-') { at - 1 } else { at };
        numbers.extend(rest[start..end].parse::<f64>());
        rest = &rest[end..];
    }
    numbers
}

/// Whether a response is right on OSWorld-G. A refusal is right when both of its coordinates are negative.
pub fn osworld_hit(target: &OsworldTarget, response: &str) -> bool {
    let Some(point) = named_point(response, target.image_size) else { return false };
    match (target.box_type.as_str(), &target.box_coordinates[..]) {
        ("refusal", _) => point[0] < 0.0 && point[1] < 0.0,
        ("bbox", &[x, y, width, height]) => Rect::sized([x, y, width, height]).contains(point),
        ("polygon", flat) => {
            let corners: Vec<[f64; 2]> = flat.chunks_exact(2).map(|c| [c[0], c[1]]).collect();
            polygon_contains(&corners, point, RayRule::LeftOfCrossing)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_prose() {
        let size = [200.0, 100.0];
        assert_eq!(named_point("click at x=-3.5, y = 7", size), Some([-3.5, 7.0]));
        assert_eq!(named_point("[0.5, 0.25]", size), Some([100.0, 25.0]));
        assert_eq!(named_point("[10, 20, 30, 40]", size), Some([20.0, 30.0]));
        assert_eq!(named_point("only 7.", size), None);
    }

    #[test]
    fn nothing_scores_nothing() {
        assert_eq!(ScreenSpotPro::of([]), ScreenSpotPro::default());
        assert_eq!(mmbench(&[]).average, 0.0);
    }
}
