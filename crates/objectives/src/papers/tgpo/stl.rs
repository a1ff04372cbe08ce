//! Signal temporal logic: formulas and how far a trace satisfies them.
//!
//! Time is discrete; intervals [a, b] are closed and relative. Past the end of a trace windows are cut off; the maximum
//! of nothing is -inf and the minimum +inf.

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Direction of a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sense {
    /// signal >= c
    Ge,
    /// signal <= c
    Le,
}

/// A formula.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Formula {
    /// A signal compared with a constant.
    #[serde(rename = "pred")]
    Pred {
        /// The signal.
        name: String,
        /// The constant.
        c: f64,
        /// Which side satisfies.
        sense: Sense,
    },
    /// Within `radius` of `center` in the plane or space of the signals `names`.
    #[serde(rename = "region")]
    Region {
        /// One signal per coordinate.
        names: Vec<String>,
        /// As many coordinates.
        center: Vec<f64>,
        /// Distance at which the robustness is 0.
        radius: f64,
    },
    /// Negation.
    #[serde(rename = "not")]
    Not {
        /// What is negated.
        arg: Box<Formula>,
    },
    /// All of them.
    #[serde(rename = "and")]
    And {
        /// The parts.
        args: Vec<Formula>,
    },
    /// One of them.
    #[serde(rename = "or")]
    Or {
        /// The parts.
        args: Vec<Formula>,
    },
    /// Not `lhs`, or `rhs`.
    #[serde(rename = "implies")]
    Implies {
        /// Premise.
        lhs: Box<Formula>,
        /// Conclusion.
        rhs: Box<Formula>,
    },
    /// Eventually: at some time of the window.
    #[serde(rename = "F")]
    Eventually {
        /// First step of the window.
        a: usize,
        /// Last step of the window.
        b: usize,
        /// What has to hold there.
        arg: Box<Formula>,
    },
    /// Always: at every time of the window.
    #[serde(rename = "G")]
    Always {
        /// First step of the window.
        a: usize,
        /// Last step of the window.
        b: usize,
        /// What has to hold.
        arg: Box<Formula>,
    },
    /// `rhs` at some time of the window, and `lhs` from now until then.
    #[serde(rename = "U")]
    Until {
        /// First step of the window.
        a: usize,
        /// Last step of the window.
        b: usize,
        /// What has to hold until then.
        lhs: Box<Formula>,
        /// What has to happen.
        rhs: Box<Formula>,
    },
}

/// Whether the left side of an until must also hold at the moment when the right side does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UntilLeft {
    /// Yes: the textbook.
    #[default]
    Closed,
    /// No: the rtamt monitor.
    HalfOpen,
}

/// A trace: every signal's values, one per step, all of one length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    steps: usize,
    signals: BTreeMap<String, Vec<f64>>,
}

impl Trace {
    /// From signals of one length.
    ///
    /// # Errors
    /// Lengths that differ, a value that is not finite.
    pub fn new(signals: impl IntoIterator<Item = (String, Vec<f64>)>) -> Result<Self> {
        let signals: BTreeMap<String, Vec<f64>> = signals.into_iter().collect();
        let steps = signals.values().next().map_or(0, Vec::len);
        for values in signals.values() {
            if values.len() != steps {
                let expected = format!("[{steps}], like the first signal");
                return Err(Error::Shape { name: "signal", got: vec![values.len()], expected });
            }
            if let Some(index) = values.iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite { name: "signal", index, got: values[index] });
            }
        }
        Ok(Self { steps, signals })
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    fn signal(&self, name: &str) -> Result<&[f64]> {
        self.signals.get(name).map(Vec::as_slice).ok_or_else(|| no_signal(name))
    }
}

fn no_signal(name: &str) -> Error {
    Error::Invalid { what: "formula", reason: format!("there is no signal `{name}`") }
}

impl Formula {
    /// Steps that the formula looks ahead: the largest nested sum of upper bounds.
    pub fn horizon(&self) -> usize {
        match self {
            Self::Pred { .. } | Self::Region { .. } => 0,
            Self::Not { arg } => arg.horizon(),
            Self::And { args } | Self::Or { args } => args.iter().map(Self::horizon).max().unwrap_or(0),
            Self::Implies { lhs, rhs } => lhs.horizon().max(rhs.horizon()),
            Self::Eventually { b, arg, .. } | Self::Always { b, arg, .. } => b + arg.horizon(),
            Self::Until { b, lhs, rhs, .. } => b + lhs.horizon().max(rhs.horizon()),
        }
    }

