//! One face for both protocols.

use std::time::Duration;

use image::RgbImage;
use rmpv::Value;
use serde_json::json;

use super::array;
use super::channel::Channel;
use super::error::{RemoteError, Result};
use super::{Address, Scheme, openpi, vla_eval};

/// How long a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the connection and the greeting.
    pub connect: Duration,
    /// For one answer; the first one often compiles the network.
    pub answer: Duration,
}

impl Default for Limits {
    /// 30 s and 60 s.
    fn default() -> Self {
        Self { connect: Duration::from_secs(30), answer: Duration::from_secs(60) }
    }
}

/// What a server is told when an episode begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpisodeStart {
    /// Suite, for example `libero_spatial`.
    pub suite: String,
    /// Task number within the suite.
    pub task: usize,
    /// The instruction.
    pub instruction: String,
    /// Which saved initial state.
    pub episode: usize,
}

/// What a policy is asked with: an observation after preprocessing.
#[derive(Clone, Debug)]
pub struct Question {
    /// The scene's camera, top row first.
    pub image: RgbImage,
    /// The camera at the hand, top row first; `None` where [`RemotePolicy::wants_wrist`] is false.
    pub wrist: Option<RgbImage>,
    /// End-effector position (world, metres), axis-angle (radians), finger positions (metres).
    pub state: [f64; 8],
    /// The same with the axis-angle of the quaternion that has w >= 0: vla-eval's servers may ask for it.
    pub state_half_turn: [f64; 8],
    /// The instruction.
    pub instruction: String,
}

/// A policy server. The connection is made when the first episode begins, kept between episodes, and made anew after an
/// error, because a late answer must never be taken for the next one's.
#[derive(Debug)]
pub struct RemotePolicy {
    pub(super) address: Address,
    pub(super) limits: Limits,
    pub(super) channel: Option<Channel>,
    pub(super) metadata: serde_json::Value,
    /// Counts messages (vla-eval).
    pub(super) seq: u64,
    /// What a vla-eval server wants to see.
    pub(super) wants: vla_eval::Wants,
}

/// Most rows that an answer may have.
const MAX_ROWS: usize = 1024;
/// Numbers of an action.
const COLUMNS: usize = 7;

impl RemotePolicy {
    /// Nothing is sent yet.
    pub fn new(address: Address, limits: Limits) -> Self {
        let metadata = serde_json::Value::Null;
        Self { address, limits, channel: None, metadata, seq: 0, wants: vla_eval::Wants::default() }
    }

    /// Connects if needed, so that a wrong address is known before the simulator starts.
    ///
    /// # Errors
    /// [`RemoteError`]: nobody there, another protocol, no greeting in time, needs that cannot be met.
    pub fn connect(&mut self) -> Result<()> {
        if self.channel.is_some() {
            return Ok(());
        }
        let channel = Channel::connect(&self.address, self.limits.connect)?;
        self.channel = Some(channel);
        let greeted = match self.address.scheme {
            Scheme::OpenPi => openpi::greet(self),
            Scheme::VlaEval => vla_eval::greet(self),
        };
        self.settle(greeted)
    }

    /// What the server said about itself, and where it is. Null before the first connection.
    pub fn metadata(&self) -> serde_json::Value {
        json!({ "protocol": self.address.scheme.name(), "server": self.metadata })
    }

    /// Whether the server looks at the hand's camera; known after [`RemotePolicy::connect`].
    pub fn wants_wrist(&self) -> bool {
        self.address.scheme == Scheme::OpenPi || self.wants.wrist
    }

    /// Tells the server that an episode begins (openpi's servers need not know).
    ///
    /// # Errors
    /// As [`RemotePolicy::connect`].
    pub fn start_episode(&mut self, start: &EpisodeStart) -> Result<()> {
        // A server that was started anew between two episodes is no reason to lose one.
        for again in [true, false] {
            self.connect()?;
            let told = match self.address.scheme {
                // Nothing is said; but a connection that ended meanwhile should be noticed now.
                Scheme::OpenPi => self.open()?.answer_pings(),
                Scheme::VlaEval => vla_eval::start(self, start),
            };
            match self.settle(told) {
                Err(RemoteError::Closed { .. }) if again => {}
                told => return told,
            }
        }
        Ok(())
    }

    /// Asks for actions: [H][7] with H from 1 to 1024, every number finite, as the server sent them.
    ///
    /// # Errors
    /// [`RemoteError`]; the connection is given up, the next episode makes a new one.
    pub fn ask(&mut self, question: &Question) -> Result<Vec<[f64; 7]>> {
        self.connect()?;
        let answer = match self.address.scheme {
            Scheme::OpenPi => openpi::ask(self, question),
            Scheme::VlaEval => vla_eval::ask(self, question),
        };
        let answer = answer.and_then(|answer| actions(&answer));
        self.settle(answer)
    }

    /// Tells the server how the episode ended; a failure to do so does not matter any more.
    pub fn end_episode(&mut self, success: bool, steps: usize) {
        if self.channel.is_some() && self.address.scheme == Scheme::VlaEval {
            let told = vla_eval::end(self, success, steps);
            let _ = self.settle(told);
        }
    }

    pub(super) fn open(&mut self) -> Result<&mut Channel> {
        self.channel.as_mut().ok_or_else(|| RemoteError::Closed { why: "no connection".into() })
    }

    /// Drops the connection if something went wrong on it.
    fn settle<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.channel = None;
        }
        result
    }
}

/// The actions of an answer's map: key `actions`, or `action`; a vector is one action.
fn actions(answer: &Value) -> Result<Vec<[f64; 7]>> {
    let wrong = |why: String| RemoteError::Actions { why };
    let found = array::get(answer, "actions").or_else(|| array::get(answer, "action"));
    let found = found.ok_or_else(|| wrong(format!("the answer has no `actions` but {}", keys(answer))))?;
    let array = array::array(found)?;
    let rows = match array.shape[..] {
        [COLUMNS] => 1,
        [rows, COLUMNS] if (1..=MAX_ROWS).contains(&rows) => rows,
        _ => {
            let shape = &array.shape;
            return Err(wrong(format!(
                "expected the shape [H, 7] with H from 1 to {MAX_ROWS}, got {shape:?}"
            )));
        }
    };
    if let Some(i) = array.data.iter().position(|x| !x.is_finite()) {
        let (row, column) = (i / COLUMNS, i % COLUMNS);
        return Err(wrong(format!("number {column} of action {row} is {}", array.data[i])));
    }
    let (actions, _) = array.data.as_chunks::<COLUMNS>();
    debug_assert_eq!(actions.len(), rows);
    Ok(actions.to_vec())
}

fn keys(value: &Value) -> String {
    let Some(map) = value.as_map() else { return format!("is {}", array::kind(value)) };
    let names: Vec<String> = map
        .iter()
        .take(8)
        .map(|(key, _)| match key {
            Value::String(text) => format!("`{}`", String::from_utf8_lossy(text.as_bytes())),
            Value::Binary(bytes) => format!("`{}`", String::from_utf8_lossy(bytes)),
            other => other.to_string(),
        })
        .collect();
    if names.is_empty() { "no keys at all".into() } else { names.join(", ") }
}
