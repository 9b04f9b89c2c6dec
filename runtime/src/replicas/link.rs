//! The way to replicas of other processes: pairs of processes exchange messages, nothing else is asked of a transport.

use super::combine;
use bytes::Bytes;
use cupola_ir::ops::CollectiveKind;
use cupola_ir::{DType, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Reaches the other processes of a group. They are numbered from 0, and there is a power of two of them.
pub trait Link: Send {
    /// Number of this process.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Sends bytes to a process and gives those that it sends; both call at the same time. Waiting costs no computing time
    /// but while the process is idle.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn exchange(&mut self, with: usize, bytes: Vec<u8>, idle: &Idle) -> Result<Vec<u8>, String>;
}

/// Whether all replicas of a process wait for what travels: time that looking for it takes is taken from nobody then.
#[derive(Clone, Debug)]
pub struct Idle {
    waiting: Arc<AtomicUsize>,
    local: usize,
}

impl Idle {
    /// Of so many replicas; none waits.
    pub(super) fn new(local: usize) -> Idle {
        Idle {
            waiting: Arc::default(),
            local,
        }
    }

    /// Whether all wait.
    pub fn holds(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.local
    }

    /// Runs what waits for one replica.
    pub(super) fn during<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let got = wait();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        got
    }
}

/// What all processes make of their operands: each pair of neighbours tells each other what they have, then pairs of pairs,
/// so that all have all of it after as many messages as the number of processes has doublings.
pub(super) fn across(
    link: &mut dyn Link,
    number: u64,
    kind: CollectiveKind,
    mut own: Vec<Tensor>,
    idle: &Idle,
) -> Result<Vec<Tensor>, String> {
    let (rank, size) = (link.rank(), link.size());
    let mut distance = 1;
    while distance < size {
        let with = rank ^ distance;
        let is_lower = rank < with;
        // Nobody needs what the higher ones would broadcast.
        let nothing = kind == CollectiveKind::Broadcast && !is_lower;
        let sent = if nothing { &[][..] } else { &own[..] };
        let mut got = link.exchange(with, pack(number, kind, sent), idle)?;
        let parts = read(number, kind, &got)
            .map_err(|what| format!("process {with} and process {rank}: {what}"))?;
        let is_sum = kind == CollectiveKind::AllReduceSum && fits(&own, &parts);
        if is_sum {
            add(&mut got, &own, is_lower);
        }
        let theirs = cut(got, parts).map_err(|what| format!("process {with}: {what}"))?;
        own = match (is_sum, is_lower) {
            (true, _) => theirs,
            (false, true) => combine(kind, &own, &theirs)?,
            (false, false) => combine(kind, &theirs, &own)?,
        };
        distance *= 2;
    }
    Ok(own)
}

/// Type and extents of a tensor in a message. Those of all tensors follow each other from its beginning on.
type Part = (DType, Vec<usize>);

/// `[bytes of all tensors, head, length of the head, number]`; the head is text: kind, then type and extents of each.
fn pack(number: u64, kind: CollectiveKind, tensors: &[Tensor]) -> Vec<u8> {
    let mut head = kind.name().to_string();
    for t in tensors {
        let dims: Vec<String> = t.shape().iter().map(ToString::to_string).collect();
        head.push_str(&format!(" {}:{}", t.dtype().name(), dims.join("x")));
    }
    let size: usize = tensors.iter().map(|t| t.bytes().len()).sum();
    let mut all = Vec::with_capacity(16 + head.len() + size);
    tensors
        .iter()
        .for_each(|t| all.extend_from_slice(t.bytes()));
    all.extend_from_slice(head.as_bytes());
    all.extend((head.len() as u64).to_le_bytes());
    all.extend(number.to_le_bytes());
    all
}

