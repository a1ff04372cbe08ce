//! Calling kernels in tests: every call runs in three orders of blocks, warps and lanes, which must agree bit for bit.
#![allow(dead_code, clippy::unwrap_used)]

use efference_ops_emulation::{Arg, Buffer, Element, Order, launch_in_order};
use half::{bf16, f16};

/// A type that tensors are stored in.
pub trait Stored: Element + std::fmt::Debug {
    const NAME: &'static str;
    /// Half the distance between 1 and the next number: the largest relative error of a rounding.
    const UNIT: f64;
    /// The smallest normal number.
    const SMALL: f64;
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Stored for f32 {
    const NAME: &'static str = "f32";
    const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
    const SMALL: f64 = f32::MIN_POSITIVE as f64;
    fn of(x: f64) -> Self {
        x as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

impl Stored for f16 {
    const NAME: &'static str = "f16";
    const UNIT: f64 = 1.0 / (1u64 << 11) as f64;
    const SMALL: f64 = 6.104e-5;
    fn of(x: f64) -> Self {
        f16::from_f32(x as f32)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

impl Stored for bf16 {
    const NAME: &'static str = "bf16";
    const UNIT: f64 = 1.0 / (1u64 << 8) as f64;
    const SMALL: f64 = f32::MIN_POSITIVE as f64;
    fn of(x: f64) -> Self {
        bf16::from_f32(x as f32)
    }
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

/// Runs `test::<T>(args)` for the three types.
#[macro_export]
macro_rules! for_each_type {
    ($test:ident $args:tt) => {
        $test::<f32> $args;
        $test::<half::f16> $args;
        $test::<half::bf16> $args;
    };
}

/// Random numbers, the same every time.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }
    /// About normal, with standard deviation `size`.
    pub fn normal(&mut self, size: f64) -> f64 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) * size
    }
    pub fn tensor<T: Stored>(&mut self, n: usize, size: f64) -> Vec<T> {
        (0..n).map(|_| T::of(self.normal(size))).collect()
    }
}

pub fn wide<T: Stored>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.wide()).collect()
}

enum Piece {
    Scalar(Arg),
    /// Initial bytes or none, length in bytes, size of an element, whether it is read back.
    Memory(Option<Vec<u8>>, usize, usize, bool),
}

/// A launch in the making.
pub struct Call {
    symbol: String,
    pieces: Vec<Piece>,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    shift: usize,
}

fn bytes_of<T: Element>(data: &[T]) -> Vec<u8> {
    let buffer = Buffer::of(data);
    let at = buffer.pointer().cast::<u8>();
    // SAFETY: the buffer holds that many bytes.
    #[allow(unsafe_code)]
    unsafe { std::slice::from_raw_parts(at, size_of_val(data)) }.to_vec()
}

impl Call {
    pub fn new(symbol: impl Into<String>) -> Self {
        Self { symbol: symbol.into(), pieces: Vec::new(), grid: [1; 3], block: 256, shared: 0, shift: 0 }
    }
    pub fn typed<T: Stored>(name: &str) -> Self {
        Self::new(format!("{name}_{}", T::NAME))
    }
    pub fn input<T: Element>(mut self, data: &[T]) -> Self {
        self.pieces.push(Piece::Memory(Some(bytes_of(data)), size_of_val(data), size_of::<T>(), false));
        self
    }
    pub fn optional<T: Element>(self, data: Option<&[T]>) -> Self {
        match data {
            Some(data) => self.input(data),
            None => self.null(),
        }
    }
    /// Read and written.
    pub fn changed<T: Element>(mut self, data: &[T]) -> Self {
        self.pieces.push(Piece::Memory(Some(bytes_of(data)), size_of_val(data), size_of::<T>(), true));
        self
    }
    pub fn output<T: Element>(mut self, len: usize) -> Self {
        self.pieces.push(Piece::Memory(None, len * size_of::<T>(), size_of::<T>(), true));
        self
    }
    pub fn null(mut self) -> Self {
        self.pieces.push(Piece::Scalar(Arg::NULL));
        self
    }
    pub fn arg(mut self, arg: Arg) -> Self {
        self.pieces.push(Piece::Scalar(arg));
        self
    }
    pub fn i64(self, x: usize) -> Self {
        self.arg(Arg::I64(x as i64))
    }
    pub fn i32(self, x: usize) -> Self {
        self.arg(Arg::I32(x as i32))
    }
    pub fn f32(self, x: f64) -> Self {
        self.arg(Arg::F32(x as f32))
    }
    pub fn grid(mut self, x: usize, y: usize, z: usize) -> Self {
        self.grid = [x as u32, y as u32, z as u32];
        self
    }
    pub fn block(mut self, threads: usize) -> Self {
        self.block = threads as u32;
        self
    }
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }
    /// All pointers this many elements behind an aligned address.
    pub fn shift(mut self, elements: usize) -> Self {
        self.shift = elements;
        self
    }
    /// The launch `each(n)` of the contract.
    pub fn each(self, n: usize) -> Self {
        self.grid(n.div_ceil(2048).clamp(1, 65535), 1, 1).block(256)
    }

