//! Stable sorting along an axis, giving values and positions.

use crate::binding::Binding;
use crate::element::Element;
use crate::shader::{Shader, params};
use crate::template::fill;

/// Most axes beside the sorted one, after neighbours that can be merged have been.
pub const ROW_AXES: usize = 6;

params! {
    /// Parameters of every sorting kernel. Strides in elements, two's complement.
    SortParams {
        /// Rows to sort.
        rows,
        /// Elements of a row.
        len,
        /// The same rounded up to a power of two of at least a block.
        padded,
        /// Blocks of a row.
        blocks,
        /// Workgroups; merge form only.
        groups,
        /// Distance of compared entries; merge form only.
        distance,
        /// 1 to compare mirror images; merge form only.
        mirror,
        /// First source element.
        source_offset,
        /// Source stride along the sorted axis.
        source_step,
        /// Result stride along the sorted axis.
        sink_step,
        /// Used entries of `dims`.
        rank,
    } [
        /// Other axes, innermost first: length, source stride, result stride, unused.
        dims: 6,
    ]
}

/// How raw bits compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// As unsigned numbers (bool too).
    Unsigned,
    /// As two's complement numbers.
    Signed,
    /// As floats: NaN largest, both zeros equal. The bits of infinity are given.
    Float {
        /// Positive infinity.
        infinity: u32,
    },
}

/// A step of a sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SortForm {
    /// Sorts rows that fit a block, from source to results.
    Rows(BlockSize),
    /// Sorts each block of longer rows, from source to scratch.
    Blocks,
    /// Compares entries further apart than a block, in scratch.
    Merge,
    /// The merging steps within blocks, in scratch.
    MergeBlocks,
    /// As `MergeBlocks`, from scratch to the results.
    Finish,
}

/// Entries of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockSize {
    /// 128, for short rows.
    Small,
    /// 1024: with 8-byte keys 12 KiB of workgroup memory.
    Large,
}

impl BlockSize {
    /// Number of entries.
    pub fn entries(self) -> u32 {
        match self {
            Self::Small => 128,
            Self::Large => 1024,
        }
    }
}

/// What makes one sorting kernel's text differ from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SortShader {
    /// Bits of an element: 8, 16, 32 or 64. Elements move as raw bits.
    pub bits: u32,
    /// How they compare; floats have 16 or 32 bits.
    pub kind: KeyKind,
    /// Largest first.
    pub descending: bool,
    /// The step.
    pub form: SortForm,
}

impl SortShader {
    /// Storage of keys in scratch.
    pub fn key_element(&self) -> Element {
        if self.bits == 64 {
            Element::U64
        } else {
            Element::U32
        }
    }

    fn raw(&self) -> Element {
        match self.bits {
            8 => Element::U8,
            16 => Element::U16,
            32 => Element::U32,
            _ => Element::U64,
        }
    }

    /// The kernel. Buffers by form: `Rows` source, values, positions (i64); `Blocks` source, keys, places; `Merge` and
    /// `MergeBlocks` keys, places; `Finish` keys, places, source, values, positions.
    pub fn shader(&self) -> Shader {
        let source = Binding::read("source", self.raw());
        let results = || {
            [
                Binding::write("values", self.raw()),
                Binding::write("positions", Element::I64),
            ]
        };
        let scratch = || {
            [
                Binding::write("keys", self.key_element()),
                Binding::write("places", Element::U32),
            ]
        };
        let mut body = fill(
            include_str!("../wgsl/sort.wgsl"),
            &[
                ("KEY", self.key_type()),
                ("KEY_FUNCTIONS", &self.key_functions()),
            ],
        );
        let bindings = match self.form {
            SortForm::Rows(_) => [vec![source], results().to_vec()].concat(),
            SortForm::Blocks => [vec![source], scratch().to_vec()].concat(),
            SortForm::Merge | SortForm::MergeBlocks => scratch().to_vec(),
            SortForm::Finish => [scratch().to_vec(), vec![source], results().to_vec()].concat(),
        };
        body.push_str(&match self.form {
            SortForm::Merge => include_str!("../wgsl/sort_merge.wgsl").to_owned(),
            form => self.block(form),
        });
        let form = match self.form {
            SortForm::Rows(_) => "rows",
            SortForm::Blocks => "blocks",
            SortForm::Merge => "merge",
            SortForm::MergeBlocks => "merge_blocks",
            SortForm::Finish => "finish",
        };
        Shader {
            label: format!("sort_{form}"),
            bindings,
            params: SortParams::members(),
            extensions: Vec::new(),
            helpers: Vec::new(),
            body,
        }
    }

