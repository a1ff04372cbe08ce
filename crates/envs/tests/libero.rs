//! LIBERO's simulation and environment: determinism, snapshots, limits, bad packs.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use efference_envs::libero::{
    Error, IDLE_ACTION, LiberoEnv, LiberoOptions, LiberoSim, Pack, SimOptions, SubstepOrder, eval_seed,
    train_seed,
};
use efference_envs::{Env, VecEnv};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero")
}

fn pack(name: &str) -> Arc<Pack> {
    Pack::open(golden().join("packs_physics").join(name)).unwrap()
}

fn sim(pack: &Arc<Pack>, order: SubstepOrder, k: usize) -> LiberoSim {
    let mut sim =
        LiberoSim::new(pack, &SimOptions { order, image_size: 32, ..SimOptions::default() }).unwrap();
    sim.reset(k).unwrap();
    sim.set_init_state(pack.init_state(k).unwrap()).unwrap();
    sim
}

fn action(i: usize) -> [f64; 7] {
    let t = i as f64;
    let turn = if i.is_multiple_of(3) { 0.0 } else { 0.4 };
    [
        (0.3 * t).sin(),
        0.7 * (0.2 * t).cos(),
        -0.6,
        turn * (0.1 * t).sin(),
        0.0,
        turn,
        if i < 12 { -1.0 } else { 1.0 },
    ]
}

#[test]
fn any_thread_and_any_company_gives_the_same_bits() {
    let pack = pack("libero_spatial_0");
    let run = |k: usize| {
        let mut sim = sim(&pack, SubstepOrder::Exact, k);
        for i in 0..25 {
            sim.step(&action(i)).unwrap();
        }
        sim.snapshot()
    };
    let alone: Vec<_> = (0..4).map(run).collect();
    assert_ne!(alone[0], alone[1]);
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|k| scope.spawn(move || run(k))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
    // Another simulation of other fixture poses steps in between, on the same thread.
    let (mut a, mut b) = (sim(&pack, SubstepOrder::Exact, 0), sim(&pack, SubstepOrder::Exact, 3));
    for i in 0..25 {
        a.step(&action(i)).unwrap();
        b.step(&action(24 - i)).unwrap();
    }
    assert_eq!(a.snapshot(), alone[0]);
    // A simulation that was used before starts anew.
    b.reset(0).unwrap();
    b.set_init_state(pack.init_state(0).unwrap()).unwrap();
    for i in 0..25 {
        b.step(&action(i)).unwrap();
    }
    assert_eq!(b.snapshot(), alone[0]);
}

#[test]
fn a_snapshot_continues_bit_for_bit_anywhere() {
    for name in ["libero_goal_7", "libero_10_9"] {
        let pack = pack(name);
        for (order, after) in [(SubstepOrder::Exact, 0), (SubstepOrder::Exact, 13), (SubstepOrder::Fused, 14)]
        {
            let mut first = sim(&pack, order, 2);
            for i in 0..after {
                first.step(&action(i)).unwrap();
            }
            let snapshot = first.snapshot();
            let (seen, pose) = (first.observation().clone(), first.eef_pose());
            let facts = |sim: &LiberoSim| -> Vec<bool> {
                let names: Vec<_> = pack.meta.objects.keys().collect();
                let pairs = names.iter().flat_map(|a| names.iter().map(move |b| (a, b)));
                pairs.map(|(a, b)| sim.touching(a, b).unwrap()).collect()
            };
            let touching = facts(&first);
            let run = |sim: &mut LiberoSim| {
                let steps: Vec<_> = (after..after + 12).map(|i| sim.step(&action(i)).unwrap()).collect();
                (steps, sim.snapshot())
            };
            let went_on = run(&mut first);
            // Into itself, and into one that stands elsewhere in another episode.
            let mut other = sim(&pack, order, 5);
            other.step(&action(3)).unwrap();
            for sim in [&mut first, &mut other] {
                sim.restore(&snapshot).unwrap();
                assert_eq!((sim.observation(), sim.eef_pose()), (&seen, pose));
                assert_eq!(facts(sim), touching);
                assert_eq!(sim.snapshot(), snapshot);
                assert_eq!(run(sim), went_on, "{name} {order:?} after {after}");
            }
        }
    }
    let (a, b) = (
        sim(&pack("libero_goal_7"), SubstepOrder::Exact, 0),
        &mut sim(&pack("libero_10_9"), SubstepOrder::Exact, 0),
    );
    assert!(matches!(b.restore(&a.snapshot()), Err(Error::Snapshot { .. })));
}

