//! f64 numbers that remember what they were made of.

use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// What a number was made of: up to two others, the slope by each, and the error of that slope.
#[derive(Clone, Copy)]
struct Step {
    from: [usize; 2],
    slope: [f64; 2],
    error: [f64; 2],
}

thread_local! {
    static TAPE: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
}

const NONE: usize = usize::MAX;

/// A number on this thread's tape.
#[derive(Clone, Copy, Debug)]
pub struct X {
    pub value: f64,
    /// Bound of the rounding error that an arithmetic with epsilon 1 would have collected, to first order.
    pub error: f64,
    at: usize,
}

fn push(value: f64, error: f64, step: Step) -> X {
    TAPE.with_borrow_mut(|tape| {
        tape.push(step);
        X { value, error, at: tape.len() - 1 }
    })
}

impl X {
    /// A number exact in every dtype, that nothing is derived by.
    pub fn constant(value: f64) -> X {
        X { value, error: 0.0, at: NONE }
    }

    /// A constant that is rounded to the dtype, a table's entry.
    pub fn rounded(value: f64) -> X {
        X { value, error: value.abs(), at: NONE }
    }

    /// A function of this number with its slope and bend (second derivative); `own` is its own rounding error, and
    /// `slope_own` that of its slope.
    fn unary(self, value: f64, slope: f64, bend: f64, own: f64, slope_own: f64) -> X {
        let carried = |factor: f64| if self.error == 0.0 { 0.0 } else { factor.abs() * self.error };
        let error = [carried(bend) + slope_own, 0.0];
        push(value, carried(slope) + own, Step { from: [self.at, NONE], slope: [slope, 0.0], error })
    }

    fn binary(self, b: X, value: f64, error: f64, slope: [f64; 2], slope_error: [f64; 2]) -> X {
        push(value, error + value.abs(), Step { from: [self.at, b.at], slope, error: slope_error })
    }

    pub fn exp(self) -> X {
        let value = self.value.exp();
        self.unary(value, value, value, 2.0 * value, 2.0 * value)
    }

    pub fn ln(self) -> X {
        let (value, slope) = (self.value.ln(), 1.0 / self.value);
        self.unary(value, slope, slope * slope, value.abs(), slope.abs())
    }

    pub fn sqrt(self) -> X {
        let value = self.value.sqrt();
        let slope = 0.5 / value;
        self.unary(value, slope, slope / self.value / 2.0, value, slope)
    }

    /// 1 + tanh(x), without cancellation where x is far below 0.
    pub fn one_plus_tanh(self) -> X {
        (self * 2.0).sigmoid() * 2.0
    }

    /// 1 / (1 + exp(-x))
    pub fn sigmoid(self) -> X {
        let e = (-self.value.abs()).exp();
        let value = if self.value >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
        let slope = e / (1.0 + e) / (1.0 + e);
        // 1 - s is formed from s: its error is that of numbers near 1
        self.unary(value, slope, slope, 5.0 * value, 5.0 * value)
    }

    /// 2 / sqrt(pi) exp(-x^2) (x + 2 x^3 / 3 + 4 x^5 / 15 + ...), whose terms all have one sign.
    pub fn erf(self) -> X {
        let (x, square) = (self.value, self.value * self.value);
        let slope = 2.0 / std::f64::consts::PI.sqrt() * (-square).exp();
        let mut value = x.signum();
        if x.abs() < 6.0 {
            let (mut term, mut sum, mut n) = (x, 0.0, 0.0);
            while sum + term != sum {
                sum += term;
                n += 1.0;
                term *= 2.0 * square / (2.0 * n + 1.0);
            }
            value = slope * sum;
        }
        // The f32 approximation promises 3e-7, five epsilons.
        self.unary(value, slope, 2.0 * x * slope, 5.0, 5.0 * slope)
    }

    /// max(x, 0)
    pub fn relu(self) -> X {
        let slope = if self.value > 0.0 { 1.0 } else { 0.0 };
        self.unary(self.value.max(0.0), slope, 0.0, 0.0, 0.0)
    }

    pub fn square(self) -> X {
        self * self
    }
}

impl Add for X {
    type Output = X;
    fn add(self, b: X) -> X {
        self.binary(b, self.value + b.value, self.error + b.error, [1.0, 1.0], [0.0; 2])
    }
}

impl Sub for X {
    type Output = X;
    fn sub(self, b: X) -> X {
        self.binary(b, self.value - b.value, self.error + b.error, [1.0, -1.0], [0.0; 2])
    }
}

impl Mul for X {
    type Output = X;
    fn mul(self, b: X) -> X {
        let error = self.error * b.value.abs() + b.error * self.value.abs();
        self.binary(b, self.value * b.value, error, [b.value, self.value], [b.error, self.error])
    }
}

impl Div for X {
    type Output = X;
    fn div(self, b: X) -> X {
        let value = self.value / b.value;
        let error = (self.error + b.error * value.abs()) / b.value.abs();
        let slope = [1.0 / b.value, -value / b.value];
        let first = b.error * slope[0] * slope[0];
        let second = error / b.value.abs() + value.abs() * first;
        self.binary(b, value, error, slope, [first, second])
    }
}

impl Neg for X {
    type Output = X;
    fn neg(self) -> X {
        push(-self.value, self.error, Step { from: [self.at, NONE], slope: [-1.0, 0.0], error: [0.0; 2] })
    }
}

impl Mul<f64> for X {
    type Output = X;
    fn mul(self, b: f64) -> X {
        if b == 1.0 { self } else { self * X::constant(b) }
    }
}

impl Add<f64> for X {
    type Output = X;
    fn add(self, b: f64) -> X {
        self + X::constant(b)
    }
}

/// Sum from the left, 0 for nothing.
pub fn sum(terms: impl IntoIterator<Item = X>) -> X {
    terms.into_iter().reduce(|a, b| a + b).unwrap_or(X::constant(0.0))
}

/// Numbers of a fresh tape.
pub fn leaves(args: &[Vec<f64>]) -> Vec<Vec<X>> {
    TAPE.with_borrow_mut(Vec::clear);
    let leaf = Step { from: [NONE; 2], slope: [0.0; 2], error: [0.0; 2] };
    args.iter().map(|arg| arg.iter().map(|&value| push(value, 0.0, leaf)).collect()).collect()
}

/// A gradient.
#[derive(Clone, Copy, Default)]
pub struct Slope {
    pub value: f64,
    /// Sum of the absolute values of the terms it is made of.
    pub size: f64,
    /// What rounding errors of the slopes on the way add up to, as [`X::error`].
    pub error: f64,
}

/// Gradients of the sum of weight * number over `outputs` by all of `leaves`.
pub fn gradients(outputs: &[(X, f64)], leaves: &[Vec<X>]) -> Vec<Vec<Slope>> {
    TAPE.with_borrow(|tape| {
        let mut all = vec![Slope::default(); tape.len()];
        for (x, weight) in outputs.iter().filter(|(x, _)| x.at != NONE) {
            all[x.at].value += weight;
            all[x.at].size += weight.abs();
        }
        for at in (0..tape.len()).rev() {
            let Slope { value, size, error } = all[at];
            if size == 0.0 && error == 0.0 {
                continue;
            }
            let step = &tape[at];
            for i in 0..2 {
                if step.from[i] != NONE {
                    let to = &mut all[step.from[i]];
                    to.value += value * step.slope[i];
                    to.size += size * step.slope[i].abs();
                    to.error += error * step.slope[i].abs() + size * step.error[i];
                }
            }
        }
        leaves.iter().map(|arg| arg.iter().map(|x| all[x.at]).collect()).collect()
    })
}