/// What is in a message of this collective.
fn read(number: u64, kind: CollectiveKind, bytes: &[u8]) -> Result<Vec<Part>, String> {
    let cut = || "a message is cut off".to_string();
    let (rest, theirs) = bytes.split_last_chunk::<8>().ok_or_else(cut)?;
    let (rest, len) = rest.split_last_chunk::<8>().ok_or_else(cut)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok();
    let at = len.and_then(|len| rest.len().checked_sub(len));
    let (data, head) = rest.split_at(at.ok_or_else(cut)?);
    let head = std::str::from_utf8(head).map_err(|_| cut())?;
    let mut words = head.split(' ');
    let theirs = u64::from_le_bytes(*theirs);
    if theirs != number || words.next() != Some(kind.name()) {
        return Err(format!(
            "one is at collective {number} ({}), the other at {theirs} ({head})",
            kind.name()
        ));
    }
    let (mut parts, mut left) = (vec![], data.len());
    for word in words {
        let (dtype, shape) = word.split_once(':').ok_or_else(cut)?;
        let dtype = DType::from_name(dtype).ok_or_else(cut)?;
        let dims = shape.split('x').filter(|d| !d.is_empty()).map(str::parse);
        let shape: Vec<usize> = dims.collect::<Result<_, _>>().map_err(|_| cut())?;
        let size = Tensor::size_of(dtype, &shape);
        left = size.and_then(|n| left.checked_sub(n)).ok_or_else(cut)?;
        parts.push((dtype, shape));
    }
    Ok(parts)
}

/// The tensors of a message, which share its memory.
fn cut(message: Vec<u8>, parts: Vec<Part>) -> Result<Vec<Tensor>, String> {
    let mut rest = Bytes::from(message);
    let each = parts.into_iter().map(|(dtype, shape)| {
        let size = Tensor::size_of(dtype, &shape).filter(|n| *n <= rest.len())?;
        Tensor::new(dtype, shape, rest.split_to(size))
    });
    let all: Option<Vec<Tensor>> = each.collect();
    all.ok_or_else(|| "a message is cut off".to_string())
}

/// Whether own tensors and those of a message are f32 of the same extents.
fn fits(own: &[Tensor], parts: &[Part]) -> bool {
    let is_same = |(t, (dtype, shape)): (&Tensor, &Part)| {
        (t.dtype(), t.shape()) == (DType::F32, &shape[..]) && *dtype == DType::F32
    };
    own.len() == parts.len() && own.iter().zip(parts).all(is_same)
}

/// Adds own tensors to those of a message, as the lower of the two or the higher.
fn add(message: &mut [u8], own: &[Tensor], is_lower: bool) {
    let read = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let mut rest = message;
    for tensor in own {
        let (theirs, after) = rest.split_at_mut(tensor.bytes().len());
        let pairs = theirs
            .chunks_exact_mut(4)
            .zip(tensor.bytes().chunks_exact(4));
        match is_lower {
            true => pairs.for_each(|(b, a)| b.copy_from_slice(&(read(a) + read(b)).to_le_bytes())),
            false => pairs.for_each(|(a, b)| a.copy_from_slice(&(read(a) + read(b)).to_le_bytes())),
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_sent_and_others_are_refused() {
        let kind = CollectiveKind::AllReduceSum;
        let all = [
            Tensor::from_slice(&[2, 1], &[1.0f32, 2.0]).expect("a matrix"),
            Tensor::scalar(3i64),
            Tensor::from_slice::<f32>(&[0, 3], &[]).expect("nothing"),
        ];
        let bytes = pack(7, kind, &all);
        let parts = read(7, kind, &bytes).expect("the parts");
        assert_eq!(cut(bytes.clone(), parts).expect("the tensors"), all);
        let error = read(8, kind, &bytes).expect_err("another number");
        assert!(error.contains("collective 8"), "{error}");
        assert!(read(7, CollectiveKind::Broadcast, &bytes).is_err());
        for missing in [1, 5, 16, 20, bytes.len() - 16, bytes.len()] {
            assert!(read(7, kind, &bytes[missing..]).is_err(), "{missing}");
            let less = &bytes[..bytes.len() - missing];
            assert!(read(7, kind, less).is_err(), "{missing}");
        }
    }

    #[test]
    fn sums_are_the_same_from_both_sides() {
        let kind = CollectiveKind::AllReduceSum;
        let a = [
            Tensor::vector(&[1.0f32, -0.0, 1e30]),
            Tensor::scalar(2.5f32),
        ];
        let b = [
            Tensor::vector(&[0.5f32, 0.0, -1e30]),
            Tensor::scalar(-1.0f32),
        ];
        let want = combine(kind, &a, &b).expect("a sum");
        for (own, other, is_lower) in [(&a, &b, true), (&b, &a, false)] {
            let mut got = pack(0, kind, other);
            let parts = read(0, kind, &got).expect("the parts");
            assert!(fits(own, &parts) && !fits(&own[..1], &parts));
            add(&mut got, own, is_lower);
            assert_eq!(cut(got, parts).expect("the tensors"), want);
        }
    }
}
