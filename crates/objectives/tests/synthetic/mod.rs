//! Batches made up for any objective: whatever `needs()` asks for, by the input's name and shape.
//!
//! Three groups of four answers of up to eight tokens, with holes in the mask; success differs within every group. A new
//! input mostly needs nothing here: [`generate`] guesses from its shape, its name and its description, and where a block
//! says that it reads another kind of value ([`Error::Type`]), [`Fields::for_objective`] makes that. What must fit
//! together in a special way gets an arm in [`generate`].
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use efference_objectives::{
    Batch, Error, Field, Input, LossParts, Normaliser, Objective, Prepared, State, Table,
};

/// Sequences.
pub const B: usize = 12;
/// Longest length.
pub const T: usize = 8;
/// Members of a group.
pub const GROUP: usize = 4;

/// Numbers in 0..1, the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.next()
    }
}

/// What kind of value a block reads, as its [`Error::Type`] says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Numbers on tokens, or a tensor.
    Numbers,
    Rows,
    Ids,
    Vectors,
    Texts,
}

impl Kind {
    fn named(expected: &str) -> Option<Self> {
        Some(match expected {
            "numbers" | "[B, T] numbers" => Self::Numbers,
            "one number per sequence" => Self::Rows,
            "one id per sequence" => Self::Ids,
            "a list of numbers per sequence" => Self::Vectors,
            "a text per sequence" => Self::Texts,
            _ => return None,
        })
    }
}

/// A batch that can be padded and permuted.
#[derive(Clone)]
pub struct Fields {
    pub mask: Table,
    pub fields: Vec<(Input, Field)>,
}

/// Gradients by input, over the rows of the batch before any filter.
pub type Gradients = BTreeMap<&'static str, Vec<f64>>;

/// One iteration.
pub struct Run {
    pub loss: f64,
    pub gradients: Gradients,
    pub parts: LossParts,
}

/// Valid tokens: 3 to T of them, and a hole in every third row.
pub fn mask(random: &mut Random) -> Table {
    let row = |i: usize, random: &mut Random| -> Vec<f64> {
        let length = 3 + (random.next() * (T - 2) as f64) as usize;
        (0..T).map(|t| f64::from(u8::from(t < length && !(i % 3 == 2 && t == 1)))).collect()
    };
    Table::from_rows(&(0..B).map(|i| row(i, random)).collect::<Vec<_>>()).unwrap()
}

/// Success of row `i`: both in every group.
fn success(i: usize) -> f64 {
    f64::from(u8::from([1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1][i % B] == 1))
}

