//! What turns the frames of an episode into one vector, so that episodes can be compared (SRPO, arXiv 2511.15605).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::Result;
use crate::vla::expect;

/// Frames to a vector. Equal frames give equal vectors, whatever the number of threads.
pub trait EpisodeEncoder: Send + Sync {
    /// Length of the vector.
    fn dim(&self) -> usize;

    /// How many frames of an episode are looked at, F: those at [`sample_frame_indices`]. A caller may render just these.
    fn frames(&self) -> usize;

    /// The vector of one episode. `frames`: all its frames in order, or those at [`sample_frame_indices`]; each
    /// [height, width, 3] bytes, top row first. No frames give the zero vector, which SRPO scores as 0.
    ///
    /// # Errors
    /// A frame of another size.
    fn embed(&self, frames: &[&[u8]], width: usize, height: usize) -> Result<Vec<f32>>;
}

/// Which of `n` frames stand for an episode (siiRL `video_emb.py:get_embeddings`): `trunc(linspace(0, n - 1, count))`
/// when there are enough, all of them over and over when there are fewer, none of none.
pub fn sample_frame_indices(n: usize, count: usize) -> Vec<usize> {
    match (n, count) {
        (0, _) | (_, 0) => Vec::new(),
        (_, 1) => vec![0],
        _ if n < count => (0..count).map(|i| i % n).collect(),
        _ => {
            // As numpy: i * step, and the last point exactly n - 1.
            let step = (n - 1) as f64 / (count - 1) as f64;
            (0..count).map(|i| if i + 1 == count { n - 1 } else { (i as f64 * step) as usize }).collect()
        }
    }
}

/// Channels after each convolution.
const CHANNELS: [usize; 4] = [3, 8, 16, 32];
/// Cells per side into which the last feature map is averaged.
const GRID: usize = 4;

/// Fixed random convolutional features: three 3 x 3 convolutions with stride 2 and ReLU, averaged over a 4 x 4 grid.
/// The vector is the mean over the sampled frames followed by the features of the very last frame, so that how an
/// episode ends counts as much as how it went. Random features keep distances (Rahimi and Recht 2007); nothing is
/// learned, so no world model is needed.
pub struct RandomConv {
    frames: usize,
    kernels: [Vec<f32>; 3], // [3, 3, C_in, C_out]
}

impl RandomConv {
    /// Weights from `seed`; looks at `frames` frames per episode (at least 1).
    pub fn new(seed: u64, frames: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kernels = std::array::from_fn(|layer| {
            let (inputs, outputs) = (CHANNELS[layer], CHANNELS[layer + 1]);
            // Uniform with He's variance 2 / fan_in.
            let reach = (6.0 / (9 * inputs) as f32).sqrt();
            (0..9 * inputs * outputs).map(|_| rng.random_range(-reach..reach)).collect()
        });
        Self { frames: frames.max(1), kernels }
    }

    /// Features of one frame, [GRID * GRID * 32].
    fn frame(&self, rgb: &[u8], width: usize, height: usize) -> Vec<f32> {
        let input: Vec<f32> = rgb.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect();
        let (x, w, h) = convolve::<3, 8>(&input, width, height, &self.kernels[0]);
        let (x, w, h) = convolve::<8, 16>(&x, w, h, &self.kernels[1]);
        let (x, w, h) = convolve::<16, 32>(&x, w, h, &self.kernels[2]);
        pool(&x, w, h, CHANNELS[3])
    }
}

impl EpisodeEncoder for RandomConv {
    fn dim(&self) -> usize {
        2 * GRID * GRID * CHANNELS[3]
    }

    fn frames(&self) -> usize {
        self.frames
    }

