//! Sorting and selecting along one dimension: values, positions, or the largest or smallest few.
//!
//! Order is total: NaN counts as larger than any number, all NaN are equal, `-0` equals `0`; equal elements keep their order. Each
//! line is copied as integers that compare alike, with its positions, sorted there, and copied back.

use half::{bf16, f16};

use super::Context;
use super::view::{Element, Shared, View, ViewMut, mismatch};
use crate::error::{Error, Result};

/// A type with a total order, given by integers.
pub trait Sortable: Element {
    /// Integers that compare as the elements do; equal exactly for equal elements.
    #[doc(hidden)]
    fn key(self) -> u64;
}

macro_rules! sortable_floats {
    ($($t:ty: $bits:ty, $nan:expr, $zero:expr;)*) => {
        $(impl Sortable for $t {
            #[inline(always)]
            fn key(self) -> u64 {
                if $nan(self) {
                    return u64::MAX;
                }
                // Positive numbers compare as their bits; the bits of negative ones run backwards.
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                let bits = if self == $zero { 0 } else { self.to_bits() };
                u64::from(if bits & SIGN == 0 { bits | SIGN } else { !bits })
            }
        })*
    };
}
sortable_floats! {
    f32: u32, f32::is_nan, 0.0;
    f64: u64, f64::is_nan, 0.0;
    f16: u16, f16::is_nan, f16::ZERO;
    bf16: u16, bf16::is_nan, bf16::ZERO;
}

macro_rules! sortable_integers {
    ($($t:ty: $key:expr;)*) => {
        $(impl Sortable for $t {
            #[inline(always)]
            fn key(self) -> u64 {
                $key(self)
            }
        })*
    };
}
sortable_integers! {
    u8: u64::from;
    u16: u64::from;
    u32: u64::from;
    u64: u64::from;
    i8: |x| (i64::from(x) as u64) ^ (1 << 63);
    i16: |x| (i64::from(x) as u64) ^ (1 << 63);
    i32: |x| (i64::from(x) as u64) ^ (1 << 63);
    i64: |x| (x as u64) ^ (1 << 63);
}

/// Which elements come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The smallest.
    Ascending,
    /// The largest, NaN before all.
    Descending,
}

/// Which elements of a line are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The first ones in order, in order. All of them is a sort.
    Sorted,
    /// The first ones in order, in the order of the line.
    InPlace,
}

/// Elements that a thread should have to sort.
const GRAIN: usize = 2048;

/// Takes from every line of `input`, `[outer, len, inner]` (a line is one along the middle dimension), its first `count` elements
/// in `order` and writes them and their positions in the line to `values` and `positions`, `[outer, count, inner]`, either of
/// which may be left out. Of equal elements, those that come first in the line are taken first. `count == len` sorts.
///
/// Errors: a `count` above `len`, extents that do not agree, out of memory.
pub fn select<T: Sortable>(
    cx: &Context,
    order: Order,
    selection: Selection,
    input: View<'_, T, 3>,
    values: Option<ViewMut<'_, T, 3>>,
    positions: Option<ViewMut<'_, i64, 3>>,
) -> Result<()> {
    let [outer, len, inner] = input.shape();
    let shapes = [
        values.as_ref().map(ViewMut::shape),
        positions.as_ref().map(ViewMut::shape),
    ];
    let Some(&count) = shapes.iter().flatten().map(|[_, count, _]| count).next() else {
        return Ok(());
    };
    for shape in shapes.into_iter().flatten() {
        if shape != [outer, count, inner] {
            return Err(mismatch(
                "output of a selection",
                shape,
                [outer, count, inner],
            ));
        }
    }
    if count > len {
        return Err(Error::Operand {
            what: "selection",
            reason: format!("{count} of only {len} elements"),
        });
    }
    if u32::try_from(len).is_err() {
        return Err(Error::Operand {
            what: "selection",
            reason: format!("{len} elements are more than 2^32 - 1"),
        });
    }
    if count == 0 {
        return Ok(());
    }
    let values = values.map(|view| (Shared(view.as_ptr()), view.strides()));
    let positions = positions.map(|view| (Shared(view.as_ptr()), view.strides()));
    let lines = outer * inner;
    let chunks = (lines * len / GRAIN)
        .clamp(1, 4 * cx.pool.threads())
        .min(lines);
    cx.try_run(chunks, |chunk| {
        let mut lent = cx.scratch.take::<Keyed>(len)?;
        let line = &mut lent.as_mut_slice::<Keyed>()[..len];
        for index in chunk * lines / chunks..(chunk + 1) * lines / chunks {
            let place =
                |strides: [usize; 3]| index / inner * strides[0] + index % inner * strides[2];
            let from = input.as_ptr().wrapping_add(place(input.strides()));
            for (position, keyed) in line.iter_mut().enumerate() {
                // SAFETY: the position is inside the line.
                let key = unsafe { *from.add(position * input.strides()[1]) }.key();
                *keyed = Keyed {
                    key: if order == Order::Ascending { key } else { !key },
                    position: position as u64,
                };
            }
            let chosen = choose(line, count, selection);
            for (at, keyed) in chosen.iter().enumerate() {
                let position = keyed.position as usize;
                // SAFETY: the positions are inside the line, the places inside the outputs; each line is one chunk's alone.
                unsafe {
                    if let Some((to, strides)) = values {
                        *to.get().add(place(strides) + at * strides[1]) =
                            *from.add(position * input.strides()[1]);
                    }
                    if let Some((to, strides)) = positions {
                        *to.get().add(place(strides) + at * strides[1]) = position as i64;
                    }
                }
            }
        }
        Ok(())
    })
}

