//! `efference flow train`: the sections of its configuration.

use std::path::Path;

use efference_envs::flow::FlowTask;
use efference_nets::flow::{FLOW_NET_PRESETS, FlowNetConfig, Representation};
use efference_objectives::diffusion::continuous::{BetaSchedule, Integrator, Prediction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::settings::{Check, Range, settings};
use crate::config::{self, Blame, CheckpointConfig, ConfigError, Problem, RunConfig};

const COUNT: Check = Check::In(Range::at_least(1.0));
const MAYBE: Check = Check::In(Range::at_least(0.0));
const RATE: Check = Check::In(Range { min: 0.0, max: 1.0, above: true });
const UNIT: Check = Check::In(Range::between(0.0, 1.0));
const BELOW_ONE: Check = Check::In(Range::between(0.0, 0.999_999_9));
const POINTS: Check = Check::In(Range::between(3.0, 4096.0));

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}
fn sizes() -> Vec<String> {
    words(&FLOW_NET_PRESETS)
}
fn representations() -> Vec<String> {
    words(&["level", "camera", "uvd"])
}
fn processes() -> Vec<String> {
    words(&["flow_matching", "diffusion"])
}
fn predictions() -> Vec<String> {
    words(&["epsilon", "v_prediction", "sample"])
}
fn beta_shapes() -> Vec<String> {
    words(&["linear", "scaled_linear", "squaredcos_cap_v2"])
}
fn integrators() -> Vec<String> {
    words(&["euler", "heun"])
}
fn schedules() -> Vec<String> {
    words(&["constant", "cosine"])
}

settings! {
    /// `[model]`: the network.
    pub struct FlowModelConfig {
        /// Named size: xs 1.0M parameters, s 1.7M, m 5.0M, b 11M, l 25M, xl 411M.
        pub size: String = "s".into(), Check::OneOf(sizes);
        /// Predicted frames after the present.
        pub frames: usize = 8, Check::In(Range::between(1.0, 256.0));
        /// Whether the network sees the first picture and its depth.
        pub picture: bool = true;
        /// Side of the picture the network takes, pixels, a multiple of 16.
        pub image_size: usize = 128, Check::In(Range::between(16.0, 512.0));
        /// Whether the network is told a goal point (generated scenes have one).
        pub goal: bool = false;
        /// Coordinates of displacements: `level` metres with z up, `camera` metres along the camera's axes, `uvd` pixels
        /// and depth.
        pub representation: String = "level".into(), Check::OneOf(representations);
        /// Length that is 1 for the network, metres.
        pub scale_m: f64 = 0.15, Check::In(Range::above(0.0));
        /// Rows of the table of hashed words.
        pub vocabulary: usize = 512, Check::In(Range::between(2.0, 1_048_576.0));
        /// Run folder, checkpoint, `.safetensors` file of weights or `builtin:flow_world` to start from (fine-tuning).
        pub init_from: Option<String> = None;
    }
}

settings! {
    /// `[process]`: how noise is added and what the network predicts.
    pub struct ProcessConfig {
        /// `flow_matching` (straight path, velocity) or `diffusion` (DDPM).
        pub kind: String = "flow_matching".into(), Check::OneOf(processes);
        /// Of `flow_matching`: how far training and a sampler's steps lie towards the noise, t -> s t / (1 + (s - 1) t). The
        /// points of a rigid object say together where it goes although each is noisy: at t = 1/2, 48 of them leave a
        /// seventh of the noise. With 1, what decides where it goes is hardly trained; with 8, how exactly it ends is.
        pub shift: f64 = 3.0, Check::In(Range::between(1.0, 100.0));
        /// Of `diffusion`: `epsilon`, `v_prediction` or `sample`.
        pub prediction: String = "epsilon".into(), Check::OneOf(predictions);
        /// Of `diffusion`: timesteps.
        pub timesteps: usize = 1000, Check::In(Range::between(1.0, 100_000.0));
        /// Of `diffusion`: share of noise added at the first timestep.
        pub beta_start: f64 = 8.5e-4, Check::In(Range { min: 0.0, max: 0.999, above: true });
        /// Of `diffusion`: share of noise added at the last timestep.
        pub beta_end: f64 = 1.2e-2, Check::In(Range { min: 0.0, max: 0.999, above: true });
        /// Of `diffusion`: what lies between.
        pub shape: String = "linear".into(), Check::OneOf(beta_shapes);
    }
}

