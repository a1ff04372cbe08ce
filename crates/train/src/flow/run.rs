//! A whole run: training, reinforcement learning if asked for, evaluation; each update a function of seed and step, so
//! that a resumed run does what the unbroken one would have done.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use efference_ops::{EmaConfig, Grads, OptimizerConfig, Schedule, value_and_grad};
use serde::Serialize;

use super::batch::{losses, noisy};
use super::config::{FlowConfig, json};
use super::evaluate::{self, TaskMetrics, evaluate};
use super::improve::Improver;
use super::model::{FlowModel, FlowSpec};
use super::source::Scenes;
use crate::checkpoint::{Checkpoint, CheckpointError, Checkpointer, Identity, Tensors, TrainState, sha256};
use crate::device;
use crate::error::{Error, Result};
use crate::metrics::{MetricsLog, Record};
use crate::optimise::{Optimiser, OptimiserSettings};
use crate::report::{Event, Reporter, StopFlag, Values};
use crate::run::in_pool;
use crate::run_dir::{RunDir, Taken};

/// Updates before gradients must reach every weight: the first moves the last layer, the second the gates.
const REACH_AFTER: u64 = 3;

/// Seed of evaluations: the same scenes and noise for every run.
const EVAL_SEED: u64 = 0x00f1_0e7a;

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Its folder.
    pub run: PathBuf,
    /// Whether it came to its end, or was stopped and can be resumed.
    pub finished: bool,
    /// Updates done.
    pub step: u64,
    /// Parameters of the network.
    pub parameters: usize,
    /// Held-out scenes by task after training; empty without any.
    pub metrics: Vec<TaskMetrics>,
    /// The same after reinforcement learning.
    pub improved: Vec<TaskMetrics>,
    /// Numbers of the reinforcement learning on held-out scenes, before and after.
    pub rl: Values,
}

/// Starts a run in a new folder.
///
/// # Errors
/// [`Error`]; what was finished before is in the folder's last checkpoint.
pub fn start(config: &FlowConfig, taken: Taken, reporter: &dyn Reporter, stop: &StopFlag) -> Result<Summary> {
    in_pool(config.run.threads, || {
        let parts = Parts::new(config, true)?;
        let dir = RunDir::create_as(&config.run, &config.to_toml()?, taken)?;
        Run::open(dir, config, parts, None, reporter, stop)?.go()
    })
}

/// Continues a run from its last checkpoint.
///
/// # Errors
/// As [`start`]; [`Error::OtherConfig`].
pub fn resume(
    root: &Path,
    overrides: &[String],
    reporter: &dyn Reporter,
    stop: &StopFlag,
) -> Result<Summary> {
    let dir = RunDir::open(root)?;
    let config = FlowConfig::load(&dir.config_file(), overrides)?;
    in_pool(config.run.threads, || {
        let checkpoint = match Checkpoint::load(root) {
            // Killed before the first checkpoint: begin again.
            Err(CheckpointError::Empty { .. }) => None,
            other => Some(other?),
        };
        // The checkpoint's weights replace the initial ones, which may be gone by now.
        let parts = Parts::new(&config, checkpoint.is_none())?;
        if let Some(checkpoint) = &checkpoint {
            if checkpoint.state.config != config.fingerprint()? {
                return Err(Error::OtherConfig { path: checkpoint.path.clone() });
            }
            checkpoint.require(&parts.identity)?;
            parts.model.set(&checkpoint.path, &checkpoint.model)?;
        }
        Run::open(dir, &config, parts, checkpoint, reporter, stop)?.go()
    })
}

/// What can be refused before a folder is made.
struct Parts {
    model: FlowModel,
    scenes: Scenes,
    identity: Identity,
}