    fn embed(&self, frames: &[&[u8]], width: usize, height: usize) -> Result<Vec<f32>> {
        let bytes = 3 * width * height;
        let odd = frames.iter().map(|f| f.len()).find(|&n| n != bytes || n == 0);
        expect("frames", &[odd.unwrap_or(bytes)], odd.is_none(), &format!("{bytes} bytes each, above 0"))?;
        let half = self.dim() / 2;
        let Some(last) = frames.len().checked_sub(1) else { return Ok(vec![0.0; self.dim()]) };
        // Each frame once, however often it counts.
        let mut times = vec![0u32; frames.len()];
        sample_frame_indices(frames.len(), self.frames).into_iter().for_each(|i| times[i] += 1);
        let features: Vec<(u32, Vec<f32>)> = frames
            .par_iter()
            .zip(&times)
            .enumerate()
            .filter(|(i, (_, times))| **times > 0 || *i == last)
            .map(|(_, (frame, &times))| (times, self.frame(frame, width, height)))
            .collect();
        let mut out = vec![0.0; self.dim()];
        for (times, feature) in &features {
            let weight = *times as f32 / self.frames as f32;
            out[..half].iter_mut().zip(feature).for_each(|(o, f)| *o += weight * f);
        }
        if let Some((_, feature)) = features.last() {
            out[half..].copy_from_slice(feature);
        }
        Ok(out)
    }
}

/// 3 x 3, stride 2, zero padding 1, then ReLU: [h, w, I] to [ceil(h/2), ceil(w/2), O].
fn convolve<const I: usize, const O: usize>(
    x: &[f32],
    width: usize,
    height: usize,
    kernel: &[f32],
) -> (Vec<f32>, usize, usize) {
    let (w, h) = (width.div_ceil(2), height.div_ceil(2));
    let (taps, _) = kernel.as_chunks::<O>();
    let (pixels, _) = x.as_chunks::<I>();
    let mut out = vec![0.0; w * h * O];
    let (cells, _) = out.as_chunks_mut::<O>();
    for (at, cell) in cells.iter_mut().enumerate() {
        let (row, column) = (2 * (at / w), 2 * (at % w));
        let mut sum = [0.0; O];
        for ky in 0..3 {
            let y = row + ky;
            if y == 0 || y > height {
                continue;
            }
            for kx in 0..3 {
                let x = column + kx;
                if x == 0 || x > width {
                    continue;
                }
                let pixel = &pixels[(y - 1) * width + x - 1];
                for (value, tap) in pixel.iter().zip(&taps[(3 * ky + kx) * I..]) {
                    for (s, t) in sum.iter_mut().zip(tap) {
                        *s += value * t;
                    }
                }
            }
        }
        *cell = sum.map(|s| s.max(0.0));
    }
    (out, w, h)
}

