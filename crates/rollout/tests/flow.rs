//! Planning from flow on the workbench: the oracle's flow is executed by both arms, and what must be refused is refused.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use efference_data::flow::FlowQuery;
use efference_envs::Env;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, eval_seed, train_seed};
use efference_geometry::{Flow3d, Frame, Isometry3, Point3, Vector3};
use efference_rollout::flow::{
    Checker, Error, FlowRewardEnv, LoopOptions, Predictor, Reference, Result, RewardForm, Source, System,
    TableOptions, TrialJournal, VlmOptions, demonstrate_flow, run_table, run_trial, tell,
};
use serde_json::json;

fn env(task: FlowTask, arm: ArmKind) -> FlowEnv {
    FlowEnv::new(task, arm, &FlowOptions::default()).unwrap()
}

/// Moves all points by the same motions.
struct Moves(Vec<Isometry3<f64>>);

impl Predictor for Moves {
    fn predict(&self, query: &FlowQuery, samples: usize, _: u64) -> Result<Vec<Flow3d>> {
        let all = vec![1.0; self.0.len() * query.points.len()];
        let flow = Flow3d::rigid(Frame::World, &query.points, &self.0, all)?;
        Ok(vec![flow; samples])
    }
}

/// Scatters the points.
struct Scatters;

impl Predictor for Scatters {
    fn predict(&self, query: &FlowQuery, samples: usize, _: u64) -> Result<Vec<Flow3d>> {
        let n = query.points.len();
        let apart = |i: usize| Vector3::new(0.0, 0.0, 0.1 + 0.1 * (i as f64 * 1.7).sin());
        let later = query.points.iter().enumerate().map(|(i, p)| p + apart(i));
        let positions: Vec<Point3<f64>> = query.points.iter().copied().chain(later).collect();
        Ok(vec![Flow3d::new(Frame::World, n, positions, vec![1.0; 2 * n])?; samples])
    }
}

fn lift(x: f64, y: f64, z: f64) -> Arc<dyn Predictor> {
    Arc::new(Moves(
        (0..9)
            .map(|t| {
                Isometry3::from_parts((Vector3::new(x, y, z) * (t as f64 / 8.0)).into(), Default::default())
            })
            .collect(),
    ))
}

/// The refusal of a system in a fixed scene; nothing may have moved.
fn refusal(system: &System) -> String {
    let trial = run_trial(&mut env(FlowTask::Insert, ArmKind::Arm7), system, eval_seed(1)).unwrap();
    assert!(!trial.report.success && trial.trace.actions.is_empty());
    assert!(tell(&trial).last().unwrap().starts_with("refused"));
    trial.report.refused.unwrap()
}

#[test]
fn both_arms_do_all_four_tasks_with_the_oracle_s_flow() {
    let (mut won, mut all) = (0, 0);
    for task in FlowTask::EXECUTED {
        for arm in ArmKind::ALL {
            let mut env = env(task, arm);
            for i in 100..104 {
                let trial = run_trial(&mut env, &System::oracle(), eval_seed(i)).unwrap();
                won += usize::from(trial.report.success);
                all += 1;
            }
        }
    }
    assert!(won >= all - 3, "{won} of {all}");
}

#[test]
fn a_trial_is_a_function_of_its_seed() {
    let play = || {
        let trial =
            run_trial(&mut env(FlowTask::Hang, ArmKind::Arm6), &System::oracle(), eval_seed(7)).unwrap();
        (trial.trace.actions, trial.report.steps)
    };
    let (actions, steps) = play();
    assert!(steps > 20 && play() == (actions, steps));
}

