//! Optional features of a GPU: which an adapter offers, and which of them were found to work.

use std::fmt;
use std::hash::Hash;
use std::io;

use cupola_backend::{Key, KeyHasher};

use super::Tier;
use crate::adapter::{AdapterFacts, CoopScalar, CoopShape};

/// First line of findings written as text; another version is not read.
const HEADING: &str = "cupola gpu findings 1";

/// Last line of findings that are complete.
const END: &str = "end";

/// A feature that kernels use where it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optional {
    /// 16-bit float arithmetic and storage.
    F16,
    /// Subgroup operations.
    Subgroups,
    /// 64-bit integers.
    Int64,
    /// Parameters inside a command.
    Immediates,
    /// Matrix products of this shape on matrix units.
    Cooperative(CoopShape),
}

impl fmt::Display for Optional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F16 => f.write_str("f16"),
            Self::Subgroups => f.write_str("subgroups"),
            Self::Int64 => f.write_str("64-bit integers"),
            Self::Immediates => f.write_str("immediates"),
            Self::Cooperative(shape) => write!(f, "cooperative matrices {shape}"),
        }
    }
}

impl Optional {
    /// What `facts` offers of a tier.
    pub(super) fn offered(facts: &AdapterFacts, tier: Tier) -> Vec<Self> {
        let features = &facts.features;
        let stable = [
            (features.f16, Self::F16),
            (features.subgroups.is_some(), Self::Subgroups),
            (features.int64, Self::Int64),
            (features.immediate_size > 0, Self::Immediates),
        ];
        let stable = stable
            .into_iter()
            .filter(|(there, _)| *there && tier >= Tier::Full);
        let shapes = features
            .cooperative
            .iter()
            .filter(|shape| tier >= Tier::Experimental && shape.in_wgsl());
        stable
            .map(|(_, feature)| feature)
            .chain(shapes.map(|&shape| Self::Cooperative(shape)))
            .collect()
    }

    /// Whether trying it can end the process.
    pub(super) fn is_risky(self) -> bool {
        matches!(self, Self::Cooperative(_))
    }

    /// The feature whose types it uses.
    pub(super) fn needs(self) -> Option<Self> {
        match self {
            Self::Cooperative(shape) => [shape.operand, shape.result]
                .contains(&CoopScalar::F16)
                .then_some(Self::F16),
            _ => None,
        }
    }

    /// What wgpu calls it.
    pub(super) fn feature(self) -> wgpu::Features {
        match self {
            Self::F16 => wgpu::Features::SHADER_F16,
            Self::Subgroups => wgpu::Features::SUBGROUP,
            Self::Int64 => wgpu::Features::SHADER_INT64,
            Self::Immediates => wgpu::Features::IMMEDIATES,
            Self::Cooperative(_) => wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
        }
    }
}

/// What trying an adapter's optional features came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Those that gave the right answers.
    pub works: Vec<Optional>,
    /// The others, and why they are not used.
    pub dropped: Vec<(Optional, String)>,
}

impl Findings {
    /// Notes what came of a feature.
    pub(super) fn note(&mut self, feature: Optional, verdict: Result<(), String>) {
        match verdict {
            Ok(()) => self.works.push(feature),
            Err(reason) => self.dropped.push((feature, reason)),
        }
    }

    /// Stops using what `which` says, for a reason.
    pub(super) fn drop_all(&mut self, which: impl Fn(Optional) -> bool, reason: &str) {
        let dropped = self.works.extract_if(.., |feature| which(*feature));
        self.dropped
            .extend(dropped.map(|feature| (feature, reason.to_owned())));
    }

    /// Writes them as [`Self::read`] reads them.
    pub(super) fn write(&self, facts: &AdapterFacts, to: &mut dyn io::Write) -> io::Result<()> {
        writeln!(to, "{HEADING}\n{}", identity(facts))?;
        for feature in &self.works {
            writeln!(to, "ok {feature}")?;
        }
        for (feature, reason) in &self.dropped {
            writeln!(to, "no {feature}: {}", super::one_line(reason))?;
        }
        writeln!(to, "{END}")
    }

    /// Reads what was found out about the features `offered` by an adapter; `None` for anything but complete findings
    /// of this adapter.
    pub(super) fn read(text: &str, facts: &AdapterFacts, offered: &[Optional]) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEADING || lines.next()? != identity(facts) {
            return None;
        }
        let lines: Vec<&str> = lines.collect();
        if lines.last() != Some(&END) {
            return None;
        }
        let mut findings = Self::default();
        for &feature in offered {
            let (ok, no) = (format!("ok {feature}"), format!("no {feature}: "));
            let reason = lines.iter().find_map(|line| line.strip_prefix(&no));
            match reason {
                Some(reason) => findings.dropped.push((feature, reason.to_owned())),
                None if lines.contains(&ok.as_str()) => findings.works.push(feature),
                None => return None,
            }
        }
        Some(findings)
    }

    /// The key under which they are kept: what a driver does right depends on the adapter, the driver, and the kernels
    /// that were tried.
    pub(super) fn key(facts: &AdapterFacts, offered: &[Optional]) -> Key {
        let mut hasher = KeyHasher::default();
        let tried = (HEADING, include_str!("selftest.rs"), identity(facts));
        tried.hash(&mut hasher);
        let names: Vec<String> = offered.iter().map(Optional::to_string).collect();
        names.hash(&mut hasher);
        hasher.key()
    }
}

/// What tells adapters and drivers apart, on one line.
pub(crate) fn identity(facts: &AdapterFacts) -> String {
    super::one_line(&format!(
        "{} {:#06x} {:#06x} {} {} {:?}",
        facts.name,
        facts.vendor_id,
        facts.device_id,
        facts.interface.name(),
        facts.driver,
        facts.features,
    ))
}
