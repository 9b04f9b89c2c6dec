//! Which variant of a kernel to launch, decided when its sizes are known.
//!
//! With numbers instead of symbols the offsets of a kernel are plain: which are affine in the axes, which stores are dense,
//! how far every index reaches. The same look also shows that 32 bits are enough for all of them.

use cupola_ir::kernel::{
    Access, AxisId, BufferDecl, BufferId, Expr, ExprId, Extent, Index, IndexId, Kernel, Phase,
    Store, StoreKind,
};

use crate::canonical::canonical;
use crate::choice::DeviceModel;
use crate::device::Forms;
use crate::emit::lanes::{LANES, LaneView};
use crate::emit::phase::{phase_axes, phase_stores, roots};
use crate::emit::{
    Join, Mapping, Part, THREADS, TILE, TILE_PITCH, Team, Variant, can_fault, element_of,
    partial_words, stores, tree_bytes,
};

/// A kernel with its sizes bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// What to launch instead of the kernel; with [`Self::sizes`] it computes the same.
    pub kernel: Kernel,
    /// Its sizes.
    pub sizes: Vec<i64>,
    /// The variant to launch; which buffers are shared is known only at the launch.
    pub variant: Variant,
    /// Parallel positions; under [`Mapping::Tiles`] tiles.
    pub positions: u32,
    /// Parts that the phases of each position are divided in.
    pub parts: u32,
    /// What to launch, in order, with the workgroups of each.
    pub launches: Vec<(Part, u64)>,
    /// Bytes of the partial results between launches; 0 for one launch.
    pub partial_size: u64,
}

/// Why a kernel cannot run with these sizes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// *Limit*: an index or the number of positions needs more than 31 bits.
    #[error("an index reaches {reach}, which is beyond 32 bits")]
    TooLarge {
        /// How far.
        reach: i128,
    },
    /// *Our bug*: a size is missing.
    #[error("size {at} is not given")]
    MissingSize {
        /// Position.
        at: u32,
    },
}

/// Work inside a position from which a workgroup shares it.
const SHARED_WORK: i64 = 32;

/// Lengths from which on loads along another axis go through tiles.
const TILE_WORTH: i64 = 16;

/// How much longer loads must take that lie apart, for tiles to pay: they cost two barriers.
const TILE_GAIN: f64 = 1.5;

/// Distance up to which neighbouring threads still share most of what they load.
const NEAR_STEP: i64 = 4;

/// Elements from which on a part of a phase is worth a workgroup of its own.
const PART_WORK: i64 = 4096;

/// Most parts of a phase: every later phase reads the results of all.
const MOST_PARTS: i64 = 512;

/// Positions that neighbouring threads have in [`Team::across`]: 128 bytes of 32-bit elements.
const COLUMNS: u32 = 32;

/// Bytes of most elements.
const WORD: f64 = 4.0;

/// Workgroup memory that every device has.
const WORKGROUP_MEMORY: u32 = 16 << 10;

/// An index as a sum over axes, with sizes bound.
#[derive(Clone, PartialEq, Eq)]
struct Affine {
    base: i64,
    /// Factor of each axis.
    factors: Vec<i64>,
}

/// A kernel seen with its sizes.
struct Sight<'k> {
    kernel: &'k Kernel,
    sizes: &'k [i64],
    lens: Vec<i64>,
    affine: Vec<Option<Affine>>,
}

