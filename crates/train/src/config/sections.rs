//! The sections of a run's configuration. Every setting carries its unit, range, default and source.

use super::names;
use super::settings::{Check, Range, settings};

const COUNT: Check = Check::In(Range::at_least(1.0));
const MAYBE: Check = Check::In(Range::at_least(0.0));
const RATE: Check = Check::In(Range { min: 0.0, max: 1.0, above: true });
const BELOW_ONE: Check = Check::In(Range::between(0.0, 0.999_999_9));
const UNIT: Check = Check::In(Range::between(0.0, 1.0));
/// TOML integers are signed 64-bit; a seed has to survive being written back.
const SEED: Check = Check::In(Range::between(0.0, i64::MAX as f64));

settings! {
    /// `[run]`: who it is and where it goes.
    pub struct RunConfig {
        /// Name of the run's folder below `out`: letters, digits, `-`, `_` and `.`.
        pub name: String = "run".into();
        /// Seed of everything random: weights, data order, initial states, sampled actions.
        pub seed: u64 = 0, SEED;
        /// Folder that holds the runs.
        pub out: String = "runs".into();
        /// Worker threads; 0 takes all cores. Results do not depend on it.
        pub threads: usize = 0, Check::In(Range::between(0.0, 1024.0));
        /// Where the network computes: `cpu`, `cuda` or `cuda:N` (a build with CUDA: `cargo xtask cuda`).
        pub device: String = "cpu".into();
    }
}

settings! {
    /// `[env.libero]`: how the suites of LIBERO are simulated and drawn.
    pub struct LiberoConfig {
        /// Folder of the task packs; empty takes `EFFERENCE_LIBERO`, or where `cargo xtask libero` puts them.
        pub packs: String = String::new();
        /// Passes of a physics step: `exact` as Python LIBERO, `fused` three times faster.
        pub order: String = "fused".into(), Check::OneOf(names::substep_orders);
        /// Pictures: `faithful` as LIBERO draws them, `fast` without shadows and with lighter meshes.
        pub profile: String = "fast".into(), Check::OneOf(names::profiles);
        /// Control steps at the beginning of an episode in which the robot waits for objects to settle.
        pub idle_steps: usize = 10, Check::In(Range::between(0.0, 1000.0));
    }
}

settings! {
    /// `[env]`: the world the policy acts in.
    pub struct EnvConfig {
        /// Environment suite.
        pub suite: String = "tabletop".into(), Check::OneOf(names::suites);
        /// Tasks to train and evaluate on; empty takes all of the suite (tabletop: `efference demos tabletop
        /// --help` lists them; LIBERO: `SUITE_NUMBER`, for example `libero_goal_7`).
        pub tasks: Vec<String> = vec![];
        /// Side of the square camera images the policy sees, in pixels.
        pub image_size: usize = 64, Check::In(Range::between(16.0, 1024.0));
        /// Episode limit in control steps (20 per second); 0 takes the suite's limit (tabletop: 80, LIBERO: 220 to 520).
        pub max_steps: usize = 0, Check::In(Range::between(0.0, 10_000.0));
        /// Place extra objects that no instruction names (tabletop).
        pub distractors: bool = false;
        /// Vary light position and strength from reset to reset (tabletop).
        pub lighting: bool = false;
        /// The suites of LIBERO.
        pub libero: LiberoConfig = LiberoConfig::default();
    }
}

settings! {
    /// `[model]`: the policy network.
    pub struct ModelConfig {
        /// Named network shape to start from.
        pub preset: String = "quickstart".into(), Check::OneOf(names::model_presets);
        /// Checkpoint folder, run folder or `.safetensors` file whose weights are the starting point.
        pub init_from: Option<String> = None;
        /// Weights that are not trained, by the beginning of their name or a pattern with `*`; `!` before one trains what
        /// it names after all, and the last that fits decides: ["vision_backbone."], ["*", "!*.mlp.*"].
        pub freeze: Vec<String> = vec![];
        /// Keep only the inputs of each block for the backward pass and compute the rest again: about a third more time
        /// per step, a fraction of its memory, the same gradients.
        pub gradient_checkpointing: bool = false;
        /// Single fields of the network shape that differ from the preset.
        pub shape: toml::Table = toml::Table::new();
    }
}

