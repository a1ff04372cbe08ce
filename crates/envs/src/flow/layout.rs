//! What an episode is made of: sizes, places, colours, words; a function of family and seed.

use std::f64::consts::PI;

use efference_geometry::{Isometry3, Point3, UnitQuaternion, Vector3};
use nalgebra::{Translation3, Vector2};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::words::{self, COLOURS, Colour};
use super::{FlowTask, camera};

/// Sizes of the object and of what it is moved to, metres and radians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sizes {
    /// A cup and a bowl.
    Pour {
        /// Outer radius of the cup.
        radius_m: f64,
        /// Of the cup.
        height_m: f64,
        /// Of the bowl's rim.
        bowl_radius_m: f64,
        /// Of the bowl.
        bowl_height_m: f64,
    },
    /// A square peg and a holder.
    Insert {
        /// Half the peg's side.
        half_width_m: f64,
        /// Half the peg's length.
        half_length_m: f64,
        /// Half the inner side of the holder.
        holder_half_m: f64,
        /// Where the holder's funnel begins.
        holder_height_m: f64,
    },
    /// A ring and a peg on a stand.
    Hang {
        /// Inner radius of the ring.
        hole_radius_m: f64,
        /// Half the ring's thickness along the hole.
        half_thickness_m: f64,
        /// Half the length of the tab.
        tab_half_m: f64,
        /// Height at which the peg leaves the stand.
        peg_height_m: f64,
        /// From the middle of the stand's pole to the tip.
        peg_length_m: f64,
        /// How much the peg points upwards.
        peg_tilt_rad: f64,
    },
    /// A cabinet with a drawer.
    Drawer {
        /// Half the cabinet's width.
        half_width_m: f64,
        /// Of the cabinet.
        height_m: f64,
        /// From the middle of the drawer's front to the middle of the handle.
        handle_reach_m: f64,
    },
    /// A block and a mark.
    Push {
        /// Half sides of the block.
        half_m: [f64; 3],
        /// Of the mark.
        mark_radius_m: f64,
    },
}

/// A thing that only stands there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bystander {
    /// Where it stands, world frame, metres; `None` where it is absent.
    pub xy_m: Option<[f64; 2]>,
    /// About the vertical, radians.
    pub yaw_rad: f64,
    /// Half sides (box), radius and half height (can), radius (ball), metres.
    pub size_m: [f64; 3],
    /// Each in 0..=1.
    pub rgb: [f32; 3],
}

/// A whole episode's start, the looks included; everything but the camera, which must see the object.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Family.
    pub task: FlowTask,
    /// Seed that it was drawn from.
    pub seed: u64,
    /// Of object and target.
    pub sizes: Sizes,
    /// World from object at the start.
    pub object: Isometry3<f64>,
    /// World from target (or cabinet): on the table, turned about the vertical.
    pub target: Isometry3<f64>,
    /// Box, can, ball.
    pub bystanders: [Bystander; 3],
    /// Name and colour of the object.
    pub object_colour: Colour,
    /// Name and colour of the target.
    pub target_colour: Colour,
    /// Of details on the object.
    pub accent_rgb: [f32; 3],
    /// Of the table.
    pub table_rgb: [f32; 3],
    /// What to do, in lower case.
    pub instruction: String,
    /// Where the gripper starts, pointing down, world frame, metres.
    pub grip_m: [f64; 3],
    /// Number of the random stream, for what is drawn later.
    pub(crate) look: u64,
}

/// A pose on the table.
pub(crate) fn standing(xy: Vector2<f64>, z: f64, yaw_rad: f64) -> Isometry3<f64> {
    let rotation = UnitQuaternion::from_axis_angle(&Vector3::z_axis(), yaw_rad);
    Isometry3::from_parts(Translation3::new(xy.x, xy.y, z), rotation)
}

