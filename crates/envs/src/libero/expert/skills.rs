//! Ways to do each stage, the likeliest first. Which of them works is found by trying them in simulation.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};

use nalgebra::{Rotation3, Vector2, Vector3};

use super::super::{LiberoSim, Result};
use super::geometry::{Extent, clearance, meta, shape, surface};
use super::moves::{CLOSE, Hand, Move, OPEN, Target, down, half_turn, rotation_of, tilted};
use super::stages::Stage;

/// A way to do a stage.
pub(super) struct Way {
    pub(super) name: String,
    pub(super) moves: Vec<Move>,
}

/// Steps in which the fingers close firmly, and open.
const GRASP_STEPS: usize = 16;
const RELEASE_STEPS: usize = 9;
/// Fingertips reach 1.5 cm beyond the grip site.
const FLOOR_GAP: f64 = 0.016;
/// Widest thing that fits between the fingers.
const GRIP_WIDTH: f64 = 0.076;
/// Things that are grasped by their rim, not around their middle.
const OPEN_ABOVE: [&str; 8] = ["bowl", "plate", "ramekin", "mug", "pan", "tray", "basket", "saucer"];

/// All ways to do `stage` from the present state. `jitter` (metres) moves waypoints that need no precision.
pub(super) fn ways(sim: &LiberoSim, stage: &Stage, next: Option<&Stage>, jitter: [f64; 2]) -> Result<Vec<Way>> {
    match stage {
        Stage::Pick(object) => pick(sim, object, next, jitter),
        Stage::Place { object, fact } => place(sim, object, fact),
        Stage::PutAside(object) => put_aside(sim, object),
        Stage::Open(what) => slide(sim, what, true),
        Stage::Close(what) => slide(sim, what, false),
        Stage::Turn { fixture, on } => knob(sim, fixture, *on),
    }
}

fn is_open_above(sim: &LiberoSim, object: &str) -> Result<bool> {
    let category = &meta(sim, object)?.category;
    Ok(OPEN_ABOVE.iter().any(|word| category.contains(word)))
}

/// A grasp from above: where the grip site goes relative to the object's root, and the yaw.
struct Grasp {
    name: String,
    offset: Vector3<f64>,
    yaw: f64,
}

fn grasps(sim: &LiberoSim, object: &str) -> Result<Vec<Grasp>> {
    let extent = Extent::of(sim, object)?;
    let middle = extent.middle() - extent.root.xy();
    let mut grasps = Vec::new();
    if is_open_above(sim, object)? {
        // One finger inside, one outside: across y first, as the hand stands.
        let flat = extent.height() < 0.03;
        let depths: &[f64] = if flat { &[0.004, 0.0, 0.008] } else { &[0.022, 0.016, 0.028] };
        let angles =
            [1.0, -1.0, 0.0, 2.0, 0.5, -0.5, 1.5, -1.5].map(|quarter| (quarter, quarter * FRAC_PI_2));
        for &depth in depths {
            for (quarter, angle) in angles {
                let out = extent.radius(angle) - 0.006;
                let z = (extent.high - depth).max(extent.low + FLOOR_GAP - 0.002) - extent.root.z;
                let offset =
                    Vector3::new(middle.x + out * angle.cos(), middle.y + out * angle.sin(), z);
                let yaw = half_turn(angle - FRAC_PI_2);
                grasps.push(Grasp { name: format!("rim {:.0} depth {depth}", quarter * 90.0), offset, yaw });
            }
        }
        return Ok(grasps);
    }
    // Around the middle, across the smallest width; the hand opens along yaw + 90 degrees.
    let mut yaws: Vec<(f64, f64)> = (-18..18)
        .map(|k| f64::from(k) * 5.0_f64.to_radians())
        .map(|yaw| (extent.across(yaw + FRAC_PI_2).0, yaw))
        .filter(|(width, _)| *width < GRIP_WIDTH)
        .collect();
    yaws.sort_by(|a, b| (a.0 + 0.002 * a.1.abs()).total_cmp(&(b.0 + 0.002 * b.1.abs())));
    let mut chosen: Vec<f64> = Vec::new();
    for (_, yaw) in yaws {
        // Others that differ by a third of a right angle at least.
        if chosen.len() < 4 && chosen.iter().all(|c| half_turn(c - yaw).abs() > 0.5) {
            chosen.push(yaw);
        }
    }
    for depth in [0.030, 0.040, 0.022, 0.055] {
        for &yaw in &chosen {
            let z = (extent.high - depth).max(extent.low + FLOOR_GAP) - extent.root.z;
            let offset = Vector3::new(middle.x, middle.y, z);
            grasps.push(Grasp { name: format!("around {:.0} depth {depth}", yaw.to_degrees()), offset, yaw });
        }
    }
    Ok(grasps)
}

