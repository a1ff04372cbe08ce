//! A whole run: its stages in order, each from where the last checkpoint stands.
//!
//! Everything random is a function of (run seed, purpose, place), so the position of a run is two numbers: stage and
//! update within the stage. A checkpoint holds them with weights and moments, and what a resumed run does next is
//! exactly what the unbroken one would have done.

use std::path::Path;
use std::time::Instant;

use efference_ops::memory;
use efference_rollout::{Purpose, VlaPolicy, seed_for};

use crate::checkpoint::{Checkpoint, Checkpointer, Identity, Tensors, TrainState};
use crate::config::{PretrainConfig, RlConfig, SftConfig, TrainConfig};
use crate::decisions::DecisionSet;
use crate::error::{Error, Result};
use crate::evaluate::{EvalTable, evaluate};
use crate::heldout::{self, HeldOut};
use crate::metrics::{self, MetricsLog, Record};
use crate::network;
use crate::optimise::{Optimiser, OptimiserSettings};
use crate::parts::{Parts, cameras};
use crate::record::Album;
use crate::report::{Event, Reporter, StopFlag, TaskScore, Values};
use crate::rl::{Iteration, Learner, Rl};
use crate::run_dir::{RunDir, Taken};
use crate::supervised::{self, PlayScenes, Rehearsal};
use crate::tensorboard::EventFile;
use crate::world::{DATASET_SUITE, World};

pub use crate::summary::Summary;

/// Starts a run in a new folder.
///
/// # Errors
/// [`Error`]; what was finished before is in the folder's last checkpoint.
pub fn start(
    config: &TrainConfig,
    taken: Taken,
    reporter: &dyn Reporter,
    stop: &StopFlag,
) -> Result<Summary> {
    in_pool(config.run.threads, || {
        // What can be refused is refused before a folder is made.
        let parts = Parts::new(config)?;
        let dir = RunDir::create(config, taken)?;
        Run::open(dir, config.clone(), parts, None, reporter, stop)?.go()
    })
}

/// Continues a run from its last checkpoint; `overrides` may change what does not change results.
///
/// # Errors
/// As [`start`]; [`Error::OtherConfig`].
pub fn resume(
    root: &Path,
    overrides: &[String],
    reporter: &dyn Reporter,
    stop: &StopFlag,
) -> Result<Summary> {
    let (dir, config) = RunDir::resume(root, overrides)?;
    in_pool(config.run.threads, || {
        let checkpoint = match Checkpoint::load(root) {
            // Killed before the first checkpoint: begin again.
            Err(crate::checkpoint::CheckpointError::Empty { .. }) => None,
            other => Some(other?),
        };
        let mut wanted = config.clone();
        if let Some(checkpoint) = &checkpoint {
            if checkpoint.state.config != config.fingerprint()? {
                return Err(Error::OtherConfig { path: checkpoint.path.clone() });
            }
            // Its weights replace the initial ones, which may be gone by now.
            wanted.model.init_from = None;
        }
        let parts = Parts::new(&wanted)?;
        if let Some(checkpoint) = &checkpoint {
            checkpoint.require(&parts.identity)?;
            network::load(&parts.policy, &checkpoint.path, &checkpoint.model)?;
        }
        Run::open(dir, config, parts, checkpoint, reporter, stop)?.go()
    })
}

/// Runs `work` on `threads` threads; 0 takes all cores.
///
/// # Errors
/// The threads cannot be started, or what `work` says.
pub fn in_pool<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    efference_envs::threads::pool(threads)?.install(work)
}

