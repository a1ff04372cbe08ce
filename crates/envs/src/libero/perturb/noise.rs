//! Damage to pictures: five kinds, ten severities each.
//!
//! Strengths are in pixels of the picture as it is rendered, so a smaller picture is damaged more.

use rand::Rng;

/// One kind of damage at one severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// What is done.
    pub kind: NoiseKind,
    /// 1 (weak) to 10.
    pub severity: u8,
}

/// What is done to a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseKind {
    /// Mean along a line in a drawn direction.
    Motion,
    /// Gaussian blur; its standard deviation in pixels is the severity.
    Gaussian,
    /// Mean over magnifications.
    Zoom,
    /// Drawn clouds of light.
    Fog,
    /// Neighbouring pixels change places.
    Glass,
}

impl Noise {
    /// Noise number 1 to 50, ten severities of each kind in order; `None` for 0 and what is beyond.
    pub fn from_number(number: u64) -> Option<Self> {
        let index = u8::try_from(number.checked_sub(1)?).ok().filter(|index| *index < 50)?;
        let kinds =
            [NoiseKind::Motion, NoiseKind::Gaussian, NoiseKind::Zoom, NoiseKind::Fog, NoiseKind::Glass];
        Some(Self { kind: kinds[usize::from(index / 10)], severity: index % 10 + 1 })
    }

    /// Damages a picture, [height, width, 3]. `seed` says which draws: use another one for every step.
    ///
    /// # Panics
    /// Panics if `rgb` has another length.
    pub fn apply(self, rgb: &mut [u8], width: usize, height: usize, seed: u64) {
        assert_eq!(rgb.len(), width * height * 3, "a picture of {width} x {height}");
        if width == 0 || height == 0 {
            return;
        }
        let strength = f32::from(self.severity);
        let mut draws = super::draws(5, [self.kind as u64, u64::from(self.severity), seed]);
        let mut picture = Picture { width, height, values: rgb.iter().map(|x| f32::from(*x)).collect() };
        match self.kind {
            NoiseKind::Gaussian => picture.gaussian(strength),
            NoiseKind::Motion => {
                let angle = draws.random_range(-45.0f32..45.0).to_radians();
                picture.motion(1.5 * strength, angle);
            }
            NoiseKind::Zoom => picture.zoom(0.03 * strength),
            NoiseKind::Fog => picture.fog(0.25 + 0.25 * strength, &mut draws),
            NoiseKind::Glass => {
                picture.gaussian(0.3 + 0.08 * strength);
                picture.glass(1 + i64::from(self.severity) / 3, &mut draws);
                picture.gaussian(0.3 + 0.08 * strength);
            }
        }
        for (byte, value) in rgb.iter_mut().zip(&picture.values) {
            *byte = value.round().clamp(0.0, 255.0) as u8;
        }
    }
}

/// Three channels per pixel, 0 to 255.
struct Picture {
    width: usize,
    height: usize,
    values: Vec<f32>,
}

impl Picture {
    fn pixel(&self, x: i64, y: i64) -> &[f32] {
        let x = x.clamp(0, self.width as i64 - 1) as usize;
        let y = y.clamp(0, self.height as i64 - 1) as usize;
        let start = (y * self.width + x) * 3;
        &self.values[start..start + 3]
    }

    /// Between pixels, linearly; the border is continued.
    fn sample(&self, x: f32, y: f32) -> [f32; 3] {
        let (left, top) = (x.floor(), y.floor());
        let (u, v) = (x - left, y - top);
        let corner = |dx: i64, dy: i64| self.pixel(left as i64 + dx, top as i64 + dy);
        let (a, b, c, d) = (corner(0, 0), corner(1, 0), corner(0, 1), corner(1, 1));
        std::array::from_fn(|i| (a[i] * (1.0 - u) + b[i] * u) * (1.0 - v) + (c[i] * (1.0 - u) + d[i] * u) * v)
    }

    /// Every pixel again, as `value(x, y)` says.
    fn map(&mut self, value: impl Fn(&Self, usize, usize) -> [f32; 3]) {
        let mut out = Vec::with_capacity(self.values.len());
        for y in 0..self.height {
            for x in 0..self.width {
                out.extend(value(self, x, y));
            }
        }
        self.values = out;
    }

