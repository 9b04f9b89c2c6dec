//! Packing of input patches as right panels: a convolution as a product of weights `[out, in * taps]` and patches
//! `[in * taps, windows]` that are never stored as a whole.

use bytemuck::Pod;

use crate::isa::Isa;
use crate::library::gemm::pack::Panel;
use crate::library::simd::{Float, Kernel, Simd, dispatch};
use crate::library::view::Element;
use crate::library::window::Window;

/// The patches of one image and group. Windows are numbered in row-major order, inner positions as (channel, tap).
#[derive(Debug, Clone, Copy)]
pub(super) struct Patches<'a, T> {
    /// First element of the first channel of the group.
    pub from: *const T,
    /// Elements between channels.
    pub channel: usize,
    /// Elements between neighbours in each spatial dimension.
    pub strides: [usize; 3],
    pub window: &'a Window,
    /// Windows in each dimension.
    pub output: [usize; 3],
}

// SAFETY: readers only; the borrow of the input is kept by the caller.
unsafe impl<T: Sync> Send for Patches<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Patches<'_, T> {}

/// Walks over inner positions in order.
struct Cursor<'a> {
    window: &'a Window,
    channel_stride: usize,
    /// Elements between neighbouring taps.
    steps: [isize; 3],
    channel: usize,
    taps: [usize; 3],
}

impl<'a> Cursor<'a> {
    /// Stands on inner position `start`.
    fn new<T>(patches: &Patches<'a, T>, start: usize) -> Cursor<'a> {
        let window = patches.window;
        let [_, height, width] = window.kernel;
        let (channel, tap) = (start / window.volume(), start % window.volume());
        let steps = std::array::from_fn(|d| (window.dilation[d] * patches.strides[d]) as isize);
        let taps = [tap / (height * width), tap / width % height, tap % width];
        Cursor {
            window,
            channel_stride: patches.channel,
            steps,
            channel,
            taps,
        }
    }

    /// The offset to add to that of a column, and the columns that are inside the input; then goes on.
    #[inline(always)]
    fn next(&mut self, columns: &Columns) -> (isize, u32) {
        let [z, y, x] = self.taps;
        let bits = columns.inside[0][z] & columns.inside[1][y] & columns.inside[2][x];
        let spatial =
            z as isize * self.steps[0] + y as isize * self.steps[1] + x as isize * self.steps[2];
        let shift = (self.channel * self.channel_stride) as isize + spatial;
        for d in [2, 1, 0] {
            self.taps[d] += 1;
            if self.taps[d] < self.window.kernel[d] {
                return (shift, bits);
            }
            self.taps[d] = 0;
        }
        self.channel += 1;
        (shift, bits)
    }
}

/// Columns of the widest panel.
const MAX_COLS: usize = 32;
/// Taps in one dimension whose validity fits the table; more are decided one by one.
const MAX_TAPS: usize = 32;

/// What the columns of one panel have in common for all inner positions.
struct Columns {
    /// Offset of tap (0, 0, 0) of each window from the channel's first element; may be outside.
    offsets: [isize; MAX_COLS],
    /// Elements between neighbouring windows.
    step: usize,
    /// Runs of columns whose offsets are `step` apart: first column and number.
    runs: [(u8, u8); MAX_COLS],
    run_count: usize,
    /// For each dimension and tap, the columns whose tap is inside the input.
    inside: [[u32; MAX_TAPS]; 3],
}

impl<T: Element> Patches<'_, T> {
    fn columns(&self, first: usize, count: usize) -> Columns {
        let window = self.window;
        let step = window.stride[2].wrapping_mul(self.strides[2]);
        let mut columns = Columns {
            offsets: [0; MAX_COLS],
            step,
            runs: [(0, 0); MAX_COLS],
            run_count: 0,
            inside: [[0; MAX_TAPS]; 3],
        };
        let [_, height, width] = self.output;
        let mut at = [
            first / (height * width),
            first / width % height,
            first % width,
        ];
        for column in 0..count {
            let mut offset = 0;
            for (d, &at) in at.iter().enumerate() {
                let begin = (at * window.stride[d]) as isize - window.pad_begin[d] as isize;
                offset += begin * self.strides[d] as isize;
                for tap in window.inside(d, at) {
                    columns.inside[d][tap] |= 1 << column;
                }
            }
            columns.offsets[column] = offset;
            let continues = column > 0 && columns.offsets[column - 1] + step as isize == offset;
            if continues {
                columns.runs[columns.run_count - 1].1 += 1;
            } else {
                columns.runs[columns.run_count] = (column as u8, 1);
                columns.run_count += 1;
            }
            at[2] += 1;
            for d in [2, 1] {
                if at[d] == self.output[d] {
                    at[d] = 0;
                    at[d - 1] += 1;
                }
            }
        }
        columns
    }

    /// Whether the fast packers can hold the panel's geometry.
    fn fits(&self, panel_cols: usize) -> bool {
        panel_cols <= MAX_COLS && self.window.kernel.iter().all(|&taps| taps <= MAX_TAPS)
    }

