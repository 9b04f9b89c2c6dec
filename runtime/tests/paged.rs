//! A cache of keys and values in pages: written where it is, and attended to as the interpreter does.

use cupola_ir::composite::PagedAttention;
use cupola_ir::graph::StateSlot;
use cupola_ir::ops::{Bounds, ReadState, Scatter, ScatterKind, WriteState};
use cupola_ir::{DType, Dim, Graph, Scalar, Tensor, TensorType, Value, ValueId};
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, RunValue, Session};
use std::sync::Arc;

/// Extents and options of one decoder block.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    depth: usize,
    page_len: usize,
    cache: DType,
    window: i64,
    softcap: f64,
}

const USUAL: Shape = Shape {
    heads: 6,
    kv_heads: 2,
    depth: 64,
    page_len: 16,
    cache: DType::F16,
    window: 0,
    softcap: 0.0,
};

const SMALL: Shape = Shape {
    heads: 2,
    depth: 16,
    page_len: 8,
    ..USUAL
};

const PAGES: usize = 40;

/// Rows `q` attend to the cache after `k` and `v` were written at their positions.
fn graph(s: Shape) -> Graph {
    let mut g = Graph::new("block");
    let rows = Dim::sym("rows");
    let fixed = |n: usize| Dim::from(n);
    let kv = [rows.clone(), fixed(s.kv_heads), fixed(s.depth)];
    let q = g
        .input(
            "q",
            TensorType::new(DType::F32, [rows.clone(), fixed(s.heads), fixed(s.depth)]),
        )
        .unwrap();
    let k = g
        .input("k", TensorType::new(DType::F32, kv.clone()))
        .unwrap();
    let v = g.input("v", TensorType::new(DType::F32, kv)).unwrap();
    let indices = TensorType::new(DType::I64, [rows]);
    let table = TensorType::new(DType::I64, [Dim::sym("batch"), Dim::sym("blocks")]);
    let table = g.input("table", table).unwrap();
    let sequences = g.input("sequences", indices.clone()).unwrap();
    let positions = g.input("positions", indices).unwrap();
    let page_len = g.number(s.page_len as f64, DType::I64).unwrap();
    let page_len = g.broadcast_to(page_len, &g.dims(positions)).unwrap();
    let block = g.binary(Scalar::Div, positions, page_len).unwrap();
    let offset = g.binary(Scalar::Rem, positions, page_len).unwrap();
    let gather = cupola_ir::ops::Gather {
        axes: vec![0, 1],
        batch: 0,
        bounds: Bounds::Check,
    };
    let page = g.one(gather, &[table, sequences, block]).unwrap();
    let mut cache = |name: &str, x: ValueId| {
        let dims = [
            Dim::sym("pages"),
            fixed(s.kv_heads),
            fixed(s.page_len),
            fixed(s.depth),
        ];
        let ty: cupola_ir::ValueType = TensorType::new(s.cache, dims).into();
        let initial = Tensor::new(
            s.cache,
            vec![0, s.kv_heads, s.page_len, s.depth],
            bytes::Bytes::new(),
        )
        .unwrap();
        g.slots.insert(
            name.into(),
            StateSlot {
                ty: ty.clone(),
                initial,
            },
        );
        let old = g
            .one(
                ReadState {
                    slot: name.into(),
                    ty,
                },
                &[],
            )
            .unwrap();
        let x = g.cast(x, s.cache).unwrap();
        let scatter = Scatter {
            axes: vec![0, 2],
            batch: 0,
            kind: ScatterKind::Set,
            bounds: Bounds::Check,
        };
        let new = g.one(scatter, &[old, x, page, offset]).unwrap();
        g.one(WriteState { slot: name.into() }, &[new]).unwrap()
    };
    let (k, v) = (cache("key", k), cache("value", v));
    let attention = PagedAttention {
        scale: 0.3,
        softcap: s.softcap,
        window: s.window,
    };
    let y = g
        .one(
            cupola_ir::Op::Composite(cupola_ir::CompositeOp::PagedAttention(attention)),
            &[q, k, v, table, sequences, positions],
        )
        .unwrap();
    g.output("y", y);
    g
}

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9) | 1;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x % 65) as f32 / 32.0 - 1.0
    };
    (0..len).map(next).collect()
}

/// One run: how many rows of which sequences from which positions on.
type Batch<'a> = &'a [(i64, i64, usize)];

