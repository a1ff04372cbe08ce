//! A robomimic-style demonstration file becomes a folder of episodes, with pictures drawn from the recorded states.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use efference_data::{Demo, EnvInfo, Episode, EpisodeMeta, EpisodeWriter, RgbImage, RobomimicFile, Source};
use efference_mujoco::RenderQuality;
use rayon::prelude::*;

use crate::robosuite::{CAMERAS, Error, Replay, Result};

/// robosuite's control rate where neither the file nor its clock says another.
const DEFAULT_HZ: f64 = 20.0;

/// What an import did.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// The folder of episodes.
    pub out_dir: PathBuf,
    /// The file's environment, e.g. `Lift`.
    pub task: String,
    /// What the policy will be told.
    pub instruction: String,
    /// One line per demonstration, in the file's order.
    pub demos: Vec<ImportedDemo>,
}

/// What became of one demonstration.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedDemo {
    /// Its name in the file.
    pub name: String,
    /// Control steps.
    pub steps: usize,
    /// Whether the task was completed at the end.
    pub success: bool,
    /// Height of the cube above the floor in metres at the start, at its highest, at the end; `None` in scenes without it.
    pub cube_height_m: Option<[f64; 3]>,
    /// Control steps whose action exceeded -1..=1 and was clipped, as robosuite's controller does.
    pub clipped_steps: usize,
}

/// Reads `file`, replays every demonstration with the assets below `assets_root` (the folder that holds
/// `models/assets`), draws both cameras at every step with `image_size_px` pixels a side, and stores the episodes in
/// `out_dir`, which must not hold episodes yet. `progress` is called with (steps drawn, steps in all), from any thread.
///
/// Actions are stored clipped to -1..=1, which is what the controller executed. Demonstrations without rewards get 1 at
/// the step that lifts the cube (`Lift`), or count as successes (other tasks: robosuite's collection script keeps
/// nothing else).
///
/// # Errors
/// [`Error`], naming the demonstration; episodes are written in order, so those before it are stored.
pub fn import_hdf5(
    file: &Path,
    assets_root: &Path,
    out_dir: &Path,
    image_size_px: usize,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<ImportReport> {
    if !(8..=1024).contains(&image_size_px) {
        let (field, expected) = ("image_size", "between 8 and 1024 pixels");
        return Err(Error::Option { field, expected, got: image_size_px.to_string() });
    }
    let recording = RobomimicFile::open(file)?;
    let demos: Vec<Demo> = recording.demos().collect::<std::result::Result<_, _>>()?;
    let import = Import { file, env: recording.env(), assets_root, image_size_px, progress };
    import.run(demos, out_dir)
}

/// What all demonstrations of one import share.
struct Import<'a> {
    file: &'a Path,
    env: &'a EnvInfo,
    assets_root: &'a Path,
    image_size_px: usize,
    progress: &'a (dyn Fn(usize, usize) + Sync),
}

