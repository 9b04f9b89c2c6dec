//! Access patterns of generated kernels against the reference interpreter, at both tiers: what is loaded and stored as
//! vectors, what is not, and lengths that fit no vector.

mod common;

use cupola_backend::testing::run;
use cupola_ir::kernel::{Extent, Kernel, Unit, run_kernel, text};
use cupola_shaders::ParamSpace;
use cupola_wgpu::Forms;
use cupola_wgpu::choice::DeviceModel;
use cupola_wgpu::emit::{Join, Mapping, Part, Team, Variant, emit};
use cupola_wgpu::schedule;

/// Bytes that read as small numbers in every dtype used here, different from element to element.
fn fill(kernel: &Kernel, sizes: &[i64]) -> Vec<Vec<u8>> {
    let len = |extent: Extent| match extent {
        Extent::Const(len) => len,
        Extent::Size(at) => sizes[at as usize],
    };
    let buffers = kernel.buffers.iter();
    let bytes = buffers.map(|buffer| {
        let values = 0..len(buffer.len) as usize;
        match buffer.dtype.name() {
            "f32" => values
                .flat_map(|at| ((at * 7 % 61) as f32 * 0.25 - 5.0).to_le_bytes())
                .collect(),
            "f16" => values
                .flat_map(|at| half::f16::from_f32((at * 7 % 61) as f32 * 0.25 - 5.0).to_le_bytes())
                .collect(),
            "i64" => values
                .flat_map(|at| ((at * 5 % 11) as i64).to_le_bytes())
                .collect(),
            "i32" => values
                .flat_map(|at| ((at * 5 % 11) as i32).to_le_bytes())
                .collect(),
            "bool" => values.map(|at| u8::from(at % 3 == 0)).collect(),
            "u8" => values.map(|at| (at * 7 % 251) as u8).collect(),
            other => unreachable!("no test uses {other}"),
        }
    });
    bytes.collect()
}

fn assert_close(got: &[u8], want: &[u8], dtype: &str, what: &str) {
    if dtype != "f32" {
        assert!(got == want, "{what}");
        return;
    }
    let floats = |bytes: &[u8]| -> Vec<f32> {
        let words = bytes.as_chunks::<4>().0;
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    for (at, (got, want)) in floats(got).iter().zip(floats(want)).enumerate() {
        let close = (got - want).abs() <= 1e-5 * want.abs().max(1.0) || got == &want;
        assert!(close, "{what}: element {at} is {got}, should be {want}");
    }
}

/// Runs a kernel at both tiers and in its plain form and compares every buffer with the interpreter's; the plan that sizes led to.
fn check(source: &str, sizes: &[i64]) -> schedule::Bound {
    let kernel = text::parse(source).expect("a kernel");
    let mut want = fill(&kernel, sizes);
    let start = want.clone();
    run_kernel(&kernel, &mut want, sizes).expect("the interpreter runs it");
    let backends = common::backends().into_iter();
    for backend in backends.chain(common::plain_backend()) {
        let mut got = start.clone();
        run(&backend, &Unit::Loops(kernel.clone()), sizes, &mut got).expect("runs");
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            let dtype = kernel.buffers[at].dtype.name();
            let what = format!("{} with {sizes:?}, b{at}", kernel.name);
            assert_close(got, want, dtype, &what);
        }
    }
    let plain = DeviceModel {
        forms: Forms::Plain,
        ..DeviceModel::default()
    };
    let plain = schedule::bind(&kernel, sizes, &plain).expect("binds");
    assert_eq!(plain.variant.mapping, Mapping::default());
    assert_eq!((plain.variant.wide, plain.variant.words), (0, 0));
    assert!(plain.launches.len() <= 1);
    schedule::bind(&kernel, sizes, &DeviceModel::default()).expect("binds")
}

fn in_fours(bound: &schedule::Bound) -> bool {
    matches!(bound.variant.mapping, Mapping::Threads { fours: true, .. })
}

