//! Nested lists to a task.

use super::error::{Place, Wrong};
use super::number::{angle, decimal};
use super::task::{Fact, Region, Task, Typed};
use super::tree::{Node, quoted};

type Result<T> = std::result::Result<T, Wrong>;

const SECTIONS: &str = "one of `(problem ..)`, `(:domain ..)`, `(:language ..)`, `(:regions ..)`, `(:fixtures ..)`, \
                        `(:objects ..)`, `(:obj_of_interest ..)`, `(:init ..)`, `(:goal ..)`";

/// A list that is read from left to right.
struct List<'a> {
    items: std::slice::Iter<'a, Node>,
    place: Place,
    end: Place,
}

impl<'a> List<'a> {
    /// The next item, which has to be there.
    fn next(&mut self, expected: &str) -> Result<&'a Node> {
        self.items.next().ok_or_else(|| Wrong::new(self.end, expected, "`)`"))
    }

    fn next_word(&mut self, expected: &str) -> Result<&'a str> {
        word(self.next(expected)?, expected)
    }

    fn next_list(&mut self, expected: &str) -> Result<List<'a>> {
        list(self.next(expected)?, expected)
    }

    /// Nothing more may follow.
    fn done(mut self, after: &str) -> Result<()> {
        match self.items.next() {
            None => Ok(()),
            Some(node) => Err(Wrong::new(node.place(), format!("`)` after {after}"), node.describe())),
        }
    }

    fn words(self, expected: &str) -> Result<Vec<String>> {
        self.items.map(|node| Ok(word(node, expected)?.to_owned())).collect()
    }

    /// As many numbers as the caller wants, and nothing else.
    fn numbers<const N: usize>(self, what: &str, read: fn(&str) -> Option<f64>) -> Result<[f64; N]> {
        let mut numbers = [0.0; N];
        let (start, count) = (self.place, self.items.len());
        if count != N {
            return Err(Wrong::new(start, what, format!("a list of {count}")));
        }
        for (number, node) in numbers.iter_mut().zip(self.items) {
            let text = word(node, what)?;
            *number = read(text).ok_or_else(|| Wrong::new(node.place(), what, quoted(text)))?;
        }
        Ok(numbers)
    }
}

fn word<'a>(node: &'a Node, expected: &str) -> Result<&'a str> {
    match node {
        Node::Word { text, .. } => Ok(text),
        Node::List { place, .. } => Err(Wrong::new(*place, expected, node.describe())),
    }
}

fn list<'a>(node: &'a Node, expected: &str) -> Result<List<'a>> {
    match node {
        Node::List { items, place, end } => Ok(List { items: items.iter(), place: *place, end: *end }),
        Node::Word { place, .. } => Err(Wrong::new(*place, expected, node.describe())),
    }
}

pub(super) fn task(node: &Node) -> Result<Task> {
    let mut file = list(node, "`(define`")?;
    let first = file.next("`define`")?;
    if word(first, "`define`")? != "define" {
        return Err(Wrong::new(first.place(), "`define`", first.describe()));
    }
    let mut task = Task::default();
    let mut seen: Vec<&str> = Vec::new();
    for node in file.items {
        let mut section = list(node, SECTIONS)?;
        let head = section.next(SECTIONS)?;
        let name = word(head, SECTIONS)?;
        if seen.contains(&name) {
            return Err(Wrong::new(head.place(), "each section once", format!("another {}", quoted(name))));
        }
        seen.push(name);
        match name {
            "problem" => {
                section.next_word("the problem's name")?.clone_into(&mut task.problem);
                section.done("the problem's name")?;
            }
            ":domain" => domain(section)?,
            ":language" => task.language = section.words("a word of the instruction")?.join(" "),
            ":regions" => regions(section, &mut task)?,
            ":fixtures" => task.fixtures = typed(section, "fixture")?,
            ":objects" => task.objects = typed(section, "object")?,
            ":obj_of_interest" => task.obj_of_interest = section.words("the name of an object")?,
            ":init" => task.init = section.items.map(fact).collect::<Result<_>>()?,
            ":goal" => task.goal = goal(section)?,
            // Read and ignored by the original.
            ":requirements" => {}
            _ => return Err(Wrong::new(head.place(), SECTIONS, quoted(name))),
        }
    }
    for needed in ["problem", ":domain", ":goal"] {
        if !seen.contains(&needed) {
            return Err(Wrong::new(file.end, format!("a section `({needed} ..)`"), "the end of the task"));
        }
    }
    Ok(task)
}

fn domain(mut section: List) -> Result<()> {
    let node = section.next("`robosuite`")?;
    if word(node, "`robosuite`")? != "robosuite" {
        return Err(Wrong::new(node.place(), "`robosuite`", node.describe()));
    }
    section.done("the domain's name")
}

