//! Every operation on a device against the CPU in f64: result and gradients.

use candle_core::{DType, Device, Tensor, Var};
use efference_ops as ops;
use efference_ops::{Activation, AttentionMask, AxialRotary, RotaryTable};

use crate::Result;

/// One operation at one shape. `inputs` are the shapes of its float arguments.
struct Case {
    name: String,
    inputs: Vec<Vec<usize>>,
    run: Run,
}

type Run = Box<dyn Fn(&[Tensor]) -> ops::Result<Vec<Tensor>>>;

fn case(
    name: impl Into<String>,
    inputs: &[&[usize]],
    run: impl Fn(&[Tensor]) -> ops::Result<Tensor> + 'static,
) -> Case {
    let run: Run = Box::new(move |x| Ok(vec![run(x)?]));
    Case { name: name.into(), inputs: inputs.iter().map(|dims| dims.to_vec()).collect(), run }
}

/// Numbers in [-1, 1) from a counter.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// A tensor on the CPU in f64 whose numbers are as near as `dtype` comes.
    fn tensor(&mut self, dims: &[usize], dtype: DType) -> Result<Tensor> {
        let data: Vec<f64> = (0..dims.iter().product()).map(|_| 2.0 * self.next()).collect();
        let exact = Tensor::from_vec(data, dims, &Device::Cpu)?;
        Ok(exact.to_dtype(dtype)?.to_dtype(DType::F64)?)
    }
}

fn ids(n: usize, vocab: usize, like: &Tensor) -> ops::Result<Tensor> {
    let ids: Vec<u32> = (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab as u32).collect();
    Ok(Tensor::from_vec(ids, n, like.device())?)
}

fn linear_cases(all: &mut Vec<Case>) {
    for (name, activation) in [
        ("linear", None),
        ("linear gelu", Some(Activation::GeluTanh)),
        ("linear gelu erf", Some(Activation::GeluErf)),
        ("linear silu", Some(Activation::Silu)),
        ("linear relu", Some(Activation::Relu)),
    ] {
        for (rows, i, o) in [(1, 1, 1), (37, 65, 130), (512, 256, 512)] {
            all.push(case(name, &[&[rows, i], &[o, i], &[o]], move |x| match activation {
                None => ops::linear(&x[0], &x[1], Some(&x[2])),
                Some(activation) => ops::linear_act(&x[0], &x[1], Some(&x[2]), activation),
            }));
        }
    }
    all.push(case("linear without bias", &[&[2, 19, 33], &[70, 33]], |x| ops::linear(&x[0], &x[1], None)));
}

fn norm_cases(all: &mut Vec<Case>) {
    for (rows, d) in [(1, 3), (70, 33), (130, 2048), (3, 8192)] {
        all.push(case("layer_norm", &[&[rows, d], &[d], &[d]], |x| {
            ops::layer_norm(&x[0], &x[1], &x[2], 1e-5)
        }));
        all.push(case("rms_norm", &[&[rows, d], &[d]], |x| ops::rms_norm(&x[0], &x[1], 1e-6)));
        let inputs: &[&[usize]] = &[&[rows, d], &[rows, d], &[d]];
        let run: Run = Box::new(|x| {
            let (sum, norm) = ops::add_rms_norm(&x[0], &x[1], &x[2], 1e-6)?;
            Ok(vec![sum, norm])
        });
        let inputs = inputs.iter().map(|dims| dims.to_vec()).collect();
        all.push(Case { name: "add_rms_norm".into(), inputs, run });
    }
}

fn rotary_cases(all: &mut Vec<Case>) -> Result<()> {
    let table = RotaryTable::new(128, 64, 1e6)?;
    all.push(case("rotary", &[&[2, 3, 17, 128]], move |x| table.apply(&x[0], 5)));
    for (name, layout) in [
        ("rotary sections", AxialRotary::sections(128, 1e6, [16, 24, 24])?),
        ("rotary image", AxialRotary::image(80, 1e4)?),
        ("rotary video", AxialRotary::video(64, 1e4)?),
    ] {
        let head = if name == "rotary image" {
            80
        } else if name == "rotary video" {
            64
        } else {
            128
        };
        let angles = layout.at(&AxialRotary::grid(2, 3, 4)?)?;
        all.push(case(name, &[&[2, 3, 24, head]], move |x| angles.apply(&x[0])));
    }
    Ok(())
}

