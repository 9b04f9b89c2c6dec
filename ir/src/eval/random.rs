//! The counter-based random generator Philox-4x32-10 (Salmon et al., 2011).

/// Rounds of a block.
pub const ROUNDS: usize = 10;
/// Factors of the first and the third word in every round.
pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the words of the key after every round.
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Odd constant (golden ratio of 2^64) that spreads stream numbers over keys.
pub const STREAM: u64 = 0x9E37_79B9_7F4A_7C15;

/// One block: four words of random bits for a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = (
            (p1 >> 32) as u32 ^ c1 ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ k1,
            p0 as u32,
        );
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The random bits of one element, as [`crate::ops::Random`] defines them.
pub fn bits(seed: u64, stream: u64, run: u64, element: u64) -> u32 {
    let key = seed ^ stream.wrapping_mul(STREAM);
    let block = element / 4;
    let counter = [
        block as u32,
        (block >> 32) as u32,
        run as u32,
        (run >> 32) as u32,
    ];
    philox(counter, [key as u32, (key >> 32) as u32])[(element % 4) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_agrees_with_its_authors() {
        // Known answers published with Random123.
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn elements_take_the_words_of_a_block_in_turn() {
        assert_eq!(bits(0, 0, 0, 1), 0xe169_c58d);
        assert_ne!(bits(0, 1, 0, 1), bits(0, 0, 0, 1));
        assert_ne!(bits(0, 0, 1, 1), bits(0, 0, 0, 1));
    }
}
