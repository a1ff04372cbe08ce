//! The families of tasks.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A family of tasks: what is moved, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowTask {
    /// Lift a cup and tilt it over a bowl.
    Pour,
    /// Put a peg into an upright holder.
    Insert,
    /// Hang a ring on a peg.
    Hang,
    /// Pull a drawer open by its handle.
    Drawer,
    /// Push a block along the table onto a mark; data only.
    Push,
}

impl FlowTask {
    /// All families.
    pub const ALL: [Self; 5] = [Self::Pour, Self::Insert, Self::Hang, Self::Drawer, Self::Push];
    /// Those that are executed with an arm, for tables by task.
    pub const EXECUTED: [Self; 4] = [Self::Pour, Self::Insert, Self::Hang, Self::Drawer];
    /// Control steps for which the goal must hold without a break until it counts as success.
    pub const HOLD_STEPS: usize = 5;

    /// Its name in tables and on the command line.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Pour => "pour",
            Self::Insert => "insert",
            Self::Hang => "hang",
            Self::Drawer => "drawer",
            Self::Push => "push",
        }
    }

    /// All ids.
    pub fn ids() -> Vec<&'static str> {
        Self::ALL.iter().map(|task| task.id()).collect()
    }

    /// The family of this id.
    ///
    /// # Errors
    /// [`Error::UnknownTask`], which names the nearest and lists all.
    pub fn from_id(id: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|task| task.id() == id);
        named.ok_or_else(|| Error::unknown_task(id, &Self::ids()))
    }
}
