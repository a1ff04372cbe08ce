//! Renderers belong to threads: each thread keeps those it has needed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use efference_mujoco::{Data, RenderQuality, Renderer};
use serde::{Deserialize, Serialize};

use super::scene::{Scene, Variant};
use crate::Result;

/// What to spend on a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// For policies: no shadows, no multisampling, coarse round shapes.
    #[default]
    Fast,
    /// For people: shadows, multisampling, fine round shapes.
    Pretty,
}

impl Quality {
    const fn render(self) -> RenderQuality {
        match self {
            Self::Fast => RenderQuality::FAST,
            Self::Pretty => RenderQuality { shadows: true, reflections: false, multisample: 8 },
        }
    }
}

thread_local! {
    static RENDERERS: RefCell<BTreeMap<(Variant, usize), Renderer>> = const { RefCell::new(BTreeMap::new()) };
}

/// Draws [side, side, 3] bytes with this thread's renderer. Poses must be up to date.
pub(crate) fn draw(scene: &Scene, data: &Data, camera: usize, side: usize, out: &mut [u8]) -> Result<()> {
    RENDERERS.with_borrow_mut(|renderers| {
        let renderer = match renderers.entry((scene.variant, side)) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                let quality = scene.variant.quality.render();
                place.insert(Renderer::new(&scene.model, side, side, quality)?)
            }
        };
        renderer.render_rgb(data, camera, out)?;
        Ok(())
    })
}
