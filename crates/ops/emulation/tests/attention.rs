//! attention_*.cu against f64: both families, forward and backward, all masks.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Call, Random, Stored, wide};
use efference_ops_emulation::{Arg, Order};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[derive(Clone, Debug)]
enum Mask {
    Full,
    Causal,
    Blocks(Vec<u32>),
    Prefix(usize),
}

impl Mask {
    fn sees(&self, query: usize, key: usize, shape: &Shape) -> bool {
        let causal = key + shape.tq <= query + shape.tk;
        match self {
            Mask::Full => true,
            Mask::Causal => causal,
            Mask::Blocks(block) => block[key] <= block[query],
            Mask::Prefix(prefix) => key < *prefix || causal,
        }
    }
    fn number(&self) -> usize {
        match self {
            Mask::Full => 0,
            Mask::Causal => 1,
            Mask::Blocks(_) => 2,
            Mask::Prefix(_) => 3,
        }
    }
}

#[derive(Clone, Debug)]
struct Shape {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    tq: usize,
    tk: usize,
    width: usize,
    scale: f64,
}

/// How a kernel family is launched.
#[derive(Clone, Copy, Debug)]
enum Family {
    TensorCore(usize),
    Plain,
    Wide,
}

impl Family {
    fn suffix(self, kind: &str) -> String {
        match self {
            Family::TensorCore(d) => format!("{kind}_d{d}"),
            Family::Plain => format!("plain_{kind}"),
            Family::Wide => format!("plain_wide_{kind}"),
        }
    }
    /// Queries of a block forward.
    fn forward_tile(self) -> usize {
        match self {
            Family::TensorCore(_) => 128,
            Family::Plain => 32,
            Family::Wide => 16,
        }
    }
    /// Rows of a block backward, threads, shared bytes forward and backward.
    fn launch(self, width: usize) -> (usize, usize, usize, usize) {
        let plain = |tile: usize| {
            let floats = |matrices, pairs| 4 * (matrices * tile * (width + 1) + pairs * tile * (tile + 1));
            (tile, 256, floats(2, 1), floats(4, 2))
        };
        match self {
            Family::TensorCore(d) => (64, 128, 512 * (d + 8), 512 * (d + 8)),
            Family::Plain => plain(32),
            Family::Wide => plain(16),
        }
    }
}

struct Problem<T> {
    shape: Shape,
    mask: Mask,
    valid: Option<Vec<u8>>,
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    dout: Vec<T>,
}

#[derive(Default)]
struct Want {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn reference<T: Stored>(problem: &Problem<T>) -> Want {
    let s = &problem.shape;
    let (q, k, v, dout) = (wide(&problem.q), wide(&problem.k), wide(&problem.v), wide(&problem.dout));
    let mut want = Want {
        out: vec![0.0; q.len()],
        lse: Vec::new(),
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; k.len()],
    };
    let d = s.width;
    for row in 0..s.batch * s.heads * s.tq {
        let (sample, head, i) = (row / s.tq / s.heads, row / s.tq % s.heads, row % s.tq);
        let kv = (sample * s.kv_heads + head / (s.heads / s.kv_heads)) * s.tk;
        let at = row * d;
        let mut scores = vec![f64::NEG_INFINITY; s.tk];
        for (j, score) in scores.iter_mut().enumerate() {
            let valid = problem.valid.as_ref().is_none_or(|valid| valid[sample * s.tk + j] != 0);
            if valid && problem.mask.sees(i, j, s) {
                *score = (0..d).map(|c| q[at + c] * k[(kv + j) * d + c]).sum::<f64>() * s.scale;
            }
        }
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if top == f64::NEG_INFINITY {
            want.lse.push(top);
            continue;
        }
        let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
        want.lse.push(top + total.ln());
        let p: Vec<f64> = scores.iter().map(|score| (score - top).exp() / total).collect();
        for (j, p) in p.iter().enumerate() {
            for c in 0..d {
                want.out[at + c] += p * v[(kv + j) * d + c];
            }
        }
        let delta: f64 = (0..d).map(|c| want.out[at + c] * dout[at + c]).sum();
        for (j, p) in p.iter().enumerate() {
            let dp: f64 = (0..d).map(|c| dout[at + c] * v[(kv + j) * d + c]).sum();
            let ds = p * (dp - delta) * s.scale;
            for c in 0..d {
                want.dv[(kv + j) * d + c] += p * dout[at + c];
                want.dk[(kv + j) * d + c] += ds * q[at + c];
                want.dq[at + c] += ds * k[(kv + j) * d + c];
            }
        }
    }
    want
}

