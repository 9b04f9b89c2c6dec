//! Runs kernels on the CPU backend.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

pub use cupola_backend::testing::run;
use cupola_backend::testing::run_with_constants;
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::convert::{self, Lanes};
use cupola_ir::kernel::*;
use cupola_ir::ops::Contract;
use cupola_ir::{Class, DType, Dim, Op, Tensor, Value, ValueType, eval};

/// The types that kernels compute with.
pub const DTYPES: [DType; 14] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::Bool,
    DType::I4,
];

/// Little-endian bytes of numbers.
pub fn bytes<T: bytemuck::Pod>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Numbers of little-endian bytes.
pub fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// A size bound at launch.
pub fn size(kernel: &mut Kernel, name: &str) -> Extent {
    kernel.extent(&Dim::sym(name))
}

/// An index that is an axis.
pub fn axis(kernel: &mut Kernel, axis: u32) -> IndexId {
    kernel.index(Index::Axis(AxisId(axis)))
}

/// Declares a buffer.
pub fn buffer(dtype: DType, access: Access, len: Extent) -> BufferDecl {
    BufferDecl { dtype, access, len }
}

/// `y[i] = f(x[i], ..)` over one axis of run-time size.
pub fn elementwise(
    inputs: &[DType],
    output: DType,
    f: impl FnOnce(&mut Kernel, &[ExprId]) -> ExprId,
) -> Unit {
    let mut k = Kernel {
        name: "map".into(),
        ..Kernel::default()
    };
    let n = size(&mut k, "n");
    k.axes = vec![n];
    k.parallel = 1;
    for d in inputs {
        k.buffers.push(buffer(*d, Access::Read, n));
    }
    k.buffers.push(buffer(output, Access::Write, n));
    let i = axis(&mut k, 0);
    let loads: Vec<ExprId> = (0..inputs.len() as u32)
        .map(|b| {
            k.expr(Expr::Load {
                buffer: BufferId(b),
                index: i,
                guard: None,
            })
        })
        .collect();
    let value = f(&mut k, &loads);
    k.phases = vec![Phase::Store {
        axes: vec![],
        stores: vec![Store {
            buffer: BufferId(inputs.len() as u32),
            index: i,
            value,
            guard: None,
            kind: StoreKind::Set,
        }],
    }];
    Unit::Loops(k)
}

/// `a * extent + b`.
pub fn row_major(kernel: &mut Kernel, a: IndexId, extent: Extent, b: IndexId) -> IndexId {
    let n = kernel.index(match extent {
        Extent::Const(c) => Index::Const(c),
        Extent::Size(s) => Index::Size(s),
    });
    let p = kernel.index(Index::Mul(a, n));
    kernel.index(Index::Add(p, b))
}

/// A small deterministic generator for test data (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// Random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A tensor of small numbers (integers and eighths), exact in every dtype that can hold them.
pub fn tensor(random: &mut Random, dtype: DType, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    let mut small = || random.below(9) as i64 - 4;
    let lanes = match dtype.class() {
        Class::Float => Lanes::F((0..len).map(|_| small() as f64 / 8.0).collect()),
        Class::Signed => Lanes::I((0..len).map(|_| small()).collect()),
        _ => Lanes::U((0..len).map(|_| (small() + 4) as u64).collect()),
    };
    convert::tensor(&lanes, dtype, shape).expect("a tensor")
}

/// A tensor in memory with its axes in another order, and the view of it in the tensor's own order.
pub fn stored(t: &Tensor, order: &[usize]) -> (Vec<u8>, View) {
    let shape: Vec<usize> = order.iter().map(|a| t.shape()[*a]).collect();
    let mut strides = vec![1usize; t.shape().len()];
    let mut step = 1;
    for (k, a) in order.iter().enumerate().rev() {
        strides[*a] = step;
        step *= shape[k].max(1);
    }
    let size = t.dtype().size();
    // One element in front shows that offsets count.
    let mut bytes = vec![0; (t.len() + 1) * size];
    for at in 0..t.len() {
        let (mut rest, mut place) = (at, 1);
        for (n, s) in t.shape().iter().zip(&strides).rev() {
            place += rest % n * s;
            rest /= n;
        }
        bytes[place * size..(place + 1) * size]
            .copy_from_slice(&t.bytes()[at * size..(at + 1) * size]);
    }
    let view = View {
        dtype: t.dtype(),
        read: t.dtype(),
        dims: t.shape().iter().map(|d| Extent::Const(*d as i64)).collect(),
        strides: strides.iter().map(|s| Extent::Const(*s as i64)).collect(),
        offset: Extent::Const(1),
    };
    (bytes, view)
}

