//! LIBERO demonstrations in the benchmark's and LeRobot's layouts (`fixtures/make_libero.py`).
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use efference_data::libero::{Gripper, LeRobotSet, LiberoFile, Recording, RecordingOptions};
use efference_data::{Episode, ImportError, RobomimicFile};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn hdf5(path: &Path) -> Result<Vec<Recording>, ImportError> {
    let file = LiberoFile::recognise(RobomimicFile::open(path)?)?;
    let Ok(file) = file else { return Ok(Vec::new()) };
    (0..file.len()).map(|i| file.load(i)).collect()
}

fn lerobot(dir: &Path) -> Result<Vec<Recording>, ImportError> {
    LeRobotSet::open(dir)?.iter().collect()
}

/// What the script wrote, whatever the layout.
fn check(recordings: Vec<Recording>, options: RecordingOptions) -> Vec<Episode> {
    assert_eq!(recordings.len(), 2);
    let episodes: Vec<Episode> =
        recordings.into_iter().map(|r| r.into_episode(Path::new("some/file"), options).unwrap()).collect();
    for (n, (episode, steps)) in episodes.iter().zip([5, 4]).enumerate() {
        episode.validate().unwrap();
        assert_eq!((episode.steps(), episode.frames()), (steps, steps));
        assert!(episode.meta.success && episode.rewards[steps - 1] == 1.0 && episode.total_reward() == 1.0);
        for t in 0..steps {
            let opening = [0.02, 0.03, 0.04, 0.03, 0.01][t];
            assert_eq!(
                episode.proprio[t],
                [n as f32, t as f32, 1.0, 3.0, 0.1, 0.2, opening, -opening],
                "step {t}"
            );
            let mut wanted =
                [0.1 * n as f32, 0.2, -0.3, 0.0, 0.0, 0.1 * t as f32, if t < 2 { -1.0 } else { 1.0 }];
            if t == 1 {
                wanted[..6].fill(0.0);
            }
            let off = episode.actions[t].iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-6, "step {t}: {:?}, wanted {wanted:?}", episode.actions[t]);
            for (camera, blue) in [("agentview", 0), ("wrist", 100)] {
                let picture = &episode.cameras[camera][t];
                assert_eq!(picture.dimensions(), (8, 6));
                // Top row first, mirrored: what evaluators show to policies.
                for (x, y) in [(0, 0), (7, 0), (0, 5), (3, 2)] {
                    let wanted = [10 * y as u8, 10 * (7 - x) as u8, t as u8 + blue];
                    assert_eq!(picture.get_pixel(x, y).0, wanted, "{camera} {x} {y}");
                }
            }
        }
    }
    episodes
}

#[test]
fn the_benchmarks_files_give_what_was_written() {
    let recordings = hdf5(&fixture("libero_demo.hdf5")).unwrap();
    let episodes = check(recordings.clone(), RecordingOptions::default());
    let meta = &episodes[0].meta;
    assert_eq!(meta.task, "pick_up_the_black_bowl_and_place_it_on_the_plate");
    assert_eq!(
        meta.instruction, "pick up the black bowl and place it on the plate",
        "by its name, not its text"
    );
    assert_eq!((meta.control_hz, meta.extra["demo"].as_str()), (20.0, "demo_0"));
    assert_eq!(episodes[1].states.as_ref().unwrap().row(3).unwrap(), [12.0, 13.0, 14.0, 15.0]);

    let options = RecordingOptions { drop_idle: true, ..Default::default() };
    let moving = recordings[0].clone().into_episode(Path::new("f"), options).unwrap();
    assert_eq!(moving.proprio.iter().map(|p| p[1]).collect::<Vec<_>>(), [0.0, 2.0, 3.0, 4.0]);
    assert_eq!(moving.cameras["agentview"][1].get_pixel(0, 0).0[2], 2);
    // A recording of robosuite has no pictures and is left to the simulator.
    assert!(hdf5(&fixture("robomimic_old.hdf5")).unwrap().is_empty());
}

#[test]
fn lerobot_sets_give_what_was_written() {
    for (name, task) in [("libero_lerobot_v2", 0), ("libero_lerobot_v3", 1)] {
        let set = LeRobotSet::open(fixture(name)).unwrap();
        assert_eq!(set.episodes(), 2);
        let episodes = check(lerobot(&fixture(name)).unwrap(), RecordingOptions::default());
        let texts = ["put the bowl on the plate", "open the middle drawer"];
        assert_eq!(episodes[task].meta.instruction, texts[task]);
        assert_eq!(episodes[task].meta.task, texts[task].replace(' ', "_"));
        assert_eq!(episodes[task].meta.control_hz, 10.0);
    }
    let wrong = RecordingOptions { gripper: Gripper::NegativeOpens, ..Default::default() };
    let first = lerobot(&fixture("libero_lerobot_v2")).unwrap().remove(0);
    let episode = first.into_episode(Path::new("f"), wrong).unwrap();
    assert_eq!(episode.actions[0][6], 1.0, "taken as it is when told so");
}

