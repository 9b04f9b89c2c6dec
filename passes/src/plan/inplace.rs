//! Writes a result over an operand that nobody reads afterwards, where the device allows it: the result becomes an alias of
//! the operand's slot.
//!
//! Rule for kernels: the operand is another kernel's result, and this one reads it only at the element that it writes, so
//! that no element is needed after it was overwritten, by whatever thread. Each result of a kernel may lie over an operand of
//! its own.
//!
//! Rule for states: what a kernel makes of a state element by element, or what is scattered into it, and becomes that state's
//! next value, is written where the state is, unless something needs the old value later. Such states are
//! [`Plan::overwritten`]. Devices may have the one and not the other ([`cupola_ir::target::Target`]): a scatter need not read
//! what it writes over.

use super::pack::{is_packed, owner};
use super::{Plan, SlotId, Step, Storage};
use crate::Context;
use crate::lower::LoweredUnit;
use cupola_ir::kernel::{Access, BufferId, Kernel, Store, Unit};
use cupola_ir::ops::CoreOp;
use cupola_ir::target::Aliasing;
use cupola_ir::{Dim, Op};

/// Turns results into aliases, step by step.
pub(super) fn reuse(plan: &mut Plan, units: &[LoweredUnit], context: &Context) {
    let mut known = Known::of(plan);
    for at in 0..plan.steps.len() {
        let Step::Launch { unit, buffers } = &plan.steps[at] else {
            continue;
        };
        let placed = &units[*unit].placed;
        let target = context.target(placed.device);
        match &placed.unit {
            Unit::Loops(kernel) if target.aliasing != Aliasing::None => {
                let buffers = buffers.clone();
                let own: Vec<usize> = (0..buffers.len()).collect();
                known.reuse(plan, &Arguments(kernel, &own), &buffers, at);
            }
            Unit::Library(call)
                if target.scatters_in_place && matches!(call.op, Op::Core(CoreOp::Scatter(_))) =>
            {
                if let Some((result, state)) = known.scattered(plan, buffers, at) {
                    known.alias(plan, result, state, Dim::ZERO);
                    plan.overwritten.push(state);
                }
            }
            Unit::Library(call) if target.aliasing == Aliasing::Units => {
                let Some(kernel) = &call.epilogue else {
                    continue;
                };
                let buffers = buffers.clone();
                let result = call.operands.len();
                let others = result + call.results.len()..buffers.len();
                let own: Vec<usize> = [result, result].into_iter().chain(others).collect();
                known.reuse(plan, &Arguments(kernel, &own), &buffers, at);
            }
            Unit::Loops(_) | Unit::Library(_) => {}
        }
    }
}

/// A kernel, and the argument of its unit that each of its buffers is.
struct Arguments<'a>(&'a Kernel, &'a [usize]);

/// What would otherwise be looked for in all steps and slots again and again.
struct Known {
    /// Steps that read or write a slot, in order.
    steps: Vec<Vec<usize>>,
    /// Slots that are parts of a slot.
    aliases: Vec<Vec<SlotId>>,
}

impl Known {
    fn of(plan: &Plan) -> Known {
        let count = plan.slots.len();
        let mut known = Known {
            steps: vec![vec![]; count],
            aliases: vec![vec![]; count],
        };
        for (at, step) in plan.steps.iter().enumerate() {
            mentioned(step, |slot| known.steps[slot.0 as usize].push(at));
        }
        for (at, slot) in plan.slots.iter().enumerate() {
            if let Storage::Alias { of, .. } = &slot.storage {
                known.aliases[of.0 as usize].push(SlotId(at as u32));
            }
        }
        known
    }

    /// The slot of a scatter's result that becomes the next value of the state that it is scattered into, and that state's
    /// slot.
    fn scattered(&self, plan: &Plan, buffers: &[SlotId], at: usize) -> Option<(SlotId, SlotId)> {
        let (data, result) = (*buffers.first()?, *buffers.last()?);
        let alone = !(buffers[1..].iter()).any(|slot| owner(plan, *slot) == data);
        (alone && self.succeeds(plan, data, result, at)).then_some((result, data))
    }

