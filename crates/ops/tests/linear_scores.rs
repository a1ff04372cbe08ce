//! Scores straight from hidden states: the same bits as through logits, whatever the batch and the threads, in a small
//! part of the memory.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device, Tensor, Var};
use efference_ops as ops;

/// The system's allocator, counting.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Tests of this file run one at a time, so that the counts are theirs.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes `f` needs at most beyond what was there.
fn peak<R>(f: impl FnOnce() -> R) -> (R, usize) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = f();
    (result, PEAK.load(Relaxed) - before)
}

fn numbers(dims: &[usize], seed: u64) -> Tensor {
    let n: usize = dims.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0
    };
    Tensor::from_vec((0..n).map(|_| next()).collect::<Vec<f32>>(), dims, &Device::Cpu).unwrap()
}

fn ids(n: usize, v: usize) -> Tensor {
    let ids: Vec<u32> = (0..n).map(|i| ((i * 7919 + 13) % v) as u32).collect();
    Tensor::from_vec(ids, n, &Device::Cpu).unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// Both results of a loss that reads everything, and the gradients.
fn both_ways(n: usize, v: usize, d: usize) -> [(Vec<u32>, Vec<u32>, Tensor, Tensor); 2] {
    let (hidden, weight) = (numbers(&[n, d], 1), numbers(&[v, d], 2));
    let (a, b, ids) = (numbers(&[n], 3), numbers(&[n], 4), ids(n, v));
    [true, false].map(|fused| {
        let (hidden, weight) = (Var::from_tensor(&hidden).unwrap(), Var::from_tensor(&weight).unwrap());
        let scores = if fused {
            ops::linear_scores(&hidden, &weight, &ids, 1.3).unwrap()
        } else {
            ops::token_scores(&ops::linear(&hidden, &weight, None).unwrap(), &ids, 1.3).unwrap()
        };
        let loss = ((&scores.log_probs * &a).unwrap() + (&scores.entropy * &b).unwrap()).unwrap();
        let grads = loss.sum_all().unwrap().backward().unwrap();
        let grad = |v: &Var| grads.get(v.as_tensor()).unwrap().clone();
        (bits(&scores.log_probs), bits(&scores.entropy), grad(&hidden), grad(&weight))
    })
}

#[test]
fn same_bits_as_through_logits() {
    let _alone = ALONE.lock().unwrap();
    for (n, v, d) in [(1, 1, 1), (3, 7, 5), (70, 513, 33), (300, 2500, 32), (1030, 600, 17)] {
        let [fused, plain] = both_ways(n, v, d);
        assert_eq!(fused.0, plain.0, "log-probabilities {n} {v} {d}");
        assert_eq!(fused.1, plain.1, "entropies {n} {v} {d}");
        // Slopes have the same bits and the sum over tokens the same order.
        assert_eq!(bits(&fused.3), bits(&plain.3), "vocabulary gradient {n} {v} {d}");
        let gap = (fused.2 - &plain.2).unwrap().abs().unwrap().max_all().unwrap();
        let size = plain.2.abs().unwrap().max_all().unwrap();
        let (gap, size) = (gap.to_scalar::<f32>().unwrap(), size.to_scalar::<f32>().unwrap());
        assert!(gap <= 4e-6 * size.max(1e-3), "hidden gradient {n} {v} {d}: {gap} of {size}");
    }
}

#[test]
fn same_bits_alone_in_a_batch_and_on_any_threads() {
    let _alone = ALONE.lock().unwrap();
    let (n, v, d) = (61, 700, 24);
    let (hidden, weight, ids) = (numbers(&[n, d], 1), numbers(&[v, d], 2), ids(n, v));
    let run = |hidden: &Tensor, ids: &Tensor| {
        let var = Var::from_tensor(hidden).unwrap();
        let scores = ops::linear_scores(&var, &weight, ids, 0.7).unwrap();
        let loss = (&scores.log_probs + &scores.entropy).unwrap().sum_all().unwrap();
        let grad = loss.backward().unwrap().get(var.as_tensor()).unwrap().clone();
        let smooth = ops::linear_cross_entropy(hidden, &weight, ids, 0.1).unwrap();
        [scores.log_probs, scores.entropy, smooth, grad]
    };
    let whole = run(&hidden, &ids);
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| run(&hidden, &ids));
        for (a, b) in whole.iter().zip(&again) {
            assert_eq!(bits(a), bits(b));
        }
        for row in [0, 30, 60] {
            let alone =
                pool.install(|| run(&hidden.narrow(0, row, 1).unwrap(), &ids.narrow(0, row, 1).unwrap()));
            for (a, b) in whole.iter().zip(&alone) {
                assert_eq!(bits(&a.narrow(0, row, 1).unwrap()), bits(b), "row {row}, {threads} threads");
            }
        }
    }
}

#[test]
fn a_large_vocabulary_takes_little_memory() {
    let _alone = ALONE.lock().unwrap();
    let (n, v, d) = (2048, 32_000, 16);
    let (hidden, weight, ids) = (numbers(&[n, d], 1), numbers(&[v, d], 2), ids(n, v));
    let (hidden, weight) = (Var::from_tensor(&hidden).unwrap(), Var::from_tensor(&weight).unwrap());
    let logits = n * v * 4;
    let (loss, forward) = peak(|| {
        let scores = ops::linear_scores(&hidden, &weight, &ids, 1.0).unwrap();
        (scores.log_probs + scores.entropy).unwrap().sum_all().unwrap()
    });
    let (grads, backward) = peak(|| loss.backward().unwrap());
    assert!(grads.get(hidden.as_tensor()).is_some() && grads.get(weight.as_tensor()).is_some());
    println!("logits {logits}, forward {forward}, backward {backward} bytes");
    assert!(forward < logits / 100, "forward {forward} of {logits}");
    assert!(backward < logits / 10, "backward {backward} of {logits}");
}

#[test]
fn wrong_input_is_named() {
    let (hidden, weight) = (numbers(&[3, 4], 1), numbers(&[5, 4], 2));
    let right = ids(3, 5);
    let message = |r: ops::Result<ops::TokenScores>| r.unwrap_err().to_string();
    let far = Tensor::new(&[0u32, 1, 5], &Device::Cpu).unwrap();
    assert!(message(ops::linear_scores(&hidden, &weight, &far, 1.0)).contains("5 at position 2"));
    assert!(message(ops::linear_scores(&hidden, &weight, &right, 0.0)).contains("temperature"));
    assert!(message(ops::linear_scores(&hidden, &numbers(&[5, 3], 2), &right, 1.0)).contains("[5, 3]"));
    let double = weight.to_dtype(DType::F64).unwrap();
    assert!(message(ops::linear_scores(&hidden, &double, &right, 1.0)).contains("F64"));
    assert!(ops::linear_cross_entropy(&hidden, &weight, &right, 1.5).is_err());
}
