//! What must hold for every algorithm in the registry, checked on a batch made up from what it needs. A new paper is in
//! here by being registered.
#![allow(clippy::unwrap_used)]

mod synthetic;

use efference_objectives::batch::{GROUP_IDS, PAIR_IDS, REWARDS};
use efference_objectives::block::{Block, Filter};
use efference_objectives::{Batch, Field, Objective, State, algorithms};
use synthetic::{B, Fields, Gradients, T, chain};

/// Where a check cannot hold: algorithm, check, reason. A block whose updates depend on the whole batch says so itself
/// (`Block::batch_wide`).
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("aepo_arbitrary", "permutation", "the FIRST right answers at the other temperature are taken"),
    ("bgpo", "padding", "the bound is divided by the padded length"),
    ("drpo", "padding", "the longest length is the padded one unless `max_len` is set"),
    ("drpo_reset", "padding", "every position of a stream is a step"),
    ("gigpo", "permutation", "the rows of a trajectory are its steps in order"),
    ("mdpo", "padding", "every position of a stream is a step"),
    ("mpo", "padding", "the outcome stands one position after the last token, if there is one"),
    ("riskpo", "permutation", "consecutive prompts are bundled, answers of one rank are scored together"),
    ("spo_segment", "an empty sequence", "its cutpoints must lie inside of it"),
    ("seed_grpo", "padding", "the constant length is the padded one unless it is set"),
];

/// Runs `check` on every algorithm that has no exception; all failures are reported at once.
fn every(name: &str, check: impl Fn(&Objective, &Fields) -> Result<(), String>) {
    let mut failures = Vec::new();
    for paper in algorithms() {
        if let Some((.., reason)) = EXCEPTIONS.iter().find(|(id, which, _)| *id == paper.id && *which == name)
        {
            println!("{name}: {} left out: {reason}", paper.id);
            continue;
        }
        let objective = (paper.recipe)().build().unwrap();
        let fields = inputs(&objective).and_then(|inputs| Fields::of(&objective, inputs, 7));
        if let Err(e) = fields.and_then(|fields| check(&objective, &fields)) {
            failures.push(format!("{}: {e}", paper.id));
        }
    }
    assert!(failures.is_empty(), "{name}:\n  {}", failures.join("\n  "));
}

/// What it needs, and an outcome.
fn inputs(objective: &Objective) -> Result<Vec<efference_objectives::Input>, String> {
    let mut inputs = objective.needs();
    if !inputs.contains(&REWARDS) {
        inputs.push(REWARDS);
    }
    Ok(inputs)
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    a == b || (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()))
}

fn same(what: &str, a: &Gradients, b: &Gradients, tolerance: f64) -> Result<(), String> {
    for (name, a) in a {
        let pairs = a.iter().zip(&b[name]).enumerate();
        if let Some((i, (x, y))) = pairs.clone().find(|(_, (x, y))| !close(**x, **y, tolerance)) {
            return Err(format!("{what}: gradient of `{name}` at {i} is {y:e} and not {x:e}"));
        }
    }
    Ok(())
}

/// Sequences that must stay together: pairs, where there are any.
fn unit(objective: &Objective) -> usize {
    if objective.needs().contains(&PAIR_IDS) { 2 } else { 1 }
}

#[test]
fn needs_are_complete_and_enough() {
    let mut failures = Vec::new();
    for paper in algorithms() {
        let objective = (paper.recipe)().build().unwrap();
        let needs = objective.needs();
        if let Err(e) = objective.check(&needs) {
            failures.push(format!("{}: {e}", paper.id));
        }
        if let Err(e) = Fields::of(&objective, needs, 7) {
            failures.push(format!("{}: {e}", paper.id));
        }
    }
    assert!(failures.is_empty(), "needs:\n  {}", failures.join("\n  "));
}

#[test]
fn loss_and_gradient_are_finite_and_something_learns() {
    every("finite", |objective, fields| {
        let run = fields.run(objective, &mut State::default()).map_err(|e| chain(&e))?;
        if !run.loss.is_finite() {
            return Err(format!("the loss is {}", run.loss));
        }
        let all = || run.gradients.values().flatten();
        if let Some(g) = all().find(|g| !g.is_finite()) {
            return Err(format!("a gradient is {g}"));
        }
        if all().all(|&g| g == 0.0) {
            return Err("every gradient is 0".into());
        }
        Ok(())
    });
}

/// Lets nothing through.
struct Nothing;

impl Block for Nothing {
    fn describe(&self) -> String {
        "nothing".into()
    }
}

impl Filter for Nothing {
    fn keep(&self, batch: &Batch, _state: &mut State) -> efference_objectives::Result<Vec<bool>> {
        Ok(vec![false; batch.rows()])
    }
}

#[test]
fn when_no_sequence_is_left_there_is_nothing_to_do_and_no_error() {
    for paper in algorithms() {
        let mut objective = (paper.recipe)().build().unwrap();
        let fields = inputs(&objective).and_then(|inputs| Fields::of(&objective, inputs, 7)).unwrap();
        objective.filters.push(Box::new(Nothing));
        let (batch, _) = fields.batch();
        let prepared = objective.prepare(batch, &mut State::default());
        let prepared = prepared.unwrap_or_else(|e| panic!("{}: {}", paper.id, chain(&e)));
        assert!(prepared.kept.is_empty() && prepared.batch.rows() == 0, "{}", paper.id);
    }
}

