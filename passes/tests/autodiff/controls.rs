//! Choices, scans, loops, calls, state; recurrent layers.

use crate::check::*;
use cupola_ir::composite::{Cell, Recurrent};
use cupola_ir::ops::*;
use cupola_ir::{
    DType, Dim, Graph, Op, Result, Scalar, Sym, Tensor, TensorType, ValueId, ValueType,
};

fn of(dtype: DType, dims: &[Dim]) -> ValueType {
    TensorType::new(dtype, dims.iter().cloned()).into()
}

fn layer(cell: Cell) -> Recurrent {
    let activations: &[&str] = match cell {
        Cell::Rnn => &["tanh"],
        Cell::Gru => &["sigmoid", "tanh"],
        Cell::Lstm => &["sigmoid", "tanh", "tanh"],
    };
    Recurrent {
        cell,
        activations: activations.iter().map(ToString::to_string).collect(),
        alpha: vec![],
        beta: vec![],
        clip: 0.0,
        input_forget: false,
        linear_before_reset: false,
        reverse: false,
        bias: true,
        lens: false,
        peephole: false,
        quantized: false,
    }
}

/// Operands of a layer of `steps` steps, a batch of 2, 3 inputs and 2 hidden values.
fn operands(p: &Recurrent, steps: usize) -> Vec<Given> {
    let gates = p.cell.gates();
    let mut given = vec![
        floats(&[steps, 2, 3], 1),
        floats(&[gates * 2, 3], 2),
        floats(&[gates * 2, 2], 3),
        floats(&[2, 2], 4),
    ];
    if p.cell == Cell::Lstm {
        given.push(floats(&[2, 2], 5));
    }
    if p.bias {
        given.push(floats(&[2 * gates * 2], 6));
    }
    if p.lens {
        given.push(indices(&[2], &[2, 1]));
    }
    if p.peephole {
        given.push(floats(&[6], 7));
    }
    given
}

/// All results of a layer.
fn recurrent(p: &Recurrent) -> impl Fn(&mut Graph, &[ValueId]) -> Result<ValueId> + '_ {
    |g, x| {
        let y = g.push(Op::Composite(p.clone().into()), x)?;
        let mut sum = y[0];
        for (i, v) in y[1..].iter().enumerate() {
            let v = g.scale(*v, 0.3 + i as f64)?;
            sum = g.binary(Scalar::Add, sum, v)?;
        }
        Ok(sum)
    }
}

#[test]
fn recurrent_layers() {
    for cell in [Cell::Rnn, Cell::Gru, Cell::Lstm] {
        let plain = layer(cell);
        check_twice(cell.name(), &operands(&plain, 3), &recurrent(&plain));
        check(cell.name(), &operands(&plain, 0), &recurrent(&plain));
        check(cell.name(), &operands(&plain, 1), &recurrent(&plain));
        let variants = [
            Recurrent {
                reverse: true,
                ..plain.clone()
            },
            Recurrent {
                bias: false,
                lens: true,
                ..plain.clone()
            },
            Recurrent {
                clip: 1.1,
                ..plain.clone()
            },
            Recurrent {
                linear_before_reset: true,
                ..plain.clone()
            },
            Recurrent {
                peephole: cell == Cell::Lstm,
                input_forget: true,
                ..plain.clone()
            },
        ];
        for p in variants {
            check(&format!("{p:?}"), &operands(&p, 3), &recurrent(&p));
        }
    }
    let lstm = layer(Cell::Lstm);
    let mut named = operands(&lstm, 3);
    named[0] = named[0].clone().named(&["t", "b", "i"]);
    named[3] = named[3].clone().named(&["b", "h"]);
    named[4] = named[4].clone().named(&["b", "h"]);
    check("lstm of symbols", &named, &recurrent(&lstm));
}