impl Import<'_> {
    fn run(&self, demos: Vec<Demo>, out_dir: &Path) -> Result<ImportReport> {
        let mut writer = EpisodeWriter::create(out_dir)?; // before the long work
        let all = demos.iter().map(|demo| demo.actions.len()).sum();
        let drawn = AtomicUsize::new(0);
        let tick = || (self.progress)(drawn.fetch_add(1, Ordering::Relaxed) + 1, all);
        // A renderer is bound to its thread; each demonstration has its own scene anyway.
        let episode = |demo| self.episode(Replay::new(demo, self.assets_root)?, &tick);
        let episodes: Vec<Result<_>> = demos.into_par_iter().map(episode).collect();

        let (task, instruction) = (task(self.env), instruction(self.env));
        let mut report =
            ImportReport { out_dir: out_dir.to_path_buf(), task, instruction, demos: Vec::new() };
        for episode in episodes {
            let (episode, demo) = episode?;
            writer.append(&episode)?;
            report.demos.push(demo);
        }
        Ok(report)
    }

    fn episode(&self, mut replay: Replay, tick: &dyn Fn()) -> Result<(Episode, ImportedDemo)> {
        let steps = replay.steps();
        let mut renderer = replay.renderer(self.image_size_px, RenderQuality::FULL)?;
        let mut pictures: [Vec<RgbImage>; 2] = Default::default();
        let (mut proprio, mut heights, mut lifted) = (Vec::new(), Vec::new(), Vec::new());
        for step in 0..steps {
            replay.seek(step)?;
            let [front, wrist] = replay.draw(&mut renderer)?;
            pictures[0].push(front);
            pictures[1].push(wrist);
            proprio.push(replay.proprio());
            heights.extend(replay.cube_height_m());
            lifted.extend(replay.is_lifted());
            tick();
        }

        let demo = replay.demo();
        let rewards = demo.rewards.clone().unwrap_or_else(|| first_success(&lifted, steps));
        let success = match lifted.last() {
            Some(&at_the_end) => at_the_end,
            None => demo.rewards.is_none() || rewards.iter().any(|&r| r > 0.0),
        };
        let exceeds = |action: &&[f32; 7]| action.iter().any(|a| a.abs() > 1.0);
        let imported = ImportedDemo {
            name: demo.name.clone(),
            steps,
            success,
            cube_height_m: (!heights.is_empty()).then(|| {
                let highest = heights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                [heights[0], highest, heights[steps - 1]]
            }),
            clipped_steps: demo.actions.iter().filter(exceeds).count(),
        };
        let names = CAMERAS.map(|(name, _)| name.to_owned());
        let episode = Episode {
            meta: self.meta(demo, success, imported.clipped_steps),
            cameras: names.into_iter().zip(pictures).collect(),
            frame_steps: (0..steps as u32).collect(),
            proprio,
            actions: demo.actions.iter().map(|action| action.map(|a| a.clamp(-1.0, 1.0))).collect(),
            rewards,
            states: Some(demo.states.clone()),
        };
        Ok((episode, imported))
    }

    fn meta(&self, demo: &Demo, success: bool, clipped: usize) -> EpisodeMeta {
        let file = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        EpisodeMeta {
            task: task(self.env),
            instruction: instruction(self.env),
            seed: 0,
            success,
            source: Source::Human,
            mujoco_version: crate::mujoco_version(),
            control_hz: self.env.control_hz.or_else(|| clock_hz(demo)).unwrap_or(DEFAULT_HZ),
            extra: BTreeMap::from([
                ("file".into(), file),
                ("demo".into(), demo.name.clone()),
                ("clipped_steps".into(), clipped.to_string()),
            ]),
        }
    }
}

fn task(env: &EnvInfo) -> String {
    env.name.clone().unwrap_or_else(|| "demonstration".into())
}

/// What the file says, or the environment's name in words.
fn instruction(env: &EnvInfo) -> String {
    match (&env.instruction, env.name.as_deref()) {
        (Some(said), _) => said.clone(),
        (None, Some("Lift")) => "lift the cube".into(),
        (None, _) => words(&task(env)),
    }
}