impl Layout {
    /// The episode's start that belongs to this seed.
    #[must_use]
    pub fn sample(task: FlowTask, seed: u64) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        // Families do not share scenes.
        rng.set_stream(0x10 + task as u64);
        let side = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
        let (sizes, object, target) = match task {
            FlowTask::Pour => pour(rng, side),
            FlowTask::Insert => insert(rng, side),
            FlowTask::Hang => hang(rng, side),
            FlowTask::Drawer => drawer(rng, side),
            FlowTask::Push => push(rng, side),
        };
        let mut colours = COLOURS;
        colours.shuffle(rng);
        let [object_colour, target_colour, accent, others @ ..] = colours;
        let wood = rng.random_range(0.0..=1.0f32);
        let bright = rng.random_range(0.80..=1.08f32);
        let table_rgb = [0.70 - 0.06 * wood, 0.64 - 0.02 * wood, 0.56 + 0.10 * wood].map(|c| c * bright);
        let object_word = object_colour.0;
        let instruction = words::instruction(task, seed, object_word, target_colour.0, rng);
        let middle = [-0.20, 0.0, 0.30];
        let grip_m = middle.map(|v| v + rng.random_range(-0.02..=0.02));
        let mut layout = Self {
            task,
            seed,
            sizes,
            object,
            target,
            bystanders: [Bystander { xy_m: None, yaw_rad: 0.0, size_m: [0.02; 3], rgb: [0.5; 3] }; 3],
            object_colour,
            target_colour,
            accent_rgb: accent.1,
            table_rgb,
            instruction,
            grip_m,
            look: rng.random(),
        };
        layout.place_bystanders(rng, &others);
        layout
    }

    /// Away from object, target and the way between them.
    fn place_bystanders(&mut self, rng: &mut ChaCha8Rng, colours: &[Colour]) {
        let mut taken: Vec<(Vector2<f64>, f64)> = Vec::new();
        let (from, to) = (self.object.translation.vector.xy(), self.target.translation.vector.xy());
        for i in 0..=4 {
            taken.push((from.lerp(&to, f64::from(i) / 4.0), 0.15));
        }
        if self.task == FlowTask::Drawer {
            // The drawer comes out, and the gripper before it.
            let out = self.target.rotation * Vector3::new(0.0, -0.22, 0.0);
            taken.push((to + out.xy(), 0.14));
        }
        for (bystander, colour) in self.bystanders.iter_mut().zip(colours) {
            let wanted = rng.random_bool(0.6);
            let size = rng.random_range(0.018..=0.032);
            bystander.size_m = [size, rng.random_range(0.018..=0.034), rng.random_range(0.018..=0.05)];
            bystander.yaw_rad = rng.random_range(-PI..=PI);
            bystander.rgb = colour.1.map(|c| 0.25 * 0.6 + 0.75 * c);
            for _ in 0..if wanted { 30 } else { 0 } {
                let xy = Vector2::new(rng.random_range(-0.12..=0.36), rng.random_range(-0.42..=0.42));
                if taken.iter().all(|(there, radius)| (there - xy).norm() > *radius) {
                    bystander.xy_m = Some([xy.x, xy.y]);
                    taken.push((xy, 0.09));
                    break;
                }
            }
        }
    }

    /// A camera, the `attempt`-th that this seed gives.
    pub(crate) fn camera(&self, attempt: u64) -> camera::Place {
        let rng = &mut ChaCha8Rng::seed_from_u64(self.look);
        rng.set_stream(1 + attempt);
        camera::Place::sample(self, rng)
    }

    /// Points around which the object will end, world frame: what a picture should have room for.
    pub(crate) fn ends(&self) -> Vec<Point3<f64>> {
        let at = |x: f64, y: f64, z: f64| self.target * Point3::new(x, y, z);
        match self.sizes {
            Sizes::Pour { .. } => {
                let up = if self.object.translation.y < self.target.translation.y { -0.13 } else { 0.13 };
                vec![at(0.0, 0.0, 0.0), at(0.0, 0.08, 0.05), at(0.0, -0.08, 0.05), at(0.0, up, 0.20)]
            }
            Sizes::Insert { half_length_m, .. } => vec![at(0.0, 0.0, 0.0), at(0.0, 0.0, 2.4 * half_length_m)],
            Sizes::Hang { peg_height_m, peg_length_m, .. } => vec![
                at(0.0, 0.0, 0.0),
                at(0.0, 0.0, peg_height_m + 0.02),
                at(peg_length_m, 0.0, peg_height_m + 0.04),
            ],
            Sizes::Drawer { .. } => vec![at(0.07, -0.24, 0.0), at(-0.07, -0.24, 0.0), at(0.0, 0.07, 0.1)],
            Sizes::Push { .. } => vec![at(0.06, 0.0, 0.0), at(-0.06, 0.0, 0.0)],
        }
    }

    /// World from the bystander, by its size.
    pub(crate) fn bystander_pose(&self, index: usize) -> Isometry3<f64> {
        let Bystander { xy_m, yaw_rad, size_m, .. } = self.bystanders[index];
        let height = [size_m[2], size_m[1], size_m[0]][index];
        match xy_m {
            Some([x, y]) => standing(Vector2::new(x, y), height, yaw_rad),
            // Out of sight, inside the table.
            None => standing(Vector2::new(0.1 * index as f64, 0.0), -0.4, 0.0),
        }
    }
}

fn uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    rng.random_range(low..=high)
}

/// Object on one side of the middle, target on the other.
fn apart(rng: &mut ChaCha8Rng, side: f64, object_x: [f64; 2], target_x: [f64; 2]) -> [Vector2<f64>; 2] {
    let object = Vector2::new(uniform(rng, object_x[0], object_x[1]), side * uniform(rng, 0.05, 0.17));
    let target = Vector2::new(uniform(rng, target_x[0], target_x[1]), -side * uniform(rng, 0.08, 0.18));
    [object, target]
}

