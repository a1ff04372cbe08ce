//! From a formula to timed subgoals: which times and branches there are, and what each choice asks for.

use super::stl::{Formula, Trace, UntilLeft};
use crate::error::{Error, Result};

/// A variable of an allocation, in the order in which the formula is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A time in first..=last, relative to what it stands in.
    Time {
        /// First.
        first: usize,
        /// Last.
        last: usize,
    },
    /// The chosen part of a disjunction.
    Branch {
        /// Which part.
        index: usize,
    },
}

/// Reach: `formula`, a state formula, at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Subgoal {
    /// What has to hold.
    pub formula: Formula,
    /// When.
    pub time: usize,
}

/// Inv: `formula`, a state formula, over steps start..=end.
#[derive(Clone, Debug, PartialEq)]
pub struct Invariance {
    /// What has to hold.
    pub formula: Formula,
    /// From.
    pub start: usize,
    /// To, included.
    pub end: usize,
}

/// What an allocation asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grounding {
    /// In the order of the formula; [`Grounding::in_time`] sorts them.
    pub subgoals: Vec<Subgoal>,
    /// In the order of the formula.
    pub invariances: Vec<Invariance>,
    /// The steps that were chosen for eventually and until; they must lie within a trace.
    pub moments: Vec<usize>,
}

impl Grounding {
    /// Indices of the subgoals by time, equal ones in the order of the formula.
    pub fn in_time(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.subgoals.len()).collect();
        order.sort_by_key(|&k| self.subgoals[k].time);
        order
    }

    /// The worst robustness of what is asked for; -inf when a chosen step lies past the end of the trace, +inf when
    /// nothing is asked for.
    ///
    /// # Errors
    /// A signal that the trace has not.
    pub fn value(&self, trace: &Trace) -> Result<f64> {
        let late = self.moments.iter().any(|&t| t >= trace.steps());
        let mut worst = if late { f64::NEG_INFINITY } else { f64::INFINITY };
        for goal in &self.subgoals {
            let rho = goal.formula.robustness(trace, UntilLeft::Closed)?;
            worst = worst.min(rho.get(goal.time).copied().unwrap_or(f64::NEG_INFINITY));
        }
        for inv in &self.invariances {
            let rho = inv.formula.robustness(trace, UntilLeft::Closed)?;
            let active = rho.iter().skip(inv.start).take(inv.end.saturating_add(1).saturating_sub(inv.start));
            worst = active.copied().fold(worst, f64::min);
        }
        Ok(worst)
    }
}

/// The formula with negations only at predicates and without implications.
///
/// # Errors
/// A negated until.
pub fn push_negations(formula: &Formula) -> Result<Formula> {
    push(formula, false)
}

fn push(formula: &Formula, negated: bool) -> Result<Formula> {
    let all = |args: &[Formula]| args.iter().map(|arg| push(arg, negated)).collect::<Result<Vec<_>>>();
    let boxed = |arg: &Formula| push(arg, negated).map(Box::new);
    Ok(match (formula, negated) {
        (Formula::Pred { .. } | Formula::Region { .. }, false) => formula.clone(),
        (Formula::Pred { .. } | Formula::Region { .. }, true) => {
            Formula::Not { arg: Box::new(formula.clone()) }
        }
        (Formula::Not { arg }, _) => push(arg, !negated)?,
        (Formula::And { args }, false) | (Formula::Or { args }, true) => Formula::And { args: all(args)? },
        (Formula::Or { args }, false) | (Formula::And { args }, true) => Formula::Or { args: all(args)? },
        (Formula::Implies { lhs, rhs }, false) => {
            Formula::Or { args: vec![push(lhs, true)?, push(rhs, false)?] }
        }
        (Formula::Implies { lhs, rhs }, true) => {
            Formula::And { args: vec![push(lhs, false)?, push(rhs, true)?] }
        }
        (Formula::Eventually { a, b, arg }, false) | (Formula::Always { a, b, arg }, true) => {
            Formula::Eventually { a: *a, b: *b, arg: boxed(arg)? }
        }
        (Formula::Always { a, b, arg }, false) | (Formula::Eventually { a, b, arg }, true) => {
            Formula::Always { a: *a, b: *b, arg: boxed(arg)? }
        }
        (Formula::Until { a, b, lhs, rhs }, false) => {
            Formula::Until { a: *a, b: *b, lhs: boxed(lhs)?, rhs: boxed(rhs)? }
        }
        (Formula::Until { .. }, true) => return Err(unsupported("a negated until", formula)),
    })
}

fn unsupported(what: &str, formula: &Formula) -> Error {
    Error::Invalid { what: "formula", reason: format!("{what} cannot be grounded: {}", formula.text()) }
}

