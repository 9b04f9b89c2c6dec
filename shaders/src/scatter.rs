//! Scatter for every element type and every way that updates meet old values: in three steps, or in one where the last
//! update wins and the data are written over.
//!
//! Updates that go to the same place form a list: `heads` has one word for each place that index tuples can name, `nexts`
//! one for each tuple; both hold tuple numbers plus one, 0 ends a list. Each result element then belongs to one thread,
//! which walks the list of its place, so no type needs atomic arithmetic. Lists have no order; where the last update
//! wins, the walk looks for the highest number.
//!
//! Written over, data cost nothing but what is updated. A workgroup for each tuple of few then looks for a later one of the
//! same place itself ([`put`]): that takes one launch.

use crate::binding::{Binding, Stores, Width};
use crate::element::Element;
use crate::shader::{FAULTS, LAUNCH, Param, Shader, params};
use crate::template::fill;

/// Axes of the data that the kernels take.
pub const SCATTER_AXES: usize = 8;

/// Most indexed axes: one buffer each, beside two lists and the word for faults.
pub const SCATTER_INDICES: usize = 5;

params! {
    /// Parameters of every step.
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
        /// The first index tuple of the launch; for [`put`], as the following two.
        first,
        /// The index tuple after the launch's last.
        end,
        /// Elements of the data of each batch.
        batch_len,
    }
    [
        /// For each axis of the data: length, distance between places, distance within a window, distance in the data.
        dims: 8,
        /// For each indexed axis: length, distance between places, position of its first index, distance in the data.
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
    if outside == Outside::Fault {
        bindings.push(Binding::write_as(FAULTS, Element::U32, Stores::Sums));
    }
    let each = each_index(indices, outside, "return;", 'y');
    let body = fill(
        include_str!("../wgsl/scatter_link.wgsl"),
        &[("EACH", &each)],
    );
    shader("scatter_link", bindings, body)
}

/// WGSL that adds what each index of `tuple` stands for to `place`, by the given component of `params.indexed`; `leave` is
/// what happens where one is outside.
fn each_index(indices: usize, outside: Outside, leave: &str, component: char) -> String {
    let meet = match outside {
        Outside::Fault => format!("store_faults(0u, params.launch);\n            {leave}"),
        Outside::Nearest => format!(
            "if len == 0u {{ {leave} }}\n            \
             i = vec2<u32>(select(len - 1u, 0u, (i.y & 0x80000000u) != 0u), 0u);"
        ),
        Outside::Skip => leave.to_owned(),
    };
    let one = |at| {
        format!(
            "    {{
        let len = params.indexed[{at}].x;
        var i = load_index{at}(params.indexed[{at}].z + tuple);
        if i.y != 0u || i.x >= len {{
            {meet}
        }}
        place += i.x * params.indexed[{at}].{component};
    }}\n"
        )
    };
    (0..indices).map(one).collect()
}

/// The data written over by updates of which the last of a place wins, for tuples from `params.first` to `params.end`.
/// Buffers: `updates`, an index buffer (i64) for each indexed axis, `out`, and the word for faults. With [`Width::Four`]
/// windows, distances and offsets are multiples of four; otherwise narrow elements are stored atomically.
pub fn put(element: Element, indices: usize, outside: Outside, width: Width) -> Shader {
    let mut bindings = vec![Binding::read_as("updates", element, width)];
    bindings.extend((0..indices).map(|at| Binding::read(&format!("index{at}"), Element::I64)));
    bindings.push(Binding {
        width,
        ..Binding::write("out", element)
    });
    if outside == Outside::Fault {
        bindings.push(Binding::write_as(FAULTS, Element::U32, Stores::Sums));
    }
    let (step, count) = match width {
        Width::One => ("1", ""),
        Width::Four | Width::Halves => ("4", "4"),
    };
    let body = fill(
        include_str!("../wgsl/scatter_put.wgsl"),
        &[
            (
                "EACH",
                &each_index(indices, outside, "return NOWHERE;", 'w'),
            ),
            ("STEP", step),
            ("COUNT", count),
        ],
    );
    shader("scatter_put", bindings, body)
}

/// Where old values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Old {
    /// The buffer `data`, apart from the result.
    Apart,
    /// The result itself, which is changed where updates go to.
    Under,
}

/// The result. Buffers: `data` unless it is the result, `updates`, `heads`, `nexts`, `out`. `combine` is the text of `fn
/// combine(old: V, update: V) -> V` and what it calls; `None` lets the last update win.
pub fn apply(element: Element, old: Old, combine: Option<&str>, helpers: Vec<Element>) -> Shader {
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
    let load = match old {
        Old::Apart => "    var value = load_data(params.data_offset + element);",
        Old::Under => {
            "    if at == 0u {\n        return;\n    }\n    var value = load_out(element);"
        }
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
            ("LOAD", load),
            ("WALK", walk),
            ("FINISH", finish),
        ],
    );
    let mut bindings = vec![
        Binding::read("updates", element),
        Binding::read("heads", Element::U32),
        Binding::read("nexts", Element::U32),
        Binding::write("out", element),
    ];
    if old == Old::Apart {
        bindings.insert(0, Binding::read("data", element));
    }
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
