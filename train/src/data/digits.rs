//! Handwritten digits and other small pictures, in the forms in which they are passed around.

use super::{Column, DataError, Dataset, Result, file};
use serde::Deserialize;
use std::path::Path;

/// Pictures with their classes from comma-separated text (packed or not): on every line as many whole numbers of 0 to
/// 255 as the pictures have pixels, then the class; with `label_first` the class comes first. A first line of names is
/// passed over. `x`: pixels `[pixels]`, `y`: i64 `[]`.
///
/// # Errors
/// [`DataError`] with the line that is not like that.
pub fn digits_csv(path: &Path, label_first: bool) -> Result<Dataset> {
    let bytes = file::bytes(path)?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(&bytes[..]);
    let (mut pixels, mut labels) = (vec![], vec![]);
    let mut width = None;
    let mut record = csv::ByteRecord::new();
    let mut first = true;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => return Err(DataError::line(path, reader.position().line(), e)),
        }
        let line = file::line_of(&bytes, record.position());
        let wrong = |what: String| DataError::line(path, line, what);
        if std::mem::take(&mut first) && record.iter().any(|f| number(f).is_none()) {
            continue;
        }
        let len = record.len();
        if len < 2 || *width.get_or_insert(len) != len {
            let wanted = width.unwrap_or(2).max(2);
            return Err(wrong(format!(
                "{len} fields, where {wanted} were to come: pixels and a class"
            )));
        }
        let label_at = if label_first { 0 } else { len - 1 };
        for (at, field) in record.iter().enumerate() {
            let n = number(field).filter(|n| at == label_at || *n <= 255);
            let n = n.ok_or_else(|| {
                let text = String::from_utf8_lossy(field);
                wrong(format!(
                    "field {} is '{text}', not a whole number{}",
                    at + 1,
                    if at == label_at { "" } else { " of 0 to 255" }
                ))
            })?;
            match at == label_at {
                true => labels.push(i64::from(n)),
                false => pixels.push(n as u8),
            }
        }
    }
    let width = width.ok_or_else(|| DataError::file(path, "no pictures in it"))?;
    with_classes(pixels, vec![width - 1], labels)
}

/// A whole number, also where it is written as `7.0`.
fn number(field: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field).ok()?.trim();
    let text = text.strip_suffix(".0").unwrap_or(text);
    text.parse().ok()
}

/// Pictures with labels as a set whose classes are named by their numbers.
fn with_classes(values: Vec<u8>, shape: Vec<usize>, labels: Vec<i64>) -> Result<Dataset> {
    let most = labels.iter().copied().max().unwrap_or(0);
    let y = Column::Labels {
        shape: vec![],
        values: labels,
    };
    let mut set = Dataset::pair(Column::Pixels { shape, values }, y)?;
    // A class of a million is a mistake that the loss will name; names for it would only take memory.
    if most < 100_000 {
        set.classes = (0..=most).map(|c| c.to_string()).collect();
    }
    Ok(set)
}

/// One class of a folder of JSON files.
#[derive(Deserialize)]
struct OfClass {
    data: Vec<f64>,
}

/// Pictures from a folder with a file `0.json`, `1.json` ... for every class, each `{"data": [...]}` with the greys of
/// all pictures of the class, 0 to 1, `pixels` for each. `x`: pixels `[pixels]`, `y`: i64 `[]`.
///
/// # Errors
/// [`DataError`] with file and line.
pub fn digits_json(folder: &Path, pixels: usize) -> Result<Dataset> {
    let (mut values, mut labels) = (vec![], vec![]);
    for path in file::entries(folder)? {
        let name = file::name(&path);
        let Some(class) = name.strip_suffix(".json") else {
            continue;
        };
        let class: i64 = class
            .parse()
            .map_err(|_| DataError::file(&path, "not named by a class, as 0.json is"))?;
        let read: OfClass = serde_json::from_str(&file::text(&path)?)
            .map_err(|e| DataError::line(&path, e.line() as u64, e))?;
        if !read.data.len().is_multiple_of(pixels.max(1)) {
            let what = format!("{} greys are no multiple of {pixels}", read.data.len());
            return Err(DataError::file(&path, what));
        }
        for grey in &read.data {
            if !(0.0..=1.0).contains(grey) {
                return Err(DataError::file(
                    &path,
                    format!("a grey of {grey}, not 0 to 1"),
                ));
            }
            values.push((grey * 255.0).round() as u8);
        }
        labels.extend(std::iter::repeat_n(class, read.data.len() / pixels.max(1)));
    }
    if labels.is_empty() {
        return Err(DataError::file(folder, "no files like 0.json in it"));
    }
    with_classes(values, vec![pixels], labels)
}

/// What an IDX file's first bytes say.
struct Idx {
    shape: Vec<usize>,
    values: Vec<u8>,
}

