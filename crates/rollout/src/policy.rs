//! A vision-language-action network with everything needed to act: prompt, normalisation, bins, chunks.
//!
//! Sampling and scoring go through one forward pass, so the log-probabilities of a rollout and those the trainer
//! computes again are the same bits on CPU.

use std::sync::Arc;

use candle_core::Tensor;
use efference_nets::{
    Choice, Draw, ParamStore, Quantiles, Tokenizer, Vla, VlaInput, decode_action, encode_action,
    pixels_from_rgb,
};
use efference_ops::TokenScores;

use crate::error::{Error, Result};
use crate::trajectory::{Decision, Prompt};

/// What the policy sees once per chunk.
#[derive(Clone, Debug)]
pub struct Look {
    /// All cameras one after the other, [I, S, S, 3] bytes, top row first.
    pub pixels: Vec<u8>,
    /// Proprioception in the units of the environment, [8].
    pub proprio: [f32; 8],
    /// The instruction.
    pub prompt: Arc<Prompt>,
}

/// Network, weights, tokenizer and statistics.
pub struct VlaPolicy {
    /// The network; its tensors are the variables of `params`.
    pub net: Vla,
    /// All trainable weights.
    pub params: ParamStore,
    /// Turns instructions into ids.
    pub tokenizer: Tokenizer,
    /// Range of each action number.
    pub action_stats: Quantiles,
    /// Range of each proprioception number.
    pub proprio_stats: Quantiles,
}

impl VlaPolicy {
    /// Side of the square camera images, pixels.
    pub fn image_size(&self) -> usize {
        self.net.config().vision.image_size
    }

    /// Control steps per look, K.
    pub fn chunk(&self) -> usize {
        self.net.config().chunk
    }

    /// Numbers per action, A.
    pub fn action_dim(&self) -> usize {
        self.net.config().action_dim
    }

    /// Tokenises an instruction.
    ///
    /// # Errors
    /// It is longer than the network reads.
    pub fn prompt(&self, instruction: &str) -> Result<Arc<Prompt>> {
        let mut prompt = self.tokenizer.prompt(instruction, self.net.config().max_prompt_len)?;
        prompt.ids.truncate(prompt.len);
        Ok(Arc::new(Prompt { instruction: instruction.into(), ids: prompt.ids }))
    }

    /// Bins of a chunk of actions in environment units, [K * A].
    pub fn encode_chunk(&self, actions: &[[f32; 7]]) -> Vec<u32> {
        let bin = |(d, &x): (usize, &f32)| encode_action(self.action_stats.normalise(d, f64::from(x)));
        actions.iter().flat_map(|action| action.iter().enumerate().map(bin)).collect()
    }

    /// Actions of a chunk of bins, in environment units, [K].
    pub fn decode_chunk(&self, bins: &[u32]) -> Vec<[f32; 7]> {
        let number = |(d, &bin): (usize, &u32)| self.action_stats.restore(d, decode_action(bin)) as f32;
        let action = |bins: &[u32]| {
            let mut out = [0.0; 7];
            out.iter_mut().zip(bins.iter().enumerate().map(number)).for_each(|(o, x)| *o = x);
            out
        };
        bins.chunks_exact(self.action_dim()).map(action).collect()
    }

    /// Network input for looks, one row each.
    ///
    /// # Errors
    /// A look has another number of bytes than the cameras need.
    pub fn input<'l>(
        &self,
        looks: impl IntoIterator<Item = (&'l [u8], &'l [f32; 8], &'l Prompt)>,
    ) -> Result<VlaInput> {
        let config = self.net.config();
        let bytes = 3 * self.image_size() * self.image_size();
        let (mut images, mut proprio, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
        for (pixels, state, prompt) in looks {
            images.extend(pixels.chunks(bytes));
            let number = |(d, &x): (usize, &f32)| self.proprio_stats.normalise(d, f64::from(x)) as f32;
            proprio.extend(state.iter().enumerate().map(number));
            prompts.push(prompt.ids.clone());
        }
        let device = self.params.device();
        Ok(VlaInput {
            pixels: pixels_from_rgb(&images, config.num_images, self.image_size(), device)?,
            proprio: Tensor::from_vec(proprio, (prompts.len(), config.proprio_dim), device)?,
            prompts,
        })
    }

    /// Chooses a chunk for every look. `draws` [B] belong to the looks; temperature 0 takes the most likely bins.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn sample(&self, looks: &[Look], temperature: f64, draws: &[Draw]) -> Result<Vec<Choice>> {
        if looks.is_empty() {
            return Ok(Vec::new());
        }
        let input = self.input(looks.iter().map(|l| (l.pixels.as_slice(), &l.proprio, &*l.prompt)))?;
        Ok(self.net.sample(&input, temperature, draws)?)
    }

    /// Log-probabilities and entropies of what was chosen, both [D, K*A] and differentiable.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn score(&self, decisions: &[&Decision], temperature: f64) -> Result<TokenScores> {
        let input = self.input(decisions.iter().map(|d| (d.pixels.as_slice(), &d.proprio, &*d.prompt)))?;
        let bins: Vec<&[u32]> = decisions.iter().map(|d| d.action_ids.as_slice()).collect();
        Ok(self.net.score(&input, &bins, temperature)?)
    }

    /// Refuses when re-scored log-probabilities differ from those of the rollout by more than `allowed` (0 on CPU).
    ///
    /// # Errors
    /// [`Error::RatioNotOne`] with the worst place; `scored` of another shape.
    pub fn check_on_policy(decisions: &[&Decision], scored: &Tensor, allowed: f32) -> Result<()> {
        let scored = scored.to_vec2::<f32>()?;
        let mut worst = (0.0f32, 0, 0);
        for (row, (decision, scored)) in decisions.iter().zip(&scored).enumerate() {
            for (token, (a, b)) in decision.log_probs.iter().zip(scored).enumerate() {
                let gap = if a.to_bits() == b.to_bits() { 0.0 } else { (a - b).abs() };
                if gap.is_nan() || gap > worst.0 {
                    worst = (gap, row, token);
                }
            }
        }
        if worst.0.is_nan() || worst.0 > allowed {
            return Err(Error::RatioNotOne { decision: worst.1, token: worst.2, worst: worst.0, allowed });
        }
        Ok(())
    }
}
