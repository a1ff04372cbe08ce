//! The two element-wise pieces of an adaLN block, each in one pass over memory: a layer norm that is shifted and scaled
//! by the condition, and a residual branch that is gated by it.
//!
//! Written out with tensors they are eight passes forward and more backward; at the sizes that train on a CPU these would
//! take as long as the matrix products. On other devices they are written out.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Storage, Tensor, WithDType};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// (x - mean) / sqrt(variance + eps) (1 + scale) + shift: `x` [B, N, D] normalised over D, `shift` and `scale` [B, D] the
/// same for all tokens of a sample. Gradients reach all three.
///
/// # Errors
/// Other shapes, or dtypes that differ or are neither f32 nor f64.
pub fn modulated_norm(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    check(x, "shift", shift)?;
    check(x, "scale", scale)?;
    if x.device().is_cpu() {
        let (x, shift, scale) = (x.contiguous()?, shift.contiguous()?, scale.contiguous()?);
        return Ok(x.apply_op3(&shift, &scale, ModulatedNorm { eps })?);
    }
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let spread = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let scaled = centred.broadcast_div(&spread)?.broadcast_mul(&(scale.unsqueeze(1)? + 1.0)?)?;
    Ok(scaled.broadcast_add(&shift.unsqueeze(1)?)?)
}

/// x + gate y: `x` and `y` [B, N, D], `gate` [B, D] the same for all tokens of a sample. Gradients reach all three.
///
/// # Errors
/// As [`modulated_norm`].
pub fn gated_add(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    check(x, "gate", gate)?;
    if y.dims() != x.dims() {
        let expected = format!("{:?}, the shape of x", x.dims());
        return Err(Error::Input { name: "y", got: y.dims().to_vec(), expected });
    }
    if x.device().is_cpu() {
        let (x, gate, y) = (x.contiguous()?, gate.contiguous()?, y.contiguous()?);
        return Ok(x.apply_op3(&gate, &y, GatedAdd)?);
    }
    Ok((x + y.broadcast_mul(&gate.unsqueeze(1)?)?)?)
}

fn check(x: &Tensor, name: &'static str, per_sample: &Tensor) -> Result<()> {
    let dims = x.dims();
    if dims.len() != 3 || dims.contains(&0) {
        return Err(Error::Input {
            name: "x",
            got: dims.to_vec(),
            expected: "[B, N, D], none of them 0".into(),
        });
    }
    if per_sample.dims() != [dims[0], dims[2]] {
        let expected = format!("[B, D] = [{}, {}]", dims[0], dims[2]);
        return Err(Error::Input { name, got: per_sample.dims().to_vec(), expected });
    }
    Ok(())
}

struct ModulatedNorm {
    eps: f64,
}

struct GatedAdd;

/// The numbers of an argument.
fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [T]> {
    let Some((from, to)) = layout.contiguous_offsets() else {
        candle_core::bail!("modulation: an argument is not contiguous")
    };
    Ok(&T::cpu_storage_as_slice(storage)?[from..to])
}

/// Calls `f` with the numbers of a CPU tensor.
fn with<T: WithDType, R>(
    tensor: &Tensor,
    f: impl FnOnce(&[T]) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(data) => f(slice::<T>(data, layout)?),
        _ => candle_core::bail!("modulation: an argument left the CPU"),
    }
}

/// Mean and 1 / standard deviation of a row.
fn moments<T: WithDType>(row: &[T], eps: f64) -> (T, T) {
    let n = T::from_f64(row.len() as f64);
    let mean = sum(row.iter().copied()) / n;
    let variance = sum(row.iter().map(|&x| (x - mean) * (x - mean))) / n;
    (mean, T::from_f64(1.0 / (variance.to_f64() + eps).sqrt()))
}

fn sum<T: WithDType>(values: impl Iterator<Item = T>) -> T {
    values.fold(T::zero(), |a, b| a + b)
}

fn norm_forward<T: WithDType>(x: &[T], shift: &[T], scale: &[T], (n, d): (usize, usize), eps: f64) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(n * d).enumerate().for_each(|(b, out)| {
        let (shift, scale) = (&shift[b * d..][..d], &scale[b * d..][..d]);
        for (out, x) in out.chunks_exact_mut(d).zip(x[b * n * d..].chunks_exact(d)) {
            let (mean, factor) = moments(x, eps);
            for (((out, &x), &shift), &scale) in out.iter_mut().zip(x).zip(shift).zip(scale) {
                *out = (x - mean) * factor * (T::one() + scale) + shift;
            }
        }
    });
    out
}

