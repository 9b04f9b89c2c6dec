//! What is computed before it is needed, so that less is kept: that it is, when it is not, and that the meaning stays.

mod support;

use cupola_ir::composite::Gelu;
use cupola_ir::ops::ReduceKind;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, Scalar, TensorType, ValueId};
use cupola_passes::autodiff::gradients;
use cupola_passes::{Compiled, Step, Storage};
use support::*;

const WIDTH: usize = 5;

fn matrix(g: &mut Graph, name: &str, rows: Dim) -> ValueId {
    let ty = TensorType::new(DType::F32, [rows, Dim::from(WIDTH)]);
    g.input(name, ty).unwrap()
}

fn plus(g: &mut Graph, x: ValueId, c: f64) -> ValueId {
    let c = g.number(c, DType::F32).unwrap();
    g.binary(Scalar::Add, x, c).unwrap()
}

/// Two products with an activation `z (1 + erf z)` between them, and what a backward pass does with its slope: a third product
/// times `1 + erf z + z exp(-z^2)`. `late` makes something more of `z` after that.
fn network(late: fn(&mut Graph, ValueId, ValueId) -> ValueId) -> Graph {
    let mut g = Graph::new("network");
    let x = matrix(&mut g, "x", Dim::sym("n"));
    let weights = ["u", "v", "w"].map(|name| matrix(&mut g, name, WIDTH.into()));
    let z = g.matmul_nt(x, weights[0]).unwrap();
    let z = plus(&mut g, z, 0.5);
    let erf = g.unary(Scalar::Erf, z).unwrap();
    let share = plus(&mut g, erf, 1.0);
    let active = g.binary(Scalar::Mul, z, share).unwrap();
    let middle = g.matmul_nt(active, weights[1]).unwrap();
    let behind = g.matmul_nt(middle, weights[2]).unwrap();
    let square = g.binary(Scalar::Mul, z, z).unwrap();
    let square = g.unary(Scalar::Neg, square).unwrap();
    let bell = g.unary(Scalar::Exp, square).unwrap();
    let part = g.binary(Scalar::Mul, z, bell).unwrap();
    let slope = g.binary(Scalar::Add, share, part).unwrap();
    let y = g.binary(Scalar::Mul, behind, slope).unwrap();
    let y = late(&mut g, y, z);
    g.output("y", y);
    g
}

/// Compiles, compares and gives for how many of the three products' launches results of elements of `rows` by [`WIDTH`] are alive
/// that none of them makes.
fn kept(g: &Graph) -> (Compiled, usize) {
    let mut rng = Rng(7);
    let shapes = [[3, WIDTH], [WIDTH, WIDTH], [WIDTH, WIDTH], [WIDTH, WIDTH]];
    let inputs = shapes.map(|s| rng.tensor(DType::F32, &s));
    let c = check(g, &target(products), &inputs, &[("n", 3)]);
    let is_product = |step: &Step| {
        let Step::Launch { unit, .. } = step else {
            return false;
        };
        let mut nodes = c.units[*unit].nodes.iter().map(|id| &c.graph.node(*id).op);
        nodes.any(|op| matches!(op, Op::Core(CoreOp::Contract(_))))
    };
    let at: Vec<usize> = (0..c.plan.steps.len())
        .filter(|i| is_product(&c.plan.steps[*i]))
        .collect();
    assert_eq!(at.len(), 3, "{:#?}", c.plan.steps);
    let planned = c
        .plan
        .slots
        .iter()
        .filter(|s| s.storage == Storage::Planned);
    // Made by the first product's launch and alive beyond the second one's.
    let over = planned
        .filter(|s| s.first <= at[0] && s.last > at[1])
        .count();
    (c, over)
}

#[test]
fn a_slope_is_kept_instead_of_what_it_is_made_of() {
    let g = network(|_, y, _| y);
    let (_, over) = kept(&g);
    assert_eq!(over, 1);
    let (after, _) = after(&g, "advance", products);
    assert_eq!(products_before(&after, Scalar::Exp), 1);
}

