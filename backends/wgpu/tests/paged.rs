//! Attention over pages against the reference interpreter: shapes, element types, windows, caps, pages of odd lengths, rows
//! that see nothing, and what no row sees.

mod common;

use common::Random;
use common::backends;
use cupola_backend::BackendError;
use cupola_backend::testing::run;
use cupola_ir::composite::PagedAttention;
use cupola_ir::convert::{Lanes, cast, encode, lanes};
use cupola_ir::eval;
use cupola_ir::kernel::{Extent, Library, Unit, View};
use cupola_ir::{DType, Op, Tensor, Value, ValueType};
use cupola_wgpu::WgpuBackend;
use std::collections::HashSet;

#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    depth: usize,
    value_depth: usize,
    page_len: usize,
    blocks: usize,
    window: i64,
    softcap: f64,
    query: DType,
    cache: DType,
    /// Rows: how many of which sequence, from which position on.
    batch: &'static [(i64, i64, usize)],
}

const USUAL: Case = Case {
    heads: 6,
    kv_heads: 2,
    depth: 64,
    value_depth: 64,
    page_len: 16,
    blocks: 12,
    window: 0,
    softcap: 0.0,
    query: DType::F32,
    cache: DType::F16,
    batch: &[(0, 150, 1)],
};

const SEQUENCES: usize = 3;

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

impl Case {
    fn op(&self) -> Op {
        let attention = PagedAttention {
            scale: 1.0 / (self.depth as f64).sqrt(),
            softcap: self.softcap,
            window: self.window,
        };
        Op::Composite(attention.into())
    }

