//! From per-token losses to one number (verl `agg_loss`).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fused::weighted_sum;
use crate::table::Table;

/// What is averaged over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// Mean over all valid tokens of the batch.
    TokenMean,
    /// Sum inside a sequence, mean over sequences with a valid token.
    SeqMeanTokenSum,
    /// Mean inside a sequence, mean over sequences with a valid token.
    SeqMeanTokenMean,
    /// Sum of everything over a constant (Dr.GRPO): the padded length unless `scale` is given. No division by B.
    SeqMeanTokenSumNorm,
}

/// Denominators of the whole batch, so that the losses of its micro-batches add up to the loss of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normaliser {
    /// Valid tokens.
    pub tokens: f64,
    /// Sequences with a valid token.
    pub sequences: f64,
    /// Constant of [`Aggregation::SeqMeanTokenSumNorm`].
    pub scale: f64,
    /// Pairs of sequences, for losses that compare two.
    pub pairs: f64,
}

/// Added to a sequence's length in verl's sequence means.
const LENGTH_EPS: f64 = 1e-8;

impl Normaliser {
    /// Counts of a (whole) batch's mask.
    pub fn of(mask: &Table) -> Self {
        let lengths = mask.row_sums();
        Self {
            tokens: lengths.iter().sum(),
            sequences: lengths.iter().filter(|&&l| l > 0.0).count() as f64,
            scale: mask.cols as f64,
            pairs: (mask.rows / 2) as f64,
        }
    }
}

impl Aggregation {
    /// The weight of every token in the loss, [B, T]: aggregation is linear, so this is all there is to it. A batch
    /// without a valid token has weight 0 everywhere.
    pub fn weights(self, mask: &Table, whole: &Normaliser) -> Table {
        let lengths = mask.row_sums();
        let over = |x: f64| if x > 0.0 { 1.0 / x } else { 0.0 };
        let per_row = |row: usize| match self {
            Aggregation::TokenMean => over(whole.tokens),
            Aggregation::SeqMeanTokenSum => over(whole.sequences),
            Aggregation::SeqMeanTokenMean => over(whole.sequences) / (lengths[row] + LENGTH_EPS),
            Aggregation::SeqMeanTokenSumNorm => over(whole.scale),
        };
        let weights: Vec<f64> =
            (0..mask.rows).map(|row| if lengths[row] > 0.0 { per_row(row) } else { 0.0 }).collect();
        let spread = weights.iter().flat_map(|&w| std::iter::repeat_n(w, mask.cols));
        Table { values: spread.zip(&mask.values).map(|(w, m)| w * m).collect(), ..*mask }
    }

    /// Weighted sum of `per_token` [B, T]: a scalar with gradient.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn apply(self, per_token: &Tensor, mask: &Table, whole: &Normaliser) -> Result<Tensor> {
        self.apply_weighted(per_token, None, mask, whole)
    }

    /// The same with a factor on every token [B, T]; where that is 0, the token may hold anything.
    ///
    /// # Errors
    /// Shapes differ.
    pub fn apply_weighted(
        self,
        per_token: &Tensor,
        factors: Option<&Table>,
        mask: &Table,
        whole: &Normaliser,
    ) -> Result<Tensor> {
        if per_token.dims() != [mask.rows, mask.cols] {
            let expected = format!("[{}, {}], like the mask", mask.rows, mask.cols);
            return Err(Error::Shape { name: "per_token", got: per_token.dims().to_vec(), expected });
        }
        let mut weights = self.weights(mask, whole);
        if let Some(factors) = factors {
            factors.same_shape("weights", mask)?;
            weights.values.iter_mut().zip(&factors.values).for_each(|(w, f)| *w *= f);
        }
        weighted_sum(per_token, weights)
    }
}
