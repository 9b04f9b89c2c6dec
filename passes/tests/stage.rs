//! Long reductions in two stages: which ones, and that the meaning stays.

mod support;

use cupola_ir::ops::ReduceKind;
use cupola_ir::{CoreOp, DType, Dim, Graph, Op, TensorType};
use support::*;

fn reductions(dims: &[i64], axes: &[usize], kind: ReduceKind) -> usize {
    let mut g = Graph::new("long");
    let ty = TensorType {
        dtype: DType::F32,
        dims: dims.iter().map(|d| Dim::Const(*d)).collect(),
    };
    let x = g.input("x", ty).unwrap();
    let y = g.reduce(kind, x, axes).unwrap();
    g.output("y", y);
    let shape: Vec<usize> = dims.iter().map(|d| *d as usize).collect();
    check(
        &g,
        &target(nothing),
        &[Rng(3).tensor(DType::F32, &shape)],
        &[],
    );
    let (after, _) = after(&g, "stage", nothing);
    let is_reduce = |op: &Op| matches!(op, Op::Core(CoreOp::Reduce(_)));
    after.nodes().filter(|(_, n)| is_reduce(&n.op)).count()
}

#[test]
fn sums_of_images_have_two_stages() {
    assert_eq!(reductions(&[8, 9, 8, 5], &[0, 1, 2], ReduceKind::Sum), 2);
    assert_eq!(reductions(&[9, 70, 3], &[0, 1], ReduceKind::Max), 2);
}

#[test]
fn short_reductions_and_those_that_leave_much_have_one() {
    assert_eq!(reductions(&[7, 9, 8, 5], &[0, 1, 2], ReduceKind::Sum), 1);
    assert_eq!(reductions(&[8, 7, 9, 5], &[0, 1, 2], ReduceKind::Sum), 1);
    assert_eq!(reductions(&[8, 64, 5, 205], &[0, 1], ReduceKind::Sum), 1);
    assert_eq!(reductions(&[8, 9, 8, 5], &[1, 2, 3], ReduceKind::Sum), 1);
    assert_eq!(reductions(&[700, 5], &[0], ReduceKind::Sum), 1);
}
