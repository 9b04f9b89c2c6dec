//! Which samples come when: duplicates, parts, and the order of an epoch. All by a seed alone.

use super::{DataError, Dataset, Result};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// Shares of the samples that are held out, each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Splits {
    /// Looked at while training: early stop, the best checkpoint.
    pub validation: f64,
    /// Looked at by nobody but `eval`.
    pub test: f64,
    /// Decides which.
    pub seed: u64,
    /// Of samples with the same `x` only the first stays.
    pub unique: bool,
    /// Hold out the end of the data, validation before test, instead of drawing: for one long text.
    pub from_end: bool,
}

/// Some rows of a data set.
#[derive(Clone, Debug)]
pub struct Part {
    /// The whole.
    pub data: Arc<Dataset>,
    /// Its rows, in the order of the files.
    pub rows: Vec<u32>,
}

impl Part {
    /// All rows.
    pub fn whole(data: Dataset) -> Part {
        let rows = (0..data.len() as u32).collect();
        let data = Arc::new(data);
        Part { data, rows }
    }

    /// Samples in it.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

/// Multiplied by what numbers an epoch, so that its stream begins far from those of its neighbours.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The stream that deals samples to parts: an epoch that no run reaches.
const SPLIT: u64 = u64::MAX;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Stream(u64);

impl Stream {
    fn new(seed: u64, epoch: u64) -> Stream {
        let mut first = Stream(seed);
        let start = first.next() ^ epoch.wrapping_add(1).wrapping_mul(STRIDE);
        Stream(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STRIDE);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`: the high half of a product.
    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// The order of `len` samples in an epoch: Fisher and Yates's shuffle from the last place down, over SplitMix64 begun
/// at `splitmix(seed) ^ (epoch + 1) * 0x9e3779b97f4a7c15`.
pub fn order(len: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut all: Vec<u32> = (0..len as u32).collect();
    let mut stream = Stream::new(seed, epoch);
    for i in (1..len).rev() {
        all.swap(i, stream.below(i as u64 + 1) as usize);
    }
    all
}

/// Numbers of samples with an `x` that none before them has.
fn unique(data: &Dataset) -> Vec<u32> {
    let Some(x) = data.column("x") else {
        return (0..data.len() as u32).collect();
    };
    let mut seen = FxHashSet::default();
    let rows = 0..data.len() as u32;
    rows.filter(|row| seen.insert(x.bytes(*row as usize)))
        .collect()
}

impl Splits {
    /// Deals the samples: what to train on, to validate by and to test with. The numbers held out are rounded down.
    ///
    /// # Errors
    /// [`DataError::Unfit`] for shares below 0 or together above 1, and when nothing is left to train on.
    pub fn deal(&self, data: Dataset) -> Result<[Part; 3]> {
        let shares = [self.validation, self.test];
        if shares.iter().any(|s| !(0.0..1.0).contains(s)) || shares.iter().sum::<f64>() >= 1.0 {
            return Err(DataError::Unfit(format!(
                "validation {} and test {} must be shares of 0 to 1, together below 1",
                self.validation, self.test
            )));
        }
        let rows = match self.unique {
            true => unique(&data),
            false => (0..data.len() as u32).collect(),
        };
        let dealt: Vec<u32> = match self.from_end {
            true => rows.iter().rev().copied().collect(),
            false => (order(rows.len(), self.seed, SPLIT).iter())
                .map(|i| rows[*i as usize])
                .collect(),
        };
        let count = |share: f64| (share * rows.len() as f64) as usize;
        let (tested, rest) = dealt.split_at(count(self.test));
        let (validated, trained) = rest.split_at(count(self.validation));
        if trained.is_empty() {
            return Err(DataError::Unfit("there are no samples to train on".into()));
        }
        let data = Arc::new(data);
        Ok([trained, validated, tested].map(|rows| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            Part {
                data: data.clone(),
                rows,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Column;

    fn numbers(values: Vec<f32>) -> Dataset {
        let y = Column::Labels {
            shape: vec![],
            values: (0..values.len() as i64).collect(),
        };
        let x = Column::Floats {
            shape: vec![1],
            values,
        };
        Dataset::pair(x, y).expect("a set")
    }

    #[test]
    fn orders_are_permutations_that_seed_and_epoch_decide() {
        let first = order(1000, 7, 0);
        assert_eq!(first, order(1000, 7, 0));
        assert_ne!(first, order(1000, 7, 1));
        assert_ne!(first, order(1000, 8, 0));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        // What another implementation of the description gives.
        assert_eq!(order(8, 1, 0), [5, 2, 7, 4, 3, 6, 0, 1]);
        assert_eq!(order(8, 1, 1), [0, 4, 7, 6, 3, 1, 5, 2]);
        assert!(order(0, 1, 0).is_empty());
    }

    #[test]
    fn parts_are_disjoint_and_duplicates_go() {
        let mut values: Vec<f32> = (0..100).map(|i| i as f32).collect();
        values.extend([3.0, 4.0, -0.0]);
        let splits = Splits {
            validation: 0.1,
            test: 0.2,
            seed: 5,
            unique: true,
            from_end: false,
        };
        let [train, validation, test] = splits.deal(numbers(values.clone())).expect("parts");
        assert_eq!([train.len(), validation.len(), test.len()], [70, 10, 20]);
        let mut all = [train.rows, validation.rows, test.rows].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<u32>>());
        let splits = Splits {
            from_end: true,
            ..splits
        };
        let [_, validation, test] = splits.deal(numbers(values)).expect("parts");
        assert_eq!((validation.rows[0], test.rows[19]), (70, 99));
    }

    #[test]
    fn shares_are_checked() {
        let splits = Splits {
            validation: 0.5,
            test: 0.5,
            ..Splits::default()
        };
        assert!(splits.deal(numbers(vec![1.0; 4])).is_err());
        assert!(Splits::default().deal(numbers(vec![])).is_err());
    }
}
