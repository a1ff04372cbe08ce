use candle_core::{Device, Tensor, Var};
use efference_ops as ops;

use crate::harness::{Arg, CASES, Case, Lie, SIZES, flat, for_seeds, pick};
use crate::reference::{self as r, Conv};

#[test]
fn embedding() {
    for_seeds(CASES, |seed, random| {
        let (v, d, n) = (pick(random, &SIZES), pick(random, &SIZES), pick(random, &[1, 2, 40]));
        let ids = random.ids(n, v);
        let case = Case::new(
            "embedding",
            vec![Arg::random(&[v, d], pick(random, &[1e-30, 1.0, 1e30]), random)],
            |a| {
                let ids = Tensor::from_vec(ids.clone(), (1, n), a[0].device())?;
                Ok(vec![ops::embedding(&a[0], &ids)?])
            },
            |a| vec![ids.iter().flat_map(|&id| a[0][id as usize * d..][..d].to_vec()).collect()],
        );
        Lie::all().into_iter().for_each(|lie| case.check(lie, seed));
    });
}

/// Many tasks, ids that come again far apart: the same bits on any number of threads.
#[test]
fn embedding_gradients_have_the_same_bits_on_any_threads() {
    for_seeds(4, |_, random| {
        let (v, d, n) = (900, 70, 3000);
        let vocab = 50 + random.below(850);
        let ids = Tensor::from_vec(random.ids(n, vocab), n, &Device::Cpu).unwrap();
        let table = Tensor::from_vec(random.vec(v * d, 1.0), (v, d), &Device::Cpu).unwrap();
        let table = Var::from_tensor(&table.to_dtype(candle_core::DType::F32).unwrap()).unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let loss = ops::embedding(&table, &ids).unwrap().powf(3.0).unwrap().sum_all().unwrap();
                flat(loss.backward().unwrap().get(table.as_tensor()).unwrap())
            })
        };
        let one = run(1);
        assert!([2, 3, 7].into_iter().all(|threads| run(threads) == one));
    });
}

#[test]
fn patches() {
    for_seeds(CASES, |seed, random| {
        let patch = [1, 2, 3].map(|_| pick(random, &[1, 2, 3]));
        let [b, c, t, h, w] = [1, 2, 3, 4, 5].map(|_| pick(random, &[1, 2, 3]));
        let video = [b, c, t * patch[0], h * patch[1], w * patch[2]];
        let case = Case::new(
            "patches3d",
            vec![Arg::random(&video, 1.0, random)],
            |a| Ok(vec![ops::patches3d(&a[0], (patch[0], patch[1], patch[2]))?]),
            |a| vec![r::patches(&a[0], video, patch)],
        );
        case.check(pick(random, &Lie::all()), seed);
        let image = [b, c, h * patch[1], w * patch[2]];
        let case = Case::new(
            "patches2d",
            vec![Arg::random(&image, 1.0, random)],
            |a| Ok(vec![ops::patches2d(&a[0], (patch[1], patch[2]))?]),
            |a| vec![r::patches(&a[0], [b, c, 1, image[2], image[3]], [1, patch[1], patch[2]])],
        );
        case.check(pick(random, &Lie::all()), seed);
        let side = patch[1] * h;
        let case = Case::new(
            "patchify",
            vec![Arg::random(&[b, 3, side, side], 1.0, random)],
            |a| Ok(vec![ops::patchify(&a[0], patch[1])?]),
            |a| vec![r::patches(&a[0], [b, 3, 1, side, side], [1, patch[1], patch[1]])],
        );
        case.check(pick(random, &Lie::all()), seed);
    });
}

#[test]
fn conv2d() {
    for_seeds(CASES, |seed, random| {
        let kernel = [1, 2].map(|_| pick(random, &[1, 2, 3]));
        let s = Conv {
            b: pick(random, &[1, 2]),
            c: pick(random, &[1, 2, 5]),
            o: pick(random, &[1, 3, 13]),
            image: [pick(random, &[3, 5, 8]), pick(random, &[3, 6, 17])],
            kernel,
            stride: [1, 2].map(|_| pick(random, &[1, 2, 3])),
            padding: kernel.map(|k| random.below(k)),
        };
        for with_bias in [true, false] {
            let mut args = vec![
                Arg::random(&[s.b, s.c, s.image[0], s.image[1]], 1.0, random),
                Arg::random(&[s.o, s.c, kernel[0], kernel[1]], 1.0, random),
            ];
            if with_bias {
                args.push(Arg::random(&[s.o], 1.0, random));
            }
            let case = Case::new(
                "conv2d",
                args,
                |a| {
                    let (stride, padding) = ((s.stride[0], s.stride[1]), (s.padding[0], s.padding[1]));
                    Ok(vec![ops::conv2d(&a[0], &a[1], a.get(2), stride, padding)?])
                },
                |a| vec![r::conv2d(&a[0], &a[1], a.get(2).map_or(&[][..], |bias| bias), s)],
            );
            case.check(pick(random, &Lie::all()), seed);
        }
    });
}

/// More output pixels than a block, more channels than a group, more kernel elements than a panel; an image has the
/// same bits alone and in a batch.
#[test]
fn large_convolutions_follow_candle() {
    for_seeds(2, |_, random| {
        let (b, c, o, h, w) = (3, 37, 100, 21, 23);
        let make = |dims: [usize; 4], random: &mut crate::harness::Random| {
            let values = random.vec(dims.iter().product(), 1.0);
            Var::from_tensor(&Tensor::from_vec(values, &dims, &Device::Cpu).unwrap()).unwrap()
        };
        let (x, weight) = (make([b, c, h, w], random), make([o, c, 3, 3], random));
        let (ours, candles) = (
            ops::conv2d(&x, &weight, None, (2, 2), (1, 1)).unwrap(),
            x.as_tensor().conv2d(weight.as_tensor(), 1, 2, 1, 1).unwrap(),
        );
        let alone = ops::conv2d(&x.narrow(0, 1, 1).unwrap(), &weight, None, (2, 2), (1, 1)).unwrap();
        assert_eq!(flat(&ours.narrow(0, 1, 1).unwrap()), flat(&alone));
        let grads = [&ours, &candles].map(|y| y.sqr().unwrap().sum_all().unwrap().backward().unwrap());
        let mut pairs = vec![(ours, candles)];
        for var in [&x, &weight] {
            let of = |i: usize| grads[i].get(var.as_tensor()).unwrap().clone();
            pairs.push((of(0), of(1)));
        }
        for (a, b) in pairs {
            let (a, b) = (flat(&a), flat(&b));
            let size = b.iter().fold(0.0f64, |s, x| s.max(x.abs()));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12 * size));
        }
    });
}