/// Binds `sizes` and chooses for a device.
///
/// # Errors
/// [`BindError`].
pub fn bind(kernel: &Kernel, sizes: &[i64], device: &DeviceModel) -> Result<Bound, BindError> {
    let lens = lens(kernel, sizes)?;
    product(lens[..kernel.parallel].iter().copied())?;
    let (kernel, sizes) = canonical(kernel, sizes, &lens);
    let mut sight = Sight {
        kernel: &kernel,
        sizes: &sizes,
        lens: self::lens(&kernel, &sizes)?,
        affine: Vec::new(),
    };
    let positions = product(sight.lens[..kernel.parallel].iter().copied())?;
    let natural = sight.check_reach()?;
    for at in 0..kernel.indices.len() {
        let affine = sight.affine_of(kernel.indices[at]);
        sight.affine.push(affine);
    }
    let plain = device.forms == Forms::Plain;
    let worth_tiles = !plain && device.rates.threading.apart >= TILE_GAIN;
    let (mapping, tiled) = match sight.tiles().filter(|_| worth_tiles) {
        Some((other, tiled)) => (
            Mapping::Tiles {
                other,
                fours: false,
            },
            tiled,
        ),
        None if plain => (Mapping::default(), Vec::new()),
        None => (sight.mapping(positions, device)?, Vec::new()),
    };
    let aligned = sizes.iter().map(|size| size % i64::from(LANES) == 0);
    let mut variant = Variant {
        mapping,
        aligned: aligned.collect(),
        natural,
        tiled,
        ..Variant::default()
    };
    if !plain {
        sight.share_words(&mut variant, device)?;
    }
    let groups = match variant.mapping {
        Mapping::Threads { lanes, .. } => (positions as u64).div_ceil(u64::from(THREADS * lanes)),
        Mapping::Group(team) => (positions as u64).div_ceil(u64::from(team.rows)),
        Mapping::Tiles { other, .. } => sight.tile_count(other, positions),
    };
    let parts = sight.parts(variant.mapping, groups, device)?;
    let partial_size = match parts {
        1 => 0,
        _ => u64::from(partial_words(&kernel).max(1) * parts) * positions as u64 * 4,
    };
    Ok(Bound {
        launches: launches(&kernel, groups, parts),
        positions: match variant.mapping {
            Mapping::Tiles { .. } => groups as u32,
            Mapping::Threads { .. } | Mapping::Group(_) => positions as u32,
        },
        variant,
        parts,
        partial_size,
        kernel,
        sizes,
    })
}

/// One launch, or with parts one for each phase with axes and one for what is left.
fn launches(kernel: &Kernel, groups: u64, parts: u32) -> Vec<(Part, u64)> {
    if groups == 0 {
        return Vec::new();
    }
    if parts == 1 {
        return vec![(Part::Whole, groups)];
    }
    let phases = kernel.phases.iter().enumerate();
    let along = phases.filter(|(_, phase)| !phase_axes(phase).is_empty());
    let mut launches: Vec<_> = along
        .map(|(number, _)| (Part::Phase(number), groups * u64::from(parts)))
        .collect();
    let rest = |phase: &Phase| phase_axes(phase).is_empty() && !phase_stores(phase).is_empty();
    if kernel.phases.iter().any(rest) {
        launches.push((Part::Rest, groups));
    }
    launches
}

/// Lengths of the axes.
fn lens(kernel: &Kernel, sizes: &[i64]) -> Result<Vec<i64>, BindError> {
    let len = |&extent: &Extent| Ok(len_of(sizes, extent)?.max(0));
    kernel.axes.iter().map(len).collect()
}

fn len_of(sizes: &[i64], extent: Extent) -> Result<i64, BindError> {
    match extent {
        Extent::Const(len) => Ok(len),
        Extent::Size(at) => sizes
            .get(at as usize)
            .copied()
            .ok_or(BindError::MissingSize { at }),
    }
}

/// A product that fits 31 bits.
fn product(mut factors: impl Iterator<Item = i64>) -> Result<i64, BindError> {
    let product = factors.try_fold(1i128, |product, factor| {
        product.checked_mul(i128::from(factor))
    });
    let product = product.unwrap_or(i128::MAX);
    if product > i128::from(i32::MAX) {
        Err(BindError::TooLarge { reach: product })
    } else {
        Ok(product as i64)
    }
}