settings! {
    /// `[optimizer]`: what turns gradients into new weights, in all stages. Learning rates and decay are the stages' own.
    pub struct OptimizerConfig {
        /// `adamw`; `adamw8bit`, whose moments take 2 bytes per weight instead of 8; `adafactor`, which keeps next to
        /// nothing.
        pub kind: String = "adamw".into(), Check::OneOf(names::optimizers);
        /// Decay of the mean of gradients (not in `adafactor`).
        pub beta1: f64 = 0.9, BELOW_ONE;
        /// Decay of the mean of squared gradients (not in `adafactor`).
        pub beta2: f64 = 0.999, BELOW_ONE;
        /// `adafactor`: take learning rates times the size of each weight matrix, as its paper does; off, they are of the
        /// size that AdamW takes.
        pub scale_parameter: bool = true;
        /// Decay of a moving average of the weights that is kept beside them, for `eval.weights`; 0 keeps none.
        pub ema: f64 = 0.0, BELOW_ONE;
        /// Let the average forget faster at the beginning of a stage: at update n at most n / (9 + n).
        pub ema_warmup: bool = true;
    }
}

settings! {
    /// `[pretrain]`: optional first stage, grounding of the backbone on random play data.
    pub struct PretrainConfig {
        /// Play scenes to draw.
        pub samples: usize = 4096, COUNT;
        /// Optimiser steps.
        pub steps: usize = 1000, COUNT;
        /// Scenes per step.
        pub batch: usize = 32, COUNT;
        /// Peak learning rate.
        pub lr: f64 = 1e-3, RATE;
        /// Decoupled weight decay (AdamW), on matrices only.
        pub weight_decay: f64 = 0.01, UNIT;
        /// Steps of linear warm-up.
        pub warmup_steps: usize = 50, MAYBE;
        /// Shape of the learning rate after the warm-up.
        pub schedule: String = "cosine".into(), Check::OneOf(names::schedules);
        /// Global gradient norm above which the gradient is scaled down; 0 turns clipping off.
        pub max_grad_norm: f64 = 1.0, MAYBE;
        /// Standard deviation, in action bins, of the Gaussian that replaces the one-hot target; 0 is one-hot.
        pub label_smoothing_bins: f64 = 0.0, Check::In(Range::between(0.0, 64.0));
    }
}

settings! {
    /// `[sft]`: optional stage, behaviour cloning on action tokens.
    pub struct SftConfig {
        /// `expert` for demonstrations made now by the scripted expert, or the folder of a stored set.
        pub demos: String = "expert".into();
        /// Demonstrations per task; 0 takes all of a stored set.
        pub demos_per_task: usize = 1, MAYBE;
        /// `true` passes over damaged episodes of a stored set and says which; otherwise they are an error.
        pub skip_damaged: Option<bool> = None;
        /// Demonstrations per task, the last ones of a stored set, that are kept out and scored after the stage.
        pub holdout: usize = 0, MAYBE;
        /// Optimiser steps.
        pub steps: usize = 600, COUNT;
        /// Decisions (image, instruction, chunk) per step.
        pub batch: usize = 32, COUNT;
        /// Play scenes added to each step, so that cloning few demonstrations does not wash out what play has taught.
        pub play_batch: usize = 0, MAYBE;
        /// Peak learning rate.
        pub lr: f64 = 1e-3, RATE;
        /// Decoupled weight decay (AdamW), on matrices only.
        pub weight_decay: f64 = 0.01, UNIT;
        /// Steps of linear warm-up.
        pub warmup_steps: usize = 20, MAYBE;
        /// Shape of the learning rate after the warm-up.
        pub schedule: String = "cosine".into(), Check::OneOf(names::schedules);
        /// Global gradient norm above which the gradient is scaled down; 0 turns clipping off.
        pub max_grad_norm: f64 = 1.0, MAYBE;
        /// Standard deviation, in action bins, of the Gaussian that replaces the one-hot target; 0 is one-hot.
        pub label_smoothing_bins: f64 = 0.0, Check::In(Range::between(0.0, 64.0));
        /// The same for rotation and gripper, where it should differ from that of translation.
        pub turn_smoothing_bins: Option<f64> = None, Check::In(Range::between(0.0, 64.0));
        /// Largest random image shift in pixels, the same for all cameras of a sample; 0 turns it off.
        pub augment_shift_px: usize = 2, Check::In(Range::between(0.0, 64.0));
    }
}

