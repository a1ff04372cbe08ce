//! The evaluation protocol: everything between the simulator and the policy that moves LIBERO numbers.

use efference_envs::libero::suite::{Suite, UnknownSuite};
use serde::{Deserialize, Serialize};

use super::images::Images;

/// What is done to a policy's gripper number g before the simulator gets it (-1 opens, +1 closes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gripper {
    /// Nothing.
    AsIs,
    /// -1 for g < 0, else +1.
    Sign,
    /// OpenVLA's: g from 0 (closed) to 1 (open); 2g - 1, its sign, times -1.
    OpenVla,
}

impl Gripper {
    /// The simulator's gripper number.
    pub fn convert(self, g: f64) -> f64 {
        match self {
            Self::AsIs => g,
            Self::Sign => {
                if g < 0.0 {
                    -1.0
                } else {
                    1.0
                }
            }
            Self::OpenVla => {
                let wide = 2.0 * g - 1.0;
                // The sign of 0 is 0: the fingers hold.
                if wide == 0.0 { 0.0 } else { -wide.signum() }
            }
        }
    }
}

/// How the instruction is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    /// As in the task file's name.
    AsWritten,
    /// In small letters.
    LowerCase,
}

/// How an episode is played.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Whose it is; `changed` is appended when single settings were set by hand.
    pub name: String,
    /// Control steps without the idle ones.
    pub max_steps: usize,
    /// Steps at the beginning in which objects settle; they count in the limit `max_steps + idle_steps`.
    pub idle_steps: usize,
    /// The action of those steps.
    pub idle_action: [f64; 7],
    /// What is done to pictures.
    pub images: Images,
    /// Actions that are executed of each answer; `None`: all of them.
    pub executed: Option<usize>,
    /// What is done to the gripper's number.
    pub gripper: Gripper,
    /// How the instruction is told.
    pub instruction: Instruction,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// Axis-angle in the state: of the quaternion as it is (w may be negative), never of the one with w >= 0.
    pub quaternion: Quaternion,
}

/// Which of the two quaternions of an orientation the state's axis-angle comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quaternion {
    /// The simulator's own.
    AsIs,
}

/// A name that means nothing here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// No such protocol.
    #[error("there is no evaluation protocol `{name}`\n  hint: the protocols are: {}", Protocol::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// No such suite.
    #[error(transparent)]
    Suite(#[from] UnknownSuite),
    /// A setting out of range.
    #[error("`{field}` must be {expected}, got {got}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// In words.
        expected: &'static str,
        /// The value.
        got: String,
    },
}

impl Protocol {
    /// All presets.
    pub const NAMES: [&str; 7] = ["own", "oft", "openpi", "vla-eval", "lerobot", "simplevla", "rlinf"];

