//! Which times are tried: uniform ones, and those that the critic values (Metropolis-Hastings).

use crate::error::{Error, Result};

/// One proposal of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    /// The variable that changes.
    pub slot: usize,
    /// Its new value, uniform in its range.
    pub value: usize,
    /// Uniform in (0, 1): accepted where it is below the acceptance probability.
    pub uniform: f64,
}

/// A chain of allocations.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// The allocation after every proposal.
    pub states: Vec<Vec<usize>>,
    /// min(1, exp((V' - V) / temperature)) of every proposal.
    pub acceptance: Vec<f64>,
    /// Whether it was accepted.
    pub accepted: Vec<bool>,
    /// The allocation with the highest value seen, the start included; the first at a tie.
    pub best: Vec<usize>,
    /// Its value.
    pub best_value: f64,
}

/// A value of `first..=last` from `uniform` in [0, 1).
pub fn within(first: usize, last: usize, uniform: f64) -> usize {
    let n = last.saturating_add(1).saturating_sub(first);
    first + ((uniform * n as f64) as usize).min(n.saturating_sub(1))
}

/// Samples from exp(value / temperature). `value` is the critic's V(start state, allocation); use a current critic and
/// keep a share of uniform samples, because an early critic is noise.
///
/// # Errors
/// A temperature that is not positive, a slot that is not there, what `value` refuses.
pub fn metropolis_hastings(
    start: &[usize],
    proposals: &[Proposal],
    temperature: f64,
    mut value: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Chain> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(Error::Setting { name: "temperature", got: temperature, expected: "greater than 0" });
    }
    let (mut now, mut now_value) = (start.to_vec(), not_nan(value(start)?)?);
    let mut chain = Chain {
        states: Vec::with_capacity(proposals.len()),
        acceptance: Vec::with_capacity(proposals.len()),
        accepted: Vec::with_capacity(proposals.len()),
        best: now.clone(),
        best_value: now_value,
    };
    for proposal in proposals {
        let mut next = now.clone();
        let Some(slot) = next.get_mut(proposal.slot) else {
            let reason = format!("there is no variable {} of {}", proposal.slot, start.len());
            return Err(Error::Invalid { what: "proposal", reason });
        };
        *slot = proposal.value;
        let next_value = not_nan(value(&next)?)?;
        let probability = ((next_value - now_value) / temperature).exp().min(1.0);
        let accepted = proposal.uniform < probability;
        if accepted {
            (now, now_value) = (next, next_value);
            if now_value > chain.best_value {
                (chain.best, chain.best_value) = (now.clone(), now_value);
            }
        }
        chain.acceptance.push(probability);
        chain.accepted.push(accepted);
        chain.states.push(now.clone());
    }
    Ok(chain)
}

/// A comparison with no number would accept everything that follows.
fn not_nan(value: f64) -> Result<f64> {
    if value.is_nan() {
        return Err(Error::Invalid { what: "critic value", reason: "it is no number".into() });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Exhausts a small problem: the share of time in a state is its weight.
    #[test]
    fn the_chain_samples_from_the_target() {
        let mut seed = 7u64;
        let mut draw = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        let proposals: Vec<Proposal> =
            (0..40_000).map(|_| Proposal { slot: 0, value: within(0, 2, draw()), uniform: draw() }).collect();
        let chain = metropolis_hastings(&[0], &proposals, 2.0, |x| Ok(x[0] as f64)).unwrap();
        let weights = [1.0, 0.5f64.exp(), 1f64.exp()];
        for (state, weight) in weights.iter().enumerate() {
            let share = chain.states.iter().filter(|x| x[0] == state).count() as f64 / 40_000.0;
            assert!((share - weight / weights.iter().sum::<f64>()).abs() < 0.02, "{state}: {share}");
        }
        assert_eq!((chain.best, chain.best_value), (vec![2], 2.0));
        assert!(metropolis_hastings(&[0], &proposals, 0.0, |_| Ok(0.0)).is_err());
    }
}
