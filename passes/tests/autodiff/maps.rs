//! Scalar functions and casts.

use crate::check::*;
use cupola_ir::scalar::TypeRule;
use cupola_ir::{DType, Dim, Graph, Result, Scalar, ValueId};
use cupola_passes::autodiff::{gradients, vjp};

/// Where a function is smooth, away from its kinks by more than the step of the differences.
fn domain(f: Scalar, operand: usize) -> fn(f64) -> f64 {
    use Scalar::*;
    match (f, operand) {
        (Sqrt | Rsqrt | Recip | Log | Log1p, _) => |x| x.abs() + 0.3,
        (Asin | Acos | Atanh, _) => |x| x * 0.4,
        (Acosh, _) => |x| x.abs() + 1.2,
        (Pow, 0) => |x| x.abs() + 0.3,
        (Div, 1) => |x| x + x.signum(),
        // Whole quotients are kinks.
        (Rem | Mod, 0) => |x| x + x.signum() * 5.0,
        (Rem | Mod, 1) => |x| (x * 0.1) + 1.37,
        (Floor | Ceil | Trunc | Round | Sign | Abs, _) => |x| x.trunc() + x.signum() * 0.31,
        _ => |x| x,
    }
}

fn apply(g: &mut Graph, f: Scalar, x: &[ValueId]) -> Result<ValueId> {
    if f.rule() != TypeRule::Select {
        return g.one(cupola_ir::ops::Map { f }, x);
    }
    let zero = g.number_like(0.0, x[0])?;
    let positive = g.binary(Scalar::Lt, zero, x[0])?;
    g.select(positive, x[1], x[2])
}

#[test]
fn every_scalar_function_of_floats_has_the_slope_of_its_differences() {
    for f in Scalar::ALL {
        let floats_give_floats = matches!(
            f.rule(),
            TypeRule::Float | TypeRule::Number | TypeRule::Select
        );
        if !floats_give_floats {
            continue;
        }
        let operands = |shape: &[usize]| -> Vec<Given> {
            (0..f.arity())
                .map(|i| floats(shape, 11 + i as u64).map(domain(*f, i)))
                .collect()
        };
        for shape in [&[7][..], &[], &[3, 5], &[0, 4]] {
            check_twice(f.name(), &operands(shape), &|g, x| apply(g, *f, x));
        }
        let named: Vec<Given> = (operands(&[2, 3]).into_iter())
            .map(|x| x.named(&["n", "m"]))
            .collect();
        check(f.name(), &named, &|g, x| apply(g, *f, x));
    }
}

#[test]
fn functions_to_bools_and_of_integers_end_a_path() {
    for f in Scalar::ALL {
        let (float, arity) = match f.rule() {
            TypeRule::Compare | TypeRule::FloatTest => (true, f.arity()),
            TypeRule::Int | TypeRule::Bits => (false, f.arity()),
            TypeRule::Float | TypeRule::Number | TypeRule::Select => continue,
        };
        let mut g = Graph::new("ends");
        let ty = cupola_ir::TensorType::new(DType::F64, [3usize]);
        let x = g.input("x", ty).unwrap();
        let inner = if float {
            x
        } else {
            g.cast(x, DType::I64).unwrap()
        };
        let y = g
            .one(cupola_ir::ops::Map { f: *f }, &vec![inner; arity])
            .unwrap();
        let y = g.cast(y, DType::F64).unwrap();
        let grads = vjp(&mut g, &[(y, y)], &[x]).unwrap();
        assert_eq!(grads, [None], "{}", f.name());
    }
}

