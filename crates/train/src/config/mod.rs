//! A run's configuration: what it may hold, where it comes from, and what is wrong with it.
//!
//! Read `sections.rs` for the settings themselves, `resolve.rs` for how a file and `--set` become one value.

mod error;
mod names;
mod open;
mod resolve;
mod sections;
pub(crate) mod settings;
#[cfg(test)]
mod tests;

use std::path::Path;

use sha2::{Digest, Sha256};

pub use error::{ConfigError, Place, Problem};
pub use sections::{
    CheckpointConfig, CriticConfig, EncoderConfig, EnvConfig, EvalConfig, LiberoConfig, ModelConfig,
    OptimizerConfig, PretrainConfig, RecordConfig, RlConfig, RunConfig, SftConfig, TrainConfig,
};
pub use settings::{Check, Field, Kind, Range, Section};

use resolve::Source;

/// The settings of a whole configuration, for printing.
pub fn fields() -> Vec<Field> {
    TrainConfig::fields()
}

/// A configuration of any kind from `text`, with `overrides` applied and defaults filled in; `file` names it in messages.
/// `cross_check` adds what no single setting can say about itself.
///
/// # Errors
/// As [`TrainConfig::load`], except for reading.
pub(crate) fn read<T: Section + serde::de::DeserializeOwned>(
    file: &Path,
    text: &str,
    overrides: &[String],
    cross_check: impl FnOnce(&T, &Blame<'_>, &mut Vec<Problem>),
) -> Result<T, ConfigError> {
    let fields = T::fields();
    let mut source = Source::parse(file, text)?;
    source.known = fields.clone();
    for text in overrides {
        source.set(text, &fields)?;
    }
    let mut problems = Vec::new();
    source.check(&source.tree, &fields, "", &mut problems);
    if !problems.is_empty() {
        return Err(ConfigError::Invalid { problems });
    }
    let config: T = toml::Value::Table(source.tree.clone()).try_into().map_err(|e: toml::de::Error| {
        ConfigError::Syntax { place: Place::Default, message: e.message().into() }
    })?;
    cross_check(&config, &Blame(&source), &mut problems);
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
}

/// Says where a setting that is wrong was written.
pub(crate) struct Blame<'s>(&'s Source);

impl Blame<'_> {
    /// What is wrong with `field`, and what to do about it.
    pub(crate) fn problem(&self, field: &str, what: impl Into<String>, help: impl Into<String>) -> Problem {
        self.0.problem(field, what, help)
    }
}

