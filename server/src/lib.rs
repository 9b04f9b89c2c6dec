//! Language models over HTTP, in the form of the OpenAI API.
//!
//! One thread owns the [`Engine`](cupola_llm::Engine) and continues all texts together (`service`); handlers turn
//! bodies into requests (`request`) and events into answers, whole or as they come (`answer`, `routes`). A client that
//! goes away cancels its texts. Nothing here opens files or prints.

mod answer;
mod error;
mod metrics;
mod request;
mod routes;
mod service;

pub use service::{Service, Ticket};

use cupola_llm::constrain::TokenTrie;
use cupola_text::{ChatTemplate, Tokenizer};
use std::future::Future;
use std::io;
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
    /// Continues texts.
    pub service: Service,
    /// Its tokens by their bytes, made when first needed.
    trie: OnceLock<Arc<TokenTrie>>,
}

impl Model {
    /// A model under a name.
    pub fn new(
        name: String,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        service: Service,
    ) -> Model {
        Model {
            name,
            tokenizer,
            template,
            service,
            trie: OnceLock::new(),
        }
    }

    pub(crate) fn trie(&self) -> Arc<TokenTrie> {
        let make = || Arc::new(TokenTrie::of(&self.tokenizer, self.service.vocab_len()));
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
    /// Longest time of a request.
    pub timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            api_key: None,
            body_size: 4 << 20,
            timeout: Duration::from_secs(600),
        }
    }
}

/// Serves until `stop` is done; requests under way are then answered to their end.
///
/// # Errors
/// A listener that fails.
pub async fn serve(
    listener: TcpListener,
    model: Model,
    options: ServerOptions,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = routes::router(Arc::new(model), &options);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}
