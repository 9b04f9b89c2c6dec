//! Every number type, level, stride order and odd size against three plain loops.

use std::sync::Mutex;

use half::{bf16, f16};

use super::*;
use crate::library::testing::{Rng, contexts};

/// The extents of one product.
#[derive(Debug, Clone, Copy)]
struct Extents {
    rows: usize,
    inner: usize,
    cols: usize,
}

const SIZES: [(usize, usize, usize); 19] = [
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (1, 7, 33),
    (2, 300, 5),
    (3, 5, 1),
    (4, 4, 4),
    (5, 17, 16),
    (7, 64, 31),
    (8, 9, 64),
    (13, 385, 17),
    (14, 20, 32),
    (15, 33, 40),
    (16, 800, 8),
    (29, 50, 70),
    (43, 12, 100),
    (65, 129, 66),
    (90, 41, 35),
];

trait Sample: Number {
    fn sample(rng: &mut Rng) -> Self;
    fn reference(pairs: &mut dyn Iterator<Item = (Self, Self)>, start: Sum<Self>) -> Sum<Self>;
    fn close(got: Sum<Self>, want: Sum<Self>, inner: usize) -> bool;
    fn start(i: usize) -> Sum<Self>;
}

macro_rules! float_samples {
    ($($t:ty, $sum:ty, $eps:expr;)*) => {
        $(impl Sample for $t {
            fn sample(rng: &mut Rng) -> $t {
                <$t as num_traits_lite::FromF64>::from_f64(f64::from(rng.float()))
            }
            fn reference(pairs: &mut dyn Iterator<Item = ($t, $t)>, start: $sum) -> $sum {
                let wide = |x: $t| <$t as num_traits_lite::FromF64>::to_f64(x);
                (pairs.map(|(a, b)| wide(a) * wide(b)).sum::<f64>() + start as f64) as $sum
            }
            fn close(got: $sum, want: $sum, inner: usize) -> bool {
                (got as f64 - want as f64).abs() <= $eps * (inner as f64 + 2.0)
            }
            fn start(i: usize) -> $sum {
                (i % 7) as $sum - 3.0
            }
        })*
    };
}

mod num_traits_lite {
    pub trait FromF64 {
        fn from_f64(x: f64) -> Self;
        fn to_f64(self) -> f64;
    }
    macro_rules! all {
        ($($t:ty: $from:expr, $to:expr;)*) => {
            $(impl FromF64 for $t {
                fn from_f64(x: f64) -> $t {
                    $from(x)
                }
                fn to_f64(self) -> f64 {
                    $to(self)
                }
            })*
        };
    }
    all! {
        f32: |x| x as f32, f64::from;
        f64: |x| x, |x| x;
        half::f16: half::f16::from_f64, half::f16::to_f64;
        half::bf16: half::bf16::from_f64, half::bf16::to_f64;
    }
}

// Samples lie in -1..1, so a sum of `inner` products in f32 is off by at most about inner * 2^-24 * sqrt(inner) / 3.
float_samples! {
    f32, f32, 3e-7;
    f64, f64, 1e-15;
    f16, f32, 3e-7;
    bf16, f32, 3e-7;
}

macro_rules! integer_samples {
    ($($t:ty),*) => {
        $(impl Sample for $t {
            fn sample(rng: &mut Rng) -> $t {
                rng.next() as $t
            }
            fn reference(pairs: &mut dyn Iterator<Item = ($t, $t)>, start: $t) -> $t {
                pairs.fold(start, |sum, (a, b)| sum.wrapping_add(a.wrapping_mul(b)))
            }
            fn close(got: $t, want: $t, _: usize) -> bool {
                got == want
            }
            fn start(i: usize) -> $t {
                i as $t
            }
        })*
    };
}
integer_samples!(i32, u32, i64, u64);

/// A matrix with row-major, column-major or padded and strided layout.
fn layout(kind: usize, rows: usize, cols: usize) -> ([usize; 2], usize) {
    match kind % 3 {
        0 => ([cols, 1], rows * cols),
        1 => ([1, rows], rows * cols),
        _ => ([2 * cols + 3, 2], rows * (2 * cols + 3)),
    }
}

