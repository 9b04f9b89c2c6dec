//! Whether two sets of timings differ: a rank test, and an estimate of by how much that outliers do not move.

/// Most samples of a set that are looked at; evenly spaced ones of longer sets.
const MOST: usize = 1000;

/// How one set of samples lies to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shift {
    /// The factor from the first set to the second: the median over all pairs of their quotients (Hodges and Lehmann's
    /// estimator, on logarithms).
    pub factor: f64,
    /// The chance that sets without a difference look at least as different, by the two-sided Mann-Whitney test with
    /// correction for ties.
    pub p: f64,
}

/// Compares two sets of positive samples; `None` where one is empty or holds what is no positive number.
pub fn shift(before: &[f64], after: &[f64]) -> Option<Shift> {
    let sound = |all: &[f64]| !all.is_empty() && all.iter().all(|x| x.is_finite() && *x > 0.0);
    if !sound(before) || !sound(after) {
        return None;
    }
    let (before, after) = (thinned(before), thinned(after));
    let pairs = before.iter().flat_map(|x| after.iter().map(move |y| y / x));
    let mut quotients: Vec<f64> = pairs.collect();
    let middle = quotients.len() / 2;
    let (_, factor, _) = quotients.select_nth_unstable_by(middle, f64::total_cmp);
    let factor = *factor;
    Some(Shift {
        factor,
        p: rank_test(&before, &after),
    })
}

/// The middle sample, the upper one of two; NaN of none.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn thinned(all: &[f64]) -> Vec<f64> {
    let len = all.len().min(MOST);
    (0..len).map(|i| all[i * all.len() / len]).collect()
}

/// The two-sided p-value of the Mann-Whitney test, by the normal approximation.
fn rank_test(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = a.iter().map(|x| (*x, true)).collect();
    all.extend(b.iter().map(|x| (*x, false)));
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let (n, m) = (a.len() as f64, b.len() as f64);
    let total = n + m;
    let (mut ranks, mut ties, mut at) = (0.0, 0.0, 0);
    while at < all.len() {
        let equal = all[at..].iter().take_while(|x| x.0 == all[at].0).count();
        // Equal samples share the mean of their ranks, which count from 1.
        let rank = at as f64 + (equal as f64 + 1.0) / 2.0;
        let own = all[at..at + equal].iter().filter(|x| x.1).count();
        ranks += rank * own as f64;
        ties += (equal as f64).powi(3) - equal as f64;
        at += equal;
    }
    let u = ranks - n * (n + 1.0) / 2.0;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)).max(1.0));
    if variance <= 0.0 {
        return 1.0;
    }
    let distance = ((u - n * m / 2.0).abs() - 0.5).max(0.0);
    two_sided(distance / variance.sqrt())
}

/// The chance that a normal variable is at least `z` from its mean, in standard deviations: `erfc(z / sqrt 2)` by the
/// continued fraction for large and the series for small arguments.
fn two_sided(z: f64) -> f64 {
    let x = z / std::f64::consts::SQRT_2;
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for k in 1..60 {
            term *= 2.0 * x * x / (2.0 * f64::from(k) + 1.0);
            sum += term;
        }
        return (1.0 - 2.0 * scale * sum).clamp(0.0, 1.0);
    }
    let fraction = (1..60)
        .rev()
        .fold(x, |below, k| x + f64::from(k) / 2.0 / below);
    scale / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timings like those of a machine that is mostly quiet: a floor, a skewed spread above it, rare interruptions, and a
    /// drift of the whole visit.
    fn timings(seed: u64, len: usize, base: f64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let drift = 1.0 + 0.02 * (next() - 0.5);
        let one = |_| {
            let spread = -0.01 * next().max(1e-12).ln();
            let stop = if next() < 0.03 {
                1.0 + 2.0 * next()
            } else {
                1.0
            };
            base * drift * (1.0 + spread) * stop
        };
        (0..len).map(one).collect()
    }

    #[test]
    fn the_tail_of_the_normal_distribution() {
        for (z, want) in [
            (0.0, 1.0),
            (1.0, 0.317_310_507_862_914),
            (1.959_963_984_540_054, 0.05),
            (3.0, 0.002_699_796_063_260_2),
            (6.0, 1.973_175_290_075_4e-9),
        ] {
            assert!(
                (two_sided(z) / want - 1.0).abs() < 1e-6,
                "{z}: {}",
                two_sided(z)
            );
        }
    }

    #[test]
    fn ranks_with_ties_by_hand() {
        // Ranks of a: 1.5, 3, 5; u = 9.5 - 6 = 3.5 of 9; one tie of two.
        let variance: f64 = 9.0 / 12.0 * (7.0 - 6.0 / 30.0);
        let want = two_sided((4.5f64 - 3.5 - 0.5) / variance.sqrt());
        assert_eq!(rank_test(&[1.0, 2.0, 4.0], &[1.0, 3.0, 5.0]), want);
        assert_eq!(rank_test(&[2.0; 4], &[2.0; 9]), 1.0);
    }

    #[test]
    fn a_planted_tenth_is_found_and_noise_is_not() {
        let (mut found, mut alarms) = (0, 0);
        for seed in 1..=200 {
            let before = timings(seed, 50, 3.0);
            let verdict = |after: &[f64]| {
                let s = shift(&before, after).expect("samples");
                s.p < 0.01 && s.factor > 1.05
            };
            found += usize::from(verdict(&timings(seed + 1000, 50, 3.3)));
            alarms += usize::from(verdict(&timings(seed + 2000, 50, 3.0)));
        }
        assert_eq!((found, alarms), (200, 0));
    }

    #[test]
    fn the_factor_is_that_of_the_sets() {
        let a = timings(7, 2500, 1.0);
        let b: Vec<f64> = a.iter().map(|x| x * 1.25).collect();
        let s = shift(&a, &b).expect("samples");
        assert!((s.factor - 1.25).abs() < 0.01 && s.p < 1e-9, "{s:?}");
        let s = shift(&b, &a).expect("samples");
        assert!((s.factor - 0.8).abs() < 0.01, "{s:?}");
        assert_eq!(shift(&a, &a).map(|s| s.p), Some(1.0));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        assert_eq!(shift(&[], &[1.0]), None);
        assert_eq!(shift(&[1.0], &[f64::NAN]), None);
        assert_eq!(shift(&[1.0], &[0.0]), None);
    }
}
