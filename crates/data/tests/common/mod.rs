//! Episodes and folders for the tests.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use efference_data::{Episode, EpisodeMeta, EpisodeWriter, Source, States};
use image::{Rgb, RgbImage};

/// A valid episode with one camera of 16x12 px that looks at every second step.
pub fn episode(steps: u32, seed: u64) -> Episode {
    let frame_steps: Vec<u32> = (0..steps).step_by(2).collect();
    let pixel = |f: u32, x: u32, y: u32| Rgb([(x * 7 + f) as u8, (y * 5) as u8, seed as u8]);
    let picture = |&f: &u32| RgbImage::from_fn(16, 12, |x, y| pixel(f, x, y));
    Episode {
        meta: EpisodeMeta {
            task: "pick_red_cube".into(),
            instruction: "pick up the red cube".into(),
            seed,
            success: true,
            source: Source::Scripted,
            mujoco_version: "3.3.2".into(),
            control_hz: 20.0,
            extra: BTreeMap::new(),
        },
        cameras: BTreeMap::from([("front".into(), frame_steps.iter().map(picture).collect())]),
        proprio: (0..steps).map(|t| [t as f32; 8]).collect(),
        actions: (0..steps).map(|t| [(t as f32).sin(); 7]).collect(),
        rewards: vec![0.5; steps as usize],
        states: Some(States { width: 2, values: (0..2 * steps).map(|i| f64::from(i) / 3.0).collect() }),
        frame_steps,
    }
}

/// Makes a store of `episode(4, 0)`, `episode(4, 1)`, ….
pub fn filled(dir: &Path, episodes: u64) {
    let mut writer = EpisodeWriter::create(dir).unwrap();
    for seed in 0..episodes {
        assert_eq!(writer.append(&episode(4, seed)).unwrap() as u64, seed);
    }
}

pub fn file(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("episode_{n:05}.safetensors"))
}
