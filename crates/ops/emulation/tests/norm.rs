//! norm.cu against f64.
mod common;

use common::{Call, Random, Stored, close, wide};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Layer,
    Rms,
}

impl Kind {
    fn name(self) -> &'static str {
        if self == Kind::Layer { "layer_norm" } else { "rms_norm" }
    }
}

struct Row {
    mean: f64,
    scale: f64,
}

fn row(kind: Kind, x: &[f64], eps: f64) -> Row {
    let n = x.len() as f64;
    let mean = if kind == Kind::Layer { x.iter().sum::<f64>() / n } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
    Row { mean, scale: 1.0 / (variance + eps).sqrt() }
}

fn block(width: usize) -> usize {
    width.div_ceil(8).next_multiple_of(32).clamp(32, 1024)
}

/// Rows, width, size of the numbers.
const CASES: [(usize, usize, f64); 9] = [
    (1, 1, 1.0),
    (3, 2, 1.0),
    (5, 7, 3.0),
    (4, 64, 1.0),
    (2, 257, 1e-3),
    (3, 1000, 100.0),
    (7, 96, 1e-8),
    (2, 768, 1.0),
    (1, 8192, 1.0),
];

fn norms<T: Stored>(kind: Kind) {
    let mut random = Random::new(11);
    for (case, &(rows, width, size)) in CASES.iter().enumerate() {
        let (n, eps) = (rows * width, 1e-6);
        let shift = case % 2;
        let x: Vec<T> = random.tensor(n, size);
        let residual: Vec<T> = random.tensor(n, size);
        let weight: Vec<T> = random.tensor(width, 1.0);
        let bias: Vec<T> = random.tensor(width, 1.0);
        let with_bias = |call: Call| if kind == Kind::Layer { call.input(&bias) } else { call };

        for add in [false, true] {
            let call = Call::typed::<T>(kind.name()).input(&x);
            let call = with_bias(call.optional(add.then_some(&residual[..])).input(&weight));
            let call = if add { call.output::<T>(n) } else { call.null() };
            let call = call.output::<T>(n).output::<f32>(2 * rows).i64(rows).i32(width).f32(eps);
            let mut out = call.grid(rows, 1, 1).block(block(width)).shift(shift).run();
            let sum: Vec<T> = if add { out.take() } else { x.clone() };
            if add {
                let want: Vec<f64> = x.iter().zip(&residual).map(|(x, r)| x.wide() + r.wide()).collect();
                close("sum", &sum, &want, 1.0, 0.0);
            }
            let (y, stats): (Vec<T>, Vec<f32>) = (out.take(), out.take());
            let (mut want, mut want_stats) = (Vec::new(), Vec::new());
            for sum in wide(&sum).chunks(width) {
                let Row { mean, scale } = row(kind, sum, eps);
                want_stats.extend([mean, scale]);
                for (i, x) in sum.iter().enumerate() {
                    let bias = if kind == Kind::Layer { bias[i].wide() } else { 0.0 };
                    want.push((x - mean) * scale * weight[i].wide() + bias);
                }
            }
            close("norm", &y, &want, 1.1, 1e-5);
            for (got, want) in stats.chunks(2).zip(want_stats.chunks(2)) {
                close("mean", &got[..1], &want[..1], 8.0, 1e-6 * size);
                close("scale", &got[1..], &want[1..], 32.0, 0.0);
            }
            backward::<T>(kind, &mut random, &sum, &weight, &stats, (rows, width, eps, shift));
        }
    }
}

