//! The text form of a kernel: printed by [`print()`], read by [`parse`], back and forth without loss.
//!
//! ```text
//! kernel @sum_exp {
//!   s0 = $n
//!   s1 = 8*$n
//!   b0 = read f32[s1]
//!   b1 = write f32[s0]
//!   a0 = parallel s0
//!   a1 = inner 8
//!   i0 = a0
//!   i1 = 8
//!   i2 = i0 * i1
//!   i3 = a1
//!   i4 = i2 + i3
//!   e0 = load b0[i4]
//!   e1 = exp(e0)
//!   e2 = accum(0, 0)
//!   reduce [a1] {sum e1}
//!   store [] {b1[i0] = e2}
//! }
//! ```
//!
//! Run-time sizes `s`, buffers `b`, axes `a`, indices `i` and expressions `e` are numbered in the order of their
//! arenas; phases follow. `docs/TEXT.md` has the whole grammar.

use super::{
    Access, Accum, AccumKind, AxisId, BufferDecl, BufferId, Expr, ExprId, Extent, Index, IndexId,
    Kernel, Literal, Phase, Store, StoreKind,
};
use crate::error::Result;
use crate::graph::text::tensor::{parse_scalar, print_scalar};
use crate::lexer::{Cursor, at_name};
use crate::scalar::Scalar;
use crate::tensor::Tensor;
use bytes::Bytes;
use std::fmt::Write;

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Extent::Const(n) => write!(f, "{n}"),
            Extent::Size(s) => write!(f, "s{s}"),
        }
    }
}

/// The kernel as text.
pub fn print(k: &Kernel) -> String {
    let mut out = format!("kernel {} {{\n", at_name(&k.name));
    let mut line = |text: String| {
        let _ = writeln!(out, "  {text}");
    };
    for (at, size) in k.sizes.iter().enumerate() {
        line(format!("s{at} = {size}"));
    }
    for (at, b) in k.buffers.iter().enumerate() {
        line(format!(
            "b{at} = {} {}[{}]",
            access_name(b.access),
            b.dtype,
            b.len
        ));
    }
    for (at, extent) in k.axes.iter().enumerate() {
        let role = if at < k.parallel { "parallel" } else { "inner" };
        line(format!("a{at} = {role} {extent}"));
    }
    for (at, index) in k.indices.iter().enumerate() {
        line(format!("i{at} = {}", print_index(index)));
    }
    for (at, expr) in k.exprs.iter().enumerate() {
        line(format!("e{at} = {}", print_expr(expr)));
    }
    for phase in &k.phases {
        line(print_phase(phase));
    }
    out.push_str("}\n");
    out
}

fn access_name(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::ReadWrite => "read_write",
    }
}

fn print_index(index: &Index) -> String {
    let two = |a: &IndexId, op: &str, b: &IndexId| format!("i{} {op} i{}", a.0, b.0);
    match index {
        Index::Const(c) => c.to_string(),
        Index::Size(s) => format!("s{s}"),
        Index::Axis(a) => format!("a{}", a.0),
        Index::Add(a, b) => two(a, "+", b),
        Index::Sub(a, b) => two(a, "-", b),
        Index::Mul(a, b) => two(a, "*", b),
        Index::Div(a, b) => two(a, "/", b),
        Index::Rem(a, b) => two(a, "%", b),
        Index::Min(a, b) => format!("min(i{}, i{})", a.0, b.0),
        Index::Max(a, b) => format!("max(i{}, i{})", a.0, b.0),
        Index::Checked {
            value,
            extent,
            fault,
        } => {
            let fault = if *fault { " fault" } else { "" };
            format!("checked(e{}, i{}){fault}", value.0, extent.0)
        }
    }
}

fn guarded(guard: &Option<ExprId>) -> String {
    guard.map_or(String::new(), |g| format!(" if e{}", g.0))
}

