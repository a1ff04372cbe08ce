//! IGPO: Inpainting-Guided Policy Optimization for diffusion large language models (arXiv 2509.10396).
//!
//! Base: GRPO on masked diffusion models ([`diffusion`](crate::diffusion)) with the mean-field log-probabilities of d1,
//! prompt intact. New: a group whose samples are ALL wrong is rescued. A second set of rollouts is generated with pieces
//! of the reference reasoning pinned inside the response (inpainting); the verified-correct ones replace some of the
//! wrong ones, and the usual update follows. The rollout decisions are in [`rollout`].
//!
//! ```text
//! A_i  = r_i - mean of the group                                                 no division by the deviation
//! s_i  = exp( mean over the L positions of (log_probs - old_log_probs) )         one ratio per response, as GSPO
//! l_ik = max(-A s, -A clip(s, 1 - low, 1 + high)) + beta (exp(d) - d - 1),  d = ref_log_probs - log_probs
//! loss = sum over kept tokens of l_ik / number of kept tokens of the batch
//! kept = masked tokens, but of n pinned ones only the max(1, floor(tau n)) with the highest entropy
//! ```
//!
//! The response mask of a batch is all ones: padding with end-of-text tokens is trained too (a diffusion model of fixed
//! length has to predict it). `hint_mask`, `masked_tokens` [B, L] are 0 or 1, entropies are in nats.
//!
//! Source: the authors' code and the paper. They differ:
//!
//! | choice | code | paper | here |
//! |---|---|---|---|
//! | `surrogate.over` | all positions: the gradient flows into dropped hints, too | kept positions | kept |
//! | `surrogate.sequence_ratio` | true | true | true |
//! | [`HintLayout::reveal_last`](rollout::HintLayout) | true: the answer is always pinned | the answer is never pinned | false |
//! | `weight.hint_entropy_filter.per_row` | false: inpainted rows, with fewer kept tokens, count less | true: 1/L per row | false |
//!
//! The authors' clip share counts tokens with s A < clip(s) A, which are those that are outside of the bounds and NOT
//! clipped: `clip_ratio`; the true share is `clip_frac`.

pub mod rollout;

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, Spread};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_ENTROPY, OLD_LOG_PROBS, REF_LOG_PROBS, Signals, keep_where};
use crate::block::{Block, BlockKind, Kind, Regularizer, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::kl::{KlEstimator, clamp};
use crate::state::State;
use crate::surrogate::larger;
use crate::table::Table;

/// Tokens of the reference that were pinned during generation.
pub const HINT_MASK: Input = Input::new("hint_mask", "[B, T]", "1 where a reference token was pinned");
/// Tokens that were masked when the sequence was scored.
pub const MASKED_TOKENS: Input =
    Input::new("masked_tokens", "[B, T]", "1 where a token was masked when it was scored");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "igpo_inpaint",
    title: "Inpainting-Guided Policy Optimization for Diffusion Large Language Models",
    arxiv: "2509.10396",
    summary: "All-wrong groups are rescued by rollouts around pinned pieces of the reference.",
    blocks: &[
        BlockKind::weight::<HintEntropyFilter>(),
        BlockKind::surrogate::<MeanFieldRatio>(),
        BlockKind::regularizer::<KeptKl>(),
    ],
    recipe,
    vectors: Some(("igpo_inpaint.json", 24)),
    end_to_end: None,
};

/// Centred rewards, entropy filter on hints, clipped sequence ratio, KL on kept tokens.
pub fn recipe() -> Composition {
    let centred = GroupNorm { spread: Spread::None, ..GroupNorm::default() };
    Composition::new(&MeanFieldRatio::default(), Aggregation::TokenMean)
        .advantage(&centred)
        .weight(&HintEntropyFilter::default())
        .regularizer(&KeptKl::default())
}

/// Of the pinned tokens only the uncertain ones learn. Weights of dropped tokens become 0, those of kept ones grow so
/// that a token mean divides by the number of kept tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HintEntropyFilter {
    /// Share of the pinned tokens of a sequence that learn, 0 to 1 (at least one does).
    pub keep_ratio: f64,
    /// Every sequence counts the same (the paper's 1 / L); else every kept token of the batch (the authors' code).
    pub per_row: bool,
}

impl Default for HintEntropyFilter {
    fn default() -> Self {
        Self { keep_ratio: 0.2, per_row: false }
    }
}

