use candle_core::{Device, Tensor, Var};
use efference_ops::{self as ops, AttentionMask};

use crate::harness::{Arg, CASES, Case, Lie, Random, flat, for_seeds, pick};
use crate::reference::{self as r, Heads};

/// A mask of the library, and whether query i sees key j under it.
type Mask = (AttentionMask, Box<dyn Fn(usize, usize) -> bool>);

fn mask(s: Heads, random: &mut Random) -> Mask {
    let gap = s.tk.saturating_sub(s.tq);
    let mut masks: Vec<Mask> = vec![(AttentionMask::Full, Box::new(|_, _| true))];
    if s.tq <= s.tk {
        masks.push((AttentionMask::Causal, Box::new(move |i, j| j <= i + gap)));
        let first = random.below(s.tk + 2);
        masks.push((AttentionMask::Prefix(first), Box::new(move |i, j| j < first || j <= i + gap)));
    }
    if s.tq == s.tk {
        // not in order: a block may come back
        let blocks: Vec<u32> = (0..s.tk).map(|_| random.below(3) as u32).collect();
        let own = blocks.clone();
        masks.push((AttentionMask::Blocks(blocks), Box::new(move |i, j| own[j] <= own[i])));
        let segments: Vec<u32> = (0..s.tk).map(|i| (i / 3) as u32).collect();
        let own = segments.clone();
        let sees = move |i: usize, j: usize| own[j] == own[i] && j <= i;
        masks.push((AttentionMask::CausalSegments(segments), Box::new(sees)));
    }
    let which = random.below(masks.len());
    masks.swap_remove(which)
}

#[test]
fn attention() {
    for_seeds(2 * CASES, |seed, random| {
        let (h, hkv) = pick(random, &[(1, 1), (2, 2), (4, 2), (3, 1)]);
        let tq = pick(random, &[1, 2, 5, 16, 17]);
        let tk = if random.below(2) == 0 { tq } else { pick(random, &[1, 3, 17, 20]) };
        let s = Heads { b: pick(random, &[1, 2]), h, hkv, tq, tk, d: pick(random, &[1, 3, 8, 16]) };
        let (mask, visible) = mask(s, random);
        // none, some padding, or a sample whose every key is padding
        let valid: Option<Vec<Vec<bool>>> = match random.below(3) {
            0 => None,
            1 => Some((0..s.b).map(|_| (0..tk).map(|_| random.below(4) > 0).collect()).collect()),
            _ => Some((0..s.b).map(|b| (0..tk).map(|j| b > 0 && j % 2 == 0).collect()).collect()),
        };
        let scale = pick(random, &[0.3, 1.0, (s.d as f64).powf(-0.5)]);
        // scores up to thousands: one key takes it all
        let size = pick(random, &[1e-15, 1.0, 30.0]);
        let args = vec![
            Arg::random(&[s.b, h, tq, s.d], size, random),
            Arg::random(&[s.b, hkv, tk, s.d], size, random),
            Arg::random(&[s.b, hkv, tk, s.d], 1.0, random),
        ];
        let sees =
            |b: usize, i: usize, j: usize| visible(i, j) && valid.as_ref().is_none_or(|valid| valid[b][j]);
        let mut case = Case::new(
            "attention",
            args,
            |a| Ok(vec![ops::attention(&a[0], &a[1], &a[2], &mask, valid.as_deref(), scale)?]),
            |a| vec![r::attention([&a[0], &a[1], &a[2]], s, scale, &sees)],
        );
        case.floor[0] = 1e-33 * (1.0 + size);
        case.check(pick(random, &Lie::all()), seed);
    });
}

/// [B, H, T, Dh] as [B, T, H Dh], or back.
fn exchange<T: Copy>(x: &[T], [b, one, two, d]: [usize; 4]) -> Vec<T> {
    let at = |b: usize, i: usize, j: usize| ((b * one + i) * two + j) * d;
    (0..b * two * one).flat_map(|n| x[at(n / (two * one), n % one, n / one % two)..][..d].to_vec()).collect()
}

/// The same on tokens, and more keys than a block.
#[test]
fn attention_on_tokens() {
    for_seeds(CASES, |seed, random| {
        let (h, hkv) = pick(random, &[(1, 1), (4, 2), (3, 1)]);
        let tq = pick(random, &[1, 3, 17, 50]);
        let tk = if random.below(2) == 0 { tq } else { pick(random, &[1, 17, 70]) };
        let s = Heads { b: pick(random, &[1, 2]), h, hkv, tq, tk, d: pick(random, &[1, 4, 16]) };
        let (mask, visible) = mask(s, random);
        let args = vec![
            Arg::random(&[s.b, tq, h * s.d], 1.0, random),
            Arg::random(&[s.b, tk, hkv * s.d], 1.0, random),
            Arg::random(&[s.b, tk, hkv * s.d], 1.0, random),
        ];
        let mut case = Case::new(
            "attention_tokens",
            args,
            |a| Ok(vec![ops::attention_tokens(&a[0], &a[1], &a[2], (h, hkv), &mask, None, 0.5)?]),
            |a| {
                let q = exchange(&a[0], [s.b, tq, h, s.d]);
                let [k, v] = [1, 2].map(|i| exchange(&a[i], [s.b, tk, hkv, s.d]));
                let out = r::attention([&q, &k, &v], s, 0.5, &|_, i, j| visible(i, j));
                vec![exchange(&out, [s.b, h, tq, s.d])]
            },
        );
        case.floor[0] = 1e-33;
        case.check(pick(random, &Lie::all()), seed);
    });
}

/// A query that sees nothing gets zeros and gives none, whatever it holds; the others do not notice it.
#[test]
fn fully_masked_queries_are_zero() {
    let mut random = Random::new(3);
    let dims = [2, 2, 4, 8];
    let make = |random: &mut Random| {
        let arg = Arg::random(&dims, 1.0, random);
        let tensor = Tensor::from_vec(arg.values, arg.dims, &Device::Cpu).unwrap();
        Var::from_tensor(&tensor.to_dtype(candle_core::DType::F32).unwrap()).unwrap()
    };
    let [q, k, v] = [1, 2, 3].map(|_| make(&mut random));
    // sample 0 has no valid key; in sample 1 the first query sees only a padded one
    let valid = vec![vec![false; 4], vec![false, true, true, true]];
    let out = ops::attention(&q, &k, &v, &AttentionMask::Causal, Some(&valid), 0.5).unwrap();
    let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (head, token) = (4 * 8, 8);
    let out = flat(&out);
    assert!(out[..2 * head].iter().all(|&x| x == 0.0));
    for h in [2, 3] {
        assert!(out[h * head..h * head + token].iter().all(|&x| x == 0.0));
        assert!(out[h * head + token..(h + 1) * head].iter().all(|&x| x != 0.0));
    }
    for var in [&q, &k, &v] {
        let grad = flat(grads.get(var.as_tensor()).unwrap());
        assert!(grad[..2 * head].iter().all(|&x| x == 0.0));
        assert!(grad.iter().all(|x| x.is_finite()));
    }
    let dk = flat(grads.get(k.as_tensor()).unwrap());
    assert!(dk[2 * head..2 * head + token].iter().all(|&x| x == 0.0), "a padded key gets no gradient");
}
