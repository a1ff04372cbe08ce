//! Losses that compare two sequences: DPO (2305.18290) and its relatives, in TRL's forms. No advantages, no rewards: the
//! order in a pair is all there is (see [`crate::pairs`] for the layout).
//!
//! ```text
//! s = sum_t log p      n = valid tokens (1 at least)      u = s - s_ref      c, r: first (chosen), second (rejected)
//! g(u): reverse_kl u, forward_kl -exp(-u), js log sigmoid(u), alpha exp((a-1) u)/(a-1)       delta = g(u_c) - g(u_r)
//! ```

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input, LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, keep_where};
use crate::block::{Block, Kind, Surrogate, SurrogateLoss, Terms};
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::pairs::{Pairs, numbers, row_sums, tensor_like};
use crate::table::Table;

/// log p less log of the sum of squared probabilities, which WPO (2406.11827) weights pairs with.
pub const ALIGNED_LOG_PROBS: Input = Input::new(
    "aligned_log_probs",
    "[B, T]",
    "log-probability less log sum_v p_v^2 of the token distributions",
);

/// Exponents beyond this are cut off and have no gradient.
const MAX_EXPONENT: f64 = 80.0;

/// log(1 / (1 + exp(-x))), with the exact gradient at 0 and no overflow anywhere.
pub(crate) fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    let positive = x.ge(0.0)?;
    let distance = positive.where_cond(x, &x.neg()?)?;
    let below = positive.where_cond(&x.zeros_like()?.detach(), x)?;
    Ok((below - (distance.neg()?.exp()? + 1.0)?.log()?)?)
}

/// 1 / (1 + exp(-x)) in the same way.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok(log_sigmoid(x)?.exp()?)
}

/// max(x, 0), without gradient at 0.
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gt(0.0)?.where_cond(x, &x.zeros_like()?.detach())?)
}

fn exp(x: &Tensor) -> Result<Tensor> {
    Ok(clamp(x, f64::NEG_INFINITY, MAX_EXPONENT)?.exp()?)
}

/// `x` [P] in ascending order; the gradient goes through the values, not through the order.
fn sorted(x: &Tensor) -> Result<Tensor> {
    let values = numbers(x)?;
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&i, &j| values[i as usize].total_cmp(&values[j as usize]));
    let order = Tensor::from_vec(order, values.len(), x.device())?;
    Ok(x.index_select(&order, 0)?)
}

/// -(1 - e) log sigmoid(x) - e log sigmoid(-x).
fn smoothed(x: &Tensor, e: f64) -> Result<Tensor> {
    Ok(((log_sigmoid(x)? * (e - 1.0))? - (log_sigmoid(&x.neg()?)? * e)?)?)
}

/// The loss of a pair. z = beta delta.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairLoss {
    /// DPO: -log sigmoid(z).
    #[default]
    Sigmoid,
    /// SLiC (2305.10425): max(0, 1 - z).
    Hinge,
    /// IPO (2310.12036) as TRL has it: (g_c/n_c - g_r/n_r - 1/(2 beta))^2.
    Ipo,
    /// IPO as its paper has it, with sums: (delta - 1/(2 beta))^2.
    IpoSum,
    /// DPO of mean log-ratios: -log sigmoid(beta (g_c/n_c - g_r/n_r)).
    SigmoidNorm,
    /// Robust DPO (2403.00409): (-(1-e) log sigmoid(z) + e log sigmoid(-z)) / (1 - 2 e).
    Robust,
    /// EXO (2402.00856): KL of the policy's preference from the smoothed label; needs label smoothing.
    ExoPair,
    /// NCA (2402.05369): -log sig(beta g_c) - 0.5 log sig(-beta g_c) - 0.5 log sig(-beta g_r).
    NcaPair,
    /// BCO (2404.04656) without its running baseline: -log sig(beta g_c) - log sig(-beta g_r).
    BcoPair,
    /// SPPO (2405.00675) with hard labels: (g_c - 1/(2 beta))^2 + (g_r + 1/(2 beta))^2.
    SppoHard,
    /// APO-zero (2408.06266): 1 - sig(beta u_c) + sig(beta u_r).
    ApoZero,
    /// APO-down (2408.06266): sig(beta u_c) + 1 - sig(z).
    ApoDown,
    /// DiscoPOP (2406.08414): m = sig(z / tau); -log sig(z) (1 - m) + exp(-z) m.
    Discopop,
    /// AOT (2406.05882), paired: margins of policy and reference, each sorted over the batch, are compared.
    Aot,
    /// AOT, unpaired: log-ratios of chosen and rejected, each sorted over the batch, are compared.
    AotUnpaired,
}

