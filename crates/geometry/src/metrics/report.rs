//! All numbers about the predictions of one scene, and their means over scenes.

use nalgebra::Point3;
use serde::{Deserialize, Serialize};

use super::displacement::{centre, same_shape};
use super::{Radii, TapVid, TrackScaling, Tracks, displacement, diversity_m, pose_error, tapvid_3d};
use crate::rigid::{fit_rigid, rigidity_rms};
use crate::{Error, Flow3d, Result};

/// Radii of 3D-AJ for tabletops, metres.
pub const AJ_RADII_M: [f64; 5] = [0.005, 0.01, 0.02, 0.04, 0.08];

/// Predictions of one scene against the truth. Means are over samples; `min` is the best sample (of the whole scene, never
/// per point). Metres and degrees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowReport {
    /// Samples compared.
    pub samples: usize,
    /// Mean displacement error.
    pub ade_m: f64,
    /// Mean error of the last frame.
    pub fde_m: f64,
    /// The best sample's mean displacement error.
    pub min_ade_m: f64,
    /// The best sample's error of the last frame.
    pub min_fde_m: f64,
    /// Mean displacement error over visible points.
    pub visible_ade_m: f64,
    /// What predicting no motion would give.
    pub static_ade_m: f64,
    /// What predicting no motion would give in the last frame.
    pub static_fde_m: f64,
    /// Average 3D Jaccard with [`AJ_RADII_M`], 0 to 1; without visible truth 0.
    pub aj_3d: f64,
    /// Share of visible points within the radii, mean over them; without visible truth 0.
    pub points_within: f64,
    /// Share of right occlusion flags.
    pub occlusion_accuracy: f64,
    /// Mean over frames of the rms that the best rigid motion leaves.
    pub rigid_rms_m: f64,
    /// The same of the worst frame.
    pub worst_rigid_rms_m: f64,
    /// Angle between the implied and the true motion to the last frame, degrees.
    pub rotation_deg: f64,
    /// Distance between where the implied and the true motion put the object's centre.
    pub translation_m: f64,
    /// Mean distance of the last frames of pairs of samples; 0 for one sample.
    pub diversity_m: f64,
}

/// Compares all samples of one scene with the truth.
///
/// # Errors
/// No samples; another frame, number of frames or points than the truth; no frame after the present.
pub fn evaluate(samples: &[Flow3d], truth: &Flow3d) -> Result<FlowReport> {
    if samples.is_empty() {
        return Err(Error::Range { what: "samples", value: 0.0, range: "at least 1" });
    }
    let end = truth.frames() - 1;
    let still = still(truth)?;
    let of_nothing = displacement(&still, truth)?;
    let implied = |flow: &Flow3d| fit_rigid(truth.at(0), flow.at(end), None);
    let (true_motion, middle) = (implied(truth)?.pose, centre(truth.at(0)));
    let mut out = FlowReport {
        samples: samples.len(),
        ade_m: 0.0,
        fde_m: 0.0,
        min_ade_m: f64::INFINITY,
        min_fde_m: f64::INFINITY,
        visible_ade_m: 0.0,
        static_ade_m: of_nothing.ade_m,
        static_fde_m: of_nothing.fde_m,
        aj_3d: 0.0,
        points_within: 0.0,
        occlusion_accuracy: 0.0,
        rigid_rms_m: 0.0,
        worst_rigid_rms_m: 0.0,
        rotation_deg: 0.0,
        translation_m: 0.0,
        diversity_m: diversity_m(samples)?,
    };
    let share = 1.0 / samples.len() as f64;
    for sample in samples {
        let error = displacement(sample, truth)?;
        let tap = flow_tapvid(sample, truth)?;
        let rms = rigidity_rms(sample)?;
        let pose = pose_error(&implied(sample)?.pose, &true_motion, &middle);
        out.min_ade_m = out.min_ade_m.min(error.ade_m);
        out.min_fde_m = out.min_fde_m.min(error.fde_m);
        let known = |x: f64| if x.is_nan() { 0.0 } else { x };
        for (sum, x) in [
            (&mut out.ade_m, error.ade_m),
            (&mut out.fde_m, error.fde_m),
            (&mut out.visible_ade_m, error.visible_ade_m),
            (&mut out.aj_3d, known(tap.average_jaccard)),
            (&mut out.points_within, known(tap.average_points_within)),
            (&mut out.occlusion_accuracy, tap.occlusion_accuracy),
            (&mut out.rigid_rms_m, rms[1..].iter().sum::<f64>() / end as f64),
            (&mut out.worst_rigid_rms_m, rms.iter().copied().fold(0.0, f64::max)),
            (&mut out.rotation_deg, pose.rotation_deg),
            (&mut out.translation_m, pose.translation_m),
        ] {
            *sum += share * x;
        }
    }
    Ok(out)
}

