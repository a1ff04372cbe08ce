//! The tasks: their words, when they are done, how far they are from done.

use serde::{Deserialize, Serialize};

use super::layout::Thing;
use super::world::World;
use crate::{Error, Result};

/// What the robot is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Held by both fingers, 5 cm above the table.
    PickRedCube,
    /// Resting in the tray, let go.
    CylinderInTray,
    /// Resting on the blue block, let go.
    StackRedOnBlue,
    /// 8 cm or more.
    OpenDrawer,
    /// Resting with its centre within 3 cm of the mark's.
    PushBlockToMark,
    /// 9 mm or more, by the gripper.
    PressButton,
}

/// How far the drawer must be open, metres.
const DRAWER_OPEN_M: f64 = 0.08;
/// How deep the button must be pressed, metres.
const BUTTON_DOWN_M: f64 = 0.009;
/// How high the cube must be lifted, metres.
const LIFTED_M: f64 = 0.05;
/// How near the block's centre must be to the mark's, metres.
const ON_MARK_M: f64 = 0.03;
/// Height of the red cube's centre above the blue block's when stacked, metres.
const STACKED_M: f64 = 0.0425;

impl Task {
    /// All tasks.
    pub const ALL: [Self; 6] = [
        Self::PickRedCube,
        Self::CylinderInTray,
        Self::StackRedOnBlue,
        Self::OpenDrawer,
        Self::PushBlockToMark,
        Self::PressButton,
    ];

    /// For how many control steps in a row the goal must hold.
    pub const HOLD_STEPS: usize = 5;

    /// Its id, as in configurations.
    pub const fn id(self) -> &'static str {
        match self {
            Self::PickRedCube => "pick_red_cube",
            Self::CylinderInTray => "cylinder_in_tray",
            Self::StackRedOnBlue => "stack_red_on_blue",
            Self::OpenDrawer => "open_drawer",
            Self::PushBlockToMark => "push_block_to_mark",
            Self::PressButton => "press_button",
        }
    }

    /// What the robot is told.
    pub const fn instruction(self) -> &'static str {
        match self {
            Self::PickRedCube => "pick up the red cube",
            Self::CylinderInTray => "put the green cylinder in the tray",
            Self::StackRedOnBlue => "stack the red cube on the blue block",
            Self::OpenDrawer => "open the drawer",
            Self::PushBlockToMark => "push the yellow block onto the mark",
            Self::PressButton => "press the button",
        }
    }

    /// All ids.
    pub fn ids() -> Vec<&'static str> {
        Self::ALL.iter().map(|task| task.id()).collect()
    }

    /// The task of this id.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], which names the nearest and lists all.
    pub fn from_id(id: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|task| task.id() == id);
        named.ok_or_else(|| Error::unknown_task(id, &Self::ids()))
    }

    /// Whether the goal holds in this state.
    pub(crate) fn holds(self, w: &World) -> bool {
        let s = w.scene;
        match self {
            Self::PickRedCube => {
                w.pinched(s.red) && w.pos(Thing::RedCube).z > Thing::RedCube.rest_z_m() + LIFTED_M
            }
            Self::CylinderInTray => in_tray(w) && !w.handled(s.green) && w.speed(Thing::GreenCylinder) < 0.05,
            Self::StackRedOnBlue => stacked(w) && !w.handled(s.red) && w.speed(Thing::RedCube) < 0.05,
            Self::OpenDrawer => w.drawer() > DRAWER_OPEN_M,
            Self::PushBlockToMark => {
                let low = w.pos(Thing::YellowBlock).z < Thing::YellowBlock.rest_z_m() + 0.01;
                low && to_mark(w) < ON_MARK_M && w.speed(Thing::YellowBlock) < 0.03
            }
            Self::PressButton => w.button() > BUTTON_DOWN_M && w.handled(s.cap_geom),
        }
    }

    /// Metres that hands and things still have to travel, roughly; 0 when the goal holds.
    pub(crate) fn remaining(self, w: &World) -> f64 {
        if self.holds(w) {
            return 0.0;
        }
        let reach = |thing| (w.grip() - w.pos(thing)).norm();
        match self {
            Self::PickRedCube => {
                let lift = w.pos(Thing::RedCube).z - Thing::RedCube.rest_z_m();
                reach(Thing::RedCube) + (LIFTED_M - lift).max(0.0)
            }
            Self::CylinderInTray => {
                let carry = (w.pos(Thing::GreenCylinder) - w.pos(Thing::Tray)).norm();
                let let_go = if w.handled(w.scene.green) { 0.02 } else { 0.0 };
                if in_tray(w) { let_go + 0.01 } else { reach(Thing::GreenCylinder) + carry }
            }
            Self::StackRedOnBlue => {
                let mut carry = w.pos(Thing::RedCube) - w.pos(Thing::BlueBlock);
                carry.z -= STACKED_M;
                let let_go = if w.handled(w.scene.red) { 0.02 } else { 0.0 };
                if stacked(w) { let_go + 0.01 } else { reach(Thing::RedCube) + carry.norm() }
            }
            Self::OpenDrawer => (w.grip() - w.handle()).norm() + (DRAWER_OPEN_M - w.drawer()).max(0.0),
            Self::PushBlockToMark => reach(Thing::YellowBlock) + to_mark(w),
            Self::PressButton => (w.grip() - w.cap()).norm() + (BUTTON_DOWN_M - w.button()).max(0.0),
        }
    }
}

fn to_mark(w: &World) -> f64 {
    (w.xy(Thing::YellowBlock) - w.xy(Thing::Mark)).norm()
}

/// Whether the cylinder's centre is above the tray's floor and below the rims' reach.
pub(crate) fn in_tray(w: &World) -> bool {
    let gap = w.pos(Thing::GreenCylinder) - w.pos(Thing::Tray);
    gap.x.abs() < 0.065 && gap.y.abs() < 0.065 && gap.z < 0.05
}

/// Whether the red cube rests on the blue block.
pub(crate) fn stacked(w: &World) -> bool {
    let gap = w.pos(Thing::RedCube) - w.pos(Thing::BlueBlock);
    gap.xy().norm() < 0.030 && (gap.z - STACKED_M).abs() < 0.006 && w.touch(w.scene.red, w.scene.blue)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ids_round_trip_and_the_nearest_is_named() {
        for task in Task::ALL {
            assert_eq!(Task::from_id(task.id()).unwrap(), task);
            assert_eq!(serde_json::to_string(&task).unwrap(), format!("\"{}\"", task.id()));
        }
        let message = Task::from_id("open_drawr").unwrap_err().to_string();
        assert!(message.contains("did you mean `open_drawer`"), "{message}");
        assert!(message.contains("press_button"), "{message}");
    }
}
