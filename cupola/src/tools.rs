//! What tools ask of a model beside running it.

use crate::error::Result;
use crate::runner::Options;
use cupola_ir::{Bindings, Graph, Op, Sym, ValueType};
use cupola_passes::plan::{self, Footprint};
use cupola_passes::{Compiled, DeviceId, MissCode};
use cupola_runtime::{Host, RuntimeError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// The graph after a named pass of the pipeline; `import` is the graph itself.
///
/// # Errors
/// An unknown pass (the message lists them), or what the passes find.
pub fn graph_after(graph: &Graph, pass: &str, host: &Host, options: &Options) -> Result<Graph> {
    if pass == "import" {
        return Ok(graph.clone());
    }
    let known: Vec<&str> = std::iter::once("import")
        .chain(cupola_passes::pass_names())
        .collect();
    if !known.contains(&pass) {
        let what = format!("there are {}", known.join(", "));
        return Err(RuntimeError::Input {
            name: pass.to_string(),
            what,
        }
        .into());
    }
    let seen = Arc::new(Mutex::new(None));
    let (inner, wanted) = (seen.clone(), pass.to_string());
    let hook: cupola_passes::Hook = Arc::new(move |name, graph| {
        if name == wanted {
            *inner.lock().unwrap_or_else(|e| e.into_inner()) = Some(graph.clone());
        }
    });
    compile(graph, host, options, Some(hook))?;
    let found = seen.lock().unwrap_or_else(|e| e.into_inner()).take();
    Ok(found.unwrap_or_else(|| graph.clone()))
}

fn compile(
    graph: &Graph,
    host: &Host,
    options: &Options,
    hook: Option<cupola_passes::Hook>,
) -> Result<Compiled> {
    let (_, devices) = host.open(&options.device, options.threads)?;
    let targets: Vec<_> = devices.iter().map(|d| d.target()).collect();
    let device = DeviceId((devices.len() as u32).saturating_sub(1));
    let pass_options = cupola_passes::Options {
        device,
        dump_after: hook,
        verify: options.verify,
        level: cupola_passes::Level::from_number(options.level),
        precision: options.precision,
        ..cupola_passes::Options::default()
    };
    Ok(
        cupola_passes::compile(graph.clone(), &targets, &pass_options)
            .map_err(RuntimeError::from)?,
    )
}

/// How well an operator of a model is supported on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupportRow {
    /// Operator of the source file, or op of the graph.
    pub op: String,
    /// Nodes with it.
    pub count: usize,
    /// `supported`, `decomposed`, `host` or `interpreted`.
    pub support: &'static str,
    /// Why it is not simply supported.
    pub why: String,
}

/// Support of every source operator of a graph on a device, sorted by name.
///
/// # Errors
/// What the passes find.
pub fn support(graph: &Graph, host: &Host, options: &Options) -> Result<Vec<SupportRow>> {
    let compiled = compile(graph, host, options, None)?;
    let mut rows: BTreeMap<String, SupportRow> = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for (_, node) in graph.nodes() {
        let names: Vec<String> = match node.origins.first() {
            Some(o) if seen.insert(o.clone()) => vec![o.op.to_string()],
            Some(_) => vec![],
            None => vec![node.op.name()],
        };
        for op in names {
            let support = match &node.op {
                Op::Composite(_) | Op::Core(_) => "supported",
                Op::Host(_) => "host",
            };
            let row = rows.entry(op.clone());
            row.or_insert(SupportRow {
                op,
                count: 0,
                support,
                why: String::new(),
            })
            .count += 1;
        }
    }
    for miss in &compiled.misses {
        let support = match miss.code {
            MissCode::OtherDevice => "host",
            MissCode::Unsupported => "interpreted",
            _ => continue,
        };
        for o in &compiled.graph.node(miss.node).origins {
            if let Some(row) = rows.get_mut(&*o.op) {
                row.support = support;
                row.why.clone_from(&miss.hint);
            }
        }
    }
    Ok(rows.into_values().collect())
}

/// The memory that a model needs, and the sizes that this holds for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes by kind.
    pub bytes: Footprint,
    /// Symbols of the inputs and state slots, and their values.
    pub sizes: BTreeMap<String, i64>,
    /// Those of them that nothing said, taken as 1.
    pub unset: Vec<String>,
    /// Symbols that only the data of a run decides; what they measure is not counted.
    pub undecided: Vec<String>,
}

/// The memory that a graph needs on a device when its inputs have these sizes; nothing is allocated, no weight is read.
///
/// # Errors
/// What the passes find.
pub fn plan_memory(
    graph: &Graph,
    host: &Host,
    options: &Options,
    sizes: &BTreeMap<String, i64>,
) -> Result<MemoryPlan> {
    let compiled = compile(graph, host, options, None)?;
    let (_, devices) = host.open(&options.device, options.threads)?;
    let targets: Vec<_> = devices.iter().map(|d| d.target()).collect();
    let mut memory = MemoryPlan::default();
    let mut bindings = Bindings::default();
    let inputs = graph.inputs().iter().map(|v| graph.ty(*v));
    let slots = graph.slots.values().map(|s| &s.ty);
    for ty in inputs.chain(slots) {
        for_each_name(ty, &mut |name| {
            memory.sizes.insert(name.to_string(), 1);
        });
    }
    for (name, size) in &mut memory.sizes {
        match sizes.get(name) {
            Some(given) => *size = *given,
            None => memory.unset.push(name.clone()),
        }
        bindings.set(Sym::new(name), *size);
    }
    let mut undecided = BTreeSet::new();
    for slot in &compiled.plan.slots {
        for_each_name(&slot.ty, &mut |name| {
            if !memory.sizes.contains_key(name) {
                undecided.insert(name.to_string());
            }
        });
    }
    memory.undecided.extend(undecided);
    memory.bytes = plan::footprint(&compiled, &targets, &bindings);
    let constants = cupola_runtime::weight_size(&compiled, &devices);
    memory.bytes.weights = memory.bytes.weights.saturating_add(constants);
    Ok(memory)
}

fn for_each_name(ty: &ValueType, visit: &mut dyn FnMut(&str)) {
    ty.for_each_dim(&mut |d| d.for_each_sym(&mut |s: &Sym| visit(s.name())));
}

/// The text form of a graph.
pub fn to_text(graph: &Graph) -> String {
    cupola_ir::graph::text::print(graph)
}

/// A graph as the bytes of an ONNX file.
///
/// # Errors
/// The first op that has no counterpart.
pub fn to_onnx(graph: &Graph) -> Result<Vec<u8>> {
    Ok(cupola_onnx::encode(&cupola_onnx::export(graph, &|_| None)?))
}

/// A graph as the bytes of a `.cupola` file.
pub fn to_binary(graph: &Graph) -> Vec<u8> {
    cupola_native::write(graph)
}
