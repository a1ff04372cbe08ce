//! How the object moves by itself when it does the task.

use std::f64::consts::FRAC_PI_2;

use efference_geometry::{Isometry3, UnitQuaternion, Vector3};
use nalgebra::Translation3;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::goal::{self, DRAWER_GOAL_M};
use super::layout::standing;
use super::{FRAMES, FlowTask, Layout, Sizes};

/// Poses of the object, evenly spaced in time from the present to the end of the task.
#[derive(Clone, Debug, PartialEq)]
pub struct Motion {
    /// World from object at each of [`FRAMES`] frames.
    pub poses: Vec<Isometry3<f64>>,
}

impl Motion {
    /// The end.
    #[must_use]
    pub fn goal(&self) -> Isometry3<f64> {
        self.poses.last().copied().unwrap_or_else(Isometry3::identity)
    }

    /// Between frames, `t` in 0..=FRAMES - 1: positions on straight lines, rotations the short way.
    #[must_use]
    pub fn at(&self, t: f64) -> Isometry3<f64> {
        let last = self.poses.len().saturating_sub(1);
        let t = t.clamp(0.0, last as f64);
        let i = (t.floor() as usize).min(last.saturating_sub(1));
        match (self.poses.get(i), self.poses.get(i + 1)) {
            (Some(a), Some(b)) => between(a, b, t - i as f64),
            _ => self.goal(),
        }
    }
}

/// Straight line, short way.
fn between(a: &Isometry3<f64>, b: &Isometry3<f64>, s: f64) -> Isometry3<f64> {
    let place = a.translation.vector.lerp(&b.translation.vector, s);
    // Half a turn has two short ways: then the end, rather than none.
    let turn = a.rotation.try_slerp(&b.rotation, s, 1e-9).unwrap_or(b.rotation);
    Isometry3::from_parts(Translation3::from(place), turn)
}

/// Poses so far; the last one is where it goes on.
struct Path(Vec<Isometry3<f64>>);

impl Path {
    fn from(start: Isometry3<f64>) -> Self {
        Self(vec![start])
    }

    /// To a pose in some frames, on a line bent by `bow` in its middle.
    fn to(&mut self, end: &Isometry3<f64>, frames: usize, bow: Vector3<f64>) -> &mut Self {
        let start = self.0[self.0.len() - 1];
        for i in 1..=frames {
            let s = i as f64 / frames as f64;
            let mut pose = between(&start, end, s);
            pose.translation.vector += bow * (4.0 * s * (1.0 - s));
            self.0.push(pose);
        }
        self
    }
}

fn lifted(pose: &Isometry3<f64>, by: f64) -> Isometry3<f64> {
    Isometry3::translation(0.0, 0.0, by) * pose
}

