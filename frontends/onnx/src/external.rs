//! Side files that hold tensor data: which paths are allowed, and one mapping per file.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use cupola_source::Source;

use crate::proto::TensorProto;
use crate::tensor::TensorFault;

/// The side files of one model, each mapped once. They all lie inside the model's folder.
#[derive(Clone, Debug, Default)]
pub struct ExternalFiles {
    /// The model's folder with every symbolic link resolved; `None` for a model without a path.
    folder: Option<PathBuf>,
    files: HashMap<String, Source>,
}

/// Where a tensor says its data lies.
pub(crate) struct Location<'a> {
    file: &'a str,
    offset: u64,
    size: Option<u64>,
}

impl ExternalFiles {
    /// For tensors that stand alone: any reference to a side file is refused.
    pub fn none() -> ExternalFiles {
        ExternalFiles::default()
    }

    /// For a model in `folder`. A folder that cannot be resolved is like none.
    pub(crate) fn in_folder(folder: Option<&Path>) -> ExternalFiles {
        let folder = folder.and_then(|folder| folder.canonicalize().ok());
        ExternalFiles {
            folder,
            files: HashMap::new(),
        }
    }

    /// The names of the files that are mapped, as the model writes them, with their bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.files
            .iter()
            .map(|(name, source)| (name.as_str(), source.bytes()))
    }

    /// The mapped files.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.files.values()
    }

    /// Maps the file that `tensor` refers to, unless it is mapped already.
    pub(crate) fn map(&mut self, tensor: &TensorProto) -> Result<(), TensorFault> {
        let file = location(tensor)?.file;
        if !self.files.contains_key(file) {
            let source = self.open(file)?;
            self.files.insert(file.to_owned(), source);
        }
        Ok(())
    }

    /// The `size` bytes that `tensor` refers to, in a file mapped before.
    pub(crate) fn slice(&self, tensor: &TensorProto, size: u64) -> Result<Bytes, TensorFault> {
        let Location {
            file,
            offset,
            size: stated,
        } = location(tensor)?;
        if let Some(stated) = stated
            && stated != size
        {
            return Err(TensorFault::DataSize {
                found: stated,
                needed: size,
            });
        }
        let source = self.files.get(file);
        let source = source.ok_or_else(|| TensorFault::external("was not opened", file))?;
        let bytes = source.bytes();
        let end = offset
            .checked_add(size)
            .filter(|&end| end <= bytes.len() as u64);
        let end = end.ok_or_else(|| TensorFault::ExternalRange {
            file: file.to_owned(),
            offset,
            size,
            file_size: bytes.len() as u64,
        })?;
        Ok(bytes.slice(offset as usize..end as usize))
    }

    fn open(&self, file: &str) -> Result<Source, TensorFault> {
        let fault = |what| TensorFault::external(what, file);
        let relative = Path::new(file);
        let inside = relative.components().all(|part| match part {
            Component::Normal(_) | Component::CurDir => true,
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => false,
        });
        if !inside || file.is_empty() || file.contains('\0') {
            return Err(fault("must be a relative path without '..'"));
        }
        let folder = self
            .folder
            .as_ref()
            .ok_or(fault("cannot be found: the model has no folder"))?;
        let path = folder
            .join(relative)
            .canonicalize()
            .map_err(|_| fault("does not exist"))?;
        if !path.starts_with(folder) {
            return Err(fault(
                "leads out of the model's folder through a symbolic link",
            ));
        }
        Source::open(&path).map_err(|_| fault("cannot be read"))
    }
}

fn location(tensor: &TensorProto) -> Result<Location<'_>, TensorFault> {
    let mut file = None;
    let mut offset = None;
    let mut size = None;
    for entry in &tensor.external_data {
        let number = || {
            let fault = TensorFault::External("an offset or length is not a whole number");
            entry.value().parse::<u64>().map_err(|_| fault)
        };
        let repeated = match entry.key() {
            "location" => file.replace(entry.value()).is_some(),
            "offset" => offset.replace(number()?).is_some(),
            "length" => size.replace(number()?).is_some(),
            _ => false,
        };
        if repeated {
            return Err(TensorFault::External("a key is given twice"));
        }
    }
    let file = file.ok_or(TensorFault::External("the location is missing"))?;
    Ok(Location {
        file,
        offset: offset.unwrap_or(0),
        size,
    })
}
