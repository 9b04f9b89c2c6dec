//! Bodies of requests, and what they ask of the engine.

use crate::Model;
use crate::error::{ApiError, Outcome};
use cupola_llm::constrain::{Constrainer, Grammar};
use cupola_llm::{Constraint, Request, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Most answers to one request.
const MOST_CHOICES: usize = 16;
/// Most likeliest tokens told of each.
const MOST_LOG_PROBS: usize = 20;
/// Most strings that end a text.
const MOST_STOPS: usize = 16;

/// One string or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
}

/// A prompt: text, several, or tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Texts(Texts),
    Tokens(Vec<u32>),
}

/// Whether a stream ends with what was used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub include_usage: bool,
}

/// What all requests for text have in common. Names are the API's; those that it lacks are llama.cpp's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Common {
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<usize>,
    pub max_completion_tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub seed: Option<u64>,
    pub stop: Option<Texts>,
    pub n: Option<usize>,
    /// Rules in GBNF that the answer follows.
    pub grammar: Option<String>,
}

/// A conversation to continue.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatBody {
    pub messages: Vec<Value>,
    pub tools: Option<Value>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<usize>,
    pub response_format: Option<Value>,
    #[serde(default)]
    pub chat_template_kwargs: Map<String, Value>,
    #[serde(flatten)]
    pub common: Common,
}

/// A text to continue.
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionBody {
    pub prompt: Prompt,
    pub logprobs: Option<usize>,
    #[serde(default)]
    pub echo: bool,
    #[serde(flatten)]
    pub common: Common,
}

/// What handlers need of a request.
#[derive(Debug)]
pub(crate) struct Job {
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub choices: usize,
    pub most: Option<usize>,
    pub sampling: Sampling,
    pub stops: Vec<String>,
    pub log_probs: Option<usize>,
    pub grammar: Option<Grammar>,
    pub streams: bool,
    pub tells_usage: bool,
}

/// Reads a body.
pub(crate) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Outcome<T> {
    serde_json::from_slice(body).map_err(|e| ApiError::bad(format!("the body cannot be read: {e}")))
}

impl ChatBody {
    /// Renders and encodes the conversation.
    pub fn job(self, model: &Model) -> Outcome<Job> {
        let none = || ApiError::bad("the model has no chat template; use /v1/completions");
        let template = model.template.as_ref().ok_or_else(none)?;
        if self.messages.is_empty() {
            return Err(ApiError::bad("there are no messages"));
        }
        let grammar = self
            .response_format
            .as_ref()
            .map(format_grammar)
            .transpose()?
            .flatten();
        let messages: Vec<Value> = self.messages.into_iter().map(plain_content).collect();
        let text = template.render(
            &Value::from(messages),
            self.tools.as_ref(),
            true,
            &self.chat_template_kwargs,
        )?;
        // Templates spell the tokens around a text themselves.
        let prompt = model.tokenizer.encode(&text, false, true)?;
        let log_probs = self
            .logprobs
            .unwrap_or(false)
            .then(|| self.top_logprobs.unwrap_or(0));
        self.common.job(vec![prompt], log_probs, grammar)
    }
}

impl CompletionBody {
    /// Encodes the prompts.
    pub fn job(self, model: &Model) -> Outcome<Job> {
        let texts = match self.prompt {
            Prompt::Tokens(tokens) => return self.common.job(vec![tokens], self.logprobs, None),
            Prompt::Texts(Texts::One(text)) => vec![text],
            Prompt::Texts(Texts::Many(texts)) => texts,
        };
        if self.echo {
            return Err(ApiError::bad("echo is not supported"));
        }
        let encode = |text: &String| Ok(model.tokenizer.encode(text, true, true)?);
        let prompts = texts.iter().map(encode).collect::<Outcome<_>>()?;
        self.common.job(prompts, self.logprobs, None)
    }
}