    /// Packs element by element.
    ///
    /// # Safety
    /// The panel must lie inside the patches, the input be readable, and the destination writable.
    pub unsafe fn pack_any<W: Pod>(&self, panel: &Panel<W>, convert: impl Fn(T) -> W) {
        let window = self.window;
        let ([_, rows, cols], [_, kernel_rows, kernel_cols]) = (self.output, window.kernel);
        for word in 0..panel.words {
            let inner = panel.start + word;
            let (channel, tap) = (inner / window.volume(), inner % window.volume());
            let taps = [
                tap / (kernel_rows * kernel_cols),
                tap / kernel_cols % kernel_rows,
                tap % kernel_cols,
            ];
            for column in 0..panel.height {
                let index = panel.first + column;
                let at = [index / (rows * cols), index / cols % rows, index % cols];
                let place = || {
                    let mut offset = channel * self.channel;
                    for d in 0..3 {
                        offset += window.at(d, at[d], taps[d])? * self.strides[d];
                    }
                    Some(offset)
                };
                let offset = if column < panel.count { place() } else { None };
                // SAFETY: the offset is inside the input, the place inside the panel.
                unsafe {
                    let value =
                        offset.map_or(W::zeroed(), |offset| convert(*self.from.add(offset)));
                    *panel.to.add(word * panel.height + column) = value;
                }
            }
        }
    }
}

/// Packs floats as f32 words.
///
/// # Safety
/// As [`Patches::pack_any`].
pub(super) unsafe fn pack_patches<T: Float>(isa: Isa, patches: &Patches<T>, panel: &Panel<f32>) {
    if patches.fits(panel.height) {
        dispatch(isa, PackPatches { patches, panel });
    } else {
        // SAFETY: passed on.
        unsafe { patches.pack_any(panel, T::widen) };
    }
}

struct PackPatches<'a, T> {
    patches: &'a Patches<'a, T>,
    panel: &'a Panel<f32>,
}

impl<T: Float> Kernel for PackPatches<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackPatches { patches, panel } = self;
        let columns = patches.columns(panel.first, panel.count);
        if panel.count < panel.height {
            // SAFETY: the destination holds that many words.
            unsafe { panel.to.write_bytes(0, panel.words * panel.height) };
        }
        let in_vectors = (1..=2).contains(&columns.step) && columns.run_count * 4 <= panel.count;
        let whole = in_vectors && columns.run_count == 1 && panel.count == panel.height;
        let mut cursor = Cursor::new(patches, panel.start);
        for word in 0..panel.words {
            let (shift, bits) = cursor.next(&columns);
            let to = panel.to.wrapping_add(word * panel.height);
            // SAFETY: set bits tell which elements are inside the input; the panel has room for `height` words in each row.
            unsafe {
                if whole {
                    let from = patches.from.wrapping_offset(columns.offsets[0] + shift);
                    for lane in (0..panel.height).step_by(S::LANES) {
                        let from = from.wrapping_add(lane * columns.step);
                        s.store(
                            to.add(lane),
                            load_steps(s, columns.step, bits >> lane, from),
                        );
                    }
                } else if !in_vectors {
                    for column in 0..panel.count {
                        let from = patches
                            .from
                            .wrapping_offset(columns.offsets[column] + shift);
                        *to.add(column) = if bits >> column & 1 == 1 {
                            (*from).widen()
                        } else {
                            0.0
                        };
                    }
                } else {
                    copy_runs(s, patches, &columns, shift, bits, to);
                }
            }
        }
    }
}

/// Loads elements 1 or 2 apart whose bit is set, 0 for the others.
#[inline(always)]
unsafe fn load_steps<S: Simd, T: Float>(s: S, step: usize, bits: u32, from: *const T) -> S::F {
    // SAFETY: passed on; of elements 2 apart, those between them are masked out.
    unsafe {
        if step == 1 {
            return T::load_where(s, bits, from);
        }
        let spread = spread(bits);
        let low = T::load_where(s, spread, from);
        let high = T::load_where(
            s,
            (u64::from(spread) >> S::LANES) as u32,
            from.wrapping_add(S::LANES),
        );
        s.unzip(low, high).0
    }
}

/// The low 16 bits at even places, zeros between them.
#[inline(always)]
fn spread(bits: u32) -> u32 {
    let bits = bits & 0xFFFF;
    let bits = (bits | bits << 8) & 0x00FF_00FF;
    let bits = (bits | bits << 4) & 0x0F0F_0F0F;
    let bits = (bits | bits << 2) & 0x3333_3333;
    (bits | bits << 1) & 0x5555_5555
}

/// Copies one inner position run by run.
#[inline(always)]
unsafe fn copy_runs<S: Simd, T: Float>(
    s: S,
    patches: &Patches<T>,
    columns: &Columns,
    shift: isize,
    bits: u32,
    to: *mut f32,
) {
    for &(first, len) in &columns.runs[..columns.run_count] {
        let (first, len) = (usize::from(first), usize::from(len));
        let from = patches.from.wrapping_offset(columns.offsets[first] + shift);
        for lane in (0..len).step_by(S::LANES) {
            let places = (len - lane).min(S::LANES);
            let keep = if places == 32 {
                u32::MAX
            } else {
                (1 << places) - 1
            };
            // SAFETY: as for the caller; only elements of the run are read and written.
            unsafe {
                let v = load_steps(
                    s,
                    columns.step,
                    bits >> (first + lane) & keep,
                    from.wrapping_add(lane * columns.step),
                );
                s.store_first(to.add(first + lane), places, v);
            }
        }
    }
}
