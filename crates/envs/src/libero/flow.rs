//! Flows of LIBERO's objects: what a task asks to move, moved by itself.
//!
//! No robot acts: the object of one of the goal's facts is lifted, carried and put down where the fact holds, or a drawer,
//! door or knob is turned to where it holds; poses are written into a copy of the simulation. Points are on what the
//! camera sees of the object, found by rays through the pixels of its mask, so they lie on the drawn meshes exactly.

use std::cell::RefCell;
use std::sync::Arc;

use efference_data::flow::{FlowEpisode, FlowSource};
use efference_geometry::{Camera, Flow3d, Frame, Isometry3, Point3, UnitQuaternion, Vector3};
use efference_mujoco::{Data, JointKind, Kind};
use nalgebra::{Matrix3, Rotation3, Translation3};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::facts::Fact;
use super::meta::{Comparison, Threshold};
use super::{IDLE_ACTION, IDLE_STEPS, LiberoEnv, LiberoSim, Pack, Profile, Result, SimOptions, train_seed};
use crate::flow::{FRAMES, POINTS, Recipe};

const CAMERA: &str = "agentview";
/// Geoms that are drawn: LIBERO's collision shapes are of group 0.
const DRAWN: [bool; 6] = [false, true, true, false, false, false];
/// How much nearer than a point a ray may end and still see it, metres.
const SEEN_M: f64 = 0.003;
/// How far the depth picture may be from a point that counts as seen in it, metres.
const DEPTH_M: f64 = 0.004;
/// How deep a motion may go into something, metres: these meshes' collision shapes are coarse.
const TOUCH_M: f64 = 0.006;
/// Overlap at which something that is put down has arrived, metres.
const REST_M: f64 = 0.0005;
/// Motions that are drawn until one is free.
const ATTEMPTS: usize = 12;

/// Makes flows from the scenes of one pack.
pub struct LiberoFlow {
    sim: LiberoSim,
    /// Place and orientation (wxyz) of the benchmark's camera.
    camera: ([f64; 3], [f64; 4]),
}

/// Flows from several packs, in turn.
pub struct LiberoRecipe {
    /// At least one.
    pub packs: Vec<Arc<Pack>>,
    /// Seed of the first episode of each pack.
    pub first: u64,
    /// Side of the square pictures, 16 to 2048.
    pub image_size: usize,
}

/// Episodes of one pack in a row: loading a simulation takes as long as some episodes.
const ROW: u64 = 8;
/// A simulation and its meshes take some hundred megabytes.
const SIMULATIONS_PER_THREAD: usize = 3;

type Key = (String, usize);

thread_local! {
    /// The one used last is at the end.
    static FLOWS: RefCell<Vec<(Key, LiberoFlow)>> = const { RefCell::new(Vec::new()) };
}

impl Recipe for LiberoRecipe {
    fn episode(&self, index: u64) -> crate::Result<FlowEpisode> {
        let packs = self.packs.len() as u64;
        let row = index / ROW;
        let pack = self.packs.get(row.checked_rem(packs).unwrap_or(0) as usize);
        let pack = pack.ok_or_else(|| crate::Error::Option {
            field: "packs",
            expected: "at least one task pack",
            got: "none".to_owned(),
        })?;
        let seed = train_seed(self.first + row / packs * ROW + index % ROW);
        let key = (pack.id(), self.image_size);
        FLOWS.with_borrow_mut(|flows| {
            match flows.iter().position(|(there, _)| *there == key) {
                Some(place) => {
                    let entry = flows.remove(place);
                    flows.push(entry);
                }
                None => {
                    if flows.len() >= SIMULATIONS_PER_THREAD {
                        flows.remove(0);
                    }
                    flows.push((key, LiberoFlow::new(pack, self.image_size)?));
                }
            }
            let none = crate::Error::NoMotion { task: "libero", seed };
            // Just pushed.
            let Some((_, flow)) = flows.last_mut() else { return Err(none) };
            flow.episode(seed)?.ok_or(none)
        })
    }
}

