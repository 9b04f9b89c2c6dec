//! Kernels by their own interpreter, and matrix products as library calls.

use super::{T, V, reference};
use cupola_ir::kernel::*;
use cupola_ir::{CoreOp, DType, Op, Tensor};

fn extent(e: Extent, sizes: &[i64]) -> i64 {
    match e {
        Extent::Const(c) => c,
        Extent::Size(s) => sizes[s as usize],
    }
}

fn pack(dtype: DType, v: &[V]) -> Vec<u8> {
    let t = T {
        dtype,
        shape: vec![v.len()],
        v: v.to_vec(),
    };
    reference::tensor(&t).bytes().to_vec()
}

/// Runs a kernel that the kernel verifier accepts.
pub fn run(k: &Kernel, sizes: &[i64], bufs: &mut [Vec<V>]) {
    let mut bytes: Vec<Vec<u8>> = bufs
        .iter()
        .zip(&k.buffers)
        .map(|(b, d)| {
            assert_eq!(b.len() as i64, extent(d.len, sizes));
            pack(d.dtype, b)
        })
        .collect();
    run_kernel(k, &mut bytes, sizes).unwrap_or_else(|e| panic!("{e}\n{k:#?}"));
    for ((b, d), raw) in bufs.iter_mut().zip(&k.buffers).zip(bytes) {
        let t = Tensor::new(d.dtype, vec![b.len()], raw.into()).expect("whole elements");
        *b = reference::elements(&t);
    }
}

/// A matrix product with an epilogue.
pub fn run_library(l: &Library, sizes: &[i64], bufs: &mut [Vec<V>]) {
    let Op::Core(CoreOp::Contract(p)) = &l.op else {
        panic!("not in these tests: {:?}", l.op)
    };
    let view = |v: &View, b: &[V]| {
        let shape: Vec<usize> = v.dims.iter().map(|d| extent(*d, sizes) as usize).collect();
        let mut out = vec![];
        reference::each(&shape, &mut |at| {
            let mut i = extent(v.offset, sizes);
            for (k, s) in at.iter().zip(&v.strides) {
                i += *k as i64 * extent(*s, sizes);
            }
            out.push(b[i as usize]);
        });
        T {
            dtype: v.dtype,
            shape,
            v: out,
        }
    };
    let x = view(&l.operands[0], &bufs[0]);
    let y = view(&l.operands[1], &bufs[1]);
    let product = reference::contract(p, &x, &y);
    match &l.epilogue {
        None => bufs[2] = product.v,
        Some(e) => {
            assert_eq!(e.sizes, l.sizes);
            assert_eq!(e.parallel, product.shape.len());
            let mut own = vec![product.v, std::mem::take(&mut bufs[2])];
            own.extend(bufs[3..].iter().cloned());
            run(e, sizes, &mut own);
            // What the epilogue takes or stores beside the result.
            for (to, from) in bufs[2..].iter_mut().zip(own.drain(1..)) {
                *to = from;
            }
        }
    }
}
