//! Runs a case and compares.

use std::sync::OnceLock;

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};

use crate::tape::{self, X};

/// Where the bodies run: the CPU, and the first GPU where there is one and the feature `cuda` is on.
pub fn devices() -> Vec<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Device::new_cuda(0).ok());
    [Device::Cpu].into_iter().chain(gpu.clone()).collect()
}

/// Float types of a device.
pub fn dtypes(device: &Device) -> Vec<DType> {
    if device.is_cpu() { vec![DType::F32, DType::F64] } else { vec![DType::F32] }
}

/// Deterministic numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// In [-1, 1), with few digits, so that f32 holds it.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 44) as f64 / (1u64 << 19) as f64 - 1.0
    }
    pub fn vec(&mut self, n: usize, size: f64) -> Vec<f64> {
        (0..n).map(|_| self.unit() * size).collect()
    }
    pub fn ids(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab) as u32).collect()
    }
}

/// An argument that gradients are taken by.
#[derive(Clone, Debug)]
pub struct Arg {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
}

impl Arg {
    pub fn new(dims: &[usize], values: Vec<f64>) -> Self {
        assert_eq!(dims.iter().product::<usize>(), values.len());
        Arg { dims: dims.to_vec(), values }
    }
    pub fn random(dims: &[usize], size: f64, random: &mut Random) -> Self {
        Arg::new(dims, random.vec(dims.iter().product(), size))
    }
}

/// How arguments lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    Contiguous,
    /// The last two axes exchanged in memory.
    Transposed,
    /// The middle of a tensor that is longer at both ends of its last axis.
    Narrowed,
}

impl Lie {
    pub fn all() -> [Lie; 3] {
        [Lie::Contiguous, Lie::Transposed, Lie::Narrowed]
    }

    /// A variable; [`Lie::view`] of it is the argument.
    fn make(self, arg: &Arg, dtype: DType, device: &Device) -> CandleResult<Var> {
        let tensor = Tensor::from_vec(arg.values.clone(), arg.dims.as_slice(), device)?.to_dtype(dtype)?;
        let rank = arg.dims.len();
        match self {
            Lie::Transposed if rank > 1 => {
                Var::from_tensor(&tensor.transpose(rank - 2, rank - 1)?.contiguous()?)
            }
            Lie::Narrowed => Var::from_tensor(&tensor.pad_with_same(rank - 1, 1, 2)?),
            _ => Var::from_tensor(&tensor),
        }
    }

    fn view(self, tensor: &Tensor, arg: &Arg) -> CandleResult<Tensor> {
        let rank = arg.dims.len();
        match self {
            Lie::Transposed if rank > 1 => tensor.transpose(rank - 2, rank - 1),
            Lie::Narrowed => tensor.narrow(rank - 1, 1, arg.dims[rank - 1]),
            _ => Ok(tensor.clone()),
        }
    }
}

type Op<'a> = Box<dyn Fn(&[Tensor]) -> efference_ops::Result<Vec<Tensor>> + 'a>;
type Reference<'a> = Box<dyn Fn(&[Vec<X>]) -> Vec<Vec<X>> + 'a>;

/// An operation, its reference, and how close they must be.
pub struct Case<'a> {
    pub name: &'a str,
    pub args: Vec<Arg>,
    op: Op<'a>,
    reference: Reference<'a>,
    /// Results: multiples of epsilon times the first-order rounding error of the formula.
    pub ulps: f64,
    /// Gradients: multiples of epsilon times the sum of the absolute terms; to which `ulps` times the error of the
    /// slopes comes.
    pub grad_ulps: f64,
    /// Differences below this are none: in f32 (for numbers that underflow there) and in f64.
    pub floor: [f64; 2],
}

impl<'a> Case<'a> {
    pub fn new(
        name: &'a str,
        args: Vec<Arg>,
        op: impl Fn(&[Tensor]) -> efference_ops::Result<Vec<Tensor>> + 'a,
        reference: impl Fn(&[Vec<X>]) -> Vec<Vec<X>> + 'a,
    ) -> Self {
        let (op, reference) = (Box::new(op), Box::new(reference));
        Case { name, args, op, reference, ulps: 2.0, grad_ulps: 16.0, floor: [1e-36, 1e-300] }
    }

    /// Runs on every device, in every dtype, with arguments lying as `lie` says.
    pub fn check(&self, lie: Lie, seed: u64) {
        for device in devices() {
            for dtype in dtypes(&device) {
                self.check_on(&device, dtype, lie, seed);
            }
        }
    }

