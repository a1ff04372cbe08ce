//! Every operation on the emulated device against the same operation on the CPU in f64, forward and backward.

use std::sync::OnceLock;

use candle_core::{DType, Device, Shape, Tensor};

use super::emulated::{Emulated, Memory};
use super::optim::{self, Target};
use super::{Array, Kept};
use crate::activation::{Activate, Activation, SwiGlu};
use crate::attention::{self, Attention, AttentionMask, Order};
use crate::conv::Conv2d;
use crate::embedding::Embedding;
use crate::linear::Linear;
use crate::linear_scores::LinearScores;
use crate::norm::{Kind, Norm};
use crate::op::{Op, View};
use crate::optim::{AdamWConfig, Rule};
use crate::patches::Patches;
use crate::rotary::{RotaryTable, Rotate};
use crate::rotary_axes::{AxialRotary, Turn};
use crate::scores::{Scores, Soft};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Numbers in [-1, 1) from a counter, the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// `n` of them, each as near as `dtype` comes.
    fn take(&mut self, dtype: DType, n: usize, scale: f64) -> Vec<f64> {
        let numbers: Vec<f64> = (0..n).map(|_| scale * self.next()).collect();
        Memory::of(dtype, &numbers, 0).numbers(0)
    }
}

/// Relative error in the 2-norm that a result of this dtype may have.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 1.6e-2,
        _ => 3e-6,
    }
}

fn close(what: &str, got: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len(), "{what}: number of elements");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(wanted).map(|(a, b)| a - b));
    let size = norm(&mut wanted.iter().copied());
    // A handful of numbers may cancel to nearly nothing; their error is then that of the terms, which are about 1.
    let terms = if wanted.len() <= 64 { 0.3 * (wanted.len() as f64).sqrt() } else { 0.0 };
    assert!(error <= tolerance * size.max(terms), "{what}: relative error {:e}", error / size);
}

/// Runs `make()` on the emulated device with arguments of `dims`, and compares result and gradients with the CPU's.
/// The i-th argument starts `offset` elements into its memory.
fn compare<O: Op<N>, const N: usize>(
    what: &str,
    make: impl Fn() -> O,
    dims: [&[usize]; N],
    dtype: DType,
    offset: usize,
) {
    compare_columns(what, make, dims, dtype, offset, None);
}

