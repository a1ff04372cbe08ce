//! The C shim as Rust sees it; `csrc/shim.h` is the original and describes each function.

use std::{
    ffi::{CStr, c_char, c_double, c_int, c_uchar, c_void},
    marker::{PhantomData, PhantomPinned},
};

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
            _not_send: PhantomData<(*mut u8, PhantomPinned)>,
        }
    )*};
}

opaque!(
    /// `mjModel`
    RawModel,
    /// `mjData`
    RawData,
    /// `em_renderer`
    RawRenderer
);

#[repr(C)]
pub struct Asset {
    pub name: *const c_char,
    pub bytes: *const c_void,
    pub len: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ModelView {
    pub nq: c_int,
    pub nv: c_int,
    pub nu: c_int,
    pub na: c_int,
    pub nbody: c_int,
    pub njnt: c_int,
    pub ngeom: c_int,
    pub nsite: c_int,
    pub ncam: c_int,
    pub nlight: c_int,
    pub nmat: c_int,
    pub nmocap: c_int,
    pub nsensor: c_int,
    pub nsensordata: c_int,
    pub nkey: c_int,
    pub nstate: c_int,

    pub body_parentid: *const c_int,
    pub body_mocapid: *const c_int,
    pub geom_bodyid: *const c_int,
    pub geom_type: *const c_int,
    pub geom_group: *const c_int,
    pub site_bodyid: *const c_int,
    pub jnt_type: *const c_int,
    pub jnt_qposadr: *const c_int,
    pub jnt_dofadr: *const c_int,
    pub jnt_bodyid: *const c_int,
    pub dof_jntid: *const c_int,
    pub sensor_adr: *const c_int,
    pub sensor_dim: *const c_int,
    pub jnt_limited: *const c_uchar,
    pub actuator_ctrllimited: *const c_uchar,

    pub timestep: *mut c_double,
    pub gravity: *mut c_double,
    pub extent: *mut c_double,
    pub qpos0: *mut c_double,
    pub jnt_range: *mut c_double,
    pub actuator_ctrlrange: *mut c_double,
    pub body_mass: *mut c_double,
    pub body_pos: *mut c_double,
    pub body_quat: *mut c_double,
    pub body_subtreemass: *mut c_double,
    pub geom_size: *mut c_double,
    pub geom_aabb: *mut c_double,
    pub geom_rbound: *mut c_double,
    pub geom_friction: *mut c_double,
    pub geom_pos: *mut c_double,
    pub geom_quat: *mut c_double,
    pub site_pos: *mut c_double,
    pub site_quat: *mut c_double,
    pub cam_pos: *mut c_double,
    pub cam_quat: *mut c_double,
    pub cam_fovy: *mut c_double,
    pub light_pos: *mut c_double,
    pub light_dir: *mut c_double,
    pub geom_rgba: *mut f32,
    pub site_rgba: *mut f32,
    pub mat_rgba: *mut f32,
    pub light_ambient: *mut f32,
    pub light_diffuse: *mut f32,
    pub light_specular: *mut f32,
    pub head_ambient: *mut f32,
    pub head_diffuse: *mut f32,
    pub head_specular: *mut f32,
    pub light_active: *mut c_uchar,
    pub light_castshadow: *mut c_uchar,
    pub geom_sameframe: *mut c_uchar,
    pub site_sameframe: *mut c_uchar,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DataView {
    pub time: *mut c_double,
    pub qpos: *mut c_double,
    pub qvel: *mut c_double,
    pub act: *mut c_double,
    pub ctrl: *mut c_double,
    pub qacc: *mut c_double,
    pub qacc_warmstart: *mut c_double,
    pub qfrc_applied: *mut c_double,
    pub xfrc_applied: *mut c_double,
    pub qfrc_bias: *mut c_double,
    pub qfrc_passive: *mut c_double,
    pub qfrc_actuator: *mut c_double,
    pub qfrc_constraint: *mut c_double,
    pub actuator_force: *mut c_double,
    pub mocap_pos: *mut c_double,
    pub mocap_quat: *mut c_double,
    pub xpos: *mut c_double,
    pub xquat: *mut c_double,
    pub xmat: *mut c_double,
    pub xipos: *mut c_double,
    pub geom_xpos: *mut c_double,
    pub geom_xmat: *mut c_double,
    pub site_xpos: *mut c_double,
    pub site_xmat: *mut c_double,
    pub cam_xpos: *mut c_double,
    pub cam_xmat: *mut c_double,
    pub sensordata: *mut c_double,
}

#[repr(C)]
#[derive(Default)]
pub struct RawContact {
    pub dist: c_double,
    pub pos: [c_double; 3],
    pub normal: [c_double; 3],
    pub force: [c_double; 6],
    pub geom1: c_int,
    pub geom2: c_int,
}

#[repr(C)]
pub struct RawCamera {
    pub fixed_id: c_int,
    pub lookat: [c_double; 3],
    pub distance: c_double,
    pub azimuth: c_double,
    pub elevation: c_double,
}

#[repr(C)]
pub struct RawQuality {
    pub shadows: c_int,
    pub reflections: c_int,
    pub samples: c_int,
}

pub const RGB: c_int = 0;
pub const DEPTH: c_int = 1;
pub const SEGMENTATION: c_int = 2;

pub const OK: c_int = 0;
pub const UNSTABLE: c_int = 2;

unsafe extern "C" {
    pub fn mj_version() -> c_int;
    pub fn mj_versionString() -> *const c_char;

    pub fn em_init();
    pub fn em_last_error() -> *const c_char;
    pub fn em_version_header() -> c_int;
    #[cfg(test)]
    pub fn em_layout(out: *mut usize);

    pub fn em_model_load_file(path: *const c_char, warning: *mut c_char, warning_len: c_int)
    -> *mut RawModel;
    pub fn em_model_load_string(
        xml: *const c_char,
        len: c_int,
        assets: *const Asset,
        nasset: c_int,
        warning: *mut c_char,
        warning_len: c_int,
    ) -> *mut RawModel;
    pub fn em_model_free(m: *mut RawModel);
    pub fn em_model_layer(m: *const RawModel) -> *mut RawModel;
    pub fn em_model_layer_free(m: *mut RawModel);
    pub fn em_model_compute_sensors(m: *mut RawModel, on: c_int);
    pub fn em_model_view_of(m: *mut RawModel, out: *mut ModelView);
    pub fn em_name_id(m: *const RawModel, kind: c_int, name: *const c_char) -> c_int;
    pub fn em_id_name(m: *const RawModel, kind: c_int, id: c_int) -> *const c_char;

    pub fn em_data_new(m: *const RawModel) -> *mut RawData;
    pub fn em_data_copy(m: *const RawModel, d: *const RawData) -> *mut RawData;
    pub fn em_data_free(d: *mut RawData);
    pub fn em_data_view_of(d: *mut RawData, out: *mut DataView);
    pub fn em_reset(m: *const RawModel, d: *mut RawData, keyframe: c_int) -> c_int;
    pub fn em_step(
        m: *const RawModel,
        d: *mut RawData,
        n: c_int,
        quantity: *mut c_int,
        index: *mut c_int,
        time: *mut c_double,
    ) -> c_int;
    pub fn em_step1(
        m: *const RawModel,
        d: *mut RawData,
        quantity: *mut c_int,
        index: *mut c_int,
        time: *mut c_double,
    ) -> c_int;
    pub fn em_step2(
        m: *const RawModel,
        d: *mut RawData,
        quantity: *mut c_int,
        index: *mut c_int,
        time: *mut c_double,
    ) -> c_int;
    pub fn em_forward_acceleration(m: *const RawModel, d: *mut RawData) -> c_int;
    pub fn em_forward(m: *const RawModel, d: *mut RawData) -> c_int;
    pub fn em_forward_position(m: *const RawModel, d: *mut RawData) -> c_int;
    pub fn em_kinematics(m: *const RawModel, d: *mut RawData) -> c_int;
    pub fn em_state_get(m: *const RawModel, d: *const RawData, out: *mut c_double) -> c_int;
    pub fn em_state_set(m: *const RawModel, d: *mut RawData, state: *const c_double) -> c_int;
    pub fn em_ray(
        m: *const RawModel,
        d: *const RawData,
        from: *const c_double,
        along: *const c_double,
        groups: *const c_uchar,
        body_excluded: c_int,
        distance: *mut c_double,
        geom: *mut c_int,
    ) -> c_int;
    pub fn em_jac_site(
        m: *const RawModel,
        d: *mut RawData,
        site: c_int,
        jacp: *mut c_double,
        jacr: *mut c_double,
    ) -> c_int;
    pub fn em_jac_point(
        m: *const RawModel,
        d: *mut RawData,
        body: c_int,
        point: *const c_double,
        jacp: *mut c_double,
        jacr: *mut c_double,
    ) -> c_int;
    pub fn em_mass_matrix(m: *const RawModel, d: *mut RawData, out: *mut c_double) -> c_int;
    pub fn em_mass_block(
        m: *const RawModel,
        d: *mut RawData,
        dofs: *const c_int,
        n: c_int,
        out: *mut c_double,
    ) -> c_int;
    pub fn em_velocity(
        m: *const RawModel,
        d: *mut RawData,
        kind: c_int,
        id: c_int,
        out: *mut c_double,
    ) -> c_int;
    pub fn em_contact_count(d: *const RawData) -> c_int;
    pub fn em_contact_at(m: *const RawModel, d: *const RawData, index: c_int, out: *mut RawContact);
    pub fn em_contact_geoms(d: *const RawData, index: c_int, out: *mut c_int);
    pub fn em_overflow_count(d: *const RawData) -> c_int;

    pub fn em_renderer_new(
        m: *const RawModel,
        width: c_int,
        height: c_int,
        quality: RawQuality,
    ) -> *mut RawRenderer;
    pub fn em_renderer_free(r: *mut RawRenderer);
    pub fn em_renderer_draw(
        r: *mut RawRenderer,
        m: *const RawModel,
        d: *mut RawData,
        camera: *const RawCamera,
        what: c_int,
        rgb: *mut c_uchar,
        depth: *mut f32,
        ids: *mut c_int,
    ) -> c_int;
    pub fn em_renderer_samples(r: *const RawRenderer) -> c_int;
    pub fn em_renderer_driver(r: *mut RawRenderer) -> *const c_char;
    pub fn em_renderer_drawn(r: *const RawRenderer) -> c_int;
    pub fn em_renderer_draw_unseen(r: *mut RawRenderer, unseen: c_int);
    pub fn em_renderer_show_group(r: *mut RawRenderer, sites: c_int, group: c_int, visible: c_int);
}

/// The reason of this thread's last failure.
pub fn last_error() -> String {
    // SAFETY: the shim keeps a terminated string per thread; it is copied before anything can change it.
    unsafe { text(em_last_error()) }
}

/// Copies a C string; a null pointer gives an empty one.
///
/// # Safety
/// `pointer` is null or points to a terminated string that stays unchanged during the call.
pub unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// A slice over one of MuJoCo's arrays; MuJoCo gives null for empty ones.
///
/// # Safety
/// `pointer` is null with `len` 0, or points to `len` initialised values that nobody writes during `'a`.
pub unsafe fn slice<'a, T>(pointer: *const T, len: usize) -> &'a [T] {
    if len == 0 || pointer.is_null() {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(pointer, len) }
}

/// As [`slice`], writable.
///
/// # Safety
/// As for [`slice`], and nobody else reads or writes the values during `'a`.
pub unsafe fn slice_mut<'a, T>(pointer: *mut T, len: usize) -> &'a mut [T] {
    if len == 0 || pointer.is_null() {
        return &mut [];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts_mut(pointer, len) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn structs_have_the_size_that_c_sees() {
        let mut c = [0usize; 6];
        // SAFETY: the function writes six numbers.
        unsafe { em_layout(c.as_mut_ptr()) };
        let rust = [
            size_of::<Asset>(),
            size_of::<ModelView>(),
            size_of::<DataView>(),
            size_of::<RawContact>(),
            size_of::<RawCamera>(),
            size_of::<RawQuality>(),
        ];
        assert_eq!(rust, c);
    }
}
