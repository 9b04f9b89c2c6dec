//! Kernels that only gradients use, against the reference interpreter: layouts, dtypes, odd and empty extents.

mod common;

use common::*;
use cupola_backend::testing::run;
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::composite::ConvWeightGradient;
use cupola_ir::kernel::*;
use cupola_ir::{CompositeOp, DType, Dim, Op, Tensor, convert};

/// Extents and attributes of a convolution.
struct Case {
    /// `[batch, spatial.., channels]`
    x: &'static [usize],
    outputs: usize,
    kernel: &'static [i64],
    groups: usize,
    strides: &'static [i64],
    dilations: &'static [i64],
    low: &'static [i64],
    high: &'static [i64],
}

const CASES: [Case; 9] = [
    case(
        &[2, 9, 8, 3],
        5,
        &[3, 3],
        1,
        [&[1, 1], &[1, 1], &[0, 0], &[0, 0]],
    ),
    case(
        &[3, 7, 9, 33],
        40,
        &[3, 3],
        1,
        [&[1, 1], &[1, 1], &[1, 1], &[1, 1]],
    ),
    case(
        &[1, 11, 7, 17],
        6,
        &[3, 2],
        1,
        [&[2, 3], &[2, 1], &[0, 2], &[3, 0]],
    ),
    case(
        &[2, 6, 5, 16],
        24,
        &[2, 3],
        2,
        [&[1, 2], &[1, 1], &[1, 1], &[1, 1]],
    ),
    case(&[5, 17, 4], 33, &[5], 1, [&[2], &[1], &[2], &[2]]),
    case(
        &[2, 4, 5, 6, 2],
        3,
        &[2, 2, 3],
        1,
        [&[1, 1, 2], &[1, 2, 1], &[0, 1, 1], &[1, 1, 0]],
    ),
    case(
        &[4, 8, 8, 20],
        9,
        &[1, 1],
        1,
        [&[1, 1], &[1, 1], &[0, 0], &[0, 0]],
    ),
    case(
        &[40, 6, 7, 15],
        64,
        &[3, 3],
        1,
        [&[1, 1], &[1, 1], &[0, 0], &[0, 0]],
    ),
    case(
        &[0, 5, 5, 3],
        4,
        &[3, 3],
        1,
        [&[1, 1], &[1, 1], &[0, 0], &[0, 0]],
    ),
];

const fn case(
    x: &'static [usize],
    outputs: usize,
    kernel: &'static [i64],
    groups: usize,
    [strides, dilations, low, high]: [&'static [i64]; 4],
) -> Case {
    Case {
        x,
        outputs,
        kernel,
        groups,
        strides,
        dilations,
        low,
        high,
    }
}

impl Case {
    fn op(&self) -> Op {
        let dims = |v: &[i64]| v.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>();
        Op::Composite(CompositeOp::from(ConvWeightGradient {
            kernel: dims(self.kernel),
            strides: self.strides.to_vec(),
            dilations: self.dilations.to_vec(),
            pads_low: dims(self.low),
            pads_high: dims(self.high),
            groups: self.groups,
        }))
    }

    fn windows(&self) -> Vec<usize> {
        let mut dims = self.x.to_vec();
        for (a, kernel) in self.kernel.iter().enumerate() {
            let span = (kernel - 1) * self.dilations[a] + 1;
            let whole = dims[1 + a] as i64 + self.low[a] + self.high[a];
            dims[1 + a] = ((whole - span) / self.strides[a] + 1) as usize;
        }
        dims[self.x.len() - 1] = self.outputs;
        dims
    }
}

/// Runs a unit on operands in these orders of axes, the reads of `x` in another type than it is stored in if that is given.
fn check(
    backend: &CpuBackend,
    case: &Case,
    [x, dy]: [&Tensor; 2],
    is_first: bool,
    read: DType,
    tolerance: f64,
) -> Vec<u8> {
    let op = case.op();
    let rounded = |t: &Tensor| convert::cast(t, read, true).expect("a tensor");
    let want = reference(&op, &[rounded(x), rounded(dy)]).remove(0);
    let rank = x.shape().len();
    let order: Vec<usize> = match is_first {
        true => [vec![0, rank - 1], (1..rank - 1).collect()].concat(),
        false => (0..rank).collect(),
    };
    let (mut buffers, mut views) = (vec![], vec![]);
    for t in [x, dy] {
        let (bytes, view) = stored(t, &order);
        buffers.push(bytes);
        views.push(View { read, ..view });
    }
    let unit = Library {
        op: op.clone(),
        sizes: vec![],
        operands: views,
        results: vec![dense(want.dtype(), want.shape())],
        epilogue: None,
    };
    buffers.push(vec![0xAA; want.bytes().len()]);
    let what = format!("{op:?} {x:?} {dy:?} {read} {:?}", backend.isa());
    run(backend, &Unit::Library(unit), &[], &mut buffers).expect(&what);
    assert_close(&buffers[2], &want, tolerance, &what);
    buffers.swap_remove(2)
}

#[test]
fn of_the_weights_of_convolutions() {
    let mut random = Random(7);
    let types = [
        (DType::F32, DType::F32, 1e-5),
        (DType::F64, DType::F64, 1e-12),
        (DType::F16, DType::F16, 2e-3),
        (DType::BF16, DType::BF16, 1e-2),
        (DType::F32, DType::BF16, 1e-2),
        (DType::F32, DType::F16, 2e-3),
    ];
    for backend in backends() {
        for case in &CASES {
            for (stored, read, tolerance) in types {
                let x = tensor(&mut random, stored, case.x);
                let dy = tensor(&mut random, stored, &case.windows());
                for is_first in [false, true] {
                    check(&backend, case, [&x, &dy], is_first, read, tolerance);
                }
            }
        }
    }
}

#[test]
fn have_the_same_bits_for_any_number_of_threads() {
    let (case, isa) = (&CASES[7], Isa::detect());
    // Their sums are not exact.
    let thirds = |shape: &[usize], kinds: usize| {
        let len = shape.iter().product();
        let values: Vec<f32> = (0..len)
            .map(|i: usize| (i % kinds) as f32 / 300.0)
            .collect();
        Tensor::from_slice(shape, &values).expect("a tensor")
    };
    let (x, dy) = (thirds(case.x, 101), thirds(&case.windows(), 89));
    let each = [1, 2, 5].map(|threads| {
        let backend = CpuBackend::with_isa(threads, isa, Usage::unlimited());
        check(&backend, case, [&x, &dy], false, DType::F32, 1e-5)
    });
    assert!(each.iter().all(|bits| *bits == each[0]));
}
