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
    tolerance: f64,
}

/// Outputs that tell what a case was made from: the motion behind noisy points, and which of them were spoilt. No input
/// holds them, so nothing can compute them.
const MADE_FROM: [&str; 3] = ["true_R", "true_t", "true_outliers"];

/// Numbers by name, whatever their shape.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// Why a case did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    NotImplemented(String),
    /// Needs what this crate has not, a network: others may compute it, else it is skipped.
    #[error("{0}")]
    NotHere(String),
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

    /// An input of any serde type: texts, records, nested lists.
    pub fn input<T: DeserializeOwned>(&self, name: &str) -> Result<T, Failure> {
        let value = self.inputs.get(name).ok_or_else(|| Failure::Missing(format!("inputs.{name}")))?;
        serde_json::from_value(value.clone()).map_err(|e| Failure::Missing(format!("inputs.{name}: {e}")))
    }

    /// The shape of a tensor input.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, Failure> {
        let shape = self.inputs.get(name).and_then(|v| v.get("shape")).cloned();
        let shape = shape.ok_or_else(|| Failure::Missing(format!("inputs.{name}.shape")))?;
        serde_json::from_value(shape).map_err(|e| Failure::Missing(format!("inputs.{name}.shape: {e}")))
    }

    /// Names of the expected outputs, where they say what is asked for.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.keys().map(String::as_str)
    }

    /// Ids, flags or counts.
    pub fn whole(&self, name: &str) -> Result<Vec<u64>, Failure> {
        Ok(self.numbers(name)?.into_iter().map(|x| x as u64).collect())
    }

    /// Texts of a list input.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Failure> {
        let value = self.inputs.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|e| Failure::Missing(format!("inputs.{name}: {e}")))
    }

    /// A [B, T] input.
    pub fn table(&self, name: &str) -> Result<Table, Failure> {
        match self.shape(name)?[..] {
            [rows, cols] => {
                let values = self.numbers(name)?;
                if rows.checked_mul(cols) != Some(values.len()) {
                    return Err(Failure::Missing(format!("inputs.{name} with {rows} x {cols} numbers")));
                }
                Ok(Table { rows, cols, values })
            }
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
        if self.outputs.is_empty() {
            return Err(Failure::Missing("outputs".into()));
        }
        let (mut worst, mut place) = (0.0f64, None);
        for (name, expected) in &self.outputs {
            let expected = code(expected);
            let got = match outputs.get(name.as_str()) {
                Some(got) => got,
                None if MADE_FROM.contains(&name.as_str()) => continue,
                None => return Err(Failure::NotComputed(name.clone())),
            };
            if got.len() != expected.len() {
                let (got, expected) = (got.len(), expected.len());
                return Err(Failure::Length { name: name.clone(), got, expected });
            }
            for (index, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                // Infinities are equal or not: their difference is no number. An expected null is met by no number only.
                let same = got == expected || (got.is_nan() && expected.is_nan());
                let error = if same { 0.0 } else { (got - expected).abs() / (1.0 + expected.abs()) };
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

    /// The case as other crates see it.
    pub fn question<'a>(&'a self, id: &'a str) -> Question<'a> {
        Question { id, function: &self.function, params: &self.params, inputs: &self.inputs }
    }
}

/// A case that this crate does not compute.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Of the file.
    pub id: &'a str,
    /// What is to be computed.
    pub function: &'a str,
    /// Settings, as they stand in the file.
    pub params: &'a BTreeMap<String, Value>,
    /// Inputs, as they stand in the file.
    pub inputs: &'a BTreeMap<String, Value>,
}

impl Question<'_> {
    /// Every input that holds numbers, flat.
    pub fn numbers(&self) -> Numbers {
        self.inputs.iter().filter_map(|(name, value)| Some((name.clone(), flat(value)?))).collect()
    }

    /// The numbers of an input, whatever its shape.
    ///
    /// # Errors
    /// Names the input.
    pub fn values(&self, name: &str) -> Result<Vec<f64>, String> {
        self.inputs.get(name).and_then(flat).ok_or_else(|| absent(&format!("inputs.{name}")))
    }

    /// The shape of a tensor input.
    ///
    /// # Errors
    /// Names the input.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, String> {
        let shape = self.inputs.get(name).and_then(|value| value.get("shape"));
        read(shape, &format!("inputs.{name}.shape"))
    }

    /// An input of any serde type: texts, records, nested lists.
    ///
    /// # Errors
    /// Names the input.
    pub fn input<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        read(self.inputs.get(name), &format!("inputs.{name}"))
    }

    /// A parameter of any serde type.
    ///
    /// # Errors
    /// Names the parameter.
    pub fn param<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        read(self.params.get(name), &format!("params.{name}"))
    }
}