fn inputs(s: Shape, batch: Batch<'_>, seed: u32) -> Vec<(&'static str, Value)> {
    let sequences: Vec<i64> = batch
        .iter()
        .flat_map(|(s, _, n)| std::iter::repeat_n(*s, *n))
        .collect();
    let positions: Vec<i64> = batch
        .iter()
        .flat_map(|(_, p, n)| (0..*n as i64).map(move |i| p + i))
        .collect();
    let rows = sequences.len();
    // Pages of three sequences in turn.
    let blocks = PAGES / 3;
    let table: Vec<i64> = (0..3)
        .flat_map(|s| (0..blocks as i64).map(move |b| b * 3 + s))
        .collect();
    let floats = |heads: usize, seed| {
        Value::from(
            Tensor::from_slice(
                &[rows, heads, s.depth],
                &numbers(rows * heads * s.depth, seed),
            )
            .unwrap(),
        )
    };
    vec![
        ("q", floats(s.heads, seed)),
        ("k", floats(s.kv_heads, seed + 1)),
        ("v", floats(s.kv_heads, seed + 2)),
        (
            "table",
            Tensor::from_slice(&[3, blocks], &table).unwrap().into(),
        ),
        ("sequences", Tensor::vector(&sequences).into()),
        ("positions", Tensor::vector(&positions).into()),
    ]
}

fn session(s: Shape, device: DeviceSpec) -> Session {
    let options = CompileOptions {
        device,
        threads: 2,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph(s), &Host::new(), &options).unwrap();
    let mut session = Session::new(Arc::new(program));
    let shape = vec![PAGES, s.kv_heads, s.page_len, s.depth];
    let size = Tensor::size_of(s.cache, &shape).unwrap();
    for name in ["key", "value"] {
        let zeros = Tensor::new(s.cache, shape.clone(), vec![0; size].into()).unwrap();
        session.state_mut().set_slot(name, zeros).unwrap();
    }
    session
}

/// The devices with memory.
fn devices() -> Vec<DeviceSpec> {
    let gpu = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").map(|_| DeviceSpec::Gpu(0));
    std::iter::once(DeviceSpec::Cpu).chain(gpu).collect()
}

fn floats(outputs: &[(String, Value)]) -> Vec<f32> {
    outputs[0].1.as_tensor().unwrap().to_vec().unwrap()
}

#[test]
fn attends_to_what_earlier_runs_wrote() {
    let shapes = [
        USUAL,
        Shape {
            cache: DType::F32,
            heads: 4,
            kv_heads: 4,
            depth: 20,
            page_len: 7,
            ..USUAL
        },
        Shape {
            cache: DType::BF16,
            window: 9,
            ..USUAL
        },
        Shape {
            heads: 8,
            kv_heads: 1,
            softcap: 2.0,
            page_len: 32,
            ..USUAL
        },
    ];
    // A long prompt, single steps, both at once, a continued prompt, steps of several at positions that jump.
    let batches: [Batch<'_>; 6] = [
        &[(0, 0, 70)],
        &[(0, 70, 1)],
        &[(0, 71, 1), (1, 0, 33)],
        &[(0, 72, 1), (1, 33, 1), (2, 0, 1)],
        &[(2, 1, 12), (1, 34, 1)],
        &[(1, 35, 2), (2, 13, 2), (0, 73, 1)],
    ];
    let wide = Shape {
        kv_heads: 3,
        heads: 3 * 11,
        depth: 96,
        window: 40,
        ..USUAL
    };
    let all = shapes.into_iter().chain([wide]);
    for (s, device) in all.flat_map(|s| devices().into_iter().map(move |d| (s, d))) {
        let mut compiled = session(s, device);
        let mut reference = session(s, DeviceSpec::Reference);
        for (i, batch) in batches.iter().enumerate() {
            let given = |seed| inputs(s, batch, seed);
            let seed = 10 * i as u32 + 1;
            let got = floats(&compiled.run(given(seed)).unwrap());
            let want = floats(&reference.run(given(seed)).unwrap());
            assert_eq!(got.len(), want.len());
            for (at, (x, y)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (x - y).abs() <= 2e-5,
                    "{s:?} run {i} element {at}: {x} instead of {y}"
                );
            }
        }
        let saved = |session: &mut Session| session.state_mut().save().unwrap();
        assert_eq!(saved(&mut compiled), saved(&mut reference), "{s:?}");
    }
}

