//! Register allocation: linear scan over the instructions in their order.
//!
//! A value has one home for all its life, from its first to its last mention; what is alive when a loop starts and
//! mentioned in it stays alive to the loop's end. When registers run out, the value whose uses cost least goes to the stack, or
//! to the constants if it is one.

use super::code::{Class, Code, V, What};

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    Register(u8),
    /// Number of a stack slot of its class.
    Slot(u32),
    /// In the constants only.
    Pool,
    /// Never mentioned.
    None,
}

/// Registers that values may have, by class; what is missing is for the writer's own use.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    pub general: Vec<u8>,
    pub vector: Vec<u8>,
    pub mask: Vec<u8>,
}

impl Registers {
    fn of(&self, class: Class) -> &[u8] {
        match class {
            Class::General => &self.general,
            Class::Vector => &self.vector,
            Class::Mask => &self.mask,
        }
    }
}

/// The homes of all values.
#[derive(Debug)]
pub(super) struct Allocation {
    pub homes: Vec<Home>,
    /// Slots by class.
    pub slots: [u32; 3],
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    value: V,
    start: u32,
    end: u32,
    /// Mentions, each counted by the depth of its loop.
    weight: f32,
}

/// Finds homes.
pub(super) fn allocate(code: &Code, registers: &Registers) -> Allocation {
    let mut intervals = intervals(code);
    intervals.sort_by_key(|i| (i.start, i.value));
    let mut done = Allocation {
        homes: vec![Home::None; code.classes.len()],
        slots: [0; 3],
    };
    for class in [Class::General, Class::Vector, Class::Mask] {
        let own: Vec<Interval> = intervals
            .iter()
            .filter(|i| code.class(i.value) == class)
            .copied()
            .collect();
        scan(code, &own, registers.of(class), class, &mut done);
    }
    done
}

fn intervals(code: &Code) -> Vec<Interval> {
    let none = Interval {
        value: V(0),
        start: u32::MAX,
        end: 0,
        weight: 0.0,
    };
    let mut all = vec![none; code.classes.len()];
    let mut loops: Vec<(u32, Vec<V>)> = vec![];
    let mut factor = 1.0;
    let mut touch = |v: V, at: u32, weight: f32, loops: &mut Vec<(u32, Vec<V>)>| {
        let i = &mut all[v.0 as usize];
        i.value = v;
        i.start = i.start.min(at);
        i.end = i.end.max(at);
        i.weight += weight;
        // Alive when a loop starts: needed until it ends.
        for (start, kept) in loops.iter_mut().rev() {
            if i.start >= *start {
                break;
            }
            kept.push(v);
        }
    };
    for v in code.constants.keys() {
        touch(*v, 0, 0.0, &mut loops);
    }
    for (at, inst) in code.insts.iter().enumerate() {
        let at = 2 * at as u32;
        match inst.what {
            What::LoopStart => {
                loops.push((at, vec![]));
                factor *= 8.0;
            }
            What::LoopEnd => {
                factor /= 8.0;
                let (_, kept) = loops.pop().unwrap_or_default();
                for v in kept {
                    touch(v, at, 0.0, &mut loops);
                }
            }
            _ => {
                inst.for_each_use(&mut |v| touch(v, at, factor, &mut loops));
                if let Some(v) = inst.dst {
                    touch(v, at + 1, factor, &mut loops);
                }
            }
        }
    }
    for v in code.constants.keys() {
        // Reading a constant from memory is almost free.
        all[v.0 as usize].weight *= 0.3;
    }
    // What nobody mentions but as a constant has no place to be.
    all.retain(|i| i.start != u32::MAX && i.weight > 0.0);
    all
}

fn scan(code: &Code, all: &[Interval], registers: &[u8], class: Class, done: &mut Allocation) {
    let mut free: Vec<u8> = registers.iter().rev().copied().collect();
    let mut active: Vec<(Interval, u8)> = vec![];
    let mut spilled: Vec<Interval> = vec![];
    for i in all {
        active.retain(|(a, r)| {
            let alive = a.end >= i.start;
            if !alive {
                free.push(*r);
            }
            alive
        });
        let register = match preferred(code, i, done, &free) {
            Some(at) => Some(free.remove(at)),
            None => free.pop(),
        };
        let register = register.or_else(|| {
            let cheapest = (0..active.len())
                .min_by(|a, b| cost(&active[*a].0).total_cmp(&cost(&active[*b].0)))?;
            if cost(&active[cheapest].0) >= cost(i) {
                return None;
            }
            let (other, register) = active.swap_remove(cheapest);
            spilled.push(other);
            Some(register)
        });
        match register {
            Some(r) => {
                done.homes[i.value.0 as usize] = Home::Register(r);
                active.push((*i, r));
            }
            None => spilled.push(*i),
        }
    }
    place_spilled(code, spilled, class, done);
}

/// Cost of having a value in memory, for the length of its life.
fn cost(i: &Interval) -> f32 {
    i.weight / (i.end - i.start + 1) as f32
}

/// The register of a source that ends where this value begins, so that no copy is needed.
fn preferred(code: &Code, i: &Interval, done: &Allocation, free: &[u8]) -> Option<usize> {
    if i.start & 1 == 0 {
        return None;
    }
    let mut found = None;
    code.insts[i.start as usize / 2].for_each_use(&mut |v| {
        if let Home::Register(r) = done.homes[v.0 as usize]
            && code.class(v) == code.class(i.value)
            && found.is_none()
        {
            found = free.iter().position(|f| *f == r);
        }
    });
    found
}

/// Stack slots, shared by values that do not live together.
fn place_spilled(code: &Code, mut spilled: Vec<Interval>, class: Class, done: &mut Allocation) {
    spilled.sort_by_key(|i| (i.start, i.value));
    let mut ends: Vec<u32> = vec![];
    for i in spilled {
        let home = &mut done.homes[i.value.0 as usize];
        if code.constants.contains_key(&i.value) {
            *home = Home::Pool;
            continue;
        }
        let slot = ends
            .iter()
            .position(|end| *end < i.start)
            .unwrap_or_else(|| {
                ends.push(0);
                ends.len() - 1
            });
        ends[slot] = i.end;
        *home = Home::Slot(slot as u32);
    }
    done.slots[class as usize] = ends.len() as u32;
}