/// Gradients of x, shift and scale.
fn norm_backward<T: WithDType>(
    x: &[T],
    scale: &[T],
    grad: &[T],
    (n, d): (usize, usize),
    eps: f64,
) -> [Vec<T>; 3] {
    let samples = scale.len() / d;
    let mut dx = vec![T::zero(); x.len()];
    let (mut dshift, mut dscale) = (vec![T::zero(); samples * d], vec![T::zero(); samples * d]);
    let width = T::from_f64(d as f64);
    dx.par_chunks_mut(n * d)
        .zip(dshift.par_chunks_mut(d))
        .zip(dscale.par_chunks_mut(d))
        .enumerate()
        .for_each(|(b, ((dx, dshift), dscale))| {
            let scale = &scale[b * d..][..d];
            let rows = x[b * n * d..].chunks_exact(d).zip(grad[b * n * d..].chunks_exact(d));
            let (mut normal, mut inner) = (vec![T::zero(); d], vec![T::zero(); d]);
            for (dx, (x, grad)) in dx.chunks_exact_mut(d).zip(rows) {
                let (mean, factor) = moments(x, eps);
                let kept = normal.iter_mut().zip(&mut inner).zip(x.iter().zip(grad));
                let sums = dshift.iter_mut().zip(dscale.iter_mut()).zip(scale);
                for (((normal, inner), (&x, &grad)), ((dshift, dscale), &scale)) in kept.zip(sums) {
                    *normal = (x - mean) * factor;
                    *inner = grad * (T::one() + scale);
                    *dshift += grad;
                    *dscale += grad * *normal;
                }
                let flat = sum(inner.iter().copied()) / width;
                let along = sum(inner.iter().zip(&normal).map(|(&a, &b)| a * b)) / width;
                for ((dx, &inner), &normal) in dx.iter_mut().zip(&inner).zip(&normal) {
                    *dx = factor * (inner - flat - normal * along);
                }
            }
        });
    [dx, dshift, dscale]
}

fn gate_forward<T: WithDType>(x: &[T], gate: &[T], y: &[T], (n, d): (usize, usize)) -> Vec<T> {
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(n * d).enumerate().for_each(|(b, out)| {
        let gate = &gate[b * d..][..d];
        let rows = x[b * n * d..].chunks_exact(d).zip(y[b * n * d..].chunks_exact(d));
        for (out, (x, y)) in out.chunks_exact_mut(d).zip(rows) {
            for (((out, &x), &y), &gate) in out.iter_mut().zip(x).zip(y).zip(gate) {
                *out = x + gate * y;
            }
        }
    });
    out
}

/// Gradients of gate and y; that of x is the result's.
fn gate_backward<T: WithDType>(gate: &[T], y: &[T], grad: &[T], (n, d): (usize, usize)) -> [Vec<T>; 2] {
    let (mut dgate, mut dy) = (vec![T::zero(); gate.len()], vec![T::zero(); y.len()]);
    dy.par_chunks_mut(n * d).zip(dgate.par_chunks_mut(d)).enumerate().for_each(|(b, (dy, dgate))| {
        let gate = &gate[b * d..][..d];
        let rows = y[b * n * d..].chunks_exact(d).zip(grad[b * n * d..].chunks_exact(d));
        for (dy, (y, grad)) in dy.chunks_exact_mut(d).zip(rows) {
            for ((((dy, dgate), &grad), &gate), &y) in
                dy.iter_mut().zip(dgate.iter_mut()).zip(grad).zip(gate).zip(y)
            {
                *dy = grad * gate;
                *dgate += grad * y;
            }
        }
    });
    [dgate, dy]
}

/// (tokens, width) of [B, N, D].
fn sizes(layout: &Layout) -> candle_core::Result<(usize, usize)> {
    let (_, n, d) = layout.shape().dims3()?;
    Ok((n, d))
}

/// Runs the body for the dtype of a storage, with `$T` for its type.
macro_rules! for_float {
    ($storage:expr, $T:ident => $body:expr) => {
        match $storage.dtype() {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("modulation: {other:?} is neither f32 nor f64"),
        }
    };
}

