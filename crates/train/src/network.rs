//! The policy network of a configuration: its shape, its first weights, what a checkpoint of it may be used with.

use std::path::Path;

use efference_envs::ACTION_DIM;
use efference_nets::{ParamStore, Quantiles, Tokenizer, Vla, VlaConfig};
use efference_objectives::registry::overlay;
use efference_rollout::{Purpose, VlaPolicy, seed_for};

use crate::checkpoint::{self, Identity, sha256};
use crate::config::TrainConfig;
use crate::error::Error;

type Result<T, E = Error> = std::result::Result<T, E>;

/// `[model] init_from` for the weights that the program carries.
pub const BUILT_IN_WEIGHTS: &str = "builtin:tabletop_play";
/// The small VLA after `configs/tabletop_play.toml`, numbers rounded to 16 bits.
const TABLETOP_PLAY: &[u8] = include_bytes!("../../../assets/tabletop_play.safetensors");

/// The network shape of this name, one of those that `[model] preset` may have.
pub(crate) fn preset(name: &str) -> VlaConfig {
    match name {
        "openvla_oft_7b" => VlaConfig::openvla_oft_7b(),
        _ => VlaConfig::quickstart(),
    }
}

/// The network's shape: the preset with the single fields of `[model.shape]` and the image size of `[env]`.
///
/// # Errors
/// [`Error::Setting`] for a field that does not exist, has another type, or makes no network.
pub fn vla_config(config: &TrainConfig) -> Result<VlaConfig> {
    let preset = preset(&config.model.preset);
    let refuse =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Setting { section: "model.shape", source };
    let mut table = toml::Table::try_from(&preset).map_err(|e| refuse(Box::new(e)))?;
    overlay(&mut table, &config.model.shape);
    let mut shape: VlaConfig =
        toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| refuse(e.message().into()))?;
    shape.vision.image_size = config.env.image_size;
    shape.validate().map_err(|e| refuse(Box::new(e)))?;
    Ok(shape)
}

/// Refuses a network that this machine cannot hold, before the system ends the program for it.
fn check_memory(shape: &VlaConfig, config: &TrainConfig) -> Result<()> {
    // Per number: weight, gradient and average in f32, and the moments.
    let moments = match config.optimizer.kind.as_str() {
        "adafactor" => 0.0,
        "adamw8bit" => 2.0,
        _ => 8.0,
    };
    let average = if config.optimizer.ema > 0.0 { 4.0 } else { 0.0 };
    let frozen = !config.model.freeze.is_empty(); // how much, the names will tell; the weights are there either way
    let bytes = if frozen { 4.0 } else { 8.0 + moments + average };
    const GIB: f64 = (1u64 << 30) as f64;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let Some(total) = total.and_then(|kib| kib.trim().parse::<f64>().ok()).map(|kib| kib * 1024.0) else {
        return Ok(()); // another system: it will say so itself
    };
    let needed = shape.param_count() as f64 * bytes;
    if needed <= total {
        return Ok(());
    }
    let why = format!(
        "training this network takes at least {:.1} GiB, this machine has {:.1}\n  hint: choose a smaller preset or shape, or an \
         optimiser with less state (`optimizer.kind`)",
        needed / GIB,
        total / GIB
    );
    Err(Error::Setting { section: "model", source: why.into() })
}

/// Refuses patterns of `model.freeze` that name nothing, and a network with nothing left to train.
fn check_freeze(params: &ParamStore) -> Result<()> {
    let refuse = |why: String| Err(Error::Setting { section: "model.freeze", source: why.into() });
    let idle: Vec<String> = params.idle_patterns().map(|pattern| format!("\"{pattern}\"")).collect();
    if !idle.is_empty() {
        let names: Vec<&str> = params.vars().keys().map(String::as_str).collect();
        let (first, last) = (names.first().unwrap_or(&""), names.last().unwrap_or(&""));
        let which = idle.join(", ");
        return refuse(format!("no weight is named by {which} (names go from `{first}` to `{last}`)"));
    }
    if params.trainable().next().is_none() {
        return refuse("nothing is left to train".into());
    }
    Ok(())
}

/// The policy of a configuration with initial weights, or those of `[model] init_from`.
///
/// # Errors
/// A shape that makes no network, weights that cannot be read or do not fit.
pub fn policy(config: &TrainConfig, proprio_stats: Quantiles) -> Result<VlaPolicy> {
    let tokenizer = Tokenizer::built_in()?;
    let device = crate::device::open(&config.run.device)?;
    let mut params = ParamStore::new(seed_for(config.run.seed, Purpose::Weights, &[]), device);
    let shape = vla_config(config)?;
    check_memory(&shape, config)?;
    params.freeze(&config.model.freeze);
    let mut net = Vla::new(&mut params, &shape, tokenizer.special())?;
    check_freeze(&params)?;
    net.set_gradient_checkpointing(config.model.gradient_checkpointing);
    let policy =
        VlaPolicy { net, params, tokenizer, action_stats: Quantiles::unit(ACTION_DIM), proprio_stats };
    let loaded = match config.model.init_from.as_deref() {
        None => Ok(()),
        Some(BUILT_IN_WEIGHTS) => {
            policy.params.load_bytes(Path::new(BUILT_IN_WEIGHTS), TABLETOP_PLAY).map_err(Error::from)
        }
        Some(path) => checkpoint::load_weights(Path::new(path))
            .map_err(Error::from)
            .and_then(|weights| load(&policy, Path::new(path), &weights)),
    };
    loaded.map_err(|e| Error::Setting { section: "model.init_from", source: Box::new(e) })?;
    Ok(policy)
}

/// Replaces all weights of `policy`; `path` names their origin in messages.
///
/// # Errors
/// Names, shapes or types differ, or a number is not finite; the weights are then as they were.
pub fn load(policy: &VlaPolicy, path: &Path, weights: &checkpoint::Tensors) -> Result<()> {
    let bytes = safetensors::serialize(weights, None)
        .map_err(|e| efference_nets::Error::Corrupt { path: path.into(), reason: e.to_string() })?;
    Ok(policy.params.load_bytes(path, &bytes)?)
}

/// What a checkpoint of `policy` may be used with.
pub fn identity(config: &TrainConfig, policy: &VlaPolicy) -> Identity {
    let json = |value: serde_json::Result<serde_json::Value>| value.unwrap_or_default();
    Identity {
        model: json(serde_json::to_value(policy.net.config())),
        mujoco_version: efference_envs::mujoco_version(),
        suite: config.env.suite.clone(),
        tokenizer_sha256: sha256(efference_nets::BUILT_IN_TOKENIZER.as_bytes()),
        action_stats: serde_json::json!({
            "action": json(serde_json::to_value(&policy.action_stats)),
            "proprio": json(serde_json::to_value(&policy.proprio_stats)),
        }),
    }
}
