//! The tiled product shared by matrix multiplication and convolution.
//!
//! A kernel supplies the functions that [`crate::staging`] names, and `finish(batch, row, col, value)`.

use std::fmt::Write as _;

use crate::staging::Side;
pub use crate::staging::{FastAxis, Staging};
use crate::template::fill;

/// Size of a workgroup's share and of a thread's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Result rows and columns of a workgroup; multiples of the thread's.
    pub rows: u32,
    /// See `rows`.
    pub cols: u32,
    /// Inner positions staged at a time; a multiple of four.
    pub step: u32,
    /// Result rows of a thread; a multiple of four.
    pub thread_rows: u32,
    /// Result columns of a thread; a multiple of four.
    pub thread_cols: u32,
}

impl Tile {
    /// For results of at least a few hundred rows and columns: 8 x 8 results a thread.
    pub const LARGE: Self = Self::new(128, 128, 8, 8, 8);
    /// Twice as high as wide.
    pub const TALL: Self = Self::new(128, 64, 16, 8, 8);
    /// Twice as wide as high.
    pub const WIDE: Self = Self::new(64, 128, 16, 8, 8);
    /// 4 x 4 results a thread.
    pub const MEDIUM: Self = Self::new(64, 64, 16, 4, 4);
    /// For small results, or to spread the work over more workgroups.
    pub const SMALL: Self = Self::new(32, 32, 16, 4, 4);
    /// For results of a few rows.
    pub const FLAT: Self = Self::new(16, 64, 16, 4, 4);
    /// Every size.
    pub const ALL: [Self; 6] = [
        Self::LARGE,
        Self::TALL,
        Self::WIDE,
        Self::MEDIUM,
        Self::SMALL,
        Self::FLAT,
    ];

    const fn new(rows: u32, cols: u32, step: u32, thread_rows: u32, thread_cols: u32) -> Self {
        Self {
            rows,
            cols,
            step,
            thread_rows,
            thread_cols,
        }
    }

    /// Threads of a workgroup.
    pub fn threads(self) -> u32 {
        self.threads_down() * self.threads_across()
    }

    fn threads_down(self) -> u32 {
        self.rows / self.thread_rows
    }

    fn threads_across(self) -> u32 {
        self.cols / self.thread_cols
    }

    /// Bytes of workgroup memory, at most.
    pub fn memory_size(self) -> u32 {
        (self.rows + self.cols + 2 * PAD) * self.step * 4
    }
}

/// Threads that store along the inner axis write columns of the tile; this distance spreads them over the banks.
const PAD: u32 = 4;

/// Inner positions multiplied in one round of the inner loop, which drivers may unroll further.
const UNROLL: u32 = 4;

/// Whether a product's inner axis is divided among workgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Every workgroup sums the whole axis.
    Whole,
    /// Each sums `params.split_inner` positions; batches are `params.splits` times as many, the split counting slowest.
    Parts,
}

impl Split {
    /// Statements that give `first_inner`, `last_inner` and `batch` from `whole_batch`, the number of batch and split, where
    /// `batches` is the parameter that counts batches.
    pub(crate) fn code(self, batches: &str) -> String {
        match self {
            Self::Whole => "    let first_inner = 0u;
    let last_inner = params.inner;
    let batch = batch_of(whole_batch);"
                .to_owned(),
            Self::Parts => format!(
                "    let split = whole_batch / params.{batches};
    let first_inner = split * params.split_inner;
    let last_inner = min(first_inner + params.split_inner, params.inner);
    var batch = batch_of(whole_batch % params.{batches});
    batch.out += split * params.split_out;"
            ),
        }
    }

    /// WGSL expression of the number of batches and splits, where `batches` is the parameter that counts batches.
    pub(crate) fn batches(self, batches: &str) -> String {
        match self {
            Self::Whole => format!("params.{batches}"),
            Self::Parts => format!("params.{batches} * params.splits"),
        }
    }
}

/// How the operands of a tiled product come.
pub(crate) struct Sides {
    /// The left operand.
    pub lhs: Staging,
    /// The right one.
    pub rhs: Staging,
    /// Whether the kernel has a `SIDE_step` for each.
    pub per_step: bool,
}

