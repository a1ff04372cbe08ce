//! Demonstrations as supervised examples: what was seen at a control step, and the chunk of actions that followed.

use std::sync::Arc;

use efference_data::{Episode, RgbImage};
use efference_rollout::{Look, VlaPolicy};
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Why a set of demonstrations cannot be learned from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy looks through a camera that the demonstration has not.
    #[error("a demonstration of `{task}` has no camera `{camera}`; it has: {}", present.join(", "))]
    NoCamera {
        /// The camera.
        camera: String,
        /// Cameras there are.
        present: Vec<String>,
        /// Task of the demonstration.
        task: String,
    },
    /// Images of another size than the network reads.
    #[error("images of camera `{camera}` are {}x{} px, the network reads {expected}x{expected}\n  hint: set `env.image_size` to {}, or make the demonstrations again with `--image-size {expected}`", got.0, got.1, got.0)]
    FrameSize {
        /// The camera.
        camera: String,
        /// Width and height, pixels.
        got: (u32, u32),
        /// Side the network reads, pixels.
        expected: usize,
    },
    /// Nothing to learn from.
    #[error("the demonstrations hold no frame to learn from")]
    NoExamples,
    /// The policy refused an instruction.
    #[error("cannot tokenise an instruction")]
    Policy(#[source] Box<efference_rollout::Error>),
}

type Result<T> = std::result::Result<T, Error>;

/// One supervised example.
#[derive(Clone, Debug)]
pub struct Example {
    /// What the policy sees.
    pub look: Look,
    /// Target action bins, [K * A].
    pub targets: Vec<u32>,
}

/// All control steps of a set of demonstrations at which a frame was stored.
pub struct DecisionSet {
    examples: Vec<Example>,
    image_size: usize,
}

impl DecisionSet {
    /// Cuts `episodes` into examples. The chunk after step t is `actions[t..t + K]`; past the end of the episode the
    /// arm rests (zero motion) and the gripper keeps its last command.
    ///
    /// # Errors
    /// A camera the policy needs is missing, images have another size, or an instruction is too long.
    pub fn new(episodes: &[Episode], cameras: &[String], policy: &VlaPolicy) -> Result<Self> {
        let image_size = policy.image_size();
        let mut examples = Vec::new();
        for episode in episodes {
            let prompt = policy.prompt(&episode.meta.instruction).map_err(|e| Error::Policy(Box::new(e)))?;
            let views = cameras
                .iter()
                .map(|name| view(episode, name, image_size))
                .collect::<Result<Vec<&[RgbImage]>>>()?;
            for (frame, &step) in episode.frame_steps.iter().enumerate() {
                let step = step as usize;
                let pixels = views.iter().flat_map(|frames| frames[frame].as_raw().iter().copied()).collect();
                let look = Look { pixels, proprio: episode.proprio[step], prompt: Arc::clone(&prompt) };
                let targets = policy.encode_chunk(&chunk_after(episode, step, policy.chunk()));
                examples.push(Example { look, targets });
            }
        }
        if examples.is_empty() {
            return Err(Error::NoExamples);
        }
        Ok(Self { examples, image_size })
    }

    /// What [`new`](Self::new) would refuse, without cutting.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check(episodes: &[Episode], cameras: &[String], policy: &VlaPolicy) -> Result<()> {
        for episode in episodes {
            policy.prompt(&episode.meta.instruction).map_err(|e| Error::Policy(Box::new(e)))?;
            for camera in cameras {
                view(episode, camera, policy.image_size())?;
            }
        }
        if episodes.iter().all(|e| e.frame_steps.is_empty()) { Err(Error::NoExamples) } else { Ok(()) }
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Never true: [`new`](Self::new) refuses an empty set.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// All examples in order.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// `batch` examples drawn with replacement by `seed`, images shifted by up to `shift_px` pixels (edge pixels are
    /// repeated; all cameras of an example move together).
    pub fn draw(&self, batch: usize, shift_px: usize, seed: u64) -> Vec<Example> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let reach = shift_px as i64;
        (0..batch)
            .map(|_| {
                let mut example = self.examples[rng.random_range(0..self.examples.len())].clone();
                if reach > 0 {
                    let (dx, dy) = (rng.random_range(-reach..=reach), rng.random_range(-reach..=reach));
                    example.look.pixels = shifted(&example.look.pixels, self.image_size, dx, dy);
                }
                example
            })
            .collect()
    }
}

fn view<'e>(episode: &'e Episode, camera: &str, image_size: usize) -> Result<&'e [RgbImage]> {
    let frames = episode.cameras.get(camera).ok_or_else(|| Error::NoCamera {
        camera: camera.into(),
        present: episode.cameras.keys().cloned().collect(),
        task: episode.meta.task.clone(),
    })?;
    match frames.first().map(RgbImage::dimensions) {
        Some((w, h)) if (w as usize, h as usize) != (image_size, image_size) => {
            Err(Error::FrameSize { camera: camera.into(), got: (w, h), expected: image_size })
        }
        _ => Ok(frames),
    }
}