    /// Whether it speaks about one moment only.
    pub fn is_state(&self) -> bool {
        match self {
            Self::Pred { .. } | Self::Region { .. } => true,
            Self::Not { arg } => arg.is_state(),
            Self::And { args } | Self::Or { args } => args.iter().all(Self::is_state),
            Self::Implies { lhs, rhs } => lhs.is_state() && rhs.is_state(),
            Self::Eventually { .. } | Self::Always { .. } | Self::Until { .. } => false,
        }
    }

    /// For a person: `(eventually[0:8] (x >= 0.5))`.
    pub fn text(&self) -> String {
        let join = |args: &[Formula], word: &str| {
            let parts: Vec<String> = args.iter().map(Self::text).collect();
            format!("({})", parts.join(word))
        };
        match self {
            Self::Pred { name, c, sense: Sense::Ge } => format!("({name} >= {c:?})"),
            Self::Pred { name, c, sense: Sense::Le } => format!("({name} <= {c:?})"),
            Self::Region { names, center, radius } => {
                format!("(|({}) - {center:?}| <= {radius:?})", names.join(", "))
            }
            Self::Not { arg } => format!("(not {})", arg.text()),
            Self::And { args } => join(args, " and "),
            Self::Or { args } => join(args, " or "),
            Self::Implies { lhs, rhs } => format!("({} -> {})", lhs.text(), rhs.text()),
            Self::Eventually { a, b, arg } => format!("(eventually[{a}:{b}] {})", arg.text()),
            Self::Always { a, b, arg } => format!("(always[{a}:{b}] {})", arg.text()),
            Self::Until { a, b, lhs, rhs } => format!("({} until[{a}:{b}] {})", lhs.text(), rhs.text()),
        }
    }

    /// Robustness at every step of the trace: at least 0 where the formula holds. Infinite where its windows lie past
    /// the end.
    ///
    /// # Errors
    /// A signal that the trace has not, a region of other coordinates than signals.
    pub fn robustness(&self, trace: &Trace, left: UntilLeft) -> Result<Vec<f64>> {
        let n = trace.steps;
        let of = |arg: &Formula| arg.robustness(trace, left);
        let fold = |args: &[Formula], start: f64, pick: fn(f64, f64) -> f64| -> Result<Vec<f64>> {
            let mut out = vec![start; n];
            for arg in args {
                out.iter_mut().zip(of(arg)?).for_each(|(x, y)| *x = pick(*x, y));
            }
            Ok(out)
        };
        // Windows are cut off at the end of the trace.
        let window = |x: &[f64], a: usize, b: usize, start: f64, pick: fn(f64, f64) -> f64| -> Vec<f64> {
            (0..n)
                .map(|t| {
                    let many = b.saturating_add(1).saturating_sub(a);
                    x.iter().skip(t.saturating_add(a)).take(many).copied().fold(start, pick)
                })
                .collect()
        };
        Ok(match self {
            Self::Pred { name, c, sense } => {
                let sign = if *sense == Sense::Ge { 1.0 } else { -1.0 };
                trace.signal(name)?.iter().map(|x| sign * (x - c)).collect()
            }
            Self::Region { names, center, radius } => {
                check_region(names, center)?;
                let mut squares = vec![0.0; n];
                for (name, c) in names.iter().zip(center) {
                    let signal = trace.signal(name)?;
                    squares.iter_mut().zip(signal).for_each(|(s, x)| *s += (x - c) * (x - c));
                }
                squares.into_iter().map(|s| radius - s.sqrt()).collect()
            }
            Self::Not { arg } => of(arg)?.into_iter().map(|x| -x).collect(),
            Self::And { args } => fold(args, f64::INFINITY, f64::min)?,
            Self::Or { args } => fold(args, f64::NEG_INFINITY, f64::max)?,
            Self::Implies { lhs, rhs } => of(lhs)?.iter().zip(of(rhs)?).map(|(l, r)| r.max(-l)).collect(),
            Self::Eventually { a, b, arg } => window(&of(arg)?, *a, *b, f64::NEG_INFINITY, f64::max),
            Self::Always { a, b, arg } => window(&of(arg)?, *a, *b, f64::INFINITY, f64::min),
            Self::Until { a, b, lhs, rhs } => {
                let (lhs, rhs) = (of(lhs)?, of(rhs)?);
                let at = |t: usize| {
                    let (mut best, mut until) = (f64::NEG_INFINITY, f64::INFINITY);
                    for u in t..n.min(t.saturating_add(*b).saturating_add(1)) {
                        let before = until;
                        until = until.min(lhs[u]);
                        let held = if left == UntilLeft::Closed { until } else { before };
                        if u - t >= *a {
                            best = best.max(rhs[u].min(held));
                        }
                    }
                    best
                };
                (0..n).map(at).collect()
            }
        })
    }