    /// Whether a result of a step is the next value of a state, whose old value nothing needs after it.
    fn succeeds(&self, plan: &Plan, state: SlotId, result: SlotId, at: usize) -> bool {
        let Storage::State(name) = &plan.slots[state.0 as usize].storage else {
            return false;
        };
        let is_old = |slot: &SlotId| owner(plan, *slot) == state;
        let last = |slot: &SlotId| self.steps[slot.0 as usize].last().copied();
        let mut old = self.aliases[state.0 as usize].iter().chain([&state]);
        let needed_later = old.any(|slot| last(slot) > Some(at)) || plan.outputs.iter().any(is_old);
        let becomes = |step: &usize| matches!(&plan.steps[*step], Step::WriteState { slot, from } if slot == name && *from == result);
        let planned = plan.slots[result.0 as usize].storage == Storage::Planned;
        let written = || self.steps[result.0 as usize].iter().any(becomes);
        planned && !needed_later && written()
    }

    /// Puts results of a launch over its operands.
    fn reuse(&mut self, plan: &mut Plan, of: &Arguments, buffers: &[SlotId], at: usize) {
        for store in of.0.last_stores() {
            let Some((result, owner, offset)) = self.overwritten(plan, of, store, buffers, at)
            else {
                continue;
            };
            self.alias(plan, result, owner, offset);
            if matches!(plan.slots[owner.0 as usize].storage, Storage::State(_)) {
                plan.overwritten.push(owner);
                plan.commits.get_or_insert(at);
            }
        }
    }

    /// A result's slot, and the slot and byte offset of the operand it can lie over.
    fn overwritten(
        &self,
        plan: &Plan,
        Arguments(kernel, arguments): &Arguments,
        store: &Store,
        buffers: &[SlotId],
        at: usize,
    ) -> Option<(SlotId, SlotId, Dim)> {
        let written = arguments[store.buffer.0 as usize];
        let result = buffers[written];
        // A library kernel would have to keep what it sums elsewhere.
        let is_sum = (arguments.iter()).filter(|a| **a == written).count() > 1;
        let packed = is_packed(plan, result) && !is_sum;
        (0..arguments.len()).find_map(|k| {
            let b = arguments[k];
            let of = owner(plan, buffers[b]);
            let slot = &plan.slots[of.0 as usize];
            // What the host hands over may lie in memory that is not ours to write.
            let launched = || matches!(plan.steps[slot.first], Step::Launch { .. });
            let dies = packed && is_packed(plan, of) && slot.last == at && launched();
            let alone = (buffers.iter().enumerate()).all(|(k, s)| k == b || owner(plan, *s) != of);
            let offset = match &plan.slots[buffers[b].0 as usize].storage {
                Storage::Alias { offset, .. } => offset.clone(),
                _ => Dim::ZERO,
            };
            let free = dies || self.succeeds(plan, of, result, at);
            let is_read = kernel.buffers[k].access == Access::Read;
            let over = || is_read && kernel.writes_over(store, BufferId(k as u32));
            (b != written && free && alone && over()).then_some((result, of, offset))
        })
    }

    /// Makes a result a part of another slot, and with it what was a part of the result.
    fn alias(&mut self, plan: &mut Plan, result: SlotId, of: SlotId, offset: Dim) {
        let last = plan.slots[result.0 as usize].last;
        let parts = std::mem::take(&mut self.aliases[result.0 as usize]);
        for part in &parts {
            if let Storage::Alias {
                of: base,
                offset: own,
            } = &mut plan.slots[part.0 as usize].storage
            {
                *base = of;
                *own = own.clone() + offset.clone();
            }
        }
        self.aliases[of.0 as usize].extend(parts);
        self.aliases[of.0 as usize].push(result);
        plan.slots[result.0 as usize].storage = Storage::Alias { of, offset };
        let owner = &mut plan.slots[of.0 as usize];
        owner.last = owner.last.max(last);
    }
}

/// The slots that a step reads or writes.
fn mentioned(step: &Step, mut each: impl FnMut(SlotId)) {
    match step {
        Step::Launch { buffers, .. } => buffers.iter().copied().for_each(each),
        Step::Host {
            operands, results, ..
        }
        | Step::Control {
            operands, results, ..
        } => operands.iter().chain(results).copied().for_each(each),
        Step::Transfer { from, to } => [*from, *to].into_iter().for_each(each),
        Step::Collective { operands: all, .. } | Step::Await { results: all, .. } => {
            all.iter().copied().for_each(each);
        }
        Step::Bind { from, .. } | Step::WriteState { from, .. } => each(*from),
        Step::Require { .. } => {}
    }
}
