//! Poses, velocities, Jacobians, the mass matrix, contacts: what follows from a state.

use crate::{
    Data, Error, Kind, Result,
    ffi::{self, RawContact},
    model::{check, failed},
};
use std::ffi::c_int;

/// Two geoms that touch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contact {
    /// The two geoms.
    pub geoms: [usize; 2],
    /// Distance in metres; negative when they overlap.
    pub dist_m: f64,
    /// Middle of the contact, world frame, metres.
    pub pos: [f64; 3],
    /// Unit vector from the first geom to the second, world frame.
    pub normal: [f64; 3],
    /// Force along the normal in newtons, at least 0.
    pub normal_force_n: f64,
    /// Force along the two tangents in newtons.
    pub tangent_force_n: [f64; 2],
}

impl Contact {
    /// Whether these two touch, in any order.
    pub fn is_between(&self, a: usize, b: usize) -> bool {
        self.geoms == [a, b] || self.geoms == [b, a]
    }

    /// The geom that `geom` touches here, if it is one of the two.
    pub fn other(&self, geom: usize) -> Option<usize> {
        match self.geoms {
            [a, b] if a == geom => Some(b),
            [a, b] if b == geom => Some(a),
            _ => None,
        }
    }
}

macro_rules! poses {
    ($($(#[$doc:meta])* $function:ident: [f64; $n:literal], $array:ident of $count:ident;)*) => {$(
        $(#[$doc])*
        pub fn $function(&self, index: usize) -> [f64; $n] {
            self.read(self.view().$array, self.model().view.$count, index)
        }
    )*};
}

impl Data {
    poses! {
        /// Place of a body's frame, world, metres.
        body_pos: [f64; 3], xpos of nbody;
        /// Orientation of a body, wxyz.
        body_quat: [f64; 4], xquat of nbody;
        /// Orientation of a body, row-major, local to world.
        body_mat: [f64; 9], xmat of nbody;
        /// Centre of mass of a body, world, metres.
        body_com: [f64; 3], xipos of nbody;
        /// Centre of a geom, world, metres.
        geom_pos: [f64; 3], geom_xpos of ngeom;
        /// Orientation of a geom, row-major, local to world.
        geom_mat: [f64; 9], geom_xmat of ngeom;
        /// Place of a site, world, metres.
        site_pos: [f64; 3], site_xpos of nsite;
        /// Orientation of a site, row-major, local to world.
        site_mat: [f64; 9], site_xmat of nsite;
        /// Place of a camera, world, metres.
        camera_pos: [f64; 3], cam_xpos of ncam;
        /// Orientation of a camera, row-major, local to world; it looks along its -z with +y up.
        camera_mat: [f64; 9], cam_xmat of ncam;
    }

    /// Velocity of a body's frame: angular (rad/s), then linear (m/s), in world axes.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no such body.
    pub fn body_velocity(&self, body: usize) -> Result<[f64; 6]> {
        self.velocity(Kind::Body, body, self.model().view.nbody)
    }

    /// Velocity of a site: angular (rad/s), then linear (m/s), in world axes.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no such site.
    pub fn site_velocity(&self, site: usize) -> Result<[f64; 6]> {
        self.velocity(Kind::Site, site, self.model().view.nsite)
    }

    fn velocity(&self, kind: Kind, index: usize, count: c_int) -> Result<[f64; 6]> {
        let id = crate::Model::index(kind.word(), index, count)?;
        let mut out = [0.0; 6];
        // SAFETY: model and data belong together, the id is valid, six numbers are written.
        let status =
            unsafe { ffi::em_velocity(self.model().raw(), self.raw(), kind as c_int, id, out.as_mut_ptr()) };
        self.done("velocity", status)?;
        Ok(out)
    }

    /// Jacobian of a site, [6 x nv] row-major: three rows for its linear velocity (m/s), three for its angular one
    /// (rad/s), both in world axes. `jac * qvel` is the site's velocity.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no such site, [`Error::Length`] when `out` has another length.
    pub fn jac_site(&self, site: usize, out: &mut [f64]) -> Result<()> {
        let site = crate::Model::index("site", site, self.model().view.nsite)?;
        let (linear, angular) = self.halves(out)?;
        // SAFETY: model and data belong together, the id is valid, each half holds 3 x nv numbers.
        let status = unsafe {
            ffi::em_jac_site(self.model().raw(), self.raw(), site, linear.as_mut_ptr(), angular.as_mut_ptr())
        };
        self.done("jac_site", status)
    }

    /// Jacobian of a point (world frame, metres) fixed to a body, [6 x nv] row-major as in [`Data::jac_site`].
    ///
    /// # Errors
    /// [`Error::Index`] when there is no such body, [`Error::Length`] when `out` has another length.
    pub fn jac_point(&self, body: usize, point: [f64; 3], out: &mut [f64]) -> Result<()> {
        let body = crate::Model::index("body", body, self.model().view.nbody)?;
        let (linear, angular) = self.halves(out)?;
        // SAFETY: model and data belong together, the id is valid, each half holds 3 x nv numbers.
        let status = unsafe {
            let (point, raw) = (point.as_ptr(), self.raw());
            ffi::em_jac_point(self.model().raw(), raw, body, point, linear.as_mut_ptr(), angular.as_mut_ptr())
        };
        self.done("jac_point", status)
    }

    fn halves<'a>(&self, out: &'a mut [f64]) -> Result<(&'a mut [f64], &'a mut [f64])> {
        let (rows, got) = (3 * self.model().nv(), out.len());
        if got != 2 * rows {
            return Err(Error::Length { what: "Jacobian [6 x nv]", expected: 2 * rows, got });
        }
        Ok(out.split_at_mut(rows))
    }

    /// The mass matrix, [nv x nv], symmetric.
    ///
    /// # Errors
    /// [`Error::Length`] when `out` has another length.
    pub fn mass_matrix(&self, out: &mut [f64]) -> Result<()> {
        let expected = self.model().nv() * self.model().nv();
        if out.len() != expected {
            return Err(Error::Length { what: "mass matrix [nv x nv]", expected, got: out.len() });
        }
        // SAFETY: model and data belong together; the length was checked.
        let status = unsafe { ffi::em_mass_matrix(self.model().raw(), self.raw(), out.as_mut_ptr()) };
        if status == ffi::OK { Ok(()) } else { Err(failed("mass_matrix")) }
    }

    /// Some rows and the same columns of the mass matrix, [n x n], symmetric; n is the number of `dofs`.
    ///
    /// # Errors
    /// [`Error::Index`] when there is no such degree of freedom, [`Error::Length`] when `out` has another length.
    pub fn mass_block<const N: usize>(&self, dofs: &[usize; N], out: &mut [f64]) -> Result<()> {
        if out.len() != N * N {
            return Err(Error::Length { what: "mass matrix [n x n]", expected: N * N, got: out.len() });
        }
        let mut ids = [0; N];
        for (id, dof) in ids.iter_mut().zip(dofs) {
            *id = crate::Model::index("degree of freedom", *dof, self.model().view.nv)?;
        }
        // SAFETY: model and data belong together; indices and length were checked.
        let status = unsafe {
            let (ids, out) = (ids.as_ptr(), out.as_mut_ptr());
            ffi::em_mass_block(self.model().raw(), self.raw(), ids, N as c_int, out)
        };
        self.done("mass_block", status)
    }

    /// The first geom that a ray meets, and where: distance in lengths of `along`, at least 0. `None` where nothing is.
    /// Geoms of groups 3 to 5 (not drawn by default) and fully transparent ones are passed through. Poses must be up to
    /// date.
    ///
    /// # Errors
    /// [`Error::Value`] when `along` is zero or a number is not finite.
    pub fn ray(&self, from: [f64; 3], along: [f64; 3]) -> Result<Option<(f64, usize)>> {
        self.ray_among(from, along, [true, true, true, false, false, false])
    }

    /// As [`Data::ray`], among the geoms of the groups that are marked.
    ///
    /// # Errors
    /// As [`Data::ray`].
    pub fn ray_among(
        &self,
        from: [f64; 3],
        along: [f64; 3],
        groups: [bool; 6],
    ) -> Result<Option<(f64, usize)>> {
        let groups = groups.map(u8::from);
        let finite = from.iter().chain(&along).all(|x| x.is_finite());
        // MuJoCo ends the call for directions shorter than 1e-15.
        if !finite || along.iter().map(|x| x * x).sum::<f64>() < 1e-24 {
            let got = format!("from {from:?} along {along:?}");
            return Err(Error::Value { what: "ray", expected: "finite numbers and a direction", got });
        }
        let (mut distance, mut geom) = (0.0, -1);
        // SAFETY: model and data belong together; three numbers are read from each place, six flags from the groups.
        let status = unsafe {
            let (model, data) = (self.model().raw(), self.raw());
            let (from, along) = (from.as_ptr(), along.as_ptr());
            ffi::em_ray(model, data, from, along, groups.as_ptr(), -1, &mut distance, &mut geom)
        };
        self.done("ray", status)?;
        Ok(usize::try_from(geom).ok().filter(|_| distance >= 0.0).map(|geom| (distance, geom)))
    }

    /// Number of contacts, deformable bodies included.
    pub fn contact_count(&self) -> usize {
        // SAFETY: valid data.
        unsafe { ffi::em_contact_count(self.raw()) as usize }
    }

    /// The contacts between geoms, in MuJoCo's order. Forces are those of the last [`Data::step`] or [`Data::forward`].
    pub fn contacts(&self) -> impl Iterator<Item = Contact> + '_ {
        (0..self.contact_count()).filter_map(|index| {
            let mut raw = RawContact::default();
            check(index, self.contact_count() as c_int);
            // SAFETY: model and data belong together, the index is valid.
            unsafe { ffi::em_contact_at(self.model().raw(), self.raw(), index as c_int, &mut raw) };
            let (Ok(a), Ok(b)) = (usize::try_from(raw.geom1), usize::try_from(raw.geom2)) else {
                return None;
            };
            Some(Contact {
                geoms: [a, b],
                dist_m: raw.dist,
                pos: raw.pos,
                normal: raw.normal,
                normal_force_n: raw.force[0],
                tangent_force_n: [raw.force[1], raw.force[2]],
            })
        })
    }

    /// Pairs of geoms in MuJoCo's list of contacts, those that are only near each other included; much cheaper than
    /// [`Data::contacts`].
    pub fn contact_geoms(&self) -> impl Iterator<Item = [usize; 2]> + '_ {
        let count = self.contact_count();
        (0..count).filter_map(move |index| {
            let mut geoms = [-1; 2];
            // SAFETY: `count` is the number of contacts, which stays while data is borrowed; two numbers are written.
            unsafe { ffi::em_contact_geoms(self.raw(), index as c_int, geoms.as_mut_ptr()) };
            let [a, b] = geoms.map(usize::try_from);
            Some([a.ok()?, b.ok()?])
        })
    }

    /// Whether any geom of one body touches any geom of the other.
    pub fn bodies_touch(&self, a: usize, b: usize) -> bool {
        self.contacts().any(|contact| {
            let bodies = contact.geoms.map(|geom| self.model().geom_body(geom));
            contact.dist_m <= 0.0 && (bodies == [a, b] || bodies == [b, a])
        })
    }
}
