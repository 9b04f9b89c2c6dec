//! Runs plans in tests with the kernel interpreter, and compares with the graph interpreter.
#![allow(dead_code)]

pub mod kernels;
pub mod reference;

use cupola_ir::kernel::Unit;
use cupola_ir::target::{Aliasing, Claim, Target};
use cupola_ir::{Bindings, CoreOp, DType, Graph, Op, Scalar, Sym, TensorType};
use cupola_passes::plan::{check_packing, check_plan, pack, slot_sizes};
use cupola_passes::{Compiled, DeviceId, Level, MissCode, Options, SlotId, Step, Storage, compile};
use std::sync::{Arc, Mutex};

/// An element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum V {
    F(f64),
    I(i64),
}

impl V {
    pub fn f(self) -> f64 {
        match self {
            V::F(x) => x,
            V::I(x) => x as f64,
        }
    }
    pub fn i(self) -> i64 {
        match self {
            V::F(x) => x as i64,
            V::I(x) => x,
        }
    }
}

/// A dense tensor of test elements.
#[derive(Clone, Debug, PartialEq)]
pub struct T {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub v: Vec<V>,
}

pub fn target(claim: fn(&Op, &[&TensorType]) -> Claim) -> Target {
    Target {
        name: "test".into(),
        dtypes: vec![
            DType::F32,
            DType::F64,
            DType::I64,
            DType::I32,
            DType::U32,
            DType::Bool,
            DType::F16,
        ],
        scalars: Scalar::ALL.to_vec(),
        max_buffers: 32,
        alignment: 64,
        max_binding: u64::MAX,
        aliasing: Aliasing::Units,
        scatters_in_place: true,
        joins_in_turn: true,
        half_factors: false,
        claim,
    }
}

pub fn nothing(_: &Op, _: &[&TensorType]) -> Claim {
    Claim::No {
        reason: "test".into(),
    }
}

pub fn products(op: &Op, _: &[&TensorType]) -> Claim {
    match op {
        Op::Core(CoreOp::Contract(_)) => Claim::Yes {
            strided: true,
            epilogue: true,
            converts: true,
        },
        _ => nothing(op, &[]),
    }
}

/// A device beside the host with few dtypes and buffers.
pub fn small_device(claim: fn(&Op, &[&TensorType]) -> Claim) -> Target {
    Target {
        name: "device".into(),
        dtypes: vec![DType::F32, DType::I32, DType::U32, DType::Bool],
        max_buffers: 5,
        aliasing: Aliasing::None,
        scatters_in_place: false,
        joins_in_turn: false,
        half_factors: false,
        ..target(claim)
    }
}

pub fn everything(_: &Op, _: &[&TensorType]) -> Claim {
    Claim::Yes {
        strided: true,
        epilogue: true,
        converts: true,
    }
}

/// The graph after a pass, for a target that claims what `claim` says, and the near misses of the whole run.
pub fn after(
    graph: &Graph,
    pass: &'static str,
    claim: fn(&Op, &[&TensorType]) -> Claim,
) -> (Graph, Vec<String>) {
    let seen = Arc::new(Mutex::new(None));
    let store = seen.clone();
    let options = Options {
        verify: true,
        dump_after: Some(Arc::new(move |name: &str, g: &Graph| {
            if name == pass {
                *store.lock().unwrap() = Some(g.clone());
            }
        })),
        ..Options::default()
    };
    let t = target(claim);
    let c = compile(graph.clone(), &[&t], &options).expect("compiles");
    let near = c.misses.iter().filter(|m| m.code == MissCode::NearPattern);
    let near = near.map(|m| m.hint.clone()).collect();
    let g = seen.lock().unwrap().take();
    (g.expect("the pass ran"), near)
}

pub fn compiled(graph: &Graph, target: &Target) -> Compiled {
    compiled_for(graph, &[target], DeviceId::HOST)
}

pub fn compiled_for(graph: &Graph, targets: &[&Target], device: DeviceId) -> Compiled {
    compiled_at(Level::default(), graph, targets, device)
}