/// A random motion from this pose; it may still touch something on its way.
pub(crate) fn draw(layout: &Layout, present: &Isometry3<f64>, rng: &mut ChaCha8Rng) -> Motion {
    let mut path = Path::from(*present);
    let rise = rng.random_range(0.0..=0.05);
    let bow = Vector3::new(rng.random_range(-0.03..=0.03), rng.random_range(-0.03..=0.03), rise);
    match layout.sizes {
        Sizes::Pour { .. } => {
            let end = goal::pouring(layout, present, pour_direction(layout, present, rng));
            // Upright beside the bowl first, a little back from where it tilts.
            let ahead = (end.rotation * Vector3::z()).xy().normalize();
            let place = end.translation.vector - Vector3::new(ahead.x, ahead.y, -0.3) * 0.03;
            let upright = UnitQuaternion::rotation_between(&(end.rotation * Vector3::z()), &Vector3::z());
            let upright = upright.map_or(present.rotation, |up| up * end.rotation);
            let beside = Isometry3::from_parts(Translation3::from(place), upright);
            let lift = lifted(present, (place.z - present.translation.z).max(0.03) * 0.7);
            path.to(&lift, 2, Vector3::zeros()).to(&beside, 3, bow).to(&end, 3, Vector3::zeros());
        }
        Sizes::Insert { half_length_m, holder_height_m, .. } => {
            let end = insert_goal(layout, present, rng);
            let above = lifted(&end, holder_height_m + half_length_m + 0.022 - end.translation.z);
            let lift = lifted(present, (0.11 - present.translation.z).max(0.05));
            path.to(&lift, 2, Vector3::zeros()).to(&above, 4, bow).to(&end, 2, Vector3::zeros());
        }
        Sizes::Hang { peg_length_m, half_thickness_m, .. } => {
            let share = rng.random_range(0.42..=0.58);
            let end = goal::hanging(layout, false, rng.random_range(-0.35..=0.35), share);
            let [base, tip] = goal::stand_peg(layout);
            let ahead = (tip - base).normalize();
            let off = (1.0 - share) * peg_length_m + half_thickness_m + 0.025;
            let before = Isometry3::from(Translation3::from(ahead * off)) * end;
            let lift = lifted(present, 0.12);
            path.to(&lift, 2, Vector3::zeros()).to(&before, 4, bow).to(&end, 2, Vector3::zeros());
        }
        Sizes::Drawer { .. } => {
            let open = layout.object.inv_mul(present).translation.y;
            let far = (DRAWER_GOAL_M + rng.random_range(-0.010..=0.012)).max(-open);
            let end = layout.object * Isometry3::translation(0.0, -far, 0.0);
            path.to(&end, FRAMES - 1, Vector3::zeros());
        }
        Sizes::Push { half_m, .. } => {
            let xy = layout.target.translation.vector.xy();
            let (_, _, yaw) = present.rotation.euler_angles();
            let end = standing(xy, half_m[2], yaw + rng.random_range(-0.5..=0.5));
            path.to(&end, FRAMES - 1, Vector3::new(bow.x, bow.y, 0.0));
        }
    }
    Motion { poses: path.0 }
}

/// From the left or the right of the bowl as the arm sees it, mostly from where the cup stands.
fn pour_direction(layout: &Layout, present: &Isometry3<f64>, rng: &mut ChaCha8Rng) -> f64 {
    let way = layout.target.translation.y - present.translation.y;
    let near = if way >= 0.0 { 1.0 } else { -1.0 };
    let side = if rng.random_bool(0.85) { near } else { -near };
    side * FRAC_PI_2 + rng.random_range(-0.35..=0.35)
}

/// One of the equal ends and sides, the easy ones mostly: little turning, and the end that goes in nearer to the arm.
fn insert_goal(layout: &Layout, present: &Isometry3<f64>, rng: &mut ChaCha8Rng) -> Isometry3<f64> {
    let goals = goal::goals(layout, present);
    let cost = |goal: &Isometry3<f64>| {
        let end_in_object = if (goal.rotation * Vector3::z()).z > 0.0 { -Vector3::z() } else { Vector3::z() };
        let away = (present.rotation * end_in_object).x;
        goal.rotation.angle_to(&present.rotation) + 0.8 * away.max(-0.3)
    };
    let costs: Vec<f64> = goals.iter().map(cost).collect();
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = costs.iter().map(|c| (-(c - least) / 0.08).exp()).collect();
    let mut left = rng.random_range(0.0..weights.iter().sum());
    for (goal, weight) in goals.iter().zip(&weights) {
        left -= weight;
        if left <= 0.0 {
            return *goal;
        }
    }
    goals.last().copied().unwrap_or(*present)
}

/// A generator of its own for each use of a seed.
pub(crate) fn generator(layout: &Layout, seed: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ layout.look);
    rng.set_stream(0x40 + layout.task as u64);
    rng
}

/// Whether the family's object slides on rails.
pub(crate) const fn slides(task: FlowTask) -> bool {
    matches!(task, FlowTask::Drawer)
}
