//! An episode of the real simulator becomes a recording and a report.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use candle_core::Device;
use efference_envs::tabletop::{CAMERAS, Expert, Quality, TabletopEnv, TabletopOptions, Task, eval_seed};
use efference_envs::{ACTION_DIM, Action, Env, PROPRIO_DIM};
use efference_nets::{ParamStore, Quantiles, Tokenizer, Vla, VlaConfig};
use efference_rollout::{Decision, EpisodePlan, Trajectory, VlaPolicy};
use efference_train::config::TrainConfig;
use efference_train::evaluate::EvalTable;
use efference_train::metrics::Record;
use efference_train::report::{TaskScore, Values};
use efference_train::show::{self, Label};
use efference_viz::{Recorder, RecorderOptions};

fn policy() -> VlaPolicy {
    let tokenizer = Tokenizer::built_in().unwrap();
    let mut params = ParamStore::new(1, Device::Cpu);
    let mut config = VlaConfig::quickstart();
    config.vision.patch_size = 16;
    let net = Vla::new(&mut params, &config, tokenizer.special()).unwrap();
    let (action_stats, proprio_stats) = (Quantiles::unit(ACTION_DIM), Quantiles::unit(PROPRIO_DIM));
    VlaPolicy { net, params, tokenizer, action_stats, proprio_stats }
}

fn env(task: Task, image_size: usize, quality: Quality) -> TabletopEnv {
    let options = TabletopOptions { image_size, quality, ..TabletopOptions::default() };
    TabletopEnv::with_task(task, &options).unwrap()
}

/// The expert's episode, in chunks as a policy would have played it. With `noise` it fails.
fn play(policy: &VlaPolicy, task: Task, noise: f64, seed: usize) -> Trajectory {
    let mut env = env(task, 64, Quality::Fast);
    let mut observation = env.reset(eval_seed(seed)).unwrap();
    let mut expert = Expert::new(task).with_noise(noise, seed as u64);
    let prompt = policy.prompt(env.instruction()).unwrap();
    let (mut decisions, mut snapshots, mut steps, mut success) = (Vec::new(), vec![env.snapshot()], 0, false);
    loop {
        let pixels = CAMERAS.iter().flat_map(|camera| env.render(camera).unwrap().into_raw()).collect();
        let proprio = observation.proprio;
        let mut actions: Vec<Action> = Vec::new();
        let mut done = false;
        while actions.len() < policy.chunk() && !done {
            let action = expert.act(&env);
            actions.push(action);
            let outcome = env.step(&action).unwrap();
            snapshots.push(env.snapshot());
            (steps, success, done, observation) =
                (outcome.steps, outcome.success, outcome.done, outcome.observation);
        }
        actions.resize(policy.chunk(), *actions.last().unwrap());
        let action_ids = policy.encode_chunk(&actions);
        let log_probs = vec![-1.0; action_ids.len()];
        decisions.push(Decision {
            pixels,
            proprio,
            prompt: prompt.clone(),
            action_ids,
            log_probs,
            entropy: Vec::new(),
            features: Vec::new(),
        });
        if done {
            break;
        }
    }
    Trajectory {
        plan: EpisodePlan {
            task: task.id().into(),
            env_seed: eval_seed(seed),
            action_seed: 0,
            mirrored: false,
            group: 0,
        },
        prompt,
        decisions,
        finish_steps: steps,
        success,
        aborted: None,
        snapshots,
        remaining: env.remaining(),
    }
}

