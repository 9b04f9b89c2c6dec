//! Units with several results: what is joined, what is not, and that they compute what the graphs mean.

mod support;

use cupola_ir::kernel::{Access, Unit};
use cupola_ir::ops::*;
use cupola_ir::{DType, Dim, Graph, Scalar, StateSlot, Tensor, TensorType, ValueId};
use cupola_passes::{Compiled, DeviceId, Step, Storage};
use support::*;

fn f32s(dims: &[Dim]) -> TensorType {
    TensorType::new(DType::F32, dims.to_vec())
}

fn rows() -> [Dim; 2] {
    [Dim::sym("n"), Dim::sym("m")]
}

/// Results of each unit.
fn written(c: &Compiled) -> Vec<usize> {
    let count = |accesses: Vec<Access>| accesses.iter().filter(|a| **a != Access::Read).count();
    c.units.iter().map(|u| count(u.unit.accesses())).collect()
}

/// Adam's update of `p` and its moments `m` and `v` by the gradient `d`.
fn adam(g: &mut Graph, [p, m, v, d]: [ValueId; 4]) -> [ValueId; 3] {
    let mut step = |f: Scalar, x: ValueId, y: ValueId| g.binary(f, x, y).unwrap();
    let ahead = step(Scalar::Sub, d, m);
    let square = step(Scalar::Mul, d, d);
    let change = step(Scalar::Sub, square, v);
    let (ahead, change) = (g.scale(ahead, 0.1).unwrap(), g.scale(change, 0.01).unwrap());
    let m = g.binary(Scalar::Add, m, ahead).unwrap();
    let v = g.binary(Scalar::Add, v, change).unwrap();
    let size = g.unary(Scalar::Abs, v).unwrap();
    let root = g.unary(Scalar::Sqrt, size).unwrap();
    let one = g.number_like(1.0, root).unwrap();
    let root = g.binary(Scalar::Add, root, one).unwrap();
    let by = g.binary(Scalar::Div, m, root).unwrap();
    [g.binary(Scalar::Sub, p, by).unwrap(), m, v]
}

/// A state that begins with zeros.
fn state(g: &mut Graph, name: &str, ty: &TensorType, shape: &[usize]) -> ValueId {
    let zeros = vec![0f32; shape.iter().product()];
    let slot = StateSlot {
        ty: ty.clone().into(),
        initial: Tensor::from_slice(shape, &zeros).unwrap(),
    };
    g.slots.insert(name.into(), slot);
    let read = ReadState {
        slot: name.into(),
        ty: ty.clone().into(),
    };
    g.one(read, &[]).unwrap()
}

fn inputs(count: usize, shape: &[usize]) -> Vec<T> {
    let mut rng = Rng(3);
    (0..count).map(|_| rng.tensor(DType::F32, shape)).collect()
}

#[test]
fn an_update_is_one_kernel() {
    let mut g = Graph::new("update");
    let given = ["p", "m", "v", "d"].map(|name| g.input(name, f32s(&rows())).unwrap());
    for (name, v) in ["p2", "m2", "v2"].into_iter().zip(adam(&mut g, given)) {
        g.output(name, v);
    }
    for (n, m) in [(3, 5), (1, 1), (0, 4), (2, 1)] {
        let x = inputs(4, &[n as usize, m as usize]);
        let c = check(&g, &target(nothing), &x, &[("n", n), ("m", m)]);
        assert_eq!(written(&c), [3]);
    }
    // A device that binds no more than five buffers takes it in parts.
    let (host, device) = (target(nothing), small_device(nothing));
    let c = compiled_for(&g, &[&host, &device], DeviceId(1));
    assert!(c.units.iter().all(|u| u.unit.accesses().len() <= 5));
    check_compiled(c, &g, &inputs(4, &[3, 5]), &[("n", 3), ("m", 5)]);
}

