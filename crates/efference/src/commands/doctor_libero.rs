//! `efference doctor --libero`: what makes LIBERO numbers irreproducible, looked at one by one.

use std::path::Path;
use std::sync::Arc;

use efference_envs::libero::expert::{Expert, ExpertOptions};
use efference_envs::libero::suite::Base;
use efference_envs::libero::{IDLE_ACTION, IDLE_STEPS, LiberoSim, Pack, SimOptions, axis_angle, packs_dir};
use efference_mujoco::Kind;
use efference_nets::Quantiles;
use efference_rollout::libero::Images;
use efference_train::policy_file;
use image::RgbImage;
use image::imageops::{flip_horizontal, flip_vertical};

use crate::errors::{Failure, Result};
use crate::text::percent;

/// What a check found, or what is wrong and what to do.
pub(super) type Found = std::result::Result<String, (String, &'static str)>;

const EXPORT: &str = "cargo xtask libero";

/// Side of the pictures that are looked at.
const SIDE: usize = 128;

/// All checks on one task: the first whose pack is there, of `suite` if it is given.
pub(super) fn checks(suite: Option<&str>, policy: Option<&Path>) -> Result<Vec<(&'static str, Found)>> {
    let pack = match find(suite) {
        Ok(pack) => pack,
        Err(found) => return Ok(vec![("LIBERO packs", Err(found))]),
    };
    let mut out = vec![("LIBERO packs", Ok(packs(&pack)))];
    let options = SimOptions { image_size: SIDE, ..SimOptions::default() };
    let simulate =
        |e: efference_envs::libero::Error| Failure::from(e).doing(format!("cannot simulate {}", pack.id()));
    let mut sim = LiberoSim::new(&pack, &options).map_err(simulate)?;
    restore(&mut sim).map_err(simulate)?;
    out.push(("quaternion", quaternion(&sim)));
    out.push(("gripper sign", gripper(&mut sim).map_err(simulate)?));
    restore(&mut sim).map_err(simulate)?;
    out.push(("image orientation", orientation(&mut sim).map_err(simulate)?));
    // A script that cannot work would try all its ways for minutes.
    if out.iter().any(|(_, found)| found.is_err()) {
        return Ok(out);
    }
    restore(&mut sim).map_err(simulate)?;
    let (found, states) = expert(&mut sim).map_err(simulate)?;
    out.push(("scripted expert", found));
    if let Some(path) = policy {
        let suite = suite.unwrap_or(&pack.meta.suite);
        let loaded = policy_file::load(path, suite, None, false)?;
        out.push(("action statistics", actions(&loaded.policy.action_stats)));
        out.push(("state statistics", proprio(&loaded.policy.proprio_stats, &states)));
    }
    Ok(out)
}

fn find(suite: Option<&str>) -> std::result::Result<Arc<Pack>, (String, &'static str)> {
    let root = packs_dir();
    let suites: Vec<&str> = suite.map_or(Base::ALL.map(Base::name).to_vec(), |suite| vec![suite]);
    let there = suites.iter().flat_map(|suite| (0..90).map(move |task| (suite, task)));
    let mut packs = there.filter_map(|(suite, task)| Pack::find(&root, suite, task).ok());
    let Some(dir) = packs.next() else {
        return Err((format!("none of {} in {}", suites.join(", "), root.display()), EXPORT));
    };
    Pack::open(dir).map_err(|e| (e.to_string().lines().next().unwrap_or_default().to_owned(), EXPORT))
}

fn packs(pack: &Pack) -> String {
    let root = packs_dir();
    let count = |suite: &str| (0..90).filter(|&task| Pack::find(&root, suite, task).is_ok()).count();
    let counts: Vec<String> =
        Base::ALL.iter().map(|base| format!("{} {}", base.name(), count(base.name()))).collect();
    format!("{}; looked at: {}", counts.join(", "), pack.id())
}

type Simulated<T> = std::result::Result<T, efference_envs::libero::Error>;

/// The first saved initial state, after the idle steps.
fn restore(sim: &mut LiberoSim) -> Simulated<()> {
    let state = sim.pack().init_state(0).map(<[f64]>::to_vec).unwrap_or_default();
    sim.reset(0)?;
    sim.set_init_state(&state)?;
    (0..IDLE_STEPS).try_for_each(|_| sim.step(&IDLE_ACTION).map(drop))
}

/// At the start the hand points down: half a turn about x. In LIBERO's data this is +pi; with the other quaternion of the
/// same orientation, or with wxyz taken for xyzw, it is another vector.
fn quaternion(sim: &LiberoSim) -> Found {
    const HELP: &str =
        "the state must take the quaternion xyzw as the simulator gives it, without making w positive";
    let quat = sim.observation().eef_quat;
    let turn = axis_angle(quat);
    let length = quat.iter().map(|x| x * x).sum::<f64>().sqrt();
    let far = (turn[0] - std::f64::consts::PI).abs().max(turn[1].abs()).max(turn[2].abs());
    let shown = turn.map(|x| format!("{x:.2}")).join(", ");
    if (length - 1.0).abs() > 1e-6 || far > 0.3 {
        return Err((format!("the hand's axis-angle is ({shown}), expected about (3.14, 0, 0)"), HELP));
    }
    Ok(format!("xyzw as it is: axis-angle ({shown}) for the hand pointing down"))
}

/// +1 closes, -1 opens.
fn gripper(sim: &mut LiberoSim) -> Simulated<Found> {
    let mut opening_after = |command: f64| -> Simulated<f64> {
        for _ in 0..16 {
            sim.step(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, command])?;
        }
        let [left, right] = sim.observation().gripper_qpos;
        Ok(left - right)
    };
    let (closed, open) = (opening_after(1.0)?, opening_after(-1.0)?);
    let shown = format!("+1 leaves {:.0} mm between the fingers, -1 {:.0} mm", 1e3 * closed, 1e3 * open);
    if closed < 0.02 && open > 0.06 {
        return Ok(Ok(shown));
    }
    Ok(Err((shown, "policies must send -1 to open and +1 to close; see `gripper` of the protocol")))
}