struct Run<'r> {
    dir: RunDir,
    config: TrainConfig,
    world: Option<Box<dyn World>>,
    policy: VlaPolicy,
    identity: Identity,
    demos: (Vec<efference_data::Episode>, Vec<efference_data::Episode>),
    log: MetricsLog,
    events: EventFile,
    checkpointer: Checkpointer,
    album: Album<'r>,
    state: TrainState,
    /// Moments of the stage in progress, taken from the checkpoint when the stage continues.
    moments: Tensors,
    /// Averages of the weights as the last stage left them, if it kept any.
    averages: Tensors,
    began: Instant,
    earlier_secs: f64,
    /// When this sitting of the stage began, and the seconds of earlier sittings.
    stage_clock: Option<(Instant, f64)>,
    reporter: &'r dyn Reporter,
    stop: &'r StopFlag,
}

/// Moments of the optimiser and all of the critic.
fn joined(rl: &Rl<'_>, optimiser: &Optimiser) -> Result<Tensors> {
    let mut all = optimiser.state()?;
    all.extend(rl.critic_state()?);
    Ok(all)
}

/// How a stage ended.
#[derive(PartialEq)]
enum End {
    Done,
    Stopped,
}

const ELAPSED: &str = "seconds/all";

impl<'r> Run<'r> {
    fn open(
        dir: RunDir,
        config: TrainConfig,
        parts: Parts,
        checkpoint: Option<Checkpoint>,
        reporter: &'r dyn Reporter,
        stop: &'r StopFlag,
    ) -> Result<Self> {
        let checkpointer = Checkpointer::open(&dir.checkpoints(), &config.checkpoint)?;
        let (state, moments) = match checkpoint {
            Some(checkpoint) => (checkpoint.state, checkpoint.optimizer),
            None => (TrainState { config: config.fingerprint()?, ..TrainState::default() }, Tensors::new()),
        };
        let log = MetricsLog::resume(&dir.metrics_file(), state.metrics_bytes)?;
        let past = metrics::read(&dir.metrics_file())?;
        let events = EventFile::create(&dir.events_file(), &past)?;
        let album = Album::open(&dir, &config, state.step > 0, reporter);
        let earlier_secs = state.numbers.get(ELAPSED).copied().unwrap_or(0.0);
        let Parts { world, policy, identity, demos, notes } = parts;
        notes.into_iter().for_each(|note| reporter.note(note));
        dir.write_config(&config)?;
        Ok(Self {
            dir,
            config,
            world,
            policy,
            identity,
            demos,
            log,
            events,
            checkpointer,
            album,
            state,
            moments,
            averages: Tensors::new(),
            began: Instant::now(),
            earlier_secs,
            stage_clock: None,
            reporter,
            stop,
        })
    }

    fn go(mut self) -> Result<Summary> {
        let result = self.stages();
        // Pictures and tables are for people: they are written whatever happened, and never hide what happened.
        let finished = matches!(result, Ok(End::Done));
        let summary = self.summary(finished);
        let closing = self.close(&summary);
        result.map_err(|error| error.in_run(self.dir.root()))?;
        closing?;
        Ok(summary)
    }

    fn stages(&mut self) -> Result<End> {
        let config = self.config.clone();
        type Stage<'a> = (&'static str, Box<dyn Fn(&mut Run<'_>) -> Result<End> + 'a>);
        let mut stages: Vec<Stage<'_>> = Vec::new();
        if let Some(pretrain) = &config.pretrain {
            stages.push(("pretrain", Box::new(move |run| run.pretrain(pretrain))));
        }
        if let Some(sft) = &config.sft {
            stages.push(("sft", Box::new(move |run| run.sft(sft))));
        }
        if let Some(rl) = &config.rl {
            stages.push(("rl", Box::new(move |run| run.rl(rl))));
        }
        let at = stages.iter().position(|(name, _)| *name == self.state.stage);
        let first = if self.state.stage == "done" { stages.len() } else { at.unwrap_or(0) };
        for (name, stage) in &stages[first..] {
            if self.state.stage != *name {
                self.state.stage = (*name).into();
                self.state.stage_step = 0;
                self.moments = Tensors::new();
            }
            let earlier = self.state.numbers.get(&format!("seconds/{name}")).copied().unwrap_or(0.0);
            self.stage_clock = Some((Instant::now(), earlier));
            let end = stage(self)?;
            self.keep_time();
            self.stage_clock = None;
            if end == End::Stopped {
                return Ok(End::Stopped);
            }
        }
        if self.state.stage != "done" {
            self.state.stage = "done".into();
            self.state.stage_step = 0;
            // The last stage's averages stay beside the weights.
            let averages = std::mem::take(&mut self.averages);
            self.save(averages)?;
        }
        Ok(End::Done)
    }

