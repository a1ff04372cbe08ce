//! Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): what lies between the inputs and the output of a
//! piece of network is forgotten after the forward pass and computed again when the backward pass comes by.
//!
//! candle gives an operation at most three arguments, and gradients flow to arguments only. A checkpointed piece reads
//! any number of tensors (its inputs and the variables inside it), so it becomes a chain of small nodes:
//!
//! ```text
//! output <- Node <- link_n(source_n, <- link_2(source_2, <- link_1(source_1, 0)))
//! ```
//!
//! [`Node`]'s backward computes everything again, runs a backward pass of its own, and puts the gradient of every source
//! into a shared place; each [`Link`], which candle visits right after, hands the gradient of its source to candle. The
//! gradients thus end up where they always do, and nobody who reads them needs to know. Inside [`crate::value_and_grad`]
//! a piece is one record of the tape, and runs again on a tape of its own.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    TensorId, Var,
};

use crate::op::{grad_is_on, set_grad};
use crate::tape::{self, Record, Sum};

/// `f(inputs)`, of which only the inputs and the output are kept; the backward pass runs `f` again.
///
/// The gradients are those of `f(inputs)` itself, bit for bit on CPU, with one exception of rounding: where a variable
/// or an input is used several times inside *and* elsewhere, its inner contributions are added up before they meet the
/// others. (Inside [`crate::value_and_grad`] that is also the case for an input that candle's own operations made.) They
/// reach every input and every variable used in `f`; whatever else `f` reads is a constant, unless it
/// depends on a variable: then the gradient is right too, but that part of the network is gone through twice, so hand
/// such tensors over as inputs. `f` must give the same numbers both times. Pieces may be nested.
///
/// Under [`crate::no_grad`], and where nothing in `f` is trained, this is `f(inputs)`.
///
/// # Errors
/// What `f` says. In the backward pass the same comes as candle's error, with a line that says where it happened.
pub fn checkpoint<F, E>(inputs: &[&Tensor], f: F) -> std::result::Result<Tensor, E>
where
    F: Fn(&[Tensor]) -> std::result::Result<Tensor, E> + Send + Sync + 'static,
    E: From<candle_core::Error> + std::error::Error + Send + Sync + 'static,
{
    if !grad_is_on() {
        return f(&inputs.iter().map(|&input| input.clone()).collect::<Vec<_>>());
    }
    // Recorded once, to see which variables take part; the record is dropped at once.
    let constants: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let on_tape = tape::active() && inputs.iter().all(|input| input.device().is_cpu());
    let (output, records) = if on_tape {
        tape::recorded(|| f(&constants))?
    } else {
        (tape::suspended(|| f(&constants))?, Vec::new())
    };
    let mut sources = variables(&records, &output);
    drop(records);
    // candle asks for gradients of floating-point tensors only. An input given twice is one source.
    for &input in inputs {
        if is_wanted(input) && sources.iter().all(|source| source.id() != input.id()) {
            sources.push(input.clone());
        }
    }
    let output = output.detach();
    if sources.is_empty() {
        return Ok(output);
    }
    let recompute =
        move |inputs: &[Tensor]| f(inputs).map_err(|error| candle_core::Error::msg(story(&error)));
    let piece = Piece { inputs: inputs.iter().map(|&input| input.clone()).collect(), recompute };
    if on_tape {
        let output = Var::from_tensor(&output)?.into_inner();
        tape::record(sources, output.clone(), Box::new(piece));
        return Ok(output);
    }
    let gradients = Arc::new(Gradients::default());
    let mut chain = Tensor::zeros(1, output.dtype(), output.device())?;
    for source in &sources {
        chain = source.apply_op2(&chain, Link { id: source.id(), gradients: gradients.clone() })?;
    }
    Ok(chain.apply_op1(Node { piece, output: Mutex::new(Some(output)), gradients })?)
}

fn is_wanted(input: &Tensor) -> bool {
    input.track_op() && input.dtype().is_float()
}

/// The variables that `output` and whatever stands on the tape were made from.
fn variables(tape: &[Record], output: &Tensor) -> Vec<Tensor> {
    let mut seen: HashSet<TensorId> = tape.iter().map(|record| record.out.id()).collect();
    let mut found = Vec::new();
    for tensor in tape.iter().flat_map(|record| &record.args).chain([output]) {
        for node in tensor.sorted_nodes().into_iter().filter(|node| node.is_variable()) {
            if seen.insert(node.id()) {
                found.push(node.clone());
            }
        }
    }
    found
}

