//! Replays the reference vectors of OpenVLA's action interface (`tests/golden/model_vla.json`).
//!
//! `efference_objectives::conformance::run_with` reads the file and compares; this computes the outputs.

use std::collections::BTreeMap;

use crate::action::{Quantiles, decode_action, encode_action, gripper_to_env};

/// Numbers by name, in row-major order.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// Id of the first action token in OpenVLA's vocabulary of 32000.
const FIRST_ACTION_ID: u32 = 31744;

/// The outputs of a case; `None` for functions that this crate does not have.
///
/// # Errors
/// Names the input that is absent or has a wrong length.
pub fn replay(function: &str, inputs: &Numbers) -> Option<Result<Numbers, String>> {
    Some(match function {
        "tokenise" => tokenise(inputs),
        "detokenise" => detokenise(inputs),
        "unnormalise" => unnormalise(inputs),
        "normalise_proprio" => normalise_proprio(inputs),
        "gripper" => gripper(inputs),
        _ => return None,
    })
}

fn input<'a>(inputs: &'a Numbers, name: &str) -> Result<&'a [f64], String> {
    inputs.get(name).map(Vec::as_slice).ok_or_else(|| format!("the case has no usable `inputs.{name}`"))
}

fn output<const N: usize>(named: [(&str, Vec<f64>); N]) -> Numbers {
    named.into_iter().map(|(name, values)| (name.to_owned(), values)).collect()
}

fn tokenise(inputs: &Numbers) -> Result<Numbers, String> {
    let id = |&action: &f64| f64::from(FIRST_ACTION_ID + encode_action(action));
    let ids: Vec<f64> = input(inputs, "actions")?.iter().map(id).collect();
    let decoded = ids.iter().map(decode_id).collect();
    Ok(output([("token_ids", ids), ("decoded", decoded)]))
}

fn detokenise(inputs: &Numbers) -> Result<Numbers, String> {
    Ok(output([("actions", input(inputs, "token_ids")?.iter().map(decode_id).collect())]))
}

/// Ids below the action tokens decode like the lowest action token, above like the highest (the index is clipped).
fn decode_id(id: &f64) -> f64 {
    decode_action((*id as i64 - i64::from(FIRST_ACTION_ID)).max(0) as u32)
}

fn unnormalise(inputs: &Numbers) -> Result<Numbers, String> {
    let quantiles = quantiles(inputs, Some(input(inputs, "mask")?))?;
    let dims = quantiles.q01.len();
    let restore = |(i, &y): (usize, &f64)| quantiles.restore(i % dims, y);
    let actions = input(inputs, "normalized")?.iter().enumerate().map(restore).collect();
    Ok(output([("actions", actions)]))
}

fn normalise_proprio(inputs: &Numbers) -> Result<Numbers, String> {
    let quantiles = quantiles(inputs, None)?;
    let dims = quantiles.q01.len();
    let normalise = |(i, &x): (usize, &f64)| quantiles.normalise(i % dims, x);
    let normalized = input(inputs, "proprio")?.iter().enumerate().map(normalise).collect();
    Ok(output([("normalized", normalized)]))
}

fn quantiles(inputs: &Numbers, mask: Option<&[f64]>) -> Result<Quantiles, String> {
    let (q01, q99) = (input(inputs, "q01")?.to_vec(), input(inputs, "q99")?.to_vec());
    let mask = mask.map_or(vec![true; q01.len()], |mask| mask.iter().map(|&m| m != 0.0).collect());
    if q01.is_empty() || q99.len() != q01.len() || mask.len() != q01.len() {
        return Err(format!("q01, q99 and mask have {}, {}, {} numbers", q01.len(), q99.len(), mask.len()));
    }
    Ok(Quantiles { q01, q99, mask })
}

/// The last of seven numbers is the gripper's.
fn gripper(inputs: &Numbers) -> Result<Numbers, String> {
    let flip = |(i, &x): (usize, &f64)| if i % 7 == 6 { gripper_to_env(x) } else { x };
    let actions = input(inputs, "actions")?.iter().enumerate().map(flip).collect();
    Ok(output([("env_actions", actions)]))
}
