//! Loops and stores: the entry point of a kernel.

use cupola_ir::kernel::{Access, AxisId, Phase, Store, StoreKind};

use super::lanes::{LANES, LaneView};
use super::scalar::element;
use super::{EmitError, Item, Join, Mapping, Part, THREADS, Team, Variant, Writer, stores};

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
    pub(super) fn reads_parts(&self, number: usize, axes: &[usize]) -> bool {
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
    pub(super) fn lanes_here(&self) -> std::ops::Range<u32> {
        0..if self.view.is_some() { LANES } else { 1 }
    }

    /// Of which each accumulator has its own.
    pub(super) fn accum_lanes(&self) -> std::ops::Range<u32> {
        match &self.view {
            Some(view) if view.parallel => 0..LANES,
            _ => 0..1,
        }
    }

    /// Closes what [`Self::open_loops`] opened.
    pub(super) fn close_loops(&mut self, blocks: usize) {
        for _ in 0..blocks {
            self.close();
        }
        if self.view.as_ref().is_some_and(|view| !view.parallel) {
            self.look_along(None);
        }
        self.lane = 0;
    }

    /// Opens the loops over a phase's axes; the number returned says how many blocks to close.
    pub(super) fn open_loops(&mut self, phase: usize, axes: &[usize]) -> usize {
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
    pub(super) fn open_once(&mut self, team: Team) {
        let live = if team.rows > 1 { " && live" } else { "" };
        self.open(&format!("if me == 0u{live}"));
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
