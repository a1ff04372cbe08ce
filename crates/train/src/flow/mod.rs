//! The flow world model: training, sampling, evaluation, and reinforcement learning of the generator.
//!
//! ```text
//! episodes or generated scenes  ->  Scene                          (scene.rs, synthetic.rs, source.rs)
//! scene + points + noise        ->  batch, loss, update            (batch.rs, process.rs, run.rs)
//! query + seed                  ->  K flows, kept rigid if asked   (sampler.rs, model.rs)
//! flows against the truth       ->  a table by task                (evaluate.rs)
//! flows + reward                ->  a better generator             (improve.rs)
//! ```
//!
//! [`run::start`] trains as a [`FlowConfig`] says; [`FlowModel`] answers queries and is a
//! [`Predictor`](efference_rollout::flow::Predictor).

mod batch;
mod config;
pub mod evaluate;
pub mod improve;
mod model;
mod process;
mod random;
pub mod run;
mod sampler;
mod scene;
mod source;
pub mod synthetic;
#[cfg(test)]
mod tests;

pub use config::{
    FlowConfig, FlowDataConfig, FlowEvalConfig, FlowModelConfig, FlowRlConfig, FlowTrainConfig,
    ProcessConfig, SamplerConfig, flow_settings_table,
};
pub use evaluate::{TaskMetrics, evaluate, text_table};
pub use improve::{FlowReward, Worth, workbench_goal};
pub use model::{BUILT_IN_FLOW, FlowModel, FlowSpec};
pub use scene::Scene;
pub use source::{stored_scenes, workbench_scenes};
