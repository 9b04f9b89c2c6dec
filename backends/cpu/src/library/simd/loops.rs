//! Loops over vectors, as macros: a closure over vectors would be compiled without the level's features wherever it is not
//! inlined, and a vector operation would then be a call.

/// Runs the body for whole vectors of `len` elements, then for the rest, with the first element and the number of elements:
/// `for_each_vector!(s, len, |at, count| body)`.
macro_rules! for_each_vector {
    ($s:expr, $len:expr, |$at:ident, $count:ident| $body:expr) => {{
        let (lanes, len) = ($crate::library::simd::Simd::lanes($s), $len);
        let whole = len / lanes * lanes;
        for $at in (0..whole).step_by(lanes) {
            let $count = lanes;
            $body;
        }
        if whole < len {
            let ($at, $count) = (whole, len - whole);
            $body;
        }
    }};
}

/// Runs the body for the vectors of `len` elements, with the number of the vector among those that hold
/// [`crate::library::simd::PARTS`] parts, the first element and the number of elements:
/// `for_each_part!(s, len, |vector, at, count| body)`.
macro_rules! for_each_part {
    ($s:expr, $len:expr, |$vector:ident, $at:ident, $count:ident| $body:expr) => {{
        use $crate::library::simd::PARTS;
        let (lanes, len) = ($crate::library::simd::Simd::lanes($s), $len);
        let whole = len / PARTS * PARTS;
        for first in (0..whole).step_by(PARTS) {
            for $vector in 0..PARTS / lanes {
                let ($at, $count) = (first + $vector * lanes, lanes);
                $body;
            }
        }
        for $vector in 0..PARTS / lanes {
            let $at = whole + $vector * lanes;
            if $at < len {
                let $count = lanes.min(len - $at);
                $body;
            }
        }
    }};
}

/// Folds vectors of `len` elements into one, by the named method, so that the order does not depend on the width of vectors:
/// `fold_vectors!(s, len, start, |so_far, at, count| next, add)`. Element `i` belongs to part `i % (4 * PARTS)`, in the rest that
/// does not fill as many to part `i % PARTS`; parts are joined in pairs. The step must leave lanes from `count` on without effect.
macro_rules! fold_vectors {
    ($s:expr, $len:expr, $start:expr, |$so_far:ident, $at:ident, $count:ident| $step:expr, $join:ident) => {{
        use $crate::library::simd::{MAX_VECTORS, PARTS};
        const CHAINS: usize = 4;
        let (lanes, len) = ($crate::library::simd::Simd::lanes($s), $len);
        let vectors = PARTS / lanes;
        let mut chains = [$start; CHAINS * MAX_VECTORS];
        let four = len / (CHAINS * PARTS) * (CHAINS * PARTS);
        for first in (0..four).step_by(CHAINS * PARTS) {
            for (index, chain) in chains.iter_mut().enumerate().take(CHAINS * vectors) {
                let ($so_far, $at, $count) = (*chain, first + index * lanes, lanes);
                *chain = $step;
            }
        }
        for first in (four..len).step_by(PARTS) {
            for (vector, chain) in chains.iter_mut().enumerate().take(vectors) {
                let $at = first + vector * lanes;
                if $at < len {
                    let ($so_far, $count) = (*chain, lanes.min(len - $at));
                    *chain = $step;
                }
            }
        }
        // Neighbouring chains are joined first, then what is left of them, then the halves of what the widest vector holds.
        for chain in 0..vectors {
            let of = |index: usize| chains[index * vectors + chain];
            let [a, b, c, d] = [of(0), of(1), of(2), of(3)];
            chains[chain] = $s.$join($s.$join(a, b), $s.$join(c, d));
        }
        let mut half = vectors / 2;
        while half > 0 {
            for chain in 0..half {
                chains[chain] = $s.$join(chains[chain], chains[chain + half]);
            }
            half /= 2;
        }
        chains[0]
    }};
}

pub(crate) use {fold_vectors, for_each_part, for_each_vector};
