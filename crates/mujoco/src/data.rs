//! One simulation of a model: state, controls, stepping.

use crate::{
    Error, JointKind, Kind, Model, Result,
    ffi::{self, DataView, RawData, RawModel},
    model::{check, failed, init},
};
use std::{ffi::c_int, ops::Range, ptr::NonNull, sync::Arc};

/// The state of one simulation and everything computed from it.
///
/// After [`Data::step`], poses and contacts are those of the *start* of the last step (MuJoCo computes them, then
/// integrates); [`Data::kinematics`] brings poses up to date, [`Data::forward`] everything.
///
/// `Send` but not `Sync`: drawing through a shared reference uses scratch memory inside.
pub struct Data {
    raw: NonNull<RawData>,
    view: DataView,
    model: Arc<Model>,
}

// SAFETY: plain memory without ties to a thread. It is not Sync, so moving it moves the only access.
unsafe impl Send for Data {}

macro_rules! arrays {
    ($($(#[$doc:meta])* $get:ident $(, $get_mut:ident)?: $field:ident, $len:expr;)*) => {$(
        $(#[$doc])*
        pub fn $get(&self) -> &[f64] {
            let len: fn(&Model) -> usize = $len;
            // SAFETY: MuJoCo's array has this many numbers for this model, and writing needs `&mut self`.
            unsafe { ffi::slice(self.view.$field, len(&self.model)) }
        }
        $(
            #[doc = concat!("As [`Data::", stringify!($get), "`], writable.")]
            pub fn $get_mut(&mut self) -> &mut [f64] {
                let len: fn(&Model) -> usize = $len;
                // SAFETY: as above, and `&mut self` makes us the only user.
                unsafe { ffi::slice_mut(self.view.$field, len(&self.model)) }
            }
        )?
    )*};
}

impl Data {
    /// A simulation in the model's initial state, with everything computed ([`Data::forward`]).
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when memory runs out.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        init()?;
        // SAFETY: valid model.
        let raw =
            NonNull::new(unsafe { ffi::em_data_new(model.raw()) }).ok_or_else(|| failed("making data"))?;
        // SAFETY: fresh, made for this model.
        let mut data = unsafe { Self::own(raw, Arc::clone(model)) };
        data.forward()?;
        Ok(data)
    }

    /// A copy of the whole simulation, computed quantities included.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when memory runs out.
    pub fn try_clone(&self) -> Result<Self> {
        // SAFETY: both are valid and belong together.
        let raw = unsafe { ffi::em_data_copy(self.model.raw(), self.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| failed("copying data"))?;
        // SAFETY: fresh, made for this model.
        Ok(unsafe { Self::own(raw, Arc::clone(&self.model)) })
    }

    /// # Safety
    /// `raw` is valid, made for `model`, and the result becomes its only owner.
    unsafe fn own(raw: NonNull<RawData>, model: Arc<Model>) -> Self {
        let mut view = std::mem::MaybeUninit::uninit();
        // SAFETY: the shim fills the whole struct; these arrays stay where they are for the data's life.
        let view = unsafe {
            ffi::em_data_view_of(raw.as_ptr(), view.as_mut_ptr());
            view.assume_init()
        };
        Self { raw, view, model }
    }

    /// The scene that this simulates.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// This simulation's own model, for changing looks and places; copied first when it is shared.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when memory runs out.
    pub fn model_mut(&mut self) -> Result<&mut Model> {
        if Arc::get_mut(&mut self.model).is_none() {
            self.model = Arc::new(self.model.try_clone()?);
        }
        // Nobody else can have got hold of it since.
        Arc::get_mut(&mut self.model).ok_or_else(|| failed("copying the model"))
    }

    pub(crate) fn raw(&self) -> *mut RawData {
        self.raw.as_ptr()
    }

    pub(crate) fn view(&self) -> &DataView {
        &self.view
    }

    /// Advances the physics by `n` steps of the model's timestep with the current controls.
    ///
    /// # Errors
    /// [`Error::Unstable`] when the state turned into NaN or huge numbers, in which case MuJoCo has reset it.
    pub fn step(&mut self, n: usize) -> Result<()> {
        let n = c_int::try_from(n).map_err(|_| Error::Value {
            what: "number of steps",
            expected: "at most 2147483647",
            got: n.to_string(),
        })?;
        self.advance(|model, data, quantity, index, time| {
            // SAFETY: model and data belong together; the three outputs are ours.
            unsafe { ffi::em_step(model, data, n, quantity, index, time) }
        })
    }

    /// First half of a step: everything that follows from positions and velocities (poses, contacts, mass matrix, bias
    /// forces). Then choose the controls and call [`Data::step2`]; the two together are a [`Data::step`].
    ///
    /// # Errors
    /// As [`Data::step`].
    pub fn step1(&mut self) -> Result<()> {
        self.advance(|model, data, quantity, index, time| {
            // SAFETY: as in `step`.
            unsafe { ffi::em_step1(model, data, quantity, index, time) }
        })
    }

    /// Second half of a step: forces, accelerations, and the advance of time.
    ///
    /// # Errors
    /// As [`Data::step`].
    pub fn step2(&mut self) -> Result<()> {
        self.advance(|model, data, quantity, index, time| {
            // SAFETY: as in `step`.
            unsafe { ffi::em_step2(model, data, quantity, index, time) }
        })
    }

    fn advance(
        &mut self,
        call: impl FnOnce(*const RawModel, *mut RawData, *mut c_int, *mut c_int, *mut f64) -> c_int,
    ) -> Result<()> {
        let (mut quantity, mut index, mut time_secs) = (0, 0, 0.0);
        match call(self.model.raw(), self.raw(), &mut quantity, &mut index, &mut time_secs) {
            ffi::OK => Ok(()),
            ffi::UNSTABLE => Err(self.unstable(quantity, index, time_secs)),
            _ => Err(failed("step")),
        }
    }

    fn unstable(&self, quantity: c_int, index: c_int, time_secs: f64) -> Error {
        let index = index.max(0) as usize;
        let model = &self.model;
        let joint = || (0..model.count(Kind::Joint)).find(|j| model.joint_qpos(*j).contains(&index));
        let (quantity, kind, owner) = match quantity {
            0 => ("qpos", Kind::Joint, joint()),
            1 => ("qvel", Kind::Joint, (index < model.nv()).then(|| model.dof_joint(index))),
            2 => ("qacc", Kind::Joint, (index < model.nv()).then(|| model.dof_joint(index))),
            _ => ("ctrl", Kind::Actuator, Some(index)),
        };
        let name = owner.and_then(|owner| model.name(kind, owner));
        let place = name.map_or(format!("[{index}]"), |name| format!("[{index}] ({} {name})", kind.word()));
        Error::Unstable { quantity, index, place, time_secs }
    }

    /// Computes everything (poses, contacts, forces, accelerations, sensors) from the state, without advancing time.
    /// Also renews the solver's warm start, which is part of the state.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when MuJoCo's memory for this simulation is too small.
    pub fn forward(&mut self) -> Result<()> {
        // SAFETY: model and data belong together.
        self.done("forward", unsafe { ffi::em_forward(self.model.raw(), self.raw()) })
    }

    /// What [`Data::forward`] computes from the controls on: forces and accelerations, but not the sensors. Valid when
    /// positions and velocities have not changed since [`Data::step1`] or [`Data::forward`]; then the result, and what
    /// becomes of the solver's warm start, is that of `forward` bit for bit.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when MuJoCo's memory for this simulation is too small.
    pub fn forward_acceleration(&mut self) -> Result<()> {
        // SAFETY: model and data belong together.
        self.done("forward_acceleration", unsafe {
            ffi::em_forward_acceleration(self.model.raw(), self.raw())
        })
    }

    /// Computes what follows from positions alone: poses, contacts, mass matrix. Leaves the state as it is.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when MuJoCo's memory for this simulation is too small.
    pub fn forward_position(&mut self) -> Result<()> {
        // SAFETY: model and data belong together.
        self.done("forward_position", unsafe { ffi::em_forward_position(self.model.raw(), self.raw()) })
    }

    /// Computes poses of bodies, geoms, sites, cameras, lights only: enough for drawing. Leaves the state as it is.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] when MuJoCo's memory for this simulation is too small.
    pub fn kinematics(&mut self) -> Result<()> {
        // SAFETY: model and data belong together.
        self.done("kinematics", unsafe { ffi::em_kinematics(self.model.raw(), self.raw()) })
    }

    /// Back to the model's initial state; call [`Data::forward`] before reading poses.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] if MuJoCo refuses.
    pub fn reset(&mut self) -> Result<()> {
        // SAFETY: model and data belong together.
        self.done("reset", unsafe { ffi::em_reset(self.model.raw(), self.raw(), -1) })
    }

    /// To a state stored in the model; call [`Data::forward`] before reading poses.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no such keyframe.
    pub fn reset_to_keyframe(&mut self, keyframe: usize) -> Result<()> {
        let keyframe = Model::index("keyframe", keyframe, self.model.view.nkey)?;
        // SAFETY: model and data belong together; the keyframe exists.
        self.done("reset", unsafe { ffi::em_reset(self.model.raw(), self.raw(), keyframe) })
    }

    /// Simulated time in seconds.
    pub fn time_secs(&self) -> f64 {
        // SAFETY: points into our data.
        unsafe { *self.view.time }
    }

    /// Sets the simulated time in seconds.
    pub fn set_time_secs(&mut self, time_secs: f64) {
        // SAFETY: points into our data, and `&mut self` makes us the only user.
        unsafe { *self.view.time = time_secs }
    }

    arrays! {
        /// Generalised positions, [nq]: metres, radians, quaternions.
        qpos, qpos_mut: qpos, |m| m.nq();
        /// Generalised velocities, [nv]: m/s, rad/s.
        qvel, qvel_mut: qvel, |m| m.nv();
        /// Generalised accelerations, [nv].
        qacc: qacc, |m| m.nv();
        /// Accelerations that the constraint solver starts from, [nv]; part of the state.
        qacc_warmstart, qacc_warmstart_mut: qacc_warmstart, |m| m.nv();
        /// Actuator activations, [na].
        act, act_mut: act, |m| m.na();
        /// Controls, [nu]; values outside an actuator's range are clipped by MuJoCo.
        ctrl, ctrl_mut: ctrl, |m| m.nu();
        /// Forces applied by us on the degrees of freedom, [nv]: N, N m.
        qfrc_applied, qfrc_applied_mut: qfrc_applied, |m| m.nv();
        /// Forces and torques applied by us on bodies at their centre of mass, world frame, [nbody x 6].
        xfrc_applied, xfrc_applied_mut: xfrc_applied, |m| 6 * m.view.nbody as usize;
        /// Coriolis, centrifugal and gravity forces, [nv]: what an actuator must add to hold still.
        qfrc_bias: qfrc_bias, |m| m.nv();
        /// Springs, dampers, gravity compensation, [nv].
        qfrc_passive: qfrc_passive, |m| m.nv();
        /// Actuator forces on the degrees of freedom, [nv].
        qfrc_actuator: qfrc_actuator, |m| m.nv();
        /// Contact, limit and equality forces on the degrees of freedom, [nv].
        qfrc_constraint: qfrc_constraint, |m| m.nv();
        /// Actuator forces in actuator space, [nu].
        actuator_force: actuator_force, |m| m.nu();
        /// Places of the mocap bodies, [nmocap x 3]; see [`Model::body_mocap`].
        mocap_pos, mocap_pos_mut: mocap_pos, |m| 3 * m.nmocap();
        /// Orientations of the mocap bodies, [nmocap x 4], wxyz.
        mocap_quat, mocap_quat_mut: mocap_quat, |m| 4 * m.nmocap();
        /// All sensor readings; [`Model::sensor_range`] says whose is where.
        sensor_data: sensordata, |m| m.view.nsensordata as usize;
    }

    /// One sensor's readings.
    pub fn sensor(&self, sensor: usize) -> &[f64] {
        &self.sensor_data()[self.model.sensor_range(sensor)]
    }

    /// A joint's positions: 1 for hinge and slide, 4 (wxyz) for ball, 7 (xyz, wxyz) for free.
    pub fn joint_qpos(&self, joint: usize) -> &[f64] {
        &self.qpos()[self.model.joint_qpos(joint)]
    }

    /// A joint's velocities: 1, 3 or 6.
    pub fn joint_qvel(&self, joint: usize) -> &[f64] {
        &self.qvel()[self.model.joint_dofs(joint)]
    }

    /// Puts a freely moving body at a place (metres) and orientation (wxyz), at rest.
    ///
    /// # Errors
    /// [`Error::Value`] when the joint is not a free one.
    pub fn place_free_joint(&mut self, joint: usize, pos: [f64; 3], quat: [f64; 4]) -> Result<()> {
        let kind = self.model.joint_kind(joint);
        if kind != JointKind::Free {
            return Err(Error::Value {
                what: "joint of a placed body",
                expected: "a free joint",
                got: format!("{kind:?}"),
            });
        }
        let (positions, velocities): (Range<_>, Range<_>) =
            (self.model.joint_qpos(joint), self.model.joint_dofs(joint));
        let qpos = &mut self.qpos_mut()[positions];
        qpos[..3].copy_from_slice(&pos);
        qpos[3..].copy_from_slice(&quat);
        self.qvel_mut()[velocities].fill(0.0);
        Ok(())
    }

    /// The whole state that the future depends on (MuJoCo's `mjSTATE_INTEGRATION`: time, positions, velocities,
    /// activations, controls, applied forces, mocap poses, the solver's warm start), [`Model::state_len`] numbers.
    ///
    /// # Errors
    /// [`Error::Length`] when `out` has another length.
    pub fn state_get(&self, out: &mut [f64]) -> Result<()> {
        self.check_state(out.len())?;
        // SAFETY: model and data belong together; the length was checked.
        self.done("state_get", unsafe { ffi::em_state_get(self.model.raw(), self.raw(), out.as_mut_ptr()) })
    }

    /// As [`Data::state_get`], into a new vector.
    ///
    /// # Errors
    /// [`Error::MuJoCo`] if MuJoCo refuses.
    pub fn state(&self) -> Result<Vec<f64>> {
        let mut state = vec![0.0; self.model.state_len()];
        self.state_get(&mut state)?;
        Ok(state)
    }

    /// Puts a state back. The steps that follow are bit for bit those that followed when it was taken; poses and other
    /// computed quantities are stale until the next step, or use [`Data::restore`].
    ///
    /// # Errors
    /// [`Error::Length`] when the state has another length.
    pub fn state_set(&mut self, state: &[f64]) -> Result<()> {
        self.check_state(state.len())?;
        // SAFETY: model and data belong together; the length was checked.
        self.done("state_set", unsafe { ffi::em_state_set(self.model.raw(), self.raw(), state.as_ptr()) })
    }

    /// Puts a state back and computes everything from it, so that poses, contacts and sensors are valid too; the steps
    /// that follow are still bit for bit those that followed when it was taken.
    ///
    /// # Errors
    /// As [`Data::state_set`] and [`Data::forward`].
    pub fn restore(&mut self, state: &[f64]) -> Result<()> {
        self.state_set(state)?;
        self.forward()?;
        // `forward` renewed the warm start.
        self.state_set(state)
    }

    fn check_state(&self, got: usize) -> Result<()> {
        let expected = self.model.state_len();
        if got == expected { Ok(()) } else { Err(Error::Length { what: "simulation state", expected, got }) }
    }

    /// How often contacts, constraints or visible objects did not fit into MuJoCo's buffers: 0 in a healthy scene.
    pub fn overflows(&self) -> usize {
        // SAFETY: valid data.
        unsafe { ffi::em_overflow_count(self.raw()) as usize }
    }

    pub(crate) fn done(&self, call: &'static str, status: c_int) -> Result<()> {
        if status == ffi::OK { Ok(()) } else { Err(failed(call)) }
    }

    /// Row `index` of an array of `count` rows of `N`.
    pub(crate) fn read<const N: usize>(&self, array: *const f64, count: c_int, index: usize) -> [f64; N] {
        check(index, count);
        // SAFETY: callers pass one of the view's arrays with its number of rows and row length.
        unsafe { array.cast::<[f64; N]>().add(index).read() }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        // SAFETY: we own it and this is the last use; the model is dropped after.
        unsafe { ffi::em_data_free(self.raw()) }
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Data(t {} s of {:?})", self.time_secs(), self.model)
    }
}