#[test]
fn weights_of_a_layer_get_one_product_over_all_steps() {
    for cell in [Cell::Rnn, Cell::Gru, Cell::Lstm] {
        let p = layer(cell);
        let mut g = Graph::new("layer");
        let given = operands(&p, 4);
        let inputs: Vec<ValueId> = (given.iter().enumerate())
            .map(|(i, x)| g.input(&format!("x{i}"), of(DType::F64, &x.dims)).unwrap())
            .collect();
        let y = g.push(Op::Composite(p.clone().into()), &inputs).unwrap()[0];
        let grads = cupola_passes::autodiff::vjp(&mut g, &[(y, y)], &inputs).unwrap();
        assert!(grads.iter().all(Option::is_some));
        let scans: Vec<&Scan> = (g.nodes())
            .filter_map(|(_, n)| match &n.op {
                Op::Core(CoreOp::Scan(p)) => Some(p),
                _ => None,
            })
            .collect();
        assert_eq!(scans.len(), 2);
        // Only the cotangents of h and c are carried, and only products with h's cotangent are left in a step.
        let back = scans[1];
        assert_eq!(back.carried, if cell == Cell::Lstm { 2 } else { 1 });
        let products = |g: &Graph| {
            let ops = g.nodes().map(|(_, n)| &n.op);
            ops.filter(|op| matches!(op, Op::Core(CoreOp::Contract(_))))
                .count()
        };
        let per_step = if cell == Cell::Gru { 2 } else { 1 };
        assert_eq!(products(&back.body), per_step, "{}", cell.name());
    }
}

/// `c' = c * w + row`, stacked `sin(c')`, over rows whose body knows its extents by names of its own.
fn scan(g: &mut Graph, x: &[ValueId], names: [&str; 1]) -> Result<Vec<ValueId>> {
    let width = match names[0] {
        "" => g.dim(x[0], 0),
        name => Dim::sym(name),
    };
    let own = std::slice::from_ref(&width);
    let mut b = Graph::new("body");
    let c = b.input("c", of(DType::F64, own))?;
    let row = b.input("row", of(DType::F64, own))?;
    let w = b.input("w", of(DType::F64, own))?;
    let next = b.binary(Scalar::Mul, c, w)?;
    let next = b.binary(Scalar::Add, next, row)?;
    let shown = b.unary(Scalar::Sin, next)?;
    b.output("c", next);
    b.output("y", shown);
    let results = vec![g.ty(x[0]).clone(), g.ty(x[1]).clone()];
    let scan = Scan {
        body: b,
        carried: 1,
        scanned: 1,
        results,
        binds: vec![],
    };
    Ok(g.push(scan, x)?.to_vec())
}

#[test]
fn scans() {
    let given = [floats(&[3], 1), floats(&[4, 3], 2), floats(&[3], 3)];
    for names in [[""], ["own"]] {
        check_twice("scan", &given, &|g, x| {
            let y = scan(g, x, names)?;
            g.binary(Scalar::Mul, y[0], y[1])
        });
        check("carried only", &given, &|g, x| Ok(scan(g, x, names)?[0]));
        check("stacked only", &given, &|g, x| Ok(scan(g, x, names)?[1]));
    }
    let named = [
        given[0].clone().named(&["w"]),
        given[1].clone().named(&["t", "w"]),
        given[2].clone().named(&["w"]),
    ];
    check("scan of symbols", &named, &|g, x| Ok(scan(g, x, [""])?[1]));
    // One operand given twice, and one that is not asked for.
    check("shared", &[floats(&[3], 1), floats(&[2, 3], 2)], &|g, x| {
        Ok(scan(g, &[x[0], x[1], x[0]], [""])?[1])
    });
    let mut fixed = given.clone();
    fixed[0].differs = false;
    fixed[1].differs = false;
    check_twice("capture only", &fixed, &|g, x| Ok(scan(g, x, [""])?[1]));
}

