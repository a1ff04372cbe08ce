//! A compiled scene.

use crate::{
    Error, Kind, Result,
    ffi::{self, ModelView, RawModel},
};
use std::{
    ffi::{CString, c_char, c_int},
    ops::Range,
    path::Path,
    ptr::NonNull,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// A compiled scene: bodies, joints, geoms, cameras, actuators.
///
/// Loading is slow (milliseconds to seconds), copying by [`Model::try_clone`] takes microseconds: copies share meshes,
/// textures and all else that cannot be changed. Everything that simulates or draws takes `&Model` or `Arc<Model>`; what
/// may be changed after loading has a setter that takes `&mut`.
pub struct Model {
    /// Own memory of all that has a setter, over the shared rest.
    raw: NonNull<RawModel>,
    shared: Arc<Loaded>,
    pub(crate) view: ModelView,
    /// The same for all copies of one load: what a renderer has uploaded fits all of them.
    pub(crate) lineage: u64,
    warning: String,
}

/// What the loader made: never changed, as every [`Model`] is a layer over it.
struct Loaded(NonNull<RawModel>);

// SAFETY: plain memory without ties to a thread.
unsafe impl Send for Loaded {}
// SAFETY: nobody writes to it.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: we own it and this is the last use: layers hold the `Arc`.
        unsafe { ffi::em_model_free(self.0.as_ptr()) }
    }
}

// SAFETY: a model is plain memory without ties to a thread. Shared references only read it (the setters take `&mut`),
// and MuJoCo never writes to a model that it gets as const.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

/// How a joint moves, with the number of its entries in `qpos` and `qvel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JointKind {
    /// 7 positions (xyz, wxyz), 6 velocities (linear in the world frame, angular in the body's).
    Free,
    /// 4 positions (wxyz), 3 velocities.
    Ball,
    /// 1 position in metres.
    Slide,
    /// 1 position in radians.
    Hinge,
}

impl JointKind {
    /// Entries in `qpos`.
    pub const fn positions(self) -> usize {
        match self {
            Self::Free => 7,
            Self::Ball => 4,
            Self::Slide | Self::Hinge => 1,
        }
    }

    /// Entries in `qvel`.
    pub const fn velocities(self) -> usize {
        match self {
            Self::Free => 6,
            Self::Ball => 3,
            Self::Slide | Self::Hinge => 1,
        }
    }
}

const WARNING_LEN: usize = 1024;

