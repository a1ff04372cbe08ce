//! elementwise.cu and linear.cu against f64.
mod common;

use common::{Call, Random, Stored, close, wide};
use efference_ops_emulation::Arg;
use half::{bf16, f16};

/// Around vector widths and the grid's stride.
const LENGTHS: [usize; 8] = [1, 2, 7, 8, 33, 255, 2049, 5000];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Abramowitz and Stegun 7.1.5 by its series, and a continued fraction beyond 3.
fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let mut term = x;
        let mut sum = x;
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let y = x.abs();
    let mut fraction = 0.0;
    for n in (1..60).rev() {
        fraction = f64::from(n) / 2.0 / (y + fraction);
    }
    x.signum() * (1.0 - (-y * y).exp() / ((y + fraction) * std::f64::consts::PI.sqrt()))
}

/// Value and slope.
fn activation(kind: i32, x: f64) -> (f64, f64) {
    match kind {
        0 => {
            let c = x.clamp(-40.0, 40.0);
            let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let s = sigmoid(scale * (c + 0.044715 * c * c * c));
            (x * s, s + c * s * (1.0 - s) * scale * (1.0 + 3.0 * 0.044715 * c * c))
        }
        1 => {
            let cdf = 0.5 + 0.5 * erf(x * std::f64::consts::FRAC_1_SQRT_2);
            (x * cdf, cdf + x * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt())
        }
        2 => {
            let s = sigmoid(x);
            (x * s, s + x * s * (1.0 - s))
        }
        3 => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        _ => (x, 1.0),
    }
}

/// Ordinary numbers with some tiny and huge ones.
fn numbers<T: Stored>(random: &mut Random, n: usize) -> Vec<T> {
    let special = [0.0, -0.0, 1e-30, -1e-6, 1e4, -1e4, 20.0, -20.0, 12.0, -12.0];
    let number = |random: &mut Random| {
        if random.below(6) == 0 { special[random.below(special.len())] } else { random.normal(2.0) }
    };
    (0..n).map(|_| T::of(number(random))).collect()
}

fn activations<T: Stored>() {
    let mut random = Random::new(1);
    for n in LENGTHS {
        for kind in 0..4 {
            let x: Vec<T> = numbers(&mut random, n);
            let dy: Vec<T> = random.tensor(n, 1.0);
            for shift in [0, 1] {
                let call = Call::typed::<T>("activation").input(&x).output::<T>(n).i64(n).arg(Arg::I32(kind));
                let y: Vec<T> = call.each(n).shift(shift).run().take();
                let want: Vec<f64> = x.iter().map(|x| activation(kind, x.wide()).0).collect();
                close("activation", &y, &want, 2.0 + 4.0 * f64::from(T::NAME == "f32"), 2e-6);
                let call = Call::typed::<T>("activation_grad").input(&x).input(&dy).output::<T>(n);
                let dx: Vec<T> = call.i64(n).arg(Arg::I32(kind)).each(n).shift(shift).run().take();
                let want: Vec<f64> =
                    x.iter().zip(&dy).map(|(x, dy)| activation(kind, x.wide()).1 * dy.wide()).collect();
                close("activation_grad", &dx, &want, 8.0, 4e-6);
            }
        }
    }
}

#[test]
fn activations_of_all_types() {
    for_each_type!(activations());
}

