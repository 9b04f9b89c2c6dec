//! Every block format and level against plain sums over dequantised weights.

use cupola_ir::BlockFormat;
use cupola_ir::convert::dequantize;
use half::{bf16, f16};

use super::*;
use crate::library::testing::{Rng, contexts};

/// Random blocks whose numbers are finite and neither huge nor tiny.
fn weights(rng: &mut Rng, format: BlockFormat, len: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut floats) = (vec![], vec![]);
    let mut block = vec![0f32; format.block_len()];
    while floats.len() < len {
        let codes: Vec<u8> = (0..format.block_size()).map(|_| rng.next() as u8).collect();
        dequantize(format, &codes, &mut block).expect("one block");
        let is_number = block.iter().all(|x| x.is_finite());
        let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        if is_number && (1e-3..1e2).contains(&largest) {
            bytes.extend(codes);
            floats.extend(&block);
        }
    }
    (bytes, floats)
}

/// What the kernel makes of 16 activations.
fn rounded(x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = f64::from(largest / 127.0);
    let code = |x: &f32| f64::from((x * (127.0 / largest)).round_ties_even());
    x.iter()
        .map(|x| if largest == 0.0 { 0.0 } else { code(x) * scale })
        .collect()
}

fn product(
    cx: &Context,
    left: &[f32],
    shape: [usize; 2],
    right: &PackedBlocks,
    how: Activations,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; shape[0] * right.cols];
    let left = View::dense("left", left, shape).expect("fits");
    let to = ViewMut::dense("out", &mut out, [shape[0], right.cols]).expect("fits");
    multiply_blocks(cx, left, right, how, BlockOutput::Store(to), None).expect("agrees");
    out
}

/// Compares one product of `rows` rows by `cols` columns with sums in f64.
fn check(cx: &Context, format: BlockFormat, [rows, cols]: [usize; 2], blocks: usize) {
    let mut rng = Rng::new((rows * 1000 + cols) as u64);
    let inner = blocks * format.block_len();
    let (bytes, floats) = weights(&mut rng, format, inner * cols);
    let packed = PackedBlocks::new(cx, format, &bytes, [inner, cols]).expect("fits");
    assert_eq!(packed.size(), PackedBlocks::size_of(format, [inner, cols]));
    let mut left = rng.floats(rows * inner);
    left[..32.min(rows * inner)].fill(0.0);
    for how in [Activations::Exact, Activations::Rounded] {
        let seen: Vec<f64> = match how {
            Activations::Exact => left.iter().map(|x| f64::from(*x)).collect(),
            Activations::Rounded => left.chunks(16).flat_map(rounded).collect(),
        };
        let got = product(cx, &left, [rows, inner], &packed, how);
        for row in 0..rows {
            for col in 0..cols {
                let x = &seen[row * inner..][..inner];
                let w = &floats[col * inner..][..inner];
                let terms = x.iter().zip(w).map(|(x, w)| x * f64::from(*w));
                let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                let got = f64::from(got[row * cols + col]);
                // Minima cancel against codes that are all positive.
                let close =
                    (got - sum).abs() <= 4e-6 * size + 1e-4 * f64::from(inner as f32).sqrt() * 1e-3;
                assert!(
                    close,
                    "{format:?} {how:?} {:?} [{row}, {col}]: {got} {sum}",
                    cx.isa
                );
            }
        }
    }
}

#[test]
fn every_format_on_every_level() {
    contexts(|cx| {
        for &(format, _, len, _) in BlockFormat::TABLE {
            let blocks = if len == 256 { 2 } else { 352 / 32 };
            for rows in [1, 3, 13] {
                check(cx, format, [rows, 19], blocks);
            }
        }
    });
}

#[test]
fn every_number_of_rows() {
    contexts(|cx| {
        for rows in 0..=33 {
            check(cx, BlockFormat::Q4_1, [rows, 35], 3);
            check(cx, BlockFormat::Q6_K, [rows, 16], 1);
        }
    });
}

#[test]
fn empty_extents() {
    contexts(|cx| {
        check(cx, BlockFormat::Q4_0, [2, 0], 1);
        check(cx, BlockFormat::Q4_0, [2, 17], 0);
    });
}