pub fn compiled_at(level: Level, graph: &Graph, targets: &[&Target], device: DeviceId) -> Compiled {
    let options = Options {
        level,
        device,
        verify: true,
        ..Options::default()
    };
    let c = compile(graph.clone(), targets, &options).expect("compiles");
    let wrong = check_plan(&c);
    assert!(wrong.is_empty(), "{wrong:?}\n{c:#?}");
    c
}

/// Runs a compiled graph with the kernel interpreter; its packing is checked beside.
pub fn run(c: &Compiled, inputs: &[T], syms: &[(&str, i64)]) -> Vec<T> {
    let mut bindings = Bindings::default();
    for (s, v) in syms {
        bindings.set(Sym::new(s), *v);
    }
    let sizes: Vec<u64> = slot_sizes(&c.plan, &bindings)
        .into_iter()
        .map(|s| s.expect("bound"))
        .collect();
    for device in [DeviceId::HOST, DeviceId(1)] {
        let packing = pack(&c.plan, device, &sizes, 64, 1 << 12);
        let wrong = check_packing(&c.plan, &packing, &sizes);
        assert!(wrong.is_empty(), "{wrong:?}");
    }
    let bindings_at = std::cell::RefCell::new(bindings.clone());
    let mut mem: Vec<Option<Vec<V>>> = vec![None; c.plan.slots.len()];
    // The slot that owns the memory, and where in it the elements are. An alias may hold elements of another type of
    // the same size.
    let place = |s: SlotId| -> (usize, std::ops::Range<usize>) {
        let slot = &c.plan.slots[s.0 as usize];
        let ty = slot.ty.as_tensor().unwrap();
        let len: usize = ty.shape(&bindings_at.borrow()).unwrap().iter().product();
        match &slot.storage {
            Storage::Alias { of, offset } => {
                let offset = offset.eval(&bindings_at.borrow()).unwrap() as usize;
                let first = offset / ty.dtype.size().max(1);
                (of.0 as usize, first..first + len)
            }
            _ => (s.0 as usize, 0..len),
        }
    };
    let fetch = |mem: &Vec<Option<Vec<V>>>, s: SlotId| -> Vec<V> {
        let (at, range) = place(s);
        mem[at].as_ref().expect("written")[range].to_vec()
    };
    for (i, s) in c.plan.slots.iter().enumerate() {
        match &s.storage {
            Storage::Input(k) => mem[i] = Some(inputs[*k].v.clone()),
            Storage::Const(t) => mem[i] = Some(reference::elements(t)),
            _ => {}
        }
    }
    let once = c.plan.once.iter().map(|once| Step::Launch {
        unit: once.unit,
        buffers: once.buffers.clone(),
    });
    let once: Vec<Step> = once.collect();
    for step in once.iter().chain(&c.plan.steps) {
        match step {
            Step::Launch { unit, buffers } => {
                let unit = &c.units[*unit].unit;
                let args: Vec<i64> = unit
                    .sizes()
                    .iter()
                    .map(|d| d.eval(&bindings).expect("bound"))
                    .collect();
                let mut bufs: Vec<Vec<V>> = vec![];
                for (s, access) in buffers.iter().zip(unit.accesses()) {
                    let slot = &c.plan.slots[s.0 as usize];
                    let shape = slot.ty.as_tensor().unwrap().shape(&bindings).unwrap();
                    let len: usize = shape.iter().product();
                    bufs.push(if access == cupola_ir::kernel::Access::Read {
                        let v = fetch(&mem, *s);
                        assert_eq!(v.len(), len);
                        v
                    } else {
                        vec![V::F(f64::NAN); len]
                    });
                }
                match unit {
                    Unit::Loops(k) => kernels::run(k, &args, &mut bufs),
                    Unit::Library(l) => kernels::run_library(l, &args, &mut bufs),
                }
                let written = buffers.iter().zip(bufs).zip(unit.accesses());
                for ((s, b), _) in written.filter(|(_, a)| *a != cupola_ir::kernel::Access::Read) {
                    match &c.plan.slots[s.0 as usize].storage {
                        Storage::Planned | Storage::Made { .. } => mem[s.0 as usize] = Some(b),
                        // A result over an operand takes its place.
                        Storage::Alias { .. } => {
                            let (at, range) = place(*s);
                            mem[at].as_mut().expect("written")[range].copy_from_slice(&b);
                        }
                        _ => {}
                    }
                }
            }
            Step::Host {
                node,
                operands,
                results,
            } => {
                let n = c.graph.node(*node);
                let xs: Vec<T> = operands
                    .iter()
                    .map(|s| {
                        let ty = c.plan.slots[s.0 as usize].ty.as_tensor().unwrap().clone();
                        T {
                            dtype: ty.dtype,
                            shape: ty.shape(&bindings).unwrap(),
                            v: fetch(&mem, *s),
                        }
                    })
                    .collect();
                let refs: Vec<&T> = xs.iter().collect();
                let types: Vec<_> = n.results.iter().map(|v| c.graph.ty(*v).clone()).collect();
                let out = reference::op(&n.op, &refs, &types, &mut bindings);
                bindings_at.borrow_mut().clone_from(&bindings);
                for (slot, t) in results.iter().zip(out) {
                    mem[slot.0 as usize] = Some(t.v);
                }
            }
            Step::Transfer { from, to } => {
                assert_eq!(
                    c.plan.slots[from.0 as usize].ty,
                    c.plan.slots[to.0 as usize].ty
                );
                mem[to.0 as usize] = Some(fetch(&mem, *from));
            }
            Step::Require { that, .. } => assert!(that.holds(&bindings), "{that}"),
            Step::Bind { sym, from, min } => {
                let v = fetch(&mem, *from)[0].i();
                assert!(v >= *min);
                bindings.set(sym.clone(), v);
                bindings_at.borrow_mut().set(sym.clone(), v);
            }
            other => panic!("not in these tests: {other:?}"),
        }
    }
    c.plan
        .outputs
        .iter()
        .map(|s| {
            let ty = c.plan.slots[s.0 as usize].ty.as_tensor().unwrap().clone();
            T {
                dtype: ty.dtype,
                shape: ty.shape(&bindings).unwrap(),
                v: fetch(&mem, *s),
            }
        })
        .collect()
}