/// `actions[step..step + chunk]`, padded at the end with rest.
fn chunk_after(episode: &Episode, step: usize, chunk: usize) -> Vec<[f32; 7]> {
    let rest = episode.actions.last().map_or([0.0; 7], |last| [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, last[6]]);
    (step..step + chunk).map(|t| episode.actions.get(t).copied().unwrap_or(rest)).collect()
}

/// Every [S, S, 3] image in `pixels` moved by (dx, dy) pixels; pixels that come from outside repeat the edge.
fn shifted(pixels: &[u8], size: usize, dx: i64, dy: i64) -> Vec<u8> {
    let edge = size as i64 - 1;
    let mut out = Vec::with_capacity(pixels.len());
    for image in pixels.chunks_exact(size * size * 3) {
        for y in 0..size as i64 {
            let row = ((y - dy).clamp(0, edge) as usize) * size;
            for x in 0..size as i64 {
                let at = 3 * (row + (x - dx).clamp(0, edge) as usize);
                out.extend_from_slice(&image[at..at + 3]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;
    use efference_data::{EpisodeMeta, Source};
    use efference_nets::{ParamStore, Quantiles, Tokenizer, Vla, VlaConfig};

    fn policy() -> VlaPolicy {
        let tokenizer = Tokenizer::built_in().unwrap();
        let mut params = ParamStore::new(0, Device::Cpu);
        let net = Vla::new(&mut params, &VlaConfig::quickstart(), tokenizer.special()).unwrap();
        let (action_stats, proprio_stats) = (Quantiles::unit(7), Quantiles::unit(8));
        VlaPolicy { net, params, tokenizer, action_stats, proprio_stats }
    }

    /// Ten steps that move ever further, with a frame at every third, and the gripper closed.
    fn episode(side: u32) -> Episode {
        let frame = |f: u8| RgbImage::from_pixel(side, side, image::Rgb([f, 0, 0]));
        Episode {
            meta: EpisodeMeta {
                task: "t".into(),
                instruction: "push the cube".into(),
                seed: 0,
                success: true,
                source: Source::Scripted,
                mujoco_version: "3.3.2".into(),
                control_hz: 20.0,
                extra: Default::default(),
            },
            cameras: ["a", "b"].map(|c| (c.to_string(), (0..4).map(frame).collect())).into(),
            frame_steps: vec![0, 3, 6, 9],
            proprio: (0..10).map(|t| [t as f32; 8]).collect(),
            actions: (0..10).map(|t| [t as f32 / 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]).collect(),
            rewards: vec![0.0; 10],
            states: None,
        }
    }

    #[test]
    fn an_example_is_what_was_seen_and_what_followed() {
        let policy = policy();
        let cameras = ["a".to_string(), "b".to_string()];
        let set = DecisionSet::new(&[episode(64)], &cameras, &policy).unwrap();
        assert_eq!((set.len(), set.examples()[2].look.proprio[0]), (4, 6.0));
        assert_eq!(set.examples()[2].look.pixels.len(), 2 * 64 * 64 * 3);
        assert_eq!(set.examples()[2].look.pixels[0], 2);
        let chunk = policy.decode_chunk(&set.examples()[2].targets);
        let x: Vec<f32> = chunk.iter().map(|action| (action[0] * 10.0).round()).collect();
        assert_eq!(x, [6.0, 7.0, 8.0, 9.0, 0.0, 0.0, 0.0, 0.0], "after the end the arm rests");
        assert!(chunk.iter().all(|action| action[6] > 0.99), "and the gripper keeps its command");
        let draw =
            |seed| set.draw(5, 2, seed).into_iter().map(|e| (e.look.pixels, e.targets)).collect::<Vec<_>>();
        assert!(draw(1) == draw(1) && draw(1) != draw(2));
    }

    #[test]
    fn unusable_demonstrations_are_named() {
        let policy = policy();
        let new = |episodes: &[Episode], camera: &str| {
            DecisionSet::new(episodes, &[camera.to_string()], &policy).err().unwrap().to_string()
        };
        assert!(new(&[episode(64)], "c").contains("no camera `c`; it has: a, b"));
        assert!(new(&[episode(32)], "a").contains("32x32 px, the network reads 64x64"));
        assert!(new(&[], "a").contains("no frame"));
    }

    #[test]
    fn a_shift_moves_pixels_and_repeats_edges() {
        let size = 3;
        let image: Vec<u8> = (0..9).flat_map(|i| [i, 100 + i, 200]).collect();
        let two = [image.clone(), image].concat();
        assert_eq!(shifted(&two, size, 0, 0), two);
        let right = shifted(&two, size, 1, 0);
        assert_eq!(right.iter().step_by(3).copied().take(9).collect::<Vec<_>>(), [0, 0, 1, 3, 3, 4, 6, 6, 7]);
        assert_eq!(right[..27], right[27..]);
        let up = shifted(&two, size, 0, -1);
        assert_eq!(up.iter().step_by(3).copied().take(9).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8, 6, 7, 8]);
    }
}
