//! The words that settings may hold, asked from the crates that own them.

use efference_envs::libero::suite::Suite;

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_string()).collect()
}

/// Environment suites.
pub(super) fn suites() -> Vec<String> {
    let libero = Suite::standard().chain(Suite::pro()).map(|suite| suite.to_string());
    owned(&["tabletop", crate::world::DATASET_SUITE]).into_iter().chain(libero).collect()
}

/// Tasks of a suite; nothing where any name may be one.
pub(super) fn tasks(suite: &str) -> Vec<String> {
    match suite.parse::<Suite>() {
        Ok(suite) => (0..suite.len()).map(|task| format!("{suite}_{task}")).collect(),
        Err(_) if suite == "tabletop" => owned(&efference_envs::tabletop::Task::ids()),
        Err(_) => Vec::new(),
    }
}

/// Orders of the passes of a physics step.
pub(super) fn substep_orders() -> Vec<String> {
    owned(&["exact", "fused"])
}

/// Qualities of pictures.
pub(super) fn profiles() -> Vec<String> {
    owned(&["faithful", "fast"])
}

/// Named network shapes.
pub(super) fn model_presets() -> Vec<String> {
    owned(&["quickstart", "openvla_oft_7b"])
}

/// Objectives that have a preset.
pub(super) fn algorithms() -> Vec<String> {
    efference_objectives::registry::algorithms().iter().map(|card| card.id.to_string()).collect()
}

/// Learning-rate schedules of `efference_ops`.
pub(super) fn schedules() -> Vec<String> {
    owned(&["constant", "cosine"])
}

/// Optimisers of `efference_ops`.
pub(super) fn optimizers() -> Vec<String> {
    owned(&efference_ops::OptimizerConfig::KINDS)
}

/// Weights that an evaluation can take.
pub(super) fn weights() -> Vec<String> {
    owned(&["trained", "ema"])
}

/// Episode encoders.
pub(super) fn encoders() -> Vec<String> {
    owned(&["random_conv"])
}

/// Where old log-probabilities come from.
pub(super) fn old_log_probs() -> Vec<String> {
    owned(&["recomputed", "sampled"])
}

/// Ways to draw action tokens.
pub(super) fn noises() -> Vec<String> {
    owned(&["token", "chunk"])
}
