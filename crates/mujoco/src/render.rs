//! Headless drawing: colours, depth, segmentation.

use crate::{
    Data, Error, Model, Result,
    ffi::{self, RawCamera, RawQuality, RawRenderer},
    model::init,
};
use std::{
    ffi::c_int,
    ptr::{NonNull, null_mut},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

/// What to spend time on when drawing.
///
/// On Mesa's software driver a small picture costs about as much as it has triangles, and each effect draws them again:
/// a light with shadows makes it three passes, four samples per pixel triple the price of each. MuJoCo's default spheres
/// and cylinders have 900 triangles and its boxes 192, so for pictures of 64 px write
/// `<visual><quality numslices="12" numstacks="6" numquads="1" shadowsize="256"/></visual>` into the scene; the example
/// `probe` prints what that brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenderQuality {
    /// Shadows of the lights that cast them.
    pub shadows: bool,
    /// Mirror images in reflective materials.
    pub reflections: bool,
    /// Samples per pixel against jagged edges; 0 for none. Drivers round it to what they can (see
    /// [`Renderer::samples`]).
    pub multisample: u32,
}

impl RenderQuality {
    /// As MuJoCo draws by default; what published datasets look like.
    pub const FULL: Self = Self { shadows: true, reflections: true, multisample: 4 };
    /// No effects.
    pub const FAST: Self = Self { shadows: false, reflections: false, multisample: 0 };
}

impl Default for RenderQuality {
    fn default() -> Self {
        Self::FULL
    }
}

/// Where to look from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Camera {
    /// A camera of the model, by index.
    Fixed(usize),
    /// A camera around a point.
    Free {
        /// Point in the middle of the picture, world, metres.
        lookat: [f64; 3],
        /// Distance from it in metres.
        distance_m: f64,
        /// Heading in degrees; 0 looks along +x, 90 along +y.
        azimuth_deg: f64,
        /// Pitch in degrees; negative looks down.
        elevation_deg: f64,
    },
}

impl From<usize> for Camera {
    fn from(id: usize) -> Self {
        Self::Fixed(id)
    }
}

/// The largest width and height in pixels.
const MAX_SIDE_PX: usize = 8192;

/// Draws simulations of one model into memory. Images are row-major with the top row first.
///
/// Bound to the thread that made it (neither `Send` nor `Sync`), because an OpenGL context is. Several renderers may
/// live on one thread; each call makes its own context current.
///
/// Works on Mesa's software driver and on GPUs, by EGL without a display. `MUJOCO_EGL_DEVICE_ID` chooses a GPU. Unless
/// the variable is set, the first renderer sets `LP_NUM_THREADS=0`: Mesa's software driver then draws on the calling
/// thread, so that many environments in parallel do not fight for cores.
pub struct Renderer {
    raw: NonNull<RawRenderer>,
    lineage: u64,
    width: usize,
    height: usize,
    /// Whether Mesa draws on the CPU; see [`alone`].
    software: bool,
    scratch: Vec<u8>,
}

/// How Mesa's software drivers name themselves.
const SOFTWARE_DRIVERS: [&str; 3] = ["llvmpipe", "softpipe", "swrast"];

