//! OPPO: Beyond Reward, Offline Preference-guided Policy Optimization (arXiv 2305.16217).
//!
//! Base: Decision Transformer, whose return-to-go token is replaced by a context z. New: preferences without a reward
//! model. An encoder maps a window of a trajectory to a context phi; a policy reconstructs the window's actions given
//! phi; a triplet loss draws a learnable optimal context z* to the contexts of preferred windows. Acting means decoding
//! with z*.
//!
//! ```text
//! pairs of windows 1, 2 [P]; K steps, A action dimensions, Z context dimensions
//! recon  = mean over valid steps and dimensions of (a_hat - a)^2, of windows 1, plus the same of windows 2
//! d(x,y) = || x - y + 1e-6 ||_2
//! pref   = mean over strict preferences of relu(d(z*, phi preferred) - d(z*, phi other) + 1)         scripted labels
//!        = [sum of the same + sum over ties of relu(d(z*, phi_1) - d(z*, phi_2))] / P                human labels
//! norm   = mean (|phi_1| - 1)^2 + mean (|phi_2| - 1)^2     scripted;  relu(|phi| - 1) for human labels
//! encoder and decoder step: recon + a pref + b norm, z* constant ([`recipe`])
//! z* step:                  pref, phi constant           ([`optimum_recipe`])
//! ```
//!
//! Rows are windows; the first of a pair is window 1, and its preference is in `rewards`: the larger is preferred, equal
//! ones tie. Scripted labels are sums over the next `foresee` steps, which look beyond the window ([`window_return`]);
//! human ones are (1, 0), (0, 1) or (0.5, 0.5). Steps are tokens: the mask is the attention mask, windows are padded on
//! the left.
//!
//! Where we differ from the authors' code: no strict preference in a batch gives 0, not NaN. At evaluation repeat z* at
//! every step, as the paper means it (the code passes it once and pads with zeros). Source: bkkgbkjb/OPPO. Scripted
//! settings a = b = 0.1, human a = 10, b = 0.1.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, PAIR_IDS, REWARDS, Signals};
use crate::block::{Block, BlockKind, Kind, Regularizer, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::pairs::{Pairs, tensor_like};
use crate::state::State;
use crate::surrogate::relu;

/// What the policy predicts, with gradient.
pub const ACTION_PREDICTIONS: Input =
    Input::new("action_predictions", "[B, T, A]", "predicted actions, with gradient");
/// What was done.
pub const ACTIONS: Input = Input::new("actions", "[B, T, A]", "actions of the data");
/// What the encoder makes of a window.
pub const CONTEXTS: Input =
    Input::new("contexts", "[B, Z]", "encoder's context of every window, with gradient");
/// z* for every row: expand it, the gradient adds up.
pub const OPTIMAL_CONTEXT: Input = Input::new(
    "optimal_context",
    "[B, Z]",
    "learnable optimal context, the same in every row, with gradient",
);

/// The paper.
pub const PAPER: Paper = Paper {
    id: "oppo",
    title: "Beyond Reward: Offline Preference-guided Policy Optimization",
    arxiv: "2305.16217",
    summary: "Preferences shape the context that a sequence policy is conditioned on; no reward model.",
    blocks: &[
        BlockKind::surrogate::<ActionReconstruction>(),
        BlockKind::surrogate::<ContextTriplet>(),
        BlockKind::regularizer::<ContextTriplet>(),
        BlockKind::regularizer::<ContextNorm>(),
        BlockKind::weight::<PerWindow>(),
    ],
    recipe,
    vectors: Some(("oppo.json", 7)),
    end_to_end: None,
};

/// The step of encoder and decoder with scripted labels.
pub fn recipe() -> Composition {
    Composition::new(&ActionReconstruction::default(), Aggregation::TokenMean)
        .weight(&PerWindow::default())
        .regularizer(&ContextTriplet::default())
        .regularizer(&ContextNorm::default())
}

/// The step of z* alone.
pub fn optimum_recipe() -> Composition {
    let triplet = ContextTriplet { coef: 1.0, learns: Learns::Optimum, ..ContextTriplet::default() };
    Composition::new(&triplet, Aggregation::TokenMean)
}

/// Squared error of predicted actions, mean over action dimensions, per step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActionReconstruction {}

impl Block for ActionReconstruction {
    fn needs(&self) -> Vec<Input> {
        vec![ACTION_PREDICTIONS, ACTIONS]
    }

    fn describe(&self) -> String {
        "squared error of the actions".into()
    }
}

impl Kind for ActionReconstruction {
    const KIND: &'static str = "action_reconstruction";
}

impl Surrogate for ActionReconstruction {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        let (predicted, actions) = (batch.tensor(ACTION_PREDICTIONS)?, batch.tensor(ACTIONS)?.detach());
        let mask = batch.mask();
        match *predicted.dims() {
            [rows, cols, _]
                if (rows, cols) == (mask.rows, mask.cols) && predicted.dims() == actions.dims() => {}
            _ => {
                let expected = format!("[{}, {}, A], like `actions`", mask.rows, mask.cols);
                let got = predicted.dims().to_vec();
                return Err(Error::Shape { name: ACTION_PREDICTIONS.name, got, expected });
            }
        }
        let error = (predicted - actions)?;
        let valid: Vec<u8> = mask.values.iter().map(|&m| u8::from(m != 0.0)).collect();
        let valid = Tensor::from_vec(valid, (mask.rows, mask.cols, 1), error.device())?;
        let valid = valid.broadcast_as(error.shape())?;
        let error = valid.where_cond(&error, &error.zeros_like()?.detach())?;
        Ok(Terms::Tokens(error.sqr()?.mean(2)?).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// Makes a token mean over all windows the SUM of the mean over the pairs' first windows and the mean over their second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PerWindow {}

impl Block for PerWindow {
    fn needs(&self) -> Vec<Input> {
        vec![PAIR_IDS]
    }

    fn describe(&self) -> String {
        "first and second windows averaged apart".into()
    }
}

impl Kind for PerWindow {
    const KIND: &'static str = "per_window";
}

impl TokenRule for PerWindow {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let pairs = Pairs::of(batch)?;
        let lengths = batch.mask().row_sums();
        let all: f64 = lengths.iter().sum();
        for rows in [&pairs.first, &pairs.second] {
            let tokens: f64 = rows.iter().map(|&row| lengths[row]).sum();
            let factor = if tokens > 0.0 { all / tokens } else { 0.0 };
            for &row in rows {
                let cols = batch.cols();
                signals.weights.values[row * cols..(row + 1) * cols].iter_mut().for_each(|w| *w *= factor);
            }
        }
        Ok(())
    }
}

/// Where labels come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// Compared returns: ties are dropped, mean over strict preferences; norms are drawn to 1.
    #[default]
    Scripted,
    /// People: ties have a margin of their own, mean over all pairs; norms above 1 are drawn down.
    Human,
}

/// What a step changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Learns {
    /// The encoder; z* is constant.
    #[default]
    Encoder,
    /// z*; the contexts are constant.
    Optimum,
}

