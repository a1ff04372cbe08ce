//! A small convolutional network that scores final pictures.

use candle_core::{Device, Tensor};
use efference_nets::{Init, ParamPath, ParamStore, Result};
use efference_ops as ops;

/// Side of the network's picture.
pub(super) const SIDE: usize = 64;
/// Channels of the network's picture: colours, place relative to the moved object's middle (world axes), moved or not.
pub(super) const CHANNELS: usize = 7;
/// Channels after each convolution.
const WIDTHS: [usize; 4] = [24, 40, 64, 80];
/// Words are hashed into so many vectors.
const BUCKETS: usize = 512;
const TEXT: usize = 32;
const HIDDEN: usize = 128;
const EPS: f64 = 1e-5;

struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    fn new(mut path: ParamPath<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let std = (2.0 / (9 * inputs) as f32).sqrt();
        let weight = path.get("weight", &[outputs, inputs, 3, 3], Init::Normal(std))?;
        Ok(Self { weight, bias: path.get("bias", &[outputs], Init::Constant(0.0))? })
    }

    /// Halves the sides.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::gelu_tanh(&ops::conv2d(x, &self.weight, Some(&self.bias), (2, 2), (1, 1))?)?)
    }
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(mut path: ParamPath<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let std = (inputs as f32).sqrt().recip();
        let weight = path.get("weight", &[outputs, inputs], Init::Normal(std))?;
        Ok(Self { weight, bias: path.get("bias", &[outputs], Init::Constant(0.0))? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, Some(&self.bias))?)
    }
}

/// Pictures and texts to two logits, refusal and acceptance.
pub(super) struct Network {
    words: Tensor,
    /// Text to a bias on the second convolution's channels.
    steer: Linear,
    convs: Vec<Conv>,
    norm: [Tensor; 2],
    hidden: Linear,
    out: Linear,
}

impl Network {
    /// Registers its weights below `path`.
    pub fn new(mut path: ParamPath<'_>) -> Result<Self> {
        let words = path.get("words.weight", &[BUCKETS, TEXT], Init::Normal(0.5))?;
        let steer = Linear::new(path.pp("steer"), TEXT, WIDTHS[1])?;
        let mut convs = Vec::new();
        let mut inputs = CHANNELS;
        for (i, width) in WIDTHS.into_iter().enumerate() {
            convs.push(Conv::new(path.pp(&format!("convs.{i}")), inputs, width)?);
            inputs = width;
        }
        let cells = (SIDE >> WIDTHS.len()).pow(2) * inputs + TEXT;
        let norm = [
            path.get("norm.weight", &[cells], Init::Constant(1.0))?,
            path.get("norm.bias", &[cells], Init::Constant(0.0))?,
        ];
        let hidden = Linear::new(path.pp("hidden"), cells, HIDDEN)?;
        let out = Linear::new(path.pp("out"), HIDDEN, 2)?;
        Ok(Self { words, steer, convs, norm, hidden, out })
    }

    /// Pictures [B, CHANNELS, SIDE, SIDE] in -1..=1, word shares [B, BUCKETS] -> logits [B, 2].
    pub fn forward(&self, pictures: &Tensor, words: &Tensor) -> Result<Tensor> {
        let text = ops::linear(words, &self.words.t()?.contiguous()?, None)?;
        let mut x = pictures.clone();
        for (i, conv) in self.convs.iter().enumerate() {
            x = conv.forward(&x)?;
            if i == 1 {
                let bias = self.steer.forward(&text)?.unsqueeze(2)?.unsqueeze(3)?;
                x = x.broadcast_add(&bias)?;
            }
        }
        let flat = Tensor::cat(&[&x.flatten_from(1)?, &text], 1)?;
        let flat = ops::layer_norm(&flat, &self.norm[0], &self.norm[1], EPS)?;
        self.out.forward(&ops::gelu_tanh(&self.hidden.forward(&flat)?)?)
    }
}

/// A stored picture (bytes, 0 to 255) as numbers from -1 to 1.
pub(super) fn as_values(picture: &[u8]) -> Vec<f32> {
    picture.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect()
}

/// A batch of pictures and instructions as tensors.
pub(super) fn batch(pictures: Vec<Vec<f32>>, instructions: &[&str]) -> Result<[Tensor; 2]> {
    let n = pictures.len();
    let values = pictures.concat();
    let pictures = Tensor::from_vec(values, (n, CHANNELS, SIDE, SIDE), &Device::Cpu)?;
    let words: Vec<f32> = instructions.iter().flat_map(|text| word_shares(text)).collect();
    Ok([pictures, Tensor::from_vec(words, (n, BUCKETS), &Device::Cpu)?])
}

/// How much of a text falls into each bucket; sums to 1 unless there are no words.
fn word_shares(text: &str) -> Vec<f32> {
    let words: Vec<String> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
    let mut shares = vec![0.0; BUCKETS];
    for word in &words {
        // FNV-1a: stable across platforms and versions.
        let hash = word
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        shares[(hash % BUCKETS as u64) as usize] += 1.0 / words.len() as f32;
    }
    shares
}

/// An empty store with the network's weights registered, initial values from `seed`.
pub(super) fn fresh(seed: u64) -> Result<(ParamStore, Network)> {
    let mut store = ParamStore::new(seed, Device::Cpu);
    let network = Network::new(store.root())?;
    Ok((store, network))
}