/// [`compare`] for operations whose results on the CPU have more columns than the `columns` that count.
fn compare_columns<O: Op<N>, const N: usize>(
    what: &str,
    make: impl Fn() -> O,
    dims: [&[usize]; N],
    dtype: DType,
    offset: usize,
    columns: Option<usize>,
) {
    let what = format!("{what} {dims:?} {dtype:?} offset {offset}");
    let mut numbers = Numbers(what.len() as u64);
    let data = dims.map(|dims| numbers.take(dtype, dims.iter().product(), 2.0));
    let memory = data.each_ref().map(|data| Memory::of(dtype, data, offset));
    let arrays: [Array<'_, Memory>; N] =
        std::array::from_fn(|i| Array { buffer: &memory[i], offset, dims: dims[i], dtype });
    let views: [View<'_, f64>; N] = std::array::from_fn(|i| View { data: &data[i], dims: dims[i] });
    fn well<T>(what: &str, result: candle_core::Result<T>) -> T {
        result.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    let (on_cpu, op, kept) = (make(), make(), Kept::new(true));
    let (whole_out, whole_shape) = Op::forward(&on_cpu, views);
    let width = whole_shape.dims().last().copied().unwrap_or(1);
    let counted = columns.unwrap_or(width);
    let out: Vec<f64> = whole_out.chunks(width).flat_map(|row| &row[..counted]).copied().collect();
    let shape = match columns {
        None => whole_shape.clone(),
        Some(columns) => Shape::from((out.len() / columns, columns)),
    };
    let made = well(&what, op.device_forward(&Emulated, arrays, &kept));
    assert_eq!(made.shape, shape, "{what}: shape");
    let out_dtype = made.buffer.dtype();
    close(&format!("{what}: result"), &made.buffer.numbers(0), &out, tolerance(dtype));

    // Without gradients the same bits come out.
    let plain = well(&what, make().device_forward(&Emulated, arrays, &Kept::new(false)));
    assert_eq!(plain.buffer.numbers(0), made.buffer.numbers(0), "{what}: result that is not recorded");

    let grad = numbers.take(out_dtype, out.len(), 1.0);
    let grad_memory = Memory::of(out_dtype, &grad, offset);
    let out_array = Array { buffer: &made.buffer, offset: 0, dims: shape.dims(), dtype: out_dtype };
    let grad_array = Array { buffer: &grad_memory, offset, ..out_array };
    let padding = vec![0.0; width - counted];
    let grad: Vec<f64> = grad.chunks(counted).flat_map(|row| [row, padding.as_slice()].concat()).collect();
    let whole_dims = whole_shape.dims();
    let (out, grad) = (View { data: &whole_out, dims: whole_dims }, View { data: &grad, dims: whole_dims });
    let wanted = Op::backward(&on_cpu, views, out, grad, [true; N]);
    let run = |needs| well(&what, op.device_backward(&Emulated, arrays, out_array, grad_array, needs, &kept));
    let got = run([true; N]);
    let mut whole = Vec::new();
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        let (Some(got), Some(wanted)) = (got, wanted) else { panic!("{what}: no gradient {i}") };
        assert_eq!(got.dtype(), dtype, "{what}: dtype of gradient {i}");
        close(&format!("{what}: gradient {i}"), &got.numbers(0), wanted, 2.0 * tolerance(dtype));
        whole.push(got.numbers(0));
    }
    // Asked for alone, a gradient has the same bits.
    for i in 0..N {
        let alone = run(std::array::from_fn(|j| i == j));
        let Some(alone) = &alone[i] else { panic!("{what}: no gradient {i} when asked for alone") };
        assert_eq!(alone.numbers(0), whole[i], "{what}: gradient {i} alone");
    }
}

fn linear(activation: Option<Activation>) -> Linear {
    Linear { activation, keep: true, before: OnceLock::new() }
}

#[test]
fn linear_layers() {
    let activations = [None, Some(Activation::GeluTanh), Some(Activation::Relu)];
    for dtype in DTYPES {
        for (activation, offset) in activations.into_iter().zip([0, 1, 8]) {
            let what = format!("linear {activation:?}");
            compare::<_, 2>(&what, || linear(activation), [&[2, 3, 5], &[7, 5]], dtype, offset);
            compare::<_, 3>(&what, || linear(activation), [&[131, 9], &[130, 9], &[130]], dtype, offset);
            compare::<_, 3>(&what, || linear(activation), [&[1, 1], &[1, 1], &[1]], dtype, offset);
        }
    }
}

#[test]
fn activations() {
    use Activation::{GeluErf, GeluTanh, Relu, Silu};
    for dtype in DTYPES {
        for activation in [GeluTanh, GeluErf, Silu, Relu] {
            let what = format!("activation {activation:?}");
            compare(&what, || Activate(activation), [&[3, 11]], dtype, 1);
            compare(&what, || Activate(activation), [&[4096]], dtype, 0);
        }
        compare("swiglu", || SwiGlu, [&[3, 7], &[3, 7]], dtype, 1);
        compare("swiglu", || SwiGlu, [&[2, 1200], &[2, 1200]], dtype, 8);
    }
}

#[test]
fn norms() {
    for dtype in DTYPES {
        for (rows, d, offset) in [(1, 2, 0), (37, 33, 1), (5, 256, 8)] {
            let norm = |kind| move || Norm::new(kind, 1e-5);
            compare::<_, 3>("layer_norm", norm(Kind::Layer), [&[rows, d], &[d], &[d]], dtype, offset);
            compare::<_, 2>("rms_norm", norm(Kind::Rms), [&[1, rows, d], &[d]], dtype, offset);
        }
    }
}

#[test]
fn rotary() {
    for dtype in DTYPES {
        for (head_dim, offset) in [(2, 0), (10, 1), (64, 8)] {
            let table = RotaryTable::new(head_dim, 16, 1e4).expect("a table");
            let rotate = || Rotate { table: table.clone(), offset: 3, heads: None };
            compare("rotary", rotate, [&[2, 3, 5, head_dim]], dtype, offset);
        }
        let halves = AxialRotary::sections(16, 1e4, [2, 3, 3]).expect("a layout");
        let neighbours = AxialRotary::video(16, 1e4).expect("a layout");
        for (layout, batch) in [(&halves, 1), (&halves, 2), (&neighbours, 1), (&neighbours, 2u32)] {
            let positions: Vec<u32> = (0..3 * batch * 5).map(|i| i * 7 % 11).collect();
            let shape = (3, batch as usize, 5);
            let positions = Tensor::from_vec(positions, shape, &Device::Cpu).expect("positions");
            let angles = layout.at(&positions).expect("angles");
            compare("rotary on axes", || Turn(angles.clone()), [&[2, 3, 5, 16]], dtype, 0);
        }
    }
}

#[test]
fn embeddings() {
    for dtype in DTYPES {
        for (ids, width, offset) in [(vec![2], 1, 0), (vec![4, 0, 4, 4, 1, 0], 33, 1), (vec![1; 9], 136, 8)] {
            let dims = vec![ids.len(), width];
            let embedding = || Embedding { ids: ids.clone(), dims: dims.clone() };
            compare("embedding", embedding, [&[5, width]], dtype, offset);
        }
        let image = || Patches::new([1, 3, 2], [3, 1, 6, 8]);
        compare("patches", image, [&[2, 3, 6, 8]], dtype, 1);
        let video = || Patches::new([2, 8, 8], [3, 4, 16, 8]);
        compare("patches", video, [&[1, 3, 4, 16, 8]], dtype, 8);
    }
}

#[test]
fn convolutions() {
    for dtype in DTYPES {
        let conv = |stride, padding| move || Conv2d { stride, padding };
        let dims: [&[usize]; 3] = [&[2, 3, 7, 5], &[4, 3, 3, 2], &[4]];
        compare::<_, 2>("conv2d", conv([2, 1], [1, 0]), [dims[0], dims[1]], dtype, 1);
        compare::<_, 3>("conv2d", conv([1, 2], [2, 1]), dims, dtype, 8);
        compare::<_, 3>("conv2d", conv([1, 1], [0, 0]), [&[1, 1, 1, 1], &[1, 1, 1, 1], &[1]], dtype, 0);
    }
}

#[test]
fn scores() {
    for dtype in DTYPES {
        for (rows, vocab, offset) in [(1, 1, 0), (5, 33, 1), (3, 700, 8)] {
            let ids: Vec<u32> = (0..rows as u32).map(|i| i * 7 % vocab as u32).collect();
            let what = format!("token_scores of {rows}");
            if vocab > 1 {
                let scores = || Scores { ids: ids.clone(), temperature: 0.7 };
                compare(&what, scores, [&[rows, vocab]], dtype, offset);
            }
            let targets =
                Numbers(3).take(dtype, rows * vocab, 1.0).iter().map(|t| t.abs()).collect::<Vec<_>>();
            compare("cross_entropy_soft", || Soft(targets.clone()), [&[rows, vocab]], dtype, offset);
        }
    }
}

#[test]
fn scores_from_hidden_states() {
    for dtype in DTYPES {
        // The last goes beyond one chunk of the vocabulary.
        for (n, v, d, offset) in [(1, 3, 1, 0), (5, 33, 9, 1), (2, 8200, 4, 8)] {
            let ids: Vec<u32> = (0..n as u32).map(|i| (i * 8195 + 1) % v as u32).collect();
            for (uniform, columns) in [(false, 2), (true, 3)] {
                let scores = || LinearScores { ids: ids.clone(), temperature: 0.7, uniform };
                let what = format!("linear_scores {uniform}");
                compare_columns(&what, scores, [&[n, d], &[v, d]], dtype, offset, Some(columns));
            }
        }
    }
}

#[test]
fn attention() {
    let masks = |t: usize| {
        let blocks = (0..t).map(|i| (i * 3 / t) as u32).collect();
        [
            AttentionMask::Full,
            AttentionMask::Causal,
            AttentionMask::Prefix(t / 2),
            AttentionMask::Blocks(blocks),
        ]
    };
    for dtype in DTYPES {
        for (head_dim, heads, kv_heads, tq, tk, offset) in [
            (8, 4, 2, 5, 5, 0),
            (5, 2, 2, 1, 1, 1),
            (72, 2, 1, 66, 66, 8),
            (16, 2, 1, 3, 9, 0),
            (64, 12, 2, 17, 20, 0),
        ] {
            for mask in masks(tq) {
                if tq != tk && matches!(mask, AttentionMask::Blocks(_)) {
                    continue;
                }
                // The second sample's last key is padding.
                let key_valid = (0..2 * tk).map(|at| tk == 1 || at + 1 < 2 * tk).collect::<Vec<bool>>();
                let what = format!("attention {mask:?} of {heads} on {kv_heads}");
                let make = || Attention {
                    mask: mask.clone(),
                    key_valid: key_valid.clone(),
                    scale: 0.3,
                    sizes: attention::Sizes { batch: 2, heads, kv_heads, tq, tk, d: head_dim },
                    order: Order::Heads,
                    keep: true,
                    log_sums: OnceLock::new(),
                };
                let (q, kv) = ([2, heads, tq, head_dim], [2, kv_heads, tk, head_dim]);
                compare(&what, make, [&q, &kv, &kv], dtype, offset);
            }
        }
    }
}

#[test]
fn adamw_has_the_bits_of_the_cpu() {
    let (n, offset) = (1003, 3);
    let mut numbers = Numbers(9);
    let mut draw = || numbers.take(DType::F32, n, 1.0);
    let (weight, grad, exp_avg) = (draw(), draw(), draw());
    let exp_avg_sq: Vec<f64> = draw().iter().map(|x| x.abs()).collect();
    let config = AdamWConfig::default();
    let rule = Rule { config, factor: 0.37, keep: 0.99, rate: 2e-3, root: 1.7 };
    let single = |data: &[f64]| data.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (mut w, mut m, mut v) = (single(&weight), single(&exp_avg), single(&exp_avg_sq));
    rule.update(&mut w, &single(&grad), &mut m, &mut v);

    let of = |data: &[f64]| Memory::of(DType::F32, data, offset);
    let (mut on_w, on_g, mut on_m, mut on_v) = (of(&weight), of(&grad), of(&exp_avg), of(&exp_avg_sq));
    let dims = [n];
    let grad = Array { buffer: &on_g, offset, dims: &dims, dtype: DType::F32 };
    let target = |buffer| Target { buffer, offset };
    optim::adamw(&Emulated, &rule, target(&mut on_w), grad, target(&mut on_m), target(&mut on_v))
        .expect("a launch");
    for (what, got, wanted) in [("weight", on_w, w), ("exp_avg", on_m, m), ("exp_avg_sq", on_v, v)] {
        let got: Vec<u32> = got.numbers(offset).iter().map(|&x| (x as f32).to_bits()).collect();
        let wanted: Vec<u32> = wanted.iter().map(|x| x.to_bits()).collect();
        assert_eq!(got, wanted, "{what}");
    }
}

#[test]
fn gradients_are_summed_scaled_and_measured_in_place() {
    for dtype in DTYPES {
        let (n, offset) = (40_007, 2);
        let mut numbers = Numbers(4);
        let (first, second) = (numbers.take(dtype, n, 1.0), numbers.take(dtype, n, 1.0));
        let (mut sum, term) = (Memory::of(dtype, &first, offset), Memory::of(dtype, &second, offset));
        let dims = [n];
        let array = |buffer| Array { buffer, offset, dims: &dims, dtype };
        fn target(buffer: &mut Memory, offset: usize) -> Target<'_, Memory> {
            Target { buffer, offset }
        }
        optim::accumulate(&Emulated, target(&mut sum, offset), array(&term)).expect("a launch");
        let wanted: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
        close("sum", &sum.numbers(offset), &wanted, tolerance(dtype));
        optim::scale(&Emulated, target(&mut sum, offset), (dtype, n), -0.25).expect("a launch");
        let wanted: Vec<f64> = wanted.iter().map(|x| -0.25 * x).collect();
        close("scaled sum", &sum.numbers(offset), &wanted, tolerance(dtype));
        let squares = optim::sum_of_squares(&Emulated, array(&term)).expect("a launch").numbers(0);
        close("squares", &squares, &[second.iter().map(|x| x * x).sum()], 1e-12);
    }
}