impl Model {
    /// Loads and compiles an MJCF or URDF file. Meshes and textures are found relative to it.
    ///
    /// # Errors
    /// [`Error::Read`] when the file cannot be read, [`Error::Load`] with MuJoCo's message when it does not compile.
    pub fn from_xml_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // MuJoCo's message for a missing file does not say why.
        std::fs::File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        let name = path.to_string_lossy();
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| load_error(&name, "the path holds a zero byte"))?;
        Self::load(&name, |warning| {
            // SAFETY: the path is terminated and `warning` holds WARNING_LEN bytes.
            unsafe { ffi::em_model_load_file(c_path.as_ptr(), warning, WARNING_LEN as c_int) }
        })
    }

    /// Compiles MJCF from memory. Files that it names are read from disk, relative to the working folder unless their
    /// paths are absolute.
    ///
    /// # Errors
    /// [`Error::Load`] with MuJoCo's message.
    pub fn from_xml_string(xml: &str) -> Result<Self> {
        Self::from_xml_string_with_assets(xml, &[])
    }

    /// Compiles MJCF from memory; a file that it names is looked for among `assets` (name, content) first.
    ///
    /// # Errors
    /// [`Error::Load`] with MuJoCo's message, or when an asset is given twice.
    pub fn from_xml_string_with_assets(xml: &str, assets: &[(&str, &[u8])]) -> Result<Self> {
        const NAME: &str = "(string)";
        let too_long = |what: &str| load_error(NAME, &format!("{what} is longer than 2 GiB"));
        let len = c_int::try_from(xml.len()).map_err(|_| too_long("the XML"))?;
        let mut names = Vec::with_capacity(assets.len());
        for (name, _) in assets {
            names.push(
                CString::new(*name)
                    .map_err(|_| load_error(NAME, "the name of an asset holds a zero byte"))?,
            );
        }
        let mut list = Vec::with_capacity(assets.len());
        for (name, (_, bytes)) in names.iter().zip(assets) {
            let len = c_int::try_from(bytes.len()).map_err(|_| too_long("an asset"))?;
            list.push(ffi::Asset { name: name.as_ptr(), bytes: bytes.as_ptr().cast(), len });
        }
        Self::load(NAME, |warning| {
            // SAFETY: all pointers outlive the call, lengths are those of the slices; MuJoCo copies what it keeps.
            unsafe {
                let (xml, count) = (xml.as_ptr().cast(), list.len() as c_int);
                ffi::em_model_load_string(xml, len, list.as_ptr(), count, warning, WARNING_LEN as c_int)
            }
        })
    }

    fn load(name: &str, call: impl FnOnce(*mut c_char) -> *mut RawModel) -> Result<Self> {
        static NEXT_LINEAGE: AtomicU64 = AtomicU64::new(0);
        init()?;
        let mut warning = [0u8; WARNING_LEN];
        let raw = NonNull::new(call(warning.as_mut_ptr().cast()))
            .ok_or_else(|| load_error(name, &ffi::last_error()))?;
        let text = warning.split(|b| *b == 0).next().unwrap_or_default();
        let warning = String::from_utf8_lossy(text).trim().to_owned();
        let shared = Arc::new(Loaded(raw));
        // SAFETY: fresh from the loader and kept by `shared`.
        unsafe { Self::layer(raw.as_ptr(), shared, NEXT_LINEAGE.fetch_add(1, Ordering::Relaxed), warning) }
    }

    /// # Safety
    /// `from` is what `shared` holds, or a layer over it.
    unsafe fn layer(
        from: *const RawModel,
        shared: Arc<Loaded>,
        lineage: u64,
        warning: String,
    ) -> Result<Self> {
        // SAFETY: promised by the caller; what the layer shares is kept alive by `shared`.
        let raw =
            NonNull::new(unsafe { ffi::em_model_layer(from) }).ok_or_else(|| failed("copying the model"))?;
        let mut view = std::mem::MaybeUninit::uninit();
        // SAFETY: the shim fills the whole struct; the arrays stay where they are for the model's life.
        let view = unsafe {
            ffi::em_model_view_of(raw.as_ptr(), view.as_mut_ptr());
            view.assume_init()
        };
        Ok(Self { raw, shared, view, lineage, warning })
    }

    /// A copy that can be changed by itself. Renderers made for one can draw the other.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when memory runs out.
    pub fn try_clone(&self) -> Result<Self> {
        // SAFETY: our own model is a layer over what `shared` holds.
        unsafe { Self::layer(self.raw(), Arc::clone(&self.shared), self.lineage, self.warning.clone()) }
    }

    /// The same number for all copies of one loaded model, and another one for every other: whether they can be drawn
    /// by the same renderer.
    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    /// What MuJoCo's compiler warned about; empty if nothing.
    pub fn warning(&self) -> &str {
        &self.warning
    }

    pub(crate) fn raw(&self) -> *const RawModel {
        self.raw.as_ptr()
    }

    pub(crate) fn raw_mut(&mut self) -> *mut RawModel {
        self.raw.as_ptr()
    }

    /// Numbers in `qpos`.
    pub fn nq(&self) -> usize {
        self.view.nq as usize
    }

    /// Degrees of freedom: numbers in `qvel`.
    pub fn nv(&self) -> usize {
        self.view.nv as usize
    }

    /// Actuators: numbers in `ctrl`.
    pub fn nu(&self) -> usize {
        self.view.nu as usize
    }

    /// Actuator activations: numbers in `act`.
    pub fn na(&self) -> usize {
        self.view.na as usize
    }

    /// Mocap bodies.
    pub fn nmocap(&self) -> usize {
        self.view.nmocap as usize
    }

    /// Numbers in the full integration state, see [`Data::state_get`](crate::Data::state_get).
    pub fn state_len(&self) -> usize {
        self.view.nstate as usize
    }

    /// How many things of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        let v = &self.view;
        let count = match kind {
            Kind::Body => v.nbody,
            Kind::Joint => v.njnt,
            Kind::Geom => v.ngeom,
            Kind::Site => v.nsite,
            Kind::Camera => v.ncam,
            Kind::Light => v.nlight,
            Kind::Material => v.nmat,
            Kind::Actuator => v.nu,
            Kind::Sensor => v.nsensor,
            Kind::Keyframe => v.nkey,
        };
        count as usize
    }

    /// Physics step in seconds.
    pub fn timestep_secs(&self) -> f64 {
        // SAFETY: points into the model.
        unsafe { *self.view.timestep }
    }

    /// Gravity, world frame, m/s².
    pub fn gravity(&self) -> [f64; 3] {
        self.read(self.view.gravity, 1, 0)
    }

    /// Initial `qpos` of the model, [nq].
    pub fn qpos0(&self) -> &[f64] {
        // SAFETY: MuJoCo's array has nq numbers.
        unsafe { ffi::slice(self.view.qpos0, self.nq()) }
    }

    /// The body that `body` is attached to; the world (0) for the world itself.
    pub fn body_parent(&self, body: usize) -> usize {
        self.read_int(self.view.body_parentid, self.view.nbody, body) as usize
    }

    /// Index of a mocap body among the mocap bodies.
    pub fn body_mocap(&self, body: usize) -> Option<usize> {
        usize::try_from(self.read_int(self.view.body_mocapid, self.view.nbody, body)).ok()
    }

    /// Mass of a body in kg.
    pub fn body_mass(&self, body: usize) -> f64 {
        let [mass] = self.read(self.view.body_mass, self.view.nbody, body);
        mass
    }

    /// Mass of a body and all that hangs on it, in kg.
    pub fn body_subtree_mass(&self, body: usize) -> f64 {
        let [mass] = self.read(self.view.body_subtreemass, self.view.nbody, body);
        mass
    }

    /// The body that a geom belongs to.
    pub fn geom_body(&self, geom: usize) -> usize {
        self.read_int(self.view.geom_bodyid, self.view.ngeom, geom) as usize
    }

    /// Visibility group of a geom, 0 to 5.
    pub fn geom_group(&self, geom: usize) -> usize {
        self.read_int(self.view.geom_group, self.view.ngeom, geom) as usize
    }

    /// MuJoCo's `mjtGeom` number: 0 plane, 2 sphere, 3 capsule, 4 ellipsoid, 5 cylinder, 6 box, 7 mesh.
    pub fn geom_type(&self, geom: usize) -> i32 {
        self.read_int(self.view.geom_type, self.view.ngeom, geom)
    }

    /// Place of a body in its parent's frame, metres.
    pub fn body_pos(&self, body: usize) -> [f64; 3] {
        self.read(self.view.body_pos, self.view.nbody, body)
    }

    /// Orientation of a body in its parent's frame, wxyz.
    pub fn body_quat(&self, body: usize) -> [f64; 4] {
        self.read(self.view.body_quat, self.view.nbody, body)
    }

    /// Colour of a site, each in 0..=1; with a negative alpha it is not drawn.
    pub fn site_rgba(&self, site: usize) -> [f32; 4] {
        self.read(self.view.site_rgba, self.view.nsite, site)
    }

    /// Size of a geom in metres; the meaning depends on its type (half-lengths of a box, radius and half-length of a
    /// cylinder).
    pub fn geom_size(&self, geom: usize) -> [f64; 3] {
        self.read(self.view.geom_size, self.view.ngeom, geom)
    }

    /// Colour of a geom, each in 0..=1.
    pub fn geom_rgba(&self, geom: usize) -> [f32; 4] {
        self.read(self.view.geom_rgba, self.view.ngeom, geom)
    }

    /// The body that a site belongs to.
    pub fn site_body(&self, site: usize) -> usize {
        self.read_int(self.view.site_bodyid, self.view.nsite, site) as usize
    }

    /// How a joint moves.
    pub fn joint_kind(&self, joint: usize) -> JointKind {
        match self.read_int(self.view.jnt_type, self.view.njnt, joint) {
            0 => JointKind::Free,
            1 => JointKind::Ball,
            2 => JointKind::Slide,
            _ => JointKind::Hinge,
        }
    }

    /// Where a joint's numbers are in `qpos`.
    pub fn joint_qpos(&self, joint: usize) -> Range<usize> {
        let start = self.read_int(self.view.jnt_qposadr, self.view.njnt, joint) as usize;
        start..start + self.joint_kind(joint).positions()
    }

    /// Where a joint's numbers are in `qvel` and in the columns of Jacobians.
    pub fn joint_dofs(&self, joint: usize) -> Range<usize> {
        let start = self.read_int(self.view.jnt_dofadr, self.view.njnt, joint) as usize;
        start..start + self.joint_kind(joint).velocities()
    }

    /// The body that a joint moves.
    pub fn joint_body(&self, joint: usize) -> usize {
        self.read_int(self.view.jnt_bodyid, self.view.njnt, joint) as usize
    }

    /// Lower and upper limit (radians or metres), if the joint is limited.
    pub fn joint_limits(&self, joint: usize) -> Option<[f64; 2]> {
        let [limited] = self.read(self.view.jnt_limited, self.view.njnt, joint);
        (limited != 0).then(|| self.read(self.view.jnt_range, self.view.njnt, joint))
    }

    /// The joint that a degree of freedom belongs to.
    pub fn dof_joint(&self, dof: usize) -> usize {
        self.read_int(self.view.dof_jntid, self.view.nv, dof) as usize
    }

    /// Lowest and highest control of an actuator, if it is limited.
    pub fn actuator_limits(&self, actuator: usize) -> Option<[f64; 2]> {
        let [limited] = self.read(self.view.actuator_ctrllimited, self.view.nu, actuator);
        (limited != 0).then(|| self.read(self.view.actuator_ctrlrange, self.view.nu, actuator))
    }

    /// Where a sensor's numbers are in the sensor data.
    pub fn sensor_range(&self, sensor: usize) -> Range<usize> {
        let start = self.read_int(self.view.sensor_adr, self.view.nsensor, sensor) as usize;
        start..start + self.read_int(self.view.sensor_dim, self.view.nsensor, sensor) as usize
    }

    /// Vertical field of view of a camera in degrees.
    pub fn camera_fovy_deg(&self, camera: usize) -> f64 {
        let [fovy] = self.read(self.view.cam_fovy, self.view.ncam, camera);
        fovy
    }

    /// Pinhole intrinsics `[fx, fy, cx, cy]` in pixels of a camera drawn at this size (square pixels, centred).
    pub fn camera_intrinsics_px(&self, camera: usize, width: usize, height: usize) -> [f64; 4] {
        let focal = 0.5 * height as f64 / (0.5 * self.camera_fovy_deg(camera)).to_radians().tan();
        [focal, focal, 0.5 * width as f64, 0.5 * height as f64]
    }

    /// An index as MuJoCo wants it, if there are that many.
    pub(crate) fn index(kind: &'static str, index: usize, count: c_int) -> Result<c_int> {
        if index < count as usize {
            Ok(index as c_int)
        } else {
            Err(Error::Index { kind, index, count: count as usize })
        }
    }

    /// Row `index` of an array of `count` rows of `N`.
    pub(crate) fn read<T: Copy, const N: usize>(
        &self,
        array: *const T,
        count: c_int,
        index: usize,
    ) -> [T; N] {
        check(index, count);
        // SAFETY: callers pass one of the view's arrays with its number of rows and row length.
        unsafe { array.cast::<[T; N]>().add(index).read() }
    }

    fn read_int(&self, array: *const c_int, count: c_int, index: usize) -> c_int {
        let [value] = self.read(array, count, index);
        value
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: we own it and this is the last use.
        unsafe { ffi::em_model_layer_free(self.raw.as_ptr()) }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model(nq {}, nv {}, nu {}, {} geoms)", self.nq(), self.nv(), self.nu(), self.view.ngeom)
    }
}

#[track_caller]
pub(crate) fn check(index: usize, count: c_int) {
    assert!(index < count as usize, "index {index} is past the end of {count}");
}

/// Installs the handlers and compares versions, once.
pub(crate) fn init() -> Result<()> {
    static VERSIONS: OnceLock<(i32, i32)> = OnceLock::new();
    let &(compiled, found) = VERSIONS.get_or_init(|| {
        // SAFETY: the lock makes this the only call, before any other call into MuJoCo.
        unsafe {
            ffi::em_init();
            (ffi::em_version_header(), ffi::mj_version())
        }
    });
    if compiled == found { Ok(()) } else { Err(Error::Version { compiled, found }) }
}

fn load_error(model: &str, message: &str) -> Error {
    Error::Load { model: model.to_owned(), message: message.trim().to_owned(), version: crate::version() }
}

pub(crate) fn failed(call: &'static str) -> Error {
    Error::MuJoCo { call, message: ffi::last_error() }
}
