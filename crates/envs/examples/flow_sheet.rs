//! Draws a sheet of workbench scenes: one row per family, start and end of a motion side by side. Then makes 200 episodes
//! and says how long that took.
//!
//! `cargo run --release -p efference-envs --example flow_sheet -- OUT.png [first seed] [columns] [arm] [side]`

use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask, GenerateOptions, Motion, generate};
use efference_envs::tabletop::Quality;
use efference_envs::{Env, Error};
use image::{GenericImage, RgbImage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |a| a.parse());
    let out = args.get(1).cloned().unwrap_or_else(|| "flow_sheet.png".to_owned());
    let (first, columns, side) = (number(2, 0)?, number(3, 3)?, number(5, 320)? as usize);
    let arm = ArmKind::from_id(args.get(4).map_or("arm7", String::as_str))?;
    let cell = side as u32;
    let mut sheet = RgbImage::new(2 * cell * columns as u32, cell * FlowTask::ALL.len() as u32);
    for (row, task) in FlowTask::ALL.into_iter().enumerate() {
        let options = FlowOptions { image_size: side, quality: Quality::Pretty, ..FlowOptions::default() };
        let mut env = FlowEnv::new(task, arm, &options)?;
        for column in 0..columns {
            env.reset(first + column)?;
            let start = env.portrait(side)?;
            let motion = env.motion(0);
            let place = |sheet: &mut RgbImage, picture: &RgbImage, half: u32| {
                sheet.copy_from(picture, (2 * column as u32 + half) * cell, row as u32 * cell)
            };
            place(&mut sheet, &start, 0)?;
            match &motion {
                Ok(motion) => {
                    env.place_object(&Motion::goal(motion))?;
                    place(&mut sheet, &env.portrait(side)?, 1)?;
                }
                Err(error) => println!("{task:?} {}: {error}", first + column),
            }
            println!("{task:?} {}: {}", first + column, env.layout().instruction);
        }
    }
    sheet.save(out)?;
    let began = std::time::Instant::now();
    let made = generate(&GenerateOptions::default(), 0..200, 0, |_, _| Ok::<_, Error>(()))?;
    let secs = began.elapsed().as_secs_f64();
    println!("{made:?} in {secs:.1} s: {:.1} episodes/s", made.made as f64 / secs);
    Ok(())
}
