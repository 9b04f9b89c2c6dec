//! `cupola bisect`: the first node whose result differs between two devices, and a small graph that shows it.
//!
//! The whole graph is run on the good device once, with every value kept. A part of the graph is then judged on the bad
//! device alone: it gets the good values of what it takes and must give the good values of what it computes. Ops stay
//! fused as in the whole graph, so that a mistake in a fused kernel shows.
//!
//! 1. The shortest prefix that differs, by halving. Its last node computes the first wrong value.
//! 2. The fewest nodes before that value that still differ, added by their distance to it.
//! 3. Every node of these that can be left out is.

use super::compare::{describe, run_on, with_all_values};
use crate::args::{BisectArgs, CompileArgs};
use crate::compare::{self, Tolerance};
use crate::fail::{Failure, Outcome};
use crate::{inputs, outputs, pb};
use cupola::ir::eval::bind::bind_value;
use cupola::ir::{NodeId, OpClass, ValueId};
use cupola::{Bindings, Graph, Host, Value};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Finds the first node whose result differs, and writes the smallest graph that shows it.
pub fn bisect(args: &BisectArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let types = model.input_types()?;
    let given = inputs::gather(&types, &args.input, &args.compile, true)?;
    let graph = model.graph_for_inputs(&given)?;
    let search = Search::new(&graph, &given, args)?;
    let Some(found) = search.run()? else {
        let compared = search.known.len();
        if let Some(to) = &args.json {
            return outputs::write_json(to, &json!({ "node": null, "values": compared }));
        }
        let (good, bad) = (&args.good, &args.bad);
        println!("no difference between {good} and {bad} in {compared} values");
        return Ok(());
    };
    let what = describe(&graph, found.value);
    let nodes = computing(&found.part.graph);
    let files = match &args.output {
        Some(path) => Some((path, write(path, &found.part, &search.known)?)),
        None => None,
    };
    match &args.json {
        Some(to) => outputs::write_json(
            to,
            &json!({
                "node": graph.value(found.value).node.to_string(), "what": what, "detail": found.detail,
                "reproducer_nodes": nodes, "parts_tried": search.tried.get(),
                "reproducer": files.as_ref().map(|(path, _)| path.display().to_string()),
                "inputs": files.as_ref().map(|(_, folder)| folder.display().to_string()),
            }),
        )?,
        None => {
            println!("first difference: {what}");
            println!("  {}", found.detail);
            match &files {
                Some((path, folder)) => {
                    let (path, folder) = (path.display(), folder.display());
                    println!("  {nodes} nodes show it:");
                    println!(
                        "  cupola compare {path} --inputs {folder} --devices {},{}",
                        args.good, args.bad
                    );
                }
                None => print!("{}", cupola::to_text(&found.part.graph)),
            }
        }
    }
    Err(Failure::differs(format!("{what}: {}", found.detail)))
}

/// Nodes that compute something.
fn computing(graph: &Graph) -> usize {
    let all = graph.nodes();
    all.filter(|(_, n)| n.op.class() != OpClass::Leaf).count()
}

/// Writes a part as a text graph, and its inputs to a folder beside it; gives the folder.
fn write(path: &Path, part: &cupola::Cut, known: &HashMap<ValueId, Value>) -> Outcome<PathBuf> {
    crate::outputs::write_whole(path, cupola::to_text(&part.graph).as_bytes())?;
    let folder = path.with_extension("inputs");
    std::fs::create_dir_all(&folder).map_err(|e| Failure::io("cannot create", &folder, e))?;
    for (i, v) in part.inputs.iter().enumerate() {
        let name = part.graph.input_name(part.graph.inputs()[i]);
        pb::write(&folder.join(format!("input_{i}.pb")), name, &known[v])?;
    }
    Ok(folder)
}

/// A part that differs.
struct Found {
    part: cupola::Cut,
    nodes: BTreeSet<NodeId>,
    /// The first value that differs.
    value: ValueId,
    detail: String,
}

