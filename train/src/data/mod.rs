//! Data to train on: samples in columns, read whole, split and shuffled by a seed, dealt in batches.
//!
//! A [`Dataset`] has a row for every sample and named columns; a [`Part`] is some of its rows; a [`Loader`] makes
//! batches of them on a thread of its own. Everything here is a pure function of files and seeds, so that a run can be
//! repeated and resumed bit by bit. Nothing here decodes pictures or NumPy files: [`Readers`] are given for that.
//!
//! Reading order: this file, `order.rs`, `batch.rs`, then the formats: `digits.rs`, `table.rs`, `arrays.rs`, `text.rs`.

mod arrays;
mod batch;
mod digits;
mod file;
mod order;
mod table;
mod text;

pub use arrays::{ArrayFiles, image_folder, npy};
pub use batch::{Batch, Dealing, Loader, Position};
pub use digits::{digits_csv, digits_json, idx};
pub use order::{Part, Splits, order};
pub use table::{ClassColumns, TableColumns, classes, table};
pub use text::{CorpusOptions, Padding, Side, Units, Vocabulary, Words, corpus};

use cupola_ir::Tensor;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is wrong with data: one line, with file and line where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A file that is not there or cannot be read. *User input.*
    #[error("cannot read {}: {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        what: String,
    },
    /// A file that is not what it should be. *User input.*
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A line that is not what it should be. *User input.*
    #[error("{}, line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// Sound files that do not suit what is asked of them. *User input.*
    #[error("{0}")]
    Unfit(String),
}