#[test]
fn many_rows_and_strips() {
    contexts(|cx| check(cx, BlockFormat::Q8_0, [1030, 50], 2));
}

#[test]
fn levels_list_every_code() {
    use cupola_ir::convert::block_codes;
    let mut rng = Rng::new(5);
    for &(format, _, len, size) in BlockFormat::TABLE {
        let Some(levels) = format.levels() else {
            continue;
        };
        assert!(levels.len() <= 16 && levels.is_sorted());
        for _ in 0..50 {
            let bytes: Vec<u8> = (0..size).map(|_| rng.next() as u8).collect();
            let block = block_codes(format, &bytes).expect("one block");
            let known = block.codes[..len].iter().all(|c| levels.contains(c));
            assert!(known, "{format:?}");
        }
    }
}

#[test]
fn numbers_that_are_none_reach_their_row_only() {
    contexts(|cx| {
        let mut rng = Rng::new(9);
        let (bytes, _) = weights(&mut rng, BlockFormat::Q4_1, 64 * 16);
        let packed = PackedBlocks::new(cx, BlockFormat::Q4_1, &bytes, [64, 16]).expect("fits");
        for (strange, how) in [f32::NAN, f32::INFINITY]
            .into_iter()
            .flat_map(|x| [(x, Activations::Exact), (x, Activations::Rounded)])
        {
            let mut left = rng.floats(3 * 64);
            left[64 + 40] = strange;
            let got = product(cx, &left, [3, 64], &packed, how);
            assert!(got[..16].iter().chain(&got[32..]).all(|x| x.is_finite()));
            assert!(got[16..32].iter().all(|x| !x.is_finite()), "{how:?}");
        }
    });
}

#[test]
fn narrow_activations_and_results_with_an_epilogue() {
    fn run<T: BlockNumber>(cx: &Context) {
        let mut rng = Rng::new(3);
        let (bytes, floats) = weights(&mut rng, BlockFormat::Q4_0, 32 * 18);
        let packed = PackedBlocks::new(cx, BlockFormat::Q4_0, &bytes, [32, 18]).expect("fits");
        let left: Vec<T> = rng.floats(5 * 32).into_iter().map(T::narrow).collect();
        let mut out = vec![T::narrow(0.0); 5 * 18];
        let twice = |part: Finished<f32>| {
            for row in 0..part.rows {
                for col in 0..part.cols {
                    // SAFETY: the element is inside the part.
                    unsafe { *part.start.add(row * part.row_stride + col) *= 2.0 };
                }
            }
        };
        let view = View::dense("left", &left, [5, 32]).expect("fits");
        let to = ViewMut::dense("out", &mut out, [5, 18]).expect("fits");
        let output = BlockOutput::Narrow(to);
        multiply_blocks(cx, view, &packed, Activations::Exact, output, Some(&twice))
            .expect("agrees");
        for row in 0..5 {
            for col in 0..18 {
                let pairs = left[row * 32..][..32].iter().zip(&floats[col * 32..][..32]);
                let (sum, size) = pairs.fold((0f32, 0f32), |(s, a), (x, w)| {
                    (s + x.widen() * w, a + (x.widen() * w).abs())
                });
                let got = out[row * 18 + col].widen();
                assert!(
                    (got - 2.0 * sum).abs() <= 0.02 * size,
                    "{got} {}",
                    2.0 * sum
                );
            }
        }
    }
    contexts(|cx| {
        run::<bf16>(cx);
        run::<f16>(cx);
    });
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    contexts(|cx| {
        let q4_0 = BlockFormat::Q4_0;
        assert!(PackedBlocks::new(cx, q4_0, &[0; 18], [31, 1]).is_err());
        assert!(PackedBlocks::new(cx, q4_0, &[0; 17], [32, 1]).is_err());
        let packed = PackedBlocks::new(cx, q4_0, &[0; 18], [32, 1]).expect("fits");
        let left = [0f32; 64];
        let view = View::dense("left", &left, [1, 64]).expect("fits");
        let refused = multiply_blocks(
            cx,
            view,
            &packed,
            Activations::Exact,
            BlockOutput::Discard,
            None,
        );
        assert!(refused.is_err());
    });
}
