//! Graphs exported as ONNX and imported again compute what they computed.

use cupola_ir::composite::{ConvTranspose, Softmax};
use cupola_ir::convert::{Lanes, lanes};
use cupola_ir::ops::*;
use cupola_ir::{DType, Dim, Graph, Scalar, Sym, Tensor, TensorType, Value, ValueId, eval};
use cupola_onnx::proto::ModelProto;
use cupola_onnx::{ExportError, ImportOptions, Model, export, import};
use cupola_source::Source;
use prost::Message;

fn input(g: &mut Graph, name: &str, dtype: DType, dims: &[Dim]) -> ValueId {
    g.input(name, TensorType::new(dtype, dims.iter().cloned()))
        .unwrap()
}

fn sizes(dims: &[usize]) -> Vec<Dim> {
    dims.iter().map(|&dim| Dim::from(dim)).collect()
}

/// Small numbers without a pattern.
fn floats(shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>() as u64;
    let value = |i: u64| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 33) as f32 / 4.0 - 4.0;
    Tensor::from_slice(shape, &(0..len).map(value).collect::<Vec<f32>>()).unwrap()
}

fn ints(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_slice(shape, values).unwrap()
}

fn assert_close(found: &Value, expected: &Value) {
    let (Some(found), Some(expected)) = (found.as_tensor(), expected.as_tensor()) else {
        return assert_eq!(found, expected);
    };
    assert_eq!(
        (found.dtype(), found.shape()),
        (expected.dtype(), expected.shape())
    );
    match (lanes(found), lanes(expected)) {
        (Some(Lanes::F(found)), Some(Lanes::F(expected))) => {
            for (found, expected) in found.iter().zip(&expected) {
                let same = found == expected || found.is_nan() && expected.is_nan();
                let near = (found - expected).abs() <= 1e-5 * (1.0 + expected.abs());
                assert!(same || near, "{found} instead of {expected}");
            }
        }
        (found, expected) => assert_eq!(found, expected),
    }
}

/// Exports, reads and imports the graph again, and runs both. Returns the model.
fn check(graph: &Graph, inputs: &[Tensor]) -> ModelProto {
    let inputs: Vec<Value> = inputs.iter().cloned().map(Value::Tensor).collect();
    let expected = eval::run(graph, &inputs, &mut eval::Env::default()).unwrap();
    let proto = export(graph, &|_| None).unwrap();
    let model = Model::read(&Source::from_bytes(proto.encode_to_vec())).unwrap();
    let again = import(&model, &ImportOptions::default()).unwrap().graph;
    let found = eval::run(&again, &inputs, &mut eval::Env::default()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_close(found, expected);
    }
    proto
}

fn ops(model: &ModelProto) -> Vec<&str> {
    let graph = model.graph.as_ref().unwrap();
    graph.node.iter().map(|node| node.op_type()).collect()
}

/// A graph with one input of f32 and one result.
fn one(dims: &[Dim], build: impl FnOnce(&mut Graph, ValueId) -> ValueId) -> Graph {
    let mut g = Graph::new("test");
    let x = input(&mut g, "x", DType::F32, dims);
    let y = build(&mut g, x);
    g.output("y", y);
    g
}

#[test]
fn names_survive_and_broadcasts_are_implicit() {
    let mut g = Graph::new("affine");
    let x = input(
        &mut g,
        "x",
        DType::F32,
        &[Dim::sym("batch"), Dim::from(3usize)],
    );
    let w = g.constant(floats(&[3])).unwrap();
    let sum = g.binary(Scalar::Add, x, w).unwrap();
    let y = g.unary(Scalar::Tanh, sum).unwrap();
    g.output("result", y);
    g.output("same", y);
    g.output("x_again", x);
    let proto = check(&g, &[floats(&[4, 3])]);
    assert!(!ops(&proto).contains(&"Expand"), "{:?}", ops(&proto));
    let graph = proto.graph.unwrap();
    let names: Vec<_> = graph.output.iter().map(|output| output.name()).collect();
    assert_eq!(names, ["result", "same", "x_again"]);
    assert_eq!(graph.input[0].name(), "x");
}

