//! An objective: blocks put together, ready to run. [`Composition`](crate::composition::Composition) makes one.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::aggregation::{Aggregation, Normaliser};
use crate::batch::{Batch, ENTROPY, Input, Signals};
use crate::block::{
    Advantage, Block, Filter, Regularizer, Reward, Surrogate, SurrogateLoss, Terms, TokenRule,
};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// Blocks in the order in which they work.
pub struct Objective {
    /// Make rewards.
    pub rewards: Vec<Box<dyn Reward>>,
    /// Choose sequences; a sequence must pass all of them.
    pub filters: Vec<Box<dyn Filter>>,
    /// How much better; absent where the surrogate does not ask.
    pub advantage: Option<Box<dyn Advantage>>,
    /// Change what is known about tokens, one after the other.
    pub weights: Vec<Box<dyn TokenRule>>,
    /// Sets clip bounds; absent leaves the surrogate's own.
    pub bounds: Option<Box<dyn TokenRule>>,
    /// What improves the policy.
    pub surrogate: Box<dyn Surrogate>,
    /// Added to the loss.
    pub regularizers: Vec<Box<dyn Regularizer>>,
    /// From tokens to one number.
    pub aggregation: Aggregation,
}

/// A batch that is ready for updates.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The sequences that are trained on, with their rewards.
    pub batch: Batch,
    /// What is known about their tokens.
    pub signals: Signals,
    /// Their places in the batch that was given.
    pub kept: Vec<usize>,
}

/// A loss with gradient, and what to log about it. Over micro-batches that share one [`Normaliser`] every number adds
/// up to that of the whole batch; `max_ratio_gap` is a maximum instead.
pub struct LossParts {
    /// Scalar with gradient.
    pub loss: Tensor,
    /// Surrogate's share of the loss.
    pub pg_loss: f64,
    /// Each regulariser's share of the loss, by its description; the coefficient is in it.
    pub regularizers: Vec<(String, f64)>,
    /// Token mean of the entropy; 0 when none was given.
    pub entropy: f64,
    /// Token means of what the surrogate reports: `clip_frac`, `clip_frac_lower`, `approx_kl`, ...
    pub stats: BTreeMap<&'static str, f64>,
    /// Largest |ratio - 1| over valid tokens; 0 if the surrogate does not report `approx_kl`.
    pub max_ratio_gap: f64,
}

impl LossParts {
    /// A number of the surrogate's report, 0 if it has none of that name.
    pub fn stat(&self, name: &str) -> f64 {
        self.stats.get(name).copied().unwrap_or(0.0)
    }
}

impl Objective {
    /// A surrogate with nothing else.
    pub fn new(surrogate: impl Surrogate + 'static, aggregation: Aggregation) -> Self {
        Self {
            rewards: Vec::new(),
            filters: Vec::new(),
            advantage: None,
            weights: Vec::new(),
            bounds: None,
            surrogate: Box::new(surrogate),
            regularizers: Vec::new(),
            aggregation,
        }
    }