/// `y[i, j] = x[i, j] + z[j]` over run-time sizes, with a dtype for each.
fn bias(x: &str, z: &str, y: &str) -> String {
    format!(
        "kernel @bias {{\n  s0 = $n\n  s1 = $m\n  s2 = $n*$m\n  b0 = read {x}[s2]\n  b1 = read {z}[s1]\n  b2 = write {y}[s2]\n  \
         a0 = parallel s0\n  a1 = parallel s1\n  i0 = a0\n  i1 = a1\n  i2 = s1\n  i3 = i0 * i2\n  i4 = i3 + i1\n  \
         e0 = load b0[i4]\n  e1 = load b1[i1]\n  e2 = cast f32 e0\n  e3 = cast f32 e1\n  e4 = add(e2, e3)\n  \
         e5 = cast {y} e4\n  store [] {{b2[i4] = e5}}\n}}\n"
    )
}

#[test]
fn rows_plus_a_row() {
    for (n, m) in [
        (3, 8),
        (5, 12),
        (300, 64),
        (7, 5),
        (1, 4),
        (1, 1),
        (0, 4),
        (4, 0),
        (1, 1023),
    ] {
        let bound = check(&bias("f32", "f32", "f32"), &[n, m, n * m]);
        assert_eq!(in_fours(&bound), n * m > 0 && m % 4 == 0, "{n} x {m}");
    }
}

#[test]
fn narrow_elements_are_stored_as_whole_words() {
    for (x, z, y) in [
        ("f16", "f32", "f32"),
        ("f32", "f16", "f16"),
        ("u8", "f32", "f32"),
        ("f32", "u8", "f16"),
        ("u8", "u8", "u8"),
    ] {
        for (n, m) in [(3, 8), (9, 64), (3, 6), (7, 5)] {
            let bound = check(&bias(x, z, y), &[n, m, n * m]);
            assert_eq!(in_fours(&bound), m % 4 == 0, "{x} {z} {y} {n} x {m}");
        }
    }
}

/// Elements beside each other of two inputs, from a position on that may or may not be a multiple of four.
fn concat(dtype: &str, left: i64, right: i64) -> String {
    let all = left + right;
    format!(
        "kernel @concat {{\n  b0 = read {dtype}[{}]\n  b1 = read {dtype}[{}]\n  b2 = write {dtype}[{}]\n  \
         a0 = parallel 6\n  a1 = parallel {all}\n  i0 = a0\n  i1 = a1\n  i2 = {left}\n  i3 = {right}\n  i4 = {all}\n  \
         i5 = i0 * i2\n  i6 = i5 + i1\n  i7 = i1 - i2\n  i8 = i0 * i3\n  i9 = i8 + i7\n  i10 = i0 * i4\n  i11 = i10 + i1\n  \
         e0 = less(i1, i2)\n  e1 = load b0[i6] if e0\n  e2 = not(e0)\n  e3 = load b1[i9] if e2\n  \
         e4 = select(e0, e1, e3)\n  store [] {{b2[i11] = e4}}\n}}\n",
        6 * left,
        6 * right,
        6 * all
    )
}

#[test]
fn concatenated_rows() {
    for dtype in ["f32", "f16", "u8", "bool", "i64"] {
        for (left, right) in [(8, 4), (4, 12), (3, 5), (6, 6), (2, 3)] {
            let bound = check(&concat(dtype, left, right), &[]);
            let aligned = left % 4 == 0 && right % 4 == 0 && dtype != "i64";
            assert_eq!(in_fours(&bound), aligned, "{dtype} {left} + {right}");
        }
    }
}

