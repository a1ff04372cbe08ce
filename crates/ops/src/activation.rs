//! GELU, SiLU and the gated SiLU of Llama.

use std::mem::MaybeUninit;

use candle_core::{Shape, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::float::Float;
use crate::matmul::build;
use crate::op::{Op, View, apply1, apply2};
use crate::simd::{Kernel, Level, dispatch};
use crate::{Result, check};

/// Elements per task: 64 KiB of f32, about the first-level cache.
const CHUNK: usize = 1 << 14;

/// The nonlinearity behind a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), `gelu_pytorch_tanh` of Hugging Face.
    GeluTanh,
    /// 0.5 x (1 + erf(x / sqrt 2)), `gelu` of PyTorch.
    GeluErf,
    /// x / (1 + exp(-x))
    Silu,
    /// max(x, 0), with gradient 0 at 0.
    Relu,
}

/// sqrt(2 / pi)
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;
/// 1 / sqrt(2 pi)
const NORMAL_SCALE: f64 = 0.398_942_280_401_432_7;

#[inline(always)]
fn gelu_tanh_value<T: Float>(x: T) -> T {
    // (1 + tanh u) / 2 = sigmoid(2u). Beyond 12 it is 0 or 1; the clamp keeps x^3 finite.
    let c = x.clamp_to(-12.0, 12.0);
    let u = c * (c * c).fma(T::of(2.0 * GELU_SCALE * GELU_CUBIC), T::of(2.0 * GELU_SCALE));
    x * u.sigmoid()
}

#[inline(always)]
fn gelu_tanh_slope<T: Float>(x: T) -> T {
    let c = x.clamp_to(-12.0, 12.0);
    let c2 = c * c;
    let u = c * c2.fma(T::of(2.0 * GELU_SCALE * GELU_CUBIC), T::of(2.0 * GELU_SCALE));
    let s = u.sigmoid();
    let du = c2.fma(T::of(6.0 * GELU_SCALE * GELU_CUBIC), T::of(2.0 * GELU_SCALE));
    (c * du * (T::ONE - s)).fma(s, s)
}

#[inline(always)]
fn gelu_erf_value<T: Float>(x: T) -> T {
    let half = T::of(0.5) * x;
    half.fma((x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf(), half)
}

#[inline(always)]
fn gelu_erf_slope<T: Float>(x: T) -> T {
    let cdf = (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf().fma(T::of(0.5), T::of(0.5));
    let c = x.clamp_to(-40.0, 40.0);
    (c * T::of(NORMAL_SCALE)).fma(Float::exp(c * c * T::of(-0.5)), cdf)
}

#[inline(always)]
fn silu_value<T: Float>(x: T) -> T {
    x * x.sigmoid()
}

#[inline(always)]
fn silu_slope<T: Float>(x: T) -> T {
    let s = x.sigmoid();
    // Beyond 100 the second factor is exactly 0 and x could be infinite.
    let c = x.clamp_to(-100.0, 100.0);
    (c * (T::ONE - s)).fma(s, s)
}

#[inline(always)]
fn relu_slope<T: Float>(x: T) -> T {
    if x > T::ZERO { T::ONE } else { T::ZERO }
}

/// out = f(x)
struct Map<'a, T, O, F>(&'a [T], &'a mut [O], F);

impl<T: Float, O, F: Fn(T) -> O> Kernel for Map<'_, T, O, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for (out, &x) in self.1.iter_mut().zip(self.0) {
            *out = (self.2)(x);
        }
    }
}

/// out = f(x, y)
struct Map2<'a, T, O, F>(&'a [T], &'a [T], &'a mut [O], F);

impl<T: Float, O, F: Fn(T, T) -> O> Kernel for Map2<'_, T, O, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Level>(self) {
        for ((out, &x), &y) in self.2.iter_mut().zip(self.0).zip(self.1) {
            *out = (self.3)(x, y);
        }
    }
}

/// f over a slice, on all threads.
#[allow(unsafe_code)]
pub(crate) fn map<T: Float>(x: &[T], f: impl Fn(T) -> T + Sync) -> Vec<T> {
    let fill = |out: &mut [MaybeUninit<T>]| {
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
            dispatch(Map(x, out, |x| MaybeUninit::new(f(x))));
        });
    };
    // SAFETY: the chunks of `out` and `x` pair up one to one, and `Map` writes every element.
    unsafe { build(x.len(), fill) }
}

/// f over two slices of one length, on all threads.
#[allow(unsafe_code)]
pub(crate) fn map2<T: Float>(x: &[T], y: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    assert_eq!(x.len(), y.len());
    let fill = |out: &mut [MaybeUninit<T>]| {
        let xy = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
        out.par_chunks_mut(CHUNK).zip(xy).for_each(|(out, (x, y))| {
            dispatch(Map2(x, y, out, |x, y| MaybeUninit::new(f(x, y))));
        });
    };
    // SAFETY: the chunks of `out`, `x` and `y` pair up one to one, and `Map2` writes every element.
    unsafe { build(x.len(), fill) }
}

