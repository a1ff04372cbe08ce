//! The file format, and comparing.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, Signals};
use crate::error::Error;
use crate::table::Table;

#[derive(Deserialize)]
pub(super) struct File {
    pub id: String,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(super) struct Case {
    pub name: String,
    pub function: String,
    pub params: BTreeMap<String, Value>,
    pub inputs: BTreeMap<String, Value>,
    outputs: BTreeMap<String, Value>,
    #[serde(deserialize_with = "tolerance")]
    tolerance: f64,
}

/// A number, also as a string (see [`File::parse`]).
fn tolerance<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = flat(&value).and_then(|numbers| numbers.first().copied());
    number.ok_or_else(|| serde::de::Error::custom("`tolerance` is not a number"))
}

/// Numbers by name, whatever their shape.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// Why a case did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    NotImplemented(String),
    #[error("{0}")]
    Elsewhere(String),
    #[error("the case has no usable `{0}`")]
    Missing(String),
    #[error(
        "output `{name}`: worst error {error:.3e} at index {index} (got {got}, expected {expected}), tolerance {tolerance:e}"
    )]
    Differs { name: String, index: usize, got: f64, expected: f64, error: f64, tolerance: f64 },
    #[error("output `{name}` has {got} numbers, expected {expected}")]
    Length { name: String, got: usize, expected: usize },
    #[error("output `{0}` is not computed")]
    NotComputed(String),
    #[error("{}", chain(.0))]
    Block(#[from] Error),
    #[error("operation: {0}")]
    Op(#[from] efference_ops::Error),
    #[error("tensor: {0}")]
    Tensor(#[from] candle_core::Error),
}

fn chain(error: &Error) -> String {
    let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    format!("{error}{source}")
}

pub(super) type Outputs = BTreeMap<&'static str, Vec<f64>>;
pub(super) type Outcome = Result<Outputs, Failure>;

impl Case {
    /// A parameter of any serde type; absent and null are `None` for optional types.
    pub fn param<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let value = self.params.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|e| Failure::Missing(format!("params.{name}: {e}")))
    }

    /// The numbers of an input, whatever its shape.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>, Failure> {
        self.inputs.get(name).and_then(flat).ok_or_else(|| Failure::Missing(format!("inputs.{name}")))
    }

    /// The shape of a tensor input.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, Failure> {
        let shape = self.inputs.get(name).and_then(|v| v.get("shape")).cloned();
        let shape = shape.ok_or_else(|| Failure::Missing(format!("inputs.{name}.shape")))?;
        serde_json::from_value(shape).map_err(|e| Failure::Missing(format!("inputs.{name}.shape: {e}")))
    }

    /// An input of any serde type: texts and lists of them.
    pub fn input<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let value = self.inputs.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|e| Failure::Missing(format!("inputs.{name}: {e}")))
    }

    /// Ids, flags or counts.
    pub fn whole(&self, name: &str) -> Result<Vec<u64>, Failure> {
        Ok(self.numbers(name)?.into_iter().map(|x| x as u64).collect())
    }

    /// A [B, T] input.
    pub fn table(&self, name: &str) -> Result<Table, Failure> {
        match self.shape(name)?[..] {
            [rows, cols] => Ok(Table { rows, cols, values: self.numbers(name)? }),
            _ => Err(Failure::Missing(format!("inputs.{name} with two dimensions"))),
        }
    }

    /// An input as an f64 tensor.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Failure> {
        Ok(Tensor::from_vec(self.numbers(name)?, self.shape(name)?, &Device::Cpu)?)
    }

    /// An input that gets a gradient.
    pub fn var(&self, name: &str) -> Result<Var, Failure> {
        Ok(Var::from_tensor(&self.tensor(name)?)?)
    }

    /// `log_probs` with gradient, and a batch with whatever is there of `log_probs`, `old_log_probs`, `ref_log_probs`,
    /// `response_mask` and `advantages` (zeros without).
    pub fn policy_batch(&self) -> Result<(Var, Batch, Signals), Failure> {
        let log_probs = self.var("log_probs")?;
        let mask = self.table("response_mask")?;
        let has = |name: &str| self.inputs.contains_key(name);
        let advantages = if has("advantages") { self.table("advantages")? } else { mask.filled(0.0) };
        let mut batch = Batch::new(mask).with(LOG_PROBS, log_probs.as_tensor().clone())?;
        for input in [OLD_LOG_PROBS, REF_LOG_PROBS].into_iter().filter(|input| has(input.name)) {
            batch.set(input, self.tensor(input.name)?)?;
        }
        Ok((log_probs, batch, Signals::new(advantages)))
    }

    /// Largest relative error, if it is within the tolerance.
    pub fn compare<K: Borrow<str> + Ord>(&self, outputs: &BTreeMap<K, Vec<f64>>) -> Result<f64, Failure> {
        let (mut worst, mut place) = (0.0f64, None);
        for (name, expected) in &self.outputs {
            let expected = code(expected);
            let got = outputs.get(name.as_str()).ok_or_else(|| Failure::NotComputed(name.clone()))?;
            if got.len() != expected.len() {
                let (got, expected) = (got.len(), expected.len());
                return Err(Failure::Length { name: name.clone(), got, expected });
            }
            for (index, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                let error = (got - expected).abs() / (1.0 + expected.abs());
                let error = if error.is_nan() { f64::INFINITY } else { error };
                if error > worst {
                    (worst, place) = (error, Some((name, index, got, expected)));
                }
            }
        }
        match place {
            Some((name, index, got, expected)) if worst > self.tolerance => {
                let (name, tolerance) = (name.clone(), self.tolerance);
                Err(Failure::Differs { name, index, got, expected, error: worst, tolerance })
            }
            _ => Ok(worst),
        }
    }

    /// Every input that holds numbers, flat.
    pub fn all_numbers(&self) -> Numbers {
        self.inputs.iter().filter_map(|(name, value)| Some((name.clone(), flat(value)?))).collect()
    }
}

