//! How fast MuJoCo steps and draws on this machine.
//!
//!     cargo run --release -p efference-mujoco --example probe [SCENE.xml] [SIDE_PX]

use efference_mujoco::{Data, Kind, Model, RenderQuality, Renderer, Result, version};
use std::{hint::black_box, sync::Arc, time::Instant};

const SECONDS: f64 = 1.0;

/// Calls per second, after a short warm-up.
fn rate(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..20 {
        call()?;
    }
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < SECONDS {
        call()?;
        calls += 1;
    }
    Ok(f64::from(calls) / start.elapsed().as_secs_f64())
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let scene = args
        .next()
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/scene.xml").to_owned());
    let side: usize = args.next().map_or(Ok(64), |side| side.parse())?;

    let start = Instant::now();
    let model = Arc::new(Model::from_xml_file(&scene)?);
    println!(
        "MuJoCo {}, {scene}: {} geoms, {} degrees of freedom",
        version(),
        model.count(Kind::Geom),
        model.nv()
    );
    println!("load {:.1} ms", 1e3 * start.elapsed().as_secs_f64());
    let mut data = Data::new(&model)?;
    if model.count(Kind::Keyframe) > 0 {
        data.reset_to_keyframe(0)?;
    }
    data.step(100)?;
    println!("{:>9.0} physics steps/s ({} contacts)", 10.0 * rate(|| data.step(10))?, data.contact_count());
    let state = data.state()?;
    println!("{:>9.0} states restored/s", rate(|| data.restore(&state))?);
    println!("{:>9.0} model copies/s", rate(|| model.try_clone().map(|copy| drop(black_box(copy))))?);

    println!("{side} x {side} px{:>20}{:>12}{:>14}", "first camera", "depth", "segmentation");
    let quality = |shadows, reflections, multisample| RenderQuality { shadows, reflections, multisample };
    for (name, quality) in [
        ("full", RenderQuality::FULL),
        ("no reflections", quality(true, false, 4)),
        ("no shadows", quality(false, true, 4)),
        ("only multisampling", quality(false, false, 4)),
        ("only shadows", quality(true, false, 0)),
        ("fast", RenderQuality::FAST),
    ] {
        let start = Instant::now();
        let mut renderer = Renderer::new(&model, side, side, quality)?;
        let made_ms = 1e3 * start.elapsed().as_secs_f64();
        if quality == RenderQuality::FULL {
            println!("driver: {}, {} samples", renderer.driver(), renderer.samples());
        }
        let (mut rgb, mut depth, mut ids) =
            (vec![0; 3 * side * side], vec![0.0; side * side], vec![0; side * side]);
        let colours = rate(|| renderer.render_rgb(&data, 0, &mut rgb))?;
        let depths = rate(|| renderer.render_depth(&data, 0, &mut depth))?;
        let segments = rate(|| renderer.render_segmentation(&data, 0, &mut ids))?;
        println!("{name:<20}{colours:>8.0}/s{depths:>10.0}/s{segments:>12.0}/s  (made in {made_ms:.0} ms)");
    }
    Ok(())
}
