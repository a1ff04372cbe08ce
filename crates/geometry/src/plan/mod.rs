//! From the motion of an object to poses of the hand that holds it.
//!
//! The costs are those of ReKep (arXiv 2409.01652) with the distance to a predicted flow as the constraint, as in
//! 3DFlowAction. With the flow alone the best pose is known in closed form ([`flow_to_ee_chunk`]); solvers start from it and
//! have work only where obstacles, limits or the arm object.

mod chunk;
mod cost;
mod grasp;
mod path;
mod solve;

pub use chunk::{ChainedMotions, EeChunk, chained_motions, flow_to_ee_chunk};
pub use cost::{
    FlowNorm, Reach, Reached, Subgoal, SubgoalTerms, SubgoalWeights, flow_distance, visible_mean_squared,
};
pub use grasp::{GraspChoice, select_grasp};
pub use path::{Path, PathTerms, PathWeights, solve_path};
pub use solve::{
    Solution, SolveOptions, Solved, ToolLimit, closed_form, solve_chunk, solve_subgoal, targets_of,
};

#[cfg(test)]
mod tests;