/// Whether a stove burns is seen one step later, and the flame goes out again.
#[test]
fn a_burning_stove_shows() {
    let sample = Pack::open(golden().join("pack_sample")).unwrap();
    let mut sim = LiberoSim::new(&sample, &SimOptions::default()).unwrap();
    sim.set_init_state(sample.init_state(0).unwrap()).unwrap();
    for _ in 0..10 {
        sim.step(&IDLE_ACTION).unwrap();
    }
    let off = sim.render("agentview").unwrap();
    assert!(!sim.success());
    let mut state = sim.init_state();
    let knob = sample.meta.objects["flat_stove_1"].joints[0].qpos_adr;
    state[1 + knob] = 1.0;
    sim.set_init_state(&state).unwrap();
    assert!(sim.success() && sim.predicate(&["TurnOn".into(), "flat_stove_1".into()]).unwrap());
    let on = sim.render("agentview").unwrap();
    // The flame is a red disc under the burner's plate.
    let redder = |image: &efference_envs::RgbImage| {
        let pairs = image.pixels().zip(off.pixels());
        pairs
            .filter(|(now, before)| i32::from(now[0]) > i32::from(before[0]) + 20 && now[2] <= before[2])
            .count()
    };
    println!("{} pixels", redder(&on));
    assert!(redder(&on) > 5);
    state[1 + knob] = -0.001;
    sim.set_init_state(&state).unwrap();
    let out = sim.render("agentview").unwrap();
    assert_eq!(redder(&out), 0);
}

#[test]
fn the_environment_keeps_its_promises() {
    let pack = pack("libero_goal_7");
    let options = LiberoOptions { max_steps: 6, image_size: 24, ..LiberoOptions::default() };
    let mut env = LiberoEnv::new(&pack, &options).unwrap();
    assert!(env.step(&[0.0; 7]).is_err());
    let first = env.reset(eval_seed(3)).unwrap();
    assert_eq!(env.sim().steps(), 10);
    assert_eq!(env.instruction(), "turn on the stove");
    assert_eq!(env.spec().cameras, ["agentview", "wrist"]);
    let mut mirrored = env.render("wrist").unwrap();
    let direct = env.sim_mut().render("robot0_eye_in_hand").unwrap();
    image::imageops::flip_horizontal_in_place(&mut mirrored);
    assert_eq!(mirrored, direct);
    let snapshot = env.snapshot();
    let outcomes: Vec<_> = (0..6).map(|_| env.step(&[0.3, 0.0, -0.5, 0.0, 0.1, 0.0, 1.0]).unwrap()).collect();
    assert!(outcomes[5].done && !outcomes[4].done && outcomes[5].steps == 6 && outcomes[0].steps == 1);
    assert!(env.step(&[0.0; 7]).unwrap_err().to_string().contains("ended after 6 steps"));
    env.restore(&snapshot).unwrap();
    let again: Vec<_> = (0..6).map(|_| env.step(&[0.3, 0.0, -0.5, 0.0, 0.1, 0.0, 1.0]).unwrap()).collect();
    assert_eq!(outcomes, again);
    assert_eq!(env.reset(eval_seed(3)).unwrap(), first);
    assert_ne!(env.reset(eval_seed(4)).unwrap(), first);
    assert!(env.remaining() > 0.0 && !env.scene_state().things.is_empty());
    // Seeds: evaluation counts through states and fixture poses together, training draws both.
    assert_eq!(LiberoEnv::start_of(&pack, eval_seed(53)), (3, 3));
    let drawn: std::collections::BTreeSet<_> =
        (0..200).map(|i| LiberoEnv::start_of(&pack, train_seed(i))).collect();
    assert!(drawn.len() > 150 && drawn.iter().any(|(state, entry)| state != entry));
    let error =
        LiberoEnv::new(&pack, &LiberoOptions { max_steps: 991, ..options }).err().unwrap().to_string();
    assert!(error.contains("max_steps"), "{error}");
}

