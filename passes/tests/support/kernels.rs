//! A plain evaluator of kernels and of matrix products as library calls.

use super::{V, reference};
use cupola_ir::kernel::*;
use cupola_ir::ops::Contract;
use cupola_ir::{CoreOp, DType, Op};

struct Run<'a> {
    k: &'a Kernel,
    sizes: &'a [i64],
    bufs: &'a mut [Vec<V>],
    at: Vec<i64>,
    accums: Vec<Vec<V>>,
}

fn extent(e: Extent, sizes: &[i64]) -> i64 {
    match e {
        Extent::Const(c) => c,
        Extent::Size(s) => sizes[s as usize],
    }
}

pub fn run(k: &Kernel, sizes: &[i64], bufs: &mut [Vec<V>]) {
    for (b, d) in bufs.iter().zip(&k.buffers) {
        assert_eq!(b.len() as i64, extent(d.len, sizes));
    }
    let mut r = Run {
        k,
        sizes,
        bufs,
        at: vec![0; k.axes.len()],
        accums: vec![vec![]; k.phases.len()],
    };
    let parallel: Vec<AxisId> = (0..k.parallel as u32).map(AxisId).collect();
    r.each(&parallel, &mut |r| r.phases());
}

impl Run<'_> {
    fn each(&mut self, axes: &[AxisId], f: &mut dyn FnMut(&mut Self)) {
        let Some((first, rest)) = axes.split_first() else {
            return f(self);
        };
        for i in 0..extent(self.k.axes[first.0 as usize], self.sizes) {
            self.at[first.0 as usize] = i;
            self.each(rest, f);
        }
    }

    fn phases(&mut self) {
        let k = self.k;
        for (p, phase) in k.phases.iter().enumerate() {
            match phase {
                Phase::Reduce { axes, accums } => {
                    let mut state: Vec<Option<(V, i64)>> = vec![None; accums.len()];
                    let mut position = 0;
                    self.each(axes, &mut |r| {
                        for (s, a) in state.iter_mut().zip(accums) {
                            let v = r.expr(a.value);
                            *s = Some(step(a.kind, *s, v, position));
                        }
                        position += 1;
                    });
                    self.accums[p] = accums
                        .iter()
                        .zip(state)
                        .map(|(a, s)| finish(a.kind, s, k.dtype(a.value)))
                        .collect();
                }
                Phase::Store { axes, stores } => self.each(axes, &mut |r| {
                    for s in stores {
                        if s.guard.is_some_and(|g| r.expr(g).i() == 0) {
                            continue;
                        }
                        assert_eq!(k.dtype(s.value), k.buffers[s.buffer.0 as usize].dtype);
                        let (i, v) = (r.index(s.index), r.expr(s.value));
                        r.bufs[s.buffer.0 as usize][i as usize] = v;
                    }
                }),
            }
        }
    }

    fn index(&self, i: IndexId) -> i64 {
        match self.k.indices[i.0 as usize] {
            Index::Const(c) => c,
            Index::Size(s) => self.sizes[s as usize],
            Index::Axis(a) => self.at[a.0 as usize],
            Index::Add(a, b) => self.index(a) + self.index(b),
            Index::Sub(a, b) => self.index(a) - self.index(b),
            Index::Mul(a, b) => self.index(a) * self.index(b),
            Index::Div(a, b) => self.index(a).div_euclid(self.index(b)),
            Index::Rem(a, b) => self.index(a).rem_euclid(self.index(b)),
            Index::Min(a, b) => self.index(a).min(self.index(b)),
            Index::Max(a, b) => self.index(a).max(self.index(b)),
            Index::Checked { value, extent, .. } => {
                let n = self.index(extent);
                self.expr(value).i().clamp(0, (n - 1).max(0))
            }
        }
    }

    fn expr(&self, e: ExprId) -> V {
        let k = self.k;
        let dtype = k.dtype(e);
        match k.exprs[e.0 as usize] {
            Expr::Const(l) => reference::from_bits(l.dtype, l.bits),
            Expr::Index(i, _) => reference::round(V::I(self.index(i)), dtype),
            Expr::Less(a, b) => V::I(i64::from(self.index(a) < self.index(b))),
            Expr::Load {
                buffer,
                index,
                guard,
            } => {
                if guard.is_some_and(|g| self.expr(g).i() == 0) {
                    return reference::round(V::I(0), dtype);
                }
                self.bufs[buffer.0 as usize][self.index(index) as usize]
            }
            Expr::Unary(f, x) => reference::scalar(f, &[self.expr(x)], k.dtype(x), dtype),
            Expr::Binary(f, x, y) => {
                reference::scalar(f, &[self.expr(x), self.expr(y)], k.dtype(x), dtype)
            }
            Expr::Ternary(f, x, y, z) => {
                // Only the selected side may fault.
                if f == cupola_ir::Scalar::Select {
                    return if self.expr(x).i() != 0 {
                        self.expr(y)
                    } else {
                        self.expr(z)
                    };
                }
                let args = [self.expr(x), self.expr(y), self.expr(z)];
                reference::scalar(f, &args, k.dtype(x), dtype)
            }
            Expr::Cast { x, to, .. } => reference::round(self.expr(x), to),
            Expr::Bitcast { .. } | Expr::Random { .. } => panic!("not in these tests"),
            Expr::Accum { phase, accum } => self.accums[phase as usize][accum as usize],
        }
    }
}

