//! Replays the reference vectors of 3DFlowAction's geometry (`tests/golden/flow3d_action.json`).
//!
//! `efference_objectives::conformance::run_with` reads the file and compares; this computes the outputs. Every parameter is
//! read from the case.

mod camera;
mod data;
mod metrics;
mod plan;
mod rigid;

use std::collections::BTreeMap;

use nalgebra::{Isometry3, Matrix3, Matrix4, Point3, Rotation3, Translation3, UnitQuaternion};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Numbers by name, in row-major order.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// Why a case cannot be computed.
type Outcome = Result<Numbers, String>;

/// The outputs of a case; `None` for functions that this crate does not have. `params` and `inputs` are as they stand in
/// the file; a tensor is `{ shape, data }`.
///
/// # Errors
/// Names the parameter or input that is absent or has another form.
pub fn replay(
    function: &str,
    params: &BTreeMap<String, Value>,
    inputs: &BTreeMap<String, Value>,
) -> Option<Result<Numbers, String>> {
    let case = Case { params, inputs };
    let run = rigid::function(function)
        .or_else(|| camera::function(function))
        .or_else(|| data::function(function))
        .or_else(|| plan::function(function))
        .or_else(|| metrics::function(function))?;
    Some(run(&case))
}

type Run = fn(&Case) -> Outcome;

struct Case<'a> {
    params: &'a BTreeMap<String, Value>,
    inputs: &'a BTreeMap<String, Value>,
}

impl Case<'_> {
    fn param<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        let value = self.params.get(name).ok_or_else(|| absent("params", name))?;
        serde_json::from_value(value.clone()).map_err(|e| format!("{}: {e}", absent("params", name)))
    }

    fn param_numbers(&self, name: &str) -> Result<Vec<f64>, String> {
        self.params.get(name).and_then(flat).ok_or_else(|| absent("params", name))
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>, String> {
        self.inputs.get(name).and_then(flat).ok_or_else(|| absent("inputs", name))
    }

    /// The shape of a tensor; numbers as many as it says.
    fn tensor<const N: usize>(&self, name: &str) -> Result<([usize; N], Vec<f64>), String> {
        let bad = || format!("inputs.{name} is no tensor of {N} dimensions");
        let shape = self.inputs.get(name).and_then(|value| value.get("shape")).cloned();
        let shape: Vec<usize> =
            serde_json::from_value(shape.ok_or_else(bad)?).map_err(|e| format!("inputs.{name}: {e}"))?;
        let shape: [usize; N] = shape.try_into().map_err(|_| bad())?;
        let numbers = self.numbers(name)?;
        let size = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        if size != Some(numbers.len()) {
            return Err(format!("inputs.{name} has {} numbers and the shape {shape:?}", numbers.len()));
        }
        Ok((shape, numbers))
    }

    fn rows<const N: usize>(&self, name: &str) -> Result<Vec<[f64; N]>, String> {
        let numbers = self.numbers(name)?;
        if !numbers.len().is_multiple_of(N) {
            return Err(format!("inputs.{name} has {} numbers, no multiple of {N}", numbers.len()));
        }
        Ok(numbers.chunks_exact(N).map(|row| std::array::from_fn(|i| row[i])).collect())
    }

    fn one<const N: usize>(&self, name: &str) -> Result<[f64; N], String> {
        let numbers = self.numbers(name)?;
        let got = numbers.len();
        numbers.try_into().map_err(|_| format!("inputs.{name} has {got} numbers, {N} are needed"))
    }

    fn points(&self, name: &str) -> Result<Vec<Point3<f64>>, String> {
        Ok(self.rows::<3>(name)?.into_iter().map(Point3::from).collect())
    }

    fn pose(&self, name: &str) -> Result<Isometry3<f64>, String> {
        Ok(pose(&self.one::<16>(name)?))
    }

    fn poses(&self, name: &str) -> Result<Vec<Isometry3<f64>>, String> {
        Ok(self.rows::<16>(name)?.iter().map(pose).collect())
    }

    fn flags(&self, name: &str) -> Result<Vec<bool>, String> {
        Ok(self.numbers(name)?.into_iter().map(|x| x != 0.0).collect())
    }
}

fn absent(kind: &str, name: &str) -> String {
    format!("the case has no usable `{kind}.{name}`")
}

/// Numbers of a scalar, a (nested) list or a `{ shape, data }` tensor; flags count as 0 and 1.
fn flat(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::Number(x) => Some(vec![x.as_f64()?]),
        Value::Bool(b) => Some(vec![f64::from(u8::from(*b))]),
        Value::Array(items) => Some(items.iter().map(flat).collect::<Option<Vec<_>>>()?.concat()),
        Value::Object(map) => flat(map.get("data")?),
        Value::String(text) if ["inf", "-inf", "nan"].contains(&text.as_str()) => {
            Some(vec![text.parse().ok()?])
        }
        Value::Null | Value::String(_) => None,
    }
}

fn outputs<const N: usize>(named: [(&str, Vec<f64>); N]) -> Numbers {
    named.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect()
}

fn text(error: crate::Error) -> String {
    error.to_string()
}

fn rotation(rows: &[f64]) -> UnitQuaternion<f64> {
    let matrix = Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(rows));
    UnitQuaternion::from_rotation_matrix(&matrix)
}

fn pose(rows: &[f64; 16]) -> Isometry3<f64> {
    let m = Matrix4::from_row_slice(rows);
    let turn = Matrix3::from(m.fixed_view::<3, 3>(0, 0)).transpose();
    Isometry3::from_parts(Translation3::new(m.m14, m.m24, m.m34), rotation(turn.as_slice()))
}

/// Row-major.
fn matrix(pose: &Isometry3<f64>) -> Vec<f64> {
    pose.to_homogeneous().transpose().as_slice().to_vec()
}

/// Row-major.
fn turn(rotation: &UnitQuaternion<f64>) -> Vec<f64> {
    rotation.to_rotation_matrix().matrix().transpose().as_slice().to_vec()
}

fn coordinates<'a>(points: impl IntoIterator<Item = &'a Point3<f64>>) -> Vec<f64> {
    points.into_iter().flat_map(|p| [p.x, p.y, p.z]).collect()
}

fn marks(flags: impl IntoIterator<Item = bool>) -> Vec<f64> {
    flags.into_iter().map(|b| f64::from(u8::from(b))).collect()
}

fn indices(numbers: &[usize]) -> Vec<f64> {
    numbers.iter().map(|i| *i as f64).collect()
}
