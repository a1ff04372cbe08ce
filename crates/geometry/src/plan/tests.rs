use nalgebra::{Isometry3, Point3, UnitQuaternion, Vector3};
use proptest::prelude::*;

use super::*;
use crate::pose::{PoseBounds, pose_distance};
use crate::rigid::FlowFitOptions;
use crate::sdf::SdfGrid;
use crate::solid::{Shape, Solid};
use crate::{Flow3d, Frame};

fn bounds() -> PoseBounds {
    PoseBounds::workspace([-0.6, -0.6, 0.0], [0.6, 0.6, 0.9]).unwrap()
}

fn object() -> Vec<Point3<f64>> {
    (0..8)
        .map(|i| {
            Point3::new(0.04 * f64::from(i % 2), 0.05 * f64::from(i / 2 % 2), 0.1 + 0.03 * f64::from(i / 4))
        })
        .collect()
}

fn hand() -> Isometry3<f64> {
    Isometry3::new(Vector3::new(0.1, -0.1, 0.4), Vector3::new(3.0, 0.1, 0.2))
}

fn pose() -> impl Strategy<Value = Isometry3<f64>> {
    (prop::array::uniform3(-0.2..0.2f64), prop::array::uniform3(-0.8..0.8f64)).prop_map(|(t, r)| {
        let turn = UnitQuaternion::from_scaled_axis(Vector3::from(r));
        Isometry3::from_parts((hand().translation.vector + Vector3::from(t)).into(), turn * hand().rotation)
    })
}

fn block() -> SdfGrid {
    let solid = Solid { shape: Shape::Box([0.08, 0.3, 0.15]), pose: Isometry3::translation(0.3, 0.0, 0.3) };
    SdfGrid::from_solids([-0.6, -0.6, 0.0], [0.6, 0.6, 0.9], [41, 41, 31], &[solid], -1.0).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_gradient_is_the_derivative_of_the_cost(at in pose(), goal in pose(), plain in any::<bool>(), axis in 0..6usize) {
        let (object, sdf) = (object(), block());
        let targets: Vec<_> = object.iter().map(|p| goal * p + Vector3::new(0.003, -0.002, 0.001)).collect();
        let problem = Subgoal {
            weights: SubgoalWeights::default(),
            norm: if plain { FlowNorm::Plain } else { FlowNorm::Squared },
            collision_points: &object,
            sdf: Some(&sdf),
            grasp_stage: true,
            ..Subgoal::flow_only(hand(), &object, &targets)
        };
        let (mut push, mut twist) = (Vector3::zeros(), Vector3::zeros());
        problem.smooth(&at, Some((&mut push, &mut twist)));
        let unit = Vector3::ith(axis % 3, 1e-6);
        let moved = |sign: f64| {
            if axis < 3 {
                Isometry3::from_parts((at.translation.vector + unit * sign).into(), at.rotation)
            } else {
                Isometry3::from_parts(at.translation, UnitQuaternion::from_scaled_axis(unit * sign) * at.rotation)
            }
        };
        let slope = (problem.terms(&moved(1.0)).total - problem.terms(&moved(-1.0)).total) / 2e-6;
        let exact = if axis < 3 { push[axis] } else { twist[axis - 3] };
        // Kinks of the distance grid may lie between the two poses.
        prop_assert!((slope - exact).abs() < 2e-2 * (1.0 + exact.abs()), "{slope} {exact}");
    }

    #[test]
    fn the_flow_alone_is_solved_exactly_and_nothing_is_cheaper(goal in pose(), noise in prop::array::uniform8(-0.004..0.004f64), probe in pose()) {
        let object = object();
        let targets: Vec<_> = object.iter().zip(noise).map(|(p, e)| goal * p + Vector3::new(e, -e, 0.5 * e)).collect();
        let problem = Subgoal::flow_only(hand(), &object, &targets);
        let solution = solve_subgoal(&problem, &SolveOptions::new(bounds())).unwrap();
        prop_assert!(solution.accepted && solution.solved == Solved::ClosedForm);
        prop_assert!(solution.terms.total <= problem.terms(&probe).total + 1e-12);
        // The local search, started elsewhere by a term of no weight, ends at the same cost.
        let almost = SubgoalWeights { init_pose: 1e-9, ..SubgoalWeights::flow_only() };
        let local = solve_subgoal(&Subgoal { weights: almost, ..problem }, &SolveOptions::new(bounds())).unwrap();
        prop_assert!(local.solved == Solved::Local && (local.terms.flow - solution.terms.flow).abs() < 1e-6);
    }

    #[test]
    fn local_search_improves_on_the_closed_form_and_keeps_the_limits(goal in pose()) {
        let (object, sdf) = (object(), block());
        let targets: Vec<_> = object.iter().map(|p| goal * p).collect();
        let problem = Subgoal {
            weights: SubgoalWeights::default(),
            collision_points: &object,
            sdf: Some(&sdf),
            ..Subgoal::flow_only(hand(), &object, &targets)
        };
        let down = ToolLimit { axis: Vector3::z_axis(), towards: -Vector3::z_axis(), max_angle_rad: 0.6 };
        let options = SolveOptions { tool: Some(down), samples: 0, ..SolveOptions::new(bounds()) };
        let free = solve_subgoal(&problem, &SolveOptions { tool: None, ..options }).unwrap();
        prop_assert!(free.terms.total <= problem.terms(&goal).total + 1e-6, "{free:?}");
        let limited = solve_subgoal(&problem, &options).unwrap();
        let angle = (limited.pose.rotation * down.axis).angle(&down.towards);
        prop_assert!(angle < 0.6 + 1e-3, "{angle}");
        // A limit cannot make anything cheaper, but for where a search stops: the distance to the start has a kink there,
        // at which one of the two may end early. (Among obstacles either search may find the better valley.)
        let smooth = Subgoal { sdf: None, collision_points: &[], ..problem };
        let free = solve_subgoal(&smooth, &SolveOptions { tool: None, ..options }).unwrap();
        let limited = solve_subgoal(&smooth, &options).unwrap();
        prop_assert!(limited.terms.total >= free.terms.total - 0.01 * (1.0 + free.terms.total), "{limited:?} {free:?}");
    }
}

