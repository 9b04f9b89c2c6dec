//! Tables of text: numbers to predict a number or a class from, texts with their classes.

use super::text::{Encoder, Padding, Words};
use super::{Column, DataError, Dataset, Readers, Result, file};
use std::collections::BTreeMap;
use std::path::Path;

/// Which columns of a table mean what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumns {
    /// Names or numbers (from 1) of what is to be said; empty for the last column.
    pub target: Vec<String>,
    /// Names or numbers of columns that are left out.
    pub ignore: Vec<String>,
    /// The target is a class, written as a word or number, not a number to be reached.
    pub is_class: bool,
    /// Between fields.
    pub separator: u8,
}

impl Default for TableColumns {
    fn default() -> Self {
        TableColumns {
            target: vec![],
            ignore: vec![],
            is_class: false,
            separator: b',',
        }
    }
}

/// Lines of fields.
pub(super) struct Lines {
    /// The first line, if it names columns.
    names: Option<Vec<String>>,
    /// Fields of a line and its number.
    rows: Vec<(u64, csv::StringRecord)>,
    width: usize,
}

/// All lines of a file, of the same number of fields.
fn lines(path: &Path, separator: u8) -> Result<Lines> {
    let bytes = file::bytes(path)?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(separator)
        .from_reader(&bytes[..]);
    let mut rows = vec![];
    let mut record = csv::StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {
                // A line of a single empty field is an empty one.
                if record.len() > 1 || record.get(0).is_some_and(|f| !f.trim().is_empty()) {
                    let line = file::line_of(&bytes, record.position());
                    rows.push((line, record.clone()));
                }
            }
            Ok(false) => break,
            Err(e) => {
                let line = file::line_of(&bytes, e.position());
                let what = match e.kind() {
                    csv::ErrorKind::Utf8 { .. } => "not UTF-8 text".to_string(),
                    _ => e.to_string(),
                };
                return Err(DataError::line(path, line, what));
            }
        }
    }
    let Some((_, first)) = rows.first() else {
        return Err(DataError::file(path, "no lines in it"));
    };
    let width = first.len();
    for (line, row) in &rows {
        if row.len() != width {
            let what = format!("{} fields, where {width} were to come", row.len());
            return Err(DataError::line(path, *line, what));
        }
    }
    Ok(Lines {
        names: None,
        rows,
        width,
    })
}

impl Lines {
    fn take_names(&mut self) {
        let (_, names) = self.rows.remove(0);
        self.names = Some(names.iter().map(|n| n.trim().to_string()).collect());
    }

    /// The column of a name, or of a number from 1.
    fn find(&self, path: &Path, wanted: &str) -> Result<usize> {
        let names = self.names.as_deref().unwrap_or_default();
        if let Some(at) = names.iter().position(|n| n == wanted) {
            return Ok(at);
        }
        match wanted.parse::<usize>() {
            Ok(n) if (1..=self.width).contains(&n) => Ok(n - 1),
            _ => {
                let there = match names.is_empty() {
                    true => format!("columns 1 to {}, without names", self.width),
                    false => names.join(", "),
                };
                let what = format!("no column '{wanted}'; there are {there}");
                Err(DataError::file(path, what))
            }
        }
    }
}

