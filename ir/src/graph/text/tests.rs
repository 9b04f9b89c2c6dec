use super::*;
use crate::error::IrError;
use crate::eval::random;
use crate::graph::verify;

/// Every kind of attribute, type, name and region.
const SAMPLE: &str = r#"graph @"a sample" {
  range $m: 0..9223372036854775807
  range $n: 1..4096 step 8
  slot "total": f32[] = tensor f32[] [0.5]
  %0 = input {name: "x", ty: f32[$n, 8]} : f32[$n, 8] "x"
  %1 = map(%0, %0) {f: "add"} : f32[$n, 8] "sum \"quoted\"\n" from ("model.onnx", "/add", "Add"), ("model.onnx", "/b", "B")
  %2 = read_state {slot: "total", ty: f32[]} : f32[]
  %3 = reshape(%1) {dims: [8*$n]} : f32[8*$n]
  %4 = slice(%3) {starts: [floordiv($n, 2)], steps: [-1], dims: [min(3, $n) + 1]} : f32[min(3, $n) + 1]
  %5 = const {value: tensor i64[3] [-9223372036854775808, 0, 9223372036854775807]} : i64[3]
  %6 = const {value: tensor f32[6] [nan, inf, -inf, -0.0, 1e-45, 0.1]} : f32[6]
  %7 = const {value: tensor string[2] ["a\u{1}", "ü"]} : string[2]
  %8 = const {value: tensor q8_0[32] base64 "ADwAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw=="} : q8_0[32]
  %9 = const {value: tensor bool[] [true]} : bool[]
  %10 = if(%9, %0) {then_branch: graph @then {
    %0 = input {name: "a", ty: f32[$n, 8]} : f32[$n, 8]
    %1, %2 = sort(%0) {axis: 1, descending: true} : f32[$n, 8], i64[$n, 8]
    return "y" = %1
  }, else_branch: graph @else {
    %0 = input {name: "a", ty: f32[$n, 8]} : f32[$n, 8]
    return "y" = %0
  }, results: [f32[$k, 8]], binds: [$k]} : f32[$k, 8]
  %11 = composite.layer_norm(%0) {axis: 1, epsilon: 1e-5, stats: false} : f32[$n, 8]
  %12 = host.non_zero(%0) {count: $count.7} : i64[2, $count.7]
  %13 = input {name: "s", ty: seq(optional(f16[$a, $b]))} : seq(optional(f16[$a, $b]))
  %14 = write_state(%2) {slot: "total"} : f32[]
  return "y" = %10, "z" = %10
}
"#;

#[test]
fn text_round_trips_byte_for_byte() {
    let graph = parse(SAMPLE).unwrap();
    assert_eq!(print(&graph), SAMPLE);
    let again = parse(&print(&graph)).unwrap();
    assert_eq!(again, graph);
    verify(&graph).unwrap();
}

#[test]
fn fresh_symbols_stay_new() {
    let mut graph = parse(SAMPLE).unwrap();
    assert_eq!(graph.fresh_sym("count").name(), "count.8");
}

#[test]
fn types_may_be_left_out_and_values_named() {
    let text = "graph @f { // a comment\n %x = input{name:\"x\",ty:f32[2]} %y=map(%x){f:\"neg\"} return \"y\"=%y }";
    let want = "graph @f {\n  %0 = input {name: \"x\", ty: f32[2]} : f32[2]\n  %1 = map(%0) {f: \"neg\"} : f32[2]\n  return \"y\" = %1\n}\n";
    assert_eq!(print(&parse(text).unwrap()), want);
}

#[test]
fn large_constants_are_base64_and_can_be_left_out() {
    let values: Vec<f32> = (0..100).map(|i| i as f32 / 3.0).collect();
    let mut g = crate::Graph::new("g");
    let x = g.constant(crate::Tensor::vector(&values)).unwrap();
    g.output("x", x);
    let text = print(&g);
    assert!(text.contains("base64"));
    assert_eq!(parse(&text).unwrap(), g);
    let short = print_short(&g);
    assert!(short.contains("tensor f32[100] ...") && parse(&short).is_err());
}