#[test]
fn states_are_updated_where_they_are() {
    for behind_product in [false, true] {
        let mut g = Graph::new("states");
        let ty = f32s(&[Dim::from(4usize), Dim::from(6usize)]);
        let names = ["p", "m", "v"];
        let old = names.map(|name| state(&mut g, name, &ty, &[4, 6]));
        let d = match behind_product {
            true => {
                let x = g.input("x", f32s(&[4usize.into(), Dim::sym("k")])).unwrap();
                let y = g.input("y", f32s(&[Dim::sym("k"), 6usize.into()])).unwrap();
                g.matmul(x, y).unwrap()
            }
            false => g.input("d", ty.clone()).unwrap(),
        };
        let new = adam(&mut g, [old[0], old[1], old[2], d]);
        for (name, v) in names.into_iter().zip(new) {
            g.one(WriteState { slot: name.into() }, &[v]).unwrap();
        }
        let c = compiled(&g, &target(products));
        let units = match behind_product {
            true => vec![1, 3],
            false => vec![3],
        };
        assert_eq!(written(&c), units);
        assert_eq!(c.plan.overwritten.len(), 3);
        assert_eq!(c.plan.commits, Some(units.len() - 1));
        for step in &c.plan.steps {
            let Step::WriteState { slot, from } = step else {
                continue;
            };
            let Storage::Alias { of, .. } = &c.plan.slots[from.0 as usize].storage else {
                panic!("{slot} has memory of its own")
            };
            assert_eq!(
                c.plan.slots[of.0 as usize].storage,
                Storage::State(slot.clone())
            );
        }
    }
}

#[test]
fn an_old_state_that_is_needed_later_stays() {
    let mut g = Graph::new("later");
    let ty = f32s(&[Dim::from(4usize)]);
    let old = state(&mut g, "s", &ty, &[4]);
    let x = g.input("x", ty).unwrap();
    let new = g.binary(Scalar::Add, old, x).unwrap();
    g.one(WriteState { slot: "s".into() }, &[new]).unwrap();
    g.output("old", old);
    let c = compiled(&g, &target(nothing));
    assert_eq!((c.plan.overwritten.len(), c.plan.commits), (0, None));
}

#[test]
fn a_value_is_stored_by_the_unit_that_goes_on_with_it() {
    let mut g = Graph::new("on");
    let x = g.input("x", f32s(&rows())).unwrap();
    let y = g.unary(Scalar::Tanh, x).unwrap();
    let z = g.unary(Scalar::Sin, y).unwrap();
    g.output("y", y);
    g.output("z", z);
    let c = check(
        &g,
        &target(nothing),
        &inputs(1, &[3, 5]),
        &[("n", 3), ("m", 5)],
    );
    assert_eq!(written(&c), [2]);
    // At other elements it has to be in memory first.
    let mut g = Graph::new("turned");
    let x = g.input("x", f32s(&[Dim::sym("n"), Dim::sym("n")])).unwrap();
    let y = g.unary(Scalar::Tanh, x).unwrap();
    let turned = g.permute(y, &[1, 0]).unwrap();
    let z = g.binary(Scalar::Add, y, turned).unwrap();
    g.output("y", y);
    g.output("z", z);
    let c = check(&g, &target(nothing), &inputs(1, &[4, 4]), &[("n", 4)]);
    assert_eq!(written(&c), [1, 1]);
}

#[test]
fn what_only_the_unit_reads_is_not_stored() {
    let mut g = Graph::new("inside");
    let x = g.input("x", f32s(&rows())).unwrap();
    let y = g.unary(Scalar::Tanh, x).unwrap();
    let a = g.unary(Scalar::Sin, y).unwrap();
    let b = g.unary(Scalar::Cos, y).unwrap();
    g.output("a", a);
    g.output("b", b);
    let c = check(
        &g,
        &target(nothing),
        &inputs(1, &[3, 5]),
        &[("n", 3), ("m", 5)],
    );
    assert_eq!(written(&c), [2]);
}