/// Mean over a GRID x GRID partition: [h, w, C] to [GRID, GRID, C]. Maps smaller than the grid repeat their pixels.
fn pool(x: &[f32], width: usize, height: usize, channels: usize) -> Vec<f32> {
    let cell = |i: usize, size: usize| {
        let (start, end) = (i * size / GRID, ((i + 1) * size).div_ceil(GRID));
        start..end.max(start + 1)
    };
    let mut out = Vec::with_capacity(GRID * GRID * channels);
    for gy in 0..GRID {
        for gx in 0..GRID {
            let (rows, columns) = (cell(gy, height), cell(gx, width));
            let count = (rows.len() * columns.len()) as f32;
            let mut sum = vec![0.0; channels];
            for y in rows {
                for x_at in columns.clone() {
                    let pixel = &x[(y * width + x_at) * channels..][..channels];
                    sum.iter_mut().zip(pixel).for_each(|(s, p)| *s += p);
                }
            }
            out.extend(sum.into_iter().map(|s| s / count));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frame_indices_follow_the_rule() {
        assert_eq!(sample_frame_indices(0, 4), Vec::<usize>::new());
        assert_eq!(sample_frame_indices(1, 3), [0, 0, 0]);
        assert_eq!(sample_frame_indices(3, 5), [0, 1, 2, 0, 1]);
        assert_eq!(sample_frame_indices(4, 4), [0, 1, 2, 3]);
        assert_eq!(sample_frame_indices(10, 4), [0, 3, 6, 9]);
        assert_eq!(sample_frame_indices(11, 4), [0, 3, 6, 10]); // 0, 3.33, 6.67, 10 cut
        for n in 64..300 {
            let picked = sample_frame_indices(n, 64);
            assert_eq!((picked.len(), picked[0], picked[63]), (64, 0, n - 1));
            assert!(picked.windows(2).all(|w| w[0] < w[1]));
        }
    }

    fn frames(n: usize, side: usize) -> Vec<Vec<u8>> {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        (0..n).map(|_| (0..3 * side * side).map(|_| rng.random()).collect()).collect()
    }

    fn refs(frames: &[Vec<u8>]) -> Vec<&[u8]> {
        frames.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn convolution_matches_the_definition() {
        let (w, h) = (5, 4);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let x: Vec<f32> = (0..w * h * 3).map(|_| rng.random_range(-1.0..1.0)).collect();
        let k: Vec<f32> = (0..9 * 3 * 8).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (y, ow, oh) = convolve::<3, 8>(&x, w, h, &k);
        assert_eq!((ow, oh), (3, 2));
        for oy in 0..oh {
            for ox in 0..ow {
                for o in 0..8 {
                    let mut sum = 0.0;
                    for (ky, kx) in (0..9).map(|t| (t / 3, t % 3)) {
                        let (iy, ix) = ((2 * oy + ky) as i64 - 1, (2 * ox + kx) as i64 - 1);
                        if (0..h as i64).contains(&iy) && (0..w as i64).contains(&ix) {
                            let at = (iy as usize * w + ix as usize) * 3;
                            sum +=
                                (0..3).map(|i| x[at + i] * k[((ky * 3 + kx) * 3 + i) * 8 + o]).sum::<f32>();
                        }
                    }
                    assert!((y[(oy * ow + ox) * 8 + o] - sum.max(0.0)).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn picked_frames_give_the_same_vector_as_all_frames() {
        let encoder = RandomConv::new(3, 4);
        let all = frames(11, 16);
        let picked: Vec<&[u8]> = sample_frame_indices(11, 4).into_iter().map(|i| all[i].as_slice()).collect();
        let whole = encoder.embed(&refs(&all), 16, 16).unwrap();
        assert_eq!(whole.len(), encoder.dim());
        assert_eq!(whole, encoder.embed(&picked, 16, 16).unwrap());
    }

    #[test]
    fn the_end_counts_seeds_differ_and_nothing_is_zero() {
        let encoder = RandomConv::new(3, 2);
        let mut all = frames(5, 16);
        let before = encoder.embed(&refs(&all), 16, 16).unwrap();
        assert_ne!(before, RandomConv::new(4, 2).embed(&refs(&all), 16, 16).unwrap());
        all[2][7] ^= 255; // not among the sampled two (first and last)
        assert_eq!(before, encoder.embed(&refs(&all), 16, 16).unwrap());
        all[4][7] ^= 255;
        let after = encoder.embed(&refs(&all), 16, 16).unwrap();
        assert_ne!(before[512..], after[512..]);
        assert_eq!(encoder.embed(&[], 16, 16).unwrap(), vec![0.0; 1024]);
    }

    #[test]
    fn frames_of_other_sizes_are_refused_and_odd_sizes_work() {
        let encoder = RandomConv::new(0, 2);
        assert!(encoder.embed(&refs(&frames(2, 16)), 16, 15).is_err());
        assert!(encoder.embed(&[&[]], 0, 0).is_err());
        for side in [1, 7, 33] {
            assert!(
                encoder.embed(&refs(&frames(1, side)), side, side).unwrap().iter().all(|x| x.is_finite())
            );
        }
    }
}
