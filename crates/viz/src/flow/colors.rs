//! One colour per point, the same in every picture of it.

use efference_geometry::Point3;

use crate::theme::Rgb;

/// How much of their colourfulness predicted points keep beside true ones.
pub const PREDICTED: f64 = 0.6;

/// Colours of the points of an object: the hue tells the angle round the vertical (z) through their centroid, the
/// lightness the height. `colourfulness` 1 for the truth, [`PREDICTED`] for predictions.
///
/// Hue and lightness are those of OKLCh (B. Ottosson, "A perceptual color space for image processing", 2020), so that
/// equal steps look equal.
#[must_use]
pub fn point_colors(points: &[Point3<f64>], colourfulness: f64) -> Vec<Rgb> {
    let n = points.len().max(1) as f64;
    let centre = points.iter().fold([0.0; 2], |c, p| [c[0] + p.x / n, c[1] + p.y / n]);
    let (low, high) =
        points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(p.z), h.max(p.z)));
    let span = high - low;
    let color = |p: &Point3<f64>| {
        let hue = (p.y - centre[1]).atan2(p.x - centre[0]);
        let height = if span > 1e-9 { (p.z - low) / span } else { 0.5 };
        oklch(0.60 + 0.22 * height, 0.17, hue, colourfulness)
    };
    points.iter().map(color).collect()
}

/// `t` of the way from `a` to `b`, 0 to 1, mixed as the screen's own numbers.
#[must_use]
pub fn mix(a: Rgb, b: Rgb, t: f64) -> Rgb {
    let t = t.clamp(0.0, 1.0);
    std::array::from_fn(|i| (f64::from(a[i]) * (1.0 - t) + f64::from(b[i]) * t).round() as u8)
}

/// Green for 0, amber, red for 1 and above: how bad an error is.
#[must_use]
pub fn error_color(badness: f64) -> Rgb {
    let t = if badness.is_finite() { badness.clamp(0.0, 1.0) } else { 1.0 };
    // From green (145 degrees) to red (27 degrees).
    oklch(0.70, 0.17, (145.0 - 118.0 * t).to_radians(), 1.0)
}

/// sRGB of a colour in OKLCh, its chroma first lowered until the colour can be shown, then to `share` of that.
fn oklch(lightness: f64, chroma: f64, hue: f64, share: f64) -> Rgb {
    let linear = |c: f64| oklab(lightness, c * hue.cos(), c * hue.sin());
    let can_be_shown = |c: f64| linear(c).iter().all(|x| (-1e-4..=1.0 + 1e-4).contains(x));
    let mut chroma = chroma;
    while chroma > 1e-3 && !can_be_shown(chroma) {
        chroma *= 0.95;
    }
    linear(chroma * share).map(|c| (255.0 * gamma(c.clamp(0.0, 1.0))).round() as u8)
}

/// Linear red, green and blue of a colour in OKLab.
fn oklab(l: f64, a: f64, b: f64) -> [f64; 3] {
    let cube = |x: f64| x * x * x;
    let long = cube(l + 0.396_337_777_4 * a + 0.215_803_757_3 * b);
    let medium = cube(l - 0.105_561_345_8 * a - 0.063_854_172_8 * b);
    let short = cube(l - 0.089_484_177_5 * a - 1.291_485_548_0 * b);
    [
        4.076_741_662_1 * long - 3.307_711_591_3 * medium + 0.230_969_929_2 * short,
        -1.268_438_004_6 * long + 2.609_757_401_1 * medium - 0.341_319_396_5 * short,
        -0.004_196_086_3 * long - 0.703_418_614_7 * medium + 1.707_614_701_0 * short,
    ]
}

fn gamma(linear: f64) -> f64 {
    if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn white_black_and_red_are_what_they_are() {
        assert_eq!(oklch(1.0, 0.0, 0.0, 1.0), [255, 255, 255]);
        assert_eq!(oklch(0.0, 0.0, 0.0, 1.0), [0, 0, 0]);
        // Pure red is L 0.6280, C 0.2577, h 29.23 degrees in OKLCh.
        let [r, g, b] = oklch(0.627_96, 0.257_68, 29.234_f64.to_radians(), 1.0);
        assert!(r >= 254 && g <= 8 && b <= 8, "{r} {g} {b}");
    }

    #[test]
    fn the_hue_goes_round_and_the_lightness_goes_up() {
        let ring = |z: f64, n: usize| {
            (0..n).map(move |i| {
                let angle = i as f64 / n as f64 * std::f64::consts::TAU;
                Point3::new(0.3 + 0.1 * angle.cos(), 0.1 * angle.sin(), z)
            })
        };
        let points: Vec<_> = ring(0.0, 12).chain(ring(0.2, 12)).collect();
        let colors = point_colors(&points, 1.0);
        let light = |c: Rgb| c.iter().map(|x| u32::from(*x)).sum::<u32>();
        for i in 0..12 {
            assert_ne!(colors[i], colors[(i + 1) % 12]);
            assert!(light(colors[12 + i]) > light(colors[i]), "higher is lighter");
        }
        let pale = point_colors(&points, PREDICTED);
        let spread = |c: Rgb| c.iter().max().unwrap() - c.iter().min().unwrap();
        assert!((0..24).all(|i| spread(pale[i]) < spread(colors[i])), "predictions are paler");
        // One point, points on one spot: a colour all the same.
        assert_eq!(point_colors(&[Point3::origin(); 2], 1.0).len(), 2);
        assert!(point_colors(&[], 1.0).is_empty());
    }
}