impl DataError {
    pub(crate) fn io(path: &Path, what: impl ToString) -> DataError {
        DataError::Io {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }

    pub(crate) fn file(path: &Path, what: impl ToString) -> DataError {
        DataError::File {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }

    pub(crate) fn line(path: &Path, line: u64, what: impl ToString) -> DataError {
        DataError::Line {
            path: path.to_owned(),
            line,
            what: what.to_string(),
        }
    }
}

/// Result of reading data.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Reads formats that take a decoder. Errors are one line without the file's name.
#[derive(Clone, Copy)]
pub struct Readers<'a> {
    /// A picture as u8 `[channels, height, width]` for these extents.
    pub image: &'a dyn Fn(&Path, [usize; 3]) -> Result<Tensor, String>,
    /// A `.npy` file.
    pub npy: &'a dyn Fn(&Path) -> Result<Tensor, String>,
    /// The tokens of a text by the tokenizer that was asked for, and how many kinds of tokens there are.
    pub tokens: Option<(&'a dyn Fn(&str) -> Result<Vec<u32>, String>, usize)>,
}

/// One value of every sample.
#[derive(Clone, Debug)]
pub enum Column {
    /// Bytes that stand for 0 to 1, of this shape per sample: f32.
    Pixels {
        /// Shape of one sample.
        shape: Vec<usize>,
        /// All samples.
        values: Vec<u8>,
    },
    /// Numbers of this shape per sample: f32.
    Floats {
        /// Shape of one sample.
        shape: Vec<usize>,
        /// All samples.
        values: Vec<f32>,
    },
    /// Whole numbers of this shape per sample, classes above all: i64.
    Labels {
        /// Shape of one sample.
        shape: Vec<usize>,
        /// All samples.
        values: Vec<i64>,
    },
    /// Tokens, of every sample as many as it has; a batch is padded: i64 `[batch, longest]`.
    Sequences {
        /// Where each sample begins, and the end of the last.
        offsets: Vec<usize>,
        /// All samples.
        tokens: Vec<u32>,
        /// How a batch becomes rectangular.
        padding: Padding,
    },
    /// Tokens `start..start + len` of one long text: i64 `[batch, len]`.
    Windows {
        /// The text.
        text: Arc<Vec<u32>>,
        /// Where the window of each sample begins.
        starts: Vec<usize>,
        /// Length of every window.
        len: usize,
    },
}

impl Column {
    /// Samples in it.
    pub fn len(&self) -> usize {
        let of = |shape: &[usize], values: usize| match shape.iter().product::<usize>() {
            0 => 0,
            each => values / each,
        };
        match self {
            Column::Pixels { shape, values } => of(shape, values.len()),
            Column::Floats { shape, values } => of(shape, values.len()),
            Column::Labels { shape, values } => of(shape, values.len()),
            Column::Sequences { offsets, .. } => offsets.len().saturating_sub(1),
            Column::Windows { starts, .. } => starts.len(),
        }
    }

    /// What one sample looks like, for messages: `f32[28,28]`.
    pub fn describe(&self) -> String {
        let shaped = |ty: &str, shape: &[usize]| {
            let extents: Vec<String> = shape.iter().map(ToString::to_string).collect();
            format!("{ty}[{}]", extents.join(","))
        };
        match self {
            Column::Pixels { shape, .. } => shaped("pixels", shape),
            Column::Floats { shape, .. } => shaped("f32", shape),
            Column::Labels { shape, .. } => shaped("i64", shape),
            Column::Sequences { .. } => "tokens[any]".into(),
            Column::Windows { len, .. } => format!("tokens[{len}]"),
        }
    }

    /// The bytes of a sample, equal where samples are equal.
    fn bytes(&self, row: usize) -> Cow<'_, [u8]> {
        let range = |shape: &[usize]| {
            let each: usize = shape.iter().product();
            row * each..(row + 1) * each
        };
        match self {
            Column::Pixels { shape, values } => Cow::Borrowed(&values[range(shape)]),
            Column::Floats { shape, values } => {
                // Both zeros are the same number.
                let bits = values[range(shape)].iter().map(|x| (x + 0.0).to_bits());
                Cow::Owned(bits.flat_map(u32::to_le_bytes).collect())
            }
            Column::Labels { shape, values } => {
                let all = values[range(shape)].iter();
                Cow::Owned(all.flat_map(|x| x.to_le_bytes()).collect())
            }
            Column::Sequences { .. } | Column::Windows { .. } => {
                let tokens = self.tokens(row).iter();
                Cow::Owned(tokens.flat_map(|x| x.to_le_bytes()).collect())
            }
        }
    }

    /// The tokens of a sample; nothing of columns without tokens.
    fn tokens(&self, row: usize) -> &[u32] {
        match self {
            Column::Sequences {
                offsets, tokens, ..
            } => &tokens[offsets[row]..offsets[row + 1]],
            Column::Windows { text, starts, len } => &text[starts[row]..starts[row] + len],
            Column::Pixels { .. } | Column::Floats { .. } | Column::Labels { .. } => &[],
        }
    }
}

/// Samples in named columns. By convention `x` is what a model is given and `y` what it is to say.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// Columns of the same length.
    pub columns: Vec<(String, Column)>,
    /// Names of the classes by number; empty where there are none.
    pub classes: Vec<String>,
    /// What tokens stand for; `None` where there are none or a tokenizer made them.
    pub vocabulary: Option<Vocabulary>,
    /// Kinds of tokens, those that do not occur too; 0 where there are no tokens.
    pub token_kinds: usize,
}

impl Dataset {
    /// A data set of an `x` and a `y`.
    ///
    /// # Errors
    /// [`DataError::Unfit`] for columns of different lengths.
    pub fn pair(x: Column, y: Column) -> Result<Dataset> {
        if x.len() != y.len() {
            return Err(DataError::Unfit(format!(
                "{} samples but {} targets",
                x.len(),
                y.len()
            )));
        }
        Ok(Dataset {
            columns: vec![("x".into(), x), ("y".into(), y)],
            ..Dataset::default()
        })
    }

    /// Samples in it.
    pub fn len(&self) -> usize {
        self.columns.first().map_or(0, |(_, c)| c.len())
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        (self.columns.iter()).find_map(|(n, c)| (n == name).then_some(c))
    }

    /// Appends the samples of another set with the same columns. Classes and vocabularies must agree, or be of one of
    /// them only.
    ///
    /// # Errors
    /// [`DataError::Unfit`] naming the column that differs.
    pub fn append(&mut self, other: Dataset) -> Result<()> {
        let names = |d: &Dataset| d.columns.iter().map(|c| c.0.clone()).collect::<Vec<_>>();
        if names(self) != names(&other) {
            return Err(DataError::Unfit(format!(
                "files with columns {} and {} cannot be joined",
                names(self).join(", "),
                names(&other).join(", ")
            )));
        }
        if self.classes != other.classes && !self.classes.is_empty() && !other.classes.is_empty() {
            return Err(DataError::Unfit(
                "files with different classes cannot be joined".into(),
            ));
        }
        if self.classes.is_empty() {
            self.classes = other.classes;
        }
        for ((name, own), (_, more)) in self.columns.iter_mut().zip(other.columns) {
            let (was, is) = (own.describe(), more.describe());
            if !own.extend(more) {
                return Err(DataError::Unfit(format!(
                    "column '{name}' is {was} in one file and {is} in another"
                )));
            }
        }
        Ok(())
    }

