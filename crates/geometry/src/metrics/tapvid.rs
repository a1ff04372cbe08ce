//! The metrics of TAP-Vid (arXiv 2211.03726) and TAPVid-3D (arXiv 2407.05921).

use nalgebra::Point3;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Tracks of points over frames, [points, frames], point by point.
#[derive(Clone, Copy, Debug)]
pub struct Tracks<'a, P> {
    /// Frames of each track.
    pub frames: usize,
    /// Positions.
    pub points: &'a [P],
    /// Whether the point is hidden.
    pub occluded: &'a [bool],
}

/// Scores between 0 and 1; NaN where there is nothing to count (no point is visible, say).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapVid {
    /// Share of right occlusion flags.
    pub occlusion_accuracy: f64,
    /// For each radius: share of the visible points that are nearer to the truth (whatever the predicted flag says).
    pub points_within: Vec<f64>,
    /// For each radius: TP / (visible + FP), where TP are visible in both and near, FP are predicted visible and hidden or
    /// not near.
    pub jaccard: Vec<f64>,
    /// Mean of `points_within`.
    pub average_points_within: f64,
    /// Mean of `jaccard`: the average Jaccard, AJ.
    pub average_jaccard: f64,
}

/// Which frames of a track count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries2d {
    /// Those after the query.
    First,
    /// All but the query's.
    Strided,
}

/// How far a point may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Radii<'a> {
    /// So many pixels, at the depth of the true point: k z / sqrt(fx fy).
    Pixels {
        /// k.
        pixels: &'a [f64],
        /// Focal length along u, pixels.
        fx: f64,
        /// Focal length along v, pixels.
        fy: f64,
    },
    /// The same everywhere, metres.
    Metres(&'a [f64]),
}

/// How predicted tracks of unknown scale are scaled to the truth first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrackScaling {
    /// Not at all: for metric predictions.
    None,
    /// By the ratio of the median distances from the camera, over what is visible in both.
    Median,
    /// As median, with means.
    Mean,
    /// As median, over the query frames only.
    MedianOnQueries,
    /// Each track by the ratio of the depths in its query frame.
    PerTrajectory,
    /// Each point by the ratio of the depths: only the direction is judged.
    Reproduce2d,
    /// As per trajectory, judged on all points within this radius of the true track, in metres.
    LocalNeighborhood {
        /// Usually 0.05.
        radius_m: f64,
    },
}

/// One decision: a point in a frame.
struct Entry {
    squared: f64,
    limit: f64,
    visible: bool,
    predicted: bool,
    weight: f64,
}

fn shape<P>(what: &'static str, tracks: &Tracks<P>, want: usize) -> Result<()> {
    let lengths = [tracks.points.len(), tracks.occluded.len()];
    match lengths.into_iter().find(|n| *n != want) {
        Some(got) => Err(Error::Length { what, got, want }),
        None => Ok(()),
    }
}

/// Number of tracks.
fn agree<P>(truth: &Tracks<P>, predicted: &Tracks<P>, queries: Option<&[f64]>) -> Result<usize> {
    if truth.frames == 0 || predicted.frames != truth.frames {
        return Err(Error::Length {
            what: "predicted frames",
            got: predicted.frames,
            want: truth.frames.max(1),
        });
    }
    let n = truth.points.len() / truth.frames;
    shape("true tracks", truth, n * truth.frames)?;
    shape("predicted tracks", predicted, n * truth.frames)?;
    match queries {
        Some(queries) if queries.len() != n => {
            Err(Error::Length { what: "queries", got: queries.len(), want: n })
        }
        _ => Ok(n),
    }
}

/// Frame of each query, rounded to the nearest, halves to even.
fn query_frames(queries: &[f64], frames: usize) -> Result<Vec<usize>> {
    let frame = |q: &f64| match q.round_ties_even() {
        t if t >= 0.0 && t < frames as f64 => Ok(t as usize),
        _ => Err(Error::Range { what: "query frame", value: *q, range: "one of the frames" }),
    };
    queries.iter().map(frame).collect()
}

