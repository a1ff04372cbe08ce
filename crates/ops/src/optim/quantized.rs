//! Numbers in 8 bits: block-wise dynamic quantisation (Dettmers et al. 2022, arXiv 2110.02861, section 2).
//!
//! A block is divided by its largest magnitude, and each number replaced by the nearest of 256 fixed ones between -1
//! and 1 (or 0 and 1). Those are spread "dynamically": a byte's leading zeros say the power of ten, the bits behind the
//! first one a position within that decade, so that seven decades are covered and the upper ones most finely.

use std::sync::OnceLock;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 2048;

/// The 256 numbers, and how to find the nearest.
pub(super) struct Code {
    values: [f32; 256],
    /// Halfway to the next number; the last is infinite.
    halves: [f32; 256],
    /// By the upper 16 bits of an f32: the code nearest to the smallest number that begins with them. Such a bucket is
    /// narrower than the distance of two codes, so at most one more step is needed.
    start: Box<[u8; 1 << 16]>,
}

impl Code {
    /// For numbers of either sign: 127 below, 127 above, 0 and 1.
    pub fn signed() -> &'static Self {
        static CODE: OnceLock<Code> = OnceLock::new();
        CODE.get_or_init(|| Self::new(true))
    }

    /// For numbers that are not negative: twice as fine.
    pub fn unsigned() -> &'static Self {
        static CODE: OnceLock<Code> = OnceLock::new();
        CODE.get_or_init(|| Self::new(false))
    }

    fn new(signed: bool) -> Self {
        let mut values = vec![0.0f64, 1.0];
        for decade in 0..7 {
            // Centres of equal parts of [0.1, 1], one power of ten lower for every bit that is not left for them.
            let parts = 1usize << (decade + usize::from(!signed));
            let scale = 10f64.powi(decade as i32 - 6);
            for part in 0..parts {
                let x = scale * (0.1 + 0.9 * (part as f64 + 0.5) / parts as f64);
                values.push(x);
                if signed {
                    values.push(-x);
                }
            }
        }
        values.sort_by(f64::total_cmp);
        let numbers: [f32; 256] = std::array::from_fn(|i| values[i] as f32);
        let halves = std::array::from_fn(|i| match numbers.get(i + 1) {
            Some(next) => numbers[i] + (next - numbers[i]) * 0.5,
            None => f32::INFINITY,
        });
        let nearest = |x: f32| halves.iter().filter(|&&half| x > half).count().min(255) as u8;
        let smallest = |upper: u32| {
            // Behind a set sign bit, numbers grow with magnitude downwards.
            let (low, high) = (f32::from_bits(upper << 16), f32::from_bits(upper << 16 | 0xffff));
            low.min(high)
        };
        let mut start = Box::new([0; 1 << 16]);
        start.iter_mut().zip(0u32..).for_each(|(start, upper)| *start = nearest(smallest(upper)));
        Self { values: numbers, halves, start }
    }

    /// Code of the number nearest to `x`.
    #[inline(always)]
    pub fn encode(&self, x: f32) -> u8 {
        let at = self.start[(x.to_bits() >> 16) as usize];
        at + u8::from(x > self.halves[at as usize])
    }

    /// The number of a code.
    #[inline(always)]
    pub fn decode(&self, code: u8) -> f32 {
        self.values[code as usize]
    }

    /// The code of the smallest number above 0.
    pub fn smallest_positive(&self) -> u8 {
        self.encode(0.0) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_paper() {
        let (signed, unsigned) = (Code::signed(), Code::unsigned());
        for code in [signed, unsigned] {
            assert!(code.values.windows(2).all(|w| w[0] < w[1]));
            assert_eq!(code.values[255], 1.0);
            assert_eq!(code.decode(code.encode(0.0)), 0.0);
        }
        assert_eq!((signed.encode(0.0), unsigned.encode(0.0)), (127, 0));
        // Ends of the range: 64 parts of [0.1, 1] signed, 128 unsigned; one part of [1e-7, 1e-6] signed.
        assert!((signed.values[254] - (1.0 - 0.45 / 64.0)).abs() < 1e-6);
        assert!((signed.values[0] + (1.0 - 0.45 / 64.0)).abs() < 1e-6);
        assert!((unsigned.values[254] - (1.0 - 0.45 / 128.0)).abs() < 1e-6);
        assert!((signed.values[128] - 0.55e-6).abs() < 1e-12);
    }

    #[test]
    fn the_nearest_number_is_found() {
        for code in [Code::signed(), Code::unsigned()] {
            let lowest = if code.values[0] < 0.0 { -1.0 } else { 0.0 };
            let mut tried: Vec<f32> = code.values.iter().chain(&code.halves[..255]).copied().collect();
            let near = |x: &f32| [f32::from_bits(x.to_bits().wrapping_sub(1)), *x, x.next_up()];
            tried = tried.iter().flat_map(near).collect();
            tried.extend((0..200_000).map(|i| lowest + (1.0 - lowest) * (i as f32 / 199_999.0)));
            tried.extend((0..20_000).map(|i| 10f32.powf(-9.0 * i as f32 / 20_000.0)));
            for x in tried.into_iter().filter(|x| (lowest..=1.0).contains(x)) {
                let distance = |v: f32| (f64::from(v) - f64::from(x)).abs();
                let best = code.values.iter().map(|&v| distance(v)).fold(f64::INFINITY, f64::min);
                let found = distance(code.decode(code.encode(x)));
                // Halfway points are rounded to f32.
                assert!(found <= best + 2e-7 * f64::from(x.abs()), "{x}: {found} {best}");
            }
        }
    }
}
