//! Scatter in three steps, for every element type and every way that updates meet old values.
//!
//! Updates that go to the same place form a list: `heads` has one word for each place that index tuples can name, `nexts`
//! one for each tuple; both hold tuple numbers plus one, 0 ends a list. Each result element then belongs to one thread,
//! which walks the list of its place, so no type needs atomic arithmetic. Lists have no order; where the last update
//! wins, the walk looks for the highest number.

use crate::binding::{Binding, Stores};
use crate::element::Element;
use crate::shader::{FAULTS, LAUNCH, Param, Shader, params};
use crate::template::fill;

/// Axes of the data that the kernels take.
pub const SCATTER_AXES: usize = 8;

/// Most indexed axes: one buffer each, beside two lists and the word for faults.
pub const SCATTER_INDICES: usize = 5;

params! {
    /// Parameters of all three steps.
    ScatterParams {
        /// Places that index tuples can name.
        places,
        /// Index tuples.
        tuples,
        /// Index tuples of each batch.
        tuples_per_batch,
        /// Places of each batch.
        places_per_batch,
        /// Elements of the result.
        len,
        /// Elements of the update of one tuple.
        window,
        /// Position of the first element of the data.
        data_offset,
        /// Position of the first update.
        updates_offset,
        /// Axes of the data.
        rank,
    }
    [
        /// For each axis of the data: length, distance between places, distance within a window.
        dims: 8,
        /// For each indexed axis: length, distance between places, position of its first index.
        indexed: 5,
    ]
}

/// What an index outside its axis does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outside {
    /// Reports a fault.
    Fault,
    /// Counts as the nearest inside.
    Nearest,
    /// Leaves its update out.
    Skip,
}

/// The list heads, empty. Buffers: `heads`.
pub fn clear() -> Shader {
    shader(
        "scatter_clear",
        vec![Binding::write("heads", Element::U32)],
        include_str!("../wgsl/scatter_clear.wgsl").to_owned(),
    )
}

/// The lists. Buffers: an index buffer (i64) for each indexed axis, `heads`, `nexts`, and the word for faults.
pub fn link(indices: usize, outside: Outside) -> Shader {
    let mut bindings: Vec<Binding> = (0..indices)
        .map(|at| Binding::read(&format!("index{at}"), Element::I64))
        .collect();
    bindings.push(Binding::write_as("heads", Element::U32, Stores::Sums));
    bindings.push(Binding::write("nexts", Element::U32));
    let meet = match outside {
        Outside::Fault => {
            bindings.push(Binding::write_as(FAULTS, Element::U32, Stores::Sums));
            "store_faults(0u, params.launch);\n            return;"
        }
        Outside::Nearest => {
            "if len == 0u { return; }\n            \
             i = vec2<u32>(select(len - 1u, 0u, (i.y & 0x80000000u) != 0u), 0u);"
        }
        Outside::Skip => "return;",
    };
    let each: String = (0..indices)
        .map(|at| {
            format!(
                "    {{
        let len = params.indexed[{at}].x;
        var i = load_index{at}(params.indexed[{at}].z + tuple);
        if i.y != 0u || i.x >= len {{
            {meet}
        }}
        place += i.x * params.indexed[{at}].y;
    }}\n"
            )
        })
        .collect();
    let body = fill(
        include_str!("../wgsl/scatter_link.wgsl"),
        &[("EACH", &each)],
    );
    shader("scatter_link", bindings, body)
}

/// The result. Buffers: `data`, `updates`, `heads`, `nexts`, `out`. `combine` is the text of `fn combine(old: V, update:
/// V) -> V` and what it calls; `None` lets the last update win.
pub fn apply(element: Element, combine: Option<&str>, helpers: Vec<Element>) -> Shader {
    let walk = match combine {
        None => "        last = max(last, at);",
        Some(_) => {
            "        value = combine(value, load_updates(params.updates_offset + (at - 1u) * params.window + within));"
        }
    };
    let finish = match combine {
        None => {
            "    if last != 0u {
        value = load_updates(params.updates_offset + (last - 1u) * params.window + within);
    }"
        }
        Some(_) => "",
    };
    let body = fill(
        include_str!("../wgsl/scatter_apply.wgsl"),
        &[
            ("COMBINE", combine.unwrap_or_default()),
            (
                "DECLARE",
                if combine.is_none() {
                    "    var last = 0u;"
                } else {
                    ""
                },
            ),
            ("WALK", walk),
            ("FINISH", finish),
        ],
    );
    let bindings = vec![
        Binding::read("data", element),
        Binding::read("updates", element),
        Binding::read("heads", Element::U32),
        Binding::read("nexts", Element::U32),
        Binding::write("out", element),
    ];
    Shader {
        helpers,
        ..shader("scatter_apply", bindings, body)
    }
}

/// The words of all steps: the parameters, then the number that faults are reported with.
fn shader(label: &str, bindings: Vec<Binding>, body: String) -> Shader {
    let mut params = ScatterParams::members();
    params.push(Param::Word(LAUNCH.to_owned()));
    Shader {
        label: label.to_owned(),
        bindings,
        params,
        body,
        ..Shader::default()
    }
}