#[test]
fn scalar_functions_without_an_operator_of_their_own() {
    use Scalar::*;
    for f in [Rsqrt, Trunc, Expm1, Log1p, Sigmoid, Erf, Round] {
        let g = one(&sizes(&[40]), |g, x| g.unary(f, x).unwrap());
        check(&g, &[floats(&[40])]);
    }
    let small: Vec<f32> = (0..20).map(|i| 1e-6 * (i as f32 - 10.0)).collect();
    for f in [Expm1, Log1p] {
        let g = one(&sizes(&[20]), |g, x| {
            let y = g.unary(f, x).unwrap();
            g.scale(y, 1e6).unwrap()
        });
        check(&g, &[Tensor::vector(&small)]);
    }
    for f in [Rem, Mod, Pow, Min, Max] {
        let mut g = Graph::new("binary");
        let x = input(&mut g, "x", DType::F32, &sizes(&[6, 1]));
        let y = input(&mut g, "y", DType::F32, &sizes(&[1, 4]));
        let z = g.binary(f, x, y).unwrap();
        g.output("z", z);
        check(
            &g,
            &[
                floats(&[6, 1]),
                Tensor::from_slice(&[1, 4], &[3f32, -2.0, 0.5, 1.0]).unwrap(),
            ],
        );
    }
}

#[test]
fn shifts_of_signed_numbers_and_counts_past_the_width() {
    for (f, dtype) in [Scalar::Shl, Scalar::Shr]
        .into_iter()
        .flat_map(|f| [DType::I32, DType::I64, DType::U8].map(|dtype| (f, dtype)))
    {
        let mut g = Graph::new("shift");
        let x = input(&mut g, "x", DType::I64, &sizes(&[5, 1]));
        let n = input(&mut g, "n", DType::I64, &sizes(&[1, 4]));
        let (x, n) = (g.cast(x, dtype).unwrap(), g.cast(n, dtype).unwrap());
        let y = g.binary(f, x, n).unwrap();
        let y = g.cast(y, DType::I64).unwrap();
        g.output("y", y);
        let values = if dtype == DType::U8 {
            [0, 1, 7, 100, 255]
        } else {
            [0, 1, -1, -100, 77]
        };
        check(&g, &[ints(&[5, 1], &values), ints(&[1, 4], &[0, 1, 5, 70])]);
    }
}

#[test]
fn extents_are_computed_from_shapes() {
    let (n, m) = (Dim::sym("n"), Dim::sym("m"));
    let mut g = Graph::new("dims");
    let x = input(&mut g, "x", DType::F32, &[n.clone(), m.clone()]);
    let dims = [
        n.clone() * m.clone() + Dim::from(3usize),
        (n.clone() - Dim::from(10usize)).floor_div(&Dim::from(4usize)),
        n.smaller(&m),
        n.larger(&(m.clone() * Dim::from(2usize))),
    ];
    let values = g
        .one(
            Dims {
                dims: dims.to_vec(),
            },
            &[],
        )
        .unwrap();
    let flat = g.reshape(x, &[n.clone() * m.clone()]).unwrap();
    let iota = g.iota(DType::F32, &[m, n], 0).unwrap();
    g.output("values", values);
    g.output("flat", flat);
    g.output("iota", iota);
    for shape in [[3, 5], [6, 2], [1, 1], [0, 4]] {
        check(&g, &[floats(&shape)]);
    }
}

#[test]
fn slices_in_both_directions_and_pads() {
    let n = Dim::sym("n");
    let g = one(&[n.clone(), Dim::from(5usize)], |g, x| {
        let back = g.flip(x, 0).unwrap();
        let back = g.flip(back, 1).unwrap();
        let part = Slice {
            starts: vec![Dim::ZERO, Dim::from(1usize)],
            steps: vec![1, 2],
            dims: vec![n.clone(), Dim::from(2usize)],
        };
        let part = g.one(part, &[back]).unwrap();
        let seven = g.number_like(7.0, part).unwrap();
        g.pad(
            part,
            seven,
            &sizes(&[1, 0]),
            &[n.clone(), Dim::from(2usize)],
        )
        .unwrap()
    });
    for rows in [1, 2, 6] {
        check(&g, &[floats(&[rows, 5])]);
    }
}

#[test]
fn windows_and_their_adjoint() {
    let window = |axes: &[usize]| Window {
        axes: axes.to_vec(),
        sizes: sizes(&[2, 3][..axes.len()]),
        strides: vec![2, 1][..axes.len()].to_vec(),
        dilations: vec![1, 2][..axes.len()].to_vec(),
    };
    for axes in [&[0, 1][..], &[2, 0], &[1]] {
        let dims = [7, 6, 8];
        let g = one(&sizes(&dims), |g, x| {
            let w = window(axes);
            let y = g.one(w.clone(), &[x]).unwrap();
            let y = g.unary(Scalar::Tanh, y).unwrap();
            let Window {
                axes,
                sizes: inner,
                strides,
                dilations,
            } = w;
            let fold = Fold {
                axes,
                sizes: inner,
                strides,
                dilations,
                dims: sizes(&dims),
            };
            g.one(fold, &[y]).unwrap()
        });
        check(&g, &[floats(&dims)]);
    }
}

