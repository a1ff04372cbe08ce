//! The same training step in PyTorch, where `python3` has it. The script travels inside the executable.

use std::process::Command;

use crate::step::{BATCH, HEAD, LENGTH, Shape};

const SCRIPT: &str = include_str!("../../../../benches/peers/gpu_step.py");

/// Tokens per second, where it ran.
pub(crate) struct Peers {
    pub eager: Option<f64>,
    pub compiled: Option<f64>,
    /// Why not.
    pub problem: Option<String>,
}

pub(crate) fn run(shape: Shape, layers: usize) -> Peers {
    let sizes =
        [shape.width, shape.heads, shape.kv_heads, HEAD, shape.mlp, shape.vocab, layers, BATCH, LENGTH];
    let output = Command::new("python3").args(["-c", SCRIPT]).args(sizes.map(|n| n.to_string())).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            return Peers { eager: None, compiled: None, problem: Some(format!("no python3 ({error})")) };
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = errors.lines().last().unwrap_or("ended without a word").to_owned();
    Peers {
        eager: rate("eager "),
        compiled: rate("compiled "),
        problem: (!output.status.success()).then_some(last),
    }
}
