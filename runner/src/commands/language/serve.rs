//! `cupola serve`: a language model over HTTP.

use super::USUAL_CONTEXT;
use crate::args::ServeArgs;
use crate::fail::{Failure, Outcome};
use cupola::language::{Kind, TextModel};
use cupola::llm::EngineOptions;
use cupola_server::{Embedder, Model, ServerOptions, Service, Work};
use std::io;
use std::time::Duration;

/// Serves until Ctrl-C.
pub fn serve(args: &ServeArgs) -> Outcome {
    let template = cupola::language::chat_template(&args.model)?;
    let import = super::import(&args.compile, args.context, args.cache);
    let (model, draft) = super::open_with_draft(&args.model, &args.compile, &args.draft, &import)?;
    let failed = |e: io::Error| Failure::new(1, "io", format!("{}:{}: {e}", args.host, args.port));
    let name = args.name.clone().unwrap_or_else(|| {
        let name = args.model.file_stem().unwrap_or_default();
        name.to_string_lossy().into_owned()
    });
    let work = work(args, &model, draft.as_ref())?.map_err(failed)?;
    let served = Model::new(name, model.tokenizer.clone(), template, work);
    let options = ServerOptions {
        api_key: args.api_key.clone(),
        body_size: args.body_size as usize,
        timeout: Duration::from_secs(args.timeout),
        ..ServerOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // They read bodies and encode texts; more would only take memory.
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime
        .block_on(async {
            let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port)).await?;
            eprintln!("listening on http://{}", listener.local_addr()?);
            cupola_server::serve(listener, served, options, ended()).await;
            Ok(())
        })
        .map_err(failed)
}

/// What does the model's work, on a thread of its own.
fn work(
    args: &ServeArgs,
    model: &TextModel,
    draft: Option<&TextModel>,
) -> Outcome<io::Result<Work>> {
    match model.config.kind {
        Kind::Encoder => {
            let encoder = model.encoder()?;
            Ok(Embedder::start(encoder, args.slots + args.queue).map(Work::Describe))
        }
        Kind::Decoder => {
            let context = args
                .context
                .unwrap_or(USUAL_CONTEXT)
                .min(model.config.context_len);
            let options = EngineOptions {
                slots: args.slots,
                queue: args.queue,
                shift: args.shift,
                draft_len: args.draft.draft_len,
                deterministic: args.compile.deterministic,
                ..EngineOptions::new(context)
            };
            let (positions, rows) = (context.saturating_mul(args.slots), options.rows);
            let mut engine = model.engine(positions, options)?;
            if let Some(draft) = draft {
                engine.set_drafter(Box::new(model.drafter(draft, positions, rows)?));
            }
            Ok(Service::start(engine).map(Work::Continue))
        }
    }
}

/// Done when the process is asked to end.
async fn ended() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    // Without a handler the signal ends the process.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
