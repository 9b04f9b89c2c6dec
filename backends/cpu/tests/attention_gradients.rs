//! The gradient of attention against the reference interpreter: masks, shared heads, layouts, dtypes, odd and empty extents.

mod common;

use common::*;
use cupola_backend::testing::run;
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::composite::AttentionGradient;
use cupola_ir::kernel::*;
use cupola_ir::{CompositeOp, DType, Op, Tensor, convert};

/// `[batch, heads, kv_heads, queries, keys, depth, value depth]`
type Sizes = [usize; 7];

const SIZES: [Sizes; 13] = [
    [1, 1, 1, 1, 1, 1, 1],
    [2, 2, 1, 3, 5, 8, 4],
    [1, 4, 2, 70, 150, 64, 64],
    [3, 6, 6, 33, 33, 20, 17],
    // More rows than a block has, more keys than a block has, more heads than there are parts.
    [1, 2, 1, 130, 300, 20, 33],
    [1, 1, 1, 113, 513, 8, 40],
    [9, 2, 2, 15, 31, 16, 16],
    // Queries before the first key see none when causal.
    [2, 2, 1, 40, 17, 16, 16],
    [0, 2, 1, 3, 4, 8, 8],
    [1, 2, 1, 0, 4, 8, 8],
    [1, 2, 1, 3, 0, 8, 8],
    [1, 2, 1, 3, 4, 0, 8],
    [1, 2, 1, 3, 4, 8, 0],
];

/// A mask by number: none, of truth values without any in some rows, of numbers of which some are -inf.
fn mask(
    random: &mut Random,
    [batch, heads, _, queries, keys, ..]: Sizes,
    kind: usize,
) -> Option<Tensor> {
    match kind {
        0 => None,
        1 => {
            let keep: Vec<u8> = (0..batch * queries * keys)
                .map(|i| i % 3 != 1 && i / keys.max(1) % 7 != 1)
                .map(u8::from)
                .collect();
            let shape = vec![batch, 1, queries, keys];
            Some(Tensor::new(DType::Bool, shape, keep.into()).expect("a mask"))
        }
        _ => {
            let mut added = || match random.below(6) {
                0 => f32::NEG_INFINITY,
                n => n as f32 / 4.0,
            };
            let added: Vec<f32> = (0..heads * keys).map(|_| added()).collect();
            Some(Tensor::from_slice(&[heads, 1, keys], &added).expect("a mask"))
        }
    }
}

/// Attributes by number.
fn attributes(choice: usize) -> AttentionGradient {
    AttentionGradient {
        scale: 0.75,
        causal: choice % 2 == 1,
        softcap: if choice % 3 == 2 { 1.5 } else { 0.0 },
    }
}

/// The operands, stored in this type and taken in another.
fn operands(
    random: &mut Random,
    sizes: Sizes,
    choice: usize,
    [stored, read]: [DType; 2],
) -> Vec<Tensor> {
    let [batch, heads, kv_heads, queries, keys, depth, values] = sizes;
    let mut sample = |shape: [usize; 4]| tensor(random, stored, &shape);
    let q = sample([batch, heads, queries, depth]);
    let k = sample([batch, kv_heads, keys, depth]);
    let v = sample([batch, kv_heads, keys, values]);
    let dy = sample([batch, heads, queries, values]);
    let mask = mask(random, sizes, choice / 2 % 3);
    let op = Op::Composite(CompositeOp::from(attributes(choice).attention()));
    let inputs: Vec<Tensor> = [&q, &k, &v]
        .map(|t| rounded(t, read))
        .into_iter()
        .chain(mask.clone())
        .collect();
    let y = rounded(&reference(&op, &inputs)[0], stored);
    [q, k, v, y, dy].into_iter().chain(mask).collect()
}

fn rounded(t: &Tensor, to: DType) -> Tensor {
    convert::cast(t, to, true).expect("a tensor")
}

/// Runs the gradient on operands with their axes stored in this order.
fn gradients(
    backend: &CpuBackend,
    op: &Op,
    operands: &[Tensor],
    results: &[Tensor],
    order: [usize; 4],
    read: DType,
) -> Vec<Vec<u8>> {
    let (mut buffers, mut views) = (vec![], vec![]);
    for (at, t) in operands.iter().enumerate() {
        let read = if at == 5 { t.dtype() } else { read };
        // Numbers of a mask may be of another type in memory too.
        let t = match (at, t.dtype()) {
            (5, DType::F32) if order[1] == 2 => rounded(t, DType::BF16),
            _ => t.clone(),
        };
        let own: Vec<usize> = (0..t.shape().len()).collect();
        let (bytes, view) = stored(&t, if at == 5 { &own } else { &order });
        buffers.push(bytes);
        views.push(View { read, ..view });
    }
    let unit = Library {
        op: op.clone(),
        sizes: vec![],
        operands: views,
        results: results
            .iter()
            .map(|t| dense(t.dtype(), t.shape()))
            .collect(),
        epilogue: None,
    };
    buffers.extend(results.iter().map(|t| vec![0xAA; t.bytes().len()]));
    run(backend, &Unit::Library(unit), &[], &mut buffers).expect("runs");
    buffers.split_off(operands.len())
}

#[test]
fn are_those_of_the_interpreter() {
    let mut random = Random(11);
    let types = [
        ([DType::F32, DType::F32], 1e-5),
        ([DType::BF16, DType::BF16], 2e-2),
        ([DType::F32, DType::BF16], 2e-2),
    ];
    let orders = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 3, 2]];
    let backends = backends();
    for (index, sizes) in SIZES.into_iter().enumerate() {
        for choice in 0..12 {
            for ([stored, read], tolerance) in types {
                let order = orders[(index + choice) % 3];
                let given = operands(&mut random, sizes, choice, [stored, read]);
                let taken: Vec<Tensor> = given[..5]
                    .iter()
                    .map(|t| rounded(t, read))
                    .chain(given.get(5).cloned())
                    .collect();
                let op = Op::Composite(CompositeOp::from(attributes(choice)));
                let want = reference(&op, &taken);
                for backend in &backends {
                    let got = gradients(backend, &op, &given, &want, order, read);
                    for ((got, want), name) in got.iter().zip(&want).zip(["dq", "dk", "dv"]) {
                        let what = format!(
                            "{name} of {sizes:?} choice {choice} {stored} as {read} {:?}",
                            backend.isa()
                        );
                        assert_close(got, want, tolerance, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn have_the_same_bits_for_any_number_of_threads() {
    let mut random = Random(5);
    for sizes in [[1, 4, 2, 230, 300, 24, 24], [9, 2, 2, 60, 60, 16, 16]] {
        let given = operands(&mut random, sizes, 1, [DType::F32; 2]);
        let op = Op::Composite(CompositeOp::from(attributes(1)));
        let results = reference(&op, &given);
        let each = [1, 2, 5].map(|threads| {
            let backend = CpuBackend::with_isa(threads, Isa::detect(), Usage::unlimited());
            gradients(&backend, &op, &given, &results, [0, 2, 1, 3], DType::F32)
        });
        assert!(each.iter().all(|bits| *bits == each[0]));
    }
}
