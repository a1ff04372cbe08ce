//! EPO: Entropy-regularized Policy Optimization for LLM agents (arXiv 2509.22576).
//!
//! Base: clipped ratio with KL loss for agents of many turns and one reward at the end; one row is one
//! environment step. New: an entropy bonus over all turns, and a smoothing term that keeps a token's entropy
//! within a corridor around the historical mean entropy of its environment step, weighted by a schedule over
//! training.
//!
//! ```text
//! h_k  = masked mean entropy of environment step k at rollout;   Hbar = mean of h over all epochs so far
//! P    = 0 where lo Hbar < entropy < hi Hbar, else a              ("indicator": the authors' code)
//! P    = relu(lo Hbar - entropy) + relu(entropy - hi Hbar)        ("hinge": differentiable, ours)
//! loss = PG - lam agg(entropy) + coef w_e agg(P) + kl_coef agg(KL),   coef = lam c
//! w_e  = 1 - 0.2 (1 - exp(-2 e/half))              up to half = max_epochs div 2
//!      = 0.8 exp(-3 (e - half)/(max_epochs - half))    after it
//! ```
//!
//! The indicator is constant in the parameters: it changes the loss and no gradient, so all that acts in the
//! released code is the entropy bonus. `hinge` is therefore the default; `indicator` is for parity. Other
//! choices:
//!
//! | setting | default | authors' code |
//! |---|---|---|
//! | `form` | hinge | indicator |
//! | `history` | `present`: over epochs that have the step | `left_zeros`: zeros before short epochs |
//! | `gate` | `batch`: a row at `max_steps / 2` or later | `micro_batch`: the same per micro-batch, 25 |
//! | `positions` (mode `seq`) | `valid` tokens | `all`, padding included; needs `padded_entropy` |
//! | `phase` | off | off in the configuration, on in the README's runs |
//!
//! The epoch e counts prepared batches from 0. Source: WujiangXu/EPO `dp_actor.py`, `ray_trainer.py`.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, ENTROPY, Input, OLD_ENTROPY, Signals};
use crate::block::{Block, BlockKind, Kind, Regularizer, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::regularizer::{EntropyBonus, Kl};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Environment step of a row, from 0.
pub const ROLLOUT_STEPS: Input = Input::new("rollout_steps", "[B]", "environment step of the row, from 0");
/// Entropies with those of padded positions, which the batch does not clean.
pub const PADDED_ENTROPY: Input =
    Input::new("padded_entropy", "[B, T] with padding", "entropy of all positions, padding included");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "epo_entropy",
    title: "EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning",
    arxiv: "2509.22576",
    summary: "An entropy corridor around the historical mean of every environment step.",
    blocks: &[BlockKind::regularizer::<EntropySmoothing>()],
    recipe,
    vectors: Some(("epo_entropy.json", 5)),
    end_to_end: None,
};

/// GRPO with an entropy bonus, entropy smoothing and a KL loss.
pub fn recipe() -> Composition {
    Composition::new(&ClippedRatio::default(), Aggregation::TokenMean)
        .advantage(&GroupNorm::default())
        .regularizer(&EntropyBonus::default())
        .regularizer(&EntropySmoothing::default())
        .regularizer(&Kl { coef: 0.01, ..Kl::default() })
}

/// The penalty's form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PenaltyForm {
    /// A constant outside of the corridor: no gradient.
    Indicator,
    /// The distance to the corridor.
    #[default]
    Hinge,
}

/// Whose entropy is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorridorMode {
    /// Every token's.
    #[default]
    Token,
    /// The row's mean, for all its tokens.
    Seq,
}

/// Over what a row's mean is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Valid tokens.
    #[default]
    Valid,
    /// All T positions.
    All,
}

/// When smoothing acts at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// If a row of the whole batch is at step `max_steps / 2` or later.
    #[default]
    Batch,
    /// If a row of the micro-batch is; makes the loss depend on the split.
    MicroBatch,
    /// Always.
    Off,
}

/// How epochs of different lengths are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryForm {
    /// Each step over the epochs in which it occurred.
    #[default]
    Present,
    /// Zeros on the left up to `max_steps`, then a plain mean.
    LeftZeros,
}

