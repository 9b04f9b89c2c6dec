//! [`Program`]: rules as a graph of nodes that a text is followed through, byte by byte.

use super::error::ConstraintError;
use super::expression::{Expression, RuleId, Rules};

/// Nodes that a program may have: a few times the largest published schemas and grammars.
const MAX_NODES: usize = 1 << 19;

/// Number of a node.
pub type NodeId = u32;

/// Where a text may be.
#[derive(Debug)]
pub enum Node {
    /// A byte in the range leads on.
    Bytes(Vec<(u8, u8)>, NodeId),
    /// At all of these nodes at once.
    Split(Vec<NodeId>),
    /// At the beginning of a rule, and behind it at the second node.
    Call(RuleId, NodeId),
    /// At the end of a rule.
    Return,
}

/// A grammar ready to follow texts.
#[derive(Debug)]
pub struct Program {
    pub nodes: Vec<Node>,
    /// The first node of each rule.
    pub starts: Vec<NodeId>,
    pub root: RuleId,
}

impl Program {
    /// Builds the graph. `name` gives a rule's name for messages.
    ///
    /// # Errors
    /// [`ConstraintError::LeftRecursion`] and [`ConstraintError::TooLarge`].
    pub fn new(
        rules: &Rules,
        root: RuleId,
        name: impl Fn(RuleId) -> String,
    ) -> Result<Program, ConstraintError> {
        if let Some(rule) = left_recursive(rules.all()) {
            return Err(ConstraintError::LeftRecursion(name(rule)));
        }
        // What is too large is refused before memory is taken for it.
        let counts = rules
            .all()
            .iter()
            .map(|rule| node_count(rule).saturating_add(1));
        if counts.fold(0, usize::saturating_add) > MAX_NODES {
            return Err(ConstraintError::TooLarge("500,000 states"));
        }
        let mut builder = Builder { nodes: vec![] };
        let mut starts = vec![];
        for rule in rules.all() {
            let end = builder.push(Node::Return);
            starts.push(builder.expression(rule, end));
        }
        Ok(Program {
            nodes: builder.nodes,
            starts,
            root,
        })
    }
}

struct Builder {
    nodes: Vec<Node>,
}

impl Builder {
    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() as NodeId - 1
    }

    /// The node from which a text of the expression leads to `next`.
    fn expression(&mut self, expression: &Expression, next: NodeId) -> NodeId {
        match expression {
            Expression::Bytes(ranges) => self.push(Node::Bytes(ranges.clone(), next)),
            Expression::Rule(rule) => self.push(Node::Call(*rule, next)),
            Expression::Sequence(parts) => parts
                .iter()
                .rev()
                .fold(next, |next, part| self.expression(part, next)),
            Expression::Choice(parts) => {
                let parts: Vec<NodeId> = parts
                    .iter()
                    .map(|part| self.expression(part, next))
                    .collect();
                self.push(Node::Split(parts))
            }
            Expression::Repeat { part, min, max } => self.repeat(part, *min, *max, next),
        }
    }

    fn repeat(&mut self, part: &Expression, min: u32, max: Option<u32>, next: NodeId) -> NodeId {
        let mut first = match max {
            None => {
                let again = self.push(Node::Split(vec![next]));
                let body = self.expression(part, again);
                if let Node::Split(ways) = &mut self.nodes[again as usize] {
                    ways.push(body);
                }
                again
            }
            Some(max) => {
                let mut first = next;
                for _ in min..max {
                    let body = self.expression(part, first);
                    first = self.push(Node::Split(vec![body, next]));
                }
                first
            }
        };
        for _ in 0..min {
            let before = self.nodes.len();
            first = self.expression(part, first);
            // Of parts that take no nodes any number is the same.
            if self.nodes.len() == before {
                break;
            }
        }
        first
    }
}

/// Nodes that an expression takes.
fn node_count(expression: &Expression) -> usize {
    let sum = |parts: &[Expression]| parts.iter().map(node_count).fold(0, usize::saturating_add);
    match expression {
        Expression::Bytes(_) | Expression::Rule(_) => 1,
        Expression::Sequence(parts) => sum(parts),
        Expression::Choice(parts) => sum(parts).saturating_add(1),
        Expression::Repeat { part, min, max } => {
            let part = node_count(part);
            let optional = match max {
                None => part.saturating_add(1),
                Some(max) => {
                    (max.saturating_sub(*min) as usize).saturating_mul(part.saturating_add(1))
                }
            };
            (*min as usize)
                .saturating_mul(part)
                .saturating_add(optional)
        }
    }
}

/// A rule that can come to its own beginning without a byte in between.
fn left_recursive(rules: &[Expression]) -> Option<RuleId> {
    let nullable = nullable(rules);
    let first: Vec<Vec<RuleId>> = rules
        .iter()
        .map(|rule| {
            let mut found = vec![];
            leftmost(rule, &nullable, &mut found);
            found
        })
        .collect();
    // 0: not seen, 1: on the way, 2: done. The way is kept on a stack of its own.
    let mut seen = vec![0u8; rules.len()];
    for start in 0..rules.len() {
        if seen[start] != 0 {
            continue;
        }
        seen[start] = 1;
        let mut way = vec![(start, 0)];
        while let Some((rule, at)) = way.last_mut() {
            let Some(&RuleId(next)) = first[*rule].get(*at) else {
                seen[*rule] = 2;
                way.pop();
                continue;
            };
            *at += 1;
            match seen[next as usize] {
                0 => {
                    seen[next as usize] = 1;
                    way.push((next as usize, 0));
                }
                1 => return Some(RuleId(next)),
                _ => {}
            }
        }
    }
    None
}

/// Which rules allow the empty text.
fn nullable(rules: &[Expression]) -> Vec<bool> {
    let mut nullable = vec![false; rules.len()];
    loop {
        let mut changed = false;
        for (at, rule) in rules.iter().enumerate() {
            if !nullable[at] && is_nullable(rule, &nullable) {
                nullable[at] = true;
                changed = true;
            }
        }
        if !changed {
            return nullable;
        }
    }
}

fn is_nullable(expression: &Expression, rules: &[bool]) -> bool {
    match expression {
        Expression::Bytes(_) => false,
        Expression::Sequence(parts) => parts.iter().all(|part| is_nullable(part, rules)),
        Expression::Choice(parts) => parts.iter().any(|part| is_nullable(part, rules)),
        Expression::Repeat { part, min, .. } => *min == 0 || is_nullable(part, rules),
        Expression::Rule(rule) => rules[rule.0 as usize],
    }
}

/// The rules that an expression may begin with.
fn leftmost(expression: &Expression, nullable: &[bool], found: &mut Vec<RuleId>) {
    match expression {
        Expression::Bytes(_) => {}
        Expression::Rule(rule) => found.push(*rule),
        Expression::Choice(parts) => {
            for part in parts {
                leftmost(part, nullable, found);
            }
        }
        Expression::Sequence(parts) => {
            for part in parts {
                leftmost(part, nullable, found);
                if !is_nullable(part, nullable) {
                    break;
                }
            }
        }
        Expression::Repeat { part, max, .. } => {
            if *max != Some(0) {
                leftmost(part, nullable, found);
            }
        }
    }
}
