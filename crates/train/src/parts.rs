//! A configuration made into things: environments, policy, demonstrations.

use efference_nets::Quantiles;
use efference_rollout::VlaPolicy;

use crate::checkpoint::Identity;
use crate::config::TrainConfig;
use crate::decisions::DecisionSet;
use crate::error::{Error, Result};
use crate::rl::Rl;
use crate::world::{self, World};
use crate::{network, supervised};

/// What the configuration stands for.
pub(crate) struct Parts {
    pub(crate) world: Option<Box<dyn World>>,
    pub(crate) policy: VlaPolicy,
    pub(crate) identity: Identity,
    /// Demonstrations to learn from and held out, of the `[sft]` stage.
    pub(crate) demos: (Vec<efference_data::Episode>, Vec<efference_data::Episode>),
    /// What a person should know about them.
    pub(crate) notes: Vec<String>,
}

impl Parts {
    /// Everything that can be refused is refused here, before a run folder is touched.
    pub(crate) fn new(config: &TrainConfig) -> Result<Self> {
        let world = world::open(&config.env)?;
        let mut notes = Vec::new();
        if let (Some(rl), Some(world)) = (&config.rl, world.as_deref()) {
            let stage = Rl::new(world, rl, 1, config.run.seed)?; // refuses unusable settings now
            notes.extend(stage.batch_wide().map(|why| format!("rl.micro_batch changes the gradient: {why}")));
        }
        let demos = match &config.sft {
            Some(sft) => supervised::demonstrations(config, sft, world.as_deref(), &mut notes)?,
            None => Default::default(),
        };
        let stats = match &world {
            Some(world) => world.proprio_range(),
            None => proprio_of(&demos.0)?,
        };
        let policy = network::policy(config, stats)?;
        if config.sft.is_some() {
            let cameras = cameras(world.as_deref(), &demos.0);
            for episodes in [&demos.0, &demos.1].into_iter().take(if demos.1.is_empty() { 1 } else { 2 }) {
                DecisionSet::check(episodes, &cameras, &policy)
                    .map_err(|e| Error::Setting { section: "sft.demos", source: Box::new(e) })?;
            }
        }
        let identity = network::identity(config, &policy);
        Ok(Self { world, policy, identity, demos, notes })
    }
}

/// What the policy looks through: the world's cameras, else those of the demonstrations.
pub(crate) fn cameras(world: Option<&dyn World>, episodes: &[efference_data::Episode]) -> Vec<String> {
    match world {
        Some(world) => world.cameras().to_vec(),
        None => episodes.first().map(|e| e.cameras.keys().cloned().collect()).unwrap_or_default(),
    }
}

/// The suite of stored demonstrations takes its range of proprioception from those it learns from.
fn proprio_of(episodes: &[efference_data::Episode]) -> Result<Quantiles> {
    let rows: Vec<Vec<f64>> =
        episodes.iter().flat_map(|e| &e.proprio).map(|row| row.map(f64::from).to_vec()).collect();
    Ok(Quantiles::from_rows(&rows)?)
}