#[test]
fn plans_that_must_not_be_executed_are_refused_with_the_reason() {
    let full = |predictor| System::full(predictor, Checker::Nobody);
    let cases: [(System, &str); 5] = [
        (full(Arc::new(Scatters)), "not rigid"),
        (full(lift(0.0, 0.0, 0.0)), "no motion"),
        (full(Arc::new(Moves(vec![Isometry3::identity()]))), "no motion"),
        (full(lift(0.0, 2.0, 0.1)), "out of the workspace"),
        (full(lift(0.0, 0.0, -0.2)), "out of the workspace"),
    ];
    for (system, why) in cases {
        let refused = refusal(&system);
        assert!(refused.contains(why), "{refused} instead of {why}");
    }
    // Within the workspace, but beyond the arm.
    let far = System {
        propose: LoopOptions {
            workspace: efference_rollout::flow::Workspace { low_m: [-9.0; 3], high_m: [9.0; 3] },
            ..LoopOptions::default()
        },
        ..full(lift(1.2, 0.0, 0.8))
    };
    let refused = refusal(&far);
    assert!(refused.contains("out of reach"), "{refused}");
    // A lift is no insertion: the predicate says so.
    let refused = refusal(&System::full(lift(0.0, 0.0, 0.1), Checker::Predicate));
    assert!(refused.contains("the goal does not hold there"), "{refused}");
}

#[test]
fn a_judge_that_does_not_answer_refuses() {
    // Accepts connections, never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = VlmOptions {
        endpoint: format!("http://{}", listener.local_addr().unwrap()),
        model: "silent".into(),
        key_variable: String::new(),
        timeout_secs: 0.2,
        retries: 0,
        pause_secs: 0.0,
    };
    let refused = refusal(&System::full(lift(0.0, 0.0, 0.1), Checker::Vlm(options)));
    assert!(refused.contains("no verdict") && refused.contains("no answer within 0.2 s"), "{refused}");
}

#[test]
fn answers_that_are_none_are_errors_or_refusals() {
    struct Wrong(usize);
    impl Predictor for Wrong {
        fn predict(&self, query: &FlowQuery, samples: usize, _: u64) -> Result<Vec<Flow3d>> {
            let n = if self.0 == 0 { query.points.len() - 1 } else { query.points.len() };
            let frame = if self.0 == 1 { Frame::Camera } else { Frame::World };
            let flow = Flow3d::new(frame, n, vec![Point3::origin(); 2 * n], vec![1.0; 2 * n])?;
            Ok(vec![flow; if self.0 == 2 { samples + 1 } else { samples }])
        }
    }
    for (kind, why) in [(0, "points instead of"), (1, "world frame"), (2, "flows instead of")] {
        let refused = refusal(&System::full(Arc::new(Wrong(kind)), Checker::Nobody));
        assert!(refused.contains(why), "{refused}");
    }
    let bad = System { propose: LoopOptions { samples: 0, ..LoopOptions::default() }, ..System::oracle() };
    let error = run_trial(&mut env(FlowTask::Pour, ArmKind::Arm7), &bad, 0).err().unwrap();
    assert!(matches!(error, Error::Setting { setting: "samples", .. }), "{error}");
}

#[test]
fn depth_frozen_at_the_first_frame_is_another_motion() {
    // Towards the camera and up: without depth, the way is another one.
    let system = |source| System { source, ..System::oracle() };
    let predictor = lift(0.12, 0.0, 0.12);
    let run = |source| {
        let mut env = env(FlowTask::Insert, ArmKind::Arm7);
        let mut system = system(source);
        system.propose.rigid_limit_m = None;
        let trial = run_trial(&mut env, &system, eval_seed(1)).unwrap();
        trial.rounds[0].proposal.attempts[0].fit.last().translation.vector
    };
    let plain = run(Source::Model(predictor.clone()));
    let frozen = run(Source::FrozenDepth(predictor));
    assert!((plain - Vector3::new(0.12, 0.0, 0.12)).norm() < 1e-9);
    assert!((plain - frozen).norm() > 0.02, "{plain} {frozen}");
}

