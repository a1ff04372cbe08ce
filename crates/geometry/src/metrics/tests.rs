use nalgebra::{Isometry3, Point3, Vector3};
use proptest::prelude::*;

use super::*;
use crate::{Error, Flow3d, Frame};

fn flow(frames: usize, n: usize, numbers: &[f64]) -> Flow3d {
    let at = |k: usize| numbers[k % numbers.len()];
    let points =
        (0..frames * n).map(|k| Point3::new(at(3 * k), at(3 * k + 1), at(3 * k + 2) + 1.0)).collect();
    let visibility = (0..frames * n).map(|k| if at(7 * k + 1) > 0.0 { 1.0 } else { 0.0 }).collect();
    Flow3d::new(Frame::Camera, n, points, visibility).unwrap()
}

proptest! {
    #[test]
    fn scores_lie_between_0_and_1_and_the_truth_has_no_error(
        a in prop::collection::vec(-0.1..0.1f64, 50..80), b in prop::collection::vec(-0.1..0.1f64, 50..80),
        common in prop::array::uniform6(-1.0..1.0f64),
    ) {
        let (truth, other) = (flow(4, 9, &a), flow(4, 9, &b));
        let report = evaluate(&[other.clone(), truth.clone()], &truth).unwrap();
        for score in [report.aj_3d, report.points_within, report.occlusion_accuracy] {
            prop_assert!((0.0..=1.0).contains(&score), "{report:?}");
        }
        prop_assert!(report.min_ade_m <= report.ade_m && report.min_ade_m == 0.0 && report.fde_m >= 0.0);
        let exact = evaluate(std::slice::from_ref(&truth), &truth).unwrap();
        prop_assert_eq!((exact.ade_m, exact.fde_m, exact.occlusion_accuracy), (0.0, 0.0, 1.0));
        // Nothing depends on where the world's origin is.
        let [x, y, z, r, p, w] = common;
        let motion = Isometry3::new(Vector3::new(x, y, z), Vector3::new(r, p, w));
        let moved = evaluate(
            &[other.transformed(Frame::World, &motion), truth.transformed(Frame::World, &motion)],
            &truth.transformed(Frame::World, &motion),
        ).unwrap();
        for (a, b) in [(report.ade_m, moved.ade_m), (report.rigid_rms_m, moved.rigid_rms_m), (report.aj_3d, moved.aj_3d)] {
            prop_assert!((a - b).abs() < 1e-9, "{report:?} {moved:?}");
        }
    }

    #[test]
    fn scaled_tracks_score_as_the_truth_where_scale_is_taken_out(scale in 0.3..3.0f64, a in prop::collection::vec(0.5..1.5f64, 60..61)) {
        let points: Vec<_> = a.chunks(3).map(|p| Point3::new(p[0] - 1.0, p[1] - 1.0, p[2])).collect();
        let scaled: Vec<_> = points.iter().map(|p| p * scale).collect();
        let hidden = vec![false; points.len()];
        let truth = Tracks { frames: 5, points: &points, occluded: &hidden };
        let predicted = Tracks { points: &scaled, ..truth };
        let radii = Radii::Pixels { pixels: &[1.0, 4.0], fx: 250.0, fy: 240.0 };
        let queries = [0.0, 1.0, 2.0, 3.6];
        for scaling in [
            TrackScaling::Median, TrackScaling::Mean, TrackScaling::MedianOnQueries, TrackScaling::PerTrajectory,
            TrackScaling::Reproduce2d, TrackScaling::LocalNeighborhood { radius_m: 0.05 },
        ] {
            let score = tapvid_3d(&truth, &predicted, Some(&queries), scaling, radii).unwrap();
            prop_assert!((score.average_jaccard - 1.0).abs() < 1e-9, "{scaling:?} {score:?}");
        }
    }
}

#[test]
fn a_known_shift_gives_known_numbers() {
    let object = [Point3::origin(), Point3::new(0.1, 0.0, 0.0), Point3::new(0.0, 0.1, 0.02)];
    let poses: Vec<_> = (0..3).map(|t| Isometry3::translation(0.1 * f64::from(t), 0.0, 0.0)).collect();
    let truth = Flow3d::rigid(Frame::World, &object, &poses, vec![1.0; 9]).unwrap();
    let shifted: Vec<_> =
        (0..3).map(|t| Isometry3::translation(0.1 * f64::from(t), 0.015 * f64::from(t), 0.0)).collect();
    let guess = Flow3d::rigid(Frame::World, &object, &shifted, vec![0.9; 9]).unwrap();
    let report = evaluate(&[guess], &truth).unwrap();
    let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
    assert!(
        near(report.ade_m, 0.0225) && near(report.fde_m, 0.03) && near(report.static_fde_m, 0.2),
        "{report:?}"
    );
    assert!(near(report.translation_m, 0.03) && report.rotation_deg < 1e-6 && report.rigid_rms_m < 1e-12);
    // Within 2 cm in the second frame, 4 cm in both: (0 + 0 + 1/2 + 1 + 1) / 5 of points; Jaccard 1/3 at 2 cm.
    assert!(near(report.points_within, 0.5) && near(report.aj_3d, (1.0 / 3.0 + 2.0) / 5.0), "{report:?}");
    let summary = FlowSummary::of(&[report, report]).unwrap();
    assert!(near(summary.mean.ade_m, report.ade_m) && summary.scenes == 2 && FlowSummary::of(&[]).is_none());
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let (a, b) = (flow(3, 4, &[0.1, 0.2, 0.3]), flow(3, 5, &[0.1, 0.2, 0.3]));
    assert!(matches!(displacement(&a, &b), Err(Error::Length { .. })));
    assert!(matches!(
        displacement(&a, &a.transformed(Frame::World, &Isometry3::identity())),
        Err(Error::Frames { .. })
    ));
    assert!(matches!(displacement(&flow(1, 4, &[0.1]), &flow(1, 4, &[0.1])), Err(Error::Range { .. })));
    assert!(matches!(evaluate(&[], &a), Err(Error::Range { .. })));
    assert!(evaluate(&[flow(1, 4, &[0.1])], &flow(1, 4, &[0.1])).is_err());
    let (points, hidden) = ([Point3::origin(); 4], [false; 4]);
    let tracks = Tracks { frames: 2, points: &points, occluded: &hidden };
    let radii = Radii::Metres(&[0.1]);
    assert!(tapvid_3d(&tracks, &tracks, None, TrackScaling::PerTrajectory, radii).is_err());
    assert!(tapvid_3d(&tracks, &tracks, Some(&[0.0, 9.0]), TrackScaling::PerTrajectory, radii).is_err());
    assert!(tapvid_3d(&Tracks { frames: 0, ..tracks }, &tracks, None, TrackScaling::None, radii).is_err());
    assert!(
        tapvid_3d(&tracks, &Tracks { occluded: &hidden[1..], ..tracks }, None, TrackScaling::None, radii)
            .is_err()
    );
    // Nothing visible: no score, and no panic.
    let none = Tracks { occluded: &[true; 4], ..tracks };
    assert!(tapvid_3d(&none, &none, None, TrackScaling::Median, radii).unwrap().average_jaccard.is_nan());
}