fn swiglu<T: Stored>() {
    let mut random = Random::new(2);
    for n in LENGTHS {
        let (gate, up, dout): (Vec<T>, Vec<T>, Vec<T>) =
            (numbers(&mut random, n), random.tensor(n, 1.0), random.tensor(n, 1.0));
        let shift = n % 2;
        let call = Call::typed::<T>("swiglu").input(&gate).input(&up).output::<T>(n).i64(n);
        let out: Vec<T> = call.each(n).shift(shift).run().take();
        let (g, u, d) = (wide(&gate), wide(&up), wide(&dout));
        let want: Vec<f64> = (0..n).map(|i| activation(2, g[i]).0 * u[i]).collect();
        close("swiglu", &out, &want, 8.0, 1e-6);
        let call = Call::typed::<T>("swiglu_grad").input(&gate).input(&up).input(&dout);
        let mut grads = call.output::<T>(n).output::<T>(n).i64(n).each(n).shift(shift).run();
        let want: Vec<f64> = (0..n).map(|i| activation(2, g[i]).1 * u[i] * d[i]).collect();
        close("swiglu dgate", &grads.take::<T>(), &want, 8.0, 4e-6);
        let want: Vec<f64> = (0..n).map(|i| activation(2, g[i]).0 * d[i]).collect();
        close("swiglu dup", &grads.take::<T>(), &want, 8.0, 1e-6);
    }
}

#[test]
fn swiglu_of_all_types() {
    for_each_type!(swiglu());
}

fn fills<T: Stored>() {
    for n in LENGTHS {
        let out: Vec<T> =
            Call::typed::<T>("fill").output::<T>(n).i64(n).f32(-1.3).each(n).shift(1).run().take();
        close("fill", &out, &vec![-1.3; n], 1.0, 0.0);
    }
}

#[test]
fn fill_of_all_types() {
    for_each_type!(fills());
}

fn scale_add<Y: Stored, X: Stored>() {
    let mut random = Random::new(3);
    for n in LENGTHS {
        let (y, x): (Vec<Y>, Vec<X>) = (random.tensor(n, 1.0), random.tensor(n, 3.0));
        for (a, b) in [(1.0, 1.0), (0.0, 0.25), (-0.5, 2.0)] {
            // y holds NaN where it must not be read
            let old = if a == 0.0 { vec![Y::of(f64::NAN); n] } else { y.clone() };
            let call = Call::new(format!("scale_add_{}_{}", Y::NAME, X::NAME)).changed(&old).input(&x);
            let sum: Vec<Y> = call.i64(n).f32(a).f32(b).each(n).shift(n % 2).run().take();
            let want: Vec<f64> = (0..n)
                .map(|i| if a == 0.0 { b * x[i].wide() } else { a * y[i].wide() + b * x[i].wide() })
                .collect();
            close("scale_add", &sum, &want, 1.5, 1e-6);
        }
    }
}

#[test]
fn scale_add_of_all_pairs() {
    scale_add::<f32, f32>();
    scale_add::<f32, f16>();
    scale_add::<f32, bf16>();
    scale_add::<f16, f16>();
    scale_add::<bf16, bf16>();
}

#[test]
fn casts_between_halves() {
    let mut random = Random::new(4);
    for n in LENGTHS {
        let x: Vec<f16> = random.tensor(n, 1.0);
        let call = Call::new("cast_f16_bf16").input(&x).output::<bf16>(n).i64(n).each(n).shift(n % 2);
        let out: Vec<bf16> = call.run().take();
        assert!(out.iter().zip(&x).all(|(out, x)| *out == bf16::from_f32(x.to_f32())));
        let call = Call::new("cast_bf16_f16").input(&out).output::<f16>(n).i64(n).each(n);
        let back: Vec<f16> = call.run().take();
        assert!(back.iter().zip(&out).all(|(back, out)| *back == f16::from_f32(out.to_f32())));
    }
}

/// Rows and width: single, odd, around a vector, more than one tile of 128 columns.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 5), (17, 8), (9, 132), (70, 33), (5, 300)];