/// What moves.
enum Mover {
    /// A loose object: its root body, its free joint, the fact that is to hold.
    Loose { thing: usize, joint: usize, fact: usize },
    /// A part of a fixture: joint and the positions from which and to which it goes.
    Part { joint: usize, from: f64, to: f64 },
}

impl LiberoFlow {
    /// A simulation of the task for pictures of this size.
    ///
    /// # Errors
    /// As [`LiberoSim::new`].
    pub fn new(pack: &Arc<Pack>, image_size: usize) -> Result<Self> {
        let options = SimOptions { image_size, profile: Profile::Fast, ..SimOptions::default() };
        let sim = LiberoSim::new(pack, &options)?;
        let camera = sim.model().camera_id(CAMERA)?;
        let place = (sim.model().camera_pos(camera), sim.model().camera_quat(camera));
        Ok(Self { sim, camera: place })
    }

    /// The episode of a seed: an initial state ([`LiberoEnv::start_of`]), a camera near the benchmark's, a fact of the goal
    /// that does not hold yet, a motion. `None` where nothing can be moved freely, or too little of it is seen.
    ///
    /// # Errors
    /// The simulator refused, or there is no offscreen rendering.
    pub fn episode(&mut self, seed: u64) -> Result<Option<FlowEpisode>> {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(0x4c);
        self.settle(seed)?;
        self.aim(rng)?;
        let movers = self.movers()?;
        if movers.is_empty() {
            return Ok(None);
        }
        let mover = &movers[rng.random_range(0..movers.len())];
        let body = match mover {
            Mover::Loose { thing, .. } => self.sim.scene.things[*thing].body,
            Mover::Part { joint, .. } => self.sim.model().joint_body(*joint),
        };
        let mut scratch = self.sim.data.try_clone()?;
        let Some(path) = self.path(mover, &mut scratch, rng)? else { return Ok(None) };
        self.record(seed, body, mover, &path, &mut scratch, rng)
    }

    fn settle(&mut self, seed: u64) -> Result<()> {
        let pack = Arc::clone(self.sim.pack());
        let (state, reset) = LiberoEnv::start_of(&pack, seed);
        self.sim.reset(reset)?;
        if let Some(state) = pack.init_state(state) {
            self.sim.set_init_state(state)?;
        }
        for _ in 0..IDLE_STEPS {
            self.sim.step(&IDLE_ACTION)?;
        }
        // Pictures, poses and positions of one instant.
        self.sim.data.forward()?;
        let now = self.sim.data.qpos().to_vec();
        self.sim.pose_qpos.copy_from_slice(&now);
        self.sim.seen_qpos.copy_from_slice(&now);
        Ok(())
    }

    /// The benchmark's camera, swung by up to 15 degrees around what it looks at, and a little nearer or farther.
    fn aim(&mut self, rng: &mut ChaCha8Rng) -> Result<()> {
        let (pos, [w, x, y, z]) = self.camera;
        let turn = UnitQuaternion::from_quaternion(nalgebra::Quaternion::new(w, x, y, z));
        let pos = Vector3::from(pos);
        let ahead = turn * -Vector3::z();
        // A metre ahead is about the table's middle.
        let middle = pos + ahead;
        let swing = UnitQuaternion::from_scaled_axis(Vector3::z() * rng.random_range(-0.26..=0.26))
            * UnitQuaternion::from_scaled_axis(turn * Vector3::x() * rng.random_range(-0.12..=0.08));
        let pos = middle + swing * (pos - middle) * rng.random_range(0.85..=1.05);
        let q = swing * turn;
        let camera = self.sim.model().camera_id(CAMERA)?;
        let model = self.sim.model_mut()?;
        model.set_camera_pos(camera, pos.into());
        model.set_camera_quat(camera, [q.w, q.i, q.j, q.k]);
        self.sim.data.forward()?;
        Ok(())
    }