/// The hand goes up and to the robot's left: in the upright picture up and to the right (the camera looks at the robot), in
/// the policy's mirrored one up and to the left. Where the hand is, segmentation tells; that the coloured picture lies the
/// same way, the pixels that changed tell.
fn orientation(sim: &mut LiberoSim) -> Simulated<Found> {
    const HELP: &str =
        "pictures must be upright, and mirrored for policies; report this with the renderer's name";
    let camera = "agentview";
    let before = (sim.render(camera)?, hand(sim, camera)?);
    for _ in 0..10 {
        sim.step(&[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0])?;
    }
    let after = (sim.render(camera)?, hand(sim, camera)?);
    let (Some(from), Some(to)) = (centre(&before.1), centre(&after.1)) else {
        return Ok(Err(("the hand is not seen by `agentview`".into(), HELP)));
    };
    let moved = [to[0] - from[0], to[1] - from[1]];
    let shown = format!(
        "a hand that goes up and left moves by ({:+.0}, {:+.0}) px in the policy's picture",
        -moved[0], moved[1]
    );
    if !(moved[0] > 2.0 && moved[1] < -2.0) {
        return Ok(Err((shown, HELP)));
    }
    // Changed colours lie where the hand was or is, for the policy's picture after turning it back.
    let prepared = |image: &RgbImage| Images::Plain.prepare(image).unwrap_or_default();
    let (old, new) = (prepared(&before.0), prepared(&after.0));
    let hit = |turn: &dyn Fn(&RgbImage) -> RgbImage| overlap(&turn(&old), &turn(&new), &before.1, &after.1);
    let right = hit(&|image| flip_horizontal(image));
    let wrong: [f64; 3] = [
        hit(&|image| image.clone()),
        hit(&|image| flip_vertical(image)),
        hit(&|image| flip_vertical(&flip_horizontal(image))),
    ];
    if wrong.iter().any(|&other| other >= right) {
        let what = format!("colours and segmentation lie differently: {right:.2} against {wrong:.2?}");
        return Ok(Err((what, HELP)));
    }
    Ok(Ok(format!("upright, mirrored for policies: {shown}")))
}

/// Which pixels show the hand or the fingers.
fn hand(sim: &mut LiberoSim, camera: &str) -> Simulated<Vec<bool>> {
    let mut geoms = vec![0; SIDE * SIDE];
    sim.render_segmentation(camera, &mut geoms)?;
    let model = Arc::clone(sim.model());
    let is_hand = |geom: i32| {
        let Ok(geom) = usize::try_from(geom) else { return false };
        let body = model.name(Kind::Body, model.geom_body(geom)).unwrap_or_default();
        body.starts_with("gripper0_") || body.starts_with("robot0_right_hand")
    };
    Ok(geoms.into_iter().map(is_hand).collect())
}

