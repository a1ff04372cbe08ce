//! SPO-tree: values from the leaves up, advantages of edges, and the replay of samples.

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Input};
use crate::block::{Advantage, Block, Filter, Kind};
use crate::error::{Error, Result};
use crate::state::State;
use crate::table::Table;

/// Value of the node that a sequence is.
pub const NODE_VALUES: Input =
    Input::new("node_values", "[B]", "value of the tree's node that a sequence is");
/// Value of its parent.
pub const PARENT_VALUES: Input = Input::new("parent_values", "[B]", "value of the node's parent");
/// Biased standard deviation of the values of the parent's children.
pub const SIBLING_SPREADS: Input =
    Input::new("sibling_spreads", "[B]", "biased standard deviation of the parent's children");

/// A tree of segments, nodes in pre-order, node 0 the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Parent of every node but the first.
    parents: Vec<usize>,
    /// Mean of the children's values, every child weighing the same; a leaf's reward.
    pub values: Vec<f64>,
    /// Biased standard deviation of the children's values, 0 for a leaf.
    pub spreads: Vec<f64>,
}

/// An edge from a parent to a child: one training sample, the child's own tokens behind the parent's text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// The node.
    pub child: usize,
    /// Of all its tokens.
    pub advantage: f64,
}

/// What an edge's gain is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeMethod {
    /// Nothing. (Despite the name the child is part of its parent's mean.)
    #[default]
    Rloo,
    /// The spread of the siblings.
    Grpo,
}

impl EdgeMethod {
    fn advantage(self, child: f64, parent: f64, spread: f64, epsilon: f64) -> f64 {
        match self {
            Self::Rloo => child - parent,
            // Equal siblings gain nothing, whatever the epsilon.
            Self::Grpo if child == parent => 0.0,
            Self::Grpo => (child - parent) / (spread + epsilon),
        }
    }
}

/// Chance that one of four answers is right.
fn best_of_four(value: f64) -> f64 {
    1.0 - (1.0 - value).powi(4)
}

/// Whether an edge is trained on: its advantage and the gain in best-of-four chances do not cancel to 0.
fn teaches(advantage: f64, child: f64, parent: f64) -> bool {
    advantage + (best_of_four(child) - best_of_four(parent)) != 0.0
}

impl Tree {
    /// Values of all nodes. `parents` holds -1 for node 0 and an earlier node for all others; `is_leaf` and the
    /// leaves' `rewards` are per node.
    ///
    /// # Errors
    /// Lengths differ; a parent that does not come before its child or is a leaf; an inner node without children.
    pub fn new(parents: &[i64], is_leaf: &[bool], rewards: &[f64]) -> Result<Self> {
        let n = parents.len();
        for (name, got) in [("is_leaf", is_leaf.len()), ("leaf_reward", rewards.len())] {
            if got != n {
                return Err(Error::Shape { name, got: vec![got], expected: format!("[{n}], one per node") });
            }
        }
        let invalid = |reason| Err(Error::Invalid { what: "tree", reason });
        if parents.first().is_some_and(|&root| root != -1) {
            return invalid("node 0 must have the parent -1".to_string());
        }
        let mut known = Vec::with_capacity(n.saturating_sub(1));
        let mut children = vec![Vec::new(); n];
        for (child, &parent) in parents.iter().enumerate().skip(1) {
            match usize::try_from(parent) {
                Ok(parent) if parent < child && !is_leaf[parent] => {
                    known.push(parent);
                    children[parent].push(child);
                }
                _ => {
                    return invalid(format!("node {child} has the parent {parent}, no inner node before it"));
                }
            }
        }
        let (mut values, mut spreads) = (rewards.to_vec(), vec![0.0; n]);
        for node in (0..n).rev().filter(|&node| !is_leaf[node]) {
            let of: Vec<f64> = children[node].iter().map(|&child| values[child]).collect();
            let Some(&first) = of.first() else {
                return invalid(format!("node {node} is no leaf and has no children"));
            };
            let count = of.len() as f64;
            // Equal values are their own mean, without rounding.
            let mean = if of.iter().all(|x| *x == first) { first } else { of.iter().sum::<f64>() / count };
            values[node] = mean;
            spreads[node] = (of.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count).sqrt();
        }
        Ok(Self { parents: known, values, spreads })
    }

