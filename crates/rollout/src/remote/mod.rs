//! Policies behind a policy server: the protocols that people already serve their networks with.
//!
//! - **openpi** (`openpi://HOST:PORT`): WebSocket; the server greets with its metadata; each binary message is an
//!   observation in MessagePack (NumPy arrays wrapped in maps with binary keys), each answer a map with `actions`
//!   [H, 7]; a text message is the traceback of an error.
//! - **vla-eval** (`vla-eval://HOST:PORT`): WebSocket; every message is a map of `type`, `payload`, `seq`, `timestamp`
//!   (arrays wrapped in maps with text keys); both sides say `hello`, then `episode_start`, `observation` and `action`
//!   in turn, `episode_end`. The server chunks by itself: an answer is usually one action.
//!
//! An answer is trusted in nothing: its size is bounded, it must come within a time limit, and actions that are not
//! finite or have another shape are refused.

mod array;
mod channel;
mod client;
mod error;
mod openpi;
mod vla_eval;

#[cfg(test)]
mod tests;

use std::str::FromStr;

pub use client::{EpisodeStart, Limits, Question, RemotePolicy};
pub use error::{RemoteError, Result};

/// Which protocol a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// openpi's policy server.
    OpenPi,
    /// The model server of vla-eval.
    VlaEval,
}

impl Scheme {
    /// As in addresses: `openpi`, `vla-eval`.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenPi => "openpi",
            Self::VlaEval => "vla-eval",
        }
    }
}

/// Where a server is: `openpi://HOST[:PORT][/PATH]` or `vla-eval://HOST[:PORT][/PATH]`; both use port 8000 unless told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The protocol.
    pub scheme: Scheme,
    /// Name or number of the machine; an IPv6 number without its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Begins with a slash.
    pub path: String,
}

impl Address {
    /// The port that both servers use unless told otherwise.
    pub const DEFAULT_PORT: u16 = 8000;

    /// Whether a text is meant as an address: it begins with one of the schemes.
    pub fn is_one(text: &str) -> bool {
        text.starts_with("openpi://") || text.starts_with("vla-eval://")
    }

    /// `HOST:PORT`, as URLs have it.
    pub fn host_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = if self.path == "/" { "" } else { &self.path };
        write!(f, "{}://{}{path}", self.scheme.name(), self.host_port())
    }
}

impl FromStr for Address {
    type Err = RemoteError;

    fn from_str(given: &str) -> Result<Self> {
        let wrong = |why: &str| RemoteError::Address { given: given.into(), why: why.into() };
        let (scheme, rest) = given.split_once("://").ok_or_else(|| wrong("it has no `://`"))?;
        let scheme = match scheme {
            "openpi" => Scheme::OpenPi,
            "vla-eval" => Scheme::VlaEval,
            _ => return Err(wrong("its scheme is neither `openpi` nor `vla-eval`")),
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |i| rest.split_at(i));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or_else(|| wrong("its `[` is not closed"))?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || !host.chars().all(plain) || (host.contains(':') && !authority.starts_with('['))
        {
            return Err(wrong("its host is missing or has characters that no host has"));
        }
        if path.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong("its path has blanks"));
        }
        let port = port.map_or(Some(Self::DEFAULT_PORT), |port| port.parse().ok().filter(|&port| port > 0));
        let port = port.ok_or_else(|| wrong("its port is no number from 1 to 65535"))?;
        Ok(Self { scheme, host: host.into(), port, path: path.into() })
    }
}
