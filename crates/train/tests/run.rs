//! Whole runs on real parts: a small policy, the real simulator, all three stages.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use efference_train::checkpoint::{Checkpoint, Tensors};
use efference_train::config::{EnvConfig, TrainConfig};
use efference_train::metrics::{self, Record, is_reproducible};
use efference_train::report::{Event, Recorded, Reporter, Silent, StopFlag};
use efference_train::run::{self, Summary};
use efference_train::run_dir::Taken;
use efference_train::{network, policy_file, world};

/// The tabletop's range of proprioception.
fn range() -> efference_nets::Quantiles {
    world::open(&EnvConfig::default()).unwrap().unwrap().proprio_range()
}

/// Two tasks, 40 control steps an episode, a network of some ten thousand weights. Untrained, nothing succeeds, so
/// an entropy bonus makes the RL updates move.
const CONFIG: &str = r#"
[run]
name = "small"
seed = 3
[env]
tasks = ["press_button", "push_block_to_mark"]
image_size = 32
max_steps = 40
[model.shape]
placeholders = "learned"
text.hidden_size = 32
text.num_hidden_layers = 2
text.intermediate_size = 48
vision.hidden_size = 24
vision.num_hidden_layers = 1
vision.intermediate_size = 32
vision.patch_size = 16
[pretrain]
samples = 12
steps = 3
batch = 5
[sft]
steps = 4
batch = 6
warmup_steps = 2
label_smoothing_bins = 2.0
[rl]
algorithm = "srpo"
focus = true
noise = "chunk"
iterations = 3
mirrored = true
decision_share = 0.6
old_log_probs = "sampled"
rehearse_demos = 2
rehearse_play = 2
critic = { hidden = 8, batch = 8 }
prompts = 3
group = 3
mini_batch = 4
micro_batch = 5
lr = 3e-3
schedule = "cosine"
warmup_steps = 2
objective.filter.accuracy = { lower = 0.0, upper = 1.0 }
objective.regularizer.entropy_bonus.coef = 0.01
objective.advantage = { kind = "turn_gae", lambda = 0.9 }
encoder.frames = 4
[eval]
episodes_per_task = 2
every = 2
[checkpoint]
every = 2
every_steps = 2
keep_last = 99
[record]
rerun = false
"#;

fn config(out: &Path, sets: &[&str]) -> TrainConfig {
    let mut all = vec![format!("run.out={}", out.display())];
    all.extend(sets.iter().map(|s| s.to_string()));
    TrainConfig::from_text(Path::new("small.toml"), CONFIG, &all).unwrap_or_else(|e| panic!("{e}"))
}

fn start(config: &TrainConfig, reporter: &dyn Reporter, stop: &StopFlag) -> Summary {
    run::start(config, Taken::Refuse, reporter, stop).unwrap()
}

/// Step, stage, and name and bits of each number.
type Line = (u64, String, Vec<(String, u64)>);

/// What two runs must agree in, step by step: names, and bits of every number that does not measure the machine.
fn bits(run: &Path) -> Vec<Line> {
    let number = |(name, x): (&String, &f64)| is_reproducible(name).then(|| (name.clone(), x.to_bits()));
    let line = |r: Record| (r.step, r.stage.clone(), r.values.iter().filter_map(number).collect());
    metrics::read(&run.join("metrics.jsonl")).unwrap().into_iter().map(line).collect()
}

/// Weights of the last checkpoint as bits.
fn weights(run: &Path) -> Vec<(String, Vec<u32>)> {
    let checkpoint = Checkpoint::load(run).unwrap();
    assert_eq!(checkpoint.state.stage, "done");
    tensor_bits(&checkpoint.model)
}

