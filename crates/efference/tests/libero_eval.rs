//! `efference eval libero` on the repository's own packs (physics only), with policies and simulators that misbehave.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rmpv::Value as Msg;
use serde_json::Value;
use tungstenite::Message;

/// Packs without pictures: `libero_goal_0`, `libero_goal_7` and four others.
fn packs() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero/packs_physics"))
        .unwrap()
}

struct Desk {
    dir: tempfile::TempDir,
    packs: PathBuf,
}

impl Desk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), packs: packs() }
    }

    /// With copies of two tasks' packs that can be damaged.
    fn with_own_packs() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (packs_of_tests, packs) = (packs(), dir.path().join("packs"));
        for name in ["assets", "libero_goal_0", "libero_goal_7"] {
            copy(&packs_of_tests.join(name), &packs.join(name));
        }
        Self { dir, packs }
    }

    fn command(&self, policy: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_efference"));
        command
            .current_dir(self.dir.path())
            .env("EFFERENCE_LIBERO", &self.packs)
            .args(["eval", "libero", "--suite", "libero_goal", "--policy", policy])
            .args(["--order", "fused", "--out", "out"])
            .args(more);
        command
    }

    fn run(&self, policy: &str, more: &[&str]) -> Output {
        self.command(policy, more).output().unwrap()
    }

    fn report(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.dir.path().join("out/report.json")).unwrap()).unwrap()
    }

    /// The journal's lines without the settings.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("out/episodes.jsonl")).unwrap_or_default();
        text.lines().skip(1).filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn verdicts(&self, task: u64) -> Vec<String> {
        let of_task = |line: &&Value| line["task"] == task;
        self.lines().iter().filter(of_task).map(|line| line["verdict"].as_str().unwrap().to_owned()).collect()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn refuses(output: &Output, code: i32, parts: &[&str]) {
    let text = words(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let mut desk = Desk::new();
    let empty = desk.dir.path().join("empty");
    fs::create_dir_all(&empty).unwrap();
    desk.packs = empty;
    let output = desk.run("idle", &[]);
    refuses(&output, 1, &["no pack of task 0 of suite `libero_goal`", "cargo xtask libero"]);
    let desk = Desk::new();
    refuses(&desk.run("idle", &["--task", "10"]), 2, &["no task 10", "0 to 9"]);
    refuses(&desk.run("runs/none", &["--task", "7"]), 1, &["no policy `runs/none`", "openpi://"]);
    refuses(&desk.run("openpi://localhost:0", &["--task", "7"]), 1, &["port"]);
    refuses(
        &desk.run("idle", &["--task", "7", "--protocol", "pi0"]),
        1,
        &["no evaluation protocol `pi0`", "simplevla"],
    );
    refuses(&desk.run("idle", &["--task", "7", "--max-steps", "2000"]), 1, &["max_steps", "1000"]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("vla-eval://127.0.0.1:{free}");
    refuses(&desk.run(&address, &["--task", "7"]), 1, &["cannot connect", "start the server"]);
    let output = Command::new(env!("CARGO_BIN_EXE_efference"))
        .args(["eval", "libero", "--suite", "libero_goals", "--policy", "idle"])
        .output()
        .unwrap();
    refuses(&output, 1, &["no suite `libero_goals`", "libero_goal"]);
    assert!(!desk.dir.path().join("out").exists());
}

/// Damaged packs cost their task; the other one is played, and what is finished stays.
#[test]
fn a_damaged_pack_costs_its_task_only() {
    let play = ["--task", "0", "--task", "7", "--episodes", "1", "--max-steps", "5"];
    let desk = Desk::with_own_packs();
    let meta = desk.packs.join("libero_goal_7/meta.json");
    let good = fs::read_to_string(&meta).unwrap();
    fs::write(
        &meta,
        good.replacen("\"format\": 1", "\"format\": 9", 1).replacen("\"format\":1", "\"format\":9", 1),
    )
    .unwrap();
    refuses(
        &desk.run("idle", &play),
        1,
        &["1 of 2 episodes could not be played", "`format` is 9", "--resume"],
    );
    assert_eq!((desk.verdicts(0), desk.verdicts(7)), (vec!["failure".to_owned()], vec![]));
    let report = desk.report();
    assert_eq!(
        (&report["complete"], &report["expected"], &report["episodes"]),
        (&false.into(), &2.into(), &1.into())
    );
    assert!(report["tasks"][1]["note"].as_str().unwrap().contains("format"));
    let markdown = fs::read_to_string(desk.dir.path().join("out/report.md")).unwrap();
    assert!(markdown.contains("**Incomplete:** 1 of 2") && markdown.contains("| MuJoCo | 3."), "{markdown}");

    let desk = Desk::with_own_packs();
    let states = desk.packs.join("libero_goal_7/init_states.npy");
    let bytes = fs::read(&states).unwrap();
    fs::write(&states, &bytes[..bytes.len() / 2]).unwrap();
    refuses(&desk.run("idle", &play), 1, &["init_states.npy", "cut off or damaged"]);
    assert_eq!(desk.verdicts(0), ["failure"]);

    let desk = Desk::with_own_packs();
    fs::write(desk.packs.join("libero_goal_7/model.xml"), "<mujoco><worldbody><geom/></worldbody></mujoco>")
        .unwrap();
    refuses(&desk.run("idle", &play), 1, &["model.xml"]);
    assert_eq!(
        (desk.verdicts(0), desk.verdicts(7)),
        (vec!["failure".to_owned()], vec!["simulator_error".to_owned()])
    );

    // More episodes than states.
    let desk = Desk::new();
    let output = desk.run("idle", &["--task", "7", "--episodes", "60", "--max-steps", "1"]);
    refuses(&output, 1, &["saved initial states"]);
}

/// The same result from one worker, from three, and after an interruption.
#[test]
fn workers_and_interruptions_change_nothing() {
    let play = ["--task", "0", "--task", "7", "--episodes", "4", "--max-steps", "40"];
    let rows = |desk: &Desk| {
        let mut lines = desk.lines();
        lines.sort_by_key(|line| (line["task"].as_u64(), line["episode"].as_u64()));
        let line = |l: Value| format!("{} {} {} {}", l["task"], l["episode"], l["verdict"], l["steps"]);
        (desk.report()["tasks"].clone(), lines.into_iter().map(line).collect::<Vec<_>>())
    };
    let one = Desk::new();
    let output = one.run("zero", &[&play[..], &["--workers", "1"]].concat());
    assert!(output.status.success(), "{}", words(&output));
    let expected = rows(&one);
    assert_eq!(expected.1.len(), 8);

    let three = Desk::new();
    let mut child = three
        .command("zero", &[&play[..], &["--workers", "3"]].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(|| three.lines().len() >= 2);
    signal("INT", child.id());
    let status = child.wait().unwrap();
    assert!(status.code() == Some(130) || status.success(), "{status}");
    let kept = three.lines().len();
    assert!(kept >= 2);
    refuses(&three.run("zero", &play), 1, &["holds an evaluation already", "--resume"]);
    let other = three.run("idle", &[&play[..], &["--resume"]].concat());
    refuses(&other, 1, &["`policy.action` was", "was begun with other settings"]);
    assert_eq!(three.lines().len(), kept);
    let output = three.run("zero", &[&play[..], &["--resume", "--workers", "2"]].concat());
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(rows(&three), expected);
}

fn wait_for(mut ready: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !ready() {
        assert!(begun.elapsed() < Duration::from_secs(180), "it did not come that far");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

/// Worker processes of an evaluation: its children.
fn workers_of(parent: &Child) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in brackets may hold anything.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| parent_of(pid) == Some(parent.id())).collect()
}

/// A worker that is killed, and one that is stopped, cost one episode each.
#[test]
fn a_lost_worker_costs_one_episode() {
    for (name, reason) in [("KILL", "signal: 9"), ("STOP", "within")] {
        let desk = Desk::new();
        let play = ["--task", "7", "--episodes", "6", "--max-steps", "60", "--workers", "1", "--isolate"];
        let mut child = desk
            .command("zero", &[&play[..], &["--step-seconds", "2", "--start-seconds", "30"]].concat())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(|| !desk.lines().is_empty());
        let workers = workers_of(&child);
        assert_eq!(workers.len(), 1);
        signal(name, workers[0]);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        let verdicts = desk.verdicts(7);
        let lost = verdicts.iter().filter(|v| *v == "simulator_error").count();
        assert_eq!((verdicts.len(), lost), (6, 1), "{verdicts:?}");
        let line = desk.lines().into_iter().find(|line| line["verdict"] == "simulator_error").unwrap();
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
        assert_eq!(desk.report()["errors"], 1);
        // What is missing is played, and the table is that of an evaluation in one process.
        let output = desk.run("zero", &[&play[..], &["--resume"]].concat());
        assert!(output.status.success(), "{}", words(&output));
        let alone = Desk::new();
        assert!(alone.run("zero", &play[..8]).status.success());
        assert_eq!(alone.report()["tasks"], desk.report()["tasks"]);
        assert!(!Path::new(&format!("/proc/{}", workers[0])).exists());
    }
}

/// An openpi server whose answers to instructions with `word` are bad until `healed`.
fn server(word: &'static str, bad: &'static str, healed: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let healed = Arc::clone(&healed);
            std::thread::spawn(move || serve(stream, word, bad, &healed));
        }
    });
    format!("openpi://127.0.0.1:{port}")
}

fn serve(stream: TcpStream, word: &str, bad: &str, healed: &AtomicUsize) -> Option<()> {
    let mut socket = tungstenite::accept(stream).ok()?;
    let send = |socket: &mut tungstenite::WebSocket<TcpStream>, value: &Msg| {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).ok()?;
        socket.send(Message::Binary(bytes.into())).ok()
    };
    send(&mut socket, &Msg::Map(vec![]))?;
    loop {
        let Message::Binary(data) = socket.read().ok()? else { continue };
        let asked = rmpv::decode::read_value(&mut &data[..]).ok()?;
        let prompt =
            asked.as_map()?.iter().find(|(k, _)| k.as_str() == Some("prompt"))?.1.as_str()?.to_owned();
        let row = |x: f64| Msg::Array(vec![Msg::from(x); 7]);
        let good = Msg::Array(vec![row(0.1); 5]);
        let actions = if prompt.contains(word) && healed.load(Ordering::SeqCst) == 0 {
            match bad {
                "nan" => Msg::Array(vec![row(f64::NAN); 5]),
                "shape" => Msg::Array(vec![Msg::Array(vec![Msg::from(0.0); 6]); 5]),
                _ => {
                    std::thread::sleep(Duration::from_secs(30));
                    return None;
                }
            }
        } else {
            good
        };
        send(&mut socket, &Msg::Map(vec![(Msg::from("actions"), actions)]))?;
    }
}

