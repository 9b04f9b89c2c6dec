//! Scatter against the reference interpreter: kinds, dtypes, batches, windows, indices that meet and indices outside.

mod common;

use common::Random;
use common::backends;
use cupola_backend::testing::run;
use cupola_backend::{Backend, BackendError, BufferRange, Command, Launch};
use cupola_ir::convert::{Lanes, cast, encode, lanes};
use cupola_ir::eval;
use cupola_ir::kernel::{Extent, Library, Unit, View};
use cupola_ir::ops::{Bounds, CoreOp, Op, Scatter, ScatterKind};
use cupola_ir::{DType, Tensor, Value, ValueType};
use cupola_wgpu::WgpuBackend;

fn dense(tensor: &Tensor) -> View {
    let mut step = 1;
    let mut strides: Vec<Extent> = (tensor.shape().iter().rev())
        .map(|&len| {
            let stride = Extent::Const(step);
            step *= len as i64;
            stride
        })
        .collect();
    strides.reverse();
    View {
        dtype: tensor.dtype(),
        read: tensor.dtype(),
        dims: (tensor.shape().iter().map(|&len| Extent::Const(len as i64))).collect(),
        strides,
        offset: Extent::Const(0),
    }
}

fn reference(op: &Op, operands: &[Tensor]) -> Tensor {
    let values: Vec<Value> = operands.iter().cloned().map(Value::from).collect();
    let types: Vec<ValueType> = operands.iter().map(|t| t.ty().into()).collect();
    let types = op.infer(&types.iter().collect::<Vec<_>>()).expect("types");
    let values: Vec<&Value> = values.iter().collect();
    let results = eval::eval_op(op, &values, &types, &mut eval::Env::default()).expect("runs");
    results[0].as_tensor().expect("a tensor").clone()
}

/// Small whole numbers, so that sums are exact in every order.
fn numbers(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    let values = (0..len).map(|_| f64::from(random.below(7)) - 3.0).collect();
    let wide = encode(&Lanes::F(values), DType::F64, shape, false).expect("encodes");
    cast(&wide, dtype, true).expect("converts")
}

fn indices(random: &mut Random, shape: &[usize], least: i64, most: i64) -> Tensor {
    let len: usize = shape.iter().product();
    let span = (most - least) as u32;
    let values = (0..len)
        .map(|_| i64::from(random.below(span)) + least)
        .collect();
    encode(&Lanes::I(values), DType::I64, shape, false).expect("encodes")
}

fn unit(op: &Op, operands: &[Tensor]) -> Unit {
    Unit::Library(Library {
        op: op.clone(),
        sizes: vec![],
        operands: operands.iter().map(dense).collect(),
        results: vec![dense(&operands[0])],
        epilogue: None,
    })
}

