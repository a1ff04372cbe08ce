//! Draws flows from LIBERO's packs: first picture with the points' ways on it, one column per pack.
//!
//! `cargo run --release -p efference-envs --example libero_flow -- OUT.png SUITE [seeds] [side]`

use efference_data::flow::check;
use efference_envs::flow::Recipe;
use efference_envs::libero::{LiberoRecipe, Pack, packs_dir};
use image::{GenericImage, Rgb, RgbImage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let out = args.get(1).cloned().unwrap_or_else(|| "libero_flow.png".to_owned());
    let suite = args.get(2).cloned().unwrap_or_else(|| "libero_object".to_owned());
    let seeds: u32 = args.get(3).map_or(Ok(3), |a| a.parse())?;
    let side: u32 = args.get(4).map_or(Ok(256), |a| a.parse())?;
    let packs: Vec<_> =
        (0..10).filter_map(|task| Pack::open(Pack::find(&packs_dir(), &suite, task).ok()?).ok()).collect();
    let mut sheet = RgbImage::new(side * packs.len() as u32, side * seeds);
    for (column, pack) in packs.iter().enumerate() {
        for row in 0..seeds {
            let recipe =
                LiberoRecipe { packs: vec![pack.clone()], first: u64::from(row), image_size: side as usize };
            let began = std::time::Instant::now();
            match recipe.episode(0) {
                Ok(episode) => {
                    let mut picture = episode.image.clone();
                    for t in 0..episode.flow.frames() {
                        for point in episode.flow.at(t) {
                            let Some([u, v, _]) = episode.camera.project(point) else { continue };
                            if u >= 0.0 && v >= 0.0 && u < f64::from(side) && v < f64::from(side) {
                                let warm = (30 * t) as u8;
                                picture.put_pixel(u as u32, v as u32, Rgb([255 - warm / 2, warm, 40]));
                            }
                        }
                    }
                    sheet.copy_from(&picture, column as u32 * side, row * side)?;
                    println!("{} {row}: {:?} {:.2?}", pack.id(), check(&episode), began.elapsed());
                }
                Err(error) => println!("{} {row}: {error}", pack.id()),
            }
        }
    }
    sheet.save(out)?;
    Ok(())
}
