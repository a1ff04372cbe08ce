//! The workbench as an environment, and the episodes that it gives.
#![allow(clippy::unwrap_used)]

use efference_data::flow::{FlowEpisode, FlowSource, check};
use efference_envs::flow::{
    ArmKind, FRAMES, FlowEnv, FlowOptions, FlowTask, GenerateOptions, Layout, POINTS, eval_seed, generate,
    train_seed,
};
use efference_envs::{Env, Error};
use efference_geometry::{Isometry3, Vector3};

fn env(task: FlowTask, arm: ArmKind) -> FlowEnv {
    FlowEnv::new(task, arm, &FlowOptions { image_size: 96, ..FlowOptions::default() }).unwrap()
}

#[test]
fn a_seed_is_a_scene_for_both_arms_and_snapshots_bring_it_back() {
    for task in FlowTask::ALL {
        let [mut seven, mut six] = ArmKind::ALL.map(|arm| env(task, arm));
        seven.reset(7).unwrap();
        six.reset(7).unwrap();
        assert_eq!(seven.layout(), six.layout());
        assert_eq!(seven.camera().unwrap(), six.camera().unwrap());
        let start = seven.snapshot();
        let act = |env: &mut FlowEnv| {
            for i in 0..12 {
                env.step(&[0.3, 0.2, -0.4, 0.1, 0.2, 0.3, if i < 6 { -1.0 } else { 1.0 }]).unwrap();
            }
            (env.snapshot(), env.render("scene").unwrap())
        };
        let first = act(&mut seven);
        seven.reset(8).unwrap();
        assert_ne!(seven.snapshot().state(), start.state());
        seven.restore(&start).unwrap();
        assert_eq!(act(&mut seven), first, "{task:?}");
        // Another environment of the same scene.
        let mut other = env(task, ArmKind::Arm7);
        other.restore(&start).unwrap();
        assert_eq!(act(&mut other), first, "{task:?}");
    }
}

#[test]
fn things_stay_where_they_are_put() {
    for task in FlowTask::ALL {
        for seed in 0..2 {
            let mut env = env(task, ArmKind::Arm7);
            env.reset(train_seed(seed)).unwrap();
            let before = env.object_pose();
            for _ in 0..25 {
                env.step(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]).unwrap();
            }
            let after = env.object_pose();
            let moved = (after.translation.vector - before.translation.vector).norm();
            assert!(
                moved < 0.002 && after.rotation.angle_to(&before.rotation) < 0.02,
                "{task:?} {seed}: {moved}"
            );
            assert!(!env.solved());
        }
    }
}

#[test]
fn goals_are_goals_and_starts_are_not() {
    for task in FlowTask::ALL {
        let mut env = env(task, ArmKind::Arm6);
        for seed in 0..3 {
            env.reset(eval_seed(seed)).unwrap();
            assert!(!env.goal_reached(&env.object_pose()), "{task:?}");
            assert!(env.remaining() > 0.03);
            let goals = env.goals();
            assert!(!goals.is_empty());
            for goal in &goals {
                assert!(env.goal_reached(goal), "{task:?} {seed}");
                let off = Isometry3::translation(0.0, 0.12, 0.1) * goal;
                assert!(!env.goal_reached(&off), "{task:?} {seed}");
            }
            let motion = env.motion(1).unwrap();
            assert_eq!(motion.poses.len(), FRAMES);
            assert!((motion.poses[0].inv_mul(&env.object_pose())).translation.vector.norm() < 1e-9);
            assert!(env.goal_reached(&motion.goal()));
            assert_eq!(motion, env.motion(1).unwrap());
            env.place_object(&motion.goal()).unwrap();
            // In the hand or not, the object is there.
            assert_eq!(env.remaining(), 0.0, "{task:?} {seed}");
        }
    }
}

fn rec(options: &GenerateOptions, n: u64, threads: usize) -> Vec<Option<FlowEpisode>> {
    let mut all = Vec::new();
    generate(options, 0..n, threads, |_, episode| {
        all.push(episode);
        Ok::<_, Error>(())
    })
    .unwrap();
    all
}

