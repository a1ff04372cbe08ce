//! Set-up and chores: `cargo xtask help` lists them.

mod bench;
mod checks;
mod cuda;
mod doctor;
mod error;
mod fetch;
mod fused_ops;
mod gpu;
mod libero;
mod native;
mod onnx;
mod paths;
mod process;
mod real_data;
mod system;
mod tests_run;

use error::{Error, Result};
use paths::Paths;

const USAGE: &str = "\
cargo xtask TASK

  setup             fetch the native parts (MuJoCo) and check or install the system libraries; nothing is fetched twice
  doctor            say what is there and what is missing, with the command that brings it
  quickstart [ARG]  setup, build, then `efference quickstart`
  test [ARG]        setup, then all tests; arguments go to the test runner
  onnx              fetch ONNX Runtime (17 MB) for commands that run networks in ONNX files; `test` does it too
  real-data         fetch real human demonstrations (190 MB) for `efference demos import`
  libero [ARG]      write the tasks of the LIBERO benchmark as task packs (`cargo xtask libero --help`)
  cuda [ARG]        build with CUDA, on a machine with or without a GPU (`cargo xtask cuda --help`)
  gpu [ARG]         on a machine with an NVIDIA GPU: check the CUDA backend against the CPU, time it beside PyTorch, write
                    docs/performance.md; --build only makes the program, to carry it to such a machine
  bench ops [ARG]   operations and training steps beside PyTorch, which it fetches (5 GB); --alone without
  bench libero      LIBERO's control steps and resets beside Python LIBERO, which it fetches (1 GB)
  bench flow        planning from flow beside SciPy, which it fetches (200 MB); --alone without
  ci                what CI runs: formatting, lints, documentation, test

EFFERENCE_MUJOCO=x.y.z chooses another MuJoCo for setup and build (its checksum is recorded, not pinned).
";

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let paths = Paths::find();
    let (task, rest) = args.split_first().map_or(("help", args), |(task, rest)| (task.as_str(), rest));
    match task {
        "setup" => setup(&paths),
        "doctor" => doctor::run(&paths),
        "quickstart" => quickstart(&paths, rest),
        "test" => tests_run::run(&paths, rest),
        "onnx" => onnx::setup(&paths),
        "real-data" => real_data::run(&paths),
        "libero" => libero::run(&paths, rest),
        "cuda" => cuda::run(&paths, rest),
        "gpu" => gpu::run(&paths, rest),
        "bench" => bench::run(&paths, rest),
        "ci" => checks::ci(&paths),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => Err(Error::Usage { got: other.to_owned(), usage: USAGE }),
    }
}

fn setup(paths: &Paths) -> Result<()> {
    native::setup(paths)?;
    system::setup()
}

/// Becomes `efference quickstart`, so that Ctrl-C reaches it and nobody else: it saves before it ends.
fn quickstart(paths: &Paths, args: &[String]) -> Result<()> {
    setup(paths)?;
    let mut cargo = process::cargo(&paths.root);
    cargo.args(["run", "--release", "--package", "efference", "--", "quickstart"]).args(args);
    println!("$ {}", process::show(&cargo));
    let source = std::os::unix::process::CommandExt::exec(&mut cargo);
    Err(Error::Start { command: process::show(&cargo), source, hint: "is cargo installed?".to_owned() })
}
