//! Which rows a step computes.
//!
//! Texts whose prompt is in the cache get a row each, always: nobody waits for another's prompt. What is left of the
//! step's rows is shared evenly among the prompts that are not in the cache yet, short ones first to be done.

use crate::sequence::Sequence;

/// Rows of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// All rows.
    pub rows: usize,
    /// Rows of prompts while other texts are being continued: it is they who wait for the step.
    pub beside: usize,
}

/// Sets the rows of each text.
pub(crate) fn share_rows(texts: &mut [Sequence], budget: Budget) {
    let mut decoding = 0;
    for text in texts.iter_mut() {
        text.rows = usize::from(text.is_decoding());
        decoding += text.rows;
    }
    let rest = budget.rows.saturating_sub(decoding);
    let mut left = match decoding {
        0 => rest,
        _ => rest.min(budget.beside),
    };
    let mut prompts: Vec<&mut Sequence> = texts.iter_mut().filter(|t| !t.is_decoding()).collect();
    prompts.sort_by_key(|t| (t.pending(), t.id));
    let mut others = prompts.len();
    for text in prompts {
        text.rows = text.pending().min(left.div_ceil(others));
        left -= text.rows;
        others -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{Request, SequenceId};

    /// Rows of texts with so many tokens to compute.
    fn rows(pending: &[usize], budget: Budget) -> Vec<usize> {
        let text = |(i, len): (usize, &usize)| {
            let prompt = vec![0; *len];
            Sequence::new(
                SequenceId(i as u64),
                Request {
                    prompt,
                    ..Request::default()
                },
            )
        };
        let mut texts: Vec<Sequence> = pending.iter().enumerate().map(text).collect();
        share_rows(&mut texts, budget);
        texts.iter().map(|t| t.rows).collect()
    }

    #[test]
    fn texts_under_way_go_first_and_prompts_share_the_rest() {
        let budget = Budget {
            rows: 64,
            beside: 16,
        };
        assert_eq!(rows(&[100], budget), [64]);
        assert_eq!(rows(&[1, 100, 1], budget), [1, 16, 1]);
        assert_eq!(rows(&[100, 4, 100], budget), [30, 4, 30]);
        assert_eq!(rows(&[100, 100, 100], budget), [22, 21, 21]);
        assert_eq!(rows(&[10, 20], budget), [10, 20]);
        assert_eq!(
            rows(
                &[1, 9, 9],
                Budget {
                    rows: 2,
                    beside: 16
                }
            ),
            [1, 1, 0]
        );
    }
}