/// Which tokens are in the loss, [B, T] 0 or 1: all masked ones that are no hints, and of n masked hints of a row the
/// max(1, floor(`keep_ratio` n)) with the highest `entropy`; at a tie the first. All [B, T].
///
/// # Errors
/// Shapes that differ.
pub fn entropy_filter(masked: &Table, hints: &Table, entropy: &Table, keep_ratio: f64) -> Result<Table> {
    hints.same_shape("hint_mask", masked)?;
    entropy.same_shape("entropy", masked)?;
    let mut kept = masked.clone();
    kept.values.iter_mut().for_each(|m| *m = f64::from(u8::from(*m != 0.0)));
    for row in 0..masked.rows {
        let at = |t: usize| row * masked.cols + t;
        let mut hinted: Vec<usize> =
            (0..masked.cols).map(at).filter(|&i| kept.values[i] != 0.0 && hints.values[i] != 0.0).collect();
        hinted.sort_by(|&a, &b| entropy.values[b].total_cmp(&entropy.values[a]));
        let count = (keep_ratio * hinted.len() as f64).floor() as usize;
        hinted.iter().skip(count.max(1)).for_each(|&i| kept.values[i] = 0.0);
    }
    Ok(kept)
}

impl Block for HintEntropyFilter {
    fn needs(&self) -> Vec<Input> {
        vec![HINT_MASK, MASKED_TOKENS, OLD_ENTROPY]
    }

    fn validate(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.keep_ratio) {
            return Ok(());
        }
        Err(Error::Setting { name: "keep_ratio", got: self.keep_ratio, expected: "0 to 1" })
    }

    fn describe(&self) -> String {
        format!("the {} most uncertain of the pinned tokens learn", self.keep_ratio)
    }
}

impl Kind for HintEntropyFilter {
    const KIND: &'static str = "hint_entropy_filter";
}

impl TokenRule for HintEntropyFilter {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let kept = entropy_filter(
            &batch.table(MASKED_TOKENS)?,
            &batch.table(HINT_MASK)?,
            &batch.table(OLD_ENTROPY)?,
            self.keep_ratio,
        )?;
        keep_tokens(batch.mask(), &kept, self.per_row, &mut signals.weights)
    }
}

/// Multiplies `weights` [B, T] by 0 where a token is not `kept`, and elsewhere so that a token mean over the mask is the
/// mean over the kept tokens of the batch, or with `per_row` the mean over sequences of the means over their kept tokens
/// (sequences without one left out). With nothing kept all weights are 0.
///
/// # Errors
/// Shapes that differ.
pub fn keep_tokens(mask: &Table, kept: &Table, per_row: bool, weights: &mut Table) -> Result<()> {
    kept.same_shape("kept", mask)?;
    weights.same_shape("weights", mask)?;
    let both = mask.values.iter().zip(&kept.values).map(|(m, k)| if *k != 0.0 { *m } else { 0.0 });
    let both = Table { values: both.collect(), ..*mask };
    let valid: f64 = mask.values.iter().sum();
    let counts = both.row_sums();
    let total: f64 = counts.iter().sum();
    let rows = counts.iter().filter(|&&n| n > 0.0).count() as f64;
    for (at, weight) in weights.values.iter_mut().enumerate() {
        let by = if per_row { rows * counts[at / mask.cols.max(1)] } else { total };
        *weight = if both.values[at] != 0.0 && by > 0.0 { *weight * valid / by } else { 0.0 };
    }
    Ok(())
}

/// The positions over which a sequence's ratio is averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Those with a weight: dropped tokens have no gradient (the paper).
    #[default]
    Kept,
    /// All of the mask (the authors' code).
    All,
}

/// Clipped importance ratio of mean-field log-probabilities, per sequence or per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeanFieldRatio {
    /// One ratio per sequence, the geometric mean of its tokens' ratios; else one per token.
    pub sequence_ratio: bool,
    /// Where the mean is taken.
    pub over: Over,
    /// Ratios below 1 - low do not profit further. 0 to 1.
    pub clip_low: f64,
    /// Ratios above 1 + high do not profit further. 0 or more.
    pub clip_high: f64,
}

impl Default for MeanFieldRatio {
    fn default() -> Self {
        Self { sequence_ratio: true, over: Over::Kept, clip_low: 0.2, clip_high: 0.2 }
    }
}

