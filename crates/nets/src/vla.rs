//! The vision-language-action policy in the shape of OpenVLA-OFT (arXiv 2502.19645; discrete actions, parallel
//! decoding).
//!
//! Sequence (OpenVLA-OFT `modeling_prismatic.py`): BOS, the patches of every camera, proprioception, the prompt, K * A
//! action placeholders, stop. Placeholder embeddings are zero and attention is bidirectional over the whole sequence,
//! so all K * A outputs come from one pass. Output i is read one position to the left of its own placeholder.
//!
//! The prompt is padded on the LEFT to `max_prompt_len` slots, and the padding is hidden as a key. So every position is
//! the same whatever the instruction's length, the first action is read at the last real prompt token, and a row does
//! not depend on the longest prompt of its batch. OpenVLA-OFT closes the gap between proprioception and a short prompt;
//! set `max_prompt_len` to the prompt's length to get its positions exactly.

use candle_core::{DType, Device, Tensor};
use efference_ops::{self as ops, AttentionMask, TokenScores};

use crate::config::{ACTION_BINS, Placeholders, VlaConfig};
use crate::error::{Error, Result};
use crate::llama::{Llama, Sight};
use crate::params::{Init, ParamPath, ParamStore};
use crate::projector::{PatchProjector, ProprioProjector};
use crate::sampling::{Draw, sample_bins};
use crate::vit::SiglipVision;

/// What the policy looks at, B rows.
pub struct VlaInput {
    /// [B, I, 3, S, S] f32, normalised by [`pixels_from_rgb`](crate::pixels_from_rgb).
    pub pixels: Tensor,
    /// [B, 8] f32, normalised to about [-1, 1].
    pub proprio: Tensor,
    /// Prompt ids, [B][P] with P <= `max_prompt_len`, without padding and without BOS.
    pub prompts: Vec<Vec<u32>>,
}

/// Ids with a fixed place in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begin of sequence.
    pub bos: u32,
    /// Stop token behind the placeholders.
    pub eos: u32,
    /// Padding, never attended to.
    pub pad: u32,
}

/// What [`Vla::sample`] chose for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Action bins, [K * A], each in 0..256.
    pub ids: Vec<u32>,
    /// Natural log-probability of each at the sampling temperature (at temperature 1 when greedy), [K * A].
    pub log_probs: Vec<f32>,
    /// Entropy of each distribution in nats, [K * A].
    pub entropy: Vec<f32>,
    /// Mean of the action tokens' last hidden states, [D]: what a critic reads.
    pub features: Vec<f32>,
}

/// The policy network. It holds its weights twice: as variables that record gradients, and as constants that share
/// their memory, for sampling.
#[derive(Clone)]
pub struct Vla {
    trained: Net,
    constant: Net,
    special: SpecialIds,
    config: VlaConfig,
    device: Device,
}

#[derive(Clone)]
struct Net {
    vision: SiglipVision,
    projector: PatchProjector,
    proprio: ProprioProjector,
    language: Llama,
    queries: Option<Tensor>, // [K * A, D]
}

impl Vla {
    /// Creates the weights in `store`, or finds them there. Weights that `store` has frozen record no gradient.
    ///
    /// # Errors
    /// The configuration does not fit together, asks for a DINOv2 tower (not built yet), or names exist with other
    /// shapes.
    pub fn new(store: &mut ParamStore, config: &VlaConfig, special: SpecialIds) -> Result<Self> {
        config.validate()?;
        if config.dino.is_some() {
            let (got, expected) =
                ("a DINOv2 tower".into(), "absent: only the SigLIP tower can be built".into());
            return Err(Error::Config { field: "dino", got, expected });
        }
        for (field, id) in [("bos", special.bos), ("eos", special.eos), ("pad", special.pad)] {
            if id as usize >= config.text.vocab_size {
                let expected = format!("below `text.vocab_size` ({})", config.text.vocab_size);
                return Err(Error::Config { field, got: id.to_string(), expected });
            }
        }
        let device = store.device().clone();
        let trained = Net::new(&mut store.root(), config)?;
        let constant = Net::new(&mut store.constants(), config)?;
        Ok(Self { trained, constant, special, config: config.clone(), device })
    }