/// `c' = sin(c) * w` while fewer than `most` iterations are done and `c < limit`.
fn repeated(g: &mut Graph, x: &[ValueId], most: i64, limit: Option<f64>) -> Result<Vec<ValueId>> {
    let mut b = Graph::new("body");
    let scalar = || of(DType::F64, &[]);
    let i = b.input("i", of(DType::I64, &[]))?;
    let c = b.input("c", scalar())?;
    let w = b.input("w", scalar())?;
    let s = b.unary(Scalar::Exp, c)?;
    let next = b.binary(Scalar::Mul, s, w)?;
    let number = b.cast(i, DType::F64)?;
    let number = b.scale(number, 0.1)?;
    let next = b.binary(Scalar::Add, next, number)?;
    let go = match limit {
        Some(limit) => {
            let limit = b.number(limit, DType::F64)?;
            b.binary(Scalar::Lt, next, limit)?
        }
        None => b.constant(Tensor::from_slice(&[], &[1u8]).unwrap())?,
    };
    let go = b.cast(go, DType::Bool)?;
    b.output("go", go);
    b.output("c", next);
    let trips = g.number(most as f64, DType::I64)?;
    let go = g.number(1.0, DType::Bool)?;
    let repeat = Loop {
        body: b,
        carried: 1,
        results: vec![scalar()],
        binds: vec![],
    };
    Ok(g.push(repeat, &[trips, go, x[0], x[1]])?.to_vec())
}

#[test]
fn loops() {
    let given = [valued(&[], &[0.3]), valued(&[], &[0.4])];
    check_twice("fixed trips", &given, &|g, x| {
        Ok(repeated(g, x, 4, None)?[0])
    });
    check("no trips", &given, &|g, x| Ok(repeated(g, x, 0, None)?[0]));
    check("until a condition", &given, &|g, x| {
        Ok(repeated(g, x, -1, Some(0.9))?[0])
    });
    check_twice("at most", &given, &|g, x| {
        Ok(repeated(g, x, 3, Some(0.9))?[0])
    });
}

/// A scan inside of a scan, and a choice inside of that.
#[test]
fn regions_inside_of_regions() {
    let choose = |g: &mut Graph, c: ValueId, x: ValueId| -> Result<ValueId> {
        let branch = |f: Scalar| -> Result<Graph> {
            let mut b = Graph::new(f.name());
            let x = b.input("x", of(DType::F64, &[]))?;
            let y = b.unary(f, x)?;
            b.output("y", y);
            Ok(b)
        };
        let choice = If {
            then_branch: branch(Scalar::Sin)?,
            else_branch: branch(Scalar::Exp)?,
            results: vec![of(DType::F64, &[])],
            binds: vec![],
        };
        g.one(choice, &[c, x])
    };
    check_twice(
        "choice",
        &[valued(&[], &[0.3]), valued(&[], &[0.8])],
        &|g, x| {
            let c = g.binary(Scalar::Lt, x[0], x[1])?;
            let (a, b) = (choose(g, c, x[0])?, {
                let not = g.unary(Scalar::Not, c)?;
                choose(g, not, x[1])?
            });
            g.binary(Scalar::Mul, a, b)
        },
    );
    let inner = |w: Dim| -> Result<Graph> {
        let mut b = Graph::new("inner");
        let c = b.input("c", of(DType::F64, &[]))?;
        let x = b.input("x", of(DType::F64, &[]))?;
        let k = b.input("k", of(DType::F64, &[]))?;
        let low = b.binary(Scalar::Lt, x, c)?;
        let y = choose(&mut b, low, x)?;
        let y = b.binary(Scalar::Mul, y, k)?;
        let next = b.binary(Scalar::Add, c, y)?;
        b.output("c", next);
        let _ = w;
        Ok(b)
    };
    let given = [valued(&[], &[0.1]), floats(&[3, 4], 5), valued(&[], &[0.7])];
    check_twice("scan in scan", &given, &|g, x| {
        let width = g.dim(x[1], 1);
        let mut b = Graph::new("outer");
        let c = b.input("c", of(DType::F64, &[]))?;
        let row = b.input("row", of(DType::F64, std::slice::from_ref(&width)))?;
        let k = b.input("k", of(DType::F64, &[]))?;
        let scan = |body: Graph| Scan {
            body,
            carried: 1,
            scanned: 1,
            results: vec![of(DType::F64, &[])],
            binds: vec![],
        };
        let y = b.one(scan(inner(width)?), &[c, row, k])?;
        let y = b.unary(Scalar::Tanh, y)?;
        b.output("c", y);
        g.one(scan(b), x)
    });
}

