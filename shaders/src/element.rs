//! How element types live in WGSL storage buffers.
//!
//! WGSL has 32-bit scalars only (f16 is optional, 8-bit types do not exist), so narrower elements are packed in `u32`
//! words and 64-bit integers are pairs of words, low word first. Every binding gets accessors, and kernels use nothing else:
//! `load_NAME(i)`, `load4_NAME(i)` for four elements from a multiple of four, `store_NAME(i, value)`.
//!
//! A narrow store changes part of a word that other threads may be storing to as well, so it clears and sets its own bits
//! atomically; no other bit is touched, and the order does not matter.

/// What a storage buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float, two in a word.
    F16,
    /// bfloat16, two in a word.
    Bf16,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned.
    U32,
    /// 16-bit signed, two in a word.
    I16,
    /// 16-bit unsigned, two in a word.
    U16,
    /// 8-bit signed, four in a word.
    I8,
    /// 8-bit unsigned, four in a word.
    U8,
    /// A byte that is 0 or 1, four in a word.
    Bool,
    /// 64-bit signed, two words.
    I64,
    /// 64-bit unsigned, two words.
    U64,
}

/// How a kernel uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// Granularity of a binding's loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// Elements one by one: any index, any stride.
    One,
    /// Aligned groups of four: only `load4_NAME` exists, and the buffer's length is a multiple of four elements.
    Four,
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
}

impl Binding {
    /// A buffer read element by element.
    pub fn read(name: &str, element: Element) -> Self {
        Self {
            name: name.to_owned(),
            element,
            access: Access::Read,
            width: Width::One,
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

    /// Declaration at `@group(0) @binding(position)` and accessors.
    pub fn declaration(&self, position: usize) -> String {
        let Self {
            name,
            element,
            access,
            width,
        } = self;
        let mode = match access {
            Access::Read => "read",
            Access::ReadWrite => "read_write",
        };
        let word = match (width, element.bits()) {
            (Width::One, 64) => "vec2<u32>",
            (Width::One, 32) => element.value_type(),
            (Width::One, _) if *access == Access::ReadWrite => "atomic<u32>",
            (Width::Four, 64) => unreachable!("bug: 64-bit elements are loaded one by one"),
            (Width::Four, 32) => element.value_type4(),
            (Width::Four, 16) => "vec2<u32>",
            (Width::One | Width::Four, _) => "u32",
        };
        let mut text =
            format!("@group(0) @binding({position}) var<storage, {mode}> {name}: array<{word}>;\n");
        match width {
            Width::One => {
                text.push_str(&self.load_one());
                if *access == Access::ReadWrite {
                    text.push_str(&self.store_one());
                }
            }
            Width::Four => text.push_str(&self.load_four()),
        }
        text
    }

    fn load_one(&self) -> String {
        let Self {
            name,
            element,
            access,
            ..
        } = self;
        let value_type = element.value_type();
        let per_word = 32 / element.bits().min(32);
        let shift = per_word.trailing_zeros();
        let word = match access {
            Access::Read => format!("{name}[i >> {shift}u]"),
            Access::ReadWrite => format!("atomicLoad(&{name}[i >> {shift}u])"),
        };
        let body = match element {
            Element::F32 | Element::I32 | Element::U32 | Element::I64 | Element::U64 => {
                format!("{name}[i]")
            }
            Element::F16 => format!("unpack2x16float({word} >> ((i & 1u) * 16u)).x"),
            Element::Bf16 => format!("bitcast<f32>(({word} >> ((i & 1u) * 16u)) << 16u)"),
            Element::I16 => format!("extractBits(bitcast<i32>({word}), (i & 1u) * 16u, 16u)"),
            Element::U16 => format!("extractBits({word}, (i & 1u) * 16u, 16u)"),
            Element::I8 => format!("extractBits(bitcast<i32>({word}), (i & 3u) * 8u, 8u)"),
            Element::U8 => format!("extractBits({word}, (i & 3u) * 8u, 8u)"),
            Element::Bool => format!("(extractBits({word}, (i & 3u) * 8u, 8u) != 0u)"),
        };
        let mut text = format!("fn load_{name}(i: u32) -> {value_type} {{ return {body}; }}\n");
        if element.bits() <= 32 && *element != Element::Bool {
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
        let body = match element {
            Element::F32 | Element::I32 | Element::U32 => format!("return {name}[i >> 2u];"),
            Element::F16 => format!(
                "let w = {name}[i >> 2u]; return vec4<f32>(unpack2x16float(w.x), unpack2x16float(w.y));"
            ),
            Element::Bf16 => format!(
                "let w = {name}[i >> 2u]; \
                 return bitcast<vec4<f32>>(vec4<u32>(w.x << 16u, w.x & 0xffff0000u, w.y << 16u, w.y & 0xffff0000u));"
            ),
            Element::I16 => format!(
                "let w = bitcast<vec2<i32>>({name}[i >> 2u]); \
                 return vec4<i32>((w.x << 16u) >> 16u, w.x >> 16u, (w.y << 16u) >> 16u, w.y >> 16u);"
            ),
            Element::U16 => format!(
                "let w = {name}[i >> 2u]; return vec4<u32>(w.x & 0xffffu, w.x >> 16u, w.y & 0xffffu, w.y >> 16u);"
            ),
            Element::I8 => format!("return unpack4xI8({name}[i >> 2u]);"),
            Element::U8 => format!("return unpack4xU8({name}[i >> 2u]);"),
            Element::Bool | Element::I64 | Element::U64 => {
                unreachable!("bug: {element:?} elements are loaded one by one")
            }
        };
        format!("fn load4_{name}(i: u32) -> {type4} {{ {body} }}\n")
    }

    fn store_one(&self) -> String {
        let Self { name, element, .. } = self;
        let value_type = element.value_type();
        let bits = match element {
            Element::F32 | Element::I32 | Element::U32 | Element::I64 | Element::U64 => {
                return format!(
                    "fn store_{name}(i: u32, value: {value_type}) {{ {name}[i] = value; }}\n"
                );
            }
            Element::F16 => "f16_bits(value)",
            Element::Bf16 => "bf16_bits(value)",
            Element::I16 => "(bitcast<u32>(value) & 0xffffu)",
            Element::U16 => "(value & 0xffffu)",
            Element::I8 => "(bitcast<u32>(value) & 0xffu)",
            Element::U8 => "(value & 0xffu)",
            Element::Bool => "select(0u, 1u, value)",
        };
        let (index_shift, lane_mask, width, mask) = match element.bits() {
            16 => (1, 1, 16, "0xffffu"),
            _ => (2, 3, 8, "0xffu"),
        };
        format!(
            "fn store_{name}(i: u32, value: {value_type}) {{
    let shift = (i & {lane_mask}u) * {width}u;
    atomicAnd(&{name}[i >> {index_shift}u], ~({mask} << shift));
    atomicOr(&{name}[i >> {index_shift}u], {bits} << shift);
}}\n"
        )
    }
}

impl Element {
    /// Every element type.
    pub const ALL: [Self; 12] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::I32,
        Self::U32,
        Self::I16,
        Self::U16,
        Self::I8,
        Self::U8,
        Self::Bool,
        Self::I64,
        Self::U64,
    ];

