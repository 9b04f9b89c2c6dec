//! The plan's checker: says what is wrong with a plan or a packing, from the definition of either and with none of the
//! code that made them.

use super::pack::owner;
use super::{Compiled, DeviceId, Packing, Plan, SlotId, Step, Storage};
use cupola_ir::Op;
use cupola_ir::kernel::Access;

/// What is wrong with a compiled graph's plan: a step that reads what was not written or is no longer alive, a buffer
/// on another device than its unit, an argument list of the wrong length, an alias of an alias.
pub fn check_plan(compiled: &Compiled) -> Vec<String> {
    let plan = &compiled.plan;
    let mut found = vec![];
    let mut written: Vec<bool> = plan
        .slots
        .iter()
        .map(|s| !matches!(s.storage, Storage::Planned | Storage::HostValue))
        .collect();
    for (i, s) in plan.slots.iter().enumerate() {
        if let Storage::Alias { of, .. } = s.storage {
            let base = &plan.slots[of.0 as usize];
            if matches!(base.storage, Storage::Alias { .. }) || base.device != s.device {
                found.push(format!(
                    "slot {i} is an alias of an alias or across devices"
                ));
            }
        }
    }
    for (at, step) in plan.steps.iter().enumerate() {
        let (reads, writes) = touched(compiled, step);
        for (slot, device) in reads {
            let own = owner(plan, slot);
            let s = &plan.slots[own.0 as usize];
            if !written[own.0 as usize] {
                found.push(format!(
                    "step {at} reads slot {} before it is written",
                    slot.0
                ));
            }
            if s.last < at || s.first > at {
                found.push(format!("step {at} reads slot {} outside its life", slot.0));
            }
            if device.is_some_and(|d| d != s.device) {
                found.push(format!("step {at} reads slot {} on another device", slot.0));
            }
        }
        for (slot, device) in writes {
            let own = owner(plan, slot);
            let s = &plan.slots[own.0 as usize];
            written[own.0 as usize] = true;
            if s.first > at || s.last < at {
                found.push(format!("step {at} writes slot {} outside its life", slot.0));
            }
            if device.is_some_and(|d| d != s.device) {
                found.push(format!(
                    "step {at} writes slot {} on another device",
                    slot.0
                ));
            }
        }
        match step {
            Step::Launch { unit, buffers } => {
                let accesses = compiled.units[*unit].unit.accesses();
                if accesses.len() != buffers.len() {
                    found.push(format!(
                        "step {at} gives {} of {} buffers",
                        buffers.len(),
                        accesses.len()
                    ));
                }
            }
            Step::Control { bodies, .. } => {
                for body in bodies {
                    found.extend(check_plan(body).into_iter().map(|f| format!("{at}/{f}")));
                }
            }
            _ => {}
        }
    }
    for group in &plan.concurrent {
        let touched: Vec<_> = (plan.steps[group.clone()].iter())
            .map(|step| touched(compiled, step))
            .collect();
        let owners =
            |t: &Touched| -> Vec<SlotId> { t.iter().map(|(s, _)| owner(plan, *s)).collect() };
        for (i, (_, writes)) in touched.iter().enumerate() {
            for own in owners(writes) {
                let others = touched.iter().enumerate().filter(|(k, _)| *k != i);
                let meets = |(_, (r, w)): (usize, &(Touched, Touched))| {
                    owners(r).contains(&own) || owners(w).contains(&own)
                };
                if others.into_iter().any(meets) {
                    found.push(format!(
                        "slot {} is touched by launches at the same time",
                        own.0
                    ));
                }
                let slot = &plan.slots[own.0 as usize];
                if slot.first > group.start || slot.last + 1 < group.end {
                    found.push(format!(
                        "slot {} dies while launches run beside its own",
                        own.0
                    ));
                }
            }
        }
    }
    for slot in &plan.outputs {
        let own = owner(plan, *slot);
        if !written[own.0 as usize] || plan.slots[own.0 as usize].last < plan.steps.len() {
            found.push(format!("output slot {} is not alive at the end", slot.0));
        }
    }
    found
}

type Touched = Vec<(SlotId, Option<DeviceId>)>;

/// Slots that a step reads and writes, with the device they must be on.
pub(crate) fn touched(compiled: &Compiled, step: &Step) -> (Touched, Touched) {
    let host = |s: &[SlotId]| s.iter().map(|s| (*s, Some(DeviceId::HOST))).collect();
    match step {
        Step::Launch { unit, buffers } => {
            let unit = &compiled.units[*unit];
            let accesses = unit.unit.accesses();
            let of = |read: bool| {
                let all = buffers.iter().zip(&accesses);
                all.filter(|(_, a)| match a {
                    Access::Read => read,
                    Access::Write => !read,
                    Access::ReadWrite => true,
                })
                .map(|(s, _)| (*s, Some(unit.device)))
                .collect()
            };
            (of(true), of(false))
        }
        Step::Host {
            operands, results, ..
        } => (host(operands), host(results)),
        Step::Control {
            node,
            operands,
            results,
            ..
        } => {
            let decisions = match &compiled.graph.node(*node).op {
                Op::Core(op) => op.decisions(),
                Op::Host(_) | Op::Composite(_) => 0,
            };
            let (decisions, others) = operands.split_at(decisions);
            let anywhere = |slots: &[SlotId]| slots.iter().map(|s| (*s, None)).collect::<Touched>();
            let mut reads: Touched = host(decisions);
            reads.extend(anywhere(others));
            (reads, anywhere(results))
        }
        Step::Transfer { from, to } => (vec![(*from, None)], vec![(*to, None)]),
        Step::Collective { operands, .. } => {
            (operands.iter().map(|s| (*s, None)).collect(), vec![])
        }
        Step::Await { results, .. } => (vec![], host(results)),
        Step::Bind { from, .. } => (host(&[*from]), vec![]),
        Step::Require { .. } => (vec![], vec![]),
        Step::WriteState { from, .. } => (vec![(*from, None)], vec![]),
    }
}

/// What is wrong with a packing: slots that are alive together and share bytes, or that leave their block.
pub fn check_packing(plan: &Plan, packing: &Packing, sizes: &[u64]) -> Vec<String> {
    let mut found = vec![];
    for (i, a) in packing.at.iter().enumerate() {
        let Some((block, offset)) = a else { continue };
        if offset + sizes[i] > packing.blocks[*block as usize] {
            found.push(format!("slot {i} leaves its block"));
        }
        for (k, b) in packing.at.iter().enumerate().skip(i + 1) {
            let Some((other, at)) = b else { continue };
            let (x, y) = (&plan.slots[i], &plan.slots[k]);
            let together = x.first <= y.last && y.first <= x.last;
            let apart = offset + sizes[i] <= *at || at + sizes[k] <= *offset;
            if other == block && together && !apart && sizes[i] > 0 && sizes[k] > 0 {
                found.push(format!(
                    "slots {i} and {k} share bytes while both are alive"
                ));
            }
        }
    }
    found
}
