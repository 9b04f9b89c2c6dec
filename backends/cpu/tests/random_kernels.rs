//! Random kernels against the kernel interpreter: every index form, dtype, phase and length of tails.
//!
//! Only functions that round once are drawn, so that results are equal bit for bit; sums of floats are of small numbers.

mod common;

use common::*;
use cupola_cpu::CpuBackend;
use cupola_cpu::isa::Isa;
use cupola_cpu::memory::Usage;
use cupola_ir::kernel::*;
use cupola_ir::{Class, DType, Dim, Scalar, Tensor, convert};

/// The types to draw from: f32 more often than others.
fn drawn() -> Vec<DType> {
    [DType::F32; 2].into_iter().chain(DTYPES).collect()
}

/// An index with its range.
#[derive(Clone, Copy)]
struct Ranged {
    id: IndexId,
    low: i64,
    high: i64,
}

struct Maker {
    r: Random,
    k: Kernel,
    /// Values of the run-time sizes.
    sizes: Vec<i64>,
    /// Elements of each buffer.
    lens: Vec<i64>,
}

impl Maker {
    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.r.below(all.len())]
    }

    /// An axis extent, constant or a run-time size.
    fn extent(&mut self) -> (Extent, i64) {
        let n = self.pick(&[0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 65]);
        let n = if n == 0 && self.r.below(4) > 0 { 6 } else { n };
        if self.r.below(2) == 0 {
            return (Extent::Const(n), n);
        }
        self.k
            .sizes
            .push(Dim::sym(&format!("s{}", self.sizes.len())));
        self.sizes.push(n);
        (Extent::Size(self.sizes.len() as u32 - 1), n)
    }

    /// A new axis; extents that would make the whole nest too slow to interpret become 2.
    fn axis(&mut self) -> AxisId {
        let positions: i64 = self
            .k
            .axes
            .iter()
            .map(|e| self.extent_value(*e).max(1))
            .product();
        let (mut e, n) = self.extent();
        if positions * n > 200_000 {
            e = Extent::Const(2);
        }
        self.k.axes.push(e);
        AxisId(self.k.axes.len() as u32 - 1)
    }

    fn extent_value(&self, e: Extent) -> i64 {
        match e {
            Extent::Const(c) => c,
            Extent::Size(s) => self.sizes[s as usize],
        }
    }

    fn constant(&mut self, value: i64) -> Ranged {
        let id = self.k.index(Index::Const(value));
        Ranged {
            id,
            low: value,
            high: value,
        }
    }

    /// An index over these axes, not negative.
    fn index(&mut self, axes: &[AxisId]) -> Ranged {
        let mut sum = self.constant(0);
        for axis in axes {
            if self.r.below(5) == 0 {
                continue;
            }
            let n = self.extent_value(self.k.axes[axis.0 as usize]);
            let mut x = Ranged {
                id: self.k.index(Index::Axis(*axis)),
                low: 0,
                high: (n - 1).max(0),
            };
            match self.r.below(9) {
                0 => x = self.combine(x, 2, Index::Div, |x, c| x.div_euclid(c)),
                1 => {
                    let c = self.pick(&[2, 3, 4]);
                    let divisor = self.constant(c);
                    x = Ranged {
                        id: self.k.index(Index::Rem(x.id, divisor.id)),
                        low: 0,
                        high: c - 1,
                    };
                }
                2 => x = self.combine(x, 4, Index::Min, i64::min),
                3 => x = self.combine(x, 2, Index::Max, i64::max),
                4 => {
                    // Backwards.
                    let last = self.constant(x.high);
                    x = Ranged {
                        id: self.k.index(Index::Sub(last.id, x.id)),
                        low: 0,
                        high: x.high,
                    };
                }
                _ => {}
            }
            let scale = self.pick(&[1, 1, 1, 1, 2, 3]);
            x = self.combine(x, scale, Index::Mul, |x, c| x * c);
            sum = Ranged {
                id: self.k.index(Index::Add(sum.id, x.id)),
                low: sum.low + x.low,
                high: sum.high + x.high,
            };
        }
        sum
    }

    fn combine(
        &mut self,
        x: Ranged,
        c: i64,
        make: fn(IndexId, IndexId) -> Index,
        value: fn(i64, i64) -> i64,
    ) -> Ranged {
        let c_index = self.constant(c);
        Ranged {
            id: self.k.index(make(x.id, c_index.id)),
            low: value(x.low, c),
            high: value(x.high, c),
        }
    }

    /// A dense index over the axes.
    fn dense(&mut self, axes: &[AxisId]) -> (IndexId, i64) {
        let mut at = self.k.index(Index::Const(0));
        let mut len = 1;
        for a in axes {
            let e = self.k.axes[a.0 as usize];
            let i = self.k.index(Index::Axis(*a));
            at = row_major(&mut self.k, at, e, i);
            len *= self.extent_value(e);
        }
        (at, len)
    }

    fn buffer(&mut self, dtype: DType, access: Access, len: i64) -> BufferId {
        self.k.buffers.push(BufferDecl {
            dtype,
            access,
            len: Extent::Const(len),
        });
        self.lens.push(len);
        BufferId(self.k.buffers.len() as u32 - 1)
    }

    fn load(&mut self, dtype: DType, axes: &[AxisId]) -> ExprId {
        let x = self.index(axes);
        let short = self.r.below(4) == 0 && x.high > 2;
        if !short {
            let buffer = self.buffer(dtype, Access::Read, x.high + 1);
            return self.k.expr(Expr::Load {
                buffer,
                index: x.id,
                guard: None,
            });
        }
        // A guard keeps the load inside a shorter buffer.
        let len = x.high - 1;
        let buffer = self.buffer(dtype, Access::Read, len);
        let limit = self.constant(len);
        let guard = self.k.expr(Expr::Less(x.id, limit.id));
        self.k.expr(Expr::Load {
            buffer,
            index: x.id,
            guard: Some(guard),
        })
    }

    /// A load whose offset is data.
    fn gather(&mut self, dtype: DType, axes: &[AxisId]) -> ExprId {
        let value = self.load(DType::I64, axes);
        let extent = self.constant(9).id;
        let index = self.k.index(Index::Checked {
            value,
            extent,
            fault: false,
        });
        let buffer = self.buffer(dtype, Access::Read, 9);
        self.k.expr(Expr::Load {
            buffer,
            index,
            guard: None,
        })
    }

    /// A value of a dtype.
    fn value(
        &mut self,
        dtype: DType,
        axes: &[AxisId],
        accums: &[(ExprId, DType)],
        depth: usize,
    ) -> ExprId {
        let ready: Vec<ExprId> = accums
            .iter()
            .filter(|a| a.1 == dtype)
            .map(|a| a.0)
            .collect();
        if !ready.is_empty() && self.r.below(3) == 0 {
            return self.pick(&ready);
        }
        if depth == 0 {
            return match self.r.below(6) {
                0 => self.gather(dtype, axes),
                1 if dtype.is_int() && dtype.is_whole_byte() => {
                    let i = self.index(axes).id;
                    self.k.expr(Expr::Index(i, dtype))
                }
                2 => {
                    let t = tensor(&mut self.r, dtype, &[1]);
                    let mut bits = [0; 8];
                    bits[..t.bytes().len()].copy_from_slice(t.bytes());
                    let bits = u64::from_le_bytes(bits);
                    let bits = if dtype == DType::I4 { bits & 15 } else { bits };
                    self.k.expr(Expr::Const(Literal { dtype, bits }))
                }
                _ => self.load(dtype, axes),
            };
        }
        let sub = |s: &mut Self, d| s.value(d, axes, accums, depth - 1);
        let class = dtype.class();
        match self.r.below(8) {
            0 => {
                let from = self.pick(&drawn());
                let x = sub(self, from);
                self.k.expr(Expr::Cast {
                    x,
                    to: dtype,
                    saturate: false,
                })
            }
            1 => {
                let c = sub(self, DType::Bool);
                let (x, y) = (sub(self, dtype), sub(self, dtype));
                self.k.expr(Expr::Ternary(Scalar::Select, c, x, y))
            }
            2 if class == Class::Bool => {
                let of = self.pick(&drawn());
                let f = self.pick(&[Scalar::Eq, Scalar::Lt, Scalar::Le]);
                let (x, y) = (sub(self, of), sub(self, of));
                self.k.expr(Expr::Binary(f, x, y))
            }
            3 if class == Class::Bool => {
                let (a, b) = (self.index(axes).id, self.index(axes).id);
                self.k.expr(Expr::Less(a, b))
            }
            4 | 5 => {
                use Scalar::*;
                let f = match class {
                    Class::Float => {
                        self.pick(&[Neg, Abs, Sign, Floor, Ceil, Round, Trunc, Sqrt, Recip])
                    }
                    Class::Bool => Not,
                    _ => self.pick(&[Neg, Abs, Sign, Not, PopCount]),
                };
                let x = sub(self, dtype);
                self.k.expr(Expr::Unary(f, x))
            }
            _ => {
                use Scalar::*;
                let f = match class {
                    Class::Float => self.pick(&[Add, Sub, Mul, Div, Min, Max]),
                    Class::Bool => self.pick(&[And, Or, Xor]),
                    _ => self.pick(&[Add, Sub, Mul, Min, Max, And, Or, Xor, Shl, Shr]),
                };
                let (x, y) = (sub(self, dtype), sub(self, dtype));
                self.k.expr(Expr::Binary(f, x, y))
            }
        }
    }

    fn accum(&mut self, axes: &[AxisId], known: &[(ExprId, DType)]) -> Accum {
        let empty = axes
            .iter()
            .any(|a| self.extent_value(self.k.axes[a.0 as usize]) == 0);
        let kind = match self.r.below(8) {
            0 if !empty => AccumKind::ArgMax { last: false },
            1 if !empty => AccumKind::ArgMax { last: true },
            2 if !empty => AccumKind::ArgMin { last: false },
            3 | 4 => AccumKind::Max,
            5 => AccumKind::Min,
            6 => AccumKind::Prod,
            _ => AccumKind::Sum,
        };
        let sums = matches!(kind, AccumKind::Sum | AccumKind::Prod);
        let dtypes: Vec<DType> = drawn()
            .into_iter()
            .filter(|d| match kind {
                AccumKind::Sum => matches!(d, DType::F32 | DType::F64) || d.is_int(),
                AccumKind::Prod => d.is_int(),
                AccumKind::Max | AccumKind::Min => *d != DType::I4,
                _ => !matches!(d, DType::I4 | DType::Bool),
            })
            .collect();
        let dtype = self.pick(&dtypes);
        // Loads give multiples of an eighth, whose sums are exact.
        let value = if sums && dtype.is_float() {
            self.load(dtype, axes)
        } else {
            self.value(dtype, axes, known, 1)
        };
        Accum { kind, value }
    }
}

