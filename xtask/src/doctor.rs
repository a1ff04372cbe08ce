//! `cargo xtask doctor`: what is there, what is missing, and the command that brings it.

use crate::{
    error::{Error, Result},
    native, onnx,
    paths::Paths,
    process, real_data, system,
};
use std::process::Command;

/// Prints one line per part. An error when something is missing that set-up, build or tests need.
pub fn run(paths: &Paths) -> Result<()> {
    let mut report = Report { missing: Vec::new() };
    report.needed(
        "cargo",
        version(&mut process::cargo(&paths.root)),
        "curl --proto '=https' -sSf https://sh.rustup.rs | sh",
    );
    report.needed("C compiler", version(&mut Command::new("cc")), "apt-get install -y gcc libc6-dev");
    let pip = version(Command::new("python3").args(["-m", "pip"]));
    report.needed("Python 3 with pip", pip, "apt-get install -y python3-pip");
    report.needed("MuJoCo", native::check(paths), "cargo xtask setup");
    match system::check() {
        Ok(there) => report.needed("EGL", Ok(there), ""),
        Err((lacking, command)) => report.needed("EGL", Err(lacking), &command),
    }
    let nextest = version(process::cargo(&paths.root).arg("nextest"));
    report.optional("cargo-nextest (one process per test)", nextest, "cargo install cargo-nextest --locked");
    report.optional("ONNX Runtime", onnx::check(paths), "cargo xtask onnx");
    report.optional("real demonstrations", real_data::check(paths), "cargo xtask real-data");
    if report.missing.is_empty() { Ok(()) } else { Err(Error::Doctor { missing: report.missing.join(", ") }) }
}

struct Report {
    missing: Vec<&'static str>,
}

impl Report {
    fn needed(&mut self, what: &'static str, found: std::result::Result<String, String>, command: &str) {
        if !line(what, found, "missing ", command) {
            self.missing.push(what);
        }
    }

    fn optional(&self, what: &str, found: std::result::Result<String, String>, command: &str) {
        line(what, found, "optional", command);
    }
}

fn line(what: &str, found: std::result::Result<String, String>, absent: &str, command: &str) -> bool {
    match found {
        Ok(there) => {
            println!("ok        {there}");
            true
        }
        Err(reason) => {
            println!("{absent}  {what}: {reason}\n            {command}");
            false
        }
    }
}

/// The first line of `COMMAND --version`.
fn version(command: &mut Command) -> std::result::Result<String, String> {
    let text = process::quiet(command.arg("--version"), "").map_err(|_| "not found".to_owned())?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