    /// Bits of one element in storage.
    pub fn bits(self) -> u32 {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 8,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::I64 | Self::U64 => 64,
        }
    }

    /// WGSL type that `load_NAME` gives and `store_NAME` takes.
    pub fn value_type(self) -> &'static str {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => "f32",
            Self::I32 | Self::I16 | Self::I8 => "i32",
            Self::U32 | Self::U16 | Self::U8 => "u32",
            Self::Bool => "bool",
            Self::I64 | Self::U64 => "vec2<u32>",
        }
    }

    /// Vector of four values.
    pub fn value_type4(self) -> &'static str {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => "vec4<f32>",
            Self::I32 | Self::I16 | Self::I8 => "vec4<i32>",
            Self::U32 | Self::U16 | Self::U8 => "vec4<u32>",
            Self::Bool => "vec4<bool>",
            Self::I64 | Self::U64 => unreachable!("bug: there are no vectors of 64-bit elements"),
        }
    }

    /// Function that rounds a value for storage, where the accessors need one.
    pub(crate) fn rounding(self) -> Option<&'static str> {
        match self {
            Self::F16 => Some(F16_BITS),
            Self::Bf16 => Some(BF16_BITS),
            _ => None,
        }
    }
}

/// Float to nearest f16, ties to even, in integer arithmetic: the built-in packing leaves rounding and overflow to the
/// driver. Subnormals round by an addition whose last bit has the weight of f16's.
pub const F16_BITS: &str = "fn f16_bits(value: f32) -> u32 {
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
pub const BF16_BITS: &str = "fn bf16_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
";