fn check<T: Sample>(cx: &Context, extents: Extents, seed: u64) {
    let Extents { rows, inner, cols } = extents;
    let mut rng = Rng::new(seed);
    let (left_strides, left_len) = layout(seed as usize, rows, inner);
    let (right_strides, right_len) = layout(seed as usize / 3, inner, cols);
    let left_data: Vec<T> = (0..left_len).map(|_| T::sample(&mut rng)).collect();
    let right_data: Vec<T> = (0..right_len).map(|_| T::sample(&mut rng)).collect();
    let left = View::new("left", &left_data, [rows, inner], left_strides).expect("fits");
    let right = View::new("right", &right_data, [inner, cols], right_strides).expect("fits");
    let wanted = |row: usize, col: usize, start: Sum<T>| {
        T::reference(
            &mut (0..inner).map(|k| (left.at([row, k]), right.at([k, col]))),
            start,
        )
    };
    let packed_left = PackedLeft::new(cx, left).expect("memory");
    let packed_right = PackedRight::new(cx, right).expect("memory");
    let row_stride = cols + 5;
    let zero = bytemuck::Zeroable::zeroed();
    for (choice, add) in [(0, false), (1, true), (2, false), (3, true)] {
        let lhs = if choice & 1 == 0 {
            Left::View(left.batched())
        } else {
            Left::Packed(&packed_left)
        };
        let rhs = if choice & 2 == 0 {
            Right::View(right.batched())
        } else {
            Right::Packed(&packed_right)
        };
        let mut out: Vec<Sum<T>> = (0..rows * row_stride).map(T::start).collect();
        let view = ViewMut::new("out", &mut out, [rows, cols], [row_stride, 1])
            .expect("fits")
            .batched();
        let output = if add {
            Output::Add(view)
        } else {
            Output::Store(view)
        };
        multiply(cx, lhs, rhs, output, None).expect("agrees");
        for row in 0..rows {
            for col in 0..row_stride {
                let (at, got) = (row * row_stride + col, out[row * row_stride + col]);
                if col >= cols {
                    assert!(got == T::start(at), "written beyond the columns");
                    continue;
                }
                let want = wanted(row, col, if add { T::start(at) } else { zero });
                let ok = T::close(got, want, inner);
                assert!(
                    ok,
                    "{extents:?} choice {choice} isa {:?} at {row},{col}: {got:?} instead of {want:?}",
                    cx.isa
                );
            }
        }
    }
}

fn check_all<T: Sample>() {
    contexts(|cx| {
        for (index, &(rows, inner, cols)) in SIZES.iter().enumerate() {
            check::<T>(cx, Extents { rows, inner, cols }, index as u64);
            check::<T>(cx, Extents { rows, inner, cols }, index as u64 + 4);
        }
    });
}

/// The elements of a product that is not stored, `[rows, cols]`, as its epilogue sees them: each once.
pub(super) fn seen_by_epilogue<T: Number<Sum = f32>>(
    cx: &Context,
    left: Left<T>,
    right: Right<T>,
    [rows, cols]: [usize; 2],
) -> Vec<f32> {
    let seen = Mutex::new(vec![f32::NAN; rows * cols]);
    let epilogue = |part: Finished<f32>| {
        let mut seen = seen.lock().expect("no panic");
        for row in 0..part.rows {
            for col in 0..part.cols {
                let at = (part.row + row) * cols + part.col + col;
                assert!(seen[at].is_nan(), "{row} {col} twice");
                // SAFETY: the part's elements are this call's.
                seen[at] = unsafe { *part.start.add(row * part.row_stride + col) };
            }
        }
    };
    let output = Output::Discard([1, 1, rows, cols]);
    multiply(cx, left, right, output, Some(&epilogue)).expect("agrees");
    seen.into_inner().expect("no panic")
}

#[test]
fn f32_products() {
    check_all::<f32>();
}

#[test]
fn f64_products() {
    check_all::<f64>();
}

#[test]
fn f16_products() {
    check_all::<f16>();
}

#[test]
fn bf16_products() {
    check_all::<bf16>();
}

#[test]
fn integer_products() {
    check_all::<i32>();
    check_all::<u32>();
    check_all::<i64>();
    check_all::<u64>();
}

