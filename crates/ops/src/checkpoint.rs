//! Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): what lies between the inputs and the output of a
//! piece of network is forgotten after the forward pass and computed again when the backward pass comes by.
//!
//! candle gives an operation at most three arguments, and gradients flow to arguments only. A checkpointed piece reads
//! any number of tensors (its inputs and the variables inside it), so it becomes a chain of small nodes:
//!
//! ```text
//! output <- Piece <- link_n(source_n, <- link_2(source_2, <- link_1(source_1, 0)))
//! ```
//!
//! [`Piece`]'s backward computes everything again, runs a backward pass of its own, and puts the gradient of every source
//! into a shared place; each [`Link`], which candle visits right after, hands the gradient of its source to candle. The
//! gradients thus end up where they always do, and nobody who reads them needs to know.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    TensorId, Var,
};

use crate::op::{grad_is_on, set_grad};

/// `f(inputs)`, of which only the inputs and the output are kept; the backward pass runs `f` again.
///
/// The gradients are those of `f(inputs)` itself, bit for bit on CPU, with one exception of rounding: where a variable
/// or an input is used several times inside *and* elsewhere, its inner contributions are added up before they meet the
/// others. They reach every input and every variable used in `f`; whatever else `f` reads is a constant, unless it
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
    // Recorded once, to see which variables take part; the record is dropped on return.
    let constants: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let output = f(&constants)?;
    let mut sources: Vec<Tensor> =
        output.sorted_nodes().into_iter().filter(|node| node.is_variable()).cloned().collect();
    let output = output.detach();
    // candle asks for gradients of floating-point tensors only. An input given twice is one source.
    for &input in inputs {
        let wanted = input.track_op() && input.dtype().is_float();
        if wanted && sources.iter().all(|source| source.id() != input.id()) {
            sources.push(input.clone());
        }
    }
    if sources.is_empty() {
        return Ok(output);
    }
    let shared = Arc::new(Gradients::default());
    let mut chain = Tensor::zeros(1, output.dtype(), output.device())?;
    for source in &sources {
        chain = source.apply_op2(&chain, Link { id: source.id(), gradients: shared.clone() })?;
    }
    let recompute =
        move |inputs: &[Tensor]| f(inputs).map_err(|error| candle_core::Error::msg(story(&error)));
    let inputs = inputs.iter().map(|&input| input.clone()).collect();
    let piece = Piece { inputs, output: Mutex::new(Some(output)), recompute, gradients: shared };
    Ok(chain.apply_op1(piece)?)
}

/// An error and its causes in one line: candle's errors carry text only.
fn story(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Gradients on their way from a [`Piece`] to its [`Link`]s.
type Gradients = Mutex<HashMap<TensorId, Tensor>>;

/// The checkpointed piece. Its argument, the chain, stands for all sources.
struct Piece<F> {
    /// As they were given, with their history: their identity says whose gradient is whose.
    inputs: Vec<Tensor>,
    /// The result on its way into the node, once.
    output: Mutex<Option<Tensor>>,
    recompute: F,
    gradients: Arc<Gradients>,
}

impl<F> Piece<F> {
    fn taken(&self) -> Result<Tensor> {
        let taken = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| candle_core::Error::msg("checkpoint: the forward pass ran twice"))
    }
}

impl<F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync> Piece<F> {
    fn backward(&self, gradient: &Tensor) -> Result<()> {
        // Leaves with the inputs' numbers; without a copy they could not be leaves of their own.
        let mut leaves: HashMap<TensorId, Var> = HashMap::new();
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let wanted = input.track_op() && input.dtype().is_float();
            if wanted && !input.is_variable() {
                let leaf = match leaves.entry(input.id()) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(Var::from_tensor(&input.detach())?),
                };
                inputs.push(leaf.as_tensor().clone());
            } else {
                inputs.push(input.clone());
            }
        }
        let output = (self.recompute)(&inputs)?;
        let root = output.apply_op1(Root(gradient.clone()))?;
        drop(output);
        let mut store = root.backward()?;
        let variables: Vec<Tensor> =
            root.sorted_nodes().into_iter().filter(|node| node.is_variable()).cloned().collect();
        drop(root);
        let mut gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        for variable in variables {
            if let Some(gradient) = store.remove(&variable) {
                gradients.insert(variable.id(), gradient);
            }
        }
        for (id, leaf) in leaves {
            if let Some(gradient) = gradients.remove(&leaf.id()) {
                gradients.insert(id, gradient);
            }
        }
        Ok(())
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

impl<F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync> CustomOp1 for Piece<F> {
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
        let run = || self.backward(gradient);
        set_grad(true, run)
            .map_err(|error| error.context("checkpoint: computing a piece again in the backward pass"))?;
        Ok(Some(chain.zeros_like()?))
    }
}

/// A node between a source and the [`Piece`]; a single zero.
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
