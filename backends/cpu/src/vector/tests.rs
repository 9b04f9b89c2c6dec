//! Programs as text: `golden/NAME.txt` holds a kernel and, after a line `---`, the program it becomes; `golden/wide` those
//! of wide code.
//!
//! `BLESS=1 cargo test` writes the second part anew.

use super::verify::verify;
use super::*;
use crate::coalesce::coalesce;
use crate::schedule;
use cupola_ir::kernel::text;
use std::path::PathBuf;

const SEPARATOR: &str = "---\n";

fn program(source: &str, machine: Machine) -> Program {
    let kernel = coalesce(text::parse(source).expect("a kernel"));
    cupola_ir::kernel::verify(&kernel).expect("well formed");
    lower(&kernel, &schedule::shape(&kernel, machine), machine)
}

/// Compares all programs of a folder and gives their number.
fn check_folder(folder: &str, machine: Machine) -> usize {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the fixtures") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            continue;
        }
        let whole = std::fs::read_to_string(&path).expect("readable");
        let source = whole.split(SEPARATOR).next().unwrap_or_default();
        let program = program(source, machine);
        assert_eq!(verify(&program), Ok(()), "{}", path.display());
        let now = format!("{source}{SEPARATOR}{program}");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &now).expect("writable");
        } else {
            assert_eq!(
                whole,
                now,
                "{}: run with BLESS=1 and read the difference",
                path.display()
            );
        }
        seen += 1;
    }
    seen
}

#[test]
fn kernels_become_these_programs() {
    let portable = check_folder("src/vector/golden", Machine::Portable);
    let wide = check_folder("src/vector/golden/wide", Machine::Wide);
    assert!(
        portable >= 12 && wide >= 4,
        "{portable} and {wide} fixtures"
    );
}

/// A program of one block whose registers have these types.
fn flat(registers: Vec<Type>, body: Vec<Inst>) -> Program {
    Program {
        name: "flat".into(),
        registers,
        vars: vec![],
        body,
    }
}

#[test]
fn mistakes_are_found() {
    let float = Type {
        elem: Elem::F32,
        lanes: 4,
    };
    let (a, b) = (Reg(0), Reg(1));
    let constant = |r| Inst::Let(r, Op::Const(0));
    let sum = Inst::Let(b, Op::Binary(BinOp::Add, a, a));
    let good = flat(vec![float, float], vec![constant(a), sum.clone()]);
    assert_eq!(verify(&good), Ok(()));
    for (registers, body) in [
        (vec![float, float], vec![sum.clone()]),
        (vec![float, float], vec![constant(a), constant(a)]),
        (vec![float, Type::INDEX], vec![constant(a), sum.clone()]),
        (
            vec![Type::mask(8, 1), float],
            vec![
                constant(a),
                Inst::If {
                    cond: a,
                    body: vec![constant(b)],
                },
                Inst::Fault(b, Fault::Index),
            ],
        ),
    ] {
        assert!(verify(&flat(registers, body)).is_err());
    }
}
