//! What a rollout leaves behind.

use std::sync::Arc;

use efference_envs::Snapshot;

/// The instruction of an episode, tokenised once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// What the robot is asked to do.
    pub instruction: String,
    /// Token ids, without padding.
    pub ids: Vec<u32>,
}

/// One look of the policy: what it saw and the chunk it chose.
#[derive(Clone, Debug)]
pub struct Decision {
    /// All cameras one after the other, [I, S, S, 3] bytes, top row first.
    pub pixels: Vec<u8>,
    /// End-effector position (metres), axis-angle (radians), finger positions (metres): [8].
    pub proprio: [f32; 8],
    /// The instruction, shared by the decisions of an episode.
    pub prompt: Arc<Prompt>,
    /// Chosen action bins, [K * A], each in 0..256.
    pub action_ids: Vec<u32>,
    /// Natural log-probability of each chosen bin at the rollout temperature, [K * A].
    pub log_probs: Vec<f32>,
    /// Entropy of each distribution at the rollout temperature in nats, [K * A].
    pub entropy: Vec<f32>,
    /// Mean of the action tokens' last hidden states, [D].
    pub features: Vec<f32>,
}

/// Which episode to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpisodePlan {
    /// Task id.
    pub task: String,
    /// Seed of the initial state.
    pub env_seed: u64,
    /// Seed of the sampled actions; unused at temperature 0.
    pub action_seed: u64,
    /// Draw from the opposite quantiles: of two episodes with one action seed, one deviates the other way (antithetic
    /// sampling).
    pub mirrored: bool,
    /// Which prompt (task and initial state) this belongs to: the group of the advantage.
    pub group: u64,
}

/// One finished episode.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// What was asked for.
    pub plan: EpisodePlan,
    /// What the policy was told.
    pub prompt: Arc<Prompt>,
    /// One entry per policy query.
    pub decisions: Vec<Decision>,
    /// Control steps executed. Tokens at or after `finish_steps * A` were never executed.
    pub finish_steps: usize,
    /// Whether the environment called it a success.
    pub success: bool,
    /// Why it ended early without success (an unstable simulation), if it did.
    pub aborted: Option<String>,
    /// State before the first step and after every control step, to draw frames from later; empty unless asked for.
    pub snapshots: Vec<Snapshot>,
    /// Remaining distance to the goal at the end, as the simulator knows it (hand-made progress); for reports and
    /// the upper-bound control only.
    pub remaining: f64,
}

impl Trajectory {
    /// How many action tokens were executed.
    pub fn tokens(&self, action_dim: usize) -> usize {
        self.finish_steps * action_dim
    }
}
