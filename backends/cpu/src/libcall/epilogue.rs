//! Generated code that finishes parts of a library kernel's result while they are in the cache.

use crate::jit::{Arguments, CompiledProgram};
use crate::library::gemm::Finished;
use cupola_ir::DType;
use cupola_ir::kernel::{Access, BufferId, Expr, ExprId, Kernel};
use std::sync::atomic::AtomicU32;

/// An epilogue kernel whose buffer 0 holds accumulators of another dtype: every load is rounded to the op's dtype.
pub(crate) fn over(kernel: &Kernel, sum: DType) -> Kernel {
    let own = kernel.buffers[0].dtype;
    if own == sum {
        return kernel.clone();
    }
    let mut out = Kernel {
        exprs: vec![],
        ..kernel.clone()
    };
    out.buffers[0].dtype = sum;
    let mut ids: Vec<ExprId> = vec![];
    for expr in &kernel.exprs {
        let expr = expr.map_exprs(|e| ids[e.0 as usize]);
        out.exprs.push(expr);
        if matches!(
            expr,
            Expr::Load {
                buffer: BufferId(0),
                ..
            }
        ) {
            let x = ExprId(out.exprs.len() as u32 - 1);
            out.exprs.push(Expr::Cast {
                x,
                to: own,
                saturate: false,
            });
        }
        ids.push(ExprId(out.exprs.len() as u32 - 1));
    }
    out.for_each_value_use(|e| *e = ids[e.0 as usize]);
    out
}

/// Whether two pieces of memory, with their bytes, share some. Exact: where memory comes to lie must not decide how a result is
/// rounded.
pub(super) fn overlap((a, a_size): (*mut u8, usize), (b, b_size): (*mut u8, usize)) -> bool {
    let (a, b) = (a as usize, b as usize);
    a < b.saturating_add(b_size) && b < a.saturating_add(a_size)
}

/// A compiled epilogue at launch.
pub(crate) struct Epilogue<'a> {
    pub kernel: &'a Kernel,
    pub code: &'a CompiledProgram,
    /// Addresses and bytes of its buffers; the first address is replaced for each part.
    pub buffers: &'a [(*mut u8, usize)],
    pub sizes: &'a [i64],
    pub faults: &'a AtomicU32,
}

// SAFETY: the addresses are only followed by the compiled code, for elements of parts that no other thread has.
unsafe impl Sync for Epilogue<'_> {}

/// Most buffers for which a part's argument list is kept on the stack.
const INLINE: usize = 16;

impl Epilogue<'_> {
    /// Whether the code reads elements that the library kernel would overwrite if it stored its raw result in the
    /// final one.
    pub(crate) fn reads_result(&self) -> bool {
        (2..self.buffers.len()).any(|i| {
            let reads = self.kernel.buffers[i].access != Access::Write;
            reads && overlap(self.buffers[i], self.buffers[1])
        })
    }

    /// Finishes rows of a part; `first` gives the row-major position in the result of the part's first element in a
    /// matrix row.
    pub(crate) fn finish<C>(&self, part: &Finished<C>, first: impl Fn(usize) -> usize) {
        let mut inline = [std::ptr::null_mut(); INLINE];
        let mut spilled = vec![];
        let buffers: &mut [*mut u8] = if self.buffers.len() <= INLINE {
            &mut inline[..self.buffers.len()]
        } else {
            spilled.resize(self.buffers.len(), std::ptr::null_mut());
            &mut spilled
        };
        for (to, (from, _)) in buffers.iter_mut().zip(self.buffers) {
            *to = *from;
        }
        for row in 0..part.rows {
            let at = first(row);
            // The code addresses buffer 0 by position in the whole result.
            buffers[0] = part
                .start
                .wrapping_add(row * part.row_stride)
                .wrapping_sub(at)
                .cast();
            let arguments = Arguments {
                buffers: buffers.as_ptr(),
                sizes: self.sizes.as_ptr(),
                faults: self.faults.as_ptr(),
                streams: 0,
                ..Arguments::default()
            };
            // SAFETY: buffers and sizes were checked against the kernel at launch; buffer 0 is addressed at the positions
            // of this row only, whose elements the library kernel has handed out.
            unsafe {
                self.code
                    .run(&arguments, at as i64, (at + part.cols) as i64)
            };
        }
    }
}
