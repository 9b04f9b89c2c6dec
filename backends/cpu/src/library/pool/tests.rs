//! Pooling against plain loops.

use super::*;
use crate::library::testing::{Rng, contexts};
use crate::library::window::Taps;

fn windows() -> Vec<Window> {
    let taps = |kernel, stride, dilation, pads| Taps {
        kernel,
        stride,
        dilation,
        pads,
    };
    let make = |input: &[usize], taps: &[Taps]| Window::new(input, taps).expect("fine");
    vec![
        make(&[1], &[Taps::ONE]),
        make(&[7, 50], &[taps(3, 1, 1, [1, 1]), taps(3, 1, 1, [1, 1])]),
        make(&[9, 41], &[taps(3, 2, 1, [0, 1]), taps(2, 2, 1, [0, 0])]),
        make(&[8, 33], &[taps(2, 3, 2, [1, 0]), taps(3, 2, 3, [3, 1])]),
        make(
            &[4, 5, 6],
            &[
                taps(2, 2, 1, [0, 0]),
                taps(3, 1, 1, [1, 1]),
                taps(2, 3, 1, [1, 0]),
            ],
        ),
        make(&[5], &[taps(2, 7, 1, [0, 0])]),
        make(&[3], &[taps(2, 1, 1, [3, 3])]),
        make(&[0], &[taps(2, 1, 1, [1, 1])]),
        make(&[2], &[taps(5, 1, 1, [0, 0])]),
    ]
}

/// All elements of a window in order, with their coordinates.
fn elements(window: &Window, at: [usize; 3]) -> Vec<[usize; 3]> {
    let mut found = Vec::new();
    for tap in 0..window.volume() {
        let [_, y, x] = window.kernel;
        let taps = [tap / (y * x), tap / x % y, tap % x];
        let place: Vec<usize> = (0..3)
            .filter_map(|d| window.at(d, at[d], taps[d]))
            .collect();
        if let [z, y, x] = place[..] {
            found.push([z, y, x]);
        }
    }
    found
}

fn check<T: Ordered + Averaged + Float>(cx: &Context, window: &Window, windows: [usize; 3]) {
    let [depth, height, width] = window.input;
    let shape = [2, 3, depth, height, width];
    let mut rng = Rng::new(1);
    let data: Vec<T> = (0..6 * depth * height * width)
        .map(|index| {
            if index % 61 == 7 {
                T::narrow(f32::NAN)
            } else {
                T::narrow((rng.float() * 8.0).round())
            }
        })
        .collect();
    let input = View::dense("x", &data, shape).expect("fits");
    let count: usize = windows.iter().product();
    let to = [2, 3, windows[0], windows[1], windows[2]];
    let mut plain = vec![T::narrow(0.0); 6 * count];
    let (mut largest, mut mean) = (plain.clone(), plain.clone());
    let mut indices = vec![0i64; 6 * count];
    max_pool(
        cx,
        window,
        input,
        ViewMut::dense("y", &mut plain, to).expect("fits"),
    )
    .expect("agrees");
    for order in [IndexOrder::ColumnMajor, IndexOrder::RowMajor] {
        let output = ViewMut::dense("y", &mut largest, to).expect("fits");
        let index = ViewMut::dense("i", &mut indices, to).expect("fits");
        max_pool_with_indices(cx, window, input, output, index, order).expect("agrees");
    }
    for divisor in [Divisor::Input, Divisor::Padded] {
        let output = ViewMut::dense("y", &mut mean, to).expect("fits");
        average_pool(cx, window, divisor, input, output).expect("agrees");
        for plane in 0..6 {
            for index in 0..count {
                let at = [
                    index / (windows[1] * windows[2]),
                    index / windows[2] % windows[1],
                    index % windows[2],
                ];
                let inside = elements(window, at);
                let values = inside
                    .iter()
                    .map(|&[z, y, x]| input.at([plane / 3, plane % 3, z, y, x]).widen());
                let padded: usize = (0..3)
                    .map(|d| {
                        let end = window.pad_begin[d] + window.input[d] + window.pad_end[d];
                        let begin = at[d] * window.stride[d];
                        (0..window.kernel[d])
                            .filter(|tap| begin + tap * window.dilation[d] < end)
                            .count()
                    })
                    .product();
                let divisor = if divisor == Divisor::Input {
                    inside.len()
                } else {
                    padded
                };
                let want = if divisor == 0 {
                    0.0
                } else {
                    values.clone().sum::<f32>() / divisor as f32
                };
                let got = mean[plane * count + index].widen();
                let same = (got.is_nan() && want.is_nan())
                    || (got - want).abs() <= want.abs() * 0.01 + 1e-6;
                assert!(same, "{window:?} {at:?}: {got} instead of {want}");
                let want = values.fold(
                    f32::NEG_INFINITY,
                    |a, b| if a.is_nan() || b < a { a } else { b },
                );
                for got in [
                    plain[plane * count + index].widen(),
                    largest[plane * count + index].widen(),
                ] {
                    assert!(
                        got == want || (got.is_nan() && want.is_nan()),
                        "{window:?} {at:?}: {got} not {want}"
                    );
                }
                let first = inside.iter().find(|&&[z, y, x]| {
                    let value = input.at([plane / 3, plane % 3, z, y, x]).widen();
                    value == want || (value.is_nan() && want.is_nan())
                });
                let place = |&[z, y, x]: &[usize; 3]| {
                    (((plane * depth + z) * height + y) * width + x) as i64
                };
                assert_eq!(
                    indices[plane * count + index],
                    first.map_or(-1, place),
                    "{window:?} {at:?}"
                );
            }
        }
    }
}

