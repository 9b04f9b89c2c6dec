//! Kernels as data: bindings, parameters and a body, assembled into WGSL.

use crate::binding::Binding;
use crate::element::Element;

/// Where a kernel finds its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParamSpace {
    /// `@group(1) @binding(0) var<uniform> params`: works everywhere.
    Uniform,
    /// `var<immediate> params`: inside the command, an optional feature.
    Immediate,
}

/// A member of the parameter struct.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Param {
    /// `NAME: u32`, one word.
    Word(String),
    /// `NAME: array<vec4<u32>, LEN>`, from a multiple of four words.
    Vectors(String, usize),
}

/// Declares a kernel's parameters once: a Rust struct to fill in and the members of the WGSL `struct Params`. Members are
/// words first, then arrays of four-word vectors.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $word:ident),* $(,)? }
     $([ $($(#[$vector_doc:meta])* $vector:ident: $len:literal),* $(,)? ])?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name {
            $($(#[$word_doc])* pub $word: u32,)*
            $($($(#[$vector_doc])* pub $vector: [[u32; 4]; $len],)*)?
        }

        impl $name {
            /// Members of the WGSL struct.
            pub fn members() -> Vec<$crate::shader::Param> {
                vec![
                    $($crate::shader::Param::Word(stringify!($word).to_owned()),)*
                    $($($crate::shader::Param::Vectors(stringify!($vector).to_owned(), $len),)*)?
                ]
            }

            /// The struct as the kernel sees it, without the epilogue's words.
            pub fn words(&self) -> Vec<u32> {
                let words = vec![$(self.$word),*];
                $(
                    let mut words = words;
                    words.resize(words.len().next_multiple_of(4), 0);
                    $(words.extend(self.$vector.iter().flatten());)*
                )?
                words
            }
        }
    };
}
pub(crate) use params;

/// Code spliced in where a kernel has a result element in hand, instead of the plain store.
///
/// `code` holds `fn epilogue(value: V, index: u32, row: u32, col: u32, batch: u32)`, with V the kernel's accumulator type,
/// and whatever helpers it needs; it stores with `store_out`. `index` is the element's place in the result buffer; row,
/// column and batch are the kernel's. It may read `params.NAME` for its own `params` and use the accessors of its own
/// `bindings`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Epilogue {
    /// WGSL functions; empty for a plain store.
    pub code: String,
    /// Buffers after the kernel's own.
    pub bindings: Vec<Binding>,
    /// Parameter words after the kernel's own.
    pub params: Vec<String>,
}

impl Epilogue {
    /// The functions, or one that stores values of type `value_type` as `out` holds them.
    pub(crate) fn code_for(&self, value_type: &str, out: Element) -> String {
        if !self.code.is_empty() {
            return self.code.clone();
        }
        let out = out.value_type();
        format!(
            "fn epilogue(value: {value_type}, index: u32, row: u32, col: u32, batch: u32) {{\n    \
             store_out(index, {out}(value));\n}}\n"
        )
    }
}

/// An optional part of the language that a kernel uses. A device without the feature refuses the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extension {
    /// The type `f16`.
    F16,
    /// Subgroup built-ins and functions; there is no line to enable them with.
    Subgroups,
    /// Cooperative matrices.
    CooperativeMatrix,
}

impl Extension {
    /// The line that enables it, if it needs one.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::F16 => "enable f16;\n",
            Self::Subgroups => "",
            Self::CooperativeMatrix => "enable wgpu_cooperative_matrix;\n",
        }
    }
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Shader {
    /// Name for messages and traces.
    pub label: String,
    /// Buffers, `@group(0) @binding(0)` and on, each with as many bindings as it has windows.
    pub bindings: Vec<Binding>,
    /// Members of `struct Params`.
    pub params: Vec<Param>,
    /// Optional parts of the language it uses.
    pub extensions: Vec<Extension>,
    /// Element types whose helper functions the body calls, beside those of the bindings.
    pub helpers: Vec<Element>,
    /// Functions, with the entry point `main`.
    pub body: String,
}

/// Workgroups are numbered over all axes of a dispatch, since one axis ends at 65,535.
const GROUP_NUMBER: &str = "fn group_number(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.x + count.x * (id.y + count.y * id.z);
}
";

/// Buffer of one word that a kernel reports faults to.
pub const FAULTS: &str = "faults";

/// Parameter word with the number that a kernel reports.
pub const LAUNCH: &str = "launch";

impl Shader {
    /// Position of the buffer called [`FAULTS`], if there is one.
    pub fn fault_word(&self) -> Option<usize> {
        self.bindings.iter().position(|b| b.name == FAULTS)
    }

    /// Offset of the parameter word `name`.
    pub fn word_at(&self, name: &str) -> Option<usize> {
        let mut at = 0;
        for param in &self.params {
            match param {
                Param::Word(own) if own == name => return Some(at),
                Param::Word(_) => at += 1,
                Param::Vectors(_, len) => at = usize::next_multiple_of(at, 4) + 4 * len,
            }
        }
        None
    }

    /// Parameter words, with the padding that ends the struct.
    pub fn params_len(&self) -> u32 {
        let mut words = 0usize;
        for param in &self.params {
            match param {
                Param::Word(_) => words += 1,
                Param::Vectors(_, len) => words = words.next_multiple_of(4) + 4 * len,
            }
        }
        words.next_multiple_of(4) as u32
    }

    /// The whole text.
    pub fn wgsl(&self, space: ParamSpace) -> String {
        let mut text: String = self.extensions.iter().map(|used| used.line()).collect();
        if !self.params.is_empty() {
            text.push_str("struct Params {\n");
            for param in &self.params {
                text.push_str(&match param {
                    Param::Word(name) => format!("    {name}: u32,\n"),
                    Param::Vectors(name, len) => format!("    {name}: array<vec4<u32>, {len}>,\n"),
                });
            }
            text.push_str("}\n");
            text.push_str(match space {
                ParamSpace::Uniform => "@group(1) @binding(0) var<uniform> params: Params;\n",
                ParamSpace::Immediate => "var<immediate> params: Params;\n",
            });
        }
        for element in Element::ALL {
            if self.helpers.contains(&element) || self.bindings.iter().any(|b| b.element == element)
            {
                text.push_str(&element.helpers());
            }
        }
        let mut position = 0;
        for binding in &self.bindings {
            text.push_str(&binding.declaration(position));
            position += binding.windows.count as usize;
        }
        text.push_str(GROUP_NUMBER);
        text.push_str(&self.body);
        text
    }
}
