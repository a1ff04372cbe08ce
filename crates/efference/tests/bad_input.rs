//! Whatever is wrong with what a person gives: one clear error that says what, where and what to do; an exit code that
//! is not 0; and nothing lost or left half made.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

/// A second of training: the network and the stages of `resume.rs`, shorter.
const CONFIG: &str = r#"
[run]
name = "small"
seed = 5
[env]
tasks = ["press_button", "open_drawer"]
image_size = 32
max_steps = 40
[model.shape]
placeholders = "learned"
text = { hidden_size = 32, num_hidden_layers = 2, intermediate_size = 48 }
vision = { hidden_size = 24, num_hidden_layers = 1, intermediate_size = 32, patch_size = 16 }
[sft]
steps = 12
batch = 4
[rl]
iterations = 2
prompts = 2
group = 2
mini_batch = 4
encoder.frames = 4
objective.filter.accuracy = { lower = 0.0, upper = 1.0 }
[eval]
episodes_per_task = 1
[checkpoint]
every = 1
every_steps = 4
[record]
rerun = false
"#;

/// A folder to stand in, with `small.toml`.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("small.toml"), CONFIG).unwrap();
        Self { dir }
    }

    /// As [`Desk::new`], with a finished run `runs/small` in it.
    fn with_run() -> Self {
        static RUN: OnceLock<Desk> = OnceLock::new();
        let trained = RUN.get_or_init(|| {
            let desk = Self::new();
            desk.works(&["train", "small.toml"]);
            desk
        });
        let desk = Self::new();
        copy(&trained.path("runs"), &desk.path("runs"));
        desk
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_efference"));
        command.arg("--quiet").args(arguments).current_dir(self.dir.path()).output().unwrap()
    }

    fn works(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// One error that says all of `parts`, and every file is as it was.
    fn refuses(&self, arguments: &[&str], parts: &[&str]) -> String {
        let before = tree(self.dir.path());
        let text = self.fails(arguments, parts);
        assert!(tree(self.dir.path()) == before, "{arguments:?} changed files: {text}");
        text
    }

    fn fails(&self, arguments: &[&str], parts: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.starts_with("error: ") && text.matches("error: ").count() == 1, "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: expected {part:?} in: {text}");
        }
        text
    }

    /// `train` refuses `text` as a configuration.
    fn refuses_config(&self, text: &str, sets: &[&str], parts: &[&str]) {
        self.write("bad.toml", text);
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = ["train", "bad.toml"].into_iter().chain(sets).collect();
        self.refuses(&arguments, parts);
    }
}

/// Every file and folder below `root` with its content.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut out = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            out.insert(path.clone(), if path.is_dir() { None } else { Some(fs::read(&path).unwrap()) });
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    out
}

fn copy(from: &Path, to: &Path) {
    for (path, content) in tree(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        match content {
            None => fs::create_dir_all(target).unwrap(),
            Some(bytes) => {
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::write(target, bytes).unwrap();
            }
        }
    }
}

/// The last checkpoint of `runs/small`.
fn last_checkpoint(run: &Path) -> PathBuf {
    let name = fs::read_to_string(run.join("checkpoints/last")).unwrap();
    run.join("checkpoints").join(name.trim())
}

/// Changes a field of the last checkpoint's state.json.
fn edit_state(run: &Path, field: &str, value: Value) {
    let file = last_checkpoint(run).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    *state.pointer_mut(field).unwrap() = value;
    fs::write(file, state.to_string()).unwrap();
}

fn flip_a_byte(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(file, bytes).unwrap();
}

