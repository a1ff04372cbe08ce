//! The judge that knows: the simulator's own predicate on the pose that the plan leads to.

use efference_geometry::Isometry3;

use super::{Judge, JudgeQuestion, Verdict};
use crate::flow::Result;

/// Accepts exactly the motions for which a predicate holds.
pub struct PredicateJudge<F> {
    holds: F,
}

impl<F: FnMut(&Isometry3<f64>) -> bool> PredicateJudge<F> {
    /// `holds` says whether the task would be done after this motion of the object (present to end, world frame).
    pub fn new(holds: F) -> Self {
        Self { holds }
    }
}

impl<F: FnMut(&Isometry3<f64>) -> bool> Judge for PredicateJudge<F> {
    fn judge(&mut self, question: &JudgeQuestion<'_>) -> Result<Verdict> {
        let accept = (self.holds)(question.motion);
        let reason = if accept { "the goal holds there" } else { "the goal does not hold there" };
        Ok(Verdict { accept, score: f64::from(u8::from(accept)), reason: reason.into() })
    }

    fn name(&self) -> &'static str {
        "predicate"
    }
}
