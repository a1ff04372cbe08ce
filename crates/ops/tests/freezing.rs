//! What is frozen gets no gradient from any operation, and the others get the same one.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use efference_ops::{self as ops, Activation, AttentionMask};

fn numbers(dims: &[usize], seed: usize) -> Tensor {
    let n: usize = dims.iter().product();
    let data: Vec<f32> = (0..n).map(|i| ((i * 37 + seed * 101) % 83) as f32 / 41.0 - 1.0).collect();
    Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

type Function = fn(&[Tensor]) -> ops::Result<Tensor>;

#[test]
fn every_operation_leaves_frozen_arguments_out() {
    let cases: [(&str, &[&[usize]], Function); 7] = [
        ("linear", &[&[5, 6], &[4, 6], &[4]], |a| ops::linear(&a[0], &a[1], Some(&a[2]))),
        ("linear without bias", &[&[5, 6], &[4, 6]], |a| ops::linear(&a[0], &a[1], None)),
        ("linear_act", &[&[5, 6], &[4, 6], &[4]], |a| {
            ops::linear_act(&a[0], &a[1], Some(&a[2]), Activation::GeluTanh)
        }),
        ("layer_norm", &[&[5, 6], &[6], &[6]], |a| ops::layer_norm(&a[0], &a[1], &a[2], 1e-6)),
        ("rms_norm", &[&[5, 6], &[6]], |a| ops::rms_norm(&a[0], &a[1], 1e-6)),
        ("swiglu", &[&[5, 6], &[5, 6]], |a| ops::swiglu(&a[0], &a[1])),
        ("attention", &[&[1, 2, 5, 4], &[1, 1, 5, 4], &[1, 1, 5, 4]], |a| {
            ops::attention(&a[0], &a[1], &a[2], &AttentionMask::Causal, None, 0.5)
        }),
    ];
    for (name, dims, f) in cases {
        let vars: Vec<Var> = dims
            .iter()
            .enumerate()
            .map(|(i, dims)| Var::from_tensor(&numbers(dims, i + 1)).unwrap())
            .collect();
        let gradients = |frozen: Option<usize>| {
            let args: Vec<Tensor> = vars
                .iter()
                .enumerate()
                .map(|(i, v)| if frozen == Some(i) { v.as_detached_tensor() } else { v.as_tensor().clone() })
                .collect();
            let out = f(&args).unwrap();
            let store = (&out * numbers(out.dims(), 9)).unwrap().sum_all().unwrap().backward().unwrap();
            // candle files gradients under the argument itself, also those of a constant.
            args.iter().map(|arg| store.get(arg).map(bits)).collect::<Vec<_>>()
        };
        let all = gradients(None);
        assert!(all.iter().all(Option::is_some), "{name}");
        for i in 0..vars.len() {
            let mut expected = all.clone();
            expected[i] = None;
            assert_eq!(gradients(Some(i)), expected, "{name}, argument {i} frozen");
        }
    }
}
