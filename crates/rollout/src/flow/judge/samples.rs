//! Final states of the workbench, good and bad, as pictures for a learned judge.

use efference_data::flow::FlowQuery;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, POINTS};
use efference_envs::{Env, Error as EnvError};
use efference_geometry::{Isometry3, UnitQuaternion, Vector3};
use nalgebra::Translation3;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::JudgeSample;
use crate::flow::{Result, draw_final};
use crate::seeds::{Purpose, seed_for};

/// Final states that are drawn per scene.
const PER_SCENE: usize = 6;

/// Pictures of final states in these scenes (seeds of the workbench): where a motion ends that does the task, a little or a
/// lot beside it, and on the way to it. Labels are the simulator's. The same arguments give the same samples, on any number
/// of threads; scenes whose object cannot be seen or moved give none.
///
/// # Errors
/// The environment failed, or no offscreen rendering.
pub fn judge_samples(
    task: FlowTask,
    arm: ArmKind,
    options: &FlowOptions,
    scenes: &[u64],
) -> Result<Vec<JudgeSample>> {
    let chunk = scenes.len().div_ceil(rayon::current_num_threads().max(1)).max(1);
    let parts: Vec<Result<Vec<JudgeSample>>> = scenes
        .par_chunks(chunk)
        .map(|scenes| {
            let mut env = FlowEnv::new(task, arm, options)?;
            let mut samples = Vec::new();
            for &seed in scenes {
                of_scene(&mut env, seed, &mut samples)?;
            }
            Ok(samples)
        })
        .collect();
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

fn of_scene(env: &mut FlowEnv, seed: u64, samples: &mut Vec<JudgeSample>) -> Result<()> {
    env.reset(seed)?;
    let rng = &mut ChaCha8Rng::seed_from_u64(seed_for(seed, Purpose::Flow, &[u64::MAX]));
    let view = env.view()?;
    let points = match env.seen_points(&view, POINTS, seed) {
        Ok(points) => points,
        Err(EnvError::Hidden { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let object = env.object_pose();
    let mask: Vec<bool> = view.mask.iter().map(|m| *m != 0).collect();
    let query = FlowQuery {
        instruction: env.instruction().to_owned(),
        camera: view.camera,
        image: view.image,
        depth_m: view.depth_m,
        points: points.iter().map(|p| object * p).collect(),
    };
    for i in 0..PER_SCENE {
        let motion = match env.motion(rng.random()) {
            Ok(motion) => motion,
            Err(EnvError::NoMotion { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let goal = motion.goal();
        let pose = match i {
            0 => goal,
            1 | 2 => beside(&goal, 0.006, 0.06, rng),
            3 => beside(&goal, 0.02, 0.25, rng),
            4 => beside(&goal, 0.06, 0.7, rng),
            _ => motion.at(rng.random_range(0.0..0.85) * (motion.poses.len() - 1) as f64),
        };
        let picture = draw_final(&query, &mask, &(pose * object.inverse()))?;
        let accept = env.goal_reached(&pose);
        let sample = JudgeSample::new(&query.instruction, &picture, &query.camera, accept);
        // Families have the same seeds, but different scenes.
        samples.extend(sample.map(|s| s.of_scene(seed ^ ((env.task() as u64 + 1) << 56))));
    }
    Ok(())
}

/// A pose whose errors are about so large: each axis uniform within 1.7 times that.
fn beside(pose: &Isometry3<f64>, m: f64, rad: f64, rng: &mut ChaCha8Rng) -> Isometry3<f64> {
    let mut draw = |size: f64| Vector3::from_fn(|_, _| rng.random_range(-1.7..1.7) * size);
    let (shift, turn) = (draw(m), UnitQuaternion::from_scaled_axis(draw(rad)));
    Isometry3::from_parts(Translation3::from(pose.translation.vector + shift), turn * pose.rotation)
}
