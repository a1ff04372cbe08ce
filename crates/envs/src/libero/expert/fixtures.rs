//! Ways to move what is part of the furniture: drawers, doors, knobs.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};

use nalgebra::{Rotation3, Vector3};

use super::super::{LiberoSim, Result};
use super::geometry::{meta, shape};
use super::moves::{CLOSE, Hand, Move, OPEN, Target, down, half_turn, rotation_of, tilted};
use super::skills::{GRASP_STEPS, RELEASE_STEPS, Way};

/// The handle of a drawer or door.
pub(super) struct Handle {
    pub(super) bar: Vector3<f64>,
    /// The way that the drawer opens.
    pub(super) out: Vector3<f64>,
    /// Along the bar.
    side: Vector3<f64>,
}

/// Finds it: the shape of the moving part that is farthest out.
pub(super) fn handle(sim: &LiberoSim, what: &str) -> Result<Option<Handle>> {
    let pack = &sim.pack().meta;
    let (body, parent) = match pack.sites.get(what) {
        Some(site) => (site.body_id, site.parent.as_deref().unwrap_or(what)),
        None => (meta(sim, what)?.joints.first().map_or(0, |joint| sim.model().joint_body(joint.id)), what),
    };
    // Cabinets open along -y of their own frame.
    let turn = rotation_of(sim.object_pose(parent)?.quat_wxyz);
    let out = turn * -Vector3::y();
    let geoms = meta(sim, parent)?.contact_geom_ids.iter().copied();
    let bar = geoms
        .filter(|&geom| sim.model().geom_body(geom) == body)
        .map(|geom| shape(sim, geom).centre)
        .max_by(|a, b| a.dot(&out).total_cmp(&b.dot(&out)));
    Ok(bar.map(|bar| Handle { bar, out, side: turn * Vector3::x() }))
}

/// Pulls a drawer open by its handle, or pushes it shut.
pub(super) fn slide(sim: &LiberoSim, what: &str, open: bool) -> Result<Vec<Way>> {
    let Some(Handle { bar: handle, out, side }) = handle(sim, what)? else { return Ok(Vec::new()) };
    let hand = Hand::of(sim);
    let mut ways = Vec::new();
    for tilt in [1.2, 1.0, 1.4, 0.8, 1.57] {
        for aside in [0.0, 0.02, -0.02] {
            let rotation = tilted(-out, tilt);
            let ahead = rotation * Vector3::z();
            let bar = handle + side * aside;
            // Up first, where the hand would sweep what stands on the table.
            let rise = (bar.z + 0.12 - hand.position.z).max(0.0);
            let moves = if open {
                vec![
                    Move {
                        within: Some((0.03, 9.0)),
                        ..Move::transit(Target::Shift(Vector3::z() * rise), rotation, OPEN)
                    },
                    Move::transit(Target::At(bar - ahead * 0.16 + Vector3::z() * 0.04), rotation, OPEN),
                    Move::exact(Target::At(bar - ahead * 0.08), rotation, OPEN),
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

/// Pushes a door that turns about the vertical shut, with closed fingers, along the arc of its free edge. No ways for
/// what slides.
pub(super) fn swing(sim: &LiberoSim, what: &str) -> Result<Vec<Way>> {
    let pack = &sim.pack().meta;
    let (joint, parent) = match pack.sites.get(what) {
        Some(site) => (site.joints.first(), site.parent.as_deref().unwrap_or(what)),
        None => (meta(sim, what)?.joints.first(), what),
    };
    let Some(joint) = joint.filter(|joint| joint.kind == "hinge") else { return Ok(Vec::new()) };
    let angle = sim.qpos().get(joint.qpos_adr).copied().unwrap_or(0.0);
    let body = sim.model().joint_body(joint.id);
    let hinge = Vector3::from(sim.data().body_pos(body));
    let geoms = meta(sim, parent)?.contact_geom_ids.iter().copied();
    let edge = geoms
        .filter(|&geom| sim.model().geom_body(geom) == body)
        .map(|geom| shape(sim, geom).centre - hinge)
        .max_by(|a, b| a.xy().norm().total_cmp(&b.xy().norm()));
    let Some(edge) = edge else { return Ok(Vec::new()) };
    // Shut is angle 0, the end of the range that is nearer to it.
    let turn = |by: f64| Rotation3::from_axis_angle(&Vector3::z_axis(), by);
    let sense = -angle.signum();
    let mut ways = Vec::new();
    for (share, behind, lower) in
        [(0.85, 0.06, 0.0), (0.7, 0.06, 0.0), (0.85, 0.09, 0.03), (1.0, 0.06, 0.0), (0.85, 0.06, -0.03)]
    {
        for yaw in [0.0, FRAC_PI_2] {
            let arm = Vector3::new(edge.x * share, edge.y * share, edge.z + lower);
            let tangent = Vector3::z().cross(&arm).normalize() * sense;
            let start = hinge + arm - tangent * behind;
            let rotation = down(half_turn(tangent.y.atan2(tangent.x) + yaw));
            let mut moves = vec![
                Move::transit(Target::At(start + Vector3::z() * 0.15), rotation, CLOSE),
                Move { steps: 40, ..Move::transit(Target::At(start), rotation, CLOSE) },
            ];
            let steps = (angle.abs() / 0.25).ceil() as usize + 1;
            for k in 1..=steps {
                let by = sense * (angle.abs() + 0.1).min(0.25 * k as f64);
                let along = turn(by) * tangent;
                let place = hinge + turn(by) * arm - along * 0.01;
                moves.push(Move {
                    within: Some((0.025, 9.0)),
                    steps: 25,
                    stall: k == steps,
                    ..Move::transit(Target::At(place), turn(by) * rotation, CLOSE)
                });
            }
            let away = turn(sense * angle.abs()) * tangent;
            moves.push(Move::transit(Target::Shift(-away * 0.08), rotation, CLOSE));
            ways.push(Way {
                name: format!("door at {share} behind {behind} lower {lower} yaw {yaw:.1}"),
                moves,
            });
        }
    }
    Ok(ways)
}

/// Turns a knob from above.
pub(super) fn knob(sim: &LiberoSim, fixture: &str, on: bool) -> Result<Vec<Way>> {
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
        for (ridge, lead) in [(0.0, 0.0), (0.0, -0.4), (FRAC_PI_2, 0.0), (FRAC_PI_4, 0.0), (-FRAC_PI_4, 0.0)]
        {
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
