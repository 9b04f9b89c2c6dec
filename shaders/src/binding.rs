//! The buffers of a kernel, and the accessors by which its text reads and writes them.
//!
//! Kernels use nothing else than the accessors; which ones a binding gets depends on [`Access`], [`Width`] and [`Stores`].
//!
//! A narrow store changes part of a word that other threads may be storing to as well. Either it clears and sets its own
//! bits atomically (no other bit is touched, and the order does not matter), or one thread makes whole words.

use crate::element::Element;
use crate::window::{Windowed, Windows};

/// How a kernel uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`: loads.
    Read,
    /// Loads alone, but declared `read_write`: another argument writes elsewhere in the same buffer, and WebGPU wants all
    /// arguments of one buffer declared alike then.
    ReadShared,
    /// `var<storage, read_write>`: stores, and loads.
    ReadWrite,
}

/// Granularity of a binding's loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// Elements one by one, at any index: `load_NAME(i)`, and `load4_NAME(i)` for `i` to `i + 3`.
    One,
    /// Aligned groups of four: `load4_NAME(i)` and, if written, `store4_NAME(i, values)` with `i` a multiple of four; and
    /// `load_NAME(i)` at any index. Not with [`Stores::Sums`].
    Four,
    /// As `Four`, as `vec4<f16>`: for [`Element::F16`] in kernels that use [`crate::Extension::F16`].
    Halves,
}

/// How a written binding is stored to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stores {
    /// `store_NAME(i, value)`, from any thread.
    Elements,
    /// `store_word_NAME(word, bits)` by one thread for each word, bits made with `bits_NAME(value)`. For narrow elements.
    Words,
    /// `add_NAME(i, value)`, from any thread, atomically; and `store_NAME`.
    Sums,
}

/// A buffer argument of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Name in the kernel's text.
    pub name: String,
    /// What it holds.
    pub element: Element,
    /// How it is used.
    pub access: Access,
    /// How it is loaded.
    pub width: Width,
    /// How it is stored to, if it is.
    pub stores: Stores,
    /// The bindings that its memory is divided over.
    pub windows: Windows,
}

impl Binding {
    /// A buffer read element by element.
    pub fn read(name: &str, element: Element) -> Self {
        Self {
            name: name.to_owned(),
            element,
            access: Access::Read,
            width: Width::One,
            stores: Stores::Elements,
            windows: Windows::ONE,
        }
    }

    /// A buffer read with the given granularity.
    pub fn read_as(name: &str, element: Element, width: Width) -> Self {
        Self {
            width,
            ..Self::read(name, element)
        }
    }

    /// A buffer written, and possibly read, element by element.
    pub fn write(name: &str, element: Element) -> Self {
        Self {
            access: Access::ReadWrite,
            ..Self::read(name, element)
        }
    }

    /// A written buffer with the given kind of stores.
    pub fn write_as(name: &str, element: Element, stores: Stores) -> Self {
        Self {
            stores,
            ..Self::write(name, element)
        }
    }

    /// Declares a buffer that is only read as [`Access::ReadShared`].
    pub fn share(&mut self) {
        if self.access == Access::Read {
            self.access = Access::ReadShared;
        }
    }

    /// Whether the buffer is declared as atomic words.
    fn atomic(&self) -> bool {
        let narrow = self.element.bits() < 32;
        self.access == Access::ReadWrite
            && match self.stores {
                Stores::Elements => narrow && self.width == Width::One,
                Stores::Words => false,
                Stores::Sums => true,
            }
    }