impl Sight<'_> {
    fn phase_len(&self, axes: &[AxisId]) -> Result<i64, BindError> {
        product(axes.iter().map(|axis| self.lens[axis.0 as usize]))
    }

    /// Bounds of every index; none may need more than 32 bits with a sign. Says of each whether it is never negative.
    fn check_reach(&self) -> Result<Vec<bool>, BindError> {
        let mut reach: Vec<(i128, i128)> = Vec::with_capacity(self.kernel.indices.len());
        for &index in &self.kernel.indices {
            let of = |id: IndexId| reach[id.0 as usize];
            let bounds = match index {
                Index::Const(value) => (i128::from(value), i128::from(value)),
                Index::Size(at) => {
                    let size = i128::from(len_of(self.sizes, Extent::Size(at))?);
                    (size, size)
                }
                Index::Axis(axis) => (0, i128::from(self.lens[axis.0 as usize] - 1).max(0)),
                Index::Add(x, y) => (of(x).0 + of(y).0, of(x).1 + of(y).1),
                Index::Sub(x, y) => (of(x).0 - of(y).1, of(x).1 - of(y).0),
                Index::Mul(x, y) => {
                    let ((a, b), (c, d)) = (of(x), of(y));
                    let corners = [a * c, a * d, b * c, b * d];
                    (
                        corners.into_iter().fold(i128::MAX, i128::min),
                        corners.into_iter().fold(i128::MIN, i128::max),
                    )
                }
                Index::Div(x, y) => {
                    let ((low, high), (least, _)) = (of(x), of(y));
                    let least = least.max(1);
                    (
                        if low < 0 { low.div_euclid(least) } else { 0 },
                        if high > 0 { high / least } else { 0 },
                    )
                }
                Index::Rem(_, y) => (0, (of(y).1 - 1).max(0)),
                Index::Min(x, y) => (of(x).0.min(of(y).0), of(x).1.min(of(y).1)),
                Index::Max(x, y) => (of(x).0.max(of(y).0), of(x).1.max(of(y).1)),
                Index::Checked { extent, .. } => (0, (of(extent).1 - 1).max(0)),
            };
            let (low, high) = bounds;
            if low < i128::from(i32::MIN) || high > i128::from(i32::MAX) {
                return Err(BindError::TooLarge {
                    reach: if low < i128::from(i32::MIN) {
                        low
                    } else {
                        high
                    },
                });
            }
            reach.push(bounds);
        }
        Ok(reach.iter().map(|&(low, _)| low >= 0).collect())
    }

    fn constant(&self, base: i64) -> Affine {
        Affine {
            base,
            factors: vec![0; self.lens.len()],
        }
    }

    fn affine_of(&self, index: Index) -> Option<Affine> {
        let of = |id: IndexId| self.affine[id.0 as usize].as_ref();
        let is_constant = |affine: &Affine| affine.factors.iter().all(|&factor| factor == 0);
        let combine = |x: &Affine, y: &Affine, sign: i64| Affine {
            base: x.base + sign * y.base,
            factors: x
                .factors
                .iter()
                .zip(&y.factors)
                .map(|(x, y)| x + sign * y)
                .collect(),
        };
        match index {
            Index::Const(value) => Some(self.constant(value)),
            Index::Size(at) => self.sizes.get(at as usize).map(|&size| self.constant(size)),
            Index::Axis(axis) => {
                let mut affine = self.constant(0);
                // An axis of length 1 stays at 0.
                affine.factors[axis.0 as usize] = i64::from(self.lens[axis.0 as usize] != 1);
                Some(affine)
            }
            Index::Add(x, y) => Some(combine(of(x)?, of(y)?, 1)),
            Index::Sub(x, y) => Some(combine(of(x)?, of(y)?, -1)),
            Index::Mul(x, y) => {
                let (x, y) = (of(x)?, of(y)?);
                let (scale, affine) = if is_constant(x) {
                    (x.base, y)
                } else {
                    (y.base, x)
                };
                (is_constant(x) || is_constant(y)).then(|| Affine {
                    base: affine.base * scale,
                    factors: affine.factors.iter().map(|factor| factor * scale).collect(),
                })
            }
            Index::Div(x, y) => {
                let (x, y) = (of(x)?, of(y)?);
                let divisor = y.base;
                let exact = is_constant(y) && divisor > 0 && x.base % divisor == 0;
                (exact && x.factors.iter().all(|factor| factor % divisor == 0)).then(|| Affine {
                    base: x.base / divisor,
                    factors: x.factors.iter().map(|factor| factor / divisor).collect(),
                })
            }
            Index::Rem(..) | Index::Min(..) | Index::Max(..) | Index::Checked { .. } => None,
        }
    }

    /// An elementwise kernel's axis along which some of its loads are contiguous, where the last one is not: it and those
    /// loads, as far as workgroup memory holds their tiles.
    fn tiles(&self) -> Option<(usize, Vec<u32>)> {
        let inner = self.kernel.parallel.checked_sub(1)?;
        let elementwise = self.kernel.parallel == self.lens.len();
        if !elementwise || self.rereads() || self.lens[inner] < TILE_WORTH {
            return None;
        }
        let most = (WORKGROUP_MEMORY / (TILE * TILE_PITCH * 8)) as usize;
        (0..inner)
            .filter(|&axis| self.lens[axis] >= TILE_WORTH)
            .find_map(|axis| {
                let along = |&at: &usize| self.is_across(self.kernel.exprs[at], inner, axis);
                let loads = (0..self.kernel.exprs.len()).filter(along);
                let loads: Vec<u32> = loads.map(|at| at as u32).take(most).collect();
                (!loads.is_empty()).then_some((axis, loads))
            })
    }

    /// Whether a load may find what a store of the same launch wrote: a buffer is written and read, other than by whom writes
    /// over an element and before that.
    fn rereads(&self) -> bool {
        let last = self.kernel.last_stores();
        let reread = |(at, buffer): (usize, &BufferDecl)| {
            let id = BufferId(at as u32);
            let own = |store: &&Store| store.buffer == id && store.kind == StoreKind::Set;
            let once = last.iter().filter(|store| store.buffer == id).count() == 1;
            let over = |store: &Store| once && self.kernel.reads_only_at(id, store.index);
            buffer.access == Access::ReadWrite && !last.iter().find(own).is_some_and(over)
        };
        self.kernel.buffers.iter().enumerate().any(reread)
    }

    /// Whether an expression is a load that steps by one along `other` and by more than a few along `inner`.
    fn is_across(&self, expr: Expr, inner: usize, other: usize) -> bool {
        let Expr::Load {
            buffer,
            index,
            guard: None,
        } = expr
        else {
            return false;
        };
        if self.kernel.buffers[buffer.0 as usize].access != Access::Read {
            return false;
        }
        let affine = self.affine[index.0 as usize].as_ref();
        affine.is_some_and(|affine| {
            affine.factors[other] == 1 && affine.factors[inner].abs() > NEAR_STEP
        })
    }

    fn tile_count(&self, other: usize, positions: i64) -> u64 {
        let inner = self.lens.len() - 1;
        let [a, b] = [other, inner].map(|axis| self.lens[axis].max(1));
        let rest = positions / (a * b);
        let tiles = |len: i64| (len as u64).div_ceil(u64::from(TILE));
        rest as u64 * tiles(a) * tiles(b)
    }

    fn stores_narrow(&self) -> bool {
        stores(self.kernel).any(|(_, store)| {
            let element = element_of(self.kernel.buffers[store.buffer.0 as usize].dtype);
            element.is_none_or(|element| element.bits() < 32)
        })
    }

    /// The longest phase.
    fn work(&self) -> Result<i64, BindError> {
        let mut lens = (self.kernel.phases.iter()).map(|phase| self.phase_len(phase_axes(phase)));
        lens.try_fold(1, |work, len| Ok(work.max(len?)))
    }

    /// How the work of each position is shared.
    fn mapping(&self, positions: i64, device: &DeviceModel) -> Result<Mapping, BindError> {
        let work = self.work()?;
        if work < SHARED_WORK {
            return Ok(Mapping::default());
        }
        let near = self.inner_is_near();
        let team = self.team(positions, work, near, device);
        Ok(match self.gains(team, positions, work, near, device) {
            true => Mapping::Group(team),
            false => Mapping::default(),
        })
    }

    /// Whether a team is predicted to take less time than a thread for each position.
    fn gains(
        &self,
        team: Team,
        positions: i64,
        work: i64,
        near: bool,
        device: &DeviceModel,
    ) -> bool {
        let (positions, work) = (positions as f64, work as f64);
        let threading = &device.rates.threading;
        let moved = positions * work * WORD / device.rates.copy;
        let apart = if near { threading.apart } else { 1.0 };
        let alone = moved * apart / (positions / device.busy_threads() as f64).min(1.0);
        let barriers = match team.join {
            Join::Within => 0,
            Join::Subgroups => 2,
            Join::Tree => 1 + (team.threads / team.rows).ilog2(),
        };
        let reductions = self.kernel.phases.iter();
        let reductions = reductions
            .filter(|phase| matches!(phase, Phase::Reduce { .. }))
            .count();
        let met = positions / f64::from(team.rows) * f64::from(team.threads * barriers);
        let waited = met * reductions as f64 * threading.barrier / f64::from(device.rates.cores);
        moved + waited < alone
    }

    /// The threads that would share the work of a position.
    fn team(&self, positions: i64, work: i64, near: bool, device: &DeviceModel) -> Team {
        // At most what the workgroup memory holds.
        let fitting = WORKGROUP_MEMORY / tree_bytes(self.kernel).max(1);
        let most = 1 << fitting.clamp(1, THREADS).ilog2();
        let power = |len: i64| {
            len.clamp(1, i64::from(THREADS))
                .cast_unsigned()
                .next_power_of_two() as u32
        };
        match near {
            true => {
                // Two vectors for each thread where that leaves enough threads.
                let each = match positions.saturating_mul(work / 8) as u64 >= device.busy_threads()
                {
                    true => 8,
                    false => 4,
                };
                let size = power((work + each - 1) / each).min(most);
                let rows = power(positions).min(most / size);
                // Half a subgroup of the widest is the least that a workgroup should have.
                let size = size.max(32u32.min(most) / rows);
                self.joined(size, rows, device)
            }
            false => {
                let rows = COLUMNS.min(power(positions)).min(most);
                let size = (most / rows).min(power(work / 4));
                Team {
                    threads: rows * size,
                    rows,
                    across: true,
                    join: Join::Tree,
                }
            }
        }
    }

    /// A workgroup of teams whose threads are neighbours.
    fn joined(&self, size: u32, rows: u32, device: &DeviceModel) -> Team {
        let join = match device.features.subgroups {
            Some((least, _)) if size <= least => Join::Within,
            Some(_) if rows == 1 => Join::Subgroups,
            _ => Join::Tree,
        };
        Team {
            threads: size * rows,
            rows,
            across: false,
            join,
        }
    }

    /// Parts of each phase where workgroups for the positions alone leave the device idle.
    fn parts(&self, mapping: Mapping, groups: u64, device: &DeviceModel) -> Result<u32, BindError> {
        let wanted = 4 * device.busy_groups();
        let Mapping::Group(team) = mapping else {
            return Ok(1);
        };
        let buffers = self.kernel.buffers.len() as u32 + 1 + u32::from(can_fault(self.kernel));
        if groups == 0
            || groups >= wanted
            || buffers > device.limits.storage_buffers
            || self.rereads()
        {
            return Ok(1);
        }
        let worth = self.work()? * i64::from(team.rows) / PART_WORK;
        let parts = i64::try_from(wanted / groups).unwrap_or(MOST_PARTS);
        Ok(parts.min(worth).clamp(1, MOST_PARTS) as u32)
    }

    /// Whether more loads step by one along the phases' innermost axes than by little along the innermost parallel axis.
    fn inner_is_near(&self) -> bool {
        let inner: Vec<usize> = self
            .kernel
            .phases
            .iter()
            .filter_map(|phase| {
                let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) = phase;
                axes.last().map(|axis| axis.0 as usize)
            })
            .collect();
        let (mut near, mut far) = (0, 0);
        for expr in &self.kernel.exprs {
            let Expr::Load { index, .. } = expr else {
                continue;
            };
            let Some(affine) = &self.affine[index.0 as usize] else {
                continue;
            };
            let outer = self.kernel.parallel.checked_sub(1);
            let step = outer.map_or(0, |axis| affine.factors[axis].abs());
            // Windows that overlap or nearly touch are near either way.
            if step > 0 && step <= NEAR_STEP {
                far += 1;
            } else if inner.iter().any(|&axis| affine.factors[axis].abs() == 1) {
                near += 1;
            }
        }
        near >= far
    }

    /// Lets threads take several neighbours where that makes vectors or whole words of what they load and store.
    fn share_words(&self, variant: &mut Variant, device: &DeviceModel) -> Result<(), BindError> {
        let loops = self.kernel.parallel < self.lens.len();
        // Where it costs nothing to read apart, fewer threads with longer loops are just fewer threads.
        if !loops || device.rates.threading.apart >= TILE_GAIN {
            self.take_fours(variant);
        }
        if matches!(variant.mapping, Mapping::Tiles { fours: false, .. }) && self.stores_narrow() {
            // Single elements would be stored atomically; rows of them make words.
            variant.mapping = Mapping::default();
            variant.tiled.clear();
        }
        let in_words = match variant.mapping {
            Mapping::Threads { fours, .. } => !fours,
            Mapping::Group(_) => true,
            Mapping::Tiles { .. } => false,
        };
        if in_words {
            variant.words = self.words(variant)?;
        }
        if let Mapping::Threads {
            lanes,
            fours: false,
        } = &mut variant.mapping
        {
            *lanes = self.lanes(variant.words);
        }
        Ok(())
    }

    /// Lets threads take four positions where that makes vectors of what they load and store. A buffer is all vectors where
    /// it is stored to, so blocks are looked at again until all agree.
    fn take_fours(&self, variant: &mut Variant) {
        for (at, buffer) in self.kernel.buffers.iter().enumerate().take(64) {
            let len = len_of(self.sizes, buffer.len).unwrap_or(0);
            // A last part of a vector would be out of reach.
            let whole = len > 0 && len % i64::from(LANES) == 0;
            variant.wide |= u64::from(whole) << at;
        }
        loop {
            let blocks = self.blocks(variant);
            let narrowed = self.stores_outside(variant, &blocks);
            variant.wide &= !narrowed;
            if narrowed == 0 {
                variant.wide &= self.buffers_of(variant, &blocks);
                for (axis, phases) in blocks {
                    match (axis < self.kernel.parallel, &mut variant.mapping) {
                        (true, Mapping::Threads { lanes, fours }) => {
                            (*lanes, *fours) = (LANES, true);
                        }
                        (true, Mapping::Tiles { fours, .. }) => *fours = true,
                        _ => phases.for_each(|phase| variant.fours |= 1 << phase),
                    }
                }
                return;
            }
        }
    }

    /// The axes along which threads take four positions, each with the phases that run along it.
    fn blocks(&self, variant: &Variant) -> Vec<(usize, std::ops::Range<usize>)> {
        let phases = &self.kernel.phases;
        let candidates: Vec<(usize, std::ops::Range<usize>)> = match variant.mapping {
            Mapping::Threads { .. } | Mapping::Tiles { .. } => {
                let axis = self.kernel.parallel.checked_sub(1);
                axis.map(|axis| (axis, 0..phases.len()))
                    .into_iter()
                    .collect()
            }
            Mapping::Group(_) => {
                let last = |phase: usize| Some(phase_axes(&phases[phase]).last()?.0 as usize);
                (0..phases.len().min(64))
                    .filter_map(|phase| Some((last(phase)?, phase..phase + 1)))
                    .collect()
            }
        };
        let pays = |(axis, range): &(usize, std::ops::Range<usize>)| {
            let whole = self.lens[*axis] % i64::from(LANES) == 0;
            let view = LaneView::new(self.kernel, *axis, &variant.aligned, variant.wide);
            let own = &phases[range.clone()];
            let roots: Vec<_> = own.iter().flat_map(roots).collect();
            let stores: Vec<Store> = own.iter().flat_map(phase_stores).copied().collect();
            whole && view.pays(self.kernel, &roots, &stores, variant.wide)
        };
        candidates.into_iter().filter(pays).collect()
    }

    /// Buffers held as vectors that a store reaches otherwise.
    fn stores_outside(&self, variant: &Variant, blocks: &[(usize, std::ops::Range<usize>)]) -> u64 {
        let mut outside = 0;
        for (phase, store) in stores(self.kernel) {
            let block = blocks.iter().find(|(_, phases)| phases.contains(&phase));
            let four = block.is_some_and(|&(axis, _)| {
                LaneView::new(self.kernel, axis, &variant.aligned, variant.wide).stores_four(
                    self.kernel,
                    store,
                    variant.wide,
                )
            });
            if !four && (store.buffer.0 as usize) < 64 {
                outside |= variant.wide & 1 << store.buffer.0;
            }
        }
        outside
    }

    /// Buffers that these blocks reach with vectors.
    fn buffers_of(&self, variant: &Variant, blocks: &[(usize, std::ops::Range<usize>)]) -> u64 {
        let mut used = 0;
        for (axis, phases) in blocks {
            let view = LaneView::new(self.kernel, *axis, &variant.aligned, variant.wide);
            for (at, expr) in self.kernel.exprs.iter().enumerate() {
                if let Expr::Load { buffer, .. } = expr
                    && view.is_four(ExprId(at as u32))
                {
                    used |= 1 << buffer.0;
                }
            }
            let own = self.kernel.phases[phases.clone()].iter();
            for store in own.flat_map(phase_stores) {
                if view.stores_four(self.kernel, store, variant.wide) {
                    used |= 1 << store.buffer.0;
                }
            }
        }
        used
    }

    /// The stores whose words belong to one thread each.
    fn words(&self, variant: &Variant) -> Result<u64, BindError> {
        let mapping = variant.mapping;
        let mut words = 0u64;
        let mut plain = vec![false; self.kernel.buffers.len()];
        for (ordinal, (phase, store)) in stores(self.kernel).enumerate() {
            let in_vectors = phase < 64 && variant.fours >> phase & 1 == 1;
            if ordinal < 64 && !in_vectors && self.makes_words(mapping, phase, store)? {
                words |= 1 << ordinal;
            } else {
                plain[store.buffer.0 as usize] = true;
            }
        }
        for (ordinal, (_, store)) in stores(self.kernel).enumerate().take(64) {
            if plain[store.buffer.0 as usize] {
                words &= !(1 << ordinal);
            }
        }
        Ok(words)
    }

    fn makes_words(
        &self,
        mapping: Mapping,
        phase: usize,
        store: &Store,
    ) -> Result<bool, BindError> {
        let element = element_of(self.kernel.buffers[store.buffer.0 as usize].dtype);
        let per_word = element.map_or(1, |element| element.per_word());
        if per_word == 1 || store.guard.is_some() || store.kind != StoreKind::Set {
            return Ok(false);
        }
        let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) = &self.kernel.phases[phase];
        let whole = match (axes.is_empty(), mapping) {
            (true, Mapping::Threads { .. } | Mapping::Tiles { .. }) => true,
            (true, Mapping::Group(_)) => false,
            (false, _) => self.phase_len(axes)? % i64::from(per_word) == 0,
        };
        Ok(whole && self.is_dense(store.index, axes))
    }

    /// Whether an index is the row-major position within the parallel axes followed by `axes`.
    fn is_dense(&self, index: IndexId, axes: &[AxisId]) -> bool {
        let Some(affine) = &self.affine[index.0 as usize] else {
            return false;
        };
        let order = (0..self.kernel.parallel).chain(axes.iter().map(|axis| axis.0 as usize));
        let mut want = vec![0; self.lens.len()];
        let mut step = 1i64;
        for axis in order.collect::<Vec<_>>().into_iter().rev() {
            if self.lens[axis] != 1 {
                want[axis] = step;
            }
            step = step.saturating_mul(self.lens[axis]);
        }
        affine.base == 0 && affine.factors == want
    }

    /// Positions of a thread: as many as fill a word of the narrowest result.
    fn lanes(&self, words: u64) -> u32 {
        let per_word = stores(self.kernel)
            .enumerate()
            .take(64)
            .map(|(ordinal, (phase, store))| {
                let (Phase::Reduce { axes, .. } | Phase::Store { axes, .. }) =
                    &self.kernel.phases[phase];
                let element = element_of(self.kernel.buffers[store.buffer.0 as usize].dtype);
                match words >> ordinal & 1 == 1 && axes.is_empty() {
                    true => element.map_or(1, |element| element.per_word()),
                    false => 1,
                }
            });
        per_word.max().unwrap_or(1)
    }
}
