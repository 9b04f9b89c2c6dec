//! Regions keep their values on the device: results are those of the reference, and the host waits for a device only for
//! what it has to know.
//!
//! The CPU is always tried, a GPU where `CUPOLA_TEST_REQUIRE_GPU` is set.

use cupola_ir::graph::text::parse;
use cupola_ir::{DType, Tensor, Value};
use cupola_runtime::{
    CompileOptions, DeviceSpec, Host, Program, Recording, RunLimits, RunStats, Session,
};
use std::sync::Arc;

fn program(text: &str, device: &DeviceSpec) -> Arc<Program> {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    cupola_ir::graph::verify(&graph).expect("a valid graph");
    let options = CompileOptions {
        device: device.clone(),
        threads: 1,
        verify: true,
        no_fallback: true,
        ..CompileOptions::default()
    };
    let program = Program::compile(graph, &Host::new(), &options);
    Arc::new(program.unwrap_or_else(|e| panic!("{e}")))
}

fn devices() -> Vec<DeviceSpec> {
    let gpu = std::env::var_os("CUPOLA_TEST_REQUIRE_GPU").map(|_| DeviceSpec::Gpu(0));
    std::iter::once(DeviceSpec::Cpu).chain(gpu).collect()
}

type Named = Vec<(String, Value)>;

fn session_run(session: &mut Session, inputs: &[(&str, Tensor)]) -> (Named, RunStats) {
    let inputs = inputs.iter().map(|(n, t)| (*n, t.clone().into()));
    let outputs = session.run(inputs.collect()).expect("a run");
    (outputs, session.stats())
}

fn run(text: &str, device: &DeviceSpec, inputs: &[(&str, Tensor)]) -> (Named, RunStats) {
    session_run(&mut Session::new(program(text, device)), inputs)
}

/// Runs on every device, twice, and gives the most that one waited. Results are those of the reference.
fn check(text: &str, inputs: &[(&str, Tensor)]) -> u64 {
    let (want, _) = run(text, &DeviceSpec::Reference, inputs);
    let mut waits = 0;
    for device in devices() {
        let mut session = Session::new(program(text, &device));
        for _ in 0..2 {
            let (got, stats) = session_run(&mut session, inputs);
            assert_eq!(got, want, "{device}");
            waits = waits.max(stats.waits);
        }
        session.state_mut().recording = Some(Recording::new());
        let (got, _) = session_run(&mut session, inputs);
        assert_eq!(got, want, "{device}, recorded");
        let recording = session.state_mut().recording.take().expect("a recording");
        assert!(!recording.events.is_empty());
    }
    waits
}

fn ramp(shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i: usize| (i % 64) as f32 * 0.25 - 4.0)
        .collect();
    Tensor::from_slice(shape, &values).expect("a tensor")
}

/// Sums rows: gives the last sum and all on the way.
fn sums(columns: usize) -> String {
    format!(
        r#"graph @sums {{
      %0 = input {{name: "start", ty: f32[{columns}]}} : f32[{columns}] "start"
      %1 = input {{name: "rows", ty: f32[$n, {columns}]}} : f32[$n, {columns}] "rows"
      %2 = map(%1) {{f: "neg"}}
      %3, %4 = scan(%0, %2) {{body: graph @body {{
        %0 = input {{name: "sum", ty: f32[{columns}]}} : f32[{columns}] "sum"
        %1 = input {{name: "row", ty: f32[{columns}]}} : f32[{columns}] "row"
        %2 = map(%0, %1) {{f: "add"}}
        return "next" = %2, "seen" = %2
      }}, carried: 1, scanned: 1, results: [f32[{columns}], f32[$m, {columns}]], binds: [$m]}}
      return "last" = %3, "all" = %4
    }}"#
    )
}

#[test]
fn a_scan_reads_and_writes_rows_in_place_without_waiting() {
    // Rows that launches can be given in place, rows that cannot be, and one.
    for columns in [64, 3, 70] {
        let text = sums(columns);
        for rows in [1, 5, 300] {
            let inputs = [
                ("start", ramp(&[columns])),
                ("rows", ramp(&[rows, columns])),
            ];
            assert!(check(&text, &inputs) <= 1, "{columns} columns, {rows} rows");
        }
        let inputs = [("start", ramp(&[columns])), ("rows", ramp(&[0, columns]))];
        assert!(check(&text, &inputs) <= 2);
    }
}