fn print_expr(expr: &Expr) -> String {
    match expr {
        Expr::Const(l) => {
            let size = l.dtype.bits().div_ceil(8);
            let bytes = Bytes::copy_from_slice(&l.bits.to_le_bytes()[..size]);
            let value = match Tensor::new(l.dtype, vec![], bytes) {
                Some(t) => print_scalar(&t),
                None => format!("bits(0x{:x})", l.bits),
            };
            format!("const {} {value}", l.dtype)
        }
        Expr::Index(i, dtype) => format!("index {dtype} i{}", i.0),
        Expr::Less(a, b) => format!("less(i{}, i{})", a.0, b.0),
        Expr::Load {
            buffer,
            index,
            guard,
        } => {
            format!("load b{}[i{}]{}", buffer.0, index.0, guarded(guard))
        }
        Expr::Unary(f, x) => format!("{}(e{})", f.name(), x.0),
        Expr::Binary(f, x, y) => format!("{}(e{}, e{})", f.name(), x.0, y.0),
        Expr::Ternary(f, x, y, z) => format!("{}(e{}, e{}, e{})", f.name(), x.0, y.0, z.0),
        Expr::Cast { x, to, saturate } => {
            let saturate = if *saturate { " saturate" } else { "" };
            format!("cast {to} e{}{saturate}", x.0)
        }
        Expr::Bitcast { x, to } => format!("bitcast {to} e{}", x.0),
        Expr::Accum { phase, accum } => format!("accum({phase}, {accum})"),
        Expr::Random {
            index,
            stream,
            seed,
            run,
        } => {
            format!("random(i{}, {}, s{seed}, s{run})", index.0, *stream as i64)
        }
    }
}

fn accum_name(kind: AccumKind) -> &'static str {
    match kind {
        AccumKind::Sum => "sum",
        AccumKind::Prod => "prod",
        AccumKind::Max => "max",
        AccumKind::Min => "min",
        AccumKind::ArgMax { last: false } => "argmax",
        AccumKind::ArgMax { last: true } => "argmax_last",
        AccumKind::ArgMin { last: false } => "argmin",
        AccumKind::ArgMin { last: true } => "argmin_last",
    }
}

fn print_phase(phase: &Phase) -> String {
    let list = |axes: &[AxisId]| {
        let axes: Vec<String> = axes.iter().map(|a| format!("a{}", a.0)).collect();
        axes.join(", ")
    };
    match phase {
        Phase::Reduce { axes, accums } => {
            let accums: Vec<String> = accums
                .iter()
                .map(|a| format!("{} e{}", accum_name(a.kind), a.value.0))
                .collect();
            format!("reduce [{}] {{{}}}", list(axes), accums.join(", "))
        }
        Phase::Store { axes, stores } => {
            let stores: Vec<String> = stores
                .iter()
                .map(|s| {
                    let op = match s.kind {
                        StoreKind::Set => "=",
                        StoreKind::AtomicAdd => "+=",
                    };
                    let guard = guarded(&s.guard);
                    format!("b{}[i{}] {op} e{}{guard}", s.buffer.0, s.index.0, s.value.0)
                })
                .collect();
            format!("store [{}] {{{}}}", list(axes), stores.join(", "))
        }
    }
}

/// Reads the text form of a kernel. Only the form is checked; [`super::verify()`] checks the rest.
///
/// # Errors
/// [`crate::IrError::Parse`] with the place.
pub fn parse(text: &str) -> Result<Kernel> {
    let mut c = Cursor::new(text);
    if !c.eat_word("kernel") {
        return c.expected("'kernel'");
    }
    let mut k = Kernel {
        name: c.at_name()?,
        ..Kernel::default()
    };
    c.expect("{")?;
    while !c.eat("}") {
        statement(&mut c, &mut k)?;
    }
    if !c.is_at_end() {
        return c.expected("the end after the kernel");
    }
    Ok(k)
}

