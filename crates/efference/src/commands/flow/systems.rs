//! Which systems a command tries, by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use efference_rollout::flow::{Checker, LearnedJudge, Predictor, System, VlmOptions};
use efference_train::checkpoint::sha256;
use efference_train::flow::{BUILT_IN_FLOW, FlowModel};
use serde_json::{Value, json};

use crate::errors::{Failure, Result};

/// All names, in the order of the table.
pub(super) const SYSTEMS: [&str; 8] =
    ["oracle", "full", "full_exact", "insist", "no_check", "frozen_depth", "from_scratch", "finetuned"];

/// Whose flows are executed, and who judges them.
#[derive(Debug, clap::Args)]
pub(super) struct Models {
    /// World model: run folder, checkpoint, weights file, or `builtin:flow_world`
    #[arg(long, value_name = "MODEL", default_value = BUILT_IN_FLOW)]
    model: String,
    /// Trained from scratch on the few episodes of the finetuned one, for the system `from_scratch`
    #[arg(long, value_name = "MODEL")]
    scratch: Option<String>,
    /// Pretrained, then trained on few episodes, for the system `finetuned`
    #[arg(long, value_name = "MODEL")]
    finetuned: Option<String>,
    /// Judge of final states: `predicate` (the simulator's), `none`, weights of `efference flow judge`, or the address of
    /// an OpenAI-compatible server
    #[arg(long, value_name = "JUDGE", default_value = "predicate")]
    judge: String,
    /// Name of the vision-language model at the judge's address
    #[arg(long, value_name = "NAME", default_value = "default")]
    judge_model: String,
    /// Environment variable that holds the key for the judge's server
    #[arg(long, value_name = "VARIABLE", default_value = "")]
    judge_key: String,
    /// Predictions per question, 1 to 64; the oracle and the system without a check take one
    #[arg(long, value_name = "K", default_value_t = 4)]
    samples: usize,
}

impl Models {
    fn checker(&self) -> Result<Checker> {
        Ok(match self.judge.as_str() {
            "predicate" => Checker::Predicate,
            "none" => Checker::Nobody,
            url if url.starts_with("http://") || url.starts_with("https://") => Checker::Vlm(VlmOptions {
                endpoint: url.to_owned(),
                model: self.judge_model.clone(),
                key_variable: self.judge_key.clone(),
                timeout_secs: 30.0,
                retries: 3,
                pause_secs: 0.5,
            }),
            file => Checker::Learned(Arc::new(LearnedJudge::load(Path::new(file)).map_err(|e| {
                Failure::from(e)
                    .help("a judge is `predicate`, `none`, a file of `efference flow judge`, or an address")
            })?)),
        })
    }

    /// The systems of these names, or all whose models are given.
    ///
    /// # Errors
    /// A name that is not known, a model that is not given, missing or damaged.
    pub(super) fn systems(&self, names: &[String]) -> Result<Vec<(String, System)>> {
        let given = |name: &&str| match *name {
            "from_scratch" => self.scratch.is_some(),
            "finetuned" => self.finetuned.is_some(),
            // Nothing else than `full` when the judge is exact anyway.
            "full_exact" => self.judge != "predicate",
            _ => true,
        };
        let names: Vec<String> = if names.is_empty() {
            SYSTEMS.iter().filter(|name| given(name)).map(|name| (*name).to_owned()).collect()
        } else {
            names.to_vec()
        };
        let checker = self.checker()?;
        let load = |name: &str| -> Result<Arc<dyn Predictor>> {
            Ok(Arc::new(FlowModel::load(name, efference_train::device::open("cpu")?)?))
        };
        let given = |option: &Option<String>, flag: &str| {
            option.clone().ok_or_else(|| Failure::usage(format!("this system needs {flag} MODEL")))
        };
        let mut main: Option<Arc<dyn Predictor>> = None;
        let mut main = || -> Result<Arc<dyn Predictor>> {
            match &main {
                Some(model) => Ok(Arc::clone(model)),
                None => Ok(Arc::clone(main.insert(load(&self.model)?))),
            }
        };
        let mut systems = Vec::new();
        for name in names {
            let mut system = match name.as_str() {
                "oracle" => System::oracle(),
                "full" => System::full(main()?, checker.clone()),
                "insist" => {
                    let mut system = System::full(main()?, checker.clone());
                    system.propose.insist = true;
                    system
                }
                "full_exact" => System::full(main()?, Checker::Predicate),
                "no_check" => System::unchecked(main()?),
                "frozen_depth" => System::frozen_depth(main()?, checker.clone()),
                "from_scratch" => System::full(load(&given(&self.scratch, "--scratch")?)?, checker.clone()),
                "finetuned" => System::full(load(&given(&self.finetuned, "--finetuned")?)?, checker.clone()),
                other => {
                    let what = format!("there is no system `{other}`");
                    return Err(Failure::usage(what).help(format!("known: {}", SYSTEMS.join(", "))));
                }
            };
            if name != "no_check" {
                system.propose.samples = self.samples;
            }
            systems.push((name, system));
        }
        Ok(systems)
    }

    /// What the results depend on, for the journal.
    pub(super) fn settings(&self) -> Value {
        let identity = |name: &String| json!({ "name": name, "sha256": digest(Path::new(name)) });
        json!({
            "model": identity(&self.model),
            "scratch": self.scratch.as_ref().map(identity),
            "finetuned": self.finetuned.as_ref().map(identity),
            "judge": identity(&self.judge),
            "judge_model": self.judge_model,
            "samples": self.samples,
        })
    }
}

/// Of a file, or of the files of a folder by name; `null` for what is neither.
fn digest(path: &Path) -> Option<String> {
    if path.is_file() {
        return std::fs::read(path).ok().map(|bytes| sha256(&bytes));
    }
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors" || e == "json"));
    files.sort();
    let parts: Vec<String> = files.iter().filter_map(|file| digest(file)).collect();
    Some(sha256(parts.concat().as_bytes()))
}
