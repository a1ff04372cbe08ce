//! scores.cu against f64.
mod common;

use common::{Call, Random, Stored, close, wide};

/// Log of the normaliser and mean of z under the softmax.
fn summary(z: &[f64]) -> (f64, f64) {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = z.iter().map(|z| (z - top).exp()).sum();
    let mean = z.iter().map(|z| (z - top).exp() * if z.is_finite() { *z } else { 0.0 }).sum::<f64>() / total;
    (top + total.ln(), mean)
}

struct Rows<T> {
    logits: Vec<T>,
    ids: Vec<u32>,
    rows: usize,
    vocab: usize,
    size: f64,
}

/// Random logits, of which some are impossible; the chosen one never is.
fn rows<T: Stored>(random: &mut Random, rows: usize, vocab: usize, size: f64, impossible: bool) -> Rows<T> {
    let ids: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
    let mut logits: Vec<T> = random.tensor(rows * vocab, size);
    if impossible {
        for (i, x) in logits.iter_mut().enumerate() {
            if i % vocab != ids[i / vocab] as usize && random.below(3) != 0 {
                *x = T::of(f64::NEG_INFINITY);
            }
        }
        // a stretch longer than any vector, at the start of a row
        for (i, x) in logits[..(vocab / 2).min(40)].iter_mut().enumerate() {
            if i != ids[0] as usize {
                *x = T::of(f64::NEG_INFINITY);
            }
        }
    }
    Rows { logits, ids, rows, vocab, size }
}

fn cases<T: Stored>(seed: u64, mut check: impl FnMut(&mut Random, Rows<T>, usize)) {
    let mut random = Random::new(seed);
    let shapes =
        [(1, 1, 1.0), (3, 2, 2.0), (2, 31, 3.0), (4, 300, 1.0), (1, 2500, 2.0), (3, 65, 1e3), (2, 40, 1e-5)];
    for (case, (n, vocab, size)) in shapes.into_iter().enumerate() {
        for impossible in [false, true] {
            let rows = rows(&mut random, n, vocab, size, impossible);
            check(&mut random, rows, case % 2);
        }
    }
}

/// f32 loses this on z: a few roundings of the largest.
fn noise(size: f64, inverse: f64) -> f64 {
    2e-6 * (1.0 + 5.0 * size * inverse)
}

/// Top, log of the sum relative to it, and a third number, for each row.
fn check_stats(what: &str, stats: &[f32], want: &[[f64; 3]], slack: f64) {
    for (got, want) in stats.chunks(3).zip(want) {
        close(what, &got[..1], &want[..1], 2.0, 0.0);
        close(what, &got[1..], &want[1..], 16.0, slack);
    }
}

/// Columns start .. start + width of rows of `vocab` numbers.
fn columns<T: Copy>(all: &[T], vocab: usize, start: usize, width: usize) -> Vec<T> {
    all.chunks(vocab).flat_map(|row| row[start..start + width].to_vec()).collect()
}

