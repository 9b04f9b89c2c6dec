//! [`ChatTemplate`]: messages to the text that a model was trained on, by the Jinja template that comes with it.
//!
//! Templates are written for Jinja2 as `transformers` sets it up; `python.rs` holds what differs from minijinja. A
//! template is a program from a file: it runs with bounded steps.

mod python;

use std::path::Path;
use std::sync::Arc;

use cupola_gguf::{Gguf, Value as GgufValue};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::error::TextError;
use crate::folder;

/// Steps that rendering may take: far more than the longest conversation needs.
const MAX_STEPS: u64 = 50_000_000;

/// Names of templates in the environment.
const PLAIN: &str = "default";
const WITH_TOOLS: &str = "tool_use";

/// The template of a model. Copies share it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// The texts of special tokens by role, such as `bos_token`.
    special: Map<String, Value>,
    source: String,
    tool_source: Option<String>,
}

impl ChatTemplate {
    /// A template from its source. `special` gives the texts of special tokens by their names in templates
    /// (`bos_token`, `eos_token`).
    ///
    /// # Errors
    /// [`TextError::Template`] for a source that is no template.
    pub fn new(source: &str, special: Map<String, Value>) -> Result<ChatTemplate, TextError> {
        ChatTemplate::with_tools(source, None, special)
    }

    fn with_tools(
        source: &str,
        tool_source: Option<&str>,
        special: Map<String, Value>,
    ) -> Result<ChatTemplate, TextError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|error| TextError::Template(message(&error)))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(MAX_STEPS));
        python::add(&mut environment);
        let mut add = |name: &'static str, source: &str| {
            environment
                .add_template_owned(name, python::without_marks(source))
                .map_err(|error| TextError::Template(message(&error)))
        };
        add(PLAIN, source)?;
        if let Some(source) = tool_source {
            add(WITH_TOOLS, source)?;
        }
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            special,
            source: source.to_owned(),
            tool_source: tool_source.map(str::to_owned),
        })
    }

    /// The template of a GGUF file, if it has one.
    ///
    /// # Errors
    /// [`TextError`] for a template that is none.
    pub fn from_gguf(file: &Gguf) -> Result<Option<ChatTemplate>, TextError> {
        let text = |key: &str| file.get(key).and_then(GgufValue::as_str);
        let Some(source) = text("tokenizer.chat_template") else {
            return Ok(None);
        };
        let mut special = Map::new();
        for (name, key) in [
            ("bos_token", "tokenizer.ggml.bos_token_id"),
            ("eos_token", "tokenizer.ggml.eos_token_id"),
            ("unk_token", "tokenizer.ggml.unknown_token_id"),
            ("pad_token", "tokenizer.ggml.padding_token_id"),
        ] {
            let id = file.get(key).and_then(GgufValue::as_u64);
            let tokens = file
                .get("tokenizer.ggml.tokens")
                .and_then(GgufValue::as_array);
            if let (Some(id), Some(tokens)) = (id, tokens)
                && let Some(token) = tokens.iter().nth(id as usize)
                && let Some(token) = token.as_str()
            {
                special.insert(name.to_owned(), token.into());
            }
        }
        let tool_source = text("tokenizer.chat_template.tool_use");
        ChatTemplate::with_tools(source, tool_source, special).map(Some)
    }

    /// The template in a model's folder, if there is one: `chat_template.jinja`, or what `tokenizer_config.json` or
    /// `chat_template.json` hold.
    ///
    /// # Errors
    /// [`TextError`] for files that cannot be read and for a template that is none.
    pub fn from_folder(path: impl AsRef<Path>) -> Result<Option<ChatTemplate>, TextError> {
        let path = path.as_ref();
        let config = folder::json(path, "tokenizer_config.json")?.unwrap_or_default();
        let special = folder::special_texts(path, &config)?;
        if let Some(source) = folder::text(path, "chat_template.jinja")? {
            return ChatTemplate::new(&source, special).map(Some);
        }
        let other = folder::json(path, "chat_template.json")?.unwrap_or_default();
        let Some(found) = [&config, &other]
            .into_iter()
            .map(|file| &file["chat_template"])
            .find(|found| !found.is_null())
        else {
            return Ok(None);
        };
        if let Some(source) = found.as_str() {
            return ChatTemplate::new(source, special).map(Some);
        }
        let named = |name: &str| {
            let all = found.as_array()?;
            let one = all.iter().find(|one| one["name"] == name)?;
            one["template"].as_str()
        };
        match named(PLAIN) {
            Some(source) => ChatTemplate::with_tools(source, named(WITH_TOOLS), special).map(Some),
            None => Err(TextError::Template(
                "there is no template of the name 'default'".to_owned(),
            )),
        }
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The source of what is rendered where there are tools.
    pub fn tool_source(&self) -> &str {
        self.tool_source.as_deref().unwrap_or(&self.source)
    }

    /// The text of a conversation. `messages` is a list of objects with `role` and `content`; `tools` a list of
    /// functions as the OpenAI API describes them, or nothing; `add_generation_prompt` ends with the beginning of an
    /// answer; `extra` adds variables.
    ///
    /// # Errors
    /// [`TextError::Template`] with the template's own message where it refuses, and for more than 50 million steps.
    pub fn render(
        &self,
        messages: &Value,
        tools: Option<&Value>,
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TextError> {
        let mut variables = self.special.clone();
        variables.extend(extra.clone());
        variables.insert("messages".to_owned(), messages.clone());
        variables.insert("tools".to_owned(), tools.cloned().unwrap_or_default());
        variables.insert(
            "add_generation_prompt".to_owned(),
            add_generation_prompt.into(),
        );
        if !variables.contains_key("documents") {
            variables.insert("documents".to_owned(), Value::Null);
        }
        let name = if tools.is_some() && self.tool_source.is_some() {
            WITH_TOOLS
        } else {
            PLAIN
        };
        let template = self.environment.get_template(name);
        template
            .and_then(|template| template.render(Serde(variables)))
            .map_err(|error| TextError::Template(message(&error)))
    }
}

/// What went wrong and in which line, in one line.
fn message(error: &minijinja::Error) -> String {
    let what = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what}, line {line}"),
        None => what,
    }
}
