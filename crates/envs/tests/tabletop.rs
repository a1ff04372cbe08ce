//! The tabletop's promises: same seed same bits, snapshots, fair tasks, experts, errors.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use efference_envs::tabletop::{
    EVAL_STATES, Expert, Play, Quality, TabletopEnv, TabletopOptions, Task, Thing, eval_seed, train_seed,
};
use efference_envs::{Action, Env, Error, VecEnv};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn make(task: Task) -> TabletopEnv {
    TabletopEnv::with_task(task, &TabletopOptions::default()).unwrap()
}

fn random(rng: &mut ChaCha8Rng) -> Action {
    std::array::from_fn(|_| rng.random_range(-1.0..=1.0))
}

/// Whether the expert succeeds, and in how many steps.
fn solve(env: &mut TabletopEnv, expert: &mut Expert, seed: u64) -> (bool, usize) {
    env.reset(seed).unwrap();
    loop {
        let outcome = env.step(&expert.act(env)).unwrap();
        assert_eq!(outcome.reward, f32::from(u8::from(outcome.success)));
        if outcome.done {
            return (outcome.success, outcome.steps);
        }
    }
}

#[test]
fn evaluation_and_training_states_are_disjoint() {
    let eval: HashSet<u64> = (0..10 * EVAL_STATES).map(eval_seed).collect();
    assert_eq!(eval.len(), 10 * EVAL_STATES);
    for i in (0..10_000).chain([u64::MAX, u64::MAX - 1, 1 << 40, (1 << 40) + 7]) {
        assert!(!eval.contains(&train_seed(i)), "training state {i}");
    }
    // And so are the states themselves, over all tasks.
    let mut seen = HashSet::new();
    for task in Task::ALL {
        let mut env = make(task);
        for seed in (0..EVAL_STATES).map(eval_seed).chain((0..20).map(train_seed)) {
            env.reset(seed).unwrap();
            assert!(seen.insert(env.snapshot().state().iter().map(|v| v.to_bits()).collect::<Vec<_>>()));
        }
    }
}

#[test]
fn experts_solve_every_task() {
    for task in Task::ALL {
        let mut env = make(task);
        for seed in (0..10).map(eval_seed).chain((0..10).map(train_seed)) {
            let (success, steps) = solve(&mut env, &mut Expert::new(task), seed);
            assert!(success, "{task:?} on seed {seed}");
            assert!((10..=60).contains(&steps), "{task:?} took {steps} steps");
        }
    }
}

#[test]
fn random_actions_solve_nothing_and_stay_finite() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for task in Task::ALL {
        let mut env = make(task);
        let mut steps = 0;
        let mut episode = 0;
        while steps < 2000 {
            env.reset(train_seed(episode)).unwrap();
            episode += 1;
            // Uniform, or always at the limits, or pressing down: the three ways to be rough.
            let style = episode % 3;
            loop {
                let mut action = random(&mut rng);
                if style == 1 {
                    action = action.map(f32::signum);
                } else if style == 2 {
                    action[2] -= 0.7;
                }
                let outcome = env.step(&action).unwrap();
                assert_eq!(outcome.aborted, None);
                assert!(outcome.observation.proprio.iter().all(|v| v.is_finite()));
                assert!(!outcome.success, "{task:?} solved by chance on training state {}", episode - 1);
                if outcome.done {
                    steps += outcome.steps;
                    break;
                }
            }
        }
    }
}

#[test]
fn commanded_displacement_is_mostly_made_in_one_step() {
    for axis in 0..3 {
        for sign in [-1.0, 1.0] {
            let mut env = make(Task::PickRedCube);
            env.reset(eval_seed(0)).unwrap();
            let mut action = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0];
            action[axis] = sign;
            let mut made = Vec::new();
            for _ in 0..3 {
                let before = env.observe().proprio;
                let after = env.step(&action).unwrap().observation.proprio;
                made.push(f64::from((after[axis] - before[axis]) * sign) / 0.05);
                for other in (0..3).filter(|o| *o != axis) {
                    assert!((after[other] - before[other]).abs() < 0.012, "axis {axis} leaks into {other}");
                }
            }
            assert!(made[2] > 0.55 && made[2] < 0.95, "axis {axis} sign {sign}: {made:?}");
            // And it stops when told to.
            env.step(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]).unwrap();
            let before = env.observe().proprio;
            let after = env.step(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]).unwrap().observation.proprio;
            assert!((after[axis] - before[axis]).abs() < 0.003);
        }
    }
    let mut env = make(Task::PickRedCube);
    env.reset(eval_seed(0)).unwrap();
    for _ in 0..3 {
        env.step(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.5, -1.0]).unwrap();
    }
    let turned = f64::from(env.observe().proprio[5]);
    assert!(turned > 0.3 && turned < 0.75, "{turned}");
}