#[test]
fn blocks_in_every_direction() {
    contexts(|cx| {
        // Beyond one block of rows, of columns and of the inner dimension; small in the others.
        for (rows, inner, cols) in [(4100, 3, 5), (3, 5, 4200), (20, 1000, 50)] {
            check::<f32>(cx, Extents { rows, inner, cols }, 0);
            check::<f32>(cx, Extents { rows, inner, cols }, 4);
        }
    });
}

#[test]
fn epilogue_sees_every_element_once() {
    contexts(|cx| {
        for (rows, inner, cols) in [(1, 3, 40), (31, 800, 77), (70, 0, 33)] {
            let mut rng = Rng::new(7);
            let left: Vec<f16> = (0..rows * inner).map(|_| f16::sample(&mut rng)).collect();
            let right: Vec<f16> = (0..inner * cols).map(|_| f16::sample(&mut rng)).collect();
            let left = View::dense("left", &left, [1, 1, rows, inner]).expect("fits");
            let right = View::dense("right", &right, [1, 1, inner, cols]).expect("fits");
            let seen = Mutex::new(vec![0f32; rows * cols]);
            let epilogue = |part: Finished<f32>| {
                let mut seen = seen.lock().expect("no panic");
                for row in 0..part.rows {
                    for col in 0..part.cols {
                        let element = unsafe { &mut *part.start.add(row * part.row_stride + col) };
                        *element = *element * 2.0 + 1.0;
                        seen[(part.row + row) * cols + part.col + col] += *element;
                    }
                }
            };
            let mut stored = vec![0f32; rows * cols];
            let mut narrow = vec![f16::ZERO; rows * cols];
            let shape = [1, 1, rows, cols];
            let output = Output::Store(ViewMut::dense("out", &mut stored, shape).expect("fits"));
            multiply(
                cx,
                Left::View(left),
                Right::View(right),
                output,
                Some(&epilogue),
            )
            .expect("agrees");
            assert_eq!(*seen.lock().expect("no panic"), stored);
            for output in [
                Output::Narrow(ViewMut::dense("out", &mut narrow, shape).expect("fits")),
                Output::Discard(shape),
            ] {
                seen.lock().expect("no panic").fill(0.0);
                multiply(
                    cx,
                    Left::View(left),
                    Right::View(right),
                    output,
                    Some(&epilogue),
                )
                .expect("agrees");
                assert_eq!(*seen.lock().expect("no panic"), stored);
            }
            for (index, (&narrow, &wide)) in narrow.iter().zip(&stored).enumerate() {
                assert_eq!(narrow, f16::from_f32(wide), "element {index}");
                let (row, col) = (index / cols, index % cols);
                let pairs =
                    &mut (0..inner).map(|k| (left.at([0, 0, row, k]), right.at([0, 0, k, col])));
                assert!(f16::close(
                    (wide - 1.0) / 2.0,
                    f16::reference(pairs, 0.0),
                    inner
                ));
            }
        }
    });
}

#[test]
fn batches_broadcast() {
    contexts(|cx| {
        let mut rng = Rng::new(11);
        let (rows, inner, cols) = (5, 6, 19);
        let left: Vec<f32> = (0..2 * 3 * rows * inner).map(|_| rng.float()).collect();
        let right: Vec<f32> = (0..3 * inner * cols).map(|_| rng.float()).collect();
        let left_view = View::dense("left", &left, [2, 3, rows, inner]).expect("fits");
        let shared =
            View::new("right", &right, [2, 3, inner, cols], [0, 0, cols, 1]).expect("fits");
        let each = View::new(
            "right",
            &right,
            [2, 3, inner, cols],
            [0, inner * cols, cols, 1],
        )
        .expect("fits");
        let narrow = View::new(
            "left",
            &left,
            [2, 3, 1, inner],
            [3 * rows * inner, rows * inner, inner, 1],
        )
        .expect("fits");
        for (a, b) in [
            (left_view, shared),
            (left_view, each),
            (narrow, shared),
            (narrow, each),
        ] {
            let rows = a.shape()[2];
            let mut out = vec![0f32; 6 * rows * cols];
            let output =
                Output::Store(ViewMut::dense("out", &mut out, [2, 3, rows, cols]).expect("fits"));
            multiply(cx, Left::View(a), Right::View(b), output, None).expect("agrees");
            for (index, &got) in out.iter().enumerate() {
                let [i, j, row, col] = [
                    index / (3 * rows * cols),
                    index / (rows * cols) % 3,
                    index / cols % rows,
                    index % cols,
                ];
                let pairs = &mut (0..inner).map(|k| (a.at([i, j, row, k]), b.at([i, j, k, col])));
                assert!(
                    f32::close(got, f32::reference(pairs, 0.0), inner),
                    "{i} {j} {row} {col}"
                );
            }
        }
    });
}

