//! The scripted expert makes episodes that can be stored.
#![allow(clippy::unwrap_used)]

use efference_data::{EpisodeStore, EpisodeWriter};
use efference_envs::tabletop::{CAMERAS, Expert, TabletopEnv, TabletopOptions, Task, train_seed};
use efference_envs::{Env, Snapshot};
use efference_rollout::demonstrate;

#[test]
fn a_demonstration_is_whole_and_its_states_replay_it() {
    let (task, seed) = (Task::PressButton, train_seed(3));
    let options = TabletopOptions { image_size: 16, ..TabletopOptions::default() };
    let episode = demonstrate(&options, task, seed, Expert::new(task)).unwrap();
    episode.validate().unwrap();
    assert!(episode.meta.success && episode.total_reward() == 1.0);
    assert_eq!(episode.cameras.keys().collect::<Vec<_>>(), CAMERAS);
    assert_eq!(episode.frames(), episode.steps());

    // The frame of step t shows the state of row t.
    let mut env = TabletopEnv::with_task(task, &options).unwrap();
    env.reset(seed).unwrap();
    let middle = episode.steps() / 2;
    let state = episode.states.as_ref().unwrap().row(middle).unwrap().to_vec();
    let snapshot = Snapshot { state, steps: middle, held: 0, running: true, look: None };
    assert_eq!(env.render_snapshot(&snapshot, "wrist").unwrap(), episode.cameras["wrist"][middle]);

    let folder = tempfile::tempdir().unwrap();
    EpisodeWriter::create(folder.path()).unwrap().append(&episode).unwrap();
    assert_eq!(EpisodeStore::open(folder.path()).unwrap().load(0).unwrap(), episode);
    assert_eq!(demonstrate(&options, task, seed, Expert::new(task)).unwrap(), episode);
}

#[test]
fn a_failure_is_returned_as_one() {
    let task = Task::StackRedOnBlue;
    let options = TabletopOptions { image_size: 16, max_steps: 5, ..TabletopOptions::default() };
    let episode = demonstrate(&options, task, train_seed(0), Expert::new(task)).unwrap();
    assert_eq!((episode.meta.success, episode.steps()), (false, 5));
    let options = TabletopOptions { image_size: 1, ..options };
    let error = demonstrate(&options, task, 0, Expert::new(task)).unwrap_err();
    assert!(error.to_string().contains("stack_red_on_blue"), "{error}");
}