/// Elements within `units` roundings of T of the largest, all together within half of that (in norm). Numbers are of
/// order 1; where they cancel to less than a tenth, what they were made of still sets the error.
fn near<T: Stored>(what: &str, got: &[T], want: &[f64], units: f64, context: &str) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.1f64, |a, b| a.max(b.abs()));
    let unit = T::UNIT.max(3e-7);
    let (mut error, mut size) = (0.0, 0.01 * want.len() as f64);
    for (i, (got, want)) in wide(got).iter().zip(want).enumerate() {
        let off = (got - want).abs();
        assert!(off <= units * unit * largest, "{what}[{i}] is {got:e}, expected {want:e}: {context}");
        error += off * off;
        size += want * want;
    }
    let relative = (error / size).sqrt();
    assert!(relative <= units / 2.0 * unit, "{what}: relative error {relative:e}: {context}");
}

fn run<T: Stored>(family: Family, problem: &Problem<T>, shift: usize) {
    let s = &problem.shape;
    let context = format!("{family:?} {} {s:?} {:?} {:?}", T::NAME, problem.mask, problem.valid);
    let want = reference(problem);
    let suffix = family.suffix(T::NAME);
    let (tile, block, shared_forward, shared_backward) = family.launch(s.width);
    let blocks = match &problem.mask {
        Mask::Blocks(blocks) => Some(&blocks[..]),
        _ => None,
    };
    let prefix = if let Mask::Prefix(prefix) = problem.mask { prefix } else { 0 };
    let tail = |call: Call| {
        let call = call.optional(problem.valid.as_deref()).optional(blocks);
        let call = call.i32(s.heads).i32(s.kv_heads).i32(s.tq).i32(s.tk).i32(s.width).f32(s.scale);
        call.i32(problem.mask.number()).i32(prefix).block(block).shift(shift)
    };
    let inputs = |name: &str| {
        let symbol = if name.is_empty() {
            format!("attention_{suffix}")
        } else {
            format!("attention_{name}_{suffix}")
        };
        Call::new(symbol).input(&problem.q).input(&problem.k).input(&problem.v)
    };
    let rows = s.batch * s.heads * s.tq;
    let call = tail(inputs("").output::<T>(problem.q.len()).output::<f32>(rows));
    let mut forward =
        call.grid(s.tq.div_ceil(family.forward_tile()), s.heads, s.batch).shared(shared_forward).run();
    let (out, lse): (Vec<T>, Vec<f32>) = (forward.take(), forward.take());
    near("out", &out, &want.out, 4.0, &context);
    for (got, &want) in lse.iter().zip(&want.lse) {
        let got = f64::from(*got);
        assert!(
            got == want || (got - want).abs() <= 4e-6 * (1.0 + want.abs()),
            "lse {got} {want}: {context}"
        );
    }
    if matches!(family, Family::TensorCore(_)) && s.heads != s.kv_heads {
        let call = tail(inputs("").output::<T>(problem.q.len()).output::<f32>(rows));
        let tiles = (s.heads / s.kv_heads * s.tq).div_ceil(family.forward_tile());
        let mut packed = call.grid(tiles, s.kv_heads, s.batch).shared(shared_forward).run();
        let (packed_out, packed_lse): (Vec<T>, Vec<f32>) = (packed.take(), packed.take());
        assert!(wide(&packed_out) == wide(&out) && packed_lse == lse, "packed has other bits: {context}");
    }
    // Rows that see nothing are exactly 0.
    for (row, _) in want.lse.iter().enumerate().filter(|(_, lse)| **lse == f64::NEG_INFINITY) {
        assert!(out[row * s.width..(row + 1) * s.width].iter().all(|x| x.wide() == 0.0), "{context}");
    }

    let call = Call::typed::<T>("attention_delta").input(&out).input(&problem.dout).output::<f32>(rows);
    let delta: Vec<f32> = call.i64(rows).i32(s.width).grid(rows.div_ceil(8), 1, 1).run().take();
    let gradients = |name: &str| inputs(name).input(&problem.dout).input(&lse).input(&delta);
    let call = gradients("dkdv").output::<T>(problem.k.len()).output::<T>(problem.k.len());
    let mut out = tail(call).grid(s.tk.div_ceil(tile), s.kv_heads, s.batch).shared(shared_backward).run();
    near("dk", &out.take::<T>(), &want.dk, 8.0, &context);
    near("dv", &out.take::<T>(), &want.dv, 8.0, &context);
    let call = tail(gradients("dq").output::<T>(problem.q.len()));
    let mut out = call.grid(s.tq.div_ceil(tile), s.heads, s.batch).shared(shared_backward).run();
    near("dq", &out.take::<T>(), &want.dq, 8.0, &context);
}

