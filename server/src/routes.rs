//! Paths and their handlers.

use crate::answer::{Answers, Form};
use crate::embeddings::EmbeddingBody;
use crate::error::{ApiError, Outcome};
use crate::metrics::{self, Counters};
use crate::request::{self, ChatBody, CompletionBody, Job};
use crate::{Model, ServerOptions, Work};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
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
use tokio::time::{Instant, timeout_at};

/// What handlers share.
#[derive(Clone)]
struct Shared {
    model: Arc<Model>,
    counters: Arc<Counters>,
    api_key: Option<Arc<str>>,
    timeout: Duration,
    patience: Duration,
}

/// All paths.
pub(crate) fn router(model: Arc<Model>, options: &ServerOptions) -> Router {
    let shared = Shared {
        model,
        counters: Arc::default(),
        api_key: options.api_key.as_deref().map(Arc::from),
        timeout: options.timeout,
        patience: options.patience.min(options.timeout),
    };
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(one_model))
        .route("/metrics", get(figures))
        .layer(middleware::from_fn_with_state(shared.clone(), check_key));
    Router::new()
        .route("/health", get(health))
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .merge(guarded)
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            let what = "the path does not take this method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, what)
        })
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

async fn health(State(shared): State<Shared>) -> Response {
    let alive = match &shared.model.work {
        Work::Continue(service) => service.is_alive(),
        Work::Describe(embedder) => embedder.is_alive(),
    };
    match alive {
        true => Json(json!({ "status": "ok" })).into_response(),
        false => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the engine has ended").into_response()
        }
    }
}

fn model_document(model: &Model) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "cupola",
        "context_length": model.context_len(),
    })
}

async fn models(State(shared): State<Shared>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [model_document(&shared.model)] }))
}

async fn one_model(State(shared): State<Shared>, Path(name): Path<String>) -> Outcome<Json<Value>> {
    match name == shared.model.name {
        true => Ok(Json(model_document(&shared.model))),
        false => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "there is no such model",
        )),
    }
}

async fn figures(State(shared): State<Shared>) -> Response {
    let text = match &shared.model.work {
        Work::Continue(service) => metrics::generation(&shared.counters, service.stats()),
        Work::Describe(embedder) => metrics::embedding(&shared.counters, embedder.stats()),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn chat(State(shared): State<Shared>, request: Request) -> Response {
    let make = |model: &Model, body: &[u8]| request::read::<ChatBody>(body)?.job(model);
    counted(&shared, answer(&shared, request, Form::Chat, make).await)
}

async fn completions(State(shared): State<Shared>, request: Request) -> Response {
    let make = |model: &Model, body: &[u8]| request::read::<CompletionBody>(body)?.job(model);
    counted(
        &shared,
        answer(&shared, request, Form::Completion, make).await,
    )
}

async fn embeddings(State(shared): State<Shared>, request: Request) -> Response {
    let deadline = Instant::now() + shared.timeout;
    let found = async {
        let make = |model: &Model, body: &[u8]| request::read::<EmbeddingBody>(body)?.job(model);
        let job = take(&shared, request, make).await?;
        let run = timeout_at(deadline, job.run(&shared.model));
        Ok(Json(run.await.map_err(|_| ApiError::late())??).into_response())
    };
    counted(&shared, found.await)
}

/// Counts a request for texts or vectors.
fn counted(shared: &Shared, outcome: Outcome<Response>) -> Response {
    shared.counters.requests.fetch_add(1, Ordering::Relaxed);
    outcome.unwrap_or_else(|error| {
        shared.counters.refused.fetch_add(1, Ordering::Relaxed);
        error.into_response()
    })
}

/// What a request asks for, as `make` reads it of the body.
async fn take<T: Send + 'static>(
    shared: &Shared,
    request: Request,
    make: impl FnOnce(&Model, &[u8]) -> Outcome<T> + Send + 'static,
) -> Outcome<T> {
    let body = tokio::time::timeout(shared.patience, Bytes::from_request(request, &())).await;
    let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let body = body.map_err(slow)?;
    let body = body.map_err(|e| ApiError::new(e.status(), e.body_text()))?;
    let model = shared.model.clone();
    // A long text takes long to encode.
    let job = tokio::task::spawn_blocking(move || make(&model, &body)).await;
    let what = "the request could not be read";
    job.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, what))?
}

/// Answers a request for text.
async fn answer(
    shared: &Shared,
    request: Request,
    form: Form,
    make: impl FnOnce(&Model, &[u8]) -> Outcome<Job> + Send + 'static,
) -> Outcome<Response> {
    let deadline = Instant::now() + shared.timeout;
    let job = take(shared, request, make).await?;
    let answers = Answers::start(shared.model.clone(), &job, form, deadline).await?;
    match job.streams {
        true => Ok(stream(answers, job.tells_usage)),
        false => Ok(Json(answers.whole().await?).into_response()),
    }
}

/// Answers piece by piece. A client that goes away drops the stream, and with it the texts.
fn stream(mut answers: Answers, tells_usage: bool) -> Response {
    let event = |document: &Value| Event::default().data(document.to_string());
    let events = async_stream::stream! {
        for first in answers.begin() {
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