#[test]
fn tables_resume_and_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let systems = [("oracle".to_owned(), System::oracle())];
    let options = |workers, trials| TableOptions {
        systems: &systems,
        tasks: &[FlowTask::Insert, FlowTask::Drawer],
        arms: &[ArmKind::Arm6],
        trials,
        env: FlowOptions::default(),
        workers,
    };
    let settings = json!({ "systems": ["oracle"] });
    let lines = |journal: &TrialJournal| -> Vec<_> {
        journal.lines().map(|l| (l.place.clone(), l.report.success, l.report.steps)).collect()
    };
    let play = |name: &str, workers: usize| {
        let mut journal = TrialJournal::open(&dir.path().join(name), &settings, false).unwrap();
        run_table(&options(workers, 2), &mut journal, &|_| {}, &|| false).unwrap();
        lines(&journal)
    };
    let (one, two) = (play("one.jsonl", 1), play("two.jsonl", 2));
    assert_eq!(one.len(), 4);
    assert_eq!(one, two);
    // A line cut off by a crash is played again; others are not.
    let path = dir.path().join("one.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 20]).unwrap();
    let mut journal = TrialJournal::open(&path, &settings, true).unwrap();
    let played = std::sync::Mutex::new(0);
    run_table(&options(1, 2), &mut journal, &|_| *played.lock().unwrap() += 1, &|| false).unwrap();
    assert_eq!((*played.lock().unwrap(), lines(&journal)), (1, two));
    // Other settings, or no wish to go on.
    assert!(TrialJournal::open(&path, &json!({ "systems": ["full"] }), true).is_err());
    assert!(TrialJournal::open(&path, &settings, false).is_err());
    std::fs::write(&path, "nonsense\n").unwrap();
    assert!(TrialJournal::open(&path, &settings, true).is_err());
}

#[test]
fn demonstrations_are_ordinary_episodes() {
    let options = FlowOptions { image_size: 32, ..FlowOptions::default() };
    let mut env = FlowEnv::new(FlowTask::Drawer, ArmKind::Arm7, &options).unwrap();
    // At 32 pixels the points must still be seen; another scene if not.
    let episode = (0..4).find_map(|i| {
        let (episode, _) = demonstrate_flow(&mut env, &System::oracle(), train_seed(i)).unwrap();
        episode.filter(|e| e.meta.success)
    });
    let episode = episode.unwrap();
    assert!(episode.steps() > 10);
    let dir = tempfile::tempdir().unwrap();
    let mut writer = efference_data::EpisodeWriter::create(dir.path().join("demos")).unwrap();
    writer.append(&episode).unwrap();
    let store = efference_data::EpisodeStore::open(dir.path().join("demos")).unwrap();
    assert_eq!(store.entries().len(), 1);
}

#[test]
fn the_reward_of_a_flow_is_paid_to_whoever_does_the_task() {
    // What the planner does, as if a policy had done it.
    let seed = (100..).map(eval_seed).find(|seed| {
        let trial = run_trial(&mut env(FlowTask::Insert, ArmKind::Arm6), &System::oracle(), *seed).unwrap();
        trial.report.success
    });
    let seed = seed.unwrap();
    let actions =
        run_trial(&mut env(FlowTask::Insert, ArmKind::Arm6), &System::oracle(), seed).unwrap().trace.actions;
    let play = |form| {
        let mut env = FlowRewardEnv::new(env(FlowTask::Insert, ArmKind::Arm6), Reference::Oracle, form);
        env.reset(seed).unwrap();
        let middle = env.snapshot();
        let rewards: Vec<f32> = actions.iter().map(|a| env.step(a).unwrap().reward).collect();
        // Going back pays nothing, and what follows pays the same again.
        env.restore(&middle).unwrap();
        assert_eq!(env.step(&actions[0]).unwrap().reward, rewards[0]);
        rewards
    };
    let shaped = play(RewardForm::Shaped);
    // All of the way, and the end.
    assert!((shaped.iter().sum::<f32>() - 2.0).abs() < 0.3, "{}", shaped.iter().sum::<f32>());
    let dense = play(RewardForm::Dense);
    assert!(dense.iter().all(|r| (0.0..=1.0).contains(r)));
    assert!(dense[dense.len() - 1] > 0.7 && dense[0] < 0.3, "{dense:?}");
}
