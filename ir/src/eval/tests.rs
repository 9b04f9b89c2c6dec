use super::*;
use crate::composite::{Attention, Cell, Conv, ConvTranspose, Recurrent, Softmax};
use crate::dim::{Dim, Sym};
use crate::dtype::DType;
use crate::ops::*;
use crate::scalar::Scalar;
use crate::tensor_type::{TensorType, ValueType};

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

fn input(g: &mut Graph, name: &str, dtype: DType, dims: &[Dim]) -> ValueId {
    g.input(name, TensorType::new(dtype, dims.iter().cloned()))
        .unwrap()
}

fn run_one(g: &Graph, inputs: &[Tensor]) -> Result<Tensor> {
    let inputs: Vec<Value> = inputs.iter().cloned().map(Value::Tensor).collect();
    let out = run(g, &inputs, &mut Env::default())?;
    Ok(out[0].as_tensor().unwrap().clone())
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_vec::<f32>().unwrap()
}

/// Small numbers without a pattern.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let len: usize = shape.iter().product();
    let all: Vec<f32> = (0..len as u64)
        .map(|i| (random::bits(seed, 0, 0, i) % 17) as f32 / 4.0 - 2.0)
        .collect();
    Tensor::from_slice(shape, &all).unwrap()
}

#[test]
fn inputs_bind_symbols_and_contradictions_are_named() {
    let mut g = Graph::new("g");
    let n = sym("n");
    let x = input(&mut g, "x", DType::F32, &[n.clone(), Dim::from(2i64)]);
    let y = input(&mut g, "y", DType::F32, &[n.clone() * Dim::from(2i64)]);
    let sum = g.reduce(ReduceKind::Sum, x, &[0]).unwrap();
    let size = g.dim_value(&(n + Dim::ONE)).unwrap();
    g.output("sum", sum);
    g.output("size", size);
    g.output("y", y);
    let x = Tensor::from_slice(&[3, 2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let good = Tensor::vector(&[0f32; 6]);
    let mut env = Env::default();
    let out = run(&g, &[x.clone().into(), good.into()], &mut env).unwrap();
    assert_eq!(floats(out[0].as_tensor().unwrap()), [9.0, 12.0]);
    assert_eq!(out[1].as_tensor().unwrap().to_i64s(), Some(vec![4]));
    assert_eq!(env.bindings.get(&Sym::new("n")), Some(3));
    let bad = Tensor::vector(&[0f32; 5]);
    let error = run(&g, &[x.into(), bad.into()], &mut env).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input 'y': expected f32[2*$n], got f32[5]: axis 0 has extent 5 instead of 6 = 2*$n"
    );
    let flat = Tensor::vector(&[0f32; 5]);
    let error = run(&g, &[flat.clone().into(), flat.into()], &mut env).unwrap_err();
    assert!(
        error.to_string().contains("it has 1 axes, not 2"),
        "{error}"
    );
}

#[test]
fn a_linear_extent_binds_its_symbol() {
    let mut g = Graph::new("g");
    let twice = sym("n") * Dim::from(2i64) + Dim::ONE;
    let x = input(&mut g, "x", DType::F32, &[twice]);
    let n = g.dim_value(&sym("n")).unwrap();
    g.output("n", n);
    let _ = x;
    let n = run_one(&g, &[Tensor::vector(&[0f32; 7])]).unwrap();
    assert_eq!(n.to_i64s(), Some(vec![3]));
    assert!(run_one(&g, &[Tensor::vector(&[0f32; 6])]).is_err());
}

#[test]
fn direct_convolutions_agree_with_their_decompositions() {
    let d = |v: i64| Dim::from(v);
    let cases = [
        (
            vec![2, 4, 5, 6],
            vec![6, 2, 3, 2],
            2,
            vec![2, 1],
            vec![1, 2],
            [vec![1, 0], vec![2, 1]],
        ),
        (
            vec![1, 3, 7],
            vec![2, 3, 3],
            1,
            vec![1],
            vec![1],
            [vec![0], vec![0]],
        ),
        (
            vec![1, 2, 3, 4, 5],
            vec![2, 1, 2, 2, 2],
            2,
            vec![1, 2, 1],
            vec![1, 1, 2],
            [vec![1, 1, 1], vec![0, 0, 1]],
        ),
        (
            vec![1, 1, 1, 1],
            vec![3, 1, 1, 1],
            1,
            vec![1, 1],
            vec![1, 1],
            [vec![0, 0], vec![0, 0]],
        ),
    ];
    for (xs, ws, groups, strides, dilations, [low, high]) in cases {
        let conv = Conv {
            strides: strides.clone(),
            dilations: dilations.clone(),
            pads_low: low.iter().map(|v| d(*v)).collect(),
            pads_high: high.iter().map(|v| d(*v)).collect(),
            groups,
        };
        both_ways(conv.into(), &numbers(&xs, 1), &numbers(&ws, 2));
        // The adjoint: the result of the convolution is the operand here.
        let out_spatial = xs[2..].to_vec();
        let n = out_spatial.len();
        let windows: Vec<usize> = (0..n)
            .map(|a| {
                let padded = xs[2 + a] as i64 + low[a] + high[a];
                ((padded - dilations[a] * (ws[2 + a] as i64 - 1) - 1) / strides[a] + 1) as usize
            })
            .collect();
        let shape = [&[xs[0], ws[0]], &windows[..]].concat();
        let transpose = ConvTranspose {
            strides,
            dilations,
            pads_low: low.iter().map(|v| d(*v)).collect(),
            spatial: out_spatial.iter().map(|v| Dim::from(*v)).collect(),
            groups,
        };
        both_ways(transpose.into(), &numbers(&shape, 3), &numbers(&ws, 4));
    }
}

fn both_ways(op: crate::CompositeOp, x: &Tensor, w: &Tensor) {
    let values = [Value::from(x.clone()), Value::from(w.clone())];
    let own = op.def().eval(&[&values[0], &values[1]]).unwrap().unwrap();
    let types = [ValueType::from(x.ty()), ValueType::from(w.ty())];
    let (graph, _) = op.expand(&[&types[0], &types[1]]).unwrap();
    let plain = run(&graph, &values, &mut Env::default()).unwrap();
    // Exact: the numbers are small multiples of 1/4.
    assert_eq!(
        own[0].as_tensor().unwrap().shape(),
        plain[0].as_tensor().unwrap().shape()
    );
    assert_eq!(own, plain, "{}", op.name());
    assert!(
        floats(own[0].as_tensor().unwrap())
            .iter()
            .any(|v| *v != 0.0)
    );
}

#[test]
fn products_with_any_axes() {
    let mut g = Graph::new("g");
    let x = input(
        &mut g,
        "x",
        DType::F32,
        &[Dim::from(3i64), Dim::from(2i64), Dim::from(5i64)],
    );
    let y = input(
        &mut g,
        "y",
        DType::F32,
        &[Dim::from(5i64), Dim::from(4i64), Dim::from(2i64)],
    );
    let c = Contract {
        lhs_batch: vec![1],
        rhs_batch: vec![2],
        lhs_contract: vec![2],
        rhs_contract: vec![0],
        accum: DType::F32,
        out: DType::F32,
    };
    let z = g.one(c, &[x, y]).unwrap();
    g.output("z", z);
    let (x, y) = (numbers(&[3, 2, 5], 5), numbers(&[5, 4, 2], 6));
    let z = run_one(&g, &[x.clone(), y.clone()]).unwrap();
    let (x, y, z) = (floats(&x), floats(&y), floats(&z));
    for b in 0..2 {
        for m in 0..3 {
            for n in 0..4 {
                let want: f32 = (0..5)
                    .map(|k| x[m * 10 + b * 5 + k] * y[k * 8 + n * 2 + b])
                    .sum();
                assert_eq!(z[b * 12 + m * 4 + n], want);
            }
        }
    }
}

#[test]
fn integer_products_wrap_and_mix_signs() {
    let mut g = Graph::new("g");
    let x = input(&mut g, "x", DType::U8, &[Dim::from(1i64), Dim::from(3i64)]);
    let y = input(&mut g, "y", DType::I8, &[Dim::from(3i64), Dim::from(1i64)]);
    let c = Contract {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: vec![1],
        rhs_contract: vec![0],
        accum: DType::I32,
        out: DType::I32,
    };
    let z = g.one(c, &[x, y]).unwrap();
    g.output("z", z);
    let x = Tensor::from_slice(&[1, 3], &[255u8, 255, 1]).unwrap();
    let y = Tensor::from_slice(&[3, 1], &[-128i8, 127, 3]).unwrap();
    assert_eq!(run_one(&g, &[x, y]).unwrap().to_i64s(), Some(vec![-252]));
}

#[test]
fn loops_stack_and_stop() {
    // carried += iteration; stops when it reaches 6; scanned gives its square.
    let mut body = Graph::new("body");
    let i = input(&mut body, "i", DType::I64, &[]);
    let c = input(&mut body, "c", DType::I64, &[]);
    let next = body.binary(Scalar::Add, c, i).unwrap();
    let six = body.number(6.0, DType::I64).unwrap();
    let go = body.binary(Scalar::Lt, next, six).unwrap();
    let square = body.binary(Scalar::Mul, next, next).unwrap();
    body.output("go", go);
    body.output("next", next);
    body.output("square", square);
    let mut g = Graph::new("g");
    let trips = input(&mut g, "trips", DType::I64, &[]);
    let start = g.number(0.0, DType::I64).unwrap();
    let yes = g.number(1.0, DType::Bool).unwrap();
    let op = Loop {
        body,
        carried: 1,
        results: vec![
            TensorType::scalar(DType::I64).into(),
            TensorType::new(DType::I64, [sym("k")]).into(),
        ],
        binds: vec![Sym::new("k")],
    };
    let out = g.push(op, &[trips, yes, start]).unwrap();
    let k = g.dim_value(&sym("k")).unwrap();
    g.output("last", out[0]);
    g.output("squares", out[1]);
    g.output("k", k);
    let ints = |trips: i64| -> Vec<Vec<i64>> {
        let out = run(&g, &[Tensor::scalar(trips).into()], &mut Env::default()).unwrap();
        out.iter()
            .map(|v| v.as_tensor().unwrap().to_i64s().unwrap())
            .collect()
    };
    assert_eq!(ints(-1), [vec![6], vec![0, 1, 9, 36], vec![4]]);
    assert_eq!(ints(2), [vec![1], vec![0, 1], vec![2]]);
    assert_eq!(ints(0), [vec![0], vec![], vec![0]]);
}

#[test]
fn scans_and_branches() {
    let mut body = Graph::new("body");
    let c = input(&mut body, "c", DType::F32, &[]);
    let x = input(&mut body, "x", DType::F32, &[]);
    let s = body.binary(Scalar::Add, c, x).unwrap();
    body.output("c", s);
    body.output("s", s);
    let mut g = Graph::new("g");
    let start = input(&mut g, "start", DType::F32, &[]);
    let xs = input(&mut g, "xs", DType::F32, &[sym("n")]);
    let results = vec![
        TensorType::scalar(DType::F32).into(),
        TensorType::new(DType::F32, [sym("n")]).into(),
    ];
    let op = Scan {
        body,
        carried: 1,
        scanned: 1,
        results,
        binds: vec![],
    };
    let out = g.push(op, &[start, xs]).unwrap();
    g.output("sums", out[1]);
    let start = Tensor::scalar(10f32);
    let sums = run_one(&g, &[start.clone(), Tensor::vector(&[1f32, 2.0, 3.0])]).unwrap();
    assert_eq!(floats(&sums), [11.0, 13.0, 16.0]);
    let none = run_one(&g, &[start, Tensor::vector::<f32>(&[])]).unwrap();
    assert_eq!(none.shape(), [0]);
}

#[test]
fn states_change_only_when_the_run_succeeds() {
    let mut g = Graph::new("g");
    let ty = TensorType::scalar(DType::I32);
    g.slots.insert(
        "count".into(),
        crate::StateSlot {
            ty: ty.clone().into(),
            initial: Tensor::scalar(5i32),
        },
    );
    let x = input(&mut g, "x", DType::I32, &[]);
    let old = g
        .one(
            ReadState {
                slot: "count".into(),
                ty: ty.into(),
            },
            &[],
        )
        .unwrap();
    let new = g.binary(Scalar::Add, old, x).unwrap();
    let new = g
        .one(
            WriteState {
                slot: "count".into(),
            },
            &[new],
        )
        .unwrap();
    let ratio = g.binary(Scalar::Div, new, x).unwrap();
    g.output("ratio", ratio);
    let mut env = Env::default();
    let mut step = |x: i32| {
        run(&g, &[Tensor::scalar(x).into()], &mut env)
            .map(|o| o[0].as_tensor().unwrap().to_i64s().unwrap()[0])
    };
    assert_eq!(step(1), Ok(6));
    assert_eq!(
        step(0),
        Err(IrError::run("map", "integer division by zero"))
    );
    assert_eq!(step(2), Ok(4));
    assert_eq!(env.run, 2);
}

#[test]
fn strings_move_like_numbers() {
    let mut g = Graph::new("g");
    let x = input(&mut g, "x", DType::String, &[sym("n")]);
    let flipped = g.flip(x, 0).unwrap();
    let both = g.concat(&[x, flipped], 0).unwrap();
    let at = g.i64s(&[3, 0]).unwrap();
    let picked = Gather {
        axes: vec![0],
        batch: 0,
        bounds: Bounds::Check,
    };
    let picked = g.one(picked, &[both, at]).unwrap();
    let same = g.binary(Scalar::Eq, x, flipped).unwrap();
    g.output("picked", picked);
    g.output("same", same);
    let words = ["a", "b", "c"].map(String::from).to_vec();
    let x = Tensor::from_strings(vec![3], words).unwrap();
    let out = run(&g, &[x.into()], &mut Env::default()).unwrap();
    assert_eq!(out[0].as_tensor().unwrap().strings().unwrap(), ["c", "a"]);
    assert_eq!(out[1].as_tensor().unwrap().bytes(), [0, 1, 0]);
}

#[test]
fn indices_outside_are_errors_clamped_or_skipped() {
    let result = |bounds: Bounds| {
        let mut g = Graph::new("g");
        let x = input(&mut g, "x", DType::F32, &[Dim::from(2i64)]);
        let at = g.i64s(&[1, 2, -1]).unwrap();
        let y = g
            .one(
                Gather {
                    axes: vec![0],
                    batch: 0,
                    bounds,
                },
                &[x, at],
            )
            .unwrap();
        g.output("y", y);
        run_one(&g, &[Tensor::vector(&[3f32, 4.0])])
    };
    assert!(
        result(Bounds::Check)
            .unwrap_err()
            .to_string()
            .contains("index 2 is outside axis 0 of extent 2")
    );
    assert_eq!(floats(&result(Bounds::Clamp).unwrap()), [4.0, 4.0, 3.0]);
    assert_eq!(floats(&result(Bounds::Skip).unwrap()), [4.0, 0.0, 0.0]);
}

#[test]
fn sizes_are_limited_before_memory_is_taken() {
    let mut g = Graph::new("g");
    let x = input(&mut g, "x", DType::F32, &[Dim::ONE]);
    let y = g.broadcast_to(x, &[Dim::from(1i64 << 40)]).unwrap();
    g.output("y", y);
    let error = run_one(&g, &[Tensor::vector(&[3f32])]).unwrap_err();
    assert!(matches!(error, IrError::Limit(_)), "{error}");
    let mut env = Env {
        stop: Stop {
            flags: vec![Arc::new(AtomicBool::new(true))],
            deadline: None,
        },
        ..Env::default()
    };
    let error = run(&g, &[Tensor::vector(&[3f32]).into()], &mut env).unwrap_err();
    assert_eq!(error, IrError::Cancelled);
}

#[test]
fn composites_are_interpreted_by_their_decomposition() {
    let mut g = Graph::new("g");
    let x = input(&mut g, "x", DType::F32, &[Dim::ONE, sym("n")]);
    let op = Op::Composite(
        Softmax {
            axis: 1,
            log: false,
        }
        .into(),
    );
    let y = g.one(op, &[x]).unwrap();
    g.output("y", y);
    let y = floats(
        &run_one(
            &g,
            &[Tensor::from_slice(&[1, 3], &[1f32, 2.0, 3.0]).unwrap()],
        )
        .unwrap(),
    );
    let want = [0.090_030_57, 0.244_728_48, 0.665_240_94];
    assert!(
        y.iter()
            .zip(want)
            .all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-7),
        "{y:?}"
    );
}

