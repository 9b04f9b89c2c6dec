//! From events of the engine to answers, whole or piece by piece.

use crate::Model;
use crate::error::{ApiError, Outcome};
use crate::request::Job;
use crate::service::Ticket;
use crate::tools::{Part, Reader};
use axum::http::StatusCode;
use cupola_llm::{Event, FinishReason, LogProb, LogProbs, Transcript};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Which of the two forms of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Chat,
    Completion,
}

/// Tokens of a request and its answers.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    prompt: usize,
    reused: usize,
    generated: usize,
}

impl Used {
    fn document(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": { "cached_tokens": self.reused },
        })
    }
}

/// A part of one answer.
#[derive(Default)]
pub(crate) struct Piece {
    choice: usize,
    text: String,
    /// Parts of calls, in their order.
    calls: Vec<Part>,
    log_probs: Vec<LogProbs>,
    /// Characters of the tokens before this part, for log-probabilities.
    offset: usize,
    finish: Option<&'static str>,
}

/// One answer while it comes.
#[derive(Clone)]
struct Speaker {
    transcript: Transcript,
    /// Finds calls in it.
    reader: Option<Reader>,
    offset: usize,
    has_ended: bool,
}

/// The answers to one request while they come.
pub(crate) struct Answers {
    model: Arc<Model>,
    form: Form,
    ticket: Ticket,
    speakers: Vec<Speaker>,
    /// The token whose name stands before calls, where it is a special one, and that name.
    mark: Option<(u32, &'static str)>,
    /// What each answer begins with.
    echo: Vec<String>,
    used: Used,
    id: String,
    created: u64,
    deadline: Instant,
}

impl Answers {
    /// Hands a job to the engine.
    pub async fn start(
        model: Arc<Model>,
        job: &Job,
        form: Form,
        deadline: Instant,
    ) -> Outcome<Answers> {
        let service = model.service()?;
        let requests = job.requests(&model, service);
        let count = requests.len();
        let ticket = service.submit(requests).await?;
        let speaker = Speaker {
            transcript: Transcript::new(&model.tokenizer, &job.stops),
            reader: job.calling.clone().map(Reader::new),
            offset: 0,
            has_ended: false,
        };
        let mark = job.calling.as_ref().and_then(|calling| {
            let mark = calling.form.mark()?;
            let token = model.tokenizer.encode(mark, false, true).ok()?;
            let [token] = token[..] else { return None };
            model.tokenizer.is_special(token).then_some((token, mark))
        });
        let echo = job.echo.iter();
        let echo = echo.flat_map(|text| std::iter::repeat_n(text.clone(), job.choices));
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let prefix = match form {
            Form::Chat => "chatcmpl",
            Form::Completion => "cmpl",
        };
        Ok(Answers {
            form,
            ticket,
            speakers: vec![speaker; count],
            mark,
            echo: echo.collect(),
            used: Used {
                prompt: job.prompts.iter().map(Vec::len).sum(),
                ..Used::default()
            },
            id: format!("{prefix}-{:x}", created.as_nanos()),
            created: created.as_secs(),
            deadline,
            model,
        })
    }

