//! Optimiser arithmetic on a device, in place: AdamW, sums of gradients, their norm.

use candle_core::{DType, Result};

use super::launch::{Arg, Array, Launch, Machine, axis, symbol};
use crate::optim::Rule;

/// Numbers per partial sum of squares.
const PART: usize = 16_384;

/// Memory that is changed, from an element on.
pub(super) struct Target<'a, B> {
    pub buffer: &'a mut B,
    pub offset: usize,
}

impl<'a, B> Target<'a, B> {
    fn arg<'b>(&'b mut self) -> Arg<'b, B>
    where
        'a: 'b,
    {
        Arg::OutAt(self.buffer, self.offset)
    }
}

/// One update of `n` weights (f32) and their moments, by the bits that of the CPU.
pub(super) fn adamw<M: Machine>(
    machine: &M,
    rule: &Rule,
    mut weight: Target<'_, M::Buffer>,
    grad: Array<'_, M::Buffer>,
    mut exp_avg: Target<'_, M::Buffer>,
    mut exp_avg_sq: Target<'_, M::Buffer>,
) -> Result<()> {
    let (n, config) = (grad.len(), &rule.config);
    let mut args = vec![weight.arg(), grad.arg(), exp_avg.arg(), exp_avg_sq.arg()];
    args.extend([Arg::Null, Arg::count(n), Arg::Null]);
    let numbers = [
        rule.factor,
        config.beta1,
        1.0 - config.beta1,
        config.beta2,
        1.0 - config.beta2,
        rule.keep,
        rule.rate,
        rule.root,
        config.eps,
    ];
    args.extend(numbers.map(|x| Arg::F32(x as f32)));
    machine.launch(&symbol("adamw", grad.dtype), Launch::each(n), &mut args)
}

/// sum += term, both of one dtype.
pub(super) fn accumulate<M: Machine>(
    machine: &M,
    mut sum: Target<'_, M::Buffer>,
    term: Array<'_, M::Buffer>,
) -> Result<()> {
    let (n, dtype) = (term.len(), term.dtype.as_str());
    let args = &mut [sum.arg(), term.arg(), Arg::count(n), Arg::F32(1.0), Arg::F32(1.0)];
    machine.launch(&format!("scale_add_{dtype}_{dtype}"), Launch::each(n), args)
}

/// x *= factor, for `n` numbers.
pub(super) fn scale<M: Machine>(
    machine: &M,
    mut x: Target<'_, M::Buffer>,
    (dtype, n): (DType, usize),
    factor: f64,
) -> Result<()> {
    // y = 0 y + factor x with y = x: the kernel does not read y then.
    let args = &mut [x.arg(), Arg::Same(0), Arg::count(n), Arg::F32(0.0), Arg::F32(factor as f32)];
    let dtype = dtype.as_str();
    machine.launch(&format!("scale_add_{dtype}_{dtype}"), Launch::each(n), args)
}

/// The sum of squares in f64, one number in device memory; partial sums of fixed size are added in a fixed order.
pub(super) fn sum_of_squares<M: Machine>(machine: &M, x: Array<'_, M::Buffer>) -> Result<M::Buffer> {
    let n = x.len();
    let parts = n.div_ceil(PART);
    let mut partial = machine.alloc(DType::F64, parts)?;
    let args = &mut [x.arg(), Arg::Out(&mut partial), Arg::count(n)];
    machine.launch(&symbol("sum_squares", x.dtype), Launch::new([axis(parts)?, 1, 1], 256), args)?;
    let mut sum = machine.alloc(DType::F64, 1)?;
    let args = &mut [Arg::In(&partial, 0), Arg::Out(&mut sum), Arg::count(parts)];
    machine.launch("sum_finish", Launch::new([1, 1, 1], 1024), args)?;
    Ok(sum)
}