    /// Pages of three sequences, in no order; with `poison` what no row sees is no number.
    fn operands(&self, random: &mut Random, poison: bool) -> Vec<Tensor> {
        let pages = SEQUENCES * self.blocks + 1;
        let sequences: Vec<i64> = (self.batch.iter())
            .flat_map(|(s, _, n)| std::iter::repeat_n(*s, *n))
            .collect();
        let positions: Vec<i64> = (self.batch.iter())
            .flat_map(|(_, p, n)| (0..*n as i64).map(move |i| p + i))
            .collect();
        let page_of = |s: usize, b: usize| (b * SEQUENCES + s) as i64;
        let table: Vec<i64> = (0..SEQUENCES)
            .flat_map(|s| (0..self.blocks).map(move |b| page_of(s, b)))
            .collect();
        let rows = sequences.len();
        let mut floats = |dtype, shape: &[usize]| {
            let len = shape.iter().product();
            let values: Vec<f64> = (random.units(len).iter())
                .map(|v| f64::from(*v) * 2.0)
                .collect();
            encode(&Lanes::F(values), dtype, shape, false).expect("encodes")
        };
        let query = floats(self.query, &[rows, self.heads, self.depth]);
        let mut cache = |width| {
            let shape = [pages, self.kv_heads, self.page_len, width];
            let values = floats(DType::F64, &shape).to_vec::<f64>().expect("floats");
            let mut seen = HashSet::new();
            for (s, p) in sequences.iter().zip(&positions) {
                let first = match self.window {
                    0 => 0,
                    window => (p - window + 1).max(0),
                };
                let keys = (self.blocks * self.page_len) as i64;
                seen.extend((first..=*p.min(&(keys - 1))).map(|key| {
                    let block = key as usize / self.page_len;
                    (page_of(*s as usize, block), key as usize % self.page_len)
                }));
            }
            let values = values.into_iter().enumerate().map(|(i, v)| {
                let at = i / width % self.page_len;
                let page = i / (width * self.page_len * self.kv_heads);
                if poison && !seen.contains(&(page as i64, at)) {
                    f64::NAN
                } else {
                    v
                }
            });
            let wide = encode(&Lanes::F(values.collect()), DType::F64, &shape, false);
            cast(&wide.expect("encodes"), self.cache, false).expect("converts")
        };
        let (key, value) = (cache(self.depth), cache(self.value_depth));
        let table = Tensor::from_slice(&[SEQUENCES, self.blocks], &table).expect("a table");
        let lists = [Tensor::vector(&sequences), Tensor::vector(&positions)];
        [vec![query, key, value, table], lists.to_vec()].concat()
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

/// The result on a device.
fn on(
    backend: &WgpuBackend,
    op: &Op,
    operands: &[Tensor],
    like: &Tensor,
) -> Result<Tensor, BackendError> {
    let unit = Unit::Library(Library {
        op: op.clone(),
        sizes: vec![],
        operands: operands.iter().map(dense).collect(),
        results: vec![dense(like)],
        epilogue: None,
    });
    let mut buffers: Vec<Vec<u8>> = operands.iter().map(|x| x.bytes().to_vec()).collect();
    buffers.push(vec![0; like.bytes().len()]);
    run(backend, &unit, &[], &mut buffers)?;
    let last = buffers.pop().expect("a result");
    Ok(Tensor::new(like.dtype(), like.shape().to_vec(), last.into()).expect("a tensor"))
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    match lanes(&cast(tensor, DType::F64, false).expect("converts")) {
        Some(Lanes::F(values)) => values,
        other => panic!("{other:?}"),
    }
}

fn check(case: &Case, seed: u64) {
    for backend in backends() {
        let operands = case.operands(&mut Random::new(seed), true);
        let want = reference(&case.op(), &operands);
        let got = on(&backend, &case.op(), &operands, &want).expect("runs");
        let tolerance = match case.query {
            DType::F32 => 2e-5,
            DType::F16 => 2e-3,
            _ => 2e-2,
        };
        for (at, (g, w)) in floats(&got).iter().zip(floats(&want)).enumerate() {
            assert!(w.is_finite(), "{case:?} element {at}: {w} is wanted");
            assert!(
                (g - w).abs() <= tolerance,
                "{case:?} element {at}: {g} instead of {w}"
            );
        }
    }
}

#[test]
fn single_rows() {
    let cases = [
        USUAL,
        Case {
            blocks: 60,
            batch: &[(0, 900, 1)],
            ..USUAL
        },
        Case {
            depth: 80,
            value_depth: 80,
            cache: DType::F32,
            ..USUAL
        },
        Case {
            depth: 96,
            value_depth: 96,
            cache: DType::BF16,
            batch: &[(2, 0, 1)],
            ..USUAL
        },
        Case {
            depth: 128,
            value_depth: 128,
            heads: 8,
            kv_heads: 8,
            window: 20,
            ..USUAL
        },
        Case {
            depth: 256,
            value_depth: 256,
            heads: 4,
            softcap: 3.0,
            window: 70,
            ..USUAL
        },
        // Longer than the form of single rows takes.
        Case {
            depth: 300,
            value_depth: 40,
            heads: 4,
            ..USUAL
        },
        // More query heads for each key head than a workgroup has, the last part not full.
        Case {
            heads: 2 * 19,
            page_len: 7,
            ..USUAL
        },
        Case {
            heads: 5,
            kv_heads: 1,
            depth: 9,
            value_depth: 13,
            page_len: 1,
            blocks: 40,
            batch: &[(1, 39, 1)],
            ..USUAL
        },
        Case {
            query: DType::F16,
            ..USUAL
        },
        Case {
            query: DType::BF16,
            cache: DType::BF16,
            ..USUAL
        },
    ];
    for (seed, case) in cases.iter().enumerate() {
        check(case, seed as u64);
    }
}

#[test]
fn rows_of_several_sequences() {
    let batches: [&[(i64, i64, usize)]; 4] = [
        // Steps of all sequences, with one that is past its pages.
        &[(0, 150, 1), (1, 3, 1), (2, 191, 1), (1, 5000, 1)],
        // Prompts in any order, beside single steps; positions that jump.
        &[(1, 0, 45), (0, 100, 1), (2, 17, 33), (2, 60, 2)],
        // Rows of two sequences in turn.
        &[
            (0, 9, 1),
            (1, 4, 1),
            (0, 10, 1),
            (1, 5, 1),
            (0, 11, 1),
            (0, 2, 1),
            (1, 90, 70),
        ],
        &[],
    ];
    for (seed, batch) in batches.into_iter().enumerate() {
        for (window, softcap) in [(0, 0.0), (11, 2.0)] {
            let case = Case {
                batch,
                window,
                softcap,
                page_len: 17,
                ..USUAL
            };
            check(&case, seed as u64);
            check(
                &Case {
                    heads: 3,
                    kv_heads: 3,
                    depth: 24,
                    value_depth: 130,
                    cache: DType::F32,
                    ..case
                },
                seed as u64,
            );
        }
    }
}

#[test]
fn a_row_that_sees_no_key_gives_zero() {
    for backend in backends() {
        let case = Case {
            batch: &[(0, -1, 1), (1, 4, 1), (0, -7, 40)],
            ..USUAL
        };
        let operands = case.operands(&mut Random::new(1), false);
        let want = reference(&case.op(), &operands);
        let got = on(&backend, &case.op(), &operands, &want).expect("runs");
        let row = case.heads * case.value_depth;
        assert!(floats(&got)[..row].iter().all(|x| *x == 0.0));
        for (g, w) in floats(&got).iter().zip(floats(&want)) {
            assert!((g - w).abs() <= 2e-5, "{g} instead of {w}");
        }
    }
}

#[test]
fn no_text_sees_what_is_no_number_in_another() {
    for backend in backends() {
        // Forty rows share tiles with a sequence whose keys and values are no numbers.
        for batch in [&[(0, 0, 20), (1, 3, 20)][..], &[(0, 7, 1), (1, 3, 1)]] {
            let case = Case {
                batch,
                cache: DType::F32,
                ..USUAL
            };
            let mut operands = case.operands(&mut Random::new(2), false);
            let page = case.kv_heads * case.page_len * case.depth;
            for operand in [1, 2] {
                let mut values = operands[operand].to_vec::<f32>().expect("floats");
                // The first page of sequence 1 is page 1.
                values[page..2 * page].fill(f32::NAN);
                let shape = operands[operand].shape().to_vec();
                operands[operand] = Tensor::from_slice(&shape, &values).expect("as many");
            }
            let want = floats(&reference(&case.op(), &operands));
            let like = reference(&case.op(), &operands);
            let got = floats(&on(&backend, &case.op(), &operands, &like).expect("runs"));
            for (at, (g, w)) in got.iter().zip(want).enumerate() {
                let same = g.is_nan() == w.is_nan() && (w.is_nan() || (g - w).abs() <= 2e-5);
                assert!(same, "element {at}: {g} instead of {w}");
            }
        }
    }
}

#[test]
fn a_sequence_that_the_table_lacks_is_a_fault() {
    for backend in backends() {
        for batch in [&[(0, 5, 1), (3, 5, 1)][..], &[(0, 5, 30), (-1, 5, 10)]] {
            let case = Case { batch, ..USUAL };
            let mut operands = case.operands(&mut Random::new(3), false);
            let like = operands[0].clone();
            let result = on(&backend, &case.op(), &operands, &like);
            assert!(
                matches!(result, Err(BackendError::Fault { .. })),
                "{result:?}"
            );
            // Pages outside are the nearest.
            operands[4] = Tensor::vector(&vec![0i64; operands[4].shape()[0]]);
            let mut table = operands[3].to_i64s().expect("integers");
            (table[0], table[1]) = (i64::MIN, i64::MAX);
            operands[3] = Tensor::from_slice(operands[3].shape(), &table).expect("a table");
            let want = floats(&reference(&case.op(), &operands));
            let got = floats(&on(&backend, &case.op(), &operands, &like).expect("runs"));
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() <= 2e-5, "{g} instead of {w}");
            }
        }
    }
}
