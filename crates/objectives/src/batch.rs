//! What blocks read: named inputs of a batch of sampled sequences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use candle_core::Tensor;

use crate::aggregation::Normaliser;
use crate::error::{Error, Result};
use crate::table::Table;

/// Something a block may need. A paper that needs what no other does declares its own.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// The field's standard name.
    pub name: &'static str,
    /// B sequences, T decisions.
    pub shape: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
}

impl Input {
    /// Declares an input.
    pub const fn new(name: &'static str, shape: &'static str, about: &'static str) -> Self {
        Self { name, shape, about }
    }
}

impl PartialEq for Input {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Input {}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {} ({})", self.name, self.shape, self.about)
    }
}

/// Natural log-probability of every chosen token under the policy that is trained, with gradient.
pub const LOG_PROBS: Input =
    Input::new("log_probs", "[B, T]", "log-probability of the chosen tokens, with gradient");
/// The same under the policy that sampled.
pub const OLD_LOG_PROBS: Input =
    Input::new("old_log_probs", "[B, T]", "log-probability under the policy that sampled");
/// The same under a frozen reference.
pub const REF_LOG_PROBS: Input =
    Input::new("ref_log_probs", "[B, T]", "log-probability under a frozen reference policy");
/// Entropy of every token's distribution, with gradient.
pub const ENTROPY: Input =
    Input::new("entropy", "[B, T]", "entropy of the token distributions, with gradient");
/// Entropy of every token's distribution under the policy that sampled.
pub const OLD_ENTROPY: Input =
    Input::new("old_entropy", "[B, T]", "entropy of the token distributions when they were sampled");
/// One outcome per sequence.
pub const REWARDS: Input = Input::new("rewards", "[B]", "outcome reward of every sequence");
/// Rewards placed on tokens.
pub const TOKEN_REWARDS: Input = Input::new("token_rewards", "[B, T]", "rewards placed on tokens");
/// What an outcome can be made of: [`Batch::outcomes`].
pub const OUTCOMES: &[Input] = &[REWARDS, TOKEN_REWARDS];
/// Which sequences answer the same prompt.
pub const GROUP_IDS: Input = Input::new("group_ids", "[B]", "which sequences answer the same prompt");
/// A prompt's identity that does not change between iterations.
pub const PROMPT_IDS: Input =
    Input::new("prompt_ids", "[B]", "stable identity of the prompt over iterations");
/// Which task, whatever the initial state.
pub const TASK_IDS: Input =
    Input::new("task_ids", "[B]", "task of every sequence, whatever its initial state");
/// Whether the sequence reached its goal, 0 or 1.
pub const SUCCESS: Input = Input::new("success", "[B]", "whether the sequence reached its goal, 0 or 1");
/// Control steps executed.
pub const FINISH_STEPS: Input = Input::new("finish_steps", "[B]", "control steps that were executed");
/// 1 where the sequence was cut off.
pub const TRUNCATED: Input =
    Input::new("truncated", "[B]", "1 where a sequence hit its limit without an end");
/// A critic's values.
pub const VALUES: Input = Input::new("values", "[B, T]", "a critic's value of every position");
/// Turn of every token, -1 outside of turns.
pub const TURN_IDS: Input = Input::new("turn_ids", "[B, T]", "turn of every token, -1 where there is none");
/// What a frozen encoder makes of a sequence.
pub const EMBEDDINGS: Input =
    Input::new("embeddings", "[B, E]", "vector of every sequence from a frozen encoder");
/// How close to its goal a sequence came, as a reward block sees it.
pub const PROGRESS: Input =
    Input::new("progress", "[B]", "how close to its goal every sequence came, 0 to 1");
/// Values of the critic that is trained; [`VALUES`] are those of the rollout. Not cleaned outside of the mask: TRL's
/// critic also learns the position after the last token.
pub const VALUE_PREDICTIONS: Input = Input::new(
    "value_predictions",
    "[B, T], beyond the mask too",
    "values of the critic that is trained, with gradient",
);
/// What the values should be.
pub const RETURNS: Input = Input::new("returns", "[B, T] of numbers", "targets of the critic's values");
/// Pair of every sequence; the preferred one stands first.
pub const PAIR_IDS: Input =
    Input::new("pair_ids", "[B]", "which two sequences are compared, preferred one first");

