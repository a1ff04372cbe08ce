//! Replays the transformer block of the flow generator (`dit_block` of `tests/golden/flow3d_action.json`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use efference_ops::{silu, value_and_grad};

use super::block::{DitBlock, FinalLayer};
use crate::conformance::Numbers;
use crate::error::{Error, Result};

/// A block and the last layer on tokens `x` [B, N, D] under `cond` [B, D]: results, the mean squared error to `target`,
/// and gradients. `None` for another function.
///
/// # Errors
/// Names the input that is absent or has a wrong length.
pub fn replay(
    function: &str,
    heads: usize,
    inputs: &Numbers,
) -> Option<std::result::Result<Numbers, String>> {
    (function == "dit_block").then(|| block(heads, inputs).map_err(|e| e.to_string()))
}

/// Weights as variables, made on demand so that their gradients can be asked for.
struct Weights<'a> {
    inputs: &'a Numbers,
    made: RefCell<BTreeMap<String, Var>>,
}

impl Weights<'_> {
    fn numbers(&self, name: &str) -> Result<&[f64]> {
        let missing = || Error::Query { reason: format!("the case has no usable `inputs.{name}`") };
        self.inputs.get(name).map(Vec::as_slice).ok_or_else(missing)
    }

    fn var(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let numbers = self.numbers(name)?;
        let tensor = Tensor::from_slice(numbers, dims, &Device::Cpu)?;
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        self.made.borrow_mut().insert(name.into(), var);
        Ok(tensor)
    }

    /// A weight or bias below `prefix`: a weight has as many rows as its bias has numbers.
    fn get(&self, prefix: &str, name: &str) -> Result<Tensor> {
        let full = format!("{prefix}.{name}");
        let count = self.numbers(&full)?.len();
        match full.strip_suffix(".weight") {
            None => self.var(&full, &[count]),
            Some(layer) => {
                let rows = self.numbers(&format!("{layer}.bias"))?.len().max(1);
                self.var(&full, &[rows, count / rows])
            }
        }
    }
}

fn block(heads: usize, inputs: &Numbers) -> Result<Numbers> {
    let weights = Weights { inputs, made: RefCell::default() };
    let d = weights.numbers("block.attn.proj.bias")?.len().max(1);
    let b = (weights.numbers("cond")?.len() / d).max(1);
    let n = weights.numbers("x")?.len() / (b * d);
    let o = weights.numbers("final.linear.bias")?.len();
    let target = Tensor::from_slice(weights.numbers("target")?, (b, n, o), &Device::Cpu)?;
    let (x, cond) = (weights.var("x", &[b, n, d])?, weights.var("cond", &[b, d])?);
    let block = DitBlock::from_tensors(heads, &mut |name| weights.get("block", name))?;
    let last = FinalLayer::from_tensors(&mut |name| weights.get("final", name))?;
    let (mut block_out, mut final_out) = (Vec::new(), Vec::new());
    let flat = |x: &Tensor| -> Result<Vec<f64>> { Ok(x.flatten_all()?.to_vec1()?) };
    let (loss, grads) = value_and_grad(|| {
        let activated = silu(&cond)?;
        let tokens = block.forward(&x, &activated)?;
        let out = last.forward(&tokens, &activated)?;
        (block_out, final_out) = (flat(&tokens)?, flat(&out)?);
        Ok::<_, Error>((out - &target)?.sqr()?.mean_all()?)
    })?;
    let made = weights.made.borrow();
    let grad = |name: &str| -> Result<Vec<f64>> {
        let lost = || Error::Query { reason: format!("no gradient reached `{name}`") };
        flat(made.get(name).and_then(|var| grads.get(var.as_tensor())).ok_or_else(lost)?)
    };
    let outputs = [
        ("block_out", block_out),
        ("final_out", final_out),
        ("loss", vec![loss.to_scalar()?]),
        ("grad_x", grad("x")?),
        ("grad_cond", grad("cond")?),
        ("grad_qkv_weight", grad("block.attn.qkv.weight")?),
    ];
    Ok(outputs.into_iter().map(|(name, numbers)| (name.to_owned(), numbers)).collect())
}