/// An element as a key, with its position, which decides between equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Keyed {
    key: u64,
    position: u64,
}

/// Fraction of a line from which sorting all of it beats keeping a heap of the best.
const HEAP_FRACTION: usize = 8;

/// The first `count` elements, in the order that `selection` asks for.
fn choose(line: &mut [Keyed], count: usize, selection: Selection) -> &mut [Keyed] {
    if count < line.len() {
        if count == 1 {
            let first = line.iter().copied().min().unwrap_or(line[0]);
            line[0] = first;
        } else if count <= line.len() / HEAP_FRACTION {
            keep_smallest(line, count);
        } else {
            line.select_nth_unstable(count - 1);
        }
    }
    let chosen = &mut line[..count];
    match selection {
        // Positions make keys distinct, so an unstable sort is stable here.
        Selection::Sorted => chosen.sort_unstable(),
        Selection::InPlace => chosen.sort_unstable_by_key(|keyed| keyed.position),
    }
    chosen
}

/// Moves the `count` smallest elements to the front: a heap there, largest first, that each smaller element enters.
fn keep_smallest(line: &mut [Keyed], count: usize) {
    let (heap, rest) = line.split_at_mut(count);
    for root in (0..count / 2).rev() {
        sift_down(heap, root);
    }
    for keyed in rest {
        if *keyed < heap[0] {
            heap[0] = *keyed;
            sift_down(heap, 0);
        }
    }
}

