//! Products and convolutions of 8-bit integers against the interpreter, bit for bit, at every vector level.
//!
//! The level is chosen once in a process, so the test starts itself again for each.

use cupola_ir::composite::{Conv, DynamicQuantize, IntegerConv, IntegerProduct};
use cupola_ir::eval::{self, Env};
use cupola_ir::{DType, Graph, Op, Scalar, Tensor, TensorType, Value, ValueId};
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::process::Command;
use std::sync::Arc;

/// A small generator of pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[(self.next() % from.len() as u64) as usize].clone()
    }

    /// Bytes of either end and between.
    fn bytes(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let len = shape.iter().product();
        let all: Vec<u8> = (0..len)
            .map(|_| match self.next() % 8 {
                0 => 0x80,
                1 => 0x7F,
                2 => 0xFF,
                _ => self.next() as u8,
            })
            .collect();
        Tensor::new(dtype, shape.to_vec(), all.into()).expect("bytes")
    }
}

/// A graph on its way, and its inputs.
struct Case {
    graph: Graph,
    inputs: Vec<(String, Value)>,
}

impl Case {
    fn new() -> Case {
        Case {
            graph: Graph::new("case"),
            inputs: vec![],
        }
    }

    /// The tensor as a constant or as an input.
    fn give(&mut self, t: Tensor, constant: bool) -> ValueId {
        if constant {
            return self.graph.constant(t).expect("constant");
        }
        let name = format!("x{}", self.inputs.len());
        let ty = TensorType::new(t.dtype(), t.shape().iter().copied());
        let v = self.graph.input(&name, ty).expect("input");
        self.inputs.push((name, t.into()));
        v
    }

    /// Adds the value as an output, as it is or (`scaled`) as f32 times a number.
    fn end(&mut self, y: ValueId, scaled: bool) {
        let g = &mut self.graph;
        let y = match scaled {
            true => {
                let y = g.cast(y, DType::F32).expect("cast");
                g.scale(y, 0.37).expect("scaled")
            }
            false => y,
        };
        g.output("y", y);
    }

    /// Runs it compiled and interpreted, and compares.
    fn check(self, what: &str) {
        let values: Vec<Value> = self.inputs.iter().map(|(_, v)| v.clone()).collect();
        let want = eval::run(&self.graph, &values, &mut Env::default()).expect("interpreted");
        for (threads, level) in [(1, 2), (3, 3), (1, 0)] {
            let options = CompileOptions {
                device: DeviceSpec::Cpu,
                level,
                threads,
                verify: true,
                ..CompileOptions::default()
            };
            let program = Program::compile(self.graph.clone(), &Host::new(), &options);
            let mut session = Session::new(Arc::new(program.expect("compiles")));
            let inputs = self.inputs.iter().map(|(n, v)| (n.as_str(), v.clone()));
            let got = session.run(inputs.collect()).expect("runs");
            for ((_, got), want) in got.iter().zip(&want) {
                let (Value::Tensor(got), Value::Tensor(want)) = (got, want) else {
                    panic!("tensors")
                };
                assert_eq!(got.shape(), want.shape(), "{what}");
                assert!(got.bytes() == want.bytes(), "{what} at -O{level}");
            }
        }
    }
}

const DTYPES: [DType; 2] = [DType::I8, DType::U8];

fn product(random: &mut Random) {
    let sizes = [1, 2, 3, 5, 8, 16, 17, 31, 33, 70, 129];
    let [m, k, n] = [0; 3].map(|_| random.pick(&sizes));
    let batch = random.pick(&[None, None, Some(1), Some(3)]);
    let [left, right] = [0; 2].map(|_| random.pick(&DTYPES));
    let [
        l_const,
        r_const,
        l_zero_const,
        r_zero_const,
        turned,
        each_l,
        each_r,
        scaled,
    ] = [0; 8].map(|_| random.pick(&[true, false]));
    let what = format!(
        "{batch:?} {m} {k} {n} {left} {right} {:?}",
        [
            l_const,
            r_const,
            l_zero_const,
            r_zero_const,
            turned,
            each_l,
            each_r,
            scaled
        ]
    );
    let mut case = Case::new();
    let lead: Vec<usize> = batch.into_iter().collect();
    let shape = |a: usize, b: usize| [&lead[..], &[a, b]].concat();
    let l = random.bytes(left, &shape(m, k));
    let r = match turned {
        true => random.bytes(right, &shape(n, k)),
        false => random.bytes(right, &shape(k, n)),
    };
    let zero = |random: &mut Random, dtype, each: bool, len: usize| match each {
        true => random.bytes(dtype, &[len]),
        false => random.bytes(dtype, &[]),
    };
    let l_zero = zero(random, left, each_l, m);
    let r_zero = zero(random, right, each_r, n);
    let operands = [
        case.give(l, l_const && !r_const),
        case.give(r, r_const),
        case.give(l_zero, l_zero_const),
        case.give(r_zero, r_zero_const),
    ];
    let axes: Vec<usize> = (0..lead.len()).collect();
    let op = IntegerProduct {
        lhs_batch: axes.clone(),
        rhs_batch: axes,
        lhs_contract: vec![lead.len() + 1],
        rhs_contract: vec![lead.len() + usize::from(turned)],
    };
    let op = Op::Composite(op.into());
    let y = case.graph.one(op, &operands).expect("product");
    case.end(y, scaled);
    case.check(&what);
}

