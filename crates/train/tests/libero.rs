//! A whole run on a real LIBERO scene: a demonstration by the expert, cloning, SRPO, evaluation.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use efference_train::checkpoint::{Checkpoint, Tensors};
use efference_train::config::TrainConfig;
use efference_train::metrics;
use efference_train::policy_file;
use efference_train::report::{Silent, StopFlag};
use efference_train::run::{self, Summary};
use efference_train::run_dir::Taken;
use serde_json::json;

const CONFIG: &str = r#"
[run]
name = "libero"
seed = 5
[env]
suite = "libero_goal"
tasks = ["libero_goal_7"]
image_size = 32
max_steps = 120
[model.shape]
placeholders = "learned"
max_prompt_len = 48
text.hidden_size = 32
text.num_hidden_layers = 1
text.intermediate_size = 48
vision.hidden_size = 24
vision.num_hidden_layers = 1
vision.intermediate_size = 32
vision.patch_size = 16
[sft]
steps = 3
batch = 4
[rl]
algorithm = "srpo"
iterations = 1
prompts = 1
group = 2
mini_batch = 2
encoder.frames = 2
objective.filter.accuracy = { lower = 0.0, upper = 1.0 }
objective.regularizer.entropy_bonus.coef = 0.01
[eval]
episodes_per_task = 1
[record]
rerun = false
"#;

/// A folder of packs with the sample as task 7 of Goal.
fn packs(dir: &Path) -> PathBuf {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero/pack_sample");
    let packs = dir.join("packs");
    std::fs::create_dir_all(&packs).unwrap();
    std::os::unix::fs::symlink(sample.canonicalize().unwrap(), packs.join("libero_goal_7")).unwrap();
    packs
}

fn config(dir: &Path, sets: &[&str]) -> TrainConfig {
    let mut all =
        vec![format!("run.out={}", dir.display()), format!("env.libero.packs={}", packs_of(dir).display())];
    all.extend(sets.iter().map(|s| s.to_string()));
    TrainConfig::from_text(Path::new("libero.toml"), CONFIG, &all).unwrap_or_else(|e| panic!("{e}"))
}

fn packs_of(dir: &Path) -> PathBuf {
    dir.join("packs")
}

fn start(config: &TrainConfig) -> Summary {
    run::start(config, Taken::Refuse, &Silent, &StopFlag::default()).unwrap()
}

fn bits(tensors: &Tensors) -> Vec<(String, Vec<u32>)> {
    let mut all: Vec<_> = tensors
        .iter()
        .map(|(name, t)| {
            let t = t.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap();
            (name.clone(), t.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_run_learns_on_libero_and_its_checkpoint_knows_how_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    packs(dir.path());
    let first = start(&config(dir.path(), &["run.threads=1"]));
    let second = start(&config(dir.path(), &["run.threads=2", "run.name=again"]));
    let checkpoint = Checkpoint::load(&first.run).unwrap();
    let again = Checkpoint::load(&second.run).unwrap();
    assert_eq!(checkpoint.state.stage, "done");
    // Demonstration, rollouts and pictures do not depend on threads.
    assert_eq!(bits(&checkpoint.model), bits(&again.model));

    let rl = metrics::read(&first.run.join("metrics.jsonl")).unwrap();
    let rl = rl.into_iter().find(|record| record.stage == "rl").unwrap();
    assert!(rl.values["grad_norm"] > 0.0 && rl.values["episode_steps"] > 0.0, "{rl:?}");
    assert!(first.evals.iter().any(|table| table.tasks[0].task == "libero_goal_7"));

    // Others that draw differently are refused by name.
    let fits = json!({ "profile": "fast", "idle_steps": 10, "mirror": true });
    policy_file::load(&first.run, "libero_goal", Some(&fits), false).unwrap();
    let other = json!({ "profile": "faithful", "idle_steps": 10, "mirror": true });
    let error = policy_file::load(&first.run, "libero_goal", Some(&other), false).err().unwrap().to_string();
    assert!(error.contains("world.profile") && error.contains("faithful"), "{error}");
    let error = policy_file::load(&first.run, "libero_object", None, false).err().unwrap().to_string();
    assert!(error.contains("libero_object"), "{error}");
}

#[test]
fn wrong_settings_are_named_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    packs(dir.path());
    let refuse = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        TrainConfig::from_text(Path::new("libero.toml"), CONFIG, &sets).unwrap_err().to_string()
    };
    let text = refuse(&["env.tasks=libero_goal_17"]);
    assert!(text.contains("libero_goal_17") && text.contains("nearest"), "{text}");
    assert!(refuse(&["env.suite=libero_gaol"]).contains("libero_goal"));
    assert!(refuse(&["env.libero.profile=pretty"]).contains("faithful"));

    let started = |sets: &[&str]| {
        run::start(&config(dir.path(), sets), Taken::Refuse, &Silent, &StopFlag::default()).err().unwrap()
    };
    let chain = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut at = error.source();
        while let Some(cause) = at {
            text += &format!(": {cause}");
            at = cause.source();
        }
        text
    };
    let text = chain(&started(&["env.tasks=libero_goal_6"]));
    assert!(text.contains("no pack of task 6") && text.contains("cargo xtask libero"), "{text}");
    let text = chain(&started(&["sft.play_batch=4"]));
    assert!(text.contains("no play scenes"), "{text}");
}
