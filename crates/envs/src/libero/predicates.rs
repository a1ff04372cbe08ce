//! Success predicates as functions of plain numbers.
//!
//! Oddities are the original's and stay: the rotation is applied to the offset instead of its transpose in [`on_site`],
//! [`in_box`] grows with the site's tilt, and drawers count as closed only beyond their stop. Lengths are metres, the
//! world frame's z points up, matrices are row-major.

use super::meta::{Comparison, Quantifier, Threshold};

/// How far apart the centres of two things may be, seen from above, for the one to stand on the other.
const ON_OBJECT_M: f64 = 0.03;
/// How far below a site's upper face a thing's centre may be to be on it.
const ON_SITE_BELOW_M: f64 = 0.005;
/// How far above that face.
const ON_SITE_ABOVE_M: f64 = 0.10;
/// How far below the lower face of a site a thing's centre may be to be in it.
const IN_SITE_BELOW_M: f64 = 0.01;
/// Above this height a thing counts as lifted.
const UP_M: f64 = 1.0;

fn turn(mat: &[f64; 9], v: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|i| mat[3 * i] * v[0] + mat[3 * i + 1] * v[1] + mat[3 * i + 2] * v[2])
}

/// `In(thing, site)`: the centre lies inside the axis-aligned box around the site whose half sides are `|R half_size|`,
/// with a centimetre to spare at the bottom.
pub fn in_box(site_pos: [f64; 3], site_mat: &[f64; 9], half_size: [f64; 3], point: [f64; 3]) -> bool {
    let half = turn(site_mat, half_size).map(f64::abs);
    (0..3).all(|i| {
        let spare = if i == 2 { IN_SITE_BELOW_M } else { 0.0 };
        site_pos[i] - half[i] - spare < point[i] && point[i] < site_pos[i] + half[i]
    })
}

/// `On(thing, site)` without its contact: the turned offset `R (point - site)` lies within the site's sides, and from 5 mm
/// below to 10 cm above its upper face.
pub fn on_site(site_pos: [f64; 3], site_mat: &[f64; 9], half_size: [f64; 3], point: [f64; 3]) -> bool {
    let d = turn(site_mat, std::array::from_fn(|i| point[i] - site_pos[i]));
    half_size[2] - ON_SITE_BELOW_M < d[2]
        && d[2] < half_size[2] + ON_SITE_ABOVE_M
        && d[0].abs() < half_size[0]
        && d[1].abs() < half_size[1]
}

/// `On(top, bottom)` of two things: not lower, touching, and centred within 3 cm.
pub fn on_object(top: [f64; 3], bottom: [f64; 3], contact: bool) -> bool {
    let (dx, dy) = (top[0] - bottom[0], top[1] - bottom[1]);
    bottom[2] <= top[2] && contact && (dx * dx + dy * dy).sqrt() < ON_OBJECT_M
}

/// `Up(thing)`.
pub fn up(point: [f64; 3]) -> bool {
    point[2] >= UP_M
}

impl Threshold {
    /// Whether joints at these positions (radians or metres) meet it.
    pub fn holds(&self, positions: impl IntoIterator<Item = f64>) -> bool {
        let one = |q: f64| match self.cmp {
            Comparison::Lt => q < self.thr,
            Comparison::Gt => q > self.thr,
            Comparison::Ge => q >= self.thr,
            Comparison::Le => q <= self.thr,
        };
        let mut positions = positions.into_iter();
        match self.quant {
            Quantifier::Any => positions.any(one),
            Quantifier::All => positions.all(one),
        }
    }

    /// The threshold that LIBERO's classes of fixtures have, by category (`wooden_cabinet`) and predicate (`open`,
    /// `close`, `turnon`, `turnoff`). Packs bring their own; this is for things that come without.
    pub fn of_category(category: &str, predicate: &str) -> Option<Self> {
        use Comparison::{Ge, Gt, Lt};
        let (open, close) = match category {
            "microwave" => ((Lt, -1.3), (Gt, -0.005)),
            "wooden_cabinet" | "white_cabinet" | "yellow_cabinet" => ((Lt, -0.14), (Gt, 0.0)),
            "short_cabinet" => ((Gt, 0.10), (Lt, 0.0)),
            "short_fridge" => ((Gt, 2.0), (Lt, 0.0)),
            "flat_stove" => ((Ge, 0.5), (Lt, 0.0)),
            _ => return None,
        };
        let stove = category == "flat_stove";
        let ((cmp, thr), quant) = match predicate {
            "open" if !stove => (open, Quantifier::Any),
            "close" if !stove => (close, Quantifier::All),
            "turnon" if stove => (open, Quantifier::Any),
            "turnoff" if stove => (close, Quantifier::All),
            _ => return None,
        };
        Some(Self { cmp, thr, quant })
    }
}