/// Keeps entropies near their step's historical mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropySmoothing {
    /// Weight in the loss: the bonus's coefficient times the authors' smoothing coefficient. 0 or more.
    pub coef: f64,
    /// The penalty's form.
    pub form: PenaltyForm,
    /// Whose entropy.
    pub mode: CorridorMode,
    /// Over what a row's mean is taken (mode `seq`).
    pub positions: Positions,
    /// Lower end of the corridor, in units of the mean.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What the indicator costs outside.
    pub penalty: f64,
    /// When it acts.
    pub gate: Gate,
    /// Most environment steps of an episode.
    pub max_steps: usize,
    /// How epochs are averaged.
    pub history: HistoryForm,
    /// Weight the penalty by the schedule over epochs.
    pub phase: bool,
    /// Length of training for the schedule, in epochs (prepared batches).
    pub max_epochs: u64,
    /// Decay of the schedule's first half.
    pub slow: f64,
    /// Decay of its second half.
    pub fast: f64,
}

impl Default for EntropySmoothing {
    fn default() -> Self {
        Self {
            coef: 0.001,
            form: PenaltyForm::Hinge,
            mode: CorridorMode::Token,
            positions: Positions::Valid,
            low: 0.8,
            high: 1.2,
            penalty: 0.1,
            gate: Gate::Batch,
            max_steps: 30,
            history: HistoryForm::Present,
            phase: false,
            max_epochs: 150,
            slow: 2.0,
            fast: 3.0,
        }
    }
}

/// Weight of the penalty in epoch `epoch` (from 0) of `max_epochs`: slow decay to 0.827 in the first half, then
/// from 0.8 to 0.040. Later epochs count as the last.
pub fn phase_weight(epoch: u64, max_epochs: u64, slow: f64, fast: f64) -> f64 {
    if max_epochs == 0 {
        return 1.0;
    }
    let (epoch, half) = (epoch.min(max_epochs), max_epochs / 2);
    match (epoch <= half, half) {
        (true, 0) => 1.0,
        (true, half) => 1.0 - 0.2 * (1.0 - (-slow * epoch as f64 / half as f64).exp()),
        (false, half) => 0.8 * (-fast * (epoch - half) as f64 / (max_epochs - half) as f64).exp(),
    }
}

/// What the block remembers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyHistory {
    /// Batches so far.
    pub epochs: u64,
    /// Sum of the step entropies, by step.
    pub sums: Vec<f64>,
    /// Epochs behind each sum.
    pub counts: Vec<f64>,
    /// Whether the batch at hand passed the gate.
    pub active: bool,
}

impl EntropyHistory {
    /// Adds an epoch: entropy of every step in nats, `None` where the step has no token.
    ///
    /// # Errors
    /// More than `max_steps` steps.
    pub fn push(&mut self, steps: &[Option<f64>], max_steps: usize, form: HistoryForm) -> Result<()> {
        let Some(pad) = max_steps.checked_sub(steps.len()) else {
            let reason = format!("step {} with `max_steps` {max_steps}", steps.len().saturating_sub(1));
            return Err(Error::Invalid { what: "rollout_steps", reason });
        };
        self.epochs += 1;
        let length = self.sums.len().max(max_steps);
        self.sums.resize(length, 0.0);
        self.counts.resize(length, 0.0);
        match form {
            HistoryForm::Present => {
                for (k, h) in steps.iter().enumerate().filter_map(|(k, h)| Some((k, (*h)?))) {
                    self.sums[k] += h;
                    self.counts[k] += 1.0;
                }
            }
            HistoryForm::LeftZeros => {
                self.counts.iter_mut().for_each(|n| *n += 1.0);
                steps.iter().enumerate().for_each(|(k, h)| self.sums[pad + k] += h.unwrap_or(0.0));
            }
        }
        Ok(())
    }

    /// Mean entropy of every step, [max_steps]; 0 for a step that never occurred. Empty before the first epoch.
    pub fn means(&self) -> Vec<f64> {
        let mean = |(sum, n): (&f64, &f64)| if *n > 0.0 { sum / n } else { 0.0 };
        self.sums.iter().zip(&self.counts).map(mean).collect()
    }
}

/// Masked mean entropy of every environment step, up to the last that occurs. Steps are below `max_steps`.
///
/// # Errors
/// Shapes that differ, an entropy that is not finite, a step that is too large.
pub fn step_entropies(
    entropy: &Table,
    mask: &Table,
    steps: &[u64],
    max_steps: usize,
) -> Result<Vec<Option<f64>>> {
    entropy.same_shape("entropy", mask)?;
    same_rows(steps, mask)?;
    if let Some(step) = steps.iter().find(|&&step| step >= max_steps as u64) {
        let reason = format!("step {step} with `max_steps` {max_steps}");
        return Err(Error::Invalid { what: "rollout_steps", reason });
    }
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for (row, &step) in steps.iter().enumerate() {
        let step = step as usize;
        if sums.len() <= step {
            sums.resize(step + 1, (0.0, 0.0));
        }
        for (h, m) in entropy.row(row).iter().zip(mask.row(row)).filter(|(_, m)| **m != 0.0) {
            if !h.is_finite() {
                return Err(Error::NotFinite { name: "entropy", index: row, got: *h });
            }
            sums[step].0 += h * m;
            sums[step].1 += m;
        }
    }
    Ok(sums.into_iter().map(|(sum, n)| (n > 0.0).then(|| sum / n)).collect())
}