fn attention_cases(all: &mut Vec<Case>) {
    for (d, heads, kv, tq, tk) in [
        (8, 2, 2, 1, 1),
        (5, 4, 2, 9, 9),
        (64, 4, 4, 130, 130),
        (80, 4, 4, 77, 77),
        (96, 2, 1, 64, 64),
        (128, 16, 2, 300, 300),
        (128, 4, 1, 3, 200),
    ] {
        let blocks = (0..tk).map(|i| (i * 3 / tk) as u32).collect();
        for mask in [
            AttentionMask::Full,
            AttentionMask::Causal,
            AttentionMask::Prefix(tk / 3),
            AttentionMask::Blocks(blocks),
        ] {
            if tq != tk && matches!(mask, AttentionMask::Blocks(_)) {
                continue;
            }
            let name = match mask {
                AttentionMask::Causal => "attention causal",
                AttentionMask::Prefix(_) => "attention prefix",
                AttentionMask::Blocks(_) => "attention blocks",
                _ => "attention full",
            };
            // The second sample ends in padding.
            let hidden = tk / 3;
            let valid: Vec<Vec<bool>> = vec![vec![true; tk], (0..tk).map(|j| j < tk - hidden).collect()];
            let scale = 1.0 / (d as f64).sqrt();
            let (q, k): (&[usize], &[usize]) = (&[2, heads, tq, d], &[2, kv, tk, d]);
            all.push(case(name, &[q, k, k], move |x| {
                ops::attention(&x[0], &x[1], &x[2], &mask, Some(&valid), scale)
            }));
        }
    }
}

fn score_cases(all: &mut Vec<Case>) {
    for (n, v) in [(1, 2), (9, 33), (20, 30_011)] {
        let both: Run = Box::new(move |x| {
            let scores = ops::token_scores(&x[0], &ids(n, v, &x[0])?, 0.7)?;
            Ok(vec![scores.log_probs, scores.entropy])
        });
        all.push(Case { name: "token_scores".into(), inputs: vec![vec![n, v]], run: both });
        all.push(case("cross_entropy", &[&[n, v]], move |x| {
            ops::cross_entropy(&x[0], &ids(n, v, &x[0])?, None)
        }));
        let fused: Run = Box::new(move |x| {
            let scores = ops::linear_scores(&x[0], &x[1], &ids(n, v, &x[0])?, 0.7)?;
            Ok(vec![scores.log_probs, scores.entropy])
        });
        all.push(Case { name: "linear_scores".into(), inputs: vec![vec![n, 24], vec![v, 24]], run: fused });
        all.push(case("linear_cross_entropy", &[&[n, 24], &[v, 24]], move |x| {
            ops::linear_cross_entropy(&x[0], &x[1], &ids(n, v, &x[0])?, 0.1)
        }));
    }
}

fn other_cases(all: &mut Vec<Case>) {
    for dims in [vec![1], vec![3, 5, 7], vec![64, 4096]] {
        let one: &[&[usize]] = &[&dims];
        all.push(case("gelu_tanh", one, |x| ops::gelu_tanh(&x[0])));
        all.push(case("gelu_erf", one, |x| ops::gelu_erf(&x[0])));
        all.push(case("silu", one, |x| ops::silu(&x[0])));
        all.push(case("swiglu", &[&dims, &dims], |x| ops::swiglu(&x[0], &x[1])));
    }
    for (n, v, d) in [(1, 1, 1), (300, 50, 33), (64, 1000, 256)] {
        all.push(case("embedding", &[&[v, d]], move |x| ops::embedding(&x[0], &ids(n, v, &x[0])?)));
    }
    all.push(case("patches2d", &[&[2, 3, 28, 42]], |x| ops::patches2d(&x[0], (14, 14))));
    all.push(case("patches3d", &[&[2, 3, 4, 16, 8]], |x| ops::patches3d(&x[0], (2, 8, 4))));
    all.push(case("conv2d", &[&[2, 3, 15, 11], &[8, 3, 3, 4], &[8]], |x| {
        ops::conv2d(&x[0], &x[1], Some(&x[2]), (2, 1), (1, 2))
    }));
    all.push(case("checkpoint", &[&[9, 32], &[32, 32]], |x| {
        let f = |x: &[Tensor]| -> candle_core::Result<Tensor> {
            Ok(ops::linear_act(&x[0], &x[1], None, Activation::Silu)?)
        };
        Ok(ops::checkpoint(&[&x[0], &x[1]], f)?)
    }));
    // A transposed view: operations make it contiguous themselves.
    all.push(case("linear of a view", &[&[33, 20], &[40, 33]], |x| ops::linear(&x[0].t()?, &x[1], None)));
}