impl TrainConfig {
    /// Reads `file`, applies `overrides` (`section.key=value`, later ones win) and fills in defaults.
    ///
    /// # Errors
    /// [`ConfigError`]: unreadable file, not TOML, malformed override, or every wrong setting with its place.
    pub fn load(file: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Read { path: file.to_path_buf(), source })?;
        Self::from_text(file, &text, overrides)
    }

    /// As [`load`](Self::load), for text that is already there; `file` only names it in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load), except for reading.
    pub fn from_text(file: &Path, text: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut source = Source::parse(file, text)?;
        let fields = fields();
        for text in overrides {
            source.set(text, &fields)?;
        }
        let mut problems = Vec::new();
        source.check(&source.tree, &fields, "", &mut problems);
        if !problems.is_empty() {
            return Err(ConfigError::Invalid { problems });
        }
        let mut config: Self =
            toml::Value::Table(source.tree.clone()).try_into().map_err(|e: toml::de::Error| {
                ConfigError::Syntax { place: Place::Default, message: e.message().into() }
            })?;
        if let Some(rl) = &mut config.rl
            && !source.wrote("rl.mini_batch")
        {
            rl.mini_batch = rl.mini_batch.min(rl.prompts * rl.group);
        }
        config.cross_check(&source, &mut problems);
        open::check(&config, &source, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError::Invalid { problems }) }
    }

    /// What no single setting can say about itself.
    fn cross_check(&self, source: &Source, problems: &mut Vec<Problem>) {
        let name = &self.run.name;
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
            let help = "use letters, digits, `-`, `_` and `.`, not starting with a dot";
            problems.push(source.problem("run.name", format!("\"{name}\" cannot name a folder"), help));
        }
        if self.pretrain.is_none() && self.sft.is_none() && self.rl.is_none() {
            let help = "add a [pretrain], [sft] or [rl] section";
            problems.push(source.problem("rl", "no training stage is configured", help));
        }
        if self.eval.weights == "ema" && self.optimizer.ema == 0.0 {
            let help = "set optimizer.ema, for example to 0.999";
            problems.push(source.problem("eval.weights", "no average of the weights is kept", help));
        }
        let mut seen = std::collections::BTreeSet::new();
        for task in self.env.tasks.iter().filter(|t| !seen.insert(t.as_str())) {
            problems.push(source.problem(
                "env.tasks",
                format!("\"{task}\" is listed twice"),
                "list each task once",
            ));
        }
        let known = names::tasks(&self.env.suite);
        for task in self.env.tasks.iter().filter(|task| !known.is_empty() && !known.contains(task)) {
            let help = resolve::suggest_word(task, &known);
            problems.push(source.problem("env.tasks", format!("there is no \"{task}\""), help));
        }
        if let Some(rl) = &self.rl {
            if rl.rehearse_demos > 0 && self.sft.is_none() {
                let help = "add [sft], or set rl.rehearse_demos = 0";
                problems.push(source.problem(
                    "rl.rehearse_demos",
                    "without [sft] there are no demonstrations",
                    help,
                ));
            }
            if rl.mirrored && rl.noise != "chunk" {
                let help = "set rl.noise = \"chunk\", or rl.mirrored = false";
                problems.push(source.problem("rl.mirrored", "only shared numbers can be mirrored", help));
            }
        }
        if self.env.suite == crate::world::DATASET_SUITE {
            let suite = format!("env.suite = \"{}\" has no simulator", self.env.suite);
            let stages = [("pretrain", self.pretrain.is_some()), ("rl", self.rl.is_some())];
            for (stage, _) in stages.into_iter().filter(|(_, present)| *present) {
                let help = format!("remove [{stage}], or choose another suite");
                problems.push(source.problem(stage, &*suite, help));
            }
            if self.sft.as_ref().is_some_and(|sft| sft.demos == "expert") {
                let help = "give the folder of stored demonstrations";
                problems.push(source.problem("sft.demos", &*suite, help));
            }
        }
        if let Some(rl) = &self.rl {
            let trajectories = rl.prompts * rl.group;
            if rl.mini_batch > trajectories {
                let what = format!(
                    "{} trajectories per optimiser step, but an iteration has only {trajectories}",
                    rl.mini_batch
                );
                let help =
                    format!("rl.prompts x rl.group = {} x {}; lower rl.mini_batch", rl.prompts, rl.group);
                problems.push(source.problem("rl.mini_batch", what, help));
            }
        }
    }

    /// The whole configuration, defaults included, as TOML that [`load`](Self::load) reads back to the same value.
    ///
    /// # Errors
    /// [`ConfigError::Write`] if a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Write { message: e.to_string() })
    }

    /// SHA-256 (hex) of everything that changes results: not the run's name, folder, thread count, wall-clock
    /// limit, what is recorded and kept, or computed again to save memory.
    ///
    /// # Errors
    /// [`ConfigError::Write`] if a value has no TOML form.
    pub fn fingerprint(&self) -> Result<String, ConfigError> {
        let mut same = self.clone();
        same.run = RunConfig { seed: self.run.seed, device: self.run.device.clone(), ..RunConfig::default() };
        same.record = RecordConfig::default();
        same.checkpoint = CheckpointConfig::default();
        same.model.gradient_checkpointing = false;
        if let Some(rl) = &mut same.rl {
            rl.minutes = None;
        }
        let digest = Sha256::digest(same.to_toml()?.as_bytes());
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A space at which [`wrapped`] does not break.
const GLUE: &str = "\u{a0}";

/// Breaks a description of [`settings_table`] so that its lines stand below each other in 100 columns.
fn wrapped(text: &str) -> String {
    const COLUMN: usize = 42;
    const WIDTH: usize = 99 - COLUMN;
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines.join(&format!("\n{:COLUMN$}", "")).replace(GLUE, " ")
}

/// The table of settings, section by section, as `efference train --help` prints it.
pub fn settings_table() -> String {
    table_of(fields())
}

/// As [`settings_table`], for other settings.
pub(crate) fn table_of(fields: Vec<Field>) -> String {
    let mut out = String::new();
    let mut sections = vec![("".to_string(), fields)];
    while let Some((path, fields)) = sections.pop() {
        let rows: Vec<&Field> = fields.iter().filter(|f| !matches!(f.kind, Kind::Table(_))).collect();
        if !rows.is_empty() {
            out.push_str(&format!("\n[{path}]\n"));
        }
        for field in rows {
            let default = if field.default.is_empty() { "{}" } else { &field.default };
            let note = match field.check {
                Some(Check::In(range)) => format!(" ({range})").replace(' ', GLUE).replacen(GLUE, " ", 1),
                Some(Check::OneOf(words)) if !words().is_empty() => {
                    format!(" ({})", words().join(", "))
                }
                _ => String::new(),
            };
            let doc = field.doc.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            let text = wrapped(&format!("{}{note}", doc.trim()));
            out.push_str(&format!("  {:<22} {default:<16} {text}\n", field.name));
        }
        for field in fields.iter().rev() {
            if let Kind::Table(inner) = field.kind {
                let here = if path.is_empty() { field.name.into() } else { format!("{path}.{}", field.name) };
                sections.push((here, inner()));
            }
        }
    }
    out
}
