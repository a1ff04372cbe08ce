//! Tasks of the LIBERO benchmark, as a world to train in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use efference_data::Episode;
use efference_envs::Env;
use efference_envs::libero::expert::ExpertOptions;
use efference_envs::libero::suite::{Base, Suite};
use efference_envs::libero::{self, LiberoEnv, LiberoOptions, Pack, Profile, SubstepOrder};
use efference_nets::Quantiles;
use efference_rollout::EnvSource;

use super::tabletop::range;
use super::{PlayMaker, World};
use crate::config::EnvConfig;
use crate::error::{Error, Result};

/// What the policy looks through.
const CAMERAS: [&str; 2] = ["agentview", "wrist"];

/// LIBERO environments as a configuration describes them.
pub struct Libero {
    options: LiberoOptions,
    cameras: Vec<String>,
    packs: Vec<Arc<Pack>>,
    ids: Vec<String>,
    range: Quantiles,
}

impl Libero {
    /// The tasks of a configuration, read from their packs.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown task or settings out of range, and for packs that are missing or damaged.
    pub fn new(config: &EnvConfig) -> Result<Self> {
        let suite: Suite =
            config.suite.parse().map_err(|e| Error::Setting { section: "env.suite", source: Box::new(e) })?;
        let settings = &config.libero;
        let options = LiberoOptions {
            order: if settings.order == "exact" { SubstepOrder::Exact } else { SubstepOrder::Fused },
            profile: if settings.profile == "faithful" { Profile::Faithful } else { Profile::Fast },
            image_size: config.image_size,
            max_steps: if config.max_steps == 0 { suite.max_steps() } else { config.max_steps },
            idle_steps: settings.idle_steps,
            mirror: true,
        };
        let root = match settings.packs.as_str() {
            "" => libero::packs_dir(),
            folder => PathBuf::from(folder),
        };
        let places: Vec<usize> = match config.tasks.as_slice() {
            [] => (0..suite.len()).collect(),
            ids => ids.iter().map(|id| place_of(id, suite)).collect::<Result<_>>()?,
        };
        let packs: Vec<Arc<Pack>> =
            places.into_iter().map(|task| open(&root, &config.suite, task)).collect::<Result<_>>()?;
        let ids = packs.iter().map(|pack| pack.id()).collect();
        let cameras = CAMERAS.map(String::from).to_vec();
        Ok(Self { options, cameras, packs, ids, range: range(&proprio_range(suite)) })
    }

    fn pack(&self, task: &str) -> efference_envs::Result<&Arc<Pack>> {
        let at = self.ids.iter().position(|id| id == task);
        at.map(|at| &self.packs[at]).ok_or_else(|| efference_envs::Error::UnknownTask {
            name: task.into(),
            nearest: self.ids.first().cloned().unwrap_or_default(),
            known: self.ids.join(", "),
        })
    }
}

impl EnvSource for Libero {
    fn make(&self, task: &str) -> efference_envs::Result<Box<dyn Env>> {
        Ok(Box::new(LiberoEnv::new(self.pack(task)?, &self.options)?))
    }

    fn cameras(&self) -> &[String] {
        &self.cameras
    }
}

impl World for Libero {
    fn tasks(&self) -> &[String] {
        &self.ids
    }

    fn place(&self, task: usize) -> u64 {
        self.packs[task].meta.task_id as u64
    }

    fn max_steps(&self) -> usize {
        self.options.max_steps
    }

    fn image_size(&self) -> usize {
        self.options.image_size
    }

    /// A scene takes tens of megabytes, a picture tens of milliseconds: few at a time.
    fn slots(&self) -> usize {
        16
    }

    fn train_seed(&self, n: u64) -> u64 {
        libero::train_seed(n)
    }

    fn eval_seed(&self, i: usize) -> u64 {
        libero::eval_seed(i)
    }

    fn proprio_range(&self) -> Quantiles {
        self.range.clone()
    }

    fn make_for_people(&self, task: &str, side: usize) -> Result<Box<dyn Env>> {
        let options = LiberoOptions { image_size: side, mirror: false, ..self.options.clone() };
        Ok(Box::new(LiberoEnv::new(self.pack(task)?, &options).map_err(efference_envs::Error::from)?))
    }

    fn demonstrate(&self, task: usize, seed: u64) -> Result<Episode> {
        let expert = ExpertOptions { max_steps: self.options.max_steps, ..ExpertOptions::default() };
        Ok(libero::demonstrate(&self.packs[task], &self.options, expert, seed, 1)?)
    }

    fn play(&self, _chunk: usize) -> Result<Option<Box<dyn PlayMaker>>> {
        Ok(None)
    }

    fn settings(&self) -> serde_json::Value {
        libero_settings(&self.options)
    }
}

/// What a checkpoint must share with those who evaluate it. The order of a physics step is not among it: a policy that
/// was trained in the fast one may be measured in that of published numbers.
pub fn libero_settings(options: &LiberoOptions) -> serde_json::Value {
    serde_json::json!({
        "profile": options.profile,
        "idle_steps": options.idle_steps,
        "mirror": options.mirror,
    })
}

/// Where the task of an id, for example `libero_goal_7`, stands in its suite.
fn place_of(id: &str, suite: Suite) -> Result<usize> {
    let number = id.strip_prefix(&suite.to_string()).and_then(|rest| rest.strip_prefix('_'));
    number.and_then(|n| n.parse().ok()).filter(|&task| task < suite.len()).ok_or_else(|| {
        let (name, last) = (suite, suite.len() - 1);
        let why = format!("there is no task `{id}`: {name} has `{name}_0` to `{name}_{last}`");
        Error::Setting { section: "env.tasks", source: why.into() }
    })
}

fn open(root: &Path, suite: &str, task: usize) -> Result<Arc<Pack>> {
    Pack::find(root, suite, task)
        .and_then(Pack::open)
        .map_err(|e| Error::Setting { section: "env.libero.packs", source: Box::new(e) })
}

/// Range of each proprioception number, with a margin: gripper position (metres), axis-angle (radians, not flipped to the
/// nearer of two equal rotations), finger positions (metres). Fixed per suite. The floor scenes of Object stand a table's
/// height lower than those of Spatial and Goal; Long and 90 have both.
fn proprio_range(suite: Suite) -> [[f64; 2]; 8] {
    let height = match suite.base {
        Base::Object => [0.0, 0.6],
        Base::Spatial | Base::Goal => [0.85, 1.45],
        Base::Long | Base::Ninety => [0.0, 1.45],
    };
    let turn = [-3.5, 3.5];
    [[-0.7, 0.35], [-0.5, 0.5], height, [0.0, 6.3], turn, turn, [0.0, 0.042], [-0.042, 0.0]]
}
