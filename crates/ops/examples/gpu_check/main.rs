//! What a machine with an NVIDIA GPU must show: every operation against the CPU at f32, f16 and bf16, forward and
//! gradients; then the time of operations and of a training step at the layer shapes of Qwen2.5-VL-3B and 7B, beside
//! PyTorch where that is installed. Prints a Markdown table; ends with an error if any result is wrong.
//!
//! `cargo xtask gpu` builds and runs it. It is one executable: stripped, it can be carried to a machine without Rust.
//! `--self-check` runs the checks on the CPU in f32 against f64, which needs no GPU.

mod cases;
mod peer;
mod report;
mod speed;
mod step;

use std::process::ExitCode;

use candle_core::{DType, Device};

/// Failures end up here: an operation's own error or candle's.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "\
gpu_check [--device N] [--quick] [--layers N] [--write FILE]
gpu_check --self-check

  --device N      which GPU, counted from 0
  --quick         checks only, no timing
  --layers N      layers of the timed training step (default 4)
  --write FILE    put the table between the `gpu` markers of FILE
  --self-check    check the checks: CPU in f32 against CPU in f64
";

struct Options {
    ordinal: usize,
    quick: bool,
    layers: usize,
    write: Option<std::path::PathBuf>,
    self_check: bool,
}

fn options() -> Result<Option<Options>> {
    let mut options = Options { ordinal: 0, quick: false, layers: 4, write: None, self_check: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--device" => options.ordinal = value()?.parse()?,
            "--layers" => options.layers = value()?.parse()?,
            "--write" => options.write = Some(value()?.into()),
            "--quick" => options.quick = true,
            "--self-check" => options.self_check = true,
            "--help" | "-h" => {
                print!("{USAGE}");
                return Ok(None);
            }
            other => return Err(format!("unknown argument `{other}`\n{USAGE}").into()),
        }
    }
    Ok(Some(options))
}

fn main() -> ExitCode {
    efference_ops::host::prepare();
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every check passed.
fn run() -> Result<bool> {
    let Some(options) = options()? else { return Ok(true) };
    if options.self_check {
        return Ok(cases::run(&Device::Cpu, &[DType::F32])? == 0);
    }
    if !cfg!(feature = "cuda") {
        return Err("this executable was built without CUDA; `cargo xtask gpu` builds one with it".into());
    }
    let device = Device::new_cuda(options.ordinal).map_err(|error| {
        // Without the backtrace that candle may append.
        let error = error.to_string();
        let reason = error.lines().next().unwrap_or_default();
        format!("no CUDA device {} here, so nothing was checked: {reason}", options.ordinal)
    })?;
    let machine = report::Machine::look(options.ordinal);
    println!("{machine}\n");
    let wrong = cases::run(&device, &[DType::F32, DType::F16, DType::BF16])?;
    if wrong > 0 {
        eprintln!("{wrong} checks failed");
        return Ok(false);
    }
    if options.quick {
        return Ok(true);
    }
    let ceilings = speed::ceilings(&device)?;
    let mut text = format!("{machine}\n\n{ceilings}\n\n");
    text += &speed::table(&device, &ceilings)?;
    text += &step::table(&device, &ceilings, options.layers)?;
    println!("{text}");
    if let Some(path) = &options.write {
        report::write(path, &text)?;
    }
    Ok(true)
}