fn scores(radii: usize, entries: &[Vec<Entry>]) -> TapVid {
    let first = entries.first().map_or(&[][..], Vec::as_slice);
    let total: f64 = first.iter().map(|e| e.weight).sum();
    let right: f64 = first.iter().filter(|e| e.visible == e.predicted).map(|e| e.weight).sum();
    let (mut points_within, mut jaccard) = (Vec::with_capacity(radii), Vec::with_capacity(radii));
    for entries in entries {
        let (mut within, mut visible, mut hits, mut wrong) = (0.0, 0.0, 0.0, 0.0);
        for e in entries {
            let near = e.squared < e.limit * e.limit;
            let count = |yes: bool| if yes { e.weight } else { 0.0 };
            visible += count(e.visible);
            within += count(near && e.visible);
            hits += count(near && e.visible && e.predicted);
            wrong += count(e.predicted && !(near && e.visible));
        }
        points_within.push(within / visible);
        jaccard.push(hits / (visible + wrong));
    }
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    let (average_points_within, average_jaccard) = (mean(&points_within), mean(&jaccard));
    TapVid {
        occlusion_accuracy: right / total,
        points_within,
        jaccard,
        average_points_within,
        average_jaccard,
    }
}

/// TAP-Vid in pixels: radii are 1, 2, 4, 8, 16 at 256x256 in the paper. `query_frames` holds one frame per track.
///
/// # Errors
/// Shapes that disagree, or a query outside the frames.
pub fn tapvid_2d(
    truth: &Tracks<[f64; 2]>,
    predicted: &Tracks<[f64; 2]>,
    queries: &[f64],
    mode: Queries2d,
    radii_px: &[f64],
) -> Result<TapVid> {
    let n = agree(truth, predicted, Some(queries))?;
    let (frames, queries) = (truth.frames, query_frames(queries, truth.frames)?);
    let counts = |i: usize, t: usize| match mode {
        Queries2d::First => t > queries[i],
        Queries2d::Strided => t != queries[i],
    };
    let entry = |i: usize, t: usize, limit: f64| {
        let k = i * frames + t;
        let ([u, v], [x, y]) = (predicted.points[k], truth.points[k]);
        let squared = (u - x) * (u - x) + (v - y) * (v - y);
        let (visible, seen) = (!truth.occluded[k], !predicted.occluded[k]);
        counts(i, t).then_some(Entry { squared, limit, visible, predicted: seen, weight: 1.0 })
    };
    let all = |limit: f64| (0..n).flat_map(move |i| (0..frames).map(move |t| (i, t, limit)));
    let entries: Vec<Vec<Entry>> =
        radii_px.iter().map(|r| all(*r).filter_map(|(i, t, limit)| entry(i, t, limit)).collect()).collect();
    Ok(scores(radii_px.len(), &entries))
}