impl Activation {
    /// The activation of `x`.
    pub(crate) fn map<T: Float>(self, x: &[T]) -> Vec<T> {
        match self {
            Activation::GeluTanh => map(x, gelu_tanh_value),
            Activation::GeluErf => map(x, gelu_erf_value),
            Activation::Silu => map(x, silu_value),
            Activation::Relu => map(x, |x| x.larger(T::ZERO)),
        }
    }

    /// grad * slope(x)
    pub(crate) fn map_grad<T: Float>(self, x: &[T], grad: &[T]) -> Vec<T> {
        match self {
            Activation::GeluTanh => map2(x, grad, |x, g| g * gelu_tanh_slope(x)),
            Activation::GeluErf => map2(x, grad, |x, g| g * gelu_erf_slope(x)),
            Activation::Silu => map2(x, grad, |x, g| g * silu_slope(x)),
            Activation::Relu => map2(x, grad, |x, g| g * relu_slope(x)),
        }
    }

    /// Replaces `x` by its activation, on this thread.
    pub(crate) fn in_place<T: Float>(self, x: &mut [T]) {
        struct InPlace<'a, T, F>(&'a mut [T], F);
        impl<T: Float, F: Fn(T) -> T> Kernel for InPlace<'_, T, F> {
            type Output = ();
            #[inline(always)]
            fn run<L: Level>(self) {
                for x in self.0 {
                    *x = (self.1)(*x);
                }
            }
        }
        match self {
            Activation::GeluTanh => dispatch(InPlace(x, gelu_tanh_value)),
            Activation::GeluErf => dispatch(InPlace(x, gelu_erf_value)),
            Activation::Silu => dispatch(InPlace(x, silu_value)),
            Activation::Relu => dispatch(InPlace(x, |x: T| x.larger(T::ZERO))),
        }
    }
}

pub(crate) struct Activate(pub(crate) Activation);

impl Op<1> for Activate {
    const NAME: &'static str = "activation";

    fn forward<T: Float>(&self, [x]: [View<'_, T>; 1]) -> (Vec<T>, Shape) {
        (self.0.map(x.data), x.dims.into())
    }

    fn backward<T: Float>(
        &self,
        [x]: [View<'_, T>; 1],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 1],
    ) -> [Option<Vec<T>>; 1] {
        [Some(self.0.map_grad(x.data, grad.data))]
    }
}

pub(crate) struct SwiGlu;

impl Op<2> for SwiGlu {
    const NAME: &'static str = "swiglu";

    fn forward<T: Float>(&self, [gate, up]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        (map2(gate.data, up.data, |gate, up| silu_value(gate) * up), gate.dims.into())
    }

    fn backward<T: Float>(
        &self,
        [gate, up]: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        _needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let through_up = map2(up.data, grad.data, |up, grad| up * grad);
        [
            Some(map2(gate.data, &through_up, |gate, g| g * silu_slope(gate))),
            Some(map2(gate.data, grad.data, |gate, g| g * silu_value(gate))),
        ]
    }
}

fn activate(op: &'static str, x: &Tensor, activation: Activation) -> Result<Tensor> {
    check::float(op, "x", x)?;
    Ok(apply1(Activate(activation), x)?)
}

/// GELU by its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), of any shape.
///
/// Hendrycks and Gimpel 2016, arXiv 1606.08415; `gelu_pytorch_tanh`.
///
/// # Errors
/// `x` must be f32 or f64.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activate("gelu_tanh", x, Activation::GeluTanh)
}

/// GELU by the normal distribution function, 0.5 x (1 + erf(x / sqrt 2)), of any shape.
///
/// # Errors
/// `x` must be f32 or f64.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    activate("gelu_erf", x, Activation::GeluErf)
}

/// SiLU, x / (1 + exp(-x)), of any shape.
///
/// # Errors
/// `x` must be f32 or f64.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activate("silu", x, Activation::Silu)
}

/// silu(gate) * up, the gate of a Llama MLP; both of one shape and dtype.
///
/// # Errors
/// Shapes or dtypes that differ; a dtype other than f32 and f64.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    const OP: &str = "swiglu";
    check::float(OP, "gate", gate)?;
    check::same_dtype(OP, "up", up, gate)?;
    check::fits(OP, ("gate", gate), ("up", up), gate.dims() == up.dims(), "shapes must be equal")?;
    Ok(apply2(SwiGlu, gate, up)?)
}
