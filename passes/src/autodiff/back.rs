//! One step of the backward scan: the body of the forward one, computed again as far as it was not kept, and its gradients.
//!
//! Inputs have a [`Role`] each, in the order of a scan's operands; those that prove useless are taken away again.

use super::control::clone_nodes;
use super::deferred::{Deferred, Factor, Source, defer};
use super::repeat::{Repetition, Steps, sum_type};
use super::{Ir, Site, backward, zeros};
use crate::region::Symbols;
use cupola_ir::composite::CompositeOp;
use cupola_ir::{DType, Graph, NodeId, Op, OpClass, Scalar, Sym, TensorType, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};

/// What an input of the backward body is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// The cotangent of what operand `.0` carries.
    Cotangent(usize),
    /// The sum so far for capture `.0`.
    Sum(usize),
    /// A value of the body of every step.
    Saved(ValueId),
    /// The row of scanned operand `.0`.
    Row(usize),
    /// The iteration's number.
    Number,
    /// The cotangent's row of result `.0`.
    Given(usize),
    /// Operand `.0` as it is.
    Capture(usize),
}

/// The body of the backward scan under construction.
pub(super) struct Back {
    pub(super) graph: Graph,
    /// One per input of the graph.
    pub(super) roles: Vec<Role>,
    /// Operands whose gradients the scan carries.
    pub(super) carried: Vec<usize>,
    /// Scanned operands whose gradients it stacks.
    pub(super) rows: Vec<usize>,
    /// What is computed at the end from what is stacked, by operand.
    pub(super) deferred: Vec<(usize, Deferred)>,
    /// Values to be given: carried ones, then stacked ones.
    outputs: Vec<ValueId>,
}

impl Back {
    /// Differentiates one step; nothing when nothing flows.
    pub(super) fn of(
        g: &Graph,
        site: &Site,
        p: &Repetition,
        active: &[bool],
        symbols: Option<&Symbols>,
    ) -> Ir<Option<Back>> {
        let mut b = Graph::new(&format!("{}.back", p.body.name));
        b.ranges = p.body.ranges.clone();
        let heavy = heavy(p, symbols);
        let roles = roles(site, p, active, &heavy);
        let by_role = take_inputs(&mut b, g, p, &roles)?;
        let of_role = |role: Role| {
            let at = roles.iter().position(|r| *r == role)?;
            Some(by_role[at])
        };
        let place = |role: Role| {
            let v = of_role(role);
            v.unwrap_or_else(|| unreachable!("bug: no input for {role:?}"))
        };
        let inputs: Vec<ValueId> = (0..p.body.inputs().len())
            .map(|at| place(role_of(p, at)))
            .collect();
        let map = clone_nodes(&mut b, &p.body, &inputs)?;
        let mut seeds = vec![];
        for (role, v) in roles.iter().zip(&by_role) {
            match role {
                Role::Cotangent(at) => seeds.push((map(p.output(*at - p.decisions)), *v)),
                Role::Given(k) => seeds.push((map(p.output(*k)), *v)),
                _ => {}
            }
        }
        let asked: Vec<usize> = p.operands().filter(|at| active[*at]).collect();
        let wrt: Vec<ValueId> = (asked.iter())
            .map(|at| inputs[*at + p.numbers - p.decisions])
            .collect();
        let found = backward(&mut b, &seeds, &wrt, &FxHashSet::default())?;
        b.set_origin(None);
        if found.iter().all(Option::is_none) {
            return Ok(None);
        }
        // What has been kept is not computed again.
        let kept = heavy
            .iter()
            .filter_map(|v| Some((map(*v), of_role(Role::Saved(*v))?)));
        let kept: FxHashMap<ValueId, ValueId> = kept.collect();
        b.replace_all(&kept);
        let found = found
            .into_iter()
            .map(|v| v.map(|v| *kept.get(&v).unwrap_or(&v)));
        let mut back = Back {
            graph: b,
            roles,
            carried: vec![],
            rows: vec![],
            deferred: vec![],
            outputs: vec![],
        };
        let found: Vec<(usize, Option<ValueId>)> = asked.into_iter().zip(found).collect();
        back.place(p, &by_role, &found, symbols.is_some())?;
        Ok(Some(back))
    }

