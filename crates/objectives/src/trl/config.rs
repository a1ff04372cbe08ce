//! `GRPOConfig`'s names for what is a composition here.

use serde::{Deserialize, Serialize};

use super::loss::{OffPolicyMask, TopEntropy, TrlForm, TrlKl, TrlSurrogate};
use crate::aggregation::{Aggregation, Normaliser};
use crate::composition::Composition;
use crate::table::Table;

/// Loss types of `GRPOTrainer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean inside a sequence, mean over sequences.
    Grpo,
    /// Mean over the tokens of the local batch.
    Bnpo,
    /// Sum over B times `max_completion_length`.
    DrGrpo,
    /// Sum over the tokens of the accumulated batch.
    Dapo,
    /// Detached capped ratio times log-probability; aggregated as DAPO. `epsilon_high` is the absolute cap.
    Cispo,
    /// Soft gate; aggregated as GRPO.
    Sapo,
    /// Clipped ratio, each sequence weighted by its length.
    Luspo,
    /// Gamma-shaped sequence weight; aggregated as DAPO.
    Vespo,
}

/// The settings of `GRPOConfig` that shape the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrlConfig {
    /// Which loss.
    pub loss_type: LossType,
    /// Lower clip range.
    pub epsilon_low: f64,
    /// Upper clip range (absolute cap for CISPO).
    pub epsilon_high: f64,
    /// KL weight; 0 needs no reference.
    pub beta: f64,
    /// Cap on the unclipped ratio.
    pub delta: Option<f64>,
    /// One ratio per sequence, exp(mean_t d), instead of per token.
    pub sequence_level: bool,
    /// Multiply the KL by the ratio.
    pub use_bias_correction_kl: bool,
    /// Keep only this share of tokens with the highest entropy.
    pub top_entropy_quantile: Option<f64>,
    /// Drop bad sequences whose mean old - new log-probability exceeds this.
    pub off_policy_mask_threshold: Option<f64>,
    /// Denominator of `DrGrpo`; T when absent.
    pub max_completion_length: Option<f64>,
    /// Tokens of the accumulated batch; the local count when absent.
    pub num_items_in_batch: Option<f64>,
    /// SAPO temperatures for positive and other advantages.
    pub sapo_temperature: (f64, f64),
}

impl Default for TrlConfig {
    fn default() -> Self {
        Self {
            loss_type: LossType::Dapo,
            epsilon_low: 0.2,
            epsilon_high: 0.2,
            beta: 0.0,
            delta: None,
            sequence_level: false,
            use_bias_correction_kl: false,
            top_entropy_quantile: None,
            off_policy_mask_threshold: None,
            max_completion_length: None,
            num_items_in_batch: None,
            sapo_temperature: (1.0, 1.05),
        }
    }
}

impl TrlConfig {
    /// The blocks, without an advantage.
    pub fn composition(&self) -> Composition {
        let form = match self.loss_type {
            LossType::Cispo => TrlForm::Cispo,
            LossType::Sapo => TrlForm::Sapo,
            LossType::Vespo => TrlForm::Vespo,
            _ => TrlForm::Clip,
        };
        let aggregation = match self.loss_type {
            LossType::Grpo | LossType::Sapo => Aggregation::SeqMeanTokenMean,
            LossType::DrGrpo => Aggregation::SeqMeanTokenSumNorm,
            // the loss of a sequence times its length is the sum over its tokens
            LossType::Luspo => Aggregation::SeqMeanTokenSum,
            _ => Aggregation::TokenMean,
        };
        let surrogate = TrlSurrogate {
            form,
            epsilon_low: self.epsilon_low,
            epsilon_high: self.epsilon_high,
            delta: self.delta,
            sequence_level: self.sequence_level,
            tau_pos: self.sapo_temperature.0,
            tau_neg: self.sapo_temperature.1,
        };
        let mut out = Composition::new(&surrogate, aggregation);
        if let Some(share) = self.top_entropy_quantile {
            out = out.weight(&TopEntropy { share });
        }
        if let Some(threshold) = self.off_policy_mask_threshold {
            out = out.weight(&OffPolicyMask { threshold });
        }
        if self.beta != 0.0 {
            let (bias_correction, sequence_level) = (self.use_bias_correction_kl, self.sequence_level);
            out = out.regularizer(&TrlKl { beta: self.beta, bias_correction, sequence_level });
        }
        out
    }

    /// TRL's denominators for a batch: sequences without a valid token count, and no count is below 1.
    pub fn normaliser(&self, mask: &Table) -> Normaliser {
        let whole = Normaliser::of(mask);
        let rows = mask.rows as f64;
        Normaliser {
            tokens: self.num_items_in_batch.unwrap_or(whole.tokens).max(1.0),
            sequences: rows,
            scale: rows * self.max_completion_length.unwrap_or(whole.scale),
            ..whole
        }
    }
}
