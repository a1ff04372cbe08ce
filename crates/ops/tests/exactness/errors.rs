//! Wrong input is an error that names the argument, never a panic.

use candle_core::{DType, Device, Tensor, Var};
use efference_ops::{self as ops, AttentionMask, AxialRotary, RotaryTable};

fn zeros(dims: &[usize]) -> Tensor {
    Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap()
}

/// The message contains every one of `words`.
fn says<T>(result: ops::Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("no error, expected {words:?}") };
    let message = error.to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message:?} lacks one of {words:?}");
}

#[test]
fn shapes_and_dtypes_are_named() {
    let (x, w, b) = (zeros(&[2, 3]), zeros(&[4, 3]), zeros(&[4]));
    let double = x.to_dtype(DType::F64).unwrap();
    let half = w.to_dtype(DType::BF16).unwrap();
    let ids = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
    says(ops::linear(&x, &zeros(&[4, 5]), None), &["linear", "[2, 3]", "[4, 5]"]);
    says(ops::linear(&double, &w, None), &["weight", "F32"]);
    says(ops::linear(&x, &w, Some(&zeros(&[3]))), &["bias", "[3]"]);
    says(ops::linear_half(&x, &w, None), &["linear_half", "weight", "BF16"]);
    says(ops::linear_half(&x, &half, Some(&zeros(&[3]))), &["bias"]);
    says(ops::linear_half(&zeros(&[2, 7]), &half, None), &["[2, 7]", "[4, 3]"]);
    let trained = Var::from_tensor(&half).unwrap();
    says(ops::linear_half(&x, &trained, None), &["weight", "frozen"]);
    says(ops::embedding_half(&trained, &ids, DType::F32), &["table", "frozen"]);
    says(ops::embedding_half(&half, &ids, DType::BF16), &["dtype", "F32"]);
    says(ops::swiglu(&x, &zeros(&[3, 2])), &["gate", "[3, 2]"]);
    says(ops::gelu_erf(&half), &["BF16"]);
    says(ops::layer_norm(&x, &zeros(&[3]), &b, 1e-5), &["bias", "[4]"]);
    says(ops::rms_norm(&x, &zeros(&[3]), f64::NAN), &["eps"]);
    says(ops::add_rms_norm(&x, &zeros(&[3, 3]), &zeros(&[3]), 1e-5), &["add_rms_norm", "[3, 3]"]);
    says(ops::add_layer_norm(&x, &double, &zeros(&[3]), &zeros(&[3]), 1e-5), &["`r`", "F64"]);
    says(ops::embedding(&w, &Tensor::new(&[4u32], &Device::Cpu).unwrap()), &["ids", "4 at position 0"]);
    says(ops::embedding(&w, &x), &["ids", "U32"]);
    says(ops::token_scores(&x, &ids, -1.0), &["temperature"]);
    says(ops::cross_entropy(&x, &ids, Some(&zeros(&[3]))), &["weight", "[3]"]);
    says(ops::cross_entropy_soft(&x, &w), &["target_probs", "[4, 3]"]);
    says(ops::linear_scores(&x, &zeros(&[4, 5]), &ids, 1.0), &["linear_scores", "[4, 5]"]);
    says(ops::linear_cross_entropy(&x, &w, &ids, -0.1), &["label_smoothing"]);
}

#[test]
fn images_and_positions_are_named() {
    let image = zeros(&[1, 2, 6, 9]);
    says(ops::patchify(&image, 4), &["patchify", "patch", "[6, 9]"]);
    says(ops::patches2d(&image, (0, 3)), &["patch"]);
    says(ops::patches2d(&zeros(&[6, 9]), (1, 1)), &["images", "[6, 9]"]);
    says(ops::patches3d(&zeros(&[1, 1, 3, 4, 4]), (2, 2, 2)), &["patch", "[3, 4, 4]"]);
    let weight = zeros(&[5, 2, 3, 3]);
    says(ops::conv2d(&image, &zeros(&[5, 3, 3, 3]), None, (1, 1), (0, 0)), &["[5, 3, 3, 3]"]);
    says(ops::conv2d(&image, &weight, None, (1, 0), (0, 0)), &["stride"]);
    says(ops::conv2d(&image, &weight, None, (1, 1), (3, 0)), &["padding"]);
    says(ops::conv2d(&zeros(&[1, 2, 2, 9]), &weight, None, (1, 1), (0, 0)), &["kernel"]);
    says(ops::conv2d(&image, &weight, Some(&zeros(&[2])), (1, 1), (0, 0)), &["bias"]);
    says(RotaryTable::new(3, 8, 10.0), &["head_dim"]);
    says(RotaryTable::new(4, 8, 10.0).unwrap().apply(&zeros(&[1, 1, 5, 4]), 4), &["offset + T", "8"]);
    says(AxialRotary::sections(8, 10.0, [2, 1, 2]), &["sections", "4"]);
    says(AxialRotary::sections(8, 10.0, [usize::MAX, 1, 4]), &["sections"]);
    says(AxialRotary::interleaved(8, 10.0, [0, 4, 0]), &["sections"]);
    says(AxialRotary::image(6, 10.0), &["head_dim", "4"]);
    says(AxialRotary::video(4, 10.0), &["head_dim", "6"]);
    says(AxialRotary::video(6, f64::NAN), &["base"]);
    let rotary = AxialRotary::video(6, 10.0).unwrap();
    says(rotary.at(&zeros(&[3, 1, 2])), &["positions", "F32"]);
    says(rotary.at(&zeros(&[2, 1, 2]).to_dtype(DType::U32).unwrap()), &["positions", "[2, 1, 2]"]);
    let angles = rotary.at(&zeros(&[3, 2, 4]).to_dtype(DType::I64).unwrap()).unwrap();
    says(angles.apply(&zeros(&[3, 1, 4, 6])), &["[3, 1, 4, 6]"]);
}

#[test]
fn attention_arguments_are_named() {
    let (q, k) = (zeros(&[1, 2, 3, 4]), zeros(&[1, 2, 3, 4]));
    let full = AttentionMask::Full;
    says(ops::attention(&q, &k, &zeros(&[1, 2, 2, 4]), &full, None, 1.0), &["`v`", "[1, 2, 2, 4]"]);
    let three = zeros(&[1, 3, 3, 4]);
    says(ops::attention(&q, &three, &three, &full, None, 1.0), &["Hkv"]);
    says(ops::attention(&q, &k, &k, &full, None, f64::INFINITY), &["scale"]);
    says(ops::attention(&q, &k, &k, &full, Some(&[vec![true; 2]]), 1.0), &["key_valid"]);
    says(ops::attention(&q, &k, &k, &AttentionMask::Blocks(vec![0; 2]), None, 1.0), &["mask"]);
    let short = zeros(&[1, 2, 2, 4]);
    says(ops::attention(&q, &short, &short, &AttentionMask::Causal, None, 1.0), &["Tq"]);
}
