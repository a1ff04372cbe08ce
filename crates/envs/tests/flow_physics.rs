//! The tasks can be done: an ideal controller follows the object's own motion with a grasp that is in reach.
//!
//! `FLOW_TRIALS` (2) says how many scenes of each family and arm are tried, from `FLOW_FIRST` (0) on; `FLOW_ONLY` names one,
//! such as `arm6/hang`.
#![allow(clippy::unwrap_used)]

use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, Motion, Probe, eval_seed};
use efference_envs::{Action, Env, ShapeKind};
use efference_geometry::{Isometry3, UnitQuaternion, Vector3};
use nalgebra::{Matrix3, Rotation3, Translation3};

const OPEN_M: f64 = 0.045;

/// A gripper that points along `ahead`, with its fingers on the line `across`.
fn gripper(at: Vector3<f64>, ahead: Vector3<f64>, across: Vector3<f64>) -> Isometry3<f64> {
    let (y, z) = (across.normalize(), -ahead.normalize());
    let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_columns(&[y.cross(&z), y, z]));
    Isometry3::from_parts(Translation3::from(at), UnitQuaternion::from_rotation_matrix(&rotation))
}

/// World from gripper, at the start.
fn grasps(env: &FlowEnv) -> Vec<Isometry3<f64>> {
    let object = env.object_pose();
    let at = object.translation.vector;
    let axis = object.rotation * Vector3::z();
    let part = |name: &str| env.object_parts().iter().find(|p| p.name == name).unwrap();
    let mut all = Vec::new();
    let down = -Vector3::z();
    match env.task() {
        FlowTask::Pour => {
            for degrees in [0.0f64, 15.0, -15.0, 30.0, -30.0, 45.0, -45.0, 60.0, -60.0] {
                let ahead = Vector3::new(degrees.to_radians().cos(), degrees.to_radians().sin(), 0.0);
                for up in [0.005, 0.015] {
                    let across = Vector3::z().cross(&ahead);
                    all.push(gripper(at + Vector3::z() * up, ahead, across));
                    all.push(gripper(at + Vector3::z() * up, ahead, -across));
                }
            }
        }
        FlowTask::Insert => {
            let length = part("peg").size_m[2];
            for share in [0.3, 0.45, 0.15, 0.0] {
                for sign in [1.0, -1.0] {
                    let at = at + axis * (sign * share * length);
                    if axis.z.abs() < 0.5 {
                        let across = axis.cross(&Vector3::z());
                        let at = Vector3::new(at.x, at.y, at.z.max(0.0125));
                        all.push(gripper(at, down, across));
                        all.push(gripper(at, down, -across));
                    } else {
                        for side in [Vector3::x(), -Vector3::x(), Vector3::y(), -Vector3::y()] {
                            let ahead = object.rotation * side;
                            if ahead.x > 0.5 {
                                all.push(gripper(at, ahead, ahead.cross(&Vector3::z())));
                                all.push(gripper(at, ahead, -ahead.cross(&Vector3::z())));
                            }
                        }
                    }
                }
            }
        }
        FlowTask::Hang => {
            let tab = part("tab");
            assert_eq!(tab.kind, ShapeKind::Box);
            let across = object.rotation * Vector3::y();
            let middle = (object * tab.pose).translation.vector;
            let at = Vector3::new(middle.x, middle.y, 0.0125);
            all.push(gripper(at, down, across));
            all.push(gripper(at, down, -across));
        }
        FlowTask::Drawer | FlowTask::Push => {
            let handle = (object * part("handle").pose).translation.vector;
            let across = object.rotation * Vector3::y();
            all.push(gripper(handle, down, across));
            all.push(gripper(handle, down, -across));
        }
    }
    all
}

/// A grasp and a motion for which start, way and end are in reach and free.
fn choose(env: &FlowEnv) -> Option<(Isometry3<f64>, Motion)> {
    let mut probe = env.probe().unwrap();
    let object = env.object_pose();
    for seed in 0..8 {
        let motion = env.motion(seed).unwrap();
        for grasp in grasps(env) {
            let held = object.inv_mul(&grasp);
            if free(&mut probe, &motion, &grasp, &held) {
                return Some((grasp, motion));
            }
        }
    }
    None
}

fn free(probe: &mut Probe, motion: &Motion, grasp: &Isometry3<f64>, held: &Isometry3<f64>) -> bool {
    probe.place_object(&motion.poses[0]).unwrap();
    if probe.reach(grasp, OPEN_M).unwrap() > 1e-3 {
        return false;
    }
    let c = probe.collision().unwrap();
    if c.arm_and_scene_m > 0.0005 || c.arm_and_object_m > 0.001 {
        return false;
    }
    for pose in &motion.poses {
        probe.place_object(pose).unwrap();
        if probe.reach(&(pose * held), OPEN_M).unwrap() > 1e-3
            || probe.collision().unwrap().arm_and_scene_m > 0.001
        {
            return false;
        }
    }
    true
}

