//! Strings and n-grams.

use cupola_ir::ops::HostOp;
use cupola_ir::ops::host::{
    Case, CountNgrams, RegexFullMatch, StringConcat, StringNormalize, StringSplit,
};
use cupola_ir::tensor::Tensor;
use cupola_ir::{DType, Op, Scalar, ValueId};

use super::{OpRow, op};
use crate::context::NodeCx;
use crate::import_error::{OpResult, invalid, unsupported};

pub(super) const OPS: &[OpRow] = &[
    op("StringNormalizer", 10, normalize),
    op("StringConcat", 20, concat),
    op("StringSplit", 20, split),
    op("RegexFullMatch", 20, full_match),
    op("TfIdfVectorizer", 9, count_ngrams),
];

fn push(cx: &mut NodeCx<'_, '_>, op: impl Into<HostOp>, operands: &[ValueId]) -> OpResult {
    Ok(cx.g.push(Op::Host(op.into()), operands)?.to_vec())
}

fn normalize(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let case = match cx.text_or("case_change_action", "NONE")?.as_str() {
        "NONE" => Case::Keep,
        "LOWER" => Case::Lower,
        "UPPER" => Case::Upper,
        other => return invalid(format!("case_change_action '{other}' does not exist")),
    };
    let op = StringNormalize {
        case,
        case_sensitive: cx.flag("is_case_sensitive", false)?,
        stop_words: cx.texts_attr("stopwords")?.unwrap_or_default(),
        count: cx.fresh_sym("words"),
    };
    push(cx, op, &[x])
}

fn concat(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let (x, y) = (cx.input(0)?, cx.input(1)?);
    let dims = cx.g.broadcast_dims(&[x, y])?;
    let (x, y) = (cx.g.broadcast_to(x, &dims)?, cx.g.broadcast_to(y, &dims)?);
    push(cx, StringConcat {}, &[x, y])
}

fn split(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let most = match cx.int("maxsplit")? {
        Some(n) if n >= 0 => Some(usize::try_from(n).unwrap_or(usize::MAX)),
        _ => None,
    };
    let op = StringSplit {
        delimiter: cx.text_or("delimiter", "")?,
        most,
        width: cx.fresh_sym("parts"),
    };
    push(cx, op, &[x])
}

fn full_match(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let Some(pattern) = cx.text("pattern")? else {
        return invalid("attribute 'pattern' is missing");
    };
    push(cx, RegexFullMatch { pattern }, &[x])
}

/// An attribute of numbers that must not be negative.
fn sizes(cx: &NodeCx<'_, '_>, name: &str) -> OpResult<Vec<usize>> {
    let all = cx.ints_attr(name)?.unwrap_or_default();
    let sizes: Option<Vec<usize>> = all.iter().map(|n| usize::try_from(*n).ok()).collect();
    match sizes {
        Some(v) => Ok(v),
        None => invalid(format!("{name} {all:?}")),
    }
}

/// Counts of the n-grams of the wanted lengths, weighted by column.
fn count_ngrams(cx: &mut NodeCx<'_, '_>) -> OpResult {
    let x = cx.input(0)?;
    let (min, max) = (
        cx.required_int("min_gram_length")?,
        cx.required_int("max_gram_length")?,
    );
    let skips = cx.required_int("max_skip_count")?;
    let starts = sizes(cx, "ngram_counts")?;
    let indexes = sizes(cx, "ngram_indexes")?;
    let ints = cx.ints_attr("pool_int64s")?.unwrap_or_default();
    let words = cx.texts_attr("pool_strings")?.unwrap_or_default();
    let total = ints.len().max(words.len());
    if indexes.is_empty() || skips < 0 || (!ints.is_empty() && !words.is_empty()) {
        return invalid("needs n-gram indexes, one pool and a skip count of 0 or more");
    }
    // Part k of the pool holds the n-grams of k + 1 elements.
    let (mut kept, mut lens, mut columns) = (vec![], vec![], vec![]);
    let mut id = 0;
    for (k, start) in starts.iter().enumerate() {
        let (len, end) = (k + 1, starts.get(k + 1).copied().unwrap_or(total));
        if end > total || *start > end || (end - start) % len != 0 {
            return invalid(format!("ngram_counts {starts:?} of {total} elements"));
        }
        for first in (*start..end).step_by(len) {
            let Some(column) = indexes.get(id) else {
                return invalid(format!("{} indexes, more n-grams", indexes.len()));
            };
            id += 1;
            if (min..=max).contains(&(len as i64)) {
                kept.extend(first..first + len);
                lens.push(len);
                columns.push(*column);
            }
        }
    }
    let pool = if words.is_empty() {
        Tensor::vector(&kept.iter().map(|i| ints[*i]).collect::<Vec<i64>>())
    } else {
        let all: Vec<String> = kept.iter().map(|i| words[*i].clone()).collect();
        match Tensor::from_strings(vec![all.len()], all) {
            Some(t) => t,
            None => unreachable!("bug: length of a pool"),
        }
    };
    let width = indexes.iter().max().map_or(0, |m| m.saturating_add(1));
    let op = CountNgrams {
        pool,
        lens,
        columns,
        width,
        most_skips: usize::try_from(skips).unwrap_or(usize::MAX),
    };
    let counts = push(cx, op, &[x])?[0];
    let weights = cx.floats_attr("weights")?;
    let weighted = |cx: &mut NodeCx<'_, '_>, y: ValueId| -> OpResult<ValueId> {
        let Some(w) = &weights else {
            return Ok(y);
        };
        if w.len() != width {
            return invalid(format!("{} weights for {width} columns", w.len()));
        }
        let w: Vec<f32> = w.iter().map(|v| *v as f32).collect();
        let w = cx.g.constant(Tensor::vector(&w))?;
        Ok(cx.g.binary(Scalar::Mul, y, w)?)
    };
    Ok(vec![match cx.text_or("mode", "")?.as_str() {
        "TF" => counts,
        "TFIDF" => weighted(cx, counts)?,
        "IDF" => {
            let zero = cx.g.number_like(0.0, counts)?;
            let seen = cx.g.binary(Scalar::Lt, zero, counts)?;
            let seen = cx.g.cast(seen, DType::F32)?;
            weighted(cx, seen)?
        }
        other => return unsupported(format!("mode '{other}'")),
    }])
}
