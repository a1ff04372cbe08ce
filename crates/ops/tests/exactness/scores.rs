use candle_core::{Device, Tensor, Var};
use efference_ops as ops;

use crate::harness::{Arg, CASES, Case, Lie, Random, SIZES, flat, for_seeds, pick};
use crate::reference as r;
use crate::tape::X;

const NEVER: f64 = f64::NEG_INFINITY;

/// Logits [n, v] of some size, some of them -infinity, and ids that stay possible.
fn logits(n: usize, v: usize, size: f64, random: &mut Random) -> (Arg, Vec<u32>) {
    let mut arg = Arg::random(&[n, v], size, random);
    let ids = random.ids(n, v);
    if v > 2 && random.below(3) == 0 {
        for (row, &id) in arg.values.chunks_mut(v).zip(&ids) {
            for (j, x) in row.iter_mut().enumerate() {
                if j != id as usize && random.below(3) == 0 {
                    *x = NEVER;
                }
            }
        }
    }
    (arg, ids)
}

fn on(device: &Device, ids: &[u32]) -> Tensor {
    Tensor::from_vec(ids.to_vec(), ids.len(), device).unwrap()
}

fn split(scores: ops::TokenScores) -> Vec<Tensor> {
    vec![scores.log_probs, scores.entropy]
}

fn reference(x: &[X], ids: &[u32], v: usize, temperature: f64) -> Vec<Vec<X>> {
    let rows = x.chunks(v).zip(ids).map(|(row, &id)| r::scores(row, id as usize, 1.0 / temperature));
    let (log_probs, entropies) = rows.map(|s| (s.log_prob, s.entropy)).unzip();
    vec![log_probs, entropies]
}

/// Vocabulary sizes: small, around the chunk of 512 columns, and of several chunks.
const VOCABULARIES: [usize; 10] = [1, 2, 3, 16, 17, 33, 70, 511, 513, 1100];

#[test]
fn token_scores() {
    for_seeds(2 * CASES, |seed, random| {
        let (n, v) = (pick(random, &[1, 2, 5]), pick(random, &VOCABULARIES));
        let (temperature, size) =
            (pick(random, &[1.0, 0.5, 2.0, 1.6]), pick(random, &[1e-30, 1.0, 10.0, 1e4]));
        let (arg, ids) = logits(n, v, size, random);
        let mut case = Case::new(
            "token_scores",
            vec![arg],
            |a| Ok(split(ops::token_scores(&a[0], &on(a[0].device(), &ids), temperature)?)),
            |a| reference(&a[0], &ids, v, temperature),
        );
        // the f32 exponential ends at 2.5e-38
        case.floor[0] = 1e-33 * (1.0 + size);
        case.check(pick(random, &Lie::all()), seed);
    });
}

#[test]
fn cross_entropy() {
    for_seeds(CASES, |seed, random| {
        let (n, v) = (pick(random, &[1, 2, 5]), pick(random, &VOCABULARIES));
        let (arg, ids) = logits(n, v, pick(random, &[1.0, 10.0]), random);
        for weighted in [false, true] {
            let mut args = vec![arg.clone()];
            if weighted {
                args.push(Arg::random(&[n], 1.0, random));
            }
            let case = Case::new(
                "cross_entropy",
                args,
                |a| Ok(vec![ops::cross_entropy(&a[0], &on(a[0].device(), &ids), a.get(1))?]),
                |a| {
                    let nll: Vec<X> = a[0]
                        .chunks(v)
                        .zip(&ids)
                        .map(|(row, &id)| -r::scores(row, id as usize, 1.0).log_prob)
                        .collect();
                    let Some(weight) = a.get(1) else { return vec![nll] };
                    vec![nll.iter().zip(weight).map(|(&x, &w)| x * w).collect()]
                },
            );
            case.check(pick(random, &Lie::all()), seed);
        }
    });
}

#[test]
fn cross_entropy_soft() {
    for_seeds(CASES, |seed, random| {
        let (n, v) = (pick(random, &[1, 2, 5]), pick(random, &VOCABULARIES));
        let arg = Arg::random(&[n, v], pick(random, &[1.0, 10.0, 1e4]), random);
        // targets that need not sum to one, some of them 0
        let targets: Vec<f64> = (0..n * v).map(|_| random.unit().max(0.0)).collect();
        let mut case = Case::new(
            "cross_entropy_soft",
            vec![arg],
            |a| {
                let targets = Tensor::from_vec(targets.clone(), (n, v), a[0].device())?;
                Ok(vec![ops::cross_entropy_soft(&a[0], &targets.to_dtype(a[0].dtype())?)?])
            },
            |a| {
                vec![
                    a[0].chunks(v).zip(targets.chunks(v)).map(|(x, t)| r::soft_cross_entropy(x, t)).collect(),
                ]
            },
        );
        case.floor[0] = 1e-28;
        case.check(pick(random, &Lie::all()), seed);
    });
}