/// Column and row of the middle of the marked pixels.
fn centre(mask: &[bool]) -> Option<[f64; 2]> {
    let places: Vec<usize> = (0..mask.len()).filter(|&i| mask[i]).collect();
    let n = places.len() as f64;
    let mean = |of: fn(usize) -> usize| places.iter().map(|&i| of(i) as f64).sum::<f64>() / n;
    (places.len() >= 8).then(|| [mean(|i| i % SIDE), mean(|i| i / SIDE)])
}

/// Share of the change of colour that lies where either mask is set.
fn overlap(old: &RgbImage, new: &RgbImage, before: &[bool], after: &[bool]) -> f64 {
    let (mut inside, mut all) = (0.0, 0.0);
    for ((a, b), (&x, &y)) in old.pixels().zip(new.pixels()).zip(before.iter().zip(after)) {
        let change: f64 = a.0.iter().zip(b.0).map(|(&a, b)| f64::from(a.abs_diff(b))).sum();
        all += change;
        inside += if x || y { change } else { 0.0 };
    }
    inside / f64::max(all, 1.0)
}

/// Replays the expert's plan through the same steps as a policy's; also the states it comes by.
fn expert(sim: &mut LiberoSim) -> Simulated<(Found, Vec<[f64; 8]>)> {
    const HELP: &str = "compare `efference conformance tests/golden/libero`; the physics or the packs differ";
    let mut expert = Expert::new(ExpertOptions::default());
    let plan = expert.plan(sim, 0)?;
    let mut states = vec![sim.observation().policy_state()];
    let mut success = false;
    for _ in 0..plan.executed.len() + 20 {
        let action = expert.next_action(sim)?;
        let step = sim.step(&action)?;
        states.push(sim.observation().policy_state());
        if step.done {
            success = step.success;
            break;
        }
    }
    let steps = states.len() - 1;
    let found = if success {
        Ok(format!("solves {} in {steps} control steps", sim.pack().id()))
    } else {
        Err((format!("does not solve {} (plan: {})", sim.pack().id(), plan.ways.join(", ")), HELP))
    };
    Ok((found, states))
}

/// Actions lie in -1 to 1, and the gripper's number goes both ways.
fn actions(stats: &Quantiles) -> Found {
    const HELP: &str = "the checkpoint's statistics are of other data (min-max for q99, or another action space); train again";
    let wide = stats.q01.iter().zip(&stats.q99).position(|(low, high)| *low < -1.05 || *high > 1.05);
    if let Some(d) = wide {
        return Err((format!("number {d} goes from {} to {}", stats.q01[d], stats.q99[d]), HELP));
    }
    let still = stats.q01.iter().zip(&stats.q99).take(6).position(|(low, high)| high - low < 1e-3);
    if let Some(d) = still {
        return Err((format!("number {d} never changes: {} to {}", stats.q01[d], stats.q99[d]), HELP));
    }
    match (stats.q01.get(6), stats.q99.get(6)) {
        (Some(low), Some(high)) if *low < -0.5 && *high > 0.5 => {
            Ok(format!("all in -1 to 1, gripper {low:.1} to {high:.1}"))
        }
        _ => Err(("the gripper's number does not reach from -1 (open) to 1 (closed)".into(), HELP)),
    }
}

/// The states that the expert came by must lie inside the checkpoint's ranges, give or take half a range.
fn proprio(stats: &Quantiles, states: &[[f64; 8]]) -> Found {
    const HELP: &str =
        "the checkpoint saw another state: order, frame, or sign of the quaternion; train again";
    const NAMES: [&str; 8] = ["x", "y", "z", "turn x", "turn y", "turn z", "left finger", "right finger"];
    let mut worst = (1.0, 0);
    for d in 0..NAMES.len().min(stats.q01.len()) {
        let (low, high) = (stats.q01[d], stats.q99[d]);
        let room = 0.5 * (high - low) + 0.02;
        let inside = states.iter().filter(|s| s[d] > low - room && s[d] < high + room).count();
        let share = inside as f64 / states.len() as f64;
        if share < worst.0 {
            worst = (share, d);
        }
    }
    let (share, d) = worst;
    if share < 0.8 {
        let (low, high) = (stats.q01[d], stats.q99[d]);
        let what = format!(
            "`{}` is outside {low:.2} to {high:.2} in {} of the states",
            NAMES[d],
            percent(1.0 - share)
        );
        return Err((what, HELP));
    }
    Ok(format!("at least {} of the expert's states are inside every range", percent(share)))
}