/// Relative error in the 2-norm that a result of this dtype may have.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 4e-3,
        DType::BF16 => 2.5e-2,
        _ => 2e-5,
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// How far `got` is from `wanted`, relative to `wanted`; infinite where anything is not finite.
fn distance(got: &[f64], wanted: &[f64]) -> f64 {
    if got.len() != wanted.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(wanted).map(|(a, b)| a - b));
    // A handful of numbers may cancel to nearly nothing; their error is then that of the terms, which are about 1.
    let terms = if wanted.len() <= 64 { 0.3 * (wanted.len() as f64).sqrt() } else { 1e-30 };
    error / norm(&mut wanted.iter().copied()).max(terms)
}

/// Results and gradients of a case, on one device in one dtype, for one and the same weighting of the results.
fn evaluate(case: &Case, inputs: &[Tensor], device: &Device, dtype: DType) -> Result<Vec<Vec<f64>>> {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|x| Ok(Var::from_tensor(&x.to_dtype(dtype)?.to_device(device)?)?))
        .collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let results = (case.run)(&tensors)?;
    let mut found = Vec::new();
    let mut loss: Option<Tensor> = None;
    for (i, result) in results.iter().enumerate() {
        found.push(numbers(result)?);
        let weights = Numbers(i as u64 + 77).tensor(result.dims(), DType::BF16)?;
        let weights = weights.to_dtype(result.dtype())?.to_device(device)?;
        let wide = |x: Tensor| if dtype == DType::F64 { Ok(x) } else { x.to_dtype(DType::F32) };
        let term = (wide(result.clone())? * wide(weights)?)?.sum_all()?;
        loss = Some(match loss {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    let Some(loss) = loss else { return Err("a case without results".into()) };
    let grads = loss.backward()?;
    for var in &vars {
        let grad = grads.get(var.as_tensor()).ok_or("an input without a gradient")?;
        found.push(numbers(grad)?);
    }
    Ok(found)
}

/// Runs every case on `device` in each of `dtypes`; prints a line per operation and returns how many were wrong.
pub(crate) fn run(device: &Device, dtypes: &[DType]) -> Result<usize> {
    let mut all = Vec::new();
    linear_cases(&mut all);
    norm_cases(&mut all);
    rotary_cases(&mut all)?;
    attention_cases(&mut all);
    score_cases(&mut all);
    other_cases(&mut all);
    let (mut wrong, mut checked) = (0, 0);
    for &dtype in dtypes {
        let mut worst: Vec<(&str, f64)> = Vec::new();
        for (at, case) in all.iter().enumerate() {
            let mut draw = Numbers(at as u64);
            let inputs: Vec<Tensor> =
                case.inputs.iter().map(|dims| draw.tensor(dims, dtype)).collect::<Result<_>>()?;
            let wanted = evaluate(case, &inputs, &Device::Cpu, DType::F64)?;
            let got = match evaluate(case, &inputs, device, dtype) {
                Ok(got) => got,
                Err(error) => {
                    println!("WRONG  {} {:?} {dtype:?}: {error}", case.name, case.inputs);
                    wrong += 1;
                    continue;
                }
            };
            for (part, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                checked += 1;
                let error = distance(got, wanted);
                if error > tolerance(dtype) {
                    println!(
                        "WRONG  {} {:?} {dtype:?}, part {part}: error {error:e}",
                        case.name, case.inputs
                    );
                    wrong += 1;
                }
                match worst.iter_mut().find(|(name, _)| *name == case.name) {
                    Some((_, worst)) => *worst = worst.max(error),
                    None => worst.push((&case.name, error)),
                }
            }
            // The same bits again.
            if evaluate(case, &inputs, device, dtype)? != got {
                println!("WRONG  {} {:?} {dtype:?}: other bits the second time", case.name, case.inputs);
                wrong += 1;
            }
        }
        for (name, error) in worst {
            println!("{dtype:?} {name}: largest relative error {error:.1e}");
        }
    }
    println!("{checked} results and gradients checked, {wrong} wrong");
    Ok(wrong)
}
