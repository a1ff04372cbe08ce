//! Many episodes, over threads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use efference_data::flow::FlowEpisode;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed, train_seed};
use crate::{Env, Error, Result};

/// Episodes that are made before they are handed on: bounds memory, keeps threads busy.
const BATCH: u64 = 64;

/// Something that gives episodes by number.
pub trait Recipe: Sync {
    /// The `index`-th episode; the same on any thread.
    ///
    /// # Errors
    /// [`Error::Hidden`] and [`Error::NoMotion`] for scenes that give none; what the simulator says.
    fn episode(&self, index: u64) -> Result<FlowEpisode>;
}

/// Scenes of the workbench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateOptions {
    /// Families, in turn; at least one.
    pub tasks: Vec<FlowTask>,
    /// Arms that stand in the picture, in turn; at least one.
    pub arms: Vec<ArmKind>,
    /// Number of the first scene; episode `i` is of scene `first + i / tasks`.
    pub first: u64,
    /// Whether scenes are evaluation scenes ([`eval_seed`]) or training scenes ([`train_seed`]).
    pub eval: bool,
    /// Side of the square pictures, 16 to 1024.
    pub image_size: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            tasks: FlowTask::ALL.to_vec(),
            arms: ArmKind::ALL.to_vec(),
            first: 0,
            eval: false,
            image_size: 128,
        }
    }
}

/// What became of a range of episodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    /// Handed on.
    pub made: u64,
    /// Scenes in which the camera saw too little of the object.
    pub hidden: u64,
    /// Scenes without a free motion.
    pub blocked: u64,
}

thread_local! {
    static ENVS: RefCell<BTreeMap<(FlowTask, ArmKind, usize), FlowEnv>> = const { RefCell::new(BTreeMap::new()) };
}

impl Recipe for GenerateOptions {
    fn episode(&self, index: u64) -> Result<FlowEpisode> {
        self.episode(index)
    }
}

impl GenerateOptions {
    /// The `index`-th episode.
    ///
    /// # Errors
    /// [`Error::Hidden`] and [`Error::NoMotion`] for scenes that give none; [`Error::Option`] without a family or arm.
    pub fn episode(&self, index: u64) -> Result<FlowEpisode> {
        let missing = |field, expected| Error::Option { field, expected, got: "none".to_owned() };
        let tasks = self.tasks.len() as u64;
        if tasks == 0 {
            return Err(missing("tasks", "at least one family"));
        }
        let task = self.tasks[(index % tasks) as usize];
        let scene = self.first + index / tasks;
        let arm = self.arms.get((scene % self.arms.len().max(1) as u64) as usize);
        let arm = *arm.ok_or_else(|| missing("arms", "at least one arm"))?;
        let seed = if self.eval { eval_seed(scene) } else { train_seed(scene) };
        ENVS.with_borrow_mut(|envs| {
            let env = match envs.entry((task, arm, self.image_size)) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(place) => {
                    let options = FlowOptions { image_size: self.image_size, ..FlowOptions::default() };
                    place.insert(FlowEnv::new(task, arm, &options)?)
                }
            };
            env.reset(seed)?;
            env.record(seed)
        })
    }
}

/// Makes the episodes of these indices on `threads` threads (0: one per core) and hands them on in order; scenes that
/// give none are counted. The result does not depend on the number of threads.
///
/// # Errors
/// The first failure of simulator or `sink`.
pub fn generate<E: From<Error>>(
    recipe: &impl Recipe,
    indices: Range<u64>,
    threads: usize,
    mut sink: impl FnMut(u64, Option<FlowEpisode>) -> std::result::Result<(), E>,
) -> std::result::Result<Generated, E> {
    let pool = crate::threads::pool(threads)?;
    let mut count = Generated::default();
    let mut start = indices.start;
    while start < indices.end {
        let end = indices.end.min(start + BATCH);
        let batch: Vec<Result<FlowEpisode>> = pool.install(|| {
            (0..(end - start) as usize)
                .into_par_iter()
                .with_max_len(1)
                .map(|i| recipe.episode(start + i as u64))
                .collect()
        });
        for (index, episode) in (start..end).zip(batch) {
            let episode = match episode {
                Ok(episode) => {
                    count.made += 1;
                    Some(episode)
                }
                Err(Error::Hidden { .. }) => {
                    count.hidden += 1;
                    None
                }
                Err(Error::NoMotion { .. }) => {
                    count.blocked += 1;
                    None
                }
                Err(error) => return Err(error.into()),
            };
            sink(index, episode)?;
        }
        start = end;
    }
    Ok(count)
}
