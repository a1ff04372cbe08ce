//! `efference demos import`: people's recorded demonstrations become episodes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use efference_data::libero::{Gripper, LeRobotSet, LiberoFile, Recording, RecordingOptions};
use efference_data::{EpisodeWriter, ImportError, RobomimicFile};
use efference_envs::robosuite_import::{ImportedDemo, import_hdf5};
use efference_train::report::Event;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::text::{count, range, table};
use crate::ui::Ui;
use crate::{interrupt, native};

/// Store recorded demonstrations as episodes: robomimic-style or LIBERO .hdf5 files, LeRobot sets of LIBERO
#[derive(Debug, clap::Args)]
#[command(after_help = "\
LIBERO's files and LeRobot sets (v2.0, v2.1, v3.0, pictures inside the tables) bring their pictures along; they are stored \
as policies see them, rotated by 180 degrees against the simulator's array, with -1 opening the gripper. For a \
robosuite recording the recorded states are shown by the simulator again and both cameras are drawn at every step; \
`cargo xtask real-data` fetches three human demonstrations of lifting a cube, and the meshes they need.")]
pub(crate) struct Args {
    /// The demonstrations: an .hdf5 file, or the folder of a LeRobot set
    #[arg(value_name = "FILE.hdf5|DIR")]
    file: PathBuf,
    /// Folder to make; it must not hold episodes yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Drop steps that neither move the hand nor change the gripper, as the public "no no-op" sets do (LIBERO, LeRobot)
    #[arg(long)]
    drop_idle: bool,
    /// What the gripper numbers mean (LIBERO, LeRobot)
    #[arg(long, value_enum, default_value_t = GripperArg::Auto)]
    gripper: GripperArg,
    /// Folder that holds robosuite's `models/assets` [default: where `cargo xtask real-data` puts it]
    #[arg(long, value_name = "DIR")]
    assets: Option<PathBuf>,
    /// Side of the pictures drawn for a robosuite recording in pixels, 8 to 1024
    #[arg(long, value_name = "PX", default_value_t = 64, value_parser = RangedU64ValueParser::<u64>::new().range(8..=1024))]
    image_size: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GripperArg {
    /// Found out from the numbers and the motion of the fingers
    Auto,
    /// -1 opens, +1 closes: LIBERO's own
    NegativeOpens,
    /// 1 opens, 0 closes
    OneOpens,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.file.is_dir() {
        if !LeRobotSet::is_at(&args.file) {
            let what = format!("`{}` is a folder without `meta/info.json`", args.file.display());
            return Err(Failure::new(what).help("give an .hdf5 file, or the folder of a LeRobot data set"));
        }
        let set = LeRobotSet::open(&args.file)?;
        return store(args, set.episodes(), set.iter(), ui);
    }
    match LiberoFile::recognise(RobomimicFile::open(&args.file)?)? {
        Ok(file) => store(args, file.len(), (0..file.len()).map(|i| file.load(i)), ui),
        Err(_) => replay(args, ui),
    }
}

/// Recordings that hold their pictures; each is stored when it has been read.
fn store(
    args: &Args,
    total: usize,
    recordings: impl Iterator<Item = std::result::Result<Recording, ImportError>>,
    ui: &Ui,
) -> Result<()> {
    let mut writer = EpisodeWriter::create(&args.out)?;
    let gripper = match args.gripper {
        GripperArg::Auto => Gripper::Auto,
        GripperArg::NegativeOpens => Gripper::NegativeOpens,
        GripperArg::OneOpens => Gripper::OneOpens,
    };
    let options = RecordingOptions { drop_idle: args.drop_idle, gripper };
    let stop = interrupt::install(ui)?;
    let reporter = ui.reporter();
    let stage = Event::Stage { name: "import".into(), unit: "episode".into(), total: total as u64, done: 0 };
    reporter.report(&stage);
    // Per task: instruction, episodes, successes, steps, idle steps dropped.
    let mut tasks: BTreeMap<String, (String, usize, usize, Vec<usize>, usize)> = BTreeMap::new();
    for (done, recording) in recordings.enumerate() {
        if stop.requested() {
            drop(reporter);
            let what = format!("{done} of {total} episodes are stored in {}", args.out.display());
            return Err(Failure::interrupted(what).help("start again with another --out to have all of them"));
        }
        let recording = recording?;
        let recorded = recording.actions.len();
        let episode = recording.into_episode(&args.file, options)?;
        writer.append(&episode)?;
        let task = tasks.entry(episode.meta.task.clone()).or_default();
        task.0.clone_from(&episode.meta.instruction);
        task.1 += 1;
        task.2 += usize::from(episode.meta.success);
        task.3.push(episode.steps());
        task.4 += recorded - episode.steps();
        reporter.report(&Event::Progress { done: done as u64 + 1 });
    }
    drop(reporter);
    let header = ["instruction", "episodes", "successful", "steps", "idle steps dropped"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for (name, (instruction, episodes, successes, steps, dropped)) in tasks {
        ui.object(&json!({
            "task": name, "instruction": instruction, "episodes": episodes, "successes": successes,
            "steps": steps, "idle_steps_dropped": dropped, "out": args.out,
        }));
        let numbers = [episodes.to_string(), successes.to_string(), range(&steps), dropped.to_string()];
        rows.push([vec![instruction], numbers.to_vec()].concat());
    }
    for line in table(&rows) {
        ui.line(line);
    }
    ui.line(format!("{} in {}", count(writer.entries().len(), "episode"), args.out.display()));
    Ok(())
}

fn replay(args: &Args, ui: &Ui) -> Result<()> {
    let assets = match &args.assets {
        Some(assets) => assets.clone(),
        None => native::robosuite().ok_or_else(|| {
            Failure::new("robosuite's assets are not there: the scenes of the recording need its meshes")
                .help("`cargo xtask real-data` fetches them")
                .help("or give the folder that holds `models/assets` with --assets")
        })?,
    };
    let reporter = ui.reporter();
    // Called from many threads, each with a count that may be overtaken on its way.
    let highest = Mutex::new(0);
    let progress = |done: usize, all: usize| {
        let mut highest = highest.lock().unwrap_or_else(PoisonError::into_inner);
        if *highest == 0 {
            let (name, unit) = ("import".into(), "step".into());
            reporter.report(&Event::Stage { name, unit, total: all as u64, done: 0 });
        }
        if done > *highest {
            *highest = done;
            reporter.report(&Event::Progress { done: done as u64 });
        }
    };
    let report = import_hdf5(&args.file, &assets, &args.out, args.image_size as usize, &progress)?;
    tell(&report.demos, args.image_size, &report.out_dir, ui);
    ui.line(format!(
        "{} of `{}` (\"{}\") in {}",
        count(report.demos.len(), "episode"),
        report.task,
        report.instruction,
        report.out_dir.display()
    ));
    Ok(())
}

fn tell(demos: &[ImportedDemo], image_size: u64, out: &Path, ui: &Ui) {
    let header =
        ["demonstration", "steps", "success", "clipped", "cube height: start, highest, end", "pictures"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for demo in demos {
        let ImportedDemo { name, steps, success, cube_height_m, clipped_steps } = demo;
        let height = match cube_height_m {
            Some([start, highest, end]) => format!("{start:.3} m, {highest:.3} m, {end:.3} m"),
            None => "no cube in this scene".into(),
        };
        let pictures = format!("2 x {steps} of {image_size} px");
        let success = if *success { "yes" } else { "no" };
        rows.push(vec![
            name.clone(),
            steps.to_string(),
            success.into(),
            clipped_steps.to_string(),
            height,
            pictures,
        ]);
        ui.object(&json!({
            "demo": name, "steps": steps, "success": demo.success, "clipped_steps": clipped_steps,
            "cube_height_m": cube_height_m, "pictures": 2 * steps, "out": out,
        }));
    }
    for line in table(&rows) {
        ui.line(line);
    }
}