/// Asserts that two tensors agree up to rounding.
pub fn close(got: &T, want: &T, what: &str) {
    assert_eq!(got.dtype, want.dtype, "{what}");
    assert_eq!(got.shape, want.shape, "{what}");
    assert_eq!(got.v.len(), want.v.len(), "{what}");
    for (i, (g, w)) in got.v.iter().zip(&want.v).enumerate() {
        let (g, w) = (g.f(), w.f());
        let same = g.is_nan() && w.is_nan()
            || g == w
            || (g - w).abs() <= 1e-4 * (1.0 + g.abs().max(w.abs()));
        assert!(same, "{what}: element {i} is {g}, should be {w}");
    }
}

/// Compiles and runs a graph and compares with the reference.
pub fn check(graph: &Graph, target: &Target, inputs: &[T], syms: &[(&str, i64)]) -> Compiled {
    check_compiled(compiled(graph, target), graph, inputs, syms)
}

/// Runs a compiled graph and compares with the reference.
pub fn check_compiled(c: Compiled, graph: &Graph, inputs: &[T], syms: &[(&str, i64)]) -> Compiled {
    let mut bindings = Bindings::default();
    for (s, v) in syms {
        bindings.set(Sym::new(s), *v);
    }
    let want = reference::run(graph, inputs, &mut bindings);
    let got = run(&c, inputs, syms);
    assert_eq!(got.len(), want.len());
    for (k, (g, w)) in got.iter().zip(&want).enumerate() {
        close(g, w, &format!("output {k} of {graph:#?}\n{:#?}", c.units));
    }
    c
}

/// Deterministic numbers.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) % n.max(1) as u64) as usize
    }
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> T {
        let len = shape.iter().product();
        let v = (0..len)
            .map(|_| match dtype {
                DType::Bool => V::I(self.below(2) as i64),
                d if d.is_int() => V::I(self.below(7) as i64 - 3),
                _ => V::F((self.below(4001) as f64 - 2000.0) / 1000.0),
            })
            .collect();
        T {
            dtype,
            shape: shape.to_vec(),
            v,
        }
    }
}