/// An error and its causes in one line: candle's errors carry text only.
fn story(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What is needed to compute a piece again.
struct Piece<F> {
    /// As they were given, with their history: their identity says whose gradient is whose.
    inputs: Vec<Tensor>,
    recompute: F,
}

impl<F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync> Piece<F> {
    /// The inputs for another run: those that want gradients are variables. By the input's identity, those that had to
    /// be made: without memory of their own they could not be leaves.
    fn leaves(&self) -> Result<(Vec<Tensor>, HashMap<TensorId, Var>)> {
        let mut leaves: HashMap<TensorId, Var> = HashMap::new();
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            if is_wanted(input) && !input.is_variable() {
                let leaf = match leaves.entry(input.id()) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(Var::from_tensor(&input.detach())?),
                };
                inputs.push(leaf.as_tensor().clone());
            } else {
                inputs.push(input.clone());
            }
        }
        Ok((inputs, leaves))
    }

    /// By candle's backward pass: gradients by source.
    fn by_candle(&self, gradient: &Tensor) -> Result<HashMap<TensorId, Tensor>> {
        let (inputs, leaves) = self.leaves()?;
        let root = (self.recompute)(&inputs)?.apply_op1(Root(gradient.clone()))?;
        let mut store = root.backward()?;
        let found = variables(&[], &root);
        drop(root);
        let mut gradients = HashMap::new();
        let sources: HashMap<TensorId, TensorId> =
            leaves.iter().map(|(&input, leaf)| (leaf.id(), input)).collect();
        for variable in found {
            if let Some(gradient) = store.remove(&variable) {
                gradients.insert(*sources.get(&variable.id()).unwrap_or(&variable.id()), gradient);
            }
        }
        Ok(gradients)
    }
}

const AGAIN: &str = "checkpoint: computing a piece again in the backward pass";

/// On our own tape, which knows no bound for the number of arguments.
impl<F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync> tape::Backward for Piece<F> {
    fn backward(&self, args: &[Tensor], _: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Sum>>> {
        let (inputs, leaves) = self.leaves()?;
        let run = || tape::recorded(|| (self.recompute)(&inputs));
        let (output, records) = set_grad(true, run).map_err(|error| error.context(AGAIN))?;
        let mut sums = tape::backward(records, &output, Sum::Shared(gradient.clone()))?;
        let of = |arg: &Tensor| leaves.get(&arg.id()).map_or(arg.id(), |leaf| leaf.id());
        Ok(args.iter().map(|arg| sums.remove(&of(arg))).collect())
    }
}

/// Gradients on their way from a [`Node`] to its [`Link`]s.
type Gradients = Mutex<HashMap<TensorId, Tensor>>;

/// The piece as an operation of candle's. Its argument, the chain, stands for all sources.
struct Node<F> {
    piece: Piece<F>,
    /// The result on its way into the node, once.
    output: Mutex<Option<Tensor>>,
    gradients: Arc<Gradients>,
}

impl<F> Node<F> {
    fn taken(&self) -> Result<Tensor> {
        let taken = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| candle_core::Error::msg("checkpoint: the forward pass ran twice"))
    }
}

/// Contiguous memory of its own with the numbers of `storage`.
fn copy<S>(storage: &S, layout: &Layout) -> Result<(S, Shape)>
where
    S: BackendStorage,
    S::Device: BackendDevice<Storage = S>,
{
    let shape = layout.shape().clone();
    let mut copy = storage.device().zeros_impl(&shape, storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, shape))
}

const ELSEWHERE: &str = "checkpoint: the output lies on another device than it was said to";

impl<F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync> CustomOp1 for Node<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let output = self.taken()?;
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => copy(storage, layout),
            _ => candle_core::bail!("{ELSEWHERE}"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let output = self.taken()?;
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => copy(storage, layout),
            _ => candle_core::bail!("{ELSEWHERE}"),
        }
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        let output = self.taken()?;
        let (storage, layout) = output.storage_and_layout();
        match &*storage {
            Storage::Metal(storage) => copy(storage, layout),
            _ => candle_core::bail!("{ELSEWHERE}"),
        }
    }

    fn bwd(&self, chain: &Tensor, _output: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let run = || tape::suspended(|| self.piece.by_candle(gradient));
        let found = set_grad(true, run).map_err(|error| error.context(AGAIN))?;
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        Ok(Some(chain.zeros_like()?))
    }
}

/// A node between a source and the [`Node`]; a single zero.
struct Link {
    id: TensorId,
    gradients: Arc<Gradients>,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "checkpoint source"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        chain: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        copy(chain, layout)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        chain: &CudaStorage,
        layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        copy(chain, layout)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        chain: &MetalStorage,
        layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        copy(chain, layout)
    }

    fn bwd(
        &self,
        source: &Tensor,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let found = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        let gradient = match found {
            Some(gradient) => Some(gradient),
            // candle insists on a gradient of whatever it goes on through.
            None if !source.is_variable() => Some(source.zeros_like()?),
            None => None,
        };
        Ok((gradient, chain.track_op().then(|| chain.zeros_like()).transpose()?))
    }
}

/// A scalar whose gradient with respect to its argument is the given tensor.
struct Root(Tensor);

fn scalar<S>(storage: &S) -> Result<(S, Shape)>
where
    S: BackendStorage,
    S::Device: BackendDevice<Storage = S>,
{
    let shape = Shape::from(());
    Ok((storage.device().zeros_impl(&shape, storage.dtype())?, shape))
}

impl CustomOp1 for Root {
    fn name(&self) -> &'static str {
        "checkpoint root"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        scalar(storage)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        scalar(storage)
    }

    fn metal_fwd(&self, storage: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        scalar(storage)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