/// Hidden states [n, d], vocabulary matrix [v, d] and ids.
fn head(random: &mut Random) -> (usize, usize, usize, Vec<Arg>, Vec<u32>) {
    let (n, v, d) = (pick(random, &[1, 2, 5]), pick(random, &[1, 2, 17, 33, 100, 513]), pick(random, &SIZES));
    let d = if v > 64 { d.min(5) } else { d };
    let args = vec![Arg::random(&[n, d], 1.0, random), Arg::random(&[v, d], 3.0, random)];
    let ids = random.ids(n, v);
    (n, v, d, args, ids)
}

#[test]
fn linear_scores() {
    for_seeds(CASES, |seed, random| {
        let (_, v, d, args, ids) = head(random);
        let temperature = pick(random, &[1.0, 0.5, 1.6]);
        let case = Case::new(
            "linear_scores",
            args,
            |a| Ok(split(ops::linear_scores(&a[0], &a[1], &on(a[0].device(), &ids), temperature)?)),
            |a| reference(&r::linear(&a[0], &a[1], &[], d), &ids, v, temperature),
        );
        case.check(pick(random, &Lie::all()), seed);
    });
}

/// More tokens than a round of backward, and more of a vocabulary than a strip.
#[test]
fn linear_scores_of_many_tokens_and_words() {
    for_seeds(1, |seed, random| {
        for (n, v, d) in [(1100, 3, 2), (2, 2100, 2)] {
            let ids = random.ids(n, v);
            let args = vec![Arg::random(&[n, d], 1.0, random), Arg::random(&[v, d], 3.0, random)];
            let mut case = Case::new(
                "linear_scores",
                args,
                |a| Ok(split(ops::linear_scores(&a[0], &a[1], &on(a[0].device(), &ids), 1.0)?)),
                |a| reference(&r::linear(&a[0], &a[1], &[], d), &ids, v, 1.0),
            );
            // sums of two thousand terms, over all of which f32 rounds
            case.grad_ulps = 64.0;
            case.check(Lie::Contiguous, seed);
        }
    });
}

#[test]
fn linear_cross_entropy() {
    for_seeds(CASES, |seed, random| {
        let (_, v, d, args, ids) = head(random);
        for smoothing in [0.0, 0.1, 1.0] {
            let case = Case::new(
                "linear_cross_entropy",
                args.clone(),
                |a| Ok(vec![ops::linear_cross_entropy(&a[0], &a[1], &on(a[0].device(), &ids), smoothing)?]),
                |a| {
                    let x = r::linear(&a[0], &a[1], &[], d);
                    let rows = x.chunks(v).zip(&ids).map(|(row, &id)| r::scores(row, id as usize, 1.0));
                    vec![rows.map(|s| -(s.log_prob * (1.0 - smoothing)) - s.mean * smoothing).collect()]
                },
            );
            case.check(pick(random, &Lie::all()), seed);
        }
    });
}

/// Logits that no formula should meet: the results are defined, and nothing is NaN.
#[test]
fn odd_logits_have_defined_results() {
    let rows = [
        [1e30f32, -1e30, 0.0],
        [f32::NEG_INFINITY, 0.0, 0.0],
        [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY],
        [f32::NEG_INFINITY, 0.0, 1.0],
        [-3e38, 3e38, 3e38],
    ];
    let logits = Var::new(&rows, &Device::Cpu).unwrap();
    let ids = on(&Device::Cpu, &[0, 1, 1, 0, 2]);
    let scores = ops::token_scores(&logits, &ids, 1.0).unwrap();
    let (log_probs, entropy) = (flat(&scores.log_probs), flat(&scores.entropy));
    let half = -(2f64.ln());
    assert_eq!(log_probs[0], 0.0);
    assert!((log_probs[1] - half).abs() < 1e-6 && (entropy[1] + half).abs() < 1e-6);
    assert_eq!((log_probs[2], entropy[2]), (f64::NEG_INFINITY, 0.0), "nothing is possible");
    assert_eq!(log_probs[3], f64::NEG_INFINITY);
    assert!((log_probs[4] - half).abs() < 1e-6);
    let loss = (scores.log_probs + scores.entropy).unwrap().sum_all().unwrap();
    let grad = flat(loss.backward().unwrap().get(logits.as_tensor()).unwrap());
    assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    assert!(grad[6..9].iter().all(|&g| g == 0.0), "where nothing is possible there is no gradient");
}

/// NaN in, NaN out, wherever it stands.
#[test]
fn nan_is_not_hidden() {
    for at in [0, 600, 1099] {
        for rest in [0f32, f32::NEG_INFINITY] {
            let mut row = vec![rest; 1100];
            row[at] = f32::NAN;
            let logits = Tensor::from_vec(row, (1, 1100), &Device::Cpu).unwrap();
            let scores = ops::token_scores(&logits, &on(&Device::Cpu, &[7]), 1.0).unwrap();
            assert!(flat(&scores.log_probs)[0].is_nan() && flat(&scores.entropy)[0].is_nan(), "{at} {rest}");
        }
    }
}