fn towards(env: &FlowEnv, goal: &Isometry3<f64>, speed: f64, gripper: f32) -> (Action, f64) {
    let now = env.grip_pose();
    let mut step = (goal.translation.vector - now.translation.vector) / 0.05;
    let mut turn = (goal.rotation * now.rotation.inverse()).scaled_axis() / 0.5;
    let left = step.norm() * 0.05 + turn.norm() * 0.5 * 0.12;
    if step.norm() > speed {
        step *= speed / step.norm();
    }
    if turn.norm() > 0.5 * speed {
        turn *= 0.5 * speed / turn.norm();
    }
    let all = [step.x, step.y, step.z, turn.x, turn.y, turn.z];
    let mut action = [gripper; 7];
    action.iter_mut().zip(all).for_each(|(a, v)| *a = v as f32);
    (action, left)
}

/// Whether the task was done, or why not.
fn trial(env: &mut FlowEnv, seed: u64) -> Result<usize, String> {
    env.reset(seed).unwrap();
    let (grasp, motion) = choose(env).ok_or("nothing in reach")?;
    let back = grasp * Isometry3::translation(0.0, 0.0, 0.09);
    let above = Isometry3::translation(0.0, 0.0, 0.05) * back;
    for (goal, tolerance, speed) in [(above, 0.02, 0.8), (back, 0.01, 0.6), (grasp, 0.003, 0.4)] {
        let mut tries = 0;
        loop {
            let (action, left) = towards(env, &goal, speed, -1.0);
            if left < tolerance {
                break;
            }
            env.step(&action).map_err(|e| e.to_string())?;
            tries += 1;
            if tries > 100 {
                return Err(format!("approach is stuck, {left:.4} left"));
            }
        }
    }
    for _ in 0..10 {
        let (action, _) = towards(env, &grasp, 0.3, 1.0);
        env.step(&action).map_err(|e| e.to_string())?;
    }
    if !env.grasped() {
        return Err(format!("not grasped: fingers {:.4?}, {:?}", env.fingers_m(), env.collision()));
    }
    let held = env.object_pose().inv_mul(&env.grip_pose());
    let last = motion.poses.len() as f64 - 1.0;
    let mut t: f64 = 0.0;
    loop {
        let goal = motion.at(t) * held;
        let (action, left) = towards(env, &goal, 0.6, 1.0);
        let outcome = env.step(&action).map_err(|e| e.to_string())?;
        if outcome.success {
            return Ok(outcome.steps);
        }
        if outcome.done {
            let slip = (env.grip_pose() * held.inverse()).inv_mul(&env.object_pose());
            let gap = env.grip_pose().inv_mul(&goal);
            return Err(format!(
                "not done: t {t:.2}, {:.3} m {:.3} rad left, slip {:.3} m {:.3} rad, grasped {}, {:.3} remaining, {:?}\n joints {:.2?}",
                gap.translation.vector.norm(),
                gap.rotation.angle(),
                slip.translation.vector.norm(),
                slip.rotation.angle(),
                env.grasped(),
                env.remaining(),
                env.collision(),
                env.joints(),
            ));
        }
        if left < 0.012 {
            t = (t + 0.15).min(last);
        }
    }
}

#[test]
fn both_arms_do_the_tasks_by_following_the_objects_motion() {
    let trials: usize = std::env::var("FLOW_TRIALS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let options = FlowOptions { max_steps: 300, ..FlowOptions::default() };
    let mut all = Vec::new();
    let first: usize = std::env::var("FLOW_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let only = std::env::var("FLOW_ONLY").unwrap_or_default();
    for arm in ArmKind::ALL {
        for task in FlowTask::EXECUTED {
            if !only.is_empty() && only != format!("{}/{}", arm.id(), task.id()) {
                continue;
            }
            let mut env = FlowEnv::new(task, arm, &options).unwrap();
            let (mut done, mut steps) = (0, 0);
            for i in first..first + trials {
                match trial(&mut env, eval_seed(i as u64)) {
                    Ok(n) => {
                        done += 1;
                        steps += n;
                    }
                    Err(why) => println!("{} {} {i}: {why}", arm.id(), task.id()),
                }
            }
            println!("{} {}: {done}/{trials}, {} steps", arm.id(), task.id(), steps / done.max(1));
            all.push((arm, task, done));
        }
    }
    for (arm, task, done) in all {
        assert!(done * 10 >= trials * 7, "{} {}: {done} of {trials}", arm.id(), task.id());
    }
}