#[test]
fn episodes_agree_with_their_pictures_on_any_number_of_threads() {
    let options = GenerateOptions { image_size: 96, ..GenerateOptions::default() };
    let all = rec(&options, 20, 2);
    assert_eq!(all, rec(&options, 20, 1));
    let made: Vec<_> = all.iter().flatten().collect();
    assert!(made.len() >= 18, "{}", made.len());
    for (i, episode) in made.iter().enumerate() {
        episode.validate().unwrap();
        let found = check(episode);
        assert_eq!(found.problems(FlowSource::Tabletop), [], "{i}: {found:?}");
        assert_eq!((episode.flow.frames(), episode.flow.points(), found.visible), (FRAMES, POINTS, POINTS));
        assert!(found.moved_m > 0.05, "{found:?}");
    }
    // Something turns out of sight, not everything.
    let later: Vec<f32> =
        made.iter().flat_map(|e| (1..FRAMES).flat_map(|t| e.flow.visibility_at(t).to_vec())).collect();
    let seen = later.iter().sum::<f32>() / later.len() as f32;
    assert!((0.4..0.99).contains(&seen), "{seen}");
}

#[test]
fn rays_and_the_depth_picture_agree_about_what_is_seen() {
    let mut env = env(FlowTask::Hang, ArmKind::Arm7);
    env.reset(3).unwrap();
    let view = env.view().unwrap();
    let points = env.seen_points(&view, 64, 0).unwrap();
    let still = efference_envs::flow::Motion { poses: vec![env.object_pose(); 2] };
    let flow = env.flow_of(&points, &still).unwrap();
    let seen = flow.visibility_at(1).iter().sum::<f32>();
    assert!(seen >= 60.0, "{seen}");
}

#[test]
fn bad_input_is_refused() {
    assert!(matches!(FlowTask::from_id("por"), Err(Error::UnknownTask { nearest, .. }) if nearest == "pour"));
    assert!(ArmKind::from_id("arm8").is_err());
    let options = FlowOptions { image_size: 8, ..FlowOptions::default() };
    assert!(matches!(FlowEnv::new(FlowTask::Pour, ArmKind::Arm7, &options), Err(Error::Option { .. })));
    let mut env = env(FlowTask::Pour, ArmKind::Arm7);
    assert!(matches!(env.step(&[0.0; 7]), Err(Error::NotRunning { .. })));
    env.reset(0).unwrap();
    assert!(matches!(env.step(&[f32::NAN; 7]), Err(Error::Action { index: 0, .. })));
    assert!(matches!(env.render("front"), Err(Error::UnknownCamera { .. })));
    let nan = Isometry3::translation(f64::NAN, 0.0, 0.0);
    assert!(matches!(env.place_object(&nan), Err(Error::Option { .. })));
    let mut probe = env.probe().unwrap();
    assert!(matches!(probe.place_arm(&[0.0; 3], 0.0), Err(Error::Length { expected: 7, got: 3, .. })));
    assert!(matches!(probe.place_arm(&[f64::INFINITY; 7], 0.0), Err(Error::Option { .. })));
    assert!(probe.reach(&Isometry3::translation(3.0, 0.0, 0.0), 0.0).unwrap() > 0.5);
    assert!(probe.reach(&nan, 0.0).is_err());
    let none = GenerateOptions { tasks: vec![], ..GenerateOptions::default() };
    assert!(none.episode(0).is_err());
    // The cup in the table is in the table.
    let sunk = Isometry3::translation(0.0, 0.0, -0.02) * env.object_pose();
    assert!(probe.object_depth(&sunk).unwrap() > 0.015);
    assert!(probe.object_depth(&(Isometry3::translation(0.0, 0.0, 0.4) * sunk)).unwrap() == 0.0);
}

#[test]
fn layouts_keep_to_the_table() {
    for task in FlowTask::ALL {
        for seed in 0..200 {
            let layout = Layout::sample(task, train_seed(seed));
            for pose in [layout.object, layout.target] {
                let at: Vector3<f64> = pose.translation.vector;
                assert!(at.x.abs() < 0.3 && at.y.abs() < 0.35, "{task:?} {seed}: {at:?}");
            }
            assert!(!layout.instruction.contains('{'));
            assert_ne!(layout.object_colour.0, layout.target_colour.0);
        }
    }
}
