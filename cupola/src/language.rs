//! Language models as users hold them: a tokenizer, and a program that continues or describes text.

use crate::error::{Error, Result};
use crate::model;
use crate::runner::Options;
use cupola_gguf::GgufParts;
pub use cupola_language::Kind;
use cupola_language::{Config, LanguageModel};
use cupola_llm::{CacheShape, Decoder, Encoder, Engine, EngineOptions, with_likeliest};
use cupola_passes::Precision;
use cupola_runtime::{DeviceSpec, Host, Program};
use cupola_source::{Format, Source};
use cupola_text::{ChatTemplate, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// A language model, compiled.
pub struct TextModel {
    /// Sizes of the model.
    pub config: Config,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its program.
    pub program: Arc<Program>,
}

impl TextModel {
    /// Opens and compiles a GGUF file or a folder of safetensors. `context_len` is the most positions that a text will
    /// have, where that is not what the model was made for. With `Precision::F32` keys and values are kept as f32 too.
    ///
    /// # Errors
    /// A file that is no language model or cannot be read; what compilation finds.
    pub fn open(
        path: impl AsRef<Path>,
        host: &Host,
        options: &Options,
        context_len: Option<usize>,
    ) -> Result<TextModel> {
        let path = path.as_ref();
        check_kind(path)?;
        let mut import = cupola_language::Options {
            context_len,
            ..cupola_language::Options::default()
        };
        if options.precision == Precision::F32 {
            import.cache_dtype = cupola_ir::DType::F32;
        }
        // Reading a vocabulary takes about as long as compiling.
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| tokenizer(path));
            let opened = LanguageModel::open(path, &import)?;
            let mut options = options.clone();
            model::know_files(&opened.files, &mut options);
            let graph = match (opened.config.kind, &options.device) {
                (Kind::Decoder, DeviceSpec::Gpu(_) | DeviceSpec::Auto) => {
                    with_likeliest(opened.graph)?
                }
                _ => opened.graph,
            };
            let program = Program::compile(graph, host, &options)?;
            let tokenizer = tokenizer.join();
            Ok(TextModel {
                config: opened.config,
                tokenizer: tokenizer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                program: Arc::new(program),
            })
        })
    }

    /// What keeps `positions` positions of texts costs so many bytes of memory.
    ///
    /// # Errors
    /// [`Error::NoGraph`] for a model that does not continue texts.
    pub fn cache_size(&self, positions: usize) -> Result<usize> {
        let shape = self.cache()?;
        let pages = positions.div_ceil(shape.page_len);
        Ok(pages.saturating_mul(shape.page_size))
    }

    fn cache(&self) -> Result<CacheShape> {
        match self.config.kind {
            Kind::Decoder => Ok(CacheShape::of(self.program.graph())?),
            Kind::Encoder => {
                let what = format!(
                    "{} describes texts; it does not continue them",
                    self.config.architecture
                );
                Err(Error::NoGraph(what))
            }
        }
    }

    /// A decoder with a cache for so many positions of all texts together.
    ///
    /// # Errors
    /// As [`TextModel::cache_size`]; memory that the device refuses.
    pub fn decoder(&self, positions: usize) -> Result<Decoder> {
        let pages = positions.div_ceil(self.cache()?.page_len);
        Ok(Decoder::new(self.program.clone(), pages)?)
    }

    /// An encoder of texts.
    ///
    /// # Errors
    /// [`Error::NoGraph`] for a model that continues texts.
    pub fn encoder(&self) -> Result<Encoder> {
        let Config {
            architecture,
            kind,
            context_len,
            vocab_len,
            ..
        } = &self.config;
        match kind {
            Kind::Encoder => Ok(Encoder::new(
                self.program.clone(),
                *context_len,
                *vocab_len,
            )?),
            Kind::Decoder => {
                let what = format!("{architecture} continues texts; it gives no vectors of them");
                Err(Error::NoGraph(what))
            }
        }
    }

    /// An engine with a cache for so many positions of all texts together.
    ///
    /// # Errors
    /// As [`TextModel::decoder`]; options that let nothing run.
    pub fn engine(&self, positions: usize, options: EngineOptions) -> Result<Engine> {
        Ok(Engine::new(self.decoder(positions)?, options)?)
    }
}

/// The tokenizer of a GGUF file or of a folder of safetensors, without reading any weights.
///
/// # Errors
/// A file that cannot be read or holds none.
pub fn tokenizer(path: impl AsRef<Path>) -> Result<Tokenizer> {
    let path = path.as_ref();
    check_kind(path)?;
    match path.is_dir() {
        true => Ok(Tokenizer::from_folder(path)?),
        false => Ok(Tokenizer::from_gguf(GgufParts::open(path)?.first())?),
    }
}

/// The chat template of a GGUF file or of a folder, if it has one.
///
/// # Errors
/// A file that cannot be read; a template that is none.
pub fn chat_template(path: impl AsRef<Path>) -> Result<Option<ChatTemplate>> {
    let path = path.as_ref();
    check_kind(path)?;
    match path.is_dir() {
        true => Ok(ChatTemplate::from_folder(path)?),
        false => Ok(ChatTemplate::from_gguf(GgufParts::open(path)?.first())?),
    }
}

/// Language models are GGUF files and folders.
fn check_kind(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = cupola_source::quote(&name);
    match Source::open(path)?.format() {
        Format::Gguf => Ok(()),
        Format::Unknown => Err(Error::Format(format!("{name} is of no known format"))),
        other => Err(Error::NoGraph(format!(
            "{name}: {other} is no language model; GGUF files and folders with a config.json are"
        ))),
    }
}
