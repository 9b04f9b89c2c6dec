//! What is made of constants alone is made when a program is loaded, whoever reads it.

use cupola_ir::eval::{self, Env};
use cupola_ir::ops::{Bounds, Gather};
use cupola_ir::{DType, Dim, Graph, Scalar, Tensor, TensorType, Value, ValueId};
use cupola_runtime::{Cache, CompileOptions, DeviceSpec, Host, Keep, Program, Release, Session};
use std::sync::{Arc, Mutex};

const ROWS: usize = 96;
const COLS: usize = 80;

fn floats(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| (i * 7 % 23) as f32 / 11.0 - 1.0).collect();
    Tensor::from_slice(shape, &values).expect("shape")
}

/// Weights of 8 bits as floats.
fn weights(g: &mut Graph) -> ValueId {
    let bytes: Vec<i8> = (0..ROWS * COLS).map(|i| (i * 31 % 251) as i8).collect();
    let w = Tensor::from_slice(&[ROWS, COLS], &bytes).expect("shape");
    let w = g.constant(w).expect("constant");
    let w = g.cast(w, DType::F32).expect("cast");
    let scale = g.constant(floats(&[COLS])).expect("scales");
    g.binary(Scalar::Mul, w, scale).expect("weights")
}

/// Computes `y` of `x: [n, ROWS]` and weights.
fn graph(read: impl FnOnce(&mut Graph, ValueId, ValueId) -> ValueId) -> Graph {
    let mut g = Graph::new("dequantised");
    let ty = TensorType::new(DType::F32, [Dim::sym("n"), ROWS.into()]);
    let x = g.input("x", ty).expect("input");
    let w = weights(&mut g);
    let y = read(&mut g, x, w);
    g.output("y", y);
    g
}

fn product(g: &mut Graph, x: ValueId, w: ValueId) -> ValueId {
    g.matmul(x, w).expect("product")
}

fn both(g: &mut Graph, x: ValueId, w: ValueId) -> ValueId {
    let y = g.matmul(x, w).expect("product");
    // A sum over the rows of the weights reads them as they are.
    let sum = g
        .reduce(cupola_ir::ops::ReduceKind::Sum, w, &[0])
        .expect("sum");
    let y = g.binary(Scalar::Add, y, sum).expect("added");
    let part = g.slice_axis(w, 0, &Dim::ONE, &Dim::ONE).expect("row");
    let part = g.reshape(part, &[COLS.into()]).expect("row");
    g.binary(Scalar::Mul, y, part).expect("multiplied")
}

fn outputs(g: &mut Graph, x: ValueId, w: ValueId) -> ValueId {
    let y = g.matmul(x, w).expect("product");
    g.output("w", w);
    let flat = g.reshape(w, &[(ROWS * COLS).into()]).expect("flat");
    g.output("flat", flat);
    y
}

/// Compares with the interpreter; whether all of the program was kept.
fn check(graph: &Graph, keep: &Keep) -> bool {
    let options = CompileOptions {
        device: DeviceSpec::Cpu,
        threads: 2,
        verify: true,
        keep: keep.clone(),
        ..CompileOptions::default()
    };
    let program = Program::compile(graph.clone(), &Host::new(), &options).expect("compiles");
    let was_kept = program.was_kept();
    let mut session = Session::new(Arc::new(program));
    for rows in [1, 3, 40] {
        let x = floats(&[rows, ROWS]);
        let want = eval::run(graph, &[x.clone().into()], &mut Env::default()).expect("runs");
        let got = session.run(vec![("x", x.into())]).expect("runs");
        assert_eq!(got.len(), want.len());
        for ((name, got), want) in got.iter().zip(&want) {
            let (Value::Tensor(got), Value::Tensor(want)) = (got, want) else {
                panic!("tensors")
            };
            let (got, want) = (got.to_vec::<f32>(), want.to_vec::<f32>());
            let (got, want) = (got.expect("f32"), want.expect("f32"));
            assert_eq!(got.len(), want.len());
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() <= 1e-4 * b.abs().max(10.0), "{name}: {a} {b}");
            }
        }
    }
    was_kept
}

#[test]
fn made_when_loaded() {
    let graphs = [graph(product), graph(both), graph(outputs)];
    for graph in &graphs {
        assert!(!check(graph, &Keep::default()));
    }
}

#[test]
fn found_by_the_next_program() {
    let folder = std::env::temp_dir().join(format!("cupola-constants-{}", std::process::id()));
    let keep = Keep {
        cache: Some(Cache::new(&folder, 1 << 30)),
        ..Keep::default()
    };
    let kinds: [fn(&mut Graph, ValueId, ValueId) -> ValueId; 2] = [product, both];
    for kind in kinds {
        assert!(!check(&graph(kind), &keep));
        assert!(check(&graph(kind), &keep));
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// Told of what need not stay, a table of which rows are picked is let go of in every run that asks for it, and found again;
/// one that is read as a whole is not.
#[test]
fn picked_rows_are_given_back() {
    for read_whole in [false, true] {
        let mut g = Graph::new("rows");
        let ty = TensorType::new(DType::I64, [Dim::sym("n")]);
        let at = g.input("at", ty).expect("input");
        let table = floats(&[ROWS, COLS]);
        let place = table.bytes().as_ptr() as usize;
        let t = g.constant(table.clone()).expect("constant");
        let gather = Gather {
            axes: vec![0],
            batch: 0,
            bounds: Bounds::Check,
        };
        let rows = g.one(gather, &[t, at]).expect("rows");
        g.output("rows", rows);
        if read_whole {
            let n = g.dim_value(&Dim::sym("n")).expect("size");
            let n = g.cast(n, DType::F32).expect("size");
            let sum = g.binary(Scalar::Add, t, n).expect("sum");
            g.output("sum", sum);
        }
        let released = Arc::new(Mutex::new(vec![]));
        let told = released.clone();
        let options = CompileOptions {
            release: Some(Release::new(move |bytes: &[u8]| {
                told.lock().expect("list").push(bytes.as_ptr() as usize);
            })),
            ..CompileOptions::default()
        };
        let program = Program::compile(g, &Host::new(), &options).expect("program");
        let mut session = Session::new(Arc::new(program));
        released.lock().expect("list").clear();
        for gives_back in [false, true, true] {
            session.state_mut().gives_back_picked = gives_back;
            let at = Tensor::vector(&[3i64, 90, 3]);
            let outputs = session.run(vec![("at", at.into())]).expect("run");
            let rows = outputs[0].1.as_tensor().and_then(|t| t.to_vec::<f32>());
            let all = table.to_vec::<f32>().expect("floats");
            let want: Vec<f32> = [3, 90, 3]
                .iter()
                .flat_map(|r| all[r * COLS..][..COLS].to_vec())
                .collect();
            assert_eq!(rows, Some(want));
        }
        let times = released
            .lock()
            .expect("list")
            .iter()
            .filter(|p| **p == place)
            .count();
        assert_eq!(times, if read_whole { 0 } else { 2 });
    }
}