#[test]
fn padding_changes_nothing() {
    every("padding", |objective, fields| {
        let run = fields.run(objective, &mut State::default()).map_err(|e| chain(&e))?;
        // A constant length is the caller's; all else is counted from the mask.
        let padded = fields.padded(3);
        let keep_scale = |whole| efference_objectives::Normaliser { scale: T as f64, ..whole };
        let long = padded.run_with(objective, &mut State::default(), keep_scale).map_err(|e| chain(&e))?;
        if !close(run.loss, long.loss, 1e-12) {
            return Err(format!("the loss is {} and not {}", long.loss, run.loss));
        }
        let mut cut = Gradients::new();
        for (&name, g) in &long.gradients {
            let cells = g.len() / B;
            let here = run.gradients[name].len() / B;
            let (rows, extra): (Vec<&[f64]>, usize) = (g.chunks(cells).collect(), cells - here);
            if extra > 0 && rows.iter().any(|row| row[here..].iter().any(|&x| x != 0.0)) {
                return Err(format!("`{name}`: padding has a gradient"));
            }
            cut.insert(name, rows.iter().flat_map(|row| row[..here].to_vec()).collect());
        }
        same("padded", &run.gradients, &cut, 1e-12)
    });
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    every("micro-batches", |objective, fields| {
        if let Some(reason) = objective.batch_wide() {
            println!("micro-batches do not add up by design: {reason}");
            return Ok(());
        }
        let run = fields.run(objective, &mut State::default()).map_err(|e| chain(&e))?;
        // In the middle of a group.
        let cut = |rows: usize| (rows / 2 + 1) / unit(objective) * unit(objective);
        let (loss, gradients) =
            fields.run_in_parts(objective, &mut State::default(), cut).map_err(|e| chain(&e))?;
        let advice = "; if that is meant, say why in `Block::batch_wide`";
        if !close(run.loss, loss, 1e-10) {
            return Err(format!("the parts' losses are {loss} and not {}{advice}", run.loss));
        }
        same("parts", &run.gradients, &gradients, 1e-10).map_err(|e| e + advice)
    });
}

#[test]
fn a_permuted_batch_has_the_permuted_gradient() {
    every("permutation", |objective, fields| {
        let run = fields.run(objective, &mut State::default()).map_err(|e| chain(&e))?;
        let unit = unit(objective);
        let units = B / unit;
        let order: Vec<usize> =
            (0..units).flat_map(|i| (0..unit).map(move |j| (i * 5 + 3) % units * unit + j)).collect();
        let moved = fields.rows(&order).run(objective, &mut State::default()).map_err(|e| chain(&e))?;
        if !close(run.loss, moved.loss, 1e-9) {
            return Err(format!("the loss is {} and not {}", moved.loss, run.loss));
        }
        let permuted = |g: &Vec<f64>| -> Vec<f64> {
            let cells = g.len() / B;
            order.iter().flat_map(|&i| g[i * cells..(i + 1) * cells].to_vec()).collect()
        };
        let expected: Gradients = run.gradients.iter().map(|(&n, g)| (n, permuted(g))).collect();
        same("permuted", &expected, &moved.gradients, 1e-9)
    });
}

#[test]
fn state_goes_through_a_checkpoint_bit_for_bit() {
    every("state", |objective, fields| {
        let next = inputs(objective).and_then(|inputs| Fields::of(objective, inputs, 8))?;
        let mut state = State::default();
        fields.run(objective, &mut state).map_err(|e| chain(&e))?;
        let text = serde_json::to_string(&state).map_err(|e| e.to_string())?;
        let mut restored: State = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        if restored != state {
            return Err("the state that comes back is another".into());
        }
        for _ in 0..2 {
            let a = next.run(objective, &mut state).map_err(|e| chain(&e))?;
            let b = next.run(objective, &mut restored).map_err(|e| chain(&e))?;
            let bits = |g: &Gradients| g.values().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            if a.loss.to_bits() != b.loss.to_bits() || bits(&a.gradients) != bits(&b.gradients) {
                return Err(format!("the next loss is {} and not {}", b.loss, a.loss));
            }
            if state != restored {
                return Err("the next state is another".into());
            }
        }
        Ok(())
    });
}

fn finite(fields: &Fields, objective: &Objective) -> Result<(), String> {
    let run = fields.run(objective, &mut State::default()).map_err(|e| chain(&e))?;
    if run.loss.is_finite() && run.gradients.values().flatten().all(|g| g.is_finite()) {
        return Ok(());
    }
    Err(format!("the loss is {}, or a gradient is not finite", run.loss))
}

#[test]
fn an_empty_sequence_gives_finite_numbers() {
    every("an empty sequence", |objective, fields| {
        let mut fields = fields.clone();
        fields.mask.values[T..2 * T].fill(0.0);
        finite(&fields, objective)
    });
}

#[test]
fn equal_rewards_and_lone_members_give_finite_numbers() {
    every("equal rewards", |objective, fields| {
        let mut fields = fields.clone();
        for (input, field) in &mut fields.fields {
            if ["rewards", "success"].contains(&input.name) {
                *field = Field::Rows(vec![1.0; B]);
            }
        }
        finite(&fields, objective)
    });
    every("groups of one", |objective, fields| {
        let mut fields = fields.clone();
        for (input, field) in &mut fields.fields {
            if *input == GROUP_IDS {
                *field = Field::Ids((0..B as u64).collect());
            }
        }
        finite(&fields, objective)
    });
}
