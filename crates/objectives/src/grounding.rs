//! Where a click lands: boxes, polygons, and the image sizes in which coordinates are given. For papers on graphical
//! user interfaces.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A rectangle in pixels (or any other unit), edges included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rect {
    /// Left.
    pub x1: f64,
    /// Top.
    pub y1: f64,
    /// Right.
    pub x2: f64,
    /// Bottom.
    pub y2: f64,
}

impl Rect {
    /// From left, top, right, bottom.
    pub fn corners([x1, y1, x2, y2]: [f64; 4]) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// From left, top, width, height.
    pub fn sized([x, y, width, height]: [f64; 4]) -> Self {
        Self { x1: x, y1: y, x2: x + width, y2: y + height }
    }

    /// The same area with left before right and top before bottom.
    pub fn ordered(self) -> Self {
        Self {
            x1: self.x1.min(self.x2),
            y1: self.y1.min(self.y2),
            x2: self.x1.max(self.x2),
            y2: self.y1.max(self.y2),
        }
    }

    /// Whether a point lies inside or on an edge.
    pub fn contains(&self, [x, y]: [f64; 2]) -> bool {
        self.x1 <= x && x <= self.x2 && self.y1 <= y && y <= self.y2
    }

    /// Area, 0 when the corners are inverted.
    pub fn area(&self) -> f64 {
        (self.x2 - self.x1).max(0.0) * (self.y2 - self.y1).max(0.0)
    }

    /// Area that two rectangles share.
    pub fn intersection(&self, other: &Self) -> f64 {
        let shared = Self {
            x1: self.x1.max(other.x1),
            y1: self.y1.max(other.y1),
            x2: self.x2.min(other.x2),
            y2: self.y2.min(other.y2),
        };
        shared.area()
    }
}

/// Which edges of a polygon count as inside. The two rules differ on edges alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RayRule {
    /// y above the lower end, up to the upper one; x up to the crossing (InfiGUI-G1).
    UpToCrossing,
    /// One end above y and the other not; x left of the crossing (OSWorld-G).
    LeftOfCrossing,
}

/// Whether a polygon contains a point, by casting a ray to the right. Fewer than three corners contain nothing.
pub fn polygon_contains(corners: &[[f64; 2]], [x, y]: [f64; 2], rule: RayRule) -> bool {
    if corners.len() < 3 {
        return false;
    }
    let edges = corners.iter().zip(corners.iter().cycle().skip(1));
    let crossed = edges.filter(|&(&[ax, ay], &[bx, by])| {
        let crossing = || (y - ay) * (bx - ax) / (by - ay) + ax;
        match rule {
            RayRule::UpToCrossing => {
                y > ay.min(by) && y <= ay.max(by) && x <= ax.max(bx) && (ax == bx || x <= crossing())
            }
            RayRule::LeftOfCrossing => (ay > y) != (by > y) && x < crossing(),
        }
    });
    crossed.count() % 2 == 1
}

/// The size at which a Qwen vision model sees an image, (height, width): multiples of `factor` near the original,
/// with between `min_pixels` and `max_pixels` pixels. Halves round to even.
///
/// # Errors
/// No pixels, no factor, or sides whose ratio is above 200.
pub fn smart_resize(
    (height, width): (usize, usize),
    factor: usize,
    min_pixels: usize,
    max_pixels: usize,
) -> Result<(usize, usize)> {
    let wrong = |reason: String| Err(Error::Invalid { what: "image size", reason });
    if height == 0 || width == 0 || factor == 0 || max_pixels == 0 {
        return wrong(format!("{height} x {width} pixels, factor {factor}, at most {max_pixels}"));
    }
    let (h, w, f) = (height as f64, width as f64, factor as f64);
    if h.max(w) / h.min(w) > 200.0 {
        return wrong(format!("sides of {height} and {width} pixels: their ratio is above 200"));
    }
    let near = |x: f64| ((x / f).round_ties_even() * f).max(f);
    let (mut new_h, mut new_w) = (near(h), near(w));
    if new_h * new_w > max_pixels as f64 {
        let shrink = (h * w / max_pixels as f64).sqrt();
        let down = |x: f64| ((x / shrink / f).floor() * f).max(f);
        (new_h, new_w) = (down(h), down(w));
    } else if new_h * new_w < min_pixels as f64 {
        let grow = (min_pixels as f64 / (h * w)).sqrt();
        let up = |x: f64| (x * grow / f).ceil() * f;
        (new_h, new_w) = (up(h), up(w));
    }
    Ok((new_h as usize, new_w as usize))
}

/// (width, height) scaled down to at most about `max_pixels` pixels, halves rounded to even; smaller images stay.
pub fn limit_pixels((width, height): (usize, usize), max_pixels: usize) -> (usize, usize) {
    let pixels = width * height;
    if pixels <= max_pixels {
        return (width, height);
    }
    let scale = (max_pixels as f64 / pixels as f64).sqrt();
    let scaled = |x: usize| (x as f64 * scale).round_ties_even() as usize;
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn impossible_images_are_errors() {
        assert!(smart_resize((0, 10), 28, 3136, 12_845_056).is_err());
        assert!(smart_resize((10, 2010), 28, 3136, 12_845_056).is_err());
    }

    proptest! {
        #[test]
        fn sizes_are_multiples_within_the_limits(h in 30usize..3000, w in 30usize..3000) {
            let (min, max) = (100 * 28 * 28, 1000 * 28 * 28);
            let (a, b) = smart_resize((h, w), 28, min, max).unwrap();
            prop_assert!(a % 28 == 0 && b % 28 == 0 && a * b >= min);
            prop_assert!(a * b <= max || a == 28 || b == 28);
        }

        #[test]
        fn both_ray_rules_agree_with_a_box_off_its_edges(x in 0.01f64..2.0, y in 0.01f64..2.0) {
            prop_assume!((x - 1.0).abs() > 1e-6 && (y - 1.0).abs() > 1e-6);
            let square = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]];
            let inside = Rect::corners([0.0, 0.0, 1.0, 1.0]).contains([x, y]);
            prop_assert_eq!(polygon_contains(&square, [x, y], RayRule::UpToCrossing), inside);
            prop_assert_eq!(polygon_contains(&square, [x, y], RayRule::LeftOfCrossing), inside);
        }
    }
}
