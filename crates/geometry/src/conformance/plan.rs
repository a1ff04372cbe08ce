//! Costs, solvers and the choice of a grasp.

use std::collections::BTreeMap;

use nalgebra::{Isometry3, Point3};

use super::{Case, Outcome, Run, marks, matrix, outputs, text};
use crate::plan::{
    FlowNorm, Path, PathWeights, Reach, Reached, SolveOptions, Subgoal, SubgoalWeights, flow_distance,
    select_grasp, solve_subgoal, visible_mean_squared,
};
use crate::sdf::SdfGrid;
use crate::{PoseBounds, interpolate_poses, interpolation_steps, pose_from_euler, pose_to_euler};

pub(super) fn function(name: &str) -> Option<Run> {
    Some(match name {
        "normalize_vars" => normalise,
        "subgoal_objective" => subgoal,
        "path_objective" => path,
        "flow_cost" => flow_cost,
        "solve_flow_pose" => solve,
        "interpolate_poses" => interpolate,
        "select_grasp" => grasp,
        _ => return None,
    })
}

fn bounds(case: &Case, name: &str) -> Result<PoseBounds, String> {
    let rows = case.rows::<2>(name)?;
    let ends: [[f64; 2]; 6] = rows.try_into().map_err(|_| format!("inputs.{name} has not 6 rows"))?;
    PoseBounds::new(ends.map(|r| r[0]), ends.map(|r| r[1])).map_err(text)
}

fn normalise(case: &Case) -> Outcome {
    let bounds = bounds(case, "bounds")?;
    let normalised = bounds.normalise(&case.one("vars")?);
    let back = bounds.restore(&normalised);
    let pose = pose_from_euler(&back);
    let q = pose.rotation;
    Ok(outputs([
        ("normalized", normalised.to_vec()),
        ("back", back.to_vec()),
        ("pose_matrix", matrix(&pose)),
        ("quat_xyzw", vec![q.i, q.j, q.k, q.w]),
    ]))
}

/// The stand-in for an arm that the cases describe: farther is harder, and one metre is the end.
struct StubArm;

/// The description of [`StubArm`].
const STUB_ARM: &str = "r=norm(position); success r<1; descents=min(20,round_half_even(20 r)); \
    joints=(px,py,pz,R00,R11,R22,.04), the last joint is ignored in the regulariser";

impl Reach for StubArm {
    fn reach(&self, pose: &Isometry3<f64>) -> Reached {
        let (p, m) = (pose.translation.vector, pose.rotation.to_rotation_matrix());
        let r = p.norm();
        let iterations = (20.0 * r).round_ties_even().min(20.0) as usize;
        Reached { success: r < 1.0, iterations, joints: vec![p.x, p.y, p.z, m[(0, 0)], m[(1, 1)], m[(2, 2)]] }
    }
}

fn arm(case: &Case) -> Result<StubArm, String> {
    match case.params.get("stub_ik").map(|text| text.as_str()) {
        Some(Some(text)) if text != STUB_ARM => Err(format!("params.stub_ik is another arm: {text}")),
        _ => Ok(StubArm),
    }
}

fn sdf(case: &Case, outside: f64) -> Result<SdfGrid, String> {
    let (shape, values) = case.tensor::<3>("sdf")?;
    let [low, high] = case.rows::<3>("sdf_bounds")?[..] else {
        return Err("inputs.sdf_bounds has not 2 rows".into());
    };
    SdfGrid::new(low, high, shape, values, outside).map_err(text)
}

/// The keypoints without the first, which is the end effector.
fn keypoints(case: &Case) -> Result<Vec<Point3<f64>>, String> {
    Ok(case.points("keypoints_centered")?.into_iter().skip(1).collect())
}

fn subgoal(case: &Case) -> Outcome {
    let weights = SubgoalWeights {
        collision: case.param("collision_weight")?,
        collision_margin_m: case.param("collision_margin")?,
        init_pose: case.param("init_pose_weight")?,
        init_pose_rotation: case.param("init_pose_rot_weight")?,
        ik: case.param("ik_weight")?,
        ik_max_iterations: case.param("ik_max_iterations")?,
        reset: case.param("reset_reg_weight")?,
        reset_cap: case.param("reset_reg_cap")?,
        grasp: case.param("grasp_weight")?,
        constraint: case.param("constraint_weight")?,
    };
    let (keypoints, targets) = (keypoints(case)?, case.points("flow_target_keypoints")?);
    let (points, sdf) =
        (case.points("collision_points_centered")?, sdf(case, case.param("sdf_outside_value")?)?);
    let (arm, bounds, rest) = (arm(case)?, bounds(case, "bounds")?, case.numbers("reset_joints")?);
    let mut rows = Vec::new();
    for x in case.rows::<6>("x_normalized")? {
        let pose = pose_from_euler(&bounds.restore(&x));
        for (grasp_stage, norm) in [(false, FlowNorm::Squared), (true, FlowNorm::Plain)] {
            let problem = Subgoal {
                weights,
                norm,
                grasp_stage,
                collision_points: &points,
                sdf: Some(&sdf),
                reach: Some(&arm),
                // The stand-in has six joints and a gripper, which is last.
                reset_joints: rest.get(..6).unwrap_or(&rest),
                ..Subgoal::flow_only(case.pose("init_pose")?, &keypoints, &targets)
            };
            problem.check().map_err(text)?;
            let terms = problem.terms(&pose);
            let reached = terms.reached.as_ref().ok_or("the arm was not asked")?;
            let flag = |b: bool| f64::from(u8::from(b));
            // A record's numbers are compared in the order of its names.
            let row = BTreeMap::from([
                ("grasp_stage", flag(grasp_stage)),
                ("squared", flag(norm == FlowNorm::Squared)),
                ("total", terms.total),
                ("collision", terms.collision),
                ("init_pose", terms.init_pose),
                ("ik", terms.ik),
                ("reset_reg", terms.reset),
                ("grasp", terms.grasp),
                ("flow", terms.flow),
                ("ik_success", flag(reached.success)),
                ("ik_descents", reached.iterations as f64),
            ]);
            rows.extend(row.into_values());
        }
    }
    Ok(outputs([("rows", rows)]))
}

