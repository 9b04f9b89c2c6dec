//! What exporters write, as text: every file of `fixtures/dialects` is raised to the composites that it lists, every
//! file of `fixtures/decoys` is close to one and must keep its meaning without it. All of them again with other
//! names, another order of nodes and swapped operands.
//!
//! A file's first lines are comments: where it comes from; `= ` one composite each with its attributes and number of
//! operands, sorted; `sizes ` the values of its symbols where the exporter fixed some; `near ` what a recorded near
//! miss says; `units ` the number of units on a device with library
//! kernels for products, convolutions and attention. `UPDATE_FIXTURES=1` writes the lists anew.

mod support;

use cupola_ir::attr::Attr;
use cupola_ir::composite::CompositeOp;
use cupola_ir::graph::text;
use cupola_ir::target::Claim;
use cupola_ir::{Bindings, CoreOp, DType, Graph, Op, Scalar, Sym, TensorType, ValueId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use support::*;

struct Fixture {
    path: PathBuf,
    graph: Graph,
    /// Comment lines without the slashes.
    header: Vec<String>,
    /// Everything else.
    body: String,
}

impl Fixture {
    fn listed(&self, kind: &str) -> Vec<String> {
        let of = |l: &String| l.strip_prefix(kind).map(|l| l.trim().to_string());
        self.header.iter().filter_map(of).collect()
    }

    /// Compares what was found with what is listed, or lists it.
    fn expect(&self, found: &Found) {
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            let kept = |l: &&String| !["= ", "near ", "units "].iter().any(|k| l.starts_with(k));
            let mut lines: Vec<String> = self.header.iter().filter(kept).cloned().collect();
            lines.extend(found.composites.iter().map(|c| format!("= {c}")));
            lines.extend(found.near.iter().map(|n| format!("near {n}")));
            lines.push(format!("units {}", found.units));
            let header: String = lines.iter().map(|l| format!("// {l}\n")).collect();
            std::fs::write(&self.path, header + &self.body).unwrap();
            return;
        }
        let name = self.path.file_name().unwrap();
        assert_eq!(
            found.composites,
            self.listed("= "),
            "{name:?}: {:?}",
            found.near
        );
        assert_eq!(found.near, self.listed("near "), "{name:?}");
        assert_eq!(
            vec![found.units.to_string()],
            self.listed("units "),
            "{name:?}"
        );
    }
}

fn fixtures(folder: &str) -> Vec<Fixture> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root.join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let all = std::fs::read_to_string(&path).unwrap();
        let comment = |l: &str| l.strip_prefix("// ").map(str::to_string);
        let header: Vec<String> = all.lines().map_while(comment).collect();
        let body = all.lines().skip(header.len());
        let body: String = body.map(|l| format!("{l}\n")).collect();
        let graph = text::parse(&body).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        Fixture {
            path,
            graph,
            header,
            body,
        }
    };
    paths.into_iter().map(read).collect()
}

#[derive(Debug, PartialEq)]
struct Found {
    composites: Vec<String>,
    near: Vec<String>,
    units: usize,
}

/// Products, convolutions and attention, as a device with library kernels claims them.
fn libraries(op: &Op, _: &[&TensorType]) -> Claim {
    let attention = matches!(op, Op::Composite(CompositeOp::Attention(_)));
    match op {
        Op::Core(CoreOp::Contract(_))
        | Op::Composite(CompositeOp::Attention(_) | CompositeOp::Conv(_)) => Claim::Yes {
            strided: true,
            epilogue: !attention,
            converts: false,
        },
        _ => nothing(op, &[]),
    }
}

/// Attributes with few digits: factors are multiplied in the order in which they stand.
fn describe(g: &Graph, op: &CompositeOp, operands: &[ValueId]) -> String {
    let attr = |a: &Attr| match a {
        Attr::Float(v) => format!("{v:.5e}"),
        other => format!("{other:?}"),
    };
    let all = op.attrs();
    let all: Vec<String> = all
        .iter()
        .map(|(n, a)| format!("{n} {}", attr(a)))
        .collect();
    let types: Vec<String> = operands.iter().map(|v| g.ty(*v).to_string()).collect();
    format!(
        "{} {{{}}} ({})",
        op.name(),
        all.join(", "),
        types.join(", ")
    )
}

fn look(g: &Graph) -> (Graph, Found) {
    let (raised, mut near) = after(g, "raise", everything);
    let mut composites: Vec<String> = raised
        .nodes()
        .filter_map(|(_, n)| match &n.op {
            Op::Composite(op) => Some(describe(&raised, op, &n.operands)),
            Op::Core(_) | Op::Host(_) => None,
        })
        .collect();
    composites.sort();
    near.sort();
    near.dedup();
    let units = compiled(g, &target(libraries)).units.len();
    let found = Found {
        composites,
        near,
        units,
    };
    (raised, found)
}

fn symbols(g: &Graph, values: Vec<i64>) -> Vec<(String, i64)> {
    let mut all = BTreeMap::new();
    for v in g.inputs() {
        g.ty(*v).for_each_dim(&mut |d| {
            d.for_each_sym(&mut |s| {
                all.insert(s.name().to_string(), 0);
            })
        });
    }
    all.into_keys().zip(values).collect()
}