    fn pretrain(&mut self, config: &PretrainConfig) -> Result<End> {
        let Some(world) = self.world.take() else { return Err(no_simulator("pretrain")) };
        let play = PlayScenes::new(&*world, self.policy.chunk(), config.samples, self.config.run.seed);
        self.world = Some(world);
        let play = play?;
        let settings = OptimiserSettings::pretrain(config);
        let (end, _) = self.supervised("pretrain", settings, config.steps, |run, step, optimiser| {
            let examples = play.draw(&run.policy, step * config.batch as u64, config.batch)?;
            supervised::update(&run.policy, optimiser, &examples, &[config.label_smoothing_bins])
        })?;
        Ok(end)
    }

    fn sft(&mut self, config: &SftConfig) -> Result<End> {
        let cameras = cameras(self.world.as_deref(), &self.demos.0);
        let set = DecisionSet::new(&self.demos.0, &cameras, &self.policy)?;
        let held_out = match self.demos.1.as_slice() {
            [] => None,
            episodes => Some(DecisionSet::new(episodes, &cameras, &self.policy)?),
        };
        let settings = OptimiserSettings::sft(config);
        let seed = self.config.run.seed;
        let smoothing = config.smoothing();
        let play = match self.world.as_deref() {
            Some(world) if config.play_batch > 0 => {
                Some(PlayScenes::new(world, self.policy.chunk(), usize::MAX, seed)?)
            }
            _ => None,
        };
        let (end, mut optimiser) =
            self.supervised("sft", settings, config.steps, |run, step, optimiser| {
                let seed = seed_for(seed, Purpose::DataOrder, &[step]);
                let mut examples = set.draw(config.batch, config.augment_shift_px, seed);
                if let Some(play) = &play {
                    examples.extend(play.draw(
                        &run.policy,
                        step * config.play_batch as u64,
                        config.play_batch,
                    )?);
                }
                let mut values = supervised::update(&run.policy, optimiser, &examples, &smoothing)?;
                let last = step + 1 == config.steps as u64;
                if let Some(held_out) = &held_out
                    && (last || (step + 1) % heldout::EVERY == 0)
                {
                    let score = heldout::score(&run.policy, &set, held_out)?;
                    values.insert("heldout_nll".into(), score.nll);
                    if last {
                        run.state.numbers.extend(score.to_numbers());
                    }
                }
                Ok(values)
            })?;
        let last = end == End::Done && self.config.rl.is_none();
        if last && !optimiser.acting(self.acts_averaged(), || self.evaluate("after_sft"))? {
            return Ok(End::Stopped);
        }
        Ok(end)
    }

    /// Steps of a stage that learns from examples.
    fn supervised(
        &mut self,
        stage: &'static str,
        settings: OptimiserSettings,
        steps: usize,
        mut one: impl FnMut(&mut Self, u64, &mut Optimiser) -> Result<Values>,
    ) -> Result<(End, Optimiser)> {
        let mut optimiser = self.optimiser(settings)?;
        self.announce(stage, "step", steps as u64);
        while self.state.stage_step < steps as u64 {
            let values = one(self, self.state.stage_step, &mut optimiser)?;
            self.advance(stage, values, &optimiser)?;
            let done = self.state.stage_step;
            let stop = self.stop.requested();
            if stop || done == steps as u64 || done.is_multiple_of(self.config.checkpoint.every_steps as u64)
            {
                self.save(optimiser.state()?)?;
            }
            if stop {
                return Ok((End::Stopped, optimiser));
            }
        }
        self.averages = optimiser.averages()?;
        Ok((End::Done, optimiser))
    }

