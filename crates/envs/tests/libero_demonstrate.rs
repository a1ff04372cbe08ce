//! Demonstrations of LIBERO: the sample pack that the tests bring along.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use efference_data::Source;
use efference_envs::libero::expert::ExpertOptions;
use efference_envs::libero::{LiberoEnv, LiberoOptions, Pack, demonstrate, train_seed};
use efference_envs::{Env, mujoco_version};

#[test]
fn an_episode_holds_what_the_environment_shows() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/libero/pack_sample");
    let pack = Pack::open(golden).unwrap();
    let options = LiberoOptions { image_size: 32, ..LiberoOptions::default() };
    let seed = train_seed(3);
    let episode = demonstrate(&pack, &options, ExpertOptions::default(), seed, 25).unwrap();
    episode.validate().unwrap();
    let meta = &episode.meta;
    assert!(meta.success && meta.source == Source::Scripted && meta.mujoco_version == mujoco_version());
    assert_eq!((meta.task.as_str(), meta.instruction.as_str()), ("libero_goal_7", "turn on the stove"));
    assert_eq!(episode.total_reward(), 1.0);
    assert_eq!(episode.cameras.keys().collect::<Vec<_>>(), ["agentview", "wrist"]);
    assert!(episode.frame_steps.iter().zip([0, 25, 50]).all(|(&step, wanted)| step == wanted));

    // Without noise the labels lead through the same states to the same success.
    let mut env = LiberoEnv::new(&pack, &options).unwrap();
    let mut observation = env.reset(seed).unwrap();
    let mut success = false;
    for (t, action) in episode.actions.iter().enumerate() {
        let off = observation.proprio.iter().zip(episode.proprio[t]).map(|(a, b)| (a - b).abs());
        assert!(off.fold(0.0, f32::max) < 1e-3, "step {t}");
        if t == 25 {
            let (now, then) = (env.render("wrist").unwrap(), &episode.cameras["wrist"][1]);
            let off: u64 = now.iter().zip(then.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            assert!(off < 2 * now.len() as u64, "mean difference {}", off as f64 / now.len() as f64);
        }
        let outcome = env.step(action).unwrap();
        (observation, success) = (outcome.observation, outcome.success);
    }
    assert!(success);
}
