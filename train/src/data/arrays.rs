//! Data that other readers decode: pictures in folders, NumPy files.

use super::{Column, DataError, Dataset, Readers, Result, file};
use cupola_ir::{DType, Tensor, convert};
use std::path::{Path, PathBuf};

/// Pictures from a folder with a folder for every class, named by it; classes are numbered by their sorted names.
/// `x`: pixels `[channels, height, width]`, to which every picture is brought; `y`: i64 `[]`.
///
/// # Errors
/// [`DataError`] with the picture that cannot be decoded.
pub fn image_folder(folder: &Path, extents: [usize; 3], readers: &Readers) -> Result<Dataset> {
    let (mut values, mut labels, mut classes) = (vec![], vec![], vec![]);
    for of_class in file::entries(folder)?.iter().filter(|p| p.is_dir()) {
        for path in file::entries(of_class)? {
            let picture = (readers.image)(&path, extents).map_err(|e| DataError::file(&path, e))?;
            values.extend_from_slice(picture.bytes());
            labels.push(classes.len() as i64);
        }
        classes.push(file::name(of_class));
    }
    if labels.is_empty() {
        let what = "no folders of pictures in it, one for every class";
        return Err(DataError::file(folder, what));
    }
    let x = Column::Pixels {
        shape: extents.to_vec(),
        values,
    };
    let y = Column::Labels {
        shape: vec![],
        values: labels,
    };
    let mut set = Dataset::pair(x, y)?;
    set.classes = classes;
    Ok(set)
}

/// The two files of [`npy`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayFiles {
    /// What the model is given.
    pub x: PathBuf,
    /// What it is to say.
    pub y: PathBuf,
}

/// Samples along the first axis of two NumPy files. Floats stay numbers, u8 in `x` are pixels, whole numbers in `y`
/// are classes.
///
/// # Errors
/// [`DataError`] with the file.
pub fn npy(files: &ArrayFiles, readers: &Readers) -> Result<Dataset> {
    let read = |path: &Path| (readers.npy)(path).map_err(|e| DataError::file(path, e));
    let x = column(&files.x, read(&files.x)?, true)?;
    let y = column(&files.y, read(&files.y)?, false)?;
    let mut set = Dataset::pair(x, y)?;
    if let Some(Column::Labels { values, .. }) = set.column("y") {
        let most = values.iter().copied().max().unwrap_or(-1);
        // Those below 0 may be what a loss leaves out.
        if (0..100_000).contains(&most) {
            set.classes = (0..=most).map(|c| c.to_string()).collect();
        }
    }
    Ok(set)
}

/// An array as a column, samples along its first axis.
fn column(path: &Path, array: Tensor, is_input: bool) -> Result<Column> {
    let Some((_, shape)) = array.shape().split_first() else {
        return Err(DataError::file(path, "a single number has no samples"));
    };
    let shape = shape.to_vec();
    if shape.contains(&0) {
        return Err(DataError::file(path, "samples of no elements"));
    }
    let none = || {
        let what = format!("elements of {} are not numbers", array.dtype());
        DataError::file(path, what)
    };
    if array.dtype() == DType::U8 && is_input {
        let values = array.bytes().to_vec();
        return Ok(Column::Pixels { shape, values });
    }
    Ok(match convert::lanes(&array).ok_or_else(none)? {
        convert::Lanes::F(values) => Column::Floats {
            shape,
            values: values.into_iter().map(|v| v as f32).collect(),
        },
        convert::Lanes::I(values) => Column::Labels { shape, values },
        convert::Lanes::U(values) => Column::Labels {
            shape,
            values: values.into_iter().map(|v| v as i64).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::Folder;
    use super::*;

    #[test]
    fn arrays_become_columns_by_their_types() {
        let npy_of = |path: &Path| -> Result<Tensor, String> {
            match file::name(path).as_str() {
                "x" => Ok(Tensor::from_slice(&[2, 3], &[1.0f64; 6]).expect("six")),
                "pixels" => Ok(Tensor::from_slice(&[2, 1], &[1u8, 2]).expect("two")),
                "y" => Ok(Tensor::vector(&[4i32, 1])),
                "one" => Ok(Tensor::scalar(1.0f32)),
                _ => Err("no such file".into()),
            }
        };
        let image = |_: &Path, [c, h, w]: [usize; 3]| {
            Ok(Tensor::from_slice(&[c, h, w], &vec![9u8; c * h * w]).expect("pixels"))
        };
        let readers = Readers {
            image: &image,
            npy: &npy_of,
            tokens: None,
        };
        let pair = |x: &str, y: &str| {
            let files = ArrayFiles {
                x: x.into(),
                y: y.into(),
            };
            npy(&files, &readers)
        };
        let set = pair("x", "y").expect("a set");
        let forms: Vec<String> = set.columns.iter().map(|c| c.1.describe()).collect();
        assert_eq!(forms, ["f32[3]", "i64[]"]);
        assert_eq!(set.classes.len(), 5);
        assert_eq!(
            pair("pixels", "x").expect("a set").columns[0].1.describe(),
            "pixels[1]"
        );
        assert!(pair("one", "y").is_err());
        let error = pair("x", "none").expect_err("no file").to_string();
        assert_eq!(error, "none: no such file");

        let folder = Folder::new("images");
        folder.write("b/2.png", b"");
        folder.write("b/1.png", b"");
        folder.write("a/1.png", b"");
        let set = image_folder(&folder.0, [3, 2, 2], &readers).expect("a set");
        assert_eq!(set.classes, ["a", "b"]);
        assert_eq!(set.len(), 3);
    }
}
