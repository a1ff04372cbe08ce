//! Set-up and chores: `cargo xtask help` lists them.

mod checks;
mod error;
mod fetch;
mod native;
mod paths;
mod process;

use error::{Error, Result};
use paths::Paths;

const USAGE: &str = "\
cargo xtask TASK

  setup        fetch the native parts (MuJoCo): nothing is fetched twice
  doctor       say what is there and what is missing
  test         setup, then all tests
  ci           what CI runs: formatting, lints, documentation, test
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
    match args.first().map_or("help", String::as_str) {
        "setup" => native::setup(&paths),
        "doctor" => checks::doctor(&paths),
        "test" => checks::test(&paths),
        "ci" => checks::ci(&paths),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => Err(Error::Usage { got: other.to_owned(), usage: USAGE }),
    }
}