/// The variables of the formula (with negations pushed), one list for every choice of branches.
///
/// # Errors
/// A temporal formula inside of an always or on the left of an until (recurrence).
pub fn slots(formula: &Formula) -> Result<Vec<Vec<Slot>>> {
    match formula {
        _ if is_literal(formula) => Ok(vec![Vec::new()]),
        Formula::And { args } => {
            let mut all = vec![Vec::new()];
            for arg in args {
                let next = slots(arg)?;
                let joined = all.iter().flat_map(|head: &Vec<Slot>| {
                    next.iter().map(move |tail| head.iter().chain(tail).copied().collect::<Vec<_>>())
                });
                all = joined.collect();
            }
            Ok(all)
        }
        Formula::Or { args } => {
            let mut all = Vec::new();
            for (index, arg) in args.iter().enumerate() {
                all.extend(slots(arg)?.into_iter().map(|tail| before(Slot::Branch { index }, tail)));
            }
            Ok(all)
        }
        Formula::Eventually { a, b, arg } => {
            let time = Slot::Time { first: *a, last: *b };
            Ok(slots(arg)?.into_iter().map(|tail| before(time, tail)).collect())
        }
        Formula::Always { arg, .. } if arg.is_state() => Ok(vec![Vec::new()]),
        Formula::Until { a, b, lhs, rhs } if lhs.is_state() => {
            let time = Slot::Time { first: *a, last: *b };
            Ok(slots(rhs)?.into_iter().map(|tail| before(time, tail)).collect())
        }
        Formula::Always { .. } => Err(unsupported("recurrence", formula)),
        _ => Err(unsupported("this", formula)),
    }
}

fn before(slot: Slot, tail: Vec<Slot>) -> Vec<Slot> {
    std::iter::once(slot).chain(tail).collect()
}

fn is_literal(formula: &Formula) -> bool {
    match formula {
        Formula::Pred { .. } | Formula::Region { .. } => true,
        Formula::Not { arg } => matches!(**arg, Formula::Pred { .. } | Formula::Region { .. }),
        _ => false,
    }
}

/// What the formula (with negations pushed) asks for under an allocation, a value per slot in order. A choice outside of
/// its range is taken as it is.
///
/// # Errors
/// Too few values, a branch that is not there, what [`slots`] refuses.
pub fn ground(formula: &Formula, allocation: &[usize], left: UntilLeft) -> Result<Grounding> {
    let mut out = Grounding::default();
    let mut values = allocation.iter().copied();
    walk(formula, 0, &mut values, left, &mut out)?;
    Ok(out)
}

fn walk(
    formula: &Formula,
    base: usize,
    values: &mut impl Iterator<Item = usize>,
    left: UntilLeft,
    out: &mut Grounding,
) -> Result<()> {
    let short = || Error::Invalid {
        what: "allocation",
        reason: "fewer values than the formula has variables".into(),
    };
    match formula {
        _ if is_literal(formula) => out.subgoals.push(Subgoal { formula: formula.clone(), time: base }),
        Formula::And { args } => {
            for arg in args {
                walk(arg, base, values, left, out)?;
            }
        }
        Formula::Or { args } => {
            let index = values.next().ok_or_else(short)?;
            let reason = || format!("there is no branch {index} of {}", args.len());
            let arg =
                args.get(index).ok_or_else(|| Error::Invalid { what: "allocation", reason: reason() })?;
            walk(arg, base, values, left, out)?;
        }
        Formula::Eventually { arg, .. } => {
            let tau = values.next().ok_or_else(short)?;
            out.moments.push(base + tau);
            walk(arg, base + tau, values, left, out)?;
        }
        Formula::Always { a, b, arg } if arg.is_state() => {
            out.invariances.push(Invariance {
                formula: (**arg).clone(),
                start: base.saturating_add(*a),
                end: base.saturating_add(*b),
            });
        }
        Formula::Until { lhs, rhs, .. } if lhs.is_state() => {
            let tau = values.next().ok_or_else(short)?;
            out.moments.push(base + tau);
            let end = match left {
                UntilLeft::Closed => Some(base + tau),
                UntilLeft::HalfOpen => tau.checked_sub(1).map(|before| base + before),
            };
            if let Some(end) = end {
                out.invariances.push(Invariance { formula: (**lhs).clone(), start: base, end });
            }
            walk(rhs, base + tau, values, left, out)?;
        }
        Formula::Always { .. } => return Err(unsupported("recurrence", formula)),
        _ => return Err(unsupported("this", formula)),
    }
    Ok(())
}

/// The best of all allocations.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// How many there are.
    pub allocations: usize,
    /// The worst constraint under the best one: the robustness of the formula at step 0.
    pub value: f64,
    /// A value per slot; the first one at a tie, branches first.
    pub allocation: Vec<usize>,
    /// What it asks for.
    pub grounding: Grounding,
}

/// Allocations that are enumerated at most.
const MOST: usize = 10_000_000;