    /// Whether the average of the weights acts in evaluations.
    fn acts_averaged(&self) -> bool {
        self.config.eval.weights == "ema"
    }

    fn rl(&mut self, config: &RlConfig) -> Result<End> {
        let Some(world) = self.world.take() else { return Err(no_simulator("rl")) };
        let end = self.rl_in(&*world, config);
        self.world = Some(world);
        end
    }

    fn rl_in(&mut self, world: &dyn World, config: &RlConfig) -> Result<End> {
        let features = self.policy.net.config().text.hidden_size;
        let mut rl = Rl::new(world, config, features, self.config.run.seed)?;
        rl.restore_critic(&mut self.moments)?;
        let mut optimiser = self.optimiser(OptimiserSettings::rl(config))?;
        let averaged = self.acts_averaged();
        if self.state.stage_step == 0 && !self.has_eval("before_rl") {
            if !optimiser.acting(averaged, || self.evaluate_in(world, "before_rl"))? {
                return Ok(End::Stopped);
            }
            self.save(joined(&rl, &optimiser)?)?;
        }
        let set = match config.rehearse_demos {
            0 => None,
            batch => Some((DecisionSet::new(&self.demos.0, world.cameras(), &self.policy)?, batch)),
        };
        let play = match config.rehearse_play {
            0 => None,
            batch => {
                let seed = self.config.run.seed;
                Some((PlayScenes::new(world, self.policy.chunk(), usize::MAX, seed)?, batch))
            }
        };
        let rehearsal = (set.is_some() || play.is_some()).then(|| Rehearsal {
            demos: set.as_ref().map(|(set, batch)| (set, *batch)),
            play: play.as_ref().map(|(play, batch)| (play, *batch)),
            coef: config.rehearse_coef,
            smoothing_bins: self.config.sft.as_ref().map(SftConfig::smoothing).unwrap_or_default(),
            seed: self.config.run.seed,
        });
        rl.restore(&self.state.counters, &self.state.objective);
        const CLOCK: &str = "rl/clock_secs";
        let before = self.state.numbers.get(CLOCK).copied().unwrap_or(0.0);
        let mut evaluating = 0.0;
        let began = Instant::now();
        self.announce("rl", "iteration", config.iterations as u64);
        loop {
            let done = self.state.stage_step;
            let clock = before + began.elapsed().as_secs_f64() - evaluating;
            let over = config.minutes.is_some_and(|minutes| clock >= 60.0 * minutes);
            if over && done < config.iterations as u64 {
                let text = format!(
                    "rl: {done} iterations in {:.1} minutes, the limit of `rl.minutes`",
                    clock / 60.0
                );
                self.reporter.note(text);
            }
            if over || done == config.iterations as u64 {
                // Remembered, so that a run that is stopped in the evaluation that follows trains no further.
                self.state.numbers.insert(CLOCK.into(), clock);
                break;
            }
            if self.eval_is_due() {
                let pause = Instant::now();
                let complete = optimiser.acting(averaged, || self.evaluate_in(world, "iteration"))?;
                evaluating += pause.elapsed().as_secs_f64();
                self.save(joined(&rl, &optimiser)?)?;
                if !complete {
                    return Ok(End::Stopped);
                }
            }
            let recorded = self.album.wants_iteration(done + 1);
            let mut learner =
                Learner { policy: &self.policy, optimiser: &mut optimiser, rehearsal: rehearsal.as_ref() };
            let played = rl.iteration(done, &mut learner, self.stop, recorded)?;
            let Some(iteration) = played else {
                self.save(joined(&rl, &optimiser)?)?;
                return Ok(End::Stopped);
            };
            let clock = before + began.elapsed().as_secs_f64() - evaluating;
            self.state.numbers.insert(CLOCK.into(), clock);
            let Iteration { mut values, trajectories, scores } = iteration;
            values.insert("time/rl_secs".into(), clock);
            self.state.counters.extend(rl.counters());
            self.state.objective = rl.memory().clone();
            self.advance("rl", values, &optimiser)?;
            let done = self.state.stage_step;
            self.album.iteration(world, &self.policy, done, &trajectories, &scores);
            let stop = self.stop.requested();
            if stop || done.is_multiple_of(self.config.checkpoint.every as u64) {
                self.save(joined(&rl, &optimiser)?)?;
            }
            if stop {
                return Ok(End::Stopped);
            }
        }
        self.save(joined(&rl, &optimiser)?)?;
        self.averages = optimiser.averages()?;
        let evaluated = self.has_eval("after_rl");
        if !evaluated && !optimiser.acting(averaged, || self.evaluate_in(world, "after_rl"))? {
            return Ok(End::Stopped);
        }
        Ok(End::Done)
    }

