//! Failures made to order: what comes after them is tested without a driver that fails by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

/// The environment variable that orders one.
const VARIABLE: &str = "CUPOLA_GPU_FAIL";

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Memory is refused.
    Allocation,
    /// The device is lost when work is submitted.
    Submission,
    /// A kernel is refused.
    Pipeline,
    /// Results cannot be mapped.
    Map,
}

/// A failure at the `at`-th occasion since the device was opened, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injected {
    /// What fails.
    pub what: Mishap,
    /// When.
    pub at: u64,
}

impl Injected {
    /// The failure that `CUPOLA_GPU_FAIL` orders as `WHAT:N`; none where it is unset or empty.
    ///
    /// # Errors
    /// [`Error::Setting`] for anything else.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        match std::env::var_os(VARIABLE) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => Self::named(&value.to_string_lossy()).map(Some),
        }
    }

    fn named(value: &str) -> Result<Self, Error> {
        let parsed = value.split_once(':').and_then(|(what, at)| {
            let what = match what {
                "allocation" => Mishap::Allocation,
                "submission" => Mishap::Submission,
                "pipeline" => Mishap::Pipeline,
                "map" => Mishap::Map,
                _ => return None,
            };
            Some(Self {
                what,
                at: at.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| Error::Setting {
            variable: VARIABLE,
            value: value.to_owned(),
            allowed: "allocation:N, submission:N, pipeline:N, map:N".to_owned(),
        })
    }
}

/// Counts occasions until the ordered failure is due.
#[derive(Debug)]
pub(super) struct Injector {
    ordered: Option<Injected>,
    seen: AtomicU64,
}

impl Injector {
    pub(super) fn new(ordered: Option<Injected>) -> Self {
        Self {
            ordered,
            seen: AtomicU64::new(0),
        }
    }

    /// Whether this occasion is the one that fails.
    pub(super) fn strikes(&self, what: Mishap) -> bool {
        self.ordered.is_some_and(|ordered| {
            ordered.what == what && self.seen.fetch_add(1, Ordering::Relaxed) + 1 == ordered.at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_strike_once() {
        let injector = Injector::new(Injected::named("map:3").ok());
        let strikes = [
            Mishap::Map,
            Mishap::Map,
            Mishap::Pipeline,
            Mishap::Map,
            Mishap::Map,
        ];
        let strikes = strikes.map(|what| injector.strikes(what));
        assert_eq!(strikes, [false, false, false, true, false]);
        for wrong in ["map", "map:", "map:x", "mop:1", ":1"] {
            assert!(Injected::named(wrong).is_err(), "{wrong}");
        }
    }
}