#[test]
fn threads_do_not_change_the_result() {
    let mut results = Vec::new();
    contexts(|cx| {
        let mut rng = Rng::new(3);
        let size = 150;
        let data: Vec<f32> = (0..size * size).map(|_| rng.float()).collect();
        let view = View::dense("x", &data, [1, 1, size, size]).expect("fits");
        let mut out = vec![0f32; size * size];
        let output =
            Output::Store(ViewMut::dense("out", &mut out, [1, 1, size, size]).expect("fits"));
        multiply(cx, Left::View(view), Right::View(view), output, None).expect("agrees");
        results.push((cx.isa, out));
    });
    for pair in results.windows(2) {
        assert!(
            pair[0].0 != pair[1].0 || pair[0].1 == pair[1].1,
            "{:?}",
            pair[0].0
        );
    }
}

#[test]
fn infinities_and_nan_propagate() {
    contexts(|cx| {
        let left = [f32::INFINITY, 1.0, f32::NAN, 0.0];
        let right = [1.0, 0.0, 0.0, 2.0];
        let mut out = [0f32; 4];
        let view = |data| View::dense("x", data, [1, 1, 2, 2]).expect("fits");
        let output = Output::Store(ViewMut::dense("out", &mut out, [1, 1, 2, 2]).expect("fits"));
        multiply(
            cx,
            Left::View(view(&left)),
            Right::View(view(&right)),
            output,
            None,
        )
        .expect("agrees");
        assert_eq!(out[0], f32::INFINITY);
        assert!(out[1].is_nan() && out[2].is_nan() && out[3].is_nan());
    });
}

#[test]
fn disagreement_is_an_error() {
    contexts(|cx| {
        let data = [0f32; 12];
        let mut out = [0f32; 16];
        let view = |shape| View::dense("x", &data, shape).expect("fits");
        let mut refuse = |left, right, shape, strides| {
            let output =
                Output::Store(ViewMut::new("out", &mut out, shape, strides).expect("fits"));
            multiply(cx, Left::View(left), Right::View(right), output, None)
                .expect_err("does not agree")
        };
        let dense = [0, 0, 4, 1];
        refuse(view([1, 1, 3, 4]), view([1, 1, 3, 4]), [1, 1, 3, 4], dense);
        refuse(view([1, 1, 4, 3]), view([1, 1, 3, 4]), [1, 1, 3, 4], dense);
        refuse(view([2, 1, 2, 3]), view([1, 1, 3, 2]), [1, 1, 2, 2], dense);
        refuse(
            view([1, 1, 2, 3]),
            view([1, 1, 3, 2]),
            [1, 1, 2, 2],
            [0, 0, 1, 2],
        );
        let foreign = Isa::available().into_iter().find(|&isa| isa != cx.isa);
        if let Some(isa) = foreign {
            let other = Context { isa, ..*cx };
            let right = View::dense("x", &data, [3, 4]).expect("fits");
            let packed = PackedRight::new(&other, right).expect("memory");
            let error = multiply(
                cx,
                Left::View(view([1, 1, 4, 3])),
                Right::Packed(&packed),
                Output::Discard([1, 1, 4, 4]),
                None,
            );
            assert!(error.is_err());
        }
    });
}