    /// Every block with its role, in the order in which they work.
    pub fn blocks(&self) -> Vec<(&'static str, &dyn Block)> {
        let mut all: Vec<(&'static str, &dyn Block)> = Vec::new();
        all.extend(self.rewards.iter().map(|b| ("reward", &**b as &dyn Block)));
        all.extend(self.filters.iter().map(|b| ("filter", &**b as &dyn Block)));
        all.extend(self.advantage.iter().map(|b| ("advantage", &**b as &dyn Block)));
        all.extend(self.weights.iter().map(|b| ("weight", &**b as &dyn Block)));
        all.extend(self.bounds.iter().map(|b| ("bounds", &**b as &dyn Block)));
        all.push(("surrogate", &*self.surrogate as &dyn Block));
        all.extend(self.regularizers.iter().map(|b| ("regularizer", &**b as &dyn Block)));
        all
    }

    /// Refuses when a block reads something that is neither `available` nor made by a block before it.
    ///
    /// # Errors
    /// [`Error::Composition`] with a sentence that names the block and the input.
    pub fn check(&self, available: &[Input]) -> Result<()> {
        let mut known = available.to_vec();
        for (role, block) in self.blocks() {
            if let Some(input) = block.needs().into_iter().find(|input| !known.contains(input)) {
                let block = block.describe();
                return Err(Error::Composition(format!(
                    "the {role} \"{block}\" needs {input}, which is not there"
                )));
            }
            let either = block.needs_one_of();
            if !either.is_empty() && !either.iter().any(|input| known.contains(input)) {
                let (block, names) =
                    (block.describe(), either.iter().map(Input::to_string).collect::<Vec<_>>());
                let reason =
                    format!("the {role} \"{block}\" needs {}, and none is there", names.join(" or "));
                return Err(Error::Composition(reason));
            }
            known.extend(block.gives());
        }
        if self.surrogate.uses_advantages() && self.advantage.is_none() {
            let surrogate = self.surrogate.describe();
            return Err(Error::Composition(format!(
                "the surrogate \"{surrogate}\" needs an `advantage` block"
            )));
        }
        if let Some(bounds) = self.bounds.as_ref().filter(|_| !self.surrogate.uses_bounds()) {
            let (bounds, surrogate) = (bounds.describe(), self.surrogate.describe());
            let reason = format!("the surrogate \"{surrogate}\" has no clip bounds for \"{bounds}\" to set");
            return Err(Error::Composition(reason));
        }
        Ok(())
    }

    /// What all blocks read and no block makes; where one of several inputs is enough, the first of them.
    pub fn needs(&self) -> Vec<Input> {
        let (mut needs, mut made): (Vec<Input>, Vec<Input>) = (Vec::new(), Vec::new());
        for (_, block) in self.blocks() {
            for input in block.needs() {
                if !made.contains(&input) && !needs.contains(&input) {
                    needs.push(input);
                }
            }
            let either = block.needs_one_of();
            if !either.iter().any(|input| made.contains(input) || needs.contains(input)) {
                needs.extend(either.first());
            }
            made.extend(block.gives());
        }
        needs
    }

    /// Why the losses of micro-batches do not add up to the loss of the batch, if they do not.
    pub fn batch_wide(&self) -> Option<String> {
        let reason = |(role, block): (&str, &dyn Block)| {
            Some(format!("the {role} \"{}\": {}", block.describe(), block.batch_wide()?))
        };
        self.blocks().into_iter().find_map(reason)
    }

    /// Rewards, filters, advantages and token rules, once for all updates of a batch. `state` is what the blocks
    /// remember; it changes.
    ///
    /// # Errors
    /// A missing input, numbers that are not finite, settings out of range.
    pub fn prepare(&self, mut batch: Batch, state: &mut State) -> Result<Prepared> {
        self.shape_rewards(&mut batch, state)?;
        self.prepare_rewarded(batch, state)
    }

    /// The first part of [`Objective::prepare`]: rewards of the whole batch.
    ///
    /// # Errors
    /// As [`Objective::prepare`].
    pub fn shape_rewards(&self, batch: &mut Batch, state: &mut State) -> Result<()> {
        self.rewards.iter().try_for_each(|reward| reward.shape(batch, state))
    }

    /// The second part of [`Objective::prepare`]: filters, advantages and token rules of a batch that has its rewards.
    ///
    /// # Errors
    /// As [`Objective::prepare`].
    pub fn prepare_rewarded(&self, batch: Batch, state: &mut State) -> Result<Prepared> {
        let mut keep = vec![true; batch.rows()];
        for filter in &self.filters {
            let flags = filter.keep(&batch, state)?;
            keep.iter_mut().zip(flags).for_each(|(keep, flag)| *keep &= flag);
        }
        let kept: Vec<usize> = (0..batch.rows()).filter(|&i| keep[i]).collect();
        let batch = if kept.len() == batch.rows() { batch } else { batch.select(&kept)? };
        if kept.is_empty() {
            // Statistics of nothing: no block is asked for them.
            let signals = Signals::new(batch.mask().filled(0.0));
            return Ok(Prepared { batch, signals, kept });
        }
        let advantages = match &self.advantage {
            Some(advantage) => advantage.advantages(&batch, state)?,
            None => batch.mask().filled(0.0),
        };
        advantages.same_shape("advantages", batch.mask())?;
        let mut signals = Signals::new(advantages);
        for rule in self.weights.iter().chain(&self.bounds) {
            rule.prepare(&batch, &mut signals, state)?;
        }
        for regularizer in &self.regularizers {
            regularizer.prepare(&batch, &signals, state)?;
        }
        Ok(Prepared { batch, signals, kept })
    }

    /// Loss of a batch, or of a part of one when `whole` counts more. `signals` belong to the sequences of `batch`.
    ///
    /// # Errors
    /// An input that is needed is missing, shapes that differ, settings out of range.
    pub fn loss(
        &self,
        batch: &Batch,
        signals: &Signals,
        whole: &Normaliser,
        state: &State,
    ) -> Result<LossParts> {
        let mask = batch.mask();
        signals.advantages.same_shape("advantages", mask)?;
        let mut changed = None;
        for rule in self.weights.iter().chain(&self.bounds) {
            rule.update(batch, changed.get_or_insert_with(|| signals.clone()), state)?;
        }
        let signals = changed.as_ref().unwrap_or(signals);
        let SurrogateLoss { terms, stats } = self.surrogate.loss(batch, signals)?;
        let terms = match terms {
            Terms::Sequences(x) if signals.row_weights.iter().any(|&w| w != 1.0) => {
                let weights = Tensor::from_slice(&signals.row_weights, x.dims1()?, x.device())?;
                Terms::Sequences((&x * weights.to_dtype(x.dtype())?)?)
            }
            other => other,
        };
        let pg = match &terms {
            Terms::Tokens(x) => self.aggregation.apply_weighted(x, Some(&signals.weights), mask, whole)?,
            other => reduce(other, self.aggregation, mask, whole)?,
        };
        let mut loss = pg.clone();
        let mut regularizers = Vec::with_capacity(self.regularizers.len());
        for regularizer in &self.regularizers {
            let aggregation = regularizer.aggregation().unwrap_or(self.aggregation);
            let term = reduce(&regularizer.terms(batch, signals, state)?, aggregation, mask, whole)?;
            regularizers.push((regularizer.describe(), scalar(&term)?));
            loss = (loss + term)?;
        }
        let token_mean = |x: &Table| {
            let valid = x.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0);
            valid.map(|(x, m)| x * m).sum::<f64>() / whole.tokens.max(1.0)
        };
        let max_ratio_gap = stats.iter().find(|(name, _)| *name == "approx_kl").map_or(0.0, |(_, gaps)| {
            let valid = gaps.values.iter().zip(&mask.values).filter(|(_, m)| **m != 0.0);
            valid.map(|(d, _)| ((-d).exp() - 1.0).abs()).fold(0.0, f64::max)
        });
        Ok(LossParts {
            pg_loss: scalar(&pg)?,
            regularizers,
            entropy: if batch.has(ENTROPY) { token_mean(&batch.table(ENTROPY)?) } else { 0.0 },
            stats: stats.iter().map(|(name, table)| (*name, token_mean(table))).collect(),
            max_ratio_gap,
            loss,
        })
    }
}

/// Terms to one number; parts of a batch add up to the batch under one `whole`.
fn reduce(terms: &Terms, aggregation: Aggregation, mask: &Table, whole: &Normaliser) -> Result<Tensor> {
    let over = |n: f64| if n > 0.0 { 1.0 / n } else { 0.0 };
    match terms {
        Terms::Tokens(x) => aggregation.apply(x, mask, whole),
        Terms::Sequences(x) => {
            let flags: Vec<u8> = mask.iter().map(|row| u8::from(row.iter().any(|&m| m != 0.0))).collect();
            let flags = Tensor::from_vec(flags, mask.rows, x.device())?;
            Ok((flags.where_cond(x, &x.zeros_like()?)?.sum_all()? * over(whole.sequences))?)
        }
        Terms::Pairs(x) => Ok((x.sum_all()? * over(whole.pairs))?),
        Terms::Total(x) => Ok(x.clone()),
    }
}

fn scalar(x: &Tensor) -> Result<f64> {
    Ok(x.detach().to_dtype(candle_core::DType::F64)?.to_scalar()?)
}
