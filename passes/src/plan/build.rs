//! Builds the plan: walks the graph in order, gives every stored value a slot, and turns units, host nodes, control
//! flow and effects into steps. Transfers are inserted where a step needs a value from another device.

use super::{DeviceId, Once, Plan, Slot, SlotId, Step, Storage, once, require};
use crate::place::Place;
use crate::{Compiled, Context, Feedback, Result, Work, compile_in};
use cupola_ir::kernel::{Access, Unit};
use cupola_ir::ops::CoreOp;
use cupola_ir::{CompositeOp, DType, Dim, Graph, NodeId, Op, Sym, ValueId, ValueType};
use rustc_hash::{FxHashMap, FxHashSet};
use std::ops::Range;

pub(crate) fn build(work: &mut Work, context: &Context) -> Result<()> {
    let mut builder = Builder {
        graph: &work.graph,
        work,
        context,
        plan: Plan::default(),
        slots: FxHashMap::default(),
        homes: FxHashMap::default(),
        units: FxHashMap::default(),
        states: vec![],
        required: 0,
        composites: vec![],
        outer: None,
        begun: vec![],
    };
    for (at, unit) in work.units.iter().enumerate() {
        builder.units.insert(work.graph.value(unit.launch).node, at);
    }
    let mut plan = builder.run()?;
    super::inplace::reuse(&mut plan, &work.units, context);
    work.plan = plan;
    Ok(())
}

struct Builder<'a> {
    graph: &'a Graph,
    work: &'a Work,
    context: &'a Context<'a>,
    plan: Plan,
    slots: FxHashMap<(ValueId, DeviceId), SlotId>,
    /// Device on which a value was made.
    homes: FxHashMap<ValueId, DeviceId>,
    units: FxHashMap<NodeId, usize>,
    states: Vec<SlotId>,
    /// Nodes before this one have their requirements among the steps.
    required: usize,
    composites: require::Composites,
    /// Symbols for regions, once one is compiled.
    outer: Option<FxHashSet<Sym>>,
    /// Collectives that were begun and not waited for, in order.
    begun: Vec<NodeId>,
}