#[test]
fn pooling_is_found() {
    let pool = |kind| {
        one(&sizes(&[2, 3, 9, 7]), |g, x| {
            let window = Window {
                axes: vec![2, 3],
                sizes: sizes(&[3, 2]),
                strides: vec![2, 1],
                dilations: vec![1, 2],
            };
            let windows = g.one(window, &[x]).unwrap();
            g.reduce(kind, windows, &[4, 5]).unwrap()
        })
    };
    let max = check(&pool(ReduceKind::Max), &[floats(&[2, 3, 9, 7])]);
    assert_eq!(ops(&max), ["MaxPool"]);
    let sum = check(&pool(ReduceKind::Sum), &[floats(&[2, 3, 9, 7])]);
    assert_eq!(ops(&sum), ["AveragePool", "Mul"]);
    check(&pool(ReduceKind::Min), &[floats(&[2, 3, 9, 7])]);
}

#[test]
fn reductions_of_every_class() {
    for kind in [
        ReduceKind::Sum,
        ReduceKind::Prod,
        ReduceKind::Max,
        ReduceKind::Min,
    ] {
        for dtype in [DType::F32, DType::F16, DType::I8, DType::U16, DType::I64] {
            for shape in [[3, 4], [0, 4]] {
                let g = one(&sizes(&shape), |g, x| {
                    let x = g.unary(Scalar::Abs, x).unwrap();
                    let x = g.cast(x, dtype).unwrap();
                    let y = g.reduce(kind, x, &[0]).unwrap();
                    g.cast(y, DType::F64).unwrap()
                });
                check(&g, &[floats(&shape)]);
            }
        }
    }
    let last = |last| {
        one(&sizes(&[4, 6]), |g, x| {
            g.one(
                ArgReduce {
                    kind: ReduceKind::Min,
                    axis: 1,
                    last,
                },
                &[x],
            )
            .unwrap()
        })
    };
    check(&last(false), &[floats(&[4, 6])]);
    check(&last(true), &[floats(&[4, 6])]);
}

#[test]
fn products_with_any_arrangement_of_axes() {
    let product = |lhs: &[usize], rhs: &[usize], axes: [&[usize]; 4]| {
        let mut g = Graph::new("product");
        let x = input(&mut g, "x", DType::F32, &sizes(lhs));
        let y = input(&mut g, "y", DType::F32, &sizes(rhs));
        let contract = Contract {
            lhs_batch: axes[0].to_vec(),
            rhs_batch: axes[1].to_vec(),
            lhs_contract: axes[2].to_vec(),
            rhs_contract: axes[3].to_vec(),
            accum: DType::F32,
            out: DType::F32,
        };
        let z = g.one(contract, &[x, y]).unwrap();
        g.output("z", z);
        check(&g, &[floats(lhs), floats(rhs)])
    };
    let plain = product(&[4, 3], &[3, 5], [&[], &[], &[1], &[0]]);
    assert_eq!(ops(&plain), ["MatMul"]);
    let batch = product(&[2, 4, 3], &[2, 5, 3], [&[0], &[0], &[2], &[2]]);
    assert_eq!(ops(&batch), ["Transpose", "MatMul"]);
    product(&[3, 4, 2, 5], &[5, 6, 2, 3], [&[2], &[2], &[0, 3], &[3, 0]]);
    product(&[3], &[3], [&[], &[], &[0], &[0]]);
    product(&[3], &[4], [&[], &[], &[], &[]]);
    product(&[2, 3], &[2, 3, 4, 5], [&[0], &[0], &[1], &[1]]);
}

#[test]
fn gathers_and_scatters_with_bounds() {
    let data = [4, 3, 5];
    for bounds in [Bounds::Check, Bounds::Clamp, Bounds::Skip] {
        let wild = if bounds == Bounds::Check {
            [0, 3, 1]
        } else {
            [0, 9, 1]
        };
        for (axes, batch, index) in [
            (vec![1], 0, vec![3]),
            (vec![0], 0, vec![3, 1]),
            (vec![2, 1], 0, vec![3]),
        ] {
            let wild = if axes == [0] {
                wild
            } else {
                wild.map(|i: i64| i.min(wild[1] - 1))
            };
            gather_and_scatter(&data, axes, batch, &index, &wild, bounds);
        }
        let each: Vec<i64> = (0..8).map(|i| i % 3).collect();
        gather_and_scatter(&data, vec![2], 1, &[4, 2], &each, bounds);
        gather_and_scatter(&data, vec![1, 2], 1, &[4, 2], &each, bounds);
    }
}

