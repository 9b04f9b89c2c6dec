//! Sub-byte elements: packed little end first.

/// The codes of `len` elements of 2 or 4 bits, one to a byte, zero-extended. Missing bytes read as 0.
pub(crate) fn unpack(bytes: &[u8], bits: usize, len: usize) -> Vec<u8> {
    let (per_byte, mask) = (8 / bits, (1u8 << bits) - 1);
    (0..len)
        .map(|i| {
            let byte = bytes.get(i / per_byte).copied().unwrap_or(0);
            (byte >> (i % per_byte * bits)) & mask
        })
        .collect()
}

/// Packs the low 2 or 4 bits of each code.
pub(crate) fn pack(codes: impl IntoIterator<Item = u8>, bits: usize) -> Vec<u8> {
    let (per_byte, mask) = (8 / bits, (1u8 << bits) - 1);
    let mut bytes = vec![];
    for (i, code) in codes.into_iter().enumerate() {
        if i % per_byte == 0 {
            bytes.push(0);
        }
        if let Some(last) = bytes.last_mut() {
            *last |= (code & mask) << (i % per_byte * bits);
        }
    }
    bytes
}
