//! BGPO: Boundary-Guided Policy Optimization for diffusion large language models (arXiv 2510.11683).
//!
//! Base: GRPO on masked diffusion models ([`diffusion`](crate::diffusion)), whose likelihood is an ELBO averaged over N
//! random masks. The ratio exp(mean_j d_j) is not linear in the masks, so its gradient needs all N forward graphs at
//! once. New: a lower bound of the objective that is a SUM over masks; each mask is propagated back alone, memory does
//! not grow with N, and N can be 16 to 32 where 2 to 4 fitted.
//!
//! ```text
//! l_j   = sum over masked tokens of logp / p_mask_j            (elbo_samples, [B, N], nats)
//! d_j   = (l_j - old l_j) / norm                               the SAME masks for both policies
//! rho_j = 1 + d_j      where A > 0      tangent:  e^x >= 1 + x
//!         exp(d_j)     elsewhere        Jensen:   exp(mean d) <= mean exp(d), times a negative A
//! loss  = mean_j max(-A rho_j, -A clip(rho_j, 1 - low, 1 + high)),   where A < 0 at most -A c
//! ```
//!
//! On-policy (d = 0) value and gradient are those of the ELBO objective; off-policy A mean_j rho_j is a lower bound of
//! A exp(mean_j d_j). Passing one mask at a time (inputs [B, 1]) and averaging the losses gives the same gradient.
//!
//! Source: the paper, and the open re-implementation in a verl fork (DARE). They differ; the code is followed:
//!
//! | choice | paper | code, default here |
//! |---|---|---|
//! | `norm` | none | padded_len: l is divided by the padded response length |
//! | `clip` | false | true: per mask, with dual clip |
//! | `average` | responses: 1/G | tokens: long responses weigh more, by the composition's aggregation |
//!
//! The code takes ln(1 + d) and then exp of it, which is NaN for d <= -1; rho = 1 + d is used directly and may be
//! negative, where the gradient is still that of the linear bound. Counts of masked tokens:
//! [`mask_counts`](crate::diffusion::mask_counts). A response without a valid token cannot be scored: it is masked out.
//! Logged besides the clipped shares: `approx_kl` = -mean d and `low_var_kl` = exp(-d) + d - 1 to the old policy.

pub mod rewards;

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, Signals, keep_where};
use crate::block::{Block, BlockKind, Kind, Regularizer, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::clamp;
use crate::state::State;
use crate::surrogate::{larger, smaller};
use crate::table::Table;

/// One ELBO term per mask, with gradient.
pub const ELBO_SAMPLES: Input =
    Input::new("elbo_samples", "[B, N]", "ELBO term of every mask, with gradient");
/// The same under the policy that sampled, with the same masks.
pub const OLD_ELBO_SAMPLES: Input =
    Input::new("old_elbo_samples", "[B, N]", "ELBO term of every mask under the policy that sampled");
/// The same under a frozen reference, with the same masks.
pub const REF_ELBO_SAMPLES: Input =
    Input::new("ref_elbo_samples", "[B, N]", "ELBO term of every mask under a frozen reference policy");

/// How the ratio is made of the masks' terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioForm {
    /// Tangent for positive advantages, Jensen for the others.
    #[default]
    Bound,
    /// 1 + d for all (ablation).
    Tangent,
    /// exp(d) for all (ablation).
    Jensen,
    /// exp(mean_j d_j), the ELBO ratio itself (VRPO's online form): all graphs are kept.
    ElboMean,
}

/// What the ELBO terms are divided by before they are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElboNorm {
    /// Nothing: the paper. At length 512 exp(d) explodes off-policy.
    None,
    /// The padded response length: the code.
    #[default]
    PaddedLen,
    /// The response's valid tokens.
    ValidLen,
}

/// Over what the loss is averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Tokens, as the composition aggregates them.
    #[default]
    Tokens,
    /// Responses, whatever their length: the paper's 1/G.
    Responses,
}

/// The ELBO ratio and its linear bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElboRatio {
    /// How the ratio is made.
    pub form: RatioForm,
    /// Normalisation of the ELBO terms.
    pub norm: ElboNorm,
    /// Tokens or responses.
    pub average: Average,
    /// Clip every mask's ratio; without, the next three settings do nothing.
    pub clip: bool,
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. 0 or more.
    pub clip_high: f64,
    /// For negative advantages the loss never exceeds -A times this, > 1; 0 turns dual clip off.
    pub dual_clip: f64,
}