impl PairLoss {
    /// Whether label smoothing is part of the loss.
    pub fn smooths(self) -> bool {
        matches!(self, Self::Robust | Self::ExoPair | Self::Aot | Self::AotUnpaired)
    }
}

/// Which f-divergence keeps the policy near the reference (f-DPO, 2309.16240).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    /// g(u) = u: DPO.
    #[default]
    ReverseKl,
    /// g(u) = -exp(-u).
    ForwardKl,
    /// g(u) = log sigmoid(u).
    JsDivergence,
    /// g(u) = exp((alpha - 1) u) / (alpha - 1); alpha = 1 is the reverse KL.
    AlphaDivergence,
}

/// A preference loss against a reference policy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preference {
    /// Which loss.
    pub loss: PairLoss,
    /// How strongly log-ratios count, greater than 0; for IPO and SPPO the target is 1/(2 beta).
    pub beta: f64,
    /// Share of labels taken to be wrong; 0 for losses that have none of it.
    pub label_smoothing: f64,
    /// How log-ratios become scores.
    pub f_divergence: FDivergence,
    /// Order of the alpha divergence.
    pub divergence_alpha: f64,
    /// Weight of tokens beyond the shorter response's length, for policy and reference (LD-DPO, 2409.06411); 1 is off.
    pub ld_alpha: f64,
    /// Temperature of DiscoPOP's blend, greater than 0.
    pub discopop_tau: f64,
    /// Multiply every pair's loss by exp(mean aligned log-probability) of both responses (WPO, 2406.11827).
    pub weighted: bool,
}

impl Default for Preference {
    fn default() -> Self {
        Self {
            loss: PairLoss::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            f_divergence: FDivergence::ReverseKl,
            divergence_alpha: 0.5,
            ld_alpha: 1.0,
            discopop_tau: 0.05,
            weighted: false,
        }
    }
}

/// What pair losses are made of, [P] each.
#[derive(Clone, Debug)]
pub struct PairLogProbs {
    /// Policy's log-probability of the chosen sequences, with gradient.
    pub chosen: Tensor,
    /// Policy's log-probability of the rejected sequences, with gradient.
    pub rejected: Tensor,
    /// Reference's log-probability of the chosen sequences.
    pub ref_chosen: Tensor,
    /// Reference's log-probability of the rejected sequences.
    pub ref_rejected: Tensor,
    /// Valid tokens of the chosen sequences, 1 at least.
    pub chosen_lengths: Tensor,
    /// Valid tokens of the rejected sequences, 1 at least.
    pub rejected_lengths: Tensor,
}

impl Preference {
    /// Sums over the tokens of every pair.
    ///
    /// # Errors
    /// A missing input, a torn pair.
    pub fn log_probs(&self, batch: &Batch, pairs: &Pairs) -> Result<PairLogProbs> {
        let mask = batch.mask();
        let lengths = mask.row_sums();
        let weights =
            if self.ld_alpha == 1.0 { None } else { Some(self.token_weights(mask, &lengths, pairs)) };
        let sums = |input| -> Result<Tensor> {
            let x = keep_where(&batch.tensor(input)?, mask)?;
            Ok(match &weights {
                Some(weights) => (&x * weights.to_tensor(&x)?)?.sum(1)?,
                None => x.sum(1)?,
            })
        };
        let policy = sums(LOG_PROBS)?;
        let (chosen, rejected) = pairs.split(&policy)?;
        let (ref_chosen, ref_rejected) = pairs.split(&sums(REF_LOG_PROBS)?.detach())?;
        let lengths: Vec<f64> = lengths.iter().map(|n| n.max(1.0)).collect();
        let (chosen_lengths, rejected_lengths) = pairs.split(&tensor_like(&lengths, &policy)?)?;
        Ok(PairLogProbs { chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths })
    }

