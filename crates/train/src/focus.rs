//! Which tasks get the prompts: what still fails gets more of them.

/// Recent success per task, and who gets how many prompts by it.
pub(crate) struct Focus {
    /// Moving average of each task's success, in [0, 1].
    pub rates: Vec<f64>,
}

impl Focus {
    /// Nothing has succeeded yet.
    pub fn new(tasks: usize) -> Self {
        Self { rates: vec![0.0; tasks] }
    }

    /// A moving average over about three iterations.
    pub fn see(&mut self, task: usize, rate: f64) {
        self.rates[task] += (rate - self.rates[task]) / 3.0;
    }

    fn weights(&self) -> Vec<f64> {
        self.rates.iter().map(|rate| 1.15 - rate.clamp(0.0, 1.0)).collect()
    }

    /// Task of each of `prompts` prompts, in proportion to 1.15 - success: what always succeeds still gets a look now and
    /// then. Largest remainders are rounded up.
    pub fn share(&self, prompts: usize) -> Vec<usize> {
        let weights = self.weights();
        let total: f64 = weights.iter().sum();
        let exact: Vec<f64> = weights.iter().map(|w| w / total * prompts as f64).collect();
        let mut counts: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by(|&a, &b| (exact[b].fract()).total_cmp(&exact[a].fract()).then(a.cmp(&b)));
        let missing = prompts - counts.iter().sum::<usize>();
        order.iter().take(missing).for_each(|&task| counts[task] += 1);
        counts.iter().enumerate().flat_map(|(task, &n)| std::iter::repeat_n(task, n)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Focus;

    #[test]
    fn what_fails_gets_more_prompts_and_nothing_is_forgotten() {
        let mut focus = Focus::new(3);
        assert_eq!(focus.share(6), [0, 0, 1, 1, 2, 2]);
        for _ in 0..30 {
            focus.see(0, 1.0);
            focus.see(1, 0.5);
        }
        let shares = focus.share(20);
        let count = |task| shares.iter().filter(|t| **t == task).count();
        assert_eq!([count(0), count(1), count(2)], [1, 7, 12]);
        assert_eq!(focus.share(1).len(), 1);
    }
}
