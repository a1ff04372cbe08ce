//! Where things stand at the start of an episode.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Things that are placed anew in each episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// 4.5 cm cube.
    RedCube,
    /// 6.5 x 6.5 x 4 cm block.
    BlueBlock,
    /// 6.4 cm high, 4.4 cm wide, upright.
    GreenCylinder,
    /// 7.2 x 5 x 4.5 cm block.
    YellowBlock,
    /// 15 x 15 cm inside, rims of 2.4 cm.
    Tray,
    /// Flat disc, 10 cm wide.
    Mark,
    /// With one drawer that opens to the robot's right.
    Cabinet,
    /// On a base.
    Button,
}

/// A rectangle of places, with a range of yaw angles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Middle, world frame, metres.
    pub center_m: [f64; 2],
    /// Half-sides along x and y, metres.
    pub half_m: [f64; 2],
    /// Yaw is uniform in plus or minus this, radians.
    pub yaw_rad: f64,
}

/// Where one thing stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Place {
    /// World frame, metres.
    pub xy_m: [f64; 2],
    /// About the vertical, radians.
    pub yaw_rad: f64,
}

/// A whole initial state.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Place of the point between the fingertips, world frame, metres.
    pub grip_m: [f64; 3],
    /// Place of each [`Thing`].
    pub places: [Place; Thing::COUNT],
    /// Places of the distractors; used only when the scene has them.
    pub distractors: [Place; 3],
}

impl Thing {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::RedCube,
        Self::BlueBlock,
        Self::GreenCylinder,
        Self::YellowBlock,
        Self::Tray,
        Self::Mark,
        Self::Cabinet,
        Self::Button,
    ];

    /// Its name in the scene.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RedCube => "red_cube",
            Self::BlueBlock => "blue_block",
            Self::GreenCylinder => "green_cylinder",
            Self::YellowBlock => "yellow_block",
            Self::Tray => "tray",
            Self::Mark => "mark",
            Self::Cabinet => "cabinet",
            Self::Button => "button",
        }
    }

    /// Where the tasks place it. The regions keep clear of each other, of the opened drawer and of the path on which
    /// the yellow block is pushed, and leave room for the fingers beside what is grasped.
    pub const fn region(self) -> Region {
        let (center_m, half_m, yaw_rad) = match self {
            Self::RedCube => ([-0.010, 0.065], [0.030, 0.035], 0.35),
            Self::BlueBlock => ([0.130, -0.020], [0.030, 0.030], 0.35),
            Self::GreenCylinder => ([-0.120, 0.015], [0.030, 0.035], std::f64::consts::PI),
            Self::YellowBlock => ([-0.060, -0.185], [0.030, 0.025], 0.25),
            Self::Tray => ([0.120, -0.210], [0.020, 0.020], 0.0),
            Self::Mark => ([-0.060, -0.310], [0.030, 0.015], 0.0),
            Self::Cabinet => ([0.120, 0.300], [0.015, 0.015], 0.0),
            Self::Button => ([-0.110, 0.230], [0.035, 0.030], 0.0),
        };
        Region { center_m, half_m, yaw_rad }
    }

    /// Half its height: where its centre is when it stands on the table. 0 for fixtures, whose frame is on the table.
    pub const fn rest_z_m(self) -> f64 {
        match self {
            Self::RedCube | Self::YellowBlock => 0.0225,
            Self::BlueBlock => 0.020,
            Self::GreenCylinder => 0.032,
            _ => 0.0,
        }
    }

    /// Radius of a circle around what it covers of the table (the cabinet's includes the closed drawer's handle).
    pub(crate) const fn radius_m(self) -> f64 {
        match self {
            Self::RedCube => 0.032,
            Self::BlueBlock => 0.046,
            Self::GreenCylinder => 0.022,
            Self::YellowBlock => 0.044,
            Self::Tray => 0.105,
            Self::Mark => 0.050,
            Self::Cabinet => 0.130,
            Self::Button => 0.057,
        }
    }
}

impl Region {
    fn sample(&self, rng: &mut ChaCha8Rng, wider_m: f64) -> Place {
        let mut offset = |half: f64| rng.random_range(-1.0..=1.0) * half;
        let [x, y] = self.center_m;
        let xy_m = [x + offset(self.half_m[0] + wider_m), y + offset(self.half_m[1] + wider_m)];
        Place { xy_m, yaw_rad: offset(self.yaw_rad) }
    }
}

/// Where the gripper starts: middle, and half-sides of the box around it, metres.
const GRIP_START: ([f64; 3], f64) = ([-0.06, 0.0, 0.22], 0.02);
/// How much wider than the tasks' regions play data places things, metres.
const PLAY_WIDER_M: f64 = 0.05;

