//! Reductions: what a thread gathers of a phase, and the results of parts between launches.

use cupola_ir::kernel::{Accum, AccumKind, Phase};
use cupola_ir::scalar::Scalar;
use cupola_ir::{Class, DType};

use super::lanes::LaneView;
use super::scalar::{Held, held};
use super::{EmitError, Item, Mapping, Part, Team, Writer, partial_words};

/// Whether an accumulator finds a position.
pub(super) fn is_position(kind: AccumKind) -> bool {
    match kind {
        AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => true,
        AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => false,
    }
}

/// Words of an accumulator between launches: its value and, for a position, that.
pub(super) const ACCUM_WORDS: u32 = 3;

impl Writer<'_> {
    /// A reduce phase: its accumulators, joined, or left in parts.
    pub(super) fn reduce(
        &mut self,
        phase: usize,
        axes: &[usize],
        accums: &[Accum],
    ) -> Result<(), EmitError> {
        for (number, accum) in accums.iter().enumerate() {
            self.declare_accum(phase, number, accum)?;
        }
        if self.reads_parts(phase, axes) {
            self.take_parts(phase, accums)?;
        } else {
            self.take_elements(phase, axes, accums)?;
        }
        if let Mapping::Group(team) = self.variant.mapping {
            self.join(phase, accums, team)?;
            if self.variant.part == Part::Phase(phase) {
                return self.leave_parts(phase, accums, team);
            }
        }
        for (number, accum) in accums.iter().enumerate() {
            if is_position(accum.kind) {
                for lane in self.accum_lanes() {
                    self.lane = lane;
                    let name = format!("{phase}_{number}{}", self.accum_suffix());
                    let position = self.call("i64_of_i32", &[&format!("max(at{name}, 0)")]);
                    self.line(&format!("let acc{name} = {position};"));
                }
                self.lane = 0;
            }
        }
        Ok(())
    }

    /// Takes a thread's elements into its accumulators.
    fn take_elements(
        &mut self,
        phase: usize,
        axes: &[usize],
        accums: &[Accum],
    ) -> Result<(), EmitError> {
        let blocks = self.open_loops(phase, axes);
        let grouped = matches!(self.variant.mapping, Mapping::Group(_));
        if blocks == 0 && grouped {
            // Nothing to share: one thread takes the single element, so that it counts once.
            self.open("if me == 0u");
        }
        let values: Vec<Item> = accums.iter().map(|accum| Item::Expr(accum.value)).collect();
        for lane in self.lanes_here() {
            self.lane = lane;
            self.need(&values)?;
            for (number, accum) in accums.iter().enumerate() {
                let value = self.expr_name(accum.value)?;
                let at = self.linear(axes);
                let name = format!("{phase}_{number}{}", self.accum_suffix());
                self.accumulate((phase, number), accum, &name, &value, &at)?;
            }
        }
        self.close_loops(blocks.max(usize::from(grouped)));
        Ok(())
    }

    /// Takes the results of parts into a thread's accumulators.
    fn take_parts(&mut self, phase: usize, accums: &[Accum]) -> Result<(), EmitError> {
        let Mapping::Group(team) = self.variant.mapping else {
            unreachable!("bug: parts without workgroups");
        };
        self.open(&format!(
            "for (var n = i32(me); n < i32(params.parts); n += {})",
            team.size()
        ));
        for (number, accum) in accums.iter().enumerate() {
            let place = self.part_place(phase, number, "n");
            let name = format!("{phase}_{number}");
            self.line(&format!("let from{name} = {place};"));
            let low = format!("load_parts(from{name})");
            let high = format!("load_parts(from{name} + 1u)");
            let value = match held(self.kernel.dtype(accum.value))? {
                Held::Bool => format!("({low} != 0u)"),
                Held::Float => format!("bitcast<f32>({low})"),
                Held::Signed => format!("bitcast<i32>({low})"),
                Held::Unsigned => low,
                Held::Signed64 | Held::Unsigned64 | Held::Float64 => {
                    format!("vec2<u32>({low}, {high})")
                }
            };
            self.line(&format!("let value{name} = {value};"));
            let at = format!("bitcast<i32>(load_parts(from{name} + 2u))");
            self.accumulate((phase, number), accum, &name, &format!("value{name}"), &at)?;
        }
        self.close();
        Ok(())
    }

    /// Stores a team's accumulators as the result of its part.
    fn leave_parts(&mut self, phase: usize, accums: &[Accum], team: Team) -> Result<(), EmitError> {
        self.open_once(team);
        for (number, accum) in accums.iter().enumerate() {
            let place = self.part_place(phase, number, "part");
            let name = format!("{phase}_{number}");
            let value = match is_position(accum.kind) {
                true => format!("best{name}"),
                false => format!("acc{name}"),
            };
            self.line(&format!("let to{name} = {place};"));
            let (low, high) = match held(self.kernel.dtype(accum.value))? {
                Held::Bool => (format!("select(0u, 1u, {value})"), None),
                Held::Float | Held::Signed => (format!("bitcast<u32>({value})"), None),
                Held::Unsigned => (value, None),
                Held::Signed64 | Held::Unsigned64 | Held::Float64 => {
                    (format!("{value}.x"), Some(format!("{value}.y")))
                }
            };
            self.line(&format!("store_parts(to{name}, {low});"));
            if let Some(high) = high {
                self.line(&format!("store_parts(to{name} + 1u, {high});"));
            }
            if is_position(accum.kind) {
                self.line(&format!(
                    "store_parts(to{name} + 2u, bitcast<u32>(at{name}));"
                ));
            }
        }
        self.close();
        Ok(())
    }

    /// Where the result of a part is.
    fn part_place(&self, phase: usize, number: usize, part: &str) -> String {
        let before = self.kernel.phases[..phase].iter().map(|phase| match phase {
            Phase::Reduce { accums, .. } => accums.len(),
            Phase::Store { .. } => 0,
        });
        let own = (before.sum::<usize>() + number) as u32 * ACCUM_WORDS;
        let words = partial_words(self.kernel);
        format!("(u32(position) * params.parts + u32({part})) * {words}u + {own}u")
    }

    /// The variables of an accumulator, at their start.
    fn declare_accum(
        &mut self,
        phase: usize,
        number: usize,
        accum: &Accum,
    ) -> Result<(), EmitError> {
        let dtype = self.kernel.dtype(accum.value);
        let start = self.start_of(accum.kind, dtype)?;
        if is_position(accum.kind) {
            self.write_better(&format!("{phase}_{number}"), accum.kind, dtype)?;
        }
        for lane in self.accum_lanes() {
            self.lane = lane;
            let name = format!("{phase}_{number}{}", self.accum_suffix());
            if is_position(accum.kind) {
                self.line(&format!("var best{name} = {}();", held(dtype)?.name()));
                self.line(&format!("var at{name} = -1;"));
            } else {
                self.line(&format!("var acc{name} = {start};"));
            }
        }
        self.lane = 0;
        Ok(())
    }

    /// Takes a value at a position into an accumulator, whose variables end in `name`.
    fn accumulate(
        &mut self,
        (phase, number): (usize, usize),
        accum: &Accum,
        name: &str,
        value: &str,
        at: &str,
    ) -> Result<(), EmitError> {
        let dtype = self.kernel.dtype(accum.value);
        if is_position(accum.kind) {
            self.line(&format!(
                "if better{phase}_{number}({value}, {at}, best{name}, at{name}) {{ best{name} = {value}; at{name} = {at}; }}"
            ));
        } else {
            let sum = self.combine(function_of(accum.kind), dtype, &format!("acc{name}"), value)?;
            self.line(&format!("acc{name} = {sum};"));
        }
        Ok(())
    }

    /// The row-major position within `axes`, an `i32` expression.
    fn linear(&self, axes: &[usize]) -> String {
        let mut text = "0".to_owned();
        for (place, &axis) in axes.iter().enumerate() {
            text = match place {
                0 => format!("a{axis}"),
                _ => format!(
                    "({text}) * {} + a{axis}",
                    self.extent(self.kernel.axes[axis])
                ),
            };
        }
        let own_lane = |view: &LaneView| axes.last() == Some(&view.axis);
        match &self.view {
            Some(view) if own_lane(view) && self.lane > 0 => format!("({text} + {})", self.lane),
            _ => format!("({text})"),
        }
    }

    /// Where an accumulator starts.
    fn start_of(&mut self, kind: AccumKind, dtype: DType) -> Result<String, EmitError> {
        let extreme = |largest: bool| -> u64 {
            match dtype.class() {
                Class::Float => match dtype {
                    DType::F64 => 0x7ff0_0000_0000_0000 | u64::from(!largest) << 63,
                    DType::F32 => 0x7f80_0000 | u64::from(!largest) << 31,
                    DType::F16 => 0x7c00 | u64::from(!largest) << 15,
                    DType::BF16 => 0x7f80 | u64::from(!largest) << 15,
                    // Formats without infinity start from theirs all the same: any element replaces it.
                    _ => 0,
                },
                _ => {
                    let (least, most) = dtype.int_range().unwrap_or((0, 1));
                    (if largest { most } else { least }) as u64
                }
            }
        };
        let small_float = dtype.is_float() && dtype.bits() <= 8;
        match kind {
            AccumKind::Sum | AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => {
                self.literal(dtype, 0)
            }
            AccumKind::Prod => match dtype {
                DType::F64 => self.literal(dtype, 1f64.to_bits()),
                DType::F32 => self.literal(dtype, u64::from(1f32.to_bits())),
                DType::F16 => self.literal(dtype, 0x3c00),
                DType::BF16 => self.literal(dtype, 0x3f80),
                _ if small_float => Ok("1.0".to_owned()),
                _ => self.literal(dtype, 1),
            },
            AccumKind::Max if small_float => Ok(self.call("float_of", &["0xff800000u"])),
            AccumKind::Min if small_float => Ok(self.call("float_of", &["0x7f800000u"])),
            AccumKind::Max => self.literal(dtype, extreme(false)),
            AccumKind::Min => self.literal(dtype, extreme(true)),
        }
    }

    /// The function that says whether an element at a position replaces the best so far; position -1 is none.
    fn write_better(&mut self, name: &str, kind: AccumKind, dtype: DType) -> Result<(), EmitError> {
        let (largest, last) = match kind {
            AccumKind::ArgMax { last } => (true, last),
            AccumKind::ArgMin { last } => (false, last),
            AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => return Ok(()),
        };
        let value_type = held(dtype)?.name();
        let mut beats = |a: &str, b: &str| -> Result<String, EmitError> {
            let order = match largest {
                true => self.combine(Scalar::Lt, dtype, b, a)?,
                false => self.combine(Scalar::Lt, dtype, a, b)?,
            };
            Ok(match dtype.is_float() {
                true => {
                    let is_nan = match dtype {
                        DType::F64 => "is_nan_f64",
                        _ => "is_nan",
                    };
                    let (a, b) = (self.call(is_nan, &[a]), self.call(is_nan, &[b]));
                    format!("({a} && !{b}) || {order}")
                }
                false => order,
            })
        };
        let (better, worse) = (beats("value", "best")?, beats("best", "value")?);
        let tie = if last { "at > best_at" } else { "at < best_at" };
        self.functions.push_str(&format!(
            "fn better{name}(value: {value_type}, at: i32, best: {value_type}, best_at: i32) -> bool {{
    if at < 0 || best_at < 0 {{
        return at >= 0;
    }}
    if {better} {{
        return true;
    }}
    return !({worse}) && {tie};
}}
"
        ));
        Ok(())
    }
}

/// The scalar function that joins two partial results.
pub(super) fn function_of(kind: AccumKind) -> Scalar {
    match kind {
        AccumKind::Sum => Scalar::Add,
        AccumKind::Prod => Scalar::Mul,
        AccumKind::Max | AccumKind::ArgMax { .. } => Scalar::Max,
        AccumKind::Min | AccumKind::ArgMin { .. } => Scalar::Min,
    }
}
