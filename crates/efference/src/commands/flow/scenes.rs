//! Which scenes a command looks at: stored ones, or those of the simulated workbench.

use std::path::PathBuf;

use efference_data::flow::{FlowEpisode, FlowStore};
use efference_envs::flow::{ArmKind, FlowTask, GenerateOptions};

use crate::errors::{Failure, Result};

/// Where scenes come from.
#[derive(Debug, clap::Args)]
pub(super) struct Scenes {
    /// Folder of stored episodes (`efference data flow`) instead of the workbench
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Which episode of the folder, from 0
    #[arg(long, value_name = "I", default_value_t = 0)]
    episode: usize,
    /// Task family of the simulated workbench: pour, insert, hang, drawer, push
    #[arg(long, value_name = "TASK", default_value = "pour")]
    task: String,
    /// Arm that stands in the picture: arm7 or arm6
    #[arg(long, default_value = "arm7")]
    arm: String,
    /// Evaluation scene of the workbench, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    scene: u64,
}

/// Scenes to try before giving up on one that shows its object and has a free motion.
const ATTEMPTS: u64 = 20;

impl Scenes {
    /// The episode of the scene, or of the next one that gives an episode.
    ///
    /// # Errors
    /// Names that are not known; no scene gives an episode.
    pub(super) fn episode(&self) -> Result<FlowEpisode> {
        if let Some(data) = &self.data {
            return Ok(FlowStore::open(data)?.load(self.episode)?);
        }
        let (task, arm) = (FlowTask::from_id(&self.task)?, ArmKind::from_id(&self.arm)?);
        let options = GenerateOptions {
            tasks: vec![task],
            arms: vec![arm],
            first: self.scene,
            eval: true,
            ..GenerateOptions::default()
        };
        let mut last = None;
        for i in 0..ATTEMPTS {
            match options.episode(i) {
                Ok(episode) => return Ok(episode),
                Err(
                    error @ (efference_envs::Error::Hidden { .. } | efference_envs::Error::NoMotion { .. }),
                ) => {
                    last = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let why = last.map(|error| format!(": {error}")).unwrap_or_default();
        Err(Failure::new(format!("none of {ATTEMPTS} scenes gives an episode{why}")))
    }
}
