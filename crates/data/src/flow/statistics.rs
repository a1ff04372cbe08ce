//! What a set of flows consists of.

use std::collections::{BTreeMap, BTreeSet};

use super::{FlowEpisode, FlowSource};

/// Of one family of tasks from one source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskStatistics {
    /// Episodes.
    pub episodes: usize,
    /// Different instructions.
    pub instructions: usize,
    /// Mean over the points of their way from start to end, metres: smallest, mean and largest over the episodes.
    pub moved_m: [f64; 3],
    /// Angle between the first and the last pose, degrees: smallest, mean and largest; zeros without poses.
    pub turned_deg: [f64; 3],
    /// Share of visible points over all future frames.
    pub visibility: f64,
}

/// Sums over episodes, one at a time.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    tasks: BTreeMap<(String, &'static str), Sums>,
}

#[derive(Clone, Debug, Default)]
struct Sums {
    moved: Range,
    turned: Range,
    seen: f64,
    points: f64,
    words: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Range {
    n: usize,
    low: f64,
    sum: f64,
    high: f64,
}

impl Range {
    fn add(&mut self, value: f64) {
        (self.low, self.high) = match self.n {
            0 => (value, value),
            _ => (self.low.min(value), self.high.max(value)),
        };
        self.n += 1;
        self.sum += value;
    }

    fn low_mean_high(&self) -> [f64; 3] {
        [self.low, self.sum / self.n.max(1) as f64, self.high]
    }
}

const fn source_name(source: FlowSource) -> &'static str {
    match source {
        FlowSource::Tabletop => "tabletop",
        FlowSource::Libero => "libero",
        FlowSource::Tracker => "tracker",
    }
}

impl Statistics {
    /// Takes an episode into account.
    pub fn add(&mut self, episode: &FlowEpisode) {
        let flow = &episode.flow;
        let sums = self.tasks.entry((episode.task.clone(), source_name(episode.source))).or_default();
        let last = flow.frames() - 1;
        let way: f64 = flow.at(last).iter().zip(flow.at(0)).map(|(b, a)| (b - a).norm()).sum();
        sums.moved.add(way / flow.points() as f64);
        if let (Some(first), Some(last)) = (episode.poses.first(), episode.poses.last()) {
            sums.turned.add(first.rotation.angle_to(&last.rotation).to_degrees());
        }
        for t in 1..flow.frames() {
            sums.seen += flow.visibility_at(t).iter().map(|v| f64::from(*v)).sum::<f64>();
            sums.points += flow.points() as f64;
        }
        sums.words.insert(episode.instruction.clone());
    }

    /// (task, source, numbers), sorted by task and source.
    #[must_use]
    pub fn tasks(&self) -> Vec<(String, &'static str, TaskStatistics)> {
        let row = |((task, source), sums): (&(String, &'static str), &Sums)| {
            let numbers = TaskStatistics {
                episodes: sums.moved.n,
                instructions: sums.words.len(),
                moved_m: sums.moved.low_mean_high(),
                turned_deg: sums.turned.low_mean_high(),
                visibility: sums.seen / sums.points.max(1.0),
            };
            (task.clone(), *source, numbers)
        };
        self.tasks.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::episode::tests::episode;
    use super::*;

    #[test]
    fn numbers_of_a_known_motion() {
        let mut all = Statistics::default();
        for seed in 0..4 {
            all.add(&episode(seed, 3));
        }
        let rows = all.tasks();
        let names: Vec<_> = rows.iter().map(|(task, source, _)| (task.as_str(), *source)).collect();
        assert_eq!(names, [("pour", "tabletop"), ("push", "tabletop")]);
        let (_, _, push) = &rows[1];
        assert_eq!((push.episodes, push.instructions), (2, 1));
        // Turned by 0.2 rad, moved by 2 cm and by what turning adds.
        assert!((push.turned_deg[1] - 0.2f64.to_degrees()).abs() < 1e-9);
        assert!(push.moved_m[0] > 0.015 && push.moved_m[2] < 0.04, "{:?}", push.moved_m);
        // 32 future points, those of index 20, 27, 34, 41 (of all 48) are hidden.
        assert!((push.visibility - 28.0 / 32.0).abs() < 1e-9, "{}", push.visibility);
    }
}