/// `name name - category name - category`; names without a category are of the category `general`.
fn typed(section: List, general: &str) -> Result<Vec<Typed>> {
    let what = "a name, or `-` and a category";
    let mut found: Vec<Typed> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    let mut all: Vec<String> = Vec::new();
    let mut section = section;
    while let Some(node) = section.items.next() {
        let text = word(node, what)?;
        if text == "-" {
            if names.is_empty() {
                return Err(Wrong::new(node.place(), "a name before `-`", "`-`"));
            }
            let node = section.next("a category after `-`")?;
            let category = word(node, "a category after `-`")?;
            if found.iter().any(|typed| typed.category == category) {
                // The original would forget the first list.
                let found = format!("another list of {}", quoted(category));
                return Err(Wrong::new(node.place(), "each category once", found));
            }
            found.push(Typed { category: category.to_owned(), names: std::mem::take(&mut names) });
        } else {
            if all.iter().any(|name| name == text) {
                return Err(Wrong::new(node.place(), "each name once", format!("another {}", quoted(text))));
            }
            all.push(text.to_owned());
            names.push(text.to_owned());
        }
    }
    if !names.is_empty() {
        match found.iter_mut().find(|typed| typed.category == general) {
            Some(typed) => typed.names.extend(names),
            None => found.push(Typed { category: general.to_owned(), names }),
        }
    }
    Ok(found)
}

fn regions(section: List, task: &mut Task) -> Result<()> {
    for node in section.items {
        let region = region(node)?;
        if task.region(&region.key()).is_some() {
            let found = format!("another {}", quoted(&region.key()));
            return Err(Wrong::new(node.place(), "each region of a target once", found));
        }
        task.regions.push(region);
    }
    Ok(())
}

fn region(node: &Node) -> Result<Region> {
    let what = "one of `(:target ..)`, `(:ranges ..)`, `(:yaw_rotation ..)`, `(:rgba ..)`";
    let mut parts = list(node, "a region `(NAME (:target ..) ..)`")?;
    let name = parts.next_word("the region's name")?.to_owned();
    let (mut target, mut ranges) = (None, Vec::new());
    let (mut yaw, mut rgba) = (Region::YAW, Region::RGBA);
    for node in parts.items {
        let mut part = list(node, what)?;
        let head = part.next(what)?;
        match word(head, what)? {
            ":target" => {
                target = Some(part.next_word("the name of what the region belongs to")?.to_owned());
                part.done("the target")?;
            }
            ":ranges" => {
                let rectangle = "four numbers `(x0 y0 x1 y1)`";
                for node in part.next_list("a list of `(x0 y0 x1 y1)`")?.items {
                    let range: [f64; 4] = list(node, rectangle)?.numbers(rectangle, decimal)?;
                    ranges.push(range);
                }
                part.done("the ranges")?;
            }
            ":yaw_rotation" => {
                let pair = "two angles `(from to)`, numbers that may use `pi`";
                // The last one counts, as in the original.
                for node in part.next_list("a list of `(from to)`")?.items {
                    yaw = list(node, pair)?.numbers(pair, angle)?;
                }
                part.done("the angles")?;
            }
            ":rgba" => {
                rgba = part.next_list("`(red green blue alpha)`")?.numbers("four numbers", decimal)?;
                part.done("the colour")?;
            }
            other => return Err(Wrong::new(head.place(), what, quoted(other))),
        }
    }
    let Some(target) = target else {
        return Err(Wrong::new(
            parts.end,
            format!("a `(:target ..)` in the region {}", quoted(&name)),
            "`)`",
        ));
    };
    Ok(Region { name, target, ranges, yaw, rgba })
}

fn goal(mut section: List) -> Result<Vec<Fact>> {
    let what = "`(and (predicate ..) ..)` or a predicate";
    let node = section.next(what)?;
    let mut parts = list(node, what)?;
    let facts = match parts.items.as_slice().first() {
        Some(Node::Word { text, .. }) if text == "and" => {
            let _ = parts.items.next();
            parts.items.map(fact).collect::<Result<Vec<_>>>()?
        }
        _ => vec![fact(node)?],
    };
    section.done("the goal")?;
    if facts.is_empty() {
        return Err(Wrong::new(parts.end, "at least one predicate", "`)`"));
    }
    Ok(facts)
}

fn fact(node: &Node) -> Result<Fact> {
    let what = "`(on A B)`, `(in A B)`, `(open A)`, `(close A)`, `(turnon A)`, `(turnoff A)` or `(up A)`";
    let mut parts = list(node, what)?;
    let head = parts.next(what)?;
    let predicate = word(head, what)?;
    let known = Fact::PREDICATES.iter().find(|(name, _)| *name == predicate);
    let Some((_, count)) = known else {
        return Err(Wrong::new(head.place(), what, quoted(predicate)));
    };
    let end = parts.end;
    let args = parts.words("a name")?;
    if args.len() != *count {
        let expected = format!("{count} name{} after `{predicate}`", if *count == 1 { "" } else { "s" });
        return Err(Wrong::new(end, expected, format!("`)` after {}", args.len())));
    }
    Ok(Fact { predicate: predicate.to_owned(), args })
}
