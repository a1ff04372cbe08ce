//! The rules, the journal and the workers, on a simulator of a few lines.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use efference_envs::{Pose, SceneState};
use image::RgbImage;
use serde_json::{Value, json};

use super::*;

/// The hand moves by the action; the goal holds when its x passes 0.5. Every third episode of task 2 becomes unstable.
#[derive(Default)]
struct Toy {
    task: usize,
    episode: usize,
    felt: Felt,
    actions: Vec<[f64; 7]>,
    /// Episode of task 1 at which the simulator fails.
    fails_at: Option<usize>,
}

impl Simulator for Toy {
    fn start(&mut self, task: usize, episode: usize) -> Result<(), SimulatorError> {
        if task == 9 {
            return Err(SimulatorError::Task { task, why: "its pack is damaged".into() });
        }
        let fails_at = self.fails_at;
        *self = Self { task, episode, fails_at, ..Self::default() };
        self.felt.eef_quat = [0.6, 0.0, 0.0, -0.8];
        Ok(())
    }

    fn step(&mut self, action: &[f64; 7]) -> Result<Stepped, SimulatorError> {
        if self.task == 1 && Some(self.episode) == self.fails_at {
            return Err(SimulatorError::Died { why: "signal 9".into() });
        }
        self.actions.push(*action);
        self.felt.eef_pos[0] += action[0] / 10.0;
        let unstable = self.task == 2 && self.episode.is_multiple_of(3) && self.actions.len() > 20;
        let aborted = unstable.then(|| "a velocity is not finite".into());
        Ok(Stepped { success: self.felt.eef_pos[0] > 0.5, aborted })
    }

    fn felt(&mut self) -> Result<Felt, SimulatorError> {
        Ok(self.felt)
    }

    fn scene(&mut self) -> Result<SceneState, SimulatorError> {
        let gripper = Pose { position_m: self.felt.eef_pos, quat_wxyz: [1.0, 0.0, 0.0, 0.0] };
        let (things, geoms, cameras) = (Vec::new(), Vec::new(), Vec::new());
        let time_secs = self.actions.len() as f64 * 0.05;
        Ok(SceneState { time_secs, gripper, finger_opening_m: 0.0, things, geoms, cameras })
    }

    fn render(&mut self, camera: Camera) -> Result<RgbImage, SimulatorError> {
        let shade = if camera == Camera::Scene { 200 } else { 100 };
        Ok(RgbImage::from_fn(64, 64, |x, _| image::Rgb([shade, (x * 4) as u8, self.episode as u8])))
    }
}

/// Walks with a speed drawn from the episode: some arrive in time, some do not.
struct Walker {
    speed: f64,
    /// Task whose every question fails.
    fails_in: Option<usize>,
    task: usize,
}

struct Walkers {
    fails_in: Option<usize>,
    asked: AtomicUsize,
}

impl PolicySource for Walkers {
    fn open(&self) -> Box<dyn EvalPolicy + '_> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::new(Walker { speed: 0.0, fails_in: self.fails_in, task: 0 })
    }
    fn settings(&self) -> Value {
        json!({ "kind": "walker" })
    }
}

