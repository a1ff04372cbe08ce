//! The benchmark's suites: tasks in order, step limits, and the language that policies are given.

mod names;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::bddl;

/// A suite of tasks: one of the five of LIBERO, or one of those that LIBERO-PRO made of the four with ten tasks.
///
/// As text it is the benchmark's own name, for example `libero_spatial` or `libero_10_swap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Suite {
    /// The suite of LIBERO.
    pub base: Base,
    /// What LIBERO-PRO changed in it.
    pub change: Option<Change>,
}

/// A suite of LIBERO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Base {
    /// `libero_spatial`: ten tasks with one goal; what varies is where the bowl is.
    Spatial,
    /// `libero_object`: ten tasks; what varies is the object.
    Object,
    /// `libero_goal`: ten goals in one scene.
    Goal,
    /// `libero_10`, also called Long: ten tasks of two or three steps.
    Long,
    /// `libero_90`: ninety short tasks in twenty scenes.
    Ninety,
}

/// What a suite of LIBERO-PRO changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// `_object`: things look different.
    Object,
    /// `_swap`: things stand at other places.
    Swap,
    /// `_lan`: the instruction is paraphrased.
    Language,
    /// `_task`: another task in the same scene.
    Task,
}

impl Base {
    /// All of them, in the order of the tables of papers.
    pub const ALL: [Self; 5] = [Self::Spatial, Self::Object, Self::Goal, Self::Long, Self::Ninety];

    /// The benchmark's name, for example `libero_10`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spatial => "libero_spatial",
            Self::Object => "libero_object",
            Self::Goal => "libero_goal",
            Self::Long => "libero_10",
            Self::Ninety => "libero_90",
        }
    }

    /// Names of its tasks, in the order of their numbers; each is the name of a task file without `.bddl`.
    pub const fn tasks(self) -> &'static [&'static str] {
        match self {
            Self::Spatial => &names::SPATIAL,
            Self::Object => &names::OBJECT,
            Self::Goal => &names::GOAL,
            Self::Long => &names::LONG,
            Self::Ninety => &names::NINETY,
        }
    }

    /// Control steps that an episode may take, without the idle steps at its start: the limits of OpenVLA's and openpi's
    /// evaluations, which published numbers use.
    pub const fn max_steps(self) -> usize {
        match self {
            Self::Spatial => 220,
            Self::Object => 280,
            Self::Goal => 300,
            Self::Long => 520,
            Self::Ninety => 400,
        }
    }
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Object, Self::Swap, Self::Language, Self::Task];

    /// The ending of the suite's name, without the underscore.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Swap => "swap",
            Self::Language => "lan",
            Self::Task => "task",
        }
    }
}

impl Suite {
    /// The five suites of LIBERO.
    pub fn standard() -> impl Iterator<Item = Self> {
        Base::ALL.into_iter().map(|base| Self { base, change: None })
    }

    /// The sixteen suites of LIBERO-PRO.
    pub fn pro() -> impl Iterator<Item = Self> {
        let bases = Base::ALL.into_iter().filter(|base| *base != Base::Ninety);
        bases.flat_map(|base| Change::ALL.into_iter().map(move |c| Self { base, change: Some(c) }))
    }

    /// Number of its tasks.
    pub const fn len(self) -> usize {
        self.base.tasks().len()
    }

    /// No suite is empty.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Control steps that an episode may take, see [`Base::max_steps`].
    pub const fn max_steps(self) -> usize {
        self.base.max_steps()
    }

    /// Name of task `index`; `None` if there is none, and for LIBERO-PRO, whose task packs say it.
    pub fn task(self, index: usize) -> Option<&'static str> {
        if self.change.is_some() {
            return None;
        }
        self.base.tasks().get(index).copied()
    }
}

