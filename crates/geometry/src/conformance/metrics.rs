//! Metrics of flows and tracks.

use nalgebra::Point3;

use super::{Case, Numbers, Outcome, Run, outputs, text};
use crate::metrics::{
    Displacement, Queries2d, Radii, TapVid, TrackScaling, Tracks, displacement, tapvid_2d, tapvid_3d,
};
use crate::{Flow3d, Frame};

pub(super) fn function(name: &str) -> Option<Run> {
    Some(match name {
        "ade_fde" => ade_fde,
        "tapvid2d_metrics" => in_pixels,
        "tapvid3d_metrics" => in_space,
        _ => return None,
    })
}

/// Radii of the benchmark, pixels.
const PIXELS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];

fn ade_fde(case: &Case) -> Outcome {
    let ([scenes, q, m, t, _], _) = case.tensor::<5>("pred_bqmt3")?;
    let (predicted, truth) = (case.points("pred_bqmt3")?, case.points("gt_bqt3")?);
    let visibility = case.numbers("visibility_bqt")?;
    if scenes * q * m * t == 0 || truth.len() != scenes * q * t || visibility.len() != truth.len() {
        return Err("the inputs have no shapes that fit".into());
    }
    // The present is no part of the case: a frame in which all is equal goes before the others.
    let flow = |at: &dyn Fn(usize, usize) -> Point3<f64>, scene: usize| {
        let frames = |i: usize| (0..q).map(move |p| (i, p));
        let positions =
            (0..=t).flat_map(frames).map(|(i, p)| if i == 0 { Point3::origin() } else { at(p, i - 1) });
        let seen = |(i, p): (usize, usize)| {
            if i == 0 { 1.0 } else { visibility[(scene * q + p) * t + i - 1] as f32 }
        };
        let seen = (0..=t).flat_map(frames).map(seen).collect();
        Flow3d::new(Frame::World, q, positions.collect(), seen).map_err(text)
    };
    let (mut all, mut best_ade, mut best_fde, mut visible) = (Vec::new(), 0.0, 0.0, 0.0);
    for scene in 0..scenes {
        let expected = flow(&|p, i| truth[(scene * q + p) * t + i], scene)?;
        let mut errors: Vec<Displacement> = Vec::new();
        for sample in 0..m {
            let guess = flow(&|p, i| predicted[((scene * q + p) * m + sample) * t + i], scene)?;
            errors.push(displacement(&guess, &expected).map_err(text)?);
        }
        let least = |of: fn(&Displacement) -> f64| errors.iter().map(of).fold(f64::INFINITY, f64::min);
        best_ade += least(|e| e.ade_m) / scenes as f64;
        best_fde += least(|e| e.fde_m) / scenes as f64;
        visible += errors[0].visible_ade_m / scenes as f64;
        all.extend(errors);
    }
    let mean = |of: fn(&Displacement) -> f64| vec![all.iter().map(of).sum::<f64>() / all.len() as f64];
    Ok(outputs([
        ("ade_mean_over_samples", mean(|e| e.ade_m)),
        ("fde_mean_over_samples", mean(|e| e.fde_m)),
        ("min_ade", vec![best_ade]),
        ("min_fde", vec![best_fde]),
        ("visible_ade_sample0", vec![visible]),
    ]))
}

/// Scores of several videos, side by side, under the benchmark's names.
fn named(scores: &[TapVid], radii: &[f64]) -> Numbers {
    let each = |of: &dyn Fn(&TapVid) -> f64| scores.iter().map(of).collect::<Vec<f64>>();
    let mut out = outputs([
        ("occlusion_accuracy", each(&|s| s.occlusion_accuracy)),
        ("average_jaccard", each(&|s| s.average_jaccard)),
        ("average_pts_within_thresh", each(&|s| s.average_points_within)),
    ]);
    for (i, radius) in radii.iter().enumerate() {
        out.insert(format!("pts_within_{radius}"), each(&|s| s.points_within[i]));
        out.insert(format!("jaccard_{radius}"), each(&|s| s.jaccard[i]));
    }
    out
}

fn in_pixels(case: &Case) -> Outcome {
    let mode = match case.param::<String>("query_mode")?.as_str() {
        "first" => Queries2d::First,
        "strided" => Queries2d::Strided,
        other => return Err(format!("`{other}` is no query mode")),
    };
    let ([videos, n, frames, _], _) = case.tensor::<4>("gt_tracks_bnt2")?;
    let (truth, predicted) = (case.rows::<2>("gt_tracks_bnt2")?, case.rows::<2>("pred_tracks_bnt2")?);
    let (hidden, guessed) = (case.flags("gt_occluded")?, case.flags("pred_occluded")?);
    let queries: Vec<f64> = case.rows::<3>("query_tyx")?.iter().map(|q| q[0]).collect();
    let size = n * frames;
    let fits = [predicted.len(), hidden.len(), guessed.len()].iter().all(|k| *k == videos * size);
    if !fits || queries.len() != videos * n {
        return Err("the inputs have no shapes that fit".into());
    }
    let mut scores = Vec::new();
    for video in 0..videos {
        let part = video * size..(video + 1) * size;
        let of = Tracks { frames, points: &truth[part.clone()], occluded: &hidden[part.clone()] };
        let guess = Tracks { frames, points: &predicted[part.clone()], occluded: &guessed[part] };
        let score = tapvid_2d(&of, &guess, &queries[video * n..(video + 1) * n], mode, &PIXELS);
        scores.push(score.map_err(text)?);
    }
    Ok(named(&scores, &PIXELS))
}

fn in_space(case: &Case) -> Outcome {
    let scaling = match case.param::<String>("scaling")?.as_str() {
        "none" => TrackScaling::None,
        "median" => TrackScaling::Median,
        "mean" => TrackScaling::Mean,
        "median_on_queries" => TrackScaling::MedianOnQueries,
        "per_trajectory" => TrackScaling::PerTrajectory,
        "reproduce_2d" => TrackScaling::Reproduce2d,
        "local_neighborhood" => TrackScaling::LocalNeighborhood {
            radius_m: if case.params.contains_key("local_neighborhood_thresh") {
                case.param("local_neighborhood_thresh")?
            } else {
                0.05
            },
        },
        other => return Err(format!("`{other}` is no scaling")),
    };
    let ([_, frames, _], _) = case.tensor::<3>("gt_tracks_nt3")?;
    let (truth, predicted) = (case.points("gt_tracks_nt3")?, case.points("pred_tracks_nt3")?);
    let (hidden, guessed) = (case.flags("gt_occluded")?, case.flags("pred_occluded")?);
    let queries: Vec<f64> = case.rows::<3>("query_tyx")?.iter().map(|q| q[0]).collect();
    let [fx, fy, ..] = case.one::<4>("fx_fy_cx_cy")?;
    let (pixels, metres) = (case.param_numbers("thresholds")?, case.param_numbers("fixed_metres")?);
    let radii = if case.param("use_fixed_metric_threshold")? {
        Radii::Metres(&metres)
    } else {
        Radii::Pixels { pixels: &pixels, fx, fy }
    };
    let of = Tracks { frames, points: &truth, occluded: &hidden };
    let guess = Tracks { frames, points: &predicted, occluded: &guessed };
    let score = tapvid_3d(&of, &guess, Some(&queries), scaling, radii).map_err(text)?;
    Ok(named(&[score], &pixels))
}
