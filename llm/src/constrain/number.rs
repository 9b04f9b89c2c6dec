//! Whole numbers within bounds, digit by digit.

use super::expression::{Expression, literal, repeat};
use super::json::{digit, fraction};

/// Bounds stand for "none" beyond this: 15 digits.
pub const LIMIT: i64 = 999_999_999_999_999;

/// Whole numbers from `low` to `high`; `None` if there are none.
pub fn integers(low: i64, high: i64) -> Option<Expression> {
    let (low, high) = (low.max(-LIMIT), high.min(LIMIT));
    if low > high {
        return None;
    }
    let mut choices = vec![];
    if low < 0 {
        let numbers = naturals(high.min(-1).unsigned_abs(), low.unsigned_abs());
        choices.push(Expression::Sequence(vec![literal("-"), numbers]));
    }
    if high >= 0 {
        choices.push(naturals(low.max(0) as u64, high as u64));
    }
    Some(Expression::Choice(choices))
}

/// Numbers with and without a fraction, from `low` to `high`; `None` if no number of the kind that is written here is
/// among them.
pub fn numbers(low: f64, high: f64) -> Option<Expression> {
    let whole = |bound: f64| bound.clamp(-(LIMIT as f64), LIMIT as f64) as i64;
    let (low, high) = (whole(low.ceil()), whole(high.floor()));
    let with_fraction = |numbers: Expression| Expression::Sequence(vec![numbers, fraction()]);
    let mut choices: Vec<Expression> = integers(low, high).into_iter().collect();
    // A fraction leads away from zero: the next whole number must be allowed too.
    choices.extend(integers(low.max(0), high - 1).map(with_fraction));
    if low < 0 {
        choices.extend(integers(low + 1, high.min(-1)).map(with_fraction));
    }
    if low < 0 && high >= 0 {
        choices.push(with_fraction(literal("-0")));
    }
    (!choices.is_empty()).then_some(Expression::Choice(choices))
}

/// Digits without zeros in front, from `low` to `high`.
fn naturals(low: u64, high: u64) -> Expression {
    let mut choices = vec![];
    let mut start = low;
    while start <= high {
        let end = high.min(largest_of_len(len(start)));
        choices.push(of_one_len(&digits(start), &digits(end)));
        start = end + 1;
    }
    Expression::Choice(choices)
}

fn digits(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn len(number: u64) -> usize {
    digits(number).len()
}

fn largest_of_len(len: usize) -> u64 {
    10u64.pow(len as u32) - 1
}

/// Texts of digits between two of the same length.
fn of_one_len(low: &[u8], high: &[u8]) -> Expression {
    let (Some((&first, low_rest)), Some((&last, high_rest))) =
        (low.split_first(), high.split_first())
    else {
        return Expression::Sequence(vec![]);
    };
    let one = |byte: u8| Expression::Bytes(vec![(byte, byte)]);
    if first == last {
        return Expression::Sequence(vec![one(first), of_one_len(low_rest, high_rest)]);
    }
    let rest = low_rest.len();
    let mut choices = vec![Expression::Sequence(vec![
        one(first),
        of_one_len(low_rest, &vec![b'9'; rest]),
    ])];
    if first + 1 < last {
        let between = Expression::Bytes(vec![(first + 1, last - 1)]);
        let any = repeat(digit(), rest as u32, Some(rest as u32));
        choices.push(Expression::Sequence(vec![between, any]));
    }
    choices.push(Expression::Sequence(vec![
        one(last),
        of_one_len(&vec![b'0'; rest], high_rest),
    ]));
    Expression::Choice(choices)
}