#[test]
fn same_seed_same_bits_and_snapshots_continue_exactly() {
    for task in [Task::PickRedCube, Task::PushBlockToMark] {
        let (mut a, mut b) = (make(task), make(task));
        a.reset(train_seed(3)).unwrap();
        b.reset(train_seed(8)).unwrap(); // a past that must not matter
        b.step(&[1.0; 7]).unwrap();
        b.reset(train_seed(3)).unwrap();
        assert_eq!(a.snapshot(), b.snapshot());
        let mut expert = Expert::new(task).with_noise(0.2, 5);
        let mut actions = Vec::new();
        let mut middle = None;
        for step in 0..30 {
            let action = expert.act(&a);
            actions.push(action);
            let done = a.step(&action).unwrap().done;
            assert_eq!(done, b.step(&action).unwrap().done);
            assert_eq!(a.snapshot(), b.snapshot(), "step {step}");
            if step == 11 {
                middle = Some(a.snapshot());
            }
            if done {
                break;
            }
        }
        // Another environment takes over in the middle, and one that lived through the whole episode goes back.
        let (end, middle) = (a.snapshot(), middle.unwrap());
        for mut env in [make(task), a] {
            env.restore(&middle).unwrap();
            assert_eq!(env.snapshot(), middle);
            for action in &actions[12..] {
                env.step(action).unwrap();
            }
            assert_eq!(env.snapshot(), end);
        }
    }
}

#[test]
fn number_of_threads_does_not_matter() {
    let run = |threads: usize| {
        let tasks = [
            Task::PickRedCube,
            Task::OpenDrawer,
            Task::CylinderInTray,
            Task::StackRedOnBlue,
            Task::PressButton,
        ];
        let mut envs = VecEnv::new(tasks.map(make).into(), threads).unwrap();
        let seeds: Vec<u64> = (0..5).map(train_seed).collect();
        let mut trace = vec![format!("{:?}", envs.reset_all(&seeds).unwrap())];
        let mut active = vec![true; 5];
        let mut pixels = vec![0; 5 * 2 * 64 * 64 * 3];
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        for _ in 0..3 {
            envs.render_all(&["agentview", "wrist"], &active, &mut pixels).unwrap();
            let chunks: Vec<Vec<Action>> = active
                .iter()
                .map(|on| (0..8 * usize::from(*on)).map(|_| random(&mut rng)).collect())
                .collect();
            let outcomes = envs.step_all(&chunks, true).unwrap();
            for (on, outcome) in active.iter_mut().zip(&outcomes) {
                assert_eq!(outcome.snapshots.len(), outcome.executed);
                *on = *on && !outcome.done;
            }
            trace.push(format!("{outcomes:?}"));
            active[1] = false; // an idle one
        }
        (trace, pixels)
    };
    let one = run(1);
    assert!(run(2) == one, "2 threads differ");
    assert!(run(3) == one, "3 threads differ");
}

#[test]
fn drawing_a_snapshot_does_not_disturb_the_episode() {
    for options in [
        TabletopOptions::default(),
        TabletopOptions { randomize_lighting: true, distractors: true, ..TabletopOptions::default() },
    ] {
        let mut env = TabletopEnv::with_task(Task::OpenDrawer, &options).unwrap();
        env.reset(train_seed(1)).unwrap();
        let (early, early_view) = (env.snapshot(), env.render("agentview").unwrap());
        let mut expert = Expert::new(Task::OpenDrawer);
        for _ in 0..10 {
            env.step(&expert.act(&env)).unwrap();
        }
        let mut other = TabletopEnv::with_task(Task::OpenDrawer, &options).unwrap();
        other.restore(&env.snapshot()).unwrap();
        let now_view = env.render("agentview").unwrap();
        assert!(env.render_snapshot(&early, "agentview").unwrap() == early_view);
        assert!(now_view != early_view);
        assert!(env.render("agentview").unwrap() == now_view);
        for _ in 0..5 {
            let action = expert.act(&env);
            assert_eq!(action, expert.act(&other));
            assert_eq!(env.step(&action).unwrap(), other.step(&action).unwrap());
        }
        assert_eq!(env.snapshot(), other.snapshot());
        // A new episode has its own looks.
        env.reset(train_seed(2)).unwrap();
        let second = env.render("wrist").unwrap();
        other.reset(train_seed(2)).unwrap();
        assert!(other.render("wrist").unwrap() == second);
    }
}

