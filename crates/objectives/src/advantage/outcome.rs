//! Outcome baselines beside GRPO's as blocks: OPO, GPG, pass@k. The formulas are functions of `group.rs`.

use serde::{Deserialize, Serialize};

use super::group::{gpg, opo, pass_at_k};
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES};
use crate::block::{Advantage, Block, Kind};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// OPO: the baseline of least variance on-policy, the group's length-weighted mean reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Opo {}

impl Block for Opo {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn describe(&self) -> String {
        "group: R - length-weighted mean".into()
    }
}

impl Kind for Opo {
    const KIND: &'static str = "opo";
}

impl Advantage for Opo {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let lengths = batch.mask().row_sums();
        Table::broadcast(&opo(&batch.outcomes()?, &lengths, batch.ids(GROUP_IDS)?)?, batch.mask())
    }
}

/// GPG: centred rewards, scaled up by the share of sequences that have any reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpg {
    /// Divides, > 0.
    pub f_norm: f64,
}

impl Default for Gpg {
    fn default() -> Self {
        Self { f_norm: 1.0 }
    }
}

impl Block for Gpg {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn validate(&self) -> Result<()> {
        if self.f_norm > 0.0 && self.f_norm.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "f_norm", got: self.f_norm, expected: "greater than 0" })
    }

    fn describe(&self) -> String {
        "group: B / number of nonzero rewards * (R - mean)".into()
    }
}

impl Kind for Gpg {
    const KIND: &'static str = "gpg";
}

impl Advantage for Gpg {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        Table::broadcast(&gpg(&batch.outcomes()?, batch.ids(GROUP_IDS)?, self.f_norm)?, batch.mask())
    }
}

/// Pass@k: a group is worth its best answer, which gets its lead over the second best.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PassAtK {
    /// Divide by the group's unbiased deviation plus epsilon.
    pub by_spread: bool,
    /// Added to the deviation, 0 or more.
    pub epsilon: f64,
}

impl Default for PassAtK {
    fn default() -> Self {
        Self { by_spread: true, epsilon: 1e-6 }
    }
}

impl Block for PassAtK {
    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS]
    }

    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn validate(&self) -> Result<()> {
        if self.epsilon >= 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let by = if self.by_spread { " / (std + eps)" } else { "" };
        format!("group: the best alone, (best - second){by}")
    }
}

impl Kind for PassAtK {
    const KIND: &'static str = "pass_at_k";
}

impl Advantage for PassAtK {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        let per_row = pass_at_k(&batch.outcomes()?, batch.ids(GROUP_IDS)?, self.by_spread, self.epsilon)?;
        Table::broadcast(&per_row, batch.mask())
    }
}
