//! Bodies as batches, one entity per kind of shape. An entity per body would be easier to read in the viewer's tree,
//! but each costs some kilobytes of headers, several times what it holds.

use super::entities::{position, rgba, rotation};
use crate::episode::{GeomKind, Pose, SceneGeom};
use nalgebra::Translation3;
use rerun::external::re_sdk_types::SerializedComponentColumn;
use rerun::{
    AsComponents, Boxes3D, Capsules3D, Cylinders3D, Ellipsoids3D, FillMode, Quaternion, SerializationResult,
};

/// All kinds and the names of their batches.
pub(super) const KINDS: [(GeomKind, &str); 6] = [
    (GeomKind::Box, "boxes"),
    (GeomKind::Sphere, "spheres"),
    (GeomKind::Ellipsoid, "ellipsoids"),
    (GeomKind::Cylinder, "cylinders"),
    (GeomKind::Capsule, "capsules"),
    (GeomKind::Plane, "planes"),
];

/// Sizes, colours and names of a batch of one kind.
pub(super) fn looks(kind: GeomKind, geoms: &[&SceneGeom]) -> Box<dyn AsComponents> {
    let size = |i: usize| geoms.iter().map(move |g| g.size[i]);
    let colors = geoms.iter().map(|g| rgba(g.rgba));
    let names = geoms.iter().map(|g| g.name.clone());
    let halves = |half: &dyn Fn(&SceneGeom) -> [f32; 3]| geoms.iter().map(|g| half(g)).collect::<Vec<_>>();
    // Each kind is a type of its own with the same setters.
    macro_rules! finish {
        ($shape:expr) => {
            Box::new(
                $shape
                    .with_colors(colors)
                    .with_fill_mode(FillMode::Solid)
                    .with_labels(names)
                    .with_show_labels(false),
            )
        };
    }
    match kind {
        GeomKind::Box => finish!(Boxes3D::update_fields().with_half_sizes(halves(&|g| g.size))),
        GeomKind::Plane => {
            let half = |size: f32| if size > 0.0 { size } else { 1.0 };
            let flat = halves(&|g| [half(g.size[0]), half(g.size[1]), 5e-4]);
            finish!(Boxes3D::update_fields().with_half_sizes(flat))
        }
        GeomKind::Sphere => {
            finish!(Ellipsoids3D::update_fields().with_half_sizes(halves(&|g| [g.size[0]; 3])))
        }
        GeomKind::Ellipsoid => finish!(Ellipsoids3D::update_fields().with_half_sizes(halves(&|g| g.size))),
        GeomKind::Cylinder => finish!(
            Cylinders3D::update_fields().with_lengths(size(1).map(|half| 2.0 * half)).with_radii(size(0))
        ),
        GeomKind::Capsule => finish!(
            Capsules3D::update_fields().with_lengths(size(1).map(|half| 2.0 * half)).with_radii(size(0))
        ),
    }
}

/// Poses of a batch of one kind, one row per frame.
pub(super) fn places(
    kind: GeomKind,
    geoms: &[&SceneGeom],
    frames: usize,
) -> SerializationResult<Vec<SerializedComponentColumn>> {
    let at = |frame: usize| geoms.iter().filter_map(move |g| Some((*g, g.poses.get(frame)?)));
    let all = || (0..frames).flat_map(at);
    let centers: Vec<[f32; 3]> = all().map(|(g, pose)| position(&centred(kind, g, pose))).collect();
    let turns: Vec<Quaternion> = all().map(|(_, pose)| rotation(pose)).collect();
    let rows = vec![geoms.len(); frames];
    macro_rules! columns {
        ($shape:ident, $centers:ident) => {
            $shape::update_fields().$centers(centers).with_quaternions(turns).columns(rows)?.collect()
        };
    }
    Ok(match kind {
        GeomKind::Box | GeomKind::Plane => columns!(Boxes3D, with_centers),
        GeomKind::Sphere | GeomKind::Ellipsoid => columns!(Ellipsoids3D, with_centers),
        GeomKind::Cylinder => columns!(Cylinders3D, with_centers),
        GeomKind::Capsule => columns!(Capsules3D, with_translations),
    })
}

/// The viewer's capsule starts at its origin, ours (as MuJoCo's) is centred.
fn centred(kind: GeomKind, geom: &SceneGeom, pose: &Pose) -> Pose {
    match kind {
        GeomKind::Capsule => pose * Translation3::new(0.0, 0.0, -geom.size[1]),
        _ => *pose,
    }
}
