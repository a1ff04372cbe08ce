use nalgebra::Vector3;
use proptest::prelude::*;

use super::*;
use crate::{Flow3d, Frame};

fn pose() -> impl Strategy<Value = Isometry3<f64>> {
    (prop::array::uniform3(-1.0..1.0f64), prop::array::uniform3(-2.0..2.0f64))
        .prop_map(|(t, r)| Isometry3::new(Vector3::from(t), Vector3::from(r)))
}

fn cloud(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Point3<f64>>> {
    prop::collection::vec(prop::array::uniform3(-0.1..0.1f64).prop_map(|p| Point3::from(Vector3::from(p))), n)
}

fn near(a: &Isometry3<f64>, b: &Isometry3<f64>, eps: f64) -> bool {
    (a.translation.vector - b.translation.vector).norm() < eps && a.rotation.angle_to(&b.rotation) < eps
}

proptest! {
    #[test]
    fn a_motion_is_found_again(points in cloud(4..40), motion in pose()) {
        let moved: Vec<_> = points.iter().map(|p| motion * p).collect();
        let fit = fit_rigid(&points, &moved, None).unwrap();
        prop_assume!(fit.singular_values[1] > 1e-5 * fit.singular_values[0]);
        prop_assert!(near(&fit.pose, &motion, 1e-8) && fit.rms_m < 1e-9 && !fit.degenerate, "{fit:?}");
        let similar = fit_similarity(&points, &moved, None).unwrap();
        prop_assert!((similar.motion.scaling() - 1.0).abs() < 1e-8 && !similar.degenerate);
    }

    #[test]
    fn the_fit_moves_with_both_clouds(points in cloud(5..20), noise in cloud(20..21), motion in pose(), common in pose()) {
        let target: Vec<_> = points.iter().zip(&noise).map(|(p, e)| motion * p + e.coords * 0.05).collect();
        let moved = |all: &[Point3<f64>]| all.iter().map(|p| common * p).collect::<Vec<_>>();
        let here = fit_rigid(&points, &target, None).unwrap();
        let there = fit_rigid(&moved(&points), &moved(&target), None).unwrap();
        prop_assume!(here.singular_values[1] > 1e-4 * here.singular_values[0]);
        prop_assert!((here.rms_m - there.rms_m).abs() < 1e-9);
        prop_assert!(near(&(common * here.pose * common.inverse()), &there.pose, 1e-6));
        // No motion nearby is better.
        let cost = |pose: &Isometry3<f64>| -> f64 {
            points.iter().zip(&target).map(|(a, b)| (pose * a - b).norm_squared()).sum()
        };
        let nudge = Isometry3::new(Vector3::new(1e-4, 0.0, -1e-4), Vector3::new(1e-3, -1e-3, 1e-3));
        prop_assert!(cost(&here.pose) <= cost(&(here.pose * nudge)) + 1e-15);
    }

    #[test]
    fn whatever_comes_in_nothing_panics(
        a in prop::collection::vec(prop::array::uniform3(prop::num::f64::ANY), 0..6),
        b in prop::collection::vec(prop::array::uniform3(prop::num::f64::ANY), 0..6),
        w in prop::collection::vec(prop::num::f64::ANY, 0..6),
    ) {
        let points = |all: &[[f64; 3]]| all.iter().map(|p| Point3::from(Vector3::from(*p))).collect::<Vec<_>>();
        let (a, b) = (points(&a), points(&b));
        let _ = (fit_rigid(&a, &b, Some(&w)), fit_rigid(&a, &b, None), fit_similarity(&a, &b, None));
        let _ = (trimmed_rigid(&a, &b, [10.0, 90.0]), mean_pair_distance_change(&a, &b));
        let _ = (ransac_rigid(&a, &b, None, &RansacOptions::default(), 1), rigid_projection(&a, &b, Some(&w)));
    }
}

#[test]
fn outliers_do_not_bend_the_fit_and_the_seed_decides() {
    let motion = Isometry3::new(Vector3::new(0.1, -0.2, 0.3), Vector3::new(0.3, 0.5, -0.9));
    let at = |i: usize, k: usize| ((i * 37 + k * 101) % 97) as f64 / 970.0;
    let source: Vec<_> =
        (0..256).map(|i| Point3::new(at(i, 1), at(i * i, 2), at(i * 3 + i * i, 3))).collect();
    let mut target: Vec<_> = source.iter().map(|p| motion * p).collect();
    for i in (0..256).filter(|i| i % 5 < 2) {
        target[i] += Vector3::new(0.05 + at(i, 7), -at(i * i, 4), 0.03);
    }
    let options = RansacOptions::default();
    let fit = ransac_rigid(&source, &target, None, &options, 7).unwrap();
    assert!(near(&fit.fit.pose, &motion, 1e-9) && !fit.fit.degenerate, "{:?}", fit.fit);
    assert_eq!(fit.inliers.iter().filter(|x| **x).count(), (0..256).filter(|i| i % 5 >= 2).count());
    assert_eq!(fit, ransac_rigid(&source, &target, None, &options, 7).unwrap());
    assert!(!near(&fit_rigid(&source, &target, None).unwrap().pose, &motion, 1e-3));
    // The wrong ones have no weight: the plain fit is right, too.
    let weights: Vec<f64> = (0..256).map(|i| if i % 5 < 2 { 0.0 } else { 0.7 }).collect();
    assert!(near(&fit_rigid(&source, &target, Some(&weights)).unwrap().pose, &motion, 1e-9));
}

#[test]
fn points_that_determine_no_rotation_are_flagged() {
    let line: Vec<_> = (0..5).map(|i| Point3::new(0.0, 0.01 * f64::from(i), 0.0)).collect();
    let moved: Vec<_> = line.iter().map(|p| p + Vector3::new(0.1, 0.0, 0.0)).collect();
    let shift = Isometry3::translation(0.1, 0.0, 0.0);
    for n in [1, 2, 5] {
        let fit = fit_rigid(&line[..n], &moved[..n], None).unwrap();
        assert!(fit.degenerate && near(&fit.pose, &shift, 1e-12), "{n}: {fit:?}");
        let robust = ransac_rigid(&line[..n], &moved[..n], None, &RansacOptions::default(), 0).unwrap();
        assert!(robust.fit.degenerate && robust.best.is_none() && near(&robust.fit.pose, &shift, 1e-12));
        assert!(fit_similarity(&line[..n], &moved[..n], None).unwrap().degenerate);
    }
    let fit = fit_rigid(&line, &moved, Some(&[0.0; 5])).unwrap();
    assert!(fit.degenerate && near(&fit.pose, &shift, 1e-12));
    let same = [Point3::new(1.0, 2.0, 3.0); 4];
    assert!(fit_rigid(&same, &same, None).unwrap().degenerate);
    let nan = [Point3::new(f64::NAN, 0.0, 0.0)];
    assert_eq!(fit_rigid(&nan, &nan, None), Err(Error::NotFinite { what: "source points", index: 0 }));
    assert!(matches!(fit_rigid(&[], &[], None), Err(Error::Range { .. })));
    assert!(matches!(fit_rigid(&line, &moved[..2], None), Err(Error::Length { .. })));
    assert!(matches!(fit_rigid(&line, &moved, Some(&[-1.0; 5])), Err(Error::Range { .. })));
}

#[test]
fn a_frame_without_visible_points_gets_its_pose_from_its_neighbours() {
    let object: Vec<_> = (0..10)
        .map(|i| Point3::new(0.01 * f64::from(i), 0.02 * f64::from(i % 3), 0.01 * f64::from(i % 4)))
        .collect();
    let poses: Vec<_> = (0..5)
        .map(|t| Isometry3::new(Vector3::x() * 0.1 * f64::from(t), Vector3::z() * 0.2 * f64::from(t)))
        .collect();
    let mut visibility = vec![1.0; 50];
    visibility[20..30].fill(0.0);
    visibility[40..50].fill(0.2);
    let flow = Flow3d::rigid(Frame::World, &object, &poses, visibility).unwrap();
    let options = FlowFitOptions { weights: FlowWeights::Visibility, ..FlowFitOptions::default() };
    let fit = fit_flow(&flow, &options).unwrap();
    assert_eq!(fit.interpolated, [false, false, true, false, true]);
    assert!(near(&fit.poses[1], &poses[1], 1e-9) && near(&fit.poses[2], &poses[2], 1e-9));
    assert!(near(&fit.poses[4], &poses[3], 1e-9) && fit.doubtful() && fit.inlier_share(4) == 0.0);
    let all = fit_flow(&flow, &FlowFitOptions::default()).unwrap();
    assert!(near(&all.last(), &poses[4], 1e-9) && all.worst_rms_m() < 1e-9 && !all.doubtful());
    assert!(rigidity_rms(&flow).unwrap().iter().all(|rms| *rms < 1e-9));
    // A flow without a future: nothing moves.
    let present = Flow3d::rigid(Frame::World, &object, &poses[..1], vec![0.0; 10]).unwrap();
    let fit = fit_flow(&present, &options).unwrap();
    assert!(fit.poses == [Isometry3::identity()] && fit.last() == Isometry3::identity() && !fit.doubtful());
}

/// A first hypothesis without any inlier must not end the search.
#[test]
fn noise_and_many_outliers_are_survived_from_every_seed() {
    let motion = Isometry3::new(Vector3::new(0.1, 0.2, 0.3), Vector3::new(0.4, -0.5, 0.6));
    let at = |i: usize, k: usize| (((i * 7919 + k * 104_729) % 2003) as f64 / 2003.0 - 0.5) * 2.0;
    let point = |i: usize, k: usize, size: f64| Vector3::new(at(i, k), at(i, k + 1), at(i, k + 2)) * size;
    let source: Vec<_> = (0..256).map(|i| Point3::from(point(i * i, 1, 0.1))).collect();
    let spoilt = |i: usize| i % 10 < 4;
    let moved = |i: usize| {
        motion * source[i] + point(i, 5, 0.002) + point(i * i, 9, if spoilt(i) { 0.1 } else { 0.0 })
    };
    let target: Vec<_> = (0..256).map(moved).collect();
    for seed in 0..100 {
        let fit = ransac_rigid(&source, &target, None, &RansacOptions::default(), seed).unwrap();
        let kept = (0..256).filter(|&i| !spoilt(i) && fit.inliers[i]).count();
        let good = (0..256).filter(|&i| !spoilt(i)).count();
        assert!(
            kept == good && near(&fit.fit.pose, &motion, 0.01),
            "{seed}: {kept} of {good}, {:?}",
            fit.fit
        );
    }
    // No three points that agree.
    let nonsense: Vec<_> = (0..256).map(|i| Point3::from(point(i * i * i, 3, 5.0))).collect();
    let none = ransac_rigid(&source, &nonsense, None, &RansacOptions::default(), 0).unwrap();
    assert!(none.best.is_none() && none.fit.degenerate && none.fit.rms_m > 0.1);
}