fn tensor_bits(tensors: &Tensors) -> Vec<(String, Vec<u32>)> {
    let bits = |t: &candle_core::Tensor| {
        let t = t.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap();
        t.to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    tensors.iter().map(|(name, t)| (name.clone(), bits(t))).collect()
}

/// Weights, moments and counts of every checkpoint that both runs have at the same place.
fn assert_same_checkpoints(a: &Path, b: &Path) {
    let mut same = 0;
    for entry in std::fs::read_dir(a.join("checkpoints")).unwrap() {
        let name = entry.unwrap().file_name();
        let (a, b) = (a.join("checkpoints").join(&name), b.join("checkpoints").join(&name));
        if !a.join("state.json").is_file() || !b.join("state.json").is_file() {
            continue; // a pointer, or a checkpoint that only the stop made
        }
        let (a, b) = (Checkpoint::load(&a).unwrap(), Checkpoint::load(&b).unwrap());
        let place = |c: &Checkpoint| (c.state.stage.clone(), c.state.stage_step);
        if place(&a) == place(&b) {
            assert_eq!(tensor_bits(&a.model), tensor_bits(&b.model), "{name:?}");
            assert_eq!(tensor_bits(&a.optimizer), tensor_bits(&b.optimizer), "{name:?}");
            assert_eq!((&a.state.counters, &a.state.evals), (&b.state.counters, &b.state.evals), "{name:?}");
            same += 1;
        }
    }
    assert!(same >= 3, "only {same} checkpoints to compare");
}

/// Asks for a stop at the first event for which `when` holds.
struct StopWhen<'s, F>(F, &'s StopFlag);

impl<F: Fn(&Event) -> bool + Send + Sync> Reporter for StopWhen<'_, F> {
    fn report(&self, event: &Event) {
        if (self.0)(event) {
            self.1.request();
        }
    }
}

fn update(event: &Event, at: u64) -> bool {
    matches!(event, Event::Metrics { step, stage, .. } if *step == at && stage != "eval")
}

#[test]
fn a_resumed_run_is_the_unbroken_run_bit_for_bit_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let whole = start(&config(dir.path(), &["run.name=whole"]), &Silent, &StopFlag::new());
    assert!(whole.finished && whole.step == 10);
    let labels: Vec<&str> = whole.evals.iter().map(|e| e.label.as_str()).collect();
    assert_eq!(labels, ["before_rl", "iteration", "after_rl"]);
    let (lines, end) = (bits(&whole.run), weights(&whole.run));
    assert_eq!(lines.iter().filter(|(_, stage, _)| stage == "rl").count(), 3);
    assert!(lines.iter().any(|(_, stage, v)| stage == "rl" && v.iter().any(|(n, _)| n == "max_ratio_gap")));

    // Stopped in each stage, between checkpoints and on them, and continued with another number of threads; also in the
    // evaluation before RL, and in the first rollouts, when the stage has begun and nothing is learned yet.
    type When = Box<dyn Fn(&Event) -> bool + Send + Sync>;
    let in_first_rollouts: When = Box::new(|e| matches!(e, Event::Stage { name, .. } if name == "rl"));
    let in_evaluation: When = Box::new(|e| matches!(e, Event::Stage { name, .. } if name == "eval"));
    let mut stops: Vec<(String, When)> =
        vec![("rollouts".into(), in_first_rollouts), ("evaluation".into(), in_evaluation)];
    for at in [2, 5, 8, 9] {
        stops.push((at.to_string(), Box::new(move |e| update(e, at))));
    }
    for (i, (at, when)) in stops.into_iter().enumerate() {
        let name = format!("run.name=stop-{at}");
        let stop = StopFlag::new();
        let part = start(&config(dir.path(), &[&name, "run.threads=2"]), &StopWhen(when, &stop), &stop);
        assert!(!part.finished, "stop at {at}");
        let threads = format!("run.threads={}", 1 + i % 3);
        let resumed = run::resume(&part.run, &[threads], &Silent, &StopFlag::new()).unwrap();
        assert!(resumed.finished);
        assert_eq!(resumed.evals, whole.evals, "stop at {at}");
        assert_eq!(bits(&part.run), lines, "stop at {at}");
        assert_eq!(weights(&part.run), end, "stop at {at}");
        assert_same_checkpoints(&part.run, &whole.run);
    }
}

