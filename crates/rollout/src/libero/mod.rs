//! LIBERO evaluation.
