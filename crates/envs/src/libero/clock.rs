//! When observations are taken.

use super::Meta;

/// robosuite's sampling clock. It runs at the control rate but is one or two physics steps ahead of it, because a reset
/// and a restored state advance it too: after both, samples fall on the last physics step but one of a control step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Clock {
    /// Seconds since the last period began.
    pub since: f64,
    pub sampled: bool,
    period: f64,
    timestep: f64,
}

impl Clock {
    pub fn new(meta: &Meta) -> Self {
        Self { since: 0.0, sampled: false, period: 1.0 / meta.control_freq, timestep: meta.timestep }
    }

    /// A physics step has passed: whether to take the sample now.
    pub fn tick(&mut self) -> bool {
        self.advance(false)
    }

    /// An update that always takes the sample.
    pub fn forced(&mut self) -> bool {
        self.advance(true)
    }

    fn advance(&mut self, force: bool) -> bool {
        self.since += self.timestep;
        let take = force || (!self.sampled && self.since <= self.period);
        self.sampled |= take;
        if self.since >= self.period {
            self.since %= self.period;
            self.sampled = false;
        }
        take
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The physics steps (from 1) of each control step in which samples are taken, after `forced` forced updates.
    fn sampled(forced: usize, steps: usize) -> Vec<Vec<usize>> {
        let mut clock = Clock { since: 0.0, sampled: false, period: 1.0 / 20.0, timestep: 0.002 };
        (0..forced).for_each(|_| assert!(clock.forced()));
        (0..steps).map(|_| (1..=25).filter(|_| clock.tick()).collect()).collect()
    }

    #[test]
    fn samples_fall_where_robosuites_do() {
        for (forced, substep) in [(1, 25), (2, 24), (3, 23)] {
            assert_eq!(sampled(forced, 2000), vec![vec![substep]; 2000], "{forced} forced updates");
        }
    }
}
