//! Clipped losses as forks of older verl aggregate them: token means carry 1e-8 in the denominator, means inside a
//! sequence do not.

use candle_core::Var;
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::{Aggregation, Normaliser};
use crate::batch::{Batch, Signals};
use crate::block::{Surrogate, TokenRule};
use crate::objective::Objective;
use crate::state::State;
use crate::table::Table;

/// Added to the token count of a masked mean.
pub(super) const COUNT_EPS: f64 = 1e-8;

/// A loss case, ready to run.
pub(super) struct LossCase {
    pub log_probs: Var,
    pub batch: Batch,
    pub signals: Signals,
    pub aggregation: Aggregation,
    pub whole: Normaliser,
}

impl LossCase {
    /// Reads the tensors and `loss_agg_mode`.
    pub fn read(case: &Case) -> Result<Self, Failure> {
        let (log_probs, batch, signals) = case.policy_batch()?;
        let mut whole = batch.normaliser();
        whole.tokens += COUNT_EPS;
        let mut read = Self { log_probs, batch, signals, aggregation: Aggregation::TokenMean, whole };
        read.mode(&case.param::<String>("loss_agg_mode")?)?;
        Ok(read)
    }

    fn mode(&mut self, name: &str) -> Result<(), Failure> {
        self.aggregation = match name {
            "only-token-mean" => Aggregation::TokenMean,
            "seq-mean-token-mean" | "otm-paper" => {
                self.signals.weights = inverse_lengths(self.batch.mask());
                if name == "otm-paper" {
                    self.whole.sequences = 1.0; // a sum over responses
                }
                Aggregation::SeqMeanTokenSum
            }
            other => serde_json::from_value(Value::String(other.into()))
                .map_err(|e| Failure::Missing(format!("params.loss_agg_mode: {e}")))?,
        };
        Ok(())
    }

    /// Loss, what is logged, and the gradient, of `surrogate` with `bounds`.
    pub fn run(mut self, surrogate: impl Surrogate + 'static, bounds: Option<Box<dyn TokenRule>>) -> Outcome {
        let mut state = State::default();
        if let Some(rule) = &bounds {
            rule.prepare(&self.batch, &mut self.signals, &mut state)?;
        }
        let mut objective = Objective::new(surrogate, self.aggregation);
        objective.bounds = bounds;
        let parts = objective.loss(&self.batch, &self.signals, &self.whole, &state)?;
        // Logged numbers are means over the tokens that are there, whatever the loss is divided by.
        let valid = self.batch.normaliser().tokens + COUNT_EPS;
        let stat = |name| vec![parts.stat(name) * self.whole.tokens.max(1.0) / valid];
        Ok(Outputs::from([
            ("loss", values(&parts.loss)?),
            ("pg_clipfrac", stat("clip_frac")),
            ("pg_clipfrac_lower", stat("clip_frac_lower")),
            ("ppo_kl", stat("approx_kl")),
            ("grad_log_probs", gradient(&parts.loss, &self.log_probs)?),
        ]))
    }
}

/// 1 / L on every valid token.
fn inverse_lengths(mask: &Table) -> Table {
    let lengths = mask.row_sums();
    let weight = |(i, m): (usize, &f64)| if *m == 0.0 { 0.0 } else { m / lengths[i / mask.cols] };
    Table { values: mask.values.iter().enumerate().map(weight).collect(), ..*mask }
}
