//! The loop: configuration, recipes, checkpoints, resume, evaluation.