#[test]
fn kinks_and_ties_are_those_of_the_semantics() {
    let nan = f64::NAN;
    let same = |got: Vec<f64>, want: &[f64], what: &str| {
        let equal = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan();
        assert!(got.iter().zip(want).all(equal), "{what}: {got:?}");
    };
    let unary = |f| move |g: &mut Graph, x: &[ValueId]| g.unary(f, x[0]);
    same(
        slope(&[0.0, -1.0], &unary(Scalar::Abs)),
        &[0.0, -1.0],
        "abs",
    );
    same(
        slope(&[0.0], &unary(Scalar::Sqrt)),
        &[f64::INFINITY],
        "sqrt",
    );
    let bound = |f, at: f64| {
        move |g: &mut Graph, x: &[ValueId]| {
            let at = g.number(at, DType::F64)?;
            g.binary(f, x[0], at)
        }
    };
    let relu = bound(Scalar::Max, 0.0);
    same(slope(&[-1.0, 0.0, 2.0], &relu), &[0.0, 0.0, 1.0], "relu");
    let hard = |g: &mut Graph, x: &[ValueId]| {
        let low = bound(Scalar::Max, -1.0)(g, x)?;
        bound(Scalar::Min, 1.0)(g, &[low])
    };
    let at = [-2.0, -1.0, 0.5, 1.0, 2.0];
    same(slope(&at, &hard), &[0.0, 0.0, 1.0, 0.0, 0.0], "hardtanh");
    let other = |f: Scalar| {
        move |g: &mut Graph, x: &[ValueId]| {
            let other = g.constant(cupola_ir::Tensor::vector(&[1.0, 0.0, 3.0]))?;
            g.binary(f, x[0], other)
        }
    };
    same(
        slope(&[1.0, 2.0, 2.0], &other(Scalar::Max)),
        &[0.5, 1.0, 0.0],
        "maximum",
    );
    same(
        slope(&[1.0, 2.0, 2.0], &other(Scalar::Min)),
        &[0.5, 0.0, 1.0],
        "minimum",
    );
    let power = |y: f64| bound(Scalar::Pow, y);
    same(slope(&[0.0, 2.0], &power(2.0)), &[0.0, 4.0], "square");
    same(slope(&[0.0, -2.0], &power(3.0)), &[0.0, 12.0], "cube");
    same(slope(&[0.0, -2.0], &power(0.0)), &[0.0, 0.0], "power 0");
    same(slope(&[0.0, -2.0], &power(1.0)), &[1.0, 1.0], "power 1");
    let exponent = |g: &mut Graph, x: &[ValueId]| {
        let base = g.constant(cupola_ir::Tensor::vector(&[0.0, 0.0, -2.0]))?;
        g.binary(Scalar::Pow, base, x[0])
    };
    same(
        slope(&[2.0, 0.0, 1.0], &exponent),
        &[0.0, 0.0, nan],
        "exponents",
    );
}

#[test]
fn shared_values_add_up_and_absent_gradients_stay_absent() {
    check_twice("x * x + x * exp(x)", &[floats(&[5], 3)], &|g, x| {
        let square = g.binary(Scalar::Mul, x[0], x[0])?;
        let e = g.unary(Scalar::Exp, x[0])?;
        let part = g.binary(Scalar::Mul, x[0], e)?;
        g.binary(Scalar::Add, square, part)
    });
    let mut g = Graph::new("absent");
    let ty = || cupola_ir::TensorType::new(DType::F32, Vec::<Dim>::new());
    let (x, y) = (g.input("x", ty()).unwrap(), g.input("y", ty()).unwrap());
    let i = g
        .input("i", cupola_ir::TensorType::scalar(DType::I64))
        .unwrap();
    let h = g.unary(Scalar::Exp, x).unwrap();
    let z = g.unary(Scalar::Exp, h).unwrap();
    let before = g.node_count();
    let grads = gradients(&mut g, z, &[x, y, i, h, z]).unwrap();
    assert!(grads[0].is_some() && grads[3].is_some() && grads[4].is_some());
    assert_eq!((grads[1], grads[2]), (None, None));
    // One, and a product for each exponential.
    assert_eq!(g.node_count() - before, 3);
}

#[test]
fn cotangents_keep_the_type_of_their_value() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let mut g = Graph::new("types");
        let ty = cupola_ir::TensorType::new(DType::F32, [4usize]);
        let x = g.input("x", ty).unwrap();
        let narrow = g.cast(x, dtype).unwrap();
        let e = g.unary(Scalar::Exp, narrow).unwrap();
        let sum = g.reduce(cupola_ir::ops::ReduceKind::Sum, e, &[0]).unwrap();
        let grads = gradients(&mut g, sum, &[x, narrow, e]).unwrap();
        let types: Vec<DType> = grads.iter().map(|v| g.dtype(v.unwrap())).collect();
        assert_eq!(types, [DType::F32, dtype, dtype]);
    }
}

#[test]
fn what_cannot_be_differentiated_is_named() {
    let mut g = Graph::new("refused");
    let ty = cupola_ir::TensorType::new(DType::F16, [4usize]);
    let x = g.input("x", ty).unwrap();
    g.set_origin(Some(std::sync::Arc::new(cupola_ir::Origin {
        source: "here".into(),
        node: "turn".into(),
        op: "Bitcast".into(),
    })));
    let bits = g
        .one(cupola_ir::ops::Bitcast { to: DType::BF16 }, &[x])
        .unwrap();
    g.set_origin(None);
    let error = vjp(&mut g, &[(bits, bits)], &[x]).unwrap_err().to_string();
    assert!(
        error.contains("Bitcast 'turn' (bitcast) cannot be differentiated"),
        "{error}"
    );
    let error = gradients(&mut g, bits, &[x]).unwrap_err().to_string();
    assert!(error.contains("sum it to one float"), "{error}");
    let error = vjp(&mut g, &[(bits, x)], &[x]).unwrap_err().to_string();
    assert!(error.contains("must be floats of one type"), "{error}");
}
