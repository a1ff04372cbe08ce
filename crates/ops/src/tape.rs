//! Gradients of a scalar without candle's bookkeeping between our operations.
//!
//! candle's backward pass makes zeros for every gradient, adds to them in a new tensor, on one thread, and keeps all of
//! the graph until the loss is dropped. At the sizes we train on a CPU that is a good part of a step. Inside
//! [`value_and_grad`] our operations write themselves on a tape instead: gradients are moved when there is one, added in
//! place when there are more, and what an operation kept is freed as soon as it has been used.
//!
//! candle's own operations may stand anywhere between. A result of ours is a leaf for candle (a `Var`), so that a
//! stretch of candle operations is a small graph of its own; [`pull`] sends a gradient through it with candle's backward
//! pass. The numbers are the same as candle's, up to the order in which more than two gradients of one tensor are added.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, InplaceOp2, Layout, Shape, Tensor, TensorId};
use rayon::prelude::*;

use crate::Result;
use crate::float::Float;

/// A gradient on its way: ours alone, or memory that others may hold too.
pub(crate) enum Sum {
    Own(Tensor),
    Shared(Tensor),
}

/// What a record does when its result's gradient is complete: gradients of its arguments, in their order.
pub(crate) trait Backward {
    fn backward(&self, args: &[Tensor], out: &Tensor, grad: &Tensor)
    -> candle_core::Result<Vec<Option<Sum>>>;
}

struct Record {
    args: Vec<Tensor>,
    /// A `Var`, so a leaf for candle.
    out: Tensor,
    op: Box<dyn Backward>,
}

thread_local! {
    /// One list of records per [`value_and_grad`] that is under way on this thread, the innermost last.
    static TAPES: RefCell<Vec<Vec<Record>>> = const { RefCell::new(Vec::new()) };
}

/// Whether operations on this thread write themselves down.
pub(crate) fn active() -> bool {
    TAPES.with_borrow(|tapes| !tapes.is_empty())
}

/// Notes that `out`, a `Var`, came from `args` by `op`. Only while [`active`].
pub(crate) fn record(args: Vec<Tensor>, out: Tensor, op: Box<dyn Backward>) {
    TAPES.with_borrow_mut(|tapes| {
        if let Some(tape) = tapes.last_mut() {
            tape.push(Record { args, out, op });
        }
    });
}

/// Takes the tape off again, also when `f` returns early or panics.
struct Guard;

impl Guard {
    fn new() -> Self {
        TAPES.with_borrow_mut(|tapes| tapes.push(Vec::new()));
        Self
    }

    fn take(&self) -> Vec<Record> {
        TAPES.with_borrow_mut(|tapes| tapes.last_mut().map(std::mem::take).unwrap_or_default())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What the records hold is dropped outside of the borrow: it may run code that asks for the tape.
        let tape = TAPES.with_borrow_mut(Vec::pop);
        drop(tape);
    }
}

/// The scalar that `f` returns and the gradients of every `Var` it depends on, keyed as `Tensor::backward` would key
/// them. Use this, not `backward`, on what was computed inside `f`: results of our operations are leaves for candle
/// there.
///
/// # Errors
/// Those of `f`, and candle's.
pub fn value_and_grad<E: From<crate::Error>>(
    f: impl FnOnce() -> std::result::Result<Tensor, E>,
) -> std::result::Result<(Tensor, GradStore), E> {
    let guard = Guard::new();
    let loss = f()?;
    let grads = backward(guard.take(), &loss)?;
    Ok((loss.detach(), grads))
}

