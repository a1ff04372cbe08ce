//! Frames of finished episodes to the vectors that SRPO compares.

use efference_envs::Env;
use efference_envs::tabletop::TabletopEnv;
use efference_nets::{EpisodeEncoder, sample_frame_indices};
use efference_rollout::Trajectory;
use rayon::prelude::*;

use crate::error::Result;
use crate::world::Tabletop;

/// The vector of each trajectory, which must have kept its snapshots; the zero vector where it has none. Only the
/// frames that the encoder looks at are drawn, through the first camera, the one that sees the whole scene.
///
/// # Errors
/// The simulator or the renderer refused.
pub fn embed_episodes(
    world: &Tabletop,
    encoder: &dyn EpisodeEncoder,
    trajectories: &[Trajectory],
) -> Result<Vec<Vec<f64>>> {
    let (camera, task) = (&world.cameras[0], world.tasks[0]);
    let side = world.options.image_size;
    trajectories
        .par_iter()
        .map_init(
            || None,
            |slot: &mut Option<TabletopEnv>, trajectory| {
                let env = match slot {
                    Some(env) => env,
                    None => slot.insert(TabletopEnv::with_task(task, &world.options)?),
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
