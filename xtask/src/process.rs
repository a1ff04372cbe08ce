//! Runs other programs.

use crate::error::{Error, Result};
use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

/// Runs to the end, showing nothing unless it fails.
pub fn quiet(command: &mut Command, hint: &str) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|source| start_error(command, source, hint))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let output_lines = String::from_utf8_lossy(&text).lines().map(|line| format!("  | {line}\n")).collect();
    Err(Error::Command {
        command: show(command),
        status: output.status,
        output: output_lines,
        hint: hint.to_owned(),
    })
}

/// Runs to the end with its output on our terminal.
pub fn loud(command: &mut Command, hint: &str) -> Result<()> {
    println!("$ {}", show(command));
    let status =
        command.stdin(Stdio::null()).status().map_err(|source| start_error(command, source, hint))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: show(command), status, output: String::new(), hint: hint.to_owned() })
}

/// Runs to the end with its output on our terminal and in the result, both streams as they come; the second part of
/// the result is how it ended.
pub fn teed(command: &mut Command, hint: &str) -> Result<(String, Result<()>)> {
    println!("$ {}", show(command));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| start_error(command, source, hint))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let text = std::thread::scope(|scope| {
        let out = scope.spawn(|| out.map_or_else(String::new, |pipe| copy_lines(pipe, std::io::stdout())));
        let err = err.map_or_else(String::new, |pipe| copy_lines(pipe, std::io::stderr()));
        out.join().unwrap_or_default() + &err
    });
    let status = child.wait().map_err(|source| start_error(command, source, hint))?;
    let ended = if status.success() {
        Ok(())
    } else {
        Err(Error::Command { command: show(command), status, output: String::new(), hint: hint.to_owned() })
    };
    Ok((text, ended))
}

fn copy_lines(from: impl Read, mut to: impl Write) -> String {
    let mut all = String::new();
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let _ = to.write_all(&line).and_then(|()| to.flush()); // a closed terminal does not stop the tests
        all.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    all
}

/// The cargo that started us, free of the variables it sets for a running package: build scripts that watch those
/// would otherwise run again each time one goes from `cargo xtask test` to `cargo test` and back.
pub fn cargo(root: &std::path::Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| {
            n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_") || n == "CARGO_BIN_NAME"
        }) {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(root);
    cargo
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(key, value)| {
            Some(format!("{}={}", key.to_string_lossy(), quote(&value?.to_string_lossy())))
        })
        .collect();
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    words.push(program.to_string_lossy().into_owned());
    words.extend(command.get_args().map(|arg| quote(&arg.to_string_lossy())));
    words.join(" ")
}

fn quote(word: &str) -> String {
    if word.chars().any(char::is_whitespace) { format!("'{word}'") } else { word.to_owned() }
}

fn start_error(command: &Command, source: std::io::Error, hint: &str) -> Error {
    Error::Start { command: show(command), source, hint: hint.to_owned() }
}