impl Common {
    fn job(
        self,
        prompts: Vec<Vec<u32>>,
        log_probs: Option<usize>,
        format: Option<Grammar>,
    ) -> Outcome<Job> {
        let given = self.grammar.as_deref().map(Grammar::gbnf).transpose();
        let given = given.map_err(|e| ApiError::bad(format!("grammar: {e}")))?;
        let choices = self.n.unwrap_or(1);
        if !(1..=MOST_CHOICES).contains(&(choices.saturating_mul(prompts.len()))) {
            return Err(ApiError::bad(format!(
                "between 1 and {MOST_CHOICES} answers can be asked for"
            )));
        }
        if log_probs.is_some_and(|n| n > MOST_LOG_PROBS) {
            return Err(ApiError::bad(format!(
                "at most {MOST_LOG_PROBS} log-probabilities of a token are told"
            )));
        }
        let stops = match self.stop {
            None => vec![],
            Some(Texts::One(text)) => vec![text],
            Some(Texts::Many(texts)) => texts,
        };
        if stops.len() > MOST_STOPS {
            return Err(ApiError::bad(format!(
                "at most {MOST_STOPS} strings can end a text"
            )));
        }
        let bias = self
            .logit_bias
            .unwrap_or_default()
            .into_iter()
            .map(|(token, bias)| {
                let token = token.parse::<u32>();
                let token =
                    token.map_err(|_| ApiError::bad("logit_bias is by the numbers of tokens"))?;
                Ok((token, bias))
            });
        let usual = Sampling::default();
        Ok(Job {
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(1.0),
                top_k: self.top_k.unwrap_or(usual.top_k),
                top_p: self.top_p.unwrap_or(usual.top_p),
                min_p: self.min_p.unwrap_or(usual.min_p),
                typical_p: self.typical_p.unwrap_or(usual.typical_p),
                repetition_penalty: self.repeat_penalty.unwrap_or(usual.repetition_penalty),
                presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
                frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
                penalty_len: usual.penalty_len,
                logit_bias: bias.collect::<Outcome<_>>()?,
                seed: self.seed.unwrap_or_else(random_seed),
            },
            prompts,
            choices,
            most: self.max_completion_tokens.or(self.max_tokens),
            stops,
            log_probs,
            grammar: format.or(given),
            streams: self.stream.unwrap_or(false),
            tells_usage: self.stream_options.unwrap_or_default().include_usage,
        })
    }
}

impl Job {
    /// A request of the engine for each answer, those to one prompt after each other.
    pub fn requests(&self, model: &Model) -> Vec<Request> {
        let ends = model.tokenizer.end_tokens();
        let constrainer = self
            .grammar
            .as_ref()
            .map(|g| Constrainer::new(g, model.trie()));
        let constraint = || Some(Box::new(constrainer.as_ref()?.start()) as Box<dyn Constraint>);
        let room = |prompt: &[u32]| {
            model
                .service
                .context_len()
                .saturating_sub(prompt.len())
                .max(1)
        };
        let each = self
            .prompts
            .iter()
            .flat_map(|p| (0..self.choices as u64).map(move |i| (p, i)));
        each.map(|(prompt, choice)| Request {
            prompt: prompt.clone(),
            most: self.most.unwrap_or_else(|| room(prompt)),
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(choice),
                ..self.sampling.clone()
            },
            end_tokens: ends.into(),
            log_probs: self.log_probs,
            constraint: constraint(),
        })
        .collect()
    }
}

/// The grammar of a format of answers.
fn format_grammar(format: &Value) -> Outcome<Option<Grammar>> {
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::json_object())),
        Some("json_schema") => {
            let schema = Grammar::json_schema(&format["json_schema"]["schema"]);
            Ok(Some(schema.map_err(|e| {
                ApiError::bad(format!("response_format: {e}"))
            })?))
        }
        _ => Err(ApiError::bad(
            "response_format is one of text, json_object and json_schema",
        )),
    }
}

/// A message whose content is a list of texts, as one text: templates know no lists.
fn plain_content(mut message: Value) -> Value {
    let parts = message.get("content").and_then(Value::as_array);
    let texts = parts.map(|parts| {
        parts
            .iter()
            .map(|p| p["text"].as_str().unwrap_or_default())
            .collect::<String>()
    });
    if let Some(text) = texts {
        message["content"] = text.into();
    }
    message
}

/// A seed that nobody asked for: the system's source of hash keys is random.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