    /// All edges in order of their child.
    pub fn edges(&self, method: EdgeMethod, epsilon: f64) -> Vec<Edge> {
        let edge = |(child, &parent): (usize, &usize)| {
            let (value, base) = (self.values[child], self.values[parent]);
            Edge { child, advantage: method.advantage(value, base, self.spreads[parent], epsilon) }
        };
        (1..).zip(&self.parents).map(edge).collect()
    }

    /// Whether the edge to `child` is trained on: it has an advantage.
    pub fn teaches(&self, edge: &Edge) -> bool {
        let parent = edge.child.checked_sub(1).and_then(|i| self.parents.get(i));
        parent.is_some_and(|&p| teaches(edge.advantage, self.values[edge.child], self.values[p]))
    }
}

/// The same advantage for all tokens of a node: value gained over its parent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TreeEdges {
    /// What divides.
    pub method: EdgeMethod,
    /// Added to the siblings' spread, 0 or more.
    pub epsilon: f64,
}

impl Default for TreeEdges {
    fn default() -> Self {
        Self { method: EdgeMethod::Rloo, epsilon: 1e-8 }
    }
}

impl TreeEdges {
    fn per_row(&self, batch: &Batch) -> Result<Vec<f64>> {
        let (values, parents) = (batch.numbers(NODE_VALUES)?, batch.numbers(PARENT_VALUES)?);
        let spreads = match self.method {
            EdgeMethod::Rloo => vec![0.0; values.len()],
            EdgeMethod::Grpo => batch.numbers(SIBLING_SPREADS)?,
        };
        let edge = |((v, p), s): ((&f64, &f64), &f64)| self.method.advantage(*v, *p, *s, self.epsilon);
        Ok(values.iter().zip(&parents).zip(&spreads).map(edge).collect())
    }
}

impl Block for TreeEdges {
    fn needs(&self) -> Vec<Input> {
        let mut needs = vec![NODE_VALUES, PARENT_VALUES];
        needs.extend((self.method == EdgeMethod::Grpo).then_some(SIBLING_SPREADS));
        needs
    }

    fn validate(&self) -> Result<()> {
        if self.epsilon >= 0.0 && self.epsilon.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "epsilon", got: self.epsilon, expected: "0 or more" })
    }

    fn describe(&self) -> String {
        let by = if self.method == EdgeMethod::Grpo { ", divided by the siblings' spread" } else { "" };
        format!("tree: value of the node - value of its parent{by}")
    }
}

impl Kind for TreeEdges {
    const KIND: &'static str = "tree_edges";
}

impl Advantage for TreeEdges {
    fn advantages(&self, batch: &Batch, _state: &mut State) -> Result<Table> {
        Table::broadcast(&self.per_row(batch)?, batch.mask())
    }
}

/// Drops nodes of their parent's value: they have no advantage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgesThatTeach {}

impl Block for EdgesThatTeach {
    fn needs(&self) -> Vec<Input> {
        vec![NODE_VALUES, PARENT_VALUES]
    }

    fn describe(&self) -> String {
        "tree nodes whose value differs from their parent's".into()
    }
}

impl Kind for EdgesThatTeach {
    const KIND: &'static str = "edges_that_teach";
}

impl Filter for EdgesThatTeach {
    fn keep(&self, batch: &Batch, _state: &mut State) -> Result<Vec<bool>> {
        let (values, parents) = (batch.numbers(NODE_VALUES)?, batch.numbers(PARENT_VALUES)?);
        Ok(values.iter().zip(&parents).map(|(v, p)| teaches(v - p, *v, *p)).collect())
    }
}