/// Task 7 turns on the stove; task 0 opens a drawer and goes on.
#[test]
fn a_policy_that_answers_badly_costs_its_task_only() {
    for (bad, reason) in [("nan", "is NaN"), ("shape", "got [5, 6]"), ("silence", "within 0.5 s")] {
        let healed = Arc::new(AtomicUsize::new(0));
        let address = server("stove", bad, Arc::clone(&healed));
        let desk = Desk::new();
        let play = ["--task", "7", "--task", "0", "--episodes", "4", "--max-steps", "5", "--workers", "1"];
        let output = desk.run(&address, &[&play[..], &["--answer-seconds", "0.5"]].concat());
        refuses(
            &output,
            1,
            &["of 8 episodes could not be played", "given up after 3 errors in a row", reason],
        );
        assert_eq!((desk.verdicts(0).len(), desk.verdicts(7).len()), (4, 3));
        assert!(desk.verdicts(7).iter().all(|v| v == "policy_error"));
        healed.store(1, Ordering::SeqCst);
        let output = desk.run(&address, &[&play[..], &["--resume"]].concat());
        assert!(output.status.success(), "{}", words(&output));
        let report = desk.report();
        assert_eq!(
            (&report["complete"], &report["episodes"], &report["errors"]),
            (&true.into(), &8.into(), &0.into())
        );
        assert_eq!(report["settings"]["protocol"]["images"], "open_pi");
        assert_eq!(report["settings"]["simulation"]["order"], "fused");
    }
}

