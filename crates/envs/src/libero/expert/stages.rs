//! From the goal of a task to stages in a sensible order.

use super::super::{LiberoSim, Result};

/// One stage: what must be true at its end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stage {
    /// A drawer or door (a site or a fixture) is open.
    Open(String),
    /// It is closed.
    Close(String),
    /// A fixture's knob is on, or off.
    Turn { fixture: String, on: bool },
    /// The object hangs in the gripper.
    Pick(String),
    /// The object is where the fact says.
    Place { object: String, fact: Vec<String> },
    /// The object stands where it is in nobody's way.
    PutAside(String),
}

/// The ways to order a goal's facts into stages, the likeliest first: open and turn on, then move things, then close and
/// turn off. Things that are to go into something closed have it opened first.
pub(super) fn plans(sim: &LiberoSim) -> Result<Vec<Vec<Stage>>> {
    let goal = &sim.pack().meta.goal;
    let (mut first, mut moves, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let mut opened_for: Vec<String> = Vec::new();
    for fact in goal {
        // What holds already (a drawer that is open, a burner that is on) needs no stage, unless it is to be closed.
        match fact[0].as_str() {
            "open" => first.push(Stage::Open(fact[1].clone())),
            "turnon" => first.push(Stage::Turn { fixture: fact[1].clone(), on: true }),
            "close" => last.push(Stage::Close(fact[1].clone())),
            "turnoff" => last.push(Stage::Turn { fixture: fact[1].clone(), on: false }),
            _ if fact.len() == 3 => {
                if sim.predicate(fact)? {
                    continue;
                }
                if fact[0] == "in"
                    && let Some(opening) = closed(sim, &fact[2])?
                {
                    first.push(Stage::Open(opening));
                    opened_for.push(fact[1].clone());
                }
                moves.push(Stage::Pick(fact[1].clone()));
                moves.push(Stage::Place { object: fact[1].clone(), fact: fact.clone() });
            }
            _ => {}
        }
    }
    first.retain(|stage| !matches!(stage, Stage::Open(place) if holds(sim, "open", place)));
    let plain = [first.clone(), moves.clone(), last.clone()].concat();
    let mut plans = vec![plain];
    if !opened_for.is_empty() {
        // An open drawer may stand over what is to go into it: fetch that first, set it aside, then open.
        let aside = opened_for.into_iter().flat_map(|object| [Stage::Pick(object.clone()), Stage::PutAside(object)]);
        plans.insert(0, [aside.collect(), first, moves, last].concat());
    }
    Ok(plans)
}

fn holds(sim: &LiberoSim, predicate: &str, place: &str) -> bool {
    sim.predicate(&[predicate.to_owned(), place.to_owned()]).unwrap_or(false)
}

/// What must be opened before something fits into a place, if it is closed.
fn closed(sim: &LiberoSim, site: &str) -> Result<Option<String>> {
    let meta = &sim.pack().meta;
    let Some(place) = meta.sites.get(site) else { return Ok(None) };
    let Some(parent) = &place.parent else { return Ok(None) };
    if !meta.objects.get(parent).is_some_and(|object| object.predicates.contains_key("open")) {
        return Ok(None);
    }
    // A drawer's own joints, else the door of the fixture.
    let opening = if place.joints.is_empty() { parent } else { site };
    Ok((!holds(sim, "open", opening)).then(|| opening.to_owned()))
}
