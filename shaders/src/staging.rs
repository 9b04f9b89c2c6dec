//! How operands get from storage into workgroup memory.
//!
//! A kernel supplies, for each operand, `SIDE_item(batch, outer) -> SideItem` (everything that depends on the row or
//! column alone, computed once) and `SIDE_value(item, inner)` (zero outside the operand), or `SIDE_value4` where it is
//! loaded in fours. Loads go to registers first, so that those of the next step are under way while a step is computed.
//! Where much of an element's place is the same for a whole step, the kernel supplies `SIDE_step(item, step)` too; its result
//! takes the item's place, and inner positions count from the step.

use std::fmt::Write as _;

use crate::binding::Width;

/// One of an operand's two axes.
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
    /// Axis with the smaller stride, along which neighbouring threads load.
    pub fast: FastAxis,
    /// Fours along that axis need a unit stride and lengths, other strides and offsets in multiples of four.
    pub width: Width,
}

impl Staging {
    /// Every way.
    pub const ALL: [Self; 4] = [
        Self::new(FastAxis::Inner, Width::One),
        Self::new(FastAxis::Inner, Width::Four),
        Self::new(FastAxis::Outer, Width::One),
        Self::new(FastAxis::Outer, Width::Four),
    ];

    /// A way.
    pub const fn new(fast: FastAxis, width: Width) -> Self {
        Self { fast, width }
    }
}

/// One operand's tile in workgroup memory: `var<workgroup> NAME_tile: array<vec4<VALUE>, ..>`.
pub(crate) struct Side {
    pub name: &'static str,
    /// WGSL expression of the tile's first row or column.
    pub first: &'static str,
    pub staging: Staging,
    /// Axis that is contiguous in workgroup memory.
    pub layout: FastAxis,
    /// WGSL type of an element.
    pub value: &'static str,
    /// Rows or columns of the tile, a multiple of four.
    pub outer: u32,
    /// Inner positions, a multiple of four.
    pub step: u32,
    /// Threads that stage it.
    pub threads: u32,
    /// Whether there is a `SIDE_step`.
    pub per_step: bool,
    /// Elements between contiguous runs beyond their length, a multiple of four: chosen by the kernel so that threads
    /// go to different banks.
    pub pad: u32,
}

impl Side {
    /// Elements from one contiguous run to the next.
    pub fn pitch(&self) -> u32 {
        self.pad
            + match self.layout {
                FastAxis::Inner => self.step,
                FastAxis::Outer => self.outer,
            }
    }

    /// Vectors of four in workgroup memory.
    pub fn vectors(&self) -> u32 {
        let runs = match self.layout {
            FastAxis::Inner => self.outer,
            FastAxis::Outer => self.step,
        };
        runs * self.pitch() / 4
    }

    /// Its declaration.
    pub fn declaration(&self) -> String {
        let Self { name, value, .. } = self;
        let len = self.vectors();
        format!("var<workgroup> {name}_tile: array<vec4<{value}>, {len}>;\n")
    }

    fn per_load(&self) -> u32 {
        match self.staging.width {
            Width::One => 1,
            Width::Four | Width::Halves => 4,
        }
    }

    /// Loads of all threads for a step.
    fn items(&self) -> u32 {
        self.outer * self.step / self.per_load()
    }

    /// Loads of a thread for a step. The last may be partial.
    fn loads(&self) -> u32 {
        self.items().div_ceil(self.threads)
    }

    /// The load whose row or column load `n` shares.
    fn item(&self, n: u32) -> u32 {
        let along = self.outer / self.per_load();
        match self.staging.fast == FastAxis::Outer && self.threads.is_multiple_of(along) {
            true => 0,
            false => n,
        }
    }

    fn is_partial(&self, n: u32) -> bool {
        (n + 1) * self.threads > self.items()
    }

    /// What does not change over the steps, and the registers.
    pub fn setup(&self, out: &mut String) {
        let Self { name, first, .. } = self;
        let per_load = self.per_load();
        for n in 0..self.loads() {
            let (along, (slow, fast)) = match self.staging.fast {
                FastAxis::Inner => (self.step / per_load, ("outer", "inner")),
                FastAxis::Outer => (self.outer / per_load, ("inner", "outer")),
            };
            let load = n * self.threads;
            let _ = writeln!(
                out,
                "    let {name}_{fast}_{n} = ((local + {load}u) % {along}u) * {per_load}u;\n    \
                 let {name}_{slow}_{n} = (local + {load}u) / {along}u;"
            );
            let (run, place) = match self.layout {
                FastAxis::Inner => ("outer", "inner"),
                FastAxis::Outer => ("inner", "outer"),
            };
            let _ = writeln!(
                out,
                "    let {name}_at_{n} = {name}_{run}_{n} * {}u + {name}_{place}_{n};\n    \
                 var {name}_next_{n} = {}();",
                self.pitch(),
                self.register()
            );
            if self.item(n) == n {
                let _ = writeln!(
                    out,
                    "    let {name}_item_{n} = {name}_item(batch, {first} + {name}_outer_{n});"
                );
            }
        }
    }

    fn register(&self) -> String {
        match self.staging.width {
            Width::One => self.value.to_owned(),
            Width::Four | Width::Halves => format!("vec4<{}>", self.value),
        }
    }

    /// Loads of the step at WGSL expression `step` into registers.
    pub fn load(&self, step: &str, out: &mut String) {
        let Self { name, .. } = self;
        let function = match self.staging.width {
            Width::One => "value",
            Width::Four | Width::Halves => "value4",
        };
        for n in 0..self.loads() {
            let item = self.item(n);
            if self.per_step && item == n {
                let _ = writeln!(
                    out,
                    "        let {name}_step_{n} = {name}_step({name}_item_{n}, {step});"
                );
            }
            let place = match self.per_step {
                true => format!("{name}_step_{item}, {name}_inner_{n}"),
                false => format!("{name}_item_{item}, {step} + {name}_inner_{n}"),
            };
            let load = format!("{name}_next_{n} = {name}_{function}({place});");
            self.guarded(n, &load, out);
        }
    }

    /// A statement of load `n`, for the threads that have one.
    fn guarded(&self, n: u32, code: &str, out: &mut String) {
        let _ = match self.is_partial(n) {
            true => writeln!(
                out,
                "        if local < {}u {{ {code} }}",
                self.items() - n * self.threads
            ),
            false => writeln!(out, "        {code}"),
        };
    }

    /// Registers to workgroup memory.
    pub fn store(&self, out: &mut String) {
        let Self { name, .. } = self;
        for n in 0..self.loads() {
            let at = format!("{name}_at_{n}");
            let next = format!("{name}_next_{n}");
            let code = match self.staging.width {
                Width::One => format!("{name}_tile[{at} >> 2u][{at} & 3u] = {next};"),
                Width::Four | Width::Halves if self.staging.fast == self.layout => {
                    format!("{name}_tile[{at} >> 2u] = {next};")
                }
                Width::Four | Width::Halves => (0..4)
                    .map(|lane| {
                        let vectors = lane * self.pitch() / 4;
                        format!(
                            "{name}_tile[({at} >> 2u) + {vectors}u][{at} & 3u] = {next}[{lane}]; "
                        )
                    })
                    .collect(),
            };
            self.guarded(n, code.trim_end(), out);
        }
    }
}