/// A copy of a fixture folder that may be spoiled.
fn copy(name: &str) -> tempfile::TempDir {
    fn all(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                all(&entry.path(), &to)
            } else {
                drop(fs::copy(entry.path(), to).unwrap())
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    all(&fixture(name), dir.path());
    dir
}

#[test]
fn what_is_wrong_with_a_set_is_named() {
    let info = |from: &str, to: &str, expected: &str| {
        let dir = copy("libero_lerobot_v2");
        let path = dir.path().join("meta/info.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(&path, text.replace(from, to)).unwrap();
        let e = lerobot(dir.path()).unwrap_err().to_string();
        assert!(e.contains(expected) && e.contains(&dir.path().display().to_string()), "{e}");
    };
    info("v2.1", "v1.6", "`codebase_version` is v1.6");
    info("\"fps\": 10", "\"fps\": 0", "`fps` is no positive number");
    info("\"dtype\": \"image\"", "\"dtype\": \"video\"", "the frames of `image` are videos");
    info("\"wrist_image\"", "\"depth\"", "no feature for the camera in the hand");
    info("7\n", "14\n", "feature `actions` has shape [14]");
    info("\"total_episodes\": 2", "\"total_episodes\": 3", "promises 3 episodes, the tables hold 2");
    info("\"total_episodes\"", "\"total\"", "`total_episodes`");
    info("{", "[", "at line 2 column");

    let dir = copy("libero_lerobot_v2");
    let table = dir.path().join("data/chunk-000/episode_000001.parquet");
    fs::remove_file(&table).unwrap();
    let e = lerobot(dir.path()).unwrap_err().to_string();
    assert!(e.contains("promises 2 episodes, the tables hold 1"), "{e}");
    fs::copy(dir.path().join("data/chunk-000/episode_000000.parquet"), &table).unwrap();
    let e = lerobot(dir.path()).unwrap_err().to_string();
    assert!(e.contains("column `frame_index`: episode 0 has frame 0 where 5 is due"), "{e}");
    fs::write(dir.path().join("meta/tasks.jsonl"), "{\"task_index\": 7, \"task\": \"x\"}\n{").unwrap();
    let e = lerobot(dir.path()).unwrap_err().to_string();
    assert!(e.contains("tasks.jsonl") && e.contains("line 2"), "{e}");
    fs::write(dir.path().join("meta/tasks.jsonl"), "{\"task_index\": 7, \"task\": \"x\"}\n").unwrap();
    let e = lerobot(dir.path()).unwrap_err().to_string();
    assert!(e.contains("column `task_index`: episode 0 has task 0"), "{e}");
    assert!(!LeRobotSet::is_at(&dir.path().join("data")));
}

/// Cut anywhere or with bytes changed, a file gives an error or some numbers, never a panic.
#[test]
fn damaged_files_do_not_panic() {
    let dir = copy("libero_lerobot_v3");
    let table = dir.path().join("data/chunk-000/file-000.parquet");
    let (hdf5_path, hdf5_bytes) = (dir.path().join("d.hdf5"), fs::read(fixture("libero_demo.hdf5")).unwrap());
    let table_bytes = fs::read(&table).unwrap();
    let mut noticed = [0, 0];
    for k in 0..300 {
        let damage = |bytes: &[u8]| {
            let at = k * 7919 % bytes.len();
            let mut changed = bytes.to_vec();
            changed[at] ^= 1 << (k % 8);
            changed[(at + 1) % bytes.len()] = 0xff;
            (bytes[..at].to_vec(), changed)
        };
        let (cut, changed) = damage(&table_bytes);
        fs::write(&table, cut).unwrap();
        assert!(lerobot(dir.path()).is_err());
        fs::write(&table, changed).unwrap();
        noticed[0] += usize::from(lerobot(dir.path()).is_err());
        let (cut, changed) = damage(&hdf5_bytes);
        fs::write(&hdf5_path, cut).unwrap();
        assert!(hdf5(&hdf5_path).is_err());
        fs::write(&hdf5_path, changed).unwrap();
        noticed[1] += usize::from(hdf5(&hdf5_path).is_err());
    }
    assert!(noticed[0] > 100 && noticed[1] > 20, "noticed {noticed:?} of 300 each");
}
