//! Replays robosuite's human demonstrations of lifting a cube, and stores them as episodes.
//!
//! `cargo run --release -p efference-envs --example robosuite_replay [OUT_DIR [IMAGE_SIZE]]` after
//! `cargo xtask real-data`. Writes `OUT_DIR/episodes` and one strip of pictures per demonstration.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use efference_data::{EpisodeStore, RgbImage};
use efference_envs::robosuite_import::import_hdf5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let out = args.next().map_or_else(|| std::env::temp_dir().join("robosuite_replay"), PathBuf::from);
    let size = args.next().map_or(Ok(64), |size| size.parse())?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let assets = target.join("native/robosuite-1.4.1");
    let file = assets.join("models/assets/demonstrations/lift/demo.hdf5");

    let start = Instant::now();
    let progress = |done: usize, all: usize| {
        if done.is_multiple_of(100) || done == all {
            eprintln!("{done} of {all} steps drawn, {:.1} s", start.elapsed().as_secs_f64());
        }
    };
    let report = import_hdf5(&file, &assets, &out.join("episodes"), size, &progress)?;

    println!("MuJoCo {}, `{}`: {}", efference_envs::mujoco_version(), report.task, report.instruction);
    println!("demo     steps  clipped  cube start  highest     end  lifted");
    for demo in &report.demos {
        let [first, highest, last] = demo.cube_height_m.unwrap_or([f64::NAN; 3]);
        println!(
            "{:8} {:5} {:8} {first:11.4} {highest:8.4} {last:7.4}  {}",
            demo.name, demo.steps, demo.clipped_steps, demo.success
        );
    }
    for (index, episode) in
        EpisodeStore::open(out.join("episodes"))?.iter(efference_data::OnCorrupt::Error).enumerate()
    {
        let path = out.join(format!("strip_{index}.png"));
        strip(&episode?.cameras, 8).save(&path)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// `columns` moments side by side, one row per camera.
fn strip(cameras: &std::collections::BTreeMap<String, Vec<RgbImage>>, columns: usize) -> RgbImage {
    let side = cameras.values().next().and_then(|frames| frames.first()).map_or(1, RgbImage::width);
    let mut out = RgbImage::new(side * columns as u32, side * cameras.len() as u32);
    for (row, frames) in cameras.values().enumerate() {
        for column in 0..columns {
            let frame = &frames[column * (frames.len() - 1) / (columns - 1)];
            for (x, y, pixel) in frame.enumerate_pixels() {
                out.put_pixel(column as u32 * side + x, row as u32 * side + y, *pixel);
            }
        }
    }
    out
}