    /// Takes the mean of these rows from column `x` and divides by their standard deviation, number by number; numbers
    /// that never change become 0. Only numbers are changed, and all rows, also those not looked at.
    pub fn standardise(&mut self, rows: &[u32]) {
        let Some((_, Column::Floats { shape, values })) =
            self.columns.iter_mut().find(|(n, _)| n == "x")
        else {
            return;
        };
        let each: usize = shape.iter().product();
        for at in 0..each {
            let of = |row: &u32| f64::from(values[*row as usize * each + at]);
            let n = rows.len().max(1) as f64;
            let mean = rows.iter().map(of).sum::<f64>() / n;
            let variance = rows.iter().map(|r| (of(r) - mean).powi(2)).sum::<f64>() / n;
            let scale = if variance > 0.0 {
                variance.sqrt().recip()
            } else {
                0.0
            };
            for value in values.iter_mut().skip(at).step_by(each) {
                *value = ((f64::from(*value) - mean) * scale) as f32;
            }
        }
    }
}

impl Column {
    /// Appends samples of the same form; false where the form differs.
    fn extend(&mut self, more: Column) -> bool {
        match (self, more) {
            (
                Column::Pixels { shape, values },
                Column::Pixels {
                    shape: s,
                    values: v,
                },
            ) if shape.iter().product::<usize>() == s.iter().product::<usize>() => values.extend(v),
            (
                Column::Floats { shape, values },
                Column::Floats {
                    shape: s,
                    values: v,
                },
            ) if *shape == s => values.extend(v),
            (
                Column::Labels { shape, values },
                Column::Labels {
                    shape: s,
                    values: v,
                },
            ) if *shape == s => values.extend(v),
            (
                Column::Sequences {
                    offsets, tokens, ..
                },
                Column::Sequences {
                    offsets: o,
                    tokens: t,
                    ..
                },
            ) => {
                let from = tokens.len();
                offsets.extend(o.into_iter().skip(1).map(|at| at + from));
                tokens.extend(t);
            }
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_joined_and_standardised_by_some_rows() {
        let floats = |values: Vec<f32>| Column::Floats {
            shape: vec![2],
            values,
        };
        let labels = |values: Vec<i64>| Column::Labels {
            shape: vec![],
            values,
        };
        let mut all =
            Dataset::pair(floats(vec![1.0, 5.0, 3.0, 5.0]), labels(vec![0, 1])).expect("a set");
        let more = Dataset::pair(floats(vec![5.0, 7.0]), labels(vec![2])).expect("a set");
        all.append(more).expect("the same columns");
        assert_eq!(all.len(), 3);
        all.standardise(&[0, 1]);
        let Some(Column::Floats { values, .. }) = all.column("x") else {
            panic!("numbers");
        };
        // Of rows 0 and 1 the mean is 2 and the deviation 1; the second number never changes there.
        assert_eq!(values, &[-1.0, 0.0, 1.0, 0.0, 3.0, 0.0]);
        let other = Dataset::pair(labels(vec![1]), labels(vec![1])).expect("a set");
        let error = all.append(other).expect_err("another form").to_string();
        assert_eq!(
            error,
            "column 'x' is f32[2] in one file and i64[] in another"
        );
    }
}

#[cfg(test)]
mod testing {
    use std::path::PathBuf;

    /// A folder that is removed at the end.
    pub struct Folder(pub PathBuf);

    impl Folder {
        pub fn new(name: &str) -> Folder {
            let name = format!("cupola-train-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).expect("a folder");
            Folder(path)
        }

        pub fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub fn write(&self, name: &str, contents: &[u8]) -> PathBuf {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(&path, contents).expect("a file");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