impl File {
    /// Parses a file of vectors. Inputs and outputs are exactly the numbers written, where serde_json's own floats may
    /// be one bit off and an action that lies on the edge of a bin would fall into its neighbour.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        let mut file: Self = serde_json::from_str(text)?;
        let exact: Self = serde_json::from_str(&quote_decimals(text))?;
        for (case, exact) in file.cases.iter_mut().zip(exact.cases) {
            (case.inputs, case.outputs) = (exact.inputs, exact.outputs);
        }
        Ok(file)
    }
}

/// JSON with every decimal number as a string.
fn quote_decimals(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 5 / 4);
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let digits = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
        let taken = match c {
            '\\' if in_string => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            '-' | '0'..='9' if !in_string => rest.find(|c| !digits(c)).unwrap_or(rest.len()),
            _ => c.len_utf8(),
        };
        let (token, after) = rest.split_at(taken);
        let is_decimal = !in_string && taken > 1 && token.contains(['.', 'e', 'E']);
        in_string ^= c == '"';
        if is_decimal {
            out.extend(["\"", token, "\""]);
        } else {
            out.push_str(token);
        }
        rest = after;
    }
    out
}

/// Numbers of a scalar, a (nested) list or a `{ shape, data }` tensor; flags count as 0 and 1, null as NaN, strings as
/// the number in them (see [`File::parse`]).
fn flat(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Number(x) => Some(vec![x.as_f64()?]),
        Value::Bool(b) => Some(vec![f64::from(u8::from(*b))]),
        Value::Null => Some(vec![f64::NAN]),
        Value::Array(items) => Some(items.iter().map(flat).collect::<Option<Vec<_>>>()?.concat()),
        Value::Object(map) => flat(map.get("data")?),
        Value::String(digits) => Some(vec![digits.parse().ok()?]),
    }
}

/// Numbers as they are; anything with a text or a map in it as the code points of its texts and keys, so that texts
/// can be compared like numbers. Outputs that hold texts go through this as well.
pub(super) fn code(value: &Value) -> Vec<f64> {
    fn letters(value: &Value, out: &mut Vec<f64>) {
        let text = |s: &str, out: &mut Vec<f64>| {
            out.extend(s.chars().map(|c| f64::from(u32::from(c))));
            out.push(-1.0);
        };
        match value {
            Value::String(s) => text(s, out),
            Value::Array(items) => items.iter().for_each(|item| letters(item, out)),
            Value::Object(map) => map.iter().for_each(|(key, item)| {
                text(key, out);
                letters(item, out);
            }),
            other => out.extend(flat(other).unwrap_or_default()),
        }
    }
    flat(value).unwrap_or_else(|| {
        let mut out = Vec::new();
        letters(value, &mut out);
        out
    })
}

/// All numbers of a tensor, in f64.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f64>, Failure> {
    Ok(tensor.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// d loss / d var, zeros if the loss does not depend on it.
pub(super) fn gradient(loss: &Tensor, var: &Var) -> Result<Vec<f64>, Failure> {
    let grads = loss.backward()?;
    match grads.get(var.as_tensor()) {
        Some(grad) => values(grad),
        None => Ok(vec![0.0; var.elem_count()]),
    }
}