settings! {
    /// `[rl.encoder]`: what turns an episode's frames into the vector that SRPO compares.
    pub struct EncoderConfig {
        /// Which encoder.
        pub kind: String = "random_conv".into(), Check::OneOf(names::encoders);
        /// Frames taken from an episode, evenly spaced (64 in SRPO's code, sec. 3.1).
        pub frames: usize = 16, Check::In(Range::between(2.0, 256.0));
        /// Seed of the encoder's fixed weights; kept apart from `run.seed` so that runs share one encoder.
        pub seed: u64 = 0, SEED;
        /// Control experiment: hand the embeddings to the wrong episodes.
        pub shuffled: bool = false;
    }
}

settings! {
    /// `[rl.critic]`: a value network on the policy's features, for advantages that need one (`turn_gae`).
    pub struct CriticConfig {
        /// Width of its hidden layer; 0 keeps no critic.
        pub hidden: usize = 0, MAYBE;
        /// Learning rate.
        pub lr: f64 = 1e-3, RATE;
        /// Passes over the decisions of an iteration.
        pub epochs: usize = 4, COUNT;
        /// Decisions per step.
        pub batch: usize = 256, COUNT;
    }
}

settings! {
    /// `[rl]`: optional stage, reinforcement learning from group rollouts.
    pub struct RlConfig {
        /// Objective, by the name of its preset (`efference algorithms` lists them).
        pub algorithm: String = "srpo".into(), Check::OneOf(names::algorithms);
        /// Iterations of rollout and update.
        pub iterations: usize = 60, COUNT;
        /// Initial states per iteration (64 in SRPO, sec. 3.8).
        pub prompts: usize = 12, COUNT;
        /// Share prompts among tasks by how often they still fail, instead of evenly.
        pub focus: bool = false;
        /// Rollouts from each initial state (SRPO: 8).
        pub group: usize = 8, Check::In(Range::between(2.0, 1024.0));
        /// Sampling temperature of the action tokens (SRPO: 1.6).
        pub temperature: f64 = 1.6, Check::In(Range { min: 0.0, max: 100.0, above: true });
        /// What explores: `token` draws every action token for itself; `chunk` shares one random number per action
        /// dimension over a chunk, so that it deviates in one direction instead of trembling.
        pub noise: String = "token".into(), Check::OneOf(names::noises);
        /// With `chunk` noise: every second rollout of a group deviates opposite to the one before it.
        pub mirrored: bool = false;
        /// Share of each trajectory's decisions that an update learns from, drawn anew for every update: neighbouring
        /// decisions share their advantage, so half of them say nearly as much in half the time.
        pub decision_share: f64 = 1.0, Check::In(Range { min: 0.0, max: 1.0, above: true });
        /// Old log-probabilities: `recomputed` by the trainer for every trajectory before the first update, or those
        /// `sampled`. They are the same bits on CPU; the first update of an iteration checks that either way.
        pub old_log_probs: String = "recomputed".into(), Check::OneOf(names::old_log_probs);
        /// Trajectories per optimiser step (SRPO: 32).
        pub mini_batch: usize = 32, COUNT;
        /// Policy decisions per backward pass; bounds memory and does not change the gradient, except for blocks that
        /// need a whole update at once (the run says so).
        pub micro_batch: usize = 64, COUNT;
        /// Passes over the trajectories of an iteration (SRPO: 1).
        pub epochs: usize = 1, COUNT;
        /// Peak learning rate.
        pub lr: f64 = 1e-4, RATE;
        /// Decoupled weight decay (AdamW), on matrices only.
        pub weight_decay: f64 = 0.0, UNIT;
        /// Optimiser steps of linear warm-up.
        pub warmup_steps: usize = 0, MAYBE;
        /// Shape of the learning rate after the warm-up.
        pub schedule: String = "constant".into(), Check::OneOf(names::schedules);
        /// Global gradient norm above which the gradient is scaled down (SRPO: 1); 0 turns clipping off.
        pub max_grad_norm: f64 = 1.0, MAYBE;
        /// Wall-clock limit of the stage in minutes; it ends cleanly after the iteration that passes it.
        pub minutes: Option<f64> = None, Check::In(Range::above(0.0));
        /// Decisions of the demonstrations of `[sft]` that every optimiser step clones beside what it learns from
        /// rollouts, so that noisy gradients do not wash out what was known.
        pub rehearse_demos: usize = 0, MAYBE;
        /// Play scenes that every optimiser step clones beside what it learns from rollouts.
        pub rehearse_play: usize = 0, MAYBE;
        /// Weight of that cloning loss beside the objective.
        pub rehearse_coef: f64 = 0.1, Check::In(Range::between(0.0, 100.0));
        /// Keys of the algorithm's preset (`configs/algorithms/ID.toml`) that differ in this run.
        pub objective: toml::Table = toml::Table::new();
        /// Episode encoder of SRPO.
        pub encoder: EncoderConfig = EncoderConfig::default();
        /// Value network.
        pub critic: CriticConfig = CriticConfig::default();
    }
}

