//! Text to graph.

use super::tensor;
use crate::attr::Attr;
use crate::dim::{Dim, Sym, SymRange};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Graph, Node, Origin, StateSlot, ValueId};
use crate::lexer::Cursor;
use crate::ops::Op;
use crate::ops::control::same_kind;
use crate::ops::may_equal;
use crate::tensor_type::ValueType;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::Arc;

/// Reads the text form of a graph. The result is well typed; [`super::super::verify()`] checks the rest.
///
/// # Errors
/// [`crate::IrError::Parse`] with the place: a syntax error, an unknown op or attribute, operands that the op does not
/// take, result types that contradict the inferred ones, a value used before it is defined.
pub fn parse(text: &str) -> Result<Graph> {
    let mut c = Cursor::new(text);
    let graph = graph(&mut c)?;
    if !c.is_at_end() {
        return c.expected("the end after the graph");
    }
    Ok(graph)
}

/// What a body knows while it is read.
struct Body<'a> {
    graph: Graph,
    values: FxHashMap<&'a str, ValueId>,
}

pub(super) fn graph(c: &mut Cursor) -> Result<Graph> {
    c.nested(|c| {
        if !c.eat_word("graph") {
            return c.expected("'graph'");
        }
        let mut body = Body {
            graph: Graph::new(&c.at_name()?),
            values: FxHashMap::default(),
        };
        c.expect("{")?;
        loop {
            match c.peek_word() {
                "range" => range(c, &mut body.graph)?,
                "slot" => slot(c, &mut body.graph)?,
                "return" => break,
                _ => node(c, &mut body)?,
            }
        }
        returns(c, &mut body)?;
        c.expect("}")?;
        body.graph.fresh = last_fresh(&body.graph);
        Ok(body.graph)
    })
}

fn range(c: &mut Cursor, g: &mut Graph) -> Result<()> {
    c.eat_word("range");
    let at = c.position();
    let sym = c.sym()?;
    c.expect(":")?;
    // `1..8` must not be read as one number.
    let bound = |c: &mut Cursor| -> Result<i64> {
        let rest = c.rest();
        let digits = rest
            .char_indices()
            .find(|(i, ch)| !(ch.is_ascii_digit() || *i == 0 && *ch == '-'))
            .map_or(rest.len(), |(i, _)| i);
        match rest[..digits].parse() {
            Ok(v) => {
                c.eat(&rest[..digits]);
                Ok(v)
            }
            Err(_) => c.expected("a whole number"),
        }
    };
    let min = bound(c)?;
    c.expect("..")?;
    let max = bound(c)?;
    let multiple = if c.eat_word("step") { bound(c)? } else { 1 };
    if multiple < 1 || g.ranges.contains_key(&sym) {
        return Err(c.error_at(at, format!("second range of {sym}, or a step below 1")));
    }
    g.ranges.insert(sym, SymRange { min, max, multiple });
    Ok(())
}

fn slot(c: &mut Cursor, g: &mut Graph) -> Result<()> {
    c.eat_word("slot");
    let at = c.position();
    let name = c.string("the slot's name")?;
    c.expect(":")?;
    let ty = c.value_type()?;
    c.expect("=")?;
    if !c.eat_word("tensor") {
        return c.expected("'tensor'");
    }
    let initial = tensor::parse(c)?;
    if g.slots.contains_key(&name) {
        return Err(c.error_at(at, format!("second slot '{name}'")));
    }
    g.slots.insert(name, StateSlot { ty, initial });
    Ok(())
}

