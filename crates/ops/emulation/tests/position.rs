//! rotary.cu, embedding.cu and convolution.cu against f64.
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

fn rotary_pairs<T: Stored>() {
    let mut random = Random::new(24);
    for (batch, heads, tokens, half, stride) in [(1, 1, 1, 1, 0), (2, 3, 5, 4, 0), (2, 2, 3, 7, 3)] {
        let rows = batch * heads * tokens;
        let n = rows * 2 * half;
        let table = if stride == 0 { tokens } else { batch * tokens };
        let x: Vec<T> = random.tensor(n, 1.0);
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (random.tensor(table * 2 * half, 1.0), random.tensor(table * 2 * half, 1.0));
        for inverse in [0, 1] {
            let call = Call::typed::<T>("rotary_pairs").input(&x).input(&cos).input(&sin).output::<T>(n);
            let call = call.i64(rows).i32(heads).i32(tokens).i32(half).i32(stride).i32(inverse);
            let out: Vec<T> = call.each(rows * half).shift(rows % 2).run().take();
            let (x, cos, sin) = (wide(&x), wide(&cos), wide(&sin));
            let mut want = vec![0.0; n];
            // The matrix [[c0, -s0], [s1, c1]] of each pair, or its transpose.
            for pair in 0..rows * half {
                let (row, i) = (pair / half, pair % half);
                let token = row / tokens / heads * stride + row % tokens;
                let at = (token * half + i) * 2;
                let m = [[cos[at], -sin[at]], [sin[at + 1], cos[at + 1]]];
                for r in 0..2 {
                    for c in 0..2 {
                        let factor = if inverse == 1 { m[c][r] } else { m[r][c] };
                        want[2 * pair + r] += factor * x[2 * pair + c];
                    }
                }
            }
            close("rotary_pairs", &out, &want, 1.01, 1e-6);
        }
    }
}

#[test]
fn rotary_pairs_of_all_types() {
    for_each_type!(rotary_pairs());
}

fn convolution<T: Stored>() {
    let mut random = Random::new(25);
    // batch, channels, image, kernel, stride, padding
    let cases = [
        (1, 1, [1, 1], [1, 1], [1, 1], [0, 0]),
        (2, 3, [7, 5], [3, 2], [2, 1], [1, 1]),
        (1, 2, [8, 8], [4, 4], [4, 4], [0, 0]),
        (1, 2, [6, 9], [3, 3], [4, 2], [2, 0]),
    ];
    for (b, c, [h, w], [kh, kw], [sh, sw], [ph, pw]) in cases {
        let (oh, ow) = ((h + 2 * ph - kh) / sh + 1, (w + 2 * pw - kw) / sw + 1);
        let (pixels, numbers) = (b * c * h * w, b * oh * ow * c * kh * kw);
        let x: Vec<T> = random.tensor(pixels, 1.0);
        let sizes = |call: Call| {
            [c, h, w, kh, kw, sh, sw, ph, pw, oh, ow].into_iter().fold(call, |call, size| call.i32(size))
        };
        // Which number of the image a number under the kernel is.
        let source = |i: usize| {
            let (pixel, element) = (i / (c * kh * kw), i % (c * kh * kw));
            let (sample, oy, ox) = (pixel / (oh * ow), pixel / ow % oh, pixel % ow);
            let (channel, ky, kx) = (element / (kh * kw), element / kw % kh, element % kw);
            let (y, x) = ((oy * sh + ky).checked_sub(ph)?, (ox * sw + kx).checked_sub(pw)?);
            (y < h && x < w).then_some(((sample * c + channel) * h + y) * w + x)
        };
        let call = sizes(Call::typed::<T>("im2col").input(&x).output::<T>(numbers).i64(numbers));
        let columns: Vec<T> = call.each(numbers).run().take();
        let want: Vec<f64> = (0..numbers).map(|i| source(i).map_or(0.0, |at| x[at].wide())).collect();
        close("im2col", &columns, &want, 0.0, 0.0);

        let grad: Vec<T> = random.tensor(numbers, 1.0);
        let call = sizes(Call::typed::<T>("col2im").input(&grad).output::<T>(pixels).i64(pixels));
        let dx: Vec<T> = call.each(pixels).run().take();
        let mut want = vec![0.0; pixels];
        for (i, g) in grad.iter().enumerate() {
            if let Some(at) = source(i) {
                want[at] += g.wide();
            }
        }
        close("col2im", &dx, &want, 1.01, 2e-6);
    }
}

#[test]
fn convolution_of_all_types() {
    for_each_type!(convolution());
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