impl Default for ElboRatio {
    fn default() -> Self {
        Self {
            form: RatioForm::Bound,
            norm: ElboNorm::PaddedLen,
            average: Average::Tokens,
            clip: true,
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 3.0,
        }
    }
}

/// The paper.
pub const PAPER: Paper = Paper {
    id: "bgpo",
    title: "Boundary-Guided Policy Optimization for Memory-efficient RL of Diffusion Large Language Models",
    arxiv: "2510.11683",
    summary: "A bound of the ELBO ratio that is a sum over masks, so that memory does not grow with them.",
    blocks: &[BlockKind::surrogate::<ElboRatio>(), BlockKind::regularizer::<ElboKl>()],
    recipe,
    vectors: Some(("bgpo.json", 18)),
    end_to_end: None,
};

/// Group-standardised rewards, clipped bound, token mean; neither KL nor entropy.
pub fn recipe() -> Composition {
    Composition::new(&ElboRatio::default(), Aggregation::TokenMean).advantage(&GroupNorm::default())
}

/// Exponents beyond this are cut, without gradient, so that a ratio stays a number in single precision.
const LARGEST_EXPONENT: f64 = 80.0;

impl ElboRatio {
    /// rho, [B, N, T] (N = 1 for the mean): `d` [B, N] with gradient, `advantages` [B, T].
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn ratio(&self, d: &Tensor, advantages: &Tensor) -> Result<Tensor> {
        let d = if self.form == RatioForm::ElboMean { d.mean_keepdim(1)? } else { d.clone() };
        let ((b, n), (rows, t)) = (d.dims2()?, advantages.dims2()?);
        if rows != b {
            let expected = format!("[{b}, T], a row per row of `elbo_samples`");
            return Err(Error::Shape { name: "advantages", got: vec![rows, t], expected });
        }
        let tangent =
            || -> Result<Tensor> { Ok((&d + 1.0)?.unsqueeze(2)?.broadcast_as((b, n, t))?.contiguous()?) };
        let jensen = || -> Result<Tensor> {
            let e = clamp(&d, -LARGEST_EXPONENT, LARGEST_EXPONENT)?.exp()?;
            Ok(e.unsqueeze(2)?.broadcast_as((b, n, t))?.contiguous()?)
        };
        match self.form {
            RatioForm::Tangent => tangent(),
            RatioForm::Jensen | RatioForm::ElboMean => jensen(),
            RatioForm::Bound => {
                let positive = advantages.gt(0.0)?.unsqueeze(1)?.broadcast_as((b, n, t))?.contiguous()?;
                Ok(positive.where_cond(&tangent()?, &jensen()?)?)
            }
        }
    }

    /// The lengths that ELBO terms are divided by, [B]; 1 where there is nothing to divide by.
    fn lengths(&self, mask: &Table) -> Vec<f64> {
        match self.norm {
            ElboNorm::None => vec![1.0; mask.rows],
            ElboNorm::PaddedLen => vec![mask.cols.max(1) as f64; mask.rows],
            ElboNorm::ValidLen => mask.row_sums().into_iter().map(|n| n.max(1.0)).collect(),
        }
    }
}

/// An input of ELBO terms, [B, N], divided by `lengths` [B].
fn terms(batch: &Batch, input: Input, lengths: &[f64]) -> Result<Tensor> {
    let x = batch.tensor(input)?;
    if x.rank() != 2 {
        return Err(Error::Shape { name: input.name, got: x.dims().to_vec(), expected: "[B, N]".into() });
    }
    if x.dims().contains(&0) {
        return Err(Error::Invalid { what: input.name, reason: "no masks to average over".into() });
    }
    let over = Tensor::from_slice(lengths, (lengths.len(), 1), x.device())?.to_dtype(x.dtype())?;
    Ok(x.broadcast_div(&over)?)
}

