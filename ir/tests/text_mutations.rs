//! Valid text graphs with a few tokens changed: the reader, the verifier and the interpreter answer with an error or a
//! result, never with a panic, and what is read is printed and read again unchanged.

use cupola_ir::eval::{self, Env, Limits};
use cupola_ir::graph::{text, verify};
use cupola_ir::{Graph, Tensor, Value};
use proptest::prelude::*;

/// One graph per family of ops.
const GRAPHS: &[&str] = &[
    r#"graph @elementwise {
  range $n: 1..4096
  slot "sum": f32[3] = tensor f32[3] [0.0, 1.0, 2.0]
  %0 = input {name: "x", ty: f32[$n, 3]} : f32[$n, 3] "x"
  %1 = read_state {slot: "sum", ty: f32[3]}
  %2 = reshape(%1) {dims: [1, 3]}
  %3 = broadcast(%2) {dims: [$n, 3]}
  %4 = map(%0, %3) {f: "mul"} : f32[$n, 3] "y" from ("model.onnx", "/mul", "Mul")
  %5 = reduce(%4) {kind: "sum", axes: [0], accum: f32}
  %6 = write_state(%5) {slot: "sum"}
  %7 = cast(%6) {to: i32, saturate: true}
  return "y" = %4, "z" = %7
}
"#,
    r#"graph @views {
  %0 = input {name: "x", ty: f32[4, 6]} : f32[4, 6] "x"
  %1 = permute(%0) {perm: [1, 0]}
  %2 = slice(%1) {starts: [1, 0], steps: [2, 1], dims: [2, 4]}
  %3 = concat(%2, %1) {axis: 0}
  %4 = const {value: tensor f32[] [-1.5]}
  %5 = pad(%3, %4) {low: [1, 0], high: [0, 2]}
  %6 = window(%5) {axes: [1], sizes: [3], strides: [1], dilations: [1]}
  %7 = contract(%0, %0) {lhs_batch: [], rhs_batch: [], lhs_contract: [1], rhs_contract: [1], accum: f32, out: f32}
  %8, %9 = sort(%7) {axis: 1, descending: true}
  %10 = iota {dtype: i64, dims: [2, 2], axis: 0}
  %11 = gather(%0, %10) {axes: [0], batch: 0, bounds: "clamp"}
  return "a" = %6, "b" = %8, "c" = %11
}
"#,
    r#"graph @composites {
  %0 = input {name: "x", ty: f32[2, 4, 6]} : f32[2, 4, 6] "x"
  %1 = composite.softmax(%0) {axis: 2, log: false}
  %2 = const {value: tensor f32[6] [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
  %3 = composite.layer_norm(%1, %2) {axis: 2, epsilon: 1e-5, stats: false}
  %4 = composite.gelu(%3) {tanh: true}
  %5 = reshape(%4) {dims: [1, 2, 4, 6]}
  %6 = composite.attention(%5, %5, %5) {scale: 0.4, causal: true, softcap: 0.0}
  %7 = const {value: tensor f32[2, 4, 3] [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0]}
  %8 = composite.conv(%0, %7) {strides: [2], dilations: [1], pads_low: [1], pads_high: [0], groups: 1}
  %9 = composite.conv_transpose(%8, %7) {strides: [2], dilations: [1], pads_low: [0], spatial: [7], groups: 1}
  %10 = composite.rms_norm(%0, %2) {axis: 1, epsilon: 1e-5}
  return "a" = %6, "b" = %9, "c" = %10
}
"#,
    r#"graph @control {
  %0 = input {name: "c", ty: bool[]} : bool[] "c"
  %1 = input {name: "x", ty: f32[2]} : f32[2] "x"
  %2 = const {value: tensor i64[] [3]}
  %3, %4 = loop(%2, %0, %1) {body: graph @body {
    %0 = input {name: "i", ty: i64[]} : i64[] "i"
    %1 = input {name: "v", ty: f32[2]} : f32[2] "v"
    %2 = map(%1, %1) {f: "add"}
    %3 = const {value: tensor bool[] [true]}
    return "go" = %3, "next" = %2, "seen" = %2
  }, carried: 1, results: [f32[2], f32[$k, 2]], binds: [$k]}
  %5 = if(%0, %3) {then_branch: graph @then {
    %0 = input {name: "v", ty: f32[2]} : f32[2] "v"
    return "v" = %0
  }, else_branch: graph @else {
    %0 = input {name: "v", ty: f32[2]} : f32[2] "v"
    %1 = map(%0) {f: "neg"}
    return "v" = %1
  }, results: [f32[2]], binds: []}
  return "y" = %5, "all" = %4
}
"#,
];