/// Data, batch axes, indexed axes, picked extents.
type Shape = (&'static [usize], usize, &'static [usize], &'static [usize]);

const SHAPES: [Shape; 7] = [
    (&[5], 0, &[0], &[40]),
    (&[7, 3], 0, &[0], &[9]),
    (&[7, 3], 0, &[1], &[2, 4]),
    (&[4, 5, 6], 0, &[2, 0], &[30]),
    (&[2, 5, 6], 1, &[1], &[7]),
    (&[3, 2, 4, 2], 2, &[3], &[5]),
    (&[2, 3, 2, 3], 0, &[0, 1, 2, 3], &[3, 50]),
];

/// Operands of a scatter of this shape.
fn operands(random: &mut Random, dtype: DType, shape: Shape, beyond: i64) -> Vec<Tensor> {
    let (dims, batch, axes, picked) = shape;
    let data = numbers(random, dtype, dims);
    let list = [&dims[..batch], picked].concat();
    let window = (batch..dims.len()).filter(|axis| !axes.contains(axis));
    let updates: Vec<usize> = list
        .iter()
        .copied()
        .chain(window.map(|axis| dims[axis]))
        .collect();
    let updates = numbers(random, dtype, &updates);
    let lists = axes
        .iter()
        .map(|&axis| indices(random, &list, -beyond, dims[axis] as i64 + beyond));
    let lists: Vec<Tensor> = lists.collect();
    [vec![data, updates], lists].concat()
}

fn scatter(shape: Shape, kind: ScatterKind, bounds: Bounds) -> Op {
    let (_, batch, axes, _) = shape;
    CoreOp::Scatter(Scatter {
        axes: axes.to_vec(),
        batch,
        kind,
        bounds,
    })
    .into()
}

#[test]
fn every_kind_and_shape() {
    use ScatterKind::*;
    for backend in backends() {
        let mut random = Random::new(1);
        for dtype in [
            DType::F32,
            DType::F64,
            DType::F16,
            DType::I64,
            DType::I32,
            DType::U8,
            DType::I16,
        ] {
            for kind in [Set, Add, Mul, Max, Min] {
                for (at, shape) in SHAPES.into_iter().enumerate() {
                    let bounds = [Bounds::Skip, Bounds::Clamp][at % 2];
                    // Products of many updates stay small where each place gets few.
                    let operands = operands(&mut random, dtype, shape, 2);
                    let op = scatter(shape, kind, bounds);
                    let want = reference(&op, &operands);
                    let mut buffers: Vec<Vec<u8>> =
                        operands.iter().map(|x| x.bytes().to_vec()).collect();
                    buffers.push(vec![0; want.bytes().len()]);
                    run(&backend, &unit(&op, &operands), &[], &mut buffers).expect("runs");
                    let last = buffers.pop().expect("a result");
                    let got = Tensor::new(dtype, want.shape().to_vec(), last.into());
                    let (got, want) = (lanes(&got.expect("a tensor")), lanes(&want));
                    assert_eq!(got, want, "{dtype} {} {shape:?}", kind.name());
                }
            }
        }
    }
}

#[test]
fn the_last_update_wins() {
    for backend in backends() {
        let shape: Shape = (&[3], 0, &[0], &[5000]);
        let mut random = Random::new(2);
        let operands = operands(&mut random, DType::Bool, shape, 0);
        let op = scatter(shape, ScatterKind::Set, Bounds::Check);
        let want = reference(&op, &operands);
        let mut buffers: Vec<Vec<u8>> = operands.iter().map(|x| x.bytes().to_vec()).collect();
        buffers.push(vec![0; 4]);
        run(&backend, &unit(&op, &operands), &[], &mut buffers).expect("runs");
        assert_eq!(buffers[3][..3], want.bytes()[..]);
    }
}

#[test]
fn indices_outside_are_faults() {
    for backend in backends() {
        let shape: Shape = (&[3, 2], 0, &[0], &[400]);
        let mut random = Random::new(3);
        let operands = operands(&mut random, DType::F32, shape, 1);
        let op = scatter(shape, ScatterKind::Add, Bounds::Check);
        let mut buffers: Vec<Vec<u8>> = operands.iter().map(|x| x.bytes().to_vec()).collect();
        buffers.push(vec![0; 24]);
        let result = run(&backend, &unit(&op, &operands), &[], &mut buffers);
        assert!(
            matches!(result, Err(BackendError::Fault { .. })),
            "{result:?}"
        );
    }
}

/// Runs a scatter whose result is its data; gives what is in memory afterwards.
fn over(backend: &WgpuBackend, op: &Op, operands: &[Tensor]) -> cupola_backend::Result<Vec<u8>> {
    let unit = unit(op, operands);
    let executable = backend.compile(&[&unit]).remove(0)?;
    let device = backend.device();
    let mut buffers: Vec<BufferRange> = (operands.iter())
        .map(|tensor| {
            let size = tensor.bytes().len();
            let buffer = device.alloc(size)?;
            let range = BufferRange {
                buffer,
                offset: 0,
                size,
            };
            device.upload(&range, tensor.bytes())?;
            Ok(range)
        })
        .collect::<cupola_backend::Result<_>>()?;
    let data = buffers[0].clone();
    buffers.push(data.clone());
    let launch = Launch {
        executable,
        buffers,
        sizes: vec![],
    };
    let ran = device
        .submit(&[Command::Launch(launch)])
        .and_then(|()| device.wait());
    let mut bytes = vec![0; data.size];
    device.download(&data, &mut bytes)?;
    ran.map(|()| bytes)
}

#[test]
fn updates_are_written_over_the_data() {
    use ScatterKind::*;
    // Windows of whole words and of parts of words, wide ones, and more tuples than one launch compares.
    let shapes: [Shape; 6] = [
        (&[6, 2, 4, 16], 0, &[0, 2], &[9]),
        (&[6, 2, 4, 3], 0, &[0, 2], &[30]),
        (&[3, 300], 0, &[0], &[2]),
        (&[40, 2], 0, &[0], &[5000]),
        (&[2, 5, 8], 1, &[1], &[7]),
        (&[70], 0, &[0], &[40]),
    ];
    for backend in backends() {
        let mut random = Random::new(4);
        for dtype in [
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::U8,
            DType::I64,
            DType::I32,
        ] {
            for (at, shape) in shapes.into_iter().enumerate() {
                for kind in [Set, Add] {
                    let bounds = [Bounds::Skip, Bounds::Clamp][at % 2];
                    let operands = operands(&mut random, dtype, shape, 2);
                    let op = scatter(shape, kind, bounds);
                    let want = reference(&op, &operands);
                    if kind == Add && shape.3[0] > 100 {
                        continue;
                    }
                    let got = over(&backend, &op, &operands).expect("runs");
                    let got = Tensor::new(dtype, want.shape().to_vec(), got.into());
                    let (got, want) = (lanes(&got.expect("a tensor")), lanes(&want));
                    assert_eq!(got, want, "{dtype} {} {shape:?}", kind.name());
                }
            }
        }
        let shape: Shape = (&[3, 2], 0, &[0], &[40]);
        let operands = operands(&mut random, DType::F32, shape, 1);
        let result = over(&backend, &scatter(shape, Set, Bounds::Check), &operands);
        assert!(
            matches!(result, Err(BackendError::Fault { .. })),
            "{result:?}"
        );
    }
}
