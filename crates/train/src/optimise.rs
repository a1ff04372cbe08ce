//! One optimiser step and what guards it.

use efference_nets::ParamStore;
use efference_ops::{
    AdafactorConfig, AdamWConfig, Ema, EmaConfig, Grads, Optimizer, OptimizerConfig as Kind, ParamGroup,
    Schedule, clip_grad_norm,
};

use crate::checkpoint::Tensors;
use crate::config::{OptimizerConfig, PretrainConfig, RlConfig, SftConfig};
use crate::error::{Error, Result};

/// Settings that all stages share.
#[derive(Clone, Debug)]
pub struct OptimiserSettings {
    /// Stage of the run, for messages.
    pub stage: &'static str,
    /// Peak learning rate.
    pub lr: f64,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Learning rate over updates.
    pub schedule: Schedule,
    /// Which optimiser.
    pub kind: Kind,
    /// Average of the weights, if one is kept.
    pub ema: Option<EmaConfig>,
    /// Updates before gradients must reach every weight: layers that start at zero let none through at first.
    pub reach_after: u64,
}

fn schedule(kind: &str, warmup_steps: usize, total_steps: usize) -> Schedule {
    let warmup_steps = warmup_steps as u64;
    match kind {
        "cosine" => Schedule::Cosine {
            warmup_steps,
            total_steps: (total_steps as u64).max(warmup_steps + 1),
            final_factor: 0.0,
        },
        _ => Schedule::Constant { warmup_steps },
    }
}

macro_rules! settings_of {
    ($config:expr, $stage:expr, $total:expr) => {
        Self {
            stage: $stage,
            lr: $config.lr,
            weight_decay: $config.weight_decay,
            max_grad_norm: $config.max_grad_norm,
            schedule: schedule(&$config.schedule, $config.warmup_steps, $total),
            kind: Kind::default(),
            ema: None,
            reach_after: 0,
        }
    };
}

impl OptimiserSettings {
    /// Of `[pretrain]`.
    pub fn pretrain(config: &PretrainConfig) -> Self {
        settings_of!(config, "pretrain", config.steps)
    }

    /// Of `[sft]`.
    pub fn sft(config: &SftConfig) -> Self {
        settings_of!(config, "sft", config.steps)
    }

    /// Of `[rl]`. A decaying schedule ends with the last iteration: see [`Optimiser::schedule_at`].
    pub fn rl(config: &RlConfig) -> Self {
        settings_of!(config, "rl", config.iterations * Self::rl_updates(config))
    }

    /// With the optimiser of `[optimizer]` in place of plain AdamW.
    #[must_use]
    pub fn with(mut self, config: &OptimizerConfig) -> Self {
        let adamw = AdamWConfig { beta1: config.beta1, beta2: config.beta2, ..AdamWConfig::default() };
        self.kind = match config.kind.as_str() {
            "adamw8bit" => Kind::AdamW8bit(adamw),
            "adafactor" => Kind::Adafactor(AdafactorConfig {
                scale_parameter: config.scale_parameter,
                ..AdafactorConfig::default()
            }),
            _ => Kind::AdamW(adamw),
        };
        self.ema = (config.ema > 0.0).then_some(EmaConfig { decay: config.ema, warmup: config.ema_warmup });
        self
    }