impl MeanFieldRatio {
    /// The ratio of every token, [B, T]: `d` = log_probs - old_log_probs with gradient, `counted` [B, T] not 0 where a
    /// position is in the mean.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn ratio(&self, d: &Tensor, counted: &Table) -> Result<Tensor> {
        if !self.sequence_ratio {
            return Ok(clamp(d, -20.0, 20.0)?.exp()?);
        }
        let lengths = counted.iter().map(|row| row.iter().filter(|c| **c != 0.0).count() as f64);
        let share: Vec<f64> = lengths.map(|n| if n > 0.0 { 1.0 / n } else { 0.0 }).collect();
        let share = Table { rows: share.len(), cols: 1, values: share }.to_tensor(d)?;
        let mean = (keep_where(d, counted)?.sum_keepdim(D::Minus1)? * share)?;
        Ok(clamp(&mean, -20.0, 20.0)?.exp()?.broadcast_as(d.dims())?.contiguous()?)
    }
}

impl Block for MeanFieldRatio {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, OLD_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.clip_low) {
            return Err(Error::Setting { name: "clip_low", got: self.clip_low, expected: "0 to 1" });
        }
        if self.clip_high >= 0.0 && self.clip_high.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "clip_high", got: self.clip_high, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let unit = match (self.sequence_ratio, self.over) {
            (false, _) => "token ratio",
            (true, Over::All) => "sequence ratio over all positions",
            (true, Over::Kept) => "sequence ratio over kept positions",
        };
        format!("{unit}, clipped to [1 - {}, 1 + {}]", self.clip_low, self.clip_high)
    }
}

impl Kind for MeanFieldRatio {
    const KIND: &'static str = "mean_field_ratio";
}

impl Surrogate for MeanFieldRatio {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let log_probs = batch.tensor(LOG_PROBS)?;
        let mask = batch.mask();
        signals.weights.same_shape("weights", mask)?;
        let counted = match self.over {
            Over::All => mask,
            Over::Kept => &signals.weights,
        };
        let d = (&log_probs - batch.tensor(OLD_LOG_PROBS)?.detach())?;
        let ratio = self.ratio(&d, counted)?;
        let negative = signals.advantages.to_tensor(&log_probs)?.neg()?;
        let plain = (&ratio * &negative)?;
        let bounded = (clamp(&ratio, 1.0 - self.clip_low, 1.0 + self.clip_high)? * &negative)?;
        // Numbers to log are means over kept tokens, like the loss.
        let logged = |x: &Tensor| -> Result<Table> {
            let table = Table::from_tensor(&x.detach())?;
            let values = table
                .values
                .iter()
                .zip(&signals.weights.values)
                .map(|(x, w)| if *w == 0.0 { 0.0 } else { x * w });
            Ok(Table { values: values.collect(), ..table })
        };
        let stats = vec![
            ("clip_frac", logged(&bounded.gt(&plain)?)?),
            ("clip_ratio", logged(&plain.gt(&bounded)?)?),
            ("mean_ratio", logged(&ratio)?),
            ("approx_kl", Table::from_tensor(&d.detach().neg()?)?),
        ];
        Ok(SurrogateLoss { terms: Terms::Tokens(larger(&plain, &bounded)?), stats })
    }
}

/// beta * (exp(d) - d - 1) with d = ref - log_probs on the tokens with a weight, which also multiplies it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeptKl {
    /// beta, 0 or more.
    pub coef: f64,
}

impl Default for KeptKl {
    fn default() -> Self {
        Self { coef: 0.01 }
    }
}

impl Block for KeptKl {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, REF_LOG_PROBS]
    }

    fn validate(&self) -> Result<()> {
        if self.coef >= 0.0 && self.coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "coef", got: self.coef, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("{} KL to the reference (k3) on weighted tokens", self.coef)
    }
}

impl Kind for KeptKl {
    const KIND: &'static str = "kept_kl";
}

