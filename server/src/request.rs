//! Bodies of requests, and what they ask of the engine.

use crate::error::{ApiError, Outcome};
use crate::tools::{Calling, Tools};
use crate::{Model, Service};
use cupola_llm::constrain::{Constrainer, Grammar};
use cupola_llm::{Constraint, Request, Sampling};
use cupola_text::{ChatTemplate, TextError};
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
#[serde(untagged, expecting = "a text or a list of texts is wanted")]
pub(crate) enum Texts {
    One(String),
    Many(Vec<String>),
}

/// A prompt: text, several, or tokens.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a text, a list of texts, a list of tokens or a list of such lists is wanted"
)]
pub(crate) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

impl Prompt {
    /// The tokens of each text.
    pub fn tokens(
        self,
        encode: impl Fn(&str) -> Result<Vec<u32>, TextError>,
    ) -> Outcome<Vec<Vec<u32>>> {
        match self {
            Prompt::Text(text) => Ok(vec![encode(&text)?]),
            Prompt::Texts(texts) => {
                Ok(texts.iter().map(|t| encode(t)).collect::<Result<_, _>>()?)
            }
            Prompt::Tokens(tokens) => Ok(vec![tokens]),
            Prompt::Lists(lists) => Ok(lists),
        }
    }
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
    pub messages: Vec<Map<String, Value>>,
    pub tools: Option<Vec<Value>>,
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<usize>,
    pub response_format: Option<Value>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub common: Common,
}

/// A text to continue.
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionBody {
    pub prompt: Prompt,
    pub logprobs: Option<usize>,
    pub echo: Option<bool>,
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
    /// How calls are read out of the answers.
    pub calling: Option<Calling>,
    /// What each answer begins with, by prompt; nothing where nothing is to be repeated.
    pub echo: Vec<String>,
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
        model.service()?;
        let none = || ApiError::bad("the model has no chat template; use /v1/completions");
        let template = model.template.as_ref().ok_or_else(none)?;
        let format = self.response_format.as_ref().filter(|f| !f.is_null());
        let mut grammar = format.map(format_grammar).transpose()?.flatten();
        let tools = Tools::read(self.tools, self.tool_choice, self.parallel_tool_calls)?;
        let shown = tools.shown();
        let extra = self.chat_template_kwargs.unwrap_or_default();
        let mut text = render(template, self.messages, shown.as_ref(), &extra)?;
        let calling = tools.calling(template);
        if let Some(calling) = &calling
            && let Some((opening, call)) = tools.demand(calling.form)?
        {
            if grammar.is_some() || self.common.grammar.is_some() {
                return Err(ApiError::bad(
                    "tool_choice demands a call, which response_format and grammar would not be",
                ));
            }
            text.push_str(opening);
            grammar = Some(call);
        }
        // Templates spell the tokens around a text themselves.
        let prompt = model.tokenizer.encode(&text, false, true)?;
        let log_probs = self
            .logprobs
            .unwrap_or(false)
            .then(|| self.top_logprobs.unwrap_or(0));
        let job = self.common.job(vec![prompt], log_probs, grammar)?;
        Ok(Job { calling, ..job })
    }
}

impl CompletionBody {
    /// Encodes the prompts.
    pub fn job(self, model: &Model) -> Outcome<Job> {
        model.service()?;
        let prompts = self
            .prompt
            .tokens(|text| model.tokenizer.encode(text, true, true))?;
        let mut job = self.common.job(prompts, self.logprobs, None)?;
        if self.echo.unwrap_or(false) {
            if job.log_probs.is_some() {
                let what = "echo: log-probabilities are told of generated tokens only, not of the prompt's";
                return Err(ApiError::bad(what));
            }
            let text = |prompt: &Vec<u32>| model.tokenizer.decode(prompt, true);
            job.echo = job.prompts.iter().map(text).collect();
        }
        Ok(job)
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
        if given.is_some() && format.is_some() {
            return Err(ApiError::bad(
                "grammar and response_format exclude each other",
            ));
        }
        let most = self.max_completion_tokens.or(self.max_tokens);
        if most == Some(0) {
            return Err(ApiError::bad(
                "max_tokens: at least one token must be asked for",
            ));
        }
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
            most,
            stops,
            log_probs,
            grammar: format.or(given),
            calling: None,
            echo: vec![],
            streams: self.stream.unwrap_or(false),
            tells_usage: self.stream_options.unwrap_or_default().include_usage,
        })
    }
}

impl Job {
    /// A request of the engine for each answer, those to one prompt after each other.
    pub fn requests(&self, model: &Model, service: &Service) -> Vec<Request> {
        let ends = model.tokenizer.end_tokens();
        let constrainer = self
            .grammar
            .as_ref()
            .map(|g| Constrainer::new(g, model.trie(service.vocab_len())));
        let constraint = || Some(Box::new(constrainer.as_ref()?.start()) as Box<dyn Constraint>);
        let room = |prompt: &[u32]| service.context_len().saturating_sub(prompt.len()).max(1);
        // A text that is shifted may go on for longer than the context has room, but not without end.
        let most = |prompt: &[u32]| match self.most {
            Some(most) => most.min(service.context_len()),
            None => room(prompt),
        };
        let each = self
            .prompts
            .iter()
            .flat_map(|p| (0..self.choices as u64).map(move |i| (p, i)));
        each.map(|(prompt, choice)| Request {
            prompt: prompt.clone(),
            most: most(prompt),
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

/// The text of a conversation, to be answered.
fn render(
    template: &ChatTemplate,
    messages: Vec<Map<String, Value>>,
    tools: Option<&Value>,
    extra: &Map<String, Value>,
) -> Outcome<String> {
    if messages.is_empty() {
        return Err(ApiError::bad("messages: there are none"));
    }
    let plain = |(i, message)| {
        plain_message(message)
            .map_err(|what| ApiError::bad(format!("messages: message {i} {what}")))
    };
    let messages: Vec<Value> = messages
        .into_iter()
        .enumerate()
        .map(plain)
        .collect::<Outcome<_>>()?;
    Ok(template.render(&Value::from(messages), tools, true, extra)?)
}

/// A message as templates know it: its content one text, arguments of calls as objects.
fn plain_message(mut message: Map<String, Value>) -> Result<Value, String> {
    if !message.get("role").is_some_and(Value::is_string) {
        return Err("has no role".into());
    }
    let content = match message.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(part_text).collect::<Result<_, _>>()?,
        Some(_) => return Err("has a content that is neither a text nor a list of parts".into()),
    };
    message.insert("content".into(), content.into());
    if message.get("tool_calls").is_some_and(Value::is_null) {
        message.remove("tool_calls");
    }
    if let Some(calls) = message.get_mut("tool_calls") {
        let calls = calls
            .as_array_mut()
            .ok_or("has tool_calls that are no list")?;
        for call in calls {
            if !call["function"]["name"].is_string() {
                return Err("has a tool call without a function's name".into());
            }
            let arguments = call["function"]["arguments"]
                .as_str()
                .map(serde_json::from_str::<Value>);
            if let Some(Ok(arguments)) = arguments {
                call["function"]["arguments"] = arguments;
            }
        }
    }
    Ok(message.into())
}

fn part_text(part: &Value) -> Result<&str, String> {
    let text = part["text"].as_str().filter(|_| part["type"] == "text");
    text.ok_or_else(|| "has a part that is no text; the model reads nothing else".into())
}

/// A seed that nobody asked for: the system's source of hash keys is random.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
