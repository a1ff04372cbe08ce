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
        for i in 0..(vocab / 2).min(40) {
            if i != ids[0] as usize {
                logits[i] = T::of(f64::NEG_INFINITY);
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

fn token_scores<T: Stored>() {
    cases::<T>(31, |random, Rows { logits, ids, rows, vocab, size }, shift| {
        let inverse = f64::from(1.0f32 / 0.7);
        let z: Vec<f64> = wide(&logits).iter().map(|x| x * inverse).collect();
        let call = Call::typed::<T>("token_scores").input(&logits).input(&ids).output::<f32>(2 * rows);
        let call = call.output::<f32>(2 * rows).i64(rows).i32(vocab).f32(inverse).grid(rows, 1, 1);
        let mut out = call.shift(shift).run();
        let (scores, stats): (Vec<f32>, Vec<f32>) = (out.take(), out.take());
        let (mut want, mut want_stats) = (Vec::new(), Vec::new());
        for (z, &id) in z.chunks(vocab).zip(&ids) {
            let (log, mean) = summary(z);
            want.extend([z[id as usize] - log, log - mean]);
            want_stats.extend([log, mean]);
        }
        close("token_scores", &scores, &want, 4.0, noise(size, inverse));
        close("stats", &stats, &want_stats, 4.0, noise(size, inverse));

        // the same in chunks of the vocabulary
        for chunk in [1, 7, 33, 64].into_iter().filter(|chunk| vocab / chunk < 50) {
            let mut state = vec![f32::NAN; 4 * rows];
            for start in (0..vocab).step_by(chunk) {
                let width = chunk.min(vocab - start);
                let columns: Vec<T> =
                    logits.chunks(vocab).flat_map(|row| row[start..start + width].to_vec()).collect();
                let call =
                    Call::typed::<T>("token_scores_update").input(&columns).input(&ids).changed(&state);
                let call = call.i64(rows).i32(width).i32(start).i32(usize::from(start == 0)).f32(inverse);
                state = call.grid(rows, 1, 1).shift(shift).run().take();
            }
            let call = Call::new("token_scores_finish").input(&state).output::<f32>(2 * rows);
            let mut out = call.output::<f32>(2 * rows).i64(rows).each(rows).run();
            close("token_scores in chunks", &out.take::<f32>(), &want, 4.0, noise(size, inverse));
            close("stats in chunks", &out.take::<f32>(), &want_stats, 4.0, noise(size, inverse));
        }

        // gradient, whole with and without statistics, and in chunks
        let dout: Vec<f32> = random.tensor(2 * rows, 1.0);
        let mut want = Vec::new();
        for (r, z) in z.chunks(vocab).enumerate() {
            let (log, mean) = (want_stats[2 * r], want_stats[2 * r + 1]);
            let (g_log, g_entropy) = (f64::from(dout[2 * r]), f64::from(dout[2 * r + 1]));
            for (j, z) in z.iter().enumerate() {
                let p = (z - log).exp();
                let off = if p > 0.0 { z - mean } else { 0.0 };
                let chosen = if j == ids[r] as usize { g_log } else { 0.0 };
                want.push((chosen - p * g_log - p * off * g_entropy) * inverse);
            }
        }
        let slack = 3.0 * noise(size, inverse);
        for with_stats in [true, false] {
            let call = Call::typed::<T>("token_scores_grad").input(&logits).input(&ids);
            let call = call.optional(with_stats.then_some(&stats[..])).input(&dout);
            let call = call.output::<T>(rows * vocab).i64(rows).i32(vocab).i32(0).f32(inverse);
            let dlogits: Vec<T> = call.grid(rows, 1, 1).shift(shift).run().take();
            close("token_scores_grad", &dlogits, &want, 2.0, slack * (1.0 + 5.0 * size * inverse));
        }
        let chunk = vocab.div_ceil(3);
        for start in (0..vocab).step_by(chunk) {
            let width = chunk.min(vocab - start);
            let columns: Vec<T> =
                logits.chunks(vocab).flat_map(|row| row[start..start + width].to_vec()).collect();
            let part: Vec<f64> =
                want.chunks(vocab).flat_map(|row| row[start..start + width].to_vec()).collect();
            let call = Call::typed::<T>("token_scores_grad").input(&columns).input(&ids).input(&stats);
            let call =
                call.input(&dout).output::<T>(rows * width).i64(rows).i32(width).i32(start).f32(inverse);
            let dlogits: Vec<T> = call.grid(rows, 1, 1).run().take();
            close("gradient of a chunk", &dlogits, &part, 2.0, slack * (1.0 + 5.0 * size * inverse));
        }
    });
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
        let call = call.output::<f32>(2 * rows).i64(rows).i32(vocab).grid(rows, 1, 1).shift(shift);
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
        close("mass", &stats.chunks(2).map(|s| s[1]).collect::<Vec<_>>(), &masses, 32.0, 0.0);
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