fn inputs(g: &Graph, bindings: &Bindings) -> Vec<T> {
    let mut rng = Rng(77);
    let of = |v: &ValueId| {
        let t = g.tensor(*v);
        let shape = t.shape(bindings).expect("bound");
        let mut x = rng.tensor(t.dtype, &shape);
        if t.dtype.is_int() {
            // Masks, positions and tokens.
            x.v.iter_mut().for_each(|v| *v = V::I(v.i() & 1));
        }
        x
    };
    g.inputs().iter().map(of).collect()
}

fn agree(got: &[T], want: &[T], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (a, b) in got.iter().zip(want) {
        assert_eq!((&a.shape, a.dtype), (&b.shape, b.dtype), "{what}");
        let tolerance = if a.dtype == DType::F16 { 4e-3 } else { 1e-4 };
        for (i, (x, y)) in a.v.iter().zip(&b.v).enumerate() {
            let (x, y) = (x.f(), y.f());
            let same =
                x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= tolerance * (1.0 + y.abs());
            assert!(same, "{what}: element {i} is {x}, should be {y}");
        }
    }
}

/// The raised graph, and kernels for a device without libraries, compute what the graph means.
fn same_meaning(fixture: &Fixture, raised: &Graph, what: &str) {
    let g = &fixture.graph;
    let compiled = compiled(g, &target(nothing));
    let fixed = fixture.listed("sizes ");
    let fixed = fixed.first().map(|l| {
        let sizes = l.split(' ').map(|n| n.parse().unwrap());
        vec![sizes.collect::<Vec<i64>>()]
    });
    for values in fixed.unwrap_or(vec![vec![2, 3, 4], vec![1, 1, 1], vec![1, 4, 2]]) {
        let syms = symbols(g, values);
        let mut bindings = Bindings::default();
        syms.iter().for_each(|(s, v)| bindings.set(Sym::new(s), *v));
        let xs = inputs(g, &bindings);
        let want = reference::run(g, &xs, &mut bindings.clone());
        let got = reference::run(raised, &xs, &mut bindings.clone());
        agree(&got, &want, what);
        let syms: Vec<(&str, i64)> = syms.iter().map(|(s, v)| (s.as_str(), *v)).collect();
        agree(&run(&compiled, &xs, &syms), &want, what);
    }
}

/// The same graph in a random order of nodes, without names, operands of commutative functions swapped at random.
fn shuffled(g: &Graph, rng: &mut Rng) -> Graph {
    let mut out = Graph::new("shuffled");
    out.ranges = g.ranges.clone();
    let mut map: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (i, v) in g.inputs().iter().enumerate() {
        map.insert(
            *v,
            out.input(&format!("value {}", 97 - i), g.ty(*v).clone())
                .unwrap(),
        );
    }
    let mut waiting: Vec<_> = (g.nodes().map(|(id, _)| id))
        .filter(|id| !map.contains_key(&g.node(*id).results[0]))
        .collect();
    while !waiting.is_empty() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|i| {
                g.node(waiting[*i])
                    .operands
                    .iter()
                    .all(|v| map.contains_key(v))
            })
            .collect();
        let node = g.node(waiting.swap_remove(ready[rng.below(ready.len())]));
        assert!(node.op.binds().is_empty(), "symbols order nodes too");
        let mut operands: Vec<ValueId> = node.operands.iter().map(|v| map[v]).collect();
        if let Op::Core(CoreOp::Map(p)) = &node.op
            && matches!(
                p.f,
                Scalar::Add | Scalar::Mul | Scalar::Eq | Scalar::And | Scalar::Or
            )
            && rng.below(2) == 0
        {
            operands.reverse();
        }
        let results = out.push(node.op.clone(), &operands).unwrap();
        for (old, new) in node.results.iter().zip(results) {
            out.refine(new, g.ty(*old).clone());
            map.insert(*old, new);
        }
    }
    for (i, (_, v)) in g.outputs().iter().enumerate() {
        out.output(&format!("result {i}"), map[v]);
    }
    out
}

fn check_folder(folder: &str) -> Vec<Fixture> {
    let all = fixtures(folder);
    for fixture in &all {
        let what = format!("{:?}", fixture.path.file_name().unwrap());
        let (raised, found) = look(&fixture.graph);
        same_meaning(fixture, &raised, &what);
        fixture.expect(&found);
        let mut rng = Rng(0x5EED + what.len() as u64);
        for _ in 0..3 {
            let (_, other) = look(&shuffled(&fixture.graph, &mut rng));
            assert_eq!(other, found, "{what}, shuffled");
        }
    }
    all
}

#[test]
fn every_dialect_is_raised() {
    let all = check_folder("dialects");
    assert!(all.len() >= 30, "{}", all.len());
    for fixture in &all {
        let what = fixture.path.file_name().unwrap();
        assert!(!fixture.listed("= ").is_empty(), "{what:?} lists nothing");
    }
}

#[test]
fn no_decoy_is_raised() {
    let all = check_folder("decoys");
    assert!(all.len() >= 15, "{}", all.len());
    for fixture in &all {
        // The name says what it nearly is; plain softmaxes inside an attention may stay.
        let file = fixture
            .path
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .to_string();
        let nearly = file.split('-').next().unwrap();
        let raised = fixture.listed("= ");
        assert!(
            !raised.iter().any(|c| c.starts_with(nearly)),
            "{file}: {raised:?}"
        );
    }
}
