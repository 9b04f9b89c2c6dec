//! Paths and their handlers.

use crate::answer::{Answers, Form};
use crate::error::{ApiError, Outcome};
use crate::metrics::{self, Counters};
use crate::request::{self, ChatBody, CompletionBody, Job};
use crate::{Model, ServerOptions};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What handlers share.
#[derive(Clone)]
struct Shared {
    model: Arc<Model>,
    counters: Arc<Counters>,
    api_key: Option<Arc<str>>,
    timeout: Duration,
}

/// All paths.
pub(crate) fn router(model: Arc<Model>, options: &ServerOptions) -> Router {
    let shared = Shared {
        model,
        counters: Arc::default(),
        api_key: options.api_key.as_deref().map(Arc::from),
        timeout: options.timeout,
    };
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/metrics", get(figures))
        .layer(middleware::from_fn_with_state(shared.clone(), check_key));
    Router::new()
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .merge(guarded)
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such path") })
        .layer(DefaultBodyLimit::max(options.body_size))
        .with_state(shared)
}

/// Lets in who knows the key. Keys are compared in a time that does not tell how much of one is right.
async fn check_key(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION);
    let sent = sent
        .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "))
        .unwrap_or_default();
    let known = shared.api_key.as_deref().is_none_or(|key| {
        let differs = key.bytes().zip(sent).fold(0, |all, (a, b)| all | (a ^ b));
        key.len() == sent.len() && differs == 0
    });
    match known {
        true => next.run(request).await,
        false => ApiError::new(StatusCode::UNAUTHORIZED, "the API key is wrong or missing")
            .into_response(),
    }
}

async fn models(State(shared): State<Shared>) -> Json<Value> {
    let model = json!({
        "id": shared.model.name,
        "object": "model",
        "created": 0,
        "owned_by": "cupola",
        "context_length": shared.model.service.context_len(),
    });
    Json(json!({ "object": "list", "data": [model] }))
}

async fn figures(State(shared): State<Shared>) -> Response {
    let text = metrics::text(&shared.counters, shared.model.service.stats());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn chat(State(shared): State<Shared>, body: Bytes) -> Response {
    let make = |model: &Model, body: &[u8]| request::read::<ChatBody>(body)?.job(model);
    respond(shared, body, Form::Chat, make).await
}

async fn completions(State(shared): State<Shared>, body: Bytes) -> Response {
    let make = |model: &Model, body: &[u8]| request::read::<CompletionBody>(body)?.job(model);
    respond(shared, body, Form::Completion, make).await
}

/// Answers a request for text.
async fn respond(
    shared: Shared,
    body: Bytes,
    form: Form,
    make: impl FnOnce(&Model, &[u8]) -> Outcome<Job> + Send + 'static,
) -> Response {
    shared.counters.requests.fetch_add(1, Ordering::Relaxed);
    let counters = shared.counters.clone();
    match answer(shared, body, form, make).await {
        Ok(response) => response,
        Err(error) => {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            error.into_response()
        }
    }
}

async fn answer(
    shared: Shared,
    body: Bytes,
    form: Form,
    make: impl FnOnce(&Model, &[u8]) -> Outcome<Job> + Send + 'static,
) -> Outcome<Response> {
    let model = shared.model.clone();
    // A long text takes long to encode.
    let job = tokio::task::spawn_blocking(move || make(&model, &body)).await;
    let lost = |_| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request could not be read",
        )
    };
    let job = job.map_err(lost)??;
    let answers = Answers::start(shared.model, &job, form, shared.timeout).await?;
    match job.streams {
        true => Ok(stream(answers, job.tells_usage)),
        false => Ok(Json(answers.whole().await?).into_response()),
    }
}

/// Answers piece by piece. A client that goes away drops the stream, and with it the texts.
fn stream(mut answers: Answers, tells_usage: bool) -> Response {
    let event = |document: &Value| Event::default().data(document.to_string());
    let events = async_stream::stream! {
        if let Some(first) = answers.begin() {
            yield Ok::<Event, Infallible>(event(&first));
        }
        loop {
            match answers.next().await {
                Ok(Some(piece)) => yield Ok(event(&answers.chunk(&piece))),
                Ok(None) => break,
                Err(error) => {
                    yield Ok(event(&error.document()));
                    return;
                }
            }
        }
        if tells_usage {
            yield Ok(event(&answers.usage()));
        }
        yield Ok(Event::default().data("[DONE]"));
    };
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}