settings! {
    /// `[sampler]`: how a trained network is asked.
    pub struct SamplerConfig {
        /// Steps from noise to flow.
        pub steps: usize = 8, Check::In(Range::between(1.0, 1000.0));
        /// `euler`, or `heun` (flow matching only): two calls of the network per step.
        pub integrator: String = "euler".into(), Check::OneOf(integrators);
        /// Classifier-free guidance: 1 is none.
        pub guidance: f64 = 1.0, Check::In(Range::between(0.0, 100.0));
        /// Size of the noise that a chain starts from. Below 1, flows of a scene differ less and lie nearer to their mean.
        pub temperature: f64 = 1.0, Check::In(Range::between(0.0, 2.0));
        /// Replace the estimate by the nearest rigid motion in the second half of the chain.
        pub rigid: bool = true;
        /// Points that a network is asked about at once, at most: as many as it was trained with. Where a query has more, the
        /// others follow the rigid motion of these, which lie far apart (with `rigid` only).
        pub points: usize = 48, POINTS;
        /// Fresh noise per step: 0 is DDIM (deterministic), 1 DDPM.
        pub eta: f64 = 0.0, UNIT;
    }
}

settings! {
    /// `[data]`: what is learned from.
    pub struct FlowDataConfig {
        /// Folders of stored episodes (`efference data flow`).
        pub sets: Vec<String> = vec![];
        /// Scenes per task family of the simulated workbench, made when the run starts (with its seed); 0 makes none.
        pub simulated: usize = 0, Check::In(Range::between(0.0, 1_048_576.0));
        /// Scenes per task family of the simulated workbench for `[eval]`: never those of training.
        pub simulated_eval: usize = 0, Check::In(Range::between(0.0, 1_048_576.0));
        /// Also scenes of the built-in generator of moving boxes, new ones at every step.
        pub synthetic: bool = false;
        /// Only these task families; empty takes all.
        pub tasks: Vec<String> = vec![];
        /// Episodes per task and source, the first ones; 0 takes all. 10 to 30 for fine-tuning on a new task.
        pub per_task: usize = 0, MAYBE;
        /// Episodes per task and source, the last ones, kept out for `[eval]`.
        pub held_out: usize = 16, MAYBE;
        /// How often a task of a source is drawn: its number of episodes to this power. 1 as often as it is large, 0 all
        /// alike.
        pub balance: f64 = 0.5, UNIT;
        /// Noise on the places of points in the first frame, pixels of a 256-pixel picture.
        pub jitter_px: f64 = 0.0, Check::In(Range::between(0.0, 64.0));
        /// Noise on their depth, metres.
        pub jitter_depth_m: f64 = 0.0, Check::In(Range::between(0.0, 1.0));
    }
}

settings! {
    /// `[train]`: updates.
    pub struct FlowTrainConfig {
        /// Optimiser steps; 0 goes on to `[rl]` at once.
        pub steps: usize = 2000, MAYBE;
        /// Scenes per step.
        pub batch: usize = 32, COUNT;
        /// Fewest query points of a batch.
        pub points_min: usize = 16, POINTS;
        /// Most query points of a batch; every batch draws a number.
        pub points_max: usize = 64, POINTS;
        /// Peak learning rate.
        pub lr: f64 = 1e-3, RATE;
        /// Decoupled weight decay (AdamW), on matrices only.
        pub weight_decay: f64 = 1e-4, UNIT;
        /// Steps of linear warm-up.
        pub warmup_steps: usize = 100, MAYBE;
        /// Shape of the learning rate after the warm-up.
        pub schedule: String = "cosine".into(), Check::OneOf(schedules);
        /// Global gradient norm above which the gradient is scaled down; 0 turns clipping off.
        pub max_grad_norm: f64 = 1.0, MAYBE;
        /// Share of scenes whose instruction is dropped, for guidance.
        pub text_drop: f64 = 0.1, UNIT;
        /// Weight of the loss of visibility.
        pub visibility_coef: f64 = 0.1, Check::In(Range::between(0.0, 100.0));
        /// Decay of the moving average of the weights that predicts; 0 keeps none.
        pub ema: f64 = 0.999, BELOW_ONE;
    }
}

settings! {
    /// `[eval]`: predictions on held-out scenes, against the truth.
    pub struct FlowEvalConfig {
        /// Scenes of the built-in generator; of stored sets all held-out episodes are used.
        pub synthetic_scenes: usize = 250, MAYBE;
        /// Flows per scene (minADE takes the best).
        pub samples: usize = 4, COUNT;
        /// Points per scene, at most.
        pub points: usize = 64, POINTS;
        /// Evaluate every so many steps; 0 only at the end.
        pub every: usize = 0, MAYBE;
    }
}

