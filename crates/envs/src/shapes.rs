//! What a viewer needs of a simulation: its primitive shapes and its cameras.

use efference_mujoco::{Data, Kind};
use nalgebra::{Matrix3, Rotation3, UnitQuaternion};

use crate::{CameraView, GeomShape, Pose, ShapeKind};

/// All primitive geoms. Poses must be up to date.
pub(crate) fn geom_shapes(data: &Data) -> Vec<GeomShape> {
    let model = data.model();
    let mut geoms = Vec::new();
    let (mut last_body, mut index) = (usize::MAX, 0);
    for geom in 0..model.count(Kind::Geom) {
        let owner = model.geom_body(geom);
        index = if owner == last_body { index + 1 } else { 0 };
        last_body = owner;
        let Some(kind) = shape_kind(model.geom_type(geom)) else { continue };
        let name = model.name(Kind::Body, owner).unwrap_or_default();
        geoms.push(GeomShape {
            name: format!("{name}/{index}"),
            kind,
            size_m: model.geom_size(geom),
            rgba: model.geom_rgba(geom),
            pose: pose_of(data.geom_pos(geom), data.geom_mat(geom)),
        });
    }
    geoms
}

/// From MuJoCo's number of a geom's type; `None` for planes, ellipsoids and meshes.
pub(crate) const fn shape_kind(geom_type: i32) -> Option<ShapeKind> {
    match geom_type {
        2 => Some(ShapeKind::Sphere),
        3 => Some(ShapeKind::Capsule),
        5 => Some(ShapeKind::Cylinder),
        6 => Some(ShapeKind::Box),
        _ => None,
    }
}

/// A camera of the model with square pictures of `side` pixels.
pub(crate) fn camera_view(data: &Data, name: &str, id: usize, side: usize) -> CameraView {
    CameraView {
        name: name.to_owned(),
        size_px: [side, side],
        intrinsics_px: data.model().camera_intrinsics_px(id, side, side),
        pose: pose_of(data.camera_pos(id), data.camera_mat(id)),
    }
}

/// From MuJoCo's place and row-major rotation matrix.
pub(crate) fn pose_of(position_m: [f64; 3], mat_row_major: [f64; 9]) -> Pose {
    let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(&mat_row_major));
    let q = UnitQuaternion::from_rotation_matrix(&rotation);
    Pose { position_m, quat_wxyz: [q.w, q.i, q.j, q.k] }
}
