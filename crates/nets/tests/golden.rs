//! Replays the reference vectors of OpenVLA's action interface (`tests/golden/model_vla.json`).
#![allow(clippy::unwrap_used)]

use efference_nets::conformance::replay;
use efference_objectives::conformance::{CaseResult, run_with};

#[test]
fn the_action_interface_agrees_with_openvla() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/model_vla.json");
    let results = run_with(path.as_ref(), &|question| replay(question.function, &question.numbers())).unwrap();
    let failed: Vec<&CaseResult> = results.iter().filter(|result| result.failed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let passed: Vec<&str> = results.iter().filter(|r| r.passed()).map(|r| r.case.as_str()).collect();
    let expected = [
        "action_tokenise_256_bins",
        "action_detokenise",
        "unnormalise_q99_with_gripper_unmasked",
        "normalise_proprio_q99_clipped",
        "gripper_binarise_and_flip",
    ];
    assert_eq!(passed, expected);
}

#[test]
fn a_case_without_its_inputs_says_which() {
    let error = replay("tokenise", &Default::default()).unwrap().unwrap_err();
    assert!(error.contains("inputs.actions"), "{error}");
    assert!(replay("something_else", &Default::default()).is_none());
}