    /// Facts of the goal that do not hold, and what has to move for them.
    fn movers(&self) -> Result<Vec<Mover>> {
        let (scene, data) = (&self.sim.scene, &self.sim.data);
        let model = data.model();
        let mut all = Vec::new();
        for (number, fact) in scene.goal.iter().enumerate().filter(|(_, fact)| !fact.holds(scene, data)) {
            match fact {
                Fact::OnThing { top: thing, .. }
                | Fact::OnPlace { top: thing, .. }
                | Fact::In { thing, .. } => {
                    let body = scene.things[*thing].body;
                    let free = |joint: &usize| {
                        model.joint_body(*joint) == body && model.joint_kind(*joint) == JointKind::Free
                    };
                    if let Some(joint) = (0..model.count(Kind::Joint)).find(free) {
                        all.push(Mover::Loose { thing: *thing, joint, fact: number });
                    }
                }
                Fact::Joints { adrs, threshold } => {
                    let Some(adr) = adrs.first() else { continue };
                    let at = |joint: &usize| model.joint_qpos(*joint).start == *adr;
                    if let Some(joint) = (0..model.count(Kind::Joint)).find(at) {
                        let from = data.qpos()[*adr];
                        if let Some(to) = beyond(threshold, model.joint_limits(joint)) {
                            all.push(Mover::Part { joint, from, to });
                        }
                    }
                }
                Fact::Constant(_) | Fact::Up { .. } => {}
            }
        }
        Ok(all)
    }

    /// Poses of the object, or positions of the joint, at each frame.
    fn path(&self, mover: &Mover, scratch: &mut Data, rng: &mut ChaCha8Rng) -> Result<Option<Vec<Step>>> {
        match mover {
            Mover::Part { from, to, .. } => {
                let last = (FRAMES - 1) as f64;
                let at = |t: usize| Step::Joint(from + (to - from) * t as f64 / last);
                Ok(Some((0..FRAMES).map(at).collect()))
            }
            Mover::Loose { thing, joint, fact } => {
                for _ in 0..ATTEMPTS {
                    let Some(poses) = self.carry(*thing, *joint, *fact, scratch, rng)? else { continue };
                    return Ok(Some(poses.into_iter().map(Step::Pose).collect()));
                }
                Ok(None)
            }
        }
    }