#[test]
fn vectors_of_environments_agree_with_single_ones() {
    let pack = pack("libero_object_1");
    let options = LiberoOptions { image_size: 16, ..LiberoOptions::default() };
    let make = || LiberoEnv::new(&pack, &options).unwrap();
    const MOVE: efference_envs::Action = [0.5, 0.1, -0.4, 0.0, 0.0, 0.2, -1.0];
    let single: Vec<_> = (0..3)
        .map(|i| {
            let mut env = make();
            env.reset(eval_seed(i)).unwrap();
            (0..4).for_each(|_| drop(env.step(&MOVE).unwrap()));
            env.snapshot()
        })
        .collect();
    let mut many = VecEnv::new((0..3).map(|_| make()).collect::<Vec<_>>(), 2).unwrap();
    many.reset_all(&[0, 1, 2].map(eval_seed)).unwrap();
    let outcomes = many.step_all(&vec![vec![MOVE; 4]; 3], true).unwrap();
    let last: Vec<_> = outcomes.iter().map(|outcome| outcome.snapshots.last().unwrap().clone()).collect();
    assert_eq!(last, single);
}

#[test]
fn the_horizon_and_bad_actions_are_errors() {
    let pack = pack("libero_90_86");
    let mut sim = sim(&pack, SubstepOrder::Fused, 0);
    let mut bad = IDLE_ACTION;
    bad[4] = f64::NAN;
    assert!(matches!(sim.step(&bad), Err(Error::Action { index: 4, .. })));
    let snapshot = sim.snapshot();
    for i in 0..pack.meta.horizon {
        assert_eq!(sim.step(&IDLE_ACTION).unwrap().steps, i + 1);
    }
    assert!(sim.step(&IDLE_ACTION).unwrap_err().to_string().contains("ended after 1000 control steps"));
    sim.restore(&snapshot).unwrap();
    assert_eq!(sim.step(&IDLE_ACTION).unwrap().steps, 1);
    assert!(sim.set_init_state(&[0.0; 5]).unwrap_err().to_string().contains("1 + nq + nv"));
    let mut state = pack.init_state(0).unwrap().to_vec();
    state[7] = f64::INFINITY;
    assert!(sim.set_init_state(&state).unwrap_err().to_string().contains("number 7 is inf"));
    assert!(
        sim.predicate(&["on".into(), "nothing".into()]).unwrap_err().to_string().contains("yellow_book_1")
    );
    assert!(
        sim.predicate(&["near".into(), "yellow_book_1".into()]).unwrap_err().to_string().contains("turnoff")
    );
    assert!(sim.object_pose("bowl").is_err());
    assert!(LiberoSim::new(&pack, &SimOptions { image_size: 4, ..SimOptions::default() }).is_err());
}

/// An explosion ends the episode with a reason; the state before it stays, and a reset brings the simulation back.
#[test]
fn an_unstable_simulation_ends_the_episode() {
    let pack = pack("libero_goal_7");
    let mut sim = sim(&pack, SubstepOrder::Exact, 0);
    for i in 0..3 {
        sim.step(&action(i)).unwrap();
    }
    let healthy = sim.snapshot();
    let mut state = sim.init_state();
    let (nq, dof) = (pack.meta.nq, pack.meta.objects["akita_black_bowl_1"].joints[0].dof_adr);
    state[1 + nq + dof] = 1e12;
    sim.set_init_state(&state).unwrap();
    let step = sim.step(&IDLE_ACTION).unwrap();
    let why = step.aborted.unwrap();
    assert!(step.done && !step.success && why.contains("qvel") || why.contains("unstable"), "{why}");
    assert!(sim.step(&IDLE_ACTION).unwrap_err().to_string().contains("unstable"));
    sim.restore(&healthy).unwrap();
    assert!(sim.step(&IDLE_ACTION).unwrap().aborted.is_none());
    sim.reset(1).unwrap();
    sim.set_init_state(pack.init_state(1).unwrap()).unwrap();
    assert!(sim.step(&IDLE_ACTION).unwrap().aborted.is_none());
}