impl CustomOp3 for ModulatedNorm {
    fn name(&self) -> &'static str {
        "modulated_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let size = sizes(x_layout)?;
        let out = for_float!(x, T => {
            let (x, shift) = (slice::<T>(x, x_layout)?, slice::<T>(shift, shift_layout)?);
            T::to_cpu_storage_owned(norm_forward(x, shift, slice::<T>(scale, scale_layout)?, size, self.eps))
        });
        Ok((out, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        shift: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, n, d) = x.dims3()?;
        let [dx, dshift, dscale] = for_float!(x, T => {
            let parts = with::<T, _>(x, |x| {
                with(scale, |scale| with(grad, |grad| Ok(norm_backward(x, scale, grad, (n, d), self.eps))))
            })?;
            let [dx, dshift, dscale] = parts;
            [
                Tensor::from_vec(dx, x.dims(), x.device())?,
                Tensor::from_vec(dshift, shift.dims(), x.device())?,
                Tensor::from_vec(dscale, scale.dims(), x.device())?,
            ]
        });
        Ok((Some(dx), Some(dshift), Some(dscale)))
    }
}

impl CustomOp3 for GatedAdd {
    fn name(&self) -> &'static str {
        "gated_add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gate: &CpuStorage,
        gate_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let size = sizes(x_layout)?;
        let out = for_float!(x, T => {
            let (x, gate) = (slice::<T>(x, x_layout)?, slice::<T>(gate, gate_layout)?);
            T::to_cpu_storage_owned(gate_forward(x, gate, slice::<T>(y, y_layout)?, size))
        });
        Ok((out, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gate: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (_, n, d) = x.dims3()?;
        let (dgate, dy) = for_float!(x, T => {
            let [dgate, dy] = with::<T, _>(gate, |gate| {
                with(y, |y| with(grad, |grad| Ok(gate_backward(gate, y, grad, (n, d)))))
            })?;
            (Tensor::from_vec(dgate, gate.dims(), x.device())?, Tensor::from_vec(dy, y.dims(), x.device())?)
        });
        Ok((Some(grad.clone()), Some(dgate), Some(dy)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};

    use super::*;

    fn random(dims: &[usize], seed: u64) -> Var {
        let count: usize = dims.iter().product();
        let values: Vec<f64> = (0..count).map(|i| ((i as f64 + 1.0) * (seed as f64 + 0.37)).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
    }

    /// The same written out.
    fn plain(x: &Tensor, shift: &Tensor, scale: &Tensor, gate: &Tensor) -> Tensor {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let normal = centred.broadcast_div(&(variance + 1e-6).unwrap().sqrt().unwrap()).unwrap();
        let scaled = normal.broadcast_mul(&(scale.unsqueeze(1).unwrap() + 1.0).unwrap()).unwrap();
        let y = scaled.broadcast_add(&shift.unsqueeze(1).unwrap()).unwrap();
        (x + y.broadcast_mul(&gate.unsqueeze(1).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn values_and_gradients_are_those_of_the_formula() {
        let vars = [random(&[2, 5, 7], 1), random(&[2, 7], 2), random(&[2, 7], 3), random(&[2, 7], 4)];
        let [x, shift, scale, gate] = &vars;
        let ours = gated_add(x, gate, &modulated_norm(x, shift, scale, 1e-6).unwrap()).unwrap();
        let reference = plain(x, shift, scale, gate);
        let weights = random(&[2, 5, 7], 9);
        let grads = |y: &Tensor| (y * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (a, b) = (grads(&ours), grads(&reference));
        let gap = |a: &Tensor, b: &Tensor| {
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap()
        };
        assert!(gap(&ours, &reference) < 1e-12);
        for var in &vars {
            assert!(gap(a.get(var).unwrap(), b.get(var).unwrap()) < 1e-11);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let (x, wrong) = (random(&[2, 5, 7], 1), random(&[2, 6], 2));
        let message = modulated_norm(&x, &wrong, &wrong, 1e-6).unwrap_err().to_string();
        assert!(message.contains("shift") && message.contains("[2, 7]"), "{message}");
        assert!(gated_add(&x, &random(&[2, 7], 1), &random(&[2, 4, 7], 1)).is_err());
        assert!(modulated_norm(&random(&[5, 7], 1), &wrong, &wrong, 1e-6).is_err());
    }
}
