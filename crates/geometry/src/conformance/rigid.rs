//! Rigid fits.

use nalgebra::Point3;

use super::{Case, Outcome, Run, coordinates, indices, marks, matrix, outputs, rotation, text, turn};
use crate::plan::{chained_motions, flow_to_ee_chunk};
use crate::rigid::{
    FlowFitOptions, RansacOptions, WeightOptions, fit_rigid, fit_rigid_with, fit_similarity,
    mean_pair_distance_change, ransac_rigid_from, rigid_projection, rotation_error_deg, trimmed_rigid,
};
use crate::{Flow3d, Frame};

pub(super) fn function(name: &str) -> Option<Run> {
    Some(match name {
        "kabsch" => kabsch,
        "kabsch_weighted" => weighted,
        "umeyama" => umeyama,
        "rigid_from_flow_trimmed" => trimmed,
        "ransac_rigid" => ransac,
        "flow_to_ee_chunk" => chunk,
        "rigid_projection" => projection,
        "rigidity" => rigidity,
        "rotation_error" => rotation_error,
        _ => return None,
    })
}

fn kabsch(case: &Case) -> Outcome {
    let fit = fit_rigid(&case.points("src")?, &case.points("dst")?, None).map_err(text)?;
    let q = fit.pose.rotation;
    let sign = if q.w < 0.0 { -1.0 } else { 1.0 };
    Ok(outputs([
        ("R", turn(&q)),
        ("t", fit.pose.translation.vector.as_slice().to_vec()),
        ("rms", vec![fit.rms_m]),
        ("singular_values", fit.singular_values.to_vec()),
        ("det_sign", vec![if fit.reflected { -1.0 } else { 1.0 }]),
        ("quat_wxyz", [q.w, q.i, q.j, q.k].map(|x| sign * x).to_vec()),
    ]))
}

fn weighted(case: &Case) -> Outcome {
    let (shape, _) = case.tensor::<3>("src")?;
    let (source, target) = (case.points("src")?, case.points("dst")?);
    let weights = case.numbers("weights")?;
    let options = WeightOptions {
        threshold: case.param("weight_threshold")?,
        centroid_eps: case.param("centroid_eps")?,
    };
    let (mut r, mut t, mut rms) = (Vec::new(), Vec::new(), Vec::new());
    let n = shape[1].max(1);
    for ((a, b), w) in source.chunks(n).zip(target.chunks(n)).zip(weights.chunks(n)) {
        let fit = fit_rigid_with(a, b, Some(w), options).map_err(text)?;
        r.extend(turn(&fit.pose.rotation));
        t.extend_from_slice(fit.pose.translation.vector.as_slice());
        rms.push(fit.rms_m);
    }
    Ok(outputs([("R", r), ("t", t), ("rms", rms)]))
}

fn umeyama(case: &Case) -> Outcome {
    let (source, target) = (case.points("src")?, case.points("dst")?);
    if !case.param::<Option<bool>>("with_scale")?.unwrap_or(true) {
        return kabsch(case).map(|mut found| {
            found.insert("scale".to_owned(), vec![1.0]);
            found
        });
    }
    let fit = fit_similarity(&source, &target, None).map_err(text)?;
    Ok(outputs([
        ("R", turn(&fit.motion.isometry.rotation)),
        ("t", fit.motion.isometry.translation.vector.as_slice().to_vec()),
        ("scale", vec![fit.motion.scaling()]),
        ("rms", vec![fit.rms_m]),
    ]))
}

fn trimmed(case: &Case) -> Outcome {
    let limits = [case.param("low")?, case.param("high")?];
    let found = trimmed_rigid(&case.points("first")?, &case.points("last")?, limits).map_err(text)?;
    Ok(outputs([
        ("kept", indices(&found.kept)),
        ("p_low", vec![found.limits_m[0]]),
        ("p_high", vec![found.limits_m[1]]),
        ("R", turn(&found.fit.pose.rotation)),
        ("t", found.fit.pose.translation.vector.as_slice().to_vec()),
    ]))
}

fn ransac(case: &Case) -> Outcome {
    let (source, target) = (case.points("src")?, case.points("dst")?);
    let triples: Vec<[usize; 3]> =
        case.rows::<3>("triples")?.into_iter().map(|t| t.map(|i| i as usize)).collect();
    let options = RansacOptions {
        threshold_m: case.param("threshold")?,
        refits: case.param("refits")?,
        min_area_m2: case.param("min_area")?,
        hypotheses: triples.len(),
    };
    let found = ransac_rigid_from(&source, &target, None, &triples, &options).map_err(text)?;
    Ok(outputs([
        ("best_triple", vec![found.best.map_or(-1.0, |i| i as f64)]),
        ("inliers", marks(found.inliers)),
        ("inlier_counts", indices(&found.inlier_counts)),
        ("R", turn(&found.fit.pose.rotation)),
        ("t", found.fit.pose.translation.vector.as_slice().to_vec()),
        ("rms", vec![found.fit.rms_m]),
    ]))
}

/// A flow without visibilities, everything seen.
fn flow(shape: [usize; 3], positions: Vec<Point3<f64>>) -> Result<Flow3d, String> {
    let seen = vec![1.0; positions.len()];
    Flow3d::new(Frame::World, shape[1], positions, seen).map_err(text)
}

fn chunk(case: &Case) -> Outcome {
    let (shape, _) = case.tensor::<3>("flow")?;
    let flow = flow(shape, case.points("flow")?)?;
    let hand = case.pose("ee_pose0")?;
    let options = FlowFitOptions { ransac: None, ..FlowFitOptions::default() };
    let direct = flow_to_ee_chunk(&flow, &hand, &options).map_err(text)?;
    let motions = chained_motions(&flow).map_err(text)?;
    let held: Vec<_> = motions.chained.iter().map(|motion| motion * hand).collect();
    let all = |poses: &[nalgebra::Isometry3<f64>]| poses.iter().flat_map(matrix).collect();
    Ok(outputs([
        ("step_transforms", all(&motions.steps)),
        ("chained", all(&motions.chained)),
        ("direct", all(&direct.fit.poses)),
        ("ee_poses_direct", all(&direct.poses)),
        ("ee_poses_chained", all(&held)),
    ]))
}

fn projection(case: &Case) -> Outcome {
    let (first, predicted) = (case.points("first")?, case.points("predicted")?);
    let weights = case.numbers("weights")?;
    let n = first.len().max(1);
    let mut projected = Vec::new();
    for (later, w) in predicted.chunks(n).zip(weights.chunks(n)) {
        projected.extend(coordinates(&rigid_projection(&first, later, Some(w)).map_err(text)?.0));
    }
    Ok(outputs([("projected", projected)]))
}

fn rigidity(case: &Case) -> Outcome {
    let (first, later) = (case.points("first")?, case.points("later")?);
    let (mut rms, mut change) = (Vec::new(), Vec::new());
    for later in later.chunks(first.len().max(1)) {
        rms.push(fit_rigid(&first, later, None).map_err(text)?.rms_m);
        change.push(mean_pair_distance_change(&first, later).map_err(text)?);
    }
    Ok(outputs([("kabsch_rms", rms), ("mean_abs_pair_distance_change", change)]))
}

fn rotation_error(case: &Case) -> Outcome {
    let (a, b) = (case.rows::<9>("Ra")?, case.rows::<9>("Rb")?);
    let degrees = a.iter().zip(&b).map(|(a, b)| rotation_error_deg(&rotation(a), &rotation(b)));
    Ok(outputs([("degrees", degrees.collect())]))
}