/// Values of an input.
#[derive(Clone, Debug)]
pub enum Field {
    /// Any tensor whose first dimension is B, gradient allowed.
    Tensor(Tensor),
    /// [B, T] numbers in f64.
    Table(Table),
    /// [B] numbers.
    Rows(Vec<f64>),
    /// [B] identities or counts.
    Ids(Vec<u64>),
    /// B lists of numbers, of any lengths.
    Vectors(Vec<Vec<f64>>),
    /// B texts.
    Texts(Vec<String>),
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {
        $(impl From<$type> for Field {
            fn from(values: $type) -> Self {
                Self::$variant(values)
            }
        })*
    };
}
from!(Tensor => Tensor, Table => Table, Vec<f64> => Rows, Vec<u64> => Ids, Vec<Vec<f64>> => Vectors, Vec<String> => Texts);

impl Field {
    fn len(&self) -> usize {
        match self {
            Self::Tensor(x) => x.dims().first().copied().unwrap_or(0),
            Self::Table(x) => x.rows,
            Self::Rows(x) => x.len(),
            Self::Ids(x) => x.len(),
            Self::Vectors(x) => x.len(),
            Self::Texts(x) => x.len(),
        }
    }

    fn select(&self, rows: &[usize]) -> Result<Self> {
        fn pick<T: Clone>(x: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|&i| x[i].clone()).collect()
        }
        Ok(match self {
            Self::Tensor(x) => {
                let ids: Vec<u32> = rows.iter().map(|&i| i as u32).collect();
                Self::Tensor(
                    x.contiguous()?.index_select(&Tensor::from_vec(ids, rows.len(), x.device())?, 0)?,
                )
            }
            Self::Table(x) => Self::Table(x.select(rows)),
            Self::Rows(x) => Self::Rows(pick(x, rows)),
            Self::Ids(x) => Self::Ids(pick(x, rows)),
            Self::Vectors(x) => Self::Vectors(pick(x, rows)),
            Self::Texts(x) => Self::Texts(pick(x, rows)),
        })
    }
}

/// B sampled sequences of up to T decisions, whatever the modality, with everything that is known about them.
///
/// [B, T] tensors are cleaned when they come in: where `response_mask` is 0 they read 0, selected and not multiplied, so
/// an infinite log-probability of a padded token reaches neither a loss nor a gradient.
#[derive(Clone, Debug)]
pub struct Batch {
    response_mask: Table,
    /// Inputs that read 0 outside of the mask.
    cleaned: BTreeSet<&'static str>,
    fields: BTreeMap<&'static str, Field>,
}

impl Batch {
    /// A batch that knows nothing but which tokens count: `response_mask` [B, T], 0 or 1.
    pub fn new(response_mask: Table) -> Self {
        Self { response_mask, cleaned: BTreeSet::new(), fields: BTreeMap::new() }
    }

    /// The batch with one more input (or a new value of one).
    ///
    /// # Errors
    /// [`Error::Shape`]: not one entry per sequence, or a [B, T] input of another width.
    pub fn with(mut self, input: Input, field: impl Into<Field>) -> Result<Self> {
        self.set(input, field)?;
        Ok(self)
    }

    /// As [`Batch::with`], in place.
    ///
    /// # Errors
    /// As [`Batch::with`].
    pub fn set(&mut self, input: Input, field: impl Into<Field>) -> Result<()> {
        let mut field = field.into();
        let mask = &self.response_mask;
        let wrong = |got: Vec<usize>| Error::Shape {
            name: input.name,
            got,
            expected: format!("{} with B = {}, T = {}", input.shape, mask.rows, mask.cols),
        };
        if field.len() != mask.rows {
            return Err(wrong(vec![field.len()]));
        }
        if let Field::Table(x) = &field {
            x.same_shape(input.name, mask)?;
        }
        self.cleaned.remove(input.name);
        if input.shape == "[B, T]"
            && let Field::Tensor(x) = &field
        {
            if x.dims() != [mask.rows, mask.cols] {
                return Err(wrong(x.dims().to_vec()));
            }
            field = Field::Tensor(keep_where(x, mask)?);
            self.cleaned.insert(input.name);
        }
        self.fields.insert(input.name, field);
        Ok(())
    }

