//! The thread that owns an encoder: texts of all requests in common runs.

use cupola_llm::{Encoder, LlmError, Result};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Tokens of a round, after which new requests have their turn: a few runs of an encoder.
const ROUND: usize = 8192;

/// Describes texts by vectors on a thread of its own, which ends when all handles are gone. Clones share it.
#[derive(Clone)]
pub struct Embedder {
    orders: Sender<Order>,
    shared: Arc<Shared>,
    thread: Arc<JoinHandle<()>>,
    context_len: usize,
    vocab_len: usize,
    queue: usize,
}

/// What an embedder has done, and what it is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbedStats {
    /// Rounds of runs.
    pub rounds: u64,
    /// Texts that were described.
    pub texts: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Requests that wait or are under way.
    pub waiting: usize,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicUsize,
    rounds: AtomicU64,
    texts: AtomicU64,
    tokens: AtomicU64,
}

/// Texts of one request.
struct Order {
    texts: Vec<Vec<u32>>,
    /// The texts by their length, so that a round has texts of like lengths.
    by_len: Vec<usize>,
    /// How many of those are done.
    done: usize,
    vectors: Vec<Vec<f32>>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>>>,
    waits: Waits,
}

/// A request counts among those that wait until this is dropped.
struct Waits(Arc<Shared>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Embedder {
    /// Starts the thread. More than `queue` requests at a time are refused.
    ///
    /// # Errors
    /// A system that has no more threads.
    pub fn start(encoder: Encoder, queue: usize) -> io::Result<Embedder> {
        let (orders, received) = mpsc::channel();
        let shared = Arc::<Shared>::default();
        let (context_len, vocab_len) = (encoder.context_len(), encoder.vocab_len());
        let mut worker = Worker {
            encoder,
            orders: vec![],
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("cupola-embedder".into())
            .stack_size(64 << 20)
            .spawn(move || worker.run(&received))?;
        Ok(Embedder {
            orders,
            shared,
            thread: Arc::new(thread),
            context_len,
            vocab_len,
            queue,
        })
    }

    /// Most tokens of a text.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// Tokens that there are.
    pub fn vocab_len(&self) -> usize {
        self.vocab_len
    }

    /// Whether its thread runs. It ends early only by a mistake of ours.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Figures.
    pub fn stats(&self) -> EmbedStats {
        let count = |c: &AtomicU64| c.load(Ordering::Relaxed);
        EmbedStats {
            rounds: count(&self.shared.rounds),
            texts: count(&self.shared.texts),
            tokens: count(&self.shared.tokens),
            waiting: self.shared.waiting.load(Ordering::Relaxed),
        }
    }

    /// The vectors of texts, in their order. Dropping the future gives them up.
    ///
    /// # Errors
    /// As [`Encoder::embed`]; [`LlmError::QueueFull`].
    pub async fn embed(&self, texts: Vec<Vec<u32>>) -> Result<Vec<Vec<f32>>> {
        let waiting = self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(self.shared.clone());
        if waiting >= self.queue {
            return Err(LlmError::QueueFull(waiting));
        }
        let (reply, answer) = oneshot::channel();
        let mut by_len: Vec<usize> = (0..texts.len()).collect();
        by_len.sort_by_key(|i| std::cmp::Reverse(texts[*i].len()));
        let order = Order {
            by_len,
            done: 0,
            vectors: vec![vec![]; texts.len()],
            texts,
            reply,
            waits,
        };
        let gone = || LlmError::Request("the encoder has ended".into());
        self.orders.send(order).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Worker {
    encoder: Encoder,
    orders: Vec<Order>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            if self.orders.is_empty() {
                match orders.recv() {
                    Ok(order) => self.orders.push(order),
                    Err(_) => return,
                }
            }
            loop {
                match orders.try_recv() {
                    Ok(order) => self.orders.push(order),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.orders.retain(|order| !order.reply.is_closed());
            self.round();
        }
    }

    /// Describes some texts of every order.
    fn round(&mut self) {
        let chosen = chosen(&self.orders);
        let take =
            |(order, text): &(usize, usize)| std::mem::take(&mut self.orders[*order].texts[*text]);
        let texts: Vec<Vec<u32>> = chosen.iter().map(take).collect();
        match self.encoder.embed(&texts) {
            Ok(vectors) => {
                for ((order, text), vector) in chosen.into_iter().zip(vectors) {
                    self.orders[order].vectors[text] = vector;
                    self.orders[order].done += 1;
                }
                self.finish_orders();
            }
            // What it failed for may be any of the texts.
            Err(error) => {
                tracing::error!("a run failed: {error}");
                self.orders
                    .drain(..)
                    .for_each(|order| order.end(Err(error.clone())));
            }
        }
        let len: usize = texts.iter().map(Vec::len).sum();
        self.shared.rounds.fetch_add(1, Ordering::Relaxed);
        self.shared
            .texts
            .fetch_add(texts.len() as u64, Ordering::Relaxed);
        self.shared.tokens.fetch_add(len as u64, Ordering::Relaxed);
    }

    fn finish_orders(&mut self) {
        for mut order in std::mem::take(&mut self.orders) {
            if order.done < order.texts.len() {
                self.orders.push(order);
            } else {
                let vectors = std::mem::take(&mut order.vectors);
                order.end(Ok(vectors));
            }
        }
    }
}

impl Order {
    fn end(self, with: Result<Vec<Vec<f32>>>) {
        let Order { reply, waits, .. } = self;
        drop(waits);
        // Who does not listen any more needs no answer.
        let _ = reply.send(with);
    }
}

/// The texts of a round, as numbers of an order and of a text of it: one of every order in turn, until there are enough tokens.
fn chosen(orders: &[Order]) -> Vec<(usize, usize)> {
    let mut next: Vec<usize> = orders.iter().map(|order| order.done).collect();
    let mut found = vec![];
    let mut tokens = 0;
    loop {
        let before = found.len();
        for (i, order) in orders.iter().enumerate() {
            let Some(&text) = order.by_len.get(next[i]) else {
                continue;
            };
            if tokens >= ROUND {
                return found;
            }
            tokens += order.texts[text].len();
            found.push((i, text));
            next[i] += 1;
        }
        if found.len() == before {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_from_every_request_in_turn() {
        let order = |lengths: &[usize], done| {
            let texts: Vec<Vec<u32>> = lengths.iter().map(|len| vec![0; *len]).collect();
            Order {
                by_len: (0..texts.len()).collect(),
                done,
                vectors: vec![],
                texts,
                reply: oneshot::channel().0,
                waits: Waits(Arc::default()),
            }
        };
        let orders = [order(&[9, 5, 3], 1), order(&[4], 0), order(&[], 0)];
        assert_eq!(chosen(&orders), [(0, 1), (1, 0), (0, 2)]);
        let long = [order(&[ROUND / 2; 9], 0), order(&[1, 1], 0)];
        assert_eq!(chosen(&long), [(0, 0), (1, 0), (0, 1)]);
    }
}