fn statement(c: &mut Cursor, k: &mut Kernel) -> Result<()> {
    if c.eat_word("reduce") {
        let axes = axes(c)?;
        c.expect("{")?;
        let accums = c.list("}", accum)?;
        k.phases.push(Phase::Reduce { axes, accums });
        return Ok(());
    }
    if c.eat_word("store") {
        let axes = axes(c)?;
        c.expect("{")?;
        let stores = c.list("}", store)?;
        k.phases.push(Phase::Store { axes, stores });
        return Ok(());
    }
    let at = c.position();
    let label = c.word("a definition, a phase or '}'")?;
    c.expect("=")?;
    let (kind, number) = label.split_at(1);
    let next = match kind {
        "s" => {
            k.sizes.push(c.dim()?);
            k.sizes.len()
        }
        "b" => {
            k.buffers.push(buffer(c)?);
            k.buffers.len()
        }
        "a" => {
            let parallel = c.eat_word("parallel");
            if parallel && k.parallel < k.axes.len() {
                return Err(c.error_at(at, "a parallel axis after an inner one"));
            }
            if !parallel && !c.eat_word("inner") {
                return c.expected("'parallel' or 'inner'");
            }
            k.axes.push(extent(c)?);
            k.parallel += usize::from(parallel);
            k.axes.len()
        }
        "i" => {
            k.indices.push(index(c)?);
            k.indices.len()
        }
        "e" => {
            k.exprs.push(expr(c)?);
            k.exprs.len()
        }
        _ => return Err(c.error_at(at, format!("'{label}' begins no definition"))),
    };
    if number != (next - 1).to_string() {
        return Err(c.error_at(at, format!("expected {kind}{}, found {label}", next - 1)));
    }
    Ok(())
}

/// The number of a label such as `e12`.
fn label(c: &mut Cursor, kind: char) -> Result<u32> {
    let at = c.position();
    let word = c.word(&format!("{kind} and a number"))?;
    let number = word.strip_prefix(kind).and_then(|n| n.parse().ok());
    number.ok_or_else(|| c.error_at(at, format!("expected {kind} and a number, found '{word}'")))
}

fn extent(c: &mut Cursor) -> Result<Extent> {
    if c.peek_word().starts_with('s') {
        label(c, 's').map(Extent::Size)
    } else {
        c.int("an extent").map(Extent::Const)
    }
}

fn buffer(c: &mut Cursor) -> Result<BufferDecl> {
    let all = [Access::Read, Access::Write, Access::ReadWrite];
    let Some(access) = all.into_iter().find(|a| c.eat_word(access_name(*a))) else {
        return c.expected("'read', 'write' or 'read_write'");
    };
    let dtype = c.dtype()?;
    c.expect("[")?;
    let len = extent(c)?;
    c.expect("]")?;
    Ok(BufferDecl { dtype, access, len })
}

fn axes(c: &mut Cursor) -> Result<Vec<AxisId>> {
    c.expect("[")?;
    c.list("]", |c| label(c, 'a').map(AxisId))
}

fn index_label(c: &mut Cursor) -> Result<IndexId> {
    label(c, 'i').map(IndexId)
}

fn expr_label(c: &mut Cursor) -> Result<ExprId> {
    label(c, 'e').map(ExprId)
}

fn index(c: &mut Cursor) -> Result<Index> {
    for (word, make) in [
        ("min", Index::Min as fn(IndexId, IndexId) -> Index),
        ("max", Index::Max),
    ] {
        if c.eat_word(word) {
            let [x, y] = two(c, index_label, index_label)?;
            return Ok(make(x, y));
        }
    }
    if c.eat_word("checked") {
        c.expect("(")?;
        let value = expr_label(c)?;
        c.expect(",")?;
        let extent = index_label(c)?;
        c.expect(")")?;
        let fault = c.eat_word("fault");
        return Ok(Index::Checked {
            value,
            extent,
            fault,
        });
    }
    let word = c.peek_word();
    if word.starts_with('s') {
        return label(c, 's').map(Index::Size);
    }
    if word.starts_with('a') {
        return label(c, 'a').map(|a| Index::Axis(AxisId(a)));
    }
    if !word.starts_with('i') {
        return c.int("an index").map(Index::Const);
    }
    let x = index_label(c)?;
    for (op, make) in [
        ("+", Index::Add as fn(IndexId, IndexId) -> Index),
        ("-", Index::Sub),
        ("*", Index::Mul),
        ("/", Index::Div),
        ("%", Index::Rem),
    ] {
        if c.eat(op) {
            return Ok(make(x, index_label(c)?));
        }
    }
    c.expected("an operator")
}

