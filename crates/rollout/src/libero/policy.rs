//! Who plays.

use image::RgbImage;
use serde_json::{Value, json};

use super::episode::EpisodeError;
use super::images::ImageError;
use super::protocol::{Protocol, half_turn_axis_angle};
use super::simulator::{Camera, Simulator};
use crate::remote::{Address, EpisodeStart, Limits, Question, RemoteError, RemotePolicy};

/// Why a policy did not act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A policy server failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A picture could not be prepared.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Fewer actions than the protocol executes.
    #[error(
        "the policy answered with {got} actions, but {executed} of each answer are executed\n  hint: `--executed {got}`"
    )]
    Short {
        /// What came.
        got: usize,
        /// What the protocol takes.
        executed: usize,
    },
    /// A number that is none.
    #[error("number {column} of action {row} is {value}")]
    NotFinite {
        /// Which action.
        row: usize,
        /// Which of the seven.
        column: usize,
        /// Its value.
        value: f64,
    },
    /// The network, or the scripted expert, failed.
    #[error("the policy failed: {why}")]
    Failed {
        /// Its words.
        why: String,
    },
}

/// An episode that begins.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Suite.
    pub suite: &'a str,
    /// Task number.
    pub task: usize,
    /// Saved initial state.
    pub episode: usize,
    /// The instruction as the protocol tells it.
    pub instruction: &'a str,
    /// Seed of the evaluation.
    pub seed: u64,
}

/// What a policy may look at; pictures are drawn only when it asks.
pub struct View<'v> {
    pub(super) simulator: &'v mut dyn Simulator,
    pub(super) protocol: &'v Protocol,
    pub(super) instruction: &'v str,
}

impl View<'_> {
    /// What a camera shows, prepared as the protocol says.
    ///
    /// # Errors
    /// The simulator could not draw.
    pub fn picture(&mut self, camera: Camera) -> Result<RgbImage, EpisodeError> {
        let upright = self.simulator.render(camera)?;
        Ok(self.protocol.images.prepare(&upright).map_err(PolicyError::from)?)
    }

    /// End-effector position (3), axis-angle of its quaternion as it is (3), finger positions (2).
    ///
    /// # Errors
    /// The simulator failed.
    pub fn state(&mut self) -> Result<[f64; 8], EpisodeError> {
        let felt = self.simulator.felt()?;
        Ok(state(&felt.eef_pos, efference_envs::libero::axis_angle(felt.eef_quat), &felt.gripper_qpos))
    }

    /// All of it at once, for a policy server.
    ///
    /// # Errors
    /// The simulator failed.
    pub fn question(&mut self, with_wrist: bool) -> Result<Question, EpisodeError> {
        let felt = self.simulator.felt()?;
        let half_turn = half_turn_axis_angle(felt.eef_quat);
        Ok(Question {
            image: self.picture(Camera::Scene)?,
            wrist: if with_wrist { Some(self.picture(Camera::Hand)?) } else { None },
            state: self.state()?,
            state_half_turn: state(&felt.eef_pos, half_turn, &felt.gripper_qpos),
            instruction: self.instruction.into(),
        })
    }

    /// The simulator, for who may look behind the scenes.
    pub fn simulator(&mut self) -> &mut dyn Simulator {
        self.simulator
    }
}

fn state(position: &[f64; 3], turn: [f64; 3], fingers: &[f64; 2]) -> [f64; 8] {
    let ([x, y, z], [a, b, c], [left, right]) = (*position, turn, *fingers);
    [x, y, z, a, b, c, left, right]
}

/// A policy that plays one episode after the other.
pub trait EvalPolicy {
    /// An episode begins.
    ///
    /// # Errors
    /// The policy is not there; the episode counts as an error.
    fn start(&mut self, start: &Start<'_>) -> Result<(), PolicyError>;

    /// The next actions, at least one, in the policy's own gripper convention.
    ///
    /// # Errors
    /// The policy failed, or the view did; the episode counts as an error.
    fn act(&mut self, view: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError>;

    /// The episode is over.
    fn end(&mut self, _success: bool, _steps: usize) {}
}

/// Makes a policy per worker.
pub trait PolicySource: Sync {
    /// Cheap; connections are made when the first episode starts.
    fn open(&self) -> Box<dyn EvalPolicy + '_>;

    /// What is stored about it: everything that moves its results.
    fn settings(&self) -> Value;
}

/// Does nothing: what success costs nothing is worth nothing.
pub struct Idle {
    /// The action of every step.
    pub action: [f64; 7],
}

impl PolicySource for Idle {
    fn open(&self) -> Box<dyn EvalPolicy + '_> {
        Box::new(Idle { action: self.action })
    }

    fn settings(&self) -> Value {
        json!({ "kind": "constant", "action": self.action })
    }
}

impl EvalPolicy for Idle {
    fn start(&mut self, _: &Start<'_>) -> Result<(), PolicyError> {
        Ok(())
    }

    fn act(&mut self, _: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError> {
        Ok(vec![self.action])
    }
}

/// A policy server; every worker has a connection of its own.
pub struct RemoteSource {
    address: Address,
    limits: Limits,
    metadata: Value,
}

impl RemoteSource {
    /// Connects once, to know that somebody is there and what they say about themselves.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(address: Address, limits: Limits) -> Result<Self, RemoteError> {
        let mut first = RemotePolicy::new(address.clone(), limits);
        first.connect()?;
        Ok(Self { address, limits, metadata: first.metadata() })
    }
}

impl PolicySource for RemoteSource {
    fn open(&self) -> Box<dyn EvalPolicy + '_> {
        Box::new(RemotePolicy::new(self.address.clone(), self.limits))
    }

    /// Not the address: a server may move between interruption and resume.
    fn settings(&self) -> Value {
        json!({ "kind": "remote", "metadata": self.metadata })
    }
}

impl EvalPolicy for RemotePolicy {
    fn start(&mut self, start: &Start<'_>) -> Result<(), PolicyError> {
        Ok(self.start_episode(&EpisodeStart {
            suite: start.suite.into(),
            task: start.task,
            instruction: start.instruction.into(),
            episode: start.episode,
        })?)
    }

    fn act(&mut self, view: &mut View<'_>) -> Result<Vec<[f64; 7]>, EpisodeError> {
        let question = view.question(self.wants_wrist())?;
        Ok(self.ask(&question).map_err(PolicyError::from)?)
    }

    fn end(&mut self, success: bool, steps: usize) {
        self.end_episode(success, steps);
    }
}