#[test]
fn unknown_keys_name_the_line_and_the_nearest() {
    let desk = Desk::new();
    for (text, sets, message) in [
        ("[sft]\nstep = 5\n", &[][..], "bad.toml:2:1: `sft.step`: unknown key (did you mean `sft.steps`?)"),
        ("[sft]\n[rll]\ngroup = 5\n", &[], "bad.toml:2:2: `rll`: unknown section (did you mean `rl`?)"),
        ("[rl]\n", &["rl.gruop=4"], "--set rl.gruop=4: `rl.gruop`: unknown key (did you mean `rl.group`?)"),
        (
            "[rl]\n[model.shape]\nchunks = 4\n",
            &[],
            "bad.toml:3:1: `model.shape.chunks`: unknown key (did you mean `model.shape.chunk`?)",
        ),
        (
            "[rl]\n[model.shape]\ntext = { hiden_size = 64 }\n",
            &[],
            "bad.toml:3:10: `model.shape.text.hiden_size`: unknown key (did you mean `model.shape.text.hidden_size`?)",
        ),
        (
            "[rl]\nalgorithm = \"grpo\"\n[rl.objective.surrogate]\nclip_lo = 0.1\n",
            &[],
            "bad.toml:4:1: `rl.objective.surrogate.clip_lo`: unknown key (did you mean `rl.objective.surrogate.clip_low`?)",
        ),
        (
            "[rl]\nobjective.clip_low = 0.1\n",
            &[],
            "bad.toml:2:11: `rl.objective.clip_low`: unknown key (`rl.objective.surrogate.clip_low` exists",
        ),
        (
            "[rl]\n",
            &["rl.objective.reward.progress.fail_mx=0.5"],
            "--set rl.objective.reward.progress.fail_mx=0.5: `rl.objective.reward.progress.fail_mx`: unknown key (did \
             you mean `rl.objective.reward.progress.fail_max`?)",
        ),
    ] {
        desk.refuses_config(text, sets, &[message]);
    }
}

#[test]
fn values_that_cannot_be_say_what_can() {
    let desk = Desk::new();
    for (text, message) in [
        (
            "[rl]\ngroup = \"eight\"\n",
            "bad.toml:2:1: `rl.group`: expected a whole number, got the text \"eight\"",
        ),
        ("[rl]\niterations = -3\n", "bad.toml:2:1: `rl.iterations`: -3 is out of range (allowed: "),
        ("[sft]\nbatch = 0\n", "bad.toml:2:1: `sft.batch`: 0 is out of range (allowed: 1 or more)"),
        ("[sft]\nlr = 2.0\n", "`sft.lr`: 2.0 is out of range (allowed: greater than 0, at most 1)"),
        ("[rl]\nalgorithm = \"srp\"\n", "`rl.algorithm`: there is no \"srp\" (nearest: \"srpo\"; known: "),
        ("[sft]\nschedule = \"cosin\"\n", "`sft.schedule`: there is no \"cosin\" (nearest: \"cosine\""),
        (
            "[rl]\n[env]\ntasks = [\"open_drawr\"]\n",
            "bad.toml:3:1: `env.tasks`: there is no \"open_drawr\" (nearest: \"open_drawer\"",
        ),
        ("[rl]\n[env]\nsuite = \"dataset\"\n", "`rl`: env.suite = \"dataset\" has no simulator (remove [rl]"),
        (
            "[rl]\n[env]\nimage_size = 36\n",
            "bad.toml:3:1: `env.image_size`: 36 makes no network (allowed: a multiple",
        ),
        (
            "[rl]\n[model.shape]\nchunk = 0\n",
            "bad.toml:3:1: `model.shape.chunk`: 0 makes no network (allowed: ",
        ),
        ("[rl]\n[model.shape]\nchunk = -8\n", "bad.toml:3:1: `model.shape.chunk`: -8 is out of range"),
        (
            "[rl]\n[model.shape.text]\nhidden_size = 30\n",
            "bad.toml:3:1: `model.shape.text.hidden_size`: 30 makes no network (allowed: a multiple of 2 x",
        ),
        ("[rl]\n[model.shape]\ntext = 3\n", "`model.shape.text`: expected a section, got the number 3"),
        (
            "[rl]\n[model.shape]\nplaceholders = \"lerned\"\n",
            "bad.toml:3:1: `model.shape.placeholders`: unknown variant `lerned`, expected `zero` or `learned`",
        ),
        (
            "[rl]\n[model.shape]\nvision.image_size = 48\n",
            "bad.toml:3:8: `model.shape.vision.image_size`: the images have `env.image_size` = 64 px",
        ),
        (
            "[rl]\nobjective.aggregation = \"token\"\n",
            "bad.toml:2:11: `rl.objective.aggregation`: unknown variant `token`, expected one of `token-mean`",
        ),
        (
            "[rl]\nobjective.surrogate.clip_low = -1.0\n",
            "bad.toml:2:21: `rl.objective.surrogate.clip_low`: -1 is out of range (`clip_low`: 0 to 1)",
        ),
        (
            "[rl]\nobjective.regularizer.kl.coef = 0.01\n",
            "`rl.objective.regularizer.kl.coef`: this composition does not work: the regularizer \"0.01 KL to the \
             reference (k3)\" needs `ref_log_probs`",
        ),
        ("[rl]\nalgorithm = \"papo\"\n", "bad.toml:2:1: `rl.algorithm`: this composition does not work: "),
        (
            "[rl]\nobjective.filter.accuracy.lower = 2.0\n",
            "`rl.objective.filter.accuracy.lower`: 2 is out of range (`filter.lower`: between 0 and `upper`",
        ),
        (
            "[rl]\nobjective.reward.progress.dbscan_min_samples = \"two\"\n",
            "`rl.objective.reward.progress.dbscan_min_samples`: expected a whole number, got the text \"two\" (for example: \
             dbscan_min_samples = 2)",
        ),
    ] {
        desk.refuses_config(text, &[], &[message]);
    }
    let wide = "[rl]\n[model.shape]\ntext.hidden_size = 1000000\n";
    desk.refuses_config(wide, &[], &["`model`: training this network takes at least ", "GiB", "help: "]);
    // Everything that is wrong is told at once.
    let both = ["bad.toml:2:1: `sft.batch`", "--set rl.group=1: `rl.group`"];
    desk.refuses_config("[sft]\nbatch = 0\n", &["rl.group=1"], &both);
}