#[test]
fn a_chunk_follows_the_flow_and_a_chain_of_steps_does_too() {
    let object: Vec<_> = object().iter().map(|p| hand() * p).collect();
    let motion =
        |t: usize| Isometry3::new(Vector3::new(0.0, 0.02, 0.03) * t as f64, Vector3::x() * 0.1 * t as f64);
    let poses: Vec<_> = (0..6).map(motion).collect();
    let flow = Flow3d::rigid(Frame::World, &object, &poses, vec![1.0; 48]).unwrap();
    let chunk = flow_to_ee_chunk(&flow, &hand(), &FlowFitOptions::default()).unwrap();
    let ChainedMotions { steps, chained } = chained_motions(&flow).unwrap();
    assert_eq!((chunk.poses.len(), steps.len(), chained.len()), (6, 5, 6));
    for t in 0..6 {
        for pose in [chunk.poses[t], chained[t] * hand()] {
            let (distance, angle) = pose_distance(&pose, &(poses[t] * hand()));
            assert!(distance < 1e-9 && angle < 1e-7, "{t}: {distance} {angle}");
        }
    }
    let local: Vec<_> = object.iter().map(|p| hand().inverse() * p).collect();
    let targets: Vec<Vec<_>> = (1..6).map(|t| flow.at(t).to_vec()).collect();
    let problem = Subgoal::flow_only(hand(), &local, &targets[0]);
    let solved = solve_chunk(&problem, &targets, &SolveOptions::new(bounds())).unwrap();
    for (solution, pose) in solved.iter().zip(&chunk.poses[1..]) {
        assert!(solution.accepted && pose_distance(&solution.pose, pose).0 < 1e-9);
    }
}

struct Near(f64);

impl Reach for Near {
    fn reach(&self, pose: &Isometry3<f64>) -> Reached {
        let success = pose.translation.vector.x < self.0;
        Reached { success, iterations: if success { 3 } else { 20 }, joints: vec![0.0; 2] }
    }
}