    /// The next part of any answer; `None` when all have ended.
    pub async fn next(&mut self) -> Outcome<Option<Piece>> {
        while self.speakers.iter().any(|speaker| !speaker.has_ended) {
            let event = tokio::time::timeout_at(self.deadline, self.ticket.next()).await;
            let gone = || {
                let what = "the text was given up: it was not read as fast as it came, or the engine has ended";
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what)
            };
            let (choice, event) = event.map_err(|_| ApiError::late())?.ok_or_else(gone)?;
            let piece = self.take(choice, event)?;
            if piece.finish.is_some() || !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn take(&mut self, choice: usize, event: Event) -> Outcome<Piece> {
        let speaker = &mut self.speakers[choice];
        let mut piece = Piece {
            choice,
            offset: speaker.offset,
            ..Piece::default()
        };
        // Events of an answer that was ended here may still be under way.
        if speaker.has_ended {
            return Ok(piece);
        }
        match event {
            Event::Prefill { .. } => return Ok(piece),
            Event::Failed { error, .. } => return Err(error.into()),
            Event::Token {
                token, log_probs, ..
            } => {
                self.used.generated += 1;
                piece.text = speaker.transcript.push(token);
                if let Some((_, mark)) = self.mark.filter(|(special, _)| *special == token) {
                    piece.text.push_str(mark);
                }
                if let Some(log_probs) = log_probs {
                    let bytes = self.model.tokenizer.token_bytes(token);
                    speaker.offset += String::from_utf8_lossy(bytes).chars().count();
                    piece.log_probs.push(log_probs);
                }
                if speaker.transcript.is_stopped() {
                    piece.finish = Some("stop");
                    self.ticket.cancel(choice);
                }
            }
            Event::Finished { reason, usage, .. } => {
                self.used.reused += usage.reused;
                piece.text = speaker.transcript.finish();
                piece.finish = Some(match reason {
                    FinishReason::EndToken(_) | FinishReason::Constraint => "stop",
                    FinishReason::Length | FinishReason::Context => "length",
                });
            }
        }
        if let Some(reader) = &mut speaker.reader {
            let ended = piece.finish.is_some();
            piece.read(reader);
            if piece.finish.is_some() && !ended {
                self.ticket.cancel(choice);
            }
        }
        speaker.has_ended = piece.finish.is_some();
        Ok(piece)
    }

    /// The whole answer, when all parts are there.
    pub async fn whole(mut self) -> Outcome<Value> {
        let mut all: Vec<Piece> = vec![];
        for choice in 0..self.speakers.len() {
            all.push(Piece {
                choice,
                text: self.echo.get(choice).cloned().unwrap_or_default(),
                ..Piece::default()
            });
        }
        while let Some(piece) = self.next().await? {
            let whole = &mut all[piece.choice];
            whole.text.push_str(&piece.text);
            whole.calls.extend(piece.calls);
            whole.log_probs.extend(piece.log_probs);
            whole.finish = piece.finish;
        }
        let choices = all.iter().map(|piece| match self.form {
            Form::Chat => json!({
                "index": piece.choice,
                "message": piece.message(),
                "logprobs": self.log_probs(&piece.log_probs),
                "finish_reason": piece.finish,
            }),
            Form::Completion => self.completion(piece),
        });
        let choices: Vec<Value> = choices.collect();
        let mut document = self.document("chat.completion", choices);
        document["usage"] = self.used.document();
        Ok(document)
    }

    /// The first part of each answer: who speaks, or what is repeated.
    pub fn begin(&self) -> Vec<Value> {
        let places = 0..self.speakers.len();
        match self.form {
            Form::Chat => {
                let choice = |i| {
                    json!({
                        "index": i,
                        "delta": { "role": "assistant", "content": "" },
                        "logprobs": null,
                        "finish_reason": null,
                    })
                };
                vec![self.document("chat.completion.chunk", places.map(choice).collect())]
            }
            Form::Completion => {
                let pieces = self.echo.iter().zip(places);
                let piece = |(text, choice): (&String, usize)| Piece {
                    choice,
                    text: text.clone(),
                    ..Piece::default()
                };
                pieces.map(|one| self.chunk(&piece(one))).collect()
            }
        }
    }

    /// A part of an answer as it is streamed.
    pub fn chunk(&self, piece: &Piece) -> Value {
        let choice = match self.form {
            Form::Chat => json!({
                "index": piece.choice,
                "delta": piece.delta(),
                "logprobs": self.log_probs(&piece.log_probs),
                "finish_reason": piece.finish,
            }),
            Form::Completion => self.completion(piece),
        };
        self.document("chat.completion.chunk", vec![choice])
    }

    /// The last part of a stream that tells what was used.
    pub fn usage(&self) -> Value {
        let mut document = self.document("chat.completion.chunk", vec![]);
        document["usage"] = self.used.document();
        document
    }

    fn document(&self, chat: &str, choices: Vec<Value>) -> Value {
        let object = match self.form {
            Form::Chat => chat,
            Form::Completion => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model.name,
            "choices": choices,
        })
    }

