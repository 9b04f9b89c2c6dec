//! Graph to text.

use super::tensor;
use crate::attr::Attr;
use crate::dim::SymRange;
use crate::graph::{Graph, Node};
use crate::lexer::{at_name, quote};
use std::fmt::Display;
use std::fmt::Write;

/// The whole graph as text that [`super::parse()`] reads back to an equal graph.
pub fn print(graph: &Graph) -> String {
    let mut out = Printer {
        out: String::new(),
        elide: false,
    };
    out.graph(graph, 0);
    out.out.push('\n');
    out.out
}

/// As [`print`] with the elements of large constants left out: for reading, not for parsing.
pub fn print_short(graph: &Graph) -> String {
    let mut out = Printer {
        out: String::new(),
        elide: true,
    };
    out.graph(graph, 0);
    out.out.push('\n');
    out.out
}

struct Printer {
    out: String,
    elide: bool,
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    all.join(", ")
}

/// A float so that it is not taken for an integer and no bit is lost.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        if x.to_bits() == f64::NAN.to_bits() {
            "nan".into()
        } else {
            format!("bits(0x{:x})", x.to_bits())
        }
    } else {
        format!("{x:?}")
    }
}

impl Printer {
    fn line(&mut self, indent: usize, text: &str) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n("  ", indent));
        self.out.push_str(text);
    }

    fn graph(&mut self, g: &Graph, indent: usize) {
        let _ = write!(self.out, "graph {} {{", at_name(&g.name));
        for (sym, range) in &g.ranges {
            let SymRange { min, max, multiple } = range;
            let step = if *multiple == 1 {
                String::new()
            } else {
                format!(" step {multiple}")
            };
            self.line(indent + 1, &format!("range {sym}: {min}..{max}{step}"));
        }
        for (name, slot) in &g.slots {
            let text = format!("slot {}: {} = ", quote(name), slot.ty);
            self.line(indent + 1, &text);
            let initial = tensor::print(&slot.initial, self.elide);
            self.out.push_str(&initial);
        }
        for (_, node) in g.nodes() {
            self.line(indent + 1, "");
            self.node(g, node, indent + 1);
        }
        let outputs = g.outputs().iter();
        let outputs = joined(outputs.map(|(n, v)| format!("{} = {v}", quote(n))));
        let space = if outputs.is_empty() { "" } else { " " };
        self.line(indent + 1, &format!("return{space}{outputs}"));
        self.line(indent, "}");
    }

    fn node(&mut self, g: &Graph, node: &Node, indent: usize) {
        if !node.results.is_empty() {
            let _ = write!(self.out, "{} = ", joined(&node.results));
        }
        self.out.push_str(&node.op.name());
        if !node.operands.is_empty() {
            let _ = write!(self.out, "({})", joined(&node.operands));
        }
        let attrs = node.op.attrs();
        if !attrs.is_empty() {
            self.out.push_str(" {");
            for (i, (name, attr)) in attrs.iter().enumerate() {
                let comma = if i > 0 { ", " } else { "" };
                let _ = write!(self.out, "{comma}{name}: ");
                self.attr(attr, indent);
            }
            self.out.push('}');
        }
        if !node.results.is_empty() {
            let types = node.results.iter().map(|v| match &g.value(*v).name {
                Some(name) => format!("{} {}", g.ty(*v), quote(name)),
                None => g.ty(*v).to_string(),
            });
            let _ = write!(self.out, " : {}", joined(types));
        }
        if !node.origins.is_empty() {
            let all = node.origins.iter().map(|o| {
                format!(
                    "({}, {}, {})",
                    quote(&o.source),
                    quote(&o.node),
                    quote(&o.op)
                )
            });
            let _ = write!(self.out, " from {}", joined(all));
        }
    }

    fn attr(&mut self, attr: &Attr, indent: usize) {
        let text = match attr {
            Attr::None => "none".into(),
            Attr::Bool(v) => v.to_string(),
            Attr::Int(v) => v.to_string(),
            Attr::Float(v) => float(*v),
            Attr::Str(v) => quote(v),
            Attr::Ints(v) => format!("[{}]", joined(v)),
            Attr::Floats(v) => format!("[{}]", joined(v.iter().map(|x| float(*x)))),
            Attr::Strs(v) => format!("[{}]", joined(v.iter().map(|s| quote(s)))),
            Attr::Sym(v) => v.to_string(),
            Attr::Syms(v) => format!("[{}]", joined(v)),
            Attr::Dim(v) => v.to_string(),
            Attr::Dims(v) => format!("[{}]", joined(v)),
            Attr::DType(v) => v.to_string(),
            Attr::Type(v) => v.to_string(),
            Attr::Types(v) => format!("[{}]", joined(v)),
            Attr::Tensor(v) => tensor::print(v, self.elide),
            Attr::Graph(g) => return self.graph(g, indent),
        };
        self.out.push_str(&text);
    }
}