    /// The settings of a known evaluator for a suite.
    ///
    /// # Errors
    /// [`ProtocolError`]: no such preset or suite.
    pub fn preset(name: &str, suite: &str) -> Result<Self, ProtocolError> {
        let base = suite.parse::<Suite>()?.base;
        let limit = |limits: [usize; 5]| limits[base as usize];
        const IDLE: [f64; 7] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0];
        let own = Self {
            name: name.into(),
            max_steps: base.max_steps(),
            idle_steps: 10,
            idle_action: IDLE,
            images: Images::Own,
            executed: None,
            gripper: Gripper::AsIs,
            instruction: Instruction::AsWritten,
            seed: 7,
            quaternion: Quaternion::AsIs,
        };
        let oft = Self {
            images: Images::Oft,
            executed: Some(8),
            gripper: Gripper::OpenVla,
            instruction: Instruction::LowerCase,
            ..own.clone()
        };
        let openpi = Self { images: Images::OpenPi, executed: Some(5), ..own.clone() };
        Ok(match name {
            "own" => own,
            "oft" => oft,
            "openpi" => openpi,
            "vla-eval" => Self { images: Images::Plain, gripper: Gripper::Sign, ..own },
            "lerobot" => Self {
                max_steps: limit([280, 280, 300, 520, 400]),
                images: Images::Plain,
                executed: Some(10),
                seed: 1000,
                ..own
            },
            "simplevla" => Self { max_steps: 512, seed: 0, ..oft },
            "rlinf" => Self {
                max_steps: limit([240, 240, 320, 512, 512]),
                idle_steps: 15,
                idle_action: [0.0; 7],
                seed: 0,
                ..openpi
            },
            _ => return Err(ProtocolError::Unknown { name: name.into() }),
        })
    }

    /// Refuses settings that cannot be meant.
    ///
    /// # Errors
    /// [`ProtocolError::Setting`].
    pub fn check(&self) -> Result<(), ProtocolError> {
        let wrong = |field, expected, got: String| Err(ProtocolError::Setting { field, expected, got });
        // The simulator refuses step 1001.
        if self.max_steps == 0 || self.max_steps + self.idle_steps > 1000 {
            return wrong(
                "max_steps",
                "at least 1, and with the idle steps at most 1000",
                self.max_steps.to_string(),
            );
        }
        if self.executed == Some(0) {
            return wrong("executed", "at least 1", "0".into());
        }
        if !self.idle_action.iter().all(|x| x.is_finite()) {
            return wrong("idle_action", "seven finite numbers", format!("{:?}", self.idle_action));
        }
        Ok(())
    }

    /// The instruction as the policy gets it.
    pub fn say(&self, instruction: &str) -> String {
        match self.instruction {
            Instruction::AsWritten => instruction.into(),
            Instruction::LowerCase => instruction.to_lowercase(),
        }
    }
}

/// Axis times angle of the quaternion (xyzw) that has w >= 0: what some servers ask for instead.
pub fn half_turn_axis_angle(quat_xyzw: [f64; 4]) -> [f64; 3] {
    let sign = if quat_xyzw[3] < 0.0 { -1.0 } else { 1.0 };
    efference_envs::libero::axis_angle(quat_xyzw.map(|x| sign * x))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use efference_envs::libero::suite::Base;

    use super::*;

    #[test]
    fn every_preset_is_playable_in_every_suite() {
        for name in Protocol::NAMES {
            for suite in Base::ALL {
                let protocol = Protocol::preset(name, suite.name()).unwrap();
                protocol.check().unwrap();
                let json = serde_json::to_string(&protocol).unwrap();
                assert_eq!(serde_json::from_str::<Protocol>(&json).unwrap(), protocol);
            }
        }
        let spatial = Protocol::preset("oft", "libero_spatial").unwrap();
        assert_eq!((spatial.max_steps, spatial.executed, spatial.seed), (220, Some(8), 7));
        assert_eq!(Protocol::preset("openpi", "libero_goal_swap").unwrap().max_steps, 300);
        assert!(matches!(Protocol::preset("openpi", "libero_goals"), Err(ProtocolError::Suite { .. })));
        assert!(matches!(Protocol::preset("pi", "libero_goal"), Err(ProtocolError::Unknown { .. })));
        assert!(Protocol { max_steps: 995, ..spatial.clone() }.check().is_err());
        assert!(Protocol { executed: Some(0), ..spatial }.check().is_err());
    }

    #[test]
    fn grippers() {
        let openvla = [0.0, 0.2, 0.5, 0.9, 1.0].map(|g| Gripper::OpenVla.convert(g));
        assert_eq!(openvla, [1.0, 1.0, 0.0, -1.0, -1.0]);
        assert_eq!([-0.1, 0.0, 0.3].map(|g| Gripper::Sign.convert(g)), [-1.0, 1.0, 1.0]);
        assert_eq!(Gripper::AsIs.convert(0.3), 0.3);
    }

    #[test]
    fn both_quaternions_of_an_orientation_give_one_half_turn() {
        let q = [0.6, 0.0, 0.0, -0.8];
        assert_eq!(half_turn_axis_angle(q), half_turn_axis_angle(q.map(|x| -x)));
        assert!((half_turn_axis_angle(q)[0] + 2.0 * 0.8f64.acos()).abs() < 1e-12);
    }
}
