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

/// Folds vectors of `len` elements in four chains, which are joined at the end by the named method:
/// `fold_vectors!(s, len, start, |so_far, at, count| next, add)`. The step must leave lanes from `count` on without effect.
macro_rules! fold_vectors {
    ($s:expr, $len:expr, $start:expr, |$so_far:ident, $at:ident, $count:ident| $step:expr, $join:ident) => {{
        let (lanes, len) = ($crate::library::simd::Simd::lanes($s), $len);
        let mut chains = [$start; 4];
        let four = len / (4 * lanes) * (4 * lanes);
        for first in (0..four).step_by(4 * lanes) {
            for (index, chain) in chains.iter_mut().enumerate() {
                let ($so_far, $at, $count) = (*chain, first + index * lanes, lanes);
                *chain = $step;
            }
        }
        for $at in (four..len).step_by(lanes) {
            let ($so_far, $count) = (chains[0], lanes.min(len - $at));
            chains[0] = $step;
        }
        let [a, b, c, d] = chains;
        $s.$join($s.$join(a, b), $s.$join(c, d))
    }};
}

pub(crate) use {fold_vectors, for_each_part, for_each_vector};
