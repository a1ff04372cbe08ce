//! The operational-space controller.