#[test]
fn what_the_arm_rejects_is_sampled_around_and_the_impossible_is_not_accepted() {
    let object = object();
    let goal = Isometry3::new(Vector3::new(0.3, 0.0, 0.5), Vector3::new(3.0, 0.0, 0.0));
    let targets: Vec<_> = object.iter().map(|p| goal * p).collect();
    let arm = Near(0.25);
    let problem = Subgoal {
        weights: SubgoalWeights::default(),
        reach: Some(&arm),
        reset_joints: &[0.1, 0.1],
        ..Subgoal::flow_only(hand(), &object, &targets)
    };
    let options = SolveOptions::new(bounds());
    let solution = solve_subgoal(&problem, &options).unwrap();
    assert!(solution.accepted && solution.solved == Solved::Sampled, "{solution:?}");
    assert!(solution.pose.translation.vector.x < 0.25);
    assert_eq!(solution, solve_subgoal(&problem, &options).unwrap());
    let never = Near(-9.0);
    let none = solve_subgoal(&Subgoal { reach: Some(&never), ..problem }, &options).unwrap();
    assert!(!none.accepted && none.terms.reached.unwrap().iterations == 20);
    // Off the table: the pose is brought back into the workspace and not accepted as it was.
    let off: Vec<_> = targets.iter().map(|p| p + Vector3::new(0.0, 0.0, -2.0)).collect();
    let low = solve_subgoal(&Subgoal::flow_only(hand(), &object, &off), &options).unwrap();
    assert!(low.pose.translation.vector.z >= -1e-9 && low.solved == Solved::Local, "{low:?}");
    let nan = [Point3::new(f64::NAN, 0.0, 0.0)];
    assert!(solve_subgoal(&Subgoal::flow_only(hand(), &nan, &nan), &options).is_err());
    assert!(solve_subgoal(&Subgoal::flow_only(hand(), &object, &[]), &options).is_err());
    assert!(solve_subgoal(&Subgoal::flow_only(hand(), &[], &[]), &options).is_err());
}

#[test]
fn a_goal_inside_an_obstacle_is_not_accepted_even_where_depth_costs_nothing() {
    let (object, sdf) = (object(), block());
    let goal = Isometry3::new(Vector3::new(0.3, 0.0, 0.45), Vector3::new(3.0, 0.0, 0.0));
    let targets: Vec<_> = object.iter().map(|p| goal * p).collect();
    let problem = Subgoal {
        collision_points: &object,
        sdf: Some(&sdf),
        ..Subgoal::flow_only(hand(), &object, &targets)
    };
    let found = solve_subgoal(&problem, &SolveOptions::new(bounds())).unwrap();
    assert!(found.accepted && found.solved == Solved::Sampled && found.terms.flow > 0.01, "{found:?}");
    let stuck = solve_subgoal(&problem, &SolveOptions { samples: 0, ..SolveOptions::new(bounds()) }).unwrap();
    assert!(!stuck.accepted);
}

#[test]
fn a_path_goes_around_an_obstacle() {
    let sdf = block();
    let points = [Point3::origin()];
    let at = |x: f64| Isometry3::new(Vector3::new(x, 0.0, 0.3), Vector3::new(3.0, 0.0, 0.0));
    let path = Path {
        weights: PathWeights { collision_margin_m: 0.03, collision: 200.0, ..PathWeights::default() },
        start: at(0.1),
        end: at(0.5),
        collision_points: &points,
        sdf: Some(&sdf),
        keypoints: &[],
        targets: &[],
        norm: FlowNorm::Squared,
        reach: None,
        reset_joints: &[],
    };
    let options = SolveOptions { refined: 8, ..SolveOptions::new(bounds()) };
    assert!(!path.is_free(&[], 0.0).unwrap());
    let control = solve_path(&path, &options).unwrap().expect("a way over the block");
    assert!(!control.is_empty() && path.is_free(&control, 0.0).unwrap());
    let straight = Path { end: at(0.15), ..path };
    assert_eq!(solve_path(&straight, &options).unwrap(), Some(vec![]));
    let walled = Path { end: at(0.3), ..path };
    assert_eq!(solve_path(&walled, &options).unwrap(), None);
}

#[test]
fn grasps_near_the_part_come_first_and_are_asked_in_order() {
    let at = |x: f64| Isometry3::translation(x, 0.0, 0.0);
    let grasps = [at(0.0), at(0.01), at(0.5), at(0.02)];
    let scores = [0.2, 0.9, 1.0, 0.9];
    let part = Point3::origin();
    let choose = |ok: &[usize]| {
        let mut asked = Vec::new();
        let found = select_grasp(&grasps, &scores, &part, 0.1, &at(1.0), |i, start, end| {
            asked.push(i);
            assert!((end.translation.vector.x - start.translation.vector.x - 1.0).abs() < 1e-12);
            ok.contains(&i)
        });
        (found.unwrap().choice, asked)
    };
    assert_eq!(choose(&[0, 2, 3]), (Some(3), vec![1, 3]));
    assert_eq!(choose(&[2]), (Some(2), vec![1, 3, 0, 2]));
    assert_eq!(choose(&[]), (None, vec![1, 3, 0, 2]));
    assert!(select_grasp(&grasps, &scores[1..], &part, 0.1, &at(0.0), |_, _, _| true).is_err());
    assert!(select_grasp(&grasps, &[f64::NAN; 4], &part, 0.1, &at(0.0), |_, _, _| true).is_err());
}
