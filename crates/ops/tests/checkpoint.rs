//! Checkpointed pieces give the gradients of the network they are made of.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use efference_ops::{self as ops, Activation, AttentionMask, checkpoint};

fn numbers(dims: &[usize], seed: u64) -> Tensor {
    let n: usize = dims.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    Tensor::from_vec((0..n).map(|_| next()).collect::<Vec<f32>>(), dims, &Device::Cpu).unwrap()
}

fn var(dims: &[usize], seed: u64) -> Var {
    Var::from_tensor(&numbers(dims, seed)).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

const WIDTH: usize = 24;

/// A pre-norm transformer block with two heads.
#[derive(Clone)]
struct Block {
    weights: Vec<Tensor>,
}

impl Block {
    const SHAPES: [&'static [usize]; 8] = [
        &[WIDTH],
        &[WIDTH, WIDTH],
        &[WIDTH, WIDTH],
        &[WIDTH, WIDTH],
        &[WIDTH, WIDTH],
        &[WIDTH],
        &[3 * WIDTH, WIDTH],
        &[WIDTH, 3 * WIDTH],
    ];

    fn new(seed: u64) -> (Self, Vec<Var>) {
        let vars: Vec<Var> =
            Self::SHAPES.iter().enumerate().map(|(i, dims)| var(dims, seed * 100 + i as u64)).collect();
        (Self { weights: vars.iter().map(|v| v.as_tensor().clone()).collect() }, vars)
    }

    fn forward(&self, x: &Tensor) -> ops::Result<Tensor> {
        let w = &self.weights;
        let (b, t, d) = x.dims3()?;
        let heads = |x: Tensor| x.reshape((b, t, 2, d / 2))?.transpose(1, 2);
        let h = ops::rms_norm(x, &w[0], 1e-6)?;
        let [q, k, v] = [1, 2, 3].map(|i| heads(ops::linear(&h, &w[i], None)?).map_err(ops::Error::from));
        let seen = ops::attention(&q?, &k?, &v?, &AttentionMask::Causal, None, 0.3)?;
        let seen = seen.transpose(1, 2)?.reshape((b, t, d))?;
        let x = (x + ops::linear(&seen, &w[4], None)?)?;
        let h = ops::rms_norm(&x, &w[5], 1e-6)?;
        let h = ops::linear_act(&h, &w[6], None, Activation::Silu)?;
        Ok((x + ops::linear(&h, &w[7], None)?)?)
    }
}

/// Gradients of a sum that weighs every output differently.
fn gradients(output: &Tensor, of: &[&Tensor]) -> Vec<Vec<u32>> {
    let weights = numbers(output.dims(), 99);
    let store = (output * weights).unwrap().sum_all().unwrap().backward().unwrap();
    of.iter().map(|tensor| bits(store.get(tensor).unwrap())).collect()
}

#[test]
fn twelve_blocks_give_the_same_bits() {
    let (blocks, vars): (Vec<Block>, Vec<Vec<Var>>) = (0..12).map(|i| Block::new(i + 1)).unzip();
    let input = var(&[2, 7, WIDTH], 5);
    let run = |forget: bool| {
        // The embedding before the blocks belongs to no piece.
        let mut x = (input.as_tensor() * 1.5).unwrap();
        for block in &blocks {
            x = if forget {
                let block = block.clone();
                checkpoint(&[&x], move |x| block.forward(&x[0])).unwrap()
            } else {
                block.forward(&x).unwrap()
            };
        }
        x
    };
    let (plain, forgetful) = (run(false), run(true));
    assert_eq!(bits(&plain), bits(&forgetful));
    let of: Vec<&Tensor> = vars.iter().flatten().map(Var::as_tensor).chain([input.as_tensor()]).collect();
    let expected = gradients(&plain, &of);
    assert_eq!(expected, gradients(&forgetful, &of));
    assert!(expected.iter().all(|g| g.iter().any(|&x| x != 0)));
    // A second backward pass through the same record finds the same.
    assert_eq!(expected, gradients(&forgetful, &of));
}

/// Gradients on our own tape.
fn taped(f: impl FnOnce() -> Tensor, of: &[&Tensor]) -> Vec<Option<Vec<u32>>> {
    let loss = || -> ops::Result<Tensor> {
        let output = f();
        Ok((&output * numbers(output.dims(), 99))?.sum_all()?)
    };
    let (_, store) = ops::value_and_grad(loss).unwrap();
    of.iter().map(|tensor| store.get(tensor).map(bits)).collect()
}

#[test]
fn on_the_tape_too() {
    let (blocks, vars): (Vec<Block>, Vec<Vec<Var>>) = (0..4).map(|i| Block::new(i + 40)).unzip();
    let input = var(&[2, 7, WIDTH], 5);
    let frozen = blocks[1].weights[6].detach();
    let run = |how: usize| {
        let mut x = ops::silu(input.as_tensor()).unwrap();
        for (i, block) in blocks.iter().enumerate() {
            let mut block = block.clone();
            if i == 1 {
                block.weights[6] = frozen.clone();
            }
            x = match how {
                0 => block.forward(&x).unwrap(),
                1 => checkpoint(&[&x], move |x| block.forward(&x[0])).unwrap(),
                _ => {
                    let outer = move |x: &[Tensor]| {
                        let block = block.clone();
                        checkpoint(&[&x[0]], move |x| block.forward(&x[0]))
                    };
                    checkpoint(&[&x], outer).unwrap()
                }
            };
        }
        // Last an operation of candle's: the tape takes it in its stride.
        (x * 1.5).unwrap()
    };
    let of: Vec<&Tensor> = vars.iter().flatten().map(Var::as_tensor).chain([input.as_tensor()]).collect();
    let expected = taped(|| run(0), &of);
    assert_eq!(expected.iter().filter(|g| g.is_none()).count(), 1, "the frozen weight");
    // Not `assert_eq`: it would print every number.
    assert!(taped(|| run(1), &of) == expected);
    assert!(taped(|| run(2), &of) == expected);
    // A piece that was made before there was a tape, seen from on the tape.
    let early = run(1);
    assert!(taped(|| early.clone(), &of) == expected);
    // One that keeps nothing for gradients.
    let silent = ops::no_grad(|| run(1));
    assert!(!silent.track_op());
    let none = taped(|| ((input.as_tensor() * 1.0).unwrap() + silent).unwrap(), &of);
    assert_eq!(none.iter().filter(|g| g.is_some()).count(), 1);
}

#[test]
fn a_variable_in_two_pieces_and_one_outside() {
    let (block, vars) = Block::new(3);
    let x = var(&[1, 5, WIDTH], 8);
    let run = |forget: bool| {
        let piece = |x: &Tensor| {
            let block = block.clone();
            if forget { checkpoint(&[x], move |x| block.forward(&x[0])) } else { block.forward(x) }
        };
        let y = piece(&piece(x.as_tensor()).unwrap()).unwrap();
        ops::linear(&y, vars[1].as_tensor(), None).unwrap()
    };
    let of: Vec<&Tensor> = vars.iter().map(Var::as_tensor).chain([x.as_tensor()]).collect();
    assert_eq!(gradients(&run(false), &of), gradients(&run(true), &of));
}

#[test]
fn several_inputs_of_any_kind() {
    let (table, gate) = (var(&[9, 4], 1), var(&[2, 3, 4], 2));
    let (up, unused) = (var(&[2, 3, 4], 3), var(&[2], 4));
    let ids = Tensor::new(&[[1u32, 8, 1], [0, 3, 8]], &Device::Cpu).unwrap();
    let constant = numbers(&[2, 3, 4], 6);
    let table_in = table.as_tensor().clone();
    let f = move |x: &[Tensor]| -> ops::Result<Tensor> {
        let y = ops::swiglu(&x[0], &x[1])?;
        Ok(((y + ops::embedding(&table_in, &x[2])?)? + (&x[0] * &x[4])?)?)
    };
    // One input is derived, one a variable, one ids, one is not looked at, one a constant.
    let up_now = (up.as_tensor() + 1.0).unwrap();
    let unused_now = (unused.as_tensor() + 1.0).unwrap();
    let inputs = [gate.as_tensor(), &up_now, &ids, &unused_now, &constant];
    let owned: Vec<Tensor> = inputs.iter().map(|&x| x.clone()).collect();
    let of = [gate.as_tensor(), up.as_tensor(), table.as_tensor()];
    let expected = gradients(&f(&owned).unwrap(), &of);
    let forgetful = checkpoint(&inputs, f).unwrap();
    assert_eq!(expected, gradients(&forgetful, &of));
    let store = forgetful.sum_all().unwrap().backward().unwrap();
    assert!(store.get(&unused).is_none_or(|g| bits(g).iter().all(|&x| x == 0)));
}

#[test]
fn pieces_within_pieces() {
    let (blocks, vars): (Vec<Block>, Vec<Vec<Var>>) = (0..4).map(|i| Block::new(i + 20)).unzip();
    let x = var(&[1, 6, WIDTH], 8);
    let plain = blocks.iter().fold(x.as_tensor().clone(), |x, block| block.forward(&x).unwrap());
    let inner = |x: &Tensor, blocks: Vec<Block>| {
        checkpoint(&[x], move |x| {
            blocks.iter().try_fold(x[0].clone(), |x, block| {
                let block = block.clone();
                checkpoint(&[&x], move |x| block.forward(&x[0]))
            })
        })
    };
    let half = inner(x.as_tensor(), blocks[..2].to_vec()).unwrap();
    let nested = inner(&half, blocks[2..].to_vec()).unwrap();
    let of: Vec<&Tensor> = vars.iter().flatten().map(Var::as_tensor).chain([x.as_tensor()]).collect();
    assert_eq!(gradients(&plain, &of), gradients(&nested, &of));
}

#[test]
fn what_is_frozen_stays_so_and_nothing_is_recorded_under_no_grad() {
    let (block, vars) = Block::new(7);
    let mut frozen = block.clone();
    for i in [1, 4, 6] {
        frozen.weights[i] = frozen.weights[i].detach();
    }
    let x = numbers(&[1, 5, WIDTH], 8);
    let free: Vec<&Tensor> = [0, 2, 3, 5, 7].iter().map(|&i| vars[i].as_tensor()).collect();
    let expected = gradients(&block.forward(&x).unwrap(), &free);
    let piece = frozen.clone();
    let y = checkpoint(&[&x], move |x| piece.forward(&x[0])).unwrap();
    assert_eq!(expected, gradients(&y, &free));
    let store = y.sum_all().unwrap().backward().unwrap();
    assert!([1, 4, 6].iter().all(|&i| store.get(&vars[i]).is_none()));

    // All frozen: a constant from a constant, and a gradient that only passes through.
    let all = Block { weights: block.weights.iter().map(Tensor::detach).collect() };
    let piece = all.clone();
    assert!(!checkpoint(&[&x], move |x| piece.forward(&x[0])).unwrap().track_op());
    let input = Var::from_tensor(&x).unwrap();
    let piece = all.clone();
    let through = checkpoint(&[input.as_tensor()], move |x| piece.forward(&x[0])).unwrap();
    let expected = gradients(&all.forward(input.as_tensor()).unwrap(), &[input.as_tensor()]);
    assert_eq!(expected, gradients(&through, &[input.as_tensor()]));

    let piece = block.clone();
    let silent = ops::no_grad(|| checkpoint(&[&x], move |x| ops::linear(&x[0], &piece.weights[1], None)));
    assert!(!silent.unwrap().track_op());
}

#[test]
fn errors_come_through_and_say_where() {
    let w = var(&[3], 1);
    let wide = numbers(&[2, 4], 2);
    let weight = w.as_tensor().clone();
    let message = checkpoint(&[&wide], move |x| ops::rms_norm(&x[0], &weight, 1e-6)).unwrap_err().to_string();
    assert!(message.starts_with("rms_norm: `weight` has shape [3]"), "{message}");

    let calls = Arc::new(AtomicUsize::new(0));
    let (weight, count) = (w.as_tensor().clone(), calls.clone());
    let moody = move |x: &[Tensor]| {
        let eps = if count.fetch_add(1, Ordering::SeqCst) == 0 { 1e-6 } else { -1.0 };
        ops::rms_norm(&x[0], &weight, eps)
    };
    let y = checkpoint(&[&numbers(&[2, 3], 3)], moody).unwrap();
    let error = y.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(error.contains("again in the backward pass") && error.contains("`eps`"), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn double_precision_too() {
    let w = Var::from_tensor(&numbers(&[4, 4], 1).to_dtype(DType::F64).unwrap()).unwrap();
    let x = numbers(&[3, 4], 2).to_dtype(DType::F64).unwrap();
    let weight = w.as_tensor().clone();
    let f = move |x: &[Tensor]| ops::linear_act(&x[0], &weight, None, Activation::GeluErf);
    let gradient = |y: Tensor| {
        let store = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        store.get(&w).unwrap().to_vec2::<f64>().unwrap()
    };
    assert_eq!(
        gradient(f(std::slice::from_ref(&x)).unwrap()),
        gradient(checkpoint(&[&x], f.clone()).unwrap())
    );
}
