//! Linear layers, plain and with a fused activation.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Shape, Tensor};

use crate::activation::Activation;
use crate::float::Float;
use crate::matmul::{Left, Right, column_sum, multiply, outer_sum, pack};
use crate::op::{Op, View, apply2, apply3, recording};
use crate::{Result, check};

/// y = activation(x W^T + b). What the activation saw is kept for backward when gradients are wanted.
pub(crate) struct Linear {
    pub(crate) activation: Option<Activation>,
    pub(crate) keep: bool,
    pub(crate) before: OnceLock<CpuStorage>,
}

impl Linear {
    fn forward<T: Float>(&self, x: View<'_, T>, weight: View<'_, T>, bias: Option<&[T]>) -> (Vec<T>, Shape) {
        let (o, i) = (weight.dims[0], weight.dims[1]);
        let rows = x.data.len() / i;
        let packed = pack(weight.data, i, o, 1, i);
        let (left, right) = (Left::rows(x.data, i), Right::packed(&packed, i));
        let mut dims = x.dims.to_vec();
        if let Some(last) = dims.last_mut() {
            *last = o;
        }
        let y = match self.activation {
            None => multiply((rows, o, i), left, right, bias, |_, _| ()),
            Some(activation) if self.keep => {
                let before = multiply((rows, o, i), left, right, bias, |_, _| ());
                let y = activation.map(&before);
                // Set once: an operation's forward runs once.
                let _ = self.before.set(T::to_cpu_storage_owned(before));
                y
            }
            Some(activation) => {
                multiply((rows, o, i), left, right, bias, |_, rows| activation.in_place(rows))
            }
        };
        (y, dims.into())
    }

    /// Gradients of x, weight and bias.
    fn backward<T: Float>(
        &self,
        x: View<'_, T>,
        weight: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let (o, i) = (weight.dims[0], weight.dims[1]);
        let rows = x.data.len() / i;
        let before = self.before.get().and_then(|kept| T::cpu_storage_as_slice(kept).ok());
        let through = match (self.activation, before) {
            (Some(activation), Some(before)) => Some(activation.map_grad(before, grad.data)),
            _ => None,
        };
        let grad = through.as_deref().unwrap_or(grad.data);
        let dx = needs[0].then(|| {
            let packed = pack(weight.data, o, i, i, 1);
            multiply((rows, i, o), Left::rows(grad, o), Right::packed(&packed, o), None, |_, _| ())
        });
        let dw = needs[1].then(|| outer_sum(grad, x.data, rows, o, i));
        let db = needs[2].then(|| column_sum(grad, o));
        [dx, dw, db]
    }
}

impl Op<2> for Linear {
    const NAME: &'static str = "linear";

    fn forward<T: Float>(&self, [x, weight]: [View<'_, T>; 2]) -> (Vec<T>, Shape) {
        self.forward(x, weight, None)
    }

    fn backward<T: Float>(
        &self,
        [x, weight]: [View<'_, T>; 2],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 2],
    ) -> [Option<Vec<T>>; 2] {
        let [dx, dw, _] = self.backward(x, weight, grad, [needs[0], needs[1], false]);
        [dx, dw]
    }
}

impl Op<3> for Linear {
    const NAME: &'static str = "linear";

    fn forward<T: Float>(&self, [x, weight, bias]: [View<'_, T>; 3]) -> (Vec<T>, Shape) {
        self.forward(x, weight, Some(bias.data))
    }

    fn backward<T: Float>(
        &self,
        [x, weight, _]: [View<'_, T>; 3],
        _out: View<'_, T>,
        grad: View<'_, T>,
        needs: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        self.backward(x, weight, grad, needs)
    }
}

/// x W^T + b: `x` [.., I], `weight` [O, I], `bias` [O], result [.., O].
///
/// A row of the result depends on that row of `x` only, bit for bit.
///
/// # Errors
/// Shapes that do not fit, dtypes that differ or are not f32 or f64.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    apply("linear", x, weight, bias, None)
}

/// [`linear`] followed by `activation`, in one pass over the result: result [.., O].
///
/// # Errors
/// As [`linear`].
pub fn linear_act(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor> {
    apply("linear_act", x, weight, bias, Some(activation))
}

fn apply(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Option<Activation>,
) -> Result<Tensor> {
    check::float(op, "x", x)?;
    check::same_dtype(op, "weight", weight, x)?;
    check::rank(op, "weight", weight, 2, "[O, I]")?;
    let inner = check::last_dim(op, "x", x)?;
    let fits = weight.dims()[1] == inner && weight.dims()[0] > 0;
    check::fits(op, ("x", x), ("weight", weight), fits, "x is [.., I], weight [O, I]")?;
    if let Some(bias) = bias {
        check::same_dtype(op, "bias", bias, x)?;
        check::dims(op, "bias", bias, &weight.dims()[..1], "[O] of the weight")?;
    }
    let keep = recording(&[x, weight]) || bias.is_some_and(|bias| recording(&[bias]));
    let linear = Linear { activation, keep, before: OnceLock::new() };
    Ok(match bias {
        Some(bias) => apply3(linear, x, weight, bias)?,
        None => apply2(linear, x, weight)?,
    })
}
