//! The way to replicas of other processes: pairs of processes exchange messages, nothing else is asked of a transport.

use super::combine;
use cupola_ir::ops::CollectiveKind;
use cupola_ir::{DType, Tensor};

/// Reaches the other processes of a group. They are numbered from 0, and there is a power of two of them.
pub trait Link: Send {
    /// Number of this process.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Sends bytes to a process and gives those that it sends; both call at the same time. Waiting costs no computing time.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn exchange(&mut self, with: usize, bytes: &[u8]) -> Result<Vec<u8>, String>;
}

/// What all processes make of their operands: each pair of neighbours tells each other what they have, then pairs of pairs,
/// so that all have all of it after as many messages as the number of processes has doublings.
pub(super) fn across(
    link: &mut dyn Link,
    number: u64,
    kind: CollectiveKind,
    mut own: Vec<Tensor>,
) -> Result<Vec<Tensor>, String> {
    let (rank, size) = (link.rank(), link.size());
    let mut distance = 1;
    while distance < size {
        let with = rank ^ distance;
        let is_lower = rank < with;
        // Nobody needs what the higher ones would broadcast.
        let nothing = kind == CollectiveKind::Broadcast && !is_lower;
        let sent = if nothing { &[][..] } else { &own[..] };
        let got = link.exchange(with, &pack(number, kind, sent))?;
        let theirs = unpack(number, kind, &got)
            .map_err(|what| format!("process {with} and process {rank}: {what}"))?;
        own = match is_lower {
            true => combine(kind, &own, &theirs)?,
            false => combine(kind, &theirs, &own)?,
        };
        distance *= 2;
    }
    Ok(own)
}

/// `[number, length of the head, head, bytes of all tensors]`; the head is text: kind, then type and extents of each.
fn pack(number: u64, kind: CollectiveKind, tensors: &[Tensor]) -> Vec<u8> {
    let mut head = kind.name().to_string();
    for t in tensors {
        let dims: Vec<String> = t.shape().iter().map(ToString::to_string).collect();
        head.push_str(&format!(" {}:{}", t.dtype().name(), dims.join("x")));
    }
    let size: usize = tensors.iter().map(|t| t.bytes().len()).sum();
    let mut all = Vec::with_capacity(16 + head.len() + size);
    all.extend(number.to_le_bytes());
    all.extend((head.len() as u64).to_le_bytes());
    all.extend(head.as_bytes());
    tensors.iter().for_each(|t| all.extend(t.bytes()));
    all
}

fn unpack(number: u64, kind: CollectiveKind, bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    let word = |at: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let cut = || "a message is cut off".to_string();
    let (theirs, len) = (word(0).ok_or_else(cut)?, word(8).ok_or_else(cut)?);
    let end = usize::try_from(len).ok().and_then(|n| n.checked_add(16));
    let head = end.and_then(|end| bytes.get(16..end)).ok_or_else(cut)?;
    let head = std::str::from_utf8(head).map_err(|_| cut())?;
    let mut words = head.split(' ');
    if theirs != number || words.next() != Some(kind.name()) {
        return Err(format!(
            "one is at collective {number} ({}), the other at {theirs} ({head})",
            kind.name()
        ));
    }
    let mut rest = &bytes[16 + head.len()..];
    let mut tensors = vec![];
    for word in words {
        let (dtype, shape) = word.split_once(':').ok_or_else(cut)?;
        let dtype = DType::from_name(dtype).ok_or_else(cut)?;
        let dims = shape.split('x').filter(|d| !d.is_empty()).map(str::parse);
        let shape: Vec<usize> = dims.collect::<Result<_, _>>().map_err(|_| cut())?;
        let size = Tensor::size_of(dtype, &shape).filter(|n| *n <= rest.len());
        let (own, after) = rest.split_at(size.ok_or_else(cut)?);
        let tensor = Tensor::new(dtype, shape, own.to_vec().into());
        tensors.push(tensor.ok_or_else(cut)?);
        rest = after;
    }
    Ok(tensors)
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
        assert_eq!(unpack(7, kind, &bytes).expect("the tensors"), all);
        let error = unpack(8, kind, &bytes).expect_err("another number");
        assert!(error.contains("collective 8"), "{error}");
        assert!(unpack(7, CollectiveKind::Broadcast, &bytes).is_err());
        for len in [0, 8, 15, 20, bytes.len() - 1] {
            assert!(unpack(7, kind, &bytes[..len]).is_err(), "{len}");
        }
    }
}