/// TAPVid-3D of a flow with [`AJ_RADII_M`] and no rescaling. Frame 0 does not count; a point is predicted to be visible
/// where its probability is above one half.
///
/// # Errors
/// Another frame, number of frames or points than the truth; no frame after the present.
pub fn flow_tapvid(predicted: &Flow3d, truth: &Flow3d) -> Result<TapVid> {
    same_shape(predicted, truth)?;
    let (frames, n) = (truth.frames() - 1, truth.points());
    let tracks = |flow: &Flow3d| -> (Vec<Point3<f64>>, Vec<bool>) {
        (0..n)
            .flat_map(|i| (1..=frames).map(move |t| (i, t)))
            .map(|(i, t)| (flow.at(t)[i], flow.visibility_at(t)[i] <= 0.5))
            .unzip()
    };
    let ((p, hidden), (q, truly)) = (tracks(predicted), tracks(truth));
    tapvid_3d(
        &Tracks { frames, points: &q, occluded: &truly },
        &Tracks { frames, points: &p, occluded: &hidden },
        None,
        TrackScaling::None,
        Radii::Metres(&AJ_RADII_M),
    )
}

/// The flow that stays where it is.
fn still(truth: &Flow3d) -> Result<Flow3d> {
    let positions = (0..truth.frames()).flat_map(|_| truth.at(0).iter().copied()).collect();
    let visibility = (0..truth.frames()).flat_map(|t| truth.visibility_at(t).iter().copied()).collect();
    Flow3d::new(truth.frame(), truth.points(), positions, visibility)
}

/// Means over scenes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowSummary {
    /// Scenes.
    pub scenes: usize,
    /// Means of all numbers (`samples` is the first scene's).
    pub mean: FlowReport,
    /// Median over scenes of the angle between implied and true motion, degrees: a few flips do not move it.
    pub median_rotation_deg: f64,
    /// ADE over the ADE of predicting no motion.
    pub ade_ratio: f64,
}

impl FlowSummary {
    /// Of at least one scene; `None` without any.
    #[must_use]
    pub fn of(reports: &[FlowReport]) -> Option<Self> {
        let first = *reports.first()?;
        let mean = |get: fn(&FlowReport) -> f64| reports.iter().map(get).sum::<f64>() / reports.len() as f64;
        let mut turns: Vec<f64> = reports.iter().map(|r| r.rotation_deg).collect();
        turns.sort_by(f64::total_cmp);
        let n = turns.len();
        let mean = FlowReport {
            samples: first.samples,
            ade_m: mean(|r| r.ade_m),
            fde_m: mean(|r| r.fde_m),
            min_ade_m: mean(|r| r.min_ade_m),
            min_fde_m: mean(|r| r.min_fde_m),
            visible_ade_m: mean(|r| r.visible_ade_m),
            static_ade_m: mean(|r| r.static_ade_m),
            static_fde_m: mean(|r| r.static_fde_m),
            aj_3d: mean(|r| r.aj_3d),
            points_within: mean(|r| r.points_within),
            occlusion_accuracy: mean(|r| r.occlusion_accuracy),
            rigid_rms_m: mean(|r| r.rigid_rms_m),
            worst_rigid_rms_m: mean(|r| r.worst_rigid_rms_m),
            rotation_deg: mean(|r| r.rotation_deg),
            translation_m: mean(|r| r.translation_m),
            diversity_m: mean(|r| r.diversity_m),
        };
        Some(Self {
            scenes: n,
            mean,
            median_rotation_deg: 0.5 * (turns[(n - 1) / 2] + turns[n / 2]),
            ade_ratio: mean.ade_m / mean.static_ade_m.max(1e-12),
        })
    }
}
