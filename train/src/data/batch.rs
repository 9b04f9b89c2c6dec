//! Batches: rows of all columns as tensors, made on a thread ahead of their use.

use super::text::Side;
use super::{Column, Dataset, Padding, Part, order};
use cupola_ir::Tensor;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};

/// How many batches wait to be used.
const AHEAD: usize = 2;

/// How samples are dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dealing {
    /// Samples of a batch.
    pub batch: usize,
    /// Leave out what does not fill a batch at the end of an epoch.
    pub drop_last: bool,
    /// Another order in every epoch; without, that of the files.
    pub shuffle: bool,
    /// Decides the orders.
    pub seed: u64,
}

impl Dealing {
    /// Batches of an epoch over `len` samples.
    pub fn batches(&self, len: usize) -> usize {
        let batch = self.batch.max(1);
        match self.drop_last {
            true => len / batch,
            false => len.div_ceil(batch),
        }
    }

    /// The rows of a batch.
    fn rows(&self, order: &[u32], index: usize) -> Vec<u32> {
        let from = index * self.batch.max(1);
        let to = (from + self.batch.max(1)).min(order.len());
        order[from..to].to_vec()
    }

    /// The rows of an epoch in their order.
    fn order(&self, part: &Part, epoch: u64) -> Vec<u32> {
        match self.shuffle {
            true => (order(part.len(), self.seed, epoch).iter())
                .map(|i| part.rows[*i as usize])
                .collect(),
            false => part.rows.clone(),
        }
    }
}

/// A place in the data: the next batch to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch in it, from 0.
    pub batch: usize,
}

/// Samples that go through the model together.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where it stands.
    pub at: Position,
    /// Samples in it.
    pub len: usize,
    /// A tensor for every column, samples first. Of padded columns `NAME.length`, i64 `[batch]`, too.
    pub columns: Vec<(String, Tensor)>,
}

impl Batch {
    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Tensor> {
        (self.columns.iter()).find_map(|(n, t)| (n == name).then_some(t))
    }

    /// The samples of one of `count` shards: neighbours, the first shards one more than the last where they cannot have equally
    /// many. A shard without samples gets the last of the batch to stand in; its `len` is 0 then.
    pub fn shard(&self, at: usize, count: usize) -> Batch {
        let (each, more) = (self.len / count, self.len % count);
        let from = at * each + at.min(more);
        let len = each + usize::from(at < more);
        let taken = match len {
            0 => self.len.saturating_sub(1)..self.len,
            _ => from..from + len,
        };
        let columns = self.columns.iter();
        let columns = columns.map(|(name, t)| (name.clone(), rows(t, taken.clone())));
        Batch {
            at: self.at,
            len,
            columns: columns.collect(),
        }
    }
}

/// Some rows of a tensor, which share its memory; all of it where its elements are no whole bytes.
fn rows(t: &Tensor, rows: Range<usize>) -> Tensor {
    let mut shape = t.shape().to_vec();
    let (Some(first), Some(bytes)) = (shape.first_mut(), t.shared_bytes()) else {
        return t.clone();
    };
    *first = rows.len();
    let size = Tensor::size_of(t.dtype(), &t.shape()[1..]).unwrap_or(0);
    let bytes = bytes.slice(rows.start * size..rows.end * size);
    Tensor::new(t.dtype(), shape, bytes).unwrap_or_else(|| t.clone())
}

/// Gives batches one after the other. They are made on a thread, at most [`AHEAD`] before they are asked for; the thread
/// ends with the loader.
pub struct Loader {
    batches: Receiver<Batch>,
}

impl Loader {
    /// Batches of a part from a position on, for `epochs` epochs counted from the first, or without end.
    ///
    /// # Errors
    /// A system that starts no thread.
    pub fn new(
        part: &Part,
        dealing: Dealing,
        from: Position,
        epochs: Option<u64>,
    ) -> std::io::Result<Loader> {
        let (sender, batches) = mpsc::sync_channel(AHEAD);
        let part = part.clone();
        std::thread::Builder::new()
            .name("cupola-data".into())
            .spawn(move || deal(&part, dealing, from, epochs, &sender))?;
        Ok(Loader { batches })
    }
}

impl Iterator for Loader {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.batches.recv().ok()
    }
}

fn deal(
    part: &Part,
    dealing: Dealing,
    from: Position,
    epochs: Option<u64>,
    sender: &SyncSender<Batch>,
) {
    let count = dealing.batches(part.len());
    if count == 0 {
        return;
    }
    let mut first = from.batch;
    for epoch in from.epoch.. {
        if epochs.is_some_and(|end| epoch >= end) {
            return;
        }
        let order = dealing.order(part, epoch);
        for index in first..count {
            let batch = part.data.batch(
                &dealing.rows(&order, index),
                Position {
                    epoch,
                    batch: index,
                },
            );
            if sender.send(batch).is_err() {
                return;
            }
        }
        first = 0;
    }
}

impl Dataset {
    /// These rows of all columns.
    pub fn batch(&self, rows: &[u32], at: Position) -> Batch {
        let mut columns = vec![];
        for (name, column) in &self.columns {
            let (tensor, lengths) = gather(column, rows);
            columns.push((name.clone(), tensor));
            columns.extend(lengths.map(|l| (format!("{name}.length"), l)));
        }
        Batch {
            at,
            len: rows.len(),
            columns,
        }
    }
}