    /// An optimiser for the stage in progress, continued if the checkpoint has one.
    fn optimiser(&mut self, settings: OptimiserSettings) -> Result<Optimiser> {
        let settings = settings.with(&self.config.optimizer);
        let mut optimiser = Optimiser::new(&self.policy.params, settings)?;
        let moments = std::mem::take(&mut self.moments);
        if !moments.is_empty() {
            optimiser.restore(&moments, &self.state.counters)?;
        }
        // From here on every checkpoint holds this stage's counts, not those of the stage before.
        self.state.counters.extend(optimiser.counters());
        Ok(optimiser)
    }

    fn announce(&self, name: &str, unit: &str, total: u64) {
        let (name, unit) = (name.to_string(), unit.to_string());
        self.reporter.report(&Event::Stage { name, unit, total, done: self.state.stage_step });
    }

    /// One update is done: count it, log it, tell it.
    fn advance(&mut self, stage: &str, mut values: Values, optimiser: &Optimiser) -> Result<()> {
        if let Some(bytes) = memory::peak_bytes() {
            values.insert("memory/peak_bytes".into(), bytes as f64);
        }
        memory::reset_peak();
        self.state.step += 1;
        self.state.stage_step += 1;
        self.state.score = None; // measured with other weights
        self.state.counters.extend(optimiser.counters());
        self.log(stage, values)?;
        self.reporter.report(&Event::Progress { done: self.state.stage_step });
        Ok(())
    }

    fn log(&mut self, stage: &str, mut values: Values) -> Result<()> {
        values.insert("time/since_start_secs".into(), self.elapsed());
        let record = Record { step: self.state.step, stage: stage.into(), values };
        self.log.append(&record)?;
        if let Err(error) = self.events.append(&record) {
            self.reporter.note(format!("TensorBoard events could not be written: {error}"));
        }
        self.album.numbers(&record);
        let Record { step, stage, values } = record;
        self.reporter.report(&Event::Metrics { stage, step, values });
        Ok(())
    }

    fn elapsed(&self) -> f64 {
        self.earlier_secs + self.began.elapsed().as_secs_f64()
    }

    fn has_eval(&self, label: &str) -> bool {
        self.state.evals.iter().any(|table| table.label == label)
    }

    /// Whether `eval.every` asks for an evaluation before the next iteration. Asked at the beginning of an iteration, so
    /// that a run that was stopped during the evaluation makes up for it.
    fn eval_is_due(&self) -> bool {
        let (done, every) = (self.state.stage_step, self.config.eval.every as u64);
        let measured = self.state.evals.iter().any(|table| table.step == self.state.step);
        done > 0 && every > 0 && done.is_multiple_of(every) && !measured
    }

    fn evaluate(&mut self, label: &str) -> Result<bool> {
        let Some(world) = self.world.take() else { return Ok(true) };
        let done = self.evaluate_in(&*world, label);
        self.world = Some(world);
        done
    }

