//! Language models over HTTP, in the form of the OpenAI API.
//!
//! One thread owns the [`Engine`](cupola_llm::Engine) and continues all texts together (`service`), or the
//! [`Encoder`](cupola_llm::Encoder) and describes them (`embedder`). Handlers turn bodies into requests (`request`,
//! `embeddings`) and events into answers, whole or as they come (`answer`, `routes`); `tools` reads calls of functions
//! out of them. `connection` ends what a client keeps waiting. A client that goes away cancels its texts. Nothing here
//! opens files or prints.

mod answer;
mod connection;
mod embedder;
mod embeddings;
mod error;
mod metrics;
mod request;
mod routes;
mod service;
mod tools;

pub use embedder::{EmbedStats, Embedder};
pub use service::{Service, Ticket};

use crate::error::{ApiError, Outcome};

use cupola_llm::constrain::TokenTrie;
use cupola_text::{ChatTemplate, Tokenizer};
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;

/// What is served.
pub struct Model {
    /// Name that clients see.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// How conversations become text; without it there are none.
    pub template: Option<ChatTemplate>,
    /// What it does with texts.
    pub work: Work,
    /// Its tokens by their bytes, made when first needed.
    trie: OnceLock<Arc<TokenTrie>>,
}

/// What a model does with texts.
pub enum Work {
    /// It continues them.
    Continue(Service),
    /// It describes each by a vector.
    Describe(Embedder),
}

impl Model {
    /// A model under a name.
    pub fn new(
        name: String,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        work: Work,
    ) -> Model {
        Model {
            name,
            tokenizer,
            template,
            work,
            trie: OnceLock::new(),
        }
    }

    /// Who continues texts.
    pub(crate) fn service(&self) -> Outcome<&Service> {
        let what = || {
            let name = &self.name;
            ApiError::bad(format!(
                "{name} does not generate text; it describes texts, by /v1/embeddings"
            ))
        };
        match &self.work {
            Work::Continue(service) => Ok(service),
            Work::Describe(_) => Err(what()),
        }
    }

    /// Who describes texts.
    pub(crate) fn embedder(&self) -> Outcome<&Embedder> {
        let what = || {
            let name = &self.name;
            ApiError::bad(format!(
                "{name} gives no vectors of texts; it generates text, by /v1/chat/completions"
            ))
        };
        match &self.work {
            Work::Describe(embedder) => Ok(embedder),
            Work::Continue(_) => Err(what()),
        }
    }

    /// Most tokens of a text.
    pub(crate) fn context_len(&self) -> usize {
        match &self.work {
            Work::Continue(service) => service.context_len(),
            Work::Describe(embedder) => embedder.context_len(),
        }
    }

    /// The tokens of a vocabulary of `vocab_len`, by their bytes.
    pub(crate) fn trie(&self, vocab_len: usize) -> Arc<TokenTrie> {
        let make = || Arc::new(TokenTrie::of(&self.tokenizer, vocab_len));
        self.trie.get_or_init(make).clone()
    }
}

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What clients must send as `Authorization: Bearer`, if anything.
    pub api_key: Option<String>,
    /// Most bytes of a body.
    pub body_size: usize,
    /// Longest time of a request, from its head to the end of the answer.
    pub timeout: Duration,
    /// Longest time that a client may take to send the head of a request, and then its body, and to take something of
    /// an answer that waits for it; no longer than `timeout`.
    pub patience: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            api_key: None,
            body_size: 4 << 20,
            timeout: Duration::from_secs(600),
            patience: Duration::from_secs(30),
        }
    }
}

/// Serves until `stop` is done; requests under way are then answered to their end.
pub async fn serve(
    listener: TcpListener,
    model: Model,
    options: ServerOptions,
    stop: impl Future<Output = ()>,
) {
    let router = routes::router(Arc::new(model), &options);
    let patience = options.patience.min(options.timeout);
    connection::serve(listener, router, patience, stop).await;
}
