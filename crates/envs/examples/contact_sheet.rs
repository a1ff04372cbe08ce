//! The six tasks, first and last frame of the expert's episode from both cameras, as one PNG.
//!
//! `cargo run --release -p efference-envs --example contact_sheet [FILE.png]`

use std::error::Error;

use efference_envs::tabletop::{CAMERAS, Expert, Quality, TabletopEnv, TabletopOptions, Task, eval_seed};
use efference_envs::{Env, RgbImage};

const SIDE: u32 = 256;
const GAP: u32 = 6;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "docs/images/tabletop.png".to_owned());
    let options =
        TabletopOptions { image_size: SIDE as usize, quality: Quality::Pretty, ..TabletopOptions::default() };
    // A column per task; rows: first and last from the front, first and last from the hand.
    let cell = SIDE + GAP;
    let (columns, rows) = (Task::ALL.len() as u32, 4);
    let mut sheet = RgbImage::from_pixel(columns * cell + GAP, rows * cell + GAP, [255; 3].into());
    for (column, task) in Task::ALL.into_iter().enumerate() {
        let mut env = TabletopEnv::with_task(task, &options)?;
        env.reset(eval_seed(column))?;
        let first = env.snapshot();
        let mut expert = Expert::new(task);
        let steps = loop {
            let outcome = env.step(&expert.act(&env))?;
            if outcome.done {
                break outcome.steps;
            }
        };
        println!("{:20} {steps} steps: {}", task.id(), env.instruction());
        for (c, camera) in CAMERAS.iter().enumerate() {
            for (f, image) in [env.render_snapshot(&first, camera)?, env.render(camera)?].iter().enumerate() {
                let (x0, y0) = (GAP + column as u32 * cell, GAP + (2 * c + f) as u32 * cell);
                for (x, y, pixel) in image.enumerate_pixels() {
                    sheet.put_pixel(x0 + x, y0 + y, *pixel);
                }
            }
        }
    }
    if let Some(folder) = std::path::Path::new(&path).parent() {
        std::fs::create_dir_all(folder)?;
    }
    sheet.save(&path)?;
    println!("{path}");
    Ok(())
}