#[test]
fn rows_of_broken_words_are_right() {
    let text = r#"graph @bytes {
      %0 = input {name: "start", ty: bool[3]} : bool[3] "start"
      %1 = input {name: "rows", ty: bool[$n, 3]} : bool[$n, 3] "rows"
      %2 = map(%1) {f: "not"}
      %3, %4 = scan(%0, %2) {body: graph @body {
        %0 = input {name: "sum", ty: bool[3]} : bool[3] "sum"
        %1 = input {name: "row", ty: bool[3]} : bool[3] "row"
        %2 = map(%0, %1) {f: "xor"}
        return "next" = %2, "seen" = %2
      }, carried: 1, scanned: 1, results: [bool[3], bool[$m, 3]], binds: [$m]}
      return "last" = %3, "all" = %4
    }"#;
    let bits = |shape: &[usize]| {
        let bits = (0..shape.iter().product()).map(|i: usize| u8::from(i % 3 == 1 || i % 7 == 2));
        let bytes = bits.collect::<Vec<u8>>().into();
        Tensor::new(DType::Bool, shape.to_vec(), bytes).expect("a tensor")
    };
    let (start, rows) = (bits(&[3]), bits(&[40, 3]));
    assert!(check(text, &[("start", start), ("rows", rows)]) <= 3);
}

/// Exchanges two values, one halved and with the iteration's number added, while `condition` makes the value of number `last` true of the
/// number `%0` and the value `%9`.
fn exchange((condition, last): (&str, usize)) -> String {
    format!(
        r#"graph @exchange {{
      %0 = input {{name: "trips", ty: i64[]}} : i64[] "trips"
      %1 = input {{name: "a", ty: f32[5]}} : f32[5] "a"
      %2 = input {{name: "b", ty: f32[5]}} : f32[5] "b"
      %3 = map(%2) {{f: "neg"}}
      %4 = map(%3) {{f: "abs"}}
      %5 = const {{value: tensor bool[] [true]}}
      %6, %7, %8, %9 = loop(%0, %5, %1, %2, %4) {{body: graph @body {{
        %0 = input {{name: "i", ty: i64[]}} : i64[] "i"
        %1 = input {{name: "a", ty: f32[5]}} : f32[5] "a"
        %2 = input {{name: "b", ty: f32[5]}} : f32[5] "b"
        %3 = input {{name: "c", ty: f32[5]}} : f32[5] "c"
        %4 = const {{value: tensor f32[5] [0.5, 0.5, 0.5, 0.5, 0.5]}}
        %5 = map(%1, %4) {{f: "mul"}}
        %6 = cast(%0) {{to: f32, saturate: false}}
        %7 = reshape(%6) {{dims: [1]}}
        %8 = broadcast(%7) {{dims: [5]}}
        %9 = map(%5, %8) {{f: "add"}}
        {condition}
        return "go" = %{last}, "a" = %2, "b" = %9, "c" = %3, "seen" = %9
      }}, carried: 3, results: [f32[5], f32[5], f32[5], f32[$k, 5]], binds: [$k]}}
      return "a" = %6, "b" = %7, "c" = %8, "all" = %9
    }}"#
    )
}

/// While a value of the device is below a limit.
const BY_DEVICE: (&str, usize) = (
    r#"
        %10 = const {value: tensor f32[] [120.0]}
        %11 = slice(%9) {starts: [2], steps: [1], dims: [1]}
        %12 = reshape(%11) {dims: []}
        %13 = map(%12, %10) {f: "lt"}
        %14 = map(%13, %13) {f: "and"}"#,
    14,
);

/// While the iteration's number is below a limit.
const BY_HOST: (&str, usize) = (
    r#"
        %10 = const {value: tensor i64[] [99]}
        %11 = const {value: tensor i64[] [1]}
        %12 = map(%0, %11) {f: "add"}
        %13 = map(%12, %10) {f: "le"}
        %14 = map(%13, %13) {f: "and"}"#,
    14,
);

const ALWAYS: (&str, usize) = ("%10 = const {value: tensor bool[] [true]}", 10);

