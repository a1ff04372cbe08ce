//! Every operation, forward and gradients, against references written as plain loops in f64.
//!
//! `reference.rs` holds the formulas, written once on the numbers of `tape.rs`, which record what they are made of:
//! gradients of the reference come from that record, bounds of rounding errors too, and a finite difference along a
//! random direction checks the record itself. `harness.rs` compares. The same bodies run on every device that
//! [`harness::devices`] names, with arguments that are contiguous, transposed or cut out of larger tensors.
//!
//! Tolerances are multiples of the dtype's epsilon: times the rounding error that the formula collects to first order
//! for results, times the sum of the absolute values of all terms of the chain rule for gradients.
#![allow(clippy::unwrap_used)]

mod attention;
mod errors;
mod gather;
mod harness;
mod linear;
mod norm;
mod pointwise;
mod reference;
mod rotary;
mod scores;
mod tape;
