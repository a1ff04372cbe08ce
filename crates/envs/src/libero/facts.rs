//! Facts with their names resolved, and their truth in a state.

use efference_mujoco::Data;

use super::compiled::Compiled;
use super::meta::Threshold;
use super::predicates::{in_box, on_object, on_site, up};
use super::{Error, Result};

/// One fact of a goal. Numbers are places in [`Compiled::things`] and [`Compiled::places`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    Constant(bool),
    OnThing {
        top: usize,
        bottom: usize,
    },
    OnPlace {
        top: usize,
        place: usize,
    },
    In {
        thing: usize,
        place: usize,
    },
    Up {
        thing: usize,
    },
    /// Joints (places in `qpos`) beyond a threshold.
    Joints {
        adrs: Vec<usize>,
        threshold: Threshold,
    },
}

enum Name {
    Thing(usize),
    Place(usize),
}

impl Fact {
    /// Resolves `[predicate, object]` or `[predicate, object, place]`; the predicate in any case.
    pub fn resolve(scene: &Compiled, words: &[String]) -> Result<Self> {
        let fail = |problem: String| Error::Predicate { fact: words.join(" "), problem };
        let (predicate, names) = words.split_first().ok_or_else(|| fail("it is empty".into()))?;
        let find = |name: &String| {
            let thing = scene.things.iter().position(|thing| thing.name == *name).map(Name::Thing);
            let place = || scene.places.iter().position(|place| place.name == *name).map(Name::Place);
            thing.or_else(place).ok_or_else(|| {
                let things = scene.things.iter().map(|thing| thing.name.as_str());
                let places = scene.places.iter().map(|place| place.name.as_str());
                let known: Vec<_> = things.chain(places).collect();
                fail(format!("the task has no object or place `{name}`; there are: {}", known.join(", ")))
            })
        };
        let names = names.iter().map(find).collect::<Result<Vec<_>>>()?;
        match (predicate.to_ascii_lowercase().as_str(), &names[..]) {
            ("true", []) => Ok(Self::Constant(true)),
            ("false", []) => Ok(Self::Constant(false)),
            ("on", &[Name::Thing(top), Name::Thing(bottom)]) => Ok(Self::OnThing { top, bottom }),
            ("on", &[Name::Thing(top), Name::Place(place)]) => Ok(Self::OnPlace { top, place }),
            ("in", &[Name::Thing(thing), Name::Place(place)]) => Ok(Self::In { thing, place }),
            ("up", &[Name::Thing(thing)]) => Ok(Self::Up { thing }),
            (state @ ("open" | "close" | "turnon" | "turnoff"), [name]) => {
                let (adrs, owner) = match name {
                    Name::Thing(thing) => (&scene.things[*thing].joints, Some(*thing)),
                    Name::Place(place) => (&scene.places[*place].joints, scene.places[*place].parent),
                };
                let threshold = owner.and_then(|thing| scene.things[thing].threshold(state));
                let threshold =
                    threshold.ok_or_else(|| fail(format!("it has no threshold for `{state}`")))?;
                Ok(Self::Joints { adrs: adrs.clone(), threshold })
            }
            (
                known @ ("true" | "false" | "on" | "in" | "up" | "open" | "close" | "turnon" | "turnoff"),
                _,
            ) => Err(fail(format!("`{known}` is not defined for these arguments"))),
            (other, _) => Err(fail(format!(
                "there is no predicate `{other}`; there are: on, in, open, close, turnon, turnoff, up, true, false"
            ))),
        }
    }

    /// Whether it holds: joint positions are the present ones, poses and contacts those that were computed last.
    pub fn holds(&self, scene: &Compiled, data: &Data) -> bool {
        let pos = |thing: usize| data.body_pos(scene.things[thing].body);
        match self {
            Self::Constant(value) => *value,
            Self::OnThing { top, bottom } => {
                // The contacts are looked through only where it matters.
                on_object(pos(*top), pos(*bottom), true) && scene.touch(data, *top, *bottom)
            }
            Self::OnPlace { top, place } => {
                let place = &scene.places[*place];
                on_site(data.site_pos(place.site), &data.site_mat(place.site), place.half_size, pos(*top))
                    && place.parent.is_none_or(|parent| scene.touch(data, parent, *top))
            }
            Self::In { thing, place } => {
                let place = &scene.places[*place];
                in_box(data.site_pos(place.site), &data.site_mat(place.site), place.half_size, pos(*thing))
            }
            Self::Up { thing } => up(pos(*thing)),
            Self::Joints { adrs, threshold } => {
                let qpos = data.qpos();
                threshold.holds(adrs.iter().map(|adr| qpos[*adr]))
            }
        }
    }

    /// How far it is from holding, roughly: metres between centres (radians for hinges); 0 when it holds.
    pub fn distance(&self, scene: &Compiled, data: &Data) -> f64 {
        if self.holds(scene, data) {
            return 0.0;
        }
        let pos = |thing: usize| data.body_pos(scene.things[thing].body);
        let apart = |a: [f64; 3], b: [f64; 3]| (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt();
        match self {
            Self::Constant(_) => 0.0,
            Self::OnThing { top, bottom } => apart(pos(*top), pos(*bottom)),
            Self::OnPlace { top: thing, place } | Self::In { thing, place } => {
                apart(pos(*thing), data.site_pos(scene.places[*place].site))
            }
            Self::Up { thing } => 1.0 - pos(*thing)[2],
            Self::Joints { adrs, threshold } => {
                let qpos = data.qpos();
                let gaps = adrs.iter().map(|adr| (qpos[*adr] - threshold.thr).abs());
                gaps.fold(f64::INFINITY, f64::min).min(10.0)
            }
        }
    }
}