/// The one pack with pictures that the repository holds, under the name of its task.
fn with_pictures() -> Desk {
    let dir = tempfile::tempdir().unwrap();
    let packs = dir.path().join("packs");
    fs::create_dir_all(&packs).unwrap();
    let sample = golden_folder().join("pack_sample");
    std::os::unix::fs::symlink(sample, packs.join("libero_goal_7")).unwrap();
    Desk { dir, packs }
}

fn golden_folder() -> PathBuf {
    packs().parent().unwrap().to_path_buf()
}

#[test]
fn the_expert_solves_its_task_and_is_recorded() {
    let desk = with_pictures();
    let output = desk.run("expert", &["--task", "7", "--episodes", "1", "--record", "1"]);
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(desk.verdicts(7), ["success"]);
    let picture = desk.dir.path().join("out/pictures/task07_episode00_success.png");
    let bytes = fs::read(picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 50_000, "{} bytes", bytes.len());
    // A picture every fifth of some eighty control steps, from both cameras.
    let contents = efference_viz::contents(&desk.dir.path().join("out/recording.rrd")).unwrap();
    let entities = contents.values().next().unwrap();
    for camera in ["agentview", "wrist"] {
        let pictures = entities.iter().filter(|(path, _)| path.contains(camera)).map(|(_, rows)| *rows);
        assert!(pictures.max().unwrap_or(0) > 10, "{camera}: {contents:?}");
    }
    let isolated = ["--task", "7", "--episodes", "1", "--isolate", "--resume"];
    refuses(&desk.run("expert", &isolated), 2, &["the expert reads the simulator's state"]);
}