#[test]
fn what_a_kill_leaves_is_resumed_to_the_same_end() {
    // A kill leaves a log longer than the checkpoint remembers, a torn line, and half a checkpoint.
    let dir = tempfile::tempdir().unwrap();
    let whole = start(&config(dir.path(), &["run.name=whole"]), &Silent, &StopFlag::new());
    let stop = StopFlag::new();
    let part =
        start(&config(dir.path(), &["run.name=killed"]), &StopWhen(|e: &Event| update(e, 8), &stop), &stop);
    let log = part.run.join("metrics.jsonl");
    let mut text = std::fs::read_to_string(&log).unwrap();
    text += "{\"step\":99,\"stage\":\"rl\",\"loss\":0.5}\n{\"step\":100,\"st";
    std::fs::write(&log, text).unwrap();
    let torn: PathBuf = part.run.join("checkpoints/00000099");
    std::fs::create_dir(&torn).unwrap();
    std::fs::write(torn.join("model.safetensors"), b"half").unwrap();
    let resumed = run::resume(&part.run, &[], &Silent, &StopFlag::new()).unwrap();
    assert_eq!(bits(&resumed.run), bits(&whole.run));
    assert_eq!(weights(&resumed.run), weights(&whole.run));
    assert!(!torn.exists());
}

#[test]
fn a_resumed_run_refuses_other_settings_and_a_finished_one_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let done = start(&config(dir.path(), &[]), &Silent, &StopFlag::new());
    let events = Recorded::default();
    let again = run::resume(&done.run, &[], &events, &StopFlag::new()).unwrap();
    assert_eq!((again.step, &again.evals), (done.step, &done.evals));
    assert!(events.events().iter().all(|e| !matches!(e, Event::Metrics { .. })));
    let error = run::resume(&done.run, &["rl.lr=0.5".into()], &Silent, &StopFlag::new()).unwrap_err();
    assert!(error.to_string().contains("belongs to other settings"), "{error}");
}

#[test]
fn grpo_and_srpo_play_the_same_first_rollouts() {
    let dir = tempfile::tempdir().unwrap();
    let first = |name: &str, algorithm: &str| {
        let sets = [
            name,
            algorithm,
            "rl.objective={}",
            "rl.iterations=1",
            "rl.focus=false",
            "eval.episodes_per_task=0",
        ];
        let run = start(&config(dir.path(), &sets), &Silent, &StopFlag::new()).run;
        let rl = metrics::read(&run.join("metrics.jsonl")).unwrap().into_iter().find(|r| r.stage == "rl");
        let values = rl.unwrap().values;
        (values["success"], values["episode_steps"], values.contains_key("progress"))
    };
    let (grpo, srpo) = (first("run.name=g", "rl.algorithm=grpo"), first("run.name=s", "rl.algorithm=srpo"));
    assert_eq!((grpo.0, grpo.1), (srpo.0, srpo.1));
    assert!(!grpo.2 && srpo.2);
}

#[test]
fn micro_batches_add_up_to_the_mini_batch() {
    let dir = tempfile::tempdir().unwrap();
    let first = |name: &str, micro: &str| {
        let sets = [name, micro, "rl.mini_batch=9", "rl.iterations=1", "eval.episodes_per_task=0"];
        let run = start(&config(dir.path(), &sets), &Silent, &StopFlag::new()).run;
        let rl = metrics::read(&run.join("metrics.jsonl")).unwrap().into_iter().find(|r| r.stage == "rl");
        let values = rl.unwrap().values;
        assert_eq!(values["updates"], 1.0);
        assert_eq!(values["max_ratio_gap"], 0.0, "the ratio is exactly 1 before the first update");
        ["loss", "grad_norm", "entropy"].map(|name| values[name])
    };
    let (one, many) =
        (first("run.name=one", "rl.micro_batch=999"), first("run.name=many", "rl.micro_batch=1"));
    for (a, b) in one.iter().zip(&many) {
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-2), "{one:?} {many:?}");
    }
    assert!(one[1] > 0.0, "{one:?}");
}

