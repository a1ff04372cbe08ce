//! Time of single operations beside what the card can do.

use std::fmt;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use efference_ops as ops;
use efference_ops::{AttentionMask, RotaryTable};

use crate::Result;

/// What this card does on random data, measured here and now.
pub(crate) struct Ceilings {
    /// bf16 matrix product, FLOP/s.
    pub matmul: f64,
    /// Copy within device memory, bytes read and written per second.
    pub copy: f64,
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (matmul, copy) = (self.matmul / 1e12, self.copy / 1e12);
        write!(f, "Measured ceilings: bf16 matrix product {matmul:.0} TFLOP/s, copy {copy:.2} TB/s.")
    }
}

/// Median seconds of one run of `f`: warmed up, then groups of runs that take a few milliseconds each.
pub(crate) fn seconds(device: &Device, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..3 {
        f()?;
    }
    device.synchronize()?;
    let mut time = |runs: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..runs {
            f()?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / runs as f64)
    };
    let once = time(1)?;
    let runs = ((5e-3 / once) as usize).clamp(1, 200);
    let groups = ((1.0 / (once * runs as f64)) as usize).clamp(5, 21);
    let mut times = (0..groups).map(|_| time(runs)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

pub(crate) fn random(device: &Device, dims: &[usize], dtype: DType) -> Result<Tensor> {
    Ok(Tensor::randn(0f32, 1f32, dims, device)?.to_dtype(dtype)?)
}

pub(crate) fn ceilings(device: &Device) -> Result<Ceilings> {
    let n = 8192;
    let (a, b) = (random(device, &[n, n], DType::BF16)?, random(device, &[n, n], DType::BF16)?);
    let matmul = 2.0 * (n as f64).powi(3)
        / seconds(device, || {
            drop(a.matmul(&b)?);
            Ok(())
        })?;
    let big = random(device, &[1 << 29], DType::BF16)?;
    let copy = 2.0 * (1u64 << 30) as f64
        / seconds(device, || {
            drop(big.copy()?);
            Ok(())
        })?;
    Ok(Ceilings { matmul, copy })
}

/// An operation on its arguments.
type Run = Box<dyn Fn(&[Tensor]) -> ops::Result<Tensor>>;

/// One line of the table.
struct Work {
    name: &'static str,
    /// Floating-point operations of the forward pass in matrix products.
    flops: f64,
    /// Fewest bytes the forward pass moves.
    bytes: f64,
    inputs: Vec<Vec<usize>>,
    run: Run,
}

/// Tokens of the timed operations: two sequences of 4096.
const TOKENS: usize = 8192;

fn works(device: &Device) -> Result<Vec<Work>> {
    // Qwen2.5-VL-3B: width 2048, 16 heads on 2, MLP 11008.
    let (n, d, f, v) = (TOKENS, 2048, 11_008, 151_936);
    let two = 2.0;
    let e = |elements: usize| two * elements as f64; // bytes of bf16
    let table = RotaryTable::new(128, 4096, 1e6)?;
    let ids = Tensor::rand(0f32, v as f32 - 1.0, n, device)?.to_dtype(DType::U32)?;
    let attention = two * two * 2.0 * 16.0 * 4096f64.powi(2) * 128.0 / 2.0; // causal: half of it
    Ok(vec![
        Work {
            name: "rms_norm [8192, 2048]",
            flops: 0.0,
            bytes: e(2 * n * d),
            inputs: vec![vec![n, d], vec![d]],
            run: Box::new(|x| ops::rms_norm(&x[0], &x[1], 1e-6)),
        },
        Work {
            name: "layer_norm [8192, 2048]",
            flops: 0.0,
            bytes: e(2 * n * d),
            inputs: vec![vec![n, d], vec![d], vec![d]],
            run: Box::new(|x| ops::layer_norm(&x[0], &x[1], &x[2], 1e-6)),
        },
        Work {
            name: "swiglu [8192, 11008]",
            flops: 0.0,
            bytes: e(3 * n * f),
            inputs: vec![vec![n, f], vec![n, f]],
            run: Box::new(|x| ops::swiglu(&x[0], &x[1])),
        },
        Work {
            name: "rotary [2, 16, 4096, 128]",
            flops: 0.0,
            bytes: e(2 * n * d),
            inputs: vec![vec![2, 16, 4096, 128]],
            run: Box::new(move |x| table.apply(&x[0], 0)),
        },
        Work {
            name: "linear [8192, 2048] to 11008",
            flops: 2.0 * (n * d * f) as f64,
            bytes: e(n * d + d * f + n * f),
            inputs: vec![vec![n, d], vec![f, d]],
            run: Box::new(|x| ops::linear(&x[0], &x[1], None)),
        },
        Work {
            name: "attention causal, 2 x 4096, 16 heads on 2 of 128",
            flops: attention,
            bytes: e(2 * n * d + 2 * n * 256),
            inputs: vec![vec![2, 16, 4096, 128], vec![2, 2, 4096, 128], vec![2, 2, 4096, 128]],
            run: Box::new(|x| {
                ops::attention(&x[0], &x[1], &x[2], &AttentionMask::Causal, None, 128f64.powf(-0.5))
            }),
        },
        Work {
            name: "linear_scores [8192, 2048], vocabulary 151936",
            flops: 2.0 * n as f64 * d as f64 * v as f64,
            bytes: e(n * d + v * d),
            inputs: vec![vec![n, d], vec![v, d]],
            run: Box::new(move |x| Ok(ops::linear_scores(&x[0], &x[1], &ids, 1.0)?.log_probs)),
        },
    ])
}

/// Times of operations in bf16, forward alone and with backward.
pub(crate) fn table(device: &Device, ceilings: &Ceilings) -> Result<String> {
    let mut text = String::from(
        "| operation, bf16 | forward, ms | floor, ms | share of the floor's rate | forward and backward, ms |\n\
         |---|---|---|---|---|\n",
    );
    for work in works(device)? {
        let inputs: Vec<Tensor> =
            work.inputs.iter().map(|dims| random(device, dims, DType::BF16)).collect::<Result<_>>()?;
        let forward = seconds(device, || {
            drop((work.run)(&inputs)?);
            Ok(())
        })?;
        let floor = (work.flops / ceilings.matmul).max(work.bytes / ceilings.copy);
        let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<std::result::Result<_, _>>()?;
        let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let both = seconds(device, || {
            drop((work.run)(&tracked)?.backward()?);
            Ok(())
        })?;
        text += &format!(
            "| {} | {:.3} | {:.3} | {:.0}% | {:.3} |\n",
            work.name,
            1e3 * forward,
            1e3 * floor,
            100.0 * floor / forward,
            1e3 * both,
        );
    }
    Ok(text + "\n")
}
