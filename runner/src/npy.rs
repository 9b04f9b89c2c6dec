//! NumPy files: `.npy` and members of `.npz`.

use crate::fail::{Failure, Outcome};
use cupola::WholeFile;
use cupola_ir::{DType, Tensor, convert};
use half::f16;
use npyz::{NpyFile, Order, TypeChar, WriterBuilder};
use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// No compressed byte of an archive holds more bytes: a member's header may claim anything.
const MOST_EXPANSION: u64 = 1032;

/// Deepest nesting of a header: a dictionary, a list of fields, a field, its shape. Parsing takes time exponential in it.
const MOST_NESTING: usize = 4;

/// Longest header.
const MOST_HEADER: u64 = 1 << 16;

/// Reads a `.npy` file.
pub fn read(path: &Path) -> Outcome<Tensor> {
    let file = std::fs::File::open(path).map_err(|e| Failure::io("cannot read", path, e))?;
    let size = file
        .metadata()
        .map_err(|e| Failure::io("cannot read", path, e))?
        .len();
    parse(BufReader::new(file), size)
        .map_err(|e| Failure::malformed(format!("{}: {e}", path.display())))
}

/// Reads all members of a `.npz` file, by name without `.npy`.
pub fn read_npz(path: &Path) -> Outcome<Vec<(String, Tensor)>> {
    let file = std::fs::File::open(path).map_err(|e| Failure::io("cannot read", path, e))?;
    parse_npz(BufReader::new(file))
        .map_err(|e| Failure::malformed(format!("{}: {e}", path.display())))
}

/// All members of an archive that are tensors.
pub fn parse_npz(archive: impl Read + Seek) -> Result<Vec<(String, Tensor)>, String> {
    let mut archive = zip::ZipArchive::new(archive).map_err(|e| e.to_string())?;
    let mut all = vec![];
    for i in 0..archive.len() {
        let member = archive.by_index(i).map_err(|e| e.to_string())?;
        let name = member.name().map_err(|e| e.to_string())?.into_owned();
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_string();
        let most = member.compressed_size().saturating_mul(MOST_EXPANSION);
        let size = member.size().min(most);
        match parse(member.take(size), size) {
            Ok(t) => all.push((name, t)),
            // Members of other kinds (text, objects) stand beside tensors.
            Err(e) if e.contains("dtype") => {}
            Err(e) => return Err(format!("{name}: {e}")),
        }
    }
    Ok(all)
}

/// A `.npy` file of at most `limit` bytes.
pub fn parse(reader: impl Read, limit: u64) -> Result<Tensor, String> {
    let mut reader = reader;
    let header = header(&mut reader)?;
    let npy = NpyFile::new(header.chain(reader)).map_err(|e| e.to_string())?;
    let shape: Vec<usize> = npy.shape().iter().map(|d| *d as usize).collect();
    let npyz::DType::Plain(ty) = npy.dtype() else {
        return Err("records have no tensor dtype".into());
    };
    let len = shape
        .iter()
        .try_fold(1u64, |p, d| p.checked_mul(*d as u64))
        .ok_or("shape overflows")?;
    if len
        .checked_mul(ty.size_field().max(1))
        .is_none_or(|size| size > limit)
    {
        return Err(format!(
            "shape {shape:?} claims more elements than the file holds"
        ));
    }
    let fortran = npy.order() == Order::Fortran && shape.len() > 1;
    macro_rules! load {
        ($t:ty, $e:ty, $f:expr) => {{
            let v: Vec<$t> = npy.into_vec().map_err(|e| e.to_string())?;
            let v: Vec<$e> = v.into_iter().map($f).collect();
            let v = if fortran { to_row_major(&v, &shape) } else { v };
            Tensor::from_slice(&shape, &v)
        }};
    }
    let tensor = match (ty.type_char(), ty.size_field()) {
        (TypeChar::Float, 8) => load!(f64, f64, |x| x),
        (TypeChar::Float, 4) => load!(f32, f32, |x| x),
        (TypeChar::Float, 2) => load!(f16, f16, |x| x),
        (TypeChar::Int, 8) => load!(i64, i64, |x| x),
        (TypeChar::Int, 4) => load!(i32, i32, |x| x),
        (TypeChar::Int, 2) => load!(i16, i16, |x| x),
        (TypeChar::Int, 1) => load!(i8, i8, |x| x),
        (TypeChar::Uint, 8) => load!(u64, u64, |x| x),
        (TypeChar::Uint, 4) => load!(u32, u32, |x| x),
        (TypeChar::Uint, 2) => load!(u16, u16, |x| x),
        (TypeChar::Uint, 1) => load!(u8, u8, |x| x),
        (TypeChar::Bool, _) => {
            let bytes = load!(bool, u8, u8::from).ok_or("count does not match the shape")?;
            Tensor::new(
                DType::Bool,
                shape.clone(),
                bytes.shared_bytes().unwrap_or_default(),
            )
        }
        (_, _) => return Err(format!("no tensor dtype for {ty}")),
    };
    tensor.ok_or_else(|| "count does not match the shape".into())
}