/// coef times the triplet loss around z*. As a surrogate it counts the preferences of the update's own batch; as a
/// regulariser those of the whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextTriplet {
    /// Weight. Scripted 0.1, human 10; 1 in z*'s own step.
    pub coef: f64,
    /// Where labels come from.
    pub labels: Labels,
    /// What the step changes.
    pub learns: Learns,
    /// How much nearer the preferred context must be.
    pub margin: f64,
    /// The same for ties (human labels), whose first window counts as preferred.
    pub tie_margin: f64,
    /// Added to every component of a difference.
    pub distance_eps: f64,
}

impl Default for ContextTriplet {
    fn default() -> Self {
        Self {
            coef: 0.1,
            labels: Labels::Scripted,
            learns: Learns::Encoder,
            margin: 1.0,
            tie_margin: 0.0,
            distance_eps: 1e-6,
        }
    }
}

/// Pairs of a whole batch and strict preferences among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counted {
    pairs: usize,
    strict: usize,
}

/// L2 norm of every row, [P]; a zero row has norm 0 and no gradient.
fn norms(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum(1)?;
    let zero = squares.eq(0.0)?;
    let safe = zero.where_cond(&squares.ones_like()?.detach(), &squares)?.sqrt()?;
    Ok(zero.where_cond(&squares.zeros_like()?.detach(), &safe)?)
}

fn contexts(batch: &Batch, input: Input, pairs: &Pairs) -> Result<(Tensor, Tensor)> {
    let x = batch.tensor(input)?;
    if x.rank() != 2 {
        return Err(Error::Shape { name: input.name, got: x.dims().to_vec(), expected: "[B, Z]".into() });
    }
    pairs.split(&x)
}

impl ContextTriplet {
    /// Number of pairs with a strict preference.
    ///
    /// # Errors
    /// A missing input, a torn pair.
    pub fn strict_pairs(&self, batch: &Batch) -> Result<usize> {
        let (r1, r2) = Pairs::of(batch)?.split_numbers("rewards", &batch.outcomes()?)?;
        Ok(r1.iter().zip(&r2).filter(|(a, b)| a != b).count())
    }

