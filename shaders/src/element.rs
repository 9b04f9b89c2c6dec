//! How element types live in WGSL storage buffers.
//!
//! WGSL has 32-bit scalars only (f16 is optional, 8-bit types do not exist), so narrower elements are packed in `u32`
//! words, lowest bits first, and 64-bit numbers are pairs of words, low word first. Every binding gets accessors, and
//! kernels use nothing else; which ones depends on [`Access`], [`Width`] and [`Stores`].
//!
//! A narrow store changes part of a word that other threads may be storing to as well. Either it clears and sets its own
//! bits atomically (no other bit is touched, and the order does not matter), or one thread makes whole words.

use crate::minifloat;
use crate::window::{Windowed, Windows};

/// What a storage buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit float: 4 exponent bits, no infinity.
    F8E4M3Fn,
    /// 8-bit float: 4 exponent bits, no infinity, no negative zero.
    F8E4M3Fnuz,
    /// 8-bit float: 5 exponent bits, as IEEE.
    F8E5M2,
    /// 8-bit float: 5 exponent bits, no infinity, no negative zero.
    F8E5M2Fnuz,
    /// 4-bit float: 2 exponent bits, every code a number.
    F4E2M1,
    /// 8-bit power of two, no sign.
    F8E8M0,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned.
    U32,
    /// 16-bit signed.
    I16,
    /// 16-bit unsigned.
    U16,
    /// 8-bit signed.
    I8,
    /// 8-bit unsigned.
    U8,
    /// 4-bit signed.
    I4,
    /// 4-bit unsigned.
    U4,
    /// 2-bit signed.
    I2,
    /// 2-bit unsigned.
    U2,
    /// A byte that is 0 or 1.
    Bool,
    /// 64-bit signed, two words.
    I64,
    /// 64-bit unsigned, two words.
    U64,
    /// 64-bit float, two words.
    F64,
}

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