/// TAPVid-3D, in the camera frame (z forward). All frames count, the query's too. `queries` holds one frame per track and
/// is needed by the scalings that look at it.
///
/// # Errors
/// Shapes that disagree, queries that are absent but needed, or one outside the frames.
pub fn tapvid_3d(
    truth: &Tracks<Point3<f64>>,
    predicted: &Tracks<Point3<f64>>,
    queries: Option<&[f64]>,
    scaling: TrackScaling,
    radii: Radii,
) -> Result<TapVid> {
    let n = agree(truth, predicted, queries)?;
    let frames = truth.frames;
    let of_query = || match queries {
        Some(queries) => query_frames(queries, frames),
        None => Err(Error::Length { what: "queries", got: 0, want: n }),
    };
    // The scale of each point.
    let scale: Vec<f64> = match scaling {
        TrackScaling::None => vec![1.0; n * frames],
        TrackScaling::Median => vec![norm_ratio(truth, predicted, median, |_, _| true); n * frames],
        TrackScaling::Mean => vec![norm_ratio(truth, predicted, mean, |_, _| true); n * frames],
        TrackScaling::MedianOnQueries => {
            let at = of_query()?;
            vec![norm_ratio(truth, predicted, median, |i, t| at[i] == t); n * frames]
        }
        TrackScaling::Reproduce2d => {
            truth.points.iter().zip(predicted.points).map(|(q, p)| q.z / p.z).collect()
        }
        TrackScaling::PerTrajectory | TrackScaling::LocalNeighborhood { .. } => {
            let depth = |points: &[Point3<f64>], k: usize| points[k].z.max(1e-12);
            let of = |(i, t): (usize, &usize)| {
                let k = i * frames + t;
                depth(truth.points, k) / depth(predicted.points, k)
            };
            let per_track: Vec<f64> = of_query()?.iter().enumerate().map(of).collect();
            (0..n * frames).map(|k| per_track[k / frames]).collect()
        }
    };
    let limit = |radius: f64, k: usize| match radii {
        Radii::Pixels { fx, fy, .. } => radius * truth.points[k].z / (fx * fy).sqrt(),
        Radii::Metres(_) => radius,
    };
    let entry = |radius: f64, k: usize, scale: f64, weight: f64| Entry {
        squared: (predicted.points[k] * scale - truth.points[k]).norm_squared(),
        limit: limit(radius, k),
        visible: !truth.occluded[k],
        predicted: !predicted.occluded[k],
        weight,
    };
    let radii = match radii {
        Radii::Pixels { pixels, .. } => pixels,
        Radii::Metres(metres) => metres,
    };
    let entries = |radius: &f64| -> Vec<Entry> {
        let TrackScaling::LocalNeighborhood { radius_m } = scaling else {
            return (0..n * frames).map(|k| entry(*radius, k, scale[k], 1.0)).collect();
        };
        let mut all = Vec::new();
        for i in 0..n {
            let near = |k: &usize| {
                let own = truth.points[i * frames + k % frames];
                (truth.points[*k] - own).norm_squared() < radius_m * radius_m
            };
            let near: Vec<usize> = (0..n * frames).filter(near).collect();
            let visible = |k: &&usize| !truth.occluded[**k];
            let own = (i * frames..(i + 1) * frames).collect::<Vec<_>>();
            // A track weighs as much as without its neighbours.
            let weight =
                own.iter().filter(visible).count() as f64 / near.iter().filter(visible).count().max(1) as f64;
            all.extend(near.iter().map(|&k| entry(*radius, k, scale[i * frames], weight)));
        }
        all
    };
    let entries: Vec<Vec<Entry>> = radii.iter().map(entries).collect();
    Ok(scores(radii.len(), &entries))
}

/// Ratio of the usual distances from the camera, over what is visible in both and chosen.
fn norm_ratio(
    truth: &Tracks<Point3<f64>>,
    predicted: &Tracks<Point3<f64>>,
    usual: fn(Vec<f64>) -> f64,
    chosen: impl Fn(usize, usize) -> bool,
) -> f64 {
    let seen = |k: &usize| {
        !truth.occluded[*k] && !predicted.occluded[*k] && chosen(k / truth.frames, k % truth.frames)
    };
    let norms = |points: &[Point3<f64>]| -> Vec<f64> {
        let norm = |k: usize| points[k].coords.norm_squared().max(1e-12).sqrt();
        (0..points.len()).filter(seen).map(norm).collect()
    };
    usual(norms(truth.points)) / usual(norms(predicted.points))
}

fn mean(all: Vec<f64>) -> f64 {
    all.iter().sum::<f64>() / all.len() as f64
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[n / 2],
        n => 0.5 * (all[n / 2 - 1] + all[n / 2]),
    }
}