    /// Decides where the gradients of one step go.
    fn place(
        &mut self,
        p: &Repetition,
        inputs: &[ValueId],
        found: &[(usize, Option<ValueId>)],
        may_defer: bool,
    ) -> Ir<()> {
        let mut stacked = vec![];
        for (at, grad) in found.iter().filter(|(at, _)| p.is_carried(*at)) {
            let own = inputs[self.position(Role::Cotangent(*at))];
            let ty = self.graph.ty(own).clone();
            let grad = match grad {
                Some(v) => *v,
                None => zeros(&mut self.graph, &ty)?,
            };
            self.carried.push(*at);
            self.outputs.push(grad);
        }
        for (at, grad) in found.iter().filter(|(at, _)| p.is_scanned(*at)) {
            if let Some(v) = grad {
                self.rows.push(*at);
                stacked.push(*v);
            }
        }
        for (at, grad) in found {
            let Some(grad) = grad.filter(|_| !p.is_carried(*at) && !p.is_scanned(*at)) else {
                continue;
            };
            let mut left = Some(grad);
            if may_defer {
                let source = |v: ValueId| {
                    let at = inputs.iter().position(|i| *i == v);
                    match at.map(|at| (at, self.roles[at])) {
                        Some((_, Role::Capture(_))) => Source::Fixed,
                        Some((at, Role::Saved(_) | Role::Row(_) | Role::Given(_))) => {
                            Source::Row(at)
                        }
                        _ => Source::Changing,
                    }
                };
                let (terms, rest) = defer(&mut self.graph, grad, &source, &mut stacked)?;
                self.deferred.extend(terms.into_iter().map(|t| (*at, t)));
                left = rest;
            }
            let Some(left) = left else { continue };
            let sum = inputs[self.position(Role::Sum(*at))];
            let left = self.graph.cast_like(left, sum)?;
            let sum = self.graph.binary(Scalar::Add, sum, left)?;
            self.carried.push(*at);
            self.outputs.push(sum);
        }
        self.outputs.append(&mut stacked);
        Ok(())
    }

    fn position(&self, role: Role) -> usize {
        let at = self.roles.iter().position(|r| *r == role);
        at.unwrap_or_else(|| unreachable!("bug: no input for {role:?}"))
    }

    /// Names the outputs and takes away the inputs that nothing needs.
    pub(super) fn finish(&mut self) -> Ir<()> {
        let b = &mut self.graph;
        for (i, v) in self.outputs.iter().enumerate() {
            b.output(&format!("y{i}"), *v);
        }
        b.compact()?;
        let users = b.users();
        let is_used =
            |v: &ValueId| !users[v.index()].is_empty() || b.outputs().iter().any(|(_, o)| o == v);
        // Factors are rows of the operands of the scan, by position.
        let needed = |at: usize| {
            self.deferred
                .iter()
                .any(|(_, d)| d.factors.contains(&Factor::Row(at)))
        };
        let keep: Vec<bool> = (b.inputs().iter().zip(&self.roles).enumerate())
            .map(|(i, (v, role))| match role {
                Role::Cotangent(at) | Role::Sum(at) => self.carried.contains(at),
                _ => is_used(v) || needed(i),
            })
            .collect();
        let mut places = vec![0; keep.len()];
        for i in 1..keep.len() {
            places[i] = places[i - 1] + usize::from(keep[i - 1]);
        }
        for i in (0..keep.len()).rev() {
            if !keep[i] {
                self.graph.remove_input(i);
                self.roles.remove(i);
            }
        }
        for (_, d) in &mut self.deferred {
            for f in &mut d.factors {
                if let Factor::Row(at) = f {
                    *at = places[*at];
                }
            }
        }
        self.one_row()?;
        self.graph.compact()?;
        Ok(())
    }

