//! Tree ensembles: every row walks all trees at once, one level per iteration of a loop whose length is the depth of
//! the deepest tree. A leaf leads to itself.

use std::collections::HashMap;

use cupola_ir::ops::{ArgReduce, Bounds, Gather, Loop, ReduceKind};
use cupola_ir::tensor::Tensor;
use cupola_ir::{CoreOp, DType, Dim, Graph, Scalar, TensorType, ValueId};

use super::{Labels, Post, constant, ml, rows};
use crate::context::NodeCx;
use crate::import_error::{OpError, OpResult, invalid};
use crate::ops::OpRow;
use crate::ops::indexed::take;
use crate::ops::math::Math;

pub(in crate::ops) const OPS: &[OpRow] = &[
    ml("TreeEnsembleClassifier", 1, classifier),
    ml("TreeEnsembleRegressor", 1, regressor),
    ml("TreeEnsemble", 5, ensemble),
];

/// Most numbers in the table of what leaves add to targets.
const MAX_VOTES: usize = 1 << 28;

/// How a feature is compared with a node's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    AtMost,
    Below,
    AtLeast,
    Above,
    Equal,
    NotEqual,
}

impl Test {
    const ALL: [(&'static str, Test); 6] = [
        ("BRANCH_LEQ", Test::AtMost),
        ("BRANCH_LT", Test::Below),
        ("BRANCH_GTE", Test::AtLeast),
        ("BRANCH_GT", Test::Above),
        ("BRANCH_EQ", Test::Equal),
        ("BRANCH_NEQ", Test::NotEqual),
    ];

    fn holds(self, m: &mut Math<'_>, x: ValueId, split: ValueId) -> OpResult<ValueId> {
        match self {
            Test::AtMost => m.le(x, split),
            Test::Below => m.lt(x, split),
            Test::AtLeast => m.le(split, x),
            Test::Above => m.lt(split, x),
            Test::Equal => m.eq(x, split),
            Test::NotEqual => {
                let equal = m.eq(x, split)?;
                m.unary(Scalar::Not, equal)
            }
        }
    }
}

/// A node of a tree; a leaf has itself as both branches.
#[derive(Clone, Debug)]
struct TreeNode {
    feature: i64,
    split: f64,
    test: Test,
    /// Whether NaN takes the first branch.
    missing: bool,
    branches: [usize; 2],
}

/// What a leaf adds to a target.
struct Vote {
    leaf: usize,
    target: usize,
    weight: f64,
}

struct Forest {
    nodes: Vec<TreeNode>,
    roots: Vec<usize>,
    votes: Vec<Vote>,
    targets: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

/// An attribute of integers, none when it is missing.
fn integers(cx: &NodeCx<'_, '_>, name: &str) -> OpResult<Vec<i64>> {
    Ok(cx.ints_attr(name)?.unwrap_or_default())
}

/// Numbers that are given as floats or as a tensor.
fn numbers(cx: &NodeCx<'_, '_>, name: &str) -> OpResult<Option<Vec<f64>>> {
    if let Some(t) = cx.tensor_attr(&format!("{name}_as_tensor"))? {
        return Ok(cupola_ir::convert::lanes(&t).map(|l| l.into_f64s()));
    }
    cx.floats_attr(name)
}

impl Forest {
    /// Nodes named by tree and number, with votes in attributes that begin with `votes`.
    fn named(cx: &NodeCx<'_, '_>, votes: &str, targets: usize) -> OpResult<Forest> {
        let ints = |name: &str| integers(cx, name);
        let (trees, ids) = (ints("nodes_treeids")?, ints("nodes_nodeids")?);
        let features = ints("nodes_featureids")?;
        let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
        let modes = cx.texts_attr("nodes_modes")?.unwrap_or_default();
        let splits = numbers(cx, "nodes_values")?.unwrap_or_default();
        let missing = ints("nodes_missing_value_tracks_true")?;
        let n = ids.len();
        let lens = [
            trees.len(),
            features.len(),
            yes.len(),
            no.len(),
            modes.len(),
            splits.len(),
        ];
        if n == 0 || lens.iter().any(|l| *l != n) || !(missing.is_empty() || missing.len() == n) {
            return invalid(format!("{n} tree nodes with attributes of {lens:?}"));
        }
        let mut index = HashMap::with_capacity(n);
        let (mut roots, mut seen) = (vec![], HashMap::new());
        for i in 0..n {
            if index.insert((trees[i], ids[i]), i).is_some() {
                return invalid(format!("node {} of tree {} twice", ids[i], trees[i]));
            }
            seen.entry(trees[i]).or_insert_with(|| roots.push(i));
        }
        let at = |tree: i64, id: i64| match index.get(&(tree, id)) {
            Some(i) => Ok(*i),
            None => invalid(format!("tree {tree} has no node {id}")),
        };
        let mut nodes = Vec::with_capacity(n);
        for i in 0..n {
            let mut node = TreeNode {
                feature: features[i],
                split: splits[i],
                test: Test::AtMost,
                missing: missing.get(i).is_some_and(|m| *m != 0),
                branches: [i, i],
            };
            if modes[i] == "LEAF" {
                node.feature = 0;
            } else {
                let Some((_, test)) = Test::ALL.iter().find(|(name, _)| *name == modes[i]) else {
                    return invalid(format!("node mode '{}' does not exist", modes[i]));
                };
                node.test = *test;
                node.branches = [at(trees[i], yes[i])?, at(trees[i], no[i])?];
            }
            nodes.push(node);
        }
        let (vote_trees, vote_nodes) = (
            ints(&format!("{votes}_treeids"))?,
            ints(&format!("{votes}_nodeids"))?,
        );
        let vote_targets = ints(&format!("{votes}_ids"))?;
        let weights = numbers(cx, &format!("{votes}_weights"))?.unwrap_or_default();
        let count = weights.len();
        if [vote_trees.len(), vote_nodes.len(), vote_targets.len()] != [count; 3] {
            return invalid(format!(
                "{count} weights of leaves with other numbers of leaves"
            ));
        }
        let mut all = Vec::with_capacity(count);
        for i in 0..count {
            all.push(Vote {
                leaf: at(vote_trees[i], vote_nodes[i])?,
                target: usize::try_from(vote_targets[i]).unwrap_or(usize::MAX),
                weight: weights[i],
            });
        }
        Forest {
            nodes,
            roots,
            votes: all,
            targets,
        }
        .checked()
    }

