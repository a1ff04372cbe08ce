//! Many environments over threads.

use rayon::prelude::*;

use crate::{Action, Env, Error, Observation, Result, Snapshot};

/// What a chunk of actions led to in one environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChunkOutcome {
    /// After the last executed action.
    pub observation: Observation,
    /// Sum of the rewards.
    pub reward: f32,
    /// Whether the task is completed.
    pub success: bool,
    /// Whether the episode is over.
    pub done: bool,
    /// Actions of this chunk that were executed before the end.
    pub executed: usize,
    /// Control steps since the reset.
    pub steps: usize,
    /// Why the episode had to end, if it had to.
    pub aborted: Option<String>,
    /// The state after each executed action, if asked for.
    pub snapshots: Vec<Snapshot>,
}

/// N environments and the threads that run them. Environments share nothing that changes, so results do not depend on
/// the number of threads. Drawing contexts belong to the threads and are made on first use.
pub struct VecEnv<E> {
    envs: Vec<E>,
    pool: &'static rayon::ThreadPool,
}

impl<E: Env> VecEnv<E> {
    /// Takes the environments over; `threads` = 0 takes one thread per core.
    ///
    /// # Errors
    /// [`Error::Threads`] when the threads cannot be started.
    pub fn new(envs: Vec<E>, threads: usize) -> Result<Self> {
        let pool = crate::threads::pool(threads)?;
        Ok(Self { envs, pool })
    }

    /// How many environments there are.
    pub fn len(&self) -> usize {
        self.envs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.envs.is_empty()
    }

    /// The environments, in order.
    pub fn envs(&self) -> &[E] {
        &self.envs
    }

    /// The environments, in order.
    pub fn envs_mut(&mut self) -> &mut [E] {
        &mut self.envs
    }

    /// Gives the environments back.
    pub fn into_envs(self) -> Vec<E> {
        self.envs
    }

    /// Runs a function on every environment, in parallel; results are in the environments' order.
    ///
    /// # Errors
    /// The first error in that order.
    pub fn map<T: Send>(&mut self, f: impl Fn(usize, &mut E) -> Result<T> + Sync) -> Result<Vec<T>> {
        let envs = &mut self.envs;
        let results: Vec<Result<T>> = self
            .pool
            .install(|| envs.par_iter_mut().with_max_len(1).enumerate().map(|(i, e)| f(i, e)).collect());
        results.into_iter().collect()
    }

    /// Starts an episode in each environment, [N] seeds.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one seed per environment; what [`Env::reset`] says.
    pub fn reset_all(&mut self, seeds: &[u64]) -> Result<Vec<Observation>> {
        self.check("seeds", seeds.len())?;
        self.map(|i, env| env.reset(seeds[i]))
    }

    /// Executes a chunk of actions in each environment until its end or its episode's, [N] lists. An empty chunk
    /// leaves its environment alone (its outcome is empty too), which is how finished ones wait.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one chunk per environment; what [`Env::step`] says.
    pub fn step_all(&mut self, chunks: &[Vec<Action>], keep_snapshots: bool) -> Result<Vec<ChunkOutcome>> {
        self.check("chunks", chunks.len())?;
        self.map(|i, env| {
            let mut sum = ChunkOutcome::default();
            for action in &chunks[i] {
                let now = env.step(action)?;
                sum.observation = now.observation;
                sum.reward += now.reward;
                sum.success = now.success;
                sum.done = now.done;
                sum.executed += 1;
                sum.steps = now.steps;
                sum.aborted = now.aborted;
                if keep_snapshots {
                    sum.snapshots.push(env.snapshot());
                }
                if now.done {
                    break;
                }
            }
            Ok(sum)
        })
    }

    /// Draws the same cameras in every environment into one batch, [N, C, S, S, 3] bytes. Environments whose entry in
    /// `active` is false are skipped: their part of `out` stays as it is.
    ///
    /// # Errors
    /// [`Error::Length`] when `out` or `active` has another length; what [`Env::render_into`] says.
    pub fn render_all(&mut self, cameras: &[&str], active: &[bool], out: &mut [u8]) -> Result<()> {
        self.check("flags of active environments", active.len())?;
        let Some(side) = self.envs.first().map(|env| env.spec().image_size) else { return Ok(()) };
        let image = side * side * 3;
        let (per_env, expected) = (image * cameras.len(), image * cameras.len() * self.envs.len());
        if out.len() != expected {
            return Err(Error::Length { what: "bytes for a batch of images", expected, got: out.len() });
        }
        if per_env == 0 {
            return Ok(());
        }
        let envs = &mut self.envs;
        self.pool.install(|| {
            envs.par_iter_mut().zip(out.par_chunks_mut(per_env)).zip(active).with_max_len(1).try_for_each(
                |((env, out), active)| {
                    for (camera, out) in cameras.iter().zip(out.chunks_mut(image)).filter(|_| *active) {
                        env.render_into(camera, out)?;
                    }
                    Ok(())
                },
            )
        })
    }

    fn check(&self, what: &'static str, got: usize) -> Result<()> {
        let expected = self.envs.len();
        if got == expected { Ok(()) } else { Err(Error::Length { what, expected, got }) }
    }
}
