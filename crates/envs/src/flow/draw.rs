//! Pictures, depth and masks. Renderers belong to threads: each thread keeps those it used last.

use std::cell::RefCell;

use efference_mujoco::{Data, RenderQuality, Renderer};

use super::scene::Scene;
use crate::Result;
use crate::tabletop::Quality;

/// Enough for all families with both arms.
const RENDERERS_PER_THREAD: usize = 12;

type Key = (u64, usize);

thread_local! {
    /// The one used last is at the end.
    static RENDERERS: RefCell<Vec<(Key, Renderer)>> = const { RefCell::new(Vec::new()) };
}

const fn quality(quality: Quality) -> RenderQuality {
    match quality {
        Quality::Fast => RenderQuality::FAST,
        Quality::Pretty => RenderQuality { shadows: true, reflections: false, multisample: 8 },
    }
}

/// Lends this thread's renderer for square pictures of this scene. Poses must be up to date.
pub(crate) fn with<T>(
    scene: &Scene,
    side: usize,
    draw: impl FnOnce(&mut Renderer) -> efference_mujoco::Result<T>,
) -> Result<T> {
    let key = (scene.model.lineage(), side);
    RENDERERS.with_borrow_mut(|renderers| {
        match renderers.iter().position(|(there, _)| *there == key) {
            Some(place) => {
                let entry = renderers.remove(place);
                renderers.push(entry);
            }
            None => {
                if renderers.len() >= RENDERERS_PER_THREAD {
                    renderers.remove(0);
                }
                let renderer = Renderer::new(&scene.model, side, side, quality(scene.variant.quality))?;
                renderers.push((key, renderer));
            }
        }
        // Just pushed.
        let (_, renderer) = renderers.last_mut().ok_or(efference_mujoco::Error::OtherModel)?;
        Ok(draw(renderer)?)
    })
}

/// Draws [side, side, 3] bytes.
pub(crate) fn rgb(scene: &Scene, data: &Data, camera: usize, side: usize, out: &mut [u8]) -> Result<()> {
    with(scene, side, |renderer| renderer.render_rgb(data, camera, out))
}