    fn check_on(&self, device: &Device, dtype: DType, lie: Lie, seed: u64) {
        let shapes: Vec<_> = self.args.iter().map(|arg| &arg.dims).collect();
        let what = format!("{} {shapes:?} {dtype:?} {lie:?}", self.name);
        let round = |x: f64| if dtype == DType::F32 { f64::from(x as f32) } else { x };
        let args: Vec<Arg> = self
            .args
            .iter()
            .map(|arg| Arg { dims: arg.dims.clone(), values: arg.values.iter().map(|&x| round(x)).collect() })
            .collect();
        let vars: Vec<Var> = args.iter().map(|arg| lie.make(arg, dtype, device).unwrap()).collect();
        let run = || {
            let views: CandleResult<Vec<Tensor>> =
                vars.iter().zip(&args).map(|(var, arg)| lie.view(var.as_tensor(), arg)).collect();
            (self.op)(&views?)
        };
        let sizes = run().unwrap_or_else(|error| panic!("{what}: {error}"));
        // cotangents, and the loss they make; infinite results have no part in gradients
        let mut random = Random::new(seed);
        let weights: Vec<Vec<f64>> = sizes.iter().map(|r| random.vec(r.elem_count(), 1.0)).collect();
        let loss = |results: &[Tensor]| -> CandleResult<Tensor> {
            let mut loss = Tensor::zeros((), dtype, device)?;
            for (result, weights) in results.iter().zip(&weights) {
                let weights = Tensor::from_vec(weights.clone(), result.dims(), device)?.to_dtype(dtype)?;
                loss = (loss + (result * weights)?.sum_all()?)?;
            }
            Ok(loss)
        };
        // candle's backward pass, and our tape
        let results = run().unwrap();
        let grads = loss(&results).unwrap().backward().unwrap();
        let mut ways = vec![(what.clone(), results, grads)];
        let mut kept = Vec::new();
        let (_, grads) = efference_ops::value_and_grad(|| {
            kept = run()?;
            Ok::<_, efference_ops::Error>(loss(&kept)?)
        })
        .unwrap();
        ways.push((format!("{what} on the tape"), kept, grads));

        let values: Vec<Vec<f64>> = args.iter().map(|arg| arg.values.clone()).collect();
        let leaves = tape::leaves(&values);
        let wanted = (self.reference)(&leaves);
        let (epsilon, floor) = match dtype {
            DType::F32 => (f64::from(f32::EPSILON), self.floor[0]),
            _ => (f64::EPSILON, self.floor[1]),
        };
        let outputs: Vec<(X, f64)> = wanted
            .iter()
            .zip(&weights)
            .flat_map(|(wanted, weights)| wanted.iter().copied().zip(weights.iter().copied()))
            .collect();
        let slopes = tape::gradients(&outputs, &leaves);
        for (what, results, grads) in &ways {
            assert_eq!(wanted.len(), results.len(), "{what}");
            for (which, (result, wanted)) in results.iter().zip(&wanted).enumerate() {
                assert_eq!(result.dtype(), dtype, "{what}");
                let got = flat(result);
                assert_eq!(got.len(), wanted.len(), "{what}, result {which}");
                for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                    let bound = self.ulps * epsilon * wanted.error + floor;
                    assert!(
                        got == &wanted.value || (got - wanted.value).abs() <= bound,
                        "{what}, result {which} at {at}: {got:e} against {:e}, allowed {bound:e}",
                        wanted.value
                    );
                }
            }
            for (which, (var, slopes)) in vars.iter().zip(&slopes).enumerate() {
                let grad =
                    grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{what}: no gradient {which}"));
                let got = flat(&lie.view(grad, &args[which]).unwrap());
                for (at, (got, wanted)) in got.iter().zip(slopes).enumerate() {
                    let bound = epsilon * (self.grad_ulps * wanted.size + self.ulps * wanted.error) + floor;
                    assert!(
                        (got - wanted.value).abs() <= bound,
                        "{what}, gradient {which} at {at}: {got:e} against {:e}, allowed {bound:e}",
                        wanted.value
                    );
                }
            }
        }
        if dtype == DType::F64 {
            self.check_reference(&what, &values, &weights, &slopes, &mut random);
        }
    }

    /// The reference's gradients against a central difference of the reference, along a random direction.
    fn check_reference(
        &self,
        what: &str,
        values: &[Vec<f64>],
        weights: &[Vec<f64>],
        slopes: &[Vec<tape::Slope>],
        random: &mut Random,
    ) {
        let largest = values.iter().flatten().filter(|x| x.is_finite()).fold(0.0f64, |a, x| a.max(x.abs()));
        if !(0.1..1e2).contains(&largest) {
            return; // steps for numbers of other sizes would differ from argument to argument
        }
        let way: Vec<Vec<f64>> = values.iter().map(|arg| random.vec(arg.len(), 1.0)).collect();
        let loss = |by: f64| {
            let moved: Vec<Vec<f64>> = values
                .iter()
                .zip(&way)
                .map(|(arg, way)| arg.iter().zip(way).map(|(x, w)| x + by * w).collect())
                .collect();
            let results = (self.reference)(&tape::leaves(&moved));
            let terms = results.iter().flatten().zip(weights.iter().flatten());
            terms.filter(|(x, _)| x.value.is_finite()).map(|(x, w)| x.value * w).sum::<f64>()
        };
        // of fourth order: the error is that of the fifth derivative
        let h = 1e-5;
        let numeric = (8.0 * (loss(h) - loss(-h)) - (loss(2.0 * h) - loss(-2.0 * h))) / (12.0 * h);
        let terms = slopes.iter().flatten().zip(way.iter().flatten());
        let (exact, size) =
            terms.fold((0.0, 1.0), |(sum, size), (s, w)| (sum + s.value * w, size + s.size * w.abs()));
        assert!(
            (numeric - exact).abs() < 1e-6 * size,
            "{what}: reference {exact} against difference {numeric}"
        );
    }
}

pub fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Sizes around the vector widths, and small ones.
pub const SIZES: [usize; 12] = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33];

/// Number of random cases per property.
pub const CASES: u32 = 64;

/// A property over a seed: proptest chooses it (the same ones in every run), shrinks it, and prints it.
pub fn for_seeds(cases: u32, body: impl Fn(u64, &mut Random)) {
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&(0u64..1 << 32), |seed| {
        body(seed, &mut Random::new(seed));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// One of `all`.
pub fn pick<T: Copy>(random: &mut Random, all: &[T]) -> T {
    all[random.below(all.len())]
}