#[test]
fn what_something_else_needs_later_is_kept_as_it_is() {
    // With z alive anyway only one value would be spared for another.
    let g = network(|g, y, z| g.binary(Scalar::Add, y, z).unwrap());
    let (after, _) = after(&g, "advance", products);
    let (before, _) = support::after(&g, "bucket", products);
    assert_eq!(format!("{after:?}"), format!("{before:?}"));
    let (_, over) = kept(&g);
    assert_eq!(over, 2);
}

#[test]
fn a_wide_value_does_not_take_the_place_of_narrow_ones() {
    let mut g = Graph::new("masks");
    let x = matrix(&mut g, "x", Dim::sym("n"));
    let w = matrix(&mut g, "w", WIDTH.into());
    let z = g.matmul_nt(x, w).unwrap();
    let zero = g.number(0.0, DType::F32).unwrap();
    let above = g.binary(Scalar::Lt, zero, z).unwrap();
    let one = g.number(1.0, DType::F32).unwrap();
    let below = g.binary(Scalar::Lt, z, one).unwrap();
    let inside = g.binary(Scalar::And, above, below).unwrap();
    let kept = g.select(inside, z, zero).unwrap();
    let other = g.select(below, kept, one).unwrap();
    let other = g.select(above, other, zero).unwrap();
    let behind = g.matmul_nt(other, w).unwrap();
    // Two masks of a byte would become four bytes.
    let share = g.cast(above, DType::F32).unwrap();
    let other = g.cast(below, DType::F32).unwrap();
    let share = g.binary(Scalar::Add, share, other).unwrap();
    let y = g.binary(Scalar::Mul, behind, share).unwrap();
    g.output("y", y);
    let (after, _) = after(&g, "advance", products);
    let (before, _) = support::after(&g, "bucket", products);
    assert_eq!(format!("{after:?}"), format!("{before:?}"));
    let mut rng = Rng(9);
    let inputs = [
        rng.tensor(DType::F32, &[3, WIDTH]),
        rng.tensor(DType::F32, &[WIDTH, WIDTH]),
    ];
    check(&g, &target(products), &inputs, &[("n", 3)]);
}

#[test]
fn the_slope_of_gelu_is_kept_by_training() {
    let mut g = Graph::new("training");
    let x = matrix(&mut g, "x", Dim::sym("n"));
    let [u, v] = ["u", "v"].map(|name| matrix(&mut g, name, WIDTH.into()));
    let bias = g.input("b", TensorType::new(DType::F32, [WIDTH])).unwrap();
    let z = g.matmul_nt(x, u).unwrap();
    let z = g.binary(Scalar::Add, z, bias).unwrap();
    let gelu = Gelu { tanh: false };
    let y = g.one(Op::Composite(gelu.into()), &[z]).unwrap();
    let y = g.matmul_nt(y, v).unwrap();
    let y = g.binary(Scalar::Mul, y, y).unwrap();
    let loss = g.reduce(ReduceKind::Sum, y, &[0, 1]).unwrap();
    let grads = gradients(&mut g, loss, &[u, v, bias]).unwrap();
    g.output("loss", loss);
    for (k, grad) in grads.into_iter().enumerate() {
        g.output(&format!("d{k}"), grad.unwrap());
    }
    g.compact().unwrap();
    let (after, _) = after(&g, "advance", products);
    assert_eq!(products_before(&after, Scalar::Exp), 1);
}

/// Products in front of the only node of a scalar function.
fn products_before(g: &Graph, f: Scalar) -> usize {
    let is = |op: &Op| matches!(op, Op::Core(CoreOp::Map(m)) if m.f == f);
    let ops: Vec<&Op> = g.nodes().map(|(_, n)| &n.op).collect();
    let at = ops.iter().position(|op| is(op)).expect("it is there");
    let is_product = |op: &&&Op| matches!(op, Op::Core(CoreOp::Contract(_)));
    ops[..at].iter().filter(is_product).count()
}
