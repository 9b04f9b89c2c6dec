//! Every operation of every level against plain arithmetic on lanes.

use half::{bf16, f16};

use super::*;

const SPECIAL: [f32; 24] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.1,
    2.5,
    3.5,
    -2.5,
    1e-40,
    -1e-45,
    3.4e38,
    -3.4e38,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    65504.0,
    65520.0,
    6e-8,
    2.9e-8,
    1.000_976_6,
    1.003_906_3,
    1.011_718_8,
    127.0,
    1e9,
];

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

struct All;

impl Kernel for All {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        check_transpose(s);
        for shift in 0..SPECIAL.len() {
            let lanes = |offset: usize| -> [f32; MAX_LANES] {
                std::array::from_fn(|lane| {
                    SPECIAL[(lane * 5 + shift * offset + offset) % SPECIAL.len()]
                })
            };
            check(s, lanes(1), lanes(7));
        }
    }
}

fn check<S: Simd>(s: S, x: [f32; MAX_LANES], y: [f32; MAX_LANES]) {
    let lanes = |v: S::F| {
        let mut out = [0f32; MAX_LANES];
        unsafe { s.store(out.as_mut_ptr(), v) };
        out
    };
    let (a, b) = unsafe { (s.load(x.as_ptr()), s.load(y.as_ptr())) };
    let expect = |name: &str, got: S::F, want: &dyn Fn(f32, f32) -> f32| {
        for lane in 0..S::LANES {
            let (got, want) = (lanes(got)[lane], want(x[lane], y[lane]));
            assert!(
                same(got, want),
                "{name}({}, {}): {got} instead of {want}",
                x[lane],
                y[lane]
            );
        }
    };
    expect("add", s.add(a, b), &|a, b| a + b);
    expect("sub", s.sub(a, b), &|a, b| a - b);
    expect("mul", s.mul(a, b), &|a, b| a * b);
    expect("div", s.div(a, b), &|a, b| a / b);
    expect("min", s.min(a, b), &|a, b| if a < b { a } else { b });
    expect("max", s.max(a, b), &|a, b| if a > b { a } else { b });
    expect("sqrt", s.sqrt(a), &|a, _| a.sqrt());
    expect("abs", s.abs(a), &|a, _| a.abs());
    expect("neg", s.neg(a), &|a, _| -a);
    expect("select", s.select(s.lt(a, b), a, b), &|a, b| {
        if a < b { a } else { b }
    });
    expect(
        "is_nan",
        s.select(s.is_nan(a), s.splat(1.0), s.splat(0.0)),
        &|a, _| if a.is_nan() { 1.0 } else { 0.0 },
    );
    expect(
        "shifts",
        s.float_of_bits(s.shl::<16>(s.shr::<16>(s.bits(a)))),
        &|a, _| f32::from_bits(a.to_bits() >> 16 << 16),
    );
    expect(
        "or",
        s.float_of_bits(s.or(s.bits(a), s.bits(b))),
        &|a, b| f32::from_bits(a.to_bits() | b.to_bits()),
    );
    for n in [-252.0, -149.0, -24.0, 0.0, 1.0, 127.0, 254.0] {
        // Exact below the subnormal range; there the two-step forms may round twice.
        let power = 2f64.powi(n as i32);
        let exact = |a: f32| (f64::from(a) * power) as f32;
        let got = lanes(s.scale(a, s.splat(n)));
        for lane in 0..S::LANES {
            let want = exact(x[lane]);
            let near = (got[lane] - want).abs() <= f32::from_bits(1) || same(got[lane], want);
            assert!(
                near,
                "scale({}, {n}): {} instead of {want}",
                x[lane], got[lane]
            );
        }
    }
    for lane in 0..S::LANES {
        if x[lane].abs() < 4e6 {
            let got = lanes(s.round(a))[lane];
            assert!(
                got == x[lane].round_ties_even(),
                "round({}): {got}",
                x[lane]
            );
            let product = lanes(s.mul_add(a, b, a))[lane];
            let want = f64::from(x[lane]) * f64::from(y[lane]) + f64::from(x[lane]);
            let close = (f64::from(product) - want).abs()
                <= 3e-7 * want.abs().max(f64::from(x[lane]).abs()) + 1e-44;
            assert!(
                close || !(want as f32).is_finite(),
                "mul_add({}, {}): {product}",
                x[lane],
                y[lane]
            );
        }
    }
    check_partial(s, x, a);
    check_half(s, x, a);
}