#[test]
fn a_loop_waits_for_no_more_than_its_condition() {
    let inputs = |trips: i64| {
        [
            ("trips", Tensor::scalar(trips)),
            ("a", ramp(&[5])),
            ("b", ramp(&[5])),
        ]
    };
    for trips in [0, 1, 2, 17, 300] {
        assert!(check(&exchange(ALWAYS), &inputs(trips)) <= 1, "{trips}");
    }
    for trips in [5, 1000] {
        assert!(check(&exchange(BY_HOST), &inputs(trips)) <= 1, "{trips}");
    }
    for trips in [3, 20, i64::MAX] {
        let waits = check(&exchange(BY_DEVICE), &inputs(trips));
        // It ends after some 120 iterations.
        assert!(waits <= 30, "{trips}: {waits} waits");
    }
}

#[test]
fn branches_and_loops_inside_each_other_hand_values_on() {
    let text = r#"graph @nested {
      %0 = input {name: "x", ty: f32[2, 3]} : f32[2, 3] "x"
      %1 = input {name: "trips", ty: i64[]} : i64[] "trips"
      %2 = const {value: tensor bool[] [true]}
      %3 = map(%0) {f: "abs"}
      %4, %5 = loop(%1, %2, %3, %0) {body: graph @outer {
        %0 = input {name: "i", ty: i64[]} : i64[] "i"
        %1 = input {name: "v", ty: f32[2, 3]} : f32[2, 3] "v"
        %2 = input {name: "x", ty: f32[2, 3]} : f32[2, 3] "x"
        %3 = const {value: tensor i64[] [2]}
        %4 = map(%0, %3) {f: "rem"}
        %5 = const {value: tensor i64[] [0]}
        %6 = map(%4, %5) {f: "eq"}
        %7 = if(%6, %1, %2) {then_branch: graph @then {
          %0 = input {name: "v", ty: f32[2, 3]} : f32[2, 3] "v"
          %1 = input {name: "x", ty: f32[2, 3]} : f32[2, 3] "x"
          return "v" = %0
        }, else_branch: graph @else {
          %0 = input {name: "v", ty: f32[2, 3]} : f32[2, 3] "v"
          %1 = input {name: "x", ty: f32[2, 3]} : f32[2, 3] "x"
          %2 = map(%0, %1) {f: "add"}
          return "v" = %2
        }, results: [f32[2, 3]], binds: []}
        %8, %9 = scan(%7, %7) {body: graph @inner {
          %0 = input {name: "v", ty: f32[2, 3]} : f32[2, 3] "v"
          %1 = input {name: "row", ty: f32[3]} : f32[3] "row"
          %2 = reshape(%1) {dims: [1, 3]}
          %3 = broadcast(%2) {dims: [2, 3]}
          %4 = map(%0, %3) {f: "max"}
          %5 = map(%1) {f: "neg"}
          return "v" = %4, "row" = %5
        }, carried: 1, scanned: 1, results: [f32[2, 3], f32[2, 3]], binds: []}
        %10 = const {value: tensor bool[] [true]}
        return "go" = %10, "v" = %8, "rows" = %9
      }, carried: 1, results: [f32[2, 3], f32[$k, 2, 3]], binds: [$k]}
      return "v" = %4, "all" = %5
    }"#;
    for trips in [0i64, 1, 9] {
        let inputs = [("x", ramp(&[2, 3])), ("trips", Tensor::scalar(trips))];
        let waits = check(text, &inputs);
        assert!(waits <= 1, "{trips}: {waits} waits");
    }
}

#[test]
fn limits_hold_where_nothing_waits() {
    for device in devices() {
        let mut session = Session::new(program(&exchange(BY_HOST), &device));
        let inputs = [
            ("trips", Tensor::scalar(i64::MAX)),
            ("a", ramp(&[5])),
            ("b", ramp(&[5])),
        ];
        let mut run = |limits: RunLimits| {
            session.state_mut().limits = limits;
            let inputs = inputs.iter().map(|(n, t)| (*n, t.clone().into()));
            session.run(inputs.collect())
        };
        let few = RunLimits {
            trips: Some(50),
            ..RunLimits::default()
        };
        let error = run(few).expect_err("99 iterations").to_string();
        assert!(error.contains("iterations"), "{device}: {error}");
        let small = RunLimits {
            memory: Some(4 << 10),
            ..RunLimits::default()
        };
        assert!(run(small).is_err(), "{device}");
        assert!(run(RunLimits::default()).is_ok(), "{device}");
    }
}