fn gather_and_scatter(
    data: &[usize],
    axes: Vec<usize>,
    batch: usize,
    index: &[usize],
    values: &[i64],
    bounds: Bounds,
) {
    let mut g = Graph::new("indexed");
    let x = input(&mut g, "x", DType::F32, &sizes(data));
    let i = input(&mut g, "i", DType::I64, &sizes(index));
    let indices = vec![i; axes.len()];
    let gather = Gather {
        axes: axes.clone(),
        batch,
        bounds,
    };
    let picked = g.one(gather, &[&[x][..], &indices].concat()).unwrap();
    g.output("picked", picked);
    let updates = g.scale(picked, 2.0).unwrap();
    for kind in [ScatterKind::Set, ScatterKind::Add, ScatterKind::Max] {
        let scatter = Scatter {
            axes: axes.clone(),
            batch,
            kind,
            bounds,
        };
        let y = g
            .one(scatter, &[&[x, updates][..], &indices].concat())
            .unwrap();
        g.output(kind.name(), y);
    }
    check(&g, &[floats(data), ints(index, values)]);
}

#[test]
fn sorts() {
    for descending in [false, true] {
        let mut g = Graph::new("sort");
        let x = input(&mut g, "x", DType::F32, &[Dim::sym("n"), Dim::from(4usize)]);
        let results = g
            .push(
                Sort {
                    axis: 0,
                    descending,
                },
                &[x],
            )
            .unwrap();
        g.output("values", results[0]);
        g.output("indices", results[1]);
        check(&g, &[floats(&[7, 4])]);
    }
}

#[test]
fn composites_keep_their_operator_where_onnx_has_it() {
    let softmax = |log| {
        one(&sizes(&[3, 5]), |g, x| {
            g.one_composite(Softmax { axis: 1, log }, &[x])
        })
    };
    assert_eq!(
        ops(&check(&softmax(false), &[floats(&[3, 5])])),
        ["Softmax"]
    );
    assert_eq!(
        ops(&check(&softmax(true), &[floats(&[3, 5])])),
        ["LogSoftmax"]
    );
    for (low, spatial, op) in [(1, 8, "ConvTranspose"), (-1, 12, "MatMul")] {
        let mut g = Graph::new("transposed");
        let x = input(&mut g, "x", DType::F32, &sizes(&[1, 2, 4]));
        let w = input(&mut g, "w", DType::F32, &sizes(&[2, 3, 3]));
        let p = ConvTranspose {
            strides: vec![2],
            dilations: vec![1],
            pads_low: vec![Dim::from(low as i64)],
            spatial: sizes(&[spatial]),
            groups: 1,
        };
        let y = g.one_composite(p, &[x, w]);
        g.output("y", y);
        let proto = check(&g, &[floats(&[1, 2, 4]), floats(&[2, 3, 3])]);
        assert!(ops(&proto).contains(&op), "{:?}", ops(&proto));
    }
}

trait OneComposite {
    fn one_composite(&mut self, p: impl Into<cupola_ir::CompositeOp>, xs: &[ValueId]) -> ValueId;
}

impl OneComposite for Graph {
    fn one_composite(&mut self, p: impl Into<cupola_ir::CompositeOp>, xs: &[ValueId]) -> ValueId {
        self.one(cupola_ir::Op::Composite(p.into()), xs).unwrap()
    }
}