fn backward<T: Stored>(
    kind: Kind,
    random: &mut Random,
    x: &[T],
    weight: &[T],
    stats: &[f32],
    (rows, width, eps, shift): (usize, usize, f64, usize),
) {
    let n = rows * width;
    let (dy, dsum): (Vec<T>, Vec<T>) = (random.tensor(n, 1.0), random.tensor(n, 1.0));
    for (part, with_stats, with_dsum) in [(2, true, false), (16, false, true), (1, true, true)] {
        let parts = rows.div_ceil(part);
        let name = format!("{}_grad", kind.name());
        let call = Call::typed::<T>(&name).input(x).input(weight).input(&dy);
        let call = call.optional(with_dsum.then_some(&dsum[..])).optional(with_stats.then_some(stats));
        let call = call.output::<T>(n).output::<f32>(parts * width);
        let call = if kind == Kind::Layer { call.output::<f32>(parts * width) } else { call };
        let call = call.i64(rows).i32(width).i32(part).f32(eps);
        let mut out = call.grid(parts, 1, 1).block(block(width)).shift(shift).run();

        let (mut want, mut dw, mut db) = (Vec::new(), vec![0.0; width], vec![0.0; width]);
        let mut largest = 0f64;
        for r in 0..rows {
            let at = r * width..(r + 1) * width;
            let (x, dy) = (wide(&x[at.clone()]), wide(&dy[at.clone()]));
            let Row { mean, scale } = row(kind, &x, eps);
            let normal: Vec<f64> = x.iter().map(|x| (x - mean) * scale).collect();
            let through: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| dy * w.wide()).collect();
            let along = normal.iter().zip(&through).map(|(n, g)| n * g).sum::<f64>() / width as f64;
            let level = if kind == Kind::Layer { through.iter().sum::<f64>() / width as f64 } else { 0.0 };
            for i in 0..width {
                let extra = if with_dsum { dsum[at.start + i].wide() } else { 0.0 };
                want.push((through[i] - level - normal[i] * along) * scale + extra);
                dw[i] += dy[i] * normal[i];
                db[i] += dy[i];
            }
            largest = largest.max(scale);
        }
        close("norm dx", &out.take::<T>(), &want, 1.1, 2e-5 * largest + 1e-6);
        let mut finish = |what: &str, want: &[f64]| {
            let partial: Vec<f32> = out.take();
            let call = Call::typed::<T>("column_sum_finish").input(&partial).output::<T>(width);
            let sum: Vec<T> = call.i32(parts).i32(width).grid(width.div_ceil(32), 1, 1).run().take();
            close(what, &sum, want, 1.1, 3e-5);
        };
        finish("norm dw", &dw);
        if kind == Kind::Layer {
            finish("norm db", &db);
        }
    }
}

#[test]
fn layer_norm() {
    for_each_type!(norms(Kind::Layer));
}

#[test]
fn rms_norm() {
    for_each_type!(norms(Kind::Rms));
}

/// Constant rows have no variance; large numbers square beyond f16.
#[test]
fn extreme_rows() {
    let width = 40;
    for value in [0.0f64, 3.0, 1e15, 1e-20] {
        let x = vec![value as f32; width];
        let (weight, bias) = (vec![2.0f32; width], vec![0.5f32; width]);
        let call = Call::new("layer_norm_f32").input(&x).null().input(&weight).input(&bias).null();
        let call = call.output::<f32>(width).null().i64(1).i32(width).f32(1e-5).block(32);
        close("constant row", &call.run().take::<f32>(), &vec![0.5; width], 1.0, 1e-4 * value.abs().max(1.0));
        let call = Call::new("rms_norm_f32").input(&x).null().input(&weight).null();
        let call = call.output::<f32>(width).null().i64(1).i32(width).f32(1e-5).block(32);
        let want = 2.0 * value / (value * value + 1e-5f64).sqrt();
        close("constant row", &call.run().take::<f32>(), &vec![want; width], 8.0, 0.0);
    }
}

/// A row has the same bits alone and among others.
#[test]
fn rows_stand_alone() {
    let mut random = Random::new(12);
    let (rows, width) = (5, 200);
    let x: Vec<f32> = random.tensor(rows * width, 1.0);
    let weight: Vec<f32> = random.tensor(width, 1.0);
    let norm = |x: &[f32]| {
        let call =
            Call::new("rms_norm_f32").input(x).null().input(&weight).null().output::<f32>(x.len()).null();
        let rows = x.len() / width;
        call.i64(rows).i32(width).f32(1e-5).grid(rows, 1, 1).block(block(width)).run().take::<f32>()
    };
    let together = norm(&x);
    for r in 0..rows {
        assert_eq!(norm(&x[r * width..(r + 1) * width]), together[r * width..(r + 1) * width]);
    }
}
