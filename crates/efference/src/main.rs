//! The command line.

fn main() -> std::process::ExitCode {
    efference::cli::main()
}
