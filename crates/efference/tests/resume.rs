//! The real program is stopped and killed; the run it leaves ends as if nothing had happened.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Small enough for a second or two: two tasks, episodes of 40 steps, a network of some ten thousand weights.
const CONFIG: &str = r#"
[run]
seed = 5
[env]
tasks = ["press_button", "open_drawer"]
image_size = 32
max_steps = 40
[model.shape]
placeholders = "learned"
text = { hidden_size = 32, num_hidden_layers = 2, intermediate_size = 48 }
vision = { hidden_size = 24, num_hidden_layers = 1, intermediate_size = 32, patch_size = 16 }
[pretrain]
samples = 40
steps = 10
batch = 4
[sft]
steps = 20
batch = 4
[rl]
schedule = "cosine"
noise = "chunk"
mirrored = true
decision_share = 0.6
old_log_probs = "sampled"
rehearse_demos = 2
rehearse_play = 2
critic = { hidden = 8, batch = 8 }
warmup_steps = 2
iterations = 6
prompts = 2
group = 3
mini_batch = 6
encoder.frames = 4
objective.filter.accuracy = { lower = 0.0, upper = 1.0 }
objective.regularizer.entropy_bonus.coef = 0.01
objective.advantage = { kind = "turn_gae", lambda = 0.9 }
[eval]
episodes_per_task = 3
[checkpoint]
every = 2
every_steps = 3
[record]
rerun = false
"#;

struct Bench {
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("small.toml");
        std::fs::write(&config, CONFIG).unwrap();
        Self { dir, config }
    }

    fn run_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, name: &str) -> Child {
        let out = format!("run.out={}", self.dir.path().display());
        let mut command = program();
        command.arg("train").arg(&self.config).args(["--set", &out, "--set", &format!("run.name={name}")]);
        command.spawn().unwrap()
    }

    fn resume(&self, name: &str, threads: usize) -> Child {
        let mut command = program();
        command.arg("train").arg("--resume").arg(self.run_dir(name));
        command.args(["--set", &format!("run.threads={threads}")]);
        command.spawn().unwrap()
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_efference"));
    command.arg("--quiet").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn code(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Lines of the log without what measures the machine.
fn log(run: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let strip = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().retain(|name, _| {
            !["time/", "speed/", "memory/"].iter().any(|machine| name.starts_with(machine))
        });
        value.to_string()
    };
    text.lines().map(strip).collect()
}

fn weights(run: &Path) -> Vec<u8> {
    let last = std::fs::read_to_string(run.join("checkpoints/last")).unwrap();
    std::fs::read(run.join("checkpoints").join(last.trim()).join("model.safetensors")).unwrap()
}

fn is_done(run: &Path) -> bool {
    std::fs::read_to_string(run.join("summary.json")).is_ok_and(|text| text.contains("\"finished\": true"))
}

#[test]
fn killed_again_and_again_it_ends_like_the_unbroken_run() {
    let bench = Bench::new();
    assert_eq!(code(bench.start("whole")).0, Some(0));
    assert!(is_done(&bench.run_dir("whole")));
    let run = bench.run_dir("killed");
    let mut child = bench.start("killed");
    let mut kills = 0;
    // Each life is a little longer than the one before, so that every part of the run is hit and the end is reached.
    for life in 0..200u64 {
        let born = Instant::now();
        let longest = Duration::from_millis(120 + 67 * life);
        while born.elapsed() < longest && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            child.kill().unwrap(); // SIGKILL
            kills += 1;
        }
        let (code, said) = code(child);
        if ended {
            // A life that ends by itself is the end of the run, unless it was killed before it had a folder.
            assert_eq!(code, Some(0), "{said}");
            break;
        }
        child = if run.join("config.toml").is_file() {
            bench.resume("killed", 1 + life as usize % 3)
        } else {
            let _ = std::fs::remove_dir_all(&run);
            bench.start("killed")
        };
    }
    assert!(is_done(&run));
    assert!(kills >= 3, "only {kills} kills: the run is too short to test anything");
    assert_eq!(log(&run), log(&bench.run_dir("whole")));
    assert_eq!(weights(&run), weights(&bench.run_dir("whole")));
}

#[test]
fn ctrl_c_saves_and_the_run_goes_on() {
    let bench = Bench::new();
    let run = bench.run_dir("stopped");
    let child = bench.start("stopped");
    let started = Instant::now();
    while std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |t| t.lines().count()) < 12 {
        assert!(started.elapsed() < Duration::from_secs(60), "no update in a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (status, said) = code(child);
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("--resume"), "{said}");
    assert!(!is_done(&run) && run.join("report.html").is_file());
    assert_eq!(code(bench.resume("stopped", 2)).0, Some(0));
    assert_eq!(code(bench.start("whole")).0, Some(0));
    assert_eq!(log(&run), log(&bench.run_dir("whole")));
    assert_eq!(weights(&run), weights(&bench.run_dir("whole")));
}
