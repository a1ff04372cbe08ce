//! What a checkpointed network does not keep. One test, because the counters belong to the process.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use efference_ops::memory::{self, CountingAllocator};
use efference_ops::{self as ops, Activation, checkpoint};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Most bytes that `work` had in use beyond what was there before.
fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = memory::current_bytes().unwrap();
    memory::reset_peak();
    let result = work();
    (result, memory::peak_bytes().unwrap() - before)
}

#[test]
fn only_inputs_of_pieces_are_kept_and_frozen_weights_get_no_gradient() {
    let (rows, width, inner, layers) = (512, 32, 256, 10);
    let tensor = |dims: (usize, usize)| Tensor::full(0.01f32, dims, &Device::Cpu).unwrap();
    let vars: Vec<[Var; 2]> = (0..layers)
        .map(|_| [(inner, width), (width, inner)].map(|d| Var::from_tensor(&tensor(d)).unwrap()))
        .collect();
    let x = tensor((rows, width));
    let step = |forget: bool| {
        let mut h = x.clone();
        for [w1, w2] in &vars {
            let (w1, w2) = (w1.as_tensor().clone(), w2.as_tensor().clone());
            let piece = move |x: &[Tensor]| {
                let h = ops::linear_act(&x[0], &w1, None, Activation::GeluTanh)?;
                ops::linear(&h, &w2, None)
            };
            h = if forget { checkpoint(&[&h], piece).unwrap() } else { piece(&[h]).unwrap() };
        }
        let store = h.sum_all().unwrap().backward().unwrap();
        vars.iter().flatten().for_each(|v| assert!(store.get(v).is_some()));
    };
    step(true); // threads and tables of first use
    let ((), plain) = peak(|| step(false));
    let ((), forgetful) = peak(|| step(true));
    // Each piece holds two tensors of rows x inner; forgotten, there is one piece's worth and the gradients.
    let hidden = rows * inner * 4;
    assert!(plain > 2 * layers * hidden, "{plain}");
    assert!(forgetful < plain / 2 && forgetful < 8 * hidden + 2 * layers * rows * width * 4, "{forgetful}");

    // A weight that is no variable costs the backward pass neither work nor memory.
    let (big, small) = (tensor((4096, width)), tensor((8, width)));
    let big = Var::from_tensor(&big).unwrap();
    let input = Var::from_tensor(&small).unwrap();
    let backward = |weight: &Tensor| {
        let y = ops::linear(input.as_tensor(), weight, None).unwrap().sum_all().unwrap();
        peak(|| drop(y.backward().unwrap())).1
    };
    let (trained, frozen) = (backward(big.as_tensor()), backward(&big.as_detached_tensor()));
    assert!(trained >= frozen + big.elem_count() * 4, "{trained} {frozen}");
}
