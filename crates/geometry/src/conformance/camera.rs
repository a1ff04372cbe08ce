//! Cameras, clouds and pictures.

use nalgebra::{Isometry3, Point3, Quaternion, Translation3, UnitQuaternion};

use super::{Case, Outcome, Run, coordinates, matrix, outputs, text, turn};
use crate::cloud::{PixelCentre, PixelRounding, depth_to_points, lift_tracks};
use crate::render::{Cloud, render_final_state};
use crate::solid::{Shape, Solid, depth_picture, is_visible};
use crate::{Camera, Intrinsics};

pub(super) fn function(name: &str) -> Option<Run> {
    Some(match name {
        "intrinsics_from_fov" => from_fov,
        "lift_flow" => lift_flow,
        "depth_to_point_cloud" => cloud,
        "lift_flow_with_own_depth" => lift_own,
        "render_final_state" => render,
        "project_world_points" => project,
        "ray_depth_image" => ray_picture,
        "sim_object_flow" => simulated,
        "quat_to_matrix" => quaternion,
        _ => return None,
    })
}

fn from_fov(case: &Case) -> Outcome {
    let (fov, axis): (f64, String) = (case.param("fov_deg")?, case.param("axis")?);
    let mut out = Vec::new();
    for [h, w] in case.rows::<2>("hw")? {
        let of = match axis.as_str() {
            "horizontal" => Intrinsics::from_fovx_deg,
            "vertical" => Intrinsics::from_fovy_deg,
            _ => return Err(format!("`{axis}` is no axis of a picture")),
        };
        let k = of(fov, w as usize, h as usize).map_err(text)?;
        out.extend([k.fx, k.cx, k.cy]);
    }
    Ok(outputs([("f_cx_cy", out)]))
}

fn lift_flow(case: &Case) -> Outcome {
    let ([frames, h, w], depth) = case.tensor::<3>("depth")?;
    let k = Intrinsics::from_fovx_deg(case.param("fov_deg")?, w, h).map_err(text)?;
    let uv: Vec<[f64; 2]> = case.rows::<3>("flow_uv_vis")?.iter().map(|p| [p[0], p[1]]).collect();
    let rounding = case.param::<Option<String>>("pixel_rounding")?.unwrap_or_default();
    let rounding =
        if rounding.starts_with("truncate") { PixelRounding::Truncate } else { PixelRounding::Exact };
    let points = lift_tracks(&k, &depth, &uv, frames, rounding).map_err(text)?;
    let points: Option<Vec<Point3<f64>>> = points.into_iter().collect();
    Ok(outputs([("points", coordinates(&points.ok_or("a point has no depth")?))]))
}

fn cloud(case: &Case) -> Outcome {
    let ([h, w], depth) = case.tensor::<2>("depth")?;
    let k = Intrinsics::from_fovx_deg(case.param("fov_deg")?, w, h).map_err(text)?;
    let limit = case.param::<Option<f64>>("max_depth")?;
    let rgb = case.rows::<3>("rgb")?;
    let mut out = Vec::new();
    for (pixel, p) in depth_to_points(&k, &depth, PixelCentre::Index, limit).map_err(text)? {
        let colour = rgb.get(pixel).ok_or("inputs.rgb has fewer pixels than inputs.depth")?;
        out.extend([p.x, p.y, p.z]);
        out.extend(colour.map(|c| c / 255.0));
    }
    Ok(outputs([("xyzrgb", out)]))
}

fn lift_own(case: &Case) -> Outcome {
    let k = Intrinsics {
        fx: case.param("fx")?,
        fy: case.param("fy")?,
        cx: case.param("cx")?,
        cy: case.param("cy")?,
        width: 1,
        height: 1,
    };
    let (uv, depth) = (case.rows::<2>("flow_uv")?, case.numbers("depth")?);
    let lifted = |round: fn(f64) -> f64| -> Vec<f64> {
        let points: Vec<_> =
            uv.iter().zip(&depth).map(|([u, v], d)| k.lift(round(*u), round(*v), *d)).collect();
        coordinates(&points)
    };
    Ok(outputs([("points_truncated", lifted(f64::trunc)), ("points_exact", lifted(|x| x))]))
}

fn render(case: &Case) -> Outcome {
    let f = case.param_numbers("fx_fy_cx_cy")?;
    let [fx, fy, cx, cy] = f[..] else { return Err("params.fx_fy_cx_cy has not 4 numbers".into()) };
    let k = Intrinsics { fx, fy, cx, cy, width: case.param("width")?, height: case.param("height")? };
    let background: f64 = case.param("background")?;
    let empty: f64 = case.param("empty_depth")?;
    let (scene, scene_colours) = (case.points("scene_points")?, case.rows::<3>("scene_colors")?);
    let (object, object_colours) = (case.points("object_points")?, case.rows::<3>("object_colors")?);
    let picture = render_final_state(
        &k,
        Cloud { points: &scene, colours: &scene_colours },
        Cloud { points: &object, colours: &object_colours },
        &case.pose("transform")?,
        [background; 3],
        0,
    )
    .map_err(text)?;
    let depth =
        picture.depth_m.iter().zip(&picture.source).map(|(d, s)| if s.is_some() { *d } else { empty });
    Ok(outputs([
        ("image", picture.colours.concat()),
        ("depth", depth.collect()),
        ("source_index", picture.source.iter().map(|s| s.map_or(-1.0, |i| i as f64)).collect()),
    ]))
}

fn camera(case: &Case) -> Result<Camera, String> {
    Camera::from_mujoco(
        case.one("cam_xpos")?,
        case.one("cam_xmat_row_major")?,
        case.param("fovy_deg")?,
        case.param("width")?,
        case.param("height")?,
    )
    .map_err(text)
}