    fn triplets(&self, batch: &Batch, counted: Option<Counted>) -> Result<Terms> {
        let pairs = Pairs::of(batch)?;
        let (phi1, phi2) = contexts(batch, CONTEXTS, &pairs)?;
        let (z1, z2) = contexts(batch, OPTIMAL_CONTEXT, &pairs)?;
        let constant = |x: Tensor, is: Learns| if self.learns == is { x } else { x.detach() };
        let distance = |z: Tensor, phi: Tensor| -> Result<Tensor> {
            let (z, phi) = (constant(z, Learns::Optimum), constant(phi, Learns::Encoder));
            norms(&((z - phi)? + self.distance_eps)?)
        };
        let gap = (distance(z1, phi1)? - distance(z2, phi2)?)?;
        let counted = match counted {
            Some(counted) => counted,
            None => Counted { pairs: pairs.len(), strict: self.strict_pairs(batch)? },
        };
        let (r1, r2) = pairs.split_numbers("rewards", &batch.outcomes()?)?;
        let strict = match self.labels {
            Labels::Scripted if counted.strict == 0 => 0.0,
            // Pair terms are divided by the pairs of the whole batch.
            Labels::Scripted => counted.pairs as f64 / counted.strict as f64,
            Labels::Human => 1.0,
        };
        let tied = if self.labels == Labels::Human { 1.0 } else { 0.0 };
        let each = |f: &dyn Fn(f64, f64) -> f64| -> Result<Tensor> {
            tensor_like(&r1.iter().zip(&r2).map(|(a, b)| f(*a, *b)).collect::<Vec<_>>(), &gap)
        };
        let sign = each(&|a, b| if a >= b { 1.0 } else { -1.0 })?;
        let margin = each(&|a, b| if a == b { self.tie_margin } else { self.margin })?;
        let weight = each(&|a, b| self.coef * if a == b { tied } else { strict })?;
        Ok(Terms::Pairs((relu(&((sign * gap)? + margin)?)? * weight)?))
    }
}