#[test]
fn branches_that_use_different_captures_and_extents() {
    for flag in [true, false] {
        let given = [floats(&[3], 1), floats(&[2], 2)];
        check("branches", &given, &|g, x| {
            let branch = |g: &Graph, which: usize| -> Result<Graph> {
                let mut b = Graph::new("branch");
                let both = [
                    b.input("a", g.ty(x[0]).clone())?,
                    b.input("b", g.ty(x[1]).clone())?,
                ];
                let y = b.binary(Scalar::Mul, both[which], both[which])?;
                b.output("y", y);
                Ok(b)
            };
            let sym = Sym::new("chosen");
            let choice = If {
                then_branch: branch(g, 0)?,
                else_branch: branch(g, 1)?,
                results: vec![of(DType::F64, &[Dim::from(&sym)])],
                binds: vec![sym],
            };
            let flag = g.number(f64::from(u8::from(flag)), DType::Bool)?;
            g.one(choice, &[flag, x[0], x[1]])
        });
    }
}

#[test]
fn calls_and_state() {
    check_twice("call", &[floats(&[3], 1), floats(&[3], 2)], &|g, x| {
        let n = Dim::sym("own");
        let mut b = Graph::new("called");
        let own = || of(DType::F64, std::slice::from_ref(&n));
        let (p, q) = (b.input("p", own())?, b.input("q", own())?);
        let y = b.binary(Scalar::Mul, p, q)?;
        let y = b.unary(Scalar::Tanh, y)?;
        b.output("y", y);
        let call = Call {
            body: b,
            results: vec![g.ty(x[0]).clone()],
            binds: vec![],
        };
        let y = g.one(call, &[x[0], x[1]])?;
        g.binary(Scalar::Mul, y, x[0])
    });
    let mut g = Graph::new("state");
    let ty = of(DType::F32, &[Dim::from(2usize)]);
    g.slots.insert(
        "w".into(),
        cupola_ir::StateSlot {
            ty: ty.clone(),
            initial: Tensor::vector(&[1f32, 2.0]),
        },
    );
    let w = g
        .one(
            ReadState {
                slot: "w".into(),
                ty,
            },
            &[],
        )
        .unwrap();
    let y = g.binary(Scalar::Mul, w, w).unwrap();
    let y = g.one(WriteState { slot: "w".into() }, &[y]).unwrap();
    let loss = g.reduce(ReduceKind::Sum, y, &[0]).unwrap();
    let grad = cupola_passes::autodiff::gradients(&mut g, loss, &[w]).unwrap()[0].unwrap();
    g.output("d", grad);
    let d = run(&g, &[]);
    assert_eq!(d[0].to_vec::<f32>().unwrap(), [2.0, 4.0]);
}

#[test]
fn layers_on_the_way_become_scans_and_are_not_computed_twice() {
    let p = layer(Cell::Lstm);
    let mut g = Graph::new("layer");
    let given = operands(&p, 4);
    let inputs: Vec<ValueId> = (given.iter().enumerate())
        .map(|(i, x)| g.input(&format!("x{i}"), of(DType::F64, &x.dims)).unwrap())
        .collect();
    let y = g.push(Op::Composite(p.clone().into()), &inputs).unwrap()[0];
    let loss = g.reduce(ReduceKind::Sum, y, &[0, 1, 2]).unwrap();
    let d = cupola_passes::autodiff::gradients(&mut g, loss, &inputs[..2]).unwrap();
    cupola_ir::graph::verify(&g).unwrap();
    g.output("loss", loss);
    g.output("dx", d[0].unwrap());
    g.output("dw", d[1].unwrap());
    g.compact().unwrap();
    let layers = g.nodes().filter(|(_, n)| matches!(n.op, Op::Composite(_)));
    assert_eq!(layers.count(), 0);
}
