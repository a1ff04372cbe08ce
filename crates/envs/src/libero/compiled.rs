//! A compiled scene with the names of `meta.json` resolved.

use super::{Pack, Profile, Result};

#[derive(Debug)]
pub(crate) struct Compiled {}

impl Compiled {
    pub fn new(_pack: &Pack, _profile: Profile) -> Result<Self> {
        Ok(Self {})
    }
}
