//! The command line. No command exists yet, and saying so beats exiting with success.

fn main() -> std::process::ExitCode {
    eprintln!("error: this build of efference has no commands yet");
    eprintln!("  help: `cargo xtask test` shows what works today; README.md lists what is missing");
    std::process::ExitCode::from(2)
}