fn check_bytes(cx: &Context, extents: Extents, seed: u64, left_signed: bool, right_signed: bool) {
    let Extents { rows, inner, cols } = extents;
    let mut rng = Rng::new(seed);
    let (left_strides, left_len) = layout(seed as usize, rows, inner);
    let (right_strides, right_len) = layout(seed as usize / 3, inner, cols);
    let left_data: Vec<u8> = (0..left_len).map(|_| rng.next() as u8).collect();
    let right_data: Vec<u8> = (0..right_len).map(|_| rng.next() as u8).collect();
    let point = |rng: &mut Rng, signed| i32::from(rng.next() as u8) - if signed { 128 } else { 0 };
    let left_points: Vec<i32> = (0..rows).map(|_| point(&mut rng, left_signed)).collect();
    let right_points: Vec<i32> = (0..cols).map(|_| point(&mut rng, right_signed)).collect();
    let choose = |points, one| {
        if seed.is_multiple_of(2) {
            ZeroPoints::Each(points)
        } else {
            ZeroPoints::One(one)
        }
    };
    let left = Bytes {
        view: View::new("left", &left_data, [rows, inner], left_strides).expect("fits"),
        signed: left_signed,
        zero_points: choose(&left_points, 5),
    };
    let right = Bytes {
        view: View::new("right", &right_data, [inner, cols], right_strides).expect("fits"),
        signed: right_signed,
        zero_points: choose(&right_points, 0),
    };
    let value = |byte: u8, signed| {
        if signed {
            i32::from(byte as i8)
        } else {
            i32::from(byte)
        }
    };
    let packed_left = PackedBytesLeft::new(cx, &left).expect("memory");
    let packed_right = PackedBytesRight::new(cx, &right).expect("memory");
    for choice in 0..4 {
        let lhs = if choice & 1 == 0 {
            BytesLeft::View(left.batched())
        } else {
            BytesLeft::Packed(&packed_left)
        };
        let rhs = if choice & 2 == 0 {
            BytesRight::View(right.batched())
        } else {
            BytesRight::Packed(&packed_right)
        };
        let mut out = vec![1i32; rows * cols];
        let view = ViewMut::dense("out", &mut out, [1, 1, rows, cols]).expect("fits");
        multiply_bytes(cx, lhs, rhs, view, choice == 1, None).expect("agrees");
        for (index, &got) in out.iter().enumerate() {
            let (row, col) = (index / cols, index % cols);
            let want: i32 = (0..inner)
                .map(|k| {
                    (value(left.view.at([row, k]), left_signed) - left.zero_points.at(row))
                        * (value(right.view.at([k, col]), right_signed) - right.zero_points.at(col))
                })
                .sum();
            assert_eq!(
                got,
                want + i32::from(choice == 1),
                "{extents:?} {choice} {:?} at {row},{col}",
                cx.isa
            );
        }
    }
}

#[test]
fn byte_products() {
    contexts(|cx| {
        for (index, &(rows, inner, cols)) in SIZES.iter().enumerate() {
            let seed = index as u64;
            check_bytes(
                cx,
                Extents { rows, inner, cols },
                seed,
                index & 1 == 0,
                index & 2 == 0,
            );
            check_bytes(
                cx,
                Extents { rows, inner, cols },
                seed + 5,
                index & 2 == 0,
                index & 1 != 0,
            );
        }
    });
}

/// A left operand of f32 that is rounded while packing, against the same operand rounded before.
fn check_wide<T: Sample<Sum = f32> + crate::library::simd::Float>(
    cx: &Context,
    extents: Extents,
    seed: u64,
) {
    let Extents { rows, inner, cols } = extents;
    let mut rng = Rng::new(seed);
    let (strides, len) = layout(seed as usize, rows, inner);
    let wide = rng.floats(len);
    let narrow: Vec<T> = wide.iter().map(|x| T::narrow(*x)).collect();
    let wide = View::new("left", &wide, [rows, inner], strides).expect("fits");
    let narrow = View::new("left", &narrow, [rows, inner], strides).expect("fits");
    let right: Vec<T> = (0..inner * cols).map(|_| T::sample(&mut rng)).collect();
    let right = View::dense("right", &right, [inner, cols]).expect("fits");
    let packed = PackedRight::new(cx, right).expect("memory");
    for rhs in [Right::View(right.batched()), Right::Packed(&packed)] {
        let mut out = vec![f32::NAN; rows * cols];
        let output = ViewMut::dense("out", &mut out, [rows, cols]).expect("fits");
        let lhs = Left::Wide(wide.batched());
        multiply(cx, lhs, rhs, Output::Store(output.batched()), None).expect("agrees");
        for (index, got) in out.into_iter().enumerate() {
            let (row, col) = (index / cols, index % cols);
            let pairs = &mut (0..inner).map(|k| (narrow.at([row, k]), right.at([k, col])));
            let want = T::reference(pairs, 0.0);
            let ok = T::close(got, want, inner);
            assert!(ok, "{extents:?} {:?} at {row},{col}: {got} {want}", cx.isa);
        }
    }
}

