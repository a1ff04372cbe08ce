//! Who plays: checkpoints, policy servers, the scripted expert, doing nothing.

use std::path::Path;
use std::time::Duration;

use efference_envs::libero::LiberoOptions;
use efference_envs::libero::expert::{Expert, ExpertOptions};
use efference_rollout::libero::{
    EpisodeError, EvalPolicy, Idle, Images, Network, NetworkSettings, PolicyError, PolicySource, Protocol,
    RemoteSource, Start, View,
};
use efference_rollout::remote::{Address, Limits};
use efference_rollout::{Purpose, seed_for};
use efference_train::policy_file;
use efference_train::world::libero_settings;
use serde_json::{Value, json};

use super::Args;
use crate::errors::{Failure, Result};

/// A policy ready to play.
pub(super) struct Player {
    /// Where workers get theirs from.
    pub source: Box<dyn PolicySource>,
    /// Side of the pictures that a network reads.
    pub image_size: Option<usize>,
    /// Whether it looks behind the scenes.
    pub needs_simulator: bool,
}

/// The protocol that goes with a policy unless another is named.
pub(super) fn usual_protocol(policy: &str) -> &'static str {
    match policy.split_once("://") {
        Some(("openpi", _)) => "openpi",
        Some(("vla-eval", _)) => "vla-eval",
        _ => "own",
    }
}

pub(super) fn open(
    policy: &str,
    suite: &str,
    protocol: &Protocol,
    args: &Args,
    answer: Duration,
) -> Result<Player> {
    let simple = |source: Box<dyn PolicySource>| Player { source, image_size: None, needs_simulator: false };
    if policy == "zero" {
        return Ok(simple(Box::new(Idle { action: [0.0; 7] })));
    }
    if policy == "idle" {
        return Ok(simple(Box::new(Idle { action: protocol.idle_action })));
    }
    if policy == "expert" {
        let options = ExpertOptions { max_steps: protocol.max_steps, ..ExpertOptions::default() };
        let source = Box::new(Experts { options });
        return Ok(Player { source, image_size: None, needs_simulator: true });
    }
    if policy.contains("://") {
        let address: Address = policy.parse()?;
        let limits = Limits { answer, ..Limits::default() };
        return Ok(simple(Box::new(RemoteSource::new(address, limits)?)));
    }
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(Failure::usage("--temperature must be 0 or more"));
    }
    let path = Path::new(policy);
    if !path.exists() {
        let what = format!("there is no policy `{policy}`");
        return Err(Failure::new(what).help(
            "give a checkpoint or run folder, `expert`, `zero`, `idle`, openpi://HOST:PORT or vla-eval://HOST:PORT",
        ));
    }
    let trained_with = libero_settings(&LiberoOptions {
        profile: super::profile(args),
        idle_steps: protocol.idle_steps,
        mirror: protocol.images == Images::Own,
        ..LiberoOptions::default()
    });
    let loaded = policy_file::load(path, suite, Some(&trained_with), args.weights == "ema")?;
    let about = json!({ "step": loaded.step, "weights": args.weights, "mujoco": loaded.mujoco_version });
    let settings = NetworkSettings { temperature: args.temperature, about };
    let image_size = Some(loaded.policy.image_size());
    let source = Box::new(Network::new(loaded.policy, settings));
    Ok(Player { source, image_size, needs_simulator: false })
}

/// The scripted expert, without memory of other episodes: what it does in one must not depend on who played before.
struct Experts {
    options: ExpertOptions,
}

impl PolicySource for Experts {
    fn open(&self) -> Box<dyn EvalPolicy + '_> {
        Box::new(Playing { options: self.options, expert: None, seed: 0 })
    }

    fn settings(&self) -> Value {
        json!({ "kind": "expert", "options": self.options })
    }
}

struct Playing {
    options: ExpertOptions,
    /// With a plan, once the objects lie still.
    expert: Option<Expert>,
    seed: u64,
}

impl EvalPolicy for Playing {
    fn start(&mut self, start: &Start<'_>) -> std::result::Result<(), PolicyError> {
        self.expert = None;
        self.seed = seed_for(start.seed, Purpose::Demonstrations, &[start.task as u64, start.episode as u64]);
        Ok(())
    }

    fn act(&mut self, view: &mut View<'_>) -> std::result::Result<Vec<[f64; 7]>, EpisodeError> {
        let failed = |why: String| PolicyError::Failed { why };
        let Some(sim) = view.simulator().native() else {
            return Err(failed("the expert needs the simulator in this process".into()).into());
        };
        let expert = match &mut self.expert {
            Some(expert) => expert,
            None => {
                let mut expert = Expert::new(self.options);
                expert.plan(sim, self.seed).map_err(|e| failed(e.to_string()))?;
                self.expert.insert(expert)
            }
        };
        Ok(vec![expert.next_action(sim).map_err(|e| failed(e.to_string()))?])
    }
}