#[test]
fn gathered_rows_are_vectors() {
    for (rows, depth) in [(7, 8), (5, 6), (1, 4)] {
        let source = format!(
            "kernel @rows {{\n  b0 = read i64[{rows}]\n  b1 = read f32[{}]\n  b2 = write f32[{}]\n  a0 = parallel {rows}\n  \
             a1 = parallel {depth}\n  i0 = a0\n  i1 = a1\n  i2 = 11\n  i3 = checked(e0, i2)\n  i4 = {depth}\n  i5 = i3 * i4\n  \
             i6 = i5 + i1\n  i7 = i0 * i4\n  i8 = i7 + i1\n  e0 = load b0[i0]\n  e1 = load b1[i6]\n  \
             store [] {{b2[i8] = e1}}\n}}\n",
            11 * depth,
            rows * depth
        );
        let bound = check(&source, &[]);
        assert_eq!(in_fours(&bound), depth % 4 == 0);
    }
}

/// `y[i, j] = x[j, i]`.
fn transpose(dtype: &str, rows: i64, cols: i64) -> String {
    format!(
        "kernel @transpose {{\n  b0 = read {dtype}[{len}]\n  b1 = write {dtype}[{len}]\n  a0 = parallel {rows}\n  \
         a1 = parallel {cols}\n  i0 = a0\n  i1 = a1\n  i2 = {rows}\n  i3 = {cols}\n  i4 = i1 * i2\n  i5 = i4 + i0\n  \
         i6 = i0 * i3\n  i7 = i6 + i1\n  e0 = load b0[i5]\n  e1 = neg(e0)\n  store [] {{b1[i7] = e1}}\n}}\n",
        len = rows * cols
    )
}

#[test]
fn transposed_matrices() {
    for dtype in ["f32", "f16", "i32"] {
        for (rows, cols) in [
            (8, 12),
            (64, 32),
            (33, 36),
            (5, 7),
            (100, 68),
            (1, 8),
            (40, 1),
            (47, 65),
        ] {
            let bound = check(&transpose(dtype, rows, cols), &[]);
            let whole = cols % 4 == 0 || dtype != "f16";
            let tiles = matches!(bound.variant.mapping, Mapping::Tiles { .. });
            assert_eq!(
                tiles,
                rows >= 16 && cols >= 16 && whole,
                "{dtype} {rows} x {cols}"
            );
        }
    }
}

/// `y[n, h, c] = x[n, c, h] + z[c] + x[n, c, 0]`: channels put last.
#[test]
fn channels_put_last() {
    for (images, channels, places) in [(3, 20, 49), (2, 17, 33), (1, 64, 64)] {
        let len = images * channels * places;
        let source = "kernel @last {\n  s0 = $n\n  s1 = $c\n  s2 = $p\n  s3 = $l\n  b0 = read f32[s3]\n  b1 = read f32[s1]\n               b2 = write f32[s3]\n  a0 = parallel s0\n  a1 = parallel s2\n  a2 = parallel s1\n  i0 = a0\n  i1 = a1\n               i2 = a2\n  i3 = s1\n  i4 = s2\n  i5 = i0 * i3\n  i6 = i5 + i2\n  i7 = i6 * i4\n  i8 = i7 + i1\n               i9 = i0 * i4\n  i10 = i9 + i1\n  i11 = i10 * i3\n  i12 = i11 + i2\n  e0 = load b0[i8]\n               e1 = load b1[i2]\n  e2 = load b0[i7]\n  e3 = add(e0, e1)\n  e4 = add(e3, e2)\n               store [] {b2[i12] = e4}\n}\n";
        let bound = check(source, &[images, channels, places, len]);
        assert!(matches!(bound.variant.mapping, Mapping::Tiles { .. }));
    }
}

