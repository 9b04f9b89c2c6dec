//! A left operand that is gathered: its rows are the elements of a window, its columns the windows of all images, which are
//! never stored. Rows are read in runs of neighbouring channels.

use super::pack::{Panel, put};
use crate::isa::Isa;
use crate::library::simd::{Float, Kernel, MAX_LANES, Simd, dispatch};
use crate::library::view::{Element, View};
use crate::library::window::Window;
use smallvec::SmallVec;

/// Elements of windows over images of channels that are neighbours in memory: row `tap * channels + channel`, column
/// `(image, depth, height, width)` of the window.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a, T> {
    from: *const T,
    /// Elements between images, and between places along each dimension.
    image: usize,
    steps: [usize; 3],
    window: &'a Window,
    /// Windows in each dimension.
    counts: [usize; 3],
    images: usize,
    channels: usize,
}

// SAFETY: readers only; the borrow of the view is kept by the caller of the product.
unsafe impl<T: Sync> Send for Windows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Windows<'_, T> {}

/// Windows whose places are looked up at a time.
const CHUNK: usize = 64;

/// Neighbouring rows that are neighbours in memory.
struct Run {
    /// The first of them in the panel.
    lane: usize,
    len: usize,
    /// From the first element of a window.
    offset: usize,
}

impl<'a, T: Element> Windows<'a, T> {
    /// Windows over `images`, `[batch, depth, height, width, channels]`; `None` where the channels are not neighbours in memory or
    /// windows reach into padding.
    pub fn new(images: &View<'a, T, 5>, window: &'a Window) -> Option<Windows<'a, T>> {
        let ([count, _, _, _, channels], [image, depth, height, width, channel]) =
            (images.shape(), images.strides());
        let is_inside = window.pad_begin == [0; 3] && window.pad_end == [0; 3];
        (is_inside && (channel == 1 || channels <= 1)).then_some(Windows {
            from: images.as_ptr(),
            image,
            steps: [depth, height, width],
            window,
            counts: window.output(),
            images: count,
            channels,
        })
    }

    /// Elements of a window.
    pub fn rows(&self) -> usize {
        self.window.volume() * self.channels
    }

    /// Windows.
    pub fn inner(&self) -> usize {
        self.images * self.counts.iter().product::<usize>()
    }

    /// Channels of a tap.
    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// The first element of all images.
    pub(super) fn start(&self) -> *const T {
        self.from
    }

    /// Windows of a line, which are neighbours along the last dimension.
    pub(super) fn line(&self) -> usize {
        self.counts[2]
    }

    /// Elements from one window of a line to the next.
    pub(super) fn step(&self) -> usize {
        self.window.stride[2] * self.steps[2]
    }

    /// Elements from the first one to where a line of windows, counted over all images, begins.
    pub(super) fn line_start(&self, line: usize) -> usize {
        let mut place = [0];
        self.places(line * self.counts[2], &mut place);
        place[0]
    }

    /// Elements from the first one of a window to a tap.
    pub(super) fn tap(&self, tap: usize) -> usize {
        let [_, high, wide] = self.window.kernel;
        let taps = [tap / (high * wide), tap / wide % high, tap % wide];
        (0..3)
            .map(|d| taps[d] * self.window.dilation[d] * self.steps[d])
            .sum()
    }

    /// The runs of a panel's rows.
    fn runs(&self, first: usize, count: usize) -> impl Iterator<Item = Run> {
        // A vector holds the rows of any panel, so that runs fit into one, and the last one's zeros fill the panel.
        let channels = self.channels;
        // Taps along the last dimension may be neighbours too.
        let run = match self.window.dilation[2] * self.steps[2] == channels {
            true => self.window.kernel[2] * channels,
            false => channels,
        };
        let mut lane = 0;
        std::iter::from_fn(move || {
            let row = first + lane;
            let len = (count - lane).min(run - row % run);
            let (tap, channel) = (row / channels, row % channels);
            lane += len;
            (len > 0).then(|| Run {
                lane: lane - len,
                len,
                offset: self.tap(tap) + channel,
            })
        })
    }

    /// Where windows from number `first` on begin, as many as there are places for.
    fn places(&self, first: usize, places: &mut [usize]) {
        let [_, high, wide] = self.counts;
        let stride = self.window.stride;
        let mut left = places;
        let mut at = first;
        while !left.is_empty() {
            let (row, x) = (at / wide, at % wide);
            let (z, y) = (row / high, row % high);
            let (image, z) = (z / self.counts[0], z % self.counts[0]);
            let start =
                image * self.image + z * stride[0] * self.steps[0] + y * stride[1] * self.steps[1];
            let len = (wide - x).min(left.len());
            let (here, rest) = left.split_at_mut(len);
            for (k, place) in here.iter_mut().enumerate() {
                *place = start + (x + k) * stride[2] * self.steps[2];
            }
            left = rest;
            at += len;
        }
    }

    /// Calls `pack` with the first word of the panel, the windows' places and the runs of its rows, for some windows after the
    /// other; a word is made of `GROUP` windows.
    #[inline(always)]
    fn for_each<W, const GROUP: usize>(
        &self,
        panel: &Panel<W>,
        mut pack: impl FnMut(usize, &[usize], &[Run]),
    ) {
        let runs: SmallVec<[Run; MAX_LANES]> = self.runs(panel.first, panel.count).collect();
        let end = ((panel.start + panel.words) * GROUP).min(self.inner());
        let mut places = [0; CHUNK];
        for first in (panel.start * GROUP..end).step_by(CHUNK) {
            let places = &mut places[..CHUNK.min(end - first)];
            self.places(first, places);
            pack(first / GROUP - panel.start, places, &runs);
        }
    }

    /// Packs elements of another type of the same layout.
    pub(super) fn pack_same<W: Element>(&self, panel: &Panel<W>) {
        debug_assert_eq!(size_of::<T>(), size_of::<W>());
        let from = self.from.cast::<W>();
        self.clear(panel);
        self.for_each::<W, 1>(panel, |word, places, runs| {
            for (k, place) in places.iter().enumerate() {
                for run in runs {
                    let to = panel.to.wrapping_add((word + k) * panel.height + run.lane);
                    let from = from.wrapping_add(place + run.offset);
                    // SAFETY: the run lies inside the images; the panel has places for it.
                    unsafe { from.copy_to_nonoverlapping(to, run.len) };
                }
            }
        });
    }

    /// Zeros at the places of a panel that stand for no row.
    fn clear<W: Element>(&self, panel: &Panel<W>) {
        for word in 0..panel.words {
            for lane in panel.count..panel.height {
                // SAFETY: the destination has `height` places for each word.
                unsafe {
                    panel.to.add(word * panel.height + lane).write(W::zeroed());
                }
            }
        }
    }
}

