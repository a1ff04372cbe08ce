use candle_core::{DType, Device, Tensor, Var};
use efference_ops as ops;

use crate::harness::{Arg, CASES, Case, Lie, SIZES, flat, for_seeds, pick};
use crate::reference as r;
use crate::tape::X;

const EPS: f64 = 1e-5;

/// Numbers of these sizes: squares of the largest still fit in f32.
const MAGNITUDES: [f64; 5] = [1e-30, 1e-3, 1.0, 100.0, 1e15];

#[test]
fn norms() {
    for_seeds(CASES, |seed, random| {
        let (rows, d) = (pick(random, &[1, 2, 7]), pick(random, &SIZES));
        let size = pick(random, &MAGNITUDES);
        let lie = pick(random, &Lie::all());
        let args = vec![
            Arg::random(&[rows, d], size, random),
            Arg::random(&[d], 1.0, random),
            Arg::random(&[d], 1.0, random),
        ];
        // A row of one number has no deviation: what is left of it is rounding, which the division blows up.
        let layer = Case::new(
            "layer_norm",
            args.clone(),
            |a| Ok(vec![ops::layer_norm(&a[0], &a[1], &a[2], EPS)?]),
            |a| vec![r::layer_norm(&a[0], &a[1], &a[2], EPS)],
        );
        layer.check(lie, seed);
        let rms = Case::new(
            "rms_norm",
            args[..2].to_vec(),
            |a| Ok(vec![ops::rms_norm(&a[0], &a[1], EPS)?]),
            |a| vec![r::rms_norm(&a[0], &a[1], EPS)],
        );
        rms.check(lie, seed);
    });
}

fn sum(a: &[Vec<X>]) -> Vec<X> {
    a[0].iter().zip(&a[1]).map(|(&x, &r)| x + r).collect()
}

/// Both results carry gradients: the sum goes on in the residual stream while its norm goes into a layer.
#[test]
fn norms_of_a_residual() {
    for_seeds(CASES, |seed, random| {
        let (rows, d) = (pick(random, &[1, 2, 7]), pick(random, &SIZES));
        let size = pick(random, &MAGNITUDES);
        let lie = pick(random, &Lie::all());
        let args = vec![
            Arg::random(&[rows, d], size, random),
            Arg::random(&[rows, d], size, random),
            Arg::random(&[d], 1.0, random),
            Arg::random(&[d], 1.0, random),
        ];
        let layer = Case::new(
            "add_layer_norm",
            args.clone(),
            |a| {
                let (sum, normed) = ops::add_layer_norm(&a[0], &a[1], &a[2], &a[3], EPS)?;
                Ok(vec![sum, normed])
            },
            |a| vec![sum(a), r::layer_norm(&sum(a), &a[2], &a[3], EPS)],
        );
        layer.check(lie, seed);
        let rms = Case::new(
            "add_rms_norm",
            args[..3].to_vec(),
            |a| {
                let (sum, normed) = ops::add_rms_norm(&a[0], &a[1], &a[2], EPS)?;
                Ok(vec![sum, normed])
            },
            |a| vec![sum(a), r::rms_norm(&sum(a), &a[2], EPS)],
        );
        rms.check(lie, seed);
    });
}

/// A batch longer than one partial sum, and a row longer than any vector.
#[test]
fn norms_over_a_long_batch() {
    for_seeds(2, |seed, random| {
        for dims in [[300, 5], [2, 1000]] {
            let d = dims[1];
            let args = vec![
                Arg::random(&dims, 1.0, random),
                Arg::random(&[d], 1.0, random),
                Arg::random(&[d], 1.0, random),
            ];
            let case = Case::new(
                "layer_norm",
                args,
                |a| Ok(vec![ops::layer_norm(&a[0], &a[1], &a[2], EPS)?]),
                |a| vec![r::layer_norm(&a[0], &a[1], &a[2], EPS)],
            );
            case.check(Lie::Contiguous, seed);
        }
    });
}

/// The pair of results has the bits of the operations it replaces, gradients included.
#[test]
fn residual_norms_are_the_two_operations() {
    for_seeds(CASES, |_, random| {
        let (rows, d) = (pick(random, &[1, 2, 40]), pick(random, &SIZES));
        let make = |dims: &[usize], values| {
            let tensor = Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
            Var::from_tensor(&tensor.to_dtype(DType::F32).unwrap()).unwrap()
        };
        let x = make(&[rows, d], random.vec(rows * d, 1.0));
        let res = make(&[rows, d], random.vec(rows * d, 1.0));
        let [w, b] = [1, 2].map(|_| make(&[d], random.vec(d, 1.0)));
        let run = |fused: bool| {
            let (sum, normed) = if fused {
                ops::add_layer_norm(&x, &res, &w, &b, EPS).unwrap()
            } else {
                let sum = (x.as_tensor() + res.as_tensor()).unwrap();
                let normed = ops::layer_norm(&sum, &w, &b, EPS).unwrap();
                (sum, normed)
            };
            let loss = (sum.sqr().unwrap() + normed.sqr().unwrap()).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let mut all = vec![flat(&sum), flat(&normed)];
            all.extend([&x, &res, &w, &b].map(|v| flat(grads.get(v.as_tensor()).unwrap())));
            all
        };
        assert_eq!(run(true), run(false));
    });
}

/// Squares that overflow f32: the row is divided by infinity, and nothing is NaN.
#[test]
fn overflowing_rows_stay_numbers() {
    let x = Var::from_slice(&[1e30f32, -1e30, 2e30, 1.0, 2.0, 4.0], (2, 3), &Device::Cpu).unwrap();
    let one = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
    for y in [ops::rms_norm(&x, &one, EPS).unwrap(), ops::layer_norm(&x, &one, &one, EPS).unwrap()] {
        let grads = y.sum_all().unwrap().backward().unwrap();
        let grad = flat(grads.get(x.as_tensor()).unwrap());
        assert!(flat(&y).iter().chain(&grad).all(|v| v.is_finite()), "{y} {grad:?}");
    }
}
