//! [`ContentHash`]: a fast 128-bit hash by which constants and cache entries are told apart.
//!
//! It is meant against accidents, not against an adversary: whoever can choose both files can make them collide.
//! The value is stable across versions and machines, since caches on disk are keyed by it.

use std::fmt;

/// A 128-bit hash of some bytes. `Display` gives 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(pub u128);

/// Odd 64-bit constants with about half their bits set: the leading fractional bits of the square roots of 2, 3, 5 and 7,
/// made odd.
const KEYS: [u64; 4] = [
    0x6a09_e667_f3bc_c909,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
];

/// The step between stripes, from the square root of 11. Not one of [`KEYS`], or a bit at the top of one word would
/// weigh the same as a lower bit of the next.
const STEP: u64 = 0x510e_527f_ade6_82d1;

const STRIPE_SIZE: usize = 32;

impl ContentHash {
    /// The hash of `bytes`, about as fast as memory can be read.
    ///
    /// Four independent 64-bit lanes each take one little-endian word of a 32-byte stripe by multiply, add, rotate and
    /// multiply, every step of which is invertible, so that two inputs that differ in one word cannot meet again in
    /// that lane. The last stripe is padded with zeros; the length enters the final mixing.
    pub fn of(bytes: &[u8]) -> ContentHash {
        let mut lanes = KEYS;
        let mut stripes = bytes.chunks_exact(STRIPE_SIZE);
        for stripe in &mut stripes {
            absorb(&mut lanes, stripe);
        }
        let mut last = [0; STRIPE_SIZE];
        last[..stripes.remainder().len()].copy_from_slice(stripes.remainder());
        absorb(&mut lanes, &last);
        finish(lanes, bytes.len() as u64)
    }
}

fn absorb(lanes: &mut [u64; 4], stripe: &[u8]) {
    for ((lane, word), key) in lanes.iter_mut().zip(stripe.chunks_exact(8)).zip(KEYS) {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        *lane = lane
            .wrapping_add(word.wrapping_mul(key))
            .rotate_left(29)
            .wrapping_mul(STEP);
    }
}

/// Two different walks over the lanes give the two halves of the result.
fn finish(lanes: [u64; 4], len: u64) -> ContentHash {
    let fold = |order: [usize; 4], seed: u64| {
        order.into_iter().fold(mix(len ^ seed), |hash, lane| {
            mix(hash.rotate_left(23).wrapping_mul(KEYS[1]) ^ lanes[lane].wrapping_mul(KEYS[lane]))
        })
    };
    let high = fold([0, 1, 2, 3], KEYS[2]);
    let low = fold([3, 1, 0, 2], KEYS[3] ^ high);
    ContentHash(u128::from(high) << 64 | u128::from(low))
}

/// An invertible scrambling of 64 bits: each input bit reaches every output bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 31)).wrapping_mul(KEYS[3]);
    bits = (bits ^ (bits >> 29)).wrapping_mul(KEYS[1]);
    bits ^ (bits >> 32)
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn length_and_every_bit_matter() {
        let mut seen = HashSet::new();
        for len in 0..200 {
            assert!(
                seen.insert(ContentHash::of(&vec![0; len])),
                "zeros of length {len}"
            );
        }
        let mut bytes: Vec<u8> = (0..150).map(|i| (i * 7) as u8).collect();
        assert!(seen.insert(ContentHash::of(&bytes)));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(ContentHash::of(&bytes)), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn exchanged_words_give_another_hash() {
        let words: Vec<u64> = (1..=16).map(|i| i << 56 | i).collect();
        let mut seen = HashSet::new();
        for first in 0..16 {
            for second in first..16 {
                let mut words = words.clone();
                words.swap(first, second);
                let fresh = seen.insert(ContentHash::of(little_endian(&words).as_slice()));
                assert!(fresh || first == second, "{first} and {second}");
            }
        }
    }

    fn little_endian(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_flipped_bit_flips_about_half_of_the_result() {
        let bytes: Vec<u8> = (0..96).map(|i| (i * 31) as u8).collect();
        let base = ContentHash::of(&bytes).0;
        let mut total = 0;
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let flipped = (ContentHash::of(&bytes).0 ^ base).count_ones();
            assert!((30..=98).contains(&flipped), "bit {bit} flips {flipped}");
            total += flipped;
        }
        let mean = f64::from(total) / (bytes.len() * 8) as f64;
        assert!((62.0..66.0).contains(&mean), "{mean}");
    }

    #[test]
    fn the_value_is_stable() {
        expect_test::expect!["ecf4279045fdbedf9b9dcded569988c0"]
            .assert_eq(&ContentHash::of(b"").to_string());
        expect_test::expect!["2e33a69e7b7ea024504d762ce426b7f8"].assert_eq(
            &ContentHash::of(b"the quick brown fox jumps over the lazy dog").to_string(),
        );
    }
}