/// Tries all allocations of a formula on a trace.
///
/// # Errors
/// What cannot be grounded, more than ten million allocations.
pub fn best_allocation(formula: &Formula, trace: &Trace, left: UntilLeft) -> Result<Best> {
    let formula = push_negations(formula)?;
    let range = |slot: &Slot| match *slot {
        Slot::Time { first, last } => (first, last.saturating_add(1).saturating_sub(first)),
        Slot::Branch { index } => (index, 1),
    };
    let branches = slots(&formula)?;
    let count = |slots: &Vec<Slot>| slots.iter().try_fold(1usize, |n, slot| n.checked_mul(range(slot).1));
    let total =
        branches.iter().try_fold(0usize, |n, slots| n.checked_add(count(slots)?)).filter(|&n| n <= MOST);
    let Some(allocations) = total else {
        let reason = format!("more than {MOST} allocations of {}", formula.text());
        return Err(Error::Invalid { what: "formula", reason });
    };
    let mut best: Option<Best> = None;
    for slots in &branches {
        for number in 0..count(slots).unwrap_or(0) {
            // The last slot changes fastest.
            let mut rest = number;
            let mut allocation = vec![0; slots.len()];
            for (value, slot) in allocation.iter_mut().zip(slots).rev() {
                let (first, n) = range(slot);
                *value = first + rest % n;
                rest /= n;
            }
            let grounding = ground(&formula, &allocation, left)?;
            let value = grounding.value(trace)?;
            if best.as_ref().is_none_or(|best| value > best.value) {
                best = Some(Best { allocations, value, allocation, grounding });
            }
        }
    }
    best.ok_or_else(|| unsupported("a formula without an allocation", &formula))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::stl::Sense;
    use super::*;

    fn pred(name: &str, c: f64) -> Formula {
        Formula::Pred { name: name.into(), c, sense: Sense::Ge }
    }

    fn formulas() -> Vec<Formula> {
        let (x, y) = (|| pred("x", 0.1), || pred("y", -0.2));
        let not = |arg| Formula::Not { arg: Box::new(arg) };
        let stay = Formula::Always { a: 0, b: 2, arg: Box::new(not(y())) };
        let until = Formula::Until { a: 1, b: 4, lhs: Box::new(x()), rhs: Box::new(y()) };
        let choice = Formula::Or { args: vec![until, stay.clone()] };
        vec![
            Formula::Eventually { a: 0, b: 5, arg: Box::new(choice.clone()) },
            Formula::And {
                args: vec![choice, Formula::Eventually { a: 1, b: 3, arg: Box::new(stay.clone()) }],
            },
            Formula::Implies {
                lhs: Box::new(stay),
                rhs: Box::new(Formula::And { args: vec![x(), not(y())] }),
            },
        ]
    }

    proptest! {
        /// What grounding is for, also where windows are cut off by the end of the trace.
        #[test]
        fn the_best_allocation_is_the_robustness(
            x in proptest::collection::vec(-1.0f64..1.0, 1..12),
            seed in -1.0f64..1.0,
        ) {
            let y: Vec<f64> = x.iter().map(|v| (v * 7.0 + seed).sin()).collect();
            let trace = Trace::new([("x".to_string(), x), ("y".to_string(), y)]).unwrap();
            for formula in formulas() {
                for left in [UntilLeft::Closed, UntilLeft::HalfOpen] {
                    let rho = formula.robustness(&trace, left).unwrap()[0];
                    prop_assert_eq!(best_allocation(&formula, &trace, left).unwrap().value, rho, "{}", formula.text());
                }
            }
        }
    }

    #[test]
    fn recurrence_and_negated_until_are_refused() {
        let recurrence = Formula::Always {
            a: 0,
            b: 3,
            arg: Box::new(Formula::Eventually { a: 0, b: 1, arg: Box::new(pred("x", 0.0)) }),
        };
        let trace = Trace::new([("x".to_string(), vec![0.0; 4])]).unwrap();
        let error = best_allocation(&recurrence, &trace, UntilLeft::Closed).unwrap_err().to_string();
        assert!(error.contains("recurrence"), "{error}");
        let until =
            Formula::Until { a: 0, b: 1, lhs: Box::new(pred("x", 0.0)), rhs: Box::new(pred("x", 1.0)) };
        assert!(push_negations(&Formula::Not { arg: Box::new(until) }).is_err());
    }

    #[test]
    fn subgoals_come_in_time() {
        let reach = |name, b| Formula::Eventually { a: 0, b, arg: Box::new(pred(name, 0.0)) };
        let both = Formula::And { args: vec![reach("x", 5), reach("y", 5)] };
        let grounding = ground(&both, &[4, 1], UntilLeft::Closed).unwrap();
        assert_eq!(grounding.in_time(), [1, 0]);
        assert!(ground(&both, &[4], UntilLeft::Closed).is_err());
    }
}