impl Block for ElboRatio {
    fn needs(&self) -> Vec<Input> {
        vec![ELBO_SAMPLES, OLD_ELBO_SAMPLES]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        if !(0.0..=1.0).contains(&self.clip_low) {
            return wrong("clip_low", self.clip_low, "0 to 1");
        }
        if !(self.clip_high >= 0.0 && self.clip_high.is_finite()) {
            return wrong("clip_high", self.clip_high, "0 or more");
        }
        if self.dual_clip != 0.0 && !(self.dual_clip > 1.0 && self.dual_clip.is_finite()) {
            return wrong("dual_clip", self.dual_clip, "greater than 1, or 0 for off");
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let form = match self.form {
            RatioForm::Bound => "ELBO bound: 1 + d for A > 0, exp(d) else",
            RatioForm::Tangent => "ELBO bound: 1 + d",
            RatioForm::Jensen => "ELBO bound: exp(d)",
            RatioForm::ElboMean => "ELBO ratio: exp(mean d)",
        };
        if !self.clip {
            return format!("{form}, not clipped");
        }
        format!(
            "{form}, clipped to [1 - {}, 1 + {}] per mask, dual clip {}",
            self.clip_low, self.clip_high, self.dual_clip
        )
    }
}

impl Kind for ElboRatio {
    const KIND: &'static str = "elbo_ratio";
}

impl Surrogate for ElboRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        self.validate()?;
        let lengths = self.lengths(batch.mask());
        let new = terms(batch, ELBO_SAMPLES, &lengths)?;
        let old = terms(batch, OLD_ELBO_SAMPLES, &lengths)?.detach();
        if new.dims() != old.dims() {
            let expected = format!("{:?}, like `elbo_samples`", new.dims());
            return Err(Error::Shape { name: OLD_ELBO_SAMPLES.name, got: old.dims().to_vec(), expected });
        }
        let advantages = signals.advantages.to_tensor(&new)?;
        let d = (&new - &old)?;
        let ratio = self.ratio(&d, &advantages)?;
        let negative = advantages.neg()?.unsqueeze(1)?.broadcast_as(ratio.dims())?.contiguous()?;
        let plain = (&ratio * &negative)?;
        let (mut loss, mut clipped, mut dual) = (plain.clone(), plain.zeros_like()?, plain.zeros_like()?);
        if self.clip {
            let bounded = (clamp(&ratio, 1.0 - self.clip_low, 1.0 + self.clip_high)? * &negative)?;
            clipped = bounded.gt(&plain)?.to_dtype(plain.dtype())?;
            loss = larger(&plain, &bounded)?;
            if self.dual_clip > 0.0 {
                let cap = (&negative * self.dual_clip)?;
                let bad = negative.gt(0.0)?;
                dual = loss.gt(&cap)?.mul(&bad)?.to_dtype(plain.dtype())?;
                loss = bad.where_cond(&smaller(&loss, &cap)?, &loss)?;
            }
        }
        let per_token = loss.mean(1)?; // [B, T]
        let terms = match self.average {
            Average::Tokens => Terms::Tokens(per_token),
            Average::Responses => {
                let mask = batch.mask();
                let share: Vec<f64> =
                    mask.row_sums().into_iter().map(|n| if n > 0.0 { 1.0 / n } else { 0.0 }).collect();
                let share = Table::broadcast(&share, mask)?.to_tensor(&per_token)?;
                Terms::Sequences((keep_where(&per_token, mask)? * share)?.sum(1)?)
            }
        };
        let d = d.detach();
        let per_row = |x: &Tensor| -> Result<Table> {
            let x: Vec<f64> = x.mean(1)?.to_dtype(DType::F64)?.to_vec1()?;
            Table::broadcast(&x, batch.mask())
        };
        let no_sign = signals.advantages.filled(0.0).to_tensor(&d)?.narrow(1, 0, 1)?;
        let low_var = ElboKlEstimator::K3.estimate(&d, &no_sign)?.squeeze(2)?;
        let stats = vec![
            ("low_var_kl", per_row(&low_var)?),
            ("clip_frac", Table::from_tensor(&clipped.mean(1)?)?),
            ("clip_frac_lower", Table::from_tensor(&dual.mean(1)?)?),
            ("approx_kl", per_row(&d.neg()?)?),
        ];
        Ok(SurrogateLoss { terms, stats })
    }
}

/// Estimate of the KL to the reference from delta = ln(1 + l - ref) where A > 0, else l - ref.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ElboKlEstimator {
    /// delta
    #[serde(rename = "k1")]
    K1,
    /// delta^2 / 2
    #[serde(rename = "k2")]
    K2,
    /// exp(-delta) + delta - 1, cut to +-10 without gradient beyond.
    #[default]
    #[serde(rename = "k3", alias = "low_var_kl")]
    K3,
}