/// A tensor of rows; of padded sequences their lengths too.
fn gather(column: &Column, rows: &[u32]) -> (Tensor, Option<Tensor>) {
    fn pick<T: Copy, U: cupola_ir::Element>(
        shape: &[usize],
        values: &[T],
        rows: &[u32],
        f: impl Fn(T) -> U,
    ) -> Tensor {
        let each: usize = shape.iter().product();
        let mut picked = Vec::with_capacity(rows.len() * each);
        for row in rows {
            let at = *row as usize * each;
            picked.extend(values[at..at + each].iter().map(|v| f(*v)));
        }
        tensor(&[&[rows.len()], shape].concat(), &picked)
    }
    match column {
        Column::Pixels { shape, values } => {
            (pick(shape, values, rows, |v| f32::from(v) / 255.0), None)
        }
        Column::Floats { shape, values } => (pick(shape, values, rows, |v| v), None),
        Column::Labels { shape, values } => (pick(shape, values, rows, |v| v), None),
        Column::Windows { len, .. } => {
            let tokens = rows.iter().flat_map(|r| column.tokens(*r as usize));
            let tokens: Vec<i64> = tokens.map(|t| i64::from(*t)).collect();
            (tensor(&[rows.len(), *len], &tokens), None)
        }
        Column::Sequences { padding, .. } => padded(column, rows, *padding),
    }
}

fn tensor<T: cupola_ir::Element>(shape: &[usize], values: &[T]) -> Tensor {
    Tensor::from_slice(shape, values)
        .unwrap_or_else(|| unreachable!("bug: as many values as the shape has"))
}

/// Sequences cut and filled to one length.
fn padded(column: &Column, rows: &[u32], padding: Padding) -> (Tensor, Option<Tensor>) {
    let most = padding.most.unwrap_or(usize::MAX);
    let kept = |row: &u32| {
        let tokens = column.tokens(*row as usize);
        &tokens[..tokens.len().min(most)]
    };
    let longest = rows.iter().map(|r| kept(r).len()).max().unwrap_or(0);
    // An empty text still is a sequence, of padding.
    let width = padding.exact.unwrap_or(longest).max(1);
    let mut all = vec![i64::from(padding.token); rows.len() * width];
    let mut lengths = vec![];
    for (line, row) in all.chunks_mut(width).zip(rows) {
        let tokens = kept(row);
        let tokens = &tokens[..tokens.len().min(width)];
        let from = match padding.side {
            Side::Left => width - tokens.len(),
            Side::Right => 0,
        };
        for (place, token) in line[from..].iter_mut().zip(tokens) {
            *place = i64::from(*token);
        }
        lengths.push(tokens.len() as i64);
    }
    (
        tensor(&[rows.len(), width], &all),
        Some(Tensor::vector(&lengths)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(padding: Padding) -> Part {
        let x = Column::Sequences {
            offsets: vec![0, 3, 3, 4],
            tokens: vec![7, 8, 9, 5],
            padding,
        };
        let y = Column::Labels {
            shape: vec![],
            values: vec![1, 0, 1],
        };
        Part::whole(Dataset::pair(x, y).expect("a set"))
    }

    const DEALING: Dealing = Dealing {
        batch: 2,
        drop_last: false,
        shuffle: false,
        seed: 3,
    };

    #[test]
    fn sequences_are_padded_to_the_longest_of_the_batch() {
        let part = sequences(Padding::default());
        let mut loader =
            Loader::new(&part, DEALING, Position::default(), Some(1)).expect("a thread");
        let first = loader.next().expect("two samples");
        let x = first.column("x").expect("tokens");
        assert_eq!(
            x.to_vec::<i64>().expect("numbers"),
            vec![7, 8, 9, 0, 0, 0],
            "an empty sequence is padding"
        );
        let lengths = first.column("x.length").and_then(Tensor::to_vec::<i64>);
        assert_eq!(lengths, Some(vec![3, 0]));
        let last = loader.next().expect("one sample");
        assert_eq!(last.column("x").map(Tensor::shape), Some(&[1, 1][..]));
        assert!(loader.next().is_none());
    }

    #[test]
    fn padding_may_be_left_and_of_one_width() {
        let part = sequences(Padding {
            exact: Some(2),
            side: Side::Left,
            ..Padding::default()
        });
        let batch = part.data.batch(&[0, 2], Position::default());
        let x = batch.column("x").and_then(Tensor::to_vec::<i64>);
        assert_eq!(x, Some(vec![7, 8, 0, 5]));
    }

    #[test]
    fn a_loader_goes_on_where_another_stopped() {
        let x = Column::Pixels {
            shape: vec![1],
            values: (0..11).collect(),
        };
        let y = Column::Labels {
            shape: vec![],
            values: (0..11).collect(),
        };
        let part = Part::whole(Dataset::pair(x, y).expect("a set"));
        let dealing = Dealing {
            batch: 3,
            shuffle: true,
            ..DEALING
        };
        let all = |from, count| -> Vec<(Position, Vec<i64>)> {
            let loader = Loader::new(&part, dealing, from, None).expect("a thread");
            let y = |b: &Batch| b.column("y").and_then(Tensor::to_vec).expect("labels");
            loader.take(count).map(|b| (b.at, y(&b))).collect()
        };
        let whole = all(Position::default(), 9);
        assert_eq!(whole[5..], all(whole[5].0, 4)[..]);
        assert_eq!(whole[4].0, Position { epoch: 1, batch: 0 });
        let mut epoch: Vec<i64> = whole[..4].iter().flat_map(|b| b.1.clone()).collect();
        epoch.sort_unstable();
        assert_eq!(epoch, (0..11).collect::<Vec<i64>>());
        assert_eq!(dealing.batches(11), 4);
        let dropping = Dealing {
            drop_last: true,
            ..dealing
        };
        assert_eq!(dropping.batches(11), 3);
    }
}