    /// Robustness at step 0 with soft maxima, a scalar that is differentiable in `signals` [T, number of names]:
    ///
    /// ```text
    /// max x -> ln(sum exp(k x)) / k,   min x -> -ln(sum exp(-k x)) / k      at every node, k = `temperature`
    /// ```
    ///
    /// The soft maximum of nothing is -1e5, the minimum 1e5.
    ///
    /// # Errors
    /// A signal that is not among `names`, a temperature that is not positive.
    pub fn soft_robustness(
        &self,
        signals: &Tensor,
        names: &[String],
        temperature: f64,
        left: UntilLeft,
    ) -> Result<Tensor> {
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(Error::Setting { name: "temperature", got: temperature, expected: "greater than 0" });
        }
        let (steps, columns) = signals.dims2()?;
        if columns != names.len() {
            let expected = format!("[T, {}], a column per name", names.len());
            return Err(Error::Shape { name: "signals", got: vec![steps, columns], expected });
        }
        Soft { signals, names, temperature, left, steps, known: HashMap::new() }.at(self, 0)
    }
}

fn check_region(names: &[String], center: &[f64]) -> Result<()> {
    if names.len() == center.len() {
        return Ok(());
    }
    let expected = format!("[{}], like `names`", names.len());
    Err(Error::Shape { name: "center", got: vec![center.len()], expected })
}

/// Values of nodes at steps, computed where they are needed.
struct Soft<'a> {
    signals: &'a Tensor,
    names: &'a [String],
    temperature: f64,
    left: UntilLeft,
    steps: usize,
    known: HashMap<(*const Formula, usize), Tensor>,
}