/// The same pictures from a simulator in this process and from one in another.
#[test]
fn pictures_come_through_a_worker_unchanged() {
    let play = ["--task", "7", "--episodes", "1", "--max-steps", "3", "--record", "1"];
    let picture = |more: &[&str]| {
        let desk = with_pictures();
        let output = desk.run("zero", &[&play[..], more].concat());
        assert!(output.status.success(), "{}", words(&output));
        fs::read(desk.dir.path().join("out/pictures/task07_episode00_failure.png")).unwrap()
    };
    assert!(picture(&[]) == picture(&["--isolate"]));
}

#[test]
fn the_doctor_looks_at_what_makes_numbers_irreproducible() {
    let doctor = |packs: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_efference"));
        command.env("EFFERENCE_LIBERO", packs).args(["doctor", "--libero"]).output().unwrap()
    };
    let desk = with_pictures();
    let output = doctor(&desk.packs);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &words(&output);
    assert!(output.status.success(), "{text}");
    for part in ["quaternion", "gripper sign", "upright, mirrored for policies", "solves libero_goal_7"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let output = doctor(desk.dir.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("cargo xtask libero"));
    // Fingers that go the other way.
    let desk = Desk::with_own_packs();
    let meta = desk.packs.join("libero_goal_0/meta.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&meta).unwrap()).unwrap();
    json["gripper"]["sign"] = serde_json::json!([1, -1]);
    fs::write(&meta, json.to_string()).unwrap();
    let output = doctor(&desk.packs);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("missing   gripper sign"));
    assert!(words(&output).contains("policies must send -1 to open"));
}
