//! The thread that owns the engine, and what handlers ask of it.

use cupola_llm::{Engine, EngineStats, Event, LlmError, Request, Result, SequenceId};
use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{Receiver as EventReceiver, Sender as EventSender, channel};
use tokio::sync::oneshot;

/// Most events of a request that nobody has read: who reads more slowly than that loses its texts.
const UNREAD: usize = 4096;

/// Continues texts on a thread of its own, which ends when all handles are gone. Clones share it.
#[derive(Clone)]
pub struct Service {
    commands: Sender<Command>,
    thread: Arc<JoinHandle<()>>,
    stats: Arc<Mutex<EngineStats>>,
    context_len: usize,
    vocab_len: usize,
}

/// Texts under way; those that have not ended are cancelled when it is dropped.
pub struct Ticket {
    ids: Vec<SequenceId>,
    events: EventReceiver<Event>,
    commands: Sender<Command>,
}

enum Command {
    Submit {
        requests: Vec<Request>,
        events: EventSender<Event>,
        taken: oneshot::Sender<Result<Vec<SequenceId>>>,
    },
    Cancel(Vec<SequenceId>),
}

impl Service {
    /// Starts the thread.
    ///
    /// # Errors
    /// A system that has no more threads.
    pub fn start(engine: Engine) -> io::Result<Service> {
        let (commands, received) = mpsc::channel();
        let stats = Arc::new(Mutex::new(engine.stats()));
        let (context_len, vocab_len) = (engine.context_len(), engine.decoder().vocab_len());
        let mut worker = Worker {
            engine,
            readers: HashMap::new(),
            stats: stats.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("cupola-engine".into())
            .stack_size(64 << 20)
            .spawn(move || worker.run(&received))?;
        Ok(Service {
            commands,
            thread: Arc::new(thread),
            stats,
            context_len,
            vocab_len,
        })
    }

    /// Whether its thread runs. It ends early only by a mistake of ours.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Figures of the engine after its last step.
    pub fn stats(&self) -> EngineStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most tokens of a text.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// Tokens that logits are given for.
    pub fn vocab_len(&self) -> usize {
        self.vocab_len
    }

    /// Takes texts, all or none.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub async fn submit(&self, requests: Vec<Request>) -> Result<Ticket> {
        let (sender, events) = channel(UNREAD);
        let (taken, answer) = oneshot::channel();
        let command = Command::Submit {
            requests,
            events: sender,
            taken,
        };
        let gone = || LlmError::Request("the engine has ended".into());
        self.commands.send(command).map_err(|_| gone())?;
        Ok(Ticket {
            ids: answer.await.map_err(|_| gone())??,
            events,
            commands: self.commands.clone(),
        })
    }
}

impl Ticket {
    /// The next event, with the place of its text among those submitted; `None` when the texts were given up, since too
    /// many events were not read or the engine has ended.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        let event = self.events.recv().await?;
        let place = self.ids.iter().position(|id| *id == event.sequence());
        place.map(|place| (place, event))
    }

    /// Ends one of the texts.
    pub fn cancel(&self, place: usize) {
        // An engine that has ended has nothing to cancel.
        let _ = self.commands.send(Command::Cancel(vec![self.ids[place]]));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // As in `cancel`.
        let _ = self
            .commands
            .send(Command::Cancel(std::mem::take(&mut self.ids)));
    }
}

struct Worker {
    engine: Engine,
    readers: HashMap<SequenceId, EventSender<Event>>,
    stats: Arc<Mutex<EngineStats>>,
}

impl Worker {
    fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            if self.engine.is_idle() {
                self.tell_stats();
                match commands.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            match self.engine.step() {
                Ok(events) => events.into_iter().for_each(|event| self.tell(event)),
                Err(error) => self.fail(&error),
            }
            self.tell_stats();
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit {
                requests,
                events,
                taken,
            } => {
                let ids = self.submit(requests);
                if let Ok(ids) = &ids {
                    self.readers
                        .extend(ids.iter().map(|id| (*id, events.clone())));
                }
                if let Err(Ok(ids)) = taken.send(ids) {
                    self.cancel(&ids);
                }
            }
            Command::Cancel(ids) => self.cancel(&ids),
        }
    }

    /// Takes all of several texts, or none.
    fn submit(&mut self, requests: Vec<Request>) -> Result<Vec<SequenceId>> {
        let mut ids = vec![];
        for request in requests {
            match self.engine.submit(request) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    self.cancel(&ids);
                    return Err(error);
                }
            }
        }
        Ok(ids)
    }

    fn cancel(&mut self, ids: &[SequenceId]) {
        for id in ids {
            self.readers.remove(id);
            self.engine.cancel(*id);
        }
    }

    fn tell(&mut self, event: Event) {
        let id = event.sequence();
        let ends = matches!(event, Event::Finished { .. } | Event::Failed { .. });
        let heard = self
            .readers
            .get(&id)
            .is_some_and(|r| r.try_send(event).is_ok());
        if !heard {
            self.cancel(&[id]);
        } else if ends {
            self.readers.remove(&id);
        }
    }

    /// A step failed: what it failed for may be any of the texts.
    fn fail(&mut self, error: &LlmError) {
        tracing::error!("a step failed: {error}");
        for (sequence, reader) in std::mem::take(&mut self.readers) {
            self.engine.cancel(sequence);
            let error = error.clone();
            // Who does not listen need not know.
            let _ = reader.try_send(Event::Failed { sequence, error });
        }
    }

    fn tell_stats(&self) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.engine.stats();
    }
}