    /// Nodes and leaves numbered apart. A node that tests for members of a set becomes a chain of nodes, one for each.
    fn numbered(cx: &NodeCx<'_, '_>, targets: usize) -> OpResult<Forest> {
        let ints = |name: &str| integers(cx, name);
        let tensor = |name: &str| -> OpResult<Vec<f64>> {
            let t = cx.tensor_attr(name)?;
            let lanes = t.as_ref().and_then(cupola_ir::convert::lanes);
            Ok(lanes.map(|l| l.into_f64s()).unwrap_or_default())
        };
        let features = ints("nodes_featureids")?;
        let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
        let (yes_leaf, no_leaf) = (ints("nodes_trueleafs")?, ints("nodes_falseleafs")?);
        let (splits, modes) = (tensor("nodes_splits")?, tensor("nodes_modes")?);
        let missing = ints("nodes_missing_value_tracks_true")?;
        let (weights, leaf_targets) = (tensor("leaf_weights")?, ints("leaf_targetids")?);
        let n = features.len();
        let lens = [
            yes.len(),
            no.len(),
            yes_leaf.len(),
            no_leaf.len(),
            splits.len(),
            modes.len(),
        ];
        let bad_missing = !(missing.is_empty() || missing.len() == n);
        if n == 0
            || lens.iter().any(|l| *l != n)
            || bad_missing
            || weights.len() != leaf_targets.len()
        {
            return invalid(format!("{n} tree nodes with attributes of {lens:?}"));
        }
        let leaves = weights.len();
        let branch = |is_leaf: i64, id: i64| -> OpResult<usize> {
            let (base, len) = if is_leaf != 0 { (n, leaves) } else { (0, n) };
            match usize::try_from(id) {
                Ok(id) if id < len => Ok(base + id),
                _ => invalid(format!("a branch to {id} of {len}")),
            }
        };
        let members = tensor("membership_values")?;
        let mut sets = members.split(|v| v.is_nan());
        let mut nodes = vec![];
        let mut chains = vec![];
        for i in 0..n {
            let mut node = TreeNode {
                feature: features[i],
                split: splits[i],
                test: Test::Equal,
                missing: missing.get(i).is_some_and(|m| *m != 0),
                branches: [branch(yes_leaf[i], yes[i])?, branch(no_leaf[i], no[i])?],
            };
            const MEMBER: usize = Test::ALL.len();
            match modes[i] as usize {
                mode @ 0..MEMBER => node.test = Test::ALL[mode].1,
                MEMBER => chains.push((i, sets.next().unwrap_or_default())),
                mode => return invalid(format!("node mode {mode} does not exist")),
            }
            nodes.push(node);
        }
        for leaf in n..n + leaves {
            nodes.push(TreeNode {
                feature: 0,
                split: 0.0,
                test: Test::AtMost,
                missing: false,
                branches: [leaf, leaf],
            });
        }
        for (first, set) in chains {
            chain(&mut nodes, first, set)?;
        }
        let vote = |(i, (weight, target)): (usize, (&f64, &i64))| Vote {
            leaf: n + i,
            target: usize::try_from(*target).unwrap_or(usize::MAX),
            weight: *weight,
        };
        let votes = weights
            .iter()
            .zip(&leaf_targets)
            .enumerate()
            .map(vote)
            .collect();
        let roots = ints("tree_roots")?;
        let roots = roots
            .iter()
            .map(|r| branch(0, *r))
            .collect::<OpResult<_>>()?;
        Forest {
            nodes,
            roots,
            votes,
            targets,
        }
        .checked()
    }