/// Samples from lines of numbers. A first line that holds anything but numbers names the columns. `x`: f32 `[columns]`
/// without targets and what is left out; `y`: f32 `[targets]`, or the number of the class, i64 `[]`. `known` classes
/// keep their numbers; new ones are sorted.
///
/// # Errors
/// [`DataError`] with the line and column that is no number, or the class that is not known.
pub fn table(path: &Path, columns: &TableColumns, known: Option<&[String]>) -> Result<Dataset> {
    let mut lines = lines(path, columns.separator)?;
    let is_number = |f: &str| f.trim().parse::<f32>().is_ok();
    let named = |row: &csv::StringRecord| {
        // A class in the last place may be a word, which makes no line a line of names.
        let fields = row.len() - usize::from(columns.is_class && row.len() > 1);
        row.iter().take(fields).any(|f| !is_number(f))
    };
    let with_class_first = |rows: &[(u64, csv::StringRecord)]| rows.len() > 1 && named(&rows[1].1);
    if named(&lines.rows[0].1) && !(columns.is_class && with_class_first(&lines.rows)) {
        lines.take_names();
    } else if columns.is_class && !columns.target.is_empty() {
        // Words in every line: the first is one of names if it has the target's.
        let first = &lines.rows[0].1;
        if first.iter().any(|f| f.trim() == columns.target[0]) {
            lines.take_names();
        }
    }
    let find = |name: &String| lines.find(path, name);
    let targets: Vec<usize> = match columns.target.is_empty() {
        true => vec![lines.width - 1],
        false => columns.target.iter().map(find).collect::<Result<_>>()?,
    };
    let ignored: Vec<usize> = columns.ignore.iter().map(find).collect::<Result<_>>()?;
    if columns.is_class && targets.len() != 1 {
        return Err(DataError::Unfit("a class is one column".into()));
    }
    let inputs: Vec<usize> = (0..lines.width)
        .filter(|c| !targets.contains(c) && !ignored.contains(c))
        .collect();
    if inputs.is_empty() || lines.rows.is_empty() {
        let what = "no columns beside the target, or no lines";
        return Err(DataError::file(path, what));
    }
    let numbers = |wanted: &[usize]| -> Result<Column> {
        let mut values = vec![];
        for (line, row) in &lines.rows {
            for at in wanted {
                let field = row.get(*at).unwrap_or_default().trim();
                let value = field.parse::<f32>().ok().filter(|v| v.is_finite());
                values.push(value.ok_or_else(|| {
                    let what = format!("field {} is '{field}', not a number", at + 1);
                    DataError::line(path, *line, what)
                })?);
            }
        }
        let shape = vec![wanted.len()];
        Ok(Column::Floats { shape, values })
    };
    let x = numbers(&inputs)?;
    if !columns.is_class {
        return Dataset::pair(x, numbers(&targets)?);
    }
    let words = lines.rows.iter().map(|(line, row)| {
        let word = row.get(targets[0]).unwrap_or_default().trim();
        (*line, word.to_string())
    });
    let (y, classes) = numbered(path, &words.collect::<Vec<_>>(), known)?;
    let mut set = Dataset::pair(x, y)?;
    set.classes = classes;
    Ok(set)
}

/// Classes as numbers, and their names.
fn numbered(
    path: &Path,
    words: &[(u64, String)],
    known: Option<&[String]>,
) -> Result<(Column, Vec<String>)> {
    let classes = match known {
        Some(known) => known.to_vec(),
        None => {
            let mut all: Vec<String> = words.iter().map(|(_, w)| w.clone()).collect();
            all.sort();
            all.dedup();
            // Numbers count as such: 2 stands before 10.
            if all.iter().all(|w| w.parse::<u64>().is_ok()) {
                all.sort_by_key(|w| w.parse::<u64>().unwrap_or(0));
            }
            all
        }
    };
    let places: BTreeMap<&str, i64> = (classes.iter().map(String::as_str)).zip(0..).collect();
    let mut values = vec![];
    for (line, word) in words {
        values.push(*places.get(word.as_str()).ok_or_else(|| {
            let what = format!("class '{word}' is none of {}", classes.join(", "));
            DataError::line(path, *line, what)
        })?);
    }
    let shape = vec![];
    Ok((Column::Labels { shape, values }, classes))
}

/// Which columns of a tab-separated file hold the class and the text: names or numbers. Where nothing is said they are
/// those that the file's own third line marks as `class` and as text, else the first and the second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassColumns {
    /// The class.
    pub class: Option<String>,
    /// The text.
    pub text: Option<String>,
}

/// Words of the second of three lines that describe a tab-separated table: types of its columns.
const TYPES: &[&str] = &[
    "d",
    "discrete",
    "c",
    "continuous",
    "s",
    "string",
    "t",
    "time",
    "basket",
];