#[test]
fn loops_branches_and_scans_with_captures() {
    let n = Dim::sym("n");
    let vector = TensorType::new(DType::F32, [n.clone()]);
    let scalar = |dtype| TensorType::scalar(dtype);
    // Doubles x until its sum passes a limit that is captured.
    let mut body = Graph::new("body");
    let i = body.input("i", scalar(DType::I64)).unwrap();
    let x = body.input("x", vector.clone()).unwrap();
    let limit = body.input("limit", scalar(DType::F32)).unwrap();
    let doubled = body.scale(x, 2.0).unwrap();
    let sum = body.reduce(ReduceKind::Sum, doubled, &[0]).unwrap();
    let more = body.binary(Scalar::Lt, sum, limit).unwrap();
    for (name, value) in [("more", more), ("x", doubled), ("i", i)] {
        body.output(name, value);
    }
    let mut g = Graph::new("control");
    let x = input(&mut g, "x", DType::F32, std::slice::from_ref(&n));
    let limit = input(&mut g, "limit", DType::F32, &[]);
    let trips = input(&mut g, "trips", DType::I64, &[]);
    let yes = g.number(1.0, DType::Bool).unwrap();
    let rounds = Sym::new("rounds");
    let results = vec![
        vector.clone().into(),
        TensorType::new(DType::I64, [Dim::from(&rounds)]).into(),
    ];
    let op = Loop {
        body,
        carried: 1,
        results,
        binds: vec![rounds],
    };
    let looped = g.push(op, &[trips, yes, x, limit]).unwrap();
    g.output("grown", looped[0]);
    g.output("rounds", looped[1]);
    // Adds up the elements of the grown vector.
    let mut body = Graph::new("prefix");
    let sum = body.input("sum", scalar(DType::F32)).unwrap();
    let element = body.input("element", scalar(DType::F32)).unwrap();
    let next = body.binary(Scalar::Add, sum, element).unwrap();
    body.output("sum", next);
    body.output("prefix", next);
    let results = vec![scalar(DType::F32).into(), vector.clone().into()];
    let op = Scan {
        body,
        carried: 1,
        scanned: 1,
        results,
        binds: vec![],
    };
    let zero = g.number(0.0, DType::F32).unwrap();
    let scanned = g.push(op, &[zero, looped[0]]).unwrap();
    g.output("prefix", scanned[1]);
    // One branch gives the captured vector itself.
    let branch = |negate: bool| {
        let mut branch = Graph::new("branch");
        let x = branch.input("x", vector.clone()).unwrap();
        let y = if negate {
            branch.unary(Scalar::Neg, x).unwrap()
        } else {
            x
        };
        branch.output("y", y);
        branch
    };
    let big = g.binary(Scalar::Lt, limit, scanned[0]).unwrap();
    let op = If {
        then_branch: branch(false),
        else_branch: branch(true),
        results: vec![vector.into()],
        binds: vec![],
    };
    let chosen = g.push(op, &[big, x]).unwrap();
    g.output("chosen", chosen[0]);
    for trips in [-1i64, 0, 2, 100] {
        let x = Tensor::vector(&[0.5f32, 1.5, 1.0]);
        check(&g, &[x, Tensor::scalar(50f32), Tensor::scalar(trips)]);
    }
}

#[test]
fn sizes_that_data_decides() {
    let count = Sym::new("count");
    let g = one(&[Dim::sym("n")], |g, x| {
        let found = g.push(
            cupola_ir::Op::Host(
                host::NonZero {
                    count: count.clone(),
                }
                .into(),
            ),
            &[x],
        );
        let found = found.unwrap()[0];
        let flat = g.reshape(found, &[Dim::from(&count)]).unwrap();
        let gather = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        let picked = g.one(gather, &[x, flat]).unwrap();
        let scale = g.dim_value(&(Dim::from(&count) + Dim::ONE)).unwrap();
        let scale = g.cast(scale, DType::F32).unwrap();
        g.binary(Scalar::Mul, picked, scale).unwrap()
    });
    check(&g, &[Tensor::vector(&[1f32, 0.0, 3.0, 0.0])]);
    check(&g, &[Tensor::vector(&[0f32, 0.0])]);
}

#[test]
fn weights_become_initializers_or_inputs_and_states_are_refused() {
    let mut g = Graph::new("weights");
    let x = input(&mut g, "x", DType::F32, &sizes(&[3]));
    let ty = TensorType::new(DType::F32, [3usize]).into();
    let w = g
        .one(
            Param {
                name: "w".to_owned(),
                ty,
            },
            &[],
        )
        .unwrap();
    let y = g.binary(Scalar::Mul, x, w).unwrap();
    g.output("y", y);
    let names = |weights: &dyn Fn(&str) -> Option<Tensor>| {
        let graph = export(&g, weights).unwrap().graph.unwrap();
        let inputs: Vec<_> = graph
            .input
            .iter()
            .map(|input| input.name().to_owned())
            .collect();
        (inputs.join(" "), graph.initializer.len())
    };
    assert_eq!(names(&|_| None), ("x w".to_owned(), 0));
    assert_eq!(names(&|_| Some(floats(&[3]))), ("x".to_owned(), 1));
    let bits = g
        .one(
            Random {
                stream: 1,
                dims: sizes(&[2]),
            },
            &[],
        )
        .unwrap();
    g.output("bits", bits);
    let error = export(&g, &|_| None).unwrap_err();
    assert!(matches!(error, ExportError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("random"), "{error}");
}