impl Soft<'_> {
    fn at(&mut self, formula: &Formula, t: usize) -> Result<Tensor> {
        // A node's address tells it from an equal node elsewhere; the formula does not move meanwhile.
        let key = (std::ptr::from_ref(formula), t);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let value = self.compute(formula, t)?;
        self.known.insert(key, value.clone());
        Ok(value)
    }

    fn compute(&mut self, formula: &Formula, t: usize) -> Result<Tensor> {
        match formula {
            Formula::Pred { name, c, sense } => {
                let distance = (self.signal(name, t)? - *c)?;
                Ok(if *sense == Sense::Ge { distance } else { distance.neg()? })
            }
            Formula::Region { names, center, radius } => {
                check_region(names, center)?;
                let mut squares = self.constant(0.0)?;
                for (name, c) in names.iter().zip(center) {
                    squares = (squares + (self.signal(name, t)? - *c)?.sqr()?)?;
                }
                // The root has no gradient at the centre itself.
                let size = if squares.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()? > 0.0 {
                    squares.sqrt()?
                } else {
                    squares
                };
                Ok((size.neg()? + *radius)?)
            }
            Formula::Not { arg } => Ok(self.at(arg, t)?.neg()?),
            Formula::And { args } => {
                let parts = args.iter().map(|arg| self.at(arg, t)).collect::<Result<Vec<_>>>()?;
                self.least(&parts)
            }
            Formula::Or { args } => {
                let parts = args.iter().map(|arg| self.at(arg, t)).collect::<Result<Vec<_>>>()?;
                self.most(&parts)
            }
            Formula::Implies { lhs, rhs } => {
                let parts = [self.at(lhs, t)?.neg()?, self.at(rhs, t)?];
                self.most(&parts)
            }
            Formula::Eventually { a, b, arg } => {
                let parts = self.window(arg, t.saturating_add(*a), t.saturating_add(*b))?;
                self.most(&parts)
            }
            Formula::Always { a, b, arg } => {
                let parts = self.window(arg, t.saturating_add(*a), t.saturating_add(*b))?;
                self.least(&parts)
            }
            Formula::Until { a, b, lhs, rhs } => {
                let mut parts = Vec::new();
                for u in t.saturating_add(*a)..self.steps.min(t.saturating_add(*b).saturating_add(1)) {
                    let held = match self.left {
                        UntilLeft::Closed => self.window(lhs, t, u)?,
                        UntilLeft::HalfOpen if u == t => Vec::new(),
                        UntilLeft::HalfOpen => self.window(lhs, t, u - 1)?,
                    };
                    let mut both = vec![self.at(rhs, u)?];
                    if !held.is_empty() {
                        both.push(self.least(&held)?);
                    }
                    parts.push(self.least(&both)?);
                }
                self.most(&parts)
            }
        }
    }

    fn window(&mut self, formula: &Formula, from: usize, to: usize) -> Result<Vec<Tensor>> {
        (from..self.steps.min(to.saturating_add(1))).map(|t| self.at(formula, t)).collect()
    }

    fn signal(&self, name: &str, t: usize) -> Result<Tensor> {
        let column = self.names.iter().position(|n| n == name).ok_or_else(|| no_signal(name))?;
        if t >= self.steps {
            return Err(Error::Invalid { what: "trace", reason: format!("it has no step {t}") });
        }
        Ok(self.signals.narrow(0, t, 1)?.narrow(1, column, 1)?.reshape(())?)
    }

    fn constant(&self, x: f64) -> Result<Tensor> {
        Ok(Tensor::new(x, self.signals.device())?.to_dtype(self.signals.dtype())?)
    }

    fn most(&self, parts: &[Tensor]) -> Result<Tensor> {
        if parts.is_empty() {
            return self.constant(-1e5);
        }
        let x = (Tensor::stack(parts, 0)? * self.temperature)?;
        let top = x.detach().max(0)?;
        let sum = x.broadcast_sub(&top)?.exp()?.sum(0)?;
        Ok(((sum.log()? + top)? * (1.0 / self.temperature))?)
    }

    fn least(&self, parts: &[Tensor]) -> Result<Tensor> {
        let negative = parts.iter().map(|x| Ok(x.neg()?)).collect::<Result<Vec<_>>>()?;
        Ok(self.most(&negative)?.neg()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    fn trace(x: &[f64]) -> Trace {
        Trace::new([("x".to_string(), x.to_vec())]).unwrap()
    }

    fn pred(c: f64) -> Box<Formula> {
        Box::new(Formula::Pred { name: "x".into(), c, sense: Sense::Ge })
    }

    #[test]
    fn eventually_is_the_dual_of_always_and_an_until() {
        let x = [0.3, -1.0, 2.0, 0.1, -0.4, 0.9];
        let trace = trace(&x);
        let run = |f: &Formula| f.robustness(&trace, UntilLeft::Closed).unwrap();
        let f = Formula::Eventually { a: 1, b: 3, arg: pred(0.0) };
        let not = Formula::Not { arg: pred(0.0) };
        let g = Formula::Always { a: 1, b: 3, arg: Box::new(not) };
        assert_eq!(run(&f), run(&Formula::Not { arg: Box::new(g) }));
        let until = Formula::Until { a: 1, b: 3, lhs: pred(-1e9), rhs: pred(0.0) };
        assert_eq!(run(&f), run(&until));
        assert_eq!(run(&f)[5], f64::NEG_INFINITY);
        assert_eq!(f.horizon(), 3);
    }

    #[test]
    fn a_cold_soft_robustness_is_the_hard_one_and_a_region_is_a_disc() {
        let disc =
            |radius| Formula::Region { names: vec!["x".into(), "y".into()], center: vec![1.0, 0.0], radius };
        let until = Formula::Until { a: 0, b: 2, lhs: Box::new(disc(5.0)), rhs: Box::new(disc(0.5)) };
        let (x, y) = ([0.0, 0.5, 1.0], [0.0, 0.1, 0.2]);
        let trace = Trace::new([("x".to_string(), x.to_vec()), ("y".to_string(), y.to_vec())]).unwrap();
        let rows: Vec<f64> = x.iter().zip(&y).flat_map(|(x, y)| [*x, *y]).collect();
        let signals = Tensor::from_vec(rows, (3, 2), &Device::Cpu).unwrap();
        let names = ["x".to_string(), "y".to_string()];
        for left in [UntilLeft::Closed, UntilLeft::HalfOpen] {
            let hard = until.robustness(&trace, left).unwrap()[0];
            let soft: f64 = until.soft_robustness(&signals, &names, 1e4, left).unwrap().to_scalar().unwrap();
            assert!((hard - 0.3).abs() < 1e-12 && (soft - hard).abs() < 1e-3, "{hard} {soft}");
        }
        let nothing = Formula::Eventually { a: 9, b: 10, arg: pred(0.0) };
        let soft = nothing.soft_robustness(&signals, &names, 5.0, UntilLeft::Closed).unwrap();
        assert_eq!(soft.to_scalar::<f64>().unwrap(), -1e5);
    }

    #[test]
    fn unknown_signals_are_named() {
        let f = Formula::Pred { name: "q".into(), c: 0.0, sense: Sense::Le };
        let error = f.robustness(&trace(&[0.0]), UntilLeft::Closed).unwrap_err();
        assert!(error.to_string().contains("`q`"));
        assert!(Trace::new([("x".to_string(), vec![f64::NAN])]).is_err());
    }
}
