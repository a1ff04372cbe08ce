//! From a predicted 3D flow to a robot that makes it come true.
//!
//! - [`Predictor`]: says how the points of an object will move; a network, or [`OracleFlow`], or [`FrozenDepth`] around
//!   another one (the 2D baseline).
//! - [`draw_final`]: the picture of the state that a motion leads to.
//! - [`Judge`]: whether that state is what was asked for: [`PredicateJudge`], [`LearnedJudge`], [`VlmJudge`].
//! - [`propose`]: samples flows, rejects what is no rigid motion within the workspace, asks a judge, and says why what was
//!   refused was refused.
//! - [`grasp_candidates`], [`plan_grasp`]: where a parallel gripper can hold simple shapes, and which of these grasps lets
//!   an arm carry the object along a flow.
//! - [`FlowTracker`], [`FlowRewardEnv`]: a flow as a dense reward, for trainers.
//! - [`run_trial`], [`run_table`], [`demonstrate_flow`]: all of it on the workbench of `efference_envs::flow`.
//! - [`execute`]: grasps and moves, 7 numbers per step, looking at the points all the time.
//!
//! Source: 3DFlowAction (arXiv 2506.06199), sections on the closed loop and on action generation.

mod closed_loop;
mod demos;
mod error;
mod execute;
mod grasp;
mod judge;
mod picture;
mod plan;
mod predictor;
mod reward;
mod reward_env;
mod robot;
mod servo;
mod table;
mod trial;
mod workbench;

pub use closed_loop::{Attempt, LoopOptions, Proposal, Rejection, Workspace, propose};
pub use demos::demonstrate_flow;
pub use error::{Error, Result};
pub use execute::{End, Event, ExecuteOptions, Trace, execute};
pub use grasp::{Grasp, GraspShape, Gripper, grasp_candidates};
pub use judge::{
    Judge, JudgeError, JudgeQuestion, JudgeSample, JudgeTraining, LearnedJudge, PredicateJudge, TrainReport,
    Verdict, VlmJudge, VlmOptions, judge_samples, train_judge,
};
pub use picture::{FinalPicture, draw_final};
pub use plan::{Examined, GraspCheck, GraspPlan, NoGrasp, PlanOptions, plan_grasp};
pub use predictor::{FrozenDepth, OracleFlow, Predictor};
pub use reward::{FlowReward, FlowTracker};
pub use reward_env::{FlowRewardEnv, Reference, RewardForm};
pub use robot::{Kinematics, Reached, Robot};
pub use servo::{Pace, apart, densify, pose_at, servo};
pub use table::{TableOptions, TrialJournal, TrialLine, TrialPlace, run_table};
pub use trial::{Checker, Round, Source, System, Trial, TrialReport, run_trial, tell, watch_trial};
pub use workbench::{Watcher, Workbench, WorkbenchArm, releases};