#[test]
fn attention_ignores_masked_keys() {
    let mut g = Graph::new("g");
    let dims = |n: i64| [Dim::ONE, Dim::ONE, Dim::from(n), Dim::ONE];
    let q = input(&mut g, "q", DType::F32, &dims(2));
    let k = input(&mut g, "k", DType::F32, &dims(2));
    let v = input(&mut g, "v", DType::F32, &dims(2));
    let op = Attention {
        scale: 1.0,
        causal: true,
        softcap: 0.0,
    };
    let y = g.one(Op::Composite(op.into()), &[q, k, v]).unwrap();
    g.output("y", y);
    let t = |v: [f32; 2]| Tensor::from_slice(&[1, 1, 2, 1], &v).unwrap();
    let y = floats(&run_one(&g, &[t([1.0, 0.0]), t([1.0, 5.0]), t([2.0, 4.0])]).unwrap());
    assert_eq!(y, [2.0, 3.0]);
}

#[test]
fn sub_byte_and_small_float_elements() {
    let mut g = Graph::new("g");
    let x = input(&mut g, "x", DType::I4, &[Dim::from(5i64)]);
    let f = g.flip(x, 0).unwrap();
    let y = g.cast(f, DType::F32).unwrap();
    let z = g.cast(y, DType::F4E2M1).unwrap();
    let z = g.cast(z, DType::F32).unwrap();
    g.output("y", y);
    g.output("z", z);
    let x = crate::convert::cast(&Tensor::vector(&[1i8, -8, 7, 0, -3]), DType::I4, true).unwrap();
    let out = run(&g, &[x.into()], &mut Env::default()).unwrap();
    assert_eq!(
        floats(out[0].as_tensor().unwrap()),
        [-3.0, 0.0, 7.0, -8.0, 1.0]
    );
    assert_eq!(
        floats(out[1].as_tensor().unwrap()),
        [-3.0, 0.0, 6.0, -6.0, 1.0]
    );
}