/// Two labels in parentheses.
fn two<T>(
    c: &mut Cursor,
    first: fn(&mut Cursor) -> Result<T>,
    second: fn(&mut Cursor) -> Result<T>,
) -> Result<[T; 2]> {
    c.expect("(")?;
    let x = first(c)?;
    c.expect(",")?;
    let y = second(c)?;
    c.expect(")")?;
    Ok([x, y])
}

fn guard(c: &mut Cursor) -> Result<Option<ExprId>> {
    if c.eat_word("if") {
        expr_label(c).map(Some)
    } else {
        Ok(None)
    }
}

fn expr(c: &mut Cursor) -> Result<Expr> {
    let at = c.position();
    let word = c.word("an expression")?;
    Ok(match word {
        "const" => literal(c)?,
        "index" => {
            let dtype = c.dtype()?;
            Expr::Index(index_label(c)?, dtype)
        }
        "less" => {
            let [x, y] = two(c, index_label, index_label)?;
            Expr::Less(x, y)
        }
        "load" => {
            let (buffer, index) = element(c)?;
            let guard = guard(c)?;
            Expr::Load {
                buffer,
                index,
                guard,
            }
        }
        "cast" => {
            let to = c.dtype()?;
            let x = expr_label(c)?;
            let saturate = c.eat_word("saturate");
            Expr::Cast { x, to, saturate }
        }
        "bitcast" => {
            let to = c.dtype()?;
            let x = expr_label(c)?;
            Expr::Bitcast { x, to }
        }
        "accum" => {
            let number = |c: &mut Cursor| c.index("a number");
            let [phase, accum] = two(c, number, number)?;
            Expr::Accum { phase, accum }
        }
        "random" => {
            c.expect("(")?;
            let index = index_label(c)?;
            c.expect(",")?;
            let stream = c.int("a stream number")? as u64;
            c.expect(",")?;
            let seed = label(c, 's')?;
            c.expect(",")?;
            let run = label(c, 's')?;
            c.expect(")")?;
            Expr::Random {
                index,
                stream,
                seed,
                run,
            }
        }
        name => {
            let Some(f) = Scalar::from_name(name) else {
                return Err(c.error_at(at, format!("unknown expression '{name}'")));
            };
            c.expect("(")?;
            match (f.arity(), &c.list(")", expr_label)?[..]) {
                (1, [x]) => Expr::Unary(f, *x),
                (2, [x, y]) => Expr::Binary(f, *x, *y),
                (3, [x, y, z]) => Expr::Ternary(f, *x, *y, *z),
                (n, _) => return Err(c.error_at(at, format!("{name} takes {n} operands"))),
            }
        }
    })
}

fn literal(c: &mut Cursor) -> Result<Expr> {
    let dtype = c.dtype()?;
    let value = parse_scalar(c, dtype)?;
    let mut bits = [0u8; 8];
    bits[..value.bytes().len()].copy_from_slice(value.bytes());
    Ok(Expr::Const(Literal {
        dtype,
        bits: u64::from_le_bytes(bits),
    }))
}

/// `b0[i1]`.
fn element(c: &mut Cursor) -> Result<(BufferId, IndexId)> {
    let buffer = label(c, 'b').map(BufferId)?;
    c.expect("[")?;
    let index = index_label(c)?;
    c.expect("]")?;
    Ok((buffer, index))
}