/// A random kernel with sizes and buffer contents.
fn random_kernel(seed: u64) -> (Kernel, Vec<i64>, Vec<Vec<u8>>) {
    let mut m = Maker {
        r: Random(seed),
        k: Kernel {
            name: format!("random{seed}"),
            ..Kernel::default()
        },
        sizes: vec![],
        lens: vec![],
    };
    let parallel = m.r.below(4);
    let reduces = m.r.below(3);
    let store_axes = usize::from(m.r.below(3) == 0);
    for _ in 0..parallel {
        m.axis();
    }
    m.k.parallel = parallel;
    let outer: Vec<AxisId> = (0..parallel as u32).map(AxisId).collect();
    let mut accums = vec![];
    for phase in 0..reduces {
        let axes: Vec<AxisId> = (0..1 + m.r.below(2)).map(|_| m.axis()).collect();
        let all = [&outer[..], &axes[..]].concat();
        let count = 1 + m.r.below(2);
        let list: Vec<Accum> = (0..count).map(|_| m.accum(&all, &accums)).collect();
        m.k.phases.push(Phase::Reduce { axes, accums: list });
        for accum in 0..count as u32 {
            let e = m.k.expr(Expr::Accum {
                phase: phase as u32,
                accum,
            });
            let dtype = m.k.dtype(e);
            accums.push((e, dtype));
        }
    }
    let own: Vec<AxisId> = (0..store_axes).map(|_| m.axis()).collect();
    let all = [&outer[..], &own[..]].concat();
    let mut stores = vec![];
    for _ in 0..1 + m.r.below(2) {
        let dtype = m.pick(&drawn());
        let value = match m.r.below(3) {
            0 if !accums.is_empty() => {
                let (x, from) = m.pick(&accums);
                if from == dtype {
                    x
                } else {
                    m.k.expr(Expr::Cast {
                        x,
                        to: dtype,
                        saturate: false,
                    })
                }
            }
            _ => m.value(dtype, &all, &accums, 3),
        };
        let (index, len) = m.dense(&all);
        let guard = (m.r.below(6) == 0).then(|| m.value(DType::Bool, &all, &accums, 1));
        let buffer = m.buffer(dtype, Access::Write, len);
        stores.push(Store {
            buffer,
            index,
            value,
            guard,
            kind: StoreKind::Set,
        });
    }
    m.k.phases.push(Phase::Store { axes: own, stores });
    let buffers = (0..m.k.buffers.len()).map(|b| {
        let (dtype, len) = (m.k.buffers[b].dtype, m.lens[b] as usize);
        let special = m.r.below(3) == 0;
        let t = tensor(&mut m.r, dtype, &[len]);
        if special && dtype.is_float() && reduces == 0 {
            let mut lanes = convert::lanes(&t).expect("numbers").into_f64s();
            for (i, x) in lanes.iter_mut().enumerate() {
                *x = [
                    *x,
                    f64::NAN,
                    f64::INFINITY,
                    *x,
                    -0.0,
                    f64::NEG_INFINITY,
                    1e30,
                    *x,
                ][i % 8];
            }
            let lanes = convert::Lanes::F(lanes);
            return convert::tensor(&lanes, dtype, &[len])
                .expect("a tensor")
                .bytes()
                .to_vec();
        }
        t.bytes().to_vec()
    });
    let buffers = buffers.collect();
    (m.k, m.sizes, buffers)
}