    /// 1 on the first min(n_c, n_r) valid tokens of a row, `ld_alpha` behind them.
    fn token_weights(&self, mask: &Table, lengths: &[f64], pairs: &Pairs) -> Table {
        let mut weights = mask.clone();
        for row in 0..mask.rows {
            let pair = pairs.of_row[row];
            let shared = lengths[pairs.first[pair]].min(lengths[pairs.second[pair]]);
            let mut seen = 0.0;
            for t in row * mask.cols..(row + 1) * mask.cols {
                seen += mask.values[t];
                weights.values[t] =
                    if seen <= shared { mask.values[t] } else { mask.values[t] * self.ld_alpha };
            }
        }
        weights
    }

    fn score(&self, u: &Tensor) -> Result<Tensor> {
        let order = self.divergence_alpha - 1.0;
        Ok(match self.f_divergence {
            FDivergence::ReverseKl => u.clone(),
            FDivergence::ForwardKl => exp(&u.neg()?)?.neg()?,
            FDivergence::JsDivergence => log_sigmoid(u)?,
            FDivergence::AlphaDivergence if order.abs() < 1e-6 => u.clone(),
            FDivergence::AlphaDivergence => (exp(&(u * order)?)? / order)?,
        })
    }

    /// Loss of every pair, [P], with gradient.
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn per_pair(&self, p: &PairLogProbs) -> Result<Tensor> {
        self.validate()?;
        let (beta, e) = (self.beta, self.label_smoothing);
        let (uc, ur) = ((&p.chosen - &p.ref_chosen)?, (&p.rejected - &p.ref_rejected)?);
        let (gc, gr) = (self.score(&uc)?, self.score(&ur)?);
        let z = ((&gc - &gr)? * beta)?;
        let means = || -> Result<Tensor> { Ok(((&gc / &p.chosen_lengths)? - (&gr / &p.rejected_lengths)?)?) };
        let nll = |x: &Tensor| -> Result<Tensor> { Ok(log_sigmoid(x)?.neg()?) };
        let target = 0.5 / beta;
        Ok(match self.loss {
            PairLoss::Sigmoid => nll(&z)?,
            PairLoss::Hinge => relu(&(1.0 - z)?)?,
            PairLoss::Ipo => (means()? - target)?.sqr()?,
            PairLoss::IpoSum => ((&gc - &gr)? - target)?.sqr()?,
            PairLoss::SigmoidNorm => nll(&(means()? * beta)?)?,
            PairLoss::Robust => {
                let (right, wrong) = ((nll(&z)? * (1.0 - e))?, (nll(&z.neg()?)? * e)?);
                ((right - wrong)? / (1.0 - 2.0 * e))?
            }
            PairLoss::ExoPair => {
                let (log_q, log_not) = (log_sigmoid(&z)?, log_sigmoid(&z.neg()?)?);
                let right = (log_q.exp()? * (&log_q - (-e).ln_1p())?)?;
                (right + (log_not.exp()? * (&log_not - e.ln())?)?)?
            }
            PairLoss::NcaPair => {
                let (c, r) = ((&gc * beta)?, (&gr * beta)?);
                ((nll(&c)? + (nll(&c.neg()?)? * 0.5)?)? + (nll(&r.neg()?)? * 0.5)?)?
            }
            PairLoss::BcoPair => (nll(&(&gc * beta)?)? + nll(&(&gr * -beta)?)?)?,
            PairLoss::SppoHard => ((&gc - target)?.sqr()? + (&gr + target)?.sqr()?)?,
            PairLoss::ApoZero => ((1.0 - sigmoid(&(&uc * beta)?)?)? + sigmoid(&(&ur * beta)?)?)?,
            PairLoss::ApoDown => ((sigmoid(&(&uc * beta)?)? + 1.0)? - sigmoid(&z)?)?,
            PairLoss::Discopop => {
                let blend = sigmoid(&(&z / self.discopop_tau)?)?;
                ((nll(&z)? * (1.0 - &blend)?)? + (exp(&z.neg()?)? * blend)?)?
            }
            PairLoss::Aot => {
                let margins = sorted(&(&p.chosen - &p.rejected)?)?;
                let reference = sorted(&(&p.ref_chosen - &p.ref_rejected)?)?;
                smoothed(&((margins - reference)? * beta)?, e)?
            }
            PairLoss::AotUnpaired => smoothed(&((sorted(&uc)? - sorted(&ur)?)? * beta)?, e)?,
        })
    }

