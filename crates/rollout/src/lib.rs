//! Turns a policy and environments into trajectories.
