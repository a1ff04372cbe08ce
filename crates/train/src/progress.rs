//! Frames of finished episodes to the vectors that SRPO compares.

use efference_envs::Env;
use efference_nets::{EpisodeEncoder, sample_frame_indices};
use efference_rollout::Trajectory;
use rayon::prelude::*;

use crate::error::Result;
use crate::world::World;

/// The vector of each trajectory, which must have kept its snapshots; the zero vector where it has none. Only the
/// frames that the encoder looks at are drawn, through the first camera, the one that sees the whole scene.
///
/// # Errors
/// The simulator or the renderer refused.
pub fn embed_episodes(
    world: &dyn World,
    encoder: &dyn EpisodeEncoder,
    trajectories: &[Trajectory],
) -> Result<Vec<Vec<f64>>> {
    let (camera, side) = (&world.cameras()[0], world.image_size());
    trajectories
        .par_iter()
        .map_init(
            || None,
            |slot: &mut Option<(String, Box<dyn Env>)>, trajectory| {
                let task = &trajectory.plan.task;
                let (_, env) = match slot {
                    Some(of) if of.0 == *task => of,
                    _ => slot.insert((task.clone(), world.make(task)?)),
                };
                let mut frames = Vec::with_capacity(encoder.frames());
                let states = trajectory.snapshots.len();
                // A short episode whole: the encoder goes round it by itself and knows its last frame.
                let looked_at = if states <= encoder.frames() {
                    (0..states).collect()
                } else {
                    sample_frame_indices(states, encoder.frames())
                };
                for i in looked_at {
                    env.restore(&trajectory.snapshots[i])?;
                    frames.push(env.render(camera)?);
                }
                let frames: Vec<&[u8]> = frames.iter().map(|f| f.as_raw().as_slice()).collect();
                Ok(encoder.embed(&frames, side, side)?.into_iter().map(f64::from).collect())
            },
        )
        .collect()
}