    /// Weighted mean of the pixels at `offsets`.
    fn mean(&mut self, offsets: &[(f32, f32, f32)]) {
        let total: f32 = offsets.iter().map(|(_, _, weight)| weight).sum();
        self.map(|was, x, y| {
            let mut sum = [0.0; 3];
            for (dx, dy, weight) in offsets {
                let there = was.sample(x as f32 + dx, y as f32 + dy);
                for (sum, value) in sum.iter_mut().zip(there) {
                    *sum += value * weight / total;
                }
            }
            sum
        });
    }

    fn gaussian(&mut self, sigma: f32) {
        let reach = (4.0 * sigma).ceil() as i32;
        let weight = |d: i32| (-0.5 * (d as f32 / sigma).powi(2)).exp();
        // Rows, then columns.
        self.mean(&(-reach..=reach).map(|d| (d as f32, 0.0, weight(d))).collect::<Vec<_>>());
        self.mean(&(-reach..=reach).map(|d| (0.0, d as f32, weight(d))).collect::<Vec<_>>());
    }

    fn motion(&mut self, length: f32, angle: f32) {
        let steps = (2.0 * length).ceil() as i32;
        let at = |i: i32| length * (i as f32 / steps as f32 - 0.5);
        self.mean(&(0..=steps).map(|i| (at(i) * angle.cos(), at(i) * angle.sin(), 1.0)).collect::<Vec<_>>());
    }

    /// Mean over magnifications 1 to 1 + `largest`.
    fn zoom(&mut self, largest: f32) {
        let (cx, cy) = ((self.width - 1) as f32 / 2.0, (self.height - 1) as f32 / 2.0);
        let count = 11;
        let zooms: Vec<f32> = (0..count).map(|i| 1.0 + largest * i as f32 / (count - 1) as f32).collect();
        self.map(|was, x, y| {
            let mut sum = [0.0; 3];
            for zoom in &zooms {
                let there = was.sample(cx + (x as f32 - cx) / zoom, cy + (y as f32 - cy) / zoom);
                for (sum, value) in sum.iter_mut().zip(there) {
                    *sum += value / count as f32;
                }
            }
            sum
        });
    }

    /// Adds clouds and keeps the brightest value.
    fn fog(&mut self, strength: f32, draws: &mut impl Rng) {
        let clouds = clouds(self.width.max(self.height), draws);
        let side = clouds.len().isqrt();
        let brightest = self.values.iter().copied().fold(1.0, f32::max);
        let keep = brightest / (brightest + strength * 255.0);
        self.map(|was, x, y| {
            let cloud = strength * 255.0 * clouds[y * side + x];
            let pixel = was.pixel(x as i64, y as i64);
            std::array::from_fn(|i| (pixel[i] + cloud) * keep)
        });
    }

    /// Each pixel changes places with one up to `reach` away.
    fn glass(&mut self, reach: i64, draws: &mut impl Rng) {
        for y in (0..self.height).rev() {
            for x in (0..self.width).rev() {
                let other =
                    |at: usize, size: usize, d: i64| (at as i64 + d).clamp(0, size as i64 - 1) as usize;
                let ox = other(x, self.width, draws.random_range(-reach..=reach));
                let oy = other(y, self.height, draws.random_range(-reach..=reach));
                for channel in 0..3 {
                    self.values
                        .swap((y * self.width + x) * 3 + channel, (oy * self.width + ox) * 3 + channel);
                }
            }
        }
    }
}