fn check_partial<S: Simd>(s: S, x: [f32; MAX_LANES], a: S::F) {
    for bits in [0u32, 1, 0x5A5A, 0x8421, 0xFFFF] {
        let mut back = [9f32; MAX_LANES];
        unsafe { s.store(back.as_mut_ptr(), f32::load_where(s, bits, x.as_ptr())) };
        let halves = x.map(f16::from_f32);
        let mut back_half = [9f32; MAX_LANES];
        unsafe {
            s.store(
                back_half.as_mut_ptr(),
                f16::load_where(s, bits, halves.as_ptr()),
            )
        };
        for lane in 0..S::LANES {
            let there = bits >> lane & 1 == 1;
            assert!(same(back[lane], if there { x[lane] } else { 0.0 }));
            assert!(same(
                back_half[lane],
                if there { halves[lane].to_f32() } else { 0.0 }
            ));
        }
    }
    for len in 0..=S::LANES {
        let mut out = [7f32; MAX_LANES];
        unsafe { s.store_first(out.as_mut_ptr(), len, a) };
        let mut back = [9f32; MAX_LANES];
        unsafe { s.store(back.as_mut_ptr(), s.load_first(x.as_ptr(), len)) };
        for lane in 0..S::LANES {
            assert!(same(out[lane], if lane < len { x[lane] } else { 7.0 }));
            assert!(same(back[lane], if lane < len { x[lane] } else { 0.0 }));
        }
        check_partial_of::<S, f16>(s, x, len);
        check_partial_of::<S, bf16>(s, x, len);
    }
    let finite: [f32; MAX_LANES] = std::array::from_fn(|lane| lane as f32 * 0.5 - 2.0);
    let v = unsafe { s.load(finite.as_ptr()) };
    assert_eq!(s.sum(v), finite[..S::LANES].iter().sum::<f32>());
    assert_eq!(s.largest(v), finite[S::LANES - 1]);
    assert!(s.any(s.lt(v, s.splat(-1.9))) && !s.any(s.lt(v, s.splat(-2.0))));
}

fn check_transpose<S: Simd>(s: S) {
    let element = |row: usize, col: usize| (row * 100 + col) as f32;
    let mut rows = [s.splat(0.0); MAX_LANES];
    for (row, v) in rows.iter_mut().enumerate() {
        let lanes: [f32; MAX_LANES] = std::array::from_fn(|col| element(row, col));
        *v = unsafe { s.load(lanes.as_ptr()) };
    }
    let (mut even, mut odd) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
    let (a, b) = s.unzip(rows[0], rows[1]);
    unsafe {
        s.store(even.as_mut_ptr(), a);
        s.store(odd.as_mut_ptr(), b);
    }
    for lane in 0..S::LANES {
        let at = |place: usize| element(place / S::LANES, place % S::LANES);
        assert_eq!((even[lane], odd[lane]), (at(2 * lane), at(2 * lane + 1)));
    }
    s.transpose(&mut rows);
    for (row, &v) in rows.iter().enumerate().take(S::LANES) {
        let mut lanes = [0f32; MAX_LANES];
        unsafe { s.store(lanes.as_mut_ptr(), v) };
        for (col, &got) in lanes.iter().enumerate().take(S::LANES) {
            assert_eq!(got, element(col, row));
        }
    }
}

fn check_partial_of<S: Simd, T: Float>(s: S, x: [f32; MAX_LANES], len: usize) {
    let stored = x.map(T::narrow);
    let mut back = [T::narrow(7.0); MAX_LANES];
    unsafe {
        T::store_first(
            s,
            back.as_mut_ptr(),
            len,
            T::load_first(s, stored.as_ptr(), len),
        )
    };
    for lane in 0..S::LANES {
        let want = if lane < len {
            stored[lane].widen()
        } else {
            7.0
        };
        assert!(same(back[lane].widen(), want), "{:?} {want}", back[lane]);
    }
}

fn check_half<S: Simd>(s: S, x: [f32; MAX_LANES], a: S::F) {
    let (mut halves, mut brains) = ([f16::ZERO; MAX_LANES], [bf16::ZERO; MAX_LANES]);
    let (mut from_half, mut from_brain) = ([0f32; MAX_LANES], [0f32; MAX_LANES]);
    unsafe {
        s.store_f16(halves.as_mut_ptr(), a);
        s.store_bf16(brains.as_mut_ptr(), a);
        s.store(from_half.as_mut_ptr(), s.load_f16(halves.as_ptr()));
        s.store(from_brain.as_mut_ptr(), s.load_bf16(brains.as_ptr()));
    }
    for lane in 0..S::LANES {
        assert!(
            same(from_half[lane], f16::from_f32(x[lane]).to_f32()),
            "f16 of {}: {}",
            x[lane],
            from_half[lane]
        );
        assert!(
            same(from_brain[lane], bf16::from_f32(x[lane]).to_f32()),
            "bf16 of {}: {}",
            x[lane],
            from_brain[lane]
        );
    }
}

#[test]
fn operations_agree_on_every_level() {
    for isa in Isa::available() {
        dispatch(isa, All);
    }
}
