//! The file format, and comparing.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

/// Why a case did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    NotImplemented(String),
    #[error("the case has no usable `{0}`")]
    Missing(String),
    #[error(
        "output `{name}`: error {error:.3e} at index {index} (got {got}, expected {expected}), tolerance {tolerance:e}"
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

    /// Largest relative error.
    pub fn compare(&self, outputs: &Outputs) -> Result<f64, Failure> {
        let mut worst = 0.0f64;
        let tolerance = self.tolerance;
        for (name, expected) in &self.outputs {
            let expected = flat(expected).ok_or_else(|| Failure::Missing(format!("outputs.{name}")))?;
            let got = outputs.get(name.as_str()).ok_or_else(|| Failure::NotComputed(name.clone()))?;
            if got.len() != expected.len() {
                let (got, expected) = (got.len(), expected.len());
                return Err(Failure::Length { name: name.clone(), got, expected });
            }
            for (index, (&got, &expected)) in got.iter().zip(&expected).enumerate() {
                let error = (got - expected).abs() / expected.abs().max(1.0);
                if error.is_nan() || error > tolerance {
                    let name = name.clone();
                    return Err(Failure::Differs { name, index, got, expected, error, tolerance });
                }
                worst = worst.max(error);
            }
        }
        Ok(worst)
    }
}

/// Numbers of a scalar, a (nested) list or a `{ shape, data }` tensor; flags count as 0 and 1, null as NaN.
fn flat(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Number(x) => Some(vec![x.as_f64()?]),
        Value::Bool(b) => Some(vec![f64::from(u8::from(*b))]),
        Value::Null => Some(vec![f64::NAN]),
        Value::Array(items) => Some(items.iter().map(flat).collect::<Option<Vec<_>>>()?.concat()),
        Value::Object(map) => flat(map.get("data")?),
        Value::String(_) => None,
    }
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
