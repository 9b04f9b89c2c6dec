//! Paged attention means what its contract says: the interpreter against the equation written out.

use cupola_ir::composite::PagedAttention;
use cupola_ir::eval::{Env, run};
use cupola_ir::{DType, Dim, Graph, Op, Tensor, TensorType, Value, convert};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const PAGE_LEN: usize = 3;
const D: usize = 2;
const DV: usize = 3;
const PAGES: usize = 5;

/// Small numbers without a pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9) | 1;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x % 33) as f32 / 8.0 - 2.0
    };
    (0..len).map(next).collect()
}

struct Case {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    table: Vec<Vec<i64>>,
    sequences: Vec<i64>,
    positions: Vec<i64>,
}

impl Case {
    /// Three sequences over pages in no order, rows of two of them, entries past the last block out of range.
    fn mixed() -> Case {
        Case {
            q: numbers(5 * HEADS * D, 1),
            k: numbers(PAGES * KV_HEADS * PAGE_LEN * D, 2),
            v: numbers(PAGES * KV_HEADS * PAGE_LEN * DV, 3),
            table: vec![vec![4, 0, 99], vec![2, -7, 1], vec![1, 3, 2]],
            sequences: vec![0, 0, 2, 2, 2],
            positions: vec![3, 4, 0, 1, 8],
        }
    }

    fn graph(&self, op: PagedAttention, cache: DType) -> Graph {
        let mut g = Graph::new("g");
        let mut input = |name: &str, dtype, dims: &[Dim]| {
            g.input(name, TensorType::new(dtype, dims.iter().cloned()))
                .unwrap()
        };
        let (rows, fixed) = (Dim::sym("rows"), |n: usize| Dim::from(n));
        let kv = |d| {
            [
                Dim::sym("pages"),
                fixed(KV_HEADS),
                fixed(PAGE_LEN),
                fixed(d),
            ]
        };
        let operands = [
            input("q", DType::F32, &[rows.clone(), fixed(HEADS), fixed(D)]),
            input("k", cache, &kv(D)),
            input("v", cache, &kv(DV)),
            input(
                "table",
                DType::I64,
                &[Dim::sym("batch"), Dim::sym("blocks")],
            ),
            input("sequences", DType::I64, std::slice::from_ref(&rows)),
            input("positions", DType::I64, &[rows]),
        ];
        let y = g.one(Op::Composite(op.into()), &operands).unwrap();
        g.output("y", y);
        g
    }

    fn interpreted(&self, op: PagedAttention, cache: DType) -> Result<Vec<f32>, String> {
        let t = |shape: &[usize], x: &[f32]| Tensor::from_slice(shape, x).unwrap();
        let kept = |x: &[f32], d| {
            convert::cast(&t(&[PAGES, KV_HEADS, PAGE_LEN, d], x), cache, true).unwrap()
        };
        let table = self.table.concat();
        let inputs: Vec<Value> = [
            t(&[self.positions.len(), HEADS, D], &self.q),
            kept(&self.k, D),
            kept(&self.v, DV),
            Tensor::from_slice(&[self.table.len(), self.table[0].len()], &table).unwrap(),
            Tensor::vector(&self.sequences),
            Tensor::vector(&self.positions),
        ]
        .map(Value::from)
        .to_vec();
        let out = run(&self.graph(op, cache), &inputs, &mut Env::default());
        let out = out.map_err(|e| e.to_string())?;
        Ok(out[0].as_tensor().unwrap().to_vec::<f32>().unwrap())
    }

    /// The equation, in f64.
    fn expected(&self, op: &PagedAttention) -> Vec<f64> {
        let mut out = vec![];
        for (r, position) in self.positions.iter().enumerate() {
            for h in 0..HEADS {
                let first = match op.window {
                    0 => 0,
                    window => (position - window + 1).max(0),
                };
                let last = (*position).min((self.table[0].len() * PAGE_LEN) as i64 - 1);
                let (mut sum, mut y) = (0.0, [0.0; DV]);
                for j in first as usize..=last as usize {
                    let page = self.table[self.sequences[r] as usize][j / PAGE_LEN] as usize;
                    let at = (page * KV_HEADS + h / (HEADS / KV_HEADS)) * PAGE_LEN + j % PAGE_LEN;
                    let dot: f64 = (0..D)
                        .map(|i| f64::from(self.q[(r * HEADS + h) * D + i] * self.k[at * D + i]))
                        .sum();
                    let mut score = dot * op.scale;
                    if op.softcap != 0.0 {
                        score = op.softcap * (score / op.softcap).tanh();
                    }
                    sum += score.exp();
                    for (i, y) in y.iter_mut().enumerate() {
                        *y += score.exp() * f64::from(self.v[at * DV + i]);
                    }
                }
                out.extend(y.map(|y| y / sum));
            }
        }
        out
    }
}

