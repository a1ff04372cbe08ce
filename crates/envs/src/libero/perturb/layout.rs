//! Objects at other places.

use std::collections::BTreeMap;

use rand::Rng;

use crate::libero::{Meta, ObjectKind};

/// Offsets of the objects that stand on the table. Those that stand on other objects move with them; what lies in or on a
/// fixture stays, and so do fixtures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 2 cm of largest offset each.
    pub level: u64,
    /// Which of the level's layouts.
    pub sample: u64,
    /// Whether the things that the task is about move too, or only the others.
    pub moved: bool,
}

/// Largest offset per level, metres.
const PER_LEVEL: f64 = 0.02;
/// Objects that were farther apart than this may come as near as this, metres.
const NEAREST: f64 = 0.11;
/// Draws per object before it stays where it is.
const TRIES: usize = 50;

impl Layout {
    pub(super) fn apply(&self, qpos: &mut [f64], meta: &Meta) {
        let mut draws = super::draws(4, [self.level, self.sample, u64::from(self.moved)]);
        let radius = PER_LEVEL * self.level.min(10) as f64;
        let movable = |name: &str| meta.objects.get(name).filter(|o| o.kind == ObjectKind::Object);
        let address = |name: &str| movable(name).and_then(|o| o.joints.first()).map(|j| j.qpos_adr);
        // What an object stands on, from the task's own facts.
        let support: BTreeMap<&str, &str> = meta
            .init_predicates
            .iter()
            .filter(|fact| fact.len() == 3)
            .map(|fact| (fact[1].as_str(), fact[2].as_str()))
            .collect();
        let on_table = |name: &str| {
            support.get(name).is_some_and(|s| meta.sites.get(*s).is_some_and(|z| z.parent.is_none()))
        };
        let about = |name: &str| meta.obj_of_interest.iter().any(|o| o == name);

        let names: Vec<&str> =
            meta.objects.keys().map(String::as_str).filter(|n| address(n).is_some()).collect();
        let place = |qpos: &[f64], name: &str| address(name).map(|a| [qpos[a], qpos[a + 1]]);
        for name in &names {
            // Drawn for all, so that one object's place does not depend on what the task is about.
            let offsets: Vec<[f64; 2]> =
                (0..TRIES).map(|_| std::array::from_fn(|_| draws.random_range(-1.0..1.0) * radius)).collect();
            let carried: Vec<&str> = names.iter().copied().filter(|n| support.get(n) == Some(name)).collect();
            let stays = !self.moved && (about(name) || carried.iter().any(|n| about(n)));
            if !on_table(name) || stays {
                continue;
            }
            let Some(from) = place(qpos, name) else { continue };
            let free = |offset: &&[f64; 2]| {
                names.iter().filter(|other| *other != name && !carried.contains(other)).all(|other| {
                    let Some(there) = place(qpos, other) else { return true };
                    let before = (from[0] - there[0]).hypot(from[1] - there[1]);
                    let after = (from[0] + offset[0] - there[0]).hypot(from[1] + offset[1] - there[1]);
                    after >= before.min(NEAREST)
                })
            };
            let Some([dx, dy]) = offsets.iter().find(free).copied() else { continue };
            for moved in carried.iter().chain([name]) {
                if let Some(a) = address(moved) {
                    qpos[a] += dx;
                    qpos[a + 1] += dy;
                }
            }
        }
    }
}
