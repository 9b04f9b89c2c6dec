//! How well a model does: numbers gathered over the batches of an evaluation, on the host, in f64.

use rustc_hash::FxHashMap;

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Share of samples whose likeliest class is theirs.
    Accuracy,
    /// Of what is said to be of a class, the share that is; the mean over classes (one never said counts 0).
    Precision,
    /// Of what is of a class, the share that is said to be; the mean over classes that occur or are said.
    Recall,
    /// Harmonic mean of precision and recall of a class; the mean over classes that occur or are said.
    F1,
    /// e to the mean loss.
    Perplexity,
    /// Overlap of runs of one to four tokens between the likeliest tokens and those that came (Papineni and others,
    /// 2002), over the whole evaluation, from 0 to 1.
    Bleu,
    /// Mean squared error.
    Mse,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 7] = [
        Metric::Accuracy,
        Metric::Precision,
        Metric::Recall,
        Metric::F1,
        Metric::Perplexity,
        Metric::Bleu,
        Metric::Mse,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::F1 => "f1",
            Metric::Perplexity => "perplexity",
            Metric::Bleu => "bleu",
            Metric::Mse => "mse",
        }
    }

    /// The metric of this name.
    pub fn named(name: &str) -> Option<Metric> {
        Metric::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Whether it grows as the model improves.
    pub fn grows(self) -> bool {
        !matches!(self, Metric::Perplexity | Metric::Mse)
    }
}

/// How often what was said for what: the base of accuracy, precision, recall and F1.
#[derive(Clone, Debug, Default)]
pub struct Confusion {
    /// Of each class: said and right, said, and there.
    classes: Vec<[u64; 3]>,
    right: u64,
    all: u64,
}

impl Confusion {
    /// Counts predictions; labels below 0 are not counted.
    pub fn add(&mut self, said: &[i64], labels: &[i64]) {
        for (said, label) in said.iter().zip(labels) {
            let (Ok(said), Ok(label)) = (usize::try_from(*said), usize::try_from(*label)) else {
                continue;
            };
            let most = said.max(label);
            if most >= self.classes.len() {
                self.classes.resize(most + 1, [0; 3]);
            }
            self.classes[said][1] += 1;
            self.classes[label][2] += 1;
            self.all += 1;
            if said == label {
                self.classes[said][0] += 1;
                self.right += 1;
            }
        }
    }

    /// Mean of a number over classes that occur or are said.
    fn mean(&self, of: impl Fn([f64; 3]) -> f64) -> f64 {
        let seen = self.classes.iter().filter(|c| c[1] + c[2] > 0);
        let each: Vec<f64> = seen.map(|c| of(c.map(|n| n as f64))).collect();
        each.iter().sum::<f64>() / each.len() as f64
    }

    /// The number of a metric; `None` for those that do not follow from counts.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        Some(match metric {
            Metric::Accuracy => self.right as f64 / self.all as f64,
            Metric::Precision => self.mean(|[right, said, _]| share(right, said)),
            Metric::Recall => self.mean(|[right, _, there]| share(right, there)),
            Metric::F1 => self.mean(|[right, said, there]| share(2.0 * right, said + there)),
            Metric::Perplexity | Metric::Bleu | Metric::Mse => return None,
        })
    }
}

/// Longest run of tokens that is compared.
const RUN: usize = 4;

/// Overlap of sequences.
#[derive(Clone, Debug, Default)]
pub struct Bleu {
    /// For runs of each length: those that are in both, and those that were said.
    counts: [[u64; 2]; RUN],
    said: u64,
    there: u64,
}

impl Bleu {
    /// Counts a sequence that was said and the one that was to be said.
    pub fn add(&mut self, said: &[i64], wanted: &[i64]) {
        self.said += said.len() as u64;
        self.there += wanted.len() as u64;
        for run in 1..=RUN {
            let mut there: FxHashMap<&[i64], u64> = FxHashMap::default();
            wanted
                .windows(run)
                .for_each(|w| *there.entry(w).or_default() += 1);
            for w in said.windows(run) {
                self.counts[run - 1][1] += 1;
                if let Some(left) = there.get_mut(w).filter(|n| **n > 0) {
                    *left -= 1;
                    self.counts[run - 1][0] += 1;
                }
            }
        }
    }

    /// From 0 to 1.
    pub fn value(&self) -> f64 {
        if self.counts.iter().any(|c| c[0] == 0) {
            return 0.0;
        }
        let share = |c: &[u64; 2]| (c[0] as f64 / c[1] as f64).ln();
        let mean = self.counts.iter().map(share).sum::<f64>() / RUN as f64;
        let brevity = (1.0 - self.there as f64 / self.said as f64).min(0.0);
        (mean + brevity).exp()
    }
}

/// A mean, weighted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    /// Counts a number.
    pub fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    /// The mean; not a number where nothing was counted.
    pub fn value(&self) -> f64 {
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_give_means_over_classes() {
        let mut confusion = Confusion::default();
        confusion.add(&[0, 0, 1, 2, 2, 1, 3], &[0, 1, 1, 2, 0, 1, 2]);
        confusion.add(&[5], &[-100]);
        let close = |metric, wanted: f64| {
            let value = confusion.value(metric).expect("counts");
            assert!((value - wanted).abs() < 1e-12, "{metric:?}: {value}");
        };
        close(Metric::Accuracy, 4.0 / 7.0);
        close(Metric::Precision, (0.5 + 1.0 + 0.5 + 0.0) / 4.0);
        close(Metric::Recall, (0.5 + 2.0 / 3.0 + 0.5 + 0.0) / 4.0);
        close(Metric::F1, (0.5 + 0.8 + 0.5 + 0.0) / 4.0);
        assert_eq!(confusion.value(Metric::Bleu), None);
    }

    #[test]
    fn overlap_counts_each_run_once_and_punishes_shortness() {
        let mut same = Bleu::default();
        same.add(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]);
        assert_eq!(same.value(), 1.0);
        let mut short = Bleu::default();
        short.add(&[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert!((short.value() - (-1.0f64).exp()).abs() < 1e-12);
        let mut repeated = Bleu::default();
        repeated.add(&[1, 1, 1, 2, 3, 4], &[1, 2, 3, 4, 9, 9]);
        // Runs in both: 4 of 6, 3 of 5, 2 of 4, 1 of 3.
        let wanted = (4.0 / 6.0 * 3.0 / 5.0 * 2.0 / 4.0 / 3.0f64).powf(0.25);
        assert!((repeated.value() - wanted).abs() < 1e-12);
        assert_eq!(Bleu::default().value(), 0.0);
    }

    #[test]
    fn names_are_unique() {
        for metric in Metric::ALL {
            assert_eq!(Metric::named(metric.name()), Some(metric));
        }
    }
}
