//! Device memory that outlives a call.

use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::Result;

use super::launch::Machine;

/// What a forward pass leaves for its backward pass on a device.
pub(crate) struct Kept {
    wanted: bool,
    value: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Kept {
    pub fn new(wanted: bool) -> Self {
        Kept { wanted, value: OnceLock::new() }
    }

    /// Whether a backward pass may follow.
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// Keeps `value`, if it is wanted. A forward pass runs once and keeps once.
    pub fn put<T: Send + Sync + 'static>(&self, value: T) {
        if self.wanted {
            let _ = self.value.set(Box::new(value));
        }
    }

    /// What was kept.
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.value.get()?.downcast_ref()
    }
}

/// A device's id and what lies there.
type Copy = (u64, Arc<dyn Any + Send + Sync>);

/// Copies of a constant on the devices where it was needed; clones share them.
#[derive(Clone, Default)]
pub(crate) struct PerDevice(Arc<Mutex<Vec<Copy>>>);

impl PerDevice {
    /// The copy on `machine`, made by `make` the first time.
    pub fn get<M: Machine, T: Send + Sync + 'static>(
        &self,
        machine: &M,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        // Nothing in here can be half done: a poisoned list is still a list of whole copies.
        let mut copies = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let here = |(id, copy): &Copy| (*id == machine.id()).then(|| Arc::clone(copy).downcast().ok())?;
        if let Some(copy) = copies.iter().find_map(here) {
            return Ok(copy);
        }
        let copy = Arc::new(make()?);
        copies.push((machine.id(), Arc::clone(&copy) as _));
        Ok(copy)
    }
}