/// The lines of a tab-separated file without those that describe it, and the numbers of the class and text columns
/// that these mark.
fn tabbed(path: &Path) -> Result<(Lines, Option<usize>, Option<usize>)> {
    let mut lines = lines(path, b'\t')?;
    let is_types = |row: &csv::StringRecord| {
        row.iter().any(|f| !f.trim().is_empty())
            && row
                .iter()
                .all(|f| TYPES.contains(&f.trim()) || f.trim().is_empty())
    };
    if lines.rows.len() < 3 || !is_types(&lines.rows[1].1) {
        return Ok((lines, None, None));
    }
    lines.take_names();
    let (_, types) = lines.rows.remove(0);
    let (_, flags) = lines.rows.remove(0);
    let flagged = |what: &str| {
        flags
            .iter()
            .position(|f| f.split_whitespace().any(|w| w == what))
    };
    let is_text = |at: &usize| matches!(types.get(*at).map(str::trim), Some("s" | "string"));
    let included = flagged("include=True").filter(is_text);
    let class = flagged("class").filter(|at| !is_text(at));
    let texts = || (0..lines.width).filter(is_text);
    let text = included.or_else(|| texts().next_back());
    Ok((lines, class, text))
}

/// The texts of a tab-separated file, for one long text.
pub(super) fn texts(path: &Path, column: Option<&str>) -> Result<Vec<String>> {
    let (lines, _, text) = tabbed(path)?;
    let at = match column {
        Some(name) => lines.find(path, name)?,
        None => text.unwrap_or(lines.width - 1),
    };
    let text = |(_, row): &(u64, csv::StringRecord)| row.get(at).unwrap_or_default().to_string();
    Ok(lines.rows.iter().map(text).collect())
}

