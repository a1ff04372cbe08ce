//! Instruction sets: choose at run time, write the kernel once.
//!
//! A plain `cargo build` targets the oldest x86-64. A [`Kernel`] handed to [`dispatch`] is compiled a
//! second and third time with AVX2+FMA and AVX-512 switched on, and the best one the machine has is
//! run. All levels use fused multiply-add and the same order of operations, so they give the same
//! bits. (On an x86 without FMA the portable level stays right, and slow.)
#![allow(unsafe_code)]

/// Work that is compiled once per instruction set. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Level>(self) -> Self::Output;
}

/// An instruction set.
pub(crate) trait Level {
    type F32: Vector<f32>;
    type F64: Vector<f64>;
    /// Rows of a matrix tile two vectors wide that the registers hold.
    const TILE_ROWS: usize;
}

/// A vector register of `T`.
pub(crate) trait Vector<T>: Copy {
    const LANES: usize;
    fn splat(x: T) -> Self;
    /// # Safety
    /// `LANES` values must be readable at `from`; no alignment is needed.
    unsafe fn load(from: *const T) -> Self;
    /// # Safety
    /// `LANES` values must be writable at `to`; no alignment is needed.
    unsafe fn store(self, to: *mut T);
    /// `a * b + self`, one rounding.
    fn add_product(self, a: Self, b: Self) -> Self;
    fn plus(self, other: Self) -> Self;
}

/// Any machine: arrays the compiler may turn into whatever vectors are there.
pub(crate) struct Portable;

impl Level for Portable {
    type F32 = [f32; 4];
    type F64 = [f64; 2];
    const TILE_ROWS: usize = 6;
}

macro_rules! portable {
    ($float:ty, $lanes:literal) => {
        impl Vector<$float> for [$float; $lanes] {
            const LANES: usize = $lanes;
            #[inline(always)]
            fn splat(x: $float) -> Self {
                [x; $lanes]
            }
            #[inline(always)]
            unsafe fn load(from: *const $float) -> Self {
                // SAFETY: the caller grants LANES readable values; an array has their layout.
                unsafe { from.cast::<Self>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $float) {
                // SAFETY: the caller grants LANES writable values; an array has their layout.
                unsafe { to.cast::<Self>().write_unaligned(self) }
            }
            #[inline(always)]
            fn add_product(self, a: Self, b: Self) -> Self {
                std::array::from_fn(|i| a[i].mul_add(b[i], self[i]))
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                std::array::from_fn(|i| self[i] + other[i])
            }
        }
    };
}
portable!(f32, 4);
portable!(f64, 2);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Level, Vector};

    pub(super) struct Avx2;
    pub(super) struct Avx512;

    impl Level for Avx2 {
        type F32 = __m256;
        type F64 = __m256d;
        const TILE_ROWS: usize = 6;
    }

    impl Level for Avx512 {
        type F32 = __m512;
        type F64 = __m512d;
        const TILE_ROWS: usize = 12;
    }

    macro_rules! x86_vector {
        ($vector:ty, $float:ty, $lanes:literal, $set1:ident, $load:ident, $store:ident, $fma:ident, $add:ident) => {
            impl Vector<$float> for $vector {
                const LANES: usize = $lanes;
                #[inline(always)]
                fn splat(x: $float) -> Self {
                    // SAFETY: this type is only named by kernels that `dispatch` runs after it has
                    // seen that the machine has the instruction set (the same holds below).
                    unsafe { $set1(x) }
                }
                #[inline(always)]
                unsafe fn load(from: *const $float) -> Self {
                    // SAFETY: the caller grants LANES readable values.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $float) {
                    // SAFETY: the caller grants LANES writable values.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                fn add_product(self, a: Self, b: Self) -> Self {
                    // SAFETY: as in `splat`.
                    unsafe { $fma(a, b, self) }
                }
                #[inline(always)]
                fn plus(self, other: Self) -> Self {
                    // SAFETY: as in `splat`.
                    unsafe { $add(self, other) }
                }
            }
        };
    }
    x86_vector!(
        __m256,
        f32,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps
    );
    x86_vector!(
        __m256d,
        f64,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd,
        _mm256_add_pd
    );
    x86_vector!(
        __m512,
        f32,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps
    );
    x86_vector!(
        __m512d,
        f64,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd,
        _mm512_add_pd
    );

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    pub(super) fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512cd")
            && has_avx2()
    }

    pub(super) fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }
}

/// The instruction sets by name, so that tests can ask for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best one this machine has.
    #[inline]
    pub(crate) fn best() -> Self {
        #[cfg(test)]
        if let Some(isa) = tests::FORCED.with(|forced| forced.get()) {
            return isa;
        }
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx512() {
                return Isa::Avx512;
            }
            if x86::has_avx2() {
                return Isa::Avx2;
            }
        }
        Isa::Portable
    }
}

/// Runs `kernel` compiled for the best instruction set of this machine.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match Isa::best() {
        Isa::Portable => kernel.run::<Portable>(),
        // SAFETY: `best` has seen that the machine has these features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
        // SAFETY: `best` has seen that the machine has these features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::Isa;

    thread_local! {
        pub(super) static FORCED: Cell<Option<Isa>> = const { Cell::new(None) };
    }

    /// The levels of this machine; [`with_isa`] runs code on one of them, on this thread.
    pub(crate) fn available() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        match Isa::best() {
            Isa::Avx512 => return vec![Isa::Portable, Isa::Avx2, Isa::Avx512],
            Isa::Avx2 => return vec![Isa::Portable, Isa::Avx2],
            Isa::Portable => {}
        }
        vec![Isa::Portable]
    }

    pub(crate) fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
        FORCED.with(|forced| forced.set(Some(isa)));
        let result = f();
        FORCED.with(|forced| forced.set(None));
        result
    }
}