    /// Log-probabilities of a conversation's tokens.
    fn log_probs(&self, all: &[LogProbs]) -> Value {
        let token = |one: &LogProb| {
            let bytes = self.model.tokenizer.token_bytes(one.token);
            json!({ "token": String::from_utf8_lossy(bytes), "logprob": one.log_prob, "bytes": bytes })
        };
        let content = all.iter().map(|found| {
            let mut entry = token(&found.chosen);
            entry["top_logprobs"] = found.top.iter().map(token).collect();
            entry
        });
        match all.is_empty() {
            true => Value::Null,
            false => json!({ "content": content.collect::<Vec<_>>() }),
        }
    }

    /// A choice of a plain completion.
    fn completion(&self, piece: &Piece) -> Value {
        let text = |token: u32| {
            String::from_utf8_lossy(self.model.tokenizer.token_bytes(token)).into_owned()
        };
        let all = &piece.log_probs;
        let top = all.iter().map(|found| {
            let each = found.top.iter().map(|t| (text(t.token), json!(t.log_prob)));
            Value::Object(each.collect())
        });
        let tokens = all.iter().map(|f| text(f.chosen.token));
        let offsets = tokens.clone().scan(piece.offset, |at, text| {
            let here = *at;
            *at += text.chars().count();
            Some(here)
        });
        let log_probs = match all.is_empty() {
            true => Value::Null,
            false => json!({
                "text_offset": offsets.collect::<Vec<_>>(),
                "tokens": tokens.collect::<Vec<_>>(),
                "token_logprobs": all.iter().map(|f| f.chosen.log_prob).collect::<Vec<_>>(),
                "top_logprobs": top.collect::<Vec<_>>(),
            }),
        };
        json!({
            "index": piece.choice,
            "text": piece.text,
            "logprobs": log_probs,
            "finish_reason": piece.finish,
        })
    }
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.calls.is_empty() && self.log_probs.is_empty()
    }

    /// Reads calls out of the text; the answer ends with the last that there may be.
    fn read(&mut self, reader: &mut Reader) {
        let mut parts = reader.push(&std::mem::take(&mut self.text));
        if self.finish.is_none() && reader.is_done() {
            self.finish = Some("stop");
        }
        if self.finish.is_some() {
            parts.extend(reader.finish());
        }
        if self.finish == Some("stop") && reader.calls() > 0 {
            self.finish = Some("tool_calls");
        }
        for part in parts {
            match part {
                Part::Text(text) => self.text.push_str(&text),
                part => self.calls.push(part),
            }
        }
    }

    /// A whole answer as a message.
    fn message(&self) -> Value {
        let mut calls: Vec<Value> = vec![];
        for part in &self.calls {
            match part {
                Part::Text(_) => {}
                Part::Call { id, name, .. } => calls.push(json!({
                    "id": id,
                    "type": "function",
                    "function": { "name": name, "arguments": "" },
                })),
                Part::Arguments { index, text } => {
                    let arguments = &mut calls[*index]["function"]["arguments"];
                    *arguments = (arguments.as_str().unwrap_or_default().to_owned() + text).into();
                }
            }
        }
        if calls.is_empty() {
            return json!({ "role": "assistant", "content": self.text });
        }
        let content = Some(&self.text).filter(|text| !text.is_empty());
        json!({ "role": "assistant", "content": content, "tool_calls": calls })
    }

    /// What a part of an answer adds to its message.
    fn delta(&self) -> Value {
        let calls = self.calls.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Call { index, id, name } => Some(json!({
                "index": index,
                "id": id,
                "type": "function",
                "function": { "name": name, "arguments": "" },
            })),
            Part::Arguments { index, text } => {
                Some(json!({ "index": index, "function": { "arguments": text } }))
            }
        });
        let calls: Vec<Value> = calls.collect();
        let mut delta = json!({});
        if !self.text.is_empty() || !self.log_probs.is_empty() && calls.is_empty() {
            delta["content"] = self.text.clone().into();
        }
        if !calls.is_empty() {
            delta["tool_calls"] = calls.into();
        }
        delta
    }
}
