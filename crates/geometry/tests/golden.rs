//! Replays the geometry of the reference vectors of 3DFlowAction (`tests/golden/flow3d_action.json`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use efference_geometry::conformance::replay;
use efference_objectives::conformance::{CaseResult, Verdict, run_with};

#[test]
fn the_geometry_agrees_with_the_authors_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/flow3d_action.json");
    let results =
        run_with(path.as_ref(), &|question| replay(question.function, question.params, question.inputs))
            .unwrap();
    let failed: Vec<&CaseResult> = results.iter().filter(|result| result.failed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    // A block of the network is all that is computed elsewhere.
    let skipped: Vec<&str> = results
        .iter()
        .filter(|r| matches!(r.verdict, Verdict::Skipped { .. }))
        .map(|r| r.case.as_str())
        .collect();
    assert_eq!(skipped, ["dit_block_and_final"]);
    assert_eq!(results.iter().filter(|r| r.passed()).count(), 72);
}

#[test]
fn a_case_without_its_inputs_says_which() {
    let none = BTreeMap::new();
    let error = replay("kabsch", &none, &none).unwrap().unwrap_err();
    assert!(error.contains("inputs.src"), "{error}");
    let error = replay("sim_object_flow", &none, &none).unwrap().unwrap_err();
    assert!(error.contains("inputs.cam_xpos"), "{error}");
    assert!(replay("something_else", &none, &none).is_none());
}