/// (u, v, depth) with NaN for points that are not before the camera.
fn seen(camera: &Camera, points: &[Point3<f64>]) -> Vec<[f64; 3]> {
    points.iter().map(|p| camera.project(p).unwrap_or([f64::NAN; 3])).collect()
}

fn project(case: &Case) -> Outcome {
    let camera = camera(case)?;
    let k = &camera.intrinsics;
    Ok(outputs([
        ("f_cx_cy", vec![k.fy, k.cx, k.cy]),
        ("world_from_cam_opencv", matrix(&camera.world_from_camera)),
        ("cam_opencv_from_world", matrix(&camera.world_from_camera.inverse())),
        ("uv_depth", seen(&camera, &case.points("points_world")?).concat()),
    ]))
}

/// `0 table: plane z=0 (half sizes 1 x 1); 1 wall: box half (.03,.05,.06) at (0.2,-0.16,.06); ..., all axis aligned`.
fn solids(description: &str) -> Result<Vec<(usize, Solid)>, String> {
    let bad = |part: &str| format!("params.geoms: `{part}` is not understood");
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let triple = |text: &str| -> Option<[f64; 3]> {
        let inner = text.split_once('(')?.1.split_once(')')?.0;
        inner.split(',').map(number).collect::<Option<Vec<_>>>()?.try_into().ok()
    };
    let parse = |part: &str| -> Option<(usize, Solid)> {
        let (head, what) = part.trim().split_once(':')?;
        let id = head.split_whitespace().next()?.parse().ok()?;
        let what = what.trim();
        let (shape, at) = if let Some(plane) = what.strip_prefix("plane z=") {
            let (z, sizes) = plane.split_once(" (half sizes ")?;
            let (x, y) = sizes.split_once(')')?.0.split_once('x')?;
            (Shape::Plane([number(x)?, number(y)?]), [0.0, 0.0, number(z)?])
        } else {
            let (half, at) = what.strip_prefix("box half ")?.split_once(" at ")?;
            (Shape::Box(triple(half)?), triple(at)?)
        };
        Some((id, Solid { shape, pose: Isometry3::translation(at[0], at[1], at[2]) }))
    };
    description.split(';').map(|part| parse(part).ok_or_else(|| bad(part))).collect()
}

fn ray_picture(case: &Case) -> Outcome {
    let camera = camera(case)?;
    let miss: f64 = case.param("miss")?;
    let (ids, solids): (Vec<usize>, Vec<Solid>) =
        solids(&case.param::<String>("geoms")?)?.into_iter().unzip();
    let (mut depth, mut id, mut points) = (Vec::new(), Vec::new(), Vec::new());
    let width = camera.intrinsics.width;
    for (pixel, hit) in depth_picture(&camera, &solids).map_err(text)?.into_iter().enumerate() {
        match hit {
            Some((which, d)) => {
                let p = camera.lift((pixel % width) as f64 + 0.5, (pixel / width) as f64 + 0.5, d);
                depth.push(d);
                id.push(ids[which] as f64);
                points.extend([p.x, p.y, p.z]);
            }
            None => {
                depth.push(miss);
                id.push(-1.0);
                points.extend([miss; 3]);
            }
        }
    }
    Ok(outputs([("depth_planar", depth), ("geom_id", id), ("points_world", points)]))
}

/// The scene that the case's note describes: the table and the wall of `ray_depth_image`, and the box that moves.
const TABLE_AND_WALL: &str =
    "0 table: plane z=0 (half sizes 1 x 1); 1 wall: box half (.03,.05,.06) at (0.2,-0.16,.06)";
const MOVING_BOX: [f64; 3] = [0.06, 0.04, 0.05];

fn simulated(case: &Case) -> Outcome {
    let camera = camera(case)?;
    let tolerance: f64 = case.param("visible_tolerance_m")?;
    let body = case.points("points_body")?;
    let mut scene: Vec<Solid> = solids(TABLE_AND_WALL)?.into_iter().map(|(_, solid)| solid).collect();
    scene.push(Solid { shape: Shape::Box(MOVING_BOX), pose: Isometry3::identity() });
    let moving = scene.len() - 1;
    let (mut world, mut flow, mut inner) = (Vec::new(), Vec::new(), Vec::new());
    for (at, [w, x, y, z]) in case.rows::<3>("body_xpos")?.into_iter().zip(case.rows::<4>("body_xquat_wxyz")?)
    {
        let turn = UnitQuaternion::new_normalize(Quaternion::new(w, x, y, z));
        let pose = Isometry3::from_parts(Translation3::from(nalgebra::Vector3::from(at)), turn);
        scene[moving].pose = pose;
        let points: Vec<Point3<f64>> = body.iter().map(|p| pose * p).collect();
        for (p, [u, v, d]) in points.iter().zip(seen(&camera, &points)) {
            let visible = is_visible(&camera, &scene, p, tolerance).map_err(text)?;
            flow.extend([u, v, d, f64::from(u8::from(visible))]);
            let c = camera.world_from_camera.inverse_transform_point(p);
            inner.extend([c.x, c.y, c.z]);
        }
        world.extend(coordinates(&points));
    }
    Ok(outputs([("points_world", world), ("flow_uvd_vis", flow), ("points_cam_opencv", inner)]))
}

fn quaternion(case: &Case) -> Outcome {
    let [w, x, y, z] = case.one("quat_wxyz")?;
    let q = UnitQuaternion::new_normalize(Quaternion::new(w, x, y, z));
    Ok(outputs([("matrix", turn(&q)), ("quat_xyzw", vec![q.i, q.j, q.k, q.w])]))
}
