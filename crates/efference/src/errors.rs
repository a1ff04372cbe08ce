//! How a failure reaches a person: what happened and where, because of what, and what to do about it.

use std::error::Error;
use std::fmt::Display;
use std::io::ErrorKind;

use console::{Term, style};
use serde::Serialize;

/// Results of commands.
pub type Result<T> = std::result::Result<T, Failure>;

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

/// Why a command ends with a code other than 0.
#[derive(Debug)]
pub struct Failure {
    what: String,
    causes: Vec<String>,
    help: Vec<String>,
    code: u8,
}

impl Failure {
    /// Something is wrong with this sentence's subject; exit code 1.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), help: Vec::new(), code: 1 }
    }

    /// The command line is wrong; exit code 2.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { code: 2, ..Self::new(what) }
    }

    /// A person asked to stop; exit code 130.
    pub fn interrupted(what: impl Into<String>) -> Self {
        Self { code: INTERRUPTED, ..Self::new(what) }
    }

    /// Adds a line of what to do.
    #[must_use]
    pub fn help(mut self, what_to_do: impl Into<String>) -> Self {
        self.help.push(what_to_do.into());
        self
    }

    /// Puts what was being done in front; what went wrong becomes its cause.
    #[must_use]
    pub fn doing(mut self, what: impl Display) -> Self {
        let cause = std::mem::replace(&mut self.what, what.to_string());
        self.causes.insert(0, cause);
        self
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

/// The crates' errors name file, field and remedy in their text, and mark the remedy with `hint:` where it has a line of
/// its own. Sources follow as causes, unless the text above has said the same.
impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut failure = Self::new("");
        let mut link: Option<&(dyn Error + 'static)> = Some(&error);
        let mut said: Vec<String> = Vec::new();
        while let Some(error) = link {
            let text = error.to_string();
            let mut parts = text.split("\n  hint: ");
            let what = parts.next().unwrap_or_default().trim_end().to_owned();
            if !said.iter().any(|above| above.contains(&what)) {
                said.push(what);
                failure.help.extend(parts.map(str::to_owned));
            }
            failure.help.extend(remedy(error));
            link = error.source();
        }
        let mut said = said.into_iter();
        failure.what = said.next().unwrap_or_default();
        failure.causes = said.collect();
        failure
    }
}

/// What to do about an error that does not say it itself.
fn remedy(error: &(dyn Error + 'static)) -> Option<String> {
    let io = error.downcast_ref::<std::io::Error>()?;
    match io.kind() {
        ErrorKind::NotFound => Some("check the path: nothing is there".into()),
        ErrorKind::IsADirectory => Some("give a file, not a folder".into()),
        _ => None,
    }
}

/// The same for a machine.
#[derive(Serialize)]
struct AsJson<'a> {
    error: &'a str,
    causes: &'a [String],
    help: &'a [String],
    exit_code: u8,
}

/// Writes the failure to stderr.
pub fn print(failure: &Failure, json: bool) {
    let Failure { what, causes, help, code } = failure;
    if json {
        let object = AsJson { error: what, causes, help, exit_code: *code };
        if let Ok(line) = serde_json::to_string(&object) {
            eprintln!("{line}");
        }
        return;
    }
    let width = terminal_width();
    let show = |label: &str, paint: console::StyledObject<&str>, text: &str| {
        let indent = label.len() - label.trim_start().len();
        eprintln!("{:indent$}{paint} {}", "", wrap(text, label.len() + 1, indent + 2, width));
    };
    let first = if *code == INTERRUPTED { "interrupted:" } else { "error:" };
    show(first, style(first).for_stderr().red().bold(), what);
    for cause in causes {
        show("  caused by:", style("caused by:").for_stderr().dim(), cause);
    }
    for line in help {
        show("  help:", style("help:").for_stderr().cyan(), line);
    }
}

/// Columns of the terminal; without one, lines are not broken.
fn terminal_width() -> usize {
    let term = Term::stderr();
    if term.is_term() { usize::from(term.size().1).clamp(40, 120) } else { usize::MAX }
}

/// Breaks lines between words; the first begins at column `start`, the others at `indent`.
fn wrap(text: &str, start: usize, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = start;
    for (i, line) in text.lines().enumerate() {
        if i > 0 {
            out.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        }
        for (j, word) in line.split(' ').enumerate() {
            let length = word.chars().count();
            if j > 0 && column + 1 + length > width {
                out.push_str(&format!("\n{:indent$}", ""));
                column = indent;
            } else if j > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Told(&'static str, Option<std::io::Error>);
    impl Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }
    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_ref().map(|e| e as _)
        }
    }

    #[test]
    fn causes_are_not_repeated_and_hints_become_help() {
        let io = || Some(std::io::Error::other("disk on fire"));
        let failure = Failure::from(Told("cannot read `x`: disk on fire\n  hint: use water", io()));
        assert_eq!(failure.what, "cannot read `x`: disk on fire");
        assert_eq!((failure.causes.len(), failure.help, failure.code), (0, vec!["use water".into()], 1));
        let failure = Failure::from(Told("cannot read `x`", io())).doing("loading").help("again");
        assert_eq!(
            (failure.what.as_str(), &failure.causes[..]),
            ("loading", &["cannot read `x`".to_owned(), "disk on fire".into()][..])
        );
        assert_eq!(failure.help, ["again"]);
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 7, 2, 14), "one two\n  three");
        assert_eq!(wrap("one\ntwo", 0, 2, usize::MAX), "one\n  two");
        assert_eq!(wrap("muchtoolongforthis line", 0, 2, 10), "muchtoolongforthis\n  line");
    }
}