#[test]
fn a_gpu_writes_the_cache_where_it_is() {
    if devices().len() < 2 {
        return;
    }
    for cache in [DType::F32, DType::F16, DType::BF16] {
        // A row of an odd length shares words with its neighbours.
        for depth in [16, 9] {
            let s = Shape {
                cache,
                depth,
                ..SMALL
            };
            let mut reference = session(s, DeviceSpec::Reference);
            let mut session = session(s, DeviceSpec::Gpu(0));
            let compiled = session.program().clone();
            assert_eq!(compiled.compiled().unwrap().plan.overwritten.len(), 2);
            let memory = |session: &mut Session| match session.state_mut().slot("value") {
                Some(RunValue::Device(t)) => t.clone(),
                other => panic!("{other:?}"),
            };
            for (i, batch) in [(0, 0, 5), (0, 5, 1), (0, 6, 1)].into_iter().enumerate() {
                session.run(inputs(s, &[batch], i as u32)).unwrap();
                reference.run(inputs(s, &[batch], i as u32)).unwrap();
            }
            let before = memory(&mut session);
            // Who holds the old value keeps it; nobody does from the second run on.
            let old = before.to_host().unwrap();
            session.run(inputs(s, &[(0, 7, 1)], 3)).unwrap();
            reference.run(inputs(s, &[(0, 7, 1)], 3)).unwrap();
            assert_eq!(before.to_host().unwrap(), old);
            let number = memory(&mut session).memory_number();
            assert_ne!(number, before.memory_number());
            session.run(inputs(s, &[(0, 8, 1)], 4)).unwrap();
            reference.run(inputs(s, &[(0, 8, 1)], 4)).unwrap();
            assert_eq!(memory(&mut session).memory_number(), number);
            let saved = |session: &mut Session| session.state_mut().save().unwrap();
            assert_eq!(saved(&mut session), saved(&mut reference), "{s:?}");
        }
    }
}

#[test]
fn the_cache_is_written_where_it_is() {
    let s = SMALL;
    let mut session = session(s, DeviceSpec::Cpu);
    let compiled = session.program().clone();
    let plan = &compiled.compiled().unwrap().plan;
    assert_eq!(plan.overwritten.len(), 2);
    session.run(inputs(s, &[(0, 0, 5)], 1)).unwrap();
    let address = |session: &mut Session| match session.state_mut().slot("key") {
        Some(RunValue::Device(t)) => t.to_host().unwrap().bytes().as_ptr(),
        other => panic!("{other:?}"),
    };
    let before = address(&mut session);
    session.run(inputs(s, &[(0, 5, 1)], 2)).unwrap();
    assert_eq!(address(&mut session), before);
    // Who holds the old value keeps it.
    let held = session.state_mut().slot("key").unwrap().clone();
    let old = held.to_host().unwrap();
    session.run(inputs(s, &[(0, 6, 1)], 3)).unwrap();
    assert_eq!(held.to_host().unwrap(), old);
    assert_ne!(
        session.state_mut().slot("key").unwrap().to_host().unwrap(),
        old
    );
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let s = USUAL;
    let prompt: Batch<'_> = &[(0, 0, 50), (1, 0, 20)];
    let last = |batch: Batch<'_>, at: usize| {
        let mut session = session(s, DeviceSpec::Cpu);
        session.run(inputs(s, prompt, 1)).unwrap();
        let mut given = inputs(s, batch, 7);
        // The same row in all batches: the first of `q`, `k` and `v`.
        let out = floats(&session.run(std::mem::take(&mut given)).unwrap());
        let row = s.heads * s.depth;
        out[at * row..(at + 1) * row].to_vec()
    };
    assert_eq!(last(&[(0, 50, 1)], 0), last(&[(0, 50, 1), (1, 20, 1)], 0));
}

#[test]
fn a_few_rows_at_once_are_what_they_are_one_by_one() {
    let s = USUAL;
    let rows = 5;
    let whole = inputs(s, &[(0, 50, rows)], 7);
    let row_of = |at: usize| -> Vec<(&'static str, Value)> {
        let part = |(name, value): &(&'static str, Value)| {
            let tensor = value.as_tensor().unwrap();
            if *name == "table" {
                return (*name, value.clone());
            }
            let size = tensor.bytes().len() / rows;
            let bytes = tensor
                .shared_bytes()
                .unwrap()
                .slice(at * size..(at + 1) * size);
            let shape = [&[1], &tensor.shape()[1..]].concat();
            let row = Tensor::new(tensor.dtype(), shape, bytes).unwrap();
            (*name, Value::from(row))
        };
        whole.iter().map(part).collect()
    };
    let prompted = || {
        let mut session = session(s, DeviceSpec::Cpu);
        session.run(inputs(s, &[(0, 0, 50)], 1)).unwrap();
        session
    };
    let together = floats(&prompted().run(whole.clone()).unwrap());
    let mut session = prompted();
    let apart: Vec<f32> = (0..rows)
        .flat_map(|at| floats(&session.run(row_of(at)).unwrap()))
        .collect();
    assert_eq!(together, apart);
}

#[test]
fn a_sequence_that_does_not_exist_is_an_error() {
    let s = SMALL;
    let mut session = session(s, DeviceSpec::Cpu);
    assert!(session.run(inputs(s, &[(3, 0, 1)], 1)).is_err());
    session.run(inputs(s, &[(2, 0, 1)], 1)).unwrap();
}