/// The entry point over values of type `value` (`f32`, `i32` or `u32`); `batches` is the parameter that counts batches.
pub(crate) fn tiled_product(
    tile: Tile,
    value: &'static str,
    Sides { lhs, rhs, per_step }: Sides,
    batches: &str,
    split: Split,
) -> String {
    let side = |name, first, staging: Staging, outer| Side {
        name,
        first,
        staging,
        layout: FastAxis::Outer,
        value,
        outer,
        step: tile.step,
        threads: tile.threads(),
        per_step,
        pad: match staging.fast {
            FastAxis::Inner => PAD,
            FastAxis::Outer => 0,
        },
    };
    let sides = [
        side("lhs", "first_row", lhs, tile.rows),
        side("rhs", "first_col", rhs, tile.cols),
    ];
    let staged = Staged::new(&sides, tile.step);
    let mut setup = staged.setup;
    let mut finish = String::new();
    for row in 0..tile.thread_rows {
        for vector in 0..tile.thread_cols / 4 {
            let _ = writeln!(setup, "    var sum_{row}_{vector} = vec4<{value}>();");
            let down = (row / 4) * tile.threads_down() * 4 + row % 4;
            for lane in 0..4 {
                let across = vector * tile.threads_across() * 4 + lane;
                let _ = writeln!(
                    finish,
                    "    finish(batch, first_row + thread_row + {down}u, first_col + thread_col + {across}u, \
                     sum_{row}_{vector}[{lane}]);"
                );
            }
        }
    }
    fill(
        include_str!("../wgsl/tiled.wgsl"),
        &[
            ("TILE_ROWS", &tile.rows.to_string()),
            ("TILE_COLS", &tile.cols.to_string()),
            ("THREAD_ROWS", &tile.thread_rows.to_string()),
            ("THREAD_COLS", &tile.thread_cols.to_string()),
            ("THREADS", &tile.threads().to_string()),
            ("THREADS_ACROSS", &tile.threads_across().to_string()),
            ("STEP", &tile.step.to_string()),
            ("UNROLL", &UNROLL.to_string()),
            ("BATCHES", &split.batches(batches)),
            ("SPLIT", &split.code(batches)),
            ("TILES", &staged.declarations),
            ("SETUP", &setup),
            ("LOAD_FIRST", &staged.load_first),
            ("LOAD_NEXT", &staged.load_next),
            ("STORE", &staged.store),
            ("MULTIPLY", &multiply(tile, value, &sides)),
            ("FINISH", &finish),
        ],
    )
}

/// The workgroup of a product with a thread for each result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Direct {
    /// Result rows of a workgroup.
    pub rows: u32,
    /// Result columns of a workgroup.
    pub cols: u32,
}

impl Direct {
    /// For few rows, for matrices and for few columns.
    pub const ALL: [Self; 3] = [Self::new(1, 256), Self::new(16, 16), Self::new(256, 1)];

    const fn new(rows: u32, cols: u32) -> Self {
        Self { rows, cols }
    }

    /// Threads of a workgroup.
    pub fn threads(self) -> u32 {
        self.rows * self.cols
    }

    /// The entry point over values of type `value`; operands are read in fours along the inner axis if `in_fours`.
    pub(crate) fn product(self, value: &str, in_fours: bool) -> String {
        let (step, product) = match in_fours {
            true => (
                "4",
                "dot(lhs_value4(left, inner), rhs_value4(right, inner))",
            ),
            false => ("1", "lhs_value(left, inner) * rhs_value(right, inner)"),
        };
        fill(
            include_str!("../wgsl/direct.wgsl"),
            &[
                ("V", value),
                ("ROWS", &self.rows.to_string()),
                ("COLS", &self.cols.to_string()),
                ("THREADS", &self.threads().to_string()),
                ("STEP", step),
                ("PRODUCT", product),
            ],
        )
    }
}

/// The code that moves both operands, for a loop over `step` from `first_inner`.
pub(crate) struct Staged {
    pub declarations: String,
    pub setup: String,
    pub load_first: String,
    pub load_next: String,
    pub store: String,
}

impl Staged {
    pub fn new(sides: &[Side; 2], step: u32) -> Self {
        let mut staged = Self {
            declarations: String::new(),
            setup: String::new(),
            load_first: String::new(),
            load_next: String::new(),
            store: String::new(),
        };
        for side in sides {
            staged.declarations.push_str(&side.declaration());
            side.setup(&mut staged.setup);
            side.load("first_inner", &mut staged.load_first);
            side.load(&format!("step + {step}u"), &mut staged.load_next);
            side.store(&mut staged.store);
        }
        staged
    }
}

/// The rank-one updates of a round.
fn multiply(tile: Tile, value: &str, [lhs, rhs]: &[Side; 2]) -> String {
    let mut code = String::new();
    for k in 0..UNROLL {
        for vector in 0..tile.thread_rows / 4 {
            let at = k * lhs.pitch() / 4 + vector * tile.threads_down();
            let _ = writeln!(
                code,
                "            let a{k}_{vector} = lhs_tile[(thread_row >> 2u) + k * {}u + {at}u];",
                lhs.pitch() / 4
            );
        }
        for vector in 0..tile.thread_cols / 4 {
            let at = k * rhs.pitch() / 4 + vector * tile.threads_across();
            let _ = writeln!(
                code,
                "            let b{k}_{vector}: vec4<{value}> = rhs_tile[(thread_col >> 2u) + k * {}u + {at}u];",
                rhs.pitch() / 4
            );
        }
        for row in 0..tile.thread_rows {
            for vector in 0..tile.thread_cols / 4 {
                let _ = writeln!(
                    code,
                    "            sum_{row}_{vector} += a{k}_{}[{}] * b{k}_{vector};",
                    row / 4,
                    row % 4
                );
            }
        }
    }
    code
}