fn accum(c: &mut Cursor) -> Result<Accum> {
    let all = [
        AccumKind::Sum,
        AccumKind::Prod,
        AccumKind::Max,
        AccumKind::Min,
        AccumKind::ArgMax { last: false },
        AccumKind::ArgMax { last: true },
        AccumKind::ArgMin { last: false },
        AccumKind::ArgMin { last: true },
    ];
    let Some(kind) = all.into_iter().find(|k| c.eat_word(accum_name(*k))) else {
        return c.expected("an accumulator");
    };
    let value = expr_label(c)?;
    Ok(Accum { kind, value })
}

fn store(c: &mut Cursor) -> Result<Store> {
    let (buffer, index) = element(c)?;
    let kind = if c.eat("+=") {
        StoreKind::AtomicAdd
    } else {
        c.expect("=")?;
        StoreKind::Set
    };
    let value = expr_label(c)?;
    let guard = guard(c)?;
    Ok(Store {
        buffer,
        index,
        value,
        guard,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::IrError;
    use crate::kernel::{run_kernel, verify};

    /// Row-wise softmax of a guarded gather, and every other kind of entry.
    const SAMPLE: &str = r#"kernel @softmax {
  s0 = $n
  s1 = 2*$n + 1
  b0 = read f32[32]
  b1 = write f32[s0]
  b2 = read i64[4]
  b3 = read_write i32[1]
  a0 = parallel 4
  a1 = inner 8
  a2 = inner 8
  i0 = a0
  i1 = 8
  i2 = i0 * i1
  i3 = a1
  i4 = i2 + i3
  i5 = a2
  i6 = i2 + i5
  i7 = checked(e0, i1) fault
  i8 = s1
  i9 = min(i7, i8)
  i10 = 0
  e0 = load b2[i0]
  e1 = load b0[i4]
  e2 = accum(0, 0)
  e3 = sub(e1, e2)
  e4 = exp(e3)
  e5 = accum(1, 0)
  e6 = load b0[i6]
  e7 = sub(e6, e2)
  e8 = exp(e7)
  e9 = div(e8, e5)
  e10 = less(i5, i9)
  e11 = const f32 0.0
  e12 = select(e10, e9, e11)
  e13 = index i32 i9
  e14 = const f32 bits(0x7fc00001)
  e15 = cast f16 e9
  e16 = bitcast i16 e15
  e17 = const bool true
  e18 = random(i0, -1, s0, s1)
  e19 = cast f8e4m3fn e9 saturate
  reduce [a1] {max e1, argmax_last e1}
  reduce [] {sum e4}
  store [a2] {b1[i6] = e12 if e10}
  store [] {b3[i10] += e13}
}
"#;

    #[test]
    fn text_round_trips_byte_for_byte() {
        let kernel = parse(SAMPLE).unwrap();
        assert_eq!(print(&kernel), SAMPLE);
        assert_eq!(parse(&print(&kernel)).unwrap(), kernel);
    }

    #[test]
    fn a_softmax_runs() {
        let text = r#"kernel @softmax {
  s0 = $n
  b0 = read f32[s0]
  b1 = write f32[s0]
  a0 = inner s0
  a1 = inner s0
  a2 = inner s0
  i0 = a0
  i1 = a1
  i2 = a2
  e0 = load b0[i0]
  e1 = accum(0, 0)
  e2 = load b0[i1]
  e3 = sub(e2, e1)
  e4 = exp(e3)
  e5 = accum(1, 0)
  e6 = load b0[i2]
  e7 = sub(e6, e1)
  e8 = exp(e7)
  e9 = div(e8, e5)
  reduce [a0] {max e0}
  reduce [a1] {sum e4}
  store [a2] {b1[i2] = e9}
}"#;
        let kernel = parse(text).unwrap();
        verify(&kernel).unwrap();
        let x: Vec<u8> = [1f32, 2.0, 3.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let mut buffers = [x, vec![0; 12]];
        run_kernel(&kernel, &mut buffers, &[3]).unwrap();
        let y: Vec<f32> = buffers[1]
            .as_chunks::<4>()
            .0
            .iter()
            .map(|c| f32::from_le_bytes(*c))
            .collect();
        assert_eq!(y, [0.090_030_57, 0.244_728_48, 0.665_240_94]);
        let error = run_kernel(&kernel, &mut buffers, &[4]).unwrap_err();
        assert!(
            error.to_string().contains("12 bytes, too few for 4 of f32"),
            "{error}"
        );
    }

    #[test]
    fn faults_are_reported_after_the_run() {
        let text = r#"kernel @gather {
  b0 = read f32[2]
  b1 = read i64[3]
  b2 = write f32[3]
  a0 = parallel 3
  i0 = a0
  i1 = 2
  i2 = checked(e0, i1) fault
  e0 = load b1[i0]
  e1 = load b0[i2]
  store [] {b2[i0] = e1}
}"#;
        let kernel = parse(text).unwrap();
        let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let at: Vec<u8> = [1i64, 5, -1].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut buffers = [floats(&[3.0, 4.0]), at, floats(&[0.0; 3])];
        let error = run_kernel(&kernel, &mut buffers, &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("index 5 is outside an axis of extent 2"),
            "{error}"
        );
        assert_eq!(buffers[2], floats(&[4.0, 4.0, 3.0]));
    }

    #[test]
    fn broken_kernels_are_refused() {
        let finds = |text: &str| match verify(&parse(text).unwrap()) {
            Err(IrError::Invalid(what)) => what,
            other => panic!("{other:?}"),
        };
        let with = |lines: &str| {
            finds(&format!(
                "kernel @k {{ b0 = read_write f32[4] a0 = parallel 4 a1 = inner 2 a2 = inner 2 {lines} }}"
            ))
        };
        assert!(with("i0 = a0 e0 = load b9[i0]").contains("cannot be read"));
        assert!(with("i0 = i1 + i1 i1 = a0").contains("does not exist before it"));
        assert!(with("e0 = const i32 1 e1 = exp(e0)").contains("does not take operands"));
        assert!(
            with("i0 = a1 e0 = load b0[i0] reduce [a2] {sum e0}")
                .contains("axis 1 of another phase")
        );
        assert!(
            with("e0 = const i64 1 i0 = a0 store [] {b0[i0] = e0}")
                .contains("does not fit its buffer")
        );
        assert!(with("reduce [a0] {}").contains("axis 0 is not its own"));
        let cycle = "kernel @k { b0 = read i64[4] a0 = parallel 4 i0 = 4 i1 = checked(e0, i0) e0 = load b0[i1] store [] {} }";
        assert!(finds(cycle).contains("depends on an element that it addresses"));
    }

    #[test]
    fn damaged_text_never_panics() {
        use crate::eval::random;
        let pieces: Vec<&str> = SAMPLE.split_inclusive([' ', ',', '(', '[', '\n']).collect();
        for round in 0..4000u64 {
            let mut text = pieces.clone();
            let word = |n: u64| random::bits(5, 0, round, n) as usize;
            let at = word(0) % text.len();
            match word(2) % 3 {
                0 => text[at] = pieces[word(1) % pieces.len()],
                1 => {
                    text.remove(at);
                }
                _ => text.insert(at, pieces[word(1) % pieces.len()]),
            }
            if let Ok(kernel) = parse(&text.concat()) {
                let printed = print(&kernel);
                assert_eq!(print(&parse(&printed).unwrap()), printed);
                if verify(&kernel).is_ok() {
                    let mut buffers = vec![vec![0; 512]; kernel.buffers.len()];
                    let _ = run_kernel(&kernel, &mut buffers, &vec![16; kernel.sizes.len()]);
                }
            }
        }
    }
}