impl Builder<'_> {
    fn run(mut self) -> Result<Plan> {
        let primary = self.context.options.device;
        self.place_inputs();
        for (id, node) in self.graph.nodes() {
            self.require(id);
            let needed = |v: &ValueId| self.work.fusion.needed[v.index()];
            match self.work.places.of[id.index()] {
                Place::Leaf => {}
                Place::Kernel(_) | Place::Library { .. } => {
                    if let Some(unit) = self.units.remove(&id) {
                        self.launch(unit);
                        self.launch_beside(id, unit);
                    }
                }
                Place::Host => {
                    if node.results.iter().any(needed) || !node.op.binds().is_empty() {
                        self.host(id);
                    }
                }
                Place::Control => self.control(id)?,
                Place::Effect => self.effect(id),
            }
        }
        while let Some(id) = self.begun.first() {
            self.wait_for(*id);
        }
        let end = self.plan.steps.len();
        let outputs: Vec<ValueId> = self.graph.outputs().iter().map(|(_, v)| *v).collect();
        for (position, v) in outputs.into_iter().enumerate() {
            // A constant that the host has to look at.
            let decides = position < self.context.feedback.decisions;
            let default = if decides { DeviceId::HOST } else { primary };
            let device = self.home(v, default);
            let slot = self.slot(v, device);
            self.plan.outputs.push(slot);
        }
        // Copies of outputs come last; outputs and states live to the end.
        let steps = self.plan.steps.len();
        debug_assert!(steps >= end);
        for slot in self.plan.outputs.clone() {
            self.touch(slot, steps);
        }
        for slot in self.states.clone() {
            self.touch(slot, steps);
        }
        Ok(self.plan)
    }

    /// What must hold for a node, once.
    fn require(&mut self, id: NodeId) {
        if id.index() < self.required {
            return;
        }
        self.required = id.index() + 1;
        for that in require::of(self.graph, id, &mut self.composites) {
            self.plan.steps.push(Step::Require { node: id, that });
        }
    }

    /// After the launch of a chain of small steps, which leaves threads idle: launches the chains that follow and do not
    /// depend on it, to run at the same time. Both directions of a recurrent layer are such chains.
    fn launch_beside(&mut self, id: NodeId, unit: usize) {
        if !self.is_chain(unit) {
            return;
        }
        let device = self.work.units[unit].placed.device;
        let made = self.made_by(unit);
        let start = self.step() - 1;
        let later = self.graph.nodes().skip(id.index() + 1).map(|(id, _)| id);
        // Host work and effects may bind what later units need.
        let later = later.take_while(|id| {
            let place = &self.work.places.of[id.index()];
            matches!(
                place,
                Place::Leaf | Place::Kernel(_) | Place::Library { .. }
            )
        });
        let beside: Vec<(NodeId, usize)> = later
            .filter_map(|id| Some((id, *self.units.get(&id)?)))
            .filter(|(_, unit)| self.is_chain(*unit) && self.is_ready(*unit, device, &made))
            .collect();
        let Some((last, _)) = beside.last() else {
            return;
        };
        let launch = self.plan.steps.pop();
        let nodes = self.graph.nodes().map(|(id, _)| id);
        let nodes = nodes.skip(id.index() + 1).take(last.index() - id.index());
        nodes.for_each(|id| self.require(id));
        let moved = self.step() - start;
        self.plan.steps.extend(launch);
        for (id, unit) in beside {
            self.units.remove(&id);
            self.launch(unit);
        }
        let group = start + moved..self.step();
        self.hold(start, group.clone());
        self.plan.concurrent.push(group);
    }

    fn is_chain(&self, unit: usize) -> bool {
        match &self.work.units[unit].placed.unit {
            Unit::Library(unit) => matches!(unit.op, Op::Composite(CompositeOp::Recurrent(_))),
            Unit::Loops(_) => false,
        }
    }

    /// Whether all that a unit reads is there, on its device, without what is made only now.
    fn is_ready(&self, unit: usize, device: DeviceId, made: &[ValueId]) -> bool {
        let lowered = &self.work.units[unit];
        let accesses = lowered.placed.unit.accesses();
        let reads = lowered.buffers.iter().zip(accesses);
        let mut reads = reads.filter(|(_, access)| *access == Access::Read);
        let is_there = |v: ValueId| self.is_made(v, device) && !made.contains(&self.base(v));
        lowered.placed.device == device && reads.all(|(v, _)| is_there(*v))
    }

    /// The values that have the memory which a unit writes.
    fn made_by(&self, unit: usize) -> Vec<ValueId> {
        let lowered = &self.work.units[unit];
        let accesses = lowered.placed.unit.accesses();
        let writes = lowered.buffers.iter().zip(accesses);
        let writes = writes.filter(|(_, access)| *access != Access::Read);
        writes.map(|(v, _)| self.base(*v)).collect()
    }

    fn is_made(&self, v: ValueId, device: DeviceId) -> bool {
        let v = self.resolve(v);
        let is_leaf = || {
            let op = self.graph.op_of(v);
            matches!(op, Op::Core(CoreOp::Param(_) | CoreOp::Const(_)))
        };
        let is_part = || {
            let base = self.alias(v).map(|(base, _)| *base);
            base.is_some_and(|base| self.is_made(base, device))
        };
        self.slots.contains_key(&(v, device)) || is_leaf() || is_part()
    }

    /// Keeps whatever the launches of a group touch alive while any of them runs. What the first of them writes was
    /// numbered `written`.
    fn hold(&mut self, written: usize, group: Range<usize>) {
        for slot in &mut self.plan.slots {
            if slot.first >= written && slot.storage == Storage::Planned {
                slot.first = group.start;
            }
            if slot.last >= written {
                slot.last = group.end - 1;
            }
        }
    }

    /// Every input has a slot on the device that uses it first; unused ones on the host.
    fn place_inputs(&mut self) {
        for (position, v) in self.graph.inputs().iter().enumerate() {
            let device = if is_memory(self.graph.ty(*v)) {
                self.first_user(*v)
            } else {
                DeviceId::HOST
            };
            let slot = self.new_slot(*v, device, Storage::Input(position), 0);
            self.plan.inputs.push(slot);
        }
    }

    fn first_user(&self, v: ValueId) -> DeviceId {
        let uses = |buffer: &ValueId| self.base(*buffer) == v;
        let users = self.work.units.iter();
        let users = users.filter(|u| u.buffers.iter().any(uses));
        users
            .map(|u| u.placed.device)
            .next()
            .unwrap_or(DeviceId::HOST)
    }

    fn new_slot(&mut self, v: ValueId, device: DeviceId, storage: Storage, first: usize) -> SlotId {
        let id = SlotId(self.plan.slots.len() as u32);
        let ty = self.graph.ty(v).clone();
        let storage = if storage == Storage::Planned && !is_memory(&ty) {
            Storage::HostValue
        } else {
            storage
        };
        self.plan.slots.push(Slot {
            value: v,
            ty,
            device,
            storage,
            first,
            last: first,
        });
        self.slots.insert((v, device), id);
        self.homes.entry(v).or_insert(device);
        id
    }

    fn step(&self) -> usize {
        self.plan.steps.len()
    }

    fn touch(&mut self, slot: SlotId, step: usize) {
        let mut at = slot;
        loop {
            let s = &mut self.plan.slots[at.0 as usize];
            s.last = s.last.max(step);
            match s.storage {
                Storage::Alias { of, .. } => at = of,
                _ => return,
            }
        }
    }

    /// The value that holds the elements of `v`: through symbol bindings and state writes.
    fn resolve(&self, v: ValueId) -> ValueId {
        let mut v = v;
        while let Op::Core(CoreOp::BindDim(_) | CoreOp::WriteState(_)) = self.graph.op_of(v) {
            v = self.graph.def(v).operands[0];
        }
        v
    }

    /// The value in whose memory this one lies, and where.
    fn alias(&self, v: ValueId) -> Option<&(ValueId, Dim)> {
        self.work.fusion.aliases.get(&v)
    }

    /// The value that has the memory of `v`.
    fn base(&self, v: ValueId) -> ValueId {
        let v = self.resolve(v);
        self.alias(v).map_or(v, |(base, _)| self.base(*base))
    }

    /// Device that a value is on.
    fn home(&self, v: ValueId, default: DeviceId) -> DeviceId {
        let v = self.resolve(v);
        if let Some(home) = self.homes.get(&v) {
            return *home;
        }
        if let Some((base, _)) = self.alias(v) {
            return self.home(*base, default);
        }
        default
    }

    /// The slot of a value on a device; copies it there when it is elsewhere.
    fn slot(&mut self, v: ValueId, device: DeviceId) -> SlotId {
        let v = self.resolve(v);
        if let Some(known) = self.slots.get(&(v, device)) {
            return *known;
        }
        let maker = self.graph.value(v).node;
        if self.begun.contains(&maker) {
            self.wait_for(maker);
            return self.slot(v, device);
        }
        let primary = self.context.options.device;
        match self.graph.op_of(v) {
            Op::Core(CoreOp::Param(p)) => {
                return self.new_slot(v, device, Storage::Param(p.name.clone()), 0);
            }
            Op::Core(CoreOp::Const(p)) => {
                let storage = Storage::Const(p.value.clone());
                return self.new_slot(v, device, storage, 0);
            }
            Op::Core(CoreOp::ReadState(p)) if !self.homes.contains_key(&v) => {
                let storage = Storage::State(p.slot.clone());
                let slot = self.new_slot(v, primary, storage, 0);
                self.states.push(slot);
                if device == primary {
                    return slot;
                }
            }
            _ => {}
        }
        if let Some((base, start)) = self.alias(v).cloned() {
            let of = self.slot(base, device);
            let (of, offset) = match &self.plan.slots[of.0 as usize].storage {
                Storage::Alias { of, offset } => (*of, offset.clone() + start),
                _ => (of, start),
            };
            let first = self.plan.slots[of.0 as usize].first;
            return self.new_slot(v, device, Storage::Alias { of, offset }, first);
        }
        let Some(home) = self.homes.get(&v).copied() else {
            unreachable!("bug: {v} is used on device {} but was never made", device.0)
        };
        let from = self.slot(v, home);
        let step = self.step();
        self.touch(from, step);
        let to = self.new_slot(v, device, Storage::Planned, step);
        self.plan.steps.push(Step::Transfer { from, to });
        to
    }

    fn operands(&mut self, id: NodeId, device: DeviceId) -> Vec<SlotId> {
        let operands = self.graph.node(id).operands.clone();
        let slots: Vec<SlotId> = operands.iter().map(|v| self.slot(*v, device)).collect();
        let step = self.step();
        slots.iter().for_each(|s| self.touch(*s, step));
        slots
    }

    fn results(&mut self, id: NodeId, device: DeviceId) -> Vec<SlotId> {
        let step = self.step();
        let results = self.graph.node(id).results.clone();
        results
            .iter()
            .map(|v| self.new_slot(*v, device, Storage::Planned, step))
            .collect()
    }

    fn launch(&mut self, unit: usize) {
        let lowered = &self.work.units[unit];
        let device = lowered.placed.device;
        let accesses = lowered.placed.unit.accesses();
        let mut buffers = vec![None; lowered.buffers.len()];
        // Operands first: they may bring transfers, which come before this step.
        for (k, v) in lowered.buffers.iter().enumerate() {
            if accesses[k] == Access::Read {
                buffers[k] = Some(self.slot(*v, device));
            }
        }
        let on_host = [device, self.context.options.device] == [DeviceId::HOST; 2];
        if on_host && once::is_once(self.graph, &self.plan, lowered, &buffers) {
            return self.once(unit, &buffers);
        }
        let step = self.step();
        for (k, v) in lowered.buffers.iter().enumerate() {
            let slot = match buffers[k] {
                Some(slot) => slot,
                None => self.new_slot(*v, device, Storage::Planned, step),
            };
            self.touch(slot, step);
            buffers[k] = Some(slot);
        }
        let buffers = buffers.into_iter().flatten().collect();
        self.plan.steps.push(Step::Launch { unit, buffers });
    }

    /// A unit that is run when the plan is loaded, given the slots that it reads.
    fn once(&mut self, unit: usize, operands: &[Option<SlotId>]) {
        let by = self.plan.once.len();
        let mut result = None;
        let mut buffers = vec![];
        for (slot, v) in operands.iter().zip(&self.work.units[unit].buffers) {
            let made = || self.new_slot(*v, DeviceId::HOST, Storage::Made { by }, 0);
            buffers.push(slot.unwrap_or_else(|| *result.get_or_insert_with(made)));
        }
        let Some(result) = result else {
            unreachable!("bug: a unit without a result")
        };
        self.plan.once.push(Once {
            unit,
            buffers,
            result,
        });
    }

    fn host(&mut self, id: NodeId) {
        let operands = self.operands(id, DeviceId::HOST);
        let results = self.results(id, DeviceId::HOST);
        self.plan.steps.push(Step::Host {
            node: id,
            operands,
            results,
        });
    }

    fn control(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let Op::Core(op) = &node.op else {
            unreachable!("bug: {} has no regions", node.op.name())
        };
        let primary = self.context.options.device;
        let operands = node.operands.clone().into_iter().enumerate();
        let operands: Vec<SlotId> = operands
            .map(|(position, v)| match position < op.decisions() {
                true => self.slot(v, DeviceId::HOST),
                false => self.slot(v, self.home_of_operand(v, primary)),
            })
            .collect();
        let step = self.step();
        operands.iter().for_each(|s| self.touch(*s, step));
        let outer = match &self.outer {
            Some(outer) => outer.clone(),
            None => self.outer.insert(self.symbols()).clone(),
        };
        let inner = Context {
            targets: self.context.targets,
            options: self.context.options,
            outer,
            depth: self.context.depth + 1,
            feedback: Feedback::of(op),
        };
        let regions = node.op.regions().into_iter().cloned();
        let bodies = regions
            .map(|g| compile_in(g, &inner))
            .collect::<Result<Vec<Compiled>>>()?;
        let given = bodies.first().map(|body| &body.plan);
        let given = given.map_or(vec![], |plan| {
            let devices = plan.outputs.iter().map(|s| plan.slots[s.0 as usize].device);
            devices.skip(inner.feedback.decisions).collect()
        });
        let results = node.results.iter().enumerate().map(|(at, v)| {
            let device = given.get(at).copied().unwrap_or(DeviceId::HOST);
            self.new_slot(*v, device, Storage::Planned, step)
        });
        let results = results.collect();
        self.plan.steps.push(Step::Control {
            node: id,
            operands,
            results,
            bodies,
        });
        Ok(())
    }

    /// Where a region is given a value: where it is, or on the primary device what is nowhere yet.
    fn home_of_operand(&self, v: ValueId, primary: DeviceId) -> DeviceId {
        match is_memory(self.graph.ty(v)) {
            true => self.home(v, primary),
            false => DeviceId::HOST,
        }
    }

    /// Symbols that regions may use: those of this graph and of the graphs around it.
    fn symbols(&self) -> FxHashSet<Sym> {
        let mut all = self.context.outer.clone();
        for (_, node) in self.graph.nodes() {
            // What later nodes bind is never used inside: the verifier has seen to that.
            all.extend(node.op.binds());
            let mut add = |d: &Dim| {
                d.for_each_sym(&mut |s| {
                    all.insert(s.clone());
                })
            };
            for v in &node.results {
                self.graph.ty(*v).for_each_dim(&mut add);
            }
        }
        all
    }

    /// Waits for a collective that was begun: before the first step that needs a result, or at the end.
    fn wait_for(&mut self, id: NodeId) {
        self.begun.retain(|begun| *begun != id);
        let results = self.results(id, DeviceId::HOST);
        let step = self.step();
        results.iter().for_each(|s| self.touch(*s, step));
        self.plan.steps.push(Step::Await { node: id, results });
    }

    fn effect(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        match &node.op {
            Op::Core(CoreOp::BindDim(p)) => {
                let from = self.slot(node.operands[0], DeviceId::HOST);
                let step = self.step();
                self.touch(from, step);
                self.plan.steps.push(Step::Bind {
                    sym: p.sym.clone(),
                    from,
                    min: p.min,
                });
            }
            Op::Core(CoreOp::WriteState(p)) => {
                let from = self.slot(node.operands[0], self.context.options.device);
                self.states.push(from);
                self.plan.steps.push(Step::WriteState {
                    slot: p.slot.clone(),
                    from,
                });
            }
            Op::Core(CoreOp::Collective(_)) => {
                let primary = self.context.options.device;
                let operands = node.operands.clone().into_iter();
                let operands: Vec<SlotId> = operands
                    .map(|v| self.slot(v, self.home(v, primary)))
                    .collect();
                let step = self.step();
                operands.iter().for_each(|s| self.touch(*s, step));
                self.plan
                    .steps
                    .push(Step::Collective { node: id, operands });
                self.begun.push(id);
            }
            _ => unreachable!("bug: {} is no effect", node.op.name()),
        }
    }
}

/// Whether values of this type are bytes in a device's memory.
fn is_memory(ty: &ValueType) -> bool {
    ty.as_tensor().is_some_and(|t| t.dtype != DType::String)
}