    /// Implicit rewards beta u of the chosen and the rejected sequences, [P] each, for logs; no gradient.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn implicit_rewards(&self, p: &PairLogProbs) -> Result<(Vec<f64>, Vec<f64>)> {
        let reward = |s: &Tensor, reference: &Tensor| numbers(&((s - reference)? * self.beta)?);
        Ok((reward(&p.chosen, &p.ref_chosen)?, reward(&p.rejected, &p.ref_rejected)?))
    }

    /// WPO's weight of every pair, [P].
    fn pair_weights(batch: &Batch, pairs: &Pairs) -> Result<Vec<f64>> {
        let sums = numbers(&row_sums(batch, ALIGNED_LOG_PROBS)?)?;
        let lengths = batch.mask().row_sums();
        let mean = |row: usize| sums[row] / lengths[row].max(1.0);
        let weight = |p: usize| (mean(pairs.first[p]) + mean(pairs.second[p])).min(MAX_EXPONENT).exp();
        Ok((0..pairs.len()).map(weight).collect())
    }
}

impl Block for Preference {
    fn batch_wide(&self) -> Option<&'static str> {
        matches!(self.loss, PairLoss::Aot | PairLoss::AotUnpaired)
            .then_some("log-ratios are sorted over the update's pairs")
    }

    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![LOG_PROBS, REF_LOG_PROBS, PAIR_IDS];
        needs.extend(self.weighted.then_some(ALIGNED_LOG_PROBS));
        needs
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        let e = self.label_smoothing;
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return wrong("beta", self.beta, "greater than 0");
        }
        match self.loss {
            PairLoss::Robust if !(0.0..0.5).contains(&e) => {
                return wrong("label_smoothing", e, "0 or more, less than 0.5");
            }
            PairLoss::ExoPair if !(e > 0.0 && e < 1.0) => {
                return wrong(
                    "label_smoothing",
                    e,
                    "between 0 and 1, both excluded: exo_pair needs soft labels",
                );
            }
            loss if loss.smooths() && !(0.0..=1.0).contains(&e) => {
                return wrong("label_smoothing", e, "0 to 1");
            }
            loss if !loss.smooths() && e != 0.0 => {
                return wrong("label_smoothing", e, "0: this loss has no label smoothing, `robust` has");
            }
            _ => {}
        }
        if !self.divergence_alpha.is_finite() {
            return wrong("divergence_alpha", self.divergence_alpha, "a finite number");
        }
        if !(self.ld_alpha >= 0.0 && self.ld_alpha.is_finite()) {
            return wrong("ld_alpha", self.ld_alpha, "0 or more");
        }
        if !(self.discopop_tau > 0.0 && self.discopop_tau.is_finite()) {
            return wrong("discopop_tau", self.discopop_tau, "greater than 0");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("preference: {} of log-ratio margins (beta {})", name_of(&self.loss), self.beta)
    }
}

fn name_of<T: Serialize>(x: &T) -> String {
    toml::Value::try_from(x).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}

impl Kind for Preference {
    const KIND: &'static str = "preference";
}

