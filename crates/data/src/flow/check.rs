//! Whether an episode agrees with its own pictures.

use serde::{Deserialize, Serialize};

use super::{FlowEpisode, FlowSource};

/// How far the depth picture may be from a visible point, metres.
pub const DEPTH_M: f64 = 0.005;
/// Share of the visible points that must be on the mask, and agree with the depth.
pub const SHARE: f64 = 0.99;
/// How far a point may be from where the object's pose puts it, metres: positions are stored as f32.
pub const RIGID_M: f64 = 1e-4;
/// How far the whole object must move to be a motion, metres.
pub const MOVES_M: f64 = 0.005;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpisodeCheck {
    /// Points that are visible in frame 0.
    pub visible: usize,
    /// Of those, the share whose pixel is on the mask.
    pub on_mask: f64,
    /// Of those, the share whose depth agrees with the depth picture, within [`DEPTH_M`].
    pub depth_agrees: f64,
    /// Largest distance of a point from where the poses put it, metres; 0 without poses.
    pub rigid_m: f64,
    /// Largest distance of a point from its start, metres.
    pub moved_m: f64,
}

/// What is wrong with an episode, beyond contradictions ([`super::Invalid`]).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// No point is visible in frame 0.
    #[error("no point is visible in frame 0")]
    Unseen,
    /// Visible points beside the mask.
    #[error("only {:.1}% of the visible points are on the mask", 100.0 * share)]
    OffMask {
        /// Share on the mask.
        share: f64,
    },
    /// Points before or behind what the depth picture shows.
    #[error("only {:.1}% of the visible points agree with the depth picture", 100.0 * share)]
    Depth {
        /// Share that agrees.
        share: f64,
    },
    /// Points that do not move with the object.
    #[error("a point is {metres:.4} m from where the object's pose puts it")]
    NotRigid {
        /// How far.
        metres: f64,
    },
    /// Nothing moves.
    #[error("no point moves by more than {metres:.4} m")]
    Still {
        /// The farthest.
        metres: f64,
    },
}

/// Measures an episode.
#[must_use]
pub fn check(episode: &FlowEpisode) -> EpisodeCheck {
    let flow = &episode.flow;
    let (width, height) = (episode.camera.intrinsics.width, episode.camera.intrinsics.height);
    let (mut visible, mut on_mask, mut agrees) = (0, 0, 0);
    for (point, seen) in flow.at(0).iter().zip(flow.visibility_at(0)) {
        if *seen < 0.5 {
            continue;
        }
        visible += 1;
        let Some([u, v, depth]) = episode.camera.project(point) else { continue };
        if !(0.0..width as f64).contains(&u) || !(0.0..height as f64).contains(&v) {
            continue;
        }
        let pixel = v as usize * width + u as usize;
        on_mask += usize::from(episode.mask.get(pixel).is_some_and(|m| *m != 0));
        let there = episode.depth_m.get(pixel).map_or(0.0, |d| f64::from(*d));
        agrees += usize::from((there - depth).abs() <= DEPTH_M);
    }
    let share = |n: usize| n as f64 / visible.max(1) as f64;
    let mut rigid_m: f64 = 0.0;
    if let Some(first) = episode.poses.first() {
        for (t, pose) in episode.poses.iter().enumerate() {
            let step = pose * first.inverse();
            for (now, start) in flow.at(t).iter().zip(flow.at(0)) {
                rigid_m = rigid_m.max((now - step * start).norm());
            }
        }
    }
    let mut moved_m: f64 = 0.0;
    for t in 0..flow.frames() {
        for (now, start) in flow.at(t).iter().zip(flow.at(0)) {
            moved_m = moved_m.max((now - start).norm());
        }
    }
    EpisodeCheck { visible, on_mask: share(on_mask), depth_agrees: share(agrees), rigid_m, moved_m }
}

impl EpisodeCheck {
    /// What is wrong. Tracks of real videos ([`FlowSource::Tracker`]) have errors, so they only have to be seen and to move.
    #[must_use]
    pub fn problems(&self, source: FlowSource) -> Vec<Problem> {
        let mut all = Vec::new();
        if self.visible == 0 {
            all.push(Problem::Unseen);
        }
        if source != FlowSource::Tracker && self.visible > 0 {
            if self.on_mask < SHARE {
                all.push(Problem::OffMask { share: self.on_mask });
            }
            if self.depth_agrees < SHARE {
                all.push(Problem::Depth { share: self.depth_agrees });
            }
        }
        if self.rigid_m > RIGID_M {
            all.push(Problem::NotRigid { metres: self.rigid_m });
        }
        if self.moved_m < MOVES_M {
            all.push(Problem::Still { metres: self.moved_m });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::episode::tests::episode;
    use super::*;
    use efference_geometry::Isometry3;

    #[test]
    fn a_good_episode_has_no_problem_and_each_damage_is_seen() {
        let good = episode(0, 4);
        assert_eq!(check(&good).problems(FlowSource::Tabletop), []);
        let problems = |spoil: fn(&mut FlowEpisode)| {
            let mut e = episode(0, 4);
            spoil(&mut e);
            check(&e).problems(e.source)
        };
        assert!(matches!(problems(|e| e.mask.fill(0))[..], [Problem::OffMask { .. }]));
        assert!(matches!(problems(|e| e.depth_m.fill(1.01))[..], [Problem::Depth { .. }]));
        assert!(matches!(problems(|e| e.poses[2] = Isometry3::identity())[..], [Problem::NotRigid { .. }]));
        let still = problems(|e| {
            let poses = vec![Isometry3::identity(); 4];
            let start = e.flow.at(0).to_vec();
            e.flow =
                efference_geometry::Flow3d::rigid(e.flow.frame(), &start, &poses, vec![1.0; 64]).unwrap();
            e.poses = poses;
        });
        assert!(matches!(still[..], [Problem::Still { .. }]));
        // Seen from the other side of the table: nothing projects where it should.
        let behind = problems(|e| e.camera.world_from_camera = Isometry3::translation(0.0, 0.0, 2.0));
        assert!(behind.contains(&Problem::OffMask { share: 0.0 }), "{behind:?}");
        // A tracker may be off.
        let mut e = episode(0, 4);
        e.mask.fill(0);
        assert_eq!(check(&e).problems(FlowSource::Tracker), []);
    }
}
