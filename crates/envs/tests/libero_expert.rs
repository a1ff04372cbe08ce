//! The scripted expert of LIBERO on the packs that the tests bring along (physics only).
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use efference_envs::libero::expert::{Expert, ExpertEpisode, ExpertOptions};
use efference_envs::libero::{IDLE_ACTION, IDLE_STEPS, LiberoSim, Pack, SimOptions};

fn pack(name: &str) -> Arc<Pack> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero/packs_physics");
    Pack::open(golden.join(name)).unwrap()
}

fn started(pack: &Arc<Pack>, state: usize) -> LiberoSim {
    let mut sim = LiberoSim::new(pack, &SimOptions::default()).unwrap();
    sim.reset(state).unwrap();
    sim.set_init_state(pack.init_state(state).unwrap()).unwrap();
    for _ in 0..IDLE_STEPS {
        sim.step(&IDLE_ACTION).unwrap();
    }
    sim
}

fn plan(sim: &mut LiberoSim, noise: f64, seed: u64) -> (Expert, ExpertEpisode) {
    let mut expert = Expert::new(ExpertOptions { noise, ..ExpertOptions::default() });
    let episode = expert.plan(sim, seed).unwrap();
    (expert, episode)
}

/// Pick and place, a basket on the floor, a drawer, a knob.
#[test]
fn tasks_of_all_kinds_are_solved_within_the_limits() {
    for (name, limit) in
        [("libero_spatial_0", 220), ("libero_object_1", 280), ("libero_goal_0", 300), ("libero_goal_7", 300)]
    {
        let mut sim = started(&pack(name), 0);
        let before = sim.snapshot();
        let (mut expert, episode) = plan(&mut sim, 0.0, 0);
        assert!(episode.success, "{name}: {:?}", episode.ways);
        assert!((20..limit).contains(&episode.labels.len()), "{name}: {} steps", episode.labels.len());
        assert_eq!(sim.snapshot(), before, "{name}: the trials left a trace");
        assert_eq!(episode.states[0], before);
        assert_eq!(episode.states.len(), episode.labels.len());

        // The script, asked step by step, does what the trial did.
        let mut done = false;
        for (t, (label, state)) in episode.labels.iter().zip(&episode.states).enumerate() {
            assert!(!done, "{name}: done before step {t}");
            assert_eq!(sim.snapshot(), *state, "{name}, step {t}");
            let action = expert.next_action(&sim).unwrap();
            assert_eq!(action.map(|v| v.clamp(-1.0, 1.0)), *label, "{name}, step {t}");
            done = sim.step(&action).unwrap().success;
        }
        assert!(done, "{name}");
    }
}

#[test]
fn noise_is_on_what_is_executed_and_comes_from_the_seed() {
    let mut sim = started(&pack("libero_spatial_0"), 7);
    let (_, episode) = plan(&mut sim, 0.03, 5);
    assert!(episode.success, "{:?}", episode.ways);
    let differences = episode.labels.iter().zip(&episode.executed);
    let off: Vec<f64> =
        differences.map(|(label, done)| (label[0] - done[0].clamp(-1.0, 1.0)).abs()).collect();
    assert!(off.iter().any(|d| *d > 0.01) && off.iter().all(|d| *d < 0.3));
    assert!(episode.labels.iter().zip(&episode.executed).all(|(label, done)| label[6] == done[6]));
    for (t, executed) in episode.executed.iter().enumerate() {
        assert_eq!(sim.snapshot(), episode.states[t], "step {t}");
        let step = sim.step(executed).unwrap();
        assert_eq!(step.success, t + 1 == episode.executed.len());
    }
    let again = |seed| plan(&mut started(&pack("libero_spatial_0"), 7), 0.03, seed).1.executed;
    assert_eq!(again(5), episode.executed);
    assert_ne!(again(6), episode.executed);
}

/// Nothing to plan from, and no time to plan in.
#[test]
fn without_a_plan_the_hand_stands_still() {
    let pack = pack("libero_goal_7");
    let mut sim = started(&pack, 0);
    let mut expert = Expert::new(ExpertOptions { budget: 0, ..ExpertOptions::default() });
    assert_eq!(expert.next_action(&sim).unwrap(), [0.0; 7]);
    let episode = expert.plan(&mut sim, 0).unwrap();
    assert!(!episode.success && episode.labels.is_empty() && episode.simulated == 0);
    let mut expert = Expert::new(ExpertOptions { max_steps: 10, ..ExpertOptions::default() });
    let episode = expert.plan(&mut sim, 0).unwrap();
    assert!(!episode.success && episode.labels.len() == 10, "{}", episode.labels.len());
}