fn backward(tape: Vec<Record>, loss: &Tensor) -> Result<GradStore> {
    let mut sums = HashMap::new();
    let one = loss.ones_like()?;
    pull(loss, Sum::Own(one), &mut sums)?;
    for Record { args, out, op } in tape.into_iter().rev() {
        let Some(grad) = sums.remove(&out.id()) else { continue };
        let grad = grad.into_tensor().contiguous()?;
        let grads = op.backward(&args, &out, &grad)?;
        drop((grad, out, op));
        for (arg, grad) in args.iter().zip(grads) {
            if let Some(grad) = grad
                && arg.track_op()
            {
                pull(arg, grad, &mut sums)?;
            }
        }
    }
    let mut store = GradStore::default();
    for (id, sum) in sums {
        store.insert_id(id, sum.into_tensor());
    }
    Ok(store)
}

/// Sends the gradient of `to` on to the leaves behind it.
fn pull(to: &Tensor, grad: Sum, sums: &mut HashMap<TensorId, Sum>) -> candle_core::Result<()> {
    if to.is_variable() {
        return add(to.id(), grad, sums);
    }
    if !to.track_op() {
        return Ok(());
    }
    let seed = to.apply_op1(Seed(grad.into_tensor()))?;
    let mut store = seed.backward()?;
    for leaf in seed.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
        if let Some(grad) = store.remove(leaf) {
            // candle adds every gradient to zeros of its own: nobody else holds it.
            add(leaf.id(), Sum::Own(grad), sums)?;
        }
    }
    Ok(())
}

fn add(id: TensorId, grad: Sum, sums: &mut HashMap<TensorId, Sum>) -> candle_core::Result<()> {
    let sum = match sums.remove(&id) {
        None => grad,
        Some(Sum::Own(sum)) => {
            add_in_place(&sum, grad.tensor())?;
            Sum::Own(sum)
        }
        Some(Sum::Shared(sum)) => match grad {
            Sum::Own(grad) => {
                add_in_place(&grad, &sum)?;
                Sum::Own(grad)
            }
            Sum::Shared(grad) => Sum::Own(sum.add(&grad)?),
        },
    };
    sums.insert(id, sum);
    Ok(())
}

impl Sum {
    fn tensor(&self) -> &Tensor {
        match self {
            Sum::Own(tensor) | Sum::Shared(tensor) => tensor,
        }
    }

    fn into_tensor(self) -> Tensor {
        match self {
            Sum::Own(tensor) | Sum::Shared(tensor) => tensor,
        }
    }
}

/// A scalar whose gradient with respect to its argument is the given tensor.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }
    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let zero = match storage {
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            _ => CpuStorage::F32(vec![0.0]),
        };
        Ok((zero, Shape::from(())))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// Elements per task.
const CHUNK: usize = 1 << 14;

struct AddInPlace;

impl InplaceOp2 for AddInPlace {
    fn name(&self) -> &'static str {
        "add_in_place"
    }
    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        term: &CpuStorage,
        term_layout: &Layout,
    ) -> candle_core::Result<()> {
        fn run<T: Float>(sum: &mut [T], term: &[T]) {
            sum.par_chunks_mut(CHUNK).zip(term.par_chunks(CHUNK)).for_each(|(sum, term)| {
                sum.iter_mut().zip(term).for_each(|(sum, &term)| *sum += term);
            });
        }
        let (Some((a, b)), Some((c, d))) =
            (sum_layout.contiguous_offsets(), term_layout.contiguous_offsets())
        else {
            candle_core::bail!("add_in_place: a gradient is not contiguous")
        };
        match (sum, term) {
            (CpuStorage::F32(sum), CpuStorage::F32(term)) => run(&mut sum[a..b], &term[c..d]),
            (CpuStorage::F64(sum), CpuStorage::F64(term)) => run(&mut sum[a..b], &term[c..d]),
            _ => candle_core::bail!("add_in_place: two gradients of one tensor differ in dtype"),
        }
        Ok(())
    }
}

/// sum += term, for a `sum` that nobody else holds.
fn add_in_place(sum: &Tensor, term: &Tensor) -> candle_core::Result<()> {
    sum.inplace_op2(&term.contiguous()?, &AddInPlace)
}
