//! The two number types, f32 and f64, and the scalar functions the kernels are written in.
//!
//! Everything here is `#[inline(always)]` and branch-free, so that a loop over a slice inside
//! [`crate::simd::dispatch`] becomes vector code. The f32 exponential is a polynomial (about 1e-7
//! relative); f64 serves gradient checks and uses the standard library.

use std::ops::Neg;

use candle_core::WithDType;

use crate::simd::{Level, Vector};

/// f32 or f64.
pub(crate) trait Float: WithDType + Neg<Output = Self> {
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    /// Columns of a packed panel: two AVX-512 vectors.
    const PANEL: usize;
    /// The vector of this type at an instruction-set level.
    type Vector<L: Level>: Vector<Self>;

    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    /// `self * a + b` with one rounding.
    fn fma(self, a: Self, b: Self) -> Self;
    /// exp; below about -87 (f32) it is 0, at -infinity exactly 0, NaN stays NaN.
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn erf(self) -> Self;

    /// The larger; `a` when either is NaN, which keeps the loop a single instruction.
    #[inline(always)]
    fn larger(self, a: Self) -> Self {
        if self > a { self } else { a }
    }

    #[inline(always)]
    fn clamp_to(self, low: f64, high: f64) -> Self {
        let (low, high) = (Self::of(low), Self::of(high));
        let x = if self < low { low } else { self };
        if x > high { high } else { x }
    }

    /// 1 / (1 + exp(-x))
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + Float::exp(-self))
    }
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const PANEL: usize = 32;
    type Vector<L: Level> = L::F32;

    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        // exp(x) = 2^n exp(r), n = round(x / ln 2). Adding 1.5 * 2^23 leaves n in the low bits of the
        // mantissa, so neither a rounding instruction nor a conversion is needed.
        const MAGIC: f32 = 12_582_912.0;
        const LOW: f32 = -86.6; // 2^(n-1) is still a normal number
        const HIGH: f32 = 88.722_84;
        let x = if self < LOW { LOW } else { self };
        let x = if x > HIGH { HIGH } else { x };
        let t = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
        let n = t - MAGIC;
        let r = n.mul_add(-0.693_359_4, x);
        let r = n.mul_add(2.121_944_4e-4, r);
        let p = 1.987_569_1e-4f32;
        let p = p.mul_add(r, 1.398_2e-3);
        let p = p.mul_add(r, 8.333_452e-3);
        let p = p.mul_add(r, 4.166_579_6e-2);
        let p = p.mul_add(r, 1.666_666_6e-1);
        let p = p.mul_add(r, 0.5);
        let p = p.mul_add(r * r, r + 1.0);
        // 2^(n-1), then doubled: n may be 128, one more than an exponent field can hold.
        let half = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f00_0000));
        let y = p * half * 2.0;
        let y = if self < LOW { 0.0 } else { y };
        if self > HIGH { f32::INFINITY } else { y }
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn erf(self) -> Self {
        // Rational minimax approximation on [-4, 4], the one Eigen and XLA use; |error| < 3e-7.
        let x = self.clamp_to(-4.0, 4.0);
        let x2 = x * x;
        let p = -2.726_142_3e-10f32;
        let p = p.mul_add(x2, 2.770_681_4e-8);
        let p = p.mul_add(x2, -2.101_024e-6);
        let p = p.mul_add(x2, -5.692_506_4e-5);
        let p = p.mul_add(x2, -7.349_906_3e-4);
        let p = p.mul_add(x2, -2.954_6e-3);
        let p = p.mul_add(x2, -1.609_603_3e-2);
        let q = -1.456_607_2e-5f32;
        let q = q.mul_add(x2, -2.133_740_6e-4);
        let q = q.mul_add(x2, -1.682_827e-3);
        let q = q.mul_add(x2, -7.373_329_2e-3);
        let q = q.mul_add(x2, -1.426_473_9e-2);
        x * p / q
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const PANEL: usize = 16;
    type Vector<L: Level> = L::F64;

    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn ln(self) -> Self {
        f64::ln(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }
}

/// Accumulator lanes of the reductions: fixed, so that sums have the same bits on every machine.
pub(crate) const LANES: usize = 32;

/// One accumulator of a reduction, in registers: whole arrays are replaced at a time, because the compiler keeps an
/// array that is changed element by element in memory.
pub(crate) type Lanes<T> = [T; LANES];

/// Joins lanes in a fixed tree.
#[inline(always)]
pub(crate) fn join_lanes<T: Float>(lanes: &Lanes<T>, join: impl Fn(T, T) -> T) -> T {
    let a: [T; 16] = std::array::from_fn(|i| join(lanes[i], lanes[i + 16]));
    let a: [T; 8] = std::array::from_fn(|i| join(a[i], a[i + 8]));
    let a: [T; 4] = std::array::from_fn(|i| join(a[i], a[i + 4]));
    join(join(a[0], a[2]), join(a[1], a[3]))
}

/// Sum of lanes.
#[inline(always)]
pub(crate) fn sum_lanes<T: Float>(lanes: &Lanes<T>) -> T {
    join_lanes(lanes, |a, b| a + b)
}

/// Folds `f` of a row in interleaved lanes, then those in a fixed tree.
#[inline(always)]
fn fold<T: Float>(init: T, x: &[T], f: impl Fn(T) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [init; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        // A loop, because a closure as long as `f` may be might not be inlined, and then lacks the instruction set.
        let mut y = [T::ZERO; LANES];
        for (y, &x) in y.iter_mut().zip(x) {
            *y = f(x);
        }
        lanes = std::array::from_fn(|i| join(lanes[i], y[i]));
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, f(x));
    }
    join_lanes(&lanes, join)
}

/// Sum of a row.
#[inline(always)]
pub(crate) fn sum<T: Float>(x: &[T]) -> T {
    fold(T::ZERO, x, |x| x, |a, b| a + b)
}

/// Sum of `f` over a row.
#[inline(always)]
pub(crate) fn sum_of<T: Float>(x: &[T], f: impl Fn(T) -> T) -> T {
    fold(T::ZERO, x, f, |a, b| a + b)
}

/// Sum of the squares of a row, in f64: the square of an f32 cannot overflow there.
#[inline(always)]
pub(crate) fn sum_of_squares<T: Float>(x: &[T]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        let mut squares = [0.0f64; LANES];
        for (square, &x) in squares.iter_mut().zip(x) {
            *square = x.wide() * x.wide();
        }
        lanes = std::array::from_fn(|i| lanes[i] + squares[i]);
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += x.wide() * x.wide();
    }
    sum_lanes(&lanes)
}

/// Sum of `f(x, y)` over two rows of one length.
#[inline(always)]
pub(crate) fn sum_of2<T: Float>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let ((xs, x), (ys, y)) = (x.as_chunks::<LANES>(), y[..x.len()].as_chunks::<LANES>());
    for (x, y) in xs.iter().zip(ys) {
        let mut z = [T::ZERO; LANES];
        for (z, (&x, &y)) in z.iter_mut().zip(x.iter().zip(y)) {
            *z = f(x, y);
        }
        lanes = std::array::from_fn(|i| lanes[i] + z[i]);
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
        *lane += f(x, y);
    }
    sum_lanes(&lanes)
}

/// Largest element of a row, -infinity for an empty one.
#[inline(always)]
pub(crate) fn max<T: Float>(x: &[T]) -> T {
    fold(T::NEG_INFINITY, x, |x| x, |a, b| b.larger(a))
}