/// A square of at least `size` by `size` values in [0, 1], rough at all scales: midpoints are displaced, by less and less.
fn clouds(size: usize, draws: &mut impl Rng) -> Vec<f32> {
    const FALL: f32 = 0.6;
    let side = size.next_power_of_two().max(2);
    let mut field = vec![0.0f32; side * side];
    let at = |x: usize, y: usize| (y % side) * side + x % side;
    let (mut step, mut amplitude) = (side, 1.0f32);
    while step > 1 {
        let half = step / 2;
        for y in (0..side).step_by(step) {
            for x in (0..side).step_by(step) {
                // The field has no border: it is continued on the other side.
                let corners = [at(x, y), at(x + step, y), at(x, y + step), at(x + step, y + step)];
                let [a, b, c, d] = corners.map(|i| field[i]);
                let mut moved = |mean: f32| mean + draws.random_range(-amplitude..amplitude);
                field[at(x + half, y + half)] = moved((a + b + c + d) / 4.0);
                field[at(x + half, y)] = moved((a + b) / 2.0);
                field[at(x, y + half)] = moved((a + c) / 2.0);
            }
        }
        step = half;
        amplitude *= FALL;
    }
    let (low, high) = field.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
    let range = (high - low).max(1e-6);
    field.iter().map(|x| (x - low) / range).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A white square on grey, with a coloured edge.
    fn picture(width: usize, height: usize) -> Vec<u8> {
        let inside = |x: usize, y: usize| (4..width - 4).contains(&x) && (4..height - 6).contains(&y);
        let mut rgb = Vec::new();
        for y in 0..height {
            for x in 0..width {
                rgb.extend(if inside(x, y) { [250, 240, 200] } else { [60, 70, (x * 2) as u8] });
            }
        }
        rgb
    }

    fn damaged(number: u64, seed: u64) -> Vec<u8> {
        let mut rgb = picture(40, 32);
        Noise::from_number(number).unwrap().apply(&mut rgb, 40, 32, seed);
        rgb
    }

    fn distance(a: &[u8], b: &[u8]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
    }

    #[test]
    fn numbers_are_kinds_and_severities() {
        assert_eq!(Noise::from_number(0), None);
        assert_eq!(Noise::from_number(51), None);
        assert_eq!(Noise::from_number(u64::MAX), None);
        assert_eq!(Noise::from_number(1), Some(Noise { kind: NoiseKind::Motion, severity: 1 }));
        assert_eq!(Noise::from_number(20), Some(Noise { kind: NoiseKind::Gaussian, severity: 10 }));
        assert_eq!(Noise::from_number(37), Some(Noise { kind: NoiseKind::Fog, severity: 7 }));
        assert_eq!(Noise::from_number(50), Some(Noise { kind: NoiseKind::Glass, severity: 10 }));
    }

    #[test]
    fn every_noise_changes_the_picture_and_more_so_with_its_severity() {
        let clean = picture(40, 32);
        for kind in 0..5 {
            let weak = distance(&clean, &damaged(10 * kind + 1, 7));
            let strong = distance(&clean, &damaged(10 * kind + 10, 7));
            assert!(weak > 0.1 && strong > 1.5 * weak, "kind {kind}: {weak} to {strong}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_picture() {
        for number in 1..=50 {
            assert_eq!(damaged(number, 3), damaged(number, 3));
        }
        // Drawn: motion's direction, fog and glass.
        for number in [5, 35, 45] {
            assert_ne!(damaged(number, 3), damaged(number, 4), "{number}");
        }
    }

    #[test]
    fn a_blur_keeps_a_uniform_picture() {
        for number in [3, 13, 23, 43] {
            let mut rgb = vec![77; 24 * 16 * 3];
            Noise::from_number(number).unwrap().apply(&mut rgb, 24, 16, 0);
            assert!(rgb.iter().all(|x| *x == 77), "{number}");
        }
    }

    #[test]
    fn a_gaussian_has_its_deviation() {
        let mut rgb = vec![0; 41 * 41 * 3];
        // A bright column: across it the blur is a bell whose second moment is the variance.
        for y in 0..41 {
            rgb[(y * 41 + 20) * 3] = 255;
        }
        Noise::from_number(13).unwrap().apply(&mut rgb, 41, 41, 0);
        let row: Vec<f64> = (0..41).map(|x| f64::from(rgb[(20 * 41 + x) * 3])).collect();
        let total: f64 = row.iter().sum();
        let variance =
            row.iter().enumerate().map(|(x, v)| v * (x as f64 - 20.0).powi(2)).sum::<f64>() / total;
        assert!((variance - 9.0).abs() < 0.5, "{variance}");
    }

    #[test]
    fn tiny_pictures_are_fine() {
        for number in [1, 11, 21, 31, 41] {
            let mut rgb = vec![9; 3];
            Noise::from_number(number).unwrap().apply(&mut rgb, 1, 1, 0);
            Noise::from_number(number).unwrap().apply(&mut [], 0, 5, 0);
        }
    }
}