    fn checked(self) -> OpResult<Forest> {
        if self.nodes.iter().any(|n| n.feature < 0) || self.roots.is_empty() {
            return invalid("a feature with a negative number, or no tree at all");
        }
        if self.votes.iter().any(|v| v.target >= self.targets) {
            return invalid(format!(
                "a leaf for a target that is not one of {}",
                self.targets
            ));
        }
        Ok(self)
    }

    /// Steps from a root to the farthest leaf.
    fn depth(&self) -> OpResult<i64> {
        // Heights above the leaves; a node waits on the stack until those of its branches are known.
        const OPEN: i64 = -1;
        const WAITING: i64 = -2;
        let mut height = vec![OPEN; self.nodes.len()];
        let mut stack = self.roots.clone();
        while let Some(&i) = stack.last() {
            let below = self.nodes[i].branches;
            if height[i] >= 0 || below == [i, i] {
                height[i] = height[i].max(0);
                stack.pop();
                continue;
            }
            let open = below.into_iter().filter(|b| height[*b] < 0);
            let open: Vec<usize> = open.collect();
            if open.is_empty() {
                height[i] = 1 + height[below[0]].max(height[below[1]]);
                stack.pop();
            } else if height[i] == WAITING {
                return invalid(format!("the trees have a cycle through node {i}"));
            } else {
                height[i] = WAITING;
                stack.extend(open);
            }
        }
        Ok(self.roots.iter().map(|r| height[*r]).max().unwrap_or(0))
    }

    /// The leaf that each row `[rows, features]` reaches in each tree: `i64[rows, trees]`.
    fn walk(&self, g: &mut Graph, x: ValueId) -> OpResult<ValueId> {
        let roots: Vec<i64> = self.roots.iter().map(|r| *r as i64).collect();
        let plane = [g.dim(x, 0), Dim::from(roots.len())];
        let start = g.i64s(&roots)?;
        let start = g.broadcast_to(start, &plane)?;
        let ty = TensorType::new(DType::I64, plane);
        let mut body = Graph::new("tree_step");
        body.input("iteration", TensorType::scalar(DType::I64))?;
        let at = body.input("at", ty.clone())?;
        let features = body.input("x", g.ty(x).clone())?;
        let next = self.step(&mut Math { g: &mut body }, features, at)?;
        let go_on = body.number(1.0, DType::Bool)?;
        body.output("more", go_on);
        body.output("at", next);
        let depth = g.constant(Tensor::scalar(self.depth()?))?;
        let always = g.number(1.0, DType::Bool)?;
        let walk = Loop {
            body,
            carried: 1,
            results: vec![ty.into()],
            binds: vec![],
        };
        Ok(g.one(CoreOp::Loop(walk), &[depth, always, start, x])?)
    }

