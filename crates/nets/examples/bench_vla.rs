//! Speed of the quickstart network: `cargo run --release -p efference-nets --example bench_vla`.

use std::time::Instant;

use candle_core::{Device, Tensor};
use efference_nets::{
    Draw, EpisodeEncoder, ParamStore, RandomConv, SpecialIds, Vla, VlaConfig, VlaInput, action_nll,
};

fn input(config: &VlaConfig, rows: usize) -> candle_core::Result<VlaInput> {
    let s = config.vision.image_size;
    Ok(VlaInput {
        pixels: Tensor::rand(-1f32, 1.0, (rows, config.num_images, 3, s, s), &Device::Cpu)?,
        proprio: Tensor::rand(-1f32, 1.0, (rows, config.proprio_dim), &Device::Cpu)?,
        prompts: vec![vec![3, 4, 5, 6, 7, 8, 9, 10, 11]; rows],
    })
}

/// Seconds per call, the best of several after one call to warm up.
fn best(
    mut f: impl FnMut() -> Result<(), Box<dyn std::error::Error>>,
) -> Result<f64, Box<dyn std::error::Error>> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for patch_size in [8, 16] {
        let mut config = VlaConfig::quickstart();
        config.vision.patch_size = patch_size;
        let mut store = ParamStore::new(0, Device::Cpu);
        let net = Vla::new(&mut store, &config, SpecialIds { pad: 0, bos: 1, eos: 2 })?;
        let flops = config.flops_per_decision() as f64;
        println!(
            "patch {patch_size}: {:.2} M parameters, {} positions, {:.0} MFLOP per decision",
            store.count() as f64 / 1e6,
            config.sequence_len(),
            flops / 1e6
        );
        for rows in [1, 8, 48] {
            let look = input(&config, rows)?;
            let draws: Vec<Draw> = (0..rows as u64).map(Draw::Tokens).collect();
            let secs = best(|| Ok(net.sample(&look, 1.6, &draws).map(|_| ())?))?;
            let rate = rows as f64 / secs;
            println!(
                "  batch {rows:>2}: {rate:>6.0} decisions/s sampled ({:.1} GFLOP/s)",
                rate * flops / 1e9
            );
        }
        for rows in [32, 64] {
            let look = input(&config, rows)?;
            let bins = vec![vec![128u32; config.action_tokens()]; rows];
            let bins: Vec<&[u32]> = bins.iter().map(Vec::as_slice).collect();
            let secs = best(|| {
                let loss = action_nll(&net.forward(&look)?, &bins, &[0.0])?.mean_all()?;
                loss.backward()?;
                Ok(())
            })?;
            let rate = rows as f64 / secs;
            println!(
                "  batch {rows:>2}: {rate:>6.0} decisions/s trained, {:.0} action tokens/s ({:.1} GFLOP/s)",
                rate * config.action_tokens() as f64,
                3.0 * rate * flops / 1e9
            );
        }
    }
    let frames = vec![vec![77u8; 64 * 64 * 3]; 16];
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let encoder = RandomConv::new(0, 16);
    let secs = best(|| Ok(encoder.embed(&frames, 64, 64).map(|_| ())?))?;
    println!("RandomConv: {:.2} ms for 16 frames of 64 x 64", secs * 1e3);
    Ok(())
}
