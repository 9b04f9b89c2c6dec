//! The tiled product shared by matrix multiplication and convolution.
//!
//! A kernel supplies, for each operand, `SIDE_item(batch, outer) -> SideItem` (everything that depends on the row or
//! column alone, computed once) and `SIDE_value(item, inner)` (zero outside the operand), or `SIDE_value4` where it is
//! loaded in fours; and `finish(batch, row, col, value)`.

use std::fmt::Write as _;

use crate::element::Width;
use crate::template::fill;

/// Size of a workgroup's share and of a thread's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Result rows and columns of a workgroup; multiples of the thread's.
    pub rows: u32,
    /// See `rows`.
    pub cols: u32,
    /// Inner positions staged at a time.
    pub step: u32,
    /// Result rows of a thread.
    pub thread_rows: u32,
    /// Result columns of a thread.
    pub thread_cols: u32,
    /// Inner positions multiplied in one round of the inner loop; divides `step`.
    pub unroll: u32,
}

impl Tile {
    /// For results of at least a few hundred rows and columns: 8 x 8 results a thread.
    pub const LARGE: Self = Self {
        rows: 128,
        cols: 128,
        step: 8,
        thread_rows: 8,
        thread_cols: 8,
        unroll: 4,
    };
    /// 4 x 4 results a thread.
    pub const MEDIUM: Self = Self {
        rows: 64,
        cols: 64,
        step: 16,
        thread_rows: 4,
        thread_cols: 4,
        unroll: 4,
    };
    /// For small results, or to spread the work over more workgroups.
    pub const SMALL: Self = Self {
        rows: 32,
        cols: 32,
        step: 16,
        thread_rows: 4,
        thread_cols: 4,
        unroll: 4,
    };
    /// The three sizes.
    pub const ALL: [Self; 3] = [Self::LARGE, Self::MEDIUM, Self::SMALL];

    /// Threads of a workgroup.
    pub fn threads(self) -> u32 {
        (self.rows / self.thread_rows) * (self.cols / self.thread_cols)
    }
}

/// The axis of an operand along which neighbouring threads load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FastAxis {
    /// The contracted one.
    Inner,
    /// Rows of the left operand, columns of the right.
    Outer,
}

/// How an operand is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Staging {
    /// Axis with the smaller stride.
    pub fast: FastAxis,
    /// Fours along that axis need a unit stride and lengths, other strides and offsets in multiples of four.
    pub width: Width,
}

impl Staging {
    /// Every way.
    pub const ALL: [Self; 4] = [
        Self {
            fast: FastAxis::Inner,
            width: Width::One,
        },
        Self {
            fast: FastAxis::Inner,
            width: Width::Four,
        },
        Self {
            fast: FastAxis::Outer,
            width: Width::One,
        },
        Self {
            fast: FastAxis::Outer,
            width: Width::Four,
        },
    ];
}

/// One operand's tile in workgroup memory.
struct Side {
    name: &'static str,
    first: &'static str,
    staging: Staging,
    /// Rows or columns of the tile.
    outer: u32,
    /// Words between inner positions: padded where threads store along the inner axis, so that their stores go to
    /// different banks; a multiple of four, so that a thread's values stay aligned.
    pitch: u32,
    step: u32,
    threads: u32,
}

impl Side {
    fn new(
        name: &'static str,
        first: &'static str,
        staging: Staging,
        outer: u32,
        tile: Tile,
    ) -> Self {
        let pad = match staging.fast {
            FastAxis::Inner => 4,
            FastAxis::Outer => 0,
        };
        Self {
            name,
            first,
            staging,
            outer,
            pitch: outer + pad,
            step: tile.step,
            threads: tile.threads(),
        }
    }

    fn per_load(&self) -> u32 {
        match self.staging.width {
            Width::One => 1,
            Width::Four => 4,
        }
    }

    /// Loads of a thread for each step. The last may be partial.
    fn loads(&self) -> u32 {
        (self.outer * self.step).div_ceil(self.threads * self.per_load())
    }

    /// `(inner, outer)` position of load `n` within the tile, as WGSL.
    fn position(&self, n: u32) -> (String, String) {
        let item = format!("(local + {}u)", n * self.threads);
        let (inner, outer) = match self.staging.fast {
            FastAxis::Inner => {
                let along = self.step / self.per_load();
                (format!("{item} % {along}u"), format!("{item} / {along}u"))
            }
            FastAxis::Outer => {
                let along = self.outer / self.per_load();
                (format!("{item} / {along}u"), format!("{item} % {along}u"))
            }
        };
        match (self.staging.width, self.staging.fast) {
            (Width::One, _) => (inner, outer),
            (Width::Four, FastAxis::Inner) => (format!("({inner}) * 4u"), outer),
            (Width::Four, FastAxis::Outer) => (inner, format!("({outer}) * 4u")),
        }
    }

