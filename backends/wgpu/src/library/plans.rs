//! Choosing among the plans that compute a problem: by prediction, or by what timing them decided.

use super::LibraryProgram;
use crate::choice::DeviceModel;
use crate::error::Error;

/// A problem that several kernels can compute.
pub trait Problem {
    /// A way to compute it.
    type Plan;

    /// What the times of plans depend on, on one line, lengths rounded as [`class_len`] does: problems of one class have
    /// their plans in the same order, or nearly so.
    fn class(&self) -> String;

    /// Every way that a device has.
    ///
    /// # Errors
    /// As [`Self::planned`].
    fn plans(&self, device: &DeviceModel) -> Result<Vec<Self::Plan>, Error>;

    /// What tells a plan from the others of its class, on one line.
    fn name(&self, plan: &Self::Plan) -> String;

    /// Predicted seconds of a plan.
    fn seconds(&self, plan: &Self::Plan, device: &DeviceModel) -> f64;

    /// Position of the plan that is taken as long as nothing is known from timing: the one with the least prediction, unless
    /// a problem knows better.
    fn preferred(&self, plans: &[Self::Plan], device: &DeviceModel) -> usize {
        let seconds = |at: &usize| self.seconds(&plans[*at], device);
        let least = (0..plans.len()).min_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        least.unwrap_or(0)
    }

    /// The dispatches of a plan.
    ///
    /// # Errors
    /// [`Error::Limit`] for lengths that the kernels cannot handle.
    fn planned(&self, plan: &Self::Plan) -> Result<LibraryProgram, Error>;
}

/// A way to compute a problem, ready to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Name of the plan.
    pub name: String,
    /// Seconds that are predicted.
    pub seconds: f64,
    /// Its dispatches.
    pub program: LibraryProgram,
}

/// The plans of a problem that may be the fastest: the preferred one, then the others in the order of their predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct Contest {
    /// Class of the problem.
    pub class: String,
    /// Those who take part.
    pub candidates: Vec<Candidate>,
}

/// Which plans take part in a contest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Largest predicted time, as a multiple of the least.
    pub within: f64,
    /// Most plans.
    pub most: usize,
}

/// The plan that was decided on for problems of this class, where the device has it, or the preferred one.
///
/// # Errors
/// As [`Problem::planned`].
pub fn fastest<P: Problem>(problem: &P, device: &DeviceModel) -> Result<P::Plan, Error> {
    let mut plans = problem.plans(device)?;
    let decided = match device.choices.is_empty() {
        true => None,
        false => device.choices.plan(&problem.class()),
    };
    let known = decided.and_then(|name| plans.iter().position(|p| problem.name(p) == name));
    if plans.is_empty() {
        return Err(Error::Limit {
            what: "every form of a library kernel",
            needed: 1,
            allowed: 0,
        });
    }
    let at = known.unwrap_or_else(|| problem.preferred(&plans, device));
    Ok(plans.swap_remove(at))
}

/// The dispatches of [`fastest`].
///
/// # Errors
/// As [`Problem::planned`].
pub fn plan<P: Problem>(problem: &P, device: &DeviceModel) -> Result<LibraryProgram, Error> {
    problem.planned(&fastest(problem, device)?)
}

/// The plans that may be the fastest on a device, whatever was decided before.
///
/// # Errors
/// As [`Problem::planned`].
pub fn contest<P: Problem>(
    problem: &P,
    device: &DeviceModel,
    entry: Entry,
) -> Result<Contest, Error> {
    let mut plans = problem.plans(device)?;
    let preferred = problem.preferred(&plans, device);
    let timed = |plan: P::Plan| (problem.seconds(&plan, device), plan);
    let first = (preferred < plans.len()).then(|| timed(plans.swap_remove(preferred)));
    let mut others: Vec<(f64, P::Plan)> = plans.into_iter().map(timed).collect();
    others.sort_by(|a, b| a.0.total_cmp(&b.0));
    let least = first.iter().chain(&others).map(|(seconds, _)| *seconds);
    let most = least.fold(f64::INFINITY, f64::min) * entry.within;
    others.retain(|(seconds, _)| *seconds <= most);
    let timed: Vec<(f64, P::Plan)> = first.into_iter().chain(others).take(entry.most).collect();
    let candidate = |(seconds, plan): &(f64, P::Plan)| {
        Ok(Candidate {
            name: problem.name(plan),
            seconds: *seconds,
            program: problem.planned(plan)?,
        })
    };
    Ok(Contest {
        class: problem.class(),
        candidates: timed.iter().map(candidate).collect::<Result<_, Error>>()?,
    })
}

/// A length as classes know it: exact up to 64, then rounded up to one of eight steps between powers of two.
pub fn class_len(len: u64) -> u64 {
    if len <= 64 {
        return len;
    }
    let step = 1u64 << (len - 1).ilog2().saturating_sub(3);
    len.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::class_len;

    #[test]
    fn lengths_of_a_class_lie_close_together() {
        for len in [0, 1, 63, 64] {
            assert_eq!(class_len(len), len);
        }
        assert_eq!(class_len(65), 72);
        assert_eq!(class_len(72), 72);
        assert_eq!(class_len(1000), 1024);
        assert_eq!(class_len(1024), 1024);
        assert_eq!(class_len(1025), 1152);
        for len in (65..100_000).step_by(37) {
            let class = class_len(len);
            assert!(class >= len && class <= len + len / 8 + 1, "{len}: {class}");
            assert_eq!(class_len(class), class);
        }
        assert_eq!(class_len(u64::MAX), u64::MAX);
    }
}