    fn once(&self, order: Order) -> Result<Vec<Vec<u8>>, String> {
        let mut kept = Vec::new();
        let mut args = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Scalar(arg) => args.push(*arg),
                Piece::Memory(data, len, size, back) => {
                    let offset = self.shift * size;
                    let buffer = match data {
                        Some(data) => Buffer::misaligned_of(data, offset),
                        None => Buffer::<u8>::misaligned(*len, offset),
                    };
                    args.push(buffer.arg());
                    kept.push((buffer, *back));
                }
            }
        }
        // SAFETY: the buffers live until after the launch; the tests give the sizes of the contract.
        #[allow(unsafe_code)]
        let result = unsafe {
            launch_in_order(&self.symbol, self.grid, [self.block, 1, 1], self.shared, &args, order)
        };
        result.map_err(|error| error.to_string())?;
        Ok(kept.iter().filter(|(_, back)| *back).map(|(buffer, _)| buffer.read()).collect())
    }

    /// Runs once; what went wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        self.once(Order::Forward).err()
    }

    /// The outputs in one order.
    pub fn bytes(&self, order: Order) -> Vec<Vec<u8>> {
        self.once(order).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs in three orders and gives the outputs.
    pub fn run(self) -> Outputs {
        let first = self.bytes(Order::Forward);
        for order in [Order::Backward, Order::Shuffled(7)] {
            assert!(self.bytes(order) == first, "{}: other bits in order {order:?}: a race", self.symbol);
        }
        Outputs(first.into_iter())
    }
}

/// What a call wrote, in the order of its arguments.
pub struct Outputs(std::vec::IntoIter<Vec<u8>>);

impl Outputs {
    pub fn take<T: Element>(&mut self) -> Vec<T> {
        let bytes = self.0.next().expect("another output");
        let buffer = Buffer::<T>::new(bytes.len() / size_of::<T>());
        // SAFETY: the buffer holds exactly these bytes.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.pointer().cast::<u8>(), bytes.len());
        }
        buffer.read()
    }
}

/// Every number within `units` roundings of T of the expected, plus `noise`: what f32 arithmetic on numbers of the
/// row's size may lose.
pub fn close<T: Stored>(what: &str, got: &[T], want: &[f64], units: f64, noise: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, &want)) in got.iter().zip(want).enumerate() {
        let got = got.wide();
        // Below the smallest normal number the spacing no longer shrinks.
        let tolerance = units * T::UNIT * want.abs().max(T::SMALL) + noise;
        let ok = (got - want).abs() <= tolerance || got == want;
        assert!(ok, "{what} {}: [{i}] is {got:e}, expected {want:e} (tolerance {tolerance:e})", T::NAME);
    }
}