fn op(softcap: f64, window: i64) -> PagedAttention {
    PagedAttention {
        scale: 0.75,
        softcap,
        window,
    }
}

#[test]
fn rows_of_several_sequences_see_their_own_keys_up_to_their_positions() {
    let case = Case::mixed();
    for cache in [DType::F32, DType::F16, DType::BF16] {
        for op in [op(0.0, 0), op(1.5, 0), op(0.0, 1), op(2.0, 4)] {
            let want = case.expected(&op);
            let got = case.interpreted(op.clone(), cache).unwrap();
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(&want) {
                assert!(
                    (f64::from(*g) - w).abs() < 1e-5,
                    "{op:?} {cache}: {g} and {w}"
                );
            }
        }
    }
}

/// A graph of keys and values in 8 bits with `n` and `m` scales each, from inputs that are those of [`Case::graph`].
fn scaled_graph(op: PagedAttention, [n, m]: [usize; 2]) -> Graph {
    let mut g = Graph::new("g");
    let mut input = |name: &str, dtype, dims: &[Dim]| {
        g.input(name, TensorType::new(dtype, dims.iter().cloned()))
            .unwrap()
    };
    let (rows, fixed) = (Dim::sym("rows"), |n: usize| Dim::from(n));
    let kept = |d| {
        [
            Dim::sym("pages"),
            fixed(KV_HEADS),
            fixed(PAGE_LEN),
            fixed(d),
        ]
    };
    let operands = [
        input("q", DType::F32, &[rows.clone(), fixed(HEADS), fixed(D)]),
        input("k", DType::I8, &kept(D)),
        input("v", DType::I8, &kept(DV)),
        input(
            "table",
            DType::I64,
            &[Dim::sym("batch"), Dim::sym("blocks")],
        ),
        input("sequences", DType::I64, std::slice::from_ref(&rows)),
        input("positions", DType::I64, &[rows]),
        input("k_scales", DType::F16, &kept(n)),
        input("v_scales", DType::F32, &kept(m)),
    ];
    let y = g.one(Op::Composite(op.into()), &operands).unwrap();
    g.output("y", y);
    g
}

#[test]
fn keys_and_values_in_8_bits_are_multiplied_by_their_scales() {
    for groups in [[1, 1], [2, 3]] {
        let mut case = Case::mixed();
        let codes = |len: usize, seed| -> Vec<i8> {
            numbers(len, seed)
                .iter()
                .map(|x| (x * 50.0) as i8)
                .collect()
        };
        let kept = PAGES * KV_HEADS * PAGE_LEN;
        let (k, v) = (codes(kept * D, 4), codes(kept * DV, 5));
        // Exact in f16.
        let scales = |n: usize, seed| -> Vec<f32> {
            numbers(kept * n, seed).iter().map(|x| x / 64.0).collect()
        };
        let (k_scales, v_scales) = (scales(groups[0], 6), scales(groups[1], 7));
        let wide = |x: &[i8], scales: &[f32], d: usize, n: usize| -> Vec<f32> {
            let scale = |i: usize| scales[i / d * n + i % d / (d / n)];
            x.iter()
                .enumerate()
                .map(|(i, x)| f32::from(*x) * scale(i))
                .collect()
        };
        case.k = wide(&k, &k_scales, D, groups[0]);
        case.v = wide(&v, &v_scales, DV, groups[1]);
        let op = op(1.5, 4);
        let want = case.expected(&op);
        let shape = |d| [PAGES, KV_HEADS, PAGE_LEN, d];
        let narrow = Tensor::from_slice(&shape(groups[0]), &k_scales).unwrap();
        let inputs: Vec<Value> = [
            Tensor::from_slice(&[case.positions.len(), HEADS, D], &case.q).unwrap(),
            Tensor::from_slice(&shape(D), &k).unwrap(),
            Tensor::from_slice(&shape(DV), &v).unwrap(),
            Tensor::from_slice(&[case.table.len(), 3], &case.table.concat()).unwrap(),
            Tensor::vector(&case.sequences),
            Tensor::vector(&case.positions),
            convert::cast(&narrow, DType::F16, true).unwrap(),
            Tensor::from_slice(&shape(groups[1]), &v_scales).unwrap(),
        ]
        .map(Value::from)
        .to_vec();
        let out = run(&scaled_graph(op, groups), &inputs, &mut Env::default()).unwrap();
        let got = out[0].as_tensor().unwrap().to_vec::<f32>().unwrap();
        for (g, w) in got.iter().zip(&want) {
            assert!((f64::from(*g) - w).abs() < 1e-5, "{groups:?}: {g} and {w}");
        }
    }
}