    /// Up, over, down; `None` when something is in the way or the fact does not hold at the end.
    fn carry(
        &self,
        thing: usize,
        joint: usize,
        fact: usize,
        scratch: &mut Data,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<Vec<Isometry3<f64>>>> {
        let (scene, data) = (&self.sim.scene, &self.sim.data);
        let body = scene.things[thing].body;
        let start = body_pose(data, body);
        let target: Vector3<f64> = match &scene.goal[fact] {
            Fact::OnThing { bottom, .. } => data.body_pos(scene.things[*bottom].body).into(),
            Fact::OnPlace { place, .. } | Fact::In { place, .. } => {
                data.site_pos(scene.places[*place].site).into()
            }
            _ => return Ok(None),
        };
        let mut shake = |far: f64| rng.random_range(-far..=far);
        let xy = target.xy() + nalgebra::Vector2::new(shake(0.012), shake(0.012));
        let yaw = UnitQuaternion::from_scaled_axis(Vector3::z() * shake(0.5));
        let (rise, bow) = (shake(0.04), [shake(0.04), shake(0.04)]);
        let high = start.translation.z.max(target.z) + 0.16 + rise;
        let turned = yaw * start.rotation;
        let at = |z: f64| Isometry3::from_parts(Translation3::new(xy.x, xy.y, z), turned);
        // Down until it rests: coarse steps, then halves.
        let mut deep = |z: f64| -> Result<f64> {
            place(scratch, joint, &at(z))?;
            scratch.forward_position()?;
            Ok(overlap(&self.sim, scratch, body))
        };
        let (mut free, step) = (high, 0.01);
        if deep(free)? > REST_M {
            return Ok(None);
        }
        while free > target.z - 0.15 && deep(free - step)? <= REST_M {
            free -= step;
        }
        let mut blocked = free - step;
        for _ in 0..6 {
            let middle = 0.5 * (free + blocked);
            if deep(middle)? > REST_M { blocked = middle } else { free = middle }
        }
        // At the end it touches, which some facts ask for.
        deep(blocked)?;
        if !scene.goal[fact].holds(scene, scratch) {
            return Ok(None);
        }
        let end = at(free);
        let lifted = Isometry3::from_parts(
            Translation3::new(start.translation.x, start.translation.y, high),
            start.rotation,
        );
        let above = at(high);
        let mut poses = vec![start];
        for (from, to, frames, bend) in
            [(&start, &lifted, 2, 0.0), (&lifted, &above, 3, 1.0), (&above, &end, 3, 0.0)]
        {
            for i in 1..=frames {
                let s = f64::from(i) / f64::from(frames);
                let way = bend * 4.0 * s * (1.0 - s);
                let at = from.translation.vector.lerp(&to.translation.vector, s)
                    + Vector3::new(bow[0], bow[1], 0.0) * way;
                let turn = from.rotation.slerp(&to.rotation, s);
                poses.push(Isometry3::from_parts(Translation3::from(at), turn));
            }
        }
        // Out of the place where it stands it may touch its neighbours; from then on it may not.
        for pair in poses[1..].windows(2) {
            for s in [0.0, 0.5, 1.0] {
                let at = pair[0].lerp_slerp(&pair[1], s);
                place(scratch, joint, &at)?;
                scratch.forward_position()?;
                if overlap(&self.sim, scratch, body) > TOUCH_M {
                    return Ok(None);
                }
            }
        }
        Ok(Some(poses))
    }

    fn record(
        &mut self,
        seed: u64,
        body: usize,
        mover: &Mover,
        path: &[Step],
        scratch: &mut Data,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<FlowEpisode>> {
        let side = self.sim.options().image_size;
        let image = self.sim.render(CAMERA)?;
        let (mut depth_m, mut ids) = (vec![0.0; side * side], vec![0; side * side]);
        self.sim.render_depth(CAMERA, &mut depth_m)?;
        self.sim.render_segmentation(CAMERA, &mut ids)?;
        let (model, data) = (self.sim.data.model(), &self.sim.data);
        let mut mask = vec![0; side * side];
        for ((mask, depth), id) in mask.iter_mut().zip(&mut depth_m).zip(&ids) {
            match usize::try_from(*id) {
                Ok(geom) if part_of(&self.sim, model.geom_body(geom), body) => *mask = 255,
                Ok(_) => {}
                Err(_) => *depth = 0.0,
            }
        }
        let id = model.camera_id(CAMERA)?;
        let fovy = model.camera_fovy_deg(id);
        let camera = Camera::from_mujoco(data.camera_pos(id), data.camera_mat(id), fovy, side, side)?;
        let eye = camera.world_from_camera.translation.vector;
        // Rays through the mask's pixels.
        let pixels: Vec<usize> = (0..mask.len()).filter(|i| mask[*i] != 0).collect();
        if pixels.len() < 16 {
            return Ok(None);
        }
        let mut points = Vec::with_capacity(POINTS);
        for _ in 0..40 * POINTS {
            if points.len() == POINTS {
                break;
            }
            let pixel = pixels[rng.random_range(0..pixels.len())];
            let (u, v) =
                ((pixel % side) as f64 + rng.random::<f64>(), (pixel / side) as f64 + rng.random::<f64>());
            let along = camera.lift(u, v, 1.0).coords - eye;
            let Some((depth, geom)) = data.ray_among(eye.into(), along.into(), DRAWN)? else { continue };
            let agrees = (depth - f64::from(depth_m[pixel])).abs() < DEPTH_M;
            if agrees && part_of(&self.sim, model.geom_body(geom), body) {
                points.push(Point3::from(eye + along * depth));
            }
        }
        if points.len() < POINTS {
            return Ok(None);
        }
        let start = body_pose(data, body);
        let points: Vec<_> = points.iter().map(|p| start.inverse_transform_point(p)).collect();
        let (mut poses, mut positions, mut visibility) = (Vec::new(), Vec::new(), Vec::new());
        for step in path {
            match (mover, step) {
                (Mover::Loose { joint, .. }, Step::Pose(pose)) => place(scratch, *joint, pose)?,
                (Mover::Part { joint, .. }, Step::Joint(value)) => {
                    let at = scratch.model().joint_qpos(*joint).start;
                    scratch.qpos_mut()[at] = *value;
                }
                _ => {}
            }
            scratch.kinematics()?;
            let pose = body_pose(scratch, body);
            for point in &points {
                let point = pose * point;
                let along = point.coords - eye;
                let hit = scratch.ray_among(eye.into(), along.into(), DRAWN)?;
                let seen = hit.is_none_or(|(share, _)| (1.0 - share) * along.norm() < SEEN_M);
                positions.push(point);
                visibility.push(f32::from(u8::from(seen)));
            }
            poses.push(pose);
        }
        let flow = Flow3d::new(Frame::World, points.len(), positions, visibility)?;
        Ok(Some(FlowEpisode {
            instruction: self.sim.pack().language().to_lowercase(),
            task: self.sim.pack().id(),
            source: FlowSource::Libero,
            seed,
            camera,
            image,
            depth_m,
            mask,
            flow,
            poses,
        }))
    }
}

enum Step {
    Pose(Isometry3<f64>),
    Joint(f64),
}

/// A position that meets the threshold with a margin of a tenth of the joint's range.
fn beyond(threshold: &Threshold, limits: Option<[f64; 2]>) -> Option<f64> {
    let [low, high] = limits?;
    let margin = 0.1 * (high - low);
    let to = match threshold.cmp {
        Comparison::Gt | Comparison::Ge => (threshold.thr + margin).min(high),
        Comparison::Lt | Comparison::Le => (threshold.thr - margin).max(low),
    };
    threshold.holds([to]).then_some(to)
}

fn body_pose(data: &Data, body: usize) -> Isometry3<f64> {
    let rotation = Rotation3::from_matrix_unchecked(Matrix3::from_row_slice(&data.body_mat(body)));
    let rotation = UnitQuaternion::from_rotation_matrix(&rotation);
    Isometry3::from_parts(Translation3::from(data.body_pos(body)), rotation)
}

fn place(data: &mut Data, joint: usize, pose: &Isometry3<f64>) -> Result<()> {
    let q = pose.rotation;
    Ok(data.place_free_joint(joint, pose.translation.vector.into(), [q.w, q.i, q.j, q.k])?)
}

/// Whether a body hangs on another, or is it.
fn part_of(sim: &LiberoSim, body: usize, root: usize) -> bool {
    let model = sim.model();
    let mut at = body;
    while at != root && at != 0 {
        at = model.body_parent(at);
    }
    at == root
}

/// How deep the body is inside anything but the robot, metres.
fn overlap(sim: &LiberoSim, data: &Data, body: usize) -> f64 {
    let model = data.model();
    let robot = |geom: usize| {
        let name = model.name(Kind::Body, model.geom_body(geom)).unwrap_or_default();
        name.starts_with("robot0") || name.starts_with("gripper0")
    };
    let mut worst: f64 = 0.0;
    for contact in data.contacts() {
        let [a, b] = contact.geoms;
        let mine = contact.geoms.map(|geom| part_of(sim, model.geom_body(geom), body));
        if mine[0] != mine[1] && !robot(a) && !robot(b) {
            worst = worst.max(-contact.dist_m);
        }
    }
    worst
}