fn sift_down(heap: &mut [Keyed], mut root: usize) {
    loop {
        let mut largest = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if child < heap.len() && heap[child] > heap[largest] {
                largest = child;
            }
        }
        if largest == root {
            return;
        }
        heap.swap(root, largest);
        root = largest;
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;
    use crate::library::testing::{Rng, contexts};

    /// Stable order by plain comparison, NaN last.
    fn compare<T: PartialOrd + Copy>(a: &T, b: &T) -> Ordering {
        let is_nan = |x: &T| x.partial_cmp(x).is_none();
        a.partial_cmp(b)
            .unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
    }

    fn check<T: Sortable + PartialOrd>(cx: &Context, sample: impl Fn(&mut Rng) -> T) {
        for (outer, len, inner) in [
            (1, 1, 1),
            (2, 7, 3),
            (1, 300, 2),
            (3, 0, 2),
            (0, 4, 1),
            (1, 1000, 1),
        ] {
            let mut rng = Rng::new(len as u64);
            let data: Vec<T> = (0..outer * len * inner).map(|_| sample(&mut rng)).collect();
            let input = View::dense("x", &data, [outer, len, inner]).expect("fits");
            for count in [0, 1, 2, len / 9, len / 2, len] {
                if count > len {
                    continue;
                }
                for order in [Order::Ascending, Order::Descending] {
                    for selection in [Selection::Sorted, Selection::InPlace] {
                        let mut values = vec![sample(&mut rng); outer * count * inner];
                        let mut positions = vec![-1i64; outer * count * inner];
                        let to_values =
                            ViewMut::dense("v", &mut values, [outer, count, inner]).expect("fits");
                        let to_positions =
                            ViewMut::dense("p", &mut positions, [outer, count, inner])
                                .expect("fits");
                        select(
                            cx,
                            order,
                            selection,
                            input,
                            Some(to_values),
                            Some(to_positions),
                        )
                        .expect("agrees");
                        for line in 0..outer * inner {
                            let (o, i) = (line / inner, line % inner);
                            let mut want: Vec<usize> = (0..len).collect();
                            want.sort_by(|&a, &b| {
                                let ordering = compare(&input.at([o, a, i]), &input.at([o, b, i]));
                                if order == Order::Ascending {
                                    ordering
                                } else {
                                    ordering.reverse()
                                }
                            });
                            want.truncate(count);
                            if selection == Selection::InPlace {
                                want.sort_unstable();
                            }
                            for (at, &want) in want.iter().enumerate() {
                                let index = (o * count + at) * inner + i;
                                assert_eq!(
                                    positions[index], want as i64,
                                    "{order:?} {selection:?} {count} of {len}"
                                );
                                let (got, want) = (values[index], input.at([o, want, i]));
                                assert_eq!(bytemuck::bytes_of(&got), bytemuck::bytes_of(&want));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_type() {
        let float = |rng: &mut Rng| match rng.below(12) {
            0 => f64::NAN,
            1 => -0.0,
            2 => 0.0,
            3 => f64::INFINITY,
            4 => f64::NEG_INFINITY,
            5 => -f64::NAN,
            _ => (rng.float() * 5.0).round().into(),
        };
        contexts(|cx| {
            check::<f32>(cx, |rng| float(rng) as f32);
            check::<f64>(cx, float);
            check::<f16>(cx, |rng| f16::from_f64(float(rng)));
            check::<bf16>(cx, |rng| bf16::from_f64(float(rng)));
            check::<i8>(cx, |rng| rng.next() as i8);
            check::<u8>(cx, |rng| rng.next() as u8);
            check::<i32>(cx, |rng| rng.next() as i32 >> 20);
            check::<i64>(cx, |rng| rng.next() as i64);
            check::<u64>(cx, |rng| rng.next());
        });
    }

    #[test]
    fn one_output_is_enough_and_disagreement_is_an_error() {
        contexts(|cx| {
            let data = [3, 1, 2];
            let input = View::new("x", &data, [1, 3, 1], [0, 1, 0]).expect("fits");
            let mut positions = [0i64; 4];
            let to = ViewMut::dense("p", &mut positions[..3], [1, 3, 1]).expect("fits");
            select(
                cx,
                Order::Ascending,
                Selection::Sorted,
                input,
                None,
                Some(to),
            )
            .expect("agrees");
            assert_eq!(positions, [1, 2, 0, 0]);
            let too_many = ViewMut::dense("p", &mut positions, [1, 4, 1]).expect("fits");
            assert!(
                select(
                    cx,
                    Order::Ascending,
                    Selection::Sorted,
                    input,
                    None,
                    Some(too_many)
                )
                .is_err()
            );
            let mut values = [0; 2];
            let two = ViewMut::dense("v", &mut values, [1, 2, 1]).expect("fits");
            let three = ViewMut::dense("p", &mut positions[..3], [1, 3, 1]).expect("fits");
            assert!(
                select(
                    cx,
                    Order::Ascending,
                    Selection::Sorted,
                    input,
                    Some(two),
                    Some(three)
                )
                .is_err()
            );
        });
    }
}
