//! Loops, reductions and stores: the entry point of a kernel.

use cupola_ir::kernel::{Access, Accum, AccumKind, AxisId, Phase, Store, StoreKind};
use cupola_ir::scalar::Scalar;
use cupola_ir::{Class, DType};

use super::lanes::{LANES, LaneView};
use super::scalar::{element, held};
use super::{EmitError, Item, Mapping, THREADS, Variant, Writer, stores, tree_name};

/// Whether an accumulator finds a position.
pub(super) fn is_position(kind: AccumKind) -> bool {
    match kind {
        AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => true,
        AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => false,
    }
}

/// Where the stores of a phase are, and which of them make whole words.
struct PhaseStores<'a> {
    /// Position of the first among all stores of the kernel.
    first: usize,
    stores: &'a [Store],
}

impl Writer<'_> {
    pub(super) fn entry_point(&mut self) -> Result<(), EmitError> {
        let threads = match self.variant.mapping {
            Mapping::Threads { .. } => THREADS,
            Mapping::Group { threads } => threads,
        };
        self.line(&format!("@compute @workgroup_size({threads})"));
        self.open(
            "fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,\n        \
             @builtin(local_invocation_index) local: u32)",
        );
        self.declare_sizes();
        self.line("let group = group_number(group_id, group_count);");
        match self.variant.mapping {
            Mapping::Group { .. } => {
                self.line("if group >= params.positions { return; }");
                self.line("let position = i32(group);");
                self.body()?;
            }
            Mapping::Threads { lanes: 1, .. } => {
                self.line(&format!("let position = i32(group * {THREADS}u + local);"));
                self.line("if position >= i32(params.positions) { return; }");
                self.body()?;
            }
            Mapping::Threads { lanes, fours: true } => {
                self.line(&format!(
                    "let position = i32((group * {THREADS}u + local) * {lanes}u);"
                ));
                self.line("if position >= i32(params.positions) { return; }");
                self.look_along(self.kernel.parallel.checked_sub(1));
                self.body()?;
                self.look_along(None);
            }
            Mapping::Threads { lanes, .. } => self.lanes(lanes)?,
        }
        self.close();
        Ok(())
    }

    /// Several neighbouring positions, whose narrow results make words.
    fn lanes(&mut self, lanes: u32) -> Result<(), EmitError> {
        self.line(&format!(
            "let first = i32((group * {THREADS}u + local) * {lanes}u);"
        ));
        let words: Vec<(usize, u32, String)> = self.lane_words()?;
        for (ordinal, _, _) in &words {
            self.line(&format!("var word_{ordinal} = 0u;"));
        }
        self.open(&format!("for (var lane = 0; lane < {lanes}; lane += 1)"));
        self.line("let position = first + lane;");
        self.open("if position < i32(params.positions)");
        self.body()?;
        self.close();
        for (ordinal, per_word, buffer) in &words {
            let last = per_word - 1;
            self.open(&format!("if (lane & {last}) == {last}"));
            self.line(&format!(
                "if position - {last} < i32(params.positions) {{ store_word_{buffer}(u32(position) / {per_word}u, word_{ordinal}); }}"
            ));
            self.line(&format!("word_{ordinal} = 0u;"));
            self.close();
        }
        self.close();
        Ok(())
    }

    /// Word stores of phases without axes: position among all stores, elements of a word, buffer.
    fn lane_words(&self) -> Result<Vec<(usize, u32, String)>, EmitError> {
        let mut words = Vec::new();
        for (ordinal, (phase, store)) in stores(self.kernel).enumerate() {
            if self.in_words(ordinal) && phase_axes(&self.kernel.phases[phase]).is_empty() {
                let buffer = store.buffer.0 as usize;
                let per_word = element(self.kernel.buffers[buffer].dtype)?.per_word();
                words.push((ordinal, per_word, self.buffer_name(buffer)));
            }
        }
        Ok(words)
    }

    /// All phases at `position`.
    fn body(&mut self) -> Result<(), EmitError> {
        let parallel: Vec<usize> = (0..self.kernel.parallel).collect();
        self.declare_axes(&parallel, "position");
        let mut first_store = 0;
        let count = self.kernel.phases.len();
        let kernel = self.kernel;
        for (number, phase) in kernel.phases.iter().enumerate() {
            let roots = roots(phase);
            for lane in self.lanes_here() {
                self.lane = lane;
                self.need_outer(&roots)?;
            }
            match phase {
                Phase::Reduce { axes, accums } => self.reduce(number, &numbers(axes), accums)?,
                Phase::Store { axes, stores } => {
                    let stores = PhaseStores {
                        first: first_store,
                        stores,
                    };
                    first_store += stores.stores.len();
                    self.store_phase(number, &numbers(axes), &stores)?;
                    let grouped = matches!(self.variant.mapping, Mapping::Group { .. });
                    if grouped && number + 1 < count && self.reads_what_it_writes() {
                        self.line("storageBarrier();");
                        self.line("workgroupBarrier();");
                    }
                }
            }
        }
        Ok(())
    }

    fn reads_what_it_writes(&self) -> bool {
        self.kernel
            .buffers
            .iter()
            .any(|buffer| buffer.access == Access::ReadWrite)
    }

    /// From here on threads take four positions along this axis, or one.
    fn look_along(&mut self, axis: Option<usize>) {
        let Variant { aligned, wide, .. } = &self.variant;
        self.view = axis.map(|axis| LaneView::new(self.kernel, axis, aligned, *wide));
        self.lane = 0;
    }

    /// Positions that a thread takes side by side.
    fn lanes_here(&self) -> std::ops::Range<u32> {
        0..if self.view.is_some() { LANES } else { 1 }
    }

    /// Of which each accumulator has its own.
    fn accum_lanes(&self) -> std::ops::Range<u32> {
        match &self.view {
            Some(view) if view.parallel => 0..LANES,
            _ => 0..1,
        }
    }

    /// Closes what [`Self::open_loops`] opened.
    fn close_loops(&mut self, blocks: usize) {
        for _ in 0..blocks {
            self.close();
        }
        if self.view.as_ref().is_some_and(|view| !view.parallel) {
            self.look_along(None);
        }
        self.lane = 0;
    }

    /// Opens the loops over a phase's axes; the number returned says how many blocks to close.
    fn open_loops(&mut self, phase: usize, axes: &[usize]) -> usize {
        match self.variant.mapping {
            _ if axes.is_empty() => 0,
            Mapping::Threads { .. } => {
                for &axis in axes {
                    let extent = self.extent(self.kernel.axes[axis]);
                    self.open(&format!(
                        "for (var a{axis} = 0; a{axis} < {extent}; a{axis} += 1)"
                    ));
                }
                axes.len()
            }
            Mapping::Group { threads } => {
                let len = self.product(axes);
                let fours = phase < 64 && self.variant.fours >> phase & 1 == 1;
                let lanes = if fours { LANES } else { 1 };
                self.open(&format!(
                    "for (var p{phase} = i32(local * {lanes}u); p{phase} < {len}; p{phase} += {})",
                    threads * lanes
                ));
                self.declare_axes(axes, &format!("p{phase}"));
                if fours {
                    self.look_along(axes.last().copied());
                }
                1
            }
        }
    }

    fn reduce(&mut self, phase: usize, axes: &[usize], accums: &[Accum]) -> Result<(), EmitError> {
        for (number, accum) in accums.iter().enumerate() {
            self.declare_accum(phase, number, accum)?;
        }
        let blocks = self.open_loops(phase, axes);
        let grouped = matches!(self.variant.mapping, Mapping::Group { .. });
        if blocks == 0 && grouped {
            // Nothing to share: one thread takes the single element, so that it counts once.
            self.open("if local == 0u");
        }
        let values: Vec<Item> = accums.iter().map(|accum| Item::Expr(accum.value)).collect();
        for lane in self.lanes_here() {
            self.lane = lane;
            self.need(&values)?;
            for (number, accum) in accums.iter().enumerate() {
                self.accumulate(phase, number, accum, axes)?;
            }
        }
        self.close_loops(blocks.max(usize::from(grouped)));
        if let Mapping::Group { threads } = self.variant.mapping {
            self.join(phase, accums, threads)?;
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

    /// Takes the value of one position, of the current lane, into an accumulator.
    fn accumulate(
        &mut self,
        phase: usize,
        number: usize,
        accum: &Accum,
        axes: &[usize],
    ) -> Result<(), EmitError> {
        let dtype = self.kernel.dtype(accum.value);
        let value = self.expr_name(accum.value)?;
        let name = format!("{phase}_{number}{}", self.accum_suffix());
        if is_position(accum.kind) {
            let at = self.linear(axes);
            self.line(&format!(
                "if better{phase}_{number}({value}, {at}, best{name}, at{name}) {{ best{name} = {value}; at{name} = {at}; }}"
            ));
        } else {
            let sum = self.combine(
                function_of(accum.kind),
                dtype,
                &format!("acc{name}"),
                &value,
            )?;
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

    /// Joins the threads' accumulators of a phase as a tree, and gives every thread the result.
    fn join(&mut self, phase: usize, accums: &[Accum], threads: u32) -> Result<(), EmitError> {
        let mut used: Vec<(&'static str, usize)> = Vec::new();
        let mut slot = |value: &'static str| {
            let position = used
                .iter()
                .position(|(name, _)| *name == value)
                .unwrap_or_else(|| {
                    used.push((value, 0));
                    used.len() - 1
                });
            used[position].1 += 1;
            tree_name(value, used[position].1 - 1)
        };
        // For each accumulator its array, and for positions the array of those.
        let mut arrays = Vec::new();
        for accum in accums {
            let value = held(self.kernel.dtype(accum.value))?.name();
            arrays.push((slot(value), is_position(accum.kind).then(|| slot("i32"))));
        }
        for (value, count) in used {
            match self.trees.iter_mut().find(|(name, _)| *name == value) {
                Some(tree) => tree.1 = tree.1.max(count),
                None => self.trees.push((value, count)),
            }
        }
        for (number, (array, positions)) in arrays.iter().enumerate() {
            match positions {
                None => self.line(&format!("{array}[local] = acc{phase}_{number};")),
                Some(positions) => {
                    self.line(&format!("{array}[local] = best{phase}_{number};"));
                    self.line(&format!("{positions}[local] = at{phase}_{number};"));
                }
            }
        }
        self.line("workgroupBarrier();");
        self.open(&format!(
            "for (var half = {}u; half > 0u; half /= 2u)",
            threads / 2
        ));
        self.open("if local < half");
        for (number, (accum, (array, positions))) in accums.iter().zip(&arrays).enumerate() {
            let other = format!("{array}[local + half]");
            match positions {
                None => {
                    let own = format!("own{number}");
                    let far = format!("far{number}");
                    self.line(&format!("let {own} = {array}[local];"));
                    self.line(&format!("let {far} = {other};"));
                    let dtype = self.kernel.dtype(accum.value);
                    let joined = self.combine(function_of(accum.kind), dtype, &own, &far)?;
                    self.line(&format!("{array}[local] = {joined};"));
                }
                Some(positions) => {
                    self.open(&format!(
                        "if better{phase}_{number}({other}, {positions}[local + half], {array}[local], {positions}[local])"
                    ));
                    self.line(&format!("{array}[local] = {other};"));
                    self.line(&format!("{positions}[local] = {positions}[local + half];"));
                    self.close();
                }
            }
        }
        self.close();
        self.line("workgroupBarrier();");
        self.close();
        for (number, (array, positions)) in arrays.iter().enumerate() {
            match positions {
                None => self.line(&format!("acc{phase}_{number} = {array}[0];")),
                Some(positions) => self.line(&format!("at{phase}_{number} = {positions}[0];")),
            }
        }
        // The arrays are free for the next phase only when every thread has read its result.
        self.line("workgroupBarrier();");
        Ok(())
    }

    /// Where an accumulator starts.
    fn start_of(&mut self, kind: AccumKind, dtype: DType) -> Result<String, EmitError> {
        let extreme = |largest: bool| -> u64 {
            match dtype.class() {
                Class::Float => match dtype {
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
                    let (a, b) = (self.call("is_nan", &[a]), self.call("is_nan", &[b]));
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

    fn store_phase(
        &mut self,
        phase: usize,
        axes: &[usize],
        stores: &PhaseStores<'_>,
    ) -> Result<(), EmitError> {
        let grouped = matches!(self.variant.mapping, Mapping::Group { .. });
        if axes.is_empty() {
            if grouped {
                self.open("if local == 0u");
            }
            self.store_all(stores, "lane")?;
            if grouped {
                self.close();
            }
            return Ok(());
        }
        let in_words = (0..stores.stores.len()).any(|n| self.in_words(stores.first + n));
        if in_words {
            return self.store_words(phase, axes, stores);
        }
        let blocks = self.open_loops(phase, axes);
        self.store_all(stores, "lane")?;
        self.close_loops(blocks);
        Ok(())
    }

    /// A store phase with axes whose narrow results make words: a thread takes whole words of positions.
    fn store_words(
        &mut self,
        phase: usize,
        axes: &[usize],
        stores: &PhaseStores<'_>,
    ) -> Result<(), EmitError> {
        let mut words = Vec::new();
        for (n, store) in stores.stores.iter().enumerate() {
            if self.in_words(stores.first + n) {
                let buffer = store.buffer.0 as usize;
                let per_word = element(self.kernel.buffers[buffer].dtype)?.per_word();
                words.push((stores.first + n, per_word, self.buffer_name(buffer)));
            }
        }
        let lanes = words
            .iter()
            .map(|(_, per_word, _)| *per_word)
            .max()
            .unwrap_or(1);
        let len = self.product(axes);
        for (ordinal, _, _) in &words {
            self.line(&format!("var word_{ordinal} = 0u;"));
        }
        let (start, step) = match self.variant.mapping {
            Mapping::Threads { .. } => ("0".to_owned(), lanes),
            Mapping::Group { threads } => (format!("i32(local * {lanes}u)"), lanes * threads),
        };
        self.open(&format!(
            "for (var q{phase} = {start}; q{phase} < {len}; q{phase} += {step})"
        ));
        self.open(&format!("for (var lane = 0; lane < {lanes}; lane += 1)"));
        self.line(&format!("let p{phase} = q{phase} + lane;"));
        self.open(&format!("if p{phase} < {len}"));
        self.declare_axes(axes, &format!("p{phase}"));
        self.store_all(stores, "lane")?;
        for (ordinal, per_word, buffer) in &words {
            let last = per_word - 1;
            self.open(&format!("if (lane & {last}) == {last}"));
            self.line(&format!(
                "store_word_{buffer}(u32(position * ({len}) + p{phase}) / {per_word}u, word_{ordinal});"
            ));
            self.line(&format!("word_{ordinal} = 0u;"));
            self.close();
        }
        for _ in 0..3 {
            self.close();
        }
        Ok(())
    }

    /// The stores at one position, or four; `lane` names the place within a word.
    fn store_all(&mut self, stores: &PhaseStores<'_>, lane: &str) -> Result<(), EmitError> {
        for (n, store) in stores.stores.iter().enumerate() {
            let wide = self.variant.wide;
            let four =
                (self.view.as_ref()).is_some_and(|view| view.stores_four(self.kernel, store, wide));
            let lanes = if four { 0..1 } else { self.lanes_here() };
            for own in lanes {
                self.lane = own;
                if let Some(guard) = store.guard {
                    self.need(&[Item::Expr(guard)])?;
                    let guard = self.expr_name(guard)?;
                    self.open(&format!("if {guard}"));
                }
                let word = self.in_words(stores.first + n);
                match four {
                    true => self.store_four(store)?,
                    false => self.store_one(store, word.then_some((stores.first + n, lane)))?,
                }
                if store.guard.is_some() {
                    self.close();
                }
            }
            self.lane = 0;
        }
        Ok(())
    }

    /// A store of the four elements as one vector.
    fn store_four(&mut self, store: &Store) -> Result<(), EmitError> {
        let buffer = store.buffer.0 as usize;
        let mut values = Vec::new();
        for lane in self.lanes_here() {
            self.lane = lane;
            self.need(&[Item::Expr(store.value)])?;
            values.push(self.expr_name(store.value)?);
        }
        self.lane = 0;
        self.need(&[Item::Index(store.index)])?;
        let index = self.index_name(store.index);
        let value_type = element(self.kernel.buffers[buffer].dtype)?.value_type4();
        self.line(&format!(
            "store4_{}(u32({index}), {value_type}({}));",
            self.buffer_name(buffer),
            values.join(", ")
        ));
        Ok(())
    }

    fn store_one(&mut self, store: &Store, word: Option<(usize, &str)>) -> Result<(), EmitError> {
        self.need(&[Item::Expr(store.value)])?;
        let value = self.expr_name(store.value)?;
        let buffer = store.buffer.0 as usize;
        let name = self.buffer_name(buffer);
        if let Some((ordinal, lane)) = word {
            let element = element(self.kernel.buffers[buffer].dtype)?;
            let last = element.per_word() - 1;
            self.line(&format!(
                "word_{ordinal} |= bits_{name}({value}) << (u32({lane} & {last}) * {}u);",
                element.bits()
            ));
            return Ok(());
        }
        self.need(&[Item::Index(store.index)])?;
        let index = self.index_name(store.index);
        let verb = match store.kind {
            StoreKind::Set => "store",
            StoreKind::AtomicAdd => "add",
        };
        self.line(&format!("{verb}_{name}(u32({index}), {value});"));
        Ok(())
    }

    /// The body as a function that a library kernel calls with each result element in hand.
    pub(super) fn epilogue_function(&mut self, value_type: &str) -> Result<(), EmitError> {
        let elementwise = self.kernel.phases.iter().all(|phase| match phase {
            Phase::Store { axes, .. } => axes.is_empty(),
            Phase::Reduce { .. } => false,
        });
        if !elementwise || self.kernel.parallel != self.kernel.axes.len() {
            return Err(EmitError("an epilogue that is not elementwise".to_owned()));
        }
        self.open(&format!(
            "fn epilogue(value: {value_type}, index: u32, row: u32, col: u32, batch: u32)"
        ));
        self.declare_sizes();
        self.line("let position = i32(index);");
        self.body()?;
        self.close();
        Ok(())
    }
}

/// The scalar function that joins two partial results.
fn function_of(kind: AccumKind) -> Scalar {
    match kind {
        AccumKind::Sum => Scalar::Add,
        AccumKind::Prod => Scalar::Mul,
        AccumKind::Max | AccumKind::ArgMax { .. } => Scalar::Max,
        AccumKind::Min | AccumKind::ArgMin { .. } => Scalar::Min,
    }
}

fn numbers(axes: &[AxisId]) -> Vec<usize> {
    axes.iter().map(|axis| axis.0 as usize).collect()
}

/// Its stores; none if it reduces.
pub(crate) fn phase_stores(phase: &Phase) -> &[Store] {
    match phase {
        Phase::Store { stores, .. } => stores,
        Phase::Reduce { .. } => &[],
    }
}

/// Its axes, outermost first.
pub(crate) fn phase_axes(phase: &Phase) -> &[AxisId] {
    match phase {
        Phase::Reduce { axes, .. } | Phase::Store { axes, .. } => axes,
    }
}

/// Everything a phase uses directly.
pub(crate) fn roots(phase: &Phase) -> Vec<Item> {
    match phase {
        Phase::Reduce { accums, .. } => {
            accums.iter().map(|accum| Item::Expr(accum.value)).collect()
        }
        Phase::Store { stores, .. } => stores
            .iter()
            .flat_map(|store| {
                let guard = store.guard.map(Item::Expr);
                [Item::Index(store.index), Item::Expr(store.value)]
                    .into_iter()
                    .chain(guard)
            })
            .collect(),
    }
}