/// coef * KL towards the reference from ELBO terms; off in the paper.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElboKl {
    /// Weight, 0 or more.
    pub coef: f64,
    /// Which estimate.
    pub estimator: ElboKlEstimator,
    /// Normalisation of the ELBO terms, the surrogate's.
    pub norm: ElboNorm,
}

impl Default for ElboKl {
    fn default() -> Self {
        Self { coef: 0.001, estimator: ElboKlEstimator::K3, norm: ElboNorm::PaddedLen }
    }
}

/// ln(1 + x) is taken of at least this: below there is no number, and no gradient.
const SMALLEST_RATIO: f64 = 1e-6;

impl ElboKlEstimator {
    /// [B, N, T] from `x` = l - ref [B, N] with gradient and `advantages` [B, T].
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn estimate(self, x: &Tensor, advantages: &Tensor) -> Result<Tensor> {
        let ((b, n), t) = (x.dims2()?, advantages.dim(D::Minus1)?);
        let spread = |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_as((b, n, t))?.contiguous()?) };
        let log = clamp(&(x + 1.0)?, SMALLEST_RATIO, f64::MAX)?.log()?;
        let positive = spread(&advantages.gt(0.0)?.unsqueeze(1)?)?;
        let delta = positive.where_cond(&spread(&log.unsqueeze(2)?)?, &spread(&x.unsqueeze(2)?)?)?;
        Ok(match self {
            Self::K1 => delta,
            Self::K2 => (delta.sqr()? * 0.5)?,
            Self::K3 => {
                let bounded = clamp(&delta, -LARGEST_EXPONENT, LARGEST_EXPONENT)?;
                clamp(&((bounded.neg()?.exp()? + &bounded)? - 1.0)?, -10.0, 10.0)?
            }
        })
    }
}

impl Block for ElboKl {
    fn needs(&self) -> Vec<Input> {
        vec![ELBO_SAMPLES, REF_ELBO_SAMPLES]
    }

    fn validate(&self) -> Result<()> {
        if self.coef >= 0.0 && self.coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "coef", got: self.coef, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("{} KL of the ELBO to the reference ({:?})", self.coef, self.estimator)
    }
}

impl Kind for ElboKl {
    const KIND: &'static str = "elbo_kl";
}

