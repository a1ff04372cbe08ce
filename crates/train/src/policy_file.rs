//! A policy from a checkpoint, with everything it was trained with.

use std::path::{Path, PathBuf};

use candle_core::Device;
use efference_nets::{ParamStore, Quantiles, Tokenizer, Vla, VlaConfig};
use efference_rollout::VlaPolicy;
use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, CheckpointError, Identity, sha256};
use crate::error::{Error, Result};
use crate::network;

/// A policy ready to act.
pub struct Loaded {
    /// The policy.
    pub policy: VlaPolicy,
    /// The checkpoint's folder.
    pub path: PathBuf,
    /// Updates it has behind it.
    pub step: u64,
    /// Version of the simulator, of the training and of this program.
    pub mujoco_version: String,
}

#[derive(Deserialize)]
struct Stats {
    action: Quantiles,
    proprio: Quantiles,
}

/// Loads the policy of `path` (checkpoint or run folder) to act in `suite`, whose settings are `world`
/// ([`crate::world::World::settings`]; `None` takes any). Shape and statistics come from the checkpoint;
/// simulator and tokenizer must be those it was trained with, because others change results silently. `averaged` takes
/// the average of the weights instead of the weights.
///
/// # Errors
/// The checkpoint has no average. [`CheckpointError`]: nothing there, damaged, or made for another simulator, suite, setting of the
/// suite or tokenizer.
pub fn load(path: &Path, suite: &str, world: Option<&Value>, averaged: bool) -> Result<Loaded> {
    let mut checkpoint = Checkpoint::load(path)?;
    if averaged {
        let why = "it holds no averages of the weights; train with `optimizer.ema`";
        checkpoint.model = crate::optimise::averaged(&checkpoint.model, &checkpoint.optimizer)
            .ok_or_else(|| Error::Setting { section: "optimizer.ema", source: why.into() })?;
    }
    let needed = Identity {
        mujoco_version: efference_envs::mujoco_version(),
        suite: suite.into(),
        world: world.cloned().unwrap_or_else(|| checkpoint.identity.world.clone()),
        tokenizer_sha256: sha256(efference_nets::BUILT_IN_TOKENIZER.as_bytes()),
        ..checkpoint.identity.clone()
    };
    checkpoint.require(&needed)?;
    let corrupt = |e: serde_json::Error| CheckpointError::Corrupt {
        path: checkpoint.path.clone(),
        why: format!("its network or statistics cannot be read: {e}"),
    };
    let shape: VlaConfig = serde_json::from_value(checkpoint.identity.model.clone()).map_err(corrupt)?;
    let stats: Stats = serde_json::from_value(checkpoint.identity.action_stats.clone()).map_err(corrupt)?;
    shape.validate()?;
    stats.action.check("action statistics", shape.action_dim)?;
    stats.proprio.check("proprioception statistics", shape.proprio_dim)?;
    let tokenizer = Tokenizer::built_in()?;
    let mut params = ParamStore::new(0, Device::Cpu);
    let net = Vla::new(&mut params, &shape, tokenizer.special())?;
    let policy =
        VlaPolicy { net, params, tokenizer, action_stats: stats.action, proprio_stats: stats.proprio };
    network::load(&policy, &checkpoint.path, &checkpoint.model)?;
    let mujoco_version = needed.mujoco_version;
    Ok(Loaded { policy, path: checkpoint.path, step: checkpoint.state.step, mujoco_version })
}