/// Held by whoever makes, uses or frees a context of Mesa's software driver. Contexts of one display are meant to be
/// independent, but before it touches a buffer llvmpipe asks every other context of the display whether it still uses
/// that buffer, and reads their lists without a lock while their threads change and free them (Mesa 22.3,
/// `llvmpipe_is_resource_referenced`; seen as a crash in `swrast_dri.so` once in some thousand pictures on two threads).
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Renderer {
    /// An offscreen context with the model's meshes and textures uploaded.
    ///
    /// # Errors
    /// [`Error::Value`] for sizes that are zero or above 8192; [`Error::Render`] without a usable OpenGL.
    pub fn new(model: &Model, width: usize, height: usize, quality: RenderQuality) -> Result<Self> {
        init()?;
        for (what, side) in [("image width", width), ("image height", height)] {
            if !(1..=MAX_SIDE_PX).contains(&side) {
                return Err(Error::Value {
                    what,
                    expected: "between 1 and 8192 pixels",
                    got: side.to_string(),
                });
            }
        }
        if quality.multisample > 64 {
            let got = quality.multisample.to_string();
            return Err(Error::Value { what: "multisample", expected: "between 0 and 64 samples", got });
        }
        keep_mesa_on_our_thread();
        // MuJoCo loads OpenGL's entry points into globals while it makes a context.
        let _alone = alone();
        let quality = RawQuality {
            shadows: c_int::from(quality.shadows),
            reflections: c_int::from(quality.reflections),
            samples: quality.multisample as c_int,
        };
        // SAFETY: valid model and sizes; the result is used on this thread only, as the type is not Send.
        let raw = unsafe { ffi::em_renderer_new(model.raw(), width as c_int, height as c_int, quality) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::Render { message: ffi::last_error() })?;
        // SAFETY: valid renderer, current on this thread; the text is copied.
        let driver = unsafe { ffi::text(ffi::em_renderer_driver(raw.as_ptr())) };
        let software = SOFTWARE_DRIVERS.iter().any(|name| driver.contains(name));
        leave_drawing_alone_at_exit();
        Ok(Self { raw, lineage: model.lineage, width, height, software, scratch: Vec::new() })
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Samples per pixel that the driver gave.
    pub fn samples(&self) -> usize {
        // SAFETY: valid renderer.
        unsafe { ffi::em_renderer_samples(self.raw.as_ptr()) as usize }
    }

    /// The OpenGL driver's name for itself, for example `llvmpipe (LLVM 15.0.7, 256 bits)`.
    pub fn driver(&mut self) -> String {
        // SAFETY: valid renderer; the text is copied.
        unsafe { ffi::text(ffi::em_renderer_driver(self.raw.as_ptr())) }
    }

    /// Shows or hides the geoms of a group. Groups 0 to 2 are shown at first, 3 to 5 hidden.
    ///
    /// # Errors
    /// [`Error::Index`] for groups above 5.
    pub fn show_geom_group(&mut self, group: usize, visible: bool) -> Result<()> {
        self.show_group(false, group, visible)
    }

    /// Shows or hides the sites of a group. Groups 0 to 2 are shown at first, 3 to 5 hidden.
    ///
    /// # Errors
    /// [`Error::Index`] for groups above 5.
    pub fn show_site_group(&mut self, group: usize, visible: bool) -> Result<()> {
        self.show_group(true, group, visible)
    }

    /// How many geoms, sites and the like the last picture was drawn from.
    pub fn drawn(&self) -> usize {
        // SAFETY: valid renderer.
        unsafe { ffi::em_renderer_drawn(self.raw.as_ptr()) as usize }
    }

    /// Draws geoms outside the picture, too, as MuJoCo does by itself. The picture is the same with and without; off at
    /// first, because geoms that nobody sees cost as much as others.
    pub fn draw_unseen(&mut self, unseen: bool) {
        // SAFETY: valid renderer.
        unsafe { ffi::em_renderer_draw_unseen(self.raw.as_ptr(), c_int::from(unseen)) };
    }

    fn show_group(&mut self, sites: bool, group: usize, visible: bool) -> Result<()> {
        let group = Model::index("visibility group", group, 6)?;
        // SAFETY: valid renderer and group.
        unsafe {
            ffi::em_renderer_show_group(self.raw.as_ptr(), c_int::from(sites), group, c_int::from(visible))
        };
        Ok(())
    }

    /// Draws colours: 3 bytes per pixel into `out`, [height x width x 3].
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Index`] for a camera that does not exist, [`Error::OtherModel`], [`Error::Render`].
    pub fn render_rgb(&mut self, data: &Data, camera: impl Into<Camera>, out: &mut [u8]) -> Result<()> {
        self.check_len("RGB image", 3, out.len())?;
        self.draw(data, camera.into(), ffi::RGB, out.as_mut_ptr(), null_mut(), null_mut())?;
        flip(out, 3 * self.width);
        Ok(())
    }

    /// Draws depth: metres along the camera's axis (not along the ray) into `out`, [height x width]. Where nothing is,
    /// the farthest distance that is drawn.
    ///
    /// # Errors
    /// As [`Renderer::render_rgb`].
    pub fn render_depth(&mut self, data: &Data, camera: impl Into<Camera>, out: &mut [f32]) -> Result<()> {
        self.check_len("depth image", 1, out.len())?;
        self.draw(data, camera.into(), ffi::DEPTH, null_mut(), out.as_mut_ptr(), null_mut())?;
        flip(out, self.width);
        Ok(())
    }

    /// Draws which geom is seen: its index into `out`, [height x width]; -1 for background, -2 for things that are not
    /// geoms (sites, for example).
    ///
    /// # Errors
    /// As [`Renderer::render_rgb`].
    pub fn render_segmentation(
        &mut self,
        data: &Data,
        camera: impl Into<Camera>,
        out: &mut [i32],
    ) -> Result<()> {
        self.check_len("segmentation image", 1, out.len())?;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(3 * self.width * self.height, 0);
        let drawn = self.draw(
            data,
            camera.into(),
            ffi::SEGMENTATION,
            scratch.as_mut_ptr(),
            null_mut(),
            out.as_mut_ptr(),
        );
        self.scratch = scratch;
        drawn?;
        flip(out, self.width);
        Ok(())
    }

    fn check_len(&self, what: &'static str, channels: usize, got: usize) -> Result<()> {
        let expected = channels * self.width * self.height;
        if got == expected { Ok(()) } else { Err(Error::Length { what, expected, got }) }
    }

    fn draw(
        &mut self,
        data: &Data,
        camera: Camera,
        what: c_int,
        rgb: *mut u8,
        depth: *mut f32,
        ids: *mut c_int,
    ) -> Result<()> {
        let model = data.model();
        if model.lineage != self.lineage {
            return Err(Error::OtherModel);
        }
        let camera = match camera {
            Camera::Fixed(id) => {
                let fixed_id = Model::index("camera", id, model.view.ncam)?;
                RawCamera { fixed_id, lookat: [0.0; 3], distance: 1.0, azimuth: 0.0, elevation: 0.0 }
            }
            Camera::Free { lookat, distance_m: distance, azimuth_deg: azimuth, elevation_deg: elevation } => {
                RawCamera { fixed_id: -1, lookat, distance, azimuth, elevation }
            }
        };
        let _alone = self.software.then(alone);
        // SAFETY: this is the renderer's thread (not Send); data fits the uploaded model (same lineage); the buffer
        // that `what` selects has one entry per pixel and channel (checked by the callers). The data's scratch memory
        // is written through a shared reference, which is fine because Data is not Sync and hands out no slices of it.
        let status = unsafe {
            let (renderer, camera) = (self.raw.as_ptr(), &raw const camera);
            ffi::em_renderer_draw(renderer, model.raw(), data.raw(), camera, what, rgb, depth, ids)
        };
        if status == ffi::OK { Ok(()) } else { Err(Error::Render { message: ffi::last_error() }) }
    }
}

impl Drop for Renderer {
    fn drop(&mut self) {
        let _alone = self.software.then(alone);
        // SAFETY: we own it, this is its thread (not Send) and the last use.
        unsafe { ffi::em_renderer_free(self.raw.as_ptr()) }
    }
}

impl std::fmt::Debug for Renderer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Renderer({} x {})", self.width, self.height)
    }
}

fn keep_mesa_on_our_thread() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("LP_NUM_THREADS").is_none() {
            // SAFETY: Rust's own readers take the same lock. Mesa reads the variable, and does so after us, when the
            // first context is made. Other C code that reads the environment of another thread at this very moment is
            // the remaining risk that every caller of setenv has.
            unsafe { std::env::set_var("LP_NUM_THREADS", "0") };
        }
    });
}

/// OpenGL's first row is at the bottom; ours is at the top.
fn flip<T>(pixels: &mut [T], row: usize) {
    let rows = pixels.len() / row;
    let (top, bottom) = pixels.split_at_mut(rows / 2 * row);
    for (a, b) in top.chunks_exact_mut(row).zip(bottom.chunks_exact_mut(row).rev()) {
        a.swap_with_slice(b);
    }
}

/// Lets the process end before the drawing libraries tidy up: threads that still have contexts (they are never joined)
/// raced with that, and corrupted the heap at one exit in ten. Called after their first context exists, so that this
/// runs before what they have registered; Rust has flushed its output by then.
fn leave_drawing_alone_at_exit() {
    unsafe extern "C" {
        fn on_exit(
            f: extern "C" fn(std::ffi::c_int, *mut std::ffi::c_void),
            arg: *mut std::ffi::c_void,
        ) -> std::ffi::c_int;
        fn fflush(stream: *mut std::ffi::c_void) -> std::ffi::c_int;
        fn _exit(status: std::ffi::c_int) -> !;
    }
    extern "C" fn end(status: std::ffi::c_int, _: *mut std::ffi::c_void) {
        // SAFETY: null means all of C's streams; then the process ends with the status it was given.
        unsafe {
            fflush(std::ptr::null_mut());
            _exit(status)
        }
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: `end` needs no argument and lives as long as the process.
    ONCE.call_once(|| unsafe {
        on_exit(end, std::ptr::null_mut());
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn flip_reverses_rows() {
        for rows in 1..6usize {
            let mut pixels: Vec<usize> = (0..rows * 2).collect();
            super::flip(&mut pixels, 2);
            let expected: Vec<usize> = (0..rows).rev().flat_map(|row| [2 * row, 2 * row + 1]).collect();
            assert_eq!(pixels, expected);
        }
    }
}