fn node<'a>(c: &mut Cursor<'a>, body: &mut Body<'a>) -> Result<()> {
    let start = c.position();
    let mut names = vec![];
    if c.rest().starts_with('%') {
        loop {
            names.push((c.position(), c.prefixed('%', "a value")?));
            if !c.eat(",") {
                break;
            }
        }
        c.expect("=")?;
    }
    let at = c.position();
    let op_name = c.word("an op, 'return' or '}'")?;
    let mut operands: SmallVec<[ValueId; 4]> = SmallVec::new();
    if c.eat("(") {
        operands = c.list(")", |c| value(c, body))?.into();
    }
    let mut attrs = vec![];
    if c.eat("{") {
        attrs = c.list("}", |c| {
            let name = c.word("an attribute")?.to_string();
            c.expect(":")?;
            Ok((name, attr(c)?))
        })?;
    }
    let op = Op::from_name(op_name, attrs).map_err(|what| c.error_at(at, what))?;
    let types: Vec<&ValueType> = operands.iter().map(|v| body.graph.ty(*v)).collect();
    let inferred = op
        .infer(&types)
        .map_err(|what| c.error_at(at, format!("{op_name}: {what}")))?;
    if inferred.len() != names.len() {
        let what = format!(
            "{op_name} has {} results, not {}",
            inferred.len(),
            names.len()
        );
        return Err(c.error_at(start, what));
    }
    let (types, value_names) = result_types(c, inferred)?;
    let mut origins = SmallVec::new();
    if c.eat_word("from") {
        loop {
            origins.push(Arc::new(origin(c)?));
            if !c.eat(",") {
                break;
            }
        }
    }
    let node = Node {
        op,
        operands,
        results: SmallVec::new(),
        origins,
    };
    let results = body.graph.push_raw(node, types);
    for ((v, (at, name)), value_name) in results.iter().zip(names).zip(value_names) {
        if let Some(n) = value_name {
            body.graph.set_name(*v, &n);
        }
        if body.values.insert(name, *v).is_some() {
            return Err(c.error_at(at, format!("second definition of %{name}")));
        }
    }
    Ok(())
}

fn value(c: &mut Cursor, body: &Body) -> Result<ValueId> {
    let at = c.position();
    let name = c.prefixed('%', "a value")?;
    let found = body.values.get(name).copied();
    found.ok_or_else(|| c.error_at(at, format!("%{name} is not defined before")))
}

/// Types after the colon, each with the value's name where given.
fn result_types(
    c: &mut Cursor,
    mut inferred: Vec<ValueType>,
) -> Result<(Vec<ValueType>, Vec<Option<String>>)> {
    let mut names = vec![None; inferred.len()];
    if !c.eat(":") {
        return Ok((inferred, names));
    }
    let count = inferred.len();
    for (i, (ty, name)) in inferred.iter_mut().zip(&mut names).enumerate() {
        let at = c.position();
        let given = c.value_type()?;
        if !agrees(&given, ty) {
            return Err(c.error_at(at, format!("type {given} where {ty} is inferred")));
        }
        *ty = given;
        if c.rest().starts_with('"') {
            *name = Some(c.string("a name")?);
        }
        if i + 1 < count {
            c.expect(",")?;
        }
    }
    Ok((inferred, names))
}

/// Whether two types can be the same at run time.
fn agrees(a: &ValueType, b: &ValueType) -> bool {
    let (mut x, mut y) = (vec![], vec![]);
    a.for_each_dim(&mut |d| x.push(d.clone()));
    b.for_each_dim(&mut |d| y.push(d.clone()));
    same_kind(a, b) && x.iter().zip(&y).all(|(a, b)| may_equal(a, b))
}

fn origin(c: &mut Cursor) -> Result<Origin> {
    c.expect("(")?;
    let source = c.string("a source")?.into();
    c.expect(",")?;
    let node = c.string("a node")?.into();
    c.expect(",")?;
    let op = c.string("an operator")?.into();
    c.expect(")")?;
    Ok(Origin { source, node, op })
}

fn returns(c: &mut Cursor, body: &mut Body) -> Result<()> {
    c.eat_word("return");
    if !c.rest().starts_with('"') {
        return Ok(());
    }
    loop {
        let name = c.string("an output's name")?;
        c.expect("=")?;
        let v = value(c, body)?;
        body.graph.output(&name, v);
        if !c.eat(",") {
            return Ok(());
        }
    }
}

fn attr(c: &mut Cursor) -> Result<Attr> {
    c.nested(|c| {
        let rest = c.rest();
        if rest.starts_with('"') {
            return Ok(Attr::Str(c.string("a string")?));
        }
        if c.eat("[") {
            let at = c.position();
            let items = c.list("]", attr)?;
            return collect(items).ok_or_else(|| c.error_at(at, "a list of one kind is expected"));
        }
        if let Some(word) = literal_word(c) {
            return word;
        }
        if let Some(number) = plain_number(c)? {
            return Ok(number);
        }
        let word = c.peek_word();
        if word == "graph" {
            return Ok(Attr::Graph(Box::new(graph(c)?)));
        }
        if DType::from_name(word).is_some() {
            let after = c.rest()[word.len()..].starts_with('[');
            return if after {
                c.value_type().map(Attr::Type)
            } else {
                c.dtype().map(Attr::DType)
            };
        }
        if matches!(word, "seq" | "optional") {
            return c.value_type().map(Attr::Type);
        }
        let dim = c.dim()?;
        Ok(match (dim.as_const(), dim.as_sym()) {
            (Some(v), _) => Attr::Int(v),
            (None, Some(s)) => Attr::Sym(s.clone()),
            (None, None) => Attr::Dim(dim),
        })
    })
}