    /// Number of sequences, B.
    pub fn rows(&self) -> usize {
        self.response_mask.rows
    }

    /// Padded length, T.
    pub fn cols(&self) -> usize {
        self.response_mask.cols
    }

    /// 1 on tokens that count, [B, T].
    pub fn mask(&self) -> &Table {
        &self.response_mask
    }

    /// Whether an input is there.
    pub fn has(&self, input: Input) -> bool {
        self.fields.contains_key(input.name)
    }

    /// Any input.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn field(&self, input: Input) -> Result<&Field> {
        self.fields.get(input.name).ok_or(Error::Missing { name: input.name })
    }

    /// An input as a tensor, in the type of `log_probs` if it was given as numbers.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Type`] for lists and texts.
    pub fn tensor(&self, input: Input) -> Result<Tensor> {
        match self.field(input)? {
            Field::Tensor(x) => Ok(x.clone()),
            Field::Table(x) => x.to_tensor(&self.like()?),
            Field::Rows(x) => {
                let like = self.like()?;
                Ok(Tensor::from_slice(x, x.len(), like.device())?.to_dtype(like.dtype())?)
            }
            _ => Err(Error::Type { name: input.name, expected: "numbers" }),
        }
    }

    fn like(&self) -> Result<Tensor> {
        match self.fields.get(LOG_PROBS.name).or_else(|| self.fields.get(OLD_LOG_PROBS.name)) {
            Some(Field::Tensor(x)) => Ok(x.detach()),
            _ => Ok(Tensor::zeros(1, candle_core::DType::F64, &candle_core::Device::Cpu)?),
        }
    }

    /// An input as [B, T] numbers in f64, without gradient.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Type`] for anything that is not [B, T].
    pub fn table(&self, input: Input) -> Result<Table> {
        match self.field(input)? {
            Field::Tensor(x) => Table::from_tensor(&x.detach()),
            Field::Table(x) => Ok(x.clone()),
            _ => Err(Error::Type { name: input.name, expected: "[B, T] numbers" }),
        }
    }

    /// An input as one number per sequence, [B].
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Type`] for anything that is not [B].
    pub fn numbers(&self, input: Input) -> Result<Vec<f64>> {
        match self.field(input)? {
            Field::Rows(x) => Ok(x.clone()),
            Field::Ids(x) => Ok(x.iter().map(|&i| i as f64).collect()),
            Field::Tensor(x) if x.rank() == 1 => {
                Ok(x.detach().to_dtype(candle_core::DType::F64)?.to_vec1()?)
            }
            _ => Err(Error::Type { name: input.name, expected: "one number per sequence" }),
        }
    }

    /// An input as identities or counts, [B].
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Type`].
    pub fn ids(&self, input: Input) -> Result<&[u64]> {
        match self.field(input)? {
            Field::Ids(x) => Ok(x),
            _ => Err(Error::Type { name: input.name, expected: "one id per sequence" }),
        }
    }

    /// An input as one list of numbers per sequence.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Type`].
    pub fn vectors(&self, input: Input) -> Result<&[Vec<f64>]> {
        match self.field(input)? {
            Field::Vectors(x) => Ok(x),
            _ => Err(Error::Type { name: input.name, expected: "a list of numbers per sequence" }),
        }
    }

    /// An input as one text per sequence.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Type`].
    pub fn texts(&self, input: Input) -> Result<&[String]> {
        match self.field(input)? {
            Field::Texts(x) => Ok(x),
            _ => Err(Error::Type { name: input.name, expected: "a text per sequence" }),
        }
    }

    /// The outcome of every sequence: `rewards`, else the row sums of `token_rewards`, [B].
    ///
    /// # Errors
    /// [`Error::Missing`] when there is neither; [`Error::NotFinite`].
    pub fn outcomes(&self) -> Result<Vec<f64>> {
        let outcomes = if self.has(REWARDS) || !self.has(TOKEN_REWARDS) {
            self.numbers(REWARDS)?
        } else {
            self.table(TOKEN_REWARDS)?.row_sums()
        };
        match outcomes.iter().position(|r| !r.is_finite()) {
            Some(index) => Err(Error::NotFinite { name: "rewards", index, got: outcomes[index] }),
            None => Ok(outcomes),
        }
    }

    /// The batch with another response mask of the same shape; tokens that it takes away read 0 from now on in [B, T]
    /// tensors (numbers stay as they are).
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn masked(self, response_mask: Table) -> Result<Self> {
        response_mask.same_shape("response_mask", &self.response_mask)?;
        let mut fields = self.fields;
        for (name, field) in &mut fields {
            if let Field::Tensor(x) = field
                && self.cleaned.contains(name)
            {
                *x = keep_where(x, &response_mask)?;
            }
        }
        Ok(Self { response_mask, cleaned: self.cleaned, fields })
    }

    /// The sequences `rows`, in that order.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn select(&self, rows: &[usize]) -> Result<Self> {
        let fields = self.fields.iter().map(|(&name, field)| Ok((name, field.select(rows)?)));
        Ok(Self {
            response_mask: self.response_mask.select(rows),
            cleaned: self.cleaned.clone(),
            fields: fields.collect::<Result<_>>()?,
        })
    }

    /// Denominators of this batch as a whole.
    pub fn normaliser(&self) -> Normaliser {
        Normaliser::of(&self.response_mask)
    }
}

