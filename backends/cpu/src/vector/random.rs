//! Random bits: each lane computes the block of its element, and takes its word.
//!
//! Words are in the low halves of 64-bit lanes, as products leave them; what is above is never looked at.

use super::builder::Builder;
use super::{BinOp, CmpOp, Conv, Elem, Reg, Type};
use cupola_ir::eval::random::{MULTIPLIERS, ROUNDS, STREAM, WEYL};

/// The bits, in I32 lanes, of the elements in the I64 lanes of `element`, as [`cupola_ir::eval::random::bits`] defines them.
pub(super) fn bits(b: &mut Builder, element: Reg, stream: u64, seed: Reg, run: Reg) -> Reg {
    let upper = |b: &mut Builder, x| b.shift(BinOp::ShrU, x, 32);
    let number = |b: &mut Builder, n: u32| b.constant(u64::from(n), Type::INDEX);
    let stream = b.constant(stream.wrapping_mul(STREAM), Type::INDEX);
    let low_key = b.binary(BinOp::Xor, seed, stream);
    let mut keys = [low_key, upper(b, low_key)];
    let block = b.shift(BinOp::ShrU, element, 2);
    let mut words = [block, upper(b, block), run, upper(b, run)];
    let factors = MULTIPLIERS.map(|m| number(b, m));
    let steps = WEYL.map(|w| number(b, w));
    for round in 0..ROUNDS {
        if round > 0 {
            keys = [b.add(keys[0], steps[0]), b.add(keys[1], steps[1])];
        }
        let first = b.binary(BinOp::MulHalves, words[0], factors[0]);
        let third = b.binary(BinOp::MulHalves, words[2], factors[1]);
        let mixed = |b: &mut Builder, product, word, key| {
            // What does not depend on the element is computed once.
            let known = b.binary(BinOp::Xor, word, key);
            let high = upper(b, product);
            b.binary(BinOp::Xor, high, known)
        };
        words = [
            mixed(b, third, words[1], keys[0]),
            third,
            mixed(b, first, words[3], keys[1]),
            first,
        ];
    }
    let chosen = |b: &mut Builder, bit: u64, words: [Reg; 2]| {
        let bit = b.constant(bit, Type::INDEX);
        let zero = b.index(0);
        let own = b.binary(BinOp::And, element, bit);
        let is_set = b.cmp(CmpOp::Ne, own, zero);
        b.select(is_set, words[1], words[0])
    };
    let pairs = [[words[0], words[1]], [words[2], words[3]]];
    let odd = pairs.map(|pair| chosen(b, 1, pair));
    let word = chosen(b, 2, odd);
    b.convert(Conv::Wrap, word, Elem::I32)
}
