//! Which scene is learned from next: stored sets mixed by source and task, or the generator of boxes.

use std::collections::BTreeMap;
use std::path::Path;

use efference_data::flow::FlowStore;
use efference_envs::flow::{FlowTask, GenerateOptions, generate};
use efference_nets::flow::FlowNetConfig;
use efference_rollout::{Purpose, seed_for};
use rayon::prelude::*;

use super::config::FlowConfig;
use super::random::Gaussian;
use super::scene::Scene;
use super::synthetic::synthetic_scene;
use crate::error::{Error, Result};

/// Scenes to learn from and scenes to be measured on.
pub(super) struct Scenes {
    /// One list per source and task.
    groups: Vec<Group>,
    synthetic: bool,
    frames: usize,
    points: usize,
    seed: u64,
    /// Scenes that are never learned from.
    pub held_out: Vec<Scene>,
}

struct Group {
    scenes: Vec<Scene>,
    /// Sum of weights up to and with this group, 0 to 1.
    until: f64,
}

/// Seeds of held-out generated scenes lie far from those of training.
const HELD_OUT: u64 = 1 << 48;

impl Scenes {
    /// Reads what `[data]` names.
    ///
    /// # Errors
    /// A set that cannot be read; nothing left to learn from.
    pub fn new(config: &FlowConfig) -> Result<Self> {
        let net = config.net();
        let (groups, mut held_out) = stored(config, &net)?;
        if config.data.synthetic {
            let one = |i: u64| {
                let seed = seed_for(config.run.seed, Purpose::Prompts, &[HELD_OUT + i]);
                synthetic_scene(seed, config.eval.points.min(config.train.points_max), net.frames)
            };
            held_out.extend((0..config.eval.synthetic_scenes as u64).map(one).collect::<Result<Vec<_>>>()?);
        }
        let weight = |group: &Vec<Scene>| (group.len() as f64).powf(config.data.balance);
        // The generator counts as one more group, as large as the largest.
        let largest = groups.iter().map(weight).fold(0.0, f64::max);
        let total: f64 = groups.iter().map(weight).sum::<f64>()
            + if config.data.synthetic { largest.max(1.0) } else { 0.0 };
        let mut sum = 0.0;
        let groups = groups
            .into_iter()
            .map(|scenes| {
                sum += weight(&scenes) / total;
                Group { until: sum, scenes }
            })
            .collect::<Vec<_>>();
        if groups.is_empty() && !config.data.synthetic {
            let reason = "no episode is left to learn from; see data.tasks, data.per_task and data.held_out";
            return Err(Error::Flow { reason: reason.into() });
        }
        Ok(Self {
            groups,
            synthetic: config.data.synthetic,
            frames: net.frames,
            points: config.train.points_max,
            seed: config.run.seed,
            held_out,
        })
    }

    /// Number of stored scenes to learn from.
    pub fn stored(&self) -> usize {
        self.groups.iter().map(|group| group.scenes.len()).sum()
    }

    /// Scene `slot` of update `step`, and a stream of random numbers for what is done with it.
    pub fn draw(&self, step: u64, slot: u64) -> Result<(Scene, Gaussian)> {
        let seed = seed_for(self.seed, Purpose::DataOrder, &[step, slot]);
        let mut random = Gaussian::new(seed);
        let at = random.uniform(0.0, 1.0);
        let group = self.groups.iter().find(|group| at < group.until);
        let group = if self.synthetic { group } else { group.or(self.groups.last()) };
        let scene = match group {
            Some(group) => {
                let count = group.scenes.len();
                let i = (random.uniform(0.0, count as f64) as usize).min(count - 1);
                group.scenes[i].clone()
            }
            None => synthetic_scene(seed ^ 1, self.points, self.frames)?,
        };
        Ok((scene, random))
    }
}

type Groups = BTreeMap<(String, String), Vec<Scene>>;

/// The scenes to learn from by source and task, and those held out.
fn stored(config: &FlowConfig, net: &FlowNetConfig) -> Result<(Vec<Vec<Scene>>, Vec<Scene>)> {
    let data = &config.data;
    let mut groups = Groups::new();
    let mut held_out = Vec::new();
    for set in &data.sets {
        let store = FlowStore::open(set)?;
        let wanted = |task: &String| data.tasks.is_empty() || data.tasks.contains(task);
        for scene in load(&store, net)?.into_iter().filter(|scene| wanted(&scene.task)) {
            add(&mut groups, scene);
        }
    }
    for scenes in groups.values_mut() {
        held_out.extend(scenes.split_off(scenes.len().saturating_sub(data.held_out)));
    }
    for scene in simulated(config, net, false)? {
        add(&mut groups, scene);
    }
    for scenes in groups.values_mut().filter(|_| data.per_task > 0) {
        scenes.truncate(data.per_task);
    }
    held_out.extend(simulated(config, net, true)?);
    Ok((groups.into_values().filter(|scenes| !scenes.is_empty()).collect(), held_out))
}

/// All episodes of a set, small.
fn load(store: &FlowStore, net: &FlowNetConfig) -> Result<Vec<Scene>> {
    (0..store.len()).into_par_iter().map(|i| Scene::of(&store.load(i)?, net)).collect()
}

/// All episodes of the set in `dir`, for networks of shape `net`.
///
/// # Errors
/// A set that cannot be read.
pub fn stored_scenes(dir: &Path, net: &FlowNetConfig) -> Result<Vec<Scene>> {
    load(&FlowStore::open(dir)?, net)
}

fn add(groups: &mut Groups, scene: Scene) {
    groups.entry((format!("{:?}", scene.source), scene.task.clone())).or_default().push(scene);
}

/// Episodes of the simulated workbench as `[data]` wants them: the same ones for the same configuration.
fn simulated(config: &FlowConfig, net: &FlowNetConfig, eval: bool) -> Result<Vec<Scene>> {
    let data = &config.data;
    let per_task = if eval { data.simulated_eval } else { data.simulated };
    // Another run seed sees other scenes; held-out scenes are the same for all.
    let first = if eval { 0 } else { (config.run.seed % (1 << 16)) << 20 };
    workbench(&data.tasks, per_task, first, eval, config.run.threads, net)
}

/// `per_task` evaluation scenes of each of the workbench's families (all without names), for networks of shape `net`.
/// Scenes that hide their object or allow no motion are left out.
///
/// # Errors
/// An unknown family; the simulator refused.
pub fn workbench_scenes(tasks: &[String], per_task: usize, net: &FlowNetConfig) -> Result<Vec<Scene>> {
    for id in tasks {
        FlowTask::from_id(id)?;
    }
    workbench(tasks, per_task, 0, true, 0, net)
}

fn workbench(
    names: &[String],
    per_task: usize,
    first: u64,
    eval: bool,
    threads: usize,
    net: &FlowNetConfig,
) -> Result<Vec<Scene>> {
    let wanted = |task: &FlowTask| names.is_empty() || names.iter().any(|id| id == task.id());
    let tasks: Vec<FlowTask> = FlowTask::ALL.into_iter().filter(wanted).collect();
    let count = (per_task as u64).saturating_mul(tasks.len() as u64);
    if count == 0 {
        return Ok(Vec::new());
    }
    let options = GenerateOptions { tasks, first, eval, ..GenerateOptions::default() };
    let mut scenes = Vec::new();
    generate::<Error>(&options, 0..count, threads, |_, episode| {
        if let Some(episode) = episode {
            scenes.push(Scene::of(&episode, net)?);
        }
        Ok(())
    })?;
    Ok(scenes)
}
