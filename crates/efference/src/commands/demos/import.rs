//! `efference demos import`: people's recorded demonstrations become episodes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use clap::builder::RangedU64ValueParser;
use efference_envs::robosuite_import::{ImportedDemo, import_hdf5};
use efference_train::report::Event;
use serde_json::json;

use crate::errors::{Failure, Result};
use crate::native;
use crate::text::{count, table};
use crate::ui::Ui;

/// Replay a robomimic-style .hdf5 file (robosuite, LIBERO) and store it as episodes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The recorded states are shown by the simulator again and both cameras are drawn at every step. `cargo xtask real-data` \
fetches three human demonstrations of lifting a cube, and the meshes they need.")]
pub(crate) struct Args {
    /// The demonstrations
    #[arg(value_name = "FILE.hdf5")]
    file: PathBuf,
    /// Folder to make; it must not hold episodes yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder that holds robosuite's `models/assets` [default: where `cargo xtask real-data` puts it]
    #[arg(long, value_name = "DIR")]
    assets: Option<PathBuf>,
    /// Side of the pictures in pixels, 8 to 1024
    #[arg(long, value_name = "PX", default_value_t = 64, value_parser = RangedU64ValueParser::<u64>::new().range(8..=1024))]
    image_size: u64,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
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