    /// The nodes after those at `at`.
    fn step(&self, m: &mut Math<'_>, x: ValueId, at: ValueId) -> OpResult<ValueId> {
        let table = |m: &mut Math<'_>, f: &dyn Fn(&TreeNode) -> i64| -> OpResult<ValueId> {
            let values: Vec<i64> = self.nodes.iter().map(f).collect();
            let table = m.g.i64s(&values)?;
            take(m.g, table, 0, at)
        };
        let feature = table(m, &|n| n.feature)?;
        let pick = Gather {
            axes: vec![1],
            batch: 1,
            bounds: Bounds::Check,
        };
        let x = m.g.one(pick, &[x, feature])?;
        let splits: Vec<f64> = self.nodes.iter().map(|n| n.split).collect();
        let dtype = m.g.dtype(x);
        let splits = constant(m.g, &splits, &[self.nodes.len()], dtype)?;
        let split = take(m.g, splits, 0, at)?;
        let inner = || {
            self.nodes
                .iter()
                .enumerate()
                .filter(|(i, n)| n.branches != [*i; 2])
        };
        let used = |test: Test| inner().any(|(_, n)| n.test == test);
        let mut holds = None;
        for (_, test) in Test::ALL {
            if !used(test) {
                continue;
            }
            let this = test.holds(m, x, split)?;
            holds = Some(match holds {
                None => this,
                Some(others) => {
                    let own = table(m, &|n| i64::from(n.test == test))?;
                    let own = m.eq(own, 1.0)?;
                    m.select(own, this, others)?
                }
            });
        }
        // Trees of leaves only have nothing to test.
        let Some(mut holds) = holds else {
            return Ok(at);
        };
        if inner().any(|(_, n)| n.missing) {
            let tracked = table(m, &|n| i64::from(n.missing))?;
            let tracked = m.eq(tracked, 1.0)?;
            let nan = m.unary(Scalar::IsNan, x)?;
            let nan = m.and(nan, tracked)?;
            holds = m.or(holds, nan)?;
        }
        let yes = table(m, &|n| n.branches[0] as i64)?;
        let no = table(m, &|n| n.branches[1] as i64)?;
        m.select(holds, yes, no)
    }

