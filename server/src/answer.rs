//! From events of the engine to answers, whole or piece by piece.

use crate::Model;
use crate::error::{ApiError, Outcome};
use crate::request::Job;
use crate::service::Ticket;
use axum::http::StatusCode;
use cupola_llm::{Event, FinishReason, LogProb, LogProbs, Transcript};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
pub(crate) struct Piece {
    choice: usize,
    text: String,
    log_probs: Vec<LogProbs>,
    finish: Option<&'static str>,
}

/// The answers to one request while they come.
pub(crate) struct Answers {
    model: Arc<Model>,
    form: Form,
    ticket: Ticket,
    transcripts: Vec<Option<Transcript>>,
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
        timeout: Duration,
    ) -> Outcome<Answers> {
        let requests = job.requests(&model);
        let count = requests.len();
        let ticket = model.service.submit(requests).await?;
        let transcript = Transcript::new(&model.tokenizer, &job.stops);
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let prefix = match form {
            Form::Chat => "chatcmpl",
            Form::Completion => "cmpl",
        };
        Ok(Answers {
            model,
            form,
            ticket,
            transcripts: vec![Some(transcript); count],
            used: Used {
                prompt: job.prompts.iter().map(Vec::len).sum(),
                ..Used::default()
            },
            id: format!("{prefix}-{:x}", created.as_nanos()),
            created: created.as_secs(),
            deadline: Instant::now() + timeout,
        })
    }

    /// The next part of any answer; `None` when all have ended.
    pub async fn next(&mut self) -> Outcome<Option<Piece>> {
        while self.transcripts.iter().any(Option::is_some) {
            let event = tokio::time::timeout_at(self.deadline, self.ticket.next()).await;
            let late = |_| ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the request took too long");
            let gone = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has ended");
            let (choice, event) = event.map_err(late)?.ok_or_else(gone)?;
            if let Some(piece) = self.take(choice, event)? {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    fn take(&mut self, choice: usize, event: Event) -> Outcome<Option<Piece>> {
        // Events of an answer that a string ended may still be under way.
        let Some(transcript) = &mut self.transcripts[choice] else {
            return Ok(None);
        };
        let mut piece = Piece {
            choice,
            text: String::new(),
            log_probs: vec![],
            finish: None,
        };
        match event {
            Event::Prefill { .. } => return Ok(None),
            Event::Failed { error, .. } => return Err(error.into()),
            Event::Token {
                token, log_probs, ..
            } => {
                self.used.generated += 1;
                piece.text = transcript.push(token);
                piece.log_probs.extend(log_probs);
                if transcript.is_stopped() {
                    piece.finish = Some("stop");
                    self.ticket.cancel(choice);
                }
            }
            Event::Finished { reason, usage, .. } => {
                self.used.reused += usage.reused;
                piece.text = transcript.finish();
                piece.finish = Some(match reason {
                    FinishReason::EndToken(_) | FinishReason::Constraint => "stop",
                    FinishReason::Length | FinishReason::Context => "length",
                });
            }
        }
        if piece.finish.is_some() {
            self.transcripts[choice] = None;
        }
        Ok(Some(piece))
    }

    /// The whole answer, when all parts are there.
    pub async fn whole(mut self) -> Outcome<Value> {
        let mut all: Vec<Piece> = (0..self.transcripts.len())
            .map(|choice| Piece {
                choice,
                text: String::new(),
                log_probs: vec![],
                finish: None,
            })
            .collect();
        while let Some(piece) = self.next().await? {
            let whole = &mut all[piece.choice];
            whole.text.push_str(&piece.text);
            whole.log_probs.extend(piece.log_probs);
            whole.finish = piece.finish;
        }
        let choices = all.iter().map(|piece| match self.form {
            Form::Chat => json!({
                "index": piece.choice,
                "message": { "role": "assistant", "content": piece.text },
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

    /// The first part of each answer of a conversation: who speaks.
    pub fn begin(&self) -> Option<Value> {
        let choice = |i| {
            json!({
                "index": i,
                "delta": { "role": "assistant", "content": "" },
                "logprobs": null,
                "finish_reason": null,
            })
        };
        let choices = (0..self.transcripts.len()).map(choice).collect();
        (self.form == Form::Chat).then(|| self.document("chat.completion.chunk", choices))
    }

    /// A part of an answer as it is streamed.
    pub fn chunk(&self, piece: &Piece) -> Value {
        let choice = match self.form {
            Form::Chat => {
                let delta = match piece.text.is_empty() && piece.finish.is_some() {
                    true => json!({}),
                    false => json!({ "content": piece.text }),
                };
                json!({
                    "index": piece.choice,
                    "delta": delta,
                    "logprobs": self.log_probs(&piece.log_probs),
                    "finish_reason": piece.finish,
                })
            }
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
        let log_probs = match all.is_empty() {
            true => Value::Null,
            false => json!({
                "tokens": all.iter().map(|f| text(f.chosen.token)).collect::<Vec<_>>(),
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