    /// Whether the blocks of encoder and decoder keep only their inputs for the backward pass, see
    /// [`Llama::set_gradient_checkpointing`].
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.trained.vision.set_gradient_checkpointing(on);
        self.trained.language.set_gradient_checkpointing(on);
    }

    /// The network's shape.
    pub fn config(&self) -> &VlaConfig {
        &self.config
    }

    /// Logits of the 256 action bins for every number of the chunk: [B, K * A, 256].
    ///
    /// # Errors
    /// Shapes that do not fit, or a prompt that is empty or too long.
    pub fn forward(&self, input: &VlaInput) -> Result<Tensor> {
        self.run(&self.trained, input)
    }

    /// The same numbers as [`forward`](Self::forward), bit for bit, without anything kept for gradients.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn infer(&self, input: &VlaInput) -> Result<Tensor> {
        self.run(&self.constant, input)
    }

    /// Natural log-probability and entropy of given bins at a temperature above 0, both [B, K * A] and differentiable.
    ///
    /// `bins` [B][K * A]. Sampling reads the same forward pass, so re-scored and sampled log-probabilities are the same
    /// bits.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn score(&self, input: &VlaInput, bins: &[&[u32]], temperature: f64) -> Result<TokenScores> {
        score_logits(&self.forward(input)?, bins, temperature)
    }

    /// Chooses a chunk for every row. `draws` [B] belong to the rows; temperature 0 takes the most likely bins.
    ///
    /// # Errors
    /// Shapes that do not fit, or a temperature that is negative or not finite.
    pub fn sample(&self, input: &VlaInput, temperature: f64, draws: &[Draw]) -> Result<Vec<Choice>> {
        let hidden = self.hidden(&self.constant, input)?; // [B, K*A, D]
        let logits = self.logits(&self.constant, &hidden)?; // [B, K*A, 256]
        let features = hidden.mean(1)?.to_vec2::<f32>()?;
        let bins = sample_bins(&logits, temperature, self.config.action_dim, draws)?;
        let rows: Vec<&[u32]> = bins.iter().map(Vec::as_slice).collect();
        let scores = score_logits(&logits, &rows, if temperature > 0.0 { temperature } else { 1.0 })?;
        let log_probs = scores.log_probs.to_vec2::<f32>()?;
        let entropy = scores.entropy.to_vec2::<f32>()?;
        let rows = bins.into_iter().zip(log_probs).zip(entropy).zip(features);
        let choice = |(((ids, log_probs), entropy), features)| Choice { ids, log_probs, entropy, features };
        Ok(rows.map(choice).collect())
    }

    fn run(&self, net: &Net, input: &VlaInput) -> Result<Tensor> {
        self.logits(net, &self.hidden(net, input)?)
    }

    fn logits(&self, net: &Net, hidden: &Tensor) -> Result<Tensor> {
        net.language.logits(hidden, self.config.first_bin(), ACTION_BINS)
    }

    /// Last hidden states of the action tokens, [B, K * A, D].
    fn hidden(&self, net: &Net, input: &VlaInput) -> Result<Tensor> {
        let c = &self.config;
        let (s, p, d) = (c.vision.image_size, c.max_prompt_len, c.text.hidden_size);
        let b = input.prompts.len();
        expect("prompts", &[b], b > 0, "one row or more")?;
        expect_dims("pixels", &input.pixels, &[b, c.num_images, 3, s, s])?;
        expect_dims("proprio", &input.proprio, &[b, c.proprio_dim])?;

        let images = input.pixels.reshape((b * c.num_images, 3, s, s))?;
        let patches = net.projector.forward(&net.vision.forward(&images)?)?; // [B*I, N, D]
        let patches = patches.reshape((b, c.num_images * c.patches(), d))?; // [B, I*N, D]
        let state = net.proprio.forward(&input.proprio)?.reshape((b, 1, d))?; // [B, 1, D]
        let (ids, valid) = self.layout(&input.prompts)?;
        let tokens = net.language.embed(&Tensor::from_vec(ids, (b, p + 2), &self.device)?)?; // [B, P+2, D]
        let (bos, prompt, stop) =
            (tokens.narrow(1, 0, 1)?, tokens.narrow(1, 1, p)?, tokens.narrow(1, p + 1, 1)?);
        let slots = (b, c.action_tokens(), d);
        let placeholders = match &net.queries {
            Some(queries) => queries.unsqueeze(0)?.broadcast_as(slots)?,
            None => Tensor::zeros(slots, DType::F32, &self.device)?,
        };
        let x = Tensor::cat(&[&bos, &patches, &state, &prompt, &placeholders, &stop], 1)?; // [B, T, D]

        let sight = Sight { mask: AttentionMask::Full, key_valid: Some(&valid) };
        let read = Some((c.first_output(), c.action_tokens()));
        net.language.forward(&x, &sight, read)
    }

    /// Token ids [B * (P+2)] (BOS, left-padded prompt, stop) and which of the T positions may be attended to [B][T].
    fn layout(&self, prompts: &[Vec<u32>]) -> Result<(Vec<u32>, Vec<Vec<bool>>)> {
        let (p, before) = (self.config.max_prompt_len, self.config.prefix_len());
        let mut ids = Vec::with_capacity(prompts.len() * (p + 2));
        let mut valid = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            expect("prompts", &[prompt.len()], (1..=p).contains(&prompt.len()), &format!("1 to {p} tokens"))?;
            let padding = p - prompt.len();
            ids.push(self.special.bos);
            ids.extend(std::iter::repeat_n(self.special.pad, padding));
            ids.extend_from_slice(prompt);
            ids.push(self.special.eos);
            let mut row = vec![true; self.config.sequence_len()];
            row[before..before + padding].fill(false);
            valid.push(row);
        }
        Ok((ids, valid))
    }
}