settings! {
    /// `[eval]`: success on held-out initial states.
    pub struct EvalConfig {
        /// Episodes per task; the suites hold 50 fixed states per task. 0 evaluates nothing.
        pub episodes_per_task: usize = 50, MAYBE;
        /// Evaluate every so many RL iterations; 0 evaluates only before and after.
        pub every: usize = 0, MAYBE;
        /// Sampling temperature; 0 takes the most likely action.
        pub temperature: f64 = 0.0, Check::In(Range::between(0.0, 100.0));
        /// Which weights act: those that are `trained`, or their average, `ema` (see `optimizer.ema`).
        pub weights: String = "trained".into(), Check::OneOf(names::weights);
    }
}

settings! {
    /// `[checkpoint]`: what is kept on disk.
    pub struct CheckpointConfig {
        /// Save every so many RL iterations; stages always save at their end.
        pub every: usize = 10, COUNT;
        /// Save every so many optimiser steps of the supervised stages.
        pub every_steps: usize = 200, COUNT;
        /// Newest checkpoints to keep.
        pub keep_last: usize = 2, COUNT;
        /// Also keep the checkpoint with the best evaluation.
        pub keep_best: bool = true;
    }
}

settings! {
    /// `[record]`: what a person can look at afterwards.
    pub struct RecordConfig {
        /// Write `recording.rrd` for the rerun viewer.
        pub rerun: bool = true;
        /// Episodes recorded with images per evaluation, spread over the tasks.
        pub episodes_per_eval: usize = 6, MAYBE;
        /// Episodes recorded with images per RL iteration that is recorded.
        pub episodes_per_iteration: usize = 2, MAYBE;
        /// Record every so many RL iterations; 0 records none.
        pub every: usize = 10, MAYBE;
    }
}

settings! {
    /// A whole run. Stages that are absent are skipped; those present run in the order pretrain, sft, rl.
    pub struct TrainConfig {
        /// Who it is and where it goes.
        pub run: RunConfig = RunConfig::default();
        /// The world the policy acts in.
        pub env: EnvConfig = EnvConfig::default();
        /// The policy network.
        pub model: ModelConfig = ModelConfig::default();
        /// What turns gradients into new weights.
        pub optimizer: OptimizerConfig = OptimizerConfig::default();
        /// Optional stage: grounding of the backbone on random play data.
        pub pretrain: Option<PretrainConfig> = None;
        /// Optional stage: behaviour cloning.
        pub sft: Option<SftConfig> = None;
        /// Optional stage: reinforcement learning.
        pub rl: Option<RlConfig> = None;
        /// Success on held-out initial states.
        pub eval: EvalConfig = EvalConfig::default();
        /// What is kept on disk.
        pub checkpoint: CheckpointConfig = CheckpointConfig::default();
        /// What a person can look at afterwards.
        pub record: RecordConfig = RecordConfig::default();
    }
}

impl SftConfig {
    /// Smoothing of each action dimension, bins: three of translation, three of rotation, gripper.
    pub fn smoothing(&self) -> [f64; 7] {
        let (shift, turn) = (self.label_smoothing_bins, self.turn_smoothing_bins);
        std::array::from_fn(|d| if d < 3 { shift } else { turn.unwrap_or(shift) })
    }
}