type Draft = (Sizes, Isometry3<f64>, Isometry3<f64>);

fn pour(rng: &mut ChaCha8Rng, side: f64) -> Draft {
    let radius_m = uniform(rng, 0.028, 0.036);
    let height_m = uniform(rng, 0.085, 0.115);
    let bowl_radius_m = uniform(rng, 0.062, 0.085);
    let bowl_height_m = uniform(rng, 0.038, 0.055);
    let [object, target] = apart(rng, side, [-0.04, 0.14], [-0.02, 0.14]);
    (
        Sizes::Pour { radius_m, height_m, bowl_radius_m, bowl_height_m },
        standing(object, 0.5 * height_m, uniform(rng, -PI, PI)),
        standing(target, 0.0, 0.0),
    )
}

fn insert(rng: &mut ChaCha8Rng, side: f64) -> Draft {
    let half_width_m = uniform(rng, 0.011, 0.0145);
    let half_length_m = uniform(rng, 0.065, 0.08);
    let holder_half_m = half_width_m + uniform(rng, 0.0028, 0.0035);
    let holder_height_m = uniform(rng, 0.045, 0.058);
    let [object, target] = apart(rng, side, [-0.04, 0.14], [0.02, 0.15]);
    let yaw = uniform(rng, -1.0, 1.0);
    let start = if rng.random_bool(0.7) {
        // Lying, z roughly along the world's x.
        let tip_over = UnitQuaternion::from_axis_angle(&Vector3::y_axis(), 0.5 * PI);
        let quarter = f64::from(rng.random_range(0..4)) * 0.5 * PI;
        let roll = UnitQuaternion::from_axis_angle(&Vector3::z_axis(), quarter);
        standing(object, half_width_m, yaw + if rng.random_bool(0.5) { PI } else { 0.0 }) * tip_over * roll
    } else {
        standing(object, half_length_m, yaw)
    };
    (
        Sizes::Insert { half_width_m, half_length_m, holder_half_m, holder_height_m },
        start,
        standing(target, 0.0, uniform(rng, -0.25 * PI, 0.25 * PI)),
    )
}

fn hang(rng: &mut ChaCha8Rng, side: f64) -> Draft {
    let hole_radius_m = uniform(rng, 0.024, 0.031);
    let half_thickness_m = uniform(rng, 0.0075, 0.0095);
    let tab_half_m = uniform(rng, 0.026, 0.032);
    let peg_height_m = uniform(rng, 0.185, 0.23);
    let peg_length_m = uniform(rng, 0.085, 0.10);
    let peg_tilt_rad = uniform(rng, 0.12, 0.25);
    let [object, target] = apart(rng, side, [-0.04, 0.10], [0.14, 0.20]);
    // The tab points to the arm, the stand's peg too; both roughly.
    let start = standing(object, half_thickness_m, PI + uniform(rng, -1.0, 1.0));
    let to_arm = (-target.y).atan2(-0.55 - target.x);
    (
        Sizes::Hang { hole_radius_m, half_thickness_m, tab_half_m, peg_height_m, peg_length_m, peg_tilt_rad },
        start,
        standing(target, 0.0, to_arm + uniform(rng, -0.4, 0.4)),
    )
}

fn drawer(rng: &mut ChaCha8Rng, side: f64) -> Draft {
    let half_width_m = uniform(rng, 0.062, 0.082);
    let height_m = uniform(rng, 0.085, 0.11);
    // Room for an open finger behind the bar.
    let handle_reach_m = uniform(rng, 0.066, 0.072);
    let at = Vector2::new(uniform(rng, 0.02, 0.15), side * uniform(rng, 0.20, 0.27));
    // Opens towards the middle of the table.
    let yaw = if side > 0.0 { 0.0 } else { PI } + uniform(rng, -0.40, 0.40);
    let cabinet = standing(at, 0.0, yaw);
    (Sizes::Drawer { half_width_m, height_m, handle_reach_m }, cabinet, cabinet)
}

fn push(rng: &mut ChaCha8Rng, side: f64) -> Draft {
    let half_m = [uniform(rng, 0.026, 0.042), uniform(rng, 0.02, 0.03), uniform(rng, 0.016, 0.026)];
    let mark_radius_m = uniform(rng, 0.042, 0.058);
    let [object, target] = apart(rng, side, [-0.05, 0.16], [-0.05, 0.18]);
    (
        Sizes::Push { half_m, mark_radius_m },
        standing(object, half_m[2], uniform(rng, -PI, PI)),
        standing(target, 0.0, 0.0),
    )
}