    fn memory(&self) -> Windowed<'_> {
        Windowed {
            name: &self.name,
            windows: self.windows,
        }
    }

    /// Declaration from `@group(0) @binding(position)` on, one binding for each window, and accessors.
    pub fn declaration(&self, position: usize) -> String {
        let element = self.element;
        let mode = match self.access {
            Access::Read => "read",
            Access::ReadShared | Access::ReadWrite => "read_write",
        };
        let (item, size) = match (self.width, element.bits()) {
            _ if self.atomic() => ("atomic<u32>", 4),
            (Width::One, 64) => ("vec2<u32>", 8),
            (Width::One, 32) => (element.value_type(), 4),
            (Width::Four, 64) => unreachable!("bug: 64-bit elements are loaded one by one"),
            (Width::Four, 32) => (element.value_type4(), 16),
            (Width::Four, 16) => ("vec2<u32>", 8),
            (Width::Halves, _) => ("vec4<f16>", 8),
            (Width::One | Width::Four, _) => ("u32", 4),
        };
        let written = self.access == Access::ReadWrite;
        let mut text = (self.memory()).declaration(position, item, size, written, mode);
        if self.element == Element::U32 && self.access != Access::ReadWrite {
            let len = self.memory().len(size);
            text.push_str(&format!(
                "fn len_{}() -> u32 {{ return {len}; }}\n",
                self.name
            ));
        }
        match self.width {
            Width::One => {
                text.push_str(&self.load_one());
                if self.access == Access::ReadWrite {
                    text.push_str(&self.store());
                }
            }
            Width::Four => {
                text.push_str(&self.load_one());
                text.push_str(&self.load_four());
                if self.access == Access::ReadWrite {
                    text.push_str(&self.store_four());
                }
            }
            Width::Halves => text.push_str(&format!(
                "fn load4_{}(i: u32) -> vec4<f16> {{ return {}; }}\n",
                self.name,
                self.memory().read("i >> 2u")
            )),
        }
        text
    }

    fn load_one(&self) -> String {
        let Self { name, element, .. } = self;
        let value_type = element.value_type();
        let bits = element.bits();
        let word = |index: String| match self.atomic() {
            true => self.memory().atomic("atomicLoad", &index, &[]),
            false => self.memory().read(&index),
        };
        let packed = || {
            let (shift, lane) = element.place();
            let holder = match (self.width, bits) {
                (Width::Four, 16) => format!("{}[(i >> 1u) & 1u]", word("i >> 2u".to_owned())),
                _ => word(format!("i >> {shift}u")),
            };
            (holder, format!("(i & {lane}u) * {bits}u"))
        };
        let body = match element {
            Element::I64 | Element::U64 | Element::F64 if self.atomic() => {
                format!(
                    "vec2<u32>({}, {})",
                    word("2u * i".to_owned()),
                    word("2u * i + 1u".to_owned())
                )
            }
            Element::F32 | Element::I32 if self.atomic() => {
                format!("bitcast<{value_type}>({})", word("i".to_owned()))
            }
            Element::F32 | Element::I32 | Element::U32 if self.width == Width::Four => {
                format!("{}[i & 3u]", word("i >> 2u".to_owned()))
            }
            Element::F32
            | Element::I32
            | Element::U32
            | Element::I64
            | Element::U64
            | Element::F64 => word("i".to_owned()),
            Element::F16 => {
                let (word, shift) = packed();
                format!("unpack2x16float({word} >> ({shift})).x")
            }
            Element::Bf16 => {
                let (word, shift) = packed();
                format!("bitcast<f32>(({word} >> ({shift})) << 16u)")
            }
            Element::F8E4M3Fn
            | Element::F8E4M3Fnuz
            | Element::F8E5M2
            | Element::F8E5M2Fnuz
            | Element::F4E2M1
            | Element::F8E8M0 => {
                let (word, shift) = packed();
                format!(
                    "{}_value(extractBits({word}, {shift}, {bits}u))",
                    element.name()
                )
            }
            Element::I16 | Element::I8 | Element::I4 | Element::I2 => {
                let (word, shift) = packed();
                format!("extractBits(bitcast<i32>({word}), {shift}, {bits}u)")
            }
            Element::U16 | Element::U8 | Element::U4 | Element::U2 => {
                let (word, shift) = packed();
                format!("extractBits({word}, {shift}, {bits}u)")
            }
            Element::Bool => {
                let (word, shift) = packed();
                format!("(extractBits({word}, {shift}, 8u) != 0u)")
            }
        };
        let mut text = format!("fn load_{name}(i: u32) -> {value_type} {{ return {body}; }}\n");
        if bits <= 32 && *element != Element::Bool && self.width == Width::One {
            let type4 = element.value_type4();
            text.push_str(&format!(
                "fn load4_{name}(i: u32) -> {type4} {{ return {type4}(load_{name}(i), load_{name}(i + 1u), \
                 load_{name}(i + 2u), load_{name}(i + 3u)); }}\n"
            ));
        }
        text
    }

    fn load_four(&self) -> String {
        let Self { name, element, .. } = self;
        let type4 = element.value_type4();
        let held = self.memory().read("i >> 2u");
        let body = match element {
            Element::F32 | Element::I32 | Element::U32 => format!("return {held};"),
            Element::F16 => format!(
                "let w = {held}; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));"
            ),
            Element::Bf16 => format!(
                "let w = {held}; \
                 return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));"
            ),
            Element::I16 => format!(
                "let w = bitcast<vec2<i32>>({held}); \
                 return vec4<i32>((w.x << 16u) >> 16u, w.x >> 16u, (w.y << 16u) >> 16u, w.y >> 16u);"
            ),
            Element::U16 => format!(
                "let w = {held}; return vec4<u32>(w.x & 0xffffu, w.x >> 16u, w.y & 0xffffu, w.y >> 16u);"
            ),
            Element::I8 => format!("return unpack4xI8({held});"),
            Element::U8 => format!("return unpack4xU8({held});"),
            Element::Bool => format!("return unpack4xU8({held}) != vec4<u32>();"),
            Element::F8E4M3Fn | Element::F8E4M3Fnuz | Element::F8E5M2 | Element::F8E5M2Fnuz => {
                let value = format!("{}_value", element.name());
                format!(
                    "let w = unpack4xU8({held}); return vec4<f32>({value}(w.x), {value}(w.y), {value}(w.z), {value}(w.w));"
                )
            }
            Element::F4E2M1
            | Element::F8E8M0
            | Element::I4
            | Element::U4
            | Element::I2
            | Element::U2
            | Element::I64
            | Element::U64
            | Element::F64 => unreachable!("bug: {element:?} elements are loaded one by one"),
        };
        format!("fn load4_{name}(i: u32) -> {type4} {{ {body} }}\n")
    }

    /// How one value becomes stored bits.
    fn encoder(&self) -> String {
        format!(
            "fn bits_{}(value: {}) -> {} {{ return {}; }}\n",
            self.name,
            self.element.value_type(),
            self.element.bits_type(),
            self.element.encoded()
        )
    }

    fn store_four(&self) -> String {
        let Self { name, element, .. } = self;
        let type4 = element.value_type4();
        let bits = |component: &str, shift: u32| match shift {
            0 => format!("bits_{name}(value.{component})"),
            _ => format!("(bits_{name}(value.{component}) << {shift}u)"),
        };
        let words = match element.bits() {
            32 => "value".to_owned(),
            16 => format!(
                "vec2<u32>({} | {}, {} | {})",
                bits("x", 0),
                bits("y", 16),
                bits("z", 0),
                bits("w", 16)
            ),
            _ => format!(
                "{} | {} | {} | {}",
                bits("x", 0),
                bits("y", 8),
                bits("z", 16),
                bits("w", 24)
            ),
        };
        let write = self.memory().write("i >> 2u", &words);
        format!(
            "{}fn store4_{name}(i: u32, value: {type4}) {{ {write} }}\n",
            self.encoder()
        )
    }

    fn store(&self) -> String {
        let Self {
            name,
            element,
            stores,
            ..
        } = self;
        let value_type = element.value_type();
        let bits = element.bits();
        let memory = self.memory();
        let mut text = self.encoder();
        match (stores, bits) {
            (Stores::Words, _) => {
                let write = memory.write("word", "bits");
                text.push_str(&format!(
                    "fn store_word_{name}(word: u32, bits: u32) {{ {write} }}\n"
                ));
            }
            (Stores::Elements, 32 | 64) => {
                let write = memory.write("i", "value");
                text.push_str(&format!(
                    "fn store_{name}(i: u32, value: {value_type}) {{ {write} }}\n"
                ));
            }
            (Stores::Sums, 32) => {
                let store = memory.atomic("atomicStore", "i", &[&format!("bits_{name}(value)")]);
                text.push_str(&format!(
                    "fn store_{name}(i: u32, value: {value_type}) {{ {store}; }}\n"
                ));
            }
            (Stores::Sums, 64) => {
                let low = memory.atomic("atomicStore", "2u * i", &["value.x"]);
                let high = memory.atomic("atomicStore", "2u * i + 1u", &["value.y"]);
                text.push_str(&format!(
                    "fn store_{name}(i: u32, value: vec2<u32>) {{
    {low};
    {high};
}}\n"
                ));
            }
            (Stores::Elements | Stores::Sums, _) => {
                let (index_shift, lane) = element.place();
                let mask = u32::MAX >> (32 - bits);
                let word = format!("i >> {index_shift}u");
                let clear = memory.atomic("atomicAnd", &word, &[&format!("~({mask}u << shift)")]);
                let set = memory.atomic(
                    "atomicOr",
                    &word,
                    &[&format!("bits_{name}(value) << shift")],
                );
                text.push_str(&format!(
                    "fn store_{name}(i: u32, value: {value_type}) {{
    let shift = (i & {lane}u) * {bits}u;
    {clear};
    {set};
}}\n"
                ));
            }
        }
        if *stores == Stores::Sums {
            text.push_str(&self.add());
        }
        text
    }

    /// Addition from any thread. Words that hold floats or several elements are exchanged until no other thread came
    /// between; in 64 bits each wrap of the low word carries once, so the sum is right when all have added.
    fn add(&self) -> String {
        let Self { name, element, .. } = self;
        let value_type = element.value_type();
        let memory = self.memory();
        match element {
            Element::I32 | Element::U32 => {
                let add = memory.atomic("atomicAdd", "i", &[&format!("bits_{name}(value)")]);
                format!("fn add_{name}(i: u32, value: {value_type}) {{ {add}; }}\n")
            }
            Element::F64 => unreachable!("bug: 64-bit floats have no atomic sums"),
            Element::I64 | Element::U64 => {
                let low = memory.atomic("atomicAdd", "2u * i", &["value.x"]);
                let high = memory.atomic("atomicAdd", "2u * i + 1u", &["value.y + carry"]);
                format!(
                    "fn add_{name}(i: u32, value: vec2<u32>) {{
    let before = {low};
    let carry = select(0u, 1u, before + value.x < before);
    {high};
}}\n"
                )
            }
            Element::Bool => {
                let set = memory.atomic("atomicOr", "i >> 2u", &["1u << ((i & 3u) * 8u)"]);
                format!("fn add_{name}(i: u32, value: bool) {{\n    if value {{ {set}; }}\n}}\n")
            }
            Element::F32 => {
                self.exchange_until_alone("i", "", "bitcast<u32>(bitcast<f32>(old) + value)")
            }
            Element::F16
            | Element::Bf16
            | Element::F8E4M3Fn
            | Element::F8E4M3Fnuz
            | Element::F8E5M2
            | Element::F8E5M2Fnuz
            | Element::F4E2M1
            | Element::F8E8M0
            | Element::I16
            | Element::U16
            | Element::I8
            | Element::U8
            | Element::I4
            | Element::U4
            | Element::I2
            | Element::U2 => {
                let (index_shift, lane) = element.place();
                let bits = element.bits();
                let mask = u32::MAX >> (32 - bits);
                let decoded = element.decoded(&format!("((old >> shift) & {mask}u)"));
                self.exchange_until_alone(
                    &format!("i >> {index_shift}u"),
                    &format!("    let shift = (i & {lane}u) * {bits}u;\n"),
                    &format!(
                        "(old & ~({mask}u << shift)) | (bits_{name}({decoded} + value) << shift)"
                    ),
                )
            }
        }
    }

    /// Addition that computes the new word from `old` and exchanges it until no other thread came between.
    fn exchange_until_alone(&self, word: &str, before: &str, new: &str) -> String {
        let name = &self.name;
        let load = self.memory().atomic("atomicLoad", word, &[]);
        let exchange = (self.memory()).atomic("atomicCompareExchangeWeak", word, &["old", new]);
        format!(
            "fn add_{name}(i: u32, value: {}) {{
{before}    var old = {load};
    loop {{
        let result = {exchange};
        if result.exchanged {{ break; }}
        old = result.old_value;
    }}
}}\n",
            self.element.value_type()
        )
    }
}