impl EvalPolicy for Walker {
    fn start(&mut self, start: &Start<'_>) -> Result<(), PolicyError> {
        self.task = start.task;
        let draw =
            crate::seed_for(start.seed, crate::Purpose::Actions, &[start.task as u64, start.episode as u64]);
        self.speed = (draw % 1000) as f64 / 4000.0;
        Ok(())
    }
    fn act(&mut self, view: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError> {
        if self.fails_in == Some(self.task) {
            return Err(PolicyError::Failed { why: "out of memory".into() }.into());
        }
        let state = view.state()?;
        assert!((state[3] - 2.0 * (-0.8f64).acos()).abs() < 1e-12, "the quaternion was flipped: {state:?}");
        let step = [self.speed, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9];
        Ok(vec![step; 4])
    }
}

fn protocol() -> Protocol {
    Protocol { max_steps: 40, executed: Some(3), ..Protocol::preset("oft", "libero_goal").unwrap() }
}

fn entries(tasks: &[usize]) -> Vec<TaskEntry> {
    tasks.iter().map(|&task| TaskEntry { task, instruction: format!("Do {task}") }).collect()
}

fn evaluation<'a>(protocol: &'a Protocol, tasks: &'a [TaskEntry], workers: usize) -> Evaluation<'a> {
    Evaluation {
        suite: "libero_goal",
        tasks,
        episodes: 8,
        protocol,
        step_limit: Duration::from_secs(5),
        workers,
        record: 0,
        record_every: 10,
    }
}

struct Played {
    lines: Vec<EpisodeLine>,
    notes: Vec<TaskNote>,
    pictures: BTreeMap<Place, usize>,
}

/// Plays into the journal of `dir`; `stop_after` so many new lines.
fn run(
    dir: &Path,
    eval: &Evaluation<'_>,
    walkers: &Walkers,
    fails_at: Option<usize>,
    stop_after: usize,
) -> Played {
    let path = dir.join("episodes.jsonl");
    let mut journal = Journal::open(&path, &json!({ "protocol": eval.protocol }), path.exists()).unwrap();
    let (count, pictures) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let hooks = Hooks {
        simulator: &|| Box::new(Toy { fails_at, ..Toy::default() }),
        on_line: &|_| {
            count.fetch_add(1, Ordering::SeqCst);
        },
        on_recording: &|place, _, recording| {
            pictures.lock().unwrap().insert(place, recording.scene.len());
        },
        stop: &|| count.load(Ordering::SeqCst) >= stop_after,
    };
    let notes = evaluate(eval, walkers, &mut journal, &hooks).unwrap();
    let lines = journal.lines().map(|line| EpisodeLine { seconds: 0.0, ..line.clone() }).collect();
    Played { lines, notes, pictures: pictures.into_inner().unwrap() }
}

fn walkers() -> Walkers {
    Walkers { fails_in: None, asked: AtomicUsize::new(0) }
}

#[test]
fn an_episode_follows_the_protocol() {
    let protocol = protocol();
    let mut toy = Toy::default();
    let rules = Rules { protocol: &protocol, step_limit: Duration::from_secs(5), stop: &|| false };
    let start = Start { suite: "libero_goal", task: 0, episode: 3, instruction: "do it", seed: 7 };
    let mut walker = Walker { speed: 0.2, fails_in: None, task: 0 };
    let mut fixed = Fixed(&mut walker, 0.2);
    let mut recording = Recording { every: 10, ..Recording::default() };
    let outcome = play(&mut toy, &mut fixed, &rules, &start, Some(&mut recording)).unwrap();
    // 0.02 m a step: the 26th step of the policy passes 0.5 (after 25 it stands at 0.5 but for rounding).
    assert!(outcome.success && (35..=36).contains(&outcome.steps), "{outcome:?}");
    assert_eq!(outcome.queries, (outcome.steps - 10).div_ceil(3));
    assert!(toy.actions[..10].iter().all(|a| a == &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]));
    // OpenVLA's 0.9 is "open": -1 for the simulator.
    assert!(toy.actions[10..].iter().all(|a| a == &[0.2, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]));
    assert_eq!(recording.steps, [0, 10, 20, 30, outcome.steps]);

    let mut fixed = Fixed(&mut walker, 0.01);
    let outcome = play(&mut toy, &mut fixed, &rules, &start, None).unwrap();
    assert_eq!((outcome.success, outcome.steps), (false, 50));
}

/// A walker whose speed does not depend on the episode.
struct Fixed<'w>(&'w mut Walker, f64);
impl EvalPolicy for Fixed<'_> {
    fn start(&mut self, start: &Start<'_>) -> Result<(), PolicyError> {
        self.0.start(start)?;
        self.0.speed = self.1;
        Ok(())
    }
    fn act(&mut self, view: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError> {
        self.0.act(view)
    }
}