impl Regularizer for ElboKl {
    fn terms(&self, batch: &Batch, signals: &Signals, _state: &State) -> Result<Terms> {
        let lengths = ElboRatio { norm: self.norm, ..ElboRatio::default() }.lengths(batch.mask());
        let new = terms(batch, ELBO_SAMPLES, &lengths)?;
        let x = (&new - terms(batch, REF_ELBO_SAMPLES, &lengths)?.detach())?;
        let kl = self.estimator.estimate(&x, &signals.advantages.to_tensor(&new)?)?;
        Ok(Terms::Tokens((kl.mean(1)? * self.coef)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::aggregation::Normaliser;
    use crate::objective::Objective;

    const N: usize = 4;

    fn matrix(values: &[f64], cols: usize) -> Tensor {
        Tensor::from_slice(values, (values.len() / cols, cols), &Device::Cpu).unwrap()
    }

    /// Loss and gradient of `block` on responses of 3, 1 and 0 tokens.
    fn run(block: ElboRatio, new: &[f64], old: &[f64], a: &[f64], cols: usize) -> (f64, Vec<f64>) {
        let mask = Table { rows: 3, cols: 3, values: vec![1., 1., 1., 1., 0., 0., 0., 0., 0.] };
        let new = Var::from_tensor(&matrix(new, cols)).unwrap();
        let signals = Signals::new(Table::broadcast(a, &mask).unwrap());
        let whole = Normaliser::of(&mask);
        let batch = Batch::new(mask)
            .with(ELBO_SAMPLES, new.as_tensor().clone())
            .and_then(|batch| batch.with(OLD_ELBO_SAMPLES, matrix(old, cols)))
            .unwrap();
        let objective = Objective::new(block, Aggregation::TokenMean);
        let loss = objective.loss(&batch, &signals, &whole, &State::default()).unwrap().loss;
        let grads = loss.backward().unwrap();
        let grad = grads.get(&new).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (loss.to_scalar().unwrap(), grad)
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-10)
    }

    proptest! {
        /// On-policy the bound has the gradient of the ELBO ratio; off-policy its loss is never below.
        #[test]
        fn the_bound_touches_on_policy_and_bounds_off_policy(
            old in proptest::collection::vec(-3.0f64..0.0, 3 * N),
            step in proptest::collection::vec(-1.5f64..1.5, 3 * N),
            a in proptest::collection::vec(-2.0f64..2.0, 3),
        ) {
            let block = |form| ElboRatio { form, clip: false, norm: ElboNorm::None, ..ElboRatio::default() };
            let (bound, elbo) = (block(RatioForm::Bound), block(RatioForm::ElboMean));
            let ((x, g), (y, h)) = (run(bound, &old, &old, &a, N), run(elbo, &old, &old, &a, N));
            prop_assert!((x - y).abs() < 1e-10 && close(&g, &h));
            let new: Vec<f64> = old.iter().zip(&step).map(|(o, s)| o + s).collect();
            prop_assert!(run(bound, &new, &old, &a, N).0 >= run(elbo, &new, &old, &a, N).0 - 1e-10);
        }

        /// One mask at a time, averaged, is the whole: that is what the method is for.
        #[test]
        fn masks_can_be_propagated_one_by_one(
            old in proptest::collection::vec(-3.0f64..0.0, 3 * N),
            step in proptest::collection::vec(-1.5f64..1.5, 3 * N),
            a in proptest::collection::vec(-2.0f64..2.0, 3),
        ) {
            let new: Vec<f64> = old.iter().zip(&step).map(|(o, s)| o + s).collect();
            let (loss, grad) = run(ElboRatio::default(), &new, &old, &a, N);
            let (mut total, mut parts) = (0.0, vec![0.0; 3 * N]);
            for j in 0..N {
                let column = |x: &[f64]| -> Vec<f64> { (0..3).map(|i| x[i * N + j]).collect() };
                let (part, g) = run(ElboRatio::default(), &column(&new), &column(&old), &a, 1);
                total += part / N as f64;
                g.iter().enumerate().for_each(|(i, g)| parts[i * N + j] = g / N as f64);
            }
            prop_assert!((loss - total).abs() < 1e-10 && close(&grad, &parts));
        }
    }

    #[test]
    fn far_off_policy_stays_finite_and_an_empty_response_has_no_gradient() {
        for d in [-1e4, 1e4] {
            let (old, new) = (vec![0.0; 3], vec![d; 3]);
            for form in [RatioForm::Bound, RatioForm::Jensen, RatioForm::ElboMean] {
                let (loss, grad) =
                    run(ElboRatio { form, ..ElboRatio::default() }, &new, &old, &[1.0, -1.0, 5.0], 1);
                assert!(loss.is_finite() && grad.iter().all(|g| g.is_finite()), "{form:?} {d}");
                assert_eq!(grad[2], 0.0);
            }
        }
    }

    #[test]
    fn the_kl_of_a_policy_with_itself_is_nothing_and_a_negative_ratio_is_no_nan() {
        let a = matrix(&[1.0, -1.0], 1);
        for estimator in [ElboKlEstimator::K1, ElboKlEstimator::K2, ElboKlEstimator::K3] {
            let at = |x: f64| {
                let kl = estimator.estimate(&matrix(&[x, x], 1), &a).unwrap();
                kl.flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(at(0.0), [0.0, 0.0]);
            assert!(at(-3.0).iter().all(|x| x.is_finite()), "{estimator:?}");
        }
    }

    #[test]
    fn inputs_and_settings_are_checked() {
        let bad = ElboRatio { dual_clip: 0.5, ..ElboRatio::default() };
        assert!(bad.validate().unwrap_err().to_string().contains("dual_clip"));
        let mask = Table { rows: 1, cols: 2, values: vec![1.0; 2] };
        let batch = Batch::new(mask.clone()).with(ELBO_SAMPLES, matrix(&[0.0, 0.0], 2)).unwrap();
        let loss = |batch: &Batch| Surrogate::loss(&ElboRatio::default(), batch, &Signals::new(mask.clone()));
        assert!(loss(&batch).unwrap_err().to_string().contains("old_elbo_samples"));
        let batch = batch.with(OLD_ELBO_SAMPLES, matrix(&[0.0], 1)).unwrap();
        assert!(loss(&batch).unwrap_err().to_string().contains("old_elbo_samples"));
    }
}
