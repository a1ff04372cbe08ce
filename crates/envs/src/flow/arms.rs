//! The two arms.

use efference_geometry::Isometry3;
use efference_mujoco::{Data, Model};
use nalgebra::{DMatrix, Rotation3, Translation3, UnitQuaternion};
use serde::{Deserialize, Serialize};

use crate::arm::Arm;
use crate::{Action, Error, Result};

/// Which arm stands at the workbench.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// Seven joints, as in the tabletop suite.
    #[default]
    Arm7,
    /// Six joints, other proportions, another gripper.
    Arm6,
}

impl ArmKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Arm7, Self::Arm6];

    /// Its name in tables and on the command line.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Arm7 => "arm7",
            Self::Arm6 => "arm6",
        }
    }

    /// The arm of this id.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn from_id(id: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|arm| arm.id() == id).ok_or_else(|| Error::Option {
            field: "arm",
            expected: "`arm7` or `arm6`",
            got: id.to_owned(),
        })
    }

    /// Joints without the fingers.
    pub const fn joints(self) -> usize {
        match self {
            Self::Arm7 => 7,
            Self::Arm6 => 6,
        }
    }
}

/// An arm of either kind.
pub(crate) enum AnyArm {
    Seven(Arm<7>),
    Six(Arm<6>),
}

macro_rules! either {
    ($self:ident, $arm:ident => $body:expr) => {
        match $self {
            AnyArm::Seven($arm) => $body,
            AnyArm::Six($arm) => $body,
        }
    };
}

impl AnyArm {
    pub fn find(model: &Model, kind: ArmKind) -> Result<Self> {
        // The wrist is left alone and moves readily: it crosses its singular pose when a gripper that points down is
        // brought level, and the shoulder must not swing around instead.
        Ok(match kind {
            ArmKind::Arm7 => Self::Seven(Arm {
                pull: [0.2, 0.2, 0.3, 0.2, 0.05, 0.05, 0.0],
                pull_limit: 0.1,
                ease: [0.6, 1.0, 0.15, 1.0, 2.0, 2.0, 2.0],
                ..Arm::find(model, [0.0, 0.0, 0.0, 2.0, 0.0, 1.14, 0.0])?
            }),
            ArmKind::Arm6 => Self::Six(Arm {
                pull: [0.05, 0.05, 0.05, 0.0, 0.02, 0.0],
                pull_limit: 0.05,
                ..Arm::find(model, [0.0, 0.0, 2.0, 0.0, 1.14, 0.0])?
            }),
        })
    }

    pub fn grip(&self) -> usize {
        either!(self, arm => arm.grip)
    }

    pub fn limits(&self) -> &[[f64; 2]] {
        either!(self, arm => &arm.limits)
    }

    pub fn posture(&self) -> &[f64] {
        either!(self, arm => &arm.posture)
    }

    pub fn joints(&self) -> usize {
        self.limits().len()
    }

    pub fn command(&self, data: &mut Data, action: &Action) -> Result<()> {
        either!(self, arm => arm.command(data, action))
    }

    pub fn pose(&self, data: &mut Data, at: [f64; 3], turned: &Rotation3<f64>, finger_m: f64) -> Result<f64> {
        either!(self, arm => arm.pose(data, at, turned, finger_m))
    }

    pub fn grip_rotation(&self, data: &Data) -> Rotation3<f64> {
        either!(self, arm => arm.grip_rotation(data))
    }

    /// World from gripper. Poses must be up to date.
    pub fn grip_pose(&self, data: &Data) -> Isometry3<f64> {
        let rotation = UnitQuaternion::from_rotation_matrix(&self.grip_rotation(data));
        Isometry3::from_parts(Translation3::from(data.site_pos(self.grip())), rotation)
    }

    /// [6, joints].
    pub fn jacobian(&self, data: &Data) -> Result<DMatrix<f64>> {
        Ok(either!(self, arm => {
            let fixed = arm.jacobian(data)?;
            DMatrix::from_iterator(6, fixed.ncols(), fixed.iter().copied())
        }))
    }
}
