//! `cupola chat`: a conversation on standard input and output.

use super::generate::{constrainer, request, show};
use super::{USUAL_CONTEXT, run};
use crate::args::ChatArgs;
use crate::fail::{Failure, Outcome};
use crate::interrupt::Interrupt;
use cupola::language::TextModel;
use cupola::llm::constrain::Constrainer;
use cupola::llm::{Engine, Transcript};
use cupola::text::ChatTemplate;
use serde_json::{Map, Value as Json, json};
use std::io::{BufRead, IsTerminal, Write};

/// A conversation with a model.
struct Conversation<'a> {
    args: &'a ChatArgs,
    model: TextModel,
    template: ChatTemplate,
    engine: Engine,
    constrainer: Option<Constrainer>,
    interrupt: Interrupt,
    messages: Vec<Json>,
}

/// Answers messages until standard input ends.
pub fn chat(args: &ChatArgs) -> Outcome {
    let template = cupola::language::chat_template(&args.model)?;
    let template = template.ok_or_else(|| {
        let what = "the model has no chat template; 'cupola generate' continues any text";
        Failure::new(4, "unsupported", what)
    })?;
    let context = args.generation.context;
    let generation = &args.generation;
    let import = super::import(&args.compile, context, generation.cache);
    let (model, draft) =
        super::open_with_draft(&args.model, &args.compile, &generation.draft, &import)?;
    let most = context
        .unwrap_or(USUAL_CONTEXT)
        .min(model.config.context_len);
    let deterministic = args.compile.deterministic;
    let engine = run::engine(
        &model,
        draft.as_ref(),
        &args.generation,
        deterministic,
        most,
    )?;
    let mut conversation = Conversation {
        constrainer: constrainer(&model, &args.generation, engine.decoder().vocab_len())?,
        args,
        model,
        template,
        engine,
        interrupt: Interrupt::watch(),
        messages: vec![],
    };
    conversation.begin();
    let prompts = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock();
    loop {
        if prompts {
            eprint!("> ");
            // A prompt that cannot be shown is not missed.
            let _ = std::io::stderr().flush();
        }
        conversation.interrupt.set_idle(true);
        let mut line = vec![];
        let read = lines.read_until(b'\n', &mut line);
        if read.map_err(|e| Failure::new(1, "io", format!("standard input: {e}")))? == 0 {
            return Ok(());
        }
        conversation.interrupt.set_idle(false);
        match String::from_utf8_lossy(&line).trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/clear" => conversation.begin(),
            message => conversation.answer(message)?,
        }
    }
}

impl Conversation<'_> {
    /// Forgets all messages.
    fn begin(&mut self) {
        let system = self.args.system.iter();
        let system = system.map(|text| json!({ "role": "system", "content": text }));
        self.messages = system.collect();
    }

    /// Prints the answer to a message as it comes. A message that leaves no room for one is refused, and forgotten.
    fn answer(&mut self, message: &str) -> Outcome {
        self.messages
            .push(json!({ "role": "user", "content": message }));
        let prompt = self
            .template
            .render(&json!(self.messages), None, true, &Map::new());
        let prompt = prompt.map_err(cupola::Error::from)?;
        // Templates spell the tokens around a text themselves.
        let prompt = self.model.tokenizer.encode(&prompt, false, true);
        let prompt = prompt.map_err(cupola::Error::from)?;
        if prompt.len() >= self.engine.context_len() {
            self.messages.pop();
            let what = format!(
                "the conversation has {} tokens, the context {}; '/clear' begins another, --context makes room",
                prompt.len(),
                self.engine.context_len()
            );
            eprintln!("{}", Failure::limit(what).line());
            return Ok(());
        }
        let generation = &self.args.generation;
        let transcript = Transcript::new(&self.model.tokenizer, &generation.stop);
        let request = request(
            &self.model,
            prompt,
            generation,
            self.args.compile.seed,
            None,
            self.constrainer.as_ref(),
        );
        let answer = run::generate(&mut self.engine, request, transcript, &self.interrupt, show)?;
        println!();
        tracing::info!(
            "{} of {} prompt tokens were known; {:.1} tokens/s",
            answer.usage.reused,
            answer.usage.prompt,
            answer.decode_rate()
        );
        self.messages
            .push(json!({ "role": "assistant", "content": answer.text }));
        Ok(())
    }
}