impl Block for ContextTriplet {
    fn needs(&self) -> Vec<Input> {
        vec![CONTEXTS, OPTIMAL_CONTEXT, REWARDS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        let all = [
            ("coef", self.coef),
            ("margin", self.margin),
            ("tie_margin", self.tie_margin),
            ("distance_eps", self.distance_eps),
        ];
        match all.into_iter().find(|(_, x)| !(*x >= 0.0 && x.is_finite())) {
            Some((name, got)) => Err(Error::Setting { name, got, expected: "0 or more" }),
            None => Ok(()),
        }
    }

    fn describe(&self) -> String {
        format!("{} triplet loss around the optimal context (margin {})", self.coef, self.margin)
    }
}

impl Kind for ContextTriplet {
    const KIND: &'static str = "context_triplet";
}

impl Surrogate for ContextTriplet {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        Ok(self.triplets(batch, None)?.into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

impl Regularizer for ContextTriplet {
    fn terms(&self, batch: &Batch, _signals: &Signals, state: &State) -> Result<Terms> {
        let counted: Option<Counted> = state.get(Self::KIND)?;
        self.triplets(batch, counted)
    }

    fn prepare(&self, batch: &Batch, _signals: &Signals, state: &mut State) -> Result<()> {
        let counted = Counted { pairs: Pairs::of(batch)?.len(), strict: self.strict_pairs(batch)? };
        state.set(Self::KIND, &Some(counted))
    }
}

/// coef times the penalty on the contexts' norms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContextNorm {
    /// Weight, 0 or more.
    pub coef: f64,
    /// (|phi| - 1)^2 for scripted, relu(|phi| - 1) for human labels.
    pub labels: Labels,
}

impl Default for ContextNorm {
    fn default() -> Self {
        Self { coef: 0.1, labels: Labels::Scripted }
    }
}

impl Block for ContextNorm {
    fn needs(&self) -> Vec<Input> {
        vec![CONTEXTS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        if self.coef >= 0.0 && self.coef.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "coef", got: self.coef, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        format!("{} distance of the contexts' norms from 1", self.coef)
    }
}

impl Kind for ContextNorm {
    const KIND: &'static str = "context_norm";
}

impl Regularizer for ContextNorm {
    fn terms(&self, batch: &Batch, _signals: &Signals, _state: &State) -> Result<Terms> {
        let (phi1, phi2) = contexts(batch, CONTEXTS, &Pairs::of(batch)?)?;
        let penalty = |phi: &Tensor| -> Result<Tensor> {
            let above = (norms(phi)? - 1.0)?;
            match self.labels {
                Labels::Scripted => Ok(above.sqr()?),
                Labels::Human => relu(&above),
            }
        };
        Ok(Terms::Pairs(((penalty(&phi1)? + penalty(&phi2)?)? * self.coef)?))
    }
}

/// Sum of the next `foresee` rewards from `start`, as far as the trajectory goes; divide it by the authors' scale (1000)
/// for a label.
pub fn window_return(rewards: &[f64], start: usize, foresee: usize) -> f64 {
    rewards.iter().skip(start).take(foresee).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::pairs::halves;
    use crate::table::Table;

    /// Loss and the gradients of contexts and z*, in micro-batches of `per_part` pairs; 4 pairs, 2 steps, Z = A = 3.
    fn run(
        composition: &Composition,
        phi: &[f64],
        rewards: &[f64],
        mask: &[f64],
        per_part: usize,
    ) -> (f64, [Vec<f64>; 2]) {
        let objective = composition.build().unwrap();
        let contexts = Var::from_tensor(&Tensor::from_slice(phi, (8, 3), &Device::Cpu).unwrap()).unwrap();
        let z = Var::from_tensor(&Tensor::new(&[[0.3f64, -1.0, 2.0]], &Device::Cpu).unwrap()).unwrap();
        let actions = Tensor::from_vec([phi, phi].concat(), (8, 2, 3), &Device::Cpu).unwrap();
        let predictions = contexts.as_tensor().unsqueeze(1).unwrap().broadcast_as((8, 2, 3)).unwrap();
        let batch = Batch::new(Table { rows: 8, cols: 2, values: mask.to_vec() })
            .with(CONTEXTS, contexts.as_tensor().clone())
            .and_then(|b| b.with(OPTIMAL_CONTEXT, z.as_tensor().broadcast_as((8, 3)).unwrap()))
            .and_then(|b| b.with(ACTION_PREDICTIONS, predictions))
            .and_then(|b| b.with(ACTIONS, actions))
            .and_then(|b| b.with(REWARDS, rewards.to_vec()))
            .and_then(|b| b.with(PAIR_IDS, halves(4)))
            .unwrap();
        let mut state = State::default();
        let ready = objective.prepare(batch, &mut state).unwrap();
        let whole = ready.batch.normaliser();
        let mut total = Tensor::new(0f64, &Device::Cpu).unwrap();
        for rows in Pairs::of(&ready.batch).unwrap().parts(per_part) {
            let (part, signals) = (ready.batch.select(&rows).unwrap(), ready.signals.select(&rows));
            total = (total + objective.loss(&part, &signals, &whole, &state).unwrap().loss).unwrap();
        }
        let grads = total.backward().unwrap();
        let of = |v: &Var| {
            let grad = grads.get(v.as_tensor()).map(|g| g.flatten_all().unwrap().to_vec1().unwrap());
            grad.unwrap_or(vec![0.0; v.elem_count()])
        };
        (total.to_scalar().unwrap(), [of(&contexts), of(&z)])
    }

    #[test]
    fn nothing_preferred_means_no_loss() {
        let phi: Vec<f64> = (0..24).map(|i| f64::from(i) / 7.0 - 1.0).collect();
        let (loss, [_, z]) = run(&optimum_recipe(), &phi, &[1.0; 8], &[1.0; 16], 4);
        assert_eq!((loss, z), (0.0, vec![0.0; 3]));
    }

    #[test]
    fn windows_are_summed_to_the_end_of_the_trajectory() {
        assert_eq!(window_return(&[1.0, 2.0, 4.0], 1, 5), 6.0);
        assert_eq!(window_return(&[1.0], 3, 5), 0.0);
    }

    proptest! {
        #[test]
        fn each_step_moves_its_own_half_and_micro_batches_add_up(
            phi in proptest::collection::vec(-2.0f64..2.0, 24),
            rewards in proptest::collection::vec(0u8..3, 8),
            mask in proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0)], 16),
        ) {
            let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
            let human = "[regularizer.context_triplet]\nlabels = \"human\"\n[regularizer.context_norm]\nlabels = \"human\"";
            for composition in [recipe(), recipe().with(&human.parse().unwrap()).unwrap()] {
                let (loss, [contexts, z]) = run(&composition, &phi, &rewards, &mask, 4);
                let (cut, [cut_contexts, _]) = run(&composition, &phi, &rewards, &mask, 1);
                prop_assert!(z.iter().all(|g| *g == 0.0));
                prop_assert!((loss - cut).abs() < 1e-12);
                prop_assert!(contexts.iter().zip(&cut_contexts).all(|(a, b)| (a - b).abs() < 1e-12));
            }
            let (_, [contexts, _]) = run(&optimum_recipe(), &phi, &rewards, &mask, 4);
            prop_assert!(contexts.iter().all(|g| *g == 0.0));
        }
    }
}