impl Layout {
    /// An initial state of a task: everything uniform in its region.
    pub fn sample(rng: &mut ChaCha8Rng) -> Self {
        let (middle, half) = GRIP_START;
        let grip_m = middle.map(|v| v + rng.random_range(-half..=half));
        let places = Thing::ALL.map(|thing| thing.region().sample(rng, 0.0));
        let distractors = free_places(rng, &places);
        Self { grip_m, places, distractors }
    }

    /// A state for play data: regions wider by several centimetres on each side, the gripper anywhere above the table.
    pub fn sample_play(rng: &mut ChaCha8Rng) -> Self {
        let range = [(-0.16, 0.20), (-0.36, 0.30), (0.04, 0.28)];
        let grip_m = range.map(|(low, high)| rng.random_range(low..=high));
        let mut places: [Place; Thing::COUNT] = Default::default();
        for thing in Thing::ALL {
            let before = &Thing::ALL[..thing as usize];
            // Overlaps are rare with few tries left; a picture in which two things touch does no harm.
            for _ in 0..20 {
                let place = thing.region().sample(rng, PLAY_WIDER_M);
                places[thing as usize] = place;
                if before.iter().all(|b| {
                    distance(places[*b as usize].xy_m, place.xy_m) > 0.8 * (b.radius_m() + thing.radius_m())
                }) {
                    break;
                }
            }
        }
        let distractors = free_places(rng, &places);
        Self { grip_m, places, distractors }
    }
}

fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// Places beside everything else, out of the drawer's way, for what no task asks for.
fn free_places(rng: &mut ChaCha8Rng, places: &[Place; Thing::COUNT]) -> [Place; 3] {
    const RADIUS_M: f64 = 0.036;
    const FINGERS_M: f64 = 0.02;
    let mut out = [Place::default(); 3];
    for i in 0..out.len() {
        // Behind everything, seen from the robot, if no free place turns up.
        out[i] = Place { xy_m: [0.27, 0.09 * (i as f64 - 1.0)], yaw_rad: 0.0 };
        for _ in 0..200 {
            let xy_m = [rng.random_range(-0.20..=0.26), rng.random_range(-0.40..=0.38)];
            let yaw_rad = rng.random_range(-1.5..=1.5);
            let clear = Thing::ALL.iter().all(|thing| {
                distance(places[*thing as usize].xy_m, xy_m) > thing.radius_m() + RADIUS_M + FINGERS_M
            });
            let apart = out[..i].iter().all(|other| distance(other.xy_m, xy_m) > 2.0 * RADIUS_M);
            let [x, y] = places[Thing::Cabinet as usize].xy_m;
            let drawer = (xy_m[0] - x).abs() < 0.11 && (y - 0.30..y).contains(&xy_m[1]);
            let [yellow, mark] = [Thing::YellowBlock, Thing::Mark].map(|t| places[t as usize].xy_m);
            let push =
                (xy_m[0] - yellow[0]).abs() < 0.10 && (mark[1] - 0.09..yellow[1] + 0.13).contains(&xy_m[1]);
            if clear && apart && !drawer && !push {
                out[i] = Place { xy_m, yaw_rad };
                break;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn places_are_inside_their_regions_and_do_not_overlap() {
        for seed in 0..2000 {
            let layout = Layout::sample(&mut ChaCha8Rng::seed_from_u64(seed));
            for a in Thing::ALL {
                let (place, region) = (layout.places[a as usize], a.region());
                for axis in 0..2 {
                    let off = (place.xy_m[axis] - region.center_m[axis]).abs();
                    assert!(off <= region.half_m[axis] + 1e-12, "{a:?} {place:?}");
                }
                assert!(place.yaw_rad.abs() <= region.yaw_rad);
                for b in Thing::ALL.into_iter().filter(|b| *b < a) {
                    // The tray and the cabinet are squares with air at the corners of their circles.
                    let slack = if [a, b].iter().any(|t| matches!(t, Thing::Tray | Thing::Cabinet)) {
                        0.85
                    } else {
                        1.0
                    };
                    let gap = distance(place.xy_m, layout.places[b as usize].xy_m)
                        - slack * (a.radius_m() + b.radius_m());
                    let push = [a, b].contains(&Thing::YellowBlock) && [a, b].contains(&Thing::Mark);
                    assert!(gap > 0.0 || push, "{a:?} and {b:?} overlap by {gap} at seed {seed}");
                }
            }
        }
    }

    #[test]
    fn block_never_starts_on_the_mark() {
        for seed in 0..2000 {
            let places = Layout::sample(&mut ChaCha8Rng::seed_from_u64(seed)).places;
            let gap = distance(places[Thing::YellowBlock as usize].xy_m, places[Thing::Mark as usize].xy_m);
            assert!(gap > 0.07, "{gap}");
        }
    }
}
