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

pub(crate) struct Record {
    pub(crate) args: Vec<Tensor>,
    /// A `Var`, so a leaf for candle.
    pub(crate) out: Tensor,
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

/// What `f` returns, and the records it made, which go on no other tape.
pub(crate) fn recorded<R, E>(
    f: impl FnOnce() -> std::result::Result<R, E>,
) -> std::result::Result<(R, Vec<Record>), E> {
    let guard = Guard::new();
    let result = f()?;
    Ok((result, guard.take()))
}

/// Runs `f` as if there were no tape: what it computes goes into candle's graph.
pub(crate) fn suspended<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(Vec<Vec<Record>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TAPES.set(std::mem::take(&mut self.0));
        }
    }
    let _restore = Restore(TAPES.take());
    f()
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
    let one = loss.ones_like().map_err(crate::Error::from)?;
    let sums = backward(guard.take(), &loss, Sum::Own(one)).map_err(crate::Error::from)?;
    let mut store = GradStore::default();
    for (id, sum) in sums {
        let grad = match sum {
            Sum::Own(grad) => grad,
            // Whoever gets it may add to it in place.
            Sum::Shared(grad) => grad.copy().map_err(crate::Error::from)?.detach(),
        };
        store.insert_id(id, grad);
    }
    Ok((loss.detach(), store))
}

/// Gradients of all leaves behind `to`, whose own is `grad`. Each record is dropped as soon as it has been used.
pub(crate) fn backward(
    tape: Vec<Record>,
    to: &Tensor,
    grad: Sum,
) -> candle_core::Result<HashMap<TensorId, Sum>> {
    let mut sums = HashMap::new();
    pull(to, grad, &mut sums)?;
    // A tensor that candle made is complete when the first record that reads it has been used, and everything behind it
    // was recorded before: its gradients are summed until then and go through candle's graph once.
    let between = |arg: &Tensor| arg.track_op() && !arg.is_variable();
    let mut first_reader = HashMap::new();
    for (at, record) in tape.iter().enumerate() {
        for arg in record.args.iter().filter(|arg| between(arg)) {
            first_reader.entry(arg.id()).or_insert(at);
        }
    }
    for (at, Record { args, out, op }) in tape.into_iter().enumerate().rev() {
        if let Some(grad) = sums.remove(&out.id()) {
            let grad = grad.into_tensor().contiguous()?;
            let grads = op.backward(&args, &out, &grad)?;
            drop((grad, out, op));
            for (arg, grad) in args.iter().zip(grads) {
                if let Some(grad) = grad
                    && arg.track_op()
                {
                    add(arg.id(), grad, &mut sums)?;
                }
            }
        }
        for arg in args.iter().filter(|arg| between(arg) && first_reader[&arg.id()] == at) {
            if let Some(grad) = sums.remove(&arg.id()) {
                pull(arg, grad, &mut sums)?;
            }
        }
    }
    Ok(sums)
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
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::{BackendDevice, BackendStorage};
        let shape = Shape::from(());
        Ok((storage.device().zeros_impl(&shape, storage.dtype())?, shape))
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
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sum: &mut candle_core::CudaStorage,
        sum_layout: &Layout,
        term: &candle_core::CudaStorage,
        term_layout: &Layout,
    ) -> candle_core::Result<()> {
        crate::cuda::accumulate((sum, sum_layout), (term, term_layout))
    }
}

/// sum += term, for a `sum` that nobody else holds.
fn add_in_place(sum: &Tensor, term: &Tensor) -> candle_core::Result<()> {
    sum.inplace_op2(&term.contiguous()?, &AddInPlace)
}