#[test]
fn wide_left_operands_are_rounded() {
    contexts(|cx| {
        for (index, &(rows, inner, cols)) in SIZES.iter().enumerate() {
            for seed in [index, index + 1, index + 2] {
                check_wide::<bf16>(cx, Extents { rows, inner, cols }, seed as u64);
                check_wide::<f16>(cx, Extents { rows, inner, cols }, seed as u64);
            }
        }
    });
}

#[test]
fn levels_and_threads_give_the_same_bits() {
    let sizes = [
        (1, 70, 40),
        (3, 401, 9),
        (9, 120, 64),
        (14, 50, 33),
        (37, 500, 2),
        (16, 90, 70),
        (60, 800, 90),
    ];
    for (rows, inner, cols) in sizes {
        let mut rng = Rng::new(5);
        let left = rng.floats(rows * inner);
        let right = rng.floats(inner * cols);
        for right_strides in [[cols, 1], [1, inner]] {
            let mut first: Option<Vec<f32>> = None;
            contexts(|cx| {
                if cx.isa.level() == crate::isa::Level::Baseline {
                    return;
                }
                let left = View::dense("left", &left, [rows, inner]).expect("fits");
                let right = View::new("right", &right, [inner, cols], right_strides).expect("fits");
                let packed = PackedRight::new(cx, right).expect("memory");
                let mut all = vec![];
                for rhs in [Right::View(right.batched()), Right::Packed(&packed)] {
                    let mut out = vec![f32::NAN; rows * cols];
                    let view = ViewMut::dense("out", &mut out, [rows, cols]).expect("fits");
                    let lhs = Left::View(left.batched());
                    multiply(cx, lhs, rhs, Output::Store(view.batched()), None).expect("agrees");
                    all.extend(out);
                }
                let want = first.get_or_insert_with(|| all.clone());
                let mut pairs = all.iter().zip(&*want);
                let same = pairs.all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{rows} {inner} {cols} {:?}", cx.isa);
            });
        }
    }
}

/// f32 by a right operand that is packed as a narrower float, against the same one widened before.
fn check_narrow<T: Half + crate::library::simd::Float>(cx: &Context, extents: Extents, seed: u64) {
    let Extents { rows, inner, cols } = extents;
    let mut rng = Rng::new(seed);
    let (strides, len) = layout(seed as usize, inner, cols);
    let narrow: Vec<T> = rng.floats(len).into_iter().map(T::narrow).collect();
    let narrow = View::new("right", &narrow, [inner, cols], strides).expect("fits");
    let left = rng.floats(rows * inner);
    let left = View::dense("left", &left, [rows, inner]).expect("fits");
    let packed = PackedRight::<f32>::narrow(cx, narrow).expect("memory");
    let packed_left = PackedLeft::new(cx, left).expect("memory");
    for lhs in [Left::View(left.batched()), Left::Packed(&packed_left)] {
        let mut out = vec![f32::NAN; rows * cols];
        let view = ViewMut::dense("out", &mut out, [rows, cols]).expect("fits");
        let output = Output::Store(view.batched());
        multiply(cx, lhs, Right::Packed(&packed), output, None).expect("agrees");
        for (index, got) in out.into_iter().enumerate() {
            let (row, col) = (index / cols, index % cols);
            let pairs = (0..inner).map(|k| (left.at([row, k]), narrow.at([k, col]).widen()));
            let want = f32::reference(&mut pairs.into_iter(), 0.0);
            let ok = f32::close(got, want, inner);
            assert!(ok, "{extents:?} {:?} at {row},{col}: {got} {want}", cx.isa);
        }
    }
}

#[test]
fn narrow_right_operands_are_widened() {
    contexts(|cx| {
        for (index, &(rows, inner, cols)) in SIZES.iter().enumerate() {
            for seed in [index, index + 1, index + 2] {
                check_narrow::<bf16>(cx, Extents { rows, inner, cols }, seed as u64);
                check_narrow::<f16>(cx, Extents { rows, inner, cols }, seed as u64);
            }
        }
    });
}
