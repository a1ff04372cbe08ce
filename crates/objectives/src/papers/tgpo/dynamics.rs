//! Two of the paper's robots, one step at a time. Angles in radians.

/// A point (x, y) driven by a velocity: x' = x + u dt.
pub fn linear(state: [f64; 2], control: [f64; 2], dt: f64) -> [f64; 2] {
    [state[0] + control[0] * dt, state[1] + control[1] * dt]
}

/// Limits of the unicycle's speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Smallest, a little below 0.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Default for Speed {
    fn default() -> Self {
        Self { min: -0.01, max: 2.0 }
    }
}

/// A unicycle (x, y, heading, speed) driven by (turn rate, acceleration). Position moves with the old heading and
/// speed; the heading is wrapped to [-pi, pi), the speed cut to its limits.
pub fn unicycle(state: [f64; 4], control: [f64; 2], dt: f64, speed: Speed) -> [f64; 4] {
    use std::f64::consts::PI;
    let [x, y, heading, v] = state;
    let turned = (heading + control[0] * dt + PI).rem_euclid(2.0 * PI) - PI;
    let faster = (v + control[1] * dt).max(speed.min).min(speed.max);
    [x + v * heading.cos() * dt, y + v * heading.sin() * dt, turned, faster]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_wrap_and_speeds_are_cut() {
        let [x, _, heading, v] = unicycle([0.0, 0.0, 3.0, 1.9], [1.0, 9.0], 1.0, Speed::default());
        assert!((heading - (4.0 - 2.0 * std::f64::consts::PI)).abs() < 1e-12);
        assert_eq!(v, 2.0);
        assert!((x - 1.9 * 3f64.cos()).abs() < 1e-12);
    }
}