/// Whether stored elements are the same numbers.
fn same(dtype: DType, len: usize, got: &[u8], want: &[u8]) -> bool {
    let read = |b: &[u8]| {
        let t = Tensor::new(dtype, vec![len], b.to_vec().into()).expect("size");
        convert::lanes(&t).expect("numbers").into_f64s()
    };
    if dtype.class() != Class::Float {
        return got == want;
    }
    read(got)
        .iter()
        .zip(read(want))
        .all(|(a, b)| *a == b || a.is_nan() && b.is_nan())
}

#[test]
fn random_kernels_agree_with_the_interpreter() {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    let limit = std::time::Duration::from_secs(seconds.unwrap_or(3));
    let begin = std::time::Instant::now();
    let backends: Vec<CpuBackend> = Isa::available()
        .into_iter()
        .map(|isa| CpuBackend::with_isa(2, isa, Usage::unlimited()))
        .collect();
    let first = std::env::var("FUZZ_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    let mut seed = first;
    while begin.elapsed() < limit && (seconds.is_some() || seed < 1500) {
        let (kernel, sizes, buffers) = random_kernel(seed);
        verify(&kernel).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let mut want = buffers.clone();
        run_kernel(&kernel, &mut want, &sizes)
            .unwrap_or_else(|e| panic!("seed {seed}: {e}\n{kernel:#?}"));
        let unit = Unit::Loops(kernel.clone());
        for backend in &backends {
            let mut got = buffers.clone();
            run(backend, &unit, &sizes, &mut got)
                .unwrap_or_else(|e| panic!("seed {seed}: {e}\n{kernel:#?}"));
            for (b, decl) in kernel.buffers.iter().enumerate() {
                let Extent::Const(len) = decl.len else {
                    continue;
                };
                if !same(decl.dtype, len as usize, &got[b], &want[b]) {
                    let read = |bytes: &[u8]| {
                        let t = Tensor::new(decl.dtype, vec![len as usize], bytes.to_vec().into())
                            .expect("size");
                        convert::lanes(&t).expect("numbers").into_f64s()
                    };
                    panic!(
                        "seed {seed}, {:?}, buffer {b} ({}): got {:?} want {:?}\nsizes {sizes:?}\n{kernel:#?}",
                        backend.isa(),
                        decl.dtype,
                        read(&got[b]),
                        read(&want[b]),
                    );
                }
            }
        }
        seed += 1;
    }
    assert!(seed > first, "no kernel was tried");
}