/// `x` where the mask is not 0, else 0; the gradient of what is masked is exactly 0 even where `x` is infinite.
///
/// # Errors
/// Shapes that differ.
pub fn keep_where(x: &Tensor, mask: &Table) -> Result<Tensor> {
    if mask.values.iter().all(|&m| m != 0.0) {
        return Ok(x.clone());
    }
    if x.dims() != [mask.rows, mask.cols] {
        let expected = format!("[{}, {}], like the mask", mask.rows, mask.cols);
        return Err(Error::Shape { name: "x", got: x.dims().to_vec(), expected });
    }
    crate::fused::keep(x, mask)
}

/// What is known about every token before the loss is computed; no gradient. Made by
/// [`Objective::prepare`](crate::objective::Objective::prepare), shaped by token rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Signals {
    /// Advantage of every token, [B, T].
    pub advantages: Table,
    /// Factor on every token's loss, [B, T]; 1 unless a rule says otherwise.
    pub weights: Table,
    /// Factor on every sequence's loss, [B], for surrogates that work on whole sequences; 1 unless a rule says otherwise.
    pub row_weights: Vec<f64>,
    /// Smallest and largest ratio that still profits, [B, T] each; a surrogate's own settings hold without them.
    pub bounds: Option<(Table, Table)>,
    /// Anything else that a rule hands to a block that knows it, by name.
    pub extra: BTreeMap<String, Table>,
}

impl Signals {
    /// Advantages with neutral weights.
    pub fn new(advantages: Table) -> Self {
        let weights = Table { values: vec![1.0; advantages.values.len()], ..advantages };
        let row_weights = vec![1.0; advantages.rows];
        Self { advantages, weights, row_weights, bounds: None, extra: BTreeMap::new() }
    }

    /// Those of the sequences `rows`, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            advantages: self.advantages.select(rows),
            weights: self.weights.select(rows),
            row_weights: rows.iter().map(|&i| self.row_weights[i]).collect(),
            bounds: self.bounds.as_ref().map(|(low, high)| (low.select(rows), high.select(rows))),
            extra: self.extra.iter().map(|(name, table)| (name.clone(), table.select(rows))).collect(),
        }
    }
}
