//! A task as text.

use std::fmt::{Display, Formatter, Result};

use super::task::{Fact, Region, Task, Typed};

impl Display for Task {
    /// The text that [`super::parse`] reads back as the same task.
    fn fmt(&self, f: &mut Formatter) -> Result {
        writeln!(f, "(define (problem {})", self.problem)?;
        writeln!(f, "  (:domain robosuite)")?;
        section(f, ":language", &[&self.language])?;
        section(f, ":regions", &self.regions)?;
        section(f, ":fixtures", &self.fixtures)?;
        section(f, ":objects", &self.objects)?;
        section(f, ":obj_of_interest", &self.obj_of_interest)?;
        section(f, ":init", &self.init)?;
        write!(f, "  (:goal\n    (and")?;
        for fact in &self.goal {
            write!(f, " {fact}")?;
        }
        writeln!(f, ")\n  )\n)")
    }
}

fn section(f: &mut Formatter, name: &str, items: &[impl Display]) -> Result {
    writeln!(f, "  ({name}")?;
    for item in items {
        writeln!(f, "    {item}")?;
    }
    writeln!(f, "  )")
}

impl Display for Typed {
    fn fmt(&self, f: &mut Formatter) -> Result {
        for name in &self.names {
            write!(f, "{name} ")?;
        }
        write!(f, "- {}", self.category)
    }
}

impl Display for Fact {
    fn fmt(&self, f: &mut Formatter) -> Result {
        write!(f, "({})", self.words().join(" "))
    }
}

impl Display for Region {
    fn fmt(&self, f: &mut Formatter) -> Result {
        write!(f, "({} (:target {})", self.name, self.target)?;
        if !self.ranges.is_empty() {
            write!(f, " (:ranges (")?;
            for range in &self.ranges {
                numbers(f, range)?;
            }
            write!(f, "))")?;
        }
        // What is as usual is left out.
        if self.yaw != Self::YAW {
            write!(f, " (:yaw_rotation (")?;
            numbers(f, &self.yaw)?;
            write!(f, "))")?;
        }
        if self.rgba != Self::RGBA {
            write!(f, " (:rgba ")?;
            numbers(f, &self.rgba)?;
            write!(f, ")")?;
        }
        write!(f, ")")
    }
}

/// The shortest decimals that read back as the same numbers.
fn numbers(f: &mut Formatter, list: &[f64]) -> Result {
    let words: Vec<String> = list.iter().map(ToString::to_string).collect();
    write!(f, "({})", words.join(" "))
}