/// A dense view.
pub fn dense(dtype: DType, shape: &[usize]) -> View {
    let mut strides = vec![Extent::Const(1); shape.len()];
    let mut step = 1;
    for (s, d) in strides.iter_mut().zip(shape).rev() {
        *s = Extent::Const(step);
        step *= *d as i64;
    }
    View {
        dtype,
        read: dtype,
        dims: shape.iter().map(|d| Extent::Const(*d as i64)).collect(),
        strides,
        offset: Extent::Const(0),
    }
}

/// What the reference interpreter gives for one op.
pub fn reference(op: &Op, operands: &[Tensor]) -> Vec<Tensor> {
    let values: Vec<Value> = operands.iter().cloned().map(Value::from).collect();
    let types: Vec<ValueType> = operands.iter().map(|t| t.ty().into()).collect();
    let types = op.infer(&types.iter().collect::<Vec<_>>()).expect("types");
    let values: Vec<&Value> = values.iter().collect();
    let results = eval::eval_op(op, &values, &types, &mut eval::Env::default()).expect("runs");
    let tensors = results
        .iter()
        .map(|v| v.as_tensor().expect("a tensor").clone());
    tensors.collect()
}

/// Asserts that bytes hold the numbers of a tensor, up to a relative error (0: the same number).
pub fn assert_close(got: &[u8], want: &Tensor, tolerance: f64, what: &str) {
    let got = Tensor::new(want.dtype(), want.shape().to_vec(), got.to_vec().into()).expect("size");
    let (a, b) = (
        convert::lanes(&got).expect("numbers"),
        convert::lanes(want).expect("numbers"),
    );
    for (i, (x, y)) in a.into_f64s().into_iter().zip(b.into_f64s()).enumerate() {
        let same = x == y || x.is_nan() && y.is_nan();
        assert!(
            same || (x - y).abs() <= tolerance * y.abs().max(1.0),
            "{what} at {i}: {x} {y}"
        );
    }
}

/// A backend of two threads for every level of this machine.
pub fn backends() -> Vec<CpuBackend> {
    Isa::available()
        .into_iter()
        .map(|isa| CpuBackend::with_isa(2, isa, Usage::unlimited()))
        .collect()
}

/// A contraction over these axes.
pub fn contract(
    lhs_batch: &[usize],
    rhs_batch: &[usize],
    lhs: &[usize],
    rhs: &[usize],
    accum: DType,
    out: DType,
) -> Contract {
    Contract {
        lhs_batch: lhs_batch.to_vec(),
        rhs_batch: rhs_batch.to_vec(),
        lhs_contract: lhs.to_vec(),
        rhs_contract: rhs.to_vec(),
        accum,
        out,
    }
}

/// Runs a library unit on dense operands, all results, without an epilogue.
pub fn check_results(backend: &CpuBackend, op: &Op, operands: &[Tensor], tolerance: f64) {
    check_bound(backend, op, operands, &[], tolerance);
}

/// As [`check_results`], with some operands bound as constants.
pub fn check_bound(
    backend: &CpuBackend,
    op: &Op,
    operands: &[Tensor],
    constants: &[usize],
    tolerance: f64,
) {
    let want = reference(op, operands);
    let views = |tensors: &[Tensor]| {
        let view = |t: &Tensor| dense(t.dtype(), t.shape());
        tensors.iter().map(view).collect::<Vec<_>>()
    };
    let unit = Library {
        op: op.clone(),
        sizes: vec![],
        operands: views(operands),
        results: views(&want),
        epilogue: None,
    };
    let what = format!("{op:?} {operands:?} {:?}", backend.isa());
    let mut buffers: Vec<Vec<u8>> = operands.iter().map(|t| t.bytes().to_vec()).collect();
    buffers.extend(want.iter().map(|t| vec![0xAA; t.bytes().len()]));
    let unit = Unit::Library(unit);
    run_with_constants(backend, &unit, &[], &mut buffers, constants).expect(&what);
    for (i, (got, want)) in buffers[operands.len()..].iter().zip(&want).enumerate() {
        assert_close(got, want, tolerance, &format!("{what}, result {i}"));
    }
}