    /// A scan goes over something at least.
    fn one_row(&mut self) -> Ir<()> {
        let carried = self.carried.len();
        let scans = self.roles.len() - carried > self.captures();
        if scans {
            return Ok(());
        }
        // Inputs are in the order of their making: those of captures are made again behind the number's.
        let captures: Vec<ValueId> = self.graph.inputs()[carried..].to_vec();
        self.graph.input("number", TensorType::scalar(DType::I64))?;
        let mut roles = self.roles.split_off(carried);
        self.roles.push(Role::Number);
        self.roles.append(&mut roles);
        let mut map = FxHashMap::default();
        for (i, v) in captures.iter().enumerate() {
            let ty = self.graph.ty(*v).clone();
            map.insert(*v, self.graph.input(&format!("capture{i}"), ty)?);
        }
        for _ in &captures {
            self.graph.remove_input(carried);
        }
        self.graph.replace_all(&map);
        Ok(())
    }

    pub(super) fn captures(&self) -> usize {
        let is_capture = |r: &&Role| matches!(r, Role::Capture(_));
        self.roles.iter().filter(is_capture).count()
    }

    /// Operands of the backward scan, the scanned ones from the last step to the first.
    pub(super) fn operands(
        &self,
        g: &mut Graph,
        site: &Site,
        p: &Repetition,
        steps: &Steps,
    ) -> Ir<Vec<ValueId>> {
        let mut operands = vec![];
        for role in &self.roles {
            operands.push(match role {
                Role::Cotangent(at) => match site.given[*at - p.decisions] {
                    Some(v) => v,
                    None => {
                        let ty = g.ty(site.operands[*at]).clone();
                        zeros(g, &ty)?
                    }
                },
                Role::Sum(at) => {
                    let ty = sum_type(g, g.ty(site.operands[*at]), false);
                    zeros(g, &ty)?
                }
                Role::Saved(v) => {
                    let saved = steps.saved.iter().find(|(w, _)| w == v);
                    let (_, saved) = saved.unwrap_or_else(|| unreachable!("bug: {v} is not saved"));
                    g.flip(*saved, 0)?
                }
                Role::Row(at) => g.flip(site.operands[*at], 0)?,
                Role::Given(k) => {
                    let given = site.given[*k];
                    let given = given.unwrap_or_else(|| unreachable!("bug: no cotangent of {k}"));
                    g.flip(given, 0)?
                }
                Role::Number => {
                    let count = std::slice::from_ref(&steps.count);
                    let number = g.iota(DType::I64, count, 0)?;
                    g.flip(number, 0)?
                }
                Role::Capture(at) => site.operands[*at],
            });
        }
        Ok(operands)
    }
}

/// Gives the backward body an input for each role.
fn take_inputs(b: &mut Graph, g: &Graph, p: &Repetition, roles: &[Role]) -> Ir<Vec<ValueId>> {
    let one = |(i, role): (usize, &Role)| {
        let ty = match role {
            Role::Cotangent(at) | Role::Row(at) | Role::Capture(at) => {
                p.body.ty(p.input(*at)).clone()
            }
            Role::Sum(at) => sum_type(g, p.body.ty(p.input(*at)), false),
            Role::Saved(v) => p.body.ty(*v).clone(),
            Role::Number => TensorType::scalar(DType::I64).into(),
            Role::Given(k) => p.body.ty(p.output(*k)).clone(),
        };
        b.input(&format!("x{i}"), ty)
    };
    roles.iter().enumerate().map(one).collect()
}

/// What the body's own input at a position is given when it is computed again.
fn role_of(p: &Repetition, at: usize) -> Role {
    if at < p.numbers {
        return Role::Number;
    }
    match at - p.numbers + p.decisions {
        operand if p.is_scanned(operand) => Role::Row(operand),
        operand if p.is_carried(operand) => Role::Saved(p.body.inputs()[at]),
        operand => Role::Capture(operand),
    }
}