#[test]
fn randomised_looks_differ_and_distractors_stay_clear() {
    let options = TabletopOptions { randomize_lighting: true, ..TabletopOptions::default() };
    let mut env = TabletopEnv::with_task(Task::PickRedCube, &options).unwrap();
    env.reset(train_seed(0)).unwrap();
    let mut snapshot = env.snapshot();
    let lit = env.render("agentview").unwrap();
    snapshot.look = Some(12345);
    let relit = env.render_snapshot(&snapshot, "agentview").unwrap();
    let change: u64 = lit.as_raw().iter().zip(relit.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(change > 3 * 64 * 64, "another lighting changes pixels by only {change} in all");

    let options = TabletopOptions { distractors: true, ..TabletopOptions::default() };
    for task in [Task::PushBlockToMark, Task::OpenDrawer, Task::CylinderInTray] {
        let mut env = TabletopEnv::with_task(task, &options).unwrap();
        for seed in (0..8).map(train_seed) {
            let (success, _) = solve(&mut env, &mut Expert::new(task), seed);
            assert!(success, "{task:?} with distractors on seed {seed}");
        }
    }
}

#[test]
fn an_unstable_simulation_ends_the_episode_and_says_why() {
    let mut env = make(Task::PickRedCube);
    env.reset(train_seed(0)).unwrap();
    let mut snapshot = env.snapshot();
    // A cube that flies: the state is time, qpos, qvel, …; its upward speed is made absurd.
    let (nq, first_free_dof) = (39, 7 + 2 + 2);
    snapshot.state[1 + nq + first_free_dof + 2] = 1e6;
    env.restore(&snapshot).unwrap();
    let outcome = env.step(&[0.0; 7]).unwrap();
    assert!(outcome.done && !outcome.success);
    assert!(outcome.aborted.is_some());
    assert!(outcome.observation.proprio.iter().all(|v| v.is_finite()));
    assert!(matches!(env.step(&[0.0; 7]), Err(Error::NotRunning { .. })));
    env.reset(train_seed(0)).unwrap();
    assert_eq!(env.step(&[0.0; 7]).unwrap().aborted, None);
}

#[test]
fn bad_input_is_refused_by_name() {
    let options = TabletopOptions::default();
    assert!(
        matches!(TabletopEnv::new("open_the_drawer", &options), Err(Error::UnknownTask { nearest, .. }) if nearest == "open_drawer")
    );
    let tiny = TabletopOptions { image_size: 3, ..options.clone() };
    assert!(matches!(TabletopEnv::new("open_drawer", &tiny), Err(Error::Option { field: "image_size", .. })));
    let endless = TabletopOptions { max_steps: 0, ..options.clone() };
    assert!(matches!(
        TabletopEnv::new("open_drawer", &endless),
        Err(Error::Option { field: "max_steps", .. })
    ));
    assert!(serde_json::from_str::<TabletopOptions>(r#"{"image_sise": 64}"#).is_err());

    let mut env = make(Task::OpenDrawer);
    assert!(matches!(env.step(&[0.0; 7]), Err(Error::NotRunning { .. })));
    env.reset(0).unwrap();
    assert!(matches!(env.render("front"), Err(Error::UnknownCamera { .. })));
    assert!(matches!(env.render_into("wrist", &mut [0; 5]), Err(Error::Length { expected: 12288, .. })));
    let mut action = [0.0; 7];
    action[4] = f32::NAN;
    assert!(matches!(env.step(&action), Err(Error::Action { index: 4, .. })));
    let crowded = TabletopOptions { distractors: true, ..options };
    let mut other = TabletopEnv::with_task(Task::OpenDrawer, &crowded).unwrap();
    other.reset(0).unwrap();
    assert!(matches!(env.restore(&other.snapshot()), Err(Error::Snapshot { .. })));
    assert!(env.step(&[0.0; 7]).is_ok(), "a refused snapshot leaves the episode as it was");

    let mut envs = VecEnv::new(vec![env], 1).unwrap();
    assert!(matches!(envs.reset_all(&[1, 2]), Err(Error::Length { expected: 1, got: 2, .. })));
    assert!(envs.render_all(&["wrist"], &[true], &mut [0; 7]).is_err());
}

#[test]
fn remaining_distance_shrinks_to_zero() {
    for task in Task::ALL {
        let mut env = make(task);
        env.reset(eval_seed(1)).unwrap();
        let start = env.remaining();
        assert!(start > 0.1, "{task:?} starts {start} m from done");
        assert!(solve(&mut env, &mut Expert::new(task), eval_seed(1)).0);
        assert_eq!(env.remaining(), 0.0);
        assert!(env.privileged().goal_holds);
    }
}

#[test]
fn scene_state_matches_the_simulation() {
    let mut env = make(Task::PressButton);
    let observation = env.reset(eval_seed(2)).unwrap();
    let scene = env.scene_state();
    for axis in 0..3 {
        assert!((scene.gripper.position_m[axis] - f64::from(observation.proprio[axis])).abs() < 1e-6);
    }
    assert!((scene.gripper.quat_wxyz[0].abs() - 1.0).abs() < 1e-6, "identity when pointing down");
    assert!((scene.finger_opening_m - 0.09).abs() < 1e-6);
    let names: HashSet<_> = scene.geoms.iter().map(|geom| &geom.name).collect();
    assert_eq!(names.len(), scene.geoms.len(), "names of shapes are unique");
    assert!(scene.things.iter().any(|thing| thing.name == Thing::RedCube.name()));

    // The red cube is where the camera's numbers say: its pixel is the reddest around.
    let camera = &scene.cameras[0];
    let cube = scene.things.iter().find(|thing| thing.name == "red_cube").unwrap().pose.position_m;
    let [w, x, y, z] = camera.pose.quat_wxyz;
    let rotation = nalgebra::UnitQuaternion::from_quaternion(nalgebra::Quaternion::new(w, x, y, z));
    let local = rotation.inverse()
        * (nalgebra::Vector3::from(cube) - nalgebra::Vector3::from(camera.pose.position_m));
    let [fx, fy, cx, cy] = camera.intrinsics_px;
    let (u, v) = (cx - fx * local.x / local.z, cy + fy * local.y / local.z);
    let pixel = env.render("agentview").unwrap().get_pixel(u as u32, v as u32).0;
    assert!(pixel[0] > 100 && pixel[1] < 80 && pixel[2] < 80, "pixel ({u:.1}, {v:.1}) is {pixel:?}");
}

#[test]
fn play_samples_lead_to_their_target() {
    let mut play = Play::new(&TabletopOptions::default(), 8).unwrap();
    let mut instructions = HashSet::new();
    for seed in 0..200 {
        let sample = play.sample(seed).unwrap();
        instructions.insert(sample.instruction);
        assert_eq!((sample.actions.len(), sample.images.len()), (8, 2));
        let p = sample.observation.proprio;
        let gap: Vec<f64> = (0..3).map(|i| sample.goal_m[i] - f64::from(p[i])).collect();
        let toward: f64 = (0..3).map(|i| gap[i] * f64::from(sample.actions[0][i])).sum();
        assert!(toward > 0.0, "seed {seed} leads away from its target");
        assert!(sample.actions.iter().flatten().all(|v| v.abs() <= 1.0));
        assert!(p[3].abs() < 0.01 && p[4].abs() < 0.01, "the gripper points down: {p:?}");
    }
    assert_eq!(instructions.len(), 8);
    let again = Play::new(&TabletopOptions::default(), 8).unwrap().sample(7).unwrap();
    let first = play.sample(7).unwrap();
    assert!(first.images == again.images && first.actions == again.actions);
}

#[test]
fn pretty_pictures_show_the_same_state() {
    let mut env = make(Task::PickRedCube);
    env.reset(eval_seed(0)).unwrap();
    let options = TabletopOptions { quality: Quality::Pretty, image_size: 128, ..TabletopOptions::default() };
    let mut pretty = TabletopEnv::with_task(Task::PickRedCube, &options).unwrap();
    let image = pretty.render_snapshot(&env.snapshot(), "agentview").unwrap();
    assert_eq!(image.dimensions(), (128, 128));
    let reds = image.pixels().filter(|p| p.0[0] > 120 && p.0[1] < 70 && p.0[2] < 70).count();
    assert!(reds > 30, "the red cube is in the picture: {reds} pixels");
}