impl<T: Float> Windows<'_, T> {
    /// Packs floats as f32 words.
    pub(super) fn pack_floats(&self, isa: Isa, panel: &Panel<f32>) {
        dispatch(
            isa,
            PackFloats {
                windows: self,
                panel,
            },
        );
    }

    /// Packs floats as words of two bf16, neighbouring windows. The processor multiplies bf16 ([`Isa::bf16`]).
    pub(super) fn pack_pairs(&self, isa: Isa, panel: &Panel<u32>) {
        dispatch(
            isa,
            PackPairs {
                windows: self,
                panel,
            },
        );
    }
}

struct PackFloats<'a, T> {
    windows: &'a Windows<'a, T>,
    panel: &'a Panel<f32>,
}

impl<T: Float> Kernel for PackFloats<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackFloats { windows, panel } = self;
        windows.for_each::<f32, 1>(panel, |word, places, runs| {
            for (k, place) in places.iter().enumerate() {
                for run in runs {
                    let at = (word + k) * panel.height + run.lane;
                    let from = windows.from.wrapping_add(place + run.offset);
                    // SAFETY: the run lies inside the images; the panel has places for it.
                    unsafe {
                        let v = T::load_first_or_all(s, from, run.len);
                        put(s, panel, at, panel.height - run.lane, v);
                    }
                }
            }
        });
    }
}

struct PackPairs<'a, T> {
    windows: &'a Windows<'a, T>,
    panel: &'a Panel<u32>,
}

impl<T: Float> Kernel for PackPairs<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackPairs { windows, panel } = self;
        let panel = &panel.with(panel.to.cast());
        windows.for_each::<f32, 2>(panel, |word, places, runs| {
            for (k, pair) in places.chunks(2).enumerate() {
                for run in runs {
                    let at = (word + k) * panel.height + run.lane;
                    let from = |place: &usize| windows.from.wrapping_add(place + run.offset);
                    // SAFETY: as for floats; pairs are only made where there are instructions for them.
                    unsafe {
                        let odd = pair.get(1).map(from);
                        let v = T::load_pairs(s, from(&pair[0]), odd, run.len);
                        put(s, panel, at, panel.height - run.lane, v);
                    }
                }
            }
        });
    }
}

impl Windows<'_, f32> {
    /// Packs floats rounded to `N` as f32 words.
    pub(super) fn pack_rounded<N: Float>(&self, isa: Isa, panel: &Panel<f32>) {
        self.pack_floats(isa, panel);
        // SAFETY: the destination has that many words.
        let words = unsafe { std::slice::from_raw_parts_mut(panel.to, panel.words * panel.height) };
        for word in words {
            *word = N::narrow(*word).widen();
        }
    }
}