#[test]
fn sorting_is_stable_and_nan_is_largest() {
    for (descending, values, positions) in [
        (false, [-1.0, 2.0, 2.0, f32::NAN], [3, 0, 2, 1]),
        (true, [f32::NAN, 2.0, 2.0, -1.0], [1, 0, 2, 3]),
    ] {
        let mut g = Graph::new("g");
        let x = input(&mut g, "x", DType::F32, &[Dim::from(4i64), Dim::ONE]);
        let out = g
            .push(
                Sort {
                    axis: 0,
                    descending,
                },
                &[x],
            )
            .unwrap();
        g.output("values", out[0]);
        g.output("at", out[1]);
        let x = Tensor::from_slice(&[4, 1], &[2.0, f32::NAN, 2.0, -1.0]).unwrap();
        let out = run(&g, &[x.into()], &mut Env::default()).unwrap();
        let got = floats(out[0].as_tensor().unwrap());
        assert_eq!(format!("{got:?}"), format!("{values:?}"));
        assert_eq!(out[1].as_tensor().unwrap().to_i64s().unwrap(), positions);
    }
}

#[test]
fn lstm_clips_its_gates_but_not_its_state() {
    let mut g = Graph::new("g");
    let matrix = |g: &mut Graph, name, rows: i64, cols: i64| {
        input(g, name, DType::F32, &[Dim::from(rows), Dim::from(cols)])
    };
    let x = g
        .input(
            "x",
            TensorType::new(DType::F32, [1i64, 1, 1].map(Dim::from)),
        )
        .unwrap();
    let (w, r) = (matrix(&mut g, "w", 4, 1), matrix(&mut g, "r", 4, 1));
    let (h, c) = (matrix(&mut g, "h", 1, 1), matrix(&mut g, "c", 1, 1));
    let op = Recurrent {
        cell: Cell::Lstm,
        activations: ["sigmoid", "tanh", "tanh"].map(String::from).to_vec(),
        alpha: vec![0.0; 3],
        beta: vec![0.0; 3],
        clip: 0.7,
        input_forget: false,
        linear_before_reset: false,
        reverse: false,
        bias: false,
        lens: false,
        peephole: false,
        quantized: false,
    };
    let results = g.push(Op::Composite(op.into()), &[x, w, r, h, c]).unwrap();
    g.output("h", results[1]);
    g.output("c", results[2]);
    let of = |shape: &[usize], v: f32| -> Value {
        let len = shape.iter().product();
        Tensor::from_slice(shape, &vec![v; len]).unwrap().into()
    };
    // All gates are 10, so 0.7: i = f = o = sigmoid(0.7), g = tanh(0.7), c = f * 3 + i * g, h = o * tanh(c).
    let inputs = [
        of(&[1, 1, 1], 1.0),
        of(&[4, 1], 10.0),
        of(&[4, 1], 0.0),
        of(&[1, 1], 0.0),
        of(&[1, 1], 3.0),
    ];
    let out = run(&g, &inputs, &mut Env::default()).unwrap();
    let got: Vec<f32> = out
        .iter()
        .map(|v| floats(v.as_tensor().unwrap())[0])
        .collect();
    assert!((got[0] - 0.657_459_7).abs() < 1e-6, "{got:?}");
    assert!((got[1] - 2.408_394_6).abs() < 1e-6, "{got:?}");
}