#[test]
fn what_no_row_sees_may_be_anything() {
    let op = op(0.0, 0);
    let mut case = Case::mixed();
    let want = case.interpreted(op.clone(), DType::F32).unwrap();
    // Page 0 holds keys 3 to 5 of sequence 0, whose last row is at 4; keys of page 2 are those of 6 to 8 of sequence 2.
    for head in 0..KV_HEADS {
        let at = head * PAGE_LEN + 2;
        case.k[at * D..(at + 1) * D].fill(f32::NAN);
        case.v[at * DV..(at + 1) * DV].fill(f32::NAN);
    }
    assert_eq!(case.interpreted(op, DType::F32).unwrap(), want);
}

#[test]
fn a_sequence_outside_the_table_fails() {
    let mut case = Case::mixed();
    case.sequences[1] = 3;
    let error = case.interpreted(op(0.0, 0), DType::F32).unwrap_err();
    assert!(error.contains("index 3 is outside axis 0"), "{error}");
}

#[test]
fn unfit_operands_are_named() {
    let dims = |d: &[usize]| d.iter().copied().map(Dim::from).collect::<Vec<_>>();
    let good = [
        (DType::F32, dims(&[5, 4, 2])),
        (DType::F16, dims(&[5, 2, 3, 2])),
        (DType::F16, dims(&[5, 2, 3, 3])),
        (DType::I64, dims(&[3, 3])),
        (DType::I64, dims(&[5])),
        (DType::I64, dims(&[5])),
    ];
    let push = |types: &[(DType, Vec<Dim>)], op: PagedAttention| {
        let mut g = Graph::new("g");
        let operands: Vec<_> = (types.iter().enumerate())
            .map(|(i, (dtype, dims))| {
                let ty = TensorType::new(*dtype, dims.iter().cloned());
                g.input(&format!("x{i}"), ty).unwrap()
            })
            .collect();
        g.one(Op::Composite(op.into()), &operands)
            .map(|y| g.ty(y).to_string())
            .map_err(|e| e.to_string())
    };
    assert_eq!(push(&good, op(0.0, 0)).unwrap(), "f32[5, 4, 3]");
    let changed = |at: usize, dtype, d: &[usize]| {
        let mut types = good.clone();
        types[at] = (dtype, dims(d));
        push(&types, op(0.0, 0)).unwrap_err()
    };
    let scaled = |k, n: usize, more: &[usize]| {
        let mut types = good.to_vec();
        (types[1].0, types[2].0) = (k, DType::I8);
        types.push((DType::F16, dims(&[5, 2, 3, n])));
        types.extend((!more.is_empty()).then(|| (DType::F32, dims(more))));
        push(&types, op(0.0, 0))
    };
    assert_eq!(scaled(DType::I8, 1, &[5, 2, 3, 3]).unwrap(), "f32[5, 4, 3]");
    for (error, part) in [
        (scaled(DType::I8, 1, &[]).unwrap_err(), "or none"),
        (
            scaled(DType::F16, 1, &[5, 2, 3, 1]).unwrap_err(),
            "should be of i8",
        ),
        (
            scaled(DType::I8, 3, &[5, 2, 3, 1]).unwrap_err(),
            "3 scales do not divide 2",
        ),
        (
            scaled(DType::I8, 1, &[5, 1, 3, 1]).unwrap_err(),
            "axis 1 of f32[5, 1, 3, 1]",
        ),
        (
            changed(0, DType::F32, &[5, 3, 2]),
            "3 heads are no multiple of 2",
        ),
        (changed(0, DType::F32, &[5, 4, 4]), "axis 2 of f32[5, 4, 4]"),
        (changed(1, DType::I8, &[5, 2, 3, 2]), "should be of floats"),
        (
            changed(2, DType::F16, &[4, 2, 3, 3]),
            "axis 0 of f16[5, 2, 3, 2]",
        ),
        (changed(3, DType::I32, &[3, 3]), "should be of i64"),
        (changed(4, DType::I64, &[5, 1]), "should have 1 axes"),
        (changed(5, DType::I64, &[4]), "axis 0 of i64[4]"),
        (push(&good, op(0.0, -1)).unwrap_err(), "window of -1"),
        (
            push(&good[..5], op(0.0, 0)).unwrap_err(),
            "takes 6 to 8 operands, not 5",
        ),
    ] {
        assert!(error.contains(part), "{error}");
    }
}