impl Element {
    /// Every element type.
    pub const ALL: [Self; 23] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4M3Fn,
        Self::F8E4M3Fnuz,
        Self::F8E5M2,
        Self::F8E5M2Fnuz,
        Self::F4E2M1,
        Self::F8E8M0,
        Self::I32,
        Self::U32,
        Self::I16,
        Self::U16,
        Self::I8,
        Self::U8,
        Self::I4,
        Self::U4,
        Self::I2,
        Self::U2,
        Self::Bool,
        Self::I64,
        Self::U64,
        Self::F64,
    ];

    /// Bits of one element in storage.
    pub fn bits(self) -> u32 {
        match self {
            Self::I2 | Self::U2 => 2,
            Self::I4 | Self::U4 | Self::F4E2M1 => 4,
            Self::I8
            | Self::U8
            | Self::Bool
            | Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F8E8M0 => 8,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::I64 | Self::U64 | Self::F64 => 64,
        }
    }

    /// Elements in a word; 1 for 32 and 64 bits.
    pub fn per_word(self) -> u32 {
        32 / self.bits().min(32)
    }

    /// Whether [`Width::Four`] exists for it.
    pub fn has_fours(self) -> bool {
        matches!(
            self,
            Self::F32
                | Self::F16
                | Self::Bf16
                | Self::I32
                | Self::U32
                | Self::I16
                | Self::U16
                | Self::I8
                | Self::U8
                | Self::Bool
                | Self::F8E4M3Fn
                | Self::F8E4M3Fnuz
                | Self::F8E5M2
                | Self::F8E5M2Fnuz
        )
    }

    /// Lower-case name, as used in helper functions.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F8E4M3Fn => "f8e4m3fn",
            Self::F8E4M3Fnuz => "f8e4m3fnuz",
            Self::F8E5M2 => "f8e5m2",
            Self::F8E5M2Fnuz => "f8e5m2fnuz",
            Self::F4E2M1 => "f4e2m1",
            Self::F8E8M0 => "f8e8m0",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I4 => "i4",
            Self::U4 => "u4",
            Self::I2 => "i2",
            Self::U2 => "u2",
            Self::Bool => "bool",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F64 => "f64",
        }
    }

    /// WGSL type that `load_NAME` gives and `store_NAME` takes.
    pub fn value_type(self) -> &'static str {
        match self {
            Self::F32
            | Self::F16
            | Self::Bf16
            | Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => "f32",
            Self::I32 | Self::I16 | Self::I8 | Self::I4 | Self::I2 => "i32",
            Self::U32 | Self::U16 | Self::U8 | Self::U4 | Self::U2 => "u32",
            Self::Bool => "bool",
            Self::I64 | Self::U64 | Self::F64 => "vec2<u32>",
        }
    }

    /// Vector of four values.
    pub fn value_type4(self) -> &'static str {
        match self.value_type() {
            "f32" => "vec4<f32>",
            "i32" => "vec4<i32>",
            "u32" => "vec4<u32>",
            "bool" => "vec4<bool>",
            other => unreachable!("bug: there are no vectors of {other}"),
        }
    }

    /// WGSL type of its stored bits.
    fn bits_type(self) -> &'static str {
        match self.bits() {
            64 => "vec2<u32>",
            _ => "u32",
        }
    }

    /// Shift from element to word index, and mask of the place within a word.
    fn place(self) -> (u32, u32) {
        let per_word = self.per_word();
        (per_word.trailing_zeros(), per_word - 1)
    }

    /// Its stored bits for `value`, in the low bits of a word.
    fn encoded(self) -> String {
        let mask = u32::MAX >> (32 - self.bits().min(32));
        match self {
            Self::F32 | Self::I32 => "bitcast<u32>(value)".to_owned(),
            Self::U32 | Self::I64 | Self::U64 | Self::F64 => "value".to_owned(),
            Self::F16 | Self::Bf16 => format!("{}_bits(value)", self.name()),
            Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => {
                format!("{}_bits(value, false)", self.name())
            }
            Self::I16 | Self::I8 | Self::I4 | Self::I2 => {
                format!("(bitcast<u32>(value) & {mask}u)")
            }
            Self::U16 | Self::U8 | Self::U4 | Self::U2 => format!("(value & {mask}u)"),
            Self::Bool => "select(0u, 1u, value)".to_owned(),
        }
    }

    /// The value of stored bits given as WGSL, for narrow numbers.
    fn decoded(self, bits: &str) -> String {
        match self {
            Self::F16 => format!("unpack2x16float({bits}).x"),
            Self::Bf16 => format!("bitcast<f32>({bits} << 16u)"),
            Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => {
                format!("{}_value({bits})", self.name())
            }
            Self::I16 | Self::I8 | Self::I4 | Self::I2 => {
                format!("extractBits(bitcast<i32>({bits}), 0u, {}u)", self.bits())
            }
            Self::U16 | Self::U8 | Self::U4 | Self::U2 => bits.to_owned(),
            Self::F32 | Self::I32 | Self::U32 | Self::Bool | Self::I64 | Self::U64 | Self::F64 => {
                unreachable!("bug: {self:?} is no narrow number")
            }
        }
    }

    /// Helper functions that its accessors call, in WGSL; empty for none. `f16_bits`, `bf16_bits` and, for 8 and 4-bit floats,
    /// `NAME_bits(value, saturate)` and `NAME_value(bits)`.
    pub fn helpers(self) -> String {
        match self {
            Self::F16 => F16_BITS.to_owned(),
            Self::Bf16 => BF16_BITS.to_owned(),
            Self::F8E4M3Fn
            | Self::F8E4M3Fnuz
            | Self::F8E5M2
            | Self::F8E5M2Fnuz
            | Self::F4E2M1
            | Self::F8E8M0 => minifloat::helpers(self),
            Self::F32
            | Self::I32
            | Self::U32
            | Self::I16
            | Self::U16
            | Self::I8
            | Self::U8
            | Self::I4
            | Self::U4
            | Self::I2
            | Self::U2
            | Self::Bool
            | Self::I64
            | Self::U64
            | Self::F64 => String::new(),
        }
    }
}

/// Float to nearest f16, ties to even, in integer arithmetic: the built-in packing leaves rounding and overflow to the
/// driver. Subnormals round by an addition whose last bit has the weight of f16's.
const F16_BITS: &str = "fn f16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= 0x47800000u {
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if magnitude < 0x38800000u {
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
    }
    return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
}
";

/// Float to nearest bfloat16, ties to even; a NaN stays one.
const BF16_BITS: &str = "fn bf16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
";
