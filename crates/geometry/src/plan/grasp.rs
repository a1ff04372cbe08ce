//! Which grasp serves the task, not only the lifting.

use nalgebra::{Isometry3, Point3};

use crate::{Error, Result};

/// A choice among grasps.
#[derive(Clone, Debug, PartialEq)]
pub struct GraspChoice {
    /// Where each grasp is when the object has moved.
    pub end_poses: Vec<Isometry3<f64>>,
    /// Which grasps are near the part to hold.
    pub near_part: Vec<bool>,
    /// The chosen one; `None` where none can be used.
    pub choice: Option<usize>,
}

/// The best-scored grasp near the part that can be used both now and when the object has moved; where there is none, the
/// best that can be used anywhere on the object. Of equal scores the first wins.
///
/// `usable` gets a grasp's index, its pose and its moved pose, and is asked in order of preference until it says yes:
/// reachability and collision are checked for as few grasps as possible.
///
/// # Errors
/// Another number of scores than grasps, a score that is not finite, or a negative radius.
pub fn select_grasp(
    grasps: &[Isometry3<f64>],
    scores: &[f64],
    part: &Point3<f64>,
    part_radius_m: f64,
    object_motion: &Isometry3<f64>,
    mut usable: impl FnMut(usize, &Isometry3<f64>, &Isometry3<f64>) -> bool,
) -> Result<GraspChoice> {
    if scores.len() != grasps.len() {
        return Err(Error::Length { what: "scores", got: scores.len(), want: grasps.len() });
    }
    if let Some(index) = scores.iter().position(|s| !s.is_finite()) {
        return Err(Error::NotFinite { what: "scores", index });
    }
    if part_radius_m.is_nan() || part_radius_m < 0.0 {
        return Err(Error::Range { what: "part_radius_m", value: part_radius_m, range: "at least 0" });
    }
    let end_poses: Vec<_> = grasps.iter().map(|grasp| object_motion * grasp).collect();
    let near = |grasp: &Isometry3<f64>| (grasp.translation.vector - part.coords).norm() <= part_radius_m;
    let near_part: Vec<bool> = grasps.iter().map(near).collect();
    let mut order: Vec<usize> = (0..grasps.len()).collect();
    order.sort_by(|&i, &j| {
        near_part[j].cmp(&near_part[i]).then(scores[j].total_cmp(&scores[i])).then(i.cmp(&j))
    });
    let choice = order.into_iter().find(|&i| usable(i, &grasps[i], &end_poses[i]));
    Ok(GraspChoice { end_poses, near_part, choice })
}