fn problem<T: Stored>(
    random: &mut Random,
    shape: Shape,
    mask: Mask,
    valid: Option<Vec<u8>>,
    size: f64,
) -> Problem<T> {
    let q = random.tensor(shape.batch * shape.heads * shape.tq * shape.width, size);
    let kv = shape.batch * shape.kv_heads * shape.tk * shape.width;
    let (k, v) = (random.tensor(kv, size), random.tensor(kv, 1.0));
    let dout = random.tensor(q.len(), 1.0);
    Problem { shape, mask, valid, q, k, v, dout }
}

/// The masks that a shape allows, each with and without padding: sample 0 sees nothing at all where there are others.
fn masks(random: &mut Random, shape: &Shape) -> Vec<(Mask, Option<Vec<u8>>)> {
    let mut all = vec![Mask::Full];
    if shape.tq <= shape.tk {
        all.push(Mask::Causal);
        all.push(Mask::Prefix(random.below(shape.tk + 1)));
    }
    if shape.tq == shape.tk {
        all.push(Mask::Blocks((0..shape.tk).map(|_| random.below(4) as u32).collect()));
    }
    let valid: Vec<u8> = (0..shape.batch * shape.tk)
        .map(|at| u8::from((shape.batch == 1 || at >= shape.tk) && random.below(4) > 0))
        .collect();
    all.into_iter().flat_map(|mask| [(mask.clone(), None), (mask, Some(valid.clone()))]).collect()
}

fn shape([batch, heads, kv_heads, tq, tk, width]: [usize; 6]) -> Shape {
    Shape { batch, heads, kv_heads, tq, tk, width, scale: 1.0 / (width as f64).sqrt() }
}

fn tensor_cores<T: Stored>(seed: u64) {
    let mut random = Random::new(seed);
    let cases = [
        ([1, 1, 1, 1, 1, 8], 64),
        ([2, 2, 1, 70, 70, 64], 64),
        ([1, 4, 2, 33, 100, 40], 64),
        ([2, 1, 1, 5, 130, 80], 80),
        ([1, 1, 1, 65, 64, 96], 96),
        ([1, 2, 1, 64, 129, 128], 128),
        ([1, 1, 1, 40, 40, 112], 128),
        ([1, 1, 1, 150, 170, 48], 64),
        ([2, 6, 2, 50, 60, 16], 64),
        ([1, 4, 1, 1, 70, 128], 128),
    ];
    for (sizes, d) in cases {
        let shape = shape(sizes);
        for (mask, valid) in masks(&mut random, &shape) {
            run(Family::TensorCore(d), &problem::<T>(&mut random, shape.clone(), mask, valid, 1.0), 0);
        }
    }
}