/// Texts with their classes from a tab-separated file, with or without three lines that describe it (names, types,
/// flags). `x`: tokens, `y`: i64 `[]`. With `known` data, its vocabulary and classes are used.
///
/// # Errors
/// [`DataError`] with the line.
pub fn classes(
    path: &Path,
    columns: &ClassColumns,
    words: &Words,
    padding: Padding,
    known: Option<&Dataset>,
    readers: &Readers,
) -> Result<Dataset> {
    let (lines, class, text) = tabbed(path)?;
    let at = |name: &Option<String>, marked: Option<usize>, usual: usize| match name {
        Some(name) => lines.find(path, name),
        None => Ok(marked.unwrap_or(usual)),
    };
    let class = at(&columns.class, class, 0)?;
    let text = at(&columns.text, text, 1)?;
    if lines.width < 2 || text == class {
        let what = "one column is class and text; a tab is to stand between class and text";
        return Err(DataError::file(path, what));
    }
    let field = |row: &csv::StringRecord, at: usize| row.get(at).unwrap_or_default().to_string();
    let labels: Vec<(u64, String)> = (lines.rows.iter())
        .map(|(line, row)| (*line, field(row, class)))
        .collect();
    let known_classes = known.map(|k| &k.classes[..]);
    let (y, names) = numbered(path, &labels, known_classes)?;
    let texts: Vec<String> = lines.rows.iter().map(|(_, row)| field(row, text)).collect();
    let encoder = Encoder::new(words, known, &texts, readers)?;
    let (mut offsets, mut tokens) = (vec![0], vec![]);
    for ((line, _), text) in labels.iter().zip(&texts) {
        let encoded = encoder.encode(text);
        tokens.extend(encoded.map_err(|e| DataError::line(path, *line, e))?);
        offsets.push(tokens.len());
    }
    let x = Column::Sequences {
        offsets,
        tokens,
        padding,
    };
    let mut set = Dataset::pair(x, y)?;
    set.classes = names;
    encoder.describe(&mut set);
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;
    use cupola_ir::Tensor;

    pub fn no_readers<T>(with: impl FnOnce(&Readers) -> T) -> T {
        let image = |_: &Path, _: [usize; 3]| Err("no pictures".into());
        let npy = |_: &Path| Err("no arrays".into());
        with(&Readers {
            image: &image,
            npy: &npy,
            tokens: None,
        })
    }

    fn x_of(set: &Dataset, row: u32) -> Vec<f32> {
        let batch = set.batch(&[row], Default::default());
        batch.column("x").and_then(Tensor::to_vec).expect("numbers")
    }

    #[test]
    fn numbers_are_read_with_and_without_names() {
        let folder = Folder::new("table");
        let path = folder.write("a.csv", b"id,age,rooms,price\n1,30,2,9.5\n2,10,3,8\n");
        let columns = TableColumns {
            ignore: vec!["id".into()],
            ..TableColumns::default()
        };
        let set = table(&path, &columns, None).expect("a set");
        assert_eq!(x_of(&set, 1), [10.0, 3.0]);
        let columns = TableColumns {
            target: vec!["2".into(), "price".into()],
            ..TableColumns::default()
        };
        let set = table(&path, &columns, None).expect("a set");
        assert_eq!(x_of(&set, 0), [1.0, 2.0]);
        assert_eq!(set.columns[1].1.describe(), "f32[2]");
        let columns = TableColumns {
            target: vec!["rent".into()],
            ..TableColumns::default()
        };
        let error = table(&path, &columns, None)
            .expect_err("no rent")
            .to_string();
        assert!(error.ends_with("no column 'rent'; there are id, age, rooms, price"));
        let path = folder.write("b.csv", b"1,2\n3,nan\n");
        let error = table(&path, &TableColumns::default(), None).expect_err("nan");
        assert!(
            error.to_string().contains("line 2: field 2 is 'nan'"),
            "{error}"
        );
    }

    #[test]
    fn classes_in_tables_are_words_or_numbers() {
        let folder = Folder::new("table-classes");
        let columns = TableColumns {
            is_class: true,
            ..TableColumns::default()
        };
        let path = folder.write("a.csv", b"w,h,kind\n1,2,pear\n3,4,apple\n");
        let set = table(&path, &columns, None).expect("a set");
        assert_eq!(set.classes, ["apple", "pear"]);
        let path = folder.write("b.csv", b"1,2,10\n3,4,9\n");
        let set = table(&path, &columns, None).expect("a set");
        assert_eq!((set.len(), &set.classes[0][..]), (2, "9"));
        let known = ["10".to_string()];
        let error = table(&path, &columns, Some(&known)).expect_err("not known");
        assert!(
            error
                .to_string()
                .contains("line 2: class '9' is none of 10")
        );
    }

    #[test]
    fn texts_have_classes_by_header_or_place() {
        let folder = Folder::new("tab");
        let described = b"Category\tText\nd\tstring\nclass\t\n\nearn\tup up\nacq\tbuy\n";
        for (name, bytes) in [("a.tab", &described[..]), ("b.tab", &described[31..])] {
            let path = folder.write(name, bytes);
            let set = no_readers(|r| {
                let (columns, words) = (ClassColumns::default(), Words::default());
                classes(&path, &columns, &words, Padding::default(), None, r)
            });
            let set = set.expect("a set");
            assert_eq!(set.classes, ["acq", "earn"]);
            assert_eq!(set.token_kinds, 4);
            let batch = set.batch(&[0, 1], Default::default());
            let x = batch.column("x").and_then(Tensor::to_vec::<i64>);
            assert_eq!(x, Some(vec![2, 2, 3, 0]));
            let more = folder.write("c.tab", b"acq\tup down\nwar\tbuy\n");
            let error = no_readers(|r| {
                let (columns, words) = (ClassColumns::default(), Words::default());
                classes(&more, &columns, &words, Padding::default(), Some(&set), r)
            });
            let error = error.expect_err("war").to_string();
            assert!(
                error.contains("line 2: class 'war' is none of acq, earn"),
                "{error}"
            );
        }
        let path = folder.write("d.tab", b"a\tb\nc\n");
        let error = lines(&path, b'\t').err().expect("a short line");
        assert!(
            error
                .to_string()
                .contains("line 2: 1 fields, where 2 were to come")
        );
    }
}