impl Surrogate for Preference {
    fn loss(&self, batch: &Batch, _signals: &crate::batch::Signals) -> Result<SurrogateLoss> {
        let pairs = Pairs::of(batch)?;
        let per_pair = self.per_pair(&self.log_probs(batch, &pairs)?)?;
        let per_pair = if self.weighted {
            let weights = tensor_like(&Self::pair_weights(batch, &pairs)?, &per_pair)?;
            (per_pair * weights)?
        } else {
            per_pair
        };
        Ok(Terms::Pairs(per_pair).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// The loss of a pair without a reference; x is the difference of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FreeLoss {
    /// SimPO (2405.14734): smoothed -log sigmoid(beta (x - gamma / beta)).
    #[default]
    Simpo,
    /// CPO (2401.08417): smoothed -log sigmoid(beta x).
    Sigmoid,
    /// max(0, 1 - beta x).
    Hinge,
    /// (x - 1/(2 beta))^2.
    Ipo,
}

/// A preference loss without a reference policy.
///
/// A sequence's score is s, or s/n with `length_normalised`; AlphaPO (2501.03884) reshapes it to
/// (1 - exp(-alpha score)) / alpha.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReferenceFree {
    /// Which loss.
    pub loss: FreeLoss,
    /// How strongly scores count, greater than 0.
    pub beta: f64,
    /// Margin of SimPO, 0 or more.
    pub gamma: f64,
    /// Share of labels taken to be wrong, 0 to 1 (`simpo` and `sigmoid`; others ignore it).
    pub label_smoothing: f64,
    /// AlphaPO's exponent; 0 is off.
    pub alpha: f64,
    /// Mean instead of sum of log-probabilities.
    pub length_normalised: bool,
}

impl Default for ReferenceFree {
    fn default() -> Self {
        Self {
            loss: FreeLoss::Simpo,
            beta: 2.0,
            gamma: 0.5,
            label_smoothing: 0.0,
            alpha: 0.0,
            length_normalised: true,
        }
    }
}

impl ReferenceFree {
    /// Scores of the chosen and the rejected sequences, [P] each, with gradient.
    ///
    /// # Errors
    /// A missing input.
    pub fn scores(&self, batch: &Batch, pairs: &Pairs) -> Result<(Tensor, Tensor)> {
        let mut score = row_sums(batch, LOG_PROBS)?;
        if self.length_normalised {
            let lengths: Vec<f64> = batch.mask().row_sums().iter().map(|n| n.max(1.0)).collect();
            score = (&score / tensor_like(&lengths, &score)?)?;
        }
        if self.alpha != 0.0 {
            score = ((1.0 - exp(&(score * -self.alpha)?)?)? / self.alpha)?;
        }
        pairs.split(&score)
    }

    /// Loss of every pair, [P], with gradient.
    ///
    /// # Errors
    /// Settings out of range, shapes that differ.
    pub fn per_pair(&self, chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
        self.validate()?;
        let x = (chosen - rejected)?;
        Ok(match self.loss {
            FreeLoss::Simpo => smoothed(&((x * self.beta)? - self.gamma)?, self.label_smoothing)?,
            FreeLoss::Sigmoid => smoothed(&(x * self.beta)?, self.label_smoothing)?,
            FreeLoss::Hinge => relu(&(1.0 - (x * self.beta)?)?)?,
            FreeLoss::Ipo => (x - 0.5 / self.beta)?.sqr()?,
        })
    }
}

impl Block for ReferenceFree {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return wrong("beta", self.beta, "greater than 0");
        }
        if !self.gamma.is_finite() {
            return wrong("gamma", self.gamma, "a finite number");
        }
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            return wrong("label_smoothing", self.label_smoothing, "0 to 1");
        }
        if !self.alpha.is_finite() {
            return wrong("alpha", self.alpha, "a finite number");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let score = if self.length_normalised { "mean" } else { "summed" };
        format!("preference: {} of {score} log-probabilities (beta {})", name_of(&self.loss), self.beta)
    }
}

impl Kind for ReferenceFree {
    const KIND: &'static str = "reference_free_preference";
}

impl Surrogate for ReferenceFree {
    fn loss(&self, batch: &Batch, _signals: &crate::batch::Signals) -> Result<SurrogateLoss> {
        let pairs = Pairs::of(batch)?;
        let (chosen, rejected) = self.scores(batch, &pairs)?;
        Ok(Terms::Pairs(self.per_pair(&chosen, &rejected)?).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}