fn same_rows(steps: &[u64], mask: &Table) -> Result<()> {
    if steps.len() == mask.rows {
        return Ok(());
    }
    let expected = format!("[{}]", mask.rows);
    Err(Error::Shape { name: "rollout_steps", got: vec![steps.len()], expected })
}

impl EntropySmoothing {
    /// Historical mean of every row's step, [B].
    fn row_means(steps: &[u64], means: &[f64]) -> Result<Vec<f64>> {
        let mean = |&step: &u64| {
            let outside = || {
                let reason = format!("step {step}, the history has {}", means.len());
                Error::Invalid { what: "rollout_steps", reason }
            };
            means.get(step as usize).copied().ok_or_else(outside)
        };
        steps.iter().map(mean).collect()
    }

    /// 1 where the entropy lies strictly within the corridor, else 0; [B, T], padding included. `entropy` and
    /// `mask` [B, T], `steps` [B], `means` [max_steps].
    ///
    /// # Errors
    /// Shapes that differ, a step without history.
    pub fn in_range(&self, entropy: &Table, mask: &Table, steps: &[u64], means: &[f64]) -> Result<Table> {
        entropy.same_shape("entropy", mask)?;
        same_rows(steps, mask)?;
        let mut out = mask.filled(0.0);
        for (row, mean) in Self::row_means(steps, means)?.into_iter().enumerate() {
            let inside = |h: f64| f64::from(u8::from(self.low * mean < h && h < self.high * mean));
            let target = &mut out.values[row * mask.cols..(row + 1) * mask.cols];
            match self.mode {
                CorridorMode::Token => {
                    target.iter_mut().zip(entropy.row(row)).for_each(|(x, h)| *x = inside(*h));
                }
                CorridorMode::Seq => {
                    let used = |m: &f64| self.positions == Positions::All || *m != 0.0;
                    let of_row = entropy.row(row).iter().zip(mask.row(row)).filter(|(_, m)| used(m));
                    let (sum, n) = of_row.fold((0.0, 0.0), |(s, n), (h, _)| (s + h, n + 1.0f64));
                    target.fill(inside(sum / n.max(1.0)));
                }
            }
        }
        Ok(out)
    }

    /// The indicator: 0 within the corridor, `penalty` outside; [B, T], padding included. Ones without a history.
    ///
    /// # Errors
    /// As [`EntropySmoothing::in_range`].
    pub fn indicator(&self, entropy: &Table, mask: &Table, steps: &[u64], means: &[f64]) -> Result<Table> {
        if means.is_empty() {
            return Ok(mask.filled(1.0));
        }
        let mut out = self.in_range(entropy, mask, steps, means)?;
        out.values.iter_mut().for_each(|x| *x = if *x == 1.0 { 0.0 } else { self.penalty });
        Ok(out)
    }

    /// The hinge: distance to the corridor, [B, T] with gradient through `entropy`. Zeros without a history.
    ///
    /// # Errors
    /// As [`EntropySmoothing::in_range`].
    pub fn hinge(&self, entropy: &Tensor, mask: &Table, steps: &[u64], means: &[f64]) -> Result<Tensor> {
        same_rows(steps, mask)?;
        if means.is_empty() {
            return Ok(entropy.zeros_like()?);
        }
        let means = Self::row_means(steps, means)?;
        let ends = |factor: f64| -> Result<Tensor> {
            let values = means.iter().flat_map(|m| std::iter::repeat_n(factor * m, mask.cols)).collect();
            Table { values, ..*mask }.to_tensor(entropy)
        };
        let x = match self.mode {
            CorridorMode::Token => entropy.clone(),
            CorridorMode::Seq => {
                let lengths = mask.row_sums();
                let share = |(i, m): (usize, &f64)| match self.positions {
                    Positions::All => 1.0 / mask.cols as f64,
                    Positions::Valid if *m == 0.0 => 0.0,
                    Positions::Valid => m / lengths[i / mask.cols],
                };
                let shares = Table { values: mask.values.iter().enumerate().map(share).collect(), ..*mask };
                let mean = (entropy * shares.to_tensor(entropy)?)?.sum_keepdim(1)?;
                mean.broadcast_as(entropy.dims())?.contiguous()?
            }
        };
        let positive = |x: Tensor| -> Result<Tensor> { Ok(x.gt(0.0)?.where_cond(&x, &x.zeros_like()?)?) };
        Ok((positive((ends(self.low)? - &x)?)? + positive((&x - ends(self.high)?)?)?)?)
    }