/// `none`, `true`, `false`, `tensor ...` and `bits(0x...)`.
fn literal_word(c: &mut Cursor) -> Option<Result<Attr>> {
    for (word, attr) in [
        ("none", Attr::None),
        ("true", Attr::Bool(true)),
        ("false", Attr::Bool(false)),
    ] {
        if c.eat_word(word) {
            return Some(Ok(attr));
        }
    }
    if c.eat_word("tensor") {
        return Some(tensor::parse(c).map(Attr::Tensor));
    }
    if c.eat_word("bits") {
        return Some(bits(c));
    }
    None
}

fn bits(c: &mut Cursor) -> Result<Attr> {
    c.expect("(")?;
    let at = c.position();
    let text = c.number_text().unwrap_or_default();
    let value = text
        .strip_prefix("0x")
        .and_then(|h| u64::from_str_radix(h, 16).ok());
    let value = value.ok_or_else(|| c.error_at(at, "expected 64 bits as 0x..."))?;
    c.expect(")")?;
    Ok(Attr::Float(f64::from_bits(value)))
}

/// A number that no dimension continues (`2*$n` and `3 + $n` are dimensions).
fn plain_number(c: &mut Cursor) -> Result<Option<Attr>> {
    let rest = c.rest();
    let mut ahead = Cursor::new(rest);
    let Some(text) = ahead.number_text() else {
        return Ok(None);
    };
    let next = ahead.rest();
    if next.starts_with(['*', '+', '-']) {
        return Ok(None);
    }
    let at = c.position();
    c.number_text();
    let floating = text.contains(['.', 'e', 'E', 'n', 'i']);
    let number = if floating {
        text.parse().ok().map(Attr::Float)
    } else {
        text.parse().ok().map(Attr::Int)
    };
    number
        .map(Some)
        .ok_or_else(|| c.error_at(at, format!("'{text}' is no number")))
}

/// A list attribute of the items' common kind; whole numbers may stand among floats and dimensions.
fn collect(items: Vec<Attr>) -> Option<Attr> {
    fn all<T>(items: &[Attr], f: impl Fn(&Attr) -> Option<T>) -> Option<Vec<T>> {
        items.iter().map(f).collect()
    }
    let int = |a: &Attr| match a {
        Attr::Int(v) => Some(*v),
        _ => None,
    };
    let float = |a: &Attr| match a {
        Attr::Int(v) => Some(*v as f64),
        Attr::Float(v) => Some(*v),
        _ => None,
    };
    let string = |a: &Attr| match a {
        Attr::Str(v) => Some(v.clone()),
        _ => None,
    };
    let sym = |a: &Attr| match a {
        Attr::Sym(v) => Some(v.clone()),
        _ => None,
    };
    let dim = |a: &Attr| match a {
        Attr::Int(v) => Some(Dim::from(*v)),
        Attr::Sym(v) => Some(Dim::from(v)),
        Attr::Dim(v) => Some(v.clone()),
        _ => None,
    };
    let ty = |a: &Attr| match a {
        Attr::Type(v) => Some(v.clone()),
        _ => None,
    };
    all(&items, int)
        .map(Attr::Ints)
        .or_else(|| all(&items, float).map(Attr::Floats))
        .or_else(|| all(&items, string).map(Attr::Strs))
        .or_else(|| all::<Sym>(&items, sym).map(Attr::Syms))
        .or_else(|| all(&items, dim).map(Attr::Dims))
        .or_else(|| all(&items, ty).map(Attr::Types))
}

/// The largest number at the end of a symbol's name: symbols handed out from here on are new.
fn last_fresh(g: &Graph) -> u32 {
    let mut last = 0;
    let mut see = |d: &Dim| {
        d.for_each_sym(&mut |s| {
            let number = s
                .name()
                .rsplit('.')
                .next()
                .and_then(|n| n.parse::<u32>().ok());
            last = last.max(number.unwrap_or(0));
        });
    };
    for (_, node) in g.nodes() {
        node.op.for_each_dim(&mut see);
        for s in node.op.binds() {
            see(&Dim::from(&s));
        }
        for v in &node.results {
            g.ty(*v).for_each_dim(&mut see);
        }
    }
    let regions = g.nodes().flat_map(|(_, n)| n.op.regions());
    let inner = regions.map(|r| r.fresh).max().unwrap_or(0);
    last.max(inner)
}