    fn key_type(&self) -> &'static str {
        self.key_element().value_type()
    }

    fn key_functions(&self) -> String {
        let raw = self.raw().value_type();
        let key = self.key_type();
        let top = 1u32 << (self.bits.min(32) - 1);
        let mask = u32::MAX >> (32 - self.bits.min(32));
        let ordered = match (self.kind, self.bits) {
            (KeyKind::Unsigned, _) => "    let key = raw;".to_owned(),
            (KeyKind::Signed, 64) => {
                "    let key = vec2<u32>(raw.x, raw.y ^ 0x80000000u);".to_owned()
            }
            (KeyKind::Signed, _) => format!("    let key = raw ^ {top}u;"),
            (KeyKind::Float { infinity }, _) => format!(
                "    let magnitude = raw & {}u;
    let positive = (raw & {top}u) == 0u || magnitude == 0u;
    let number = select(~raw & {mask}u, magnitude | {top}u, positive);
    let key = select(number, {mask}u, magnitude > {infinity}u);",
                top - 1
            ),
        };
        let (less, largest) = match self.bits {
            64 => (
                "a.y < b.y || (a.y == b.y && a.x < b.x)",
                "vec2<u32>(0xffffffffu)",
            ),
            _ => ("a < b", "0xffffffffu"),
        };
        let turned = if self.descending { "~key" } else { "key" };
        format!(
            "fn key_of(raw: {raw}) -> {key} {{
{ordered}
    return {turned};
}}

fn key_less(a: {key}, b: {key}) -> bool {{
    return {less};
}}

const LARGEST = {largest};"
        )
    }

    fn block(&self, form: SortForm) -> String {
        let block = match form {
            SortForm::Rows(size) => size.entries(),
            SortForm::Blocks | SortForm::Merge | SortForm::MergeBlocks | SortForm::Finish => {
                BlockSize::Large.entries()
            }
        };
        let from_source = "        if at < params.len {
            keys_here[n] = key_of(load_source(place.source + at * params.source_step));
        } else {
            keys_here[n] = LARGEST;
        }
        index_here[n] = at;";
        let from_scratch = "        keys_here[n] = load_keys(row * params.padded + at);
        index_here[n] = load_places(row * params.padded + at);";
        let to_scratch = "        store_keys(row * params.padded + at, keys_here[n]);
        store_places(row * params.padded + at, index_here[n]);";
        let to_results = "        if at < params.len {
            let sink = place.sink + at * params.sink_step;
            store_values(sink, load_source(place.source + index_here[n] * params.source_step));
            store_positions(sink, vec2<u32>(index_here[n], 0u));
        }";
        let whole = "    for (var half = 1u; half < ${BLOCK}u; half *= 2u) {
        for (var pair = local; pair < ${HALF}u; pair += ${THREADS}u) {
            let base = (pair / half) * 2u * half;
            let within = pair % half;
            order(base + within, base + 2u * half - 1u - within);
        }
        workgroupBarrier();
        for (var distance = half / 2u; distance > 0u; distance /= 2u) {
            for (var pair = local; pair < ${HALF}u; pair += ${THREADS}u) {
                let left = (pair / distance) * 2u * distance + pair % distance;
                order(left, left + distance);
            }
            workgroupBarrier();
        }
    }";
        let last = "    for (var distance = ${HALF}u; distance > 0u; distance /= 2u) {
        for (var pair = local; pair < ${HALF}u; pair += ${THREADS}u) {
            let left = (pair / distance) * 2u * distance + pair % distance;
            order(left, left + distance);
        }
        workgroupBarrier();
    }";
        let threads = (block / 2).min(256).to_string();
        let sizes = [
            ("BLOCK", block.to_string()),
            ("HALF", (block / 2).to_string()),
        ];
        let (load, sort, store) = match form {
            SortForm::Rows(_) => (from_source, whole, to_results),
            SortForm::Blocks => (from_source, whole, to_scratch),
            SortForm::MergeBlocks | SortForm::Merge => (from_scratch, last, to_scratch),
            SortForm::Finish => (from_scratch, last, to_results),
        };
        let sort = match sort.contains("${BLOCK}") {
            true => fill(
                sort,
                &[
                    ("BLOCK", &sizes[0].1),
                    ("HALF", &sizes[1].1),
                    ("THREADS", &threads),
                ],
            ),
            false => fill(sort, &[("HALF", &sizes[1].1), ("THREADS", &threads)]),
        };
        fill(
            include_str!("../wgsl/sort_block.wgsl"),
            &[
                ("KEY", self.key_type()),
                ("BLOCK", &sizes[0].1),
                ("THREADS", &threads),
                ("LOAD", load),
                ("SORT", &sort),
                ("STORE", store),
            ],
        )
    }
}