impl Regularizer for KeptKl {
    fn terms(&self, batch: &Batch, signals: &Signals, _state: &State) -> Result<Terms> {
        let log_probs = keep_where(&batch.tensor(LOG_PROBS)?, &signals.weights)?;
        let reference = keep_where(&batch.tensor(REF_LOG_PROBS)?, &signals.weights)?.detach();
        let kl = KlEstimator::K3Unclamped.estimate(&log_probs, &reference)?;
        Ok(Terms::Tokens((kl * (signals.weights.to_tensor(&log_probs)? * self.coef)?)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;
    use crate::aggregation::Normaliser;
    use crate::objective::Objective;

    fn table(values: &[f64], cols: usize) -> Table {
        Table { rows: values.len() / cols, cols, values: values.to_vec() }
    }

    #[test]
    fn the_filter_keeps_one_uncertain_hint_and_every_other_token() {
        let entropy = table(&[0.1, 0.9, 0.5, 0.7, 0.2], 5);
        let hints = table(&[1.0, 1.0, 1.0, 0.0, 0.0], 5);
        let all = table(&[1.0; 5], 5);
        let kept = |masked: &Table, ratio| entropy_filter(masked, &hints, &entropy, ratio).unwrap().values;
        assert_eq!(kept(&all, 0.2), [0.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!(kept(&all, 1.0), [1.0; 5]);
        assert_eq!(kept(&table(&[1.0, 0.0, 1.0, 0.0, 1.0], 5), 0.5), [0.0, 0.0, 1.0, 0.0, 1.0]);
        assert_eq!(kept(&all.filled(0.0), 0.5), [0.0; 5]);
    }

    #[test]
    fn weights_make_a_token_mean_a_mean_over_kept_tokens() {
        let (mask, kept) = (table(&[1.0; 6], 3), table(&[1.0, 1.0, 1.0, 0.0, 1.0, 0.0], 3));
        let weights = |per_row| {
            let mut weights = mask.clone();
            keep_tokens(&mask, &kept, per_row, &mut weights).unwrap();
            weights.values
        };
        assert_eq!(weights(false), [1.5, 1.5, 1.5, 0.0, 1.5, 0.0]);
        assert_eq!(weights(true), [1.0, 1.0, 1.0, 0.0, 3.0, 0.0]);
    }

    /// Loss and gradient with rows 0.. of the batch at a time and the whole batch's denominators.
    fn run(over: Over, kept: &[f64], parts: &[&[usize]]) -> (f64, Vec<f64>) {
        let p = [-1.0, -2.0, -0.5, -0.3, -1.4, -0.9];
        let log_probs = Var::from_slice(&p, (2, 3), &Device::Cpu).unwrap();
        let other =
            |shift: f64| Tensor::from_vec(p.iter().map(|x| x * 0.9 + shift).collect(), (2, 3), &Device::Cpu);
        let mask = table(&[1.0; 6], 3);
        let whole = Normaliser::of(&mask);
        let mut signals = Signals::new(Table::broadcast(&[1.0, -1.0], &mask).unwrap());
        keep_tokens(&mask, &table(kept, 3), false, &mut signals.weights).unwrap();
        let batch = Batch::new(mask)
            .with(LOG_PROBS, log_probs.as_tensor().clone())
            .and_then(|b| b.with(OLD_LOG_PROBS, other(0.02).unwrap()))
            .and_then(|b| b.with(REF_LOG_PROBS, other(-0.3).unwrap()))
            .unwrap();
        let surrogate = MeanFieldRatio { over, ..MeanFieldRatio::default() };
        let objective = Objective {
            regularizers: vec![Box::new(KeptKl { coef: 0.1 })],
            ..Objective::new(surrogate, Aggregation::TokenMean)
        };
        let (mut total, mut grad) = (0.0, vec![0.0; 6]);
        for rows in parts {
            let part = objective
                .loss(&batch.select(rows).unwrap(), &signals.select(rows), &whole, &State::default())
                .unwrap();
            total += part.loss.to_scalar::<f64>().unwrap();
            let grads = part.loss.backward().unwrap();
            let g: Vec<f64> = grads.get(&log_probs).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            grad.iter_mut().zip(g).for_each(|(a, b)| *a += b);
        }
        (total, grad)
    }

    #[test]
    fn micro_batches_add_up() {
        let kept = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        for over in [Over::Kept, Over::All] {
            let ((a, g), (b, h)) = (run(over, &kept, &[&[0, 1]]), run(over, &kept, &[&[0], &[1]]));
            assert!((a - b).abs() < 1e-12 && g.iter().zip(&h).all(|(x, y)| (x - y).abs() < 1e-12));
        }
    }

    /// The reason for `over = kept`: in the authors' code filtered hints still learn.
    #[test]
    fn dropped_tokens_learn_only_when_the_ratio_is_over_all() {
        let kept = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
        let (_, grad) = run(Over::Kept, &kept, &[&[0, 1]]);
        assert!([1, 3, 5].iter().all(|&i| grad[i] == 0.0) && grad[0] != 0.0);
        assert!(run(Over::All, &kept, &[&[0, 1]]).1[1] != 0.0);
        let (loss, grad) = run(Over::All, &[0.0; 6], &[&[0, 1]]);
        assert_eq!((loss, grad), (0.0, vec![0.0; 6]));
    }
}
