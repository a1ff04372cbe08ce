//! An objective is a composition: surrogate, regularisers, aggregation. Advantages come in from outside.

use candle_core::Tensor;

use crate::aggregation::{Aggregation, Normaliser};
use crate::error::{Error, Result};
use crate::kl::KlEstimator;
use crate::surrogate::{ClipOutcome, ClippedRatio};
use crate::table::Table;

/// What an objective reads about a batch of B sampled sequences of up to T decisions.
pub struct PolicyBatch<'a> {
    /// Natural log-probability of every chosen token under the policy that is trained, [B, T], with gradient.
    pub log_probs: &'a Tensor,
    /// The same under the policy that sampled, [B, T].
    pub old_log_probs: &'a Tensor,
    /// The same under a frozen reference, [B, T]; needed only with a KL regulariser.
    pub ref_log_probs: Option<&'a Tensor>,
    /// Entropy of every token's distribution, [B, T], with gradient; needed only with an entropy bonus.
    pub entropy: Option<&'a Tensor>,
    /// Advantage of every token, [B, T].
    pub advantages: &'a Table,
    /// 1 on tokens that count, [B, T].
    pub response_mask: &'a Table,
}

/// A per-token policy loss.
pub trait Surrogate: Send + Sync {
    /// Loss per token and what was clipped.
    ///
    /// # Errors
    /// Shapes that differ, settings out of range.
    fn per_token(&self, batch: &PolicyBatch<'_>) -> Result<ClipOutcome>;

    /// A few words for the table of algorithms.
    fn describe(&self) -> String;
}

impl Surrogate for ClippedRatio {
    fn per_token(&self, batch: &PolicyBatch<'_>) -> Result<ClipOutcome> {
        let advantages = batch.advantages.to_tensor(batch.log_probs)?;
        self.loss(batch.log_probs, batch.old_log_probs, &advantages)
    }

    fn describe(&self) -> String {
        let dual = self.dual_clip.map_or(String::new(), |c| format!(", dual clip {c}"));
        format!("clipped ratio [1 - {}, 1 + {}]{dual}", self.clip_low, self.clip_high)
    }
}

/// Surrogate, regularisers, aggregation.
pub struct Objective {
    /// What improves the policy.
    pub surrogate: Box<dyn Surrogate>,
    /// Pull towards the reference: estimator and coefficient.
    pub kl: Option<(KlEstimator, f64)>,
    /// Bonus for entropy, 0 or more.
    pub entropy_coef: f64,
    /// From tokens to one number.
    pub aggregation: Aggregation,
}

/// A loss with gradient, and what to log about it. Over micro-batches that share one [`Normaliser`] every number adds
/// up to that of the whole batch; `max_ratio_gap` is a maximum instead.
pub struct LossParts {
    /// Scalar with gradient.
    pub loss: Tensor,
    /// Surrogate's share of the loss.
    pub pg_loss: f64,
    /// Aggregated KL estimate against the reference; 0 without one.
    pub kl: f64,
    /// Token mean of the entropy; 0 when none was given.
    pub entropy: f64,
    /// Token mean of "the clipped branch was larger".
    pub clip_frac: f64,
    /// Token mean of "dual clip cut".
    pub clip_frac_lower: f64,
    /// Token mean of old - new log-probability.
    pub approx_kl: f64,
    /// Largest |ratio - 1| over valid tokens.
    pub max_ratio_gap: f64,
}

impl Objective {
    /// A surrogate with nothing else.
    pub fn new(surrogate: impl Surrogate + 'static, aggregation: Aggregation) -> Self {
        Self { surrogate: Box::new(surrogate), kl: None, entropy_coef: 0.0, aggregation }
    }

    /// Loss of a batch, or of a part of one when `whole` counts more.
    ///
    /// # Errors
    /// An input that is needed is missing, shapes that differ, settings out of range.
    pub fn loss(&self, batch: &PolicyBatch<'_>, whole: &Normaliser) -> Result<LossParts> {
        let mask = batch.response_mask;
        batch.advantages.same_shape("advantages", mask)?;
        for (name, tensor) in [("log_probs", batch.log_probs), ("old_log_probs", batch.old_log_probs)] {
            if tensor.dims() != [mask.rows, mask.cols] {
                let expected = format!("[{}, {}], like `response_mask`", mask.rows, mask.cols);
                return Err(Error::Shape { name, got: tensor.dims().to_vec(), expected });
            }
        }
        let outcome = self.surrogate.per_token(batch)?;
        let pg = self.aggregation.apply(&outcome.per_token, mask, whole)?;
        let mut loss = pg.clone();
        let mut kl_value = 0.0;
        if let Some((estimator, coefficient)) = self.kl {
            let reference = batch.ref_log_probs.ok_or(Error::Missing { name: "ref_log_probs" })?;
            let kl = self.aggregation.apply(&estimator.estimate(batch.log_probs, reference)?, mask, whole)?;
            kl_value = scalar(&kl)?;
            loss = (loss + (kl * coefficient)?)?;
        }
        if self.entropy_coef != 0.0 {
            let entropy = batch.entropy.ok_or(Error::Missing { name: "entropy" })?;
            loss = (loss - (self.aggregation.apply(entropy, mask, whole)? * self.entropy_coef)?)?;
        }
        let token_mean = |x: &Tensor| -> Result<f64> {
            let x = Table::from_tensor(&x.detach())?;
            let valid = x.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0);
            Ok(valid.map(|(x, m)| x * m).sum::<f64>() / whole.tokens.max(1.0))
        };
        let gaps = Table::from_tensor(&outcome.neg_log_ratio)?;
        let valid = gaps.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0);
        let max_ratio_gap = valid.map(|(d, _)| ((-d).exp() - 1.0).abs()).fold(0.0, f64::max);
        Ok(LossParts {
            pg_loss: scalar(&pg)?,
            kl: kl_value,
            entropy: batch.entropy.map_or(Ok(0.0), token_mean)?,
            clip_frac: token_mean(&outcome.clipped)?,
            clip_frac_lower: token_mean(&outcome.dual_clipped)?,
            approx_kl: token_mean(&outcome.neg_log_ratio)?,
            max_ratio_gap,
            loss,
        })
    }
}

fn scalar(x: &Tensor) -> Result<f64> {
    Ok(x.detach().to_dtype(candle_core::DType::F64)?.to_scalar()?)
}
