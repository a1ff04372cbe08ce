//! rotary.cu and embedding.cu against f64.
mod common;

use common::{Call, Random, Stored, close, wide};

struct Rotary {
    batch: usize,
    heads: usize,
    tokens: usize,
    half: usize,
    stride: usize,
    offset: usize,
    positions: Option<Vec<u32>>,
    table: usize,
}

fn rotary<T: Stored>() {
    let mut random = Random::new(21);
    let ragged = vec![3, 0, 2, 2, 9, 1];
    let cases = [
        (1, 1, 1, 1, 0, 0, None, 1),
        (2, 3, 5, 4, 0, 3, None, 8),          // one offset, as in 1D
        (2, 3, 3, 5, 3, 0, Some(ragged), 10), // positions of each token
        (2, 2, 3, 8, 3, 0, None, 6),          // a table row per token
    ];
    for (batch, heads, tokens, half, stride, offset, positions, table) in cases {
        check::<T>(&mut random, Rotary { batch, heads, tokens, half, stride, offset, positions, table });
    }
}

fn check<T: Stored>(random: &mut Random, r: Rotary) {
    let rows = r.batch * r.heads * r.tokens;
    let n = rows * 2 * r.half;
    let x: Vec<T> = random.tensor(n, 1.0);
    let angles: Vec<f64> = (0..r.table * r.half).map(|_| random.normal(3.0)).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
    for shift in [0, 1] {
        for inverse in [0, 1] {
            let call = Call::typed::<T>("rotary").input(&x).input(&cos).input(&sin);
            let call = call.optional(r.positions.as_deref()).output::<T>(n);
            let call = call.i64(rows).i32(r.heads).i32(r.tokens).i32(r.half);
            let call = call.i32(r.stride).i32(r.offset).i32(inverse).each(rows * r.half).shift(shift);
            let out: Vec<T> = call.run().take();
            let mut want = vec![0.0; n];
            for row in 0..rows {
                let (sample, token) = (row / r.tokens / r.heads, row % r.tokens);
                let number = sample * r.stride + token;
                let at = r.positions.as_ref().map_or(number + r.offset, |p| p[number] as usize);
                for i in 0..r.half {
                    let (c, s) = (f64::from(cos[at * r.half + i]), f64::from(sin[at * r.half + i]));
                    let s = if inverse == 1 { -s } else { s };
                    let (low, high) = (row * 2 * r.half + i, row * 2 * r.half + r.half + i);
                    want[low] = x[low].wide() * c - x[high].wide() * s;
                    want[high] = x[high].wide() * c + x[low].wide() * s;
                }
            }
            close("rotary", &out, &want, 1.0, 1e-6);
        }
    }
}

#[test]
fn rotary_of_all_types() {
    for_each_type!(rotary());
}

fn embedding<T: Stored>() {
    let mut random = Random::new(22);
    for (vocab, width, n) in [(1, 1, 1), (5, 7, 3), (11, 64, 40), (3, 200, 65)] {
        let table: Vec<T> = random.tensor(vocab * width, 1.0);
        let ids: Vec<u32> = (0..n).map(|_| random.below(vocab) as u32).collect();
        let call = Call::typed::<T>("embedding").input(&table).input(&ids).output::<T>(n * width);
        let out: Vec<T> = call.i64(n).i32(width).each(n * width).shift(n % 2).run().take();
        let want: Vec<f64> =
            ids.iter().flat_map(|&id| wide(&table[id as usize * width..][..width])).collect();
        close("embedding", &out, &want, 0.0, 0.0);

        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by_key(|&i| ids[i as usize]);
        let (mut starts, mut distinct) = (Vec::new(), Vec::<u32>::new());
        for (place, &i) in order.iter().enumerate() {
            if distinct.last() != Some(&ids[i as usize]) {
                distinct.push(ids[i as usize]);
                starts.push(place as u32);
            }
        }
        starts.push(n as u32);
        let dout: Vec<T> = random.tensor(n * width, 1.0);
        let call =
            Call::typed::<T>("embedding_grad").input(&dout).input(&order).input(&starts).input(&distinct);
        let call = call.changed(&vec![T::of(0.0); vocab * width]).i32(distinct.len()).i32(width);
        let call = call.grid(distinct.len(), width.div_ceil(128), 1).shift(n % 2);
        let grad: Vec<T> = call.run().take();
        let mut want = vec![0.0; vocab * width];
        for (i, &id) in ids.iter().enumerate() {
            for c in 0..width {
                want[id as usize * width + c] += dout[i * width + c].wide();
            }
        }
        close("embedding_grad", &grad, &want, 1.0, 1e-5);
    }
}

#[test]
fn embedding_of_all_types() {
    for_each_type!(embedding());
}

fn patchify<T: Stored>() {
    let mut random = Random::new(23);
    // batch, channels, frames, height, width, tubelet, patch height, patch width
    let cases = [[1, 1, 1, 1, 1, 1, 1, 1], [2, 3, 1, 8, 12, 1, 4, 4], [1, 2, 4, 6, 4, 2, 3, 2]];
    for [b, c, f, h, w, t, ph, pw] in cases {
        let n = b * c * f * h * w;
        let x: Vec<T> = random.tensor(n, 1.0);
        let run = |x: &[T], inverse: usize| -> Vec<T> {
            let call = Call::typed::<T>("patchify").input(x).output::<T>(n).i64(n);
            let call = call.i32(c).i32(f).i32(h).i32(w).i32(t).i32(ph).i32(pw).i32(inverse);
            call.each(n).run().take()
        };
        let patches = run(&x, 0);
        let mut want = Vec::new();
        for sample in 0..b {
            for (pt, py, px) in (0..f / t)
                .flat_map(|pt| (0..h / ph).flat_map(move |py| (0..w / pw).map(move |px| (pt, py, px))))
            {
                for channel in 0..c {
                    for frame in 0..t {
                        for row in 0..ph {
                            for column in 0..pw {
                                let image = (sample * c + channel) * f + pt * t + frame;
                                let at = (image * h + py * ph + row) * w + px * pw + column;
                                want.push(x[at].wide());
                            }
                        }
                    }
                }
            }
        }
        close("patchify", &patches, &want, 0.0, 0.0);
        close("unpatchify", &run(&patches, 1), &wide(&x), 0.0, 0.0);
    }
}

#[test]
fn patchify_of_all_types() {
    for_each_type!(patchify());
}