#[test]
fn tensor_cores_bf16() {
    tensor_cores::<bf16>(51);
}

#[test]
fn tensor_cores_f16() {
    tensor_cores::<f16>(52);
}

fn plain<T: Stored>() {
    let mut random = Random::new(53);
    let cases = [
        ([1, 1, 1, 1, 1, 1], Family::Plain),
        ([2, 4, 2, 5, 5, 3], Family::Plain),
        ([2, 2, 1, 34, 67, 20], Family::Plain),
        ([1, 1, 1, 33, 33, 128], Family::Plain),
        ([1, 2, 1, 17, 17, 130], Family::Wide),
        ([1, 1, 1, 3, 18, 256], Family::Wide),
    ];
    for (sizes, family) in cases {
        let shape = shape(sizes);
        for (mask, valid) in masks(&mut random, &shape) {
            run(family, &problem::<T>(&mut random, shape.clone(), mask, valid, 1.0), 1);
        }
    }
}

#[test]
fn plain_f32() {
    plain::<f32>();
}

#[test]
fn plain_halves() {
    plain::<f16>();
    plain::<bf16>();
}

/// Shapes and masks nobody thought of, the same every time.
#[test]
fn random_shapes() {
    let sizes = (1..3usize, 1..3usize, 1..4usize, 1..45usize, 0..45usize, 1..17usize);
    let mut runner = TestRunner::new_with_rng(
        Config::with_cases(12),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let run_case =
        |((batch, kv, group, tq, extra, eighths), which, seed): ((_, _, _, usize, _, usize), usize, u64)| {
            let mut random = Random::new(seed);
            let shape = shape([batch, kv * group, kv, tq, tq + extra, 8 * eighths]);
            let all = masks(&mut random, &shape);
            let (mask, valid) = all[which % all.len()].clone();
            let d = [64, 80, 96, 128].into_iter().find(|&d| shape.width <= d).unwrap();
            let p = problem::<bf16>(&mut random, shape.clone(), mask.clone(), valid.clone(), 1.0);
            run(Family::TensorCore(d), &p, 0);
            let shape = Shape { width: shape.width - 3, ..shape };
            run(Family::Plain, &problem::<f32>(&mut random, shape, mask, valid, 1.0), 1);
            Ok(())
        };
    runner.run(&(sizes, 0..8usize, any::<u64>()), run_case).unwrap();
}

/// Scores of +-hundreds: probabilities of 0 and 1, no overflow; a negative scale, and none.
#[test]
fn large_scores() {
    let mut random = Random::new(54);
    for scale in [0.5, -0.5, 0.0] {
        let shape = Shape { scale, ..shape([1, 1, 1, 20, 70, 64]) };
        let p = problem::<bf16>(&mut random, shape.clone(), Mask::Causal, None, 4.0);
        run(Family::TensorCore(64), &p, 0);
        let p = problem::<f32>(&mut random, shape, Mask::Causal, None, 8.0);
        run_loose(&p);
    }
}

/// f32 with large scores: the score itself carries an absolute error of roundings of its size.
fn run_loose(p: &Problem<f32>) {
    let want = reference(p);
    let s = &p.shape;
    let (tile, block, shared, _) = Family::Plain.launch(s.width);
    let call = Call::new("attention_plain_f32").input(&p.q).input(&p.k).input(&p.v);
    let call = call.output::<f32>(p.q.len()).output::<f32>(s.tq).null().null();
    let call = call.i32(1).i32(1).i32(s.tq).i32(s.tk).i32(s.width).f32(s.scale).i32(1).i32(0);
    let mut out = call.block(block).grid(s.tq.div_ceil(tile), 1, 1).shared(shared).run();
    for (got, want) in out.take::<f32>().iter().zip(&want.out) {
        assert!((f64::from(*got) - want).abs() < 2e-3, "{got} {want}");
    }
    for (got, want) in out.take::<f32>().iter().zip(&want.lse) {
        assert!((f64::from(*got) - want).abs() < 1e-5 * want.abs().max(1.0), "{got} {want}");
    }
}

/// What lies in one sample changes no bit of another, and padding is as good as absent.
#[test]
fn samples_stand_alone() {
    let mut random = Random::new(55);
    let both = shape([2, 2, 1, 20, 20, 64]);
    let p = problem::<bf16>(&mut random, both, Mask::Causal, None, 1.0);
    let forward = |batch: usize, tk: usize, q: &[bf16], k: &[bf16], v: &[bf16], valid: Option<&[u8]>| {
        let call = Call::new("attention_bf16_d64").input(q).input(k).input(v);
        let call = call.output::<bf16>(q.len()).output::<f32>(batch * 40).optional(valid).null();
        let call = call.i32(2).i32(1).i32(20).i32(tk).i32(64).f32(0.125).i32(0).arg(Arg::I32(0));
        let outputs = call.block(128).grid(1, 2, batch).shared(512 * 72).bytes(Order::Forward);
        outputs[0].clone()
    };
    let together = forward(2, 20, &p.q, &p.k, &p.v, None);
    let (q, kv) = (p.q.len() / 2, p.k.len() / 2);
    let alone = forward(1, 20, &p.q[q..], &p.k[kv..], &p.v[kv..], None);
    assert_eq!(together[2 * q..], alone[..]);
    // blocks that have no query do nothing
    let call = Call::new("attention_bf16_d64").input(&p.q[q..]).input(&p.k[kv..]).input(&p.v[kv..]);
    let call = call.output::<bf16>(q).output::<f32>(40).null().null().i32(2).i32(1).i32(20).i32(20).i32(64);
    let call = call.f32(0.125).i32(0).i32(0).block(128).grid(3, 2, 1).shared(512 * 72);
    assert_eq!(call.run().take::<u8>(), alone);
    // ten keys of padding behind
    let longer = |x: &[bf16]| [x, &random_like(640)].concat();
    let valid: Vec<u8> = (0..30).map(|j| u8::from(j < 20)).collect();
    let padded = forward(1, 30, &p.q[q..], &longer(&p.k[kv..]), &longer(&p.v[kv..]), Some(&valid));
    assert_eq!(padded, alone);
}

/// The on-policy promise on a device: the last query decoded alone, packed or not, has the bits it has in the whole.
#[test]
fn decoding_has_the_bits_of_the_whole() {
    let mut random = Random::new(57);
    let (heads, t) = (4, 75);
    for d in [64, 128] {
        let p = problem::<bf16>(&mut random, shape([1, heads, 2, t, t, d]), Mask::Causal, None, 1.0);
        let forward = |q: &[bf16], tq: usize, rows: usize| -> (Vec<bf16>, Vec<f32>) {
            let call = Call::new(format!("attention_bf16_d{d}")).input(q).input(&p.k).input(&p.v);
            let call = call.output::<bf16>(q.len()).output::<f32>(heads * tq).null().null();
            let call = call.i32(heads).i32(2).i32(tq).i32(t).i32(d).f32(0.1).i32(1).i32(0);
            let mut out = call.block(128).grid(1, rows, 1).shared(512 * (d + 8)).run();
            (out.take(), out.take())
        };
        let (whole, whole_lse) = forward(&p.q, t, heads);
        let last: Vec<bf16> = p.q.chunks(t * d).flat_map(|head| head[(t - 1) * d..].to_vec()).collect();
        for rows in [heads, 2] {
            let (alone, lse) = forward(&last, 1, rows);
            for head in 0..heads {
                assert_eq!(
                    alone[head * d..(head + 1) * d],
                    whole[((head + 1) * t - 1) * d..(head + 1) * t * d]
                );
                assert_eq!(lse[head], whole_lse[(head + 1) * t - 1]);
            }
        }
    }
}

fn random_like(n: usize) -> Vec<bf16> {
    Random::new(56).tensor(n, 5.0)
}
