//! The tensor types of GGUF: their numbers in files, and how they store elements.

use cupola_ir::{BlockFormat, DType};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// A type of the graph: plain elements or a block format.
    Known(DType),
    /// One-bit blocks, 128 elements in 18 bytes: a valid type that nothing here computes with.
    Q1_0,
}

/// Numbers that stood for types in older files, with their names.
const REMOVED: [(u32, &str); 8] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// Number in a file and type.
const NUMBERS: [(u32, GgmlType); 34] = {
    use BlockFormat as B;
    use GgmlType::Known;
    [
        (0, Known(DType::F32)),
        (1, Known(DType::F16)),
        (2, Known(DType::Block(B::Q4_0))),
        (3, Known(DType::Block(B::Q4_1))),
        (6, Known(DType::Block(B::Q5_0))),
        (7, Known(DType::Block(B::Q5_1))),
        (8, Known(DType::Block(B::Q8_0))),
        (9, Known(DType::Block(B::Q8_1))),
        (10, Known(DType::Block(B::Q2_K))),
        (11, Known(DType::Block(B::Q3_K))),
        (12, Known(DType::Block(B::Q4_K))),
        (13, Known(DType::Block(B::Q5_K))),
        (14, Known(DType::Block(B::Q6_K))),
        (15, Known(DType::Block(B::Q8_K))),
        (16, Known(DType::Block(B::IQ2_XXS))),
        (17, Known(DType::Block(B::IQ2_XS))),
        (18, Known(DType::Block(B::IQ3_XXS))),
        (19, Known(DType::Block(B::IQ1_S))),
        (20, Known(DType::Block(B::IQ4_NL))),
        (21, Known(DType::Block(B::IQ3_S))),
        (22, Known(DType::Block(B::IQ2_S))),
        (23, Known(DType::Block(B::IQ4_XS))),
        (24, Known(DType::I8)),
        (25, Known(DType::I16)),
        (26, Known(DType::I32)),
        (27, Known(DType::I64)),
        (28, Known(DType::F64)),
        (29, Known(DType::Block(B::IQ1_M))),
        (30, Known(DType::BF16)),
        (34, Known(DType::Block(B::TQ1_0))),
        (35, Known(DType::Block(B::TQ2_0))),
        (39, Known(DType::Block(B::MXFP4))),
        (40, Known(DType::Block(B::NVFP4))),
        (41, GgmlType::Q1_0),
    ]
};

impl GgmlType {
    /// The type with this number in a file.
    pub fn from_number(number: u32) -> Option<GgmlType> {
        NUMBERS
            .iter()
            .find(|(known, _)| *known == number)
            .map(|(_, kind)| *kind)
    }

    /// The name of a type that files no longer use.
    pub fn removed(number: u32) -> Option<&'static str> {
        REMOVED
            .iter()
            .find(|(known, _)| *known == number)
            .map(|(_, name)| *name)
    }

    /// Its number in a file.
    pub fn number(self) -> u32 {
        let found = NUMBERS
            .iter()
            .find(|(_, kind)| *kind == self)
            .map(|(number, _)| *number);
        // `Known` may be built with a dtype that no file holds.
        found.unwrap_or(u32::MAX)
    }

    /// The dtype of the graph with the same storage.
    pub fn dtype(self) -> Option<DType> {
        match self {
            GgmlType::Known(dtype) => Some(dtype),
            GgmlType::Q1_0 => None,
        }
    }

    /// Name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            GgmlType::Known(dtype) => dtype.name(),
            GgmlType::Q1_0 => "q1_0",
        }
    }

    /// Elements in a block; 1 for plain types.
    pub fn block_len(self) -> u64 {
        match self {
            GgmlType::Known(DType::Block(format)) => format.block_len() as u64,
            GgmlType::Known(_) => 1,
            GgmlType::Q1_0 => 128,
        }
    }

    /// Bytes in a block; the size of an element for plain types.
    pub fn block_size(self) -> u64 {
        match self {
            GgmlType::Known(DType::Block(format)) => format.block_size() as u64,
            GgmlType::Known(dtype) => dtype.size() as u64,
            GgmlType::Q1_0 => 18,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_go_both_ways() {
        for (number, kind) in NUMBERS {
            assert_eq!(GgmlType::from_number(number), Some(kind));
            assert_eq!(kind.number(), number);
            assert_eq!(GgmlType::removed(number), None);
            assert!(kind.block_size() > 0 && kind.block_len() > 0, "{kind:?}");
        }
        assert_eq!(GgmlType::from_number(99), None);
        assert_eq!(GgmlType::removed(4), Some("Q4_2"));
    }

    #[test]
    fn every_block_format_has_a_number() {
        for &(format, ..) in BlockFormat::TABLE {
            let kind = GgmlType::Known(DType::Block(format));
            assert_eq!(GgmlType::from_number(kind.number()), Some(kind));
        }
    }
}