/// Answers with whatever it was given.
struct Says(Vec<[f64; 7]>);
impl EvalPolicy for Says {
    fn start(&mut self, _: &Start<'_>) -> Result<(), PolicyError> {
        Ok(())
    }
    fn act(&mut self, _: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError> {
        Ok(self.0.clone())
    }
}

#[test]
fn short_and_broken_answers_are_errors_of_the_policy() {
    let protocol = protocol();
    let rules = Rules { protocol: &protocol, step_limit: Duration::from_secs(5), stop: &|| false };
    let start = Start { suite: "libero_goal", task: 0, episode: 0, instruction: "do it", seed: 7 };
    let error = |actions| {
        play(&mut Toy::default(), &mut Says(actions), &rules, &start, None).unwrap_err().to_string()
    };
    assert!(error(vec![]).contains("0 actions, but 3"));
    assert!(error(vec![[0.0; 7]; 2]).contains("2 actions, but 3"));
    let mut broken = vec![[0.0; 7]; 3];
    broken[1][4] = f64::NAN;
    assert!(error(broken).contains("number 4 of action 1 is NaN"));
    // What is not executed does not matter.
    let mut late = vec![[0.0; 7]; 4];
    late[3][0] = f64::INFINITY;
    assert!(play(&mut Toy::default(), &mut Says(late), &rules, &start, None).is_ok());
}

#[test]
fn workers_and_interruptions_change_nothing() {
    let (protocol, tasks) = (protocol(), entries(&[0, 2, 5]));
    let whole = tempfile::tempdir().unwrap();
    let one = run(whole.path(), &evaluation(&protocol, &tasks, 1), &walkers(), None, usize::MAX);
    assert_eq!((one.lines.len(), one.notes.len()), (24, 0));
    let successes = one.lines.iter().filter(|line| line.verdict == Verdict::Success).count();
    assert!((3..=21).contains(&successes), "{successes}");
    let unstable: Vec<usize> =
        one.lines.iter().filter(|line| line.reason.is_some()).map(|line| line.place.episode).collect();
    assert!(!unstable.is_empty() && unstable.iter().all(|e| e % 3 == 0), "{unstable:?}");

    let many = tempfile::tempdir().unwrap();
    let eval = Evaluation { record: 2, ..evaluation(&protocol, &tasks, 5) };
    let five = run(many.path(), &eval, &walkers(), None, usize::MAX);
    assert_eq!(five.lines, one.lines);
    assert_eq!(five.pictures.len(), 6);
    assert!(five.pictures.values().all(|&n| n >= 3), "{:?}", five.pictures);

    let broken = tempfile::tempdir().unwrap();
    let part = run(broken.path(), &evaluation(&protocol, &tasks, 2), &walkers(), None, 7);
    assert!((7..20).contains(&part.lines.len()), "{}", part.lines.len());
    // What a power cut leaves: half a line.
    let path = broken.path().join("episodes.jsonl");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"task\":5,\"episo");
    std::fs::write(&path, text).unwrap();
    let rest = run(broken.path(), &evaluation(&protocol, &tasks, 3), &walkers(), None, usize::MAX);
    assert_eq!(rest.lines, one.lines);
}

#[test]
fn what_fails_costs_its_episode_or_its_task_and_nothing_else() {
    let (protocol, tasks) = (protocol(), entries(&[1, 9, 4, 5]));
    let dir = tempfile::tempdir().unwrap();
    let failing = Walkers { fails_in: Some(4), ..walkers() };
    let played = run(dir.path(), &evaluation(&protocol, &tasks, 1), &failing, Some(6), usize::MAX);
    let of = |task: usize| played.lines.iter().filter(move |line| line.place.task == task);
    assert_eq!(of(1).filter(|line| line.verdict.finished()).count(), 7);
    let died = of(1).find(|line| line.verdict == Verdict::SimulatorError).unwrap();
    assert!(died.place.episode == 6 && died.reason.as_deref().unwrap().contains("signal 9"));
    assert_eq!((of(9).count(), of(4).count(), of(5).count()), (1, 3, 8));
    assert!(of(4).all(|line| line.verdict == Verdict::PolicyError));
    let notes: Vec<(usize, bool)> =
        played.notes.iter().map(|n| (n.task, n.why.contains("given up"))).collect();
    assert_eq!(notes, [(4, true), (9, false)]);
    // Once they work again, only what is missing is played.
    let before = played.lines.iter().filter(|line| line.verdict.finished()).count();
    let tasks = entries(&[1, 4, 5]);
    let again = run(dir.path(), &evaluation(&protocol, &tasks, 2), &walkers(), None, usize::MAX);
    assert_eq!(before, 15);
    let finished = again.lines.iter().filter(|line| line.verdict.finished()).count();
    assert_eq!((finished, again.notes.len()), (24, 0));
}