fn bias_activation<T: Stored>() {
    let mut random = Random::new(5);
    for (rows, width) in SHAPES {
        let n = rows * width;
        for kind in -1..4 {
            let x: Vec<T> = numbers(&mut random, n);
            let bias: Vec<T> = random.tensor(width, 1.0);
            for with_bias in [true, false] {
                let call = Call::typed::<T>("bias_activation").input(&x);
                let call = call.optional(with_bias.then_some(&bias[..])).output::<T>(n).output::<T>(n);
                let call = call.i64(rows).i32(width).arg(Arg::I32(kind)).each(n).shift(rows % 2);
                let mut out = call.run();
                let before: Vec<T> = out.take();
                let want: Vec<f64> = (0..n)
                    .map(|i| x[i].wide() + if with_bias { bias[i % width].wide() } else { 0.0 })
                    .collect();
                close("bias", &before, &want, 1.01, 0.0);
                let want: Vec<f64> = before.iter().map(|x| activation(kind, x.wide()).0).collect();
                close("bias_activation", &out.take::<T>(), &want, 8.0, 2e-6);
            }
            // in place, nothing kept
            let buffers = Call::typed::<T>("bias_activation").input(&x).input(&bias).null().output::<T>(n);
            let out: Vec<T> = buffers.i64(rows).i32(width).arg(Arg::I32(kind)).each(n).run().take();
            let want: Vec<f64> = (0..n)
                .map(|i| activation(kind, T::of(x[i].wide() + bias[i % width].wide()).wide()).0)
                .collect();
            close("bias_activation", &out, &want, 8.0, 2e-6);
        }
    }
}

#[test]
fn bias_activation_of_all_types() {
    for_each_type!(bias_activation());
}

fn bias_gradient<T: Stored>() {
    let mut random = Random::new(6);
    for (rows, width) in SHAPES {
        let n = rows * width;
        for kind in -1..4 {
            for part in [4, 16, 128] {
                let parts = rows.div_ceil(part);
                let (before, dy): (Vec<T>, Vec<T>) = (numbers(&mut random, n), random.tensor(n, 1.0));
                let call = Call::typed::<T>("bias_activation_grad");
                let call = call.optional((kind >= 0).then_some(&before[..])).input(&dy);
                let call = call.output::<T>(n).output::<f32>(parts * width);
                let call = call.i64(rows).i32(width).i32(part).arg(Arg::I32(kind));
                let mut out = call.grid(width.div_ceil(128), parts, 1).shift(rows % 2).run();
                let dx: Vec<T> = out.take();
                let want: Vec<f64> =
                    (0..n).map(|i| activation(kind, before[i].wide()).1 * dy[i].wide()).collect();
                close("bias_activation_grad", &dx, &want, 8.0, 4e-6);
                let partial: Vec<f32> = out.take();
                let sum = Call::typed::<T>("column_sum_finish").input(&partial).output::<T>(width);
                let sum = sum.i32(parts).i32(width).grid(width.div_ceil(32), 1, 1);
                let db: Vec<T> = sum.run().take();
                let want: Vec<f64> =
                    (0..width).map(|c| (0..rows).map(|r| dx[r * width + c].wide()).sum()).collect();
                let size: f64 = rows as f64;
                close("bias gradient", &db, &want, 1.0, 1e-6 * size);
            }
        }
    }
}

#[test]
fn bias_gradient_of_all_types() {
    for_each_type!(bias_gradient());
}

#[test]
fn bias_gradient_in_parts_that_are_left_out() {
    let mut random = Random::new(7);
    let (rows, width) = (6, 40);
    let n = rows * width;
    let (before, dy): (Vec<f32>, Vec<f32>) = (random.tensor(n, 1.0), random.tensor(n, 1.0));
    let all = || Call::new("bias_activation_grad_f32").input(&before).input(&dy);
    let end = |call: Call| call.i64(rows).i32(width).i32(rows).arg(Arg::I32(0)).run();
    let mut both = end(all().output::<f32>(n).output::<f32>(width));
    let (dx, sums): (Vec<f32>, Vec<f32>) = (both.take(), both.take());
    assert_eq!(end(all().output::<f32>(n).null()).take::<f32>(), dx);
    assert_eq!(end(all().null().output::<f32>(width)).take::<f32>(), sums);
}