#[test]
fn floats() {
    contexts(|cx| {
        for window in windows() {
            for count in [window.output(), window.output_with_partial()] {
                check::<f32>(cx, &window, count);
                check::<f16>(cx, &window, count);
            }
        }
    });
}

#[test]
fn other_types_and_strides() {
    contexts(|cx| {
        let taps = Taps {
            kernel: 2,
            stride: 1,
            dilation: 1,
            pads: [1, 0],
        };
        let window = Window::new(&[3], &[taps]).expect("fine");
        let data = [3i8, -5, 2, 9, -128, 7];
        // Columns are two elements apart.
        let input = View::new("x", &data, [1, 1, 1, 1, 3], [0, 0, 0, 0, 2]).expect("fits");
        let mut out = [0i8; 6];
        let output = ViewMut::new("y", &mut out, [1, 1, 1, 1, 3], [0, 0, 0, 0, 2]).expect("fits");
        max_pool(cx, &window, input, output).expect("agrees");
        assert_eq!(out, [3, 0, 3, 0, 2, 0]);
        let data = data.map(f64::from);
        let input = View::new("x", &data, [1, 1, 1, 1, 3], [0, 0, 0, 0, 2]).expect("fits");
        let mut out = [0f64; 3];
        let output = ViewMut::dense("y", &mut out, [1, 1, 1, 1, 3]).expect("fits");
        average_pool(cx, &window, Divisor::Padded, input, output).expect("agrees");
        assert_eq!(out, [1.5, 2.5, -63.0]);
        let data = data.map(|x| x as f32);
        let input = View::new("x", &data, [1, 1, 1, 1, 3], [0, 0, 0, 0, 2]).expect("fits");
        let mut out = [0f32; 6];
        let output = ViewMut::new("y", &mut out, [1, 1, 1, 1, 3], [0, 0, 0, 0, 2]).expect("fits");
        max_pool(cx, &window, input, output).expect("agrees");
        assert_eq!(out, [3.0, 0.0, 3.0, 0.0, 2.0, 0.0]);
        let output = ViewMut::dense("y", &mut out, [1, 1, 1, 1, 2]).expect("fits");
        assert!(max_pool(cx, &window, input, output).is_err());
    });
}