#[test]
fn what_saves_memory_resumes_bit_for_bit_and_computing_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["adafactor", "adamw8bit"] {
        let optimizer = format!("optimizer.kind={kind}");
        let sets = |name: &'static str| {
            vec![
                name,
                optimizer.as_str(),
                "optimizer.scale_parameter=false",
                "optimizer.ema=0.9",
                "eval.weights=ema",
                "model.freeze=[\"vision_backbone.\", \"!*.patch_embedding.*\"]",
                "rl.iterations=2",
            ]
        };
        let whole = start(&config(dir.path(), &sets("run.name=whole")), &Silent, &StopFlag::new());
        let stop = StopFlag::new();
        let mut forgetful = sets("run.name=forgetful");
        forgetful.push("model.gradient_checkpointing=true");
        let when = StopWhen(|e: &Event| update(e, 5), &stop);
        let part = start(&config(dir.path(), &forgetful), &when, &stop);
        assert!(!part.finished);
        let again = ["model.gradient_checkpointing=false".to_string()];
        let resumed = run::resume(&part.run, &again, &Silent, &StopFlag::new()).unwrap();
        assert_eq!(resumed.evals, whole.evals);
        assert_eq!(bits(&part.run), bits(&whole.run), "{kind}");
        assert_eq!(weights(&part.run), weights(&whole.run), "{kind}");
        assert_same_checkpoints(&part.run, &whole.run);

        // Frozen weights are the initial ones; what is excepted has moved.
        let end = Checkpoint::load(&whole.run).unwrap();
        let first = config(dir.path(), &sets("run.name=first"));
        let first = network::policy(&first, range()).unwrap().params;
        let mut moved = [0, 0];
        for (name, var) in first.vars() {
            let same = tensor_bits(&Tensors::from([(name.clone(), var.as_tensor().clone())]))[0].1
                == tensor_bits(&Tensors::from([(name.clone(), end.model[name].clone())]))[0].1;
            let frozen = name.starts_with("vision_backbone.") && !name.contains(".patch_embedding.");
            assert_eq!(same, frozen, "{name}");
            moved[usize::from(frozen)] += 1;
        }
        assert!(moved[0] > 0 && moved[1] > 0);

        // The averages outlive the stage and can act.
        assert!(end.optimizer.keys().any(|name| name.starts_with("average/")));
        let load =
            |averaged| policy_file::load(&whole.run, "tabletop", None, averaged).unwrap().policy.params;
        let of = |params: &efference_nets::ParamStore| params.to_bytes().unwrap();
        assert_ne!(of(&load(true)), of(&load(false)));
        for run in [&whole.run, &part.run] {
            std::fs::remove_dir_all(run).unwrap();
        }
    }
    let done = start(&config(dir.path(), &["sft=none", "rl=none"]), &Silent, &StopFlag::new());
    let refused = policy_file::load(&done.run, "tabletop", None, true).err().unwrap().to_string();
    assert!(refused.contains("optimizer.ema"), "{refused}");
}

#[test]
fn patterns_that_freeze_nothing_or_everything_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |set: &str| {
        let config = config(dir.path(), &[set]);
        let error = network::policy(&config, range()).err().unwrap();
        format!("{error}: {}", std::error::Error::source(&error).map_or(String::new(), ToString::to_string))
    };
    let nothing = refused("model.freeze=[\"vision.\", \"language_model.\"]");
    assert!(nothing.contains("model.freeze") && nothing.contains("\"vision.\""), "{nothing}");
    assert!(!nothing.contains("\"language_model.\""), "{nothing}");
    assert!(refused("model.freeze=[\"*\"]").contains("nothing is left to train"));
}