#[test]
fn errors_have_a_place() {
    let place = |text: &str| match parse(text) {
        Err(IrError::Parse {
            line, column, what, ..
        }) => (line, column, what),
        other => panic!("{other:?}"),
    };
    let body = |line: &str| {
        place(&format!(
            "graph @f {{\n  %0 = input {{name: \"x\", ty: f32[2]}}\n  {line}\n  return\n}}"
        ))
    };
    for (line, column, what) in [
        (
            "%1 = map(%0) {f: \"nope\"}",
            8,
            "attribute 'f' is missing or of the wrong kind",
        ),
        ("%1 = nope(%0)", 8, "unknown op 'nope'"),
        ("%1 = map(%7) {f: \"neg\"}", 12, "%7 is not defined before"),
        (
            "%1 = map(%0, %0) {f: \"neg\"}",
            8,
            "map: takes 1 operands, not 2",
        ),
        (
            "%1 = map(%0) {f: \"neg\"} : f32[3]",
            29,
            "type f32[3] where f32[2] is inferred",
        ),
        ("%0 = map(%0) {f: \"neg\"}", 3, "second definition of %0"),
        (
            "%1, %2 = map(%0) {f: \"neg\"}",
            3,
            "map has 1 results, not 2",
        ),
        (
            "%1 = const {value: tensor f32[2] [1]}",
            29,
            "the elements do not fill the type",
        ),
        (
            "%1 = const {value: tensor i8[1] [200]}",
            36,
            "'200' is no i8",
        ),
        (
            "%1 = const {value: tensor f32[1] base64 \"*\"}",
            43,
            "this is no base64",
        ),
        (
            "%1 = map(%0) {f: \"neg}",
            20,
            "the string has no end on its line",
        ),
        ("%1 = map(%0 %0)", 15, "expected ',' or ')', found '%0)'"),
        ("}", 3, "expected an op, 'return' or '}', found '}'"),
    ] {
        assert_eq!(body(line), (3, column, what.to_string()), "{line}");
    }
    assert_eq!(place("").2, "expected 'graph', found the end");
}

#[test]
fn hostile_text_is_refused_quickly() {
    let deep = format!(
        "graph @f {{ %0 = input {{name: \"x\", ty: {}",
        "seq(".repeat(100_000)
    );
    assert!(
        parse(&deep)
            .unwrap_err()
            .to_string()
            .contains("levels inside each other")
    );
    let dims = format!(
        "graph @f {{ %0 = input {{name: \"x\", ty: f32[{}",
        "min(1, ".repeat(100_000)
    );
    assert!(
        parse(&dims)
            .unwrap_err()
            .to_string()
            .contains("levels inside each other")
    );
    let regions = "graph @f { call {body: ".repeat(10_000);
    assert!(
        parse(&regions)
            .unwrap_err()
            .to_string()
            .contains("levels inside each other")
    );
    let long = format!(
        "graph @f {{ %0 = input {{name: \"x\", ty: f32[{}0",
        "$a*$b + ".repeat(100_000)
    );
    assert!(parse(&long).unwrap_err().to_string().contains("terms"));
    let huge = "graph @f { %0 = const {value: tensor f32[1000000000, 1000000000, 1000000000] [1]}";
    assert!(parse(huge).unwrap_err().to_string().contains("do not fill"));
}

#[test]
fn damaged_text_never_panics() {
    let pieces: Vec<&str> = SAMPLE
        .split_inclusive([' ', ',', '(', ')', '[', ']', '\n'])
        .collect();
    let mut parsed = 0;
    for round in 0..3000u64 {
        let mut text: Vec<&str> = pieces.clone();
        for k in 0..1 + round % 3 {
            let word = |n: u64| random::bits(3, k, round, n) as usize;
            let (at, from) = (word(0) % text.len(), word(1) % pieces.len());
            match word(2) % 3 {
                0 => text[at] = pieces[from],
                1 => {
                    text.remove(at);
                }
                _ => text.insert(at, pieces[from]),
            }
        }
        if let Ok(graph) = parse(&text.concat()) {
            parsed += 1;
            let printed = print(&graph);
            assert_eq!(print(&parse(&printed).unwrap()), printed);
        }
    }
    assert!(parsed > 50, "{parsed}");
}

#[test]
fn composites_with_too_few_or_too_many_operands_are_refused() {
    for op in [
        "composite.softmax() {axis: 0, log: false}",
        "composite.softmax(%0, %0) {axis: 0, log: false}",
        "composite.gelu() {tanh: true}",
        "composite.layer_norm() {axis: 0, epsilon: 1e-5, stats: false}",
        "composite.rms_norm() {axis: 0, epsilon: 1e-5}",
        "composite.attention(%0, %0) {scale: 1.0, causal: false, softcap: 0.0}",
    ] {
        let text = format!(
            "graph @g {{\n  %0 = input {{name: \"x\", ty: f32[2, 3]}} : f32[2, 3] \"x\"\n  %1 = {op}\n  return \"y\" = %1\n}}\n"
        );
        let error = parse(&text).expect_err("refused").to_string();
        assert!(error.contains("operands, not"), "{op}: {error}");
    }
}

/// Dimensions end where their negatives do, wherever they are read.
#[test]
fn the_smallest_number_is_read_as_it_is_printed() {
    let text = r#"graph @g {
  %0 = input {name: "x", ty: f32[4, 4]} : f32[4, 4] "x"
  %1 = slice(%0) {starts: [-9223372036854775808, 0], steps: [1, 1], dims: [0, 4]}
  return "y" = %1
}
"#;
    let once = print(&parse(text).expect("a graph"));
    assert_eq!(print(&parse(&once).expect("a graph")), once);
    assert!(once.contains("-9223372036854775807"), "{once}");
}
