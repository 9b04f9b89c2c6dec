//! Language models as users hold them: a tokenizer, and a program that continues or describes text.

mod saved;

pub use cupola_language::Kind;
pub use saved::{identity, read_snapshot, write_snapshot};

use crate::error::{Error, Result};
use crate::model;
use crate::runner::Options;
use crate::train;
use cupola_gguf::GgufParts;
use cupola_ir::{Bindings, DType, Sym};
use cupola_language::{Config, LanguageModel};
use cupola_llm::speculate::DraftModel;
use cupola_llm::{
    CacheShape, Decoder, Encoder, Engine, EngineOptions, LlmError, StepSizes, with_likeliest,
};
use cupola_passes::Precision;
use cupola_runtime::{DeviceSpec, Host, Program, RuntimeError};
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
    /// Opens and compiles a GGUF file, a folder of safetensors, or what `cupola train` made of a language model: a checkpoint, a
    /// folder of them, a configuration (its best checkpoint). `context_len` is the most positions that a text will
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
        let cache_dtype = match options.precision {
            Precision::F32 => DType::F32,
            _ => cupola_language::Options::default().cache_dtype,
        };
        let import = cupola_language::Options {
            context_len,
            cache_dtype,
            ..cupola_language::Options::default()
        };
        TextModel::open_with(path, host, options, &import)
    }

    /// As [`TextModel::open`], with a say in how keys and values are kept.
    ///
    /// # Errors
    /// As [`TextModel::open`]; options that mean nothing.
    pub fn open_with(
        path: impl AsRef<Path>,
        host: &Host,
        options: &Options,
        import: &cupola_language::Options,
    ) -> Result<TextModel> {
        let path = path.as_ref();
        if let Some(checkpoint) = train::checkpoint_at(path)? {
            let tokenizer = train::tokenizer(&checkpoint)?;
            let opened = train::language_model(&checkpoint, tokenizer.vocab_len(), import)?;
            return TextModel::compile(opened, || Ok(tokenizer), host, options);
        }
        check_kind(path)?;
        // Reading a vocabulary takes about as long as compiling.
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| tokenizer(path));
            let opened = LanguageModel::open(path, import)?;
            let join = || match tokenizer.join() {
                Ok(tokenizer) => tokenizer,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            TextModel::compile(opened, join, host, options)
        })
    }

    /// Compiles a model; the tokenizer is asked for afterwards.
    fn compile(
        opened: LanguageModel,
        tokenizer: impl FnOnce() -> Result<Tokenizer>,
        host: &Host,
        options: &Options,
    ) -> Result<TextModel> {
        let mut options = options.clone();
        model::know_files(&opened.files, &mut options);
        let graph = match (opened.config.kind, &options.device) {
            (Kind::Decoder, DeviceSpec::Gpu(_) | DeviceSpec::Auto) => with_likeliest(opened.graph)?,
            _ => opened.graph,
        };
        let program = Program::compile(graph, host, &options)?;
        Ok(TextModel {
            config: opened.config,
            tokenizer: tokenizer()?,
            program: Arc::new(program),
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
    /// As [`TextModel::decoder`]; [`RuntimeError::Memory`] where weights, cache and the largest step are more than the
    /// budget or this machine has; options that let nothing run.
    pub fn engine(&self, positions: usize, options: EngineOptions) -> Result<Engine> {
        let sizes = StepSizes {
            rows: options.rows,
            texts: options.slots,
            wanted: options.slots,
            context_len: options.context_len.min(positions),
            pages: positions.div_ceil(self.cache()?.page_len),
        };
        self.check_memory(&sizes)?;
        Ok(Engine::new(self.decoder(positions)?, options)?)
    }

    /// Refuses what is known beforehand not to fit.
    fn check_memory(&self, sizes: &StepSizes) -> Result<()> {
        let mut bindings = Bindings::default();
        for (name, size) in sizes.symbols(self.program.graph())? {
            bindings.set(Sym::new(&name), size);
        }
        let cache = self.cache()?.page_size.saturating_mul(sizes.pages) as u64;
        let need = match self.program.footprint(&bindings) {
            Some(all) => all.total(),
            None => cache,
        };
        let on_host = matches!(self.program.device, DeviceSpec::Cpu | DeviceSpec::Reference);
        let machine = on_host.then(host_memory).flatten();
        let budget = self.program.memory().into_iter().chain(machine).min();
        match budget {
            Some(budget) if need > budget => Err(RuntimeError::Memory { need, budget }.into()),
            _ => Ok(()),
        }
    }

    /// What guesses the tokens of this model's texts by running `smaller`, with a cache for so many positions of all texts
    /// together and at most `rows` rows at a time. [`Engine::set_drafter`] takes it.
    ///
    /// # Errors
    /// As [`TextModel::decoder`]; [`LlmError::Request`] where the models do not mean the same by a token.
    pub fn drafter(
        &self,
        smaller: &TextModel,
        positions: usize,
        rows: usize,
    ) -> Result<DraftModel> {
        check_same_tokens(&self.tokenizer, &smaller.tokenizer)?;
        let decoder = smaller.decoder(positions)?;
        let context_len = smaller.config.context_len;
        Ok(DraftModel::new(decoder, context_len, rows))
    }
}

/// All memory of this machine; `None` where the system does not tell.
fn host_memory() -> Option<u64> {
    let facts = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = facts.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Models of one family may fill up their vocabularies to different lengths, by no more than this.
const MOST_FILLERS: usize = 256;

/// A model can guess for another only if every token is the same text for both.
fn check_same_tokens(own: &Tokenizer, other: &Tokenizer) -> Result<()> {
    let refused = |what: String| {
        let what = format!("the draft model has another vocabulary: {what}");
        Err(Error::Generate(LlmError::Request(what)))
    };
    let (len, other_len) = (own.vocab_len(), other.vocab_len());
    let common = len.min(other_len) as u32;
    let differs = (0..common).find(|t| own.token_bytes(*t) != other.token_bytes(*t));
    if let Some(token) = differs {
        let [own, other] = [own, other].map(|t| {
            let bytes = t.token_bytes(token);
            cupola_source::quote(&String::from_utf8_lossy(bytes))
        });
        return refused(format!("token {token} is {other} and not {own}"));
    }
    match len.abs_diff(other_len) > MOST_FILLERS {
        true => refused(format!("{other_len} tokens and not {len}")),
        false => Ok(()),
    }
}

/// The tokenizer of a GGUF file, of a folder of safetensors or of a checkpoint, without using any weights.
///
/// # Errors
/// A file that cannot be read or holds none.
pub fn tokenizer(path: impl AsRef<Path>) -> Result<Tokenizer> {
    let path = path.as_ref();
    if let Some(checkpoint) = train::checkpoint_at(path)? {
        return train::tokenizer(&checkpoint);
    }
    check_kind(path)?;
    match path.is_dir() {
        true => Ok(Tokenizer::from_folder(path)?),
        false => Ok(Tokenizer::from_gguf(GgufParts::open(path)?.first())?),
    }
}

/// The chat template of a GGUF file or of a folder, if it has one; checkpoints have none.
///
/// # Errors
/// A file that cannot be read; a template that is none.
pub fn chat_template(path: impl AsRef<Path>) -> Result<Option<ChatTemplate>> {
    let path = path.as_ref();
    if train::checkpoint_at(path)?.is_some() {
        return Ok(None);
    }
    check_kind(path)?;
    match path.is_dir() {
        true => Ok(ChatTemplate::from_folder(path)?),
        false => Ok(ChatTemplate::from_gguf(GgufParts::open(path)?.first())?),
    }
}

/// Other language models are GGUF files and folders.
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
            "{name}: {other} is no language model; GGUF files, folders with a config.json and checkpoints of cupola train are"
        ))),
    }
}
