//! Replays the reference vectors of OpenVLA's action interface (`tests/golden/model_vla.json`).
#![allow(clippy::unwrap_used)]

use efference_nets::action::gripper_to_env;
use efference_nets::{Quantiles, decode_action, encode_action};

const FIRST_ACTION_ID: u32 = 31744;

/// The text of one case. The numbers are read with `str::parse`, because serde_json's fast float parsing may be one bit
/// off, and an action that lies on an edge of a bin must stay there.
struct Case(String);

fn case(name: &str) -> Case {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/model_vla.json");
    let text = std::fs::read_to_string(path).unwrap();
    let from = text.find(&format!("\"{name}\"")).unwrap();
    let rest = &text[from..];
    Case(rest[..rest.find("\"tolerance\"").unwrap()].into())
}

impl Case {
    /// The flat data of the array `key` below `side` ("inputs" or "outputs"); booleans are 0 and 1.
    fn numbers(&self, side: &str, key: &str) -> Vec<f64> {
        let mut text = self.0.as_str();
        for wanted in [side, key, "data"] {
            let quoted = format!("\"{wanted}\"");
            text = &text[text.find(&quoted).unwrap() + quoted.len()..];
        }
        let list = &text[text.find('[').unwrap() + 1..text.find(']').unwrap()];
        let number = |word: &str| match word.trim() {
            "true" => 1.0,
            "false" => 0.0,
            digits => digits.parse().unwrap(),
        };
        list.split(',').map(number).collect()
    }
}

fn assert_close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-12, "{i}: {g} against {w}");
    }
}

fn decode_id(id: f64) -> f64 {
    // Ids below the action tokens decode like the lowest action token, above like the highest (the index is clipped).
    let index = id as i64 - i64::from(FIRST_ACTION_ID);
    decode_action(index.max(0) as u32)
}

#[test]
fn actions_to_tokens_and_back() {
    let case = case("action_tokenise_256_bins");
    let actions = case.numbers("inputs", "actions");
    let ids: Vec<f64> = actions.iter().map(|&a| f64::from(FIRST_ACTION_ID + encode_action(a))).collect();
    assert_eq!(ids, case.numbers("outputs", "token_ids"));
    let decoded: Vec<f64> = ids.iter().map(|&id| decode_id(id)).collect();
    assert_close(&decoded, &case.numbers("outputs", "decoded"));
}

#[test]
fn all_ids_to_actions() {
    let case = case("action_detokenise");
    let decoded: Vec<f64> = case.numbers("inputs", "token_ids").into_iter().map(decode_id).collect();
    assert_close(&decoded, &case.numbers("outputs", "actions"));
}

#[test]
fn actions_are_restored_and_the_gripper_is_left_alone() {
    let case = case("unnormalise_q99_with_gripper_unmasked");
    let mask = case.numbers("inputs", "mask").iter().map(|&m| m != 0.0).collect();
    let q = Quantiles { q01: case.numbers("inputs", "q01"), q99: case.numbers("inputs", "q99"), mask };
    let got: Vec<f64> =
        case.numbers("inputs", "normalized").iter().enumerate().map(|(i, &y)| q.restore(i % 7, y)).collect();
    assert_close(&got, &case.numbers("outputs", "actions"));
}

#[test]
fn proprioception_is_normalised_and_clipped() {
    let case = case("normalise_proprio_q99_clipped");
    let q = Quantiles {
        q01: case.numbers("inputs", "q01"),
        q99: case.numbers("inputs", "q99"),
        mask: vec![true; 8],
    };
    let got: Vec<f64> =
        case.numbers("inputs", "proprio").iter().enumerate().map(|(d, &x)| q.normalise(d, x)).collect();
    assert_close(&got, &case.numbers("outputs", "normalized"));
}

#[test]
fn the_gripper_is_made_binary_and_flipped() {
    let case = case("gripper_binarise_and_flip");
    let flip = |(i, &x): (usize, &f64)| if i % 7 == 6 { gripper_to_env(x) } else { x };
    let got: Vec<f64> = case.numbers("inputs", "actions").iter().enumerate().map(flip).collect();
    assert_close(&got, &case.numbers("outputs", "env_actions"));
}
