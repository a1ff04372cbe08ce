use candle_core::{DType, Device, Tensor};
use efference_ops as ops;
use half::{bf16, f16};

use crate::harness::{Arg, CASES, Case, Lie, SIZES, flat, for_seeds, pick};
use crate::reference as r;
use crate::tape::X;

#[test]
fn linear() {
    for_seeds(CASES, |seed, random| {
        let (rows, i, o) = (pick(random, &[1, 2, 12, 13, 33]), pick(random, &SIZES), pick(random, &SIZES));
        // numbers whose products have size 1 again, though they are tiny and huge themselves
        let size = pick(random, &[1e-30, 1e-3, 1.0, 1e30]);
        for with_bias in [true, false] {
            let mut args =
                vec![Arg::random(&[rows, i], size, random), Arg::random(&[o, i], 1.0 / size, random)];
            if with_bias {
                args.push(Arg::random(&[o], 1.0, random));
            }
            let case = Case::new(
                "linear",
                args,
                |a| Ok(vec![ops::linear(&a[0], &a[1], a.get(2))?]),
                |a| vec![r::linear(&a[0], &a[1], a.get(2).map_or(&[][..], |bias| bias), i)],
            );
            case.check(pick(random, &Lie::all()), seed);
        }
    });
}

/// A batch longer than one partial sum of the weight's gradient.
#[test]
fn linear_over_a_long_batch() {
    for_seeds(2, |seed, random| {
        let (rows, i, o) = (pick(random, &[257, 600]), 3, 2);
        let args = [vec![rows, i], vec![o, i], vec![o]].map(|dims| Arg::random(&dims, 1.0, random));
        Case::new(
            "linear",
            args.to_vec(),
            |a| Ok(vec![ops::linear(&a[0], &a[1], Some(&a[2]))?]),
            |a| vec![r::linear(&a[0], &a[1], &a[2], i)],
        )
        .check(Lie::Contiguous, seed);
    });
}

#[test]
fn linear_half() {
    for_seeds(CASES, |seed, random| {
        let (rows, i, o) = (pick(random, &[1, 2, 13, 97]), pick(random, &SIZES), pick(random, &SIZES));
        let values = random.vec(o * i, 1.0);
        for dtype in [DType::BF16, DType::F16] {
            let rounded: Vec<f64> = values
                .iter()
                .map(|&x| match dtype {
                    DType::BF16 => bf16::from_f64(x).to_f64(),
                    _ => f16::from_f64(x).to_f64(),
                })
                .collect();
            let weight = Tensor::from_vec(values.clone(), (o, i), &Device::Cpu).unwrap();
            let weight = weight.to_dtype(dtype).unwrap();
            // also as the transpose of what lies in memory, and as rows of a larger matrix
            let cut = Tensor::cat(&[&weight, &weight, &weight], 0).unwrap().narrow(0, o, o).unwrap();
            let across = weight.t().unwrap().contiguous().unwrap().t().unwrap();
            for weight in [&weight, &cut, &across] {
                for with_bias in [true, false] {
                    let mut args = vec![Arg::random(&[rows, i], 1.0, random)];
                    if with_bias {
                        args.push(Arg::random(&[o], 1.0, random));
                    }
                    let constant: Vec<X> = rounded.iter().map(|&x| X::constant(x)).collect();
                    Case::new(
                        "linear_half",
                        args,
                        |a| Ok(vec![ops::linear_half(&a[0], weight, a.get(1))?]),
                        |a| vec![r::linear(&a[0], &constant, a.get(1).map_or(&[][..], |bias| bias), i)],
                    )
                    .check(Lie::Contiguous, seed);
                }
            }
        }
    });
}

/// Half-precision storage is the same as the rounded weight in full precision, bit for bit.
#[test]
fn half_storage_changes_no_bit() {
    for_seeds(CASES, |_, random| {
        let (rows, i, o) = (pick(random, &SIZES), pick(random, &SIZES), random.below(200) + 1);
        let make = |dims: (usize, usize), values| Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
        let x = make((rows, i), random.vec(rows * i, 1.0)).to_dtype(DType::F32).unwrap();
        let weight = make((o, i), random.vec(o * i, 1.0));
        for dtype in [DType::BF16, DType::F16] {
            let half = weight.to_dtype(dtype).unwrap();
            let full = half.to_dtype(DType::F32).unwrap();
            assert_eq!(
                flat(&ops::linear_half(&x, &half, None).unwrap()),
                flat(&ops::linear(&x, &full, None).unwrap())
            );
            let ids = Tensor::from_vec(random.ids(7, o), 7, &Device::Cpu).unwrap();
            for dtype in [DType::F32, DType::F64] {
                let full = full.to_dtype(dtype).unwrap();
                assert_eq!(
                    flat(&ops::embedding_half(&half, &ids, dtype).unwrap()),
                    flat(&ops::embedding(&full, &ids).unwrap())
                );
            }
        }
    });
}