/// The bytes before the elements, refused where they nest deeper than those of any array.
fn header(reader: &mut impl Read) -> Result<Cursor<Vec<u8>>, String> {
    let mut bytes = vec![];
    let mut take = |bytes: &mut Vec<u8>, most: u64| {
        let more = reader.by_ref().take(most).read_to_end(bytes);
        more.map_err(|e| e.to_string())
    };
    // Magic number, version, then the length of the rest, which has two bytes in version 1 and four later.
    take(&mut bytes, 10)?;
    if bytes.get(6).is_some_and(|version| *version > 1) {
        take(&mut bytes, 2)?;
    }
    let len = bytes.iter().skip(8).rev();
    let len = len.fold(0u64, |len, byte| len << 8 | u64::from(*byte));
    if len > MOST_HEADER {
        return Err(format!("a header of {len} bytes"));
    }
    let start = bytes.len();
    take(&mut bytes, len)?;
    let mut depth = 0usize;
    for byte in &bytes[start..] {
        match byte {
            b'[' | b'(' | b'{' => depth += 1,
            b']' | b')' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MOST_NESTING {
            return Err("a header nested too deeply".into());
        }
    }
    Ok(Cursor::new(bytes))
}

/// Column-major elements in row-major order.
fn to_row_major<T: Copy>(v: &[T], shape: &[usize]) -> Vec<T> {
    let mut index = vec![0usize; shape.len()];
    let mut out = Vec::with_capacity(v.len());
    for _ in 0..v.len() {
        let at = index
            .iter()
            .zip(shape)
            .rev()
            .fold(0, |at, (i, n)| at * n + i);
        out.push(v[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// Writes a `.npy` file, complete or not at all. Types NumPy lacks are written as f32 (floats) or u8 (packed bytes).
pub fn write(path: &Path, tensor: &Tensor) -> Outcome {
    let written = cupola::write_atomically(path, |file| write_to(file, tensor));
    written.map_err(|e| Failure::io("cannot write", path, e))
}

/// A file of rows of f32 that is written as they come; it has its name once [`RowsFile::finish`] was called.
pub struct RowsFile {
    path: PathBuf,
    whole: WholeFile,
    writer: npyz::NpyWriter<f32, BufWriter<File>>,
}

impl RowsFile {
    /// Begins a file of `f32[rows, width]`.
    pub fn new(path: &Path, rows: usize, width: usize) -> Outcome<RowsFile> {
        let fail = |e: std::io::Error| Failure::io("cannot write", path, e);
        let whole = WholeFile::create(path).map_err(fail)?;
        let file = BufWriter::new(whole.handle().map_err(fail)?);
        let options = npyz::WriteOptions::<f32>::new().default_dtype();
        let options = options.shape(&[rows as u64, width as u64]).writer(file);
        Ok(RowsFile {
            path: path.to_owned(),
            whole,
            writer: options.begin_nd().map_err(fail)?,
        })
    }

    /// Appends a row.
    pub fn push(&mut self, row: &[f32]) -> Outcome {
        let pushed = self.writer.extend(row.iter().copied());
        pushed.map_err(|e| Failure::io("cannot write", &self.path, e))
    }

    /// Ends the file: all rows have come.
    pub fn finish(self) -> Outcome {
        let finished = self.writer.finish().and_then(|()| self.whole.finish());
        finished.map_err(|e| Failure::io("cannot write", &self.path, e))
    }
}

fn write_to(w: impl Write, t: &Tensor) -> std::io::Result<()> {
    let shape: Vec<u64> = t.shape().iter().map(|d| *d as u64).collect();
    macro_rules! save {
        ($t:ty, $v:expr) => {{
            let values: Vec<$t> = $v;
            let mut writer = npyz::WriteOptions::<$t>::new()
                .default_dtype()
                .shape(&shape)
                .writer(w)
                .begin_nd()?;
            writer.extend(values)?;
            writer.finish()
        }};
    }
    match t.dtype() {
        DType::F64 => save!(f64, t.to_vec().unwrap_or_default()),
        DType::F32 => save!(f32, t.to_vec().unwrap_or_default()),
        DType::F16 => save!(f16, t.to_vec().unwrap_or_default()),
        DType::I64 => save!(i64, t.to_vec().unwrap_or_default()),
        DType::I32 => save!(i32, t.to_vec().unwrap_or_default()),
        DType::I16 => save!(i16, t.to_vec().unwrap_or_default()),
        DType::I8 => save!(i8, t.to_vec().unwrap_or_default()),
        DType::U64 => save!(u64, t.to_vec().unwrap_or_default()),
        DType::U32 => save!(u32, t.to_vec().unwrap_or_default()),
        DType::U16 => save!(u16, t.to_vec().unwrap_or_default()),
        DType::U8 => save!(u8, t.to_vec().unwrap_or_default()),
        DType::Bool => save!(bool, t.bytes().iter().map(|b| *b != 0).collect()),
        _ => match convert::lanes(t) {
            Some(convert::Lanes::F(v)) => {
                save!(f32, v.into_iter().map(|x| x as f32).collect())
            }
            Some(convert::Lanes::I(v)) => {
                save!(i8, v.into_iter().map(|x| x as i8).collect())
            }
            Some(convert::Lanes::U(v)) => {
                save!(u8, v.into_iter().map(|x| x as u8).collect())
            }
            None => Err(std::io::Error::other(format!(
                "{} has no NumPy form",
                t.dtype()
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this version with a header and six doubles.
    fn file(version: u8, header: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((header.len() as u16).to_le_bytes()),
            _ => bytes.extend((header.len() as u32).to_le_bytes()),
        }
        bytes.extend(header.bytes());
        (0..6).for_each(|i| bytes.extend(f64::from(i).to_le_bytes()));
        bytes
    }

    #[test]
    fn headers_of_every_version_are_read_and_deep_ones_refused() {
        let plain = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }\n";
        for version in [1, 2, 3] {
            let bytes = file(version, plain);
            let tensor = parse(&bytes[..], bytes.len() as u64).unwrap();
            assert_eq!(tensor.shape(), [2, 3]);
            assert_eq!(tensor.to_vec::<f64>().unwrap()[5], 5.0);
        }
        let deep = plain.replace("False", &"[".repeat(35));
        let bytes = file(1, &deep);
        let error = parse(&bytes[..], bytes.len() as u64).unwrap_err();
        assert!(error.contains("nested"), "{error}");
        assert!(parse(&bytes[..9], 9).is_err());
    }
}
