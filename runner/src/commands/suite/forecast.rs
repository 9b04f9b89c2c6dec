//! `cupola bench --suite --forecast`: the suite on a GPU that need not be here, from its data sheet.

use crate::fail::Outcome;
use cupola::runtime::{Dispatch, Forecast, KnownGpu};
use cupola::suite::{Arithmetic, Case};
use cupola::{Bindings, Options, passes::Level};

/// Most kernels of a case that get a line each.
const FEW: usize = 4;

const HEAD: [&str; 8] = [
    "case",
    "MB",
    "MFLOP",
    "us",
    "of limit",
    "kernel",
    "workgroups",
    "instructions",
];

type Line = [String; HEAD.len()];

/// Prints a table, in Markdown, with a line for each kernel of a case or one for a case of many.
pub fn forecast(chosen: &[Case], gpu: &str, options: &Options) -> Outcome {
    let known = KnownGpu::named(gpu).map_err(cupola::Error::from)?;
    let (copy, single, half) = known.rates();
    let mut lines = vec![HEAD.map(String::from)];
    for case in chosen {
        let units = known.forecast(
            case.build()?.graph,
            Level::from_number(options.level),
            options.precision,
            &Bindings::default(),
        );
        let rate = match case.arithmetic {
            Arithmetic::F32 => single,
            Arithmetic::F16 => half,
        };
        let limit = (case.bytes / copy).max(case.flops / rate);
        let units = units.map_err(cupola::Error::from)?;
        lines.extend(lines_of(case, &units, limit));
    }
    println!(
        "{gpu} by its data sheet: copy {:.0} GB/s, f32 {:.1} TFLOP/s, f16 {:.1} TFLOP/s\n",
        copy / 1e9,
        single / 1e12,
        half / 1e12
    );
    print(&lines);
    Ok(())
}

fn lines_of(case: &Case, units: &[Forecast], limit: f64) -> Vec<Line> {
    let sum = |of: fn(&Forecast) -> f64| units.iter().map(of).sum::<f64>();
    let seconds = sum(|unit| unit.seconds);
    let dispatches: Vec<_> = units.iter().flat_map(|unit| &unit.dispatches).collect();
    let kernel = |dispatch: &&Dispatch| {
        [
            dispatch.kernel.clone(),
            format!("{} x {}", dispatch.groups, dispatch.threads),
            dispatch.instructions.to_string(),
        ]
    };
    let mut kernels: Vec<[String; 3]> = match dispatches.len() {
        0..=FEW => dispatches.iter().map(kernel).collect(),
        many => vec![[format!("{many} kernels"), String::new(), String::new()]],
    };
    if kernels.is_empty() {
        kernels.push(Default::default());
    }
    let amounts = [
        case.name.clone(),
        format!("{:.2}", sum(|unit| unit.bytes) / 1e6),
        format!("{:.1}", sum(|unit| unit.operations) / 1e6),
        format!("{:.1}", seconds * 1e6),
        format!("{:.0} %", 100.0 * limit / seconds),
    ];
    let first = |at: usize| {
        if at == 0 {
            amounts.clone()
        } else {
            Default::default()
        }
    };
    let line = |(at, [kernel, groups, instructions]): (usize, [String; 3])| {
        let [name, bytes, operations, micros, share] = first(at);
        [
            name,
            bytes,
            operations,
            micros,
            share,
            kernel,
            groups,
            instructions,
        ]
    };
    kernels.into_iter().enumerate().map(line).collect()
}

/// Numbers to the right, names to the left.
fn print(lines: &[Line]) {
    let is_name = |at: usize| HEAD[at] == "case" || HEAD[at] == "kernel";
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    for (number, line) in lines.iter().enumerate() {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            match is_name(at) {
                true => print!("| {cell:width$} "),
                false => print!("| {cell:>width$} "),
            }
        }
        println!("|");
        if number == 0 {
            for (at, width) in widths.iter().enumerate() {
                let end = if is_name(at) { "-" } else { ":" };
                print!("| {}{end} ", "-".repeat(width - 1));
            }
            println!("|");
        }
    }
}