fn path(case: &Case) -> Outcome {
    let weights = PathWeights {
        collision: case.param("collision_weight")?,
        collision_margin_m: case.param("collision_margin")?,
        length: case.param("path_length_weight")?,
        rotation: case.param("rot_length_weight")?,
        ik: case.param("ik_weight")?,
        constraint: case.param("path_constraint_weight")?,
        step_m: case.param("interp_pos_step")?,
        step_rad: case.param("interp_rot_step")?,
        ..PathWeights::default()
    };
    let (keypoints, targets) = (keypoints(case)?, case.points("flow_target_keypoints")?);
    let (points, sdf) = (case.points("collision_points_centered")?, sdf(case, 0.0)?);
    let (arm, bounds) = (arm(case)?, bounds(case, "bounds_one")?);
    let control: Vec<_> =
        case.rows::<6>("x_normalized")?.iter().map(|x| pose_from_euler(&bounds.restore(x))).collect();
    let problem = Path {
        weights,
        start: pose_from_euler(&case.one("start_pose_euler")?),
        end: pose_from_euler(&case.one("end_pose_euler")?),
        collision_points: &points,
        sdf: Some(&sdf),
        keypoints: &keypoints,
        targets: &targets,
        norm: FlowNorm::Squared,
        reach: Some(&arm),
        reset_joints: &[0.0; 6],
    };
    let terms = problem.terms(&control).map_err(text)?;
    Ok(outputs([
        ("total", vec![terms.total]),
        ("num_poses", vec![terms.poses as f64]),
        ("collision", vec![terms.collision]),
        ("path_length", vec![terms.length]),
        ("ik", vec![terms.ik]),
        ("reset_reg_not_added", vec![terms.reset_not_added]),
        ("path_constraint", vec![terms.constraint]),
    ]))
}

fn flow_cost(case: &Case) -> Outcome {
    let motion = case.pose("object_motion")?;
    let moved: Vec<Point3<f64>> = case.points("keypoints")?.iter().map(|p| motion * p).collect();
    let (predicted, visibility) = (case.points("predicted")?, case.numbers("visibility")?);
    let n = moved.len().max(1);
    let (mut squared, mut plain, mut visible) = (Vec::new(), Vec::new(), Vec::new());
    for (targets, seen) in predicted.chunks(n).zip(visibility.chunks(n)) {
        squared.push(flow_distance(&moved, targets, FlowNorm::Squared).map_err(text)?);
        plain.push(flow_distance(&moved, targets, FlowNorm::Plain).map_err(text)?);
        visible.push(visible_mean_squared(&moved, targets, seen).map_err(text)?);
    }
    Ok(outputs([("sum_squared", squared), ("sum_norm", plain), ("visible_mean_squared", visible)]))
}

fn solve(case: &Case) -> Outcome {
    let hand = case.pose("ee_pose0")?;
    let local: Vec<Point3<f64>> =
        case.points("keypoints_world")?.iter().map(|p| hand.inverse_transform_point(p)).collect();
    let targets = case.points("target")?;
    let problem = Subgoal::flow_only(hand, &local, &targets);
    let solution = solve_subgoal(&problem, &SolveOptions::new(bounds(case, "bounds")?)).map_err(text)?;
    Ok(outputs([
        ("optimal_ee_pose", matrix(&solution.pose)),
        ("minimum_cost", vec![solution.terms.flow]),
        ("cost_at_start", vec![problem.terms(&hand).flow]),
    ]))
}

fn interpolate(case: &Case) -> Outcome {
    let start = pose_from_euler(&case.one("start_pose_euler")?);
    let end = pose_from_euler(&case.one("end_pose_euler")?);
    let linear = interpolate_poses(&start, &end, case.param("linear_n")?);
    // ReKep's steps; the output is named after them.
    let steps = interpolation_steps(&start, &end, 0.05, 0.34).map_err(text)?;
    Ok(outputs([
        ("linear", linear.iter().flat_map(pose_to_euler).collect()),
        ("steps_needed_0.05m_0.34rad", vec![steps as f64]),
    ]))
}

fn grasp(case: &Case) -> Outcome {
    let (grasps, reachable) = (case.poses("grasps")?, case.flags("reachable_end")?);
    let part = Point3::from(case.one("part_point")?);
    let found = select_grasp(
        &grasps,
        &case.numbers("scores")?,
        &part,
        case.param("part_radius")?,
        &case.pose("object_motion")?,
        |i, _, _| reachable.get(i).copied().unwrap_or(false),
    )
    .map_err(text)?;
    Ok(outputs([
        ("end_grasps", found.end_poses.iter().flat_map(matrix).collect()),
        ("near_part", marks(found.near_part)),
        ("choice", vec![found.choice.map_or(-1.0, |i| i as f64)]),
    ]))
}
