//! Loops, reductions and stores: the entry point of a kernel.

use cupola_ir::kernel::{Access, Accum, AccumKind, AxisId, Phase, Store, StoreKind};
use cupola_ir::scalar::Scalar;
use cupola_ir::{Class, DType};

use super::lanes::{LANES, LaneView};
use super::scalar::{Held, element, held};
use super::{
    EmitError, Item, Join, Mapping, Part, THREADS, Team, Variant, Writer, partial_words, stores,
    tree_name,
};

/// Whether an accumulator finds a position.
pub(super) fn is_position(kind: AccumKind) -> bool {
    match kind {
        AccumKind::ArgMax { .. } | AccumKind::ArgMin { .. } => true,
        AccumKind::Sum | AccumKind::Prod | AccumKind::Max | AccumKind::Min => false,
    }
}

/// Words of an accumulator between launches: its value and, for a position, that.
pub(super) const ACCUM_WORDS: u32 = 3;

/// Largest subgroup of any device.
const MOST_SUBGROUP: u32 = 128;

/// An accumulator that the threads of a team have each a part of.
struct Partner {
    /// What its variables end in.
    name: String,
    kind: AccumKind,
    dtype: DType,
    /// Workgroup arrays of its values and, if it finds a position, of those.
    values: String,
    positions: Option<String>,
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
            Mapping::Threads { .. } | Mapping::Tiles { .. } => THREADS,
            Mapping::Group(team) => team.threads,
        };
        self.line(&format!("@compute @workgroup_size({threads})"));
        let place = match self.variant.mapping {
            Mapping::Group(Team {
                join: Join::Subgroups | Join::Within,
                ..
            }) => {
                "@builtin(subgroup_id) wave: u32, @builtin(num_subgroups) waves: u32,\n        \
                 @builtin(subgroup_size) wave_size: u32, @builtin(subgroup_invocation_id) wave_lane: u32"
            }
            _ => "@builtin(local_invocation_index) local: u32",
        };
        self.open(&format!(
            "fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(num_workgroups) group_count: vec3<u32>,\n        {place})"
        ));
        self.declare_sizes();
        self.line("let group = group_number(group_id, group_count);");
        match self.variant.mapping {
            Mapping::Group(team) => self.teams(team)?,
            Mapping::Tiles { other, fours } => self.tiles(other, fours)?,
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

    /// A workgroup of teams.
    fn teams(&mut self, team: Team) -> Result<(), EmitError> {
        let Team {
            rows, across, join, ..
        } = team;
        if join != Join::Tree {
            // Threads are numbered by subgroups, whatever the order of their index: teams are neighbours in one.
            self.line("let local = wave * wave_size + wave_lane;");
        }
        match self.variant.part {
            Part::Phase(_) => {
                self.line("let part = i32(group % params.parts);");
                self.line(&format!("let first = group / params.parts * {rows}u;"));
            }
            Part::Whole | Part::Rest => self.line(&format!("let first = group * {rows}u;")),
        }
        self.line("if first >= params.positions { return; }");
        if rows == 1 {
            self.line("let me = local;");
            self.line("let position = i32(first);");
            return self.body();
        }
        let (me, row) = match across {
            true => (format!("local / {rows}u"), format!("local % {rows}u")),
            false => {
                let size = team.size();
                (format!("local % {size}u"), format!("local / {size}u"))
            }
        };
        self.line(&format!("let me = {me};"));
        self.line(&format!("let row = {row};"));
        // Teams without a position do the last one's work, for the barriers' sake, and store nothing.
        self.line("let live = first + row < params.positions;");
        self.line("let position = i32(min(first + row, params.positions - 1u));");
        self.body()
    }

    /// Whether this launch has nothing to do with a phase.
    fn skips(&self, number: usize, phase: &Phase) -> bool {
        let whole = phase_axes(phase).is_empty();
        match (self.variant.part, phase) {
            (Part::Whole, _) | (Part::Rest, Phase::Reduce { .. }) => false,
            (Part::Rest, Phase::Store { .. }) => !whole,
            (Part::Phase(own), Phase::Reduce { .. }) => number > own,
            (Part::Phase(own), Phase::Store { .. }) => number != own,
        }
    }

    /// Whether a phase's accumulators were left in parts by an earlier launch.
    fn reads_parts(&self, number: usize, axes: &[usize]) -> bool {
        !axes.is_empty()
            && match self.variant.part {
                Part::Whole => false,
                Part::Phase(own) => number != own,
                Part::Rest => true,
            }
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
        self.all_phases()
    }

    /// All phases where the parallel axes are declared.
    pub(super) fn all_phases(&mut self) -> Result<(), EmitError> {
        let mut first_store = 0;
        let count = self.kernel.phases.len();
        let kernel = self.kernel;
        for (number, phase) in kernel.phases.iter().enumerate() {
            if self.skips(number, phase) {
                first_store += phase_stores(phase).len();
                continue;
            }
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
                    let grouped = matches!(self.variant.mapping, Mapping::Group(_));
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
    pub(super) fn look_along(&mut self, axis: Option<usize>) {
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
            Mapping::Threads { .. } | Mapping::Tiles { .. } => {
                for &axis in axes {
                    let extent = self.extent(self.kernel.axes[axis]);
                    self.open(&format!(
                        "for (var a{axis} = 0; a{axis} < {extent}; a{axis} += 1)"
                    ));
                }
                axes.len()
            }
            Mapping::Group(team) => {
                let fours = phase < 64 && self.variant.fours >> phase & 1 == 1;
                let lanes = if fours { LANES } else { 1 };
                let (begin, end) = self.share(phase, axes);
                self.open(&format!(
                    "for (var p{phase} = {begin}i32(me * {lanes}u); p{phase} < {end}; p{phase} += {})",
                    team.size() * lanes
                ));
                self.declare_axes(axes, &format!("p{phase}"));
                if fours {
                    self.look_along(axes.last().copied());
                }
                1
            }
        }
    }

    /// Where the positions of this launch begin (with a plus sign behind, if not at 0) and end in a phase.
    fn share(&mut self, phase: usize, axes: &[usize]) -> (String, String) {
        let len = self.product(axes);
        if self.variant.part != Part::Phase(phase) {
            return (String::new(), len);
        }
        // Whole words and vectors of any width belong to one part.
        self.line(&format!(
            "let share{phase} = ({len} + i32(params.parts) * 16 - 1) / (i32(params.parts) * 16) * 16;"
        ));
        self.line(&format!("let begin{phase} = part * share{phase};"));
        self.line(&format!(
            "let end{phase} = min(begin{phase} + share{phase}, {len});"
        ));
        (format!("begin{phase} + "), format!("end{phase}"))
    }

    /// Opens a block that one thread of each team enters.
    fn open_once(&mut self, team: Team) {
        let live = if team.rows > 1 { " && live" } else { "" };
        self.open(&format!("if me == 0u{live}"));
    }

    fn reduce(&mut self, phase: usize, axes: &[usize], accums: &[Accum]) -> Result<(), EmitError> {
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
                Held::Signed64 | Held::Unsigned64 => format!("vec2<u32>({low}, {high})"),
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
                Held::Signed64 | Held::Unsigned64 => {
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

    /// Joins the accumulators of a team's threads, and gives every thread the result.
    fn join(&mut self, phase: usize, accums: &[Accum], team: Team) -> Result<(), EmitError> {
        if team.size() == 1 {
            return Ok(());
        }
        let partners: Vec<Partner> = self.partners(phase, accums)?;
        match team.join {
            Join::Tree => self.join_tree(&partners, team),
            Join::Within => self.join_within(&partners, team.size()),
            Join::Subgroups => {
                self.join_within(&partners, MOST_SUBGROUP)?;
                self.join_subgroups(&partners)
            }
        }
    }

    /// The accumulators of a phase with the workgroup arrays they are joined in.
    fn partners(&mut self, phase: usize, accums: &[Accum]) -> Result<Vec<Partner>, EmitError> {
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
        let mut partners = Vec::new();
        for (number, accum) in accums.iter().enumerate() {
            let dtype = self.kernel.dtype(accum.value);
            let values = slot(held(dtype)?.name());
            partners.push(Partner {
                name: format!("{phase}_{number}"),
                kind: accum.kind,
                dtype,
                values,
                positions: is_position(accum.kind).then(|| slot("i32")),
            });
        }
        for (value, count) in used {
            match self.trees.iter_mut().find(|(name, _)| *name == value) {
                Some(tree) => tree.1 = tree.1.max(count),
                None => self.trees.push((value, count)),
            }
        }
        Ok(partners)
    }

    /// Takes another thread's accumulator, given as WGSL, into one's own.
    fn take(&mut self, partner: &Partner, value: &str, at: &str) -> Result<(), EmitError> {
        let name = &partner.name;
        if partner.positions.is_some() {
            self.line(&format!("let far{name} = {value};"));
            self.line(&format!("let far_at{name} = {at};"));
            self.line(&format!(
                "if better{name}(far{name}, far_at{name}, best{name}, at{name}) {{ best{name} = far{name}; at{name} = far_at{name}; }}"
            ));
            return Ok(());
        }
        self.line(&format!("let far{name} = {value};"));
        let own = format!("acc{name}");
        let function = function_of(partner.kind);
        let joined = self.combine(function, partner.dtype, &own, &format!("far{name}"))?;
        self.line(&format!("{own} = {joined};"));
        Ok(())
    }

    /// Puts one's accumulators at a place of the workgroup arrays.
    fn put(&mut self, partners: &[Partner], place: &str) {
        for partner in partners {
            let (name, values) = (&partner.name, &partner.values);
            match &partner.positions {
                None => self.line(&format!("{values}[{place}] = acc{name};")),
                Some(positions) => {
                    self.line(&format!("{values}[{place}] = best{name};"));
                    self.line(&format!("{positions}[{place}] = at{name};"));
                }
            }
        }
    }

    /// Makes what is at a place of the workgroup arrays one's own.
    fn fetch(&mut self, partners: &[Partner], place: &str) {
        for partner in partners {
            let (name, values) = (&partner.name, &partner.values);
            match &partner.positions {
                None => self.line(&format!("acc{name} = {values}[{place}];")),
                Some(positions) => {
                    self.line(&format!("best{name} = {values}[{place}];"));
                    self.line(&format!("at{name} = {positions}[{place}];"));
                }
            }
        }
    }

    /// Takes what is at a place of the workgroup arrays into one's accumulators.
    fn take_from(&mut self, partners: &[Partner], place: &str) -> Result<(), EmitError> {
        for partner in partners {
            let positions = partner.positions.as_deref().unwrap_or_default();
            let (value, at) = (
                format!("{}[{place}]", partner.values),
                format!("{positions}[{place}]"),
            );
            self.take(partner, &value, &at)?;
        }
        Ok(())
    }

    fn join_tree(&mut self, partners: &[Partner], team: Team) -> Result<(), EmitError> {
        let distance = if team.across { team.rows } else { 1 };
        self.put(partners, "local");
        self.line("workgroupBarrier();");
        self.open(&format!(
            "for (var half = {}u; half > 0u; half /= 2u)",
            team.size() / 2
        ));
        self.open("if me < half");
        self.take_from(partners, &format!("local + half * {distance}u"))?;
        self.put(partners, "local");
        self.close();
        self.line("workgroupBarrier();");
        self.close();
        let first = match (team.rows, team.across) {
            (1, _) => "0".to_owned(),
            (_, true) => "row".to_owned(),
            (_, false) => format!("row * {}u", team.size()),
        };
        self.fetch(partners, &first);
        // The arrays are free for the next phase only when every thread has read its result.
        self.line("workgroupBarrier();");
        Ok(())
    }

    /// Joins in subgroups, over neighbours at most `most` apart; the distances beyond a subgroup's size are left out.
    fn join_within(&mut self, partners: &[Partner], most: u32) -> Result<(), EmitError> {
        self.open(&format!(
            "for (var apart = 1u; apart < min({most}u, wave_size); apart *= 2u)"
        ));
        for partner in partners {
            let name = &partner.name;
            let (own, at) = match partner.positions.is_some() {
                true => (format!("best{name}"), format!("at{name}")),
                false => (format!("acc{name}"), String::new()),
            };
            let value = match held(partner.dtype)? {
                Held::Bool => format!("(subgroupShuffleXor(select(0u, 1u, {own}), apart) != 0u)"),
                _ => format!("subgroupShuffleXor({own}, apart)"),
            };
            self.take(partner, &value, &format!("subgroupShuffleXor({at}, apart)"))?;
        }
        self.close();
        Ok(())
    }

    /// Joins what the subgroups of a workgroup have; every thread reads all of it.
    fn join_subgroups(&mut self, partners: &[Partner]) -> Result<(), EmitError> {
        self.open("if wave_lane == 0u");
        self.put(partners, "wave");
        self.close();
        self.line("workgroupBarrier();");
        // All in the same order, so that all have the same bits.
        self.fetch(partners, "0");
        self.open("for (var other = 1u; other < waves; other += 1u)");
        self.take_from(partners, "other")?;
        self.close();
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
        let team = match self.variant.mapping {
            Mapping::Group(team) => Some(team),
            Mapping::Threads { .. } | Mapping::Tiles { .. } => None,
        };
        if axes.is_empty() {
            if let Some(team) = team {
                self.open_once(team);
            }
            self.store_all(stores, "lane")?;
            if team.is_some() {
                self.close();
            }
            return Ok(());
        }
        let guarded = team.is_some_and(|team| team.rows > 1);
        if guarded {
            self.open("if live");
        }
        self.store_along(phase, axes, stores)?;
        if guarded {
            self.close();
        }
        Ok(())
    }

    /// A store phase with axes.
    fn store_along(
        &mut self,
        phase: usize,
        axes: &[usize],
        stores: &PhaseStores<'_>,
    ) -> Result<(), EmitError> {
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
        let (begin, end) = self.share(phase, axes);
        let (start, step) = match self.variant.mapping {
            Mapping::Threads { .. } | Mapping::Tiles { .. } => ("0".to_owned(), lanes),
            Mapping::Group(team) => (format!("{begin}i32(me * {lanes}u)"), lanes * team.size()),
        };
        self.open(&format!(
            "for (var q{phase} = {start}; q{phase} < {end}; q{phase} += {step})"
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