fn convolution(random: &mut Random) {
    let spatial = random.pick(&[1usize, 1, 2]);
    let groups = random.pick(&[1usize, 1, 2]);
    let [inputs, outputs] = [0; 2].map(|_| random.pick(&[1usize, 3, 4, 13, 16, 34]));
    let each = |random: &mut Random, from: &[i64]| -> Vec<i64> {
        (0..spatial).map(|_| random.pick(from)).collect()
    };
    let extents = each(random, &[5, 9, 40, 75]);
    let kernel = each(random, &[1, 2, 3]);
    let (strides, dilations) = (each(random, &[1, 1, 2]), each(random, &[1, 1, 2]));
    let (low, high) = (each(random, &[0, 1, 3]), each(random, &[0, 2]));
    let [x_dtype, w_dtype] = [0; 2].map(|_| random.pick(&DTYPES));
    let [w_const, zero_const, each_w, scaled] = [0; 4].map(|_| random.pick(&[true, false]));
    let what = format!(
        "{groups} x {inputs} to {outputs}, {extents:?} by {kernel:?}, {strides:?} {dilations:?} {low:?} {high:?}, \
         {x_dtype} {w_dtype} {:?}",
        [w_const, zero_const, each_w, scaled]
    );
    let usizes = |v: &[i64]| v.iter().map(|d| *d as usize).collect::<Vec<_>>();
    let x = [&[2, inputs * groups], &usizes(&extents)[..]].concat();
    let w = [&[outputs * groups, inputs], &usizes(&kernel)[..]].concat();
    let mut case = Case::new();
    let w_zero: &[usize] = if each_w { &[outputs * groups] } else { &[] };
    let operands = [
        case.give(random.bytes(x_dtype, &x), false),
        case.give(random.bytes(w_dtype, &w), w_const),
        case.give(random.bytes(x_dtype, &[]), false),
        case.give(random.bytes(w_dtype, w_zero), zero_const),
    ];
    let dims = |v: &[i64]| v.iter().map(|d| (*d as usize).into()).collect();
    let conv = Conv {
        strides,
        dilations,
        pads_low: dims(&low),
        pads_high: dims(&high),
        groups,
    };
    let op = Op::Composite(IntegerConv::from(conv).into());
    let y = case.graph.one(op, &operands).expect("convolution");
    case.end(y, scaled);
    case.check(&what);
}

/// Floats rounded over their range, then multiplied by constant weights.
fn rounded(random: &mut Random) {
    let [m, k, n] = [0; 3].map(|_| random.pick(&[1, 4, 19, 64, 200]));
    let mut case = Case::new();
    let floats: Vec<f32> = (0..m * k)
        .map(|_| (random.next() >> 40) as f32 / (1 << 22) as f32 - 1.25)
        .collect();
    let x = case.give(Tensor::from_slice(&[m, k], &floats).expect("x"), false);
    let w = case.give(random.bytes(DType::I8, &[k, n]), true);
    let zero = case.give(random.bytes(DType::I8, &[]), true);
    let g = &mut case.graph;
    let rounding = Op::Composite(DynamicQuantize {}.into());
    let x = g.push(rounding, &[x]).expect("rounded");
    let op = IntegerProduct {
        lhs_batch: vec![],
        rhs_batch: vec![],
        lhs_contract: vec![1],
        rhs_contract: vec![0],
    };
    let op = Op::Composite(op.into());
    let y = g.one(op, &[x[0], w, x[2], zero]).expect("product");
    let y = g.cast(y, DType::F32).expect("cast");
    let scale = g.broadcast_to(x[1], &g.dims(y)).expect("scale");
    let y = g.binary(Scalar::Mul, y, scale).expect("scaled");
    g.output("y", y);
    case.check(&format!("rounded {m} {k} {n}"));
}

#[test]
fn equal_the_interpreter() {
    let mut random = Random(5);
    for _ in 0..120 {
        product(&mut random);
    }
    for _ in 0..80 {
        convolution(&mut random);
    }
    for _ in 0..10 {
        rounded(&mut random);
    }
}

#[test]
fn every_level_equals_the_interpreter() {
    // Not the current executable, which is the loader where one was named.
    let program = std::env::args_os().next().expect("the name of this test");
    for level in ["x86-64-v2", "x86-64-v3", "x86-64-v4"] {
        let output = Command::new(&program)
            .args(["--exact", "equal_the_interpreter"])
            .env("CUPOLA_CPU", level)
            .output()
            .expect("starts");
        let error = String::from_utf8_lossy(&output.stderr);
        let text = String::from_utf8_lossy(&output.stdout);
        let lacks = [&*error, &*text]
            .iter()
            .any(|t| t.contains("does not have that level"));
        assert!(lacks || output.status.success(), "{level}: {text}{error}");
    }
}