/// `PickPlaceCan` is "pick place can".
fn words(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// 1 at the action that leads to the first lifted state; `lifted[t]` is before action t.
fn first_success(lifted: &[bool], steps: usize) -> Vec<f32> {
    let mut rewards = vec![0.0; steps];
    if let Some(first) = lifted.iter().position(|&l| l) {
        rewards[first.saturating_sub(1)] = 1.0;
    }
    rewards
}

/// Control rate by the recording's own clock.
fn clock_hz(demo: &Demo) -> Option<f64> {
    let steps = demo.actions.len();
    let time = |t: usize| demo.states.row(t).map(|state| state[0]);
    let span = time(steps.checked_sub(1)?)? - time(0)?;
    let hz = (steps - 1) as f64 / span;
    // Clocks are sums of rounded steps: 20.000000000000004 means 20.
    (hz.is_finite() && hz > 0.0).then(|| (hz * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use efference_data::{EpisodeStore, OnCorrupt};

    /// The last steps of the real demonstrations; drawing all of them takes a minute.
    #[test]
    fn the_real_demonstrations_become_episodes() {
        let Some(assets) = crate::robosuite::tests::assets() else { return };
        let file = assets.join("models/assets/demonstrations/lift/demo.hdf5");
        let recording = RobomimicFile::open(&file).unwrap();
        let last_steps = |mut demo: Demo| {
            let skip = demo.actions.len() - 12;
            demo.actions.drain(..skip);
            demo.states.values.drain(..skip * demo.states.width);
            demo
        };
        let demos: Vec<Demo> = recording.demos().map(|demo| last_steps(demo.unwrap())).collect();
        let out = tempfile::tempdir().unwrap();
        let (env, calls) = (recording.env(), AtomicUsize::new(0));
        let progress = |_: usize, all: usize| {
            assert_eq!(all, 3 * 12);
            calls.fetch_add(1, Ordering::Relaxed);
        };
        let import =
            Import { file: &file, env, assets_root: &assets, image_size_px: 16, progress: &progress };
        let report = import.run(demos.clone(), out.path()).unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 3 * 12);
        assert_eq!((report.task.as_str(), report.instruction.as_str()), ("Lift", "lift the cube"));

        let (episodes, _) = EpisodeStore::open(out.path()).unwrap().load_all(OnCorrupt::Error).unwrap();
        assert_eq!(episodes.len(), 3);
        for ((episode, told), demo) in episodes.iter().zip(&report.demos).zip(&demos) {
            let [_, highest, end] = told.cube_height_m.unwrap();
            assert!((0.873..0.878).contains(&end) && highest >= end && told.success && episode.meta.success);
            assert_eq!(episode.cameras.keys().collect::<Vec<_>>(), ["agentview", "wrist"]);
            assert_eq!((episode.steps(), episode.frames(), episode.meta.control_hz), (12, 12, 20.0));
            assert_eq!(episode.total_reward(), 1.0);
            assert_eq!(episode.states.as_ref(), Some(&demo.states));
            let rows = episode.actions.iter().zip(&demo.actions);
            assert!(rows.flat_map(|(a, b)| a.iter().zip(b)).all(|(a, b)| *a == b.clamp(-1.0, 1.0)));
            assert_ne!(episode.cameras["wrist"][0], episode.cameras["wrist"][11]);
        }
        let e = import.run(demos, out.path()).unwrap_err();
        assert!(matches!(e, Error::Store(efference_data::Error::AlreadyThere { episodes: 3, .. })), "{e}");
    }

    #[test]
    fn wrong_arguments_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let import = |size| {
            import_hdf5(&dir.path().join("x.hdf5"), dir.path(), &dir.path().join("out"), size, &|_, _| ())
        };
        assert!(matches!(import(0).unwrap_err(), Error::Option { field: "image_size", .. }));
        assert!(matches!(import(64).unwrap_err(), Error::File(_)));
        assert!(!dir.path().join("out").exists());
    }

    #[test]
    fn the_lifting_action_gets_the_reward() {
        assert_eq!(first_success(&[false, false, true, true], 4), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(first_success(&[false, true, false, true], 4), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(first_success(&[false; 3], 3), [0.0; 3]);
        assert_eq!(first_success(&[], 2), [0.0; 2]);
    }

    #[test]
    fn instructions_come_from_the_file_or_the_name() {
        let env = |name: &str, said: Option<&str>| EnvInfo {
            name: Some(name.into()),
            control_hz: None,
            instruction: said.map(Into::into),
        };
        assert_eq!(instruction(&env("Lift", None)), "lift the cube");
        assert_eq!(instruction(&env("Lift", Some("raise it"))), "raise it");
        assert_eq!(instruction(&env("PickPlaceCan", None)), "pick place can");
        assert_eq!(instruction(&EnvInfo::default()), "demonstration");
    }

    #[test]
    fn the_clock_gives_the_rate() {
        let demo = |times: &[f64]| Demo {
            name: "d".into(),
            model_xml: None,
            states: efference_data::States { width: 1, values: times.to_vec() },
            actions: vec![[0.0; 7]; times.len()],
            rewards: None,
        };
        assert_eq!(clock_hz(&demo(&[0.1, 0.15, 0.2, 0.25])), Some(20.0));
        assert_eq!(clock_hz(&demo(&[0.0])), None);
        assert_eq!(clock_hz(&demo(&[0.0, 0.0])), None);
    }
}