/// A product of what is carried and of what stays the same, in the order of axes in which it is stored or across it; sums are
/// small whole numbers, so that their order does not matter.
fn products(dtype: &str, across: bool) -> String {
    let (weights, axis) = if across { ("48, 48", 1) } else { ("48, 48", 0) };
    let narrow = |from: &str| format!("cast({from}) {{to: {dtype}, saturate: false}}");
    format!(
        r#"graph @products {{
      %0 = input {{name: "x", ty: f32[$rows, 48]}} : f32[$rows, 48] "x"
      %1 = input {{name: "w", ty: f32[{weights}]}} : f32[{weights}] "w"
      %2 = input {{name: "steps", ty: f32[$n, 48]}} : f32[$n, 48] "steps"
      %3 = {wide}
      %4, %5 = scan(%0, %2, %3) {{body: graph @body {{
        %0 = input {{name: "h", ty: f32[$rows, 48]}} : f32[$rows, 48] "h"
        %1 = input {{name: "step", ty: f32[48]}} : f32[48] "step"
        %2 = input {{name: "w", ty: {dtype}[{weights}]}} : {dtype}[{weights}] "w"
        %3 = {narrow}
        %4 = contract(%3, %2) {{lhs_batch: [], rhs_batch: [], lhs_contract: [1], rhs_contract: [{axis}], accum: f32, out: f32}}
        %5 = reshape(%1) {{dims: [1, 48]}}
        %6 = broadcast(%5) {{dims: [$rows, 48]}}
        %7 = map(%4, %6) {{f: "min"}}
        %8 = map(%7) {{f: "neg"}}
        %9 = map(%8, %6) {{f: "min"}}
        return "h" = %9, "seen" = %4
      }}, carried: 1, scanned: 1, results: [f32[$rows, 48], f32[$m, $rows, 48]], binds: [$m]}}
      return "last" = %4, "all" = %5
    }}"#,
        wide = narrow("%1"),
        narrow = narrow("%0"),
    )
}

#[test]
fn what_stays_the_same_is_packed_once_for_each_run_of_a_loop() {
    let whole = |shape: &[usize], kinds: usize, least: f32| {
        let len = shape.iter().product();
        let values = (0..len).map(|i: usize| (i * 7 % kinds) as f32 + least);
        let values: Vec<f32> = values.collect();
        Tensor::from_slice(shape, &values).expect("a tensor")
    };
    for (dtype, across) in [
        ("f32", false),
        ("f32", true),
        ("bf16", false),
        ("bf16", true),
    ] {
        let text = products(dtype, across);
        for (rows, steps) in [(20, 5), (1, 3), (37, 1)] {
            let x = whole(&[rows, 48], 5, -2.0);
            let steps = whole(&[steps, 48], 4, 1.0);
            // Each run has weights of its own, also where sizes are those of the last.
            for least in [-1.0, 0.0] {
                let w = whole(&[48, 48], 3, least);
                let inputs = [("x", x.clone()), ("w", w), ("steps", steps.clone())];
                check(&text, &inputs);
            }
        }
    }
}

#[test]
fn a_session_packs_the_weights_of_each_run() {
    let text = products("f32", true);
    let mut ours = Session::new(program(&text, &DeviceSpec::Cpu));
    for scale in [1.0f32, 2.0, -1.0] {
        let w: Vec<f32> = (0..48 * 48).map(|i| scale * (i % 3) as f32).collect();
        let inputs = [
            (
                "x",
                Tensor::from_slice(&[20, 48], &[1.0f32; 960]).expect("a tensor"),
            ),
            ("w", Tensor::from_slice(&[48, 48], &w).expect("a tensor")),
            (
                "steps",
                Tensor::from_slice(&[2, 48], &[3.0f32; 96]).expect("a tensor"),
            ),
        ];
        let (want, _) = run(&text, &DeviceSpec::Reference, &inputs);
        assert_eq!(session_run(&mut ours, &inputs).0, want);
    }
}