settings! {
    /// `[rl]`: optional stage, reinforcement learning of the generator.
    pub struct FlowRlConfig {
        /// Iterations: sampling, then updates.
        pub iterations: usize = 20, COUNT;
        /// Scenes per iteration.
        pub scenes: usize = 8, COUNT;
        /// Flows per scene, each other's baseline.
        pub group: usize = 8, Check::In(Range::at_least(2.0));
        /// Denoising steps of the chain that explores.
        pub steps: usize = 8, Check::In(Range::between(2.0, 1000.0));
        /// Fresh noise of that chain, as `sampler.eta`; above 0.
        pub eta: f64 = 1.0, RATE;
        /// Points per scene.
        pub points: usize = 32, POINTS;
        /// Updates per iteration.
        pub epochs: usize = 2, COUNT;
        /// Learning rate.
        pub lr: f64 = 3e-5, RATE;
        /// Global gradient norm above which the gradient is scaled down; 0 turns clipping off.
        pub max_grad_norm: f64 = 1.0, MAYBE;
        /// Ratios of a denoising step beyond 1 plus or minus this do not profit further.
        pub clip: f64 = 1e-3, UNIT;
        /// Weight of the KL to the frozen generator.
        pub kl: f64 = 0.01, Check::In(Range::between(0.0, 1000.0));
        /// Distance from the goal within which a final pose succeeds, metres.
        pub goal_m: f64 = 0.02, Check::In(Range::above(0.0));
        /// Angle from the goal within which a final pose succeeds, degrees.
        pub goal_deg: f64 = 10.0, Check::In(Range::above(0.0));
    }
}

settings! {
    /// A whole run of the flow world model.
    pub struct FlowConfig {
        /// Who it is and where it goes.
        pub run: RunConfig = RunConfig::default();
        /// The network.
        pub model: FlowModelConfig = FlowModelConfig::default();
        /// How noise is added and what the network predicts.
        pub process: ProcessConfig = ProcessConfig::default();
        /// What is learned from.
        pub data: FlowDataConfig = FlowDataConfig::default();
        /// Updates.
        pub train: FlowTrainConfig = FlowTrainConfig::default();
        /// How a trained network is asked.
        pub sampler: SamplerConfig = SamplerConfig::default();
        /// Predictions on held-out scenes.
        pub eval: FlowEvalConfig = FlowEvalConfig::default();
        /// What is kept on disk.
        pub checkpoint: CheckpointConfig = CheckpointConfig::default();
        /// Optional stage: reinforcement learning of the generator.
        pub rl: Option<FlowRlConfig> = None;
    }
}

/// The settings, section by section, as `efference flow train --help` prints them.
#[must_use]
pub fn flow_settings_table() -> String {
    use crate::config::settings::Section;
    config::table_of(FlowConfig::fields())
}

/// A word of a configuration as the value that serde knows by it. Words are checked when a configuration is read.
fn named<T: DeserializeOwned + Default>(word: &str) -> T {
    toml::Value::String(word.into()).try_into().unwrap_or_default()
}

impl FlowConfig {
    /// Reads `file`, applies `overrides` (`section.key=value`, later ones win) and fills in defaults.
    ///
    /// # Errors
    /// [`ConfigError`]: unreadable file, not TOML, malformed override, or every wrong setting with its place.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Read { path: file.to_path_buf(), source })?;
        Self::from_text(file, &text, overrides)
    }

    /// As [`load`](Self::load), for text that is already there.
    ///
    /// # Errors
    /// As [`load`](Self::load), except for reading.
    pub fn from_text(file: &Path, text: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        config::read(file, text, overrides, Self::cross_check)
    }

    fn cross_check(&self, blame: &Blame<'_>, problems: &mut Vec<Problem>) {
        let name = &self.run.name;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
            let help = "use letters, digits, `-`, `_` and `.`, not starting with a dot";
            problems.push(blame.problem("run.name", format!("\"{name}\" cannot name a folder"), help));
        }
        let known: Vec<&str> = FlowTask::ids();
        let simulated = self.data.simulated > 0;
        for task in self.data.tasks.iter().filter(|task| simulated && !known.contains(&task.as_str())) {
            let help = format!("known: {}", known.join(", "));
            problems.push(blame.problem("data.tasks", format!("there is no \"{task}\""), help));
        }
        if self.data.sets.is_empty() && !self.data.synthetic && !simulated {
            let help = "set data.simulated, list folders made by `efference data flow`, or set data.synthetic = true";
            problems.push(blame.problem("data.sets", "there is nothing to learn from", help));
        }
        if self.data.synthetic && self.model.picture {
            let help = "set model.picture = false, or data.synthetic = false";
            problems.push(blame.problem("data.synthetic", "generated scenes have no pictures", help));
        }
        if self.model.goal && (simulated || !self.data.sets.is_empty()) {
            let help = "only generated scenes tell their goal";
            problems.push(blame.problem("model.goal", "episodes have no goal point", help));
        }
        if self.train.points_min > self.train.points_max {
            let what = format!("{} is more than train.points_max", self.train.points_min);
            problems.push(blame.problem("train.points_min", what, "lower it"));
        }
        if self.sampler.integrator == "heun" && self.process.kind != "flow_matching" {
            let help = "set sampler.integrator = \"euler\"";
            problems.push(blame.problem("sampler.integrator", "heun follows flow matching only", help));
        }
        if let Err(error) = self.net().validate() {
            let field = match &error {
                efference_nets::Error::Config { field, .. } => format!("model.{field}"),
                _ => "model".into(),
            };
            problems.push(blame.problem(&field, error.to_string(), ""));
        }
    }

    /// The network's shape.
    #[must_use]
    pub fn net(&self) -> FlowNetConfig {
        let model = &self.model;
        FlowNetConfig {
            frames: model.frames,
            picture: model.picture,
            image_size: model.image_size,
            vocabulary: model.vocabulary,
            goal: model.goal,
            representation: named::<Representation>(&model.representation),
            scale_m: model.scale_m,
            ..FlowNetConfig::preset(&model.size).unwrap_or_default()
        }
    }

    /// The whole configuration, defaults included, as TOML.
    ///
    /// # Errors
    /// [`ConfigError::Write`] if a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Write { message: e.to_string() })
    }

    /// SHA-256 (hex) of everything that changes results: not the run's name, folder and threads, nor what is kept.
    ///
    /// # Errors
    /// [`ConfigError::Write`] if a value has no TOML form.
    pub fn fingerprint(&self) -> Result<String, ConfigError> {
        let mut same = self.clone();
        same.run = RunConfig { seed: self.run.seed, device: self.run.device.clone(), ..RunConfig::default() };
        same.checkpoint = CheckpointConfig::default();
        Ok(crate::checkpoint::sha256(same.to_toml()?.as_bytes()))
    }
}