impl Net {
    fn new(root: &mut ParamPath<'_>, config: &VlaConfig) -> Result<Self> {
        let d = config.text.hidden_size;
        let vision = SiglipVision::new(&mut root.pp("vision_backbone"), &config.vision)?;
        let projector = PatchProjector::new(&mut root.pp("projector"), config.patch_width(), d)?;
        let proprio = ProprioProjector::new(&mut root.pp("proprio_projector"), config.proprio_dim, d)?;
        let language = Llama::new(&mut root.pp("language_model"), &config.text, config.sequence_len())?;
        let queries = match config.placeholders {
            Placeholders::Zero => None,
            Placeholders::Learned => {
                let dims = [config.action_tokens(), d];
                Some(root.pp("action_queries").get("weight", &dims, Init::Normal(0.2))?)
            }
        };
        Ok(Self { vision, projector, proprio, language, queries })
    }
}

/// Log-probabilities and entropies [B, T] of `bins` [B][T] under `logits` [B, T, V] / temperature.
///
/// # Errors
/// Shapes that do not fit.
pub fn score_logits(logits: &Tensor, bins: &[&[u32]], temperature: f64) -> Result<TokenScores> {
    let (b, t, v) = logits.dims3()?;
    let got = [bins.len(), bins.first().map_or(0, |row| row.len())];
    let fits = bins.len() == b && bins.iter().all(|row| row.len() == t);
    expect("bins", &got, fits, &format!("[{b}, {t}] to go with the logits"))?;
    let ids = Tensor::from_vec(bins.concat(), b * t, logits.device())?;
    let flat = ops::token_scores(&logits.reshape((b * t, v))?, &ids, temperature)?;
    Ok(TokenScores { log_probs: flat.log_probs.reshape((b, t))?, entropy: flat.entropy.reshape((b, t))? })
}

fn expect_dims(name: &'static str, tensor: &Tensor, dims: &[usize]) -> Result<()> {
    expect(name, tensor.dims(), tensor.dims() == dims, &format!("{dims:?}"))
}

pub(crate) fn expect(name: &'static str, got: &[usize], ok: bool, expected: &str) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Input { name, got: got.to_vec(), expected: expected.into() })
}