fn token_scores<T: Stored>() {
    cases::<T>(31, |random, Rows { logits, ids, rows, vocab, size }, shift| {
        let inverse = f64::from(1.0f32 / 0.7);
        let z: Vec<f64> = wide(&logits).iter().map(|x| x * inverse).collect();
        let call = Call::typed::<T>("token_scores").input(&logits).input(&ids).output::<f32>(2 * rows);
        let call = call.output::<f32>(3 * rows).i64(rows).i32(vocab).f32(inverse).grid(rows, 1, 1);
        let mut out = call.shift(shift).run();
        let (scores, stats): (Vec<f32>, Vec<f32>) = (out.take(), out.take());
        let (mut want, mut want_all, mut want_stats, mut summaries) = (vec![], vec![], vec![], vec![]);
        for (z, &id) in z.chunks(vocab).zip(&ids) {
            let (log, mean) = summary(z);
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let scores = [z[id as usize] - log, log - mean];
            want.extend(scores);
            want_all.extend([scores[0], scores[1], z.iter().sum::<f64>() / vocab as f64 - log]);
            want_stats.push([top, log - top, mean - top]);
            summaries.push((log, mean));
        }
        let slack = noise(size, inverse);
        close("token_scores", &scores, &want, 4.0, slack);
        check_stats("stats", &stats, &want_stats, slack);

        // the same in chunks of the vocabulary
        for chunk in [1, 7, 33, 64].into_iter().filter(|chunk| vocab / chunk < 50) {
            let mut state = vec![f32::NAN; 5 * rows];
            for start in (0..vocab).step_by(chunk) {
                let width = chunk.min(vocab - start);
                let part = columns(&logits, vocab, start, width);
                let call = Call::typed::<T>("token_scores_update").input(&part).input(&ids).changed(&state);
                let call = call.i64(rows).i32(width).i32(start).i32(usize::from(start == 0)).f32(inverse);
                state = call.grid(rows, 1, 1).shift(shift).run().take();
            }
            for (columns, want) in [(2, &want), (3, &want_all)] {
                let call = Call::new("token_scores_finish").input(&state).output::<f32>(columns * rows);
                let call = call.output::<f32>(3 * rows).i64(rows).i32(vocab).i32(columns);
                let mut out = call.each(rows).run();
                close("token_scores in chunks", &out.take::<f32>(), want, 4.0, slack);
                check_stats("stats in chunks", &out.take::<f32>(), &want_stats, slack);
            }
        }

        // gradient, whole with and without statistics, and in chunks
        for count in [2, 3] {
            let dout: Vec<f32> = random.tensor(count * rows, 1.0);
            let mut want = Vec::new();
            for (r, z) in z.chunks(vocab).enumerate() {
                let (log, mean) = summaries[r];
                let g: Vec<f64> = wide(&dout[count * r..count * (r + 1)]);
                let g_all = if count == 3 { g[2] } else { 0.0 };
                for (j, z) in z.iter().enumerate() {
                    let p = (z - log).exp();
                    let off = if p > 0.0 { z - mean } else { 0.0 };
                    let chosen = if j == ids[r] as usize { g[0] } else { 0.0 };
                    let d = chosen - p * (g[0] + g_all + off * g[1]) + g_all / vocab as f64;
                    want.push(d * inverse);
                }
            }
            let slack = 3.0 * slack * (1.0 + 5.0 * size * inverse);
            let grad = |logits: &[T], stats: Option<&[f32]>, (start, width): (usize, usize)| -> Vec<T> {
                let call = Call::typed::<T>("token_scores_grad").input(logits).input(&ids).optional(stats);
                let call = call.input(&dout).output::<T>(rows * width).i64(rows).i32(width).i32(start);
                let call = call.i32(vocab).i32(count).f32(inverse).grid(rows, 1, 1).shift(shift);
                call.run().take()
            };
            for stats in [Some(&stats[..]), None] {
                close("token_scores_grad", &grad(&logits, stats, (0, vocab)), &want, 2.0, slack);
            }
            let chunk = vocab.div_ceil(3);
            for start in (0..vocab).step_by(chunk) {
                let width = chunk.min(vocab - start);
                let part = columns(&logits, vocab, start, width);
                let want = columns(&want, vocab, start, width);
                close("gradient of a chunk", &grad(&part, Some(&stats), (start, width)), &want, 2.0, slack);
            }
        }
    });
}

/// A row in which nothing is possible: defined numbers, no NaN.
#[test]
fn impossible_rows() {
    let logits = [f32::NEG_INFINITY; 40];
    let call = Call::new("token_scores_f32").input(&logits).input(&[3u32]).output::<f32>(2).output::<f32>(3);
    let mut out = call.i64(1).i32(40).f32(1.0).run();
    assert_eq!(out.take::<f32>(), [f32::NEG_INFINITY, 0.0]);
    let stats: Vec<f32> = out.take();
    let call =
        Call::new("token_scores_grad_f32").input(&logits).input(&[3u32]).input(&stats).input(&[1.0f32, 1.0]);
    let call = call.output::<f32>(40).i64(1).i32(40).i32(0).i32(40).i32(2).f32(1.0);
    assert!(call.run().take::<f32>().iter().all(|&d| d == 0.0));
}