impl Parts {
    fn new(config: &FlowConfig, with_initial: bool) -> Result<Self> {
        let spec =
            FlowSpec { net: config.net(), process: config.process.clone(), sampler: config.sampler.clone() };
        let identity = Identity {
            model: json(&spec),
            mujoco_version: String::new(),
            suite: "flow".into(),
            world: serde_json::Value::Null,
            tokenizer_sha256: sha256(b"hashed words"),
            action_stats: serde_json::Value::Null,
        };
        let model = FlowModel::new(spec, config.run.seed, device::open(&config.run.device)?)?;
        if let Some(from) = config.model.init_from.as_ref().filter(|_| with_initial) {
            let start = FlowModel::load(from, model.params.device().clone())?;
            model.set(Path::new(from), &start.weights()?)?;
        }
        Ok(Self { model, scenes: Scenes::new(config)?, identity })
    }
}

struct Run<'r> {
    dir: RunDir,
    config: &'r FlowConfig,
    model: FlowModel,
    scenes: Scenes,
    identity: Identity,
    log: MetricsLog,
    checkpointer: Checkpointer,
    state: TrainState,
    /// Moments of the stage in progress, from the checkpoint that is continued.
    moments: Tensors,
    reporter: &'r dyn Reporter,
    stop: &'r StopFlag,
}

/// Prefix of the frozen generator's weights in a checkpoint of `[rl]`.
const REFERENCE: &str = "reference/";

impl<'r> Run<'r> {
    fn open(
        dir: RunDir,
        config: &'r FlowConfig,
        parts: Parts,
        checkpoint: Option<Checkpoint>,
        reporter: &'r dyn Reporter,
        stop: &'r StopFlag,
    ) -> Result<Self> {
        let Parts { model, scenes, identity } = parts;
        let checkpointer = Checkpointer::open(&dir.checkpoints(), &config.checkpoint)?;
        let (state, moments) = match checkpoint {
            Some(checkpoint) => (checkpoint.state, checkpoint.optimizer),
            None => {
                let config = config.fingerprint()?;
                (TrainState { stage: "train".into(), config, ..TrainState::default() }, Tensors::new())
            }
        };
        let log = MetricsLog::resume(&dir.metrics_file(), state.metrics_bytes)?;
        Ok(Self { dir, config, model, scenes, identity, log, checkpointer, state, moments, reporter, stop })
    }

    fn go(mut self) -> Result<Summary> {
        let root = self.dir.root().to_path_buf();
        self.stages().map_err(|error| error.in_run(&root))
    }

    fn stages(&mut self) -> Result<Summary> {
        let mut out = Summary {
            run: self.dir.root().to_path_buf(),
            finished: false,
            step: 0,
            parameters: self.model.params.count(),
            metrics: Vec::new(),
            improved: Vec::new(),
            rl: Values::new(),
        };
        self.reporter.note(format!(
            "{} parameters, {} stored scenes to learn from, {} held out",
            out.parameters,
            self.scenes.stored(),
            self.scenes.held_out.len()
        ));
        if self.state.stage == "train" {
            out.finished = self.train()?;
        }
        if self.state.stage != "train" {
            out.finished = true;
            if self.config.rl.is_some() && self.state.stage == "rl" {
                out.finished = self.improve(&mut out)?;
            }
            if out.finished {
                let improved = self.config.rl.is_some();
                let metrics = self.evaluation(improved)?;
                *(if improved { &mut out.improved } else { &mut out.metrics }) = metrics;
            }
        }
        out.step = self.state.step;
        self.dir.write_summary(&json(&out))?;
        Ok(out)
    }