/// A sample of the replay buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Iteration in which it was made.
    pub iteration: u64,
    /// Its question.
    pub question: u64,
}

/// What an iteration does with the replay buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Places of the samples that are trained on now and leave the buffer.
    pub taken: Vec<usize>,
    /// Places of those that stay.
    pub kept: Vec<usize>,
}

/// Chooses from the buffer in iteration `now`: samples of age `max_age` (8) or more are dropped, then at most
/// `per_question` (32) of every question are taken, in the random `order` given (a permutation of all places). Old
/// log-probabilities stay those of a sample's creation, so later use is off-policy.
pub fn replay(samples: &[Sample], now: u64, max_age: u64, per_question: usize, order: &[usize]) -> Replay {
    let mut count = std::collections::BTreeMap::<u64, usize>::new();
    let mut out = Replay::default();
    let fresh = |s: &&Sample| now.saturating_sub(s.iteration) < max_age;
    for &place in order {
        let Some(sample) = samples.get(place).filter(fresh) else { continue };
        let taken = count.entry(sample.question).or_default();
        if *taken < per_question {
            *taken += 1;
            out.taken.push(place);
        } else {
            out.kept.push(place);
        }
    }
    out.taken.sort_unstable();
    out.kept.sort_unstable();
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Siblings' gains sum to 0, and a tree of equal rewards teaches nothing at all.
        #[test]
        fn gains_of_siblings_cancel(rewards in proptest::collection::vec(0.0f64..1.0, 6), equal in any::<bool>()) {
            let parents = [-1, 0, 1, 1, 1, 0, 5, 5, 0];
            let leaf = [false, false, true, true, true, false, true, true, true];
            let mut all = [0.0; 9];
            for (place, r) in [2, 3, 4, 6, 7, 8].into_iter().zip(&rewards) {
                all[place] = if equal { rewards[0] } else { *r };
            }
            let tree = Tree::new(&parents, &leaf, &all).unwrap();
            for method in [EdgeMethod::Rloo, EdgeMethod::Grpo] {
                let edges = tree.edges(method, 1e-8);
                for siblings in [[1, 5, 8], [2, 3, 4]] {
                    let sum: f64 = edges.iter().filter(|e| siblings.contains(&e.child)).map(|e| e.advantage).sum();
                    prop_assert!(sum.abs() < 1e-6);
                }
                prop_assert!(!equal || edges.iter().all(|e| e.advantage == 0.0 && !tree.teaches(e)));
            }
        }
    }

    #[test]
    fn odd_trees_are_refused() {
        let refused = |parents: &[i64], leaf: &[bool]| {
            Tree::new(parents, leaf, &vec![0.0; leaf.len()]).unwrap_err().to_string()
        };
        assert!(refused(&[-1, 0], &[false, false]).contains("no children"));
        assert!(refused(&[-1, 2, 0], &[false, true, false]).contains("node 1"));
        assert!(refused(&[-1, 0, 1], &[false, true, true]).contains("node 2"));
        assert!(refused(&[0], &[true]).contains("node 0"));
        assert!(refused(&[-1, 0], &[true]).contains("is_leaf"));
        assert!(Tree::new(&[], &[], &[]).unwrap().edges(EdgeMethod::Rloo, 0.0).is_empty());
    }

    #[test]
    fn replay_drops_the_old_and_takes_some_of_each_question() {
        let sample = |iteration, question| Sample { iteration, question };
        let samples = [sample(0, 1), sample(1, 1), sample(5, 1), sample(8, 1), sample(8, 2)];
        let out = replay(&samples, 8, 8, 2, &[3, 0, 4, 1, 2]);
        assert_eq!((out.taken.as_slice(), out.kept.as_slice()), (&[1, 3, 4][..], &[2][..]));
    }

    #[test]
    fn the_tree_recipe_fits_together() {
        let objective = super::super::tree_recipe().build().unwrap();
        assert!(objective.needs().contains(&PARENT_VALUES) && !objective.needs().contains(&SIBLING_SPREADS));
    }
}