fn step(kind: AccumKind, old: Option<(V, i64)>, v: V, at: i64) -> (V, i64) {
    let Some((o, p)) = old else { return (v, at) };
    let both = |f: fn(f64, f64) -> f64, i: fn(i64, i64) -> i64| match (o, v) {
        (V::I(a), V::I(b)) => V::I(i(a, b)),
        _ => V::F(f(o.f(), v.f())),
    };
    match kind {
        AccumKind::Sum => (both(|a, b| a + b, i64::wrapping_add), at),
        AccumKind::Prod => (both(|a, b| a * b, i64::wrapping_mul), at),
        AccumKind::Max => (both(f64::max, i64::max), at),
        AccumKind::Min => (both(f64::min, i64::min), at),
        AccumKind::ArgMax { last } => {
            if v.f() > o.f() || last && v.f() == o.f() {
                (v, at)
            } else {
                (o, p)
            }
        }
        AccumKind::ArgMin { last } => {
            if v.f() < o.f() || last && v.f() == o.f() {
                (v, at)
            } else {
                (o, p)
            }
        }
    }
}

fn finish(kind: AccumKind, state: Option<(V, i64)>, dtype: DType) -> V {
    match (kind, state) {
        (AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. }, s) => V::I(s.map_or(0, |s| s.1)),
        (_, Some((v, _))) => v,
        (AccumKind::Sum, None) => reference::round(V::I(0), dtype),
        (AccumKind::Prod, None) => reference::round(V::I(1), dtype),
        (AccumKind::Max, None) => reference::limit(dtype, false),
        (AccumKind::Min, None) => reference::limit(dtype, true),
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
        super::T {
            dtype: v.dtype,
            shape,
            v: out,
        }
    };
    let x = view(&l.operands[0], &bufs[0]);
    let y = view(&l.operands[1], &bufs[1]);
    let _: &Contract = p;
    let product = reference::contract(p, &x, &y);
    match &l.epilogue {
        None => bufs[2] = product.v,
        Some(e) => {
            assert_eq!(e.sizes, l.sizes);
            assert_eq!(e.parallel, product.shape.len());
            let mut own = vec![product.v, std::mem::take(&mut bufs[2])];
            own.extend(bufs[3..].iter().cloned());
            run(e, sizes, &mut own);
            bufs[2] = own.swap_remove(1);
        }
    }
}