    /// `true` when all steps are done, `false` when a stop was asked for.
    fn train(&mut self) -> Result<bool> {
        let train = &self.config.train;
        let total = train.steps as u64;
        let mut optimiser = Optimiser::new(&self.model.params, settings(self.config))?;
        if !self.moments.is_empty() {
            optimiser.restore(&self.moments, &self.state.counters)?;
        }
        let stage = |done| Event::Stage { name: "train".into(), unit: "step".into(), total, done };
        self.reporter.report(&stage(self.state.stage_step));
        while self.state.stage_step < total {
            let began = Instant::now();
            let mut values = self.update(&mut optimiser)?;
            self.state.step += 1;
            self.state.stage_step += 1;
            let step = self.state.stage_step;
            if self.config.eval.every > 0
                && step.is_multiple_of(self.config.eval.every as u64)
                && step < total
            {
                let metrics = optimiser.acting(true, || self.measured())?;
                values.extend(evaluate::values(&metrics));
            }
            values.insert("time/update_secs".into(), began.elapsed().as_secs_f64());
            self.tell("train", values)?;
            let stop = self.stop.requested();
            let due = step.is_multiple_of(self.config.checkpoint.every_steps as u64);
            if step == total {
                break;
            }
            if due || stop {
                self.save(&optimiser, &Tensors::new())?;
            }
            if stop {
                return Ok(false);
            }
        }
        // What goes on from here, and what is kept, are the averages where there are any.
        let weights = optimiser.acting(true, || self.model.weights())?;
        self.model.set(self.dir.root(), &weights)?;
        (self.state.stage, self.state.stage_step) =
            (if self.config.rl.is_some() { "rl" } else { "done" }.into(), 0);
        self.moments = Tensors::new();
        self.save_with(&Tensors::new(), &[])?;
        let file = self.dir.root().join("flow_world.safetensors");
        efference_data::atomic::write_file(&file, &self.model.to_bytes(true)?)?;
        Ok(true)
    }

    fn update(&mut self, optimiser: &mut Optimiser) -> Result<Values> {
        let (model, step) = (&self.model, self.state.stage_step);
        let device = model.params.device();
        let net = &model.spec.net;
        let batch = noisy(self.config, net, &self.scenes, model.process(), step, device)?;
        let mut parts = [0.0; 2];
        let (loss, found) = value_and_grad(|| {
            let losses = losses(&model.net, &batch)?;
            parts = [scalar(&losses.motion)?, scalar(&losses.visibility)?];
            Ok::<_, Error>((losses.motion + (losses.visibility * self.config.train.visibility_coef)?)?)
        })?;
        let mut grads = Grads::from_store(found, model.params.trainable())?;
        let report = optimiser.step(&mut grads)?;
        Ok(Values::from([
            ("loss".into(), scalar(&loss)?),
            ("loss/motion".into(), parts[0]),
            ("loss/visibility".into(), parts[1]),
            ("grad_norm".into(), report.grad_norm),
            ("lr".into(), report.lr),
            ("points".into(), batch.noisy.dims()[1] as f64),
            ("skipped_steps".into(), optimiser.skipped() as f64),
        ]))
    }

    /// Reinforcement learning from where training ended.
    fn improve(&mut self, out: &mut Summary) -> Result<bool> {
        let Some(rl) = &self.config.rl else { return Ok(true) };
        let reference: Tensors = if self.moments.is_empty() {
            self.model.weights()?.into_iter().map(|(name, x)| (format!("{REFERENCE}{name}"), x)).collect()
        } else {
            let part = |(name, _): &(&String, &Tensor)| name.starts_with(REFERENCE);
            self.moments.iter().filter(part).map(|(name, x)| (name.clone(), x.clone())).collect()
        };
        let frozen =
            reference.iter().map(|(name, x)| (name[REFERENCE.len()..].to_string(), x.clone())).collect();
        let improver = Improver::new(self.config, rl, &self.model, &frozen)?;
        let settings = OptimiserSettings {
            stage: "rl",
            lr: rl.lr,
            weight_decay: 0.0,
            max_grad_norm: rl.max_grad_norm,
            schedule: Schedule::Constant { warmup_steps: 0 },
            kind: OptimizerConfig::default(),
            ema: None,
            // Visibility has no part in the likelihood, so its words are not all reached: see `Improver`.
            reach_after: u64::MAX,
        };
        let mut optimiser = Optimiser::new(&self.model.params, settings)?;
        let begun: Tensors = self
            .moments
            .iter()
            .filter(|(n, _)| !n.starts_with(REFERENCE))
            .map(|(n, x)| (n.clone(), x.clone()))
            .collect();
        if !begun.is_empty() {
            optimiser.restore(&begun, &self.state.counters)?;
        }
        let total = rl.iterations as u64;
        self.reporter.report(&Event::Stage {
            name: "rl".into(),
            unit: "iteration".into(),
            total,
            done: self.state.stage_step,
        });
        if self.state.stage_step == 0 && !self.state.numbers.contains_key("rl/before/success") {
            out.metrics = self.measured()?;
            let before = improver.held_out(&self.model, &self.scenes.held_out)?;
            self.state.numbers.extend(before.into_iter().map(|(k, x)| (format!("rl/before/{k}"), x)));
        }
        while self.state.stage_step < total {
            let began = Instant::now();
            let mut values =
                improver.iteration(&self.model, &self.scenes, &mut optimiser, self.state.stage_step)?;
            self.state.step += 1;
            self.state.stage_step += 1;
            values.insert("time/update_secs".into(), began.elapsed().as_secs_f64());
            self.tell("rl", values)?;
            let stop = self.stop.requested();
            if stop || self.state.stage_step.is_multiple_of(self.config.checkpoint.every as u64) {
                self.save(&optimiser, &reference)?;
            }
            if stop && self.state.stage_step < total {
                return Ok(false);
            }
        }
        let after = improver.held_out(&self.model, &self.scenes.held_out)?;
        out.rl = self.state.numbers.clone();
        out.rl.extend(after.into_iter().map(|(k, x)| (format!("rl/after/{k}"), x)));
        (self.state.stage, self.state.stage_step) = ("done".into(), 0);
        self.save_with(&Tensors::new(), &[])?;
        let file = self.dir.root().join("flow_world.safetensors");
        efference_data::atomic::write_file(&file, &self.model.to_bytes(true)?)?;
        Ok(true)
    }