fn pick(sim: &LiberoSim, object: &str, next: Option<&Stage>, jitter: [f64; 2]) -> Result<Vec<Way>> {
    let extent = Extent::of(sim, object)?;
    let rise = lift(sim, &extent, object, next)?;
    let grasps = grasps(sim, object)?;
    let of = |offset: Vector3<f64>| Target::Of { object: object.into(), offset };
    let way = |grasp: &Grasp, hover: f64, speed: f64| {
        let rotation = down(grasp.yaw);
        let above = grasp.offset + Vector3::new(jitter[0], jitter[1], hover);
        let near = grasp.offset + Vector3::z() * 0.03;
        Way {
            name: format!("{} from {hover}", grasp.name),
            moves: vec![
                Move::transit(of(above), rotation, OPEN),
                Move { within: Some((0.010, 0.08)), ..Move::exact(of(near), rotation, OPEN) }.slow(speed),
                Move::exact(of(grasp.offset), rotation, OPEN).slow(0.7),
                Move::hold(rotation, CLOSE, GRASP_STEPS),
                Move::transit(Target::Shift(Vector3::z() * rise), rotation, CLOSE),
            ],
        }
    };
    let mut ways: Vec<Way> = grasps.iter().map(|grasp| way(grasp, 0.09, 1.0)).collect();
    ways.extend(grasps.iter().take(4).map(|grasp| way(grasp, 0.20, 0.6)));
    Ok(ways)
}

/// How far to lift: over everything between here and where it goes.
fn lift(sim: &LiberoSim, extent: &Extent, object: &str, next: Option<&Stage>) -> Result<f64> {
    let Some(Stage::Place { fact, .. }) = next else { return Ok(0.12) };
    let goal = goal_of(sim, object, &fact[2])?;
    let top = surface(sim, goal.xy(), object, f64::INFINITY)?;
    Ok((top.max(goal.z) + 0.06 - extent.low).max(0.10))
}

/// Where the middle of a place is: an object's root or a site.
fn goal_of(sim: &LiberoSim, object: &str, place: &str) -> Result<Vector3<f64>> {
    if sim.pack().meta.sites.contains_key(place) {
        return Ok(sim.site_pose(place)?.position_m.into());
    }
    let _ = object;
    Ok(sim.object_pose(place)?.position_m.into())
}

fn place(sim: &LiberoSim, object: &str, fact: &[String]) -> Result<Vec<Way>> {
    let goal = goal_of(sim, object, &fact[2])?;
    let site = sim.pack().meta.sites.get(&fact[2]);
    let extent = Extent::of(sim, object)?;
    let hand = Hand::of(sim);
    let below = extent.root.z - extent.low;
    if let Some(site) = site {
        let turn = rotation_of(sim.site_pose(&fact[2])?.quat_wxyz);
        let normal = turn * Vector3::z();
        // A rack: its place is inclined, and the thing must lie along it.
        if fact[0] == "on" && normal.z.abs() < 0.9 {
            return Ok(lean(object, &hand, goal, turn, site.size));
        }
    }
    let mut ways = Vec::new();
    let inside = fact[0] == "in";
    for aside in [[0.0, 0.0], [0.015, 0.0], [-0.015, 0.0], [0.0, 0.015], [0.0, -0.015]] {
        for lower in [1.0, 0.0] {
            let xy = goal.xy() + Vector2::from(aside);
            let floor = surface(sim, xy, object, f64::INFINITY)?;
            let top = floor + below;
            // Into a container: its walls are higher than what lies under the middle.
            let rim = match site.and_then(|s| s.parent.as_deref()) {
                Some(parent) if inside => Extent::of(sim, parent)?.high,
                _ => floor,
            };
            let rim = if sim.pack().meta.objects.contains_key(&fact[2]) { Extent::of(sim, &fact[2])?.high } else { rim };
            let over = hand.position.z.max(rim + 0.05 + (hand.position.z - extent.low));
            let over = over.min(hand.position.z + 0.25);
            let rotation = hand.rotation;
            let goal = Vector3::new(xy.x, xy.y, top + 0.012 + 0.03 * (1.0 - lower));
            ways.push(Way {
                name: format!("down at {:.3} {:.3}, {lower}", aside[0], aside[1]),
                moves: vec![
                    Move::transit(Target::Shift(Vector3::z() * (over - hand.position.z)), rotation, CLOSE),
                    Move {
                        within: Some((0.008, 0.12)),
                        steps: 90,
                        ..Move::transit(Target::Over { object: object.into(), xy, z: over }, rotation, CLOSE)
                    },
                    Move::exact(Target::Carry { object: object.into(), goal }, rotation, CLOSE).slow(0.7),
                    Move::hold(rotation, OPEN, RELEASE_STEPS),
                    Move::transit(Target::Shift(Vector3::z() * 0.10), rotation, OPEN),
                ],
            });
        }
    }
    Ok(ways)
}