struct Search<'a> {
    graph: &'a Graph,
    args: &'a BisectArgs,
    bad: CompileArgs,
    host: Arc<Host>,
    /// Values on the good device.
    known: HashMap<ValueId, Value>,
    /// What symbols are in this run.
    sizes: Bindings,
    tried: std::cell::Cell<usize>,
}

impl<'a> Search<'a> {
    fn new(
        graph: &'a Graph,
        given: &BTreeMap<String, Value>,
        args: &'a BisectArgs,
    ) -> Outcome<Search<'a>> {
        let host = super::host(&args.compile);
        let (observed, values) = with_all_values(graph, |_| true);
        let good = CompileArgs {
            fault: None,
            ..args.compile.clone()
        };
        let results = run_on(&observed, &args.good, &good, &host, given)?;
        let computed = results.into_iter().map(|(_, v)| v);
        let mut known: HashMap<ValueId, Value> = values.into_iter().zip(computed).collect();
        for v in graph.inputs() {
            if let Some(value) = given.get(graph.input_name(*v)) {
                known.insert(*v, value.clone());
            }
        }
        let mut sizes = Bindings::default();
        for (v, value) in &known {
            // A value that contradicts its type has been refused by the run.
            let _ = bind_value(graph.ty(*v), value, &mut sizes);
        }
        Ok(Search {
            graph,
            args,
            bad: args.compile.clone(),
            host,
            known,
            sizes,
            tried: std::cell::Cell::new(0),
        })
    }

    fn run(&self) -> Outcome<Option<Found>> {
        let order: Vec<NodeId> = self
            .graph
            .nodes()
            .filter(|(_, n)| cupola::can_cut(&n.op))
            .map(|(id, _)| id)
            .collect();
        let prefix = |n: usize| order[..n].iter().copied().collect::<BTreeSet<_>>();
        let (mut good, mut bad) = (0, order.len());
        let Some(mut found) = self.judge(&prefix(bad), None) else {
            return self.alone(&order);
        };
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            match self.judge(&prefix(middle), None) {
                Some(earlier) => (bad, found) = (middle, earlier),
                None => good = middle,
            }
        }
        Ok(Some(self.shrink(found)))
    }

    /// Where the outputs agree, some inner value may still differ: every node by itself.
    fn alone(&self, order: &[NodeId]) -> Outcome<Option<Found>> {
        let (observed, values) = with_all_values(self.graph, |_| true);
        let given = self.graph.inputs().iter().filter_map(|v| {
            Some((
                self.graph.input_name(*v).to_string(),
                self.known.get(v)?.clone(),
            ))
        });
        let got = run_on(
            &observed,
            &self.args.bad,
            &self.bad,
            &self.host,
            &given.collect(),
        )?;
        let differs = |(v, (name, value)): &(ValueId, (String, Value))| {
            !compare::values(name, value, &self.known[v], self.tolerance()).is_ok()
        };
        let first = values.into_iter().zip(got).find(differs);
        let node = first.map(|(v, _)| self.graph.value(v).node);
        let part = node
            .filter(|n| order.contains(n))
            .map(|n| BTreeSet::from([n]));
        Ok(part.and_then(|p| self.judge(&p, None)))
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance {
            rtol: self.args.rtol,
            atol: self.args.atol,
            device: false,
        }
    }

    /// The fewest nodes that still differ. Where the wrong value is right without the others that its kernel writes, they
    /// stay results.
    fn shrink(&self, found: Found) -> Found {
        let near = self.by_distance(&found);
        let mut best = found;
        let more = |n: &usize| (*n < near.len()).then(|| (n + n.div_ceil(4)).min(near.len()));
        let smaller = std::iter::successors(Some(1), more).find_map(|count| {
            let nodes = near.iter().take(count).copied().collect();
            self.judge(&nodes, Some(best.value))
        });
        let is_alone = smaller.is_some();
        best = smaller.unwrap_or(best);
        while let Some(smaller) = self.drop_one(&best, is_alone) {
            best = smaller;
        }
        best
    }

    fn drop_one(&self, found: &Found, is_alone: bool) -> Option<Found> {
        let last = self.graph.value(found.value).node;
        let others = found.nodes.iter().rev().filter(|n| **n != last);
        others.into_iter().find_map(|n| {
            let mut fewer = found.nodes.clone();
            fewer.remove(n);
            let smaller = self.judge(&fewer, is_alone.then_some(found.value));
            smaller.filter(|smaller| smaller.value == found.value)
        })
    }

    /// The nodes of a part that its wrong value depends on, nearest first.
    fn by_distance(&self, found: &Found) -> Vec<NodeId> {
        let mut queue = VecDeque::from([self.graph.value(found.value).node]);
        let mut seen = vec![];
        while let Some(id) = queue.pop_front() {
            if seen.contains(&id) || !found.nodes.contains(&id) {
                continue;
            }
            seen.push(id);
            let operands = self.graph.node(id).operands.iter();
            queue.extend(operands.map(|v| self.graph.value(*v).node));
        }
        seen
    }

    /// Whether a part differs on the bad device: in `only`, or in what leaves it. A part that cannot stand or run alone
    /// does not differ.
    fn judge(&self, nodes: &BTreeSet<NodeId>, only: Option<ValueId>) -> Option<Found> {
        let wanted = match only {
            Some(v) => vec![v],
            None => self.leaving(nodes),
        };
        let named: Vec<(String, ValueId)> = wanted.iter().map(|v| (v.to_string(), *v)).collect();
        let part = cupola::cut(self.graph, nodes, &named, None)
            .or_else(|_| cupola::cut(self.graph, nodes, &named, Some(&self.sizes)))
            .ok()?;
        let names = part
            .graph
            .inputs()
            .iter()
            .map(|v| part.graph.input_name(*v).to_string());
        let given: Option<BTreeMap<String, Value>> = names
            .zip(&part.inputs)
            .map(|(name, v)| Some((name, self.known.get(v)?.clone())))
            .collect();
        self.tried.set(self.tried.get() + 1);
        let got = run_on(&part.graph, &self.args.bad, &self.bad, &self.host, &given?).ok()?;
        let (value, detail) = wanted.iter().zip(got).find_map(|(v, (_, got))| {
            let name = self.graph.value(*v).name.as_deref();
            let name = name.map_or(v.to_string(), ToString::to_string);
            let d = compare::values(&name, &got, self.known.get(v)?, self.tolerance());
            (!d.is_ok()).then_some((*v, d.detail))
        })?;
        let used = |n: &NodeId| only.is_none() || self.reaches(*n, value, nodes);
        Some(Found {
            nodes: nodes.iter().copied().filter(used).collect(),
            part,
            value,
            detail,
        })
    }

    /// Whether a value depends on a node through nodes of a part.
    fn reaches(&self, node: NodeId, value: ValueId, nodes: &BTreeSet<NodeId>) -> bool {
        let mut stack = vec![self.graph.value(value).node];
        let mut seen = BTreeSet::new();
        while let Some(id) = stack.pop() {
            if id == node {
                return true;
            }
            if nodes.contains(&id) && seen.insert(id) {
                let operands = self.graph.node(id).operands.iter();
                stack.extend(operands.map(|v| self.graph.value(*v).node));
            }
        }
        false
    }

    /// Values that nodes of a part compute and something else takes, in order.
    fn leaving(&self, nodes: &BTreeSet<NodeId>) -> Vec<ValueId> {
        let mut taken: BTreeSet<ValueId> = self.graph.outputs().iter().map(|(_, v)| *v).collect();
        for (id, node) in self.graph.nodes() {
            if !nodes.contains(&id) {
                taken.extend(&node.operands);
            }
        }
        let results = nodes.iter().flat_map(|id| &self.graph.node(*id).results);
        let results = results.copied();
        results
            .filter(|v| taken.contains(v) && self.known.contains_key(v))
            .collect()
    }
}