#[test]
fn a_journal_is_only_gone_on_from_with_the_same_settings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/episodes.jsonl");
    let settings = json!({ "protocol": { "executed": 8, "images": "oft" }, "mujoco": "3.3.2", "packs_sha256": { "0": "a" } });
    drop(Journal::open(&path, &settings, false).unwrap());
    assert!(matches!(Journal::open(&path, &settings, false), Err(JournalError::Exists { .. })));
    drop(Journal::open(&path, &settings, true).unwrap());
    let more = json!({ "protocol": { "executed": 8, "images": "oft" }, "mujoco": "3.3.2", "packs_sha256": { "0": "a", "3": "b" } });
    drop(Journal::open(&path, &more, true).unwrap());
    let other = json!({ "protocol": { "executed": 5, "images": "oft" }, "mujoco": "3.3.2", "seed": 1, "packs_sha256": { "0": "c" } });
    let Err(JournalError::Different { differences, .. }) = Journal::open(&path, &other, true) else {
        panic!()
    };
    let fields: Vec<&str> = differences.iter().map(|d| d.field.as_str()).collect();
    assert_eq!(fields, ["packs_sha256.0", "protocol.executed", "seed"]);
    let text = std::fs::read_to_string(&path).unwrap();
    for (damaged, line) in [("", 1), ("{\"format\":2,\"settings\":{}}\n", 1), (&*format!("{text}hello\n"), 2)]
    {
        std::fs::write(&path, damaged).unwrap();
        let error = Journal::open(&path, &settings, true).unwrap_err();
        assert!(matches!(error, JournalError::Corrupt { line: l, .. } if l == line), "{error}");
    }
}

#[test]
fn a_worker_that_ends_is_told_by_its_end() {
    let packs = std::sync::Arc::new(Packs::default());
    let limits = worker::WorkerLimits { start: Duration::from_secs(5), step: Duration::from_millis(300) };
    let start = |program: &str, arguments: &[&str]| {
        let command = worker::WorkerCommand {
            program: program.into(),
            arguments: arguments.iter().map(|&a| a.into()).collect(),
        };
        let limits = worker::WorkerLimits { start: limits.step, ..limits };
        let mut sim =
            worker::Isolated::new(command, std::sync::Arc::clone(&packs), Default::default(), limits);
        let error = sim.start(0, 0).unwrap_err().to_string();
        assert_eq!(sim.pid(), None);
        error
    };
    assert!(start("/nowhere/efference", &[]).contains("could not be started"));
    let ended = start("sh", &["-c", "exit 3"]);
    assert!(ended.contains("exit status: 3"), "{ended}");
    let silent = start("sh", &["-c", "sleep 20"]);
    assert!(silent.contains("within 0.3 s"), "{silent}");
    let nonsense = start("sh", &["-c", "echo hello; sleep 5"]);
    assert!(nonsense.contains("nonsense"), "{nonsense}");
}

#[test]
fn the_worker_answers_whatever_it_is_asked() {
    let ask = |text: &str| {
        let mut out = Vec::new();
        worker::serve(text.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(ask("\"felt\"\n").contains("must be hello"));
    assert!(ask("{}\n").contains("cannot be read"));
    // A folder for packs that is not there is told by the task that needs it, a file for pictures at once.
    let nowhere = r#"{"hello":{"packs":[[0,"/nowhere"]],"options":{"image_size":64},"frames":"/nowhere"}}"#;
    assert!(ask(nowhere).contains("`/nowhere`"), "{}", ask(nowhere));
    let frames = tempfile::NamedTempFile::new().unwrap();
    let hello = nowhere.replace("\"frames\":\"/nowhere\"", &format!("\"frames\":{:?}", frames.path()));
    let told = ask(&format!("{hello}\n{{\"start\":{{\"task\":0,\"episode\":0}}}}\n\"felt\"\n"));
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.len() == 3 && lines[0] == "\"ready\"" && lines[2].contains("no episode"), "{told}");
    assert!(lines[1].contains("\"task\":{\"task\":0") && lines[1].contains("meta.json"), "{told}");
}