/// An IDX file of unsigned bytes.
fn read_idx(path: &Path) -> Result<Idx> {
    let bytes = file::bytes(path)?;
    let wrong = |what: String| DataError::file(path, what);
    let [0, 0, kind, rank, rest @ ..] = &bytes[..] else {
        return Err(wrong("not an IDX file: it does not begin with 0 0".into()));
    };
    if *kind != 8 {
        return Err(wrong(format!(
            "IDX type {kind:#x}; unsigned bytes (0x8) are read"
        )));
    }
    let rank = usize::from(*rank);
    if rest.len() < 4 * rank {
        return Err(wrong("the header is cut off".into()));
    }
    let (extents, values) = rest.split_at(4 * rank);
    let shape: Vec<usize> = extents
        .chunks_exact(4)
        .map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
        .collect();
    let len = shape
        .iter()
        .try_fold(1usize, |len, extent| len.checked_mul(*extent));
    if len != Some(values.len()) {
        let what = format!(
            "extents {shape:?} but {} bytes after the header",
            values.len()
        );
        return Err(wrong(what));
    }
    Ok(Idx {
        shape,
        values: values.to_vec(),
    })
}

/// Pictures and classes from two IDX files of unsigned bytes, packed or not. `x`: pixels of the file's shape, `y`:
/// i64 `[]`.
///
/// # Errors
/// [`DataError`] with the file.
pub fn idx(pictures: &Path, classes: &Path) -> Result<Dataset> {
    let x = read_idx(pictures)?;
    let y = read_idx(classes)?;
    if x.shape.len() < 2 {
        return Err(DataError::file(pictures, "not an array of pictures"));
    }
    if y.shape.len() != 1 {
        return Err(DataError::file(classes, "not a list of classes"));
    }
    let labels = y.values.iter().map(|c| i64::from(*c)).collect();
    if x.shape[0] != y.values.len() || x.values.is_empty() {
        let what = format!("{} classes for {} pictures", y.values.len(), x.shape[0]);
        return Err(DataError::file(classes, what));
    }
    with_classes(x.values, x.shape[1..].to_vec(), labels)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_of_pixels_are_read_packed_and_plain() {
        let folder = Folder::new("digits");
        let text = "0,255,7.0,4\n1,2,3,0\n";
        let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        packed.write_all(text.as_bytes()).expect("memory");
        let gz = folder.write("a.csv.gz", &packed.finish().expect("memory"));
        let plain = folder.write("b.csv", format!("p0,p1,p2,label\n{text}").as_bytes());
        for path in [gz, plain] {
            let set = digits_csv(&path, false).expect("a set");
            assert_eq!((set.len(), set.classes.len()), (2, 5));
            let batch = set.batch(&[1, 0], Default::default());
            let x = batch.columns[0].1.to_vec::<f32>().expect("numbers");
            assert_eq!(x[4], 1.0);
            assert_eq!(batch.columns[1].1.to_vec::<i64>(), Some(vec![0, 4]));
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        let folder = Folder::new("digits-wrong");
        for (text, what) in [
            ("1,2,3\n1,2\n", "line 2: 2 fields, where 3 were to come"),
            ("1,2,3\n\n1,x,3\n", "line 3: field 2 is 'x'"),
            (
                "1,256,3\n",
                "line 1: field 2 is '256', not a whole number of 0 to 255",
            ),
            ("a,b\n", "no pictures in it"),
        ] {
            let path = folder.write("a.csv", text.as_bytes());
            let error = digits_csv(&path, false).expect_err(text).to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(digits_csv(&folder.path("none.csv"), false).is_err());
    }

    #[test]
    fn idx_files_are_checked() {
        let folder = Folder::new("idx");
        let x = folder.write(
            "x",
            &[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 2, 3, 4],
        );
        let y = folder.write("y", &[0, 0, 8, 1, 0, 0, 0, 2, 9, 3]);
        let set = idx(&x, &y).expect("a set");
        assert_eq!(set.columns[0].1.describe(), "pixels[1,2]");
        assert_eq!(set.classes.len(), 10);
        for wrong in [
            &[0u8, 0, 8, 1, 0, 0, 0, 3, 9, 3][..],
            &[0, 0, 13, 1, 0, 0, 0, 0],
            &[0, 0, 8, 9, 0],
            &[1],
            &[
                0, 0, 8, 4, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                255, 255,
            ],
            &[0, 0, 8, 1, 0, 0, 0, 1, 9],
        ] {
            let y = folder.write("wrong", wrong);
            assert!(idx(&x, &y).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn classes_in_json_are_read() {
        let folder = Folder::new("json");
        folder.write("0.json", br#"{"data":[0,0.2,1,0.624]}"#);
        folder.write("7.json", br#"{"data":[0.992,0]}"#);
        let set = digits_json(&folder.0, 2).expect("a set");
        let Some(Column::Pixels { values, .. }) = set.column("x") else {
            panic!("pixels");
        };
        assert_eq!(values, &[0, 51, 255, 159, 253, 0]);
        assert!(digits_json(&folder.0, 3).is_err());
        folder.write("8.json", b"{\"data\":\n[0,]}");
        let error = digits_json(&folder.0, 2).expect_err("a comma").to_string();
        assert!(error.contains("8.json, line 2"), "{error}");
    }
}