#[test]
fn a_trajectory_becomes_an_episode_to_look_at() {
    let policy = policy();
    let trajectory = play(&policy, Task::PickRedCube, 0.0, 0);
    assert!(trajectory.success);
    let mut camera = env(Task::PickRedCube, 96, Quality::Fast);
    camera.reset(7).unwrap();
    let before = camera.snapshot();
    let label = Label { stage: "after RL", update: 12, progress: Some(0.7) };
    let record = show::episode_record(&mut camera, &policy, &trajectory, &label).unwrap();
    record.validate().unwrap();
    assert_eq!(camera.snapshot(), before, "the caller's environment is as it was");

    let frames = trajectory.finish_steps + 1;
    assert_eq!((record.frames(), record.rewards.len()), (frames, frames - 1));
    assert_eq!((record.total_reward(), *record.rewards.last().unwrap()), (1.0, 1.0));
    assert_eq!(
        (record.name.as_str(), record.instruction.as_str()),
        ("pick red cube", "pick up the red cube")
    );
    assert_eq!((record.update, record.progress), (12, Some(0.7)));

    // The chunk starts at the gripper and leads to about where the gripper went.
    assert_eq!(record.plans.len(), trajectory.decisions.len());
    for plan in &record.plans {
        let here = record.gripper[plan.frame].translation.vector;
        assert_eq!(plan.points[0], <[f32; 3]>::from(here));
        assert_eq!(plan.points.len(), policy.chunk() + 1);
        if let Some(end) = record.gripper.get(plan.frame + policy.chunk()) {
            let [x, y, z] = plan.points[policy.chunk()];
            let off = ((end.translation.x - x).powi(2)
                + (end.translation.y - y).powi(2)
                + (end.translation.z - z).powi(2))
            .sqrt();
            let way = (end.translation.vector - here).norm();
            assert!(off < 0.25 * way + 0.01, "plan at {} is {off} m off after {way} m", plan.frame);
        }
    }

    // What stands still has one pose; the cube, the arm and the wrist camera have many.
    let poses = |name: &str| record.scene.iter().find(|g| g.name == name).unwrap().poses.len();
    assert_eq!((poses("tray/0"), poses("red_cube/0"), poses("hand/0")), (1, frames, frames));
    let cameras: Vec<_> = record.cameras.iter().map(|c| (c.name.as_str(), c.poses.len())).collect();
    assert_eq!(cameras, [("agentview", 1), ("wrist", frames)]);
    for camera in &record.cameras {
        let at: Vec<usize> = camera.frames.iter().map(|(frame, _)| *frame).collect();
        assert!(at.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(at.last(), Some(&(frames - 1)));
        assert!((0..frames).step_by(policy.chunk()).all(|look| at.contains(&look)));
        assert_eq!(camera.frames[0].1.dimensions(), (96, 96));
    }
    let signal = |name: &str| &record.signals.iter().find(|s| s.name == name).unwrap().values;
    assert!(signal("remaining_m")[0] > 0.05 && *signal("remaining_m").last().unwrap() < 1e-3);
    assert!(signal("gripper_opening_m")[0] > 0.08 && *signal("gripper_opening_m").last().unwrap() < 0.06);

    let strip = show::strip(&record).unwrap();
    assert_eq!((strip.task.as_str(), strip.success), ("pick red cube", true));
    assert!(image::load_from_memory(&strip.png).unwrap().width() > 8 * 128);
}

#[test]
fn a_trajectory_without_states_is_refused_with_a_reason() {
    let policy = policy();
    let mut trajectory = play(&policy, Task::PressButton, 0.0, 1);
    let mut camera = env(Task::PressButton, 32, Quality::Fast);
    let label = Label { stage: "s", update: 0, progress: None };
    trajectory.snapshots[1].state.pop();
    let error = show::episode_record(&mut camera, &policy, &trajectory, &label).unwrap_err();
    assert!(matches!(error, show::Error::Env { .. }), "{error}");
    trajectory.snapshots.clear();
    let error = show::episode_record(&mut camera, &policy, &trajectory, &label).unwrap_err();
    assert!(
        error.to_string().contains("press_button") && error.to_string().contains("keep_snapshots"),
        "{error}"
    );
}

/// Numbers of a run from smooth functions, only to see how they are shown.
fn made_up_records() -> Vec<Record> {
    let record = |step: u64, stage: &str, values: &[(&str, f64)]| Record {
        step,
        stage: stage.into(),
        values: values.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect::<Values>(),
    };
    let sft = (1..=400).map(|i| {
        let loss = 0.4 + 5.1 * (-(i as f64) / 60.0).exp();
        let mut values = vec![("loss", loss), ("grad_norm", 0.3 + loss / 4.0)];
        if i % 50 == 0 {
            values.push(("heldout_nll", loss + 0.5));
        }
        record(i, "sft", &values)
    });
    let rl = (1..=60).map(|i| {
        let x = f64::from(i) / 60.0;
        let success = 0.3 + 0.65 * (1.0 - (-4.0 * x).exp());
        record(
            400 + i as u64,
            "rl",
            &[
                ("success", success),
                ("reward", 0.4 + 0.6 * success),
                ("progress", 0.3 + 0.2 * x),
                ("loss", -0.02 * (1.0 - x)),
                ("entropy", 2.4 - 1.1 * x),
                ("approx_kl", 0.004 + 0.002 * (9.0 * x).sin()),
                ("clip_frac", 0.06 + 0.02 * (7.0 * x).cos()),
                ("clip_frac_lower", 0.001),
                ("grad_norm", 0.5 + 0.2 * (5.0 * x).sin()),
                ("lr", 1e-4),
                ("groups_kept", 8.0 + 3.0 * (6.0 * x).sin()),
                ("skipped_steps", 0.0),
                ("max_ratio_gap", 0.0),
                ("episode_steps", 70.0 - 20.0 * x),
                ("time/rollout_secs", 4.0),
                ("time/update_secs", 3.0),
                ("speed/env_steps_per_s", 1500.0 + 100.0 * (3.0 * x).sin()),
                ("speed/tokens_per_s", 21_000.0),
                ("speed/episodes_per_s", 20.0),
            ],
        )
    });
    sft.chain(rl).collect()
}

fn made_up_evals() -> Vec<EvalTable> {
    let table = |label: &str, step: u64, share: f64| {
        let score = |(i, task): (usize, &Task)| TaskScore {
            task: task.id().into(),
            successes: ((50.0 * share) as u64 + 2 * (i as u64 % 3)).min(50),
            episodes: 50,
        };
        EvalTable { label: label.into(), step, tasks: Task::ALL.iter().enumerate().map(score).collect() }
    };
    vec![
        table("before_rl", 400, 0.34),
        table("iteration", 420, 0.7),
        table("iteration", 440, 0.86),
        table("after_rl", 460, 0.94),
    ]
}

/// Reads the recording back.
fn check_recording(rrd: &Path, episodes: u64) {
    let contents = efference_viz::contents(rrd).unwrap();
    let rollouts = &contents["efference rollouts"];
    for stage in ["before_RL", "after_RL"] {
        for task in Task::ALL {
            let at = format!("/{stage}/{}/world", task.id());
            for entity in ["path", "plan", "gripper", "cameras/agentview/rgb", "cameras/wrist/rgb"] {
                assert!(rollouts[&format!("{at}/{entity}")] >= 2, "{at}/{entity}");
            }
        }
    }
    let curves = &contents["efference training"];
    assert!(curves.iter().any(|(path, rows)| path.contains("success") && *rows == 60), "{curves:#?}");
    let bytes = fs::metadata(rrd).unwrap().len();
    println!("{} kB an episode", bytes / episodes / 1000);
    assert!(bytes / episodes < 400_000, "{bytes} bytes for {episodes} episodes");
}

/// Two stages of six tasks and a run's curves, as a run leaves them. `EFFERENCE_SHOW=DIR` keeps the files.
#[test]
fn a_run_can_be_looked_at() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("EFFERENCE_SHOW").map_or(temporary.path().to_path_buf(), Into::into);
    fs::create_dir_all(&dir).unwrap();
    let policy = policy();
    let (records, evals) = (made_up_records(), made_up_evals());
    let config = "[run]\nname = \"look\"\n[sft]\nsteps = 400\n[rl]\niterations = 60\n";
    let config = TrainConfig::from_text(Path::new("look.toml"), config, &[]).unwrap();

    let options = RecorderOptions { title: "look".into(), run_id: "look".into(), ..Default::default() };
    let mut recorder = Recorder::open(&dir, &options).unwrap();
    let (mut strips, mut episodes) = (Vec::new(), 0);
    for (stage, update, noise) in [("before RL", 400, 1.0), ("after RL", 460, 0.0)] {
        for (i, task) in Task::ALL.into_iter().enumerate() {
            let trajectory = play(&policy, task, if i % 3 == 2 { 0.3 * noise } else { 2.5 * noise }, i);
            let progress = if trajectory.success { 1.0 } else { 0.4 };
            let label = Label { stage, update, progress: Some(progress) };
            let mut camera = env(task, 128, Quality::Fast);
            let record = show::episode_record(&mut camera, &policy, &trajectory, &label).unwrap();
            recorder.episode(&record).unwrap();
            strips.push(show::strip(&record).unwrap());
            episodes += 1;
        }
    }
    for record in &records {
        let values: Vec<(&str, f64)> = record.values.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let named: Vec<(String, f64)> =
            values.iter().map(|(k, v)| (format!("{}/{k}", record.stage), *v)).collect();
        let named: Vec<(&str, f64)> = named.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        recorder.training(record.step, &named).unwrap();
    }
    recorder.finish().unwrap();

    if efference_viz::HAS_RERUN {
        check_recording(&dir.join(efference_viz::recorder::RRD_FILE), episodes);
    }

    let pairs = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
    let phases = [("sft", 41.0), ("rl", 420.0), ("eval", 90.0)].map(|(name, secs)| (name.to_owned(), secs));
    let environment = pairs(&[("MuJoCo", &efference_envs::mujoco_version())]);
    let notes = vec!["Curves and rates on this page are made up by a test.".into()];
    let data = show::report(&config, &records, &evals, strips, phases.to_vec(), environment, notes);
    assert_eq!(data.tasks.len(), 6);
    assert_eq!(data.tasks[0].before.unwrap().successes, 17);
    assert_eq!(data.tasks[0].after.unwrap().successes, 47);
    let titles: Vec<&str> = data.charts.iter().map(|c| c.title.as_str()).collect();
    for title in
        ["Success during RL", "Behaviour cloning loss", "KL divergence per update", "Clipped action tokens"]
    {
        assert!(titles.contains(&title), "{title} in {titles:?}");
    }
    let x = |chart: usize, series: usize| data.charts[chart].series[series].points.iter().map(|p| p.x);
    assert_eq!((x(0, 0).next(), x(0, 1).next(), x(0, 1).next_back()), (Some(1.0), Some(0.0), Some(60.0)));
    fs::write(dir.join("report.html"), data.to_html().unwrap()).unwrap();
}

#[test]
fn success_tables_survive_a_checkpoint() {
    let evals = made_up_evals();
    let text = serde_json::to_string(&evals).unwrap();
    assert_eq!(serde_json::from_str::<Vec<EvalTable>>(&text).unwrap(), evals);
}

#[test]
fn a_report_of_half_a_run_has_no_after() {
    let config = TrainConfig::from_text(Path::new("c.toml"), "[rl]\n", &[]).unwrap();
    let half = show::report(&config, &[], &made_up_evals()[..1], vec![], vec![], vec![], vec![]);
    assert!(half.tasks.iter().all(|t| t.before.is_some() && t.after.is_none()));
    assert!(half.charts.is_empty());
    half.to_html().unwrap();
    let none = show::report(&config, &[], &[], vec![], vec![], vec![], vec![]);
    assert!(none.tasks.is_empty());
}