/// What the inputs of the backward body are, in the order of a scan's operands.
fn roles(site: &Site, p: &Repetition, active: &[bool], heavy: &[ValueId]) -> Vec<Role> {
    let operands = || p.operands();
    let is_capture = |at: &usize| !p.is_carried(*at) && !p.is_scanned(*at);
    let mut roles: Vec<Role> = operands()
        .filter(|at| p.is_carried(*at) && active[*at])
        .map(Role::Cotangent)
        .collect();
    roles.extend(
        operands()
            .filter(|at| is_capture(at) && active[*at])
            .map(Role::Sum),
    );
    roles.extend(
        operands()
            .filter(|at| p.is_carried(*at))
            .map(|at| Role::Saved(p.input(at))),
    );
    roles.extend(operands().filter(|at| p.is_scanned(*at)).map(Role::Row));
    roles.extend((0..p.numbers).map(|_| Role::Number));
    let stacked = p.carried..site.given.len();
    roles.extend(
        stacked
            .filter(|k| site.given[*k].is_some())
            .map(Role::Given),
    );
    roles.extend(heavy.iter().copied().map(Role::Saved));
    roles.extend(operands().filter(is_capture).map(Role::Capture));
    roles
}

/// Values of a step that cost more than elementwise work, change from step to step, and can be stacked.
fn heavy(p: &Repetition, symbols: Option<&Symbols>) -> Vec<ValueId> {
    let Some(symbols) = symbols else {
        return vec![];
    };
    let is_heavy = |op: &Op| match op {
        Op::Composite(
            CompositeOp::Gelu(_)
            | CompositeOp::Swish(_)
            | CompositeOp::Swiglu(_)
            | CompositeOp::Rope(_),
        ) => false,
        op => matches!(
            op.class(),
            OpClass::Contraction
                | OpClass::Composite
                | OpClass::Control
                | OpClass::Reduction
                | OpClass::Indexed
                | OpClass::Host
        ),
    };
    let mut inside: FxHashSet<Sym> = FxHashSet::default();
    for (_, node) in p.body.nodes() {
        inside.extend(node.op.binds());
    }
    for v in p.body.inputs() {
        p.body.ty(*v).for_each_dim(&mut |d| {
            d.for_each_sym(&mut |s| {
                inside.insert(s.clone());
            })
        });
    }
    let can_be_stacked = |v: &ValueId| {
        let mut known = p.body.ty(*v).as_tensor().is_some();
        p.body.ty(*v).for_each_dim(&mut |d| {
            // A symbol of the body's own inputs is known outside by another name or by its own.
            d.for_each_sym(&mut |s| {
                known &= !inside.contains(s) || symbols.contains_key(s) || of_inputs(p, s)
            });
        });
        known
    };
    let order: Vec<NodeId> = p.body.nodes().map(|(id, _)| id).collect();
    let changing = (p.operands()).filter(|at| p.is_carried(*at) || p.is_scanned(*at));
    let inputs: Vec<ValueId> = (changing.map(|at| p.input(at)))
        .chain(p.body.inputs()[..p.numbers].iter().copied())
        .collect();
    let changing = following(&p.body, &order, &inputs);
    let nodes = p.body.nodes().filter(|(_, node)| is_heavy(&node.op));
    let values = nodes.flat_map(|(_, node)| node.results.iter().copied());
    values
        .filter(|v| changing.contains(v) && can_be_stacked(v))
        .collect()
}

/// Whether a symbol is one of the body's inputs, bound from there.
fn of_inputs(p: &Repetition, sym: &Sym) -> bool {
    let mut found = false;
    for v in p.body.inputs() {
        p.body
            .ty(*v)
            .for_each_dim(&mut |d| found |= d.as_sym() == Some(sym));
    }
    found
}

/// Values of any type that depend on one of `from`.
fn following(graph: &Graph, order: &[NodeId], from: &[ValueId]) -> FxHashSet<ValueId> {
    let mut found: FxHashSet<ValueId> = from.iter().copied().collect();
    for id in order {
        let node = graph.node(*id);
        if node.operands.iter().any(|v| found.contains(v)) {
            found.extend(node.results.iter().copied());
        }
    }
    found
}