#[test]
fn a_norm_keeps_its_rows() {
    let mut g = Graph::new("norm");
    let x = g.input("x", f32s(&rows())).unwrap();
    let mean = g.reduce_keep(ReduceKind::Sum, x, &[1]).unwrap();
    let mean = g.scale(mean, 0.2).unwrap();
    let centred = g.binary(Scalar::Sub, x, mean).unwrap();
    let square = g.binary(Scalar::Mul, centred, centred).unwrap();
    let spread = g.reduce_keep(ReduceKind::Sum, square, &[1]).unwrap();
    let one = g.number_like(1.0, spread).unwrap();
    let spread = g.binary(Scalar::Add, spread, one).unwrap();
    let spread = g.unary(Scalar::Sqrt, spread).unwrap();
    let y = g.binary(Scalar::Div, centred, spread).unwrap();
    for (name, v) in [("mean", mean), ("spread", spread), ("y", y)] {
        g.output(name, v);
    }
    for (n, m) in [(3, 5), (1, 1), (0, 4), (2, 1)] {
        let x = inputs(1, &[n as usize, m as usize]);
        let c = check(&g, &target(nothing), &x, &[("n", n), ("m", m)]);
        assert_eq!(written(&c), [3]);
    }
}

#[test]
fn sums_over_the_same_axes_are_taken_together() {
    let mut g = Graph::new("sums");
    let x = g.input("x", f32s(&rows())).unwrap();
    let y = g.input("y", f32s(&rows())).unwrap();
    let both = g.binary(Scalar::Mul, x, y).unwrap();
    let a = g.reduce(ReduceKind::Sum, x, &[0]).unwrap();
    let b = g.reduce(ReduceKind::Sum, both, &[0]).unwrap();
    g.output("a", a);
    g.output("b", b);
    let c = check(
        &g,
        &target(nothing),
        &inputs(2, &[3, 5]),
        &[("n", 3), ("m", 5)],
    );
    assert_eq!(written(&c), [2]);
    let Unit::Loops(k) = &c.units[0].unit else {
        panic!("loops")
    };
    assert_eq!(k.phases.len(), 2, "one loop for both sums");
}

#[test]
fn a_product_keeps_its_sums_beside_what_follows() {
    let mut g = Graph::new("product");
    let x = g.input("x", f32s(&rows())).unwrap();
    let w = g.input("w", f32s(&[Dim::sym("m"), Dim::sym("k")])).unwrap();
    let h = g.matmul(x, w).unwrap();
    let y = g.unary(Scalar::Tanh, h).unwrap();
    g.output("h", h);
    g.output("y", y);
    let mut rng = Rng(5);
    let x = [
        rng.tensor(DType::F32, &[3, 5]),
        rng.tensor(DType::F32, &[5, 4]),
    ];
    let c = check(&g, &target(products), &x, &[("n", 3), ("m", 5), ("k", 4)]);
    assert_eq!(written(&c), [2]);
}

#[test]
fn what_is_needed_in_between_keeps_units_apart() {
    let mut g = Graph::new("between");
    let x = g.input("x", f32s(&rows())).unwrap();
    let w = g.input("w", f32s(&[Dim::sym("m"), Dim::sym("m")])).unwrap();
    let a = g.unary(Scalar::Tanh, x).unwrap();
    let h = g.matmul(a, w).unwrap();
    // Reads x as the first kernel does, but needs what came of it.
    let b = g.binary(Scalar::Mul, x, h).unwrap();
    let b = g.unary(Scalar::Sin, b).unwrap();
    let c = g.binary(Scalar::Add, a, b).unwrap();
    g.output("c", c);
    let mut rng = Rng(6);
    let x = [
        rng.tensor(DType::F32, &[3, 5]),
        rng.tensor(DType::F32, &[5, 5]),
    ];
    check(&g, &target(nothing), &x, &[("n", 3), ("m", 5)]);
    check(&g, &target(products), &x, &[("n", 3), ("m", 5)]);
}

#[test]
fn a_sum_and_the_update_that_it_is_for_are_one_kernel() {
    let mut g = Graph::new("sum");
    let ty = f32s(&[Dim::from(6usize)]);
    let x = g.input("x", f32s(&[Dim::sym("k"), 6usize.into()])).unwrap();
    let d = g.reduce(ReduceKind::Sum, x, &[0]).unwrap();
    let old = ["p", "m", "v"].map(|name| state(&mut g, name, &ty, &[6]));
    let new = adam(&mut g, [old[0], old[1], old[2], d]);
    for (name, v) in ["p", "m", "v"].into_iter().zip(new) {
        g.one(WriteState { slot: name.into() }, &[v]).unwrap();
    }
    let c = compiled(&g, &target(nothing));
    assert_eq!(written(&c), [3]);
    assert_eq!(c.plan.overwritten.len(), 3);
}