    fn entropy_input(&self) -> Input {
        match (self.mode, self.positions) {
            (CorridorMode::Seq, Positions::All) => PADDED_ENTROPY,
            _ => ENTROPY,
        }
    }

    fn late(&self, steps: &[u64]) -> bool {
        steps.iter().any(|&step| step as usize >= self.max_steps / 2)
    }
}

impl Block for EntropySmoothing {
    fn needs(&self) -> Vec<Input> {
        vec![self.entropy_input(), OLD_ENTROPY, ROLLOUT_STEPS]
    }

    fn batch_wide(&self) -> Option<&'static str> {
        (self.gate == Gate::MicroBatch).then_some("the gate looks at the steps of the update")
    }

    fn validate(&self) -> Result<()> {
        let at_least = |name, got: f64, low: f64, expected| {
            if got >= low && got.is_finite() { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
        };
        at_least("coef", self.coef, 0.0, "0 or more")?;
        at_least("low", self.low, 0.0, "0 or more")?;
        at_least("high", self.high, self.low, "`low` or more")?;
        at_least("penalty", self.penalty, 0.0, "0 or more")?;
        at_least("max_steps", self.max_steps as f64, 1.0, "1 or more")?;
        at_least("slow", self.slow, 0.0, "0 or more")?;
        at_least("fast", self.fast, 0.0, "0 or more")
    }

    fn describe(&self) -> String {
        let form = match self.form {
            PenaltyForm::Indicator => "indicator, no gradient",
            PenaltyForm::Hinge => "hinge",
        };
        let corridor = format!("[{}, {}]", self.low, self.high);
        format!("{} entropy smoothing within {corridor} of the step's mean ({form})", self.coef)
    }
}

impl Kind for EntropySmoothing {
    const KIND: &'static str = "entropy_smoothing";
}