/// Row sums, largest elements and their positions, with a second pass over each row.
fn row_reduction() -> &'static str {
    "kernel @rows {\n  s0 = $r\n  s1 = $c\n  s2 = $r*$c\n  b0 = read f32[s2]\n  b1 = write f32[s2]\n  \
         b2 = write i64[s0]\n  a0 = parallel s0\n  a1 = inner s1\n  a2 = inner s1\n  i0 = a0\n  i1 = a1\n  i2 = a2\n  \
         i3 = s1\n  i4 = i0 * i3\n  i5 = i4 + i1\n  i6 = i4 + i2\n  e0 = load b0[i5]\n  e1 = accum(0, 0)\n  \
         e2 = accum(0, 1)\n  e3 = accum(0, 2)\n  e4 = load b0[i6]\n  e5 = sub(e4, e1)\n  e6 = add(e5, e2)\n  \
         reduce [a1] {max e0, sum e0, argmax e0}\n  store [a2] {b1[i6] = e6}\n  store [] {b2[i0] = e3}\n}\n"
}

#[test]
fn rows_reduced() {
    for (rows, cols) in [
        (3, 64),
        (3, 63),
        (5, 1000),
        (2, 4096),
        (70, 33),
        (300, 32),
        (65, 128),
        (1, 5000),
        (9, 4),
        (4, 3),
        (2, 0),
        (0, 5),
    ] {
        check(row_reduction(), &[rows, cols, rows * cols]);
    }
}

/// Few long rows are divided among many workgroups, over several launches.
#[test]
fn long_rows_use_the_whole_device() {
    for (rows, cols) in [(1, 70_000), (3, 20_001), (1, 16_384)] {
        let bound = check(row_reduction(), &[rows, cols, rows * cols]);
        assert!(bound.parts > 1, "{rows} x {cols}");
        assert_eq!(bound.launches.len(), 3);
    }
    let whole = check(row_reduction(), &[600, 64, 600 * 64]);
    assert_eq!(whole.launches.len(), 1);
}

/// Every way to share and join rows is valid, and every graphics interface can be given it.
#[test]
fn every_form_is_portable() {
    let sizes = [5, 64, 320];
    let kernel = text::parse(row_reduction()).expect("a kernel");
    let bound = schedule::bind(&kernel, &sizes, &DeviceModel::default()).expect("binds");
    for (rows, across, join) in [
        (1, false, Join::Tree),
        (1, false, Join::Subgroups),
        (8, false, Join::Tree),
        (32, false, Join::Within),
        (32, true, Join::Tree),
    ] {
        for part in [Part::Whole, Part::Phase(0), Part::Phase(1), Part::Rest] {
            let mapping = Mapping::Group(Team {
                threads: 256,
                rows,
                across,
                join,
            });
            let variant = Variant {
                mapping,
                part,
                ..bound.variant.clone()
            };
            let shader = emit(&bound.kernel, variant).expect("writes");
            let checked = cupola_shaders::check::check(&shader, ParamSpace::Uniform);
            assert!(checked.is_ok(), "{mapping:?} {part:?}: {:?}", checked.err());
        }
    }
}

/// Sums over the outer axis, for each column.
fn column_reduction() -> &'static str {
    "kernel @columns {\n  s0 = $r\n  s1 = $c\n  s2 = $r*$c\n  b0 = read f32[s2]\n  b1 = write f32[s1]\n  b2 = write i64[s1]\n  \
     a0 = parallel s1\n  a1 = inner s0\n  i0 = a0\n  i1 = a1\n  i2 = s1\n  i3 = i1 * i2\n  i4 = i3 + i0\n  \
     e0 = load b0[i4]\n  e1 = accum(0, 0)\n  e2 = accum(0, 1)\n  reduce [a1] {sum e0, argmin_last e0}\n  \
     store [] {b1[i0] = e1, b2[i0] = e2}\n}\n"
}

#[test]
fn columns_reduced() {
    for (rows, cols) in [
        (64, 3),
        (40, 64),
        (1000, 36),
        (5, 70),
        (700, 1),
        (33, 33),
        (4096, 8),
        (3, 70_000),
    ] {
        check(column_reduction(), &[rows, cols, rows * cols]);
    }
}
