//! What can go wrong between this program and a policy server.

use std::time::Duration;

/// Shorthand for this module's results.
pub type Result<T> = std::result::Result<T, RemoteError>;

/// Why a policy server gave no usable actions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The address is not one.
    #[error(
        "`{given}` is no address of a policy server: {why}\n  hint: write openpi://HOST:PORT or vla-eval://HOST:PORT"
    )]
    Address {
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody accepts connections there.
    #[error(
        "cannot connect to the policy server at {address}: {source}\n  hint: start the server, and check host and port"
    )]
    Connect {
        /// HOST:PORT.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Somebody is there, but does not speak this protocol.
    #[error(
        "the server at {address} does not speak the {protocol} protocol: {why}\n  hint: check the port and the scheme of the address"
    )]
    Handshake {
        /// HOST:PORT.
        address: String,
        /// `openpi` or `vla-eval`.
        protocol: &'static str,
        /// What it did instead.
        why: String,
    },
    /// The server wants a set-up that this program has not.
    #[error("the model server needs what this evaluation does not offer: {}", list(.needs))]
    Needs {
        /// One sentence each.
        needs: Vec<String>,
    },
    /// No complete answer within the time limit.
    #[error("the policy server did not {what} within {:.1} s\n  hint: give it more time with `--answer-seconds`, or look at its log", .limit.as_secs_f64())]
    Timeout {
        /// What it was expected to do.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The connection ended.
    #[error("the policy server closed the connection: {why}\n  hint: look at its log")]
    Closed {
        /// Close code and reason, or the system's answer.
        why: String,
    },
    /// The server reports a failure of its own.
    #[error("the policy server reports an error: {text}")]
    Server {
        /// Its words, shortened.
        text: String,
    },
    /// Bytes that are no message of the protocol.
    #[error("the policy server's answer cannot be read: {why}")]
    Garbage {
        /// What is wrong.
        why: String,
    },
    /// A message beyond the size limit; it was not read.
    #[error("the policy server's answer is larger than {limit} bytes; it was not read")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// A well-formed answer without usable actions.
    #[error("the policy's actions cannot be used: {why}")]
    Actions {
        /// Shape, place of a number that is not finite, or the keys that are there.
        why: String,
    },
}

fn list(needs: &[String]) -> String {
    needs.join("; ")
}

/// The first `LIMIT` characters of a foreign text on one line, so that a server's traceback does not flood a table.
pub(super) fn shorten(text: &str) -> String {
    const LIMIT: usize = 400;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // Python ends a traceback with what happened.
    let text = match lines.as_slice() {
        [first, .., last] if first.starts_with("Traceback") => (*last).to_owned(),
        lines => lines.join(" | "),
    };
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(LIMIT).collect();
    if text.chars().count() > LIMIT {
        short.push('…');
    }
    short
}
