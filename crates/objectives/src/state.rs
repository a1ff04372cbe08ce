//! What outlives an iteration: prompt histories, trackers, quantiles, entropy history.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Memory of the blocks of one objective, by block. Goes into checkpoints as it is; numbers keep every bit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State(BTreeMap<String, serde_json::Value>);

impl State {
    /// What `block` remembers, or its beginning.
    ///
    /// # Errors
    /// [`Error::State`]: it was written by another version of the block.
    pub fn get<T: DeserializeOwned + Default>(&self, block: &'static str) -> Result<T> {
        match self.0.get(block) {
            None => Ok(T::default()),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|e| Error::State { block, reason: e.to_string() }),
        }
    }

    /// Remembers. Infinite numbers cannot be remembered.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn set<T: Serialize + DeserializeOwned>(&mut self, block: &'static str, value: &T) -> Result<()> {
        let lost = |e: serde_json::Error| Error::State { block, reason: e.to_string() };
        let value = serde_json::to_value(value).map_err(lost)?;
        // JSON writes what is not finite as null; better to stop here than to lose it in a checkpoint.
        serde_json::from_value::<T>(value.clone()).map_err(lost)?;
        self.0.insert(block.into(), value);
        Ok(())
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