    /// Votes of the leaves reached, together: `[rows, targets]`. A target without votes gets 0.
    fn vote(
        &self,
        m: &mut Math<'_>,
        leaves: ValueId,
        how: Aggregate,
        dtype: DType,
    ) -> OpResult<ValueId> {
        let (kind, nothing) = match how {
            Aggregate::Sum | Aggregate::Average => (ReduceKind::Sum, 0.0),
            Aggregate::Min => (ReduceKind::Min, f64::INFINITY),
            Aggregate::Max => (ReduceKind::Max, f64::NEG_INFINITY),
        };
        let shape = [self.nodes.len(), self.targets];
        let len = shape[0].checked_mul(shape[1]).filter(|n| *n <= MAX_VOTES);
        let Some(len) = len else {
            let what = format!("{} leaves and nodes for {} targets", shape[0], shape[1]);
            return Err(OpError::Limit(what));
        };
        let mut table = vec![nothing; len];
        for vote in &self.votes {
            let at = &mut table[vote.leaf * self.targets + vote.target];
            *at = match kind {
                ReduceKind::Min => at.min(vote.weight),
                ReduceKind::Max => at.max(vote.weight),
                ReduceKind::Sum | ReduceKind::Prod => *at + vote.weight,
            };
        }
        let table = constant(m.g, &table, &shape, dtype)?;
        let votes = take(m.g, table, 0, leaves)?;
        let sum = m.g.reduce(kind, votes, &[1])?;
        match how {
            Aggregate::Sum => Ok(sum),
            Aggregate::Average => m.div(sum, self.roots.len() as f64),
            Aggregate::Min | Aggregate::Max => {
                let none = m.eq(sum, nothing)?;
                m.select(none, 0.0, sum)
            }
        }
    }
}

/// Makes a node that tests for equality into one that tests for any member of a set.
fn chain(nodes: &mut Vec<TreeNode>, first: usize, set: &[f64]) -> OpResult<()> {
    let Some((head, rest)) = set.split_first() else {
        return invalid("a node that tests for members of no set");
    };
    nodes[first].split = *head;
    let mut last = first;
    for member in rest {
        let next = nodes.len();
        let mut node = nodes[last].clone();
        node.split = *member;
        nodes.push(node);
        nodes[last].branches[1] = next;
        last = next;
    }
    Ok(())
}

/// Numbers added to the scores of every row.
fn add_base(m: &mut Math<'_>, scores: ValueId, base: &[f64], targets: usize) -> OpResult<ValueId> {
    if base.is_empty() {
        return Ok(scores);
    }
    if base.len() != targets && base.len() != 1 {
        return invalid(format!("{} base values for {targets} targets", base.len()));
    }
    let dtype = m.g.dtype(scores);
    let base = constant(m.g, base, &[base.len()], dtype)?;
    m.add(scores, base)
}

fn regressor(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = rows(cx)?;
    let how = match cx.text_or("aggregate_function", "SUM")?.as_str() {
        "AVERAGE" => Aggregate::Average,
        "SUM" => Aggregate::Sum,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => return invalid(format!("aggregate_function '{other}' does not exist")),
    };
    let targets = usize::try_from(cx.int_or("n_targets", 1)?).unwrap_or(0);
    let forest = Forest::named(cx, "target", targets)?;
    let base = numbers(cx, "base_values")?.unwrap_or_default();
    let post = Post::read(cx)?;
    let y = predict(cx.g, x, &forest, how)?;
    let mut m = Math { g: cx.g };
    let y = add_base(&mut m, y, &base, targets)?;
    let y = post.apply(&mut m, y)?;
    Ok(vec![m.g.cast(y, DType::F32)?])
}

fn predict(g: &mut Graph, x: ValueId, forest: &Forest, how: Aggregate) -> OpResult<ValueId> {
    let dtype = g.dtype(x);
    let leaves = forest.walk(g, x)?;
    forest.vote(&mut Math { g }, leaves, how, dtype)
}

fn ensemble(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (_, ty) = cx.tensor_input(0)?;
    let x = rows(cx)?;
    let how = match cx.int_or("aggregate_function", 1)? {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        other => return invalid(format!("aggregate_function {other} does not exist")),
    };
    let post = match cx.int_or("post_transform", 0)? {
        0 => Post::None,
        1 => Post::Softmax,
        2 => Post::Logistic,
        3 => Post::SoftmaxZero,
        4 => Post::Probit,
        other => return invalid(format!("post_transform {other} does not exist")),
    };
    let targets = usize::try_from(cx.int_or("n_targets", 1)?).unwrap_or(0);
    let forest = Forest::numbered(cx, targets)?;
    let y = predict(cx.g, x, &forest, how)?;
    let y = post.apply(&mut Math { g: cx.g }, y)?;
    Ok(vec![cx.g.cast(y, ty.dtype)?])
}

/// Labels and scores. Where all votes of an ensemble for two classes are for one of them, the sum is the score of the
/// second class: a probability when no vote is negative, a margin otherwise.
fn classifier(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = rows(cx)?;
    let Some(labels) = Labels::read(cx, "classlabels_int64s", "classlabels_strings")? else {
        return invalid("the class labels are missing");
    };
    let classes = labels.len();
    let forest = Forest::named(cx, "class", classes)?;
    let base = numbers(cx, "base_values")?.unwrap_or_default();
    let post = Post::read(cx)?;
    let scores = predict(cx.g, x, &forest, Aggregate::Sum)?;
    let scores = cx.g.cast(scores, DType::F32)?;
    let first = forest.votes.first().map_or(0, |v| v.target);
    let one_sided = classes == 2 && forest.votes.iter().all(|v| v.target == first);
    let mut m = Math { g: cx.g };
    if one_sided && base.len() < 2 && first == 0 {
        let score = m.g.slice_axis(scores, 1, &Dim::ZERO, &Dim::ONE)?;
        let score = add_base(&mut m, score, &base, 1)?;
        let probability = forest.votes.iter().all(|v| v.weight >= 0.0);
        let threshold = if probability { 0.5 } else { 0.0 };
        let second = m.lt(threshold, score)?;
        let second = m.g.cast(second, DType::I64)?;
        let second = m.g.squeeze(second, &[1])?;
        let named = labels.of(m.g, second)?;
        return Ok(vec![named, post.of_one(&mut m, score, probability)?]);
    }
    let scores = add_base(&mut m, scores, &base, classes)?;
    let named = match (classes, &labels) {
        // A single class has the labels 1 and 0 for yes and no.
        (1, Labels::Ints(_)) => {
            let yes = m.lt(0.0, scores)?;
            let yes = m.g.cast(yes, DType::I64)?;
            m.g.squeeze(yes, &[1])?
        }
        _ => {
            let best = ArgReduce {
                kind: ReduceKind::Max,
                axis: 1,
                last: false,
            };
            let best = m.g.one(best, &[scores])?;
            labels.of(m.g, best)?
        }
    };
    Ok(vec![named, post.apply(&mut m, scores)?])
}