/// Onto an inclined place: the hand tilts, and the thing comes down along the place's normal as the benchmark computes
/// it (with the rotation, not its transpose).
fn lean(object: &str, hand: &Hand, goal: Vector3<f64>, turn: Rotation3<f64>, size: [f64; 3]) -> Vec<Way> {
    let mut ways = Vec::new();
    let along = turn.inverse() * Vector3::z();
    let flat = Vector3::new(along.x, along.y, 0.0);
    let flat = if flat.norm() > 1e-6 { flat.normalize() } else { Vector3::y() };
    for tilt in [1.2, 0.9, -1.2, -0.9, 0.6, -0.6, 1.5, 0.0] {
        for aside in [0.0, 0.04, -0.04] {
            let axis = nalgebra::Unit::new_normalize(Vector3::z_axis().cross(&flat));
            let rotation = Rotation3::from_axis_angle(&axis, tilt) * hand.rotation;
            let across = axis.into_inner() * aside;
            let at = |distance: f64| Target::Carry {
                object: object.into(),
                goal: goal + along * (size[2] + distance) + across,
            };
            let above = |up: f64| Target::Carry {
                object: object.into(),
                goal: goal + along * (size[2] + 0.08) + across + Vector3::z() * up,
            };
            ways.push(Way {
                name: format!("lean {tilt} {aside}"),
                moves: vec![
                    Move::transit(above(0.10), hand.rotation, CLOSE),
                    Move { steps: 50, ..Move::transit(above(0.08), rotation, CLOSE) },
                    Move::exact(at(0.07), rotation, CLOSE),
                    Move { steps: 40, ..Move::exact(at(0.02), rotation, CLOSE) }.slow(0.4),
                    Move { steps: 30, ..Move::exact(at(-0.01), rotation, CLOSE) }.slow(0.3),
                    Move::hold(rotation, OPEN, RELEASE_STEPS),
                    Move::transit(Target::Shift(rotation * Vector3::new(0.0, 0.0, -0.10)), rotation, OPEN),
                ],
            });
        }
    }
    ways
}

/// Free places on the table, near the arm first.
fn put_aside(sim: &LiberoSim, object: &str) -> Result<Vec<Way>> {
    let extent = Extent::of(sim, object)?;
    let hand = Hand::of(sim);
    let lowest = surface(sim, Vector2::new(1e3, 1e3), object, f64::INFINITY)?;
    let mut places: Vec<(f64, Vector2<f64>)> = Vec::new();
    for x in -4..=3 {
        for y in -5..=5 {
            let at = Vector2::new(f64::from(x) * 0.05, f64::from(y) * 0.06);
            let free = clearance(sim, at, object)?;
            // Far from everything, not far from here.
            if free > 0.10 {
                places.push((free.min(0.22) - 0.3 * (at - extent.root.xy()).norm(), at));
            }
        }
    }
    places.sort_by(|a, b| b.0.total_cmp(&a.0));
    let rotation = hand.rotation;
    Ok(places
        .into_iter()
        .take(6)
        .map(|(_, xy)| {
            let z = lowest + (extent.root.z - extent.low) + 0.010;
            let goal = Vector3::new(xy.x, xy.y, z);
            Way {
                name: format!("aside at {:.2} {:.2}", xy.x, xy.y),
                moves: vec![
                    Move::transit(Target::Over { object: object.into(), xy, z: hand.position.z }, rotation, CLOSE),
                    Move::exact(Target::Carry { object: object.into(), goal }, rotation, CLOSE),
                    Move::hold(rotation, OPEN, RELEASE_STEPS),
                    Move::transit(Target::Shift(Vector3::z() * 0.12), rotation, OPEN),
                ],
            }
        })
        .collect())
}