    /// Plays the evaluation states; false when it was stopped.
    fn evaluate_in(&mut self, world: &dyn World, label: &str) -> Result<bool> {
        let config = &self.config.eval;
        if config.episodes_per_task == 0 {
            return Ok(true);
        }
        let total = (config.episodes_per_task * world.tasks().len()) as u64;
        let (name, unit) = ("eval".to_string(), "episode".to_string());
        self.reporter.report(&Event::Stage { name, unit, total, done: 0 });
        let mut progress = |done: usize| self.reporter.report(&Event::Progress { done: done as u64 });
        let keep = self.album.wants_episodes();
        let Some((tasks, trajectories)) =
            evaluate(world, &self.policy, config, keep, self.stop, &mut progress)?
        else {
            return Ok(false);
        };
        self.keep_eval(label, tasks)?;
        memory::reset_peak(); // the next step answers for itself only
        self.album.evaluation(world, &self.policy, label, self.state.step, &trajectories);
        if label == "iteration" {
            let config = self.config.rl.as_ref().map_or(0, |rl| rl.iterations);
            self.announce("rl", "iteration", config as u64);
        }
        Ok(true)
    }

    fn keep_eval(&mut self, label: &str, tasks: Vec<TaskScore>) -> Result<()> {
        let table = EvalTable { label: label.into(), step: self.state.step, tasks: tasks.clone() };
        let mut values: Values = tasks.iter().map(|t| (format!("success/{}", t.task), t.rate())).collect();
        values.insert("success".into(), table.mean());
        self.state.score = Some(table.mean());
        self.state.evals.push(table);
        self.log("eval", values)?;
        self.reporter.report(&Event::Eval { label: label.into(), step: self.state.step, tasks });
        Ok(())
    }

    fn save(&mut self, moments: Tensors) -> Result<()> {
        self.state.metrics_bytes = self.log.sync()?;
        self.keep_time();
        let weights: Tensors = self
            .policy
            .params
            .vars()
            .iter()
            .map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?)))
            .collect::<candle_core::Result<_>>()?;
        let path = self.checkpointer.save(&self.identity, &self.state, &weights, &moments)?;
        self.album.flush(&self.dir);
        self.reporter.report(&Event::Saved { step: self.state.step, path });
        drop((weights, moments));
        memory::reset_peak(); // as after an evaluation
        Ok(())
    }

    /// Seconds of the run and of the stage in progress into the state.
    fn keep_time(&mut self) {
        self.state.numbers.insert(ELAPSED.into(), self.elapsed());
        if let Some((began, earlier)) = self.stage_clock {
            let secs = earlier + began.elapsed().as_secs_f64();
            self.state.numbers.insert(format!("seconds/{}", self.state.stage), secs);
        }
    }

    fn summary(&self, finished: bool) -> Summary {
        let seconds =
            |(name, secs): (&String, &f64)| Some((name.strip_prefix("seconds/")?.to_string(), *secs));
        Summary {
            run: self.dir.root().into(),
            finished,
            step: self.state.step,
            evals: self.state.evals.clone(),
            held_out: HeldOut::from_numbers(&self.state.numbers),
            seconds: self.state.numbers.iter().filter_map(seconds).collect(),
            mujoco_version: self.identity.mujoco_version.clone(),
        }
    }

    fn close(&mut self, summary: &Summary) -> Result<()> {
        let value = serde_json::to_value(summary).unwrap_or_default();
        self.dir.write_summary(&value)?;
        let records = metrics::read(&self.dir.metrics_file())?;
        self.album.close(&self.dir, &self.config, &records, summary)
    }
}

fn no_simulator(section: &'static str) -> Error {
    let why = format!(
        "`env.suite = \"{DATASET_SUITE}\"` has no simulator; remove [{section}] or choose another suite"
    );
    Error::Setting { section, source: why.into() }
}
