//! Six tasks on one table, as a world to train in.

use efference_data::Episode;
use efference_envs::Env;
use efference_envs::tabletop::{
    self, CAMERAS, Expert, PROPRIO_RANGE, Play, Quality, TabletopEnv, TabletopOptions, Task,
};
use efference_nets::Quantiles;
use efference_rollout::{EnvSource, demonstrate};

use super::{PlayLook, PlayMaker, World};
use crate::config::EnvConfig;
use crate::error::{Error, Result};

/// Tabletop environments as a configuration describes them.
pub struct Tabletop {
    options: TabletopOptions,
    cameras: Vec<String>,
    tasks: Vec<Task>,
    ids: Vec<String>,
}

impl Tabletop {
    /// The suite of a configuration.
    ///
    /// # Errors
    /// [`Error::Setting`] for an unknown task.
    pub fn new(config: &EnvConfig) -> Result<Self> {
        let defaults = TabletopOptions::default();
        let options = TabletopOptions {
            image_size: config.image_size,
            max_steps: if config.max_steps == 0 { defaults.max_steps } else { config.max_steps },
            randomize_lighting: config.lighting,
            distractors: config.distractors,
            quality: defaults.quality,
        };
        let tasks = match config.tasks.as_slice() {
            [] => Task::ALL.to_vec(),
            ids => ids
                .iter()
                .map(|id| Task::from_id(id))
                .collect::<std::result::Result<Vec<_>, _>>()
                .map_err(|e| Error::Setting { section: "env.tasks", source: Box::new(e) })?,
        };
        let ids = tasks.iter().map(|task| task.id().to_string()).collect();
        Ok(Self { options, cameras: CAMERAS.map(String::from).to_vec(), tasks, ids })
    }

    /// How each environment is set up.
    pub fn options(&self) -> &TabletopOptions {
        &self.options
    }
}

impl EnvSource for Tabletop {
    fn make(&self, task: &str) -> efference_envs::Result<Box<dyn Env>> {
        Ok(Box::new(TabletopEnv::new(task, &self.options)?))
    }

    fn cameras(&self) -> &[String] {
        &self.cameras
    }
}

impl World for Tabletop {
    fn tasks(&self) -> &[String] {
        &self.ids
    }

    fn place(&self, task: usize) -> u64 {
        Task::ALL.iter().position(|t| *t == self.tasks[task]).unwrap_or(0) as u64
    }

    fn max_steps(&self) -> usize {
        self.options.max_steps
    }

    fn image_size(&self) -> usize {
        self.options.image_size
    }

    fn train_seed(&self, n: u64) -> u64 {
        tabletop::train_seed(n)
    }

    fn eval_seed(&self, i: usize) -> u64 {
        tabletop::eval_seed(i)
    }

    fn proprio_range(&self) -> Quantiles {
        range(&PROPRIO_RANGE)
    }

    fn make_for_people(&self, task: &str, side: usize) -> Result<Box<dyn Env>> {
        let options = TabletopOptions { image_size: side, quality: Quality::Fast, ..self.options.clone() };
        Ok(Box::new(TabletopEnv::new(task, &options)?))
    }

    fn demonstrate(&self, task: usize, seed: u64) -> Result<Episode> {
        let task = self.tasks[task];
        Ok(demonstrate(&self.options, task, seed, Expert::new(task))?)
    }

    fn play(&self, chunk: usize) -> Result<Option<Box<dyn PlayMaker>>> {
        Ok(Some(Box::new(Reaching(Play::new(&self.options, chunk)?))))
    }
}

struct Reaching(Play);

impl PlayMaker for Reaching {
    fn look(&mut self, seed: u64) -> Result<PlayLook> {
        let sample = self.0.sample(seed)?;
        Ok(PlayLook {
            images: sample.images,
            observation: sample.observation,
            instruction: sample.instruction.into(),
            actions: sample.actions,
        })
    }
}

/// Fixed ranges as statistics.
pub(super) fn range(of: &[[f64; 2]]) -> Quantiles {
    let mut range = Quantiles::unit(of.len());
    for (d, &[low, high]) in of.iter().enumerate() {
        (range.q01[d], range.q99[d]) = (low, high);
    }
    range
}