impl ProcessConfig {
    /// What the network of a diffusion predicts.
    pub(super) fn predicted(&self) -> Prediction {
        named(&self.prediction)
    }

    pub(super) fn beta_shape(&self) -> BetaSchedule {
        named(&self.shape)
    }
}

impl SamplerConfig {
    pub(super) fn integration(&self) -> Integrator {
        named(&self.integrator)
    }
}

/// As JSON, for a checkpoint.
pub(super) fn json(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<FlowConfig, ConfigError> {
        FlowConfig::from_text(Path::new("flow.toml"), text, &[])
    }

    #[test]
    fn a_configuration_comes_back_and_its_words_are_understood() {
        let text = "[data]\nsynthetic = true\n[model]\nsize = \"xs\"\npicture = false\nrepresentation = \"uvd\"\n\
                    [process]\nkind = \"diffusion\"\nprediction = \"v_prediction\"\nshape = \"squaredcos_cap_v2\"";
        let config = read(text).unwrap();
        assert_eq!(read(&config.to_toml().unwrap()).unwrap(), config);
        assert_eq!((config.net().width, config.net().representation), (96, Representation::Uvd));
        assert_eq!(config.process.predicted(), Prediction::VPrediction);
        assert_eq!(config.process.beta_shape(), BetaSchedule::SquaredCos);
        let sets = ["run.threads=2".to_string(), "train.lr=0.01".to_string()];
        let other = FlowConfig::from_text(Path::new("f"), text, &sets[..1]).unwrap();
        assert_eq!(other.fingerprint().unwrap(), config.fingerprint().unwrap());
        let other = FlowConfig::from_text(Path::new("f"), text, &sets).unwrap();
        assert_ne!(other.fingerprint().unwrap(), config.fingerprint().unwrap());
    }

    #[test]
    fn the_shipped_configurations_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/flow");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 5);
        for file in files {
            FlowConfig::load(&file, &[]).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, parts) in [
            ("", vec!["data.sets", "nothing to learn from"]),
            ("[data]\nsynthetic = true", vec!["data.synthetic", "no pictures"]),
            ("[train]\nlearning_rate = 0.1", vec!["flow.toml:2:1", "train.learning_rate", "unknown key"]),
            ("[train]\nlr = 2.0", vec!["train.lr", "out of range"]),
            ("[model]\nsize = \"huge\"", vec!["model.size", "huge", "xl"]),
            ("[data]\nsets=[\"a\"]\n[model]\nimage_size = 60", vec!["model.image_size", "multiple of 16"]),
            ("[data]\nsets=[\"a\"]\n[train]\npoints_min = 99", vec!["train.points_min"]),
            (
                "[data]\nsets=[\"a\"]\n[process]\nkind=\"diffusion\"\n[sampler]\nintegrator=\"heun\"",
                vec!["sampler.integrator"],
            ),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
    }
}