/// What is not a number stays visible.
#[test]
fn nan_is_not_lost() {
    for others in [f32::NEG_INFINITY, 0.5] {
        let mut logits = [others; 40];
        logits[17] = f32::NAN;
        let call = Call::new("token_scores_f32").input(&logits).input(&[3u32]).output::<f32>(2).null();
        let out: Vec<f32> = call.i64(1).i32(40).f32(1.0).run().take();
        assert!(out[1].is_nan(), "{out:?}");
    }
}

/// Large logits cost no digits of a log-probability.
#[test]
fn large_logits() {
    let logits: Vec<f32> = (0..100).map(|i| 1e4 + i as f32 / 32.0).collect();
    let call = Call::new("token_scores_f32").input(&logits).input(&[50u32]).output::<f32>(2).null();
    let out: Vec<f32> = call.i64(1).i32(100).f32(1.0).run().take();
    let z = wide(&logits);
    let (log, mean) = summary(&z);
    close("large logits", &out, &[z[50] - log, log - mean], 8.0, 2e-6);
}

#[test]
fn token_scores_of_all_types() {
    for_each_type!(token_scores());
}

fn cross_entropy_soft<T: Stored>() {
    cases::<T>(32, |random, Rows { logits, rows, vocab, size, .. }, shift| {
        // impossible tokens have no target mass, and so have some others
        let mass = |x: &T| if x.wide().is_finite() && random.below(4) > 0 { random.unit() } else { 0.0 };
        let targets: Vec<T> = logits.iter().map(mass).map(T::of).collect();
        let call = Call::typed::<T>("cross_entropy_soft").input(&logits).input(&targets).output::<f32>(rows);
        let call = call.output::<f32>(3 * rows).i64(rows).i32(vocab).grid(rows, 1, 1).shift(shift);
        let mut out = call.run();
        let (loss, stats): (Vec<f32>, Vec<f32>) = (out.take(), out.take());
        let dout: Vec<f32> = random.tensor(rows, 1.0);
        let (x, t) = (wide(&logits), wide(&targets));
        let (mut want, mut want_grad, mut masses) = (Vec::new(), Vec::new(), Vec::new());
        for (r, (x, t)) in x.chunks(vocab).zip(t.chunks(vocab)).enumerate() {
            let (log, _) = summary(x);
            let mass: f64 = t.iter().sum();
            want.push(x.iter().zip(t).map(|(x, t)| if *t > 0.0 { t * (log - x) } else { 0.0 }).sum());
            masses.push(mass);
            for (x, t) in x.iter().zip(t) {
                want_grad.push(((x - log).exp() * mass - t) * f64::from(dout[r]));
            }
        }
        let largest = masses.iter().copied().fold(1.0, f64::max);
        close("cross_entropy_soft", &loss, &want, 16.0, noise(size, 1.0) * largest);
        close("mass", &stats.chunks(3).map(|s| s[2]).collect::<Vec<_>>(), &masses, 32.0, 0.0);
        for with_stats in [true, false] {
            let call = Call::typed::<T>("cross_entropy_soft_grad").input(&logits).input(&targets);
            let call = call.optional(with_stats.then_some(&stats[..])).input(&dout);
            let call = call.output::<T>(rows * vocab).i64(rows).i32(vocab).grid(rows, 1, 1);
            let grad: Vec<T> = call.shift(shift).run().take();
            close("cross_entropy_soft_grad", &grad, &want_grad, 2.0, 3.0 * noise(size, 1.0) * largest);
        }
    });
}

#[test]
fn cross_entropy_soft_of_all_types() {
    for_each_type!(cross_entropy_soft());
}