    /// Held-out scenes with the weights as they are.
    fn measured(&self) -> Result<Vec<TaskMetrics>> {
        let eval = &self.config.eval;
        evaluate(
            &self.model,
            &self.scenes.held_out,
            &self.config.sampler,
            eval.samples,
            eval.points,
            EVAL_SEED,
        )
    }

    fn evaluation(&mut self, improved: bool) -> Result<Vec<TaskMetrics>> {
        let metrics = self.measured()?;
        if !metrics.is_empty() {
            let label = if improved { "eval/improved" } else { "eval" };
            self.tell(label, evaluate::values(&metrics))?;
        }
        Ok(metrics)
    }

    fn tell(&mut self, stage: &str, values: Values) -> Result<()> {
        let (stage, step) = (stage.to_string(), self.state.step);
        self.log.append(&Record { step, stage: stage.clone(), values: values.clone() })?;
        self.reporter.report(&Event::Metrics { stage, step, values });
        self.reporter.report(&Event::Progress { done: self.state.stage_step });
        Ok(())
    }

    fn save(&mut self, optimiser: &Optimiser, more: &Tensors) -> Result<()> {
        let mut moments = optimiser.state()?;
        moments.extend(more.clone());
        self.save_with(&moments, &optimiser.counters())
    }

    fn save_with(&mut self, moments: &Tensors, counters: &[(String, u64)]) -> Result<()> {
        self.state.counters = counters.iter().cloned().collect();
        self.state.metrics_bytes = self.log.sync()?;
        let weights = self.model.weights()?;
        let path = self.checkpointer.save(&self.identity, &self.state, &weights, moments)?;
        self.reporter.report(&Event::Saved { step: self.state.step, path });
        Ok(())
    }
}

pub(super) fn settings(config: &FlowConfig) -> OptimiserSettings {
    let train = &config.train;
    let warmup_steps = train.warmup_steps as u64;
    let schedule = match train.schedule.as_str() {
        "cosine" => Schedule::Cosine {
            warmup_steps,
            total_steps: (train.steps as u64).max(warmup_steps + 1),
            final_factor: 0.0,
        },
        _ => Schedule::Constant { warmup_steps },
    };
    OptimiserSettings {
        stage: "train",
        lr: train.lr,
        weight_decay: train.weight_decay,
        max_grad_norm: train.max_grad_norm,
        schedule,
        kind: OptimizerConfig::default(),
        ema: (train.ema > 0.0).then_some(EmaConfig { decay: train.ema, warmup: true }),
        reach_after: REACH_AFTER,
    }
}

fn scalar(x: &Tensor) -> Result<f64> {
    Ok(f64::from(x.detach().to_scalar::<f32>()?))
}