/// There is no suite of this name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no suite `{name}`{hint}; there are libero_spatial, libero_object, libero_goal, libero_10, libero_90, and of \
         all but the last the variants _object, _swap, _lan and _task"
)]
pub struct UnknownSuite {
    /// The name asked for.
    pub name: String,
    /// A name that is close to it, as `, did you mean ..?`, or empty.
    pub hint: String,
}

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(name: &str) -> Result<Self, UnknownSuite> {
        let known = || Self::standard().chain(Self::pro());
        if let Some(suite) = known().find(|suite| suite.to_string() == name) {
            return Ok(suite);
        }
        let close = |suite: &Self| strsim::jaro_winkler(&suite.to_string(), name);
        let nearest =
            known().max_by(|a, b| close(a).total_cmp(&close(b))).filter(|suite| close(suite) > 0.85);
        let hint = nearest.map_or_else(String::new, |suite| format!(", did you mean {suite}?"));
        Err(UnknownSuite { name: name.to_owned(), hint })
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.base.name())?;
        match self.change {
            Some(change) => write!(f, "_{}", change.suffix()),
            None => Ok(()),
        }
    }
}

impl TryFrom<String> for Suite {
    type Error = UnknownSuite;

    fn try_from(name: String) -> Result<Self, UnknownSuite> {
        name.parse()
    }
}

impl From<Suite> for String {
    fn from(suite: Suite) -> Self {
        suite.to_string()
    }
}

/// The instruction that policies are given: the words of the task file's name, without the scene that names of the long
/// and the ninety tasks begin with. `name` may end in `.bddl`.
///
/// The `:language` of the file itself often differs ("akita black bowl" for "black bowl"). Kept as the original has it: a
/// scene's number is one digit, or 10.
pub fn language(name: &str) -> String {
    let name = name.find(".bddl").map_or(name, |end| &name[..end]);
    let words = if name.chars().next().is_some_and(char::is_uppercase) {
        // `SCENE3_`, or `SCENE10_`. A capital without a scene: the original then counts from before the beginning.
        let skip = if name.contains("SCENE10") { 8 } else { 7 };
        match name.find("SCENE") {
            Some(scene) => name[scene..].char_indices().nth(skip).map_or("", |(at, _)| &name[scene + at..]),
            None => name.char_indices().nth(skip - 1).map_or("", |(at, _)| &name[at..]),
        }
    } else {
        name
    };
    words.replace('_', " ")
}

/// The instruction inside a task file, which LIBERO-Plus gives to policies in its language variants.
pub fn file_language(task: &bddl::Task) -> &str {
    &task.language
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_suites_read_back() {
        let all: Vec<Suite> = Suite::standard().chain(Suite::pro()).collect();
        assert_eq!(all.len(), 21);
        for suite in all {
            assert_eq!(suite.to_string().parse(), Ok(suite));
            let json = serde_json::to_string(&suite).unwrap();
            assert_eq!(
                (json.clone(), serde_json::from_str(&json).ok()),
                (format!("\"{suite}\""), Some(suite))
            );
        }
        let error = "libero_spacial".parse::<Suite>().unwrap_err();
        assert!(error.to_string().contains("did you mean libero_spatial?"), "{error}");
        assert_eq!("x".parse::<Suite>().unwrap_err().hint, "");
        assert!("libero_90_swap".parse::<Suite>().is_err());
    }

    #[test]
    fn there_are_130_tasks_with_names_of_their_own() {
        let tasks: Vec<&str> = Base::ALL.iter().flat_map(|base| base.tasks()).copied().collect();
        assert_eq!(tasks.len(), 130);
        assert_eq!(tasks.iter().collect::<std::collections::BTreeSet<_>>().len(), 130);
        let suite: Suite = "libero_goal".parse().unwrap();
        assert_eq!((suite.task(7), suite.task(10)), (Some("turn_on_the_stove"), None));
        assert_eq!((suite.len(), suite.max_steps()), (10, 300));
    }

    #[test]
    fn instructions_come_from_names() {
        for (name, words) in [
            ("turn_on_the_stove", "turn on the stove"),
            ("KITCHEN_SCENE3_turn_on_the_stove.bddl", "turn on the stove"),
            ("KITCHEN_SCENE10_put_the_bowl_in_the_drawer", "put the bowl in the drawer"),
            ("SCENE1", ""),
            ("", ""),
        ] {
            assert_eq!(language(name), words, "{name}");
        }
        // No task's words begin or end with a blank, or hold a scene.
        for task in Base::ALL.iter().flat_map(|base| base.tasks()) {
            let words = language(task);
            assert!(!words.is_empty() && words.trim() == words && !words.contains("SCENE"), "{words}");
        }
    }
}