#[test]
fn what_is_no_configuration_is_named() {
    let desk = Desk::new();
    desk.refuses(
        &["train", "smal.toml"],
        &["cannot read the configuration `smal.toml`", "help: check the path"],
    );
    desk.refuses(&["train", "."], &["cannot read the configuration `.`", "help: give a file"]);
    desk.refuses_config("[rl\ngroup = 4\n", &[], &["bad.toml:1:4: not valid TOML: "]);
    desk.refuses_config(
        "[rl]\ngroup = 4\ngroup = 5\n",
        &[],
        &["bad.toml:3:1: not valid TOML: duplicate key"],
    );
    fs::write(desk.path("binary.toml"), [0xff, 0xfe, 0]).unwrap();
    desk.refuses(&["train", "binary.toml"], &["cannot read the configuration `binary.toml`", "UTF-8"]);
    desk.refuses(
        &["train", "small.toml", "--set", "rl.group"],
        &["--set rl.group: expected `section.key=value`"],
    );
}

#[test]
fn only_a_whole_run_with_its_own_settings_is_resumed() {
    let desk = Desk::with_run();
    let resume = |name: &str, parts: &[&str]| desk.refuses(&["train", "--resume", name], parts);
    resume("runs/smal", &["`runs/smal` is not a run folder: nothing is there", "help: "]);
    resume("runs", &["`runs` is not a run folder: it has no `config.toml`", "help: "]);
    resume("small.toml", &["`small.toml` is not a run folder", "help: "]);

    let fresh = |name: &str| {
        let run = desk.path(name);
        copy(&desk.path("runs/small"), &run);
        run
    };
    let damaged = fresh("flipped");
    flip_a_byte(&last_checkpoint(&damaged).join("model.safetensors"));
    resume("flipped", &["model.safetensors` is damaged", "help: ", "checkpoints/last"]);
    // What the help says works: the run goes on from an earlier checkpoint and ends as before.
    let names = tree(&damaged.join("checkpoints"));
    let earlier = names.keys().filter(|path| path.join("state.json").is_file()).rev().nth(1).unwrap();
    let name = earlier.file_name().unwrap().to_str().unwrap();
    fs::write(damaged.join("checkpoints/last"), name).unwrap();
    desk.works(&["train", "--resume", "flipped"]);
    assert_same_end(&damaged, &desk.path("runs/small"));

    let file = last_checkpoint(&fresh("short")).join("state.json");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    resume("short", &["state.json` is damaged", "help: "]);

    fs::remove_file(last_checkpoint(&fresh("without")).join("optimizer.safetensors")).unwrap();
    resume("without", &["/optimizer.safetensors` is damaged: it is not there", "help: "]);

    let config = fresh("changed").join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("group = 2", "group = 3")).unwrap();
    resume(
        "changed",
        &["belongs to other settings than this run's config.toml", "help: take the change back"],
    );
    fs::write(&config, text.replace("group = 2", "group = 0")).unwrap();
    resume("changed", &["changed/config.toml:", "`rl.group`: 0 is out of range"]);

    let log = fresh("cut").join("metrics.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, &text[..text.len() / 2]).unwrap();
    resume("cut", &["`cut/metrics.jsonl` has ", "restore the file"]);

    let held = fs::File::create(fresh("busy").join(".lock")).unwrap();
    held.lock().unwrap();
    resume("busy", &["`busy` is in use by another process", "help: wait"]);
}