    /// Most updates that one iteration of `[rl]` can take.
    pub fn rl_updates(config: &RlConfig) -> usize {
        config.epochs * (config.prompts * config.group).div_ceil(config.mini_batch)
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepReport {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of this update.
    pub lr: f64,
    /// Whether the update was left out, because a gradient was not finite.
    pub skipped: bool,
}

/// An optimiser with schedule, clipping, an average of the weights if wanted, and two guards: gradients that are not
/// finite change nothing, and before the first update every trainable weight must have received a gradient.
pub struct Optimiser {
    inner: Optimizer,
    ema: Option<Ema>,
    settings: OptimiserSettings,
    max_norm: f64,
    updates: u64,
    /// Where the schedule stands, if that is not the number of updates.
    position: Option<u64>,
    skipped: u64,
    skipped_in_a_row: u64,
    reach_checked: bool,
}

/// So many updates in a row that are not finite end the run.
const PATIENCE: u64 = 10;

impl Optimiser {
    /// For all trainable weights of `params`.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(params: &ParamStore, settings: OptimiserSettings) -> Result<Self> {
        settings.schedule.validate()?;
        let groups = ParamGroup::split(params.trainable(), settings.weight_decay, ParamStore::decays);
        let max_norm = if settings.max_grad_norm > 0.0 { settings.max_grad_norm } else { f64::INFINITY };
        let inner = Optimizer::new(groups, settings.kind)?;
        let ema = settings.ema.map(|config| Ema::new(params.trainable(), config)).transpose()?;
        Ok(Self {
            inner,
            ema,
            settings,
            max_norm,
            updates: 0,
            position: None,
            skipped: 0,
            skipped_in_a_row: 0,
            reach_checked: false,
        })
    }

    /// Steps so far that were taken.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Steps so far that were left out.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Moves the schedule of the learning rate to `position`; it goes on from there. Iterations of reinforcement learning
    /// take more or fewer updates, and a decaying schedule should end with the last of them.
    pub fn schedule_at(&mut self, position: u64) {
        self.position = Some(position);
    }

    /// Clips and applies `grads`.
    ///
    /// # Errors
    /// [`Error::Unreached`] in the first update, [`Error::Diverged`] when too many in a row were not finite.
    pub fn step(&mut self, grads: &mut Grads) -> Result<StepReport> {
        let norm = clip_grad_norm(grads, self.max_norm)?;
        let lr = self.settings.lr * self.settings.schedule.factor(self.position.unwrap_or(self.updates));
        if !norm.finite {
            self.skipped += 1;
            self.skipped_in_a_row += 1;
            if self.skipped_in_a_row >= PATIENCE {
                return Err(Error::Diverged { stage: self.settings.stage, count: self.skipped_in_a_row });
            }
            return Ok(StepReport { grad_norm: norm.norm, lr, skipped: true });
        }
        self.skipped_in_a_row = 0;
        // A batch in which nothing is better than anything else has no gradient at all, which says nothing about reach.
        if !self.reach_checked && norm.norm > 0.0 && self.updates >= self.settings.reach_after {
            let names = grads.unreached(self.inner.names())?;
            if !names.is_empty() {
                return Err(Error::Unreached { stage: self.settings.stage, names });
            }
            self.reach_checked = true;
        }
        self.inner.step(grads, lr)?;
        if let Some(ema) = &mut self.ema {
            ema.update()?;
        }
        self.updates += 1;
        self.position = self.position.map(|at| at + 1);
        Ok(StepReport { grad_norm: norm.norm, lr, skipped: false })
    }

    /// Runs `act` with the averages in place of the weights, if `averaged` and there are any.
    ///
    /// # Errors
    /// What `act` says; the weights are back in any case.
    pub fn acting<R>(&mut self, averaged: bool, act: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(ema) = self.ema.as_mut().filter(|_| averaged) else { return act() };
        ema.swap()?;
        let result = act();
        ema.swap()?;
        result
    }

    /// Moments, and averages under `average/`, for a checkpoint.
    ///
    /// # Errors
    /// No memory for the copy.
    pub fn state(&self) -> Result<Tensors> {
        let mut state = self.inner.state()?;
        state.extend(self.averages()?);
        Ok(state)
    }

    /// The part of [`state`](Self::state) that outlives the stage: the averages.
    ///
    /// # Errors
    /// No memory for the copy.
    pub fn averages(&self) -> Result<Tensors> {
        let Some(ema) = &self.ema else { return Ok(Tensors::new()) };
        Ok(ema.state()?.into_iter().map(|(name, x)| (format!("{AVERAGE}{name}"), x)).collect())
    }

    /// Counts, for a checkpoint.
    pub fn counters(&self) -> [(String, u64); 4] {
        let checked = u64::from(self.reach_checked);
        let counts = [self.updates, self.skipped, self.skipped_in_a_row, checked];
        std::array::from_fn(|i| (format!("optimiser/{}", COUNTERS[i]), counts[i]))
    }

    /// Takes over moments and counts of a checkpoint.
    ///
    /// # Errors
    /// Tensors that do not belong to these weights.
    pub fn restore(
        &mut self,
        state: &Tensors,
        counters: &std::collections::BTreeMap<String, u64>,
    ) -> Result<()> {
        let (averages, moments): (Tensors, Tensors) =
            state.clone().into_iter().partition(|(name, _)| name.starts_with(AVERAGE));
        let averages: Tensors =
            averages.into_iter().map(|(name, x)| (name[AVERAGE.len()..].to_string(), x)).collect();
        self.inner.load_state(&moments)?;
        if let Some(ema) = &mut self.ema {
            ema.load_state(&averages)?;
        }
        let count = |name: &str| counters.get(&format!("optimiser/{name}")).copied().unwrap_or(0);
        [self.updates, self.skipped, self.skipped_in_a_row] =
            [count(COUNTERS[0]), count(COUNTERS[1]), count(COUNTERS[2])];
        self.reach_checked = count(COUNTERS[3]) != 0;
        Ok(())
    }
}

/// Prefix of the averages in a checkpoint's optimiser file.
pub(crate) const AVERAGE: &str = "average/";
/// What [`averaged`] looks for behind it.
const EMA: &str = "ema.";

/// Weights of a checkpoint with the averages of its optimiser file in their places; weights that are not trained have
/// none and stay. `None` if there are no averages at all.
pub(crate) fn averaged(weights: &Tensors, optimizer: &Tensors) -> Option<Tensors> {
    let mut averaged = weights.clone();
    let mut any = false;
    for (name, x) in optimizer {
        let name = name.strip_prefix(AVERAGE).and_then(|name| name.strip_prefix(EMA));
        if let Some(place) = name.and_then(|name| averaged.get_mut(name)) {
            (*place, any) = (x.clone(), true);
        }
    }
    any.then_some(averaged)
}

const COUNTERS: [&str; 4] = ["updates", "skipped", "skipped_in_a_row", "reach_checked"];
