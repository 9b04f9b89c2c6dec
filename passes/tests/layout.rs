//! Images channels last: what takes part, what stays, and that the meaning does.

mod support;

use cupola_ir::composite::Conv;
use cupola_ir::ops::{ReduceKind, Window};
use cupola_ir::target::Claim;
use cupola_ir::{CompositeOp, CoreOp, DType, Dim, Graph, Op, Scalar, TensorType, ValueId};
use support::*;

fn n(x: i64) -> Dim {
    Dim::Const(x)
}

fn image(dims: &[i64]) -> TensorType {
    TensorType {
        dtype: DType::F32,
        dims: dims.iter().map(|d| n(*d)).collect(),
    }
}

/// Claims convolutions of either layout.
fn wants_channels_last(op: &Op, operands: &[&TensorType]) -> Claim {
    match op {
        Op::Composite(CompositeOp::Conv(_) | CompositeOp::ConvChannelsLast(_)) => {
            everything(op, operands)
        }
        _ => nothing(op, operands),
    }
}

fn conv(g: &mut Graph, x: ValueId, w: ValueId, pad: i64) -> ValueId {
    let conv = Conv {
        strides: vec![1, 1],
        dilations: vec![1, 1],
        pads_low: vec![n(pad), n(pad)],
        pads_high: vec![n(pad), n(pad)],
        groups: 1,
    };
    g.one(Op::Composite(conv.into()), &[x, w]).unwrap()
}

/// Largest of 2x2 windows, with a border of -1.
fn pool(g: &mut Graph, x: ValueId) -> ValueId {
    let border = g.number(-1.0, DType::F32).unwrap();
    let (low, high) = ([n(0), n(0), n(1), n(0)], [n(0), n(0), n(0), n(1)]);
    let x = g.pad(x, border, &low, &high).unwrap();
    let window = Window {
        axes: vec![2, 3],
        sizes: vec![n(2), n(2)],
        strides: vec![2, 2],
        dilations: vec![1, 1],
    };
    let x = g.one(window, &[x]).unwrap();
    g.reduce(ReduceKind::Max, x, &[4, 5]).unwrap()
}

/// Two convolutions with everything between them that keeps the layout.
fn network() -> (Graph, Vec<T>) {
    let mut g = Graph::new("network");
    let x = g.input("x", image(&[2, 3, 7, 6])).unwrap();
    let w = g.input("w", image(&[4, 3, 3, 3])).unwrap();
    let bias = g.input("bias", image(&[1, 4, 1, 1])).unwrap();
    let v = g.input("v", image(&[5, 8, 1, 1])).unwrap();
    let y = conv(&mut g, x, w, 1);
    let dims = g.dims(y);
    let bias = g.broadcast_to(bias, &dims).unwrap();
    let y = g.binary(Scalar::Add, y, bias).unwrap();
    let pooled = pool(&mut g, y);
    // A scale for each channel from the mean of its plane.
    let mean = g.mean_keep(pooled, &[2, 3]).unwrap();
    let dims = g.dims(pooled);
    let scale = g.broadcast_to(mean, &dims).unwrap();
    let scaled = g.binary(Scalar::Mul, pooled, scale).unwrap();
    let joined = g.concat(&[pooled, scaled], 1).unwrap();
    let z = conv(&mut g, joined, v, 0);
    g.output("z", z);
    let sums = g.reduce(ReduceKind::Sum, z, &[1, 3]).unwrap();
    g.output("sums", sums);
    let mut rng = Rng(11);
    let shapes: [&[usize]; 4] = [&[2, 3, 7, 6], &[4, 3, 3, 3], &[1, 4, 1, 1], &[5, 8, 1, 1]];
    let inputs = shapes.map(|s| rng.tensor(DType::F32, s)).to_vec();
    (g, inputs)
}

fn count(g: &Graph, of: impl Fn(&Op) -> bool) -> usize {
    g.nodes().filter(|(_, node)| of(&node.op)).count()
}

#[test]
fn images_are_arranged_again_only_where_they_enter_and_leave() {
    let (g, inputs) = network();
    let (after, _) = after(&g, "clean", wants_channels_last);
    let is_conv = |op: &Op| matches!(op, Op::Composite(CompositeOp::Conv(_)));
    let is_last = |op: &Op| matches!(op, Op::Composite(CompositeOp::ConvChannelsLast(_)));
    let is_permute = |op: &Op| matches!(op, Op::Core(CoreOp::Permute(_)));
    assert_eq!(
        (count(&after, is_conv), count(&after, is_last)),
        (0, 2),
        "{after:#?}"
    );
    // x enters, z and its sums leave.
    assert!(count(&after, is_permute) <= 3, "{after:#?}");
    let mut bindings = Default::default();
    let want = reference::run(&g, &inputs, &mut bindings);
    let got = reference::run(&after, &inputs, &mut bindings);
    for (got, want) in got.iter().zip(&want) {
        close(got, want, "after the passes");
    }
}

#[test]
fn devices_that_want_channels_first_keep_them() {
    let (g, inputs) = network();
    let (after, _) = after(&g, "clean", nothing);
    let is_last = |op: &Op| matches!(op, Op::Composite(CompositeOp::ConvChannelsLast(_)));
    assert_eq!(count(&after, is_last), 0, "{after:#?}");
    check(&g, &target(nothing), &inputs, &[]);
}

/// Has kernels for channels last only, of f32 by bf16.
fn wants_narrow_weights(op: &Op, operands: &[&TensorType]) -> Claim {
    match (op, operands) {
        (Op::Composite(CompositeOp::ConvChannelsLast(_)), [x, w])
            if (x.dtype, w.dtype) == (DType::F32, DType::BF16) =>
        {
            Claim::Yes {
                strided: true,
                epilogue: true,
                converts: false,
            }
        }
        _ => nothing(op, operands),
    }
}

#[test]
fn convolutions_by_narrow_weights_take_the_kernel_for_them() {
    for both in [false, true] {
        let mut g = Graph::new("narrow");
        let x = g.input("x", image(&[2, 3, 5, 4])).unwrap();
        let w = g.input("w", image(&[4, 3, 3, 3])).unwrap();
        let w = g.cast(w, DType::BF16).unwrap();
        let image = if both {
            g.cast(x, DType::BF16).unwrap()
        } else {
            x
        };
        let y = conv(&mut g, image, w, 1);
        assert_eq!(g.dtype(y), g.dtype(image));
        let y = g.cast(y, DType::F32).unwrap();
        g.output("y", y);
        let (after, _) = after(&g, "clean", wants_narrow_weights);
        let is_last = |op: &Op| matches!(op, Op::Composite(CompositeOp::ConvChannelsLast(_)));
        assert_eq!(count(&after, is_last), 1, "{after:#?}");
        let mut rng = Rng(3);
        let inputs = [&[2, 3, 5, 4], &[4, 3, 3, 3]].map(|s| rng.tensor(DType::F32, s));
        let mut bindings = Default::default();
        let want = reference::run(&g, &inputs, &mut bindings);
        let got = reference::run(&after, &inputs, &mut bindings);
        // Rounded to bf16 from f32 or from the exact sum.
        for (a, b) in got[0].v.iter().zip(&want[0].v) {
            assert!((a.f() - b.f()).abs() <= 0.01 * (1.0 + b.f().abs()));
        }
    }
}
