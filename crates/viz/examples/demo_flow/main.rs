//! Pictures, films and recordings of made-up flows, for work on their looks.
//!
//! `cargo run --release -p efference-viz --example demo_flow -- OUT [FILM...]`. Nothing here is a result: the scenes are a few
//! shapes drawn by rays, the "predictions" the truth with a made-up error.

mod made_up;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;
use std::{env, fs};

use efference_viz::flow::{FlowRecorder, MovieOptions, movie, page, sheet};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::args().nth(1).unwrap_or_else(|| "demo_out".into()));
    fs::create_dir_all(&out)?;
    let tasks = made_up::tasks();
    let scenes: Vec<_> = tasks.iter().map(|task| made_up::scene(task, 128, 8, 128)).collect();
    for scene in &scenes {
        let start = Instant::now();
        page(scene)?.save(out.join(format!("{}.png", scene.name)))?;
        println!("{}.png: {:?}", scene.name, start.elapsed());
    }
    sheet(&scenes)?.save(out.join("sheet.png"))?;
    if efference_viz::HAS_RERUN {
        let path = out.join("flow.rrd");
        let mut recorder = FlowRecorder::create(&path)?;
        recorder.scene(&scenes[0])?;
        recorder.finish()?;
        println!("flow.rrd: {} bytes", fs::metadata(&path)?.len());
    }
    for name in env::args().skip(2) {
        let start = Instant::now();
        movie(&scenes[0], &out.join(&name), &MovieOptions::default())?;
        println!("{name}: {:?}, {} bytes", start.elapsed(), fs::metadata(out.join(&name))?.len());
    }
    Ok(())
}