/// Pulls a drawer open by its handle, or pushes it shut.
fn slide(sim: &LiberoSim, what: &str, open: bool) -> Result<Vec<Way>> {
    let pack = &sim.pack().meta;
    let (body_id, parent) = match pack.sites.get(what) {
        Some(site) => (site.body_id, site.parent.clone().unwrap_or_else(|| what.to_owned())),
        None => (meta(sim, what)?.joints.first().map_or(0, |joint| sim.model().joint_body(joint.id)), what.to_owned()),
    };
    // Cabinets open along -y of their own frame.
    let turn = rotation_of(sim.object_pose(&parent)?.quat_wxyz);
    let out = turn * -Vector3::y();
    let geoms = meta(sim, &parent)?.contact_geom_ids.iter().copied();
    let handle = geoms
        .filter(|&geom| sim.model().geom_body(geom) == body_id)
        .map(|geom| shape(sim, geom).centre)
        .max_by(|a, b| a.dot(&out).total_cmp(&b.dot(&out)));
    let Some(handle) = handle else { return Ok(Vec::new()) };
    let mut ways = Vec::new();
    for tilt in [1.2, 1.0, 1.4, 0.8, 1.57] {
        for aside in [0.0, 0.02, -0.02] {
            let rotation = tilted(-out, tilt);
            let ahead = rotation * Vector3::z();
            let bar = handle + turn * Vector3::x() * aside;
            let moves = if open {
                vec![
                    Move::transit(Target::At(bar - ahead * 0.20 + Vector3::z() * 0.04), rotation, OPEN),
                    Move::exact(Target::At(bar - ahead * 0.10), rotation, OPEN),
                    Move::exact(Target::At(bar), rotation, OPEN).slow(0.7),
                    Move::hold(rotation, CLOSE, GRASP_STEPS),
                    Move {
                        steps: 60,
                        within: Some((0.03, 0.3)),
                        ..Move::transit(Target::Shift(out * 0.22), rotation, CLOSE)
                    },
                    Move::hold(rotation, OPEN, RELEASE_STEPS),
                    Move::transit(Target::Shift(-ahead * 0.08), rotation, OPEN),
                    Move::transit(Target::Shift(Vector3::z() * 0.12), rotation, OPEN),
                ]
            } else {
                vec![
                    Move::transit(Target::At(bar + out * 0.12 - ahead * 0.05), rotation, CLOSE),
                    Move::exact(Target::At(bar + out * 0.04), rotation, CLOSE),
                    Move {
                        steps: 80,
                        within: Some((0.005, 0.5)),
                        ..Move::transit(Target::Shift(-out * 0.30), rotation, CLOSE)
                    },
                    Move::transit(Target::Shift(out * 0.10), rotation, CLOSE),
                ]
            };
            ways.push(Way { name: format!("handle tilt {tilt} aside {aside}"), moves });
        }
    }
    Ok(ways)
}

/// Turns a knob from above.
fn knob(sim: &LiberoSim, fixture: &str, on: bool) -> Result<Vec<Way>> {
    let fixture_turn = rotation_of(sim.object_pose(fixture)?.quat_wxyz);
    let facing = (fixture_turn * Vector3::x()).xy();
    let Some(joint) = meta(sim, fixture)?.joints.first() else { return Ok(Vec::new()) };
    let angle = sim.qpos().get(joint.qpos_adr).copied().unwrap_or(0.0);
    let body = sim.model().joint_body(joint.id);
    let Some(body) = sim.model().name(efference_mujoco::Kind::Body, body) else { return Ok(Vec::new()) };
    let centre = Vector3::from(sim.body_pose(&body)?.position_m);
    let base = facing.y.atan2(facing.x);
    let mut ways = Vec::new();
    for height in [0.035, 0.030, 0.040] {
        for (ridge, lead) in [(0.0, 0.0), (0.0, -0.4), (FRAC_PI_2, 0.0), (FRAC_PI_4, 0.0), (-FRAC_PI_4, 0.0)] {
            let yaw = half_turn(base + angle + ridge) + lead;
            let rotation = down(yaw);
            let at = centre + Vector3::z() * height;
            let spin = if on { 0.035 } else { -0.035 };
            ways.push(Way {
                name: format!("knob at {height}, ridge {ridge:.2} lead {lead}"),
                moves: vec![
                    Move::transit(Target::At(at + Vector3::z() * 0.10), rotation, OPEN),
                    Move::exact(Target::At(at), rotation, OPEN).slow(0.7),
                    Move::hold(rotation, CLOSE, GRASP_STEPS),
                    Move { spin, spin_end: 1.6, ..Move::hold(rotation, CLOSE, 60) },
                    Move::hold(rotation, OPEN, RELEASE_STEPS),
                    Move::transit(Target::Shift(Vector3::z() * 0.10), rotation, OPEN),
                ],
            });
        }
    }
    Ok(ways)
}
