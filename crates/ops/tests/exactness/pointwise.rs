use candle_core::Tensor;
use efference_ops::{self as ops, Activation};

use crate::harness::{Arg, CASES, Case, Lie, SIZES, for_seeds, pick};
use crate::reference as r;
use crate::tape::X;

type Pair = (&'static str, fn(&Tensor) -> ops::Result<Tensor>, fn(X) -> X);
const ALL: [Pair; 3] = [
    ("gelu_tanh", ops::gelu_tanh, r::gelu_tanh),
    ("gelu_erf", ops::gelu_erf, r::gelu_erf),
    ("silu", ops::silu, r::silu),
];

/// Sizes of arguments that an activation meets, and some it should survive.
const MAGNITUDES: [f64; 6] = [1e-30, 1e-3, 1.0, 8.0, 100.0, 1e30];

#[test]
fn activations() {
    for_seeds(CASES, |seed, random| {
        let dims = [pick(random, &SIZES), pick(random, &SIZES)];
        let size = pick(random, &MAGNITUDES);
        for (name, op, reference) in ALL {
            let mut case = Case::new(
                name,
                vec![Arg::random(&dims, size, random)],
                |a| Ok(vec![op(&a[0])?]),
                |a| vec![a[0].iter().map(|&x| reference(x)).collect()],
            );
            // x times a probability below the smallest f32; gelu_tanh stops at 12
            case.floor = [1e-35 * size.max(1.0), 1e-55 * size.max(1.0)];
            Lie::all().into_iter().for_each(|lie| case.check(lie, seed));
        }
    });
}

#[test]
fn swiglu() {
    for_seeds(CASES, |seed, random| {
        let dims = [pick(random, &SIZES), pick(random, &SIZES)];
        let size = pick(random, &[1e-15, 1e-3, 1.0, 8.0, 100.0, 1e15]);
        let mut case = Case::new(
            "swiglu",
            vec![Arg::random(&dims, size, random), Arg::random(&dims, 1.0 / size, random)],
            |a| Ok(vec![ops::swiglu(&a[0], &a[1])?]),
            |a| vec![a[0].iter().zip(&a[1]).map(|(&gate, &up)| r::silu(gate) * up).collect()],
        );
        case.floor[0] = 1e-35 * size.max(1.0);
        Lie::all().into_iter().for_each(|lie| case.check(lie, seed));
    });
}

#[test]
fn add() {
    for_seeds(CASES, |seed, random| {
        let dims = [pick(random, &SIZES), pick(random, &SIZES)];
        let size = pick(random, &[1e-30, 1.0, 1e30]);
        let args = vec![Arg::random(&dims, size, random), Arg::random(&dims, size, random)];
        let case = Case::new(
            "add",
            args,
            |a| Ok(vec![ops::add(&a[0], &a[1])?]),
            |a| vec![a[0].iter().zip(&a[1]).map(|(&x, &y)| x + y).collect()],
        );
        Lie::all().into_iter().for_each(|lie| case.check(lie, seed));
    });
}

#[test]
fn linear_with_activation() {
    type Named = (Activation, fn(X) -> X);
    let all: [Named; 4] = [
        (Activation::GeluTanh, r::gelu_tanh),
        (Activation::GeluErf, r::gelu_erf),
        (Activation::Silu, r::silu),
        (Activation::Relu, X::relu),
    ];
    for_seeds(CASES, |seed, random| {
        let (rows, i, o) = (pick(random, &[1, 2, 13]), pick(random, &SIZES), pick(random, &SIZES));
        for (activation, reference) in all {
            for with_bias in [true, false] {
                let mut args = vec![Arg::random(&[rows, i], 2.0, random), Arg::random(&[o, i], 1.0, random)];
                if with_bias {
                    args.push(Arg::random(&[o], 1.0, random));
                }
                let name = format!("linear_act {activation:?}");
                let mut case = Case::new(
                    &name,
                    args,
                    |a| Ok(vec![ops::linear_act(&a[0], &a[1], a.get(2), activation)?]),
                    |a| {
                        let bias = a.get(2).map_or(&[][..], |bias| bias);
                        vec![r::linear(&a[0], &a[1], bias, i).into_iter().map(reference).collect()]
                    },
                );
                case.floor = [1e-33, 1e-55];
                case.check(pick(random, &Lie::all()), seed);
            }
        }
    });
}