/// Tokens that replace others: limits, other types, other values.
const TOKENS: &[&str] = &[
    "0",
    "1",
    "-1",
    "7",
    "9223372036854775807",
    "-9223372036854775808",
    "1e309",
    "nan",
    "true",
    "none",
    "f32",
    "i4",
    "bool",
    "string",
    "%0",
    "%3",
    "$n",
    "$q",
    "[",
    "]",
    "[]",
    "{",
    "}",
    "(",
    ")",
    ",",
    "\"\"",
    "\"x\"",
    "floordiv(1, 0)",
    "seq(f32[2])",
];

/// Words, numbers and single characters.
fn tokens(text: &str) -> Vec<&str> {
    let mut all = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || "_.%$@".contains(c);
        let end = match word(first) {
            true => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        all.push(&rest[..end]);
        rest = &rest[end..];
    }
    all
}

/// What happens to the tokens.
#[derive(Clone, Debug)]
enum Edit {
    Delete(prop::sample::Index),
    Repeat(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Replace(prop::sample::Index, &'static str),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        1 => at().prop_map(Edit::Delete),
        1 => at().prop_map(Edit::Repeat),
        1 => (at(), at()).prop_map(|(a, b)| Edit::Swap(a, b)),
        4 => (at(), prop::sample::select(TOKENS)).prop_map(|(a, t)| Edit::Replace(a, t)),
    ]
}

fn mutated(text: &'static str, edits: &[Edit]) -> String {
    let mut all = tokens(text);
    for e in edits {
        let solid: Vec<usize> = (0..all.len())
            .filter(|i| !all[*i].trim().is_empty())
            .collect();
        if solid.is_empty() {
            break;
        }
        let get = |i: &prop::sample::Index| *i.get(&solid);
        match e {
            Edit::Delete(i) => {
                all.remove(get(i));
            }
            Edit::Repeat(i) => all.insert(get(i), all[get(i)]),
            Edit::Swap(i, j) => all.swap(get(i), get(j)),
            Edit::Replace(i, token) => all[get(i)] = token,
        }
    }
    all.concat()
}

/// Zeros for the inputs, where their types are small and known.
fn inputs(graph: &Graph) -> Option<Vec<Value>> {
    let one = |v: &cupola_ir::ValueId| {
        let ty = graph.ty(*v).as_tensor()?;
        let extent = |d: &cupola_ir::Dim| usize::try_from(d.as_const().unwrap_or(2)).ok();
        let shape: Vec<usize> = ty.dims.iter().map(extent).collect::<Option<_>>()?;
        let size = Tensor::size_of(ty.dtype, &shape).filter(|s| *s < 1 << 16)?;
        Some(Tensor::new(ty.dtype, shape, vec![0u8; size].into())?.into())
    };
    graph.inputs().iter().map(one).collect()
}

/// Bounds that keep a case short.
fn bounded() -> Env {
    let mut env = Env::default();
    env.limits = Limits {
        tensor_size: 1 << 20,
        total_size: 1 << 22,
        trips: 100,
        steps: 2000,
        ..Limits::default()
    };
    env
}

#[test]
fn the_graphs_themselves_are_valid() {
    for text in GRAPHS {
        let graph = text::parse(text).unwrap_or_else(|e| panic!("{e}"));
        verify(&graph).unwrap_or_else(|e| panic!("{e}"));
        let given = inputs(&graph).expect("small inputs");
        eval::run(&graph, &given, &mut bounded()).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// A short run by default; `CUPOLA_FUZZ_CASES` asks for a longer one.
fn cases() -> u32 {
    let asked = std::env::var("CUPOLA_FUZZ_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_texts_are_read_or_refused(
        which in 0..GRAPHS.len(),
        edits in prop::collection::vec(edit(), 1..4),
    ) {
        let text = mutated(GRAPHS[which], &edits);
        if let Ok(graph) = text::parse(&text) {
            let printed = text::print(&graph);
            let again = text::parse(&printed).map(|g| text::print(&g));
            prop_assert_eq!(again.ok(), Some(printed));
            if verify(&graph).is_ok() && let Some(given) = inputs(&graph) {
                // An error is as good as a result.
                let _ = eval::run(&graph, &given, &mut bounded());
            }
        }
    }
}