/// Weights and log of two runs are the same, except for what measures the machine.
fn assert_same_end(a: &Path, b: &Path) {
    let log = |run: &Path| -> Vec<Value> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let strip = |line: &str| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            let map = value.as_object_mut().unwrap();
            map.retain(|name, _| {
                !["time/", "speed/", "memory/"].iter().any(|machine| name.starts_with(machine))
            });
            value
        };
        text.lines().map(strip).collect()
    };
    assert_eq!(log(a), log(b));
    let weights = |run: &Path| fs::read(last_checkpoint(run).join("model.safetensors")).unwrap();
    assert!(weights(a) == weights(b), "other weights");
}

#[test]
fn a_checkpoint_acts_only_where_it_was_trained() {
    let desk = Desk::with_run();
    let eval = |policy: &str, parts: &[&str]| {
        let arguments = ["eval", "tabletop", "--policy", policy, "--episodes", "1", "--task", "press_button"];
        desk.refuses(&arguments, parts)
    };
    eval("nowhere", &["there is no checkpoint at `nowhere`", "help: give a run folder"]);
    eval("runs", &["`runs` is not a checkpoint: expected a run folder"]);
    eval("small.toml", &["`small.toml` is not a checkpoint"]);

    let run = desk.path("runs/small");
    edit_state(&run, "/identity/mujoco_version", "3.2.0".into());
    let text =
        eval("runs/small", &["`mujoco_version` is \"3.2.0\" in the checkpoint, needed is \"3.", "help: "]);
    assert!(text.contains("`runs/small/checkpoints/"), "{text}");
    desk.refuses(&["train", "--resume", "runs/small"], &["`mujoco_version` is \"3.2.0\" in the checkpoint"]);
    edit_state(&run, "/identity/suite", "dataset".into());
    eval("runs/small", &["`suite` is \"dataset\" in the checkpoint, needed is \"tabletop\""]);
    edit_state(&run, "/format", 99.into());
    eval("runs/small", &["has checkpoint format 99, this program reads format 1"]);
    flip_a_byte(&last_checkpoint(&run).join("model.safetensors"));
    edit_state(&run, "/format", 1.into());
    eval("runs/small", &["model.safetensors` is damaged: its checksum"]);

    let output = desk.run(&["eval", "tabletob", "--policy", "runs/small"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && text.contains("tabletob") && text.contains("tabletop"),
        "{text}"
    );
    let output = desk.run(&["eval", "tabletop", "--policy", "runs/small", "--task", "open_drawr"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && text.contains("'open_drawer'"), "{text}");
}

#[test]
fn weights_of_another_network_are_no_start() {
    let desk = Desk::with_run();
    let train = |init: &str, parts: &[&str]| {
        let init = format!("model.init_from={init}");
        desk.refuses(&["train", "small.toml", "--set", "run.name=new", "--set", &init], parts)
    };
    desk.write("small.toml", &CONFIG.replace("hidden_size = 32", "hidden_size = 40"));
    let text =
        train("runs/small", &["`model.init_from`: `runs/small` holds weights of another shape of network"]);
    assert!(text.contains("is [56, 32], needed is [56, 40]") && text.contains(" more"), "{text}");
    desk.write("small.toml", &CONFIG.replace("num_hidden_layers = 2", "num_hidden_layers = 3"));
    train("runs/small", &["`runs/small` holds weights of another network: it lacks `", "layers.2.", " more"]);
    desk.write("small.toml", CONFIG);
    train("runs/smal", &["`model.init_from`: there is no checkpoint at `runs/smal`", "help: "]);
    train("small.toml", &["`model.init_from`: `small.toml` is not a checkpoint"]);
    desk.write("text.safetensors", "weights");
    train("text.safetensors", &["`model.init_from`: the checkpoint file `text.safetensors` is damaged"]);
}

#[test]
fn a_folder_that_cannot_be_written_or_is_taken() {
    let desk = Desk::with_run();
    desk.refuses(
        &["train", "small.toml"],
        &["`runs/small` exists and is not empty", "`--resume runs/small`", "`--suffix`"],
    );
    let out = ["train", "small.toml", "--set", "run.out=small.toml/runs"];
    desk.refuses(&out, &["cannot write `small.toml/runs`", "is a file, not a folder"]);
    let Some(_disk) = Disk::mount(&desk.path("disk"), "ro") else { return };
    let out = ["train", "small.toml", "--set", "run.out=disk/runs"];
    desk.refuses(&out, &["cannot write `disk/runs`: the folder is read-only", "choose another folder"]);
}

#[test]
fn a_full_disk_loses_nothing() {
    let desk = Desk::with_run();
    let Some(disk) = Disk::mount(&desk.path("disk"), "size=2m") else { return };
    let sets = ["--set", "run.out=disk", "--set", "checkpoint.keep_last=99"];
    let arguments = [&["train", "small.toml"], &sets[..]].concat();
    let text = desk.fails(
        &arguments,
        &["cannot write `disk/small/", "the disk is full", "help: ", "train --resume disk/small`"],
    );
    let run = desk.path("disk/small");
    assert!(last_checkpoint(&run).join("state.json").is_file(), "{text}");
    // Still full: the same error, and what is there stays.
    let kept = last_checkpoint(&run);
    desk.fails(&["train", "--resume", "disk/small"], &["the disk is full"]);
    assert!(last_checkpoint(&run) >= kept);
    assert!(disk.remount("size=64m"));
    desk.works(&["train", "--resume", "disk/small"]);
    assert_same_end(&run, &desk.path("runs/small"));
}

/// A file system in memory, gone when this is dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None`, said on stderr, where this process may not mount.
    fn mount(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir(at).unwrap();
        let made =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "efference-test"]).arg(at).output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self(at.into()));
        }
        fs::remove_dir(at).unwrap();
        eprintln!("skipped: this process may not mount a file system (it takes root)");
        None
    }

    fn remount(&self, options: &str) -> bool {
        let options = format!("remount,{options}");
        Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn demonstrations_that_cannot_be_learned_from() {
    let desk = Desk::new();
    let train = |demos: &str, parts: &[&str]| {
        let demos = format!("sft.demos={demos}");
        desk.refuses(&["train", "small.toml", "--set", &demos], parts)
    };
    train("nowhere", &["`sft.demos`: `nowhere` holds no episodes"]);
    train("small.toml", &["`sft.demos`: ", "small.toml"]);
    let make = ["demos", "tabletop", "--task", "press_button", "--per-task", "2", "--out"];
    desk.works(&[&make[..], &["large", "--image-size", "48"]].concat());
    train(
        "large",
        &[
            "`sft.demos`: images of camera",
            "are 48x48 px, the network reads 32x32",
            "help: set `env.image_size` to 48",
        ],
    );
    desk.works(&[&make[..], &["demos", "--image-size", "32"]].concat());
    let files = tree(&desk.path("demos"));
    let episode = files.keys().find(|path| path.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let name = episode.file_name().unwrap().to_str().unwrap();
    flip_a_byte(episode);
    train("demos", &["`sft.demos`: `demos/", name, "is corrupt", "help: `sft.skip_damaged = true`"]);
    let skip = ["--set", "sft.demos=demos", "--set", "sft.skip_damaged=true", "--set", "rl.iterations=1"];
    desk.works(&[&["train", "small.toml"], &skip[..]].concat());
    fs::remove_file(episode).unwrap();
    train("demos", &[name, "is listed in the index but missing"]);
    desk.write("demos/index.json", "{");
    train("demos", &["`demos/index.json` is not a valid index"]);
}
