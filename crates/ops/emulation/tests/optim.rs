//! optim.cu: AdamW bit for bit against f32 arithmetic, norms against f64.
mod common;

use common::{Call, Random, Stored, close};
use efference_ops_emulation::Arg;
use half::{bf16, f16};

fn adamw<G: Stored, C: Stored>() {
    let mut random = Random::new(41);
    for n in [1, 3, 4, 9, 1000, 5001] {
        let (mut w, mut m, mut v): (Vec<f32>, Vec<f32>, Vec<f32>) =
            (random.tensor(n, 1.0), vec![0.0; n], vec![0.0; n]);
        for step in 1..=3 {
            let grad: Vec<G> = random.tensor(n, 0.1);
            let device_factor = [0.5f32];
            let with_factor = step == 2;
            let (beta1, beta2, lr, decay) = (0.9f64, 0.999f64, 1e-3, 0.1);
            let numbers = [
                0.7,
                beta1,
                1.0 - beta1,
                beta2,
                1.0 - beta2,
                1.0 - lr * decay,
                lr / (1.0 - beta1.powi(step)),
                (1.0 - beta2.powi(step)).sqrt().recip(),
                1e-8,
            ]
            .map(|x| x as f32);
            let call = Call::typed::<G>("adamw").changed(&w).input(&grad).changed(&m).changed(&v);
            let call = if step == 1 { call.null() } else { call.output::<C>(n) }.i64(n);
            let call = call.optional(with_factor.then_some(&device_factor[..]));
            let call = numbers.iter().fold(call, |call, &x| call.arg(Arg::F32(x)));
            let mut out = call.each(n).shift(step as usize % 2).run();

            // The CPU's order of operations (src/optim/adamw.rs), in f32.
            let [factor, beta1, rest1, beta2, rest2, keep, rate, root, eps] = numbers;
            let factor = if with_factor { factor * 0.5 } else { factor };
            for i in 0..n {
                let g = grad[i].wide() as f32 * factor;
                m[i] = m[i] * beta1 + g * rest1;
                v[i] = v[i] * beta2 + g * g * rest2;
                w[i] = w[i] * keep - m[i] / (v[i].sqrt() * root + eps) * rate;
            }
            assert_eq!(out.take::<f32>(), w, "weights of {} after {step} steps", G::NAME);
            assert_eq!(out.take::<f32>(), m);
            assert_eq!(out.take::<f32>(), v);
            if step > 1 {
                let want: Vec<f64> = w.iter().map(|&w| C::of(f64::from(w)).wide()).collect();
                close("copy", &out.take::<C>(), &want, 0.0, 0.0);
            }
        }
    }
}

#[test]
fn adamw_has_the_bits_of_the_cpu() {
    adamw::<f32, bf16>();
    adamw::<bf16, bf16>();
    adamw::<f16, f16>();
}

fn sum_squares<T: Stored>() {
    let mut random = Random::new(42);
    for (n, size) in [(1, 1.0), (100, 1e-3), (16384, 1.0), (40001, 50.0)] {
        let x: Vec<T> = random.tensor(n, size);
        let parts = n.div_ceil(16384);
        let call = Call::typed::<T>("sum_squares").input(&x).output::<f64>(parts).i64(n);
        let partial: Vec<f64> = call.grid(parts, 1, 1).shift(parts % 2).run().take();
        let call = Call::new("sum_finish").input(&partial).output::<f64>(1).i64(parts).block(1024);
        let sum = call.run().take::<f64>()[0];
        let want: f64 = x.iter().map(|x| x.wide() * x.wide()).sum();
        assert!((sum - want).abs() <= 1e-12 * want, "{sum} {want}");
    }
}

#[test]
fn sum_squares_of_all_types() {
    for_each_type!(sum_squares());
}

#[test]
fn squares_do_not_overflow() {
    let call = Call::new("sum_squares_f32").input(&[1e30f32; 100]).output::<f64>(1).i64(100);
    let sum = call.run().take::<f64>()[0];
    let x = f64::from(1e30f32);
    assert!((sum / (x * x) - 100.0).abs() < 1e-9);
}

#[test]
fn clip_factor() {
    let factor = |sum: f64, max: f64| {
        let call = Call::new("clip_factor").input(&[sum]).output::<f32>(1).arg(Arg::F64(max)).block(32);
        call.run().take::<f32>()[0]
    };
    assert_eq!(factor(16.0, 1.0), (1.0 / (4.0 + 1e-6)) as f32);
    assert_eq!(factor(0.25, 1.0), 1.0);
    assert_eq!(factor(0.0, 1.0), 1.0);
    assert_eq!(factor(4.0, f64::INFINITY), 1.0);
    assert_eq!(factor(f64::INFINITY, 1.0), 1.0);
    assert_eq!(factor(f64::NAN, 1.0), 1.0);
}

#[test]
fn f16_gradients_widen_exactly() {
    // A step at rate 0 and keep 1 leaves the weights; the first moment shows the gradient.
    let grad = [f16::from_f32(6.1e-5), f16::MAX, f16::MIN_POSITIVE_SUBNORMAL];
    let call = Call::new("adamw_f16").changed(&[1.0f32; 3]).input(&grad).changed(&[0.0f32; 3]);
    let call = call.changed(&[0.0f32; 3]).null().i64(3).null();
    let call = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1e-8].iter().fold(call, |call, &x| call.f32(x));
    let mut out = call.each(3).run();
    assert_eq!(out.take::<f32>(), [1.0; 3]);
    assert_eq!(out.take::<f32>(), grad.map(f16::to_f32));
}
