//! [`Weights`]: the tensors of a model under the names that GGUF files give them, each looked up with the extents that it
//! must have.

use crate::error::{LanguageError, Result};
use crate::names::Names;
use bytes::Bytes;
use cupola_gguf::Gguf;
use cupola_ir::dtype::Class;
use cupola_ir::{DType, Tensor, convert};
use cupola_safetensors::SafeTensors;
use std::cell::Cell;
use std::collections::BTreeMap;

/// Named tensors, none of them read yet.
pub(crate) struct Weights {
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    /// The name in the file.
    name: String,
    /// `None` for a type without a counterpart in graphs.
    dtype: Option<DType>,
    /// What the type is called in messages.
    kind: &'static str,
    dims: Vec<usize>,
    data: Bytes,
    used: Cell<bool>,
}

impl Weights {
    /// The tensors of the parts of a GGUF file.
    pub fn of_gguf(files: &[&Gguf]) -> Weights {
        let all = files.iter().flat_map(|file| file.tensors());
        let entry = |t: &cupola_gguf::Tensor| Entry {
            name: t.name.clone(),
            dtype: t.kind.dtype(),
            kind: t.kind.name(),
            dims: t.dims.clone(),
            data: t.data.clone(),
            used: Cell::new(false),
        };
        Weights {
            tensors: all.map(|t| (t.name.clone(), entry(t))).collect(),
        }
    }

    /// The tensors of a folder; those that the family ignores are left out.
    pub fn of_folder(set: &SafeTensors, names: &Names) -> Weights {
        let entry = |t: &cupola_safetensors::Tensor| Entry {
            name: t.name.clone(),
            dtype: Some(t.dtype),
            kind: t.dtype.name(),
            dims: t.dims.clone(),
            data: t.data.clone(),
            used: Cell::new(false),
        };
        let kept = set.tensors().iter().filter(|t| !names.ignores(&t.name));
        Weights {
            tensors: kept.map(|t| (names.translate(&t.name), entry(t))).collect(),
        }
    }

    /// Tensors under the names of GGUF files.
    pub fn of_tensors(tensors: &BTreeMap<String, Tensor>) -> Weights {
        let entry = |(name, t): (&String, &Tensor)| {
            let entry = Entry {
                name: name.clone(),
                dtype: Some(t.dtype()),
                kind: t.dtype().name(),
                dims: t.shape().to_vec(),
                data: t.shared_bytes().unwrap_or_default(),
                used: Cell::new(false),
            };
            (name.clone(), entry)
        };
        Weights {
            tensors: tensors.iter().map(entry).collect(),
        }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The extents of a tensor, if it is there.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|e| &e.dims[..])
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let entry = self.tensors.get(name);
        let entry = entry.ok_or_else(|| LanguageError::MissingTensor(name.to_owned()))?;
        entry.used.set(true);
        Ok(entry)
    }

    fn tensor(&self, name: &str, needed: &[usize]) -> Result<(&Entry, DType)> {
        let entry = self.entry(name)?;
        if entry.dims != needed {
            return Err(LanguageError::Extents {
                tensor: entry.name.clone(),
                found: entry.dims.clone(),
                needed: needed.to_vec(),
            });
        }
        match entry.dtype {
            Some(dtype) if dtype.is_float() || dtype.class() == Class::Block => Ok((entry, dtype)),
            _ => Err(LanguageError::WeightType {
                tensor: entry.name.clone(),
                dtype: entry.kind,
            }),
        }
    }

    /// A tensor as it is in the file.
    ///
    /// # Errors
    /// A tensor that is missing, has other extents or is not of floats.
    pub fn get(&self, name: &str, needed: &[usize]) -> Result<Tensor> {
        let (entry, dtype) = self.tensor(name, needed)?;
        let tensor = Tensor::new(dtype, entry.dims.clone(), entry.data.clone());
        tensor.ok_or_else(|| LanguageError::weight_type(&entry.name, dtype))
    }

    /// The matrices of a tensor of three axes, each a slice of the file; the first axis may hold several of them at once.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn parts(&self, name: &str, [len, rows, cols]: [usize; 3]) -> Result<Vec<Tensor>> {
        let stored = self.dims(name).and_then(|d| d.first()).copied();
        let joined = stored
            .filter(|s| *s > 0 && len.is_multiple_of(*s))
            .unwrap_or(len);
        let (entry, dtype) = self.tensor(name, &[joined, len / joined.max(1) * rows, cols])?;
        let size = entry.data.len() / len.max(1);
        let part = |i: usize| {
            let bytes = entry.data.slice(i * size..(i + 1) * size);
            Tensor::new(dtype, vec![rows, cols], bytes)
                .ok_or_else(|| LanguageError::weight_type(&entry.name, dtype))
        };
        (0..len).map(part).collect()
    }

    /// A vector as f32.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.get(name, &[len])?;
        let wide = convert::cast(&tensor, DType::F32, true).ok();
        wide.and_then(|t| t.to_vec::<f32>())
            .ok_or_else(|| LanguageError::weight_type(name, tensor.dtype()))
    }

    /// Leaves a tensor out of what must be used.
    pub fn skip(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            entry.used.set(true);
        }
    }

    /// Refuses tensors that nothing read: a model whose weights were not all used is not the model in the file.
    ///
    /// # Errors
    /// The first such tensor.
    pub fn check_used(&self, architecture: &str) -> Result<()> {
        match self.tensors.values().find(|e| !e.used.get()) {
            Some(entry) => Err(LanguageError::UnusedTensor {
                tensor: entry.name.clone(),
                architecture: architecture.to_owned(),
            }),
            None => Ok(()),
        }
    }
}