impl Regularizer for EntropySmoothing {
    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let entropy = batch.tensor(self.entropy_input())?;
        let steps = batch.ids(ROLLOUT_STEPS)?;
        let history: EntropyHistory = state.get(Self::KIND)?;
        let acts = match self.gate {
            Gate::Off => true,
            Gate::Batch => history.active,
            Gate::MicroBatch => self.late(steps),
        };
        if !acts {
            return Ok(Terms::Tokens(entropy.zeros_like()?));
        }
        let epoch = history.epochs.saturating_sub(1);
        let phase = if self.phase { phase_weight(epoch, self.max_epochs, self.slow, self.fast) } else { 1.0 };
        let means = history.means();
        let penalty = match self.form {
            PenaltyForm::Hinge => self.hinge(&entropy, batch.mask(), steps, &means)?,
            PenaltyForm::Indicator => {
                let table = Table::from_tensor(&entropy.detach())?;
                self.indicator(&table, batch.mask(), steps, &means)?.to_tensor(&entropy)?
            }
        };
        Ok(Terms::Tokens((penalty * (self.coef * phase))?))
    }

    fn prepare(&self, batch: &Batch, _signals: &Signals, state: &mut State) -> Result<()> {
        let steps = batch.ids(ROLLOUT_STEPS)?;
        let mut history: EntropyHistory = state.get(Self::KIND)?;
        let now = step_entropies(&batch.table(OLD_ENTROPY)?, batch.mask(), steps, self.max_steps)?;
        history.push(&now, self.max_steps, self.history)?;
        history.active = self.late(steps);
        state.set(Self::KIND, &history)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;
    use crate::batch::{GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS};
    use crate::registry::Algorithm;

    const ROWS: [[f64; 3]; 4] = [[0.5, 1.0, 0.0], [2.0, 0.1, 1.4], [0.9, 0.7, 3.0], [1.0, 1.0, 1.0]];

    fn batch() -> (Var, Batch) {
        let entropy = Var::new(&ROWS, &Device::Cpu).unwrap();
        let mut mask = Table::from_rows(&vec![vec![1.0; 3]; 4]).unwrap();
        mask.values[2] = 0.0;
        let log_probs = (entropy.as_tensor().detach() * -1.0).unwrap();
        let mut batch = Batch::new(mask);
        for input in [LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS] {
            batch.set(input, log_probs.clone()).unwrap();
        }
        batch.set(ENTROPY, entropy.as_tensor().clone()).unwrap();
        batch.set(OLD_ENTROPY, entropy.as_tensor().detach()).unwrap();
        batch.set(ROLLOUT_STEPS, vec![0u64, 0, 16, 3]).unwrap();
        batch.set(REWARDS, vec![1.0, 0.0, 0.0, 1.0]).unwrap();
        batch.set(GROUP_IDS, vec![0u64, 0, 1, 1]).unwrap();
        (entropy, batch)
    }

    /// Gradient by the entropies with `settings` over the recipe, in micro-batches `parts`.
    fn gradient(settings: &str, parts: &[&[usize]]) -> Vec<f64> {
        let (entropy, batch) = batch();
        let objective = Algorithm::from_table("epo_entropy", &settings.parse().unwrap()).unwrap().objective;
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state).unwrap();
        let mut total = vec![0.0; 12];
        for rows in parts {
            let (part, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let loss = objective.loss(&part, &signals, &ready.batch.normaliser(), &state).unwrap().loss;
            let grads = loss.backward().unwrap();
            let grad: Vec<f64> =
                grads.get(entropy.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            total.iter_mut().zip(grad).for_each(|(a, b)| *a += b);
        }
        total
    }

    const WHOLE: &[&[usize]] = &[&[0, 1, 2, 3]];

    #[test]
    fn the_indicator_is_the_entropy_bonus_bit_for_bit_and_the_hinge_is_not() {
        let bonus = gradient("[regularizer.entropy_smoothing]\ncoef = 0.0", WHOLE);
        assert_eq!(gradient("[regularizer.entropy_smoothing]\nform = \"indicator\"", WHOLE), bonus);
        let hinge = gradient("", WHOLE);
        assert_ne!(hinge, bonus);
        assert_eq!(hinge[2], 0.0, "padding");
    }

    #[test]
    fn splits_add_up() {
        for settings in ["", "[regularizer.entropy_smoothing]\nmode = \"seq\""] {
            let (whole, split) = (gradient(settings, WHOLE), gradient(settings, &[&[0, 3], &[1, 2]]));
            assert!(whole.iter().zip(&split).all(|(a, b)| (a - b).abs() < 1e-15), "{whole:?} {split:?}");
        }
    }

    #[test]
    fn early_steps_alone_do_not_open_the_gate() {
        let closed = "[regularizer.entropy_smoothing]\nmax_steps = 40";
        let none = gradient("[regularizer.entropy_smoothing]\ncoef = 0.0", WHOLE);
        assert_eq!(gradient(closed, WHOLE), none);
        assert_ne!(gradient(&format!("{closed}\ngate = \"off\""), WHOLE), none);
    }

    #[test]
    fn history_goes_through_json_bit_for_bit() {
        let objective = Algorithm::from_table("epo_entropy", &toml::Table::new()).unwrap().objective;
        let mut state = State::default();
        objective.prepare(batch().1, &mut state).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let mut read: State = serde_json::from_str(&text).unwrap();
        assert_eq!(read, state);
        objective.prepare(batch().1, &mut state).unwrap();
        objective.prepare(batch().1, &mut read).unwrap();
        assert_eq!(read, state);
        let history: EntropyHistory = read.get(EntropySmoothing::KIND).unwrap();
        assert_eq!((history.epochs, history.counts[0], history.counts[1]), (2, 2.0, 0.0));
    }

    #[test]
    fn left_zeros_shift_and_present_does_not() {
        let epochs: [&[Option<f64>]; 2] = [&[Some(1.0), Some(2.0), Some(3.0)], &[Some(5.0)]];
        let means = |form| {
            let mut history = EntropyHistory::default();
            epochs.iter().for_each(|h| history.push(h, 3, form).unwrap());
            history.means()
        };
        assert_eq!(means(HistoryForm::LeftZeros), [0.5, 1.0, 4.0]);
        assert_eq!(means(HistoryForm::Present), [3.0, 2.0, 3.0]);
        assert!(EntropyHistory::default().push(&[None; 4], 3, HistoryForm::Present).is_err());
    }

    #[test]
    fn the_schedule_falls() {
        let w: Vec<f64> = (0..=150).map(|e| phase_weight(e, 150, 2.0, 3.0)).collect();
        assert!(w.windows(2).all(|w| w[0] > w[1]) && w[0] == 1.0);
        assert_eq!(phase_weight(7, 0, 2.0, 3.0), 1.0);
        assert_eq!(phase_weight(0, 1, 2.0, 3.0), 1.0);
    }
}