fn tensor(dims: &[usize], mut cell: impl FnMut(usize) -> f64) -> Tensor {
    let values: Vec<f64> = (0..dims.iter().product()).map(&mut cell).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// The value of an input. `seed` is the batch's: the log-probabilities of all policies lie near each other.
pub fn generate(input: Input, mask: &Table, seed: u64, kind: Option<Kind>) -> Field {
    let salt = input.name.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut random = Random::new(salt);
    let on_tokens = |f: &mut dyn FnMut(usize, usize) -> f64| Table {
        rows: B,
        cols: T,
        values: (0..B * T).map(|i| f(i / T, i % T)).collect(),
    };
    let policy = |random: &mut Random| {
        let mut common = Random::new(seed);
        let near = |_| (common.within(-3.0, -0.4) + random.within(-0.3, 0.3)).min(-1e-3);
        tensor(&[B, T], near)
    };
    let about = input.about.to_lowercase();
    let is_flag = about.contains("0 or 1") || about.starts_with("1 where") || about.starts_with("1 on");
    let shape: String = input.shape.chars().filter(|c| !c.is_whitespace()).collect();
    match (input.name, kind) {
        // What must fit together.
        ("rewards" | "success", None) => return Field::Rows((0..B).map(success).collect()),
        ("token_rewards", None) => {
            let last = |i: usize| mask.row(i).iter().rposition(|&m| m != 0.0);
            let placed = on_tokens(&mut |i, t| if last(i) == Some(t) { success(i) } else { 0.0 });
            return Field::Table(placed);
        }
        ("group_ids", None) => return Field::Ids((0..B).map(|i| (i / GROUP) as u64).collect()),
        ("prompt_ids", None) => return Field::Ids((0..B).map(|i| 100 + (i / GROUP) as u64).collect()),
        ("task_ids", None) => return Field::Ids((0..B).map(|i| (i / (2 * GROUP)) as u64).collect()),
        ("pair_ids", None) => return Field::Ids((0..B).map(|i| (i / 2) as u64).collect()),
        ("turn_ids", None) => {
            let turn = |i: usize, t: usize| if mask.row(i)[t] == 0.0 { -1.0 } else { (t / 3) as f64 };
            return Field::Table(on_tokens(&mut |i, t| turn(i, t)));
        }
        ("truncated", None) => return Field::Rows((0..B).map(|i| f64::from(u8::from(i % 5 == 4))).collect()),
        ("finish_steps" | "response_lengths", None) => {
            return Field::Ids(mask.row_sums().into_iter().map(|l| l as u64).collect());
        }
        // A paper's own.
        ("evaluations", _) => {
            return Field::Texts((0..B).map(|i| format!("<score>{}</score>", i % 5)).collect());
        }
        ("query_embeddings" | "negative_embeddings", _) => {
            let of_group = |i: usize| {
                let mut random = Random::new(salt ^ (i / GROUP) as u64 ^ 0x5bd1_e995);
                (0..3).map(|_| random.within(0.1, 1.0)).collect()
            };
            return Field::Vectors((0..B).map(of_group).collect());
        }
        ("responses", None) => {
            let text = |i: usize| format!("<think>a</think>[{{\"point_2d\": [{}, 12]}}]", 10 + 4 * (i % 5));
            return Field::Texts((0..B).map(text).collect());
        }
        ("target_boxes", _) => return Field::Vectors(vec![vec![10.0, 10.0, 20.0, 20.0]; B]),
        ("cutpoints", _) => return Field::Vectors(vec![vec![-1.0, 0.0]; B]),
        ("segment_values", _) => {
            let row = |random: &mut Random| (0..2).map(|_| random.next()).collect();
            return Field::Vectors((0..B).map(|_| row(&mut random)).collect());
        }
        _ => {}
    }
    let name = input.name;
    let flag_or = |random: &mut Random, low: f64, high: f64| {
        if is_flag { f64::from(u8::from(random.next() < 0.5)) } else { random.within(low, high) }
    };
    let guessed = kind.unwrap_or(if shape.starts_with("[B,") {
        Kind::Numbers
    } else if shape.starts_with("[B][") {
        Kind::Vectors
    } else if about.contains("text") {
        Kind::Texts
    } else if name.ends_with("_ids") {
        Kind::Ids
    } else {
        Kind::Rows
    });
    match guessed {
        Kind::Numbers if shape.starts_with("[B,T]") => {
            if name.contains("log_probs") {
                Field::Tensor(policy(&mut random))
            } else if name.ends_with("_ids") {
                Field::Table(on_tokens(&mut |_, t| (random.next() * 5.0).floor() + (t % 2) as f64))
            } else if about.contains("gradient") {
                Field::Tensor(tensor(&[B, T], |_| random.within(0.1, 1.2)))
            } else {
                Field::Table(on_tokens(&mut |_, _| flag_or(&mut random, 0.1, 0.9)))
            }
        }
        Kind::Numbers => {
            // [B, N], [B, T, V], ...: other letters than B and T are 5.
            let letters = shape.trim_matches(|c| c == '[' || c == ']').split(',');
            let size = |letter: &str| match letter {
                "B" => B,
                "T" => T,
                digits => digits.parse().unwrap_or(5),
            };
            let dims: Vec<usize> = letters.map(size).collect();
            let is_log = about.contains("log") || about.contains("elbo");
            let mut common = Random::new(seed);
            Field::Tensor(tensor(&dims, |_| {
                let x = random.next();
                if is_log { common.within(-3.0, -0.4) + 0.3 * x - 0.3 } else { x }
            }))
        }
        Kind::Rows => Field::Rows((0..B).map(|_| flag_or(&mut random, 0.1, 1.0)).collect()),
        Kind::Ids => Field::Ids((0..B).map(|i| (i / 2) as u64).collect()),
        Kind::Vectors => {
            let row = |random: &mut Random| (0..3).map(|_| flag_or(random, 0.1, 1.0)).collect();
            Field::Vectors((0..B).map(|_| row(&mut random)).collect())
        }
        Kind::Texts => Field::Texts((0..B).map(|i| format!("{name} {}", i / 2 % 3)).collect()),
    }
}

impl Fields {
    /// What `objective` needs, and rewards; a kind of value that a block refuses is replaced by the one it asks for.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn for_objective(objective: &Objective, seed: u64) -> Result<Self, String> {
        Self::of(objective, objective.needs(), seed)
    }

    /// As [`Fields::for_objective`] with exactly `inputs`.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub fn of(objective: &Objective, inputs: Vec<Input>, seed: u64) -> Result<Self, String> {
        let mut kinds: BTreeMap<&'static str, Kind> = BTreeMap::new();
        let mask = mask(&mut Random::new(seed));
        loop {
            let made = |&input: &Input| (input, generate(input, &mask, seed, kinds.get(input.name).copied()));
            let fields = Self { mask: mask.clone(), fields: inputs.iter().map(made).collect() };
            let attempt = fields.run(objective, &mut State::default());
            match attempt {
                Ok(_) => return Ok(fields),
                Err(Error::Type { name, expected }) => {
                    let kind =
                        Kind::named(expected).ok_or(format!("`{name}` must hold {expected}: {ADVICE}"))?;
                    if kinds.insert(name, kind) == Some(kind) {
                        return Err(format!(
                            "`{name}` must hold {expected}, and what was made does not: {ADVICE}"
                        ));
                    }
                }
                Err(Error::Missing { name }) => {
                    return Err(format!(
                        "a block reads `{name}`, which its `needs` (or `needs_one_of`) does not name"
                    ));
                }
                Err(e) => return Err(format!("{}: {ADVICE}", chain(&e))),
            }
        }
    }

    /// The batch, and the variables behind its tensors.
    pub fn batch(&self) -> (Batch, BTreeMap<&'static str, Var>) {
        let mut vars = BTreeMap::new();
        let mut batch = Batch::new(self.mask.clone());
        for (input, field) in &self.fields {
            let field = match field {
                Field::Tensor(x) => {
                    let var = Var::from_tensor(x).unwrap();
                    let tensor = var.as_tensor().clone();
                    vars.insert(input.name, var);
                    Field::Tensor(tensor)
                }
                other => other.clone(),
            };
            batch.set(*input, field).unwrap();
        }
        (batch, vars)
    }

    /// Prepares and computes the loss under the batch's own normaliser.
    ///
    /// # Errors
    /// What the blocks refuse.
    pub fn run(&self, objective: &Objective, state: &mut State) -> Result<Run, Error> {
        self.run_with(objective, state, |whole| whole)
    }

    /// As [`Fields::run`] with a changed normaliser.
    ///
    /// # Errors
    /// What the blocks refuse.
    pub fn run_with(
        &self,
        objective: &Objective,
        state: &mut State,
        change: impl Fn(Normaliser) -> Normaliser,
    ) -> Result<Run, Error> {
        let (batch, vars) = self.batch();
        let Prepared { batch, signals, .. } = objective.prepare(batch, state)?;
        let whole = change(batch.normaliser());
        let parts = objective.loss(&batch, &signals, &whole, state)?;
        let gradients = gradients(&parts.loss, &vars);
        Ok(Run { loss: scalar(&parts.loss), gradients, parts })
    }

    /// As [`Fields::run`], with the loss and gradient of `parts` of the prepared batch added up.
    ///
    /// # Errors
    /// What the blocks refuse.
    pub fn run_in_parts(
        &self,
        objective: &Objective,
        state: &mut State,
        cut: impl Fn(usize) -> usize,
    ) -> Result<(f64, Gradients), Error> {
        let (batch, vars) = self.batch();
        let Prepared { batch, signals, .. } = objective.prepare(batch, state)?;
        let (whole, rows) = (batch.normaliser(), batch.rows());
        let mut total = Tensor::new(0f64, &Device::Cpu).unwrap();
        let cut = cut(rows);
        for part in [(0..cut).collect::<Vec<_>>(), (cut..rows).collect()] {
            if !part.is_empty() {
                let loss = objective.loss(&batch.select(&part)?, &signals.select(&part), &whole, state)?.loss;
                total = (total + loss.to_dtype(DType::F64).unwrap()).unwrap();
            }
        }
        Ok((scalar(&total), gradients(&total, &vars)))
    }

    /// With `extra` padded columns; what a policy says there is -inf.
    pub fn padded(&self, extra: usize) -> Self {
        let pad = |table: &Table, with: f64| {
            let rows: Vec<Vec<f64>> = table.iter().map(|row| [row, &vec![with; extra]].concat()).collect();
            Table::from_rows(&rows).unwrap()
        };
        let fields = self.fields.iter().map(|(input, field)| {
            let field = match field {
                Field::Table(x) if input.name == "turn_ids" => Field::Table(pad(x, -1.0)),
                Field::Table(x) => Field::Table(pad(x, 0.0)),
                Field::Tensor(x) if x.rank() >= 2 && x.dims()[1] == T => {
                    let with = if input.name.contains("log_probs") { f64::NEG_INFINITY } else { 0.0 };
                    let mut dims = x.dims().to_vec();
                    dims[1] = extra;
                    let more = Tensor::full(with, dims, x.device()).unwrap();
                    Field::Tensor(Tensor::cat(&[x, &more], 1).unwrap())
                }
                other => other.clone(),
            };
            (*input, field)
        });
        Self { fields: fields.collect(), mask: pad(&self.mask, 0.0) }
    }

    /// The rows `order`.
    pub fn rows(&self, order: &[usize]) -> Self {
        fn pick<X: Clone>(x: &[X], order: &[usize]) -> Vec<X> {
            order.iter().map(|&i| x[i].clone()).collect()
        }
        let ids: Vec<u32> = order.iter().map(|&i| i as u32).collect();
        let ids = Tensor::from_vec(ids, order.len(), &Device::Cpu).unwrap();
        let fields = self.fields.iter().map(|(input, field)| {
            let field = match field {
                Field::Tensor(x) => Field::Tensor(x.index_select(&ids, 0).unwrap()),
                Field::Table(x) => Field::Table(x.select(order)),
                Field::Rows(x) => Field::Rows(pick(x, order)),
                Field::Ids(x) => Field::Ids(pick(x, order)),
                Field::Vectors(x) => Field::Vectors(pick(x, order)),
                Field::Texts(x) => Field::Texts(pick(x, order)),
            };
            (*input, field)
        });
        Self { fields: fields.collect(), mask: self.mask.select(order) }
    }
}

/// What to do about an input that cannot be guessed.
pub const ADVICE: &str = "give the input that this is about an arm in `generate` of tests/synthetic/mod.rs";

/// An error with its causes.
pub fn chain(error: &Error) -> String {
    let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{source}")
}

fn scalar(x: &Tensor) -> f64 {
    x.detach().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

fn gradients(loss: &Tensor, vars: &BTreeMap<&'static str, Var>) -> Gradients {
    let grads = loss.backward().unwrap();
    let of = |var: &Var| match grads.get(var.as_tensor()) {
        Some(g) => g.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap(),
        None => vec![0.0; var.elem_count()],
    };
    vars.iter().map(|(&name, var)| (name, of(var))).collect()
}