    /// What does not change over the steps.
    fn setup(&self, out: &mut String) {
        let Self { name, first, .. } = self;
        for n in 0..self.loads() {
            let (inner, outer) = self.position(n);
            let _ = writeln!(out, "    let {name}_inner_{n} = {inner};");
            let _ = writeln!(out, "    let {name}_outer_{n} = {outer};");
            let _ = writeln!(
                out,
                "    let {name}_item_{n} = {name}_item(batch, {first} + {name}_outer_{n});"
            );
        }
    }

    fn stage(&self, out: &mut String) {
        let Self { name, pitch, .. } = self;
        for n in 0..self.loads() {
            let place = format!("{name}_inner_{n} * {pitch}u + {name}_outer_{n}");
            let partial = (n + 1) * self.threads * self.per_load() > self.outer * self.step;
            let mut code = String::new();
            match self.staging.width {
                Width::One => {
                    let _ = writeln!(
                        code,
                        "        {name}_tile[{place}] = {name}_value({name}_item_{n}, step + {name}_inner_{n});"
                    );
                }
                Width::Four => {
                    let distance = match self.staging.fast {
                        FastAxis::Inner => *pitch,
                        FastAxis::Outer => 1,
                    };
                    let _ = writeln!(
                        code,
                        "        let {name}_four_{n} = {name}_value4({name}_item_{n}, step + {name}_inner_{n});"
                    );
                    for (lane, component) in (0..4).zip(["x", "y", "z", "w"]) {
                        let _ = writeln!(
                            code,
                            "        {name}_tile[{place} + {}u] = {name}_four_{n}.{component};",
                            lane * distance
                        );
                    }
                }
            }
            if partial {
                let _ = writeln!(
                    out,
                    "        if {name}_inner_{n} < {}u {{\n{code}        }}",
                    self.step
                );
            } else {
                out.push_str(&code);
            }
        }
    }
}

/// The entry point over values of type `value` (`f32`, `i32` or `u32`); `batches` is the parameter that counts batches.
pub(crate) fn tiled_product(
    tile: Tile,
    value: &str,
    lhs: Staging,
    rhs: Staging,
    batches: &str,
) -> String {
    let left = Side::new("lhs", "first_row", lhs, tile.rows, tile);
    let right = Side::new("rhs", "first_col", rhs, tile.cols, tile);
    let (mut setup, mut stage) = (String::new(), String::new());
    for side in [&left, &right] {
        side.setup(&mut setup);
        side.stage(&mut stage);
    }
    let vectors = tile.thread_cols / 4;
    let mut finish = String::new();
    for row in 0..tile.thread_rows {
        for vector in 0..vectors {
            let _ = writeln!(setup, "    var sum_{row}_{vector} = vec4<{value}>();");
            for (lane, component) in (0..4).zip(["x", "y", "z", "w"]) {
                let _ = writeln!(
                    finish,
                    "    finish(batch, first_row + thread_row + {row}u, first_col + thread_col + {}u, \
                     sum_{row}_{vector}.{component});",
                    vector * 4 + lane
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
            (
                "THREADS_ACROSS",
                &(tile.cols / tile.thread_cols).to_string(),
            ),
            ("STEP", &tile.step.to_string()),
            ("UNROLL", &tile.unroll.to_string()),
            ("V", value),
            ("BATCHES", batches),
            ("LHS_SIZE", &(left.pitch * tile.step).to_string()),
            ("RHS_SIZE", &(right.pitch * tile.step).to_string()),
            ("SETUP", &setup),
            ("STAGE", &stage),
            ("MULTIPLY", &multiply(tile, value, left.pitch, right.pitch)),
            ("FINISH", &finish),
        ],
    )
}

/// The rank-one updates of one round of the inner loop.
fn multiply(tile: Tile, value: &str, lhs_pitch: u32, rhs_pitch: u32) -> String {
    let mut code = String::new();
    let vectors = tile.thread_cols / 4;
    for k in 0..tile.unroll {
        let _ = writeln!(
            code,
            "            let l{k} = (k + {k}u) * {lhs_pitch}u + thread_row;"
        );
        let _ = writeln!(
            code,
            "            let r{k} = (k + {k}u) * {rhs_pitch}u + thread_col;"
        );
        for vector in 0..vectors {
            let at = |lane: u32| format!("rhs_tile[r{k} + {}u]", vector * 4 + lane);
            let _ = writeln!(
                code,
                "            let b{k}_{vector} = vec4<{value}>({}, {}, {}, {});",
                at(0),
                at(1),
                at(2),
                at(3)
            );
        }
        for row in 0..tile.thread_rows {
            let _ = writeln!(
                code,
                "            let a{k}_{row} = lhs_tile[l{k} + {row}u];"
            );
            for vector in 0..vectors {
                let _ = writeln!(
                    code,
                    "            sum_{row}_{vector} += a{k}_{row} * b{k}_{vector};"
                );
            }
        }
    }
    code
}