fn absent(place: &str) -> String {
    format!("the case has no usable `{place}`")
}

fn read<T: DeserializeOwned>(value: Option<&Value>, place: &str) -> Result<T, String> {
    let value = value.ok_or_else(|| absent(place))?;
    serde_json::from_value(value.clone()).map_err(|e| format!("{}: {e}", absent(place)))
}

/// Outputs of any form, texts and records too, as the numbers that the comparison takes them for.
pub fn in_numbers(outputs: impl IntoIterator<Item = (impl Into<String>, Value)>) -> Numbers {
    outputs.into_iter().map(|(name, value)| (name.into(), code(&value))).collect()
}

impl File {
    /// Parses a file of vectors. Every number is read exactly (`float_roundtrip` of serde_json): an action that lies on
    /// the edge of a bin would fall into its neighbour otherwise.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

/// Numbers of a scalar, a (nested) list, a `{ shape, data }` tensor or a record (in order of its names); flags count as
/// 0 and 1, null as NaN; the texts `inf`, `-inf` and `nan` are numbers, other texts are not.
pub(super) fn flat(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Number(x) => Some(vec![x.as_f64()?]),
        Value::Bool(b) => Some(vec![f64::from(u8::from(*b))]),
        Value::Null => Some(vec![f64::NAN]),
        Value::Array(items) => Some(items.iter().map(flat).collect::<Option<Vec<_>>>()?.concat()),
        Value::Object(map) => match map.get("data") {
            Some(data) => flat(data),
            None => {
                let sorted: BTreeMap<_, _> = map.iter().collect();
                Some(sorted.into_values().map(flat).collect::<Option<Vec<_>>>()?.concat())
            }
        },
        Value::String(text) if ["inf", "-inf", "nan", "NaN"].contains(&text.as_str()) => {
            Some(vec![text.parse().ok()?])
        }
        Value::String(_) => None,
    }
}

/// Numbers as they are; anything with a text in it [`spelled`].
pub(super) fn code(value: &Value) -> Vec<f64> {
    flat(value).unwrap_or_else(|| spelled(value))
}

/// Any JSON as numbers, so that outputs with texts and records are compared like all others: a text is its length
/// and bytes, a list its length and items, a record its size and its keys and values in order of the keys.
fn spelled(value: &Value) -> Vec<f64> {
    // Numbers that no output holds say what follows.
    const NULL: f64 = -1e6;
    const TEXT: f64 = -2e6;
    const LIST: f64 = -3e6;
    const RECORD: f64 = -4e6;
    fn text(x: &str, out: &mut Vec<f64>) {
        out.extend([TEXT, x.len() as f64]);
        out.extend(x.bytes().map(f64::from));
    }
    fn spell(value: &Value, out: &mut Vec<f64>) {
        match value {
            Value::Null => out.push(NULL),
            Value::Bool(b) => out.push(f64::from(u8::from(*b))),
            Value::Number(x) => out.push(x.as_f64().unwrap_or(f64::NAN)),
            Value::String(x) => text(x, out),
            Value::Array(items) => {
                out.extend([LIST, items.len() as f64]);
                items.iter().for_each(|item| spell(item, out));
            }
            Value::Object(map) => {
                out.extend([RECORD, map.len() as f64]);
                let sorted: BTreeMap<&String, &Value> = map.iter().collect();
                for (key, value) in sorted {
                    text(key, out);
                    spell(value, out);
                }
            }
        }
    }
    let mut out = Vec::new();
    spell(value, &mut out);
    out
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_and_records_differ_where_they_differ() {
        let spell = |x: Value| spelled(&x);
        assert_eq!(spell(json!({"b": [0.5, null], "a": "x"})), spell(json!({"a": "x", "b": [0.5, null]})));
        for (a, b) in [
            (json!(["ab", ""]), json!(["a", "b"])),
            (json!({"a": 1}), json!({"b": 1})),
            (json!([[1], 2]), json!([1, [2]])),
            (json!([0]), json!([null])),
        ] {
            assert_ne!(spell(a), spell(b));
        }
    }
}
